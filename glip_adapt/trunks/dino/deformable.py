"""Multi-scale deformable attention: each head reads a few places of every map, and weighs them.

Deformable DETR, arXiv 2010.04159, section 4.1. On a CPU a place is four weighted rows of one table of all cells, and a
head is the weighted sum of all its rows; heads take turns, so that their tables and places stay in the processor's
cache. Elsewhere it is ``grid_sample``, map by map.

Shape letters: B batch, Q queries, A cells over all levels, L levels, k heads, P points, C channels, d = C / k.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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

CHUNK = 4096  # queries of a head at a time
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
        return _WeightedRows.apply(values.to(positions.dtype), positions.flatten(3, 4), weights, tuple(level_shapes_hw))
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
    """``sample``, head by head, as weighted sums of rows of a table; the backward pass works the places out again.

    The table has a border of zeros around each map, so that places outside need no rule of their own.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, positions: Tensor, weights: Tensor, level_shapes_hw: tuple[SizeHW, ...]
    ) -> Tensor:
        """Return (B, Q, C); arguments as for ``sample``, but positions (B, Q, k, L·P, 2)."""
        tables = _bordered(values, level_shapes_hw)
        ctx.save_for_backward(tables, positions, weights)
        ctx.level_shapes_hw = level_shapes_hw
        read = tables.new_empty(*positions.shape[:3], tables.shape[-1])
        for table, places, shares, into in _heads([tables], [positions, weights, read]):
            for part in _chunks(len(places)):
                corners = Corners.of(level_shapes_hw, places[part], shares[part])
                into[part] = F.embedding_bag(corners.index, table, mode="sum", per_sample_weights=corners.mix)
        return read.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``forward``'s arguments."""
        tables, positions, weights = ctx.saved_tensors
        pulls = grad.unflatten(-1, (tables.shape[1], -1))  # (B, Q, k, d)
        grad_tables, *grads = (torch.empty_like(tensor) for tensor in (tables, positions, weights))
        mix = weights.new_empty(weights.shape[1], 4 * weights.shape[3])  # of one head, as the next
        index = torch.empty(mix.shape, dtype=torch.int32)
        for table, grad_table, places, shares, pull, grad_places, grad_shares in _heads(
            [tables, grad_tables], [positions, weights, pulls, *grads]
        ):
            pull = pull.contiguous()
            for part in _chunks(len(pull)):
                corners = Corners.of(ctx.level_shapes_hw, places[part], shares[part])
                grad_mix = _products(pull[part], table, corners.index)
                grad_places[part], grad_shares[part] = corners.pull(shares[part], grad_mix)
                index[part], mix[part] = corners.index, corners.mix
            # torch's own backward pass of embedding_bag adds reader by reader, and takes ten times as long.
            grad_table.copy_(transposed_rows(index, mix, len(table)) @ pull)
        return _without_border(grad_tables, ctx.level_shapes_hw), *grads, None


def _heads(tables: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the parts of each head of each image: of tables (B, k, A', d), then of others (B, Q, k, …)."""
    for image in zip(*tables, *(other.transpose(1, 2) for other in others), strict=True):
        yield from zip(*image, strict=True)


def _chunks(queries: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, queries, CHUNK))


@dataclass(frozen=True)
class Corners:
    """The four cells around each of n = L·P places of Q queries: up left, up right, down left, down right.

    Places are last, so that the processor takes wide steps.

    Attributes:
        index: (Q, 4·n) int32, rows of the table with borders.
        mix: (Q, 4·n) float, their weights.
        right: (Q, n) float in [0, 1), how far a place lies to the right of its upper left cell.
        down: (Q, n) float in [0, 1), how far it lies below.
    """

    index: Tensor
    mix: Tensor
    right: Tensor
    down: Tensor

    @classmethod
    def of(cls, level_shapes_hw: Sequence[SizeHW], places: Tensor, shares: Tensor) -> Corners:
        """Return the corners of places (Q, n, 2), in cells, with weights (Q, n)."""
        points = places.shape[1] // len(level_shapes_hw)

        def of_places(numbers: Sequence[int]) -> Tensor:
            """Return (n,) from one number a map."""
            return places.new_tensor(numbers).repeat_interleave(points)

        wide_hw = _wide(level_shapes_hw)
        starts = itertools.accumulate((h * w for h, w in wide_hw[:-1]), initial=0)
        widths = [w for _, w in wide_hw]
        x, y = (axis.clamp(min=-EDGE) for axis in places.unbind(-1))
        right = x.minimum(of_places([w for _, w in level_shapes_hw]))
        down = y.minimum(of_places([h for h, _ in level_shapes_hw]))
        # A place that is no number reads the border, with a weight that is none either.
        column, row = (axis.floor().nan_to_num_(-EDGE) for axis in (right, down))
        right.sub_(column)
        down.sub_(row)
        first = of_places([start + EDGE * (width + 1) for start, width in zip(starts, widths, strict=True)])
        cell = torch.addcmul(column + first, row, of_places(widths)).int()
        below = of_places(widths).int()
        index = cell.unsqueeze(1) + torch.stack((0 * below, 0 * below + 1, below, below + 1))
        mix = shares.new_empty(index.shape)
        upper_left, upper_right, lower_left, lower_right = mix.unbind(1)
        torch.mul(shares, down, out=lower_left)
        torch.sub(shares, lower_left, out=upper_left)
        for left, other in ((upper_left, upper_right), (lower_left, lower_right)):
            torch.mul(left, right, out=other)
            left.sub_(other)
        return cls(index.flatten(1), mix.flatten(1), right, down)

    def pull(self, shares: Tensor, grad_mix: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of places (Q, n, 2) and shares (Q, n), for one of ``mix``."""
        upper_left, upper_right, lower_left, lower_right = grad_mix.view(len(shares), 4, -1).unbind(1)
        across_upper, across_lower = upper_right - upper_left, lower_right - lower_left
        upper = torch.addcmul(upper_left, self.right, across_upper)
        downward = torch.addcmul(lower_left, self.right, across_lower).sub_(upper)
        across = torch.addcmul(across_upper, self.down, across_lower.sub_(across_upper))
        return torch.stack((across * shares, downward * shares), dim=-1), torch.addcmul(upper, self.down, downward)


def _wide(level_shapes_hw: Sequence[SizeHW]) -> list[SizeHW]:
    return [(h + 2 * EDGE, w + 2 * EDGE) for h, w in level_shapes_hw]


def _bordered(values: Tensor, level_shapes_hw: Sequence[SizeHW]) -> Tensor:
    """Return (B, k, A', d), head by head the values (B, A, k, d) with a border of zeros around each map."""
    batch, _, heads, width = values.shape
    tables = values.new_zeros(batch, heads, sum(h * w for h, w in _wide(level_shapes_hw)), width)
    for inner, cells in _maps(tables, values, level_shapes_hw):
        inner.copy_(cells)
    return tables


def _without_border(tables: Tensor, level_shapes_hw: Sequence[SizeHW]) -> Tensor:
    """Return (B, A, k, d) for (B, k, A', d), the inverse of ``_bordered``."""
    batch, heads, _, width = tables.shape
    values = tables.new_empty(batch, sum(h * w for h, w in level_shapes_hw), heads, width)
    for inner, cells in _maps(tables, values, level_shapes_hw):
        cells.copy_(inner)
    return values


def _maps(tables: Tensor, values: Tensor, level_shapes_hw: Sequence[SizeHW]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the cells of each map as views (B, k, h, w, d) of tables with borders, and of values (B, A, k, d)."""
    wide_hw = _wide(level_shapes_hw)
    wide = tables.split([h * w for h, w in wide_hw], dim=2)
    plain = values.split([h * w for h, w in level_shapes_hw], dim=1)
    for table, cells, hw, size in zip(wide, plain, wide_hw, level_shapes_hw, strict=True):
        yield table.unflatten(2, hw)[:, :, EDGE:-EDGE, EDGE:-EDGE], cells.unflatten(1, size).permute(0, 3, 1, 2, 4)


def _products(pull: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Return (N, n), for each of N vectors (N, d) its dot products with n rows of (R, d); ``index`` is (N, n)."""
    if torch.backends.mkl.is_available():  # a third of the time
        picked = sparse_rows(index, torch.ones(index.shape, dtype=pull.dtype), len(rows))
        return torch.sparse.sampled_addmm(picked, pull, rows.T, beta=0).values().view(index.shape)
    leaf = rows.new_zeros(index.shape, requires_grad=True)
    with torch.enable_grad():
        read = F.embedding_bag(index, rows, mode="sum", per_sample_weights=leaf)
    return torch.autograd.grad(read, leaf, pull)[0]
