import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.trunks.windows import padded_hw, places, shifted_window_mask, shown_cells, window_layout

SIZES = st.tuples(st.integers(1, 11), st.integers(1, 11))
CPU = torch.device("cpu")


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


def test_hand_computed_cells_of_shifted_windows():
    # A map of 2 × 3 cells in windows of 2, shifted by 1 to the right and down; -1 is padding.
    cells, real = shown_cells((2, 3), 2, 1)
    assert cells.where(real, -1).tolist() == [[4, 5, 1, 2], [-1, 3, -1, 0]]
    assert shown_cells((2, 3), 2, 0)[0].tolist()[0] == [0, 1, 3, 4]


@given(size_hw=SIZES, window=st.integers(1, 5), shifted=st.booleans())
@settings(max_examples=50, deadline=None)
def test_every_cell_is_shown_once_and_is_found_at_its_place(size_hw, window, shifted):
    shift = window // 2 if shifted else 0
    cells, real = shown_cells(size_hw, window, shift)
    h, w = padded_hw(size_hw, window)
    assert cells.shape == (h * w // window**2, window**2)
    place = places(size_hw, window, shift)
    assert cells.flatten()[place].tolist() == list(range(size_hw[0] * size_hw[1]))
    assert sorted(place.tolist()) == real.flatten().nonzero().flatten().tolist()


@given(size_hw=SIZES, batch=st.integers(1, 3), chunk=st.integers(1, 30), shift=st.sampled_from([0, 2]))
@settings(max_examples=50, deadline=None)
def test_a_layout_deals_out_all_rows_and_finds_them_again(size_hw, batch, chunk, shift):
    layout = window_layout(size_hw, 4, shift, batch, chunk, CPU)
    rows = torch.arange(batch * size_hw[0] * size_hw[1])
    assert torch.equal(layout.source[layout.position], rows)
    parts = layout.cells.split(chunk)
    shown = [part.flatten()[slot] for part, slot in zip(parts, layout.slots, strict=True)]
    assert torch.equal(torch.cat(shown), layout.source)
    assert torch.equal(layout.cells[layout.real[..., 0] == 1], layout.source)
    assert (layout.cells[layout.real[..., 0] == 0] == 0).all()
