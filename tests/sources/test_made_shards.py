"""What a run in shards has written is a data set with the keys of its samples, whatever they are called."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourm.codecs.files import pack_ids
from fourm.data.containers import is_there, read_member, split_path
from fourm.data.layout import Key
from fourm.data.shards import FORMATS, SHARDS, Shard
from fourm.hub.files import ModelFiles, find_model
from fourm.output.markers import Counts, Marker, settings_digest
from fourm.output.members import Member
from fourm.output.record import RUN, format_run
from fourm.output.samples import load_run
from fourm.output.shard_files import ShardFiles
from fourm.sources.reading import read_samples
from fourm.sources.shards import list_shards
from fourm.sources.source import Source
from tests.sharded_folder import CAPTION, IDS, RGB, record_of

NOTHING = io.BytesIO()
DATA = {CAPTION: b"", RGB: b"\x89PNG", IDS: pack_ids(np.arange(4))}
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)
PARTS = st.one_of(NAMES, st.sampled_from(["a b", "img.v2", "x.tar", "ü%2E", "x.json", "-v0", "00000"]))
PARTS = PARTS.filter(lambda name: not name.startswith("."))
KEYS = st.lists(st.lists(PARTS, min_size=1, max_size=4), min_size=1, max_size=5, unique_by=tuple)


@pytest.fixture(scope="module")
def model() -> ModelFiles:
    return find_model("demo")


def write_run(root: Path, form: str, shards: Sequence[tuple[str, Sequence[Key]]]) -> list[Marker]:
    """A run with these shards: their names, and the keys of their samples."""
    record, markers = record_of(form, len(shards)), list[Marker]()  # type: ignore[arg-type]
    root.mkdir()
    (root / RUN).write_text(format_run(record, "0123abcd"))
    for number, (name, keys) in enumerate(shards):
        files, counts = ShardFiles(root, Shard(number, name), form), Counts(len(keys), len(keys))
        for key in keys:
            for place in (CAPTION, IDS, RGB):
                data = key.path.encode() if place is CAPTION else DATA[place]
                files.add(Member(key, None, place.folder, place.suffix), data)
        markers.append(files.finish(Marker(files.shard, form, "path", counts, settings_digest(record), {})))
    return markers


def read_run(root: Path, model: ModelFiles) -> list[tuple[str, list[Key]]]:
    """The shards of a folder as a data set: with all its samples, whose files are those of their keys."""
    source, conditions = Source(data=str(root)), ["rgb@64", "caption"]
    whole = read_samples(source, conditions, model, NOTHING)
    shards = list_shards(source, conditions, model, NOTHING, size=2)
    found = [(shard.name, shards.samples(shard).samples) for shard in shards.shards]
    assert whole.incomplete == ()
    assert sorted(one.key for _, samples in found for one in samples) == sorted(s.key for s in whole.samples)
    for sample in (one for _, samples in found for one in samples):
        place = split_path(sample.files["caption"])
        assert place is not None
        assert read_member(*place, 1 << 20).decode() == sample.key.path
    return [(name, [sample.key for sample in samples]) for name, samples in found]


@FEW
@pytest.mark.parametrize("form", FORMATS[1:])
@given(keys=KEYS, name=st.sampled_from(["odd", "00000", "a/x.b", "a"]), are_below=st.booleans())
def test_keys_stay_from_one_run_to_the_next(
    form: str, keys: list[list[str]], name: str, are_below: bool, model: ModelFiles,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    root = tmp_path_factory.mktemp("runs")
    named = [Key("/".join([*([name] if are_below else []), *key[:-1]]), key[-1]) for key in keys]
    (marker,) = write_run(root / "0", form, [(name, named)])
    assert form != SHARDS or not are_below or marker.keys == "name"
    for number in range(2):
        run = load_run(root / str(number))
        samples = list(run.samples())
        assert sorted(sample.key for sample in samples) == sorted(named)
        assert all(run.find(sample.key) == sample for sample in samples)
        assert all(is_there(run.root / sample.files["rgb"][0]) for sample in samples)
        shards = read_run(run.root, model)
        assert sorted(key for _, keys in shards for key in keys) == sorted(named)
        write_run(root / str(number + 1), form, shards)


@pytest.mark.parametrize("form", FORMATS[1:])
def test_variations_are_samples_called_as_their_files_would_be(
    form: str, model: ModelFiles, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    record = replace(record_of(form, 1), num_variations=2)  # type: ignore[arg-type]
    (tmp_path / "out" / RUN).write_text(format_run(record, "0123abcd"))
    files = ShardFiles(tmp_path / "out", Shard(0, "a"), form)
    for variation in (0, 1):
        files.add(Member(Key("a", "x.y"), variation, RGB.folder, RGB.suffix), DATA[RGB])
        files.add(Member(Key("a", "x.y"), variation, IDS.folder, IDS.suffix), DATA[IDS])
    files.finish(Marker(files.shard, form, "path", Counts(1, 2), settings_digest(record), {}))
    samples = read_samples(Source(data=str(tmp_path / "out")), ["rgb@64"], model, NOTHING).samples
    assert [sample.key.path for sample in samples] == ["a/x.y-v0", "a/x.y-v1"]
