import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.errors import UnknownNameError
from glip_adapt.data import dataset, glyphs13
from glip_adapt.data.check import check_split
from glip_adapt.data.convert import convert_dataset
from glip_adapt.data.dataset import load_dataset, unlabelled_images
from glip_adapt.data.formats import coco
from glip_adapt.data.odinw import known_datasets

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
WITHOUT_BACKGROUND = "annotations_without_background.json"


def write(annotation_file, image_dir=None, prefix="", count=1, categories=({"id": 1, "name": "raccoon"},)):
    """Write a COCO file with ``count`` images of one box each."""
    image_dir = image_dir or annotation_file.parent
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    (image_dir / prefix).mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": f"{prefix}{n}.png", "width": 20, "height": 20} for n in range(count)]
    boxes = [{"id": n, "image_id": n, "category_id": categories[0]["id"], "bbox": [1, 1, 9, 9]} for n in range(count)]
    for entry in images:
        Image.new("RGB", (20, 20)).save(image_dir / entry["file_name"])
    content = {"images": images, "annotations": boxes, "categories": list(categories)}
    annotation_file.write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def no_data_around(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)


@pytest.fixture
def raccoon(tmp_path):
    """The folder that holds ``odinw/Raccoon`` in the official layout."""
    for count, name in enumerate(("train", "valid", "test"), start=1):
        write(tmp_path / "odinw" / "Raccoon" / "Raccoon.v2-raw.coco" / name / WITHOUT_BACKGROUND, count=count)
    return tmp_path


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


@pytest.mark.parametrize("folder", [".", "odinw", "odinw/Raccoon", "odinw/Raccoon/Raccoon.v2-raw.coco"])
def test_an_official_folder_is_recognised_at_every_level(raccoon, folder):
    data = load_dataset(raccoon / folder)
    assert data.name == "Raccoon"
    assert (len(data.train), len(data.val), len(data.test)) == (1, 2, 3)
    assert data.train.name == "Raccoon/train"
    assert data.classes == ("raccoon",)


@pytest.mark.parametrize("name", ["Raccoon", "raccoon"])
def test_a_known_name_is_found_under_root_or_environment_or_working_folder(raccoon, monkeypatch, name):
    assert sizes(load_dataset(name, root=raccoon / "odinw")) == {"train": 1, "val": 2, "test": 3}
    assert load_dataset(name, root=raccoon).name == "Raccoon"
    monkeypatch.setenv("GLIP_ADAPT_DATA", str(raccoon / "odinw"))
    assert load_dataset(name).name == "Raccoon"
    monkeypatch.delenv("GLIP_ADAPT_DATA")
    monkeypatch.chdir(raccoon)
    assert load_dataset(name).name == "Raccoon"


def test_a_short_name_brings_official_class_names_and_prompts(tmp_path):
    root = tmp_path / "NorthAmericaMushrooms" / "North American Mushrooms.v1-416x416.coco"
    categories = ({"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 0, "name": "background"})
    write(root / "train" / WITHOUT_BACKGROUND, categories=categories)
    data = load_dataset("mushrooms", root=tmp_path)
    assert data.classes == ("CoW", "chanterelle")
    assert data.train.category_ids == (1, 2)
    assert data.prompts == (ClassPrompt(name="flat mushroom"), ClassPrompt(name="yellow mushroom"))
    with pytest.raises(FileNotFoundError, match="no test split, only train"):
        _ = data.test


def test_pascal_voc_reports_on_its_val_split(tmp_path):
    categories = [{"id": i, "name": name} for i, name in known_datasets()[0].categories.items()]
    write(tmp_path / "PascalVOC" / "train" / WITHOUT_BACKGROUND, categories=categories)
    write(tmp_path / "PascalVOC" / "valid" / WITHOUT_BACKGROUND, categories=categories, count=2)
    data = load_dataset(tmp_path / "PascalVOC")
    assert data.test.annotation_file == data.val.annotation_file
    assert (data.val.name, data.test.name) == ("PascalVOC/val", "PascalVOC/test")


def test_splits_that_share_a_folder_load_apart(tmp_path):
    for count, name in enumerate(("train", "val", "test"), start=1):
        file = tmp_path / "pistols" / "export" / f"{name}_{WITHOUT_BACKGROUND}"
        write(file, count=count, categories=({"id": 1, "name": "pistol"},))
    assert sizes(load_dataset(tmp_path / "pistols")) == {"train": 1, "val": 2, "test": 3}
    assert load_dataset(tmp_path / "pistols" / "export").name == "pistols"


def test_a_root_with_several_datasets_asks_for_one(raccoon):
    write(raccoon / "odinw" / "pothole" / "train" / WITHOUT_BACKGROUND, categories=({"id": 1, "name": "pothole"},))
    with pytest.raises(ValueError, match="several datasets: Raccoon, pothole"):
        load_dataset(raccoon / "odinw")
    assert load_dataset(raccoon / "odinw" / "pothole").name == "pothole"


def test_an_unknown_name_lists_the_choices_and_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"Unknown dataset 'racoon'.*mean 'Raccoon'.*Known: PascalVOC, .*pothole"
    ):
        load_dataset("racoon")


def test_a_known_but_absent_name_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"glip-adapt data fetch Aquarium.*Aquarium\.zip into .*my_root"):
        load_dataset("Aquarium", root=tmp_path / "my_root")


def test_a_path_that_does_not_exist_is_no_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder"):
        load_dataset(tmp_path / "Raccoon")


@pytest.mark.parametrize("missing", ["train", "val", "test"])
def test_a_missing_split_raises_only_when_used(tmp_path, missing):
    for name in {"train", "val", "test"} - {missing}:
        write(tmp_path / "birds" / name / "annotations.json")
    data = load_dataset(tmp_path / "birds")
    with pytest.raises(FileNotFoundError, match=f"'birds' has no {missing} split, only .*Expected folders"):
        getattr(data, missing)
    assert len(data.splits) == 2


def test_splits_must_agree_on_their_categories(tmp_path):
    write(tmp_path / "train" / "annotations.json")
    write(tmp_path / "test" / "annotations.json", categories=({"id": 1, "name": "owl"},))
    with pytest.raises(ValueError, match=r"differ in their categories.*raccoon.*owl"):
        load_dataset(tmp_path)


def test_a_defect_inside_a_dataset_names_file_and_kind(tmp_path):
    write(tmp_path / "train" / "annotations.json")
    (tmp_path / "train" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/annotations\.json: missing image file"):
        load_dataset(tmp_path)


def test_the_traps_of_the_official_files_are_none(tmp_path, caplog):
    """A parent category with id 0, every image twice, images without boxes, fewer images than shots."""
    spec = next(spec for spec in known_datasets() if spec.short_name == "Vehicles")
    categories = [{"id": 0, "name": "vehicles"}, *({"id": i, "name": name} for i, name in spec.categories.items())]
    file = tmp_path / spec.splits["train"].ann_file
    write(file, count=4, categories=categories)
    content = json.loads(file.read_text())
    content["images"][1]["file_name"] = content["images"][0]["file_name"]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(3)]
    file.write_text(json.dumps(content | {"annotations": boxes}))
    train = load_dataset(tmp_path / "odinw").train
    assert train.classes == spec.classes  # label 0 is category 1
    assert train.records[0].path == train.records[1].path
    assert (len(train), len(train.with_boxes())) == (4, 3)
    assert len(train.few_shot(5, seed=3)) == 3
    assert "has only 3 of 5 images of 'Ambulance'" in caplog.text
    assert "has only 0 of 5 images of 'Truck'" in caplog.text


REAL = {
    "Raccoon": (150, 29, 17),
    "NorthAmericaMushrooms": (41, 5, 5),
    "Packages": (19, 4, 3),
    "thermalDogsAndPeople": (131, 36, 18),
}


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the development data is not beside this checkout")
@pytest.mark.parametrize("name", REAL)
def test_the_real_sets_load_by_name_and_by_folder(name):
    for data in (load_dataset(name, root=SHARED / "data"), load_dataset(SHARED / "data" / "odinw" / name)):
        assert (len(data.train), len(data.val), len(data.test)) == REAL[name]
        assert len(data.train.with_boxes()) == REAL[name][0]
        assert len(data.train.few_shot(3, seed=3)) >= 3
    for split in (data.val, data.test):
        assert check_split(split.annotation_file, split.image_dir) == []


# Synthetic sets ------------------------------------------------------------------------------------------------------


def test_a_synthetic_set_is_rendered_on_first_use_and_kept(tmp_path, monkeypatch):
    tiny = replace(glyphs13.glyph_sets()[5], images=(3, 2, 2))
    monkeypatch.setattr(glyphs13, "glyph_sets", lambda: (tiny,))
    name = f"glyphs13/{tiny.name}"
    data = load_dataset(name, tmp_path)
    assert data.name == name
    assert [len(split) for split in (data.train, data.val, data.test)] == [3, 2, 2]
    assert data.classes == tiny.classes
    assert data.train.name == f"{name}/train"
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert [record.path for record in load_dataset(name, tmp_path).train.records] == [
        r.path for r in data.train.records
    ]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_where_nothing_is_named_synthetic_sets_go_into_the_users_cache(tmp_path, monkeypatch):
    tiny = replace(glyphs13.glyph_sets()[5], images=(1, 1, 1))
    monkeypatch.setattr(glyphs13, "glyph_sets", lambda: (tiny,))
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_dataset(f"glyphs13/{tiny.name}")
    assert [path.name for path in (tmp_path / "glip_adapt").glob("glyphs13-v*/*")] == [tiny.name]


def test_an_unknown_synthetic_set_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'glyphs13/Dice'"):
        load_dataset("glyphs13/Dices")


def test_a_root_category_is_left_out_unless_a_split_has_boxes_of_it(tmp_path):
    categories = ({"id": 1, "name": "owl", "supercategory": "birds"}, {"id": 0, "name": "birds"})
    for name in ("train", "test"):
        write(tmp_path / "birds" / name / "_annotations.coco.json", categories=categories)
    assert load_dataset(tmp_path / "birds").classes == ("owl",)
    write(tmp_path / "birds" / "test" / "_annotations.coco.json", categories=categories[::-1])
    assert load_dataset(tmp_path / "birds").classes == ("birds", "owl")


def test_training_is_watched_on_the_split_of_the_public_config(tmp_path):
    eggs = next(spec for spec in known_datasets() if spec.early_stopping == "minival")
    categories = [{"id": i, "name": name} for i, name in eggs.categories.items()]
    for count, name in enumerate(("train", "val", "minival"), start=1):
        split = eggs.splits[name]
        write(tmp_path / split.ann_file, tmp_path / split.img_dir, count=count, categories=categories)
    data = load_dataset(eggs.official_name, root=tmp_path)
    assert data.selection is data.splits["minival"]
    (tmp_path / eggs.splits["minival"].ann_file).unlink()
    data = load_dataset(eggs.official_name, root=tmp_path)
    assert data.selection is data.val


def test_a_dataset_can_be_scored_by_the_ids_of_its_files(raccoon):
    data = load_dataset("Raccoon", root=raccoon)
    assert {split.annotation_ids for split in data.splits.values()} == {"renumbered"}
    assert {split.annotation_ids for split in data.scored("as_in_file").splits.values()} == {"as_in_file"}


def test_a_format_is_asked_whether_it_recognises_a_folder(tmp_path, monkeypatch):
    write(tmp_path / "birds" / "train" / "annotations.json", count=3)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "cats.txt").touch()
    known = coco.read(tmp_path / "birds")

    class Other:
        """Stands for a module of ``formats``."""

        NAME, LAYOUT = "cats", "cats.txt"
        recognises = staticmethod(lambda folder: (folder / "cats.txt").exists())
        read = staticmethod(lambda folder: {"test": known["train"]})

    monkeypatch.setattr(dataset, "FORMATS", (Other, *dataset.FORMATS))
    cats, birds = load_dataset(tmp_path / "cats"), load_dataset(tmp_path / "birds")
    assert (cats.test.name, cats.format, birds.format) == ("cats/test", "cats", "coco")
    assert sizes(birds) == {"train": 3}
    with pytest.raises(FileNotFoundError, match=r"no train split, only test\. Expected cats\.txt"):
        _ = cats.train
    with pytest.raises(UnknownNameError, match="cats"):
        load_dataset(tmp_path / "cats", format="cat")
    (tmp_path / "birds" / "cats.txt").touch()
    with pytest.raises(ValueError, match=r"several formats: cats \(cats\.txt\), coco.*--format"):
        load_dataset(tmp_path / "birds")
    assert sizes(load_dataset(tmp_path / "birds", format="coco")) == {"train": 3}
    assert sizes(load_dataset(tmp_path / "birds", format="cats")) == {"test": 3}


def test_a_format_belongs_to_a_folder(raccoon):
    assert load_dataset(raccoon / "odinw" / "Raccoon").format == ""
    data = load_dataset(raccoon / "odinw" / "Raccoon", format="coco")  # not as the known dataset
    assert (data.name, data.format) == ("Raccoon", "coco")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_dataset("Raccoon", root=raccoon, format="coco")


def test_prepared_subsets_are_found_beside_coco_files_alone(tmp_path):
    write(tmp_path / "birds" / "train" / "annotations.json", count=4)
    file = tmp_path / "birds" / "train" / "annotations.json"
    (file.parent / "fewshot_train_shot1_seed3.json").write_text(file.read_text())
    assert load_dataset(tmp_path / "birds").train.few_shot(1, seed=3).source.startswith("official")
    yolo = convert_dataset(tmp_path / "birds", "yolo", tmp_path / "yolo")
    assert yolo.images == {"train": 4}
    assert load_dataset(tmp_path / "yolo").train.prepared is None


def test_unlabelled_images_are_those_in_no_split(tmp_path):
    write(tmp_path / "train" / "annotations.json", tmp_path / "train" / "images", count=2)
    for name in (
        "train/images/new.JPG",
        "later/a b.png",
        "later/.x.png",
        ".hidden/x.png",
        "later/notes.txt",
        "SegmentationClass/0.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "later" / "up").symlink_to(tmp_path)  # a circle
    found = unlabelled_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "later/a b.png",
        "train/images/new.JPG",
    ]


def test_an_archive_is_to_be_unpacked(tmp_path):
    import zipfile

    from glip_adapt.data.check import check_folder

    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(FileNotFoundError, match="unpack an archive first"):
        load_dataset(tmp_path / "birds.zip")
    with pytest.raises(ValueError, match="is an archive"):
        check_folder(tmp_path / "birds.zip")
