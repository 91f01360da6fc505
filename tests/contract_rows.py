"""The table of the contract: methods with settings, and what they own on the tiny trunk of each family."""

from collections.abc import Callable
from dataclasses import dataclass

GLIP, DINO = "glip-nano", "grounding-dino-t"  # trunks with the sizes of ``tiny_trunk`` and ``dino_trunk`` of conftest
# Two modules to freeze, of which the second is one layer among others.
BOTTOM = {
    GLIP: ("image_encoder.backbone", "tower.blocks.0.text_layer.hidden"),  # beside it: hidden_out, hidden_norm
    DINO: ("image_encoder.backbone", "encoder.layers.0.text.feed_forward.hidden"),
}
# Row → method and its settings.
ROWS = {
    "zero_shot": ("zero_shot", {}),
    "exemplars": ("exemplars", {}),
    "prompt": ("prompt", {}),
    "context": ("context", {}),
    "context shared": ("context", {"tokens": 3, "per_class": False}),
    "linear_probe": ("linear_probe", {}),
    "lora on fusion": ("lora", {"part": "fusion", "rank": 4}),
    "lora on text": ("lora", {"part": "text", "rank": 2}),
    "lora on head": ("lora", {"part": "head", "init_lora_weights": "gaussian"}),
    "lora on all": ("lora", {"part": "all", "rank": 1}),
    "dora": ("lora", {"part": "fusion", "rank": 4, "use_dora": True}),
    "dora on head": ("lora", {"part": "head", "use_dora": True}),
    "full": ("full", {}),
    "full above a frozen bottom": ("full", {"frozen": BOTTOM}),
    "text_encoder": ("text_encoder", {}),
}
TRAINED = [row for row in ROWS if row != "zero_shot"]


def settings_of(row: str, trunk: str) -> dict:
    """Return the settings of a row for a trunk."""
    settings = ROWS[row][1]
    return {"frozen": BOTTOM[trunk]} if "frozen" in settings else settings


@dataclass(frozen=True)
class Part:
    """Linear layers as pairs of their widths."""

    layers: tuple[tuple[int, int], ...]

    def counted(self, rank: int, *, lengths: bool = False) -> tuple[int, int]:
        """Return how many tensors and numbers low-rank factors have; with DoRA also the length of each row."""
        factors = rank * sum(before + after for before, after in self.layers)
        rows = lengths * sum(after for _, after in self.layers)
        return (2 + lengths) * len(self.layers), factors + rows

    def __add__(self, other):
        return Part(self.layers + other.layers)

    def __mul__(self, times):
        return Part(self.layers * times)


# Of two blocks 6 layers of cross attention and 6 of text; of the text encoder 6 in one layer.
GLIP_FUSION = Part((*((32, 64),) * 4, *((64, 32),) * 2, *((32, 32),) * 4, (32, 64), (64, 32))) * 2
GLIP_TEXT = Part((*((32, 32),) * 4, (32, 64), (64, 32)))
GLIP_HEAD = Part(((32, 32), (32, 4), (32, 1)))
# Attention in both directions, among tokens, to four maps by 4 heads at 2 points each, two feed-forward layers.
DINO_FUSION = (
    Part((*((64, 24),) * 4, *((24, 64),) * 2))
    + Part(((64, 64),) * 4)
    + Part(((64, 32), (64, 64), (64, 64)))
    + Part(((64, 24), (24, 64), (64, 48), (48, 64)))
) * 2
DINO_TEXT = Part((*((16, 16),) * 4, (16, 32), (32, 16))) * 2
# Two layers of attention among queries, to tokens and to the image; three layers of boxes.
DINO_HEAD = Part((*((64, 64),) * 8, (64, 32), (64, 64), (64, 64), (64, 48), (48, 64))) * 2 + Part(
    ((64, 64), (64, 64), (64, 4))
)


def _lora(fusion: Part, text: Part, head: Part) -> dict[str, Callable[[int], tuple[int, int]]]:
    return {
        "lora on fusion": lambda t: fusion.counted(4),
        "lora on text": lambda t: text.counted(2),
        "lora on head": lambda t: head.counted(8),
        "lora on all": lambda t: (fusion + text + head).counted(1),
        "dora": lambda t: fusion.counted(4, lengths=True),
        "dora on head": lambda t: head.counted(8, lengths=True),
    }


# Trunk → row → how many tensors and numbers it owns, given the tokens of the caption.
COUNTS = {
    GLIP: {
        "zero_shot": lambda t: (0, 0),
        "exemplars": lambda t: (2, 2 * (32 + 1)),  # two classes
        "prompt": lambda t: (1, 32 * t),
        "context": lambda t: (1, 2 * 4 * 32),
        "context shared": lambda t: (1, 3 * 32),
        # box (32 + 1) × 4, centerness 32 + 1, projection 32 × 32 + 32, scale 1, text bias 32, bias 1
        "linear_probe": lambda t: (9, 132 + 33 + 1056 + 1 + 32 + 1),
        **_lora(GLIP_FUSION, GLIP_TEXT, GLIP_HEAD),
        "full": lambda t: (256, 431_724),
        # embeddings 950 + 512 + 2 rows and a norm; one layer of four 32 × 32 projections, 64 hidden, two norms
        "text_encoder": lambda t: (21, 32 * 1464 + 64 + 4 * 1056 + 2112 + 2080 + 128),
    },
    DINO: {
        "zero_shot": lambda t: (0, 0),
        "exemplars": lambda t: (2, 2 * (64 + 1)),
        "prompt": lambda t: (1, 64 * t),
        "context": lambda t: (1, 2 * 4 * 16),
        "context shared": lambda t: (1, 3 * 16),
        "linear_probe": lambda t: (4, (64 + 1) * 4 + 2 * 64),  # last layer of boxes, norm before the dot products
        **_lora(DINO_FUSION, DINO_TEXT, DINO_HEAD),
        "full": lambda t: (214, 292_216),  # all of 335 and 402 415 but backbone and BERT, as the released trunks
        # as above with two layers 16 wide, and a projection to the 64 channels of the detector
        "text_encoder": lambda t: (39, 16 * 1464 + 32 + 2 * (4 * 272 + 544 + 528 + 64) + 16 * 64 + 64),
    },
}
