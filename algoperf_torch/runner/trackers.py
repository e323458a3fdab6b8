"""Optional copies of the metrics for TensorBoard and Weights & Biases; the CSV files stay the record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from algoperf_torch.errors import UsageError
from algoperf_torch.runner.options import RunOptions


class Trackers:
    """Writes to what the options ask for. Raises `UsageError` where a package is missing."""

    def __init__(self, options: RunOptions, directory: Path) -> None:
        self._writer: Any = None
        self._wandb: Any = None
        if options.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UsageError("--tensorboard needs the package tensorboard. Run: pip install tensorboard") from error
            self._writer = SummaryWriter(log_dir=str(directory))
        if options.wandb:
            try:
                import wandb
            except ImportError as error:
                raise UsageError("--wandb needs the package wandb. Run: pip install wandb") from error
            offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
            self._wandb = wandb.init(
                project="algoperf",
                name="/".join(directory.parts[-4:]),
                dir=str(directory),
                mode="offline" if offline else None,
            )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        if self._wandb is not None:
            self._wandb.log(dict(row), step=step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()
