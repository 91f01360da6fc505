import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.data.fewshot import draw
from glip_adapt.data.formats.coco import load_split

HERE = Path(__file__).resolve()
PARITY = (HERE.parents[1] / "parity", HERE.parents[2].parent / "shared" / "parity")
GOLDEN = next((folder for folder in PARITY if (folder / "fewshot_expected.json").is_file()), None)


@pytest.mark.skipif(GOLDEN is None, reason="the few-shot goldens are neither in tests/parity nor in ../shared/parity")
def test_the_picks_equal_those_of_the_public_sampler():
    split = load_split(GOLDEN / "fewshot_coco.json", GOLDEN, "golden/train", require_images=False)
    for expected in json.loads((GOLDEN / "fewshot_expected.json").read_text()):
        picked = split.few_shot(expected["shots"], expected["seed"], "sampled")
        assert [record.image_id for record in picked.records] == expected["image_ids"], expected["shots"]
        assert picked.source == "sampled"


images = st.lists(st.sets(st.sampled_from([0, 4, 9])), min_size=1, max_size=25)


@given(present=images, shots=st.integers(1, 6), seed=st.integers(0, 400))
@settings(deadline=None)
def test_every_class_gets_its_shots_or_all_there_are_and_no_pick_is_idle(present, shots, seed):
    picked = draw(present, range(len(present)), shots, seed)
    assert len(set(picked)) == len(picked)
    for label in (0, 4, 9):
        available = sum(label in labels for labels in present)
        assert sum(label in present[position] for position in picked) >= min(shots, available)
    seen = dict.fromkeys((0, 4, 9), 0)
    for position in picked:
        assert any(seen[label] < shots for label in present[position])
        for label in present[position]:
            seen[label] += 1


@given(present=images, shots=st.integers(1, 6), seed=st.integers(0, 400))
@settings(deadline=None)
def test_the_draw_depends_on_the_ids_and_not_on_the_order(present, shots, seed):
    ids = list(range(len(present)))
    backwards = draw(present[::-1], ids[::-1], shots, seed)
    assert [ids[::-1][position] for position in backwards] == draw(present, ids, shots, seed)


def test_ids_of_text_are_sorted_as_text():
    assert draw([{1}, {1}, {1}], ["b", "c", "a"], 2, seed=0) == [2, 0]


def test_fewer_shots_are_the_beginning_of_more_for_one_class():
    assert draw([{4}] * 20, range(20), 3, seed=30) == draw([{4}] * 20, range(20), 10, seed=30)[:3]


def test_seed_zero_takes_images_in_order_and_counts_each_for_all_its_classes():
    assert draw([{4}, set(), {4, 0}, {9}, {0}, {9, 4}], range(6), 1, seed=0) == [0, 2, 3]
