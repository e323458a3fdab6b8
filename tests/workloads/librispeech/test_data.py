"""From FLAC files to batches: filter, tokenizer, packing, compact batches, word error rates; files that are broken."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

from algoperf_torch.data.packed import Packed
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.librispeech import prepare as preparing
from algoperf_torch.workloads.librispeech.prepare import (
    PREPARATION,
    SUBSETS,
    TOKENIZER,
    load_tokenizer,
    prepare,
    read_audio,
    read_chapter,
)
from algoperf_torch.workloads.registry import build_workload


@pytest.fixture(scope="module")
def data_dir(prepared):
    return prepared("librispeech")


@pytest.fixture(scope="module")
def raw(data_dir):
    return data_dir.parent / "raw" / "librispeech"


@pytest.fixture(scope="module")
def packed(data_dir):
    return Packed.open(data_dir / "librispeech", dataset="librispeech", preparation=PREPARATION)


@pytest.fixture(scope="module")
def workload(data_dir):
    workload = build_workload("librispeech_conformer", data_dir)
    workload.open()
    return workload


def utterances(raw, split):
    """All utterances of the raw files in the order of preparation."""
    transcripts = [path for s in SUBSETS[split] for path in sorted((raw / "LibriSpeech" / s).rglob("*.trans.txt"))]
    return [utterance for path in transcripts for utterance in read_chapter(path)]


# ------------------------------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize("split", list(SUBSETS))
def test_packed_utterances_are_the_raw_ones(raw, packed, split):
    tokenizer = load_tokenizer(packed.folder / TOKENIZER)
    kept = [utterance for utterance in utterances(raw, split) if len(utterance.text) <= 256]
    stored = packed.split(split)
    assert stored.num_examples == len(kept)
    for number, utterance in enumerate(kept):
        part, row = stored.locate(number)
        samples, pieces = part.ragged("audio")[row], part.ragged("targets")[row]
        np.testing.assert_array_equal(samples, soundfile.read(utterance.audio, dtype="int16")[0])
        assert samples.dtype == np.int16
        assert tokenizer.decode(pieces.tolist()) == utterance.text
        assert pieces[-1] == tokenizer.eos_id() == 2
        assert (pieces[:-1] > 2).all()


def test_an_utterance_with_a_long_transcript_is_left_out(raw, packed):
    assert sum(len(utterance.text) > 256 for utterance in utterances(raw, Split.TRAIN)) == 1
    assert sum(packed.facts["utterances"].values()) == packed.facts["kept"] + 1


@pytest.mark.parametrize(("limit", "kept"), [("MAX_SAMPLES", 0), ("MAX_CHARACTERS", 0), (None, 1)])
def test_limits(raw, tmp_path, monkeypatch, limit, kept):
    """What is exactly as long as the limit is kept, what is longer is not, and nothing is cut."""
    utterance = utterances(raw, Split.TEST)[0]
    sizes = {"MAX_SAMPLES": len(read_audio(utterance.audio)), "MAX_CHARACTERS": len(utterance.text)}
    for name, size in sizes.items():
        monkeypatch.setattr(preparing, name, size - (name == limit))

    class Writer:
        rows = 0

        def append_ragged(self, array, values, lengths):
            self.rows += array == "audio"

    transcript = tmp_path / utterance.audio.with_suffix("").name
    chapter = utterance.audio.parent
    name = utterance.audio.stem.rpartition("-")[0]
    copy = tmp_path / chapter.name
    shutil.copytree(chapter, copy)
    transcript = copy / f"{name}.trans.txt"
    transcript.write_text(f"{utterance.audio.stem} {utterance.text}\n")
    writer = Writer()
    tokenizer = raw.parents[1] / "data" / "librispeech" / TOKENIZER
    preparing.write_part(writer, (tokenizer, [transcript]))
    assert writer.rows == kept


def test_tokenizer(packed, raw):
    tokenizer = load_tokenizer(packed.folder / TOKENIZER)
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (0, 1, 2, -1)
    assert tokenizer.vocab_size() <= 1024
    assert tokenizer.decode([1, 2]) == ""


def test_prepared_again_it_is_the_same(raw, packed, tmp_path):
    manifest = prepare(raw, tmp_path / "out")
    assert [(file.name, file.sha256) for file in manifest.files] == [
        (file.name, file.sha256) for file in packed.manifest.files
    ]


# ------------------------------------------------------------------------------------------------------------ batches


def test_batch_form(workload):
    make = workload.train_batches(seed=0, global_batch_size=3, rank=0, world_size=1)
    compact = make(0)
    assert compact["inputs"][0].dtype == torch.int16
    batch = workload.finish_batch(compact)
    audio, paddings = batch["inputs"]
    targets, target_paddings = batch["targets"]
    assert audio.shape == paddings.shape == (3, 320_000)
    assert targets.shape == target_paddings.shape == (3, 256)
    assert {value.dtype for value in (audio, paddings, targets, target_paddings)} == {torch.float32}
    lengths = compact["inputs"][1]
    assert torch.equal((1 - paddings).sum(dim=1).int(), lengths)
    assert torch.equal((1 - target_paddings).sum(dim=1).int(), compact["targets"][1])
    assert torch.all(audio[paddings > 0] == 0)
    assert torch.all(targets[target_paddings > 0] == 0)
    assert audio.abs().max() > 1_000  # the range of 16-bit integers
    last = target_paddings.argmax(dim=1) - 1
    assert torch.all(targets[torch.arange(3), last] == 2)
    assert batch["augmentation"].shape == (3, 24)


def test_padding_examples_have_a_length(workload):
    _, batch = list(workload.eval_batches(Split.TEST, seed=0, eval_batch_size=16))[-1]
    batch = workload.finish_batch(batch)
    assert batch["weights"].tolist() == [1.0, 0.0] if len(batch["weights"]) == 2 else True
    assert torch.all((1 - batch["inputs"][1]).sum(dim=1) >= 1)


def test_mask_numbers_belong_to_the_place_in_the_global_batch(workload):
    whole = workload.train_batches(seed=0, global_batch_size=4, rank=0, world_size=1)(5)["augmentation"]
    parts = [
        workload.train_batches(seed=0, global_batch_size=4, rank=r, world_size=2)(5)["augmentation"] for r in (0, 1)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_the_model_uses_the_numbers_of_the_batch(data_dir):
    workload = build_workload("librispeech_conformer", data_dir, model_scale="test")
    workload.open()
    torch.manual_seed(0)
    model = workload.build_model()
    for module in model.modules():
        if hasattr(module, "rate"):
            module.rate.zero_()
    batch = workload.finish_batch(workload.train_batches(seed=0, global_batch_size=4, rank=0, world_size=1)(0))
    first, again = (workload.forward(model, batch)[0] for _ in range(2))
    assert torch.equal(first, again)
    other = workload.forward(model, {**batch, "augmentation": batch["augmentation"].flip(0)})[0]
    assert not torch.equal(first, other)
    drawn = [workload.forward(model, {k: v for k, v in batch.items() if k != "augmentation"})[0] for _ in range(2)]
    assert not torch.equal(*drawn)
    evaluated = [workload.forward(model.eval(), {**batch, "augmentation": a})[0] for a in (batch["augmentation"], None)]
    assert torch.equal(*evaluated)


# ------------------------------------------------------------------------------------------------------------ metrics


class Oracle:
    """Logits that spell given piece ids: one frame each, with a blank after it."""

    @staticmethod
    def outputs(ids, lengths, frames=600, vocabulary=1024):
        logits = torch.zeros(len(ids), frames, vocabulary)
        logits[..., 0] = 10.0
        for row, length in enumerate(lengths.int().tolist()):
            for place, piece in enumerate(ids[row, :length].int().tolist()):
                logits[row, 2 * place, piece] = 20.0
        return logits, torch.zeros(len(ids), frames)


def test_word_error_rates(workload):
    examples = workload.finish_batch(workload.eval_examples(Split.TEST, 0, 3, seed=0))
    batch = {**examples, "weights": torch.tensor([1.0, 1.0, 0.0])}
    ids, lengths = batch["targets"][0], (1 - batch["targets"][1]).sum(dim=1)
    perfect = workload.metric_sums(Oracle.outputs(ids, lengths), batch)
    texts = [workload.tokenizer.decode(ids[row, : int(lengths[row])].int().tolist()) for row in range(2)]
    words = sum(len(text.split()) for text in texts)
    assert perfect[1] == lengths[:2].sum()
    assert perfect[2:].tolist() == [0, words + 4, 0, words, 2]  # two pseudo-words for each utterance
    silent = workload.metric_sums(Oracle.outputs(ids, torch.zeros(3)), batch)
    assert silent[4:6].tolist() == [words, words]
    assert silent[2] == words  # of an empty hypothesis one edge word and two pseudo-words remain
    assert silent[0] > perfect[0]


def test_metrics_from_sums(workload):
    rows = torch.tensor(
        [[6.0, 4.0, 2.0, 10.0, 3.0, 6.0, 2.0], [2.0, 4.0, 3.0, 10.0, 3.0, 6.0, 1.0]], dtype=torch.float64
    )
    assert workload.metrics(rows, Split.TEST) == {"ctc_loss": 1.0, "wer": 0.25, "standard_wer": 0.5}
    assert set(workload.metrics(rows, Split.TEST)) == set(workload.spec.metrics)
    with pytest.raises(DataError, match="over 2 utterances"):
        workload.metrics(rows[:1], Split.TEST)


def test_pieces_that_the_tokenizer_does_not_have_are_unknown(workload):
    ids = torch.full((1, 2), 1023)
    assert workload._texts(ids, torch.tensor([2]), np.array([True]))[0].strip().startswith("⁇")


# ---------------------------------------------------------------------------------------------------------- bad files


@pytest.fixture
def broken(raw, tmp_path):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    return copy


def some(folder, pattern):
    return sorted((folder / "LibriSpeech").glob(pattern))[0]


def rewrite(pattern, change):
    def damage(folder):
        path = some(folder, pattern)
        path.write_bytes(change(path.read_bytes()))

    return damage


def stereo(folder):
    soundfile.write(some(folder, "dev-other/*/*/*.flac"), np.zeros((800, 2), np.int16), 16_000)


def slow(folder):
    soundfile.write(some(folder, "test-clean/*/*/*.flac"), np.zeros(800, np.int16), 8_000)


TRANSCRIPT = "train-clean-100/*/*/*.trans.txt"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            rewrite("train-other-500/*/*/*.flac", lambda data: data[: len(data) // 2]),
            r"(Cannot read|truncated).*|.*flac",
        ),
        (rewrite("dev-clean/*/*/*.flac", lambda data: b"no sound"), r"Cannot read .*flac"),
        (lambda folder: some(folder, "test-clean/*/*/*.flac").unlink(), r"Cannot read .*flac"),
        (stereo, "16000 Hz, 2 channels"),
        (slow, "8000 Hz, 1 channels"),
        (lambda folder: some(folder, TRANSCRIPT).unlink(), r"Missing transcript .*trans.txt"),
        (rewrite(TRANSCRIPT, lambda data: b"\xff\xfe" + data), r"Cannot read transcript .*trans.txt"),
        (rewrite(TRANSCRIPT, lambda data: data + b"101-1101-0009\n"), r"trans.txt, line \d+: '101-1101-0009'"),
        (rewrite(TRANSCRIPT, lambda data: data.replace(b"THE", b"the")), r"trans.txt, line \d+"),
        (rewrite(TRANSCRIPT, lambda data: b""), r"trans.txt is empty"),
        (lambda folder: shutil.rmtree(folder / "LibriSpeech" / "dev-other"), r"no folder .*dev-other"),
        (lambda folder: shutil.rmtree(some(folder, "test-clean/*")), r"test-clean holds no"),
    ],
)
def test_bad_files(broken, tmp_path, damage, message):
    damage(broken)
    with pytest.raises(DataError, match=message):
        prepare(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_tokenizer(data_dir, tmp_path):
    (tmp_path / "model").write_bytes(b"nothing")
    with pytest.raises(DataError, match="Cannot read the tokenizer"):
        load_tokenizer(tmp_path / "model")
