"""`fourm generate --replay`: what made a picture, or a whole run, is read from the file and repeated."""

import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from fourm.data.shards import FORMATS
from fourm.inputs.origins import read_replay
from fourm.output.samples import open_runs
from tests import folders

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]
PROMPTS = (
    "a small red circle above a blue square",
    "a large green triangle at the center on a tan background",
)


def tree(out: Path) -> dict[str, bytes]:
    """Every file of results. Samples are recorded with their sources, a folder instead of prompts."""
    return {name: data for name, data in folders.tree(out).items() if not name.startswith("samples")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo model with super-resolution: two prompts, two variations."""
    out = tmp_path_factory.mktemp("made") / "out"
    command = [
        sys.executable,
        "-m",
        "fourm_cli",
        "generate",
        *PROMPTS,
        "--num-variations",
        "2",
        "--seed",
        "9",
    ]
    options = ["--temps", "3.0-0.5", "--steps", "6-5", "--sr-targets", "tok_rgb", "--sr-steps", "2"]
    subprocess.run([*command, *options, "--out", out, "--quiet"], cwd=ROOT, check=True)
    return out


@pytest.mark.parametrize(
    ("name", "sr_run"), [("rgb/00000/000001-v1.png", False), ("rgb@128/00000/000000-v0.png", True)]
)
@pytest.mark.parametrize("at_home", [True, False])
def test_a_picture_is_made_again_to_the_byte(
    run: Run, made: Path, tmp_path: Path, name: str, sr_run: bool, at_home: bool
) -> None:
    picture = made / name if at_home else Path(shutil.copy(made / name, tmp_path / "found.png"))
    code, _, err = run("generate", "--replay", picture, "--out", "again", "-q")
    assert (code, err) == (0, "")
    again, whole = tree(tmp_path / "again"), tree(made)
    assert again.items() <= whole.items()
    assert name in again
    assert any("@128" in path for path in again) is sr_run
    assert all(Path(name).stem in path for path in again if not path.startswith("caption/"))


def test_a_whole_run_is_made_again(run: Run, made: Path, tmp_path: Path) -> None:
    assert run("generate", "--replay", made / "run.sr.json", "--out", "again", "-q")[0] == 0
    assert tree(tmp_path / "again") == tree(made)
    assert run("generate", "--replay", made / "run.json", "--out", "base", "-q")[0] == 0
    assert tree(tmp_path / "base") == {k: v for k, v in tree(made).items() if "@128" not in k}


def test_a_repeated_picture_can_be_repeated(run: Run, made: Path, tmp_path: Path) -> None:
    assert run("generate", "--replay", made / "rgb/00000/000001-v1.png", "--out", "a", "-q")[0] == 0
    assert run("generate", "--replay", "a/rgb/00000/000001-v1.png", "--out", "b", "-q")[0] == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert run("generate", "--replay", "a/run.json", "--out", "c", "-q")[0] == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "c")


def test_conditions_that_a_picture_does_not_hold_come_from_its_folder(
    run: Run, made: Path, tmp_path: Path
) -> None:
    words = (
        "--cond",
        "tok_clip",
        "--targets",
        "tok_depth-tok_rgb",
        "--model",
        "demo",
        "--steps",
        "2-2",
        "-q",
    )
    code, _, err = run("generate", "--data", made, *words, "--out", "maps")
    assert code == 0, err
    picture = tmp_path / "maps/rgb/00000/000000-v0.png"
    assert run("generate", "--replay", picture, "--out", "again", "-q")[0] == 0
    assert tree(tmp_path / "again").items() <= tree(tmp_path / "maps").items()
    shutil.move(picture, tmp_path / "lost.png")
    code, _, err = run("generate", "--replay", "lost.png", "--out", "no")
    assert code == 2
    assert "was made from tok_clip@64, which a picture alone does not hold" in err
    assert not (tmp_path / "no").exists()


def test_conditions_that_were_tokenised_are_read_as_the_tokens_that_they_became(
    run: Run, made: Path, tmp_path: Path
) -> None:
    words = ("--data", made, "--model", "demo", "--steps", "2", "-q")
    assert run("generate", *words, "--cond", "tok_clip", "--targets", "tok_depth", "--out", "maps")[0] == 0
    words = ("--data", "maps", "--model", "demo", "--steps", "2", "-q")
    assert run("generate", *words, "--cond", "depth", "--targets", "tok_normal", "--out", "normals")[0] == 0
    shutil.rmtree(tmp_path / "maps")
    for file in ("run.json", "normal/00000/000001-v0.png"):
        code, _, err = run("generate", "--replay", f"normals/{file}", "--out", file.partition(".")[0], "-q")
        assert code == 0, err
        tokens = "tok_normal@64/00000/000001-v0.npy"
        assert tree(tmp_path / file.partition(".")[0])[tokens] == tree(tmp_path / "normals")[tokens]


@pytest.mark.parametrize("changes", [{}, {"--seed": "1"}, {"--steps": "6-4"}])
def test_a_picture_in_the_folder_of_another_run_is_repeated_from_itself(
    run: Run, made: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    """The other run has the same names, another prompt, perhaps another seed or schedule."""
    settings = {"--num-variations": "2", "--seed": "9", "--temps": "3.0-0.5", "--steps": "6-5"} | changes
    words = [word for option in settings.items() for word in option]
    assert run("generate", "a blue square", *words, "--out", "other", "-q")[0] == 0
    name = "rgb/00000/000000-v1.png"
    shutil.copy(made / name, tmp_path / "other" / name)
    code, _, err = run("generate", "--replay", f"other/{name}", "--out", "again", "-q")
    assert code == 0, err
    assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_unconditional_pictures_are_repeated_too(run: Run, tmp_path: Path) -> None:
    words = ("--data", "empty", "--num-samples", "3", "--targets", "tok_rgb", "--steps", "3", "-q")
    assert run("generate", *words, "--out", "free")[0] == 0
    shutil.copy("free/rgb/00000/000002.png", "one.png")
    assert run("generate", "--replay", "one.png", "--out", "again", "-q")[0] == 0
    assert tree(tmp_path / "again").items() <= tree(tmp_path / "free").items()
    assert run("generate", "--replay", "free/run.json", "--out", "all", "-q")[0] == 0
    assert tree(tmp_path / "all") == tree(tmp_path / "free")


def test_another_model_of_the_same_name_is_noted(run: Run, made: Path, tmp_path: Path) -> None:
    record = json.loads((made / "run.json").read_text())
    other = Path(shutil.copytree(made, tmp_path / "other"))
    record["files"]["weights"] = "0" * 64
    (other / "run.json").write_text(json.dumps(record))
    code, _, err = run("generate", "--replay", other / "run.json", "--out", "again")
    assert (code, "the weights of demo are not those that made" in err) == (0, True)


def plain(path: Path, text: dict[str, str]) -> Path:
    chunks = PngImagePlugin.PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    Image.new("RGB", (4, 4)).save(path, pnginfo=chunks)
    return path


GOOD = {
    "software": "fourm 0", "model": "demo", "seed": "1", "sample": "00000/000000", "variation": "0",
    "variations": "1", "prompt": PROMPTS[0], "schedule": "--cond caption --target tok_rgb@64:steps=2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"software": "paint"}, "fourm did not write it"),
        ({"schedule": None}, "fourm did not write it"),
        ({"model": None}, "does not say its model"),
        ({"model": ""}, "does not say its model"),
        ({"schedule": " "}, "does not say its schedule"),
        ({"seed": "x"}, "its seed is not a whole number"),
        ({"seed": "9" * 30}, "its seed is not a whole number"),
        ({"seed": str(2**64)}, "its seed is not a whole number"),
        ({"variations": "99999999999"}, "its variations is not a whole number"),
        ({"variation": "1"}, "its variation is not a whole number, 0 to 0"),
        ({"variations": "0"}, "is not a whole number, 1 to"),
        ({"detokenizer steps": "0"}, ""),
        ({"detokenizer solver": "unipcs"}, "--detokenizer-solver: 'unipcs' is not one of"),
        ({"model": "a\0b"}, ""),
        ({"dtype": "float7"}, "float7"),
        ({"variation": "-1"}, "its variation is not a whole number"),
        ({"sample": "../../etc/passwd"}, "cannot be a file or folder name"),
        ({"sample": "/abs"}, "cannot be a file or folder name"),
        ({"sample": "name/"}, "cannot be a file or folder name"),
        ({"schedule": "--cond caption --target tok_rgb@64:steps=many"}, "steps"),
        ({"schedule": "--out /etc"}, "is not an option of a schedule"),
        ({"schedule": "'"}, "cannot be read as options"),
        ({"model": "/no/such/folder"}, "/no/such/folder"),
        ({"prompt": "word " * 500}, ""),
    ],
)
def test_a_picture_with_impossible_text_chunks_is_refused(
    run: Run, tmp_path: Path, changes: dict[str, str | None], sentence: str
) -> None:
    said = {name: value for name, value in (GOOD | changes).items() if value is not None}
    code, _, err = run("generate", "--replay", plain(tmp_path / "x.png", said), "--out", "out", "-q")
    assert code in (2, 3, 4)
    assert sentence in err
    assert (err.count("Traceback"), (tmp_path / "etc").exists()) == (0, False)


def test_good_chunks_by_hand_make_a_picture(run: Run, tmp_path: Path) -> None:
    assert run("generate", "--replay", plain(tmp_path / "x.png", GOOD), "--out", "out", "-q")[0] == 0
    assert (tmp_path / "out/rgb/00000/000000.png").exists()
    said = json.loads((tmp_path / "out/run.json").read_text())  # older versions had no other
    assert (said["detokenizer_steps"], said["detokenizer_solver"]) == (50, "ddim")


def test_replay_reads_a_picture_with_large_or_damaged_metadata_of_others(tmp_path: Path) -> None:
    data = plain(tmp_path / "x.png", GOOD).read_bytes()
    large, spoilt = b"zTXt" + b"a\0\0" + zlib.compress(bytes(2_000_000)), b"tEXta\0good"
    sums = zlib.crc32(large), zlib.crc32(spoilt) ^ 1
    for chunk, said in zip((large, spoilt), sums, strict=True):
        extra = (len(chunk) - 4).to_bytes(4, "big") + chunk + said.to_bytes(4, "big")
        (tmp_path / "x.png").write_bytes(data[:33] + extra + data[33:])
        assert read_replay(tmp_path / "x.png").base.seed == 1


@pytest.mark.parametrize("name", ["none.png", "text.txt", "cut.png", "empty.png", "run.json"])
def test_replay_refuses_files_that_do_not_say_how_they_were_made(
    run: Run, made: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((made / "rgb/00000/000001-v1.png").read_bytes()[:60])
    code, _, err = run("generate", "--replay", name, "--out", "out")
    assert (code, err.count("\n"), err.startswith("fourm: ")) == (2, 1, True)
    assert not (tmp_path / "out").exists()


def test_what_would_change_the_result_is_refused(run: Run, made: Path) -> None:
    picture = made / "rgb/00000/000001-v1.png"
    for words in (
        ("a prompt",),
        ("--seed", "0"),
        ("--temps", "1"),
        ("--num-variations", "2"),
        ("--no-decode",),
    ):
        code, _, err = run("generate", *words, "--replay", picture, "--out", "out")
        assert (code, "--replay repeats what was made as it was; leave out" in err) == (2, True)


@pytest.mark.parametrize("form", FORMATS[1:])
def test_a_sample_of_a_run_in_shards_is_made_again_from_its_record(
    run: Run, tmp_path: Path, form: str
) -> None:
    words = ("generate", *PROMPTS, "--num-variations", "2", "--temps", "3.0-0.5", "--steps", "2-2", "-q")
    words = (*words, "--sr-targets", "tok_rgb", "--sr-steps", "2")
    assert run(*words, "--out", "files")[0] == 0
    assert run(*words, "--out", "out", "--format", form, "--shard-size", "1")[0] == 0
    whole, out = tree(tmp_path / "files"), tmp_path / "out"
    base, fine = open_runs(out)
    for number, (made, folder) in enumerate(((base, "rgb"), (fine, "rgb@128"))):
        sample = list(made.samples())[1]
        code, _, err = run("generate", "--replay", out / sample.files[folder][1], "--out", f"{number}", "-q")
        assert (code, err) == (0, "")
        again = tree(tmp_path / f"{number}")
        assert again.items() <= whole.items()
        assert f"{folder}/00000/000001-v1.png" in again
    assert run("generate", "--replay", out / "run.sr.json", "--out", "all", "-q")[0] == 0
    assert tree(tmp_path / "all") == whole
    code, _, err = run(
        "generate", "--replay", out / list(base.samples())[1].files["caption"][0], "--out", "x"
    )
    assert (code, "is neither a PNG nor run.json or run.sr.json" in err) == (2, True)
    # A shard that was replaced by that of another run: its pictures tell what they are of.
    assert (
        run("generate", "a blue square", *words[1 + len(PROMPTS) :], "--out", "other", "--format", form)[0]
        == 0
    )
    for path in (path for path in (tmp_path / "other").rglob("*00000.*") if path.suffix != ".json"):
        shutil.copy(path, out / path.relative_to(tmp_path / "other"))
    picture = out / next(base.samples()).files["rgb"][0]
    assert run("generate", "--replay", picture, "--out", "theirs", "-q")[0] == 0
    assert (tmp_path / "theirs/caption/00000/000000.txt").read_text() == "a blue square"
