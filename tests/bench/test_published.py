"""Published numbers of GLIP: values of the paper, means over the same datasets only, and how they were scored."""

import pytest

from glip_adapt.bench.report.published import (
    SOURCE,
    published_ap,
    published_mean,
    published_note,
    published_sentence,
    published_values,
    scoring_note,
)

THIRTEEN = [
    "PascalVOC", "AerialMaritimeDrone_large", "Aquarium", "CottontailRabbits", "EgoHands_generic",
    "NorthAmericaMushrooms", "Packages", "Raccoon", "ShellfishOpenImages", "VehiclesOpenImages", "pistols", "pothole",
    "thermalDogsAndPeople",
]  # fmt: skip


@pytest.mark.parametrize("trunk", ["glip-t-a", "glip-t-b", "glip-t-c", "glip-t", "glip-l"])
def test_every_trunk_has_its_whole_grid_once(trunk):
    """13 datasets: zero-shot, and three methods at five numbers of shots."""
    rows = published_ap(trunk)
    assert rows.index.is_unique
    assert len(rows) == 13 * (1 + 3 * 5)
    assert sorted(rows.index.get_level_values("dataset").unique()) == sorted(THIRTEEN)
    assert set(rows.index.get_level_values("shots")) == {0, 1, 3, 5, 10, "all"}
    assert rows.between(0, 100).all()


def test_numbers_are_those_of_the_paper():
    assert published_ap("glip-t-a")["PascalVOC", "zero_shot", 0] == 47.7
    assert published_ap("glip-t-a")["CottontailRabbits", "zero_shot", 0] == 60.5


@pytest.mark.parametrize(("trunk", "mean"), [("glip-t", 46.5), ("glip-l", 52.1)])
def test_the_mean_of_thirteen_zero_shot_numbers_is_the_one_in_the_paper(trunk, mean):
    assert published_mean(trunk, THIRTEEN)["zero_shot", 0] == pytest.approx(mean, abs=0.06)


def test_a_mean_is_over_the_datasets_asked_for():
    rows = published_ap("glip-t")
    pair = published_mean("glip-t", ["Raccoon", "Packages"])
    for key in (("zero_shot", 0), ("prompt", 1), ("full", "all")):
        assert pair[key] == pytest.approx((rows["Raccoon", *key] + rows["Packages", *key]) / 2)


def test_there_is_no_mean_with_a_dataset_that_was_not_published():
    found = published_mean("glip-t", ["Raccoon", "Dice"])
    assert len(found) == 0
    assert found.index.names == ["method", "shots"]


def test_a_trunk_that_was_not_published_has_no_numbers():
    assert len(published_ap("glip-nano")) == 0
    assert len(published_mean("glip-nano", ["Raccoon"])) == 0


def test_a_figure_says_what_is_published_only_where_something_is():
    assert published_note([], ["renumbered"]) == ""
    note = published_note([1.0], ["renumbered"])
    assert note == f"Hollow: published ({SOURCE}), not measured here. {scoring_note(['renumbered'])}"


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        (["as_in_file"], "All are scored by the annotation ids of the files"),
        (["renumbered"], "; ours are not, and may be higher"),
        (["as_in_file", "renumbered"], "; some of ours are not (see annotation_ids in table.csv), and may be higher"),
    ],
)
def test_runs_scored_in_two_ways_are_called_so(ways, said):
    assert said in scoring_note(ways)


def test_values_on_suites_are_those_of_their_sources():
    rows = published_values("glip-t")["percent"]
    assert rows["coco", "zero_shot", 0, "ap"] == 46.6
    assert rows["coco", "full", "all", "ap"] == 55.2
    frequencies = [rows["lvis_val", "zero_shot", 0, f"ap{kind}"] for kind in ("", "_rare", "_common", "_frequent")]
    assert frequencies == [19.6, 10.8, 14.7, 29.0]
    for trunk in ("glip-t-a", "glip-t-b", "glip-t-c", "glip-t", "glip-l"):
        values = published_values(trunk)
        assert values.index.is_unique
        assert values["percent"].between(0, 100).all()
        assert set(values.index.get_level_values("dataset")) >= {"coco", "lvis_minival", "lvis_val", "flickr30k_val"}
    assert len(published_values("glip-nano")) == 0


def test_a_sentence_says_what_is_published_and_that_it_is_not_ours():
    said = published_sentence("glip-t", "flickr30k_test")
    assert said == (
        "Published for glip-t, not measured here: r1 86.0, r5 95.9, r10 97.2 % (tables of open-mmlab/mmdetection)."
    )
    assert published_sentence("glip-t", "Raccoon") == published_sentence("glip-nano", "coco") == ""
