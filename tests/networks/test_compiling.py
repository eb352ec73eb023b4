"""Compiled blocks: one compilation for all of a kind and all sizes; the same results but for rounding."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.networks.checkpoint import load_model
from fourm.networks.layers import Block, compile_blocks
from fourm.networks.linears import pack
from fourm.networks.precision import check_compiler
from fourm.networks.state import Batch, full_sequence

Run = Callable[..., tuple[int, str, str]]


def graphs_of(network: nn.Module, lengths: Sequence[int]) -> tuple[int, list[torch.Tensor]]:
    """The number of compiled graphs after captions of these lengths were read, and their contexts."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    contexts = []
    with torch.inference_mode():
        for length in lengths:
            ids = torch.full((2, length), 20).scatter(1, torch.tensor([[length - 1], [length // 2]]), 3)
            contexts.append(network.encode(Batch(("a", "b"), {"caption": full_sequence(ids)})).tokens)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"], contexts


@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_a_kind_are_compiled_once_and_give_the_same(tiny: Path, packed: bool) -> None:
    plain, compiled = (load_model(find_model(tiny)) for _ in range(2))
    if packed:
        pack(compiled, 1)
    compile_blocks(compiled)
    assert sum(isinstance(block, Block) for block in compiled.encoder) > 1
    wanted = graphs_of(plain, (9, 12, 17))
    got = graphs_of(compiled, (9, 12, 17))
    assert (wanted[0], got[0]) == (0, 1)
    for one, other in zip(wanted[1], got[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.more
def test_a_compiled_run_is_recorded_and_goes_on_only_so(run: Run, tmp_path: Path) -> None:
    words = ("generate", "--cond", "none", "--num-samples", "2", "--targets", "tok_clip-caption", "--quiet")
    assert run(*words, "--compile", "--out", "compiled")[0] == 0
    assert run(*words, "--out", "plain")[0] == 0
    made, plain = (
        [np.load(path) for path in sorted(Path(out).glob("tok_clip*/**/*.npy"))]
        for out in ("compiled", "plain")
    )
    assert len(made) == len(plain) == 2
    assert np.mean([np.mean(a == b) for a, b in zip(made, plain, strict=True)]) > 0.9
    code, _, err = run(*words, "--out", "compiled", "--resume")
    assert (code, "compile is true there and false here" in err) == (2, True)


def test_a_machine_without_a_compiler_is_told_at_the_start(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourm.networks.precision.which", lambda _: None)
    code, _, err = run("generate", "a red circle", "--model", tiny, "--compile", "--out", "o", "-q")
    assert (code, "--compile: needs a C++ compiler" in err) == (2, True)
    assert not Path("o").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="Triton"):
        check_compiler(torch.device("cuda"))
