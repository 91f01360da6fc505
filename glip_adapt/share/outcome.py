"""What adapting to labelled images gives back, and whom it tells about its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glip_adapt.data.split import Split
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.evaluate import Evaluation
from glip_adapt.engine.history import History, Validation
from glip_adapt.engine.optimise import Step
from glip_adapt.share.page import AdapterPage
from glip_adapt.share.trials import Trial

PAGE_FILE = "index.html"


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Callbacks of ``adapt_dataset``.

    Attributes:
        on_image: called after each image that is looked at zero-shot, with its position and their number.
        on_trial: called before a method is tried, with its name and a forecast in seconds.
        on_step: called after each step with it and the number of steps, those of the folds included.
        on_validation: called after each evaluation on validation images.
    """

    on_image: Callable[[int, int], None] | None = None
    on_trial: Callable[[str, float], None] | None = None
    on_step: Callable[[Step, int], None] | None = None
    on_validation: Callable[[Validation], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trained model, and what held-out images tell about it.

    ``looked_at`` are the images that ``start`` and ``held_out`` are predictions on; ``scored`` tells which of their
    classes count in ``expected`` and ``zero_shot``, None for all.
    """

    model: AdaptedModel
    history: History
    tried: tuple[Trial, ...]
    looked_at: Split
    start: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]]
    expected: float | None
    zero_shot: float | None
    note: str
    scored: Mapping[int | str, frozenset[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class AdaptResult:
    """A trained and saved model, and what to expect of it.

    Attributes:
        model: as it was saved.
        history: of its training.
        folder: where the adapter was saved; not ``out`` if another process took that meanwhile.
        tried: the methods that were tried, and why others were not.
        expected: AP to expect on new images, a fraction in [0, 1]; None if nothing could be held out.
        interval: of ``expected``, by redrawing images; see ``ap_interval``. None with fewer than three.
        zero_shot: AP of zero-shot detection on the same images.
        before: zero-shot scores on the test split; None without one.
        after: scores of the model on the test split; None without one.
        seconds: by stage.
    """

    model: AdaptedModel
    history: History
    folder: Path
    tried: tuple[Trial, ...]
    expected: float | None
    interval: tuple[float, float] | None
    zero_shot: float | None
    before: Evaluation | None
    after: Evaluation | None
    seconds: Mapping[str, float]

    @property
    def kept_start(self) -> bool:
        """Whether training only lowered AP on held-out images, so that the model detects as before."""
        was_tried = any(trial.found or self.history.validations for trial in self.tried)
        return was_tried and (not self.history.steps or self.history.best_step == 0)

    @property
    def page(self) -> Path:
        """The page that tells what to expect."""
        return self.folder / PAGE_FILE

    def to_json(self) -> dict[str, Any]:
        """Return the result without its model, for programs."""
        tried = [
            {"method": t.method, "expected_ap": t.expected, "seconds": t.seconds, "remark": t.remark}
            for t in self.tried
        ]
        return {
            "folder": str(self.folder),
            "page": str(self.page),
            "method": self.model.adapter.name,
            "trained_parameters": self.model.trained_parameters,
            "steps": len(self.history.steps),
            "kept_start": self.kept_start,
            "expected_ap": self.expected,
            "interval": self.interval,
            "zero_shot_ap": self.zero_shot,
            "test_ap_zero_shot": self.before and self.before.ap,
            "test_ap": self.after and self.after.ap,
            "thresholds": dict(self.model.thresholds),
            "tried": tried,
            "seconds": dict(self.seconds),
        }

    def to_page(self, outcome: Outcome, train: Split) -> AdapterPage:
        """Return what the page tells."""
        model, test = self.model, None
        if self.before and self.after:
            test = (self.before.ap, self.after.ap)
        boxes = sum(len(train.annotations_of(record)) for record in train.records)
        facts = (
            ("trained on", f"{train.name} (images: {len(train)}, boxes: {boxes}, classes: {len(train.classes)})"),
            ("detector", model.trunk_name),
            ("method", f"{model.adapter.name}, {model.trained_parameters:,} trained numbers"),
            ("steps", f"{len(self.history.steps)}"),
            ("time", ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items())),
        )
        return AdapterPage(
            title=train.name,
            split=outcome.looked_at,
            start=outcome.start,
            adapted=outcome.held_out,
            thresholds=dict(zip(outcome.looked_at.classes, model.thresholds.values(), strict=True)),
            facts=facts,
            tried=[(trial.method, trial.expected, trial.remark) for trial in self.tried],
            expected=(self.expected, self.interval),
            zero_shot=self.zero_shot,
            test=test,
            notes=[outcome.note],
        )
