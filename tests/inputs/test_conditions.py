"""Conditions from files: values that are tokenised on the way, and the group that is read ahead."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourm.codecs.table import build_codec
from fourm.data.layout import Crop, Key, Sample, centre_crop
from fourm.hub.files import find_model
from fourm.hub.header import TokenizerPart
from fourm.inputs.conditions import ConditionReader, Work
from fourm.inputs.request import Request
from fourm.modalities.text import Structured
from fourm.networks.checkpoint import load_tokenizer
from fourm.results.events import Malformed, Saved
from fourm.schedule.plan import parse_chain
from fourm_cli.progress import Tally, print_lines

Run = Callable[..., tuple[int, str, str]]


def pictures(root: Path, count: int) -> None:
    """Raw RGB and 16-bit depth under one name each."""
    generator = np.random.default_rng(0)
    for folder in ("rgb", "depth"):
        (root / folder / "a").mkdir(parents=True)
    for i in range(count):
        rgb = generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)
        depth = generator.integers(0, 65536, (70, 90), dtype=np.uint16)
        Image.fromarray(rgb).save(root / "rgb" / "a" / f"{i}.png")
        Image.fromarray(depth).save(root / "depth" / "a" / f"{i}.png")


def test_maps_are_tokenised_on_the_way(run: Run, tiny: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data", 3)
    words = ("generate", "--model", tiny, "--data", "data", "--targets", "tok_clip", "--device", "cpu")
    code, _, err = run(*words, "--cond", "depth", "--out", "out")
    assert (code, "3 samples generated" in err) == (0, True)
    model = find_model(tiny)
    row = model.registry.get("tok_depth@64")
    codec = build_codec(row, load_tokenizer(model.tokenizers["depth"], part=TokenizerPart.ENCODER))
    for i in range(3):
        wanted = codec.encode([codec.read(tmp_path / "data" / "depth" / "a" / f"{i}.png")]).values[0]
        found = np.load(tmp_path / "out" / "tok_depth@64" / "a" / f"{i}.npy", allow_pickle=False)
        assert found[0].tolist() == wanted.tolist()
        assert (tmp_path / "out" / "depth" / "a" / f"{i}.npy").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["schedule"]["tokenised"] == [
        "tok_depth@64"
    ]
    # What was written are tokens, which the next run reads without the tokenizer.
    code, _, _ = run(*words[:4], "out", *words[5:], "--cond", "tok_depth", "--out", "again")
    assert code == 0
    for path in (tmp_path / "out" / "tok_clip@64").rglob("*.npy"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


def test_asking_for_tokens_where_there_are_maps_names_the_way(run: Run, tiny: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data", 1)
    code, _, err = run(
        "generate", "--model", tiny, "--data", "data", "--cond", "tok_depth", "--targets", "tok_clip"
    )
    assert code == 2
    assert "no folder 'tok_depth@64' of tokens; --cond depth reads the folder 'depth'" in err


def test_a_map_that_cannot_be_tokenised_fails_alone(run: Run, tiny: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data", 3)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "depth" / "a" / "1.png")
    words = ("--model", tiny, "--data", "data", "--cond", "depth", "--targets", "tok_clip", "--out", "out")
    code, _, err = run("generate", *words, "--device", "cpu", "--batch-size", "3")
    assert code == 3
    assert "depth needs a 16-bit grey picture" in err
    assert sorted(p.name for p in (tmp_path / "out" / "tok_clip@64").rglob("*.npy")) == ["0.npy", "2.npy"]


def test_without_its_tokenizer_a_map_is_no_condition(run: Run, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizers" / "depth")
    pictures(tmp_path / "data", 1)
    words = ("--model", "model", "--data", "data", "--targets", "tok_clip", "--out", "out")
    code, _, err = run("generate", *words, "--cond", "depth")
    assert code == 4
    assert "the tokenizer 'depth' that encodes it is not here" in err
    assert "--cond tok_depth reads tokens" in err


def conditions(tiny: Path, tmp_path: Path) -> tuple[ConditionReader, list[Work]]:
    model = find_model(tiny)
    chain = parse_chain("--cond rgb --targets tok_clip", model)
    pictures(tmp_path / "data", 4)
    samples = [
        Sample(Key("a", str(i)), files={"rgb@64": tmp_path / "data" / "rgb" / "a" / f"{i}.png"})
        for i in range(4)
    ]
    request = Request(model, chain, samples, tmp_path / "out", num_variations=2)
    codecs = {"rgb@64": build_codec(model.registry.get("rgb@64"))}
    return ConditionReader(request, codecs), [Work(sample, v) for sample in samples for v in range(2)]


def test_the_next_group_is_read_while_one_is_used(tiny: Path, tmp_path: Path) -> None:
    reader, works = conditions(tiny, tmp_path)
    read = list[str]()

    class Watched:
        """The codec, with a note of what was read where."""

        def __init__(self) -> None:
            self.codec = reader.codecs["rgb@64"]
            self.encode = self.codec.encode

        def read(self, path: Path, crop: object = None) -> object:
            read.append(path.name)
            assert threading.current_thread() is not threading.main_thread()
            return self.codec.read(path)

    watched = ConditionReader(reader.request, {"rgb@64": Watched()})  # type: ignore[dict-item]
    groups = watched.read_groups([works[:2], works[2:4], works[4:]])
    first = next(groups)
    deadline = time.monotonic() + 10
    while read[:2] != ["0.png", "1.png"] and time.monotonic() < deadline:
        time.sleep(0.01)  # nobody asks for the second group, and it is read
    assert read == ["0.png", "1.png"]
    assert [given.work for given in first] == works[:2]
    assert [len(prepared) for prepared in groups] == [2, 4]
    assert read == [f"{i}.png" for i in range(4)]  # two variations read a file once


def test_groups_read_ahead_equal_groups_read_alone(tiny: Path, tmp_path: Path) -> None:
    reader, works = conditions(tiny, tmp_path)
    (tmp_path / "data" / "rgb" / "a" / "2.png").write_bytes(b"no picture")
    groups = [works[:3], works[3:6], works[6:]]
    for got, group in zip(reader.read_groups(groups), groups, strict=True):
        wanted = reader.read_group(group)
        assert [row.work for row in got] == group
        assert [row.problem for row in got] == [row.problem for row in wanted]
        for row, other in zip(got, wanted, strict=True):
            assert bool(row.problem) == (row.work.sample.key.name == "2")
            assert row.batch.keys == other.batch.keys
            assert row.batch.slots.keys() == other.batch.slots.keys()
            for name, slot in row.batch.slots.items():
                assert slot.values.equal(other.batch.slots[name].values)


def test_malformed_texts_are_told_and_counted() -> None:
    said, tally = list[str](), Tally()
    events = [Malformed("00000/000000", 1, "det", ("'v0=1 cat' is no box",)), Saved("00000/000000", 1)]
    assert list(print_lines(iter(events), tally, said.append, interval=None)) == events
    assert said == ["malformed: 00000/000000 variation 1: det: 'v0=1 cat' is no box"]
    assert tally.counts[Malformed] == 1
    assert events[0].to_json()["problems"] == ["'v0=1 cat' is no box"]
    assert Structured([]).problems == ()


@pytest.mark.parametrize("groups", [[], [[]]])
def test_groups_without_samples_have_no_rows(tiny: Path, tmp_path: Path, groups: list[list[Work]]) -> None:
    reader, _ = conditions(tiny, tmp_path)
    assert list(reader.read_groups(groups)) == groups


def test_every_condition_of_a_sample_shows_the_same_part_of_its_picture(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    pictures(tmp_path / "data", 2)
    (tmp_path / "data" / "crop_settings" / "a").mkdir(parents=True)
    np.save(tmp_path / "data" / "crop_settings" / "a" / "0.npy", np.array([[3, 10, 50, 60, 1]]))
    words = ("--model", tiny, "--data", "data", "--cond", "rgb-depth", "--targets", "tok_clip")
    assert run("generate", *words, "--out", "out")[0] == 0
    rows = {name: find_model(tiny).registry.get(name) for name in ("rgb@64", "tok_depth@64")}
    crops = (Crop((70, 90), 3, 10, 50, 60, mirrored=True), centre_crop(70, 90))
    for i, crop in enumerate(crops):
        for name, folder, suffix in (("rgb@64", "rgb", "png"), ("tok_depth@64", "depth", "npy")):
            codec = build_codec(rows[name])
            wanted = codec.read(tmp_path / "data" / folder / "a" / f"{i}.png", crop)
            used = codec.read(tmp_path / "out" / folder / "a" / f"{i}.{suffix}")
            assert used.shape[:2] == (64, 64)
            assert np.array_equal(used, wanted)
    # What was written is square and aligned, so reading it again changes nothing.
    again = ("--model", tiny, "--data", "out", *words[4:], "--out", "again")
    assert run("generate", *again)[0] == 0
    for path in (tmp_path / "out").rglob("*.np[yz]"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


def test_a_map_alone_is_the_whole_that_its_crop_belongs_to(run: Run, tiny: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data", 1)
    shutil.rmtree(tmp_path / "data" / "rgb")
    (tmp_path / "data" / "crop_settings" / "a").mkdir(parents=True)
    np.save(tmp_path / "data" / "crop_settings" / "a" / "0.npy", np.array([[0, 0, 40, 40, 0]]))
    words = ("--model", tiny, "--data", "data", "--cond", "depth", "--targets", "tok_clip", "--out", "out")
    assert run("generate", *words)[0] == 0
    codec = build_codec(find_model(tiny).registry.get("tok_depth@64"))
    wanted = codec.read(tmp_path / "data" / "depth" / "a" / "0.png", Crop((70, 90), 0, 0, 40, 40))
    assert np.array_equal(codec.read(tmp_path / "out" / "depth" / "a" / "0.npy"), wanted)


def test_a_value_that_the_model_cannot_read_is_named_by_its_file(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "data/clip/a").mkdir(parents=True)
    for name, width in (("0", 14), ("1", 512)):
        np.save(tmp_path / f"data/clip/a/{name}.npy", np.zeros((width, 8, 8), np.float32))
    words = ("--model", tiny, "--data", "data", "--cond", "clip", "--targets", "tok_depth", "--out", "out")
    code, _, err = run("generate", *words)
    assert code == 3
    assert "failed: a/1: data/clip/a/1.npy: tok_clip@64: features of width 512" in err


def test_what_is_not_read_of_a_condition_is_told_once_for_each_sample(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "data/caption/a").mkdir(parents=True)
    (tmp_path / "data/caption/a/long.txt").write_text("red " * 10_000)
    (tmp_path / "data/caption/a/odd.txt").write_text("a zebra")
    (tmp_path / "data/caption/a/plain.txt").write_text("a red circle")
    words = ("--model", tiny, "--data", "data", "--cond", "caption", "--targets", "tok_clip", "--out", "out")
    code, _, err = run("generate", *words, "--num-variations", "2", "--log-json", "log")
    assert code == 0
    assert err.count("note: ") == 2
    assert "note: a/long: caption: the model reads the first 15 of 10000 tokens" in err
    assert "note: a/odd: caption: the model does not know 'zebra'" in err
    assert "6 results generated, 2 conditions read in part" in err
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event["key"] for event in events if event["event"] == "noted"] == ["a/long", "a/odd"]
