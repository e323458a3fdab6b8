"""Made-up German and English sentence pairs in the files of WMT, from a small grammar.

Words are invented. Each has one translation; nouns have a gender that picks the German article, and the verb of a German
subordinate clause goes to its end. So translating needs the vocabulary, agreement and word order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from algoperf_torch.errors import UsageError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.wmt.prepare import EVALUATION, TRAINING_CORPORA

DEFAULT_EXAMPLES = 8_192
GERMAN_SYLLABLES = ("ba", "del", "fun", "gra", "ken", "lich", "mut", "stei", "tor", "wun", "zei", "schlo", "käm", "für")
ENGLISH_SYLLABLES = ("ba", "dle", "fi", "gro", "ken", "ly", "mo", "stea", "ter", "wi", "sha", "thro", "can", "ple")
ARTICLES = (("der", "den"), ("die", "die"), ("das", "das"))  # nominative and accusative by gender
NUM_WORDS = 120  # half are nouns, a quarter verbs, a quarter adjectives
SETTINGS = {"words": int}


class Word(NamedTuple):
    german: str
    english: str
    gender: int


class Lexicon(NamedTuple):
    nouns: list[Word]
    verbs: list[Word]
    adjectives: list[Word]


def synthesise(folder: Path, *, num_train: int, seed: int, words: int = NUM_WORDS) -> dict[str, int]:
    """Writes four training corpora, newstest2013 as text and newstest2014 as SGML; the latter have a quarter each.

    The fewer `words` each language has, the sooner they are learned. Raises `UsageError` for less than 4.
    """
    if words < 4:
        raise UsageError(f"A language of {words} words is too small; write words=4 or more.")
    random = np.random.Generator(np.random.Philox(key=seed))
    lexicon = make_lexicon(random, words)
    num_other = max(1, num_train // 4)
    for directory in ("training", "dev"):
        (folder / directory).mkdir(parents=True)
    shares = [num_train // 2, num_train // 4, num_train // 8]
    for name, count in zip(TRAINING_CORPORA, [*shares, num_train - sum(shares)], strict=True):
        write_text(folder, (f"{name}.de", f"{name}.en"), [sentence(random, lexicon) for _ in range(count)])
    write_text(folder, EVALUATION[Split.VALIDATION], [sentence(random, lexicon) for _ in range(num_other)])
    pairs = [sentence(random, lexicon) for _ in range(num_other)]
    for name, side in zip(EVALUATION[Split.TEST], zip(*pairs, strict=True), strict=True):
        segments = "".join(f'<seg id="{number}">{text}</seg>\n' for number, text in enumerate(side, start=1))
        document = f'<refset setid="newstest2014">\n<doc docid="synthetic">\n<p>\n{segments}</p>\n</doc>\n</refset>\n'
        (folder / name).write_text(document, encoding="utf-8")
    return {Split.TRAIN: num_train, Split.VALIDATION: num_other, Split.TEST: num_other}


def write_text(folder: Path, names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    for name, side in zip(names, zip(*pairs, strict=True), strict=True):
        (folder / name).write_text("".join(f"{text}\n" for text in side), encoding="utf-8")


def make_lexicon(random: np.random.Generator, num_words: int) -> Lexicon:
    def words(count: int) -> list[Word]:
        return [
            Word(
                "".join(random.choice(GERMAN_SYLLABLES, size=random.integers(2, 4))),
                "".join(random.choice(ENGLISH_SYLLABLES, size=random.integers(1, 4))),
                int(random.integers(3)),
            )
            for _ in range(count)
        ]

    return Lexicon(words(num_words // 2), words(num_words // 4), words(num_words // 4))


def sentence(random: np.random.Generator, lexicon: Lexicon) -> tuple[str, str]:
    """A main clause, and sometimes a subordinate one: German and English."""

    def noun_phrase(case: int) -> tuple[str, str]:
        noun = lexicon.nouns[random.integers(len(lexicon.nouns))]
        article = ARTICLES[noun.gender][case]
        if random.random() < 0.4:
            adjective = lexicon.adjectives[random.integers(len(lexicon.adjectives))]
            return (
                f"{article} {adjective.german}e {noun.german.capitalize()}",
                f"the {adjective.english} {noun.english}",
            )
        return f"{article} {noun.german.capitalize()}", f"the {noun.english}"

    def clause(*, subordinate: bool) -> tuple[str, str]:
        subject, verb, thing = noun_phrase(0), lexicon.verbs[random.integers(len(lexicon.verbs))], noun_phrase(1)
        english = f"{subject[1]} {verb.english}s {thing[1]}"
        if subordinate:
            return f"{subject[0]} {thing[0]} {verb.german}t", english
        return f"{subject[0]} {verb.german}t {thing[0]}", english

    german, english = clause(subordinate=False)
    if random.random() < 0.3:
        more_german, more_english = clause(subordinate=True)
        german, english = f"{german}, weil {more_german}", f"{english}, because {more_english}"
    return f"{german[0].upper()}{german[1:]}.", f"{english[0].upper()}{english[1:]}."
