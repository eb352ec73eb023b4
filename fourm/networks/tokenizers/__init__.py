"""Discrete tokenizers, values to token ids and back: which one a checkpoint's config and tensors describe."""

from collections.abc import Mapping

from fourm.hub.header import TokenizerPart
from fourm.networks.tokenizers.config import DiVAEConfig, VQConfig
from fourm.networks.tokenizers.diffusion import DiVAE
from fourm.networks.tokenizers.vq import VQTokenizer

AnyTokenizer = VQTokenizer | DiVAE
Shapes = Mapping[str, tuple[int, ...]]

# Where the configs of released tokenizers may differ from what is published about them, the tensors decide.
# Everything else is the config's to say: tensors fill in what it leaves out, and must agree with the rest.
_DECIDED_BY_TENSORS = ("n_channels", "image_size_enc", "image_size_dec", "num_codebooks", "post_mlp")
# Which keys of the config decide the shape of a tensor, by a part of its name; the first that fits counts.
DECIDED_BY_CONFIG = (
    ("encoder.pos_emb", "image_size, image_size_enc, patch_size"),
    ("decoder.pos_emb", "image_size, image_size_dec, patch_size_dec"),
    ("encoder.proj", "enc_type, n_channels, patch_size, patch_proj"),
    ("decoder.out_proj", "dec_type, n_channels, n_labels, patch_size, patch_size_dec, patch_proj"),
    ("decoder.input_blocks.0.0", "n_channels, latent_dim, dec_type, dec_structure"),
    ("decoder.out.2", "n_channels, dec_type, dec_structure"),
    ("_codebook.embed", "codebook_size, latent_dim"),
    ("quantize.", "codebook_size, num_codebooks, latent_dim"),
    ("cls_emb", "n_labels, n_channels"),
    ("mlp.", "post_mlp, enc_type, dec_type"),
    ("out_conv", "out_conv, n_channels"),
    ("quant_proj", "latent_dim, enc_type, dec_type"),
    ("", "enc_type, dec_type"),
)


def build_tokenizer(config: VQConfig, part: TokenizerPart = TokenizerPart.WHOLE) -> AnyTokenizer:
    """The tokenizer of a config, with random weights."""
    return DiVAE(config, part) if isinstance(config, DiVAEConfig) else VQTokenizer(config, part)


def complete_config(config: Mapping[str, object], shapes: Shapes) -> dict[str, object]:
    """The config (keys of `config.json`) as the shapes of the tensors complete and correct it."""
    found = dict[str, object]()
    if len(vectors := shapes.get("encoder.linear_in.weight", ())) == 2:
        found["n_channels"] = vectors[1]
    if len(patches := shapes.get("encoder.proj.weight", ())) == 4:
        found |= {"n_channels": patches[1], "post_mlp": "encoder.post_mlp.fc1.weight" in shapes}
        if config.get("patch_proj", True):
            found["patch_size"] = list(patches[2:])
        patch = _pair(config.get("patch_size", found.get("patch_size", 16)))
        if len(table := shapes.get("encoder.pos_emb", ())) == 4 and patch:
            found["image_size_enc"] = [table[2] * patch[0], table[3] * patch[1]]
    if len(labels := shapes.get("cls_emb.weight", ())) == 2:
        found |= {"n_labels": labels[0], "n_channels": labels[1]}
    # The file of a diffusion decoder may hold no encoder.
    if not patches and len(uvit := shapes.get("decoder.conv_out.weight", ())) == 4:
        found["n_channels"] = uvit[1]
    elif not patches and (unet := shapes.get("decoder.out.2.weight", ())):
        structure = config.get("dec_structure")
        side = structure.get("patch_size", 4) if isinstance(structure, Mapping) else 4
        if isinstance(side, int) and side > 0:
            found["n_channels"] = unet[0] // side**2
    if len(table := shapes.get("decoder.pos_emb", ())) == 4:
        found["out_conv"] = any(name.startswith("decoder.out_conv.") for name in shapes)
        if patch := _pair(config.get("patch_size_dec") or config.get("patch_size", 16)):
            found["image_size_dec"] = [table[2] * patch[0], table[3] * patch[1]]
    if len(nearest := shapes.get("quantize._codebook.embed", ())) == 2:
        found |= {"quant_type": "lucid", "codebook_size": nearest[0], "latent_dim": nearest[1]}
    if len(books := shapes.get("quantize.codes", ())) == 3:
        found |= {"quant_type": "memcodes", "num_codebooks": books[0], "codebook_size": books[1],
                  "latent_dim": books[0] * books[2]}  # fmt: skip
    decided = {key: value for key, value in found.items() if key in _DECIDED_BY_TENSORS or key not in config}
    return {**config, **decided}


def _pair(size: object) -> tuple[int, int] | None:
    """A size as height and width; None for what is none, which the config's own checks will name."""
    pair = list(size) if isinstance(size, list | tuple) else [size, size]
    numbers = [n for n in pair if isinstance(n, int) and n > 0]
    return (numbers[0], numbers[1]) if len(numbers) == len(pair) == 2 else None
