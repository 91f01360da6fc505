import json
import math
import re

import pandas as pd
import pytest

from glip_adapt.bench.plan import RunKey
from glip_adapt.bench.records import RunCost, RunMetrics, RunRecord, partial_run, read_records, write_record
from glip_adapt.bench.report import (
    draw_data_efficiency,
    format_markdown,
    load_table,
    pivot,
    summarize_datasets,
    summarize_mean,
    write_report,
)


def record(dataset, method, shots, seed, ap, trunk="glip-t"):
    """A run of ``dataset`` with AP ``ap``; an exception instead of a number is a failed run."""
    common = {
        "key": RunKey(trunk, dataset, method, shots, seed),
        "config": {},
        "environment": {"device": "cpu", "commit": "abc", "dirty": False},
        "created": "2025-01-01T00:00:00+00:00",
    }
    if isinstance(ap, Exception):
        return RunRecord(status="failed", error=f"{type(ap).__name__}: {ap}\nTraceback …", **common)
    metrics = RunMetrics(
        ap=ap, ap50=0.9, ap75=0.4, ap_small=None, ap_medium=0.2, ap_large=0.6, per_class={"cat": ap}, val_ap=0.3
    )
    cost = RunCost(trained_parameters=768, adapter_bytes=3072, peak_bytes=None, seconds=1.5)
    return RunRecord(status="done", metrics=metrics, cost=cost, **common)


# Two sets, two seeds; "full" failed once on b at 5 shots, and was never run on b with all data.
RECORDS = [
    record("x/a", "zero_shot", 0, 3, 0.10),
    record("b", "zero_shot", 0, 3, 0.20),
    record("x/a", "prompt", 1, 3, 0.20),
    record("x/a", "prompt", 1, 30, 0.30),
    record("b", "prompt", 1, 3, 0.40),
    record("b", "prompt", 1, 30, 0.60),
    record("x/a", "prompt", 5, 3, 0.30),
    record("x/a", "prompt", 5, 30, 0.30),
    record("b", "prompt", 5, 3, 0.50),
    record("b", "prompt", 5, 30, 0.70),
    record("x/a", "full", 1, 3, 0.11),
    record("x/a", "full", 1, 30, 0.13),
    record("b", "full", 1, 3, 0.21),
    record("b", "full", 1, 30, 0.23),
    record("x/a", "full", 5, 3, 0.50),
    record("x/a", "full", 5, 30, 0.54),
    record("b", "full", 5, 3, 0.70),
    record("b", "full", 5, 30, FloatingPointError("loss is nan | batch 7")),
    record("x/a", "full", "all", 3, 0.80),
]


@pytest.fixture
def table():
    return load_table(RECORDS)


def store(out, records):
    out.mkdir(exist_ok=True)
    for one in records:
        with partial_run(out, one.key) as directory:
            write_record(out, one, directory)


def test_table_has_one_row_per_run_with_fractions(table):
    assert len(table) == len(RECORDS)
    row = table.set_index("run").loc["glip-t--a--prompt--1--3"]
    assert (row.dataset, row.shots, row.seed, row.ap, row.ap50, row.val_ap) == ("a", 1, 3, 0.2, 0.9, 0.3)
    assert math.isnan(row.ap_small)
    assert (row.trained_parameters, row.adapter_bytes, row.seconds) == (768, 3072, 1.5)
    assert row.peak_bytes is pd.NA
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


def test_mean_over_datasets_is_missing_as_soon_as_one_run_is(table):
    summary = summarize_mean(table)
    assert math.isnan(summary.loc[("glip-t", "full", 5), "mean"])
    assert math.isnan(summary.loc[("glip-t", "full", 5), "std"])
    assert tuple(summary.loc[("glip-t", "full", 5), ["finished", "expected"]]) == (3, 4)
    assert tuple(summary.loc[("glip-t", "full", "all"), ["finished", "expected"]]) == (1, 2)


def test_pivot_per_dataset_by_hand(table):
    wide = pivot(summarize_datasets(table))
    assert list(wide.columns) == [0, 1, 5, "all"]
    assert wide.loc[("glip-t", "a", "prompt")].tolist() == ["10.0", "25.0 ± 7.1", "30.0 ± 0.0", "–"]
    assert wide.loc[("glip-t", "b", "prompt")].tolist() == ["20.0", "50.0 ± 14.1", "60.0 ± 14.1", "–"]
    assert wide.loc[("glip-t", "a", "full")].tolist() == ["10.0", "12.0 ± 1.4", "52.0 ± 2.8", "80.0"]
    assert wide.loc[("glip-t", "b", "full")].tolist() == ["20.0", "22.0 ± 1.4", "70.0 (1 of 2 seeds)", "–"]
    assert len(wide) == 4


def test_pivot_of_means_says_how_many_are_missing(table):
    wide = pivot(summarize_mean(table))
    assert wide.loc[("glip-t", "prompt")].tolist() == ["15.0", "37.5 ± 10.6", "45.0 ± 7.1", "–"]
    assert wide.loc[("glip-t", "full")].tolist() == ["15.0", "17.0 ± 1.4", "– (1 of 4 missing)", "– (1 of 2 missing)"]


def test_undefined_ap_counts_as_missing():
    table = load_table([record("a", "prompt", 1, 3, None), record("b", "prompt", 1, 3, 0.5)])
    assert pivot(summarize_mean(table)).loc[("glip-t", "prompt"), 1] == "– (1 of 2 missing)"


def test_zero_shot_counts_once_whatever_its_seed():
    table = load_table([record("a", "zero_shot", 0, 3, 0.1), record("b", "zero_shot", 0, 30, 0.3)])
    assert pivot(summarize_mean(table)).loc[("glip-t", "zero_shot"), 0] == "20.0"


def test_trunks_are_averaged_apart_over_their_own_datasets():
    records = [
        record("a", "full", 1, 3, 0.2),
        record("a", "full", 1, 3, 0.4, "nano"),
        record("b", "full", 1, 3, 0.6, "nano"),
    ]
    wide = pivot(summarize_mean(load_table(records)))
    assert wide[1].to_dict() == {("glip-t", "full"): "20.0", ("nano", "full"): "50.0"}


def test_report_writes_table_and_pictures(tmp_path):
    store(tmp_path, RECORDS)
    files = write_report(tmp_path, note="The trunk is untrained.")
    report = tmp_path / "report"
    assert files.csv == report / "table.csv"
    assert files.markdown.read_text() == format_markdown(load_table(read_records(tmp_path)), "The trunk is untrained.")
    assert files.figures == (report / "data_efficiency.png", report / "data_efficiency.svg")
    png, svg = (path.read_bytes() for path in files.figures)
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000
    assert len(svg) > 10_000
    rows = pd.read_csv(files.csv)
    assert len(rows) == len(RECORDS)
    assert rows.set_index("run").loc["glip-t--b--prompt--5--30", "ap"] == 0.7
    assert json.loads(rows.set_index("run").loc["glip-t--b--prompt--5--30", "per_class"]) == {"cat": 0.7}


def test_markdown_holds_note_tables_missing_count_and_failed_runs(table):
    text = format_markdown(table, note="The trunk is untrained.")
    assert text.startswith("# Benchmark report\n\nThe trunk is untrained.\n")
    assert "| glip-t | a | prompt | 10.0 | 25.0 ± 7.1 | 30.0 ± 0.0 | – |" in text
    assert "## Mean over 2 datasets, glip-t\n\na, b.\n" in text
    assert "| glip-t | full | 15.0 | 17.0 ± 1.4 | – (1 of 4 missing) | – (1 of 2 missing) |" in text
    assert "4 expected figures missing" in text  # full: b at 5 seed 30, b at all; prompt: a and b at all
    assert "## 1 failed run\n" in text
    assert "| glip-t--b--full--5--30 | FloatingPointError: loss is nan \\| batch 7 |" in text
    assert "Traceback" not in text


def test_complete_report_says_so():
    text = format_markdown(load_table(RECORDS[:10]))
    assert "No figure is missing." in text
    assert "failed" not in text


def test_several_trunks_get_a_picture_each_and_stale_pictures_go(tmp_path):
    store(tmp_path, [record("a", "full", 1, 3, 0.2)])
    write_report(tmp_path)
    store(tmp_path, [record("a", "full", 1, 3, 0.2, "nano")])
    write_report(tmp_path)
    assert sorted(path.name for path in (tmp_path / "report").glob("*.png")) == [
        "data_efficiency--glip-t.png",
        "data_efficiency--nano.png",
    ]


def test_equal_records_give_equal_pictures(tmp_path):
    store(tmp_path, RECORDS[:6])
    first = [path.read_bytes() for path in write_report(tmp_path).figures]
    assert [path.read_bytes() for path in write_report(tmp_path).figures] == first


def lines_of(axes):
    """Colour → set of drawn (AP, AP) segments that have both ends."""
    drawn = {}
    for line in axes.lines:
        y = list(line.get_ydata())
        if (
            len(y) == 2
            and line.get_marker() == "None"
            and not any(map(math.isnan, y))
            and line.get_transform() == axes.transData
        ):
            drawn.setdefault(line.get_color(), set()).add(tuple(round(value, 6) for value in y))
    return drawn


def test_picture_shows_complete_cells_only_with_shared_zero_and_distinct_styles(table):
    figure = draw_data_efficiency(table, "glip-t", note="Untrained.")
    main, *small = figure.axes
    assert "glip-t" in figure.get_suptitle()
    assert "Untrained." in figure.get_supxlabel()
    assert main.get_title(loc="left") == "mean over 2 datasets, ± std over seeds"
    assert [axes.get_title(loc="left") for axes in small] == ["a", "b"]
    assert [tick.get_text() for tick in main.get_xticklabels()] == ["0", "1", "5", "all"]
    prompt, full = lines_of(main)["#0072B2"], lines_of(main)["#D55E00"]
    assert prompt == {(15.0, 37.5), (37.5, 45.0)}
    assert full == {(15.0, 17.0)}  # 5 shots and all data are incomplete: gaps
    assert lines_of(small[1])["#D55E00"] == {(20.0, 22.0)}  # at 5 shots one of two seeds failed
    labels = {text.get_text(): text.get_color() for text in main.texts}
    assert (labels["prompt"], labels["full"]) == ("#0072B2", "#D55E00")
    assert "zero-shot" in labels
    markers = {line.get_color(): line.get_marker() for line in main.lines if line.get_marker() != "None"}
    assert len(set(markers.values())) == len(markers) >= 2


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


def test_store_of_failed_runs_alone_still_reports_them(tmp_path):
    store(tmp_path, [record("a", "full", shots, 3, ValueError("no")) for shots in (1, 5)])
    text = write_report(tmp_path).markdown.read_text()
    assert "## 2 failed runs" in text
    assert re.search(r"\| glip-t \| a \| full \| – \| – \|", text)


def test_zero_shot_alone_is_reported(tmp_path):
    store(tmp_path, [record("a", "zero_shot", 0, 3, 0.125)])
    files = write_report(tmp_path)
    assert "| glip-t | a | zero_shot | 12.5 |" in files.markdown.read_text()


def test_folder_without_records_says_how_to_make_some(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no benchmark records.*glip-adapt bench"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
