"""Follow objects through a video file: an annotated video, a MOT file and a table of the boxes, in one folder."""

from __future__ import annotations

import csv
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from glip_adapt.core.files import scratch_folder
from glip_adapt.core.settings import ViewConfig
from glip_adapt.engine.detector import Detector
from glip_adapt.engine.draw import draw_tracks
from glip_adapt.share.tracking import Tracks, track
from glip_adapt.share.videos import Footage, video_writer

VIDEO, MOT, TABLE = "video.mp4", "mot.txt", "tracks.csv"
CSV_HEADER = ("frame", "seconds", "track", "class", "score", "xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class TrackingResult:
    """What came of a video.

    Attributes:
        folder: with ``video.mp4``, ``mot.txt`` and ``tracks.csv``.
        frames: that were looked at.
        boxes: in all of them.
        tracks: class name → number of tracks, by their class at their end.
        seconds: that all of it took: decoding, detection, tracking, drawing, encoding.
    """

    folder: Path
    frames: int
    boxes: int
    tracks: dict[str, int]
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """Frames that were looked at in a second."""
        return self.frames / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Return the result for programs."""
        facts = {"folder": str(self.folder), "frames": self.frames, "boxes": self.boxes, "tracks": self.tracks}
        return facts | {"seconds": round(self.seconds, 3), "frames_per_second": round(self.frames_per_second, 3)}


def check_new(out: Path) -> None:
    """Check that a folder is new or empty; FileExistsError if it is not."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder. Name a new one (--out).")


def track_footage(
    model: Detector,
    footage: Footage,
    out: Path,
    *,
    threshold: float | None = None,
    view: ViewConfig | None = None,
    on_frame: Callable[[], None] | None = None,
) -> TrackingResult:
    """Follow objects through a video, and write what is found into a new folder, which stands there when all is done.

    ``video.mp4`` shows the frames that were looked at, with boxes, at the speed of the source. ``mot.txt`` has a line
    ``frame, track, left, top, width, height, score, -1, -1, -1`` for each box, as results of MOTChallenge do, and
    ``tracks.csv`` a row with the class. Frames count from 1 in the source, boxes are in pixels from 0.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``.
        footage: from ``open_footage``.
        out: new or empty folder.
        threshold: as ``track``.
        view: as ``track``.
        on_frame: called after each frame.

    Raises:
        FileExistsError: if ``out`` holds something.
        ValueError, OSError: if a frame cannot be read, frames differ in size, or a file cannot be written.
    """
    check_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    frames, boxes, class_of = 0, 0, dict[int, str]()
    with scratch_folder(out) as scratch:
        (folder := scratch / out.name).mkdir()
        with ExitStack() as files:
            draw = files.enter_context(video_writer(folder / VIDEO, footage.rate / footage.every))
            write = files.enter_context(_tables(folder, footage.rate))
            for number, image, tracks in _followed(model, footage, threshold, view):
                frames, boxes = frames + 1, boxes + len(tracks)
                class_of |= dict(zip(tracks.numbers, _names(tracks), strict=True))
                draw(draw_tracks(image, tracks.detections, tracks.numbers))
                write(number, tracks)
                if on_frame:
                    on_frame()
        os.replace(folder, out)
    seconds = time.perf_counter() - started
    counted = dict(sorted(Counter(class_of.values()).items()))
    return TrackingResult(folder=out, frames=frames, boxes=boxes, tracks=counted, seconds=seconds)


def _followed(
    model: Detector, footage: Footage, threshold: float | None, view: ViewConfig | None
) -> Iterator[tuple[int, Image.Image, Tracks]]:
    """Yield number, image and tracks of each frame."""
    waiting: list[tuple[int, Image.Image]] = []

    def images() -> Iterator[Image.Image]:
        for number, image in footage.images:
            waiting.append((number, image))
            yield image

    for tracks in track(model, images(), threshold=threshold, rate=footage.rate / footage.every, view=view):
        number, image = waiting.pop()
        yield number, image, tracks


@contextmanager
def _tables(folder: Path, rate: float) -> Iterator[Callable[[int, Tracks], None]]:
    """Yield a function that writes the boxes of a frame into both tables."""
    with (
        (folder / MOT).open("w", encoding="utf-8", newline="\n") as mot,
        (folder / TABLE).open("w", encoding="utf-8", newline="") as table,
    ):
        rows = csv.writer(table)
        rows.writerow(CSV_HEADER)

        def write(frame: int, tracks: Tracks) -> None:
            found = tracks.detections
            columns = (tracks.numbers, _names(tracks), found.scores.tolist(), found.boxes_xyxy.tolist())
            for number, name, score, (left, top, right, bottom) in zip(*columns, strict=True):
                edges = [f"{edge:.2f}" for edge in (left, top, right, bottom)]
                rows.writerow([frame, f"{(frame - 1) / rate:.3f}", number, name, f"{score:.4f}", *edges])
                box = f"{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f}"
                mot.write(f"{frame},{number},{box},{score:.4f},-1,-1,-1\n")

        yield write


def _names(tracks: Tracks) -> list[str]:
    return [tracks.detections.class_names[label] for label in tracks.detections.labels.tolist()]
