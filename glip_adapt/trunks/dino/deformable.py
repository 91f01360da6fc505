"""Multi-scale deformable attention: each head reads a few places of every map, and weighs them.

Deformable DETR, arXiv 2010.04159, section 4.1. On a CPU a place is four weighted rows of one table of all cells, and a
head is the weighted sum of all its rows; places are worked out chunk by chunk in the processor's cache, and again in
the backward pass. Elsewhere it is ``grid_sample``, map by map.

Shape letters: B batch, Q queries, A cells over all levels, L levels, k heads, P points, C channels, d = C / k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glip_adapt.core.precision import full_precision
from glip_adapt.core.structures import SizeHW

CHUNK = 512  # queries per step on a CPU: the places of their heads stay in the cache
CORNERS = 4  # of a bilinear sample


class DeformableAttention(nn.Module):
    """Attention of queries to a few places around them, which they choose themselves."""

    def __init__(self, width: int, *, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():  # each head looks in a direction of its own, each of its points one step farther
            angle = torch.arange(heads) * (2 * torch.pi / heads)
            direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
            direction = direction / direction.abs().amax(-1, keepdim=True)
            steps = direction[:, None, None] * torch.arange(1, points + 1)[:, None]  # (k, 1, P, 2)
            self.offsets.bias.copy_(steps.expand(-1, levels, -1, -1).flatten())

    def forward(
        self, query: Tensor, places: Tensor, cells: Tensor, real: Tensor | None, level_shapes_hw: Sequence[SizeHW]
    ) -> Tensor:
        """Return (B, Q, C).

        Args:
            query: (B, Q, C), with their positions.
            places: (B, Q, L, 2 or 4) around which they look, in shares of each map: (x, y), then offsets are in cells;
                or (x, y, width, height), then offsets are in halves of the box over P.
            cells: (B, A, C), the maps one after the other.
            real: (B, A) bool, False for padding, which reads as zero; None without padding.
            level_shapes_hw: (h, w) of each map.
        """
        values = self.value(cells)
        if real is not None:
            values = values.masked_fill(~real.unsqueeze(-1), 0)
        heads, levels, points = self.heads, self.levels, self.points
        offsets = full_precision(self.offsets(query)).unflatten(-1, (heads, levels, points, 2))
        weights = full_precision(self.weights(query)).unflatten(-1, (heads, levels * points)).softmax(-1)
        places = places[:, :, None, :, None]
        if places.shape[-1] == 2:
            locations = places + offsets / _sizes_wh(level_shapes_hw, offsets)
        else:
            locations = places[..., :2] + offsets / points * places[..., 2:] * 0.5
        read = sample(values.unflatten(-1, (heads, -1)), level_shapes_hw, locations, weights)
        return self.out(read.to(values.dtype))


def sample(values: Tensor, level_shapes_hw: Sequence[SizeHW], locations: Tensor, weights: Tensor) -> Tensor:
    """Return (B, Q, C): for each head the weighted sum of bilinear samples; outside of a map is zero.

    Args:
        values: (B, A, k, d), the maps one after the other.
        level_shapes_hw: (h, w) of each map.
        locations: (B, Q, k, L, P, 2) as (x, y) in shares of the map.
        weights: (B, Q, k, L·P).
    """
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        values = values.to(locations.dtype)
        return _WeightedRows.apply(values, locations, weights, tuple(level_shapes_hw))
    return sample_by_grid(values, level_shapes_hw, locations, weights)


def sample_by_grid(values: Tensor, level_shapes_hw: Sequence[SizeHW], locations: Tensor, weights: Tensor) -> Tensor:
    """Return ``sample`` by ``grid_sample``, map by map."""
    batch, queries, heads = locations.shape[:3]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1).to(values)  # (B·k, Q, L, P, 2)
    samples = []
    for level, (map_values, (h, w)) in enumerate(
        zip(values.split([h * w for h, w in level_shapes_hw], dim=1), level_shapes_hw, strict=True)
    ):
        maps = map_values.permute(0, 2, 3, 1).reshape(batch * heads, -1, h, w)
        samples.append(F.grid_sample(maps, grids[:, :, level], align_corners=False))
    places = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1).to(values)
    read = (torch.cat(samples, dim=-1) * places).sum(-1)  # (B·k, d, Q)
    return read.view(batch, -1, queries).transpose(1, 2)


class _WeightedRows(torch.autograd.Function):
    """``sample`` as weighted sums of rows of a table; the backward pass works the places out again."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, locations: Tensor, weights: Tensor, level_shapes_hw: tuple[SizeHW, ...]
    ) -> Tensor:
        """Return (B, Q, C); arguments as for ``sample``."""
        ctx.save_for_backward(values, locations, weights)
        ctx.level_shapes_hw = level_shapes_hw
        parts = []
        for table, places, shares in zip(values, locations, weights, strict=True):
            rows = table.flatten(0, 1)
            for chunk in zip(places.split(CHUNK), shares.split(CHUNK), strict=True):
                index, mix = _corners(level_shapes_hw, *chunk)
                parts.append(F.embedding_bag(index, rows, mode="sum", per_sample_weights=mix))
        return torch.cat(parts).view(*locations.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``forward``'s arguments."""
        values, locations, weights = ctx.saved_tensors
        grad = grad.unflatten(-1, values.shape[2:])  # (B, Q, k, d)
        columns: list[tuple[Tensor, ...]] = []
        for table, places, shares, pull in zip(values, locations, weights, grad, strict=True):
            rows, entries = table.flatten(0, 1), []
            for chunk in zip(places.split(CHUNK), shares.split(CHUNK), pull.split(CHUNK), strict=True):
                entries.append(_pull(ctx.level_shapes_hw, rows, *chunk))
            index, mix, *moved = (torch.cat(column) for column in zip(*entries, strict=True))
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                read = F.embedding_bag(index, rows, mode="sum", per_sample_weights=mix)
            (grad_rows,) = torch.autograd.grad(read, rows, pull.flatten(0, 1))
            columns.append((grad_rows.view_as(table), *moved))
        return *(torch.stack(column) for column in zip(*columns, strict=True)), None


def _pull(
    level_shapes_hw: Sequence[SizeHW], rows: Tensor, places: Tensor, shares: Tensor, pull: Tensor
) -> tuple[Tensor, ...]:
    """Return index and mix of ``_corners``, and the gradients of places and shares, for a gradient (Q, k, d)."""
    with torch.enable_grad():
        places, shares = places.detach().requires_grad_(), shares.detach().requires_grad_()
        index, mix = _corners(level_shapes_hw, places, shares)
        leaf = mix.detach().requires_grad_()
        read = F.embedding_bag(index, rows, mode="sum", per_sample_weights=leaf)
    (grad_mix,) = torch.autograd.grad(read, leaf, pull.flatten(0, 1))
    return index, mix.detach(), *torch.autograd.grad(mix, (places, shares), grad_mix)


def _corners(level_shapes_hw: Sequence[SizeHW], places: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (cell · k + head) that each head of Q queries reads, and their weights, zero outside of a map.

    They are (Q·k, L·P·4), int32 and float. ``places`` are (Q, k, L, P, 2), ``shares`` (Q, k, L·P).
    """
    heads = places.shape[1]
    sizes = _sizes_wh(level_shapes_hw, places)  # (L, 1, 2)
    x, y = (places * sizes - 0.5).unbind(-1)
    (left, right, share_left, share_right), (up, down, share_up, share_down) = (
        _neighbours(position, size) for position, size in ((x, sizes[..., 0]), (y, sizes[..., 1]))
    )
    shares = shares.view_as(x)
    share_up, share_down = share_up * shares, share_down * shares
    mix = torch.stack(
        (share_up * share_left, share_up * share_right, share_down * share_left, share_down * share_right), dim=-1
    )
    with torch.no_grad():
        starts = sizes.new_tensor([sum(h * w for h, w in level_shapes_hw[:i]) for i in range(len(sizes))])
        up, down = (row * sizes[..., 0] + starts.unsqueeze(-1) for row in (up, down))
        cell = torch.stack((up + left, up + right, down + left, down + right), dim=-1)
        index = cell.int() * heads + torch.arange(heads, dtype=torch.int32).view(-1, 1, 1, 1)
    return index.flatten(0, 1).flatten(1), mix.flatten(0, 1).flatten(1)


def _neighbours(position: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the whole positions below and above, moved into 0 … size - 1, and their linear weights."""
    with torch.no_grad():
        below = position.floor().nan_to_num(0, 0, 0)  # a position that is not finite still names a cell
        low, high = below.clamp(min=0).minimum(size - 1), (below + 1).clamp(min=0).minimum(size - 1)
        low_inside, high_inside = low == below, high == below + 1
    fraction = position - below
    return low, high, (1 - fraction) * low_inside, fraction * high_inside


def _sizes_wh(level_shapes_hw: Sequence[SizeHW], like: Tensor) -> Tensor:
    """Return (L, 1, 2) as (width, height) in cells."""
    return like.new_tensor([(w, h) for h, w in level_shapes_hw]).unsqueeze(1)
