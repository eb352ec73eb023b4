"""Codebooks: latents (B, L, h, w) to token ids and token ids back to latents, in float32.

Nothing changes during inference, and nothing derived from the weights is stored: training sees no stale copy.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm.networks.layers import normal

_ROWS_AT_ONCE = 4096  # latents scored against all codes together: bounds the memory of the search


class NearestCode(nn.Module):
    """One codebook: the nearest row by cosine (`cosine`) or Euclidean distance; tokens (B, h, w).

    The look-up gives the stored row, also where the search compares normalised ones.
    """

    def __init__(self, num_codes: int, width: int, cosine: bool, norm_latents: bool) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.cosine = cosine
        self.norm_latents = norm_latents
        self._codebook = Codebook(num_codes, width)

    @torch.no_grad()
    def indices(self, latents: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, h, w) int64; the lowest index wins a tie."""
        flat = rearrange(latents.float(), "b l h w -> (b h w) l")
        if self.norm_latents or self.cosine:
            flat = F.normalize(flat, dim=-1, eps=1e-12)
        codes = self._codebook.embed.float()
        if self.cosine:
            codes = F.normalize(codes, dim=-1, eps=1e-12)
        score = _cosine if self.cosine else _minus_distance
        tokens = torch.cat([score(part, codes).argmax(dim=-1) for part in torch.split(flat, _ROWS_AT_ONCE)])
        return tokens.view(latents.shape[0], *latents.shape[2:])

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, L, h, w) float32; gradients reach the codebook."""
        return F.embedding(tokens, self._codebook.embed).float().movedim(-1, 1)


class Codebook(nn.Module):
    """The rows of a codebook, `quantize._codebook.embed` in a checkpoint."""

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(normal(num_codes, width))


class MemCodes(nn.Module):
    """N codebooks, one for each N-th of the channels; learned keys are searched, learned values are returned.

    keys[n] = codes[n] @ to_k[n] and values[n] = codes[n] @ to_v[n]; the codes themselves are neither.
    """

    def __init__(self, num_books: int, num_codes: int, width: int) -> None:
        super().__init__()
        self.num_books = num_books
        self.num_codes = num_codes
        part = width // num_books
        self.codes = nn.Parameter(normal(num_books, num_codes, part))
        self.to_k = Projections(num_books, part)
        self.to_v = Projections(num_books, part)

    @torch.no_grad()
    def indices(self, latents: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, N, h, w) int64, or (B, h, w) for a single codebook."""
        batch, _, h, w = latents.shape
        parts = rearrange(latents.float(), "b (n d) h w -> n (b h w) d", n=self.num_books)
        # q . (codes to_k) = (q to_k^T) . codes: one product per latent instead of one per code.
        queries = parts @ self.to_k.weight.float().transpose(1, 2)
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
        values = picked @ self.to_v.weight.float()
        return rearrange(values, "n (b h w) d -> b (n d) h w", b=batch, h=h, w=w)


class Projections(nn.Module):
    """One square matrix per codebook, (N, input, output)."""

    def __init__(self, num_books: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(num_books, width, width, scale=width**-0.5))


def _cosine(rows: Tensor, codes: Tensor) -> Tensor:
    return rows @ codes.T


def _minus_distance(rows: Tensor, codes: Tensor) -> Tensor:
    """(M, L), (K, L) -> (M, K) minus the squared distances."""
    squares = rows.square().sum(dim=-1, keepdim=True)
    return -(squares - 2 * rows @ codes.T + codes.square().sum(dim=-1))
