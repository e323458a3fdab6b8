"""The training stream on a CUDA device: batches arrive whole, ahead of use, and nothing runs while it is paused."""

import time

import pytest
import torch

from algoperf_torch.data.stream import TrainStream

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
SIZE = 1 << 22  # elements: a copy takes long enough to be caught unfinished


def make_batch(draw):
    return {"inputs": (torch.full((SIZE,), draw), [torch.arange(SIZE) + draw]), "name": draw}


@pytest.mark.parametrize("depth", [0, 2])
def test_batches_are_complete_when_used(depth):
    stream = TrainStream(make_batch, device=torch.device("cuda", torch.cuda.current_device()), depth=depth)
    sums = []
    for draw in range(30):
        batch = next(stream)
        first, (second,) = batch["inputs"]
        assert first.is_cuda
        assert batch["name"] == draw
        sums.append((first.sum(), (second - first).sum()))  # queued at once; memory of earlier batches is reused
        del batch, first, second
    stream.close()
    expected = SIZE * (SIZE - 1) // 2
    assert [(int(a), int(b)) for a, b in sums] == [(SIZE * draw, expected) for draw in range(30)]


def test_paused_stream_leaves_the_device_alone():
    stream = TrainStream(make_batch, device=torch.device("cuda"), depth=3)
    next(stream)
    stream.pause()
    assert stream._copies.query()
    time.sleep(0.05)
    used = torch.cuda.memory_allocated()
    time.sleep(0.2)
    assert torch.cuda.memory_allocated() == used
    stream.resume()
    assert int(next(stream)["inputs"][0][0]) == 1
    stream.close()
