"""Match the entries of a checkpoint file with the weights of a detector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from glip_adapt.core.plain_text import excerpt
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.config import GlipConfig
from glip_adapt.trunks.glip.names import PROMPT_TABLE, in_our_names, is_ignored, our_names
from glip_adapt.trunks.matching import Shape, fits, is_float_tensor, kind, misfit, shapes_of


@dataclass(frozen=True)
class Match:
    """The entries of a file, matched with one detector.

    Attributes:
        weights: the state dict in float32; complete if there is no problem.
        table: the prompt table, (positions, D), if one was tuned: public files without a prompt hold zeros.
        unknown: names of entries that the detector does not need.
        problems: one line per entry that is missing or unfit. Unknown entries are problems too if there is another
            problem, or if another detector needs one of them.
    """

    weights: dict[str, Tensor]
    table: Tensor | None
    unknown: list[str]
    problems: list[str]


def match_entries(
    entries: Mapping[str, Any], network: nn.Module, config: GlipConfig, others: Iterable[GlipConfig]
) -> Match:
    """Match checkpoint entries, under our names or the public ones, with the weights that ``network`` needs.

    ``network`` may have any weights, and ``config`` is its own. Entries of the detectors of ``others`` are refused, not
    left out.
    """
    expected = shapes_of(network)
    stored = in_our_names(entries, expected, config)
    unknown = [key for key in stored if key not in expected and not is_ignored(key)]
    problems = [line for key, shape in expected.items() if (line := misfit(key, stored.get(key), shape))]
    if len(stored) < len(entries):
        problems.append(f"twice: {len(entries) - len(stored)} entries, under two forms of their names")
    if unknown and (problems or not _needed_by(others).isdisjoint(unknown)):
        problems += [f"unexpected: {excerpt(key)} {kind(stored[key])}" for key in unknown]
    table: Any = stored.get(PROMPT_TABLE)
    return Match(
        weights={key: stored[key].detach().float() for key in expected if is_float_tensor(stored.get(key))},
        table=table.detach().float() if is_float_tensor(table) and table.float().any() else None,
        unknown=unknown,
        problems=problems,
    )


def resembled(entries: Mapping[str, Any], configs: Mapping[str, GlipConfig]) -> list[str]:
    """Return the names of the largest detectors in ``configs`` that find all their weights in ``entries``."""
    found: dict[str, int] = {}
    for name, config in configs.items():
        needed = _shapes_of(config)
        stored = in_our_names(entries, needed, config)
        if fits(stored, needed):
            found[name] = len(needed)
    return [name for name, size in found.items() if size == max(found.values())]


def _needed_by(configs: Iterable[GlipConfig]) -> set[str]:
    """Return our names and the public names of all weights that any of the detectors needs."""
    needed: set[str] = set()
    for config in set(configs):
        ours = _shapes_of(config).keys()
        needed |= ours | our_names(ours, config).keys()
    return needed


@cache
def _shapes_of(config: GlipConfig) -> dict[str, Shape]:
    """Return name → shape of a detector's weights, without memory for them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return shapes_of(build_glip(config))
