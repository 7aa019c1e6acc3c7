"""The flow as a scheduled deployment on a Prefect server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType

from flows.config import load_config
from flows.flow import scheduled
from flows.prefect_server import require_server
from flows.terminal import say
from storage.errors import ConfigError
from storage.files import Folder


def serve(name: str, cron: str, parameters: dict[str, Any]) -> None:
    """Registers the flow with a schedule and runs what the server asks for, until it is stopped.

    Raises:
        ConfigError: without a server, or for a schedule that is none.
        InputError: when the server does not answer.
    """
    url = get_current_settings().api.url
    if url is None:
        raise ConfigError(
            "PREFECT_API_URL is not set, and a schedule needs a server that stays: start one with "
            "'prefect server start' and export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    require_server(url)
    check_cron(cron)
    say(f"serving '{name}' at {url}: {cron}; Ctrl-C ends it and pauses the schedule")
    scheduled.serve(
        name=name,
        cron=cron,
        paused=False,  # a served one was paused when it last stopped
        parameters=parameters,
        tags=["cocu"],
        description=f"cocu run {parameters['config']}",
        print_starting_message=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def check_cron(cron: str) -> None:
    """Refuses what is no cron expression.

    Raises:
        ConfigError: with an example.
    """
    try:
        CronSchedule(cron=cron)
    except ValueError as error:
        raise ConfigError(
            f"--cron '{cron}' is no schedule; it has five fields, such as \"0 3 * * *\" (each day at three)"
        ) from error


def run_parameters(
    config: Path,
    store: str,
    engine: str,
    workers: int,
    device: str,
    until: str | None,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """What each scheduled run is given; places are absolute, as it may start in another folder.

    Raises:
        ConfigError: for a config that describes no run.
    """
    load_config(config, overrides)
    folder = Folder(store)
    return {
        "config": str(config.absolute()),
        "store": folder.path() if folder.is_local else store,
        "engine": engine,
        "workers": workers,
        "device": device,
        "until": until,
        "overrides": list(overrides),
    }
