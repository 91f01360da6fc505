"""No host synchronisation inside a training step, nor in an inference up to non-maximum suppression; without a GPU.

On the device ``meta`` tensors have shapes and no numbers: whatever asks for a number, or for a size that depends on
one, fails there. Two modes count the rest, calls that read numbers and copies from or to the CPU. The code takes the
path of a GPU, because it asks no more than whether a device is the CPU.
"""

from collections import Counter
from contextlib import contextmanager, nullcontext

import pytest
import torch
from conftest import TINY
from public_files import SMALL
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glip_adapt.core.settings import FitConfig
from glip_adapt.core.structures import Fused, ImageBatch, Pyramid, Target, TextFeatures
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.optimise import Stepper
from glip_adapt.engine.rates import parameter_groups
from glip_adapt.trunks.catalogue import Trunk, load_tokenizer
from glip_adapt.trunks.glip import decode
from glip_adapt.trunks.glip.build import build_glip

META = torch.device("meta")
CLASSES = ("red box", "blue box")
SIZE_HW = (64, 96)
CALLS = ("tolist", "cpu", "item", "__bool__", "__int__", "__float__", "numpy", "tensor", "new_tensor")


class Calls(TorchFunctionMode):
    """Counts calls that read numbers, or send those of a list. Of those that may be, the result is made up."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        device = (kwargs or {}).get("device") if name == "tensor" else getattr(args[0], "device", None)
        if name in CALLS and device == META:
            self.calls[name] += 1
            if name in ("tolist", "cpu"):
                ones = torch.ones_like(args[0], device="cpu")
                return ones if name == "cpu" else ones.tolist()
        return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Counts copies between the CPU and the device."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)}
            if len(devices) > 1:
                self.calls[f"copy of {tuple(args[0].shape)}"] += 1
        return result


@pytest.fixture(autouse=True)
def _allow_meta(monkeypatch):
    """Have torch's autocast and fused optimisers take the device meta; leave ``send``, which waits for nothing, out."""

    def sent(tensor, device):
        return torch.empty_like(tensor, device=META) if device == META else tensor.to(device)

    for module in ("core.structures", "trunks.glip.objective"):
        monkeypatch.setattr(f"glip_adapt.{module}.send", sent)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])


def build(config, method):
    """Return a model by a method on the device meta."""
    trunk = Trunk("glip-nano", build_glip(config).requires_grad_(False), load_tokenizer("glip-nano"), "none")
    model = attach(trunk, method, classes=CLASSES)
    model.network.to(META)  # attaching may look at numbers
    model.captions = [tokens.to(META) for tokens in model.captions]
    return model


def show(count=2):
    return ImageBatch(torch.zeros(count, 3, *SIZE_HW, dtype=torch.uint8, device=META), (SIZE_HW, (60, 90))[:count])


def prepare(model):
    boxes = torch.tensor([[3.0, 4.0, 40.0, 50.0], [20.0, 8.0, 90.0, 60.0]])
    full, empty = Target(boxes, torch.tensor([0, 1])), Target(boxes[:0], torch.tensor([], dtype=torch.int64))
    return [model.network.objective.prepare(target, SIZE_HW) for target in (full, empty)]


@contextmanager
def watched():
    """Count what a GPU would be waited for."""
    calls = Counter()
    with Calls(calls), Copies(calls):
        yield calls


def train_once(model, stepper, prefix, prepared):
    """Take a step as ``train_model`` does."""

    def parts():
        scale = model.network.objective.scale(prepared)
        (output,) = model.finish(prefix)
        yield "both", model.network.objective.losses(output, prepared, scale)

    return stepper.take(1, "both", parts())


@pytest.mark.parametrize("method", ["prompt", "linear_probe", "lora", "context", "full"])
@pytest.mark.parametrize("config", [SMALL, TINY], ids=["swin", "timm"])
def test_a_training_step_waits_once(config, method):
    model, recompute = build(config, method), method == "full"
    model.train()
    model.network.set_recompute(recompute)
    stepper = Stepper(parameter_groups(model, FitConfig()), device=META, precision="float32", clip_norm=1.0)
    prefix, prepared = model.prefix(show()), prepare(model)  # the layout of windows is known from here on
    model.finish(prefix)
    with watched() as calls:
        train_once(model, stepper, prefix, prepared)
    assert calls == {"tolist": 1}
    owned = [tensor for tensor in model.owned_tensors().values() if tensor.requires_grad]
    assert all(tensor.grad is not None for tensor in owned)


@pytest.mark.parametrize("config", [SMALL, TINY], ids=["swin", "timm"])
def test_an_inference_waits_for_nothing_up_to_its_candidates(monkeypatch, config):
    model = build(config, "zero_shot")
    model.train(False)
    reached, best = [], decode._best
    monkeypatch.setattr(decode, "_best", lambda *image: reached.append(best(*image)) or reached[-1])
    monkeypatch.setattr(decode, "_suppress", lambda *image: None)
    with torch.no_grad():
        model.outputs(show())
        with watched() as calls:
            (output,) = model.outputs(show())
            assert not calls
            decode.decode(output)
    assert calls == {"cpu": 3}  # boxes, scores and labels of all images, one right after the other
    assert [tuple(column.shape) for column in reached[1]] == [(5000, 4), (5000,), (5000,)]


@pytest.fixture(scope="module")
def fused():
    """A state on the device meta."""
    cells = torch.zeros(1, 12, 8, device=META)
    text = TextFeatures(cells, cells[..., 0] > 0, cells[:, :2] > 0)
    return Fused(Pyramid(cells, ((3, 4),), ((24, 32),)), text)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda fused: fused.pyramid.cells.sum().item(),
        lambda fused: fused.pyramid.cells.nonzero(),
        lambda fused: fused.pyramid.cells[fused.pyramid.cells > 0],
        lambda fused: fused.pyramid.cells.masked_select(fused.pyramid.cells > 0),
        lambda fused: fused.text.mask.unique(),
        lambda fused: bool(fused.text.mask.all()),
        lambda fused: fused.pyramid.cells.new_tensor((1.0, 2.0)),
        lambda fused: torch.tensor([1.0], device=META),
        lambda fused: torch.arange(2).to(META),
        lambda fused: fused.pyramid.cells.cpu(),
    ],
)
def test_what_waits_is_seen(fused, waiting):
    with watched() as calls:
        try:
            waiting(fused)
        except (RuntimeError, NotImplementedError):
            return
    assert calls
