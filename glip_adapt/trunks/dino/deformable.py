"""Multi-scale deformable attention: each head reads a few places of every map, and weighs them.

Deformable DETR, arXiv 2010.04159, section 4.1. On a CPU a place is four weighted rows of one table of all cells, and a
head is the weighted sum of all its rows; places are worked out chunk by chunk in the processor's cache, and again in
the backward pass. Elsewhere it is ``grid_sample``, map by map.

Shape letters: B batch, Q queries, A cells over all levels, L levels, k heads, P points, C channels, d = C / k.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glip_adapt.core.precision import full_precision
from glip_adapt.core.structures import SizeHW
from glip_adapt.trunks.linear import Linear
from glip_adapt.trunks.sparse import sparse_rows, transposed_rows

CHUNK = 512  # queries per step on a CPU: the places of their heads stay in the cache
EDGE = 2  # cells of zeros around each map: a place beyond them is moved there, where all four neighbours are zero


class DeformableAttention(nn.Module):
    """Attention of queries to a few places around them, which they choose themselves."""

    def __init__(self, width: int, *, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = Linear(width, heads * levels * points * 2)
        self.weights = Linear(width, heads * levels * points)
        self.value = Linear(width, width)
        self.out = Linear(width, width)
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
        sizes = places.new_tensor([(w, h) for h, w in level_shapes_hw])
        offsets = full_precision(self.offsets(query)).unflatten(-1, (heads, levels, points, 2))
        weights = full_precision(self.weights(query)).unflatten(-1, (heads, levels * points)).softmax(-1)
        if places.shape[-1] == 4:
            offsets = offsets / points * (places[..., 2:] * sizes * 0.5)[:, :, None, :, None]
        positions = offsets + (places[..., :2] * sizes - 0.5)[:, :, None, :, None]
        read = sample(values.unflatten(-1, (heads, -1)), level_shapes_hw, positions, weights)
        return self.out(read.to(values.dtype))


def sample(values: Tensor, level_shapes_hw: Sequence[SizeHW], positions: Tensor, weights: Tensor) -> Tensor:
    """Return (B, Q, C): for each head the weighted sum of bilinear samples; outside of a map is zero.

    Args:
        values: (B, A, k, d), the maps one after the other.
        level_shapes_hw: (h, w) of each map.
        positions: (B, Q, k, L, P, 2) as (x, y) in cells; (0, 0) is the centre of the first cell.
        weights: (B, Q, k, L·P).
    """
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        return _WeightedRows.apply(values.to(positions.dtype), positions, weights, tuple(level_shapes_hw))
    return sample_by_grid(values, level_shapes_hw, positions, weights)


def sample_by_grid(values: Tensor, level_shapes_hw: Sequence[SizeHW], positions: Tensor, weights: Tensor) -> Tensor:
    """Return ``sample`` by ``grid_sample``, map by map."""
    batch, queries, heads = positions.shape[:3]
    sizes = positions.new_tensor([(w, h) for h, w in level_shapes_hw]).unsqueeze(1)
    grids = ((2 * positions + 1) / sizes - 1).transpose(1, 2).flatten(0, 1).to(values)  # (B·k, Q, L, P, 2)
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
    """``sample`` as weighted sums of rows of a table; the backward pass works the places out again.

    The table has a border of zeros around each map, so that places outside need no rule of their own.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, positions: Tensor, weights: Tensor, level_shapes_hw: tuple[SizeHW, ...]
    ) -> Tensor:
        """Return (B, Q, C); arguments as for ``sample``."""
        ctx.save_for_backward(values, positions, weights)
        ctx.level_shapes_hw = level_shapes_hw
        parts = []
        for table, places, shares in zip(_bordered(values, level_shapes_hw), positions, weights, strict=True):
            rows = table.flatten(0, 1)
            for chunk in zip(places.split(CHUNK), shares.split(CHUNK), strict=True):
                corners = Corners.of(level_shapes_hw, *chunk)
                parts.append(F.embedding_bag(corners.index, rows, mode="sum", per_sample_weights=corners.mix))
        return torch.cat(parts).view(*positions.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``forward``'s arguments."""
        values, positions, weights = ctx.saved_tensors
        grad = grad.unflatten(-1, values.shape[2:]).contiguous()  # (B, Q, k, d)
        tables, grad_tables = _bordered(values, ctx.level_shapes_hw), []
        grad_positions, grad_weights = torch.empty_like(positions), torch.empty_like(weights)
        for i, (table, pull) in enumerate(zip(tables, grad, strict=True)):
            index = torch.empty(weights.shape[2], len(pull), 4 * weights.shape[3], dtype=torch.int32)
            mix = weights.new_empty(index.shape)
            for start in range(0, len(pull), CHUNK):
                part = slice(start, start + CHUNK)
                corners = Corners.of(ctx.level_shapes_hw, positions[i, part], weights[i, part])
                grad_mix = _products(pull[part].flatten(0, 1), table.flatten(0, 1), corners.index)
                grad_positions[i, part], grad_weights[i, part] = corners.pull(weights[i, part], grad_mix)
                by_head = (len(pull[part]), -1, index.shape[2])
                index[:, part] = corners.index.view(by_head).transpose(0, 1)
                mix[:, part] = corners.mix.view(by_head).transpose(0, 1)
            grad_tables.append(_transposed_product(index, mix, pull, table.shape[1]))
        return _without_border(torch.stack(grad_tables), ctx.level_shapes_hw), grad_positions, grad_weights, None


@dataclass(frozen=True)
class Corners:
    """The four cells around each of L·P places of k heads of Q queries: up left, up right, down left, down right.

    Attributes:
        index: (Q·k, L·P·4) int32, rows of the table with borders, head · A' + cell.
        mix: (Q·k, L·P·4) float, their weights.
        fraction: (Q, k, L, P, 2) float in [0, 1), how far a place lies beyond its upper left cell.
    """

    index: Tensor
    mix: Tensor
    fraction: Tensor

    @classmethod
    def of(cls, level_shapes_hw: Sequence[SizeHW], places: Tensor, shares: Tensor) -> Corners:
        """Return the corners of places (Q, k, L, P, 2), in cells, with weights (Q, k, L·P)."""
        heads, points = places.shape[1], places.shape[3]

        def of_places(numbers: Sequence[float]) -> Tensor:
            """Return (L, P) from one number a map: short rows would keep the processor from its wide steps."""
            return places.new_tensor(numbers).repeat_interleave(points).view(-1, points)

        wide_hw = _wide(level_shapes_hw)
        *starts, cells = itertools.accumulate((h * w for h, w in wide_hw), initial=0)
        widths = [w for _, w in wide_hw]
        edge = torch.stack([of_places([size[axis] for size in level_shapes_hw]) for axis in (1, 0)], dim=-1)
        # A place that is no number reads the border, with a weight that is none either.
        position = places.clamp(min=-EDGE).minimum(edge)
        near = position.floor().nan_to_num_(-EDGE)
        fraction = position.sub_(near)
        first = of_places([start + EDGE * (width + 1) for start, width in zip(starts, widths, strict=True)])
        cell = torch.addcmul(near[..., 0] + first, near[..., 1], of_places(widths))
        steps = torch.tensor([(0, 1, width, width + 1) for width in widths], dtype=torch.int32)
        index = (cell.int() + cells * torch.arange(heads, dtype=torch.int32).view(-1, 1, 1)).unsqueeze(-1)
        right, down = fraction.unbind(-1)
        lower = shares.view_as(right) * down
        upper = shares.view_as(right) - lower
        lower_right, upper_right = lower * right, upper * right
        mix = torch.stack((upper.sub_(upper_right), upper_right, lower.sub_(lower_right), lower_right), dim=-1)
        rows = len(places) * heads
        return cls((index + steps.unsqueeze(1)).view(rows, -1), mix.view(rows, -1), fraction)

    def pull(self, shares: Tensor, grad_mix: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of places (Q, k, L, P, 2) and shares (Q, k, L·P), for one of ``mix``."""
        right, down = self.fraction.unbind(-1)
        grad_upper, grad_upper_right, grad_lower, grad_lower_right = grad_mix.view(*right.shape, 4).unbind(-1)
        across_upper, across_lower = grad_upper_right - grad_upper, grad_lower_right - grad_lower
        upper = torch.addcmul(grad_upper, right, across_upper)
        downward = torch.addcmul(grad_lower, right, across_lower).sub_(upper)
        across = torch.addcmul(across_upper, down, across_lower.sub_(across_upper))
        moved = torch.stack((across, downward), dim=-1) * shares.view_as(right).unsqueeze(-1)
        return moved, torch.addcmul(upper, down, downward).flatten(2)


def _wide(level_shapes_hw: Sequence[SizeHW]) -> list[SizeHW]:
    return [(h + 2 * EDGE, w + 2 * EDGE) for h, w in level_shapes_hw]


def _bordered(values: Tensor, level_shapes_hw: Sequence[SizeHW]) -> Tensor:
    """Return (B, k, A', d), head by head the values (B, A, k, d) with a border of zeros around each map."""
    maps = values.transpose(1, 2).split([h * w for h, w in level_shapes_hw], dim=2)
    wide = (F.pad(x.unflatten(2, hw), (0, 0, *[EDGE] * 4)) for x, hw in zip(maps, level_shapes_hw, strict=True))
    return torch.cat([x.flatten(2, 3) for x in wide], dim=2)


def _without_border(tables: Tensor, level_shapes_hw: Sequence[SizeHW]) -> Tensor:
    """Return (B, A, k, d) for (B, k, A', d), the inverse of ``_bordered``."""
    wide_hw = _wide(level_shapes_hw)
    maps = tables.split([h * w for h, w in wide_hw], dim=2)
    inner = (x.unflatten(2, hw)[:, :, EDGE:-EDGE, EDGE:-EDGE] for x, hw in zip(maps, wide_hw, strict=True))
    return torch.cat([x.flatten(2, 3) for x in inner], dim=2).transpose(1, 2)


def _products(pull: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Return (N, n), for each of N vectors (N, d) its dot products with n rows of (R, d); ``index`` is (N, n)."""
    if torch.backends.mkl.is_available():  # a third of the time
        picked = sparse_rows(index, torch.ones(index.shape, dtype=pull.dtype), len(rows))
        return torch.sparse.sampled_addmm(picked, pull, rows.T, beta=0).values().view(index.shape)
    leaf = rows.new_zeros(index.shape, requires_grad=True)
    with torch.enable_grad():
        read = F.embedding_bag(index, rows, mode="sum", per_sample_weights=leaf)
    return torch.autograd.grad(read, leaf, pull)[0]


def _transposed_product(index: Tensor, mix: Tensor, pull: Tensor, cells: int) -> Tensor:
    """Return (k, A', d), for each row of the table the weighted sum of the gradients that its readers receive.

    torch's own backward pass of ``embedding_bag`` adds reader by reader, and takes four times as long.

    Args:
        index: (k, Q, n) int32, rows head · A' + cell.
        mix: (k, Q, n), weights.
        pull: (Q, k, d), gradients of the readers.
        cells: A' of the table.
    """
    heads = enumerate(zip(index, mix, strict=True))
    return torch.stack(
        [
            transposed_rows(places - head * cells, shares, cells) @ pull[:, head].contiguous()
            for head, (places, shares) in heads
        ]
    )
