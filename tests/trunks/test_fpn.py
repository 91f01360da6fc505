import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.structures import ImageBatch
from glip_adapt.trunks.backbones import TimmBackbone
from glip_adapt.trunks.glip.fpn import DropBlock, FeaturePyramid, ImageEncoder
from glip_adapt.trunks.swin import SwinBackbone


def swin():
    return SwinBackbone(width=8, depths=(1, 2, 1, 1), heads=(1, 2, 2, 4), window=4)


def encoder(backbone):
    torch.manual_seed(0)
    return ImageEncoder(backbone, FeaturePyramid(backbone.output_widths, 16)).eval()


def images(*sizes_hw, padded_hw):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(len(sizes_hw), 3, *padded_hw, dtype=torch.uint8)
    for slot, (h, w) in zip(pixels, sizes_hw, strict=True):
        slot[:, :h, :w] = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator)
    return ImageBatch(pixels, sizes_hw)


@pytest.mark.parametrize("backbone", [swin(), TimmBackbone("test_convnext")], ids=["swin", "timm"])
def test_a_batch_of_one_size_equals_single_images(backbone):
    network, batch = encoder(backbone), images((64, 90), (64, 90), (64, 90), padded_hw=(64, 96))
    with torch.no_grad():
        together = network(batch)
        alone = [network(ImageBatch(batch.pixels[i : i + 1], batch.image_sizes_hw[i : i + 1])) for i in range(3)]
    assert together.image_sizes_hw == batch.image_sizes_hw
    for level, singles in zip(together.levels, zip(*(p.levels for p in alone), strict=True), strict=True):
        torch.testing.assert_close(level, torch.cat(singles), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", [swin(), TimmBackbone("test_resnet")], ids=["swin", "timm"])
def test_the_levels_have_strides_8_to_128(backbone):
    network = encoder(backbone)
    with torch.no_grad():
        levels = network(images((96, 160), padded_hw=(96, 160))).levels
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
    x = torch.ones(2, 3, 300, 300)
    dropped = DropBlock(rate).train()(x)
    kept = (dropped != 0).float()
    assert kept.mean().item() == pytest.approx((1 - rate / 9) ** 9, abs=0.02)  # none of nine centres nearby
    assert dropped.mean().item() == pytest.approx(1, rel=1e-4)
    assert torch.equal(kept[:, :1].expand_as(kept), kept)  # the same blocks in all channels
    assert not torch.equal(kept[0], kept[1])  # other blocks in the next image


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
