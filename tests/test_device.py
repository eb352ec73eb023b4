"""Devices, dtypes and batch sizes that are chosen, and those that are refused."""

from pathlib import Path

import pytest
import torch

from fourm.device import choose_batch_size, choose_device, choose_dtype
from fourm.errors import UsageError
from fourm.hub import find_model
from fourm.plan import parse_chain
from fourm.request import Request
from fourm.world import World


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(UsageError, match="not a device"):
        choose_device("gpu7!", World())
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="'cuda' is not available"):
            choose_device("cuda", World())
    assert choose_device("cpu", World()).type == "cpu"


@pytest.mark.gpu
def test_processes_of_a_machine_take_turns_on_its_gpus() -> None:
    count = torch.cuda.device_count()
    found = [choose_device("cuda", World(local_rank=rank)).index for rank in range(2 * count)]
    assert found == [*range(count)] * 2


def test_a_dtype_is_float32_unless_another_is_named() -> None:
    assert choose_dtype("auto") is torch.float32
    assert choose_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(UsageError, match="'float8' is not one of auto, float32"):
        choose_dtype("float8")


def test_batches_hold_fewer_samples_when_samples_are_longer(tiny: Path, tmp_path: Path) -> None:
    model = find_model(tiny)
    one, three = (
        Request(model, parse_chain(f"--cond none --targets {targets}", model), (), tmp_path)
        for targets in ("tok_rgb", "tok_rgb-tok_clip-tok_depth")
    )
    cpu = torch.device("cpu")
    assert (choose_batch_size(one, cpu), choose_batch_size(three, cpu)) == (1024 // 64, 1024 // 192)
    assert choose_batch_size(one, torch.device("cuda")) == 64
