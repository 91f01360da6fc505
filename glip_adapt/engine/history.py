"""What happened during one training: its steps, its evaluations, and which state was kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from glip_adapt.engine.metrics.protocol import Predictions
from glip_adapt.engine.optimise import Step


@dataclass(frozen=True)
class Validation:
    """One evaluation on the validation split, after ``step`` steps; 0 is before training.

    The state is at ``factor`` of the way from the start to the one after these steps; with a ``module`` this alone is,
    and the others are as in the best state so far.
    """

    step: int
    ap: float
    is_best: bool
    factor: float = 1.0
    module: str = ""

    @property
    def state(self) -> str:
        """What was scored, in words: ``step 80``, ``step 80, moved back to 0.5``, ``step 80, head moved to 0.75``."""
        if self.module:
            return f"step {self.step}, {self.module} moved to {self.factor:.2g}"
        return f"step {self.step}" + ("" if self.factor == 1 else f", moved back to {self.factor:.2g}")


@dataclass
class History:
    """What happened during one fit."""

    total_steps: int
    "ceiling that the recipe allows"
    steps: list[Step] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    stopped_by: Literal["ceiling", "patience", "interrupt"] = "ceiling"
    best_found: Predictions = field(default=(), repr=False)
    "predictions on the validation split of the state that was kept, in COCO result form"

    def note(self, done: Validation, found: Predictions) -> None:
        """Add an evaluation; the predictions stay if it is the best so far."""
        self.validations.append(done)
        if done.is_best:
            self.best_found = found

    @property
    def best(self) -> Validation | None:
        """The evaluation of the state that was kept; None without a validation split."""
        return next((v for v in reversed(self.validations) if v.is_best), None)

    @property
    def best_trained(self) -> Validation | None:
        """The best evaluation after a step, the last of equal ones; None without any."""
        return max((v for v in reversed(self.validations) if v.step), key=lambda v: v.ap, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the state that was kept; None without a validation split."""
        return self.best.step if self.best else None

    @property
    def best_factor(self) -> float | None:
        """The factor of the state that was kept, before modules of their own; None without a validation split."""
        return next((v.factor for v in reversed(self.validations) if v.is_best and not v.module), None)

    @property
    def best_ap(self) -> float | None:
        """Validation AP of the state that was kept, as a fraction; None without a validation split."""
        return self.best.ap if self.best else None

    def to_json(self) -> dict[str, Any]:
        """Return the history without predictions, as files hold it."""
        content = asdict(replace(self, best_found=()))
        del content["best_found"]
        return content
