"""Layouts for GLIGEN: what is written, and that the pipeline of diffusers takes it."""

import json

import pytest
import torch
from PIL import Image

from glip_adapt.core.structures import Detections
from glip_adapt.share.gligen import MOST_OBJECTS, export_gligen, to_gligen

FOUND = Detections(
    torch.tensor([[10.0, 5.0, 30.0, 40.0], [-2.0, 0.0, 80.0, 51.0], [7.0, 7.0, 7.0, 9.0]]),
    torch.tensor([0.2, 0.9, 0.5]),
    torch.tensor([0, 1, 0]),
    ("a\x1b[31m red\n\u202ebox\ud800", "dog"),
)


@pytest.fixture
def results(tmp_path):
    """Write a JSON file of ``detect``, changed by a function; return it."""

    def write(change=lambda document: None):
        Image.new("RGB", (80, 50)).save(tmp_path / "photo.png")
        box = {"class": "dog", "score": 0.4, "box_xyxy": [8, 5, 40, 25], "shown": True}
        document = {"image": str(tmp_path / "photo.png"), "detections": [box, box | {"shown": False}]}
        change(document)
        (tmp_path / "photo.json").write_text(json.dumps(document))
        return tmp_path / "photo.json"

    return write


def test_the_best_come_first_clipped_as_shares_and_without_control_codes():
    layout = to_gligen(FOUND, (50, 80))
    assert layout["gligen_phrases"] == ["dog", "a[31m red box"]
    assert layout["gligen_boxes"] == [[0, 0, 1, 1], [10 / 80, 5 / 50, 30 / 80, 40 / 50]]


def test_as_many_objects_as_the_pipeline_takes():
    count = MOST_OBJECTS + 5
    boxes, scores = torch.tensor([[0.0, 0.0, 5.0, 5.0]]).repeat(count, 1), torch.linspace(0, 1, count)
    boxes[:, 2] += torch.arange(count)
    layout = to_gligen(Detections(boxes, scores, torch.zeros(count, dtype=torch.int64), ("a",)), (80, 80))
    assert [box[2] * 80 for box in layout["gligen_boxes"]] == pytest.approx([5 + n for n in range(count - 1, 4, -1)])
    assert len(layout["gligen_phrases"]) == MOST_OBJECTS


def test_shown_detections_of_a_file_are_exported(glip, results, tmp_path):
    code, out, err = glip("export-gligen", results(), "--json")
    assert code == 0, err
    expected = {"gligen_phrases": ["dog"], "gligen_boxes": [[0.1, 0.1, 0.5, 0.5]]}
    assert json.loads(out) == json.loads((tmp_path / "photo.gligen.json").read_text()) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document["detections"][0].update(shown=False), "no detection to lay out"),
        (lambda document: document["detections"][0].update(box_xyxy=[1, 2]), "four edges"),
        (lambda document: document.pop("detections"), r"photo\.json cannot be read"),
        (lambda document: document.update(image="absent.png"), r"absent\.png"),
    ],
)
def test_bad_input_is_one_error(results, change, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export_gligen(results(change), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="that `glip-adapt detect` wrote"):
        export_gligen(tmp_path / "absent.json", tmp_path / "out.json")


def test_the_pipeline_of_diffusers_takes_a_layout(tmp_path):
    """The real class with a small random network draws another image for another layout."""
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    words = ["<|startoftext|>", "<|endoftext|>", *(letter + end for letter in "abdgox" for end in ("", "</w>"))]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=77)
    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=len(words),
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_type="gated",
    )  # fmt: skip
    for name, parameter in unet.named_parameters():
        if "alpha" in name:
            torch.nn.init.constant_(parameter, 1.0)  # gates of the boxes; zero at first
    vae = diffusers.AutoencoderKL(
        block_out_channels=[32, 64], in_channels=3, out_channels=3, latent_channels=4, sample_size=32,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionGLIGENPipeline(
        vae=vae, text_encoder=CLIPTextModel(text).eval(), tokenizer=tokenizer, unet=unet,
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)

    def draw(layout):
        seed = torch.Generator().manual_seed(0)
        size = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np", "generator": seed}
        return pipeline("a dog", **layout, gligen_scheduled_sampling_beta=1.0, **size).images[0]

    layout = to_gligen(FOUND, (50, 80))
    drawn = draw(layout)
    assert drawn.shape == (32, 32, 3)
    assert (drawn == draw(layout)).all()
    assert (drawn != draw(to_gligen(FOUND.select(slice(0, 1)), (50, 80)))).any()
