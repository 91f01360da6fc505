"""benchmarks/pretrain_nano.py: what the scenes and captions say is true, and a run writes weights and their card."""

import json

import numpy as np
import pytest
import torch
from conftest import load_benchmark

from glip_adapt.data import glyphs
from glip_adapt.data.scenes import COLOURS, TRAINING_STYLE, Scene, is_held_out, render_scene
from glip_adapt.trunks.catalogue import load_tokenizer, load_trunk


@pytest.fixture(scope="module")
def nano():
    yield from load_benchmark("pretrain_nano")


@pytest.fixture(scope="module")
def scenes(nano):
    return nano.Scenes(load_tokenizer("glip-nano"), batch=4, seed=1)


@pytest.fixture(scope="module")
def described(scenes):
    """Scenes with their captions and labels."""
    dice = np.random.default_rng(5)
    found = []
    for _ in range(60):
        scene = render_scene(scenes.choose_glyphs(dice), None, TRAINING_STYLE, dice)
        found.append((scene, *scenes.describe(scene, dice)))
    return found


def is_coloured(phrase):
    return phrase.split()[0] in COLOURS


def test_each_object_is_called_by_its_name_or_its_colour_and_name(described):
    for scene, caption, labels in described:
        assert len(labels) == len(scene.names)
        for name, colour, label in zip(scene.names, scene.colours, labels, strict=True):
            assert caption.names[label] in (name, f"{colour} {name}")
            start, end = caption.spans[label]
            assert caption.text[start:end] == caption.names[label]


def test_what_is_named_but_not_labelled_is_not_there(described):
    absent = 0
    for scene, caption, labels in described:
        pairs = set(zip(scene.colours, scene.names, strict=True))
        for phrase in set(caption.names) - {caption.names[label] for label in labels}:
            absent += 1
            if is_coloured(phrase):
                assert tuple(phrase.split(" ", 1)) not in pairs
            else:
                assert phrase not in scene.names
    assert absent > 100


def test_names_stand_once_and_in_any_order(described):
    for _, caption, _ in described:
        assert len(set(caption.names)) == len(caption.names)
    first = [labels[0] for _, caption, labels in described if len(caption.names) > 5]
    assert len(set(first)) > 4  # the first object is not always named first


def test_a_cut_list_keeps_a_few_names_and_labels_only_what_it_names(scenes, monkeypatch):
    monkeypatch.setattr(scenes, "cut", 1.0)
    dice, lengths = np.random.default_rng(5), set()
    for _ in range(60):
        scene = render_scene(scenes.choose_glyphs(dice), None, TRAINING_STYLE, dice)
        caption, labels = scenes.describe(scene, dice)
        if ". " not in caption.text and len(caption.names) > 1:
            continue  # a sentence names all that is there
        lengths.add(len(caption.names))
        for name, colour, label in zip(scene.names, scene.colours, labels, strict=True):
            called = {name, f"{colour} {name}"} & set(caption.names)
            assert called == (set() if label is None else {caption.names[label]})
    assert lengths == {1, 2, 3, 4}


def test_a_batch_of_cut_lists_has_targets_for_named_objects_only(nano):
    batch = nano.Scenes(load_tokenizer("glip-nano"), batch=16, seed=1, cut=1.0)[3]
    for target, classes in zip(batch.targets, batch.tokens.token_map.any(-1).sum(-1), strict=True):
        assert len(target.boxes_xyxy) == len(target.labels)
        assert (target.labels < classes).all()


def test_held_out_pairs_and_unseen_names_never_occur(described):
    unseen = {glyph.name for glyph in glyphs.unseen_glyphs()}
    for scene, caption, _ in described:
        assert unseen.isdisjoint(scene.names)
        for phrase in caption.names:
            colour, _, name = phrase.partition(" ") if is_coloured(phrase) else ("", "", phrase)
            assert name not in unseen
            assert not colour or not is_held_out(colour, name)


def test_a_scene_full_of_one_name_still_gets_absent_ones(scenes, monkeypatch):
    """All colours that pre-training shows of a name are there: nothing of that name can be absent."""
    name = max((g.name for g in glyphs.seen_glyphs()), key=lambda n: sum(is_held_out(c, n) for c in COLOURS))
    colours = [colour for colour in COLOURS if not is_held_out(colour, name)]
    scene = Scene(None, np.zeros((len(colours), 4), np.float32), (name,) * len(colours), tuple(colours), ())
    dice = np.random.default_rng(0)
    for _ in range(200):
        assert not scenes.absent_name(scene, True, dice).endswith(f" {name}")
        assert scenes.absent_name(scene, False, dice) != name


def test_a_sentence_has_an_article_before_each_phrase(nano):
    caption = nano.build_sentence(["red star", "anchor", "comet"])
    assert caption.text == "a red star, an anchor and a comet"
    assert [caption.text[start:end] for start, end in caption.spans] == ["red star", "anchor", "comet"]


def test_a_batch_depends_on_seed_and_step_alone(nano, scenes):
    first, again = scenes[7], nano.Scenes(scenes.tokenizer, batch=4, seed=1)[7]
    assert torch.equal(first.images.pixels, again.images.pixels)
    assert torch.equal(first.tokens.ids, again.tokens.ids)
    assert [t.labels.tolist() for t in first.targets] == [t.labels.tolist() for t in again.targets]
    assert not torch.equal(first.images.pixels, scenes[8].images.pixels)
    assert not torch.equal(first.images.pixels, nano.Scenes(scenes.tokenizer, batch=4, seed=2)[7].images.pixels)


def test_a_run_writes_weights_that_load_and_their_card(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(nano, "zero_shot", lambda trunk, split: {"Dice": 0.25})
    arguments = ["--trunk", "glip-nano-a", "--steps", "2", "--batch", "2", "--out", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["pretrain_nano.py", *arguments])
    nano.main()
    loaded = load_trunk("glip-nano-a", checkpoint=tmp_path / "glip-nano-a.safetensors")
    card = (tmp_path / "glip-nano-a.md").read_text()
    assert loaded.checksum in card
    assert "| **mean** | **25.0** |" in card
    *_, last = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert last == {"step": 2, "zero_shot": {"Dice": 0.25}, "mean": 0.25}


def test_the_vocabulary_spells_every_name_and_holds_no_unseen_noun(nano):
    entries = nano.train_vocabulary()
    tokenizer = load_tokenizer("glip-nano")
    assert abs(len(entries) - tokenizer.size) < 100  # the trainer breaks ties at random
    assert "virgo" not in entries
    for glyph in (*glyphs.seen_glyphs(), *glyphs.unseen_glyphs()):
        pieces = tokenizer._tokenizer.encode(glyph.name).tokens
        assert "[UNK]" not in pieces, glyph.name
