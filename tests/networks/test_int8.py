"""Int8 weights: how far they are from those of the checkpoint, and what a run with them gives and records."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.networks import linears
from fourm.networks.checkpoint import load_model
from fourm.networks.linears import Int8Linear, quantise
from fourm.networks.precision import check_compiler

Run = Callable[..., tuple[int, str, str]]
WORDS = ("generate", "--cond", "none", "--num-samples", "3", "--targets", "tok_clip-caption", "--temps", "0",
         "--quiet")  # fmt: skip


@pytest.fixture(params=["packed", "floats"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to multiply, whatever this CPU has; without exact products both are the second one."""
    if request.param == "floats":
        monkeypatch.setattr(linears, "has_exact_products", lambda: False)


def demo_layers(dtype: torch.dtype = torch.float32) -> Iterator[tuple[nn.Linear, Int8Linear]]:
    """Each linear layer of the embedded model that becomes int8, as it is and as int8."""
    full, rounded = load_model(find_model("demo")), load_model(find_model("demo"), "cpu", dtype, "int8")
    for name, layer in rounded.named_modules():
        if isinstance(layer, Int8Linear):
            plain = full.get_submodule(name)
            assert isinstance(plain, nn.Linear)
            yield plain, layer


def rows_of(layer: nn.Linear, count: int = 300) -> Tensor:
    """Seeded inputs, with rows of zeros, of small and of large numbers."""
    x = torch.randn(count, layer.in_features, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 0.0, 1e-6, 1e4]).repeat(count)[:count, None]


def test_weights_are_off_by_half_a_scale_at_most() -> None:
    extremes = torch.tensor([[0.0, 0.0], [1e-44, -1e-45], [3e38, -3e38], [127.0, 0.5]])
    weights = [plain.weight for plain, _ in demo_layers()]
    assert len(weights) > 40
    for weight in (*weights, extremes):
        values, scale = quantise(weight)
        assert values.dtype == torch.int8
        assert bool((values != -128).all())
        exact = values.double() * scale.double()
        assert bool(((weight.double() - exact).abs() <= scale.double() / 2 * (1 + 1e-5)).all())


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
def test_only_weights_are_rounded(dtype: torch.dtype, within: float) -> None:
    for plain, layer in demo_layers(dtype):
        values, scale = quantise(plain.weight)
        x = rows_of(plain, 8).to(dtype)
        bias = None if plain.bias is None else plain.bias.double()
        wanted = F.linear(x.double(), values.double() * scale.double(), bias)
        got = layer(x.view(2, 4, -1)).view(8, -1)
        assert got.dtype == dtype
        largest = wanted.abs().amax(dim=1, keepdim=True)
        assert bool(((got.double() - wanted).abs() <= within * largest).all())


def test_a_row_does_not_depend_on_others() -> None:
    """Bits are equal alone, in batches of up to seven and among 300, also where MKL's are not."""
    if not linears.has_exact_products():
        return  # the layers multiply as full ones do; tests of the engine compare batches of these
    for plain, layer in demo_layers():
        x = rows_of(plain)
        whole = layer(x)
        for count in range(1, 8):
            assert torch.equal(layer(x[10 : 10 + count]), whole[10 : 10 + count])


def test_infinite_inputs_give_no_numbers() -> None:
    """So that a run reports them, as it does with full weights."""
    _, layer = next(demo_layers())
    x = torch.ones(3, layer.in_features)
    x[0, 0], x[1, 1] = float("inf"), float("nan")
    assert layer(x).isfinite().all(dim=1).tolist() == [False, False, True]


def test_a_run_is_recorded_and_goes_on_only_so(run: Run) -> None:
    assert run(*WORDS, "--weights", "int8", "--out", "int8")[0] == 0
    assert run(*WORDS, "--out", "full")[0] == 0
    assert json.loads(Path("int8/run.json").read_text())["weights"] == "int8"
    files = sorted(Path("int8").glob("tok_clip*/**/*.npy"))
    made = [np.load(path) for path in files]
    full = [np.load("full" / path.relative_to("int8")) for path in files]
    # Of 20 such samples 0.74 of the tokens were equal, and all of 50 that were made from pictures.
    assert np.mean(np.array(made) == np.array(full)) > 0.6
    files[0].unlink()
    assert run(*WORDS, "--out", "int8", "--resume")[0] == 0  # takes what is recorded
    assert np.array_equal(np.load(files[0]), made[0])
    for out, other, there in (("full", "int8", "full"), ("int8", "full", "int8")):
        code, _, err = run(*WORDS, "--weights", other, "--out", out, "--resume")
        assert (code, f'weights is "{there}" there and "{other}" here' in err) == (2, True)


def test_pictures_are_repeated_and_made_finer_with_the_weights_of_their_run(run: Run) -> None:
    words = ("generate", "a red circle", "--targets", "tok_rgb", "--quiet")
    assert run(*words, "--weights", "int8", "--out", "one")[0] == 0
    picture = next(Path("one").glob("rgb/**/*.png"))
    alone = Path("alone.png")
    alone.write_bytes(picture.read_bytes())
    assert run("generate", "--replay", alone, "--out", "two", "--quiet")[0] == 0
    assert next(Path("two").glob("rgb/**/*.png")).read_bytes() == picture.read_bytes()
    assert run("sr", "one", "--quiet")[0] == 0
    assert json.loads(Path("one/run.sr.json").read_text())["weights"] == "int8"


def test_what_does_not_fit_is_one_sentence(run: Run) -> None:
    code, _, err = run(*WORDS, "--weights", "int9", "--out", "o")
    assert (code, "'int9' is not one of full, int8" in err) == (2, True)
    with pytest.raises(UsageError, match="`compile` and `weights=int8`"):
        check_compiler(torch.device("cpu"), "int8")


def test_a_plan_says_the_smaller_memory(run: Run) -> None:
    def planned(*words: str) -> int:
        return json.loads(run("schedule", "validate", *words, "--json")[1])["weights_bytes"]

    assert planned("--weights", "int8") < 0.7 * planned("--weights", "full") == 0.7 * planned()
