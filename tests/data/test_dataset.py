"""Datasets listed as recorded, matched by name, and told what is wrong with samples, folders and links."""

import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourm.codecs.files import read_ids
from fourm.codecs.table import build_codec
from fourm.data.dataset import EXTENSIONS, choose_samples, list_dataset, permutation, suffix_of
from fourm.data.layout import Key, path_of, samples_of_prompts
from fourm.decoding.sampling import Noise
from fourm.errors import UsageError
from fourm.files.writing import write_text
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED
from fourm.modalities.text import WordPiece, encode_full
from fourm.sources.reading import read_samples
from fourm.sources.source import Source
from tests.folders import as_somebody
from tests.texts import prompts_in

HOSTILE = [
    "a\nb",
    "Zürich ☃",
    "a..",
    "-v0",
    "a b",
    "$(x)",
    "a.b.c",
    "%2e%2e",
    "x" * 251,
    "ä" * 125 + "x",
    "\x1b[31m",
]
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def problems(root: Path, *folders: str) -> dict[str, str]:
    """What is wrong, by sample."""
    dataset = list_dataset(root, {folder: folder for folder in folders})
    return {sample.key.text: sample.problem for sample in dataset.samples if sample.problem}


def sound(root: Path, *folders: str) -> list[str]:
    """Samples without a problem, in their order."""
    dataset = list_dataset(root, {folder: folder for folder in folders})
    return [sample.key.text for sample in dataset.samples if not sample.problem]


# As recorded.


def recorded_cases(golden: Path) -> list[dict[str, Any]]:
    recorded = json.loads((golden / "data" / "dataset_listing.json").read_text(encoding="utf-8"))
    return [{**case, "names": recorded["trees"][case["tree"]]} for case in recorded["cases"]]


def key_of(path: str) -> str:
    """`rgb/a/1.jpg` -> `a/1`, as samples are named here."""
    _, folder, name = path.split("/", 1)[0], *path.split("/", 1)[1].rsplit("/", 1)
    return f"{folder}/{name[: -len(suffix_of(name))]}"


def test_recorded_trees_are_listed_in_the_recorded_order(golden: Path, tmp_path: Path) -> None:
    """Hidden files aside, which the reference lists; there, a missing file would shift all that follow."""
    cases = recorded_cases(golden)
    for number, case in enumerate(case for case in cases if not case["settings"]):
        root = tmp_path / str(number)
        for name in case["names"]:
            if name.endswith("/"):
                (root / name).mkdir(parents=True, exist_ok=True)
            else:
                make(root, name)
        folders = {name: case["folder_override"].get(name, name) for name in case["modalities"]}
        if "reference_error" in case:  # a modality without a file
            with pytest.raises(UsageError, match="no folder"):
                list_dataset(root, folders)
            continue
        dataset = list_dataset(root, folders)
        listed = {
            name: [key_of(path) for path, _ in files if "/." not in path]
            for name, files in case["files"].items()
        }
        complete = set.intersection(*map(set, listed.values()))
        for keys in listed.values():
            assert [sample.key.text for sample in dataset.samples] == [key for key in keys if key in complete]
        for name, keys in listed.items():
            paths = [path for path, _ in case["files"][name] if "/." not in path and key_of(path) in complete]
            assert [s.files[name].relative_to(root).as_posix() for s in dataset.samples] == paths
            lacking = set().union(*map(set, listed.values())) - set(keys)
            folder = folders[name]
            assert {s.split(" lacks a file in ")[0] for s in dataset.incomplete if folder in s} >= lacking
        if "quirk" in case:
            assert dataset.incomplete
    assert number == len([case for case in cases if not case["settings"]]) - 1 == 5


def test_a_recorded_choice_of_samples_is_the_same(golden: Path) -> None:
    plain = [case for case in recorded_cases(golden) if not case["settings"] and "files" in case]
    everything = {(case["tree"], *case["modalities"]): case["files"] for case in plain}
    chosen = [case for case in recorded_cases(golden) if set(case["settings"]) == {"max_samples"}]
    assert chosen
    for case in chosen:
        for name, files in case["files"].items():
            whole = [path for path, _ in everything[case["tree"], *case["modalities"]][name]]
            order = permutation(len(whole), 0)[: case["settings"]["max_samples"]]
            assert [whole[i] for i in order] == [path for path, _ in files]


def test_recorded_subsets_are_drawn(golden: Path) -> None:
    cases = json.loads((golden / "data" / "dataset_kinds.json").read_text(encoding="utf-8"))["subsample"]
    for case in cases:
        count, length, indices = case["num_samples"], case["dataset_length"], case["original_indices"]
        order = permutation(length, case["seed"])[:count]
        assert len(order) == case["length"]
        assert order[: len(indices)] == indices
        samples = samples_of_prompts([str(i) for i in range(length)])
        taken = choose_samples(samples, count, case["seed"])
        assert sorted(order) == [int(sample.caption or "") for sample in taken]


@FEW
@given(count=st.integers(0, 3000), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_a_seed_is_that_of_numpys_legacy_generator(count: int, seed: int) -> None:
    assert permutation(count, seed) == np.random.RandomState(seed).permutation(count).tolist()


def test_seeds_that_numpy_refuses_are_seeds_too() -> None:
    orders = [permutation(100, seed) for seed in (1, 2**32, 2**32 + 1, 2**64 - 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(100)) for order in orders)


def test_the_recorded_prompts_are_samples_under_their_own_numbers(golden: Path) -> None:
    facts = json.loads((golden / "data" / "dataset_kinds.json").read_text(encoding="utf-8"))["parti"]
    table = golden / "parti" / "PartiPrompts.tsv"
    samples = samples_of_prompts(prompts_in(table))
    captions = [sample.caption or "" for sample in samples]
    assert len(set(captions)) == len(samples) == facts["rows"]
    wordpiece = WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")
    for item in facts["items"]:
        assert captions[item["index"]] == item["prompt"]
        assert encode_full(item["prompt"], wordpiece) == item["ids"]
        assert samples[item["index"]].key.name == f"{item['index']:06d}"
    longest = max(len(encode_full(caption, wordpiece)) for caption in captions)
    assert longest == facts["longest_prompt_tokens_with_eos"]
    categories, challenges = prompts_in(table, "Category"), prompts_in(table, "Challenge")
    assert {name: categories.count(name) for name in set(categories)} == facts["categories"]
    assert {name: challenges.count(name) for name in set(challenges)} == facts["challenges"]
    chosen = choose_samples(samples, 20, 0)
    assert {int(sample.key.name) for sample in chosen} == set(facts["first_subsample_order"])


def test_repeating_a_dataset_is_making_variations(golden: Path) -> None:
    """The reference repeats the list; here a sample keeps its name, and its results are numbered."""
    recorded = json.loads((golden / "data" / "dataset_kinds.json").read_text(encoding="utf-8"))["repeat"]
    samples = samples_of_prompts(["x"] * recorded["dataset_length"])
    made = [
        (index, path_of(Path("out"), "rgb", sample.key, ".png", variation))
        for variation in range(recorded["repeats"])
        for index, sample in enumerate(samples)
    ]
    assert [index for index, _ in made] == recorded["items"]
    assert len({paths for _, paths in made}) == recorded["length"]


def test_the_recorded_dataset_is_read_as_recorded(golden: Path) -> None:
    """Crop 0, as in generation; pictures without crop settings are their centre square."""
    root = golden / "data" / "mini_dataset"
    recorded = json.loads((golden / "data" / "mini_dataset.json").read_text(encoding="utf-8"))
    arrays = np.load(golden / "data" / "mini_dataset.npz")
    rows = {name: RELEASED.get(name) for name in ("tok_rgb@224", "tok_dinov2_global", "caption", "rgb@224")}
    dataset = list_dataset(root, {name: "rgb" if name == "rgb@224" else name for name in rows})
    assert [sample.key.text for sample in dataset.samples] == ["x/s1", "x/s2"]
    assert dataset.incomplete == ()
    wordpiece = WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")
    caption = build_codec(rows["caption"], wordpiece=wordpiece)
    with_tokens = [case for case in recorded["with_tokens"] if case["crop_number"] == 0]
    for sample, case, plain in zip(dataset.samples, with_tokens, recorded["without_tokens"], strict=True):
        assert caption.read(sample.files["caption"]) == case["caption"] == plain["caption"]
        for name in ("tok_rgb@224", "tok_dinov2_global"):
            ids = read_ids(sample.files[name], rows[name].max_tokens, rows[name].vocab_size)
            assert ids.tolist() == case[name]
        row = rows["rgb@224"]
        small = build_codec(replace(row, image_size=48, grid=(3, 3), max_tokens=9))
        slot = small.encode([small.read(sample.files["rgb@224"])])
        assert np.abs(slot.values[0].numpy() - arrays[plain["rgb_key"]]).max() < 1e-5


# By name.


def test_a_subset_is_the_first_ones_or_a_seeded_choice_and_keeps_the_names() -> None:
    samples = samples_of_prompts([str(i) for i in range(50)])
    assert choose_samples(samples, 3, None) == samples[:3]
    chosen = choose_samples(samples, 5, 7)
    assert chosen == choose_samples(samples, 5, 7)
    assert chosen != samples[:5]
    assert chosen == sorted(chosen, key=lambda sample: sample.key)
    assert choose_samples(samples, 99, None) == samples


def test_hostile_names_are_kept_listed_and_written_without_collision(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    out.mkdir()
    make(data, *(f"rgb/{name[:60]}/{name}.png" for name in HOSTILE))
    dataset = list_dataset(data, {"rgb": "rgb"})
    assert sorted(s.key.name for s in dataset.samples) == sorted(Key("a", name).name for name in HOSTILE)
    written = []
    for sample in dataset.samples:
        for variation in (0, 10):
            path = path_of(out, "tok_rgb@64", sample.key, ".npy", variation)
            write_text(out, path, sample.key.text)
            written.append(path)
    assert len({os.path.realpath(p) for p in written}) == 2 * len(HOSTILE)
    assert all(p.is_file() and p.resolve().is_relative_to(out.resolve()) for p in written)


def test_names_that_are_not_utf8_are_printable_and_readable(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "rgb" / "a")
    os.makedirs(folder)
    with open(folder + b"/\xff\xfe.png", "wb"):
        pass
    (sample,) = list_dataset(tmp_path, {"rgb": "rgb"}).samples
    assert sample.key.text.encode() == b"a/\\xff\\xfe"
    assert sample.files["rgb"].is_file()


def test_samples_are_matched_by_name_and_a_missing_partner_is_reported(tmp_path: Path) -> None:
    make(tmp_path, "rgb/x/1.png", "rgb/x/10.png", "rgb/x/2.JPG", "caption/x/1.txt", "caption/x/2.json.gz")
    make(tmp_path, "rgb/x/.hidden.png", "rgb/top.png", "caption/top.txt", "rgb/x/notes.md")
    dataset = list_dataset(tmp_path, {"rgb@64": "rgb", "caption": "caption"})
    assert [s.key.text for s in dataset.samples] == ["top", "x/1", "x/2"]
    assert dataset.samples[2].files["rgb@64"].name == "2.JPG"
    assert dataset.incomplete == ("x/10 lacks a file in caption",)


def test_hidden_folders_of_other_programs_are_left_out(tmp_path: Path) -> None:
    for name in ("f/a.png", "f/.ipynb_checkpoints/a.png", ".thumbnails/b.png", ".partial/c.png"):
        (tmp_path / "rgb" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rgb" / name).touch()
    assert [s.key for s in list_dataset(tmp_path, {"rgb": "rgb"}).samples] == [Key("f", "a")]


def test_two_files_of_one_stem_are_a_problem_of_that_sample(tmp_path: Path) -> None:
    make(
        tmp_path,
        "rgb/x/1.png",
        "rgb/x/1.jpg",
        "rgb/x/1.webp",
        "rgb/x/2.png",
        "caption/x/1.txt",
        "caption/x/2.txt",
    )
    dataset = list_dataset(tmp_path, {"rgb": "rgb", "caption": "caption"})
    assert [sample.key.text for sample in dataset.samples] == ["x/1", "x/2"]
    wrong, right = dataset.samples
    assert wrong.problem == f"two files for one sample: {tmp_path}/rgb/x/1.jpg and 1.png; keep one of them"
    assert right.problem == ""
    assert dataset.incomplete == ()


def test_a_missing_folder_names_those_that_are_there(tmp_path: Path) -> None:
    make(tmp_path, "rgb/x/1.png")
    with pytest.raises(UsageError, match=r"no folder 'caption'; there is rgb"):
        list_dataset(tmp_path, {"caption": "caption"})
    (tmp_path / "caption").mkdir()
    with pytest.raises(UsageError, match=r"no sample has a file in each .*: x/1 lacks a file in caption"):
        list_dataset(tmp_path, {"rgb": "rgb", "caption": "caption"})
    make(tmp_path, "depth")
    with pytest.raises(UsageError, match=r"'depth' is a file, not a folder; there is caption, rgb"):
        list_dataset(tmp_path, {"depth": "depth"})


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    make(tmp_path, "rgb/x/1.png")
    (tmp_path / "rgb" / "x" / "again").symlink_to(tmp_path / "rgb" / "x")
    assert [s.key.text for s in list_dataset(tmp_path, {"rgb": "rgb"}).samples] == ["x/1"]


# Links, folders and permissions.


def test_links_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/pictures/1.png", "elsewhere/2.png", "data/rgb/a/3.png")
    data = tmp_path / "data"
    (data / "rgb" / "b").symlink_to(tmp_path / "elsewhere" / "pictures")
    (data / "rgb" / "c").symlink_to(tmp_path / "elsewhere" / "pictures")
    (data / "rgb" / "a" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert sound(data, "rgb") == ["a/2", "a/3", "b/1", "c/1"]


def test_a_dangling_link_without_an_extension_is_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    make(tmp_path, "rgb/a/1.png")
    (tmp_path / "rgb" / "b").symlink_to(tmp_path / "unmounted")
    (tmp_path / "rgb" / "a" / "readme.md").symlink_to(tmp_path / "gone")
    assert problems(tmp_path, "rgb") == {
        "b/*": f"{tmp_path}/rgb/b: a link to {tmp_path}/unmounted, which is not there"
    }
    assert sound(tmp_path, "rgb") == ["a/1"]


def test_a_link_to_itself_is_a_sample_that_cannot_be_read(tmp_path: Path) -> None:
    make(tmp_path, "rgb/a/1.png")
    (tmp_path / "rgb" / "a" / "2.png").symlink_to("2.png")
    (tmp_path / "rgb" / "a" / "c").symlink_to("c")
    assert sound(tmp_path, "rgb") == ["a/1", "a/2"]
    assert list(problems(tmp_path, "rgb")) == ["a/c/*"]


def test_ways_through_links_are_counted_not_followed_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty folders, each of which has two links to the next: a million ways."""
    monkeypatch.setattr("fourm.data.dataset.MAX_SAMPLES", 2000)
    for i in range(20):
        (tmp_path / "rgb" / f"{i}").mkdir(parents=True)
        for side in "lr":
            (tmp_path / "rgb" / f"{i}" / side).symlink_to(tmp_path / "rgb" / f"{i + 1}")
    (tmp_path / "rgb" / "20").mkdir()
    with pytest.raises(UsageError, match="more than 2,000 folders"):
        list_dataset(tmp_path, {"rgb": "rgb"})


def test_too_many_samples_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourm.data.dataset.MAX_SAMPLES", 20)
    make(tmp_path, *(f"rgb/a/{i}.png" for i in range(20)))
    assert len(sound(tmp_path, "rgb")) == 20
    make(tmp_path, "rgb/a/20.png")
    with pytest.raises(UsageError, match="at most 20 samples"):
        list_dataset(tmp_path, {"rgb": "rgb"})


def test_a_folder_that_cannot_be_read_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "rgb/a/1.png", "rgb/b/1.png", "rgb/b/deep/1.png", "caption/a/1.txt")
    make(tmp_path, "caption/b/1.txt", "caption/b/deep/1.txt", "caption/b/deep/2.txt")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    here, folder = Path(), Path("rgb/b")
    folder.chmod(0)
    with as_somebody():
        found, together = problems(here, "rgb"), problems(here, "rgb", "caption")
        assert sound(here, "rgb") == ["a/1"]
    folder.chmod(0o755)
    reason = "rgb/b: cannot be read (Permission denied)"
    assert found == {"b/*": reason}
    # Another modality knows the names, so they fail, and are the same samples once the folder is mended.
    assert together == {"b/1": reason, "b/deep/1": reason, "b/deep/2": reason}


@pytest.mark.parametrize("name", ["", "rgb"])
def test_a_dataset_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make(tmp_path, "data/rgb/a/1.png")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    folder = Path("data", name)
    folder.chmod(0)
    with as_somebody(), pytest.raises(UsageError, match=rf"^{folder}: cannot be read \(Permission denied\)"):
        list_dataset(Path("data"), {"rgb": "rgb"})
    folder.chmod(0o755)


def test_a_path_too_long_for_the_system_fails_alone(tmp_path: Path) -> None:
    make(tmp_path, "rgb/a/1.png")
    descriptor = os.open(tmp_path / "rgb" / "a", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=descriptor)
        descriptor = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
    os.close(os.open("deep.png", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    (wrong,) = problems(tmp_path, "rgb").values()
    assert wrong.endswith("cannot be read (File name too long)")
    assert sound(tmp_path, "rgb") == ["a/1"]


def test_a_folder_named_like_a_picture_is_a_problem_of_its_sample(tmp_path: Path) -> None:
    make(tmp_path, "rgb/a/1.png", "rgb/a/b.jpg/2.png")
    (tmp_path / "rgb" / "a" / "3.png").mkdir()
    (tmp_path / "rgb" / "a" / "1.jpg").mkdir()  # there is a file for this one
    (tmp_path / "rgb" / "top.png").mkdir()  # a folder, in which nothing is
    assert problems(tmp_path, "rgb") == {"a/3": f"{tmp_path}/rgb/a/3.png: a folder, where a file should be"}
    assert sound(tmp_path, "rgb") == ["a/1", "a/b.jpg/2"]


def test_a_dataset_in_which_no_sample_can_be_read_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "rgb/x/1.png", "rgb/x/1.jpg", "rgb/y/1.png", "rgb/y/1.jpg")
    with pytest.raises(UsageError, match="none of the 2 samples can be read: two files for one sample"):
        list_dataset(tmp_path, {"rgb": "rgb"})


NAMES = st.sampled_from(["a", "b", "1", "10", "2", "x.y", "-v0", "ä", "a\nb", ".hidden", "d.tar.x"])
ENDS = st.sampled_from([".png", ".JPG", ".json.gz", ".json", ".txt", ".md", ".gz", ""])
TREES = st.lists(st.tuples(st.lists(NAMES, max_size=3), NAMES, ENDS), max_size=12)


@FEW
@given(first=TREES, second=TREES)
def test_every_file_is_a_sample_or_incomplete_or_told_or_no_sample(
    tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any
) -> None:
    """Against a few plain lines that do the same."""
    root = tmp_path_factory.mktemp("tree")
    trees = dict[str, dict[Key, list[str]]]()
    for folder, tree in (("rgb", first), ("caption", second)):
        trees[folder] = {}
        (root / folder).mkdir()
        for above, name, end in tree:
            path = root.joinpath(folder, *above, name + end)
            if path.exists() or any(p.is_file() for p in path.parents):
                continue
            make(root, str(path.relative_to(root)))
            stem = path.name[: -len(suffix_of(path.name))] if suffix_of(path.name) else ""
            if stem and not any(part.startswith(".") for part in (*above, path.name)):
                trees[folder].setdefault(Key("/".join(above), stem), []).append(path.name)
    rgb, caption = trees["rgb"], trees["caption"]
    both = {key for key in rgb.keys() & caption.keys() if len(rgb[key]) == len(caption[key]) == 1}
    double = {key for tree in trees.values() for key, names in tree.items() if len(names) > 1}
    try:
        dataset = list_dataset(root, {"rgb": "rgb", "caption": "caption"})
    except UsageError:
        assert not both
        return
    assert {s.key for s in dataset.samples if not s.problem} == both
    assert {s.key for s in dataset.samples if s.problem} == double
    assert len(dataset.incomplete) == len((rgb.keys() ^ caption.keys()) - double)
    for sample in dataset.samples:
        if not sample.problem:
            assert [sample.files[f].name for f in trees] == [trees[f][sample.key][0] for f in trees]


def test_extensions_are_known_in_upper_and_lower_case() -> None:
    assert all(suffix_of(f"x{end.upper()}") == end for end in EXTENSIONS)
    assert [suffix_of(name) for name in ("x", ".png", "x.gz", ".json.gz", "x.tar", "x.png ", "x.pngx")] == [
        ""
    ] * 7


@pytest.mark.parametrize("spoil", ["two files", "cut shard", "compressed shard"])
def test_files_beside_that_cannot_be_told_are_problems_of_their_samples(tmp_path: Path, spoil: str) -> None:
    """Without them the sample would silently show another part of its picture."""
    for name in ("a", "b"):
        for path in (f"depth/s/{name}.png", f"crop_settings/s/{name}.npy"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(b"0" * 600)
    make(tmp_path, "depth/t/c.png")
    folder, shard = tmp_path / "crop_settings" / "s", tmp_path / "crop_settings" / "s.tar"
    if spoil == "two files":
        (folder / "b.npz").write_bytes(b"0")
        said = "crop_settings/s/b.npy and b.npz; keep one of them"
    else:
        (folder / "a.npy").rename(tmp_path / "crop_settings" / "a.npy")
        with tarfile.open(shard, "w") as tar:
            tar.add(tmp_path / "crop_settings" / "a.npy", "a.npy")
            tar.add(folder / "b.npy", "b.npy")
        shutil.rmtree(folder)
        shard.write_bytes(shard.read_bytes()[: 512 * 8])
        said = "s.tar"
        if spoil == "compressed shard":
            shard.rename(tmp_path / "crop_settings" / "s.tar.gz")
            said = "a compressed shard gives no access"
    samples = list_dataset(tmp_path, {"depth": "depth"}, beside=("rgb", "crop_settings")).samples
    assert [sample.key.name for sample in samples if not sample.problem] == (
        ["c"] if spoil == "compressed shard" else ["a", "c"]
    )
    assert said in samples[1].problem


def test_a_file_where_a_folder_beside_belongs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "depth" / "s").mkdir(parents=True)
    (tmp_path / "depth" / "s" / "a.png").touch()
    (tmp_path / "crop_settings").touch()
    with pytest.raises(UsageError, match="'crop_settings' is a file, not a folder"):
        list_dataset(tmp_path, {"depth": "depth"}, beside=("rgb", "crop_settings"))


def test_the_recorded_empty_dataset_has_as_many_samples_as_asked_for(golden: Path) -> None:
    recorded = json.loads((golden / "data" / "dataset_kinds.json").read_text(encoding="utf-8"))["empty"]
    source = Source(data="empty", num_samples=recorded["dataset_size"])
    dataset = read_samples(source, (), find_model("demo"), io.BytesIO())
    assert [dict(sample.files) for sample in dataset.samples] == [recorded["item"]] * recorded["length"]


def test_recorded_seeds_that_collide_in_the_reference_are_different_noise(golden: Path) -> None:
    """Defect 31: it joins numbers without a mark between them, so (1, 23) and (12, 3) are one sample."""
    cases = json.loads((golden / "data" / "dataset_kinds.json").read_text(encoding="utf-8"))["seeds"]
    assert len({case["seed"] for case in cases}) == len(cases) - 1
    noises = set[int]()
    for run, index, variation in (case["parts"] for case in cases):
        noises.add(int(Noise.for_samples(run, [(f"{index:06d}", variation)]).streams))
    assert len(noises) == len(cases)
