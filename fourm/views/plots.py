"""Sheets of an album as PNG files: a grid and a film strip for each sample, contact sheets for all."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from fourm.codecs.drawing import undrawable
from fourm.data.layout import Key, path_of
from fourm.data.writing import remove_leftovers, write_atomic
from fourm.errors import UsageError
from fourm.views.album import Album, View
from fourm.views.contact import Contact
from fourm.views.samplesheet import draw_sample
from fourm.views.strips import draw_films

PLOTS = "plots"  # folder below the album's
_CONTACT = re.compile(r"contact(-[0-9]+)?")
_OURS = re.compile(r"contact(-[0-9]+)?|index|.*-film", re.DOTALL)  # names that a sample could take from us


@dataclass(frozen=True, slots=True)
class PlotRequest:
    """Which sheets are wanted."""

    count: int | None = None  # samples, from the first on; None: all
    films: bool = True
    contact: bool = True


@dataclass(frozen=True, slots=True)
class Plotted:
    """One sample that was drawn."""

    key: str
    files: tuple[Path, ...]
    problems: tuple[str, ...]  # what of it could not be shown, and why


@dataclass(slots=True)
class Plotter:
    """Draws an album into its folder of plots. Files appear whole; those of before are replaced."""

    album: Album
    request: PlotRequest = field(default_factory=PlotRequest)
    undrawn: set[str] = field(default_factory=set)  # characters that no font here has

    @property
    def keys(self) -> tuple[Key, ...]:
        """Samples that are drawn."""
        return self.album.keys[: self.request.count]

    def run(self) -> Iterator[Plotted]:
        """Draw one sample after the other; the contact sheets are there after the last."""
        try:
            yield from self._draw()
        finally:
            remove_leftovers(self.album.root / PLOTS)

    def _draw(self) -> Iterator[Plotted]:
        folder = plots_folder(self.album.root)
        names = plot_paths(self.album.root, self.album.keys)
        variations = self.album.results.variations
        contact = Contact(len(self.keys) * len(variations), self.album.root.name or str(self.album.root))
        written = set[Path]()
        for key in self.keys:
            view = self.album.view(key)
            files = [self._save(draw_sample(self.album, view), names[key])]
            if self.request.films and view.films:
                path = names[key].with_name(f"{names[key].stem}-film.png")
                files.append(self._save(draw_films(view), path))
            if self.request.contact:
                for variation in variations:
                    contact.add(view, variation)
                    if (page := contact.full_page()) is not None:
                        written.add(self._save(page, folder / contact.name))
            self._note_text(view)
            yield Plotted(key.text, tuple(files), view.problems)
        if self.request.contact and (page := contact.last_page()) is not None:
            written.add(self._save(page, folder / contact.name))
        if self.request.contact and folder.is_dir():
            _remove_others(folder, written)

    def _save(self, sheet: Image.Image, path: Path) -> Path:
        (self.album.root / PLOTS).mkdir(exist_ok=True)
        save = partial(sheet.save, format="PNG")
        write_atomic(self.album.root / PLOTS, path, save)
        return path

    def _note_text(self, view: View) -> None:
        self.undrawn |= undrawable(" ".join((view.prompt or "", *(panel.text for panel in view.panels))))


def plots_folder(root: Path) -> Path:
    """Where plots of a folder go; UsageError where something else is in their place."""
    folder = root / PLOTS
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        raise UsageError(f"{folder}: is no folder of this one, so no plots can be put there")
    return folder


def plot_paths(root: Path, keys: Sequence[Key]) -> Mapping[Key, Path]:
    """The grid of each sample: plots/NAME.png, or plots/FOLDER/NAME.png where names alone are not clear."""
    names = [key.name for key in keys]
    is_flat = len(set(names)) == len(names) and not any(_OURS.fullmatch(name) for name in names)
    paths = {key: path_of(root, PLOTS, key, "-film.png") for key in keys}
    long = {key: path.with_name(path.name.removesuffix("-film.png") + ".png") for key, path in paths.items()}
    return {key: root / PLOTS / path.name for key, path in long.items()} if is_flat else long


def _remove_others(folder: Path, written: set[Path]) -> None:
    """Contact sheets of an earlier time, when there were more of them."""
    for path in folder.glob("contact*.png"):
        if _CONTACT.fullmatch(path.stem) and path not in written and not path.is_dir():
            path.unlink()
