"""Swin Transformer (arXiv 2103.14030), as in maskrcnn_benchmark/modeling/backbone/swint.py of the public GLIP code.

GLIP pads a map to whole windows before it shifts them. The blocks of timm shift first, which differs where a side is
not a multiple of the window, so they are not used.

Shape letters: B batch, C channels, H W pixels, h w feature cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.swin_transformer import PatchMerging, get_relative_position_index
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glip_adapt.trunks.linear import Linear
from glip_adapt.trunks.windows import padded_hw, places, shifted_window_mask, shown_cells, window_layout

CPU_CELLS = 4800  # per chunk on a CPU: the widest layer of GLIP-T then takes 7 MB, and stays in the cache


class SwinBackbone(nn.Module):
    """Swin Transformer for images of any size; returns its last stages, each with its own LayerNorm."""

    def __init__(
        self,
        *,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        drop_path: float = 0.0,
        outputs: int = 3,
    ) -> None:
        """Build the stages with random weights; the arguments are the fields of ``SwinConfig``."""
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
        self.output_widths = tuple(widths[-outputs:])
        self.output_norms = nn.ModuleList(nn.LayerNorm(w) for w in self.output_widths)
        self.recompute = False

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return maps (B, C, h, w), of strides 8, 16, 32 for three outputs, for normalised (B, 3, H, W) pixels."""
        x, maps = self.patch_embed(pixels), []
        for stage in self.stages:
            x = stage(x, self.recompute)
            maps.append(x)
        last = zip(maps[-len(self.output_norms) :], self.output_norms, strict=True)
        return tuple(norm(x).permute(0, 3, 1, 2) for x, norm in last)  # (B, h, w, C) → (B, C, h, w)


class PatchEmbed(nn.Module):
    """Embed patches of 4 × 4 pixels linearly, and normalise them."""

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
        """Return (B, h, w, C) at the stage's resolution; ``recompute`` keeps no activations inside of blocks."""
        x = self.downsample(x)
        mask = shifted_window_mask(padded_hw((x.shape[1], x.shape[2]), self.window), self.window, x.device).to(x)
        for block in self.blocks:
            x = checkpoint(block, x, mask, use_reentrant=False) if recompute else block(x, mask)
        return x


class SwinBlock(nn.Module):
    """Window attention and MLP with residuals."""

    def __init__(self, *, width: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads=heads, window=window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shifted_mask: Tensor) -> Tensor:
        """Return (B, h, w, C) for (B, h, w, C).

        ``shifted_mask`` (windows, cells, cells) is added to the attention scores if the windows are shifted.
        """
        mask = shifted_mask.repeat(x.shape[0], 1, 1) if self.shift else None
        if torch.compiler.is_compiling() and not self.training:  # sizes may be symbols then, and no key of a cache
            return self._forward_traced(x, mask)
        return self._forward_in_chunks(x, mask)

    def _forward_traced(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the block in eval mode, for any size in one graph; the padding goes through the attention too."""
        size_hw = (x.shape[1], x.shape[2])
        cells, real = shown_cells(size_hw, self.window, self.shift, x.device)
        rows = x.flatten(1, 2)  # (B, h, w, C) → (B, h·w, C)
        windows = self.norm1(rows)[:, cells] * real.unsqueeze(-1).to(x)
        attended = self.attn(windows.flatten(0, 1), mask).reshape(x.shape[0], -1, x.shape[3])
        rows = rows + attended[:, places(size_hw, self.window, self.shift, x.device)]
        return (rows + self.mlp(self.norm2(rows))).view_as(x)

    def _forward_in_chunks(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the block for some windows at a time on a CPU, for all at once elsewhere."""
        batch, h, w, channels = x.shape
        chunk = max(1, CPU_CELLS // self.window**2) if x.device.type == "cpu" else batch * h * w
        layout = window_layout((h, w), self.window, self.shift, batch, chunk, x.device)
        counts = [len(slot) for slot in layout.slots]
        rows = x.reshape(-1, channels)
        # Stochastic depth leaves out whole images, so it is drawn before their cells are spread over the windows.
        kept = torch.cat([self.drop_path(x.new_ones(batch, 1)) for _ in range(2)], dim=1)[layout.source // (h * w)]
        outputs = []
        for windows, real, scores, own, slot, (keep_attention, keep_mlp) in zip(
            rows[layout.cells].split(chunk),
            layout.real.split(chunk),
            [None] * len(counts) if mask is None else mask.split(chunk),
            rows[layout.source].split(counts),
            layout.slots,
            (part.split(1, dim=1) for part in kept.split(counts)),
            strict=True,
        ):
            attended = self.attn(self.norm1(windows) * real, scores).flatten(0, 1)[slot]
            row = torch.addcmul(own, keep_attention, attended)
            outputs.append(torch.addcmul(row, keep_mlp, self.mlp(self.norm2(row))))
        return torch.cat(outputs)[layout.position].view_as(x)


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
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C)."""
        return self.fc2(F.gelu(self.fc1(x)))
