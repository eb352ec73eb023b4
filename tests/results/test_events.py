"""The event log: events, schema and page say the same, and logs of real runs keep to them.

UPDATE_DOCS=1 writes docs/events.schema.json anew.
"""

import json
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import jsonschema
import pytest
from PIL import Image

from fourm.output.record import BASE, FEATURES, SR
from fourm.results.events import Event, Failed, Finished, Saved, Started
from tests.emulated_gpu import emulated

Run = Callable[..., tuple[int, str, str]]
Log = list[dict[str, object]]
ROOT = Path(__file__).resolve().parents[2]
SCHEMA, PAGE = ROOT / "docs" / "events.schema.json", ROOT / "docs" / "events.md"
EVENTS = get_args(Event)
PLAIN = {
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number"},
    str: {"type": "string"},
    tuple[str, ...]: {"type": "array", "items": {"type": "string"}},
    tuple[Path, ...]: {"type": "array", "items": {"type": "string"}},
}
EXAMPLES = {int: 1, float: 0.5, str: "x", tuple[str, ...]: ("x",), tuple[Path, ...]: (Path("x"),)}


def example(kind: type) -> dict[str, object]:
    """An event as it stands in a log."""
    hints = get_type_hints(kind)
    return kind(**{f.name: EXAMPLES[hints[f.name]] for f in fields(kind)}).to_json()


def schema_of(kind: type) -> dict[str, object]:
    """The JSON Schema of one event."""
    hints = get_type_hints(kind)
    properties = {"event": {"const": example(kind)["event"]}}
    for field in fields(kind):
        stage = {"enum": [BASE, SR, FEATURES]} if field.name == "stage" else {}
        properties[field.name] = {**PLAIN[hints[field.name]], **stage}
    return {
        "description": (kind.__doc__ or "").splitlines()[0],
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def schema() -> dict[str, object]:
    """What docs/events.schema.json should be."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One line of the event log of fourm (--log-json)",
        "oneOf": [schema_of(kind) for kind in EVENTS],
    }


def test_the_published_schema_is_that_of_the_events() -> None:
    text = json.dumps(schema(), indent=1) + "\n"
    if os.environ.get("UPDATE_DOCS"):
        SCHEMA.write_text(text, encoding="utf-8")
    said = SCHEMA.read_text(encoding="utf-8")
    assert said == text, "UPDATE_DOCS=1 pytest tests/results/test_events.py writes it anew"
    jsonschema.Draft202012Validator.check_schema(json.loads(said))


def test_the_page_has_every_event_with_every_field_and_its_type() -> None:
    names = {"integer": int, "number": float, "string": str}
    sections = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    told = {
        section.partition("\n")[0]: re.findall(
            r"^\| `(\w+)` \| ([a-z ]+) \| \S", section.partition("\n## ")[0], re.M
        )
        for section in sections
    }
    there = {}
    for kind in EVENTS:
        hints = get_type_hints(kind)
        kinds = {f.name: hints[f.name] for f in fields(kind)}
        there[example(kind)["event"]] = [
            (name, next((word for word, plain in names.items() if plain is of), "list of strings"))
            for name, of in kinds.items()
        ]
    assert told == there


def test_the_schema_refuses_what_is_no_event() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for kind in EVENTS:
        line = example(kind) | ({"stage": "sr"} if "stage" in example(kind) else {})
        assert validator.is_valid(line)
        assert not validator.is_valid(line | {"more": 1})
        assert not validator.is_valid(line | {"event": "other"})
        for name in line:
            assert not validator.is_valid({k: v for k, v in line.items() if k != name})
            assert not validator.is_valid(line | {name: None})


def read_log(path: Path) -> Log:
    """The events of a log, each of which is valid."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        validator.validate(event)
    return events


def batches_of(log: Log) -> list[Log]:
    """The steps of each batch."""
    found: list[Log] = []
    for event in log:
        if event["event"] == "step":
            before = found[-1][-1] if found else None
            if before is None or (
                event["step"] == 0 and (before["step"] > 0 or event["done"] <= before["done"])
            ):
                found.append([])
            found[-1].append(event)
    return found


def check_order(log: Log) -> None:
    """What docs/events.md promises of a run that came to its end."""
    names = [event["event"] for event in log]
    assert (names[0], names[-1]) == ("started", "finished")
    assert names.count("started") == names.count("finished") == 1
    start, end = log[0], log[-1]
    if "loading" in names:
        late = [names.index(name) for name in ("step", "detokenized", "saved") if name in names]
        assert names.index("loading") < min(late, default=math.inf)
    else:
        assert "step" not in names
        assert "saved" not in names
    assert names.count("saved") == end["saved"]
    assert names.count("failed") == end["failed"]
    assert start["total"] == end["saved"] + end["skipped"] + end["failed"]
    assert start["skipped"] == end["skipped"]
    ended = Counter((e["key"], e["variation"]) for e in log if e["event"] in ("saved", "failed"))
    assert set(ended.values()) <= {1}
    for batch in batches_of(log):
        numbers = [step["step"] for step in batch if step["scheme"] != "autoregressive" or step["done"] == 1]
        assert numbers == list(range(start["steps"]))
        assert {tuple(step["keys"]) for step in batch} == {tuple(batch[0]["keys"])}
        for before, after in pairwise(batch):
            is_same, is_end = before["target"] == after["target"], after["fixed"] == 0
            assert not is_same or before["done"] < after["done"] + is_end <= after["total"] + is_end
            assert not is_end or after["scheme"] == "autoregressive"
    last = {id(batch[-1]) for batch in batches_of(log)}
    told: set[tuple[object, object]] = set()
    decoded: Counter[object] = Counter()
    for event in log:
        if id(event) in last:
            decoded.update(event["keys"])
        if event["event"] in ("saved", "failed"):
            told.add((event["key"], event["variation"]))
        if event["event"] == "saved":
            assert start["steps"] == 0 or decoded[event["key"]] > 0
            decoded[event["key"]] -= 1
            assert all(Path(file).is_file() for file in event["files"])
        if event["event"] in ("noted", "malformed"):
            assert (event["key"], event["variation"]) not in told
        if event["event"] == "noted":
            assert decoded[event["key"]] == 0


def make_pictures(root: Path) -> None:
    for name, colour in {"a/x": "red", "a/y": "blue", "b/z": "green"}.items():
        path = root / "rgb" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), colour).save(path)
    (root / "rgb/a/bad.png").write_bytes(b"no picture")


def test_a_run_with_variations_previews_and_failures_keeps_to_the_page(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    make_pictures(tmp_path / "data")
    base = (
        "generate", "--model", tiny, "--data", "data", "--cond", "rgb", "--targets", "tok_depth-caption",
        "--preview", "2", "--num-variations", "2", "--batch-size", "3", "--out", "out", "--log-json", "log",
    )  # fmt: skip
    assert run(*base)[0] == 3
    log = read_log(tmp_path / "log")
    check_order(log)
    assert Counter(event["event"] for event in log)["saved"] == 6
    assert [e["key"] for e in log if e["event"] == "failed"] == ["a/bad", "a/bad"]
    assert len(batches_of(log)) > 1
    (tmp_path / "out/depth/a/x-v1.npy").unlink()
    assert run(*base, "--resume")[0] == 3
    log = read_log(tmp_path / "log")
    check_order(log)
    assert [(e["key"], e["variation"]) for e in log if e["event"] == "saved"] == [("a/x", 1)]
    (tmp_path / "data/rgb/a/bad.png").unlink()
    Image.new("RGB", (64, 64)).save(tmp_path / "data/rgb/a/bad.png")
    for expected in (["saved", "saved"], []):
        assert run(*base, "--resume")[0] == 0
        log = read_log(tmp_path / "log")
        check_order(log)
        assert [e["event"] for e in log if e["event"] in ("saved", "failed", "loading")][1:] == expected
    assert [e["event"] for e in log] == ["started", "finished"]


def test_notes_malformed_texts_and_diffusion_are_in_the_log(run: Run, tmp_path: Path) -> None:
    caption, boxes = tmp_path / "data/caption/a/x.txt", tmp_path / "data/det/a/x.json"
    for path in (caption, boxes):
        path.parent.mkdir(parents=True)
    caption.write_text("a small red circle " * 40)
    box = {"boxes": [0.25, 0.25, 0.5, 0.5], "class_name": "circle"}
    boxes.write_text(json.dumps({"instances": [box] * 40}))
    code, _, err = run(
        "generate", "--data", "data", "--cond", "caption", "--target", "tok_rgb:steps=3",
        "--target", "det:temp=30", "--top-p", "0", "--tokenizer", "rgb=rgb_divae",
        "--detokenizer-steps", "4", "--out", "out",
        "--log-json", "log",
    )  # fmt: skip
    assert code == 0, err
    log = read_log(tmp_path / "log")
    check_order(log)
    names = [event["event"] for event in log]
    assert list(dict.fromkeys(names)) == [
        "started", "loading", "noted", "step", "detokenized", "malformed", "saved", "finished",
    ]  # fmt: skip
    assert [(e["done"], e["total"]) for e in log if e["event"] == "detokenized"] == [
        (n, 4) for n in (1, 2, 3, 4)
    ]
    assert log[0]["evaluations"] == 4


def test_a_log_of_tokenize_keeps_to_the_page(run: Run, tiny: Path, tmp_path: Path) -> None:
    make_pictures(tmp_path / "data")
    code, _, err = run("tokenize", "data", "--model", tiny, "--log-json", "log", "--out", "out")
    assert code == 3, err
    log = read_log(tmp_path / "log")
    check_order(log)
    assert log[0]["steps"] == 0
    assert {event["event"] for event in log} == {"started", "loading", "saved", "failed", "finished"}


def test_a_batch_that_was_too_large_is_in_the_log(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", "a red circle", "--targets", "tok_rgb", "--schemes", "maskgit", "--steps", 2, "-q",
             "--num-variations", 4, "--batch-size", 4, "--no-decode", "--device", "cuda")  # fmt: skip
    with emulated(monkeypatch) as gpu:
        assert run(*words, "--out", "whole")[0] == 0
        gpu.most_bytes = round(0.6 * gpu.largest)
        assert run(*words, "--out", "short", "--log-json", "log")[0] == 0
    log = read_log(tmp_path / "log")
    (halved,) = [event for event in log if event["event"] == "halved"]
    assert (halved["rows"], halved["device"]) == (2, "cuda:0")
    assert [len(event["keys"]) for event in log if event["event"] == "step"] == [2] * 4
    assert log[-1]["saved"] == 4


def test_every_event_of_the_page_is_in_a_log_of_these_tests() -> None:
    """So that none is promised which nobody has seen."""
    seen = {"started", "loading", "step", "halved", "detokenized", "saved", "noted", "malformed", "failed",
            "lost", "finished"}  # fmt: skip
    assert {example(kind)["event"] for kind in EVENTS} == seen


def test_the_example_of_the_page_is_a_valid_log() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    log = [json.loads(line) for line in block.splitlines()]
    for event in log:
        validator.validate(event)
    assert [event["event"] for event in log] == [
        "started",
        "loading",
        "failed",
        "step",
        "step",
        "saved",
        "finished",
    ]
    assert log[0]["total"] == log[-1]["saved"] + log[-1]["failed"]


def test_the_recipes_of_the_page_work(run: Run, tiny: Path, tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    make_pictures(tmp_path / "data")
    base = ("generate", "--model", tiny, "--data", "data", "--cond", "rgb", "--targets", "tok_depth-tok_clip")
    assert run(*base, "--out", "out", "--log-json", "log.jsonl")[0] == 3
    log = read_log(tmp_path / "log.jsonl")
    recipes = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    failed, speed, slowest = (
        subprocess.run(
            ["bash", "-ec", recipe], cwd=tmp_path, text=True, capture_output=True, check=True
        ).stdout
        for recipe in recipes
    )
    assert failed.split("\t")[:2] == ["a/bad", "0"]
    steps = [event for event in log if event["event"] == "step"]
    for target, rate in json.loads(speed).items():
        mine = [step for step in steps if step["target"] == target]
        assert rate == pytest.approx(sum(s["fixed"] for s in mine) / sum(s["seconds"] for s in mine))
    assert set(json.loads(speed)) == {"tok_depth@64", "tok_clip@64"}
    assert json.loads(slowest)["seconds"] == max(step["seconds"] for step in steps)


def test_an_event_is_one_line_of_plain_json() -> None:
    saved = Saved("a/\\xff", 1, (Path("out/a\nb.png"), Path(os.fsdecode(b"out/\xff.png"))))
    line = json.dumps(saved.to_json())
    assert "\n" not in line
    assert json.loads(line)["files"] == ["out/a\nb.png", "out/\udcff.png"]
    assert Failed("k", 0, "r").to_json() == {
        "event": "failed",
        "key": "k",
        "variation": 0,
        "reason": "r",
    }
    assert Started(1, 0, 1, "m", "cpu", 2).to_json()["stage"] == BASE
    assert Finished(1, 0, 0, 1 / 3).to_json()["seconds"] == 0.333333
