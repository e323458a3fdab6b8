"""Beam search: golden tables, a plain search in Python, caches against re-running, independence of items."""

import itertools

import numpy as np
import pytest
import torch

from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.wmt import beam
from algoperf_torch.workloads.wmt.beam import beam_search, length_penalty
from algoperf_torch.workloads.wmt.workload import TransformerDecoder


class Table:
    """Logits by item, position, previous token and next token."""

    def __init__(self, logits, beams):
        self.logits, self.beams = logits, beams

    def step(self, tokens, position):
        return self.logits[torch.arange(len(self.logits)).repeat_interleave(self.beams), position, tokens]

    def reorder(self, rows, length):
        pass

    def keep(self, items):
        self.logits = self.logits[items]


def search(logits, *, beams, alpha, eos=2):
    return beam_search(Table(logits, beams), len(logits), beams=beams, max_length=logits.shape[1], alpha=alpha, eos=eos)


@pytest.mark.parametrize("check_every", [1, 3, 8])
@pytest.mark.parametrize(("beams", "alpha"), [(4, 0.6), (2, 0.0)])
def test_golden_table(metric_vectors, monkeypatch, check_every, beams, alpha):
    monkeypatch.setattr(beam, "CHECK_EVERY", check_every)
    found = search(torch.from_numpy(metric_vectors.arrays["beam_table"]), beams=beams, alpha=alpha)
    np.testing.assert_array_equal(found.sequences, metric_vectors.arrays[f"beam_seqs_{beams}"])
    np.testing.assert_allclose(found.scores, metric_vectors.arrays[f"beam_scores_{beams}"], rtol=1e-6)


@pytest.mark.parametrize("prefix", ["beam_model", "beam_model_eos2"])
def test_golden_model(metric_vectors, filled_wmt, prefix):
    arrays = metric_vectors.arrays
    eos = 2 if prefix == "beam_model" else int(arrays["beam_model_eos2"])
    decoder = TransformerDecoder(filled_wmt, torch.from_numpy(arrays["beam_model_src"]), 4, 10)
    found = beam_search(decoder, 2, beams=4, max_length=10, alpha=0.6, eos=eos)
    np.testing.assert_array_equal(found.sequences, arrays[f"{prefix}_seqs"])
    np.testing.assert_allclose(found.scores, arrays[f"{prefix}_scores"], rtol=1e-5)
    if prefix == "beam_model":
        np.testing.assert_array_equal(found.sequences[:, -1, 1:], arrays["beam_model_best"])


@pytest.mark.parametrize("seed", range(5))
def test_wide_beams_find_the_best_sequence(seed):
    """With as many beams as there are prefixes the search is exhaustive."""
    vocab, length, eos, alpha = 4, 4, 2, 0.6
    logits = 2 * torch.randn(1, length, vocab, vocab, generator=torch.Generator().manual_seed(seed))
    log_prob = logits.log_softmax(-1)[0]
    best = -1e9
    for steps in range(1, length):
        for sequence in itertools.product([t for t in range(vocab) if t != eos], repeat=steps - 1):
            tokens = [0, *sequence, eos]
            score = sum(float(log_prob[i, tokens[i], tokens[i + 1]]) for i in range(steps))
            best = max(best, score / length_penalty(steps, alpha))
    found = (
        search(logits, beams=32, alpha=alpha) if vocab >= 32 else search(pad_vocab(logits, 32), beams=32, alpha=alpha)
    )
    assert float(found.scores[0, -1]) == pytest.approx(best, rel=1e-5)


def pad_vocab(logits, size):
    """Tokens of probability 0, so that there are at least as many as candidates."""
    extra = size - logits.shape[-1]
    return torch.nn.functional.pad(logits, (0, extra, 0, extra), value=-1e5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = build_workload("wmt", model_scale="test").build_model().eval()
    with torch.no_grad():
        for parameter in model.decoder_layers.parameters():  # so that what it emits changes from step to step
            parameter.mul_(3 if parameter.dim() == 2 else 1)
    return model


def sources(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 500, (count, 20), generator=generator)
    for row, length in zip(rows, torch.randint(3, 20, (count,), generator=generator), strict=True):
        row[length:] = 0
    return rows


def translate(model, source, *, eos=2, max_length=40):
    decoder = TransformerDecoder(model, source, 4, max_length)
    return beam_search(decoder, len(source), beams=4, max_length=max_length, alpha=0.6, eos=eos)


@pytest.fixture(scope="module")
def frequent_token(model):
    """A token that the model often emits, to be taken for EOS so that items end at different steps."""
    found = translate(model, sources(12)).sequences[:, -1, 1:].flatten()
    return int(found.bincount().argsort(descending=True)[0])


def test_items_do_not_influence_each_other(model, frequent_token):
    source = sources(12)
    together = translate(model, source, eos=frequent_token)
    ends = (together.sequences[:, -1] == frequent_token).float().argmax(1)
    assert len(ends.unique()) > 2  # they end at different steps, so that done items are dropped on the way
    for rows in (slice(0, 1), slice(3, 8), slice(11, 12)):
        alone = translate(model, source[rows], eos=frequent_token)
        assert torch.equal(alone.sequences[:, -1], together.sequences[rows, -1])
        torch.testing.assert_close(alone.scores, together.scores[rows], rtol=1e-4, atol=1e-4)


class Rerun:
    """A decoder without a cache: it runs over the whole prefix at every step."""

    def __init__(self, model, source, beams):
        self.model, self.source = model, source.repeat_interleave(beams, 0)
        self.memory = model.encode(source).repeat_interleave(beams, 0)
        self.prefix = torch.empty(len(self.source), 0, dtype=torch.int64)
        self.beams = beams

    def step(self, tokens, position):
        self.prefix = torch.cat([self.prefix, tokens.unsqueeze(1)], dim=1)
        targets = torch.nn.functional.pad(self.prefix[:, 1:], (0, 1), value=1)  # shifted right again by `decode`
        return self.model.decode(self.memory, self.source, targets)[:, -1]

    def reorder(self, rows, length):
        self.prefix = self.prefix[rows]

    def keep(self, items):
        rows = (items.unsqueeze(1) * self.beams + torch.arange(self.beams)).flatten()
        self.source, self.memory, self.prefix = self.source[rows], self.memory[rows], self.prefix[rows]


def test_caches_equal_running_over_the_prefix(model, frequent_token):
    source = sources(6, seed=3)
    with torch.no_grad():
        expected = beam_search(Rerun(model, source, 4), 6, beams=4, max_length=30, alpha=0.6, eos=frequent_token)
    found = translate(model, source, eos=frequent_token, max_length=30)
    assert torch.equal(found.sequences[:, -1], expected.sequences[:, -1])
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
