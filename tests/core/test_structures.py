"""What the structures offer beyond holding tensors."""

import torch

from glip_adapt.core.structures import Detections


def test_only_what_scores_enough_is_kept_in_order():
    found = Detections(torch.arange(12.0).view(3, 4), torch.tensor([0.9, 0.3, 0.2]), torch.tensor([2, 0, 1]))
    kept = found.above(0.3)
    assert kept.scores.tolist() == found.scores[:2].tolist()
    assert kept.labels.tolist() == [2, 0]
    assert torch.equal(kept.boxes_xyxy, found.boxes_xyxy[:2])
    assert len(found.above(1.0)) == 0
