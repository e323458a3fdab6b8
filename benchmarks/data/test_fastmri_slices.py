"""Slices of MRI volumes, masked, reconstructed and normalised: packed data against one HDF5 read for each slice.

One thread each. Run: `python -m pytest --benchmark-only benchmarks/data/test_fastmri_slices.py -s`.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from scipy import fft

from algoperf_torch.data.workers import Workers
from algoperf_torch.spec import Split
from algoperf_torch.workloads.fastmri.data import CROP, kept_columns
from algoperf_torch.workloads.fastmri.prepare import TRAIN_FOLDERS, prepare
from algoperf_torch.workloads.fastmri.synth import synthesise
from algoperf_torch.workloads.registry import build_workload

SLICES = 32
GOAL = 5.0


def test_training_slices(race, tmp_path: Path):
    raw = tmp_path / "raw"
    raw.mkdir()
    synthesise(raw, num_train=SLICES, seed=0)
    prepare(raw, tmp_path / "fastmri")
    workload = build_workload("fastmri", tmp_path)
    workload.open()
    workload.workers = Workers(0)
    make = workload.train_batches(seed=0, global_batch_size=SLICES, rank=0, world_size=1)
    draws = iter(range(1_000))

    def ours() -> None:
        make(next(draws))

    index = []
    for path in sorted((raw / TRAIN_FOLDERS[0]).glob("*.h5")):
        with h5py.File(path) as file:
            index += [(path, number) for number in range(len(file["kspace"]))]

    def peer() -> None:
        """As a data set of torch is commonly written for these files."""
        for place, (path, number) in enumerate(index):
            with h5py.File(path) as file:
                kspace, target = file["kspace"][number], file["reconstruction_esc"][number]
                float(file.attrs["max"])
            kspace = kspace * kept_columns(kspace.shape[1], (0, place))
            image = fft.fftshift(fft.ifft2(fft.ifftshift(kspace), norm="ortho"))
            top, left = ((size - CROP) // 2 for size in image.shape)
            magnitude = np.abs(image[top : top + CROP, left : left + CROP])
            mean, std = magnitude.mean(), magnitude.std()
            for picture in (magnitude, target):
                np.clip((picture - mean) / std, -6, 6)

    assert workload.packed.split(Split.TRAIN).num_examples == len(index) == SLICES
    assert race(ours, peer, unit="slices", work=SLICES) >= GOAL
