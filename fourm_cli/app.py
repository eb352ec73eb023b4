"""The app: one line for each command; `main` turns errors and signals into sentences and exit codes."""

import errno
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Annotated

import typer

from fourm import __version__
from fourm.errors import FourMError, UsageError
from fourm_cli.console import explain
from fourm_cli.convert import convert_app
from fourm_cli.download import EXAMPLES as DOWNLOAD_EXAMPLES
from fourm_cli.download import download
from fourm_cli.generate import EXAMPLES, generate
from fourm_cli.models import models_app
from fourm_cli.plot import EXAMPLES as PLOT_EXAMPLES
from fourm_cli.plot import plot
from fourm_cli.repeated import refuse_repeated
from fourm_cli.retrieve import EXAMPLES as RETRIEVE_EXAMPLES
from fourm_cli.retrieve import retrieve
from fourm_cli.schedules import schedule_app
from fourm_cli.sr import EXAMPLES as SR_EXAMPLES
from fourm_cli.sr import sr
from fourm_cli.streams import prepare_streams
from fourm_cli.tokenize import EXAMPLES as TOKENIZE_EXAMPLES
from fourm_cli.tokenize import tokenize
from fourm_cli.verify import EXAMPLES as VERIFY_EXAMPLES
from fourm_cli.verify import verify

RESUMED = ("generate", "sr")  # commands that have --resume
REPEATED = ("convert", "download", "plot", "tokenize")  # commands that keep what they made, and go on with it
FAILED_WRITES = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EPIPE, errno.EFBIG, errno.EDQUOT)
NO_ROOM = ("failed to map segment", "annot allocate memory")  # what the loader says of a library
MAKES_NOTHING = {"--dry-run", "--verify", "--list"}

app = typer.Typer(
    name="fourm",
    epilog="Try: fourm generate    (a tiny model is built in, so this works at once)",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command(epilog=EXAMPLES)(generate)
app.command(epilog=SR_EXAMPLES)(sr)
app.command(epilog=TOKENIZE_EXAMPLES)(tokenize)
app.command(epilog=DOWNLOAD_EXAMPLES)(download)
app.command(epilog=RETRIEVE_EXAMPLES)(retrieve)
app.command(epilog=PLOT_EXAMPLES)(plot)
app.command(epilog=VERIFY_EXAMPLES)(verify)
app.add_typer(convert_app, name="convert")
app.add_typer(models_app, name="models")
app.add_typer(schedule_app, name="schedule")


class InterruptedRun(BaseException):
    """SIGINT or SIGTERM arrived; not an Exception, so that nothing on the way takes it for a mistake."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def print_version(wanted: bool) -> None:
    """Say the version and end."""
    if wanted:
        print(f"fourm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the program an error arose.")] = False,
) -> None:
    """Any-to-any generation with 4M models: captions, pictures, depth, normals, segmentation, features."""


def main() -> None:
    """Run the command line; never returns."""
    is_debug = "--debug" in sys.argv[1:]
    prepare_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    code = 0
    try:
        whole = typer.main.get_command(app)
        refuse_repeated(whole, sys.argv[1:])
        whole(prog_name="fourm")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except FourMError as error:
        if is_debug:
            raise
        explain(error)
        code = error.exit_code
    except InterruptedRun as interrupt:
        print(f"fourm: interrupted{_what_goes_on(sys.argv[1:])}", file=sys.stderr)
        code = 128 + interrupt.number
    except OSError as error:
        if is_debug:
            raise
        said = _from_system(error)
        explain(said)
        code = said.exit_code
    finally:
        if not is_debug:
            sys.excepthook = _explain_defect  # here, for Typer sets one of its own
    sys.exit(_flush() or code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _leave)
    raise InterruptedRun(number)


def _leave(number: int, frame: FrameType | None) -> None:
    """A second signal does not wait for the end of what the first began; files are whole at any moment."""
    os._exit(128 + number)


def _what_goes_on(words: list[str]) -> str:
    """What is kept of an interrupted command; nothing of one that only looks."""
    command = next((word for word in words if not word.startswith("-")), "")
    if command not in (*RESUMED, *REPEATED) or MAKES_NOTHING & set(words):
        return ""
    return f"; what was finished is kept, {'--resume' if command in RESUMED else 'the same command'} goes on"


def _from_system(error: OSError) -> FourMError:
    """What the system refused, in a sentence; what cannot be written and has no name is what was printed.

    A name that is longer than any file's was typed, and is a mistake of usage.
    """
    is_print = error.errno in FAILED_WRITES
    unnamed = "standard output cannot be written" if is_print else "the system refuses a call"
    what = unnamed if error.filename is None else error.filename
    kind = UsageError if error.errno == errno.ENAMETOOLONG else FourMError
    return kind(f"{what} ({error.strerror or error})")


def _flush() -> int:
    """Write what is left for stdout; 1 if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again at exit
        explain(_from_system(error))
        return FourMError.exit_code
    return 0


def _explain_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    is_load = isinstance(error, ImportError) and any(text in str(error) for text in NO_ROOM)
    if is_load or isinstance(error, MemoryError):
        explain(FourMError("memory has no room for the libraries of this command; give it more (ulimit -v)"))
        return
    print(f"fourm: {kind.__name__}: {error} (a defect of fourm; --debug shows where)", file=sys.stderr)
