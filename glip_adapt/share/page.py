"""Write the page of an adapter: what to expect of it, how it was made, where it fails, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glip_adapt.core.files import written_whole
from glip_adapt.core.markup import escape, format_document, format_table
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.data.split import Split
from glip_adapt.engine.metrics import METRICS
from glip_adapt.engine.metrics.matching import (
    Curve,
    Integers,
    Matches,
    balanced_thresholds,
    confusion,
    match,
    precision_recall,
)
from glip_adapt.engine.metrics.protocol import Predictions
from glip_adapt.share.gallery import Counts, count, format_gallery
from glip_adapt.share.page_style import STYLE

_DASH = "–"


@dataclass(frozen=True, kw_only=True)
class AdapterPage:
    """What the page of an adapter tells.

    Attributes:
        title: of the page.
        split: the labelled images.
        start: zero-shot predictions on them in COCO result form.
        adapted: held-out predictions on them: of models that did not learn from the image.
        thresholds: class name → score from which a detection counts.
        facts: rows of a name and its value, such as ``("trained on", "40 images")``.
        tried: method, AP to expect as a fraction, and a remark, for each method that was tried.
        expected: AP to expect on new images as a fraction, and its interval; None where it cannot be told.
        zero_shot: zero-shot AP on the same images.
        test: zero-shot and adapted AP on a test split; None without one.
        notes: sentences for the head of the page.
    """

    title: str
    split: Split
    start: Predictions
    adapted: Predictions
    thresholds: Mapping[str, float]
    facts: Sequence[tuple[str, str]]
    tried: Sequence[tuple[str, float | None, str]]
    expected: tuple[float | None, tuple[float, float] | None]
    zero_shot: float | None
    test: tuple[float | None, float | None] | None
    notes: Sequence[str]


def write_page(path: Path, page: AdapterPage) -> None:
    """Write the page of an adapter to one HTML file that loads nothing from elsewhere.

    The gallery shows the images with most errors first. Those that would make the file larger than a few MB are left
    out, and the page says how many.

    Raises:
        FileNotFoundError, ValueError: if an image is missing or broken; ValueError also if a class has no threshold, or
            a prediction is about another image or class.
    """
    text = format_page(page)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def format_page(page: AdapterPage) -> str:
    """Return the page of an adapter as HTML; errors as ``write_page``."""
    truth = coco_ground_truth(page.split)
    start, adapted = match(page.start, truth), match(page.adapted, truth)
    shown_start, shown = start.above(balanced_thresholds(start)), adapted.above(page.thresholds)
    curves = list(zip(precision_recall(start), precision_recall(adapted), strict=True))
    sections = (
        ("What to expect", _expectation(page, Counts.of(shown.images))),
        ("How it was made", _making(page)),
        ("Class by class", _classes(page, truth, shown)),
        ("Precision and recall", _curves(page, curves)),
        ("Mixed-up classes", _confusion(page.split.classes, confusion(shown))),
        ("Images, worst first", format_gallery(page.split, shown_start, shown)),
    )
    links = "".join(f'<a href="#s{place}">{escape(title)}</a> ' for place, (title, _) in enumerate(sections))
    notes = "".join(f"<p>{escape(note)}</p>" for note in page.notes)
    parts = [
        f'<section id="s{place}"><h2>{escape(title)}</h2>{body}</section>'
        for place, (title, body) in enumerate(sections)
    ]
    return format_document(
        page.title, "\n".join([f"<h1>{escape(page.title)}</h1>{notes}<nav>{links}</nav>", *parts]), STYLE
    )


def _expectation(page: AdapterPage, counts: Counts) -> str:
    """Return the scores in large figures, and sentences on what they mean."""
    estimate, interval = page.expected
    limits = f"likely {_percent(interval[0])} to {_percent(interval[1])}" if interval else ""
    text = _figures(("zero-shot", page.zero_shot, ""), ("adapted", estimate, limits))
    text += (
        f"<p>Average precision (COCO AP, 0 to 100) on the {count(len(page.split), 'labelled image')}. The adapted "
        "figure is of models that did not learn from the image they looked at: an estimate for new images like these."
        "</p><p>On few images, average precision tends to come out some points too high, zero-shot as well as adapted"
        f"{'; the range does not allow for that' if interval else ''}.</p>"
    )
    if estimate is None:
        text += "<p>There are too few labelled images to tell what to expect.</p>"
    boxes = counts.hits + counts.misses
    if boxes:
        text += (
            f"<p>At the thresholds below it finds <b>{counts.hits} of {count(boxes, 'labelled box', 'es')}</b>, and "
            f"raises <b>{count(counts.false_alarms, 'false alarm')}</b>.</p>"
        )
    if page.test is not None:
        text += "<h3>On the test images</h3>" + _figures(("zero-shot", page.test[0], ""), ("adapted", page.test[1], ""))
        text += "<p>Images that were used neither to train nor to choose anything.</p>"
    return text


def _figures(*figures: tuple[str, float | None, str]) -> str:
    cells = "".join(
        f"<div><b>{_percent(value)}</b><span>{escape(name)}</span><small>{escape(remark)}</small></div>"
        for name, value, remark in figures
    )
    return f'<div class="figures">{cells}</div>'


def _making(page: AdapterPage) -> str:
    text = ""
    if page.facts:
        text += f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in page.facts)}</dl>"
    if page.tried:
        rows = [(escape(method), _percent(ap), escape(remark)) for method, ap, remark in page.tried]
        text += "<h3>Methods that were tried</h3>" + _scrolled(
            format_table(("method", "expected AP", ""), rows, (True, False, True))
        )
    return text or "<p>Nothing is known about it.</p>"


def _classes(page: AdapterPage, truth: Mapping[str, object], shown: Matches) -> str:
    """Return the table of classes; precision and recall are those at the thresholds."""
    classes = page.split.classes
    # Numbers instead of names, which need not differ.
    numbered = {**truth, "categories": [{"id": key, "name": str(k)} for k, key in enumerate(page.split.category_ids)]}
    before, after = (METRICS["coco"](found, numbered).per_class for found in (page.start, page.adapted))
    rows = []
    for label, name in enumerate(classes):
        found = [(image.found_labels == label, image.hit >= 0) for image in shown.images]
        boxes = sum(int((image.truth_labels == label).sum()) for image in shown.images)
        images = sum(bool((image.truth_labels == label).any()) for image in shown.images)
        hits, all_found = sum(int((m & h).sum()) for m, h in found), sum(int(m.sum()) for m, _ in found)
        ap = f"{_percent(before[str(label)])} → <b>{_percent(after[str(label)])}</b>"
        rates = [_percent(hits / whole if whole else None) for whole in (all_found, boxes)]
        rows.append([f"{label + 1}", escape(name), str(images), str(boxes), ap, f"{page.thresholds[name]:.2f}", *rates])
    header = ("", "class", "images", "boxes", "AP zero-shot → adapted", "threshold", "precision", "recall")
    return (
        "<p>A detection counts if its score reaches the threshold of its class. Precision: how many of 100 detections "
        "are right. Recall: how many of 100 boxes are found. Both are at the threshold, which was chosen on these "
        "images and so flatters them a little.</p>" + _scrolled(format_table(header, rows, (False, True, *[False] * 6)))
    )


def _curves(page: AdapterPage, curves: Sequence[tuple[Curve, Curve]]) -> str:
    panels = [
        _panel(name, before, after, page.thresholds[name])
        for name, (before, after) in zip(page.split.classes, curves, strict=True)
        if after.boxes
    ]
    if not panels:
        return "<p>There is no box to find.</p>"
    return (
        '<p class="legend"><span><svg width="34" height="10"><path class="after" d="M1 5H33"/></svg> adapted</span> '
        '<span><svg width="34" height="10"><path class="before" d="M1 5H33"/></svg> zero-shot</span> '
        '<span><svg width="12" height="12"><circle class="at" cx="6" cy="6" r="4"/></svg> at the threshold</span></p>'
        f'<div class="panels">{"".join(panels)}</div>'
    )


def _panel(name: str, before: Curve, after: Curve, threshold: float) -> str:
    """Return the curves of a class as SVG, 100 units wide and high, recall to the right and precision upwards."""
    lines = "".join(
        f'<path class="{kind}" d="M{" ".join(f"{100 * r:.1f},{100 - 100 * p:.1f}" for r, p in points)}"/>'
        for kind, points in (("before", _points(before)), ("after", _points(after)))
        if points
    )
    kept = int((after.thresholds >= threshold).sum())
    if kept:
        recall, precision = after.recall[kept - 1], after.precision[kept - 1]
        lines += f'<circle class="at" cx="{100 * recall:.1f}" cy="{100 - 100 * precision:.1f}" r="3.5"/>'
    return (
        f"<figure><figcaption>{escape(name)} <small>{count(after.boxes, 'box', 'es')}</small></figcaption>"
        f'<svg viewBox="-17 -5 124 124" role="img" aria-label="precision and recall of {escape(name)}">'
        '<path class="grid" d="M0 0H100M0 50H100M0 100H100M50 0V100M100 0V100M0 0V100"/>'
        '<text x="-3" y="3" class="y">100</text><text x="-3" y="53" class="y">50</text><text x="-3" y="103" class="y">0'
        '</text><text x="50" y="110" class="x">50</text><text x="100" y="110" class="x">100</text>'
        '<text x="25" y="110" class="x">recall</text><text x="-8" y="25" class="x" transform="rotate(-90 -8 25)">'
        f"precision</text>{lines}</svg></figure>"
    )


def _points(curve: Curve) -> list[tuple[float, float]]:
    """Return (recall, precision) where recall rises, which is all that a line needs."""
    pairs = list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True))
    rising = [pair for last, pair in zip([(0.0, 0.0), *pairs], pairs, strict=False) if pair[0] > last[0]]
    return [(0.0, rising[0][1]), *rising] if rising else []


def _confusion(names: Sequence[str], counts: Integers) -> str:
    """Return the confusion matrix as a table of the classes that occur, and its most frequent mix-ups in words."""
    most = counts.max(initial=1)
    mixed = sorted(
        ((int(counts[i, j]), i, j) for i in range(len(names)) for j in range(len(names)) if i != j and counts[i, j]),
        key=lambda entry: -entry[0],
    )
    text = (
        "<p>Each row is what is there, each column what was found, at the thresholds. The last column counts boxes "
        "that were missed, the last row false alarms where nothing is.</p>"
    )
    if mixed:
        words = "; ".join(f"{escape(names[i])} found as {escape(names[j])}: {n}" for n, i, j in mixed[:5])
        text += f"<p>Most frequent: {words}.</p>"
    there = [k for k in range(len(names)) if counts[k].any() or counts[:, k].any()]  # others are empty lines
    shown = [*((k, escape(names[k])) for k in there), (len(names), "nothing")]
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for _, name in shown)
    lines = []
    for i, name in shown:
        cells = ""
        for j, _ in shown:
            kind = "right" if i == j else "wrong"
            shade = f' class="{kind}" style="--share:{counts[i, j] / most:.2f}"' if counts[i, j] else ""
            cells += f"<td{shade}>{counts[i, j] or ''}</td>"
        lines.append(f'<tr><th scope="row" class="label">{name}</th>{cells}</tr>')
    return text + _scrolled(f'<table class="confusion"><tr><th></th>{head}</tr>{"".join(lines)}</table>')


def _scrolled(table: str) -> str:
    return f'<div class="scrolled">{table}</div>'


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.0f}"
