"""Several tasks on one trunk: each as by itself, the picture encoded once, and nothing left behind."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image

from glip_adapt.core.settings import ViewConfig
from glip_adapt.engine import batches
from glip_adapt.engine.adapted import attach
from glip_adapt.share.tasks import TaskSet
from glip_adapt.trunks.weights import weights_checksum

CONFIG = ViewConfig(short_side=64)
CLASSES = {
    "prompt": ("red box", "blue box"),
    "linear_probe": ("box",),
    "full": ("grey box", "box"),
    "zero_shot": ("a",),
}


def picture(seed, size=(80, 64)):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def adapted(trunk, method):
    """A model whose owned tensors are no longer the trunk's."""
    model = attach(trunk, method, classes=CLASSES[method])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.owned_tensors().values():
            tensor.add_(0.01 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture
def tasks(tiny_trunk):
    """One task per method, named after it."""
    tasks = TaskSet(tiny_trunk)
    for method in CLASSES:
        tasks.add(method, adapted(tiny_trunk, method))
    return tasks


@pytest.fixture
def encoded(tiny_trunk, monkeypatch):
    """The number of pictures in each batch that the trunk's image encoder sees."""
    batches, original = [], tiny_trunk.network.encode_image
    monkeypatch.setattr(
        tiny_trunk.network,
        "encode_image",
        lambda images: batches.append(len(images.image_sizes_hw)) or original(images),
    )
    return batches


def assert_same(found, expected, tolerance=0.0):
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=1000 * tolerance)


@pytest.mark.parametrize("method", CLASSES)
def test_a_picture_alone_is_seen_to_the_last_bit_as_by_the_model_alone(tasks, method):
    (found,) = tasks.predict([picture(0)], [method], CONFIG)
    assert_same(found, tasks[method].predict(picture(0), view=CONFIG))


def test_a_batch_may_mix_tasks_and_sizes_in_any_order(tasks, encoded):
    names = ["prompt", "full", "linear_probe", "prompt", "zero_shot", "full"]
    images = [picture(i, size) for i, size in enumerate([(80, 64), (90, 64), (80, 64), (64, 100), (80, 60), (64, 80)])]
    found = tasks.predict(images, names, CONFIG)
    for name, image, mine in zip(names, images, found, strict=True):
        assert_same(mine, tasks[name].predict(image, view=CONFIG), tolerance=1e-5)


def test_pictures_of_one_size_are_encoded_together_for_all_tasks_but_those_that_do_it_themselves(tasks, encoded):
    images = [picture(i) for i in range(4)]
    tasks.predict(images, list(CLASSES), CONFIG)
    assert encoded == [4]
    tasks.predict([picture(5)], ["full"], CONFIG)
    assert encoded == [4]


def test_a_batch_has_no_more_pictures_than_memory_is_meant_for(tasks, encoded, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_PIXELS", 2 * 64 * 96)
    images = [picture(i, (80, 64) if i % 2 else (64, 80)) for i in range(6)]
    found = tasks.predict(images, ["prompt"] * 6, CONFIG)
    assert encoded == [2, 1, 2, 1]
    for image, mine in zip(images, found, strict=True):
        assert_same(mine, tasks["prompt"].predict(image, view=CONFIG), tolerance=1e-5)


class Album(Sequence):
    """Opens a picture anew at each access."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return picture(range(3)[i])


def test_pictures_may_be_opened_on_access(tasks):
    found = tasks.predict(Album(), ["prompt", "full", "prompt"], CONFIG)
    for i, name in enumerate(["prompt", "full", "prompt"]):
        assert_same(found[i], tasks[name].predict(picture(i), view=CONFIG), tolerance=1e-5)


def test_a_picture_that_many_tasks_look_at_is_encoded_once(tasks, encoded):
    image = picture(0)
    found = tasks.predict([image] * 4, list(CLASSES), CONFIG)
    assert encoded == [1]
    for name, mine in zip(CLASSES, found, strict=True):
        assert_same(mine, tasks[name].predict(image, view=CONFIG))


def test_the_trunk_and_the_other_tasks_are_bit_for_bit_what_they_were(tasks, tiny_trunk):
    images, before = [picture(0)], weights_checksum(tiny_trunk.network)
    expected = tasks.predict(images, ["zero_shot"], CONFIG)
    tasks.predict(images * 3, ["prompt", "full", "linear_probe"], CONFIG)
    for method in ("prompt", "full", "linear_probe"):
        tasks.remove(method)
    assert list(tasks) == ["zero_shot"]
    assert weights_checksum(tiny_trunk.network) == before == tiny_trunk.checksum
    assert_same(tasks.predict(images, ["zero_shot"], CONFIG)[0], expected[0])
    assert_same(attach(tiny_trunk, "zero_shot", classes=("a",)).predict(images[0], view=CONFIG), expected[0])


def test_a_removed_model_still_works_and_its_name_is_free(tasks, tiny_trunk):
    expected = tasks.predict([picture(0)], ["prompt"], CONFIG)
    model = tasks.remove("prompt")
    assert "prompt" not in tasks
    tasks.add("prompt", model)
    assert_same(tasks.predict([picture(0)], ["prompt"], CONFIG)[0], expected[0])


def test_a_task_comes_from_a_folder_too(tasks, tiny_trunk, tmp_path):
    tasks["prompt"].save(tmp_path)
    tasks.add("from disk", tmp_path)
    first, second = tasks.predict([picture(0)] * 2, ["prompt", "from disk"], CONFIG)
    assert_same(first, second)


def test_tasks_share_the_weights_of_the_trunk(tasks, tiny_trunk):
    theirs = {tensor.data_ptr() for tensor in tiny_trunk.network.parameters()}
    own = [t for model in tasks.values() for t in model.network.parameters() if t.data_ptr() not in theirs]
    assert sum(t.numel() for t in own) == sum(model.trained_parameters for model in tasks.values())


def test_the_text_is_encoded_when_a_task_is_added(tasks, monkeypatch):
    for model in tasks.values():
        monkeypatch.setattr(model.network, "encode_text", lambda tokens: pytest.fail("encoded while predicting"))
    tasks.predict([picture(0)] * 4, list(CLASSES), CONFIG)


def test_a_model_in_train_mode_predicts_in_eval_mode(tasks):
    (expected,) = tasks.predict([picture(0)], ["full"], CONFIG)
    tasks["full"].train()
    assert_same(tasks.predict([picture(0)], ["full"], CONFIG)[0], expected)


def test_no_picture_is_no_result(tasks):
    assert tasks.predict([], []) == []


def test_a_name_that_is_taken_is_refused(tasks, tiny_trunk):
    with pytest.raises(ValueError, match="'prompt' already"):
        tasks.add("prompt", attach(tiny_trunk, "zero_shot", classes=("a",)))


def test_a_model_of_another_trunk_is_refused(tasks, tiny_trunk):
    with pytest.raises(ValueError, match="another copy of glip-nano"):
        tasks.add("new", attach(replace(tiny_trunk), "zero_shot", classes=("a",)))
    assert "new" not in tasks


@pytest.mark.parametrize(
    "ask", [lambda t: t["promt"], lambda t: t.remove("promt"), lambda t: t.predict([picture(0)], ["promt"])]
)
def test_an_unknown_task_lists_those_that_exist(tasks, ask):
    with pytest.raises(KeyError, match=r"'promt' \(did you mean 'prompt'\?\)"):
        ask(tasks)


def test_a_task_too_few_is_refused(tasks):
    with pytest.raises(ValueError, match="one task for each of 2 images, got 1"):
        tasks.predict([picture(0)] * 2, ["prompt"])
