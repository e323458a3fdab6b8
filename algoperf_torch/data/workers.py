"""A pool of threads that make the examples of a batch side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Workers:
    """Runs a function over items in `num_threads` threads (default: the threads that torch was given), in order.

    For functions whose time goes into libraries that let other threads run (decoding, transforms). The threads start on
    first use and stand idle between calls. With 0 threads the caller does the work.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        self._num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
        if self._num_threads is None:
            self._num_threads = torch.get_num_threads()
        if self._num_threads == 0:
            return [function(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="algoperf-data")
        return list(self._pool.map(function, items))
