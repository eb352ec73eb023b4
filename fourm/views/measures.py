"""Drawings of an evaluation: histograms of each measure, and the values for which it is worst."""

import math
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from fourm.codecs.drawing import text_card
from fourm.data.layout import parse_key
from fourm.errors import SampleError
from fourm.measures.evaluation import Evaluation, Number
from fourm.measures.measure import Pair
from fourm.measures.pairs import Pairs
from fourm.output.record import EVAL
from fourm.views.panels import reader_for
from fourm.views.plots import draw_sheet
from fourm.views.saving import save_drawing

WORST = 12  # rows of a sheet
_BINS, _COLUMNS = 40, 3
_MAX_IDS = 12  # token ids that a card shows


def plot_evaluation(found: Evaluation) -> Iterator[Path]:
    """Draw `eval/histograms.png` and `eval/worst-MODALITY-NAME.png`; the paths, as they are written."""
    folder = found.folder / EVAL
    drawn = [one for one in found.numbers if _numbers_of(found, one)]
    if drawn:
        save_drawing(draw_histograms(found, drawn), folder / "histograms.png")
        yield folder / "histograms.png"
    for one in drawn:
        if one.better and (sheet := draw_worst(found, one)) is not None:
            path = folder / f"worst-{one.modality}-{one.name}.png".replace("/", "-")
            save_drawing(sheet, path)
            yield path


def draw_histograms(found: Evaluation, numbers: list[Number]) -> Figure:
    """A histogram of the finite numbers of each column of eval.csv, with a line at the mean."""
    lines = -(-len(numbers) // _COLUMNS)
    figure = Figure(figsize=(3.6 * _COLUMNS, 2.6 * lines), layout="constrained")
    charts = figure.subplots(lines, _COLUMNS, squeeze=False).flat
    for axes, one in zip(charts, numbers, strict=False):
        axes.hist(list(_numbers_of(found, one).values()), bins=_BINS, color="#4878a8")
        if math.isfinite(one.value):
            axes.axvline(one.value, color="#a83232", linewidth=1)
        axes.set_title(f"{one.modality}: {one.name}", fontsize=10, parse_math=False)
        axes.set_ylabel("samples", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in charts:  # those that are left over
        axes.set_axis_off()
    return figure


def draw_worst(found: Evaluation, one: Number) -> Image.Image | None:
    """A row for each of the worst pairs of a measure: the value, and its partner; None: none can be read."""
    pairs = next(pairs for pairs in found.pairs if pairs.held.name == one.modality)
    ranked = sorted(_numbers_of(found, one).items(), key=lambda item: item[1], reverse=one.better == "lower")
    rows = []
    for (key, variation), number in ranked[:WORST]:
        try:
            pair = pairs.read(parse_key(key), variation)
        except SampleError:  # it was deleted or damaged meanwhile
            continue
        if pair is not None:
            which = key if variation is None else f"{key}-v{variation}"
            rows.append(_row(pairs, pair, f"{which}\n{one.name} {number:.4g}"))
    heads = ["measured", "compared with"] if pairs.partner else ["measured"]
    return draw_sheet(rows, heads) if rows else None


def _row(pairs: Pairs, pair: Pair, text: str) -> list[tuple[Image.Image, str]]:
    cells = [(_picture(pairs, pair.value), text)]
    return cells if pair.other is None else [*cells, (_picture(pairs, pair.other), "")]


def _picture(pairs: Pairs, value: object) -> Image.Image:
    if pairs.held.sort == "tokens":
        ids = [str(number) for number in list(value)[:_MAX_IDS]]  # type: ignore[call-overload]
        return text_card(" ".join(ids) + " ...")
    if pairs.held.sort == "text":
        return text_card(str(value))
    return reader_for(pairs.held.row).picture(value)


def _numbers_of(found: Evaluation, one: Number) -> dict[tuple[str, int | None], float]:
    """The finite numbers of a measure, by sample."""
    column = f"{one.modality}/{one.name}"
    rows = {sample: row[column] for sample, row in found.rows.items() if column in row}
    return {sample: number for sample, number in rows.items() if math.isfinite(number)}
