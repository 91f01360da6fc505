"""Modulated deformable 3 × 3 convolution over several feature maps at once.

Deformable ConvNets v2, arXiv 1811.11168. On a CPU it is a *sampled product*, output = W · (S x): S picks four cells per
tap and weighs them (bilinear weight × mask), and both steps go chunk by chunk through the processor's cache, so that
the nine samples per cell never exist as a whole. Elsewhere, and while a graph is traced, it is torchvision's operator,
map by map.

Shape letters: B batch, R rows of a table of cells (all images and maps), P output cells, C channels,
H W cells of an input map, h w cells of an output map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import deform_conv2d

from glip_adapt.core.precision import product_dtype
from glip_adapt.core.structures import SizeHW, split_levels
from glip_adapt.trunks.linear import linear
from glip_adapt.trunks.sparse import csr

TAPS = 9  # a 3 × 3 kernel
CORNERS = 4  # of a bilinear sample
CHUNK = 960  # output cells per step: their samples, 9 MB at 256 channels, stay in the cache of a current CPU


def deformable_conv(
    cells: Tensor,
    shapes_hw: Sequence[SizeHW],
    offsets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
) -> tuple[Tensor, ...]:
    """Return each map convolved with the same weights, padding 1, in the fastest exact form for the device.

    Args:
        cells: (B, Σ H·W, C) float, the input maps one after the other, row by row.
        shapes_hw: (H, W) of each input map.
        offsets: for each map (B, 18, h, w) in cells of the input, (dy, dx) per tap; h = ceil(H / stride), w likewise.
        masks: for each map (B, 9, h, w), the weight of each tap.
        weight: (C', C, 3, 3).
        bias: (C',).
        stride: cells of the input per cell of the output.

    Returns:
        For each map (B, C', h, w), channels last on a CPU.
    """
    if cells.device.type != "cpu" or torch.compiler.is_compiling():
        maps = split_levels(cells, shapes_hw)
        return tuple(
            deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=mask)
            for x, offset, mask in zip(maps, offsets, masks, strict=True)
        )
    batch, rows = cells.shape[:2]
    output_shapes_hw = tuple((offset.shape[2], offset.shape[3]) for offset in offsets)
    shift = _over_maps(offsets)
    # A position in half precision would be wrong by whole cells, so autocast ends here.
    shift = shift.to(torch.promote_types(shift.dtype, torch.float32)).unflatten(2, (TAPS, 2))
    index, mix = _corners(_sites(tuple(shapes_hw), output_shapes_hw, stride), shift, _over_maps(masks))
    index = (index + rows * torch.arange(batch, dtype=torch.int32).view(-1, 1, 1)).flatten(0, 1)
    table, mix = cells.flatten(0, 1), mix.flatten(0, 1)
    weight = weight.permute(0, 2, 3, 1).flatten(1)  # taps before channels, as the samples
    if product_dtype(table) is torch.bfloat16 and not torch.is_grad_enabled():
        table, mix, weight, bias = (x.to(torch.bfloat16) for x in (table, mix, weight, bias))
        output = _sampled_product(table, index, mix, weight, bias)
    else:
        output = SampledProduct.apply(table, index, mix, weight, bias)
    return split_levels(output.unflatten(0, (batch, -1)), output_shapes_hw)


def _over_maps(maps: Sequence[Tensor]) -> Tensor:
    """Return (B, P, channels) for several (B, channels, h, w)."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)


@lru_cache(maxsize=64)  # a handful of image sizes is in use at a time
def _sites(shapes_hw: tuple[SizeHW, ...], output_shapes_hw: tuple[SizeHW, ...], stride: int) -> tuple[Tensor, ...]:
    """Return the places of the nine taps of each output cell, and of the map that they read, all int64.

    Row and column of a tap in its map, before it is moved, are (P, 9). Height and width of that map, and the row of the
    table that holds its first cell, are (P, 1).
    """
    tap = torch.arange(TAPS)
    parts, start = [], 0
    for (height, width), (h, w) in zip(shapes_hw, output_shapes_hw, strict=True):
        cell = torch.arange(h * w).unsqueeze(1)
        row, column = stride * (cell // w) + tap // 3 - 1, stride * (cell % w) + tap % 3 - 1
        parts.append((row, column, *(torch.full_like(cell, value) for value in (height, width, start))))
        start += height * width
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _corners(sites: tuple[Tensor, ...], shift: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four cells that each moved tap reads, and their weights; zero outside the map.

    They are int32 rows of the table and floats, both (B, P, 36). ``sites`` are of P output cells, ``shift`` is
    (B, P, 9, 2) as (dy, dx), and ``mask`` (B, P, 9).
    """
    tap_row, tap_column, height, width, start = sites
    dy, dx = shift.unbind(-1)
    row, weight_y = _two_neighbours(tap_row + dy, height)
    column, weight_x = _two_neighbours(tap_column + dx, width)
    first = start.unsqueeze(-1) + row * width.unsqueeze(-1)  # cell of each row, (B, P, 9, 2)
    index = first.unsqueeze(-1) + column.unsqueeze(-2)
    mix = (mask.unsqueeze(-1) * weight_y).unsqueeze(-1) * weight_x.unsqueeze(-2)
    return index.flatten(2).int(), mix.flatten(2)


def _two_neighbours(position: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return the whole positions on both sides of (B, P, 9), int64, and their linear weights: (B, P, 9, 2) each."""
    with torch.no_grad():
        below = position.floor()
        # Whole numbers before the clamp: a position that is not finite then still names a cell, and its weight is NaN.
        neighbour = below.long().unsqueeze(-1) + torch.arange(2)
        limit = length.unsqueeze(-1) - 1
        clamped = neighbour.clamp(min=0).minimum(limit)
        inside = neighbour == clamped
    fraction = position - below
    return clamped, torch.stack((1 - fraction, fraction), dim=-1) * inside


class SampledProduct(torch.autograd.Function):
    """W · (S x), with S given by four weighted rows per tap; unneeded gradients are not computed.

    For the gradient of W, the backward pass makes the samples S x again, at a twentieth of its cost, instead of keeping
    them.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, table: Tensor, index: Tensor, mix: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return (P, C').

        Args:
            ctx: of autograd.
            table: (R, C) float.
            index: (P, 36) int32, rows of the table, tap by tap.
            mix: (P, 36) float, their weights.
            weight: (C', 9·C), taps before channels.
            bias: (C',).
        """
        ctx.save_for_backward(table, index, mix, weight)
        return _sampled_product(table, index, mix, weight, bias)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of ``forward``'s arguments, None where no gradient is needed."""
        table, index, mix, weight = ctx.saved_tensors
        want_table, _, want_mix, want_weight, want_bias = ctx.needs_input_grad
        grad_table = torch.zeros_like(table) if want_table else None
        grad_weight = torch.zeros_like(weight) if want_weight else None
        grad_mix: list[Tensor] = []
        transposed = weight.t().contiguous()
        for rows, weights, pull in zip(index.split(CHUNK), mix.split(CHUNK), grad.split(CHUNK), strict=True):
            first, last = (int(row) for row in rows.aminmax())
            window, near = table[first : last + 1], rows - first
            if grad_weight is not None:
                grad_weight.addmm_(pull.t(), _samples(window, near, weights))
            if not want_table and not want_mix:
                continue
            pulled = linear(pull, transposed).view(-1, table.shape[1])  # of the samples, (P·9, C)
            corners = near.view(-1, CORNERS)
            if grad_table is not None:
                grad_table[first : last + 1] += _pull_rows(corners, weights.view(-1, CORNERS), pulled, len(window))
            if want_mix:
                grad_mix.append(_pull_mix(window, corners, pulled).view(weights.shape))
        grad_bias = grad.sum(0) if want_bias else None
        return grad_table, None, torch.cat(grad_mix) if want_mix else None, grad_weight, grad_bias


def _pull_rows(corners: Tensor, mix: Tensor, pulled: Tensor, rows: int) -> Tensor:
    """Return (R, C), for each of R rows the sum of what its readers (S, C) receive, weighed by ``mix`` (S, 4).

    The readers of a row come in the order of torch's sort. So they do in its own backward pass of ``embedding_bag``,
    which takes twice as long; the sums are the same, on some processors to the last bit.
    """
    flat = corners.flatten()
    order = flat.sort().indices
    ends = F.pad(torch.bincount(flat, minlength=rows).cumsum(0), (1, 0)).int()
    return csr(ends, (order // CORNERS).int(), mix.flatten()[order], (rows, len(corners))) @ pulled


def _pull_mix(table: Tensor, corners: Tensor, pulled: Tensor) -> Tensor:
    """Return (4·S,), the dot products of what each sample receives (S, C) with the four rows that it read.

    This is the backward pass of ``embedding_bag`` for its weights. Through autograd, the samples would be made again.
    """
    sample = torch.arange(len(corners), dtype=corners.dtype)
    starts, reader = CORNERS * sample, sample.repeat_interleave(CORNERS)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        pulled, table, corners.flatten(), starts, reader, mode=0
    )


def _sampled_product(table: Tensor, index: Tensor, mix: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return (P, C') for the arguments of ``SampledProduct.forward``, chunk by chunk."""
    chunks = zip(index.split(CHUNK), mix.split(CHUNK), strict=True)
    return torch.cat([linear(_samples(table, rows, weights), weight, bias) for rows, weights in chunks])


def _samples(table: Tensor, index: Tensor, mix: Tensor) -> Tensor:
    """Return (P, 9·C): for each tap the weighted sum of four rows of the table (R, C)."""
    bags = F.embedding_bag(index.view(-1, CORNERS), table, mode="sum", per_sample_weights=mix.view(-1, CORNERS))
    return bags.view(len(index), -1)
