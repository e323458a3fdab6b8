"""The training stream: batches without end, whose content is a function of (seed, draw, rank's share).

A workload gives `make_batch(draw)`, this rank's share of global batch number `draw`. The stream counts the draws, keeps a
fixed number of batches ready in a background thread, measures how long the consumer waits, and stands still while the
clock is stopped: `pause` returns once the thread does nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch

from algoperf_torch.spec import Batch

THREAD_NAME = "algoperf-data"


class TrainStream(Iterator[Batch]):
    """Batches of the training split on `device`, without end.

    Args:
        make_batch: draw number (from 0) -> this rank's share of that global batch, in host memory.
        device: where batches are delivered.
        depth: number of batches kept ready by the background thread; 0 makes every batch in `__next__`.
        position: draw number of the next batch.
    """

    def __init__(
        self, make_batch: Callable[[int], Batch], *, device: torch.device, depth: int = 0, position: int = 0
    ) -> None:
        self._make_batch = make_batch
        self._device = device
        self._depth = depth
        self.position = position  # global batches drawn so far: what a checkpoint stores
        self.wait_seconds = 0.0  # time that the consumer spent in `__next__`
        self._ready: deque[Batch | BaseException] = deque()
        self._changed = threading.Condition()
        self._running = False  # whether the thread may start another batch
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def __next__(self) -> Batch:
        started = perf_counter()
        batch = self._take() if self._depth else to_device(self._make_batch(self.position), self._device)
        self.position += 1
        self.wait_seconds += perf_counter() - started
        return batch

    def _take(self) -> Batch:
        if self._thread is None or not self._running:
            self.resume()
        with self._changed:
            while not self._ready:
                self._changed.wait()
            item = self._ready.popleft()
            self._changed.notify_all()
        if isinstance(item, BaseException):
            raise item
        return to_device(item, self._device)

    def pause(self) -> None:
        """Returns when no batch is being made; batches that are ready stay ready."""
        with self._changed:
            self._running = False
            while self._busy:
                self._changed.wait()

    def resume(self) -> None:
        """Lets the background thread work; starts it on first use."""
        if not self._depth or self._closed:
            return
        with self._changed:
            self._running = True
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._fill, name=THREAD_NAME, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the background thread; the stream cannot be used afterwards."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _fill(self) -> None:
        draw = self.position
        while True:
            with self._changed:
                while not self._closed and (not self._running or len(self._ready) >= self._depth):
                    self._changed.wait()
                if self._closed:
                    return
                self._busy = True
            item: Batch | BaseException
            try:
                item = self._make_batch(draw)
                if self._device.type == "cuda":
                    item = pin(item)
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
                item = error
            with self._changed:
                self._ready.append(item)
                self._busy = False
                self._changed.notify_all()
            if isinstance(item, BaseException):
                return
            draw += 1


def map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`function` applied to every tensor inside nested dicts, tuples (named ones too) and lists."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; the same object where nothing moves."""
    if device.type == "cpu":
        return batch
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))  # type: ignore[no-any-return]


def pin(batch: Batch) -> Batch:
    return map_tensors(batch, torch.Tensor.pin_memory)  # type: ignore[no-any-return]
