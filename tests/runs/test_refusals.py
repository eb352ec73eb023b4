"""What cannot be done is said before anything is written, and a run that made nothing leaves nothing."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from fourm.data.layout import samples_of_prompts
from fourm.errors import CheckpointError, UsageError
from fourm.hub.catalogue import DEMO
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.results.events import Failed, Saved, Stepped
from fourm.runs import pipeline
from fourm.runs.pipeline import NOT_FINITE
from fourm.schedule.chain import TargetSpec, make_chain
from tests.checks.test_verify import super_resolution
from tests.folders import snapshot
from tests.runs.test_pipeline import broken

Run = Callable[..., tuple[int, str, str]]
CLIP = TargetSpec("tok_clip@64", 64, "roar", 2)
RGB = TargetSpec("tok_rgb@64", 64, "roar", 4)
QUICK = ("a red circle", "--targets", "tok_rgb@64", "--steps", "2", "-q", "--device", "cpu")


def request(model: Path, out: Path, **changes: object) -> Request:
    chain = make_chain([RGB], ["caption"])
    return replace(
        Request(find_model(model), chain, samples_of_prompts(["a red circle"]), out, device="cpu"), **changes
    )


def spoil(weights: Path, number: float) -> None:
    """Put a number into the first matrix of a file's encoder and decoder."""
    state = load_file(weights)
    for part in ("encoder", "decoder"):
        name = next(name for name in sorted(state) if name.startswith(part) and state[name].ndim > 1)
        state[name].view(-1)[3] = number
    save_file(state, weights)


@pytest.fixture(params=["NaN", "infinite", "NaN in a tokenizer"])
def spoilt(tiny: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model that passes every check of headers, and fails when it is loaded."""
    folder = broken(tiny, tmp_path / "spoilt", dict)
    weights = folder / "tokenizers/rgb/model.safetensors"
    if "tokenizer" not in request.param:
        weights = folder / "model.safetensors"
    spoil(weights, float("inf") if request.param == "infinite" else float("nan"))
    return folder


def test_weights_that_are_no_numbers_leave_no_folder(run: Run, spoilt: Path, tmp_path: Path) -> None:
    code, said, err = run("generate", *QUICK, "--model", spoilt, "--out", "deep/out")
    assert (code, said) == (2, "")
    assert "not all numbers are finite" in err
    assert not (tmp_path / "deep").exists()


def test_a_run_that_cannot_begin_leaves_the_one_before_as_it_is(
    tiny: Path, spoilt: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    list(pipeline.run(request(tiny, out)))
    before = snapshot(out)
    again = request(spoilt, out, overwrite=True)
    with pytest.raises(CheckpointError, match="not all numbers are finite"):
        list(pipeline.run(again))
    assert snapshot(out) == before


@pytest.mark.parametrize("change", [{"attention": "xformers"}, {"device": "cuda:9"}])
def test_what_a_machine_lacks_is_said_before_anything_is_loaded(
    tiny: Path, tmp_path: Path, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(UsageError, match=f"`{next(iter(change))}[=`]"):
        pipeline.check(request(tiny, tmp_path / "out", **change))


def test_super_resolution_that_cannot_begin_leaves_the_base_as_it_is(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(pipeline.run(request(tiny, out)))
    before = snapshot(out)
    folder = broken(tiny, tmp_path / "spoilt", dict)
    spoil(folder / "model.safetensors", float("nan"))
    with pytest.raises(CheckpointError, match="not all numbers are finite"):
        list(pipeline.run(replace(super_resolution(tiny, out), model=find_model(folder))))
    assert snapshot(out) == before


def test_in_one_go_the_second_model_is_read_before_the_first_begins(run: Run, tmp_path: Path) -> None:
    model = Path(shutil.copytree(find_model(DEMO).weights.parent, tmp_path / "model"))
    spoil(model / "sr/model.safetensors", float("nan"))
    words = ("--targets", "tok_rgb", "--steps", "2", "--sr-targets", "tok_rgb", "--sr-steps", "2", "-q")
    code, said, err = run("generate", "a red circle", *words, "--model", model, "--out", "out")
    assert (code, said) == (2, "")
    assert "sr/model.safetensors: not all numbers are finite" in err
    assert not (tmp_path / "out").exists()


def test_tokenizing_that_cannot_begin_leaves_no_folder(run: Run, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data/rgb/a"
    data.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(data / "x.png")
    folder = broken(tiny, tmp_path / "spoilt", dict)
    spoil(folder / "tokenizers/rgb/model.safetensors", float("nan"))
    for out in ("data", "other"):
        before = snapshot(tmp_path / out)
        words = (
            "tokenize",
            "data",
            "--modalities",
            "rgb",
            "--model",
            folder,
            "--out",
            out,
            "--device",
            "cpu",
        )
        code, _, err = run(*words, "-q")
        assert (code, "not all numbers are finite" in err) == (2, True), err
        assert snapshot(tmp_path / out) == before
    assert not (tmp_path / "other").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["rgb"]


@pytest.mark.parametrize("preview", [0, 1])
def test_a_run_that_is_stopped_before_its_first_sample_leaves_nothing(
    tiny: Path, tmp_path: Path, preview: int
) -> None:
    out = tmp_path / "out"
    events = pipeline.run(request(tiny, out, preview=preview))
    assert any(isinstance(event, Stepped) and event.step == 2 for event in events)
    events.close()
    assert snapshot(out) == {}
    assert sum(isinstance(event, Saved) for event in pipeline.run(request(tiny, out))) == 1


def test_what_is_no_number_early_in_a_chain_fails_the_sample(tiny: Path, tmp_path: Path) -> None:
    """Later targets are drawn from sound numbers, but they go on from tokens that mean nothing."""
    folder = broken(
        tiny, tmp_path / "m",
        lambda s: {n: t * 0 + 3e38 if n == "decoder_embeddings.tok_clip@64.to_logits.weight" else t
                   for n, t in s.items()},
    )  # fmt: skip
    for specs in ([CLIP, RGB], [CLIP, replace(CLIP, target="tok_depth@64"), RGB]):
        out = tmp_path / str(len(specs))
        events = list(pipeline.run(request(folder, out, chain=make_chain(specs, ["caption"]))))
        assert [event.reason for event in events if isinstance(event, Failed)] == [NOT_FINITE]
        assert not list(out.rglob("*.npy"))


@pytest.mark.parametrize("command", ["generate a", "tokenize data", "convert sam-instances data"])
@pytest.mark.parametrize("kind", ["file", "pipe", "circle", "below a file"])
def test_an_output_folder_that_cannot_be_one_is_exit_code_2(
    run: Run, tiny: Path, tmp_path: Path, command: str, kind: str
) -> None:
    Image.new("RGB", (8, 8)).save(make(tmp_path / "data" / "rgb" / "x") / "y.png")
    make(tmp_path / "data" / "sam_instance" / "x")
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    out = "file/out" if kind == "below a file" else kind
    model = [] if command.startswith("convert") else ["--model", tiny]
    code, said, err = run(*command.split(), *model, "--out", out)
    assert (code, said) == (2, "")
    assert f"--out {out}: " in err
    assert (tmp_path / "file").read_text() == "kept"


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
