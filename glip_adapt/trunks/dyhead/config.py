"""``DyHeadConfig`` and its two sizes: those of GLIP-T and of glip-nano, without what reads text."""

from __future__ import annotations

from dataclasses import dataclass

from glip_adapt.core.captions import MAX_TOKENS
from glip_adapt.trunks.encoder_config import SWIN_T, SwinConfig
from glip_adapt.trunks.glip.config import ANCHOR_SCALE


@dataclass(frozen=True, kw_only=True)
class DyHeadConfig:
    """All sizes of one detector; the defaults are DyHead-T."""

    backbone: SwinConfig | str = SWIN_T
    "Swin, or the name of a timm model with feature strides 8, 16, 32"
    image_width: int = 256
    "channels of the pyramid, the tower and the head"
    blocks: int = 6
    "tower blocks"
    anchor_scale: int = ANCHOR_SCALE
    "side of an anchor over the stride of its level"
    drop_block: float = 0.3
    "rate at which patches are cut out of the pyramid while training"
    classes: int = MAX_TOKENS
    "rows of the classifier, of which a model uses as many as it has classes"


DYHEAD_T = DyHeadConfig()
DYHEAD_NANO = DyHeadConfig(backbone="edgenext_xx_small", image_width=96, blocks=2, anchor_scale=4, drop_block=0.0)
