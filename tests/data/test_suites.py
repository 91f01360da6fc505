"""COCO, LVIS, Flickr30k Entities and the other 22 sets of ODinW by their names."""

import json

import pytest
from suites_on_disk import picture, write, write_coco, write_flickr30k, write_lvis

from glip_adapt.data.captions import load_captions
from glip_adapt.data.check import check_folder
from glip_adapt.data.convert import convert_dataset
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.fetch import fetchable
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.data.odinw import every_dataset, find_spec, folder_of, groups, known_datasets, suites
from glip_adapt.engine.scored_files import score_detections

BACKGROUND = "annotations_without_background.json"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty folder for datasets, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["coco", "COCO", "coco/val2017"])
def test_coco_has_its_eighty_classes_whatever_the_file_lists(root, name):
    write_coco(root)
    data = load_dataset(name)  # not the folder of this name
    assert (data.name, list(data.splits)) == ("coco/val2017", ["val", "test"])
    assert (len(data.classes), data.classes[0], data.classes[-1]) == (80, "person", "toothbrush")
    assert (data.test.category_ids[0], data.test.category_ids[11], data.test.category_ids[-1]) == (1, 13, 90)
    assert [record.target.labels.tolist() for record in data.test.records] == [[0], [79]]
    assert (data.names_per_caption, data.boxes_per_caption, data.metric) == (None, None, "coco")
    with pytest.raises(FileNotFoundError, match=r"only val, test: it is for scoring alone.*such as \./coco"):
        _ = data.train
    assert load_dataset("./coco").name == "coco"  # the folder


def test_a_suite_is_found_below_the_data_folder(root, monkeypatch):
    write_coco(root / "data")
    monkeypatch.setenv("GLIP_ADAPT_DATA", str(root / "data"))
    assert len(load_dataset("coco").test) == len(load_dataset("coco", root=root / "data" / "coco").test) == 2


def test_a_folder_called_coco_that_is_no_suite_is_read_as_a_folder(root):
    write_coco(root)
    (root / "coco" / "annotations" / "instances_val2017.json").rename(root / "coco" / "annotations" / "val.json")
    (root / "coco" / "val2017").rename(root / "coco" / "val")
    data = load_dataset("coco")
    assert (data.name, list(data.splits), len(data.classes)) == ("coco", ["val"], 2)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lvis/minival", "lvis_v1_minival"),
        ("lvis/minival", "lvis_v1_minival_inserted_image_name"),
        ("lvis/val", "lvis_od_val"),
        ("lvis_val", "lvis_v1_val"),
    ],
)
def test_lvis_has_the_classes_of_its_file_and_what_its_metrics_need(root, name, file):
    write_lvis(root, file)
    data = load_dataset(name)
    assert data.classes == ("red_box", "blue_box")
    assert (data.names_per_caption, data.boxes_per_caption, data.metric) == (40, 300, "fixed_ap")
    assert [record.path.parts[-2:] for record in data.test.records] == [("val2017", "1.jpg"), ("train2017", "2.jpg")]
    truth = coco_ground_truth(data.test)
    assert [entry["frequency"] for entry in truth["categories"]] == ["f", "r"]
    assert [entry["neg_category_ids"] for entry in truth["images"]] == [[7], []]
    assert [entry["not_exhaustive_category_ids"] for entry in truth["images"]] == [[], [3]]


def test_what_lvis_adds_survives_conversion_to_coco(root):
    write_lvis(root)
    converted = convert_dataset("lvis/minival", "coco", root / "copy")
    assert converted.images == {"val": 2, "test": 2}
    found = [{"image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 20], "score": 0.5}]
    (root / "found.json").write_text(json.dumps(found))
    file = root / "copy" / "val" / "_annotations.coco.json"
    assert score_detections(root / "found.json", file, "fixed_ap").values["ap_frequent"] == pytest.approx(1)


def test_lists_of_absent_classes_follow_categories_that_are_renumbered(root):
    """A class called background keeps its place only under another id than 0."""
    categories = [{"id": 0, "name": "background", "frequency": "f"}, {"id": 1, "name": "cat", "frequency": "r"}]
    image = {"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}
    image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": [0]}
    for split, boxes in (("train", [(1, 0, [5, 5, 20, 20])]), ("test", [])):
        write(root, split, [image], boxes, categories)
        picture(root / "coco" / split / "1.jpg", (60, 40))
    convert_dataset(root / "coco", "coco", root / "copy")
    written = json.loads((root / "copy" / "train" / "_annotations.coco.json").read_text())
    assert [entry["id"] for entry in written["categories"]] == [1, 2]
    assert written["annotations"][0]["category_id"] == 1
    (entry,) = written["images"]
    assert (entry["neg_category_ids"], entry["not_exhaustive_category_ids"]) == ([2], [1])


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("coco", ["coco/annotations/instances_val2017.json", "coco/val2017", "cocodataset.org"]),
        ("lvis/minival", ["lvis_v1_minival_inserted_image_name.json and the images in coco below"]),
        ("lvis/val", ["coco/annotations/lvis_od_val.json", "lvisdataset.org"]),
    ],
)
def test_a_missing_suite_is_one_error_that_says_which_files_to_put_where(root, name, places):
    for ask in (load_dataset, check_folder):
        with pytest.raises(FileNotFoundError) as error:
            ask(name)
        for text in (*places, str(root), "GLIP_ADAPT_DATA"):
            assert text in str(error.value)
    with pytest.raises(ValueError, match=r"is not fetched: it has no archive to verify\. Put coco/annotations/"):
        fetchable([name])


@pytest.mark.parametrize("name", ["coco", "coco/val2017"])
@pytest.mark.parametrize("there", ["images", "lvis"])
def test_images_without_their_boxes_are_an_incomplete_suite_and_no_folder_of_images(root, name, there):
    if there == "images":
        write_coco(root)
        (root / "coco" / "annotations" / "instances_val2017.json").unlink()
    else:
        write_lvis(root)
    for ask in (load_dataset, check_folder):
        with pytest.raises(FileNotFoundError, match=r"Put coco/annotations/instances_val2017\.json and the images in"):
            ask(name)


def test_a_suite_is_checked_by_its_name(root):
    write_coco(root)
    write_lvis(root)
    checked = check_folder("coco")
    assert (checked.known, checked.unlabelled, list(checked.splits)) == ("coco/val2017", None, ["val", "test"])
    assert checked.splits["test"].boxes["toothbrush"] == 1
    (root / "coco" / "train2017" / "2.jpg").unlink()
    (defect,) = check_folder("lvis/minival").splits["val"].defects
    assert (defect.kind, defect.count) == ("missing image file", 1)


# Flickr30k -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
def test_flickr30k_is_checked_and_read_by_its_name(root, split):
    write_flickr30k(root, split)
    name = f"flickr30k/{split}"
    checked = check_folder(name)
    assert checked.splits[split].boxes == {"people": 1, "animals": 4, "scene": 0}
    assert (checked.splits[split].images, checked.splits[split].defects) == (1, ())
    assert len(load_captions(name)) == 2
    (root / "flickr30k" / "flickr30k_images" / split / "7.jpg").rename(
        root / "flickr30k" / "flickr30k_images" / "7.jpg"
    )
    (root / "flickr30k" / "flickr30k_images" / split).rmdir()
    assert len(load_captions(name)) == 2  # all images in one folder
    with pytest.raises(ValueError, match=f"`glip-adapt eval {name}` scores"):
        load_dataset(name)


def test_missing_sentences_say_which_files_to_put_where(root):
    for ask in (check_folder, load_captions):
        with pytest.raises(FileNotFoundError, match=r"flickr30k/test\.txt and the images in .* with Annotations and"):
            ask("flickr30k/test")


# ODinW-35 ------------------------------------------------------------------------------------------------------------


def test_the_thirty_five_sets_begin_with_the_thirteen_and_have_their_facts():
    specs = groups()["odinw35"]
    assert specs[:13] == groups()["odinw13"] == known_datasets()
    assert len(specs) == len({spec.official_name for spec in specs}) == 35
    for spec in specs:
        assert {"train", "val", "test", spec.early_stopping} <= set(spec.splits)
        assert spec.archive == f"{spec.folder}.zip"
        assert len(set(spec.classes)) == len(spec.classes) > 0
        assert all(name.strip() for name in spec.classes)
        assert all(split.ann_file.startswith(f"{split.img_dir}/") for split in spec.splits.values())
    counts = {spec.official_name: len(spec.classes) for spec in specs}
    assert counts.items() >= {"OxfordPets_by-breed": 37, "PKLot": 2, "openPoetryVision": 43, "dice": 6}.items()
    names = [name for spec in every_dataset() for name in (spec.official_name, spec.short_name) if name]
    assert all(find_spec(name.upper()).official_name for name in names)
    assert len(suites()) == 5


def test_a_set_of_the_other_22_is_loaded_with_its_few_shot_files(root):
    spec = find_spec("odinw/AmericanSignLanguageLetters")
    for name, split in spec.splits.items():
        folder = root / split.img_dir
        write_coco(root / "made")
        folder.mkdir(parents=True)
        content = json.loads((root / "made" / "coco" / "annotations" / "instances_val2017.json").read_text())
        for entry in content["images"]:
            (root / "made" / "coco" / "val2017" / entry["file_name"]).rename(folder / entry["file_name"])
        for entry in content["annotations"]:
            entry["category_id"] = 26
        content["categories"] = [{"id": 26, "name": "?"}]
        (root / split.ann_file).write_text(json.dumps(content))
        few = content | {"images": content["images"][:1], "annotations": content["annotations"][:1]}
        (folder / f"fewshot_{name}_shot1_seed3.json").write_text(json.dumps(few))
    for data in (load_dataset("odinw/AmericanSignLanguageLetters"), load_dataset(folder_of(root, spec, 0))):
        assert (data.classes[0], data.classes[-1]) == ("A", "Z")
        assert data.train.few_shot(1, 3).source == "official fewshot_train_shot1_seed3.json"
    assert fetchable(["odinw35"]) == list(groups()["odinw35"])


def test_of_two_sets_in_one_folder_that_of_odinw13_is_recognised(root):
    both = [find_spec(f"EgoHands_{kind}") for kind in ("generic", "specific")]
    for spec in both:
        write_coco(root / "made")
        folder = root / spec.splits["test"].img_dir
        (root / "made" / "coco" / "val2017").rename((folder.mkdir(parents=True), folder / "images")[1])
        content = json.loads((root / "made" / "coco" / "annotations" / "instances_val2017.json").read_text())
        for entry in content["images"]:
            entry["file_name"] = f"images/{entry['file_name']}"
        for entry in content["annotations"]:
            entry["category_id"] = 1
        (root / spec.splits["test"].ann_file).write_text(json.dumps(content))
    assert load_dataset(root / "odinw" / "EgoHands").name == "EgoHands_generic"
    for spec in both:
        assert load_dataset(spec.official_name).name == spec.official_name
        assert load_dataset(folder_of(root, spec, 0)).name == spec.official_name


# Folders of RF20-VL and RF100-VL --------------------------------------------------------------------------------------


def write_roboflow(folder, classes):
    """Splits as Roboflow exports them, with a root category of id 0."""
    heads = [{"id": 0, "name": "things", "supercategory": "none"}]
    categories = heads + [{"id": n, "name": c, "supercategory": "things"} for n, c in enumerate(classes, start=1)]
    write_coco(folder)
    content = json.loads((folder / "coco" / "annotations" / "instances_val2017.json").read_text())
    for entry in content["annotations"]:
        entry["category_id"] = 1
    for split in ("train", "valid", "test"):
        (folder / split).mkdir()
        for entry in content["images"]:
            picture = folder / "coco" / "val2017" / entry["file_name"]
            (folder / split / entry["file_name"]).write_bytes(picture.read_bytes())
        text = json.dumps(content | {"categories": categories})
        (folder / split / "_annotations.coco.json").write_text(text)


def test_a_set_of_rf20_vl_is_a_folder_like_any_and_several_are_named(root):
    for name, classes in (("actions", ["kick", "throw"]), ("aerial-airport", ["airplane"])):
        write_roboflow(root / "rf20-vl-fsod" / name, classes)
    data = load_dataset("rf20-vl-fsod/actions")
    assert (data.name, data.classes, list(data.splits)) == ("actions", ("kick", "throw"), ["train", "val", "test"])
    with pytest.raises(ValueError, match=r"holds several datasets, in .*/actions, .*/aerial-airport\. Give the folder"):
        load_dataset("rf20-vl-fsod")
