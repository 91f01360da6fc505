"""Layers of Grounding DINO: frozen feed-forward layers work some rows at a time, and give the same."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from glip_adapt.trunks.dino import layers
from glip_adapt.trunks.dino.layers import FeedForward

EXACT = {"rtol": 0, "atol": 1e-12}


class Plain(nn.Module):
    """The layers as the paper writes them, from the modules of ours."""

    def __init__(self, ours):
        super().__init__()
        self.ours = ours

    def forward(self, x):
        return self.ours.norm(x + self.ours.out(self.ours.hidden(x).relu()))


@pytest.fixture
def frozen(monkeypatch):
    monkeypatch.setattr(layers, "CPU_ROWS", 4)
    torch.manual_seed(0)
    return FeedForward(6, 10, dropout=0.0).double().requires_grad_(False)


def pulled(module, x, weights):
    x = x.clone().requires_grad_()
    found = module(x)
    (found * weights).sum().backward()
    return found.detach(), x.grad


@pytest.mark.parametrize("shape", [(2, 7, 6), (1, 4, 6), (1, 1, 6)])
def test_frozen_layers_give_what_plain_ones_do_and_so_do_their_gradients(frozen, shape):
    x, weights = torch.randn(shape).double(), torch.randn(shape).double()
    for one, other in zip(pulled(frozen, x, weights), pulled(Plain(frozen), x, weights), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), Plain(frozen)(x), **EXACT)


def test_the_gradient_is_that_of_finite_differences(frozen):
    torch.manual_seed(1)
    assert torch.autograd.gradcheck(frozen, torch.randn(1, 9, 6).double().requires_grad_())


def test_trained_layers_learn(frozen):
    ours, plain = copy.deepcopy(frozen).requires_grad_(), copy.deepcopy(frozen).requires_grad_()
    x, weights = torch.randn(2, 7, 6).double(), torch.randn(2, 7, 6).double()
    pulled(ours, x, weights)
    pulled(Plain(plain), x, weights)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **EXACT)
        assert one.grad.any()


def test_a_frozen_layer_with_low_rank_factors_passes_on_their_gradient_too(frozen):
    inject_adapter_in_model(LoraConfig(target_modules=["hidden", "out"], init_lora_weights="gaussian"), frozen)
    for name, tensor in frozen.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(tensor)
    frozen.double().requires_grad_(False)
    x, weights = torch.randn(2, 7, 6).double(), torch.randn(2, 7, 6).double()
    for one, other in zip(pulled(frozen, x, weights), pulled(Plain(frozen), x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # the unit vectors of ``matrix`` are of float32
    for tensor in frozen.parameters():
        assert tensor.grad is None


def test_less_is_kept_for_the_backward_pass(frozen):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        frozen.norm = nn.Identity()
        frozen(torch.randn(1, 8, 6).double().requires_grad_())
    assert sum(kept) == 8 * 10  # a byte for each of the wide numbers
