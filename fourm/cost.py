"""What a chain will cost on a model, counted from its steps and file headers before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from fourm.header import read_header
from fourm.hub import ModelFiles, weights_of
from fourm.schedule import Chain, Step
from fourm.schemes import SCHEMES

_BYTES = {"auto": 4, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts for one sample and variation; bytes for a batch of one."""

    passes: int  # forward passes of the network; for sequences the most that can be needed
    tokens: int  # decoded tokens; for sequences likewise
    weights: int  # bytes of the transformer and of the tokenizers that the chain needs
    activations: int  # bytes at the peak, roughly
    fetch: int = 0  # bytes to download first; a model that is here needs none

    def to_json(self) -> dict[str, int]:
        """The cost as plain data."""
        return {"passes": self.passes, "tokens": self.tokens, "weights_bytes": self.weights,
                "activations_bytes": self.activations, "fetch_bytes": self.fetch}  # fmt: skip


def estimate(chain: Chain, model: ModelFiles, dtype: str = "auto") -> Cost:
    """The cost of a chain; dtype (one of the full names, or auto) is that of weights and activations."""
    width = _BYTES[dtype]
    rows = [model.registry.get(name) for name in (*chain.conditions, *chain.targets)]
    needed = {row.tokenizer for row in rows if row.tokenizer}
    files = [model.weights, *(weights_of(p) for key, p in model.tokenizers.items() if key in needed)]
    elements = sum(t.num_elements for file in files for t in read_header(file)[1].values())
    visible = sum(row.max_tokens for row in rows)
    return Cost(
        passes=sum(_width(s) * (s.num_tokens if SCHEMES[s.scheme].causal else 1) for s in chain.steps),
        tokens=sum(step.num_tokens for step in chain.steps),
        weights=elements * width,
        activations=max((_peak(step, model, visible) for step in chain.steps), default=0) * width,
    )


def _width(step: Step) -> int:
    """Passes of a step: the base and its branches."""
    return 1 + len(step.branches)


def _peak(step: Step, model: ModelFiles, visible: int) -> int:
    """Numbers held at once: one block's intermediate results for every visible token, and the logits."""
    dim, ratio = model.config.get("dim", 768), model.config.get("mlp_ratio", 4.0)
    if not isinstance(dim, int) or not isinstance(ratio, int | float):
        return 0
    row = model.registry.get(step.target)
    asked = 1 if SCHEMES[step.scheme].causal else row.max_tokens
    # Input, addresses, queries, keys, values, result, both MLP halves.
    per_token = round(dim * (6 + 2 * ratio))
    return _width(step) * (visible * per_token + 3 * asked * row.vocab_size)
