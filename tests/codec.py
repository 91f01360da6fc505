"""The inverse of the box codec of GLIP, by which tests make predictions of known boxes."""

import torch

from glip_adapt.trunks.glip.anchors import CENTRE_WEIGHT, SIDE_WEIGHT, centres


def encode(boxes_xyxy, anchors_xyxy):
    """Return (N, 4) deltas (dx, dy, dw, dh) that turn anchors (N, 4) into boxes (N, 4)."""
    box_size, anchor_size = (x[..., 2:] - x[..., :2] + 1 for x in (boxes_xyxy, anchors_xyxy))
    shift = (centres(boxes_xyxy) - centres(anchors_xyxy)) / anchor_size
    deltas = torch.cat((shift, (box_size / anchor_size).log()), dim=-1)
    return deltas * deltas.new_tensor([CENTRE_WEIGHT] * 2 + [SIDE_WEIGHT] * 2)
