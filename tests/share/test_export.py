"""The exported graph: its parts in eager mode, then traced, then in onnxruntime."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SHARED, TINY
from PIL import Image

from glip_adapt.core.boxes import to_edges
from glip_adapt.core.structures import merge
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import collate
from glip_adapt.engine.adapted import attach
from glip_adapt.share import export
from glip_adapt.share.baked import bake
from glip_adapt.trunks.catalogue import load_trunk
from glip_adapt.trunks.glip import decode
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import SwinConfig
from glip_adapt.trunks.glip.deform import deformable_conv
from glip_adapt.trunks.glip.graph import DetectionGraph, least_side
from glip_adapt.trunks.released import trunk_spec
from glip_adapt.trunks.swin import SwinBackbone

CLASSES = ("red box", "blue box", "raccoon")
MANY = tuple(f"{colour} {shape}7" for colour in ("red", "blue", "green", "grey") for shape in "abcdefghijklmnop")


def pixels(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def as_model(model, picture):
    """What the model itself finds in a picture that needs no resizing: boxes, scores, labels."""
    found = merge(decode.decode(model.outputs(collate([picture]))[0]))
    return to_edges(found.boxes_xyxy), found.scores, found.labels


def assert_same(found, expected, pixels=0.5, scores=1e-3):
    """Boxes are paired by label and place, since scores that differ in the last bit may swap."""
    boxes, values, labels = (torch.as_tensor(x) for x in found)
    assert len(labels) == len(expected[2])
    if not len(labels):
        return
    distance = (boxes[:, None] - expected[0][None]).abs().amax(-1)
    distance[labels[:, None] != expected[2][None]] = float("inf")
    nearest = distance.min(1)
    assert sorted(nearest.indices.tolist()) == list(range(len(labels)))
    assert (nearest.values <= pixels).all()
    assert ((values - expected[1][nearest.indices]).abs() <= scores).all()
    assert (values.diff() <= 0).all()


@pytest.mark.parametrize("size_hw", [(160, 192), (150, 203), (129, 300)])
@torch.no_grad()
def test_the_graph_detects_what_the_model_does(tiny_trunk, size_hw):
    model = attach(tiny_trunk, "exemplars", classes=CLASSES)
    plain = as_model(model, pixels(*size_hw))
    for tensor in model.owned_tensors().values():  # evidence of classes goes into the graph too
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    model = bake(model)
    expected = as_model(model, pixels(*size_hw))
    assert len(expected[2]) >= 50
    assert not torch.equal(plain[1], expected[1])
    assert_same(
        DetectionGraph(model.network, model.texts())(pixels(*size_hw)[None]), expected, pixels=1e-3, scores=1e-6
    )


@torch.no_grad()
def test_labels_go_on_over_several_captions(tiny_trunk):
    model = bake(attach(tiny_trunk, "zero_shot", classes=MANY))
    assert len(model.texts()) > 1
    outputs = model.outputs(collate([pixels(160, 160)]))
    parts, first = [], 0
    for output in outputs:
        (part,) = decode.decode(output)
        parts.append(replace(part, labels=part.labels + first))
        first += output.token_map.shape[1]
    assert sum(map(len, parts)) > 100  # each caption keeps its own hundred
    best = merge(parts)
    found = DetectionGraph(model.network, model.texts())(pixels(160, 160)[None])
    assert found[2].max() >= outputs[0].token_map.shape[1]
    assert_same(found, (to_edges(best.boxes_xyxy), best.scores, best.labels), pixels=1e-3, scores=1e-6)


@pytest.mark.parametrize("size_hw", [(14, 21), (13, 22), (7, 7), (3, 40)])
@torch.no_grad()
def test_swin_on_whole_maps_is_swin_by_layout(size_hw, monkeypatch):
    torch.manual_seed(0)
    swin = SwinBackbone(width=12, depths=(2, 2), heads=(2, 4), window=7).eval()
    x = torch.randn(2, 3, 4 * size_hw[0], 4 * size_hw[1])
    expected = swin(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for mine, theirs in zip(swin(x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_deformable_convolution_of_a_graph_is_the_one_of_the_cpu(monkeypatch):
    torch.manual_seed(0)
    shapes = ((6, 8), (3, 4))
    cells = torch.randn(1, 60, 5)
    offsets, masks = [torch.randn(1, 18, *s) for s in shapes], [torch.rand(1, 9, *s) for s in shapes]
    arguments = (cells, shapes, offsets, masks, torch.randn(7, 5, 3, 3), torch.randn(7))
    expected = deformable_conv(*arguments, stride=1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for mine, theirs in zip(deformable_conv(*arguments, stride=1), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_least_side_follows_from_the_coarsest_map_and_the_windows(tiny_trunk, swin):
    assert least_side(tiny_trunk.network) == 128 + 1
    assert least_side(swin.network) == 7 * 32 + 1


def test_missing_packages_are_named_before_the_work_begins(tiny_trunk, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(export, "export_program", lambda model: pytest.fail("traced"))
    with pytest.raises(RuntimeError, match=r"pip install 'glip-adapt\[onnx\]'"):
        export.export_onnx(bake(attach(tiny_trunk, "zero_shot", classes=CLASSES)), tmp_path / "x.onnx")


@pytest.fixture(scope="module")
def swin(tiny_trunk):
    """A baked model with a small Swin backbone."""
    torch.manual_seed(0)
    config = replace(TINY, backbone=SwinConfig(width=12, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4)))
    glip = build_glip(config).requires_grad_(False)
    with torch.no_grad():
        glip.head.bias0.fill_(0.0)
    return bake(attach(replace(tiny_trunk, network=glip), "zero_shot", classes=CLASSES))


@pytest.mark.slow
@torch.no_grad()
def test_the_traced_program_takes_any_size(swin):
    run = export.export_program(swin).module()
    least = least_side(swin.network)
    for size_hw in ((256, 288), (least, least), (333, 230), (448, 672)):
        expected = as_model(swin, pixels(*size_hw))
        assert len(expected[2]) >= 50
        assert_same(run(pixels(*size_hw)[None]), expected, pixels=0.01, scores=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_the_traced_program_stands_few_boxes_and_none(tiny_trunk, monkeypatch):
    """What depends on numbers must be taken neither for a constant nor for more than one."""
    model = bake(attach(tiny_trunk, "zero_shot", classes=CLASSES))
    pictures = [pixels(160, 160, seed) for seed in range(6)]
    best = [decode.class_probabilities(model.outputs(collate([x]))[0]).max().item() for x in pictures]
    monkeypatch.setattr(decode, "SCORE_THRESHOLD", sorted(best)[3])
    run, counts = export.export_program(model).module(), []
    for picture in pictures:
        expected = as_model(model, picture)
        counts.append(len(expected[2]))
        assert_same(run(picture[None]), expected, pixels=0.01, scores=1e-4)
    assert {0, 1} <= set(counts)


@pytest.mark.slow
def test_onnx_finds_the_same_boxes_on_photographs(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    photographs = sorted((SHARED / "data" / "odinw").glob("*/**/*.jpg"))
    if not photographs:
        pytest.skip("needs the real data of ../shared/data")
    monkeypatch.setattr(decode, "SCORE_THRESHOLD", 0.02)  # glip-nano has seen drawings only
    model = bake(attach(load_trunk("glip-nano"), "zero_shot", classes=("raccoon", "dog", "mushroom")))
    path = tmp_path / "folder" / "nano.onnx"
    export.export_onnx(model, path)
    assert [file.name for file in path.parent.iterdir()] == ["nano.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    config = trunk_spec("glip-nano").view
    assert json.loads(metadata["classes"]) == ["raccoon", "dog", "mushroom"]
    sides = [int(metadata[name]) for name in ("least_side", "short_side", "max_long_side")]
    assert sides == [129, config.short_side, config.max_long_side]
    for photograph in photographs[:: len(photographs) // 20][:20]:
        picture = load_rgb(photograph)
        ratio = config.short_side / min(picture.size)
        seen = picture.resize([int(side * ratio) for side in picture.size], Image.Resampling.BILINEAR)
        found = session.run(None, {"pixels": np.asarray(seen).transpose(2, 0, 1)[None].copy()})
        expected = model.predict(seen, view=config)
        assert_same(found, (expected.boxes_xyxy, expected.scores, expected.labels))


class Ranked(torch.nn.Module):
    def forward(self, values):
        return values.argsort(descending=True, stable=True), values.sort(stable=True).indices


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs the extra onnx")
def test_equal_scores_keep_their_order_in_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    sizes = {"values": {0: torch.export.Dim("count", min=2, max=1000)}}
    program = torch.export.export(Ranked(), (torch.rand(9),), dynamic_shapes=sizes, strict=False)
    export.to_onnx(program, ["values"], ["falling", "rising"]).save(tmp_path / "x.onnx")
    values = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(0)).float()
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {"values": values.numpy()}), Ranked()(values), strict=True):
        assert torch.equal(torch.from_numpy(found), expected)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs the extra onnx")
@torch.no_grad()
def test_windows_of_swin_cover_maps_of_any_size_in_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    swin = SwinBackbone(width=12, depths=(2,), heads=(2,), window=7, outputs=1).eval()
    sides = {2 + i: 4 * torch.export.Dim(f"cells_{i}", min=8, max=200) for i in range(2)}
    example = torch.zeros(1, 3, 4 * 16, 4 * 24)
    program = torch.export.export(swin, (example,), dynamic_shapes={"pixels": sides}, strict=False)
    export.to_onnx(program, ["pixels"], ["map"]).save(tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    for size_hw in ((14, 21), (13, 22), (15, 8)):  # whole windows of 7, and parts of them
        seen = torch.randn(1, 3, 4 * size_hw[0], 4 * size_hw[1])
        (found,) = session.run(None, {"pixels": seen.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), swin(seen)[0], rtol=1e-4, atol=1e-5)
