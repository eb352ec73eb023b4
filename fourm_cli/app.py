"""The app: one line for each command; `main` turns errors and signals into sentences and exit codes."""

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, TextIO, cast

import typer

from fourm import __version__
from fourm.errors import FourMError, ScheduleError, UsageError, one_line
from fourm.schedule.settings import OPTIONS
from fourm_cli.console import as_typed
from fourm_cli.embed import embed
from fourm_cli.env import env
from fourm_cli.evaluate import evaluate
from fourm_cli.folders import convert_app, plot, retrieve, status, verify
from fourm_cli.generate import generate, sr, tokenize
from fourm_cli.help import help_of, reword, show_group
from fourm_cli.models import download, models_app
from fourm_cli.options import option, with_options
from fourm_cli.schedules import schedule_app

CONTINUED = ("convert", "download", "plot", "tokenize")  # leave what is there, so the same command goes on
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAKES_NOTHING = {"--dry-run", "--verify", "--list"}
FAILED_WRITES = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EPIPE, errno.EFBIG, errno.EDQUOT)
NO_ROOM = ("failed to map segment", "annot allocate memory")  # in messages of the loader when memory is short
_LISTS = {option.flag for option in OPTIONS if option.field or option.key.endswith("_domains")}
_signals = list[int]()  # that this process was sent

app = typer.Typer(
    name="fourm",
    epilog="Try: fourm generate    (a tiny model is built in, so this works at once)",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for command in (generate, sr, tokenize, embed, download, retrieve, plot, verify, status, env):
    app.command(**help_of(command))(command)
app.command("eval", **help_of(evaluate))(evaluate)
app.add_typer(convert_app, name="convert")
app.add_typer(models_app, name="models")
app.add_typer(schedule_app, name="schedule")


class InterruptedRun(BaseException):
    """SIGINT or SIGTERM arrived; not an Exception, so that nothing on the way takes it for a mistake."""


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"fourm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
@with_options(
    version=option("Show the version.", callback=_print_version, is_eager=True),
    debug=option("Show where in the program an error arose."),
)
def options(*, context: typer.Context, version: bool = False, debug: bool = False) -> None:
    """Any-to-any generation with 4M models: captions, pictures, depth, normals, segmentation, features."""
    show_group(context)


def main() -> None:
    """Run the command line; never returns."""
    words = sys.argv[1:]
    is_debug = "--debug" in words
    prepare_streams()
    _signals.clear()
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    code = 0
    try:
        command = typer.main.get_command(app)
        refuse_repeated(command, words)
        code = command(prog_name="fourm", standalone_mode=False) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except InterruptedRun as interrupt:
        code = explain_signal(int(interrupt.args[0]), words, getattr(interrupt, "__notes__", []))
    except Exception as error:
        if is_debug:
            raise
        if _signals:  # that came while a library was in C code, and became an error of it
            code = explain_signal(_signals[0], words, [])
        elif isinstance(error, FourMError | OSError):
            code = explain(error)
        elif not hasattr(error, "format_message"):  # as all that Typer raises has
            raise
        else:
            code = explain(reword(error))
    finally:
        if not is_debug:
            sys.excepthook = _explain_defect  # here, for Typer sets one of its own
    try:
        sys.stdout.flush()
    except OSError as error:
        _write_nowhere(sys.stdout)
        code = explain(error)
    sys.exit(code)


def explain(error: FourMError | OSError) -> int:
    """Print an error to stderr, with one line for each problem; its exit code."""
    if isinstance(error, OSError):
        # A failed write without a file name was to standard output; a name too long for any file was typed.
        is_print = error.errno in FAILED_WRITES
        unnamed = "standard output cannot be written" if is_print else "the system refuses a call"
        what = unnamed if error.filename is None else f"{error.filename}: cannot be read or written"
        kind = UsageError if error.errno == errno.ENAMETOOLONG else FourMError
        error = kind(f"{what} ({error.strerror or error})")
    for problem in error.problems if isinstance(error, ScheduleError) else (str(error),):
        print(f"fourm: {one_line(as_typed(problem))}", file=sys.stderr)
    return error.exit_code


def explain_signal(number: int, words: Sequence[str], told: Sequence[str]) -> int:
    """Print that a signal has ended a command, and what is told of how to go on; the exit code."""
    named = next((word for word in words if not word.startswith("-")), "")
    is_told = any(text.startswith("to go on") for text in told)
    if named in CONTINUED and not is_told and not MAKES_NOTHING & set(words):
        told = [*(told or ["what was finished is kept"]), "the same command goes on"]
    print(f"fourm: {one_line('; '.join(['interrupted', *told]))}", file=sys.stderr)
    return 128 + number


def _explain_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    is_load = isinstance(error, ImportError) and any(text in str(error) for text in NO_ROOM)
    if is_load or isinstance(error, MemoryError):
        explain(FourMError("memory has no room for the libraries of this command; give it more (ulimit -v)"))
    else:
        print(f"fourm: {kind.__name__}: {error} (a defect of fourm; --debug shows where)", file=sys.stderr)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:  # a second one ends the process at once; files are complete at any moment
        signal.signal(each, lambda number, frame: os._exit(128 + number))
    _signals.append(number)
    raise InterruptedRun(number)


def prepare_streams() -> None:
    """Make the standard streams robust.

    A closed stream (`<&-`) is replaced by /dev/null. Characters that the encoding does not have are escaped.
    A run does not end when progress cannot be written, nor when the reader of a pipe ends (`| head`).
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and len(columns) > 4:  # Rich would fill lines of that width with blanks
        del os.environ["COLUMNS"]
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")
    sys.stderr = cast(TextIO, Forgiving(sys.stderr, OSError))
    sys.stdout = cast(TextIO, Forgiving(sys.stdout, BrokenPipeError))


class Forgiving:
    """A standard stream that ignores errors of one kind; the text that could not be written is lost."""

    def __init__(self, stream: TextIO, kind: type[OSError]) -> None:
        self._stream, self._kind = stream, kind

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *given: str) -> None:
        try:
            action(*given)
        except self._kind:
            with suppress(OSError, ValueError):
                _write_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _write_nowhere(stream: TextIO) -> None:
    """Let a stream write to /dev/null: Python flushes its buffer at exit, which would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def refuse_repeated(command: Any, words: Sequence[str]) -> None:
    """UsageError for an option in the words of a command line that is given twice but has one value.

    command: of `typer.main.get_command`. A flag may be given twice, but not together with its opposite.
    """
    given, rest = dict[str, list[tuple[str, str]]](), list(words)
    while rest and (word := rest.pop(0)) != "--":
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            continue
        found = [one for one in command.params if one.param_type_name == "option"]
        options = {name: option for option in found for name in (*option.opts, *option.secondary_opts)}
        flag, equals, value = word.partition("=")
        if flag not in options and re.match("-[^-]", word):  # letters, such as `-qc` or `-cFILE`
            flag, equals, value = word[:2], word[2:], word[2:]
            if flag in options and options[flag].is_flag and value:
                rest.insert(0, f"-{value}")
        if option := options.get(flag):
            if not option.is_flag and not equals:
                value = rest.pop(0) if rest else ""
            if not option.multiple:
                given.setdefault(option.name, []).append((flag, "" if option.is_flag else value))
    for uses in given.values():
        flags, values = [flag for flag, _ in uses], [value for _, value in uses if value]
        if len(values) > 1:
            is_list = flags[0].replace("--sr-", "--") in _LISTS
            advice = f", as one list: {flags[0]} {','.join(values)}" if is_list else ""
            times = f"{len(values)} times ({', '.join(values)})"
            raise UsageError(f"{flags[0]} is given {times}; give it once{advice}")
        if not values and len({"no-" in flag for flag in flags}) > 1:  # `-q --quiet` is fine
            raise UsageError(f"{' and '.join(dict.fromkeys(flags))} are both given; give one of them")
