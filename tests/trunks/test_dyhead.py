from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import deform_conv2d

from glip_adapt.core.structures import Pyramid
from glip_adapt.trunks.glip import dyhead
from glip_adapt.trunks.glip.dyhead import (
    DeformableConvNorm,
    DyHeadBlock,
    DynamicReLU,
    LargerLine,
    flat_prefix,
    larger_line,
)


@given(
    batch=st.integers(1, 2), h=st.integers(1, 5), w=st.integers(1, 5), channels=st.integers(1, 4), pad=st.integers(0, 3)
)
@settings(max_examples=30, deadline=None)
def test_the_flat_prefix_is_the_start_of_each_pictures_own_buffer(batch, h, w, channels, pad):
    x = torch.arange(batch * channels * (h + pad) * (w + pad)).view(batch, channels, h + pad, w + pad)
    prefix = flat_prefix(x, (h, w))
    assert prefix.shape == (batch, channels, h, w)
    for picture, start in zip(prefix, x, strict=True):
        assert picture.flatten().tolist() == list(range(start[0, 0, 0], start[0, 0, 0] + channels * h * w))
    if pad == 0:
        assert torch.equal(prefix, x)


def test_hand_computed_flat_prefix():
    x = torch.arange(12).view(1, 2, 2, 3)
    assert flat_prefix(x, (1, 2)).tolist() == [[[[0, 1]], [[2, 3]]]]
    assert flat_prefix(x, (2, 2)).tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]


@pytest.mark.parametrize(("stride", "expected_hw"), [(1, (5, 8)), (2, (3, 4))])
def test_a_layer_reads_offsets_of_a_larger_map_by_their_flat_prefix(stride, expected_hw):
    torch.manual_seed(0)
    layer = DeformableConvNorm(16, 4, stride=stride)
    x, offset, mask = torch.randn(2, 16, 5, 8), torch.randn(2, 18, 9, 11), torch.rand(2, 9, 9, 11)
    h, w = expected_hw
    own = [t.reshape(2, -1)[:, : c * h * w].reshape(2, c, h, w) for t, c in ((offset, 18), (mask, 9))]
    conv = deform_conv2d(x, own[0], layer.conv.weight, layer.conv.bias, stride=stride, padding=1, mask=own[1])
    (found,) = layer(x.flatten(2).transpose(1, 2), [(5, 8)], [offset], [mask])
    torch.testing.assert_close(found, layer.norm(conv), rtol=1e-4, atol=1e-4)


def block_and_levels():
    torch.manual_seed(0)
    block = DyHeadBlock(16)
    torch.nn.init.normal_(block.offset.weight, std=0.1)
    torch.nn.init.normal_(block.scale_attention.weight)
    return block, tuple(torch.randn(2, 16, 2 * side, 3 * side) for side in (4, 2, 1))


def run(block, levels):
    """The block, called with maps and answering with maps."""
    pyramid = Pyramid.from_levels(levels, ())
    return replace(pyramid, cells=block(pyramid.cells, pyramid.level_shapes_hw)).levels


def test_a_block_keeps_every_shape():
    block, levels = block_and_levels()
    assert [level.shape for level in run(block, levels)] == [level.shape for level in levels]
    assert run(block, levels[:1])[0].shape == levels[0].shape  # a level without neighbours


def test_a_block_equals_its_description_written_out():
    block, levels = block_and_levels()

    def conv(layer, x, offset, mask, stride):
        h, w = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
        offset, mask = (t.reshape(2, -1)[:, : c * h * w].reshape(2, c, h, w) for t, c in ((offset, 18), (mask, 9)))
        return layer.norm(deform_conv2d(x, offset, layer.conv.weight, layer.conv.bias, stride, 1, mask=mask))

    with torch.no_grad():
        for i, (level, found) in enumerate(zip(levels, run(block, levels), strict=True)):
            raw = block.offset(level)
            offset, mask = raw[:, :18], 1 / (1 + (-raw[:, 18:]).exp())
            branches = [conv(block.same, level, offset, mask, 1)]
            if i > 0:
                branches.append(conv(block.finer, levels[i - 1], offset, mask, 2))
            if i < 2:
                coarse = conv(block.coarser, levels[i + 1], offset, mask, 1)
                branches.append(F.interpolate(coarse, level.shape[2:], mode="bilinear", align_corners=True))
            total = torch.zeros_like(level)
            for x in branches:
                attention = block.scale_attention(x.mean((2, 3), keepdim=True)).clamp(min=0)
                total += x * ((attention + 3) / 6).clamp(0, 1)
            torch.testing.assert_close(found, block.activation(total / len(branches)), rtol=1e-4, atol=1e-4)


def test_resizing_the_offsets_of_the_coarser_level_would_change_the_outputs(monkeypatch):
    block, levels = block_and_levels()

    def resized(x, size_hw):
        return x if x.shape[-2:] == size_hw else F.interpolate(x, size=size_hw, mode="bilinear")

    with torch.no_grad():
        ours = run(block, levels)
        monkeypatch.setattr(dyhead, "flat_prefix", resized)
        theirs = run(block, levels)
    changes = [((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True)]
    assert min(changes[:2]) > 0.02
    assert changes[2] == 0  # the coarsest level has no coarser one, and the finer one is sampled at its own size


def test_dynamic_relu_without_excitement_is_a_relu():
    activation = DynamicReLU(8)
    for parameter in activation.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(activation(x), x.relu())


def test_dynamic_relu_is_the_larger_of_two_lines():
    activation = DynamicReLU(4)
    for parameter in activation.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():  # hard sigmoid (b / 6 + 1 / 2) - 1 / 2 = b / 6
        activation.excite.bias.copy_(torch.tensor([0.6, 1.2, -0.6, 0.3]).repeat_interleave(4))
    x = torch.tensor([-3.0, -0.1, 0.0, 2.0]).view(1, 1, 2, 2).expand(1, 4, 2, 2)
    # a1 = 0.1 · 2 + 1, b1 = 0.2, a2 = -0.1 · 2, b2 = 0.05
    expected = torch.maximum(1.2 * x + 0.2, -0.2 * x + 0.05)
    torch.testing.assert_close(activation(x), expected)


def test_dynamic_relu_looks_at_each_picture_alone():
    torch.manual_seed(0)
    activation, x = DynamicReLU(8), torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(activation(x)[1:], activation(x[1:]))


def lines_of(batch, channels, shape_hw, layout=torch.contiguous_format):
    x = torch.randn(batch, channels, *shape_hw, dtype=torch.float64).to(memory_format=layout)
    x[:, :, 0, 0] = 0.0  # there both lines below are equal
    coefficients = torch.randn(4, batch, channels, 1, 1, dtype=torch.float64)
    coefficients[3] = coefficients[1]
    return [tensor.requires_grad_() for tensor in (x, *coefficients)]


@pytest.mark.parametrize("shape_hw", [(1, 1), (5, 7), (20, 30)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_larger_line_has_the_gradients_of_the_maximum_to_the_last_bit(shape_hw, layout):
    torch.manual_seed(0)
    inputs = lines_of(2, 3, shape_hw, layout)
    weights = torch.randn(2, 3, *shape_hw, dtype=torch.float64).to(memory_format=layout)
    plain, ours = larger_line(*inputs), LargerLine.apply(*inputs)
    assert torch.equal(plain, ours)
    expected, found = (torch.autograd.grad((y * weights).sum(), inputs) for y in (plain, ours))
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_neither_line_is_kept_for_the_backward_pass():
    torch.manual_seed(0)
    inputs, kept = lines_of(1, 3, (8, 8)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        LargerLine.apply(*inputs)
    assert sorted(kept) == [3, 3, 3, 3, 3 * 64]
