"""The store of the studio: labels in the files of a folder, one picture at a time, from several pages at once."""

import json
import os
import random
import threading
from pathlib import Path

import pytest
from labelled import make_split
from PIL import Image

from glip_adapt.adapters import storage
from glip_adapt.core.errors import UnknownNameError
from glip_adapt.data.dataset import find_format, load_dataset
from glip_adapt.data.formats import coco
from glip_adapt.data.relabel import RELABEL
from glip_adapt.share import outcome
from glip_adapt.share.studio import adapters
from glip_adapt.share.studio.adapters import adapters_in
from glip_adapt.share.studio.labels import STATE_FILE, LabelStore, StaleError

OWL = ("owl", (1.0, 2.0, 3.0, 4.0))
ANT = ("ant", (10.0, 11.0, 12.5, 13.0))


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 40 × 30 pixels without labels."""
    make_split(tmp_path / "pictures", [[], [], []])
    return tmp_path / "pictures"


def keys(store):
    return {store.name_of(key): key for key in store.pictures}


def test_labels_are_in_the_folder_as_soon_as_they_are_saved(folder):
    store = LabelStore(folder)
    key = keys(store)["2.png"]
    saved = store.save(key, [OWL, ANT], store.labels_of(key).revision)
    again = LabelStore(folder)
    assert again.labels_of(key) == saved == store.labels_of(key)
    assert saved.boxes == (OWL, ANT)
    data = load_dataset(folder)
    assert (data.format, data.classes) == ("coco", ("owl", "ant"))
    assert [record.path.name for record in data.train.records] == ["2.png"]


@pytest.mark.parametrize("format", sorted(RELABEL))
def test_any_sequence_of_changes_leaves_what_was_saved_last(format, tmp_path):
    objects = [("owl", (1.0, 2.0, 3.0, 4.0)), ("tawny owl, 2", (5.5, 6.0, 7.25, 8.0))]
    (tmp_path / "to").mkdir()
    find_format(format).write({"train": make_split(tmp_path / "from", [objects, [], objects[:1]])}, tmp_path / "to")
    store, draw = LabelStore(tmp_path / "to"), random.Random(format)
    assert store.format == format
    expected = {key: labels.boxes for key, _, labels in store.overview()}
    for _ in range(25):
        key = draw.choice(list(expected))
        boxes = [box for box in expected[key] or () if draw.random() < 0.7]
        for _ in range(draw.randrange(3)):
            x, y, w, h = (round(draw.uniform(1, 12), 2) for _ in range(4))
            boxes.insert(draw.randrange(len(boxes) + 1), (draw.choice(["owl", "ant", "a b"]), (x, y, w, h)))
        keeps_none = len(boxes) == 0 and draw.random() < 0.5 and sum(map(bool, expected.values())) > 1
        expected[key] = None if keeps_none else tuple(boxes)
        saved = store.save(key, expected[key], store.labels_of(key).revision)
        again = LabelStore(tmp_path / "to")
        assert saved.revision == again.labels_of(key).revision
        assert set(store.classes) == set(again.classes)
        for other, boxes in expected.items():
            labels = store.labels_of(other)
            assert labels.is_labelled == (boxes is not None)
            assert [name for name, _ in labels.boxes] == [name for name, _ in boxes or ()]
            for (_, one), (_, two) in zip(labels.boxes, boxes or (), strict=True):
                assert one == pytest.approx(two, abs=0.005)


def test_a_save_from_an_old_state_is_refused_and_changes_nothing(folder):
    one, other = LabelStore(folder), LabelStore(folder)  # as two processes have it
    key = keys(one)["1.png"]
    start = one.labels_of(key).revision
    mine = one.save(key, [OWL], start)
    with pytest.raises(StaleError) as refused:
        other.save(key, [ANT], start)
    assert refused.value.labels == mine == other.labels_of(key)
    other.save(key, [OWL, ANT], mine.revision)
    assert one.labels_of(key).boxes == (OWL, ANT)


def test_changes_of_another_program_are_seen(folder):
    store = LabelStore(folder)
    key = keys(store)["1.png"]
    before = store.save(key, [OWL], store.labels_of(key).revision)
    file = folder / "_annotations.coco.json"
    file.write_text(file.read_text().replace("[1.0, 2.0, 3.0, 4.0]", "[1.0, 2.0, 3.0, 5.5]"))
    with pytest.raises(StaleError):
        store.save(key, [], before.revision)
    assert store.labels_of(key).boxes == (("owl", (1.0, 2.0, 3.0, 5.5)),)


def test_many_pages_at_once_lose_no_picture(tmp_path):
    make_split(tmp_path, [[] for _ in range(24)])
    stores = [LabelStore(tmp_path) for _ in range(3)]
    names = sorted(keys(stores[0]).items())

    def label(store, mine):
        for name, key in mine:
            store.save(key, [(name, (1.0, 1.0, 5.0, 5.0))], store.labels_of(key).revision)

    pages = [threading.Thread(target=label, args=(store, names[start::3])) for start, store in enumerate(stores)]
    for page in pages:
        page.start()
    for page in pages:
        page.join()
    found = LabelStore(tmp_path)
    assert {name: found.labels_of(key).boxes[0][0] for name, key in names} == {name: name for name, _ in names}


def test_an_empty_picture_is_labelled_and_one_may_be_taken_out(folder):
    store = LabelStore(folder)
    key = keys(store)["1.png"]
    empty = store.save(key, [], store.labels_of(key).revision)
    assert (empty.is_labelled, empty.boxes) == (True, ())
    gone = store.save(key, None, empty.revision)
    assert not gone.is_labelled
    assert not LabelStore(folder).labels_of(key).is_labelled  # although the file is empty now


def test_the_last_labels_stay_where_a_format_needs_some(tmp_path):
    (tmp_path / "to").mkdir()
    find_format("yolo").write({"train": make_split(tmp_path / "from", [[OWL]])}, tmp_path / "to")
    store = LabelStore(tmp_path / "to")
    (key,) = store.pictures
    with pytest.raises(ValueError, match="last labelled picture"):
        store.save(key, None, store.labels_of(key).revision)
    assert LabelStore(tmp_path / "to").labels_of(key).is_labelled


def test_boxes_are_clipped_and_bad_ones_refused(folder):
    store = LabelStore(folder)
    key = keys(store)["1.png"]
    start = store.labels_of(key).revision
    saved = store.save(key, [("owl", (-5.0, 20.0, 15.0, 99.0)), ("owl", (100.0, 0.0, 5.0, 5.0))], start)
    assert saved.boxes == (("owl", (0.0, 20.0, 10.0, 10.0)),)
    for bad in [
        ("owl", (0.0, 0.0, float("nan"), 1.0)),
        ("owl", (0.0, 0.0, 0.0, 1.0)),
        (" ", OWL[1]),
        ("a\x00b", OWL[1]),
    ]:
        with pytest.raises(ValueError, match="Expected"):
            store.save(key, [bad], saved.revision)
    with pytest.raises(ValueError, match="at most"):
        store.save(key, [OWL] * 2001, saved.revision)
    assert store.labels_of(key) == saved


def test_an_old_box_that_leaves_the_image_stays_as_it_is(folder):
    out = ("owl  1", (-3.0, 2.0, 50.0, 60.0))
    split = make_split(folder, [[("owl", out[1])]])
    document = coco.coco_ground_truth(split)
    document["images"][0]["file_name"] = "1.png"
    document["categories"][0]["name"] = out[0]
    (folder / "labels.json").write_text(json.dumps(document))
    store = LabelStore(folder)
    key = keys(store)["1.png"]
    assert store.save(key, [out, OWL], store.labels_of(key).revision).boxes == (out, OWL)


def test_boxes_belong_to_the_upright_picture(folder):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(folder / "turned.jpg", exif=exif)
    store = LabelStore(folder)
    key = keys(store)["turned.jpg"]
    assert store.size_of(key) == (40, 30)
    store.save(key, [("owl", (20.0, 30.0, 10.0, 10.0))], store.labels_of(key).revision)
    (record,) = load_dataset(folder).train.records
    assert record.load().size == (30, 40)
    assert record.annotations[0].bbox_xywh == (20, 30, 10, 10)


def test_typed_names_stay_in_their_order_and_are_no_labels(folder):
    store = LabelStore(folder)
    store.type_classes(["tawny owl", " ant "])
    key = keys(store)["1.png"]
    store.save(key, [OWL, ANT], store.labels_of(key).revision)
    again = LabelStore(folder)
    assert again.classes == ["tawny owl", "ant", "owl"]
    assert again.used_classes == ["owl", "ant"]
    with pytest.raises(ValueError, match="name of a class"):
        store.type_classes(["(only a remark)"])
    (folder / STATE_FILE).write_text("damaged")
    assert LabelStore(folder).classes == ["owl", "ant"]


def test_pictures_that_are_copied_into_the_folder_appear(folder):
    store = LabelStore(folder)
    Image.new("RGB", (8, 8)).save(folder / "late.png")
    store.refresh()
    assert "late.png" in keys(store)
    (folder / "late.png").unlink()
    store.refresh()
    assert "late.png" not in keys(store)


def test_a_link_that_leaves_the_folder_is_no_picture(folder, tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "secret.png")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    (folder / "inside.png").symlink_to(folder / "1.png")
    store = LabelStore(folder)
    assert set(keys(store)) == {"1.png", "2.png", "3.png", "inside.png"}
    assert "2 pictures are links" in caplog.text


def test_names_that_are_not_utf8_can_be_shown(folder):
    os.rename(folder / "1.png", os.fsencode(folder) + b"/\xff.png")
    store = LabelStore(folder)
    assert "\ufffd.png" in keys(store)
    json.dumps([name for _, name, _ in store.overview()], ensure_ascii=False).encode()


def test_what_cannot_be_labelled_is_refused_at_the_start(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        LabelStore(tmp_path / "absent")
    with pytest.raises(UnknownNameError):
        LabelStore(folder, "cocoa")
    (folder / "_annotations.coco.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="malformed JSON"):
        LabelStore(folder)


@pytest.mark.parametrize("place", [Path("images/train"), Path("pictures")])
def test_a_folder_of_yolo_opens_with_its_classes_before_its_first_label(place, tmp_path):
    make_split(tmp_path / place, [[], [], []])
    (tmp_path / "data.yaml").write_text(f"train: {place}\nnames: [ant, owl]\n")
    store = LabelStore(tmp_path)
    assert (store.format, store.classes) == ("yolo", ["ant", "owl"])
    assert not any(labels.is_labelled for *_, labels in store.overview())
    key = keys(store)[f"{place}/2.png"]
    store.save(key, [OWL], store.labels_of(key).revision)
    assert LabelStore(tmp_path).labels_of(key).is_labelled
    data = load_dataset(tmp_path)
    assert (data.format, data.classes) == ("yolo", ("ant", "owl"))
    assert [record.path.name for record in data.train.records] == ["2.png"]
    written = tmp_path / ("labels/train/2.txt" if place.parts[0] == "images" else "pictures/2.txt")
    assert written.read_text().split()[0] == "1"


def test_a_folder_of_yolo_whose_images_are_elsewhere_says_so(tmp_path, folder):
    (folder / "data.yaml").write_text("train: gone/train\nnames: [ant, owl]\n")
    with pytest.raises(ValueError, match="gone/train"):
        LabelStore(folder)


def test_a_large_folder_is_not_decoded(tmp_path, monkeypatch):
    for number in range(2000):
        (tmp_path / f"{number:04}.jpg").write_bytes(b"no picture")

    def fail(*arguments, **options):
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(Image, "open", fail)
    store = LabelStore(tmp_path)
    assert len(store.overview()) == 2000


def test_files_of_adapters_are_called_as_the_library_calls_them():
    assert (adapters.DESCRIPTION_FILE, adapters.PAGE_FILE) == (storage.DESCRIPTION_FILE, outcome.PAGE_FILE)


def test_adapters_are_listed_newest_first(tmp_path):
    for name in ("adapter", "adapter-10", "adapter-2", "adapter-old", "adapters"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter.json").touch()
    (tmp_path / "adapter-3").mkdir()  # of a training that was stopped
    assert adapters_in(tmp_path) == ["adapter-10", "adapter-2", "adapter"]
