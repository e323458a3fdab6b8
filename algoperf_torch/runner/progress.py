"""What a person sees while a trial runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.text import Text

from algoperf_torch.runner.status import Status
from algoperf_torch.spec import Split

if TYPE_CHECKING:
    from algoperf_torch.runner.build import Parts
    from algoperf_torch.runner.trial import Trial, TrialState


class Console:
    """Prints on rank 0: a line at the start, one for each evaluation, one at the end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._terms = parts.version.terms(parts.options.workload)
        self._out = RichConsole(highlight=False, soft_wrap=True)
        point = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in parts.hyperparameters.items()
        )
        self._out.print(
            f"[bold]{parts.options.workload}[/] · {parts.submission.name} · version {parts.version.name} · "
            f"study {parts.options.study}, trial {parts.options.trial} · {parts.ranks.world_size} x {parts.ranks.device.type}"
        )
        self._out.print(Text(f"  {point or 'no hyperparameters'}", style="dim"))

    def started(self, trial: Trial, laps: Mapping[str, float]) -> None:
        target = self._terms.validation
        sign = ">" if target.higher_is_better else "<"
        budget = trial.rules.budget
        limit = f"{budget.seconds:g} s" + (f" or {budget.steps} steps" if budget.steps else "")
        self._out.print(
            f"  ready in {sum(laps.values()):.1f} s (compiling {laps['warm_up']:.1f} s) · target validation/{target.metric} "
            f"{sign} {target.value:g} within {limit}"
        )

    def evaluation(self, state: TrialState, row: Mapping[str, float]) -> None:
        metric = self._terms.metric
        shown = [
            f"{split.prefix} {row[f'{split.prefix}/{metric}']:.4f}"
            for split in (Split.EVAL_TRAIN, Split.VALIDATION, Split.TEST)
            if f"{split.prefix}/{metric}" in row
        ]
        mark = "  [green]target reached[/]" if state.validation_step == row["global_step"] else ""
        when = f"step {int(row['global_step']):>7}  {row['score']:>9.2f} s"
        self._out.print(f"  {when}  {metric}: {'  '.join(shown)}{mark}")

    def ended(self, status: Status, trial: Trial | None, error: BaseException | None) -> None:
        directory = self._parts.place.directory
        if trial is not None and status is Status.REACHED:
            state = trial.state
            text = f"[green]reached[/] after {state.validation_seconds:.2f} s of submission time, {state.validation_step} steps"
        elif error is None:
            text = f"[yellow]{status.value}[/]: the target was not reached"
        else:
            text = f"[red]{status.value}[/]: {str(error).replace('[', chr(92) + '[')}"
        self._out.print(f"  {text}")
        self._out.print(Text(f"  logs: {directory}", style="dim"))

    def validity(self, section: Mapping[str, Any]) -> None:
        """The flags that were raised, if any."""
        for flag in section["flags"]:
            where = f"validity ({flag['severity']}), step {flag['step']}, rank {flag['rank']}"
            self._out.print(Text(f"  {where}: {flag['name']}: {flag['reason']}", style="yellow"))
