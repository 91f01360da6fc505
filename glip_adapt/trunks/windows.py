"""Lay out a map of cells as the attention windows of Swin: padding, shift, chunks, the mask of shifted windows.

The public code (maskrcnn_benchmark/modeling/backbone/swint.py) pads a map to whole windows, then shifts it.

Shape letters: B batch, h w cells of a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from glip_adapt.core.structures import SizeHW


@dataclass(frozen=True)
class WindowLayout:
    """Positions of the cells of B maps (h, w) in windows that go through a block chunk by chunk.

    A row is an index among all B·h·w cells. Windows show rows, and padding beyond the edges of a map.

    Attributes:
        cells: (windows, cells) int64, row of each cell of each window; 0 where it shows padding.
        real: (windows, cells, 1) float, 0 where the cell shows padding, else 1.
        source: (B·h·w,) int64, the rows in the order in which the windows show them.
        slots: for each chunk, int64 positions of its rows among the cells of its windows.
        position: (B·h·w,) int64, position of each row in ``source``.
    """

    cells: Tensor
    real: Tensor
    source: Tensor
    slots: tuple[Tensor, ...]
    position: Tensor


@lru_cache(maxsize=64)  # a handful of image sizes is in use at a time
def window_layout(
    size_hw: SizeHW, window: int, shift: int, batch: int, chunk: int, device: torch.device
) -> WindowLayout:
    """Return the layout of ``batch`` maps of ``size_hw`` cells, with ``chunk`` windows at a time.

    Windows have ``window`` cells a side, and are shifted down and to the right by ``shift`` cells.
    """
    cell, real = shown_cells(size_hw, window, shift, "cpu")  # whose numbers decide about sizes
    first = torch.arange(batch, device="cpu").view(-1, 1, 1) * (size_hw[0] * size_hw[1])
    cells, real = (cell + first).flatten(0, 1), real.repeat(batch, 1)
    source = cells[real]
    slots = tuple(part.flatten().nonzero().flatten().to(device) for part in real.split(chunk))
    return WindowLayout(
        cells=cells.where(real, 0).to(device),
        real=real.unsqueeze(-1).float().to(device),
        source=source.to(device),
        slots=slots,
        position=source.argsort().to(device),
    )


def shown_cells(size_hw: SizeHW, window: int, shift: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the cell of a map that each cell of each window shows, and whether it is real.

    Traceable: arithmetic on indices alone, for sizes that may be symbols.

    Returns:
        (windows, cells) int64 in 0 … h·w - 1, and (windows, cells) bool, False where the window shows padding.
    """
    (h, w), (padded_h, padded_w) = size_hw, padded_hw(size_hw, window)
    row, column = _window_cells((padded_h, padded_w), window, device)
    row, column = _modulo(row + shift, padded_h), _modulo(column + shift, padded_w)
    return row.clamp(max=h - 1) * w + column.clamp(max=w - 1), (row < h) & (column < w)


def places(size_hw: SizeHW, window: int, shift: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (h·w,) int64, position of each cell of a map among the cells of all windows; traceable."""
    (h, w), (padded_h, padded_w) = size_hw, padded_hw(size_hw, window)
    cell = torch.arange(h * w, device=device)
    row = _modulo(cell // w + padded_h - shift, padded_h)
    column = _modulo(_modulo(cell, w) + padded_w - shift, padded_w)
    place = (row // window * (padded_w // window) + column // window) * window**2
    return place + row % window * window + column % window


def shifted_window_mask(size_hw: SizeHW, window: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (windows, cells, cells) additive scores for windows shifted by half their side; traceable.

    They are -100 between cells that were no neighbours before the shift, else 0. ``size_hw`` is a whole number of
    windows.
    """
    h, w = size_hw
    shift = window // 2

    def region(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).long() + (position >= length - shift).long()

    row, column = _window_cells(size_hw, window, device)
    cells = 3 * region(h)[row] + region(w)[column]
    return (cells[:, None] != cells[:, :, None]) * -100.0


def padded_hw(size_hw: SizeHW, window: int) -> SizeHW:
    """Return the smallest whole number of windows that covers ``size_hw``, in cells.

    Only numbers above 0 are divided: an integer division of ONNX rounds towards 0.
    """
    return (size_hw[0] + window - 1) // window * window, (size_hw[1] + window - 1) // window * window


def _window_cells(size_hw: SizeHW, window: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return row and column of each cell of each window, (windows, cells) int64 each."""
    across = size_hw[1] // window
    place = torch.arange(size_hw[0] // window * across, device=device).unsqueeze(1)
    cell = torch.arange(window**2, device=device)
    return place // across * window + cell // window, _modulo(place, across) * window + cell % window


def _modulo(x: Tensor, divisor: int) -> Tensor:
    """Return ``x % divisor`` in operations that the exporter to ONNX knows for a divisor that is a symbol."""
    return x - x // divisor * divisor
