"""From CSV tables to metrics: preparation, ranks, evaluation of every graph, bad files."""

import gzip
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from algoperf_torch.data.packed import Packed
from algoperf_torch.errors import DataError
from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.spec import Split
from algoperf_torch.workloads.ogbg.metrics import average_precision, mean_average_precision
from algoperf_torch.workloads.ogbg.prepare import TABLES, prepare
from algoperf_torch.workloads.registry import build_workload


@pytest.fixture(scope="module")
def data_dir(prepared):
    return prepared("ogbg")


@pytest.fixture(scope="module")
def raw(data_dir):
    return data_dir.parent / "raw" / "ogbg"


@pytest.fixture(scope="module")
def workload(data_dir):
    workload = build_workload("ogbg", data_dir, model_scale="test")
    workload.open()
    return workload


@pytest.fixture(scope="module")
def model(workload):
    torch.manual_seed(0)
    return workload.build_model().eval()


def table(raw, name):
    lines = gzip.decompress((raw / f"pcba/raw/{name}.csv.gz").read_bytes()).decode().splitlines()
    return [[float(field) if field else np.nan for field in line.split(",")] for line in lines]


def test_packed_graphs_are_the_raw_ones(raw, data_dir):
    sizes, counts, nodes, bonds, ends, labels = (table(raw, name) for name in TABLES)
    node_starts, bond_starts = (
        np.cumsum([0, *np.ravel(sizes)]).astype(int),
        np.cumsum([0, *np.ravel(counts)]).astype(int),
    )
    packed = Packed.open(data_dir / "ogbg", dataset="ogbg", preparation=1)
    for split, name in ((Split.TRAIN, "train"), (Split.VALIDATION, "valid"), (Split.TEST, "test")):
        listed = gzip.decompress((raw / f"pcba/split/scaffold/{name}.csv.gz").read_bytes()).split()
        (part,) = packed.split(split).parts
        assert part.num_examples == len(listed)
        for row, graph in enumerate(map(int, listed)):
            np.testing.assert_array_equal(part.ragged("nodes")[row], nodes[node_starts[graph] : node_starts[graph + 1]])
            mine = slice(bond_starts[graph], bond_starts[graph + 1])
            np.testing.assert_array_equal(part.ragged("edges")[row], bonds[mine] + bonds[mine])
            edges = slice(*part.array("edges_offsets")[row : row + 2])
            expected = np.array(ends[mine]).reshape(-1, 2)
            np.testing.assert_array_equal(part.array("senders")[edges], np.append(expected[:, 0], expected[:, 1]))
            np.testing.assert_array_equal(part.array("receivers")[edges], np.append(expected[:, 1], expected[:, 0]))
            np.testing.assert_array_equal(part.array("labels")[row], np.nan_to_num(labels[graph], nan=-1))


# ---------------------------------------------------------------------------------------------------------- bad files


@pytest.fixture
def broken(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    return tmp_path / "raw"


def edit(path, function):
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress(("\n".join(function(lines)) + "\n").encode()))


def with_line(number, text):
    return lambda lines: [*lines[: number - 1], text, *lines[number:]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("raw/node-feat", with_line(100, "1,2,3"), r"node-feat.csv.gz: line 100: .*Expected 9 columns, got 3"),
        ("raw/node-feat", with_line(5, "1,2,3,4,5,6,7,8,x"), r"node-feat.csv.gz: line 5: .*invalid value 'x'"),
        ("raw/node-feat", lambda lines: lines[:-1], r"node-feat.csv.gz has [\d,]+ lines; more are needed"),
        ("raw/edge", lambda lines: [*lines, "0,1"], r"edge.csv.gz has more lines than"),
        ("raw/edge", with_line(7, "0,999"), r"edge.csv.gz: line 7 has the edge \[0, 999\] in graph 0"),
        ("raw/edge", with_line(7, "-1,0"), r"edge.csv.gz: line 7 has the edge \[-1, 0\]"),
        ("raw/edge", with_line(7, ",0"), r"edge.csv.gz: an empty field"),
        ("raw/graph-label", with_line(3, ",".join(["0"] * 127 + ["2"])), r"graph-label.csv.gz: line 3 has the label 2"),
        ("raw/num-node-list", lambda lines: lines[:-1], r"num-edge-list.csv.gz lists 900 graphs, .* 899"),
        ("raw/num-edge-list", with_line(4, "-3"), r"num-edge-list.csv.gz: line 4 has a negative number"),
        ("split/scaffold/train", with_line(2, "123456"), r"train.csv.gz: line 2 names graph 123456 of 900"),
        ("split/scaffold/valid", lambda lines: [lines[0], *lines], r"valid.csv.gz names 1 graphs twice"),
        ("split/scaffold/test", lambda lines: [], r"test.csv.gz is empty|Empty CSV|test.csv.gz"),
    ],
)
def test_bad_tables(broken, tmp_path, name, change, message):
    edit(broken / f"pcba/{name}.csv.gz", change)
    with pytest.raises(DataError, match=message):
        prepare(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_and_missing_tables(broken, tmp_path):
    path = broken / "pcba/raw/edge-feat.csv.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"edge-feat.csv.gz is truncated or damaged"):
        prepare(broken, tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match=r"Missing raw file raw/edge-feat.csv.gz"):
        prepare(broken, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- stream


def batch_of(workload, draw, *, size=64, rank=0, world_size=1, seed=3):
    return workload.train_batches(seed=seed, global_batch_size=size, rank=rank, world_size=world_size)(draw)


def test_ranks_share_the_global_batch(workload):
    for draw in (0, 5, 23):
        whole = batch_of(workload, draw)
        pieces = whole["inputs"].cut(2)
        for rank in range(2):
            part = batch_of(workload, draw, rank=rank, world_size=2)
            for found, expected in zip(part["inputs"], pieces[rank], strict=True):
                assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected
            half = slice(rank * len(part["targets"]), (rank + 1) * len(part["targets"]))
            assert torch.equal(part["targets"], whole["targets"][half])
            assert torch.equal(part["weights"], whole["weights"][half])


def test_any_draw_without_replay(workload):
    make = workload.train_batches(seed=3, global_batch_size=64, rank=0, world_size=1)
    in_order = [make(draw) for draw in range(30)]
    for draw in (29, 0, 14):
        assert torch.equal(batch_of(workload, draw)["inputs"].nodes, in_order[draw]["inputs"].nodes)
        assert torch.equal(make(draw)["targets"], in_order[draw]["targets"])


def test_two_ranks_have_the_gradient_of_one(workload):
    torch.manual_seed(0)
    model = workload.build_model().train()
    from algoperf_torch.workloads.layers import set_dropout

    set_dropout(model, 0.0)

    def summed_gradient(batch):
        model.zero_grad()
        loss = workload.loss(workload.forward(model, batch), batch)
        loss.summed.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()]), float(loss.n_valid)

    whole, count = summed_gradient(batch_of(workload, 1))
    parts = [summed_gradient(batch_of(workload, 1, rank=rank, world_size=2)) for rank in range(2)]
    assert sum(part[1] for part in parts) == count
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_microbatches(workload):
    batch = batch_of(workload, 2)
    context = TrainingContext.__new__(TrainingContext)
    parts = list(context.microbatches(batch, 4))
    assert len(parts) == 4
    with torch.no_grad():
        model = workload.build_model().eval()
        whole = workload.loss(workload.forward(model, batch), batch)
        losses = [workload.loss(workload.forward(model, part), part) for part in parts]
    assert float(sum(loss.summed for loss in losses)) == pytest.approx(float(whole.summed), rel=1e-5)
    assert float(sum(loss.n_valid for loss in losses)) == float(whole.n_valid)


# --------------------------------------------------------------------------------------------------------- evaluation


def evaluate(workload, model, split, *, size=None, world_size=1):
    rows = {}
    with torch.no_grad():
        for rank in range(world_size):
            for chunk, batch in workload.eval_batches(
                split, seed=5, rank=rank, world_size=world_size, eval_batch_size=size
            ):
                rows[chunk] = workload.evaluate_chunk(model, lambda c: workload.forward(model, c), batch)
    assert sorted(rows) == list(range(workload.num_chunks(split, size)))
    return workload.metrics(torch.stack([rows[chunk] for chunk in sorted(rows)]), split)


@pytest.mark.parametrize("split", [Split.EVAL_TRAIN, Split.VALIDATION])
def test_metrics_do_not_depend_on_batches_or_ranks(workload, model, split):
    whole = workload.eval_examples(split, 0, workload.spec.num_examples(split), seed=5)
    with torch.no_grad():
        logits = workload.forward(model, whole)
    labels, weights = whole["targets"].numpy(), whole["weights"].numpy()
    scores = logits.sigmoid().numpy()
    expected = np.mean(
        [
            average_precision_score(labels[weights[:, task], task], scores[weights[:, task], task])
            for task in range(128)
            if (labels * weights)[:, task].any()
        ]
    )
    values = [evaluate(workload, model, split, size=size) for size in (88, 512, 5_000)]
    for value in values:
        assert value["mean_average_precision"] == pytest.approx(expected, rel=1e-4)
        assert value["loss"] == pytest.approx(values[0]["loss"], rel=1e-6)
        assert value["accuracy"] == pytest.approx(values[0]["accuracy"], rel=1e-9)
    assert evaluate(workload, model, split, size=512) == evaluate(workload, model, split, size=512, world_size=2)


def test_every_graph_is_evaluated_once_in_one_shape(workload):
    shapes, graphs = set(), 0
    for split in (Split.EVAL_TRAIN, Split.VALIDATION, Split.TEST):
        found = 0
        for _, batch in workload.eval_batches(split, seed=1, eval_batch_size=300):
            inputs = batch["inputs"]
            shapes.add((inputs.nodes.shape, inputs.edges.shape, inputs.n_node.shape, batch["targets"].shape))
            real = int(inputs.n_node.nonzero()[-1])  # the last graph with nodes is padding
            found += real
        assert found == workload.spec.num_examples(split)
        graphs += found
    assert len(shapes) == 1
    assert graphs == 600 + 150 + 150  # the sample of the training split is all of it here


def test_shape_of_evaluation_does_not_depend_on_the_seed(workload):
    assert len({workload.eval_limits(30, seed) for seed in range(20)}) == 1
    largest = max(store.n_node.max() for store in workload._stores.values())
    assert workload.eval_limits(1, seed=0).nodes == largest


def test_golden_metrics(metric_vectors):
    arrays = metric_vectors.arrays
    logits, labels, weights = (torch.from_numpy(arrays[f"map_{name}"]) for name in ("logits", "labels", "weights"))
    scores = logits.sigmoid().numpy()

    def value(rows=slice(None), tasks=slice(None)):
        return mean_average_precision(
            scores[rows, tasks], arrays["map_labels"][rows, tasks] > 0, arrays["map_weights"][rows, tasks]
        )

    assert value() == pytest.approx(float(arrays["map_value"]), rel=1e-6)
    assert value(rows=slice(20)) == pytest.approx(float(arrays["map_first_half"]), rel=1e-6)
    assert value(rows=slice(20, None)) == pytest.approx(float(arrays["map_second_half"]), rel=1e-6)
    assert np.isnan(value(tasks=slice(7, 8)))
    for task, expected in enumerate(arrays["map_per_task"]):
        assert value(tasks=slice(task, task + 1)) == pytest.approx(float(expected), rel=1e-6, nan_ok=True)

    workload = build_workload("ogbg")
    wide = [torch.nn.functional.pad(tensor, (0, 120)) for tensor in (logits, labels, weights)]
    batches = [{"targets": wide[1][rows], "weights": wide[2][rows]} for rows in (slice(20), slice(20, None))]
    sums = torch.stack(
        [workload.metric_sums(part, batch) for part, batch in zip(wide[0].split(20), batches, strict=True)]
    )
    metrics = workload.metrics(sums, Split.VALIDATION)
    assert metrics["mean_average_precision"] == pytest.approx(float(arrays["map_value"]), rel=1e-6)
    assert metrics["loss"] == pytest.approx(float(arrays["map_loss"]), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(float(arrays["map_accuracy"]), rel=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_agrees_with_scikit_learn(ties):
    rng = np.random.default_rng(0)
    for size in (1, 2, 10, 500):
        scores = rng.normal(size=size).round(1 if ties else 8).astype(np.float32)
        labels = rng.random(size) < 0.3
        labels[rng.integers(size)] = True
        assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), rel=1e-12)


def test_a_task_counts_by_its_labels_before_masking():
    scores = np.array([[0.9], [0.2], [0.1]])
    labels, weights = np.array([[1], [0], [0]], dtype=bool), np.array([[True], [False], [False]])
    assert mean_average_precision(scores, labels, weights) == 1.0  # only a positive is known: still a value
    assert np.isnan(mean_average_precision(scores, ~labels & weights, weights))


def test_training_improves_the_metric(workload):
    torch.manual_seed(0)
    model = workload.build_model()
    before = evaluate(workload, model.eval(), Split.VALIDATION, size=4_096)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    make = workload.train_batches(seed=0, global_batch_size=64, rank=0, world_size=1)
    for draw in range(60):
        batch = make(draw)
        loss = workload.loss(workload.forward(model, batch), batch)
        (loss.summed / loss.n_valid).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = evaluate(workload, model.eval(), Split.VALIDATION, size=4_096)
    assert after["loss"] < 0.9 * before["loss"]
    assert after["mean_average_precision"] > before["mean_average_precision"] + 0.02
