"""A loaded model: values in, values out."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import torch

from fourm.api.calls import Parts, plan_call
from fourm.api.making import Results, StreamEvent, finish, make
from fourm.api.progress import Bar
from fourm.api.schedule import Schedule
from fourm.api.tokens import Ids, decode, tokenize
from fourm.data.opening import output_path
from fourm.errors import UsageError
from fourm.hub.catalogue import DEMO
from fourm.hub.files import ModelFiles, find_model, with_parts
from fourm.inputs.request import Request, World
from fourm.networks.precision import choose_dtype
from fourm.runs.device import choose_device
from fourm.runs.events import Event
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import run as run_request

MKL = "MKL_CBWR"  # the variable that makes sums independent of the size of a batch on Intel's CPUs


class Model:
    """A model on a device, made by `fourm.load`. Its parts are loaded when they are first used, and kept.

    Calls may come from several threads: each decoding step holds the model, so a stream that was not finished
    blocks nobody. An interrupt leaves it usable. As a context (`with fourm.load(...) as model`) it is closed
    at the end.
    """

    def __init__(self, parts: Parts, made_from: tuple[object, ...] = ()) -> None:
        self._parts, self._made_from, self._is_closed = parts, made_from, False

    @property
    def files(self) -> ModelFiles:
        """Where its files are, and what they say of it."""
        return self._parts.base.files

    @property
    def name(self) -> str:
        """Its short name, the id of its repository, or its path."""
        return self.files.name

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0", "mps"."""
        return str(self._parts.base.device)

    @property
    def dtype(self) -> str:
        """In what it computes: "float32", "tf32", "bfloat16" or "float16"."""
        return self._parts.base.dtype

    @property
    def reads(self) -> tuple[str, ...]:
        """Full names of the modalities that can be conditions."""
        return self.files.reads

    @property
    def writes(self) -> tuple[str, ...]:
        """Full names of the modalities that can be targets."""
        return self.files.writes

    def generate(
        self, *prompts: str, targets: str | Sequence[str] | None = None, seed: int = 0, variations: int = 1,
        keep: Mapping[str, Any] | None = None, sr: bool | str | None = None,
        weights: Mapping[str, float] | None = None,
        schedule: Schedule | str | Path | Mapping[str, Any] | None = None, progress: bool = True,
        **given: Any,
    ) -> Results:  # fmt: skip
        """Generate targets from prompts and conditions: one `Result`, or a list of them.

        prompts: captions. given: conditions by modality (`rgb=picture, depth=array, tok_clip=ids`), settings
        of the schedule (`steps=[49, 25], temps=[3.0, 0.5], cfg=3, top_p=0.8`), and `keys` (names of the
        samples; by default their positions), `upright=False` (pictures are not turned by their EXIF tag),
        `batch_size`, `detokenizer_steps`, `decode=False` (tokens only), `fit="pad"` (the whole picture, with
        a border, instead of its central square), `restore=True` (results in the size of the whole picture;
        NaN, class 255 or alpha 0 where it was not seen). A condition that is a list, or several prompts,
        give a list of results; one value serves all.
        targets: names, in one text or a list; None: the usual ones. weights: of conditions in guidance.
        keep: what stays of a modality that is given, by name, while the rest of it is made: a mask of the
        upright picture's size (an array of booleans or levels, a picture, a path; True and white stay), a box
        of fractions (left, top, right, bottom), or a share of the tokens (0.5). In a text, `[S_1]` marks
        what is to be filled.
        sr: True: super-resolution afterwards, by the model that belongs to this one; or the name of another.
        Results are ordered by sample, then by variation. SampleError: all samples failed. One that fails
        among others is a result with a `problem`, and a warning says so.
        """
        given |= {"targets": targets, "seed": seed, "variations": variations, "keep": keep, "sr": sr,
                  "weights": weights, "schedule": schedule}  # fmt: skip
        self._check_open()
        call = plan_call(self._parts, prompts, given)
        stages = 1 if call.sr_run is None else 2
        with Bar(progress, len(call.request.samples) * variations * stages) as bar:
            events = make(call)
            while True:
                try:
                    bar.show(next(events)[0])
                except StopIteration as end:
                    return finish(call, end.value)

    __call__ = generate

    def stream(self, *prompts: str, **given: Any) -> Iterator[StreamEvent]:
        """As `generate`, step by step: an event after each decoding step, and a last one with the `results`.

        The arguments are those of `generate`, and are checked at once; steps are computed when they are read.
        It can be closed at any moment.
        """
        self._check_open()
        call = plan_call(self._parts, prompts, {n: value for n, value in given.items() if n != "progress"})

        def events() -> Iterator[StreamEvent]:
            made, last = make(call), StreamEvent("", 0, 0, 0, 0, ())
            try:
                while True:
                    try:
                        _, seen = next(made)
                    except StopIteration as end:
                        results = finish(call, end.value)
                        break
                    if seen is not None:
                        yield (last := seen)
            finally:
                made.close()
            yield last.with_results(results)

        return events()

    def tokenize(self, **values: Any) -> dict[str, Ids | list[Ids]]:
        """Tokens of values: `model.tokenize(rgb=picture, depth=array)["tok_rgb"]` is numpy (L,) int64.

        Values are those that conditions take; of a picture that is no square, its centre. A list of values
        gives a list of rows.
        """
        self._check_open()
        return tokenize(self._parts.base, values)

    def decode(self, *, seed: int = 0, **tokens: Any) -> dict[str, Any]:
        """Values of tokens: `model.decode(tok_rgb=ids)["rgb"]` is a picture, others as in `Result`.

        tokens: (L,) ids, or a list of such. seed: of the noise of tokenizers that decode by diffusion.
        """
        self._check_open()
        return decode(self._parts.base, tokens, seed)

    def request(self, *prompts: str, out: str | os.PathLike[str], **given: Any) -> Request:
        """The request of a run that writes a folder, for `fourm.run`; arguments as of `generate`.

        Super-resolution is a run of its own, which `fourm sr` does.
        """
        self._check_open()
        return replace(plan_call(self._parts, prompts, given).request, out=output_path(out))

    def close(self) -> None:
        """Free the memory of the model; `fourm.load` loads it again."""
        self._is_closed = True
        with _LOADING:
            if self in _LOADED:
                _LOADED.remove(self)
        for one in (self._parts.base, *self._parts.sr_models.values()):
            one.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{self.device}, {self.dtype}"
        return f"Model {self.name} ({state}): reads {', '.join(self.reads)}; makes {', '.join(self.writes)}"

    def _check_open(self) -> None:
        if self._is_closed:
            raise UsageError(f"the model {self.name} is closed; fourm.load gives it again")


_LOADED, _LOADING = list[Model](), Lock()  # models that are not closed


def load(
    name: str | os.PathLike[str] = DEMO, *, device: str = "auto", dtype: str = "auto",
    sr: str | bool | None = None, tokenizers: Mapping[str, str] | None = None, attention: str = "sdpa",
) -> Model:  # fmt: skip
    """A model by its short name, Hub id, folder or .safetensors file, on a device.

    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or "mps". dtype: "auto", "float32",
    "tf32", "bfloat16" or "float16". sr: True, or the name of a model: all calls do super-resolution too.
    tokenizers: others than the model's own, by key (`{"rgb": "tok-rgb"}`). attention: "sdpa" or "xformers".
    Equal arguments give the model that is loaded already, unless it was closed or its files have changed.
    UsageError: an unknown name or setting; MissingError: what is not on this machine, and how to get it.
    """
    files = with_parts(find_model(os.fspath(name)), dict(tokenizers or {}))
    where = choose_device(device, World())
    kind = choose_dtype(dtype, where)
    _warn_of_order(where.type)
    status = files.weights.stat()
    made_from = (files, where, kind, sr, attention, status.st_mtime_ns, status.st_size, status.st_ino)
    with _LOADING:
        for model in _LOADED:
            if model._made_from == made_from:
                return model
        parts = Parts(LoadedModel(files, where, kind, attention), sr)
        if sr:
            parts.find_sr_model(None if sr is True else sr)
        _LOADED.append(Model(parts, made_from))
        return _LOADED[-1]


@cache
def _warn_of_order(device_type: str) -> None:
    """Warn once where torch was imported before this library could set the variable."""
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if device_type == "cpu" and has_mkl and MKL not in os.environ:
        line = f'import os; os.environ["{MKL}"] = "AUTO,STRICT"'
        warnings.warn(
            f"torch was imported before fourm, so last bits may depend on the batch size; put first: {line}",
            stacklevel=3,
        )


def run(request: Request, model: "Model | str | None" = None) -> Iterator[Event]:
    """The run that writes a folder, as `fourm generate` does: yields its events, and can be closed anywhere.

    request: from `Model.request`; with `replace(request, resume=True)` it goes on where it was stopped.
    model: a loaded one, on whose device and in whose dtype it runs, or a name; None: the request's own.
    What is saved stays saved. UsageError: the folder is not empty, or the request is for another model.
    """
    if isinstance(model, str):
        model = load(model, device=request.device, dtype=request.dtype, attention=request.attention)
    if model is None:
        return run_request(request)
    loaded = model._parts.base
    if request.model != loaded.files:
        raise UsageError(f"the request is for {request.model.name}, not for {model.name}, which is loaded")
    request = replace(request, device=model.device, dtype=model.dtype, attention=loaded.attention)
    return run_request(request, loaded)
