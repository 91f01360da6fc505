import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath

from glip_adapt.core.structures import ImageBatch
from glip_adapt.trunks.glip import image
from glip_adapt.trunks.glip.image import (
    DropBlock,
    FeaturePyramid,
    ImageEncoder,
    SwinBackbone,
    SwinBlock,
    SwinStage,
    TimmBackbone,
    shifted_window_mask,
)

WINDOW = 4


def swin(**changes):
    sizes = {"width": 8, "depths": (1, 2, 1, 1), "heads": (1, 2, 2, 4), "window": WINDOW, "drop_path": 0.0}
    return SwinBackbone(**sizes | changes)


def encoder(backbone):
    torch.manual_seed(0)
    return ImageEncoder(backbone, FeaturePyramid(backbone.output_widths, 16)).eval()


def pictures(*sizes_hw, padded_hw):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(len(sizes_hw), 3, *padded_hw, dtype=torch.uint8)
    for slot, (h, w) in zip(pixels, sizes_hw, strict=True):
        slot[:, :h, :w] = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator)
    return ImageBatch(pixels, sizes_hw)


@pytest.mark.parametrize("backbone", [swin(), TimmBackbone("test_convnext")], ids=["swin", "timm"])
def test_a_batch_of_one_size_equals_single_pictures(backbone):
    network, batch = encoder(backbone), pictures((64, 90), (64, 90), (64, 90), padded_hw=(64, 96))
    with torch.no_grad():
        together = network(batch)
        alone = [network(ImageBatch(batch.pixels[i : i + 1], batch.sizes_hw[i : i + 1])) for i in range(3)]
    assert together.sizes_hw == batch.sizes_hw
    for level, singles in zip(together.levels, zip(*(p.levels for p in alone), strict=True), strict=True):
        torch.testing.assert_close(level, torch.cat(singles), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 70, 100_000])
def test_going_through_a_layer_in_chunks_changes_nothing(chunk, monkeypatch):
    network, batch = encoder(swin()), pictures((64, 90), (50, 96), padded_hw=(64, 96))
    with torch.no_grad():
        expected = network(batch).cells
        monkeypatch.setattr(image, "CPU_WINDOWS", chunk)
        torch.testing.assert_close(network(batch).cells, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", [swin(), TimmBackbone("test_resnet")], ids=["swin", "timm"])
def test_the_levels_have_strides_8_to_128(backbone):
    network = encoder(backbone)
    with torch.no_grad():
        levels = network(pictures((96, 160), padded_hw=(96, 160))).levels
    assert [tuple(level.shape) for level in levels] == [
        (1, 16, 12, 20), (1, 16, 6, 10), (1, 16, 3, 5), (1, 16, 2, 3), (1, 16, 1, 2)
    ]  # fmt: skip


def test_pixels_are_normalised_in_bgr_order():
    rgb = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    pixels = encoder(swin()).normalise(ImageBatch(rgb, ((32, 32),)))
    expected = torch.tensor([(30 - 103.53) / 57.375, (20 - 116.28) / 57.12, (10 - 123.675) / 58.395])
    torch.testing.assert_close(pixels[0, :, 5, 7], expected)
    assert pixels.dtype == torch.float32


def test_a_float64_network_sees_the_pixels_of_float32():
    rgb = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    images = ImageBatch(rgb, ((32, 32), (20, 30)))
    single, double = (encoder(swin()).to(dtype).normalise(images) for dtype in (torch.float32, torch.float64))
    assert double.dtype == torch.float64
    assert torch.equal(double, single.double())


def test_padding_is_zero_after_normalisation_whatever_it_held():
    batch = ImageBatch(torch.full((2, 3, 32, 64), 200, dtype=torch.uint8), ((20, 64), (32, 40)))
    pixels = encoder(swin()).normalise(batch)
    assert (pixels[0, :, 20:] == 0).all()
    assert (pixels[1, :, :, 40:] == 0).all()
    assert (pixels[0, :, :20] != 0).all()
    assert (pixels[1, :, :, :40] != 0).all()
    assert (batch.pixels == 200).all()  # what was received stays


def test_statistics_are_not_saved_with_the_weights():
    assert not [key for key in encoder(swin()).state_dict() if "pixel" in key]


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


def test_hand_computed_mask_of_shifted_windows():
    # Rows and columns 0 1 | 2 | 3 are three regions once windows of 2 are shifted by 1.
    mask = shifted_window_mask((4, 4), 2)
    assert mask.shape == (4, 4, 4)
    assert (mask[0] == 0).all()
    split_columns = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]) * -100.0
    split_rows = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]) * -100.0
    assert torch.equal(mask[1], split_columns)
    assert torch.equal(mask[2], split_rows)
    assert torch.equal(mask[3], (1 - torch.eye(4)) * -100.0)


@pytest.mark.parametrize("sides", [((8, 12), (4, 6), (2, 3)), ((5, 7), (3, 4), (2, 2)), ((1, 9), (1, 5), (1, 3))])
def test_the_pyramid_keeps_three_shapes_and_halves_the_last_twice(sides):
    maps = [torch.randn(2, c, *side) for c, side in zip((3, 4, 5), sides, strict=True)]
    levels = FeaturePyramid((3, 4, 5), 6)(maps)
    h, w = sides[-1]
    p6 = (h + 1) // 2, (w + 1) // 2
    p7 = (p6[0] + 1) // 2, (p6[1] + 1) // 2
    assert [tuple(level.shape) for level in levels] == [(2, 6, *side) for side in (*sides, p6, p7)]


def test_hand_computed_pyramid():
    fpn = FeaturePyramid((1, 1, 1), 1)
    for conv in [*fpn.lateral, *fpn.output, fpn.p6, fpn.p7]:
        torch.nn.init.dirac_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    with torch.no_grad():
        fpn.output[2].bias.fill_(-2.0)
        fpn.p7.bias.fill_(0.5)
    coarse = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    middle, fine = torch.zeros(3, 4), torch.ones(5, 8)
    p3, p4, p5, p6, p7 = (level.detach()[0, 0] for level in fpn([x[None, None] for x in (fine, middle, coarse)]))
    assert p4.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]  # nearest: row ⌊i · 2 / 3⌋
    assert p3.tolist() == [[1 + v for v in row] for row in p4[[0, 0, 1, 1, 2]].repeat_interleave(2, 1).tolist()]
    assert p5.tolist() == [[-1, 0], [1, 2]]  # the finer levels take the map before this convolution
    assert p6.tolist() == [[-1]]  # of P5, not of the merged map
    assert p7.tolist() == [[0.5]]  # of relu(P6)


@given(rate=st.floats(0.05, 0.5), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_drop_block_keeps_the_expected_share_and_the_mean(rate, seed):
    torch.manual_seed(seed)
    x = torch.ones(2, 3, 150, 150)
    dropped = DropBlock(rate).train()(x)
    kept = (dropped != 0).float()
    assert kept.mean().item() == pytest.approx((1 - rate / 9) ** 9, abs=0.02)  # none of nine centres nearby
    assert dropped.mean().item() == pytest.approx(1, rel=1e-4)
    assert torch.equal(kept[:, :1].expand_as(kept), kept)  # the same blocks in all channels
    assert not torch.equal(kept[0], kept[1])  # other blocks in the next picture


def test_drop_block_cuts_whole_blocks():
    torch.manual_seed(0)
    cut = DropBlock(0.05).train()(torch.ones(1, 1, 60, 60)) == 0
    inside = cut[..., 1:-1, 1:-1].float()
    # Every zero away from the border belongs to a 3 × 3 block of zeros: opening the set changes nothing.
    eroded = -F.max_pool2d(-cut.float(), 3, stride=1, padding=1)
    opened = F.max_pool2d(eroded, 3, stride=1, padding=1)[..., 1:-1, 1:-1]
    assert inside.sum() > 0
    assert torch.equal(opened[..., 1:-1, 1:-1], inside[..., 1:-1, 1:-1])


def test_drop_block_acts_only_while_training_and_above_rate_zero():
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(DropBlock(0.5).eval()(x), x)
    assert torch.equal(DropBlock(0.0).train()(x), x)
    assert not torch.equal(DropBlock(0.5).train()(x), x)


def test_the_pyramid_drops_blocks_of_all_maps_but_the_coarsest():
    torch.manual_seed(0)
    fpn = FeaturePyramid((3, 3, 3), 6, drop_block=0.5)
    maps = [torch.randn(2, 3, side, side) for side in (16, 8, 4)]
    with torch.no_grad():
        steady, shaken = fpn.eval()(maps), fpn.train()(maps)
    assert [torch.equal(a, b) for a, b in zip(steady, shaken, strict=True)] == [False, False, True, True, True]


def test_a_timm_model_without_the_strides_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'test_vit' has feature strides \[16, 16, 16\], but 8, 16 and 32 are needed"):
        TimmBackbone("test_vit")


def test_an_unknown_timm_model_is_refused_by_name():
    with pytest.raises(RuntimeError, match="no_such_net"):
        TimmBackbone("no_such_net")


# Windows, chunk by chunk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 100_000])
def test_chunks_change_no_gradient(chunk, monkeypatch):
    def gradients():
        torch.manual_seed(0)
        stage = SwinStage(width=8, input_width=None, heads=2, window=WINDOW, drop_path=[0.0, 0.0]).double()
        x = torch.randn(2, 7, 9, 8, dtype=torch.float64, requires_grad=True)
        stage(x).square().sum().backward()
        return [x.grad, *(p.grad for p in stage.parameters())]

    expected = gradients()
    monkeypatch.setattr(image, "CPU_WINDOWS", chunk)
    torch.testing.assert_close(gradients(), expected)


def test_stochastic_depth_leaves_out_whole_pictures(monkeypatch):
    monkeypatch.setattr(image, "CPU_WINDOWS", 1)  # so that every window is a chunk of its own
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
