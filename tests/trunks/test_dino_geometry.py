"""Where cells of feature maps lie: against transformers, by hand, and what follows for padding and proposals."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoEncoder,
    GroundingDinoModel,
    GroundingDinoSinePositionEmbedding,
)

from glip_adapt.core.structures import DIVISOR
from glip_adapt.trunks.dino.geometry import IMAGE_TEMPERATURE, PROPOSED_SIDE, geometry, sines

WIDTH, CPU = 16, torch.device("cpu")
few = settings(max_examples=60)


def shapes_of(padded_hw, finest=8, levels=4):
    """Return the (h, w) of each map; every level has half the cells of the one before, rounded up."""
    shapes = [tuple(side // finest for side in padded_hw)]
    for _ in range(levels - 1):
        shapes.append(tuple(-(-side // 2) for side in shapes[-1]))
    return tuple(shapes)


def padded(sizes_hw):
    return tuple(-(-max(size_hw[axis] for size_hw in sizes_hw) // DIVISOR) * DIVISOR for axis in (0, 1))


def geometry_of(*sizes_hw, finest=8, levels=4, dtype=torch.float64):
    return geometry(shapes_of(padded(sizes_hw), finest, levels), sizes_hw, finest, WIDTH, CPU, dtype)


def by_transformers(sizes_hw, finest, levels):
    """Return what its network makes of a mask: real, position, shares, reference points, proposals, proposable."""
    height, width = padded(sizes_hw)
    shapes = shapes_of((height, width), finest, levels)
    pixels = torch.zeros(len(sizes_hw), height, width)
    for row, (h, w) in zip(pixels, sizes_hw, strict=True):
        row[:h, :w] = 1
    masks = [F.interpolate(pixels[None], size=shape).to(torch.bool)[0] for shape in shapes]
    embed = GroundingDinoSinePositionEmbedding(
        SimpleNamespace(d_model=WIDTH, positional_embedding_temperature=IMAGE_TEMPERATURE)
    )
    position = torch.cat([embed(pixels, mask).flatten(2).transpose(1, 2) for mask in masks], dim=1)
    shares = torch.stack([GroundingDinoModel.get_valid_ratio(None, mask, torch.float64) for mask in masks], dim=1)
    points = GroundingDinoEncoder.get_reference_points(shapes, shares, CPU)
    real = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    model = SimpleNamespace(enc_output=lambda x: x, enc_output_norm=lambda x: x)
    offered, proposals = GroundingDinoModel.generate_encoder_output_proposals(
        model, torch.ones(*real.shape, 1, dtype=torch.float64), ~real, shapes
    )
    return real, position, shares, points, proposals, offered[..., 0].bool()


sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(st.lists(sizes, min_size=1, max_size=3), st.sampled_from([(8, 4), (4, 5)]))
@few
def test_all_places_are_those_of_transformers(sizes_hw, strides):
    finest, levels = strides
    found = geometry_of(*sizes_hw, finest=finest, levels=levels)
    real, position, shares, points, proposals, proposable = by_transformers(sizes_hw, finest, levels)
    assert torch.equal(torch.ones_like(real) if found.real is None else found.real, real)
    # Both are computed in float32; nobody reads the places of padding.
    torch.testing.assert_close(found.position[real], position[real].double(), rtol=0, atol=2e-5)
    torch.testing.assert_close(found.real_share, shares, rtol=0, atol=1e-15)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(found.centres.unsqueeze(2) * found.real_share.unsqueeze(1), points, **close)
    assert torch.equal(found.proposable, proposable)
    torch.testing.assert_close(found.proposals, proposals, **close)


@given(st.lists(sizes, min_size=1, max_size=3))
@few
def test_a_box_is_proposed_or_infinite_and_never_undefined(sizes_hw):
    found = geometry_of(*sizes_hw)
    assert not found.proposals.isnan().any()
    assert torch.equal(found.proposals.isfinite().all(-1), found.proposable)
    assert torch.equal(found.proposals.isfinite().any(-1), found.proposable)
    if found.real is not None:
        assert not (found.proposable & ~found.real).any()
    assert found.proposable.any(-1).all()  # the coarsest cell of any image can be a box
    boxes = found.proposals.sigmoid()[found.proposable]
    assert ((boxes > 0.01) & (boxes < 0.99)).all()


@given(st.lists(sizes, min_size=2, max_size=3))
@few
def test_an_image_lies_as_it_would_alone_in_that_padding(sizes_hw):
    together, height_width = geometry_of(*sizes_hw), padded(sizes_hw)
    for i, size_hw in enumerate(sizes_hw):
        alone = geometry(shapes_of(height_width), (size_hw,), 8, WIDTH, CPU, torch.float64)
        for name in ("position", "real_share", "centres", "proposals", "proposable"):
            assert torch.equal(getattr(together, name)[i], getattr(alone, name)[0]), name


@given(sizes, sizes)
@few
def test_real_cells_lie_inside_of_their_image(size_hw, other_hw):
    found = geometry_of(size_hw, other_hw)
    real = torch.ones_like(found.proposable) if found.real is None else found.real
    assert ((found.centres > 0) & (found.centres < 1)).all(-1)[real].all()
    assert not ((found.centres < 1).all(-1) & ~real).any()
    assert ((found.real_share > 0) & (found.real_share <= 1)).all()


def test_shares_and_centres_by_hand():
    """An image of 32 × 48 pixels in 32 × 64: its right quarter is padding, which a coarse cell does not show."""
    found = geometry_of((32, 48), (32, 64))
    assert found.real_share.tolist()[0] == [[0.75, 1.0], [0.75, 1.0], [1.0, 1.0], [1.0, 1.0]]
    assert found.real_share.tolist()[1] == [[1.0, 1.0]] * 4
    assert found.real[0, :8].tolist() == [True] * 6 + [False] * 2  # a row of the finest map, four rows of 8 cells
    assert found.real[0, 32:36].tolist() == [True] * 3 + [False]  # of the next one, two rows of 4
    assert found.real[0, 40:].tolist() == [True] * 3  # of the two coarsest, 1 × 2 and 1 × 1
    assert found.real[1].all()
    torch.testing.assert_close(found.centres[0, 9], torch.tensor([1.5 / 6, 1.5 / 4]).double())
    torch.testing.assert_close(found.centres[1, 9], torch.tensor([1.5 / 8, 1.5 / 4]).double())
    torch.testing.assert_close(found.centres[0, -1], torch.tensor([0.5, 0.5]).double())


def test_proposals_by_hand():
    """Twice as large at each level; the cells at the edges of a wide map are too near to the edge of the image."""
    found = geometry_of((64, 512))  # maps of 8 × 64, 4 × 32, 2 × 16, 1 × 8 cells
    boxes, wanted, start = found.proposals.sigmoid()[0], found.proposable[0], 0
    for level, (h, w) in enumerate(((8, 64), (4, 32), (2, 16), (1, 8))):
        part, shown = boxes[start : start + h * w].view(h, w, 4), wanted[start : start + h * w].view(h, w)
        start += h * w
        sides = torch.tensor(PROPOSED_SIDE * 2**level).double()
        torch.testing.assert_close(part[shown][:, 2:], sides.expand(int(shown.sum()), 2))
        outside = [0, w - 1] if 0.5 / w < 0.01 else []
        assert (~shown).nonzero().tolist() == [[row, column] for row in range(h) for column in outside]
        assert (part[~shown] == 1).all()
    torch.testing.assert_close(boxes[65], torch.tensor([1.5 / 64, 1.5 / 8, 0.05, 0.05]).double())


def test_a_box_that_leaves_the_image_is_proposed_all_the_same():
    """The rule is about its coordinates, as in transformers: a box around a cell at the edge is cut by the edge."""
    found = geometry_of((64, 256))
    first = found.proposals[0, 0].sigmoid()
    assert found.proposable[0, 0]
    torch.testing.assert_close(first, torch.tensor([0.5 / 32, 0.5 / 8, 0.05, 0.05]).double())
    assert first[0] - first[2] / 2 < 0


def test_five_maps_end_in_a_box_of_most_of_the_image():
    assert geometry_of((64, 64), finest=4, levels=5).proposals[0, -1].sigmoid().tolist() == pytest.approx(
        [0.5, 0.5, 0.8, 0.8]
    )


def test_images_that_fill_the_padding_have_no_mask():
    assert geometry_of((64, 96), (64, 96)).real is None
    assert geometry_of((64, 96), (64, 95)).real is None  # the nearest pixels are all of the image
    assert geometry_of((64, 96), (64, 88)).real is not None


def test_the_place_of_a_cell_by_hand():
    """The first half of the channels is for y, each with sine and cosine in turn; a place counts from one."""
    found = geometry_of((32, 64))
    turns = torch.tensor([2 / 4, 3 / 8]) * 2 * math.pi  # second of four rows, third of eight columns
    expected = []
    for turn in turns:
        for pair in range(WIDTH // 4):
            angle = turn / IMAGE_TEMPERATURE ** (4 * pair / WIDTH)
            expected += [angle.sin(), angle.cos()]
    torch.testing.assert_close(found.position[0, 8 + 2], torch.stack(expected).double(), rtol=0, atol=1e-5)


def test_padding_repeats_the_place_of_the_last_real_cell():
    found = geometry_of((32, 48), (32, 64))
    row = found.position[0, :8, WIDTH // 2 :]
    assert torch.equal(row[6], row[5])
    assert torch.equal(row[7], row[5])
    assert not torch.equal(row[5], row[4])


def test_waves_by_hand():
    assert sines(torch.tensor([0.25]), 2).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    x, y, w, h = (sines(torch.tensor([place]), 4) for place in (0.1, 0.2, 0.3, 0.4))
    assert torch.equal(sines(torch.tensor([0.1, 0.2, 0.3, 0.4]), 4), torch.cat((y, x, w, h)))
    assert torch.equal(sines(torch.tensor([0.1, 0.2]), 4), torch.cat((y, x)))
    slow = sines(torch.tensor([1.0]), 4, temperature=100)
    assert slow.tolist() == pytest.approx([0.0, 1.0, math.sin(2 * math.pi / 10), math.cos(2 * math.pi / 10)], abs=1e-6)
    assert sines(torch.zeros(2, 3, 4, dtype=torch.float64), 8).shape == (2, 3, 32)
    assert sines(torch.zeros(1, dtype=torch.float64), 8).dtype == torch.float64


def test_places_are_computed_once_and_may_take_part_in_training():
    with torch.inference_mode():
        first = geometry_of((40, 56), dtype=torch.float32)
    assert geometry_of((40, 56), dtype=torch.float32) is first
    weight = torch.ones(WIDTH, requires_grad=True)
    (first.position @ weight).sum().backward()
    assert weight.grad is not None
    assert not first.position.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_numbers_have_the_type_that_is_asked_for(dtype):
    found = geometry_of((40, 56), (30, 20), dtype=dtype)
    assert {found.position.dtype, found.real_share.dtype, found.centres.dtype, found.proposals.dtype} == {dtype}
    assert found.real.dtype == found.proposable.dtype == torch.bool
