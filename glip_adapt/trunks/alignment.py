"""Alignment of anchors or queries with tokens: the loss, the check of its labels, and the seam for other evidence.

Shape letters: B batch, A anchors or queries, T tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from glip_adapt.core.structures import Target

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


class NoEvidence(nn.Module):
    """Seam for evidence of classes beside the text: here there is none.

    Attributes:
        width: channels C of a candidate.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, logits: Tensor, candidates: Tensor, token_map: Tensor) -> Tensor:
        """Return the logits (B, A, T) of candidates (B, A, C) for tokens, (B or 1, K, T) of which name classes."""
        return logits


def check_labels(targets: Sequence[Target], token_map: Tensor, images: int) -> None:
    """Check the targets of a batch; labels as far as they can be read without waiting for a GPU.

    A model for the classes of its data has a token for every label.

    Args:
        targets: of each image.
        token_map: (B or 1, K, T) bool, of their captions.
        images: B, how many there should be.

    Raises:
        ValueError: if the numbers of targets and images differ, or a label is no class or has no token.
    """
    if len(targets) != images:
        raise ValueError(f"Expected one target for each of {images} images, got {len(targets)}.")
    for target, class_map in zip(targets, token_map.expand(len(targets), -1, -1), strict=True):
        labels, classes = target.labels, len(class_map)
        if labels.device.type != "cpu":
            continue
        if outside := labels[(labels < 0) | (labels >= classes)].unique().tolist():
            raise ValueError(f"Labels {outside} are no classes; expected 0 to {classes - 1}.")
        if class_map.device.type != "cpu":
            continue
        if unnamed := labels[~class_map[labels].any(-1)].unique().tolist():
            raise ValueError(f"Labels {unnamed} have no token in their caption. Train only on classes it names.")


def focal_loss(logits: Tensor, targets: Tensor, token_mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the summed binary focal loss (arXiv 1708.02002) of (B, A, T) logits over real tokens.

    ``weights``, (B, A), tell what each anchor or query counts; None: 1.
    """
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    agreement = probability * targets + (1 - probability) * (1 - targets)
    weight = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    losses = weight * (1 - agreement) ** FOCAL_GAMMA * cross_entropy * token_mask.unsqueeze(1)
    return losses.sum() if weights is None else (losses * weights.unsqueeze(2)).sum()


def total_weight(parts: Sequence[tuple[int, Tensor | None]]) -> float:
    """Return what boxes or anchors of several images count together; a part is a number of them, and their weights."""
    return sum(count if weights is None else weights.sum().item() for count, weights in parts)
