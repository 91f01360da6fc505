"""The losses of Grounding DINO: matching by brute force, numbers by hand, captions that differ in a batch."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.loss.loss_grounding_dino import GroundingDinoForObjectDetectionLoss

from glip_adapt.core.structures import Target
from glip_adapt.trunks.dino.objective import DinoObjective, answers, cost, match, query_losses
from glip_adapt.trunks.dino.output import DinoOutput, QueryOutput
from glip_adapt.trunks.dino.truth import Truth, truths_of

SIZE_HW, TOKENS = (40, 80), 7
# Three classes, of which the last has two tokens.
TOKEN_MAP = torch.tensor([[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]]).bool()
NOTHING = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
OBJECTIVE = DinoObjective()
few = settings(max_examples=40)
seeds = st.integers(0, 10_000)


def random_stage(batch, queries, tokens, generator, dtype=torch.float64):
    logits = 2 * torch.randn(batch, queries, tokens, generator=generator, dtype=dtype)
    centres = torch.rand(batch, queries, 2, generator=generator, dtype=dtype)
    sides = 0.05 + 0.5 * torch.rand(batch, queries, 2, generator=generator, dtype=dtype)
    return QueryOutput(logits.requires_grad_(), torch.cat((centres, sides), dim=-1).requires_grad_())


def random_output(batch=1, queries=6, layers=2, seed=0, token_map=TOKEN_MAP, mask=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    tokens = token_map.shape[-1]
    stages = [random_stage(batch, queries, tokens, generator, dtype) for _ in range(1 + layers)]
    token_map = token_map if token_map.ndim == 3 else token_map[None]
    mask = torch.ones(batch, tokens, dtype=torch.bool) if mask is None else mask
    return DinoOutput(stages[0], tuple(stages[1:]), mask, token_map, (SIZE_HW,) * batch)


def random_target(seed, count, classes=3):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([40.0, 20.0])
    side = 5 + torch.rand(count, 2, generator=generator) * torch.tensor([30.0, 14.0])
    return Target(torch.cat((low, low + side), dim=-1), torch.randint(0, classes, (count,), generator=generator))


def losses_of(output, targets, scale=None):
    prepared = [OBJECTIVE.prepare(target, SIZE_HW) for target in targets]
    return OBJECTIVE.losses(output, prepared, OBJECTIVE.scale(prepared) if scale is None else scale)


def as_truths(output, targets):
    return truths_of(targets, output.image_sizes_hw, output.token_map, output.layers[-1].boxes)


def image(output, i, tokens=None, classes=None):
    """Return the predictions of one image, for the first tokens and classes."""

    def of(stage):
        return QueryOutput(stage.logits[i : i + 1, :, :tokens], stage.boxes[i : i + 1])

    token_map = output.token_map.expand(len(output.image_sizes_hw), -1, -1)[i : i + 1, :classes, :tokens]
    return DinoOutput(
        of(output.proposals),
        tuple(map(of, output.layers)),
        output.token_mask[i : i + 1, :tokens],
        token_map,
        output.image_sizes_hw[i : i + 1],
    )


# Matching ------------------------------------------------------------------------------------------------------------


def pairs_of(found):
    return sorted(zip(*(rows.tolist() for rows in found), strict=True))


@given(seeds, st.integers(1, 5), st.integers(0, 5))
@few
def test_the_pairs_cost_least_among_all_choices(seed, queries, boxes):
    output = random_output(1, queries, 0, seed)
    output = replace(output, layers=(output.proposals,))
    truths = as_truths(output, [random_target(seed, boxes)])
    ((found,),) = match(output.layers, truths)
    table = cost(output.proposals.logits[0], output.proposals.boxes[0], truths[0])
    assert table.shape == (queries, boxes)
    least, most = min(queries, boxes), range(max(queries, boxes))
    by_rows = table if queries <= boxes else table.T
    choices = {
        choice: sum(by_rows[i, j].item() for i, j in enumerate(choice))
        for choice in itertools.permutations(most, least)
    }
    best = min(choices, key=choices.get)
    expected = [(i, j) if queries <= boxes else (j, i) for i, j in enumerate(best)]
    assert pairs_of(found) == sorted(expected)


def test_each_stage_and_image_is_matched_by_itself():
    output = random_output(2, 6, 2, 3)
    truths = as_truths(output, [random_target(1, 3), random_target(2, 2)])
    together = match((output.proposals, *output.layers), truths)
    assert [[len(query) for query, _ in row] for row in together] == [[3, 2]] * 3
    for row, stage in zip(together, (output.proposals, *output.layers), strict=True):
        for i, found in enumerate(row):
            one = QueryOutput(stage.logits[i : i + 1], stage.boxes[i : i + 1])
            ((alone,),) = match([one], truths[i : i + 1])
            assert pairs_of(alone) == pairs_of(found)


def test_the_cost_of_a_pair_by_hand():
    truth = Truth(torch.tensor([[0.5, 0.5, 0.4, 0.2]]).double(), TOKEN_MAP[2:3])  # two tokens
    logits = torch.tensor([[9.0, 9, 9, 9, 0, math.log(3), 9]]).double()  # probabilities 1 / 2 and 3 / 4
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).double()  # its half
    as_own = 0.25 * (0.25 * math.log(2) + 0.0625 * math.log(4 / 3))
    as_other = 0.75 * (0.25 * math.log(2) + 0.5625 * math.log(4))
    expected = (as_own - as_other) / 2 + 5 * 0.2 - 2 * 0.5
    assert cost(logits, box, truth).item() == pytest.approx(expected, abs=1e-6)
    apart = torch.tensor([[0.1, 0.5, 0.2, 0.2]]).double()  # 0.1 between them; the hull is 0.7 wide
    giou = 0 - (0.7 - 0.6) / 0.7
    assert cost(logits, apart, truth).item() == pytest.approx((as_own - as_other) / 2 + 5 * 0.6 - 2 * giou, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("broken", [[2], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_predictions_that_are_no_numbers_are_matched_last_and_stop_nothing(broken, dtype):
    output = random_output(1, 6, 1, 0, dtype=dtype)
    boxes = output.layers[0].boxes.detach().clone()
    boxes[0, broken] = float("nan")
    stage = replace(output.layers[0], boxes=boxes)
    truths = as_truths(output, [random_target(4, 3)])
    ((found,),) = match([stage], truths)
    whole = [query for query in range(6) if query not in broken]
    assert len(found[0]) == 3
    assert set(found[0].tolist()) >= set(whole[:3]) if len(whole) <= 3 else set(found[0].tolist()) <= set(whole)


def test_boxes_become_shares_of_the_image_without_padding():
    """Their last pixel is included: 0 … 39 of 80 columns are half of them."""
    target = Target(torch.tensor([[0.0, 10.0, 39.0, 29.0], [0.0, 0.0, 79.0, 39.0]]), torch.tensor([2, 0]))
    (truth,) = as_truths(random_output(), [target])
    assert truth.boxes.tolist() == [[0.25, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
    assert torch.equal(truth.tokens, TOKEN_MAP[[2, 0]])


# Losses by hand ------------------------------------------------------------------------------------------------------


def even_output(batch=1, queries=2, layers=1, boxes=(0.5, 0.5, 0.5, 0.5)):
    """All tokens have probability one half, all queries one box."""
    stage = QueryOutput(
        torch.zeros(batch, queries, TOKENS).double(), torch.tensor(boxes).double().expand(batch, queries, 4)
    )
    mask = torch.ones(batch, TOKENS, dtype=torch.bool)
    return DinoOutput(stage, (stage,) * layers, mask, TOKEN_MAP[None], (SIZE_HW,) * batch)


@pytest.mark.parametrize("layers", [1, 3])
def test_losses_of_one_box_by_hand(layers):
    target = Target(torch.tensor([[20.0, 10.0, 39.0, 29.0]]), torch.tensor([2]))  # the left half of the queries' box
    losses = losses_of(even_output(layers=layers), [target])
    stages = 1 + layers
    # Of 2 × 7 logits the two tokens of the class are wanted in the matched query.
    expected = 0.25 * math.log(2) * (2 * 0.25 + 12 * 0.75)
    assert losses["token"].item() == pytest.approx(2 * stages * expected)
    assert losses["box"].item() == pytest.approx(5 * stages * (0.125 + 0.25))
    assert losses["giou"].item() == pytest.approx(2 * stages * 0.5)


def test_losses_are_divided_by_the_boxes_of_the_batch():
    target = Target(torch.tensor([[20.0, 10.0, 59.0, 29.0]]), torch.tensor([0]))
    twice = Target(target.boxes_xyxy.repeat(2, 1), torch.tensor([0, 1]))
    losses = losses_of(even_output(batch=2), [target, twice])
    tokens = 0.25 * math.log(2) * (3 * 0.25 + (28 - 3) * 0.75)
    assert losses["token"].item() == pytest.approx(2 * 2 * tokens / 3)
    assert losses["box"].item() == pytest.approx(0, abs=1e-12)
    assert losses["giou"].item() == pytest.approx(0, abs=1e-12)
    assert OBJECTIVE.scale([target, twice]) == 3
    assert OBJECTIVE.scale([NOTHING]) == 1


def test_perfect_predictions_cost_nothing():
    target = random_target(5, 3)
    output = random_output(1, 6, 2, 0)
    (truth,) = as_truths(output, [target])
    logits, boxes = torch.full((1, 6, TOKENS), -40.0).double(), torch.rand(1, 6, 4).double()
    for n, query in enumerate((4, 0, 2)):
        boxes[0, query] = truth.boxes[n]
        logits[0, query] += 80 * truth.tokens[n]
    stage = QueryOutput(logits, boxes)
    losses = losses_of(replace(output, proposals=stage, layers=(stage, stage)), [target])
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for loss in losses.values())


def test_only_matched_queries_are_moved_and_every_logit_of_the_others_falls():
    output, target = random_output(1, 6, 1, 2), random_target(5, 2)
    sum(losses_of(output, [target]).values()).backward()
    stages = (output.proposals, output.layers[0])
    for stage, (found,) in zip(stages, match(stages, as_truths(output, [target])), strict=True):
        moved = torch.zeros(6, dtype=torch.bool)
        moved[found[0]] = True
        assert torch.equal(stage.boxes.grad[0].any(-1), moved)
        assert (stage.logits.grad[0, ~moved] > 0).all()


# What may differ in a batch ------------------------------------------------------------------------------------------


SETTINGS = SimpleNamespace(
    class_cost=1.0, bbox_cost=5.0, giou_cost=2.0, focal_alpha=0.25, bbox_loss_coefficient=5.0,
    giou_loss_coefficient=2.0, auxiliary_loss=False, two_stage=False,
)  # fmt: skip


def by_transformers(stage, targets, maps, mask):
    """Return the parts of transformers' loss of one stage, weighed as ours."""
    labels = []
    for target in targets:
        edges = (target.boxes_xyxy + torch.tensor([0.0, 0, 1, 1])).double() / torch.tensor([80.0, 40, 80, 40])
        boxes = torch.cat(((edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]), dim=-1)
        labels.append({"class_labels": target.labels, "boxes": boxes})
    mask = mask.unsqueeze(1).expand_as(stage.logits)
    _, found, _ = GroundingDinoForObjectDetectionLoss(
        stage.logits, labels, torch.device("cpu"), stage.boxes, SETTINGS, tuple(m.double() for m in maps), mask
    )
    return {"token": 2 * found["loss_ce"], "box": 5 * found["loss_bbox"], "giou": 2 * found["loss_giou"]}


@given(seeds, st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(sum))
@few
def test_with_one_caption_the_losses_of_a_layer_are_those_of_transformers(seed, counts):
    output = random_output(len(counts), 5, 1, seed)
    targets = [random_target(seed + i, count) for i, count in enumerate(counts)]
    maps = [TOKEN_MAP] * len(counts)
    expected = [by_transformers(s, targets, maps, output.token_mask) for s in (output.proposals, *output.layers)]
    for name, loss in losses_of(output, targets).items():
        torch.testing.assert_close(loss, sum(part[name] for part in expected).double(), rtol=1e-5, atol=1e-7)


# Three images with captions of three, two and one classes, padded: lengths 7, 5 and 3.
MIXED = torch.stack(
    (
        TOKEN_MAP,
        torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]).bool(),
        torch.tensor([[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]).bool(),
    )
)
LENGTHS, CLASSES = (7, 5, 3), (3, 2, 1)
MASK = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


@given(seeds)
@few
def test_captions_of_a_batch_may_differ(seed):
    """Each image by transformers with its own caption, where its loss is right: it is wrong in a batch of these."""
    output = random_output(3, 5, 1, seed, token_map=MIXED, mask=MASK)
    targets = [random_target(seed + i, 2, classes) for i, classes in enumerate(CLASSES)]
    total = {"token": 0.0, "box": 0.0, "giou": 0.0}
    for i, (length, classes) in enumerate(zip(LENGTHS, CLASSES, strict=True)):
        alone = image(output, i, length, classes)
        for stage in (alone.proposals, *alone.layers):
            found = by_transformers(stage, targets[i : i + 1], [alone.token_map[0]], alone.token_mask)
            total = {name: total[name] + 2 * found[name].double() for name in total}  # it divides by two boxes
    for name, loss in losses_of(output, targets).items():
        torch.testing.assert_close(6 * loss, total[name], rtol=1e-5, atol=1e-7)


def test_the_wanted_columns_of_mixed_captions_by_hand():
    """transformers would take rows 0, 2 and 1 of all maps in a row for the first class of each image."""
    output = random_output(3, 1, 0, 0, token_map=MIXED, mask=MASK)
    targets = [Target(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0])) for _ in range(3)]
    stage = output.proposals
    truths = as_truths(replace(output, layers=(stage,)), targets)
    token, _, _ = query_losses(stage, truths, match([stage], truths)[0], output.token_mask)
    token.backward()
    wanted = stage.logits.grad[:, 0] < 0
    assert torch.equal(wanted, MIXED[:, 0])
    assert not stage.logits.grad[:, 0][~MASK].any()


@given(seeds, st.lists(st.integers(0, 4), min_size=2, max_size=3))
@few
def test_images_one_by_one_with_the_scale_of_the_batch_add_up(seed, counts):
    output = random_output(len(counts), 5, 2, seed)
    targets = [random_target(seed + i, count) for i, count in enumerate(counts)]
    whole, scale = losses_of(output, targets), OBJECTIVE.scale(targets)
    parts = [losses_of(image(output, i), [target], scale) for i, target in enumerate(targets)]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), loss, rtol=1e-12, atol=1e-12)


def test_one_caption_for_a_batch_equals_one_per_image():
    output, targets = random_output(2), [random_target(1, 2), random_target(2, 3)]
    repeated = replace(output, token_map=output.token_map.repeat(2, 1, 1))
    shared, own = losses_of(output, targets), losses_of(repeated, targets)
    assert all(torch.equal(shared[name], own[name]) for name in shared)


def test_padding_of_a_caption_has_no_part_in_the_losses():
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    mask[0, 6] = False
    output, target = random_output(1, 6, 1, 0, mask=mask), random_target(5, 3)

    def other(stage):
        return QueryOutput(torch.cat((stage.logits[..., :6], 30 * stage.logits[..., 6:] + 5), -1), stage.boxes)

    changed = replace(output, proposals=other(output.proposals), layers=tuple(map(other, output.layers)))
    expected, found = losses_of(output, [target]), losses_of(changed, [target])
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("others", [[], [random_target(3, 2)]])
def test_an_image_without_boxes_adds_no_box_loss_and_still_back_propagates(others):
    output, targets = random_output(1 + len(others)), [NOTHING, *others]
    losses = losses_of(output, targets)
    sum(losses.values()).backward()
    if not others:
        assert losses["box"].item() == losses["giou"].item() == 0
    for stage in (output.proposals, *output.layers):
        assert not stage.boxes.grad[0].any()
        assert (stage.logits.grad[0] > 0).all()  # every token is pushed down
        assert stage.logits.grad.isfinite().all()
        assert stage.boxes.grad.isfinite().all()


def test_more_boxes_than_queries_leave_boxes_over():
    output, target = random_output(1, 3, 1, 0), random_target(6, 8)
    stages = (output.proposals, *output.layers)
    for (found,) in match(stages, as_truths(output, [target])):
        assert sorted(found[0].tolist()) == [0, 1, 2]
        assert len(set(found[1].tolist())) == 3
    losses = losses_of(output, [target])
    assert OBJECTIVE.scale([target]) == 8
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


def test_half_precision_is_measured_in_full():
    output, target = random_output(1, 6, 1, 0, dtype=torch.float32), random_target(5, 3)

    def half(stage):
        return QueryOutput(stage.logits.bfloat16(), stage.boxes)

    rounded = replace(output, proposals=half(output.proposals), layers=tuple(map(half, output.layers)))
    for name, loss in losses_of(rounded, [target]).items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(losses_of(output, [target])[name].item(), rel=2e-2)


def test_a_prepared_target_is_the_target():
    target = random_target(5, 3)
    prepared = OBJECTIVE.prepare(target, (64, 96))
    assert torch.equal(prepared.boxes_xyxy, target.boxes_xyxy)
    assert torch.equal(prepared.labels, target.labels)


# Bad labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [-1, 3, 99])
def test_a_label_that_is_no_class_is_named(label):
    target = Target(torch.tensor([[0.0, 0.0, 30.0, 30.0]]), torch.tensor([label]))
    with pytest.raises(ValueError, match=rf"\[{label}\] are no classes; expected 0 to 2"):
        losses_of(random_output(2), [NOTHING, target])


def test_a_label_without_a_token_is_an_error_naming_it():
    output = random_output(3, 5, 1, 0, token_map=MIXED, mask=MASK)
    targets = [random_target(0, 2), random_target(1, 2, 2), Target(torch.zeros(2, 4), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match=r"Labels \[1\] have no token in their caption"):
        losses_of(output, targets)


def test_as_many_targets_as_images_are_asked_for():
    with pytest.raises(ValueError, match="each of 2 images, got 1"):
        losses_of(random_output(2), [NOTHING])


def test_weights_of_one_change_nothing_and_equal_weights_cancel_in_the_losses_of_boxes():
    output, targets = random_output(batch=2), [random_target(1, 2), random_target(2, 3)]
    plain = losses_of(output, targets)
    ones = losses_of(output, [replace(t, weights=torch.ones(len(t))) for t in targets])
    halves = losses_of(output, [replace(t, weights=torch.full((len(t),), 0.5)) for t in targets])
    for name in plain:
        torch.testing.assert_close(ones[name], plain[name])
    for name in ("box", "giou"):
        torch.testing.assert_close(halves[name], plain[name])
    assert halves["token"] != plain["token"]


def test_a_query_of_a_box_without_weight_learns_nothing():
    output = random_output(layers=1)
    target = replace(random_target(1, 2), weights=torch.tensor([1.0, 1e-9]))
    query, box = match(output.layers, as_truths(output, [target]))[0][0]
    sum(losses_of(output, [target]).values()).backward()
    unsure, sure = (query[box == i] for i in (1, 0))
    for column in (output.layers[0].logits.grad[0], output.layers[0].boxes.grad[0]):
        assert column[unsure].abs().max() < 1e-6 * column[sure].abs().max()


def test_queries_answer_with_the_class_of_the_box_that_they_are_matched_with():
    output = random_output(batch=2, seed=1)
    targets = [replace(random_target(1, 2), weights=torch.tensor([1.0, 0.5])), random_target(2, 3)]
    targets = [replace(target, labels=torch.arange(len(target))) for target in targets]
    found, weights = answers(output, targets)
    (matches,) = match([output.layers[-1]], as_truths(output, targets))
    assert any(box.tolist() != sorted(box.tolist()) for _, box in matches)  # else the order of boxes would not matter
    for i, (target, (query, box)) in enumerate(zip(targets, matches, strict=True)):
        assert found[i, query, target.labels[box]].all()
        assert found[i].sum() == len(target)
        expected = torch.ones(len(target)) if target.weights is None else target.weights[box]
        torch.testing.assert_close(weights[i, query], expected.double())
    assert weights.sum() == 2 * 6 - 0.5
