"""What moves the last bits of results: precision of large products, and CPU threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from glip_adapt.core.settings import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which large products run in ``precision``; weights and losses stay in float32."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which large products with ``x`` run now: that of an open ``autocast``, else that of ``x``."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def full_precision(x: Tensor) -> Tensor:
    """Return half precision as float32, and the rest as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Have torch use ``count`` CPU threads meanwhile; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
