"""Batched beam search over a decoder that keeps its state between steps."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NEVER = -1e7  # score of what must lose against anything real
CHECK_EVERY = 8  # steps between looks at which items are done; each look waits for the device


class StepDecoder(Protocol):
    """What decodes one position of many rows; row `item * beams + beam` belongs to a beam of an item."""

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """Logits [rows, vocab] of the token behind `tokens` [rows], which stand at `position`."""

    def reorder(self, rows: Tensor, length: int) -> None:
        """Row i becomes what row `rows[i]` was, over the first `length` positions."""

    def keep(self, items: Tensor) -> None:
        """Drops the rows of all other items."""


class Beams(NamedTuple):
    sequences: Tensor  # int64 [items, beams, max_length], first token 0, best beam last
    scores: Tensor  # float32 [items, beams], ascending


class _State(NamedTuple):
    """Beams of the items that are not done, [items, beams, ...]."""

    live: Tensor  # sequences that go on
    live_log_prob: Tensor
    finished: Tensor  # sequences that ended in EOS
    finished_score: Tensor
    is_finished: Tensor  # whether the slot of `finished` is filled

    def select(self, items: Tensor) -> _State:
        return _State(*(value[items] for value in self))


def length_penalty(length: int, alpha: float) -> float:
    return float(((5.0 + length) / 6.0) ** alpha)


@torch.no_grad()
def beam_search(
    decoder: StepDecoder,
    num_items: int,
    *,
    beams: int,
    max_length: int,
    alpha: float,
    eos: int,
    device: torch.device | None = None,
) -> Beams:
    """The best `beams` sequences of every item, by log probability over ((5 + length) / 6)^alpha.

    An item is done when each of its finished sequences beats the best score that a live one can still attain. From then on
    its finished set cannot change, so done items are dropped from the batch from time to time: the result does not depend
    on which items are decoded together. Items that finish nothing return their live sequences and log probabilities.
    """
    state = _State(
        live=torch.zeros(num_items, beams, max_length, dtype=torch.int64, device=device),
        live_log_prob=torch.full((num_items, beams), NEVER, device=device).index_fill(
            1, torch.zeros(1, dtype=torch.int64, device=device), 0.0
        ),
        finished=torch.zeros(num_items, beams, max_length, dtype=torch.int64, device=device),
        finished_score=torch.full((num_items, beams), NEVER, device=device),
        is_finished=torch.zeros(num_items, beams, dtype=torch.bool, device=device),
    )
    result = Beams(state.live.clone(), state.finished_score.clone())
    items = torch.arange(num_items, device=device)  # numbers of the items in `state`
    for position in range(max_length - 1):
        if position and position % CHECK_EVERY == 0:
            open_items = (~_is_done(state, max_length, alpha)).nonzero().squeeze(1)
            if len(open_items) < len(items):
                _write(result, state, items)
                if not len(open_items):
                    return result
                items, state = items[open_items], state.select(open_items)
                decoder.keep(open_items)
        logits = decoder.step(state.live[:, :, position].reshape(-1), position)
        state, rows = _advance(state, logits, position, alpha, eos)
        decoder.reorder(rows, position + 1)
    _write(result, state, items)
    return result


def _advance(state: _State, logits: Tensor, position: int, alpha: float, eos: int) -> tuple[_State, Tensor]:
    """The beams with one more token, and the row of the old beams that each new live beam continues."""
    num_items, beams, _ = state.live.shape
    vocab = logits.shape[-1]
    log_prob = logits.float().log_softmax(dim=-1).view(num_items, beams, vocab) + state.live_log_prob.unsqueeze(-1)
    top_log_prob, top_index = log_prob.flatten(1).topk(2 * beams)
    parent, token = top_index // vocab, top_index % vocab
    sequences = _take(state.live, parent)
    sequences[:, :, position + 1 :] = token.unsqueeze(-1)  # all that is left of the row, as the reference has it
    ends = token == eos

    live_log_prob, live_index = (top_log_prob + NEVER * ends).topk(beams)
    live_log_prob, live_index = live_log_prob.flip(1), live_index.flip(1)  # best last

    score = top_log_prob / length_penalty(position + 1, alpha) + NEVER * ~ends
    finished_score, finished_index = torch.cat([state.finished_score, score], dim=1).topk(beams)
    finished_score, finished_index = finished_score.flip(1), finished_index.flip(1)
    new = _State(
        live=_take(sequences, live_index),
        live_log_prob=live_log_prob,
        finished=_take(torch.cat([state.finished, sequences], dim=1), finished_index),
        finished_score=finished_score,
        is_finished=torch.cat([state.is_finished, ends], dim=1).gather(1, finished_index),
    )
    first_row = beams * torch.arange(num_items, device=logits.device).unsqueeze(1)
    return new, (first_row + parent.gather(1, live_index)).flatten()


def _take(sequences: Tensor, index: Tensor) -> Tensor:
    """[items, n, length] and [items, m] -> [items, m, length]."""
    return sequences.gather(1, index.unsqueeze(-1).expand(-1, -1, sequences.shape[-1]))


def _is_done(state: _State, max_length: int, alpha: float) -> Tensor:
    attainable = state.live_log_prob.amax(dim=1) / length_penalty(max_length, alpha)
    worst = state.finished_score.masked_fill(~state.is_finished, NEVER).amin(dim=1)
    return worst > attainable


def _write(result: Beams, state: _State, items: Tensor) -> None:
    has_finished = state.is_finished.any(dim=1)
    result.sequences[items] = torch.where(has_finished[:, None, None], state.finished, state.live)
    result.scores[items] = torch.where(has_finished[:, None], state.finished_score, state.live_log_prob)
