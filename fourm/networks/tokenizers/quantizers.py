"""Codebooks: latents (B, L, h, w) to token ids and token ids back to latents, in float32; their table.

Nothing that is derived from the weights is stored, so that training sees no stale copy.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm.errors import CheckpointError
from fourm.networks.layers import normal
from fourm.networks.tokenizers.config import VQConfig

_ROWS_AT_ONCE = 4096  # latents scored against all codes together: bounds the memory of the search


class NearestCode(nn.Module):
    """One codebook: the nearest row by cosine (`norm_codes`) or Euclidean distance; tokens (B, h, w)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        if config.num_codebooks > 1:
            raise CheckpointError(f"num_codebooks: {config.num_codebooks}, but 'lucid' has one codebook")
        self.is_cosine, self.norm_latents = config.norm_codes, config.norm_latents
        self._codebook = nn.ParameterDict({"embed": normal(config.codebook_size, config.latent_dim)})

    @torch.no_grad()
    def indices(self, latents: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, h, w) int64; the lowest index wins a tie."""
        flat = rearrange(latents.float(), "b l h w -> (b h w) l")
        if self.norm_latents or self.is_cosine:
            flat = F.normalize(flat, dim=-1, eps=1e-12)
        codes = self._codebook["embed"].float()
        if self.is_cosine:
            codes = F.normalize(codes, dim=-1, eps=1e-12)
        found = []
        for rows in torch.split(flat, _ROWS_AT_ONCE):
            scores = rows @ codes.T
            if not self.is_cosine:  # minus the squared distances
                scores = -(rows.square().sum(dim=-1, keepdim=True) - 2 * scores + codes.square().sum(dim=-1))
            found.append(scores.argmax(dim=-1))
        return torch.cat(found).view(latents.shape[0], *latents.shape[2:])

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, L, h, w) float32, rows as stored, not normalised; gradients reach them."""
        return F.embedding(tokens, self._codebook["embed"]).float().movedim(-1, 1)


class MemCodes(nn.Module):
    """N codebooks, one for each N-th of the channels; learned keys are searched, learned values are returned.

    keys[n] = codes[n] @ to_k[n] and values[n] = codes[n] @ to_v[n]; the codes themselves are neither.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.num_books, width = config.num_codebooks, config.latent_dim
        if width % self.num_books:
            books = f"{self.num_books} codebooks"
            raise CheckpointError(f"latent_dim: {width} cannot be split over {books} evenly")
        part = width // self.num_books
        self.codes = nn.Parameter(normal(self.num_books, config.codebook_size, part))
        # One square matrix per codebook, (N, input, output).
        matrices = (normal(self.num_books, part, part, scale=part**-0.5) for _ in range(2))
        self.to_k, self.to_v = (nn.ParameterDict({"weight": matrix}) for matrix in matrices)

    @torch.no_grad()
    def indices(self, latents: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, N, h, w) int64, or (B, h, w) for a single codebook."""
        batch, _, h, w = latents.shape
        parts = rearrange(latents.float(), "b (n d) h w -> n (b h w) d", n=self.num_books)
        # q . (codes to_k) = (q to_k^T) . codes: one product per latent instead of one per code.
        queries = parts @ self.to_k["weight"].float().transpose(1, 2)
        codes = self.codes.float().transpose(1, 2)
        found = [(rows @ codes).argmax(dim=-1) for rows in torch.split(queries, _ROWS_AT_ONCE, dim=1)]
        tokens = rearrange(torch.cat(found, dim=1), "n (b h w) -> b n h w", b=batch, h=h, w=w)
        return tokens if self.num_books > 1 else tokens[:, 0]

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, N, h, w), or (B, h, w) for a single codebook -> (B, L, h, w) float32."""
        tokens = tokens if self.num_books > 1 else tokens.unsqueeze(1)
        batch, _, h, w = tokens.shape
        ids = rearrange(tokens, "b n h w -> n (b h w)")
        picked = torch.stack([book[rows] for book, rows in zip(self.codes.float(), ids, strict=True)])
        values = picked @ self.to_v["weight"].float()
        return rearrange(values, "n (b h w) d -> b (n d) h w", b=batch, h=h, w=w)


# By `quant_type` of the config. A row has `indices` and `lookup`.
QUANTIZERS: Mapping[str, type[NearestCode] | type[MemCodes]] = {"lucid": NearestCode, "memcodes": MemCodes}
