"""Frames of a video file, or of a folder of images; and a video file made of frames. Decoding is that of PyAV."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from glip_adapt.data.images import SUFFIXES, load_rgb
from glip_adapt.share.detecting import find_images

RATE = 25.0
"""Frames per second where nothing states them: of a folder of images, and of a video without time stamps."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Footage:
    """Frames that are decoded as they are asked for.

    Attributes:
        source: video file, or folder of images.
        rate: frames per second of the source.
        total: number of its frames, as far as it is stated; None if it is not.
        every: each so many frames, one is taken, from the first one on.
        images: yields number, from 1, and RGB image of each frame that is taken; once.
    """

    source: Path
    rate: float
    total: int | None
    every: int
    images: Iterator[tuple[int, Image.Image]]

    @property
    def taken(self) -> int | None:
        """Number of frames that are taken, as far as it is known."""
        return None if self.total is None else -(-self.total // self.every)


def open_footage(source: Path, *, every: int = 1, rate: float | None = None) -> Footage:
    """Open a video file, or a folder of images in the order of their names, ``2.jpg`` before ``10.jpg``.

    Args:
        source: video file of any format that FFmpeg reads, or folder of images of one size.
        every: take one of so many frames.
        rate: frames per second of the source; by default those of the video, of a folder ``RATE``.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the folder holds no image, or the file no video that can be read.
        RuntimeError: if PyAV is not installed and the source is a file.
    """
    if source.is_dir():
        paths = sorted(find_images([source]), key=lambda path: _in_order(path.name))
        return Footage(source=source, rate=rate or RATE, total=len(paths), every=every, images=_opened(paths, every))
    if not source.exists():
        raise FileNotFoundError(f"There is no file {source}. Give a video file or a folder of images.")
    if source.suffix.lower() in SUFFIXES:
        raise ValueError(f"{source} is one image. Give a video file or a folder of images; `detect` looks at images.")
    stated, total = _facts(source)
    return Footage(source=source, rate=rate or stated, total=total, every=every, images=_decoded(source, every))


@contextmanager
def video_writer(file: Path, rate: float) -> Iterator[Callable[[Image.Image], None]]:
    """Yield a function that adds an RGB image to a video file; the first one decides about its size.

    Args:
        file: written as H.264 if PyAV comes with an encoder for it, else as MPEG-4; the suffix names the container.
        rate: frames per second.

    Raises:
        ValueError: if an image differs in its size from the first one.
        OSError: if the file cannot be written.
    """
    av = _import_av()
    sizes: list[tuple[int, int]] = []
    with av.open(str(file), "w") as container:
        stream = container.add_stream(
            "libx264" if "libx264" in av.codecs_available else "mpeg4", rate=Fraction(rate).limit_denominator(1000)
        )
        stream.pix_fmt = "yuv420p"  # what players and browsers show

        def add(image: Image.Image) -> None:
            if not sizes:
                stream.width, stream.height = (side + side % 2 for side in image.size)  # colours are of 2 × 2 pixels
            sizes.append(image.size)
            if image.size != sizes[0]:
                raise ValueError(
                    f"Frame {len(sizes)} has {image.width} × {image.height} pixels, the first one {sizes[0][0]} × "
                    f"{sizes[0][1]}. Give frames of one size."
                )
            even = Image.new("RGB", (stream.width, stream.height))
            even.paste(image)
            container.mux(stream.encode(av.VideoFrame.from_image(even)))

        yield add
        container.mux(stream.encode() if sizes else [])


def _facts(file: Path) -> tuple[float, int | None]:
    """Return frames per second of a video file, and their number if it is stated."""
    with _opened_video(file) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or RATE)
        seconds = container.duration / 1e6 if container.duration else 0.0
        return rate, stream.frames or round(seconds * rate) or None


def _decoded(file: Path, every: int) -> Iterator[tuple[int, Image.Image]]:
    """Yield the frames of a video, upright; where it is damaged, it ends with a warning."""
    av, number = _import_av(), 0
    with _opened_video(file) as (container, stream):
        stream.thread_type = "AUTO"
        frames = container.decode(stream)
        while True:
            try:
                frame = next(frames)
            except StopIteration:
                break
            except av.error.FFmpegError as error:
                logger.warning(f"{file}: nothing behind frame {number} can be decoded ({error.strerror}).")
                break
            number += 1
            if (number - 1) % every == 0:
                image = frame.to_image()
                yield number, image.rotate(frame.rotation, expand=True) if frame.rotation else image
    if number == 0:
        raise ValueError(f"{file}: no frame can be decoded. Give a whole video file.")


@contextmanager
def _opened_video(file: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the first video stream of a file; errors as ``open_footage``."""
    av = _import_av()
    try:
        container = av.open(str(file))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(
            f"{file} cannot be read as a video ({error.strerror}). Give a file such as MP4, or a folder of images."
        ) from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{file} holds no pictures, only sound or text. Give a video file or a folder of images.")
        yield container, container.streams.video[0]


def _opened(paths: list[Path], every: int) -> Iterator[tuple[int, Image.Image]]:
    for number, path in islice(enumerate(paths, start=1), 0, None, every):
        yield number, load_rgb(path)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a key by which numbers in names count as numbers."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise RuntimeError("Videos need PyAV: pip install 'glip-adapt[track]'.") from error
    return av
