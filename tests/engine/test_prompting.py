from dataclasses import replace

import pytest
import torch

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.knowledge import Knowledge
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.formats.coco import coco_ground_truth
from glip_adapt.engine import prompting
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.evaluate import Evaluation, score
from glip_adapt.engine.held_out import split_up
from glip_adapt.engine.prompting import BEST_OF_EACH, SEED, class_changes, search_prompts, token_changes, word_classes
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GLIP_NANO

CLASSES = ("red box", "blue box")


@pytest.fixture
def data(coco_folder):
    return load_dataset(coco_folder)


@pytest.fixture
def scored(monkeypatch, data):
    """What was evaluated, split and prefixes, with AP from a table: (prefix of red, prefix of blue) → APs of both."""
    seen, table = [], {}

    def evaluate(model, split, config, *, cache):
        prefixes = tuple({c.name: c.prefix for c in model.prompts}[name] for name in CLASSES)
        seen.append((split.name.rpartition("/")[2], prefixes))
        red, blue = table.get(prefixes, (0.0, 0.0))
        aps = {"ap": (red + blue) / 2, **dict.fromkeys(("ap50", "ap75", "ap_small", "ap_medium", "ap_large"))}
        return Evaluation(values=aps, per_class={"red box": red, "blue box": blue}, predictions=())

    monkeypatch.setattr(prompting, "evaluate", evaluate)
    return seen, table


def test_each_wording_is_scored_on_val_and_the_best_once_on_test(tiny_trunk, data, scored):
    seen, table = scored
    table.update({("", ""): (0.3, 0.3), ("a ", "a "): (0.2, 0.5), ("the ", "the "): (0.1, 0.2)})
    table[("", "a ")] = (0.3, 0.5)
    found = search_prompts(tiny_trunk, data, ["a {}", "the {}"])
    plain, a, the, mixed = ("", ""), ("a ", "a "), ("the ", "the "), ("", "a ")
    assert seen == [("val", plain), ("val", a), ("val", the), ("val", mixed), ("test", mixed)]
    assert [w.candidate for w in found.wordings] == ["{}", "a {}", "the {}", BEST_OF_EACH]
    assert found.chosen is found.wordings[3]
    assert (found.chosen.val_ap, found.test_ap) == (0.4, 0.4)


def test_the_best_of_each_class_must_win_as_a_whole(tiny_trunk, data, scored):
    seen, table = scored
    table.update({("", ""): (0.3, 0.3), ("a ", "a "): (0.2, 0.5)})  # together they read badly
    assert search_prompts(tiny_trunk, data, ["a {}"]).chosen.candidate == "a {}"
    assert seen[-1] == ("test", ("a ", "a "))


def test_where_one_wording_is_best_for_all_it_is_not_scored_again(tiny_trunk, data, scored):
    seen, table = scored
    table.update({("a ", "a "): (0.3, 0.3)})
    told = []
    found = search_prompts(tiny_trunk, data, ["a {}", "a {}"], on_wording=told.append)
    assert [split for split, _ in seen] == ["val", "val", "test"]
    assert tuple(told) == found.wordings


def test_equal_wordings_leave_the_plain_names(tiny_trunk, data, scored):
    assert search_prompts(tiny_trunk, data, ["a {}"]).chosen.candidate == "{}"


def test_a_search_runs_on_a_real_model(tiny_trunk, data):
    found = search_prompts(tiny_trunk, data, ["a {} on grey"])
    assert all(0 <= w.val_ap <= 1 for w in found.wordings)
    assert found.chosen.val_ap == max(w.val_ap for w in found.wordings)


def test_a_name_stands_where_the_braces_are():
    assert word_classes(["dog"], "a {} seen from above") == (
        ClassPrompt(name="dog", prefix="a ", suffix=" seen from above"),
    )


@pytest.mark.parametrize("candidate", ["a dog", "{} or {}"])
def test_a_wording_without_one_place_for_the_name_is_refused(tiny_trunk, data, candidate):
    with pytest.raises(ValueError, match=r"must hold \{\} once"):
        search_prompts(tiny_trunk, data, [candidate])


def test_no_wording_and_no_labelled_images_are_refused(tiny_trunk, data):
    with pytest.raises(ValueError, match="No candidate wording"):
        search_prompts(tiny_trunk, data, [])
    with pytest.raises(FileNotFoundError, match="no train split"):
        search_prompts(tiny_trunk, replace(data, splits={"test": data.test}), ["a {}"])


def test_without_a_test_split_nothing_is_scored_at_the_end(tiny_trunk, data, scored):
    found = search_prompts(tiny_trunk, replace(data, splits={"val": data.val}), ["a {}"])
    assert (found.test_ap, [split for split, _ in scored[0]]) == (None, ["val", "val"])


def test_each_source_of_descriptions_is_a_candidate_and_the_best_of_each_class_may_mix_them(
    tiny_trunk, data, monkeypatch
):
    seen = []

    def evaluate(model, split, config, *, cache):
        texts = tuple(prompt.suffix for prompt in model.prompts)
        seen.append(texts)
        red, blue = (0.5 if text == ": " + best else 0.1 for text, best in zip(texts, ("fire", "sky"), strict=True))
        return Evaluation(values={"ap": (red + blue) / 2}, per_class={"red box": red, "blue box": blue}, predictions=())

    monkeypatch.setattr(prompting, "evaluate", evaluate)
    wiki, wordnet = Knowledge("wiki", {"red box": "fire"}), Knowledge("wordnet", {"red box": "rose", "blue box": "sky"})
    again = Knowledge("again", wiki.texts)
    found = search_prompts(tiny_trunk, data, [wiki, wordnet, again])
    assert [w.candidate for w in found.wordings] == ["{}", "wiki", "wordnet", BEST_OF_EACH]
    assert seen[-1] == (": fire", ": sky")
    assert [p.suffix for p in found.chosen.prompts] == [": fire", ": sky"]


def test_without_val_each_fold_is_detected_in_by_the_wording_that_the_others_choose(tiny_trunk, data, monkeypatch):
    """Of folds A, B and C of two images, the plain names find A and half of B, the other wording the rest.

    Without A the other wording is better, without C the plain names, and both miss what they then look at. Without B
    they are equal, and the plain names find half of it.
    """
    a, b, c = ([record.image_id for record in fold.held.records] for fold in split_up(data.train, 3, SEED))
    looks = []

    def perfect(split, ids):
        truth = coco_ground_truth(split)["annotations"]
        return score([{**box, "score": 1.0} for box in truth if box["image_id"] in ids], split)

    def evaluate(model, split, config, *, cache):
        looks.append(split.name)
        return perfect(split, [b[1], *c] if model.prompts[0].prefix else [*a, b[0]])

    monkeypatch.setattr(prompting, "evaluate", evaluate)
    found = search_prompts(tiny_trunk, replace(data, splits={"train": data.train}), ["a {}"])
    assert looks == ["shapes/train"] * 2  # once for each wording
    assert (found.chosen.candidate, found.test_ap) == ("{}", None)
    assert found.expected == perfect(data.train, b[:1]).ap < found.chosen.val_ap
    one = replace(data.train, records=data.train.records[:1])
    assert search_prompts(tiny_trunk, replace(data, splits={"train": one}), ["a {}"]).expected is None


@pytest.fixture
def trunk(tiny_trunk):
    """Reads phrases alone, so that a word has the same features in every caption."""
    torch.manual_seed(0)
    return replace(tiny_trunk, network=build_glip(GLIP_NANO).requires_grad_(False))


def test_a_token_moved_onto_a_word_is_nearest_to_that_word(trunk):
    model = attach(trunk, "prompt", classes=["dog", "arrow"])
    arrow = trunk.network.encode_text(attach(trunk, "zero_shot", classes=["arrow"]).captions[0]).features[0, 1]
    (offset,) = model.owned_tensors().values()
    with torch.no_grad():
        offset[1] = arrow - model.texts()[0].features[0, 1]
    changes = token_changes(model)
    first = changes[1]
    assert (first.class_name, first.nearest[0][0]) == ("dog", "arrow")
    assert first.nearest[0][1] == pytest.approx(1.0, abs=1e-5)
    assert first.nearest[0][1] > first.nearest[1][1] >= first.nearest[2][1]
    assert [c.change for c in changes[2:]] == [0.0] * (len(changes) - 2)
    assert first.change == pytest.approx(
        float((arrow - model.texts()[0].features[0, 1]).norm() / model.texts()[0].features[0, 1].norm())
    )


def test_every_token_has_its_class_and_every_class_its_mean_change(trunk):
    model = attach(trunk, "prompt", classes=["dog", "arrow"])
    (offset,) = model.owned_tensors().values()
    with torch.no_grad():
        features = model.texts()[0].features[0]
        offset.copy_(torch.arange(len(offset))[:, None] * features)  # token i moves by i times its length
    changes = token_changes(model, words=1)
    assert [c.token for c in changes] == trunk.tokenizer.words(model.captions[0])
    names = [c.class_name for c in changes]
    assert names == ["", "dog", "dog", "", "arrow", ""]
    assert [c.change for c in changes] == pytest.approx([0, 1, 2, 3, 4, 5], rel=1e-5)
    assert class_changes(model) == pytest.approx({"dog": 1.5, "arrow": 4.0}, rel=1e-5)


def test_a_learned_context_moves_the_names_that_follow_it(trunk):
    model = attach(trunk, "context", classes=["dog", "arrow"], settings={"tokens": 1, "per_class": True})
    (offset,) = model.owned_tensors().values()
    with torch.no_grad():
        offset[1] = torch.linspace(-1, 1, offset.shape[1])
    assert class_changes(model)["dog"] == 0.0
    assert class_changes(model)["arrow"] > 0.01
    assert all(word.isalnum() for change in token_changes(model) for word, _ in change.nearest)


@pytest.mark.parametrize("method", ["linear_probe", "zero_shot", "prompt"])
def test_a_model_whose_text_is_the_trunks_has_nothing_to_show(trunk, method):
    with pytest.raises(ValueError, match=f"{method} leaves the text features as they are"):
        token_changes(attach(trunk, method, classes=["dog"]))
