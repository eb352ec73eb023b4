"""The part of a modality that a call keeps: masks, boxes and shares by name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fourm.data.layout import Sample
from fourm.errors import UsageError
from fourm.modalities.registry import Registry
from fourm.schedule.chain import Chain
from fourm.schedule.keeps import MASK, Keep

_NUM_CORNERS = 4


@dataclass(frozen=True, slots=True)
class KeptPart:
    """One entry of `keep`."""

    text: str  # NAME:WHERE, as a schedule has it
    masks: Any = None  # one mask (a path, a picture or an array) for all samples, or a list with one for each


def parse_keep(given: Any) -> list[KeptPart]:
    """The entries of `keep={"rgb": mask}`; UsageError for something else.

    A part is a share (0.5), a box of fractions (left, top, right, bottom), or a mask, white or True for what
    stays: the path of a picture, a PIL picture, an array (H, W); or a list of masks, one for each sample.
    """
    if not isinstance(given, Mapping):
        raise UsageError("`keep`: names with what stays of each were expected, as {'rgb': mask}")
    parts = list[KeptPart]()
    for name, said in given.items():
        where = _in_python(said)
        is_number = isinstance(where, int | float) and not isinstance(where, bool)
        if is_number or (isinstance(where, str) and where.startswith("box:")):
            parts.append(KeptPart(f"{name}:{where}"))
        elif isinstance(where, list | tuple) and len(where) == _NUM_CORNERS and all(
            isinstance(one, int | float) for one in where
        ):  # fmt: skip
            parts.append(KeptPart(f"{name}:box:{','.join(map(str, where))}"))
        elif where is None or (isinstance(where, list | tuple) and any(one is None for one in where)):
            raise UsageError(f"`keep`: nothing is said of {name}; give a mask, a box or a share")
        else:
            parts.append(KeptPart(f"{name}:{MASK}", where))
    return parts


def _in_python(where: Any) -> Any:
    """A share or a box of numbers of NumPy or torch as numbers of Python; other things unchanged."""
    if getattr(where, "shape", None) in ((), (_NUM_CORNERS,)):
        return where.tolist()
    if isinstance(where, list | tuple):
        return [one.item() if isinstance(one, np.generic) else one for one in where]
    return where


def with_kept(
    samples: tuple[Sample, ...], chain: Chain, parts: Sequence[KeptPart], registry: Registry
) -> tuple[Sample, ...]:
    """The samples with what is kept of them: the value under the name of the target, its mask as `Keep.mask`.

    parts: what the chain's settings were made from, in the same order; marked texts are not among them.
    UsageError: nothing is given of a target, or the number of masks is another than that of samples.
    """
    for keep, part in zip([keep for keep in chain.keeps if not keep.is_text], parts, strict=True):
        masks = part.masks if isinstance(part.masks, list | tuple) else [part.masks] * len(samples)
        if len(masks) != len(samples):
            raise UsageError(f"`keep`: {len(masks)} masks for {len(samples)} samples")
        masked = zip(samples, masks, strict=True)
        samples = tuple(_with_part(sample, keep, mask, chain, registry) for sample, mask in masked)
    return samples


def _with_part(sample: Sample, keep: Keep, mask: Any, chain: Chain, registry: Registry) -> Sample:
    files, values = dict(sample.files), dict(sample.values)
    given = [name for name in (*files, *values) if name == keep.target]
    if not given and keep.raw and registry.get(keep.target).is_rgb:
        # What is given as `rgb=` is the pixels of a condition, but also the picture of which a part is kept.
        rows = [registry.get(name) for name in (*files, *values) if name in registry.rows]
        given = [row.name for row in rows if row.key == "rgb"]
    if not given:
        short = keep.to_text().partition(":")[0].partition("@")[0]
        raise UsageError(f"`keep`: nothing is given of {short}; give it too, as {short}=...")
    if isinstance(mask, str | os.PathLike):
        files[keep.mask] = Path(mask)
    elif mask is not None:
        values[keep.mask] = mask
    name = given[0]
    for held in (files, values):
        if name in held:
            # What is no condition is only kept.
            held[keep.target] = held[name] if name in chain.conditions else held.pop(name)
    return replace(sample, files=files, values=values)
