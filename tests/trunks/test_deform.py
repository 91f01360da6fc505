import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import deform_conv2d

from glip_adapt.trunks.glip import deform
from glip_adapt.trunks.glip.deform import deformable_conv

SIDES = st.tuples(st.integers(1, 8), st.integers(1, 8))


def convolve(maps, offsets, masks, weight, bias, stride):
    """Ours, called with maps (B, C, H, W)."""
    cells = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    shapes_hw = [tuple(x.shape[2:]) for x in maps]
    return deformable_conv(cells, shapes_hw, offsets, masks, weight, bias, stride=stride)


def reference(maps, offsets, masks, weight, bias, stride):
    """Torchvision's operator, map by map."""
    return [
        deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=mask)
        for x, offset, mask in zip(maps, offsets, masks, strict=True)
    ]


def random_inputs(batch, widths, sides, stride, seed, dtype):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    in_width, out_width = widths
    outputs = [tuple(-(-side // stride) for side in size_hw) for size_hw in sides]
    return (
        [draw(batch, in_width, *size_hw) for size_hw in sides],
        [draw(batch, 18, *size_hw, scale=3.0) for size_hw in outputs],  # leaves maps of at most eight on every side
        [draw(batch, 9, *size_hw) for size_hw in outputs],
        draw(out_width, in_width, 3, 3),
        draw(out_width),
    )


def flat(values):
    return [x for value in values for x in (value if isinstance(value, list) else [value])]


@given(
    batch=st.integers(1, 2),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    sides=st.lists(SIDES, min_size=1, max_size=3),
    stride=st.sampled_from([1, 2]),
    chunk=st.sampled_from([1, 7, 960]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_several_maps_at_once_equal_the_kernel_of_torchvision_in_values_and_gradients(
    dtype, tolerance, batch, widths, sides, stride, chunk, seed
):
    inputs = random_inputs(batch, widths, sides, stride, seed, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deform, "CHUNK", chunk)
        ours, theirs = convolve(*inputs, stride), reference(*inputs, stride)
        pull = [torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(dtype) for x in theirs]
        close = {"rtol": tolerance, "atol": 10 * tolerance}
        torch.testing.assert_close(list(ours), theirs, **close)
        found = torch.autograd.grad(ours, flat(inputs), pull)
        torch.testing.assert_close(found, torch.autograd.grad(theirs, flat(inputs), pull), **close)


@pytest.mark.parametrize("wanted", [{0}, {1, 2}, {3}, {4}, {0, 1, 2}, {0, 1, 2, 3, 4}])
def test_only_the_gradients_that_someone_wants_are_computed(wanted, monkeypatch):
    inputs = random_inputs(1, (4, 3), [(5, 6)], 1, 0, torch.float64)
    expected = torch.autograd.grad(reference(*inputs, 1)[0].square().sum(), flat(inputs))
    for i, tensor in enumerate(flat(inputs)):
        tensor.requires_grad_(i in wanted)
    returned = []
    backward = deform.SampledProduct.backward

    def spy(ctx, grad):
        returned.append(backward(ctx, grad))
        return returned[-1]

    monkeypatch.setattr(deform.SampledProduct, "backward", staticmethod(spy))
    convolve(*inputs, 1)[0].square().sum().backward()
    for i, tensor in enumerate(flat(inputs)):
        assert (tensor.grad is not None) == (i in wanted)
        if i in wanted:
            torch.testing.assert_close(tensor.grad, expected[i])
    # of the table, the index, its weights, the kernel and the bias
    present = [x is not None for x in returned[0]]
    assert present == [0 in wanted, False, bool({1, 2} & wanted), 3 in wanted, 4 in wanted]


def test_nothing_as_large_as_the_samples_is_kept_for_the_backward_pass():
    width, h, w = 16, 40, 50
    inputs = random_inputs(1, (width, width), [(h, w)], 1, 0, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        convolve(*inputs, 1)
    assert max(x.numel() for x in kept) < 9 * width * h * w


def test_without_offsets_it_is_a_plain_convolution():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 4, 7, 6), torch.randn(5, 4, 3, 3), torch.randn(5)
    for stride, (h, w) in ((1, (7, 6)), (2, (4, 3))):
        (found,) = convolve([x], [torch.zeros(2, 18, h, w)], [torch.ones(2, 9, h, w)], weight, bias, stride)
        torch.testing.assert_close(found, F.conv2d(x, weight, bias, stride=stride, padding=1), rtol=1e-4, atol=1e-5)


def test_the_first_offset_of_a_tap_moves_it_down():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1  # only the tap in the middle, number 4
    offset = torch.zeros(1, 18, 3, 4)
    offset[:, 8] = 1.0  # dy
    offset[:, 9] = 0.5  # dx
    (found,) = convolve([x], [offset], [torch.ones(1, 9, 3, 4)], weight, torch.zeros(1), 1)
    assert found[0, 0].tolist() == [[4.5, 5.5, 6.5, 3.5], [8.5, 9.5, 10.5, 5.5], [0, 0, 0, 0]]  # zero outside


def test_maps_do_not_see_each_other():
    maps, offsets, masks, weight, bias = random_inputs(2, (3, 2), [(4, 5), (2, 3)], 1, 0, torch.float32)
    together = convolve(maps, offsets, masks, weight, bias, 1)
    alone = [convolve([x], [o], [m], weight, bias, 1)[0] for x, o, m in zip(maps, offsets, masks, strict=True)]
    torch.testing.assert_close(list(together), alone)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_an_offset_beyond_all_bounds_reads_no_memory_but_its_own(value):
    maps, offsets, masks, weight, bias = random_inputs(1, (3, 2), [(4, 5)], 1, 0, torch.float32)
    moved = offsets[0].detach().clone()
    moved[0, :, 1, 2] = value
    (found,) = convolve(maps, [moved], masks, weight, bias, 1)
    (usual,) = convolve(maps, offsets, masks, weight, bias, 1)
    others = torch.ones(4, 5, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(found[..., others], usual[..., others])
    finite = torch.isfinite(torch.tensor(value))
    assert torch.isfinite(found[0, :, 1, 2]).all() == finite  # what is not finite shows in the loss


@pytest.mark.parametrize(("samples", "rows"), [(8640, 900), (500, 3), (40, 70_000)])
def test_the_backward_pass_of_the_samples_is_that_of_torch(samples, rows):
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, rows, (samples, 4), generator=generator, dtype=torch.int32)
    mix, table, pulled = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((samples, 4), (rows, 64), (samples, 64))
    )
    mix[torch.rand(mix.shape, generator=generator) < 0.3] = 0  # as outside of a map
    sums = F.embedding_bag(corners, table.requires_grad_(), mode="sum", per_sample_weights=mix.requires_grad_())
    of_table, of_mix = torch.autograd.grad(sums, (table, mix), pulled)
    torch.testing.assert_close(deform._pull_rows(corners, mix.detach(), pulled, rows), of_table, rtol=0, atol=1e-12)
    assert torch.equal(deform._pull_mix(table.detach(), corners, pulled).view(-1, 4), of_mix)
