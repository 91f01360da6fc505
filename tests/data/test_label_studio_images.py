import pytest
from label_studio_tasks import put_image, read, region, task
from labelled import boxes_of
from PIL import Image


@pytest.mark.parametrize(
    ("stored", "stated"),
    [
        ("a.png", "/data/upload/1/1a2b3c4d-a.png"),
        ("images/1a2b3c4d-a.png", "/data/upload/1/1a2b3c4d-a.png"),
        ("images/deadbeef-.png", "deadbeef-.png"),
        ("x/a.png", "/data/local-files/?d=x/a.png"),
        ("x/a b+c.png", "/data/local-files/?d=x%2Fa%20b%2Bc.png"),
        ("a b.png", "https://example.com/pictures/a%20b.png?token=a.jpg#top"),
        ("a.png", "s3://bucket/x/a.png"),
        ("a.png", "https://example.com/a.png?d=7"),
        ("a#1.png", "a#1.png"),
        ("a%20b.png", "a%20b.png"),
        ("a.png", r"C:\pictures\a.png"),
        ("a.png", "http://[nonsense/a.png"),
    ],
)
def test_the_image_is_found_by_its_name_or_url(tmp_path, stored, stated):
    put_image(tmp_path, stored)
    split = read(tmp_path, task(region(), image=stated))
    assert boxes_of(split) == {stored: [("dog", [10, 20, 20, 30])]}


def test_the_folder_in_the_url_tells_images_of_one_name_apart(tmp_path):
    for name in ("x/a.png", "y/a.png"):
        put_image(tmp_path, name)
    assert list(boxes_of(read(tmp_path, task(image="/data/local-files/?d=pictures/y/a.png")))) == ["y/a.png"]
    with pytest.raises(ValueError, match="may be"):
        read(tmp_path, task(image="/data/upload/2/a.png"))


def test_a_missing_image_stays_listed(tmp_path):
    assert boxes_of(read(tmp_path, task(region(), image="/data/upload/1/1a2b3c4d-a.png"))) == {
        "a.png": [("dog", [10, 20, 20, 30])]
    }
    bare = region()
    del bare["original_width"]
    assert boxes_of(read(tmp_path, task(bare))) == {"a.png": []}


def test_any_entry_that_names_an_image_will_do_but_only_one(tmp_path):
    put_image(tmp_path)
    split = read(
        tmp_path,
        task(data={"photo": "a.png", "caption": "a dog", "page": "http://x/y"}),
        task(data={"left": "a.png", "right": "b.png"}),
        task(data={"text": "nothing"}),
        "nonsense",
    )
    assert list(boxes_of(split)) == ["a.png"]
    assert [kind for kind, _ in split.findings] == ["malformed label"] * 3
    assert "['a.png', 'b.png']" in split.findings[0][1]


@pytest.mark.parametrize("stated", [{}, {"original_width": None}, {"original_width": "wide"}, {"original_height": 0}])
def test_without_a_stated_size_that_of_the_upright_image_is_taken(tmp_path, stated):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (100, 200)).save(tmp_path / "a.png", exif=exif)  # upright 200 × 100
    bare = {key: value for key, value in region().items() if not key.startswith("original")} | stated
    if stated:
        bare |= {"original_height": 100, "original_width": 200} | stated
    split = read(tmp_path, task(bare))
    assert boxes_of(split) == {"a.png": [("dog", [10, 20, 20, 30])]}
    assert "height" not in split.document["images"][0]
