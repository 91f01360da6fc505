import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from codec import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from glip_adapt.core.structures import Target
from glip_adapt.trunks.glip.anchors import ANCHOR_SCALE, STRIDES, anchor_grid, level_shapes
from glip_adapt.trunks.glip.head import HeadOutput
from glip_adapt.trunks.glip.objective import (
    GlipObjective,
    LossScale,
    answers,
    assign,
    centerness_targets,
    detection_loss,
    focal_loss,
)

PADDED_HW = (64, 96)
SHAPES_HW = level_shapes(PADDED_HW)
ANCHORS = anchor_grid(SHAPES_HW)
TOKENS = 5
TOKEN_MAP = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()  # class 2 is not in the caption
NOTHING = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))

seeds = st.integers(0, 10_000)


def random_target(seed, count=None):
    """Boxes at places that are no round numbers, so that no two anchors are equally near."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(0, 5, (), generator=generator)) if count is None else count
    low = torch.rand(count, 2, generator=generator) * torch.tensor([70.0, 40.0])
    side = 10 + torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 50.0])
    return Target(torch.cat((low, low + side), dim=-1), torch.randint(0, 2, (count,), generator=generator))


def random_output(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    anchors = len(ANCHORS)
    return HeadOutput(
        token_logits=torch.randn(batch, anchors, TOKENS, generator=generator).requires_grad_(),
        box_deltas=torch.randn(batch, anchors, 4, generator=generator).requires_grad_(),
        centerness=torch.randn(batch, anchors, generator=generator).requires_grad_(),
        anchors_xyxy=ANCHORS,
        level_shapes_hw=SHAPES_HW,
        token_mask=torch.ones(1, TOKENS, dtype=torch.bool),
        token_map=TOKEN_MAP[None],
        image_sizes_hw=(PADDED_HW,) * batch,
        candidates=torch.randn(batch, anchors, 3, generator=generator),
    )


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_the_assignment_equals_atss_written_as_loops(seed):
    target = random_target(seed)
    found = assign(ANCHORS, SHAPES_HW, target)
    matched, centerness = atss_as_loops(target.boxes_xyxy.double().numpy())
    assert found.matched.tolist() == matched
    np.testing.assert_allclose(found.centerness.numpy(), centerness, rtol=1e-4)


def atss_as_loops(truth):
    """Adaptive training sample selection of the paper, one box after the other."""
    anchors = []  # (level, centre x, centre y, side)
    for level, ((h, w), stride) in enumerate(zip(SHAPES_HW, STRIDES, strict=True)):
        for y in range(h):
            for x in range(w):
                centre = (stride * x + (stride - 1) / 2, stride * y + (stride - 1) / 2)
                anchors.append((level, *centre, ANCHOR_SCALE * stride))
    best = {}  # anchor → (IoU, box)
    for n, box in enumerate(truth):
        candidates = []
        for level in range(5):
            members = [i for i, anchor in enumerate(anchors) if anchor[0] == level]
            middle = (box[:2] + box[2:]) / 2
            members.sort(key=lambda i: math.dist(anchors[i][1:3], middle))
            candidates += members[:9]
        overlaps = [iou(anchors[i], box) for i in candidates]
        limit = np.mean(overlaps) + np.std(overlaps, ddof=1)
        for i, overlap in zip(candidates, overlaps, strict=True):
            _, x, y, _ = anchors[i]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= limit and inside and overlap > best.get(i, (-1,))[0]:
                best[i] = (overlap, n)
    matched = [best[i][1] if i in best else -1 for i in range(len(anchors))]
    centerness = []
    for i in sorted(best):
        box, (_, x, y, _) = truth[best[i][1]], anchors[i]
        left, right, top, bottom = x - box[0], box[2] - x, y - box[1], box[3] - y
        centerness.append(math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)))
    return matched, centerness


def iou(anchor, box):
    _, x, y, side = anchor
    reach = (side - 1) / 2
    width = min(x + reach, box[2]) - max(x - reach, box[0]) + 1
    height = min(y + reach, box[3]) - max(y - reach, box[1]) + 1
    shared = max(width, 0) * max(height, 0)
    return shared / (side**2 + (box[2] - box[0] + 1) * (box[3] - box[1] + 1) - shared)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_the_losses_of_single_pictures_add_up_to_those_of_the_batch(seed):
    output = random_output(3, seed)
    targets = [random_target(seed + i) for i in range(3)]
    whole = detection_loss(output, targets)
    scale = LossScale.of([assign(ANCHORS, SHAPES_HW, target) for target in targets])
    parts = [detection_loss(picture(output, i), targets[i : i + 1], scale) for i in range(3)]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), loss, rtol=1e-5, atol=1e-6)


def picture(output, i):
    return replace(
        output,
        token_logits=output.token_logits[i : i + 1],
        box_deltas=output.box_deltas[i : i + 1],
        centerness=output.centerness[i : i + 1],
        image_sizes_hw=output.image_sizes_hw[i : i + 1],
    )


@pytest.mark.parametrize("others", [[], [random_target(3, count=2)]])
def test_a_picture_without_boxes_adds_no_box_loss_and_still_back_propagates(others):
    output, targets = random_output(1 + len(others)), [NOTHING, *others]
    losses = detection_loss(output, targets)
    torch.stack(list(losses.values())).sum().backward()
    if not others:
        assert losses["box"].item() == losses["centerness"].item() == 0
    assert losses["token"].item() > 0
    assert (output.box_deltas.grad[0] == 0).all()
    assert (output.centerness.grad[0] == 0).all()
    assert (output.token_logits.grad[0] > 0).all()  # every logit is pushed down
    assert all(x.grad.isfinite().all() for x in (output.token_logits, output.box_deltas, output.centerness))


def test_only_positive_anchors_are_moved():
    output, target = random_output(1), random_target(5, count=3)
    losses = detection_loss(output, [target])
    (losses["box"] + losses["centerness"]).backward()
    positive = assign(ANCHORS, SHAPES_HW, target).matched >= 0
    assert 0 < positive.sum() < len(ANCHORS)
    assert torch.equal((output.centerness.grad[0] != 0), positive)
    assert (output.box_deltas.grad[0, ~positive] == 0).all()


def test_caption_padding_changes_nothing():
    output, target = random_output(1), random_target(5, count=3)
    mask = torch.tensor([[True] * 4 + [False]])
    expected = detection_loss(replace(output, token_mask=mask), [target])["token"]
    other = torch.cat((output.token_logits[..., :4], 30 * output.token_logits[..., 4:] + 5), dim=-1)
    assert torch.equal(
        detection_loss(replace(output, token_logits=other, token_mask=mask), [target])["token"], expected
    )
    trimmed = replace(
        output,
        token_logits=output.token_logits[..., :4],
        token_mask=mask[:, :4],
        token_map=output.token_map[..., :4],
    )
    torch.testing.assert_close(detection_loss(trimmed, [target])["token"], expected)


def test_one_caption_for_a_batch_equals_one_per_picture():
    output, targets = random_output(2), [random_target(5, count=3), random_target(6, count=1)]
    repeated = replace(output, token_mask=output.token_mask.repeat(2, 1), token_map=output.token_map.repeat(2, 1, 1))
    shared, own = detection_loss(output, targets), detection_loss(repeated, targets)
    assert all(torch.equal(shared[name], own[name]) for name in shared)


def test_perfect_predictions_leave_only_the_entropy_of_centerness():
    target = random_target(5, count=3)
    assignment = assign(ANCHORS, SHAPES_HW, target)
    positive = assignment.matched >= 0
    output = random_output(1)
    deltas, logits = torch.zeros(1, len(ANCHORS), 4), torch.full((1, len(ANCHORS), TOKENS), -40.0)
    deltas[0, positive] = encode(target.boxes_xyxy[assignment.matched[positive]], ANCHORS[positive])
    logits[0, positive] += 80 * TOKEN_MAP[target.labels[assignment.matched[positive]]]
    centerness = torch.zeros(1, len(ANCHORS))
    centerness[0, positive] = assignment.centerness.clamp(max=1 - 1e-6).logit()
    losses = detection_loss(replace(output, token_logits=logits, box_deltas=deltas, centerness=centerness), [target])
    goal = assignment.centerness.clamp(1e-6, 1 - 1e-6).double()
    entropy = -(goal * goal.log() + (1 - goal) * (1 - goal).log()).mean()
    assert losses["token"].item() == pytest.approx(0, abs=1e-6)
    assert losses["box"].item() == pytest.approx(0, abs=1e-5)
    assert losses["centerness"].item() == pytest.approx(entropy.item(), rel=1e-4)


def test_hand_computed_focal_loss():
    logits = torch.tensor([[[0.0, 0.0, math.log(3), math.log(3), 99.0]]])
    targets = torch.tensor([[[1.0, 0.0, 1.0, 0.0, 0.0]]])
    mask = torch.tensor([[True, True, True, True, False]])
    expected = (
        0.25 * 0.5**2 * math.log(2)
        + 0.75 * 0.5**2 * math.log(2)
        + 0.25 * 0.25**2 * math.log(4 / 3)  # probability 3 / 4, right
        + 0.75 * 0.75**2 * math.log(4)  # probability 3 / 4, wrong
    )
    assert focal_loss(logits, targets, mask).item() == pytest.approx(expected)


def test_the_focal_loss_equals_that_of_torchvision():
    logits = 5 * torch.randn(2, 30, 4)
    targets = (torch.rand(2, 30, 4) < 0.2).float()
    mask = torch.ones(2, 4, dtype=torch.bool)
    expected = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2, reduction="sum")
    torch.testing.assert_close(focal_loss(logits, targets, mask), expected)


def test_float64_predictions_lose_nothing_to_float32():
    output, target = random_output(1), random_target(3, count=2)
    names = ("token_logits", "box_deltas", "centerness")
    wide = replace(output, **{name: getattr(output, name).detach().double() for name in names})
    moved = replace(wide, **{name: getattr(wide, name) + 1e-9 for name in names})
    before, after = detection_loss(wide, [target]), detection_loss(moved, [target])
    for name, loss in detection_loss(output, [target]).items():
        assert (loss.dtype, before[name].dtype) == (torch.float32, torch.float64)
        assert before[name].item() == pytest.approx(loss.item(), rel=1e-5)
        assert before[name] != after[name]


def test_hand_computed_losses_of_a_box_inside_nine_anchors():
    # 40 × 40 pixels around the centre (27.5, 27.5) of an anchor of 64, which holds the box as its eight neighbours do.
    target = Target(torch.tensor([[8.0, 8.0, 47.0, 47.0]]), torch.tensor([1]))
    assignment = assign(ANCHORS, SHAPES_HW, target)
    positives = int((assignment.matched >= 0).sum())
    assert positives == 9
    output = replace(
        random_output(1),
        token_logits=torch.zeros(1, len(ANCHORS), TOKENS),
        box_deltas=torch.zeros(1, len(ANCHORS), 4),
        centerness=torch.zeros(1, len(ANCHORS)),
    )
    losses = detection_loss(output, [target])
    zeros = len(ANCHORS) * TOKENS - 2 * positives  # two tokens name class 1, each a full positive
    expected = 0.25 * math.log(2) * (0.25 * 2 * positives + 0.75 * zeros) / positives
    assert losses["token"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["centerness"].item() == pytest.approx(math.log(2), rel=1e-5)
    # 39² / 63² in coordinate differences for each of them, and the hull is the anchor.
    assert losses["box"].item() == pytest.approx(2 * (1 - 39**2 / 63**2), rel=1e-5)


def test_hand_computed_centerness():
    anchors = torch.tensor([[0.0, 0.0, 63.0, 63.0]]).repeat(2, 1)  # centre (31.5, 31.5)
    truth = torch.tensor([[21.5, 21.5, 41.5, 41.5], [21.5, 11.5, 71.5, 41.5]])
    expected = torch.tensor([1.0, math.sqrt(10 / 40 * 10 / 20)])
    torch.testing.assert_close(centerness_targets(anchors, truth), expected)


def test_an_anchor_wanted_twice_goes_to_the_box_it_overlaps_most():
    tight, loose = [4.0, 4.0, 59.0, 59.0], [10.3, 10.3, 49.0, 49.0]
    for boxes, expected in (([tight, loose], 0), ([loose, tight], 1)):
        matched = assign(ANCHORS, SHAPES_HW, Target(torch.tensor(boxes), torch.tensor([0, 1]))).matched
        middle = 3 * SHAPES_HW[0][1] + 3  # its centre is (27.5, 27.5); the overlap with the larger box is larger
        assert matched[middle] == expected


def test_the_scale_of_a_batch_without_boxes_is_one():
    assert LossScale.of([assign(ANCHORS, SHAPES_HW, NOTHING)]) == LossScale(1, 1.0)


def test_the_scale_counts_positive_anchors_and_their_centerness():
    assignments = [assign(ANCHORS, SHAPES_HW, random_target(seed, count=2)) for seed in (1, 2)]
    scale = LossScale.of(assignments)
    assert scale.positives == sum(int((a.matched >= 0).sum()) for a in assignments)
    assert scale.centerness == pytest.approx(sum(a.centerness.sum().item() for a in assignments))


def test_a_label_without_a_token_is_an_error_naming_it():
    target = Target(random_target(5, count=2).boxes_xyxy, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"Labels \[2\] have no token in their caption"):
        detection_loss(random_output(1), [target])


def test_a_label_that_is_no_class_is_named():
    for label in (-1, 99):
        target = Target(torch.tensor([[0.0, 0.0, 30.0, 30.0]]), torch.tensor([label]))
        with pytest.raises(ValueError, match=rf"\[{label}\] are no classes"):
            detection_loss(random_output(2), [target, NOTHING])


def test_as_many_targets_as_pictures_are_asked_for():
    with pytest.raises(ValueError, match="each of 2 images, got 1"):
        detection_loss(random_output(2), [NOTHING])


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_weights_of_one_change_nothing_and_weights_of_a_batch_are_a_mean(seed):
    targets = [random_target(seed, 2), random_target(seed + 1, 3)]
    plain = detection_loss(random_output(2), targets)
    ones = detection_loss(random_output(2), [replace(t, weights=torch.ones(len(t))) for t in targets])
    halves = detection_loss(random_output(2), [replace(t, weights=torch.full((len(t),), 0.5)) for t in targets])
    for name in plain:
        torch.testing.assert_close(ones[name], plain[name])
    for name in ("box", "centerness"):  # all halved, and divided by half as many
        torch.testing.assert_close(halves[name], plain[name])


def test_a_box_of_no_weight_is_as_good_as_none_but_for_what_surrounds_it():
    target, output = random_target(3, 3), random_output(1)
    found = assign(ANCHORS, SHAPES_HW, target)
    unsure = replace(target, weights=torch.tensor([1.0, 1e-9, 1.0]))
    detection_loss(output, [unsure])["token"].backward()
    gradient = output.token_logits.grad[0].abs().sum(-1)
    assert gradient[found.matched == 1].max() < 1e-6 * gradient[found.matched == 0].min()
    assert gradient[found.matched == -1].min() > 0


def test_the_scale_counts_weights():
    target = replace(random_target(3, 3), weights=torch.full((3,), 0.25))
    found = assign(ANCHORS, SHAPES_HW, target)
    assert LossScale.of([found, found]).positives == pytest.approx(max(1, 0.5 * len(found.positive)))


def test_anchors_answer_with_the_class_of_their_box_and_count_by_how_well_they_are_centred():
    target = replace(random_target(3, count=3), weights=torch.tensor([1.0, 0.5, 0.25]))
    target = replace(target, labels=torch.tensor([0, 1, 1]))
    found, weights = answers(random_output(1), [GlipObjective(ANCHOR_SCALE).prepare(target, PADDED_HW)])
    matched = assign(ANCHORS, SHAPES_HW, target).matched
    targets = centerness_targets(ANCHORS[matched >= 0], target.boxes_xyxy[matched[matched >= 0]])
    for box, label in enumerate(target.labels):
        assert found[0, matched == box, label].all()
    assert found.sum() == (matched >= 0).sum() > 0
    assert (weights[0, matched < 0] == 1).all()
    torch.testing.assert_close(weights[0, matched >= 0], targets * target.weights[matched[matched >= 0]])
    plain = GlipObjective(ANCHOR_SCALE).prepare(replace(target, weights=None), PADDED_HW)
    torch.testing.assert_close(answers(random_output(1), [plain])[1][0, matched >= 0], targets)
