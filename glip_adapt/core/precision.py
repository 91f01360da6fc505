"""What moves the last bits of results: precision of large products, and CPU threads."""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
from collections.abc import Iterator

import torch
from torch import Tensor

from glip_adapt.core.settings import Precision

logger = logging.getLogger(__name__)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which large products run in ``precision``; weights and losses stay in float32.

    bfloat16 on a CPU that is slower in it is not refused, but the first time a warning says so.
    """
    if device.type == "cpu" and precision == "bfloat16" and not cpu_gains_from_bfloat16():
        _warn_of_slow_products()
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


@functools.cache
def cpu_gains_from_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32.

    That takes instructions such as AVX512-BF16 or AMX. Without them bfloat16 is emulated.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        # torch 2.6 has no public name for these two.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # on Arm, the instructions themselves


@functools.cache
def _warn_of_slow_products() -> None:
    logger.warning(
        "This CPU has no instructions for bfloat16 (AVX512-BF16 or AMX), which makes it slower than float32. Leave the "
        "precision at float32."
    )


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
