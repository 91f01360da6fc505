import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_coco import CATEGORIES, annotation, image_entry, load, write

from glip_adapt.data.check import Defect, check_split, load_rgb

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def kinds(path):
    return {defect.kind for defect in check_split(path, path.parent)}


BROKEN = {
    "zero or negative box size": {"annotations": [annotation(1, 1, 3, [1, 1, 0, 5])]},
    "NaN or infinite box": {"annotations": [annotation(1, 1, 3, [1, math.nan, 5, 5])]},
    "unknown category": {"annotations": [annotation(1, 1, 4, [1, 1, 5, 5])]},
    "unknown image id": {"annotations": [annotation(1, 2, 3, [1, 1, 5, 5])]},
    "duplicate image id": {"images": [image_entry(1), image_entry(1, file_name="other.png")]},
    "duplicate category id": {"categories": [*CATEGORIES, {"id": 3, "name": "again"}]},
    "empty split": {"images": []},
    "malformed JSON": {"annotations": {}},
    "malformed entry": {"annotations": [annotation(1, 1, 3, [1, 1, 5])]},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_defect_that_leaves_the_meaning_open_stops_loading_and_is_listed(tmp_path, kind):
    path = write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | BROKEN[kind]))
    (tmp_path / "other.png").write_bytes((tmp_path / "1.png").read_bytes())
    with pytest.raises(ValueError, match=rf"{kind}.*Expected.*glip-adapt data check"):
        load(path)
    assert kinds(path) == {kind}


@pytest.mark.parametrize("size", [-3, -math.inf, math.inf, math.nan, 10**400])
def test_no_odd_number_passes_as_a_box(tmp_path, size):
    with pytest.raises(ValueError, match="box"):
        load(write(tmp_path, annotations=[annotation(1, 1, 3, [1, 1, 5, size])]))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_missing_list_is_malformed(tmp_path, key):
    path = write(tmp_path)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(ValueError, match=f"{key}.* is missing"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xfa", b"null", b"[]", b"3", b"[" * 100_000])
def test_what_is_not_a_json_object_is_malformed(tmp_path, content):
    path = tmp_path / "boxes.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="malformed JSON"):
        load(path)
    assert kinds(path) == {"malformed JSON"}


def test_a_missing_annotation_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*glip-adapt data fetch"):
        load(tmp_path / "none.json")
    assert kinds(tmp_path / "none.json") == {"missing annotation file"}


def test_a_missing_picture_says_so_unless_pictures_are_not_needed(tmp_path):
    path = write(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing image file: .*1\.png"):
        load(path)
    assert kinds(path) == {"missing image file"}
    assert len(load(path, require_images=False)) == 1


def test_check_lists_every_defect_with_counts_and_five_examples(tmp_path):
    images = [image_entry(n) for n in range(1, 5)]
    images += [image_entry(5, file_name="1.png"), image_entry(6, width=50), image_entry(7, height="tall")]
    boxes = [annotation(n, 1, 3, [35, 0, 10, 5]) for n in range(10, 18)]
    boxes += [annotation(10, 1, 3, [0, 0, 5, 5]), annotation(20, 1, 99, [0, 0, 5, math.inf]), "no annotation"]
    path = write(tmp_path, images, boxes)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "3.png").unlink()
    defects = {defect.kind: defect for defect in check_split(path, tmp_path)}
    assert {kind: defect.count for kind, defect in defects.items()} == {
        "malformed entry": 2,
        "duplicate file name": 1,
        "missing image file": 1,
        "box outside the picture": 8,
        "duplicate annotation id": 1,
        "unknown category": 1,
        "NaN or infinite box": 1,
        "unreadable image": 1,
        "declared size differs from real size": 1,
    }
    assert len(defects["box outside the picture"].examples) == 5
    assert defects["declared size differs from real size"] == Defect(
        "declared size differs from real size", 1, ("6.png: declared (height, width) (30, 50), stored (30, 40)",)
    )


def test_a_sound_split_has_no_defects(tmp_path):
    path = write(tmp_path, annotations=[annotation(1, 1, 3, [0, 0, 40, 30]), annotation(2, 1, 0, [0.5, 0, 0.2, 30])])
    assert check_split(path, tmp_path) == []


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "1.png", "a\0b", "x" * 300, "../.."]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "image_id", "category_id", "bbox", "name", "file_name", "width"]), inner
        )
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(key=st.sampled_from(["images", "annotations", "categories"]), value=JSON_VALUES, field=st.data())
def test_no_content_makes_the_check_raise_and_what_it_passes_loads(tmp_path, key, value, field):
    path = write(tmp_path, annotations=[annotation(1, 1, 3, [0, 0, 5, 5])])
    content = json.loads(path.read_text())
    if field.draw(st.booleans()):
        content[key] = value
    else:
        content[key][0][field.draw(st.sampled_from(sorted(content[key][0])))] = value
    path.write_text(json.dumps(content))
    if check_split(path, tmp_path) == []:
        load(path)
    else:
        with contextlib.suppress(ValueError, FileNotFoundError):
            load(path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_pictures_of_every_mode_open_as_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(tmp_path / f"x.{suffix}")
    image = load_rgb(tmp_path / f"x.{suffix}")
    assert (image.mode, image.size) == ("RGB", (7, 5))
    assert np.asarray(image).min() == 255


def test_exif_rotation_is_ignored_as_boxes_are_drawn_on_stored_pixels(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (7, 5)).save(tmp_path / "x.jpg", exif=exif)
    assert load_rgb(tmp_path / "x.jpg").size == (7, 5)


def test_a_picture_that_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="No picture at"):
        load_rgb(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="not a picture"):
        load_rgb(tmp_path / "text.png")


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it then survives
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from(["png", "jpg", "bmp", "gif", "webp", "tif"]),
    noise=st.binary(max_size=12),
    at=st.floats(0, 1),
)
def test_damaged_pictures_raise_nothing_but_valueerror(tmp_path, suffix, noise, at):
    path = tmp_path / f"x.{suffix}"
    Image.effect_noise((16, 12), 50).convert("RGB").save(path)
    content = path.read_bytes()
    cut = int(at * len(content))
    path.write_bytes(content[:cut] + noise + content[cut + 2 * len(noise) :])
    with contextlib.suppress(ValueError):
        load_rgb(path)


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the development data is not beside this checkout")
def test_the_real_development_data_checks_without_raising():
    for path in sorted((SHARED / "data" / "odinw").rglob("valid/*.json")):
        assert all(isinstance(defect, Defect) for defect in check_split(path, path.parent))
