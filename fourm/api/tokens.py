"""Tokens of values, and values of tokens, by the tokenizers alone; the transformer is not used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fourm.api.results import in_python
from fourm.api.samples import is_list_of, named_file, upright_of
from fourm.codecs.files import read_turn
from fourm.codecs.images import Diffusion, GridCodec
from fourm.codecs.taking import take, take_ids, take_map
from fourm.data.layout import number_keys
from fourm.decoding.sampling import Noise
from fourm.errors import MissingError, UsageError, near_match
from fourm.hub.header import TokenizerPart
from fourm.inputs.request import DETOKENIZER_STEPS
from fourm.modalities.registry import TOKENS, Kind, Modality
from fourm.networks.precision import arithmetic
from fourm.networks.state import full_grid, full_sequence
from fourm.runs.loaded import LoadedModel

Ids = NDArray[np.int64]


def tokenize(loaded: LoadedModel, values: Mapping[str, Any]) -> dict[str, Ids | list[Ids]]:
    """Token ids (L,) of values by name, under the names of tokens; of a list of values a list."""
    made = dict[str, Ids | list[Ids]]()
    for name, given in values.items():
        row = _find(loaded, name, TokenizerPart.ENCODER)
        is_list = is_list_of(row, True, given)
        with loaded.lock, arithmetic(loaded.dtype):
            ids = [_tokens(loaded, row, name, one) for one in (given if is_list else [given])]
        made[row.key] = ids if is_list else ids[0]
    return made


def decode(loaded: LoadedModel, tokens: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Values of token ids (L,) by name, under the names of values; of a list of such ids a list."""
    made = dict[str, Any]()
    for name, given in tokens.items():
        row = _find(loaded, name, TokenizerPart.DECODER)
        is_list = isinstance(given, list | tuple) and not all(isinstance(n, int | np.integer) for n in given)
        with loaded.lock, arithmetic(loaded.dtype):
            values = [_value(loaded, row, name, one, seed) for one in (given if is_list else [given])]
        made[row.key.removeprefix(TOKENS)] = values if is_list else values[0]
    return made


def _find(loaded: LoadedModel, name: str, part: TokenizerPart) -> Modality:
    """The modality whose values (to encode) or tokens (to decode) a name means; of several the smallest."""
    files, is_encoding = loaded.files, part is TokenizerPart.ENCODER
    rows = {row.name: row for row in files.rows if row.kind in (Kind.GRID, Kind.SEQUENCE)}
    if is_encoding and (of_values := files.registry.grid_of_values(name, rows)) is not None:
        row = rows[of_values]
    else:
        # The tokens of a grid are nothing to encode; those of a sequence have the name of its values.
        named = [row for row in rows.values() if row.kind is Kind.SEQUENCE or not is_encoding]
        fitting = [row for row in named if name in (row.name, row.key)]
        if not fitting:
            names = [row.key.removeprefix(TOKENS) if is_encoding else row.key for row in rows.values()]
            near = near_match(name, names) or f"; known are {', '.join(dict.fromkeys(names))}"
            raise UsageError(f"'{name}' is nothing that model '{files.name}' has tokens for{near}")
        row = min(fitting, key=lambda row: row.resolution)
    if row.kind is Kind.GRID and row.tokenizer not in files.tokenizers:
        raise MissingError(f"{row.name}: its tokenizer '{row.tokenizer}' is not here")
    return row


def _tokens(loaded: LoadedModel, row: Modality, name: str, given: Any) -> Ids:
    codec: Any = loaded.codec(row, TokenizerPart.ENCODER if row.kind is Kind.GRID else None)
    path = named_file(row, given, name)
    if isinstance(codec, GridCodec):
        if isinstance(given, Image.Image):
            given = upright_of(row, given, name)
        value = take_map(codec, given, name) if path is None else codec.read(path, turn=read_turn(path))
        return codec.tokenize([codec.prepare(value)])[0].numpy()
    value = codec.read(Path(path)) if path is not None else take(codec, given, None, name)
    slot = codec.encode([value])
    return slot.values[slot.known].numpy()


def _value(loaded: LoadedModel, row: Modality, name: str, given: Any, seed: int) -> Any:
    if row.kind is Kind.SEQUENCE:
        ids = torch.from_numpy(take_ids(row, given, name))[None]
        slot = full_sequence(ids, torch.ones_like(ids, dtype=torch.bool))
        return in_python(row, loaded.codec(row).decode(slot)[0])
    ids = torch.from_numpy(take_ids(row, given, name))[None]
    codec = loaded.codec(row, TokenizerPart.DECODER)
    if not isinstance(codec, GridCodec):
        raise UsageError(f"{row.name} has no values")
    # The noise of a diffusion is that of the first sample of a call with this seed.
    result = number_keys(1)[0].text, 0
    noise = Noise.for_samples(seed, [result], f"detokenizer {row.name}")
    return in_python(row, codec.decode(full_grid(ids), Diffusion(DETOKENIZER_STEPS, noise))[0])
