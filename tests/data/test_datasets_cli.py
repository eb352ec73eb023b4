"""`fourm generate --data FOLDER`: bad samples fail, the others are made, and mended ones follow."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.folders import tree

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


def picture(number: int, side: int = 70) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        picture(i).save(folder / f"{i:02d}.png")
    return folder


def packed(folder: Path, shard: Path) -> None:
    """The files of a folder as a tar shard, which takes the folder's place."""
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    if folder.parent == shard.parent:
        shutil.rmtree(folder)


def failures(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    found = {line["key"]: line["reason"] for line in lines}
    assert len(found) == len(lines)
    return found


def words(tiny: Path, data: str, out: str, cond: str = "rgb") -> list[object]:
    given = ["--model", tiny, "--cond", cond, "--data", data, "--out", out]
    return ["generate", *given, "--targets", "tok_depth", "--device", "cpu"]


def spoil(folder: Path) -> None:
    """Seven of the samples, each in another way."""
    picture(0).save(folder / "02.jpg")
    (folder / "04.png").write_bytes((folder / "04.png").read_bytes()[:5000])
    (folder / "06.png").write_bytes(b"")
    (folder / "08.png").unlink()
    (folder / "08.jpg").write_bytes(b"<html>404 not found</html>")
    (folder / "11.png").unlink()
    (folder / "11.png").symlink_to("/mnt/unmounted/11.png")
    (folder / "13.png").unlink()
    (folder / "13.png").mkdir()
    Image.new("1", (9000, 9000)).save(folder / "17.png")


def mend(folder: Path) -> None:
    (folder / "02.jpg").unlink()
    (folder / "08.jpg").unlink()
    (folder / "13.png").rmdir()
    (folder / "11.png").unlink()
    for number in (4, 6, 8, 11, 13, 17):
        picture(number).save(folder / f"{number:02d}.png")


def results(out: Path) -> dict[str, bytes]:
    """Files of a run without the records of its samples, which name other sources here."""
    return {name: data for name, data in tree(out).items() if not name.startswith("samples/")}


def test_seven_bad_samples_of_twenty_fail_alone_and_can_be_mended(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "data/rgb/set", 20)
    code, _, err = run(*words(tiny, "data", "whole"))
    assert (code, "20 samples generated" in err) == (0, True)
    spoil(folder)
    code, out, err = run(*words(tiny, "data", "out"))
    assert (code, out) == (3, "out\n")
    assert "13 samples generated, 7 failed (see failures.jsonl)" in err
    found = failures(tmp_path / "out")
    where = "data/rgb/set"
    assert found.pop("set/04").startswith(f"{where}/04.png: not a picture that can be read (")
    assert found.pop("set/08").startswith(
        f"{where}/08.jpg: not a picture in a format that is read (PNG, JPEG,"
    )
    assert found == {
        "set/02": f"two files for one sample: {where}/02.jpg and 02.png; keep one of them",
        "set/06": f"{where}/06.png: is empty",
        "set/11": f"{where}/11.png: cannot be read (a link to /mnt/unmounted/11.png, which is not there)",
        "set/13": f"{where}/13.png: a folder, where a file should be",
        "set/17": f"{where}/17.png: 9000 x 9000 pixels are too many to read",
    }
    made = {path.name for path in (tmp_path / "out/tok_depth@64/set").iterdir()}
    assert made == {f"{i:02d}.npy" for i in range(20)} - {f"{i:02d}.npy" for i in (2, 4, 6, 8, 11, 13, 17)}
    whole = results(tmp_path / "whole")
    done = {name: data for name, data in results(tmp_path / "out").items() if name != "failures.jsonl"}
    assert done.items() <= whole.items()
    mend(folder)
    code, _, err = run(*words(tiny, "data", "out"), "--resume")
    assert code == 0, err
    assert "7 samples generated, 13 already complete" in err
    assert results(tmp_path / "out") == whole


def test_samples_that_are_still_bad_fail_again_once(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data/rgb/set", 4)
    picture(9).save(folder / "01.webp")
    (folder / "02.png").write_bytes(b"")
    for more in ([], ["--resume"], ["--resume"]):
        code, _, err = run(*words(tiny, "data", "out"), "--num-variations", "2", *more)
        assert code == 3
        assert "4 failed" in err  # each of both variations
        lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
        assert len(lines) == 4
    (folder / "02.png").unlink()
    code, _, err = run(*words(tiny, "data", "out"), "--num-variations", "2", "--resume")
    assert code == 2
    assert "samples is 4 there and 3 here" in err  # that is another dataset


def test_shards_give_what_folders_give(run: Run, tiny: Path, tmp_path: Path) -> None:
    for name, count in (("shard-0", 3), ("shard-1", 2)):
        folder = pictures(tmp_path / "plain/rgb" / name, count)
        packed(folder, tmp_path / f"sharded/rgb/{name}.tar")
    shutil.copytree(tmp_path / "plain/rgb/shard-0", tmp_path / "mixed/rgb/shard-0")
    shutil.copytree(tmp_path / "sharded/rgb", tmp_path / "mixed/rgb", dirs_exist_ok=True)
    (tmp_path / "mixed/rgb/shard-0.tar").unlink()
    trees = []
    for kind in ("plain", "sharded", "mixed"):
        code, _, err = run(*words(tiny, kind, f"out-{kind}"), "--quiet")
        assert code == 0, err
        trees.append(results(tmp_path / f"out-{kind}"))
    assert trees[0] == trees[1] == trees[2]
    assert sorted(p.stem for p in (tmp_path / "out-sharded/tok_depth@64/shard-1").iterdir()) == ["00", "01"]


def test_processes_share_the_samples_of_shards(tiny: Path, tmp_path: Path) -> None:
    packed(pictures(tmp_path / "data/rgb/s", 6), tmp_path / "data/rgb/s.tar")
    command = [
        sys.executable,
        "-m",
        "fourm_cli",
        *map(str, words(tiny, str(tmp_path / "data"), str(tmp_path / "out"))),
    ]
    ranks = [{"RANK": str(r), "WORLD_SIZE": "2", "LOCAL_RANK": str(r)} for r in range(2)]
    together = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **rank}, stderr=subprocess.PIPE)
        for rank in ranks
    ]
    for process in together:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert len(list((tmp_path / "out/tok_depth@64/s").iterdir())) == 6


def test_a_shard_that_is_cut_off_can_be_mended_where_names_are_known(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "data/rgb/s", 5)
    (tmp_path / "data/caption/s").mkdir(parents=True)
    for path in folder.iterdir():
        (tmp_path / f"data/caption/s/{path.stem}.txt").write_text("a red circle")
    shard = tmp_path / "data/rgb/s.tar"
    packed(folder, shard)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    code, _, _ = run(*words(tiny, "data", "out", "rgb-caption"))
    assert code == 3
    found = failures(tmp_path / "out")
    assert found.pop("s/02") == "data/rgb/s.tar/02.png: is cut off with the end of its shard"
    assert set(found) == {"s/03", "s/04"}
    assert {reason.partition(":")[0] for reason in found.values()} == {"data/rgb/s.tar"}
    shard.write_bytes(whole)
    code, _, err = run(*words(tiny, "data", "out", "rgb-caption"), "--resume")
    assert (code, "3 samples generated, 2 already complete" in err) == (0, True)


def test_what_nobody_knows_the_names_of_is_one_failure(run: Run, tiny: Path, tmp_path: Path) -> None:
    """Once it is mended there are other samples: another dataset, for another folder."""
    pictures(tmp_path / "data/rgb/good", 2)
    shard = tmp_path / "data/rgb/bad.tar"
    packed(pictures(tmp_path / "data/rgb/bad", 3), shard)
    whole = shard.read_bytes()
    shard.write_bytes(b"nothing")
    code, _, err = run(*words(tiny, "data", "out"))
    assert code == 3
    assert "failed: bad/*: data/rgb/bad.tar: is cut off or damaged" in err
    assert list(failures(tmp_path / "out")) == ["bad/*"]
    shard.write_bytes(whole)
    code, _, err = run(*words(tiny, "data", "out"), "--resume")
    assert code == 2
    assert "samples is 3 there and 5 here" in err


def test_samples_without_a_partner_are_told_but_not_all_of_them(run: Run, tiny: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data/rgb/s", 12)
    (tmp_path / "data/caption/s").mkdir(parents=True)
    (tmp_path / "data/caption/s/03.txt").write_text("a red circle")
    code, _, err = run(*words(tiny, "data", "out", "rgb-caption"))
    assert code == 0
    assert err.count("lacks a file in caption") == 5
    assert "6 more samples lack a file" in err
    assert [p.name for p in (tmp_path / "out/tok_depth@64/s").iterdir()] == ["03.npy"]


def test_a_dataset_of_which_nothing_can_be_read_is_refused_at_once(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "data/rgb/s", 2)
    for i in range(2):
        picture(i).save(folder / f"{i:02d}.jpg")
    code, out, err = run(*words(tiny, "data", "out"))
    assert (code, out) == (2, "")
    assert "none of the 2 samples can be read: two files for one sample: data/rgb/s/00.jpg and 00.png" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def chosen(out: Path) -> list[str]:
    return sorted(path.stem for path in (out / "tok_depth@64/s").iterdir())


def test_files_of_settings_choose_samples_as_the_reference_does(run: Run, tiny: Path, tmp_path: Path) -> None:
    """`num_samples` of a file is drawn with NumPy's legacy generator; the option takes the first."""
    pictures(tmp_path / "data/rgb/s", 10)
    (tmp_path / "data.yaml").write_text("data_path: data\nnum_samples: 4\n")
    base = [word for word in words(tiny, "data", "out") if word not in ("--data", "data", "--out", "out")]
    drawn = sorted(f"{i:02d}" for i in np.random.RandomState(0).permutation(10)[:4])
    for name, more in {
        "file": ["-dc", "data.yaml"],
        "seed": ["--data", "data", "--num-samples", "4", "--subset-seed", "0"],
    }.items():
        assert run(*base, *more, "--out", name, "--quiet")[0] == 0
        assert chosen(tmp_path / name) == drawn
    assert run(*base, "-dc", "data.yaml", "--num-samples", "4", "--out", "first", "--quiet")[0] == 0
    assert chosen(tmp_path / "first") == ["00", "01", "02", "03"]
    assert run(*base, "-dc", "data.yaml", "--subset-seed", "3", "--out", "other", "--quiet")[0] == 0
    assert chosen(tmp_path / "other") == sorted(
        f"{i:02d}" for i in np.random.RandomState(3).permutation(10)[:4]
    )


def test_strange_names_reach_the_results_and_the_terminal_unharmed(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data/rgb/a\nb \x1b[31m"
    folder.mkdir(parents=True)
    for name in ("x" * 251, "Zürich ☃", "-v0", "\udcff\udcfe"):
        picture(1).save(io.FileIO(os.fsencode(folder) + b"/" + os.fsencode(name) + b".png", "w"), "PNG")
    (folder / "bad\nname.png").write_bytes(b"nothing")
    code, _, err = run(*words(tiny, "data", "out"))
    assert code == 3
    assert r"failed: a\nb \x1b[31m/bad\nname: data/rgb/a\nb \x1b[31m/bad\nname.png: not a picture" in err
    assert "\x1b" not in err
    assert len(list((tmp_path / "out/tok_depth@64" / folder.name).iterdir())) == 4
    assert list(failures(tmp_path / "out")) == ["a\nb \x1b[31m/bad\nname"]
