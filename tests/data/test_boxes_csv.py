import csv

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled import boxes_of, check_round_trip, classes_of, make_split, objects, turned_split
from PIL import Image

from glip_adapt.data.formats import boxes_csv

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"


def put(path, *lines, images=("a.png",)):
    """Write a CSV file, and pictures of 40 × 30 pixels beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for name in images:
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path.parent / name)


def read(folder, *lines, **options):
    """Return the only split of a folder with this CSV file."""
    put(folder / "boxes.csv", *lines, **options)
    (split,) = boxes_csv.read(folder).values()
    return split


DOG = {"a.png": [("dog", [1, 2.5, 10, 20])]}


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (HEADER, "a.png,40,30,dog,1,2.5,11,22.5"),
        ("class,xmax,xmin,ymax,ymin,image", "dog,11,1,22.5,2.5,a.png"),
        ("image_path,label,x1,y1,x2,y2", "a.png,dog,1,2.5,11,22.5"),
        ("image_id;class_name;left;top;right;bottom", "a;dog;1;2.5;11;22.5"),
        ("path\tcategory\tx\ty\tw\th", "a.png\tdog\t1\t2.5\t10\t20"),
        ("file_name,name,x,y,width,height", "a.png,dog,1,2.5,10,20"),
        ("name,class,x_min,y_min,x_max,y_max", "a.png,dog,1,2.5,11,22.5"),
        ("image,width,height,label,x,y,w,h,confident", "a.png,40,30,dog,1,2.5,10,20,1"),
        ("File,Class Name,Left,Top,Width,Height", "a.png,dog,1,2.5,10,20"),
        ('\ufeff"filename", "Class",XMin,YMin,XMax,YMax', 'a.png, "dog", 1, 2.5, 11, 22.5'),
        ("a.png,1,2.5,11,22.5,dog", "# keras-retinanet"),
    ],
)
def test_columns_are_known_by_their_names(tmp_path, header, line):
    lines = [header] if line.startswith("#") else [header, line]
    split = read(tmp_path, *lines)
    assert boxes_of(split) == DOG
    assert split.findings == ()
    assert boxes_csv.recognises(tmp_path)


@pytest.mark.parametrize(
    ("header", "line", "size"),
    [
        (HEADER, "a.png,40,30,dog,1,2,3,4", (30, 40)),
        (HEADER, "a.png,40.0,30.0,dog,1,2,3,4", (30, 40)),
        (HEADER, "a.png,0,0,dog,1,2,3,4", (None, None)),
        (HEADER, "a.png,,,dog,1,2,3,4", (None, None)),
        (HEADER, "a.png,wide,30,dog,1,2,3,4", (None, None)),
        ("image,width,height,label,x,y,w,h", "a.png,40,30,dog,1,2,3,4", (30, 40)),
        ("image,label,x,y,width,height", "a.png,dog,1,2,40,30", (None, None)),
        ("image,label,x1,y1,x2,y2", "a.png,dog,1,2,40,30", (None, None)),
    ],
)
def test_width_and_height_are_the_size_of_the_image_unless_they_are_that_of_the_box(tmp_path, header, line, size):
    (entry,) = read(tmp_path, header, line).document["images"]
    assert (entry.get("height"), entry.get("width")) == size


@pytest.mark.parametrize(
    "header",
    [
        "filename,xmin,ymin,xmax,ymax",
        "class,xmin,ymin,xmax,ymax",
        "name,xmin,ymin,xmax,ymax",
        "filename,class,xmin,ymin",
        "filename,class",
        "a.png,1,2,3,much,dog",
        "a.txt,1,2,3,4,dog",
        "a.png,1,2,3,4",
        "dog,0",
        "",
        '"',
    ],
)
def test_other_tables_are_passed_over(tmp_path, header):
    put(tmp_path / "other.csv", header)
    assert not boxes_csv.recognises(tmp_path)
    with pytest.raises(ValueError, match="no label file speaks of an image"):
        boxes_csv.read(tmp_path)
    assert boxes_of(read(tmp_path, HEADER, "a.png,40,30,dog,1,2.5,11,22.5")) == DOG


def test_rows_of_one_image_are_its_objects(tmp_path):
    split = read(
        tmp_path,
        "path,x1,y1,x2,y2,class",
        "b.png,1,2,3,4,cat",
        "a.png,1,2,11,22,dog",
        "",
        "./b.png,5,6,9,9,dog",
        "a.png,1,2,11,22,dog",
        images=("a.png", "b.png"),
    )
    assert list(boxes_of(split).items()) == [
        ("b.png", [("cat", [1, 2, 2, 2]), ("dog", [5, 6, 4, 3])]),
        ("a.png", [("dog", [1, 2, 10, 20]), ("dog", [1, 2, 10, 20])]),
    ]


@pytest.mark.parametrize(
    "lines", [["a.png,,,,,", "b.png,1,2,3,4,dog"], [HEADER, "a.png,40,30,,,,,", "b.png,9,9,dog,1,2,3,4"]]
)
def test_a_row_without_class_and_coordinates_says_that_the_image_shows_nothing(tmp_path, lines):
    split = read(tmp_path, *lines, images=("a.png", "b.png", "c.png"))
    assert boxes_of(split) == {"a.png": [], "b.png": [("dog", [1, 2, 2, 2])]}
    assert split.findings == (("image without a label file", "c.png"),)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("b.png,40,30,dog,1,2,3", "7 fields, expected at least 8"),
        (",40,30,dog,1,2,3,4", "no image is named"),
        ("b.png,40,30,,1,2,3,4", "the class is empty"),
        ("b.png,40,30,dog,,,,", "'' is no finite number"),
        ("b.png,40,30,dog,1,2,3,much", "'much' is no finite number"),
        ("b.png,40,30,dog,1,2,3,nan", "'nan' is no finite number"),
        ("b.png,40,30,dog,1,2,3,1e999", "'1e999' is no finite number"),
    ],
)
def test_a_damaged_row_is_told_with_its_line(tmp_path, line, reason):
    split = read(tmp_path, HEADER, "a.png,40,30,dog,1,2.5,11,22.5", "", line, images=("a.png", "b.png"))
    assert boxes_of(split) == DOG
    assert split.findings[0] == ("malformed label", f"boxes.csv, line 4: {reason}")


@pytest.mark.parametrize("column", ["score", "Confidence"])
def test_confidences_are_told_as_of_predictions(tmp_path, column):
    rows = ["a.png,dog,1,2.5,11,22.5,0.9", "b.png,,,,,,", "c.png,dog,1,2,3,4"]
    split = read(tmp_path, f"image,label,x1,y1,x2,y2,{column}", *rows, images=("a.png", "b.png", "c.png"))
    assert boxes_of(split) == DOG | {"b.png": [], "c.png": [("dog", [1, 2, 2, 2])]}
    assert split.findings == (("confidence of a label", "boxes.csv, line 2"),)


def test_coordinates_that_may_be_fractions_are_told(tmp_path):
    header = "image,label,x1,y1,x2,y2"
    assert [kind for kind, _ in read(tmp_path, header, "a.png,dog,0,0.25,1,0.5").findings] == [
        "coordinates from 0 to 1"
    ]
    assert read(tmp_path, header, "a.png,dog,0,0.25,1,0.5", "a.png,dog,1,2,3,4").findings == ()


@pytest.mark.parametrize(
    ("image", "stated"),
    [
        ("images/a.png", "a.png"),
        ("images/deep/a.png", "/content/pictures/a.png"),
        ("images/a.png", r"C:\pictures\a.png"),
        ("images/a.PNG", "a"),
        ("images/a.b.png", "a.b"),
    ],
)
def test_the_image_is_found_by_its_name(tmp_path, image, stated):
    split = read(tmp_path, HEADER, f"{stated},40,30,dog,1,2,3,4", images=(image,))
    assert list(boxes_of(split)) == [image]


# Splits --------------------------------------------------------------------------------------------------------------


def files_of(folder):
    return {name: list(boxes_of(split)) for name, split in boxes_csv.read(folder).items()}


@pytest.mark.parametrize("names", [("train.csv", "validation.csv"), ("train_labels.csv", "boxes-val.csv")])
def test_splits_are_named_by_files(tmp_path, names):
    for name, image in zip(names, ("a.png", "b.png"), strict=True):
        put(tmp_path / name, HEADER, f"images/{image},40,30,{image[0]},1,2,3,4", images=(f"images/{image}",))
    assert files_of(tmp_path) == {"train": ["images/a.png"], "val": ["images/b.png"]}
    assert [classes_of(split) for split in boxes_csv.read(tmp_path).values()] == [["a", "b"]] * 2


def test_splits_are_named_by_folders(tmp_path):
    for place in ("train", "valid", "test"):
        put(tmp_path / place / "_annotations.csv", HEADER, "a.png,40,30,dog,1,2,3,4")
    assert files_of(tmp_path) == {"train": ["train/a.png"], "val": ["valid/a.png"], "test": ["test/a.png"]}


def test_splits_are_named_by_a_column_else_by_the_folders_of_images(tmp_path):
    rows = [
        "a.png,dog,1,2,3,4,train",
        "b.png,dog,1,2,3,4,Validation",
        "c.png,dog,1,2,3,4,dev",
        "test/d.png,dog,1,2,3,4,",
    ]
    put(tmp_path / "b.csv", "image,label,x1,y1,x2,y2,split", *rows, images=("a.png", "b.png", "c.png", "test/d.png"))
    assert files_of(tmp_path) == {"train": ["a.png"], "val": ["b.png"], "test": ["test/d.png"]}
    reason = "b.csv, line 4: the split is 'dev', not train, val or test"
    assert boxes_csv.read(tmp_path)["train"].findings[0] == ("malformed label", reason)


def test_two_files_of_one_split_are_one_too_many(tmp_path):
    for name in ("a.csv", "b.csv"):
        put(tmp_path / name, HEADER, "a.png,40,30,dog,1,2,3,4")
    with pytest.raises(ValueError, match=r"a\.csv and .*b\.csv are both of the split train\. .*train\.csv, val\.csv"):
        boxes_csv.read(tmp_path)


def test_classes_txt_fixes_the_order_of_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("owl\ndog\n")
    assert classes_of(read(tmp_path, HEADER, "a.png,40,30,dog,1,2,3,4")) == ["owl", "dog"]


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (b"a.png,40,30,\xff,1,2,3,4\n", "byte 60 is not UTF-8"),
        (b'a.png,40,30,"dog,1,2,3,4\na.png,40,30,dog,1,2,3,4\n', "unexpected end of data"),
        (b"a.png,40,30,dog,1,2,3," + b"4" * 200_000, "field larger than field limit"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_name(tmp_path, rest, reason):
    put(tmp_path / "test" / "boxes.csv")
    (tmp_path / "test" / "boxes.csv").write_bytes(HEADER.encode() + b"\n" + rest)
    assert boxes_csv.recognises(tmp_path)
    (kind, example), *_ = boxes_csv.read(tmp_path)["test"].findings
    assert kind == "malformed label file"
    assert example.startswith(f"test/boxes.csv: {reason}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    rest=st.binary(max_size=60) | st.text('a.png,";\n\r0159x', max_size=60).map(str.encode), has_header=st.booleans()
)
def test_no_bytes_break_the_reader(tmp_path, rest, has_header):
    put(tmp_path / "good.csv", HEADER, "a.png,40,30,dog,1,2.5,11,22.5")
    odd = tmp_path / "test" / "odd.csv"
    odd.parent.mkdir(exist_ok=True)
    odd.write_bytes((f"{HEADER}\na.png,40,30,dog,1,2,3,4\n".encode() if has_header else b"") + rest)
    assert boxes_of(boxes_csv.read(tmp_path)["train"]) == DOG


def test_lines_may_end_in_any_way(tmp_path):
    put(tmp_path / "boxes.csv")
    for end in ("\r\n", "\r", "\n"):
        text = end.join([HEADER, "a.png,40,30,dog,1,2.5,11,22.5", ""])
        (tmp_path / "boxes.csv").write_bytes(text.encode())
        assert boxes_of(boxes_csv.read(tmp_path)["train"]) == DOG


# Writing -------------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(train=st.lists(objects, min_size=1, max_size=3), test=objects)
def test_what_is_written_is_read_again(tmp_path_factory, train, test):
    check_round_trip(boxes_csv, tmp_path_factory.mktemp("round"), {"train": train, "test": [test]})


def test_a_written_file_is_one_of_tensorflow(tmp_path):
    split = make_split(tmp_path / "from", [[("owl", (4, 3, 10, 15.5)), ("tawny owl, 2", (1, 2, 3, 4))], []])
    (tmp_path / "to").mkdir()
    boxes_csv.write({"val": split}, tmp_path / "to")
    with (tmp_path / "to" / "val" / "_annotations.csv").open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows == [
        HEADER.split(","),
        ["1.png", "40", "30", "owl", "4", "3", "14", "18.5"],
        ["1.png", "40", "30", "tawny owl, 2", "1", "2", "4", "6"],
        ["2.png", "40", "30", "", "", "", "", ""],
    ]


def test_pixels_are_those_that_the_boxes_were_drawn_on(tmp_path):
    (tmp_path / "to").mkdir()
    boxes_csv.write({"train": turned_split(tmp_path / "from")}, tmp_path / "to")
    (entry,) = boxes_csv.read(tmp_path / "to")["train"].document["images"]
    with Image.open(tmp_path / "to" / entry["file_name"]) as image:
        assert image.size == (40, 30)
        assert image.getexif().get(274, 1) == 1
    assert (entry["height"], entry["width"]) == (30, 40)
