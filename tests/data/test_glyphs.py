"""Pictograms: their names, the split of seen and unseen names, and how they look."""

from PIL import Image

from glip_adapt.data import glyphs, scenes

ALL = (*glyphs.seen_glyphs(), *glyphs.unseen_glyphs())


def test_names_are_many_short_and_unique():
    names = [glyph.name for glyph in ALL]
    assert len(set(names)) == len(names) > 340
    assert all(1 <= len(name.split()) <= 4 and name.replace(" ", "").isascii() for name in names)
    assert all(name == name.casefold() for name in names)


def test_colours_stay_free_words():
    words = {word for glyph in ALL for word in glyph.name.split()}
    assert words.isdisjoint({*scenes.COLOURS, "black", "white"})


def test_unseen_names_are_a_tenth_and_never_seen():
    seen, unseen = ({glyph.name for glyph in group} for group in (glyphs.seen_glyphs(), glyphs.unseen_glyphs()))
    assert seen.isdisjoint(unseen)
    assert 0.07 < len(unseen) / len(ALL) < 0.13
    characters = [glyph.character for glyph in ALL]
    assert len(set(characters)) == len(characters)


def test_names_of_the_unseen_follow_the_same_rule():
    assert all(glyphs._name(glyph.character) == glyph.name for glyph in glyphs.unseen_glyphs())


def test_unseen_compositions_are_made_of_seen_words_and_novel_nouns_are_not():
    words = {word for glyph in glyphs.seen_glyphs() for word in glyph.name.split()}
    for glyph in glyphs.unseen_glyphs():
        composed = glyph.name.startswith("hollow")
        assert words.issuperset(glyph.name.split()) if composed else words.isdisjoint(glyph.name.split())


def test_every_glyph_looks_different_from_every_other():
    """At 34 pixels, in the first font that has it; near-duplicates would be label noise."""
    drawn = set()
    for glyph in ALL:
        mask = scenes._masks(glyph.character, glyph.fonts[0], False)[3]
        image = Image.new("L", (40, 40))
        image.paste(mask, ((40 - mask.width) // 2, (40 - mask.height) // 2))
        drawn.add(image.tobytes())
    assert len(drawn) == len(ALL)
