"""Tars with several files for each key, and Parquet and Arrow files, made by the public writers."""

import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from PIL import Image
from pyarrow import parquet

from fourm.codecs.files import read_picture, read_text
from fourm.data.containers import expand_braces
from fourm.data.dataset import Dataset
from fourm.data.layout import Sample
from fourm.errors import UsageError
from fourm.hub.files import ModelFiles, find_model
from fourm.sources.reading import implied_conditions, read_samples
from fourm.sources.shards import list_shards
from fourm.sources.source import Source, classify_source

Run = Callable[..., tuple[int, str, str]]
NOTHING = io.BytesIO()
PICTURES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return find_model("demo")


def picture(number: int = 0, form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(stream, form)
    return stream.getvalue()


def write_tar(path: Path, samples: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def write_tars(folder: Path, count: int = 3, each: int = 2) -> Path:
    """Tars as img2dataset writes them."""
    for tar in range(count):
        samples = []
        for i in range(each):
            key, text = f"{tar:05d}{i:04d}", f"a red circle {i}"
            about = {
                "caption": text,
                "url": "https://x.y/z.jpg",
                "status": "success",
                "alt": f"a blue square {i}",
            }
            samples.append(
                {"__key__": key, "jpg": picture(i), "txt": text.encode(), "json": json.dumps(about).encode()}
            )
        write_tar(folder / f"{tar:05d}.tar", samples)
        parquet.write_table(pa.table({"key": ["x"], "status": ["success"]}), folder / f"{tar:05d}.parquet")
        (folder / f"{tar:05d}_stats.json").write_text("{}")
    return folder


def write_rows(path: Path, count: int = 3, **columns: Any) -> Path:
    """A Parquet file, or an Arrow stream, as the Hub and `datasets` lay them out."""
    pictures = pa.array([{"bytes": picture(i, "PNG"), "path": f"{i}.png"} for i in range(count)], PICTURES)
    given = pa.table({"image": pictures, "text": [f"a red circle {i}" for i in range(count)], **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(given, path, row_group_size=2)
    else:
        with pa.ipc.new_stream(str(path), given.schema) as writer:
            writer.write_table(given, max_chunksize=2)
    return path


def read(model: ModelFiles, data: Path | str, conditions: str = "rgb", **more: Any) -> Dataset:
    """The samples of a source; those of its shards, read by another process in any order, are the same."""
    names = [{"rgb": "rgb@64", "depth": "tok_depth@64"}.get(name, name) for name in conditions.split("-")]
    raw = [name for name in names if name.startswith("tok_") and name.split("@")[0] not in conditions]
    source = Source(data=str(data), **more)
    whole = read_samples(source, names, model, NOTHING, raw)
    shards = pickle.loads(pickle.dumps(list_shards(source, names, model, NOTHING, raw, size=2)))
    found = [shards.samples(shard) for shard in reversed(shards.shards)]
    assert _sorted(sample for one in found for sample in one.samples) == _sorted(whole.samples)
    assert sorted(text for one in found for text in one.incomplete) == sorted(whole.incomplete)
    assert shards.notes[0] == whole.notes[0]
    is_of_tars = shards.shards[0].parts[:1] == ("tar",)
    assert ("`shard_size=2`: divides no tar" in shards.notes[-1]) == is_of_tars
    assert replace(shards.input, sha256="") == whole.input  # and the names of shards
    return whole


def _sorted(samples: Any) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.key)


def keys(dataset: Dataset) -> list[str]:
    return [sample.key.text for sample in dataset.samples]


def test_tars_of_img2dataset_are_samples_by_key(model: ModelFiles, tmp_path: Path) -> None:
    write_tars(tmp_path / "data")
    (tmp_path / "link").symlink_to("data")
    found = read(model, tmp_path / "data" / "{00000..00002}.tar", "rgb-caption")
    assert keys(found) == [f"{tar:05d}/{tar:05d}{i:04d}" for tar in range(3) for i in range(2)]
    for i, sample in enumerate(found.samples):
        assert read_picture(sample.files["rgb@64"]).size == (40, 30)
        assert read_text(sample.files["caption"]) == f"a red circle {i % 2}"
    assert found.notes == (
        f"{tmp_path}/data/00000.tar: caption from txt, rgb from jpg; other endings: json (2); 00000.parquet "
        "beside it is not read",
    )
    assert keys(read(model, tmp_path / "data/*.tar")) == keys(found)
    assert keys(read(model, tmp_path / "data")) == keys(found)
    assert keys(read(model, tmp_path / "**/*.tar")) == [
        f"{top}/{key}" for top in ("data", "link") for key in keys(found)
    ]
    assert keys(read(model, tmp_path / "data/00001.tar")) == keys(found)[2:4]
    assert keys(read(model, tmp_path / "data", num_samples=3)) == keys(found)[:3]
    named = read(model, tmp_path / "data", "caption", column="alt")
    assert "caption from json/alt; other endings: jpg (2), txt (2)" in named.notes[0]
    one = named.samples[1]
    assert one.files["caption"] == tmp_path / "data/00000.tar/000000001.json/alt"
    assert read_text(one.files["caption"]) == "a blue square 1"


def test_keys_may_hold_dots_blanks_letters_of_any_kind_and_folders(model: ModelFiles, tmp_path: Path) -> None:
    names = ["a b", "img.v2", "dir.x/deep/k", "ünï", "zz.1.2", "UPPER"]
    samples: list[dict[str, Any]] = [
        {"__key__": name, "JPG" if name == "UPPER" else "jpg": picture(), "txt": b"a circle", "json": b"{}"}
        for name in names
    ]
    path = write_tar(tmp_path / "odd.tar", samples)
    found = read(model, path, "rgb-caption")
    assert sorted(keys(found)) == sorted(f"odd/{name}" for name in names)
    assert {read_text(sample.files["caption"]) for sample in found.samples} == {"a circle"}


def test_names_of_modalities_are_endings_and_others_can_be_mapped(model: ModelFiles, tmp_path: Path) -> None:
    ids = io.BytesIO()
    np.save(ids, np.zeros((1, 64), dtype=np.int16))
    sample = {
        "__key__": "a",
        "rgb.png": picture(form="PNG"),
        "tok_rgb.npy": ids.getvalue(),
        "mask.png": b"",
        "x": b"",
    }
    path = write_tar(tmp_path / "t.tar", [sample])
    assert (
        read(model, path)
        .notes[0]
        .endswith("rgb from rgb.png; other endings: mask.png (1), tok_rgb.npy (1), x (1)")
    )
    tokens = read_samples(Source(data=str(path)), ["tok_rgb@64"], model, NOTHING).samples
    assert tokens[0].files["tok_rgb@64"] == path / "a.tok_rgb.npy"
    with pytest.raises(
        UsageError, match=r"has nothing for depth; its other endings are .*mask\.png.*`map=ENDING=depth`"
    ):
        read(model, path, "depth")
    mapped = read(model, path, "depth", endings={".MASK.png": "depth"})
    assert mapped.samples[0].files["tok_depth@64"] == path / "a.mask.png"
    with pytest.raises(UsageError, match=r"`map=x=dephts`: there is no modality 'dephts'; did you mean"):
        read(model, path, endings={"x": "dephts"})


def test_a_dot_never_makes_a_sample_of_a_file_that_belongs_to_another_one(
    model: ModelFiles, tmp_path: Path
) -> None:
    samples = [{"__key__": f"{i}", "jpg": picture(), "preview.jpg": picture()} for i in range(2)]
    found = read(model, write_tar(tmp_path / "t.tar", samples))
    assert keys(found) == ["t/0", "t/1"]
    assert "other endings: preview.jpg (2)" in found.notes[0]


def test_samples_that_lack_a_part_are_named_and_doubles_fail(model: ModelFiles, tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"__key__": "a", "jpg": picture(), "txt": b"a circle"},
        {"__key__": "b", "jpg": picture()},
        {"__key__": "c", "txt": b"a circle"},
        {"__key__": "d", "jpg": picture(), "png": picture(form="PNG"), "txt": b"a circle"},
    ]
    found = read(model, write_tar(tmp_path / "t.tar", samples), "rgb-caption")
    assert found.incomplete == ("t/b lacks caption", "t/c lacks rgb")
    assert keys(found) == ["t/a", "t/d"]
    assert "two files for one sample" in found.samples[1].problem


@pytest.mark.parametrize("name", ["data/train-00000-of-00002.parquet", "train/data-00000-of-00002.arrow"])
def test_rows_of_a_hugging_face_data_set_are_samples(model: ModelFiles, tmp_path: Path, name: str) -> None:
    root = tmp_path / "set"
    first = write_rows(root / name, label=[1, 2, 3])
    second = write_rows(Path(str(first).replace("00000-of", "00001-of")), 1, label=[1])
    found = read(model, root, "rgb-caption")
    stems = [str(path.relative_to(root).with_suffix("")) for path in (first, second)]
    assert keys(found) == [f"{stems[0]}/00000/{i:06d}" for i in range(3)] + [f"{stems[1]}/00000/000000"]
    assert found.notes == (f"{first}: rgb from image, caption from text; other columns: label",)
    assert [read_text(sample.files["caption"]) for sample in found.samples[:3]] == [
        f"a red circle {i}" for i in range(3)
    ]
    assert read_picture(found.samples[2].files["rgb@64"]).getpixel((0, 0)) == (40, 0, 0)
    assert keys(read(model, first, num_samples=2)) == [f"{first.stem}/00000/{i:06d}" for i in range(2)]
    assert keys(read(model, first, num_samples=2, subset_seed=1)) != keys(read(model, first, num_samples=2))


def test_what_datasets_saves_beside_the_rows_is_not_read(model: ModelFiles, tmp_path: Path) -> None:
    write_rows(tmp_path / "train/data-00000-of-00001.arrow")
    write_rows(tmp_path / "train/cache-0123.arrow")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    state: dict[str, Any] = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (tmp_path / "train/state.json").write_text(json.dumps(state))
    assert len(keys(read(model, tmp_path))) == 3
    (tmp_path / "train/state.json").write_text(
        json.dumps({**state, "_indices_data_files": [{"filename": "i"}]})
    )
    with pytest.raises(UsageError, match=r"is a choice of rows of a data set; flatten_indices\(\) before"):
        read(model, tmp_path)
    (tmp_path / "train/state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(UsageError, match=r"names \.\./\.\./secret\.arrow, which is not there"):
        read(model, tmp_path)


def test_columns_are_found_by_name_and_by_kind(model: ModelFiles, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pictures = pa.array([{"bytes": picture(), "path": None}], PICTURES)
    parquet.write_table(
        pa.table({"photo": pictures, "words": ["a"], "jpg": ["b"], "det": [[{"x": 1}]]}), path
    )
    sample = read(model, path).samples[0]
    assert sample.files["rgb@64"] == path / "0.photo"
    assert read(model, path, "caption", column="words").samples[0].files["caption"] == path / "0.words"
    assert (
        read(model, path, "caption", endings={"words": "caption"}).samples[0].files["caption"]
        == path / "0.words"
    )
    assert read(model, path, "det").samples[0].files["det"] == path / "0.det"
    with pytest.raises(
        UsageError, match=r"no column 'wrds' that is read; did you mean 'words'\?; its columns are"
    ):
        read(model, path, "caption", column="wrds")
    with pytest.raises(UsageError, match="column 'jpg' holds texts, where rgb needs pictures"):
        read(model, path, endings={"jpg": "rgb"})
    parquet.write_table(pa.table({"image": ["iVBORw0KGgo="], "n": [1]}), path)
    with pytest.raises(
        UsageError,
        match=r"has nothing for rgb; its columns are image \(texts\), n \(data\); `map=COLUMN=rgb`",
    ):
        read(model, path)


def test_what_a_folder_is_its_contents_say(model: ModelFiles, tmp_path: Path) -> None:
    def kind(folder: str) -> str:
        found = classify_source(Source(data=str(tmp_path / folder)), model)
        return "containers" if found.containers else "pictures" if found.paths else "dataset"

    for name in ("layout/rgb/a.tar", "tars/a.tar", "hub/data/a.tar", "photos/a.tar", "deeper/a/b/c.tar"):
        write_tar(tmp_path / name, [{"__key__": "a", "jpg": picture()}])
    (tmp_path / "photos/a.jpg").write_bytes(picture())
    found = {name: kind(name) for name in ("layout", "tars", "hub", "photos", "deeper")}
    assert found == {
        "layout": "dataset", "tars": "containers", "hub": "containers", "photos": "pictures",
        "deeper": "pictures",
    }  # fmt: skip
    write_rows(tmp_path / "hub/data/b.parquet")
    with pytest.raises(UsageError, match=r"holds both tars and files of columns \(a\.tar, b\.parquet\)"):
        kind("hub")
    assert implied_conditions(classify_source(Source(data=str(tmp_path / "tars")), model)) == ("rgb",)
    texts = write_tar(tmp_path / "t.tar", [{"__key__": "a", "txt": b"a circle"}])
    assert implied_conditions(classify_source(Source(data=str(texts)), model)) == ("caption",)


def test_braces_stand_for_names() -> None:
    assert expand_braces("a{0..2}b{x,y}") == ["a0bx", "a0by", "a1bx", "a1by", "a2bx", "a2by"]
    assert expand_braces("{008..011}") == ["008", "009", "010", "011"]
    assert expand_braces("{2..0}.tar") == ["2.tar", "1.tar", "0.tar"]
    assert expand_braces("{a}{}{0..}.tar") == ["{a}{}{0..}.tar"]
    with pytest.raises(UsageError, match="stand for more than 1,000,000 files"):
        expand_braces("{0..99999}{0..99999}{0..999999999999}.tar")


def test_names_in_braces_may_lie_in_several_folders(model: ModelFiles, tmp_path: Path) -> None:
    for name in ("train/a", "val/b"):
        write_tar(tmp_path / f"{name}.tar", [{"__key__": "k", "jpg": picture()}])
    assert keys(read(model, tmp_path / "{train/a,val/b}.tar")) == ["train/a/k", "val/b/k"]
    assert keys(read(model, tmp_path / "t{rain,est}/*.tar", num_samples=1)) == ["train/a/k"]
    (tmp_path / "loop").symlink_to("loop")
    assert keys(read(model, tmp_path)) == ["train/a/k", "val/b/k"]


def test_mistakes_are_one_sentence(model: ModelFiles, tmp_path: Path) -> None:
    write_tars(tmp_path / "d")
    (tmp_path / "x.tar.gz").write_bytes(b"")
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "no.tar").write_bytes(b"no tar" * 999)
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    for data, why in {
        "d/{00001..00004}.tar": "2 of 4 files are not there: 00003.tar, 00004.tar",
        "d/9.tar": "9.tar: there is no such file or folder",
        "d/x*.tar": "matches nothing",
        "d/0000{0,0}.tar": "is given twice",
        "x.tar.gz": "a compressed tar gives no access to single members; unpack it to .tar",
        "empty.parquet": "empty.parquet: is damaged, or no file of columns",
        "no.tar": "can be read: .*no.tar: is cut off or damaged",
        "rows.parquet": "holds no row|no sample has",
        "ftp://bucket/{0..9}.tar": "ftp:// is not supported",
    }.items():
        conditions = "caption" if data == "rows.parquet" else "rgb"
        with pytest.raises(UsageError, match=why) as caught:
            read(model, data if "://" in data else tmp_path / data, conditions)
        assert "\n" not in str(caught.value)
    both = Source(data=str(tmp_path / "d"), files={"rgb@64": "cat.jpg"})
    with pytest.raises(UsageError, match=r"is a dataset, which is not read together with cat\.jpg"):
        read_samples(both, ["rgb@64"], model, NOTHING)
    for more in ({"column": "x"}, {"endings": {"a": "rgb"}}):
        with pytest.raises(UsageError, match=r"only .*tars and Parquet files of `data` have one"):
            read_samples(Source(data="empty", num_samples=1, **more), [], model, NOTHING)  # type: ignore[arg-type]


def test_hostile_tars_lose_what_is_wrong_with_them(model: ModelFiles, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "../out.jpg", "/etc/x.jpg", ".hidden.jpg", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            tar.addfile(member, io.BytesIO(picture()))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = {sample.key.text: sample.problem for sample in read(model, path).samples}
    assert {*found} == {"t/*", "t/a", "t/b", "t/link"}
    assert "a name that leads out of it" in found["t/*"]
    assert "is a link, a device" in found["t/link"]
    whole = write_tars(tmp_path / "d", 1, 4) / "00000.tar"
    whole.write_bytes(whole.read_bytes()[:5000])
    assert any("cut off" in sample.problem for sample in read(model, whole).samples)


def test_a_million_rows_are_listed_without_holding_them(tmp_path: Path) -> None:
    """The time and the memory of the shards of a million rows, and of the samples of one of them."""
    for name, rows in (("small", 2000), ("large", 1_000_000)):
        texts = pa.array(np.arange(rows).astype(str))
        parquet.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet", row_group_size=100_000)
    code = (
        "import io, resource, sys, time; from fourm.hub.files import find_model;"
        "from fourm.sources.shards import list_shards; from fourm.sources.source import Source;"
        "model = find_model('demo'); start = time.perf_counter();"
        "shards = list_shards(Source(data=sys.argv[1]), ['caption'], model, io.BytesIO());"
        "found = shards.samples(shards.shards[-1]).samples; assert len(found) == 1000;"
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    told = {}
    for name in ("small", "large"):
        given = [sys.executable, "-c", code, str(tmp_path / f"{name}.parquet")]
        done = subprocess.run(given, capture_output=True, text=True, check=True)
        told[name] = [float(word) for word in done.stdout.split()]
    assert told["large"][0] < told["small"][0] + 6
    assert told["large"][1] < told["small"][1] + 60


def test_public_formats_go_through_generate(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "d", 2, 1)
    odd = write_tar(
        tmp_path / "odd.tar", [{"__key__": "a.b/ü x.1", "jpg": picture(), "txt": b"a", "json": b"{}"}]
    )
    write_rows(tmp_path / "hf/data/train-00000-of-00001.parquet", 1)
    short = ["--cond", "rgb", "--targets", "all", "--detokenizer-steps", "1", "--device", "cpu"]
    for data, expected in {
        str(tmp_path / "d/{00000..00001}.tar"): ["00000/000000000", "00001/000010000"],
        str(odd): ["odd/a.b/ü x.1"],
        str(tmp_path / "hf"): ["data/train-00000-of-00001/00000/000000"],
    }.items():
        out = tmp_path / "out" / re.sub(r"\W", "", data[-9:])
        code, _, err = run("generate", "--data", data, *short, "--out", out)
        assert code == 0, err
        assert len(re.findall("rgb from", err)) == 1
        for folder, suffix in (("depth", ".npy"), ("caption", ".txt"), ("semseg", ".png")):
            assert [f"{key}{suffix}" for key in expected] == sorted(
                str(path.relative_to(out / folder)) for path in (out / folder).rglob(f"*{suffix}")
            )
    code, _, err = run("generate", "--data", odd, "--map", "jpg", "--out", tmp_path / "x")
    assert (code, "'jpg' is not ENDING=MODALITY" in err) == (2, True)
