"""Byte-level BPE with the files of GPT-2 (Radford et al., 2019), read from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.errors import DataError

END_OF_TEXT = "<|endoftext|>"
MAX_VOCABULARY = 2**16  # tokens are stored in two bytes


def _load(path: Path) -> Any:
    import tokenizers

    single = path if path.is_file() else path / "tokenizer.json"
    vocab, merges = path / "vocab.json", path / "merges.txt"
    if not single.is_file() and not (vocab.is_file() and merges.is_file()):
        raise DataError(f"{path} has neither tokenizer.json nor vocab.json and merges.txt.")
    try:
        if single.is_file():
            return tokenizers.Tokenizer.from_file(str(single))
        tokenizer: Any = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises nothing more special
        raise DataError(f"Cannot read the tokenizer in {path}: {error}.") from error
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


class Tokenizer:
    """Documents to token ids, each closed by the id of `END_OF_TEXT`.

    `path` is a `tokenizer.json`, or a folder that holds one, or one with GPT-2's `vocab.json` and `merges.txt`. Raises
    `DataError` for anything else.
    """

    def __init__(self, path: Path) -> None:
        tokenizer = _load(path)
        end = tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise DataError(f"The tokenizer in {path} has no token {END_OF_TEXT}.")
        tokenizer.add_special_tokens([END_OF_TEXT])
        self._tokenizer = tokenizer
        self.end_of_text = int(end)
        self.vocab_size = int(tokenizer.get_vocab_size())
        if self.vocab_size > MAX_VOCABULARY:
            raise DataError(
                f"The tokenizer in {path} has {self.vocab_size:,} tokens; at most {MAX_VOCABULARY:,} can be."
            )

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))

    def encode(self, documents: Sequence[str]) -> list[NDArray[np.uint16]]:
        """Token ids of each document; none for an empty one."""
        full = [document for document in documents if document]
        encoded = iter(self._tokenizer.encode_batch_fast([document + END_OF_TEXT for document in full]))
        nothing = np.empty(0, dtype=np.uint16)
        return [np.array(next(encoded).ids, dtype=np.uint16) if document else nothing for document in documents]
