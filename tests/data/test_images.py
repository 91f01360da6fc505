"""Images as people see them, and files that are none."""

import contextlib
import io
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from glip_adapt.data.images import FORMATS, load_rgb, read_header


def save_with_tag(path, tag, size=(7, 5)):
    """Write an image whose upper left pixels are red before it is turned."""
    exif = Image.Exif()
    exif[274] = tag
    image = Image.new("RGB", (10 * size[0], 10 * size[1]))
    image.paste((255, 0, 0), (0, 0, 20, 10))
    image.save(path, exif=exif)
    return Image.open(path)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_image_without_declared_size_is_turned_as_pillow_turns_it(tmp_path, tag, suffix):
    stored = save_with_tag(tmp_path / f"x.{suffix}", tag)
    expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    shown = load_rgb(tmp_path / f"x.{suffix}")
    assert np.array_equal(np.asarray(shown), expected)
    assert read_header(tmp_path / f"x.{suffix}").size_hw == (shown.height, shown.width)


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_the_declared_size_tells_whether_the_tag_is_applied(tmp_path, tag):
    path = tmp_path / "x.jpg"
    save_with_tag(path, tag)
    assert load_rgb(path, (70, 50)).size == (50, 70)  # boxes drawn on the turned image
    assert load_rgb(path, (50, 70)).size == (70, 50)  # on the stored one
    assert read_header(path, (50, 70)).applied == 1
    assert load_rgb(path, (700, 500)).size == (50, 70)  # of another scale, yet upright
    assert load_rgb(path, (60, 60)).size == (50, 70)


def test_an_image_of_several_frames_from_a_phone_opens(tmp_path):
    frame = Image.new("RGB", (8, 6), (9, 9, 9))
    frame.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[frame.copy()])
    assert load_rgb(tmp_path / "x.jpg").size == (8, 6)


def test_16_bits_become_8(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"x.{suffix}")
        assert np.asarray(load_rgb(tmp_path / f"x.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 128 * 256, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
    ],
)
def test_wide_grey_values_are_read_by_their_range(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert np.asarray(load_rgb(tmp_path / "x.tif"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [[-1.0, 2.0], [0.0, 300.5], [np.nan, 1.0]])
def test_values_of_no_known_range_are_refused(tmp_path, values):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"its grey values lie between .*expected 0 to 1, 0 to 255, or 16 bits"):
        load_rgb(tmp_path / "x.tif")


def test_what_is_transparent_is_white_and_hides_its_colour(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.save(tmp_path / "x.png")
    assert np.asarray(load_rgb(tmp_path / "x.png")).tolist() == [[[255, 255, 255], [10, 20, 30]]]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps", "photo.png"])
def test_no_image_starts_a_program(tmp_path, monkeypatch, name):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match="common format such as JPEG or PNG"):
        load_rgb(tmp_path / name)
    assert not (tmp_path / "started").exists()


def test_every_format_is_one_that_pillow_knows():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert not {"EPS", "WMF", "FITS", "HDF5", "GRIB", "BUFR", "DDS"} & set(FORMATS)


def test_a_format_whose_reader_gives_up_is_no_image(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "DDS")
    content = bytearray(buffer.getvalue())
    content[80:84] = (0x4000).to_bytes(4, "little")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="not an image"):
        load_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_every_mode_open_as_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(tmp_path / f"x.{suffix}")
    image = load_rgb(tmp_path / f"x.{suffix}")
    assert (image.mode, image.size) == ("RGB", (7, 5))
    assert np.asarray(image).min() == 255


def test_an_image_that_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="No image at"):
        load_rgb(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="not an image"):
        load_rgb(tmp_path / "text.png")


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it then survives
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from(["png", "jpg", "bmp", "gif", "webp", "tif"]),
    noise=st.binary(max_size=12),
    at=st.floats(0, 1),
)
def test_damaged_images_raise_nothing_but_valueerror(tmp_path, suffix, noise, at):
    path = tmp_path / f"x.{suffix}"
    Image.effect_noise((16, 12), 50).convert("RGB").save(path)
    content = path.read_bytes()
    cut = int(at * len(content))
    path.write_bytes(content[:cut] + noise + content[cut + 2 * len(noise) :])
    with contextlib.suppress(ValueError):
        load_rgb(path)
