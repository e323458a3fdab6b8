"""FarmHash ids of categorical fields, in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

K2 = 0x9AE16A3B2F90404F - 2**64  # as a signed number; products and sums wrap around modulo 2^64 either way


def category_ids(words: Tensor, sizes: Tensor) -> Tensor:
    """int64 [rows, columns] in [0, sizes): FarmHash `Fingerprint64` of every field and its column's number, modulo `sizes`.

    `words` int64 [rows, columns] are the eight characters of each field, read as little-endian numbers; up to 100 columns.
    The hashed key is the eight characters followed by the column's number in decimal: `sizes` int64 [columns].
    """
    column = torch.arange(words.shape[1], device=words.device)
    tens, units = column // 10, column % 10
    length = torch.where(tens > 0, 2, 1)
    suffix = torch.where(tens > 0, (48 + tens) | (48 + units) << 8, 48 + units)
    last = _right(words, 8 * length) | suffix << (64 - 8 * length)
    mul = K2 + 2 * (8 + length)
    a = words + K2
    c = _rotated(last, 37) * mul + a
    d = (_rotated(a, 25) + last) * mul
    x = (c ^ d) * mul
    x = x ^ _right(x, 47)
    y = (d ^ x) * mul
    y = (y ^ _right(y, 47)) * mul
    return (_right(y, 1) % sizes * 2 + (y & 1)) % sizes  # unsigned: the upper bits, then the lowest


def _right(x: Tensor, shift: Tensor | int) -> Tensor:
    """A shift to the right that brings in zeros."""
    return (x >> shift) & ~(-1 << (64 - torch.as_tensor(shift, device=x.device)))


def _rotated(x: Tensor, shift: int) -> Tensor:
    return _right(x, shift) | x << (64 - shift)
