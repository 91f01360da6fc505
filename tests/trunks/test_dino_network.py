"""The network of Grounding DINO as a whole: stages, batches, padding, gradients, what differs while training."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import DINO
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glip_adapt.core.captions import build_caption
from glip_adapt.core.structures import Fused, ImageBatch, Target, Tokens
from glip_adapt.data.transforms import collate
from glip_adapt.trunks.dino.decode import DETECTIONS, decode
from glip_adapt.trunks.dino.family import DinoFamily
from glip_adapt.trunks.dino.output import DinoOutput, QueryOutput

few = settings(max_examples=10)
EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(scope="module")
def network(dino_trunk):
    """In float64, so that rounding hides nothing; for reading only."""
    return copy.deepcopy(dino_trunk.network).double()


@pytest.fixture(scope="module")
def encode(dino_trunk):
    return lambda *names: dino_trunk.tokenizer.encode(build_caption(names))


def pictures(*sizes_hw, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=generator) for size_hw in sizes_hw]


def boxes_for(*sizes_hw):
    """Return two boxes in each image, of classes 0 and 1."""
    return [
        Target(torch.tensor([[2.0, 3.0, w / 2, h / 2], [w / 3, h / 4, w - 5.0, h - 2.0]]), torch.tensor([0, 1]))
        for h, w in sizes_hw
    ]


def losses_of(network, images, tokens, targets, scale=None):
    objective = network.objective
    prepared = [objective.prepare(target, images.pixels.shape[2:]) for target in targets]
    return objective.losses(network(images, tokens), prepared, scale or objective.scale(prepared))


def everything(output):
    return [t for stage in (output.proposals, *output.layers) for t in (stage.logits, stage.boxes)]


@torch.no_grad()
def test_forward_is_the_four_stages_in_a_row(network, encode):
    images, tokens = collate(pictures((64, 96), (50, 60))), encode("red box", "blue box")
    staged = network.predict(network.fuse(network.encode_image(images), network.encode_text(tokens)))
    whole = network(images, tokens)
    assert all(torch.equal(*pair) for pair in zip(everything(staged), everything(whole), strict=True))
    assert whole.image_sizes_hw == images.image_sizes_hw
    assert whole.token_map.shape[1:] == (2, tokens.ids.shape[1])
    assert [tuple(x.shape) for x in everything(whole)] == [(2, 15, tokens.ids.shape[1]), (2, 15, 4)] * 2


def test_earlier_layers_predict_only_where_something_learns(network, encode):
    images, tokens = collate(pictures((64, 96))), encode("red box")
    assert len(network(images, tokens).layers) == 2
    with torch.no_grad():
        alone = network(images, tokens).layers
    assert len(alone) == 1
    torch.testing.assert_close(alone[0].boxes, network(images, tokens).layers[-1].boxes.detach(), **EXACT)


@torch.no_grad()
def test_the_words_decide_where_it_looks(network, encode):
    images = collate(pictures((64, 96)))
    one, other = (network(images, encode(*names)).layers[-1] for names in (("red box", "star"), ("red die", "star")))
    assert one.logits.shape == other.logits.shape
    assert not torch.allclose(one.boxes, other.boxes, atol=1e-4)


# Batches -------------------------------------------------------------------------------------------------------------


sizes = st.tuples(st.integers(33, 96), st.integers(33, 96))


@given(st.lists(sizes, min_size=2, max_size=3), st.integers(0, 1000))
@few
@torch.no_grad()
def test_a_batch_mate_changes_no_result(network, encode, sizes_hw, seed):
    """With the same padding: that of the largest image of the batch."""
    images, tokens = collate(pictures(*sizes_hw, seed=seed)), encode("red box", "blue box")
    together = network(images, tokens)
    for i in range(len(sizes_hw)):
        alone = network(ImageBatch(images.pixels[i : i + 1], images.image_sizes_hw[i : i + 1]), tokens)
        for mine, theirs in zip(everything(alone), everything(together), strict=True):
            torch.testing.assert_close(mine[0], theirs[i], **EXACT)


@torch.no_grad()
def test_a_caption_of_its_own_changes_no_other_image(network, encode):
    """The shorter captions are padded; their tokens read nothing of it."""
    images = collate(pictures((64, 96), (50, 60), (64, 64)))
    captions = [encode("red box"), encode("blue box", "star", "circle"), encode("arrow", "star")]
    together = network(images, Tokens.stack(captions))
    for i, tokens in enumerate(captions):
        alone = network(ImageBatch(images.pixels[i : i + 1], images.image_sizes_hw[i : i + 1]), tokens)
        count = tokens.ids.shape[1]
        for mine, theirs in zip(everything(alone), everything(together), strict=True):
            torch.testing.assert_close(mine[0], theirs[i, :, :count] if mine.shape[-1] == count else theirs[i], **EXACT)


@torch.no_grad()
def test_what_lies_in_the_padding_is_not_read(network, encode):
    images, tokens = collate(pictures((64, 96), (40, 50))), encode("red box", "blue box")
    noisy = images.pixels.clone()
    noisy[1, :, 40:], noisy[1, :, :, 50:] = 77, 200
    pyramid = network.encode_image(images)
    assert torch.equal(network.encode_image(ImageBatch(noisy, images.image_sizes_hw)).cells, pyramid.cells)
    real = network._places(pyramid).real
    assert not real.all()
    changed = replace(pyramid, cells=pyramid.cells.masked_fill(~real.unsqueeze(-1), 1e3))
    text = network.encode_text(tokens)
    fused, other = network.fuse(pyramid, text), network.fuse(changed, text)
    torch.testing.assert_close(other.text.features, fused.text.features, **EXACT)
    torch.testing.assert_close(other.pyramid.cells[real], fused.pyramid.cells[real], **EXACT)
    noise = fused.pyramid.cells.masked_fill(~real.unsqueeze(-1), -1e3)
    expected, found = (
        network.predict(Fused(replace(pyramid, cells=c), fused.text)) for c in (fused.pyramid.cells, noise)
    )
    for mine, theirs in zip(everything(found), everything(expected), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_the_losses_of_images_one_by_one_add_up_to_those_of_the_batch(network, encode):
    sizes_hw = (64, 96), (50, 60), (64, 70)
    images, tokens, targets = collate(pictures(*sizes_hw)), encode("red box", "blue box"), boxes_for(*sizes_hw)
    targets[1] = Target(targets[1].boxes_xyxy[:1], targets[1].labels[:1])
    whole, scale = losses_of(network, images, tokens, targets), network.objective.scale(targets)
    parts = [
        losses_of(network, ImageBatch(images.pixels[i : i + 1], sizes_hw[i : i + 1]), tokens, targets[i : i + 1], scale)
        for i in range(3)
    ]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), loss, rtol=1e-12, atol=1e-12)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def learner(dino_trunk):
    """A network that may be changed, in float64 and eval mode."""
    return copy.deepcopy(dino_trunk.network).double().requires_grad_(True)


def step(network, encode):
    sizes_hw = (64, 96), (50, 60)
    losses = losses_of(network, collate(pictures(*sizes_hw)), encode("red box", "star"), boxes_for(*sizes_hw))
    sum(losses.values()).backward()
    return losses


def test_every_parameter_learns(learner, encode):
    step(learner, encode)
    # No softmax depends on a number that is added to all of its scores, and no word is padding.
    idle = {n for n, p in learner.named_parameters() if p.grad is None or p.grad.norm() < 1e-12}
    assert not [name for name in idle if not name.endswith((".key.bias", "attn.qkv.bias", "key_text.bias"))]
    assert not [n for n, p in learner.named_parameters() if p.grad is None]
    assert not [n for n, p in learner.named_parameters() if not p.grad.isfinite().all()]


@pytest.mark.parametrize(
    "name",
    [
        "decoder.proposal.0.weight",
        "decoder.proposal.1.weight",
        *(f"decoder.proposal_boxes.{i}.weight" for i in (0, 2, 4)),
    ],
)
def test_proposals_learn_from_their_own_losses(name, learner, encode):
    """In transformers these get no gradient."""
    images, tokens, targets = collate(pictures((64, 96))), encode("red box", "star"), boxes_for((64, 96))
    output = learner(images, tokens)
    proposals = replace(output, layers=(output.proposals,))
    objective = learner.objective
    sum(objective.losses(proposals, [objective.prepare(t, (64, 96)) for t in targets], 2).values()).backward()
    assert learner.get_parameter(name).grad.any()
    assert learner.decoder.queries.grad is None


def test_decoder_layers_do_not_move_the_proposals_or_the_layers_before(learner, encode):
    """Boxes pass from layer to layer without gradient."""
    output = learner(collate(pictures((64, 96))), encode("red box"))
    output.layers[-1].boxes.sum().backward(retain_graph=True)
    assert learner.get_parameter("decoder.proposal_boxes.4.weight").grad is None
    output.proposals.boxes.sum().backward()
    assert learner.get_parameter("decoder.proposal_boxes.4.weight").grad.any()


@pytest.mark.parametrize("scaled", [False, True])
def test_computing_layers_again_gives_the_same_gradients(scaled, encode):
    torch.manual_seed(0)
    network = DinoFamily().build(replace(DINO, shared_boxes=not scaled, scaled_scores=scaled)).requires_grad_(True)
    found = []
    for recompute in (False, True):
        network.set_recompute(recompute)
        network.zero_grad()
        torch.manual_seed(1)
        network.train()
        losses = step(network, encode)
        found.append(({n: p.grad.clone() for n, p in network.named_parameters()}, losses))
    (plain, losses), (again, losses_again) = found
    assert all(torch.equal(losses[name], losses_again[name]) for name in losses)
    largest = max(g.abs().max() for g in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6 * largest.item())


# Train mode ----------------------------------------------------------------------------------------------------------


def built(**changes):
    """Return a network in which nothing is random while training but what ``changes`` say."""
    still = replace(
        DINO, dropout=0.0, fusion_drop_path=0.0, text=replace(DINO.text, dropout=0.0),
        backbone=replace(DINO.backbone, drop_path=0.0),
    )  # fmt: skip
    torch.manual_seed(0)
    network = DinoFamily().build(replace(still, **changes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    for module in network.text_encoder.modules():  # of BERT, which has its own
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.double()


RANDOM = {
    "nothing": ({}, []),
    "dropout": ({"dropout": 0.5}, ["encoder", "decoder"]),
    "text dropout": ({"text": replace(DINO.text, dropout=0.5)}, ["encoder"]),
    "drop path of the fusion": ({"fusion_drop_path": 0.5}, ["encoder"]),
    "drop path of the backbone": ({"backbone": replace(DINO.backbone, drop_path=0.9)}, ["backbone"]),
}


@pytest.mark.parametrize("case", RANDOM)
@torch.no_grad()
def test_what_is_random_while_training_is_so_in_its_place_and_not_in_eval_mode(case, encode):
    changes, places = RANDOM[case]
    network, images, tokens = built(**changes), collate(pictures((64, 96))), encode("red box", "star")
    plain = network(images, tokens)

    def varies(training, *parts):
        """Tell whether ten passes differ from one in eval mode, where only these parts are in train mode."""
        network.eval()
        for part in parts:
            part.train(training)
        with torch.enable_grad():
            found = [network(images, tokens).layers[-1].logits.detach() for _ in range(10)]
        network.eval()
        return any(not torch.allclose(x, plain.layers[-1].logits, atol=1e-5) for x in found)

    torch.manual_seed(0)
    assert not varies(False, network)
    assert varies(True, network) == bool(places)
    parts = {
        "backbone": network.image_encoder.backbone, "text": network.text_encoder,
        "encoder": network.encoder, "decoder": network.decoder,
    }  # fmt: skip
    assert [name for name, part in parts.items() if varies(True, part)] == places


def test_drop_path_leaves_out_the_fusion_of_whole_images(encode):
    """With the highest rate the image knows nothing of the text, and a box is where it would be for any caption."""
    network = built(fusion_drop_path=1.0 - 1e-7)
    images = collate(pictures((64, 96)))
    network.encoder.train()
    with torch.no_grad():
        one, other = (
            network.fuse(network.encode_image(images), network.encode_text(encode(name))).pyramid.cells
            for name in ("red box", "blue star")
        )
        assert torch.equal(one, other)
        network.encoder.eval()
        fused = network.fuse(network.encode_image(images), network.encode_text(encode("red box"))).pyramid.cells
    assert not torch.allclose(fused, one, atol=1e-4)


# Detections ----------------------------------------------------------------------------------------------------------


def output_of(boxes, logits, token_map, sizes_hw=((40, 80),)):
    stage = QueryOutput(torch.tensor(logits)[None], torch.tensor(boxes)[None])
    mask = torch.ones(1, stage.logits.shape[-1], dtype=torch.bool)
    return DinoOutput(stage, (stage,), mask, torch.tensor(token_map).bool()[None], sizes_hw)


def test_a_score_is_the_mean_over_the_tokens_of_a_class():
    logits = [[9.0, 0.0, 9.0, 9.0], [9.0, -9.0, 0.0, -40.0]]
    found = decode(
        output_of([[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.4, 0.2]], logits, [[0, 1, 0, 0], [0, 0, 1, 1]]), [(100, 200)]
    )[0]
    assert found.labels.tolist() == [1, 0, 1, 0]
    high, low = torch.tensor(9.0).sigmoid().item(), torch.tensor(-9.0).sigmoid().item()
    assert found.scores.tolist() == pytest.approx([high, 0.5, 0.25, low], abs=1e-6)
    edges = [[50.0, 25, 150, 75], [50.0, 25, 150, 75], [0.0, 0, 60, 20], [0.0, 0, 60, 20]]  # cut by the image
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor(edges))


@given(st.integers(0, 1000), st.integers(1, 200), st.integers(1, 4))
@few
def test_the_best_pairs_of_query_and_class_are_kept_best_first(seed, queries, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, classes, generator=generator)
    boxes = torch.rand(queries, 4, generator=generator)
    output = output_of(boxes.tolist(), logits.tolist(), torch.eye(classes).tolist())
    (found,) = decode(output, [(50, 70)])
    scores = logits.sigmoid().flatten().sort(descending=True).values[:DETECTIONS]
    torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-6)
    assert ((found.boxes_xyxy >= 0) & (found.boxes_xyxy <= torch.tensor([70.0, 50, 70, 50]))).all()
    assert (found.boxes_xyxy[:, 2:] >= found.boxes_xyxy[:, :2]).all()


def test_a_class_that_the_caption_does_not_hold_scores_zero():
    (found,) = decode(output_of([[0.5, 0.5, 0.5, 0.5]], [[5.0, 5.0]], [[0, 1], [0, 0]]), [(10, 10)])
    assert found.scores.tolist() == [pytest.approx(torch.tensor(5.0).sigmoid().item()), 0.0]
    assert found.labels.tolist() == [0, 1]
