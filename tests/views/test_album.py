"""What an album finds in an output folder: everything of each sample, and what is wrong with it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fourm
from fourm.codecs.figures import draw_figures
from fourm.codecs.files import format_frame
from fourm.codecs.images import GridCodec
from fourm.codecs.table import build_codec
from fourm.data.layout import Crop, Frame, Key, Place
from fourm.errors import FourMError, UsageError
from fourm.evaluation.pairs import find_row, rows_of
from fourm.hub.files import find_model
from fourm.modalities.figures import Person, cut_people, people_to_json
from fourm.modalities.registry import RELEASED
from fourm.output.processes import FAILURES
from fourm.output.record import SR_RUN
from fourm.results.job import order_place, preview_place
from fourm.views.album import open_album
from fourm.views.panels import View, make_view, panel_of, reader_for
from fourm.views.plots import draw_sample
from tests.folders import CAPTION, CLIP, FINE, FIRST, RGB, SECOND, SEMSEG, noise, put, write_record

DET = Place("det", ".json", modality="det")
CIRCLE = {"instances": [{"boxes": [0.25, 0.25, 0.75, 0.75], "class_name": "circle", "score": 1.0}]}


def view_of(root: Path, key: Key = FIRST) -> View:
    return open_album(root).view(key)


def fail(root: Path, key: str = "00000/000000", variation: int = 0, **more: object) -> None:
    row = {"key": key, "variation": variation, "reason": "a.png: is empty", "time": "", **more}
    with (root / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def test_conditions_come_first_then_targets_in_the_order_of_the_chain_then_super_resolution(
    tmp_path: Path,
) -> None:
    write_record(tmp_path, [SEMSEG, RGB, CAPTION], num_variations=2)
    write_record(tmp_path, [FINE], SR_RUN, stage="sr", model="demo-sr", num_variations=2)
    put(tmp_path, CAPTION, FIRST, "a red circle")
    for place, shape in ((RGB, (64, 64, 3)), (SEMSEG, (64, 64)), (FINE, (128, 128, 3))):
        for variation in (0, 1):
            put(tmp_path, place, FIRST, noise(variation, *shape) % 3, variation)
    view = view_of(tmp_path)
    assert [(p.role, p.modality, p.variation) for p in view.panels] == [
        ("condition", "caption", None),
        ("target", "tok_semseg@64", 0),
        ("target", "tok_semseg@64", 1),
        ("target", "tok_rgb@64", 0),
        ("target", "tok_rgb@64", 1),
        ("sr", "tok_rgb@128", 0),
        ("sr", "tok_rgb@128", 1),
    ]
    assert [p.title for p in view.panels[-2:]] == ["RGB, super-resolution"] * 2
    assert (view.prompt, view.problems) == ("a red circle", ())
    for panel in view.panels[3:]:
        assert panel.picture is not None
        assert panel.file.endswith(f"/00000/000000-v{panel.variation}.png")
        assert np.array_equal(np.asarray(panel.picture), np.asarray(Image.open(tmp_path / panel.file)))


def test_a_super_resolution_folder_of_its_own_is_an_album_too(tmp_path: Path) -> None:
    given = Place("tok_rgb@64", ".npy", True, "tok_rgb@64", "ids", True)
    write_record(tmp_path, [given, FINE], stage="sr", model="demo-sr")
    put(tmp_path, given, FIRST, np.zeros((1, 64), np.int16))
    put(tmp_path, FINE, FIRST, noise(1, 128, 128, 3))
    view = view_of(tmp_path)
    assert [(p.role, p.note, p.picture is None) for p in view.panels] == [
        ("condition", "tokens only", True),
        ("sr", "", False),
    ]
    assert view.problems == ()


def test_one_run_for_all_variations_serves_each_of_a_later_run(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB])
    write_record(tmp_path, [FINE], SR_RUN, stage="sr", model="demo-sr", num_variations=2)
    put(tmp_path, RGB, FIRST, noise(1, 64, 64, 3))
    for variation in (0, 1):
        put(tmp_path, FINE, FIRST, noise(variation, 128, 128, 3), variation)
    assert [p.variation for p in view_of(tmp_path).panels] == [None, 0, 1]


def test_samples_that_super_resolution_has_left_out_are_no_problem(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB])
    write_record(tmp_path, [FINE], SR_RUN, stage="sr", model="demo-sr", samples=1)
    put(tmp_path, FINE, FIRST, noise(1, 128, 128, 3))
    for key in (FIRST, SECOND):
        put(tmp_path, RGB, key, noise(1, 64, 64, 3))
    assert [p.role for p in view_of(tmp_path, SECOND).panels] == ["target"]
    assert view_of(tmp_path, SECOND).problems == ()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "rgb/00000/000000.png: is empty"),
        (b"\x89PNG\r\n\x1a\n", "rgb/00000/000000.png: not a picture"),
        (None, "rgb/00000/000000.png: missing"),
    ],
)
def test_a_broken_file_is_a_problem_of_its_sample_and_leaves_the_rest(
    tmp_path: Path, data: bytes | None, said: str
) -> None:
    write_record(tmp_path, [CAPTION, RGB, SEMSEG])
    put(tmp_path, CAPTION, FIRST, "x")
    put(tmp_path, SEMSEG, FIRST, np.zeros((64, 64)))
    if data is not None:
        put(tmp_path, RGB, FIRST, data)
    view = view_of(tmp_path)
    assert len(view.problems) == 1
    assert view.problems[0].startswith(said)
    assert {p.modality: p.picture is None for p in view.panels} == {
        "caption": False,
        "tok_rgb@64": True,
        "tok_semseg@64": False,
    }


def test_a_picture_that_was_cut_off_is_told(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB])
    path = put(tmp_path, RGB, FIRST, noise(3, 64, 64, 3))
    path.write_bytes(path.read_bytes()[:-2000])
    (problem,) = view_of(tmp_path).problems
    assert problem.startswith("rgb/00000/000000.png: not a picture that can be read")


def test_maps_of_features_share_their_colours(tmp_path: Path) -> None:
    write_record(tmp_path, [CLIP], num_variations=2)
    maps = [np.random.default_rng(n).normal(size=(6, 8, 8)).astype(np.float32) for n in (0, 1)]
    for variation, value in enumerate(maps):
        put(tmp_path, CLIP, FIRST, value, variation)
    codec = build_codec(find_model("demo").registry.get("tok_clip@64"))
    assert isinstance(codec, GridCodec)
    together, panels = codec.pictures(maps), view_of(tmp_path).panels
    for wanted, panel, value in zip(together, panels, maps, strict=True):
        assert panel.picture is not None
        assert panel.picture.tobytes() == wanted.tobytes() != codec.picture(value).tobytes()


def test_boxes_are_drawn_on_the_picture_of_their_own_variation(tmp_path: Path) -> None:
    write_record(tmp_path, [DET, RGB], num_variations=2)
    for variation, colour in enumerate(((200, 0, 0), (0, 0, 200))):
        put(tmp_path, RGB, FIRST, np.full((64, 64, 3), colour), variation)
        put(tmp_path, DET, FIRST, json.dumps(CIRCLE), variation)
    boxes = [panel for panel in view_of(tmp_path).panels if panel.modality == "det"]
    assert [panel.text for panel in boxes] == ["circle", "circle"]
    for panel, colour in zip(boxes, ((200, 0, 0), (0, 0, 200)), strict=True):
        assert panel.picture is not None
        assert panel.picture.size == (256, 256)  # large enough for names
        assert panel.picture.getpixel((128, 128)) == colour == panel.picture.getpixel((2, 2))
        assert panel.picture.getpixel((64, 128)) != colour


def test_boxes_without_a_picture_are_drawn_on_white(tmp_path: Path) -> None:
    write_record(tmp_path, [DET])
    put(tmp_path, DET, FIRST, json.dumps(CIRCLE))
    (panel,) = view_of(tmp_path).panels
    assert panel.picture is not None
    assert panel.picture.getpixel((2, 2)) == (255, 255, 255)


def test_a_legend_has_the_classes_that_occur(tmp_path: Path) -> None:
    write_record(tmp_path, [SEMSEG])
    put(tmp_path, SEMSEG, FIRST, np.zeros((64, 64)))
    second = np.full((64, 64), 255)
    second[:10] = 1
    put(tmp_path, SEMSEG, SECOND, second)
    album = open_album(tmp_path)
    names = find_model("demo").registry.get("tok_semseg@64").labels
    for key, wanted in ((FIRST, [names[0]]), (SECOND, ["no class", names[1]])):
        view = album.view(key)
        labels, picture = view.panels[0].labels, view.panels[0].picture
        assert sorted(name for name, _ in labels) == sorted(wanted)
        assert picture is not None
        seen = {colour for _, colour in picture.getcolors() or []}
        assert seen == {colour for _, colour in labels}


def test_a_film_has_the_kept_steps_and_the_order_as_it_is_stored(tmp_path: Path) -> None:
    write_record(tmp_path, [CLIP, RGB], num_variations=2, preview=1)
    put(tmp_path, CLIP, FIRST, np.zeros((3, 8, 8), np.float32), 1)
    put(tmp_path, RGB, FIRST, noise(0, 64, 64, 3), 1)
    order, pixels = np.arange(64)[::-1] % 2 + 3, noise(5, 64, 64, 3)
    preview = order_place("tok_rgb@64")
    put(tmp_path, preview, FIRST, order.astype(np.int16)[None], 1)
    put(tmp_path, preview_place("tok_rgb@64", 3), FIRST, pixels, 1)
    (film,) = view_of(tmp_path).films
    assert (film.modality, film.variation, film.grid) == ("tok_rgb@64", 1, (8, 8))
    assert film.order == tuple(order.tolist())
    assert [(frame.step, frame.decided) for frame in film.frames] == [(3, 32)]
    assert np.array_equal(np.asarray(film.frames[0].picture), pixels)


@pytest.mark.parametrize("order", [np.zeros(63, np.int16), np.zeros(64, np.float32), b"junk"])
def test_a_damaged_order_of_decoding_is_a_problem_of_its_sample(tmp_path: Path, order: object) -> None:
    write_record(tmp_path, [RGB], preview=1)
    put(tmp_path, RGB, FIRST, noise(0, 64, 64, 3))
    put(tmp_path, order_place("tok_rgb@64"), FIRST, order)
    put(tmp_path, preview_place("tok_rgb@64", 1), FIRST, b"junk")
    view = view_of(tmp_path)
    assert [problem.split(": ")[0] for problem in view.problems] == [
        "preview/tok_rgb@64/00000/000000-order.npy",
        "preview/tok_rgb@64/00000/000000-step001.png",
    ]
    assert view.films == ()


def test_failures_are_told_once_and_explain_what_is_missing(tmp_path: Path) -> None:
    write_record(tmp_path, [CAPTION, RGB], num_variations=2)
    put(tmp_path, CAPTION, FIRST, "x")
    put(tmp_path, RGB, FIRST, noise(0, 64, 64, 3), 0)
    fail(tmp_path, variation=1)
    view = view_of(tmp_path)
    assert view.problems == ("variation 1, failed: a.png: is empty",)
    assert [panel.note for panel in view.panels] == ["", "", "missing"]


def test_a_sample_that_left_nothing_but_a_failure_is_in_the_album(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB])
    fail(tmp_path, "dogs/rex")
    fail(tmp_path, "by itself")
    fail(tmp_path, "../out")
    album = open_album(tmp_path)
    assert album.keys == (Key("", "by itself"), Key("dogs", "rex"))
    for key in album.keys:
        view = album.view(key)
        assert view.problems == ("failed: a.png: is empty",)
        assert [panel.picture for panel in view.panels] == [None]


def test_failures_of_super_resolution_leave_the_base_alone(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB])
    write_record(tmp_path, [FINE], SR_RUN, stage="sr", model="demo-sr")
    put(tmp_path, RGB, FIRST, noise(0, 64, 64, 3))
    fail(tmp_path, stage="sr")
    view = view_of(tmp_path)
    assert view.problems == ("super-resolution, failed: a.png: is empty",)
    assert [(panel.role, panel.note) for panel in view.panels] == [("target", ""), ("sr", "missing")]


def test_super_resolution_in_a_folder_of_its_own_explains_what_failed(tmp_path: Path) -> None:
    """Its failures name no stage, as those of the only run in any folder."""
    write_record(tmp_path, [FINE], stage="sr", model="demo-sr")
    fail(tmp_path)
    view = view_of(tmp_path)
    assert view.problems == ("failed: a.png: is empty",)
    assert [panel.note for panel in view.panels] == ["missing"]


def test_people_of_whole_pictures_are_read_whole_and_drawn_in_the_square(tmp_path: Path) -> None:
    """By sheets and in memory alike; an older reading clipped them to the square."""
    poses = Place("human_poses", ".json", modality="human_poses")
    write_record(tmp_path, [poses], restore=True)
    turn, crop = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), Crop((600, 900), 0, 300, 600, 600)
    person = Person((600.0, 300.0, 850.0, 450.0), turn, (0,) * 8, (0.0,) * 10, (1.0, 0.5, 0.0))
    put(tmp_path, poses, FIRST, json.dumps(people_to_json((person,))))
    path = tmp_path / "frame" / f"{FIRST.path}.json"
    path.parent.mkdir(parents=True)
    path.write_text(format_frame(Frame(crop, restored=True)))
    (result,) = fourm.read(tmp_path)
    assert result["human_poses"] == (person,)
    (panel,) = view_of(tmp_path).panels
    assert panel.picture is not None
    assert np.array_equal(panel.picture, result.picture("human_poses"))
    assert np.array_equal(panel.picture, draw_figures(cut_people((person,), crop)))


def test_an_empty_run_is_an_empty_album(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB])
    assert open_album(tmp_path).keys == ()


def test_a_folder_that_no_run_wrote_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        open_album(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": {"steps": "many"}}, "is not a record of this program"),
        ({"schedule": {"conditions": [], "steps": [{"target": "tok_rgb@64"}]}}, "has no 'index'"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    write_record(tmp_path, [RGB], **changes)
    with pytest.raises(UsageError, match=said):
        open_album(tmp_path)


@pytest.mark.parametrize("place", [replace(RGB, folder="../rgb"), replace(RGB, suffix="/../../x.png")])
def test_a_record_that_leads_out_of_its_folder_is_refused(tmp_path: Path, place: Place) -> None:
    write_record(tmp_path / "out", [place])
    with pytest.raises(UsageError, match="no run"):
        open_album(tmp_path / "out")


def test_released_modalities_stand_in_for_those_of_a_model_that_is_gone(tmp_path: Path) -> None:
    write_record(tmp_path, [RGB], model="/nowhere/model", preview=1)
    put(tmp_path, RGB, FIRST, noise(0, 64, 64, 3))
    put(tmp_path, order_place("tok_rgb@64"), FIRST, np.arange(64, dtype=np.int16))
    album = open_album(tmp_path)
    view = album.view(FIRST)
    assert (album.problems, view.problems) == ((), ())
    assert (view.panels[0].title, view.films[0].grid) == ("RGB", (8, 8))


@pytest.mark.parametrize("place", [replace(RGB, modality="tok_smell@64"), SEMSEG])
def test_a_modality_that_nobody_knows_is_told_once(tmp_path: Path, place: Place) -> None:
    """Class numbers of a model that is gone may mean anything, so COCO's names would be a guess."""
    write_record(tmp_path, [place], model="/nowhere/model")
    put(tmp_path, place, FIRST, noise(0, 64, 64))
    album = open_album(tmp_path)
    (problem,) = album.problems
    assert problem.startswith(f"{place.modality}: cannot be shown")
    assert "`model=NAME`" in problem
    view = album.view(FIRST)
    assert (view.problems, view.panels[0].note) == ((), "unknown modality")


def test_a_model_that_is_named_knows_the_modalities(tmp_path: Path) -> None:
    write_record(tmp_path, [SEMSEG], model="/nowhere/model")
    put(tmp_path, SEMSEG, FIRST, np.zeros((64, 64)))
    album = open_album(tmp_path, "demo")
    assert album.problems == ()
    assert album.view(FIRST).panels[0].picture is not None
    with pytest.raises(FourMError, match="nosuchmodel"):
        open_album(tmp_path, "nosuchmodel")


def test_names_and_texts_in_any_script_are_read(tmp_path: Path) -> None:
    write_record(tmp_path, [CAPTION, RGB])
    key = Key("ordner ä/二", "käse 🧀")
    put(tmp_path, CAPTION, key, "ein Käse 🧀\nund 文字")
    put(tmp_path, RGB, key, noise(0, 64, 64, 3))
    view = view_of(tmp_path, key)
    assert (view.prompt, view.problems) == ("ein Käse 🧀\nund 文字", ())


def test_a_caption_that_is_no_text_is_told(tmp_path: Path) -> None:
    write_record(tmp_path, [CAPTION, RGB])
    put(tmp_path, CAPTION, FIRST, b"\xff\xfe")
    put(tmp_path, RGB, FIRST, noise(0, 64, 64, 3))
    view = view_of(tmp_path)
    assert (view.prompt, view.problems) == (None, ("caption/00000/000000.txt: not text in UTF-8 (byte 0)",))


@pytest.mark.parametrize(("height", "shown"), [(20, 8), (1, 1)])
def test_a_large_picture_is_made_smaller(tmp_path: Path, height: int, shown: int) -> None:
    write_record(tmp_path, [RGB])
    put(tmp_path, RGB, FIRST, np.zeros((height, 5000, 3)))
    (panel,) = view_of(tmp_path).panels
    assert panel.picture is not None
    assert panel.picture.size == (2048, shown)


def test_a_run_s_own_folder_reads_back_whole(tmp_path: Path, run: object) -> None:
    words = ("generate", "a small red circle", "--targets", "tok_clip-tok_rgb", "--preview", "9")
    code, _, err = run(*words, "--num-variations", "2", "--out", "out")  # type: ignore[operator]
    assert code == 0, err
    album = open_album(Path("out"))
    view = album.view(album.keys[0])
    assert (view.problems, len(view.panels), len(view.films)) == ((), 5, 4)
    film = view.films[-1]
    stored = np.load(Path("out/preview/tok_rgb@64/00000/000000-v1-order.npy"))
    assert film.order == tuple(stored.ravel().tolist())
    assert [stored[stored <= frame.step].size for frame in film.frames] == [f.decided for f in film.frames]
    shutil.rmtree("out/rgb")
    assert len(album.view(album.keys[0]).problems) == 2


@pytest.mark.parametrize("name", RELEASED.rows)
def test_every_released_modality_can_be_looked_at_without_its_model(name: str) -> None:
    row = RELEASED.get(name)
    reader = reader_for(row)
    assert reader.row is row
    assert find_row(name, rows_of("/nowhere/model")) is row


@pytest.mark.parametrize("prompt", ["", "  \n", None])
def test_a_sample_without_words_is_headed_by_its_name(tmp_path: Path, prompt: str | None) -> None:
    write_record(tmp_path, [CAPTION, RGB])
    put(tmp_path, RGB, FIRST, noise(0, 64, 64, 3))
    if prompt is not None:
        put(tmp_path, CAPTION, FIRST, prompt)
    view = view_of(tmp_path)
    assert view.headline == "00000/000000"
    assert view.prompt == prompt
    assert [panel.picture is not None for panel in view.panels] == [prompt is not None, True]


def test_values_in_memory_are_shown_as_those_of_a_folder(tmp_path: Path, run: object) -> None:
    words = ("generate", "a small red circle", "--targets", "tok_depth-tok_semseg-det-tok_rgb")
    assert run(*words, "--out", "out", "-q")[0] == 0  # type: ignore[operator]
    wanted = open_album(Path("out")).view(FIRST)
    rows = find_model("demo").registry
    panels = [panel_of(rows.get(one.modality), one.value, one.role) for one in wanted.panels]
    view = make_view(FIRST, panels, wanted.made_by)
    assert (view.prompt, view.problems) == (wanted.prompt, wanted.problems) == ("a small red circle", ())
    assert draw_sample(view).tobytes() == draw_sample(wanted).tobytes()


def test_titles_in_memory_say_what_is_unclear_alone() -> None:
    rows, pixels = find_model("demo").registry, noise(0, 64, 64, 3)
    panels = [panel_of(rows.get("rgb@64"), pixels, "condition"), panel_of(rows.get("tok_rgb@64"), pixels)]
    assert [panel.title for panel in make_view(FIRST, panels).panels] == ["RGB, given", "RGB, made"]
