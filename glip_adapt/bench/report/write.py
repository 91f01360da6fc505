"""Write the report of a results folder: tables, figures, one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from glip_adapt.bench.plan import ZERO_SHOT
from glip_adapt.bench.records import RunRecord, read_records
from glip_adapt.bench.report.curves import draw_data_efficiency, draw_trunks, shared_datasets
from glip_adapt.bench.report.document import build_document
from glip_adapt.bench.report.figures import draw_comparison, draw_costs, draw_retention, draw_stages
from glip_adapt.bench.report.markup import format_latex, format_markdown, format_page
from glip_adapt.bench.report.tables import load_table, summarize_retention
from glip_adapt.core.files import written_whole
from glip_adapt.core.plain_text import plain
from glip_adapt.data.glyphs13 import rendered_datasets

_STEMS = ("trunks", "data_efficiency", "comparison", "cost", "stages", "retention")


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written; ``figures`` holds a PNG and an SVG each."""

    csv: Path
    parquet: Path
    markdown: Path
    latex: Path
    page: Path
    figures: tuple[Path, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, the page last."""
        return self.csv, self.parquet, self.markdown, self.latex, *self.figures, self.page


def write_report(out: Path, note: str = "") -> ReportFiles:
    """Write ``OUT/report/`` and return its files.

    The runs are in table.csv and table.parquet, the tables in table.md and table.tex, each figure in a PNG and an SVG
    (one pair per trunk if there are several, and one with all of them), and all tables and figures in index.html.
    Synthetic datasets are called so, whether or not ``note`` does.

    Args:
        out: the results folder.
        note: a sentence that heads the tables and stands below the figures, for example on their limits.

    Raises:
        FileNotFoundError: if ``out`` holds no record.
        ValueError: if a record is broken; names the file.
    """
    records = read_records(out)
    if not records:
        raise FileNotFoundError(
            f"{out}: holds no benchmark records. Make some first: glip-adapt bench PLAN.toml --out {out}"
        )
    note = plain(_call_synthetic(records, note.strip()))
    table = load_table(records)
    folder = out / "report"
    sections, drawn = build_document(table, note), {}
    with matplotlib.rc_context({"text.parse_math": False}):  # names from elsewhere are no formulas
        for stem, figure in _draw(table, note):
            drawn[figure.get_suptitle()] = save_figure(figure, folder / stem)
    files = ReportFiles(
        csv=folder / "table.csv",
        parquet=folder / "table.parquet",
        markdown=folder / "table.md",
        latex=folder / "table.tex",
        page=folder / "index.html",
        figures=tuple(path for saved in drawn.values() for path in saved),
    )
    with written_whole(files.parquet) as temporary:
        table.astype({"shots": "str"}).to_parquet(temporary, index=False)  # numbers and "all" share the column
    for path, text in (
        (files.csv, table.map(_no_formula).to_csv(index=False)),
        (files.markdown, format_markdown(sections)),
        (files.latex, format_latex(sections)),
        (files.page, format_page(sections, {title: vector.read_bytes() for title, (_, vector) in drawn.items()})),
    ):
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for stale in {path for stem in _STEMS for path in folder.glob(f"{stem}*") if path.is_file()} - set(files.figures):
        stale.unlink()
    return files


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write ``STEM.png`` and ``STEM.svg`` and return the two; equal figures give equal files."""
    raster, vector = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    figure.set_layout_engine(None)  # else each file costs a layout and one more drawing to measure it
    for axes in figure.axes:  # the solver's last digits differ from run to run, and are in the names of clip paths
        axes.set_position(np.round(axes.get_position().bounds, 9))
    with written_whole(raster) as temporary:
        figure.savefig(temporary, dpi=160)
    with matplotlib.rc_context({"svg.hashsalt": "glip_adapt"}), written_whole(vector) as temporary:
        figure.savefig(temporary, metadata={"Date": None})
    return raster, vector


def _call_synthetic(records: Iterable[RunRecord], note: str) -> str:
    """Return the note, with a sentence on synthetic datasets where it has none."""
    keys = (record.key for record in records)
    names = list(dict.fromkeys(key.dataset_name for key in keys if key.dataset in rendered_datasets()))
    if not names or "synthetic" in note.lower():
        return note
    return f"{note} Synthetic pictures, rendered from fonts: {', '.join(names)}.".strip()


def _draw(table: pd.DataFrame, note: str) -> Iterator[tuple[str, Figure]]:
    """Yield file stem and figure: trunks side by side, the curves of each, other figures only if they have content."""
    trunks = list(dict.fromkeys(table["trunk"]))
    if len(trunks) > 1 and shared_datasets(table):
        yield "trunks", draw_trunks(table, note)
    for trunk in trunks:
        runs = table[table["trunk"] == trunk]
        adapted = ((runs["method"] != ZERO_SHOT) & runs["ap"].notna()).any()
        for stem, draw, has_content in (
            ("data_efficiency", draw_data_efficiency, True),
            ("comparison", draw_comparison, adapted),
            ("cost", draw_costs, adapted),
            ("stages", draw_stages, runs["stages"].notna().any()),
            ("retention", draw_retention, len(summarize_retention(runs)) > 0),
        ):
            if has_content:
                yield (stem if len(trunks) == 1 else f"{stem}--{trunk}"), draw(table, trunk, note)


def _no_formula(value: Any) -> Any:
    """Return a cell that no spreadsheet runs: text that begins like a formula gets a quote in front."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value
