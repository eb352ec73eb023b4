"""What the shapes of a tokenizer's tensors say of its config."""

from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# Where the configs of released tokenizers may differ from what is published about them, the tensors decide.
# Everything else is the config's to say: tensors fill in what it leaves out, and must agree with the rest.
DECIDED_BY_TENSORS = ("n_channels", "image_size_enc", "image_size_dec", "num_codebooks", "post_mlp")


def settle(config: Mapping[str, object], shapes: Shapes) -> dict[str, object]:
    """The config (keys of `config.json`) as the tensors complete and correct it."""
    found = _from_codebook(shapes) | _from_encoder(config, shapes) | _from_decoder(config, shapes)
    decided = {key: value for key, value in found.items() if key in DECIDED_BY_TENSORS or key not in config}
    return {**config, **decided}


def _from_codebook(shapes: Shapes) -> dict[str, object]:
    codes, embed = shapes.get("quantize.codes", ()), shapes.get("quantize._codebook.embed", ())
    if len(codes) == 3:
        books, count, width = codes
        return {"quant_type": "memcodes", "num_codebooks": books, "codebook_size": count,
                "latent_dim": books * width}  # fmt: skip
    if len(embed) == 2:
        return {"quant_type": "lucid", "codebook_size": embed[0], "latent_dim": embed[1]}
    return {}


def _from_encoder(config: Mapping[str, object], shapes: Shapes) -> dict[str, object]:
    found = dict[str, object]()
    patches, vectors = shapes.get("encoder.proj.weight", ()), shapes.get("encoder.linear_in.weight", ())
    table, labels = shapes.get("encoder.pos_emb", ()), shapes.get("cls_emb.weight", ())
    if len(vectors) == 2:
        found["n_channels"] = vectors[1]
    if len(patches) == 4:
        found |= {"n_channels": patches[1], "post_mlp": "encoder.post_mlp.fc1.weight" in shapes}
        if config.get("patch_proj", True):
            found["patch_size"] = list(patches[2:])
        patch = _pair(config.get("patch_size", found.get("patch_size", 16)))
        if len(table) == 4 and patch:
            found["image_size_enc"] = [table[2] * patch[0], table[3] * patch[1]]
    if len(labels) == 2:
        found |= {"n_labels": labels[0], "n_channels": labels[1]}
    return found


def _from_decoder(config: Mapping[str, object], shapes: Shapes) -> dict[str, object]:
    """Grid and ending of a ViT; channels of a diffusion decoder whose file holds no encoder."""
    found, table = dict[str, object](), shapes.get("decoder.pos_emb", ())
    pixels, last = shapes.get("decoder.out.2.weight", ()), shapes.get("decoder.conv_out.weight", ())
    if "encoder.proj.weight" not in shapes and (pixels or last):
        structure = config.get("dec_structure")
        side = structure.get("patch_size", 4) if isinstance(structure, Mapping) else 4
        if len(last) == 4:
            found["n_channels"] = last[1]
        elif pixels and isinstance(side, int) and side > 0:
            found["n_channels"] = pixels[0] // side**2
    patch = _pair(config.get("patch_size_dec") or config.get("patch_size", 16))
    if len(table) == 4:
        found["out_conv"] = any(name.startswith("decoder.out_conv.") for name in shapes)
        if patch:
            found["image_size_dec"] = [table[2] * patch[0], table[3] * patch[1]]
    return found


def _pair(size: object) -> tuple[int, int] | None:
    """A size as height and width; None for what is none, which the config's own checks will name."""
    pair = list(size) if isinstance(size, list | tuple) else [size, size]
    numbers = [n for n in pair if isinstance(n, int) and n > 0]
    return (numbers[0], numbers[1]) if len(numbers) == len(pair) == 2 else None
