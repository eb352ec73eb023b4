"""The options of `generate` that say what its samples and conditions are made from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fourm.errors import UsageError
from fourm.files.opening import local_name, local_path
from fourm.schedule.settings import Layer, RunSettings, Setting
from fourm_cli.options import INPUT, argument, option

if TYPE_CHECKING:
    from fourm.hub.files import ModelFiles
    from fourm.sources.source import Source


def parse_data(text: str) -> str:
    """The text of `--data`: a data set on the Hub or in an object store, or something on this machine."""
    from fourm.data.storage import is_remote
    from fourm.hub.datasets import is_hub_data

    return text if is_hub_data(text) or is_remote(text) else local_name(text)


OPTIONS = {
    "arguments": argument(
        "Captions, or pictures: files, folders, patterns. What ends like a picture or holds a / is a path.",
        "PROMPT|PICTURE"),
    "prompt": option("A caption, whatever it looks like, repeatable.", "TEXT", INPUT),
    "data": option(
        "Captions: a .txt, .tsv, .csv or .jsonl file, - for standard input, or parti_prompts. Pictures, as "
        "arguments are. A dataset: a folder that holds MODALITY/NAME.EXT or MODALITY/FOLDER/NAME.EXT; "
        "tars with KEY.jpg, KEY.txt ... ('{00000..00099}.tar'), Parquet files, or a folder of them. Or "
        "empty: no condition at all, with --num-samples.", "SOURCE", INPUT, parser=parse_data),
    "column": option(
        "Column of a table, or text in KEY.json of a tar, that holds the prompts. By default caption, prompt "
        "or text.", "NAME", INPUT),
    "map": option(
        "What an ending of a tar's members, or a column, holds (mask.png=mask_keep); repeatable.",
        "ENDING=MODALITY", INPUT),
    "upright": option("Turn pictures as their EXIF tag says. By default so, but not those of datasets.",
                      None, INPUT, "--upright/--no-upright", show_default=False),
    "num_samples": option("Only the first N samples.", "N", INPUT, min=1),
    "subset_seed": option(
        "With --num-samples: N drawn at random by this seed, not the first.", "S", INPUT, min=0),
    "only": option("Make these samples now, and others with --resume.", "KEY,...", INPUT),
    "replay": option(
        "Repeat what made this PNG, or everything of a run.json: same samples, schedule and seed.", "FILE",
        INPUT, parser=local_path),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """What the samples of a run are made from. Fields are the options of `OPTIONS`; None: not given."""

    arguments: list[str] | None = None
    prompt: list[str] | None = None
    data: str | None = None
    column: str | None = None
    map: list[str] | None = None
    upright: bool | None = None
    num_samples: int | None = None
    subset_seed: int | None = None
    only: str | None = None
    replay: Path | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be read."""
        from fourm.sources.source import EMPTY

        return self.data == EMPTY

    def source(self, files: RunSettings, variations: int, model: "ModelFiles") -> "Source":
        """The source of samples, with what configuration files say where options say nothing."""
        from fourm.data.pictures import is_path
        from fourm.sources.source import Source, classify_source

        arguments, typed = self.arguments or [], tuple(self.prompt or ())
        words = tuple(text for text in arguments if not is_path(text))
        paths = tuple(text for text in arguments if is_path(text))
        data = self.data if self.data is not None or arguments or typed else files.data_path
        subset_seed = self.subset_seed
        if self.num_samples is None and subset_seed is None and files.num_samples is not None:
            subset_seed = 0  # as the reference chooses the samples of its files
        return classify_source(
            Source(
                (*words, *typed), data, self.column, self.num_samples or files.num_samples, subset_seed,
                variations, paths, upright=self.upright, endings=parse_map(self.map or ()),
            ),
            model,
        )  # fmt: skip

    def named(self) -> Mapping[str, object]:
        """The options that choose samples, by their names in messages; false values were not given."""
        return {"prompts": self.arguments or self.prompt, "--data": self.data,
                "--upright": self.upright is not None, "--num-samples": self.num_samples,
                "--only": self.only}  # fmt: skip


def parse_map(texts: Sequence[str]) -> dict[str, str]:
    """Endings or columns and the modality of each, as `--map` gives them."""
    found = dict[str, str]()
    for text in texts:
        ending, _, name = text.rpartition("=")
        if not ending.strip() or not name.strip():
            raise UsageError(f"`map`: '{text}' is not ENDING=MODALITY, such as jpg=rgb")
        if found.setdefault(ending, name.strip()) != name.strip():
            raise UsageError(f"`map`: '{ending}' is said to be both {found[ending]} and {name.strip()}")
    return found


def with_conditions(layer: Layer, source: "Source") -> Layer:
    """The settings of a schedule, with the conditions that a source implies (words: caption; pictures: rgb).

    They are not added if the schedule names conditions of its own, other than single files (rgb=cat.jpg).
    """
    from fourm.sources.reading import implied_conditions
    from fourm.sources.source import EMPTY

    named = layer.settings.get("cond_domains", Setting((), "`cond`"))
    if not all("=" in str(value) for value in named.values):
        return layer
    implied: tuple[str | None, ...] = implied_conditions(source)
    if source.data == EMPTY and not named.values:
        implied = (None,)
    files = {re.split("[@=]", str(value))[0] for value in named.values}  # a file takes the place of others
    values = (*named.values, *(name for name in implied if name not in files))
    settings = {"cond_domains": Setting(values, named.where)} if values else {}
    return replace(layer, settings={**layer.settings, **settings})
