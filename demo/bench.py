"""Runs the bundle through the package's own engine, for evaluation: states in, decoded maps out."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from demo.diffusion import NAME
from demo.tasks import GRIDS, PIXELS, TEXTS, padded, pixels_of, stack_tokens, text_of
from demo.world import Scene, sample_scene
from fourm.codecs.images import Diffusion, GridCodec
from fourm.codecs.table import build_codec
from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.hub.files import ModelFiles, find_model, find_sr
from fourm.modalities.text import WordPiece, encode_full
from fourm.networks.checkpoint import load_model, load_tokenizer
from fourm.networks.model import FourM
from fourm.networks.state import Batch, Slot, full_grid, full_pixels, full_sequence
from fourm.schedule.plan import parse_chain

DIFFUSED = "tok_rgb@64"  # whose tokens the diffusion detokenizer reads
_CHUNK = 25  # samples decoded together

Value = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """A model of the bundle with everything around it."""

    files: ModelFiles
    network: FourM
    wordpiece: WordPiece
    codecs: Mapping[str, GridCodec]

    @staticmethod
    def load(folder: str | Path = "demo", fine: bool = False) -> "Bench":
        """The base model, or with `fine` its super-resolution model."""
        files = find_sr(find_model(folder)) if fine else find_model(folder)
        if files.text_tokenizer is None:
            raise SystemExit(f"{folder}: no text tokenizer")
        wordpiece, codecs = WordPiece.load(files.text_tokenizer), {}
        for name in GRIDS:
            row = files.registry.get(name)
            if name in files.reads:
                codec = build_codec(row, load_tokenizer(files.tokenizers[row.tokenizer]), wordpiece)
                assert isinstance(codec, GridCodec)
                codecs[name] = codec
        return Bench(files, load_model(files), wordpiece, codecs)

    def run(self, slots: Mapping[str, Slot], options: str, seed: int = 0, variation: int = 0) -> Batch:
        """Decode the targets of a schedule for all rows; options as on the command line."""
        chain = parse_chain(options, self.files)
        done: dict[str, list[Slot]] = {name: [] for name in chain.targets}
        count = len(next(iter(slots.values())).known)
        for first in range(0, count, _CHUNK):
            rows = torch.arange(first, min(first + _CHUNK, count))
            keys = tuple(str(row) for row in rows.tolist())
            batch = Batch(keys, {name: slot.select(rows) for name, slot in slots.items()})
            batch = with_targets(batch, chain, self.files.registry)
            noise = Noise.for_samples(seed, [(key, variation) for key in keys])
            for progress in Engine(self.network, self.wordpiece.sentinels).run(batch, chain, noise):
                batch = progress.batch
            for name in chain.targets:
                done[name].append(batch.slots[name])
        return Batch(tuple(map(str, range(count))), {name: _joined(parts) for name, parts in done.items()})

    def captions(self, texts: Sequence[str]) -> Slot:
        """Captions as conditions."""
        return full_sequence(padded([encode_full(text, self.wordpiece) for text in texts]))

    def condition(self, scenes: Sequence[Scene], name: str) -> Slot:
        """The truth about scenes in one modality, as a condition."""
        if name in TEXTS:
            return self.captions([text_of(scene, name) for scene in scenes])
        if name == PIXELS:
            return full_pixels(pixels_of(scenes), self.files.registry.get(name).patch_size)
        return full_grid(stack_tokens(scenes, name))

    def diffused(self, slot: Slot, steps: int, seed: int = 0) -> list[Value]:
        """Pictures of `tok_rgb@64` tokens, by the diffusion detokenizer in so many steps."""
        row = self.files.registry.get(DIFFUSED)
        codec = build_codec(row, load_tokenizer(self.files.tokenizers[NAME]), self.wordpiece)
        noise = Noise.for_samples(seed, [(str(index), 0) for index in range(len(slot.known))], "diffusion")
        assert isinstance(codec, GridCodec)
        return codec.decode(slot, Diffusion(steps, noise))

    def values(self, batch: Batch, name: str) -> list[Value]:
        """Decoded maps of an image modality, as the package writes them."""
        return self.codecs[name].decode(batch.slots[name])

    def texts(self, batch: Batch, name: str) -> list[str]:
        """Decoded texts of a sequence modality."""
        slot = batch.slots[name]
        rows = zip(slot.values, slot.known, strict=True)
        return [self.wordpiece.text_of(ids[known].tolist()) for ids, known in rows]


def held_out_scenes(count: int, seed: int = 2024) -> list[Scene]:
    """Different scenes of attribute combinations that training never showed."""
    rng, found = random.Random(seed), dict[Scene, None]()
    while len(found) < count:
        found[sample_scene(rng, held_out=True)] = None
    return list(found)


def _joined(parts: Sequence[Slot]) -> Slot:
    """Slots of several chunks as one; texts are padded to the longest."""
    longest = max(part.known.shape[1] for part in parts)

    def widen(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, longest - x.shape[1]))

    return Slot(
        parts[0].kind,
        torch.cat([widen(p.values) for p in parts]),
        torch.cat([widen(p.known) for p in parts]),
        torch.cat([widen(p.wanted) for p in parts]),
    )
