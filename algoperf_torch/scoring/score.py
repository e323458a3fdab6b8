"""`algoperf score`: from run directories to times to target, performance profiles, scores and a ranking."""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.scoring import profile, speedup, statistics, voiding
from algoperf_torch.scoring.cache import TableCache, open_cache
from algoperf_torch.scoring.logs import Flag, Logs, Problem, Severity, read_logs
from algoperf_torch.scoring.table import Floats, as_old_pandas
from algoperf_torch.scoring.times import Rule, StudyResult, StudyTimes, median_over_studies, study_times
from algoperf_torch.spec import Ruleset, Target
from algoperf_torch.versions import BenchmarkVersion, load_version, version_names


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Scores the submissions in run directories, together: a score depends on who else takes part."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of submissions, or single submissions: <submission>/study_<j>/<workload>_pytorch/trial_<i>."""
    version: str | None = None
    """Benchmark version: v0.5, v0.6, v1.0, mini, local, or a TOML file. Default: the one that the runs name."""
    ruleset: Literal["external", "self"] | None = None
    """Tuning ruleset. Default: the one that the runs name, or else external where they hold hparams.json."""
    rule: Literal["official", "documented"] = "official"
    """official: as the code behind the published tables; documented: as the written rules, void trials left out."""
    submissions: tuple[str, ...] = ()
    """Only these submissions. Default: all."""
    reference: str | None = None
    """Submission that speedups are relative to."""
    relative: bool = False
    """Take ratios to --reference instead of the fastest submission; changes profiles and scores."""
    bootstrap: int = 1000
    """Resampled benchmarks behind each interval; 0: no intervals."""
    strict: bool = False
    """Refuse damaged files, and sets that lack a workload, study or trial of the version."""
    mixed: bool = False
    """Rank runs of different hardware, versions or compile policies together."""
    json: Path | None = None
    """Write everything as JSON to this file; - for standard output instead of the tables."""
    csv: Path | None = None
    """Write tables in the layout of the official scorer to this directory."""
    cache: bool = True
    """Keep parsed logs in the user's cache directory, by their content, so that the next call is faster."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("No run directory given. Write, for example: algoperf score runs/")
        if self.bootstrap < 0:
            raise UsageError(f"--bootstrap {self.bootstrap}: must be 0 or a number of resampled benchmarks.")
        if self.relative and self.reference is None:
            raise UsageError("--relative needs --reference NAME.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Times, ratios and scores under one rule. Base workloads come before held-out ones."""

    rule: Rule
    studies: StudyTimes
    test_studies: StudyTimes
    num_base: int
    partners: tuple[int, ...]  # for each held-out workload the index of its base workload
    reference: int | None  # that ratios are relative to; None: the fastest

    @cached_property
    def times(self) -> Floats:
        """Median seconds to target before any voiding: [submission, workload]."""
        return median_over_studies(self.studies.seconds)

    @cached_property
    def steps(self) -> Floats:
        return median_over_studies(self.studies.steps)

    @cached_property
    def test_times(self) -> Floats:
        return median_over_studies(self.test_studies.seconds)

    @cached_property
    def _voided(self) -> tuple[Floats, NDArray[np.int8]]:
        return voiding.void_times(self.times, self.num_base, self.partners)

    @property
    def base_times(self) -> Floats:
        """Seconds on the base workloads after all rules, infinite where they do not count."""
        return self._voided[0]

    @property
    def void(self) -> NDArray[np.int8]:
        """`voiding.Void` codes: [submission, base workload]."""
        return self._voided[1]

    @cached_property
    def ratios(self) -> Floats:
        return profile.ratios(self.base_times, self.reference)

    @cached_property
    def scores(self) -> Floats:
        if self.rule is Rule.OFFICIAL:  # the published scores went through a CSV file, too
            return np.array([as_old_pandas(float(score)) for score in profile.official_score(self.ratios)])
        return profile.exact_score(self.ratios)

    @cached_property
    def ranks(self) -> NDArray[np.int_]:
        """1 for the highest score; equal scores share a rank."""
        better: NDArray[np.int_] = np.sum(self.scores[None, :] > self.scores[:, None], axis=1)
        return 1 + better

    def credits(self, times: Floats) -> Floats:
        """What each base workload adds to each score: from times [..., submission, workload] of all workloads."""
        base, _ = voiding.void_times(times, self.num_base, self.partners)
        credit = profile.official_credit if self.rule is Rule.OFFICIAL else profile.exact_credit
        return credit(profile.ratios(base, self.reference))


@dataclass(frozen=True, slots=True)
class Difference:
    """A time to target that the two rules see differently."""

    submission: str
    workload: str
    official: float
    documented: float
    why: str


@dataclass(frozen=True, slots=True)
class FlagCount:
    """A validity flag of some trials; the reason is that of one of them."""

    flag: Flag
    trials: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreResult:
    """Everything that the tables, the report and the JSON file show."""

    version: BenchmarkVersion
    ruleset: Ruleset
    rule: Rule
    logs: Logs
    submissions: tuple[str, ...]
    workloads: tuple[str, ...]  # base workloads first, then held-out ones
    num_base: int
    standings: Mapping[Rule, Standing]
    bootstrap: statistics.Bootstrap | None
    reference: str | None
    speedups: Floats | None  # [submission], relative to the reference
    differences: tuple[Difference, ...]
    flags: Mapping[tuple[str, str], tuple[FlagCount, ...]]  # by submission and workload
    incomplete: Mapping[
        tuple[str, str], tuple[str, ...]
    ]  # (submission, workload): studies that give no result, and why
    warnings: tuple[str, ...]

    @property
    def standing(self) -> Standing:
        return self.standings[self.rule]

    @property
    def base_workloads(self) -> tuple[str, ...]:
        return self.workloads[: self.num_base]

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.logs.problems

    @property
    def scores(self) -> dict[str, float]:
        return dict(zip(self.submissions, self.standing.scores.tolist(), strict=True))

    @property
    def times(self) -> dict[str, dict[str, float]]:
        """Median seconds to target: infinite where it was not reached, NaN where there are no logs."""
        return self.by_workload(self.standing.times)

    @property
    def ranking(self) -> list[int]:
        """Indices of the submissions, best score first."""
        return sorted(range(len(self.submissions)), key=lambda s: (-self.standing.scores[s], self.submissions[s]))

    @cached_property
    def intervals(self) -> tuple[Floats, Floats] | None:
        """Bounds of scores over studies, and over studies and workloads; None where there is nothing to resample."""
        return None if self.bootstrap is None else self.bootstrap.intervals(self.standing.scores)

    def by_workload(self, values: Floats) -> dict[str, dict[str, float]]:
        """[submission, workload] as nested dictionaries."""
        names = self.workloads[: values.shape[1]]
        return {
            name: dict(zip(names, row, strict=True))
            for name, row in zip(self.submissions, values.tolist(), strict=True)
        }

    def hardware(self, submission: int) -> str:
        """What the submission's trials ran on, as far as their records tell."""
        name = self.submissions[submission]
        records = (trial.record for trial in self.logs.trials if trial.submission == name)
        return ", ".join(sorted({value for record in records if (value := record.condition("hardware"))}))

    def why_void(self, submission: int, workload: int) -> str:
        """Why a base workload does not count for a submission; empty where it does."""
        partners = self.standing.partners
        held_out = next((self.workloads[self.num_base + h] for h, b in enumerate(partners) if b == workload), "")
        return voiding.Void(self.standing.void[submission, workload]).explain(held_out)


def score_runs(
    paths: Sequence[str | Path],
    version: str | Path | BenchmarkVersion | None = None,
    ruleset: Ruleset | str | None = None,
    rule: Rule | str = Rule.OFFICIAL,
    *,
    submissions: Sequence[str] = (),
    reference: str | None = None,
    relative: bool = False,
    bootstrap: int = 1000,
    strict: bool = False,
    mixed: bool = False,
    cache: TableCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreResult:
    """Reads run directories and scores the submissions in them; arguments as in `ScoreOptions` and `read_logs`.

    Raises:
        LogError: no submission is found, or the runs cannot be ranked together.
        UnknownNameError, UsageError: the version does not exist or cannot be read.
    """
    logs = read_logs(paths, cache=cache, progress=progress)
    return score_logs(
        logs.select(submissions) if submissions else logs,
        version,
        ruleset,
        rule,
        reference=reference,
        relative=relative,
        bootstrap=bootstrap,
        strict=strict,
        mixed=mixed,
    )


def score_logs(
    logs: Logs,
    version: str | Path | BenchmarkVersion | None = None,
    ruleset: Ruleset | str | None = None,
    rule: Rule | str = Rule.OFFICIAL,
    *,
    reference: str | None = None,
    relative: bool = False,
    bootstrap: int = 1000,
    strict: bool = False,
    mixed: bool = False,
) -> ScoreResult:
    """Scores logs that are read already; as `score_runs`."""
    rule = Rule(rule)
    warnings: list[str] = []
    if not logs.trials:
        raise LogError(f"No trials in {', '.join(map(str, logs.roots))}: there are studies, but nothing in them.")
    version = _version_of(logs, version, warnings, mixed=mixed)
    ruleset = _ruleset_of(logs, ruleset, warnings)
    _check_conditions(logs, version, warnings, mixed=mixed)
    warnings += difference_in_kernels(logs)
    logs = _check_workloads(logs, version)
    base, held_out = _scored_workloads(logs, version)
    workloads = base + held_out
    if strict:
        _require_complete(logs, version, ruleset, workloads)
    if reference is not None and reference not in logs.submissions:
        raise LogError(f"No submission {reference!r} to compare with. Present: {', '.join(logs.submissions)}.")
    reference_index = logs.submissions.index(reference) if reference is not None else None
    partners = tuple(base.index(_base_of(name, version)) for name in held_out)
    standings = {
        each: Standing(
            rule=each,
            studies=study_times(logs, version, workloads, ruleset=ruleset, rule=each),
            test_studies=study_times(logs, version, workloads, ruleset=ruleset, rule=each, split="test"),
            num_base=len(base),
            partners=partners,
            reference=reference_index if relative else None,
        )
        for each in Rule
    }
    standing = standings[rule]
    samples = None
    if bootstrap and np.max(np.sum(~np.isnan(standing.studies.seconds), axis=-1), initial=0) > 1:
        samples = statistics.bootstrap_scores(standing.studies.seconds, standing.credits, replicates=bootstrap)
    base_seconds = standing.studies.seconds[:, : len(base)]
    warnings += statistics.doubts(logs.submissions, standing.scores, base_seconds, samples)
    speedups = None
    if reference_index is not None:
        budgets = censoring_budgets(logs, version, ruleset, base)
        speedups = speedup.speedups(standing.times[:, : len(base)], reference_index, budgets)
    return ScoreResult(
        version=version,
        ruleset=ruleset,
        rule=rule,
        logs=logs,
        submissions=logs.submissions,
        workloads=workloads,
        num_base=len(base),
        standings=standings,
        bootstrap=samples,
        reference=reference,
        speedups=speedups,
        differences=tuple(_differences(standings[Rule.OFFICIAL], standings[Rule.DOCUMENTED], version)),
        flags=_flags(logs),
        incomplete=_incomplete(standings[Rule.DOCUMENTED].studies),
        warnings=tuple(warnings),
    )


def censoring_budgets(logs: Logs, version: BenchmarkVersion, ruleset: Ruleset, workloads: Sequence[str]) -> Floats:
    """Seconds per workload that a target not reached is charged with: the budget.

    Outside official versions runs may have had a budget of their own; then at least as long as any of them trained. Where
    such a version limits the steps, trials end long before the budget; then just as long as any of them trained.
    """
    budgets = {name: version.budget_seconds(name, ruleset) for name in workloads}
    if not version.official:
        trained: dict[str, float] = {}
        for trial in logs.trials:
            if trial.workload in budgets and len(trial.seconds):
                trained[trial.workload] = max(trained.get(trial.workload, 0.0), float(trial.seconds[-1]))
        limited = version.protocol.step_limit_hints is not None
        budgets |= {name: longest if limited else max(longest, budgets[name]) for name, longest in trained.items()}
    return np.array([budgets[name] for name in workloads])


# ---------------------------------------------------------------- what is scored, and whether it may be


def _version_of(
    logs: Logs, version: str | Path | BenchmarkVersion | None, warnings: list[str], *, mixed: bool
) -> BenchmarkVersion:
    named = sorted({name for trial in logs.trials if (name := trial.record.condition("version")) is not None})
    if version is None:
        if not named:
            raise LogError(
                "These logs do not say which benchmark version they belong to. Add --version v0.5, v0.6 or v1.0."
            )
        if len(named) > 1:
            raise LogError(
                f"These runs are of several versions: {', '.join(named)}. Score them apart, or add --version NAME --mixed."
            )
        version = named[0]
        if version not in version_names():
            raise LogError(
                f"These runs are of version {version!r}, which is not built in. Add --version FILE.toml, its file."
            )
    loaded = version if isinstance(version, BenchmarkVersion) else load_version(version)
    foreign = [name for name in named if name != loaded.name]
    if foreign and not mixed:
        raise LogError(
            f"Runs of version {', '.join(foreign)} cannot be scored as {loaded.name}: targets, budgets and clock differ. "
            "Leave --version out, or add --mixed."
        )
    if foreign:
        warnings.append(f"Runs of version {', '.join(foreign)} are scored with the targets of {loaded.name}.")
    return loaded


def _ruleset_of(logs: Logs, ruleset: Ruleset | str | None, warnings: list[str]) -> Ruleset:
    named = sorted({trial.record.ruleset for trial in logs.trials if trial.record.ruleset is not None})
    if ruleset is not None:
        other = sorted({t.submission for t in logs.trials if t.record.ruleset not in (None, str(Ruleset(ruleset)))})
        if other:
            warnings.append(
                f"Scored by the {Ruleset(ruleset).value} ruleset, but {_some(other)} ran under the other one: budgets, and "
                "how many trials a study has, are not theirs."
            )
        return Ruleset(ruleset)
    if len(named) > 1:
        raise LogError(f"These runs are of both rulesets: {', '.join(named)}. Score them apart, or add --ruleset NAME.")
    if named:
        if named[0] not in (Ruleset.EXTERNAL, Ruleset.SELF):
            raise LogError(f"Unknown ruleset {named[0]!r} in the runs. Must be one of: external, self.")
        return Ruleset(named[0])
    tuned = any(trial.has_hyperparameters or trial.number > 1 for trial in logs.trials)
    return Ruleset.EXTERNAL if tuned else Ruleset.SELF


def _check_conditions(logs: Logs, version: BenchmarkVersion, warnings: list[str], *, mixed: bool) -> None:
    """Runs that differ in hardware or in how they were made are not ranked together."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for trial in logs.trials:
        for name, value in trial.record.conditions:
            found[name][value].add(trial.submission)
    for name, values in found.items():
        if name == "model scale" and (other := sorted(set(values) - {version.model_scale})):
            warnings.append(
                f"Runs with --model-scale {', '.join(other)}: version {version.name} has {version.model_scale} models; these "
                "times mean nothing and are not to be ranked."
            )
        if len(values) < 2:
            continue
        listed = "; ".join(f"{value} ({_some(sorted(who))})" for value, who in sorted(values.items()))
        if not mixed:
            raise LogError(
                f"These runs differ in {name}, so their times cannot be compared: {listed}. Score them apart, or add --mixed."
            )
        warnings.append(f"Ranked together although they differ in {name}: {listed}.")


def difference_in_kernels(logs: Logs) -> list[str]:
    """A sentence where times differ by the implementation of an update as well as by the algorithm; else nothing."""
    found: dict[str, set[str]] = defaultdict(set)
    for trial in logs.trials:
        if trial.record.kernels is not None:
            found[trial.record.kernels].add(trial.submission)
    if len(found) < 2:
        return []
    listed = "; ".join(f"{kernels} ({_some(sorted(who))})" for kernels, who in sorted(found.items()))
    return [
        f"Not all ran on the same kernels: {listed}. A part of the difference in time may be the implementation; "
        "run all with --kernels reference to leave it out."
    ]


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _check_workloads(logs: Logs, version: BenchmarkVersion) -> Logs:
    """Notes workloads that the version does not have; files without the target metric count as damaged."""
    problems, trials = list(logs.problems), []
    for name in logs.workloads:
        if name not in version.workloads:
            message = f"ignored: version {version.name} has no such workload"
            problems.append(Problem(f"workload {name}", message, Severity.IRREGULAR))
    for trial in logs.trials:
        terms = version.workloads.get(trial.workload)
        column = f"validation/{terms.metric}" if terms else ""
        if terms and trial.evaluations is not None and column not in trial.evaluations:
            message = f"has no column {column!r}; columns: {', '.join(trial.evaluations.columns)[:200]}"
            problems.append(Problem(str(trial.path), message, Severity.DAMAGED))
            trial = replace(trial, evaluations=None, unusable=message)
        trials.append(trial)
    return Logs(tuple(trials), tuple(problems), logs.roots)


def _scored_workloads(logs: Logs, version: BenchmarkVersion) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Base and held-out workloads of the score, in the version's order."""
    present = set(logs.workloads)
    base, held_out = version.base_workloads, version.held_out_workloads
    if version.score_over == "present":
        base = tuple(name for name in base if name in present)
        held_out = tuple(name for name in held_out if name in present and _base_of(name, version) in base)
    if not present.intersection(base):
        raise LogError(
            f"None of the workloads in these runs ({_some(logs.workloads)}) counts for the score of version {version.name}: "
            f"{', '.join(version.base_workloads)}."
        )
    return base, held_out


def _base_of(held_out: str, version: BenchmarkVersion) -> str:
    """The base workload that a held-out one belongs to."""
    named = version.terms(held_out).variant_of
    if named in version.base_workloads:
        return named
    for name in version.base_workloads:
        if name in held_out:
            return name
    raise UsageError(f"Version {version.name}: held-out workload {held_out} is a variant of no base workload.")


def _require_complete(logs: Logs, version: BenchmarkVersion, ruleset: Ruleset, workloads: Sequence[str]) -> None:
    """Raises `LogError` for damaged files, and for anything that the version asks for and is not there."""
    damaged = [str(problem) for problem in logs.problems if problem.severity is Severity.DAMAGED]
    if damaged:
        raise LogError(f"--strict: {len(damaged)} damaged: " + "; ".join(damaged[:10]) + ".")
    counts = Counter(
        (trial.submission, trial.workload, trial.study) for trial in logs.trials if trial.evaluations is not None
    )
    studies, trials = range(version.tuning.studies), version.num_trials(ruleset)
    missing = [
        f"{submission}, {workload}, study {study}: {counts[submission, workload, study]} of {trials} trials"
        for submission in logs.submissions
        for workload in workloads
        for study in studies
        if counts[submission, workload, study] != trials
    ]
    if missing:
        listed = "; ".join(missing[:10])
        raise LogError(f"--strict: {len(missing)} studies do not have the trials of version {version.name}: {listed}.")


# ---------------------------------------------------------------- what is told beside the score


def _flags(logs: Logs) -> dict[tuple[str, str], tuple[FlagCount, ...]]:
    """Flags of one name together, whatever their reasons (each rank of a trial may raise its own); a void one is shown."""
    found: dict[tuple[str, str], dict[str, FlagCount]] = defaultdict(dict)
    for trial in logs.trials:
        told = found[trial.submission, trial.workload]
        for name in dict.fromkeys(flag.name for flag in trial.record.flags):
            before = told.get(name)
            flags = [flag for flag in trial.record.flags if flag.name == name]
            gravest = max([before.flag, *flags] if before else flags, key=lambda flag: flag.severity == "void")
            told[name] = FlagCount(gravest, 1 + (before.trials if before else 0))
    return {key: tuple(flags.values()) for key, flags in found.items() if flags}


def _incomplete(documented: StudyTimes) -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (submission, workload, study), result in documented.results.items():
        if math.isnan(result.seconds):
            found[submission, workload].append(f"study {study}, {result.why}")
    return {key: tuple(reasons) for key, reasons in found.items()}


def _differences(official: Standing, documented: Standing, version: BenchmarkVersion) -> Iterator[Difference]:
    for s, submission in enumerate(official.studies.submissions):
        for w, workload in enumerate(official.studies.workloads):
            times = float(official.times[s, w]), float(documented.times[s, w])
            reasons: dict[str, list[str]] = defaultdict(list)
            for study in sorted({*official.studies.studies, *documented.studies.studies}):
                results = [rule.studies.results.get((submission, workload, study)) for rule in (official, documented)]
                if why := _why_different(results[0], results[1], version.terms(workload).validation):
                    reasons[why].append(str(study))
            if reasons and not _same(*times):
                told = "; ".join(
                    f"{_plural('study', 'studies', who)} {', '.join(who)}: {why}" for why, who in reasons.items()
                )
                yield Difference(submission, workload, *times, told)


def _plural(one: str, many: str, items: Sequence[object]) -> str:
    return one if len(items) == 1 else many


def _same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == b or math.isclose(a, b, rel_tol=1e-12)


def _why_different(official: StudyResult | None, documented: StudyResult | None, target: Target) -> str | None:
    if official is None or documented is None:
        return "beyond the version's number of studies, counted by the official rule only" if official else "no trials"
    if _same(official.seconds, documented.seconds):
        return None
    if math.isnan(documented.seconds):
        return f"no result by the documented rule, {documented.why}"
    if math.isnan(official.seconds):
        return f"{official.why}, so the official rule does not count it; documented: target not reached"
    if documented.why and documented.trial is not official.trial:
        return documented.why
    if _ends_on_target(official, target):
        return f"the {target.metric} equals the target, which is enough for the official rule only"
    if official.trial is None or documented.trial is None or official.row is None or documented.row is None:
        return "the target was reached beyond the budget"
    return (
        f"the official rule takes trial {official.trial.number} for its evaluation {official.row + 1} "
        f"({official.seconds:.0f} s); trial {documented.trial.number} was faster ({documented.seconds:.0f} s, "
        f"evaluation {documented.row + 1})"
    )


def _ends_on_target(result: StudyResult, target: Target) -> bool:
    if result.trial is None or result.trial.evaluations is None or result.row is None:
        return False
    return bool(result.trial.evaluations.get(f"validation/{target.metric}")[result.row] == target.value)


def to_json(result: ScoreResult) -> dict[str, Any]:
    """The result as plain JSON values: no infinity, no NaN; null where there is no number."""
    names, standing = result.submissions, result.standing
    other = {rule.value: dict(zip(names, each.scores.tolist(), strict=True)) for rule, each in result.standings.items()}
    intervals = result.intervals
    content: dict[str, Any] = {
        "scores": result.scores,
        "times": result.times,
        "version": result.version.name,
        "ruleset": result.ruleset.value,
        "rule": result.rule.value,
        "base_workloads": list(result.base_workloads),
        "held_out_workloads": list(result.workloads[result.num_base :]),
        "ranks": dict(zip(names, standing.ranks.tolist(), strict=True)),
        "fraction_solved": dict(zip(names, np.isfinite(standing.base_times).mean(axis=1).tolist(), strict=True)),
        "scores_by_rule": other,
        "steps": result.by_workload(standing.steps),
        "test_times": result.by_workload(standing.test_times),
        "ratios": result.by_workload(standing.ratios),
        "not_counted": {
            name: {w: why for i, w in enumerate(result.base_workloads) if (why := result.why_void(s, i))}
            for s, name in enumerate(names)
        },
        "profile": {
            "tau": profile.taus().tolist(),
            "rho": dict(zip(names, profile.profile(standing.ratios, profile.taus()).tolist(), strict=True)),
        },
        "intervals": None
        if intervals is None
        else {
            name: {"studies": a, "studies_and_workloads": b}
            for name, a, b in zip(names, intervals[0].tolist(), intervals[1].tolist(), strict=True)
        },
        "rank_shares": None
        if result.bootstrap is None
        else dict(zip(names, result.bootstrap.rank_shares().tolist(), strict=True)),
        "reference": result.reference,
        "speedups": None if result.speedups is None else dict(zip(names, result.speedups.tolist(), strict=True)),
        "differences": [
            {
                "submission": d.submission,
                "workload": d.workload,
                "official": d.official,
                "documented": d.documented,
                "why": d.why,
            }
            for d in result.differences
        ],
        "incomplete": _nested(result.incomplete, list),
        "flags": _nested(
            result.flags,
            lambda flags: [
                {
                    "name": each.flag.name,
                    "reason": each.flag.reason,
                    "severity": each.flag.severity,
                    "trials": each.trials,
                }
                for each in flags
            ],
        ),
        "warnings": list(result.warnings),
        "problems": [
            {"path": p.path, "message": p.message, "severity": p.severity.name.lower()} for p in result.problems
        ],
    }
    plain: dict[str, Any] = _finite(content)
    return plain


def _nested(values: Mapping[tuple[str, str], Any], convert: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = defaultdict(dict)
    for (submission, workload), value in values.items():
        nested[submission][workload] = convert(value)
    return dict(nested)


def _finite(value: Any) -> Any:
    """Nested values with None in place of infinity and NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------- the command


def main(options: ScoreOptions) -> int:
    """Prints the tables and writes the files that were asked for. Raises `LogError` and `UsageError`."""
    from algoperf_torch.scoring import output, terminal

    with reading_progress() as progress, open_cache() if options.cache else nullcontext() as cache:
        result = score_runs(
            options.runs,
            options.version,
            options.ruleset,
            options.rule,
            submissions=options.submissions,
            reference=options.reference,
            relative=options.relative,
            bootstrap=options.bootstrap,
            strict=options.strict,
            mixed=options.mixed,
            cache=cache,
            progress=progress,
        )
    if options.csv is not None:
        output.write_csv(result, options.csv)
    if options.json is not None:
        output.write_json(to_json(result), options.json)
    if options.json != Path("-"):
        terminal.print_result(result)
    return 0


@contextmanager
def reading_progress(label: str = "reading trials") -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on the error stream, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            if done % 50 == 0 or done == total:
                bar.update(task, completed=done, total=total)

        yield update
