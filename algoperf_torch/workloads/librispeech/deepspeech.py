"""Deep Speech: bidirectional LSTM layers, then feed-forward layers (Hannun et al., 2014, arXiv:1412.5567)."""

from __future__ import annotations

from torch import Tensor, nn

from algoperf_torch.workloads.layers import ACTIVATIONS, Dropout
from algoperf_torch.workloads.librispeech.features import LogMel, SpecAugment
from algoperf_torch.workloads.librispeech.layers import LayerNorm, MaskedBatchNorm, Subsampling, linear
from algoperf_torch.workloads.librispeech.lstm import BidirectionalLSTM
from algoperf_torch.workloads.roles import mark_output


class InputNorm(nn.Module):
    """Normalises a layer's input: batch norm over all ranks, or layer norm."""

    def __init__(self, dim: int, *, layer_norm: bool) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(dim) if layer_norm else None
        self.bn = None if layer_norm else MaskedBatchNorm(dim, synchronised=True)

    def forward(self, x: Tensor, paddings: Tensor) -> Tensor:
        if self.bn is not None:
            return self.bn(x, paddings)  # type: ignore[no-any-return]
        return self.layer_norm(x)  # type: ignore[no-any-return, misc]


class RecurrentLayer(nn.Module):
    def __init__(self, dim: int, *, layer_norm: bool) -> None:
        super().__init__()
        self.norm = InputNorm(dim, layer_norm=layer_norm)
        self.lstm = BidirectionalLSTM(dim, dim // 2)

    def forward(self, x: Tensor, paddings: Tensor, lengths: Tensor) -> Tensor:
        return self.lstm(self.norm(x, paddings), lengths)  # type: ignore[no-any-return]


class FeedForwardLayer(nn.Module):
    def __init__(self, dim: int, activation: str, dropout: float, *, layer_norm: bool) -> None:
        super().__init__()
        self.norm = InputNorm(dim, layer_norm=layer_norm)
        self.linear = linear(dim, dim)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, paddings: Tensor) -> Tensor:
        x = self.activation(self.linear(self.norm(x, paddings)))
        return self.dropout(x * (1 - paddings).unsqueeze(-1))  # type: ignore[no-any-return]


class DeepSpeech(nn.Module):
    """Audio and its paddings [batch, samples] to logits [batch, frames, vocabulary] and paddings [batch, frames].

    Args:
        dim: width; each LSTM direction has half of it.
        num_recurrent, num_feed_forward: layers of each kind.
        activation: of subsampling and feed-forward layers, a key of `ACTIVATIONS`.
        residual: whether a layer's output is added to its input instead of replacing it.
        layer_norm: layer norm instead of batch norm in every layer, and none before the output.
        num_time_masks, num_frequency_masks: of SpecAugment.
        spec_augment: whether features are masked in training mode.
    """

    def __init__(
        self,
        dim: int = 512,
        num_recurrent: int = 6,
        num_feed_forward: int = 3,
        vocabulary_size: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        num_time_masks: int = 10,
        num_frequency_masks: int = 2,
        *,
        residual: bool = True,
        layer_norm: bool = False,
        spec_augment: bool = True,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.features = LogMel()
        self.spec_augment = SpecAugment(num_time_masks, num_frequency_masks) if spec_augment else None
        self.subsampling = Subsampling(dim, activation)
        self.dropout = Dropout(dropout)
        self.recurrent = nn.ModuleList(RecurrentLayer(dim, layer_norm=layer_norm) for _ in range(num_recurrent))
        self.feed_forward = nn.ModuleList(
            FeedForwardLayer(dim, activation, dropout, layer_norm=layer_norm) for _ in range(num_feed_forward)
        )
        self.norm = nn.Identity() if layer_norm else LayerNorm(dim)
        self.output = mark_output(linear(dim, vocabulary_size))

    def forward(self, audio: Tensor, paddings: Tensor, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`draws`: the random numbers of `SpecAugment`, used in training mode."""
        masks: tuple[Tensor, ...] = ()
        if self.training and self.spec_augment is not None:
            masks = self.spec_augment(paddings, draws)
        x, paddings = self.features(audio, paddings, *masks)
        x, paddings = self.subsampling(x, paddings)
        x = self.dropout(x)
        lengths = (1 - paddings).sum(dim=1).long().cpu()  # once: the LSTM's library needs them in host memory
        for recurrent in self.recurrent:
            y = recurrent(x, paddings, lengths)
            x = x + y if self.residual else y
        for feed_forward in self.feed_forward:
            y = feed_forward(x, paddings)
            x = x + y if self.residual else y
        return self.output(self.norm(x)), paddings
