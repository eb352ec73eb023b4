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
    how: str  # what that leaves open, and where this measure differs from it
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
                   "Horé and Ziou 2010, doi:10.1109/ICPR.2010.579",
                   "of a range of 1, over known pixels and channels; identical pictures, whose PSNR is "
                   "infinite, are counted and left out of the mean"),
        MeasureRow("ssim", ["picture"], {"ssim": _HIGHER}, "pictures:ssim",
                   "Wang et al. 2004, doi:10.1109/TIP.2003.819861",
                   "Gaussian window of 11 pixels and sigma 1.5, K1 0.01, K2 0.03, a range of 1, "
                   "covariances of the population; the mean over windows within the picture and over "
                   "channels", package="scipy"),
        MeasureRow("lpips", ["picture"], {"lpips": _LOWER}, "learned:lpips",
                   "Zhang et al. 2018, arXiv:1801.03924",
                   "AlexNet, version 0.1", "lpips-alex"),
        MeasureRow("fid", ["picture"], {"fid": _LOWER}, "learned:fid",
                   "Heusel et al. 2017, arXiv:1706.08500",
                   "2048 features of TensorFlow's Inception-v3; pictures are resized to 256 pixels first, "
                   "as by 4M's authors", "inception-fid", package="torchmetrics"),
        MeasureRow("inception_score", ["picture"], {"inception_score": _HIGHER},
                   "learned:inception_score",
                   "Salimans et al. 2016, arXiv:1606.03498",
                   "TensorFlow's Inception-v3, pictures of 256 pixels; the mean over 10 splits, chosen by "
                   "a hash of the sample's name", "inception-fid", needs_partner=False),
        MeasureRow("clip_score", ["picture"], {"clip_score": _HIGHER}, "learned:clip_score",
                   "Hessel et al. 2021, arXiv:2104.08718",
                   "CLIP ViT-L/14, pictures of 256 pixels, captions cut to 60 tokens, as by 4M's authors; "
                   "100 times the cosine, at least 0", "clip-vit-large-patch14", needs_partner=False,
                   needs_caption=True),
        MeasureRow("token_share", ["tokens"], {"token_share": _HIGHER, "all_equal": _HIGHER},
                   "measure:token_share", "the share of positions with equal ids",
                   "positions that the shorter row lacks are not equal; the second number is the share of "
                   "rows without a difference"),
        MeasureRow("exact_match", ["text"], {"exact_match": _HIGHER}, "measure:exact_match",
                   "Rajpurkar et al. 2016, arXiv:1606.05250",
                   "blanks at the ends do not count"),
        MeasureRow("depth", ["depth"],
                   {"abs_rel": _LOWER, "rmse": _LOWER, "delta_1": _HIGHER, "delta_2": _HIGHER,
                    "delta_3": _HIGHER},
                   "maps:depth", "Eigen et al. 2014, arXiv:1406.2283; Ranftl et al. 2020, arXiv:1907.01341",
                   "scale and shift of each picture are fitted to the true map by least squares, unless "
                   "`metric_depth`; the deltas are shares within a ratio of 1.25, 1.25², "
                   "1.25³ (papers on disparity fit that, not depth); true pixels that are NaN or 0 are left "
                   "out; a true map with numbers below 0, as after standardisation, has only an RMSE; means "
                   "over pictures"),
        MeasureRow("normals", ["normal"],
                   {"mean_angle": _LOWER, "median_angle": _LOWER, "within_11_25": _HIGHER,
                    "within_22_5": _HIGHER, "within_30": _HIGHER},
                   "maps:normals", "Fouhey et al. 2013, doi:10.1109/ICCV.2013.421",
                   "degrees; each number is the mean over pictures, so the median is the mean of "
                   "medians; pixels that are grey in the true map, which is no direction, are left out"),
        MeasureRow("segmentation", ["labels"], {"miou": _HIGHER, "pixel_accuracy": _HIGHER},
                   "maps:segmentation", "Long et al. 2015, arXiv:1411.4038",
                   "of all pixels together; the mean over the classes that true maps or results have, "
                   "iou/NAME for each; true pixels without a class (255) are left out, in a result they "
                   "are wrong"),
        MeasureRow("edges", ["edges"], {"ods_f1": _HIGHER}, "maps:edges",
                   "Arbeláez et al. 2011, doi:10.1109/TPAMI.2010.161",
                   "one threshold for all pictures, of 1 % to 99 %; true edges are levels from 128 on; "
                   "pixels match within 0.0075 of the diagonal, without thinning, and several may match "
                   "the same one", package="scipy"),
        MeasureRow("cosine", ["features"], {"cosine": _HIGHER}, "maps:cosine",
                   "the mean cosine of the vectors at each place",
                   "the mean over places; of two zero vectors 1, of one 0"),
        MeasureRow("retrieval", ["features"], dict.fromkeys(("recall_1", "recall_5", "recall_10"), _HIGHER),
                   "maps:Retrieval", "Hodosh et al. 2013, doi:10.1613/jair.3994",
                   "the share of samples whose own partner is among the nearest ones, by the cosine of "
                   "means over places; partners that are as near as the own one count as nearer"),
        MeasureRow("bleu", ["text"], {"bleu_4": _HIGHER}, "texts:bleu",
                   "Papineni et al. 2002, doi:10.3115/1073083.1073135",
                   "words in lower case without punctuation; 0 to 1, all texts together, one partner each, "
                   "sacrebleu's smoothing 'exp', without orders that no text is long enough for",
                   package="sacrebleu"),
        MeasureRow("rouge", ["text"], {"rouge_l": _HIGHER}, "texts:rouge",
                   "Lin 2004, https://aclanthology.org/W04-1013",
                   "words as of bleu, not stemmed; 0 to 1, recall counts as much as precision (COCO weighs "
                   "it by 1.2); the mean over texts", package="rouge_score"),
        MeasureRow("cider", ["text"], {"cider_d": _HIGHER}, "texts:Cider",
                   "Vedantam et al. 2015, arXiv:1411.5726",
                   "words as of bleu, not stemmed; 1- to 4-grams, sigma 6, 0 to 10; one partner each, where "
                   "papers on COCO have five; documents are the partners of all texts, so that it depends "
                   "on the set and one text alone has 0"),
        MeasureRow("boxes", ["boxes"], dict.fromkeys(("ap", "ap50", "ap75", "ar100"), _HIGHER),
                   "boxes:boxes", "Lin et al. 2014, arXiv:1405.0312",
                   "ap: the mean over IoU thresholds 0.50, 0.55, ..., 0.95 and the names that true boxes "
                   "have, ap50 and ap75 at one threshold, ar100: recall, over all; all areas, at most 100 "
                   "boxes of a name in a picture; names match without regard to case; boxes of files with a "
                   "score below 0.6 are left out, as where a model reads them; models write no scores, so "
                   "boxes rank in the order in which they were written, and pictures by a hash of their "
                   "names, where papers rank by confidence, which mostly gives a higher ap",
                   package="pycocotools"),
        MeasureRow("instances", ["instances"], dict.fromkeys(("ap", "ap50", "ap75", "ar100"), _HIGHER),
                   "boxes:instances", "Lin et al. 2014, arXiv:1405.0312",
                   "as boxes, each instance once, all of one name; masks are not compared",
                   package="pycocotools"),
        MeasureRow("pck", ["poses"], {"pck_05": _HIGHER, "pck_10": _HIGHER}, "things:poses",
                   "Yang and Ramanan 2013, doi:10.1109/TPAMI.2012.261",
                   "joints within 0.05 or 0.1 of the longer side of the true person's box, posed by "
                   "the tokenizer of poses; people are paired by the least distance of their joints, joints "
                   "of those left over are wrong; the mean over pictures", weights="tok-human-poses",
                   package="scipy"),
        MeasureRow("palettes", ["palette"], {"lab_distance": _LOWER, "count_error": _LOWER},
                   "things:palettes", "CIE 1976, ISO/CIE 11664-4",
                   "the Euclidean distance in CIE Lab of matched colours, white D65; colours are paired by "
                   "the least sum of distances, those left over are counted by the second number alone",
                   package="scipy"),
        MeasureRow("metadata", ["metadata"], {"fields_equal": _HIGHER}, "things:metadata",
                   "the share of true fields with the same index",
                   "values of one bin are equal; error/NAME is the mean absolute error of each field, "
                   "where both state it"),
    )
}  # fmt: skip


def sort_of(row: Modality, form: str) -> Sort | None:
    """The sort of what a place holds; None for what has no measures. form: of the place."""
    sorts: Mapping[str, Sort | None] = {
        "ids": "tokens", "features": "features", "value": SORTS.get(row.codec)
    }  # fmt: skip
    return sorts.get(form)


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
    """Where a measure is defined, how it is taken, and the version of the package that it uses."""
    package = {"package": f"{row.package} {version(row.package)}"} if row.package else {}
    return {"source": row.source, "how": row.how, **package}
