"""The pipeline on a whole tiny model: files, resume, batches, shards, failures, and checks before loading."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fourm.codecs.images import _SIZES
from fourm.data.layout import Key, Sample, samples_of_prompts
from fourm.errors import CheckpointError, MissingError, UsageError
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.inputs.world import World
from fourm.output.processes import read_checksums
from fourm.results.events import Event, Failed, Finished, Saved, Started, Stepped
from fourm.runs.pipeline import NOT_FINITE, run
from fourm.schedule.chain import TargetSpec, make_chain
from tests.folders import tree

PROMPTS = ["a red circle", "a blue square on a white background", "the green triangle", "a large red square"]


def request(tiny: Path, out: Path, **changes: object) -> Request:
    chain = make_chain(
        [
            TargetSpec("tok_clip@64", 64, "roar", 4, temperature=2.0, guidance=3.0),
            TargetSpec("tok_rgb@64", 64, "maskgit", 3, "cosine", guidance=2.0),
        ],
        ["caption"],
        top_p=0.9,
    )
    basis = Request(find_model(tiny), chain, samples_of_prompts(PROMPTS), out, device="cpu")
    return replace(basis, **changes)


def make(*args: object, **kwargs: object) -> list[Event]:
    return list(run(request(*args, **kwargs)))


def test_a_run_writes_tokens_pictures_conditions_and_a_record(tiny: Path, tmp_path: Path) -> None:
    events = make(tiny, tmp_path / "out")
    files = tree(tmp_path / "out")
    for folder, suffix in (("caption", "txt"), ("tok_clip@64", "npy"), ("tok_rgb@64", "npy"), ("rgb", "png")):
        assert f"{folder}/00000/000003.{suffix}" in files
    ids = np.load(tmp_path / "out/tok_rgb@64/00000/000001.npy", allow_pickle=False)
    assert (ids.shape, ids.dtype) == ((1, 64), np.int16)
    picture = Image.open(tmp_path / "out/rgb/00000/000001.png")
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == PROMPTS[1]
    assert (picture.text["seed"], picture.text["sample"]) == ("0", "00000/000001")
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["samples"] == 4
    assert set(record["files"]) == {"weights", "text_tokenizer", "tokenizers/clip", "tokenizers/rgb"}
    assert isinstance(events[0], Started)
    assert events[-1] == Finished(4, 0, 0, events[-1].seconds)
    steps = [e for e in events if isinstance(e, Stepped)]
    assert [s.done for s in steps if s.target == "tok_clip@64"] == [16, 32, 48, 64]
    assert not (tmp_path / "out/.partial").exists()


def test_batch_size_order_shards_and_variations_do_not_change_a_sample(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "a", batch_size=7, num_variations=2)
    make(tiny, tmp_path / "b", batch_size=1, num_variations=2)
    backwards = samples_of_prompts(PROMPTS)[::-1]
    for rank in (1, 0, 2):
        make(tiny, tmp_path / "c", batch_size=2, num_variations=2, world=World(rank, 3), samples=backwards)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")
    one, two = (np.load(tmp_path / f"a/tok_rgb@64/00000/000000-v{v}.npy") for v in (0, 1))
    assert not np.array_equal(one, two)


def test_an_interrupted_run_resumed_is_the_run(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "whole", batch_size=2)
    interrupted = run(request(tiny, tmp_path / "cut", batch_size=2))
    for event in interrupted:
        if isinstance(event, Saved):
            break
    interrupted.close()
    events = make(tiny, tmp_path / "cut", batch_size=3, resume=True)
    assert events[0].skipped == 1
    assert tree(tmp_path / "whole") == tree(tmp_path / "cut")


def test_a_finished_run_resumed_does_nothing(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "out")
    before = tree(tmp_path / "out")
    events = make(tiny, tmp_path / "out", resume=True)
    assert events[-1].skipped == 4
    assert not any(isinstance(e, Stepped) for e in events)
    assert tree(tmp_path / "out") == before


def test_resuming_with_another_seed_is_refused(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "out")
    with pytest.raises(UsageError, match="seed is 0 there and 1 here"):
        make(tiny, tmp_path / "out", resume=True, seed=1)


def test_tokens_written_by_one_run_are_conditions_of_the_next(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "first")
    chain = make_chain([TargetSpec("tok_depth@64", 64, "roar", 2)], ["tok_rgb@64", "rgb@64"])
    samples = [
        Sample(Key("00000", f"{i:06d}"), None, {
            "tok_rgb@64": tmp_path / f"first/tok_rgb@64/00000/{i:06d}.npy",
            "rgb@64": tmp_path / f"first/rgb/00000/{i:06d}.png",
        })
        for i in range(3)
    ]  # fmt: skip
    make(tiny, tmp_path / "second", chain=chain, samples=samples)
    files = tree(tmp_path / "second")
    assert files["tok_rgb@64/00000/000001.npy"] == tree(tmp_path / "first")["tok_rgb@64/00000/000001.npy"]
    depth = np.load(tmp_path / "second/depth/00000/000002.npy", allow_pickle=False)
    assert (depth.shape, depth.dtype) == ((64, 64), np.float32)


def test_other_dtypes_run_from_pixels_to_values(tiny: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    chain = make_chain([TargetSpec("tok_depth@64", 64, "roar", 2, guidance=2.0)], ["rgb@64"])
    samples = [Sample(Key("f", "a"), None, {"rgb@64": tmp_path / "a.png"})]
    for dtype in ("bfloat16", "float16"):
        make(tiny, tmp_path / dtype, chain=chain, samples=samples, dtype=dtype)
        depth = np.load(tmp_path / dtype / "depth/f/a.npy")
        assert (depth.dtype, bool(np.isfinite(depth).all())) == (np.float32, True)


def test_captions_can_be_generated(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "first")
    chain = make_chain([TargetSpec("caption", 16, "autoregressive", temperature=1.0)], ["tok_rgb@64"])
    path = tmp_path / "first/tok_rgb@64/00000/000000.npy"
    make(tiny, tmp_path / "out", chain=chain, samples=[Sample(Key("x", "y"), None, {"tok_rgb@64": path})])
    assert (tmp_path / "out/caption/x/y.txt").is_file()


def test_a_bad_file_fails_alone(tiny: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 64)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n but no picture")
    chain = make_chain([TargetSpec("tok_depth@64", 64, "roar", 2)], ["rgb@64"])
    samples = [Sample(Key("f", n), None, {"rgb@64": tmp_path / f"{n}.png"}) for n in ("bad", "good")]
    events = make(tiny, tmp_path / "out", chain=chain, samples=samples)
    failed = [e for e in events if isinstance(e, Failed)]
    assert [f.key for f in failed] == ["f/bad"]
    assert "bad.png" in failed[0].reason
    assert (tmp_path / "out/tok_depth@64/f/good.npy").is_file()
    line = json.loads((tmp_path / "out/failures.jsonl").read_text())
    assert (line["key"], line["variation"]) == ("f/bad", 0)


def broken(tiny: Path, folder: Path, change) -> Path:
    """A copy of the model whose tensors went through `change`."""
    for path in tiny.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(tiny)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    state = load_file(tiny / "model.safetensors")
    save_file(change(state), folder / "model.safetensors")
    return folder


def test_results_that_are_no_numbers_fail_their_sample(tiny: Path, tmp_path: Path) -> None:
    def spoil(state):
        return {n: t * 0 + 3e38 if n == "encoder.1.mlp.fc1.weight" else t for n, t in state.items()}

    events = make(broken(tiny, tmp_path / "m", spoil), tmp_path / "out", preview=1)
    assert [e.reason for e in events if isinstance(e, Failed)] == [NOT_FINITE] * len(PROMPTS)
    assert not list((tmp_path / "out/tok_rgb@64").rglob("*.npy"))
    folder = broken(tiny, tmp_path / "t", dict)
    weights = folder / "tokenizers/rgb/model.safetensors"
    save_file({n: t * 0 + 3e38 if "post_quant" in n else t for n, t in load_file(weights).items()}, weights)
    failed = [e for e in make(folder, tmp_path / "other", preview=1) if isinstance(e, Failed)]
    assert len(failed) == len(PROMPTS)
    assert "tok_rgb@64: its tokenizer's results are not finite" in failed[0].reason


def test_numbers_that_are_lost_early_in_a_chain_fail_the_sample(tiny: Path, tmp_path: Path) -> None:
    """The first target's results are no numbers; those of the second are."""
    name = "decoder_embeddings.tok_clip@64.to_logits.weight"
    model = broken(
        tiny, tmp_path / "m", lambda s: {n: t * 0 + 3e38 if n == name else t for n, t in s.items()}
    )
    failed = [e for e in make(model, tmp_path / "out") if isinstance(e, Failed)]
    assert [event.reason for event in failed] == [NOT_FINITE] * len(PROMPTS)
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_of_a_group_the_value_that_cannot_be_decoded_fails_alone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One code of the tokenizer is spoilt, of those that a single sample has."""
    monkeypatch.setitem(_SIZES, "cpu", (1, 2, 4))  # groups as on a GPU
    make(tiny, tmp_path / "whole")
    paths = sorted((tmp_path / "whole/tok_rgb@64").rglob("*.npy"))
    ids = {path: set(np.load(path, allow_pickle=False).flatten().tolist()) for path in paths}
    path, code = next((p, c) for p in paths for c in ids[p] if sum(c in ids[q] for q in paths) == 1)
    model = Path(shutil.copytree(tiny, tmp_path / "m"))
    weights = model / "tokenizers/rgb/model.safetensors"
    state = load_file(weights)
    state["quantize._codebook.embed"][..., code, :] = 3e38
    save_file(state, weights)
    events = make(model, tmp_path / "out")
    assert [event.key for event in events if isinstance(event, Failed)] == [f"00000/{path.stem}"]
    assert len([event for event in events if isinstance(event, Saved)]) == len(PROMPTS) - 1
    made = tree(tmp_path / "out")
    others = {name for name in tree(tmp_path / "whole") if path.stem not in name}
    assert others <= made.keys()
    assert f"rgb/00000/{path.stem}.png" not in made
    assert set(read_checksums(tmp_path / "out")) == others


def test_a_missing_or_renamed_tensor_is_named_and_nothing_is_written(tiny: Path, tmp_path: Path) -> None:
    name = "encoder.1.mlp.fc1.weight"
    renamed = broken(
        tiny, tmp_path / "r", lambda s: {n.replace(name, "encoder.1.mlp.fc9.weight"): t for n, t in s.items()}
    )
    missing = broken(tiny, tmp_path / "m", lambda s: {n: t for n, t in s.items() if n != name})
    misshapen = broken(tiny, tmp_path / "s", lambda s: s | {name: torch.zeros(3, 3)})
    whole = broken(tiny, tmp_path / "w", lambda s: s | {name: s[name].to(torch.int32)})
    for folder, said in (
        (renamed, "fc9"), (missing, "is missing"), (misshapen, r"\(3, 3\)"), (whole, "holds whole numbers")
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=said) as caught:
            make(folder, tmp_path / "out")
        assert name in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("dim", 2**63), ("num_heads", 0), ("encoder_depth", 10**9), ("mlp_ratio", -1),
     ("mlp_ratio", float("nan")), ("num_register_tokens", -5)],
)  # fmt: skip
def test_absurd_sizes_of_a_config_are_refused_at_once(
    tiny: Path, tmp_path: Path, key: str, value: float
) -> None:
    folder = broken(tiny, tmp_path / "m", dict)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=rf"config\.{key} is .*, expected"):
        make(folder, tmp_path / "out")


def test_a_truncated_checkpoint_is_refused_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    folder = broken(tiny, tmp_path / "t", dict)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(weights)):
        make(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_without_its_tokenizer_is_said_first(tiny: Path, tmp_path: Path) -> None:
    model = find_model(tiny)
    bare = replace(model, tokenizers={n: p for n, p in model.tokenizers.items() if n != "rgb"})
    with pytest.raises(MissingError, match="`decode=False`"):
        make(tiny, tmp_path / "out", model=bare)
    make(tiny, tmp_path / "out", model=bare, decode=False)
    assert (tmp_path / "out/tok_rgb@64/00000/000000.npy").is_file()
    assert not (tmp_path / "out/rgb").exists()


def test_a_folder_that_cannot_be_written_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match=str(out)):
            make(tiny, out)
