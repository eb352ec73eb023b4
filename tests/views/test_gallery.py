"""The file of the gallery page: what stands in it, how it is escaped, what it costs to write."""

import base64
import hashlib
import html.parser
import io
import json
import shlex
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fourm.errors import FourMError, UsageError
from fourm.views.album import Album, open_album
from fourm.views.gallery import (
    EXACT_SIDE,
    MAX_COLOURS,
    PAGE,
    _json,
    encode,
    repeat_command,
    write_gallery,
)
from fourm.views.panels import View
from tests.gallery_folder import Made, build_folder

Run = Callable[..., tuple[int, str, str]]
PROMPTS = ("a red circle", "a blue square", "")


class Page(html.parser.HTMLParser):
    """The scripts of a page, as any parser of HTML finds them, and the attributes of all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[str, str]] = []  # type, text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.is_open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.is_open = True
            self.scripts.append((dict(attrs).get("type") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self.is_open = self.is_open and tag != "script"

    def handle_data(self, data: str) -> None:
        if self.is_open:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)

    @property
    def data(self) -> list[Any]:
        """All JSON: the album, then two blocks of each sample."""
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]


def written(root: Path, made: Made, **options: Any) -> Page:
    build_folder(root, made)
    path = root / "plots" / PAGE
    write_gallery(open_album(root), path, **options)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_holds_each_sample_with_its_pictures_films_and_facts(tmp_path: Path) -> None:
    page = written(tmp_path / "out", Made(PROMPTS, variations=2, sr=True, preview=True))
    about, *blocks = page.data
    assert (about["name"], about["total"]) == ("out", 3)
    assert [stage["model"] for stage in about["stages"]] == ["demo", "demo-sr"]
    assert about["stages"][0]["options"] == (
        "--cond caption --target tok_semseg@64:steps=4 --target tok_rgb@64:steps=4"
    )
    assert [row["prompt"] for row in blocks[::2]] == list(PROMPTS)
    for row, contents in zip(blocks[::2], blocks[1::2], strict=True):
        assert row["modalities"] == ["tok_semseg@64", "tok_rgb@64", "tok_rgb@128"]
        assert len([p for p in contents["panels"] if p["picture"]]) == 6
        assert [film["variation"] for film in contents["films"]] == [0, 1]
        assert [frame["decided"] for frame in contents["films"][0]["frames"]] == [16, 32, 48, 64]


def test_every_pixel_of_a_small_picture_is_in_the_page(tmp_path: Path) -> None:
    page = written(tmp_path, Made(PROMPTS[:1]))
    panels = page.data[2]["panels"]
    for modality, folder in (("tok_rgb@64", "rgb"), ("tok_semseg@64", "semseg")):
        (panel,) = (p for p in panels if p["modality"] == modality)
        with Image.open(io.BytesIO(base64.b64decode(panel["picture"]["data"]))) as picture:
            shown = np.asarray(picture.convert("RGB"))
        with Image.open(tmp_path / folder / "00000" / "000000.png") as picture:
            there = np.asarray(picture)
        if folder == "rgb":
            assert np.array_equal(shown, there)
        else:
            colours = {tuple(c) for c in shown.reshape(-1, 3).tolist()}
            assert len(colours) == len(np.unique(there))
            legend = page.data[2]["legends"][modality]
            assert {tuple(bytes.fromhex(colour[1:])) for _, colour in legend} == colours
            assert panel["labels"] == [0, 1]


def test_the_page_allows_itself_one_script_one_style_and_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path, Made(PROMPTS))
    text = (tmp_path / "plots" / PAGE).read_text(encoding="utf-8")
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    policy = dict(part.strip().split(" ", 1) for part in (policies[0] or "").split(";"))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("img-src") == "data:"
    (script,) = (body for kind, body in page.scripts if kind == "")
    style = text.partition("<style>")[2].partition("</style>")[0]
    for name, body in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert policy.pop(name) == f"'sha256-{digest}'"
    assert "connect-src" not in policy
    for tag, attributes in page.tags:
        links = {name for name in attributes if name in ("src", "style") or name.startswith("on")}
        assert not links, tag
        assert attributes.get("href") in (None, "data:,")


@given(st.recursive(st.text(), lambda leaf: st.lists(leaf, max_size=3) | st.dictionaries(st.text(), leaf)))
def test_no_text_ends_a_block(value: object) -> None:
    text = _json(value)
    assert "<" not in text
    assert json.loads(text) == value
    page = Page(f'<script type="application/json">{text}</script><b>')
    assert page.tags[1:] == [("b", {})]


def test_hostile_names_and_texts_add_no_tag(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", Made(("a", "b"), names=("1", "2")))
    hostile = written(
        tmp_path / "<b>&amp;\"'",
        Made(("</script><img src=x onerror=alert(1)>", "<!-- <script>"), names=("<script>", '"><svg>')),
    )
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert hostile.data[0]["name"] == "<b>&amp;\"'"
    assert sorted(row["key"] for row in hostile.data[1::2]) == ['00000/"><svg>', "00000/<script>"]


def test_a_name_that_is_no_utf8_is_shown_and_the_page_is_utf8(tmp_path: Path) -> None:
    try:
        page = written(tmp_path, Made(("x",), names=("caf\udce9",)))
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    assert page.data[1]["key"] == "00000/caf\\xe9"
    assert "\\udce9" in page.data[2]["panels"][0]["file"]


def test_the_command_repeats_a_variation_from_its_own_picture(tmp_path: Path) -> None:
    root = build_folder(tmp_path / "it's $HOME", Made(PROMPTS, variations=2, sr=True))
    album = open_album(root)
    view = album.view(album.keys[1])
    words = shlex.split(repeat_command(root, view, "target", 1))
    assert words[:3] == ["fourm", "generate", "--replay"]
    assert words[3] == f"{root}/rgb/00000/000001-v1.png"
    assert Path(words[3]).is_file()
    assert words[4:] == ["--out", "again"]
    assert f"{root}/rgb@128/00000/000001-v1.png" in shlex.split(repeat_command(root, view, "sr", 1))
    assert f"{root}/run.json" in shlex.split(repeat_command(root, replace(view, panels=()), "target", 1))


def test_the_folder_in_the_command_is_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_folder(tmp_path / "out", Made(PROMPTS))
    monkeypatch.chdir(tmp_path)
    album = open_album(Path("out"))
    command = repeat_command(album.root, album.view(album.keys[0]), "target", None)
    assert command == "fourm generate --replay out/rgb/00000/000000.png --out again"


def test_what_is_missing_or_broken_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    root = build_folder(tmp_path, Made(PROMPTS, variations=2, failed={1}))
    (root / "rgb" / "00000" / "000000-v0.png").write_bytes(b"\x89PNG\r\n\x1a\nshort")
    (root / "semseg" / "00000" / "000002-v1.png").unlink()
    path = root / "plots" / PAGE
    write_gallery(open_album(root), path)
    rows = Page(path.read_text(encoding="utf-8")).data[1:]
    assert [row["failed"] for row in rows[::2]] == [1, 1, 1]
    assert "rgb/00000/000000-v0.png" in rows[1]["problems"][0]
    assert "a tokenizer said <no>" in rows[3]["problems"][0]
    assert "semseg/00000/000002-v1.png: missing" in rows[5]["problems"][0]
    assert all(any(panel["picture"] for panel in contents["panels"]) for contents in rows[1::2])


def test_a_folder_without_samples_is_a_sentence(tmp_path: Path, run: Run) -> None:
    root = build_folder(tmp_path / "out", Made(()))
    with pytest.raises(UsageError, match=r"out: holds no samples yet, so there is nothing to show"):
        write_gallery(open_album(root), root / "plots" / PAGE)
    assert not (root / "plots").exists()
    code, out, err = run("plot", root, "--html", "--no-sheets")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "holds no samples yet" in err


def test_a_page_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path) -> None:
    root = build_folder(tmp_path, Made(PROMPTS))
    path = root / "plots" / PAGE
    write_gallery(open_album(root), path)
    before = path.read_bytes()

    def stop(view: View) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gallery(open_album(root), path, seen=stop)
    assert path.read_bytes() == before
    with pytest.raises(FourMError, match="cannot write"):
        write_gallery(open_album(root), path / "below" / PAGE)


def test_samples_are_forgotten_once_they_are_written(tmp_path: Path) -> None:
    """Pictures of one sample are in memory at a time, and no picture stays."""
    root = build_folder(tmp_path, Made([f"sample {i}" for i in range(40)], side=256, labels=False))
    pictures: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def seen(view: View) -> None:
        pictures.extend(weakref.ref(p.picture) for p in view.panels if p.picture is not None)
        alive.append(sum(one() is not None for one in pictures))

    write_gallery(open_album(root), root / "plots" / PAGE, seen=seen)
    assert len(pictures) == 80
    assert max(alive) <= 4


def test_photos_are_small_and_drawings_exact() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 700, 3), np.uint8)
    photo = encode(Image.fromarray(noise), 512)
    assert (photo["type"], photo["exact"]) == ("webp", False)
    assert (photo["width"], photo["height"]) == (350, 512)
    drawing = encode(Image.fromarray((noise[..., 0] > 128).astype(np.uint8) * 255), 512)
    assert (drawing["type"], drawing["exact"], drawing["height"]) == ("png", True, 1024)
    small = encode(Image.fromarray(noise[:EXACT_SIDE, :90]), 512)
    assert (small["type"], small["exact"], small["width"]) == ("png", True, 90)


@given(st.integers(1, MAX_COLOURS), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_palette_keeps_every_pixel(colours: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 256, (colours, 3), np.uint8)
    pixels = table[rng.integers(0, colours, (height, width))]
    data = base64.b64decode(encode(Image.fromarray(pixels), 512)["data"])
    with Image.open(io.BytesIO(data)) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), pixels)


def test_plot_writes_the_page_beside_the_sheets_or_alone(tmp_path: Path, run: Run) -> None:
    root = build_folder(tmp_path / "out", Made(PROMPTS, variations=2))
    code, out, err = run("plot", root, "--html", "--no-sheets", "--count", "2")
    assert (code, out) == (0, f"{root}\n")
    assert f"2 samples drawn in {root / 'plots' / PAGE}" in err
    assert [path.name for path in (root / "plots").iterdir()] == [PAGE]
    assert Page((root / "plots" / PAGE).read_text(encoding="utf-8")).data[0]["total"] == 2
    code, out, _ = run("plot", root, "--html", "--json")
    assert json.loads(out)["page"] == str(root / "plots" / PAGE)
    assert (root / "plots" / "000002.png").is_file()
    assert run("plot", root, "--no-sheets")[0] == 2


def test_problems_of_a_page_are_told_and_make_the_exit_code(tmp_path: Path, run: Run) -> None:
    root = build_folder(tmp_path / "out", Made(PROMPTS))
    (root / "rgb" / "00000" / "000001.png").write_bytes(b"no picture")
    code, out, err = run("plot", root, "--html", "--no-sheets")
    assert (code, out) == (3, f"{root}\n")
    assert "rgb/00000/000001.png" in err


def test_an_installed_wheel_would_have_the_files_of_the_page() -> None:
    """They lie beside the module, in a package that the build takes whole."""
    code = "import fourm.views.gallery as g; [g._asset(n) for n in (*g._SCRIPTS, 'page.html', 'page.css')]"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=False, cwd=Path(__file__).resolve().parents[2]
        ).returncode
        == 0
    )


def test_the_album_is_only_read(tmp_path: Path) -> None:
    root = build_folder(tmp_path, Made(PROMPTS, variations=2, sr=True))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    album: Album = open_album(root)
    write_gallery(album, root / "plots" / PAGE)
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {root / "plots" / PAGE}
    assert all(after[path] == data for path, data in before.items())
