import json
import re
import time
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
from made_up import RECORDS, record, store
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from glip_adapt.bench.records import read_records
from glip_adapt.bench.report import write
from glip_adapt.bench.report.document import build_document
from glip_adapt.bench.report.markup import format_latex, format_markdown
from glip_adapt.bench.report.published import published_ap
from glip_adapt.bench.report.tables import load_table
from glip_adapt.bench.report.write import _call_synthetic, write_report


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    store(folder, RECORDS)
    return folder


@pytest.fixture(scope="module")
def files(out):
    return write_report(out, note="The trunk is untrained.")


@pytest.fixture
def one_figure(monkeypatch):
    """Have reports hold one empty figure instead of those that take a second to draw."""

    def draw(table, note):
        figure = Figure(layout="constrained")
        figure.subplots()
        figure.suptitle("Costs")
        yield "cost", figure

    monkeypatch.setattr(write, "_draw", draw)


def test_report_writes_tables_pictures_and_one_page(out, files):
    sections = build_document(load_table(read_records(out)), "The trunk is untrained.")
    assert files.markdown.read_text() == format_markdown(sections)
    assert files.latex.read_text() == format_latex(sections)
    assert sorted(files.paths) == sorted((out / "report").iterdir())
    assert [path.name for path in files.figures] == [
        f"{stem}.{suffix}" for stem in ("data_efficiency", "comparison", "cost") for suffix in ("png", "svg")
    ]
    for path in files.figures:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
        assert path.stat().st_size > 10_000
    page = files.page.read_text()
    assert page.count("<img ") == 3
    assert "The trunk is untrained." in page


@pytest.mark.parametrize("read", [lambda files: pd.read_csv(files.csv), lambda files: pd.read_parquet(files.parquet)])
def test_the_runs_read_back_from_csv_and_parquet(files, read):
    rows = read(files)
    assert len(rows) == len(RECORDS)
    row = rows.set_index("run").loc["glip-t--b--prompt--5--30"]
    assert (row["ap"], row["shots"], row["seed"]) == (0.7, "5", 30)
    assert json.loads(row["per_class"]) == {"cat": 0.7}
    assert set(rows["shots"]) == {"0", "1", "5", "all"}


def test_equal_records_give_equal_files(out, files):
    first = [path.read_bytes() for path in files.paths]
    assert [path.read_bytes() for path in write_report(out, note="The trunk is untrained.").paths] == first


def test_the_last_digits_of_a_layout_do_not_reach_the_files(out, files, monkeypatch):
    """The solver of matplotlib takes its variables in the order of their addresses, and so ends elsewhere each time."""
    execute = ConstrainedLayoutEngine.execute

    def nudge(self, figure):
        execute(self, figure)
        for axes in figure.axes:
            axes.set_position([place * (1 + 1e-15) for place in axes.get_position().bounds])

    first = {path: path.read_bytes() for path in files.figures}
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", nudge)
    write_report(out, note="The trunk is untrained.")
    assert {path: path.read_bytes() for path in files.figures} == first


def test_several_trunks_get_pictures_each_and_stale_ones_go(tmp_path):
    store(tmp_path, [record("a", "full", 1, 3, 0.2)])
    write_report(tmp_path)
    (tmp_path / "report" / "strip.png").touch()
    store(tmp_path, [record("a", "zero_shot", 0, 3, 0.2, "nano")])
    write_report(tmp_path)
    assert sorted(path.name for path in (tmp_path / "report").glob("*.png")) == [
        "comparison--glip-t.png",
        "cost--glip-t.png",
        "data_efficiency--glip-t.png",
        "data_efficiency--nano.png",  # zero-shot alone has neither methods to compare nor costs
        "strip.png",  # of someone else
        "trunks.png",
    ]


def test_retention_is_drawn_where_it_was_measured(tmp_path):
    records = [record(name, "zero_shot", 0, 3, 0.4) for name in ("a", "b")]
    records += [record(name, "full", 5, 3, 0.5, retention={other: 0.3}) for name, other in ("ab", "ba")]
    store(tmp_path, records)
    files = write_report(tmp_path)
    assert "retention.png" in {path.name for path in files.figures}
    assert "Zero-shot retention of glip-t" in files.page.read_text()


@pytest.mark.parametrize("shots", [0, 1])
def test_retention_that_no_adapted_run_has_on_another_set_is_not_drawn(tmp_path, shots):
    store(tmp_path, [record("a", "prompt", shots, 3, 0.2, retention={"a" if shots else "b": 0.2})])
    assert not [path for path in write_report(tmp_path).figures if path.name.startswith("retention")]


@pytest.mark.parametrize(
    ("dataset", "note", "head"),
    [
        ("glyphs13/Dice", "", "Synthetic pictures, rendered from fonts: Dice."),
        ("glyphs13/Dice", "Short.", "Short. Synthetic pictures, rendered from fonts: Dice."),
        ("glyphs13/Dice", "All synthetic.", "All synthetic."),
        ("Dice", "Short.", "Short."),
    ],
)
def test_synthetic_sets_are_called_so_whatever_the_note(dataset, note, head):
    assert _call_synthetic([record(dataset, "full", 1, 3, 0.2)], note) == head


def test_synthetic_sets_are_called_so_in_tables_figures_and_page(tmp_path):
    store(tmp_path, [record("glyphs13/Dice", "zero_shot", 0, 3, 0.2)])
    files = write_report(tmp_path)
    sentence = "Synthetic pictures, rendered from fonts: Dice."
    assert files.markdown.read_text().startswith(f"# Benchmark report\n\n{sentence}\n")
    assert f"<p>{sentence}</p>" in files.page.read_text()
    assert sentence in files.figures[1].read_text()


def test_store_of_failed_runs_alone_still_reports_them(tmp_path):
    store(tmp_path, [record("a", "full", shots, 3, ValueError("no")) for shots in (1, 5)])
    files = write_report(tmp_path)
    text = files.markdown.read_text()
    assert "## 2 failed runs" in text
    assert "| glip-t | a | full | – | – |" in text
    assert "2 failed runs" in files.page.read_text()


def test_zero_shot_alone_is_reported(tmp_path):
    store(tmp_path, [record("a", "zero_shot", 0, 3, 0.125)])
    assert "| glip-t | a | zero_shot | 12.5 |" in write_report(tmp_path).markdown.read_text()


def test_folder_without_records_says_how_to_make_some(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no benchmark records.*glip-adapt bench"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_five_thousand_records_are_reported_in_twenty_seconds(tmp_path):
    methods, shots, seeds = ("full", "linear_probe", "lora", "prompt"), (1, 3, 5, 10, "all"), range(6)
    store(
        tmp_path,
        [
            record(f"set{dataset}", method, k, seed, (0.3 + 0.01 * dataset + 0.013 * seed) % 1, trunk)
            for trunk in ("one", "two", "three")
            for dataset in range(14)
            for method in methods
            for k in shots
            for seed in seeds
        ],
    )
    started = time.perf_counter()
    files = write_report(tmp_path)
    assert time.perf_counter() - started < 20
    assert len(pd.read_parquet(files.parquet)) == 5040


HOSTILE = "=a$^$b<script>alert(1)</script>![x](http://tracker/x.png)\x1b[31m`code`"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report of records whose every text is hostile, as far as a folder name allows."""
    folder = tmp_path_factory.mktemp("hostile")
    name = "=a$^$b![x](c)`d`"
    environment = {"device": HOSTILE, "commit": HOSTILE, "dirty": True}
    records = [
        record(name, "zero_shot", 0, 3, 0.1),
        *(record(name, "prompt", 1, seed, 0.2) for seed in (3, 30)),
        record(name, "prompt", 1, 300, ValueError(HOSTILE)),
    ]
    store(folder, [replace(one, environment=environment) for one in records])
    return write_report(folder, note=HOSTILE)


def test_no_text_of_a_record_is_markup_or_a_control_code(hostile):
    for path in (hostile.markdown, hostile.csv, hostile.latex, hostile.page):
        assert "\x1b" not in path.read_text(), path
    markdown = hostile.markdown.read_text()
    for sign in ("<", "![", "](", "`", "://"):
        assert not re.search(rf"(?<!\\){re.escape(sign)}", markdown), sign
    assert "<script>alert" not in hostile.page.read_text()


def test_no_text_cell_of_the_table_begins_like_a_formula(hostile):
    table = pd.read_csv(hostile.csv)
    texts = [value for value in table.to_numpy().ravel() if isinstance(value, str)]
    assert texts
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]
    assert set(table["dataset"]) == {"'=a$^$b![x](c)`d`"}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\n=1"])
def test_text_that_a_spreadsheet_would_run_gets_a_quote_before_it(text):
    assert write._no_formula(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=1", "1-2", "", -1.5, None])
def test_other_cells_stay_as_they_are(value):
    assert write._no_formula(value) == value


def test_dollars_in_a_name_are_no_formula(hostile):
    assert all(path.stat().st_size > 10_000 for path in hostile.figures)


@pytest.mark.parametrize("kind", ["figures", "csv", "markdown", "page", "parquet"])
def test_a_report_that_cannot_be_written_leaves_the_old_files(one_figure, tmp_path, monkeypatch, kind):
    store(tmp_path, RECORDS)
    files = write_report(tmp_path)
    before = {path: path.read_bytes() for path in files.paths}
    last = files.figures[-1] if kind == "figures" else getattr(files, kind)
    whole = write.written_whole

    @contextmanager
    def full(path):
        with whole(path) as temporary:
            yield temporary
            if path == last:
                temporary.write_bytes(b"half")
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "written_whole", full)
    with pytest.raises(OSError, match="could not be written"):
        write_report(tmp_path, note="another note")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {path.name for path in files.paths}
    assert last.read_bytes() == before[last]


@pytest.mark.parametrize(
    ("annotation_ids", "said"),
    [("as_in_file", "with id 0 can never be found"), ("renumbered", "ours are not"), (None, "ours are not")],
)
def test_published_numbers_stand_beside_the_way_ours_were_scored(one_figure, tmp_path, annotation_ids, said):
    config = {"protocol": {"annotation_ids": annotation_ids}} if annotation_ids else {}
    names = published_ap("glip-t").index.get_level_values("dataset").unique()
    store(tmp_path, [replace(record(name, "zero_shot", 0, 3, 0.1), config=config) for name in names])
    files = write_report(tmp_path)
    assert said in files.markdown.read_text()
    page = files.page.read_text()
    assert said in page
