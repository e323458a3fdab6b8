"""From parallel text to BLEU: tokenizer, preparation, evaluation, bad files."""

import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from algoperf_torch.data.packed import Packed
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import EVALUATION_SPLITS, Split
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.wmt import prepare as preparing
from algoperf_torch.workloads.wmt.prepare import TRAINING_CORPORA, PairFiles, prepare, read_lines, training_sentences
from algoperf_torch.workloads.wmt.synth import synthesise
from algoperf_torch.workloads.wmt.tokenizer import Tokenizer
from algoperf_torch.workloads.wmt.workload import EVALUATED, SCALE_OPTIONS


@pytest.fixture(scope="module")
def data_dir(prepared):
    return prepared("wmt")


@pytest.fixture(scope="module")
def raw(data_dir):
    return data_dir.parent / "raw" / "wmt"


@pytest.fixture(scope="module")
def workload(data_dir):
    workload = build_workload("wmt", data_dir, model_scale="test")
    workload.open()
    return workload


@pytest.fixture(scope="module")
def packed(data_dir):
    return Packed.open(data_dir / "wmt", dataset="wmt", preparation=1)


@pytest.fixture(scope="module")
def tokenizer(packed):
    return Tokenizer(packed.folder / "sentencepiece.model")


def raw_pairs(raw, names):
    sides = [(raw / name).read_text(encoding="utf-8").splitlines() for name in names]
    return list(zip(*sides, strict=True))


def text_of(tokenizer, sentence):
    return tokenizer._processor.decode(sentence.tolist())


def test_training_pairs(raw, packed, tokenizer):
    (part,) = packed.split(Split.TRAIN).parts
    pairs = [pair for name in TRAINING_CORPORA for pair in raw_pairs(raw, (f"{name}.de", f"{name}.en"))]
    assert part.num_examples == len(pairs) == 400
    for number in range(0, 400, 7):
        german, english = part.ragged("source")[number], part.ragged("target")[number]
        assert german[-1] == english[-1] == 2
        assert (text_of(tokenizer, german), text_of(tokenizer, english)) == pairs[number]
        assert part.array("source_count")[number] == np.count_nonzero(german)


def test_evaluation_pairs(raw, packed, tokenizer):
    (validation,) = packed.split(Split.VALIDATION).parts
    (test,) = packed.split(Split.TEST).parts
    pairs = raw_pairs(raw, ("dev/newstest2013.de", "dev/newstest2013.en"))
    assert [text_of(tokenizer, validation.ragged("source")[i]) for i in range(100)] == [german for german, _ in pairs]
    sgml = (raw / "dev/newstest2014-deen-ref.en.sgm").read_text(encoding="utf-8")
    assert f">{text_of(tokenizer, test.ragged('target')[41])}</seg>" in sgml
    assert test.num_examples == 100


def test_sgml_entities_stay(tmp_path):
    path = tmp_path / "x.en.sgm"
    path.write_text('<doc>\n<seg id="1">a &amp; b</seg>\n<seg id="2"> c </seg><seg id="3">d</seg>\n</doc>\n')
    assert list(read_lines(path)) == ["a &amp; b", "c", "d"]


def test_only_newlines_end_lines(tmp_path):
    path = tmp_path / "x.de"
    path.write_bytes("eins\u2028zwei\x85drei\rvier\nfünf\n".encode())
    assert list(read_lines(path)) == ["eins\u2028zwei\x85drei\rvier", "fünf"]


def test_empty_sides_and_long_sentences_are_dropped(raw, tmp_path, packed):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    for language, last in (("de", "\n"), ("en", "not empty\n")):
        with (copy / f"commoncrawl.de-en.{language}").open("a", encoding="utf-8") as file:
            file.write(f"short {language}\n{'a b ' * 200}\n{last}")
    manifest = prepare(copy, tmp_path / "out", tokenizer=packed.folder / "sentencepiece.model")
    assert manifest.examples["train"] == 401


def test_given_tokenizer_is_kept(raw, packed, tmp_path):
    model = packed.folder / "sentencepiece.model"
    manifest = prepare(raw, tmp_path / "out", tokenizer=model)
    assert (tmp_path / "out/sentencepiece.model").read_bytes() == model.read_bytes()
    assert {file.name: file.sha256 for file in manifest.files} == {f.name: f.sha256 for f in packed.manifest.files}


def test_tokenizer_ids(tokenizer):
    processor = tokenizer._processor
    assert [processor.id_to_piece(number) for number in range(3)] == ["<unk>", "<s>", "</s>"]
    (encoded,) = tokenizer.encode(["☃"])
    assert 0 in encoded
    assert tokenizer.vocab_size == 192


def test_training_text_alternates_and_mixes(raw, monkeypatch):
    corpora = [PairFiles(raw / f"{name}.de", raw / f"{name}.en") for name in TRAINING_CORPORA]
    sizes = [preparing.count_pairs(corpus) for corpus in corpora]
    sentences = list(training_sentences(corpora, sizes))
    pairs = {pair for name in TRAINING_CORPORA for pair in raw_pairs(raw, (f"{name}.de", f"{name}.en"))}
    assert len(sentences) == 800
    assert set(zip(sentences[::2], sentences[1::2], strict=True)) <= pairs
    first = sentences[:20:2]
    origin = [next(i for i, corpus in enumerate(corpora) if text in corpus.german.read_text()) for text in first]
    assert len(set(origin)) > 1
    monkeypatch.setattr(preparing, "TRAINING_BYTES", 5_000)
    short = list(training_sentences(corpora, sizes))
    size = sum(len(text.encode()) + 1 for text in short)
    assert 5_000 <= size < 5_000 + 400
    last = sum(len(text.encode()) + 1 for text in short[:-2])
    assert last < 5_000


# ---------------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("commoncrawl.de-en.de", lambda c: c + b"one more\n", r"commoncrawl.de-en.de has 101 sentences, .*en 100"),
        ("rapid2016.de-en.en", lambda c: c[:40] + b"\xff" + c[41:], r"rapid2016.de-en.en: line \d+ is not UTF-8"),
        ("dev/newstest2013.de", lambda c: None, r"Missing raw file dev/newstest2013.de"),
        ("dev/newstest2014-deen-src.de.sgm", lambda c: c.replace(b'<seg id="3">', b"<"), r"has 99 sentences"),
        ("training/europarl-v7.de-en.de", lambda c: gzip.compress(c)[:-9], r"europarl-v7.de-en.de is truncated"),
    ],
)
def test_bad_text(raw, tmp_path, packed, name, damage, message):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    content = damage((copy / name).read_bytes())
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(copy, tmp_path / "out", tokenizer=packed.folder / "sentencepiece.model")
    assert not (tmp_path / "out").exists()


def test_vocabulary_too_large_for_the_text(raw, tmp_path):
    with pytest.raises(DataError, match="Cannot train a vocabulary of 32,000 pieces"):
        prepare(raw, tmp_path / "out", vocab_size=32_000)


def test_bad_tokenizer(raw, tmp_path):
    (tmp_path / "model").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is not a sentencepiece model"):
        prepare(raw, tmp_path / "out", tokenizer=tmp_path / "model")


def test_vocabulary_too_large_for_the_model(data_dir, monkeypatch):
    workload = build_workload("wmt", data_dir, model_scale="test")
    monkeypatch.setitem(SCALE_OPTIONS, "test", {"vocab_size": 100, "max_length": 64})
    with pytest.raises(DataError, match="--set vocab_size=100"):
        workload.open()


# --------------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def model(workload):
    """Trained a little, so that some sentences end."""
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    make = workload.train_batches(seed=0, global_batch_size=16, rank=0, world_size=1)
    losses = []
    for draw in range(60):
        batch = make(draw)
        loss = workload.loss(workload.forward(model, batch), batch)
        (loss.summed / loss.n_valid).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.summed.detach() / loss.n_valid))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    return model.eval()


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


def test_metrics_do_not_depend_on_batches_or_ranks(workload, model):
    values = [evaluate(workload, model, Split.VALIDATION, size=size) for size in (34, 200)]
    assert values[0]["bleu"] > 0
    for name, tolerance in (("bleu", 1e-9), ("accuracy", 1e-9), ("loss", 1e-6)):
        assert values[0][name] == pytest.approx(values[1][name], rel=tolerance)
    assert evaluate(workload, model, Split.VALIDATION, size=34, world_size=2) == values[0]


def test_bleu_compares_detokenised_text(workload, model, tokenizer):
    import sacrebleu

    batch = workload.eval_examples(Split.TEST, 0, 100, seed=0)
    predictions = workload.translate(model, batch["inputs"])
    ours = [tokenizer._processor.decode(cut(row)) for row in predictions.tolist()]
    theirs = [tokenizer._processor.decode(cut(row)) for row in batch["targets"].tolist()]
    expected = sacrebleu.corpus_bleu(ours, [theirs])
    assert evaluate(workload, model, Split.TEST, size=200)["bleu"] == pytest.approx(expected.score, rel=1e-9)


def cut(row):
    return row[: row.index(2) + 1] if 2 in row else row[:1]


def test_row_without_end_keeps_its_first_token(tokenizer):
    rows = np.array([[50, 60, 2, 70], [50, 60, 70, 80], [2, 50, 60, 70]])
    assert tokenizer.decode(rows) == [tokenizer._processor.decode([50, 60]), tokenizer._processor.decode([50]), ""]


def test_ids_beyond_the_vocabulary_are_unknown(tokenizer):
    """A model may have more outputs than a tokenizer that was trained on little text has pieces."""
    beyond = tokenizer.vocab_size
    assert tokenizer.decode(np.array([[50, beyond, 2], [60_000, 50, 2]])) == tokenizer.decode(
        np.array([[50, 0, 2], [0, 50, 2]])
    )


def test_padded_rows_add_nothing(workload, model):
    batch = workload.eval_examples(Split.VALIDATION, 0, 3, seed=0)
    padded = {name: torch.nn.functional.pad(value, (0, 0, 0, 2)) for name, value in batch.items()}
    assert workload.bleu_sums(model, padded) == workload.bleu_sums(model, batch)
    empty = {name: torch.zeros_like(value) for name, value in batch.items()}
    assert workload.bleu_sums(model, empty) == [0] * 10
    with torch.no_grad():
        rows = [workload.metric_sums(workload.forward(model, b), b) for b in (batch, padded)]
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-6, atol=1e-6)


def test_numbers_of_examples(workload):
    spec = workload.spec
    assert (spec.num_train, spec.num_eval_train, spec.num_validation, spec.num_test) == (400, 400, 100, 100)
    assert workload.synthetic_data
    assert workload.evaluation_files()


# --------------------------------------------------------------------------------------------------------- mini scale


def test_mini_scale_trains_and_evaluates(data_dir, monkeypatch):
    monkeypatch.setitem(EVALUATED, "mini", 12)
    workload = build_workload("wmt", data_dir, model_scale="mini")
    workload.open()
    workload.spec = replace(workload.spec, num_eval_train=12)
    assert (workload.spec.num_validation, workload.spec.num_test) == (12, 12)
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    make = workload.train_batches(seed=0, global_batch_size=workload.spec.batch_size, rank=0, world_size=1)
    losses = []
    for _ in range(2):
        batch = make(0)
        assert batch["inputs"].shape == (8, 32)
        loss = workload.loss(workload.forward(model, batch), batch)
        (loss.summed / loss.n_valid).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.summed.detach()))
    assert losses[1] < losses[0]
    model.eval()
    for split in EVALUATION_SPLITS:
        found = evaluate(workload, model, split, size=16)
        assert found.keys() == set(workload.spec.metrics)
        assert 0 < found["loss"] < 10


def test_fewer_words(tmp_path):
    texts = []
    for words in (8, 40):
        synthesise(tmp_path / str(words), num_train=200, seed=0, words=words)
        texts.append((tmp_path / str(words) / "commoncrawl.de-en.en").read_text(encoding="utf-8"))
    few, more = (len(set(text.lower().replace(".", "").replace(",", "").split())) for text in texts)
    assert few <= 4 + 2 + 2 + 2 < more  # nouns, verbs, adjectives, "the" and "because"
    with pytest.raises(UsageError, match="3 words is too small"):
        synthesise(tmp_path / "none", num_train=8, seed=0, words=3)
