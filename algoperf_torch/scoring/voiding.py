"""Held-out workloads and the factor 4: which times on base workloads do not count."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.scoring.table import Floats

FACTOR = 4.0  # a submission that is slower than the fastest by more than this has not solved the workload


class Void(enum.IntEnum):
    """Why a base workload does not count for a submission."""

    NO = 0
    NOT_REACHED = 1
    NO_LOGS = 2
    TOO_SLOW = 3
    HELD_OUT_NOT_REACHED = 4
    HELD_OUT_TOO_SLOW = 5

    def explain(self, held_out: str = "") -> str:
        return {
            Void.NO: "",
            Void.NOT_REACHED: "target not reached",
            Void.NO_LOGS: "no runs",
            Void.TOO_SLOW: f"more than {FACTOR:g} times slower than the fastest",
            Void.HELD_OUT_NOT_REACHED: f"target of {held_out} not reached",
            Void.HELD_OUT_TOO_SLOW: f"on {held_out} more than {FACTOR:g} times slower than the fastest",
        }[self]


def void_times(times: Floats, num_base: int, partners: Sequence[int]) -> tuple[Floats, NDArray[np.int8]]:
    """Times on the base workloads after all rules.

    Args:
        times: [..., submission, workload], base workloads first, then held-out ones; NaN where there are no logs.
        num_base: number of base workloads.
        partners: for each held-out workload the index of its base workload.

    Returns:
        Times [..., submission, base workload] without NaN, and the `Void` code of each.

    The fastest time on a base workload is taken before held-out workloads void it, as in the official code: a submission
    that is voided itself can make another one too slow.
    """
    base, held = times[..., :num_base], times[..., num_base:]
    partner = np.asarray(partners, dtype=np.intp)
    void = np.where(np.isnan(base), Void.NO_LOGS, np.where(np.isinf(base), Void.NOT_REACHED, Void.NO)).astype(np.int8)

    held = np.where(np.isfinite(base[..., partner]), held, np.inf)
    base_late, held_late = _too_slow(base), _too_slow(held)
    void[base_late] = Void.TOO_SLOW
    base = np.where(base_late | np.isnan(base), np.inf, base)
    for index, column in enumerate(partner):
        still = np.isfinite(base[..., column])
        failed = ~np.isfinite(held[..., index])
        late = held_late[..., index]
        void[..., column] = np.where(still & late, Void.HELD_OUT_TOO_SLOW, void[..., column])
        void[..., column] = np.where(still & failed, Void.HELD_OUT_NOT_REACHED, void[..., column])
        base[..., column] = np.where(failed | late, np.inf, base[..., column])
    return base, void


def _too_slow(times: Floats) -> NDArray[np.bool_]:
    fastest = np.fmin.reduce(times, axis=-2, keepdims=True)  # ignores NaN
    return np.isfinite(times) & (times > FACTOR * fastest)
