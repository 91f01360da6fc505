"""Frozen features: what is kept, for whom, and that nobody can tell."""

import functools
from dataclasses import replace

import pytest
import torch

from glip_adapt.adapters import ADAPTERS
from glip_adapt.core.settings import FitConfig, ViewConfig
from glip_adapt.core.structures import Fused, ImageBatch, Pyramid
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.split import ImageRecord
from glip_adapt.data.transforms import View
from glip_adapt.engine import batches
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.batches import in_batches, stack
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import evaluate
from glip_adapt.engine.features import FrozenFeatures
from glip_adapt.engine.train import train_model
from glip_adapt.trunks.glip.fpn import ImageEncoder

PLAIN = View(64, flip=False)
CLASSES = ("red box", "blue box")
TRAINED = [name for name in ADAPTERS if name != "zero_shot"]
SMALL = FitConfig(short_sides=(48, 64), test_short_side=64, batch_size=2, epochs=2)


@pytest.fixture
def data(coco_folder):
    return load_dataset(str(coco_folder))


@pytest.fixture
def build(tiny_trunk):
    return lambda method, classes=CLASSES: attach(tiny_trunk, method, classes=classes)


@pytest.fixture
def encoded(monkeypatch):
    """Sizes of all images that the image encoder has seen."""
    sizes, forward = [], ImageEncoder.forward

    def spy(self, images):
        sizes.append(images.image_sizes_hw)
        return forward(self, images)

    monkeypatch.setattr(ImageEncoder, "forward", spy)
    return sizes


def of(model, cache, record, view=PLAIN, max_long_side=1333):
    return FrozenFeatures(model, cache, max_long_side, "float32").of([record], view)


@pytest.mark.parametrize("method", TRAINED)
def test_a_cached_run_follows_an_uncached_one_step_by_step(method, build, data, tmp_path):
    caches = {
        "none": FeatureCache(memory_bytes=0),
        "memory": FeatureCache(),
        "file": FeatureCache(memory_bytes=0, folder=tmp_path),
        "file again": FeatureCache(memory_bytes=0, folder=tmp_path),
    }
    runs = {
        name: train_model(build(method), data.train, data.val, SMALL, cache=cache) for name, cache in caches.items()
    }
    expected = runs.pop("none")
    assert caches["memory"].statistics.memory_hits > 0
    for history in runs.values():
        assert [step.loss for step in history.steps] == pytest.approx([step.loss for step in expected.steps], rel=1e-5)
        assert history.validations == expected.validations


def test_the_second_run_from_a_folder_encodes_no_image(build, data, tmp_path, encoded):
    for _ in range(2):
        encoded.clear()
        train_model(build("prompt"), data.train, data.val, SMALL, cache=FeatureCache(memory_bytes=0, folder=tmp_path))
    assert encoded == []


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("full", ImageBatch),
        ("text_encoder", Pyramid),
        ("prompt", Pyramid),
        ("zero_shot", Pyramid),
        ("linear_probe", Fused),
    ],
)
def test_the_stage_of_the_adapter_decides_what_is_kept(method, kind, build, data):
    assert type(of(build(method), FeatureCache(), data.train.records[0])) is kind


def test_an_image_is_encoded_once_for_all_methods_that_freeze_as_much(build, data, encoded):
    cache = FeatureCache()
    for method in ("zero_shot", "prompt", "text_encoder"):
        evaluate(build(method), data.val, ViewConfig(short_side=64), cache=cache)
    assert sum(len(sizes_hw) for sizes_hw in encoded) == len(data.val)


def test_evaluating_from_the_cache_changes_no_prediction(build, data):
    cache, config = FeatureCache(), ViewConfig(short_side=64)
    first, second = (evaluate(build("zero_shot"), data.val, config, cache=cache) for _ in range(2))
    assert cache.statistics.memory_hits == 1  # images of one size are kept together
    assert first == second == evaluate(build("zero_shot"), data.val, config)


def test_what_the_cache_holds_of_other_splits_changes_no_prediction(build, data):
    cache, config = FeatureCache(), ViewConfig(short_side=64)
    evaluate(build("zero_shot"), replace(data.val, records=data.val.records[:1]), config, cache=cache)
    found = evaluate(build("zero_shot"), data.val, config, cache=cache)
    assert found == evaluate(build("zero_shot"), data.val, config)


def test_whatever_a_result_depends_on_gives_it_a_key_of_its_own(build, data, tiny_trunk, tmp_path):
    cache, record = FeatureCache(), data.train.records[0]
    model = build("linear_probe")
    of(model, cache, record)
    changed = tmp_path / "changed.png"
    changed.write_bytes(data.train.records[1].path.read_bytes())
    other_trunk = replace(tiny_trunk)
    vars(other_trunk)["checksum"] = "another"
    variants = [
        (model, record, View(64, flip=True), 1333),
        (model, record, View(48, flip=False), 1333),
        (model, record, PLAIN, 80),
        (model, replace(record, path=changed), PLAIN, 1333),
        (build("linear_probe", ("red box", "green box")), record, PLAIN, 1333),
        (build("linear_probe", CLASSES[::-1]), record, PLAIN, 1333),
        (build("prompt"), record, PLAIN, 1333),
        (attach(other_trunk, "linear_probe", classes=CLASSES), record, PLAIN, 1333),
    ]
    for count, (other, image, view, longest) in enumerate(variants, start=2):
        of(other, cache, image, view, longest)
        assert cache.statistics.misses == count
    FrozenFeatures(model, cache, 1333, "bfloat16").of([record], PLAIN)
    assert cache.statistics.misses == len(variants) + 2
    renamed = tmp_path / "renamed.png"
    renamed.write_bytes(record.path.read_bytes())
    of(model, cache, replace(record, path=renamed))  # the same image
    assert cache.statistics.misses == len(variants) + 2


def test_pixels_stay_out_of_the_folder(build, data, tmp_path):
    train_model(
        build("full"), data.train, None, replace(SMALL, epochs=1), cache=FeatureCache(memory_bytes=0, folder=tmp_path)
    )
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_a_cached_image_is_not_opened_again(build, data, monkeypatch):
    cache, record = FeatureCache(), data.train.records[0]
    first = of(build("prompt"), cache, record)
    monkeypatch.setattr(ImageRecord, "load", lambda record: pytest.fail("opened"))
    assert of(build("prompt"), cache, record) is first


def test_in_half_precision_it_still_learns_and_its_losses_are_float32(build, data):
    """On a CPU; a GPU runs the same code, but for its kernels."""
    exact, half = (
        train_model(build("prompt"), data.train, data.val, replace(SMALL, precision=precision, learning_rate=0.01))
        for precision in ("float32", "bfloat16")
    )
    assert [step.loss for step in half.steps] == pytest.approx([step.loss for step in exact.steps], rel=0.05)
    assert [step.loss for step in half.steps] != [step.loss for step in exact.steps]


@pytest.mark.parametrize("method", ["prompt", "full"])
def test_computing_blocks_again_changes_no_step(method, build, data):
    kept, again = (
        train_model(build(method), data.train, None, replace(SMALL, recompute=flag)) for flag in (False, True)
    )
    assert [step.loss for step in again.steps] == pytest.approx([step.loss for step in kept.steps], rel=1e-5)
    assert [s.gradient_norm for s in again.steps] == pytest.approx([s.gradient_norm for s in kept.steps], rel=1e-4)


def test_blocks_that_are_computed_again_keep_less_for_the_backward_pass(build, data):
    model, kept = build("prompt"), []
    prefix = of(model, FeatureCache(), data.train.records[0])
    for flag in (False, True):
        model.network.set_recompute(flag)
        count = [0]

        def pack(tensor, count=count):
            count[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.finish(prefix)
        kept.append(count[0])
    assert kept[1] < kept[0] / 2


def test_text_features_stay_in_full_precision_whatever_used_them_first(build, data):
    model = build("linear_probe")
    evaluate(model, data.val, ViewConfig(short_side=64, precision="bfloat16"))
    config = ViewConfig(short_side=64)
    assert evaluate(model, data.val, config) == evaluate(build("linear_probe"), data.val, config)


def test_a_model_left_in_train_mode_keeps_no_random_feature(build, data):
    model, cache = build("zero_shot"), FeatureCache()
    model.network.train()
    config = ViewConfig(short_side=64)
    found = evaluate(model, data.val, config, cache=cache)
    assert found == evaluate(build("zero_shot"), data.val, config)


def test_an_unknown_precision_is_refused_by_name():
    with pytest.raises(ValueError, match="'half'; valid are 'bfloat16', 'float16', 'float32'"):
        FitConfig(precision="half")


def test_a_step_whose_float16_gradient_overflows_is_skipped_and_says_so(build, data, monkeypatch):
    huge = functools.partial(torch.amp.GradScaler, init_scale=2.0**120)
    monkeypatch.setattr(torch.amp, "GradScaler", huge)
    model = build("linear_probe")
    before = {name: tensor.detach().clone() for name, tensor in model.owned_tensors().items()}
    history = train_model(model, data.train, None, replace(SMALL, precision="float16", max_steps=1))
    assert [step.gradient_norm for step in history.steps] == [None]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.owned_tensors().items())


@pytest.mark.parametrize("method", ADAPTERS)
def test_images_of_one_size_give_the_same_together_as_one_by_one(method, build, data):
    model = build(method)
    prefixes = [of(model, None, record) for record in data.train.records[:3]]
    (output,) = model.finish(stack(prefixes))
    assert output.image_sizes_hw == tuple(prefix.image_sizes_hw[0] for prefix in prefixes)
    for row, prefix in enumerate(prefixes):
        (alone,) = model.finish(prefix)
        for name in ("token_logits", "box_deltas", "centerness"):
            torch.testing.assert_close(getattr(output, name)[row], getattr(alone, name)[0], rtol=1e-4, atol=1e-4)


def test_a_batch_ends_where_the_size_changes_or_the_pixels_are_many(monkeypatch):
    monkeypatch.setattr(batches, "BATCH_PIXELS", 2 * 64 * 96)
    shapes = [(64, 96), (64, 96), (64, 96), (64, 64), (640, 640), (640, 640), (64, 96)]
    assert list(in_batches(enumerate(shapes))) == [[0, 1], [2], [3], [4], [5], [6]]
    assert list(in_batches(iter(()))) == []
