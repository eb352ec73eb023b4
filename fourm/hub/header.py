"""What a checkpoint says of itself, read without torch: config.json, and dtype and shape of every tensor."""

import ast
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fourm.errors import CheckpointError, MissingError, shown
from fourm.files.opening import open_file, read_bytes, with_single_keys
from fourm.modalities.typed import Limits, to_type

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_MAX_HEADER = 100_000_000  # bytes; the limit of the format's own reader
_DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
                "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype that a run can compute in."""

    name: str  # in records and messages
    torch_name: str
    num_bytes: int  # of a number


AUTO = "auto"  # bfloat16 or float32, as the device has it (`networks.precision.choose_dtype`)

# By every name that users may type. Where no device is known, "auto" counts as float32. TF32 is no dtype of
# tensors: NVIDIA GPUs round the factors of float32 products to 10 bits of mantissa.
DTYPES: Mapping[str, Dtype] = {
    AUTO: Dtype(AUTO, "float32", 4),
    **dict.fromkeys(("float32", "fp32"), Dtype("float32", "float32", 4)),
    "tf32": Dtype("tf32", "float32", 4),
    **dict.fromkeys(("bfloat16", "bf16"), Dtype("bfloat16", "bfloat16", 2)),
    **dict.fromkeys(("float16", "fp16"), Dtype("float16", "float16", 2)),
}

# How a transformer's weights are kept: in the dtype of the run, or those that `is_int8` names as int8.
Weights = Literal["full", "int8"]
FULL: Weights = "full"
INT8: Weights = "int8"
WEIGHTS = (FULL, INT8)
_INT8_NAMES = re.compile(r"(?:(?:en|de)coder\.[0-9]+|decoder_embeddings\..*\.to_logits)\.")


def is_int8(name: str, shape: Sequence[int]) -> bool:
    """True for a tensor of a transformer that can be int8: a matrix of its blocks or of its logits."""
    return len(shape) == 2 and _INT8_NAMES.match(name) is not None


class TokenizerPart(Enum):
    """How much of a tokenizer is loaded, by what the names of its unused tensors begin with."""

    WHOLE = ()
    ENCODER = ("decoder.", "post_quant_proj.")  # with the codebook
    DECODER = ("encoder.", "quant_proj.", "cls_emb.")  # with the codebook


# Tensors of a tokenizer: statistics that only training reads, and beginnings of what is float32 in every run:
# the search and what leads to it; all of the encoder where labels are embedded (which a tensor LABELS tells).
TRAINING_BUFFERS = tuple(f"quantize._codebook.{name}" for name in ("initted", "cluster_size", "embed_avg"))
IN_FLOAT32 = ("quant", "encoder.norm_mlp", "encoder.post_mlp")
LABELS, LABELS_IN_FLOAT32 = "cls_emb.weight", ("quant", "encoder.", "cls_emb.")

# What other files begin with, read where the length of the header makes no sense.
_FOREIGN = {
    **dict.fromkeys((b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"), "a pickled PyTorch file"),
    b"\x1f\x8b": "a gzip archive", b"\x89HDF": "an HDF5 file", b"GGUF": "a GGUF file",
    b"version ": "a Git LFS pointer, without the file that it stands for,", b"\x93NUMPY": "a NumPy file",
}  # fmt: skip
_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<(?:!--|\?xml).*?>\s*)*<(?:!doctype\s+html|html|head|body|title|meta|script)\b",
    re.IGNORECASE | re.DOTALL,
)
_PAGE_BYTES = 1 << 10  # of a file, enough to tell that it is a web page
_Count = Annotated[int, Limits(0)]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file, as its header describes it."""

    dtype: str  # "F32", "BF16", ...
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]  # behind the header: its first byte, and the one after its last

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class Header(NamedTuple):
    """What a safetensors file begins with."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]  # in the order of their bytes


def read_header(path: Path) -> Header:
    """The header of a file, read once while the file stays the same; a CheckpointError if it is malformed."""
    try:
        status = path.stat()
        return _read_header(path, status.st_size, status.st_ino, status.st_mtime_ns)
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def is_web_page(start: bytes) -> bool:
    """True if a file that begins so is a web page, as a network that wants a login sends for any file."""
    return _PAGE.match(start[:_PAGE_BYTES]) is not None


def parse_header_config(metadata: Mapping[str, str]) -> dict[str, object]:
    """Header strings as values: JSON or Python literals are parsed, every other string is kept as it is."""
    found: dict[str, object] = dict(metadata)
    for key, text in metadata.items():
        try:
            found[key] = json.loads(text, parse_constant=ast.literal_eval)  # which refuses NaN and Infinity
        except (ValueError, RecursionError):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = ast.literal_eval(text)
                if value is None or isinstance(value, bool | int | float | str | list | dict):
                    found[key] = value
    return found


def config_of(path: Path) -> dict[str, object]:
    """The configuration of a folder, from its config.json or else the header of its weights, or of a file."""
    is_folder, file = path.is_dir(), path / CONFIG_FILE
    if not is_folder or not os.path.lexists(file):
        config = parse_header_config(read_header(path / WEIGHTS_FILE if is_folder else path).metadata)
        if config.keys() <= {"format"}:  # which every library writes
            absent = f"no {CONFIG_FILE} in this folder, and the header of {WEIGHTS_FILE}"
            raise CheckpointError(f"{path}: {absent if is_folder else 'its header'} holds no configuration")
        return config
    try:
        data = read_bytes(file, 1 << 24)
        config = json.loads(data.decode("utf-8-sig"))
    except FileNotFoundError:
        raise MissingError(f"{file}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        what = f"a web page under the name {CONFIG_FILE}" if is_web_page(data) else error
        raise CheckpointError(f"{file}: not a readable JSON file ({what})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: an object of settings was expected, not {type(config).__name__}")
    return config


def diffuses(config: Mapping[str, object]) -> bool:
    """True for a tokenizer that decodes by diffusion: its decoder, or else a noise schedule, says so."""
    decoder = config.get("dec_type")
    if decoder is not None:
        return isinstance(decoder, str) and ("unet_" in decoder or "uvit_" in decoder)
    return "beta_schedule" in config or "num_train_timesteps" in config


@lru_cache(maxsize=64)
def _read_header(path: Path, size: int, inode: int, changed: int) -> Header:
    with open_file(path) as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size >= 8 and length <= min(size - 8, _MAX_HEADER):
            return _parse_header(file.read(length), size - 8 - length, path)
        start += file.read(_PAGE_BYTES)
    foreign = next((what for mark, what in _FOREIGN.items() if start.startswith(mark)), "")
    if foreign := "a web page" if is_web_page(start) else foreign:
        what = f"{foreign} under another name; only safetensors files are loaded"
    elif length > _MAX_HEADER and size - 8 > _MAX_HEADER:
        what = f"not a safetensors file (it claims a header of {length:,} bytes)"
    else:
        what = f"truncated, or not a safetensors file ({size:,} bytes, too few for its header)"
    raise CheckpointError(f"{path}: {what}")


def _parse_header(raw: bytes, num_bytes: int, path: Path) -> Header:
    """The header's JSON, checked against the number of bytes that follow it."""
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=with_single_keys)
        table = to_type(Mapping[str, Any], found, "it")
        metadata = to_type(Mapping[str, str], table.pop("__metadata__", {}), "metadata")
        tensors = to_type(Mapping[str, TensorInfo], table, "tensors", strict=False)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file (its header is not valid: {error})") from None
    in_order = sorted(tensors.items(), key=lambda one: (one[1].data_offsets, one[0]))
    end = 0
    for name, tensor in in_order:
        where, dtype, (start, stop) = f"{path}: tensor '{name}'", tensor.dtype, tensor.data_offsets
        if dtype not in _DTYPE_BYTES:
            raise CheckpointError(f"{where} is stored as {shown(dtype)}; F64, F32, F16 and BF16 are read")
        if start != end:
            raise CheckpointError(f"{where} begins at byte {start:,} instead of {end:,}")
        if stop - start != tensor.num_elements * _DTYPE_BYTES[dtype]:
            shape = list(tensor.shape)
            raise CheckpointError(f"{where} of shape {shape} does not fill its {stop - start:,} bytes")
        end = stop
    if end != num_bytes:
        what = "truncated" if num_bytes < end else "damaged"
        raise CheckpointError(f"{path}: {what} (its tensors need {end:,} bytes, {num_bytes:,} are there)")
    return Header(metadata, dict(in_order))
