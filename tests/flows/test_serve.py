import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CRON = "0 3 * * *"


def deployment_named(client: Any, name: str) -> Any:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def eventually(look: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 180
    while not (found := look()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)
    return found


@pytest.fixture
def served(prefect_server: str, tiny_config: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``cocu serve`` at work, in another folder than the config's."""
    words = ["serve", str(tiny_config), "--cron", CRON, "--name", "nightly", "--store", "mine"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words, "--until", "corpus", "--set", "embed.batch_size=8"],
        cwd=tmp_path,
        env={**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_RUNNER_POLL_FREQUENCY": "1",
             "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def test_serve_registers_a_schedule_runs_on_demand_and_stops(served, tmp_path):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = eventually(lambda: deployment_named(client, "cocu-run/nightly"), served)
        (schedule,) = deployment.schedules
        assert (schedule.schedule.cron, schedule.active) == (CRON, True)
        assert deployment.parameters["store"] == str(tmp_path / "mine")
        assert deployment.parameters["overrides"] == ["embed.batch_size=8"]

        run = client.create_flow_run_from_deployment(deployment.id)
        state = eventually(lambda: ended(client.read_flow_run(run.id).state), served)
        assert state.is_completed(), state
        assert list(tmp_path.glob("mine/corpus/*/manifest.json"))
        assert json.loads((tmp_path / "mine/runs/tiny/summary.json").read_text())["artifacts"]

        served.send_signal(signal.SIGINT)
        out, err = served.communicate(timeout=60)
        assert served.returncode == 0, err
        assert "nightly" in out
        assert "Traceback" not in err
        assert deployment_named(client, "cocu-run/nightly").paused  # nobody is there to run it


def ended(state: Any) -> Any:
    return state if state.is_final() else None


def only_line(outcome) -> str:
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    return line


def test_serve_without_a_server_says_how_to_start_one(cocu, tiny_config, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: None}):
        line = only_line(cocu("serve", tiny_config, "--cron", CRON))
    assert "PREFECT_API_URL is not set" in line
    assert "prefect server start" in line


def test_serve_with_a_server_that_does_not_answer_names_it(cocu, tiny_config):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        line = only_line(cocu("serve", tiny_config, "--cron", CRON))
    assert "http://127.0.0.1:9/api" in line


@pytest.mark.usefixtures("prefect_server")
def test_serve_with_a_schedule_that_is_none_shows_one(cocu, tiny_config):
    assert "0 3 * * *" in only_line(cocu("serve", tiny_config, "--cron", "at night"))


def test_serve_of_a_wrong_config_fails_before_it_registers(cocu, tiny_config):
    line = only_line(cocu("serve", tiny_config, "--cron", CRON, "--set", "embed.bach_size=3"))
    assert "did you mean 'batch_size'" in line
