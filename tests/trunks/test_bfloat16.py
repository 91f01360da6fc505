"""Inference in bfloat16 on a CPU: what runs in it, what must not, and how far results move."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glip_adapt.core.captions import build_caption
from glip_adapt.core.precision import autocast
from glip_adapt.core.structures import ImageBatch
from glip_adapt.trunks.glip.deform import deformable_conv

FIRST_FACTOR = {"convolution": 0, "mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}  # its place among the arguments
SMALL = 1000  # numbers of a first factor


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageBatch(pixels, ((96, 128),))


@torch.no_grad()
def infer(trunk, images, precision, products=None):
    """Return the predictions for two classes, with their products in ``precision``."""
    text = trunk.network.encode_text(trunk.tokenizer.encode(build_caption(["red box", "blue box"])))
    with products or contextlib.nullcontext(), autocast(torch.device("cpu"), precision):
        return trunk.network.predict(trunk.network.fuse(trunk.network.encode_image(images), text))


class Products(TorchDispatchMode):
    """Collects names and types of large products while open."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in FIRST_FACTOR and args[FIRST_FACTOR[name]].numel() > SMALL:
            self.types.add((name, args[FIRST_FACTOR[name]].dtype))
        return func(*args, **(kwargs or {}))


def test_every_large_product_of_an_inference_runs_in_bfloat16(tiny_trunk, images):
    products = Products()
    infer(tiny_trunk, images, "bfloat16", products)
    assert {"convolution", "addmm", "bmm"} <= {name for name, _ in products.types}
    assert {dtype for _, dtype in products.types} == {torch.bfloat16}


def test_predictions_move_little(tiny_trunk, images):
    exact, half = (infer(tiny_trunk, images, precision) for precision in ("float32", "bfloat16"))
    for name in ("token_logits", "box_deltas", "centerness"):
        expected, found = getattr(exact, name), getattr(half, name).float()
        assert 0 < (found - expected).norm() < 0.03 * expected.norm(), name


def convolve(precision, cells, offset, mask, weight, bias):
    with autocast(torch.device("cpu"), precision):
        (found,) = deformable_conv(cells, [(2, 700)], [offset], [mask], weight, bias, stride=1)
    return found


def inputs(seed=0):
    """Return a map 700 cells wide, halves of cells as offsets, and numbers that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randint(-8, 9, shape, generator=generator) / 8

    return draw(1, 1400, 4), 4 * draw(1, 18, 2, 700), draw(1, 9, 2, 700), draw(3, 4, 3, 3), draw(3)


def test_positions_of_a_deformable_convolution_stay_float32():
    """From 256 on, bfloat16 knows only every second whole number: samples there would come from other cells."""
    tensors = inputs()
    with torch.no_grad():
        exact, half = (convolve(precision, *tensors) for precision in ("float32", "bfloat16"))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.01, atol=0.05)


def test_a_deformable_convolution_that_is_trained_stays_float32():
    """Its backward pass adds up over chunks, where bfloat16 would lose small gradients."""
    tensors = [x.requires_grad_() for x in inputs()]
    exact, half = (convolve(precision, *tensors) for precision in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert torch.equal(half, exact)
    gradients = [torch.autograd.grad(x.square().sum(), tensors) for x in (exact, half)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
