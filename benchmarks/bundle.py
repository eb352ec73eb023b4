"""Random weights at the sizes of released checkpoints, in their format: a model folder with tokenizers.

    python -m benchmarks.bundle FOLDER [--model 4m-21-b] [--tokenizers tok-rgb,tok-clip,...]

Names, shapes and dtypes are those of the published architectures; only the numbers mean nothing. They are
scaled so that activations stay finite. Tensors are written one at a time, so that no model is ever in memory.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from fourm.hub.catalogue import CATALOGUE
from fourm.modalities.registry import RELEASED, load_registry
from fourm.networks.checkpoint import unused_names
from fourm.networks.model import FourM, FourMConfig
from fourm.networks.tokenizers import build_tokenizer
from fourm.networks.tokenizers.config import read_config

TOKENIZERS = ("tok-rgb", "tok-clip", "tok-depth", "tok-normal", "tok-semseg")
_VIT = {"enc_type": "vit_b_enc", "dec_type": "vit_b_dec", "image_size": 448, "patch_size": 16,
        "post_mlp": True, "quant_type": "lucid", "latent_dim": 32, "norm_codes": True}  # fmt: skip
_DIFFUSION = {**_VIT, "dec_type": "unet_patched", "num_train_timesteps": 1000, "scheduler": "ddim",
              "beta_schedule": "linear", "prediction_type": "sample"}  # fmt: skip
CONFIGS: Mapping[str, dict[str, object]] = {
    "tok-rgb": {**_DIFFUSION, "n_channels": 3, "codebook_size": 16384},
    "tok-depth": {**_DIFFUSION, "n_channels": 1, "codebook_size": 8192},
    "tok-normal": {**_DIFFUSION, "n_channels": 3, "codebook_size": 8192},
    "tok-edge": {**_DIFFUSION, "n_channels": 1, "codebook_size": 8192, "image_size": 512},
    "tok-semseg": {**_VIT, "n_channels": 64, "n_labels": 134, "codebook_size": 4096},
    "tok-clip": {**_VIT, "n_channels": 512, "patch_proj": False, "codebook_size": 8192},
}
# What is changed for networks that only show that code runs.
NARROW_MODEL: Mapping[str, object] = {"dim": 64, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2}
NARROW_TOKENIZERS: Mapping[str, Mapping[str, object]] = {
    "tok-rgb": {
        "enc_type": "vit_demo_enc",
        "dec_structure": {"patch_size": 4, "model_channels": 8, "num_res_blocks": 0,
                          "attention_resolutions": [4], "channel_mult": [4, 8]},
    },
    "tok-clip": {"enc_type": "vit_demo_enc", "dec_type": "vit_demo_dec"},
}  # fmt: skip
_DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
_VOCABULARY = 30_000


def write_bundle(folder: Path, model: str = "4m-21-b", tokenizers: tuple[str, ...] = TOKENIZERS) -> Path:
    """A model folder that `find_model` takes: config, weights, text tokenizer, tokenizers by key."""
    return write_folder(
        folder, CATALOGUE[model].config, {CATALOGUE[name].key: CONFIGS[name] for name in tokenizers}
    )


def write_pictures_bundle(folder: Path, narrow: bool, device: str | torch.device = "cpu") -> Path:
    """4M-7 B with what it needs for CLIP features and RGB pictures, as released or narrow."""
    model = {**CATALOGUE["4m-7-b"].config, **(NARROW_MODEL if narrow else {})}
    tokenizers = {
        CATALOGUE[name].key: {**CONFIGS[name], **(changes if narrow else {})}
        for name, changes in NARROW_TOKENIZERS.items()
    }
    return write_folder(folder, model, tokenizers, device)


def write_folder(
    folder: Path,
    config: Mapping[str, object],
    tokenizers: Mapping[str, Mapping[str, object]],
    device: str | torch.device = "cpu",
) -> Path:
    """The same of any sizes; the numbers are drawn on `device`."""
    write_model(folder, config, device)
    words().save(str(folder / "text_tokenizer.json"))
    for key, one in tokenizers.items():
        write_tokenizer(folder / "tokenizers" / key, one, device)
    return folder


def write_model(folder: Path, config: Mapping[str, object], device: str | torch.device = "cpu") -> None:
    """config.json and model.safetensors, image targets' unused embeddings included, as released."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "modalities.yaml"
    parsed = FourMConfig.from_dict(config, load_registry(rows) if rows.exists() else RELEASED)
    with torch.device("meta"):
        network = FourM(parsed)
        shapes = dict(network.state_dict())
        sizes = {row.name: row.vocab_size for row in parsed.modalities_out}
        for name in unused_names(network):
            shapes[name] = torch.empty(sizes[name.split(".")[1]], parsed.dim)
    write_weights(folder / "model.safetensors", shapes, device=device)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=1))


def write_tokenizer(folder: Path, config: Mapping[str, object], device: str | torch.device = "cpu") -> None:
    """The same for a tokenizer, with the buffers of training that released files hold."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = dict(build_tokenizer(read_config(config)).state_dict())
        shapes["quantize._codebook.initted"] = torch.empty(1)
        shapes["quantize._codebook.cluster_size"] = torch.empty(len(shapes["quantize._codebook.embed"]))
    write_weights(folder / "model.safetensors", shapes, device=device)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=1))


def write_weights(
    path: Path, shapes: Mapping[str, Tensor], seed: int = 0, device: str | torch.device = "cpu"
) -> None:
    """Random tensors of these shapes, one after the other, as safetensors."""
    table, end = dict[str, object](), 0
    for name, tensor in shapes.items():
        size = tensor.numel() * tensor.element_size()
        table[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape),
                       "data_offsets": [end, end + size]}  # fmt: skip
        end += size
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    generator = torch.Generator(device).manual_seed(seed)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, tensor in shapes.items():
            random_tensor(name, tensor, generator).cpu().numpy().tofile(file)


def random_tensor(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Norms near one, biases small, tables like unit noise, matrices scaled by what goes into them.

    It is float32, on the device of the generator.
    """
    device = generator.device
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype, device=device)
    if name.endswith(("initted", "cluster_size")):
        return torch.ones(like.shape, device=device)
    noise = torch.empty(like.shape, device=device).normal_(generator=generator)
    if like.ndim < 2:
        return noise * 0.02 + ("norm" in name and name.endswith("weight"))
    if "emb" in name or "mask_token" in name:
        return noise * 0.02
    return noise / math.sqrt(math.prod(like.shape[1:]))


def words() -> Tokenizer:
    """A text tokenizer with the released special tokens and as many entries, which spells most words."""
    special = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", *(f"[S_{i}]" for i in range(200))]
    special += [f"v{k}={n}" for k in range(4) for n in range(1000)]
    letters = [chr(code) for code in range(33, 127)]
    entries = [*special, *letters, *(f"##{letter}" for letter in letters), "lake", "house", "the"]
    entries += [f"word{n}" for n in range(_VOCABULARY - len(entries))]
    model = WordPiece({w: i for i, w in enumerate(entries)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.add_special_tokens(special)
    return tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="4m-21-b")
    parser.add_argument("--tokenizers", default=",".join(TOKENIZERS))
    args = parser.parse_args()
    print(write_bundle(args.folder, args.model, tuple(filter(None, args.tokenizers.split(",")))))


if __name__ == "__main__":
    main()
