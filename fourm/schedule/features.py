"""Which features of the encoder are made: of which blocks, of each token or the mean over tokens."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fourm.errors import UsageError, check_choice, shown
from fourm.hub.files import ModelFiles

Pool = Literal["mean", "tokens"]
POOLS: tuple[Pool, ...] = ("mean", "tokens")
LAST, LAST_NAME = -1, "last"


@dataclass(frozen=True, slots=True)
class Features:
    """The features of a sample: (layers, D) float32, or (layers, N, D) of its N visible tokens."""

    pool: Pool = "mean"  # "mean": over the visible tokens, registers aside; "tokens": each of them
    layers: tuple[int, ...] = (LAST,)  # encoder blocks, from 0; LAST: the last one, after the encoder's norm

    def __str__(self) -> str:
        """`pool mean, layers 0,last`."""
        layers = ",".join(LAST_NAME if number == LAST else str(number) for number in self.layers)
        return f"pool {self.pool}, layers {layers}"


def parse_features(pool: str, layers: object, model: ModelFiles) -> Features:
    """The features that are asked for. UsageError: there is no such pooling, or the model no such block.

    layers: "last", the number of a block, or several: a list or an array of such, or a text: "0,5,last".
    """
    check_choice("pool", pool, POOLS)
    words = re.split(r"[,\s]+", layers.strip()) if isinstance(layers, str) else layers
    depth, found = num_blocks(model), list[int]()
    for word in words if isinstance(words, Iterable) else [words]:
        text = str(word)
        number = LAST if text == LAST_NAME else int(text) if re.fullmatch("[0-9]{1,4}", text) else None
        if number is None or number >= depth or isinstance(word, bool):
            there = f"0 to {depth - 1}, or {LAST_NAME}" if depth else LAST_NAME
            raise UsageError(f"`layers`: {model.name} has no encoder block {shown(repr(word))}; give {there}")
        if number in found:
            raise UsageError(f"`layers`: {text} is given twice")
        found.append(number)
    if not found:
        raise UsageError("`layers`: names no encoder block")
    return Features(next(one for one in POOLS if one == pool), tuple(found))


def num_blocks(model: ModelFiles) -> int:
    """Encoder blocks of a model."""
    numbers = (re.match(r"encoder\.([0-9]+)\.", name) for name in model.tensors)
    return len({found[1] for found in numbers if found})
