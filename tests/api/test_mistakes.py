"""Mistakes in calls: one sentence each, in the words of Python."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourm.api.model import Model, load
from fourm.api.reading import read
from fourm.api.results import Result
from fourm.errors import FourMError

PROMPT = "a small red circle above a blue square"


@pytest.fixture(scope="module")
def demo() -> Model:
    return load("demo", device="cpu")


WRONG = (
    ({"depht": 3}, "'depht' is neither a modality nor a setting; did you mean 'depth'"),
    ({"rgb": "no.png"}, "rgb: no.png is no file"),
    ({"targets": "depht"}, "`targets`: unknown modality 'depht'"),
    ({"rgb": 3}, "rgb: a int, where a picture, an array of numbers or a path belongs"),
    ({"rgb": np.zeros((3, 8, 8), np.uint8)}, r"rgb: uint8 of shape \(3, 8, 8\).*a picture is rows x columns"),
    ({"rgb": np.full((8, 8, 3), 7.0)}, "from 7 to 7"),
    ({"depth": np.zeros((8, 8), np.int32)}, r"depth: int32 of shape \(8, 8\)"),
    ({"semseg": np.full((8, 8), 300)}, "semseg: class 300 is outside"),
    ({"tok_depth": [1, 2, 3]}, "tok_depth: 3 tokens, where the modality has 64"),
    ({"det": "boxes.json"}, r"det: 'boxes.json' .*a file where Path\('boxes.json'\) is given"),
    ({"det": [(1, 2)]}, r"det: a box is \(xmin, ymin, xmax, ymax, name\)"),
    ({"det": [(0.5, 0, 1.5, 1, "circle")]}, r"det: corners of boxes are .* 0 to 1, not \(0.5, 0, 1.5, 1\)"),
    ({"det": [(3, 4, 9, 8, "circle")]}, "det: corners of boxes are fractions of the picture"),
    ({"det": [(0.5, 0.5, 0.5, 0.6, "circle")]}, "det: the box .* has no area"),
    ({"color_palette": [(0.9, 0.1, 0.2)]}, r"color_palette: a colour is \(red, green, blue\), whole numbers"),
    ({"color_palette": [(256, 0, 0)]}, r"color_palette: a colour is .* 255, not \(256, 0, 0\)"),
    ({"color_palette": [(1, 2, 3)] * 8}, "color_palette: a palette has at most 7 colours, not 8"),
    ({"det": [("a", 0, 0, 1, 1)]}, r"det: a box is \(xmin, ymin, xmax, ymax, name\)"),
    ({"prompt": PROMPT}, "'prompt' is neither .* did you mean 'caption'"),
    ({"n": 4}, "'n' is neither .* did you mean 'variations'"),
    ({"mask": 1}, "'mask' is neither .* did you mean 'keep'"),
    ({"negative_prompt": PROMPT}, "'negative_prompt' is neither .* did you mean 'weights'"),
    ({"targets": "segmentation"}, "unknown modality 'segmentation'; did you mean 'semseg'"),
    ({"metadata": {"brightnes": 3}}, "metadata: unknown name 'brightnes'; did you mean 'brightness'"),
    ({"steps": [1, 2, 3]}, "`steps`: 3 values for 2 targets"),
    ({"seed": -1}, "`seed=-1`: must be a whole number"),
    ({"seed": 1.5}, "`seed` is 1.5, expected a whole number"),
    ({"variations": 0}, "`variations` is 0, expected a whole number, 1 or more"),
    ({"variations": "x"}, "`variations` is 'x', expected a whole number"),
    ({"steps": "x"}, "`steps`: 'x' is not a whole number"),
    ({"top_k": -1}, "`top_k`: top_k is a whole number .* not -1"),
    ({"batch_size": 0}, "`batch_size` is 0, expected a whole number, 1 or more"),
    ({"batch_size": "auto"}, "`batch_size` is 'auto', expected a whole number"),
    ({"detokenizer_steps": 2.5}, "`detokenizer_steps` is 2.5, expected a whole number"),
    ({"blend": "no"}, "`blend` is 'no', expected true or false"),
    ({"upright": "no"}, "`upright` is 'no', expected true or false"),
    ({"fit": 3}, "`fit` is 3, expected text"),
    ({"weights": {"caption": "x"}}, "`weights`.caption is 'x', expected a finite number"),
    ({"keys": 3}, "`keys`: names of samples were expected, as texts"),
    ({"targets": 3}, "`targets`: names of modalities were expected"),
    ({"weights": {"rgb": 2}}, "`weights`: the condition 'rgb' is not given; given are none"),
    ({"caption": ["a", "b"], "det": ["", "", ""]}, "must be equally long: caption has 2, det has 3"),
    ({"caption": [PROMPT] * 2, "keys": ["x", "x"]}, "`keys`: 'x' is given twice"),
    ({"caption": [PROMPT] * 2, "keys": ["x"]}, "`keys`: 1 names for 2 samples"),
    ({"caption": []}, "caption: the list is empty"),
    ({"schedule": 3}, "`schedule`: a int, where a text, a path or a mapping belongs"),
    ({"cond_domains": "rgb"}, "`cond_domains`: conditions are given by name"),
    ({"caption": PROMPT, "rgb": None, "targets": ""}, "`targets`: names of modalities were expected"),
)  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_mistakes_are_told_in_the_words_of_python(
    demo: Model, arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(FourMError, match=sentence) as caught:
        demo(**arguments)  # type: ignore[arg-type]
    assert "--" not in str(caught.value)


def test_mistakes_of_type_are_told_by_every_door(demo: Model, tmp_path: Path) -> None:
    request = demo.request(PROMPT, out=tmp_path / "out", steps=1, progress=False)
    for change in ({"batch_size": 0}, {"preview": -1}, {"num_variations": "x"}, {"resume": "yes"}):
        with pytest.raises(FourMError, match=f"`{next(iter(change))}` is .*, expected"):
            replace(request, **change)  # type: ignore[arg-type]
    result = demo.generate(PROMPT, steps=1)
    assert isinstance(result, Result)
    for door in (load, read, result.save):
        with pytest.raises(FourMError, match="3 is given where the name of a file or folder belongs"):
            door(3)
    for find in (result.__getitem__, result.picture, result.tokens.__getitem__):
        with pytest.raises(FourMError, match=r"no .*'3'"):
            find(3)  # type: ignore[operator]
    with pytest.raises(FourMError, match="3 is given where"):
        load("demo", sr=3)  # type: ignore[arg-type]
    for wrong in ({"attention": "x"}, {"device": None}, {"dtype": 3}, {"tokenizers": 3}):
        with pytest.raises(FourMError, match=f"{next(iter(wrong))}`?: "):
            load("demo", **wrong)  # type: ignore[arg-type]


def test_prompts_and_captions_exclude_each_other(demo: Model) -> None:
    with pytest.raises(FourMError, match="both as prompts and as caption"):
        demo(PROMPT, caption=PROMPT)


KEPT_WRONG = (
    ({"rgb": np.ones((64, 64), np.bool_)}, "the mask keeps all of the picture"),
    ({"rgb": np.zeros((5, 64), np.bool_)}, "the mask has 64 x 5 pixels, but its picture has 64 x 64"),
    ({"rgb": np.zeros((64, 64, 3))}, "where a mask is rows x columns of booleans"),
    ({"depth": 0.5}, "nothing is given of depth; give it too, as depth="),
    ({"rgb": None}, "nothing is said of rgb"),
    ({"rgb": [0.5, 0.5]}, "2 masks for 1 samples"),
    (3, "names with what stays of each were expected"),
)


@pytest.mark.parametrize(("keep", "sentence"), KEPT_WRONG, ids=map(str, range(len(KEPT_WRONG))))
def test_mistakes_in_what_is_kept(demo: Model, keep: object, sentence: str) -> None:
    with pytest.raises(FourMError, match=sentence):
        demo(rgb=Image.new("RGB", (64, 64)), keep=keep)  # type: ignore[arg-type]
