"""SAM and SAM 2: masks are those of transformers' own call; a checkpoint of another kind is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_segmenters import BUILDERS, save
from stand_in_hub import hub_within_reach

from glip_adapt.core.structures import Detections
from glip_adapt.engine.segment import segment
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.segmenter import load_segmenter

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8))
BOXES = torch.tensor([[5.0, 5, 30, 40], [20.5, 3, 70, 33], [0, 0, 80, 50], [40, 40, 50, 50], [1, 2, 3, 4.5]])
FOUND = Detections(BOXES, torch.linspace(0.9, 0.1, 5), torch.zeros(5, dtype=torch.int64), ("thing",))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("segmenters")
    return {kind: save(kind, root / kind) for kind in BUILDERS}


def by_transformers(kind):
    """Return the masks (N, H, W) of one call of the network on image and boxes."""
    network, processor = BUILDERS[kind]()
    inputs = processor(images=IMAGE, input_boxes=[BOXES.tolist()], return_tensors="pt")
    sizes = {key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
    with torch.no_grad():
        predicted = network(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False
        )
    return processor.image_processor.post_process_masks(predicted.pred_masks, **sizes)[0][:, 0].numpy()


@pytest.mark.parametrize("kind", BUILDERS)
def test_masks_are_those_of_transformers_own_call(folders, kind, monkeypatch):
    torch.manual_seed(0)
    expected = by_transformers(kind)
    assert 0.02 < expected.mean() < 0.98
    torch.manual_seed(0)
    segmenter = load_segmenter(save(kind, folders[kind]))
    encoded = []
    encode = segmenter.network.get_image_embeddings
    monkeypatch.setattr(segmenter.network, "get_image_embeddings", lambda pixels: encoded.append(1) or encode(pixels))
    found = segment(IMAGE, FOUND, segmenter)
    assert (np.stack([mask.to_array() for mask in found.masks]) == expected).all()
    assert found.boxes_xyxy is FOUND.boxes_xyxy
    few = segment(IMAGE, FOUND, segmenter, boxes_at_once=2)
    assert (np.stack([mask.to_array() for mask in few.masks]) != expected).mean() < 1e-3  # other last bits
    assert len(encoded) == 2


def test_a_checkpoint_as_the_hub_has_it_is_fetched_once(folders, monkeypatch, tmp_path):
    config = json.loads((folders["sam2"] / "config.json").read_text()) | {"model_type": "sam2_video"}
    settings = json.loads((folders["sam2"] / "processor_config.json").read_text())["image_processor"]
    with hub_within_reach(monkeypatch, tmp_path / "cache") as hub:
        hub.put("owner/sam2", "config.json", json.dumps(config).encode())
        hub.put("owner/sam2", "preprocessor_config.json", json.dumps(settings).encode())
        hub.put("owner/sam2", "model.safetensors", (folders["sam2"] / "model.safetensors").read_bytes())
        first = load_segmenter("owner/sam2")
        asked = len(hub.asked("GET"))
        second = load_segmenter("owner/sam2")
        assert len(hub.asked("GET")) == asked > 0
    expected = segment(IMAGE, FOUND, load_segmenter(folders["sam2"])).masks
    assert segment(IMAGE, FOUND, first).masks == segment(IMAGE, FOUND, second).masks == expected


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), CheckpointError, "kind 'bert'"),
        (lambda folder: (folder / "config.json").write_text("{"), CheckpointError, "malformed JSON"),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, r"No config\.json in"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), FileNotFoundError, "model.bin"),
        (lambda folder: (folder / "processor_config.json").unlink(), FileNotFoundError, "preprocessor_config"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"), CheckpointError, "cannot be read"),
    ],
)
def test_a_bad_checkpoint_is_one_error(tmp_path, spoil, error, message):
    spoil(save("sam", tmp_path / "sam") and tmp_path / "sam")
    with pytest.raises(error, match=message):
        load_segmenter(tmp_path / "sam")


def test_weights_of_another_network_are_refused(folders, tmp_path):
    save("sam", tmp_path / "mixed")
    (tmp_path / "mixed" / "model.safetensors").write_bytes((folders["sam2"] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"tensors are missing in model\.safetensors"):
        load_segmenter(tmp_path / "mixed")


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "No folder at absent"), ("owner/absent", "owner/absent/config")]
)
def test_a_checkpoint_that_is_nowhere_is_one_error(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        load_segmenter(name)
