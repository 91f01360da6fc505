import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.config import describe_unknown, from_mapping, override, read_toml, to_mapping, unknown_name
from glip_adapt.core.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    rate: float = 1e-4
    decay: float = 0.05

    def __post_init__(self) -> None:
        if self.decay > self.rate * 1e6:
            raise ValueError("decay is out of proportion to rate.")


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    shots: int | Literal["all"] = 1
    sides: tuple[int, ...] = (480, 800)
    size_hw: tuple[int, int] = (1, 2)
    patience: int | None = None
    mixed: bool = False
    mode: Literal["a", "b"] = "a"
    level: Literal[1, 2] = 1
    scores: Mapping[str, float | None] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)
    optimiser: Optimiser = Optimiser()
    second: Optimiser | None = None


def test_values_arrive_with_the_declared_types():
    config = from_mapping(
        Config,
        {
            "name": "x", "shots": "all", "sides": [1, 2, 3], "size_hw": [4, 5], "patience": 3, "mode": "b",
            "scores": {"cat": 1, "dog": None}, "free": {"any": [1]}, "optimiser": {"rate": 1}, "second": {"decay": 0.0},
        },
        "here",
    )  # fmt: skip
    assert config == Config(
        name="x", shots="all", sides=(1, 2, 3), size_hw=(4, 5), patience=3, mode="b",
        scores={"cat": 1.0, "dog": None}, free={"any": [1]}, optimiser=Optimiser(rate=1.0), second=Optimiser(decay=0.0),
    )  # fmt: skip
    assert type(config.optimiser.rate) is float
    assert type(config.scores["cat"]) is float


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(),
    shots=st.integers() | st.just("all"),
    sides=st.lists(st.integers()).map(tuple),
    patience=st.none() | st.integers(),
    scores=st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False, allow_infinity=False)),
    rate=st.floats(1e-3, 1e3),
    second=st.none() | st.just(Optimiser(rate=2.0)),
)
def test_mapping_round_trip_through_json_is_exact(rate, **values):
    config = Config(optimiser=Optimiser(rate=rate), **values)
    assert from_mapping(Config, json.loads(json.dumps(to_mapping(config))), "here") == config


def test_unknown_key_names_place_nearest_and_valid_keys():
    with pytest.raises(
        UnknownNameError, match=r"plan\.toml, optimiser: unknown key 'rte' \(did you mean 'rate'\?\).*'decay'"
    ):
        from_mapping(Config, {"name": "x", "optimiser": {"rte": 1.0}}, "plan.toml")


def test_unlike_key_gets_no_suggestion():
    assert "did you mean" not in describe_unknown("zzz", ["prompt", "full"])
    assert (
        describe_unknown("promt", ["prompt", "full"]) == "'promt' (did you mean 'prompt'?); valid are 'full', 'prompt'"
    )


def test_an_unknown_name_says_its_kind_and_the_choices():
    error = unknown_name("trunk", "glip-s", ["glip-t", "glip-l"])
    assert str(error) == "Unknown trunk 'glip-s' (did you mean 'glip-t'?); valid are 'glip-l', 'glip-t'."


def test_missing_required_field_is_named():
    with pytest.raises(ValueError, match=r"plan\.toml: missing 'name'"):
        from_mapping(Config, {}, "plan.toml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", 3, "here, name: expected a string, got 3"),
        ("shots", "al", "here, shots: expected a whole number or 'all', got 'al'"),
        ("shots", True, "here, shots: expected a whole number or 'all', got True"),
        ("shots", 1.0, "here, shots: expected a whole number"),
        ("sides", [1, "x"], "here, sides, entry 2: expected a whole number, got 'x'"),
        ("sides", 1, "here, sides: expected a list, got 1"),
        ("size_hw", [1], "here, size_hw: expected 2 entries, got 1"),
        ("patience", "3", "here, patience: expected a whole number, got '3'"),
        ("mixed", 1, "here, mixed: expected true or false, got 1"),
        ("mode", "c", "here, mode: expected 'a' or 'b', got 'c'"),
        ("level", True, "here, level: expected 1 or 2, got True"),
        ("scores", {"cat": "x"}, "here, scores, cat: expected a number, got 'x'"),
        ("optimiser", {"rate": math.nan}, "here, optimiser, rate: expected a number, got nan"),
        ("optimiser", 3, "here, optimiser: expected a table"),
        ("second", {"decai": 1.0}, "here, second: unknown key 'decai'"),
        ("optimiser", {"rate": 0.0, "decay": 1.0}, "here, optimiser: decay is out of proportion"),
    ],
)
def test_wrong_value_names_key_expectation_and_value(key, value, message):
    with pytest.raises(ValueError) as caught:
        from_mapping(Config, {"name": "x", key: value}, "here")
    assert str(caught.value).startswith(message)


def test_override_replaces_nested_fields_and_leaves_the_original():
    config = Config(name="x", optimiser=Optimiser(rate=0.5, decay=0.25), second=Optimiser(rate=7.0))
    changed = override(config, {"patience": 2, "optimiser": {"decay": 1}, "second": {"decay": 2}}, "here")
    assert changed == Config(
        name="x", patience=2, optimiser=Optimiser(rate=0.5, decay=1.0), second=Optimiser(rate=7.0, decay=2.0)
    )
    assert config.optimiser.decay == 0.25


def test_override_checks_like_from_mapping():
    config = Config(name="x")
    with pytest.raises(ValueError, match="here, fit: unknown key 'mod'"):
        override(config, {"mod": "a"}, "here, fit")
    with pytest.raises(ValueError, match="here, optimiser: decay is out of proportion"):
        override(config, {"optimiser": {"rate": 0.0}}, "here")


def test_to_mapping_refuses_what_json_cannot_hold():
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        to_mapping(Config(name="x", free={"when": {1}}))


def test_read_toml_gives_the_tables(tmp_path):
    (tmp_path / "a.toml").write_text('shots = [0, "all"]\n[fit]\nrate = 1e-4\n')
    assert read_toml(tmp_path / "a.toml") == {"shots": [0, "all"], "fit": {"rate": 1e-4}}


def test_read_toml_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml: there is no such file"):
        read_toml(tmp_path / "nowhere.toml")


def test_read_toml_names_the_line_of_a_mistake(tmp_path):
    (tmp_path / "a.toml").write_text("seeds = [3]\nshots = [0,\ntrunks 3\n")
    with pytest.raises(ValueError, match=r"a\.toml: not valid TOML: .*line 3"):
        read_toml(tmp_path / "a.toml")


def test_read_toml_refuses_other_encodings(tmp_path):
    (tmp_path / "a.toml").write_bytes('a = "é"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.toml: not valid TOML: byte 5 is not UTF-8"):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = " + "[" * 60_000, "not valid TOML"),
        (".".join(["a"] * 100_000) + " = 1", "more than the 65,536"),
        ("a = " + "[" * 3000 + "]" * 3000, "nested too deep"),
        (".".join(["a"] * 30_000) + " = 1", "a key has more than 100 parts"),
        (" . ".join(['"=,#"'] * 7000) + " = 1", "a key has more than 100 parts"),
        ("[" + ".".join(["'a'"] * 10_000) + "]\nb = 1", "a key has more than 100 parts"),
        ("a = {b = 1, " + ".".join(["a"] * 30_000) + " = 1}", "a key has more than 100 parts"),
        ("a = " + "9" * 5000, "5000 digits"),
    ],
)
def test_read_toml_names_the_file_of_what_is_too_large_or_too_deep(tmp_path, content, message):
    (tmp_path / "plan.toml").write_text(content)
    with pytest.raises(ValueError, match=rf"plan\.toml.*{message}"):
        read_toml(tmp_path / "plan.toml")


@pytest.mark.parametrize(
    "value",
    [
        "1.5",
        f'"{"a. " * 500}"',
        '"""' + 'a.\\"\n' * 200 + '"""',
        "'''" + "a." * 200 + "'''",
        f"[{'0.1, ' * 500}]",
    ],
)
def test_read_toml_counts_no_dots_of_texts_comments_and_numbers(tmp_path, value):
    (tmp_path / "plan.toml").write_text(f"# {'.' * 200}\na.b = {value}  # {'a.' * 200}\n")
    assert read_toml(tmp_path / "plan.toml")["a"]["b"]
