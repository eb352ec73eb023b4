"""Results in memory are byte-equal to the files of a run, and a loaded model serves every run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fourm.data.layout import path_of, samples_of_prompts
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.results.events import Event, Failed, Saved
from fourm.results.values import Collector
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import collect, run
from fourm.schedule.plan import parse_chain

PROMPTS = ("a small red circle above a large blue square on a white background", "a large green triangle")


def gather(request: Request, loaded: LoadedModel) -> tuple[list[Event], Collector]:
    collector, events = collect(request, loaded)
    return [*events], collector


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return LoadedModel(find_model("demo"), torch.device("cpu"), "float32")


def ask(loaded: LoadedModel, options: str, **settings: object) -> Request:
    chain = parse_chain(options, loaded.files)
    settings = {"device": "cpu", "samples": samples_of_prompts(PROMPTS)} | settings
    return Request(loaded.files, chain, **settings)


def test_values_and_tokens_in_memory_equal_the_files(demo: LoadedModel, tmp_path: Path) -> None:
    options = "--cond caption --targets all"
    events, collector = gather(ask(demo, options, num_variations=2), demo)
    assert sum(isinstance(event, Saved) for event in events) == 4
    request = ask(demo, options, num_variations=2, out=tmp_path / "out")
    list(run(request, demo))
    for made in collector.made.values():
        for name in request.chain.targets:
            row = demo.files.registry.get(name)
            key, variation = made.work.sample.key, made.work.variation
            if name.startswith("tok_"):
                ids = np.load(path_of(request.out, name, key, ".npy", variation))
                assert np.array_equal(ids.reshape(-1), made.tokens[name])
            there = path_of(request.out, row.folder, key, row.suffix, variation)
            other = tmp_path / f"other{row.suffix}"
            codec = collector.codecs[name]
            other.write_bytes(codec.pack(made.values[name]))
            if row.suffix == ".png":
                assert np.array_equal(codec.read(there), made.values[name])
            else:
                assert there.read_bytes() == other.read_bytes()


def test_nothing_is_loaded_twice(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask(demo, "--cond caption --targets tok_rgb --steps 2")
    gather(request, demo)
    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(f"fourm.runs.loaded.{name}", lambda *_: pytest.fail("loaded again"))
    _, collector = gather(request, demo)
    assert len(collector.made) == 2


def test_a_sample_that_fails_leaves_the_others(demo: LoadedModel) -> None:
    good, bad = samples_of_prompts(PROMPTS)
    request = ask(demo, "--cond caption --targets tok_rgb --steps 2", samples=[good, type(bad)(bad.key)])
    events, collector = gather(request, demo)
    assert [type(event) for event in events if isinstance(event, Failed | Saved)] == [Failed, Saved]
    assert list(collector.made) == [(good.key.text, 0)]
    assert "has no caption" in collector.failures[bad.key.text, 0]


def test_a_model_for_another_dtype_is_refused(demo: LoadedModel) -> None:
    request = ask(demo, "--cond caption --targets tok_rgb --steps 2", dtype="bfloat16")
    with pytest.raises(ValueError, match="another device, dtype"):
        gather(request, demo)
