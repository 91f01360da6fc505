import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou_loss

from glip_adapt.core import boxes

NO_BOXES = torch.zeros(0, 4)

few = settings(max_examples=40, deadline=None)

quarters = st.integers(-400, 400).map(lambda i: i / 4)  # exact in float32, and so are their sums


@st.composite
def box_lists(draw, min_size=0, max_size=6):
    """Inclusive boxes (N, 4) of at least one pixel."""
    rows = draw(
        st.lists(st.tuples(quarters, quarters, *[st.integers(0, 200)] * 2), min_size=min_size, max_size=max_size)
    )
    corners = [(x, y, x + w / 4, y + h / 4) for x, y, w, h in rows]
    return torch.tensor(corners, dtype=torch.float32).view(-1, 4)


@given(box_lists())
@few
def test_corners_to_coco_boxes_and_back_change_nothing(boxes_xyxy):
    assert torch.equal(boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(boxes_xyxy)), boxes_xyxy)


@given(box_lists())
@few
def test_edges_are_coco_boxes_by_their_corners(boxes_xyxy):
    edges, boxes_xywh = boxes.to_edges(boxes_xyxy), boxes.xyxy_to_xywh(boxes_xyxy)
    assert torch.equal(boxes.edges_to_xywh(edges), boxes_xywh)
    assert torch.equal(boxes.xywh_to_edges(boxes_xywh), edges)


@given(box_lists())
@few
def test_the_area_is_width_times_height_of_the_coco_box(boxes_xyxy):
    assert torch.equal(boxes.area(boxes_xyxy), boxes.xyxy_to_xywh(boxes_xyxy)[:, 2:].prod(-1))


@given(box_lists(), st.integers(1, 500))
@few
def test_flipping_twice_changes_nothing(boxes_xyxy, width):
    flipped = boxes.flip_horizontal(boxes_xyxy, width)
    assert torch.equal(boxes.flip_horizontal(flipped, width), boxes_xyxy)
    assert torch.equal(boxes.area(flipped), boxes.area(boxes_xyxy))


@given(box_lists(), *[st.tuples(st.integers(1, 900), st.integers(1, 900))] * 2)
@few
def test_scaling_there_and_back_changes_nothing(boxes_xyxy, from_hw, to_hw):
    back = boxes.scale(boxes.scale(boxes_xyxy, from_hw, to_hw), to_hw, from_hw)
    torch.testing.assert_close(back, boxes_xyxy, rtol=1e-5, atol=1e-4)


@given(box_lists(), st.tuples(st.integers(1, 60), st.integers(1, 60)))
@few
def test_a_clipped_box_lies_in_the_image_and_stays_there(boxes_xyxy, size_hw):
    clipped = boxes.clip(boxes_xyxy, size_hw)
    height, width = size_hw
    assert ((clipped >= 0) & (clipped <= torch.tensor([width - 1, height - 1] * 2))).all()
    assert torch.equal(boxes.clip(clipped, size_hw), clipped)
    inside = ((boxes_xyxy >= 0) & (boxes_xyxy <= torch.tensor([width - 1, height - 1] * 2))).all(-1)
    assert torch.equal(clipped[inside], boxes_xyxy[inside])


@given(box_lists(), box_lists())
@few
def test_iou_is_symmetric_within_bounds_and_one_with_itself(some, others):
    iou = boxes.pairwise_iou(some, others)
    assert iou.shape == (len(some), len(others))
    assert ((iou >= 0) & (iou <= 1)).all()
    assert torch.equal(iou, boxes.pairwise_iou(others, some).T)
    assert torch.equal(boxes.pairwise_iou(some, some).diagonal(), torch.ones(len(some)))


@given(st.data())
@few
def test_generalised_iou_lies_between_minus_one_and_one(data):
    some = data.draw(box_lists(min_size=3, max_size=3))
    others = data.draw(box_lists(min_size=3, max_size=3))
    some[0] = some[0, [2, 3, 0, 1]]  # an inverted prediction
    giou = boxes.generalized_iou(some, others)
    assert ((giou >= -1) & (giou <= 1)).all()
    torch.testing.assert_close(1 - giou[1:], generalized_box_iou_loss(some[1:], others[1:]), rtol=1e-5, atol=1e-5)


def test_hand_computed_conversions():
    assert boxes.xywh_to_xyxy(torch.tensor([[3.0, 4.0, 10.0, 1.0]])).tolist() == [[3, 4, 12, 4]]
    assert boxes.xyxy_to_xywh(torch.tensor([[3.0, 4.0, 12.0, 4.0]])).tolist() == [[3, 4, 10, 1]]
    assert boxes.xywh_to_xyxy(torch.tensor([[3.0, 4.0, 0.25, 0.0]])).tolist() == [[3, 4, 3, 4]]  # at least one pixel
    assert boxes.scale(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (10, 20), (30, 10)).tolist() == [[0.5, 6, 1.5, 12]]
    assert boxes.flip_horizontal(torch.tensor([[0.0, 5.0, 2.0, 6.0]]), 10).tolist() == [[7, 5, 9, 6]]


def test_hand_computed_clipping():
    given_boxes = torch.tensor([[-5.0, -1.0, 200.0, 9.0], [20.0, 30.0, 40.0, 50.0]])
    assert boxes.clip(given_boxes, (8, 16)).tolist() == [[0, 0, 15, 7], [15, 7, 15, 7]]
    assert given_boxes[0].tolist() == [-5, -1, 200, 9]  # what was received stays


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 9, 9), 1.0),
        ((5, 0, 14, 9), 50 / 150),
        ((9, 9, 18, 18), 1 / 199),  # both corners count, so a shared corner is one pixel
        ((10, 0, 19, 9), 0.0),  # neighbours that share no pixel
        ((2, 3, 2, 3), 1 / 100),  # one pixel inside
    ],
)
def test_hand_computed_iou_of_a_box_of_ten_pixels(other, expected):
    square = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    assert boxes.area(square).item() == 100
    assert boxes.pairwise_iou(square, torch.tensor([other]).float()).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),  # coordinate differences: 50 / 150, hull = union
        ((0, 0, 1, 1), (3, 0, 4, 1), -0.5),  # union 2, hull 4
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 9),
        ((5, 5, 3, 9), (4, 4, 8, 8), -0.2),  # inverted in x: a line of no area, hull 4 × 5, union 16
    ],
)
def test_hand_computed_generalised_iou(prediction, truth, expected):
    giou = boxes.generalized_iou(torch.tensor([prediction]).float(), torch.tensor([truth]).float())
    assert giou.item() == pytest.approx(expected, abs=1e-6)


def test_generalised_iou_of_two_points_is_finite_and_has_a_gradient():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    giou = boxes.generalized_iou(point, torch.tensor([[5.0, 5.0, 5.0, 5.0]]))
    giou.sum().backward()
    assert giou.isfinite().all()
    assert point.grad.isfinite().all()


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 25),
    classes=st.integers(1, 3),
    # No ratio of small integers comes near this number, so rounding cannot decide.
    iou_threshold=st.just((math.sqrt(5) - 1) / 2),
)
@settings(max_examples=60, deadline=None)
def test_nms_equals_brute_force_class_by_class(seed, count, classes, iou_threshold):
    generator = np.random.default_rng(seed)
    corner = generator.integers(0, 8, (count, 2))
    boxes_xyxy = np.concatenate((corner, corner + generator.integers(4, 12, (count, 2))), axis=1)
    scores = generator.permutation(count) / max(count, 1)
    labels = generator.integers(0, classes, count)
    kept = boxes.class_aware_nms(
        torch.from_numpy(boxes_xyxy).float(),
        torch.from_numpy(scores).float(),
        torch.from_numpy(labels),
        classes,
        iou_threshold,
    )
    assert kept.dtype == torch.int64
    assert kept.tolist() == brute_force_nms(boxes_xyxy, scores, labels, iou_threshold)


def brute_force_nms(boxes_xyxy, scores, labels, iou_threshold):
    """Best first: keep a box unless one already kept of its class overlaps it, counting shared whole pixels."""
    pixels = [{(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)} for x1, y1, x2, y2 in boxes_xyxy.tolist()]
    kept = []
    for i in np.argsort(-scores).tolist():
        rivals = [pixels[j] for j in kept if labels[j] == labels[i]]
        if all(len(pixels[i] & rival) <= iou_threshold * len(pixels[i] | rival) for rival in rivals):
            kept.append(i)
    return kept


@given(st.lists(st.integers(0, 90), min_size=1, max_size=12, unique=True))
@settings(max_examples=20, deadline=None)
def test_nms_never_suppresses_across_classes(labels):
    count = len(labels)
    same_place = torch.tensor([[3.0, 3.0, 9000.0, 9000.0]]).repeat(count, 1)
    kept = boxes.class_aware_nms(same_place, torch.linspace(0.1, 0.9, count), torch.tensor(labels), 91, 0.0)
    assert kept.tolist() == list(range(count))[::-1]


def test_nms_measures_inclusive_boxes():
    # Two of 2 × 1 pixels that share one: 1 / 3. Without the extra pixel they would not overlap at all.
    pair = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 2.0, 0.0]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    assert boxes.class_aware_nms(pair, scores, labels, 1, 0.3).tolist() == [0]
    assert boxes.class_aware_nms(pair, scores, labels, 1, 0.34).tolist() == [0, 1]


def test_nms_is_as_exact_for_a_high_class_as_for_the_first():
    # Shifting classes apart by an offset would round these corners.
    pair = torch.tensor([[0.0, 0.0, 1000.0, 0.03], [0.0, 0.0, 1000.0, 0.70]])
    scores = torch.tensor([0.9, 0.8])
    for label in (0, 10_000):
        labels = torch.tensor([label, label])
        assert boxes.class_aware_nms(pair, scores, labels, 10_001, 0.604).tolist() == [0]  # 1.03 / 1.70 = 0.606
        assert boxes.class_aware_nms(pair, scores, labels, 10_001, 0.608).tolist() == [0, 1]


def test_nothing_in_gives_nothing_out():
    assert boxes.xywh_to_xyxy(NO_BOXES).shape == boxes.xyxy_to_xywh(NO_BOXES).shape == (0, 4)
    assert boxes.clip(NO_BOXES, (4, 4)).shape == (0, 4)
    assert boxes.pairwise_iou(NO_BOXES, torch.zeros(3, 4)).shape == (0, 3)
    assert boxes.generalized_iou(NO_BOXES, NO_BOXES).shape == (0,)
    kept = boxes.class_aware_nms(NO_BOXES, torch.zeros(0), torch.zeros(0, dtype=torch.int64), 1, 0.5)
    assert (kept.shape, kept.dtype) == ((0,), torch.int64)
