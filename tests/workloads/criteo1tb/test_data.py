"""From day files to batches: preparation, order of lines, ranks, evaluation splits, bad files."""

import gzip
import shutil

import numpy as np
import pytest
import torch

from algoperf_torch.data.manifest import read_manifest
from algoperf_torch.data.packed import Packed
from algoperf_torch.data.raw import read_blocks
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.criteo1tb.data import PieceOrder
from algoperf_torch.workloads.criteo1tb.prepare import Lines, prepare, selected
from algoperf_torch.workloads.criteo1tb.records import parse_block
from algoperf_torch.workloads.registry import build_workload


@pytest.fixture(scope="module")
def data_dir(prepared):
    return prepared("criteo1tb")


@pytest.fixture(scope="module")
def raw(data_dir):
    return data_dir.parent / "raw" / "criteo1tb"


@pytest.fixture(scope="module")
def workload(data_dir):
    workload = build_workload("criteo1tb", data_dir, model_scale="test")
    workload.open()
    return workload


@pytest.fixture(scope="module")
def packed(data_dir):
    return Packed.open(data_dir / "criteo1tb", dataset="criteo1tb", preparation=1)


def parsed(raw, day):
    return parse_block(gzip.decompress((raw / f"day_{day}.gz").read_bytes()))


def test_training_days(raw, packed):
    train = packed.split(Split.TRAIN)
    assert [part.name for part in train.parts] == [f"day_{day}" for day in range(23)]
    for day, part in enumerate(train.parts):
        labels, inputs = parsed(raw, day)
        np.testing.assert_array_equal(part.array("labels"), labels)
        np.testing.assert_array_equal(part.array("inputs"), inputs)


def test_last_day_is_cut_into_test_and_validation(raw, packed):
    labels, inputs = parsed(raw, 23)
    num_test = 19 * packed.facts["piece_lines"]
    for split, rows in ((Split.TEST, slice(num_test)), (Split.VALIDATION, slice(num_test, None))):
        stored = packed.split(split)
        np.testing.assert_array_equal(stored.slice("labels", 0, stored.num_examples), labels[rows])
        np.testing.assert_array_equal(stored.slice("inputs", 0, stored.num_examples), inputs[rows])


def test_numbers_of_examples_come_from_the_data(workload, raw):
    described = read_manifest(raw).examples
    for split in (Split.TRAIN, Split.VALIDATION, Split.TEST):
        assert workload.spec.num_examples(split) == described[split]
    assert workload.synthetic_data
    assert all(path.is_file() for path in workload.evaluation_files())
    assert len(workload.evaluation_files()) == 4


def test_plain_files_pack_to_the_same(raw, packed, tmp_path):
    plain = tmp_path / "raw"
    plain.mkdir()
    shutil.copy(raw / "manifest.json", plain)
    for day in range(24):
        (plain / f"day_{day}").write_bytes(gzip.decompress((raw / f"day_{day}.gz").read_bytes()))
    manifest = prepare(plain, tmp_path / "out")
    assert [(file.name, file.sha256) for file in manifest.files] == [
        (file.name, file.sha256) for file in packed.manifest.files
    ]


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 5), (3, 4), (7, 20), (20, None), (0, 20), (19, 25)])
def test_selected_lines(tmp_path, monkeypatch, start, stop):
    lines = [f"line {number}\n".encode() for number in range(25)]
    (tmp_path / "day_0").write_bytes(b"".join(lines))
    monkeypatch.setattr(read_blocks, "__defaults__", (40,))  # a handful of lines in a block
    assert b"".join(selected(Lines(tmp_path / "day_0", start, stop))) == b"".join(lines[start:stop])


# ---------------------------------------------------------------------------------------------------------- bad files


@pytest.fixture
def broken(raw, tmp_path):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    return copy


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def damage_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def add_bad_line(path):
    path.write_bytes(path.read_bytes() + gzip.compress(b"0\t1\t2\n"))


@pytest.mark.parametrize(
    ("day", "damage", "message"),
    [
        (4, lambda path: path.unlink(), r"Missing raw file day_4.gz or day_4 in"),
        (5, truncate, r"day_5.gz is truncated or damaged"),
        (6, damage_middle, r"day_6.gz"),
        (7, add_bad_line, r"day_7.gz: line 201 has 3 columns, expected 40"),
        (8, lambda path: path.write_bytes(gzip.compress(b"")), r"Nothing to pack in train/day_8"),
        (23, lambda path: path.write_bytes(gzip.compress(b"")), r"day_23.gz ends after 0 lines"),
    ],
)
def test_bad_files(broken, tmp_path, day, damage, message):
    damage(broken / f"day_{day}.gz")
    with pytest.raises(DataError, match=message):
        prepare(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_altered_packed_file(data_dir, tmp_path):
    copy = tmp_path / "criteo1tb"
    shutil.copytree(data_dir / "criteo1tb", copy)
    damage_middle(copy / "train/day_3/inputs.npy")
    workload = build_workload("criteo1tb", tmp_path)
    with pytest.raises(DataError, match=r"train/day_3/inputs.npy was altered"):
        workload.open()


def test_raw_data_are_not_prepared_data(raw):
    with pytest.raises(DataError, match="algoperf data prepare criteo1tb"):
        build_workload("criteo1tb", raw.parent).open()


# ------------------------------------------------------------------------------------------------------------- stream


def batches(workload, draws, *, size=256, rank=0, world_size=1, seed=3):
    make = workload.train_batches(seed=seed, global_batch_size=size, rank=rank, world_size=world_size)
    return [make(draw) for draw in draws]


def test_an_epoch_has_every_line_once_in_shuffled_pieces(packed):
    train = packed.split(Split.TRAIN)
    order = PieceOrder(train, piece_lines=30)
    everything = train.slice("inputs", 0, train.num_examples)
    shuffled, _ = order.lines(0, train.num_examples, seed=1, epoch=0)
    assert not np.array_equal(shuffled, everything)
    numbered = {row.tobytes(): number for number, row in enumerate(everything)}
    assert len(numbered) == len(everything)
    numbers = np.array([numbered[row.tobytes()] for row in shuffled])
    assert sorted(numbers) == list(range(len(everything)))
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    pieces = sum(-(-part.num_examples // 30) for part in train.parts)
    assert pieces - 5 <= len(breaks) + 1 <= pieces  # two pieces may meet in order by chance
    again, _ = order.lines(0, train.num_examples, seed=1, epoch=1)
    assert not np.array_equal(again, shuffled)


def test_any_lines_can_be_asked_for(packed):
    train = packed.split(Split.TRAIN)
    whole_inputs, whole_labels = PieceOrder(train, 30).lines(0, train.num_examples, seed=1, epoch=0)
    for start, stop in [(0, 1), (17, 150), (199, 201), (4000, 4600)]:
        inputs, labels = PieceOrder(train, 30).lines(start, stop, seed=1, epoch=0)
        np.testing.assert_array_equal(inputs, whole_inputs[start:stop])
        np.testing.assert_array_equal(labels, whole_labels[start:stop])


def test_batch_form(workload):
    (batch,) = batches(workload, [0])
    forms = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    assert forms == {
        "inputs": ((256, 39), torch.float32),
        "targets": ((256, 1), torch.float32),
        "weights": ((256,), torch.float32),
    }
    assert set(batch["targets"].unique().tolist()) == {0.0, 1.0}


def test_ranks_share_the_global_batch(workload):
    for draw in (0, 7, 17, 18, 40):  # 17 batches in an epoch
        (whole,) = batches(workload, [draw])
        for world_size in (2, 4):
            parts = [batches(workload, [draw], rank=rank, world_size=world_size)[0] for rank in range(world_size)]
            for name in whole:
                torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], rtol=0, atol=0)


def test_any_draw_without_replay(workload):
    in_order = batches(workload, range(40))
    for draw in (39, 0, 18, 17):
        (alone,) = batches(workload, [draw])
        torch.testing.assert_close(alone["inputs"], in_order[draw]["inputs"], rtol=0, atol=0)
    other = batches(workload, [0], seed=4)[0]
    assert not torch.equal(other["inputs"], in_order[0]["inputs"])


def test_impossible_batch_sizes(workload):
    with pytest.raises(UsageError, match="not divisible by 3 ranks"):
        batches(workload, [0], world_size=3)
    with pytest.raises(UsageError, match="between 1 and the 4600"):
        batches(workload, [0], size=5000)


# --------------------------------------------------------------------------------------------------------- evaluation


def evaluate(workload, model, split, *, size, world_size=1):
    rows = {}
    with torch.no_grad():
        for rank in range(world_size):
            for chunk, batch in workload.eval_batches(
                split, seed=5, rank=rank, world_size=world_size, eval_batch_size=size
            ):
                rows[chunk] = workload.metric_sums(workload.forward(model, batch), batch)
    assert sorted(rows) == list(range(workload.num_chunks(split, size)))
    return workload.metrics(torch.stack([rows[chunk] for chunk in sorted(rows)]), split)["loss"]


@pytest.mark.parametrize("split", [Split.EVAL_TRAIN, Split.VALIDATION, Split.TEST])
def test_metric_does_not_depend_on_batches_or_ranks(workload, split):
    torch.manual_seed(0)
    model = workload.build_model().eval()
    whole = workload.eval_examples(split, 0, workload.spec.num_examples(split), seed=5)
    with torch.no_grad():
        logits = model(whole["inputs"]).flatten().double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, whole["targets"].flatten().double())
    values = [evaluate(workload, model, split, size=size) for size in (37, 800, 10_000, None)]
    assert values == pytest.approx([float(expected)] * len(values), rel=1e-6)
    assert evaluate(workload, model, split, size=800) == evaluate(workload, model, split, size=800, world_size=2)


def test_incomplete_evaluation_is_an_error(workload):
    with pytest.raises(DataError, match="went over 3 examples"):
        workload.metrics(torch.tensor([[1.0, 3.0]], dtype=torch.float64), Split.VALIDATION)


def test_evaluation_sample_of_the_training_split(workload):
    first = workload.eval_examples(Split.EVAL_TRAIN, 0, 100, seed=1)
    torch.testing.assert_close(
        workload.eval_examples(Split.EVAL_TRAIN, 50, 60, seed=1)["inputs"], first["inputs"][50:60]
    )
    assert not torch.equal(workload.eval_examples(Split.EVAL_TRAIN, 0, 100, seed=2)["inputs"], first["inputs"])
    assert first["weights"].shape == first["targets"].shape == (100, 1)


def test_golden_loss_with_large_logits(metric_vectors):
    arrays = {
        name: torch.from_numpy(value)
        for name, value in metric_vectors.arrays.items()
        if "criteo_" in name and value.ndim
    }
    workload = build_workload("criteo1tb")
    batch = {"targets": arrays["criteo_targets"], "weights": arrays["criteo_mask"]}
    loss = workload.loss(arrays["criteo_logits"], batch)
    torch.testing.assert_close(loss.per_example, arrays["criteo_per_example"], rtol=2e-6, atol=1e-9)
    assert float(loss.summed) == pytest.approx(float(metric_vectors.arrays["criteo_summed"]), rel=1e-6)
    sums = workload.metric_sums(arrays["criteo_logits"], batch)
    assert sums.tolist() == pytest.approx(
        [float(metric_vectors.arrays["criteo_summed"]), float(metric_vectors.arrays["criteo_n_valid"])], rel=1e-6
    )


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
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
