"""Boxes come back in pixels of the picture that went in."""

import numpy as np
import pytest
import torch
from codec import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import resize_shape
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.detector import Detector
from glip_adapt.trunks.glip.anchors import anchor_grid, level_shapes
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GLIP_NANO
from glip_adapt.trunks.glip.head import HeadOutput
from glip_adapt.trunks.released import default_recipe, trunk_spec

CLASSES = ("red box", "blue box")
LAST_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from inclusive corners to edges
SMALL = ViewConfig(short_side=64, max_long_side=120)


class Rigged(Detector):
    """Stands for a model that sees ``boxes`` (fractions of the picture it is shown), the first one best.

    Keeps the batch it was given. Every box is of class 1, and comes from the anchor of its own rank.
    """

    def __init__(self, *boxes_norm):
        self.boxes_norm = boxes_norm
        self.network = build_glip(GLIP_NANO, text_encoder=torch.nn.Identity())
        self.view, self.class_counts = ViewConfig(), (2,)
        self.prompts = (ClassPrompt(name="cat"), ClassPrompt(name="dog"))
        self.modes = []
        self.keeps_graph = True

    def train(self, training):
        self.modes.append(training)

    def texts(self):
        return []

    def prefix(self, images):
        return images

    def finish(self, images):
        self.images = images
        self.keeps_graph = torch.is_grad_enabled()
        ((height, width),) = images.image_sizes_hw
        level_shapes_hw = level_shapes(tuple(images.pixels.shape[-2:]))
        anchors = anchor_grid(level_shapes_hw)
        logits, deltas = torch.full((1, len(anchors), 4), -9.0), torch.zeros(1, len(anchors), 4)
        for rank, box in enumerate(self.boxes_norm):
            box_xyxy = torch.tensor([box]) * torch.tensor([width, height, width, height])
            deltas[:, rank] = encode(box_xyxy, anchors[rank : rank + 1])
            logits[:, rank, 2] = 6.0 - rank
        token_map = torch.tensor([[[False, True, False, False], [False, False, True, False]]])
        centerness = torch.full((1, len(anchors)), 9.0)
        mask = torch.ones(1, 4, dtype=torch.bool)
        raw = (logits, deltas, centerness, anchors, level_shapes_hw, mask, token_map, images.image_sizes_hw, logits)
        return [HeadOutput(*raw)]


@given(
    size=st.tuples(st.integers(20, 400), st.integers(20, 400)),
    left=st.floats(0.05, 0.45), top=st.floats(0.05, 0.45), right=st.floats(0.55, 0.95), bottom=st.floats(0.55, 0.95),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_a_box_is_the_same_part_of_the_picture_at_every_size(size, left, top, right, bottom):
    model = Rigged((left, top, right, bottom))
    found = model.predict(Image.new("RGB", size), view=SMALL)
    ((seen_height, seen_width),) = model.images.image_sizes_hw
    assert (seen_height, seen_width) == resize_shape(size[::-1], 64, 120)
    share = (found.boxes_xyxy - LAST_PIXEL) / torch.tensor([*size, *size])
    last_pixel = torch.tensor([1 - 1 / seen_width, 1 - 1 / seen_height] * 2)
    expected = torch.tensor([[left, top, right, bottom]]).minimum(last_pixel)
    torch.testing.assert_close(share, expected, atol=1e-3, rtol=0)
    assert found.labels.tolist() == [1]


def test_a_hand_computed_box():
    """160 × 128 is shown as 80 × 64: corners scale as they are, before the last pixel is added."""
    found = Rigged((0.25, 0.5, 0.5, 0.75)).predict(Image.new("RGB", (160, 128)), view=SMALL)
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[40.0, 64.0, 81.0, 97.0]]), atol=1e-3, rtol=0)
    sigmoid = torch.tensor([6.0, 9.0]).sigmoid()
    torch.testing.assert_close(found.scores, sigmoid.prod(0, keepdim=True).sqrt())


def test_boxes_come_best_first_with_their_scores():
    boxes = [(0.1, 0.1, 0.3, 0.3), (0.6, 0.1, 0.9, 0.3), (0.1, 0.6, 0.3, 0.9), (0.6, 0.6, 0.9, 0.9)]
    found = Rigged(*boxes).predict(Image.new("RGB", (100, 80)), view=SMALL)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    share = (found.boxes_xyxy - LAST_PIXEL) / torch.tensor([100, 80, 100, 80])
    torch.testing.assert_close(share, torch.tensor(boxes))


def test_the_picture_is_shown_unmirrored_in_eval_mode_and_without_gradients(coco_folder):
    image, model = load_rgb(coco_folder / "train" / "0.png"), Rigged((0.1, 0.1, 0.5, 0.5))
    model.predict(image, view=SMALL)
    resized = image.resize((80, 64), Image.Resampling.BILINEAR)
    shown = model.images.pixels[0, :, :64, :80].permute(1, 2, 0).numpy()
    assert shown.tobytes() == resized.tobytes()
    assert model.modes == [False]
    assert not model.keeps_graph


def test_the_long_side_is_limited():
    model = Rigged((0.1, 0.1, 0.5, 0.5))
    model.predict(Image.new("RGB", (500, 50)), view=SMALL)
    assert model.images.image_sizes_hw == ((12, 120),)


@pytest.mark.parametrize(("trunk", "seen_hw"), [("glip-t", (800, 1066)), ("glip-nano", (160, 213))])
def test_the_default_is_what_the_trunk_is_used_to(trunk, seen_hw):
    model = Rigged((0.1, 0.1, 0.5, 0.5))
    model.view = trunk_spec(trunk).view
    model.predict(Image.new("RGB", (40, 30)))
    assert model.images.image_sizes_hw == (seen_hw,)


def test_the_public_test_setting_is_the_default_of_the_public_trunks():
    assert ViewConfig() == ViewConfig(short_side=800, max_long_side=1333) == trunk_spec("glip-t").view
    assert trunk_spec("glip-nano-a").view == default_recipe("glip-nano-a", "full", 5).view
    assert trunk_spec("glip-l").view == default_recipe("glip-l", "full", 5).view


@pytest.fixture(scope="module")
def model(tiny_trunk):
    return attach(tiny_trunk, "zero_shot", classes=CLASSES)


def test_real_predictions_are_sorted_inside_the_picture_and_at_most_a_hundred(tiny_trunk):
    """28 classes of random scores on a noisy picture, so that far more than 100 boxes survive suppression."""
    model = attach(tiny_trunk, "zero_shot", classes=[f"{colour} box" for colour in "abcdefghijklmnopqrstuvwxyzäö"])
    image = Image.effect_noise((150, 100), 90).convert("RGB")
    found = model.predict(image, view=SMALL)
    scores = found.scores.tolist()
    assert scores == sorted(scores, reverse=True)
    assert sum(score > scores[99] for score in scores) <= 99 < len(scores)
    assert all(score == scores[99] for score in scores[100:])
    assert min(scores) > 0
    assert max(scores) < 1
    assert set(found.labels.tolist()) <= set(range(28))
    assert (found.boxes_xyxy[:, :2] <= found.boxes_xyxy[:, 2:]).all()
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy < torch.tensor([150, 100, 150, 100])).all()
    assert (found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (
        torch.float32, torch.float32, torch.int64,
    )  # fmt: skip


def test_predicting_twice_gives_the_same_bits(model, coco_folder):
    image = load_rgb(coco_folder / "test" / "0.png")
    one, two = (model.predict(image, view=SMALL) for _ in range(2))
    assert len(one) > 0
    for name in ("boxes_xyxy", "scores", "labels"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_a_model_left_in_train_mode_predicts_as_in_eval_mode(tiny_trunk, coco_folder):
    model = attach(tiny_trunk, "full", classes=CLASSES)
    image = load_rgb(coco_folder / "test" / "0.png")
    expected = model.predict(image, view=SMALL)
    model.train()
    found = model.predict(image, view=SMALL)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)


def test_the_picture_handed_in_is_left_alone(model, coco_folder):
    image = load_rgb(coco_folder / "test" / "0.png")
    before = image.tobytes()
    model.predict(image, view=SMALL)
    assert image.tobytes() == before


def test_paths_arrays_and_pil_images_of_any_mode_are_the_same_image(model, tmp_path):
    grey = Image.effect_noise((70, 60), 80)
    grey.save(tmp_path / "grey.png")
    found = model.predict(load_rgb(tmp_path / "grey.png"), view=SMALL)
    rgb = grey.convert("RGB")
    for image in (rgb, grey, np.asarray(rgb), tmp_path / "grey.png", str(tmp_path / "grey.png")):
        assert torch.equal(found.scores, model.predict(image, view=SMALL).scores)


def test_several_images_give_a_list_and_boxes_below_the_threshold_are_left_out(model):
    images = [Image.effect_noise((70, 60), 80), Image.effect_noise((60, 70), 80)]
    one, two = model.predict(images, view=SMALL)
    assert torch.equal(one.scores, model.predict(images[0], view=SMALL).scores)
    threshold = float(two.scores[len(two) // 2])
    (_, best) = model.predict(iter(images), view=SMALL, threshold=threshold)
    assert torch.equal(best.scores, two.scores[two.scores >= threshold])
    assert best.class_names == model.class_names
    assert model.predict([], view=SMALL) == []


@pytest.mark.parametrize("array", [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_an_array_of_another_form_is_refused_and_named(model, array):
    with pytest.raises(ValueError, match=rf"\(height, width, 3\) uint8 in RGB, got .*{array.dtype}"):
        model.predict(array)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (33, 32)])
def test_a_picture_of_any_size_can_be_looked_at(model, size):
    found = model.predict(Image.new("RGB", size), view=SMALL)
    assert torch.isfinite(found.boxes_xyxy).all()


@pytest.mark.parametrize(("short_side", "max_long_side"), [(31, 100), (0, 100), (-5, 100), (200, 199)])
def test_a_config_that_shows_nothing_is_refused_and_names_both_sides(short_side, max_long_side):
    with pytest.raises(ValueError, match=rf"got {short_side} and\s+{max_long_side}"):
        ViewConfig(short_side=short_side, max_long_side=max_long_side)


def test_the_smallest_sound_config_is_accepted():
    assert ViewConfig(short_side=32, max_long_side=32).short_side == 32
