"""Prefect keeps to a temporary home, one server serves the session, and a tiny run is made once."""

import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.prefect_server import quiet_prefect, server_fault

# before anything imports Prefect, which reads its settings then
HOME = tempfile.mkdtemp(prefix="cocu-prefect-")
os.environ["PREFECT_HOME"] = HOME
os.environ.pop("PREFECT_API_URL", None)
quiet_prefect()

TINY = """
name = "tiny"

[pretrain.fit]
epochs = 1
batch_size = 20

[[pretrain.corpus.sources]]
name = "pretrain"
kind = "scenes"
scenes = { split = "pretrain", count = 60, captions = "random" }

[[corpus.sources]]
name = "curate"
kind = "scenes"
scenes = { split = "curate", count = 24, shard_size = 12 }

[vocabulary]
gallery = "scenes"

[recall]
truth = "corpus"
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Prefect leaves sockets to the garbage collector, which warns of them."""
    for item in items:
        if "prefect_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(autouse=True)
def sockets_collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """They go in the test that made them, not in one that knows nothing of Prefect."""
    yield
    if "prefect_server" in request.fixturenames:
        gc.collect()


def pytest_sessionfinish() -> None:
    """Prefect's home goes when the server has stopped using it."""
    shutil.rmtree(HOME, ignore_errors=True)


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def cocu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command of ``cocu`` in this process."""

    def command(*words: object) -> Outcome:
        from flows.cli import main

        monkeypatch.setattr(sys, "argv", ["cocu", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        status = ended.value.code
        assert isinstance(status, int)
        return Outcome(status, *capsys.readouterr())

    return command


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    return config


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """A real Prefect server for all flows of the session; the URL of its API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    process = start_server(port, url)
    try:
        while fault := server_fault(url):
            assert process.poll() is None, f"the server ended: {fault}"
            time.sleep(0.2)
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: url}):
            yield url
    finally:
        stop(process)


def start_server(port: int, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "PREFECT_SERVER_UI_API_URL": url, "PREFECT_UI_ENABLED": "0"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def tiny_store(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a whole run of the tiny config. Tests that change it work on a copy."""
    from flows.run import execute, make_runtime, plan_run

    folder = tmp_path_factory.mktemp("tiny")
    config = folder / "tiny.toml"
    config.write_text(TINY)
    name, plan = plan_run(config, str(folder / "store"))
    execute(name, plan, None, make_runtime("local", 1, "cpu", quiet=True))
    return folder / "store"
