"""Render scenes of pictograms on a background, with their boxes and masks.

Masks are drawn once per font and kept at a few sizes; noise and backgrounds come from pools. A scene so takes about a
millisecond.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.glyphs import UPRIGHT_FONTS, Glyph, font

COLOURS = {  # RGB
    "red": (214, 40, 40),
    "orange": (245, 132, 31),
    "yellow": (242, 214, 40),
    "green": (40, 158, 70),
    "blue": (40, 82, 214),
    "purple": (132, 48, 168),
    "pink": (245, 132, 190),
    "brown": (124, 74, 36),
    "black": (20, 20, 22),
    "white": (246, 246, 244),
}
BACKGROUNDS = ("plain", "gradient", "blobs", "grain", "stripes", "checker")
_MASK_SIDES = (96, 68, 48, 34, 24, 17)  # longest side of the kept masks in pixels, largest first
_VISIBLE = [0] * 56 + [255] * 200  # which alphas, of 255, make a pixel part of an object
_MOST_OF_A_PIXEL = 128  # of 255
_LEAST_CONTRAST = 90.0  # Euclidean distance in RGB between an object and the mean of the background
_MOST_OVERLAP = 0.08  # intersection of two boxes over the smaller one
_POOL_SIDE = 288  # pixels of a background and of noise, and the largest side of a scene
_Box = tuple[int, int, int, int]  # right and bottom exclusive
_Effect = tuple[float, float, float]  # probability, least, most
_Backdrop = tuple[Image.Image, tuple[float, ...]]  # image, its mean RGB


@dataclass(frozen=True, kw_only=True)
class Style:
    """The look of a scene; the defaults are those of pre-training.

    Attributes:
        size_px: range of the longer side of an object before rotation, drawn on a log scale.
        rotation_degrees: largest rotation to either side; 180 allows any.
        aspect: largest stretch or squeeze of the width, as a fraction.
        shear: largest horizontal shift per pixel of height, to either side.
        fonts: file names of the fonts to prefer, if they have the glyph.
        outline: whether to draw only the contour of a glyph.
        colours: words to choose from if the caller gives none; empty means all of COLOURS.
        held_out_pairs: whether chosen colours may form pairs that pre-training never shows.
        contrast: share of the colour difference between object and background to keep.
        backgrounds: kinds, of BACKGROUNDS.
        grey: whether to remove the colours, like a thermal camera.
        clutter: number of strokes over everything: probability of any, least, most.
        haze: weight of a bluish veil: probability, least, most.
        blur: standard deviation in pixels: probability, least, most.
        noise: standard deviation, of 255: probability, least, most.
    """

    size_px: tuple[float, float] = (18, 64)
    rotation_degrees: float = 15
    aspect: float = 0.2
    shear: float = 0
    fonts: tuple[str, ...] = UPRIGHT_FONTS
    outline: bool = False
    colours: tuple[str, ...] = ()
    held_out_pairs: bool = True
    contrast: float = 1
    backgrounds: tuple[str, ...] = BACKGROUNDS
    grey: bool = False
    clutter: _Effect = (0.15, 2, 8)
    haze: _Effect = (0, 0, 0)
    blur: _Effect = (0.15, 0.5, 1.2)
    noise: _Effect = (0.5, 3, 14)


TRAINING_STYLE = Style(held_out_pairs=False)


@dataclass(frozen=True)
class Scene:
    """A rendered image with N objects.

    Attributes:
        image: RGB.
        boxes_xyxy: (N, 4) float32, inclusive pixels, tight around each object.
        names: N class names.
        colours: N colour words.
        alphas: N pairs of the alpha of an object, 0 to 255, and its left and top edge in the image; in the order of
            drawing.
    """

    image: Image.Image
    boxes_xyxy: np.ndarray
    names: tuple[str, ...]
    colours: tuple[str, ...]
    alphas: tuple[tuple[Image.Image, tuple[int, int]], ...]

    def masks(self) -> np.ndarray:
        """Return (N, H, W) bool, true where most of a pixel belongs to an object and no later one covers it."""
        masks = np.zeros((len(self.alphas), self.image.height, self.image.width), dtype=bool)
        for position, (alpha, corner) in enumerate(self.alphas):
            placed = Image.new("L", self.image.size)
            placed.paste(alpha, corner)
            masks[position] = np.asarray(placed) >= _MOST_OF_A_PIXEL
            masks[:position] &= ~masks[position]
        return masks


def is_held_out(colour: str, name: str) -> bool:
    """Tell whether pre-training never shows ``name`` in ``colour``; the same in every process."""
    return hashlib.blake2b(f"{colour} {name}".encode()).digest()[0] % 5 == 0


def render_scene(
    glyphs: Sequence[Glyph],
    colours: Sequence[str] | None,
    style: Style,
    generator: np.random.Generator,
    size_hw: SizeHW = (160, 160),
) -> Scene:
    """Return an image with the glyphs at random places; a glyph without a free place after 40 tries is left out.

    Args:
        glyphs: pictograms to draw, repeats allowed.
        colours: a word of COLOURS for each glyph, which limits the backgrounds; None chooses as ``style`` says.
        style: the look.
        generator: gives one number, which seeds everything else.
        size_hw: of the image, at most 288 pixels a side.

    Raises:
        ValueError: if the image is too large, or the numbers of colours and glyphs differ.
    """
    if max(size_hw) > _POOL_SIDE:
        raise ValueError(f"Expected an image of at most {_POOL_SIDE} pixels a side, got {size_hw}. Render it smaller.")
    dice = random.Random(int(generator.integers(2**62)))  # draws single numbers ten times faster than numpy's
    background, shade = dice.choice(_visible_backgrounds(style.backgrounds, frozenset(colours or style.colours)))
    image = _cut(background, size_hw, dice)
    boxes: list[_Box] = []
    drawn: list[tuple[str, str]] = []
    alphas: list[tuple[Image.Image, tuple[int, int]]] = []
    for glyph, word in zip(glyphs, [None] * len(glyphs) if colours is None else colours, strict=True):
        word = word or _choose_colour(glyph.name, style, shade, dice)
        mask, inner = _deform(glyph, style, dice)
        box = _find_place(inner[2] - inner[0], inner[3] - inner[1], boxes, size_hw, dice)
        if box is not None:
            alphas.append((mask, (box[0] - inner[0], box[1] - inner[1])))
            image.paste(_shade(word, shade, style, dice), alphas[-1][1], mask)
            boxes.append(box)
            drawn.append((glyph.name, word))
    inclusive = np.array(boxes, np.float32).reshape(-1, 4) - np.array((0, 0, 1, 1), np.float32)
    names, words = zip(*drawn, strict=True) if drawn else ((), ())
    return Scene(_degrade(image, style, dice), inclusive, names, words, tuple(alphas))


@cache
def _masks(character: str, file: str, outline: bool) -> tuple[Image.Image, ...]:
    """Return the alpha of a glyph at the sides of _MASK_SIDES, with an empty frame of one pixel."""
    large = font(file, 160)
    mask = Image.new("L", (640, 640))  # room for every glyph at this size
    ImageDraw.Draw(mask).text((160, 160), character, 255, large)
    mask = ImageOps.contain(mask.crop(mask.getbbox()), (_MASK_SIDES[0], _MASK_SIDES[0]), Image.Resampling.BOX)
    if outline:
        mask = ImageOps.expand(mask, 4)
        mask = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(7)), mask)
    sized = (ImageOps.contain(mask, (side, side), Image.Resampling.BOX) for side in _MASK_SIDES)
    return tuple(ImageOps.expand(small, 1) for small in sized)


def _deform(glyph: Glyph, style: Style, dice: random.Random) -> tuple[Image.Image, _Box]:
    """Return the alpha of a scaled, sheared and rotated glyph, and the box of its visible pixels."""
    side = math.exp(dice.uniform(*map(math.log, style.size_px)))
    fonts = [file for file in glyph.fonts if file in style.fonts] or glyph.fonts
    masks = _masks(glyph.character, dice.choice(fonts), style.outline)
    mask = next((small for small in reversed(masks) if max(small.size) - 2 >= side), masks[0])
    along = side / (max(mask.size) - 2)
    across = along * (1 + dice.uniform(-style.aspect, style.aspect))
    shear = dice.uniform(-style.shear, style.shear)
    angle = math.radians(dice.uniform(-style.rotation_degrees, style.rotation_degrees))
    # Forward map of the mask's axes: scale, then shear along x, then rotate.
    cos, sin = math.cos(angle), math.sin(angle)
    xx, xy, yx, yy = cos * across, (cos * shear - sin) * along, sin * across, (sin * shear + cos) * along
    width = math.ceil(abs(xx) * mask.width + abs(xy) * mask.height)
    height = math.ceil(abs(yx) * mask.width + abs(yy) * mask.height)
    # Pillow takes the inverse map; it is about the centres of both images.
    a, b, d, e = (value / (across * along) for value in (yy, -xy, -yx, xx))
    c, f = (mask.width - a * width - b * height) / 2, (mask.height - d * width - e * height) / 2
    turned = mask.transform((width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    return turned, turned.point(_VISIBLE).getbbox() or (0, 0, width, height)


def _find_place(width: int, height: int, taken: list[_Box], size_hw: SizeHW, dice: random.Random) -> _Box | None:
    """Return a box of this size that hardly overlaps the taken ones, or None."""
    free_x, free_y = size_hw[1] - width, size_hw[0] - height
    for _ in range(40 if min(free_x, free_y) >= 0 else 0):
        x1, y1 = dice.randint(0, free_x), dice.randint(0, free_y)
        x2, y2 = x1 + width, y1 + height
        for left, top, right, bottom in taken:
            shared = max(0, min(x2, right) - max(x1, left)) * max(0, min(y2, bottom) - max(y1, top))
            if shared > _MOST_OVERLAP * min(width * height, (right - left) * (bottom - top)):
                break
        else:
            return x1, y1, x2, y2
    return None


def _choose_colour(name: str, style: Style, background: tuple[float, ...], dice: random.Random) -> str:
    """Return a word that the style allows and that contrasts with the background, else the one with most contrast."""
    words = style.colours or tuple(COLOURS)
    if not style.held_out_pairs:
        words = tuple(word for word in words if not is_held_out(word, name)) or words
    distances = {word: math.dist(COLOURS[word], background) for word in words}
    seen = [word for word in words if distances[word] >= _LEAST_CONTRAST]
    return dice.choice(seen) if seen else max(words, key=distances.__getitem__)


def _shade(word: str, background: tuple[float, ...], style: Style, dice: random.Random) -> tuple[int, ...]:
    """Return a random shade of a colour word, moved towards the background by ``style.contrast``."""
    light, pairs = dice.uniform(0.88, 1.12), zip(COLOURS[word], background, strict=True)
    return tuple(int(min(255, back + style.contrast * (light * value - back))) for value, back in pairs)


def _cut(image: Image.Image, size_hw: SizeHW, dice: random.Random) -> Image.Image:
    """Return a random part of an image of the pool."""
    left, top = dice.randint(0, _POOL_SIDE - size_hw[1]), dice.randint(0, _POOL_SIDE - size_hw[0])
    return image.crop((left, top, left + size_hw[1], top + size_hw[0]))


@cache
def _visible_backgrounds(kinds: tuple[str, ...], words: frozenset[str]) -> tuple[_Backdrop, ...]:
    """Return the backgrounds of some kinds that contrast with all colour words; at least a sixth of them."""
    pool = [entry for kind in kinds for entry in _backgrounds(kind)]
    contrasts = [min((math.dist(COLOURS[word], shade) for word in words), default=math.inf) for _, shade in pool]
    least = min(_LEAST_CONTRAST, sorted(contrasts)[-len(pool) // 6])
    return tuple(entry for entry, contrast in zip(pool, contrasts, strict=True) if contrast >= least)


@cache
def _backgrounds(kind: str) -> tuple[_Backdrop, ...]:
    """Return the backgrounds of one kind: square images, at least as large as a scene."""
    generator = np.random.default_rng(BACKGROUNDS.index(kind))
    pool = []
    for _ in range(12):
        base = generator.uniform(25, 235) + generator.uniform(-25, 25, 3)
        swing = generator.uniform(8, 24, 3) * generator.choice((-1, 1))
        pixels = (base + _pattern(kind, generator)[..., None] * swing).clip(0, 255).astype(np.uint8)
        pool.append((Image.fromarray(pixels), tuple(pixels.mean((0, 1)).tolist())))
    return tuple(pool)


def _pattern(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Return the values of one background, about -1 to 1, as (288, 288)."""
    y, x = np.mgrid[:_POOL_SIDE, :_POOL_SIDE] / _POOL_SIDE
    angle = generator.uniform(0, math.tau)
    ramp = x * math.cos(angle) + y * math.sin(angle)
    match kind:
        case "plain" | "gradient":
            return (ramp - ramp.mean()) * (2 if kind == "gradient" else 0)
        case "stripes":
            return np.sin(ramp * 2 * math.pi * generator.uniform(8, 30)) / 2
        case "checker":
            square = generator.uniform(18, 30) / _POOL_SIDE
            return np.where((x // square + y // square) % 2 > 0, 0.8, -0.8)
    cells = _POOL_SIDE // (16 if kind == "blobs" else 2)
    coarse = Image.fromarray(generator.normal(0, 0.6, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((_POOL_SIDE, _POOL_SIDE), Image.Resampling.BICUBIC))


def _degrade(image: Image.Image, style: Style, dice: random.Random) -> Image.Image:
    """Return the image with the strokes, haze, grey, blur and noise of the style."""
    for _ in range(round(_strength(style.clutter, dice))):
        x, y = dice.random() * image.width, dice.random() * image.height
        length, angle = dice.uniform(10, 60), dice.uniform(0, math.tau)
        end = x + length * math.cos(angle), y + length * math.sin(angle)
        ImageDraw.Draw(image).line(((x, y), end), dice.choice(tuple(COLOURS.values())), dice.randint(1, 2))
    if haze := _strength(style.haze, dice):
        veil = tuple(value + dice.randint(0, 40) for value in (50, 110, 120))
        image = Image.blend(image, Image.new("RGB", image.size, veil), haze)
    if style.grey:
        image = image.convert("L").convert("RGB")
    if blur := _strength(style.blur, dice):
        image = image.filter(ImageFilter.GaussianBlur(blur))
    if noise := round(_strength(style.noise, dice)):
        image = ImageChops.add(image, _cut(_noise(noise), (image.height, image.width), dice), 1, -128)
    return image


@cache
def _noise(deviation: int) -> Image.Image:
    """Return an image of Gaussian noise around 128."""
    values = np.random.default_rng(deviation).normal(128, deviation, (_POOL_SIDE, _POOL_SIDE, 3))
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _strength(effect: _Effect, dice: random.Random) -> float:
    """Return a random strength of an effect, 0 if it does not occur."""
    share, least, most = effect
    return dice.uniform(least, most) if dice.random() < share else 0
