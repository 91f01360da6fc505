"""A GPU computes what a CPU does, and is waited for once a step: ``pytest -n 0 -m gpu tests/test_gpu.py``."""

import warnings
from dataclasses import replace

import pytest
import torch

from glip_adapt.adapters.full import Full
from glip_adapt.core.precision import autocast
from glip_adapt.core.structures import ImageBatch, Target
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.optimise import Stepper
from glip_adapt.engine.rates import parameter_groups
from glip_adapt.engine.train import train_model
from glip_adapt.trunks.catalogue import load_trunk
from glip_adapt.trunks.glip.deform import deformable_conv
from glip_adapt.trunks.released import default_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

CPU, GPU = torch.device("cpu"), "cuda"
CLASSES = ("king", "queen")
PADDED_HW = (160, 224)
METHODS = ("prompt", "linear_probe", "lora", "context", "full")


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch):
    """Convolutions in TF32, torch's default, would be a thousandth off."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def trunks():
    return {device: load_trunk("glip-nano", device=device) for device in ("cpu", GPU)}


def images(count=2):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, *PADDED_HW), dtype=torch.uint8, generator=generator)
    return ImageBatch(pixels, (PADDED_HW,) * count)


def step(model, precision="float32", training=False):
    """Take a step as training does, by default without dropout; return it, the gradients, and what a step takes."""
    model.train(training)
    groups = parameter_groups(model, default_recipe("glip-nano", "prompt", 5))
    stepper = Stepper(groups, device=model.device, precision=precision, clip_norm=1e9)
    boxes = torch.tensor([[10.0, 20.0, 60.0, 90.0], [100.0, 30.0, 190.0, 140.0]])
    target, objective = Target(boxes, torch.tensor([0, 1])), model.network.objective
    prepared = [objective.prepare(target, PADDED_HW) for _ in range(2)]
    with autocast(model.device, precision):
        prefix = model.prefix(images().to(model.device))

    def parts():
        with autocast(model.device, precision):
            (output,) = model.finish(prefix)
        yield "both", objective.losses(output, prepared, objective.scale(prepared))

    taken = stepper.take(1, "both", parts())
    gradients = {name: t.grad.cpu() for name, t in model.owned_tensors().items() if t.grad is not None}
    return taken, gradients, (stepper, parts)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_deformable_convolution_agrees_in_values_and_gradients(stride):
    generator = torch.Generator().manual_seed(stride)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    out = [(-(-h // stride), -(-w // stride)) for h, w in ((10, 12), (5, 6))]
    given = [draw(2, 150, 16), *(3 * draw(2, 18, *hw) for hw in out), *(draw(2, 9, *hw).sigmoid() for hw in out)]
    given += [draw(8, 16, 3, 3), draw(8)]
    results = []
    for device in (CPU, GPU):
        cells, *rest = (x.to(device).requires_grad_() for x in given)
        maps = deformable_conv(cells, [(10, 12), (5, 6)], rest[:2], rest[2:4], rest[4], rest[5], stride=stride)
        torch.cat([x.flatten(1) for x in maps], dim=1).pow(2).sum().backward()
        results.append([*(x.detach().cpu() for x in maps), *(x.grad.cpu() for x in (cells, *rest))])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("method", ["zero_shot", "lora"])
def test_raw_predictions_agree_to_a_ten_thousandth(trunks, method):
    outputs = []
    for device in ("cpu", GPU):
        model = attach(trunks[device], method, classes=CLASSES)
        with torch.no_grad():
            outputs += model.outputs(images().to(model.device))
    for name in ("token_logits", "box_deltas", "centerness", "anchors_xyxy"):
        expected, found = getattr(outputs[0], name), getattr(outputs[1], name).cpu()
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name


def test_the_best_detections_are_the_same(trunks):
    record = load_dataset("glyphs13/ChessHollow").test.records[0]
    found = [attach(trunks[device], "zero_shot", classes=CLASSES).predict(record.path) for device in ("cpu", GPU)]
    sure = int((found[0].scores > 0.3).sum())
    assert sure > 0
    expected, other = (one.select(torch.arange(sure)) for one in found)
    assert torch.equal(other.labels, expected.labels)
    torch.testing.assert_close(other.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=0.1)
    torch.testing.assert_close(other.scores, expected.scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_of_a_step_agree(trunks, method):
    chosen = Full() if method == "full" else method
    (expected, gradients, _), (found, others, _) = (
        step(attach(trunks[device], chosen, classes=CLASSES)) for device in ("cpu", GPU)
    )
    assert found.losses == pytest.approx(expected.losses, rel=1e-3)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-2)
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() <= 1e-2 * gradient.norm() + 1e-4 * largest, name


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_the_gpu_once(trunks, method):
    model = attach(trunks[GPU], Full() if method == "full" else method, classes=CLASSES)
    _, _, (stepper, parts) = step(model, training=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            stepper.take(2, "both", parts())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing CUDA operation" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["prompt", "full"])
def test_half_precision_stays_near(trunks, method, precision):
    chosen = Full() if method == "full" else method
    expected, *_ = step(attach(trunks["cpu"], chosen, classes=CLASSES))
    found, *_ = step(attach(trunks[GPU], chosen, classes=CLASSES), precision)
    assert found.losses == pytest.approx(expected.losses, rel=0.05)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(trunks, precision):
    data = load_dataset("glyphs13/ChessHollow")
    model = attach(trunks[GPU], "prompt", classes=data.classes)
    recipe = replace(default_recipe("glip-nano", "prompt", 3), max_steps=30, precision=precision)
    losses = [one.loss for one in train_model(model, data.train.few_shot(3, seed=3), None, recipe).steps]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_compiled_predictions_agree(trunks):
    outputs = []
    for trunk in (trunks[GPU], replace(trunks[GPU], compiled=True)):
        model = attach(trunk, "zero_shot", classes=CLASSES)
        with torch.no_grad():
            outputs += model.outputs(images(1).to(model.device))
    expected, found = outputs
    assert (found.token_logits - expected.token_logits).norm() <= 1e-3 * expected.token_logits.norm()
