"""Points against the check values of the rules; every malformed space gets an error of ours."""

import contextlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf_torch.errors import HyperparameterError
from algoperf_torch.runner.search_space import (
    Choice,
    Interval,
    load_search_space,
    parse_hparams,
    parse_search_space,
    points,
    quasi_random,
    study_points,
)
from algoperf_torch.spec import Hyperparameters

FIRST_COLUMN = {  # first dimension of 5 rows, by number of dimensions
    1: [0.286124277284, 0.830019332783, 0.360796325720, 0.474822561845, 0.874418929151],
    2: [0.273974437265, 0.991166705831, 0.230230795353, 0.375703837062, 0.475398648862],
    3: [0.137146069645, 0.806542180187, 0.256900419696, 0.175017103422, 0.169899396154],
}

SEVEN_DIMENSIONS = {
    "learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"},
    "one_minus_beta1": {"min": 0.004, "max": 0.1, "scaling": "log"},
    "beta2": {"feasible_points": [0.999]},
    "warmup_factor": {"feasible_points": [0.05]},
    "weight_decay": {"min": 0.005, "max": 1.0, "scaling": "log"},
    "label_smoothing": {"feasible_points": [0.1, 0.2]},
    "dropout_rate": {"feasible_points": [0.0, 0.1]},
}


# ---------------------------------------------------------------- points


@pytest.mark.parametrize("dimensions", FIRST_COLUMN)
def test_quasi_random_check_values(dimensions):
    rows = quasi_random(5, dimensions)
    for column in range(dimensions):  # the last k dimensions are the same whatever their number
        expected = FIRST_COLUMN[dimensions - column]
        np.testing.assert_allclose(rows[:, column], expected, rtol=0, atol=5e-13)


def test_quasi_random_seven_dimensions():
    expected = [0.648493533118, 0.756572292322, 0.364141525912, 0.691447593355, 0.137146069645]
    np.testing.assert_allclose(quasi_random(1, 7)[0], [*expected, 0.273974437265, 0.286124277284], atol=5e-13)


def test_point_of_the_seven_dimensional_space():
    (point,) = points(parse_search_space(json.dumps(SEVEN_DIMENSIONS)), 1)
    assert dict(point) == {
        "learning_rate": 0.0019814680146414726,
        "one_minus_beta1": 0.045677535963609565,
        "beta2": 0.999,
        "warmup_factor": 0.05,
        "weight_decay": 0.010340635370188849,
        "label_smoothing": 0.1,
        "dropout_rate": 0.0,
    }


@pytest.mark.parametrize("dimensions", [1, 7, 166, 167, 200])
def test_more_dimensions_than_primes_below_1000(dimensions):
    rows = quasi_random(3, dimensions)
    assert rows.shape == (3, dimensions)
    assert ((rows >= 0) & (rows < 1)).all()
    assert len(np.unique(rows[0])) == dimensions


def test_more_points_extend_the_list_and_the_global_generator_is_left_alone():
    space = parse_search_space(json.dumps(SEVEN_DIMENSIONS))
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    assert points(space, 20)[:5] == points(space, 5)
    assert (np.random.get_state()[1] == before).all()


@given(st.floats(0, 1, exclude_max=True), st.floats(1e-30, 1e30), st.floats(1e-30, 1e30))
def test_intervals_stay_within_their_bounds(x, a, b):
    low, high = sorted((a, b))
    for scaling in ("log", "linear"):
        value = Interval(low, high, scaling).at(x)
        assert low * (1 - 1e-12) <= value <= high * (1 + 1e-12)
    assert Interval(low, high, "log").at(0.0) == low


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 50))
def test_choices_take_every_value_in_its_share(x, count):
    assert Choice(tuple(range(count))).at(x) == math.floor(x * count)


def test_array_gives_its_points_in_order():
    space = parse_search_space('[{"lr": 0.1, "b": 1}, {"b": 2, "lr": 0.2}, {"lr": 0.3, "b": 3}]')
    assert [point.lr for point in points(space, 2)] == [0.1, 0.2]
    assert [point.lr for point in points(space, 9)] == [0.1, 0.2, 0.3]
    assert list(points(space, 2)[1]) == ["lr", "b"]  # the first point's order


def test_no_points_are_no_request():
    with pytest.raises(HyperparameterError, match="Ask for at least 1"):
        points(parse_search_space('[{"lr": 1}]'), 0)


# ---------------------------------------------------------------- studies

SPACE = parse_search_space('{"lr": {"min": 0.1, "max": 1, "scaling": "linear"}}')


def test_official_studies_share_their_points():
    studies = [study_points(SPACE, draw="shared", study=j, studies=3, trials=5, seed=j) for j in range(3)]
    assert studies[0] == studies[1] == studies[2] == points(SPACE, 5)


def test_partitioned_studies_split_one_draw():
    studies = [study_points(SPACE, draw="partitioned", study=j, studies=3, trials=5, seed=7) for j in range(3)]
    assert [len(study) for study in studies] == [5, 5, 5]
    assert sorted(point.lr for study in studies for point in study) == sorted(point.lr for point in points(SPACE, 15))
    assert studies[0] == study_points(SPACE, draw="partitioned", study=0, studies=3, trials=5, seed=7)
    assert studies[0] != study_points(SPACE, draw="partitioned", study=0, studies=3, trials=5, seed=8)


def test_partitioned_studies_of_a_short_array_draw_without_replacement():
    space = parse_search_space(json.dumps([{"lr": number} for number in range(6)]))
    studies = [study_points(space, draw="partitioned", study=j, studies=3, trials=5, seed=-1) for j in range(3)]
    assert all(len({point.lr for point in study}) == 5 for study in studies)
    assert studies[0] != studies[1]


@pytest.mark.parametrize("study", [-1, 3])
def test_studies_that_do_not_exist(study):
    with pytest.raises(HyperparameterError, match=r"Study .* does not exist; there are 3"):
        study_points(SPACE, draw="partitioned", study=study, studies=3, trials=5, seed=0)


# ---------------------------------------------------------------- the grammar


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "Write, for example"),
        ("3", "neither an object of value ranges nor an array"),
        ("null", "neither an object"),
        ('"lr"', "neither an object"),
        ('{"lr": 3}', r"'lr' is 3\. Write"),
        ('{"lr": [1, 2]}', r"'lr' is \[1, 2\]"),
        ('{"lr": {"feasible_points": []}}', "at least one value"),
        ('{"lr": {"feasible_points": 0.1}}', "'lr': feasible_points is 0.1"),
        ('{"lr": {"feasible_points": [0.1, "0.2"]}}', "'lr': '0.2' is a string. Write the number without quotes"),
        ('{"lr": {"feasible_points": [0.1, true]}}', "different kinds, a number .* and a truth value"),
        ('{"lr": {"feasible_points": [NaN]}}', "NaN is not a value"),
        ('{"lr": {"feasible_points": [1e999]}}', "1e999 is not a value"),
        ('{"lr": {"min": 1, "max": 2}}', "'scaling' is missing"),
        ('{"lr": {"min": 1, "scaling": "log"}}', "'max' is missing"),
        ('{"lr": {"max": 1, "scaling": "log"}}', "'min' is missing"),
        ('{"lr": {"min": 1, "max": 2, "scaling": "Log"}}', "scaling is 'Log'. Write"),
        ('{"lr": {"min": "1", "max": 2, "scaling": "log"}}', "min is '1'. Write a number"),
        ('{"lr": {"min": 1, "max": true, "scaling": "log"}}', "max is True. Write a number"),
        ('{"lr": {"min": 1, "max": Infinity, "scaling": "log"}}', "Infinity is not a value"),
        ('{"lr": {"min": 0, "max": 2, "scaling": "log"}}', "numbers above 0"),
        ('{"lr": {"min": -1, "max": 2, "scaling": "log"}}', "numbers above 0"),
        ('{"lr": {"min": 3, "max": 2, "scaling": "log"}}', "min 3.0 is above max 2.0"),
        ('{"lr": {"min": 1, "max": 2, "scaling": "log", "step": 1}}', "unknown key 'step'"),
        ('{"lr": {"min": 5e-324, "max": 2, "scaling": "log"}}', "beyond double precision"),
        ('{"lr": {"min": 1, "max": 1%s, "scaling": "log"}}' % ("0" * 400), "beyond double precision"),
        ('{"lr": {"feasible_points": [1]}, "lr": {"feasible_points": [2]}}', "'lr' is there twice"),
        ('{"learning rate": {"feasible_points": [1]}}', "'learning rate' cannot be a name"),
        ('{"lambda": {"feasible_points": [1]}}', "'lambda' cannot be a name"),
        ('{"_values": {"feasible_points": [1]}}', "'_values' cannot be a name"),
        ("[]", "empty array"),
        ("[1]", "point 0: 1 is not an object"),
        ('[{"lr": 1}, 3]', "point 1: 3 is not an object"),
        ('[{"lr": 1}, {"b": 1}]', "point 1 alone has 'b'"),
        ('[{"lr": 1, "b": 2}, {"lr": 1}]', "point 1 lacks 'b'"),
        ('[{"lr": 1}, {"lr": "a"}]', "'lr': values of different kinds, a number .1. and a string .'a'."),
        ('[{"lr": "1e-3"}]', "Write the number without quotes"),
        ('[{"learning-rate": 1}]', "cannot be a name"),
    ],
)
def test_malformed_spaces(text, message):
    with pytest.raises(HyperparameterError, match=message):
        parse_search_space(text)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "tuning_search_space.json"
    with pytest.raises(HyperparameterError, match=r"Cannot read search space .*tuning_search_space\.json"):
        load_search_space(path)
    path.write_text('{"lr": {}}')
    with pytest.raises(HyperparameterError, match=r"tuning_search_space\.json, 'lr': 'min' is missing"):
        load_search_space(path)
    path.write_bytes(b"\xff")
    with pytest.raises(HyperparameterError, match="Cannot read search space"):
        load_search_space(path)


def test_values_of_any_json_type():
    text = (
        '{"a": {"feasible_points": [null, 1]}, "b": {"feasible_points": [[0.9, [1]]]}, '
        '"c": {"feasible_points": [{"x": 1}]}}'
    )
    point = points(parse_search_space(text), 1)[0]
    assert point.b == (0.9, (1,))
    assert point.c == {"x": 1}
    assert parse_search_space('{"a": {"feasible_points": ["sgd", "adam"], "min": 7}}').dimensions == {
        "a": Choice(("sgd", "adam"))  # discrete, whatever else it holds
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(["lr", "min", "max", "scaling", "feasible_points", "a b"]), children, max_size=4
        )
    ),
    max_leaves=12,
)
SPACES = st.dictionaries(
    st.sampled_from(["lr", "beta1", "b 2"]),
    st.fixed_dictionaries(
        {"min": st.floats() | st.integers(), "max": st.floats() | JSON, "scaling": st.sampled_from(["log", "linear"])}
    )
    | st.fixed_dictionaries({"feasible_points": st.lists(JSON)}),
)


@given(JSON | SPACES | st.lists(SPACES, max_size=3))
def test_any_json_is_a_space_or_an_error_of_ours(value):
    try:
        space = parse_search_space(json.dumps(value))
    except HyperparameterError:
        return
    for point in points(space, 3):
        assert isinstance(point, Hyperparameters)
        assert all(not isinstance(item, float) or math.isfinite(item) for item in point.values())


@given(st.text(alphabet='{}[]",:0123456789.eE+-minaxslogfeasible_points ', max_size=60))
def test_any_text_is_a_space_or_an_error_of_ours(text):
    with contextlib.suppress(HyperparameterError):
        parse_search_space(text)


# ---------------------------------------------------------------- the command line


def test_assignments():
    point = parse_hparams(
        [
            "lr=1e-3",
            "betas=(0.9, 0.99)",
            "wd = 0",
            "nesterov=true",
            "amsgrad=False",
            "mode=max",
            "x=null",
            "s='a b'",
            "l=[1,2]",
        ]
    )
    assert dict(point) == {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "wd": 0,
        "nesterov": True,
        "amsgrad": False,
        "mode": "max",
        "x": None,
        "s": "a b",
        "l": (1, 2),
    }
    assert type(point.wd) is int
    assert dict(parse_hparams([])) == {}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("lr", "not an assignment. Write, for example, lr=1e-3"),
        ("=3", "not an assignment"),
        ("lr=", "not an assignment"),
        ("lr=1e-3x", "cannot read the value"),
        ("lr=nan", "cannot read the value"),
        ("lr=1e999", "inf cannot be a value"),
        ("lr=(1e999,)", "inf cannot be a value"),
        ("lr={1,2}", "cannot be a value"),
        ("lr={[]:1}", "cannot read the value"),
        ("lr=b'x'", "cannot be a value"),
        ("lr=1+2j", "cannot be a value"),
        ("lr=open('x')", "cannot read the value"),
        ("lr=" + "(" * 5000, "cannot read the value"),
        ("learning-rate=1", "'learning-rate' cannot be a name"),
    ],
)
def test_bad_assignments(assignment, message):
    with pytest.raises(HyperparameterError, match=message):
        parse_hparams([assignment])


def test_a_name_is_given_once():
    with pytest.raises(HyperparameterError, match="'lr' twice"):
        parse_hparams(["lr=1", "lr=2"])


@given(st.text(max_size=30))
def test_any_assignment_is_a_point_or_an_error_of_ours(text):
    try:
        point = parse_hparams([f"x={text}"])
    except HyperparameterError:
        return
    json.dumps(dict(point))  # what is accepted can be recorded


def test_no_torch():
    code = "import sys, algoperf_torch.runner.search_space, algoperf_torch.runner.seeds; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
