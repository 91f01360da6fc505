"""Why does a student surpass its teacher? Labelled scenes, captioned scenes, and names that only captions have.

    python -m benchmarks.teacher_student run --seed 0 --out runs/teacher_student
    python -m benchmarks.teacher_student report --out runs/teacher_student

GLIP, arXiv 2112.03857, section 3.3, supposes that a teacher makes an educated guess where language helps: it may not
know "vaccine", and still find "a small vial of vaccine". Here 2 000 labelled scenes show half of the pictograms of the
embedded trunks, as lists of names and as sentences. 4 000 captioned scenes show all of them, and have no boxes: "a red
comet, a blue anchor and a green star". A teacher that does not know comets may still know what is red.

Four trainings from one network of random weights: the teacher on labelled scenes; from there, with as many steps each,
the student on labelled scenes and on captioned ones that the teacher labelled; the control on labelled scenes alone;
the ceiling on the same scenes as the student, with their true boxes. AP is that of new scenes by bare names, without
colours: names that had boxes, names that only captions had, and names that nothing had.

A killed run goes on from its folder. One thread; about an hour a seed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.progress import track
from scipy.stats import t as student_t
from torchvision.ops import box_iou

from benchmarks.pretrain_nano import build_sentence
from glip_adapt import adapt, attach, evaluate, load_captions, load_dataset
from glip_adapt.core import boxes
from glip_adapt.core.captions import build_caption
from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.captions import odvg
from glip_adapt.data.glyphs import Glyph, seen_glyphs, unseen_glyphs
from glip_adapt.data.glyphs13 import GlyphSet, write_glyph_set
from glip_adapt.data.scenes import TRAINING_STYLE, render_scene
from glip_adapt.data.split import Annotation, ImageRecord
from glip_adapt.engine.pretrain import CaptionedBatches, PretrainConfig, PreTraining
from glip_adapt.engine.pseudo_labels import Result, captioned_image, find_phrases, unlabelled, with_labels
from glip_adapt.trunks.catalogue import Trunk, load_tokenizer
from glip_adapt.trunks.protocol import Network
from glip_adapt.trunks.released import trunk_spec
from glip_adapt.trunks.weights import weights_checksum

TRUNK, SIDE, BATCH = "glip-nano", 160, 16
VIEW = ViewConfig(short_side=SIDE, max_long_side=2 * SIDE)
LABELLED, CAPTIONED, HELD_OUT = 2000, 4000, 150  # scenes
OBJECTS = (3, 6)  # on a scene
NEGATIVES = 8  # absent names in a list
LISTS = 0.5  # share of labelled scenes whose caption is a list of names; the others have sentences with colours
TEACHER = PretrainConfig(steps=900, cycle=900, warm_up=100, score_every=10**6)
PUPIL = PretrainConfig(steps=500, cycle=500, warm_up=50, learning_rate=5e-4, score_every=10**6)
THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(15))  # candidates; the best F1 on held-out scenes is taken
GROUPS = ("boxes", "captions", "nothing")
GROUP_TITLES = {"boxes": "names with boxes", "captions": "names in captions only", "nothing": "names in neither"}
ARMS = ("teacher", "control", "student", "ceiling")
TEST_SETS, TEST_NAMES, TEST_SCENES = 4, 10, 60  # of each group
RECORDS = Path(__file__).resolve().parent / "results" / "teacher_student.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/teacher_student"))
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--seed", type=int, default=0)
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.command == "run":
        torch.set_num_threads(1)
        Experiment(arguments.out, arguments.seed).run()
    else:
        report(arguments.out)


def known_half(glyph: Glyph) -> bool:
    """Tell whether labelled scenes show a pictogram; the same in every run."""
    return blake2b(glyph.name.encode()).digest()[0] % 2 == 0


def names_of(group: str) -> list[Glyph]:
    """Return the pictograms of a group of names."""
    if group == "nothing":
        return list(unseen_glyphs())
    return [glyph for glyph in seen_glyphs() if known_half(glyph) == (group == "boxes")]


class Experiment:
    """One seed: its scenes, its four trainings, its scores."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.folder, self.seed = out, out / f"seed-{seed}", seed
        self.tokenizer = load_tokenizer(TRUNK)
        known, every = names_of("boxes"), list(seen_glyphs())
        self.labelled = self.render("labelled", known, LABELLED, lists=LISTS)
        self.held_out = self.render("held_out", known, HELD_OUT)
        self.captioned = self.render("captioned", every, CAPTIONED)

    def run(self) -> None:
        """Do what is left to do."""
        teacher = self.train("teacher", self.labelled, TEACHER, None)
        pseudo = self.label(teacher)
        self.train("control", self.labelled, PUPIL, teacher)
        self.train("student", evenly(self.labelled, pseudo), PUPIL, teacher)
        self.train("ceiling", evenly(self.labelled, self.captioned), PUPIL, teacher)

    def render(self, name: str, glyphs: Sequence[Glyph], count: int, lists: float = 0.0) -> CaptionedSplit:
        """Return scenes of some pictograms: a share ``lists`` with lists of names, the rest with sentences."""
        folder, dice = self.folder / name, np.random.default_rng([self.seed, *name.encode()])
        folder.mkdir(parents=True, exist_ok=True)
        names, images = [glyph.name for glyph in glyphs], list[CaptionedImage]()
        for position in track(range(count), f"{name} scenes, seed {self.seed}"):
            chosen = [glyphs[i] for i in dice.integers(len(glyphs), size=dice.integers(*OBJECTS, endpoint=True))]
            scene = render_scene(chosen, None, TRAINING_STYLE, dice, (SIDE, SIDE))
            path = folder / f"{position:05d}.png"
            if not path.exists():
                scene.image.save(path, compress_level=1)
            is_list, absent = dice.random() < lists, tuple[str, ...]()
            if is_list:
                found, absent = scene.names, tuple(name for name in names if name not in scene.names)
                sentences = [build_caption([name]) for name in dict.fromkeys(found)]
            else:
                found = tuple(f"{c} {n}" for n, c in zip(scene.names, scene.colours, strict=True))
                sentences = [build_sentence(list(dict.fromkeys(found)))]
            phrases = [phrase for sentence in sentences for phrase in sentence.names]
            boxes_xywh = boxes.edges_to_xywh(boxes.to_edges(torch.from_numpy(scene.boxes_xyxy))).tolist()
            truth = [
                Annotation(phrases.index(phrase), (x, y, w, h), w * h, False)
                for phrase, (x, y, w, h) in zip(found, boxes_xywh, strict=True)
            ]
            record = with_labels(ImageRecord(position, path, (SIDE, SIDE), no_boxes), truth, range(len(phrases)))
            images.append(CaptionedImage(record=record, sentences=tuple(sentences), absent=absent))
        return CaptionedSplit(name, tuple(images), negatives=NEGATIVES)

    def train(self, arm: str, split: CaptionedSplit, config: PretrainConfig, start: Trunk | None) -> Trunk:
        """Return the averaged network of an arm, trained as far as it is not yet; its scores are written."""
        torch.manual_seed(self.seed)
        network = build()
        if start is not None:
            network.load_state_dict(start.network.state_dict())
        seed = 10 * self.seed + ARMS.index(arm)
        batches = CaptionedBatches(split, self.tokenizer, VIEW, BATCH, seed)
        facts = {"arm": arm, "seed": seed, "scenes": len(split), "start": start and start.checksum}
        training = PreTraining(network, batches, self.folder / arm, config, facts=facts)
        for step in track(range(training.done, config.steps, 50), f"{arm}, seed {self.seed}"):
            training.run(step + 50)
        trunk = as_trunk(training.average, self.tokenizer)
        scores = self.folder / arm / "scores.json"
        if not scores.exists():
            scores.write_text(json.dumps(self.score(trunk)), encoding="utf-8")
        return trunk

    def label(self, teacher: Trunk) -> CaptionedSplit:
        """Return the captioned scenes with labels of the teacher, at the threshold of best F1 on held-out scenes."""
        model, file = adapt(teacher, "zero_shot"), self.folder / "pseudo.jsonl"
        if not file.exists():
            shown = [find_phrases(model, image.record, image.caption, view=VIEW) for image in self.held_out.images]
            quality = {t: f1(*precision_and_recall(shown, self.held_out, t)) for t in THRESHOLDS}
            threshold = max(quality, key=quality.__getitem__)
            found = [
                find_phrases(model, image.record, image.caption, view=VIEW)
                for image in track(self.captioned.images, f"labels, seed {self.seed}")
            ]
            pairs = zip(self.captioned.images, found, strict=True)
            images = [captioned_image(unlabelled(i.record.path), i.caption, entries, threshold) for i, entries in pairs]
            odvg.write(CaptionedSplit("pseudo", tuple(i for i in images if i.record.annotations)), file)
            facts: dict[str, Any] = {"threshold": threshold, "f1_held_out": quality[threshold]}
            for group in GROUPS[:2]:
                names = {glyph.name for glyph in names_of(group)}
                facts[group] = precision_and_recall(found, self.captioned, threshold, names)
            (self.folder / "labels.json").write_text(json.dumps(facts), encoding="utf-8")
        return replace(load_captions(file), negatives=NEGATIVES)

    def score(self, trunk: Trunk) -> dict[str, list[float]]:
        """Return zero-shot AP on each test set of each group."""
        return {group: [self.score_set(trunk, group, number) for number in range(TEST_SETS)] for group in GROUPS}

    def score_set(self, trunk: Trunk, group: str, number: int) -> float:
        names = sorted(glyph.name for glyph in names_of(group))
        classes = np.random.default_rng(number).permutation(names)[:TEST_NAMES].tolist()
        name = f"{group}-{number}"
        spec = GlyphSet(name=name, classes=tuple(classes), objects=OBJECTS, images=(1, 1, TEST_SCENES))
        write_glyph_set(spec, self.out / "tests" / name)
        data = load_dataset(self.out / "tests" / name)
        return evaluate(attach(trunk, "zero_shot", classes=data.classes), data.test, VIEW).ap or 0.0


def no_boxes() -> Any:
    raise AssertionError("with_labels gives a scene its boxes")


def evenly(labelled: CaptionedSplit, more: CaptionedSplit) -> CaptionedSplit:
    """Return both, the labelled scenes as often as makes half of all draws."""
    return replace(labelled, images=labelled.images * round(len(more) / len(labelled)) + more.images)


def build() -> Network:
    """Return a network with random weights."""
    spec = trunk_spec(TRUNK)
    return spec.family.build(spec.config)


def as_trunk(average: Network, tokenizer: Any) -> Trunk:
    """Return a copy of averaged weights as a trunk."""
    with torch.random.fork_rng(devices=[]):
        network = build()
    network.load_state_dict(average.state_dict())
    return Trunk(TRUNK, network.requires_grad_(False).eval(), tokenizer, weights_checksum(network))


def precision_and_recall(
    found: Sequence[Sequence[Result]], truth: CaptionedSplit, threshold: float, names: set[str] | None = None
) -> tuple[float, float]:
    """Return precision and recall of labels at IoU 0.5, of phrases that end in one of ``names``, or of all."""
    right = labels = there = reached = 0
    for image, entries in zip(truth.images, found, strict=True):
        guessed = captioned_image(image.record, image.caption, entries, threshold).record.annotations
        for phrase, words in enumerate(image.caption.names):
            if names is not None and words.split(" ", 1)[1] not in names:
                continue
            mine, theirs = (
                torch.tensor([a.bbox_xywh for a in part if a.category_id == phrase]).reshape(-1, 4)
                for part in (guessed, image.record.annotations)
            )
            hit = box_iou(boxes.xywh_to_edges(mine), boxes.xywh_to_edges(theirs)) >= 0.5
            right, labels = right + int(hit.any(1).sum()), labels + len(mine)
            reached, there = reached + int(hit.any(0).sum()), there + len(theirs)
    return right / max(1, labels), reached / max(1, there)


def f1(precision: float, recall: float) -> float:
    """Return the harmonic mean of precision and recall; 0 if both are."""
    return 2 * precision * recall / max(1e-9, precision + recall)


def report(out: Path) -> None:
    """Write the records and the figure of the seeds that are done, and print the tables."""
    rows = [row for folder in sorted(out.glob("seed-*")) for row in records_of(folder)]
    seeds = {seed for seed in {row["seed"] for row in rows} if sum(row["seed"] == seed for row in rows) == len(ARMS)}
    rows = [row for row in rows if row["seed"] in seeds]
    if not rows:
        raise SystemExit(f"{out} has no seed yet with all of {', '.join(ARMS)}.")
    RECORDS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(format_tables(rows))
    draw(rows, RECORDS.with_suffix(".png"))


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Return the scores of the arms of a seed that are done."""
    found = []
    for arm in ARMS:
        file = folder / arm / "scores.json"
        if file.exists():
            row = {"seed": int(folder.name.removeprefix("seed-")), "arm": arm, "ap": json.loads(file.read_text())}
            if arm == "student":
                row["labels"] = json.loads((folder / "labels.json").read_text())
            found.append(row)
    return found


def format_tables(rows: Sequence[dict[str, Any]]) -> str:
    """Return AP in percent by arm and group, the paired gains, and the quality of the labels, as Markdown."""
    heads = " | ".join(GROUP_TITLES.values())
    lines = [f"| arm | {heads} |", "| :-- | --: | --: | --: |"]
    for arm in ARMS:
        cells = [f"{100 * fmean(aps(rows, arm, group)):.1f}" for group in GROUPS]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    for arm, other in (("student", "control"), ("student", "teacher"), ("ceiling", "student")):
        lines.append(f"| {arm} less {other} | {' | '.join(gain(rows, arm, other, group) for group in GROUPS)} |")
    for row in rows:
        if labels := row.get("labels"):
            parts = [
                f"{GROUP_TITLES[group]} precision {100 * labels[group][0]:.0f} %, recall {100 * labels[group][1]:.0f} %"
                for group in GROUPS[:2]
            ]
            lines += ["", f"Labels of seed {row['seed']} at threshold {labels['threshold']:g}: {'; '.join(parts)}."]
    return "\n".join(lines)


def aps(rows: Sequence[dict[str, Any]], arm: str, group: str) -> list[float]:
    """Return the AP of an arm on each test set of a group, seed after seed."""
    return [ap for row in rows if row["arm"] == arm for ap in row["ap"][group]]


def gain(rows: Sequence[dict[str, Any]], arm: str, other: str, group: str) -> str:
    """Return the mean difference of two arms in points, with a 95 % t interval over pairs of seed and test set."""
    pairs = zip(aps(rows, arm, group), aps(rows, other, group), strict=True)
    differences = [100 * (one - two) for one, two in pairs]
    half = student_t.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return f"{fmean(differences):+.1f} ± {half:.1f}"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw AP by arm, a panel for each group; a point is a test set of a seed."""
    figure, panels = plt.subplots(1, len(GROUPS), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, group in zip(panels, GROUPS, strict=True):
        for place, arm in enumerate(ARMS):
            values = [100 * ap for ap in aps(rows, arm, group)]
            axes.scatter([place] * len(values), values, color="#0072B2", alpha=0.45, s=18)
            axes.hlines(fmean(values), place - 0.3, place + 0.3, color="black", linewidth=2)
        axes.set_xticks(range(len(ARMS)), ARMS)
        axes.set_title(GROUP_TITLES[group], fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("AP by bare names, new scenes (synthetic)")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
