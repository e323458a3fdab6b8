"""SentencePiece (Kudo and Richardson, 2018, arXiv:1808.06226): one vocabulary for both languages.

Ids: 0 is the unknown piece (and padding), 1 begins a sentence (unused), 2 ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.errors import DataError

UNKNOWN, EOS = 0, 2
VOCAB_SIZE = 32_000
TRAINING_BYTES = 10**7


def train_tokenizer(sentences: Iterable[str], model: Path, vocab_size: int, *, at_most: bool = False) -> None:
    """Writes a unigram model of `vocab_size` pieces.

    Where the text is too small for so many, it raises `DataError`, or has fewer if `at_most`.
    """
    import sentencepiece

    with model.open("wb") as file:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=file,
                model_type="unigram",
                vocab_size=vocab_size,
                character_coverage=1.0,
                hard_vocab_limit=not at_most,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rpartition("] ")[2]
            raise DataError(
                f"Cannot train a vocabulary of {vocab_size:,} pieces on the training pairs: {reason}"
            ) from error


class Tokenizer:
    """Text to token ids (EOS last) and back."""

    def __init__(self, model: Path) -> None:
        import sentencepiece

        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (OSError, RuntimeError) as error:
            raise DataError(f"{model} is not a sentencepiece model.") from error
        specials = (self._processor.unk_id(), self._processor.eos_id())
        if specials != (UNKNOWN, EOS):
            raise DataError(f"{model} has the ids {specials} for unknown and end; {(UNKNOWN, EOS)} are needed.")

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, sentences: Sequence[str]) -> list[NDArray[np.uint16]]:
        encoded = self._processor.encode(list(sentences), add_eos=True)
        return [np.array(ids, dtype=np.uint16) for ids in encoded]

    def decode(self, rows: NDArray[np.int64]) -> list[str]:
        """Text of token rows [n, length], each cut behind its first EOS.

        Of a row without EOS only the first token remains: the reference takes the place of EOS as the argmax of an
        all-false comparison, and published scores contain that. A model that has more outputs than this vocabulary has
        pieces may give ids beyond it: those are unknown.
        """
        rows = np.where(rows < self.vocab_size, rows, UNKNOWN)
        ends = (rows == EOS).argmax(axis=1) + 1
        texts: list[str] = self._processor.decode([row[:end].tolist() for row, end in zip(rows, ends, strict=True)])
        return texts
