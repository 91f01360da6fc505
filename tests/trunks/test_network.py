from dataclasses import replace

import pytest
import torch
from torch import nn

from glip_adapt.core.captions import build_caption
from glip_adapt.core.structures import ImageBatch, TextFeatures, Tokens
from glip_adapt.trunks.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def glip(tiny_trunk):
    return tiny_trunk.network


@pytest.fixture(scope="module")
def tokens(tiny_trunk):
    return tiny_trunk.tokenizer.encode(build_caption(["red box", "blue box"]))


def pictures(*sizes_hw):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(len(sizes_hw), 3, 64, 96, dtype=torch.uint8)
    for slot, (h, w) in zip(pixels, sizes_hw, strict=True):
        slot[:, :h, :w] = torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator)
    return ImageBatch(pixels, sizes_hw)


def assert_close(found, expected):
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(found.token_logits, expected.token_logits, **close)
    torch.testing.assert_close(found.box_deltas, expected.box_deltas, **close)
    torch.testing.assert_close(found.centerness, expected.centerness, **close)
    assert found.image_sizes_hw == expected.image_sizes_hw


@torch.no_grad()
def test_forward_is_the_four_stages_in_a_row(glip, tokens):
    images = pictures((64, 96), (50, 60))
    pyramid, text = glip.encode_image(images), glip.encode_text(tokens)
    staged, whole = glip.predict(glip.fuse(pyramid, text)), glip(images, tokens)
    assert torch.equal(whole.token_logits, staged.token_logits)
    assert torch.equal(whole.box_deltas, staged.box_deltas)
    assert torch.equal(whole.centerness, staged.centerness)
    assert whole.image_sizes_hw == images.image_sizes_hw
    assert whole.token_map.shape[1:] == (2, tokens.ids.shape[1])


@torch.no_grad()
def test_a_batch_of_one_size_equals_single_pictures(glip, tokens):
    images = pictures((64, 96), (64, 96))
    together = glip(images, tokens)
    for i in range(2):
        alone = glip(ImageBatch(images.pixels[i : i + 1], images.image_sizes_hw[i : i + 1]), tokens)
        part = replace(
            together,
            **{name: getattr(together, name)[i : i + 1] for name in ("token_logits", "box_deltas", "centerness")},
            image_sizes_hw=together.image_sizes_hw[i : i + 1],
        )
        assert_close(alone, part)


@torch.no_grad()
def test_one_caption_for_a_batch_equals_one_per_picture(glip, tokens):
    images = pictures((64, 96), (50, 60))
    repeated = Tokens(tokens.ids.repeat(2, 1), tokens.mask.repeat(2, 1), tokens.token_map.repeat(2, 1, 1))
    assert_close(glip(images, repeated), glip(images, tokens))


@torch.no_grad()
def test_caption_padding_changes_nothing(glip, tokens):
    images, count = pictures((64, 96)), tokens.ids.shape[1]
    padded = Tokens(
        nn.functional.pad(tokens.ids, (0, 5)),
        nn.functional.pad(tokens.mask, (0, 5)),
        nn.functional.pad(tokens.token_map, (0, 5)),
    )
    trimmed, full = glip(images, tokens), glip(images, padded)
    assert full.token_logits.shape[-1] == count + 5
    assert_close(replace(full, token_logits=full.token_logits[..., :count]), trimmed)


@torch.no_grad()
def test_a_fresh_detector_has_no_prompt(glip, tokens):
    text = glip.encode_text(tokens)
    assert isinstance(glip.text_prompt, nn.Identity)
    assert glip.text_prompt(text) is text
    assert not [key for key in glip.state_dict() if key.startswith("text_prompt")]


@torch.no_grad()
def test_a_prompt_enters_between_the_text_encoder_and_the_tower(glip, tokens, monkeypatch):
    class Shift(nn.Module):
        def forward(self, text):
            offset = torch.linspace(-1, 1, text.features.shape[-1])
            return TextFeatures(text.features + offset, text.mask, text.token_map)

    images = pictures((64, 96))
    pyramid, text = glip.encode_image(images), glip.encode_text(tokens)
    expected = glip.predict(glip.tower(pyramid, Shift()(text)))
    plain = glip(images, tokens)
    monkeypatch.setitem(glip._modules, "text_prompt", Shift())
    assert_close(glip(images, tokens), expected)
    assert torch.equal(glip.encode_text(tokens).features, text.features)
    assert not torch.allclose(expected.token_logits, plain.token_logits, atol=1e-2)


@torch.no_grad()
def test_the_words_decide_where_it_looks(glip, tokens, tiny_trunk):
    images = pictures((64, 96))
    other = tiny_trunk.tokenizer.encode(build_caption(["red die", "blue star"]))
    assert other.ids.shape == tokens.ids.shape
    assert not torch.allclose(glip(images, other).box_deltas, glip(images, tokens).box_deltas, atol=1e-4)


def test_every_parameter_has_a_part_in_the_output(tiny_trunk, tokens):
    glip = tiny_trunk.network
    glip.requires_grad_(True)
    try:
        output = glip(pictures((64, 96)), tokens)
        pull = output.token_logits.sum() + output.box_deltas.square().sum() + output.centerness.sum()
        names, parameters = zip(*glip.named_parameters(), strict=True)
        gradients = torch.autograd.grad(pull, parameters, allow_unused=True)
    finally:
        glip.requires_grad_(False)
    assert [name for name, gradient in zip(names, gradients, strict=True) if gradient is None] == []


def test_the_tokenizer_of_the_tiny_trunk_fits_its_encoder(tiny_trunk):
    assert isinstance(tiny_trunk.tokenizer, Tokenizer)
    embeddings = tiny_trunk.network.text_encoder.bert.embeddings.word_embeddings
    assert embeddings.num_embeddings == tiny_trunk.tokenizer.size
