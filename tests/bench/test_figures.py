import json
import math

import pytest
from made_up import RECORDS, record

from glip_adapt.adapters import ADAPTERS
from glip_adapt.bench.report.figures import draw_comparison, draw_costs, draw_retention, draw_stages
from glip_adapt.bench.report.plotting import styles_of
from glip_adapt.bench.report.published import published_mean
from glip_adapt.bench.report.tables import bootstrap_mean, load_table

PROMPT, FULL = (styles_of(["prompt", "full"])[method]["color"] for method in ("prompt", "full"))


@pytest.fixture
def table():
    return load_table(RECORDS)


def points(axes, colour, hollow=False):
    """Height of every marker of a colour, left to right."""
    found = []
    for line in axes.lines:
        plain = line.get_marker() != "None" and line.get_color() == colour
        if plain and (line.get_markerfacecolor() == "white") == hollow:
            found += zip(line.get_xdata(), line.get_ydata(), strict=True)
    return [float(y) for _, y in sorted(found) if not math.isnan(y)]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_comparison_groups_methods_by_shots_and_names_what_is_missing(table):
    figure = draw_comparison(table, "glip-t", "Untrained.")
    (axes,) = figure.axes
    assert points(axes, PROMPT) == pytest.approx([37.5, 45.0])
    assert points(axes, FULL) == pytest.approx([17.0])
    assert words(axes).count("missing") == 3  # full at 5, both with all data
    assert "zero-shot" in words(axes)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "5", "all"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["prompt", "full"]
    assert "Untrained." in figure.get_supxlabel()
    assert "95 % bootstrap" in figure.get_supxlabel()
    level = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert level == pytest.approx([15.0])


def test_comparison_draws_the_intervals_of_the_table(table):
    (axes,) = draw_comparison(table, "glip-t").axes
    spans = [tuple(map(float, line.get_ydata())) for line in axes.lines if line.get_linestyle() == "-"]
    interval = bootstrap_mean(table).loc[("glip-t", "prompt", 1)]
    assert (interval["low"], interval["high"]) in spans


def test_comparison_shows_published_means_hollow_and_only_of_the_same_datasets():
    records = [record("Raccoon", "prompt", shots, 3, 0.2) for shots in (1, 5)]
    (axes,) = draw_comparison(load_table(records), "glip-t").axes
    theirs = published_mean("glip-t", ["Raccoon"])
    assert points(axes, PROMPT, hollow=True) == pytest.approx([theirs["prompt", 1], theirs["prompt", 5]])
    assert axes.get_ylim()[1] == pytest.approx(1.1 * max(theirs["prompt", 1], theirs["prompt", 5]))  # no others count
    nano = load_table([record("Raccoon", "prompt", 1, 3, 0.2, "glip-nano")])
    assert points(draw_comparison(nano, "glip-nano").axes[0], PROMPT, hollow=True) == []


def test_costs_have_a_panel_each_and_say_what_was_not_measured(table):
    figure = draw_costs(table, "glip-t")
    parameters, adapter, memory, seconds = figure.axes
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["trained parameters", "saved adapter", "peak memory", "seconds per run"]
    for axes in (parameters, adapter, seconds):
        assert points(axes, PROMPT) == pytest.approx([37.5, 45.0])
        assert points(axes, FULL) == pytest.approx([17.0])
        assert axes.get_xscale() == "log"
        assert {"zero-shot", "1", "5"} <= set(words(axes))
    assert points(memory, PROMPT) == []
    assert "not measured" in words(memory)


def test_costs_stand_where_they_were_measured():
    records = [record("a", "prompt", shots, 3, 0.2, peak_bytes=10**9, seconds=shots) for shots in (1, 5)]
    *_, memory, seconds = draw_costs(load_table(records), "glip-t").axes
    (line,) = (line for line in seconds.lines if line.get_color() == PROMPT)
    assert list(line.get_xdata()) == [1.0, 5.0]
    assert memory.lines[0].get_xdata()[0] == 1e9
    figure = memory.get_figure()
    figure.canvas.draw()
    assert "1 GB" in [tick.get_text() for tick in memory.get_xticklabels()]


def test_stages_lie_end_to_end_and_add_up_to_the_run():
    records = [
        record("a", "zero_shot", 0, 3, 0.2, stages={"test": 2.0}),
        record("a", "prompt", 5, 3, 0.2, stages={"training": 6.0, "test": 2.0, "scoring": 1.0}),
        record("a", "prompt", 5, 30, 0.2, stages={"training": 8.0, "test": 2.0}),
        record("a", "prompt", 1, 3, 0.2, stages={"training": 3.0}),
    ]
    (axes,) = draw_stages(load_table(records), "glip-t").axes
    bars = {
        container.get_label(): [(bar.get_x(), bar.get_width()) for bar in container] for container in axes.containers
    }
    assert bars == {
        "training": [(0.0, 0.0), (0.0, 3.0), (0.0, 7.0)],
        "test": [(0.0, 2.0), (3.0, 0.0), (7.0, 2.0)],
        "scoring": [(2.0, 0.0), (3.0, 0.0), (9.0, 0.5)],
    }
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["zero-shot", "prompt, 1 shot", "prompt, 5 shots"]


def test_retention_shows_the_other_sets_before_and_after():
    records = [record("a", "zero_shot", 0, 3, 0.1), record("b", "zero_shot", 0, 3, 0.3)]
    records += [record(name, "full", 5, 3, 0.5) for name in ("a", "b")]
    table = load_table(records)
    table["retention"] = [None, None, json.dumps({"b": 0.2}), json.dumps({"a": 0.1})]
    (axes,) = draw_retention(table, "glip-t").axes
    assert points(axes, FULL) == pytest.approx([15.0])
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == pytest.approx([20.0])
    assert "before adapting" in words(axes)


def test_a_method_looks_the_same_whichever_others_stand_beside_it():
    assert styles_of(["full"])["full"] == styles_of(["prompt", "linear_probe", "full"])["full"]
    names = [name for name in ADAPTERS if name != "zero_shot"]
    assert len({style["color"] for style in styles_of(names).values()}) == len(names) + 1
    assert styles_of(["prompt", "mine"])["mine"] not in styles_of(names).values()  # of somebody else's method


def test_costs_that_hardly_differ_have_few_labels():
    records = [record("a", m, 5, 3, 0.2) for m in ("prompt", "full")]
    table = load_table(records)
    table["peak_bytes"] = [1_590_000_000, 1_660_000_000]
    figure = draw_costs(table, table["trunk"][0])
    figure.draw_without_rendering()
    (memory,) = (axes for axes in figure.axes if axes.get_xlabel() == "peak memory")
    low, high = memory.get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in memory.get_xticks()) <= 5
