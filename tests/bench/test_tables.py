import json
import math

import numpy as np
import pandas as pd
import pytest
from made_up import RECORDS, record

from glip_adapt.bench.report.published import published_ap, published_mean
from glip_adapt.bench.report.tables import (
    EVERY,
    bootstrap_mean,
    compare_methods,
    load_table,
    rank_methods,
    summarize_costs,
    summarize_datasets,
    summarize_mean,
    summarize_retention,
    summarize_stages,
)


@pytest.fixture
def table():
    return load_table(RECORDS)


def test_table_has_one_row_per_run_with_fractions(table):
    assert len(table) == len(RECORDS)
    row = table.set_index("run").loc["glip-t--a--prompt--1--3"]
    assert (row.dataset, row.shots, row.seed, row.ap, row.ap50, row.val_ap) == ("a", 1, 3, 0.2, 0.9, 0.3)
    assert math.isnan(row.ap_small)
    assert (row.trained_parameters, row.adapter_bytes, row.seconds) == (768, 3072, 1.5)
    assert row.peak_bytes is pd.NA
    assert json.loads(row.per_class) == {"cat": 0.2}
    failed = table.set_index("run").loc["glip-t--b--full--5--30"]
    assert (failed.status, failed.error) == ("failed", "FloatingPointError: loss is nan | batch 7")
    assert math.isnan(failed.ap)


def test_dataset_mean_and_sample_std_over_seeds_by_hand(table):
    cell = summarize_datasets(table).loc[("glip-t", "a", "prompt", 1)]
    assert cell["mean"] == pytest.approx(25.0)
    assert cell["std"] == pytest.approx(math.sqrt((5**2 + 5**2) / 1))  # 20 and 30, n − 1 = 1
    assert (cell["finished"], cell["expected"]) == (2, 2)


def test_mean_over_datasets_is_taken_seed_by_seed(table):
    cell = summarize_mean(table).loc[("glip-t", "prompt", 1)]
    assert cell["mean"] == pytest.approx(37.5)  # seed 3: (20 + 40) / 2 = 30; seed 30: (30 + 60) / 2 = 45
    assert cell["std"] == pytest.approx(15 / math.sqrt(2))
    assert (cell["finished"], cell["expected"]) == (4, 4)


@pytest.mark.parametrize("summarize", [summarize_mean, bootstrap_mean])
def test_mean_over_datasets_is_missing_as_soon_as_one_run_is(table, summarize):
    numbers = [name for name in summarize(table) if name not in ("finished", "expected")]
    assert summarize(table).loc[[("glip-t", "full", 5), ("glip-t", "full", "all")], numbers].isna().all(axis=None)
    assert summarize_mean(table).loc[("glip-t", "full", 5), ["finished", "expected"]].tolist() == [3, 4]
    assert summarize_mean(table).loc[("glip-t", "full", "all"), ["finished", "expected"]].tolist() == [1, 2]


def test_the_interval_of_a_mean_by_hand():
    # One seed, two sets: a draw holds one of them twice, or both, in 1 : 2 : 1.
    table = load_table([record("a", "full", 1, 3, 0.2), record("b", "full", 1, 3, 0.6)])
    assert bootstrap_mean(table).loc[("glip-t", "full", 1)].tolist() == pytest.approx([40.0, 20.0, 60.0])


def test_a_single_run_has_a_mean_but_no_limits():
    mean, low, high = bootstrap_mean(load_table([record("a", "full", 1, 3, 0.2)])).loc[("glip-t", "full", 1)]
    assert mean == pytest.approx(20.0)
    assert math.isnan(low)
    assert math.isnan(high)


def test_bootstrap_and_plain_means_agree(table):
    assert bootstrap_mean(table)["mean"].to_dict() == pytest.approx(
        summarize_mean(table)["mean"].to_dict(), nan_ok=True
    )


def test_the_best_method_and_its_lead_by_hand():
    # As above; full is ahead by 10 on one set and by 20 on the other, whatever the sets themselves are like.
    scores = {("a", "full"): 0.2, ("b", "full"): 0.6, ("a", "prompt"): 0.1, ("b", "prompt"): 0.4}
    zero_shot = [record(name, "zero_shot", 0, 3, 0.9) for name in "ab"]
    table = load_table([*zero_shot, *(record(*cell, 1, 3, ap) for cell, ap in scores.items())])
    best, *interval, second, lead, low, high = rank_methods(table).loc[("glip-t", 1)]
    assert (best, second) == ("full", "prompt")
    assert interval == pytest.approx([40.0, 20.0, 60.0])
    assert (lead, low, high) == pytest.approx((15.0, 10.0, 20.0))
    assert list(rank_methods(table).index) == [("glip-t", 1)]


def test_a_method_that_lacks_a_run_is_not_ranked(table):
    assert rank_methods(table).index.tolist() == [("glip-t", 1)]  # full lacks runs at 5 and all
    assert rank_methods(load_table([record("a", "full", 1, 3, 0.2)])).empty


def test_zero_shot_counts_once_whatever_its_seed():
    table = load_table([record("a", "zero_shot", 0, 3, 0.1), record("b", "zero_shot", 0, 30, 0.3)])
    assert summarize_mean(table)["mean"].tolist() == pytest.approx([20.0])


def test_methods_are_compared_in_pairs_of_one_dataset_shots_and_seed(table):
    tests = compare_methods(table).loc["glip-t"]
    one = tests.loc[(1, "prompt", "full")]
    # a: 11 − 20, 13 − 30; b: 21 − 40, 23 − 60. All four negative: two of sixteen signs; two of four by dataset.
    assert one["difference"] == pytest.approx(-(9 + 17 + 19 + 37) / 4)
    assert (one["p_runs"], one["p_datasets"]) == (2 / 16, 2 / 4)
    assert (one["pairs"], one["datasets"], one["missing"]) == (4, 2, 0)


def test_zero_shot_pairs_with_every_run_on_its_dataset(table):
    five = compare_methods(table).loc[("glip-t", 5, "zero_shot", "prompt")]
    assert five["difference"] == pytest.approx((20 + 20 + 30 + 50) / 4)
    assert five["pairs"] == 4


def test_pairs_that_lack_a_run_are_counted_and_left_out(table):
    tests = compare_methods(table).loc["glip-t"]
    five = tests.loc[(5, "prompt", "full")]
    assert five["difference"] == pytest.approx((20 + 24 + 20) / 3)  # b with seed 30 failed
    assert (five["pairs"], five["missing"]) == (3, 1)
    none = tests.loc[("all", "prompt", "full")]
    assert (none["pairs"], none["datasets"], none["missing"]) == (0, 0, 2)
    assert none[["difference", "p_runs", "p_datasets"]].isna().all()
    every = tests.loc[(EVERY, "prompt", "full")]
    assert (every["pairs"], every["missing"]) == (7, 3)
    assert every["difference"] == pytest.approx((64 - 82) / 7)


def test_one_method_without_zero_shot_has_nothing_to_be_compared_with():
    assert compare_methods(load_table([record("a", "full", 1, 3, 0.2)])).empty
    assert compare_methods(load_table([record("a", "zero_shot", 0, 3, 0.2)])).empty


def test_costs_are_means_of_complete_cells_with_zero_shot_once():
    records = [
        record("a", "zero_shot", 0, 3, 0.1, seconds=2.0),
        record("a", "full", 1, 3, 0.2, peak_bytes=100, seconds=4.0),
        record("a", "full", 1, 30, 0.4, peak_bytes=300, seconds=6.0),
        record("a", "prompt", 1, 3, 0.2),
        record("a", "prompt", 1, 30, ValueError("no")),
        record("a", "lora", 1, 3, 0.2, peak_bytes=100),
        record("a", "lora", 1, 30, 0.2),
    ]
    costs = summarize_costs(load_table(records)).loc["glip-t"]
    assert costs.loc[("full", 1)].tolist() == pytest.approx([30.0, 768, 3072, 200, 5.0])
    assert costs.loc[("zero_shot", 0)].drop("peak_bytes").tolist() == pytest.approx([10.0, 768, 3072, 2.0])
    assert math.isnan(costs.loc[("zero_shot", 0), "peak_bytes"])  # was not measured
    assert costs.loc[("prompt", 1)].isna().all()
    assert math.isnan(costs.loc[("lora", 1), "peak_bytes"])  # nor was it in one of two runs
    assert costs.loc[("lora", 1), "seconds"] == 1.5
    assert list(costs.index) == [("zero_shot", 0), ("full", 1), ("prompt", 1), ("lora", 1)]


def test_stages_are_means_of_the_runs_that_recorded_them_the_longest_first():
    records = [
        record("a", "full", 1, 3, 0.2, stages={"scoring": 1.0, "training": 4.0}),
        record("a", "full", 1, 30, 0.2, stages={"training": 6.0}),
        record("a", "full", 1, 300, 0.2),
        record("a", "lora", 1, 3, ValueError("no")),
    ]
    stages = summarize_stages(load_table(records)).loc["glip-t"]
    assert list(stages.columns) == ["training", "scoring"]
    assert stages.loc[("full", 1)].tolist() == [5.0, 0.5]
    assert len(stages) == 1
    assert summarize_stages(load_table(records[2:])).empty


def test_stages_stand_in_the_order_of_shots_as_costs_do():
    shots = (10, "all", 1, 3)  # folders of records are read in the order of their names
    records = [record("a", "full", n, 3, 0.2, trunk, stages={"test": 1.0}) for trunk in ("b", "a") for n in shots]
    stages = summarize_stages(load_table([*records, record("a", "zero_shot", 0, 3, 0.2, "a", stages={"test": 1.0})]))
    adapted = [("full", n) for n in (1, 3, 10, "all")]
    assert list(stages.loc["b"].index) == adapted
    assert list(stages.loc["a"].index) == [("zero_shot", 0), *adapted]


def retained(*rows):
    """A table of runs with their scores on other sets: (dataset, seed, retention)."""
    table = load_table(
        [record(name, "zero_shot", 0, 3, ap) for name, ap in (("a", 0.1), ("b", 0.2), ("c", 0.6))]
        + [record(name, "full", 5, seed, 0.5) for name, seed, _ in rows]
    )
    table["retention"] = [None, None, None, *(scores and json.dumps(scores) for *_, scores in rows)]
    return table


def test_retention_by_hand():
    table = retained(("a", 3, {"b": 0.1, "x/c": 0.5}), ("b", 3, {"a": 0.1, "x/c": 0.3}), ("c", 3, {"a": 0.0, "b": 0.2}))
    found = summarize_retention(table).loc[("glip-t", "full", 5)]
    assert found["before"] == pytest.approx(100 * (0.2 + 0.6 + 0.1 + 0.6 + 0.1 + 0.2) / 6)
    assert found["after"] == pytest.approx(100 * (0.1 + 0.5 + 0.1 + 0.3 + 0.0 + 0.2) / 6)
    assert (found["finished"], found["expected"]) == (6, 6)


@pytest.mark.parametrize("lost", [None, {"a": 0.1}, {"a": 0.1, "c": None}])
def test_retention_is_missing_as_soon_as_one_score_is(lost):
    table = retained(("a", 3, {"b": 0.1, "c": 0.5}), ("b", 3, lost), ("c", 3, {"a": 0.0, "b": 0.2}))
    found = summarize_retention(table).loc[("glip-t", "full", 5)]
    assert math.isnan(found["before"])
    assert math.isnan(found["after"])
    assert (found["finished"], found["expected"]) == (5 if lost else 4, 6)


def test_retention_needs_zero_shot_on_the_other_set():
    table = retained(("a", 3, {"b": 0.1, "d": 0.5}))
    found = summarize_retention(table).loc[("glip-t", "full", 5)]
    assert math.isnan(found["after"])


def test_runs_that_were_not_scored_elsewhere_have_no_retention(table):
    assert summarize_retention(table).empty


def test_published_means_are_those_of_the_paper():
    # Means over the 13 sets as printed in Tables 14 and 15; the paper rounds each set to a tenth first.
    names = list(dict.fromkeys(published_ap("glip-t").index.get_level_values("dataset")))
    mean = published_mean("glip-t", names)
    assert len(names) == 13
    expected = {("zero_shot", 0): 46.5, ("prompt", 10): 56.6, ("full", 10): 58.4, ("full", "all"): 64.9}
    assert {key: mean[key] for key in expected} == pytest.approx(expected, abs=0.1)
    assert len(mean) == 1 + 3 * 5


def test_published_means_are_over_the_same_datasets_or_not_at_all():
    raccoon, pothole = (published_ap("glip-l")[name, "full", 5] for name in ("Raccoon", "pothole"))
    assert published_mean("glip-l", ["pothole", "Raccoon"])["full", 5] == pytest.approx((raccoon + pothole) / 2)
    assert published_mean("glip-l", ["Raccoon", "Dice"]).empty
    assert published_mean("glip-nano", ["Raccoon"]).empty


def test_every_number_published_is_a_percentage():
    for trunk in ("glip-t-a", "glip-t-b", "glip-t-c", "glip-t", "glip-l"):
        values = published_ap(trunk)
        assert len(values) == 13 * 16
        assert np.all((values > 0) & (values < 100))
