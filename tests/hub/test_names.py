"""Names become files: the catalogue's and the Hub's names, revisions, released parts, tokenizers by name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fourm.errors import CheckpointError, MissingError, UsageError
from fourm.hub.cache import Commit, find_parti, text_tokenizer_path, write_pin
from fourm.hub.catalogue import CATALOGUE
from fourm.hub.files import (
    check_tokenizers,
    codebook_size,
    find_model,
    find_sr,
    require_text_tokenizer,
    resolve_tokenizer,
    tokenizer_advice,
    with_parts,
)
from fourm.hub.header import read_header
from fourm.modalities.registry import RELEASED
from tests.headers import fine, seven, twenty_one
from tests.hubcache import COMMIT, put, put_folder, put_whole, write_tokenizer
from tests.texts import prompts_in

OTHER = "f" * 40
SEVEN_ID, RGB_ID = CATALOGUE["4m-7-b"].hub_id, CATALOGUE["tok-rgb"].hub_id
CODES = {"tok-rgb": 16384, "tok-clip": 8192, "tok-depth": 8192, "tok-normal": 8192, "tok-semseg": 4096}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub"


@pytest.fixture
def model(cache: Path, tmp_path: Path) -> Path:
    """The snapshot of a cached 4M-7 B."""
    return put_folder(cache, SEVEN_ID, seven(tmp_path / "seven"))


def put_tokenizer(cache: Path, tmp_path: Path, name: str, codes: int = 0) -> Path:
    return put_folder(cache, CATALOGUE[name].hub_id, write_tokenizer(tmp_path / name, codes or CODES[name]))


def put_text_tokenizer() -> Path:
    path = text_tokenizer_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


@pytest.mark.parametrize("name", ["4m-7-b", "4M-7-B", SEVEN_ID, SEVEN_ID.lower(), f"4m-7-b@{COMMIT}"])
def test_a_released_model_is_found_by_each_of_its_names(model: Path, name: str) -> None:
    files = find_model(name)
    assert (files.name, files.revision) == (SEVEN_ID, COMMIT)
    assert files.weights == model / "model.safetensors"
    assert "tok_rgb@224" in files.writes
    assert (files.tokenizers, files.text_tokenizer, files.prompts) == ({}, None, None)


def test_a_snapshot_folder_is_a_model_too(model: Path, cache: Path, tmp_path: Path) -> None:
    rgb = put_tokenizer(cache, tmp_path, "tok-rgb")
    files = find_model(model)
    assert files.name == str(model)
    assert files.tokenizers == {"rgb": rgb}


def test_a_revision_is_the_named_one_the_recorded_one_or_the_branch(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    put_folder(cache, SEVEN_ID, tmp_path / "seven", OTHER, ref="v2")
    assert find_model("4m-7-b").revision == COMMIT
    assert find_model("4m-7-b@v2").revision == find_model(f"{SEVEN_ID}@{OTHER}").revision == OTHER
    write_pin(Commit(SEVEN_ID, OTHER, ()))
    assert find_model("4m-7-b").revision == OTHER
    assert find_model("4m-7-b@main").revision == COMMIT
    write_pin(Commit(SEVEN_ID, "a" * 40, ()))
    with pytest.raises(MissingError, match="`fourm download 4m-7-b` fetches it"):
        find_model("4m-7-b")  # another revision in its place would be a silent mistake
    with pytest.raises(MissingError, match="`fourm download 4m-7-b --revision v9` fetches it"):
        find_model("4m-7-b@v9")


@pytest.mark.parametrize("name", ["4m-7-b@../../x", "4m-7-b@", "a/b@x//y", "4m-7-b@/etc"])
def test_a_revision_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="after @ comes"):
        find_model(name)


def test_a_branch_that_points_out_of_the_cache_is_not_followed(model: Path) -> None:
    (model.parent.parent / "refs" / "main").write_text("../../elsewhere")
    with pytest.raises(MissingError):
        find_model("4m-7-b")


def test_a_snapshot_without_config_json_has_its_configuration_in_the_header(
    cache: Path, tmp_path: Path, unpacked: Path
) -> None:
    put(cache, "me/mine", {"model.safetensors": unpacked / "swiglu_qknorm" / "model.safetensors"})
    files = find_model("me/mine")
    assert (files.name, files.revision) == ("me/mine", COMMIT)
    assert files.config["act_layer"] == "SiLU"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("4m-7-b", "`fourm download 4m-7-b` fetches it"),
        (SEVEN_ID, "`fourm download 4m-7-b` fetches it"),
        ("me/mine", "`fourm download me/mine` fetches it"),
        ("EPFL-VILAB/4M-7_B_CC12", f"did you mean '{SEVEN_ID}'?"),
    ],
)
def test_a_model_that_is_not_here_names_what_helps(cache: Path, name: str, said: str) -> None:
    with pytest.raises(MissingError) as caught:
        find_model(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


MISSPELT = [
    ("4m-7-bb", "did you mean '4m-7-b'?"),
    ("4m-7-bb@main", "did you mean '4m-7-b'?"),
    ("dmeo", "did you mean 'demo'?"),
    ("zzzz", "`fourm models` lists all names"),
    ("/no/such/folder", "no such file or folder"),
    ("./gone.safetensors", "no such file or folder"),
    ("a b", "no such file or folder"),
]


@pytest.mark.parametrize(("name", "said"), MISSPELT)
def test_a_name_that_nothing_can_have_is_wrong_usage_everywhere(
    cache: Path, tiny: Path, run: Callable[..., tuple[int, str, str]], name: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        find_model(name)
    assert said in str(caught.value)
    commands = [("generate", "a", "--model", name), ("generate", "a", "--model", tiny, "--sr-model", name),
                ("schedule", "validate", "--model", name), ("tokenize", ".", "--model", name),
                ("models", "show", name), ("download", name, "--dry-run")]  # fmt: skip
    for words in commands:
        code, out, err = run(*words)
        assert (code, out, len(err.splitlines())) == (2, "", 1), (words, err)


def test_an_empty_name_is_not_the_folder_of_the_process(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    for find in (find_model, resolve_tokenizer):
        with pytest.raises(UsageError, match="is empty"):
            find("")


EMPTY = [
    ("generate", "a", "--model", ""),
    ("generate", "a", "--sr-model", ""),
    ("schedule", "show", "--model", ""),
    ("schedule", "show", "--sr-model", ""),
    ("schedule", "validate", "--model", ""),
    ("schedule", "validate", "--sr-model", ""),
    ("sr", ".", "--model", ""),
    ("retrieve", ".", "--among", ".", "--model", ""),
    ("retrieve", ".", "--among", ".", "--by", ""),
    ("tokenize", ".", "--model", ""),
    ("models", "show", ""),
    ("download", "4m-7-b", "--dry-run", "--revision", ""),
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_model_name_is_not_taken_for_the_default(
    cache: Path, run: Callable[..., tuple[int, str, str]], words: tuple[str, ...]
) -> None:
    code, out, err = run(*words)  # of a variable that is not set: it chose the embedded model without a word
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert "is empty" in err or "'' are no features" in err or "after @ comes" in err


@pytest.mark.parametrize("name", ["4m-7-b", SEVEN_ID, "me/mine", "4m-7-b@v9"])
def test_a_known_name_that_is_not_here_is_exit_code_4_everywhere(
    cache: Path, tiny: Path, run: Callable[..., tuple[int, str, str]], name: str
) -> None:
    commands = [("generate", "a", "--model", name), ("generate", "a", "--model", tiny, "--sr-model", name)]
    for words in commands:
        code, out, err = run(*words)
        assert (code, out) == (4, "")
        assert "`fourm download" in err


@pytest.mark.parametrize("name", ["tok-rgb", RGB_ID, "text-tokenizer", "parti-prompts"])
def test_what_is_no_model_is_refused_as_one(cache: Path, name: str) -> None:
    with pytest.raises(UsageError, match="where a model is needed"):
        find_model(name)


def test_a_tokenizers_folder_is_refused_as_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a tokenizer, where a model is needed"):
        find_model(write_tokenizer(tmp_path / "t", 8))


def test_released_parts_are_found_in_the_cache(model: Path, cache: Path, tmp_path: Path) -> None:
    text = put_text_tokenizer()
    folders = {CATALOGUE[name].key: put_tokenizer(cache, tmp_path, name) for name in CODES}
    put_folder(cache, CATALOGUE["tok-edge"].hub_id, write_tokenizer(tmp_path / "edge", 8192))
    files = find_model("4m-7-b")
    assert files.tokenizers == folders  # those of its modalities alone
    assert files.text_tokenizer == text
    check_tokenizers(files, files.rows)
    assert "edges" in find_model(twenty_one(tmp_path / "twenty_one")).tokenizers


def test_a_folders_own_parts_win(cache: Path, tmp_path: Path) -> None:
    put_text_tokenizer()
    clip = put_tokenizer(cache, tmp_path, "tok-clip")
    put_tokenizer(cache, tmp_path, "tok-rgb")
    folder = seven(tmp_path / "mine")
    own = write_tokenizer(folder / "tokenizers" / "rgb", 16384)
    (folder / "text_tokenizer.json").write_text("{}")
    files = find_model(folder)
    assert files.tokenizers == {"rgb": own, "clip": clip}
    assert files.text_tokenizer == folder / "text_tokenizer.json"


def test_a_model_of_other_modalities_gets_no_released_part(cache: Path, tmp_path: Path) -> None:
    put_text_tokenizer()
    put_tokenizer(cache, tmp_path, "tok-rgb")
    put_tokenizer(cache, tmp_path, "tok-clip")
    folder = seven(tmp_path / "mine")
    (folder / "modalities.yaml").write_text(
        "- {name: tok_rgb@224, vocab_size: 64}\n- {name: caption, vocab_size: 64}\n"
        "- {name: det, vocab_size: 64}\n"
    )
    files = find_model(folder)
    assert set(files.tokenizers) == {"clip"}
    assert files.text_tokenizer is None
    with pytest.raises(UsageError, match="comes without one"):
        require_text_tokenizer(files, "caption")
    assert "lay it into" in tokenizer_advice(files, "rgb")
    assert find_model("demo").tokenizers["rgb"].parent.parent.name == "demo"


def test_a_text_tokenizer_that_was_named_and_is_not_here_can_be_fetched(cache: Path, tmp_path: Path) -> None:
    folder = seven(tmp_path / "mine")
    (folder / "modalities.yaml").write_text(
        "- {name: caption, vocab_size: 64}\n- {name: det, vocab_size: 64}\n"
    )
    files = with_parts(find_model(folder), {}, "text-tokenizer")
    with pytest.raises(MissingError, match="`fourm download text-tokenizer` fetches it"):
        require_text_tokenizer(files, "caption")


def test_a_row_that_takes_the_folder_of_a_released_one_is_refused(tmp_path: Path) -> None:
    folder = seven(tmp_path / "mine")
    (folder / "modalities.yaml").write_text("- {name: tok_depth@224, folder: rgb}\n")
    with pytest.raises(
        CheckpointError, match=r"mine: the values of tok_(rgb|depth)@224 would lie in the folder 'rgb'"
    ):
        find_model(folder)


def test_a_tokenizer_without_weights_in_the_cache_is_not_used(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    snapshot = put_tokenizer(cache, tmp_path, "tok-rgb")
    Path(os.path.realpath(snapshot / "model.safetensors")).unlink()
    files = find_model("4m-7-b")
    assert "rgb" not in files.tokenizers
    assert tokenizer_advice(files, "rgb") == "`fourm download tok-rgb` fetches it"


def test_the_super_resolution_model_is_found_by_name(model: Path, cache: Path, tmp_path: Path) -> None:
    base = find_model("4m-7-b")
    with pytest.raises(MissingError, match="`sr_model`"):
        find_sr(base)
    with pytest.raises(MissingError, match="`fourm download 4m-7-sr-l` fetches it"):
        find_sr(base, "4m-7-sr-l")
    put_folder(cache, CATALOGUE["4m-7-sr-l"].hub_id, fine(tmp_path / "fine"))
    put_tokenizer(cache, tmp_path, "tok-clip")
    mine = write_tokenizer(tmp_path / "mine", 16384)
    sr = find_sr(with_parts(base, {"rgb": str(mine)}), "4m-7-sr-l")
    assert sr.name == CATALOGUE["4m-7-sr-l"].hub_id
    assert "tok_rgb@448" in sr.writes
    assert sr.tokenizers["rgb"] == mine  # what made the base model's tokens
    assert "clip" in sr.tokenizers


def test_super_resolution_takes_no_other_tokenizer_for_a_named_one_that_is_not_here(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    put_folder(cache, CATALOGUE["4m-7-sr-l"].hub_id, fine(tmp_path / "fine"))
    put_tokenizer(cache, tmp_path, "tok-rgb")
    base = with_parts(find_model("4m-7-b"), {"rgb": "me/other"})
    sr = find_sr(base, "4m-7-sr-l")
    assert "rgb" not in sr.tokenizers
    assert tokenizer_advice(sr, "rgb") == "`fourm download me/other` fetches it"


def test_super_resolution_keeps_the_parts_that_it_brings_itself(cache: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "base", tmp_path / "base" / "sr"]
    seven(folders[0]), fine(folders[1])
    own = [write_tokenizer(folder / "tokenizers" / "rgb", 16384) for folder in folders]
    clip = write_tokenizer(folders[0] / "tokenizers" / "clip", 8192)
    for folder in folders:
        (folder / "text_tokenizer.json").write_text("{}")
    base = find_model(folders[0])
    sr = find_sr(base)
    assert base.tokenizers["rgb"] == own[0]
    assert (sr.tokenizers["rgb"], sr.tokenizers["clip"]) == (own[1], clip)
    assert (base.text_tokenizer, sr.text_tokenizer) == tuple(f / "text_tokenizer.json" for f in folders)
    absent = find_sr(with_parts(base, {"rgb": "me/other"}))
    assert (absent.tokenizers["rgb"], absent.absent) == (own[1], {})


def test_a_run_takes_no_other_part_for_a_named_one_that_is_not_here(
    cache: Path, tiny: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    put_folder(cache, "me/here", tiny / "tokenizers" / "rgb")
    words = ("generate", "a red circle", "--model", tiny, "--targets", "tok_rgb", "--steps", "2", "--quiet")
    (tmp_path / "parts.yaml").write_text("rgb_tok_id: me/other\n")
    (tmp_path / "text.yaml").write_text("text_tok_path: text-tokenizer\n")
    for more, said in ((("--tokenizer", "rgb=me/other"), "me/other"), (("-c", "parts.yaml"), "me/other"),
                       (("-c", "text.yaml"), "text-tokenizer")):  # fmt: skip
        code, out, err = run(*words, *more, "--out", "o")
        assert (code, out) == (4, ""), err
        assert f"`fourm download {said}` fetches it" in err
    assert run(*words, "--tokenizer", "rgb=me/here", "--out", "o")[0] == 0


def test_a_tokenizer_is_found_by_name_id_folder_and_file(cache: Path, tmp_path: Path) -> None:
    snapshot = put_tokenizer(cache, tmp_path, "tok-rgb")
    assert resolve_tokenizer("tok-rgb") == resolve_tokenizer(RGB_ID) == snapshot
    assert resolve_tokenizer(f"tok-rgb@{COMMIT}") == resolve_tokenizer(snapshot) == snapshot
    file = write_tokenizer(tmp_path / "one", 8, header_only=True) / "model.safetensors"
    assert resolve_tokenizer(file) == file
    assert (codebook_size(file), codebook_size(snapshot)) == (8, 16384)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("tok-rgb", MissingError, "`fourm download tok-rgb` fetches it"),
        (RGB_ID, MissingError, "`fourm download tok-rgb` fetches it"),
        ("tok-rbg", UsageError, "did you mean 'tok-rgb'?"),
        ("./gone", UsageError, "no such file or folder"),
        ("./gone.safetensors", UsageError, "no such file or folder"),
        ("4m-7-b", UsageError, "a model, where a tokenizer is needed"),
        ("text-tokenizer", UsageError, "a text tokenizer, where a tokenizer is needed"),
    ],
)
def test_a_tokenizer_that_is_not_here_says_so(
    cache: Path, name: str, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as caught:
        resolve_tokenizer(name)
    assert said in str(caught.value)


def test_a_tokenizer_that_is_named_replaces_the_one_found(model: Path, cache: Path, tmp_path: Path) -> None:
    put_tokenizer(cache, tmp_path, "tok-rgb")
    clip = put_tokenizer(cache, tmp_path, "tok-clip")
    mine = write_tokenizer(tmp_path / "mine", 16384)
    text = tmp_path / "text.json"
    text.write_text("{}")
    files = with_parts(find_model("4m-7-b"), {"rgb": str(mine), "depth": "tok-depth"}, str(text))
    assert files.tokenizers == {"rgb": mine, "clip": clip}
    assert files.absent == {"depth": "tok-depth"}
    assert files.text_tokenizer == text
    # A tokenizer that was named is never replaced silently by the one that happens to be here.
    files = with_parts(files, {"rgb": "me/other", "clip": "me/clip"})
    assert files.tokenizers == {}
    assert tokenizer_advice(files, "rgb") == "`fourm download me/other` fetches it"
    for wrong, said in (("./gone", "no such file or folder"), ("tok-rbg", "did you mean 'tok-rgb'")):
        with pytest.raises(UsageError, match=said):
            with_parts(files, {"clip": wrong})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors in this folder$"):
        with_parts(files, {"clip": str(tmp_path / "empty")})
    assert with_parts(find_model("4m-7-b"), {"rgb": "clip"}).tokenizers == {"rgb": clip, "clip": clip}
    assert with_parts(files, {"rgb": str(mine)}).absent == {"clip": "me/clip", "depth": "tok-depth"}


@pytest.mark.parametrize(
    "name",
    ["text-tokenizer", "./fourm/utils/tokenizer/trained/text_tokenizer_4m_wordpiece_30k.json"],
)
def test_the_released_text_tokenizer_is_found_by_name(model: Path, cache: Path, name: str) -> None:
    assert with_parts(find_model("4m-7-b"), {}, name).text_tokenizer is None
    text = put_text_tokenizer()
    assert with_parts(find_model("4m-7-b"), {}, name).text_tokenizer == text
    with pytest.raises(UsageError, match="`fourm download text-tokenizer` fetches one"):
        with_parts(find_model("4m-7-b"), {}, "gone.json")


@pytest.mark.parametrize(("codes", "few"), [(8192, "only "), (32768, "")])
def test_a_codebook_of_another_size_is_refused_before_anything_is_loaded(
    model: Path, tmp_path: Path, codes: int, few: str
) -> None:
    wrong = write_tokenizer(tmp_path / "wrong", codes)
    files = with_parts(find_model("4m-7-b"), {"rgb": str(wrong)})
    check_tokenizers(files, [RELEASED.get("tok_clip@224"), RELEASED.get("caption")])
    with pytest.raises(CheckpointError) as caught:
        check_tokenizers(files, [RELEASED.get("tok_rgb@224")])
    assert f"tok_rgb@224: 16384 tokens, but its tokenizer has {few}{codes} codes" in str(caught.value)
    assert "the released one is tok-rgb" in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_codebooks_of_the_recorded_tokenizers_are_counted(golden: Path, tmp_path: Path) -> None:
    for path in sorted((golden / "vq" / "manifests").glob("*.json")):
        manifest = json.loads(path.read_text())
        table, end = {}, 0
        for name, info in manifest["state_dict"].items():
            if "quantize." not in name:
                continue
            count = 4
            for side in info["shape"]:
                count *= side
            table[name] = {"dtype": "F32", "shape": info["shape"], "data_offsets": [end, end + count]}
            end += count
        raw = json.dumps(table).encode()
        with (file := tmp_path / "t.safetensors").open("wb") as out:
            out.write(len(raw).to_bytes(8, "little") + raw)
            out.truncate(8 + len(raw) + end)  # a hole: no byte of it is ever read
        assert codebook_size(file) == manifest["config"]["codebook_size"], path.stem


def test_a_broken_link_in_the_cache_names_the_download(model: Path) -> None:
    Path(os.path.realpath(model / "model.safetensors")).unlink()
    with pytest.raises(MissingError) as caught:
        find_model("4m-7-b")
    assert "a link to a file that is gone; `fourm download 4m-7-b` fetches it" in str(caught.value)


def test_a_broken_link_to_the_configuration_is_not_taken_for_none(model: Path) -> None:
    Path(os.path.realpath(model / "config.json")).unlink()
    with pytest.raises(MissingError, match=r"config\.json: a link to a file that is gone"):
        find_model("4m-7-b")


def test_a_snapshot_that_was_fetched_by_halves_names_the_download(cache: Path, tmp_path: Path) -> None:
    put(cache, SEVEN_ID, {"config.json": seven(tmp_path / "seven") / "config.json"})
    with pytest.raises(MissingError, match=r"no model\.safetensors in this folder; `fourm download 4m-7-b`"):
        find_model("4m-7-b")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.pt"])
def test_pickled_weights_are_named_and_never_opened(cache: Path, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)  # whoever opens it waits forever
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"holds {name}, a pickle"):
        find_model(tmp_path)
    with pytest.raises(CheckpointError, match="a pickle"):
        resolve_tokenizer(tmp_path)


def test_a_pickle_or_a_page_under_the_right_name_is_refused(model: Path) -> None:
    for data in (b"PK\x03\x04" + bytes(99), b"<!DOCTYPE html><html>Not found</html>"):
        blob = Path(os.path.realpath(model / "model.safetensors"))
        blob.write_bytes(data)
        (model / "config.json").unlink(missing_ok=True)
        with pytest.raises(CheckpointError) as caught:
            find_model("4m-7-b")
        assert "\n" not in str(caught.value)


PAGES = [
    b"<!DOCTYPE html><html>Not found</html>",
    b"<!doctype HTML PUBLIC '-//W3C//DTD HTML 4.01//EN'>",
    b"\r\n\t <HTML lang=en>" + bytes(4096),
    b"\xef\xbb\xbf<html>",
    b"<?xml version='1.0'?>\n<!-- portal -->\n<!DOCTYPE html SYSTEM 'about:legacy-compat'>",
    b"<head><title>Log in</title>",
    b"<script>location='/login'</script>",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_web_page_in_place_of_a_file_is_told_as_one(model: Path, page: bytes) -> None:
    config, weights = (Path(os.path.realpath(model / name)) for name in ("config.json", "model.safetensors"))
    whole = config.read_bytes()
    config.write_bytes(page)
    with pytest.raises(CheckpointError, match=r"config\.json: not a readable JSON file \(a web page"):
        find_model("4m-7-b")
    config.write_bytes(whole)
    weights.write_bytes(page)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a web page under another name"):
        read_header(find_model("4m-7-b").weights)


def test_a_configuration_that_is_not_json_is_refused(model: Path) -> None:
    Path(os.path.realpath(model / "config.json")).write_text("model: 4M\n")
    with pytest.raises(CheckpointError, match=r"config\.json: not a readable JSON file"):
        find_model("4m-7-b")


def test_a_folder_that_may_not_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    folder = seven(tmp_path / "seven")
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CheckpointError, match="cannot be read \\(Permission denied\\)"):
        find_model(folder)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"a model is a folder or a \.safetensors file"):
        find_model(tmp_path / "x.txt")


def test_the_prompts_are_those_that_were_fetched(cache: Path, golden: Path) -> None:
    with pytest.raises(MissingError, match="`fourm download parti-prompts`"):
        find_parti()
    table = golden / "parti" / "PartiPrompts.tsv"
    put(cache, "nateraw/parti-prompts", {"PartiPrompts.tsv": table}, ref=None, repo_type="dataset")
    write_pin(Commit("nateraw/parti-prompts", COMMIT, (), "dataset"))
    assert len(prompts_in(find_parti())) == 1632


def test_the_variables_of_the_hub_move_the_cache(tmp_path: Path) -> None:
    put_folder(tmp_path / "a" / "hub", SEVEN_ID, seven(tmp_path / "seven"))
    put_folder(tmp_path / "b", SEVEN_ID, tmp_path / "seven", OTHER)
    code = (
        "from huggingface_hub import constants; from fourm.hub.cache import cache_folder\n"
        "from fourm.hub.files import find_model\n"
        "assert str(cache_folder()) == constants.HF_HUB_CACHE\n"
        "print(find_model('4m-7-b').revision)"
    )
    base = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "XDG_"))}
    cases = (("HF_HOME", "a", COMMIT), ("HF_HUB_CACHE", "b", OTHER), ("HUGGINGFACE_HUB_CACHE", "b", OTHER),
             ("HF_HUB_CACHE", "$X/b", OTHER), ("XDG_CACHE_HOME", "xdg", COMMIT))  # fmt: skip
    (tmp_path / "xdg").mkdir()
    (tmp_path / "xdg" / "huggingface").symlink_to(tmp_path / "a")
    for name, value, commit in cases:
        place = value if value[0] == "$" else str(tmp_path / value)
        done = subprocess.run(
            [sys.executable, "-c", code], env={**base, "X": str(tmp_path), name: place},
            cwd=Path(__file__).resolve().parents[2], check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.strip() == commit


def test_a_run_by_name_is_the_run_of_the_folder(
    cache: Path, tiny: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    put_whole(cache, "me/tiny", tiny)
    words = ("generate", "a red circle", "--targets", "tok_rgb", "--steps", "2", "--quiet", "--out")
    assert run(*words, "a", "--model", "me/tiny")[:2] == (0, "a\n")
    assert run(*words, "b", "--model", tiny)[0] == 0
    record = json.loads(Path("a/run.json").read_text())
    assert (record["model"], record["revision"]) == ("me/tiny", COMMIT)
    for name in ("tok_rgb@64/00000/000000.npy", "caption/00000/000000.txt"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_a_run_names_each_part_that_is_not_here(
    model: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    words = ("generate", "a red circle", "--model", "4m-7-b", "--targets", "tok_rgb", "--steps", "2")
    code, out, err = run(*words)
    assert (code, out) == (4, "")
    assert "needs the text tokenizer, which is not here" in err
    assert "`fourm download text-tokenizer` fetches it" in err
    assert len(err.splitlines()) == 1
    code, out, err = run("generate", "--data", "empty", "--num-samples", "1", "--quiet", *words[2:])
    assert (code, out) == (4, "")
    assert "`fourm download tok-rgb` fetches it, --no-decode keeps tokens only" in err
    assert len(err.splitlines()) == 1
    ids = Path("data", "tok_rgb@224", "x", "a.npy")
    ids.parent.mkdir(parents=True)
    np.save(ids, np.zeros(196, np.int16))
    code, _, err = run("generate", "--cond", "tok_rgb", "--data", "data", *words[2:5], "caption")
    assert code == 4
    assert "caption needs the text tokenizer, which is not here" in err
    assert not Path("out").exists()


def test_a_run_refuses_a_tokenizer_that_does_not_fit(
    tiny: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    wrong = write_tokenizer(tmp_path / "wrong", 65)
    code, out, err = run(
        "generate", "a red circle", "--model", tiny, "--targets", "tok_rgb", "--tokenizer", f"rgb={wrong}"
    )
    assert (code, out) == (2, "")
    assert "tok_rgb@64: 64 tokens, but its tokenizer has 65 codes" in err
    assert not Path("out").exists()
