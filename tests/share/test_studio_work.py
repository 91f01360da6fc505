"""What the studio has computed, by a tiny detector of random weights."""

from types import SimpleNamespace

import pytest
from labelled import make_split

from glip_adapt import attach
from glip_adapt.share.studio import work as studio_work
from glip_adapt.share.studio.jobs import Job
from glip_adapt.share.studio.labels import LabelStore
from glip_adapt.share.studio.work import Work

NAMES = ["owl", "tawny owl"]


@pytest.fixture
def work(tmp_path, tiny_trunk):
    make_split(tmp_path / "pictures", [[], [], [], []])
    return Work(LabelStore(tmp_path / "pictures"), tiny_trunk)


def by_name(work):
    return {work.store.name_of(key): key for key in work.store.pictures}


def test_boxes_by_names_are_in_pixels_of_the_picture_and_one_for_each_place(work):
    found = work.find(by_name(work)["1.png"], NAMES, "")
    assert found
    assert {entry["name"] for entry in found} <= set(NAMES)
    for entry in found:
        x, y, w, h = entry["box"]
        assert min(x, y) >= 0
        assert x + w <= 40 + 1e-4
        assert y + h <= 30 + 1e-4
        assert entry["shown"] == (entry["score"] >= 0.3)
    with pytest.raises(ValueError, match="Name at least one class"):
        work.find(by_name(work)["1.png"], [], "")


def test_before_and_after_are_those_of_the_same_classes(work, tiny_trunk):
    model = attach(tiny_trunk, "prompt", classes=NAMES)
    for _, tensor in model.owned_tensors().items():
        tensor.data.add_(0.5)
    model.thresholds = dict.fromkeys(NAMES, 0.9)
    model.save(work.store.folder / "adapter")
    key = by_name(work)["2.png"]
    both = work.compare(key, "adapter")
    assert both["before"] == work.find(key, NAMES, "")
    assert both["after"] == work.find(key, [], "adapter") != both["before"]
    with pytest.raises(ValueError, match="no adapter"):
        work.compare(key, "../adapter")


def test_pictures_to_label_next_are_unlabelled_ones(work):
    keys = by_name(work)
    work.store.save(keys["3.png"], [("owl", (1.0, 2.0, 8.0, 8.0))], work.store.labels_of(keys["3.png"]).revision)
    job = Job("suggest", 1)
    found = work.suggest(job, 2, NAMES, "")
    assert len({entry["id"] for entry in found}) == 2
    assert keys["3.png"] not in {entry["id"] for entry in found}
    assert all(entry["reason"] for entry in found)
    assert (job.done, job.total) == (4, 4)


def test_only_some_of_many_pictures_are_looked_at(work, monkeypatch):
    monkeypatch.setattr(studio_work, "MOST_LOOKED_AT", 2)
    job = Job("suggest", 1)
    assert len(work.suggest(job, 5, NAMES, "")) == job.total == 2


def test_adapting_reads_the_labels_of_the_folder_tells_its_steps_and_stops(work, monkeypatch):
    key = by_name(work)["1.png"]
    work.store.save(key, [("owl", (1.0, 2.0, 8.0, 8.0))], work.store.labels_of(key).revision)
    seen = {}

    def train(trunk, data, method, *, out, minutes, observer, **_):
        seen.update(classes=data.classes, out=out, method=method, minutes=minutes)
        observer.on_trial("prompt", 5.0)
        for number in (1, 2, 3):
            observer.on_step(SimpleNamespace(loss=float(number), step=number), 9)
            if number == 2:
                job.stop()

    monkeypatch.setattr(studio_work, "adapt_dataset", train)
    (work.store.folder / "adapter").mkdir()
    (work.store.folder / "adapter" / "adapter.json").touch()
    job = Job("adapt", 1)
    job.run(lambda job: work.adapt(job, "prompt", 0.5))
    assert job.state == "stopped"
    assert (job.done, job.total, job.losses) == (3, 9, [1.0, 2.0, 3.0])
    assert seen == {"classes": ("owl",), "out": work.store.folder / "adapter-2", "method": "prompt", "minutes": 0.5}


def test_a_folder_without_boxes_says_what_to_do(work):
    job = Job("adapt", 1)
    job.run(lambda job: work.adapt(job, "prompt", None))
    assert job.state == "failed"
    assert "No picture has a box yet" in job.message
