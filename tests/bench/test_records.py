import dataclasses
import json
import math
import os
import subprocess
from pathlib import Path

import pytest

from glip_adapt.bench import records
from glip_adapt.bench.claims import partial_run
from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import (
    CrossValidated,
    RunCost,
    RunMetrics,
    RunRecord,
    capture_environment,
    read_record,
    read_records,
    to_json,
    write_record,
)

METRICS = RunMetrics(
    values={"ap": 0.25, "ap50": 0.5, "ap75": 0.2, "ap_small": None, "ap_medium": 0.1, "ap_large": 0.3},
    per_class={"cat": 0.25, "dog": None},
)
COST = RunCost(trained_parameters=768, adapter_bytes=3072, peak_bytes=None, seconds=1.5)
DONE = RunRecord(
    key=RunKey("glip-t", "odinw/Raccoon", "prompt", "all", 3),
    config={"fit": {"rate": 0.05}},
    status="done",
    metrics=METRICS,
    cost=COST,
    environment={"device": "cpu"},
    created="2025-01-01T00:00:00+00:00",
)
FAILED = dataclasses.replace(DONE, status="failed", metrics=None, cost=None, error="ValueError: no")


def store(out, record, text="x"):
    with partial_run(out, record.key) as directory:
        (directory / "history.json").write_text(text)
        return write_record(out, record, directory)


CHOICE = CrossValidated(expected_ap=0.3, start_ap=None, steps=20, factor=0.7, folds=3)


@pytest.mark.parametrize(
    "record",
    [
        DONE,
        FAILED,
        dataclasses.replace(DONE, selected_on="Raccoon/val"),
        dataclasses.replace(DONE, cross_validated=CHOICE),
        dataclasses.replace(DONE, cost=dataclasses.replace(COST, stages={"training": 1.0, "test": 0.5})),
    ],
)
def test_record_reads_back_as_written_beside_its_files(tmp_path, record):
    final = store(tmp_path, record)
    assert final == tmp_path / "glip-t--Raccoon--prompt--all--3"
    assert read_record(final) == record
    assert read_records(tmp_path) == [record]
    assert (final / "history.json").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == [final.name]


def test_record_from_before_a_field_came_has_its_default(tmp_path):
    """Written as version 0.1.0 did."""
    path = store(tmp_path, DONE) / "record.json"
    content = json.loads(path.read_text())
    del content["metrics"]["retention"], content["train_source"], content["selected_on"]
    path.write_text(json.dumps(content))
    assert read_records(tmp_path) == [DONE]
    assert (DONE.metrics.retention, DONE.train_source, DONE.selected_on) == ({}, None, None)


def test_undefined_ap_is_null_and_ap_a_fraction(tmp_path):
    content = json.loads((store(tmp_path, DONE) / "record.json").read_text())
    assert content["metrics"]["ap_small"] is None
    assert content["metrics"]["ap"] == 0.25
    assert content["schema"] == 1


def test_any_named_metric_is_stored_and_the_file_has_all_of_them_flat(tmp_path):
    metrics = RunMetrics(values={"recall@1": 0.7, "fixed_ap": None}, per_class={}, val_ap=0.2)
    record = dataclasses.replace(DONE, metrics=metrics)
    path = store(tmp_path, record)
    assert read_record(path) == record
    content = json.loads((path / "record.json").read_text())
    assert content == to_json(record)
    expected = {"recall@1": 0.7, "fixed_ap": None, "per_class": {}, "val_ap": 0.2, "retention": {}}
    assert list(content["metrics"].items()) == list(expected.items())
    assert (METRICS.ap, metrics.ap) == (0.25, None)


def test_a_metric_has_no_name_of_another_field():
    with pytest.raises(ValueError, match="'val_ap' is a field of its own"):
        dataclasses.replace(METRICS, values={"ap": 0.1, "val_ap": 0.2})


@pytest.mark.parametrize("name", ["glyphs13", "fusion_matters"])
def test_published_records_read_back_as_they_are(tmp_path, name):
    """Beside fields that came later, which have their defaults."""
    for line in (Path(__file__).parents[2] / "benchmarks" / "results" / f"{name}.jsonl").read_text().splitlines()[:50]:
        content = json.loads(line)
        folder = tmp_path / RunKey(**content["key"]).name
        folder.mkdir()
        (folder / "record.json").write_text(line)
        read = to_json(read_record(folder))
        assert {**read, **content, "cost": {**read["cost"], **content["cost"]}} == read
        assert json.dumps(read["metrics"]) == json.dumps(
            content["metrics"] | {"retention": read["metrics"]["retention"]}
        )


@pytest.mark.parametrize("value", [math.nan, -1.0, 25.0])
def test_metrics_outside_0_to_1_are_refused(value):
    with pytest.raises(ValueError, match="'ap50' is"):
        dataclasses.replace(METRICS, values={"ap50": value})
    with pytest.raises(ValueError, match="'val_ap' is"):
        dataclasses.replace(METRICS, val_ap=value)
    with pytest.raises(ValueError, match="'cat' is"):
        dataclasses.replace(METRICS, per_class={"cat": value})
    with pytest.raises(ValueError, match="'Pets' is"):
        dataclasses.replace(METRICS, retention={"Pets": value})


def test_nan_elsewhere_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        store(tmp_path, dataclasses.replace(DONE, config={"rate": math.nan}))
    assert list(tmp_path.iterdir()) == []


def test_record_must_hold_what_its_status_says():
    with pytest.raises(ValueError, match="done holds metrics"):
        dataclasses.replace(DONE, cost=None)
    with pytest.raises(ValueError, match="failed one holds only"):
        dataclasses.replace(DONE, status="failed")


def test_failed_record_is_replaced_and_finished_one_is_not(tmp_path):
    store(tmp_path, FAILED, "old")
    final = store(tmp_path, DONE, "new")
    assert read_record(final) == DONE
    assert (final / "history.json").read_text() == "new"
    with pytest.raises(FileExistsError, match="holds a finished run"):
        store(tmp_path, FAILED)
    assert read_record(final) == DONE
    assert [path.name for path in tmp_path.iterdir()] == [final.name]


def test_folders_without_a_record_and_hidden_ones_are_not_read(tmp_path):
    store(tmp_path, DONE)
    (tmp_path / "report").mkdir()
    (tmp_path / ".partial-x").mkdir()
    (tmp_path / ".partial-x" / "record.json").write_text("half")
    assert read_records(tmp_path) == [DONE]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:100], "not a readable record"),
        (lambda text: "[]", "schema None"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2, this version reads 1"),
        (
            lambda text: text.replace('"per_class": {', '"per_klass": {'),
            "metrics, values, per_klass: expected a number",
        ),
        (lambda text: text.replace('"seed": 3', '"seed": 4'), "record of glip-t--Raccoon--prompt--all--4, not of"),
    ],
)
def test_broken_record_is_one_error_naming_the_file(tmp_path, damage, message):
    path = store(tmp_path, DONE) / "record.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError) as caught:
        read_records(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "Remove the folder" in str(caught.value)


def git(folder, *arguments):
    author = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    run = subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository that holds a stand-in for records.py at the real place."""
    file = tmp_path / "glip_adapt" / "bench" / "records.py"
    file.parent.mkdir(parents=True)
    file.touch()
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(records, "__file__", str(file))
    return tmp_path


def test_environment_tells_commit_and_whether_the_package_is_changed(checkout):
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    (checkout / "results.csv").touch()
    clean = capture_environment("cpu", 2)
    assert (clean["commit"], clean["dirty"]) == (git(checkout, "rev-parse", "HEAD"), False)
    assert (clean["device"], clean["threads"]) == ("cpu", 2)
    (checkout / "glip_adapt" / "new.py").touch()
    assert capture_environment("cpu", 2)["dirty"] is True


def test_package_installed_inside_a_foreign_checkout_has_no_commit(checkout):
    (checkout / "other").touch()
    git(checkout, "add", "other")
    git(checkout, "commit", "-qm", "not ours")
    assert capture_environment("cpu", 1)["commit"] is None


def test_environment_without_git_and_without_a_package(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(records, "VERSIONED_PACKAGES", ("pytest", "no-such-package"))
    environment = capture_environment("cpu", 1)
    assert environment["commit"] is environment["dirty"] is None
    assert environment["versions"] == {"pytest": pytest.__version__, "no-such-package": None}
    json.dumps(environment, allow_nan=False)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


BROKEN = {
    **{
        f"config, {name} is no table": (lambda content, name=name: content["config"].__setitem__(name, "x"))
        for name in ("protocol", "fit", "settings", "predict")
    },
    "config is a list": lambda content: content.__setitem__("config", []),
    "environment is text": lambda content: content.__setitem__("environment", "cpu"),
    "metrics is a number": lambda content: content.__setitem__("metrics", 3),
    "cost is a list": lambda content: content.__setitem__("cost", [1]),
    "a cost of too many bits": lambda content: content["cost"].__setitem__("adapter_bytes", 10**30),
    "a negative cost": lambda content: content["cost"].__setitem__("seconds", -1),
    "a stage of ages": lambda content: content["cost"].__setitem__("stages", {"training": 1e18}),
    "a stage that is no number": lambda content: content["cost"].__setitem__("stages", {"training": "x"}),
    "a run of ages": lambda content: content["cost"].__setitem__("seconds", 1e18),
    "an unknown way of scoring": lambda content: content["config"].__setitem__("protocol", {"annotation_ids": ["x"]}),
    "a checksum that is no text": lambda content: content["config"].__setitem__("trunk_checksum", math.inf),
    "a device that is a list": lambda content: content["environment"].__setitem__("device", ["cpu"]),
    "a commit that is a number": lambda content: content["environment"].__setitem__("commit", 7),
    "a dirty that is text": lambda content: content["environment"].__setitem__("dirty", "yes"),
    "shots of too many bits": lambda content: content["key"].__setitem__("shots", 10**400),
    "a deep nest": lambda content: content["config"].__setitem__("fit", {"a": nested(60)}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_is_wrong_inside_a_record_is_one_error_naming_the_file(tmp_path, what):
    folder = store(tmp_path, DONE)
    content = json.loads((folder / "record.json").read_text())
    BROKEN[what](content)
    (folder / "record.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"record\.json.*Remove the folder"):
        read_records(tmp_path)


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 100_000, "\ud800", " " * (16 * 2**20 + 1)])
def test_a_record_that_cannot_be_parsed_is_one_error_naming_the_file(tmp_path, content):
    folder = store(tmp_path, DONE)
    (folder / "record.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"record\.json.*Remove the folder"):
        read_records(tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(tmp_path, make):
    path = store(tmp_path, DONE) / "record.json"
    path.unlink()
    make(path)
    with pytest.raises(ValueError, match=r"record\.json.*Remove the folder"):
        read_records(tmp_path)


def test_an_error_that_names_a_file_of_no_text_is_stored(tmp_path):
    record = dataclasses.replace(FAILED, error="ValueError: bild\udcff.png")
    assert read_record(store(tmp_path, record)) == record


@pytest.mark.parametrize("follows", [True, False])
def test_a_failed_run_may_make_room_while_it_is_read(tmp_path, monkeypatch, follows):
    final, aside = store(tmp_path, FAILED), tmp_path / ".aside"
    read = records.read_record

    def read_late(directory):
        if not aside.exists():
            final.rename(aside)
            with pytest.raises(ValueError, match="not a readable record") as caught:
                read(directory)
            if follows:
                store(tmp_path, DONE)
            raise caught.value
        return read(directory)

    monkeypatch.setattr(records, "read_record", read_late)
    assert read_records(tmp_path) == ([DONE] if follows else [])
