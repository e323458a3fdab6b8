"""Word error counts, in the standard definition and as the reference implementation counts.

The reference compares the printed form of a tensor that holds the text, `tf.Tensor(b'...', shape=(), dtype=string)`, so
that every utterance has two words more and its first and last word carry a prefix and a suffix. The published targets
and results were computed in this way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def printed_tensor(text: str) -> str:
    return f"tf.Tensor({text.encode()!r}, shape=(), dtype=string)"


def word_errors(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Insertions, deletions and substitutions of words, and the number of reference words, for each pair."""
    ids: dict[str, int] = {}

    def encode(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        words = [[ids.setdefault(word, len(ids)) for word in text.split()] for text in texts]
        lengths = np.array([len(sentence) for sentence in words], dtype=np.int64)
        table = np.full((len(words), max(lengths, default=0)), -1, dtype=np.int64)
        for row, sentence in zip(table, words, strict=True):
            row[: len(sentence)] = sentence
        return table, lengths

    (hypothesis, hypothesis_lengths), (reference, reference_lengths) = encode(hypotheses), encode(references)
    return edit_distances(hypothesis, hypothesis_lengths, reference, reference_lengths), reference_lengths


def edit_distances(
    a: NDArray[np.int64], a_lengths: NDArray[np.int64], b: NDArray[np.int64], b_lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Levenshtein distances [n] between rows of `a` [n, p] and `b` [n, q], cut to their lengths: all pairs at once."""
    columns = np.arange(a.shape[1] + 1)
    row = np.broadcast_to(columns, (len(a), len(columns)))  # distances of the first i words of b to all prefixes of a
    result = np.where(b_lengths == 0, a_lengths, 0)
    for i in range(b.shape[1]):
        best = np.empty(row.shape, dtype=np.int64)
        best[:, 0] = i + 1
        best[:, 1:] = np.minimum(row[:, 1:] + 1, row[:, :-1] + (a != b[:, i : i + 1]))
        row = np.minimum.accumulate(best - columns, axis=1) + columns  # any number of insertions
        ended = b_lengths == i + 1
        result[ended] = row[ended, a_lengths[ended]]
    return result
