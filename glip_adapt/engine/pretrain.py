"""Pre-train a network on captioned images: long runs that stop and go on, cosines with restarts, averaged weights.

GLIP, arXiv 2112.03857, section 3.2, reads detection data as captions that list names, and so learns from both alike.
``fit`` is for the few images of a task; here batches come from a source that need not end.

A run that was stopped ends as if it had not been, and a second run repeats the first.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from glip_adapt.core.files import written_whole
from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import Precision, ViewConfig
from glip_adapt.core.structures import ImageBatch, SizeHW, Target, Tokens
from glip_adapt.data.captioned import CaptionedSplit
from glip_adapt.data.transforms import View, collate, view_image, view_target
from glip_adapt.engine.optimise import Step, Stepper
from glip_adapt.engine.samples import draw_caption
from glip_adapt.trunks.protocol import Network
from glip_adapt.trunks.tokenizer import Tokenizer

STATE, LOG = "state.pt", "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The recipe of a run; the defaults are those of the nano trunks.

    Rates follow cosines with warm restarts (SGDR, arXiv 1608.03983): a run can be made longer by a cycle and stays the
    same up to there.
    """

    steps: int = 4000
    "length of the run; whole cycles end at the lowest rate"
    learning_rate: float = 1e-3
    "AdamW, at the peak of the first cycle"
    weight_decay: float = 0.03
    "of matrices; biases, norms and scales have none"
    betas: tuple[float, float] = (0.9, 0.98)
    "AdamW"
    clip_norm: float = 2.0
    "limit of the L2 norm of all gradients together"
    cycle: int = 2000
    "steps of a cosine"
    warm_up: int = 200
    "steps of the rise at its start"
    last_rate: float = 0.02
    "share of the peak of a cycle where its cosine ends"
    next_peak: float = 0.5
    "share of the peak of a cycle that the next one has"
    averaged: float = 0.997
    "decay of the exponential moving average of the weights"
    precision: Precision = "float32"
    "of large products"
    log_every: int = 25
    "steps between lines of the log"
    save_every: int = 250
    "steps between states"
    score_every: int = 1000
    "steps between scores"

    def rate_at(self, step: int) -> float:
        """Return the share of the learning rate in the step after ``step``."""
        number, position = divmod(step, self.cycle)
        cosine = self.last_rate + (1 - self.last_rate) * (1 + math.cos(math.pi * position / self.cycle)) / 2
        return self.next_peak**number * min(1.0, (position + 1) / self.warm_up) * cosine


@dataclass(frozen=True)
class CaptionedBatch:
    """Images with a caption each, and where its phrases are on them: labels are rows of the token maps."""

    images: ImageBatch
    tokens: Tokens
    targets: list[Target]

    @property
    def padded_hw(self) -> SizeHW:
        """(height, width) of the images with their padding."""
        return self.images.pixels.shape[2], self.images.pixels.shape[3]


class CaptionedBatches(Dataset[CaptionedBatch]):
    """Batch *i* of captioned images, drawn from (seed, i) with replacement.

    Half of the images are mirrored, but none whose caption tells left from right. Pseudo-labels count like labels by
    hand.
    """

    def __init__(self, split: CaptionedSplit, tokenizer: Tokenizer, view: ViewConfig, batch: int, seed: int) -> None:
        self.split, self.tokenizer, self.view, self.batch, self.seed = split, tokenizer, view, batch, seed

    def __getitem__(self, step: int) -> CaptionedBatch:
        """Return a batch; errors as ``ImageRecord.load`` and ``draw_caption``."""
        dice = np.random.default_rng((self.seed, step))
        pixels, captions, targets = [], [], []
        for position in dice.integers(len(self.split), size=self.batch):
            image, longest = self.split.images[position], self.view.max_long_side
            record, flip = image.record, bool(dice.integers(2)) and not image.has_sides
            view = View(self.view.short_side, flip)
            pixels.append(view_image(record.load(), view, longest))
            captions.append(draw_caption(image, self.split.negatives, self.tokenizer, dice))
            target = view_target(record.target, record.header.size_hw, view, longest)
            targets.append(replace(target, weights=None))
        return CaptionedBatch(collate(pixels), Tokens.stack(captions), targets)


class PreTraining:
    """One run: the network, its average, the optimiser, and where they stand.

    Attributes:
        network: learns.
        average: exponential moving average of its weights, a network of the same kind.
        done: steps taken.
        seconds: that they took, over all parts of the run.
    """

    def __init__(
        self,
        network: Network,
        batches: Dataset[CaptionedBatch],
        folder: Path,
        config: PretrainConfig,
        *,
        facts: Mapping[str, Any] | None = None,
        score: Callable[[Network], Mapping[str, Any]] | None = None,
    ) -> None:
        """Prepare a run, and go on from the state in its folder if there is one.

        Args:
            network: all of it is trained, on its device.
            batches: batch of each step, from 1.
            folder: gets ``log.jsonl``, losses and scores, and ``state.pt``, from which an equal run goes on.
            config: the recipe.
            facts: what else makes a run another one, such as its data: compared with those in the folder.
            score: returns what to log about the averaged network.

        Raises:
            ValueError: if the folder is that of another run.
        """
        self.network, self.batches, self.folder, self.config, self.score = network, batches, folder, config, score
        self.recipe = {**asdict(config), "betas": list(config.betas), **(facts or {})}
        del self.recipe["steps"]  # a run may be made longer
        self._averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.averaged))
        self.stepper = Stepper(
            decay_groups(network, config),
            device=network.device,
            precision=config.precision,
            clip_norm=config.clip_norm,
            betas=config.betas,
        )
        self._schedule = LambdaLR(self.stepper.optimiser, config.rate_at)
        self.done, self.seconds = 0, 0.0
        self._random: dict[str, Tensor] = {}  # torch's generator: as each cycle starts, and now
        if (folder / STATE).is_file():
            self._resume()

    @property
    def average(self) -> Network:
        """The averaged network."""
        return cast(Network, self._averaged.module)

    def run(
        self, until: int | None = None, *, workers: int = 0, on_step: Callable[[Step, int], None] | None = None
    ) -> None:
        """Take the steps that are left.

        Dropout draws from torch's generator as it is at the first step of a run; afterwards the generator is as before.

        Args:
            until: step to stop after; the next call goes on.
            workers: processes that make batches.
            on_step: called after each step with it and the length of the run.

        Raises:
            NonFiniteLossError: if a loss or gradient is NaN or infinite; the folder has the last state that was kept.
        """
        config, last = self.config, min(until or self.config.steps, self.config.steps)
        self.folder.mkdir(parents=True, exist_ok=True)
        steps, recent = range(self.done + 1, last + 1), list[Step]()
        with torch.random.fork_rng():
            batches = iter(DataLoader(self.batches, batch_size=None, sampler=list(steps), num_workers=workers))
            if not self._random:
                self._random = dict.fromkeys(("start", "now"), torch.get_rng_state())
            torch.set_rng_state(self._random["now"])
            for step in steps:
                started, batch = time.perf_counter(), next(batches)
                if (step - 1) % config.cycle == 0:
                    torch.set_rng_state(self._random["start"])
                self.network.train()
                taken = self.stepper.take(step, f"batch {step}", self._losses(batch))
                recent.append(taken)
                self._schedule.step()
                self._averaged.update_parameters(self.network)
                self.done, self.seconds = step, self.seconds + time.perf_counter() - started
                if step % config.log_every == 0:
                    self._log(summary(recent, self.seconds))
                    recent = []
                if self.score is not None and (step % config.score_every == 0 or step == last):
                    with torch.random.fork_rng():
                        self._log({"step": step, **self.score(self.average)})
                if step % config.save_every == 0 or step == last:
                    self._save()
                if on_step:
                    on_step(taken, config.steps)

    def _losses(self, batch: CaptionedBatch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the losses of a batch, all images at once."""
        device, objective = self.network.device, self.network.objective
        prepared = [objective.prepare(target, batch.padded_hw) for target in batch.targets]
        with autocast(device, self.config.precision):
            pyramid = self.network.encode_image(batch.images.to(device))
            fused = self.network.fuse(pyramid, self.network.encode_text(batch.tokens.to(device)))
            output = self.network.predict(fused, prepared)
        yield "the images", objective.losses(output, prepared, objective.scale(prepared))

    def _parts(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "average": self._averaged,
            "optimiser": self.stepper.optimiser,
            "schedule": self._schedule,
        }

    def _save(self) -> None:
        self._random["now"] = torch.get_rng_state()
        progress = {"recipe": self.recipe, "done": self.done, "seconds": self.seconds, "random": self._random}
        with written_whole(self.folder / STATE) as temporary:
            torch.save({**progress, **{name: part.state_dict() for name, part in self._parts().items()}}, temporary)

    def _resume(self) -> None:
        """Take up the state in the folder, and drop what was logged after it."""
        path, log = self.folder / STATE, self.folder / LOG
        state = torch.load(path, map_location=self.network.device, weights_only=True)
        if state["recipe"] != self.recipe:
            raise ValueError(f"{path} is of the run {state['recipe']}, not of {self.recipe}. Name another folder.")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.done, self.seconds = state["done"], state["seconds"]
        self._random = {name: numbers.cpu() for name, numbers in state["random"].items()}
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
        with written_whole(log) as temporary:
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.done]
            temporary.write_text("".join(kept), encoding="utf-8")

    def _log(self, entry: Mapping[str, Any]) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def decay_groups(network: Network, config: PretrainConfig) -> list[dict[str, Any]]:
    """Return AdamW groups: matrices, and without weight decay vectors and single numbers."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": others, "lr": config.learning_rate, "weight_decay": 0.0},
    ]


def summary(steps: Sequence[Step], seconds: float) -> dict[str, Any]:
    """Return the mean of what some steps recorded."""
    norms = [math.inf if step.gradient_norm is None else step.gradient_norm for step in steps]
    return {
        "step": steps[-1].step,
        **{name: round(fmean(step.losses[name] for step in steps), 6) for name in steps[0].losses},
        "gradient_norm": round(fmean(norms), 4),
        "learning_rate": steps[-1].learning_rate,
        "seconds": round(seconds, 1),
    }
