"""Log-mel features: one kernel from samples to windowed frames, a library's Fourier transform, one kernel to features."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch
from algoperf_torch.kernels.log_mel.reference import FFT_SIZE, FLOOR, HOP, PRE_EMPHASIS, SCALE

FRAMES = 4  # of a program of the first kernel
ROWS = 32  # frames of a program of the second kernel
DEPTH = 32  # frequencies that it holds at a time


def log_mel(
    audio: Tensor,
    paddings: Tensor,
    window: Tensor,
    mel: Tensor,
    mean: Tensor,
    std: Tensor,
    time_masks: Tensor | None = None,
    bin_masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As in `reference.py`, for contiguous tensors."""
    batch, samples = audio.shape
    num_frames, bins = (samples - len(window) - 1) // HOP + 1, mel.shape[1]
    frames = torch.empty(batch, num_frames, FFT_SIZE, device=audio.device)
    frame_paddings = torch.empty(batch, num_frames, device=audio.device)
    launch.launch(
        frames_kernel, (triton.cdiv(num_frames, FRAMES), batch), audio, paddings, window, frames, frame_paddings, samples,
        num_frames, len(window), SCALE, PRE_EMPHASIS, HOP=HOP, FFT_SIZE=FFT_SIZE, FRAMES=FRAMES, num_warps=4,
    )  # fmt: skip
    spectrum = torch.view_as_real(torch.fft.rfft(frames))
    features = torch.empty(batch, num_frames, bins, device=audio.device)
    launch.launch(
        features_kernel, (triton.cdiv(num_frames, ROWS), batch), spectrum, mel, mean, std, time_masks, bin_masks, features,
        num_frames, FFT_SIZE // 2 + 1, bins, *(masks.shape[1] if masks is not None else 0 for masks in (time_masks, bin_masks)),
        FLOOR, ROWS=ROWS, DEPTH=DEPTH, BINS=max(16, int(triton.next_power_of_2(bins))), num_warps=4,
    )  # fmt: skip
    return features, frame_paddings


@triton.jit
def frames_kernel(
    audio, paddings, window, frames, frame_paddings, samples, num_frames, length, scale, emphasis,
    HOP: tl.constexpr, FFT_SIZE: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    example = tl.program_id(1).to(tl.int64)
    frame = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    i = tl.arange(0, FFT_SIZE)
    valid = (frame < num_frames)[:, None]
    covered = valid & (i <= length)[None, :]
    inside = valid & ((i > 0) & (i < length))[None, :]  # the window is 0 at its first sample
    place = example * samples + frame[:, None] * HOP + i[None, :]
    padding = tl.load(paddings + place, mask=covered, other=1.0)
    x = tl.load(audio + place, mask=inside, other=0.0) * (1.0 - padding) * tl.cast(scale, tl.float32)
    padding_before = tl.load(paddings + place - 1, mask=inside, other=1.0)
    before = tl.load(audio + place - 1, mask=inside, other=0.0) * (1.0 - padding_before) * tl.cast(scale, tl.float32)
    w = tl.load(window + i, mask=i < length, other=0.0)
    y = tl.where(inside, (x - tl.cast(emphasis, tl.float32) * before) * w[None, :], 0.0)
    out = example * num_frames + frame
    tl.store(frames + out[:, None] * FFT_SIZE + i[None, :], y, mask=valid)
    tl.store(frame_paddings + out, tl.min(padding, axis=1), mask=frame < num_frames)


@triton.jit
def features_kernel(
    spectrum, mel, means, stds, time_masks, bin_masks, features, num_frames, frequencies, bins, num_time, num_bin, floor,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    example = tl.program_id(1).to(tl.int64)
    frame, b = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BINS)
    out = example * num_frames + frame
    energy = tl.zeros([ROWS, BINS], tl.float32)
    for start in range(0, frequencies, DEPTH):
        k = start + tl.arange(0, DEPTH)
        mask = (frame < num_frames)[:, None] & (k < frequencies)[None, :]
        place = spectrum + 2 * (out[:, None] * frequencies + k[None, :])
        re, im = tl.load(place, mask=mask, other=0.0), tl.load(place + 1, mask=mask, other=0.0)
        weight = tl.load(
            mel + k[:, None] * bins + b[None, :], mask=(k < frequencies)[:, None] & (b < bins)[None, :], other=0.0
        )
        energy = tl.dot(re * re + im * im, weight, energy, input_precision="tf32x3")
    mean, std = tl.load(means + b, mask=b < bins, other=0.0), tl.load(stds + b, mask=b < bins, other=1.0)
    value = (tl.log(tl.maximum(energy, tl.cast(floor, tl.float32))) - mean[None, :]) / std[None, :]
    if time_masks is not None:
        for number in range(num_time):
            mask = time_masks + (example * num_time + number) * 2
            first, size = tl.load(mask), tl.load(mask + 1)
            value = tl.where(((frame >= first) & (frame < first + size))[:, None], 0.0, value)
    if bin_masks is not None:
        for number in range(num_bin):
            mask = bin_masks + (example * num_bin + number) * 2
            first, size = tl.load(mask), tl.load(mask + 1)
            value = tl.where(((b >= first) & (b < first + size))[None, :], 0.0, value)
    tl.store(
        features + out[:, None] * bins + b[None, :], value, mask=(frame < num_frames)[:, None] & (b < bins)[None, :]
    )
