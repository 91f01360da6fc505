"""Pre-train a nano trunk on rendered scenes, and write the weights that ship.

    python benchmarks/pretrain_nano.py --trunk glip-nano --out runs/pretrain/first
    python benchmarks/pretrain_nano.py --trunk glip-nano --out runs/pretrain/second --seed 1 --steps 2000 \\
        --start runs/pretrain/first/glip-nano.safetensors

glip-nano has deep fusion, glip-nano-a none; dino-nano is a small Grounding DINO.

A scene holds 3 to 9 pictograms of ``glip_adapt.data.glyphs``. Its caption is, seven times of ten, a list of names with
what is there and much that is not, shuffled; else a sentence of what is there. The second stage cuts some of the lists
down to a few names, so that a caption of one name, and things that nobody asked for, are nothing new to the network.
Step *i* draws its scenes from (seed, i) alone, so both trunks see the same scenes, a stopped run goes on as if it had
not been stopped, and a second run repeats the first. Network, loss, views and optimiser step are the library's own. The
folder gets ``log.jsonl`` (losses, and zero-shot AP on the validation pictures of glyphs13 by the averaged weights) and
``state.pt``, from which the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from glip_adapt import attach, evaluate, load_dataset, load_trunk
from glip_adapt.core.captions import SEPARATOR, Caption, build_caption
from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import ImageBatch, Target, Tokens
from glip_adapt.data.glyphs import Glyph, seen_glyphs
from glip_adapt.data.glyphs13 import glyph_sets
from glip_adapt.data.scenes import COLOURS, TRAINING_STYLE, Scene, is_held_out, render_scene
from glip_adapt.data.transforms import View, collate, view_image, view_target
from glip_adapt.engine.optimise import Step, Stepper
from glip_adapt.trunks.catalogue import Trunk, load_tokenizer
from glip_adapt.trunks.dino.config import DINO_NANO
from glip_adapt.trunks.dino.family import DinoFamily
from glip_adapt.trunks.protocol import Network
from glip_adapt.trunks.released import TRUNKS, trunk_spec
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
LEARNING_RATE, DECAY, BETAS, CLIP_NORM = 1e-3, 0.03, (0.9, 0.98), 2.0
CYCLE, WARM_UP = 2000, 200  # steps of a cosine, and of the rise at its start
LAST_RATE, NEXT_PEAK = 0.02, 0.5  # shares of a cycle's peak: where its cosine ends, and the peak of the next one
AVERAGED = 0.997  # decay of the exponential moving average of the weights
LOG_EVERY, SAVE_EVERY, SCORE_EVERY = 25, 250, 1000  # steps
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
    TRUNKS.setdefault("dino-nano", replace(TRUNKS["glip-nano"], family=DinoFamily(), config=DINO_NANO))
    run = PreTraining(
        arguments.trunk,
        arguments.out,
        arguments.steps,
        arguments.batch,
        arguments.seed,
        arguments.device,
        arguments.start,
    )
    run.resume()
    run.train(arguments.until or arguments.steps, arguments.workers)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", choices=("glip-nano", "glip-nano-a", "dino-nano"), default="glip-nano")
    parser.add_argument("--out", type=Path, help="folder of the run", default=Path("runs/pretrain/glip-nano"))
    parser.add_argument("--steps", type=int, default=2 * CYCLE, help="length of the run, whole cycles")
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


@dataclass(frozen=True)
class Batch:
    """Scenes with a caption each, and where its names are on them."""

    images: ImageBatch
    tokens: Tokens
    targets: list[Target]


class Scenes(Dataset[Batch]):
    """Batch *i* of the training data, drawn from (seed, i)."""

    def __init__(self, tokenizer: Tokenizer, batch: int, seed: int, cut: float = 0.0) -> None:
        self.tokenizer, self.batch, self.seed, self.cut = tokenizer, batch, seed, cut
        self.glyphs = seen_glyphs()
        self.related = related_glyphs(self.glyphs)

    def __getitem__(self, step: int) -> Batch:
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
        return Batch(collate(pictures), Tokens.stack(captions), targets)

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


class PreTraining:
    """One run: the network, its average, the optimiser, and where they stand."""

    def __init__(
        self, trunk: str, out: Path, steps: int, batch: int, seed: int, device: str, start: Path | None = None
    ) -> None:
        self.trunk, self.out, self.steps = trunk, out, steps
        self.device = torch.device(device)
        self.tokenizer = load_tokenizer(trunk)
        torch.manual_seed(seed)
        self.network = self.build().to(self.device)
        self.recipe = {"trunk": trunk, "steps": steps, "batch": batch, "seed": seed}
        if start is not None:
            first = load_trunk(trunk, checkpoint=start)
            self.network.load_state_dict(first.network.state_dict())
            self.recipe["start"] = first.checksum
        self.scenes = Scenes(self.tokenizer, batch, seed, cut=CUT if start else 0.0)
        peak = NEXT_PEAK if start else 1.0
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED))
        self.stepper = Stepper(
            decay_groups(self.network), device=self.device, precision=self.precision, clip_norm=CLIP_NORM, betas=BETAS
        )
        self.schedule = LambdaLR(self.stepper.optimiser, lambda step: peak * self.rate_at(step))
        self.done, self.seconds = 0, 0.0
        self.random: torch.Tensor | None = None

    def build(self) -> Network:
        """Return the network with random weights."""
        spec = trunk_spec(self.trunk)
        return spec.family.build(spec.config)

    @property
    def precision(self) -> Any:
        return "bfloat16" if self.device.type == "cuda" else "float32"

    @staticmethod
    def rate_at(step: int) -> float:
        """Return the share of the learning rate in the step after ``step``.

        Cosines with warm restarts (SGDR, arXiv 1608.03983): a run can be made longer by a cycle and stays the same
        up to there.
        """
        cycle, position = divmod(step, CYCLE)
        cosine = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * position / CYCLE)) / 2
        return NEXT_PEAK**cycle * min(1.0, (position + 1) / WARM_UP) * cosine

    def resume(self) -> None:
        """Go on from the state in the folder, if there is one."""
        path = self.out / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != self.recipe:
            raise ValueError(f"{path} belongs to the run {state['recipe']}, not to {self.recipe}. Name another --out.")
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.done, self.seconds, self.random = state["done"], state["seconds"], state["random"].cpu()
        lines = [json.loads(line) for line in (self.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= self.done)
        (self.out / "log.jsonl").write_text(kept, encoding="utf-8")

    def parts(self) -> dict[str, Any]:
        return {
            "glip": self.network,
            "average": self.average,
            "optimiser": self.stepper.optimiser,
            "schedule": self.schedule,
        }

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts().items()}
        temporary = self.out / ".state.pt"
        progress = {"recipe": self.recipe, "done": self.done, "seconds": self.seconds, "random": torch.get_rng_state()}
        torch.save({**progress, **state}, temporary)
        os.replace(temporary, self.out / "state.pt")

    def train(self, until: int, workers: int) -> None:
        """Take the steps that are left, log and score on the way, and write the averaged weights at the end."""
        self.out.mkdir(parents=True, exist_ok=True)
        steps = range(self.done + 1, until + 1)
        loader = DataLoader(self.scenes, batch_size=None, sampler=list(steps), num_workers=workers)
        batches = iter(loader)
        start = torch.get_rng_state()  # of dropout, the same whenever a run is started
        if self.random is not None:
            torch.set_rng_state(self.random)
        recent: list[Step] = []
        started = time.perf_counter()
        for step in track(steps, self.trunk):
            batch = next(batches)
            if (step - 1) % CYCLE == 0:
                torch.set_rng_state(start)
            self.network.train()
            recent.append(self.stepper.take(step, f"batch {step} of seed {self.recipe['seed']}", self.losses(batch)))
            self.schedule.step()
            self.average.update_parameters(self.network)
            self.done = step
            if step % LOG_EVERY == 0:
                self.seconds, started = self.seconds + time.perf_counter() - started, time.perf_counter()
                self.log(summary(recent, self.seconds))
                recent = []
            if step % SCORE_EVERY == 0 or step == until:
                scores = zero_shot(self.averaged(), "val")
                self.log({"step": step, "zero_shot": scores, "mean": round(mean(scores.values()), 4)})
                started = time.perf_counter()
            if step % SAVE_EVERY == 0 or step == until:
                self.save()
        if self.done == self.steps:
            self.write_weights()

    def losses(self, batch: Batch) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Yield the losses of a batch, all scenes at once."""
        with autocast(self.device, self.precision):
            output = self.network(batch.images.to(self.device), batch.tokens.to(self.device))
        objective, padded_hw = self.network.objective, (batch.images.pixels.shape[2], batch.images.pixels.shape[3])
        prepared = [objective.prepare(target, padded_hw) for target in batch.targets]
        yield "the scenes", objective.losses(output, prepared, objective.scale(prepared))

    def averaged(self) -> Trunk:
        """Return the averaged weights, rounded as they are shipped, as a trunk."""
        with torch.random.fork_rng(devices=[]):
            network = self.build()
        network.load_state_dict({name: tensor.float() for name, tensor in self.rounded().items()})
        checksum = weights_checksum(network)
        return Trunk(self.trunk, network.requires_grad_(False).to(self.device), self.tokenizer, checksum)

    def rounded(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights in float16: half the size of the package, no figure changes."""
        return {name: tensor.half() for name, tensor in self.average.module.state_dict().items()}

    def write_weights(self) -> None:
        """Write the averaged weights and their card."""
        path, trunk = self.out / f"{self.trunk}.safetensors", self.averaged()
        save_tensors(self.rounded(), path, {"trunk": self.trunk, "checksum": trunk.checksum})
        scores = zero_shot(trunk, "test")
        card = CARD.format(
            trunk=self.trunk,
            kind="GLIP" if self.trunk.startswith("glip") else "Grounding DINO",
            fusion="deep fusion" if trunk_spec(self.trunk).config.deep_fusion else "no fusion",
            parameters=sum(p.numel() for p in trunk.network.parameters()) / 1e6,
            size=path.stat().st_size / 2**20,
            checksum=trunk.checksum,
            names=len(seen_glyphs()),
            scenes=self.steps * self.scenes.batch,
            steps=self.steps,
            batch=self.scenes.batch,
            seed=self.scenes.seed,
            option=" --start FIRST" if "start" in self.recipe else "",
            start=START.format(self.recipe["start"]) if "start" in self.recipe else "",
            minutes=self.seconds / 60,
            device=self.device.type,
            threads=torch.get_num_threads(),
            rows="\n".join(f"| {name} | {100 * ap:.1f} |" for name, ap in scores.items()),
            mean=100 * mean(scores.values()),
        )
        path.with_suffix(".md").write_text(card, encoding="utf-8")
        print(f"{path}: checksum {trunk.checksum}, mean zero-shot AP {100 * mean(scores.values()):.1f}")

    def log(self, entry: Mapping[str, Any]) -> None:
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def decay_groups(network: Network) -> list[dict[str, Any]]:
    """Return AdamW groups: vectors and single numbers (biases, norms, scales) without weight decay."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "lr": LEARNING_RATE, "weight_decay": DECAY},
        {"params": others, "lr": LEARNING_RATE, "weight_decay": 0.0},
    ]


def summary(steps: Sequence[Step], seconds: float) -> dict[str, Any]:
    """Return the mean of what some steps recorded."""
    names = steps[0].losses
    return {
        "step": steps[-1].step,
        **{name: round(mean(step.losses[name] for step in steps), 6) for name in names},
        "gradient_norm": round(mean(step.gradient_norm or math.inf for step in steps), 4),
        "learning_rate": steps[-1].learning_rate,
        "seconds": round(seconds, 1),
    }


def zero_shot(trunk: Trunk, split: str) -> dict[str, float]:
    """Return AP without any training on each of the thirteen sets, as fractions."""
    scores = {}
    for spec in glyph_sets():
        data = load_dataset(f"glyphs13/{spec.name}")
        found = evaluate(attach(trunk, "zero_shot", classes=data.classes), getattr(data, split), TEST_VIEW)
        scores[spec.name] = round(found.ap or 0.0, 4)
    return scores


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
