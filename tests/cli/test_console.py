"""Tables and durations, as users and programs see them."""

import pytest

from fourm_cli import console


def test_a_table_in_a_pipe_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["name", "n"], [["x" * 300, "1"], ["[bold]y", "22"]], numbers=["n"])
    out = capsys.readouterr().out
    assert "x" * 300 in out
    assert "[bold]y" in out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.99, "1:00 min"), (187, "3:07 min"), (7387.4, "2:03:07 h")]
)
def test_durations_are_in_seconds_minutes_or_hours(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("`batch_size`: '0' is no number", "--batch-size: '0' is no number"),
        ("`out=my dir`: is not empty", "--out 'my dir': is not empty"),
        ("`resume=True` goes on, `out=b-2` is free", "--resume goes on, --out b-2 is free"),
        ("leave out `decode=False`", "leave out --no-decode"),
        ("`fourm download x` fetches it", "`fourm download x` fetches it"),
    ],
)
def test_settings_in_messages_are_printed_as_options(text: str, typed: str) -> None:
    assert console.as_typed(text) == typed
