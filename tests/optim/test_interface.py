"""The interface carries very different algorithms: each file in `fixtures/` is one, loaded as a user's file would be."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from algoperf_torch.runner import checkpoint
from algoperf_torch.runner.submissions import load_submission
from algoperf_torch.spec import Hyperparameters

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.py"))
# What a step uses: batches drawn, backward passes; None where it varies.
PER_STEP = {
    "accumulation": (4, 4),
    "data_selection": (2, 1),
    "diloco": (1, 1),
    "fused_backward": (1, 1),
    "hessian": (1, None),
    "lbfgs": (1, 2),
    "many_batches": (None, None),
    "restart": (1, 1),
    "sam": (1, 2),
    "schedule_free": (1, 1),
}


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(tiny, path, **options):
    context = tiny.build_context(**options)
    algorithm = load_submission(str(path)).algorithm.from_context(context.model, Hyperparameters(), context)
    return algorithm, context, tiny.build_stream(context)


def test_every_fixture_is_described():
    assert {path.stem for path in FIXTURES} == set(PER_STEP)


def test_trains_from_chance_to_a_good_model(tiny, path):
    algorithm, context, stream = build(tiny, path)
    before = tiny.accuracy(context.model)
    tiny.train(algorithm, context, stream, 80, evaluate_every=10)
    algorithm.prepare_for_eval()
    assert before < 0.5
    assert tiny.accuracy(context.model) > 0.85


def test_passes_are_counted(tiny, path):
    algorithm, context, stream = build(tiny, path)
    tiny.train(algorithm, context, stream, 10)
    batches, backward = PER_STEP[path.stem]
    if batches is not None:
        assert stream.position == 10 * batches
    if backward is not None:
        assert context.passes.backward == 10 * backward
    assert context.passes.forward >= context.passes.backward >= 10


def test_resumed_equals_uninterrupted(tiny, path, tmp_path):
    """Through the runner's checkpoint file, loaded into a freshly built trial."""
    algorithm, context, stream = build(tiny, path)
    tiny.train(algorithm, context, stream, 12, evaluate_every=6)
    state = {"model": context.model.state_dict(), "algorithm": algorithm.state_dict()}
    file = checkpoint.save(tmp_path, context.step, copy.deepcopy(state))
    generator = context.generator.get_state()
    position = stream.position
    tiny.train(algorithm, context, stream, 12, evaluate_every=6)

    resumed, fresh, _ = build(tiny, path)
    saved = checkpoint.load(file, identity={})
    fresh.model.load_state_dict(saved["model"])
    resumed.load_state_dict(checkpoint.decode(saved["algorithm"], resumed.state_dict(), "algorithm"))
    fresh.generator.set_state(generator)
    fresh.step = 12
    fresh.eval_results.extend(context.eval_results[:2])
    tiny.train(resumed, fresh, tiny.build_stream(fresh, position), 12, evaluate_every=6)
    torch.testing.assert_close(tiny.flat(fresh.model), tiny.flat(context.model), rtol=0, atol=0)


def test_sam_moves_running_statistics_once(tiny):
    path = next(path for path in FIXTURES if path.stem == "sam")
    algorithm, context, stream = build(tiny, path)
    statistics = context.model[1]
    batch = next(stream)
    expected = copy.deepcopy(context.model)
    expected(batch["inputs"])
    algorithm.training_step(batch)
    torch.testing.assert_close(statistics.running_mean, expected[1].running_mean)
    torch.testing.assert_close(statistics.running_var, expected[1].running_var)


def test_restart_begins_from_a_fresh_model(tiny):
    path = next(path for path in FIXTURES if path.stem == "restart")
    algorithm, context, stream = build(tiny, path)
    tiny.train(algorithm, context, stream, 10, evaluate_every=10)
    context.eval_results[0][1]["validation/accuracy"] = 0.1
    tiny.train(algorithm, context, stream, 1)
    fresh = tiny.build_context(tiny.build_model(101))
    expected = torch.optim.SGD(fresh.model.parameters(), lr=5.0, momentum=0.9)
    batch = tiny.make_batch(10)
    fresh.mean_loss(fresh.forward(batch), batch).backward()
    expected.step()
    assert algorithm.restarts == 1
    torch.testing.assert_close(tiny.flat(context.model), tiny.flat(fresh.model))


@pytest.fixture(scope="module")
def on_two_ranks(two_ranks):
    return two_ranks([str(path) for path in FIXTURES], steps=20, evaluate_every=10)


@pytest.mark.slow
def test_two_ranks_equal_one(tiny, path, on_two_ranks):
    """Dropout 0, batch norm by groups that a rank's share contains whole."""
    result = on_two_ranks[str(path)]
    torch.testing.assert_close(result["weights"][0], result["weights"][1], rtol=0, atol=0)
    if path.stem in ("diloco", "data_selection"):
        return  # each rank trains, or chooses its data, on its own: equal to one another, but not to one rank
    algorithm, context, stream = build(tiny, path)
    tiny.train(algorithm, context, stream, 20, evaluate_every=10)
    algorithm.prepare_for_eval()
    assert result["position"] == stream.position
    # Line searches and a learning rate of 50 amplify the rounding of the first steps.
    tolerance = {"lbfgs": 1e-3, "restart": 1e-3}.get(path.stem, 1e-5)
    torch.testing.assert_close(result["weights"][0], tiny.flat(context.model), rtol=tolerance, atol=tolerance)
