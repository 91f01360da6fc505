"""Deterministic stand-in weights for numerical parity with the public GLIP implementation.

Every tensor is drawn from its *public checkpoint name* alone, so nothing large has to be stored:
fill a state dict that carries the names and shapes in ``<variant>.state_dict.json`` and any
faithful implementation must reproduce the arrays in ``*.npz`` beside this file (see README.md).
"""

import zlib

import numpy as np

NORM_WEIGHT = (
    "norm.weight",
    "norm1.weight",
    "norm2.weight",
    "norm3.weight",
    "LayerNorm.weight",
    "bn.weight",
    "layer_norm_v.weight",
    "layer_norm_l.weight",
)


def tensor(name: str, shape: tuple[int, ...], salt: int = 0) -> np.ndarray:
    """Return the float32 array for checkpoint entry ``name`` (public naming, no ``module.`` prefix).

    ``salt`` selects an independent draw. Integer buffers (``relative_position_index``) and
    ``anchor_generator.cell_anchors`` are derived quantities: never fill them.
    """
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + salt))
    noise = generator.standard_normal(shape or (1,), dtype=np.float32).reshape(shape)
    if name.endswith(NORM_WEIGHT):
        return 1 + 0.1 * noise
    if name.endswith(("gamma_v", "gamma_l")):
        return 0.15 + 0.02 * noise
    if name.endswith(".scale"):
        return 1 + 0.1 * noise
    if name.endswith("log_scale"):
        return 0.1 * noise
    if name.endswith("bias0"):
        return -2.0 + 0.1 * noise
    if name.endswith("offset.bias"):
        return 0.5 * noise
    if name.endswith(("bias", "bias_lang")):
        return 0.02 * noise
    if name.endswith("relative_position_bias_table"):
        return 0.1 * noise
    if name.endswith("embeddings.weight"):
        return noise
    if name.endswith("tunable_linear.weight"):
        return 0.05 * noise
    if name.endswith("dot_product_projection_text.weight"):
        return 0.4 * noise
    if name.endswith("bbox_pred.weight"):
        return 0.15 * noise
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    if name.endswith("output.dense.weight"):  # keep text tokens apart: residuals dominate
        return noise * np.float32(0.3 / np.sqrt(fan_in))
    if name.endswith(("self.query.weight", "self.key.weight")):
        return noise * np.float32(2.0 / np.sqrt(fan_in))
    return noise * np.float32(1.4 / np.sqrt(fan_in))


def image(seed: int, height: int, width: int) -> np.ndarray:
    """Return a deterministic RGB ``uint8`` picture ``(height, width, 3)``: smooth blobs plus fine grain."""
    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    canvas = np.zeros((height, width, 3))
    for _ in range(12):
        cy, cx = generator.uniform(0, height), generator.uniform(0, width)
        radius = generator.uniform(8, 0.4 * min(height, width))
        colour = generator.uniform(-120, 120, size=3)
        canvas += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2))[..., None] * colour
    canvas += 128 + generator.normal(0, 6, size=canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
