"""The dynamic-head block: deformable convolutions across levels, scale attention, dynamic ReLU.

Dynamic Head, arXiv 2106.08322; behaviour follows ``DyConv`` in maskrcnn_benchmark/modeling/rpn/vldyhead.py and
maskrcnn_benchmark/layers/dyrelu.py of the public GLIP code.

Shape letters: B batch, N feature cells over all levels, C channels, h w cells of a level (of the output).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glip_adapt.core.precision import full_precision
from glip_adapt.core.structures import SizeHW, split_levels
from glip_adapt.trunks.glip.deform import TAPS, deformable_conv
from glip_adapt.trunks.linear import kernel


class DyHeadBlock(nn.Module):
    """Convolve each level and its two neighbours, and add up the results with learned weights.

    Offsets and masks are predicted from the level itself and shared by its three convolutions.
    """

    def __init__(self, width: int, *, norm_groups: int = 16) -> None:
        super().__init__()
        self.offset = nn.Conv2d(width, 3 * TAPS, kernel_size=3, padding=1)
        self.same = DeformableConvNorm(width, norm_groups, stride=1)
        self.finer = DeformableConvNorm(width, norm_groups, stride=2)
        self.coarser = DeformableConvNorm(width, norm_groups, stride=1)
        self.scale_attention = nn.Conv2d(width, 1, kernel_size=1)
        self.activation = DynamicReLU(width)

    def forward(self, cells: Tensor, level_shapes_hw: tuple[SizeHW, ...]) -> Tensor:
        """Return (B, N, C) for (B, N, C): levels of the given shapes, finest first."""
        levels = split_levels(cells, level_shapes_hw)
        predicted = [self.offset(level) for level in levels]
        offsets = [p[:, : 2 * TAPS] for p in predicted]
        masks = [p[:, 2 * TAPS :].sigmoid() for p in predicted]
        finest, coarsest = levels[0][0, 0].numel(), levels[-1][0, 0].numel()
        same = self.same(cells, level_shapes_hw, offsets, masks)
        finer = self.finer(cells[:, :-coarsest], level_shapes_hw[:-1], offsets[1:], masks[1:])
        coarser = self.coarser(cells[:, finest:], level_shapes_hw[1:], offsets[:-1], masks[:-1])
        outputs = []
        for i, size_hw in enumerate(level_shapes_hw):
            branches = [same[i], *finer[max(i - 1, 0) : i]]
            for x in coarser[i : i + 1]:
                branches.append(F.interpolate(x, size=size_hw, mode="bilinear", align_corners=True))
            outputs.append(self.activation(self._weigh(branches)).flatten(2).transpose(1, 2))
        return torch.cat(outputs, dim=1)

    def _weigh(self, branches: list[Tensor]) -> Tensor:
        """Return the mean of the branches, each scaled by its attention in [0, 1]."""
        pooled = [full_precision(x).mean((2, 3), keepdim=True).to(x) for x in branches]
        attention = [F.hardsigmoid(F.relu(self.scale_attention(x))) for x in pooled]
        total = branches[0] * (attention[0] / len(branches))
        for x, weight in zip(branches[1:], attention[1:], strict=True):
            total = torch.addcmul(total, x, weight / len(branches))  # one pass over the map
        return total


class DeformableConvNorm(nn.Module):
    """Modulated deformable 3 × 3 convolution and GroupNorm, with the same weights for all levels."""

    def __init__(self, width: int, norm_groups: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(
            width, width, kernel_size=3, stride=stride, padding=1
        )  # holds weight and bias, with any factors
        self.norm = nn.GroupNorm(norm_groups, width)

    def forward(
        self, cells: Tensor, level_shapes_hw: Sequence[SizeHW], offsets: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return (B, C, h, w) for each input level.

        Args:
            cells: (B, N, C).
            level_shapes_hw: of the input levels; without any, the result is empty.
            offsets: for each (B, 18, h', w') cells, (dy, dx) per tap, predicted at a level that may be larger than the
                output.
            masks: for each (B, 9, h', w') in [0, 1].
        """
        if not level_shapes_hw:
            return ()
        sizes_hw = [((h - 1) // self.stride + 1, (w - 1) // self.stride + 1) for h, w in level_shapes_hw]
        offsets = [flat_prefix(x, size_hw) for x, size_hw in zip(offsets, sizes_hw, strict=True)]
        masks = [flat_prefix(x, size_hw) for x, size_hw in zip(masks, sizes_hw, strict=True)]
        weight, bias = kernel(self.conv)
        maps = deformable_conv(cells, level_shapes_hw, offsets, masks, weight, bias, stride=self.stride)
        return tuple(self.norm(x) for x in maps)


def flat_prefix(x: Tensor, size_hw: SizeHW) -> Tensor:
    """Return (B, C, h, w), the first C·h·w numbers of each image with the strides of the output.

    The convolution on the coarser level gets the offsets of the finer one, and the public CUDA kernel
    (maskrcnn_benchmark/csrc/cuda/deform_conv_kernel_cuda.cu) indexes that buffer with the strides of its smaller
    output. The released weights were trained with it. Where the sizes agree this changes nothing.
    """
    h, w = size_hw
    channels = x.shape[1]
    return x.flatten(1)[:, : channels * h * w].view(-1, channels, h, w)


class DynamicReLU(nn.Module):
    """DyReLU-B (arXiv 2003.10027): per channel the larger of two lines whose coefficients depend on the image."""

    def __init__(self, width: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, width // reduction)
        self.excite = nn.Linear(width // reduction, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w)."""
        coefficients = F.hardsigmoid(self.excite(F.relu(self.squeeze(full_precision(x).mean((2, 3))))))[..., None, None]
        slope_1, shift_1, slope_2, shift_2 = (coefficients - 0.5).chunk(4, dim=1)
        lines = (2 * slope_1 + 1, shift_1, 2 * slope_2, shift_2)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            larger: Tensor = LargerLine.apply(x, *lines)
            return larger
        return larger_line(x, *lines)


def larger_line(x: Tensor, slope_1: Tensor, shift_1: Tensor, slope_2: Tensor, shift_2: Tensor) -> Tensor:
    """Return the larger of two lines of (B, C, h, w), with coefficients (B, C, 1, 1)."""
    return torch.maximum(torch.addcmul(shift_1, x, slope_1), torch.addcmul(shift_2, x, slope_2))


class LargerLine(torch.autograd.Function):
    """``larger_line``; the backward pass keeps neither line, and takes a third of the time.

    Where both are equal each gets half of the gradient, as from ``torch.maximum``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *coefficients: Tensor) -> Tensor:
        """Return ``larger_line``."""
        ctx.save_for_backward(x, *coefficients)
        return larger_line(x, *coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x and of the coefficients."""
        x, slope_1, shift_1, slope_2, shift_2 = ctx.saved_tensors
        lead = torch.addcmul(shift_1, x, slope_1).sub_(torch.addcmul(shift_2, x, slope_2))
        first = lead.sign_().add_(1).mul_(0.5).mul_(grad)  # 1, ½ or 0 of it
        second = grad - first
        of_lines = [sums for part in (first, second) for sums in (_over_cells(part * x), _over_cells(part))]
        return first.mul_(slope_1).add_(second.mul_(slope_2)), *of_lines


def _over_cells(x: Tensor) -> Tensor:
    """Return (B, C, 1, 1), sums of (B, C, h, w)."""
    return x.sum((2, 3), keepdim=True)
