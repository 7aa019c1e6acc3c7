"""The ``cocu`` command."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from storage.errors import CocuError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
CONFIG = typer.Argument(help="TOML file of the run.")


def main() -> None:
    """Runs a command; a fault a person can mend is one line on stderr and exit status 1."""
    try:
        app()
    except CocuError as error:
        print(f"cocu: {error}", file=sys.stderr)
        sys.exit(1)


@app.command()
def run(
    config: Annotated[Path, CONFIG],
    store: str = "store",
    engine: str = "local",
    workers: int = 1,
    device: str = "auto",
    until: str | None = None,
    set_: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Run."""
    from flows.run import execute, make_runtime, plan_run

    name, plan = plan_run(config, store, set_ or [])
    path = execute(name, plan, until, make_runtime(engine, workers, device))
    print(path.read_text())


if __name__ == "__main__":
    main()
