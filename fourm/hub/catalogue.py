"""Every released model and tokenizer: short name, Hub id, sizes, modalities, licence. One row each.

Counts come from the published architectures with every tensor stored in float32, so the size of a download is
what the Hub says, and these figures are close to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from fourm.errors import near_match
from fourm.hub.header import WEIGHTS_FILE
from fourm.hub.sizes import TokenizerSizes, UNet
from fourm.modalities.registry import RELEASED

_OWNER = "EPFL-VILAB"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # endings of files that are never loaded
TEXT_TOKENIZER = "text-tokenizer"  # its short name
DEMO, DEMO_SR = "demo", "demo-sr"  # the built-in models, which are no rows here
PARTI = "parti_prompts"  # as `data_path` and `--data` name the prompt set
# By name: what people read before the first download of something under these terms.
LICENCES: Mapping[str, str] = {
    "non-commercial": "weights: non-commercial licence (see LICENSE_WEIGHTS of the repository)",
    "Apache-2.0": "Apache License 2.0",
    "MIT": "MIT License",
    "BSD": "BSD licences",
    "": "",  # of what is not in the catalogue
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file outside the Hub. Its size is what its server says."""

    url: str
    sha256: str  # or its first 8 digits, where its publisher names no more

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be fetched and used by name."""

    name: str  # short, as typed: "4m-7-b"
    hub_id: str  # "" where the Hub is not its home
    kind: Literal["model", "sr", "tokenizer", "text tokenizer", "prompts", "measure"]
    title: str
    licence: str  # its name
    num_bytes: int  # of its largest file, model.safetensors for weights
    num_params: int = 0  # numbers in the weights: parameters, and a tokenizer's codebook; a shared one once
    reads: tuple[str, ...] = ()  # modalities of a model
    writes: tuple[str, ...] = ()
    key: str = ""  # of a tokenizer: the `tokenizer` of the modality rows that it serves
    config: Mapping[str, object] = field(default_factory=dict)  # of a model, as published; a file's own wins
    sizes: TokenizerSizes | None = None  # of a tokenizer
    main_file: str = WEIGHTS_FILE  # the largest one, by its name in the repository
    repo_type: str = "model"  # as the Hub calls it, or "dataset"
    revision: str = ""  # branch, tag or commit that was asked for; "" = the recorded one, else main
    sources: tuple[Source, ...] = ()  # of what is not on the Hub: pickled weights, which are converted

    @property
    def record(self) -> str:
        """The key of the record of its checksums: its Hub id, or name; "" of the text tokenizer."""
        return self.hub_id or (self.name if self.sources else "")

    @property
    def is_model(self) -> bool:
        """True for the transformers, super-resolution too."""
        return self.kind in ("model", "sr")


# Width, blocks on each side, heads.
_SIZES = {"B": (768, 12, 12), "L": (1024, 24, 16), "XL": (2048, 24, 32)}
# (parameters, bytes) by family and size.
_COUNTS = {
    ("4M-7", "B"): (441_474_048, 1_779_059_712),
    ("4M-7", "L"): (1_029_271_552, 4_134_932_480),
    ("4M-7", "XL"): (3_470_024_704, 13_915_791_360),
    ("4M-21", "B"): (834_404_352, 3_370_521_600),
    ("4M-21", "L"): (1_553_178_624, 6_256_881_664),
    ("4M-21", "XL"): (4_517_838_848, 18_159_689_728),
    ("4M-7-SR", "L"): (953_321_472, 3_858_239_488),
}
_SEVEN = ("caption", "det", "rgb@224", *(f"tok_{x}@224" for x in "clip depth normal rgb semseg".split()))
_FINE = tuple(name for name in RELEASED.rows if name.endswith("@448"))
# What each family reads; it writes what of this (of _FINE for super-resolution) has token ids.
_READS = {"4M-7": _SEVEN, "4M-21": RELEASED.rows.keys() - _FINE, "4M-7-SR": (*_SEVEN, *_FINE)}

_UNET = UNet(256, 768, 4, 4_718_592)  # the decoder of those that diffuse

# Key, short name, Hub name, title, numbers in the weights.
_TOKENIZERS = (
    ("rgb", "tok-rgb", "rgb_16k_224-448", "RGB",
     TokenizerSizes(86_247_168, 4_748_576, 524_288, 196_350_256, 16_385, _UNET)),
    ("depth", "tok-depth", "depth_8k_224-448", "Depth",
     TokenizerSizes(85_853_952, 4_748_576, 262_144, 196_202_768, 8_193, _UNET)),
    ("normal", "tok-normal", "normal_8k_224-448", "Surface normals",
     TokenizerSizes(86_247_168, 4_748_576, 262_144, 196_350_256, 8_193, _UNET)),
    ("edges", "tok-edge", "edge_8k_224-512", "Canny and SAM edges",
     TokenizerSizes(86_038_272, 4_748_576, 262_144, 196_202_768, 8_193, _UNET)),
    ("semseg", "tok-semseg", "semseg_4k_224-448", "Semantic segmentation",
     TokenizerSizes(0, 102_997_408, 131_072, 116_785_664, 4_097, output=(34_304, 768))),
    ("clip", "tok-clip", "CLIP-B16_8k_224-448", "CLIP-B/16 features",
     TokenizerSizes(86_050_560, 4_748_576, 262_144, 90_799_616, 8_193, output=(512, 768))),
    ("dinov2", "tok-dinov2", "DINOv2-B14_8k_224-448", "DINOv2-B/14 features",
     TokenizerSizes(86_431_488, 4_748_576, 262_144, 91_180_800, 8_193, output=(768, 768))),
    ("dinov2_glob", "tok-dinov2-global", "DINOv2-B14-global_8k_16_224", "DINOv2-B/14 global features",
     TokenizerSizes(52_211_712, 1_049_600, 8_519_680, 53_261_056)),
    ("imagebind", "tok-imagebind", "ImageBind-H14_8k_224-448", "ImageBind-H/14 features",
     TokenizerSizes(86_824_704, 4_748_576, 262_144, 91_574_528, 8_193, output=(1_280, 768))),
    ("imagebind_glob", "tok-imagebind-global", "ImageBind-H14-global_8k_16_224",
     "ImageBind-H/14 global features", TokenizerSizes(52_736_000, 1_049_600, 8_519_680, 53_785_856)),
    ("sam_instance", "tok-sam-instance", "sam-instance_1k_64", "SAM instances",
     TokenizerSizes(85_264_128, 5_511_424, 1_048_576, 90_774_916, 1_025, output=(256, 768))),
    ("human_poses", "tok-human-poses", "human-poses_1k_8", "Human poses",
     TokenizerSizes(51_637_248, 1_049_600, 1_310_720, 52_686_031)),
)  # fmt: skip
# Short name, Hub name, family, title; {} is the size.
_FAMILIES = (
    ("4m-7-{}", "4M-7_{}_CC12M", "4M-7", "4M-7 {}"),
    ("4m-7-{}-coyo", "4M-7_{}_COYO700M", "4M-7", "4M-7 {}, trained on COYO700M"),
    ("4m-7-t2i-{}", "4M-7-T2I_{}_CC12M", "4M-7", "4M-7 {}, text to image"),
    ("4m-21-{}", "4M-21_{}", "4M-21", "4M-21 {}"),
    ("4m-7-sr-{}", "4M-7-SR_{}_CC12M", "4M-7-SR", "Super-resolution, 224 to 448"),
)


def _model(name: str, repository: str, family: str, size: str, title: str) -> Entry:
    reads = tuple(sorted(_READS[family]))
    written = _FINE if family == "4M-7-SR" else reads
    writes = tuple(sorted(n for n in written if RELEASED.get(n).takes_ids))
    dim, depth, heads = _SIZES[size]
    num_params, num_bytes = _COUNTS[family, size]
    config: dict[str, object] = {
        "domains_in": list(reads), "domains_out": list(writes), "image_size": 224, "patch_size": 16,
        "mlp_ratio": 4, "qkv_bias": False, "proj_bias": False, "mlp_bias": False, "norm_bias": False,
        "act_layer": "SiLU", "gated_mlp": True, "qk_norm": False, "dim": dim, "encoder_depth": depth,
        "decoder_depth": depth, "num_heads": heads,
    }  # fmt: skip
    return Entry(
        name, f"{_OWNER}/{repository}", "sr" if family == "4M-7-SR" else "model", title,
        "non-commercial", num_bytes, num_params, reads, writes, config=MappingProxyType(config),
    )  # fmt: skip


_MODELS = [
    _model(name.format(size.lower()), repository.format(size), family, size, title.format(size))
    for name, repository, family, title in _FAMILIES for size in _SIZES if (family, size) in _COUNTS
]  # fmt: skip
# By a modality row's `tokenizer`.
TOKENIZERS: Mapping[str, Entry] = {
    key: Entry(name, f"{_OWNER}/4M_tokenizers_{repository}", "tokenizer", title, "non-commercial",
               4 * sizes.total, sizes.total, key=key, sizes=sizes)
    for key, name, repository, title, sizes in _TOKENIZERS
}  # fmt: skip
# Networks of measures of quality (`fourm/measures`), with addresses and counts as in pytorch-fid 0.3.0
# (Inception), transformers (CLIP) and torchvision (AlexNet). PyTorch puts the first 8 digits of the sha256
# into the names of files. The linear layers of LPIPS are in the packages lpips 0.1.4 and torchmetrics, too.
_MEASURES = (
    Entry("inception-fid", "", "measure", "Inception-v3 of FID and Inception score", "Apache-2.0",
          4 * 23_885_392, 23_885_392, sources=(
              Source("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                     "pt_inception-2015-12-05-6726825d.pth", "6726825d"),)),
    Entry("clip-vit-large-patch14", "openai/clip-vit-large-patch14", "measure", "CLIP ViT-L/14", "MIT",
          4 * 427_616_513, 427_616_513),
    Entry("lpips-alex", "", "measure", "AlexNet and linear layers of LPIPS", "BSD",
          4 * 61_101_992, 61_101_992, sources=(
              Source("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"),
              Source("https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/"
                     "weights/v0.1/alex.pth",
                     "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"))),
)  # fmt: skip
_ENTRIES = (
    *_MODELS, *TOKENIZERS.values(),
    Entry(TEXT_TOKENIZER, "", "text tokenizer", "WordPiece of 30,000 words", "Apache-2.0", 1_451_469,
          main_file="text_tokenizer_4m_wordpiece_30k.json"),
    Entry("parti-prompts", "nateraw/parti-prompts", "prompts", "1,632 prompts (PartiPrompts)", "Apache-2.0",
          123_106, main_file="PartiPrompts.tsv", repo_type="dataset"),
    *_MEASURES,
)  # fmt: skip

CATALOGUE: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
GROUPS: Mapping[str, tuple[str, ...]] = {
    "models": tuple(one.name for one in _MODELS),
    "tokenizers": tuple(one.name for one in TOKENIZERS.values()),
}
_BY_NAME = {word.lower(): e for e in _ENTRIES for word in (e.name, e.hub_id) if word}


def find_entry(name: str) -> Entry | None:
    """The entry with this short name or Hub id, upper and lower case alike; None where there is none."""
    return _BY_NAME.get(name.lower())


def near_entry(name: str) -> str:
    """`; did you mean 'tok-rgb'?` for a misspelt short name, group or Hub id, or an empty string."""
    words = [e.hub_id for e in _ENTRIES if e.hub_id] if "/" in name else [*CATALOGUE, *GROUPS]
    return "" if name.lower() in map(str.lower, words) else near_match(name, words)
