"""Training examples for both models: the states that generation goes through, at random."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from demo import text
from demo.metadata import metadata_text
from demo.patches import patch_table, tokens_of
from demo.render import render
from demo.world import (
    BACKGROUNDS,
    PATCH,
    SIDE,
    Scene,
    boxes_text,
    describe,
    palette_text,
    print_caption,
    sample_scene,
    straighten,
    vary,
)
from fourm.modalities.registry import Kind
from fourm.modalities.text import EOS_ID
from fourm.networks.state import S1_ID, S2_ID, Batch, Slot

GRIDS = {  # name -> the map it shows, and its scale
    "tok_rgb@64": ("rgb", 1),
    "tok_clip@64": ("clip", 1),
    "tok_depth@64": ("depth", 1),
    "tok_normal@64": ("normal", 1),
    "tok_semseg@64": ("semseg", 1),
    "tok_canny_edge@64": ("edge", 1),
    "tok_rgb@128": ("rgb", 2),
    "tok_clip@128": ("clip", 2),
}
BASE_GRIDS = tuple(name for name in GRIDS if name.endswith("@64"))
DENSE = BASE_GRIDS[1:]
TEXTS = ("caption", "det", "color_palette", "metadata")
PIXELS = "rgb@64"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_HIDDEN_RATE = 0.15  # rows whose conditions are hidden, as guidance will hide them


@dataclass(frozen=True, slots=True)
class Question:
    """Logits to ask for: one target, its positions and the right answers."""

    target: str
    positions: Tensor  # (B, K) int64
    inputs: Tensor | None  # (B, K) int64 tokens before the ones asked, for sequences
    answers: Tensor  # (B, K) int64, -100 where there is none


@dataclass(frozen=True, slots=True)
class Example:
    """What the encoder reads, and the questions about it."""

    batch: Batch
    questions: tuple[Question, ...]


class Tasks:
    """A maker of examples, fixed by its seed.

    A caption says nothing of small shifts, so what is drawn from captions stands in its usual place: guidance
    would blow up any rare alternative. Pictures that the model is shown may stand one patch off.
    """

    def __init__(self, seed: int, batch_size: int, held_out: bool = False) -> None:
        self.rng = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        self.batch_size = batch_size
        self.held_out = held_out

    def draw(self, menu: "Menu") -> Example:
        """The next example; which task it is, is drawn too."""
        (make,) = self.rng.choices(tuple(menu), tuple(menu.values()))
        return make(self, self.scenes())

    def scenes(self) -> list[Scene]:
        """As many scenes as an example has rows."""
        return [sample_scene(self.rng, self.held_out) for _ in range(self.batch_size)]

    def blank(self, target: str) -> Example:
        """A whole picture to predict from complete captions alone."""
        scenes = [straighten(scene) for scene in self.scenes()]
        slots = {"caption": self._text(scenes, "caption", self._no_rows(), varied=False)}
        nothing = self._no_tokens(target)
        slots[target] = self._grid(scenes, target, nothing)
        return Example(self._batch(slots), (self._ask(scenes, target, nothing, nothing.shape[1]),))

    def caption_to_clip(self, scenes: Sequence[Scene]) -> Example:
        """caption -> tok_clip, any number of tokens known."""
        scenes = [straighten(scene) for scene in scenes]
        hidden = self._hidden()
        slots = {"caption": self._caption(scenes, hidden)}
        return self._grid_example(slots, scenes, "tok_clip@64")

    def clip_to_rgb(self, scenes: Sequence[Scene]) -> Example:
        """caption -> tok_clip -> tok_rgb, the second half; now and then without the caption."""
        hidden = self._hidden()
        slots = {"tok_clip@64": self._full_grid(scenes, "tok_clip@64", hidden)}
        if self.rng.random() < 0.85:
            slots = {"caption": self._caption(scenes, hidden), **slots}
        return self._grid_example(slots, scenes, "tok_rgb@64")

    def caption_to_rgb(self, scenes: Sequence[Scene]) -> Example:
        """caption -> tok_rgb, or one of the other pictures."""
        scenes = [straighten(scene) for scene in scenes]
        target = "tok_rgb@64" if self.rng.random() < 0.7 else self.rng.choice(DENSE)
        return self._grid_example({"caption": self._caption(scenes, self._hidden())}, scenes, target)

    def picture_to_dense(self, scenes: Sequence[Scene]) -> Example:
        """rgb -> depth, normals, segmentation, edges, features; one of them may be partly known."""
        hidden = self._hidden()
        name = PIXELS if self.rng.random() < 0.5 else "tok_rgb@64"
        slots = {name: self._picture(scenes, name, hidden)}
        started = self.rng.choice(DENSE)
        first = self._grid_example(slots, scenes, started)
        others = self.rng.sample([name for name in DENSE if name != started], 3)
        asked = [self._ask(scenes, name, self._no_tokens(name), 20) for name in others]
        return Example(first.batch, (*first.questions, *asked))

    def picture_to_text(self, scenes: Sequence[Scene]) -> Example:
        """A picture or its features -> caption, boxes, palette, metadata."""
        name = self.rng.choices((PIXELS, "tok_rgb@64", "tok_clip@64"), (4, 4, 2))[0]
        slots = {name: self._picture(scenes, name, self._no_rows())}
        wanted = [t for t in TEXTS if self.rng.random() < (0.8 if t == "caption" else 0.35)] or ["caption"]
        for target in wanted:
            slots[target] = self._pending()
        questions = tuple(self._ask_text(scenes, target) for target in wanted)
        return Example(self._batch(slots), questions)

    def anything(self, scenes: Sequence[Scene]) -> Example:
        """One to three conditions of any kind -> one target of any kind."""
        names = self.rng.sample((*TEXTS, *BASE_GRIDS, PIXELS), self.rng.randint(2, 4))
        target = next((name for name in names if name != PIXELS), "tok_rgb@64")
        hidden, slots = self._hidden(), {}
        if "caption" in names:
            scenes = [straighten(scene) for scene in scenes]
        for name in names:
            if name == target:
                continue
            make = self._text if name in TEXTS else self._picture
            slots[name] = make(scenes, name, hidden)
        if target in GRIDS:
            return self._grid_example(slots, scenes, target)
        slots[target] = self._pending()
        return Example(self._batch(slots), (self._ask_text(scenes, target),))

    def coarse_to_clip(self, scenes: Sequence[Scene]) -> Example:
        """What a 64-pixel run leaves -> tok_clip at 128 pixels."""
        return self._finer(self._coarse(scenes, self._hidden()), scenes, "tok_clip@128")

    def coarse_to_rgb(self, scenes: Sequence[Scene]) -> Example:
        """The same and tok_clip at 128 pixels -> tok_rgb at 128 pixels; now and then without the features."""
        hidden = self._hidden()
        slots = self._coarse(scenes, hidden)
        if self.rng.random() < 0.85:
            slots["tok_clip@128"] = self._full_grid(scenes, "tok_clip@128", hidden)
        return self._finer(slots, scenes, "tok_rgb@128")

    def _finer(self, slots: dict[str, Slot], scenes: Sequence[Scene], target: str) -> Example:
        """The target with any tokens known; often as MaskGIT leaves it: a few of objects missing."""
        if self.rng.random() < 0.5:
            return self._grid_example(slots, scenes, target)
        length, missing = num_tokens(target), self.rng.choice((4, 8, 16, 32, 64))
        noise = self.noise.random((len(scenes), length))
        if self.rng.random() < 0.8:
            noise += of_objects(stack_tokens(scenes, target), target).numpy()
        known = torch.from_numpy(noise.argsort(1).argsort(1) < length - missing)
        partly = self._grid(scenes, target, known)
        question = self._ask(scenes, target, known, missing)
        return Example(self._batch({**slots, target: partly}), (question,))

    def _coarse(self, scenes: Sequence[Scene], hidden: Tensor) -> dict[str, Slot]:
        """Caption and tokens at 64 pixels; at times only some of them."""
        names = [name for name in ("tok_clip@64", "tok_rgb@64") if self.rng.random() < 0.85] or ["tok_rgb@64"]
        slots = {name: self._full_grid(scenes, name, hidden) for name in names}
        return {"caption": self._caption(scenes, hidden), **slots} if self.rng.random() < 0.85 else slots

    def _grid_example(self, slots: dict[str, Slot], scenes: Sequence[Scene], target: str) -> Example:
        """The target with some tokens known, the same number in each row, and a question about others."""
        length = num_tokens(target)
        # Mostly few known tokens: with many, nothing needs to be learned from the conditions.
        count = 0 if self.rng.random() < 0.4 else int(length * self.rng.random() ** 2)
        rank = self.noise.random((len(scenes), length)).argsort(1)
        known = torch.from_numpy(rank < count)
        partly = self._grid(scenes, target, known)
        asked = self.rng.choice((4, 16, 24, 32, 64)) * length // 64
        return Example(self._batch({**slots, target: partly}), (self._ask(scenes, target, known, asked),))

    def _ask(self, scenes: Sequence[Scene], target: str, known: Tensor, count: int) -> Question:
        """A question about `count` unknown positions of each row (all rows know equally many)."""
        order = torch.rand(known.shape, generator=self._generator()).masked_fill(known, 2.0)
        count = min(count, int((~known[0]).sum()))
        positions = order.argsort(1)[:, :count]
        ids = stack_tokens(scenes, target)
        return Question(target, positions, None, ids.gather(1, positions))

    def _ask_text(self, scenes: Sequence[Scene], target: str) -> Question:
        rows = [[S1_ID, *text.encode(text_of(scene, target)), EOS_ID, S2_ID] for scene in scenes]
        ids = padded(rows)
        positions = torch.arange(ids.shape[1] - 1).expand(len(rows), -1)
        return Question(target, positions, ids[:, :-1], ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100))

    def _picture(self, scenes: Sequence[Scene], name: str, hidden: Tensor) -> Slot:
        if name != PIXELS:
            return self._full_grid(scenes, name, hidden)
        known = (~hidden)[:, None].expand(-1, num_tokens("tok_rgb@64"))
        return Slot(Kind.PIXELS, pixels_of(scenes), known, torch.zeros_like(known))

    def _full_grid(self, scenes: Sequence[Scene], name: str, hidden: Tensor) -> Slot:
        return self._grid(scenes, name, (~hidden)[:, None].expand(-1, num_tokens(name)))

    def _grid(self, scenes: Sequence[Scene], name: str, known: Tensor) -> Slot:
        return Slot(Kind.GRID, stack_tokens(scenes, name), known, ~known)

    def _caption(self, scenes: Sequence[Scene], hidden: Tensor) -> Slot:
        return self._text(scenes, "caption", hidden)

    def _text(self, scenes: Sequence[Scene], name: str, hidden: Tensor, varied: bool = True) -> Slot:
        """Whole texts, captions varied as people vary them; hidden rows keep one [S_1]."""
        rows = []
        for scene, is_hidden in zip(scenes, hidden.tolist(), strict=True):
            varies = varied and name == "caption"
            words = print_caption(vary(describe(scene), self.rng)) if varies else text_of(scene, name)
            rows.append([S1_ID] if is_hidden else [*text.encode(words), EOS_ID])
        ids = padded(rows)
        return Slot(Kind.SEQUENCE, ids, ids != 0, torch.zeros_like(ids, dtype=torch.bool))

    def _pending(self) -> Slot:
        """A text that is still to come: one visible [S_1]."""
        ids = torch.full((self.batch_size, 1), S1_ID)
        known = torch.ones_like(ids, dtype=torch.bool)
        return Slot(Kind.SEQUENCE, ids, known, ~known)

    def _batch(self, slots: dict[str, Slot]) -> Batch:
        """Slots in a random order: which modality comes first must not matter."""
        names = self.rng.sample(tuple(slots), len(slots))
        return Batch(("",) * self.batch_size, {name: slots[name] for name in names})

    def _hidden(self) -> Tensor:
        return torch.from_numpy(self.noise.random(self.batch_size) < _HIDDEN_RATE)

    def _no_rows(self) -> Tensor:
        return torch.zeros(self.batch_size, dtype=torch.bool)

    def _no_tokens(self, name: str) -> Tensor:
        return torch.zeros(self.batch_size, num_tokens(name), dtype=torch.bool)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.rng.getrandbits(48))


# How often each task is drawn.
Menu = Mapping[Callable[[Tasks, Sequence[Scene]], Example], int]
BASE_MENU: Menu = {
    Tasks.caption_to_clip: 30,
    Tasks.clip_to_rgb: 12,
    Tasks.caption_to_rgb: 26,
    Tasks.picture_to_dense: 12,
    Tasks.picture_to_text: 10,
    Tasks.anything: 10,
}
FINE_MENU: Menu = {Tasks.coarse_to_clip: 2, Tasks.coarse_to_rgb: 3}


def num_tokens(name: str) -> int:
    """Tokens of an image modality."""
    return (SIDE * GRIDS[name][1] // PATCH) ** 2


def of_objects(ids: Tensor, target: str) -> Tensor:
    """Which tokens (...) of an image modality show more than bare background."""
    blocks = patch_table(*GRIDS[target]).blocks
    floor = torch.tensor([int(blocks[(name,)][0, 0]) for name in BACKGROUNDS])
    return ~torch.isin(ids, floor)


def text_of(scene: Scene, name: str) -> str:
    """The complete text of a scene in one of the sequence modalities."""
    if name == "caption":
        return print_caption(describe(scene))
    return {"det": boxes_text, "color_palette": palette_text, "metadata": metadata_text}[name](scene)


def pixels_of(scenes: Sequence[Scene]) -> Tensor:
    """(B, 3, 64, 64) float32, standardised with the statistics of ImageNet."""
    rgb = torch.from_numpy(np.stack([render(scene).rgb for scene in scenes])).movedim(-1, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (rgb / 255 - mean) / std


def stack_tokens(scenes: Sequence[Scene], name: str) -> Tensor:
    """(B, L) int64 tokens of one image modality."""
    grids = np.stack([tokens_of(scene, *GRIDS[name]) for scene in scenes])
    return torch.from_numpy(grids.reshape(len(scenes), -1)).long()


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, L) int64, zeros behind each row."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
