"""A model on a device: loaded when it is first used, and kept for the next run."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

import torch
from torch import nn

from fourm.codecs.table import Codec, build_codec
from fourm.decoding.engine import RELEASED_SENTINELS, Engine
from fourm.hub.files import ModelFiles
from fourm.hub.header import FULL, TokenizerPart, Weights
from fourm.modalities.registry import Modality
from fourm.modalities.text import WordPiece
from fourm.networks.attention import set_attention
from fourm.networks.checkpoint import load_model, load_tokenizer
from fourm.networks.graphs import Graphs
from fourm.networks.layers import compile_blocks
from fourm.networks.model import FourM
from fourm.networks.precision import torch_dtype
from fourm.networks.tokenizers import AnyTokenizer
from fourm.networks.tokenizers.diffusion import DiVAE


@dataclass(slots=True)
class LoadedModel:
    """A network and its tokenizers. Each is loaded once, by the first call that needs it."""

    files: ModelFiles
    device: torch.device
    dtype: str  # a key of `DTYPES`
    attention: str = "sdpa"
    compile: bool = False
    weights: Weights = FULL
    _network: FourM | None = None
    _wordpiece: WordPiece | None = None
    # By path. A model for super-resolution shares them with its base.
    tokenizers: dict[Path, tuple[TokenizerPart, AnyTokenizer]] = field(default_factory=dict)
    graphs: Graphs = field(default_factory=Graphs)
    lock: RLock = field(default_factory=RLock)  # held by a thread that loads something or makes a step

    @property
    def is_loaded(self) -> bool:
        """Whether the network is in memory."""
        return self._network is not None

    @property
    def network(self) -> FourM:
        """The transformer."""
        with self.lock:
            if self._network is None:
                self._network = load_model(self.files, self.device, torch_dtype(self.dtype), self.weights)
                self._prepare(self._network)
            return self._network

    @property
    def wordpiece(self) -> WordPiece | None:
        """The tokenizer of texts; None for a model without one."""
        with self.lock:
            if self._wordpiece is None and self.files.text_tokenizer is not None:
                self._wordpiece = WordPiece.load(self.files.text_tokenizer)
            return self._wordpiece

    def tokenizer(self, name: str, part: TokenizerPart) -> AnyTokenizer:
        """A tokenizer with this part at least; one of which another part is loaded is loaded as a whole."""
        with self.lock:
            path = self.files.tokenizers[name]
            there = self.tokenizers.get(path)
            if there is None or there[0] not in (part, TokenizerPart.WHOLE):
                part = part if there is None else TokenizerPart.WHOLE
                dtype = torch_dtype(self.dtype)
                loaded = load_tokenizer(path, self.device, dtype, part)
                self._prepare(loaded)
                if there is not None:
                    self.graphs.clear()  # they keep the part that was loaded before
                there = self.tokenizers[path] = part, loaded
            return there[1]

    def _prepare(self, network: nn.Module) -> None:
        set_attention(network, self.attention, self.device)
        if self.compile:
            compile_blocks(network)
        if isinstance(network, DiVAE):
            network.graphs = self.graphs

    def codec(self, row: Modality, part: TokenizerPart | None = None) -> Codec:
        """The codec of a modality, with the part of its tokenizer; None: without a tokenizer."""
        tokenizer = None if part is None else self.tokenizer(row.tokenizer, part)
        return build_codec(row, tokenizer, self.wordpiece)

    def engine(self, max_rows: int) -> Engine:
        """The network as an engine; max_rows: see `Engine`."""
        sentinels = RELEASED_SENTINELS if self.wordpiece is None else self.wordpiece.sentinels
        return Engine(self.network, sentinels, graphs=self.graphs, max_rows=max_rows)

    def close(self) -> None:
        """Release the memory of everything that is loaded; the next use loads it again."""
        with self.lock:
            self._network, self._wordpiece = None, None
            self.tokenizers.clear()
            self.graphs = Graphs()  # they hold memory of the device, and read the network's weights
