import copy
import json
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glip_adapt.adapters import build_adapter
from glip_adapt.adapters.lora import Lora, layer_names
from glip_adapt.adapters.protocol import Stage
from glip_adapt.data.transforms import collate
from glip_adapt.engine.adapted import attach
from glip_adapt.engine.load import load_adapter
from glip_adapt.share.peft import merge, save_for_peft
from glip_adapt.trunks.cross_attention import CrossAttention
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GLIP_NANO_A, GLIP_T
from glip_adapt.trunks.linear import kernel, matrix
from glip_adapt.trunks.weights import weights_checksum

CLASSES = ("red box", "blue box")
PARTS = ("fusion", "text", "head", "all", "convolutions", "image", "all+image")


def build(trunk, **options):
    """A model whose factors are no longer fresh."""
    model = attach(trunk, "lora", classes=CLASSES, settings=options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in model.owned_tensors().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return model


def picture():
    pixels = np.random.default_rng(3).integers(0, 256, (3, 50, 90), dtype=np.uint8)
    return collate([torch.from_numpy(pixels)])


def raw(model):
    with torch.no_grad():
        (output,) = model.outputs(picture())
    return output.token_logits, output.box_deltas, output.centerness


def distance(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@given(rank=st.integers(1, 6), dora=st.booleans(), convolution=st.booleans(), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_matrix_of_a_wrapped_layer_is_what_the_layer_does(rank, dora, convolution, seed):
    torch.manual_seed(seed)
    plain = (nn.Conv2d(5, 7, kernel_size=1) if convolution else nn.Linear(5, 7)).double()
    model = nn.ModuleDict({"layer": plain})
    config = peft.LoraConfig(r=rank, use_dora=dora, init_lora_weights=False, target_modules=["layer"])
    peft.inject_adapter_in_model(config, model)
    model.double()
    cells = torch.randn(4, 5, dtype=torch.float64)
    shown = cells[..., None, None] if convolution else cells
    weight, bias = matrix(model["layer"])
    torch.testing.assert_close(cells @ weight.T + bias, model["layer"](shown).flatten(1))
    assert not torch.allclose(cells @ weight.T + bias, plain(shown).flatten(1))


@pytest.mark.parametrize("dora", [False, True])
def test_both_orders_of_fusion_agree_in_values_and_gradients_with_factors(dora):
    torch.manual_seed(0)
    layer = CrossAttention(image_width=6, text_width=5, joint_width=16, heads=2, dropout=0.0).double()
    names = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    config = peft.LoraConfig(r=3, use_dora=dora, init_lora_weights=False, target_modules=names)
    peft.inject_adapter_in_model(config, layer)
    layer.double()
    image, text = torch.randn(2, 9, 6, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    trained = [p for p in layer.parameters() if p.requires_grad]
    found = {}
    for order in ("dense", "reassociated"):
        layer.forward = getattr(layer, order)
        outputs = layer(image, text, torch.ones(2, 4, dtype=torch.bool))
        pull = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in outputs]
        found[order] = [*outputs, *torch.autograd.grad(outputs, trained, pull)]
    assert len(trained) == len(names) * (3 if dora else 2)
    for a, b in zip(found["dense"], found["reassociated"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert all(gradient.abs().max() > 1e-6 for gradient in found["reassociated"][2:])


@pytest.mark.parametrize("part", ["fusion", "text", "head", "convolutions", "image"])
def test_every_factor_of_a_target_moves_the_predictions(tiny_trunk, part):
    model, fresh = build(tiny_trunk, part=part), attach(tiny_trunk, "zero_shot", classes=CLASSES)
    assert distance(raw(model), raw(fresh)) > 1e-3
    for name, tensor in model.owned_tensors().items():
        kept, before = tensor.detach().clone(), raw(model)
        with torch.no_grad():
            tensor.zero_()
        assert distance(raw(model), before) > 0, name
        with torch.no_grad():
            tensor.copy_(kept)


def test_each_target_enters_at_the_stage_of_its_first_layer():
    stages = {part: Lora(part=part).stage for part in PARTS}
    assert stages == {
        "fusion": Stage.FUSE, "text": Stage.ENCODE_TEXT, "head": Stage.PREDICT, "all": Stage.ENCODE_TEXT,
        "convolutions": Stage.FUSE, "image": Stage.ENCODE_IMAGE, "all+image": Stage.ENCODE_IMAGE,
    }  # fmt: skip


def test_targets_are_exact_names_and_all_is_their_sum(tiny_trunk):
    names = {part: layer_names(tiny_trunk.network, part) for part in PARTS}
    modules = dict(tiny_trunk.network.named_modules())
    assert all(isinstance(modules[name], nn.Linear | nn.Conv2d) for found in names.values() for name in found)
    assert names["all"] == names["fusion"] + names["text"] + names["head"]
    assert names["all+image"] == names["all"] + names["convolutions"] + names["image"]
    channels = [modules[name].weight.shape[:2] for name in names["convolutions"] + names["image"]]
    assert all(min(shape) > 3 for shape in channels)  # neither pixels nor single channels
    left = [n for n, m in modules.items() if isinstance(m, nn.Conv2d) and n not in names["all+image"]]
    assert all(".scale_attention" in n or min(modules[n].weight.shape[:2]) <= 3 for n in left)
    wanted = {
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and (".attention." in name or ".text_layer." in name or ".layer." in name)
    }
    assert set(names["fusion"] + names["text"]) == wanted


def test_on_glip_t_the_targets_have_the_sizes_of_the_public_model(tiny_trunk):
    with torch.device("meta"):
        glip = build_glip(GLIP_T).requires_grad_(False)
    trunk = replace(tiny_trunk, name="glip-t", network=glip)
    counts = {}
    for part in PARTS:
        model = attach(trunk, "lora", classes=CLASSES, settings={"part": part, "rank": 1})
        counts[part] = model.trained_parameters
    fusion = 6 * (3 * (256 + 2048) + 3 * (768 + 2048) + 4 * 2 * 768 + 2 * (768 + 3072))
    text = 12 * (4 * 2 * 768 + 2 * (768 + 3072))
    head = (768 + 256) + (256 + 4) + (256 + 1)
    convolutions = 6 * ((9 * 256 + 27) + 3 * (9 * 256 + 256))
    assert counts["convolutions"] == convolutions
    assert counts["all+image"] == counts["all"] + convolutions + counts["image"]
    first = {name: counts[name] for name in ("fusion", "text", "head", "all")}
    assert first == {"fusion": fusion, "text": text, "head": head, "all": fusion + text + head}


def test_a_target_that_matches_nothing_is_an_error_and_changes_nothing(tiny_trunk):
    glip = build_glip(GLIP_NANO_A).requires_grad_(False)
    trunk = replace(tiny_trunk, name="glip-nano-a", network=glip)
    before = list(glip.state_dict())
    with pytest.raises(ValueError, match=r"part 'fusion' has no layer in this trunk; it has 'text', 'head'"):
        attach(trunk, "lora", classes=CLASSES, settings={"part": "fusion"})
    assert list(glip.state_dict()) == before
    assert attach(trunk, "lora", classes=CLASSES).trained_parameters > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "fusoin"}, "fusoin"),
        ({"rank": 0}, "above 0; got 0"),
        ({"alpha": 0}, "above 0"),
        ({"part": "image", "use_dora": True}, "use_dora is for linear layers"),
        ({"init_lora_weights": "pissa"}, "expected True or 'gaussian'"),  # moves the frozen weights
    ],
)
def test_settings_that_cannot_work_are_refused(tiny_trunk, options, message):
    with pytest.raises(ValueError, match=message):
        attach(tiny_trunk, "lora", classes=CLASSES, settings=options)


@pytest.mark.parametrize(("part", "most"), [("fusion", 32), ("head", 32)])
def test_a_rank_beyond_every_layer_is_refused(tiny_trunk, part, most):
    attach(tiny_trunk, "lora", classes=CLASSES, settings={"part": part, "rank": most})
    with pytest.raises(ValueError, match=rf"rank is {most + 1}, but no layer of the part '{part}' .* above {most}"):
        attach(tiny_trunk, "lora", classes=CLASSES, settings={"part": part, "rank": most + 1})


def test_a_saved_adapter_cannot_ask_for_a_rank_that_takes_all_memory(tiny_trunk, tmp_path, monkeypatch):
    build(tiny_trunk).save(tmp_path)
    file = tmp_path / "adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": {"rank": 1_000_000}}))
    monkeypatch.setattr(peft, "inject_adapter_in_model", lambda *_: pytest.fail("took memory for the factors"))
    with pytest.raises(ValueError, match="rank is 1000000"):
        load_adapter(tmp_path, trunk=tiny_trunk)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"alpha": 10**400}, "alpha must be"), ({"rank": 0}, "rank and alpha"), ({"seed": 10**30}, "seed must lie")],
)
def test_a_setting_out_of_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Lora(**setting)


def test_the_start_seeds_no_gpu(tiny_trunk, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("generators of GPUs are seeded"))
    attach(tiny_trunk, "lora", classes=CLASSES)


def test_the_seed_fixes_the_start_and_leaves_other_draws_alone(tiny_trunk):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        attach(tiny_trunk, "lora", classes=CLASSES, settings={"seed": seed}).owned_tensors() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("options", [{"part": part} for part in PARTS] + [{"part": "all", "use_dora": True}])
def test_a_merged_model_gives_the_same_within_a_hundred_thousandth(tiny_trunk, options):
    model = build(tiny_trunk, **options)
    before = raw(model)
    merged = attach(merge(model), "zero_shot", classes=CLASSES)
    assert distance(raw(merged), before) < 1e-5
    assert distance(raw(attach(tiny_trunk, "zero_shot", classes=CLASSES)), before) > 1e-3
    assert raw(model)[0].equal(before[0])  # still unmerged


def test_merging_leaves_the_trunk_alone_and_shares_what_it_does_not_change(tiny_trunk):
    model = build(tiny_trunk, part="head")
    merged = merge(model)
    assert weights_checksum(tiny_trunk.network) == tiny_trunk.checksum
    assert merged.checksum == weights_checksum(merged.network) != tiny_trunk.checksum
    mine, theirs = merged.network.state_dict(), tiny_trunk.network.state_dict()
    assert mine.keys() == theirs.keys()
    moved = {name for name in mine if mine[name].data_ptr() != theirs[name].data_ptr()}
    assert moved == {"head.text_projection.weight", "head.box_deltas.weight", "head.centerness.weight"}
    assert not any(p.requires_grad for p in merged.network.parameters())


def test_only_a_lora_model_can_be_merged_or_saved_for_peft(tiny_trunk, tmp_path):
    model = attach(tiny_trunk, "prompt", classes=CLASSES)
    for refuse in (lambda: merge(model), lambda: save_for_peft(model, tmp_path)):
        with pytest.raises(ValueError, match="adapted by lora, got prompt"):
            refuse()


@pytest.mark.parametrize(
    "options", [{"part": "all", "rank": 3, "alpha": 5}, {"use_dora": True, "init_lora_weights": "gaussian"}]
)
def test_plain_peft_loads_the_files_and_gives_the_same_predictions(tiny_trunk, tmp_path, options):
    model = build(tiny_trunk, **options)
    model.save(tmp_path)
    save_for_peft(model, tmp_path)
    assert raw(load_adapter(tmp_path, trunk=tiny_trunk))[0].equal(raw(model)[0])  # the folder still is ours
    network = copy.deepcopy(tiny_trunk.network)
    plain = peft.PeftModel.from_pretrained(network, str(tmp_path), adapter_name="boxes").eval()  # under any name
    with torch.no_grad():
        output = plain(picture(), model.captions[0])
    found = (output.token_logits, output.box_deltas, output.centerness)
    assert all(torch.equal(a, b) for a, b in zip(found, raw(model), strict=True))


def test_the_old_name_of_part_is_still_read():
    assert build_adapter("lora", {"target": "head", "rank": 2}) == Lora(part="head", rank=2)


def test_the_other_family_has_factors_in_its_image_encoder_and_no_convolutions_in_its_fusion(dino_trunk):
    model = attach(dino_trunk, "lora", classes=CLASSES, settings={"part": "image", "rank": 1})
    assert {name.split(".")[1] for name in model.owned_tensors()} == {"backbone", "projections"}
    with pytest.raises(ValueError, match="part 'convolutions' has no layer in this trunk"):
        attach(dino_trunk, "lora", classes=CLASSES, settings={"part": "convolutions"})
    everything = attach(dino_trunk, "lora", classes=CLASSES, settings={"part": "all+image", "rank": 1})
    assert set(model.owned) < set(everything.owned)


def test_a_convolution_of_any_size_with_factors_is_what_its_weight_says():
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Conv2d(5, 7, kernel_size=3, stride=2, padding=1)})
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=["layer"]), model
    )
    model.double()
    x, wrapped = torch.randn(1, 5, 8, 9, dtype=torch.float64), model["layer"]
    weight, bias = kernel(wrapped)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias, stride=2, padding=1), wrapped(x))
    assert not torch.allclose(weight, wrapped.weight)
