"""The table of measures: what each is for, what it needs, where it is defined, and which function it is."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fourm.measures.measure import Measure, Settings
from fourm.errors import MissingError
from fourm.modalities.registry import Modality

Direction = Literal["higher", "lower"]  # which numbers are better
Sort = Literal[
    "picture", "depth", "normal", "labels", "edges", "features", "text", "boxes", "poses", "instances",
    "palette", "metadata", "tokens",
]  # fmt: skip
# The sort of the values of each codec. Token ids of any modality are of the sort "tokens".
SORTS: Mapping[str, Sort] = {
    "rgb": "picture", "tok_rgb": "picture", "tok_depth": "depth", "tok_normal": "normal",
    "tok_distance": "depth", "tok_semseg": "labels", "tok_edge": "edges", "tok_canny_edge": "edges",
    "tok_sam_edge": "edges", "tok_feature": "features", "tok_clip": "features", "tok_dinov2": "features",
    "tok_imagebind": "features", "tok_dinov2_global": "features", "tok_imagebind_global": "features",
    "caption": "text", "det": "boxes", "human_poses": "poses", "sam_instance": "instances",
    "color_palette": "palette", "metadata": "metadata",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One measure."""

    name: str  # in `measures=`
    sorts: Collection[Sort]  # of values that it is for
    results: Mapping[str, Direction]  # its numbers, in the order of the table, and which are better
    function: str  # "FILE:NAME" in this room: (Settings) -> Measure
    source: str  # paper or page that defines it
    weights: str = ""  # name of the network that it needs, in the catalogue of the hub
    package: str = ""  # that it imports, of the extra `eval`
    needs_partner: bool = True
    needs_caption: bool = False  # reads `Pair.texts["caption"]`


_HIGHER: Direction = "higher"
_LOWER: Direction = "lower"
MEASURES: Mapping[str, MeasureRow] = {
    row.name: row
    for row in (
        MeasureRow("psnr", ["picture"], {"psnr": _HIGHER}, "pictures:psnr",
                   "Horé and Ziou 2010, doi:10.1109/ICPR.2010.579"),
        MeasureRow("ssim", ["picture"], {"ssim": _HIGHER}, "pictures:ssim",
                   "Wang et al. 2004, doi:10.1109/TIP.2003.819861", package="scipy"),
        MeasureRow("lpips", ["picture"], {"lpips": _LOWER}, "learned:lpips",
                   "Zhang et al. 2018, arXiv:1801.03924", "lpips-alex"),
        MeasureRow("fid", ["picture"], {"fid": _LOWER}, "learned:fid",
                   "Heusel et al. 2017, arXiv:1706.08500", "inception-fid", package="torchmetrics"),
        MeasureRow("inception_score", ["picture"], {"inception_score": _HIGHER}, "learned:inception_score",
                   "Salimans et al. 2016, arXiv:1606.03498", "inception-fid", needs_partner=False),
        MeasureRow("clip_score", ["picture"], {"clip_score": _HIGHER}, "learned:clip_score",
                   "Hessel et al. 2021, arXiv:2104.08718", "clip-vit-large-patch14", needs_partner=False,
                   needs_caption=True),
        MeasureRow("token_share", ["tokens"], {"token_share": _HIGHER, "all_equal": _HIGHER},
                   "measure:token_share", "the share of positions with equal ids"),
        MeasureRow("exact_match", ["text"], {"exact_match": _HIGHER}, "measure:exact_match",
                   "Rajpurkar et al. 2016, arXiv:1606.05250"),
        MeasureRow("depth", ["depth"],
                   {"abs_rel": _LOWER, "rmse": _LOWER, "delta_1": _HIGHER, "delta_2": _HIGHER,
                    "delta_3": _HIGHER},
                   "maps:depth", "Eigen et al. 2014, arXiv:1406.2283; Ranftl et al. 2020, arXiv:1907.01341"),
        MeasureRow("normals", ["normal"],
                   {"mean_angle": _LOWER, "median_angle": _LOWER, "within_11_25": _HIGHER,
                    "within_22_5": _HIGHER, "within_30": _HIGHER},
                   "maps:normals", "Fouhey et al. 2013, doi:10.1109/ICCV.2013.421"),
        MeasureRow("segmentation", ["labels"], {"miou": _HIGHER, "pixel_accuracy": _HIGHER},
                   "maps:Segmentation", "Long et al. 2015, arXiv:1411.4038"),
        MeasureRow("edges", ["edges"], {"ods_f1": _HIGHER}, "maps:Edges",
                   "Arbeláez et al. 2011, doi:10.1109/TPAMI.2010.161", package="scipy"),
        MeasureRow("cosine", ["features"], {"cosine": _HIGHER}, "maps:cosine",
                   "the mean cosine of the vectors at each place"),
        MeasureRow("retrieval", ["features"], dict.fromkeys(("recall_1", "recall_5", "recall_10"), _HIGHER),
                   "things:Retrieval", "the share of samples whose own partner is among the nearest ones"),
        MeasureRow("bleu", ["text"], {"bleu_4": _HIGHER}, "texts:Bleu",
                   "Papineni et al. 2002, doi:10.3115/1073083.1073135", package="sacrebleu"),
        MeasureRow("rouge", ["text"], {"rouge_l": _HIGHER}, "texts:rouge",
                   "Lin 2004, https://aclanthology.org/W04-1013", package="rouge_score"),
        MeasureRow("cider", ["text"], {"cider_d": _HIGHER}, "texts:Cider",
                   "Vedantam et al. 2015, arXiv:1411.5726"),
        MeasureRow("boxes", ["boxes"], dict.fromkeys(("ap", "ap50", "ap75", "ar100"), _HIGHER),
                   "things:BoxPrecision", "Lin et al. 2014, arXiv:1405.0312", package="pycocotools"),
        MeasureRow("pck", ["poses"], {"pck_05": _HIGHER, "pck_10": _HIGHER}, "things:poses",
                   "Yang and Ramanan 2013, doi:10.1109/TPAMI.2012.261", weights="tok-human-poses",
                   package="scipy"),
        MeasureRow("palettes", ["palette"], {"lab_distance": _LOWER, "count_error": _LOWER},
                   "things:palettes", "the distance in CIE Lab (CIE76) of matched colours", package="scipy"),
        MeasureRow("metadata", ["metadata"], {"fields_equal": _HIGHER}, "things:MetadataFields",
                   "the share of true fields with the same index"),
    )
}  # fmt: skip

# Settings of measures as eval.json has them: constants of their files.
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "ssim": {"window": "WINDOW", "sigma": "SIGMA"},
    "fid": {"side": "SIDE", "features": "FEATURES"},
    "inception_score": {"side": "SIDE", "splits": "SPLITS"},
    "clip_score": {"side": "SIDE", "caption_tokens": "CAPTION_TOKENS"},
    "edges": {"tolerance": "_TOLERANCE", "true_from": "_EDGE_FROM"},
    "cider": {"words": "MAX_GRAM"},
}


def sort_of(row: Modality, form: str) -> Sort | None:
    """The sort of what a place holds; None for what has no measures. form: of the place, `value` or `ids`."""
    return "tokens" if form == "ids" else SORTS.get(row.codec) if form == "value" else None


def measures_for(sort: Sort, has_partner: bool, has_caption: bool) -> list[MeasureRow]:
    """The measures of a sort of values that can be taken, in the order of the table."""
    return [
        row
        for row in MEASURES.values()
        if sort in row.sorts
        and (has_partner or not row.needs_partner)
        and (has_caption or not row.needs_caption)
    ]


def build_measure(row: MeasureRow, settings: "Settings") -> "Measure":
    """A measure without pairs. Its file is imported only here: that of networks imports torch.

    MissingError: its package is not installed.
    """
    if row.package and find_spec(row.package) is None:
        raise MissingError(f"{row.package} is not installed; `pip install 'fourm[eval]'` does it")
    file, _, name = row.function.partition(":")
    build: Callable[[Settings], Measure] = getattr(import_module(f"fourm.measures.{file}"), name)
    return build(settings)


def source_of(row: MeasureRow) -> dict[str, object]:
    """Where a measure is defined, its settings, and the version of the package that it uses."""
    file = import_module(f"fourm.measures.{row.function.partition(':')[0]}")
    settings = {name: getattr(file, constant) for name, constant in SETTINGS.get(row.name, {}).items()}
    package = {"package": f"{row.package} {version(row.package)}"} if row.package else {}
    return {"source": row.source, **settings, **package}
