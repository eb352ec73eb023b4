"""Tar shards as folders of a dataset: read in place, never unpacked, whatever is in them."""

import io
import json
import multiprocessing
import os
import resource
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fourm.codecs.files import read_array, read_json, read_picture, read_text
from fourm.data.containers import read_member, split_path
from fourm.data.dataset import list_dataset
from fourm.errors import SampleError, UsageError
from fourm.files.tars import read_tar

FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def png(colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, files: dict[str, bytes], form: str = "pax") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for name, data in files.items():
            add(tar, name, data)
    return path


def add(
    tar: tarfile.TarFile, name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, link
    tar.addfile(member, io.BytesIO(data))


def listed(root: Path, *folders: str) -> dict[str, str]:
    """Samples and their problems."""
    dataset = list_dataset(root, {folder: folder for folder in folders})
    return {sample.key.text: sample.problem for sample in dataset.samples}


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_samples_of_the_folder_that_the_shard_is_named_for(tmp_path: Path, form: str) -> None:
    long = "ä" * (47 if form == "ustar" else 100)  # as plain headers can have, and longer
    write_shard(
        tmp_path / "rgb/shard-00000.tar", {"./a.png": png(), f"deep/{long}.png": png(), "x.md": b""}, form
    )
    write_shard(tmp_path / "rgb/train/shard-00001.tar", {"a.png": png("blue")}, form)
    names = {"a.json": b'"red"', f"deep/{long}.json": b'"long"'}
    write_shard(tmp_path / "caption/shard-00000.tar", names, form)
    (tmp_path / "caption/train/shard-00001").mkdir(parents=True)  # the same, unpacked
    (tmp_path / "caption/train/shard-00001/a.txt").write_text("blue")
    dataset = list_dataset(tmp_path, {"rgb": "rgb", "caption": "caption"})
    keys = ["shard-00000/a", f"shard-00000/deep/{long}", "train/shard-00001/a"]
    assert [sample.key.text for sample in dataset.samples] == keys
    assert dataset.incomplete == ()
    first, second, third = dataset.samples
    assert first.files["rgb"] == tmp_path / "rgb/shard-00000.tar/a.png"
    assert read_picture(first.files["rgb"]).getpixel((0, 0)) == (255, 0, 0)
    assert read_picture(third.files["rgb"]).getpixel((0, 0)) == (0, 0, 255)
    assert [read_json(s.files["caption"]) for s in (first, second)] == ["red", "long"]
    assert read_text(third.files["caption"]) == "blue"
    with pytest.raises(SampleError, match=r"shard-00000\.tar/b\.png: is not in this shard"):
        read_picture(tmp_path / "rgb/shard-00000.tar/b.png")


def test_a_shard_of_the_tar_program_is_read(tmp_path: Path) -> None:
    for i in range(3):
        path = tmp_path / f"plain/s/{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((1, 4), i, dtype=np.int16))
    (tmp_path / "tok").mkdir()
    subprocess.run(["tar", "-cf", "../../tok/s.tar", "."], cwd=tmp_path / "plain/s", check=True)
    assert listed(tmp_path, "tok") == {f"s/{i}": "" for i in range(3)}
    for i in range(3):
        assert (read_array(tmp_path / f"tok/s.tar/{i}.npy") == i).all()


def test_only_what_goes_through_a_tar_file_leads_into_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.TAR", {"x.png": b""})
    (tmp_path / "b.tar").mkdir()
    assert split_path(tmp_path / "a.TAR/x.png") == (tmp_path / "a.TAR", "x.png")
    assert split_path(tmp_path / "b.tar/a.png") is None
    assert split_path(tmp_path / "a.tar.d/x.png") is None
    write_shard(tmp_path / "b.tar/c.tar", {"d/x.png": b""})
    assert split_path(tmp_path / "b.tar/c.tar/d/x.png") == (tmp_path / "b.tar/c.tar", "d/x.png")


def test_members_that_are_no_plain_files_fail_alone(tmp_path: Path) -> None:
    path = tmp_path / "rgb/s.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        add(tar, "a.png")
        add(tar, "folder.png", kind=tarfile.DIRTYPE)
        add(tar, "link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(tar, "hard.png", kind=tarfile.LNKTYPE, link="a.png")
        add(tar, "pipe.png", kind=tarfile.FIFOTYPE)
        add(tar, "device.png", kind=tarfile.CHRTYPE)
        add(tar, "readme", kind=tarfile.SYMTYPE, link="a.png")
        add(tar, ".hidden.png")
        add(tar, "sub/._a.png")
    why = "is a link, a device or a file with holes; only plain members are read"
    assert listed(tmp_path, "rgb") == {
        "s/a": "",
        **{f"s/{name}": f"{path}/{name}.png: {why}" for name in ("device", "hard", "link", "pipe")},
    }
    with pytest.raises(SampleError, match=r"s\.tar/link\.png: is a link"):
        read_picture(path / "link.png")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/etc/x.png", "holds '/etc/x.png', a name that leads out of it"),
        ("../x.png", "holds '../x.png', a name that leads out of it"),
        ("a/../../x.png", "a name that leads out of it"),
        ("x" * 252 + ".png", "which is too long for a file"),
        ("/".join("abcdefgh" * 130) + ".png", "which is too long for a file"),
    ],
)
def test_members_whose_names_no_file_can_have_are_reported(tmp_path: Path, name: str, sentence: str) -> None:
    write_shard(tmp_path / "rgb/s.tar", {"a.png": png(), name: png(), "b.png": png()})
    found = listed(tmp_path, "rgb")
    assert list(found) == ["s/a", "s/b", "s/*"]
    assert sentence in found["s/*"]
    assert found["s/a"] == found["s/b"] == ""


def test_a_name_that_stands_twice_is_a_problem_of_that_sample(tmp_path: Path) -> None:
    path = tmp_path / "rgb/s.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in ("a.png", "b.png", "./b.png", "c.png", "c.jpg", "b.png"):
            add(tar, name)
    assert listed(tmp_path, "rgb") == {
        "s/a": "",
        "s/b": f"{path}/b.png: stands in its shard more than once",
        "s/c": f"two files for one sample: {path}/c.png and c.jpg; keep one of them",
    }


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_cut_off_anywhere_keeps_the_samples_before(tmp_path: Path, form: str) -> None:
    data = png()
    whole = write_shard(tmp_path / "whole.tar", {f"{i}.png": data for i in range(4)}, form).read_bytes()
    ends = [place[0] + place[1] for place in read_tar(tmp_path / "whole.tar").members.values()]
    path = tmp_path / "rgb/s.tar"
    path.parent.mkdir()
    for length in [*range(0, ends[-1] + 513, 7), *ends, *(end + 1 for end in ends)]:
        path.write_bytes(whole[:length])
        complete = sum(end <= length for end in ends)
        if not complete:
            with pytest.raises(UsageError, match=r"s\.tar.* cut off|nothing in it is known"):
                list_dataset(tmp_path, {"rgb": "rgb"})
            continue
        found = listed(tmp_path, "rgb")
        good = [key for key, problem in found.items() if not problem]
        assert good == [f"s/{i}" for i in range(complete)]
        for key in good:
            read_picture(path / f"{key[2:]}.png")
        assert ("s/*" in found) == (length < ends[-1] + 512)
        assert all("cut off" in problem for problem in found.values() if problem), found


def test_what_is_lost_fails_by_name_where_another_modality_has_the_names(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "rgb/s.tar", {f"{i}.png": png() for i in range(4)})
    path.write_bytes(path.read_bytes()[: read_tar(path).members["2.png"][0] - 100])
    write_shard(tmp_path / "caption/s.tar", {f"{i}.txt": b"red" for i in range(5)})
    found = listed(tmp_path, "rgb", "caption")
    assert [key for key, problem in found.items() if not problem] == ["s/0", "s/1"]
    assert list(found) == [f"s/{i}" for i in range(5)]
    assert found["s/3"] == f"{path}: is cut off; 2 of its members are known"


def test_damage_in_the_middle_keeps_the_samples_before(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "rgb/s.tar", {f"{i}.png": png() for i in range(4)}, "ustar")
    data = bytearray(path.read_bytes())
    third = read_tar(path).members["2.png"][0] - 512
    data[third : third + 512] = os.urandom(512)
    path.write_bytes(data)
    found = listed(tmp_path, "rgb")
    assert list(found) == ["s/0", "s/1", "s/*"]
    assert found["s/*"] == f"{path}: is damaged at byte {third}; 2 of its members are known"


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.bz2", ".TAR.XZ", ".tar.zst"])
def test_compressed_shards_are_refused_with_a_sentence(tmp_path: Path, suffix: str) -> None:
    write_shard(tmp_path / "rgb/whole.tar", {"a.png": png()})
    (tmp_path / f"rgb/s{suffix}").write_bytes(b"")
    found = listed(tmp_path, "rgb")
    assert found["whole/a"] == ""
    assert found["s/*"].endswith(
        f"s{suffix}: a compressed shard gives no access to single members; unpack it to .tar"
    )


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_bytes_under_a_plain_name_are_told(tmp_path: Path, mode: str) -> None:
    (tmp_path / "rgb").mkdir()
    with tarfile.open(tmp_path / "rgb/s.tar", mode) as tar:  # type: ignore[call-overload]
        add(tar, "a.png")
    with pytest.raises(UsageError, match=r"nothing can be read: .*s\.tar: is compressed \((gzip|bzip2|xz)\)"):
        list_dataset(tmp_path, {"rgb": "rgb"})


def test_a_first_member_may_be_named_as_compressed_data_begin(tmp_path: Path) -> None:
    write_shard(tmp_path / "rgb/s.tar", {"BZh.png": png()})
    assert listed(tmp_path, "rgb") == {"s/BZh": ""}


@pytest.mark.parametrize("content", [b"", b"no archive", b"\0" * 100, b"PK\x03\x04" * 200, png()])
def test_a_shard_that_is_no_tar_file_is_a_problem_of_its_own(tmp_path: Path, content: bytes) -> None:
    write_shard(tmp_path / "rgb/good.tar", {"a.png": png()})
    (tmp_path / "rgb/s.tar").write_bytes(content)
    found = listed(tmp_path, "rgb")
    assert found["good/a"] == ""
    assert found["s/*"].startswith(f"{tmp_path}/rgb/s.tar: is cut off or damaged (")


def test_a_shard_without_members_has_no_samples(tmp_path: Path) -> None:
    write_shard(tmp_path / "rgb/s.tar", {})
    write_shard(tmp_path / "rgb/t.tar", {"a.png": b"x"})
    assert listed(tmp_path, "rgb") == {"t/a": ""}


def test_pipes_links_and_folders_under_a_shards_name_do_not_stop_the_listing(tmp_path: Path) -> None:
    write_shard(tmp_path / "elsewhere.tar", {"a.png": png()})
    write_shard(tmp_path / "rgb/plain.tar/a.png", {})  # a folder of this name
    os.mkfifo(tmp_path / "rgb/pipe.tar")
    (tmp_path / "rgb/gone.tar").symlink_to("nowhere.tar")
    (tmp_path / "rgb/link.tar").symlink_to(tmp_path / "elsewhere.tar")
    found = listed(tmp_path, "rgb")
    assert [key for key, problem in found.items() if not problem] == ["link/a", "plain.tar/a"]
    reason = "cannot be read (not a file, but a pipe, a device or a socket)"
    assert found["pipe/*"] == f"{tmp_path}/rgb/pipe.tar: {reason}"
    assert found["gone/*"] == f"{tmp_path}/rgb/gone.tar: cannot be read (No such file or directory)"
    read_picture(tmp_path / "rgb/link.tar/a.png")


def test_a_shard_that_changes_or_goes_is_noticed(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s.tar", {"a.txt": b"one", "b.txt": b"two"})
    assert read_member(path, "b.txt", 100) == b"two"
    write_shard(path, {"new.txt": b"0" * 5000, "b.txt": b"three"})
    assert read_member(path, "b.txt", 100) == b"three"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(SampleError, match=r"b\.txt: is not in this shard"):
        read_text(path / "b.txt")
    path.unlink()
    with pytest.raises(SampleError, match=r"s\.tar/b\.txt: cannot be read"):
        read_text(path / "b.txt")


def test_a_member_is_never_read_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "s.tar", {"a.txt": b"x" * (1 << 21)})
    monkeypatch.setattr("fourm.codecs.files.MAX_TEXT_BYTES", 1 << 20)
    with pytest.raises(SampleError, match=r"s\.tar/a\.txt: more than 1 MiB"):
        read_text(path / "a.txt")


# Archives that nobody would make by accident.


def header(**fields: bytes) -> bytes:
    """A block with a right checksum, fields as they are given."""
    block = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT))
    places = {"name": 0, "size": 124, "kind": 156, "link": 157, "prefix": 345}
    for name, value in fields.items():
        block[places[name] : places[name] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def binary(number: int) -> bytes:
    """A size field in GNU's binary form, which can be negative or beyond any disk."""
    return bytes([0x80 if number >= 0 else 0xFF]) + (number % 256**11).to_bytes(11, "big")


def pax(**fields: str) -> bytes:
    """A pax header in front of the next member."""
    lines = b""
    for name, value in fields.items():
        text = f" {name.replace('_', '.')}={value}\n"
        length = len(text) + len(str(len(text) + 3))
        lines += f"{length}{text}".encode()
    return header(kind=b"x", size=b"%011o\0" % len(lines)) + lines.ljust(512 * -(-len(lines) // 512), b"\0")


MALICIOUS: dict[str, Callable[[], bytes]] = {
    "a size that leads back": lambda: header(size=binary(-512)) * 2,
    "a size that leads back to the start": lambda: (
        header(size=b"%011o\0" % 0) + header(size=binary(-1024)) * 2
    ),
    "a size beyond any disk": lambda: header(size=binary(1 << 80)) + png(),
    "a long name of gigabytes": lambda: header(kind=b"L", size=binary(1 << 33)),
    "a long name of negative length": lambda: header(kind=b"L", size=binary(-512)),
    "a pax header of gigabytes": lambda: header(kind=b"x", size=binary(1 << 33)),
    "a pax header of negative length": lambda: header(kind=b"x", size=binary(-512)),
    "pax headers without end": lambda: pax(path="a.png") * 3000,
    "a pax size that leads back": lambda: pax(size="-1024") + header(),
    "a pax size that is no number": lambda: pax(size="many") + header(),
    "a pax size beyond any disk": lambda: pax(size="9" * 4000) + header(),
    "a sparse map that is no map": lambda: pax(GNU_sparse_map="a,b", GNU_sparse_size="3") + header(),
    "a sparse member": lambda: pax(GNU_sparse_major="1", GNU_sparse_minor="0") + header() + b"9\n" * 256,
    "a zero byte in a name": lambda: pax(path="a\0b.png") + header(),
    "a name of nothing": lambda: pax(path="./") + header(),
    "a name of dots": lambda: pax(path="...png") + header(),
    "half a character in a name": lambda: header(name=b"\xff\xfe.png"),
    "a number that is none": lambda: header(size=b"99999999999\0"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_archives_end_quickly_in_little_memory(tmp_path: Path, name: str) -> None:
    good = write_shard(tmp_path / "good.tar", {"good.png": png()}, "ustar").read_bytes()[:1024]
    (tmp_path / "rgb").mkdir()
    path = tmp_path / "rgb/s.tar"
    path.write_bytes(good + MALICIOUS[name]())
    os.truncate(path, 1 << 34)  # a file with a hole: 16 GiB that take no room
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = listed(tmp_path, "rgb")
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    assert found["s/good"] == ""
    for key in found:
        assert key.isprintable()


@FEW
@given(data=st.data())
def test_random_changes_of_a_shard_are_listed_or_reported(tmp_path: Path, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(list(FORMATS)))
    names = {"a.png": b"1" * 600, "b" * 90 + "/" + "c" * 90 + ".png": b"2", "ä.json": b"{}"}
    spoilt = bytearray(write_shard(tmp_path / "whole.tar", names, form).read_bytes()[:8192])
    (tmp_path / "rgb").mkdir(exist_ok=True)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=12))
        spoilt[at : at + len(piece)] = piece
    path = tmp_path / "rgb/s.tar"
    path.write_bytes(spoilt)
    try:
        samples = list_dataset(tmp_path, {"rgb": "rgb"}).samples
    except UsageError:
        samples = ()  # nothing could be read
    for sample in samples:
        if not sample.problem:
            read = read_member(*(split_path(sample.files["rgb"]) or pytest.fail("not in a shard")), 1 << 20)
            assert len(read) <= len(spoilt)


@FEW
@given(data=st.binary(max_size=2000))
def test_random_bytes_are_no_archive(tmp_path: Path, data: bytes) -> None:
    write_shard(tmp_path / "rgb/good.tar", {"a.png": b"x"})
    (tmp_path / "rgb/s.tar").write_bytes(data)
    assert listed(tmp_path, "rgb")["good/a"] == ""


# Size and processes.


def thousands(path: Path, count: int, suffix: str) -> Path:
    return write_shard(path, {f"{i:06d}{suffix}": b"%06d" % i for i in range(count)}, "ustar")


def test_listing_takes_time_in_proportion_to_the_members(tmp_path: Path) -> None:
    for i in range(4):
        thousands(tmp_path / f"small/rgb/shard-{i}.tar", 250, ".png")
        thousands(tmp_path / f"large/rgb/shard-{i}.tar", 2500, ".png")
    seconds = {}
    for size in ("small", "large"):
        began = time.process_time()
        assert len(listed(tmp_path / size, "rgb")) == {"small": 1000, "large": 10_000}[size]
        seconds[size] = time.process_time() - began
    assert seconds["large"] < 40 * max(seconds["small"], 0.01)


def test_the_index_of_a_shard_is_kept_while_the_file_stays_the_same(tmp_path: Path) -> None:
    path = thousands(tmp_path / "s.tar", 1000, ".txt")
    assert read_tar(path) is read_tar(path)
    for i in (999, 0, 500):
        assert read_text(path / f"{i:06d}.txt") == f"{i:06d}"


def _read_all(path: Path, first: int) -> bool:
    return all(read_text(path / f"{i:06d}.txt") == f"{i:06d}" for i in range(first, 1000, 4))


def test_forked_processes_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = thousands(tmp_path / "s.tar", 1000, ".txt")
    assert read_text(path / "000001.txt") == "000001"  # the index is made before the fork
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert all(pool.starmap(_read_all, [(path, first) for first in range(4)]))


def test_problems_of_shards_with_names_of_any_bytes_can_be_written_as_json(tmp_path: Path) -> None:
    """A record of failures can hold them, whatever the bytes of a name."""
    write_shard(tmp_path / "rgb/s.tar", {"a.png": png()})
    with open(os.fsencode(tmp_path) + b"/rgb/\xff.tar", "wb") as file:
        file.write(b"nothing")
    found = listed(tmp_path, "rgb")
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["s/a", "\\xff/*"]
