"""What Tab offers: by the protocol between Typer and each shell, and in the shells themselves."""

import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("bash", "zsh", "fish")
PROMPT = b"READY>"
PATIENCE = 60.0  # seconds

# What is typed, and some and none of what is offered; exact = nothing else.
OFFERS = [
    ("fourm gen", {"generate"}, set(), True),
    ("fourm models sh", {"show"}, set(), True),
    ("fourm generate --num-v", {"--num-variations"}, set(), True),
    ("fourm generate --model de", {"demo", "demo-sr"}, set(), True),
    ("fourm schedule show --model 4m-21-", {"4m-21-b", "4m-21-l", "4m-21-xl"}, {"4m-7-b"}, False),
    ("fourm generate --targets tok_n", {"tok_normal"}, set(), True),
    ("fourm generate --targets tok_clip-tok_r", {"tok_clip-tok_rgb"}, set(), True),
    ("fourm generate --targets tok_clip,tok_c", {"tok_clip,tok_canny_edge"}, set(), True),
    ("fourm generate --targets a", {"all"}, set(), True),
    ("fourm generate --cond caption,d", {"caption,depth", "caption,det"}, set(), True),
    ("fourm generate --cond caption-tok_d", {"caption-tok_depth"}, set(), True),
    ("fourm generate --cond r", {"rgb"}, set(), True),
    ("fourm generate --cond no", {"none", "normal"}, set(), True),
    ("fourm generate --cond caption,no", {"caption,normal"}, set(), True),  # none stands alone
    ("fourm generate --model 4m-21-b --cond tok_dino", {"tok_dinov2", "tok_dinov2_global"}, set(), True),
    ("fourm schedule show --sr-targets tok_clip-tok_r", {"tok_clip-tok_rgb"}, set(), True),
    ("fourm generate --target tok_s", {"tok_semseg"}, set(), True),
    ("fourm generate --schemes roar-m", {"roar-maskgit"}, set(), True),
    ("fourm generate --token-schedules cosine,l", {"cosine,linear"}, set(), True),
    ("fourm generate --dtype q", set(), {"bfloat16"}, True),
    ("fourm generate --dtype b", {"bfloat16"}, set(), True),
    ("fourm tokenize --device c", {"cpu", "cuda"}, set(), True),
    ("fourm generate --attention x", {"xformers"}, set(), True),
    ("fourm models show tok-rgb", {"tok-rgb"}, {"tok-depth"}, False),
    ("fourm download to", {"tok-rgb", "tokenizers"}, {"text-tokenizer"}, False),
    ("fourm download 4m-21-b 4m-21-", {"4m-21-l", "4m-21-xl"}, {"4m-21-b"}, True),
]
WEIGHTED = [  # bash breaks words at colons, and does not say so to a program
    ("fourm generate --cond caption:2.0,tok_d", {"caption:2.0,tok_depth"}, set(), True),
    ("fourm generate --cond caption:-1,cap", set(), {"caption:-1,caption"}, True),
    ("fourm generate --cond caption:2", set(), {"caption:2"}, True),
    ("fourm generate --cond caption:-", set(), set(), True),
]


@pytest.mark.parametrize(("typed", "offered", "absent", "exact"), OFFERS)
def test_typer_tells_bash_what_may_follow(
    typed: str, offered: set[str], absent: set[str], exact: bool
) -> None:
    words = typed.split(" ")
    said = ask({"_FOURM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)})
    check(set(said.split("\n")) - {""}, offered, absent, exact)


@pytest.mark.parametrize(("typed", "offered", "absent", "exact"), OFFERS[::4] + WEIGHTED)
def test_typer_tells_zsh_what_may_follow(
    typed: str, offered: set[str], absent: set[str], exact: bool
) -> None:
    said = ask({"_FOURM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": typed})
    body = said.removeprefix("_arguments '*: :((").removesuffix("))'")
    lines = [] if said == "_files" else body.replace("\\\\:", "\0").split("\n")
    found = {line.partition(":")[0].strip('"').replace("\0", ":") for line in lines}
    check(found, offered, absent, exact)


@pytest.mark.parametrize(("typed", "offered", "absent", "exact"), OFFERS[1::4] + WEIGHTED)
def test_typer_tells_fish_what_may_follow(
    typed: str, offered: set[str], absent: set[str], exact: bool
) -> None:
    asked = {"_FOURM_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    said = ask(asked | {"_TYPER_COMPLETE_ARGS": typed})
    found = {line.partition("\t")[0] for line in said.split("\n")} - {""}
    check(found, offered, absent, exact)


def test_a_model_that_is_not_there_costs_no_completion() -> None:
    typed = "fourm generate --model no/such --targets tok_n"
    said = ask({"_FOURM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": "5"})
    assert said.split() == ["tok_normal"]


def test_a_model_folder_completes_its_own_modalities(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(ROOT / "fourm" / "demo", folder)
    rows = (folder / "modalities.yaml").read_text()
    (folder / "modalities.yaml").write_text(
        rows.replace("name: tok_normal@64", "name: tok_mine@64\n  kind: grid")
    )
    config = folder / "config.json"
    config.write_text(config.read_text().replace("tok_normal@64", "tok_mine@64"))
    typed = f"fourm generate --model {folder} --targets tok_m"
    said = ask({"_FOURM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": "5"})
    assert said.split() == ["tok_mine"]


def test_completion_never_imports_torch() -> None:
    code = (
        "import sys; sys.argv = ['fourm']\n"
        "from fourm_cli.app import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    given = {"_FOURM_COMPLETE": "complete_bash", "COMP_WORDS": "fourm generate --cond t", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ(given))
    assert "tok_depth" in done.stdout
    assert done.stderr.strip() == "False"


@pytest.fixture
def typist(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Types a line with Tab and Enter into a shell; what `fourm` was then called with.

    `fourm` is the real one where a shell asks for completions, else it writes down its arguments.
    """
    seen, script = tmp_path / "seen", tmp_path / "bin" / "fourm"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\n[ -n "$_FOURM_COMPLETE" ] && exec {shlex.quote(sys.executable)} -m fourm_cli "$@"\n'
        f"for word; do echo \"$word\"; done > '{seen}.part'; mv '{seen}.part' '{seen}'\n"
    )
    script.chmod(0o755)

    def enter(shell: str, line: str) -> list[str]:
        if shutil.which(shell) is None:
            if os.environ.get("FOURM_NEEDS_SHELLS"):
                pytest.fail(f"{shell} is not installed, and FOURM_NEEDS_SHELLS is set")
            pytest.skip(f"{shell} is not installed")
        seen.unlink(missing_ok=True)
        type_into(shell, line, tmp_path, seen)
        return seen.read_text().splitlines()

    return enter


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "called"),
    [
        ("fourm models sho\t demo-\t", ["models", "show", "demo-sr"]),
        ("fourm generate --targets tok_clip-tok_r\t", ["generate", "--targets", "tok_clip-tok_rgb"]),
        ("fourm generate --cond caption,tok_se\t", ["generate", "--cond", "caption,tok_semseg"]),
    ],
)
def test_tab_in_a_real_shell_completes_the_line(
    shell: str, typed: str, called: list[str], typist: Callable[[str, str], list[str]]
) -> None:
    assert typist(shell, typed) == called


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_tab_after_a_weight_completes_the_next_condition(
    shell: str, typist: Callable[[str, str], list[str]]
) -> None:
    called = ["generate", "--cond", "caption:2.0,tok_depth"]
    assert typist(shell, "fourm generate --cond caption:2.0,tok_d\t") == called


def check(found: set[str], offered: set[str], absent: set[str], exact: bool) -> None:
    assert offered <= found
    assert not absent & found
    assert not exact or found == offered


def environ(more: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}


def ask(given: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fourm_cli"], capture_output=True, text=True, env=environ(given)
    )
    assert done.stderr == ""
    return done.stdout.rstrip("\n")


def type_into(shell: str, line: str, home: Path, seen: Path) -> None:
    """Start an interactive shell on a terminal of its own, with completion installed, and type a line."""
    source = ask({"_FOURM_COMPLETE": f"source_{shell}"})
    start = {
        "bash": ("bash", "--noprofile", "--rcfile", str(home / "rc"), "-i"),
        "zsh": ("zsh", "-i"),
        "fish": ("fish", "--init-command", f"source {home / 'rc'}"),
    }[shell]
    prompt = {
        "bash": "PS1='READY>'\n",
        "zsh": "PS1='READY>'\nautoload -Uz compinit\ncompinit -u -D\n",
        "fish": "function fish_prompt\n echo 'READY>'\nend\nfunction fish_greeting\nend\n",
    }[shell]
    rc = home / (".zshrc" if shell == "zsh" else "rc")
    rc.write_text(f"{prompt}{source}\n")
    terminal, tty = os.openpty()
    own = {name: str(home) for name in ("HOME", "ZDOTDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own |= {"TERM": "xterm", "TTY": os.ttyname(tty), "INPUTRC": "/dev/null", "PATH": path}
    # The leader of a session gets the first terminal that it opens as its own.
    command = ["sh", "-c", 'exec "$@" <"$TTY" >"$TTY" 2>&1', "sh", *start]
    process = subprocess.Popen(command, env=environ(own), start_new_session=True)
    try:
        said = read_until(terminal, lambda said: PROMPT in said)
        os.write(terminal, line.encode() + b"\r")
        said += read_until(terminal, lambda _: seen.exists())
        assert seen.exists(), said.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(tty)  # not before: a terminal that nobody holds is at its end


def read_until(terminal: int, is_enough: Callable[[bytes], bool]) -> bytes:
    """What a shell writes, until it is enough or patience ends."""
    said, end = b"", time.monotonic() + PATIENCE
    while not is_enough(said) and time.monotonic() < end:
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                said += os.read(terminal, 4096)
            except OSError:  # the shell has ended
                break
    return said
