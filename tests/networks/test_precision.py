"""float32 is float32 on every device, whatever a program had told torch; TF32 only where it is asked for."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch

from fourm.data.layout import Key, Sample
from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.networks.precision import arithmetic, choose_dtype, torch_dtype
from fourm.runs.pipeline import run
from fourm.schedule.plan import parse_chain

CPU, GPU = torch.device("cpu"), torch.device("cuda")
backends: Any = torch.backends
newer_torch = pytest.mark.skipif(not hasattr(backends.cudnn, "fp32_precision"), reason="torch before 2.9")


def newer_switches() -> dict[str, str]:
    """What torch 2.9 and later would really compute in, by place."""
    if not hasattr(backends.cudnn, "fp32_precision"):
        return {}
    owners = {"cuda.matmul": backends.cuda.matmul, "cudnn.conv": backends.cudnn.conv, "cudnn": backends.cudnn,
              "mkldnn.matmul": backends.mkldnn.matmul, "mkldnn.conv": backends.mkldnn.conv}  # fmt: skip
    return {name: owner.fp32_precision for name, owner in owners.items()}


def older_switches() -> dict[str, object]:
    """What every torch says, or that it refuses to say because both kinds of switches were used."""
    found: dict[str, object] = {
        "benchmark": backends.cudnn.benchmark,
        "deterministic": backends.cudnn.deterministic,
        "bf16": backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16": backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "fp16 sums": getattr(backends.cuda.matmul, "allow_fp16_accumulation", False),
    }
    for name, get in {
        "products": torch.get_float32_matmul_precision,
        "convolutions": lambda: backends.cudnn.allow_tf32,
    }.items():
        try:
            found[name] = get()
        except RuntimeError:
            found[name] = "mixed"
    return found


def set_older() -> None:
    torch.set_float32_matmul_precision("medium")
    backends.cudnn.allow_tf32, backends.cudnn.benchmark = True, True
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True


def set_newer() -> None:
    backends.fp32_precision = "tf32"
    backends.mkldnn.matmul.fp32_precision = "bf16"


def set_both() -> None:
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    backends.fp32_precision = "tf32"
    backends.cuda.matmul.fp32_precision = "tf32"


CALLERS = [lambda: None, set_older, *(pytest.param(f, marks=newer_torch) for f in (set_newer, set_both))]


@pytest.fixture(autouse=True)
def _as_torch_starts() -> Iterator[None]:
    """Each test leaves torch's own switches behind."""
    yield
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32, backends.cudnn.benchmark, backends.cudnn.deterministic = True, False, False
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    if hasattr(backends.cudnn, "fp32_precision"):
        for owner in (backends, backends.cudnn, backends.cuda.matmul, backends.mkldnn, backends.mkldnn.matmul,
                      backends.mkldnn.conv):  # fmt: skip
            owner.fp32_precision = "none"


def test_a_dtype_is_float32_on_a_cpu_unless_another_is_named() -> None:
    assert choose_dtype("auto", CPU) == choose_dtype("auto", torch.device("mps")) == "float32"
    assert choose_dtype("bfloat16", CPU) == "bfloat16"
    assert choose_dtype("tf32", GPU) == "tf32"
    assert torch_dtype("tf32") is torch.float32
    with pytest.raises(UsageError, match="'float8' is not one of auto, float32, "):
        choose_dtype("float8", CPU)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_tf32_is_refused_where_nothing_computes_so(device: str) -> None:
    with pytest.raises(UsageError, match=f"only NVIDIA GPUs support it, not '{device}'"):
        choose_dtype("tf32", torch.device(device))


@pytest.mark.parametrize("prepare", CALLERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "tf32"])
def test_all_products_are_as_the_dtype_says_and_the_switches_of_a_program_come_back(
    prepare: Callable[[], None], dtype: str
) -> None:
    prepare()
    before = older_switches(), newer_switches()
    with arithmetic(dtype):
        is_coarse = dtype == "tf32"
        assert older_switches() == {
            "benchmark": False, "deterministic": True, "bf16": False, "fp16": False, "fp16 sums": False,
            "products": "high" if is_coarse else "highest", "convolutions": is_coarse,
        }  # fmt: skip
        for name, value in newer_switches().items():
            if name in ("cuda.matmul", "cudnn.conv"):
                assert value == ("tf32" if is_coarse else "ieee"), name
            elif name != "cudnn":
                assert value == "ieee", name
    assert (older_switches(), newer_switches()) == before


@newer_torch
def test_a_switch_that_follows_another_follows_it_again() -> None:
    with arithmetic("float32"):
        pass
    backends.fp32_precision = "tf32"
    assert backends.mkldnn.conv.fp32_precision == backends.cuda.matmul.fp32_precision == "tf32"


@newer_torch
@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize(("conv", "rnn"), [("tf32", "ieee"), ("ieee", "tf32")])
def test_the_older_switch_of_convolutions_comes_back_where_the_newer_ones_differ(
    older: bool, conv: str, rnn: str
) -> None:
    backends.cudnn.allow_tf32 = older
    backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision = conv, rnn
    with arithmetic("float32"):
        pass
    assert (backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision) == (conv, rnn)
    same = "tf32" if older else "ieee"  # it can be read where all say the same
    backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = same
    assert backends.cudnn.allow_tf32 is older


def test_switches_come_back_when_a_run_fails_or_is_given_up() -> None:
    set_older()
    before = older_switches()
    with pytest.raises(KeyError), arithmetic("float32"):
        raise KeyError
    assert older_switches() == before


def test_a_run_is_float32_from_its_first_step_to_its_last_file(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two events the settings are those of whoever reads them."""
    model = find_model(tiny)
    sample = Sample(Key("00000", "000000"), "a red circle")
    chain = parse_chain("--cond caption --targets tok_depth --steps 2", model)
    set_older()
    before, seen = older_switches(), dict[str, set[str]]()
    for place in ("fourm.decoding.grids.draw", "fourm.results.sinks.write_data"):
        monkeypatch.setattr(place, spied(place, seen))
    for _ in run(Request(model, chain, (sample,), tmp_path / "out", device="cpu")):
        assert older_switches() == before
    assert [*seen.values()] == [{"highest"}, {"highest"}]
    assert older_switches() == before
    given_up = run(Request(model, chain, (sample,), tmp_path / "other", device="cpu"))
    next(given_up)
    given_up.close()
    assert older_switches() == before


def spied(place: str, seen: dict[str, set[str]]) -> Callable[..., Any]:
    """The function at a place, which first notes how torch multiplies matrices."""
    module, _, name = place.rpartition(".")
    function = getattr(import_module(module), name)

    def noting(*arguments: Any, **named: Any) -> Any:
        seen.setdefault(place, set()).add(torch.get_float32_matmul_precision())
        return function(*arguments, **named)

    return noting


@pytest.mark.gpu
def test_float32_is_exact_on_a_gpu_and_tf32_is_not() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, b, x, w = normal(512, 512), normal(512, 512), normal(1, 256, 32, 32), normal(64, 256, 3, 3)
    set_older()
    errors = {}
    for dtype in ("float32", "tf32"):
        with arithmetic(dtype):
            found = [
                a.float().cuda() @ b.float().cuda(),
                torch.nn.functional.conv2d(x.float().cuda(), w.float().cuda()),
            ]
        exact = [a @ b, torch.nn.functional.conv2d(x, w)]
        errors[dtype] = [
            float((f.double().cpu() - e).abs().max() / e.std()) for f, e in zip(found, exact, strict=True)
        ]
    assert max(errors["float32"]) < 2e-5
    assert min(errors["tf32"]) > 2e-4


def test_threads_share_equal_settings_and_wait_for_others() -> None:
    entered, order, leave = Event(), list[str](), Event()

    def work(dtype: str, name: str) -> None:
        with arithmetic(dtype):
            order.append(name)
            entered.set()
            leave.wait(60)

    first = Thread(target=work, args=("float32", "first"))
    first.start()
    entered.wait(60)
    with arithmetic("bfloat16"):  # equal settings: products are exact
        order.append("same")
    other = Thread(target=work, args=("tf32", "other"))
    other.start()
    other.join(0.2)
    assert order == ["first", "same"]
    leave.set()
    first.join(60)
    other.join(60)
    assert order == ["first", "same", "other"]
