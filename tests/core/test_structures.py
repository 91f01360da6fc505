"""Structures beyond holding tensors: batches of several, levels of a buffer, choices among detections."""

import pytest
import torch

from glip_adapt.core.structures import (
    Detections,
    Fused,
    ImageBatch,
    Pyramid,
    Target,
    TextFeatures,
    Tokens,
    may_hold_false,
    merge,
    split_levels,
)

SHAPES = ((2, 3), (1, 2))  # 6 + 2 cells


def pyramid(start, images=1):
    cells = torch.arange(start, start + images * 8 * 4.0).view(images, 8, 4)
    return Pyramid(cells, SHAPES, tuple((60 + i, 80) for i in range(images)))


def text(start, images=1):
    mask = torch.tensor([[True, True, start > 0]]).expand(images, 3)
    return TextFeatures(torch.full((images, 3, 5), float(start)), mask, torch.eye(3, dtype=torch.bool)[None, :2])


def detections():
    boxes = torch.arange(12.0).view(3, 4)
    return Detections(boxes, torch.tensor([0.9, 0.3, 0.2]), torch.tensor([2, 0, 1]), ("a", "b", "c"))


def test_images_of_one_size_are_stacked_in_order():
    parts = [ImageBatch(torch.full((n, 3, 32, 64), n, dtype=torch.uint8), ((30, 40 + n),) * n) for n in (1, 2)]
    batch = ImageBatch.stack(parts)
    assert batch.pixels.shape == (3, 3, 32, 64)
    assert batch.pixels[:, 0, 0, 0].tolist() == [1, 2, 2]
    assert batch.image_sizes_hw == ((30, 41), (30, 42), (30, 42))


def test_levels_are_views_of_the_buffer_row_by_row_and_finest_first():
    one = pyramid(0)
    fine, coarse = one.levels
    assert (fine.shape, coarse.shape) == ((1, 4, 2, 3), (1, 4, 1, 2))
    assert fine[0, :, 0, 0].tolist() == [0, 1, 2, 3]  # channels last: the first cell
    assert fine[0, 0].tolist() == [[0, 4, 8], [12, 16, 20]]
    assert coarse[0, 0].tolist() == [[24, 28]]
    assert coarse.data_ptr() == one.cells[:, 6:].data_ptr()


def test_a_pyramid_of_levels_has_these_levels():
    levels = [torch.randn(2, 4, *hw) for hw in ((4, 6), (2, 3), (1, 1))]
    made = Pyramid.from_levels(levels, ((60, 80), (64, 70)))
    assert made.cells.shape == (2, 24 + 6 + 1, 4)
    assert made.level_shapes_hw == ((4, 6), (2, 3), (1, 1))
    assert all(map(torch.equal, made.levels, levels))


def test_shapes_that_do_not_fill_the_buffer_are_refused():
    with pytest.raises(RuntimeError):
        split_levels(torch.zeros(1, 8, 4), [(2, 3), (1, 1)])


def test_pyramids_are_stacked_in_order():
    whole = Pyramid.stack([pyramid(0), pyramid(100, images=2)])
    assert whole.cells[:, 0, 0].tolist() == [0, 100, 132]
    assert whole.level_shapes_hw == SHAPES
    assert whole.image_sizes_hw == ((60, 80), (60, 80), (61, 80))


def test_shorter_captions_are_padded_with_what_belongs_to_no_class():
    long = Tokens(
        torch.tensor([[101, 5, 6, 7, 102]]),
        torch.ones(1, 5, dtype=torch.bool),
        torch.tensor([[[False, True, False, False, False], [False, False, True, True, False]]]),
    )
    short = Tokens(
        torch.tensor([[101, 9, 102]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[[False, True, False]]])
    )
    batch = Tokens.stack([short, long])
    assert batch.ids.tolist() == [[101, 9, 102, 0, 0], [101, 5, 6, 7, 102]]
    assert batch.ids.dtype == torch.int64
    assert batch.mask.tolist() == [[True, True, True, False, False], [True] * 5]
    assert batch.token_map[0].nonzero().tolist() == [[0, 1]]
    assert torch.equal(batch.token_map[1], long.token_map[0])


def test_a_caption_alone_is_its_own_stack():
    one = Tokens(
        torch.tensor([[101, 9, 102]]), torch.tensor([[True, True, True]]), torch.tensor([[[False, True, False]]])
    )
    stacked = Tokens.stack([one])
    assert all(torch.equal(getattr(stacked, name), getattr(one, name)) for name in ("ids", "mask", "token_map"))


def test_fused_results_keep_the_text_of_each_image_and_the_map_of_their_caption():
    first, second = text(0), text(1, images=2)
    whole = Fused.stack([Fused(pyramid(0), first), Fused(pyramid(100, images=2), second)])
    assert whole.text.features[:, 0, 0].tolist() == [0, 1, 1]
    assert whole.text.mask[:, 2].tolist() == [False, True, True]
    assert whole.text.token_map is first.token_map
    assert whole.pyramid.cells[:, 0, 0].tolist() == [0, 100, 132]
    assert whole.image_sizes_hw == whole.pyramid.image_sizes_hw == ((60, 80), (60, 80), (61, 80))


def test_only_what_scores_enough_is_kept_in_order():
    found = detections()
    kept = found.above(0.3)
    assert kept.scores.tolist() == found.scores[:2].tolist()
    assert kept.labels.tolist() == [2, 0]
    assert torch.equal(kept.boxes_xyxy, found.boxes_xyxy[:2])
    assert kept.class_names == ("a", "b", "c")
    assert len(found.above(1.0)) == 0


def test_a_threshold_per_class_is_asked_of_the_boxes_of_that_class():
    scores, labels = torch.tensor([0.9, 0.5, 0.4]), torch.tensor([0, 1, 0])
    found = Detections(torch.zeros(3, 4), scores, labels, ("cat", "dog"))
    assert found.above({"cat": 0.4, "dog": 0.6}).scores.tolist() == pytest.approx([0.9, 0.4])
    assert found.above({"cat": 1.0, "dog": 0.5}).labels.tolist() == [1]


@pytest.mark.parametrize("chosen", [torch.tensor([True, False, True]), torch.tensor([0, 2])])
def test_a_mask_and_indices_choose_the_same_rows(chosen):
    kept = detections().select(chosen)
    assert (kept.labels.tolist(), kept.boxes_xyxy[:, 0].tolist(), len(kept)) == ([2, 1], [0, 8], 2)
    assert kept.class_names == ("a", "b", "c")


def test_indices_choose_in_their_order():
    assert detections().select(torch.tensor([2, 0])).labels.tolist() == [1, 2]


def test_detections_of_several_captions_are_one_list_best_first_and_ties_in_order():
    other = Detections(torch.full((2, 4), 50.0), torch.tensor([0.3, 0.25]), torch.tensor([3, 4]))
    whole = merge([detections(), other])
    assert whole.labels.tolist() == [2, 0, 3, 4, 1]
    assert whole.scores.tolist() == pytest.approx([0.9, 0.3, 0.3, 0.25, 0.2])
    assert whole.boxes_xyxy[2].tolist() == [50.0] * 4


def test_targets_and_detections_count_their_boxes():
    assert len(Target(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))) == len(detections()) == 3


def test_a_mask_is_looked_at_on_the_cpu_alone():
    assert not may_hold_false(torch.tensor([True, True]))
    assert may_hold_false(torch.tensor([True, False]))
    assert may_hold_false(torch.ones(2, dtype=torch.bool, device="meta"))  # which has no numbers to look at
