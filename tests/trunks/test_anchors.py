import math

import pytest
import torch
from codec import encode
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.trunks.glip.anchors import (
    ANCHOR_SCALE,
    MAX_LOG_SCALE,
    STRIDES,
    anchor_grid,
    centres,
    decode,
    level_shapes,
)

few = settings(max_examples=40, deadline=None)
padded_sides = st.integers(1, 12).map(lambda cells: 32 * cells)


@st.composite
def box_lists(draw, count=5):
    """Inclusive boxes (N, 4) from one pixel to 2000."""
    position, side = st.floats(-200, 1500, width=32), st.floats(0, 1999, width=32)
    rows = [draw(st.tuples(position, position, side, side)) for _ in range(count)]
    return torch.tensor([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=torch.float64)


@given(box_lists(), st.lists(st.integers(0, 4), min_size=5, max_size=5), st.integers(0, 50))
@few
def test_encoding_then_decoding_returns_the_boxes(boxes_xyxy, levels, cell):
    # Within the limit of 62.5 times the anchor's side: at most 2000 / 64.
    sides = torch.tensor([ANCHOR_SCALE * STRIDES[i] for i in levels], dtype=torch.float64)
    corner = torch.tensor([STRIDES[i] * cell for i in levels], dtype=torch.float64)
    anchors = torch.stack((corner, corner, corner + sides - 1, corner + sides - 1), dim=-1)
    torch.testing.assert_close(decode(encode(boxes_xyxy, anchors), anchors), boxes_xyxy, rtol=1e-9, atol=1e-7)


@given(padded_sides, padded_sides, st.sampled_from([4, ANCHOR_SCALE]))
@few
def test_the_grid_has_one_anchor_per_cell_centred_on_it(height, width, scale):
    level_shapes_hw = level_shapes((height, width))
    grid = anchor_grid(level_shapes_hw, scale=scale)
    assert grid.dtype == torch.float32
    expected = [
        (stride * x + (stride - 1) / 2, stride * y + (stride - 1) / 2, scale * stride)
        for (h, w), stride in zip(level_shapes_hw, STRIDES, strict=True)
        for y in range(h)
        for x in range(w)
    ]
    sides = grid[:, 2:] - grid[:, :2] + 1
    assert torch.equal(torch.cat((centres(grid), sides[:, :1]), dim=-1), torch.tensor(expected))
    assert torch.equal(sides[:, 0], sides[:, 1])


@given(box_lists())
@few
def test_no_deltas_leave_the_anchors(anchors):
    torch.testing.assert_close(decode(torch.zeros_like(anchors), anchors), anchors)


def test_the_first_anchors_are_those_of_the_public_code():
    grid = anchor_grid(((2, 3), (1, 2), (1, 1), (1, 1), (1, 1)))
    assert grid.shape == (6 + 2 + 1 + 1 + 1, 4)
    assert grid[0].tolist() == [-28, -28, 35, 35]
    assert grid[1].tolist() == [-20, -28, 43, 35]  # along the row first
    assert grid[3].tolist() == [-28, -20, 35, 43]
    assert grid[6].tolist() == [-56, -56, 71, 71]
    assert grid[-1].tolist() == [-448, -448, 575, 575]


def test_hand_computed_level_shapes():
    assert level_shapes((256, 320)) == ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))
    assert level_shapes((32, 800)) == ((4, 100), (2, 50), (1, 25), (1, 13), (1, 7))


def test_hand_computed_deltas():
    anchor = torch.tensor([[0.0, 0.0, 63.0, 63.0]])
    # Centre (6.4, -3.2) away; twice as wide, half as high, both corners counted.
    box = torch.tensor([[31.5 + 6.4 - 63.5, 31.5 - 3.2 - 15.5, 31.5 + 6.4 + 63.5, 31.5 - 3.2 + 15.5]])
    deltas = torch.tensor([[1.0, -0.5, 5 * math.log(2), -5 * math.log(2)]])
    torch.testing.assert_close(encode(box, anchor), deltas)
    torch.testing.assert_close(decode(deltas, anchor), box)


@pytest.mark.parametrize("delta", [5 * MAX_LOG_SCALE, 100.0, 1e30])
def test_a_decoded_side_is_at_most_62_5_times_the_anchors(delta):
    anchor = torch.tensor([[0.0, 0.0, 63.0, 63.0]])
    box = decode(torch.tensor([[0.0, 0.0, delta, delta]]), anchor)
    torch.testing.assert_close(box[:, 2:] - box[:, :2] + 1, torch.full((1, 2), 4000.0), rtol=1e-4, atol=0)


def test_a_side_has_no_lower_limit():
    box = decode(torch.tensor([[0.0, 0.0, -100.0, -100.0]]), torch.tensor([[0.0, 0.0, 63.0, 63.0]]))
    torch.testing.assert_close(box, torch.tensor([[32.0, 32.0, 31.0, 31.0]]))  # of no pixel, so clipped elsewhere
