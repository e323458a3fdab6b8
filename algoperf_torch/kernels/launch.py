"""The host side of a kernel: one launch for any number of tensors, through a table of their addresses.

A multi-tensor kernel is not given tensors but a `TensorTable`, which lives on the device:

    pointers     int64 [columns + e, tensors]  address of the first element; a column is one role (parameter, gradient, ...).
                                               Below the columns: addresses of e extra tensors, of any shape (such as the step)
    chunks       int32 [programs, 4]           what each program works on: tensor, block in it, elements in the block, code
    first_chunk  int32 [tensors + 1]           the programs of tensor t are first_chunk[t] to first_chunk[t + 1] - 1

The code is an index into `codes`, a compile-time tuple with one entry per combination of dtypes that occurs: bit c of an
entry is set if column c is bfloat16. `tiles.py` has the device side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algoperf_torch.errors import UsageError

BLOCK = 2048  # elements that one program updates
ROWS = 32  # of a matrix that one program updates
DTYPES = (torch.float32, torch.bfloat16)  # of the tensors in a table
NUM_WARPS = 8

_USER_COLUMNS = 2  # parameters and gradients: a user may replace them by anything at any time
_CACHED_TABLES = 16
_data_ptr, _numel, _stride, _is_contiguous = Tensor.data_ptr, Tensor.numel, Tensor.stride, Tensor.is_contiguous
_dtype, _grad = attrgetter("dtype"), attrgetter("grad")

Column = Sequence[Tensor]


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any
) -> None:
    """Starts a kernel on the device of its first tensor. All launches of the package go through here."""
    if 0 in grid:
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    on_device = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if on_device else nullcontext():
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constants)


def gradients(params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of parameters that all have one."""
    return tuple(map(_grad, params))


class TensorTable:
    """Addresses of `columns` of tensors that are alike in shape, kept on their device and brought up to date.

    `refresh` reads every address again, and the layouts of the first two columns. With `persistent`, the caller says that
    tensors of the second column (gradients) keep their memory as long as they are the same objects, as views into
    buckets and gradients that are zeroed in place do: a tensor replaced by another, or a parameter whose data moved, is
    still noticed; only an assignment to `grad.data` is not.

    All tensors must be dense. Gradients laid out differently from their parameter are copied first.
    """

    pointers: Tensor
    chunks: Tensor
    first_chunk: Tensor
    codes: tuple[int, ...]

    def __init__(self, *, block: int = BLOCK, persistent: bool = False) -> None:
        self.block = block
        self.persistent = persistent
        self.num_tensors = 0
        self.num_columns = 0
        self._users: tuple[Column, ...] = ()
        self._states: tuple[Column, ...] = ()
        self._workspaces: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._addresses: list[list[int]] = []
        self._layouts: list[tuple[Any, ...]] = []
        self._differing: list[int] = []  # tensors whose gradient is laid out differently
        self._conformed: Column = ()
        self._spare: Tensor | None = None  # page-locked memory for the upload in a graph that is being captured
        self._captured: list[Tensor] = []  # what captured uploads read at every replay

    @property
    def num_programs(self) -> int:
        return len(self.chunks)

    def refresh(self, *columns: Column, extras: tuple[Column, ...] = ()) -> TensorTable:
        """Makes the table that of `columns`, [tensor] each, and of `extras` (contiguous float32). Returns itself."""
        users, states = columns[:_USER_COLUMNS], (*columns[_USER_COLUMNS:], *extras)
        same_states = _are_same(states, self._states)
        if (
            self.persistent
            and same_states
            and not self._differing
            and _are_same(users, self._users)
            and list(map(_data_ptr, users[0])) == self._addresses[0]
        ):
            return self
        layouts = [_layout(column) for column in users]
        if layouts != self._layouts or not same_states:
            self._plan(columns, extras)
            self._layouts, self._states = layouts, states
            self._addresses = [[] for _ in columns]
            self._upload({len(users) + i: list(map(_data_ptr, state)) for i, state in enumerate(states)})
        if self._differing:
            users = (users[0], self._conformed_like(users[0], users[1]))
        addresses = [list(map(_data_ptr, column)) for column in users]
        self._upload({i: new for i, new in enumerate(addresses) if new != self._addresses[i]})
        self._addresses = addresses
        self._users = columns[:_USER_COLUMNS] if self.persistent else ()  # holding gradients would keep their memory
        return self

    def launch(self, kernel: Any, *args: Any, **constants: Any) -> None:
        """Starts a kernel with one program for each chunk; before `args` it gets the table, after them its constants."""
        launch(
            kernel, (self.num_programs,), self.pointers, self.chunks, self.first_chunk, self.num_tensors, *args,
            **constants, COLUMNS=self.num_columns, CODES=self.codes, BLOCK=self.block, num_warps=NUM_WARPS,
        )  # fmt: skip

    def workspace(self, num_sums: int) -> tuple[Tensor, Tensor, Tensor]:
        """Memory for sums over programs: partial sums [num_sums, programs], arrival counters, results [tensors]."""
        if num_sums not in self._workspaces:
            self._refuse_capture()
            device = self.pointers.device
            self._workspaces[num_sums] = (
                torch.empty(num_sums, self.num_programs, device=device),
                torch.zeros(self.num_tensors + 1, dtype=torch.int32, device=device),
                torch.ones(self.num_tensors, device=device),
            )
        return self._workspaces[num_sums]

    def _refuse_capture(self) -> None:
        if self.pointers.is_cuda and torch.cuda.is_current_stream_capturing():
            raise UsageError(
                "The tensors to update changed while a CUDA graph was captured. Run one update before capturing."
            )

    # ---------------------------------------------------------------- layout

    def _plan(self, columns: tuple[Column, ...], extras: tuple[Column, ...]) -> None:
        """Cuts the tensors into chunks. Raises `UsageError` for tensors that no kernel can work on."""
        params = columns[0]
        for column in (*columns, *extras):
            if len(column) != len(params):
                raise ValueError(f"Columns of {len(params)} and {len(column)} tensors. Must be equally long.")
        self._differing = []
        for i, tensors in enumerate(zip(*columns, strict=True)):
            _check(tensors, i)
            if len(tensors) > 1 and not _same_layout(params[i], tensors[1]):
                self._differing.append(i)
        codes = [
            sum((tensor.dtype is torch.bfloat16) << c for c, tensor in enumerate(tensors))
            for tensors in zip(*columns, strict=True)
        ]
        self.codes = tuple(sorted(set(codes))) or (0,)
        sizes = np.array([self._size(param) for param in params], dtype=np.int64)
        blocks = -(-sizes // self.block)
        first_chunk = np.concatenate([[0], blocks.cumsum()])
        tensor = np.repeat(np.arange(len(params)), blocks)
        block = np.arange(len(tensor)) - first_chunk[tensor]
        count = np.minimum(self.block, sizes[tensor] - block * self.block)
        code = np.searchsorted(self.codes, codes)[tensor]
        for i, extra in ((i, extra) for column in extras for i, extra in enumerate(column)):
            if extra.dtype is not torch.float32 or extra.device != params[i].device or not extra.is_contiguous():
                raise ValueError(
                    f"Extra tensor {i} is {extra.dtype} {tuple(extra.shape)} on {extra.device}. "
                    f"Must be contiguous float32 on {params[i].device}."
                )
        device = params[0].device if params else torch.device("cpu")
        self.num_tensors, self.num_columns = len(params), len(columns)
        self.pointers = torch.empty(len(columns) + len(extras), len(params), dtype=torch.int64, device=device)
        self._refuse_capture()
        self.chunks = torch.from_numpy(np.stack([tensor, block, count, code], axis=1).astype(np.int32)).to(device)
        self.first_chunk = torch.from_numpy(first_chunk.astype(np.int32)).to(device)
        self._workspaces = {}
        self._spare = None

    def _size(self, param: Tensor) -> int:
        """What is cut into blocks: elements."""
        return param.numel()

    def _conformed_like(self, params: Column, grads: Column) -> Column:
        conformed = list(grads)
        for i in self._differing:
            conformed[i] = torch.empty_like(params[i], dtype=grads[i].dtype).copy_(grads[i])
        self._conformed = conformed
        return conformed

    # ---------------------------------------------------------------- upload

    def _upload(self, rows: dict[int, list[int]]) -> None:
        """Writes rows of `pointers`."""
        if not rows or not self.num_tensors:
            return
        staged = self._staging() if self.pointers.is_cuda else torch.empty(self.pointers.shape, dtype=torch.int64)
        for row, addresses in rows.items():
            staged[row].numpy()[:] = addresses
            self.pointers[row].copy_(staged[row], non_blocking=True)

    def _staging(self) -> Tensor:
        """Page-locked memory to upload from; it may be dropped at once, since the allocator waits for the copy."""
        if not torch.cuda.is_current_stream_capturing():
            if self._spare is None:
                self._spare = torch.empty(self.pointers.shape, dtype=torch.int64, pin_memory=True)
            return torch.empty(self.pointers.shape, dtype=torch.int64, pin_memory=True)
        # The copy becomes a node of the graph and reads this memory at every replay: it must never be written again.
        if self._spare is None:
            raise UsageError("A second CUDA graph was captured without an update in between. Run one update first.")
        staged, self._spare = self._spare, None
        self._captured.append(staged)
        return staged


class MatrixTable(TensorTable):
    """The table of contiguous matrices [rows, columns], cut into strips of `block` rows, and their shapes."""

    shapes: Tensor  # int32 [tensors, 2]

    def __init__(self, *, block: int = ROWS, persistent: bool = False) -> None:
        super().__init__(block=block, persistent=persistent)

    def _plan(self, columns: tuple[Column, ...], extras: tuple[Column, ...]) -> None:
        for i, matrix in enumerate(columns[0]):
            if matrix.dim() != 2 or not matrix.is_contiguous():
                raise UsageError(f"Tensor {i} of shape {tuple(matrix.shape)} is not a contiguous matrix.")
        super()._plan(columns, extras)
        shapes = torch.tensor([matrix.shape for matrix in columns[0]], dtype=torch.int32)
        self.shapes = shapes.to(self.pointers.device)

    def _size(self, param: Tensor) -> int:
        return len(param) if param.numel() else 0


def _are_same(columns: tuple[Column, ...], held: tuple[Column, ...]) -> bool:
    """Whether both hold the same tensor objects. A tuple that is passed again is not looked through."""
    return len(columns) == len(held) and all(
        (new is old and isinstance(new, tuple)) or (len(new) == len(old) and all(map(is_, new, old)))
        for new, old in zip(columns, held, strict=True)
    )


def _layout(column: Column) -> tuple[Any, ...]:
    strides = None if all(map(_is_contiguous, column)) else list(map(_stride, column))
    return list(map(_numel, column)), list(map(_dtype, column)), strides


def _check(tensors: tuple[Tensor, ...], index: int) -> None:
    param = tensors[0]
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise UsageError(
                f"Tensor {index} is {tensor.dtype}. Fused updates take float32 and bfloat16; use `--kernels reference`."
            )
        if tensor.shape != param.shape or tensor.device != param.device:
            raise ValueError(
                f"Tensor {index}: {tuple(tensor.shape)} on {tensor.device} beside {tuple(param.shape)} on {param.device}."
            )
    for state in tensors[_USER_COLUMNS:]:
        if not _same_layout(param, state):
            raise UsageError(
                f"Tensor {index}: strides {state.stride()} of its state differ from {param.stride()} of the parameter. "
                "Create state with torch.zeros_like."
            )
    if not is_dense(param):
        raise UsageError(
            f"Parameter {index} is not dense (strides {param.stride()}). Make it contiguous, or use `--kernels reference`."
        )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1
    ):
        if size == 0:
            return True
        if stride != expected:
            return False
        expected *= size
    return True


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return all(size == 1 or x == y for size, x, y in zip(a.shape, a.stride(), b.stride(), strict=True))


# ---------------------------------------------------------------- tables for callers that keep none

_tables: OrderedDict[tuple[Any, ...], TensorTable] = OrderedDict()


def refreshed(
    table: TensorTable | None, *columns: Column, extras: tuple[Column, ...] = (), block: int = BLOCK
) -> TensorTable:
    """The caller's table, or else one from a small store of those last used, brought up to date."""
    if table is not None:
        return table.refresh(*columns, extras=extras)
    key = (block, len(columns), *map(_data_ptr, columns[0]))
    table = _tables.pop(key, None) or TensorTable(block=block)
    _tables[key] = table.refresh(*columns, extras=extras)
    while len(_tables) > _CACHED_TABLES:
        _tables.popitem(last=False)
    return table


_addresses: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """int64 [tensors]: their addresses, on their device; kept for the next call with the same ones."""
    key = (tensors[0].get_device(), *map(_data_ptr, tensors))
    held = _addresses.pop(key, None)
    _addresses[key] = torch.tensor(key[1:], device=tensors[0].device) if held is None else held
    while len(_addresses) > _CACHED_TABLES:
        _addresses.popitem(last=False)
    return _addresses[key]


def beside(value: Tensor | float, like: Sequence[Tensor]) -> Tensor:
    """A 0-d tensor beside the tensors of `like`: the value itself if it is one already."""
    device = like[0].device if like else torch.device("cpu")
    if isinstance(value, Tensor) and value.device == device:
        return value
    return torch.full((), float(value), device=device)
