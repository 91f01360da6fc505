import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_adapt.core.boxes import clip, pairwise_iou
from glip_adapt.core.structures import Detections, merge
from glip_adapt.trunks.glip.anchors import anchor_grid, level_shapes
from glip_adapt.trunks.glip.decode import class_probabilities, decode
from glip_adapt.trunks.glip.head import HeadOutput

TOKEN_MAP = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
SMALL = 5 * math.log(1 / 16)  # deltas that shrink an anchor of 64 pixels to 4, so that neighbours do not overlap


def logit(probability):
    return math.log(probability / (1 - probability))


def blank(padded_hw=(64, 96), image_sizes_hw=((64, 96),)):
    """An output that scores everything at zero, with boxes that do not overlap on the finest level."""
    level_shapes_hw, batch = level_shapes(padded_hw), len(image_sizes_hw)
    anchors = anchor_grid(level_shapes_hw)
    deltas = torch.zeros(batch, len(anchors), 4)
    deltas[..., 2:] = SMALL
    return HeadOutput(
        token_logits=torch.full((batch, len(anchors), 5), -50.0),
        box_deltas=deltas,
        centerness=torch.zeros(batch, len(anchors)),
        anchors_xyxy=anchors,
        level_shapes_hw=level_shapes_hw,
        token_mask=torch.ones(1, 5, dtype=torch.bool),
        token_map=TOKEN_MAP[None],
        image_sizes_hw=tuple(image_sizes_hw),
        candidates=torch.zeros(batch, len(anchors), 1),
    )


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_detections_are_sorted_inside_their_picture_and_do_not_overlap_within_a_class(seed):
    generator = torch.Generator().manual_seed(seed)
    output = blank(image_sizes_hw=((50, 96), (64, 70)))
    output = replace(
        output,
        token_logits=2 * torch.randn(output.token_logits.shape, generator=generator) - 2,
        box_deltas=2 * torch.randn(output.box_deltas.shape, generator=generator),
        centerness=torch.randn(output.centerness.shape, generator=generator),
    )
    for found, (height, width) in zip(decode(output), output.image_sizes_hw, strict=True):
        assert 0 < len(found) <= 100
        assert (found.scores.diff() <= 0).all()
        assert ((found.scores > 0) & (found.scores < 1)).all()
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= torch.tensor([width - 1, height - 1] * 2)).all()
        rivals = (found.labels[:, None] == found.labels[None]).triu(1)
        assert (pairwise_iou(found.boxes_xyxy, found.boxes_xyxy)[rivals] <= 0.6 + 1e-5).all()
        assert set(found.labels.tolist()) == {0, 1}  # class 2 has no token


def test_a_batch_equals_single_pictures():
    output = blank(image_sizes_hw=((64, 96), (40, 50)))
    output = replace(output, token_logits=torch.randn(output.token_logits.shape) - 2)
    alone = [
        replace(
            output,
            **{
                k: getattr(output, k)[i : i + 1] for k in ("token_logits", "box_deltas", "centerness", "image_sizes_hw")
            },
        )
        for i in range(2)
    ]
    for together, single in zip(decode(output), [decode(one)[0] for one in alone], strict=True):
        torch.testing.assert_close(together.boxes_xyxy, single.boxes_xyxy)
        torch.testing.assert_close(together.scores, single.scores)
        assert torch.equal(together.labels, single.labels)


def test_the_score_of_a_class_is_the_mean_over_its_tokens():
    output = blank()
    output.token_logits[0, 7] = torch.tensor([0.0, logit(0.3), logit(0.9), logit(0.1), 0.0])
    probabilities = class_probabilities(output)[0, 7]
    torch.testing.assert_close(probabilities, torch.tensor([0.3, 0.5, 0.0]))
    (found,) = decode(output)
    assert found.labels.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.5 * 0.5, 0.3 * 0.5]).sqrt())  # centerness 0.5


def test_the_threshold_is_on_the_class_score_before_centerness():
    output = blank()
    output.token_logits[0, 5, 1], output.centerness[0, 5] = logit(0.06), logit(0.01)
    output.token_logits[0, 50, 1], output.centerness[0, 50] = logit(0.04), logit(0.99)
    (found,) = decode(output)
    assert found.scores.tolist() == pytest.approx([math.sqrt(0.06 * 0.01)], rel=1e-4)
    x, y = 5 * 8 + 3.5, 3.5  # the sixth cell of the first row; 4 pixels around its centre
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[x - 1.5, y - 1.5, x + 1.5, y + 1.5]]))


def test_a_worse_box_of_the_same_class_is_suppressed_and_of_another_is_not():
    output = blank()
    output.box_deltas[..., 2:] = 0  # anchors of 64 pixels, 8 apart: IoU 56 / 72
    output.token_logits[0, 40, 1] = logit(0.9)
    output.token_logits[0, 41, 1] = logit(0.8)
    output.token_logits[0, 41, 2:4] = logit(0.7)
    (found,) = decode(output)
    assert list(zip(found.labels.tolist(), found.scores.square().mul(2).tolist(), strict=True)) == [
        (0, pytest.approx(0.9)),
        (1, pytest.approx(0.7)),
    ]


@pytest.mark.parametrize(("better", "tied", "expected"), [(99, 6, 105), (100, 6, 100), (0, 130, 130), (70, 20, 90)])
def test_at_most_a_hundred_stay_but_for_ties_with_the_last(better, tied, expected):
    output = blank(padded_hw=(128, 128), image_sizes_hw=((128, 128),))
    output.token_logits[0, :better, 1] = torch.linspace(1, 2, better)
    output.token_logits[0, better : better + tied, 1] = 0.5
    (found,) = decode(output)
    assert len(found) == expected
    assert found.scores[:better].diff().lt(0).all()


def test_another_limit_keeps_the_first_of_the_same_boxes():
    output = blank(padded_hw=(128, 128), image_sizes_hw=((128, 128),))
    output.token_logits[0, :150, 1] = torch.linspace(1, 2, 150)
    (all_of_them,), (few,) = decode(output, limit=300), decode(output, limit=7)
    assert (len(all_of_them), len(few)) == (150, 7)
    assert torch.equal(few.boxes_xyxy, all_of_them.boxes_xyxy[:7])


def test_a_level_hands_on_its_best_thousand():
    output = blank(padded_hw=(320, 320), image_sizes_hw=((320, 320),))  # 40 × 40 cells on the finest level
    output.token_logits[0, :1600, 1] = 1.0  # all tied, so none is cut off later
    output.token_logits[0, 1600:1603, 1] = 1.0  # the next level has room of its own
    (found,) = decode(output)
    assert len(found) == 1003


def test_the_best_thousand_are_chosen_by_the_product_with_centerness():
    output = blank(padded_hw=(320, 320), image_sizes_hw=((320, 320),))
    output.token_logits[0, :1600, 1] = 1.0
    output.token_logits[0, :600, 1] = 2.0  # the best classes …
    output.centerness[0, :600] = -3.0  # … but the worst products
    (found,) = decode(output)
    assert len(found) == 1000
    assert found.boxes_xyxy[:, 1].min() > 600 // 40 * 8 - 1


def test_a_box_of_any_level_belongs_to_its_own_anchor():
    output = blank(padded_hw=(256, 384), image_sizes_hw=((256, 384),))
    starts, places = [0], []
    for h, w in output.level_shapes_hw:
        starts.append(starts[-1] + h * w)
    for start, (h, w) in zip(starts[:-1], output.level_shapes_hw, strict=True):
        places.append(start + h * w // 2 + 1)  # somewhere in the middle
    output.token_logits[0, places, 1] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    (found,) = decode(output)
    anchors = output.anchors_xyxy[places]
    middle, side = (anchors[:, :2] + anchors[:, 2:]) / 2, (anchors[:, 2:3] - anchors[:, :1] + 1) / 16
    expected = torch.cat((middle - (side - 1) / 2, middle + (side - 1) / 2), dim=-1)
    torch.testing.assert_close(found.boxes_xyxy, clip(expected, (256, 384)))


def test_boxes_are_clipped_to_the_real_size_of_their_picture():
    output = blank(image_sizes_hw=((64, 96), (33, 50)))
    output.box_deltas[..., 2:] = 5 * math.log(4)  # 256 pixels: the whole picture and more
    output.token_logits[:, 40, 1] = 3.0
    first, second = decode(output)
    assert first.boxes_xyxy.tolist() == [[0, 0, 95, 63]]
    assert second.boxes_xyxy.tolist() == [[0, 0, 49, 32]]


def test_pictures_without_detections_keep_their_shapes_and_types():
    for found in decode(blank(image_sizes_hw=((64, 96), (40, 50)))):
        assert (found.boxes_xyxy.shape, found.boxes_xyxy.dtype) == ((0, 4), torch.float32)
        assert (found.scores.shape, found.scores.dtype) == ((0,), torch.float32)
        assert (found.labels.shape, found.labels.dtype) == ((0,), torch.int64)
        assert len(found) == 0


def test_decoding_builds_no_graph():
    output = blank()
    output = replace(output, token_logits=output.token_logits.requires_grad_())
    assert not class_probabilities(output).detach().requires_grad
    assert not any(found.scores.requires_grad for found in decode(output))


def some_detections(scores, label):
    count = len(scores)
    boxes_xyxy = torch.arange(4.0 * count).view(count, 4) + 100 * label
    return Detections(boxes_xyxy, torch.tensor(scores), torch.full((count,), label))


def test_merging_sorts_all_parts_together():
    merged = merge([some_detections([0.9, 0.2], 0), some_detections([], 1), some_detections([0.5], 2)])
    assert merged.labels.tolist() == [0, 2, 0]
    assert merged.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert merged.boxes_xyxy[:, 0].tolist() == [0, 200, 4]


def test_merging_keeps_all_that_each_caption_gave():
    scores = torch.linspace(0.9, 0.1, 200).tolist()
    merged = merge([some_detections(scores[100:], 0), some_detections(scores[:100], 1)])
    assert merged.labels.tolist() == [1] * 100 + [0] * 100
    assert merged.scores.tolist() == pytest.approx(scores)


def test_boxes_of_two_captions_do_not_suppress_each_other():
    box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    merged = merge(
        [Detections(box, torch.tensor([score]), torch.tensor([label])) for label, score in ((0, 0.3), (1, 0.9))]
    )
    assert merged.labels.tolist() == [1, 0]
    assert torch.equal(merged.boxes_xyxy, box.repeat(2, 1))


def test_merging_one_part_changes_nothing():
    part = some_detections([0.9, 0.5, 0.5, 0.1], 3)
    merged = merge([part])
    assert torch.equal(merged.boxes_xyxy, part.boxes_xyxy)
    assert torch.equal(merged.scores, part.scores)
