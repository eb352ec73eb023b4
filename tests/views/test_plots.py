"""Sheets: every pixel in its place, nothing clipped, nothing written outside the folder of plots."""

import base64
import io
import json
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.colours import UNKNOWN, turbo
from fourm.codecs.drawing import lines_of, undrawable
from fourm.codecs.table import build_codec
from fourm.data.layout import Key, Place, number_keys
from fourm.errors import FourMError, UsageError
from fourm.hub.files import find_model
from fourm.output.processes import FAILURES
from fourm.output.record import SR_RUN
from fourm.results.job import order_place
from fourm.views.album import open_album
from fourm.views.contact import Layout, Part, choose_parts
from fourm.views.layout import colour_bar, fit, legend, number_text, slack, text_block
from fourm.views.panels import Film, Frame, View, picture_alone
from fourm.views.plots import (
    MAX_FILMS,
    MAX_VARIATIONS,
    Plotted,
    Wanted,
    chosen,
    draw_films,
    draw_sample,
    order_map,
    plot_album,
    plot_paths,
)
from fourm.views.saving import save_drawing
from tests.folders import CAPTION, CLIP, FINE, FIRST, RGB, SECOND, SEMSEG, noise, put, snapshot, write_record

Pixels = NDArray[np.uint8]
PER_SHEET = 60  # pictures of a contact sheet that shows one of each sample


def plot(root: Path, **wanted: object) -> list[Plotted]:
    return list(plot_album(open_album(root), Wanted(**wanted)))  # type: ignore[arg-type]


def read(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB"))


def places_of(picture: Pixels, sheet: Pixels) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of all places where a sheet shows exactly these pixels."""
    height, width = picture.shape[:2]
    ys, xs = np.nonzero((sheet[: -height + 1, : -width + 1] == picture[0, 0]).all(axis=2))
    corners = zip(xs.tolist(), ys.tolist(), strict=True)
    return [(x, y) for x, y in corners if np.array_equal(sheet[y : y + height, x : x + width], picture)]


def grown(pixels: Pixels, factor: int) -> Pixels:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two samples in three variations, one of them with super-resolution."""
    root = tmp_path / "out"
    write_record(root, [CAPTION, SEMSEG, RGB], num_variations=3)
    write_record(root, [FINE], SR_RUN, stage="sr", model="demo-sr", num_variations=3)
    for number, key in enumerate((FIRST, SECOND)):
        put(root, CAPTION, key, "a small red circle above a large blue square")
        for v in range(3):
            put(root, RGB, key, noise(10 * number + v, 64, 64, 3), v)
            put(root, SEMSEG, key, noise(v, 64, 64) % 3, v)
            if number == 0:
                put(root, FINE, key, noise(50 + v, 128, 128, 3), v)
    return root


def test_every_picture_stands_in_its_column_and_in_the_row_of_its_variation(folder: Path) -> None:
    assert [one.problems for one in plot(folder)] == [(), ()]
    sheet = read(folder / "plots" / "000000.png")
    base = [places_of(grown(noise(v, 64, 64, 3), 4), sheet) for v in range(3)]
    fine = [places_of(grown(noise(50 + v, 128, 128, 3), 2), sheet) for v in range(3)]
    assert [len(places) for places in (*base, *fine)] == [1] * 6
    ((left, top),), ((fine_left, fine_top),) = base[0], fine[0]
    assert [places[0] for places in base] == [(left, top + 266 * v) for v in range(3)]
    assert [places[0] for places in fine] == [(fine_left, fine_top + 266 * v) for v in range(3)]
    assert fine_left > left + 256
    assert fine_top == top


def test_what_is_given_stands_left_of_what_was_made(tmp_path: Path) -> None:
    given = Place("rgb", ".png", True, "rgb@64", "value", True)
    write_record(tmp_path, [given, SEMSEG], num_variations=2)
    put(tmp_path, given, FIRST, noise(1, 64, 64, 3))
    for v in (0, 1):
        put(tmp_path, SEMSEG, FIRST, np.full((64, 64), v), v)
    plot(tmp_path)
    sheet = read(tmp_path / "plots" / "000000.png")
    ((left, top),) = places_of(grown(noise(1, 64, 64, 3), 4), sheet)  # once, for all variations
    album = open_album(tmp_path)
    maps = [panel.picture for panel in album.view(FIRST).panels if panel.role == "target"]
    places = [places_of(grown(np.asarray(picture)[:1, :1], 256), sheet) for picture in maps if picture]
    assert [place[0][0] > left + 256 for place in places] == [True, True]
    assert places[0][0][1] == top


def test_a_sheet_has_one_legend_with_the_colours_of_its_maps(folder: Path) -> None:
    plot(folder)
    sheet = read(folder / "plots" / "000000.png")
    labels = {label for panel in open_album(folder).view(FIRST).panels for label in panel.labels}
    assert len(labels) == 3
    for _, colour in labels:
        swatch = np.full((12, 12, 3), colour, np.uint8)  # its inside, within a thin line
        corners = [(x, y) for x, y in places_of(swatch, sheet[-50:])]
        assert len(corners) == 1


def test_an_empty_cell_says_why_and_the_sheet_names_the_file(folder: Path) -> None:
    (folder / "rgb/00000/000000-v1.png").write_bytes(b"junk")
    (folder / FAILURES).write_text(
        json.dumps({"key": FIRST.text, "variation": 2, "reason": "r", "stage": "sr"})
    )
    first, second = plot(folder)
    assert len(first.problems) == 2
    assert second.problems == ()
    sheet = read(folder / "plots" / "000000.png")
    assert len(places_of(grown(noise(2, 64, 64, 3), 4), sheet)) == 1  # the others are as they were
    red = (sheet == (168, 24, 24)).all(axis=2)
    assert red.any()


def test_equal_folders_give_equal_sheets_and_plots_are_replaced(folder: Path) -> None:
    before = snapshot(folder)
    plot(folder)
    first = {path: path.read_bytes() for path in (folder / "plots").iterdir()}
    put(folder, RGB, SECOND, noise(99, 64, 64, 3), 0)
    plot(folder)
    second = {path: path.read_bytes() for path in (folder / "plots").iterdir()}
    assert {path.name for path in first if first[path] != second[path]} == {"000001.png", "contact.png"}
    assert {name for name, data in snapshot(folder).items() if before[name] != data} == {
        "rgb/00000/000001-v0.png"
    }


def test_columns_go_on_below_where_there_are_many(tmp_path: Path) -> None:
    places = [replace(RGB, folder=f"rgb{n}", modality=f"tok_rgb@{n}") for n in range(8)]
    write_record(tmp_path, places, model="/gone")
    for number, place in enumerate(places):
        put(tmp_path, place, FIRST, noise(number, 64, 64, 3))
    album = open_album(tmp_path)
    sheet = np.asarray(draw_sample(album.view(FIRST)))
    found = [places_of(grown(noise(n, 64, 64, 3), 4), sheet) for n in range(8)]
    lefts, tops = zip(*(one[0] for one in found), strict=True)
    assert lefts == lefts[:4] * 2
    assert len(set(tops)) == 2


def test_more_variations_than_fit_are_counted(tmp_path: Path) -> None:
    count = MAX_VARIATIONS + 3
    write_record(tmp_path, [RGB], num_variations=count)
    for variation in range(count):
        put(tmp_path, RGB, FIRST, noise(variation, 8, 8, 3), variation)
    album = open_album(tmp_path)
    sheet = np.asarray(draw_sample(album.view(FIRST)))
    assert len(places_of(grown(noise(MAX_VARIATIONS - 1, 8, 8, 3), 32), sheet)) == 1
    assert places_of(grown(noise(MAX_VARIATIONS, 8, 8, 3), 32), sheet) == []


def film(tmp_path: Path, order: NDArray[np.int16]) -> Path:
    write_record(tmp_path, [CLIP, RGB], preview=1)
    put(tmp_path, CLIP, FIRST, np.zeros((3, 8, 8), np.float32))
    put(tmp_path, RGB, FIRST, noise(1, 64, 64, 3))
    preview = order_place("tok_rgb@64")
    put(tmp_path, preview, FIRST, order)
    for step in (3, 4):
        put(tmp_path, replace(preview, suffix=f"-step{step:03d}.png"), FIRST, noise(step, 64, 64, 3))
    (one,) = plot(tmp_path, contact=False)
    assert [path.name for path in one.files] == ["000000.png", "000000-film.png"]
    return tmp_path / "plots" / "000000-film.png"


def test_a_film_strip_shows_steps_result_and_order_from_left_to_right(tmp_path: Path) -> None:
    order = np.random.default_rng(0).integers(3, 5, 64).astype(np.int16)
    sheet = read(film(tmp_path, order))
    shown = [grown(noise(seed, 64, 64, 3), 2) for seed in (3, 4, 1)]
    heat = grown(turbo(order.reshape(8, 8)), 16)
    corners = [places_of(pixels, sheet) for pixels in (*shown, heat)]
    assert [len(places) for places in corners] == [1] * 4
    lefts, tops = zip(*(places[0] for places in corners), strict=True)
    assert list(lefts) == sorted(lefts)
    assert len(set(tops)) == 1


def test_films_can_be_left_out(tmp_path: Path) -> None:
    path = film(tmp_path, np.zeros(64, np.int16))
    path.unlink()
    plot(tmp_path, films=False, contact=False)
    assert [one.name for one in path.parent.iterdir()] == ["000000.png"]


def test_the_map_of_an_order_is_the_order() -> None:
    order = (3, 5, -1, 4, 0, 3)
    pixels = np.asarray(order_map(Film("tok_rgb@64", "RGB", None, (2, 3), order, ())))
    scale = turbo(np.array([[3, 4, 5]]))[0].tolist()
    assert pixels.reshape(6, 3).tolist() == [scale[0], scale[2], [128] * 3, scale[1], [UNKNOWN] * 3, scale[0]]


def test_a_long_film_keeps_its_last_frame() -> None:
    picture = Image.new("RGB", (1, 1))
    frames = [Frame(step, step, picture) for step in range(100)]
    steps = [frame.step for frame in chosen(frames)]
    assert len(steps) == 8
    assert (steps[0], steps[-1]) == (0, 99)
    assert max(np.diff(steps)) - min(np.diff(steps)) <= 1


def test_a_contact_sheet_shows_the_finest_picture_of_each_sample_and_variation(folder: Path) -> None:
    plot(folder)
    sheet = read(folder / "plots" / "contact.png")
    for v in range(3):
        assert places_of(
            np.asarray(fit(Image.fromarray(noise(50 + v, 128, 128, 3)), 192, fills=True))[1:-1, 1:-1], sheet
        )
        assert places_of(grown(noise(10 + v, 64, 64, 3), 3)[1:-1, 1:-1], sheet)  # a thin line around it


def test_many_pictures_make_several_contact_sheets_and_old_ones_go(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB], samples=PER_SHEET + 1)
    for number, key in enumerate(number_keys(PER_SHEET + 1)):
        put(tmp_path, RGB, key, np.full((8, 8, 3), number))
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "contact sheets of mine.png").write_text("keep")
    plot(tmp_path, films=False)
    names = {path.name for path in (tmp_path / "plots").glob("contact*")}
    assert names == {"contact-01.png", "contact-02.png", "contact sheets of mine.png"}
    last = read(tmp_path / "plots" / "contact-02.png")
    assert (last == PER_SHEET).all(axis=2).sum() >= 190 * 190
    assert len(plot(tmp_path, count=1)) == 1
    names = {path.name for path in (tmp_path / "plots").glob("contact*")}
    assert names == {"contact.png", "contact sheets of mine.png"}


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ([Key("a", "x"), Key("b", "y")], ["x.png", "y.png"]),
        ([Key("a", "x"), Key("b", "x")], ["a/x.png", "b/x.png"]),
        ([Key("a", "contact"), Key("b", "y")], ["a/contact.png", "b/y.png"]),
        ([Key("a", "x"), Key("b", "x-film")], ["a/x.png", "b/x-film.png"]),
    ],
)
def test_samples_keep_their_folders_where_names_alone_are_not_clear(
    tmp_path: Path, keys: list[Key], wanted: list[str]
) -> None:
    paths = plot_paths(tmp_path, keys)
    assert [paths[key].relative_to(tmp_path / "plots").as_posix() for key in keys] == wanted


def test_names_too_long_for_a_file_system_are_drawn(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB])
    key = Key("00000", "n" * 251)
    put(tmp_path, RGB, key, noise(0, 64, 64, 3))
    (one,) = plot(tmp_path)
    assert all(path.is_file() for path in one.files)


@pytest.mark.parametrize("size", [217, 221, 251])
def test_a_sample_with_a_long_name_and_variations_is_drawn_once(tmp_path: Path, size: int) -> None:
    write_record(tmp_path, [CAPTION, RGB], num_variations=2, samples=1)
    key = Key("00000", "n" * size)
    put(tmp_path, CAPTION, key, "a red circle")
    for variation in (0, 1):
        put(tmp_path, RGB, key, noise(variation, 64, 64, 3), variation)
    (one,) = plot(tmp_path)
    assert all(path.is_file() for path in one.files)


def test_a_folder_of_plots_that_leads_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", folder / "plots")
    with pytest.raises(UsageError, match="no plots can be put there"):
        plot(folder)
    os.unlink(folder / "plots")
    (folder / "plots").write_text("mine")
    with pytest.raises(FourMError, match="no plots can be put there"):
        plot(folder)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (folder / "plots").read_text() == "mine"


def test_an_empty_run_has_no_sheets(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB])
    assert plot(tmp_path) == []
    assert not (tmp_path / "plots").exists()


def test_small_pictures_grow_by_whole_pixels_and_large_ones_shrink() -> None:
    pixels = noise(0, 5, 3, 3)
    assert np.array_equal(np.asarray(fit(Image.fromarray(pixels), 19)), grown(pixels, 3))
    assert fit(Image.new("RGB", (300, 100)), 100).size == (100, 33)
    assert fit(Image.new("RGB", (4000, 1)), 100).size == (100, 1)


@pytest.mark.parametrize("text", ["word " * 200, "x" * 5000, "ein Käse\n\tmit Löchern", ""])
def test_text_stays_within_its_block(text: str) -> None:
    block = np.asarray(text_block(text, 300, 16, most=3).convert("L"))
    assert block.shape[1] == 300
    assert block.shape[0] <= 3 * 21
    assert (block[:, -1] == 255).all()
    font, lines = lines_of(text, 16, 300, 3)
    assert all(font.getlength(line) <= 300 for line in lines)
    assert len(lines) <= 3


def test_what_no_font_has_is_a_question_mark_and_is_known() -> None:
    strange = "\U0001f9c0"
    missing = undrawable(f"a {strange} b")
    _, lines = lines_of(f"a {strange} b", 16, 300, 1)
    assert missing <= {strange}
    assert lines == ([f"a {strange} b"] if not missing else ["a ? b"])


def test_a_legend_wraps_and_cuts_nothing() -> None:
    labels = [(f"a class with a long name {number}", (number, 0, 200)) for number in range(12)]
    block = np.asarray(legend(labels, 400))
    assert block.shape[1] == 400
    for _, colour in labels:
        assert (block == colour).all(axis=2).sum() == 12 * 12
    assert (block[:, -1] == 255).all()


def test_more_films_than_fit_are_counted() -> None:
    picture = Image.fromarray(noise(0, 8, 8, 3))
    films = [
        Film("tok_rgb@64", "RGB", v, (1, 1), (0,), (Frame(0, 1, picture),)) for v in range(MAX_FILMS + 2)
    ]
    sheets = [draw_films(View(FIRST, "x", (), tuple(films[:count]), ())) for count in (MAX_FILMS, len(films))]
    assert 0 < sheets[1].height - sheets[0].height < 60
    shown = [len(places_of(grown(np.asarray(picture), 16), np.asarray(sheet))) for sheet in sheets]
    assert shown == [MAX_FILMS] * 2


def test_a_contact_sheet_has_rgb_and_all_maps_of_a_sample_side_by_side(folder: Path) -> None:
    parts = choose_parts(open_album(folder))
    assert [(part.title, part.modalities) for part in parts] == [
        ("RGB", ("tok_rgb@64", "tok_rgb@128")),
        ("Semantic segmentation", ("tok_semseg@64",)),
    ]
    plot(folder)
    sheet = read(folder / "plots" / "contact.png")
    maps = [p.picture for p in open_album(folder).view(SECOND).panels if p.modality == "tok_semseg@64"]
    for v, picture in enumerate(maps):
        ((left, top),) = places_of(grown(noise(10 + v, 64, 64, 3), 3)[1:-1, 1:-1], sheet)
        assert picture is not None
        shown = grown(np.asarray(picture), 3)[1:-1, 1:-1]
        assert (left + 192 + 6, top) in places_of(shown, sheet)


def test_a_kept_part_stands_beside_what_became_of_it(tmp_path: Path) -> None:
    kept = Place("rgb_kept", ".png", True, "tok_rgb@64", "kept", True)
    ids = Place("tok_depth@64", ".npy", True, "tok_depth@64", "ids", True)
    write_record(tmp_path, [kept, ids, RGB])
    parts = choose_parts(open_album(tmp_path))
    assert [(part.title, part.is_given) for part in parts] == [("RGB, kept", True), ("RGB", False)]


def test_what_a_contact_sheet_shows_can_be_chosen(folder: Path) -> None:
    album = open_album(folder)
    assert [part.title for part in choose_parts(album, ("semseg", "rgb@128", "tok_rgb"))] == [
        "Semantic segmentation",
        "RGB",
    ]
    assert [part.title for part in choose_parts(album, ("caption",))] == ["Caption"]
    with pytest.raises(UsageError, match=r"`show`: 'semsg' is not .*; did you mean 'semseg'"):
        choose_parts(album, ("semsg",))


def test_a_contact_sheet_of_features_shows_features_and_what_they_were_made_from(tmp_path: Path) -> None:
    given = Place("rgb", ".png", True, "rgb@64", "value", True)
    write_record(tmp_path, [given, CLIP])
    assert [part.title for part in choose_parts(open_album(tmp_path))] == ["RGB", "CLIP-B/16"]
    write_record(tmp_path, [CAPTION])
    assert [part.title for part in choose_parts(open_album(tmp_path))] == ["Caption"]


@pytest.mark.parametrize("count", range(1, 14))
def test_samples_fit_beside_each_other_however_many_maps_they_have(count: int) -> None:
    layout = Layout((Part("x", False, ()),) * count)
    assert layout.per_row * (layout.width + layout.gap) - layout.gap <= max(1250, 102 * count)
    assert 96 <= layout.side <= 192
    assert layout.per_sheet == 10 * layout.per_row


def test_depth_has_a_bar_of_its_colours_with_the_numbers_at_its_ends(tmp_path: Path) -> None:
    depth = Place("depth", ".npy", modality="tok_depth@64")
    write_record(tmp_path, [depth], num_variations=2)
    for v, height in enumerate((1.0, 2.0)):
        put(tmp_path, depth, FIRST, np.linspace(0, height, 4096, dtype=np.float32).reshape(64, 64), v)
    view = open_album(tmp_path).view(FIRST)
    assert [panel.limits for panel in view.panels] == [(0.0, 2.0)] * 2  # one scale for both
    sheet = np.asarray(draw_sample(view))
    bar = colour_bar((0.0, 2.0), 256)
    assert len(places_of(np.asarray(bar), sheet)) == 1
    assert np.array_equal(np.asarray(bar)[0], turbo(np.arange(256)[None])[0])
    panels = [np.asarray(panel.picture) for panel in view.panels]
    assert panels[0][-1, -1].tolist() == turbo(np.array([[0, 1, 2]]))[0, 1].tolist()
    low, high = (turbo(np.array([[0, 1]]))[0, end].tolist() for end in (0, 1))
    assert (panels[1][0, 0].tolist(), panels[1][-1, -1].tolist()) == (low, high)


@pytest.mark.parametrize(
    ("value", "text"), [(0.23456, "0.235"), (-1.5, "-1.5"), (65535.0, "65,535"), (0, "0")]
)
def test_numbers_of_a_bar_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_a_film_ends_in_the_colours_of_its_result(tmp_path: Path, run: object) -> None:
    words = ("generate", "a small red circle", "--targets", "tok_clip-tok_depth", "--num-variations", "2")
    words += ("--steps", "8-7", "--preview", "2", "--out", "out", "-q")  # step 15 is the last one of depth
    assert run(*words)[0] == 0  # type: ignore[operator]
    view = open_album(Path("out")).view(FIRST)
    for film in view.films:
        (panel,) = (p for p in view.panels if (p.modality, p.variation) == (film.modality, film.variation))
        alone, last = picture_alone(panel), film.frames[-1]
        assert alone is not None
        decided = np.array(film.order).reshape(8, 8) <= last.step
        assert decided.all() == (film.modality == "tok_clip@64")
        shown, result = np.asarray(last.picture).astype(int), np.asarray(alone).astype(int)
        mask = grown(decided, len(shown) // 8)
        if film.modality == "tok_clip@64":
            assert np.array_equal(shown[mask], result[mask])
        else:  # neighbours of what is not decided yet may change
            assert np.mean(np.abs(shown - result)[mask] <= 8) > 0.6


def test_what_is_outside_a_picture_is_light_grey(tmp_path: Path) -> None:
    depth = Place("depth", ".npy", modality="tok_depth@64")
    write_record(tmp_path, [RGB, depth])
    pixels, distance = np.full((40, 60, 4), 255, np.uint8), np.ones((40, 60), np.float32)
    pixels[:, :10, 3], distance[:, :10] = 0, np.nan
    distance[:, 30:] = 2
    put(tmp_path, RGB, FIRST, pixels)
    rgb, _ = open_album(tmp_path).view(FIRST).panels
    painted = np.asarray(build_codec(find_model("demo").registry.get("tok_depth@64")).picture(distance))
    assert rgb.picture is not None
    for picture in (np.asarray(rgb.picture), painted):
        assert (picture[:, :10] == UNKNOWN).all()
        assert not (picture[:, 10:] == UNKNOWN).all(axis=2).any()


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_sheets_are_written_as_pdf_and_svg(folder: Path, kind: str) -> None:
    plot(folder, kind=kind, width=5.0, count=1)
    names = {path.name for path in (folder / "plots").iterdir()}
    assert names == {f"000000.{kind}", f"contact.{kind}"}
    data = (folder / "plots" / f"000000.{kind}").read_bytes()
    plot(folder, kind=kind, width=5.0, count=1)
    assert (folder / "plots" / f"000000.{kind}").read_bytes() == data
    if kind == "pdf":
        assert b"/MediaBox [ 0 0 360 " in data
        return
    page = ElementTree.fromstring(data)
    assert page.get("width") == "360pt"
    (image,) = page.iter("{http://www.w3.org/2000/svg}image")
    shown = image.get("{http://www.w3.org/1999/xlink}href") or ""
    pixels = Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))).convert("RGB")
    sheet = draw_sample(open_album(folder).view(FIRST))
    assert np.array_equal(np.asarray(pixels), np.asarray(sheet))


def test_a_png_says_how_wide_it_is_on_paper(tmp_path: Path) -> None:
    save_drawing(Image.new("RGB", (600, 300)), tmp_path / "x.png", 6)
    assert Image.open(tmp_path / "x.png").info["dpi"] == pytest.approx((100, 100), abs=0.1)
    save_drawing(Image.new("RGB", (600, 300)), tmp_path / "x.png")
    assert "dpi" not in Image.open(tmp_path / "x.png").info


def test_rows_of_wide_pictures_are_as_high_as_these(tmp_path: Path) -> None:
    assert slack([Image.new("L", (900, 300)), Image.new("L", (90, 60))], 256) == (256 - 171) // 2
    assert slack([Image.new("L", (900, 300)), "missing"], 256) == slack([Image.new("L", (3, 9))], 256) == 0
    heights = []
    for number, height in enumerate((64, 32)):
        write_record(tmp_path / str(number), [RGB, SEMSEG])
        put(tmp_path / str(number), RGB, FIRST, noise(1, height, 64, 3))
        put(tmp_path / str(number), SEMSEG, FIRST, noise(2, height, 64) % 3)
        view = open_album(tmp_path / str(number)).view(FIRST)
        sheet = np.asarray(draw_sample(view))
        assert len(places_of(grown(noise(1, height, 64, 3), 4), sheet)) == 1, "all of it is there"
        plot(tmp_path / str(number))
        contact = read(tmp_path / str(number) / "plots" / "contact.png")
        assert len(places_of(grown(noise(1, height, 64, 3), 3)[1:-1, 1:-1], contact)) == 1
        heights.append((sheet.shape[0], contact.shape[0]))
    assert heights[0][0] - heights[1][0] == 128
    assert heights[0][1] - heights[1][1] == 96
