"""Evaluations of folders: files, intervals, shares that are merged, what is said of damage."""

import csv
import hashlib
import json
import math
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import fourm
from fourm.checks.verify import verify_folder
from fourm.data.layout import Sample, number_keys
from fourm.errors import UsageError
from fourm.evaluation.folder import Asked, Task, measure_folder, plan, settings_of
from fourm.evaluation.pairs import Counts, list_pairs
from fourm.evaluation.results import intervals
from fourm.evaluation.shares import Share, write_share
from fourm.inputs.world import World
from fourm.measures.measure import ExactSum
from fourm.output.samples import load_run
from fourm.results.job import ENCODED
from fourm.views.measures import draw_histograms, draw_pair, worst_samples
from tests.folders import DEPTH, RGB, noise, put, write_record
from tests.measured import KEYS, dataset, run_folder
from tests.measures.seeded import write_lpips
from tests.sharded_folder import make_folder

Run = Callable[..., tuple[int, str, str]]
MEASURES = ("psnr", "token_share")  # that need no network


def noisy(root: Path, data: Path, count: int = 5, variations: int = 1) -> Path:
    """A run whose pictures are those of a dataset, more and more disturbed; the first is identical."""
    run_folder(root, count, variations)
    for at, key in enumerate(KEYS[:count]):
        truth = noise(10 * at, 8, 8, 3).astype(int)
        for number in [None] if variations == 1 else range(variations):
            value = np.clip(truth + noise(1, 8, 8, 3) % (4 * at + (number or 0) + 1), 0, 255)
            put(root, RGB, key, value, number)
    dataset(data, count)
    return root


def test_results_are_in_two_files(tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    found = fourm.evaluate(root, tmp_path / "data", measures="psnr")
    assert found is not None
    rows = [*csv.DictReader((root / "eval.csv").read_text().splitlines())]
    assert [row["key"] for row in rows] == [key.text for key in KEYS]
    numbers = [float(row["rgb/psnr"]) for row in rows]
    assert numbers[0] == math.inf
    said = json.loads((root / "eval.json").read_text())
    [result] = said["results"]
    assert result["value"] == pytest.approx(np.mean(numbers[1:]), rel=1e-12)
    assert result["low"] <= result["value"] <= result["high"]
    assert (result["samples"], result["identical"], result["better"]) == (4, 1, "higher")
    assert said["settings"]["against"] == str(tmp_path / "data")
    assert said["counts"]["rgb"]["pairs"] == 5
    assert not (root / ".partial").exists()


def test_features_of_the_encoder_are_compared_layer_by_layer_and_token_by_token(tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "other"]
    for root, turned in zip(runs, ([0, 3, 0], [4, 0, 0]), strict=True):
        write_record(root, [ENCODED])
        same = np.array([[[1, 2, 3], [0, 1, 0]], [[5, 0, 0], turned]], np.float32)  # (layers, tokens, width)
        put(root, ENCODED, KEYS[0], same)
        put(root, ENCODED, KEYS[1], same[:, 0])
    found = fourm.evaluate(str(runs[0]), str(runs[1]))
    assert [found.rows[key.text, None]["features/cosine"] for key in KEYS[:2]] == pytest.approx([0.75, 1])
    put(runs[1], ENCODED, KEYS[1], np.zeros((3, 3), np.float32))
    assert fourm.evaluate(str(runs[0]), str(runs[1])).problems[0].key == KEYS[1].text
    write_record(runs[1], [ENCODED], features={"pool": "tokens", "layers": [0, -1]})
    with pytest.raises(UsageError, match="other has pool tokens, layers 0,last"):
        fourm.evaluate(str(runs[0]), str(runs[1]))


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    root = run_folder(tmp_path / "run")
    fourm.evaluate(root, root, measures="psnr")
    [result] = json.loads((root / "eval.json").read_text())["results"]
    assert (result["value"], result["identical"]) == (None, 3)


@pytest.mark.parametrize("variations", [1, 2])
def test_three_processes_find_what_one_finds(tmp_path: Path, variations: int) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data", 5, variations)
    asked = Asked(root, str(tmp_path / "data"), MEASURES[:1])
    alone = measure_folder(asked)
    assert alone is not None
    table = (root / "eval.csv").read_text()
    (root / "eval.json").unlink()
    ask = [Asked(root, asked.against, asked.measures, world=World(rank, 3)) for rank in (2, 0, 1)]
    assert [measure_folder(one) is None for one in ask[:2]] == [True, True]
    saved = [(path, path.read_bytes()) for path in sorted((root / "eval").iterdir())]
    assert [path.name for path, _ in saved] == ["00000-of-00003.npz", "00002-of-00003.npz"]
    for _ in range(2):  # the second time as if the last process had been killed while it merged
        assert measure_folder(ask[2]) is not None
        said = json.loads((root / "eval.json").read_text())
        for one, other in zip(alone.to_json()["results"], said["results"], strict=True):  # type: ignore[call-overload]
            assert one.keys() == other.keys()
            for name, number in one.items():
                assert other[name] == (pytest.approx(number, abs=1e-9) if name == "value" else number)
        assert (root / "eval.csv").read_text() == table
        assert not (root / "eval").exists()  # what was merged is not merged again with something newer
        (root / "eval").mkdir()
        for path, data in saved:
            path.write_bytes(data)


def test_a_share_of_other_settings_or_that_is_damaged_is_not_merged(tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    first, second = (Asked(root, str(tmp_path / "data"), ("psnr",), world=World(i, 2)) for i in (0, 1))
    with pytest.raises(UsageError, match="eval: no share of 2 is there"):
        measure_folder(first, only_merge=True)
    assert measure_folder(Asked(root, str(root), ("psnr",), world=World(0, 2))) is None
    assert measure_folder(second) is None
    with pytest.raises(UsageError, match="no share 0 of these settings"):
        measure_folder(second, only_merge=True)
    (root / "eval" / "00001-of-00002.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match=r"00001-of-00002.npz: is damaged"):
        measure_folder(first)
    assert measure_folder(second) is not None  # wrote it anew


@pytest.mark.parametrize("what", ["facts", "array", "folder"])
def test_a_share_that_was_changed_is_not_merged(tmp_path: Path, what: str) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    first, second = (Asked(root, str(tmp_path / "data"), ("psnr",), world=World(i, 2)) for i in (0, 1))
    measure_folder(first)
    path = root / "eval" / "00000-of-00002.npz"
    arrays = dict(np.load(path))
    if what == "facts":
        arrays["facts"] = np.frombuffer(arrays["facts"].tobytes().replace(b'"pairs": 3', b'"pairs": 4'), "u1")
    arrays["1"] = arrays["1"] + (what == "array")
    path.unlink()
    path.mkdir() if what == "folder" else np.savez(path, **arrays)
    with pytest.raises(UsageError, match=r"00000-of-00002.npz: is damaged \((it was changed|.*a folder)"):
        measure_folder(second)


def test_a_share_may_be_larger_than_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    monkeypatch.setattr("fourm.codecs.files.MAX_BYTES", 16)
    for rank in (0, 1):
        found = measure_folder(Asked(root, str(root), ("psnr",), world=World(rank, 2)))
    assert found is not None


def test_intervals_are_those_of_scipy() -> None:
    numbers = np.random.default_rng(3).gamma(2, size=150)
    rows: Any = {(f"{at:03d}", None): {"a": float(one)} for at, one in enumerate(numbers)}
    rows["others", None] = {"b": 1.0, "a": math.inf}
    expected = stats.bootstrap(
        (numbers,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert intervals(rows, ["a"])["a"] == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_intervals_use_no_global_random_numbers() -> None:
    rows: Any = {(str(at), None): {"a": float(at)} for at in range(9)}
    np.random.seed(5)
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    assert intervals(rows, ["a"]) == intervals(rows, ["a"])
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index, union-attr]


def test_intervals_need_two_samples() -> None:
    constant: Any = {(str(at), None): {"a": 3.0} for at in range(9)}
    assert intervals(constant, ["a", "b"]) == {"a": (3, 3)}
    assert intervals({("0", None): {"a": 3.0}, ("0", 1): {"a": 2.0}}, ["a"]) == {}


def test_variations_of_a_sample_are_drawn_together() -> None:
    """Copies of a sample add nothing that an interval could be narrower for."""
    once: Any = {(str(at), None): {"a": float(at)} for at in range(30)}
    copied: Any = {(str(at), number): {"a": float(at)} for at in range(30) for number in range(9)}
    assert intervals(once, ["a"])["a"] == pytest.approx(intervals(copied, ["a"])["a"], abs=1e-12)


def test_measures_change_nothing_for_verify(tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    make_folder(tmp_path / "shards", "shards")
    for folder in (root, tmp_path / "shards"):
        before = verify_folder(folder).findings
        for rank in (0, 1, 0):  # merged, and begun once more
            measure_folder(Asked(folder, str(folder), ("token_share",), world=World(rank, 2)))
        assert {path.name for path in folder.iterdir()} >= {"eval", "eval.json", "eval.csv"}
        assert verify_folder(folder).findings == before
        shutil.rmtree(folder / "eval")
        (folder / "eval").write_text("a file")
        assert "eval" in {one.file for one in verify_folder(folder).findings}


def test_the_command_prints_a_table_and_what_was_left_out(run: Run, tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data", 4)
    dataset(tmp_path / "data", 5)
    (tmp_path / "data" / "rgb" / f"{KEYS[1].path}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    code, out, err = run("eval", root, "--against", tmp_path / "data", "--measures", "psnr")
    assert code == 3
    head, line = out.splitlines()
    assert head.split() == ["modality", "measure", "value", "95", "%", "interval", "samples", "better"]
    assert line.split()[:2] == ["rgb", "psnr"]
    assert "rgb: psnr without 1 identical\n" in err
    assert line.split()[-2:] == ["2", "↑"]
    assert f"{KEYS[1].text}: rgb: " in err
    assert "1 sample only in the other folder" in err
    code, out, _ = run("eval", root, "--against", tmp_path / "data", "--measures", "psnr", "--json")
    assert (code, json.loads(out)["problems"][0]["key"]) == (3, KEYS[1].text)


def test_shares_are_merged_by_the_last_command_or_when_asked(run: Run, tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    words = ["eval", root, "--against", tmp_path / "data", "--measures", "psnr", "--shard"]
    code, out, err = run(*words, "1/2")
    assert (code, out) == (0, "")
    assert "share 1 of 2 is measured" in err
    assert run(*words, "0/2", "--merge")[0] == 2
    saved = (root / "eval" / "00001-of-00002.npz").read_bytes()
    code, table, _ = run(*words, "0/2")
    assert (code, len(table.splitlines())) == (0, 2)
    (root / "eval").mkdir()
    (root / "eval" / "00001-of-00002.npz").write_bytes(saved)
    other = Asked(root, str(tmp_path / "data"), ("psnr",), world=World(0, 2))
    share = Share({}, {"rgb": Counts()}, [], {}, {})
    write_share(root, World(0, 2), settings_of(other, plan(other)[0]), share)
    code, out, _ = run(*words, "0/2", "--merge")
    assert (code, out.splitlines()[1].split()[-2]) == (0, "2")
    code, _, err = run(*words[:-1], "--merge")
    assert (code, "--shard i/n" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        ([], {"WORLD_SIZE": "2", "RANK": "1"}),
        (["--shard", "slurm"], {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}),
        (["--shard", "k8s/2"], {"JOB_COMPLETION_INDEX": "1"}),
    ],
)
def test_launchers_say_which_share(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], variables: dict[str, str]
) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run("eval", root, "--against", tmp_path / "data", "--measures", "psnr", *words)[:2] == (0, "")
    assert [path.name for path in (root / "eval").iterdir()] == ["00001-of-00002.npz"]


def test_a_network_is_not_needed_to_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    asked = Asked(root, str(tmp_path / "data"), ("lpips",))
    for rank in (0, 1):
        one = replace(asked, world=World(rank, 2))
        [task], _ = plan(one, {"rgb": ["lpips"]})
        total = ExactSum()
        total.add(0.5 + rank)
        task.measures["lpips"].merge([{"lpips": total.state()}])
        states = {("rgb", "lpips"): task.measures["lpips"].state()}
        share = Share({}, {"rgb": Counts(pairs=1)}, [], states, {"lpips": {"sha256": "ab"}})
        write_share(root, one.world, settings_of(one, [task]), share)
    found = measure_folder(one, only_merge=True)
    assert found is not None
    assert (found.value("lpips"), found.settings["sources"]) == (1, {"lpips": {"sha256": "ab"}})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--measures", "psn"], "did you mean 'psnr'?"),
        (["--measures", "delta_1"], "there is no measure 'delta_1'; depth gives that number"),
        (["--measures", ","], "names no measure"),
        (["--measures", "psnr"], "psnr compares two folders; --against DIR names the other"),
        ([], "run: what is for it alone (inception_score, clip_score) is not here; --against DIR names"),
        (["--against", ""], "--against: the name of a file or folder is empty"),
        (["--against", "nowhere"], "nowhere"),
        (["--against", "run", "--measures", "exact_match"], "exact_match is for text"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, tmp_path: Path, words: list[str], said: str) -> None:
    run_folder(tmp_path / "run")
    code, out, err = run("eval", "run", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_values_that_do_not_fit_together_are_named(run: Run, tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data", 3)
    put(root, RGB, KEYS[1], noise(1, 4, 6, 3))  # no square, so its partner is not cut to it
    code, out, err = run("eval", root, "--against", tmp_path / "data", "--measures", "psnr")
    assert (code, out.split()[-2]) == (3, "1")
    assert f"{KEYS[1].text}: rgb: 6 x 4 pixels, but its partner has 8 x 8" in err


@pytest.mark.parametrize("out", ["data/rgb", "run/rgb/00000"])
def test_results_do_not_lie_among_values(run: Run, tmp_path: Path, out: str) -> None:
    noisy(tmp_path / "run", tmp_path / "data", 3)
    code, _, err = run("eval", "run", "--against", "data", "--measures", "psnr", "--out", out)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "which this command reads" in err


def test_folders_without_a_name_in_common_are_refused(run: Run, tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data", 3)
    (tmp_path / "data" / "rgb" / "00000").rename(tmp_path / "data" / "rgb" / "other")
    code, out, err = run("eval", root, "--against", tmp_path / "data", "--measures", "psnr")
    assert (code, out) == (2, "")
    assert "has no sample with the name of one in" in err
    assert "(3 of rgb)" in err
    assert not (root / "eval.json").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("eval", "is a file or a link out of"), ("eval.json/x", "is a folder"), ("", "is a file, not a folder")],
)
def test_a_place_that_is_taken_is_refused_before_anything_is_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "there" / name).write_text("somebody's")
    monkeypatch.setattr(Task, "measure", None)  # is not called
    code, out, err = run("eval", root, "--against", tmp_path / "data", "--measures", "psnr", "--out", "there")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert (tmp_path / "there" / name).read_text() == "somebody's"


def test_what_numbers_depend_on_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (place := tmp_path / "fourm" / "measures").mkdir(parents=True)
    weights = write_lpips(tmp_path).rename(place / "lpips-alex.safetensors")
    one, other = (dataset(tmp_path / str(seed), 2, seed, (64, 64, 3)) for seed in (0, 5))
    found = fourm.evaluate(one, str(other), measures=["lpips", "ssim"], device="cpu")
    assert found is not None
    said = json.loads((one / "eval.json").read_text())["settings"]
    network, window = said["sources"]["lpips"], said["sources"]["ssim"]
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (network["weights"], network["sha256"], network["device"]) == ("lpips-alex", checksum, "cpu")
    assert network["torch"] == version("torch")
    assert window["package"] == f"scipy {version('scipy')}"
    assert (said["folder"], said["against"], said["version"]) == (str(one), str(other), fourm.__version__)
    assert repr(found).splitlines()[1].split()[:2] == ["rgb", "ssim"]
    with pytest.raises(UsageError, match="'lpip' was not measured; did you mean 'lpips'"):
        found.value("lpip")


def test_results_may_go_elsewhere(run: Run, tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    code, _, _ = run("eval", root, "--against", tmp_path / "data", "--measures", "psnr", "--out", "there")
    assert code == 0
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"eval.json", "eval.csv"}
    assert not (root / "eval.json").exists()


def test_plots_show_histograms_and_the_worst(run: Run, tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    code, _, err = run("eval", root, "--against", tmp_path / "data", "--measures", "psnr", "--plot")
    assert code == 0
    assert {path.name for path in (root / "eval").iterdir()} == {"histograms.png", "worst-rgb-psnr.png"}
    assert "worst-rgb-psnr.png" in err


def test_numbers_that_hardly_differ_are_drawn(tmp_path: Path) -> None:
    found = measure_folder(
        Asked(noisy(tmp_path / "run", tmp_path / "data"), str(tmp_path / "data"), ("psnr",))
    )
    assert found is not None
    rows = {sample: {"rgb/psnr": 1 - at * 2.0**-53} for at, sample in enumerate(found.rows)}
    draw_histograms(replace(found, rows=rows), found.numbers[:1])


def test_the_worst_comes_first(tmp_path: Path) -> None:
    root = noisy(tmp_path / "run", tmp_path / "data")
    found = fourm.evaluate(root, tmp_path / "data", measures="psnr")
    assert found is not None
    worst = worst_samples(found, found.numbers[0])
    assert [key for (key, _), _ in worst] == [key.text for key in KEYS[:0:-1]]


def test_depth_is_drawn_as_it_was_compared(tmp_path: Path) -> None:
    root, data = tmp_path / "run", tmp_path / "data"
    true = noise(0, 8, 8).astype(np.float32) + 1
    true[0, 0] = np.nan
    write_record(root, [DEPTH])
    put(root, DEPTH, KEYS[0], np.nan_to_num(3 * true - 100))
    put(data, DEPTH, KEYS[0], true)
    [pairs] = list_pairs(root, str(data))
    [pair] = pairs
    one, other = (np.asarray(picture)[1:] for picture in draw_pair(pairs, pair))
    np.testing.assert_array_equal(one, other)
    one, other = (np.asarray(picture)[1:] for picture in draw_pair(pairs, pair, metric_depth=True))
    assert (one != other).any()


def test_memory_does_not_grow_with_pictures(tmp_path: Path) -> None:
    def peak(root: Path, count: int) -> int:
        keys = number_keys(count)
        write_record(root, [RGB])
        (root / "samples").mkdir()
        known = load_run(root)
        (root / "samples" / "00000.jsonl").write_text(
            "".join(known.describe(Sample(key)).to_line() for key in keys)
        )
        (root / "rgb" / "00000").mkdir(parents=True)
        for key in keys:
            (root / "rgb" / f"{key.path}.png").write_bytes(picture.read_bytes())
        tracemalloc.start()
        fourm.evaluate(root, root, measures="psnr")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    write_record(tmp_path / "one", [RGB])
    picture = put(tmp_path / "one", RGB, KEYS[0], noise(0, 128, 128, 3))
    few, many = peak(tmp_path / "few", 64), peak(tmp_path / "many", 256)
    assert many - few < 192 * 4096  # of a picture of 49 kB, a few numbers stay
