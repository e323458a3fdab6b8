"""Search spaces in the AlgoPerf grammar, their points, and hyperparameters given on the command line.

A search-space file is JSON, in one of two forms::

    {"learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"},      an object: name -> values;
     "beta1": {"feasible_points": [0.9, 0.95]}}                          points are drawn from it
    [{"learning_rate": 1e-3, "beta1": 0.9}, ...]                         an array: the points themselves, in this order

Points of an object are quasi-random (scrambled and shifted Halton), always the same for a space. AlgoPerf then
shuffles them with a generator that nobody seeds, so that two processes disagree about which point is the first; here
the order is the generated one, in every process. The set of the first n points is AlgoPerf's.

Where AlgoPerf guesses, this module refuses: an unknown scaling (there it means linear), a number written as a string,
values of one hyperparameter that are now a number and now a string, keys that differ between the points of an array.
"""

from __future__ import annotations

import ast
import json
import keyword
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.errors import HyperparameterError
from algoperf_torch.spec import Hyperparameters

SKIPPED_SAMPLES = 100  # the first samples of a Halton sequence are strongly correlated between dimensions


@dataclass(frozen=True)
class Choice:
    """One of a list of values."""

    values: tuple[Any, ...]

    def at(self, x: float) -> Any:
        """The value that belongs to x in [0, 1)."""
        return self.values[math.floor(x * len(self.values))]


@dataclass(frozen=True)
class Interval:
    """A number between two bounds."""

    minimum: float
    maximum: float
    scaling: Literal["log", "linear"]

    def at(self, x: float) -> float:
        """The value that belongs to x in [0, 1)."""
        if self.scaling == "log":
            return self.minimum * math.exp(x * math.log(self.maximum / self.minimum))
        return x * (self.maximum - self.minimum) + self.minimum


@dataclass(frozen=True)
class SearchSpace:
    """What a search-space file says: either `dimensions` to draw points from, or `listed` points."""

    dimensions: dict[str, Choice | Interval] | None = None
    listed: tuple[Hyperparameters, ...] = ()


# -------------------------------------------------------------------------------------------------------- points


def points(space: SearchSpace, n: int) -> list[Hyperparameters]:
    """The first `n` points; fewer where the space is an array of fewer. `points(s, n)` starts `points(s, n + 1)`."""
    if n < 1:
        raise HyperparameterError(f"{n} points of a search space were asked for. Ask for at least 1.")
    if space.dimensions is None:
        return list(space.listed[:n])
    rows = quasi_random(n, len(space.dimensions))
    return [
        Hyperparameters(
            {name: values.at(float(x)) for (name, values), x in zip(space.dimensions.items(), row, strict=True)}
        )
        for row in rows
    ]


def study_points(
    space: SearchSpace, *, draw: Literal["shared", "partitioned"], study: int, studies: int, trials: int, seed: int
) -> list[Hyperparameters]:
    """The points of study `study` (from 0): trial i takes the i-th; fewer than `trials` where the space has fewer.

    `shared` is how every published result was made: the first `trials` points, in order, in every study. `partitioned`
    is what the rules describe: `studies * trials` points split at random into studies (of an array with fewer points,
    each study draws its own without replacement); `seed`, the run seed, decides.
    """
    if draw == "shared":
        return points(space, trials)
    if not 0 <= study < studies:
        raise HyperparameterError(f"Study {study} does not exist; there are {studies}, numbered from 0.")
    pool = points(space, studies * trials)
    if len(pool) == studies * trials:
        order = np.random.default_rng(seed % 2**64).permutation(len(pool))
        chosen = order[study * trials : (study + 1) * trials]
    else:
        chosen = np.random.default_rng([seed % 2**64, study]).permutation(len(pool))[:trials]
    return [pool[index] for index in chosen]


def quasi_random(n: int, dimensions: int) -> NDArray[np.float64]:
    """Scrambled, shifted Halton points in [0, 1), float64 [n, dimensions].

    Dimension k counts in the k-th of the `dimensions` primes below the largest odd prime under 1000 (or 2000, ...).
    """
    columns = [_halton(n, base) for base in _bases(dimensions)]
    return np.stack(columns, axis=1) if columns else np.empty((n, 0))


def _bases(dimensions: int) -> list[int]:
    limit = 1000
    while len(primes := _odd_primes(limit)) < dimensions + 1:
        limit += 1000
    return primes[len(primes) - 1 - dimensions : -1]


def _odd_primes(limit: int) -> list[int]:
    return [n for n in range(3, limit, 2) if all(n % divisor for divisor in range(3, math.isqrt(n) + 1, 2))]


def _halton(n: int, base: int) -> NDArray[np.float64]:
    generator = np.random.RandomState(base)
    digits = list(range(1, base))
    generator.shuffle(digits)
    permutation = [0, *digits]
    shift = generator.uniform()
    values = np.empty(n)
    for row in range(n):
        index, scale, value = SKIPPED_SAMPLES + 1 + row, 1.0, 0.0
        while index:
            index, digit = divmod(index, base)
            scale /= base
            value += permutation[digit] * scale
        values[row] = math.fmod(value + shift, 1.0)
    return values


# -------------------------------------------------------------------------------------------------------- files


def load_search_space(path: str | Path) -> SearchSpace:
    """Reads a search-space file. Raises `HyperparameterError` that names the file, the key, and what to write."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HyperparameterError(f"Cannot read search space {path}: {error}.") from error
    return parse_search_space(text, str(path))


def parse_search_space(text: str, source: str = "") -> SearchSpace:
    """The search space of a JSON text; `source` names it in errors."""
    where = f"Search space {source}".rstrip()
    try:
        raw = json.loads(
            text,
            object_pairs_hook=lambda pairs: _object(pairs, where),
            parse_constant=lambda number: _finite(number, where),
            parse_float=lambda number: _finite(number, where),
        )
        if isinstance(raw, list):
            return SearchSpace(listed=_listed(raw, where))
        if isinstance(raw, dict) and raw:
            _check_names(raw, where)
            return SearchSpace(
                dimensions={name: _dimension(value, f"{where}, {name!r}") for name, value in raw.items()}
            )
    except (ValueError, RecursionError) as error:
        raise HyperparameterError(f"{where} is not JSON: {error}.") from error
    raise HyperparameterError(
        f"{where} is neither an object of value ranges nor an array of points. Write, for example, {_EXAMPLE}."
    )


_EXAMPLE = '{"learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"}}'


def _dimension(value: Any, where: str) -> Choice | Interval:
    if not isinstance(value, dict):
        raise HyperparameterError(
            f'{where} is {value!r}. Write {{"feasible_points": [...]}} or {{"min": ..., "max": ..., "scaling": "log"}}.'
        )
    if "feasible_points" in value:
        feasible = value["feasible_points"]
        if not isinstance(feasible, list) or not feasible:
            raise HyperparameterError(
                f"{where}: feasible_points is {feasible!r}. Write a list with at least one value."
            )
        _check_kinds(feasible, where)
        return Choice(tuple(_freeze(item) for item in feasible))
    for name in ("min", "max", "scaling"):
        if name not in value:
            raise HyperparameterError(
                f'{where}: {name!r} is missing. Write {{"min": ..., "max": ..., "scaling": "log" or "linear"}}.'
            )
    unknown = set(value) - {"min", "max", "scaling"}
    if unknown:
        raise HyperparameterError(f"{where}: unknown key {min(unknown)!r}. Known: min, max, scaling, feasible_points.")
    for name in ("min", "max"):
        if isinstance(value[name], bool) or not isinstance(value[name], int | float):
            raise HyperparameterError(f"{where}: {name} is {value[name]!r}. Write a number.")
    if value["scaling"] not in ("log", "linear"):
        raise HyperparameterError(f'{where}: scaling is {value["scaling"]!r}. Write "log" or "linear".')
    try:
        low, high = float(value["min"]), float(value["max"])
    except OverflowError:
        raise HyperparameterError(f"{where}: min or max is beyond double precision. Write a smaller number.") from None
    if low > high:
        raise HyperparameterError(f"{where}: min {low} is above max {high}. Swap them.")
    if value["scaling"] == "log" and low <= 0:
        raise HyperparameterError(
            f'{where}: min is {low}, but "log" needs numbers above 0. Write "linear" or raise min.'
        )
    if not math.isfinite(high / low if value["scaling"] == "log" else high - low):
        raise HyperparameterError(f"{where}: the range from {low} to {high} is beyond double precision. Narrow it.")
    return Interval(low, high, value["scaling"])


def _listed(entries: list[Any], where: str) -> tuple[Hyperparameters, ...]:
    if not entries:
        raise HyperparameterError(
            f'{where} is an empty array. Write at least one point, as in [{{"learning_rate": 1e-3}}].'
        )
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise HyperparameterError(f"{where}, point {number}: {entry!r} is not an object of names and values.")
        for name in sorted(set(entry) ^ set(entries[0])):
            verb = "lacks" if name in entries[0] else "alone has"
            raise HyperparameterError(f"{where}: point {number} {verb} {name!r}. Give all points the same names.")
    _check_names(entries[0], where)
    for name in entries[0]:
        _check_kinds([entry[name] for entry in entries], f"{where}, {name!r}")
    return tuple(Hyperparameters({name: _freeze(entry[name]) for name in entries[0]}) for entry in entries)


def _check_kinds(values: Sequence[Any], where: str) -> None:
    """Refuses numbers written as strings, and values of which some are numbers and others not. `null` goes with all."""
    for value in values:
        if isinstance(value, str) and _is_number(value):
            raise HyperparameterError(f"{where}: {value!r} is a string. Write the number without quotes.")
    kinds = {_kind(value): value for value in values if value is not None}
    if len(kinds) > 1:
        found = " and ".join(f"{kind} ({value!r})" for kind, value in kinds.items())
        raise HyperparameterError(f"{where}: values of different kinds, {found}. Write values of one kind.")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _freeze(value: Any) -> Any:
    """Lists become tuples: a point does not change, and equals itself when read back from `hparams.json`."""
    if isinstance(value, list):
        return tuple(_freeze(item) for item in value)
    return value


def _object(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise HyperparameterError(f"{where}: {name!r} is there twice. Remove one.")
        found[name] = value
    return found


def _finite(number: str, where: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise HyperparameterError(f"{where}: {number} is not a value. Write a finite number.")
    return value


def _check_names(names: Iterable[str], where: str) -> None:
    """Names become attributes, so they must be usable as such."""
    for name in names:
        if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name):
            raise HyperparameterError(f"{where}: {name!r} cannot be a name. Write, for example, 'weight_decay'.")


# -------------------------------------------------------------------------------------------------------- command line


def parse_hparams(assignments: Iterable[str]) -> Hyperparameters:
    """`["lr=1e-3", "betas=(0.9,0.99)", "nesterov=true", "mode=max"]` as a point.

    A value is a Python or JSON literal (number, string in quotes, tuple, list, true, false, null), or a bare word.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name, text = name.strip(), text.strip()
        if not equals or not name or not text:
            raise HyperparameterError(f"--hparams {assignment!r} is not an assignment. Write, for example, lr=1e-3.")
        if name in values:
            raise HyperparameterError(f"--hparams gives {name!r} twice. Remove one.")
        _check_names([name], f"--hparams {assignment!r}")
        values[name] = _literal(text, assignment)
    return Hyperparameters(values)


_WORDS = {"true": True, "false": False, "null": None}


def _literal(text: str, assignment: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's remarks on odd text; what it cannot read it refuses
            value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        if text.isidentifier() and not _is_number(text):  # a bare word, but neither `nan` nor `inf`
            return text
        raise HyperparameterError(
            f"--hparams {assignment!r}: cannot read the value. Write a number, a word, or a literal such as (0.9,0.99)."
        ) from None
    _check_literal(value, assignment)
    return _freeze(value)


def _check_literal(value: Any, assignment: str) -> None:
    if isinstance(value, list | tuple):
        for item in value:
            _check_literal(item, assignment)
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise HyperparameterError(
            f"--hparams {assignment!r}: {value!r} cannot be a value. Write a finite number, a word, or a list."
        )
