"""What a chain costs on a model: passes, tokens, memory, and what it takes to fetch; no torch.

Every term is an array that the code allocates, and a comment names it. What cannot be counted (blocks kept by
the allocator, kernels of libraries) is a measured constant. A test compares the sum with peaks of real runs.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

from fourm.files.opening import open_file
from fourm.hub.catalogue import Entry
from fourm.hub.files import ModelFiles, is_unused, missing_parts, tokenizer_sizes
from fourm.hub.header import AUTO, DTYPES, FULL, INT8, TensorInfo, TokenizerPart, is_int8
from fourm.hub.sizes import TokenizerSizes
from fourm.modalities.registry import SEQUENCE_ROWS, Kind, Modality
from fourm.schedule.chain import Chain, Step
from fourm.schedule.schemes import GREEDY_BELOW, SCHEMES

MOST_ROWS = 64  # decoded together unless a larger batch size is requested
FLOAT32 = 4  # bytes; logits and all that is computed from them are float32, whatever the network's dtype
LIBRARIES = 30 << 20  # text tokenizer, kernels and tables that come with the first use of a network
# Freed blocks up to this size stay in the heap of the C library, which keeps about two of them.
_HEAP_BLOCK = 32 << 20
# What Linux says of processors, and the instructions for products in bfloat16. With them a transformer of 77
# million parameters makes pictures 1.2 times as fast as in float32, one of 2 million no faster.
CPU_INFO, BFLOAT16_UNITS = Path("/proc/cpuinfo"), {"amx_bf16", "avx512_bf16"}
_FASTER_FROM = 50_000_000  # parameters


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts for one sample and variation; bytes for the whole batch."""

    passes: int  # forward passes of the network; for sequences the most that can be needed
    tokens: int  # decoded tokens; for sequences likewise
    weights: int  # bytes of the transformer and of the tokenizers that the chain needs
    activations: int  # bytes at the peak besides the weights, libraries included
    missing: tuple[Entry, ...] = ()  # what is to be fetched first

    @property
    def memory(self) -> int:
        """Bytes at the peak of the run, over those of Python with torch imported."""
        return self.weights + self.activations

    @property
    def fetch_bytes(self) -> int:
        """Bytes that are to be fetched first."""
        return sum(part.num_bytes for part in self.missing)

    def to_json(self) -> dict[str, object]:
        """The cost as plain data."""
        return {"passes": self.passes, "tokens": self.tokens, "weights_bytes": self.weights,
                "activations_bytes": self.activations, "fetch_bytes": self.fetch_bytes,
                "fetch": [part.name for part in self.missing]}  # fmt: skip


def estimate(
    chain: Chain, model: ModelFiles, dtype: str = AUTO, batch_size: int = 1,
    decode: bool = True, rows_at_once: int = 1, max_rows: int = MOST_ROWS, weights: str = FULL,
) -> Cost:  # fmt: skip
    """The cost of a chain; dtype (a key of `DTYPES`) is that of weights and activations.

    decode: values are made of the tokens, `rows_at_once` of a batch together. max_rows: as `MOST_ROWS`.
    weights: one of `WEIGHTS`.
    """
    width, rows = DTYPES[dtype].num_bytes, model.registry.rows
    grids = [rows[name] for name in chain.targets if rows[name].kind is Kind.GRID and decode]
    decoders = {row.tokenizer for row in grids}
    encoders = {rows[name].tokenizer for name in chain.values}
    parts = dict.fromkeys(decoders, TokenizerPart.DECODER) | dict.fromkeys(encoders, TokenizerPart.ENCODER)
    parts |= dict.fromkeys(decoders & encoders, TokenizerPart.WHOLE)
    peaks = [_Peak(0), *_step_peaks(chain, Sizes.of(model, width), batch_size, max_rows)]
    made = [(tokenizer_sizes(model, row.tokenizer), row) for row in grids]
    peaks += [_decoder_peak(sizes, row, width, rows_at_once) for sizes, row in made if sizes]
    tensors = model.tensors.items()
    used = [(name, info) for name, info in tensors if not is_unused(name, model)]
    kept = [_kept_bytes(name, info, width, weights) for name, info in used]
    held = sum(kept)
    done = zip(accumulate(kept), used, strict=True)  # a tensor's file is mapped while it is converted
    peaks += [_Peak(so_far - held + info.num_elements * FLOAT32) for so_far, (_, info) in done]
    tokens = [(step, step.num_tokens * step.passes) for step in chain.steps]
    passes = sum((1 + len(s.branches)) * (n if SCHEMES[s.scheme].causal else 1) for s, n in tokens)
    passes = passes if chain.specs else 1  # of the encoder alone
    loaded = held + sum(tokenizer_bytes(model, key, width, part) for key, part in parts.items())
    freed = 2 * min(max(peak.block for peak in peaks), _HEAP_BLOCK)
    activations = max(peak.total for peak in peaks) + LIBRARIES + freed
    has_text = any(rows[name].kind is Kind.SEQUENCE for name in chain.modalities)
    missing = missing_parts(model, sorted(parts), has_text)
    return Cost(passes, sum(n for _, n in tokens), loaded, activations, missing)


def _kept_bytes(name: str, info: TensorInfo, width: int, weights: str) -> int:
    """Bytes of a loaded tensor of the transformer; an int8 one has a scale for each of its rows."""
    if weights == INT8 and is_int8(name, info.shape):
        return info.num_elements + info.shape[0] * FLOAT32
    return info.num_elements * width


def encoder_width(model: ModelFiles) -> int:
    """D: numbers of the vector of each token."""
    return Sizes.of(model, FLOAT32).dim


def advise_bfloat16(model: ModelFiles, chain: Chain) -> str:
    """A sentence where a chain is faster in bfloat16 on this machine's CPU than in float32; else "".

    Texts alone are not: their steps multiply few rows.
    """
    start = b""
    with suppress(OSError), open_file(CPU_INFO) as file:
        start = file.read(1 << 14)  # the first processor
    words = set(start.decode(errors="replace").split())
    is_large = sum(one.num_elements for one in model.tensors.values()) >= _FASTER_FROM
    has_grids = not chain.specs or not all(SCHEMES[step.scheme].causal for step in chain.steps)
    if not words & BFLOAT16_UNITS or not is_large or not has_grids:
        return ""
    return f"`dtype=bfloat16` makes {model.name} faster on this CPU than float32; it rounds more coarsely"


@dataclass(frozen=True, slots=True)
class _Peak:
    """The most memory in use at one moment."""

    total: int  # bytes
    block: int = 0  # bytes of the largest temporary array


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the memory of a transformer depends on."""

    model: ModelFiles
    dim: int
    hidden: int  # of the MLPs
    mlp_arrays: int  # hidden arrays in memory at once: 3 in gated MLPs, else 2
    depth: int  # of the decoder
    width: int  # bytes per number

    @classmethod
    def of(cls, model: ModelFiles, width: int) -> Self:
        """From the shapes of the decoder's MLPs, which are alike; zeros if the file has none."""
        shapes = {name: info.shape for name, info in model.tensors.items()}
        firsts = [shapes[n] for n in shapes if n.startswith("decoder.") and n.endswith(".mlp.fc1.weight")]
        hidden, dim = next((shape for shape in firsts if len(shape) == 2), (0, 0))
        mlp_arrays = 3 if "decoder.0.mlp.fc3.weight" in shapes else 2
        return cls(model, dim, hidden, mlp_arrays, len(firsts), width)

    def layers(self, rows: int, tokens: int) -> int:
        """The peak of a block without its input: the norm, and the MLP's hidden arrays or q, k and v."""
        return rows * tokens * max(self.dim + self.mlp_arrays * self.hidden, 6 * self.dim) * self.width

    def vectors(self, rows: int, tokens: int, count: int = 1) -> int:
        """Bytes of `count` arrays with one vector per token."""
        return rows * tokens * self.dim * count * self.width


def tokenizer_bytes(
    model: ModelFiles, key: str, width: int = FLOAT32, part: TokenizerPart = TokenizerPart.DECODER
) -> int:
    """Bytes of the loaded part of a tokenizer, by a row's `tokenizer`; 0 if nothing is known of it."""
    if (sizes := tokenizer_sizes(model, key)) is None:
        return 0
    size = sizes.codebook * FLOAT32
    if part is not TokenizerPart.DECODER:
        size += sizes.encoder * width + sizes.encoder_float32 * FLOAT32
    return size + sizes.decoder * width if part is not TokenizerPart.ENCODER else size


def _step_peaks(chain: Chain, sizes: Sizes, batch_size: int, max_rows: int) -> Iterator[_Peak]:
    """The peaks of all steps of a chain, without the weights."""
    left = chain.num_tokens
    known = sum(sizes.model.registry.get(name).max_tokens for name in chain.conditions)
    if not chain.specs:
        yield from _encoder_peaks(chain, sizes, batch_size, known)
    for step in chain.steps:
        rows = batch_size * (1 + len(step.branches))
        if SCHEMES[step.scheme].causal:
            # Texts that are decoded together: the keys and values of each, and those of the context.
            texts, seen = rows * min(step.passes, max(1, max_rows // batch_size)), max(known, 1)
            read = sizes.vectors(texts, seen, 2) + (sizes.vectors(rows, seen, 2) if texts > rows else 0)
            caches = sizes.depth * (read + sizes.vectors(texts, step.num_tokens, 2))
            context = sizes.vectors(rows, seen, 2)
            encoding = sizes.vectors(rows, seen, 3) + sizes.layers(rows, seen)
            yield _Peak(max(caches + context, encoding), context)
        else:
            yield from _grid_peaks(step, chain, sizes, rows, known, left[step.target])
        left[step.target] -= step.num_tokens
        known += step.num_tokens if step.passes == 1 else min(step.num_tokens * step.passes, SEQUENCE_ROWS)


def _encoder_peaks(chain: Chain, sizes: Sizes, rows: int, known: int) -> Iterator[_Peak]:
    """The peaks of the encoder, from the embeddings to its output."""
    registry, reads = sizes.model.registry, sizes.model.reads
    named = [registry.get(name) for name in chain.modalities if name in reads]
    places = sum(row.max_tokens for row in named)
    texts = sum(row.max_tokens for row in named if row.kind in (Kind.SEQUENCE, Kind.EMBEDDING))
    # Contents and addresses of all places, the parts that they are joined from, the addresses of texts.
    yield _Peak(sizes.vectors(rows, places, 3) + sizes.vectors(rows, texts), sizes.vectors(rows, places))
    # Content, address and their sum stay while the blocks run.
    yield _Peak(sizes.vectors(rows, known, 3) + sizes.layers(rows, known), sizes.vectors(rows, known))


def _grid_peaks(step: Step, chain: Chain, sizes: Sizes, rows: int, known: int, left: int) -> Iterator[_Peak]:
    """The peaks of one step of an image target, from the embeddings to the drawn tokens."""
    yield from _encoder_peaks(chain, sizes, rows, known)
    asked = left if SCHEMES[step.scheme].rank else min(step.num_tokens, left)
    # The context and its keys and values for one block, beside the queries.
    queries = sizes.vectors(rows, asked) + sizes.layers(rows, asked)
    yield _Peak(sizes.vectors(rows, known, 4) + queries, sizes.vectors(rows, known, 2))
    # Guidance: the logits of all passes, then of one.
    logits = asked * sizes.model.registry.get(step.target).vocab_size  # numbers per row
    flat = rows * logits * (sizes.width if sizes.width == FLOAT32 else sizes.width + FLOAT32)
    one = rows // (1 + len(step.branches)) * logits * FLOAT32
    guided = len(step.branches) and (2 if len(step.branches) == 1 else 3)  # difference, product, sum so far
    yield _Peak(flat + guided * one, min(flat, _HEAP_BLOCK))
    # Sampling: the logits, and their probabilities before the filters. In addition, at the peak:
    arrays = 2.0
    if step.temperature > GREEDY_BELOW:
        arrays = 6.0  # probabilities, and these scaled as float32 and as int64
        if 0 < chain.top_p < 1:
            arrays = 7.0 + bool(chain.top_k)  # the same of sorted ones, beside these
    yield _Peak(round(one * arrays), one)


def _decoder_peak(sizes: TokenizerSizes, row: Modality, width: int, rows: int) -> _Peak:
    """The peak of decoding tokens to values, `rows` together, without the weights."""
    tokens = rows * math.prod(row.grid or (1, 1))
    if unet := sizes.unet:  # at its finest level
        wide, joined, cells = unet.channels, unet.joined, tokens * (row.patch_size // 4) ** 2
        # Skip connections that are still needed, the input, the input after concatenation, norm and
        # activation; one kernel in the layout of the convolution.
        cell = (unet.blocks + 1) * wide + (joined - wide) + 3 * joined
        return _Peak((cells * cell + unet.kernel) * width, cells * joined * width)
    if sizes.output:  # a transformer, at a block or its output
        outputs, dim = sizes.output
        # A block's input, norm and hidden arrays; values before and after they are put in rows and columns.
        values = tokens * outputs * FLOAT32
        return _Peak(tokens * dim * (2 + 2 * 4 + 2) * width + 3 * values, values)
    return _Peak(0)
