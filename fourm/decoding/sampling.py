"""From logits and noise to token ids, by pure functions: guidance, filters, and noise for each sample."""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fourm.networks.state import to_device
from fourm.schedule.schemes import GREEDY_BELOW

WHOLE = 1 << 60  # a probability of 1 as an integer
_BITS = 24  # of a uniform


def guide(logits: Tensor, weights: Tensor) -> Tensor:
    """Combine guided passes: base + sum_i weights[i] * (branch_i - base).

    logits: (1 + n, B, K, V), base first. weights: (n,). Returns (B, K, V). n = 0 is plain sampling, 1
    classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598), more is weighted multi-modal
    guidance (Liu et al. 2022, arXiv:2206.01714).
    """
    out = logits[0]
    for weight, branch in zip(weights, logits[1:], strict=True):
        out = out + (branch - logits[0]) * weight
    return out


def keep_top_k(logits: Tensor, top_k: int | float) -> Tensor:
    """Set all but the largest entries of the last axis, and their ties, to -inf; at least one is kept.

    top_k: an int is a count, a float in (0, 1] a fraction of the vocabulary; 0 turns the filter off.
    """
    size = logits.shape[-1]
    count = top_k if isinstance(top_k, int) else int(top_k * size)
    if top_k <= 0 or count >= size:
        return logits
    smallest = logits.topk(max(count, 1), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Nucleus sampling: set all entries outside the nucleus to -inf (Holtzman et al. 2020, arXiv:1904.09751).

    The nucleus is the smallest set of most probable entries whose probabilities sum to more than top_p; it
    is never empty. 0, and any value of 1 or more, turns the filter off.
    """
    if not 0 < top_p < 1:
        return logits
    ordered = _descending(logits)
    not_enough = _sums(ordered.softmax(dim=-1)) <= int(top_p * WHOLE)
    count = not_enough[..., :-1].sum(dim=-1, keepdim=True) + 1  # the last one is the first that is enough
    least = ordered.gather(-1, count - 1)
    # Of equal entries the first ones are kept, as many as are left.
    is_tie = logits == least
    left = count - (logits > least).sum(dim=-1, keepdim=True)
    outside = (logits < least) | (is_tie & (is_tie.cumsum(dim=-1) > left))
    return logits.masked_fill(outside, float("-inf"))


def _descending(logits: Tensor) -> Tensor:
    """The entries of the last axis from the largest on; NaN comes first."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # Four times as fast as torch's sort, which finds indices too.
        return torch.from_numpy(np.sort(logits.detach().contiguous().numpy())).flip(-1)
    return logits.sort(dim=-1, descending=True).values


def probabilities(
    logits: Tensor, temperature: float | Tensor, top_k: int | float = 0, top_p: float = 1.0
) -> Tensor:
    """The distribution that a token is drawn from, (..., V): filters first, then temperature (above 0)."""
    return (keep_top_p(keep_top_k(logits, top_k), top_p) / temperature).softmax(dim=-1)


class Drawn(NamedTuple):
    """One token for every row, and its probability."""

    ids: Tensor  # (...) int64
    confidence: Tensor  # (...) its probability after the filters and the temperature
    raw_prob: Tensor  # (...) its probability before them; breaks ties between equal confidences


def draw(
    logits: Tensor, uniforms: Tensor, temperature: float | Tensor, top_k: int | float = 0, top_p: float = 1.0
) -> Drawn:
    """One token for every row of logits (..., V), any float dtype; uniforms (...) in [0, 1).

    The token is the first whose cumulative probability exceeds the uniform. At temperature 0 it is the most
    probable token (the first one if several are equal), with confidence 1. A temperature that is a tensor,
    of one number, is above 0.
    """
    logits = logits.float()
    raw_prob = logits.softmax(dim=-1)
    if not isinstance(temperature, Tensor) and temperature <= GREEDY_BELOW:
        ids = logits.argmax(dim=-1)
        return Drawn(ids, torch.ones_like(logits[..., 0]), _at(raw_prob, ids))
    confidence = probabilities(logits, temperature, top_k, top_p)
    cumulative = _sums(confidence)
    # floor(uniform * total), exactly: the total is an int64 below 2^62.
    total, u = cumulative[..., -1:], (uniforms.unsqueeze(-1) * 2.0**_BITS).long()
    wanted = (total >> _BITS) * u + ((total & ((1 << _BITS) - 1)) * u >> _BITS)
    # Entries of probability 0 repeat the sum before them, so the first sum above `wanted` skips them.
    ids = torch.searchsorted(cumulative, wanted, right=True).squeeze(-1)
    ids = ids.clamp_max(logits.shape[-1] - 1)  # logits that are NaN would give an id beyond the last
    return Drawn(ids, _at(confidence, ids), _at(raw_prob, ids))


def _sums(probabilities: Tensor) -> Tensor:
    """Cumulative sums over the last axis, as int64 in units of 2^-60; exact for probabilities above 2^-36."""
    # CUDA adds in no fixed order, which changes sums of floats but not sums of integers.
    return (probabilities * WHOLE).long().cumsum_(dim=-1)


def _at(table: Tensor, ids: Tensor) -> Tensor:
    return table.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Uniform noise as a pure function of (seed, sample, variation, stage), step, purpose and position.

    Two rounds of SplitMix64 (Steele et al. 2014) on integers: the same on every device and in any batch.
    """

    streams: Tensor  # (B,) int64, one stream for each row

    @staticmethod
    def for_samples(seed: int, samples: list[tuple[str, int]], stage: str = "") -> "Noise":
        """Streams for rows named by (sample key, variation); super-resolution has a `stage` of its own."""
        # With separators, (12, 3) and (1, 23) are different streams; no key contains "\0".
        names = ("\0".join(("fourm-noise-1", str(seed), stage, key, str(v))) for key, v in samples)
        texts = (name.encode("utf-8", "surrogatepass") for name in names)
        digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
        streams = [int.from_bytes(digest, "little", signed=True) for digest in digests]
        return Noise(torch.tensor(streams, dtype=torch.int64))

    def to(self, device: torch.device | str) -> "Noise":
        """The same streams on another device."""
        return replace(self, streams=to_device(self.streams, device))

    def filled(self, count: int) -> "Noise":
        """As many streams, the last one repeated."""
        return Noise(torch.cat([self.streams, self.streams[-1:].expand(count - len(self.streams))]))

    def select(self, rows: Tensor) -> "Noise":
        """The streams of these rows, (B',) int64."""
        return Noise(self.streams[rows])

    def uniforms(self, step: int | Tensor, purpose: int, positions: Tensor) -> Tensor:
        """(B, K) float32 in [0, 1) for positions (B, K) int64 of one step; `purpose` separates uses.

        step: its index. Of several steps, (S, 1) int64, the result is (S, B, K).
        """
        state = _mix(self.streams + _scaled(2 * step + purpose + 1, 0x9E3779B97F4A7C15))
        bits = _mix(state.unsqueeze(-1) + (positions + 1) * _signed(0xD1B54A32D192ED03))
        return _shift(bits, 64 - _BITS).to(torch.float32) * 2.0**-_BITS

    def normals(self, step: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32, standard normal, on the CPU whatever the device of the streams.

        Two uniforms make one number (Box and Muller 1958), computed in float64: CPUs round logarithms and
        cosines differently, and these differences disappear in the conversion to float32.
        """
        noise = self.to("cpu")
        places = torch.arange(math.prod(shape)).expand(len(self.streams), -1)
        radius, angle = (noise.uniforms(step, purpose, places).double() for purpose in (0, 1))
        flat = (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()
        return flat.float().view(-1, *shape)


def _scaled(number: int | Tensor, factor: int) -> int | Tensor:
    """The product as an int64 that wraps around."""
    return number * _signed(factor) if isinstance(number, Tensor) else _signed(number * factor)


def _signed(value: int) -> int:
    """The int64 with the lowest 64 bits of a number."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64; products wrap around."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)
