"""What is shown of a run: live, as lines, as JSON; and what never is."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fourm.errors import FourMError, ScheduleError, UsageError
from fourm.results.events import (
    Detokenized,
    Event,
    Failed,
    Finished,
    Loading,
    Malformed,
    Noted,
    Saved,
    Started,
    Stepped,
)
from fourm_cli import progress
from fourm_cli.app import explain


def events(failures: int = 1) -> Iterator[Event]:
    yield Loading("the demo model")
    yield Started(24, 4, batch_size=8, model="demo", device="cpu", steps=4, dtype="float32")
    for batch in range(3):
        for step in range(4):
            target = "tok_clip@64" if step < 2 else "tok_rgb@64"
            yield Stepped(
                ("a",), target, "roar", step, 4, 32 * (step + 1), 64, 256, 3.0, 2.0 - step // 2, 0.1
            )
        yield Saved(f"00000/{batch}", 0, (Path("rgb/a.png"),))
    for number in range(failures):
        yield Failed(f"00000/\x1b[31m{number}", 1, "caption:\ntoo long")
    yield Finished(saved=3, skipped=4, failed=failures, seconds=187.0)


class Clock:
    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def said(interval: float | None, tick: float, failures: int = 1) -> list[str]:
    out: list[str] = []
    tally = progress.Tally(clock=Clock(tick))
    assert list(progress.print_lines(events(failures), tally, out.append, interval)) == list(events(failures))
    return out


def test_plain_lines_come_at_a_calm_rate_and_failures_at_once() -> None:
    few, many = said(interval=1000, tick=0.1), said(interval=0, tick=0.1)
    assert few[0] == "loading the demo model"
    for fact in (
        "24 samples",
        "4 already complete",
        "model demo on cpu in float32",
        "4 decoding steps",
        "batches of 8",
    ):
        assert fact in few[1]
    assert few[2].startswith("0/20 samples; tok_clip@64 step 1/4, 32/64 tokens, 2560 tokens/s, ")
    assert few[3:] == [r"failed: 00000/\x1b[31m0 variation 1: caption:\ntoo long"]
    assert sum("step" in line for line in many) == 13


def test_what_is_counted_is_named_samples_or_results() -> None:
    def begun(variations: int) -> list[str]:
        start = Started(24, 0, 8, "demo", "cpu", 4, variations=variations)
        step = Stepped(("a",), "tok_rgb@64", "roar", 0, 4, 32, 64, 256, 3.0, 1.0, 0.1)
        out: list[str] = []
        tally = progress.Tally(clock=Clock(1))
        assert len(list(progress.print_lines([start, step], tally, out.append, 0))) == 2
        return out

    one, four = begun(1), begun(4)
    assert one[0].startswith("24 samples; model demo")
    assert one[1].startswith("0/24 samples; ")
    assert four[0].startswith("24 results, 4 variations each; model demo")
    assert four[1].startswith("0/24 results; ")


def test_a_run_without_decoding_steps_counts_its_samples() -> None:
    def samples() -> Iterator[Event]:
        yield Started(total=12, skipped=2, batch_size=1, model="demo", device="cpu", steps=0)
        yield Loading("tokenizers rgb")
        for number in range(9):
            yield Saved(f"f/{number}", 0)
        yield Failed("f/9", 0, "f/9.png: not a picture")
        yield Finished(saved=9, skipped=2, failed=1, seconds=3.0)

    for interval, lines in ((1000, 1), (0, 9), (None, 0)):  # None: a terminal, with bars
        out: list[str] = []
        tally = progress.Tally(clock=Clock(0.5))
        list(progress.print_lines(samples(), tally, out.append, interval))
        assert sum("/10 samples" in line for line in out) == lines
        assert out[0].startswith("12 samples, 2 already complete; ")
        assert "decoding" not in out[0]
        if interval is not None:
            assert out[2].startswith("1/10 samples, ")
            assert out[2].endswith(" left")


def test_only_the_first_failures_are_listed() -> None:
    out = [line for line in said(interval=None, tick=1, failures=50) if line.startswith("failed")]
    assert len(out) == progress.FAILURES_SHOWN
    assert out[-1].endswith("more failures are only counted here")


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_live_picture_fits_its_width_and_says_it_all(width: int) -> None:
    tally = progress.Tally(clock=Clock(1.0))
    for event in list(events())[:4]:
        tally.take(event)
    screen = Console(width=width, record=True, file=io.StringIO())
    screen.print(progress.live_display(tally))
    text = screen.export_text()
    assert len(text.splitlines()) == 3
    assert all(len(line) <= width for line in text.splitlines())
    for fact in (
        "samples",
        "0/20",
        "left",
        "tok_clip@64",
        "step 2/4",
        "64/64 tokens",
        "temperature 3.00",
        "guidance 2",
    ):
        assert fact in text


def test_the_time_left_follows_the_share_of_results() -> None:
    now = Clock(0.0)
    tally = progress.Tally(clock=now)
    assert tally.seconds_left is None
    for event in list(events())[1:8]:
        tally.take(event)
        now.now += 1.0
    assert tally.counts[Stepped] == 5
    # One of 20 is saved, and a quarter of the next is decoded.
    assert tally.seconds_left == pytest.approx((now.now - 1.0 + 0.1) * (20 - 1.25) / 1.25)
    tally.take(list(events())[-1])
    assert "3 samples generated, 4 already complete, 1 failed" in progress.summary(
        Finished(3, 4, 1, 187.0), tally
    )


def test_a_variation_of_which_the_best_are_kept_is_a_part_of_a_result() -> None:
    tally = progress.Tally(clock=Clock(0.0))
    tally.take(Started(4, 0, batch_size=4, model="demo", device="cpu", steps=1, variations=2, best_of=8))
    shown = []
    for _ in range(4):
        tally.take(Stepped((*"abcd",), "tok_rgb@64", "roar", 0, 1, 64, 64, 256, 0.0, 1.0, 5.0))
        shown.append(tally.decoded)
    assert shown == [1, 2, 3, 4]
    assert tally.ended == tally.todo == 4


def test_texts_which_have_an_event_for_each_token_do_not_end_early() -> None:
    tally = progress.Tally(clock=Clock(0.0))
    tally.take(Started(total=8, skipped=0, batch_size=2, model="demo", device="cpu", steps=2))
    left = []
    for batch in range(4):
        keys = (f"{batch}a", f"{batch}b")
        tally.take(Stepped(keys, "tok_rgb@64", "roar", 0, 2, 64, 64, 128, 0.0, 1.0, 5.0))
        for token in range(1, 11):  # of at most 20
            tally.take(Stepped(keys, "caption", "autoregressive", 1, 2, token, 20, 2, 0.0, 1.0, 0.5))
            left.append(tally.decoded)
        tally.take(Stepped(keys, "caption", "autoregressive", 1, 2, 10, 20, 0, 0.0, 1.0, 0.0))
        left.append(tally.decoded)
        for key in keys:
            tally.take(Saved(key, 0, ()))
    assert left == sorted(left)
    assert left[:11] == [*(1 + token / 20 for token in range(1, 11)), 2.0]
    assert left[10::11] == [2.0, 4.0, 6.0, 8.0]


def test_a_batch_that_is_saved_during_the_next_one_counts_as_decoded() -> None:
    tally, counts = progress.Tally(clock=Clock(0.1)), list[float]()
    tally.take(Started(4, 0, batch_size=2, model="demo", device="cuda:0", steps=2))
    for number in range(4):
        tally.take(Stepped(("a", "b"), "tok_rgb@64", "roar", number % 2, 2, 32, 64, 64, 1.0, 1.0, 0.1))
        counts.append(tally.decoded)
        if number == 2:
            tally.take(Saved("a", 0))
    assert counts == [1, 2, 3, 4]


def test_counts_of_one_have_their_singular() -> None:
    start = Started(1, 0, 1, "demo", "cpu", 1)
    headline = progress.headline(start)
    assert headline.startswith("1 sample; ")
    assert ", 1 decoding step, " in headline
    tally = progress.Tally(counts=Counter({Malformed: 1, Noted: 1}))
    said = progress.summary(Finished(1, 0, 0, 1.0), tally)
    assert "1 malformed text kept" in said
    assert "1 condition read in part" in said


def test_a_diffusion_is_shown_and_counted_at_its_own_pace() -> None:
    now, out = Clock(0.0), list[str]()
    tally = progress.Tally(clock=now)
    stream = [
        Started(total=2, skipped=0, batch_size=2, model="demo", device="cpu", steps=1, evaluations=50),
        Stepped(("a", "b"), "tok_rgb@64", "roar", 0, 1, 64, 64, 128, 3.0, 2.0, 1.0),
        Detokenized(("a",), "tok_rgb@64", 1, 50, 0.5),
        Detokenized(("a",), "tok_rgb@64", 2, 50, 0.5),
    ]
    for event in progress.print_lines(stream, tally, out.append, interval=0):
        now.now += event.seconds if isinstance(event, Detokenized) else 0.0
    # 1 s of decoding and 2 of 100 evaluations of 0.5 s are done: 2 of 51 s.
    assert tally.seconds_left == pytest.approx((now.now + 1.0) * 49 / 2)
    assert out[-1].startswith("0/2 samples; tok_rgb@64 to values, step 2/50, ")
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(progress.live_display(tally))
    text = screen.export_text()
    assert "step 2/50" in text
    assert "0.50 s per step" in text


def test_events_are_logged_one_json_object_each(tmp_path: Path) -> None:
    with progress.open_log(tmp_path / "log.jsonl") as log:
        end = progress.show(events(), quiet=True, log=log)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["event"] for r in records[:3]] == ["loading", "started", "step"]
    assert records == [event.to_json() for event in events()]
    assert end == list(events())[-1]


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--log-json"), progress.open_log(tmp_path):
        pass


def test_quiet_says_nothing_and_stdout_has_no_progress(capfd: pytest.CaptureFixture[str]) -> None:
    progress.show(events(), quiet=True, log=None)
    assert capfd.readouterr() == ("", "")
    progress.show(events(), quiet=False, log=None)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(
        "3 samples generated, 4 already complete, 1 failed (see failures.jsonl) in 3:07 min"
    )
    assert "\x1b" not in err


def test_a_signal_is_told_how_much_is_saved() -> None:
    def stopped() -> Iterator[Event]:
        yield Started(total=9, skipped=2, batch_size=1, model="demo", device="cpu", steps=4, stage="sr")
        yield Saved("a", 0, ())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        progress.show(stopped(), quiet=True, log=None)
    assert caught.value.__notes__ == ["3 of 9 samples of super-resolution are saved"]


def test_a_run_in_shards_counts_no_results_of_begun_shards_as_saved() -> None:
    start = Started(total=0, skipped=40, batch_size=1, model="demo", device="cpu", steps=4, shards=3)
    assert progress.headline(start).startswith("3 shards, 40 samples already complete; ")
    tally = progress.Tally(clock=Clock(0.0))
    for event in (start, Saved("a", 0, ())):
        tally.take(event)
    assert tally.saved_text == "whole shards are saved, begun ones are made again"
    assert progress.progress_line(tally, Saved("a", 0, ())) == "1 sample"  # of an unknown number
    drawn = io.StringIO()
    Console(width=80, file=drawn).print(progress.live_display(tally))
    assert "/" not in drawn.getvalue().splitlines()[0]


def test_a_stream_that_breaks_off_is_an_error() -> None:
    with pytest.raises(FourMError, match="--resume"):
        progress.show(iter([Loading("x")]), quiet=True, log=None)


def test_several_mistakes_get_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    explain(ScheduleError("--temps: a", "--steps: b"))
    assert capsys.readouterr().err == "fourm: --temps: a\nfourm: --steps: b\n"
