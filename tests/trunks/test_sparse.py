"""Sparse matrices of equally long rows: as dense ones, written out."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.trunks.sparse import sparse_rows, transposed_rows


@given(rows=st.integers(1, 12), read=st.integers(1, 5), columns=st.integers(1, 9), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_matrix_and_its_transpose_multiply_as_dense_ones(rows, read, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, columns, (rows, read), generator=generator, dtype=torch.int32)  # some twice in a row
    values = torch.randn(rows, read, generator=generator, dtype=torch.float64)
    dense = torch.zeros(rows, columns, dtype=torch.float64).index_put(
        (torch.arange(rows).unsqueeze(1).expand(-1, read), index.long()), values, accumulate=True
    )
    right, left = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (columns, rows))
    torch.testing.assert_close(sparse_rows(index, values, columns) @ right, dense @ right)
    torch.testing.assert_close(transposed_rows(index, values, columns) @ left, dense.T @ left)


def test_the_numbers_of_a_transposed_row_keep_their_order():
    index = torch.tensor([[2, 0], [2, 2], [0, 2]], dtype=torch.int32)
    turned = transposed_rows(index, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), 3)
    assert turned.crow_indices().tolist() == [0, 2, 2, 6]
    assert turned.col_indices().tolist() == [0, 2, 0, 1, 1, 2]
    assert turned.values().tolist() == [2, 5, 1, 3, 4, 6]
