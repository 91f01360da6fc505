"""benchmarks/fusion_matters.py: the shares of a gain, their intervals, the table and the figure."""

import dataclasses
import io
import itertools
import math
import random

import numpy as np
import pytest
from conftest import load_benchmark
from hypothesis import given
from hypothesis import strategies as st

from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import RunCost, RunMetrics, RunRecord
from glip_adapt.bench.report.statistics import Interval

(script,) = load_benchmark("fusion_matters")
PUBLISHED, Recovery, share_of_gain = script.PUBLISHED, script.Recovery, script.share_of_gain
difference_of_shares, draw_recovery = script.difference_of_shares, script.draw_recovery
format_recovery = script.format_recovery

DRAWS = 500


def record(dataset, method, seed, ap, trunk="glip-nano", shots=10):
    """A run with AP ``ap``, None where it is undefined; ``"failed"`` is a failed run."""
    shots = 0 if method == "zero_shot" else shots
    common = {
        "key": RunKey(trunk, dataset, method, shots, seed),
        "config": {},
        "environment": {},
        "created": "2025-01-01T00:00:00+00:00",
    }
    if ap == "failed":
        return RunRecord(status="failed", error="ValueError: no", **common)
    metrics = RunMetrics(values={"ap": ap}, per_class={})
    cost = RunCost(trained_parameters=1, adapter_bytes=1, peak_bytes=None, seconds=1.0)
    return RunRecord(status="done", metrics=metrics, cost=cost, **common)


def grid(gains, reference_gains, zero_shot=0.2, trunk="glip-nano", method="prompt"):
    """Records of datasets a, b, … from two (D, S) tables of gains over ``zero_shot``."""
    records = []
    for index, rows in enumerate(zip(gains, reference_gains, strict=True)):
        dataset = "abcdefgh"[index]
        records.append(record(dataset, "zero_shot", 3, zero_shot, trunk))
        for name, row in zip((method, "full"), rows, strict=True):
            records += [record(dataset, name, 3 * 10**n, zero_shot + gain, trunk) for n, gain in enumerate(row)]
    return records


# Shares of 1/2, 1/4 and 2 per dataset; gains of 0.1, 0.05 and 0.1 against 0.2, 0.2 and 0.05.
GAINS = [[0.08, 0.12], [0.06, 0.04], [0.10, 0.10]]
REFERENCE = [[0.18, 0.22], [0.20, 0.20], [0.06, 0.04]]
RECORDS = grid(GAINS, REFERENCE)
WITHOUT = grid([[0.02, 0.0], [0.05, 0.03], [0.01, -0.01]], REFERENCE, trunk="glip-nano-a")


def limits(interval):
    return interval.low, interval.high


fractions = st.floats(0.01, 0.4)
tables = st.tuples(st.integers(1, 5), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(
        st.lists(st.tuples(fractions, fractions), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


def split(table):
    return [[[pair[part] for pair in row] for row in table] for part in (0, 1)]


@given(tables)
def test_a_method_that_equals_the_reference_has_all_of_its_gain(table):
    gains, _ = split(table)
    found = share_of_gain(grid(gains, gains), "glip-nano", "prompt", draws=DRAWS)
    assert found.share == Interval(value=1.0, low=1.0, high=1.0)
    assert found.gain == found.reference_gain


@given(tables)
def test_a_method_that_equals_zero_shot_has_none_of_it(table):
    _, reference = split(table)
    found = share_of_gain(grid(np.zeros_like(reference), reference), "glip-nano", "prompt", draws=DRAWS)
    assert found.share == found.gain == Interval(value=0.0, low=0.0, high=0.0)


@given(tables)
def test_half_the_gain_everywhere_is_a_share_of_one_half(table):
    _, reference = split(table)
    found = share_of_gain(grid(np.array(reference) / 2, reference), "glip-nano", "prompt", draws=DRAWS)
    assert (found.share.value, *limits(found.share)) == pytest.approx((0.5, 0.5, 0.5))


@given(tables)
def test_the_share_does_not_depend_on_the_unit_of_ap(table):
    gains, reference = (np.array(part) for part in split(table))
    whole = share_of_gain(grid(gains, reference), "glip-nano", "prompt", draws=DRAWS)
    third = share_of_gain(grid(gains / 3, reference / 3, 0.1), "glip-nano", "prompt", draws=DRAWS)
    assert dataclasses.astuple(third.share) == pytest.approx(dataclasses.astuple(whole.share))
    assert 3 * third.gain.high == pytest.approx(whole.gain.high)


@given(tables)
def test_the_share_lies_between_those_of_the_datasets(table):
    gains, reference = (np.array(part) for part in split(table))
    single = (gains / reference).ravel()
    share = share_of_gain(grid(gains, reference), "glip-nano", "prompt", draws=DRAWS).share
    for value in dataclasses.astuple(share):
        assert single.min() - 1e-9 <= value <= single.max() + 1e-9


def test_means_are_divided_not_ratios_averaged():
    found = share_of_gain(RECORDS, "glip-nano", "prompt", draws=DRAWS)
    assert found.gain.value == pytest.approx(0.25 / 3)
    assert found.reference_gain.value == pytest.approx(0.45 / 3)
    assert found.share.value == pytest.approx(0.25 / 0.45)  # the mean of ratios is 2.75 / 3
    assert (found.trunk, found.method, found.reference, found.shots) == ("glip-nano", "prompt", "full", 10)
    assert (found.datasets, found.seeds) == (3, 2)


def test_one_dataset_and_one_seed_leave_nothing_to_resample():
    found = share_of_gain(grid([[0.1]], [[0.3]]), "glip-nano", "prompt", draws=DRAWS)
    for interval, value in ((found.share, 1 / 3), (found.gain, 0.1), (found.reference_gain, 0.3)):
        assert interval.low == interval.value == interval.high == pytest.approx(value)


def test_datasets_are_resampled_by_hand():
    # One seed: a draw holds one of the two datasets twice, or both, in 1 : 2 : 1.
    found = share_of_gain(grid([[0.1], [0.1]], [[0.1], [0.3]]), "glip-nano", "prompt", draws=2000)
    assert dataclasses.astuple(found.share) == pytest.approx((0.5, 1 / 3, 1.0))
    assert dataclasses.astuple(found.reference_gain) == pytest.approx((0.2, 0.1, 0.3))


def test_seeds_are_resampled_alike_for_both_methods():
    # One dataset: were its seeds drawn apart, a share of 0.1 / 0.3 would occur.
    found = share_of_gain(grid([[0.1, 0.3]], [[0.1, 0.3]]), "glip-nano", "prompt", draws=2000)
    assert dataclasses.astuple(found.share) == (1, 1, 1)
    assert dataclasses.astuple(found.gain) == pytest.approx((0.2, 0.1, 0.3))


def test_seeds_are_drawn_anew_in_each_dataset():
    # Drawn once for all datasets, each draw has a mean gain of 0.1, 0.2 or 0.3 in a quarter, a half, a quarter.
    gains = [[0.1, 0.3]] * 8
    found = share_of_gain(grid(gains, gains), "glip-nano", "prompt", draws=2000).gain
    assert 0.1 < found.low < 0.2 < found.high < 0.3
    # 16 independent draws of 0.2 ± 0.1 have a standard error of 0.025.
    assert limits(found) == pytest.approx((0.2 - 1.96 * 0.025, 0.2 + 1.96 * 0.025), abs=0.01)


def test_limits_cut_two_and_a_half_percent_on_each_side():
    # Four datasets, one seed: the least mean has a chance of 1 in 256, the next one of 4 in 256 more, then 10 in 256.
    gains = [[0.0], [0.1], [0.2], [0.4]]
    found = share_of_gain(grid(gains, [[0.2]] * 4), "glip-nano", "prompt", draws=20_000).gain
    sums = sorted(sum(draw) / 4 for draw in itertools.product((0.0, 0.1, 0.2, 0.4), repeat=4))
    assert limits(found) == pytest.approx((sums[round(0.025 * 256)], sums[round(0.975 * 256)]))


def test_the_seed_makes_the_interval_repeatable():
    first, again, other = (share_of_gain(RECORDS, "glip-nano", "prompt", draws=20, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.share.value == other.share.value
    assert limits(first.share) != limits(other.share)


def test_the_order_of_records_does_not_matter():
    shuffled = random.Random(0).sample(RECORDS + WITHOUT, len(RECORDS + WITHOUT))
    assert share_of_gain(iter(shuffled), "glip-nano", "prompt", draws=DRAWS) == share_of_gain(
        RECORDS, "glip-nano", "prompt", draws=DRAWS
    )
    pair = ("glip-nano", "glip-nano-a", "prompt")
    assert difference_of_shares(iter(shuffled), *pair) == difference_of_shares(RECORDS + WITHOUT, *pair)


def test_zero_shot_under_two_seeds_counts_once_whatever_the_order():
    twice = [*RECORDS, record("a", "zero_shot", 30, 0.1)]
    first, second = (share_of_gain(order, "glip-nano", "prompt", draws=DRAWS) for order in (twice, twice[::-1]))
    assert first == second
    assert first.seeds == 2


def test_other_trunks_methods_and_shots_are_left_aside():
    others = [
        *WITHOUT,
        record("d", "prompt", 3000, 0.9, "glip-nano-a"),
        record("a", "prompt", 3000, 0.9, shots=1),
        record("a", "prompt", 3, 0.9, shots=1),
        record("a", "linear_probe", 3000, 0.9),
        record("a", "prompt", 3, 0.9, shots="all"),
    ]
    assert share_of_gain(RECORDS + others, "glip-nano", "prompt", draws=DRAWS) == share_of_gain(
        RECORDS, "glip-nano", "prompt", draws=DRAWS
    )


def test_a_failed_run_matters_only_if_it_was_never_finished():
    again = [*RECORDS, record("a", "zero_shot", 30, "failed")]
    assert share_of_gain(again, "glip-nano", "prompt", draws=DRAWS) == share_of_gain(
        RECORDS, "glip-nano", "prompt", draws=DRAWS
    )


def test_method_reference_and_shots_can_be_chosen():
    records = [
        record("a", "zero_shot", 3, 0.1),
        record("a", "linear_probe", 3, 0.4, shots="all"),
        record("a", "prompt", 3, 0.5, shots="all"),
    ]
    found = share_of_gain(records, "glip-nano", "linear_probe", "prompt", "all", draws=DRAWS)
    assert found.share.value == pytest.approx(0.75)
    assert (found.method, found.reference, found.shots) == ("linear_probe", "prompt", "all")


@pytest.mark.parametrize(
    "lost", ["glip-nano--b--prompt--10--30", "glip-nano--a--full--10--3", "glip-nano--c--zero_shot--0--3"]
)
@pytest.mark.parametrize("how", ["absent", "failed", None])
def test_a_run_that_is_missing_is_named(lost, how):
    records = [one for one in RECORDS if one.key.name != lost]
    (gone,) = (one.key for one in RECORDS if one.key.name == lost)
    if how != "absent":
        records.append(record(gone.dataset, gone.method, gone.seed, how))
    name = lost.removesuffix("--0--3")  # zero-shot has neither shots nor seed
    with pytest.raises(ValueError, match=rf"not finished: {name}\.$" if how == "failed" else f": {name}"):
        share_of_gain(records, "glip-nano", "prompt")


def test_a_dataset_with_zero_shot_alone_lacks_both_methods():
    with pytest.raises(ValueError, match=r"--d--prompt--10--3, .*--d--full--10--30\.$"):
        share_of_gain([*RECORDS, record("d", "zero_shot", 3, 0.1)], "glip-nano", "prompt")


def test_an_absent_trunk_is_named_with_those_that_are_there():
    with pytest.raises(ValueError, match=r"no records of the trunk 'glip-t'; there are: glip-nano, glip-nano-a\."):
        share_of_gain(RECORDS + WITHOUT, "glip-t", "prompt")
    with pytest.raises(ValueError, match="there are: none"):
        share_of_gain([], "glip-nano", "prompt")


def test_shots_that_were_never_run_are_named():
    with pytest.raises(ValueError, match="glip-nano: there is no run of prompt or full at 5 shots"):
        share_of_gain(RECORDS, "glip-nano", "prompt", shots=5)


@pytest.mark.parametrize("reference", [[[0.0], [0.0]], [[0.1], [-0.15]]])
def test_a_reference_without_a_gain_has_no_share(reference):
    with pytest.raises(ValueError, match=r"glip-nano: full gains nothing .* makes no sense"):
        share_of_gain(grid([[0.1], [0.1]], reference), "glip-nano", "prompt")


def test_a_gain_that_some_draws_lose_leaves_both_limits_open():
    # A quarter of the draws holds b alone, on which the reference loses.
    found = share_of_gain(grid([[0.1], [0.1]], [[0.3], [-0.1]]), "glip-nano", "prompt", draws=DRAWS)
    assert found.share.value == pytest.approx(1.0)
    assert limits(found.share) == (-math.inf, math.inf)
    assert limits(found.reference_gain) == pytest.approx((-0.1, 0.3))


def test_few_such_draws_leave_the_limits_finite():
    # Five draws of b in a row have a chance of 1 in 3125.
    gains = [[0.1]] * 5
    found = share_of_gain(grid(gains, [[0.3], [0.3], [0.3], [0.3], [0.0]]), "glip-nano", "prompt", draws=20_000)
    assert limits(found.share) == pytest.approx((1 / 3, 5 / 6))


def test_a_trunk_differs_from_itself_by_nothing():
    found = difference_of_shares(RECORDS, "glip-nano", "glip-nano", "prompt", draws=DRAWS)
    assert found == Interval(value=0.0, low=0.0, high=0.0)


def test_a_difference_is_that_of_the_shares_and_changes_sign_with_the_order():
    records = RECORDS + WITHOUT
    first, second = (share_of_gain(records, trunk, "prompt").share for trunk in ("glip-nano", "glip-nano-a"))
    found = difference_of_shares(records, "glip-nano", "glip-nano-a", "prompt")
    assert found.value == pytest.approx(first.value - second.value) == pytest.approx(0.25 / 0.45 - 0.05 / 0.45)
    other = difference_of_shares(records, "glip-nano-a", "glip-nano", "prompt")
    assert (other.value, other.low, other.high) == pytest.approx((-found.value, -found.high, -found.low), abs=0.02)


def test_a_constant_difference_has_no_spread_because_draws_are_shared():
    reference = [[0.2, 0.2]] * 3
    less = grid(np.array(GAINS) - 0.04, reference, trunk="glip-nano-a")
    records = grid(GAINS, reference) + less
    found = difference_of_shares(records, "glip-nano", "glip-nano-a", "prompt", draws=DRAWS)
    assert dataclasses.astuple(found) == pytest.approx((0.2, 0.2, 0.2))
    apart = share_of_gain(records, "glip-nano", "prompt", draws=DRAWS).share
    assert apart.high - apart.low > 0.05


def test_a_difference_needs_the_same_datasets_and_seeds_of_both_trunks():
    pair = ("glip-nano", "glip-nano-a", "prompt")
    with pytest.raises(ValueError, match=r"not finished: glip-nano-a--c--prompt--10--3, .*glip-nano-a--c--zero_shot\."):
        difference_of_shares(RECORDS + [one for one in WITHOUT if one.key.dataset != "c"], *pair)
    with pytest.raises(ValueError, match=r"not finished: glip-nano--a--prompt--10--30, "):
        difference_of_shares([one for one in RECORDS if one.key.seed != 30] + WITHOUT, *pair)
    with pytest.raises(ValueError, match="no records of the trunk 'glip-nano-a'"):
        difference_of_shares(RECORDS, *pair)
    flat = grid(GAINS, [[0.0, 0.0]] * 3, trunk="glip-nano-a")
    with pytest.raises(ValueError, match="glip-nano-a: full gains nothing"):
        difference_of_shares(RECORDS + flat, *pair)


def recovery(trunk, share, low, high, **changes):
    """A recovery whose gains are 0.2 × share and 0.2, ± 0.01."""
    gain, reference = (
        Interval(value=value, low=value - 0.01, high=value + 0.01) for value in (round(0.2 * share, 3), 0.2)
    )
    facts = {"method": "prompt", "reference": "full", "shots": 10, "datasets": 13, "seeds": 3} | changes
    interval = Interval(value=share, low=low, high=high)
    return Recovery(trunk=trunk, share=interval, gain=gain, reference_gain=reference, **facts)


FUSED, UNFUSED = recovery("glip-nano", 0.8, 0.7, 0.9), recovery("glip-nano-a", 0.4, 0.3, 0.45)
DIFFERENCE = Interval(value=0.4, low=0.3, high=0.52)


def test_the_table_is_in_percent_and_points():
    text = format_recovery([FUSED, UNFUSED], DIFFERENCE, "The data are made up.")
    assert text.startswith(
        "| trunk | gain of prompt | gain of full | share of full's gain |\n| :-- | --: | --: | --: |\n"
    )
    assert "| glip-nano, fusion | 16.0 (15.0 to 17.0) | 20.0 (19.0 to 21.0) | 80 % (70 to 90) |\n" in text
    assert "| glip-nano-a, no fusion | 8.0 (7.0 to 9.0) | 20.0 (19.0 to 21.0) | 40 % (30 to 45) |\n" in text
    assert "Share of glip-nano less that of glip-nano-a: 40 (30 to 52) percentage points." in text
    assert "10 shots per class, mean over 13 datasets × 3 seeds" in text
    assert text.endswith("datasets and seeds resampled. The data are made up.\n")
    assert format_recovery([FUSED, UNFUSED], DIFFERENCE).endswith("datasets and seeds resampled.\n")


def test_the_table_names_other_methods_trunks_and_open_limits():
    changes = {"method": "linear_probe", "shots": "all"}
    records = [recovery("other", 0.8, -math.inf, math.inf, **changes), recovery("glip-t", 0.4, 0.3, 0.5, **changes)]
    text = format_recovery(records, DIFFERENCE)
    assert "gain of linear probe" in text
    assert "| other | 16.0 (15.0 to 17.0) | 20.0 (19.0 to 21.0) | 80 % (-∞ to ∞) |" in text
    assert "all pictures" in text


@pytest.mark.parametrize("render", [draw_recovery, lambda found: format_recovery(found, DIFFERENCE)])
@pytest.mark.parametrize(
    "change", [{"method": "lora"}, {"reference": "lora"}, {"shots": 5}, {"datasets": 12}, {"seeds": 1}]
)
def test_unlike_recoveries_do_not_share_a_table_or_figure(render, change):
    with pytest.raises(ValueError, match=f"Expected one method.*{next(iter(change.values()))}"):
        render([FUSED, recovery("glip-nano-a", 0.4, 0.3, 0.5, **change)])


def test_no_recovery_has_no_figure_and_one_no_difference():
    with pytest.raises(ValueError, match="got no recovery"):
        draw_recovery([])
    with pytest.raises(ValueError, match="first two trunks; got 1"):
        format_recovery([FUSED], DIFFERENCE)


def marked(axes, marker):
    """Return the points drawn with one marker, rounded."""
    return [
        (round(float(x), 6), float(y))
        for line in axes.lines
        if line.get_marker() == marker
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_the_figure_shows_gains_shares_and_published_shares_apart():
    figure = draw_recovery([FUSED, UNFUSED], note="Measured on made-up data.")
    left, right = figure.axes
    assert "prompt" in figure.get_suptitle()
    assert "full" in figure.get_suptitle()
    assert " ".join(figure.get_supxlabel().split()) == (
        "10 shots per class, mean over 13 datasets × 3 seeds. Lines: 95 % bootstrap intervals, datasets and seeds "
        "resampled. Measured on made-up data. Published: photos, larger models, 10 shots (GLIP, arXiv 2112.03857, "
        "Fig. 10), scored by the annotation ids of the files, where one box of a split is lost."
    )
    assert [bar.get_width() for bar in left.patches] == pytest.approx([16.0, 8.0, 20.0, 20.0])
    assert sorted(x for x, _ in marked(left, "|")) == pytest.approx([7.0, 9.0, 15.0, 17.0, 19.0, 19.0, 21.0, 21.0])
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["prompt", "full"]
    names = [tick.get_text() for tick in right.get_yticklabels()]
    assert names == ["glip-nano, fusion", "glip-nano-a, no fusion", *PUBLISHED]
    assert marked(right, "o") == [(80.0, 0.0), (40.0, 1.0)]
    assert sorted(marked(right, "|")) == [(30.0, 1.0), (45.0, 1.0), (70.0, 0.0), (90.0, 0.0)]
    assert marked(right, "<") == marked(right, ">") == []
    assert [x for x, _ in marked(right, "D")] == pytest.approx([100 * share for share in PUBLISHED.values()])
    assert {line.get_markerfacecolor() for line in right.lines if line.get_marker() == "D"} == {"white"}
    assert [y for _, y in marked(right, "D")] == list(right.get_yticks()[2:])
    assert {"measured", "published, at 10 shots", "full = 100 %", "80 %", "41 %"} <= set(words(right))


def test_limits_beyond_the_axis_are_arrows():
    right = draw_recovery([FUSED, recovery("glip-nano-a", 0.4, -math.inf, math.inf)]).axes[1]
    assert (len(marked(right, "<")), len(marked(right, ">"))) == (1, 1)
    low, high = right.get_xlim()
    assert low < marked(right, "<")[0][0] < 0 < 100 < marked(right, ">")[0][0] < high
    assert high - low < 300


def test_one_trunk_is_enough_for_a_figure(tmp_path):
    figure = draw_recovery([FUSED])
    assert "resampled. Published: photos" in " ".join(figure.get_supxlabel().split())
    figure.savefig(tmp_path / "recovery.png")
    assert (tmp_path / "recovery.png").stat().st_size > 5_000


def test_published_shares_follow_from_the_tables_of_the_paper():
    # Zero-shot, prompt and full AP at 10 shots, means over the 13 sets (Tables 14 to 16).
    tables = {
        "GLIP-T (A), no fusion": (28.8, 39.2, 54.1),
        "GLIP-T (B), fusion": (33.2, 52.8, 54.9),
        "GLIP-T (C), fusion": (44.4, 55.8, 57.1),
        "GLIP-T, fusion": (46.5, 56.6, 58.4),
        "GLIP-L, fusion": (52.1, 64.2, 64.9),
    }
    shares = {name: round((prompt - zero) / (full - zero), 2) for name, (zero, prompt, full) in tables.items()}
    assert shares == pytest.approx(dict(PUBLISHED))


def test_a_trunk_may_be_called_anything():
    odd = [dataclasses.replace(one, trunk=f"{one.trunk}$^$ <b>|") for one in (FUSED, UNFUSED)]
    figure = draw_recovery(odd, note="$^$")
    figure.savefig(io.BytesIO())
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [one.trunk for one in odd]
    table = format_recovery(odd, DIFFERENCE)
    assert "| glip-nano\\$^\\$ &lt;b&gt;\\| |" in table
