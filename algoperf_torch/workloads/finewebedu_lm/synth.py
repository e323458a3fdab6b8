"""Made-up documents in parquet, and a small tokenizer in GPT-2's files, trained on them.

Every document has a topic, which decides which words are frequent; sentences follow a fixed pattern of word classes. So a
model gains from learning words, from grammar, and from the context of the document.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from algoperf_torch.spec import Split
from algoperf_torch.workloads.finewebedu_lm.prepare import TRAIN_SHARE
from algoperf_torch.workloads.finewebedu_lm.tokenizer import END_OF_TEXT

DEFAULT_EXAMPLES = 4_096  # documents
NUM_FILES = 2
NUM_TOPICS = 8
WORDS_PER_CLASS = 80
VOCABULARY = 512
SYLLABLES = ("ta", "ren", "mo", "sil", "ku", "ver", "an", "dor", "pe", "lix", "ga", "thu", "bri", "en", "os", "ha")
CLASSES = ("noun", "verb", "adjective")
PATTERNS = (
    ("the", "noun", "verb", "the", "noun"),
    ("the", "adjective", "noun", "verb"),
    ("a", "noun", "and", "a", "noun", "verb"),
    ("every", "noun", "verb", "the", "adjective", "noun"),
)


def synthesise(folder: Path, *, num_train: int, seed: int) -> dict[str, int]:
    """Writes two parquet files and the folder `tokenizer`; returns the numbers of documents by split."""
    import pyarrow as pa
    from pyarrow import parquet

    random = np.random.Generator(np.random.Philox(key=seed))
    total = int(np.ceil(num_train / TRAIN_SHARE))
    words = {
        kind: ["".join(random.choice(SYLLABLES, size=random.integers(1, 4))) for _ in range(WORDS_PER_CLASS)]
        for kind in CLASSES
    }
    favour = {kind: random.dirichlet(np.full(WORDS_PER_CLASS, 0.08), size=NUM_TOPICS) for kind in CLASSES}
    documents = []
    for _ in range(total):
        topic = random.integers(NUM_TOPICS)
        sentences = []
        for _ in range(random.integers(4, 30)):
            pattern = PATTERNS[random.integers(len(PATTERNS))]
            chosen = [str(random.choice(words[p], p=favour[p][topic])) if p in CLASSES else p for p in pattern]
            sentences.append(" ".join(chosen).capitalize() + ".")
        documents.append(" ".join(sentences))
    for number, part in enumerate(np.array_split(np.array(documents, dtype=object), NUM_FILES)):
        parquet.write_table(pa.table({"text": part.tolist()}), folder / f"{number:03d}_00000.parquet")
    write_tokenizer(folder / "tokenizer", documents)
    return {Split.TRAIN: int(TRAIN_SHARE * total), Split.VALIDATION: total - int(TRAIN_SHARE * total), Split.TEST: 0}


def write_tokenizer(folder: Path, documents: list[str]) -> None:
    """`vocab.json` and `merges.txt` of a byte-level BPE."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    folder.mkdir()
    tokenizer.model.save(str(folder))
