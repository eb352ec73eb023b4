"""A Hub cache in the library's own layout, filled by hand: blobs, snapshots of links, refs."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(
    cache: Path, hub_id: str, files: Mapping[str, Path], commit: str = COMMIT, ref: str | None = "main",
    repo_type: str = "model",
) -> Path:  # fmt: skip
    """The snapshot folder of a repository with these files, as a download leaves it."""
    repository = cache / "--".join([f"{repo_type}s", *hub_id.split("/")])
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * (1 + len(Path(name).parts)), "blobs", blob.name))
    if ref is not None:
        (repository / "refs" / ref).write_text(commit)
    return snapshot


def put_folder(
    cache: Path, hub_id: str, folder: Path, commit: str = COMMIT, ref: str | None = "main"
) -> Path:
    """The same with the config.json and model.safetensors of a folder."""
    names = [name for name in ("config.json", "model.safetensors") if (folder / name).exists()]
    return put(cache, hub_id, {name: folder / name for name in names}, commit, ref)


def put_whole(cache: Path, hub_id: str, folder: Path) -> Path:
    """The same with everything in a folder."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return put(cache, hub_id, files)


def write_tokenizer(folder: Path, codes: int, header_only: bool = False) -> Path:
    """A tokenizer's folder that is a configuration and a codebook of one number per code."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"codebook_size": codes, "latent_dim": 1}
    size = 4 * codes
    table: dict[str, object] = {
        "quantize._codebook.embed": {"dtype": "F32", "shape": [codes, 1], "data_offsets": [0, size]}
    }
    if header_only:
        table["__metadata__"] = {key: str(value) for key, value in config.items()}
    else:
        (folder / "config.json").write_text(json.dumps(config))
    raw = json.dumps(table).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))
    return folder
