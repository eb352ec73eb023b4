"""Pictures by diffusion in a whole run: files, events, previews, and a picture that knows no batch."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fourm.codecs.images import Diffusion, GridCodec
from fourm.codecs.table import build_codec
from fourm.data.layout import samples_of_prompts
from fourm.decoding.sampling import Noise
from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.modalities.registry import Kind, Modality
from fourm.networks.state import full_grid
from fourm.networks.tokenizers import build_tokenizer
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.diffusion import DiVAE
from fourm.output.processes import seal
from fourm.results.events import Detokenized, Event, Failed, Finished, Started
from fourm.runs.pipeline import run as run_request
from fourm.schedule.chain import TargetSpec, make_chain
from fourm.schedule.solvers import DDIM

PROMPTS = ["a red circle", "a blue square on a white background", "the green triangle"]
CONFIG = {
    "image_size": 64, "patch_size": 8, "codebook_size": 64, "latent_dim": 6, "scheduler": "ddim",
    "dec_type": "unet_patched", "beta_schedule": "linear", "prediction_type": "sample", "has_encoder": False,
    "dec_structure": {"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 1],
                      "attention_resolutions": [2]},
}  # fmt: skip


@pytest.fixture(scope="module")
def detokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder of random weights."""
    folder = tmp_path_factory.mktemp("divae")
    tokenizer, generator = build_tokenizer(read_config(CONFIG)), torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(tensor.shape).normal_(0, 0.1, generator=generator)
        for name, tensor in tokenizer.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def make(tiny: Path, detokenizer: Path, out: Path, **changes: object) -> list[Event]:
    files = find_model(tiny)
    files = replace(files, tokenizers={**files.tokenizers, "rgb": detokenizer})
    chain = make_chain([TargetSpec("tok_rgb@64", 64, "roar", 4, temperature=1.0)], ["caption"])
    request = Request(files, chain, samples_of_prompts(PROMPTS), out, device="cpu", detokenizer_steps=4)
    return list(run_request(replace(request, **changes)))


def pictures(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.png"))}


def test_pictures_are_made_step_by_step_and_do_not_know_their_batch(
    tiny: Path, detokenizer: Path, tmp_path: Path
) -> None:
    events = make(tiny, detokenizer, tmp_path / "a", batch_size=3)
    steps = [e for e in events if isinstance(e, Detokenized)]
    assert [(e.keys, e.done, e.total) for e in steps[:4]] == [(("00000/000000",), n, 4) for n in (1, 2, 3, 4)]
    assert len(steps) == 3 * 4
    (started,) = [e for e in events if isinstance(e, Started)]
    assert started.evaluations == 4
    assert events[-1] == Finished(3, 0, 0, events[-1].seconds)
    make(tiny, detokenizer, tmp_path / "b", batch_size=1)
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert record["detokenizer_steps"] == 4
    other = make(tiny, detokenizer, tmp_path / "c", detokenizer_steps=2)
    assert sum(isinstance(e, Detokenized) for e in other) == 3 * 2
    assert pictures(tmp_path / "a") != pictures(tmp_path / "c")


def test_seed_and_variation_decide_the_noise(tiny: Path, detokenizer: Path, tmp_path: Path) -> None:
    make(tiny, detokenizer, tmp_path / "a", num_variations=2)
    ids = [np.load(tmp_path / f"a/tok_rgb@64/00000/000000-v{v}.npy") for v in (0, 1)]
    assert not np.array_equal(*ids)
    assert len(set(pictures(tmp_path / "a").values())) == 6


def test_previews_are_diffused_too(tiny: Path, detokenizer: Path, tmp_path: Path) -> None:
    make(tiny, detokenizer, tmp_path / "a", preview=2)
    shown = [name for name in pictures(tmp_path / "a") if name.startswith("preview/")]
    assert len(shown) == 3 * 2


def test_steps_that_do_not_divide_those_of_training_are_refused_before_loading(
    tiny: Path, detokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"`detokenizer_steps=30`: .* 1,000 .* 25 or 40"):
        make(tiny, detokenizer, tmp_path / "a", detokenizer_steps=30)
    assert not (tmp_path / "a").exists()


def test_a_solver_takes_as_many_steps_as_asked_for_and_is_recorded(
    tiny: Path, detokenizer: Path, tmp_path: Path
) -> None:
    results = dict[str, dict[str, bytes]]()
    for solver in ("dpm++1", "unipc", "unipc:lu"):
        out = tmp_path / solver
        events = make(tiny, detokenizer, out, detokenizer_solver=solver, detokenizer_steps=3, preview=2)
        assert sum(isinstance(event, Detokenized) for event in events) == 3 * 3
        assert json.loads((out / "run.json").read_text())["detokenizer_solver"] == solver
        results[solver] = pictures(out)
    assert len({tuple(found.values()) for found in results.values()}) == 3
    make(tiny, detokenizer, tmp_path / "a")
    (told,) = [Image.open(path).info for path in tmp_path.glob("unipc/*/00000/000000.png")]
    assert (told["detokenizer solver"], told["detokenizer steps"]) == ("unipc", "3")
    usual = Image.open(next(tmp_path.glob("a/*/00000/000000.png"))).info
    assert "detokenizer solver" not in usual  # as before there were solvers


def test_a_continued_run_keeps_its_steps_and_its_solver(
    tiny: Path, detokenizer: Path, tmp_path: Path
) -> None:
    """Also one that an older version began, with 50 steps and no word of a solver."""
    one = samples_of_prompts(PROMPTS[:1])
    for number, steps, solver in ((0, 50, None), (1, 2, "unipc")):
        out = tmp_path / str(number)
        make(tiny, detokenizer, out, samples=one, detokenizer_steps=steps, detokenizer_solver=solver)
        whole = pictures(out)
        said = json.loads((out / "run.json").read_text())
        if solver is None:
            assert said.pop("detokenizer_solver") == DDIM
        (out / "run.json").write_text(seal(said))
        first = next(out.glob("*/00000/000000.png"))
        first.unlink()
        usual = {"samples": one, "detokenizer_steps": None, "detokenizer_solver": None, "resume": True}
        events = make(tiny, detokenizer, out, **usual)
        assert sum(isinstance(event, Detokenized) for event in events) == steps
        assert pictures(out) == whole
        first.unlink()
        for name, there, here in (("steps", steps, 10), ("solver", f'"{solver or DDIM}"', '"dpm++:lu"')):
            with pytest.raises(
                UsageError, match=re.escape(f"detokenizer_{name} is {there} there and {here}")
            ):
                make(tiny, detokenizer, out, **{**usual, f"detokenizer_{name}": json.loads(str(here))})
    make(tiny, detokenizer, tmp_path / "new", samples=one, detokenizer_steps=None)
    said = json.loads((tmp_path / "new/run.json").read_text())
    assert (said["detokenizer_steps"], said["detokenizer_solver"]) == (25, DDIM)


def test_solvers_that_cannot_be_are_refused(tiny: Path, detokenizer: Path, tmp_path: Path) -> None:
    for solver, steps, message in (
        ("unipcs", 4, "`detokenizer_solver`: 'unipcs' is not one of ddim, .*; did you mean 'unipc'"),
        ("ddim:lu", 4, "`detokenizer_solver=ddim:lu`: only .* take a spacing"),
        ("unipc:", 4, "`detokenizer_solver=unipc:`: spacings are trailing, "),
        ("dpm++:karas", 4, "spacings are .*; did you mean 'karras'"),
        ("unipc", 1001, "`detokenizer_steps=1001`: .* from 1 to 1,000"),
        ("dpm++:leading", 1000, "`detokenizer_steps=1000`: 1,000 steps, spaced 'leading', repeat a level"),
        (3, 4, "`detokenizer_solver` is 3, expected"),
    ):
        with pytest.raises(UsageError, match=message):
            make(tiny, detokenizer, tmp_path / "a", detokenizer_solver=solver, detokenizer_steps=steps)
    assert not (tmp_path / "a").exists()


def test_a_decoder_that_gives_nonsense_fails_its_samples_and_keeps_their_tokens(
    tiny: Path, detokenizer: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    state = load_file(detokenizer / "model.safetensors")
    state["decoder.out.2.bias"] = torch.full_like(state["decoder.out.2.bias"], 3e38)
    state["decoder.out.2.weight"] = torch.full_like(state["decoder.out.2.weight"], 3e38)
    folder = tmp_path / "broken"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "thresholding": False}))
    events = make(tiny, folder, tmp_path / "a")
    assert [type(e) for e in events if isinstance(e, Failed)] == [Failed] * 3
    assert len(list((tmp_path / "a/tok_rgb@64").rglob("*.npy"))) == 3
    assert not pictures(tmp_path / "a")


def test_a_codec_fills_up_its_groups(detokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does with up to eight rows, seen on the CPU with three."""
    from fourm.codecs import images
    from fourm.networks.checkpoint import load_tokenizer

    row = Modality("tok_rgb@64", Kind.GRID, 64, 64, (8, 8), 8, 64, codec="tok_rgb", tokenizer="rgb")
    tokenizer = load_tokenizer(detokenizer)
    codec = build_codec(row, tokenizer)
    assert isinstance(codec, GridCodec)
    assert isinstance(tokenizer, DiVAE)
    ids = torch.randint(0, 64, (5, 64), generator=torch.Generator().manual_seed(1))
    noise = Noise.for_samples(0, [(str(i), 0) for i in range(5)])
    alone = codec.decode(full_grid(ids), Diffusion(4, noise))
    monkeypatch.setattr(images, "_SIZES", {"cpu": (1, 3)})
    steps = list(codec.decode_stepwise(full_grid(ids), Diffusion(4, noise)))
    assert steps == [(n, 8) for n in range(1, 9)]
    together = codec.decode(full_grid(ids), Diffusion(4, noise))
    for one, other in zip(alone, together, strict=True):
        assert one.shape == (64, 64, 3)
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    with pytest.raises(ValueError, match="needs steps and noise"):
        codec.decode(full_grid(ids))


def test_another_tokenizer_is_named_on_the_command_line(
    tiny: Path, detokenizer: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    common = ("generate", "a red circle", "--model", tiny, "--targets", "tok_rgb", "--steps", 2, "--quiet")
    more = ("--tokenizer", f"rgb={detokenizer}", "--detokenizer-steps", 4)
    assert run(*common, *more, "--out", "a")[0] == 0
    assert run(*common, "--tokenizer", "rgb=rgb", "--out", "b")[0] == 0
    assert Path("a/rgb/00000/000000.png").read_bytes() != Path("b/rgb/00000/000000.png").read_bytes()
    ids = [Path(out, "tok_rgb@64/00000/000000.npy").read_bytes() for out in ("a", "b")]
    assert ids[0] == ids[1]
    for wrong, code, message in (
        ("rgb", 2, "not KEY=NAME; did you mean 'rgb'?"),
        ("zzz=rgb", 2, "not KEY=NAME; keys are clip, "),
        ("rbg=rgb", 2, "did you mean 'rgb'"),
        ("rgb=nowhere", 2, "nowhere"),
        ("rgb=clip", 2, "codes"),
    ):
        got, _, err = run(*common, "--tokenizer", wrong, "--out", "c")
        assert (got, message in err) == (code, True), err
        assert err.count("\n") == 1
    assert run(*common, *more[:2], "--detokenizer-steps", 3, "--out", "c")[0] == 2
    code, _, err = run(*common, *more, "--detokenizer-solver", "unipcs", "--out", "c")
    assert (code, err.count("\n"), "--detokenizer-solver: 'unipcs'" in err) == (2, 1, True)
    assert not Path("c").exists()
    solver = ("--detokenizer-solver", "unipc:lu")
    assert run(*common, *more[:2], "--detokenizer-steps", 3, *solver, "--out", "d")[0] == 0
    assert json.loads(Path("d/run.json").read_text())["detokenizer_solver"] == "unipc:lu"
    again = ("generate", "--replay", "d/rgb/00000/000000.png", "--quiet", *more[:2])
    assert run(*again, "--out", "e", "--model", tiny)[0] == 0
    for name in ("rgb/00000/000000.png", "tok_rgb@64/00000/000000.npy"):
        assert Path("d", name).read_bytes() == Path("e", name).read_bytes()
