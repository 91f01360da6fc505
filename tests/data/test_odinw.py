import json
from pathlib import Path

import pytest

from glip_adapt.core.captions import ClassPrompt, build_caption
from glip_adapt.data.odinw import known_datasets

HERE = Path(__file__).resolve()
PARITY = (HERE.parents[1] / "parity", HERE.parents[2].parent / "shared" / "parity")
TEXT = next((folder / "text.json" for folder in PARITY if (folder / "text.json").is_file()), None)


def test_the_thirteen_datasets_are_known_with_their_facts():
    specs = known_datasets()
    assert len(specs) == len({spec.official_name for spec in specs}) == len({spec.short_name for spec in specs}) == 13
    for spec in specs:
        assert {"train", "val", "test"} <= set(spec.splits)
        assert spec.early_stopping in spec.splits
        assert spec.archive_url.endswith(".zip")
        assert spec.licence
        assert spec.prompts is None or len(spec.prompts) == len(spec.classes)
        assert list(spec.categories) == list(range(1, len(spec.classes) + 1))
        for split in spec.splits.values():
            assert split.ann_file.startswith(f"{split.img_dir}/")
    counts = {spec.short_name: len(spec.classes) for spec in specs}
    assert (counts["PascalVOC"], counts["Aquarium"], counts["Vehicles"], counts["Thermal"]) == (20, 7, 5, 2)


@pytest.mark.skipif(TEXT is None, reason="text.json is neither in tests/parity nor in ../shared/parity")
def test_captions_from_the_facts_equal_the_public_ones():
    goldens = [entry for entry in json.loads(TEXT.read_text()) if entry["dataset"]]
    found = set()
    for entry in goldens:
        spec = next(spec for spec in known_datasets() if entry["dataset"].startswith(spec.official_name))
        found.add(spec.official_name)
        assert list(spec.classes) == entry["labels"]
        words = spec.prompts if entry["manual_prompt"] else spec.classes
        assert build_caption(words).text == entry["caption"]
    assert len(found) == 13


def test_the_manual_prompts_include_the_renamed_classes():
    prompts = {spec.short_name: spec.prompts for spec in known_datasets()}
    assert prompts["Mushrooms"] == (ClassPrompt(name="flat mushroom"), ClassPrompt(name="yellow mushroom"))
    assert prompts["Rabbits"] == (ClassPrompt(name="rabbit"),)
    assert prompts["Raccoon"] is None
