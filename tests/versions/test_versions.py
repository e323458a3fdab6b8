"""The numbers of every version against tables transcribed from the rules, and what the loader says of bad files."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from algoperf_torch.errors import UnknownNameError, UsageError
from algoperf_torch.spec import Ruleset
from algoperf_torch.versions import DEFAULT_VERSION, load_version, version_names
from algoperf_torch.workloads.registry import workload_spec

DATA = Path(__file__).parents[1] / "data" / "versions"
PUBLISHED = ("v0.5", "v0.6", "v1.0")
# The rules print four digits of this target; the published runs compared with 1 - 0.3481 in double precision.
EXACT_TEST_TARGETS = {"imagenet_vit": 1 - 0.3481, "imagenet_resnet": 1 - 0.3440}


def rows(name):
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


def case(row):
    return f"{row.get('version', '')}-{row['workload']}"


@pytest.mark.parametrize("row", rows("base_workloads.csv"), ids=case)
def test_base_workload_has_the_numbers_of_the_rules(row):
    terms = load_version(row["version"]).terms(row["workload"])
    assert terms.metric == row["metric"]
    assert terms.validation_target == float(row["validation_target"])
    exact = EXACT_TEST_TARGETS.get(row["workload"], float(row["test_target"]) if row["test_target"] else None)
    assert terms.test_target == exact
    assert terms.budget_seconds == float(row["budget_seconds"])
    assert terms.eval_period_seconds == float(row["eval_period_seconds"])
    assert terms.step_hint == int(row["step_hint"])
    assert terms.variant_of is None
    assert terms.eval_batch_size is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_base_workloads_are_listed_in_the_order_of_the_rules(name):
    listed = [row["workload"] for row in rows("base_workloads.csv") if row["version"] == name]
    assert list(load_version(name).base_workloads) == listed


@pytest.mark.parametrize("name", [*PUBLISHED, "local"])
@pytest.mark.parametrize("row", rows("variants.csv"), ids=case)
def test_variant_has_its_own_targets_and_the_rest_of_its_base(row, name):
    version = load_version(name)
    terms, base = version.terms(row["workload"]), version.terms(row["base"])
    assert terms.variant_of == row["base"]
    assert (terms.validation_target, terms.test_target) == (float(row["validation_target"]), float(row["test_target"]))
    assert terms.eval_batch_size == (int(row["eval_batch_size"]) if row["eval_batch_size"] else None)
    for key in ("metric", "budget_seconds", "eval_period_seconds", "step_hint"):
        assert getattr(terms, key) == getattr(base, key)


def test_there_are_no_other_workloads():
    variants = {row["workload"] for row in rows("variants.csv")}
    assert len(variants) == 24
    for name in PUBLISHED:
        base = {row["workload"] for row in rows("base_workloads.csv") if row["version"] == name}
        assert set(load_version(name).workloads) == base | variants


def test_held_out_workloads_of_the_first_competition_only():
    drawn = {row["workload"] for row in rows("variants.csv") if row["held_out_in_v0_5"] == "True"}
    assert set(load_version("v0.5").held_out_workloads) == drawn
    assert len(drawn) == 6
    assert all(load_version(name).held_out_workloads == () for name in ("v0.6", "v1.0", "local"))


@pytest.mark.parametrize(
    ("name", "studies", "multiplier", "matmul", "groups", "devices", "device", "driver"),
    [
        ("v0.5", 5, 3, "highest", 8, 8, "Tesla V100-SXM2-16GB", "535.104.05"),
        ("v0.6", 3, 1.5, "highest", 8, 8, "Tesla V100-SXM2-16GB", "550.90.12"),
        ("v1.0", 3, 1.5, "high", 4, 4, "NVIDIA A100-SXM4-40GB", "550.90.12"),
    ],
)
def test_studies_precision_and_hardware(name, studies, multiplier, matmul, groups, devices, device, driver):
    version = load_version(name)
    assert version.official
    assert version.score_over == "listed"
    assert version.tuning.studies == studies
    assert version.tuning.points == "shared"
    assert (version.num_trials(Ruleset.EXTERNAL), version.num_trials(Ruleset.SELF)) == (5, 1)
    assert version.budget_multiplier(Ruleset.SELF) == multiplier
    assert version.precision.float32_matmul == matmul
    assert version.protocol.batch_norm_groups == groups
    hardware = version.hardware
    assert (hardware.num_devices, hardware.device, hardware.driver) == (devices, device, driver)


def test_hardware_details_do_not_leak_between_versions():
    old, mid, new = (load_version(name).hardware for name in PUBLISHED)
    assert (old.num_cpus, mid.num_cpus, new.num_cpus) == (64, 32, 24)
    assert (old.memory_gib, mid.memory_gib, new.memory_gib) == (240, 240, 334)
    assert (old.device_memory_gib, mid.device_memory_gib, new.device_memory_gib) == (16, 16, 40)
    assert (old.python, mid.python, new.python) == (None, "3.11.10", "3.11.10")
    local = load_version("local").hardware
    assert all(value is None for value in vars(local).values())


def test_protocol_changed_after_the_first_competition():
    old = load_version("v0.5").protocol
    assert (old.prepare_hook, old.budget_check, old.late_evaluation) == (False, "every_step", True)
    for name in ("v0.6", "v1.0"):
        new = load_version(name).protocol
        assert (new.prepare_hook, new.budget_check, new.late_evaluation) == (True, "evaluation", False)
        assert new.step_limit_hints is None
    for name in PUBLISHED:
        protocol = load_version(name).protocol
        assert (protocol.stop_at, protocol.end_on_divergence, protocol.compile_policy) == ("both", False, "fresh")


def test_step_limit_is_the_hint_times_the_multiplier():
    version = load_version("v0.5")
    assert version.step_limit("wmt", Ruleset.EXTERNAL) == 133_333
    assert version.step_limit("wmt", Ruleset.SELF) == 3 * 133_333
    assert load_version("v0.6").step_limit("wmt", Ruleset.SELF) is None


def test_self_tuning_budgets():
    assert load_version("v0.5").budget_seconds("fastmri", Ruleset.SELF) == 3 * 8859
    assert load_version("v0.6").budget_seconds("fastmri", Ruleset.SELF) == 1.5 * 4430
    assert load_version("v0.6").budget_seconds("fastmri", Ruleset.EXTERNAL) == 4430


def test_local_is_the_default_and_ranks_any_subset():
    version = load_version(DEFAULT_VERSION)
    assert not version.official
    assert version.score_over == "present"
    assert version.base_workloads == tuple(version.workloads)
    assert set(version.workloads) == set(load_version("v1.0").workloads) | {"digits", "mnist", "cifar"}
    for name in load_version("v1.0").workloads:
        assert version.terms(name) == load_version("v1.0").terms(name)


def test_mini_is_the_benchmark_in_small():
    version, full = load_version("mini"), load_version("v1.0")
    assert (version.official, version.score_over, version.model_scale) == (False, "listed", "mini")
    assert (version.protocol.compile_policy, version.protocol.stop_at) == ("off", "validation")
    assert (version.tuning.studies, version.num_trials(Ruleset.EXTERNAL), version.tuning.points) == (3, 5, "shared")
    assert version.base_workloads == tuple(version.workloads)
    assert [name for name in full.base_workloads if name in version.workloads] == list(version.base_workloads)
    assert set(version.data) == {workload_spec(name).dataset for name in version.base_workloads}
    for name, terms in version.workloads.items():
        assert (terms.metric, terms.test_target is None) == (
            full.terms(name).metric,
            full.terms(name).test_target is None,
        )
        assert version.step_limit(name, Ruleset.EXTERNAL) == terms.step_hint
        assert 80 <= terms.budget_seconds / terms.eval_period_seconds <= 160
        assert terms.budget_seconds <= 300


def test_versions_that_publish_no_data_of_their_own():
    for name in (*PUBLISHED, "local"):
        version = load_version(name)
        assert (version.model_scale, version.data, version.protocol.compile_policy != "off") == ("full", {}, True)


@pytest.mark.parametrize(("name", "target", "hint", "budget"), [("mnist", 0.97, 7813, 60), ("cifar", 0.85, 4883, 3600)])
def test_development_workloads(name, target, hint, budget):
    terms = load_version("local").terms(name)
    assert (terms.metric, terms.validation_target, terms.test_target) == ("accuracy", target, target)
    assert (terms.step_hint, terms.budget_seconds) == (hint, budget)
    assert 20 <= terms.budget_seconds / terms.eval_period_seconds <= 200


def test_every_period_fits_into_its_budget_many_times():
    for name in version_names():
        for terms in load_version(name).workloads.values():
            assert terms.budget_seconds / terms.eval_period_seconds > 10


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'v0\.7'.*local, mini, v0\.5, v0\.6, v1\.0"):
        load_version("v0.7")
    with pytest.raises(UnknownNameError, match=r"workload of version v0\.6 'finewebedu_lm'.*criteo1tb"):
        load_version("v0.6").terms("finewebedu_lm")
    with pytest.raises(UsageError, match=r"No version file .*nowhere\.toml.*local"):
        load_version("nowhere.toml")


@pytest.mark.parametrize("name", ["", 'name = "v0.6"\n', 'name = "mini"\n'])
def test_own_version_needs_a_name_of_its_own(tmp_path, name):
    (tmp_path / "mine.toml").write_text(f'{name}inherits = "v0.6"\n')
    with pytest.raises(UsageError, match="is that of a built-in version"):
        load_version(tmp_path / "mine.toml")


def test_a_users_file_may_inherit_from_a_version_or_a_neighbour(tmp_path):
    (tmp_path / "short.toml").write_text('name = "short"\ninherits = "v0.6"\n[workloads.ogbg]\nbudget_seconds = 100\n')
    (tmp_path / "shorter.toml").write_text('name = "shorter"\ninherits = "short.toml"\nbase_workloads = ["ogbg"]\n')
    version = load_version(tmp_path / "shorter.toml")
    assert (version.name, version.base_workloads) == ("shorter", ("ogbg",))
    assert version.terms("ogbg").budget_seconds == 100
    assert version.terms("ogbg_gelu").budget_seconds == 100  # variants follow their base
    assert version.terms("wmt") == load_version("v0.6").terms("wmt")
    assert load_version("v0.6").terms("ogbg").budget_seconds == 12011


GOOD = """
name = "mine"
description = "a test"
official = false
base_workloads = ["a"]
[protocol]
prepare_hook = true
budget_check = "evaluation"
late_evaluation = false
stop_at = "both"
end_on_divergence = false
compile_policy = "fresh"
batch_norm_groups = 1
page_cache = "any"
[tuning]
studies = 1
external_trials = 1
self_tuning_multiplier = 1
[precision]
float32_matmul = "highest"
[workloads.a]
metric = "accuracy"
validation_target = 0.5
budget_seconds = 10
eval_period_seconds = 1
step_hint = 10
"""


def test_a_minimal_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    version = load_version(path)
    assert version.terms("a").test is None
    assert version.terms("a").validation.value == 0.5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[tuning]", "[tuning", "Cannot read version file"),
        ('name = "mine"', "name = 1", r"key 'name': 1 has the wrong type; expected str"),
        ('name = "mine"', "", "key 'name' is missing"),
        ('name = "mine"', 'name = "mine"\nlicence = 1', r"unknown key 'licence'\. Known: name, "),
        ("official = false", 'official = "no"', "key 'official'.*expected bool"),
        ("studies = 1", "studies = 1.5", r"\[tuning\], key 'studies': 1\.5.*expected int"),
        ("studies = 1", "studies = true", r"\[tuning\], key 'studies': True.*expected int"),
        ("studies = 1", "studies = 0", r"\[tuning\]: studies is 0; it must be positive"),
        ("studies = 1", "", r"\[tuning\]: key 'studies' is missing"),
        ("batch_norm_groups = 1", "batch_norm_groups = -1", r"\[protocol\]: batch_norm_groups is -1"),
        ('stop_at = "both"', 'stop_at = "test"', r"'test' is not allowed\. Must be one of: validation, both"),
        ('stop_at = "both"', "stop_at = ['both']", r"\['both'\] is not allowed"),
        ("[precision]\nfloat32_matmul", "[[precision]]\nfloat32_matmul", r"\[precision\]: expected a table, found \["),
        ("validation_target = 0.5", "validation_target = nan", "validation_target.*not a finite number"),
        ("validation_target = 0.5", 'validation_target = "0.5"', "'0.5' has the wrong type; expected float"),
        ("budget_seconds = 10", "budget_seconds = 0", r"\[workloads\.a\]: budget_seconds is 0"),
        ('metric = "accuracy"', 'metric = "acuracy"', r"\[workloads\.a\]: Unknown metric"),
        ('base_workloads = ["a"]', 'base_workloads = ["b"]', r"no table \[workloads\.b\]"),
        ('base_workloads = ["a"]', 'base_workloads = ["a", "a"]', "twice"),
        ('base_workloads = ["a"]', 'base_workloads = "a"', "not a list of names"),
        ('base_workloads = ["a"]', 'base_workloads = ["a"]\nworkloads.b = 3', r"b is 3\. Write tables"),
        ("[workloads.a]", "[data.b]\nseed = 1\n[workloads.a]", r"\[data\.b\]: key 'examples' is missing"),
        ("[workloads.a]", "[data.b]\nexamples = 0\n[workloads.a]", r"\[data\.b\]: examples is 0 and seed 0"),
        ("[workloads.a]", "[data.b]\nexamples = 1\nsettings = 3\n[workloads.a]", "settings is 3; write a table"),
        ("[workloads.a]", "[data]\nb = 3\n[workloads.a]", r"b is 3\. Write tables: \[data\.<dataset>\]"),
        (
            'name = "mine"',
            'name = "mine"\nmodel_scale = "big"',
            "'big' is not allowed. Must be one of: full, test, mini",
        ),
        ("[workloads.a]", "[workloads.a]\nvariant_of = 'b'", r"\[workloads\.a\]: variant_of = 'b'\. Write the name"),
        ("[workloads.a]", "[workloads.a]\nvariant_of = 'a'", r"variant_of = 'a'\. Write the name"),
        ("[workloads.a]", "[workloads.a]\nvariant_of = 7", r"variant_of = 7\. Write the name"),
        ('name = "mine"', 'name = "mine"\ninherits = "mine.toml"', "inherits from itself"),
        ('name = "mine"', 'name = "mine"\ninherits = "v9"', r"Unknown benchmark version 'v9'"),
        ('name = "mine"', 'name = "mine"\ninherits = "../other.toml"', r"No version file .*other\.toml"),
        ('name = "mine"', 'name = "mine"\ninherits = 6', "write inherits = "),
        ('name = "mine"', 'name = "mine"\ninherits = "v0.6"\nreplaces = "hardware"', "write inherits = "),
        ('name = "mine"', 'name = "mine"\ninherits = "v0.6"\nreplaces = ["clock"]', "replaces 'clock', which v0.6"),
    ],
)
def test_bad_files_are_refused_in_our_own_words(tmp_path, old, new, message):
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=message):
        load_version(path)


def test_files_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="Cannot read version file"):
        load_version(path)


def test_versions_need_no_heavy_import():
    code = (
        "import sys; from algoperf_torch.versions import load_version; load_version('v1.0');"
        "print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
