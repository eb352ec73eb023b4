"""A run in shards has the results of a run of files, byte for byte, however it is divided."""

import io
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourm.api.reading import read
from fourm.batch.batches import Batch, plan
from fourm.batch.local import run_share
from fourm.batch.worker import Report, Worker
from fourm.codecs.files import pack_png
from fourm.data.containers import is_there
from fourm.data.dataset import Dataset
from fourm.data.shards import FORMATS
from fourm.errors import FourMError, UsageError
from fourm.files.opening import read_bytes
from fourm.files.tars import read_tar
from fourm.hub.files import ModelFiles, find_model, find_sr
from fourm.inputs.origins import read_replay
from fourm.inputs.request import Request
from fourm.inputs.world import World
from fourm.output.markers import marker_files, read_marker, read_markers
from fourm.output.record import RUN, SR_RUN
from fourm.output.samples import load_run, open_runs
from fourm.results.events import Failed, Finished, Saved, Started
from fourm.runs.pipeline import run, sr_request
from fourm.schedule.chain import Chain
from fourm.schedule.plan import parse_chain
from fourm.sources.reading import read_samples
from fourm.sources.results import shards_of_run
from fourm.sources.shards import Shards, list_shards
from fourm.sources.source import Source
from fourm.views.album import open_album
from fourm.views.panels import View

LIMIT = 1 << 24
LONG = "word " * 2000
PROMPTS = ["a small red circle", "a blue square", LONG, "a green triangle", "two red squares"]
OPTIONS = "--cond caption --targets tok_clip-tok_rgb --steps 2-2"
OWN = ("run.json", "run.sr.json", "failures.jsonl", "processes", "samples", "samples.sr", ".partial", "done",
       "done.sr")  # fmt: skip


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return find_model("demo")


def written(out: Path) -> dict[str, bytes]:
    """All files of results, by their path; a member of a tar by the path that its file has elsewhere."""
    found = dict[str, bytes]()
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_file() and name.partition("/")[0] not in OWN and path.suffix != ".tar":
            found[name] = read_bytes(path, LIMIT)
    for marker in (*read_markers(out), *read_markers(out, SR_RUN)):
        for name in marker.files:
            data, folder = read_bytes(out / name, LIMIT), name.removesuffix(f"/{marker.shard.name}.tar")
            above = f"{folder}/{marker.shard.name}/" if marker.keys == "name" else f"{folder}/"
            for member, (first, size) in read_tar(out / name).members.items():  # type: ignore[misc]
                assert above + member not in found
                found[above + member] = data[int(first) : int(first) + int(size)]
    return found


def make(batch: Batch, order: Sequence[int] | None = None) -> list[Report]:
    """Make a batch, each shard by a worker of its own, which got it by mail."""
    batch.open_folder()
    reports = list[Report]()
    for number in order if order is not None else range(len(batch.shards.shards)):
        worker = Worker(pickle.loads(pickle.dumps(batch)))
        reports.append(worker.make(batch.shards.shards[number]))
        worker.close()
    return reports


class Example:
    """A run, as files and as shards."""

    def __init__(self, model: ModelFiles, chain: Chain, source: Source, **settings: Any) -> None:
        self.model, self.chain, self.source, self.settings = model, chain, source, settings

    def request(self, out: Path, dataset: Dataset | None = None) -> Request:
        samples, read = ((), None) if dataset is None else (dataset.samples, dataset.input)
        request = Request(self.model, self.chain, samples, out, device="cpu", **self.settings)
        return request if read is None else replace(request, input=read)

    def whole(self) -> Dataset:
        asked = self.source, self.chain.conditions, self.model, io.BytesIO(), self.chain.raw, self.chain.keeps
        try:
            return read_samples(*asked)
        except UsageError:  # of a prompt, which in shards is the failure of its sample
            shards = self.shards(1000)
            return shards.samples(shards.shards[0])

    def as_files(self, out: Path) -> dict[str, bytes]:
        list(run(self.request(out, self.whole())))
        return written(out)

    def shards(self, size: int) -> Shards:
        return list_shards(
            self.source, self.chain.conditions, self.model, io.BytesIO(), self.chain.raw, self.chain.keeps,
            size=size,
        )  # fmt: skip

    def batch(self, out: Path, size: int, form: str = "shards", **settings: Any) -> Batch:
        return plan([replace(self.request(out), **settings)], self.shards(size), form, size)


@pytest.fixture
def prompts(model: ModelFiles, tmp_path: Path) -> Example:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    chain = parse_chain(OPTIONS, model)
    return Example(model, chain, Source(data=str(tmp_path / "p.txt")), num_variations=2, preview=2)


def test_shards_of_any_size_made_in_any_order_have_the_bytes_of_files(
    prompts: Example, tmp_path: Path
) -> None:
    files = prompts.as_files(tmp_path / "files")
    assert len(files) > 40
    for size, order in ((2, [2, 0, 1]), (1000, [0])):
        out = tmp_path / str(size)
        reports = make(prompts.batch(out, size), order)
        assert written(out) == files
        assert sum(report.counts.saved for report in reports) == 8
        assert sorted(failure.variation for report in reports for failure in report.failures) == [0, 1]
        assert sorted(path.name for path in out.iterdir()) == [
            "caption", "clip", "done", "preview", "rgb", "run.json", "tok_clip@64", "tok_rgb@64",
        ]  # fmt: skip
    run_of_shards = load_run(out)
    samples = list(run_of_shards.samples())
    assert [sample.key.name for sample in samples] == [f"{number:06d}" for number in range(5)]
    assert [sample.prompt for sample in samples] == [None if text == LONG else text for text in PROMPTS]
    assert run_of_shards.find(samples[3].key) == samples[3]
    assert samples[3].files["rgb"] == ("rgb/00000.tar/000003-v0.png", "rgb/00000.tar/000003-v1.png")


def test_weights_are_kept_as_the_request_says(model: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\na blue square\n")
    chain, source = parse_chain(OPTIONS, model), Source(data=str(tmp_path / "p.txt"))
    full, rounded = (Example(model, chain, source, weights=weights) for weights in ("full", "int8"))
    files = rounded.as_files(tmp_path / "files")
    make(rounded.batch(tmp_path / "shards", 1))
    assert written(tmp_path / "shards") == files
    assert full.as_files(tmp_path / "full") != files


def test_kept_parts_and_frames_of_pictures_have_the_bytes_of_files(model: ModelFiles, tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / "data" / "rgb" / f"split{number % 2}" / f"x{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack_png(np.full((40 + number, 60, 3), 40 * number, np.uint8)))
    (tmp_path / "data" / "rgb" / "split0" / "bad.png").write_bytes(b"\x89PNG")
    chain = parse_chain("--cond rgb --targets tok_depth-tok_rgb --keep rgb:0.5 --steps 1-2", model)
    example = Example(model, chain, Source(data=str(tmp_path / "data")), restore=True)
    files = example.as_files(tmp_path / "files")
    make(example.batch(tmp_path / "out", 2))
    assert written(tmp_path / "out") == files
    assert any(name.startswith("frame/") for name in files)
    (sample,) = [one for one in load_run(tmp_path / "out").samples() if one.key.path == "split1/x1"]
    assert (sample.fit, sample.prompt) == ("crop", None)


@pytest.mark.parametrize("form", FORMATS[1:])
def test_super_resolution_of_shards_has_the_bytes_of_files(
    form: str, prompts: Example, tmp_path: Path
) -> None:
    fine = find_sr(prompts.model, None)
    chain = parse_chain("--cond tok_clip-tok_rgb --targets tok_rgb@128 --steps 2", fine)
    prompts.settings["preview"] = 0

    def following(out: Path) -> Request:
        return replace(prompts.request(out), model=fine, chain=chain, stage="sr", is_beside=True)

    batch = plan([prompts.request(tmp_path / form), following(tmp_path / form)], prompts.shards(3), form, 3)
    reports = make(batch)
    assert [report.counts.saved for report in reports] == [8, 8]
    done = Worker(batch).make(batch.shards.shards[0])
    assert (done.was_done, done.counts) == (True, reports[0].counts)
    assert (batch.todo(), batch.share().done.saved) == ([], 16)
    marker = read_marker(tmp_path / form / "done" / "00000.json")
    replace(marker, counts=replace(marker.counts, saved=6, failed=0)).write(tmp_path / form)
    assert batch.todo() == [batch.shards.shards[0]]  # super-resolution lacks what the base run has now
    assert batch.share().done.saved == 8
    assert not Worker(batch).make(batch.shards.shards[0]).was_done
    marker.write(tmp_path / form)
    assert batch.todo() == []
    if form != "shards":
        keys = [sample.key for one in open_runs(tmp_path / form) for sample in one.samples()]
        assert len(keys) == 5 + 4
        return
    base = replace(prompts.request(tmp_path / "files"), samples=prompts.whole().samples)
    list(run(base))
    list(run(sr_request(base, following(tmp_path / "files"))))
    assert written(tmp_path / form) == written(tmp_path / "files")


def test_ranks_share_shards_and_what_is_damaged_is_made_again(prompts: Example, tmp_path: Path) -> None:
    out, many = tmp_path / "out", {"world": World(1, 2)}
    batch = prompts.batch(out, 1)
    make(batch, [])
    with pytest.raises(UsageError, match="is not empty"):
        batch.open_folder()
    prompts.batch(out, 1, **many).open_folder()  # one of several joins unasked, as often as it is started
    with pytest.raises(UsageError, match="seed is 0 there and 1 here"):
        prompts.batch(out, 1, seed=1, **many).open_folder()
    assert [[shard.number for shard in batch.todo(rank, 2)] for rank in (0, 1)] == [[0, 2, 4], [1, 3]]
    for rank in (1, 0):
        list(run_share(batch, batch.share(rank, 2)))
    whole = written(out)
    markers = [read_marker(path).files for path in marker_files(out)]
    assert batch.todo() == []
    (out / "rgb" / "00001.tar").write_bytes(b"cut")
    (out / "done" / "00003.json").unlink()
    share = batch.share()
    assert [shard.number for shard in share.todo] == [1, 3]
    assert len(share.faults) == 1
    events = list(run_share(batch, share))
    assert written(out) == whole
    assert [read_marker(path).files for path in marker_files(out)] == markers
    assert isinstance(start := events[0], Started)
    assert (start.total, start.skipped, start.shards) == (10, 6, 5)
    assert isinstance(end := events[-1], Finished)
    assert (end.saved, end.skipped, end.failed) == (4, 4, 2)


def test_what_was_stopped_at_any_file_goes_on_to_the_same_bytes(
    prompts: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts.chain = parse_chain("--cond caption --targets tok_clip --steps 1", prompts.model)
    prompts.settings |= {"decode": False, "preview": 0}
    make(prompts.batch(tmp_path / "whole", 2))
    whole, replaced = written(tmp_path / "whole"), os.replace
    for stop in range(1, 7):  # two tars and a marker for each of two shards
        left = [stop]

        def replace_or_stop(source: Path, target: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            replaced(source, target)

        batch = prompts.batch(tmp_path / str(stop), 2)
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace_or_stop)
            with pytest.raises(KeyboardInterrupt):
                make(batch)
        assert len(list(marker_files(batch.out))) == (stop - 1) // 3
        make(prompts.batch(tmp_path / str(stop), 2, resume=True), [shard.number for shard in batch.todo()])
        assert written(batch.out) == whole
        assert list((batch.out / ".partial").glob("*.*")) == []


def test_super_resolution_of_a_folder_of_shards(prompts: Example, tmp_path: Path) -> None:
    make(prompts.batch(tmp_path / "out", 3))
    run_of_shards, fine = load_run(tmp_path / "out"), find_sr(prompts.model, None)
    chain = parse_chain("--cond tok_clip-tok_rgb --targets tok_rgb@128 --steps 2", fine)
    shards = shards_of_run(run_of_shards, chain, fine, io.BytesIO())
    some = shards.samples(shards.shards[0]).samples[:1]
    request = Request(
        fine, chain, some, tmp_path / "fine", num_variations=2, stage="sr", origin=run_of_shards.record,
        device="cpu", input=shards.input,
    )  # fmt: skip
    reports = make(plan([request], shards, "shards", 3))
    assert [report.counts.saved for report in reports] == [4, 4]
    beside = replace(request, out=tmp_path / "out", is_beside=True)
    assert [report.counts.saved for report in make(plan([beside], shards, "shards", 3))] == [4, 4]
    marker = read_marker(tmp_path / "out" / "done" / "00000.json")
    replace(marker, counts=replace(marker.counts, saved=5)).write(tmp_path / "out")  # one was made again
    more = shards_of_run(run_of_shards, chain, fine, io.BytesIO())
    assert [shard.name for shard in plan([beside], more, "shards", 3).todo()] == ["00000"]
    marker.write(tmp_path / "out")
    assert plan([beside], shards, "shards", 3).todo() == []
    made = {name: data for name, data in written(tmp_path / "out").items() if "@128" in name}
    apart = written(tmp_path / "fine")
    assert made == {name: apart[name] for name in made}
    assert len(made) == 16
    os.truncate(tmp_path / "out" / "tok_clip@64" / "00001.tar", 3)
    with pytest.raises(UsageError, match="tar has 3 bytes, not"):
        shards.samples(shards.shards[1])


def test_results_in_shards_are_read_and_repeated(prompts: Example, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(prompts.batch(out, 2))
    results = read(out)
    assert len(results) == 5 * 2
    assert [bool(result.problem) for result in results][3:7] == [False, True, True, False]  # as of files
    assert results[0].rgb.size == (64, 64)
    replay = read_replay(out / "rgb" / "00000.tar" / "000001-v1.png")
    (sample,) = replay.chain_and_samples(prompts.model)[1]
    assert (replay.run is not None, sample.key.path) == (True, "00000/000001")
    assert is_there(sample.files["caption"])


def test_failed_shards_are_made_again_when_that_is_asked_for(prompts: Example, tmp_path: Path) -> None:
    batch = prompts.batch(tmp_path / "out", 2)
    make(batch)
    assert batch.todo() == []
    again = replace(batch, retry_failed=True)
    assert [shard.number for shard in again.todo()] == [1]
    events = list[object]()
    report = Worker(again).make(batch.shards.shards[1], events.append)
    assert not report.was_done
    assert Worker(batch).make(batch.shards.shards[1]).was_done
    assert {type(event) for event in events} >= {Saved, Failed}


@pytest.mark.parametrize("form", FORMATS[1:])
def test_overwriting_deletes_what_markers_name(form: str, prompts: Example, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(prompts.batch(out, 2, form), [0])
    (out / "mine.tar").write_text("mine")
    prompts.batch(out, 1, "shards", overwrite=True, seed=3).open_folder()
    assert sorted(path.name for path in out.iterdir()) == ["mine.tar", RUN]
    assert load_run(out).record.seed == 3


@pytest.mark.parametrize("form", FORMATS[1:])
def test_samples_of_every_format_are_found(form: str, prompts: Example, tmp_path: Path) -> None:
    make(prompts.batch(tmp_path / "out", 3, form), [1, 0])
    found = load_run(tmp_path / "out")
    keys = [sample.key for sample in found.samples()]
    assert [key.name for key in keys] == [f"{number:06d}" for number in range(5)]
    assert all((one := found.find(key)) and one.key == key for key in keys)


@pytest.mark.parametrize("form", FORMATS[1:])
def test_albums_of_shards_show_what_those_of_files_show(form: str, prompts: Example, tmp_path: Path) -> None:
    """With the sample that failed, and the films of previews."""
    prompts.as_files(tmp_path / "files")
    make(prompts.batch(tmp_path / "out", 2, form))
    albums = [open_album(tmp_path / name) for name in ("files", "out")]
    assert len(albums[0].keys) == 5
    shown = [[shown_by(album.view(key)) for key in album.keys] for album in albums]
    assert shown[0] == shown[1]
    assert any(films for *_, films in shown[0])


def shown_by(view: View) -> tuple[Any, ...]:
    panels = [
        (panel.modality, panel.role, panel.variation, panel.note, panel.picture and panel.picture.tobytes())
        for panel in view.panels
    ]
    films = [
        (film.modality, film.variation, film.order, frame.step, frame.decided, frame.picture.tobytes())
        for film in view.films
        for frame in film.frames
    ]
    return view.key, view.prompt, view.problems, panels, films


def test_a_shard_that_is_damaged_fails_alone(prompts: Example, tmp_path: Path) -> None:
    batch, name = prompts.batch(tmp_path / "out", 2), "00001/*"
    shards = [
        replace(one, parts=(*one.parts[:3], 10**6, 1)) if one.number == 1 else one
        for one in batch.shards.shards
    ]
    batch = replace(batch, shards=replace(batch.shards, shards=shards))
    reports = make(batch)
    assert [report.counts.failed for report in reports] == [0, 2, 0]
    assert {(one.key, one.reason.partition(": ")[2]) for one in reports[1].failures} == {
        (name, "has become shorter since its lines were counted")
    }


def test_overwriting_deletes_nothing_that_is_read(model: ModelFiles, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "rgb" / "a").mkdir(parents=True)
    (out / "rgb" / "a" / "0.png").write_bytes(pack_png(np.zeros((64, 64, 3), np.uint8)))
    chain, nothing = parse_chain("--cond rgb --targets tok_clip --steps 1", model), io.BytesIO()
    folder, pictures = Source(data=str(out)), Source(paths=(str(out / "rgb"),))
    for source in (folder, replace(folder, num_samples=1), pictures):
        shards = list_shards(source, chain.conditions, model, nothing, chain.raw)
        with pytest.raises(UsageError, match=r"would delete .*which this run reads"):
            plan([Request(model, chain, (), out, overwrite=True)], shards, "shards")
        plan([Request(model, chain, (), tmp_path / "other", overwrite=True)], shards, "shards")
        if source != pictures:
            with pytest.raises(UsageError, match="results would be taken for samples"):
                plan([Request(model, chain, (), out / "rgb" / "labels")], shards, "shards")


def test_a_process_that_is_told_so_joins_also_where_it_is_the_only_one(
    prompts: Example, tmp_path: Path
) -> None:
    batch = prompts.batch(tmp_path / "out", 5)
    make(batch, [])
    with pytest.raises(UsageError, match="is not empty"):
        batch.open_folder()
    one = replace(batch.requests[0], world=World(is_told=True))
    replace(batch, requests=(one, *batch.requests[1:])).open_folder()
    for rank, size in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(UsageError):
            batch.share(rank, size)


def test_a_process_whose_run_was_replaced_writes_no_shard(prompts: Example, tmp_path: Path) -> None:
    batch = prompts.batch(tmp_path / "out", 2)
    batch.open_folder()
    worker = Worker(batch)
    prompts.batch(batch.out, 2, seed=1, overwrite=True).open_folder()
    with pytest.raises(FourMError, match="was deleted or renamed while this process wrote into it"):
        worker.make(batch.shards.shards[0])
    worker.close()
    assert os.listdir(batch.out) == [RUN]
