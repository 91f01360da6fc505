"""Export a baked model as one graph, image in, boxes out, with ``torch.export`` or as an ONNX file.

The graph holds all of ``model.predict`` after resizing: pixel statistics, padding, network, decoding. It takes one
image whose sides, resized as the metadata of the file prescribe, lie between ``least_side`` and 4096 pixels.

Shape letters: N boxes, H W pixels.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glip_adapt.core.files import written_whole
from glip_adapt.core.structures import DIVISOR
from glip_adapt.share.baked import BakedModel

MAX_SIDE = 4096  # pixels
OPSET = 20
OUTPUTS = ("boxes_xyxy", "scores", "labels")


def export_program(model: BakedModel) -> torch.export.ExportedProgram:
    """Return the model as a program of ``torch.export``, for images with sides from ``least_side`` to 4096 pixels.

    It maps (1, 3, H, W) uint8 RGB to boxes (N, 4), scores (N,) and labels (N,).
    Tracing takes minutes for the larger trunks.

    Args:
        model: from ``bake`` or ``load_baked``, on a CPU.

    Raises:
        NotImplementedError: if the trunk cannot be exported.
    """
    graph, least = model.network.graph(model.texts())
    sides = {2 + i: torch.export.Dim(name, min=least, max=MAX_SIDE) for i, name in enumerate(("height", "width"))}
    example = torch.zeros(1, 3, least + DIVISOR, least + 3 * DIVISOR, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(
            graph.eval(),
            (example,),
            dynamic_shapes={"pixels": sides},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,  # whole pixels per cell hold for each size, but unproven
        )


def export_onnx(model: BakedModel, path: str | Path) -> None:
    """Write the model as an ONNX file: input ``pixels``, outputs ``boxes_xyxy``, ``scores``, ``labels``.

    Input and outputs are those of ``export_program``. The metadata of the file holds the class names, ``classes``
    (JSON), the size to which an image is resized first, ``short_side`` and ``max_long_side``, and the ``least_side``
    that both sides must have then, all in pixels: a long, narrow image may fall below it.

    Args:
        model: from ``bake`` or ``load_baked``, on a CPU.
        path: file to write, .onnx.

    Raises:
        NotImplementedError: if the trunk cannot be exported.
        RuntimeError: if the packages of the extra ``onnx`` are not installed.
    """
    path, (_, least) = Path(path), model.network.graph(model.texts())  # nobody need install packages to learn of it
    if importlib.util.find_spec("onnxscript") is None:
        raise RuntimeError("ONNX export needs packages that are not installed: pip install 'glip-adapt[onnx]'.")
    program = to_onnx(export_program(model), ["pixels"], OUTPUTS)
    program.model.metadata_props.update(
        trunk=model.trunk.name,
        method=model.method,
        classes=json.dumps(model.class_names),
        short_side=str(model.view.short_side),
        max_long_side=str(model.view.max_long_side),
        least_side=str(least),
    )
    with written_whole(path) as temporary:
        program.save(temporary, external_data=False)


def to_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Return an exported program in the operators of ONNX, with names for what goes in and comes out."""
    converted = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=list(outputs),
        verbose=False,
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},  # torch 2.14 has none
    )
    assert converted is not None
    return converted


def _stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Return the ONNX operators of a stable sort: of equal values, TopK puts the one of the lower index first."""
    from onnxscript import opset20

    operators: Any = opset20  # its hints are those of tensors, but these are places in a graph
    size = operators.Gather(operators.Shape(values), operators.Constant(value_ints=[dim]))
    return operators.TopK(values, size, axis=dim, largest=int(descending), sorted=1)
