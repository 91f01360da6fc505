"""Frozen networks that cut objects out by their boxes: SAM (arXiv 2304.02643) and SAM 2 (arXiv 2408.00714).

They are the classes of transformers, with their own preprocessing. An image is encoded once for all of its boxes.

Letters: N boxes, H W pixels of the image, h w of the masks that a network predicts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from glip_adapt.core.masks import Mask
from glip_adapt.trunks.catalogue import choose_device
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.weights import fetch

if TYPE_CHECKING:
    from transformers import Sam2Model, Sam2Processor, SamModel, SamProcessor

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
"""Files of a checkpoint."""
KINDS = ("sam", "sam2", "sam2_video")
"""``model_type`` of checkpoints; that of a video has a tracker beside SAM 2, which is left out."""
SAVED_PROCESSOR = "processor_config.json"  # the name under which transformers 5 saves it
BOXES_AT_ONCE = 16

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Segmenter:
    """A network that cuts objects out by their boxes; see ``load_segmenter``.

    Attributes:
        network: ``SamModel`` or ``Sam2Model``, in eval mode.
        processor: its preprocessing.
        name: folder or Hub id that it came from.
    """

    network: SamModel | Sam2Model
    processor: SamProcessor | Sam2Processor
    name: str

    @torch.no_grad()
    def masks(self, image: Image.Image, boxes_xyxy: Tensor, boxes_at_once: int = BOXES_AT_ONCE) -> list[Mask]:
        """Return the mask of each box: the one that the network predicts where it is asked for one per box.

        Args:
            image: RGB.
            boxes_xyxy: (N, 4) float32, edges in pixels of the image; N is at least 1.
            boxes_at_once: boxes that go through the decoder together; it limits the memory.
        """
        device = self.network.device
        inputs = self.processor(images=image, input_boxes=[boxes_xyxy.tolist()], return_tensors="pt")
        sizes = {key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
        embeddings = self.network.get_image_embeddings(inputs["pixel_values"].to(device))
        boxes_xyxy = inputs["input_boxes"]  # in pixels of what the network sees, float64 of SAM, which an MPS lacks
        boxes_xyxy = (boxes_xyxy.float() if device.type == "mps" else boxes_xyxy).to(device)
        masks = []
        for boxes in boxes_xyxy.split(boxes_at_once, dim=1):
            predicted = self.network(input_boxes=boxes, image_embeddings=embeddings, multimask_output=False)
            for one in predicted.pred_masks[0].cpu():  # (1, h, w); enlarged one by one, an image may be large
                (enlarged,) = self.processor.image_processor.post_process_masks([one[None]], **sizes)
                masks.append(Mask.of(enlarged[0, 0].numpy()))
        return masks


def load_segmenter(checkpoint: str | Path, device: torch.device | str | None = None) -> Segmenter:
    """Load SAM or SAM 2 from a folder or the Hub; the class is that of the ``model_type`` in ``config.json``.

    Args:
        checkpoint: folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``, as
            transformers saves them; or a Hub id, such as ``"facebook/sam2.1-hiera-tiny"``, which is downloaded once.
        device: where it goes; None for the GPU if there is one.

    Raises:
        FileNotFoundError: if a file is missing, or not in the cache and the Hub cannot be reached.
        CheckpointError: if the checkpoint is of another kind, or its weights do not fit its configuration.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        folder = _fetched(str(checkpoint))
    config = _read_config(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"{checkpoint} is of the kind {kind!r}, but masks need SAM or SAM 2: {', '.join(KINDS)}. Name one of "
            "these, such as facebook/sam-vit-base or facebook/sam2.1-hiera-tiny."
        )
    if not (folder / WEIGHTS).is_file() or not any((folder / name).is_file() for name in (PROCESSOR, SAVED_PROCESSOR)):
        have = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise FileNotFoundError(
            f"Expected {CONFIG}, {PROCESSOR} and {WEIGHTS} in {folder}, found {have}. Weights in other files than "
            "safetensors are not read; `model.save_pretrained` and `processor.save_pretrained` write these."
        )
    network_class, processor_class = _classes(kind)
    try:
        network, loading = network_class.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
        processor = processor_class.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {_first_line(error)}. Fetch it again.") from error
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(
            f"{checkpoint}: {len(missing)} tensors are missing in {WEIGHTS}, {missing[0]} among them. The "
            "configuration is of another network; fetch both again."
        )
    network = network.requires_grad_(False).eval().to(choose_device(device))
    return Segmenter(network, processor, str(checkpoint))


def _classes(kind: str) -> tuple[Any, Any]:
    """Return the classes of network and preprocessing; imported when they are needed, since they take a second."""
    from transformers import Sam2Model, Sam2Processor, SamModel, SamProcessor

    return (SamModel, SamProcessor) if kind == "sam" else (Sam2Model, Sam2Processor)


def _fetched(name: str) -> Path:
    """Return the folder of the Hub's cache that holds the files of a checkpoint."""
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(
            f"No folder at {name}. Name a folder with a SAM or SAM 2 checkpoint, or a Hub id such as "
            "facebook/sam2.1-hiera-tiny."
        )
    paths = [Path(fetch(name, file, option="its folder")) for file in (CONFIG, PROCESSOR, WEIGHTS)]
    return paths[0].parent


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"No {CONFIG} in {file.parent}. Name a folder that `save_pretrained` of SAM wrote.")
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is malformed JSON ({error}). Fetch it again.") from error
    return config if isinstance(config, dict) else {}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
