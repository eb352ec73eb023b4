"""Converts weights that PyTorch has pickled (.pth, .pt, .bin, .ckpt) to safetensors. Nothing in them is run.

Of their pickles only what makes tensors is simulated, by the reader of `inputs/convert`. Tensors are copied
one at a time, so that a file may be larger than the memory.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fourm.errors import CheckpointError, MissingError, UsageError, VerificationError, printable
from fourm.files.opening import open_file
from fourm.files.writing import write_alone
from fourm.hub.cache import converted_path, fetched_paths
from fourm.hub.catalogue import find_entry
from fourm.hub.digests import sha256_of
from fourm.inputs.convert import Rules, simulate

SUFFIX = ".safetensors"
MAX_PICKLE = 1 << 26  # bytes: names, shapes and settings; numbers are stored beside it
# Of storages, by class: the name in safetensors, and bytes of a number.
_STORAGES = {
    "DoubleStorage": ("F64", 8), "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2), "LongStorage": ("I64", 8), "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1), "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}  # fmt: skip
_TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_SETTINGS = ("argparse Namespace", "collections defaultdict")  # of training; made, and left empty
_ALLOWED = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_parameter", "torch Size", *_TENSORS, *_SETTINGS}
    | {f"torch {name}" for name in _STORAGES}
)
_WHERE = ("state_dict", "model")  # keys of the weights among what a training program keeps
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # what files of PyTorch before 1.6 begin with
_HEAD = 8  # bytes of the length of a safetensors header, and of a storage in files before 1.6
_SHARED = 4  # times the size of a file that its tensors may come to, where they share numbers


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers that tensors are made of."""

    key: str
    dtype: str  # as safetensors names it
    num_bytes: int  # of a number
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A part of a storage."""

    storage: _Storage
    start: int  # these three count numbers
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return math.prod(self.shape) * self.storage.num_bytes

    @property
    def span(self) -> int:
        """Numbers of the storage from its first to its last, both included."""
        steps = ((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return 1 + sum(steps) if self.size else 0


class _Ignored:
    """Stands for settings of training, which are not converted."""


Read = Callable[[str, int, int], bytes]  # bytes of a storage: its key, the first of them, how many


@dataclass(frozen=True, slots=True)
class _File:
    """The tensors of a file, and how to read their numbers."""

    path: Path
    tensors: Mapping[str, _Tensor]
    read: Read

    def bytes_of(self, tensor: _Tensor) -> bytes:
        """The numbers of a tensor in the order of its axes."""
        width = tensor.storage.num_bytes
        with _refusing(self.path):
            data = self.read(tensor.storage.key, tensor.start * width, tensor.span * width)
            if len(data) != tensor.span * width:
                raise ValueError("truncated")
        if not data:
            return b""
        numbers, strides = np.frombuffer(data, f"u{width}"), [stride * width for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False).tobytes()


def convert_weights(
    names: Sequence[str], out: Path | None = None, overwrite: bool = False
) -> tuple[Path, int]:
    """Write the tensors of pickled files into one safetensors file; returns its path and how many there are.

    names: paths, or one name of weights of the catalogue, of which the fetched files are taken.
    out: by default where such weights are looked for, or beside the file. A file that is there stays and is a
    UsageError, unless `overwrite`. MissingError: a file does not exist; CheckpointError: it holds anything
    but tensors, or two files hold tensors of the same name; VerificationError: a file of the catalogue has
    another checksum, as one that was copied here by hand may have.
    """
    entry = find_entry(names[0]) if len(names) == 1 and not os.path.exists(names[0]) else None
    if entry is not None and not entry.sources:
        entry = None
    paths = fetched_paths(entry) if entry else tuple(map(Path, names))
    if out is None and len(paths) > 1 and not entry:
        raise UsageError(f"`out`: name the {SUFFIX} file that {len(paths)} files become")
    target = out or (converted_path(entry) if entry else paths[0].with_suffix(SUFFIX))
    if target.suffix != SUFFIX:
        raise UsageError(f"`out={target}`: must end in {SUFFIX}")
    for path in paths:
        if not os.path.isfile(path):
            advice = f"; `fourm download {names[0]}` fetches it" if entry else ""
            raise MissingError(f"{path}: no such file{advice}")
    for path, source in zip(paths, entry.sources if entry else (), strict=False):
        if not sha256_of(path).startswith(source.sha256):
            what = f"its sha256 does not begin with {source.sha256[:8]}, so it is damaged or another file"
            raise VerificationError(f"{path}: {what}")
    if os.path.lexists(target) and not overwrite:
        raise UsageError(f"`out={target}`: is there already; `overwrite=True` replaces it")
    with ExitStack() as opened:
        found = dict[str, tuple[_File, _Tensor]]()
        for path in paths:
            file = opened.enter_context(_opened(path))
            if both := sorted(found.keys() & file.tensors.keys()):
                raise CheckpointError(f"{path}: tensor '{both[0]}' is in another of these files, too")
            found |= {name: (file, tensor) for name, tensor in file.tensors.items()}
        write_alone(target, partial(_write, found=found))
    return target, len(found)


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    """What a file holds. CheckpointError: it is no file of tensors."""
    with ExitStack() as stack:
        with _refusing(path):
            stream, size = stack.enter_context(open_file(path)), path.stat().st_size
            tensors, read = (_read_zip if zipfile.is_zipfile(stream) else _read_old)(stream, size)
            spans = [max(one.size, one.span * one.storage.num_bytes) for one in tensors.values()]
            if sum(spans) > _SHARED * size:
                raise ValueError(f"its tensors share numbers, and have more than {_SHARED} times its size")
        yield _File(path, tensors, read)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Errors of a file that is not as it should be become a CheckpointError that names it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    # Of zipfile: RuntimeError (encrypted), NotImplementedError, EOFError.
    except (ValueError, TypeError, LookupError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: not convertible: {printable(str(error))}") from None


def _read_zip(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], Read]:
    """A file of PyTorch 1.6 and later: a zip archive with the pickle and a member for each storage."""
    archive = zipfile.ZipFile(file)
    members = {info.filename: info for info in archive.infolist()}
    tops = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise ValueError("a zip archive, but not one of PyTorch")
    top = tops[0]
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise ValueError("its members are compressed, which PyTorch never does")
    if f"{top}byteorder" in members and archive.read(f"{top}byteorder").strip() != b"little":
        raise ValueError("its numbers are stored with the highest byte first")
    if members[f"{top}data.pkl"].file_size > MAX_PICKLE:
        raise ValueError(f"its pickle has more than {MAX_PICKLE >> 20} MiB")
    tensors = _tensors_of(simulate(archive.read(f"{top}data.pkl"), _rules({})))
    for name, tensor in tensors.items():
        member = members.get(f"{top}data/{tensor.storage.key}")
        if member is None or member.file_size != tensor.storage.count * tensor.storage.num_bytes:
            raise ValueError(f"the numbers of tensor '{name}' are not as many as it says")

    def read(key: str, start: int, count: int) -> bytes:
        with archive.open(f"{top}data/{key}") as member:
            member.seek(start)
            return member.read(count)

    return tensors, read


def _read_old(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], Read]:
    """A file of PyTorch before 1.6: five pickles one after the other, then the storages."""
    file.seek(0)
    head, seen, starts = io.BytesIO(file.read(MAX_PICKLE)), dict[str, _Storage](), dict[str, int]()
    rules = _rules(seen)
    try:
        is_old = simulate(head, rules) == _MAGIC
    except ValueError:
        is_old = False
    if not is_old:
        raise ValueError("no pickled file of PyTorch")
    version, system = simulate(head, rules), simulate(head, rules)
    if version != _VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("of an unknown version of PyTorch, or of a machine with another order of bytes")
    tensors, keys, place = _tensors_of(simulate(head, rules)), simulate(head, rules), head.tell()
    for key in keys if isinstance(keys, list) else []:
        file.seek(place)
        count = int.from_bytes(file.read(_HEAD), "little", signed=True)
        storage = seen.get(key) if isinstance(key, str) else None
        if storage is None or count != storage.count:
            raise ValueError("a storage is not as large as its tensors say")
        starts[storage.key] = place + _HEAD
        place += _HEAD + count * storage.num_bytes
    if place > size or seen.keys() - starts.keys():
        raise ValueError("truncated")

    def read(key: str, start: int, count: int) -> bytes:
        file.seek(starts[key] + start)
        return file.read(count)

    return tensors, read


def _rules(seen: dict[str, _Storage]) -> Rules:
    """What pickles of PyTorch may do. seen: gets the storages that they refer to, by key."""

    def refer(reference: object) -> object:
        match reference:
            case ("storage", str(kind), str(key), str(), int(count), *view):
                kind = kind.removeprefix("torch ")
                # A view of another storage, the last entry in files before 1.6, is written by no release.
                if kind in _STORAGES and count >= 0 and view in ([], [None]) and "/" not in key:
                    return seen.setdefault(key, _Storage(key, *_STORAGES[kind], count))
        raise ValueError("its pickle refers to something that is no storage of numbers")

    return Rules(_ALLOWED, _call, _set_state, refer, (str, int))


def _call(name: object, arguments: object) -> object:
    """The simulated result of a call. ValueError: it makes no tensor and no dict."""
    match name, arguments:
        case str(), (_Storage() as storage, start, tuple(shape), tuple(strides), *_) if name in _TENSORS:
            return _tensor(storage, start, shape, strides)
        case "torch._utils _rebuild_parameter", (_Tensor() as tensor, *_):
            return tensor
        case "torch Size", (tuple(shape),):
            return shape
        case "collections OrderedDict", ():
            return {}
        case "collections OrderedDict", (list(pairs),) if all(map(_is_item, pairs)):
            return dict(pairs)
        case str(), _ if name in _SETTINGS:
            return _Ignored()
    raise ValueError("its pickle makes something that is no tensor")


def _is_item(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _tensor(storage: _Storage, start: object, shape: Sequence[object], strides: Sequence[object]) -> _Tensor:
    whole = [n for n in (start, *shape, *strides) if type(n) is int and 0 <= n < 1 << 62]
    if len(whole) != 2 * len(shape) + 1 or len(strides) != len(shape) or len(shape) > 16:
        raise ValueError("a tensor has a shape that means nothing")
    tensor = _Tensor(storage, whole[0], tuple(whole[1 : len(shape) + 1]), tuple(whole[len(shape) + 1 :]))
    if tensor.start + tensor.span > storage.count or tensor.size > storage.count * storage.num_bytes:
        raise ValueError("a tensor reaches beyond its storage")
    return tensor


def _set_state(made: object, state: object) -> None:
    """What `__setstate__` does: attributes of dicts and of settings, of which none is kept."""
    if not isinstance(made, dict | _Ignored):
        raise ValueError("its pickle changes something that is no tensor")


def _tensors_of(value: object) -> dict[str, _Tensor]:
    """The tensors of a dict, or of the weights that a training program keeps. ValueError: none, or more."""
    if not isinstance(value, dict):
        raise ValueError("no dict of tensors")
    weights = next((value[key] for key in _WHERE if isinstance(value.get(key), dict)), value)
    tensors = dict[str, _Tensor]()
    for name, one in weights.items():
        if not isinstance(one, _Tensor) or not isinstance(name, str):
            raise ValueError(f"'{name}' is no tensor")
        if not name.isprintable() or name == "__metadata__":
            raise ValueError("a tensor has a name that safetensors cannot have")
        tensors[name] = one
    if not tensors:
        raise ValueError("no tensor is in it")
    return tensors


def _write(path: Path, found: Mapping[str, tuple[_File, _Tensor]]) -> None:
    """A safetensors file: the length of its header, the header as JSON, the numbers."""
    # Wide numbers first, so that all are aligned.
    names = sorted(found, key=lambda name: (-found[name][1].storage.num_bytes, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = found[name][1]
        start, end = end, end + tensor.size
        header[name] = {"dtype": tensor.storage.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEAD)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(_HEAD, "little") + text)
        for file, tensor in map(found.__getitem__, names):
            stream.write(file.bytes_of(tensor))
