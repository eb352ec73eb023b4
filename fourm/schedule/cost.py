"""What a chain will cost on a model, counted from its steps and file headers before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from fourm.hub.files import ModelFiles
from fourm.hub.header import DTYPES
from fourm.modalities.registry import Kind
from fourm.schedule.chain import Chain, Step
from fourm.schedule.memory import (
    MOST_ROWS,
    Peak,
    decoding_peak,
    detokenizing_peak,
    loading_bytes,
    overhead,
    tokenizer_bytes,
    weights_bytes,
)
from fourm.schedule.schemes import SCHEMES


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts for one sample and variation; bytes for the whole batch."""

    passes: int  # forward passes of the network; for sequences the most that can be needed
    tokens: int  # decoded tokens; for sequences likewise
    weights: int  # bytes of the transformer and of the tokenizers that the chain needs
    activations: int  # bytes at the peak besides the weights, libraries included
    fetch: int = 0  # bytes to download first; a model that is here needs none

    @property
    def memory(self) -> int:
        """Bytes at the peak of the run, over those of Python with torch imported."""
        return self.weights + self.activations

    def to_json(self) -> dict[str, int]:
        """The cost as plain data."""
        return {"passes": self.passes, "tokens": self.tokens, "weights_bytes": self.weights,
                "activations_bytes": self.activations, "fetch_bytes": self.fetch}  # fmt: skip


def estimate(
    chain: Chain, model: ModelFiles, dtype: str = "auto", batch_size: int = 1,
    decode: bool = True, rows_at_once: int = 1, max_rows: int = MOST_ROWS,
) -> Cost:  # fmt: skip
    """The cost of a chain; dtype (a key of `DTYPES`) is that of weights and activations.

    decode: values are made of the tokens, `rows_at_once` rows of a batch together. max_rows: texts that are
    decoded together where a sample has several.
    """
    width = DTYPES[dtype].num_bytes
    rows = model.registry.get
    decoders = {rows(name).tokenizer for name in chain.targets if rows(name).kind is Kind.GRID and decode}
    encoders = {rows(name).tokenizer for name in chain.raw}
    tokenizers = [
        tokenizer_bytes(path, width, key in decoders, key in encoders)
        for key, path in model.tokenizers.items()
        if key in decoders | encoders
    ]
    peaks = [decoding_peak(chain, model, width, batch_size, max_rows), Peak(loading_bytes(model, width))]
    if decode:
        peaks.append(detokenizing_peak(chain, model, width, rows_at_once))
    largest = Peak(max(p.total for p in peaks), max(p.block for p in peaks))
    return Cost(
        passes=sum(_width(s) * (_num_tokens(s) if SCHEMES[s.scheme].causal else 1) for s in chain.steps),
        tokens=sum(map(_num_tokens, chain.steps)),
        weights=weights_bytes(model, width) + sum(tokenizers),
        activations=largest.total + overhead(largest),
    )


def _num_tokens(step: Step) -> int:
    """Tokens of a step, of all its predictions."""
    return step.num_tokens * step.passes


def _width(step: Step) -> int:
    """Passes of a step: the base and its branches."""
    return 1 + len(step.branches)
