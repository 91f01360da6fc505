"""Training on images with captions of their own, by both families."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from glip_adapt.core.captions import MAX_TOKENS, Caption
from glip_adapt.core.sentences import sentence_caption
from glip_adapt.core.settings import Compositions, FitConfig, ViewConfig
from glip_adapt.core.structures import Target
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine.adapted import adapt, attach
from glip_adapt.engine.features import FrozenFeatures
from glip_adapt.engine.ranks import Ranks
from glip_adapt.engine.samples import draw_batches, draw_caption, losses_of
from glip_adapt.engine.selection import fit
from glip_adapt.trunks.catalogue import load_tokenizer
from glip_adapt.trunks.tokenizer import CaptionTooLongError

SMALL = ViewConfig(short_side=64, max_long_side=120)
CONFIG = FitConfig(
    batch_size=2, learning_rate=1e-3, max_steps=6, schedule="cosine", short_sides=(64,), max_long_side=120,
    test_short_side=64, flip=False,
)  # fmt: skip
SENTENCES = ("a [red box] and a [blue box]", "the [red box] is near the [blue box]", "[red box], [blue box]")


@pytest.fixture(params=["tiny_trunk", "dino_trunk"])
def trunk(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def data(coco_folder):
    return load_dataset(coco_folder)


@pytest.fixture
def captions(data):
    """Images in sentences that name both boxes, in the order of the labels of ``data``."""
    images = tuple(
        CaptionedImage(record=record, sentences=(sentence_caption(SENTENCES[i % 3]),), absent=("tree", "star"))
        for i, record in enumerate(data.train.records)
    )
    return CaptionedSplit("shapes", images)


def test_captions_of_the_same_text_are_the_training_of_classes(trunk, data):
    """With one class there is one order, so that both ways see the same tokens."""
    red = data.classes.index("red box")
    records = []
    for record in data.train.records:
        rows = record.target.labels == red
        target = Target(record.target.boxes_xyxy[rows], torch.zeros(int(rows.sum()), dtype=torch.int64))
        records.append(replace(record, learned=target, annotations=()))
    split = replace(data.train, records=tuple(records), classes=("red box",), category_ids=(0,))
    name = Caption("red box", ((0, 7),), ("red box",))
    captions = CaptionedSplit("red", tuple(CaptionedImage(record=record, sentences=(name,)) for record in records))
    model, adapted = attach(trunk, "lora", classes=["red box"]), adapt(trunk, "lora")
    start = model.copy_owned()
    learner = adapted.for_classes(["red box"])
    learner.load_owned(start)
    by_class = fit(model, split, split, replace(CONFIG, validate_every=6))
    by_caption = fit(adapted, captions, split, replace(CONFIG, validate_every=6))
    for one, other in zip(by_class.steps, by_caption.steps, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
    assert by_class.best_ap == pytest.approx(by_caption.best_ap)


def test_each_image_of_a_batch_reads_its_own_caption(trunk, captions):
    adapted = adapt(trunk, "linear_probe")
    model, short = adapted.for_captions(captions), replace(captions, negatives=0)
    features = FrozenFeatures(model, None, CONFIG.max_long_side, "float32")
    with closing(draw_batches(model, short, features, replace(CONFIG, batch_size=3), Ranks())) as batches:
        batch = next(batches)
    sentences = {image.record.image_id: image.caption for image in captions.images}
    assert len({sentences[sample.record.image_id].text for sample in batch}) > 1
    (_, together), *none = losses_of(model, features, batch, Ranks())
    apart = dict.fromkeys(together, 0.0)
    objective, prepared = model.network.objective, [sample.prepared for sample in batch]
    for sample in batch:
        alone = adapted.for_sentence(sentences[sample.record.image_id])
        (output,) = alone.finish(features.finish(sample.fetched), [sample.prepared])
        for name, loss in objective.losses(output, [sample.prepared], objective.scale(prepared)).items():
            apart[name] += loss.item()
    assert not none
    assert {name: loss.item() for name, loss in together.items()} == pytest.approx(apart, rel=1e-4)


@pytest.mark.parametrize("method", ["linear_probe", "lora", "text_encoder", "full"])
def test_owned_tensors_learn_and_all_others_stay(trunk, captions, method):
    adapted = adapt(trunk, method)
    model = adapted.for_captions(captions)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    history = fit(adapted, captions, config=replace(CONFIG, max_steps=2))
    after = model.network.state_dict()
    assert len(history.steps) == 2
    assert all(torch.equal(before[name], after[name]) for name in before if name not in model.owned)
    assert any(not torch.equal(before[name], after[name]) for name in model.owned)


def test_what_was_learnt_is_in_models_for_classes_and_sentences(trunk, data, captions):
    adapted = adapt(trunk, "full")
    asked = adapted.for_classes(data.classes)
    image = data.train.records[0].load()
    before, grounded = asked.predict(image, view=SMALL), adapted.ground(image, SENTENCES[0], view=SMALL)
    history = fit(adapted, captions, config=CONFIG)
    assert history.steps[-1].loss < history.steps[0].loss
    assert not torch.equal(asked.predict(image, view=SMALL).scores, before.scores)
    assert not torch.equal(adapted.ground(image, SENTENCES[0], view=SMALL).scores, grounded.scores)


def test_a_validation_split_of_classes_selects(trunk, data, captions):
    history = fit(adapt(trunk, "lora"), captions, data.val, replace(CONFIG, validate_every=2, keep_start=True))
    assert [v.step for v in history.validations] == [0, 2, 4, 6]
    assert history.best_ap == max(v.ap for v in history.validations)


def test_a_run_can_be_repeated(trunk, captions):
    one, other = (fit(adapt(trunk, "linear_probe"), captions, config=CONFIG) for _ in range(2))
    assert [step.losses for step in one.steps] == [step.losses for step in other.steps]


@pytest.mark.parametrize("method", ["prompt", "context"])
def test_a_method_bound_to_one_caption_is_refused(trunk, captions, method):
    with pytest.raises(ValueError, match=f"tensors of {method} belong to a caption of classes"):
        fit(adapt(trunk, method), captions, config=CONFIG)


def test_captions_and_classes_are_not_mixed_up(tiny_trunk, data, captions):
    for model, train in (
        (adapt(tiny_trunk, "lora"), data.train),
        (attach(tiny_trunk, "lora", classes=data.classes), captions),
    ):
        with pytest.raises(ValueError, match=r"fit\(adapt\(trunk, method\), captions\), or fit\(attach"):
            fit(model, train, config=CONFIG)


def test_no_images_and_nothing_to_train_are_refused(tiny_trunk, captions):
    with pytest.raises(ValueError, match="shapes has no images to learn from"):
        fit(adapt(tiny_trunk, "lora"), captions.subset([]), config=CONFIG)
    with pytest.raises(ValueError, match="zero_shot owns nothing"):
        fit(adapt(tiny_trunk, "zero_shot"), captions, config=CONFIG)


def test_compositions_of_images_with_captions_are_refused(tiny_trunk, captions):
    with pytest.raises(ValueError, match="shapes has captions, which a composition would not follow"):
        fit(adapt(tiny_trunk, "lora"), captions, config=replace(CONFIG, compositions=Compositions(crop=1.0)))


def test_images_are_mirrored_unless_their_caption_tells_left_from_right(tiny_trunk, captions, monkeypatch):
    seen = {}
    fetch = FrozenFeatures.fetch
    monkeypatch.setattr(
        FrozenFeatures,
        "fetch",
        lambda self, records, view: (
            seen.setdefault(records[0].image_id, set()).add(view.flip) or fetch(self, records, view)
        ),
    )
    first, *others = captions.images
    sided = replace(first, sentences=(sentence_caption("a [red box] to the right of a [blue box]"),))
    split = replace(captions, images=(sided, *others))
    fit(adapt(tiny_trunk, "linear_probe"), split, config=replace(CONFIG, flip=True, max_steps=24))
    assert seen.pop(first.record.image_id) == {False}
    assert set.union(*seen.values()) == {False, True}


def test_absent_names_are_left_out_until_the_caption_is_short_enough(captions):
    tokenizer, dice = load_tokenizer("glip-nano"), np.random.default_rng(0)
    many = replace(captions.images[0], absent=tuple(f"red box number {i}" for i in range(200)))
    tokens = draw_caption(many, 200, tokenizer, dice)
    assert MAX_TOKENS / 4 < tokens.ids.shape[1] <= MAX_TOKENS
    assert draw_caption(many, 0, tokenizer, dice).token_map.shape[1] == 2
    long = replace(many, sentences=(Caption("red box " * 200, ((0, 7),), ("red box",)),))
    with pytest.raises(CaptionTooLongError):
        draw_caption(long, 200, tokenizer, dice)


def test_other_names_are_added_at_each_visit(captions):
    tokenizer = load_tokenizer("glip-nano")
    many = replace(captions.images[0], absent=tuple(f"box {i}" for i in range(10)))
    drawn = [draw_caption(many, 3, tokenizer, np.random.default_rng((0, visit))).ids.tolist() for visit in range(5)]
    assert len({str(ids) for ids in drawn}) == 5
