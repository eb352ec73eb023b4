"""Best of N: of several variations of a sample those are kept that make its conditions most likely."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from fourm.errors import UsageError
from fourm.hub.files import ModelFiles
from fourm.modalities.typed import Limits
from fourm.schedule.chain import Chain

MOST = 10_000


@dataclass(frozen=True, slots=True)
class Best:
    """How many variations of each sample are made, and what chooses those that are kept."""

    of: Annotated[int, Limits(1, MOST)]
    by: tuple[str, ...]  # full names of conditions, whose likelihoods are added up


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely the conditions of one sample are under each of its variations."""

    by: tuple[str, ...]  # full names of conditions
    kept: tuple[int, ...]  # the variations that were kept, the best one first: results 0, 1, ...
    # Of each variation that was made, the mean log-likelihood of a token, one for each of `by`; None: it
    # could not be made.
    scores: tuple[tuple[float, ...] | None, ...]

    @staticmethod
    def of(by: Sequence[str], scores: Sequence[tuple[float, ...] | None], count: int) -> "Scores":
        """Keeps `count` variations, fewer if others could not be made; of equal ones the first."""
        totals = {number: math.fsum(one) for number, one in enumerate(scores) if one is not None}
        ranked = sorted(totals, key=lambda number: (-totals[number], number))
        return Scores(tuple(by), tuple(ranked[:count]), tuple(scores))

    def to_text(self) -> str:
        """The text of the file that records them."""
        return json.dumps(asdict(self)) + "\n"


def parse_best(text: str, names: Sequence[str], chain: Chain, model: ModelFiles) -> tuple[int, Best]:
    """How many are kept of each sample, and what chooses them. UsageError for what cannot be.

    text: `1/8`, one of eight. names: of conditions, short or full.
    """
    found = re.fullmatch("([0-9]{1,5})/([0-9]{1,5})", text.strip())
    kept, made = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= kept <= made <= MOST:
        what = f"is not K/N, of N variations the K best, such as 1/8; K is 1 to N, and N at most {MOST:,}"
        raise UsageError(f"`best`: '{text}' {what}")
    # A value and its tokens may both be conditions; tokens are what can be scored.
    conditions = sorted(chain.conditions, key=lambda name: name not in model.writes)
    rows = [model.registry.get(name) for name in conditions]
    known = {name: row.name for row in reversed(rows) for name in (*row.value_names, row.key, row.name)}
    best = Best(made, tuple(dict.fromkeys(known.get(name, name) for name in names if name)))
    check_best(best, chain, model)
    return kept, best


def check_best(best: Best, chain: Chain, model: ModelFiles) -> None:
    """Refuse what cannot choose: a name that is no condition, one that the model only reads."""
    able = ", ".join(name for name in chain.conditions if name in model.writes)
    it_can = f"model '{model.name}' can score {able or 'none of them'}"
    if not chain.conditions:
        raise UsageError("`by`: no condition is given whole, so none can choose")
    for name in best.by:
        if name not in chain.conditions:
            raise UsageError(
                f"`by`: '{name}' is none of the conditions, {', '.join(chain.conditions)}; {it_can}"
            )
        if name not in model.writes:
            raise UsageError(f"`by`: {name} is read only, never written, so it has no likelihood; {it_can}")
    if not best.by:
        raise UsageError(f"`by`: names the conditions whose likelihood counts; {it_can}")
    if not any(name in model.reads for name in chain.targets):
        raise UsageError(
            f"`best`: model '{model.name}' reads none of the targets, {', '.join(chain.targets)}"
        )
