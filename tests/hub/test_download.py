"""Downloads against a Hub on loopback: what is in the cache is whole, checked and recorded."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import huggingface_hub
import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from fourm.errors import FourMError, MissingError, VerificationError
from fourm.hub import download as download_module
from fourm.hub import remote
from fourm.hub.cache import (
    Commit,
    HubFile,
    cache_folder,
    find_cached,
    find_parti,
    find_pin,
    find_snapshot,
    pins_path,
    repository_folder,
    text_tokenizer_path,
)
from fourm.hub.catalogue import CATALOGUE
from fourm.hub.download import check_room, fetch, verify_cached
from fourm.hub.remote import Address, Advanced, Client
from tests.fetching import FETCHED, FILE, FILES, ID, NAME, OTHER, WEIGHTS, Watch, partial, whole_files
from tests.hub_server import HEAD_OF_MAIN, Hub, environment
from tests.texts import prompts_in

ROOT = Path(__file__).resolve().parents[2]
TEXT = "text_tokenizer_4m_wordpiece_30k.json"


def test_a_download_is_found_in_the_cache_by_the_hubs_own_functions(hub: Hub, watch: Watch) -> None:
    (folder,) = watch.get(NAME)
    assert whole_files() == FETCHED
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {n: FILES[n] for n in FETCHED}
    found = try_to_load_from_cache(ID, FILE, cache_dir=cache_folder())
    assert found == str(folder / FILE)
    scan = scan_cache_dir(cache_folder())
    assert not scan.warnings
    (revision,) = next(iter(scan.repos)).revisions
    assert revision.commit_hash == HEAD_OF_MAIN
    assert revision.refs == {"main"}
    assert huggingface_hub.hf_hub_download(ID, FILE, cache_dir=cache_folder(), local_files_only=True) == found
    entry = find_cached(CATALOGUE[NAME])
    assert entry == (folder / FILE, HEAD_OF_MAIN)


def test_nothing_that_would_be_unpickled_is_even_asked_for(hub: Hub, watch: Watch) -> None:
    watch.get(NAME)
    assert not [path for _, path in hub.asked if path.endswith((".bin", ".pt", ".py", "attributes"))]
    assert set(hub.sent) == FETCHED


def test_the_record_has_commit_sizes_and_checksums(hub: Hub, watch: Watch) -> None:
    watch.get(NAME)
    pin = find_pin(ID)
    assert pin is not None
    assert pin.revision == HEAD_OF_MAIN
    assert {f.name: (f.size, f.checksum) for f in pin.files} == {
        name: (len(FILES[name]), hashlib.sha256(FILES[name]).hexdigest()) for name in FETCHED
    }


def test_what_is_here_and_on_record_needs_no_network(hub: Hub, watch: Watch) -> None:
    watch.get(NAME)
    hub.asked.clear()
    (job,) = watch.plan(NAME)
    assert job.to_fetch == 0
    assert job.licence is None
    watch.get(NAME)
    assert not hub.asked


def test_what_another_program_fetched_is_checked_and_not_fetched_again(hub: Hub, watch: Watch) -> None:
    huggingface_hub.hf_hub_download(ID, FILE, cache_dir=cache_folder())
    before = hub.sent[FILE]
    (job,) = watch.plan(NAME)
    assert job.to_fetch == sum(len(FILES[n]) for n in FETCHED if n != FILE)
    watch.get(NAME)
    assert hub.sent[FILE] == before
    assert Advanced(FILE, len(WEIGHTS), len(WEIGHTS), "present") in watch.events


def test_terms_are_shown_only_for_what_is_fetched(hub: Hub, watch: Watch) -> None:
    for name in FETCHED:
        huggingface_hub.hf_hub_download(ID, name, cache_dir=cache_folder())
    (job,) = watch.plan(NAME)
    assert (job.to_fetch, job.licence) == (0, None)
    shutil.rmtree(cache_folder())
    (job,) = watch.plan(NAME)
    assert job.licence is CATALOGUE[NAME].licence


def test_a_damaged_file_of_another_program_is_replaced(hub: Hub, watch: Watch) -> None:
    path = Path(huggingface_hub.hf_hub_download(ID, FILE, cache_dir=cache_folder())).resolve()
    path.write_bytes(WEIGHTS[:-1] + b"?" if WEIGHTS[-1:] != b"?" else WEIGHTS[:-1] + b"!")
    watch.get(NAME)
    assert whole_files() == FETCHED
    assert path.read_bytes() == WEIGHTS


def test_a_snapshot_of_plain_files_is_accepted(hub: Hub, watch: Watch) -> None:
    (folder,) = watch.get(NAME)
    for path in folder.iterdir():  # as on file systems without links
        content = path.resolve()
        path.unlink()
        content.rename(path)
    pins_path().unlink()
    before = hub.sent.total()
    watch.get(NAME)
    assert hub.sent.total() == before
    (folder / FILE).write_bytes(b"x" * len(WEIGHTS))
    pins_path().unlink()
    watch.get(NAME)
    assert (folder / FILE).read_bytes() == WEIGHTS


BROKEN = [
    ("corrupt", "does not have the checksum on record"),
    ("more", r"more than the 1,500,000 bytes on record|4 bytes are offered"),
    ("size", "1,499,997 bytes are offered, but 1,500,000 are on record"),
    ("page", "a web page, perhaps the login page of this network, is sent in place of this file"),
    ("page-in-pieces", "a web page, perhaps the login page of this network, is sent in place of this file"),
]


@pytest.mark.parametrize(("kind", "sentence"), BROKEN)
def test_nothing_broken_is_in_the_cache_as_if_it_were_whole(
    hub: Hub, watch: Watch, kind: str, sentence: str
) -> None:
    hub.fail(FILE, kind)
    with pytest.raises(VerificationError, match=sentence) as told:
        watch.get(NAME)
    assert told.value.exit_code == 5
    assert FILE in str(told.value)
    assert "\n" not in str(told.value)
    assert FILE not in whole_files()
    assert find_pin(ID) is None
    watch.get(NAME)
    assert whole_files() == FETCHED


def test_a_small_file_is_checked_as_git_does(hub: Hub, watch: Watch) -> None:
    hub.fail("config.json", "corrupt")
    with pytest.raises(VerificationError, match=r"config\.json"):
        watch.get(NAME)
    assert "config.json" not in whole_files()


def test_a_file_that_never_fits_its_record_never_gets_in(hub: Hub, watch: Watch) -> None:
    hub.etags[FILE] = "0" * 64
    for _ in range(2):
        with pytest.raises(VerificationError):
            watch.get(NAME)
        assert FILE not in whole_files()
        assert not list(repository_folder(ID).rglob(f"*{remote.UNFINISHED}"))


def test_the_recorded_commit_is_used_until_another_is_named(hub: Hub, watch: Watch) -> None:
    watch.get(NAME)
    hub.put(ID, {**FILES, "config.json": b'{"dim": 9}'}, commit=OTHER)
    assert watch.get(NAME)[0].name == HEAD_OF_MAIN
    before = hub.sent[FILE]
    (folder,) = watch.get(NAME, revision="main")
    assert folder.name == OTHER
    assert (folder / "config.json").read_bytes() == b'{"dim": 9}'
    assert hub.sent[FILE] == before  # the same content under another commit
    assert watch.get(NAME) == [folder]
    entry = find_cached(CATALOGUE[NAME])
    assert entry is not None
    assert entry[1] == OTHER
    assert watch.get(f"{NAME}@{HEAD_OF_MAIN}")[0].name == HEAD_OF_MAIN
    pin = find_pin(ID)
    assert pin is not None
    assert pin.revision == HEAD_OF_MAIN


def test_a_file_that_was_deleted_comes_back_at_the_recorded_commit(hub: Hub, watch: Watch) -> None:
    (folder,) = watch.get(NAME)
    hub.put(ID, {FILE: b"new"}, commit=OTHER)
    (folder / "config.json").unlink()
    assert watch.get(NAME) == [folder]
    assert whole_files() == FETCHED


@pytest.mark.parametrize("damage", ["missing", "elsewhere", "cut"])
def test_a_snapshot_that_does_not_show_its_whole_blob_is_mended(
    hub: Hub, watch: Watch, tmp_path: Path, damage: str
) -> None:
    (folder,) = watch.get(NAME)
    path, other = folder / FILE, tmp_path / "other"
    other.write_bytes(b"precious")
    path.unlink()
    if damage == "elsewhere":
        path.symlink_to(other)
    elif damage == "cut":
        path.write_bytes(WEIGHTS[:9])
    watch.get(NAME)
    assert path.read_bytes() == WEIGHTS
    assert other.read_bytes() == b"precious"


def test_a_complete_download_writes_nothing(hub: Hub, watch: Watch) -> None:
    """A cache that is shared by many may be one that they can only read."""
    watch.get(NAME)
    before = {path: path.lstat().st_mtime_ns for path in pins_path().parents[1].rglob("*")}
    watch.get(NAME)
    assert {path: path.lstat().st_mtime_ns for path in pins_path().parents[1].rglob("*")} == before


def test_a_branch_is_found_by_its_name(hub: Hub, watch: Watch) -> None:
    hub.put(ID, FILES, commit=OTHER, ref="pr/1")
    (folder,) = watch.get(f"{ID}@pr/1")
    found = find_snapshot(ID, "pr/1")
    assert found is not None
    assert found == folder


def test_verify_finds_and_removes_what_is_damaged(hub: Hub, watch: Watch) -> None:
    (folder,) = watch.get(NAME)
    hub.asked.clear()
    assert [one.problem for one in verify_cached(None, watch.client)] == [""] * 4
    blob = (folder / FILE).resolve()
    blob.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    (folder / "README.md").unlink()
    found = {one.file: one.problem for one in verify_cached([ID], watch.client)}
    assert found == {"config.json": "", FILE: "damaged", "README.md": "missing", "LICENSE_WEIGHTS": ""}
    assert not blob.exists()
    assert not hub.asked
    watch.get(NAME)
    assert [one.problem for one in verify_cached([ID], watch.client)] == [""] * 4


def test_verify_refuses_a_name_that_is_not_on_record(hub: Hub, watch: Watch) -> None:
    assert verify_cached(None, watch.client) == ()
    with pytest.raises(MissingError, match=r"4m-7-b: not on record.*`fourm download 4m-7-b`"):
        verify_cached([ID], watch.client)


def test_a_cache_that_was_emptied_is_no_damage(hub: Hub, watch: Watch) -> None:
    watch.get(NAME)
    shutil.rmtree(cache_folder())
    assert verify_cached(None, watch.client) == ()
    assert {one.problem for one in verify_cached([ID], watch.client)} == {"missing"}


@pytest.fixture
def text(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A text tokenizer on both its homes, and its checksum."""
    content = b'{"version": "1.0"}' * 9000
    file = HubFile(text_tokenizer_path().name, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(download_module, "TEXT", Commit("", "", (file,)))
    commit = "cda590faa3b9f022c28537193d3e1650527646a3"
    path = f"apple/ml-4m/{commit}/fourm/utils/tokenizer/trained/{text_tokenizer_path().name}"
    hub.github[path] = content
    hub.put("spaces/EPFL-VILAB/4M", {"app.py": b"", f"deep/in/it/{text_tokenizer_path().name}": content})
    return content


def test_the_text_tokenizer_comes_from_its_public_home(hub: Hub, watch: Watch, text: bytes) -> None:
    assert watch.get("text-tokenizer") == [text_tokenizer_path()]
    assert text_tokenizer_path().read_bytes() == text
    assert not [path for _, path in hub.asked if "/api/" in path]
    assert [one.problem for one in verify_cached(None, watch.client)] == [""]
    assert watch.get("text-tokenizer")
    assert hub.sent[TEXT] == len(text)


@pytest.mark.parametrize("kind", ["404", "500", "corrupt", "size", "more", "page"])
def test_the_text_tokenizer_has_a_second_home(hub: Hub, watch: Watch, text: bytes, kind: str) -> None:
    hub.fail(TEXT, kind, times=5 if kind == "500" else 1)
    watch.get("text-tokenizer")
    assert text_tokenizer_path().read_bytes() == text


@pytest.mark.parametrize("kind", ["404", "corrupt", "size"])
def test_a_wrong_text_tokenizer_is_never_kept(hub: Hub, watch: Watch, text: bytes, kind: str) -> None:
    hub.fail(TEXT, kind, times=99)
    hub.fail(f"deep/in/it/{TEXT}", kind, times=99)
    with pytest.raises((MissingError, VerificationError)) as told:
        watch.get("text-tokenizer")
    assert told.value.exit_code == (4 if kind == "404" else 5)
    assert not text_tokenizer_path().exists()
    hub.faults.clear()
    watch.get("text-tokenizer")
    text_tokenizer_path().write_bytes(b"broken")
    assert [one.problem for one in verify_cached([""], watch.client)] == ["damaged"]
    watch.get("text-tokenizer")
    assert text_tokenizer_path().read_bytes() == text


def test_the_released_text_tokenizer_has_the_checksum(hub: Hub, watch: Watch, golden: Path) -> None:
    content = (golden / "text_tokenizer" / TEXT).read_bytes()
    path = f"apple/ml-4m/cda590faa3b9f022c28537193d3e1650527646a3/fourm/utils/tokenizer/trained/{TEXT}"
    hub.github[path] = content
    watch.get("text-tokenizer")
    assert text_tokenizer_path().read_bytes() == content


def test_the_prompts_of_the_fetched_table_are_all_read(hub: Hub, watch: Watch, golden: Path) -> None:
    table = (golden / "parti" / "PartiPrompts.tsv").read_bytes()
    hub.put("datasets/nateraw/parti-prompts", {"PartiPrompts.tsv": table, "README.md": b"about", "x.py": b""})
    (path,) = watch.get("parti-prompts")
    assert path == find_parti()
    prompts = prompts_in(find_parti())
    lines = [line.rstrip("\r") for line in table.decode().split("\n")[1:] if line.strip()]
    assert len(prompts) == len(lines) == 1632
    assert prompts == [line.split("\t")[0].strip() for line in lines]


def test_a_prompt_set_without_its_table_is_said(hub: Hub, watch: Watch) -> None:
    hub.put("datasets/nateraw/parti-prompts", {"README.md": b"about"})
    with pytest.raises(MissingError, match=r"has no file PartiPrompts\.tsv"):
        watch.get("parti-prompts")


def test_parts_of_a_model_folder_are_fetched_with_it(hub: Hub, watch: Watch) -> None:
    parts = {
        "config.json", FILE, "modalities.yaml", "text_tokenizer.json", "prompts.txt", "sr/config.json",
        f"sr/{FILE}", "tokenizers/rgb/config.json", f"tokenizers/rgb/{FILE}", "tokenizers/depth.safetensors",
    }  # fmt: skip
    others = {"tokenizers/rgb/pytorch_model.bin", "train.py", "samples/a.png", "runs/config.json"}
    hub.put("my/model", {name: name.encode() for name in parts | others})
    (folder,) = watch.get("my/model")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == parts
    assert all((folder / name).read_bytes() == name.encode() for name in parts)


def test_a_full_disk_is_said_and_what_came_is_kept(
    hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = watch.plan(NAME)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(FourMError, match=r"1,500,020 bytes are to be fetched, but only 5 are free") as told:
        check_room([job])
    assert told.value.exit_code == 1
    for free in (job.to_fetch - 1, job.to_fetch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, free))  # type: ignore[attr-defined]  # noqa: B023
        if free < job.to_fetch:
            with pytest.raises(FourMError, match="are to be fetched"):
                check_room([job])
        else:
            check_room([job])
    whole = remote.receive

    def full(client: Client, wanted: HubFile, address: Address, file: BinaryIO) -> None:
        if wanted.name == FILE:
            file.write(WEIGHTS[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(client, wanted, address, file)

    monkeypatch.setattr(remote, "receive", full)
    with pytest.raises(FourMError, match=r"no space is left on the disk of .*the same command goes on"):
        fetch(job, watch.client)
    assert partial().stat().st_size == 1000
    monkeypatch.setattr(remote, "receive", whole)
    watch.get(NAME)
    assert hub.ranges[-1] == "bytes=1000-"


def test_a_cache_that_cannot_be_written_is_said(hub: Hub, watch: Watch) -> None:
    (job,) = watch.plan(NAME)
    cache_folder().parent.mkdir(parents=True)
    cache_folder().write_text("a file")
    with pytest.raises(FourMError, match="cannot be written") as told:
        fetch(job, watch.client)
    assert "\n" not in str(told.value)


def test_two_processes_fetch_a_file_once(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_second = 3_000_000
    command = [sys.executable, "-m", "fourm_cli", "download", NAME, "--quiet"]
    env = {**environment(hub, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    told = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert told[0] == told[1]
    assert hub.sent[FILE] == len(WEIGHTS)
    assert whole_files() == FETCHED


def test_without_file_locks_two_processes_fetch_whole_files(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_second = 500_000  # both must still be fetching when the slower one has started
    code = (
        "import errno, fcntl\ndef flock(*args): raise OSError(errno.ENOLCK, 'No locks available')\n"
        "fcntl.flock = flock\nfrom fourm_cli.app import main\nmain()"
    )
    command = [sys.executable, "-c", code, "download", NAME]
    env = {**environment(hub, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in "ab"
    ]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [err.count("no file locks") for _, err in said] == [1, 1]
    assert whole_files() == FETCHED


def test_waiting_for_another_process_is_said(hub: Hub, watch: Watch) -> None:
    import fcntl

    partial().parent.mkdir(parents=True)
    held = partial().open("ab")
    fcntl.flock(held, fcntl.LOCK_EX)
    client = replace(watch.client, sleep=lambda seconds: held.close())
    (job,) = watch.plan(NAME)
    fetch(job, client)
    assert watch.reasons == ["another process fetches it"]
    assert whole_files() == FETCHED


def test_a_plan_as_json_has_sizes_and_writes_nothing(hub: Hub, watch: Watch) -> None:
    (job,) = watch.plan(NAME)
    data = json.loads(json.dumps(job.to_json()))
    assert data["bytes"] == data["to_fetch"] == sum(len(FILES[name]) for name in FETCHED)
    assert {file["name"] for file in data["files"]} == FETCHED
    assert [file["bytes"] for file in data["files"]] == sorted(file["bytes"] for file in data["files"])
    assert data["revision"] == HEAD_OF_MAIN
    assert job.licence is not None
    assert not os.path.exists(cache_folder())
