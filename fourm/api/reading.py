"""An output folder as a sequence of results."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import overload

from fourm.api.results import KEPT, Item, Result
from fourm.codecs.files import read_ids, read_json
from fourm.codecs.keeping import read_keep_mask
from fourm.codecs.texts import STRUCTURED, read_whole
from fourm.data.containers import is_there
from fourm.data.layout import Key
from fourm.data.mirrors import local_folder
from fourm.errors import SampleError, UsageError, as_addresses, near_match
from fourm.modalities.typed import to_type
from fourm.output.record import SR
from fourm.output.samples import RecordedSample
from fourm.schedule.best import Scores
from fourm.views.album import Album, Entry, open_album


class Results(Sequence[Result]):
    """The results of a folder, by sample and then by variation; files are read when values are asked for.

    `results[3]`, `results[2:5]`, `results["00000/000003"]` (of several variations a list), `len(results)`,
    `for result in results`. IndexError: a position that there is not; UsageError: a key that there is not.
    """

    def __init__(self, album: Album) -> None:
        self._album = album
        self._variations = [0 if number is None else number for number in album.variations]

    def __len__(self) -> int:
        return len(self._album.keys) * len(self._variations)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> "list[Result]": ...
    @overload
    def __getitem__(self, index: str) -> "Result | list[Result]": ...
    def __getitem__(self, index: int | slice | str) -> "Result | list[Result]":
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        if isinstance(index, str):
            keys = {key.text: key for key in self._album.keys}
            if index not in keys:
                raise UsageError(f"{self._album.root}: no sample '{index}'{near_match(index, keys)}")
            found = [self._result(keys[index], variation) for variation in self._variations]
            return found if len(found) > 1 else found[0]
        number = range(len(self))[index]
        sample, place = divmod(number, len(self._variations))
        return self._result(self._album.keys[sample], self._variations[place])

    def __repr__(self) -> str:
        where = as_addresses(str(self._album.root))
        return f"Results({where!r}): {len(self)} of {len(self._album.keys)} samples"

    def _result(self, key: Key, variation: int) -> Result:
        album, about = self._album, dict[str, None]()
        for run in album.runs:
            about[f"{run.record.model}, seed {run.record.seed}"] = None
        failures = album.failures.get(key.text, ())
        problem = next((one.reason for one in failures if one.variation == variation and one.stage != SR), "")
        items, scores = [*self._items(key, variation)], partial(self._scores, key)
        return Result(key.text, variation, items, "; ".join(about), problem=problem, scores=scores)

    def _scores(self, key: Key) -> Scores | None:
        """The scores of all variations of a sample, where the best were chosen."""
        base = self._album.runs[0]
        place, sample = next((one for one in base.places if one.form == "scores"), None), base.find(key)
        if place is None or sample is None:
            return None
        path = self._album.root / sample.file(place, None)
        scores: Scores = to_type(Scores, read_json(path), str(path), error=SampleError)
        return scores

    def _items(self, key: Key, variation: int) -> Iterator[Item]:
        """What there are files for."""
        for entry in self._album.entries:
            sample, reader = entry.run.find(key), entry.reader
            if sample is None or reader is None:
                continue
            number = None if entry.place.shared else variation
            if entry.place.form in (KEPT, "kept_ids"):
                yield self._kept(entry, sample, number)
                continue
            places = [p for p in entry.run.places if p.modality == entry.place.modality and p.form == "ids"]
            tokens = [self._album.root / sample.file(place, number) for place in places]
            path, row = self._album.root / sample.file(entry.place, number), reader.row
            has_value = entry.place.form != "ids" and is_there(path)
            ids = next((path for path in tokens if is_there(path)), None)
            if has_value or ids is not None:
                load = partial(reader.read, path)
                if entry.is_cut:
                    load = partial(read_whole, path, STRUCTURED[row.codec].grammar)
                yield Item(
                    row, entry.role, load if has_value else None,
                    None if ids is None else partial(read_ids, ids, row.max_tokens, row.vocab_size),
                    reader.picture, show=partial(self._album.in_square, row, key) if entry.is_cut else None,
                )  # fmt: skip

    def _kept(self, entry: Entry, sample: RecordedSample, number: int | None) -> Item:
        """What was given of a target."""
        root, reader, mask = self._album.root, entry.reader, entry.mask
        assert reader is not None
        load = partial(reader.read, root / sample.file(entry.place, number))
        read = None if mask is None else partial(read_keep_mask, root / sample.file(mask, number))
        return Item(reader.row, KEPT, load if entry.place.form == KEPT else None, None, reader.picture, read)


def read(folder: str | os.PathLike[str]) -> Results:
    """The results of an output folder, lazily: what a run wrote, as `generate` gives it. Loads no model.

    An address of an object store (`"s3://bucket/run"`) is listed at once; files are fetched as they are read.

    UsageError: no run wrote the folder, or its record is damaged.
    """
    return Results(open_album(local_folder(folder)))
