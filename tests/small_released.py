"""A Hub cache with 4M-7 B, its super-resolution model and tokenizers, quick to make and run.

Names, modalities and vocabularies are the released ones; networks are one narrow layer of random weights.
"""

from pathlib import Path

import torch

from benchmarks.bundle import words
from fourm.hub.cache import text_tokenizer_path
from fourm.hub.catalogue import CATALOGUE
from fourm.modalities.registry import RELEASED
from fourm.networks.checkpoint import unused_names
from fourm.networks.model import FourM, FourMConfig
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.vq import VQTokenizer
from tests.headers import FINE, SEVEN
from tests.hubcache import put, put_folder
from tests.tiny import CONFIG, save, write_config

PARTI = """Prompt\tCategory\tChallenge\tNote
a lake house with a red roof\tOutdoor Scenes\tSimple Detail\t
"""
NETWORK = {**CONFIG, "patch_size": 16, "dim": 16, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1}
VQ = {"enc_type": "vit_demo_enc", "dec_type": "vit_demo_dec", "latent_dim": 8}
TOKENIZERS = {
    "4M_tokenizers_rgb_16k_224-448":
        {**VQ, "n_channels": 3, "codebook_size": 16384, "patch_size": 16, "image_size": 224},
    "4M_tokenizers_CLIP-B16_8k_224-448":
        {**VQ, "n_channels": 512, "codebook_size": 8192, "patch_size": 1, "image_size": 14},
}  # fmt: skip


def write_released(home: Path) -> dict[str, str]:
    """Fill a folder; returns the environment in which commands take it for what was downloaded."""
    cache, parts = home / "hf" / "hub", home / "parts"
    generator = torch.Generator().manual_seed(0)
    models = {"4M-7_B_CC12M": (SEVEN, 224), "4M-7-SR_L_CC12M": (FINE, 448)}
    for name, (writes, size) in models.items():
        reads = [*SEVEN, "rgb@224"] + ([*writes, "rgb@448"] if size == 448 else [])
        config = {**NETWORK, "domains_in": reads, "domains_out": writes, "image_size": size}
        model = FourM(FourMConfig.from_dict(config, RELEASED))
        save(model, parts / name, generator, unused_names(model))
        write_config(parts / name, config)
        put_folder(cache, f"EPFL-VILAB/{name}", parts / name)
    for name, config in TOKENIZERS.items():
        save(VQTokenizer(read_config(config)), parts / name, generator, ())
        write_config(parts / name, config)
        put_folder(cache, f"EPFL-VILAB/{name}", parts / name)
    text_tokenizer = home / "hf" / "fourm" / text_tokenizer_path().name
    text_tokenizer.parent.mkdir(parents=True)
    words().save(str(text_tokenizer))
    (parts / "prompts.tsv").write_text(PARTI)
    entry = CATALOGUE["parti-prompts"]
    put(cache, entry.hub_id, {entry.main_file: parts / "prompts.tsv"}, repo_type=entry.repo_type)
    return {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
