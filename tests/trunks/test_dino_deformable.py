"""Deformable attention over several maps: by hand, against grid_sample, and its gradients.

Positions are in cells: (0, 0) is the centre of the first cell of a map.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.trunks.dino.deformable import DeformableAttention, sample, sample_by_grid

SHAPES_HW = ((3, 4), (2, 2))
CELLS = sum(h * w for h, w in SHAPES_HW)
few = settings(max_examples=60)


def one_place(values, level, x, y):
    """Return what a single head reads at one place of one map, (C,)."""
    positions = torch.zeros(1, 1, 1, len(SHAPES_HW), 1, 2, dtype=values.dtype)
    positions[0, 0, 0, level, 0] = torch.tensor([x, y])
    weights = torch.zeros(1, 1, 1, len(SHAPES_HW), dtype=values.dtype)
    weights[..., level] = 1
    return sample(values.view(1, CELLS, 1, -1), SHAPES_HW, positions, weights)[0, 0]


@pytest.fixture
def values():
    return torch.randn(CELLS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_sample_at_the_centre_of_a_cell_is_the_cell(values):
    start = 0
    for level, (h, w) in enumerate(SHAPES_HW):
        for y in range(h):
            for x in range(w):
                assert torch.equal(one_place(values, level, x, y), values[start + y * w + x])
        start += h * w


def test_between_cells_their_values_are_mixed_by_distance(values):
    a, b, c, d = values[[5, 6, 9, 10]]  # of the finest map, columns 1 and 2, rows 1 and 2
    torch.testing.assert_close(one_place(values, 0, 1.25, 1), 0.75 * a + 0.25 * b)
    torch.testing.assert_close(one_place(values, 0, 1, 1.5), (a + c) / 2)
    expected = 0.4 * (0.75 * a + 0.25 * b) + 0.6 * (0.75 * c + 0.25 * d)
    torch.testing.assert_close(one_place(values, 0, 1.25, 1.6), expected)


def test_at_the_edge_the_missing_neighbour_counts_as_zero(values):
    torch.testing.assert_close(one_place(values, 0, -0.25, 0), 0.75 * values[0])
    torch.testing.assert_close(one_place(values, 0, 3.5, 2.5), 0.25 * values[11])
    torch.testing.assert_close(one_place(values, 1, 0, 1.9), 0.1 * values[14])


@pytest.mark.parametrize("far", [1.0, 1.5, 7.0, 1e4, 1e9, 1e30])
def test_outside_of_a_map_is_zero_and_no_other_map_is_read(values, far):
    for level, (h, w) in enumerate(SHAPES_HW):
        for x, y in ((-far, 0), (w - 1 + far, 0), (0, -far), (0, h - 1 + far), (-far, h - 1 + far)):
            assert torch.equal(one_place(values, level, x, y), torch.zeros(5, dtype=torch.float64))


def test_each_head_reads_its_own_channels_with_its_own_weights():
    values = torch.arange(CELLS * 2.0, dtype=torch.float64).view(1, CELLS, 2, 1)
    positions = torch.zeros(1, 1, 2, 2, 2, 2, dtype=torch.float64)
    positions[0, 0, 0, :, 0] = 1.0  # both maps at row 1, column 1: cells 5 and 12 + 3
    weights = torch.tensor([[[[1.0, 0, 10, 0], [0, 1, 0, 100]]]], dtype=torch.float64)  # (map, point) in turn
    found = sample(values, SHAPES_HW, positions, weights)
    assert found.tolist() == [[[10 + 10 * 30.0, 1 + 100 * 25.0]]]


# Against grid_sample, and gradients ----------------------------------------------------------------------------------


def random_inputs(batch, queries, heads, width, points, sides, seed, dtype=torch.float64):
    """Return values, positions of which a third lies outside of the maps, and weights; all take gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    sizes_wh = torch.tensor([(w, h) for h, w in sides], dtype=dtype).unsqueeze(1)
    positions = torch.rand(batch, queries, heads, len(sides), points, 2, generator=generator, dtype=torch.float64)
    positions = (positions.to(dtype) * 1.5 - 0.25) * sizes_wh - 0.5
    inputs = draw(batch, sum(h * w for h, w in sides), heads, width), positions
    weights = draw(batch, queries, heads, len(sides) * points).softmax(-1)
    return [x.requires_grad_() for x in (*inputs, weights)]


sides = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)


@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 9),
    heads=st.integers(1, 3),
    width=st.integers(1, 4),
    points=st.integers(1, 3),
    sides=sides,
    seed=st.integers(0, 10_000),
)
@few
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_samples_and_gradients_are_those_of_grid_sample(
    dtype, tolerance, batch, queries, heads, width, points, sides, seed
):
    inputs = random_inputs(batch, queries, heads, width, points, sides, seed, dtype)
    found = sample(inputs[0], sides, *inputs[1:])
    expected = sample_by_grid(inputs[0], sides, *inputs[1:])
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found, expected, **close)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    mine, theirs = (torch.autograd.grad(x, inputs, pull, retain_graph=True) for x in (found, expected))
    largest = max(gradient.abs().max().item() for gradient in theirs)
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=10 * tolerance * max(1.0, largest))


def test_more_queries_than_one_chunk_holds_are_read_alike():
    inputs = random_inputs(1, 1300, 2, 3, 2, SHAPES_HW, 0)
    found, expected = (f(inputs[0], SHAPES_HW, *inputs[1:]) for f in (sample, sample_by_grid))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    mine, theirs = (torch.autograd.grad(x.square().sum(), inputs) for x in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_more_cells_than_16_bits_count_are_read_alike():
    sides = ((300, 130), (150, 65))  # 48 750 cells for each of two heads
    inputs = random_inputs(1, 700, 2, 2, 2, sides, 1)
    found, expected = (f(inputs[0], sides, *inputs[1:]) for f in (sample, sample_by_grid))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    mine, theirs = (torch.autograd.grad(x.square().sum(), inputs) for x in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_many_cells_of_one_head_are_read_alike():
    sides = ((400, 250), (3, 5))
    inputs = random_inputs(1, 600, 1, 2, 1, sides, 2)
    found, expected = (f(inputs[0], sides, *inputs[1:]) for f in (sample, sample_by_grid))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    mine, theirs = (torch.autograd.grad(x.square().sum(), inputs) for x in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_small_changes_inside_and_outside_of_maps(seed):
    values, positions, weights = random_inputs(2, 3, 2, 2, 2, SHAPES_HW, seed)
    sizes_wh = torch.tensor([(w, h) for h, w in SHAPES_HW]).unsqueeze(1)
    outside = ((positions < -1) | (positions > sizes_wh)).any(-1)
    assert 0 < outside.sum() < outside.numel()
    assert torch.autograd.gradcheck(lambda *x: sample(x[0], SHAPES_HW, *x[1:]), (values, positions, weights))


def test_a_place_far_outside_has_no_gradient():
    values, positions, weights = random_inputs(1, 1, 1, 2, 1, SHAPES_HW, 0)
    far = (positions.detach() * 0 + 1e6).requires_grad_()
    found = torch.autograd.grad(sample(values, SHAPES_HW, far, weights).sum(), (values, far, weights))
    assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize("wanted", [{0}, {1}, {2}, {0, 2}])
def test_gradients_do_not_depend_on_who_else_wants_one(wanted):
    inputs = random_inputs(2, 4, 2, 3, 2, SHAPES_HW, 5)
    expected = torch.autograd.grad(sample(inputs[0], SHAPES_HW, *inputs[1:]).square().sum(), inputs)
    some = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    sample(some[0], SHAPES_HW, *some[1:]).square().sum().backward()
    for i, tensor in enumerate(some):
        assert (tensor.grad is not None) == (i in wanted)
        if i in wanted:
            torch.testing.assert_close(tensor.grad, expected[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_position_that_is_not_finite_spoils_what_reads_it_and_nothing_else(value, axis):
    """inf may count as far outside, and then reads zeros; NaN must show, so that training stops with an error."""
    values, positions, weights = random_inputs(1, 4, 2, 3, 2, SHAPES_HW, 0)
    whole = sample(values, SHAPES_HW, positions, weights)
    broken = positions.detach().clone()
    broken[0, 2, 1, 0, 1, axis] = value
    broken.requires_grad_()
    found = sample(values, SHAPES_HW, broken, weights)
    spoilt = torch.zeros_like(found, dtype=torch.bool)
    spoilt[0, 2, 3:] = True  # the channels of the second head
    assert torch.equal(found[~spoilt], whole[~spoilt])
    if value != value:
        assert found[spoilt].isnan().all()
    else:
        assert not torch.equal(found[spoilt], whole[spoilt])
    torch.autograd.grad(found.sum(), (values, broken, weights))  # no crash: indices stay inside of the table


def test_a_value_that_is_not_finite_spoils_its_readers_only():
    values, positions, weights = random_inputs(1, 2, 1, 3, 1, SHAPES_HW, 0)
    places = torch.zeros_like(positions)
    places[0, 1] = 1.5
    broken = values.detach().clone()
    broken[0, 0] = float("nan")
    found = sample(broken, SHAPES_HW, places, weights)
    assert found[0, 0].isnan().all()
    assert found[0, 1].isfinite().all()


# The layer -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = DeformableAttention(8, heads=4, levels=2, points=3).double()
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return layer


def arguments(queries=5, sides=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, cells = (torch.randn(2, n, 8, dtype=torch.float64, generator=generator) for n in (queries, CELLS))
    places = torch.rand(2, queries, 2, sides, dtype=torch.float64, generator=generator)
    return query, places, cells


@pytest.mark.parametrize("sides", [2, 4])
@torch.no_grad()
def test_padding_is_not_read_whatever_it_holds(layer, sides):
    query, places, cells = arguments(sides=sides)
    real = torch.ones(2, CELLS, dtype=torch.bool)
    real[1, [2, 3, 7, 11, 13]] = False
    other = cells.masked_fill(~real.unsqueeze(-1), 1e6)
    found, again, unmasked = (
        layer(query, places, x, mask, SHAPES_HW) for x, mask in ((cells, real), (other, real), (cells, None))
    )
    assert torch.equal(found, again)
    assert torch.equal(found[0], unmasked[0])
    assert not torch.allclose(found[1], unmasked[1], atol=1e-4)


@pytest.mark.parametrize("sides", [2, 4])
@torch.no_grad()
def test_images_and_queries_are_read_by_themselves(layer, sides):
    query, places, cells = arguments(sides=sides)
    found = layer(query, places, cells, None, SHAPES_HW)
    for i in range(2):
        alone = layer(query[i : i + 1, 1:3], places[i : i + 1, 1:3], cells[i : i + 1], None, SHAPES_HW)
        torch.testing.assert_close(alone, found[i : i + 1, 1:3], rtol=0, atol=1e-12)


@torch.no_grad()
def test_at_the_start_each_head_looks_in_a_direction_of_its_own():
    """Values are the column and the row of a cell: a head reads the mean of one to P steps from the place."""
    layer = DeformableAttention(16, heads=8, levels=1, points=2)
    for linear in (layer.value, layer.out):
        linear.weight.copy_(torch.eye(16))
        linear.bias.zero_()
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    cells = torch.stack((x, y), dim=-1).view(1, 81, 2).repeat(1, 1, 8)
    centre = torch.full((1, 1, 1, 2), 0.5)  # column 4, row 4
    found = layer(torch.randn(1, 1, 16), centre, cells, None, [(9, 9)]).view(8, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    torch.testing.assert_close(found, 4 + 1.5 * torch.tensor(directions).float(), rtol=0, atol=1e-4)


@torch.no_grad()
def test_in_a_box_a_step_is_half_of_it_over_the_points():
    layer = DeformableAttention(16, heads=8, levels=1, points=2)
    for linear in (layer.value, layer.out):
        linear.weight.copy_(torch.eye(16))
        linear.bias.zero_()
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    cells = torch.stack((x, y), dim=-1).view(1, 81, 2).repeat(1, 1, 8)
    box = torch.tensor([0.5, 0.5, 4 / 9, 2 / 9]).view(1, 1, 1, 4)  # four cells wide, two high
    found = layer(torch.randn(1, 1, 16), box, cells, None, [(9, 9)]).view(8, 2)
    directions = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]).float()
    torch.testing.assert_close(found, 4 + 1.5 * directions * torch.tensor([1.0, 0.5]), rtol=0, atol=1e-4)


def test_every_tensor_of_the_layer_has_a_gradient(layer):
    query, places, cells = (x.requires_grad_() for x in arguments(sides=4))
    layer(query, places, cells, None, SHAPES_HW).square().sum().backward()
    for name, tensor in (*layer.named_parameters(), ("query", query), ("places", places), ("cells", cells)):
        assert tensor.grad is not None, name
        assert tensor.grad.any(), name
