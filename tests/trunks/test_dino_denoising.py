"""Contrastive denoising: which queries start where, what they see, what they have to predict."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.adapters.full import Full
from glip_adapt.core.captions import build_caption
from glip_adapt.core.structures import Target, TextFeatures
from glip_adapt.data.transforms import collate
from glip_adapt.engine.adapted import attach
from glip_adapt.trunks.dino import denoising
from glip_adapt.trunks.dino.denoising import NoisyQueries, noisy_queries, shift
from glip_adapt.trunks.dino.objective import DinoObjective, denoising_loss
from glip_adapt.trunks.dino.output import NoisyOutput, QueryOutput
from glip_adapt.trunks.dino.truth import Truth

EXACT = {"rtol": 0, "atol": 1e-12}
TOKEN_MAP = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]).bool()
few = settings(max_examples=40)
seeds = st.integers(0, 10_000)


def truth(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.1 + 0.3 * torch.rand(count, 4, generator=generator, dtype=torch.float64)
    return Truth(boxes, TOKEN_MAP[torch.randint(0, 2, (count,), generator=generator)])


def text(batch=1):
    generator = torch.Generator().manual_seed(9)
    features = torch.randn(batch, 5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    return TextFeatures(features, torch.ones(1, 5, dtype=torch.bool), TOKEN_MAP[None])


@given(seeds, st.booleans())
@few
def test_edges_move_by_up_to_half_a_side_or_from_there_to_a_whole_one(seed, far):
    torch.manual_seed(seed)
    centre, side = 0.45 + 0.1 * torch.rand(6, 2), 0.1 + 0.1 * torch.rand(6, 2)  # no edge gets to the border
    moved = shift(torch.cat((centre, side), dim=-1), torch.full((6,), far))
    edges = torch.cat((moved[:, :2] - moved[:, 2:] / 2, moved[:, :2] + moved[:, 2:] / 2), dim=-1)
    before = torch.cat((centre - side / 2, centre + side / 2), dim=-1)
    share = (edges - before).abs() / side.repeat(1, 2)
    swapped = (edges[:, [2, 3, 0, 1]] - before).abs() / side.repeat(1, 2)  # of edges that passed each other
    low, high = (0.5, 1.0) if far else (0.0, 0.5)
    fits = [(low - 1e-5 <= x) & (x <= high + 1e-5) for x in (share, swapped)]
    assert (fits[0].unflatten(1, (2, 2)).all(1) | fits[1].unflatten(1, (2, 2)).all(1)).all()


@given(seeds)
@few
def test_shifted_boxes_stay_boxes_within_the_image(seed):
    torch.manual_seed(seed)
    moved = shift(torch.rand(20, 4), torch.rand(20) < 0.5)
    edges = torch.cat((moved[:, :2] - moved[:, 2:] / 2, moved[:, :2] + moved[:, 2:] / 2), dim=-1)
    assert (edges >= -1e-6).all()
    assert (edges <= 1 + 1e-6).all()
    assert (moved[:, 2:] >= 0).all()


@given(seeds, st.integers(1, 4), st.integers(4, 30))
@few
def test_each_box_has_a_near_and_a_far_query_in_every_group(seed, count, pairs):
    torch.manual_seed(seed)
    found = noisy_queries([truth(count, seed)], text(), pairs)
    groups = pairs // count
    assert found.repeats == (groups,)
    assert found.boxes.shape == (1, 2 * count * groups, 4)
    assert found.content.shape == (1, 2 * count * groups, 8)
    assert found.groups[0].bincount().tolist() == [0] + [2 * count] * groups
    ((query, box),) = found.answers
    assert box.bincount().tolist() == [groups] * count
    assert found.groups[0, query].bincount().tolist() == [0] + [count] * groups
    near = (found.boxes[0, query] - truth(count, seed).boxes[box]).abs()  # a centre moves by at most as much as an edge
    assert (near[:, :2] <= truth(count, seed).boxes[box, 2:] / 2 + 1e-9).all()


def test_more_boxes_than_pairs_are_drawn_from():
    torch.manual_seed(0)
    found = noisy_queries([truth(9)], text(), 4)
    ((query, box),) = found.answers
    assert found.repeats == (1,)
    assert len(query) == 4 == len(set(box.tolist()))


def test_queries_are_told_the_mean_token_of_their_class_and_some_a_wrong_one(monkeypatch):
    words, boxes = text(), truth(3)
    monkeypatch.setattr(denoising, "WRONG_CLASSES", 0.0)
    found = noisy_queries([boxes], words, 3)
    of_class = torch.stack((words.features[0, 1], (words.features[0, 2] + words.features[0, 3]) / 2))
    told = of_class[boxes.tokens[:, 1].logical_not().long()].repeat(2, 1)
    torch.testing.assert_close(found.content[0], told.detach(), **EXACT)
    assert not found.content.requires_grad
    monkeypatch.setattr(denoising, "WRONG_CLASSES", 1.0)
    torch.manual_seed(0)
    share = [(noisy_queries([boxes], words, 99).content[0] - told.repeat(33, 1)).abs().amax(-1) > 1e-9 for _ in "abc"]
    assert 0.4 < torch.cat(share).double().mean() < 0.6  # any class: one of two is right by chance


def test_who_sees_whom_by_hand():
    queries = NoisyQueries(torch.zeros(1, 5, 1), torch.zeros(1, 5, 4), torch.tensor([[1, 1, 2, 2, -1]]), (), ())
    seen = queries.visible(2)[0]
    expected = [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]
    assert seen.long().tolist() == expected


# Loss ----------------------------------------------------------------------------------------------------------------


def perfect(queries, boxes):
    """Return what queries predict that find their boxes, and nothing where they should."""
    logits = torch.full((1, queries.boxes.shape[1], 5), -50.0, dtype=torch.float64)
    predicted = queries.boxes.clone()
    ((query, box),) = queries.answers
    logits[0, query] = torch.where(boxes.tokens[box], 50.0, -50.0).double()
    predicted[0, query] = boxes.boxes[box]
    return QueryOutput(logits, predicted)


def test_perfect_queries_cost_nothing_and_each_mistake_something():
    boxes, mask = truth(3), torch.ones(1, 5, dtype=torch.bool)
    queries = noisy_queries([boxes], text(), 6)
    stage = perfect(queries, boxes)

    def loss(logits=stage.logits, predicted=stage.boxes):
        return denoising_loss(NoisyOutput(queries, (QueryOutput(logits, predicted),)), [boxes], mask).item()

    assert loss() == pytest.approx(0, abs=1e-9)
    ((query, _),) = queries.answers
    far = next(i for i in range(12) if i not in query.tolist())
    shifted = stage.boxes.clone()
    shifted[0, far] += 0.1
    assert loss(predicted=shifted) == pytest.approx(0, abs=1e-9)  # nobody asks a far query for a box
    shifted[0, query[0], 0] += 0.1  # L1 of 0.1, counted five times, for one of two groups; and its GIoU
    assert loss(predicted=shifted) > 5 * 0.1 / 2
    loud = stage.logits.clone()
    loud[0, far, 1] = 50.0  # focal loss of a false alarm: 0.75 · 50, twice, for one of two groups
    assert loss(logits=loud) == pytest.approx(2 * 0.75 * 50 / 2)


def test_a_box_counts_once_however_many_groups_there_are(monkeypatch):
    monkeypatch.setattr(denoising, "WRONG_CLASSES", 0.0)
    boxes, mask, sums = truth(2), torch.ones(1, 5, dtype=torch.bool), []
    for pairs in (2, 6):
        queries = noisy_queries([boxes], text(), pairs)
        same = QueryOutput(torch.zeros(1, 2 * pairs, 5).double(), torch.full((1, 2 * pairs, 4), 0.5).double())
        sums.append(denoising_loss(NoisyOutput(queries, (same, same)), [boxes], mask).item())
    assert sums[0] == pytest.approx(sums[1], rel=1e-12)
    assert sums[0] > 0


# In the network ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(dino_trunk):
    found = copy.deepcopy(dino_trunk.network).double()
    found.set_denoising(6)
    return found


@pytest.fixture(scope="module")
def fused(network, dino_trunk):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *hw), dtype=torch.uint8, generator=generator) for hw in ((64, 96), (50, 60))]
    tokens = dino_trunk.tokenizer.encode(build_caption(["red box", "blue box"]))
    return network.fuse(network.encode_image(collate(images)), network.encode_text(tokens))


TARGETS = [
    Target(torch.tensor([[2.0, 3.0, 40.0, 30.0], [30.0, 16.0, 80.0, 60.0]]), torch.tensor([0, 1])),
    Target(torch.tensor([[5.0, 5.0, 30.0, 40.0]]), torch.tensor([1])),
]


def test_the_other_queries_predict_the_same(network, fused):
    with_noise, without = network.predict(fused, TARGETS), network.predict(fused)
    assert without.noisy is None
    for one, other in zip(with_noise.layers, without.layers, strict=True):
        torch.testing.assert_close(one.logits, other.logits, **EXACT)
        torch.testing.assert_close(one.boxes, other.boxes, **EXACT)
    assert [layer.boxes.shape for layer in with_noise.noisy.layers] == [(2, 12, 4)] * 2


def test_no_group_learns_from_another_and_no_image_from_its_neighbour(network, fused, monkeypatch):
    queries = network.predict(fused, TARGETS).noisy.queries

    def predicted(content):
        moved = replace(queries, content=content)
        monkeypatch.setattr("glip_adapt.trunks.dino.network.noisy_queries", lambda *_: moved)
        return network.predict(fused, TARGETS).noisy.layers[-1].boxes

    before = predicted(queries.content)
    second = (queries.groups == 2)[0]
    changed = queries.content.clone()
    changed[0, second] += 1.0
    change = (predicted(changed) - before).abs().amax(-1)
    assert (change[0, second] > 1e-6).all()
    assert change[0, ~second].max() <= 1e-12
    assert change[1].max() <= 1e-12


def test_padding_of_a_batch_tells_nobody_anything(network, fused, monkeypatch):
    more = [Target(TARGETS[0].boxes_xyxy.repeat(5, 1), TARGETS[0].labels.repeat(5)), TARGETS[1]]
    queries = network.predict(fused, more).noisy.queries
    assert (queries.groups[1] == denoising.PADDING).sum() == 0  # six of each image
    network.set_denoising(1)
    try:
        queries = network.predict(fused, more).noisy.queries
    finally:
        network.set_denoising(6)
    assert queries.boxes.shape == (2, 2, 4)


def test_images_without_boxes_have_no_noisy_queries(network, fused):
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    output = network.predict(fused, [TARGETS[0], nothing])
    assert [len(query) for query, _ in output.noisy.queries.answers] == [6, 0]
    losses = DinoObjective().losses(output, [TARGETS[0], nothing], 2)
    assert list(losses) == ["token", "box", "giou", "denoising"]
    assert all(x.isfinite() for x in losses.values())
    empty = network.predict(fused, [nothing, nothing])
    assert DinoObjective().losses(empty, [nothing, nothing], 1)["denoising"].item() == 0


def test_full_asks_for_it_and_the_decoder_learns_from_it(dino_trunk):
    model = attach(dino_trunk, Full(denoising=4), classes=["red box", "blue box"])
    assert model.network.denoising == 4
    assert dino_trunk.network.denoising == 0
    images = collate([torch.zeros(3, 64, 96, dtype=torch.uint8)])
    (output,) = model.finish(model.prefix(images), TARGETS[:1])
    model.network.objective.losses(output, TARGETS[:1], 2)["denoising"].backward()
    gradients = {name for name, p in model.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("decoder.layers.0.among") for name in gradients)
    assert any(name.startswith("image_encoder") for name in gradients)
    assert "decoder.proposal.0.weight" not in gradients  # proposals are matched, never told
    assert model.finish(model.prefix(images))[0].noisy is None


def test_detectors_without_queries_refuse_it(tiny_trunk):
    with pytest.raises(ValueError, match="no queries that could start from the truth"):
        attach(tiny_trunk, Full(denoising=4), classes=["red box"])
    with pytest.raises(ValueError, match="from 0 to 1000; got -1"):
        Full(denoising=-1)
