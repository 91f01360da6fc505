"""Evidence of classes in closed form: one Newton step of a logistic regression on the features of candidates.

For each class, the candidates of the images (anchors or queries) that stand for one of its boxes are told from all
others by ``logit(s) + w·x + b``, where ``s`` is the score at the start. A Newton step from ``w, b = 0``, with a
Gaussian prior, is the solution of a linear system, whose matrix and right side are sums over candidates: images may
come one by one, in any order, and each is needed once.

Shape letters: N candidates of a batch, K classes, C channels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from glip_adapt.core.precision import full_precision
from glip_adapt.engine.optimise import NonFiniteLossError, Step
from glip_adapt.engine.ranks import Ranks
from glip_adapt.trunks.protocol import Examples

BIAS_PRIOR = 0.1  # precision of its prior, over that of weights
SURE = 1e-6  # scores are at least this far from 0 and 1


class Sums:
    """Sums over candidates, float64; a candidate is its features and a 1 behind them.

    Attributes:
        hessian: (K, C + 1, C + 1), of the negative log-likelihood at the start.
        gradient: (K, C + 1), of the log-likelihood there.
        answers: (K,), how many candidates stand for a box of each class.
        moments: (2, C + 1), of features and of their squares; the last column is the number of candidates.
        loss: (1,), the negative log-likelihood.
    """

    def __init__(self, classes: int, width: int) -> None:
        """Start with zeros."""
        self.hessian = torch.zeros(classes, width + 1, width + 1, dtype=torch.float64)
        self.gradient = torch.zeros(classes, width + 1, dtype=torch.float64)
        self.answers = torch.zeros(classes, dtype=torch.float64)
        self.moments = torch.zeros(2, width + 1, dtype=torch.float64)
        self.loss = torch.zeros(1, dtype=torch.float64)

    def add(self, examples: Examples) -> None:
        """Add the candidates of some images."""
        features = F.pad(full_precision(examples.features.flatten(0, 1)), (0, 1), value=1.0)  # (N, C + 1)
        scores = examples.scores.flatten(0, 1).to(features).clamp(SURE, 1 - SURE)
        answers, weights = examples.answers.flatten(0, 1).to(scores), examples.weights.flatten().to(scores)
        counts = weights[:, None]
        curvature = counts * scores * (1 - scores)
        for k in range(len(self.answers)):  # one by one, as all of them together take too much memory
            self.hessian[k] += (features.T @ (features * curvature[:, k, None])).cpu().double()
        self.gradient += ((counts * (answers - scores)).T @ features).cpu().double()
        self.answers += answers.sum(0).cpu().double()
        self.moments += torch.stack((features.sum(0), features.square().sum(0))).cpu().double()
        losses = -torch.where(answers > 0, scores, 1 - scores).log()  # NaN of NaN, where torch's own raises
        self.loss += (counts * losses).sum().cpu().double()

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all sums; what is written into them stays."""
        return self.hessian, self.gradient, self.answers, self.moments, self.loss

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return weights (K, C) and biases (K,); a class without an answer has none.

        The prior is that of features with mean 0 and, over all channels, deviation 1.
        """
        count = self.moments[0, -1]
        mean, squares = self.moments[0, :-1] / count, self.moments[1, :-1] / count
        deviation = (squares - mean.square()).mean().clamp(min=1e-12).sqrt()
        inner, edge, corner = self.hessian[:, :-1, :-1], self.hessian[:, :-1, -1], self.hessian[:, -1, -1]
        crossed = edge[:, :, None] * mean
        centred = inner - crossed - crossed.transpose(1, 2) + corner[:, None, None] * torch.outer(mean, mean)
        border = (edge - corner[:, None] * mean) / deviation
        whole = torch.cat(
            (
                torch.cat((centred / deviation**2, border[:, :, None]), 2),
                torch.cat((border, corner[:, None]), 1)[:, None],
            ),
            1,
        )
        prior = torch.full_like(self.gradient[0], ridge)
        prior[-1] *= BIAS_PRIOR
        slope, rise = self.gradient[:, :-1], self.gradient[:, -1]
        right = torch.cat(((slope - rise[:, None] * mean) / deviation, rise[:, None]), 1)
        solved = torch.linalg.solve(whole + prior.diag(), right) * (self.answers > 0)[:, None]
        weight = solved[:, :-1] / deviation
        return weight, solved[:, -1] - weight @ mean


class Newton:
    """Evidence of classes from all images so far.

    Args:
        weight: (K, C), bias: (K,): the tensors that are set; they start from where they are.
        ridge: precision of the prior, see ``Exemplars``.
        ranks: share the images of a batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor, ridge: float, ranks: Ranks) -> None:
        self._owned, self._ridge, self._ranks = (weight, bias), ridge, ranks
        self._start = (weight.detach().clone(), bias.detach().clone())
        self._sums = Sums(*weight.shape)

    @torch.no_grad()
    def take(self, step: int, batch: str, parts: Iterable[tuple[str, Examples]]) -> Step:
        """Add the images of a batch, and solve for those so far; the arguments are those of ``Stepper.take``.

        ``parts`` are computed here, with the tensors as they were at the start.

        Raises:
            NonFiniteLossError: if a feature is not finite; the tensors are as before.
        """
        started = time.perf_counter()
        before, mine = [tensor.clone() for tensor in self._owned], Sums(*self._owned[0].shape)
        _put(self._owned, self._start)
        try:
            with self._ranks.together():
                for what, examples in parts:
                    mine.add(examples)
                    if not math.isfinite(mine.loss.item() + mine.hessian.sum().item()):
                        raise NonFiniteLossError(
                            f"The features of {what} are not finite in step {step}. The batch holds {batch}. "
                            "Look at these images, or compute in float32."
                        )
            self._ranks.sum_tensors(mine.tensors())
        except BaseException:
            _put(self._owned, before)
            raise
        for total, more in zip(self._sums.tensors(), mine.tensors(), strict=True):
            total += more
        solved = self._sums.solve(self._ridge)
        _put(self._owned, [first + more.to(first) for first, more in zip(self._start, solved, strict=True)])
        norm = self._sums.gradient.norm().item()
        return Step(step, {"evidence": mine.loss.item()}, 1.0, norm, time.perf_counter() - started)


def _put(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
