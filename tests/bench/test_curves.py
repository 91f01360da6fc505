import itertools
import math

import pytest
from made_up import RECORDS, record

from glip_adapt.bench.report.curves import draw_data_efficiency, draw_trunks
from glip_adapt.bench.report.plotting import styles_of
from glip_adapt.bench.report.published import published_ap
from glip_adapt.bench.report.tables import load_table

PROMPT, FULL = (styles_of(["prompt", "full"])[method]["color"] for method in ("prompt", "full"))


@pytest.fixture
def table():
    return load_table(RECORDS)


def lines_of(axes):
    """Colour → set of drawn (AP, AP) segments, published ones left out."""
    drawn = {}
    for line in axes.lines:
        y = [round(float(value), 6) for value in line.get_ydata()]
        if line.get_marker() == "None" and line.get_transform() == axes.transData:
            segments = {pair for pair in itertools.pairwise(y) if not any(map(math.isnan, pair))}
            drawn.setdefault(line.get_color(), set()).update(segments)
    return drawn


def dotted(axes):
    """Colour → published AP, by the dotted lines."""
    return {line.get_color(): list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == ":"}


def test_picture_shows_complete_cells_only_with_shared_zero_and_distinct_styles(table):
    figure = draw_data_efficiency(table, "glip-t", note="Untrained.")
    main, *small = figure.axes
    assert "glip-t" in figure.get_suptitle()
    assert "Untrained." in figure.get_supxlabel()
    assert "Gaps" in figure.get_supxlabel()
    assert main.get_title(loc="left") == "mean over 2 datasets, ± std over seeds"
    assert [axes.get_title(loc="left") for axes in small] == ["a", "b"]
    assert [tick.get_text() for tick in main.get_xticklabels()] == ["0", "1", "5", "all"]
    drawn = lines_of(main)
    assert drawn[PROMPT] == {(15.0, 37.5), (37.5, 45.0)}
    assert drawn[FULL] == {(15.0, 17.0)}  # 5 shots and all data are incomplete: gaps
    assert lines_of(small[1])[FULL] == {(20.0, 22.0)}  # at 5 shots one of two seeds failed
    assert lines_of(small[0])[FULL] == {(10.0, 12.0), (12.0, 52.0), (52.0, 80.0)}
    labels = {text.get_text(): text.get_color() for text in main.texts}
    assert (labels["prompt"], labels["full"]) == (PROMPT, FULL)
    assert "zero-shot" in labels
    markers = {line.get_color(): line.get_marker() for line in main.lines if line.get_marker() != "None"}
    assert len(set(markers.values())) == len(markers) >= 2


def test_the_steps_off_the_log_axis_are_dashed(table):
    small = draw_data_efficiency(table, "glip-t").axes[1]
    styles = {
        tuple(round(float(value), 6) for value in line.get_ydata()): line.get_linestyle()
        for line in small.lines
        if line.get_color() == FULL and line.get_marker() == "None"
    }
    assert styles[12.0, 52.0] == "-"
    assert styles[10.0, 12.0] == styles[52.0, 80.0] == "--"


def test_shots_stand_on_a_log_axis_between_zero_and_all(table):
    main = draw_data_efficiency(table, "glip-t").axes[0]
    zero, one, five, everything = main.get_xticks()
    assert five - one == pytest.approx(math.log10(5))
    assert zero < one < five < everything


def test_error_bars_span_one_sample_std(table):
    main = draw_data_efficiency(table, "glip-t").axes[0]
    bars = [bar for container in main.containers for bar in container.lines[2][0].get_segments()]
    spans = {round(float(bar[1][1] - bar[0][1]), 3) for bar in bars if len(bar)}
    assert spans == {round(2 * 15 / math.sqrt(2), 3), round(2 * 10 / math.sqrt(2), 3), round(2 * 2 / math.sqrt(2), 3)}


@pytest.mark.parametrize("shots", [[0], ["all"], [0, "all"], [5]])
def test_any_shots_alone_can_be_drawn(shots):
    records = [record("a", "full" if value else "zero_shot", value, 3, 0.5) for value in shots]
    assert len(draw_data_efficiency(load_table(records), "glip-t").axes) == 1


def real(trunk="glip-t", names=("Raccoon", "pothole")):
    return load_table(
        [record(name, "zero_shot", 0, 3, 0.1, trunk) for name in names]
        + [record(name, "prompt", shots, 3, 0.2, trunk) for name in names for shots in (1, 5)]
    )


def test_published_curves_of_the_same_datasets_are_overlaid_and_labelled():
    figure = draw_data_efficiency(real(), "glip-t")
    main, raccoon, pothole = figure.axes
    published = published_ap("glip-t")
    theirs = {name: [published[name, "zero_shot", 0], *(published[name, "prompt", k] for k in (1, 5))] for name in
              ("Raccoon", "pothole")}  # fmt: skip
    assert dotted(raccoon)[PROMPT] == pytest.approx(theirs["Raccoon"])
    assert dotted(pothole)[PROMPT] == pytest.approx(theirs["pothole"])
    mean = [sum(pair) / 2 for pair in zip(*theirs.values(), strict=True)]
    assert dotted(main) == {PROMPT: pytest.approx(mean)}  # no curve of a method or of shots that were not run
    assert main.get_ylim()[1] > max(mean)
    assert "published (GLIP, arXiv 2112.03857" in figure.get_supxlabel()


def test_trunks_and_sets_that_were_not_published_have_no_overlay():
    figure = draw_data_efficiency(real("glip-nano"), "glip-nano")
    assert [dotted(axes) for axes in figure.axes] == [{}, {}, {}]
    assert "published" not in figure.get_supxlabel()
    mixed = draw_data_efficiency(real(names=("Raccoon", "Dice")), "glip-t").axes
    assert [bool(dotted(axes)) for axes in mixed] == [False, True, False]


def test_trunks_stand_side_by_side_in_a_panel_per_method_on_one_scale():
    other = [
        record(name, method, shots, 3, ap, trunk="glip-l")
        for name in ("x/a", "b", "c")
        for method, shots, ap in (("zero_shot", 0, 0.5), ("prompt", 1, 0.6), ("full", 1, 0.9))
    ]
    one_shot = [found for found in RECORDS if found.key.shots in (0, 1)]
    figure = draw_trunks(load_table([*one_shot, *other]), note="Untrained.")
    prompt, full = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["prompt", "full"]
    assert prompt.get_ylim() == full.get_ylim()
    assert prompt.get_ylim()[1] > 90
    first, second = (styles_of(["glip-t", "glip-l"])[trunk]["color"] for trunk in ("glip-t", "glip-l"))
    assert lines_of(prompt) == {first: {(15.0, 37.5)}, second: {(50.0, 60.0)}}  # c was run on one trunk only
    assert lines_of(full) == {first: {(15.0, 17.0)}, second: {(50.0, 90.0)}}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["glip-t", "glip-l"]
    assert "mean over 2 datasets" in prompt.get_ylabel()
