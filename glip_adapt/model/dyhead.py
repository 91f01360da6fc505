"""The dynamic-head block: deformable convolutions across levels, scale attention, dynamic ReLU.

Dynamic Head, arXiv 2106.08322; behaviour follows ``DyConv`` in maskrcnn_benchmark/modeling/rpn/vldyhead.py and
maskrcnn_benchmark/layers/dyrelu.py of the public GLIP code.

Shape letters: B batch, C channels, h w feature cells (of the output), H W (of the input).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

TAPS = 9  # a 3 × 3 kernel


class DyHeadBlock(nn.Module):
    """One block: every level looks at itself, at the finer and at the coarser level, then they are weighed.

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

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return as many maps (B, C, h, w), finest first, of the same shapes."""
        outputs = []
        for i, level in enumerate(levels):
            offset, mask = self.offset(level).split((2 * TAPS, TAPS), dim=1)
            mask = mask.sigmoid()
            branches = [self.same(level, offset, mask)]
            if i > 0:
                branches.append(self.finer(levels[i - 1], offset, mask))
            if i < len(levels) - 1:
                coarse = self.coarser(levels[i + 1], offset, mask)
                branches.append(F.interpolate(coarse, size=level.shape[-2:], mode="bilinear", align_corners=True))
            outputs.append(self.activation(self._weigh(branches)))
        return tuple(outputs)

    def _weigh(self, branches: list[Tensor]) -> Tensor:
        """Mean of the branches, each scaled by its attention in [0, 1]."""
        weighed = [x * F.hardsigmoid(F.relu(self.scale_attention(x.mean((2, 3), keepdim=True)))) for x in branches]
        return torch.stack(weighed).mean(0)


class DeformableConvNorm(nn.Module):
    """Modulated deformable 3 × 3 convolution (arXiv 1811.11168) and GroupNorm."""

    def __init__(self, width: int, norm_groups: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1)  # holds weight and bias only
        self.norm = nn.GroupNorm(norm_groups, width)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Return (B, C, h, w) of input (B, C, H, W) sampled at ``offset`` and weighed by ``mask``.

        Args:
            x: (B, C, H, W).
            offset: (B, 18, h', w') pixels, (dy, dx) per tap, predicted at a level that may be larger than the output.
            mask: (B, 9, h', w') in [0, 1].
        """
        size_hw = tuple(-(-side // self.stride) for side in x.shape[-2:])
        offset, mask = flat_prefix(offset, size_hw), flat_prefix(mask, size_hw)
        return self.norm(deformable_conv(x, offset, mask, self.conv.weight, self.conv.bias, stride=self.stride))


def flat_prefix(x: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    """Return (B, C, h, w): the first C·h·w numbers of each picture's buffer, read with the output's strides.

    The convolution on the coarser level gets the offsets of the finer one, and the public CUDA kernel
    (maskrcnn_benchmark/csrc/cuda/deform_conv_kernel_cuda.cu) indexes that buffer with the strides of its smaller
    output. The released weights were trained with it. Where the sizes agree this changes nothing.
    """
    h, w = size_hw
    channels = x.shape[1]
    return x.flatten(1)[:, : channels * h * w].view(-1, channels, h, w)


def deformable_conv(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int
) -> Tensor:
    """Return the modulated deformable 3 × 3 convolution with padding 1, in the fastest form for the device.

    Args:
        x: (B, C, H, W).
        offset: (B, 18, h, w) pixels, (dy, dx) per tap.
        mask: (B, 9, h, w).
        weight: (C', C, 3, 3).
        bias: (C',) or None.
        stride: of the output grid.

    Returns:
        (B, C', h, w) with h = ceil(H / stride), w = ceil(W / stride).
    """
    if x.device.type == "cpu":
        return _sampled_deformable_conv(x, offset, mask, weight, bias, stride=stride)
    return deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=mask)


def _sampled_deformable_conv(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int
) -> Tensor:
    """Bilinear sampling of all taps at once, then one matrix product; zero outside the picture, as the kernel."""
    batch, channels, in_h, in_w = x.shape
    h, w = offset.shape[-2:]
    dy, dx = offset.view(batch, TAPS, 2, h, w).unbind(2)
    tap = torch.arange(TAPS, device=x.device).view(TAPS, 1, 1)
    y = stride * torch.arange(h, device=x.device).view(1, h, 1) + tap // 3 - 1 + dy  # (B, 9, h, w)
    x_position = stride * torch.arange(w, device=x.device).view(1, 1, w) + tap % 3 - 1 + dx
    # grid_sample (align_corners=False) puts pixel i at (2 i + 1) / size - 1.
    grid = torch.stack(((2 * x_position + 1) / in_w - 1, (2 * y + 1) / in_h - 1), dim=-1).view(batch, TAPS * h, w, 2)
    # grid_sample runs one thread per batch entry: hand it one group of channels per thread instead.
    groups = torch.get_num_threads() if channels % torch.get_num_threads() == 0 else 1
    x = x.reshape(batch * groups, channels // groups, in_h, in_w)
    grid = grid.repeat_interleave(groups, dim=0)
    taps = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    taps = taps.view(batch, channels, TAPS, h * w) * mask.view(batch, 1, TAPS, h * w)
    # Not matmul, whose path, and so its last bit, depends on which operand wants a gradient.
    output = weight.flatten(1).expand(batch, -1, -1).bmm(taps.view(batch, channels * TAPS, h * w))
    if bias is not None:
        output = output + bias.view(-1, 1)
    return output.view(batch, -1, h, w)


class DynamicReLU(nn.Module):
    """DyReLU-B (arXiv 2003.10027): per channel the larger of two lines whose coefficients depend on the picture."""

    def __init__(self, width: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, width // reduction)
        self.excite = nn.Linear(width // reduction, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w)."""
        coefficients = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[..., None, None]
        slope_1, shift_1, slope_2, shift_2 = (coefficients - 0.5).chunk(4, dim=1)
        return torch.maximum(x * (2 * slope_1 + 1) + shift_1, x * (2 * slope_2) + shift_2)
