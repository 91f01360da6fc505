"""Video files: frames in and out, in order and upright; what is no video is one message."""

import struct
import sys

import numpy as np
import pytest
from PIL import Image

from glip_adapt.share.videos import open_footage, video_writer

av = pytest.importorskip("av")


def grey(value, size=(48, 32)):
    return Image.new("RGB", size, (value,) * 3)


def write(file, images, rate=10.0):
    with video_writer(file, rate) as add:
        for image in images:
            add(image)
    return file


def values(footage):
    return [(number, round(float(np.asarray(image).mean()))) for number, image in footage.images]


def test_frames_come_back_in_order_with_rate_and_number(tmp_path):
    file = write(tmp_path / "a.mp4", [grey(20 * n) for n in range(1, 8)], 12.5)
    footage = open_footage(file)
    assert (footage.rate, footage.total, footage.taken) == (12.5, 7, 7)
    assert [(n, pytest.approx(20 * n, abs=3)) for n in range(1, 8)] == values(footage)
    every = open_footage(file, every=3)
    assert every.taken == 3
    assert [number for number, _ in every.images] == [1, 4, 7]
    assert open_footage(file, rate=30.0).rate == 30.0


def test_an_odd_size_is_filled_up_and_sizes_may_not_change(tmp_path):
    file = write(tmp_path / "a.mp4", [grey(100, (33, 21))])
    ((_, image),) = open_footage(file).images
    assert image.size == (34, 22)
    with pytest.raises(ValueError, match="Frame 2 has 40 × 32 pixels, the first one 48 × 32"):
        write(tmp_path / "b.mp4", [grey(1), grey(1, (40, 32))])


def test_a_video_of_a_turned_phone_is_upright(tmp_path):
    image = grey(20)
    image.paste((220,) * 3, (0, 0, 24, 32))  # the left half is light
    file = write(tmp_path / "a.mp4", [image])
    content = bytearray(file.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", content[start : start + 36]) == (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    quarter = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)  # (x, y) is shown at (−y, x): clockwise
    content[start : start + 36] = struct.pack(">9i", *quarter)
    file.write_bytes(content)
    ((_, shown),) = open_footage(file).images
    assert shown.size == (32, 48)
    rows = np.asarray(shown.convert("L")).mean(axis=1)
    assert rows[:20].min() > 200 > 40 > rows[-20:].max()  # left is up now


def test_images_of_a_folder_are_in_the_order_of_numbers(tmp_path):
    for number in (10, 2, 1):
        grey(10 * number).save(tmp_path / f"frame {number}.png")
    footage = open_footage(tmp_path)
    assert (footage.rate, footage.total) == (25.0, 3)
    assert values(footage) == [(1, 10), (2, 20), (3, 100)]
    assert values(open_footage(tmp_path, every=2)) == [(1, 10), (3, 100)]


def test_what_is_no_video_is_one_message(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        open_footage(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="no image in"):
        open_footage(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be read as a video .*Give a file such as MP4"):
        open_footage(tmp_path / "text.mp4")
    grey(1).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="is one image"):
        open_footage(tmp_path / "one.png")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="only sound"):
        open_footage(tmp_path / "sound.wav")


def test_a_cut_video_ends_early_and_one_without_a_whole_frame_is_refused(tmp_path, caplog):
    content = write(tmp_path / "whole.mkv", [grey(n % 250) for n in range(100)]).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    assert 0 < len(values(open_footage(tmp_path / "cut.mkv"))) < 100
    content = bytearray(write(tmp_path / "whole.mp4", [grey(9)] * 3).read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    (tmp_path / "zeros.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="no frame can be decoded"):
        list(open_footage(tmp_path / "zeros.mp4").images)


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RuntimeError, match=r"glip-adapt\[track\]"):
        open_footage(tmp_path / "a.mp4")
