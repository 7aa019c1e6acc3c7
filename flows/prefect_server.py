"""How a run speaks to Prefect: quietly, and with a server that is really there."""

import os
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from storage.errors import InputError

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}


def quiet_prefect() -> None:
    """Settings of a run whose output is read by people: no analytics, no log lines between the bars.

    They count when set before Prefect is imported. What the user has set stays.
    """
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)


def server_fault(url: str, timeout: float = 5.0) -> str | None:
    """Why the Prefect server at ``url`` cannot be used; None when it answers."""
    if not url.startswith(("http://", "https://")):
        return "it is no http(s) URL"
    try:
        with urlopen(Request(f"{url.rstrip('/')}/health"), timeout=timeout) as answer:  # noqa: S310  (http only)
            return None if answer.status == 200 else f"it answers with status {answer.status}"
    except HTTPError as error:
        return None if error.code in (401, 403) else f"it answers with status {error.code}"
    except (URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def require_server(url: str | None) -> None:
    """Refuses a server that does not answer; none at all is fine, then Prefect starts one for the run.

    Raises:
        InputError: naming the URL and what is wrong.
    """
    fault = server_fault(url) if url else None
    if fault:
        raise InputError(
            f"cannot reach the Prefect server at PREFECT_API_URL '{url}': {fault}; "
            "start it with 'prefect server start', mend the URL (it ends in /api), or unset the variable"
        )
