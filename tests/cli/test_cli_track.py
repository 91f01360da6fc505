"""The verb ``track``: its files, what it prints, and one message for each bad input."""

import csv
import importlib.util
import json
import sys

import pytest
from pictogram_video import NAMES, render_video
from tracking_scores import score_tracks

from glip_adapt.share.track_files import CSV_HEADER, track_footage
from glip_adapt.share.videos import open_footage, video_writer

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("av", "trackers")), reason="needs the extra track"
)
LOOK_FOR = ("--classes", ", ".join(NAMES), "--trunk", "glip-nano")


@pytest.fixture(scope="module")
def truth():
    return render_video(12)[1]


@pytest.fixture
def video(tmp_path):
    """Twelve frames of pictograms."""
    with video_writer(tmp_path / "toys.mp4", 10.0) as add:
        for image in render_video(12)[0]:
            add(image)
    return tmp_path / "toys.mp4"


@pytest.fixture
def frames(tmp_path):
    """The same as images."""
    (tmp_path / "toys").mkdir()
    for number, image in enumerate(render_video(12)[0], start=1):
        image.save(tmp_path / "toys" / f"{number}.png")
    return tmp_path / "toys"


def read_mot(file):
    """Return the boxes by track of each frame that has some."""
    found = {}
    for line in file.read_text().splitlines():
        frame, number, left, top, width, height, score, *rest = map(float, line.split(","))
        assert rest == [-1, -1, -1]
        assert 0 < score <= 1
        found.setdefault(int(frame), {})[int(number)] = (left, top, left + width, top + height)
    return found


def test_a_video_becomes_a_video_a_mot_file_and_a_table(glip, video, tmp_path, truth, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = glip("track", video, *LOOK_FOR)
    assert code == 0, err
    assert "12 frames in" in out
    assert "a second → runs/track/toys" in out
    folder = tmp_path / "runs" / "track" / "toys"
    assert sorted(path.name for path in folder.iterdir()) == ["mot.txt", "tracks.csv", "video.mp4"]
    found = read_mot(folder / "mot.txt")
    score = score_tracks([found.get(frame, {}) for frame in range(1, 13)], truth)
    assert score.mota >= 0.85  # of twelve frames, the first has no track yet; the video is compressed
    with (folder / "tracks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_HEADER
    assert {row["class"] for row in rows} == set(NAMES)
    for row in rows:
        assert float(row["seconds"]) == pytest.approx((int(row["frame"]) - 1) / 10, abs=1e-3)
        left, top, right, bottom = found[int(row["frame"])][int(row["track"])]
        edges = [float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")]
        assert edges == pytest.approx([left, top, right, bottom], abs=0.011)
    drawn, plain = open_footage(folder / "video.mp4"), open_footage(video)
    assert (drawn.rate, drawn.total) == (10.0, 12)
    *_, (_, last), (_, before) = *drawn.images, list(plain.images)[-1]
    assert last.tobytes() != before.tobytes()


def test_a_folder_of_images_is_a_video_too_and_frames_may_be_skipped(glip, frames, tmp_path):
    code, out, _ = glip("track", frames, *LOOK_FOR, "--every", "3", "--rate", "6", "--out", tmp_path / "out", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["frames"], told["folder"]) == (4, str(tmp_path / "out"))
    assert set(told["tracks"]) == set(NAMES)
    assert told["frames_per_second"] > 0
    assert set(read_mot(tmp_path / "out" / "mot.txt")) <= {1, 4, 7, 10}
    assert open_footage(tmp_path / "out" / "video.mp4").rate == 2.0


def test_bad_input_is_one_message(glip, video, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    cases = {
        tmp_path / "absent.mp4": "There is no file",
        tmp_path / "nothing": "There is no image in",
        tmp_path / "text.mp4": "cannot be read as a video",
    }
    for source, message in cases.items():
        code, _, err = glip("track", source, *LOOK_FOR, "--out", tmp_path / "out")
        assert (code, message in err, len(err.strip().splitlines())) == (1, True, 1), err
    assert not (tmp_path / "out").exists()
    code, _, err = glip("track", video)
    assert code == 2
    assert "--classes" in err
    code, _, err = glip("track", video, *LOOK_FOR, "--out", tmp_path)
    assert code == 1
    assert "exists and is not an empty folder" in err


def test_without_its_extra_it_says_what_to_install(glip, video, tmp_path, monkeypatch):
    for package in ("trackers", "av"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            code, _, err = glip("track", video, *LOOK_FOR, "--out", tmp_path / "out")
        assert code == 1
        assert "pip install 'glip-adapt[track]'" in err


def test_what_breaks_off_leaves_nothing_behind(frames, tmp_path):
    from glip_adapt import attach, load_trunk

    model = attach(load_trunk("glip-nano"), "zero_shot", classes=NAMES)
    (frames / "5.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"5\.png"):
        track_footage(model, open_footage(frames), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))
