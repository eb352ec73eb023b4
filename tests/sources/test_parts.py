"""Shards of a dataset: all samples of `read_samples`, each in one shard, whatever form a folder has."""

import io
import os
import pickle
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourm.data.dataset import UNKNOWN
from fourm.errors import UsageError
from fourm.files.tars import WHOLE
from fourm.hub.files import ModelFiles, find_model
from fourm.sources.reading import read_samples
from fourm.sources.shards import Shards, list_shards
from fourm.sources.source import Source

NOTHING = io.BytesIO()
CONDITIONS = ["rgb@64", "caption"]
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
# Where a file of the sample `a/b/NAME` may lie: in a folder, in a tar, in a folder of a tar.
FORMS = ("a/b/{}", "a/b.tar/{}", "a.tar/b/{}")


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return find_model("demo")


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files; what lies below `x.tar` becomes its members."""
    tars = dict[Path, dict[str, bytes]]()
    for name, data in files.items():
        above, is_tar, member = name.partition(".tar/")
        if is_tar:
            tars.setdefault(root / f"{above}.tar", {})[member] = data
            continue
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path, members in tars.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return root


def check(root: Path, model: ModelFiles, size: int = 2) -> Shards:
    """The shards of a dataset, which hold the same samples as all of it, each once."""
    source = Source(data=str(root))
    whole = read_samples(source, CONDITIONS, model, NOTHING)
    shards: Shards = pickle.loads(pickle.dumps(list_shards(source, CONDITIONS, model, NOTHING, size=size)))
    found = [shards.samples(shard) for shard in shards.shards]
    samples = [sample for one in found for sample in one.samples]
    assert sorted(samples, key=lambda one: one.key) == sorted(whole.samples, key=lambda one: one.key)
    assert replace(shards.input, sha256="") == whole.input  # and the names of shards
    assert len({shard.name for shard in shards.shards}) == len(shards.shards)
    assert Counter(text for one in found for text in one.incomplete) == Counter(whole.incomplete)
    return shards


def test_folders_tars_and_files_at_the_top_are_shards(model: ModelFiles, tmp_path: Path) -> None:
    names = [
        "1",
        "2",
        "x/1",
        "x/2",
        "x/3",
        "x/4",
        "x/5",
        "x/00000/1",
        "y.tar/1",
        "y.tar/2",
        "y.tar/3",
        "y.tar/z/4",
    ]
    files = {f"rgb/{name}.png": b"" for name in names}
    files |= {f"caption/{name.replace('.tar', '')}.txt": b"" for name in names if name != "x/3"}
    files |= {
        "rgb/x/readme.md": b"",
        "rgb/x/.hidden.png": b"",
        "caption/x/more.txt": b"",
        "rgb/y/z/4b.png": b"",
    }
    shards = check(write(tmp_path, {**files, "caption/y.tar/z/4b.txt": b""}), model)
    assert [(one.name, one.parts[1:]) for one in shards.shards] == [
        ("files", ("", 2, 0, 2)), ("x/00000~", ("x", 5, 0, 2)), ("x/00001", ("x", 5, 2, 4)),
        ("x/00002", ("x", 5, 4, 5)), ("x/00000", ("x/00000", 1, 0, 1)), ("y", ("y",)),
    ]  # fmt: skip
    assert [len(shards.samples(one).samples) for one in shards.shards] == [2, 2, 1, 1, 1, 5]
    assert "1 file has an extension that is not read: .md" in shards.notes[0]


@FEW
@given(
    st.lists(
        st.tuples(st.sampled_from("vwxyz"), st.sampled_from(FORMS), st.sampled_from(FORMS)),
        max_size=6, unique_by=lambda one: one[0],
    ),
    st.integers(1, 3),
)  # fmt: skip
def test_a_folder_of_each_form_is_matched_with_any_other(
    model: ModelFiles,
    tmp_path_factory: pytest.TempPathFactory,
    samples: list[tuple[str, str, str]],
    size: int,
) -> None:
    files = {"rgb/s/0.png": b"", "caption/s/0.txt": b""}
    for name, first, second in samples:
        files |= {f"rgb/{first.format(name)}.png": b"", f"caption/{second.format(name)}.txt": b""}
    check(write(tmp_path_factory.mktemp("root"), files), model, size)


def test_folders_that_the_first_modality_lacks_are_said(model: ModelFiles, tmp_path: Path) -> None:
    files = {"rgb/a/1.png": b"", "rgb/b.tar/1.png": b"", "caption/b/1.txt": b"", "caption/c.tar/1.txt": b""}
    files |= {f"caption/{name}/1.txt": b"" for name in "adefg"}
    root = write(tmp_path, files)
    shards = list_shards(Source(data=str(root)), CONDITIONS, model, NOTHING)
    assert shards.notes == (
        f"{root}: caption has 5 folders or tars that rgb lacks (c, d, e, ...); those samples are left out",
    )


@pytest.mark.parametrize("conditions", [CONDITIONS, CONDITIONS[::-1]])
def test_tars_of_whole_keys_are_matched_with_folders(
    conditions: list[str], model: ModelFiles, tmp_path: Path
) -> None:
    """As a run in shards of another size writes them: which folders they have, only their members say."""
    (tmp_path / "rgb").mkdir()
    for number in range(2):
        path = tmp_path / "rgb" / f"0000{number}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": WHOLE}) as tar:
            for name in (f"x/{2 * number}.png", f"x/{2 * number + 1}.png", f"{number}.png"):
                tar.addfile(tarfile.TarInfo(name))
    names = [*(f"x/{number}" for number in range(4)), "0", "1"]
    write(tmp_path, {f"caption/{name}.txt": b"" for name in names})
    source = Source(data=str(tmp_path))
    whole = read_samples(source, conditions, model, NOTHING)
    shards = list_shards(source, conditions, model, NOTHING, size=2)
    found = [sample for shard in shards.shards for sample in shards.samples(shard).samples]
    assert sorted(sample.key.path for sample in whole.samples) == sorted(names)
    assert sorted(found, key=lambda one: one.key) == sorted(whole.samples, key=lambda one: one.key)


def test_what_cannot_be_listed_fails_once(model: ModelFiles, tmp_path: Path) -> None:
    files = {"rgb/a/1.png": b"", "caption/a/1.txt": b"", "rgb/x.tar.gz": b"", "rgb/bad.tgz": b""}
    root = write(tmp_path, files)
    (root / "rgb" / "gone").symlink_to("nowhere")
    (root / "rgb" / "damaged.tar").write_bytes(b"no tar" * 999)
    shards = check(root, model)
    assert [one.name for one in shards.shards] == ["a", "damaged", "bad", "gone", "x"]
    failing = [one for shard in shards.shards for one in shards.samples(shard).samples if one.problem]
    assert [one.key.folder for one in failing if one.key.name == UNKNOWN] == ["damaged", "bad", "gone", "x"]


def test_mistakes_are_said_before_anything_is_made(model: ModelFiles, tmp_path: Path) -> None:
    root = write(tmp_path, {"rgb/a/1.png": b""})
    with pytest.raises(UsageError, match="no folder 'caption'; there is rgb"):
        list_shards(Source(data=str(root)), CONDITIONS, model, NOTHING)
    (root / "caption").mkdir()
    os.remove(root / "rgb/a/1.png")
    with pytest.raises(UsageError, match="no sample has a file in each of rgb, caption"):
        list_shards(Source(data=str(root)), CONDITIONS, model, NOTHING)


def test_a_folder_of_pictures_is_ranges_of_its_sorted_listing(model: ModelFiles, tmp_path: Path) -> None:
    names = [f"{folder}{i}.PNG" for folder in ("", "a/", "a/b/", "a-b/", "c/") for i in range(3)]
    root = write(tmp_path, {**dict.fromkeys([*names, ".h.png", "x.md", "c/.h/x.png", "run/rgb/1.png"], b"")})
    for prompts, conditions in (((), ["rgb@64"]), (("a red circle",), CONDITIONS)):
        for count in (None, 1, 7):
            source = Source(prompts, paths=(str(root),), num_samples=count)
            whole = read_samples(source, conditions, model, NOTHING)
            for size in (1, 2, 4, 1000):
                shards = pickle.loads(
                    pickle.dumps(list_shards(source, conditions, model, NOTHING, size=size))
                )
                found = [shards.samples(shard).samples for shard in shards.shards]
                assert [one for samples in found for one in samples] == [*whole.samples]
                assert [len(samples) for samples in found] == [shard.count for shard in shards.shards]
                assert (shards.notes, shards.total) == (whole.notes, len(whole.samples))
                assert shards.input.kind == "pictures"
    shards = list_shards(Source(paths=(str(root),)), ["rgb@64"], model, NOTHING, size=2)
    (root / "more.png").touch()
    with pytest.raises(UsageError, match="has 4 pictures, not 3 as when they were counted"):
        shards.samples(shards.shards[1])
    os.rename(root / "0.PNG", root / "1.jpg")
    with pytest.raises(UsageError, match=r"both would be sample '1'"):
        list_shards(Source(paths=(str(root),)), ["rgb@64"], model, NOTHING)
    empty = write(tmp_path / "empty", {"x.md": b""})
    with pytest.raises(UsageError, match=r"holds no picture, .*passed over: 1 \.md"):
        list_shards(Source(paths=(str(empty),)), ["rgb@64"], model, NOTHING)


def test_links_to_themselves_fail_alone(model: ModelFiles, tmp_path: Path) -> None:
    kinds = (("rgb", ".png"), ("caption", ".txt"))
    files = {f"{kind}/a/{i}{end}": b"" for kind, end in kinds for i in range(3)}
    root = write(tmp_path, files)
    (root / "caption/a/4.txt").symlink_to("4.txt")
    (root / "rgb/a/loop").symlink_to("loop")
    check(root, model)
