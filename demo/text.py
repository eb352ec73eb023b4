"""The demo's text tokenizer: the words of the grammars and nothing else."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece as WordPieceModel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from demo.world import BACKGROUNDS, COLOURS, NUM_BINS, SHAPES, SIZES

RESERVED = ("[PAD]", "[UNK]", "[SOS]", "[EOS]", *(f"[S_{k}]" for k in range(16)))
WORDS = (
    "a", *SIZES, *COLOURS, *BACKGROUNDS, "at", "the", "on", "of", "background",
    "top", "bottom", "left", "right", "center", "above", "below",
)  # fmt: skip
_AXES = tuple(f"v{axis}={n}" for axis in range(4) for n in range(NUM_BINS))
_REST = tuple(f"v0={n}" for n in range(NUM_BINS, 256))

# In the order of the ids, so that a modality with few words needs a small table only.
VOCABULARY = (*RESERVED, *SHAPES, *WORDS, *_AXES, *_REST)
IDS = {token: index for index, token in enumerate(VOCABULARY)}
CAPTION_SIZE = len(RESERVED) + len(SHAPES) + len(WORDS)
METADATA_SIZE = CAPTION_SIZE + 2 * NUM_BINS  # v0= and v1= below NUM_BINS
BOX_SIZE = CAPTION_SIZE + len(_AXES)
PALETTE_SIZE = len(VOCABULARY)


def encode(text: str) -> list[int]:
    """Ids of a text of the grammars, without [EOS]; the same as the tokenizer gives, only faster."""
    return [IDS[word] for word in text.split()]


def build_tokenizer() -> Tokenizer:
    """A `tokenizers` object with the conventions of the released text tokenizer."""
    model = WordPieceModel(
        vocab=dict(IDS), unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=100
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in RESERVED[:4]])
    whole = (*RESERVED[4:], *_AXES, *_REST)
    tokenizer.add_special_tokens([AddedToken(t, single_word=True, normalized=False) for t in whole])
    tokenizer.add_special_tokens([AddedToken(t, single_word=True, normalized=True) for t in SHAPES])
    return tokenizer


def write_tokenizer(path: Path) -> None:
    """Write the tokenizer as JSON."""
    build_tokenizer().save(str(path), pretty=False)
