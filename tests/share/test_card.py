"""The card of a shared adapter, and the facts of its training."""

import html
import re
from dataclasses import replace

import pytest

from glip_adapt.adapters.storage import AdapterMismatchError, read_description
from glip_adapt.core.config import to_mapping
from glip_adapt.engine.adapted import attach
from glip_adapt.share.card import TrainingFacts, build_card, read_facts, write_facts
from glip_adapt.trunks.released import TRUNKS

REPOSITORY = "someone/tools-5-shot"
FACTS = TrainingFacts(data="shapes/train-5-shot-seed-3", shots=5, seed=3, metrics={"test AP": 0.4567})


@pytest.fixture
def saved(tiny_trunk, tmp_path):
    attach(tiny_trunk, "prompt", classes=["red box", "blue | box"]).save(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_card_says_what_is_known_and_what_is_not(saved):
    description = read_description(saved)
    card = build_card(REPOSITORY, description, FACTS, licence="mit", has_picture=True)
    for expected in (
        f"SHA-256 of its weights {description.trunk.checksum}",
        "| classes, in label order | red box, blue \\| box |",
        "| caption | red box. blue \\| box |",
        "| trained on | shapes/train-5-shot-seed-3 |",
        "| shots | 5 |",
        "| seed | 3 |",
        "| test AP | 45.7 % |",
        "| licence | mit |",
        f"| SHA-256 of adapter.safetensors | {description.sha256} |",
        "# tools-5-shot",
        f'model = from_hub("{REPOSITORY}")',
    ):
        assert expected in card, expected
    bare = build_card(REPOSITORY, description)
    for name in ("trained on", "shots", "seed", "metrics", "licence"):
        assert f"| {name} | not stated |" in bare
    assert "license:" not in bare
    assert "picture" not in bare


def test_the_metadata_of_the_card_is_yaml_whatever_it_holds(saved):
    yaml = pytest.importorskip("yaml")
    licence = 'other\n---\nevil: "yes"'
    card = build_card(REPOSITORY, read_description(saved), licence=licence)
    found = yaml.safe_load(card.removeprefix("---\n").partition("\n---\n")[0])
    assert found["license"] == licence
    assert found["tags"] == ["glip-nano", "few-shot", "adapter", "prompt"]


def test_a_name_cannot_break_out_of_the_table(tiny_trunk, tmp_path):
    attach(tiny_trunk, "prompt", classes=["a | b\n\n# head <script>x</script> `c`"]).save(tmp_path)
    card = build_card(REPOSITORY, read_description(tmp_path))
    assert "<script>" not in card
    assert "\n# head" not in card
    rows = [line for line in card.splitlines() if line.startswith("| c")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)


@pytest.mark.parametrize(
    "text", ["AP | x", "AP\n\n# head", "![x](http://evil.example/y.png)", "*a* _b_ ~~c~~", "\\|", "<b>a</b>", "`c`"]
)
def test_whatever_looks_like_markdown_is_text(saved, text):
    facts = replace(FACTS, data=text, metrics={text: 0.5})
    card = build_card(REPOSITORY, read_description(saved), facts)
    (row,) = (line for line in card.splitlines() if line.endswith("| 50.0 % |"))
    name = row.removeprefix("| ").removesuffix(" | 50.0 % |")
    assert f"| trained on | {name} |" in card.splitlines()
    live = re.sub(r"\\[\\|\[\]*_!`~:]", "", name)  # what a backslash takes the meaning from
    assert not re.search(r"[\\|\[\]*_!<>`~\n]", live)
    assert html.unescape(re.sub(r"\\(.)", r"\1", name)) == " ".join(text.split())


def test_code_on_the_card_is_shown_as_it_is(tiny_trunk, tmp_path):
    attach(tiny_trunk, "linear_probe", classes=["red box"]).save(tmp_path)
    card = build_card("me/my_adapter", read_description(tmp_path))
    assert "A `linear_probe` adapter" in card
    assert "`glip-adapt pull me/my_adapter --out adapter`" in card


@pytest.mark.parametrize("name", ["seed", "licence", "SHA-256 of adapter.safetensors"])
def test_a_metric_cannot_take_the_place_of_another_row(saved, name):
    with pytest.raises(ValueError, match=f"another row of the name '{name}'"):
        build_card(REPOSITORY, read_description(saved), replace(FACTS, metrics={name: 0.5}))


def test_facts_that_cannot_be_read_are_not_called_an_adapter(saved):
    (saved / "training.json").write_text("{}")
    with pytest.raises(AdapterMismatchError, match=r"training\.json describes no training: it has no format_version"):
        read_facts(saved)


def test_facts_belong_to_the_adapter_that_they_were_written_for(saved, tiny_trunk):
    assert read_facts(saved) is None
    write_facts(FACTS, saved)
    assert to_mapping(read_facts(saved)) == to_mapping(FACTS)
    attach(tiny_trunk, "prompt", classes=["red box"]).save(saved)
    assert read_facts(saved) is None


def test_facts_need_an_adapter_to_be_about(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter\.json is missing"):
        write_facts(FACTS, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert read_facts(tmp_path) is None


def test_only_a_released_trunk_is_named_as_the_base_of_an_adapter(saved):
    description = read_description(saved)
    assert "base_model" not in build_card(REPOSITORY, description)
    released = replace(description, trunk=replace(description.trunk, name="glip-t"))
    assert 'base_model: "GLIPModel/GLIP"' in build_card(REPOSITORY, released)
    assert "| licence of the trunk | MIT |" in build_card(REPOSITORY, released)
    other = build_card(REPOSITORY, replace(description, trunk=replace(description.trunk, name="mm-grounding-dino-t")))
    assert f'base_model: "{TRUNKS["mm-grounding-dino-t"].repository}"' in other
    assert "| licence of the trunk | Apache-2.0 |" in other
    assert "GLIP" not in other
    unknown = replace(description, trunk=replace(description.trunk, name="my-trunk"))
    assert "| licence of the trunk | not stated |" in build_card(REPOSITORY, unknown)
    assert "base_model" not in build_card(REPOSITORY, unknown)


def test_no_control_code_reaches_the_card(tiny_trunk, tmp_path):
    attach(tiny_trunk, "prompt", classes=["red box"]).save(tmp_path)
    facts = TrainingFacts(data="set \x1b[31m\u202e\x9b\ud800", shots=1, seed=3)
    card = build_card("me/\x1b]0;x\x07", read_description(tmp_path), facts)
    assert not set(card) & set("\x1b\u202e\x9b\ud800\x07")
    assert "| trained on | set \\\\x1b\\[31m\\\\u202e\\\\x9b\\\\ud800 |" in card
