"""Measures the bundle on held-out scenes: `python -m demo.evaluate` prints the numbers of docs/demo-model.md.

Pictures are judged by `demo.readback`, which looks at their pixels alone; texts and maps by the truth.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from demo.bench import DIFFUSED, Bench, Value, held_out_scenes
from demo.dataset import write_dataset, write_maps
from demo.readback import agrees, caption_of
from demo.render import Maps, render
from demo.roundtrip import fourm, measured
from demo.tasks import GRIDS, stack_tokens
from demo.world import (
    Caption,
    Scene,
    describe,
    normalise,
    print_caption,
    sample_scene,
    straighten,
    vary,
)
from fourm.measures.measure import Pair, Settings
from fourm.measures.pictures import psnr

USUAL = "--cond caption --targets tok_clip-tok_rgb --temps 3.0-0.5"

Result = dict[str, float]

_SAID = "caption-det-color_palette-metadata-tok_depth-tok_normal-tok_semseg-tok_canny_edge-tok_clip"
_OF_MAPS = "depth,normals,segmentation,edges,cosine"
_MOST_STEPS = 50
_STEPS = (1, 2, 5, 10, 25, _MOST_STEPS)


def round_trip(bench: Bench, fine: Bench | None, count: int) -> Result:
    """Pictures through their tokenizer and back: share that is still read correctly."""
    scenes, result = held_out_scenes(count), Result()
    for name, owner in (("tok_rgb@64", bench), ("tok_rgb@128", fine)):
        if owner is None:
            continue
        codec, scale = owner.codecs[name], GRIDS[name][1]
        truth = [render(scene, scale).rgb for scene in scenes]
        slot = codec.encode(truth)
        shown = [caption_of(value) for value in codec.decode(slot)]
        exact = (slot.values == stack_tokens(scenes, name)).all(1).float().mean()
        result |= {
            f"{name} read back": _complete(scenes, shown),
            f"{name} tokens as in the table": float(exact),
        }
    return result


def caption_to_picture(bench: Bench, count: int, options: str = USUAL) -> Result:
    """caption -> tok_clip -> tok_rgb: share of pictures that show all that the caption says."""
    scenes = usual_scenes(count)
    return {
        "complete captions": share_right(bench, [describe(s) for s in scenes], options),
        "captions with something unsaid": share_right(bench, _vague(scenes), options),
    }


def settings(bench: Bench, count: int) -> Result:
    """The same under other guidance scales and temperatures; variety over 4 variations of vague captions."""
    scenes, result = usual_scenes(count), Result()
    captions, vague = [describe(s) for s in scenes], _vague(scenes)
    for guidance in (0.0, 1.0, 2.0, 3.0):
        for top_p in (0.8, 0.0):
            options = f"{USUAL} --cfg {guidance} --top-p {top_p}"
            result[f"guidance {guidance:g}, top-p {top_p or 'off'}"] = share_right(bench, captions, options)
    for heat in (0.0, 0.5, 1.0, 3.0, 6.0):
        options = f"{USUAL} --temps {heat}-{min(heat, 1.0)} --temp-schedules constant --top-p 0 --cfg 1"
        result[f"temperature {heat:g}, top-p off"] = share_right(bench, captions, options)
        result[f"temperature {heat:g}, kinds of 4 pictures"] = _variety(bench, vague[:50], options)
    result["usual settings, kinds of 4 pictures"] = _variety(bench, vague[:50], USUAL)
    return result


def labels(model: str, count: int) -> Result:
    """Pixels or tokens of pictures -> everything, by `fourm generate`, against the truth, by `fourm eval`.

    Beside it the mean picture of 2,000 training scenes, which knows nothing of the picture at hand.
    """
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        keys = write_dataset(work / "truth", held_out_scenes(count))
        fourm("tokenize", work / "truth", "--model", model, "--modalities", "rgb", "--out", work / "tokens")
        for name, source in (("rgb", "truth"), ("tok_rgb", "tokens")):
            words = ("--data", work / source, "--model", model, "--cond", name, "--targets", _SAID)
            fourm("generate", *words, "--out", work / f"said-{name}")
            found = measured(work / f"said-{name}", work / "truth")
            result |= {f"{name} to {what}": one["value"] for what, one in found.items() if one["better"]}
        mean = mean_maps(2000)
        for key in keys:
            write_maps(work / "mean", key, mean)
        found = measured(work / "mean", work / "truth", "--measures", _OF_MAPS)
        result |= {f"mean picture as {what}": one["value"] for what, one in found.items() if one["better"]}
    return result


def conditions_to_picture(bench: Bench, count: int) -> Result:
    """Other conditions -> tok_rgb: share of pictures that show what the condition tells."""
    scenes, result = held_out_scenes(count), Result()
    for source in ("tok_clip@64", "tok_semseg@64", "det"):
        batch = bench.run({source: bench.condition(scenes, source)}, f"--cond {source} --targets tok_rgb")
        shown = [caption_of(value) for value in bench.values(batch, "tok_rgb@64")]
        asked = [told_by(source, describe(scene)) for scene in scenes]
        result[f"{source} to tok_rgb"] = _mean([agrees(a, s) for a, s in zip(asked, shown, strict=True)])
    return result


def super_resolution(fine: Bench, count: int) -> Result:
    """caption and tokens at 64 pixels -> tokens at 128 pixels: share read correctly, and tokens right."""
    scenes = held_out_scenes(count)
    names = ("caption", "tok_clip@64", "tok_rgb@64")
    slots = {name: fine.condition(scenes, name) for name in names}
    batch = fine.run(slots, f"--cond {','.join(names)} --targets tok_clip@128-tok_rgb@128 --top-p 0.8")
    shown = [caption_of(value) for value in fine.values(batch, "tok_rgb@128")]
    same = batch.slots["tok_rgb@128"].values == stack_tokens(scenes, "tok_rgb@128")
    return {
        "read back at 128 pixels": _complete(scenes, shown),
        "tokens as rendered": float(same.float().mean()),
        "pictures as rendered": float(same.all(1).float().mean()),
    }


def diffusion(bench: Bench, count: int) -> Result:
    """The diffusion detokenizer on true and generated tokens, in few and many steps, beside the VQ decoder.

    PSNR in dB against the rendered picture; mean and largest difference from 50 steps in 8-bit levels.
    """
    scenes, result = held_out_scenes(count), Result()
    truth, slot = [render(scene).rgb for scene in scenes], bench.condition(scenes, DIFFUSED)
    row_of_pictures = bench.files.registry.get(DIFFUSED)
    most = bench.diffused(slot, _MOST_STEPS)
    ways = {f"{steps} steps": bench.diffused(slot, steps) for steps in _STEPS} | {
        "VQ decoder": bench.codecs[DIFFUSED].decode(slot)
    }
    for name, shown in ways.items():
        apart = [np.abs(a.astype(int) - b) for a, b in zip(shown, most, strict=True)]
        pairs = [Pair(str(at), None, *both) for at, both in enumerate(zip(shown, truth, strict=True))]
        decibels = [row["psnr"] for row in psnr(Settings(row_of_pictures)).update(pairs)]
        result |= {f"{name}: PSNR": _mean(decibels), f"{name}: lowest PSNR": min(decibels)}
        result[f"{name}: read back"] = _complete(scenes, [caption_of(value) for value in shown])
        result[f"{name}: mean difference from {_MOST_STEPS}"] = _mean([float(d.mean()) for d in apart])
        result[f"{name}: largest difference from {_MOST_STEPS}"] = float(max(d.max() for d in apart))
    captions = [describe(scene) for scene in usual_scenes(count)]
    slots = {"caption": bench.captions([print_caption(caption) for caption in captions])}
    drawn = bench.diffused(bench.run(slots, USUAL).slots[DIFFUSED], 10)
    right = [agrees(asked, caption_of(value)) for asked, value in zip(captions, drawn, strict=True)]
    return result | {"complete captions, 10 steps": _mean(right)}


def usual_scenes(count: int) -> list[Scene]:
    """Different held-out scenes with everything in its usual place, so that no caption occurs twice."""
    return list(dict.fromkeys(straighten(scene) for scene in held_out_scenes(2 * count)))[:count]


def _complete(scenes: Sequence[Scene], shown: Sequence[Caption | None]) -> float:
    """Share of captions, read from pictures or texts, that are the whole truth."""
    return _mean([c == normalise(describe(s)) for c, s in zip(shown, scenes, strict=True)])


def share_right(bench: Bench, captions: Sequence[Caption], options: str) -> float:
    """Share of captions whose picture shows all that they say."""
    values = _draw(bench, captions, options)
    return _mean([agrees(asked, caption_of(value)) for asked, value in zip(captions, values, strict=True)])


def _draw(bench: Bench, captions: Sequence[Caption], options: str, variation: int = 0) -> list[Value]:
    slots = {"caption": bench.captions([print_caption(caption) for caption in captions])}
    return bench.values(bench.run(slots, options, variation=variation), "tok_rgb@64")


def _variety(bench: Bench, captions: Sequence[Caption], options: str) -> float:
    """Mean number of different things seen in 4 pictures of the same caption, 1 to 4."""
    kinds: list[set[object]] = [set() for _ in captions]
    for variation in range(4):
        for seen, value in zip(kinds, _draw(bench, captions, options, variation), strict=True):
            seen.add(caption_of(value))
    return sum(map(len, kinds)) / len(kinds)


def _vague(scenes: Sequence[Scene]) -> list[Caption]:
    """Each scene's caption with at least one thing left out."""
    rng, captions = random.Random(7), []
    for scene in scenes:
        whole = describe(scene)
        caption = vary(whole, rng)
        while normalise(caption) == normalise(whole):
            caption = vary(whole, rng)
        captions.append(caption)
    return captions


def told_by(source: str, caption: Caption) -> Caption:
    """What a condition can tell of a scene."""
    if source == "tok_clip@64":
        return caption
    things = tuple(type(t)(t.shape, "", t.size) for t in caption.things)
    return Caption(things, caption.place, caption.relation)


def mean_maps(count: int) -> Maps:
    """The mean of training scenes; of labels the most frequent one at each pixel."""
    rng = random.Random(5)
    scenes = [render(sample_scene(rng)) for _ in range(count)]
    means = {
        field.name: np.mean([getattr(maps, field.name) for maps in scenes], axis=0) for field in fields(Maps)
    }
    labels = np.stack([maps.semseg for maps in scenes])
    votes = np.stack([(labels == label).sum(axis=0) for label in range(labels.max() + 1)])
    rounded = {"rgb": np.rint(means["rgb"]).astype(np.uint8), "semseg": votes.argmax(axis=0).astype(np.uint8)}
    return Maps(**means | rounded)


def _mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values))


def main() -> None:
    """Run the parts asked for and print (and with --out write) their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="folder of the bundle")
    parser.add_argument("--samples", type=int, default=500, help="held-out scenes for each number")
    parser.add_argument("--parts", nargs="*", default=[], help="some of the parts; all if none")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench, count = Bench.load(options.model), options.samples
    fine = Bench.load(options.model, fine=True) if (bench.files.weights.parent / "sr").is_dir() else None
    parts: dict[str, Callable[[], Result]] = {
        "round_trip": lambda: round_trip(bench, fine, count),
        "caption_to_picture": lambda: caption_to_picture(bench, count),
        "labels": lambda: labels(options.model, count),
        "conditions_to_picture": lambda: conditions_to_picture(bench, count),
        "diffusion": lambda: diffusion(bench, count),
        "settings": lambda: settings(bench, min(count, 200)),
    }
    if fine is not None:
        parts["super_resolution"] = lambda: super_resolution(fine, min(count, 200))
    results = {}
    for name in options.parts or parts:
        results[name] = parts[name]()
        for key, value in results[name].items():
            print(f"{name}: {key}: {value:.5g}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
