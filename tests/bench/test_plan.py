import dataclasses
from itertools import groupby

import pytest

from glip_adapt.bench.plan import BenchPlan, ProtocolConfig, RunKey, check_plan
from glip_adapt.core.config import from_mapping, read_toml

METHODS = ("zero_shot", "prompt", "linear_probe", "full", "text_encoder")
TRUNKS = ("glip-nano", "glip-t")
SUITES = {"odinw13": tuple(f"odinw/set{index}" for index in range(13))}


@pytest.fixture
def load(tmp_path):
    def write_and_load(text):
        file = tmp_path / "plan.toml"
        file.write_text(text)
        plan = from_mapping(BenchPlan, read_toml(file), str(file))
        return check_plan(plan, str(file), methods=METHODS, trunks=TRUNKS, suites=SUITES)

    return write_and_load


def test_empty_file_is_the_full_protocol_of_585_runs_and_13_zero_shot(load):
    keys = load("").keys()
    assert len(keys) == 598
    assert sum(key.method != "zero_shot" for key in keys) == 585  # 13 sets × 5 shots × 3 methods × 3 seeds
    assert len({key.name for key in keys}) == 598


def test_small_plan_expands_by_hand(load):
    keys = load(
        'trunks = ["glip-t"]\ndatasets = ["x/a", "b"]\nmethods = ["prompt", "full"]\nshots = [0, 1]\nseeds = [3, 30]'
    ).keys()
    assert [key.name for key in keys] == [
        "glip-t--a--zero_shot--0--3",
        "glip-t--a--prompt--1--3",
        "glip-t--a--full--1--3",
        "glip-t--a--prompt--1--30",
        "glip-t--a--full--1--30",
        "glip-t--b--zero_shot--0--3",
        "glip-t--b--prompt--1--3",
        "glip-t--b--full--1--3",
        "glip-t--b--prompt--1--30",
        "glip-t--b--full--1--30",
    ]
    assert keys[0].dataset == "x/a"


def test_same_trunk_and_dataset_are_adjacent(load):
    plan = load('trunks = ["glip-t", "glip-nano"]\ndatasets = ["a", "b"]')
    blocks = [block for block, _ in groupby(plan.keys(), key=lambda key: (key.trunk, key.dataset))]
    assert blocks == [("glip-t", "a"), ("glip-t", "b"), ("glip-nano", "a"), ("glip-nano", "b")]


@pytest.mark.parametrize(
    ("methods", "shots", "expected"),
    [
        (("prompt",), (1,), ["prompt--1"]),
        (("zero_shot",), (1, 5), ["zero_shot--0"]),
        (("zero_shot", "prompt"), (0,), ["zero_shot--0"]),
        (("prompt",), (0, "all"), ["zero_shot--0", "prompt--all"]),
    ],
)
def test_zero_shot_is_planned_once_and_only_when_asked_for(methods, shots, expected):
    keys = BenchPlan(datasets=("a",), methods=methods, shots=shots, seeds=(3, 30)).keys()
    assert [key.name for key in keys if key.seed == 3] == [f"glip-t--a--{name}--3" for name in expected]
    assert not [key for key in keys if key.seed == 30 and key.method == "zero_shot"]


def test_suites_are_spelled_out_among_other_entries(load):
    plan = load('datasets = ["mine/own", "odinw13"]')
    assert plan.datasets == ("mine/own", *SUITES["odinw13"])


@pytest.mark.parametrize("entry", ["odinw/Raccoon", "/data/odinw/Raccoon", "../odinw/Raccoon/", "Raccoon"])
def test_dataset_is_named_by_its_last_folder_and_kept_as_given(entry):
    key = RunKey("glip-t", entry, "prompt", 5, 3)
    assert (key.dataset, key.dataset_name, key.name) == (entry, "Raccoon", "glip-t--Raccoon--prompt--5--3")


@pytest.mark.parametrize("entry", ["..", ".", "", "a:b", "a?b", "a\\b", "a--b", ".hidden", "end.", "line\nbreak"])
def test_dataset_that_cannot_name_a_folder_is_refused(entry):
    with pytest.raises(ValueError, match="cannot name a run"):
        RunKey("glip-t", entry, "prompt", 5, 3)


def test_plain_names_with_spaces_and_letters_are_accepted():
    name = RunKey("glip-t", "sets/North American Mushrooms.v1-416é", "prompt", 5, 3).name
    assert name == "glip-t--North American Mushrooms.v1-416é--prompt--5--3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shot = [1]", "unknown key 'shot' (did you mean 'shots'?)"),
        ("shots = [-1]", "shots: -1 is negative"),
        ('shots = ["al"]', "shots, entry 1: expected a whole number or 'all', got 'al'"),
        ("shots = [1, 5, 1]", "shots: 1 is listed twice"),
        ("seeds = [-3]", "seeds: -3 is negative"),
        ("seeds = []", "seeds: the list is empty"),
        ("datasets = []", "datasets: the list is empty"),
        ('datasets = ["x/a", "y/a"]', "datasets: 'a' is listed twice"),
        ('datasets = ["odinw13", "set4"]', "datasets: 'set4' is listed twice"),
        ('datasets = ["a*b"]', "'*' is not safe"),
        ('methods = ["promt"]', "methods: unknown 'promt' (did you mean 'prompt'?)"),
        ('trunks = ["glip-x"]', "trunks: unknown 'glip-x' (did you mean 'glip-t'?)"),
        ("[fit.promt]\nrate = 1", "fit: unknown 'promt' (did you mean 'prompt'?)"),
        ("[fit.compositon]\ncrop = 1", "fit: unknown 'compositon' (did you mean 'compositions'?)"),
        ("[fit]\nprompt = 1", "fit: 'prompt' is a method"),
        ("[settings.promt]\nrank = 1", "settings: unknown 'promt' (did you mean 'prompt'?)"),
        ('[protocol]\ntest_split = "train"', "protocol, test_split: expected 'test' or 'val'"),
        ("threads = 0", "threads: 0 is no number of threads"),
        ('datasets = ["a"]\n[protocol]\nretention = ["b"]', "protocol, retention: unknown 'b'; valid are 'a'"),
        ("[protocol]\nviews = {sizes = [16]}", "protocol, views: Sizes and tiles of views have at least 32 pixels"),
        ("[protocol]\nviews = {flips = true}", "protocol, views: unknown key 'flips' (did you mean 'flip'?)"),
        (
            '[protocol]\nselection = "first"',
            "selection: expected 'best_on_val' or 'best_on_few_val' or",
        ),
        ('[checkpoints]\n"glip-l" = "x.pth"', "checkpoints: unknown 'glip-l'"),
        ('[checkpoints]\n"glip-t" = "nowhere.pth"', "checkpoints, glip-t: there is no file or folder 'nowhere.pth'"),
    ],
)
def test_bad_plan_names_file_key_and_entry(load, tmp_path, text, message):
    with pytest.raises(ValueError) as caught:
        load(text)
    assert str(caught.value).startswith(str(tmp_path / "plan.toml"))
    assert message in str(caught.value)


def test_method_table_stands_on_top_of_shared_settings(load, tmp_path):
    weights = tmp_path / "glip.pth"
    weights.touch()
    plan = load(
        'datasets = ["a"]\n[fit]\nrate = 1.0\nbatch = 4\n[fit.prompt]\nrate = 0.05\n[fit.full]\ndecay = 0.1\n'
        f'[fit.text_encoder]\nrate = 9.0\n[checkpoints]\n"glip-t" = "{weights}"\n[protocol]\nprompts = "official"'
    )
    keys = plan.keys()
    configs = {key.method: plan.config_of(key) for key in keys}
    assert configs["prompt"]["fit"] == {"rate": 0.05, "batch": 4}
    assert configs["full"]["fit"] == {"rate": 1.0, "batch": 4, "decay": 0.1}
    assert configs["zero_shot"]["fit"] == configs["linear_probe"]["fit"] == {"rate": 1.0, "batch": 4}
    assert configs["prompt"]["checkpoint"] == str(weights)
    assert configs["prompt"]["protocol"] == {
        "test_split": "test", "prompts": "official", "few_shot_source": "official", "selection": "best_on_val",
        "folds": 3, "backgrounds": 0, "negatives": [], "kept_features": "float32",
        "annotation_ids": "renumbered", "retention": [], "views": None,
    }  # fmt: skip


def test_a_setting_that_is_a_table_is_shared_or_of_one_method_like_the_others(load):
    plan = load(
        'datasets = ["a"]\n[fit]\nfactors = [0.5]\n[fit.compositions]\ncrop = 0.5\n'
        "[fit.full.compositions]\npaste = 1.0\n[fit.prompt]\nepochs = 3"
    )
    keys = plan.keys()
    configs = {key.method: plan.config_of(key)["fit"] for key in keys}
    assert configs["linear_probe"] == {"factors": [0.5], "compositions": {"crop": 0.5}}
    assert configs["prompt"] == {"factors": [0.5], "compositions": {"crop": 0.5}, "epochs": 3}
    assert configs["full"] == {"factors": [0.5], "compositions": {"paste": 1.0}}


def test_settings_of_a_method_are_its_own(load):
    plan = load('datasets = ["a"]\n[settings.prompt]\nrank = 4\n[settings.full]')
    keys = plan.keys()
    configs = {key.method: plan.config_of(key) for key in keys}
    assert configs["prompt"]["settings"] == {"rank": 4}
    assert all(config["settings"] == {} for method, config in configs.items() if method != "prompt")


def test_retention_names_datasets_or_suites_and_is_no_setting_of_zero_shot(load):
    plan = load('datasets = ["a", "odinw13"]\n[protocol]\nretention = ["odinw13", "a"]')
    assert plan.protocol.retention == (*SUITES["odinw13"], "a")
    keys = plan.keys()
    kept = {key.method: plan.config_of(key)["protocol"]["retention"] for key in keys}
    assert kept["zero_shot"] == []
    assert kept["prompt"] == kept["full"] == [*SUITES["odinw13"], "a"]


def test_check_plan_leaves_a_plan_made_in_python_as_it_is():
    plan = BenchPlan(datasets=("a", "b"), protocol=ProtocolConfig(test_split="val"))
    assert check_plan(plan, "here", methods=METHODS, trunks=TRUNKS) == plan
    with pytest.raises(ValueError, match="here, methods: unknown 'lora'"):
        check_plan(dataclasses.replace(plan, methods=("lora",)), "here", methods=METHODS, trunks=TRUNKS)


def test_a_plan_of_too_many_runs_is_refused_at_once():
    with pytest.raises(ValueError, match=r"the plan has 998,000 runs, more than 20,000; split it"):
        BenchPlan(datasets=("a",), methods=("prompt",), shots=tuple(range(1, 500)), seeds=tuple(range(2000)))
