"""Pictures → feature pyramid: pixel statistics, Swin or any timm backbone, FPN. The only home of timm.

Swin (arXiv 2103.14030) as in maskrcnn_benchmark/modeling/backbone/swint.py of the public GLIP code, FPN as in
maskrcnn_benchmark/modeling/backbone/fpn.py. timm's own Swin blocks shift before they pad, GLIP's pad before they
shift, which differs wherever a side is not a multiple of the window; so the block is ours.

Shape letters: B batch, C channels, H W pixels, h w feature cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.swin_transformer import (
    PatchMerging,
    get_relative_position_index,
    window_partition,
)
from torch import Tensor, nn

from glip_adapt.core.structures import ImageBatch, Pyramid, SizeHW
from glip_adapt.trunks.glip.linear import Linear
from glip_adapt.trunks.glip.recompute import run_block

# Statistics of the public configs (configs/pretrain/*.yaml): channels in BGR order, range 0–255.
PIXEL_MEAN_BGR = (103.53, 116.28, 123.675)
PIXEL_STD_BGR = (57.375, 57.12, 58.395)

# Cells whose windows go through a Swin block together on a CPU; the widest layer of GLIP-T then takes 7 MB and stays in
# the cache.
CPU_WINDOWS = 4800


class ImageEncoder(nn.Module):
    """Backbone and FPN behind the pixel statistics.

    Padding is zero *after* normalisation and is not masked anywhere later, as in the public code.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: nn.Module, fpn: FeaturePyramid) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN_BGR).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD_BGR).view(3, 1, 1), persistent=False)

    def normalise(self, images: ImageBatch) -> Tensor:
        """Return (B, 3, H, W) float, BGR, zero mean and unit variance, exactly zero in the padding.

        The arithmetic is that of float32 whatever the network's type, and the result is converted: what the network
        sees then does not depend on its type, and float64 agrees with the public code to its own precision.
        """
        mean, std = self.pixel_mean.float(), self.pixel_std.float()
        pixels = ((images.pixels.flip(1).to(mean) - mean) / std).to(self.pixel_mean)
        for picture, (height, width) in zip(pixels, images.sizes_hw, strict=True):
            picture[:, height:] = 0
            picture[:, :, width:] = 0
        return pixels

    def forward(self, images: ImageBatch) -> Pyramid:
        """Return five feature maps of strides 8 … 128."""
        return Pyramid.from_levels(self.fpn(self.backbone(self.normalise(images))), images.sizes_hw)


class SwinBackbone(nn.Module):
    """Swin Transformer for pictures of any size; returns the last three stages, each with its own LayerNorm."""

    def __init__(
        self, *, width: int, depths: Sequence[int], heads: Sequence[int], window: int, drop_path: float = 0.0
    ) -> None:
        """Build the stages.

        Args:
            width: channels of the first stage, doubled by each following one.
            depths: blocks per stage.
            heads: attention heads per stage.
            window: side of an attention window in cells.
            drop_path: stochastic depth of the last block; grows linearly from zero.
        """
        super().__init__()
        widths = [width * 2**i for i in range(len(depths))]
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").split(list(depths))
        self.patch_embed = PatchEmbed(width)
        self.stages = nn.ModuleList(
            SwinStage(
                width=widths[i],
                input_width=widths[i - 1] if i else None,
                heads=heads[i],
                window=window,
                drop_path=rates[i].tolist(),
            )
            for i in range(len(depths))
        )
        self.output_norms = nn.ModuleList(nn.LayerNorm(w) for w in widths[1:])
        self.recompute = False
        self.output_widths = tuple(widths[1:])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return three maps (B, C, h, w) of strides 8, 16, 32 for normalised (B, 3, H, W) pixels."""
        x = self.stages[0](self.patch_embed(pixels), self.recompute)
        outputs = []
        for stage, norm in zip(list(self.stages)[1:], self.output_norms, strict=True):
            x = stage(x, self.recompute)
            outputs.append(norm(x).permute(0, 3, 1, 2))  # (B, h, w, C) → (B, C, h, w)
        return tuple(outputs)


class PatchEmbed(nn.Module):
    """Patches of 4 × 4 pixels, linearly embedded and normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, H/4, W/4, C)."""
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    """Optional patch merging, then blocks that alternate between plain and shifted windows."""

    def __init__(
        self, *, width: int, input_width: int | None, heads: int, window: int, drop_path: Sequence[float]
    ) -> None:
        super().__init__()
        self.downsample = PatchMerging(input_width, width) if input_width else nn.Identity()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(width=width, heads=heads, window=window, shift=(i % 2) * (window // 2), drop_path=rate)
            for i, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Return (B, h, w, C) at the stage's resolution; ``recompute`` as in ``run_block``."""
        x = self.downsample(x)
        mask = shifted_window_mask(_padded_hw((x.shape[1], x.shape[2]), self.window), self.window).to(x)
        for block in self.blocks:
            x = run_block(block, x, mask, recompute=recompute)
        return x


class SwinBlock(nn.Module):
    """Window attention and MLP with residuals; the map is padded to whole windows *before* it is shifted."""

    def __init__(self, *, width: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads=heads, window=window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shifted_mask: Tensor) -> Tensor:
        """Return (B, h, w, C); ``shifted_mask`` (windows, cells, cells) is added to scores of shifted windows."""
        if torch.compiler.is_compiling() and not self.training:  # sizes may be symbols then, and no key of a cache
            return self._forward_whole(x, shifted_mask)
        batch, h, w, channels = x.shape
        chunk = max(1, CPU_WINDOWS // self.window**2) if x.device.type == "cpu" else batch * h * w
        layout = window_layout((h, w), self.window, self.shift, batch, chunk, x.device)
        rows = x.reshape(-1, channels)
        # Stochastic depth leaves out whole pictures, so it is drawn before the cells are dealt out.
        kept = torch.cat([self.drop_path(x.new_ones(batch, 1)) for _ in range(2)], dim=1)[layout.source // (h * w)]
        counts = [len(slot) for slot in layout.slots]
        outputs = []
        for windows, real, mask, own, slot, (keep_attention, keep_mlp) in zip(
            rows[layout.cells].split(chunk),
            layout.real.split(chunk),
            (shifted_mask.repeat(batch, 1, 1).split(chunk) if self.shift else [None] * len(counts)),
            rows[layout.source].split(counts),
            layout.slots,
            (part.split(1, dim=1) for part in kept.split(counts)),
            strict=True,
        ):
            attended = self.attn(self.norm1(windows) * real, mask)
            row = torch.addcmul(own, keep_attention, attended.flatten(0, 1)[slot])
            outputs.append(torch.addcmul(row, keep_mlp, self.mlp(self.norm2(row))))
        return torch.cat(outputs)[layout.position].view_as(x)

    def _forward_whole(self, x: Tensor, shifted_mask: Tensor) -> Tensor:
        """Do the same in eval mode by arithmetic on indices alone; the padding goes through the attention too."""
        (batch, h, w, _), window = x.shape, self.window
        padded_h, padded_w = _padded_hw((h, w), window)
        row, column = _window_cells((padded_h, padded_w), window)
        row, column = _modulo(row + self.shift, padded_h), _modulo(column + self.shift, padded_w)
        real = ((row < h) & (column < w)).unsqueeze(-1).to(x)
        rows = x.flatten(1, 2)
        windows = self.norm1(rows)[:, row.clamp(max=h - 1) * w + column.clamp(max=w - 1)] * real
        attended = self.attn(windows.flatten(0, 1), shifted_mask.repeat(batch, 1, 1) if self.shift else None)
        cell = torch.arange(h * w)  # and where it stands among the cells of the windows
        row = _modulo(cell // w + padded_h - self.shift, padded_h)
        column = _modulo(_modulo(cell, w) + padded_w - self.shift, padded_w)
        place = (row // window * (padded_w // window) + column // window) * window**2
        place = place + row % window * window + column % window
        rows = rows + attended.reshape(batch, -1, rows.shape[-1])[:, place]
        return (rows + self.mlp(self.norm2(rows))).view_as(x)


class WindowAttention(nn.Module):
    """Attention among the cells of a window, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", get_relative_position_index(window, window), persistent=False)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Return (windows, cells, C); ``mask`` (windows, cells, cells) is added to the scores."""
        query, key, value = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (heads, cells, cells)
        scores = bias.unsqueeze(0) if mask is None else bias + mask.unsqueeze(1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=scores)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C)."""
        return self.fc2(F.gelu(self.fc1(x)))


@dataclass(frozen=True)
class WindowLayout:
    """Which cell sits where once B maps (h, w) are padded to whole windows, shifted and dealt out.

    Attributes:
        cells: (windows, cells) int64, row among B·h·w that a window's cell shows; 0 where it shows padding.
        real: (windows, cells, 1) float, 0 where a window's cell shows padding, else 1.
        source: (B·h·w,) int64, the rows that are shown, window by window.
        slots: for each chunk of windows, int64 positions of its shown rows among its cells.
        position: (B·h·w,) int64, where each row stands in ``source``.
    """

    cells: Tensor
    real: Tensor
    source: Tensor
    slots: tuple[Tensor, ...]
    position: Tensor


@lru_cache(maxsize=64)  # a handful of picture sizes is in use at a time
def window_layout(
    size_hw: SizeHW, window: int, shift: int, batch: int, chunk: int, device: torch.device
) -> WindowLayout:
    """Return the layout of ``batch`` maps whose windows go through a block ``chunk`` at a time.

    The padding comes before the shift.
    """
    h, w = size_hw
    padded_h, padded_w = _padded_hw(size_hw, window)
    cell = torch.arange(1, batch * h * w + 1, device="cpu").view(batch, h, w)
    cell = F.pad(cell, (0, padded_w - w, 0, padded_h - h)) - 1  # -1 is padding
    cell = window_partition(cell.roll((-shift, -shift), dims=(1, 2)).unsqueeze(-1), (window, window)).flatten(1)
    real = cell >= 0
    source = cell[real]
    slots = tuple(part.flatten().nonzero().flatten().to(device) for part in real.split(chunk))
    return WindowLayout(
        cells=cell.clamp(min=0).to(device),
        real=real.unsqueeze(-1).float().to(device),
        source=source.to(device),
        slots=slots,
        position=source.argsort().to(device),
    )


def shifted_window_mask(padded_hw: SizeHW, window: int) -> Tensor:
    """Return (windows, cells, cells) additive scores: -100 between cells that were not neighbours before the shift."""
    h, w = padded_hw
    shift = window // 2

    def region(length: int) -> Tensor:
        position = torch.arange(length)
        return (position >= length - window).long() + (position >= length - shift).long()

    row, column = _window_cells(padded_hw, window)
    cells = 3 * region(h)[row] + region(w)[column]
    return (cells[:, None] != cells[:, :, None]) * -100.0


def _window_cells(padded_hw: SizeHW, window: int) -> tuple[Tensor, Tensor]:
    """Return row and column of each cell of each window, (windows, cells) int64 each."""
    across = padded_hw[1] // window
    place, cell = torch.arange(padded_hw[0] // window * across).unsqueeze(1), torch.arange(window**2)
    return place // across * window + cell // window, _modulo(place, across) * window + cell % window


def _modulo(x: Tensor, divisor: int) -> Tensor:
    """Return ``x % divisor``, in operations that the exporter to ONNX knows for a divisor that is a symbol."""
    return x - x // divisor * divisor


def _padded_hw(size_hw: SizeHW, window: int) -> SizeHW:
    """Return the smallest whole number of windows that covers ``size_hw``."""
    return -(-size_hw[0] // window) * window, -(-size_hw[1] // window) * window


class TimmBackbone(nn.Module):
    """Any timm backbone that yields feature maps of strides 8, 16 and 32."""

    def __init__(self, name: str) -> None:
        """Create ``name`` with random weights.

        Raises:
            ValueError: if the model has no feature maps of strides 8, 16 and 32.
        """
        super().__init__()
        self.body = timm.create_model(name, pretrained=False, features_only=True)
        info: Any = self.body.feature_info
        strides = info.reduction()
        missing = sorted({8, 16, 32} - set(strides))
        if missing:
            raise ValueError(f"timm model {name!r} has feature strides {strides}, but 8, 16 and 32 are needed.")
        self.indices = [strides.index(stride) for stride in (8, 16, 32)]
        self.output_widths = tuple(info.channels()[i] for i in self.indices)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return three maps (B, C, h, w) of strides 8, 16, 32 for normalised (B, 3, H, W) pixels."""
        maps = self.body(pixels)
        return tuple(maps[i] for i in self.indices)


class FeaturePyramid(nn.Module):
    """FPN with nearest upsampling; two coarser levels are convolved from the coarsest output (P6) and relu(P6).

    While training, DropBlock cuts patches out of all merged maps but the coarsest, as in the public code.
    """

    def __init__(self, input_widths: Sequence[int], width: int, *, drop_block: float = 0.0) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(w, width, kernel_size=1) for w in input_widths)
        self.output = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in input_widths)
        self.p6 = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1)
        self.drop_block = DropBlock(drop_block)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return five maps (B, C, h, w) of strides 8 … 128 for three of strides 8, 16, 32."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            merged[fine] = merged[fine] + F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:], mode="nearest")
        dropped = [*(self.drop_block(x) for x in merged[:-1]), merged[-1]]
        levels = [output(x) for output, x in zip(self.output, dropped, strict=True)]
        p6 = self.p6(levels[-1])
        return (*levels, p6, self.p7(F.relu(p6)))


class DropBlock(nn.Module):
    """Zeroes 3 × 3 blocks while training and scales the rest up (arXiv 1810.12890).

    The same blocks in all channels; rate and scale as in maskrcnn_benchmark/layers/dropblock.py.
    """

    def __init__(self, rate: float, size: int = 3) -> None:
        super().__init__()
        self.rate, self.size = rate, size

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w)."""
        if not self.training or self.rate == 0:
            return x
        centres = (torch.rand(x.shape[0], 1, *x.shape[2:], device=x.device) < self.rate / self.size**2).to(x.dtype)
        kept = 1 - F.max_pool2d(centres, self.size, stride=1, padding=self.size // 2)
        return x * kept * (kept.numel() / kept.sum())
