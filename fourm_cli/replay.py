"""`fourm generate --replay FILE`: the requests that repeat what made a file."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from fourm.errors import UsageError
from fourm.hub.files import ModelFiles, find_sr
from fourm.runs.replay import Replay, Stage, sr_name
from fourm.runs.request import Origin, Request
from fourm.schedule.chain import Chain
from fourm.schedule.plan import parse_chain


def repeat(
    replay: Replay, files: ModelFiles, run: Callable[..., Request]
) -> tuple[Request, Request | None, list[str]]:
    """The run that repeats what made a file, its super-resolution if there was one, and what is doubtful."""
    chain = replay.chain(files)
    request = _request(replay, replay.base, run, model=files, chain=chain)
    request = replace(request, samples=replay.samples(chain, files))
    if (stage := replay.finer) is None:
        return request, None, replay.doubts([(replay.base, files)])
    fine = find_sr(files, sr_name(files, stage))
    finer = _request(replay, stage, run, model=fine, chain=parse_chain(stage.options, fine))
    doubts = replay.doubts([(replay.base, files), (stage, fine)])
    return request, replace(finer, origin=Origin()), doubts


def refuse(given: Mapping[str, object]) -> None:
    """Refuse options that would make something else than what is repeated."""
    named = [flag for flag, value in given.items() if value]
    if named:
        raise UsageError(f"--replay repeats what was made as it was; leave out {', '.join(named)}")


def _request(
    replay: Replay, stage: Stage, run: Callable[..., Request], *, model: ModelFiles, chain: Chain
) -> Request:
    return run(
        model=model, chain=chain, samples=(), num_variations=replay.num_variations,
        variation=replay.variation, seed=stage.seed, dtype=stage.dtype, attention=stage.attention,
        decode=stage.decode,
        detokenizer_steps=stage.detokenizer_steps, preview=stage.preview,
    )  # fmt: skip
