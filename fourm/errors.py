"""Errors that a user can correct, each class with its exit code, and helpers that word their messages."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# A word of 600 characters or more is shortened in its middle, so that the sentence around it can be read.
_LONG_WORD = re.compile(r"(\S{200})\S{300,}(\S{100})")
# What other programs and plain English call modalities, settings and options; `near_match` names ours.
_OTHER_WORDS = {
    "rgb": "image images img picture pictures photo photos",
    "caption": "text words prompt prompts",
    "normal": "normals surface_normals",
    "semseg": "segmentation semantic_segmentation seg labels",
    "canny_edge": "edge edges canny",
    "det": "box boxes bbox bboxes bounding_boxes detection detections objects",
    "color_palette": "palette colors colours colour_palette",
    "human_poses": "pose poses",
    "sam_instance": "instances",
    "num_variations": "n num num_images num_images_per_prompt num_return_sequences num_outputs",
    "variations": "n num num_images num_images_per_prompt num_return_sequences num_outputs",
    "cfg": "guidance guidance_scale cfg_scale",
    "steps": "num_inference_steps inference_steps num_steps",
    "temps": "temperature temperatures",
    "weights": "negative negative_prompt weight",
    "weight": "negative negative_prompt weights",
    "keep": "mask mask_image inpaint outpaint",
    "out": "o output output_dir outdir",
    "shard": "jobs workers processes num_processes num_workers",
    "preview": "watch callback",
    "sr_targets": "sr upscale superres super_resolution",
    "resume": "continue",
    "generate": "make create draw sample predict infer run describe inpaint outpaint replay txt2img img2img",
    "sr": "upscale superres super_resolution",
    "retrieve": "search find nearest",
    "overwrite": "f force",
}
MAX_SENTENCE = 2000  # characters of a message: enough for a long path and what is wrong with it
addresses = dict[str, str]()  # of temporary copies of remote files and folders, by their paths


def as_addresses(text: str) -> str:
    """A message in which temporary copies are called what they are copies of."""
    for path, address in tuple(addresses.items()):
        text = text.replace(path, address)
    return text


class FourMError(Exception):
    """An error that a user can understand and correct; the message is one sentence, written for the user.

    It names settings as Python does, between backticks: `batch_size`, `batch_size=4`, `resume=True`. The
    command line prints them as its options; see `fourm_cli.console.as_typed`. Temporary copies of remote
    files are called by their addresses.
    """

    exit_code = 1

    def __str__(self) -> str:
        return as_addresses(super().__str__())


class UsageError(FourMError):
    """A wrong option, schedule, config or input; found before any model is loaded."""

    exit_code = 2


class ScheduleError(UsageError):
    """One or more mistakes in a schedule, reported together; the message has one line for each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class CheckpointError(UsageError):
    """A model or tokenizer file that is truncated, malformed or does not fit its configuration."""


class SampleError(FourMError):
    """One sample that cannot be read or decoded; the run continues with the other samples.

    The message becomes one printable line, because it may quote file names and errors of libraries.
    """

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class MissingError(FourMError):
    """A model or file that is not on this machine; the message says how to get it."""

    exit_code = 4


class VerificationError(FourMError):
    """A file that does not match its checksum or size, or a folder that does not match its record."""

    exit_code = 5


def printable(text: str) -> str:
    """The text with line ends and control characters escaped, because a terminal would obey them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: str) -> str:
    """A printable message of at most `MAX_SENTENCE` characters; very long words lose their middle."""
    return shown(_LONG_WORD.sub(r"\1...\2", printable(message)), MAX_SENTENCE)


def shown(value: object, most: int = 60) -> str:
    """A value as a message quotes it: its first `most` characters and "...", if it is longer."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def near_match(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or an empty string.

    What other programs call a known name comes first (`segmentation`). Of the known names that contain the
    given name, the shortest is closest: `decoding_steps` for `steps`. Upper and lower case are alike, hyphen
    and underscore, and dashes before a name do not count.
    """
    word, spelt = _plain(name), {_plain(one): one for one in known}
    meant = [one for one, others in _OTHER_WORDS.items() if word in others.split() and one in spelt]
    containing = sorted((one for one in spelt if word in one), key=len) if len(word) >= 4 else []
    close = meant or containing or get_close_matches(word, spelt, n=1, cutoff=0.6)
    return f"; did you mean '{spelt[close[0]]}'?" if close else ""


def check_choice(setting: str, given: object, known: Iterable[str]) -> None:
    """UsageError: what is given for a setting is none of the known words."""
    if given not in (words := list(known)):
        near = near_match(given, words)
        raise UsageError(f"`{setting}`: '{given}' is not one of {', '.join(words)}{near}")


def _plain(name: object) -> str:
    return str(name).lower().lstrip("-").replace("-", "_")
