"""Every method through one table; a new adapter adds one row."""

import copy
import dataclasses
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import write_split
from contract_rows import BOTTOM, COUNTS, DINO, GLIP, ROWS, TRAINED, settings_of

from glip_adapt.adapters import ADAPTERS
from glip_adapt.adapters.protocol import Adapter, Stage
from glip_adapt.core.captions import ClassPrompt, build_caption
from glip_adapt.core.settings import FitConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.data.images import load_rgb
from glip_adapt.data.transforms import View, collate, view_image
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.load import load_adapter
from glip_adapt.engine.train import train_model
from glip_adapt.trunks.weights import weights_checksum

CLASSES = ("red box", ClassPrompt(name="blue box", prefix="a ", suffix=" on grey"))
CONFIG = FitConfig(short_sides=(64,), batch_size=2, epochs=1, learning_rate=1e-2, text_learning_rate=1e-2)


def build(row, trunk, classes=CLASSES):
    return attach(trunk, ROWS[row][0], classes=classes, settings=settings_of(row, trunk.name))


def noise_picture(height=50, width=90):
    pixels = np.random.default_rng(3).integers(0, 256, (3, height, width), dtype=np.uint8)
    return collate([torch.from_numpy(pixels)])


def differing(mine, theirs):
    """The fields in which two raw predictions differ by a bit; plain equality takes -0 for 0."""
    mine, theirs = leaves(mine), leaves(theirs)
    assert mine.keys() == theirs.keys()
    return [name for name in mine if bits(mine[name]) != bits(theirs[name])]


def leaves(value, name=""):
    """Return the parts of dataclasses and tuples by their paths."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple):
        value = dict(enumerate(value))
    else:
        return {name: value}
    return {path: leaf for key, part in value.items() for path, leaf in leaves(part, f"{name}.{key}").items()}


def bits(value):
    return value.detach().numpy().tobytes() if isinstance(value, torch.Tensor) else value


def state_bits(network):
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    return {name: bits(tensor) for name, tensor in tensors.items()}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@dataclasses.dataclass
class Fitted:
    """A model after three steps, and what was seen on the way."""

    model: AdaptedModel
    before: dict[str, bytes]
    trunk_before: dict[str, bytes]
    modes: dict[str, set[bool]]


@pytest.fixture(scope="module", params=[GLIP, DINO])
def trunk(request, tiny_trunk, dino_trunk):
    """A tiny trunk of each family with noise on every tensor: what starts at zero or one hides whether it is used."""
    if request.param == DINO:
        return dino_trunk
    glip = copy.deepcopy(tiny_trunk.network)
    generator = torch.Generator().manual_seed(1)
    for parameter in glip.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return replace(tiny_trunk, network=glip, checksum=weights_checksum(glip))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_split(root / "train", 6, np.random.default_rng(0))
    return load_dataset(str(root))


@pytest.fixture(scope="module", params=TRAINED)
def fitted(request, trunk, dataset):
    torch.set_num_threads(1)
    model = build(request.param, trunk)
    trunk_before = state_bits(trunk.network)
    before = state_bits(model.network)
    modes = {name: set() for name, _ in model.network.named_modules()}

    def note(step, total):
        for name, module in model.network.named_modules():
            modes[name].add(module.training)

    history = train_model(model, dataset.train, None, CONFIG, on_step=note)
    assert len(history.steps) == 3
    return Fitted(model, before, trunk_before, modes)


def test_the_table_holds_every_method():
    assert {method for method, _ in ROWS.values()} == set(ADAPTERS)
    assert all(adapter.name == name for name, adapter in ADAPTERS.items())


@pytest.mark.parametrize("row", ROWS)
def test_a_fresh_adapter_is_a_no_op_bit_for_bit(row, trunk):
    model, images = build(row, trunk), noise_picture()
    with torch.no_grad():
        expected = trunk.network(images, trunk.tokenizer.encode(build_caption(model.prompts)))
        (output,) = model.outputs(images)
        assert differing(output, expected) == []
        (found,) = model.finish(model.prefix(images))
        assert differing(found, expected) == []


@pytest.mark.parametrize("row", ROWS)
def test_owned_tensors_exist_once_and_count(row, trunk):
    model, expected = build(row, trunk), COUNTS[trunk.name].get(row)
    state = model.network.state_dict(keep_vars=True)
    assert len(set(model.owned)) == len(model.owned)
    assert all(tensor is state[name] for name, tensor in model.owned_tensors().items())
    assert model.trained_parameters == sum(state[name].numel() for name in model.owned)
    assert {n for n, p in model.network.named_parameters() if p.requires_grad} == set(model.owned)
    if expected is not None:
        assert (len(model.owned), model.trained_parameters) == expected(model.captions[0].ids.shape[1])


def test_full_owns_all_but_what_is_below_the_frozen_modules(trunk):
    owned = set(build("full above a frozen bottom", trunk).owned)
    rest = set(trunk.network.state_dict()) - owned
    bottom = tuple(f"{module}." for module in BOTTOM[trunk.name])
    assert rest == {name for name in trunk.network.state_dict() if name.startswith(bottom)}
    assert rest
    assert owned


def test_three_steps_move_the_owned_tensors(fitted):
    moved = changed(fitted.before, state_bits(fitted.model.network))
    assert set(fitted.model.owned) <= moved


def test_three_steps_change_no_other_tensor_by_a_bit(fitted):
    moved = changed(fitted.before, state_bits(fitted.model.network))
    assert moved <= set(fitted.model.owned)


def test_three_steps_leave_the_trunk_as_it_was(fitted, trunk):
    assert changed(fitted.trunk_before, state_bits(trunk.network)) == set()
    assert weights_checksum(trunk.network) == trunk.checksum
    assert not any(p.requires_grad or p.grad is not None for p in trunk.network.parameters())
    assert not any(module.training for module in trunk.network.modules())


def test_frozen_parts_stay_in_eval_mode_and_owned_ones_train(fitted):
    """A module trains when all parameters below it are owned, or when it is a part of one that does."""
    owned, trains = set(fitted.model.owned), {}
    for name, module in fitted.model.network.named_modules():
        inner = {f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters()}
        trains[name] = bool(inner and inner <= owned) or any(
            trains[parent] for parent in trains if name.startswith(f"{parent}." if parent else "") and parent != name
        )
    assert {name: {on} for name, on in trains.items()} == fitted.modes
    assert any(trains.values()) or fitted.model.adapter.name == "context"  # its offset shares a module with frozen ones


def test_everything_is_back_in_eval_mode_after_fitting(fitted):
    assert not any(module.training for module in fitted.model.network.modules())


def test_frozen_tensors_are_shared_with_the_trunk_and_owned_ones_are_not(fitted, trunk):
    theirs = {t.data_ptr() for t in (*trunk.network.parameters(), *trunk.network.buffers())}
    mine = fitted.model.network.state_dict()
    assert {name for name, tensor in mine.items() if tensor.data_ptr() not in theirs} == set(fitted.model.owned)


def test_saving_and_loading_gives_bit_equal_outputs(fitted, trunk, tmp_path):
    fitted.model.save(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", trunk=trunk)
    assert (loaded.adapter, loaded.prompts, loaded.owned) == (
        fitted.model.adapter, fitted.model.prompts, fitted.model.owned,
    )  # fmt: skip
    with torch.no_grad():
        (mine,), (theirs,) = (model.outputs(noise_picture()) for model in (fitted.model, loaded))
    assert differing(mine, theirs) == []
    assert changed(fitted.before, state_bits(loaded.network)) == set(loaded.owned)


def test_a_zero_shot_adapter_saves_and_loads_too(trunk, tmp_path):
    build("zero_shot", trunk).save(tmp_path)
    assert load_adapter(tmp_path, trunk=trunk, classes=CLASSES).prompts == build("zero_shot", trunk).prompts


@pytest.mark.parametrize("row", TRAINED)
def test_two_models_on_one_trunk_are_independent(row, trunk):
    one, two = build(row, trunk), build(row, trunk, ("blue box",))
    before = state_bits(two.network)
    with torch.no_grad():
        for tensor in one.owned_tensors().values():
            tensor.add_(1.0)
    assert changed(before, state_bits(two.network)) == set()
    assert weights_checksum(trunk.network) == trunk.checksum
    assert len(two.prompts) == 1
    with torch.no_grad():
        expected = trunk.network(noise_picture(), trunk.tokenizer.encode(build_caption(two.prompts)))
        assert differing(two.outputs(noise_picture())[0], expected) == []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(Adapter):
    """Asks for one tensor that exists and one that does not."""

    name: ClassVar[str] = "greedy"
    stage: ClassVar[Stage] = Stage.PREDICT

    def owned(self, network):
        return (network.seams.prediction_layers[0], "head.no_such_layer.weight")


def test_a_missing_target_raises_before_anything_changes(trunk):
    before = state_bits(trunk.network)
    with pytest.raises(ValueError, match=r"greedy asks for 1 tensors.*head\.no_such_layer\.weight"):
        attach(trunk, Greedy(), classes=CLASSES)
    assert changed(before, state_bits(trunk.network)) == set()
    assert not any(p.requires_grad for p in trunk.network.parameters())


def test_freezing_a_module_that_does_not_exist_names_those_that_do(trunk):
    with pytest.raises(ValueError, match=r"no such module.*image_encoder, text_encoder"):
        attach(trunk, "full", classes=CLASSES, settings={"frozen": ("image_encoder.backbone.stage9",)})


def test_freezing_everything_is_refused_and_names_what_is_frozen(trunk):
    everything = tuple(name for name, _ in trunk.network.named_children())
    with pytest.raises(ValueError, match=f"full has nothing to train: image_encoder, .*{everything[-1]} are frozen"):
        attach(trunk, "full", classes=CLASSES, settings={"frozen": everything})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [("promt", {}, "promt.*prompt"), ("full", {"frosen": ()}, "frosen.*frozen"), ("prompt", {"tokens": 3}, "tokens")],
)
def test_an_unknown_method_or_setting_names_the_nearest(trunk, method, settings, message):
    with pytest.raises(ValueError, match=message):
        attach(trunk, method, classes=CLASSES, settings=settings)


def test_the_frozen_prefix_carries_no_gradient_and_the_rest_does(fitted):
    prefix = fitted.model.prefix(noise_picture())
    (output,) = fitted.model.finish(prefix)
    sum(leaf.sum() for leaf in leaves(output).values() if getattr(leaf, "requires_grad", False)).backward()
    assert any(tensor.grad is not None for tensor in fitted.model.owned_tensors().values())
    frozen = set(fitted.model.network.state_dict()) - set(fitted.model.owned)
    state = fitted.model.network.state_dict(keep_vars=True)
    assert all(state[name].grad is None for name in frozen)
    for tensor in fitted.model.owned_tensors().values():
        tensor.grad = None


def test_the_same_picture_under_another_view_is_another_prefix(trunk, dataset):
    """What a cache relies on: a prefix depends on the picture as shown, and on nothing that training moves."""
    model = build("prompt", trunk)
    record = dataset.train.records[0]
    views = [collate([view_image(load_rgb(record.path), View(64, flip))]) for flip in (False, True, False)]
    plain, mirrored, again = ([bits(level) for level in model.prefix(view).levels] for view in views)
    with torch.no_grad():
        model.owned_tensors()["text_prompt.offset"].add_(1.0)
    moved = [bits(level) for level in model.prefix(views[0]).levels]
    assert plain == again == moved
    assert plain != mirrored
