"""Triton's interpreter, mended: kernels run on the CPU, one program after another, in NumPy. For tests and authors of kernels.

`enable` must come before the first import of Triton and of any module `fused`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

_mended: list[bool] = []


@dataclass
class Traffic:
    """Bytes that kernels asked for; several programs may ask for the same ones."""

    read: int = 0
    written: int = 0


def enable() -> None:
    """From now on kernels are interpreted. Raises `RuntimeError` where Triton is there already, set to compile."""
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton was imported before its interpreter was asked for.")
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    if not _mended:
        _mend()
        _mended.append(True)


@contextmanager
def counted() -> Iterator[Traffic]:
    """Counts the bytes that the kernels inside ask for."""
    from triton.runtime.interpreter import InterpreterBuilder

    traffic = Traffic()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counting_load(builder: Any, ptrs: Any, mask: Any, *args: Any) -> Any:
        traffic.read += int(mask.data.sum()) * (ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(builder, ptrs, mask, *args)

    def counting_store(builder: Any, ptrs: Any, value: Any, mask: Any, *args: Any) -> Any:
        traffic.written += int(mask.data.sum()) * (ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(builder, ptrs, value, mask, *args)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = counting_load, counting_store
    try:
        yield traffic
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store


def _mend() -> None:
    """What the interpreter of Triton 3.6 does wrong, or so slowly that these kernels could not be tested."""
    from triton import language as tl
    from triton.runtime import interpreter

    patch_tensor, convert_float = interpreter._patch_lang_tensor, interpreter._convert_float
    dot = interpreter.InterpreterBuilder.create_dot
    patched_globals: set[int] = set()

    def patch_tensor_for_numpy_2_4(tensor: Any, scope: Any) -> None:
        """Scalars are held as arrays of one element, which NumPy no longer turns into a number."""
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def round_to_nearest(data: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        """A device rounds to the nearest bfloat16, ties to even; the interpreter cuts the bits off."""
        if source == tl.bfloat16 and target == tl.float32:
            return data.view(np.uint16).astype(np.uint32) << 16
        if source == tl.float32 and target == tl.bfloat16:
            bits = np.ascontiguousarray(data).view(np.uint32)
            rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)
        return convert_float(data, source, target, rounding_mode)

    def dot_of_bfloat16(builder: Any, a: Any, b: Any, *args: Any) -> Any:
        """bfloat16 is held as 16-bit integers, and would be multiplied as such."""
        a, b = (builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(builder, a, b, *args)

    def call_without_patching_again(self: Any, *args: Any, **kwargs: Any) -> Any:
        """A kernel patches triton.language once for all functions that it calls, not at each call (5 ms)."""
        namespace = self.fn.__globals__
        if tl not in namespace.values() and id(namespace) not in patched_globals:
            interpreter._patch_lang(self.fn)
            patched_globals.add(id(namespace))
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang_tensor = patch_tensor_for_numpy_2_4
    interpreter._convert_float = round_to_nearest
    interpreter.InterpreterBuilder.create_dot = dot_of_bfloat16
    # A device divides by zero without a warning, as it must in lanes that are masked.
    interpreter.GridExecutor.__call__ = np.errstate(all="ignore")(interpreter.GridExecutor.__call__)
    interpreter.InterpretedFunction.__call__ = call_without_patching_again
