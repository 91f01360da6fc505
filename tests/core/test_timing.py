"""Seconds by stage: nested stages count for themselves, and nothing is counted unless someone records."""

import contextlib
import threading

import pytest

from glip_adapt.core import timing
from glip_adapt.core.timing import recorded, stage


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: ``clock(seconds)``."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_a_stage_inside_another_counts_for_itself_only(clock):
    with recorded() as seconds:
        clock(100)  # outside of any stage
        with stage("training"):
            clock(2)
            with stage("decoding"):
                clock(3)
            clock(4)
        with stage("training"):
            clock(5)
    assert seconds == {"training": 11, "decoding": 3}


def test_a_stage_that_fails_has_taken_its_time(clock):
    with recorded() as seconds:
        with contextlib.suppress(KeyError), stage("training"), stage("scoring"):
            clock(2)
            raise KeyError
        with stage("test"):
            clock(1)
    assert seconds == {"scoring": 2, "training": 0, "test": 1}


def test_without_a_recording_a_stage_does_nothing(clock):
    with stage("training"):
        clock(2)
    with recorded() as seconds:
        pass
    assert seconds == {}


def test_an_inner_recording_keeps_its_stages_to_itself(clock):
    with recorded() as outer, stage("whole"):
        with recorded() as inner, stage("part"):
            clock(2)
        clock(1)
    assert (inner, outer) == ({"part": 2}, {"whole": 3})


def test_another_thread_counts_nothing(clock):
    def work():
        with stage("decoding"):
            clock(7)

    with recorded() as seconds:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seconds == {}
