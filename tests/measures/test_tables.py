"""Every measure: degenerate input, processes in any order, and a package that is not installed."""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fourm.errors import MissingError, SampleError
from fourm.measures.measure import Settings
from fourm.measures.tables import MEASURES, SORTS, Sort, build_measure
from fourm.modalities.facts import FIELDS, Box, Colour, Fact
from fourm.modalities.figures import Group, Instance
from fourm.modalities.registry import RELEASED
from tests.codecs.test_figures import SOMEBODY
from tests.measures.measuring import ABSENT, build, check_shares, is_near, pairs_of
from tests.measures.seeded import facts, moved, write_lpips, write_poses

ROWS: Mapping[Sort, str] = {
    "picture": "rgb@224", "depth": "tok_depth@224", "normal": "tok_normal@224", "labels": "tok_semseg@224",
    "edges": "tok_canny_edge@224", "features": "tok_dinov2_global", "text": "caption", "boxes": "det",
    "poses": "human_poses", "instances": "sam_instance", "palette": "color_palette", "metadata": "metadata",
    "tokens": "tok_rgb@224",
}  # fmt: skip
# What every measure is to be given. `random`: the name of a test that compares it with another library.
KINDS = ("random", "one", "constant", "nothing", "wrong", "right")
WITH_NETWORKS = ("pck",)  # of those that need weights: what `networks` makes


@dataclass(frozen=True)
class Case:
    """Values and partners, and the numbers they have, or a part of the error that they are."""

    values: Sequence[tuple[Any, Any]]
    wanted: Sequence[float] | str
    known: NDArray[np.bool_] | None = None


def levels(*numbers: int) -> NDArray[np.uint8]:
    """A map of one row."""
    return np.array([numbers], dtype=np.uint8)


def floats(*numbers: float) -> NDArray[np.float32]:
    return np.array([numbers], dtype=np.float32)


def grey(level: int, side: int = 16) -> NDArray[np.uint8]:
    return np.full((side, side, 3), level, dtype=np.uint8)


def directions(*numbers: int) -> NDArray[np.uint8]:
    return np.repeat(levels(*numbers)[..., None], 3, axis=2)


def line(*columns: int) -> NDArray[np.uint8]:
    picture = np.zeros((20, 20), dtype=np.uint8)
    picture[:, columns] = 255
    return picture


def vector(*numbers: float) -> NDArray[np.float32]:
    return np.array(numbers, dtype=np.float32).reshape(-1, 1, 1)


def circle(turn: float) -> list[tuple[Any, Any]]:
    """Twelve directions, and the same turned."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return [(vector(np.cos(a + turn), np.sin(a + turn)), vector(np.cos(a), np.sin(a))) for a in angles]


def ids(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def masks(*corners: tuple[int, int, int, int]) -> Any:
    return (Group(None, tuple(Instance(one, (0,) * 16) for one in corners)),)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
NOWHERE = np.zeros((16, 16), dtype=np.bool_)
CAT, FAR, WIDE = Box(0, 0, 1, 0.5, "cat"), Box(0.8, 0.8, 1, 1, "cat"), Box(0, 0, 0.62, 0.5, "cat")
BLACK, WHITE = Colour(0, 0, 0), Colour(255, 255, 255)
SAT = [("the cat sat on the mat", "the cat sat on a mat")]
SAME = [("a small red circle", "a small red circle")] * 3
OTHERS = [("a small red circle", "two things entirely other"), ("nothing like that here", "big blue squares")]
ALIKE = [(two, two) for _, two in OTHERS]
NO_WORDS = [("", "..."), ("", "")]
SEEN, UNSEEN = (10, 20, 110, 120), (200, 0, 220, 10)
DEPTHS = floats(1, 2, 3, 6)

CASES: Mapping[str, Mapping[str, Case | str]] = {
    "psnr": {
        "random": "test_pictures:test_ssim_and_psnr_are_those_of_other_libraries",
        "one": Case([(grey(51), grey(102))], [-10 * math.log10(0.04)]),
        "constant": Case([(grey(7), grey(7))] * 3, [math.inf]),
        "nothing": Case([(grey(0), grey(9))], [math.nan], NOWHERE),
        "wrong": Case([(grey(0), grey(255))] * 2, [0]),
        "right": Case([(grey(9), grey(9))], [math.inf]),
    },
    "ssim": {
        "random": "test_pictures:test_ssim_and_psnr_are_those_of_other_libraries",
        "one": Case([(grey(51), grey(102))], [(2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)]),
        "constant": Case([(grey(7), grey(7))] * 3, [1]),
        "nothing": Case([(grey(0), grey(9))], [math.nan], NOWHERE),
        "wrong": Case([(grey(0), grey(255))] * 2, [1e-4 / (1 + 1e-4)]),
        "right": Case([(grey(9), grey(9))], [1]),
    },
    "lpips": {
        **dict.fromkeys(("random", "one", "wrong"), "test_learned:test_lpips_is_that_of_its_authors"),
        "constant": Case([(grey(7, 64), grey(7, 64))] * 2, [0]),
        "nothing": Case([(grey(7), grey(9))], "16 x 16 pixels, but LPIPS needs"),
        "right": Case([(NOISE, NOISE)], [0]),
    },
    # Of sets, and of pictures and captions: by name, because a pair alone is neither wrong nor right.
    "fid": {
        **dict.fromkeys(KINDS, "test_learned:test_degenerate_sets"),
        "random": "test_learned:test_fid_is_that_of_torchmetrics",
        "wrong": "test_learned:test_fid_by_hand",
    },
    "inception_score": {
        **dict.fromkeys(KINDS, "test_learned:test_degenerate_sets"),
        "random": "test_learned:test_the_inception_score_is_the_mean_of_that_of_torchmetrics_over_splits",
    },
    "clip_score": {
        **dict.fromkeys(KINDS, "test_learned:test_the_clip_score_is_the_cosine_of_picture_and_caption"),
        "nothing": "test_learned:test_a_picture_without_a_caption_has_no_clip_score",
    },
    "token_share": {
        "random": "test_measure:test_the_share_of_equal_tokens_is_that_of_scikit_learn",
        "one": Case([(ids(1, 2, 3, 4), ids(1, 2, 0, 4)), (ids(1, 2), ids(1, 2, 3, 4))], [0.625, 0]),
        "constant": Case([(ids(5, 5, 5), ids(5, 5, 5))] * 3, [1, 1]),
        "nothing": Case([(ids(), ids())], [math.nan] * 2),
        "wrong": Case([(ids(1, 2), ids(2, 1))], [0, 0]),
        "right": Case([(ids(1, 2), ids(1, 2))], [1, 1]),
    },
    "exact_match": {
        "random": "test_measure:test_texts_match_exactly_but_for_blanks_at_their_ends",
        "one": Case([("a cat\n", "a cat")], [1]),
        "constant": Case(SAME, [1]),
        "nothing": Case([("", " ")], [1]),
        "wrong": Case(OTHERS, [0]),
        "right": Case(ALIKE, [1]),
    },
    "depth": {
        "random": "test_maps:test_depth_is_that_of_scikit_learn",
        "one": Case([(3 * DEPTHS - 20, DEPTHS)], [0, 0, 1, 1, 1]),
        "constant": Case([(0 * DEPTHS, DEPTHS)], [0.75, math.sqrt(3.5), 0.25, 0.5, 0.5]),  # all become 3
        "nothing": Case([(DEPTHS, DEPTHS * np.float32("nan")), (DEPTHS, 0 * DEPTHS)], [math.nan] * 5),
        # Nothing in common, so that all become the mean, 25.75.
        "wrong": Case(
            [(floats(-1, 0, 1, 0), floats(1, 1, 1, 100))],
            [(3 * 24.75 + 0.7425) / 4, 24.75 * math.sqrt(3), 0, 0, 0],
        ),
        "right": Case([(DEPTHS, DEPTHS)], [0, 0, 1, 1, 1]),
    },
    "normals": {
        "random": "test_maps:test_normals_are_those_of_torch",
        "one": Case([(directions(255, 255), directions(255, 0))], [90, 90, 0.5, 0.5, 0.5]),
        "constant": Case([(directions(0, 0), directions(0, 0))] * 3, [0, 0, 1, 1, 1]),
        "nothing": Case([(directions(0, 255), directions(128, 127))], [math.nan] * 5),
        "wrong": Case([(directions(255, 0), directions(0, 255))], [180, 180, 0, 0, 0]),
        "right": Case([(directions(255, 0), directions(255, 0))], [0, 0, 1, 1, 1]),
    },
    "segmentation": {
        "random": "test_maps:test_segmentation_is_that_of_scikit_learn",
        "one": Case([(levels(1, 2, 2, 255, 7), levels(1, 1, 2, 2, 255))], [(1 / 2 + 1 / 3) / 2, 1 / 2]),
        "constant": Case([(levels(1, 1), levels(1, 2))], [1 / 4, 1 / 2]),
        "nothing": Case([(levels(1, 2), levels(255, 255))], [math.nan] * 2),
        "wrong": Case([(levels(3, 1, 255), levels(1, 2, 2))], [0, 0]),
        "right": Case([(levels(1, 2), levels(1, 2))], [1, 1]),
    },
    "edges": {
        "random": "test_maps:test_edges_are_those_of_distance_transforms",
        "one": Case([(line(3, 9), line(3))], [2 / 3]),
        "constant": Case([(line(*range(20)), line(3))] * 2, [2 * 0.05 / 1.05]),
        "nothing": Case([(grey(0)[..., 0], grey(255)[..., 0])], [math.nan], NOWHERE),
        "wrong": Case([(line(9), line(3))], [0]),
        "right": Case([(line(3), line(3))], [1]),
    },
    "cosine": {
        "random": "test_features:test_cosines_are_those_of_torch",
        "one": Case([(vector(1, 0), vector(1, 1))], [math.sqrt(0.5)]),
        "constant": Case([(vector(2, 2), vector(3, 3))] * 3, [1]),
        "nothing": Case([(vector(1, math.nan), vector(1, 1))], "no finite numbers"),
        "wrong": Case(circle(math.pi), [-1]),
        "right": Case(circle(0), [1]),
    },
    "retrieval": {
        "random": "test_features:test_neighbours_are_those_of_scikit_learn",
        "one": Case([(vector(1, 0), vector(1, 1))], [1, 1, 1]),
        "constant": Case([(vector(1, 1), vector(1, 1))] * 7, [0, 0, 1]),
        "nothing": Case([(vector(1, 1), vector(1, math.inf))], "no finite numbers"),
        "wrong": Case(circle(math.pi), [0, 0, 0]),
        "right": Case(circle(0), [1, 1, 1]),
    },
    "bleu": {
        "random": "test_texts:test_bleu_is_that_of_nltk",
        "one": Case(SAT, [(5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)]),
        "constant": Case(SAME, [1]),
        "nothing": Case(NO_WORDS, [math.nan]),
        "wrong": Case([*OTHERS, ("...", "a red ball")], [0]),
        "right": Case(ALIKE, [1]),
    },
    "rouge": {
        "random": "test_texts:test_rouge_is_that_of_google_research",
        "one": Case(SAT, [5 / 6]),
        "constant": Case(SAME, [1]),
        "nothing": Case(NO_WORDS, [0]),
        "wrong": Case([*OTHERS, ("...", "a red ball")], [0]),
        "right": Case(ALIKE, [1]),
    },
    "cider": {
        "random": "test_texts:test_cider_is_that_of_matrices",
        "one": Case(SAT, [0]),
        "constant": Case(SAME, [0]),
        "nothing": Case(NO_WORDS, [0]),
        "wrong": Case([*OTHERS, ("...", "a red ball")], [0]),
        "right": Case(ALIKE, [(10 + 7.5) / 2]),  # three words have no run of four
    },
    "boxes": {
        "random": "test_boxes:test_boxes_are_those_of_pycocotools",
        "one": Case([((WIDE,), (CAT,))], [0.3, 1, 0, 0.3]),
        "constant": Case([((CAT, CAT, CAT), (CAT,))], [1, 1, 1, 1]),
        "nothing": Case([((CAT,), ()), ((), ())], [math.nan] * 4),
        "wrong": Case([((FAR,), (CAT,)), ((), (CAT,))], [0] * 4),
        "right": Case([((CAT, FAR), (FAR, CAT))], [1] * 4),
    },
    "instances": {
        "random": "test_boxes:test_boxes_are_those_of_pycocotools",
        "one": Case([(masks((10, 20, 72, 120)), masks(SEEN))], [0.3, 1, 0, 0.3]),
        "constant": Case([(masks(SEEN, SEEN), masks(SEEN))] * 2, [1] * 4),
        "nothing": Case([(masks(SEEN), ()), ((), masks())], [math.nan] * 4),
        "wrong": Case([(masks(UNSEEN), masks(SEEN))], [0] * 4),
        "right": Case([(masks(SEEN, UNSEEN), masks(UNSEEN, SEEN))], [1] * 4),
    },
    "pck": {
        "random": "test_things:test_people_are_those_of_plain_loops",
        "one": Case([(moved(0.15), (SOMEBODY,))], [0, 1]),
        "constant": Case([((SOMEBODY, SOMEBODY), (SOMEBODY,))], [1, 1]),
        "nothing": Case([((SOMEBODY,), ()), ((), ())], [math.nan] * 2),
        "wrong": Case([(moved(0.3), (SOMEBODY,)), ((), (SOMEBODY,))], [0, 0]),
        "right": Case([(moved(0), (SOMEBODY,))], [1, 1]),
    },
    "palettes": {
        "random": "test_things:test_palettes_are_those_of_plain_loops",
        "one": Case([((BLACK,), (WHITE, BLACK))], [0, 1]),
        "constant": Case([((BLACK,) * 3, (BLACK,) * 3), ((), ())], [0, 0]),
        "nothing": Case([((), (BLACK,))], [math.nan, 1]),
        "wrong": Case([((BLACK,), (WHITE,))], [100, 0]),
        "right": Case([((BLACK, WHITE), (WHITE, BLACK))], [0, 0]),
    },
    "metadata": {
        "random": "test_things:test_metadata_is_equal_where_its_words_are",
        "one": Case([(facts(n_humans=5, entropy=1), facts(n_humans=2, entropy=1))], [0.5]),
        "constant": Case([(facts(n_humans=5), facts(n_humans=5))] * 3, [1]),
        "nothing": Case([(facts(n_humans=5), ())], [math.nan]),
        "wrong": Case([(facts(n_humans=5), facts(n_humans=2)), ((), facts(n_humans=2))], [0]),
        "right": Case([(facts(n_humans=2, entropy=3), facts(n_humans=2))], [1]),
    },
}


def random_maps(rng: np.random.Generator, *shape: int, top: int = 256) -> Any:
    return tuple(rng.integers(0, top, (2, *shape)).astype(np.uint8))


def random_texts(rng: np.random.Generator) -> Any:
    return tuple(" ".join(rng.choice(["a", "red", "big", "circle"], rng.integers(0, 9))) for _ in range(2))


def random_boxes(rng: np.random.Generator) -> Any:
    def box() -> Box:
        (x0, y0), (x1, y1) = np.sort(rng.integers(0, 4, (2, 2)), axis=0).tolist()
        return Box(x0 / 4, y0 / 4, (x1 + 1) / 4, (y1 + 1) / 4, str(rng.choice(["cat", "dog"])))

    return tuple(tuple(box() for _ in range(rng.integers(0, 5))) for _ in range(2))


def random_instances(rng: np.random.Generator) -> Any:
    return tuple(masks(*(tuple(int(56 * corner) for corner in box.corners) for box in side))
                 for side in random_boxes(rng))  # fmt: skip


def random_facts(rng: np.random.Generator) -> Any:
    return tuple(tuple(Fact(FIELDS[n], int(rng.integers(3))) for n in rng.permutation(21)[:5])
                 for _ in range(2))  # fmt: skip


def random_colours(rng: np.random.Generator) -> Any:
    return tuple(Colour(*levels) for levels in rng.integers(0, 256, (rng.integers(0, 4), 3)).tolist())


# Values and partners that agree in part, for every sort.
RANDOM: Mapping[Sort, Callable[[np.random.Generator], tuple[Any, Any]]] = {
    "picture": lambda rng: random_maps(rng, 16, 16, 3),
    "depth": lambda rng: tuple(rng.uniform(0.1, 1, (2, 8, 8)).astype(np.float32)),
    "normal": lambda rng: random_maps(rng, 8, 8, 3),
    "labels": lambda rng: random_maps(rng, 8, 8, top=4),
    "edges": lambda rng: random_maps(rng, 20, 20),
    "features": lambda rng: tuple(rng.normal(size=(2, 3, 2, 2)).astype(np.float32)),
    "text": random_texts,
    "boxes": random_boxes,
    "poses": lambda rng: tuple(moved(rng.uniform(0, 0.4))[: rng.integers(0, 2)] for _ in range(2)),
    "instances": random_instances,
    "palette": lambda rng: tuple(random_colours(rng) for _ in range(2)),
    "metadata": random_facts,
    "tokens": lambda rng: tuple(rng.integers(0, 3, rng.integers(0, 9)) for _ in range(2)),
}  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Weights by the name of a measure."""
    folder = tmp_path_factory.mktemp("networks")
    return {"pck": write_poses(folder), "lpips": write_lpips(folder)}


def row_name(name: str) -> str:
    """A modality that a measure is for."""
    return ROWS[next(iter(MEASURES[name].sorts))]


def test_every_measure_has_each_kind_of_input_and_every_sort_a_modality() -> None:
    assert CASES.keys() == MEASURES.keys()
    assert all(cases.keys() == {*KINDS} for cases in CASES.values())
    assert ROWS.keys() == {*SORTS.values(), "tokens"} == RANDOM.keys()
    for cases in CASES.values():
        for file, _, test in (case.partition(":") for case in cases.values() if isinstance(case, str)):
            assert callable(getattr(importlib.import_module(f"tests.measures.{file}"), test))


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name, cases in CASES.items() for kind, case in cases.items() if isinstance(case, Case)],
)
def test_degenerate_input(name: str, kind: str, networks: Mapping[str, Path]) -> None:
    case = CASES[name][kind]
    assert isinstance(case, Case)
    pairs = [replace(pair, known=case.known) for pair in pairs_of(case.values)]
    weights = networks.get(name)
    if isinstance(case.wanted, str):
        with pytest.raises(SampleError, match=case.wanted):
            check_shares(name, row_name(name), pairs, weights=weights)
        return
    found = check_shares(name, row_name(name), pairs, weights=weights)
    for number, wanted in zip(MEASURES[name].results, case.wanted, strict=True):
        assert is_near(found[number], wanted, 1e-6), (number, found[number], wanted)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("name", "sort"),
    [
        (row.name, sort) for row in MEASURES.values() for sort in row.sorts
        if not row.weights or row.name in WITH_NETWORKS
    ],
)  # fmt: skip
def test_processes_in_any_order_give_what_one_gives(
    name: str, sort: Sort, seed: int, networks: Mapping[str, Path]
) -> None:
    rng = np.random.default_rng(seed)
    values = [RANDOM[sort](rng) for _ in range(2 + 7 * seed)]
    pairs = [replace(pair, variation=n % 2) for n, pair in enumerate(pairs_of(values))]
    found = check_shares(name, ROWS[sort], pairs, weights=networks.get(name))
    shuffled = [pairs[place] for place in rng.permutation(len(pairs))]
    again = check_shares(name, ROWS[sort], shuffled, weights=networks.get(name))
    assert all(is_near(again[number], value, 1e-9) for number, value in found.items())


@pytest.mark.parametrize(
    "name", ["psnr", "ssim", "lpips", "depth", "normals", "segmentation", "edges", "cosine", "retrieval"]
)
def test_maps_of_two_sizes_of_one_pixel_and_of_none(name: str, networks: Mapping[str, Path]) -> None:
    (sort,) = MEASURES[name].sorts
    value, _ = RANDOM[sort](np.random.default_rng(0))
    value = np.tile(value, (1, 1, 32) if sort == "features" else (4, 4, 1)[: value.ndim])
    measure = build(name, ROWS[sort], weights=networks.get(name))
    with pytest.raises(SampleError, match=r"^(\w+ of )?\d+ x \d+.*, but its partner has \d+ x \d+"):
        measure.update(pairs_of([(value, value), (value, value[:, :-1])]))
    assert all(number.samples == 0 for number in measure.result().values())
    pixel, nothing = (value[:, :n, :n] if sort == "features" else value[:n, :n] for n in (1, 0))
    if name in ("ssim", "lpips"):
        with pytest.raises(SampleError, match=f"1 x 1 pixels, but {name.upper()} needs"):
            measure.update(pairs_of([(pixel, pixel)]))
        with pytest.raises(SampleError, match=f"0 x 0 pixels, but {name.upper()} needs"):
            measure.update(pairs_of([(nothing, nothing)]))
        return
    found = check_shares(name, ROWS[sort], pairs_of([(pixel, pixel)]))
    assert {*found.values()} == {math.inf} if name == "psnr" else all(map(math.isfinite, found.values()))
    if sort == "features":
        with pytest.raises(SampleError, match="features without a number"):
            measure.update(pairs_of([(nothing, nothing)]))
    else:
        assert all(map(math.isnan, check_shares(name, ROWS[sort], pairs_of([(nothing, nothing)])).values()))


@pytest.mark.parametrize("name", [row.name for row in MEASURES.values() if row.package])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourm.measures.tables.find_spec", lambda package: None)
    said = f"{MEASURES[name].package} is not installed; `pip install 'fourm[eval]'` does it"
    with pytest.raises(MissingError, match=re.escape(said)):
        build_measure(MEASURES[name], Settings(RELEASED.get("caption")))


@pytest.mark.parametrize("name", MEASURES)
def test_without_pairs_there_are_no_numbers_and_no_network_is_read(name: str) -> None:
    merged, measure = (build(name, row_name(name), weights=ABSENT) for _ in range(2))
    assert measure.update([]) == []
    merged.merge([measure.state()])
    found = merged.result()
    assert all(math.isnan(found[number].value) for number in MEASURES[name].results)
    assert all(value.samples == 0 for value in found.values())
