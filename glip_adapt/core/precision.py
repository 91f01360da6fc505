"""Precision of large products, for inference and training."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which large products run in ``precision``; weights and losses stay in float32."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")
