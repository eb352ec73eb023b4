"""`samples/NNNNN.jsonl`: what is recorded of each sample, what `--resume` compares, and older folders."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourm.checks.verify import verify_folder
from fourm.data.dataset import Input
from fourm.data.layout import CROP_SETTINGS, Key, Place, Sample, number_keys, samples_of_prompts
from fourm.data.shards import PARQUET
from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.inputs.origins import read_replay
from fourm.inputs.request import Request
from fourm.inputs.world import World
from fourm.output.joining import check_output
from fourm.output.processes import CHECKSUMS, OLDER_CHECKSUMS, Launch, now, of_kind, read_checksums
from fourm.output.record import RUN, SR_RUN, format_run
from fourm.output.samples import Run, SampleWriter, load_run, open_runs, samples_for
from fourm.results.events import Saved
from fourm.runs.pipeline import run
from fourm.schedule.chain import TargetSpec, make_chain
from fourm.views.album import open_album
from tests.output.test_joining import SETTINGS
from tests.sharded_folder import make_folder

PROMPTS = ["a red circle", "a blue square", "the green triangle"]
RGB = TargetSpec("tok_rgb@64", 64, "roar", 2)
FIRST = "samples/00000.jsonl"


def request(tiny: Path, out: Path, **changes: object) -> Request:
    chain = make_chain([RGB], ["caption"])
    basis = Request(find_model(tiny), chain, samples_of_prompts(PROMPTS), out, device="cpu")
    return replace(basis, **changes)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "out"
    list(run(request(tiny, out, num_variations=2, input=Input("texts"))))
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def again(tiny: Path, out: Path, **changes: object) -> list[int]:
    """Resume the run of `out`; the variations that were made again."""
    events = run(
        request(tiny, out, **{"num_variations": 2, "input": Input("texts"), "resume": True} | changes)
    )
    return [event.variation for event in events if isinstance(event, Saved)]


def test_a_sample_is_a_line_with_its_prompt_and_the_files_of_each_variation(out: Path) -> None:
    first, _, last = lines(out / FIRST)
    assert first == {
        "key": "00000/000000",
        "prompt": PROMPTS[0],
        "variations": [0, 1],
        "files": {
            "caption": ["caption/00000/000000.txt"],
            "tok_rgb@64": ["tok_rgb@64/00000/000000-v0.npy", "tok_rgb@64/00000/000000-v1.npy"],
            "rgb": ["rgb/00000/000000-v0.png", "rgb/00000/000000-v1.png"],
        },
    }
    assert (last["key"], last["prompt"]) == ("00000/000002", PROMPTS[2])
    assert FIRST in read_checksums(out)


def test_every_thousand_has_a_file_that_is_written_with_its_first_sample(tmp_path: Path) -> None:
    samples = [Sample(key, "a red circle") for key in number_keys(2500)]
    writer = SampleWriter(Run(tmp_path, RUN, SETTINGS), samples, fit="")
    written = [writer.record(samples[number].key) for number in (1700, 3, 1000, 999, 2499)]
    folder = tmp_path / "samples"
    assert written == [folder / "00001.jsonl", folder / "00000.jsonl", None, None, folder / "00002.jsonl"]
    assert [len(lines(path)) for path in sorted(folder.iterdir())] == [1000, 1000, 500]
    found = Run(tmp_path, RUN, SETTINGS)
    assert [sample.key for sample in found.samples()] == [sample.key for sample in samples]
    assert [found.find(key) is not None for key in (samples[0].key, samples[1234].key, Key("a", "b"))] == [
        True, True, False,
    ]  # fmt: skip


def test_whichever_process_writes_it_the_record_is_the_same(tiny: Path, made: Path, tmp_path: Path) -> None:
    for rank in (1, 0):
        list(run(request(tiny, tmp_path, num_variations=2, input=Input("texts"), world=World(rank, 2))))
    assert (tmp_path / FIRST).read_bytes() == (made / FIRST).read_bytes()
    assert sum(b"samples/" in file.path.read_bytes() for file in of_kind(tmp_path, CHECKSUMS)) == 1
    assert verify_folder(tmp_path).ok


def test_a_record_that_was_lost_or_damaged_is_written_again(tiny: Path, made: Path, out: Path) -> None:
    for damage in (Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_text('{"key": ')):
        damage(out / FIRST)
        assert FIRST in {found.file for found in verify_folder(out).findings}
        assert again(tiny, out) == []
        assert (out / FIRST).read_bytes() == (made / FIRST).read_bytes()
        assert verify_folder(out).ok


def test_a_record_that_a_killed_process_did_not_list_is_listed_on_resume(tiny: Path, out: Path) -> None:
    (listed,) = (file.path for file in of_kind(out, CHECKSUMS))
    text = listed.read_text().splitlines(keepends=True)
    listed.write_text("".join(text[2:]))  # a size and a checksum
    assert FIRST not in read_checksums(out)
    assert again(tiny, out) == []
    assert FIRST in read_checksums(out)


def test_resume_refuses_other_texts_and_says_which(tiny: Path, out: Path) -> None:
    others = samples_of_prompts([*PROMPTS[:2], "another one"])
    with pytest.raises(UsageError, match=r"line 3 of samples/00000\.jsonl is .*triangle.* and .*another one"):
        again(tiny, out, samples=others)
    with pytest.raises(UsageError, match=r'input\.kind is "texts" there and "folder" here'):
        again(tiny, out, input=Input("folder"))


def data_set(root: Path, kind: str = ".png") -> list[Sample]:
    samples = []
    for name in ("a", "b"):
        path = root / "rgb" / "f" / f"{name}{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 64), "red").save(path)
        samples.append(Sample(Key("f", name), files={"rgb@64": path}))
    return samples


def test_sources_are_relative_to_the_data_set_and_may_get_another_extension(
    tiny: Path, tmp_path: Path
) -> None:
    chain, out = make_chain([RGB], ["rgb@64"]), tmp_path / "out"
    list(run(request(tiny, out, samples=data_set(tmp_path / "data"), chain=chain)))
    recorded = lines(out / FIRST)
    assert [sample["sources"] for sample in recorded] == [
        {"rgb@64": ["rgb/f/a.png"]},
        {"rgb@64": ["rgb/f/b.png"]},
    ]
    assert {sample["fit"] for sample in recorded} == {"crop"}
    moved = data_set(tmp_path / "elsewhere", ".bmp")
    (out / "rgb_decoded/f/b.png").unlink()
    list(run(request(tiny, out, samples=moved, chain=chain, resume=True)))
    assert (out / "rgb_decoded/f/b.png").exists()
    assert lines(out / FIRST) == recorded
    crops = tmp_path / "elsewhere" / CROP_SETTINGS / "f" / "a.npy"
    crops.parent.mkdir(parents=True)
    np.save(crops, np.array([[0, 0, 64, 64, 0]]))
    moved[0] = replace(moved[0], files={**moved[0].files, CROP_SETTINGS: crops})
    with pytest.raises(UsageError, match="other samples"):
        list(run(request(tiny, out, samples=moved, chain=chain, resume=True)))


def test_a_file_that_lies_beside_results_is_no_sample_of_what_reads_them(tiny: Path, out: Path) -> None:
    for path in (out / "rgb/00000/stray-v0.png", out / "tok_rgb@64/00000/stray-v0.npy"):
        shutil.copy(path.with_name(path.name.replace("stray", "000000")), path)
    assert [key.name for key in open_album(out).keys] == ["000000", "000001", "000002"]
    base = open_runs(out)[0]
    names = [s.key.name for s in samples_for(base, base.samples(), {"caption": ("caption", "value")})]
    assert names == ["000000", "000001", "000002"]
    assert {found.kind for found in verify_folder(out).findings} == {"foreign"}


def test_a_long_name_is_not_cut_together_with_its_variation(tiny: Path, tmp_path: Path) -> None:
    """The name takes all bytes that a name may have, so that those of its files are longer."""
    key = Key("f", "n" * 220)
    list(run(request(tiny, tmp_path, samples=[Sample(key, PROMPTS[0])], num_variations=2)))
    assert open_album(tmp_path).keys == (key,)
    (sample,) = open_runs(tmp_path)[0].samples()
    assert (sample.key, (tmp_path / sample.file(Place("rgb", ".png"), 1)).is_file()) == (key, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "../x"}, {"key": 5}, {"key": "x/"}, {"variations": "01"}, {"variations": [0, 1, 2]},
        {"files": {}}, {"files": {"rgb": ["/etc/passwd"]}}, {"files": []}, {"prompt": ["x"]}, {"texts": 1},
        {"files": {"caption": ["caption/../../x.txt"], "rgb": ["rgb/a.png"], "tok_rgb@64": ["tok_rgb@64/a"]}},
        {"sources": {"rgb": ["../../x"]}},
    ],
)  # fmt: skip
def test_a_line_that_no_run_writes_is_refused_by_all_readers(out: Path, changes: dict[str, object]) -> None:
    first, *rest = lines(out / FIRST)
    (out / FIRST).write_text("".join(json.dumps(row) + "\n" for row in (first | changes, *rest)))
    with pytest.raises(UsageError, match=r"00000\.jsonl: line 1 is no sample of a run, or was damaged"):
        open_album(out)
    assert ("altered", FIRST) in {(found.kind, found.file) for found in verify_folder(out).findings}


def without_samples(out: Path) -> None:
    """As a version before `samples` left it."""
    shutil.rmtree(out / "samples")
    record = json.loads((out / RUN).read_text())
    del record["input"], record["sha256"]
    (out / RUN).write_text(json.dumps({**record, "samples_sha256": "ab"}, indent=1) + "\n")


def to_format_2(out: Path) -> None:
    """One list of checksums for all processes, and launches in the record."""
    without_samples(out)
    (file,) = of_kind(out, CHECKSUMS)
    (out / OLDER_CHECKSUMS).write_text(
        "".join(
            row
            for row in file.path.read_text().splitlines(keepends=True)
            if "  " in row and "samples" not in row
        )
    )
    shutil.rmtree(out / "processes")
    record = json.loads((out / RUN).read_text())
    del record["identity"]
    (out / RUN).write_text(json.dumps({**record, "format": 2, "launches": []}, indent=1) + "\n")
    (out / ".lock").touch()


def to_format_1(out: Path) -> None:
    """A place was a folder and a suffix, and there were no checksums."""
    to_format_2(out)
    (out / OLDER_CHECKSUMS).unlink()
    record = json.loads((out / RUN).read_text())
    for place in record["places"]:
        for name in ("modality", "form", "is_condition"):
            del place[name]
    for name in ("attention", "stage", "variation", "origin", "options"):
        del record[name]
    (out / RUN).write_text(json.dumps({**record, "format": 1}, indent=1) + "\n")


@pytest.mark.parametrize("make", [without_samples, to_format_2, to_format_1])
def test_an_older_folder_is_still_a_data_set(
    tiny: Path, made: Path, out: Path, make: Callable[[Path], None]
) -> None:
    wanted = [
        (panel.modality, panel.role, panel.file)
        for panel in open_album(made).view(Key("00000", "000001")).panels
    ]
    make(out)
    album = open_album(out, str(tiny))
    assert [key.name for key in album.keys] == ["000000", "000001", "000002"]
    view = album.view(album.keys[1])
    assert [(panel.modality, panel.role, panel.file) for panel in view.panels] == wanted
    assert view.problems == ()
    base = open_runs(out)[0]
    samples = samples_for(base, base.samples(), {"tok_rgb@64": ("tok_rgb@64", "ids")})
    chain = make_chain([TargetSpec("tok_depth@64", 64, "roar", 2)], ["tok_rgb@64"])
    sr_run = {"stage": "sr", "is_beside": True, "origin": base.record, "num_variations": 2}
    list(run(request(tiny, out, samples=samples, chain=chain, **sr_run)))
    assert len(list((out / "tok_depth@64/00000").iterdir())) == 6
    assert len(lines(out / "samples.sr/00000.jsonl")) == 3
    assert not (out / "samples").exists()
    assert load_run(out, SR_RUN).record.origin["model"] == base.record.model


@pytest.mark.parametrize("make", [without_samples, to_format_2, to_format_1])
def test_an_older_folder_is_verified_by_its_checksums_but_not_resumed_or_repeated(
    tiny: Path, out: Path, make: Callable[[Path], None]
) -> None:
    make(out)
    verdict = verify_folder(out)
    about_samples = [found for found in verdict.findings if "samples" not in found.file and found.file != RUN
                     and not found.file.startswith("processes")]  # fmt: skip
    assert about_samples == []
    assert ("older", RUN) in {(note.kind, note.file) for note in verdict.notes}
    (out / "caption/00000/000000.txt").write_text("other")
    found = {(found.kind, found.file) for found in verify_folder(out).findings}
    assert (("altered", "caption/00000/000000.txt") in found) is (make is not to_format_1)
    with pytest.raises(UsageError, match=r"an older version of this program wrote run\.json"):
        check_output(out, Launch(0, 1, now()), resume=True, overwrite=False)
    with pytest.raises(UsageError, match=r"an older version of this program wrote run\.json"):
        again(tiny, out)
    with pytest.raises(UsageError, match="an older version of this program wrote it"):
        read_replay(out / RUN)
    list(run(request(tiny, out, overwrite=True, num_variations=2)))
    assert (out / FIRST).exists()
    verdict = verify_folder(out)
    assert {found.file for found in verdict.findings} <= {".lock"}


def test_a_record_whose_last_line_is_cut_off_says_so(out: Path) -> None:
    path = out / FIRST
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"00000\.jsonl: line \d+ .*its end is missing"):
        list(open_runs(out)[0].samples())


def test_a_table_of_results_that_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    out = tmp_path / "out"
    make_folder(out, PARQUET)
    assert len([*load_run(out).samples()]) == 9
    path = out / "00001.parquet"
    (data := bytearray(path.read_bytes()))[-40:] = bytes(40)
    other = io.BytesIO()
    parquet.write_table(pa.table({"other": [1]}), other)
    for wrong in (bytes(data), b"", other.getvalue()):
        path.write_bytes(wrong)
        with pytest.raises(UsageError, match=r"00001\.parquet: cannot be read"):
            list(load_run(out).samples())


def test_samples_of_other_shards_are_found_beside_a_damaged_one(tmp_path: Path) -> None:
    record = replace(make_folder(tmp_path, PARQUET), shard_size=1000)  # so that 00000 is read first
    (tmp_path / RUN).write_text(format_run(record, "0123abcd"))
    keys = [one.key for one in load_run(tmp_path).samples()]
    (tmp_path / "00000.parquet").write_bytes(b"")
    run = load_run(tmp_path)
    assert (found := run.find(keys[-1])) is not None
    assert found.key == keys[-1]
    with pytest.raises(UsageError, match=r"00000\.parquet: cannot be read"):
        run.find(keys[0])
