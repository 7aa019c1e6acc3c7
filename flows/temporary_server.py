"""A Prefect server for the runs of one process, where no other is configured.

Prefect can start one by itself, but that one hears the run's Ctrl-C and dies first, so that the run waits a
minute for an answer; and it outlives a run that is killed. It serves until the process ends and not a run:
Prefect's own threads go on speaking to the server they met first.
"""

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import BinaryIO

from flows.prefect_server import QUIET, server_fault
from storage.errors import InputError

PATIENCE = 180.0  # seconds: a first start makes a database, on a busy machine


@cache
def temporary_server() -> str:
    """The API's URL of a server on a free loopback port, which stops with this process.

    Raises:
        InputError: when it does not start.
    """
    with tempfile.TemporaryFile() as log:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = _start(listener.fileno(), log)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        try:
            _wait(process, url, log)
        except BaseException:
            _stop(process)
            raise
    atexit.register(_stop, process)
    return url


def _start(descriptor: int, log: BinaryIO) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("prefect_child.py")
    return subprocess.Popen(  # noqa: S603  (our own script)
        [sys.executable, "-P", str(script), str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log,
        pass_fds=(descriptor,),
        start_new_session=True,  # Ctrl-C is for the run, which then still has a server to tell
        env={**QUIET, **os.environ, "PREFECT_UI_ENABLED": "0"},
    )


def _wait(process: subprocess.Popen[bytes], url: str, log: BinaryIO) -> None:
    deadline = time.monotonic() + PATIENCE
    while server_fault(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise InputError(
                f"the Prefect server of this run did not start ({_last_line(log)}); "
                "'cocu doctor' tells more, and a server that PREFECT_API_URL names is used instead"
            )
        time.sleep(0.1)


def _last_line(log: BinaryIO) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it gives no reason"


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
