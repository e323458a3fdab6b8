"""Word errors in both definitions."""

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf_torch.workloads.librispeech.wer import printed_tensor, word_errors


@pytest.mark.parametrize(("kind", "form"), [("plain", str), ("ref", printed_tensor)])
def test_golden_word_errors(golden_metrics, kind, form):
    golden = golden_metrics("speech")
    hypotheses, references = ([form(text) for text in golden[name].tolist()] for name in ("wer_hyp", "wer_ref"))
    errors, words = word_errors(hypotheses, references)
    np.testing.assert_array_equal(errors, golden[f"wer_{kind}_errors"])
    np.testing.assert_array_equal(words, golden[f"wer_{kind}_words"])


sentences = st.lists(st.sampled_from(["A", "B", "C", "D'E"]), min_size=1, max_size=8).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(sentences | st.just(""), sentences), min_size=1, max_size=6))
def test_agrees_with_jiwer(pairs):
    hypotheses, references = map(list, zip(*pairs, strict=True))
    errors, words = word_errors(hypotheses, references)
    expected = jiwer.process_words(references, hypotheses)
    assert errors.sum() == expected.substitutions + expected.deletions + expected.insertions
    assert errors.sum() / words.sum() == pytest.approx(expected.wer)
    for hypothesis, reference, count in zip(hypotheses, references, errors, strict=True):  # alone as in the batch
        assert word_errors([hypothesis], [reference])[0].tolist() == [count]


def test_no_utterances():
    errors, words = word_errors([], [])
    assert errors.shape == words.shape == (0,)
