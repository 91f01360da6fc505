"""``ls methods`` states numbers that are counted here."""

import pytest
import torch

from glip_adapt.adapters import ADAPTERS, build_adapter
from glip_adapt.core.structures import Tokens
from glip_adapt.trunks.released import trunk_spec


@pytest.mark.parametrize("method", [name for name, kind in ADAPTERS.items() if not kind.caption_bound])
def test_a_method_states_how_many_numbers_it_owns_on_glip_t(method):
    spec = trunk_spec("glip-t")
    with torch.device("meta"):
        network = spec.family.build(spec.config).requires_grad_(False)
    adapter = build_adapter(method, spec.settings.get(method, {}))
    nothing = torch.empty(1, 0)
    adapter.insert(network, Tokens(nothing, nothing.bool(), nothing[None].bool()))
    state = network.state_dict()
    assert sum(state[name].numel() for name in adapter.owned(network)) == ADAPTERS[method].counted


def test_what_depends_on_the_caption_is_stated_as_a_formula():
    assert all("×" in kind.counted for kind in ADAPTERS.values() if kind.caption_bound)
