"""The stages can be compiled: one graph each, without breaks, with the same results; copies start uncompiled."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from public_files import SMALL
from torch._dynamo.testing import CompileCounter

from glip_adapt.core.structures import Fused, ImageBatch, Pyramid, TextFeatures
from glip_adapt.engine.adapted import attach
from glip_adapt.trunks.catalogue import Trunk, load_tokenizer, load_trunk
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.network import Glip

CLASSES = ("red box", "blue box")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def show(h, w):
    generator = torch.Generator().manual_seed(0)
    return ImageBatch(torch.randint(0, 256, (1, 3, h, w), dtype=torch.uint8, generator=generator), ((h, w - 6),))


def build(config):
    torch.manual_seed(0)
    return Trunk("glip-nano", build_glip(config).requires_grad_(False), load_tokenizer("glip-nano"), "none")


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, TINY], ids=["swin", "timm"])
def test_each_stage_is_one_graph_and_computes_the_same(config):
    model = attach(build(config), "prompt", classes=CLASSES)
    (expected,) = model.outputs(show(64, 96))
    graphs = CompileCounter()  # runs the graphs as they are
    model.network.compile(backend=graphs, fullgraph=True)
    (found,) = model.outputs(show(64, 96))
    assert graphs.frame_count == 3
    for name in ("token_logits", "box_deltas", "centerness"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    found.token_logits.sum().backward()
    assert model.network.text_prompt.offset.grad.abs().sum() > 0


def test_models_of_a_compiled_trunk_are_compiled_and_keep_features_of_their_own(monkeypatch):
    compiled = []
    monkeypatch.setattr(Glip, "compile", lambda self: compiled.append(self))
    plain = load_trunk("glip-nano", device="cpu")
    trunk = replace(plain, compiled=True)
    model = attach(trunk, "prompt", classes=CLASSES)
    assert compiled == [model.network]
    assert model.frozen_checksum != attach(plain, "prompt", classes=CLASSES).frozen_checksum
    assert model.identity.checksum == plain.checksum
    assert load_trunk("glip-nano", device="cpu", compile=True).compiled


def test_a_copy_of_a_compiled_network_does_not_run_the_stages_of_the_first():
    head = build(TINY).network.head
    network = build(TINY).network
    network.compile(backend="eager")
    twin = copy.deepcopy(network)
    cells = torch.ones(1, 8, TINY.image_width)
    text = TextFeatures(torch.ones(1, 3, TINY.text.width), torch.ones(1, 3).bool(), torch.ones(1, 1, 3).bool())
    fused = Fused(Pyramid(cells, ((2, 2), (1, 1), (1, 1), (1, 1), (1, 1)), ((16, 16),)), text)
    with torch.no_grad():
        twin.head.bias0 += 1
        first, second, plain = network.predict(fused), twin.predict(fused), head(fused)
    torch.testing.assert_close(first.token_logits, plain.token_logits)
    torch.testing.assert_close(second.token_logits, plain.token_logits + 1)
