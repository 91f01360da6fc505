"""Published results of GLIP: AP per trunk, dataset, method and shots (arXiv 2112.03857, Tables 14–16).

Those on COCO, LVIS and Flickr30k are apart, each with its source: of ``glip-t`` they are of the released file.

Zero-shot is with the manual prompts of Table 10, PascalVOC on its validation split; all else is a mean over three
seeds. The curve of ``glip-t`` is of weights that were never released: the public file scores 42.7 zero-shot, not 46.5.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

import pandas as pd

SOURCE = "GLIP, arXiv 2112.03857, Tables 14–16"


def published_ap(trunk: str) -> pd.Series:
    """Return the published AP of a trunk in percent by dataset, method and shots; empty if there is none."""
    rows = _read("published.csv")
    return rows[rows["trunk"] == trunk].set_index(["dataset", "method", "shots"])["ap_percent"]


def published_mean(trunk: str, datasets: Sequence[str]) -> pd.Series:
    """Return the mean of the published AP over ``datasets`` in percent, by method and shots.

    Empty unless every one of them was published: a mean over other datasets is not comparable.
    """
    rows = published_ap(trunk)
    there = rows.index.get_level_values("dataset")
    if not set(datasets) <= set(there):
        return rows[:0].droplevel("dataset")
    return rows[there.isin(datasets)].groupby(["method", "shots"], sort=False).mean()


def published_values(trunk: str) -> pd.DataFrame:
    """Return the published values of a trunk on COCO, LVIS and Flickr30k; empty if there are none.

    Returns:
        Columns ``percent`` and ``source`` by dataset, method, shots and value, such as ``ap_rare`` or ``r1``.
    """
    rows = _read("published_suites.csv")
    return rows[rows["trunk"] == trunk].drop(columns="trunk").set_index(["dataset", "method", "shots", "value"])


def published_sentence(trunk: str, dataset: str) -> str:
    """Return what is published of a trunk on COCO, LVIS or Flickr30k, zero-shot, in a sentence; empty if nothing is."""
    rows = published_values(trunk).reset_index()
    rows = rows[(rows["dataset"] == dataset) & (rows["method"] == "zero_shot")]
    if not len(rows):
        return ""
    values = ", ".join(f"{name} {percent:.1f}" for name, percent in zip(rows["value"], rows["percent"], strict=True))
    return f"Published for {trunk}, not measured here: {values} % ({rows['source'].iloc[0]})."


def published_note(drawn: Sized, annotation_ids: Iterable[str]) -> str:
    """Return sentences for a figure that tell published values from ours, or nothing if none are drawn."""
    if not len(drawn):
        return ""
    return f"Hollow: published ({SOURCE}), not measured here. {scoring_note(annotation_ids)}"


def scoring_note(annotation_ids: Iterable[str]) -> str:
    """Return a sentence on how published numbers and ours, by ``ProtocolConfig.annotation_ids``, were scored."""
    ways = set(annotation_ids)
    if ways == {"as_in_file"}:
        return (
            "All are scored by the annotation ids of the files, as the public evaluator does: a box with id 0 can "
            "never be found."
        )
    ours = "some of ours are not (see annotation_ids in table.csv)" if "as_in_file" in ways else "ours are not"
    return (
        f"Published numbers are scored by the annotation ids of the files, where one box of a split is lost; {ours}, "
        "and may be higher by it (by up to 12 points on NorthAmericaMushrooms, 28 on Packages)."
    )


@functools.cache
def _read(name: str) -> pd.DataFrame:
    """Return all rows of a file; shots are numbers or ``"all"``, as in the records."""
    rows = pd.read_csv(Path(__file__).with_name(name), dtype={"shots": "str"})
    rows["shots"] = [text if text == "all" else int(text) for text in rows["shots"]]
    return rows.astype({"shots": "object"})
