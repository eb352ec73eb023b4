"""CLIP: a picture and a text as vectors whose cosine says how well they match.

Radford et al. 2021, arXiv:2103.00020. Parameters are named as in the public checkpoint
`openai/clip-vit-large-patch14` (model.safetensors); sizes are read from the shapes of its tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from fourm.errors import CheckpointError
from fourm.files.opening import read_bytes
from fourm.hub.header import read_header
from fourm.networks.checkpoint import load_strictly

_HEAD = 64  # width of an attention head, in all published sizes
_START, _END = "<|startoftext|>", "<|endoftext|>"
_UNUSED = ("position_ids", "logit_scale")  # ends of names: whole numbers 0, 1, ..., and a factor of training
# Of the pictures that the checkpoint was trained with, RGB in [0, 1].
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Tower:
    """The sizes of one of the two transformers."""

    dim: int
    depth: int
    hidden: int  # of the MLPs
    length: int  # positions


@dataclass(frozen=True, slots=True)
class CLIPSizes:
    """The sizes of a checkpoint."""

    vision: Tower
    text: Tower
    patch: int  # pixels of a side
    vocab: int
    shared: int  # width of the vectors that are compared

    @property
    def side(self) -> int:
        """Pixels of a side of the pictures."""
        return round((self.vision.length - 1) ** 0.5) * self.patch

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]]) -> "CLIPSizes":
        """The sizes that the tensors of a checkpoint have. CheckpointError: they are not those of CLIP."""

        def tower(name: str) -> Tower:
            length, dim = shapes[f"{name}.embeddings.position_embedding.weight"]
            starts = {key.split(".")[3] for key in shapes if key.startswith(f"{name}.encoder.layers.")}
            return Tower(dim, len(starts), shapes[f"{name}.encoder.layers.0.mlp.fc1.bias"][0], length)

        try:
            vocab = shapes["text_model.embeddings.token_embedding.weight"][0]
            patch = shapes["vision_model.embeddings.patch_embedding.weight"][-1]
            shared = shapes["visual_projection.weight"][0]
            return CLIPSizes(tower("vision_model"), tower("text_model"), patch, vocab, shared)
        except KeyError as error:
            raise CheckpointError(f"tensor {error} is missing, so this is not CLIP") from None
        except (ValueError, IndexError):
            raise CheckpointError("the shapes of its tensors are not those of CLIP") from None


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, is_causal: bool) -> Tensor:
        """(B, N, D), the same shape again."""
        parts = (layer(x) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", d=_HEAD) for part in parts)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return self.out_proj(rearrange(x, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    """Two linear layers, with the quick approximation of GELU that the checkpoint was trained with."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D), the same shape again."""
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Layer(nn.Module):
    """A block of a transformer."""

    def __init__(self, sizes: Tower) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(sizes.dim), MLP(sizes.dim, sizes.hidden)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(sizes.dim), nn.LayerNorm(sizes.dim)

    def forward(self, x: Tensor, is_causal: bool) -> Tensor:
        """(B, N, D), the same shape again."""
        x = x + self.self_attn(self.layer_norm1(x), is_causal)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The blocks of a tower."""

    def __init__(self, sizes: Tower) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.depth))

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """(B, N, D), the same shape again."""
        for layer in self.layers:
            x = layer(x, is_causal)
        return x


class VisionEmbeddings(nn.Module):
    """Pictures to tokens: one for the picture, one for each patch."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        dim = sizes.vision.dim
        self.class_embedding = nn.Parameter(torch.empty(dim))
        self.patch_embedding = nn.Conv2d(3, dim, sizes.patch, sizes.patch, bias=False)
        self.position_embedding = nn.Embedding(sizes.vision.length, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class TextEmbeddings(nn.Module):
    """Ids to tokens."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.vocab, sizes.text.dim)
        self.position_embedding = nn.Embedding(sizes.text.length, sizes.text.dim)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N) -> (B, N, D)."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class Vision(nn.Module):
    """The tower of pictures."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.embeddings, self.encoder = VisionEmbeddings(sizes), Encoder(sizes.vision)
        self.pre_layrnorm = nn.LayerNorm(sizes.vision.dim)  # spelt as in the checkpoint
        self.post_layernorm = nn.LayerNorm(sizes.vision.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): the first token."""
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return self.post_layernorm(x[:, 0])


class Text(nn.Module):
    """The tower of texts."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.embeddings, self.encoder = TextEmbeddings(sizes), Encoder(sizes.text)
        self.final_layer_norm = nn.LayerNorm(sizes.text.dim)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N) ids -> (B, D): the last token."""
        return self.final_layer_norm(self.encoder(self.embeddings(ids), is_causal=True)[:, -1])


class CLIP(nn.Module):
    """Both towers, and the linear layers to the width that they share."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision_model, self.text_model = Vision(sizes), Text(sizes)
        self.visual_projection = nn.Linear(sizes.vision.dim, sizes.shared, bias=False)
        self.text_projection = nn.Linear(sizes.text.dim, sizes.shared, bias=False)

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """(B, 3, side, side) from `prepare` -> (B, shared), of length 1."""
        return F.normalize(self.visual_projection(self.vision_model(pixels)), dim=-1)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """(B, N) ids of texts of one length, with start and end -> (B, shared), of length 1."""
        return F.normalize(self.text_projection(self.text_model(ids)), dim=-1)


def prepare(picture: NDArray[np.uint8], side: int) -> Tensor:
    """(H, W, 3) -> (3, side, side): the shorter side resized (bicubic), the centre cut out, standardised."""
    image = Image.fromarray(picture)
    scale = side / min(image.size)
    width, height = (max(side, int(size * scale)) for size in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = torch.from_numpy(np.asarray(image.crop((left, top, left + side, top + side))).copy())
    mean, deviation = torch.tensor(_MEAN), torch.tensor(_DEVIATION)
    return ((pixels / 255 - mean) / deviation).permute(2, 0, 1)


class TextReader:
    """Texts to ids, by the byte-pair encoding of a `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        try:
            self.tokenizer = Tokenizer.from_str(read_bytes(path, 1 << 26).decode("utf-8"))
        except Exception as error:  # the library raises plain exceptions
            raise CheckpointError(f"{path}: not a readable tokenizer ({error})") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        start, end = (self.tokenizer.token_to_id(word) for word in (_START, _END))
        if start is None or end is None:
            raise CheckpointError(f"{path}: has no {_START} and {_END}, so it is not that of CLIP")
        self.start, self.end = start, end

    def read(self, text: str, num_tokens: int) -> list[int]:
        """The ids of a text, cut to `num_tokens` between start and end."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.start, *ids[:num_tokens], self.end]


def load_clip(path: Path, device: str | torch.device = "cpu") -> CLIP:
    """The network of a safetensors file with the names of the public checkpoint."""
    try:
        sizes = CLIPSizes.of({name: info.shape for name, info in read_header(path).tensors.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with torch.device("meta"):
        network = CLIP(sizes)
    return load_strictly(network, path, device, lambda name: name.endswith(_UNUSED))
