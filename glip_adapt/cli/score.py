"""The verb ``score``: parse, call one library function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from glip_adapt.cli import terminal
from glip_adapt.cli.options import AsJson

score_app = typer.Typer()


@score_app.command()
def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="JSON file in COCO result form, from `eval --predictions` or any other detector. For recall, a JSON "
            "list of {image_id, sentence_id, boxes}: for each phrase of the sentence that has a true box, a list of "
            "\\[left, top, right, bottom], best first."
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            help="COCO or LVIS JSON file with the true boxes; its images are not needed. For recall, test.txt or "
            "val.txt in the folder of Flickr30k Entities, with Annotations and Sentences beside it."
        ),
    ],
    metric: Annotated[
        Literal["coco", "fixed_ap", "lvis_ap", "masks", "recall"],
        typer.Option(
            help="coco: AP, 100 boxes per class and image. fixed_ap: LVIS AP, 10,000 boxes per class. lvis_ap: LVIS "
            "AP, 300 boxes per image. masks: AP of masks, where both files have a segmentation of each object. recall: "
            "of phrases, at 1, 5, 10 and all boxes."
        ),
    ] = "coco",
    annotation_ids: Annotated[
        Literal["renumbered", "as_in_file"],
        typer.Option(help="as_in_file: as the public evaluator, which never finds a box whose id is 0."),
    ] = "renumbered",
    as_json: AsJson = False,
) -> None:
    """Score a file of predictions: COCO or LVIS AP, also per class; or recall of the phrases of sentences.

    Example: glip-adapt score predictions.json test/_annotations.coco.json --annotation-ids as_in_file

    Example: glip-adapt score predictions.json lvis_v1_val.json --metric fixed_ap

    Example: glip-adapt score grounded.json flickr30k/test.txt --metric recall
    """
    from glip_adapt.engine import scored_files
    from glip_adapt.engine.metrics.recall import recall_rows

    if metric == "recall":
        rows = recall_rows(scored_files.score_phrases(predictions, truth))
        terminal.print_rows(str(truth), rows, as_json)
        return
    scores = scored_files.score_detections(predictions, truth, metric, annotation_ids)
    rows = [{"metric": name, "value": value} for name, value in scores.values.items()]
    rows += [{"metric": f"ap of {name}", "value": value} for name, value in scores.per_class.items()]
    terminal.print_rows(str(truth), rows, as_json)
