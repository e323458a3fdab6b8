"""The training stream: batches without end, whose content is a function of (seed, draw, rank's share).

A workload gives `make_batch(draw)`, this rank's share of global batch number `draw`. The stream counts the draws, keeps a
fixed number of batches ready in a background thread (on a CUDA device: already copied there, on a stream of their own),
measures how long the consumer waits, and stands still while the clock is stopped: `pause` returns once nothing is done.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, NamedTuple

import torch

from algoperf_torch.errors import AlgoPerfError, DataError
from algoperf_torch.spec import Batch

THREAD_NAME = "algoperf-data"


class _Ready(NamedTuple):
    batch: Batch
    copied: torch.cuda.Event | None  # after which the batch is complete on the device


class TrainStream(Iterator[Batch]):
    """Batches of the training split on `device`, without end.

    What `make_batch` raises is raised by `next`, at the draw where it happened and ever after: errors of this package as
    they are, any other as `DataError`.

    Args:
        make_batch: draw number (from 0) -> this rank's share of that global batch, in host memory.
        device: where batches are delivered.
        depth: number of batches kept ready by the background thread; 0 makes every batch in `__next__`.
        position: draw number of the next batch.
        finish: what is left to compute once a batch is on the device.
    """

    def __init__(
        self,
        make_batch: Callable[[int], Batch],
        *,
        device: torch.device,
        depth: int = 0,
        position: int = 0,
        finish: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        self._make_batch = make_batch
        self._finish = finish
        self._device = device
        self._depth = depth
        self.wait_seconds = 0.0  # time that the consumer spent in `__next__`
        self._position = position
        self._next_draw = position  # of the background thread
        self._ready: deque[_Ready | BaseException] = deque()
        self._changed = threading.Condition()
        self._running = False  # whether the thread may start another batch
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._copies: torch.cuda.Stream | None = None

    @property
    def position(self) -> int:
        """Global batches drawn so far: what a checkpoint stores. Setting it goes on from there."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        running = self._running
        self.pause()
        with self._changed:
            self._ready.clear()
            self._position = self._next_draw = position
        if running:
            self.resume()

    def __next__(self) -> Batch:
        if self._closed:
            raise RuntimeError("The training stream is closed.")
        started = perf_counter()
        batch = self._take() if self._depth else self._deliver(self._make(self._position))
        self._position += 1
        self.wait_seconds += perf_counter() - started
        return batch

    def _make(self, draw: int) -> Batch:
        try:
            return self._make_batch(draw)
        except AlgoPerfError:
            raise
        except Exception as error:
            raise DataError(f"Training batch {draw} cannot be made: {type(error).__name__}: {error}") from error

    def _deliver(self, batch: Batch) -> Batch:
        return self._finish(to_device(batch, self._device))

    def _take(self) -> Batch:
        if not self._running:
            self.resume()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            if self._closed:
                raise RuntimeError("The training stream was closed while a batch was awaited.")
            item = self._ready[0]
            if isinstance(item, BaseException):  # stays there, and the thread makes nothing more
                raise item
            self._ready.popleft()
            self._changed.notify_all()
        if item.copied is not None:
            consumer = torch.cuda.current_stream(self._device)
            consumer.wait_event(item.copied)
            map_tensors(item.batch, lambda tensor: _used_by(consumer, tensor))
        return item.batch

    def pause(self) -> None:
        """Returns when no batch is being made or copied; batches that are ready stay ready."""
        with self._changed:
            self._running = False
            self._changed.wait_for(lambda: not self._busy)
        if self._copies is not None:
            self._copies.synchronize()

    def resume(self) -> None:
        """Lets the background thread work; starts it on first use."""
        with self._changed:
            if not self._depth or self._closed:
                return
            self._running = True
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._fill, name=THREAD_NAME, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends the background thread and lets the batches go; the stream cannot be used afterwards."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        self._ready.clear()

    def _fill(self) -> None:
        """The background thread."""
        if self._device.type == "cuda":
            if self._device.index is not None:
                torch.cuda.set_device(self._device)  # the current device is a property of the thread
            self._copies = self._copies or torch.cuda.Stream(self._device)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._has_work())
                if self._closed:
                    return
                self._busy = True
                draw = self._next_draw
            item: _Ready | BaseException
            try:
                item = self._copy(self._make(draw))
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
                item = error
            with self._changed:
                self._ready.append(item)
                self._next_draw = draw + 1
                self._busy = False
                self._changed.notify_all()

    def _has_work(self) -> bool:
        failed = self._ready and isinstance(self._ready[-1], BaseException)
        return self._running and not failed and len(self._ready) < self._depth

    def _copy(self, batch: Batch) -> _Ready:
        if self._copies is None:
            return _Ready(self._deliver(batch), None)
        with torch.cuda.stream(self._copies):
            on_device = self._deliver(pin(batch))
            return _Ready(on_device, self._copies.record_event())


def _used_by(consumer: torch.cuda.Stream, tensor: torch.Tensor) -> torch.Tensor:
    """Keeps the allocator from giving the tensor's memory to the copying stream while the consumer works with it."""
    tensor.record_stream(consumer)
    return tensor


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
