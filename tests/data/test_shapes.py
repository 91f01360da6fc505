"""The rendered dataset of the first run."""

import numpy as np
from PIL import Image

from glip_adapt.bench.quickstart import quickstart_plan
from glip_adapt.data import shapes
from glip_adapt.data.check import check_split
from glip_adapt.data.odinw import find_splits, load_dataset


def test_it_is_a_dataset_without_defects(tmp_path):
    folder = shapes.write_shapes(tmp_path / "shapes")
    assert all(check_split(*files) == [] for files in find_splits(folder).values())
    data = load_dataset(folder)
    assert data.classes == shapes.CLASSES
    assert (len(data.train), len(data.val), len(data.test)) == tuple(shapes.SPLIT_SIZES.values())


def test_a_seed_gives_one_dataset_and_splits_differ(tmp_path):
    first, second = (shapes.write_shapes(tmp_path / name, seed=1) for name in ("a", "b"))
    other = shapes.write_shapes(tmp_path / "c", seed=2)
    name = "train/annotations.json"
    assert (first / name).read_bytes() == (second / name).read_bytes() != (other / name).read_bytes()
    assert (first / "valid/annotations.json").read_bytes() != (first / "test/annotations.json").read_bytes()


def test_a_box_holds_its_shape_and_touches_it_on_all_sides(tmp_path):
    data = load_dataset(shapes.write_shapes(tmp_path / "shapes"))
    for record in data.test.records:
        pixels = np.asarray(Image.open(record.path)).astype(int)
        drawn = (pixels != pixels[0, 0]).any(-1) if (pixels[0, 0] == pixels[0, 0, 0]).all() else None
        if drawn is None:  # a shape covers the corner
            continue
        for x1, y1, x2, y2 in record.target.boxes_xyxy.int().tolist():
            inside = drawn[y1 : y2 + 1, x1 : x2 + 1]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_an_interrupted_rendering_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_draw", fail)
    try:
        shapes.write_shapes(tmp_path / "shapes")
    except KeyboardInterrupt:
        assert list(tmp_path.iterdir()) == []
    else:
        raise AssertionError("the interrupt was swallowed")


def test_the_first_plan_compares_three_methods_from_zero_shots(tmp_path):
    plan = quickstart_plan(tmp_path / "first" / "shapes")
    assert len(plan.keys()) == 1 + 3 * 2
    assert load_dataset(plan.datasets[0]).classes == shapes.CLASSES
