import pytest
import torch
import torch.nn.functional as F

from glip_adapt.trunks.linear import ONEDNN_NUMBERS, Linear, linear


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 7, ONEDNN_NUMBERS // 32 + 1])  # the last one goes to oneDNN
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_linear_layer_in_values_and_gradients(threads, rows, with_bias):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shapes = [(1, rows, 32), (24, 32)] + [(24,)] * with_bias
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    ours, theirs = linear(*inputs), F.linear(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    pull = torch.randn_like(theirs)
    found, expected = (torch.autograd.grad(output, inputs, pull) for output in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_module_has_the_parameters_of_torch():
    torch.manual_seed(0)
    ours = Linear(5, 3)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(5, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert list(ours.state_dict()) == list(theirs.state_dict())
