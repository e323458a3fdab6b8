"""The background thread stands still when told, errors arrive, and any position can be taken up."""

import threading
import time
from collections import namedtuple

import pytest
import torch

from algoperf_torch.data.stream import THREAD_NAME, TrainStream, map_tensors
from algoperf_torch.errors import DataError, HyperparameterError

CPU = torch.device("cpu")
DEPTHS = [0, 1, 3]


def make_batch(draw):
    return {"inputs": torch.full((2,), draw)}


def draws(stream, count):
    return [int(next(stream)["inputs"][0]) for _ in range(count)]


def stream_threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


@pytest.fixture
def open_stream():
    streams = []

    def open_it(make=make_batch, **options):
        streams.append(TrainStream(make, device=CPU, **options))
        return streams[-1]

    yield open_it
    for stream in streams:
        stream.close()
    assert not stream_threads()


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@pytest.mark.parametrize("depth", DEPTHS)
def test_order_and_position(open_stream, depth):
    stream = open_stream(depth=depth)
    assert draws(stream, 20) == list(range(20))
    assert stream.position == 20


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_later_start_equals_going_on(open_stream, depth):
    uninterrupted = draws(open_stream(depth=depth), 30)
    stream = open_stream(depth=depth)
    first = draws(stream, 11)
    resumed = open_stream(depth=depth, position=stream.position)
    assert first + draws(resumed, 19) == uninterrupted


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("paused", [False, True])
def test_position_can_be_set_at_any_time(open_stream, depth, paused):
    stream = open_stream(depth=depth)
    stream.position = 7
    assert draws(stream, 3) == [7, 8, 9]
    if paused:
        stream.pause()
    stream.position = 2
    assert draws(stream, 3) == [2, 3, 4]
    assert stream.position == 5


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_depth_batches_are_made_ahead(open_stream, depth):
    made = []
    stream = open_stream(lambda draw: made.append(draw) or make_batch(draw), depth=depth)
    draws(stream, 2)
    wait_until(lambda: len(made) == 2 + depth)
    time.sleep(0.05)
    assert made == list(range(2 + depth))


def test_without_depth_nothing_is_made_ahead(open_stream):
    made = []
    stream = open_stream(lambda draw: made.append(draw) or make_batch(draw))
    draws(stream, 2)
    stream.resume()
    assert made == [0, 1]
    assert not stream_threads()


def test_pause_waits_for_the_batch_in_the_making_and_nothing_follows(open_stream):
    working, events = threading.Event(), []

    def slow(draw):
        working.set()
        events.append(("begun", draw))
        time.sleep(0.1)
        events.append(("done", draw))
        return make_batch(draw)

    stream = open_stream(slow, depth=3)
    stream.resume()
    assert working.wait(10)
    stream.pause()
    assert events == [("begun", 0), ("done", 0)]
    (thread,) = stream_threads()
    time.sleep(0.15)
    assert events == [("begun", 0), ("done", 0)]
    assert thread.is_alive()
    stream.resume()
    wait_until(lambda: len(events) == 6)
    assert draws(stream, 3) == [0, 1, 2]  # what was ready stayed ready


def test_paused_thread_uses_no_processor_time(open_stream):
    stream = open_stream(depth=2)
    draws(stream, 3)
    stream.pause()
    (thread,) = stream_threads()
    clock = time.pthread_getcpuclockid(thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(0.2)
    assert time.clock_gettime(clock) - before < 0.005


def test_pause_before_the_first_batch(open_stream):
    stream = open_stream(depth=2)
    stream.pause()
    assert not stream_threads()
    assert draws(stream, 2) == [0, 1]


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_arrives_at_its_draw_and_stays(open_stream, depth):
    def broken(draw):
        if draw == 4:
            raise ValueError("bad record")
        return make_batch(draw)

    stream = open_stream(broken, depth=depth)
    assert draws(stream, 4) == [0, 1, 2, 3]
    for _ in range(3):
        with pytest.raises(DataError, match="Training batch 4 cannot be made: ValueError: bad record") as caught:
            next(stream)
        assert isinstance(caught.value.__cause__, ValueError)
    assert stream.position == 4
    stream.position = 5
    assert draws(stream, 2) == [5, 6]


@pytest.mark.parametrize("depth", DEPTHS)
def test_our_own_errors_arrive_as_they_are(open_stream, depth):
    def broken(draw):
        raise HyperparameterError("no such thing")

    with pytest.raises(HyperparameterError, match="no such thing"):
        next(open_stream(broken, depth=depth))


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_is_no_exception_does_not_hang_the_consumer(open_stream, depth):
    def leaving(draw):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        next(open_stream(leaving, depth=depth))


@pytest.mark.parametrize("depth", DEPTHS)
def test_closed_stream(open_stream, depth):
    stream = open_stream(depth=depth)
    draws(stream, 2)
    stream.close()
    stream.close()
    assert not stream_threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)
    stream.resume()
    assert not stream_threads()


def test_close_while_a_batch_is_made_or_awaited(open_stream):
    go_on = threading.Event()
    stream = open_stream(lambda draw: go_on.wait(10) and make_batch(draw), depth=1)
    outcome = []

    def consume():
        try:
            next(stream)
        except RuntimeError as error:
            outcome.append(str(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    wait_until(stream_threads)
    closer = threading.Thread(target=stream.close)
    closer.start()
    go_on.set()
    closer.join(10)
    consumer.join(10)
    assert not closer.is_alive()
    assert not consumer.is_alive()
    assert not outcome or "closed" in outcome[0]


@pytest.mark.parametrize("depth", DEPTHS)
def test_waiting_is_measured(open_stream, depth):
    stream = open_stream(lambda draw: time.sleep(0.05) or make_batch(draw), depth=depth)
    draws(stream, 4)
    assert 0.15 < stream.wait_seconds < 5
    if depth:
        time.sleep(0.3)  # now the next one is ready
        before = stream.wait_seconds
        next(stream)
        assert stream.wait_seconds - before < 0.04


def test_map_tensors_keeps_the_containers():
    Pair = namedtuple("Pair", "left right")
    value = {"pair": Pair(torch.ones(1), [torch.ones(2), "text"]), "more": (torch.ones(3), None)}
    doubled = map_tensors(value, lambda tensor: 2 * tensor)
    assert isinstance(doubled["pair"], Pair)
    assert doubled["pair"].left.tolist() == [2]
    assert doubled["pair"].right[0].tolist() == [2, 2]
    assert doubled["pair"].right[1] == "text"
    assert doubled["more"][0].tolist() == [2, 2, 2]
    assert doubled["more"][1] is None
