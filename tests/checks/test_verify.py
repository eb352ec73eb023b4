"""`verify`: whatever happens to one file of a folder is found, and nothing where nothing happened."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fourm.checks.findings import Finding, Verdict
from fourm.checks.verify import verify_folder
from fourm.data.layout import Key, Sample, samples_of_prompts
from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.inputs.world import World
from fourm.output.processes import PROCESSES
from fourm.output.record import RUN, SAMPLES, SR_RUN
from fourm.output.samples import keys_of, load_run, open_runs, samples_for
from fourm.results.events import Saved, Stepped
from fourm.runs.pipeline import run
from fourm.schedule.chain import TargetSpec, make_chain

PROMPTS = ["a red circle", "a blue square on a white background", "the green triangle"]
RGB = TargetSpec("tok_rgb@64", 64, "roar", 4)
PLACE = {
    "folder": "a",
    "suffix": ".npy",
    "shared": False,
    "modality": "",
    "form": "ids",
    "is_condition": False,
}
LENGTHS = (251, 221, 220, 217)  # of names in bytes, the first two too long
DEPTH = TargetSpec("tok_depth@64", 64, "roar", 3)


def request(tiny: Path, out: Path, **changes: object) -> Request:
    chain = make_chain([RGB], ["caption"])
    return replace(
        Request(find_model(tiny), chain, samples_of_prompts(PROMPTS), out, device="cpu"), **changes
    )


def super_resolution(tiny: Path, out: Path, **changes: object) -> Request:
    """A run that goes on from the one in `out`, whose results lie beside it."""
    base = open_runs(out)[0]
    samples = samples_for(base, base.samples(), {"tok_rgb@64": ("tok_rgb@64", "ids")})
    chain = make_chain([DEPTH], ["tok_rgb@64"])
    basis = Request(find_model(tiny), chain, samples, out, base.record.num_variations, device="cpu")
    return replace(basis, stage="sr", is_beside=True, origin=base.record, **changes)


def pictures(root: Path) -> list[Sample]:
    """Three pictures with names of all sorts, and a file that is none."""
    samples = []
    for name, colour in {"a b/Zürich": "red", "a b/-v0": "blue", "c/d/x.y": "green", "c/bad": ""}.items():
        path = root / "rgb" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), colour).save(path) if colour else path.write_bytes(b"no picture")
        samples.append(Sample(Key(*name.rsplit("/", 1)), files={"rgb@64": path}))
    return samples


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind that runs leave behind."""
    root = tmp_path_factory.mktemp("runs")
    list(run(request(tiny, root / "varied", num_variations=2, preview=2)))
    list(run(request(tiny, root / "tokens", decode=False)))
    list(run(request(tiny, root / "again", preview=1, num_variations=3)))
    list(run(request(tiny, root / "again", overwrite=True, seed=5)))
    data = pictures(root / "data")
    chain = make_chain([DEPTH, TargetSpec("caption", 16, "autoregressive", 1)], ["rgb@64"])
    list(run(request(tiny, root / "failed", samples=data, chain=chain, num_variations=2)))
    list(run(request(tiny, root / "beside", num_variations=2)))
    list(run(super_resolution(tiny, root / "beside")))
    one = replace(request(tiny, root / "one"), num_variations=3, variation=1)
    list(run(one))
    return {path.name: path for path in root.iterdir() if path.name != "data"}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def list_of(root: Path) -> Path:
    """The checksums of the only process of a run."""
    (path,) = (root / PROCESSES).glob("*.sha256")
    return path


def kinds(verdict: Verdict) -> set[tuple[str, str]]:
    return {(finding.kind, finding.file) for finding in verdict.findings}


def is_of_sample(path: Path) -> bool:
    folders = (PROCESSES, *(place.folder for place in SAMPLES.values()))
    return path.name not in (RUN, SR_RUN, "failures.jsonl") and path.parent.name not in folders


def files_of(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def test_untouched_folders_are_as_their_runs_left_them(folders: dict[str, Path]) -> None:
    verdicts = {name: verify_folder(path) for name, path in folders.items()}
    assert {name: (v.findings, v.notes) for name, v in verdicts.items()} == dict.fromkeys(folders, ((), ()))
    assert {name: (v.samples, v.failed) for name, v in verdicts.items()} == {
        "varied": (3, 0), "tokens": (3, 0), "again": (3, 0), "failed": (3, 2), "beside": (3, 0),
        "one": (3, 0),
    }  # fmt: skip
    for name, path in folders.items():
        assert verdicts[name].files == len([p for p in files_of(path) if is_of_sample(p)])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_happens_to_one_file_is_found(folders: dict[str, Path], data: st.DataObject) -> None:
    source = folders[data.draw(st.sampled_from(sorted(folders)))]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(shutil.copytree(source, Path(scratch) / "out"))
        path = data.draw(st.sampled_from(files_of(root)))
        content = path.read_bytes()
        has_checksum = (
            is_of_sample(path) or path.suffix == ".sha256" or path.parent.name.startswith("samples")
        )
        ways = ["delete", "add", *(["extend"] if has_checksum else []), *(["cut"] if content else [])]
        does = data.draw(st.sampled_from([*ways, *(["flip"] if has_checksum and content else [])]))
        if does == "delete":
            path.unlink()
        elif does == "cut":  # the end of a line is no loss for records
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - (1 if has_checksum else 3)))])
        elif does == "flip":
            at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        elif does == "extend":
            path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=9)))
        else:
            path = path.with_name(data.draw(st.sampled_from(["", "x"])) + path.name + "~")
            path.write_bytes(content)
        found = verify_folder(root)
        assert not found.ok
        name = path.relative_to(root).as_posix()
        if has_checksum:
            assert name in {finding.file for finding in found.findings}


@pytest.mark.parametrize("folder", ["varied", "tokens", "failed", "beside"])
def test_every_file_of_a_folder_is_missed_when_it_is_deleted(
    copy: Callable[[str], Path], folder: str
) -> None:
    root = copy(folder)
    for path in files_of(root):
        content = path.read_bytes()
        path.unlink()
        assert not verify_folder(root).ok, path
        path.write_bytes(content)
    assert verify_folder(root).ok


@pytest.mark.parametrize(
    ("file", "content", "kind", "says"),
    [
        ("rgb/00000/000001-v1.png", b"", "truncated", "is empty"),
        ("rgb/00000/000001-v1.png", 50, "truncated", "ends before the picture does"),
        ("rgb/00000/000001-v1.png", -1, "truncated", "ends before the picture does"),
        ("rgb/00000/000001-v1.png", b"GIF89a" * 9, "altered", "is not a PNG picture"),
        ("tok_rgb@64/00000/000001-v1.npy", 9, "truncated", "ends within its header"),
        ("tok_rgb@64/00000/000001-v1.npy", 200, "truncated", "has 72 bytes of numbers, where its header"),
        ("tok_rgb@64/00000/000001-v1.npy", b"\x93NUMPY\x01\x00\x04\x00{()}", "altered", "no header"),
        ("caption/00000/000001.txt", b"a red c", "altered", "its checksum is not the one"),
        ("caption/00000/000001.txt", "Zü".encode()[:-1], "truncated", "is not text in UTF-8"),
    ],
)
def test_a_file_that_is_cut_off_is_told_from_one_that_was_exchanged(
    copy: Callable[[str], Path], file: str, content: bytes | int, kind: str, says: str
) -> None:
    root = copy("varied")
    before = (root / file).read_bytes()
    (root / file).write_bytes(before[:content] if isinstance(content, int) else content)
    (found,) = verify_folder(root).findings
    assert (found.kind, found.file) == (kind, file)
    assert says in found.detail


def test_a_valid_file_of_another_sample_is_altered(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    shutil.copy(root / "tok_rgb@64/00000/000000.npy", root / "tok_rgb@64/00000/000001.npy")
    assert kinds(verify_folder(root)) == {("altered", "tok_rgb@64/00000/000001.npy")}


@pytest.mark.parametrize(
    "file",
    [
        "notes.txt", "rgb/x.png", "rgb/00000/000000-v0.jpg", "rgb/00000/000000.png",
        "rgb/00000/000000-v2.png", "rgb/00000/000000-v00.png", "tok_rgb@64/00000/000007-v0.npy",
        "caption/00000/000009.txt", "rgb/.hidden", "preview/x.png",
        "preview/tok_rgb@64/00000/000000-v0.png", "other/a/b.png",
        "preview/tok_rgb@64/00001/000000-v0-step001.png", "rgb/00000/Zürich\n\x1b[2J.png",
    ],
)  # fmt: skip
def test_a_file_that_no_run_wrote_is_foreign(copy: Callable[[str], Path], file: str) -> None:
    root = copy("varied")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(b"x")
    expected = "other" if file.startswith("other") else file
    assert kinds(verify_folder(root)) == {("foreign", expected)}


def test_a_foreign_file_whose_name_is_not_utf8_is_named(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    with open(os.fsencode(root / "caption/00000") + b"/\xff\xfe.txt", "wb") as file:
        file.write(b"x")
    (found,) = verify_folder(root).findings
    assert (found.kind, os.fsencode(found.file)) == ("foreign", b"caption/00000/\xff\xfe.txt")


def test_a_complete_sample_of_another_run_is_foreign(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    for path in files_of(root):
        if path.name.startswith("000000."):
            shutil.copy(path, path.with_name(f"strange{path.suffix}"))
    assert kinds(verify_folder(root)) == {
        ("foreign", "caption/00000/strange.txt"),
        ("foreign", "tok_rgb@64/00000/strange.npy"),
    }


def test_pictures_made_of_a_run_and_leftovers_are_no_mistakes(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    for file in ("plots/contact.png", ".partial/0123abcd-0123456789ab-0.npy"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(b"")
    verdict = verify_folder(root)
    assert verdict.ok
    assert [(note.kind, note.file) for note in verdict.notes] == [("unfinished", ".partial")]


def test_links_that_lead_out_are_not_followed(copy: Callable[[str], Path], tmp_path: Path) -> None:
    root = copy("varied")
    inside, outside = root / "rgb/00000/000000-v0.png", root / "rgb/00000/000000-v1.png"
    shutil.move(outside, tmp_path / "elsewhere.png")
    outside.symlink_to(tmp_path / "elsewhere.png")
    shutil.move(root / "preview", tmp_path / "preview")
    (root / "preview").symlink_to(tmp_path / "preview")
    (root / "tok_rgb@64/00000/loop").symlink_to(root)
    verdict = verify_folder(root)
    assert kinds(verdict) == {
        ("foreign", "rgb/00000/000000-v1.png"), ("foreign", "preview"), ("foreign", "tok_rgb@64/00000/loop"),
    }  # fmt: skip
    assert all("link" in finding.detail for finding in verdict.findings)
    root = copy("tokens")
    (root / "plots").mkdir()
    inside = root / "tok_rgb@64/00000/000000.npy"
    shutil.move(inside, root / "plots/kept.npy")
    inside.symlink_to("../../plots/kept.npy")
    assert verify_folder(root).ok


def test_what_cannot_be_read_is_one_finding(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    path = root / "tok_rgb@64/00000/000001.npy"
    path.unlink()
    os.mkfifo(path)
    (root / "caption/00000/000001.txt").unlink()
    (root / "caption/00000/000001.txt").symlink_to("gone")
    verdict = verify_folder(root)
    assert kinds(verdict) == {
        ("unreadable", "tok_rgb@64/00000/000001.npy"), ("unreadable", "caption/00000/000001.txt"),
    }  # fmt: skip
    assert "a pipe" in verdict.findings[1].detail


def stop_after(tiny: Path, out: Path, count: int, **changes: object) -> None:
    """A run that is killed before the files of its last sample are listed; nothing is tidied up."""
    events, saved = run(request(tiny, out, batch_size=1, **changes)), 0
    for event in events:
        saved += isinstance(event, Saved)
        if saved == count:
            break
    running = {path: path.read_bytes() for path in (out / PROCESSES).iterdir()}
    events.close()  # a kill would not have let it note its end
    last = b"/%06d" % (count - 1)
    for path, data in running.items():
        lines = (
            re.findall(rb"#.*\n.*\n", data) if path.suffix == ".sha256" else []
        )  # a comment and a line each
        kept = [line for line in lines if last not in line or b"  preview/" in line]
        path.write_bytes(b"".join(kept) if lines else data)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_killed_run_lacks_samples_until_it_is_resumed(tiny: Path, tmp_path: Path, count: int) -> None:
    out = tmp_path / "out"
    stop_after(tiny, out, count, preview=2)
    verdict = verify_folder(out)
    if count < 3:
        (found,) = verdict.findings
        assert (found.kind, found.file) == ("missing", RUN)
        assert found.detail == f"{3 - count} of 3 results were not made; `resume=True` makes them"
    else:
        assert verdict.ok
    (note,) = verdict.notes  # the last sample was killed between its files and their lines
    assert (note.kind, note.file) == ("unlisted", PROCESSES)
    list(run(request(tiny, out, preview=2, resume=True)))
    verdict = verify_folder(out)
    assert (verdict.findings, verdict.notes, verdict.samples) == ((), (), 3)


def test_of_a_killed_run_a_file_without_checksum_is_checked_by_its_format(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_after(tiny, out, 3)
    path = out / "rgb/00000/000002.png"
    path.write_bytes(path.read_bytes()[:-20])
    assert kinds(verify_folder(out)) == {("truncated", "rgb/00000/000002.png")}


def test_a_sample_that_was_half_written_is_begun_not_damaged(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_after(tiny, out, 2)
    (out / "rgb/00000/000001.png").unlink()
    (found,) = verify_folder(out).findings
    assert found.detail == "2 of 3 results were not made (1 of them partly); `resume=True` makes them"


def test_an_interrupted_run_is_not_complete(tiny: Path, tmp_path: Path) -> None:
    """As after a signal: the process had the time to tidy up."""
    events = run(request(tiny, tmp_path / "out", batch_size=2, preview=1))
    for event in events:
        if isinstance(event, Stepped) and event.keys == ("00000/000002",) and event.step == 2:
            break
    events.close()
    (found,) = verify_folder(tmp_path / "out").findings
    assert (found.kind, found.file) == ("missing", RUN)
    assert found.detail.startswith("1 of 3 results")


def test_a_share_of_a_run_lacks_the_others(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(run(request(tiny, out, world=World(0, 2))))
    assert [found.detail[:27] for found in verify_folder(out).findings] == ["1 of 3 results were not mad"]
    list(run(request(tiny, out, world=World(1, 2))))
    assert verify_folder(out).ok


def test_failures_are_known_and_missed_when_nobody_tells_of_them(copy: Callable[[str], Path]) -> None:
    root = copy("failed")
    assert verify_folder(root).failed == 2
    (noted,) = (root / PROCESSES).glob("*.jsonl")
    text = noted.read_bytes()
    noted.unlink()
    assert kinds(verify_folder(root)) == {("missing", f"{PROCESSES}/{noted.name}")}
    (root / "failures.jsonl").unlink()
    details = [found.detail for found in verify_folder(root).findings]
    assert details[-1] == "2 of 8 results were not made; `resume=True` makes them"
    noted.write_bytes(text)
    assert verify_folder(root).failed == 2
    assert kinds(verify_folder(root)) == {("missing", "failures.jsonl")}


def test_damaged_checksums_are_told_once_and_files_are_still_checked(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    path = list_of(root)
    name, text = f"{PROCESSES}/{path.name}", path.read_bytes()
    lines = text.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:30])
    found = verify_folder(root).findings
    assert [(f.kind, f.file) for f in found] == [("altered", name), ("altered", PROCESSES)]
    assert "line 14 is cut off" in found[0].detail
    path.write_bytes(b"".join(lines[:6]))
    found = verify_folder(root).findings
    assert found[0].detail == "was changed after its process had ended"
    assert "caption/00000/000001.txt and 3 more files are not listed" in found[1].detail
    path.unlink()
    assert kinds(verify_folder(root)) == {("missing", name), ("missing", PROCESSES)}
    path.write_bytes(b"0" * 64 + b"  ../../../etc/passwd\n" + b"0" * 64 + b"  /etc/passwd\n")
    assert {("missing", "../../../etc/passwd"), ("missing", "/etc/passwd")} <= kinds(verify_folder(root))
    path.write_bytes(text[:-1])
    assert kinds(verify_folder(root)) == {("altered", name), ("altered", PROCESSES)}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "foreign"])
def test_what_no_process_wrote_is_found_beside_their_files(
    copy: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    root = copy("tokens")
    path = (
        root
        / PROCESSES
        / ("notes.txt" if kind == "foreign" else list_of(root).name.replace("0-of-1", "0-of-2"))
    )
    if kind == "link":
        path.symlink_to(list_of(root))
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir() if kind == "folder" else path.write_text("mine")
    assert kinds(verify_folder(root)) == {("foreign", f"{PROCESSES}/{path.name}")}


def test_the_last_line_of_a_killed_process_may_be_cut_off(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_after(tiny, out, 3)
    killed = list_of(out)
    killed.write_bytes(killed.read_bytes()[:-30])
    assert verify_folder(out).ok
    list(run(request(tiny, out, resume=True)))
    verdict = verify_folder(out)
    assert (verdict.findings, verdict.notes) == ((), ())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": "three"}, "run.samples is 'three'"),
        ({"samples": -1}, "run.samples is -1"),
        ({"samples": 10**18}, "its counts are"),
        ({"num_variations": None}, "run.num_variations is None"),
        ({"variation": 4}, "no variation 4"),
        ({"places": [{**PLACE, "folder": "../data"}]}, "results in the folder '../data'"),
        ({"places": [{**PLACE, "folder": ""}]}, "results in the folder ''"),
        ({"places": [{**PLACE, "folder": ["a"]}]}, "run.places[0].folder is ['a']"),
        ({"places": [{"suffix": ".npy"}]}, "run.places[0] has no 'folder'"),
        ({"format": 4}, "another version"),
        ({"identity": "../../.."}, "its identity is '../../..'"),
        ({"samples": 3.0}, "run.samples is 3.0"),
        ({"seed": 1}, "was changed after its run wrote it"),
        ({"options": ""}, "was changed after its run wrote it"),
    ],
)
def test_a_damaged_record_is_one_finding(
    copy: Callable[[str], Path], change: dict[str, object], says: str
) -> None:
    root = copy("tokens")
    record = json.loads((root / RUN).read_text())
    (root / RUN).write_text(json.dumps(record | change))
    found = verify_folder(root).findings
    assert [(f.kind, f.file) for f in found] == [("altered", RUN)]
    assert says in found[0].detail
    assert str(root) not in found[0].detail


def other_than(value: object) -> object:
    """A value of the same kind."""
    if isinstance(value, bool | None):
        return 0 if value is None else not value
    if isinstance(value, dict):
        return {**value, "x": "y"}
    if isinstance(value, list):
        return value[:-1] or ["x"]
    return value + (1 if isinstance(value, int) else "x")  # type: ignore[operator]


def test_every_fact_of_a_record_that_is_changed_is_found(copy: Callable[[str], Path]) -> None:
    root = copy("beside")
    for file in (RUN, SR_RUN):
        text = (root / file).read_text()
        record = json.loads(text)
        for name, value in record.items():
            if name not in ("format",):
                (root / file).write_text(json.dumps(record | {name: other_than(value)}, indent=1) + "\n")
                assert ("altered", file) in kinds(verify_folder(root)), (file, name)
        for spoilt in (text[:-1], text + "\n", text.replace("\n", " ")):
            (root / file).write_text(spoilt)
            assert kinds(verify_folder(root)) == {("altered", file)}
        (root / file).write_text(text)
    assert verify_folder(root).ok


def test_super_resolution_of_another_run_is_found(copy: Callable[[str], Path]) -> None:
    root = copy("beside")
    shutil.copy(copy("again") / RUN, root / RUN)
    assert ("altered", SR_RUN) in kinds(verify_folder(root))


def test_without_a_record_what_checksums_list_is_still_checked(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    (root / RUN).unlink()
    (root / "caption/00000/000000.txt").write_text("other")
    assert kinds(verify_folder(root)) == {("missing", RUN), ("altered", "caption/00000/000000.txt")}


def test_verify_refuses_a_folder_that_no_run_wrote(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run of this program wrote it"):
        verify_folder(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        verify_folder(tmp_path / "gone")


def test_super_resolution_is_checked_with_the_run_that_it_goes_on_from(
    tiny: Path, copy: Callable[[str], Path]
) -> None:
    root = copy("beside")
    (root / "tok_depth@64/00000/000001-v1.npy").unlink()
    (root / "rgb/00000/000000-v0.png").unlink()
    assert kinds(verify_folder(root)) == {
        ("missing", "rgb/00000/000000-v0.png"), ("missing", "tok_depth@64/00000/000001-v1.npy"),
    }  # fmt: skip
    root = copy_again(root, "beside2", root.parent / "beside")
    list(run(super_resolution(tiny, root, resume=True)))
    assert kinds(verify_folder(root)) == {("missing", "rgb/00000/000000-v0.png")}


def copy_again(source: Path, name: str, origin: Path) -> Path:
    return Path(shutil.copytree(source, origin.parent / name))


def test_super_resolution_of_a_run_with_failures_is_complete_without_them(tiny: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", pictures(tmp_path / "data")
    chain = make_chain([RGB], ["rgb@64"])
    list(run(request(tiny, out, samples=data, chain=chain, num_variations=2)))
    list(run(super_resolution(tiny, out)))
    verdict = verify_folder(out)
    assert (verdict.findings, verdict.failed) == ((), 2)


def test_beside_a_dataset_only_the_folders_of_super_resolution_are_checked(
    tiny: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    out = tmp_path / "data"
    shutil.copytree(folders["tokens"] / "tok_rgb@64", out / "tok_rgb@64")
    paths = sorted((out / "tok_rgb@64").rglob("*.npy"))
    samples = [Sample(Key("00000", p.stem), files={"tok_rgb@64": p}) for p in paths]
    chain = make_chain([DEPTH], ["tok_rgb@64"])
    list(run(request(tiny, out, samples=samples, chain=chain, stage="sr", is_beside=True)))
    assert not (out / RUN).exists()
    paths[0].write_bytes(b"the dataset's own affair")
    (out / "more").mkdir()
    assert verify_folder(out).ok
    (out / "depth/00000/000001.npy").unlink()
    (out / "depth/00000/x.npy").write_bytes(b"")
    assert kinds(verify_folder(out)) == {
        ("missing", "depth/00000/000001.npy"), ("foreign", "depth/00000/x.npy"),
    }  # fmt: skip


def test_names_that_are_too_long_are_known_again(tiny: Path, tmp_path: Path) -> None:
    samples = [Sample(Key("f", "n" * size), PROMPTS[0]) for size in LENGTHS]
    for count in (1, 2):
        out = tmp_path / str(count)
        list(run(request(tiny, out, samples=samples, num_variations=count)))
        assert verify_folder(out).ok
        path = sorted((out / "rgb/f").iterdir())[0]
        path.unlink()
        assert kinds(verify_folder(out)) == {("missing", path.relative_to(out).as_posix())}


@pytest.mark.parametrize("count", [1, 2])
def test_super_resolution_finds_samples_with_long_names(tiny: Path, tmp_path: Path, count: int) -> None:
    out = tmp_path / "out"
    samples = [Sample(Key("f", "n" * size), PROMPTS[0]) for size in LENGTHS]
    list(run(request(tiny, out, samples=samples, num_variations=count)))
    assert len(keys_of(open_runs(out))) == len(LENGTHS)
    sr_run = super_resolution(tiny, out)
    assert sum(isinstance(event, Saved) for event in run(sr_run)) == count * len(LENGTHS)
    assert (verify_folder(out).findings, verify_folder(out).samples) == ((), len(LENGTHS))


def test_a_resumed_run_that_was_mended_verifies(tiny: Path, copy: Callable[[str], Path]) -> None:
    root = copy("varied")
    (root / "rgb/00000/000001-v1.png").unlink()
    assert not verify_folder(root).ok
    again = request(tiny, root, num_variations=2, preview=2, resume=True)
    with contextlib.closing(run(again)) as events:
        assert [e.variation for e in events if isinstance(e, Saved)] == [1]
    assert verify_folder(root).ok
    assert load_run(root).record.preview == 2


def test_the_json_of_a_verdict_has_these_fields(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    (root / "x").write_bytes(b"")
    said = json.loads(json.dumps(verify_folder(root).to_json()))
    assert said == {
        "out": str(root), "ok": False, "samples": 3, "failed": 0, "files": 6,
        "findings": [{"kind": "foreign", "file": "x", "detail": "no run of this program wrote it"}],
        "notes": [],
    }  # fmt: skip
    assert verify_folder(root).findings == (Finding("foreign", "x", "no run of this program wrote it"),)


@pytest.mark.parametrize("what", ["pipe", "folder", "large", "link"])
def test_failures_that_cannot_be_read_are_a_finding(copy: Callable[[str], Path], what: str) -> None:
    root = copy("tokens")
    path = root / "failures.jsonl"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    assert kinds(verify_folder(root)) == {("unreadable", "failures.jsonl")}


def test_a_record_that_is_a_link_to_nowhere_is_a_finding(copy: Callable[[str], Path]) -> None:
    root = copy("beside")
    (root / SR_RUN).unlink()
    (root / SR_RUN).symlink_to("nowhere")
    assert ("unreadable", SR_RUN) in kinds(verify_folder(root))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("a"), Path.touch])
def test_what_stands_in_the_place_of_unfinished_files_is_foreign(
    copy: Callable[[str], Path], make: Callable[[Path], object]
) -> None:
    root = copy("tokens")
    shutil.rmtree(root / ".partial", ignore_errors=True)
    make(root / ".partial")
    assert kinds(verify_folder(root)) == {("foreign", ".partial")}


def test_files_that_have_grown_without_end_are_not_read(copy: Callable[[str], Path]) -> None:
    """A list beyond its limit and a result beyond its noted size; both would take hours."""
    root = copy("tokens")
    token = next(root.glob("tok_rgb@64/*/*.npy"))
    os.truncate(token, 1 << 42)
    assert kinds(verify_folder(root)) == {("altered", str(token.relative_to(root)))}
    os.truncate(list_of(root), 1 << 42)
    assert ("unreadable", str(list_of(root).relative_to(root))) in kinds(verify_folder(root))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def loop_of_two(path: Path) -> None:
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


@pytest.mark.parametrize("make", [loop, loop_of_two])
def test_a_link_that_leads_to_itself_is_a_finding(
    copy: Callable[[str], Path], make: Callable[[Path], None]
) -> None:
    root = copy("tokens")
    token = next(root.glob("tok_rgb@64/*/*.npy"))
    token.unlink()
    make(token)
    assert ("unreadable", str(token.relative_to(root))) in kinds(verify_folder(root))


@pytest.mark.parametrize("name", [RUN, SR_RUN])
def test_a_record_that_is_a_link_is_a_finding(copy: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """`--resume` and all others refuse it."""
    root = copy("beside")
    (root / name).rename(tmp_path / "record")
    (root / name).symlink_to(tmp_path / "record")
    assert kinds(verify_folder(root)) == {("foreign", name)}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(".."), Path.touch])
def test_what_stands_in_the_place_of_plots_is_foreign(
    copy: Callable[[str], Path], make: Callable[[Path], object]
) -> None:
    root = copy("tokens")
    make(root / "plots")
    assert kinds(verify_folder(root)) == {("foreign", "plots")}


def test_what_lies_among_unfinished_files_and_is_none_is_foreign(copy: Callable[[str], Path]) -> None:
    root = copy("tokens")
    (root / ".partial" / "folder").mkdir(parents=True)
    (root / ".partial" / "0123abcd-0123456789ab-7.npy").touch()  # of a killed process
    (root / ".partial" / "mine").touch()
    found = verify_folder(root)
    assert kinds(found) == {("foreign", ".partial/folder"), ("foreign", ".partial/mine")}
    assert [note.kind for note in found.notes] == ["unfinished"]


@pytest.mark.parametrize("folder", ["tokens", "failed"])
def test_every_fact_of_a_launch_that_is_changed_is_found(copy: Callable[[str], Path], folder: str) -> None:
    root = copy(folder)
    (path,) = (root / PROCESSES).glob("*.json")
    name, text = ("altered", f"{PROCESSES}/{path.name}"), path.read_text()
    facts = json.loads(text)
    others = {
        "files": {},
        "finished": None,
        "halved_to": 1,
        "only": ["00000/000000"],
        "started": "2030-01-01T00:00:00+00:00",
        "sha256": "",
    }
    for fact, value in facts.items():
        other = others[fact] if fact in others else value + 1
        path.write_text(json.dumps({**facts, fact: other}, indent=1) + "\n")
        assert name in kinds(verify_folder(root)), fact
    for other in (f"{text}\n", text[:-1], text.replace("{", '{\n "rank": 0,', 1), f"\ufeff{text}"):
        path.write_text(other)
        assert name in kinds(verify_folder(root)), other
    facts.pop("sha256")  # as written by versions without it
    path.write_text(json.dumps(facts, indent=1) + "\n")
    assert verify_folder(root).ok


def test_a_process_under_another_name_is_found(copy: Callable[[str], Path]) -> None:
    for before, after in (("-0-of-1-", "-0-of-2-"), ("T", "T0")):
        root = copy("tokens")
        for path in list((root / PROCESSES).iterdir()):
            path.rename(path.with_name(path.name.replace(before, after).replace("T0", "T", after == "T0")))
        if after == "T0":  # a day later
            for path in list((root / PROCESSES).iterdir()):
                path.rename(path.with_name("2099" + path.name[4:]))
        assert {kind for kind, _ in kinds(verify_folder(root))} == {"altered"}
        shutil.rmtree(root)


def test_whatever_is_changed_in_the_list_of_failures_is_found(copy: Callable[[str], Path]) -> None:
    root = copy("failed")
    path = root / "failures.jsonl"
    text = path.read_text()
    first, second = text.splitlines(keepends=True)
    made_up = json.dumps({"key": "a b/-v0", "variation": 0, "reason": "x"}) + "\n"
    for other in (
        "", first, second + first, text + first, text + "\n", text[:-1], text + "x\n", text + made_up,
        text.replace("null", "1", 1), text.replace('"reason": "', '"reason": "x', 1),
    ):  # fmt: skip
        path.write_text(other)
        assert ("altered" if other else "missing", path.name) in kinds(verify_folder(root)), other
    (copy("tokens") / path.name).touch()
    assert kinds(verify_folder(root.with_name("tokens"))) == {("foreign", path.name)}


def test_a_file_that_a_failed_sample_lacked_is_foreign(copy: Callable[[str], Path]) -> None:
    root = copy("failed")
    for good in root.glob("tok_depth@64/a b/Zürich-v1.npy"):
        strange = root / "tok_depth@64" / "c" / "bad-v1.npy"
        strange.parent.mkdir(exist_ok=True)
        shutil.copy(good, strange)
    assert kinds(verify_folder(root)) == {("foreign", "tok_depth@64/c/bad-v1.npy")}
