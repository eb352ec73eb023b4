"""Names and files become models; everything malformed is one sentence that says where."""

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fourm.errors import CheckpointError, MissingError, UsageError
from fourm.hub.files import find_model, find_sr
from fourm.hub.header import parse_header_config, read_header

CONFIG = {"domains_in": ["caption", "rgb@224"], "domains_out": ["caption", "tok_rgb@224", "rgb@224"]}


def safetensors(path: Path, table: object, data: bytes = b"") -> Path:
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def tensor(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    safetensors(tmp_path / "model.safetensors", {"a": tensor("F32", [2], 0, 8)}, bytes(8))
    return tmp_path


def test_the_header_strings_of_the_reference_are_read_and_the_listed_defects_mended(golden: Path) -> None:
    case = json.loads((golden / "fm" / "sampling" / "header_metadata.json").read_text())
    got = parse_header_config(case["raw"])
    mended = {"x_eps": 1e-06, "x_yes": "yes", "x_contains": "NoneSuch", "x_long": [1] * 4000}
    assert got == {**case["parsed"], **mended}


def test_the_word_none_inside_another_word_is_not_a_value() -> None:
    assert parse_header_config({"a": "NoneSuch", "b": "['NoneSuch', None]"}) == {
        "a": "NoneSuch",
        "b": ["NoneSuch", None],
    }


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text("ab'\"\\ ,", max_size=5), st.lists))
def test_a_python_list_survives_being_written_into_a_header(value: object) -> None:
    assert parse_header_config({"x": repr([value])}) == {"x": [value]}


def test_every_recorded_checkpoint_header_is_read(unpacked: Path) -> None:
    for folder in sorted(unpacked.iterdir()):
        metadata, tensors = read_header(folder / "model.safetensors")
        assert tensors["mask_token"].shape[:2] == (1, 1)
        config = folder / "config.json"
        names = json.loads(config.read_text()) if config.exists() else parse_header_config(metadata)
        assert isinstance(names["domains_in"], list)


def test_a_file_with_its_configuration_in_the_header_is_a_model(unpacked: Path) -> None:
    files = find_model(unpacked / "swiglu_qknorm" / "model.safetensors")
    assert "rgb@224" in files.reads
    assert "rgb@224" not in files.writes
    assert files.config["act_layer"] == "SiLU"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(b""), "truncated"),
        (lambda p: p.write_bytes(p.read_bytes()[:20]), "truncated"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated (its tensors need 8 bytes, 7 are there)"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "damaged"),
        (lambda p: p.write_bytes(pickle.dumps({"model": list(range(100))})), "pickled PyTorch file"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100)), "pickled PyTorch file"),
        (lambda p: p.write_bytes((2**62).to_bytes(8, "little") + bytes(50)), "too few for its header"),
        (lambda p: safetensors(p, b"{not json"), "header is not valid"),
        (lambda p: safetensors(p, b"\xff\xfe{}"), "header is not valid"),
        (lambda p: safetensors(p, [1]), "expected a mapping"),
        (lambda p: safetensors(p, {"__metadata__": {"a": 1}}), "metadata.a is 1, expected text"),
        (lambda p: safetensors(p, {"a": [1]}), "tensors.a is [1], expected a mapping"),
        (lambda p: safetensors(p, {"a": tensor("F99", [1], 0, 4)}, bytes(4)), "F99"),
        (
            lambda p: safetensors(p, {"a": tensor("F32", [-1], 0, 4)}, bytes(4)),
            "tensors.a.shape[0] is -1, expected a whole number",
        ),
        (lambda p: safetensors(p, {"a": tensor("F32", [2], 0, 4)}, bytes(4)), "does not fill"),
        (lambda p: safetensors(p, {x: tensor("F32", [1], 0, 4) for x in "ab"}, bytes(4)), "begins at byte 0"),
        (lambda p: safetensors(p, b'{"a": {}, "a": {}}'), "twice"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(
    folder: Path, damage: Callable[[Path], object], said: str
) -> None:
    path = folder / "model.safetensors"
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_is_read_once_until_the_file_changes(folder: Path) -> None:
    path = folder / "model.safetensors"
    header = read_header(path)
    assert read_header(path) is header
    safetensors(path, {"b": tensor("F32", [3], 0, 12)}, bytes(12))
    assert list(read_header(path).tensors) == ["b"]
    path.unlink()
    with pytest.raises(MissingError):
        read_header(path)


@given(st.binary(max_size=60), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_never_more_than_a_checkpoint_error(
    tmp_path: Path, data: bytes, framed: bool
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data if framed else data)
    with suppress(CheckpointError):  # `{}` in a frame is a file without tensors
        read_header(path)


def test_a_folder_is_a_model_with_its_parts(folder: Path) -> None:
    (folder / "text_tokenizer.json").write_text("{}")
    (folder / "tokenizers" / "rgb").mkdir(parents=True)
    (folder / "tokenizers" / "depth.safetensors").write_bytes(b"")
    (folder / "modalities.yaml").write_text(
        "- {name: tok_rgb@64, grid: [8, 8], patch_size: 8, image_size: 64}\n"
    )
    files = find_model(folder)
    assert files.reads == ("caption", "rgb@224")
    assert files.writes == ("caption", "tok_rgb@224")
    assert set(files.tokenizers) == {"rgb", "depth"}
    assert files.text_tokenizer == folder / "text_tokenizer.json"
    assert files.prompts is None
    assert files.registry.get("tok_rgb@64").max_tokens == 64


def test_the_global_modalities_take_their_grid_from_the_models_image_size(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "image_size": 448}))
    row = find_model(folder).registry.get("tok_dinov2_global")
    assert (row.grid, row.max_tokens) == ((8, 8), 64)


@pytest.mark.parametrize("size", ["224", 1.5, None, True, 0, -448, [224, 224]])
def test_a_picture_size_that_is_none_is_refused(folder: Path, size: object) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "image_size": size}))
    with pytest.raises(CheckpointError, match=r"'image_size' .* must be a whole number above 0"):
        find_model(folder)


def test_what_is_no_tokenizer_in_the_folder_of_tokenizers_is_passed_over(folder: Path) -> None:
    (folder / "tokenizers").mkdir()
    (folder / "tokenizers" / "notes.txt").write_text("x")
    (folder / "tokenizers" / "rgb").mkdir()
    assert set(find_model(folder).tokenizers) == {"rgb"}


def test_only_the_modalities_of_a_released_model_are_known_without_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    files = find_model("4m-7-b", needs_weights=False)
    assert "tok_rgb@224" in files.writes
    assert (files.name, files.revision) == ("EPFL-VILAB/4M-7_B_CC12M", "")
    for name, kind in (("me/mine", MissingError), ("tok-rgb", UsageError), ("4m-7-bb", UsageError)):
        with pytest.raises(kind):
            find_model(name, needs_weights=False)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "not a readable JSON file"),
        ("[]", "an object of settings"),
        ("{}", "'domains_in'"),
        ('{"domains_in": ["captoin"], "domains_out": []}', "did you mean 'caption'?"),
        ('{"domains_in": ["tok_zzz"], "domains_out": []}', "add its row to modalities.yaml"),
        ('{"domains_in": [], "domains_out": []}', "reads and writes no modality"),
    ],
)
def test_a_wrong_configuration_is_refused(folder: Path, config: str, said: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError) as caught:
        find_model(folder)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../missing.safetensors", "no/such/folder/here", "./gone", "/gone/model.safetensors"]
)
def test_a_path_that_does_not_exist_is_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        find_model(name)


def test_the_super_resolution_model_lies_beside_the_base_model(folder: Path) -> None:
    with pytest.raises(MissingError):
        find_sr(find_model(folder))
    (folder / "tokenizers" / "rgb").mkdir(parents=True)
    (folder / "sr").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "sr" / name).write_bytes((folder / name).read_bytes())
    assert set(find_sr(find_model(folder)).tokenizers) == {"rgb"}


def test_weights_alone_need_a_header_that_describes_the_model(tmp_path: Path) -> None:
    path = tmp_path / "alone.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=f"^{path}: its header holds no model configuration"):
        find_model(path)
