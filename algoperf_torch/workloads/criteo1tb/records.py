"""Click-log lines to numbers: 13 integers as logarithms, 26 category strings as FarmHash ids rounded to float32.

A line is a label, 13 integers and 26 categories of 8 hexadecimal digits, separated by tabs; every field but the label may
be empty. Many lines are parsed at once with NumPy, in runs of lines whose arrays stay in the processor's cache.
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
RUN_BYTES = 1 << 18  # of text that is parsed at once
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


def category_ids(words: U64, columns: range) -> U64:
    """Ids in [0, vocabulary size) of 8-byte strings [n, columns]; the column's number is part of the hashed key.

    All column numbers must have the same number of digits.
    """
    digits = len(str(columns[0]))
    shift = _u64(8 * digits)
    suffixes = np.array([int.from_bytes(str(column).encode(), "little") for column in columns], dtype=np.uint64)
    last = (words >> shift) | (suffixes << (_u64(64) - shift))
    sizes = np.array(VOCABULARY_SIZES[columns.start : columns.stop], dtype=np.uint64)
    ids: U64 = fingerprint64(words, last, 8 + digits) % sizes
    return ids


def parse_block(
    text: bytes, source: str = "text", first_line: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels uint8 [n] and inputs float32 [n, 39] of `n` complete lines.

    Raises `DataError` that names `source` and the line (counted from `first_line`) of a bad record.
    """
    num_lines = text.count(b"\n")
    if text and not text.endswith(b"\n"):
        raise DataError(f"{source}: line {first_line + num_lines} is not complete.")
    inputs = np.empty((num_lines, NUM_DENSE + NUM_CATEGORICAL), dtype=np.float32)
    labels = np.empty(num_lines, dtype=np.uint8)
    position = done = 0
    while position < len(text):
        end = text.rfind(b"\n", position, position + RUN_BYTES) + 1 or text.index(b"\n", position) + 1
        run = _Run(text[position:end], source, first_line + done)
        rows = slice(done, done + run.num_lines)
        labels[rows] = run.labels()
        # Missing and negative values become 0; all arithmetic in float32.
        dense = run.integers().astype(np.float32)
        inputs[rows, :NUM_DENSE] = np.log(np.maximum(dense, np.float32(0)) + np.float32(1))
        words = run.words()
        for columns in (range(10), range(10, NUM_CATEGORICAL)):
            # float32 holds integers exactly up to 2^24 only; larger ids are rounded to even, as the benchmark fixes it.
            place = slice(NUM_DENSE + columns.start, NUM_DENSE + columns.stop)
            inputs[rows, place] = category_ids(words[:, columns.start : columns.stop], columns)
        position, done = end, done + run.num_lines
    return labels, inputs


class _Run:
    """Complete lines with the place of every field."""

    def __init__(self, text: bytes, source: str, first_line: int) -> None:
        self.source, self.first_line = source, first_line
        padding = b" " * PADDING
        self.bytes = np.frombuffer(padding + text + padding, dtype=np.uint8)
        body = self.bytes[PADDING : PADDING + len(text)]
        separators = np.flatnonzero((body - np.uint8(TAB)) < 2)  # tab and newline are neighbours
        newlines = body[separators] == NEWLINE
        self.num_lines = int(np.count_nonzero(newlines))
        if not text.isascii():
            byte = int((body >= 0x80).argmax())
            self._fail(int(np.count_nonzero(body[:byte] == NEWLINE)), f"holds the byte {body[byte]:#x}, not ASCII")
        if len(separators) != NUM_FIELDS * self.num_lines or not newlines[NUM_FIELDS - 1 :: NUM_FIELDS].all():
            counts = np.diff(np.flatnonzero(newlines), prepend=-1)
            line = int(np.flatnonzero(counts != NUM_FIELDS)[0])
            self._fail(line, f"has {counts[line]} columns, expected {NUM_FIELDS}")
        separators += PADDING
        self.ends = separators.reshape(self.num_lines, NUM_FIELDS)  # exclusive
        self.lengths = np.diff(separators, prepend=PADDING - 1).reshape(self.ends.shape) - 1
        # Eight bytes at any offset: an opaque dtype has no alignment, so that indexing copies only what is asked for.
        self.eights: NDArray[Any] = np.ndarray((len(self.bytes) - 7,), dtype="V8", buffer=self.bytes.data, strides=(1,))

    def _fail(self, line: int, problem: str) -> None:
        raise DataError(f"{self.source}: line {self.first_line + line} {problem}.")

    def last_eight(self, ends: NDArray[np.int64]) -> U64:
        """The eight bytes in front of each end."""
        read: U64 = self.eights[ends - 8].view("<u8")
        return read

    def labels(self) -> NDArray[np.uint8]:
        ends, length = self.ends[:, 0], self.lengths[:, 0]
        labels: NDArray[np.uint8] = self.bytes[ends - 1] - np.uint8(ZERO)
        bad = np.flatnonzero((length != 1) | (labels > 1))
        if bad.size:
            self._fail(int(bad[0]), f"has the label {self._text(int(bad[0]), 0)!r}, expected 0 or 1")
        return labels

    def integers(self) -> NDArray[np.int64]:
        """Values [lines, 13] of the fields of decimal digits; empty and negative ones are 0."""
        fields = slice(1, 1 + NUM_DENSE)
        ends, length = self.ends[:, fields], self.lengths[:, fields]
        negative = (self.bytes[ends - length] == MINUS) & (length > 1)
        length = length - negative
        # The last eight characters as one number: bytes in front of the field are replaced by '0'.
        shift = (_u64(8) - np.minimum(length, 8).astype(np.uint64)) * _u64(8)
        with np.errstate(over="ignore"):
            mask = ~_u64(0) << np.minimum(shift, _u64(63))
            mask[shift == 64] = 0
            digits = (self.last_eight(ends) & mask) | (EMPTY_CATEGORY & ~mask)
            values = digits - EMPTY_CATEGORY
            odd = ((digits + _u64(0x4646464646464646)) | values) & _u64(0x8080808080808080) != 0
            # Pairs, then fours, then eights: the first character is the lowest byte.
            values = (values * _u64(10) + (values >> _u64(8))) & _u64(0x00FF00FF00FF00FF)
            values = (values * _u64(100) + (values >> _u64(16))) & _u64(0x0000FFFF0000FFFF)
            values = (values * _u64(10_000) + (values >> _u64(32))) & _u64(0xFFFFFFFF)
        result: NDArray[np.int64] = values.astype(np.int64)
        for line, column in np.argwhere(odd | (length > 8)).tolist():  # wrong, or a long number, which is rare
            text = self._text(line, 1 + column)
            digits_only = text.removeprefix("-")
            if not digits_only.isdigit() or len(digits_only) > 18:
                self._fail(line, f"has {text!r} in column {column + 2}, expected an integer")
            result[line, column] = int(digits_only)
        result[negative] = 0
        return result

    def words(self) -> U64:
        """The 8 characters [lines, 26] of the category fields."""
        fields = slice(1 + NUM_DENSE, NUM_FIELDS)
        length = self.lengths[:, fields]
        words = self.last_eight(self.ends[:, fields])
        empty = length == 0
        bad = np.argwhere((length != 8) & ~empty)
        if bad.size:
            line, column = bad[0].tolist()
            text = self._text(line, 1 + NUM_DENSE + column)
            self._fail(line, f"has {text!r} in column {2 + NUM_DENSE + column}, expected 8 characters or none")
        words[empty] = EMPTY_CATEGORY
        return words

    def _text(self, line: int, column: int) -> str:
        end = self.ends[line, column]
        return self.bytes[end - self.lengths[line, column] : end].tobytes().decode("ascii")
