"""`fourm` without the seconds that importing torch takes: a process that has imported it forks for each call.

    python -m tests.forked SOCKET     serves; `write_shim` makes the program `fourm` that asks it

A call has its own arguments, folder, environment and streams, as if it were started by the shell.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(call)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


@contextmanager
def typed_fourm(folder: Path) -> Iterator[str]:
    """A PATH on which `fourm` is this checkout's, and forked; the interpreter's programs are on it too."""
    path, bin_folder = folder / "socket", folder / "bin"
    bin_folder.mkdir()
    shim = bin_folder / "fourm"
    shim.write_text(_CLIENT.format(python=sys.executable, socket=str(path)))
    shim.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.forked", str(path)]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield os.pathsep.join([str(bin_folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        finally:
            server.terminate()


def run_block(text: str, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Type commands into a shell that stops at the first one that fails."""
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=env, text=True, capture_output=True,
        check=False,
    )  # fmt: skip


def _serve(path: str) -> None:
    import torch  # noqa: F401 - what takes long is imported once

    import fourm.runs.pipeline
    import fourm.views.gallery
    import fourm.views.plots  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        while True:
            connection = listening.accept()[0]
            if os.fork() == 0:
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    from fourm_cli.app import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        words, folder, env = json.loads(file.read(int.from_bytes(head, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    modes = enumerate(("r", "w", "w"))
    files = [open(number, mode, buffering=1, closefd=False) for number, mode in modes]  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = files
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["fourm", *words]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        connection.sendall(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
