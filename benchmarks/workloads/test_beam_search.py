"""Beam search with a key-value cache against running the decoder over the whole prefix at every step.

Run: `python -m pytest --benchmark-only benchmarks/workloads/test_beam_search.py -s`. On a GPU, if there is one, at full size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algoperf_torch.workloads.wmt.beam import beam_search
from algoperf_torch.workloads.wmt.transformer import Transformer
from algoperf_torch.workloads.wmt.workload import TransformerDecoder

BEAMS, ALPHA = 4, 0.6
NO_EOS = -1  # no token is this one, so that both run all steps
GOAL = 5.0


class Rerun:
    """A decoder without a cache. The encoder runs once, as it does with one."""

    def __init__(self, model: Transformer, inputs: Tensor) -> None:
        self.model, self.inputs = model, inputs.repeat_interleave(BEAMS, 0)
        self.memory = model.encode(inputs).repeat_interleave(BEAMS, 0)
        self.prefix = inputs.new_empty(len(self.inputs), 0)

    def step(self, tokens: Tensor, position: int) -> Tensor:
        self.prefix = torch.cat([self.prefix, tokens.unsqueeze(1)], dim=1)
        targets = nn.functional.pad(self.prefix[:, 1:], (0, 1), value=1)  # `decode` shifts to the right again
        return self.model.decode(self.memory, self.inputs, targets)[:, -1]

    def reorder(self, rows: Tensor, length: int) -> None:
        self.prefix = self.prefix[rows]

    def keep(self, items: Tensor) -> None:
        raise AssertionError("No item is ever done here.")


def test_beam_search(race):
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(0)
    if cuda:
        model, items, source, length = Transformer(), 64, 64, 256
    else:
        model = Transformer(vocab_size=4_000, width=256, num_heads=4, mlp_width=256)
        items, source, length = 4, 32, 64
    model = model.to(device).eval()
    inputs = torch.randint(3, 4_000, (items, source), device=device)

    def run(decoder: object) -> Tensor:
        options = {"beams": BEAMS, "max_length": length, "alpha": ALPHA, "eos": NO_EOS, "device": device}
        scores = beam_search(decoder, items, **options).scores
        return scores.cpu()  # waits for the device

    def ours() -> Tensor:
        with torch.no_grad():
            return run(TransformerDecoder(model, inputs, BEAMS, length))

    def peer() -> Tensor:
        with torch.no_grad():
            return run(Rerun(model, inputs))

    torch.testing.assert_close(ours(), peer(), rtol=1e-3, atol=1e-3)
    assert race(ours, peer, unit="sentences", work=items, rounds=3) >= GOAL
