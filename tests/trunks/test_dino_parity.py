"""The Grounding DINO family against transformers' own forward pass, and whether the comparison can fail."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from conftest import load_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glip_adapt.data.transforms import collate
from glip_adapt.trunks.dino import geometry, network, text, transformer
from glip_adapt.trunks.dino.deformable import DeformableAttention
from glip_adapt.trunks.dino.names import in_our_names
from glip_adapt.trunks.encoder_config import SwinConfig, TextConfig

SEED = 0


@pytest.fixture(scope="module")
def script():
    yield from load_benchmark("parity_transformers")


@pytest.mark.slow
def test_every_line_of_the_small_configurations_passes(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["parity_transformers.py", "--small", "--seed", str(SEED), "--json"])
    assert script.main() == 0
    lines = json.loads(capsys.readouterr().out)
    assert len({line["network"] for line in lines}) == 3
    assert len(lines) == 3 * 2 * (8 + 8 + 5)  # networks, precisions, quantities of the three cases
    assert all(line["passed"] and line["error"] <= line["limit"] for line in lines)


def test_every_line_of_one_configuration_passes(script):
    config = replace(script.SMALL, shared_boxes=False, scaled_scores=True)
    lines = list(script.compare(config, SEED, script.CAPTIONS, script.SMALL_SIZES))
    assert {line["quantity"] for line in lines} == {
        *("fused image", "fused text", "boxes of proposals", "token logits", "boxes"),
        *("token loss", "box loss", "giou loss"),
    }
    assert not [line for line in lines if not line["error"] <= line["limit"]]


# One tiny network, many captions and images --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(script):
    """Transformers' network of tiny sizes, and ours with its weights, in float64."""
    config = replace(
        script.SMALL,
        backbone=SwinConfig(width=8, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2), window=3),
        text=TextConfig(
            width=16, layers=2, heads=2, hidden_width=32, dropout=0.0, separators=script.SMALL.text.separators
        ),
        queries=12,
    )
    torch.manual_seed(SEED)
    public = script.public_network(config)
    ours = script.our_network(config, public)
    return public.double(), ours.double()


def errors(script, pair, images, tokens):
    """Return ‖ours − theirs‖ / ‖theirs‖ by quantity, in float64."""
    public, ours = pair
    batch, words = collate(images), script.Tokens.stack(tokens)
    theirs = script.their_quantities(public, ours, batch, words, torch.float64)
    del theirs["selection"]
    found = script.our_quantities(ours, batch, words)
    assert found.keys() == theirs.keys()
    return {name: ((found[name] - theirs[name]).norm() / theirs[name].norm()).item() for name in theirs}


def pictures(sizes_hw, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=generator) for size_hw in sizes_hw]


def tokens_of(script, ids):
    return script._with_map(torch.tensor([[script.CLS, *ids, script.SEP]]))


MARKS = (1010, 1012, 1029)  # comma, full stop, question mark
# A word, then marks and words in any order, with or without a full stop at the end.
ids = st.builds(
    lambda first, rest, end: [first, *rest, *end],
    st.integers(2000, 30_000),
    st.lists(st.one_of(st.sampled_from(MARKS), st.integers(2000, 30_000)), max_size=9),
    st.sampled_from([[], [1012]]),
)
sizes = st.tuples(st.integers(17, 96), st.integers(17, 96))


@given(captions=st.lists(ids, min_size=1, max_size=2), sizes_hw=st.lists(sizes, min_size=1, max_size=2),
       seed=st.integers(0, 10_000))  # fmt: skip
@settings(max_examples=12)
def test_any_caption_and_image_gives_what_transformers_gives(script, pair, captions, sizes_hw, seed):
    tokens = [tokens_of(script, caption) for caption in captions]
    if len(tokens) != len(sizes_hw):  # one caption for all images
        tokens = tokens[:1]
    found = errors(script, pair, pictures(sizes_hw, seed), tokens)
    assert not {name: error for name, error in found.items() if not error < 1e-9}


def test_gradients_of_what_the_last_layer_predicts_are_those_of_transformers(script, pair):
    """So gradients stop at the same places. Losses of the proposals are left out, which theirs do not learn from."""
    public, ours = pair
    batch, tokens = collate(pictures([(70, 90), (50, 60)], 5)), script.tokenize("red cat. a dog, what?")
    with script._default_dtype(torch.float64):
        theirs = public(**script.inputs_of(ours, batch, tokens, torch.float64))
    last = ours(batch, tokens).layers[-1]
    count = tokens.ids.shape[1]
    gradients = []
    for detector, logits, boxes in (
        (public, theirs.logits[..., :count], theirs.pred_boxes),
        (ours, last.logits, last.boxes),
    ):
        (logits.square().mean() + boxes.sin().mean()).backward()
        gradients.append({name: p.grad for name, p in detector.named_parameters() if p.grad is not None})
        detector.zero_grad()
    expected, found = in_our_names(gradients[0], 3), gradients[1]
    assert len(found) > 200
    assert found.keys() <= expected.keys()
    largest = max(gradient.norm() for gradient in found.values())
    assert not [
        n for n, g in found.items() if not (g - expected[n]).norm() < 1e-9 * expected[n].norm() + 1e-12 * largest
    ]


# The comparison can fail ---------------------------------------------------------------------------------------------


def x_before_y(places, width, temperature=geometry.QUERY_TEMPERATURE):
    """Sine functions of (x, y, …) in the order of the coordinates."""
    swapped = (
        torch.cat((places[..., 1:2], places[..., :1], places[..., 2:]), dim=-1) if places.shape[-1] > 1 else places
    )
    return geometry.sines(swapped, width, temperature)


def one_phrase(ids, separators):
    """No phrase mask: all tokens see each other."""
    return torch.zeros_like(ids)


def counted_from_the_start(phrases):
    """No places that start again with each phrase."""
    return torch.arange(phrases.shape[1]).expand_as(phrases)


def without_padding(*arguments):
    """Padding is read like the image."""
    where = geometry.geometry(*arguments)
    return replace(where, real=None)


def of_the_whole_map(*arguments):
    """Places are shares of the map with its padding."""
    where = geometry.geometry(*arguments)
    return replace(where, real_share=torch.ones_like(where.real_share))


def of_one_size(*arguments):
    """Proposals are as large at each level as at the finest."""
    where = geometry.geometry(*arguments)
    side = torch.tensor(geometry.PROPOSED_SIDE).logit().to(where.proposals)
    sides = torch.where(where.proposable.unsqueeze(-1), side, where.proposals[..., 2:])
    return replace(where, proposals=torch.cat((where.proposals[..., :2], sides), dim=-1))


SWAPS = {
    "sine channels of boxes": (transformer, "sines", x_before_y),
    "phrases": (text, "phrase_of", one_phrase),
    "places in phrases of the text encoder": (text, "places_in_phrase", counted_from_the_start),
    "places in phrases of the fusion": (transformer, "places_in_phrase", counted_from_the_start),
    "padding": (network, "geometry", without_padding),
    "shares of maps": (network, "geometry", of_the_whole_map),
    "proposals": (network, "geometry", of_one_size),
}


def compared(script, pair):
    found = errors(
        script, pair, pictures([(70, 90), (50, 60)], 3), [script.tokenize(c) for c in ("red cat. a dog, what?", "owl")]
    )
    return max(found.values())


@pytest.mark.parametrize("swap", SWAPS)
def test_one_rule_that_differs_shows_in_the_comparison(swap, script, pair, monkeypatch):
    assert compared(script, pair) < 1e-9
    monkeypatch.setattr(*SWAPS[swap])
    assert compared(script, pair) > 1e-6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("encoder.layers.0.text.attention.query", "encoder.layers.0.text.attention.key"),
        ("encoder.layers.1.fusion.attention.value_image", "encoder.layers.1.fusion.attention.query_image"),
        ("encoder.layers.0.image.norm", "encoder.layers.0.image.feed_forward.norm"),
        ("decoder.layers.1.among_norm", "decoder.layers.1.text_norm"),
        ("decoder.layers.0.image.value", "decoder.layers.0.image.out"),
        ("decoder.layers.0.text.key", "decoder.layers.0.text.query"),
    ],
)
def test_two_layers_that_change_places_show_in_the_comparison(one, other, script, pair):
    ours = pair[1]
    layers = {name: ours.get_submodule(name) for name in (one, other)}
    try:
        exchange(ours, layers[one], other)
        exchange(ours, layers[other], one)
        assert compared(script, pair) > 1e-6
    finally:
        for name, layer in layers.items():
            exchange(ours, layer, name)
    assert compared(script, pair) < 1e-9


def exchange(network, layer: nn.Module, name):
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)


def test_offsets_in_whole_boxes_show_in_the_comparison(script, pair, monkeypatch):
    forward = DeformableAttention.forward

    def doubled(self, query, places, *rest):
        if places.shape[-1] == 4:
            places = torch.cat((places[..., :2], 2 * places[..., 2:]), dim=-1)
        return forward(self, query, places, *rest)

    monkeypatch.setattr(DeformableAttention, "forward", doubled)
    assert compared(script, pair) > 1e-6
