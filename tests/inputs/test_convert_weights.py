"""`fourm convert weights`: pickled weights of PyTorch become safetensors, and nothing in them is run."""

import argparse
import collections
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torchmetrics
from safetensors.torch import load_file
from torch import nn

from fourm.errors import CheckpointError, MissingError, UsageError
from fourm.hub.cache import converted_path, fetched_paths, find_measure
from fourm.hub.catalogue import CATALOGUE
from fourm.inputs import weights
from fourm.inputs.weights import convert_weights
from tests.inputs.test_convert_pickled import Runs

Run = Callable[..., tuple[int, str, str]]
FORMATS = pytest.mark.parametrize("is_zip", [True, False])
BASE = torch.arange(24, dtype=torch.float32)
TENSORS = {
    "matrix": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "turned": BASE.view(4, 6).T,
    "part": BASE.view(4, 6)[1:3, 2:4],
    "shared": BASE,
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 5),
    "half": torch.tensor([1.5, -2], dtype=torch.float16),
    "brain": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    "double": torch.tensor([1.5, -2], dtype=torch.float64),
    "counter": torch.tensor([1 << 40, -1]),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "mask": torch.tensor([True, False]),
}


def save(path: Path, value: Any, is_zip: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    same = [found[name].dtype == one.dtype and torch.equal(found[name], one) for name, one in wanted.items()]
    return found.keys() == wanted.keys() and all(same)


@FORMATS
def test_every_tensor_is_kept(tmp_path: Path, is_zip: bool) -> None:
    path = save(tmp_path / "a.pth", TENSORS, is_zip)
    assert convert_weights([str(path)]) == (tmp_path / "a.safetensors", len(TENSORS))
    assert equal(load_file(tmp_path / "a.safetensors"), TENSORS)


@FORMATS
def test_the_state_of_a_module_is_kept(tmp_path: Path, is_zip: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    convert_weights([str(save(tmp_path / "a.pth", module.state_dict(), is_zip))])
    assert equal(load_file(tmp_path / "a.safetensors"), dict(module.state_dict()))
    parameters = collections.OrderedDict(module.named_parameters())
    convert_weights([str(save(tmp_path / "b.pth", parameters, is_zip))])
    assert equal(load_file(tmp_path / "b.safetensors"), {name: one.data for name, one in parameters.items()})


@FORMATS
def test_of_a_checkpoint_of_training_the_weights_are_taken(tmp_path: Path, is_zip: bool) -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7,
             "args": argparse.Namespace(lr=1e-4, name="x", sizes=[1, 2]), "scaler": None}  # fmt: skip
    convert_weights([str(save(tmp_path / "a.pth", state, is_zip))])
    assert equal(load_file(tmp_path / "a.safetensors"), dict(module.state_dict()))


def test_the_linear_layers_of_lpips_are_read_as_they_were_published() -> None:
    """torchmetrics brings a copy of them, of a version of PyTorch before 1.6."""
    source = CATALOGUE["lpips-alex"].sources[1]
    path = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256
    with weights._opened(path) as file:
        shapes = {name: one.shape for name, one in file.tensors.items()}
        assert shapes == {f"lin{n}.model.1.weight": (1, width, 1, 1)
                          for n, width in enumerate((64, 192, 384, 256, 256))}  # fmt: skip
        wanted = torch.load(path, "cpu", weights_only=True)
        for name, one in file.tensors.items():
            assert file.bytes_of(one) == wanted[name].numpy().tobytes()


def test_a_command_converts_what_was_fetched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    entry = CATALOGUE["lpips-alex"]
    code, out, err = run("convert", "weights", "lpips-alex")
    assert (code, out) == (4, "")
    assert "`fourm download lpips-alex` fetches it" in err
    features, linear = fetched_paths(entry)
    features.parent.mkdir(parents=True)
    save(features, {"features.0.weight": torch.ones(2)})
    save(linear, {"lin0.model.1.weight": torch.ones(3)}, is_zip=False)
    assert run("convert", "weights", "lpips-alex")[0] == 5  # another file, copied here by hand
    digits = [hashlib.sha256(path.read_bytes()).hexdigest()[:8] for path in (features, linear)]
    sources = [replace(one, sha256=said) for one, said in zip(entry.sources, digits, strict=True)]
    monkeypatch.setattr(weights, "find_entry", lambda name: replace(entry, sources=tuple(sources)))
    code, out, err = run("convert", "weights", "lpips-alex")
    assert (code, out) == (0, f"{converted_path(entry)}\n")
    assert "2 tensors converted" in err
    assert load_file(find_measure("lpips-alex")).keys() == {"features.0.weight", "lin0.model.1.weight"}
    code, _, err = run("convert", "weights", "lpips-alex")
    assert code == 2
    assert "is there already; --overwrite replaces it" in err
    assert run("convert", "weights", "lpips-alex", "--overwrite")[0] == 0
    assert not (features.parent / ".partial").exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.pth", {"x": torch.ones(1)}))
    other = str(save(tmp_path / "b.pth", {"x": torch.ones(1)}))
    with pytest.raises(MissingError, match=r"nothing.pth: no such file$"):
        convert_weights([str(tmp_path / "nothing.pth")])
    with pytest.raises(UsageError, match=r"`out`: name the .safetensors file that 2 files become"):
        convert_weights([path, other])
    with pytest.raises(UsageError, match=r"must end in .safetensors"):
        convert_weights([path], tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="tensor 'x' is in another of these files, too"):
        convert_weights([path, other], tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def in_zip(path: Path, pickled: bytes, how: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"a/{name.replace('__', '/')}", data)
    return path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda marker: Runs(os.system, f"touch {marker}"), "names 'posix.system'"),
        (lambda marker: {"x": Runs(eval, f"open({str(marker)!r}, 'w')")}, "names '__builtin__.eval'"),
        (lambda marker: nn.Linear(2, 2), "names 'torch.nn.modules.linear.Linear'"),
        (lambda marker: [torch.ones(1)], "no dict of tensors"),
        (lambda marker: {}, "no tensor is in it"),
        (lambda marker: {"x": torch.ones(1), "epoch": 3}, "'epoch' is no tensor"),
        (lambda marker: {"x": torch.ones(1).expand(1000)}, "a tensor reaches beyond its storage"),
        (
            lambda marker: dict.fromkeys(map(str, range(2000)), torch.zeros(1000)),
            "more than 4 times its size",
        ),
        (lambda marker: {"x": torch.ones(2, dtype=torch.complex64)}, "ComplexFloatStorage"),
    ],
)
@FORMATS
def test_nothing_is_run_and_all_but_tensors_is_refused(
    tmp_path: Path, is_zip: bool, value: Callable[[Path], Any], message: str
) -> None:
    marker = tmp_path / "was-here"
    path = save(tmp_path / "a.pth", value(marker), is_zip)
    with pytest.raises(CheckpointError, match=rf"a.pth: not convertible: .*{message}"):
        convert_weights([str(path)])
    assert not marker.exists()
    assert not (tmp_path / "a.safetensors").exists()


def test_files_that_are_damaged_or_no_weights_are_refused(tmp_path: Path) -> None:
    good = {is_zip: save(tmp_path / "good.pth", TENSORS, is_zip).read_bytes() for is_zip in (True, False)}
    pickled = pickle.dumps({}, 2)
    cases = {
        "cut.pth": good[True][:-200],
        "cut-old.pth": good[False][:-9],
        "text.pth": b"not weights",
        "empty.pth": b"",
        "table.pth": pickled,
        "foreign.pth": in_zip(tmp_path / "x", pickled, zipfile.ZIP_DEFLATED).read_bytes(),
        "big-endian.pth": in_zip(tmp_path / "x", pickled, byteorder=b"big").read_bytes(),
    }
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name}: not convertible: "):
            convert_weights([str(path)])
        assert not path.with_suffix(".safetensors").exists()


def test_numbers_that_are_fewer_than_the_pickle_says_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"x": torch.ones(100)})
    with zipfile.ZipFile(path) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("data.pkl"))
        pickled = archive.read(name)
    short = in_zip(tmp_path / "b.pth", pickled, data__0=b"\0" * 399)
    with pytest.raises(CheckpointError, match="the numbers of tensor 'x' are not as many as it says"):
        convert_weights([str(short)])


def steps(*more: bytes) -> bytes:
    """A pickle of a dict with the tensor "x", whose storage has one number, and the steps of its shape."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\1tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + b"".join(more) + b"\x89}tR"
    return b"\x80\2}X\1\0\0\0x" + tensor + b"s."


def test_numbers_that_no_shape_has_are_refused_at_once(tmp_path: Path) -> None:
    """Their product would take hours."""
    huge = b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x7f" * (1 << 20)  # LONG4, of 1 MiB
    for shape in (b"(" + huge * 8 + b"t", b"(J\xff\xff\xff\xfft"):
        path = in_zip(tmp_path / "a.pth", steps(shape, shape), data__0=b"\0" * 4)
        with pytest.raises(CheckpointError, match="a tensor has a shape that means nothing"):
            convert_weights([str(path)])
    path = in_zip(tmp_path / "b.pth", steps(b"(K\1t", b"(K\1t"), data__0=b"\0" * 4)
    assert convert_weights([str(path)])[1] == 1


def test_names_of_storages_are_not_spelt_out(tmp_path: Path) -> None:
    """A list of old files; the text of a tuple that holds itself twice, fifty times over, has no end."""
    old = save(tmp_path / "a.pth", {"x": torch.ones(1)}, is_zip=False).read_bytes()
    end = len(old) - 12  # a length and a number are behind the last pickle, the list of keys
    start = old.rindex(b"\x80\2]q", 0, end)
    nested = b"\x80\2]N" + b"q\0h\0\x86" * 50 + b"a."  # PUT, GET, TUPLE2
    (tmp_path / "a.pth").write_bytes(old[:start] + nested + old[end:])
    with pytest.raises(CheckpointError, match="a storage is not as large as its tensors say"):
        convert_weights([str(tmp_path / "a.pth")])


@FORMATS
def test_changed_bytes_never_do_anything_but_refuse(tmp_path: Path, is_zip: bool) -> None:
    good = save(tmp_path / "a.pth", {"x": torch.ones(5, 3), "y": torch.arange(4)}, is_zip).read_bytes()
    path, out, random, refused = tmp_path / "b.pth", tmp_path / "b.safetensors", Random(0), 0
    for _ in range(400):
        data = bytearray(good[: random.randrange(len(good))] if random.random() < 0.1 else good)
        for _ in range(random.choice((1, 1, 2, 8))):
            data[random.randrange(max(1, len(data) - 1))] = random.randrange(256)
        path.write_bytes(data)
        out.unlink(missing_ok=True)
        try:
            convert_weights([str(path)])
        except CheckpointError:
            assert not out.exists()
            refused += 1
        else:
            load_file(out)
    assert 100 < refused < 400


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    data = bytearray(save(tmp_path / "a.pth", {"x": torch.ones(1)}).read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = 0
        while (start := data.find(signature, start)) >= 0:
            data[start + flags] |= 1
            start += 4
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="encrypted"):
        convert_weights([str(tmp_path / "a.pth")])
