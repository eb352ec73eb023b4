"""The chain: which targets are decoded, in which steps, from what, and with which guidance."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from fourm.errors import ScheduleError, UsageError, near_match
from fourm.modalities.figures import JOINED
from fourm.modalities.registry import TOKENS, Kind, Modality
from fourm.modalities.typed import Limits
from fourm.schedule.keeps import Keep
from fourm.schedule.schemes import CURVES, GREEDY_BELOW, SCHEMES, TOKEN_CURVES, parse_curve

_RANGES: Mapping[str, tuple[str, Limits]] = {  # settings that are numbers: how messages call one
    "num_tokens": ("{} tokens", Limits(1)),
    "num_steps": ("{} decoding steps", Limits(1)),
    "passes": ("{} passes", Limits(1, 1000)),  # a dense prediction has tens of them
    "temperature": ("the temperature {:g}", Limits(0)),
    # Beyond it sums of logits overflow, and long before it the strongest token always wins.
    "guidance": ("the guidance scale {:g}", Limits(-1_000_000, 1_000_000)),
}
KEPT = ":kept"  # behind a target in sets of guided modalities: the part of it that is given
_CHOICES: Mapping[str, tuple[str, Collection[str]]] = {  # settings that name a row of a table
    "scheme": ("scheme", SCHEMES),
    "token_curve": ("token schedule", TOKEN_CURVES),
}


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """How one target is decoded, every setting known."""

    target: str
    num_tokens: int  # a sequence: at most
    scheme: str
    num_steps: int | None = None  # None for a causal scheme: it goes token by token
    token_curve: str = "linear"
    temperature: float = 1.0
    temperature_curve: str = "constant"
    guidance: float = 1.0  # 1 = none
    guidance_curve: str = "constant"
    passes: int = 1  # independent predictions that are joined into one value
    grid: tuple[int, int] | None = None  # rows and columns of an image's tokens; some schemes need it

    def __post_init__(self) -> None:
        problems = [*filter(None, (field_problem(one.name, getattr(self, one.name)) for one in fields(self)))]
        if self.num_steps is None and self.scheme in SCHEMES and not SCHEMES[self.scheme].causal:
            problems.append(f"the scheme '{self.scheme}' needs a number of decoding steps")
        if self.grid is None and self.scheme in SCHEMES and SCHEMES[self.scheme].ranks:
            problems.append(f"the scheme '{self.scheme}' needs the rows and columns of the tokens")
        if problems:
            raise ScheduleError(*(f"{self.target}: {problem}" for problem in problems))


def field_problem(field: str, value: object) -> str:
    """What is wrong with one setting of a target, whatever the others are; "" if nothing is."""
    if field in _CHOICES and value not in _CHOICES[field][1]:
        what, known = _CHOICES[field]
        return f"unknown {what} '{value}'{near_match(str(value), known) or '; known are ' + ', '.join(known)}"
    name, _, kind = field.partition("_")
    if kind == "curve" and name in CURVES:
        try:
            parse_curve(str(value), name)
        except UsageError as error:
            return str(error)
    if field in _RANGES and isinstance(value, int | float):
        what, limits = _RANGES[field]
        if not (limits.least <= value <= limits.most and value < math.inf):
            return f"{what.format(value)}; give {limits}"
    return ""


def joining_problem(row: Modality) -> str:
    """Why several predictions of a modality cannot be made one; "" if they can."""
    if row.kind is Kind.SEQUENCE and row.codec in JOINED:
        return ""
    return f"predictions of {row.name} cannot be joined, only those of {' or '.join(JOINED)}"


@dataclass(frozen=True, slots=True)
class Branch:
    """One guided pass: what it sees of the guided modalities, and its weight in the sum."""

    visible: frozenset[str]
    weight: float


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step."""

    index: int  # in the chain, from 0, as in JSON
    target: str
    scheme: str
    num_tokens: int  # fixed by this step; for a causal scheme at most
    temperature: float
    # Hidden in the base pass; branch i sees its `visible` part of them. TARGET + KEPT is the given part of a
    # target: what was decoded of it stays visible.
    guided: frozenset[str] = frozenset()
    branches: tuple[Branch, ...] = ()  # () = one plain pass, with nothing but `guided` hidden
    removes_hidden: bool = False  # True (weighted guidance): a hidden modality is removed; else it is emptied
    passes: int = 1  # of a causal scheme: independent predictions, each of `num_tokens` at most
    passed_over: int = 0  # steps before it that the samples don't need, because a part of targets is given

    @property
    def number(self) -> int:
        """Its number in the chain of all steps, from 1, as people read it."""
        return self.index + self.passed_over + 1

    @property
    def guidance(self) -> float:
        """The guidance scale; 1 without guidance, the sum of the weights with several branches."""
        return sum((branch.weight for branch in self.branches), 0.0) if self.guided else 1.0

    @property
    def visibility(self) -> tuple[object, ...]:
        """What its passes see; steps in which it is equal see the same but for the target."""
        return self.target, self.guided, tuple(one.visible for one in self.branches), self.removes_hidden

    @property
    def kind(self) -> "Step":
        """The step without its numbers, which may differ where everything else is equal."""
        branches = tuple(replace(one, weight=1.0) for one in self.branches)
        heat = float(self.is_greedy)
        return replace(self, index=0, num_tokens=0, passed_over=0, temperature=heat, branches=branches)

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken, instead of a draw."""
        return self.temperature <= GREEDY_BELOW

    def sees(self, modality: str) -> bool:
        """Whether any of the step's passes sees this modality, once it is known."""
        return modality not in self.guided or any(modality in branch.visible for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Chain:
    """The whole plan of one model: conditions in, targets out, one step after the other."""

    conditions: tuple[str, ...]
    specs: tuple[TargetSpec, ...]
    steps: tuple[Step, ...]
    top_k: int | float = 0  # int: that many tokens; float: that share of the vocabulary; 0 = off
    top_p: float = 1.0  # 1 = off
    grow: bool = True  # finished targets join the guided conditions
    weights: tuple[tuple[str, float], ...] = ()  # weighted conditions, one branch each
    raw: frozenset[str] = frozenset()  # conditions that come as values, to be tokenised first
    keeps: tuple[Keep, ...] = ()  # targets of which a part is given
    keep_guided: bool = False  # True: what is given of them is hidden from unguided passes
    full: tuple[tuple[Branch, ...], ...] = ()  # of each target: its branches before its guidance curve

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, in order."""
        return tuple(spec.target for spec in self.specs)

    @property
    def given(self) -> tuple[str, ...]:
        """Everything that is read of a sample: conditions, and targets of which a part is given."""
        return (*self.conditions, *(keep.target for keep in self.keeps))

    @property
    def values(self) -> frozenset[str]:
        """Grids that are read as values, which are then tokenised: conditions, and partly given targets."""
        return self.raw | {keep.target for keep in self.keeps if keep.raw}

    @property
    def modalities(self) -> tuple[str, ...]:
        """Everything that a sample has in the end: conditions and targets."""
        return (*self.conditions, *self.targets)

    def for_counts(self, counts: Mapping[str, int]) -> "Chain":
        """The chain for samples of which only so many tokens are wanted, by target; other targets stay.

        A target of which nothing is wanted has no step.
        """
        steps = list[Step]()
        for spec, branches in zip(self.specs, self.full, strict=True):
            first = next(step for step in self.steps if step.target == spec.target)
            passed_over = first.index - len(steps)
            for step in _steps_of(spec, counts.get(spec.target, spec.num_tokens), branches, self.weights):
                steps.append(replace(step, index=len(steps), passed_over=passed_over))
        return replace(self, steps=tuple(steps))

    def expected(self) -> "Chain":
        """The chain of a sample, as far as it is known before samples are read: shares of tokens are."""
        totals = {spec.target: spec.num_tokens for spec in self.specs}
        kept = {keep.target: keep.num_kept(totals[keep.target]) for keep in self.keeps}
        wanted = {name: totals[name] - count for name, count in kept.items() if count is not None}
        return self.for_counts(wanted) if wanted else self

    @property
    def num_tokens(self) -> dict[str, int]:
        """How many tokens each target gets; a sequence at most, in each of its passes."""
        names = dict.fromkeys(step.target for step in self.steps)
        return {name: sum(s.num_tokens for s in self.steps if s.target == name) for name in names}

    def guided_by(self, step: Step) -> list[str]:
        """What is hidden in the base pass of a step, in the order of the chain."""
        names = (*self.modalities, *(keep.target + KEPT for keep in self.keeps))
        return [name for name in dict.fromkeys(names) if name in step.guided]

    def to_json(self) -> dict[str, object]:
        """The chain as plain data, as `fourm schedule show --json` prints it."""
        raw: dict[str, object] = {"tokenised": sorted(self.raw)} if self.raw else {}
        rows = list[dict[str, object]]()
        for step in self.steps:
            guided = self.guided_by(step)
            row = {"index": step.index, "target": step.target, "scheme": step.scheme,
                   "num_tokens": step.num_tokens, "temperature": step.temperature,
                   "guidance": step.guidance, "guided": guided}  # fmt: skip
            if step.passes > 1:
                row["passes"] = step.passes
            if step.removes_hidden or len(step.branches) > 1:  # also of one weight, or zeros alone
                row["branches"] = [{"visible": sorted(b.visible), "weight": b.weight} for b in step.branches]
            rows.append(row)
        kept = [{"target": keep.target, "where": keep.where, "tokenised": keep.raw} for keep in self.keeps]
        if kept:
            raw |= {"kept": kept, "keep_guided": self.keep_guided}
        return {"conditions": list(self.conditions), **raw, "top_k": self.top_k, "top_p": self.top_p,
                "steps": rows}  # fmt: skip

    def to_text(self) -> str:
        """The chain as command-line options that parse to the same chain."""
        weights = dict(self.weights)
        names = {c: c.removeprefix(TOKENS) if c in self.raw else c for c in self.conditions}
        cond = ",".join(f"{n}:{weights[c]!r}" if c in weights else n for c, n in names.items()) or "none"
        options = [f"--cond {cond}", *(f"--keep {keep.to_text()}" for keep in self.keeps)]
        options += ["--keep-guided"] if self.keep_guided else []
        for spec in self.specs:
            words = [f"tokens={spec.num_tokens}", f"scheme={spec.scheme}", f"temp={spec.temperature!r}"]
            if not SCHEMES[spec.scheme].causal:
                words += [f"steps={spec.num_steps}", f"token-schedule={spec.token_curve}"]
                words += [f"temp-schedule={spec.temperature_curve}"]
            words += [f"passes={spec.passes}"] if spec.passes > 1 else []
            words += [f"cfg={spec.guidance!r}", f"cfg-schedule={spec.guidance_curve}"]
            options.append(f"--target {spec.target}:{','.join(words)}")
        grow = "--grow-cond" if self.grow else "--no-grow-cond"
        return " ".join((*options, f"--top-k {self.top_k} --top-p {self.top_p!r}", grow))


def make_chain(
    specs: Sequence[TargetSpec], conditions: Sequence[str], *, grow: bool = True,
    weights: Mapping[str, float] | None = None, reads: Collection[str] | None = None,
    top_k: int | float = 0, top_p: float = 1.0, guided_kept: Collection[str] = (),
) -> Chain:  # fmt: skip
    """The chain of settings that are known to be good.

    weights: conditions that get a branch of their own. reads: what the encoder takes (None = everything);
    a finished target that it cannot read does not join the guided conditions. guided_kept: targets whose
    given part is a guided condition; the given part of other targets is seen by all passes.
    """
    weights, steps, finished = dict(weights or {}), list[Step](), [target + KEPT for target in guided_kept]
    named = tuple((condition, weights[condition]) for condition in conditions if condition in weights)
    full = list[tuple[Branch, ...]]()
    for spec in specs:
        # Weights: one pass for each weighted condition and, with the target's own scale, for each finished
        # target; conditions without a weight are seen by every pass. Without weights one pass sees all.
        if weights:
            passes = [*named, *((target, spec.guidance) for target in finished)]
            full.append(tuple(Branch(frozenset([name]), weight) for name, weight in passes))
        else:
            full.append((Branch(frozenset([*conditions, *finished]), spec.guidance),))
        for step in _steps_of(spec, spec.num_tokens, full[-1], named):
            steps.append(replace(step, index=len(steps)))
        if grow and (reads is None or spec.target in reads):
            finished.append(spec.target)
    return Chain(
        tuple(conditions), tuple(specs), tuple(steps), top_k, top_p, grow, named, full=tuple(full)
    )  # fmt: skip


def _steps_of(
    spec: TargetSpec, total: int, full: Sequence[Branch], weights: Collection[object]
) -> Iterator[Step]:
    """The steps that decode `total` tokens of a target, each with index 0.

    full: its branches at its whole guidance scale, which belong to `weights` of conditions if there are some.
    """
    sizes = _step_sizes(spec, total)
    scales = parse_curve(spec.guidance_curve, "guidance")(spec.guidance, [tokens for tokens, _ in sizes])
    for (tokens, temperature), scale in zip(sizes, scales, strict=True):
        # Weights are the same in all steps. Without them, a step of scale 1 is a plain pass.
        passes = full if weights else [replace(one, weight=scale) for one in full if scale != 1.0]
        guided = frozenset[str]().union(*(branch.visible for branch in passes))
        branches = tuple(branch for branch in passes if branch.visible and branch.weight != 0)
        yield Step(
            0, spec.target, spec.scheme, tokens, temperature, guided, branches, bool(weights), spec.passes
        )  # fmt: skip


def _step_sizes(spec: TargetSpec, total: int) -> list[tuple[int, float]]:
    """Number of tokens and temperature of each step that decodes `total` tokens of a target.

    A curve can have steps without a token, which are left out.
    """
    if total == 0 or SCHEMES[spec.scheme].causal:
        return [(total, spec.temperature)] if total else []
    token_curve = TOKEN_CURVES["linear" if SCHEMES[spec.scheme].equal_steps else spec.token_curve]
    counts = token_curve(spec.num_steps or 1, total)
    temperatures = parse_curve(spec.temperature_curve, "temperature")(spec.temperature, counts)
    return [(n, float(t)) for n, t in zip(counts, temperatures, strict=True) if n]
