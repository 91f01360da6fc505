"""Trunks by name."""

import pytest
import torch
from public_files import VOCABULARY
from safetensors import safe_open

from glip_adapt.trunks.catalogue import choose_device, load_trunk, random_trunk
from glip_adapt.trunks.released import ASSETS, TRUNKS, packaged_checksum, trunk_spec


@pytest.mark.parametrize(
    ("name", "nearest"), [("glip-nona", "glip-nano"), ("glip_t", "glip-t"), ("glip-t-aa", "glip-t-a")]
)
def test_an_unknown_trunk_lists_the_choices_and_the_nearest(name, nearest):
    for ask in (trunk_spec, load_trunk):
        with pytest.raises(ValueError, match=rf"Unknown trunk '{name}'.*did you mean '{nearest}'") as failure:
            ask(name)
        assert "'glip-l'" in str(failure.value)


def test_a_device_that_torch_does_not_know_is_refused():
    with pytest.raises(ValueError, match="Unknown device 'gpu'"):
        load_trunk("glip-nano", device="gpu")


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(VOCABULARY.read_text() + "##zzz\n")
    with pytest.raises(ValueError, match="vocabulary has 951 entries, the text encoder 950"):
        load_trunk("glip-nano", vocabulary=path)


@pytest.mark.parametrize("name", ["glip-nano", "glip-nano-a", "dino-nano"])
def test_the_nano_trunks_come_with_the_package(name):
    trunk = load_trunk(name)
    file = ASSETS / f"{name}.safetensors"
    assert file.stat().st_size < 12 * 2**20
    with safe_open(file, "pt") as stored:
        assert stored.metadata() == {"trunk": name, "checksum": trunk.checksum}
    card = (ASSETS / f"{name}.md").read_text(encoding="utf-8")
    assert trunk.checksum in card
    assert "synthetic" in card


def test_loading_neither_reads_nor_moves_the_global_random_state():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = load_trunk("glip-nano")
    assert torch.equal(torch.rand(3), expected)
    assert load_trunk("glip-nano").checksum == first.checksum


def test_a_trunk_knows_its_row_and_is_frozen_in_eval_mode():
    trunk = load_trunk("glip-nano-a", device="cpu")
    assert trunk.spec is TRUNKS["glip-nano-a"]
    assert not any(p.requires_grad for p in trunk.network.parameters())
    assert not any(module.training for module in trunk.network.modules())


def test_the_gpu_is_chosen_if_there_is_one_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == torch.device("cpu")
    with pytest.raises(ValueError, match="No GPU for device 'cuda:1'"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(None) == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")


def test_random_weights_are_those_of_their_seed_and_move_no_global_state():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (random_trunk("glip-nano", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    states = [trunk.network.state_dict() for trunk in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert not any(p.requires_grad for p in first.network.parameters())
    assert (first.checksum, other.checksum) == ("random glip-nano 0", "random glip-nano 1")
    assert first.tokenizer.size == TRUNKS["glip-nano"].config.text.vocabulary_size


PACKAGED = [name for name, spec in TRUNKS.items() if spec.public_file is None and not spec.starts_random]


def test_every_row_says_what_a_user_has_to_know():
    for name, spec in TRUNKS.items():
        assert spec.licence, name
        assert spec.data, name
        assert spec.purpose, name
        packaged = spec.public_file is None and not spec.starts_random
        assert packaged == (ASSETS / f"{name}.safetensors").is_file(), name


@pytest.mark.parametrize("name", TRUNKS)
def test_the_row_counts_what_the_network_has(name):
    spec = TRUNKS[name]
    with torch.device("meta"):
        network = spec.family.build(spec.config)
    assert sum(p.numel() for p in network.parameters()) == spec.parameters
    assert bool(network.seams.linear["fusion"]) == spec.deep_fusion


@pytest.mark.parametrize("name", PACKAGED)
def test_the_file_of_a_packaged_trunk_states_the_checksum_of_its_weights(name):
    assert packaged_checksum(name) == load_trunk(name).checksum
