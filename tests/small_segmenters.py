"""SAM and SAM 2 of transformers with small random networks, which see images of 64 × 64 pixels."""

from pathlib import Path

import torch
from transformers import (
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

_WIDTH = 32
_DECODER = {"hidden_size": _WIDTH, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
_SIDE = {"height": 64, "width": 64}


def build_sam():
    """Return network and preprocessing of a SAM."""
    vision = {
        "hidden_size": 16, "output_channels": _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 16,
    }  # fmt: skip
    prompts = {"hidden_size": _WIDTH, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=_DECODER)
    sees = SamImageProcessor(size={"longest_edge": 64}, pad_size=_SIDE)
    return _shaken(SamModel(config)), SamProcessor(sees)


def build_sam2():
    """Return network and preprocessing of a SAM 2."""
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 2, 4, 2], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": _WIDTH,
    }  # fmt: skip
    prompts = {"hidden_size": _WIDTH, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=_DECODER)
    return _shaken(Sam2Model(config)), Sam2Processor(Sam2ImageProcessor(size=_SIDE))


BUILDERS = {"sam": build_sam, "sam2": build_sam2}


def save(kind: str, folder: Path) -> Path:
    """Write a checkpoint of a kind as transformers does; return its folder."""
    for part in BUILDERS[kind]():
        part.save_pretrained(folder)
    return folder


def _shaken(network):
    """Return a network with noise on every tensor: what starts at zero hides whether it is used."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network.eval()
