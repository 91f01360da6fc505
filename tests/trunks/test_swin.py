import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath

from glip_adapt.trunks import swin as swin_file
from glip_adapt.trunks.swin import SwinBackbone, SwinBlock, SwinStage
from glip_adapt.trunks.windows import shifted_window_mask

WINDOW = 4


def swin(**changes):
    sizes = {"width": 8, "depths": (1, 2, 1, 1), "heads": (1, 2, 2, 4), "window": WINDOW, "drop_path": 0.0}
    return SwinBackbone(**sizes | changes)


@given(size_hw=st.tuples(st.integers(1, 11), st.integers(1, 11)), shift=st.sampled_from([0, WINDOW // 2]))
@settings(max_examples=12, deadline=None)
def test_a_swin_block_of_any_size_equals_attention_cell_by_cell(size_hw, shift):
    torch.manual_seed(sum(size_hw))
    block = SwinBlock(width=6, heads=2, window=WINDOW, shift=shift, drop_path=0.0).double().eval()
    for parameter in block.parameters():  # norms and biases start alike, which would hide a mix-up
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, *size_hw, 6, dtype=torch.float64)
    padded_hw = [-(-side // WINDOW) * WINDOW for side in size_hw]
    with torch.no_grad():
        found = block(x, shifted_window_mask(padded_hw, WINDOW).to(x))
        expected = x + attention_cell_by_cell(block, block.norm1(x)[0], shift)
        expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(found, expected)


def attention_cell_by_cell(block, x, shift):
    """Windowed attention of one (h, w, C) map: pad with zeros to whole windows first, then shift the windows."""
    h, w, channels = x.shape
    padded_h, padded_w = -(-h // WINDOW) * WINDOW, -(-w // WINDOW) * WINDOW
    x = F.pad(x, (0, 0, 0, padded_w - w, 0, padded_h - h))
    heads = block.attn.heads
    query, key, value = block.attn.qkv(x).view(padded_h, padded_w, 3, heads, channels // heads).unbind(2)
    scale = (channels // heads) ** -0.5
    output = torch.zeros(h, w, channels, dtype=x.dtype)
    for row in range(h):
        for column in range(w):
            here, scores, values = place(row, column, padded_h, padded_w, shift), [], []
            for other_row in range(padded_h):
                for other_column in range(padded_w):
                    there = place(other_row, other_column, padded_h, padded_w, shift)
                    if here["window"] != there["window"] or here["wrapped"] != there["wrapped"]:
                        continue
                    dy, dx = (a - b for a, b in zip(here["cell"], there["cell"], strict=True))
                    entry = (dy + WINDOW - 1) * (2 * WINDOW - 1) + dx + WINDOW - 1
                    bias = block.attn.relative_position_bias_table[entry]
                    scores.append((query[row, column] * key[other_row, other_column]).sum(-1) * scale + bias)
                    values.append(value[other_row, other_column])
            weights = torch.stack(scores).softmax(0)  # (cells, heads)
            output[row, column] = (weights[..., None] * torch.stack(values)).sum(0).flatten()
    return block.attn.proj(output)


def place(row, column, padded_h, padded_w, shift):
    """Where a cell ends up after the shift, and whether it came from beyond the seam."""
    moved = (row - shift) % padded_h, (column - shift) % padded_w
    return {
        "window": (moved[0] // WINDOW, moved[1] // WINDOW),
        "cell": (moved[0] % WINDOW, moved[1] % WINDOW),
        "wrapped": (row < shift, column < shift),
    }


def test_every_second_block_of_a_stage_is_shifted():
    stage = SwinStage(width=8, input_width=None, heads=2, window=7, drop_path=[0.0] * 4)
    assert [block.shift for block in stage.blocks] == [0, 3, 0, 3]


def test_stochastic_depth_grows_from_zero_and_acts_only_while_training():
    backbone = swin(drop_path=0.4)
    rates = [layer.drop_prob for layer in backbone.modules() if isinstance(layer, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    pixels = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(pixels)[2], backbone(pixels)[2])
        assert not torch.equal(backbone.train()(pixels)[2], backbone(pixels)[2])


@pytest.mark.parametrize("chunk", [1, 70, 100_000])
def test_chunks_change_no_output(chunk, monkeypatch):
    torch.manual_seed(0)
    backbone, pixels = swin().eval(), torch.randn(2, 3, 64, 92)
    with torch.no_grad():
        expected = backbone(pixels)
        monkeypatch.setattr(swin_file, "CPU_CELLS", chunk)
        for found, wanted in zip(backbone(pixels), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 100_000])
def test_chunks_change_no_gradient(chunk, monkeypatch):
    def gradients():
        torch.manual_seed(0)
        stage = SwinStage(width=8, input_width=None, heads=2, window=WINDOW, drop_path=[0.0, 0.0]).double()
        x = torch.randn(2, 7, 9, 8, dtype=torch.float64, requires_grad=True)
        stage(x).square().sum().backward()
        return [x.grad, *(p.grad for p in stage.parameters())]

    expected = gradients()
    monkeypatch.setattr(swin_file, "CPU_CELLS", chunk)
    torch.testing.assert_close(gradients(), expected)


def test_stochastic_depth_leaves_out_whole_images(monkeypatch):
    monkeypatch.setattr(swin_file, "CPU_CELLS", 1)  # so that every window is a chunk of its own
    torch.manual_seed(0)
    block = SwinBlock(width=8, heads=2, window=WINDOW, shift=0, drop_path=0.5).train()
    x = torch.randn(16, 8, 8, 8)
    with torch.no_grad():
        changed = (block(x, shifted_window_mask((8, 8), WINDOW)) != x).any(-1).flatten(1)
    assert (changed.all(1) | ~changed.any(1)).all()  # for both residuals to be dropped, or one to stay: all cells alike
    assert 0 < changed.any(1).sum() < 16


def test_blocks_computed_again_give_the_same_gradient_with_stochastic_depth():
    def gradients(recompute):
        torch.manual_seed(0)
        stage = SwinStage(width=8, input_width=None, heads=2, window=WINDOW, drop_path=[0.3, 0.3]).double().train()
        x = torch.randn(4, 7, 9, 8, dtype=torch.float64, requires_grad=True)
        stage(x, recompute).square().sum().backward()
        return [x.grad, *(p.grad for p in stage.parameters())]

    torch.testing.assert_close(gradients(True), gradients(False))
