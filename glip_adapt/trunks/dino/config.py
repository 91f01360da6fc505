"""``DinoConfig`` and the released sizes: the only file with architecture numbers of this family.

Sizes are those of the configurations on the Hub: IDEA-Research/grounding-dino-tiny and -base, and the conversions of
MM-Grounding-DINO and LLMDet (convert_mm_grounding_dino_to_hf.py of transformers).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from glip_adapt.trunks.encoder_config import BERT_BASE, SWIN_T, SwinConfig, TextConfig

# Tokens that end a phrase: [CLS], [SEP], "." and "?" of bert-base-uncased.
PHRASE_ENDS = (101, 102, 1012, 1029)
# Left as they are by configs/mm_grounding_dino/grounding_dino_swin-t_finetune_8xb4_20e_cat.py of mmdetection, which is
# its example for a small dataset: ``backbone`` and ``language_model`` have lr_mult 0.0, the layers behind them learn.
SMALL_DATA_FROZEN = ("image_encoder.backbone", "text_encoder.bert")

_SWIN_T = replace(SWIN_T, drop_path=0.1)
_SWIN_B = SwinConfig(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12, drop_path=0.1)
_SWIN_L = SwinConfig(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12, drop_path=0.1, outputs=4)
_BERT = replace(BERT_BASE, dropout=0.0, separators=PHRASE_ENDS)


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """All sizes of one detector; the defaults are the tiny Grounding DINO."""

    backbone: SwinConfig | str = _SWIN_T
    "Swin, or the name of a timm model with feature strides 8, 16, 32"
    text: TextConfig = _BERT
    "text encoder"
    width: int = 256
    "channels of image, text and queries"
    encoder_layers: int = 6
    "layers in which image and text are fused"
    decoder_layers: int = 6
    "layers in which queries read both"
    heads: int = 8
    "attention heads; fusion and text layers have half as many"
    hidden_width: int = 2048
    "channels of the feed-forward layers; fusion and text layers have half as many"
    points: int = 4
    "cells that a head reads in each map"
    queries: int = 900
    "boxes that are predicted"
    dropout: float = 0.1
    "in the layers of image and queries while training"
    fusion_drop_path: float = 0.1
    "stochastic depth of the fusion while training"
    shared_boxes: bool = True
    "whether all decoder layers predict boxes by the same layers"
    scaled_scores: bool = False
    "whether dot products with tokens are divided by √width and get a bias"

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the cells of each map: those of the backbone, and one that is coarser."""
        outputs = 3 if isinstance(self.backbone, str) else self.backbone.outputs
        return tuple(64 // 2**i for i in range(outputs, -1, -1))


GROUNDING_DINO_T = DinoConfig()
GROUNDING_DINO_B = DinoConfig(backbone=_SWIN_B)
MM_GROUNDING_DINO_T = DinoConfig(shared_boxes=False, scaled_scores=True)
MM_GROUNDING_DINO_B = replace(MM_GROUNDING_DINO_T, backbone=_SWIN_B)
MM_GROUNDING_DINO_L = replace(MM_GROUNDING_DINO_T, backbone=_SWIN_L)
DINO_NANO = DinoConfig(
    backbone="edgenext_xx_small",
    text=TextConfig(
        vocabulary_size=950, width=128, layers=2, heads=4, hidden_width=512, dropout=0.0, separators=(2, 3, 5)
    ),
    width=96,
    encoder_layers=2,
    decoder_layers=3,
    heads=4,
    hidden_width=384,
    queries=60,
    dropout=0.0,
    fusion_drop_path=0.0,
    shared_boxes=False,
    scaled_scores=True,
)
