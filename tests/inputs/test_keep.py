"""`--keep`: a part of a picture, of tokens or of a text is given, and the rest of it is generated."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourm.codecs.colours import NO_CLASS
from fourm.codecs.keeping import box_mask, check_keep_mask, tokens_of_share
from fourm.data.layout import Sample, number_keys
from fourm.errors import SampleError
from fourm.hub.files import find_model
from fourm.inputs.kept import share_uniforms
from fourm.inputs.request import Request
from fourm.results.events import Failed
from fourm.results.values import Collector
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import collect
from fourm.schedule.keeps import MASK
from fourm.schedule.plan import parse_chain
from tests.folders import noise, tree

Run = Callable[..., tuple[int, str, str]]
CAPTION = "a small red circle left of a large blue square on a white background"
RGB, CLIP, DEPTH = "tok_rgb@64", "tok_clip@64", "tok_depth@64"
PICTURE = f"{RGB}:{MASK}"  # name of the mask among the files of a sample
QUICK = "--cond caption --targets tok_rgb --steps 3 --temps 1"


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return LoadedModel(find_model("demo"), torch.device("cpu"), "float32")


def save(path: Path, pixels: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def half(height: int, width: int) -> np.ndarray:
    """The left half of a picture stays."""
    return np.tile(np.where(np.arange(width) < width // 2, 255, 0), (height, 1))


def keep(demo: LoadedModel, options: str, *files: Mapping[str, Path], **changes: object) -> Collector:
    """The results of a sample for each set of files."""
    samples = [Sample(key, CAPTION, one) for key, one in zip(number_keys(len(files)), files, strict=True)]
    changes = {"samples": samples, "device": "cpu"} | changes
    collector, events = collect(Request(demo.files, parse_chain(options, demo.files), **changes), demo)
    assert all(not isinstance(event, Failed) for event in events)
    return collector


def tokens(collector: Collector, name: str = RGB) -> list[np.ndarray]:
    return [made.tokens[name] for made in collector.made.values()]


@settings(max_examples=10)
@given(data=st.data())
def test_kept_tokens_and_pixels_come_back_exactly(
    demo: LoadedModel, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """With masks of any form, of several samples in one batch, by any scheme."""
    folder, samples, masks = tmp_path_factory.mktemp("masks"), list[dict[str, Path]](), list[np.ndarray]()
    for number in range(data.draw(st.integers(1, 3))):
        bits = data.draw(st.lists(st.booleans(), min_size=64, max_size=64).filter(lambda b: 0 < sum(b) < 64))
        mask = np.kron(np.array(bits).reshape(8, 8), np.ones((8, 8))) * 255
        masks.append(mask > 0)
        picture = save(folder / f"{number}.png", noise(number, 64, 64, 3))
        samples.append({RGB: picture, PICTURE: save(folder / f"{number}-mask.png", mask)})
    scheme = data.draw(st.sampled_from(["roar", "maskgit"]))
    options = f"--cond caption --target tok_rgb:scheme={scheme},steps=3,temp=1 --keep rgb:mask"
    made = keep(demo, options, *samples)
    codec = demo.codec(demo.files.registry.get(RGB))
    results = [made.made[key] for key in sorted(made.made)]  # groups of equal counts are saved together
    for result, files, mask in zip(results, samples, masks, strict=True):
        whole = codec.read(files[RGB])
        hidden = np.where(mask[..., None], whole, np.rint(whole[mask].mean(axis=0))).astype(np.uint8)
        encoded = made.codecs[RGB].encode([hidden]).values[0].numpy()
        kept = mask[::8, ::8].reshape(-1)
        assert np.array_equal(result.tokens[RGB][kept], encoded[kept])
        inside = np.pad(mask, 4, constant_values=True)  # deeper than the seam of half a patch
        deep = np.logical_and.reduce(
            [inside[y : y + 64, x : x + 64] for y in range(9) for x in range(9)], axis=0
        )
        assert np.array_equal(result.values[RGB][deep], whole[deep])


def test_a_share_of_nothing_equals_no_keep(demo: LoadedModel, tmp_path: Path) -> None:
    files = {RGB: save(tmp_path / "a.png", noise(1, 64, 64, 3))}
    for options in (QUICK, QUICK + " --cfg 3", QUICK.replace("--steps 3", "--schemes maskgit --steps 3")):
        plain = keep(demo, options, {}, {}, num_variations=2)
        none = keep(demo, options + " --keep rgb:0.0", files, files, num_variations=2)
        for one, other in zip(tokens(plain), tokens(none), strict=True):
            assert np.array_equal(one, other)


def test_a_share_is_drawn_by_seed_sample_and_variation(demo: LoadedModel, tmp_path: Path) -> None:
    ids, files = tmp_path / "ids.npy", {RGB: tmp_path / "ids.npy"}
    np.save(ids, np.arange(64, dtype=np.int16)[None])
    options, kept = QUICK + " --keep tok_rgb:0.5", set[bytes]()
    made = keep(demo, options, files, files, num_variations=2)
    (keeps,) = parse_chain(options, demo.files).keeps
    for result in made.made.values():
        mask = tokens_of_share(0.5, share_uniforms(keeps, 0, result.work.result, 64))
        assert np.array_equal(result.tokens[RGB][mask], np.arange(64)[mask])
        assert mask.sum() == 32
        kept.add(mask.tobytes())
    assert len(kept) == 4
    again = keep(demo, options, files, files, num_variations=2)
    assert all(np.array_equal(a, b) for a, b in zip(tokens(made), tokens(again), strict=True))
    (other, *_) = tokens(keep(demo, options, files, seed=1))
    assert not np.array_equal(other, tokens(made)[0])


def test_a_batch_of_unequal_masks_equals_single_rows(demo: LoadedModel, tmp_path: Path) -> None:
    samples = list[dict[str, Path]]()
    for number, columns in enumerate((1, 3, 3, 7)):
        mask = np.tile(np.where(np.arange(64) < 8 * columns, 255, 0), (64, 1))
        picture = save(tmp_path / f"{number}.png", noise(number, 64, 64, 3))
        samples.append({RGB: picture, PICTURE: save(tmp_path / f"{number}-mask.png", mask)})
    options = "--cond caption --targets tok_rgb-tok_depth --steps 4-3 --keep rgb:mask --cfg 2 --keep-guided"
    together = keep(demo, options, *samples)
    for number, (_, one) in enumerate(sorted(together.made.items())):
        sample = replace(one.work.sample, key=number_keys(4)[number])
        alone = next(iter(keep(demo, options, {}, samples=[sample]).made.values()))
        for name in (RGB, DEPTH):
            assert np.array_equal(alone.tokens[name], one.tokens[name])
            assert np.array_equal(alone.values[name], one.values[name])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (90, 133), (40, 31)])
@pytest.mark.parametrize("where", ["mask", "box:0.3,0.1,0.8,0.9", "0.4"])
def test_nothing_sees_what_is_hidden(
    demo: LoadedModel, tmp_path: Path, height: int, width: int, where: str
) -> None:
    """Two pictures that are equal in the kept part give the same results, whatever else they show."""
    pixels, mask = noise(1, height, width, 3), half(height, width) > 0
    if where.startswith("box"):
        rows, columns = (np.arange(n) for n in (height, width))
        inside = (rows >= round(0.1 * height)) & (rows < round(0.9 * height))
        across = (columns >= round(0.3 * width)) & (columns < round(0.8 * width))
        mask = inside[:, None] & across[None, :]
    files = {RGB: save(tmp_path / "a.png", pixels), PICTURE: save(tmp_path / "m.png", mask * 255)}
    options = f"{QUICK} --keep rgb:{where}"
    first = next(iter(keep(demo, options, files).made.values()))
    if where == "0.4":  # what stays is known from the result
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        kept = keep_of_share(demo, files, options)
        places = ((np.arange(side) * 2 + 1) * 8) // (2 * side)
        mask = np.ones((height, width), dtype=bool)
        mask[top : top + side, left : left + side] = kept[places[:, None], places[None, :]]
    other = np.where(mask[..., None], pixels, noise(2, height, width, 3))
    changed = {**files, RGB: save(tmp_path / "b.png", other)}
    second = next(iter(keep(demo, options, changed).made.values()))
    assert not np.array_equal(pixels, other)
    assert np.array_equal(first.tokens[RGB], second.tokens[RGB])
    assert np.array_equal(first.values[RGB], second.values[RGB])


def keep_of_share(demo: LoadedModel, files: Mapping[str, Path], options: str) -> np.ndarray:
    """(8, 8) bool: the tokens that a share keeps of the first sample."""

    chain = parse_chain(options, demo.files)
    uniforms = share_uniforms(chain.keeps[0], 0, (number_keys(1)[0].text, 0), 64)
    return tokens_of_share(chain.keeps[0].share or 0, uniforms).reshape(8, 8)


def test_maps_labels_features_and_tokens_are_kept_too(demo: LoadedModel, tmp_path: Path) -> None:
    mask = save(tmp_path / "mask.png", half(64, 64))
    ids = tmp_path / "ids.npy"
    np.save(ids, np.arange(64, dtype=np.int16)[None])
    features, depth = tmp_path / "f.npy", tmp_path / "d.npy"
    np.save(features, np.random.default_rng(0).random((14, 8, 8), dtype=np.float32))
    np.save(depth, np.tile(np.linspace(0.1, 0.9, 64, dtype=np.float32), (64, 1)))
    labels = save(tmp_path / "s.png", np.where(half(64, 64) > 0, 1, NO_CLASS))
    given = {
        "tok_rgb": (ids, "tok_rgb"), "clip": (features, "tok_clip"), "depth": (depth, "tok_depth"),
        "semseg": (labels, "tok_semseg"),
    }  # fmt: skip
    for name, (path, target) in given.items():
        full = f"{target}@64"
        options = f"--cond caption --targets {target} --steps 2 --keep {name}:mask"
        files = {full: path, f"{full}:{MASK}": mask}
        made = keep(demo, options, files)
        (result,) = made.made.values()
        kept = np.tile(np.arange(8) < 4, 8)
        if name == "tok_rgb":
            wanted = np.arange(64)
        else:
            read = made.codecs[full].read(path)
            wanted = made.codecs[full].encode([read]).values[0].numpy()
            if name == "semseg":  # labels of neighbours don't mix
                assert (result.values[full][:, :28] == 1).all()
        if name != "depth":  # its tokens depend on what is hidden only by the mean
            assert np.array_equal(result.tokens[full][kept], wanted[kept])
        assert len(result.tokens[full]) == 64


def test_several_parts_are_kept_at_once_and_later_targets_are_made_of_the_result(
    demo: LoadedModel, tmp_path: Path
) -> None:
    picture = save(tmp_path / "a.png", noise(1, 64, 64, 3))
    ids = tmp_path / "ids.npy"
    np.save(ids, np.arange(64, dtype=np.int16)[None] % 40)
    options = (
        "--cond caption:1 --targets tok_depth-tok_rgb-tok_semseg --steps 2-2-1 --cfg 1 "
        "--keep rgb:box:0,0,.5,1 --keep tok_depth:0.25"
    )
    made = keep(demo, options, {RGB: picture, DEPTH: ids})
    (result,) = made.made.values()
    assert (result.tokens[DEPTH] == np.arange(64) % 40).sum() >= 16
    assert np.array_equal(result.values[RGB][:, :28], np.asarray(Image.open(picture))[:, :28])
    assert len(result.tokens["tok_semseg@64"]) == 64


def dataset(root: Path, count: int = 3) -> Path:
    for number in range(count):
        name = f"{number:06d}"
        save(root / "rgb" / "00000" / f"{name}.png", noise(number, 72, 96, 3))
        save(root / "mask_keep" / "00000" / f"{name}.png", half(72, 96) if number else 255 - half(72, 96))
        path = root / "caption" / "00000" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CAPTION)
    return root


ARGUMENTS = ("--cond", "caption", "--keep", "rgb:mask", "--targets", "tok_rgb-tok_depth", "--steps", "3-2")


def test_a_run_is_written_verified_resumed_repeated_and_drawn(run: Run, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    words = ("generate", "--data", data, *ARGUMENTS, "--num-variations", "2", "--preview", "2", "-q")
    code, _, err = run(*words, "--out", "out")
    assert (code, err) == (0, "")
    whole = tree(tmp_path / "out")
    mask = np.asarray(Image.open(tmp_path / "out" / "rgb_kept_mask" / "00000" / "000001.png"))
    assert np.array_equal(mask > 0, half(64, 64) > 0)
    kept = np.asarray(Image.open(tmp_path / "out" / "rgb_kept" / "00000" / "000001.png"))
    assert (kept[:, 32:] == kept[0, 40]).all()
    order = np.load(tmp_path / "out" / "preview" / RGB / "00000" / "000001-v1-order.npy").reshape(8, 8)
    assert (order[:, :4] == 0).all()
    assert set(order[:, 4:].reshape(-1).tolist()) == {1, 2, 3}
    assert run("verify", "out")[0] == 0
    for path in ("rgb/00000/000001-v0.png", "rgb_kept/00000/000002.png", "rgb_kept_mask/00000/000000.png"):
        (tmp_path / "out" / path).unlink()
    assert run("verify", "out")[0] == 5
    assert run(*words, "--out", "out", "--resume")[0] == 0
    assert tree(tmp_path / "out") == whole
    assert run("generate", "--replay", "out/run.json", "--out", "again", "-q")[0] == 0
    again = tree(tmp_path / "again")
    assert {n: d for n, d in again.items() if not n.startswith("samples")} == {
        n: d for n, d in whole.items() if not n.startswith("samples")
    }
    picture = "rgb/00000/000002-v1.png"
    assert run("generate", "--replay", f"out/{picture}", "--out", "one", "-q")[0] == 0
    assert (tmp_path / "one" / picture).read_bytes() == whole[picture]
    assert run("plot", "out", "--html")[0] == 0


def test_steps_keep_their_numbers_where_few_tokens_are_missing(run: Run, tmp_path: Path) -> None:
    data, mask = dataset(tmp_path / "data", 1), np.full((72, 96), 255)
    mask[:9, 12:20] = 0  # touches two patches of the crop
    words = (
        "--cond",
        "caption",
        "--keep",
        f"rgb:{save(tmp_path / 'mask.png', mask)}",
        "--preview",
        "1",
        "-q",
    )
    steps = ("--targets", "tok_rgb-tok_depth", "--steps", "5-2")
    assert run("generate", "--data", data, *words, *steps, "--out", "out")[0] == 0
    orders = [np.load(next((tmp_path / "out" / "preview" / name).rglob("*.npy"))) for name in (RGB, DEPTH)]
    assert np.unique(orders[0]).tolist() in ([0, 1], [0, 1, 2])
    assert np.unique(orders[1]).tolist() == [6, 7]
    assert run("verify", "out")[0] == 0
    assert run("plot", "out")[0] == 0


def test_what_is_kept_is_in_the_record(run: Run, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", 2)
    mask = save(tmp_path / "mask.png", half(72, 96))
    words = ("--data", data, *ARGUMENTS[:2], "--keep", f"rgb:{mask}", "--steps", "2", "--no-blend", "-q")
    assert run("generate", *words, "--out", "out")[0] == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["blend"] is False
    assert record["schedule"]["kept"] == [{"target": RGB, "where": "mask", "tokenised": True}]
    assert {(p["folder"], p["form"]) for p in record["places"] if "kept" in p["folder"]} == {
        ("rgb_kept", "kept"), ("rgb_kept_mask", "mask")
    }  # fmt: skip
    blended = [*words[:-2], "--blend", "-q"]
    code, _, err = run("generate", *blended, "--out", "out", "--resume")
    assert code == 2
    assert "blend" in err


def test_super_resolution_keeps_a_part_of_the_picture_at_its_size(run: Run, tmp_path: Path) -> None:
    data, big = dataset(tmp_path / "data", 1), noise(5, 160, 160, 3)
    save(data / "rgb" / "00000" / "000000.png", big)
    save(data / "mask_keep" / "00000" / "000000.png", half(160, 160))
    words = ("--data", data, *ARGUMENTS, "--sr-keep", "rgb:mask", "--sr-steps", "2", "-q")
    code, _, err = run("generate", *words, "--out", "out")
    assert (code, err) == (0, "")
    fine = np.asarray(Image.open(tmp_path / "out" / "rgb@128" / "00000" / "000000.png"))
    source = np.asarray(Image.open(tmp_path / "out" / "rgb@128_kept" / "00000" / "000000.png"))
    assert fine.shape == (128, 128, 3)
    assert np.array_equal(fine[:, :60], source[:, :60])
    wanted = np.asarray(Image.fromarray(big).resize((128, 128), Image.Resampling.BICUBIC))
    assert np.array_equal(fine[:, :56], wanted[:, :56])
    assert run("verify", "out")[0] == 0
    again = ("generate", "--replay", "out/rgb@128/00000/000000.png", "--out", "again", "-q")
    assert run(*again)[0] == 0
    for folder in ("rgb", "rgb@128", "rgb@128_kept", "tok_rgb@128"):
        one, other = (next((tmp_path / root / folder).rglob("000000.*")) for root in ("out", "again"))
        assert one.read_bytes() == other.read_bytes()


def test_pictures_given_as_arguments_are_kept_upright(run: Run, tmp_path: Path) -> None:
    """A mask has the size of the upright picture; super-resolution turns the picture likewise."""
    pixels = noise(7, 90, 160, 3)  # stored on its side: upright it is 90 wide and 160 high
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "cat.png", exif=exif)
    save(tmp_path / "mask.png", half(160, 90))
    words = ("--keep", "rgb:mask.png", "--targets", "rgb", "--steps", "2", "--sr-steps", "2", "-q")
    code, _, err = run("generate", "./cat.png", CAPTION, *words, "--sr-keep", "rgb:mask.png", "--out", "out")
    assert (code, err) == (0, "")
    upright = Image.fromarray(np.rot90(pixels, -1)).crop((0, 35, 90, 125))
    for folder, side in (("rgb", 64), ("rgb@128", 128)):
        made = np.asarray(Image.open(tmp_path / "out" / folder / "cat.png"))
        wanted = np.asarray(upright.resize((side, side), Image.Resampling.BICUBIC))
        assert np.array_equal(made[:, : side // 2 - 8], wanted[:, : side // 2 - 8])
    assert run("verify", "out")[0] == 0


def test_marks_in_prompts_are_filled(run: Run, tmp_path: Path) -> None:
    prompts = ("a small [S_1] circle above a blue square", "a large green triangle")
    words = ("--targets", "tok_rgb", "--steps", "3", "--seed", "4", "-q")
    assert run("generate", *prompts, *words, "--out", "both")[0] == 0
    both = tmp_path / "both"
    filled = (both / "caption" / "00000" / "000000.txt").read_text()
    assert "[" not in filled
    assert filled.startswith("a small ")
    assert filled.endswith("circle above a blue square")
    assert (both / "caption" / "00000" / "000001.txt").read_text() == prompts[1]
    assert (both / "caption_kept" / "00000" / "000000.txt").read_text() == prompts[0]
    record = json.loads((both / "run.json").read_text())
    assert record["schedule"]["kept"] == [{"target": "caption", "where": "", "tokenised": False}]
    assert record["schedule"]["steps"][0]["num_tokens"] == 32
    plain = run("generate", "words", prompts[1], *words, "--out", "plain")
    assert plain[0] == 0
    pictures = [
        np.asarray(Image.open(tmp_path / name / "rgb" / "00000" / "000001.png")) for name in ("both", "plain")
    ]
    assert np.array_equal(*pictures)  # a prompt without marks is decoded as if alone
    assert run("generate", "--replay", "both/rgb/00000/000000.png", "--out", "again", "-q")[0] == 0
    for name in ("rgb/00000/000000.png", "caption/00000/000000.txt", "caption_kept/00000/000000.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (both / name).read_bytes()
    assert run("verify", "both")[0] == 0
    assert run("plot", "both")[0] == 0


def test_a_text_with_marks_may_be_named_as_target(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a small [S_1] circle\na large green triangle\n")
    for named in (("--targets", "caption"), ("--target", "caption:temp=1")):
        code, out, err = run("generate", "--data", "p.txt", *named, "-q", "--out", named[0].strip("-"))
        assert (code, err) == (0, "")
        assert not (tmp_path / out.strip() / "rgb").exists()
        assert "[" not in (tmp_path / out.strip() / "caption" / "00000" / "000000.txt").read_text()
    code, _, err = run("generate", "a small red circle", "--targets", "caption")
    assert (code, "both a condition and a target; [S_1] in the text marks what is to be filled" in err) == (
        2,
        True,
    )


def test_marks_in_files_are_filled_when_asked_for(run: Run, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", 2)
    (data / "caption" / "00000" / "000000.txt").write_text("a small [S_1] circle above a [S_2] square")
    words = ("--data", data, "--keep", "caption", "--targets", "tok_rgb", "--steps", "2", "-q")
    assert run("generate", *words, "--out", "out")[0] == 0
    shown = ("--data", data, "--cond", "rgb", *words[2:4], "--targets", "depth", "--steps", "1", "--restore")
    assert run("generate", *shown, "--out", "restored")[0] == 0
    assert "[" not in (tmp_path / "restored" / "caption" / "00000" / "000000.txt").read_text()
    texts = [(tmp_path / "out" / "caption" / "00000" / f"00000{n}.txt").read_text() for n in range(2)]
    assert "[" not in texts[0]
    assert texts[1] == CAPTION
    rows = [
        {"caption": "a red circle", "det": "v0=10 v1=10 [S_1] circle"},
        {"det": "v0=1 v1=2 v2=30 v3=31 square"},
    ]
    rows[1]["caption"] = "a square"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--data", "rows.jsonl", "--cond", "caption-det", "--targets", "tok_rgb", "--steps", "2", "-q")
    code, _, err = run("generate", *words, "--out", "boxes")
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "boxes" / "run.json").read_text())
    assert record["schedule"]["conditions"] == ["caption"]
    assert record["schedule"]["kept"][0]["target"] == "det"
    boxes = json.loads((tmp_path / "boxes" / "det" / "00000" / "000001.json").read_text())
    assert [one["class_name"] for one in boxes["instances"]] == ["square"]
    assert run("verify", "boxes")[0] == 0


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((72, 96)), "keeps nothing of the picture"),
        (np.full((72, 96), 255), "keeps all of the picture"),
        (np.tile(np.where(np.arange(96) % 5 == 0, 255, 0), (72, 1)), "keeps no whole patch"),
        (half(72, 97), "97 x 72 pixels, but its picture has 96 x 72"),
        (np.tile(np.where(np.arange(96) < 90, 255, 0), (72, 1)), "all of the picture"),
    ],
)
def test_a_mask_that_cannot_be_used_is_one_sentence(
    run: Run, tmp_path: Path, pixels: np.ndarray, said: str
) -> None:
    data, mask = dataset(tmp_path / "data", 1), save(tmp_path / "mask.png", pixels)
    words = ("--data", data, "--cond", "caption", "--keep", f"rgb:{mask}", "-q", "--out", "out")
    code, _, err = run("generate", *words)
    found = err + "".join(path.read_text() for path in tmp_path.glob("out/failures.jsonl"))
    assert code in (2, 3)
    assert said in found
    assert "mask.png" in found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep", "rgb:nothere.png"), "nothere.png"),
        (("--keep", "rgb:data"), "is a folder"),
        (("--keep", "rgb:notes.txt"), "notes.txt: not a picture"),
        (("--keep", "tok_normal:0.5"), "no folder 'tok_normal@64'"),
        (("--keep", "rgb:box:0,0,1,1"), "keeps all of the picture"),
        (("--keep", "rgb:box:0,0,2,1"), "must be left, top, right, bottom in 0..1"),
        (("--keep", "rbg:0.5"), "--keep: unknown modality 'rbg'; did you mean 'rgb'?"),
    ],
)
def test_mistakes_end_before_anything_is_loaded(
    run: Run, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    data = dataset(tmp_path / "data", 1)
    (tmp_path / "notes.txt").write_text("no picture")
    code, out, err = run("generate", "--data", data, "--cond", "caption", *words, "--out", "out", "-q")
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_keep_without_anything_given_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("generate", "a dog", "--keep", "rgb:0.5")
    assert code == 2
    assert "--keep rgb@64:0.5: nothing is given of tok_rgb@64" in err
    save(tmp_path / "a.png", np.zeros((8, 8)))
    code, _, err = run("generate", "a.png", "--keep", "depth:0.5")
    assert code == 2
    assert "--keep depth@64:0.5: no file is given for it; --cond depth=FILE gives one" in err


def test_a_box_without_a_pixel_is_told_as_a_box() -> None:
    mask = box_mask((0.0, 0.0, 0.001, 0.001), (64, 64))
    with pytest.raises(SampleError, match=r"^x: the box keeps nothing of the picture$"):
        check_keep_mask(mask, (64, 64), "x", is_box=True)


@pytest.mark.parametrize("where", ["rgb:mask.png", "rgb:box:0,0,0.5,1", "rgb:0.5"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_restored_picture_has_what_is_kept_in_all_its_pixels(
    run: Run, tmp_path: Path, where: str, fit: str
) -> None:
    pixels = noise(3, 120, 200, 3)
    save(tmp_path / "cat.png", pixels)
    save(tmp_path / "mask.png", half(120, 200))
    words = ("--keep", where, "--targets", "rgb", "--steps", "2", "--restore", "--fit", fit, "-q")
    code, _, err = run("generate", "cat.png", CAPTION, *words, "--out", "out")
    assert (code, err) == (0, "")
    made = np.asarray(Image.open(tmp_path / "out" / "rgb" / "cat.png"))
    assert made.shape == (120, 200, 4 if fit == "crop" else 3)
    if where != "rgb:0.5":
        first = 40 if fit == "crop" else 0  # column of the square that the model sees
        assert np.array_equal(made[:, first:80, :3], pixels[:, first:80])  # the seam is not that wide
        assert (made[:, first : 200 - first, 3:] == 255).all()
        assert (made[:, :first, 3:] == 0).all()
        assert not np.array_equal(made[:, 100:160, :3], pixels[:, 100:160])
        kept = np.asarray(Image.open(tmp_path / "out" / "rgb_kept" / "cat.png"))
        assert np.array_equal(kept[:, :100], pixels[:, :100])
        assert (kept[:, 100:] == kept[0, 100]).all()
    assert run("verify", "out")[0] == 0
    assert run("generate", "--replay", "out/run.json", "--out", "again", "-q")[0] == 0
    for path in ("rgb/cat.png", "rgb_kept/cat.png", "rgb_kept_mask/cat.png"):
        assert (tmp_path / "again" / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
