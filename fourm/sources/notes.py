"""Notes on what is given: what may be a mistake, and what the built-in model does not know."""

import os
from collections.abc import Sequence

from fourm.hub.catalogue import DEMO
from fourm.hub.files import ModelFiles


def note_of_world(model: ModelFiles, given: Sequence[str]) -> tuple[str, ...]:
    """A note on what the built-in model knows, if it is given a picture; else nothing."""
    if model.name != DEMO or not any(model.registry.get(name).is_rgb for name in given):
        return ()
    knows = "one or two circles, squares and triangles in six colours, on a plain background"
    return (f"model '{DEMO}' knows a synthetic world only, {knows}; what it says of photos means nothing",)


def note_likely_slips(prompts: Sequence[str]) -> tuple[str, ...]:
    """Notes on prompts that may be mistakes: single words without quotation marks, and names of files."""
    notes = list[str]()
    if len(prompts) > 1 and all(len(prompt.split()) == 1 for prompt in prompts):
        joined = " ".join(prompts)
        notes.append(f'{len(prompts)} prompts of one word each; quotation marks make them one: "{joined}"')
    if named := next((prompt for prompt in prompts if " " not in prompt and os.path.exists(prompt)), ""):
        notes.append(f"'{named}' is read as words; `data={named}` reads what has this name")
    return tuple(notes)
