"""Tracks: numbers that stay, thresholds of classes, scores on a rendered video; and the score itself, by hand."""

import importlib.util
import sys

import pytest
import torch
from pictogram_video import NAMES, render_video
from tracking_scores import hota, score_tracks

from glip_adapt import attach, load_trunk, track
from glip_adapt.core.structures import Detections

needs_trackers = pytest.mark.skipif(importlib.util.find_spec("trackers") is None, reason="needs the extra track")
BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


class Scripted:
    """A detector that finds what a list says: for each frame (class, score, box) of each object."""

    class_names = ("owl", "ant")
    thresholds = None

    def __init__(self, script):
        self.script = script

    def predict(self, number, view=None):
        objects = self.script[number]
        return Detections(
            torch.tensor([box for *_, box in objects]).reshape(-1, 4),
            torch.tensor([score for _, score, _ in objects]).reshape(-1),
            torch.tensor([self.class_names.index(name) for name, *_ in objects], dtype=torch.int64),
            self.class_names,
        )


def numbers(script, **options):
    """Return the numbers of the tracks of each frame."""
    return [tracks.numbers for tracks in track(Scripted(script), range(len(script)), **options)]


@needs_trackers
class TestTrack:
    def test_an_object_has_one_number_from_its_second_box_on(self):
        steady = [("owl", 0.9, BOX)]
        assert numbers([steady] * 4) == [(), (1,), (1,), (1,)]
        assert numbers([[], steady, steady, [], steady]) == [(), (), (1,), (), (1,)]
        assert numbers([[], []]) == [(), ()]
        assert numbers([]) == []

    def test_what_is_seen_once_is_no_track_and_numbers_are_not_taken_twice(self):
        flash, steady = ("owl", 0.9, FAR), ("owl", 0.9, BOX)
        assert numbers([[flash], [], [steady], [steady], [steady, flash], [steady, flash]]) == [
            *((), (), (), (1,), (1,), (1, 2))
        ]

    def test_a_faint_box_continues_a_track_and_starts_none(self):
        sure, faint, fainter = (("owl", score, BOX) for score in (0.31, 0.16, 0.14))
        assert numbers([[sure], [sure], [faint], [faint]]) == [(), (1,), (1,), (1,)]
        assert numbers([[sure], [sure], [fainter]]) == [(), (1,), ()]
        assert numbers([[faint], [faint], [faint]]) == [(), (), ()]
        assert numbers([[faint], [faint], [faint]], threshold=0.1) == [(), (1,), (1,)]

    def test_each_class_has_the_threshold_of_its_own(self, monkeypatch):
        monkeypatch.setattr(Scripted, "thresholds", {"owl": 0.9, "ant": 0.1})
        frame = [("owl", 0.8, BOX), ("ant", 0.2, FAR)]
        (*_, last) = track(Scripted([frame] * 3), range(3))
        assert last.numbers == (1,)
        assert last.detections.class_names[last.detections.labels[0]] == "ant"

    def test_two_classes_that_change_places_keep_their_numbers(self):
        before, after = [("owl", 0.9, BOX), ("ant", 0.9, FAR)], [("owl", 0.9, FAR), ("ant", 0.9, BOX)]
        found = list(track(Scripted([before, before, after, after]), range(4)))
        classes = [dict(zip(t.numbers, t.detections.labels.tolist(), strict=True)) for t in found]
        assert classes[1] == {1: 0, 2: 1}
        assert classes[3] == {3: 0, 4: 1}  # too far for the same object; never the number of the other class

    def test_a_track_ends_after_a_second(self):
        there, gone = [("owl", 0.9, BOX)], []
        script = [there, there, *[gone] * 12, there, there]
        assert numbers(script, rate=20.0)[-1] == (1,)
        assert numbers(script, rate=5.0)[-1] == (2,)

    def test_frames_are_looked_at_as_they_are_asked_for(self):
        drawn = []

        def frames():
            for number in range(3):
                drawn.append(number)
                yield number

        found = track(Scripted([[]] * 3), frames())
        assert drawn == []
        next(found)
        assert drawn == [0]

    def test_a_rate_must_be_above_zero(self):
        with pytest.raises(ValueError, match="above 0"):
            track(Scripted([]), [], rate=0.0)

    def test_the_text_is_encoded_once(self, monkeypatch):
        model = attach(load_trunk("glip-nano"), "zero_shot", classes=NAMES)
        real, calls = model.network.encode_text, []
        monkeypatch.setattr(model.network, "encode_text", lambda tokens: calls.append(1) or real(tokens))
        list(track(model, render_video(3)[0]))
        assert len(calls) <= 1

    @pytest.mark.parametrize(
        ("meets", "every", "least_mota", "least_hota"),
        [(False, 1, 0.95, 0.9), (False, 2, 0.9, 0.87), (True, 1, 0.8, 0.7)],
    )
    def test_pictograms_are_followed(self, meets, every, least_mota, least_hota):
        model = attach(load_trunk("glip-nano"), "zero_shot", classes=NAMES)
        images, truth = render_video(meets=meets)
        found = [
            dict(zip(tracks.numbers, tracks.detections.boxes_xyxy.tolist(), strict=True))
            for tracks in track(model, images[::every], rate=25 / every)
        ]
        score = score_tracks(found, truth[::every])
        assert score.mota >= least_mota  # measured: 0.975, 0.950, 0.858
        assert hota(found, truth[::every]) >= least_hota  # measured: 0.921, 0.897, 0.750
        assert score.switches <= meets


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(RuntimeError, match=r"glip-adapt\[track\]"):
        track(Scripted([]), [])


class TestScore:
    def test_each_kind_of_error_counts_once(self):
        half = (0.0, 5.0, 10.0, 15.0)  # IoU with BOX is a third
        truth = [{1: BOX, 2: FAR}] * 4
        found = [
            {7: BOX, 8: FAR},  # right
            {7: BOX},  # a miss
            {9: BOX, 8: FAR},  # a switch
            {9: half, 8: FAR},  # a miss and a false alarm
        ]
        score = score_tracks(found, truth)
        assert (score.truth, score.misses, score.false_alarms, score.switches) == (8, 2, 1, 1)
        assert score.mota == pytest.approx(0.5)

    def test_a_pair_stays_together_while_it_can_and_nothing_found_scores_zero(self):
        near = (1.0, 0.0, 11.0, 10.0)
        assert score_tracks([{7: BOX}, {7: near, 8: BOX}], [{1: BOX}, {1: BOX}]).switches == 0
        assert score_tracks([{}, {}], [{1: BOX}, {1: BOX}]).mota == 0
        assert score_tracks([{3: BOX}, {}, {4: BOX}], [{1: BOX}] * 3).switches == 1  # also after a gap


class TestHota:
    def test_a_switch_halfway_halves_association(self):
        truth = [{1: BOX, 2: FAR}] * 4
        assert hota([{7: BOX, 8: FAR}] * 4, truth) == pytest.approx(1)
        assert hota([{7: BOX}] * 2 + [{8: BOX}] * 2, [{1: BOX}] * 4) == pytest.approx(0.5**0.5)

    def test_an_object_found_in_half_of_its_frames_halves_both(self):
        assert hota([{7: BOX}, {7: BOX}, {}, {}], [{1: BOX}] * 4) == pytest.approx(0.5)

    def test_what_is_found_and_not_there_lowers_detection_alone(self):
        assert hota([{7: BOX, 8: FAR}] * 4, [{1: BOX}] * 4) == pytest.approx(0.5**0.5)

    def test_a_box_counts_up_to_its_overlap(self):
        third = (0.0, 5.0, 10.0, 15.0)  # IoU with BOX: hits at 0.05, … 0.3
        assert hota([{7: third}] * 2, [{1: BOX}] * 2) == pytest.approx(6 / 19)

    def test_nothing_found_scores_zero(self):
        assert hota([{}, {}], [{1: BOX}] * 2) == 0
        assert hota([{}], [{}]) == 1
