"""What every workload promises, held by the three small ones: digits, and mnist and cifar on synthetic data."""

import pytest
import torch

from algoperf_torch.data.synth import SynthOptions
from algoperf_torch.data.synth import main as synth
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import EVALUATION_SPLITS, Split
from algoperf_torch.workloads.layers import set_batch_norm_update, set_dropout
from algoperf_torch.workloads.registry import build_workload, workload_spec

NAMES = ["digits", "mnist", "cifar"]
EXAMPLES = {"mnist": 1_500, "cifar": 500}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for dataset, examples in EXAMPLES.items():
        synth(SynthOptions(dataset=dataset, out=root, examples=examples))
    return root


@pytest.fixture(scope="module")
def opened(data_dir):
    workloads = {name: build_workload(name, data_dir, model_scale="test") for name in NAMES}
    for workload in workloads.values():
        workload.open()
    return workloads


@pytest.fixture
def workload(request, opened):
    return opened[request.param]


every_workload = pytest.mark.parametrize("workload", NAMES, indirect=True)


def evaluate(workload, model, split, **options):
    """The metrics of a split, as the chunks of all ranks add up."""
    world_size = options.pop("world_size", 1)
    model.eval()
    with torch.no_grad():
        rows = {
            chunk: workload.evaluate_chunk(model, lambda batch: workload.forward(model, batch), batch)
            for rank in range(world_size)
            for chunk, batch in workload.eval_batches(split, seed=5, rank=rank, world_size=world_size, **options)
        }
    model.train()
    assert sorted(rows) == list(range(workload.num_chunks(split, options.get("eval_batch_size"))))
    return workload.metrics(torch.stack([rows[chunk] for chunk in sorted(rows)]), split)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_right(name):
    workload = build_workload(name)
    assert sum(p.numel() for p in workload.build_model().parameters()) == workload.spec.num_parameters


def test_model_is_a_function_of_the_seed():
    workload, models = build_workload("digits"), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(workload.build_model())
    same, other = (models[index].state_dict() for index in (1, 2))
    assert all(torch.equal(value, same[name]) for name, value in models[0].state_dict().items())
    assert not torch.equal(models[0].hidden.weight, other["hidden.weight"])


@every_workload
def test_batches_have_the_promised_form(workload):
    batch = workload.train_batches(seed=0, global_batch_size=8, rank=0, world_size=1)(0)
    assert set(batch) == {"inputs", "targets"}
    assert batch["inputs"].dtype == torch.float32
    assert batch["targets"].dtype == torch.int64
    assert batch["inputs"].is_contiguous()
    outputs = workload.forward(workload.build_model(), batch)
    assert outputs.shape == (8, 10)
    assert workload.loss(outputs, batch).n_valid.item() == 8


@every_workload
def test_inputs_are_normalised(workload):
    batch = workload.train_batches(seed=0, global_batch_size=256, rank=0, world_size=1)(0)
    assert batch["inputs"].mean().abs() < 1
    assert 0.3 < batch["inputs"].std() < 3
    assert batch["inputs"].abs().max() < 10


@every_workload
@pytest.mark.parametrize("world_size", [2, 4])
def test_shares_of_the_ranks_make_up_the_global_batch(workload, world_size):
    def make(rank, ranks):
        return workload.train_batches(seed=3, global_batch_size=32, rank=rank, world_size=ranks)

    draws = [0, 1, 7, 1000]
    whole = make(0, 1)
    shares = [make(rank, world_size) for rank in range(world_size)]
    for draw in draws:
        expected, parts = whole(draw), [share(draw) for share in shares]
        for key in expected:
            torch.testing.assert_close(torch.cat([part[key] for part in parts]), expected[key], atol=0, rtol=0)


@every_workload
def test_batches_depend_on_seed_and_draw_alone(workload):
    first = workload.train_batches(seed=3, global_batch_size=16, rank=0, world_size=1)
    again = workload.train_batches(seed=3, global_batch_size=16, rank=0, world_size=1)
    other = workload.train_batches(seed=4, global_batch_size=16, rank=0, world_size=1)
    for draw in (5, 0, 200):
        assert torch.equal(first(draw)["inputs"], again(draw)["inputs"])
    assert not torch.equal(first(0)["inputs"], first(1)["inputs"])
    assert not torch.equal(first(0)["inputs"], other(0)["inputs"])


@every_workload
def test_batch_sizes_that_cannot_work(workload):
    for size, world_size in ((workload.spec.num_train + 1, 1), (6, 4), (0, 1)):
        with pytest.raises(UsageError, match="Global batch size"):
            workload.train_batches(seed=0, global_batch_size=size, rank=0, world_size=world_size)


@every_workload
@pytest.mark.parametrize("split", EVALUATION_SPLITS, ids=str)
def test_evaluation_visits_every_example_once_with_fixed_shapes(workload, split):
    batches = dict(workload.eval_batches(split, seed=5, eval_batch_size=64))
    assert len({batch["inputs"].shape for batch in batches.values()}) == 1
    assert sum(batch["weights"].sum().item() for batch in batches.values()) == workload.spec.num_examples(split)
    rows = torch.cat([batch["inputs"][batch["weights"] > 0] for batch in batches.values()]).flatten(1)
    assert len(rows.unique(dim=0)) >= 0.99 * len(rows)  # a few digits are equal pixel by pixel


@every_workload
@pytest.mark.parametrize("split", EVALUATION_SPLITS, ids=str)
def test_evaluation_does_not_depend_on_ranks_or_batch_size(workload, split):
    torch.manual_seed(0)
    model = workload.build_model()
    one = evaluate(workload, model, split)
    assert evaluate(workload, model, split, world_size=2) == one
    assert evaluate(workload, model, split, world_size=3) == one
    for size in (24, 100, 5000):
        other = evaluate(workload, model, split, eval_batch_size=size)
        assert other["accuracy"] == one["accuracy"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert set(one) == set(workload.spec.metrics)


@every_workload
def test_evaluation_metrics_by_hand(workload):
    torch.manual_seed(0)
    model = workload.build_model().eval()
    size = workload.spec.num_validation
    batch = workload.eval_examples(Split.VALIDATION, 0, size, seed=0)
    with torch.no_grad():
        logits = model(batch["inputs"])
    found = evaluate(workload, model, Split.VALIDATION)
    assert found["accuracy"] == (logits.argmax(1) == batch["targets"]).sum().item() / size
    expected = torch.nn.functional.cross_entropy(logits.double(), batch["targets"]).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


@every_workload
def test_sample_of_the_training_split_is_keyed_by_the_seed(workload):
    def sample(seed):
        return workload.eval_examples(Split.EVAL_TRAIN, 0, 50, seed=seed)["inputs"]

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


@every_workload
def test_one_graph_whatever_is_switched(workload, count_compilations):
    """One graph in training, one in evaluation: no break, no recompilation for dropout or batch norm."""
    batch = workload.train_batches(seed=0, global_batch_size=8, rank=0, world_size=1)(0)
    model = workload.build_model()

    def step(compiled):
        loss = workload.loss(compiled(batch["inputs"]), batch)
        (loss.summed / loss.n_valid).backward()

    def switched(rate, update, mode):
        def call(compiled):
            set_dropout(model, rate)
            set_batch_norm_update(model, update)
            model.train(mode)
            step(compiled)

        return call

    calls = [switched(0.5, True, True), switched(0.0, False, True), switched(0.2, True, True)]
    calls += [switched(0.0, True, False), switched(0.1, True, True)]
    modes = 1 if workload.spec.name == "mnist" else 2  # the perceptron does the same in both
    assert count_compilations(model, *calls) == modes


@every_workload
def test_data_can_be_learned(workload):
    """A few steps of AdamW: the task is what it says it is, on every split."""
    torch.manual_seed(0)
    model, (size, steps) = workload.build_model(), (64, 20) if workload.spec.name == "cifar" else (128, 60)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    make = workload.train_batches(seed=0, global_batch_size=size, rank=0, world_size=1)
    before = evaluate(workload, model, Split.VALIDATION)
    for draw in range(steps):
        batch = make(draw)
        loss = workload.loss(workload.forward(model, batch), batch)
        optimizer.zero_grad()
        (loss.summed / loss.n_valid).backward()
        optimizer.step()
    for split in (Split.VALIDATION, Split.TEST, Split.EVAL_TRAIN):
        after = evaluate(workload, model, split)
        assert after["accuracy"] > max(0.3, before["accuracy"]), split
        assert after["loss"] < before["loss"], split


# ------------------------------------------------------------------------------------------------ the data folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_synthetic_data_are_marked_and_counted(opened, name):
    workload = opened[name]
    assert workload.synthetic_data
    assert workload.spec.num_train == EXAMPLES[name]
    assert workload.spec.num_validation == workload.spec.num_test == EXAMPLES[name] // 4
    assert workload.spec.num_eval_train <= workload.spec.num_train
    assert workload_spec(name).num_train > 40_000  # the facts themselves did not move
    assert not opened["digits"].synthetic_data


@pytest.mark.parametrize("name", EXAMPLES)
def test_files_of_the_test_split_are_named(opened, name):
    files = opened[name].evaluation_files()
    assert files
    assert all(path.is_file() for path in files)


@pytest.mark.parametrize("name", EXAMPLES)
def test_without_data_the_error_says_how_to_get_them(name, tmp_path):
    with pytest.raises(
        DataError, match=f"add --data-dir DIR.*algoperf data download {name} .*algoperf data synth {name}"
    ):
        build_workload(name).open()
    with pytest.raises(DataError, match=f"No data of {name} in .*algoperf data synth {name}"):
        build_workload(name, tmp_path).open()
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"Missing data file {tmp_path}/{name}/"):
        build_workload(name, tmp_path).open()
