"""Drawings of an evaluation: histograms of each measure, and the values for which it is worst."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fourm.codecs.drawing import text_card
from fourm.data.layout import parse_key
from fourm.errors import SampleError
from fourm.evaluation.pairs import Pairs
from fourm.evaluation.results import Evaluation, Number, Sample
from fourm.measures.maps import fitted_depth
from fourm.measures.measure import Pair
from fourm.output.record import EVAL
from fourm.views.layout import beside
from fourm.views.panels import reader_for
from fourm.views.plots import Cell, draw_sheet
from fourm.views.saving import save_drawing

WORST, LINES = 12, 4  # pairs on a sheet, one below the other
_BINS, _COLUMNS = 40, 3
_MAX_IDS = 12  # token ids, or numbers of a vector, that a card shows


def plot_evaluation(found: Evaluation) -> Iterator[Path]:
    """Draw `eval/histograms.png` and `eval/worst-MODALITY-MEASURE.png`; the paths, as they are written."""
    folder = found.folder / EVAL
    drawn = [one for one in found.numbers if one.better and _numbers_of(found, one)]
    if drawn:
        save_drawing(draw_histograms(found, drawn), folder / "histograms.png")
        yield folder / "histograms.png"
    # Of a measure with several numbers, the first one ranks.
    firsts = {(one.modality, one.measure): one for one in reversed(drawn)}.values()
    for one in reversed(firsts):
        if (sheet := draw_worst(found, one)) is not None:
            path = folder / f"worst-{one.modality}-{one.measure}.png".replace("/", "-")
            save_drawing(sheet, path)
            yield path


def draw_histograms(found: Evaluation, numbers: Sequence[Number]) -> Figure:
    """A histogram of the finite numbers of each column of eval.csv, with a line at the result."""
    lines = -(-len(numbers) // _COLUMNS)
    figure = Figure(figsize=(3.6 * _COLUMNS, 2.6 * lines), layout="constrained")
    charts = [*figure.subplots(lines, _COLUMNS, squeeze=False).flat]
    for axes, one in zip(charts, numbers, strict=False):
        values = [*_numbers_of(found, one).values()]
        low, high = min(values, default=0.0), max(values, default=0.0)
        largest = max(abs(low), abs(high))
        if high - low <= 1e-9 * max(largest, 1e-3):  # too near to each other for bins
            low, high = low - max(0.5, 0.1 * largest), high + max(0.5, 0.1 * largest)
        bins = min(_BINS, 2 * math.isqrt(len(values)) + 1)
        axes.hist(values, bins=bins, range=(low, high), color="#4878a8")
        if math.isfinite(one.value):
            axes.axvline(one.value, color="#a83232", linewidth=1)
        axes.set_title(f"{one.modality}: {one.name}", fontsize=10, parse_math=False)
        axes.set_ylabel("samples", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in charts[len(numbers) :]:
        axes.set_axis_off()
    return figure


def draw_worst(found: Evaluation, one: Number) -> Image.Image | None:
    """The worst pairs of a measure, each with its partner; None: none can be read."""
    pairs = next(pairs for pairs in found.pairs if pairs.held.name == one.modality)
    cells = list[list[Cell]]()
    for (key, variation), number in worst_samples(found, one):
        try:
            pair = pairs.read(parse_key(key), variation)
        except SampleError:  # it was deleted or damaged meanwhile
            continue
        if pair is not None:
            which = key if variation is None else f"{key}-v{variation}"
            drawn = draw_pair(pairs, pair, metric_depth=bool(found.settings["metric_depth"]))
            cells.append([*zip(drawn, (f"{which}\n{one.name}: {number:.4g}", ""), strict=False)])
    heads = ["measured", "compared with"] if pairs.partner else ["measured"]
    sheets = [draw_sheet(cells[at : at + LINES], heads) for at in range(0, len(cells), LINES)]
    return beside(sheets) if sheets else None


def worst_samples(found: Evaluation, one: Number) -> list[tuple[Sample, float]]:
    """The WORST samples of a measure with their finite numbers, the worst first."""
    numbers = _numbers_of(found, one).items()
    return sorted(numbers, key=lambda item: item[1], reverse=one.better == "lower")[:WORST]


def draw_pair(pairs: Pairs, pair: Pair, metric_depth: bool = False) -> list[Image.Image]:
    """A value and its partner, if it has one; maps in the colours of the partner, depth as it is compared."""
    sort = pairs.held.sort
    if sort == "depth" and pair.other is not None and not metric_depth:
        pair = replace(pair, value=fitted_depth(pair))
    values, start = [pair.value] if pair.other is None else [pair.value, pair.other], 0
    if sort == "tokens" and len(values) > 1:  # what is seen begins with what differs
        start = next((at for at, ids in enumerate(zip(*values, strict=False)) if ids[0] != ids[1]), 0)
    is_map = sort not in ("tokens", "text") and pairs.held.row.codec
    if is_map and (grid := reader_for(pairs.held.row).grid) is not None:
        return grid.pictures(values, like=values[-1])
    return [_picture(pairs, value, start) for value in values]


def _picture(pairs: Pairs, value: Any, start: int) -> Image.Image:
    if pairs.held.sort == "tokens":
        ids = " ".join(map(str, value[start : start + _MAX_IDS].tolist()))
        return text_card(f"from {start + 1:,}: {ids} ..." if start else f"{ids} ...")
    if pairs.held.sort == "text":
        return text_card(str(value))
    if not pairs.held.row.codec:  # features of the encoder, (D, ...)
        return text_card(" ".join(f"{number:.3g}" for number in value.flat[:_MAX_IDS].tolist()) + " ...")
    return reader_for(pairs.held.row).picture(value)


def _numbers_of(found: Evaluation, one: Number) -> dict[Sample, float]:
    """The finite numbers of a measure, by sample."""
    column = f"{one.modality}/{one.name}"
    rows = {sample: row[column] for sample, row in found.rows.items() if column in row}
    return {sample: number for sample, number in rows.items() if math.isfinite(number)}
