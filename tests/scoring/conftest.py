"""Writers of run directories, and a plain scorer to compare with: pandas and loops, straight from the rules."""

import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from algoperf_torch.spec import higher_is_better
from algoperf_torch.versions import load_version

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "official-logs"
SMALL = Path(__file__).parents[1] / "data" / "scoring" / "small.json"


@pytest.fixture(scope="session")
def official_logs():
    if not GOLDEN.is_dir():
        pytest.skip("the official logs are not beside the project (../shared/golden/official-logs)")
    return GOLDEN


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A generated set with the irregularities of real logs: the folder of its submissions, and expected values."""
    content = json.loads(SMALL.read_text())
    root = tmp_path_factory.mktemp("small")
    for path, text in content["files"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root, content["expected"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _write_trial(root, submission="alpha", study=0, workload="digits", trial=1, *, seconds=None, values=None, **more):
    """One trial directory. `values` are those of the target metric; `record` becomes trial.json; `files` are added."""
    version = load_version(more.get("version", "local"))
    metric = version.terms(workload).metric if workload in version.workloads else "accuracy"
    framework = more.get("framework", "pytorch")
    folder = Path(root) / submission / f"study_{study}" / f"{workload}_{framework}" / f"trial_{trial}"
    folder.mkdir(parents=True, exist_ok=True)
    if seconds is not None:
        steps = more.get("steps", [1 + 100 * i for i in range(len(seconds))])
        table = {
            "accumulated_submission_time": seconds,
            "global_step": steps,
            "score": seconds,
            f"test/{metric}": more.get("tests", values),
            f"validation/{metric}": values,
        }
        pd.DataFrame(table).to_csv(folder / "eval_measurements.csv", index=False)
    if "record" in more:
        (folder / "trial.json").write_text(json.dumps(more["record"]))
    for name, text in more.get("files", {}).items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def write_trial():
    return _write_trial


@pytest.fixture
def write_reached():
    """A trial that reaches its target at a time, or never (infinity), with two evaluations before."""

    def write(root, submission, study, workload, trial, at, version="local", **more):
        target = load_version(version).terms(workload).validation
        bad, good = (target.value * (factor if target.higher_is_better else 1 / factor) for factor in (0.5, 1.001))
        last = good if math.isfinite(at) else bad
        end = at if math.isfinite(at) else 50.0
        return _write_trial(
            root, submission, study, workload, trial,
            seconds=[end / 4, end / 2, end], values=[bad, bad, last], version=version, **more,
        )  # fmt: skip

    return write


@pytest.fixture
def own_record():
    def make(**changes):
        record = {
            "schema_version": 1,
            "status": "reached",
            "void": False,
            "version": "local",
            "ruleset": "external",
            "synthetic_data": False,
            "compile_policy": "prewarmed",
            "clock": "real",
            "options": {"model_scale": "full"},
            "seeds": {"run": 1, "trial": changes.pop("seed", 7)},
            "process": {"world_size": 2},
            "environment": {"gpus": [], "cpu": {"model": "Test CPU", "count": 2}},
            "validity": {"flags": []},
        }
        return {**record, **changes}

    return make


@pytest.fixture(scope="session")
def reference():
    """Times and scores of an official log directory by the rules of the official scorer, written as plainly as possible."""

    def score(root, version_name):
        version = load_version(version_name)
        base, held = list(version.base_workloads), list(version.held_out_workloads)
        columns = base + held
        names = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
        times = {name: {} for name in names}
        for name in names:
            for workload in columns:
                studies = []
                for study in sorted((Path(root) / name).glob("study_*")):
                    best = None
                    for path in sorted(study.glob(f"{workload}_*/trial_*/eval_measurements.csv"), key=_trial_number):
                        if path.parent.parent.name.rsplit("_", 1)[0] != workload:
                            continue
                        frame = pd.read_csv(path)
                        metric = version.terms(workload).metric
                        column = frame[f"validation/{metric}"]
                        target = version.terms(workload).validation_target
                        hit = column >= target if higher_is_better(metric) else column <= target
                        index = int(hit.idxmax()) if hit.any() else math.inf
                        time = float(frame["score"][index]) if hit.any() else math.inf
                        if best is None or index < best[0]:
                            best = index, time
                    if best is not None:
                        studies.append(best[1])
                times[name][workload] = statistics.median(studies) if studies else math.nan
        table = pd.DataFrame(times).T[columns]
        raw = table.copy()
        partner = {h: next(b for b in base if b in h) for h in held}
        for h in held:
            table.loc[~np.isfinite(table[partner[h]]), h] = math.inf
        for column in columns:
            fastest = table[column].min()
            table.loc[table[column] > 4 * fastest, column] = math.inf
        for h in held:
            table.loc[~np.isfinite(table[h]), partner[h]] = math.inf
        table = table[base].fillna(math.inf)
        ratios = pd.DataFrame(math.inf, index=table.index, columns=base)
        for column in base:
            if np.isfinite(table[column].min()):
                ratios[column] = table[column] / table[column].min()
        taus = np.linspace(1, 4, 100)
        rho = {name: [(ratios.loc[name] <= tau).sum() / len(base) for tau in taus] for name in names}
        scores = {name: float(np.trapezoid(values, taus) / 3) for name, values in rho.items()}
        return {"times": raw.T.to_dict(), "ratios": ratios.T.to_dict(), "scores": scores}

    return score


def _trial_number(path):
    return int(re.search(r"trial_(\d+)", str(path))[1])
