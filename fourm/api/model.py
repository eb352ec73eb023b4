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

from fourm import MKL_VALUE, MKL_VARIABLE
from fourm.api.calls import LoadedModels, plan_call, plan_features
from fourm.api.making import StreamEvent, Vectors, embed, make
from fourm.api.progress import Bar
from fourm.api.results import Result
from fourm.api.schedule import Schedule
from fourm.api.tokens import Ids, decode, tokenize
from fourm.errors import UsageError
from fourm.files.opening import output_path, path_text
from fourm.hub.catalogue import DEMO
from fourm.hub.files import ModelFiles, find_model, with_parts
from fourm.hub.header import AUTO, FULL, Weights
from fourm.inputs.request import Request, check_attention, check_kept_weights, check_seed
from fourm.inputs.world import World
from fourm.networks.precision import check_compiler, choose_dtype
from fourm.results.events import Event
from fourm.runs.device import choose_device, resolve_dtype, resolve_weights
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import run as run_request


class Model:
    """A model on a device, made by `fourm.load`: loads each of its networks at the first use, and keeps it.

    Calls may come from several threads: each decoding step holds the model, so a stream that was not finished
    blocks nobody. An interrupt leaves it usable. As a context (`with fourm.load(...) as model`) it is closed
    at the end.
    """

    def __init__(self, models: LoadedModels, made_from: tuple[object, ...] = ()) -> None:
        self._models, self._made_from, self._is_closed = models, made_from, False

    @property
    def files(self) -> ModelFiles:
        """Where the model's files are, and what they say of it."""
        return self._models.base.files

    @property
    def name(self) -> str:
        """The model's short name, the id of its repository, or its path."""
        return self.files.name

    @property
    def device(self) -> str:
        """The device: "cpu", "cuda:0", "mps"."""
        return str(self._models.base.device)

    @property
    def dtype(self) -> str:
        """The dtype of weights and results: "float32", "tf32", "bfloat16" or "float16"."""
        return self._models.base.dtype

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
    ) -> Result | list[Result]:  # fmt: skip
        """Generate targets from prompts and conditions: one `Result`, or a list of them.

        prompts: captions. given: conditions by modality (`rgb=picture, depth=array, tok_clip=ids`), settings
        of the schedule (`steps=[49, 25], temps=[3.0, 0.5], cfg=3, top_p=0.8`), and these: `keys` (names of
        the samples; by default the paths of their files below the common folder, else their positions),
        `upright=False` (pictures are not turned by their EXIF tag), `batch_size` (samples that are decoded
        together), `detokenizer_steps` and `detokenizer_solver` (of tokenizers that decode by diffusion),
        `decode=False` (tokens only), `blend=False` (what is kept is not laid over the generated picture),
        `fit="pad"` (the whole picture, with a border, instead of its central square), `restore=True` (results
        in the size of the whole picture; NaN, class 255 or alpha 0 where the model did not see it),
        `best="1/8"` with `by="caption"` (of eight variations the one under which the model finds the caption
        most likely; see `Result.scores`). A condition that is a list, or several prompts, give a list of
        results; a single value serves all samples.
        targets: names, in one text or a list; None: the usual ones. seed: 0 to 2**64 - 1. variations: results
        for each sample, from 1 on. weights: of conditions in guidance, by name; 1 is usual, negative repels.
        keep: what stays of a modality that is given, by name, while the rest of it is made: a mask (H, W) of
        the upright picture's size (an array of bool, or of uint8 0..255, a picture, or a path; True and 128
        or more stay), a box (left, top, right, bottom) in fractions of the picture, or a share of the tokens,
        0 to 1. In a text, `[S_1]` marks what is to be filled.
        sr: True: super-resolution afterwards, by the model that belongs to this one; or the name of another.
        Results are ordered by sample, then by variation. UsageError, ScheduleError: the arguments are wrong
        or do not fit the model; MissingError: a tokenizer is not on this machine; SampleError: all samples
        failed. One that fails among others is a result with a `problem`, and a warning says so.
        """
        given |= {"targets": targets, "seed": seed, "variations": variations, "keep": keep, "sr": sr,
                  "weights": weights, "schedule": schedule}  # fmt: skip
        self._check_open()
        call = plan_call(self._models, prompts, given)
        stages = 1 if call.sr is None else 2
        drawn = call.request.num_drawn + (stages - 1) * call.request.num_variations
        with Bar(progress, len(call.request.samples) * drawn) as bar:
            results = None
            for event in make(call, bar.show):
                results = event.results
        assert results is not None  # the last event has them
        return results

    __call__ = generate

    def stream(self, *prompts: str, **given: Any) -> Iterator[StreamEvent]:
        """As `generate`, step by step: an event after each decoding step, and a last one with the `results`.

        The arguments and errors are those of `generate`. Arguments are checked at once; a step is computed
        when its event is asked for. It can be closed at any moment.
        """
        self._check_open()
        return make(plan_call(self._models, prompts, given))

    def tokenize(self, **values: Any) -> dict[str, Ids | list[Ids]]:
        """Tokens of values: `model.tokenize(rgb=picture, depth=array)["tok_rgb"]` is numpy (L,) int64.

        Values are those that conditions take; of a picture that is no square, its centre. A list of values
        gives a list of arrays. UsageError: the model has no tokens for a name; MissingError: the tokenizer is
        not on this machine; SampleError: a value has another shape, dtype or range.
        """
        self._check_open()
        return tokenize(self._models.base, values)

    def decode(self, *, seed: int = 0, **tokens: Any) -> dict[str, Any]:
        """Values of tokens: `model.decode(tok_rgb=ids)["rgb"]` is a picture, others as in `Result`.

        tokens: (L,) ids, or a list of such, which gives a list of values. seed: of the noise of tokenizers
        that decode by diffusion. Errors are those of `tokenize`.
        """
        self._check_open()
        check_seed(seed)
        return decode(self._models.base, tokens, seed)

    def embed(
        self, *prompts: str, pool: str = "mean", layers: str | int | Sequence[int | str] = "last",
        progress: bool = True, **given: Any,
    ) -> Vectors | list[Vectors]:  # fmt: skip
        """Features that the encoder makes of all conditions of a sample together: numpy (layers, D) float32.

        prompts and given: captions and conditions, as `generate` takes them (`rgb=picture, caption=text`); a
        list of values, or several prompts, give a list of arrays. Also `upright`, `fit` and `batch_size`.
        pool: "mean" over the tokens of the sample, or "tokens": (layers, N, D), each of its N tokens, the
        modalities in the order of their names. layers: "last" (the output of the encoder, after its norm),
        numbers of its blocks from 0 on, or a list of such. They are the features that `fourm embed` writes.
        UsageError: the arguments are wrong or do not fit the model; MissingError: a tokenizer is not on this
        machine; SampleError: a sample cannot be read or encoded.
        """
        self._check_open()
        call = plan_features(self._models, prompts, {**given, "pool": pool, "layers": layers})
        with Bar(progress, len(call.request.samples)) as bar:
            return embed(call, bar.show)

    def request(self, *prompts: str, out: str | os.PathLike[str], **given: Any) -> Request:
        """The request of a run that writes a folder, for `fourm.run`; arguments and errors as of `generate`.

        out: the folder. `sr` has no effect: super-resolution is a run of its own, which `fourm sr` does.
        """
        self._check_open()
        return replace(plan_call(self._models, prompts, given).request, out=output_path(out))

    def close(self) -> None:
        """Free the memory of the model; `fourm.load` loads it again."""
        self._is_closed = True
        with _LOADING:
            if self in _LOADED:
                _LOADED.remove(self)
        for loaded in (self._models.base, *self._models.sr_models.values()):
            loaded.close()

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
    name: str | os.PathLike[str] = DEMO, *, device: str = "auto", dtype: str = AUTO,
    sr: str | bool | None = None, tokenizers: Mapping[str, str] | None = None, attention: str = "sdpa",
    compile: bool = False, weights: Weights = FULL,
) -> Model:  # fmt: skip
    """A model by its short name, Hub id, folder or .safetensors file, on a device.

    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or "mps". dtype: "auto" (bfloat16 on
    NVIDIA GPUs that have it, else float32), "float32", "tf32", "bfloat16" or "float16". sr: True, or the name
    of a model: all calls do super-resolution too. tokenizers: others than the model's own, by key
    (`{"rgb": "tok-rgb"}`). attention: "sdpa", "xformers" or "varlen".
    compile: torch's compiler makes the blocks of the networks, which takes a minute and changes last bits.
    weights: "full", or "int8": the matrices of the transformer are rounded to whole numbers from -127 to 127,
    in a quarter of the memory of float32; results change.
    Equal arguments give the model that is loaded already, unless it was closed or its files have changed.
    UsageError: an unknown name or setting; MissingError: what is not on this machine, and how to get it.
    """
    check_attention(attention)
    check_kept_weights(weights)
    if not isinstance(tokenizers or {}, Mapping):
        raise UsageError(f"tokenizers: a {type(tokenizers).__name__}, where names by their keys belong")
    files = with_parts(find_model(path_text(name)), dict(tokenizers or {}))
    place = choose_device(device, World())
    dtype = choose_dtype(dtype, place)
    _warn_of_late_import(place.type)
    status = files.weights.stat()
    identity = status.st_mtime_ns, status.st_size, status.st_ino
    if compile:
        check_compiler(place, weights)
    made_from = (files, place, dtype, sr, attention, compile, weights, *identity)
    with _LOADING:
        for model in _LOADED:
            if model._made_from == made_from:
                return model
        models = LoadedModels(LoadedModel(files, place, dtype, attention, compile, weights), sr)
        if sr is not None and sr is not False:
            models.sr_model(None if sr is True else path_text(sr))  # a mistake in its name is told now
        _LOADED.append(Model(models, made_from))
        return _LOADED[-1]


@cache
def _warn_of_late_import(device_type: str) -> None:
    """Warn once where torch was imported before this library could set `MKL_VARIABLE`."""
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if device_type == "cpu" and has_mkl and MKL_VARIABLE not in os.environ:
        line = f'import os; os.environ["{MKL_VARIABLE}"] = "{MKL_VALUE}"'
        warnings.warn(
            "torch was imported before fourm.load, so last bits may depend on the batch size; "
            f"put first: {line}",
            stacklevel=3,  # names the line that calls `fourm.load`
        )


def run(request: Request, model: "Model | str | None" = None) -> Iterator[Event]:
    """The run that writes a folder, as `fourm generate` does: yields its events. Can be closed at any moment.

    request: from `Model.request`; with `replace(request, resume=True)` it goes on where it was stopped.
    model: a loaded one, on whose device and in whose dtype it runs, or a name; None: the request's own.
    What is saved stays saved. UsageError: the folder is not empty, or the request is for another model.
    """
    if isinstance(model, str):
        how = {name: getattr(request, name) for name in ("device", "attention", "compile")}
        dtype = resolve_dtype(request, choose_device(request.device, World()))
        model = load(model, dtype=dtype, weights=resolve_weights(request), **how)
    if model is None:
        return run_request(request)
    loaded = model._models.base
    if request.model != loaded.files:
        raise UsageError(f"the request is for {request.model.name}, not for {model.name}, which is loaded")
    request = replace(
        request, device=model.device, dtype=model.dtype, attention=loaded.attention, compile=loaded.compile,
        weights=loaded.weights,
    )  # fmt: skip
    return run_request(request, loaded)
