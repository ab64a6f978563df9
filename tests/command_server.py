"""The command ``deepneighbors`` answered by forks of one process that has imported everything and knows all keys.

A workflow is some thirty commands, and at the smoke profile most work for less time than they take to start. What
:func:`command` gives takes the same arguments, environment, folder and streams, runs :func:`deepneighbors.cli.main` on them
in a fork, and ends with its status.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [b"!"], [0, 1, 2])
    server.sendall(json.dumps([sys.argv[2:], dict(os.environ), os.getcwd()]).encode())
    server.shutdown(socket.SHUT_WR)
    status = server.recv(16)  # nothing where the fork was killed
sys.exit(int(status or 1))
"""


@contextmanager
def command(chapter: str) -> Iterator[Path]:
    """An executable that stands for ``deepneighbors``; the keys of a chapter's smoke profile are known beforehand."""
    with tempfile.TemporaryDirectory(prefix="server-") as folder:
        client, place, executable = (Path(folder) / name for name in ("client.py", "socket", "deepneighbors"))
        client.write_text(CLIENT)
        executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "{place}" "$@"\n')
        executable.chmod(0o755)
        started = [sys.executable, __file__, chapter, str(place)]
        process = subprocess.Popen(started, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield executable
        finally:
            process.kill()
            process.communicate()


def serve(chapter: str, place: str) -> None:
    """Fork for each connection, for ever."""
    import torch

    from deepneighbors import cli, plan
    from deepneighbors.experiments import Run

    torch.set_num_threads(1)
    plan.tasks(Run(chapter, profile="smoke", device="cpu"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork: it answers for itself
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(connection, cli.main)
            connection.close()


def answer(connection: socket.socket, main) -> None:
    """Run the command of a client as it would have, tell its status, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as request:
        arguments, environment, folder = json.load(request)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(status).encode())
    os._exit(0)


if __name__ == "__main__":
    serve(*sys.argv[1:])
