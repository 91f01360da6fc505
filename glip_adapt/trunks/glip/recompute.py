"""Activation checkpointing: keep what enters a block, and compute the rest again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Return ``block(*inputs)``; with ``recompute``, nothing computed inside is kept for the backward pass.

    Dropout and stochastic depth draw the same numbers both times.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
