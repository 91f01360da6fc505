from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_adapt.core.structures import Target
from glip_adapt.data.transforms import View, collate, resize_shape, training_views, view_image, view_target

HERE = Path(__file__).resolve()
PARITY = (HERE.parents[1] / "parity", HERE.parents[2].parent / "shared" / "parity")
GOLDEN = next((folder / "preprocess.npz" for folder in PARITY if (folder / "preprocess.npz").is_file()), None)

sides = st.integers(1, 3000)


@given(height=sides, width=sides, short_side=st.integers(1, 1200), limit=st.integers(1, 2000))
def test_resizing_keeps_the_aspect_within_a_pixel_and_the_limit(height, width, short_side, limit):
    size_hw = resize_shape((height, width), short_side, limit)
    short, long = min(size_hw), max(size_hw)
    ratio = max(height, width) / min(height, width)
    assert 1 <= short <= short_side
    assert abs(long - ratio * short) <= 1 + 1e-6
    assert long <= max(limit + (ratio + 1) / 2, ratio)  # the short side is rounded first, so the long one may overshoot
    assert (size_hw[0] <= size_hw[1]) == (height <= width) or short == long


@given(height=sides, width=sides, short_side=st.integers(1, 1200), limit=st.integers(1, 2000))
def test_the_size_is_that_of_the_public_formula(height, width, short_side, limit):
    ratio = max(height, width) / min(height, width)
    short = short_side if ratio * short_side <= limit else round(limit * min(height, width) / max(height, width))
    if short == 0:  # the public code fails here
        return
    public = (int(short * height / width), short) if width < height else (short, int(short * width / height))
    assert resize_shape((height, width), short_side, limit) == public


@pytest.mark.parametrize(
    ("size_hw", "short_side", "expected"),
    [
        ((480, 640), 800, (800, 1066)),  # 1066.67 is cut, not rounded
        ((640, 480), 800, (1066, 800)),
        ((800, 800), 800, (800, 800)),
        ((400, 1600), 800, (333, 1332)),  # 1333 / 4 = 333.25
        ((2, 4000), 800, (1, 2000)),  # never below one pixel
        ((97, 143), 160, (160, 235)),
    ],
)
def test_hand_computed_sizes(size_hw, short_side, expected):
    assert resize_shape(size_hw, short_side, 1333) == expected


@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    short_side=st.integers(20, 160),
    flip=st.booleans(),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
@settings(max_examples=60, deadline=None)
def test_the_box_bounds_the_painted_rectangle_in_every_view(height, width, short_side, flip, corners):
    x1, x2 = sorted(int(c * (width - 8)) for c in corners[:2])
    y1, y2 = sorted(int(c * (height - 8)) for c in corners[2:])
    x2, y2 = x2 + 7, y2 + 7
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    canvas[y1 : y2 + 1, x1 : x2 + 1] = 255
    target = Target(torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32), torch.tensor([4]))
    view = View(short_side, flip)
    pixels = view_image(Image.fromarray(canvas), view, max_long_side=200)
    moved = view_target(target, (height, width), view, max_long_side=200)
    rows, columns = (pixels[0] > 127).nonzero().unbind(1)
    seen = torch.stack((columns.min(), rows.min(), columns.max(), rows.max())).float()
    scale = max(pixels.shape[1] / height, pixels.shape[2] / width)
    # Corners are scaled as they are, so an inclusive corner may be off by what one pixel has grown to.
    assert (moved.boxes_xyxy[0] - seen).abs().max() <= max(1, scale) + 0.51
    assert moved.labels.tolist() == [4]


def test_a_flipped_view_mirrors_the_pixels_and_the_box():
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    target = Target(torch.tensor([[4.0, 5.0, 13.0, 24.0]]), torch.tensor([0]))
    plain, mirrored = (view_image(image, View(60, flip)) for flip in (False, True))
    moved = view_target(target, (30, 40), View(60, True))
    assert torch.equal(mirrored, plain.flip(2))
    assert moved.boxes_xyxy.tolist() == [[80 - 1 - 26, 10, 80 - 1 - 8, 48]]


def test_the_received_target_stays_as_it_was():
    target = Target(torch.tensor([[4.0, 5.0, 13.0, 24.0]]), torch.tensor([0]))
    view_target(target, (30, 40), View(60, True))
    assert target.boxes_xyxy.tolist() == [[4, 5, 13, 24]]


def test_a_view_of_the_same_size_changes_nothing():
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    pixels = view_image(image, View(30, False))
    assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_pixels_are_uint8_with_channels_first():
    pixels = view_image(Image.new("RGB", (40, 30)), View(15, True))
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 15, 20))


def test_an_image_without_boxes_has_none_afterwards():
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert view_target(nothing, (30, 40), View(15, True)).boxes_xyxy.shape == (0, 4)


def test_only_rgb_is_accepted():
    with pytest.raises(ValueError, match="load_rgb"):
        view_image(Image.new("L", (40, 30)), View(15, False))


@pytest.mark.skipif(GOLDEN is None, reason="preprocess.npz is neither in tests/parity nor in ../shared/parity")
def test_pixels_equal_the_public_preprocessing():
    golden = np.load(GOLDEN)
    image = stand_in_image(int(golden["seed"]), int(golden["height"]), int(golden["width"]))
    view = View(int(golden["min_size"]), False)
    pixels = view_image(Image.fromarray(image), view, int(golden["max_size"]))
    assert tuple(pixels.shape) == tuple(golden["full_shape"])
    mean, std = np.array([103.53, 116.28, 123.675]), np.array([57.375, 57.12, 58.395])
    normalised = (pixels.numpy()[::-1] - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(normalised[:, ::3, ::3], golden["output"], atol=1e-5)


def stand_in_image(seed, height, width):
    """The input image of the golden file, as its README describes it."""
    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    canvas = np.zeros((height, width, 3))
    for _ in range(12):
        centre_y, centre_x = generator.uniform(0, height), generator.uniform(0, width)
        radius = generator.uniform(8, 0.4 * min(height, width))
        colour = generator.uniform(-120, 120, size=3)
        canvas += np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * radius**2))[..., None] * colour
    canvas += 128 + generator.normal(0, 6, size=canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


@given(sizes=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_batch_holds_every_image_and_pads_with_zeros(sizes):
    images = [torch.randint(1, 256, (3, *size_hw), dtype=torch.uint8) for size_hw in sizes]
    batch = collate(images)
    assert batch.image_sizes_hw == tuple(sizes)
    assert batch.pixels.dtype == torch.uint8
    height, width = batch.pixels.shape[2:]
    assert (height % 32, width % 32) == (0, 0)
    assert height - 32 < max(h for h, _ in sizes) <= height
    assert width - 32 < max(w for _, w in sizes) <= width
    for slot, image in zip(batch.pixels, images, strict=True):
        _, h, w = image.shape
        assert torch.equal(slot[:, :h, :w], image)
        assert slot[:, h:].sum() == slot[:, :, w:].sum() == 0


def test_a_batch_of_nothing_or_of_floats_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        collate([])
    with pytest.raises(ValueError, match="uint8"):
        collate([torch.zeros(3, 4, 4)])
    with pytest.raises(ValueError, match="uint8"):
        collate([torch.zeros(1, 4, 4, dtype=torch.uint8)])


def test_training_draws_from_ten_views():
    views = training_views((480, 560, 640, 720, 800), flip=True)
    assert len(set(views)) == 10
    assert {view.flip for view in views} == {False, True}
    assert training_views([480], flip=False) == (View(480, False),)


def test_senseless_views_are_refused():
    with pytest.raises(ValueError, match="short side"):
        training_views((), flip=True)
    with pytest.raises(ValueError, match="at least 1"):
        View(0, False)
