"""The demo world is exactly known, and the embedded model was made from it."""

import random

import numpy as np
import pytest
import torch

from demo import text
from demo.bench import Bench
from demo.bundle import BUNDLE, LIMIT, PROMPTS
from demo.patches import FIELDS, network_input, patch_table, tokens_of
from demo.readback import agrees, caption_of, read_picture
from demo.render import render
from demo.tasks import BASE_MENU, FINE_MENU, GRIDS, TEXTS, Tasks, text_of
from demo.world import (
    BACKGROUNDS,
    Caption,
    Claim,
    Scene,
    boxes_text,
    describe,
    is_held_out,
    normalise,
    parse_caption,
    print_caption,
    sample_scene,
    vary,
)
from fourm.codecs.table import build_codec
from fourm.hub.files import find_model
from fourm.modalities.text import WordPiece


def scenes(count: int, seed: int = 0) -> list[Scene]:
    """Half of them held out."""
    rng = random.Random(seed)
    return [sample_scene(rng, held_out=index % 2 == 0) for index in range(count)]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.load()


@pytest.mark.parametrize("scale", [1, 2])
def test_every_picture_reads_back_as_its_scene(scale: int) -> None:
    for scene in scenes(150):
        assert caption_of(render(scene, scale).rgb) == normalise(describe(scene))


def test_read_back_does_not_see_objects_in_noise_or_in_bare_ground() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert caption_of(noise) is None
    for name, colour in BACKGROUNDS.items():
        bare = np.full((64, 64, 3), colour, np.uint8)
        assert read_picture(bare) == (name, ())


def test_a_picture_with_a_damaged_object_is_not_accepted() -> None:
    scene = next(s for s in scenes(50) if len(s.things) == 1 and s.things[0].size == "large")
    thing, rgb = scene.things[0], render(scene).rgb.copy()
    rgb[thing.cy - 16 : thing.cy, thing.cx - 16 : thing.cx + 16] = BACKGROUNDS[scene.background]
    assert caption_of(rgb) != normalise(describe(scene))


def test_captions_parse_to_what_they_were_printed_from() -> None:
    rng = random.Random(1)
    for scene in scenes(200):
        for caption in (describe(scene), vary(describe(scene), rng)):
            assert parse_caption(print_caption(caption)) == caption


def test_what_a_caption_leaves_unsaid_may_be_anything() -> None:
    asked = parse_caption("a circle below a red square")
    shown = Caption((Claim("square", "red", "large"), Claim("circle", "blue", "small")), "", "above", "tan")
    assert asked is not None
    assert agrees(asked, shown)
    assert not agrees(asked, Caption(shown.things[::-1], "", "above", "tan"))


@pytest.mark.parametrize(
    "bad", ["", "a dog", "a red", "a circle at the moon", "a circle on a red background"]
)
def test_text_outside_the_grammar_has_no_meaning(bad: str) -> None:
    assert parse_caption(bad) is None


def test_held_out_combinations_never_occur_in_training() -> None:
    shown = Tasks(3, 200).scenes()
    assert not any(is_held_out(scene) for scene in shown)
    assert all(is_held_out(scene) for scene in Tasks(3, 50, held_out=True).scenes())


def test_boxes_surround_the_objects() -> None:
    for scene in scenes(20):
        words = boxes_text(scene).split()
        numbers = [int(word.partition("=")[2]) / 63 * 64 for word in words if "=" in word]
        rows, columns = np.nonzero(render(scene).semseg)
        xs, ys = numbers[::2], numbers[1::2]
        for edge, pixel in ((min(xs), columns.min()), (max(xs), columns.max() + 1)):
            assert abs(edge - pixel) <= 2
        for edge, pixel in ((min(ys), rows.min()), (max(ys), rows.max() + 1)):
            assert abs(edge - pixel) <= 2


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("field", FIELDS)
def test_tokens_of_a_scene_are_its_rendered_patches(field: str, scale: int) -> None:
    for scene in scenes(10):
        patches = patch_table(field, scale).rows[tokens_of(scene, field, scale)]
        whole = network_input(field, render(scene, scale))
        side = patches.shape[-1]
        for row, column in np.ndindex(*patches.shape[:2]):
            area = (..., slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            assert np.array_equal(whole[area], patches[row, column])


def test_fast_text_ids_equal_those_of_the_bundles_tokenizer() -> None:
    path = find_model("demo").text_tokenizer
    assert path is not None
    wordpiece = WordPiece.load(path)
    assert wordpiece.tokenizer.get_vocab_size() == len(text.VOCABULARY)
    for scene in scenes(30):
        for name in TEXTS:
            words = text_of(scene, name)
            assert wordpiece.encode(words) == text.encode(words)
            assert wordpiece.decode(text.encode(words)) == words


def test_text_ids_fit_the_vocabularies_of_their_modalities() -> None:
    registry = find_model("demo").registry
    for scene in scenes(100):
        for name in TEXTS:
            ids, row = text.encode(text_of(scene, name)), registry.get(name)
            assert max(ids) < row.vocab_size
            assert len(ids) + 3 <= row.max_tokens


@pytest.mark.parametrize("menu", [BASE_MENU, FINE_MENU])
def test_examples_are_fixed_by_their_seed_and_never_ask_for_what_is_known(menu: dict) -> None:  # type: ignore[type-arg]
    for seed in range(8):
        example, again = Tasks(seed, 4).draw(menu), Tasks(seed, 4).draw(menu)
        for question, same in zip(example.questions, again.questions, strict=True):
            assert torch.equal(question.answers, same.answers)
            slot = example.batch.slots.get(question.target)
            if question.inputs is None and slot is not None:
                assert not slot.known.gather(1, question.positions).any()


def test_the_bundle_is_small() -> None:
    files = [path for path in BUNDLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".txt"}


@pytest.mark.parametrize("name", [name for name in GRIDS if name.endswith("@64")])
def test_tokenizers_give_each_patch_of_the_world_its_own_code(bench: Bench, name: str) -> None:
    field, scale = GRIDS[name]
    tokenizer = bench.codecs[name].tokenizer
    assert tokenizer is not None
    patches = torch.from_numpy(patch_table(field, scale).rows)
    tokens = tokenizer.tokenize(patches).flatten()
    assert torch.equal(tokens, torch.arange(len(patches)))


def test_pictures_survive_their_tokens(bench: Bench) -> None:
    some = scenes(60, seed=5)
    codec = bench.codecs["tok_rgb@64"]
    back = codec.decode(codec.encode([render(scene).rgb for scene in some]))
    assert [caption_of(rgb) for rgb in back] == [normalise(describe(scene)) for scene in some]


def test_the_embedded_model_draws_its_own_prompts(bench: Bench) -> None:
    asked = [parse_caption(prompt) for prompt in PROMPTS]
    options = "--cond caption --targets tok_clip-tok_rgb --temps 3.0-0.5"
    batch = bench.run({"caption": bench.captions(PROMPTS)}, options)
    shown = [caption_of(value) for value in bench.values(batch, "tok_rgb@64")]
    right = [a is not None and agrees(a, s) for a, s in zip(asked, shown, strict=True)]
    assert all(right), [p for p, ok in zip(PROMPTS, right, strict=True) if not ok]


def test_the_worlds_texts_keep_to_the_grammars_of_4m() -> None:
    model = find_model("demo")
    assert model.text_tokenizer is not None
    words = WordPiece.load(model.text_tokenizer)
    for name in ("det", "metadata", "color_palette"):
        codec = build_codec(model.registry.get(name), wordpiece=words)
        for scene in scenes(60):
            text = text_of(scene, name)
            value, problems = codec.grammar.parse(text)
            assert (codec.grammar.to_text(value), problems) == (text, ())
            if name == "det":
                things = sorted(scene.things, key=lambda thing: thing.box[0] ** 2 + thing.box[1] ** 2)
                for box, thing in zip(value, things, strict=True):
                    assert box.corners == pytest.approx(thing.box, abs=1 / 126)
