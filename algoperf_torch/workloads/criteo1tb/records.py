"""Click-log lines to numbers: 13 integers as logarithms, 26 category strings as FarmHash ids rounded to float32.

A line is a label, 13 integers and 26 categories of 8 hexadecimal digits, separated by tabs; every field but the label may
be empty. Blocks of many lines are parsed at once with NumPy, column by column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.errors import DataError

NUM_DENSE = 13
NUM_CATEGORICAL = 26
NUM_FIELDS = 1 + NUM_DENSE + NUM_CATEGORICAL
VOCABULARY_SIZES = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10, 2208, 11938, 155, 4, 976, 14,
    39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip

TAB, NEWLINE, MINUS, ZERO = b"\t\n-0"
EMPTY_CATEGORY = np.frombuffer(b"00000000", dtype="<u8")[0]
PADDING = 20  # bytes around a block, so that 8 or 16 bytes can be read at any field; a space is neither digit nor sign

U64 = NDArray[np.uint64]


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def rotate_right(x: U64, shift: int) -> U64:
    return (x >> _u64(shift)) | (x << _u64(64 - shift))


def fingerprint64(first: U64, last: U64, length: int) -> U64:
    """FarmHash `Fingerprint64` of strings of 8 to 16 bytes, modulo 2^64.

    `first` and `last` are their first and last eight bytes, read as little-endian numbers.
    """
    k2 = _u64(0x9AE16A3B2F90404F)
    with np.errstate(over="ignore"):
        mul = k2 + _u64(2 * length)
        a = first + k2
        c = rotate_right(last, 37) * mul + a
        d = (rotate_right(a, 25) + last) * mul
        x = (c ^ d) * mul
        x ^= x >> _u64(47)
        y = (d ^ x) * mul
        y ^= y >> _u64(47)
        result: U64 = y * mul
    return result


def category_ids(words: U64, column: int) -> NDArray[np.int64]:
    """Ids in [0, vocabulary size) of the 8-byte strings of one column; the column's number is part of the hashed key."""
    suffix = str(column).encode()
    shift = _u64(8 * len(suffix))
    last = (words >> shift) | (_u64(int.from_bytes(suffix, "little")) << (_u64(64) - shift))
    ids: NDArray[np.int64] = (fingerprint64(words, last, 8 + len(suffix)) % _u64(VOCABULARY_SIZES[column])).astype(
        np.int64
    )
    return ids


def parse_block(
    text: bytes, source: str = "text", first_line: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels uint8 [n] and inputs float32 [n, 39] of `n` complete lines.

    Raises `DataError` that names `source` and the line (counted from `first_line`) of the first bad record.
    """
    block = _Block(text, source, first_line)
    inputs = np.empty((block.num_lines, NUM_DENSE + NUM_CATEGORICAL), dtype=np.float32)
    labels = block.labels()
    for column in range(NUM_DENSE):
        # Missing and negative values become 0; all arithmetic in float32.
        value = block.integers(1 + column).astype(np.float32)
        inputs[:, column] = np.log(np.maximum(value, np.float32(0)) + np.float32(1))
    for column in range(NUM_CATEGORICAL):
        # float32 holds integers exactly up to 2^24 only; larger ids are rounded to even, as the benchmark fixes it.
        inputs[:, NUM_DENSE + column] = category_ids(block.words(1 + NUM_DENSE + column), column).astype(np.float32)
    return labels, inputs


class _Block:
    """A block of lines with the place of every field."""

    def __init__(self, text: bytes, source: str, first_line: int) -> None:
        self.source, self.first_line = source, first_line
        padding = b" " * PADDING
        self.bytes = np.frombuffer(padding + text + padding, dtype=np.uint8)
        body = self.bytes[PADDING : PADDING + len(text)]
        separators = np.flatnonzero((body - np.uint8(TAB)) < 2)  # tab and newline are neighbours
        newlines = body[separators] == NEWLINE
        self.num_lines = int(newlines.sum())
        if body.size and body[-1] != NEWLINE:
            self._fail(self.num_lines, "is not complete")
        if body.size and body.max() >= 0x80:
            self._fail(
                int(np.count_nonzero(body[: body.argmax()] == NEWLINE)), f"holds the byte {body.max():#x}, not ASCII"
            )
        if len(separators) != NUM_FIELDS * self.num_lines or not newlines[NUM_FIELDS - 1 :: NUM_FIELDS].all():
            counts = np.diff(np.flatnonzero(newlines), prepend=-1)
            line = int(np.flatnonzero(counts != NUM_FIELDS)[0])
            self._fail(line, f"has {counts[line]} columns, expected {NUM_FIELDS}")
        self.ends = np.ascontiguousarray((separators + PADDING).reshape(self.num_lines, NUM_FIELDS).T)
        # Eight bytes at any offset: an opaque dtype has no alignment, so that indexing copies only what is asked for.
        self.eights: NDArray[Any] = np.ndarray((len(self.bytes) - 7,), dtype="V8", buffer=self.bytes.data, strides=(1,))

    def _fail(self, line: int, problem: str) -> None:
        raise DataError(f"{self.source}: line {self.first_line + line} {problem}.")

    def field(self, column: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where a field ends (exclusive), and its length."""
        ends = self.ends[column]
        starts = np.concatenate([[PADDING - 1], self.ends[-1, :-1]]) if column == 0 else self.ends[column - 1]
        return ends, ends - starts - 1

    def read(self, offsets: NDArray[np.int64]) -> U64:
        read: U64 = self.eights[offsets].view("<u8")
        return read

    def labels(self) -> NDArray[np.uint8]:
        ends, length = self.field(0)
        labels: NDArray[np.uint8] = self.bytes[ends - 1] - np.uint8(ZERO)
        bad = np.flatnonzero((length != 1) | (labels > 1))
        if bad.size:
            self._fail(int(bad[0]), f"has the label {self._text(0, bad[0])!r}, expected 0 or 1")
        return labels

    def integers(self, column: int) -> NDArray[np.int64]:
        """Values of a field of decimal digits; empty and negative ones are 0."""
        ends, length = self.field(column)
        negative = (self.bytes[ends - length] == MINUS) & (length > 1)
        length = length - negative
        # The last eight characters as one number: bytes in front of the field are replaced by '0'.
        shift = (_u64(8) - np.minimum(length, 8).astype(np.uint64)) * _u64(8)
        with np.errstate(over="ignore"):
            mask = ~_u64(0) << np.minimum(shift, _u64(63))
            mask[shift == 64] = 0
            digits = (self.read(ends - 8) & mask) | (EMPTY_CATEGORY & ~mask)
            values = digits - EMPTY_CATEGORY
            odd = ((digits + _u64(0x4646464646464646)) | values) & _u64(0x8080808080808080) != 0
            # Pairs, then fours, then eights: the first character is the lowest byte.
            values = (values * _u64(10) + (values >> _u64(8))) & _u64(0x00FF00FF00FF00FF)
            values = (values * _u64(100) + (values >> _u64(16))) & _u64(0x0000FFFF0000FFFF)
            values = (values * _u64(10_000) + (values >> _u64(32))) & _u64(0xFFFFFFFF)
        result: NDArray[np.int64] = values.astype(np.int64)
        for line in np.flatnonzero(odd | (length > 8)):  # wrong, or a long number, which is rare
            text = self._text(column, line)
            digits_only = text.removeprefix("-")
            if not digits_only.isdigit() or len(digits_only) > 18:
                self._fail(int(line), f"has {text!r} in column {column + 1}, expected an integer")
            result[line] = int(digits_only)
        result[negative] = 0
        return result

    def words(self, column: int) -> U64:
        """The 8 characters of a category field."""
        ends, length = self.field(column)
        words = self.read(ends - 8)
        empty = length == 0
        bad = np.flatnonzero((length != 8) & ~empty)
        if bad.size:
            self._fail(
                int(bad[0]), f"has {self._text(column, bad[0])!r} in column {column + 1}, expected 8 characters or none"
            )
        words[empty] = EMPTY_CATEGORY
        return words

    def _text(self, column: int, line: np.int64) -> str:
        ends, length = self.field(column)
        return self.bytes[ends[line] - length[line] : ends[line]].tobytes().decode("ascii")
