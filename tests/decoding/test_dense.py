"""Dense predictions: several texts of one picture, decoded together and joined into one value."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourm.codecs.figures import draw_instances
from fourm.codecs.table import build_codec
from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise, probabilities
from fourm.modalities.figures import join_passes, parse_instances
from fourm.modalities.registry import RELEASED, Kind
from fourm.modalities.text import EOS_ID, Structured, WordPiece
from fourm.networks.model import FourM
from fourm.networks.state import Batch, Slot
from fourm.schedule.chain import Chain, Step
from tests.codecs.test_figures import formula
from tests.decoding.test_engine import SMALL, build_small, last, load_fixture, make_chain, make_step, pictures
from tests.networks.test_model import cases, read_batch

DENSE = RELEASED.get("sam_instance")


@dataclass(frozen=True)
class Given:
    """For each text and token a uniform in the middle of what makes the recorded token."""

    table: Tensor  # (P, tokens)

    def uniforms(self, step: int, purpose: int, positions: Tensor) -> Tensor:
        rows = positions.view(len(self.table), -1) - positions.view(len(self.table), -1)[:, :1]
        return self.table.gather(1, rows.clamp_max(self.table.shape[1] - 1)).view(1, -1)


@pytest.mark.parametrize("plain", [False, True])
def test_three_recorded_passes_become_the_recorded_sequence(
    golden: Path, unpacked: Path, plain: bool
) -> None:
    """Our logits and filters, with the reference's generator, draw its tokens; the engine joins them."""
    (case,) = cases(golden, "swiglu_qknorm", "sam_dense")
    arrays = dict(np.load(golden / "fm" / "swiglu_qknorm" / case["file"]))
    batch, model = read_batch(golden, "swiglu_qknorm", case, arrays), load_fixture(unpacked, "swiglu_qknorm")
    raw = torch.from_numpy(arrays["raw_ids"]).long()
    passes, length = raw.shape
    places = torch.arange(length - 1).expand(passes, -1)
    context = model.encode(batch.select(torch.zeros(passes, dtype=torch.int64)))
    logits = model.decode("sam_instance", places, raw[:, :-1], context)
    chances = probabilities(logits, case["temperature"], 0, case["top_p"])
    generator = torch.Generator().manual_seed(case["seed"])
    drawn = [torch.multinomial(chances[:, j], 1, generator=generator) for j in range(length - 1)]
    assert torch.equal(torch.cat(drawn, dim=1), raw[:, 1:])

    sums, mine = chances.cumsum(dim=-1), raw[:, 1:, None]
    middle = (sums.gather(-1, mine) - chances.gather(-1, mine) / 2)[..., 0] / sums[..., -1]
    step = Step(0, "sam_instance", "autoregressive", 256, case["temperature"], passes=passes)
    chain = make_chain([step], top_p=case["top_p"])
    reports = list(Engine(model, plain=plain).run(batch, chain, Given(middle)))
    out = last(reports).slots["sam_instance"]
    assert out.values.tolist() == arrays["merged.tensor"].tolist()
    assert bool(out.known.all())
    assert not bool(out.wanted.any())
    assert out.lengths is not None
    assert out.lengths.tolist() == [[22, 8, 3]]
    assert [r.fixed for r in reports] == [3] * 23 + [0]
    assert [(r.done, r.total) for r in reports[-2:]] == [(69, 69), (69, 69)]


@pytest.fixture(scope="module")
def small() -> FourM:
    return build_small()


def texts_step(passes: int = 1, scale: float = 1.0, temperature: float = 1.5) -> Step:
    step = make_step(0, "caption", "autoregressive", 12, temperature, scale, ("tok_a@32",))
    return replace(step, passes=passes)


def engine(network: Any, **changes: Any) -> Engine:
    """An engine for a vocabulary of 40, most of which are words."""
    return Engine(network, range(4, 7), **changes)


def decode(engine: Engine, batch: Batch, chain: Chain) -> Batch:
    noise = Noise.for_samples(4, [(key, 0) for key in batch.keys])
    return last(list(engine.run(with_targets(batch, chain, SMALL), chain, noise)))


def passes_of(slot: Slot, row: int) -> list[list[int]]:
    """The ids of each pass of one sample."""
    ids = slot.values[row][slot.known[row]]
    if slot.lengths is None:
        return [ids.tolist()]
    return [part.tolist() for part in ids.split(slot.lengths[row].tolist())]


NETWORK = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None
)


@NETWORK
@given(
    passes=st.integers(1, 7), count=st.integers(1, 4), max_rows=st.integers(1, 40),
    scale=st.sampled_from([1.0, 2.0, 0.0, -1.5]),
)  # fmt: skip
def test_passes_depend_on_their_sample_and_number_alone(
    small: FourM,
    passes: int,
    count: int,
    max_rows: int,
    scale: float,
) -> None:
    """Whatever is decoded together: fast as plain, chunks of any size, neighbours or none."""
    chain = make_chain([texts_step(passes, scale)], top_p=0.95)
    whole = decode(engine(small, max_rows=max_rows), pictures(count), chain).slots["caption"]
    plain = decode(engine(small, plain=True, max_rows=1000), pictures(count), chain).slots["caption"]
    last_one, nine = torch.tensor([count - 1]), make_chain([texts_step(9, scale)], top_p=0.95)
    alone = decode(engine(small), pictures(4).select(last_one), nine).slots["caption"]
    single = decode(engine(small), pictures(count), make_chain([texts_step(1, scale)], top_p=0.95))
    for row in range(count):
        made = passes_of(whole, row)
        assert len(made) == passes
        assert made == passes_of(plain, row)
        assert made[0] == passes_of(single.slots["caption"], row)[0]
    assert passes_of(whole, count - 1) == passes_of(alone, 0)[:passes]
    assert not bool(whole.wanted.any())


def test_passes_have_noise_of_their_own(small: FourM) -> None:
    out = decode(engine(small), pictures(2), make_chain([texts_step(8)])).slots["caption"]
    for row in (0, 1):
        made = passes_of(out, row)
        assert len({tuple(text) for text in made}) == 8


def test_without_temperature_all_passes_are_equal(small: FourM) -> None:
    out = decode(engine(small), pictures(1), make_chain([texts_step(3, temperature=0.0)])).slots["caption"]
    first, *others = passes_of(out, 0)
    assert others == [first, first]


def test_a_finished_target_is_read_with_all_its_passes(small: FourM) -> None:
    steps = [texts_step(3), make_step(1, "tok_b@32", "maskgit", 16, 0.0)]
    out = decode(engine(small), pictures(2), make_chain(steps))
    joined = replace(out.slots["caption"], lengths=None)
    given = pictures(2).with_slot("caption", joined)
    again = decode(engine(small), given, make_chain([replace(steps[1], index=0)]))
    assert torch.equal(out.slots["tok_b@32"].values, again.slots["tok_b@32"].values)


def long_steps(passes: int, later: Step | None) -> Chain:
    return make_chain([texts_step(passes), *([later] if later else [])])


def test_what_is_too_long_to_be_read_fails_its_sample_and_no_other(small: FourM) -> None:
    later = make_step(1, "tok_b@32", "roar", 16, 1.0, 2.0, ("caption",))
    alone = decode(engine(small), pictures(3), long_steps(60, None)).slots["caption"]
    assert alone.lengths is not None
    sums = alone.lengths.sum(dim=1)
    limit = int(sums.sort().values[1])  # two of the three rows fit
    network = Narrow(small, limit)
    chain = long_steps(60, later)
    batch = with_targets(pictures(3), chain, SMALL)
    noise = Noise.for_samples(4, [(key, 0) for key in batch.keys])
    reports = list(engine(network).run(batch, chain, noise))
    (told,) = [r.faults for r in reports if r.faults]
    longest = int(sums.argmax())
    assert told == {
        longest: f"caption: its 60 passes have {int(sums.max())} tokens, but the model can read {limit} for "
        "tok_b@32; make caption the last target, or ask for fewer passes"
    }
    out = last(reports)
    for row in {0, 1, 2} - {longest}:
        assert passes_of(out.slots["caption"], row) == passes_of(alone, row)
    assert out.slots["caption"].values.shape[1] <= limit
    rows = torch.tensor(sorted({0, 1, 2} - {longest}))
    others = decode(engine(network), pictures(3).select(rows), chain).slots["tok_b@32"]
    assert torch.equal(out.slots["tok_b@32"].values[rows], others.values)


@pytest.mark.parametrize(
    "later",
    [
        None,
        Step(1, "tok_b@32", "roar", 16, 1.0, frozenset(["caption"])),  # scale 0: it never sees the caption
    ],
)
def test_what_no_later_target_sees_may_have_any_length(small: FourM, later: Step | None) -> None:
    out = decode(engine(Narrow(small, 20)), pictures(2), long_steps(60, later)).slots["caption"]
    assert out.lengths is not None
    assert int(out.known.sum()) == int(out.lengths.sum()) > 40


def test_a_model_that_cannot_read_its_own_target_has_no_limit(small: FourM) -> None:
    later = make_step(1, "tok_b@32", "roar", 16, 1.0)
    reports = list(
        engine(Narrow(small, None)).run(
            with_targets(pictures(1), long_steps(60, later), SMALL), long_steps(60, later),
            Noise.for_samples(4, [("s0", 0)]),
        )
    )  # fmt: skip
    assert not any(r.faults for r in reports)


@dataclass(frozen=True)
class Narrow:
    """A network that says of itself how much of a sequence it takes."""

    network: FourM
    limit: int | None
    attention: str = "sdpa"

    @property
    def reads(self) -> Any:
        return self.network.reads

    def room_for(self, sequence: str) -> int | None:
        return self.limit

    def embed(self, *args: Any) -> Any:
        return self.network.embed(*args)

    def encode_embedded(self, *args: Any) -> Any:
        return self.network.encode_embedded(*args)

    def decode(self, *args: Any) -> Any:
        return self.network.decode(*args)

    def start_cache(self, *args: Any) -> Any:
        return self.network.start_cache(*args)


def test_the_real_network_takes_as_many_as_its_table_has_rows(small: FourM) -> None:
    assert small.room_for("caption") == 512
    assert small.room_for("t5_caption") is None


@pytest.fixture(scope="module")
def words(golden: Path) -> WordPiece:
    return WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")


def slot_of(passes: list[list[int]]) -> Slot:
    ids = torch.tensor([[token for text in passes for token in text]], dtype=torch.int64)
    known = torch.ones_like(ids, dtype=torch.bool)
    return Slot(Kind.SEQUENCE, ids, known, ~known, torch.tensor([[len(text) for text in passes]]))


def test_recorded_texts_as_passes_are_joined_with_all_their_instances(
    golden: Path, words: WordPiece, tmp_path: Path
) -> None:
    texts = [
        case["string"] for case in json.loads((golden / "data" / "sam_instance.json").read_text())["cases"]
    ]
    codec = build_codec(DENSE, wordpiece=words)
    (value,) = codec.decode(slot_of([[*words.encode(text), EOS_ID] for text in texts]))
    assert value == join_passes(
        [Structured(parse_instances(text)[0], text, parse_instances(text)[1]) for text in texts]
    )
    found = [i for group in value.value for i in group.instances]
    assert (
        len(found) == sum(len(group.instances) for text in texts for group in parse_instances(text)[0]) > 20
    )
    (tmp_path / "dense.json").write_bytes(codec.pack(value))
    again = codec.read(tmp_path / "dense.json")
    assert again.value == value.value
    assert len(json.loads((tmp_path / "dense.json").read_text())[0]["bbox"]) == len(set(found))


def test_a_picture_of_joined_passes_shows_what_each_of_them_shows(
    golden: Path, words: WordPiece, tmp_path: Path
) -> None:
    """From ids to a value, to a file, back and to a picture, with masks and without."""
    cases = json.loads((golden / "data" / "sam_instance.json").read_text())["cases"]
    texts = [cases[number]["string"] for number in (0, 1, 4)]
    codec = build_codec(DENSE, wordpiece=words)
    (value,) = codec.decode(slot_of([[*words.encode(text), EOS_ID] for text in texts]))
    (tmp_path / "dense.json").write_bytes(codec.pack(value))
    groups = codec.read(tmp_path / "dense.json").value
    painted = np.asarray(draw_instances(groups, formula)).any(axis=-1)
    singles = [np.asarray(draw_instances(parse_instances(text)[0], formula)).any(axis=-1) for text in texts]
    assert np.array_equal(painted, np.logical_or.reduce(singles))
    colours = np.unique(np.asarray(draw_instances(groups, formula)).reshape(-1, 3), axis=0)
    assert len(colours) == 1 + 5  # black, and of six masks two are of one thing
    boxes = np.asarray(codec.picture(value))
    assert np.array_equal(boxes, np.asarray(codec.picture(codec.read(tmp_path / "dense.json"))))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.integers(0, 12)), min_size=2, max_size=5)
)
def test_a_joined_value_is_what_its_passes_say_alone(
    golden: Path, words: WordPiece, cuts: list[tuple[int, bool, int]]
) -> None:
    """Also where passes are empty, cut off in the middle, or go on after [EOS]."""
    source = json.loads((golden / "data" / "sam_instance.json").read_text())["cases"]
    ids = words.encode(source[0]["string"])
    passes = [[*ids[:end], *([EOS_ID] if has_end else []), *ids[:more]] for end, has_end, more in cuts]
    codec = build_codec(DENSE, wordpiece=words)
    (dense,) = codec.decode(slot_of(passes))
    singles = [codec.decode(replace(slot_of([one]), lengths=None))[0] for one in passes]
    assert dense == join_passes(singles)


def test_lengths_go_with_their_rows(golden: Path, words: WordPiece) -> None:
    ids = words.encode(json.loads((golden / "data" / "sam_instance.json").read_text())["cases"][0]["string"])
    values = torch.tensor([[*ids, *ids], [*ids, *ids]])
    known = torch.ones_like(values, dtype=torch.bool)
    lengths = torch.tensor([[len(ids), len(ids)], [0, 2 * len(ids)]])
    slot = Slot(Kind.SEQUENCE, values, known, ~known, lengths).select(torch.tensor([1, 0])).to("cpu")
    codec = build_codec(DENSE, wordpiece=words)
    second, first = codec.decode(slot)
    assert len(first.value) == len(second.value) > 2
    assert second.text.startswith(" point")  # an empty pass, then the other
