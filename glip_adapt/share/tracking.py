"""Follow objects through frames: detections of each, joined by ByteTrack (arXiv 2110.06864) of ``trackers``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import Detections
from glip_adapt.engine.detector import AnyImage, Detector
from glip_adapt.share.detecting import THRESHOLD
from glip_adapt.share.interop import to_supervision
from glip_adapt.share.prelabels import prelabels

_FAINT = 0.5  # share of the threshold of its class that a box needs to continue a track


@dataclass(frozen=True)
class Tracks:
    """Objects in one frame.

    Attributes:
        detections: one box for each object, in the order of the numbers.
        numbers: of the tracks, from 1; an object keeps its number from frame to frame.
    """

    detections: Detections
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)


def track(
    model: Detector,
    frames: Iterable[AnyImage],
    *,
    threshold: float | None = None,
    rate: float = 25.0,
    view: ViewConfig | None = None,
) -> Iterator[Tracks]:
    """Follow objects through the frames of a video, and tell their boxes and numbers frame by frame.

    A track starts with a box that reaches the threshold of its class and has a second one in the next frame; it is told
    from the second one on. Fainter boxes, down to half of the threshold, only continue it. It ends when nothing has
    continued it for a second. Of several classes on one place, the best score counts; a track keeps its class, so that
    things of two classes that meet are not taken for each other.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``. Its text is encoded once.
        frames: in the order of time; see ``AnyImage``. They are looked at one after the other, as they are asked for.
        threshold: lowest score in [0, 1] of a box that starts a track; by default that of its class in
            ``model.thresholds``, or 0.3 if the model holds none.
        rate: frames per second of ``frames``.
        view: resizing and precision; by default those of the trunk.

    Yields:
        For each frame its tracks, possibly none.

    Raises:
        RuntimeError: if the package ``trackers`` is not installed.
        ValueError: if ``rate`` is not above 0; later, as ``model.predict``.
    """
    if not rate > 0:
        raise ValueError(f"Expected a number of frames per second above 0, got {rate}.")
    limits = model.thresholds or dict.fromkeys(model.class_names, THRESHOLD)
    if threshold is not None:
        limits = dict.fromkeys(model.class_names, threshold)
    trackers = require_trackers()

    def new_tracker() -> Any:  # a confidence of 1 starts a track, and one of 0 continues it
        return trackers.ByteTrackTracker(frame_rate=rate, track_activation_threshold=0.5, high_conf_det_threshold=0.5)

    return _follow(model, frames, limits, new_tracker, view)


def _follow(
    model: Detector,
    frames: Iterable[AnyImage],
    limits: Mapping[str, float],
    new_tracker: Callable[[], Any],
    view: ViewConfig | None,
) -> Iterator[Tracks]:
    faint = {name: _FAINT * limit for name, limit in limits.items()}
    tracker_of: dict[int, Any] = {}  # by label; a class has one from its first box on
    number_of: dict[tuple[int, int], int] = {}  # by label, and by number in its tracker
    for frame in frames:
        found = model.predict(frame, view=view)
        found = found.select(prelabels(found, faint))
        for label in sorted(set(found.labels.tolist()) - tracker_of.keys()):
            tracker_of[label] = new_tracker()
        row_of: dict[int, int] = {}
        for label, tracker in tracker_of.items():
            for row, known in _joined(tracker, found, (found.labels == label).nonzero().squeeze(1), limits):
                row_of[number_of.setdefault((label, known), len(number_of) + 1)] = row
        numbers = sorted(row_of)
        rows = found.labels.new_tensor([row_of[number] for number in numbers])
        yield Tracks(found.select(rows), tuple(numbers))


def _joined(tracker: Any, found: Detections, rows: Tensor, limits: Mapping[str, float]) -> Iterator[tuple[int, int]]:
    """Yield row and track, from 0, of the detections of one class that belong to a track."""
    given = to_supervision(found.select(rows))
    given.confidence = found.reach(limits)[rows].float().numpy()  # thresholds differ by class, ByteTrack knows one
    given.data["row"] = rows.numpy()
    followed = tracker.update(given)
    if len(followed):
        for row, known in zip(followed.data["row"].tolist(), followed.tracker_id.tolist(), strict=True):
            if known >= 0:
                yield row, known


def require_trackers() -> Any:
    """Return the package ``trackers``; RuntimeError if it is not installed."""
    try:
        import trackers
    except ModuleNotFoundError as error:
        raise RuntimeError("Tracks need the package trackers: pip install 'glip-adapt[track]'.") from error
    return trackers
