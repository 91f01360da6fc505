"""Pre-train a nano trunk on rendered scenes, and write the weights that ship.

    python benchmarks/pretrain_nano.py --trunk glip-nano --out runs/pretrain/first
    python benchmarks/pretrain_nano.py --trunk glip-nano --out runs/pretrain/second --seed 1 --steps 2000 \\
        --start runs/pretrain/first/glip-nano.safetensors

glip-nano has deep fusion, glip-nano-a none; dino-nano is a small Grounding DINO, of a first stage of 2000 steps alone.

A scene holds 3 to 9 pictograms of ``glip_adapt.data.glyphs``. Its caption is, seven times of ten, a list of names with
what is there and much that is not, shuffled; else a sentence of what is there. The second stage cuts some of the lists
down to a few names, so that a caption of one name, and things that nobody asked for, are nothing new to the network.
Step *i* draws its scenes from (seed, i) alone, so both trunks see the same scenes, a stopped run goes on as if it had
not been stopped, and a second run repeats the first. All but the scenes is the library's ``engine/pretrain.py``. The
folder gets ``log.jsonl`` (losses, and zero-shot AP on the validation pictures of glyphs13 by the averaged weights) and
``state.pt``, from which the same command resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, TextColumn
from torch.utils.data import Dataset

from glip_adapt import attach, evaluate, load_dataset, load_trunk
from glip_adapt.core.captions import SEPARATOR, Caption, build_caption
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Target, Tokens
from glip_adapt.data.glyphs import Glyph, seen_glyphs
from glip_adapt.data.glyphs13 import glyph_sets
from glip_adapt.data.scenes import COLOURS, TRAINING_STYLE, Scene, is_held_out, render_scene
from glip_adapt.data.transforms import View, collate, view_image, view_target
from glip_adapt.engine.pretrain import CaptionedBatch, PretrainConfig, PreTraining
from glip_adapt.trunks.catalogue import Trunk, load_tokenizer
from glip_adapt.trunks.protocol import Network
from glip_adapt.trunks.released import trunk_spec
from glip_adapt.trunks.tokenizer import SPECIAL_TOKENS, Tokenizer
from glip_adapt.trunks.weights import save_tensors, weights_checksum

SIDE = 160  # pixels of a scene, and of the shorter side of every test picture
OBJECTS = (3, 9)  # least and most on a scene
PHRASES = (4, 12)  # least and most names in a list
REPEATED, RELATED = 0.25, 0.2  # share of objects that repeat one on the scene, or share a word with one
COLOURED = 0.4  # share of captions that name colours
SENTENCES = 0.3  # share of captions that are sentences
CUT, CUT_TO = 0.4, (1, 4)  # second stage: share of lists that are cut down, and least and most names left
HARD = 0.5  # share of absent names that are related to a present one
PEAK, SECOND_PEAK = 1e-3, 0.5  # learning rate, and the share of it with which a second stage starts
CARD = """# {trunk}

A {kind} detector of {parameters:.1f} million parameters with {fusion}, for trying glip_adapt without a download. It
knows synthetic pictograms and nothing else: it is not a detector for photographs.

- **File**: `{trunk}.safetensors`, float16, {size:.1f} MiB. Checksum of the weights: `{checksum}`.
- **Data**: {scenes} scenes of 160 × 160 pixels, rendered from the fonts that matplotlib ships
  (`glip_adapt/data/glyphs.py`), {names} names of pictograms in ten colours; a fifth of the pairs of colour and name, 31
  names and the look of most sets below were held out. Captions: lists of names with many that are absent, and
  sentences. Vocabulary: 950 WordPiece entries learnt from the same names.
- **Recipe**: `benchmarks/pretrain_nano.py --trunk {trunk} --steps {steps} --seed {seed}{option}`: AdamW,
  batches of {batch}, cosines of 2000 steps with warm restarts, averaged weights.{start}
- **Compute** of the last stage: {minutes:.0f} minutes on {device}, {threads} thread(s), in float32.
- **Limits**: objects of about 16 to 64 pixels on pictures of about 160; names outside of its data are guesses; made and
  measured on synthetic pictures only.
- **Licence**: MIT, as the package.

Zero-shot AP (COCO, percent) on the test pictures of the synthetic suite glyphs13:

| set | AP |
| :-- | --: |
{rows}
| **mean** | **{mean:.1f}** |
"""
START = """
- **First stage**: 64000 scenes more, by the same script with its defaults (4000 steps, seed 0, captions uncut), gave
  the weights that this one began with, FIRST, checksum `{}`."""
TEST_VIEW = ViewConfig(short_side=SIDE, max_long_side=2 * SIDE)


def main() -> None:
    arguments = parse_arguments()
    if arguments.write_vocabulary:
        arguments.write_vocabulary.write_text("\n".join(train_vocabulary()) + "\n", encoding="utf-8")
        return
    torch.set_num_threads(arguments.threads)
    Run(arguments).train(arguments.until or arguments.steps, arguments.workers)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", choices=("glip-nano", "glip-nano-a", "dino-nano"), default="glip-nano")
    parser.add_argument("--out", type=Path, help="folder of the run", default=Path("runs/pretrain/glip-nano"))
    parser.add_argument("--steps", type=int, default=4000, help="length of the run, whole cycles")
    parser.add_argument("--until", type=int, help="stop after this step of it, to go on later")
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights of a first stage: this is the second")
    parser.add_argument("--batch", type=int, default=16, help="scenes per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the processor; one repeats a run to the last bit")
    parser.add_argument("--workers", type=int, default=0, help="processes that render scenes, for a GPU")
    parser.add_argument("--write-vocabulary", type=Path, metavar="FILE", help="train the vocabulary instead")
    return parser.parse_args()


def train_vocabulary(size: int = 1000) -> list[str]:
    """Return WordPiece entries learnt from the names that pre-training shows; ties make each run a little different."""
    from tokenizers.implementations import BertWordPieceTokenizer

    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["a an and the", " ".join(COLOURS), *(glyph.name for glyph in seen_glyphs())]
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(
        iter([*words, *words, characters, characters[::-1], ", ' - / ( )"]),  # an entry must occur twice
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, SEPARATOR.strip()],
        show_progress=False,
    )
    entries: dict[str, int] = tokenizer.get_vocab()
    return sorted(entries, key=entries.__getitem__)


class Scenes(Dataset[CaptionedBatch]):
    """Batch *i* of the training data, drawn from (seed, i)."""

    def __init__(self, tokenizer: Tokenizer, batch: int, seed: int, cut: float = 0.0) -> None:
        self.tokenizer, self.batch, self.seed, self.cut = tokenizer, batch, seed, cut
        self.glyphs = seen_glyphs()
        self.related = related_glyphs(self.glyphs)

    def __getitem__(self, step: int) -> CaptionedBatch:
        dice = np.random.default_rng((self.seed, step))
        pictures, captions, targets = [], [], []
        for _ in range(self.batch):
            scene = render_scene(self.choose_glyphs(dice), None, TRAINING_STYLE, dice, (SIDE, SIDE))
            caption, labels = self.describe(scene, dice)
            named = [position for position, label in enumerate(labels) if label is not None]
            wanted = torch.tensor([label for label in labels if label is not None], dtype=torch.int64)
            target = Target(torch.from_numpy(scene.boxes_xyxy[named]), wanted)
            view, size_hw = View(SIDE, flip=False), (scene.image.height, scene.image.width)
            pixels, target = view_image(scene.image, view), view_target(target, size_hw, view)
            pictures.append(pixels)
            captions.append(self.tokenizer.encode(caption))
            targets.append(target)
        return CaptionedBatch(collate(pictures), Tokens.stack(captions), targets)

    def choose_glyphs(self, dice: np.random.Generator) -> list[Glyph]:
        """Return what a scene shows: any pictograms, some of them again, some with relatives."""
        chosen = [pick(self.glyphs, dice)]
        for _ in range(int(dice.integers(*OBJECTS, endpoint=True)) - 1):
            draw, model = dice.random(), pick(chosen, dice)
            if draw < REPEATED:
                chosen.append(model)
            else:
                chosen.append(pick(self.related[model.name] if draw < REPEATED + RELATED else self.glyphs, dice))
        return chosen

    def describe(self, scene: Scene, dice: np.random.Generator) -> tuple[Caption, list[int | None]]:
        """Return a caption of a scene, and the position in it of each object's name, None where it was cut."""
        coloured, sentence = dice.random() < COLOURED, dice.random() < SENTENCES
        found = [f"{c} {n}" if coloured else n for n, c in zip(scene.names, scene.colours, strict=True)]
        phrases = list(dict.fromkeys(found))
        if not sentence:
            wanted = max(len(phrases) + 1, int(dice.integers(*PHRASES, endpoint=True)))
            while len(phrases) < wanted:
                absent = self.absent_name(scene, coloured, dice)
                if absent not in phrases:
                    phrases.append(absent)
        phrases = [phrases[i] for i in dice.permutation(len(phrases))]
        if self.cut and not sentence and dice.random() < self.cut:
            phrases = phrases[: int(dice.integers(*CUT_TO, endpoint=True))]
        caption = build_sentence(phrases) if sentence else build_caption(phrases)
        return caption, [phrases.index(phrase) if phrase in phrases else None for phrase in found]

    def absent_name(self, scene: Scene, coloured: bool, dice: np.random.Generator) -> str:
        """Return a name that is not on the scene, half the time one that is easily taken for one that is."""
        here = set(zip(scene.names, scene.colours, strict=True))
        name = pick(scene.names, dice)
        hard, keep = dice.random() < HARD, dice.random() < 0.5
        if not (hard and keep and coloured):  # else the right pictogram in another colour
            name = pick(self.related[name] if hard else self.glyphs, dice).name
        while not (absent := absent_phrases(name, here, coloured)):
            name = pick(self.glyphs, dice).name
        return pick(absent, dice)


def absent_phrases(name: str, here: set[tuple[str, str]], coloured: bool) -> list[str]:
    """Return the ways to call for a pictogram that none of those (name, colour) ``here`` answers."""
    if not coloured:
        return [name] if all(name != other for other, _ in here) else []
    return [f"{word} {name}" for word in COLOURS if not is_held_out(word, name) and (name, word) not in here]


def pick(choices: Sequence[Any], dice: np.random.Generator) -> Any:
    return choices[int(dice.integers(len(choices)))]


def related_glyphs(glyphs: Sequence[Glyph]) -> dict[str, list[Glyph]]:
    """Return for each name the pictograms that share a word with it, or all others where none does."""
    words = {glyph.name: set(glyph.name.split()) for glyph in glyphs}
    return {
        name: [other for other in glyphs if other.name != name and words[other.name] & mine]
        or [other for other in glyphs if other.name != name]
        for name, mine in words.items()
    }


def build_sentence(phrases: Sequence[str]) -> Caption:
    """Return "a red star, an anchor and a comet" with the span of each phrase, without its article."""
    text, spans = "", []
    for position, phrase in enumerate(phrases):
        if position:
            text += " and " if position == len(phrases) - 1 else ", "
        text += "an " if phrase[0] in "aeiou" else "a "
        spans.append((len(text), len(text) + len(phrase)))
        text += phrase
    return Caption(text, tuple(spans), tuple(phrases))


class Run:
    """One run of a trunk: the library's pre-training on scenes, and the trunk and card that come of it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.trunk, self.seed, self.start = arguments.trunk, arguments.seed, None
        self.tokenizer = load_tokenizer(self.trunk)
        torch.manual_seed(self.seed)
        network = self.build().to(arguments.device)
        if arguments.start is not None:
            first = load_trunk(self.trunk, checkpoint=arguments.start)
            network.load_state_dict(first.network.state_dict())
            self.start = first.checksum
        self.scenes = Scenes(self.tokenizer, arguments.batch, self.seed, cut=CUT if self.start else 0.0)
        config = PretrainConfig(
            steps=arguments.steps,
            learning_rate=PEAK * (SECOND_PEAK if self.start else 1.0),
            precision="bfloat16" if network.device.type == "cuda" else "float32",
        )
        facts = {"trunk": self.trunk, "batch": arguments.batch, "seed": self.seed, "start": self.start}
        self.training = PreTraining(network, self.scenes, arguments.out, config, facts=facts, score=self.score)

    def train(self, until: int, workers: int) -> None:
        """Take the steps that are left, and write the averaged weights at the end."""
        training = self.training
        with Progress(*Progress.get_default_columns(), TextColumn("{task.completed}/{task.total}")) as progress:
            task = progress.add_task(self.trunk, total=until, completed=training.done)
            training.run(until, workers=workers, on_step=lambda step, _: progress.update(task, completed=step.step))
        if training.done == training.config.steps:
            self.write_weights()

    def build(self) -> Network:
        """Return the network with random weights."""
        spec = trunk_spec(self.trunk)
        return spec.family.build(spec.config)

    def score(self, average: Network) -> dict[str, Any]:
        """Return zero-shot AP on the validation pictures."""
        scores = zero_shot(self.averaged(average), "val")
        return {"zero_shot": scores, "mean": round(fmean(scores.values()), 4)}

    def averaged(self, average: Network) -> Trunk:
        """Return averaged weights, rounded as they are shipped, as a trunk."""
        with torch.random.fork_rng(devices=[]):
            network = self.build()
        network.load_state_dict({name: tensor.float() for name, tensor in rounded(average).items()})
        checksum = weights_checksum(network)
        return Trunk(self.trunk, network.requires_grad_(False).to(average.device), self.tokenizer, checksum)

    def write_weights(self) -> None:
        """Write the averaged weights and their card."""
        training, batch = self.training, self.scenes.batch
        path, trunk = training.folder / f"{self.trunk}.safetensors", self.averaged(training.average)
        save_tensors(rounded(training.average), path, {"trunk": self.trunk, "checksum": trunk.checksum})
        scores = zero_shot(trunk, "test")
        card = CARD.format(
            trunk=self.trunk,
            kind="GLIP" if self.trunk.startswith("glip") else "Grounding DINO",
            fusion="deep fusion" if trunk_spec(self.trunk).deep_fusion else "no fusion",
            parameters=sum(p.numel() for p in trunk.network.parameters()) / 1e6,
            size=path.stat().st_size / 2**20,
            checksum=trunk.checksum,
            names=len(seen_glyphs()),
            scenes=training.config.steps * batch,
            steps=training.config.steps,
            batch=batch,
            seed=self.seed,
            option=" --start FIRST" if self.start else "",
            start=START.format(self.start) if self.start else "",
            minutes=training.seconds / 60,
            device=training.network.device.type,
            threads=torch.get_num_threads(),
            rows="\n".join(f"| {name} | {100 * ap:.1f} |" for name, ap in scores.items()),
            mean=100 * fmean(scores.values()),
        )
        path.with_suffix(".md").write_text(card, encoding="utf-8")
        print(f"{path}: checksum {trunk.checksum}, mean zero-shot AP {100 * fmean(scores.values()):.1f}")


def rounded(network: Network) -> dict[str, torch.Tensor]:
    """Return weights in float16: half the size of the package, no figure changes."""
    return {name: tensor.half() for name, tensor in network.state_dict().items()}


def zero_shot(trunk: Trunk, split: str) -> dict[str, float]:
    """Return AP without any training on each of the thirteen sets, as fractions."""
    scores = {}
    for spec in glyph_sets():
        data = load_dataset(f"glyphs13/{spec.name}")
        found = evaluate(attach(trunk, "zero_shot", classes=data.classes), getattr(data, split), TEST_VIEW)
        scores[spec.name] = round(found.ap or 0.0, 4)
    return scores


if __name__ == "__main__":
    main()
