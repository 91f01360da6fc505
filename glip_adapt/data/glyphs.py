"""glyphs13: thirteen synthetic detection sets of named pictograms, rendered from the fonts that matplotlib ships.

A stand-in for ODinW-13 where there is neither network nor data, and called synthetic wherever it is shown. Class names
come from the Unicode Character Database, so pre-training on some names and testing on others is a real open-vocabulary
problem; glyphs13.toml holds the characters and the split of their names. Masks are drawn once per font and kept at a
few sizes, and noise and backgrounds come from pools, so that a scene costs about a millisecond.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from glip_adapt.core.config import override, read_toml
from glip_adapt.core.files import scratch_folder
from glip_adapt.core.structures import SizeHW, Target
from glip_adapt.data.formats.coco import ImageRecord, Split, coco_ground_truth

_FACTS = read_toml(Path(__file__).with_name("glyphs13.toml"))
COLOURS: dict[str, tuple[int, int, int]] = {word: (r, g, b) for word, (r, g, b) in _FACTS["colours"].items()}
UPRIGHT_FONTS: tuple[str, ...] = tuple(_FACTS["fonts"]["upright"])
ITALIC_FONTS: tuple[str, ...] = tuple(_FACTS["fonts"]["italic"])
BACKGROUNDS = ("plain", "gradient", "blobs", "grain", "stripes", "checker")
GLYPHS_VERSION = 1  # raise it when any picture changes, so that none rendered before is taken for it
_SPLITS = ("train", "valid", "test")
_MASK_SIDES = (96, 68, 48, 34, 24, 17)  # longest side of the kept masks in pixels, largest first
_VISIBLE = [0] * 56 + [255] * 200  # which alphas, of 255, make a pixel part of an object
_LEAST_CONTRAST = 90.0  # Euclidean distance of an object's RGB to the background's mean
_MOST_OVERLAP = 0.08  # intersection of two boxes over the smaller one
_POOL_SIDE = 288  # pixels of a background and of noise, and the most that a scene may measure
_Box = tuple[int, int, int, int]  # right and bottom exclusive
_Effect = tuple[float, float, float]  # probability, least, most
_Backdrop = tuple[Image.Image, tuple[float, ...]]  # picture, its mean RGB


@dataclass(frozen=True)
class Glyph:
    """One pictogram.

    Attributes:
        name: class name, such as ``"solid chess knight"``.
        character: the code point.
        fonts: file names of the fonts that draw it, of UPRIGHT_FONTS and ITALIC_FONTS.
    """

    name: str
    character: str
    fonts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a scene looks; the defaults are those of pre-training.

    Attributes:
        size_px: range of an object's longer side before rotation, drawn in logarithm.
        rotation_degrees: most to either side; 180 is any.
        aspect: most that the width is stretched or squeezed, as a fraction.
        shear: most horizontal shift per pixel of height, to either side.
        fonts: file names to prefer where they have the glyph.
        outline: whether only the contour of a glyph is drawn.
        colours: words to draw from where a scene is given none; empty means all of COLOURS.
        held_out_pairs: whether colours drawn freely may form pairs that pre-training never shows.
        contrast: share of the difference in colour between object and background that is kept.
        backgrounds: kinds, of BACKGROUNDS.
        grey: whether the picture loses its colours, as from a thermal camera.
        clutter: strokes over everything: probability of any, least, most.
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
    """A rendered picture and what is on it, N objects.

    Attributes:
        image: RGB.
        boxes_xyxy: (N, 4) float32, inclusive pixels, tight around each object.
        names: N class names.
        colours: N colour words.
    """

    image: Image.Image
    boxes_xyxy: np.ndarray
    names: tuple[str, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GlyphSet:
    """One synthetic dataset.

    Attributes:
        name: of the dataset.
        purpose: what sets it apart from pre-training.
        classes: names of label 0..K-1.
        style: look of its pictures.
        objects: least and most objects of the classes on a picture.
        distractors: least and most unlabelled seen glyphs on a picture, of other names.
        pictures: of train, val and test.
        size_hw: of a picture, in pixels.
    """

    name: str
    purpose: str
    classes: tuple[str, ...]
    style: Style = TRAINING_STYLE
    objects: tuple[int, int] = (3, 8)
    distractors: tuple[int, int] = (0, 0)
    pictures: tuple[int, int, int] = (80, 40, 150)
    size_hw: SizeHW = (160, 160)


# The sets change the style that they share, which changes that of pre-training.
_SHARED = GlyphSet(name="", purpose="", classes=(), style=override(TRAINING_STYLE, _FACTS["style"], "style"))
GLYPHS13: tuple[GlyphSet, ...] = tuple(override(_SHARED, entry, entry["name"]) for entry in _FACTS["set"])


@cache
def seen_glyphs() -> tuple[Glyph, ...]:
    """Return the glyphs whose names pre-training shows."""
    return tuple(_build_glyph(char, _name(char)) for characters in _FACTS["seen"].values() for char in characters)


@cache
def unseen_glyphs() -> tuple[Glyph, ...]:
    """Return the glyphs whose names pre-training never shows."""
    return tuple(_build_glyph(char, name) for theme in _FACTS["unseen"].values() for char, name in theme.items())


def is_held_out(colour: str, name: str) -> bool:
    """Return whether pre-training never shows ``name`` in ``colour``; the same in every process."""
    return hashlib.blake2b(f"{colour} {name}".encode()).digest()[0] % 5 == 0


def render_scene(
    glyphs: Sequence[Glyph],
    colours: Sequence[str] | None,
    style: Style,
    generator: np.random.Generator,
    size_hw: SizeHW = (160, 160),
) -> Scene:
    """Return a picture with the glyphs at random places; one that finds none in 40 tries is left out.

    Args:
        glyphs: what to draw, repeats allowed.
        colours: a word of COLOURS for each glyph, at the price of fewer backgrounds; without it, ``style`` chooses.
        style: the look.
        generator: gives one number, on which everything depends.
        size_hw: of the picture, at most 288 pixels a side.

    Raises:
        ValueError: if the picture is too large, or there are not as many colours as glyphs.
    """
    if max(size_hw) > _POOL_SIDE:
        raise ValueError(f"Expected a picture of at most {_POOL_SIDE} pixels a side, got {size_hw}. Render it smaller.")
    dice = random.Random(int(generator.integers(2**62)))  # draws single numbers ten times faster than numpy's
    picture, shade = dice.choice(_visible_backgrounds(style.backgrounds, frozenset(colours or style.colours)))
    image = _cut(picture, size_hw, dice)
    boxes: list[_Box] = []
    drawn: list[tuple[str, str]] = []
    for glyph, word in zip(glyphs, [None] * len(glyphs) if colours is None else colours, strict=True):
        word = word or _choose_colour(glyph.name, style, shade, dice)
        mask, inner = _deform(glyph, style, dice)
        box = _find_place(inner[2] - inner[0], inner[3] - inner[1], boxes, size_hw, dice)
        if box is not None:
            image.paste(_shade(word, shade, style, dice), (box[0] - inner[0], box[1] - inner[1]), mask)
            boxes.append(box)
            drawn.append((glyph.name, word))
    inclusive = np.array(boxes, np.float32).reshape(-1, 4) - np.array((0, 0, 1, 1), np.float32)
    names, words = zip(*drawn, strict=True) if drawn else ((), ())
    return Scene(_degrade(image, style, dice), inclusive, names, words)


def write_glyph_set(spec: GlyphSet, folder: Path) -> None:
    """Write the dataset in the layout of an ODinW folder: ``train``, ``valid`` and ``test``, PNG and COCO JSON.

    A folder that exists is taken as complete: it appears under its name only when all of it is written.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        for split in _SPLITS:
            _write_split(spec, split, scratch / folder.name / split)
        try:
            os.replace(scratch / folder.name, folder)
        except OSError:
            if not folder.is_dir():  # else another process has just finished the same
                raise


def _write_split(spec: GlyphSet, split: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    records = []
    for image_id, (scene, labelled) in enumerate(scenes(spec, split), start=1):
        path = folder / f"{image_id:03d}.png"
        scene.image.save(path, compress_level=1)
        labels = torch.tensor([spec.classes.index(scene.names[position]) for position in labelled], dtype=torch.int64)
        boxes_xyxy = torch.from_numpy(scene.boxes_xyxy[labelled])
        records.append(ImageRecord(image_id, path, spec.size_hw, Target(boxes_xyxy, labels)))
    file, ids = folder / "annotations.json", tuple(range(1, len(spec.classes) + 1))
    document = coco_ground_truth(Split(spec.name, tuple(records), spec.classes, ids, file, image_dir=folder))
    file.write_text(json.dumps(document), encoding="utf-8")


def scenes(spec: GlyphSet, split: str) -> Iterator[tuple[Scene, list[int]]]:
    """Yield the pictures of a split (train, valid or test), each with the positions of its labelled objects."""
    by_name = {glyph.name: glyph for glyph in (*seen_glyphs(), *unseen_glyphs())}
    others = [glyph for glyph in seen_glyphs() if glyph.name not in spec.classes]
    generator = np.random.default_rng((zlib.crc32(spec.name.encode()), _SPLITS.index(split)))
    deck: list[str] = []  # classes come in shuffled rounds, so that none is rare
    for _ in range(spec.pictures[_SPLITS.index(split)]):
        count = generator.integers(*spec.objects, endpoint=True)
        while len(deck) < count:
            deck.extend(str(name) for name in generator.permutation(spec.classes))
        glyphs = [by_name[deck.pop(0)] for _ in range(count)]
        unlabelled = generator.integers(*spec.distractors, endpoint=True)
        glyphs += [others[position] for position in generator.integers(len(others), size=unlabelled)]
        scene = render_scene(glyphs, None, spec.style, generator, spec.size_hw)
        yield scene, [position for position, name in enumerate(scene.names) if name in spec.classes]


def _name(character: str) -> str:
    """Return the class name that Unicode's name of a character becomes."""
    if character in _FACTS["names"]:
        return str(_FACTS["names"][character])
    words = unicodedata.name(character).replace("-", " ").split()
    words = [word for word in (_FACTS["words"].get(word, word.lower()) for word in words) if word]
    if len(words) > 4:  # the longest name wanted
        words = [word for word in words if word not in ("with", "and", "of", "the")]
    if len(words) > 2 and words[-2] in ("solid", "hollow"):  # Unicode has no fixed place for them
        words.insert(0, words.pop(-2))
    return " ".join(words)


def _build_glyph(character: str, name: str) -> Glyph:
    """Return a glyph with the fonts that draw it as something else than nothing or the box for a missing one."""
    fonts = []
    for file in UPRIGHT_FONTS + ITALIC_FONTS:
        drawn, missing = (bytes(font(file, 20).getmask(text)) for text in (character, "\ufffe"))
        if any(drawn) and drawn != missing:
            fonts.append(file)
    if not fonts:
        raise ValueError(f"No font of matplotlib draws {name!r} (U+{ord(character):04X}); is matplotlib at least 3.9?")
    return Glyph(name, character, tuple(fonts))


@cache
def font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """Return one of the fonts that matplotlib ships, ``size`` pixels high."""
    import matplotlib  # only to find its fonts

    path = f"{matplotlib.get_data_path()}/fonts/ttf/{file}"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _masks(character: str, file: str, outline: bool) -> tuple[Image.Image, ...]:
    """Return a glyph's alpha at the sides of _MASK_SIDES, with an empty frame of one pixel."""
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
    """Return the alpha of a scaled, sheared and rotated glyph, and the box in it of what is visible."""
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
    # Its inverse, which is what pillow takes, about the centres of both pictures.
    a, b, d, e = (value / (across * along) for value in (yy, -xy, -yx, xx))
    c, f = (mask.width - a * width - b * height) / 2, (mask.height - d * width - e * height) / 2
    turned = mask.transform((width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    return turned, turned.point(_VISIBLE).getbbox() or (0, 0, width, height)


def _find_place(width: int, height: int, taken: list[_Box], size_hw: SizeHW, dice: random.Random) -> _Box | None:
    """Return a box of this size that hardly overlaps those taken, or None."""
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
    """Return a word that the style allows and the background lets see, or the one that is seen best."""
    words = style.colours or tuple(COLOURS)
    if not style.held_out_pairs:
        words = tuple(word for word in words if not is_held_out(word, name)) or words
    distances = {word: math.dist(COLOURS[word], background) for word in words}
    seen = [word for word in words if distances[word] >= _LEAST_CONTRAST]
    return dice.choice(seen) if seen else max(words, key=distances.__getitem__)


def _shade(word: str, background: tuple[float, ...], style: Style, dice: random.Random) -> tuple[int, ...]:
    """Return a shade of a colour word, drawn towards the background where contrast is low."""
    light, pairs = dice.uniform(0.88, 1.12), zip(COLOURS[word], background, strict=True)
    return tuple(int(min(255, back + style.contrast * (light * value - back))) for value, back in pairs)


def _cut(picture: Image.Image, size_hw: SizeHW, dice: random.Random) -> Image.Image:
    left, top = dice.randint(0, _POOL_SIDE - size_hw[1]), dice.randint(0, _POOL_SIDE - size_hw[0])
    return picture.crop((left, top, left + size_hw[1], top + size_hw[0]))


@cache
def _visible_backgrounds(kinds: tuple[str, ...], words: frozenset[str]) -> tuple[_Backdrop, ...]:
    """Return the backgrounds of some kinds on which colour words stand out, a sixth of all at the least."""
    pool = [entry for kind in kinds for entry in _backgrounds(kind)]
    contrasts = [min((math.dist(COLOURS[word], shade) for word in words), default=math.inf) for _, shade in pool]
    least = min(_LEAST_CONTRAST, sorted(contrasts)[-len(pool) // 6])
    return tuple(entry for entry, contrast in zip(pool, contrasts, strict=True) if contrast >= least)


@cache
def _backgrounds(kind: str) -> tuple[_Backdrop, ...]:
    """Return the pool of one kind: square pictures larger than a scene."""
    generator = np.random.default_rng(BACKGROUNDS.index(kind))
    pool = []
    for _ in range(12):
        base = generator.uniform(25, 235) + generator.uniform(-25, 25, 3)
        swing = generator.uniform(8, 24, 3) * generator.choice((-1, 1))
        pixels = (base + _pattern(kind, generator)[..., None] * swing).clip(0, 255).astype(np.uint8)
        pool.append((Image.fromarray(pixels), tuple(pixels.mean((0, 1)).tolist())))
    return tuple(pool)


def _pattern(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Return the values of one background, about -1 to 1."""
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
    """Return the picture after strokes, haze, loss of colour, blur and noise, as far as the style has them."""
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
    """Return Gaussian noise around 128."""
    values = np.random.default_rng(deviation).normal(128, deviation, (_POOL_SIDE, _POOL_SIDE, 3))
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _strength(effect: _Effect, dice: random.Random) -> float:
    """Return how strong an effect is this time, 0 for not at all."""
    share, least, most = effect
    return dice.uniform(least, most) if dice.random() < share else 0
