"""Best of N: of several variations of a sample those are kept that make its conditions most likely."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

from fourm.errors import UsageError
from fourm.hub.files import ModelFiles
from fourm.modalities.typed import Limits
from fourm.schedule.chain import Chain

MOST = 10_000


@dataclass(frozen=True, slots=True)
class Best:
    """How many variations of each sample are made, and what chooses those that are kept."""

    of: Annotated[int, Limits(2, MOST)]
    by: tuple[str, ...]  # full names of conditions, whose likelihoods are added up


def parse_best(text: str, names: Sequence[str], chain: Chain, model: ModelFiles) -> tuple[int, Best]:
    """How many are kept of each sample, and what chooses them. UsageError for what cannot be.

    text: `1/8`, one of eight. names: of conditions that the model can also produce, short or full.
    """
    found = re.fullmatch("([0-9]{1,5})/([0-9]{1,5})", text.strip())
    kept, made = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= kept < made <= MOST:
        raise UsageError(f"`best`: '{text}' is not K/N, the K best of N variations, such as 1/8")
    able = [name for name in chain.conditions if name in model.writes]
    by = tuple(_resolve(name, able, chain.conditions, model) for name in names)
    if not by or len(set(by)) < len(by):
        raise UsageError(f"`by`: names the conditions whose likelihood counts, each once: {', '.join(able)}")
    return kept, Best(made, by)


def _resolve(name: str, able: Sequence[str], conditions: Collection[str], model: ModelFiles) -> str:
    rows = [model.registry.get(one) for one in able]
    for row in rows:
        if name in (row.name, row.key, *row.value_names):
            return row.name
    scored = f"model '{model.name}' can score {', '.join(able) or 'none of them'}"
    raise UsageError(f"`by`: '{name}' is none of the conditions ({', '.join(conditions)}); {scored}")
