"""Model folders that are only a configuration and a header: enough for everything that loads no weights."""

import json
from pathlib import Path

SEVEN = ["caption", "det", "tok_clip@224", "tok_depth@224", "tok_normal@224", "tok_rgb@224", "tok_semseg@224"]
TWENTY_ONE = [
    *SEVEN,
    *("color_palette", "human_poses", "metadata", "sam_instance", "tok_canny_edge@224", "tok_dinov2@224"),
    *("tok_dinov2_global", "tok_imagebind@224", "tok_imagebind_global", "tok_sam_edge@224"),
]
FINE = ["tok_clip@448", "tok_depth@448", "tok_normal@448", "tok_rgb@448", "tok_semseg@448"]


def write_model(folder: Path, writes: list[str], reads: list[str], num_elements: int = 1000) -> Path:
    """A folder that `find_model` accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"domains_in": reads, "domains_out": writes, "dim": 768, "mlp_ratio": 4.0}
    (folder / "config.json").write_text(json.dumps(config))
    table = {"w": {"dtype": "F16", "shape": [num_elements], "data_offsets": [0, 2 * num_elements]}}
    raw = json.dumps(table).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(2 * num_elements))
    return folder


def seven(folder: Path) -> Path:
    """The modalities of a 4M-7 model."""
    return write_model(folder, SEVEN, [*SEVEN, "rgb@224"])


def twenty_one(folder: Path) -> Path:
    """The modalities of a 4M-21 model."""
    return write_model(folder, TWENTY_ONE, [*TWENTY_ONE, "rgb@224", "t5_caption"])


def fine(folder: Path) -> Path:
    """The modalities of the super-resolution model."""
    return write_model(folder, FINE, [*SEVEN, "rgb@224", "rgb@448", *FINE])
