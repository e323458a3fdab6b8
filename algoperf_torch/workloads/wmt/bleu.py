"""Corpus BLEU (Papineni et al., 2002) from sums over sentences: one reference, tokeniser 13a, exponential smoothing.

The definition is that of sacrebleu 1.3.1 with its defaults (Post, 2018, arXiv:1804.08771).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4
NUM_SUMS = 2 * MAX_ORDER + 2
LOG_OF_ZERO = -9_999_999_999.0

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"([\x20-\x26\x28-\x2B\x2F\x3A-\x40\x5B-\x60\x7B-\x7E])", r" \1 "),  # ASCII punctuation but ' , - .
        (r"([^0-9])([.,])", r"\1 \2 "),  # a period or comma behind something else than a digit
        (r"([.,])([^0-9])", r" \1 \2"),  # ... or in front of it
        (r"([0-9])(-)", r"\1 \2 "),  # a hyphen behind a digit
    )
)


def tokenize_13a(text: str) -> list[str]:
    """Tokens of a sentence after mteval-v13a; case is kept, punctuation outside ASCII stays attached."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.split()


def sentence_sums(hypothesis: str, reference: str) -> list[int]:
    """What a pair adds to the corpus: matches of order 1 to 4, n-grams of order 1 to 4, both lengths in tokens."""
    ours, theirs = tokenize_13a(hypothesis), tokenize_13a(reference)
    matches, totals = [], []
    for order in range(1, MAX_ORDER + 1):
        found, wanted = ngrams(ours, order), ngrams(theirs, order)
        matches.append(sum(min(count, wanted[ngram]) for ngram, count in found.items()))
        totals.append(max(len(ours) - order + 1, 0))
    return [*matches, *totals, len(ours), len(theirs)]


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))


def precisions(matches: Sequence[float], totals: Sequence[float]) -> list[float]:
    """In percent. The k-th order without a match gets 100 / (2^k total); those without n-grams stay 0."""
    result = [0.0] * MAX_ORDER
    halvings = 1.0
    for order, (match, total) in enumerate(zip(matches, totals, strict=True)):
        if total == 0:
            break
        if match == 0:
            halvings *= 2
            result[order] = 100 / (halvings * total)
        else:
            result[order] = 100 * match / total
    return result


def bleu_score(sums: Sequence[float]) -> float:
    """0 to 100, from the sums of `sentence_sums` over a corpus."""
    matches, totals, (our_length, their_length) = sums[:4], sums[4:8], sums[8:]
    if our_length == 0:
        return 0.0
    penalty = min(1.0, math.exp(1 - their_length / our_length))
    logs = [math.log(value) if value > 0 else LOG_OF_ZERO for value in precisions(matches, totals)]
    return penalty * math.exp(sum(logs) / MAX_ORDER)
