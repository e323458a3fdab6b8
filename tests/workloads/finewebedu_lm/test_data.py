"""From documents to perplexity: tokenizer, order, windows, evaluation, bad files."""

import gzip
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from algoperf_torch.data.packed import Packed
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.finewebedu_lm import workload as module
from algoperf_torch.workloads.finewebedu_lm.prepare import prepare, split_order
from algoperf_torch.workloads.finewebedu_lm.tokenizer import Tokenizer
from algoperf_torch.workloads.registry import build_workload


@pytest.fixture(scope="module")
def data_dir(prepared):
    return prepared("finewebedu_lm")


@pytest.fixture(scope="module")
def raw(data_dir):
    return data_dir.parent / "raw" / "finewebedu_lm"


@pytest.fixture(scope="module")
def workload(data_dir):
    workload = build_workload("finewebedu_lm", data_dir, model_scale="test")
    workload.open()
    return workload


@pytest.fixture(scope="module")
def documents(raw):
    return [text for path in sorted(raw.glob("*.parquet")) for text in parquet.read_table(path)["text"].to_pylist()]


def stream_of(packed, split):
    (part,) = packed.split(split).parts
    return part.array("windows")


def expected_stream(documents, tokenizer, split):
    order = split_order(len(documents), split)
    return np.concatenate([tokenizer.encode([documents[number]])[0] for number in order])


def test_windows_hold_the_stream(data_dir, raw, documents):
    packed = Packed.open(data_dir / "finewebedu_lm", dataset="finewebedu_lm", preparation=1)
    tokenizer = Tokenizer(raw / "tokenizer")
    for split in (Split.TRAIN, Split.VALIDATION):
        windows, stream = stream_of(packed, split), expected_stream(documents, tokenizer, split)
        assert windows.shape == (len(stream) // 1_025, 1_025)
        np.testing.assert_array_equal(windows.reshape(-1), stream[: windows.size])
    assert packed.facts["documents"] == len(documents)
    assert not list((packed.folder / "train").glob("documents*"))


def test_every_document_is_in_one_split():
    train, validation = (split_order(1_237, split) for split in (Split.TRAIN, Split.VALIDATION))
    assert len(train) == int(0.9 * 1_237)
    assert sorted([*train, *validation]) == list(range(1_237))
    assert not np.array_equal(train, np.sort(train))


def test_tokenizer(raw):
    tokenizer = Tokenizer(raw / "tokenizer")
    one, nothing, other = tokenizer.encode(["the noun", "", "a<|endoftext|>b"])
    assert one[-1] == tokenizer.end_of_text
    assert len(nothing) == 0
    assert (other == tokenizer.end_of_text).sum() == 2  # as a token in the text, as GPT-2's does
    assert tokenizer._tokenizer.decode(one.tolist()) == "the noun"


def test_text_files_pack_to_the_same(raw, documents, data_dir, tmp_path):
    copy = tmp_path / "raw"
    copy.mkdir()
    shutil.copytree(raw / "tokenizer", copy / "tokenizer")
    middle = len(documents) // 2
    (copy / "a.txt").write_text("".join(f"{text}\n" for text in documents[:middle]), encoding="utf-8")
    (copy / "b.txt.gz").write_bytes(gzip.compress("".join(f"{text}\n" for text in documents[middle:]).encode()))
    manifest = prepare(copy, tmp_path / "out")
    packed = Packed.open(data_dir / "finewebedu_lm", dataset="finewebedu_lm", preparation=1)
    assert [file.sha256 for file in manifest.files] == [file.sha256 for file in packed.manifest.files]


def test_tokenizer_from_another_place(raw, tmp_path, data_dir):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    (copy / "tokenizer").rename(tmp_path / "gpt2")
    with pytest.raises(DataError, match="--set tokenizer=DIR"):
        prepare(copy, tmp_path / "out")
    manifest = prepare(copy, tmp_path / "out", tokenizer=tmp_path / "gpt2")
    saved = prepare(copy, tmp_path / "again", tokenizer=tmp_path / "out/tokenizer.json")
    assert [file.sha256 for file in manifest.files] == [file.sha256 for file in saved.files]


# ---------------------------------------------------------------------------------------------------------- bad files


def write_column(name):
    return lambda path: parquet.write_table(pa.table({name: ["a"]}), path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "001_00000.parquet",
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            r"Cannot read .*001_00000.parquet",
        ),
        ("001_00000.parquet", write_column("body"), r"001_00000.parquet has no column `text`, but body"),
        ("extra.txt", lambda path: path.write_bytes(b"fine\n\xff\xfe\n"), r"extra.txt: line 2 is not UTF-8"),
        ("tokenizer/vocab.json", lambda path: path.write_text("{"), r"Cannot read the tokenizer"),
        ("tokenizer/merges.txt", lambda path: path.unlink(), r"neither tokenizer.json nor vocab.json and merges.txt"),
        ("tokenizer/vocab.json", lambda path: path.write_text('{"a": 0}'), r"tokenizer"),
    ],
)
def test_bad_files(raw, tmp_path, name, damage, message):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    damage(copy / name)
    with pytest.raises(DataError, match=message):
        prepare(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_documents(tmp_path, raw):
    shutil.copytree(raw / "tokenizer", tmp_path / "raw/tokenizer")
    with pytest.raises(DataError, match=r"neither .parquet nor .txt"):
        prepare(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "raw/few.txt").write_text("a few words\n")
    with pytest.raises(DataError, match="Nothing to pack in train/windows"):
        prepare(tmp_path / "raw", tmp_path / "out")


def test_vocabulary_too_large_for_the_model(data_dir, monkeypatch):
    monkeypatch.setitem(module.SCALE_OPTIONS, "test", {**module.TINY, "vocab_size": 300})
    with pytest.raises(DataError, match=r"tokenizer of \d+ tokens, the model has 300"):
        build_workload("finewebedu_lm", data_dir, model_scale="test").open()


# ------------------------------------------------------------------------------------------- batches and evaluation


def batches(workload, draws, *, size=16, rank=0, world_size=1, seed=3):
    make = workload.train_batches(seed=seed, global_batch_size=size, rank=rank, world_size=world_size)
    return [make(draw) for draw in draws]


def test_batch_form(workload):
    (batch,) = batches(workload, [0])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "inputs": ((16, 64), torch.int32),
        "targets": ((16, 64), torch.int64),
    }
    assert torch.equal(batch["inputs"][:, 1:].long(), batch["targets"][:, :-1])


def test_windows_do_not_overlap(workload):
    windows = workload._windows[Split.TRAIN]
    assert windows.shape[1] == 65
    flat = windows.reshape(-1)
    np.testing.assert_array_equal(windows[3], flat[3 * 65 : 4 * 65])


def test_full_scale_windows(data_dir):
    workload = build_workload("finewebedu_lm", data_dir)
    workload.open()
    batch = workload.eval_examples(Split.VALIDATION, 0, 1, seed=0)
    assert batch["inputs"].shape == batch["targets"].shape == batch["weights"].shape == (1, 1024)


def test_ranks_share_the_global_batch_and_any_draw_without_replay(workload):
    in_order = batches(workload, range(30))
    for draw in (0, 29, 17):
        (alone,) = batches(workload, [draw])
        parts = [batches(workload, [draw], rank=rank, world_size=2)[0] for rank in range(2)]
        for name, value in alone.items():
            assert torch.equal(value, in_order[draw][name])
            assert torch.equal(torch.cat([part[name] for part in parts]), value)
    with pytest.raises(UsageError, match="not divisible by 3"):
        batches(workload, [0], world_size=3)


def test_sizes_of_the_evaluation(data_dir, monkeypatch):
    monkeypatch.setattr(module, "WINDOWS_PER_EVAL_BATCH", 1)
    workload = build_workload("finewebedu_lm", data_dir, model_scale="test")
    monkeypatch.setattr(module, "EVAL_BATCHES", {Split.EVAL_TRAIN: 40, Split.VALIDATION: 10**6})
    workload.open()
    assert workload.spec.num_eval_train == 40
    assert workload.spec.num_validation == len(workload._windows[Split.VALIDATION])
    assert module.EVAL_BATCHES[Split.EVAL_TRAIN] * 256 == 10_240


def test_full_size_evaluation_covers_all_batches():
    assert {split: batches * module.WINDOWS_PER_EVAL_BATCH for split, batches in module.EVAL_BATCHES.items()} == {
        Split.EVAL_TRAIN: 10_240,
        Split.VALIDATION: 100_096,
    }


def test_training_sample_is_the_beginning_of_the_stream(workload):
    batch = workload.eval_examples(Split.EVAL_TRAIN, 2, 5, seed=1)
    np.testing.assert_array_equal(batch["inputs"], workload._windows[Split.TRAIN][2:5, :-1])
    other = workload.eval_examples(Split.EVAL_TRAIN, 2, 5, seed=2)
    assert torch.equal(batch["inputs"], other["inputs"])


def evaluate(workload, model, split, *, size, world_size=1):
    rows = {}
    with torch.no_grad():
        for rank in range(world_size):
            for chunk, batch in workload.eval_batches(
                split, seed=5, rank=rank, world_size=world_size, eval_batch_size=size
            ):
                rows[chunk] = workload.evaluate_chunk(model, lambda c: workload.forward(model, c), batch)
    assert sorted(rows) == list(range(workload.num_chunks(split, size)))
    return workload.metrics(torch.stack([rows[chunk] for chunk in sorted(rows)]), split)


def test_metrics_do_not_depend_on_batches_or_ranks(workload):
    torch.manual_seed(0)
    model = workload.build_model().eval()
    whole = workload.eval_examples(Split.VALIDATION, 0, workload.spec.num_validation, seed=0)
    with torch.no_grad():
        logits = workload.forward(model, whole).double()
    expected = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole["targets"].flatten()))
    for size in (32, 160, 10_000):
        value = evaluate(workload, model, Split.VALIDATION, size=size)
        assert value["loss"] == pytest.approx(expected, rel=1e-6)
        assert value["ppl"] == pytest.approx(np.exp(expected), rel=1e-6)
    assert evaluate(workload, model, Split.VALIDATION, size=160) == evaluate(
        workload, model, Split.VALIDATION, size=160, world_size=2
    )


def test_perplexity_beyond_all_bounds(workload):
    tokens = workload.spec.num_validation * 64
    metrics = workload.metrics(torch.tensor([[1e6 * tokens, tokens]], dtype=torch.float64), Split.VALIDATION)
    assert metrics["ppl"] == np.inf
    metrics = workload.metrics(torch.tensor([[np.nan, tokens]], dtype=torch.float64), Split.VALIDATION)
    assert np.isnan(metrics["ppl"])


def test_training_lowers_the_loss(workload):
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for batch in batches(workload, range(40)):
        loss = workload.loss(workload.forward(model, batch), batch)
        (loss.summed / loss.n_valid).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.summed.detach() / loss.n_valid))
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
