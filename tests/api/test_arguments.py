"""What callers give and get in Python: values of every kind, mistakes as one sentence, nothing shared."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from fourm.api.model import Model, load
from fourm.api.schedule import Schedule
from fourm.errors import FourMError

PROMPT = "a small red circle above a blue square"
TURNED = 6  # of EXIF: to be turned by a quarter


@pytest.fixture(scope="module")
def demo() -> Model:
    return load("demo", device="cpu")


@pytest.fixture(scope="module")
def made(demo: Model) -> Any:
    return demo(PROMPT, targets="rgb depth normal det", steps=2)


def with_tag(picture: Image.Image) -> Image.Image:
    tagged = picture.copy()
    tagged.getexif()[ExifTags.Base.Orientation] = TURNED
    return tagged


def test_token_ids_of_texts_are_a_list_or_an_array(demo: Model, made: Any) -> None:
    for name in ("caption", "det"):
        ids, value = made.tokens[name], made[name]
        for given in (ids, ids.tolist(), torch.from_numpy(ids), ids[None]):
            assert demo.decode(**{name: given}) == {name: value}
        assert demo.decode(**{name: [ids, ids.tolist()]}) == {name: [value, value]}


def test_tokenize_turns_pictures_by_their_exif_tag(demo: Model, tmp_path: Path) -> None:
    stored = Image.new("RGB", (64, 64), "white")
    stored.paste("red", (0, 0, 20, 50))
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    stored.save(tmp_path / "a.png", exif=with_tag(stored).getexif())
    ids = demo.tokenize(rgb=upright)["tok_rgb"]
    assert np.array_equal(demo.tokenize(rgb=tmp_path / "a.png")["tok_rgb"], ids)
    assert np.array_equal(demo.tokenize(rgb=with_tag(stored))["tok_rgb"], ids)
    assert not np.array_equal(demo.tokenize(rgb=stored)["tok_rgb"], ids)


def test_normals_are_not_turned_as_their_directions_would_stay(demo: Model, made: Any) -> None:
    normals = with_tag(Image.fromarray(made.normal))
    for call in (lambda: demo(normal=normals, targets="caption"), lambda: demo.tokenize(normal=normals)):
        with pytest.raises(FourMError, match="normals point another way"):
            call()
    assert demo(normal=normals, targets="caption", upright=False).caption


def test_results_kept_after_close_do_not_keep_the_networks() -> None:
    model = load("demo", device="cpu", dtype="bfloat16")
    result = model(PROMPT, targets="rgb semseg", steps=2)
    loaded = model._models.base
    alive = [weakref.ref(network) for _, network in loaded.tokenizers.values()]
    alive.append(weakref.ref(loaded.network))
    drawn = result._repr_png_()
    model.close()
    gc.collect()
    assert [one() for one in alive] == [None] * len(alive)
    assert result._repr_png_() == drawn


def test_a_result_does_not_change_with_the_arrays_that_it_gave(made: Any) -> None:
    for read in (lambda: made.depth, lambda: made.tokens["tok_depth"]):
        before = read().copy()
        read()[:] = 7
        assert np.array_equal(read(), before)


def test_tokens_are_a_mapping_as_any_other(made: Any) -> None:
    assert made.tokens.get("tok_zz", 3) == 3
    assert "tok_zz" not in made.tokens
    assert "tok_depth" in made.tokens


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_the_default_device_of_a_caller_changes_nothing(demo: Model, made: Any, default: str) -> None:
    with torch.device(default):
        again = demo(PROMPT, targets="rgb depth normal det", steps=2)
        ids = demo.tokenize(rgb=again.rgb)["tok_rgb"]
        assert torch.get_default_device().type == default
    assert np.array_equal(again.depth, made.depth)
    assert np.array_equal(demo.decode(tok_rgb=ids)["rgb"], demo.decode(tok_rgb=ids.tolist())["rgb"])


def test_a_picture_that_cannot_be_read_fails_its_sample_only(demo: Model, made: Any) -> None:
    with pytest.warns(UserWarning, match="1 of 2 results failed"):
        results = demo(rgb=[made.rgb, Image.new("RGB", (0, 5))], targets="caption")
    assert results[0].caption
    assert results[1].problem == "rgb: a picture of 0 x 5 pixels shows nothing"


def test_numbers_of_numpy_say_shares_and_boxes(demo: Model, made: Any) -> None:
    def kept(where: Any) -> Any:
        return demo(rgb=made.rgb, targets="rgb", steps=2, keep={"rgb": where}).tokens["tok_rgb"]

    assert np.array_equal(kept(np.float32(0.5)), kept(0.5))
    assert np.array_equal(kept(tuple(np.array([0, 0, 0.5, 1], np.float32))), kept((0, 0, 0.5, 1)))


def test_options_of_a_schedule_may_have_equals_signs() -> None:
    assert repr(Schedule("--temps=3.0-0.5 --steps 2")) == repr(Schedule("--temps 3.0-0.5 --steps 2"))


IDS = [1] * 64
CALLS: dict[str, tuple[Callable[[Model], Any], str]] = {
    "sparse": (lambda m: m(rgb=torch.zeros(3, 64, 64).to_sparse()), "rgb: not an array of numbers"),
    "no data": (lambda m: m(rgb=torch.zeros(3, 64, 64, device="meta")), "rgb: not an array of numbers"),
    "channels last": (lambda m: m(rgb=torch.zeros(64, 64, 3)), r"a tensor of shape \(64, 64, 3\), where"),
    "dtype": (lambda m: m(rgb=np.zeros((64, 64, 3), "c8")), r"complex64 of shape \(64, 64, 3\), where"),
    "long path": (lambda m: m(rgb="x" * 300), "cannot be read"),
    "line in path": (lambda m: m(rgb="a\n.png"), r"rgb: a\\n.png is no file"),
    "ids": (lambda m: m.decode(tok_rgb=[1.5] * 64), "where token ids belong"),
    "id of text": (lambda m: m.decode(caption=[-1]), "token -1 is outside the vocabulary"),
    "large id": (lambda m: m.decode(det=[10**9]), "token 1000000000 is outside the vocabulary"),
    "text ids": (lambda m: m.decode(caption="x"), "where token ids belong"),
    "seed": (lambda m: m.decode(seed=-1, tok_rgb=IDS), "`seed=-1`: must be"),
    "targets": (lambda m: m(PROMPT, targets=5), "`targets`: names of modalities were expected"),
    "key": (lambda m: m(PROMPT, keys="\ud800"), "cannot be a file or folder name"),
    "keep": (lambda m: m(rgb=Image.new("RGB", (9, 9)), keep={"rgb": [None]}), "nothing is said of rgb"),
    "zero byte": (lambda m: m("a\0b"), "holds a character that files of text cannot hold"),
    "half a character": (lambda m: m("\ud800"), "holds a character that files of text cannot hold"),
    "schedule": (lambda m: m(PROMPT, schedule={5: 1}), "'5' is no setting"),
    "name": (lambda m: m(PROMPT, steps=1).picture(5), "has no value '5'"),
    "item": (lambda m: m(PROMPT, steps=1)[0], "has no value '0'"),
    "preview": (lambda m: next(m.stream(PROMPT)).preview(sample=1.0), "sample 1.0: a whole number"),
    "save": (lambda m: m(PROMPT, steps=1).save("x" * 300), "cannot be read"),
    "save nowhere": (lambda m: m(PROMPT, steps=1).save("\ud800"), "no folder can have this name"),
    "attention": (lambda m: load("demo", attention="sdpaa"), "`attention`: 'sdpaa' is not one of"),
    "no sr": (lambda m: load("demo", sr=""), "name of a model or tokenizer is empty"),
    "device": (lambda m: load("demo", device=None), "'None' is not a device"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_mistakes_are_one_sentence_in_the_words_of_python(demo: Model, name: str) -> None:
    call, sentence = CALLS[name]
    with pytest.raises(FourMError, match=sentence) as caught:
        call(demo)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)
