"""Corpus BLEU against golden cases and against sacrebleu."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from algoperf_torch.workloads.wmt.bleu import bleu_score, precisions, sentence_sums, tokenize_13a


def sums_of(pairs):
    return np.sum([sentence_sums(*pair) for pair in pairs], axis=0).tolist()


def test_golden_tokens(metric_vectors):
    for pair, expected in zip(
        metric_vectors.json["bleu_pairs"], metric_vectors.json["bleu_tokenized_13a"], strict=True
    ):
        assert [" ".join(tokenize_13a(text)) for text in pair] == expected


def test_golden_scores(metric_vectors):
    cases = metric_vectors.json["bleu_cases"]
    cases = list(cases.values()) if isinstance(cases, dict) else cases
    assert len(cases) >= 5
    for case in cases:
        (indices,) = (
            value
            for key, value in case.items()
            if isinstance(value, list) and key not in ("correct", "total", "precisions")
        )
        sums = sums_of([metric_vectors.json["bleu_pairs"][index] for index in indices])
        assert sums[:4] == case["correct"]
        assert sums[4:8] == case["total"]
        assert sums[8:] == [case["sys_len"], case["ref_len"]]
        assert precisions(sums[:4], sums[4:8]) == pytest.approx(case["precisions"], rel=1e-12)
        assert bleu_score(sums) == pytest.approx(case["score"], rel=1e-12, abs=1e-12)


words = st.sampled_from(
    [
        "the",
        "cat",
        "sat",
        "on",
        "mat",
        "it's",
        "3.5",
        "1,000",
        "a-b",
        "2-3",
        "x.",
        "(no)",
        "&quot;hi&quot;",
        "über",
        "„so“",
        "B.",
        "$5",
        "-",
    ]
)
texts = st.lists(words, max_size=12).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_agrees_with_sacrebleu(pairs):
    """Its present version scores a corpus without any match as 0; 1.3.1, which the benchmark uses, smooths that too."""
    sums = sums_of(pairs)
    assume(sum(sums[:4]) > 0)
    ours, theirs = zip(*pairs, strict=True)
    expected = sacrebleu.corpus_bleu(
        list(ours), [list(theirs)], smooth_method="exp", tokenize="13a", use_effective_order=False
    )
    assert sums[:4] == expected.counts
    assert sums[4:8] == expected.totals
    assert bleu_score(sums) == pytest.approx(expected.score, rel=1e-9, abs=1e-9)


def test_sums_of_parts_are_those_of_the_corpus():
    pairs = [("a b c d e", "a b c d f"), ("x y z", "x y"), ("", "nothing"), ("the end .", "the end.")]
    assert sums_of(pairs) == (np.array(sums_of(pairs[:1])) + sums_of(pairs[1:])).tolist()
    assert bleu_score([0] * 10) == 0.0
