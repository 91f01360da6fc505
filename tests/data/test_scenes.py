"""Rendered scenes: what is drawn, and where its boxes are."""

from dataclasses import replace

import numpy as np
import pytest

from glip_adapt.data import glyphs, glyphs13, scenes

NONE = (0, 0, 0)
CLEAN = replace(scenes.TRAINING_STYLE, backgrounds=("plain",), clutter=NONE, blur=NONE, noise=NONE)
ALL = (*glyphs.seen_glyphs(), *glyphs.unseen_glyphs())


def draw(count=5, colours=None, style=scenes.TRAINING_STYLE, seed=0, size_hw=(160, 160)):
    generator = np.random.default_rng(seed)
    seen = glyphs.seen_glyphs()
    chosen = [seen[position] for position in generator.integers(len(seen), size=count)]
    return scenes.render_scene(chosen, colours, style, generator, size_hw)


def foreground(image):
    """Return how far each pixel is from the most frequent colour, relative to the farthest."""
    pixels = np.asarray(image).astype(int)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    distances = np.abs(pixels - colours[counts.argmax()]).sum(-1)
    return distances / distances.max()


def test_a_generator_state_gives_one_scene():
    first, second, other = draw(seed=1), draw(seed=1), draw(seed=2)
    assert first.image.tobytes() == second.image.tobytes() != other.image.tobytes()
    assert np.array_equal(first.boxes_xyxy, second.boxes_xyxy)
    assert (first.names, first.colours) == (second.names, second.colours)


@pytest.mark.parametrize("style", [scenes.TRAINING_STYLE, *(spec.style for spec in glyphs13.glyph_sets())])
def test_boxes_lie_in_the_image(style):
    for seed in range(5):
        scene = draw(9, style=style, seed=seed, size_hw=(128, 176))
        assert scene.image.size == (176, 128)
        assert scene.boxes_xyxy.dtype == np.float32
        assert scene.boxes_xyxy.shape == (len(scene.names), 4) == (len(scene.colours), 4)
        assert (scene.boxes_xyxy >= 0).all()
        assert (scene.boxes_xyxy[:, 2:] <= (175, 127)).all()
        assert (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2] >= 2).all()


def test_a_box_is_tight_around_what_is_seen():
    for seed in range(40):
        scene = draw(1, style=CLEAN, seed=seed)
        seen = foreground(scene.image)
        x1, y1, x2, y2 = scene.boxes_xyxy[0].astype(int)
        inside = seen[y1 : y2 + 1, x1 : x2 + 1] > 0.15
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # noqa: PT018
        seen[y1 : y2 + 1, x1 : x2 + 1] = 0
        assert seen.max() < 0.4


def test_a_mask_is_where_most_of_a_pixel_has_the_colour_of_the_object():
    for seed in range(10):
        scene = draw(1, style=CLEAN, seed=seed)
        (mask,) = scene.masks()
        assert (mask != (foreground(scene.image) > 0.5)).sum() <= 1 + mask.sum() // 50  # values between are rounded


def test_a_later_object_covers_the_mask_of_an_earlier_one():
    scene = draw(20, style=replace(CLEAN, size_px=(40, 64)), seed=2)
    alone = [replace(scene, alphas=(alpha,)).masks()[0] for alpha in scene.alphas]
    assert scene.masks().sum(axis=0).max() == 1
    assert np.sum(alone, axis=0).max() > 1
    assert (scene.masks().any(axis=0) == np.any(alone, axis=0)).all()


def test_all_that_is_drawn_has_a_box_and_boxes_hardly_overlap():
    for seed in range(20):
        scene = draw(9, style=CLEAN, seed=seed)
        seen = foreground(scene.image)
        cover = np.zeros((160, 160), int)
        for x1, y1, x2, y2 in scene.boxes_xyxy.astype(int):
            cover[y1 : y2 + 1, x1 : x2 + 1] += 1
        assert seen[cover == 0].max() < 0.4
        assert (cover > 1).sum() < 0.1 * (cover > 0).sum()


def test_given_colours_are_used_and_seen():
    scene = draw(2, ["red", "white"], CLEAN, seed=3)
    assert scene.colours == ("red", "white")
    seen = foreground(scene.image)
    assert all(seen[y1 : y2 + 1, x1 : x2 + 1].max() > 0.3 for x1, y1, x2, y2 in scene.boxes_xyxy.astype(int))
    with pytest.raises(ValueError):
        draw(3, ["red"])


def test_pre_training_never_shows_a_held_out_pair():
    drawn = [draw(8, seed=seed) for seed in range(30)]
    assert not any(
        scenes.is_held_out(*pair) for scene in drawn for pair in zip(scene.colours, scene.names, strict=True)
    )


def test_what_finds_no_place_is_left_out():
    crowded = replace(CLEAN, size_px=(70, 70))
    assert 0 < len(draw(20, style=crowded).names) < 20
    assert draw(3, style=crowded, size_hw=(40, 40)).boxes_xyxy.shape == (0, 4)


def test_a_scene_without_glyphs_and_one_too_large():
    assert draw(0).boxes_xyxy.shape == (0, 4)
    with pytest.raises(ValueError, match="288"):
        draw(1, size_hw=(160, 300))


def test_a_fifth_of_the_colour_and_name_pairs_is_held_out_for_good():
    pairs = [(colour, glyph.name) for colour in scenes.COLOURS for glyph in ALL]
    assert 0.18 < np.mean([scenes.is_held_out(*pair) for pair in pairs]) < 0.22
    per_colour = [np.mean([scenes.is_held_out(colour, glyph.name) for glyph in ALL]) for colour in scenes.COLOURS]
    assert 0.12 < min(per_colour) <= max(per_colour) < 0.28
    red = [name for name in ("anchor", "cloud", "dollar", "gear", "leo", "umbrella") if scenes.is_held_out("red", name)]
    assert red == ["cloud", "dollar", "gear"]
