"""``cocu plan --calibrate`` on the terminal: the prediction, and what it rests on."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.forecast.calibrate import Request, calibrate_run
from flows.forecast.gpus import Machine, estimate_run
from flows.forecast.laws import Estimate
from flows.forecast.predict import duration
from flows.forecast.prediction import Prediction, StagePrediction
from flows.run import make_runtime
from flows.terminal import print_json, say, size

NOTHING = "–"
NAMED = 3  # stages of a list


def tell_costs(
    config: Path,
    store: str,
    overrides: Sequence[str],
    until: str | None,
    asked: tuple[int | None, float, float],
    device: str,
    as_json: bool,
) -> None:
    """Calibrates and prints.

    Args:
        config: file of the run.
        store: that it writes to.
        overrides: ``stage.key=value``.
        until: how far it goes.
        asked: images, price of an hour, seconds.
        device: of the run.
        as_json: data instead of tables.

    Raises:
        CocuError: the first fault a person can mend.
    """
    request = Request(*asked)
    runtime = make_runtime("local", 1, device, quiet=as_json)
    predicted = calibrate_run(config, store, overrides, until, request, runtime)
    if as_json:
        print_json(dataclasses.asdict(predicted))
    else:
        print_prediction(predicted)


def print_prediction(predicted: Prediction) -> None:
    """What each stage takes, and how that was measured."""
    print_tables(predicted)
    say(f"calibrated in {predicted.spent:.0f} s; ranges by repetition, stages one after another")


def print_tables(predicted: Prediction) -> None:
    """Two tables: what each stage takes, and how that was found."""
    console = Console()
    say(f"{predicted.name}: {predicted.images:,} images on {predicted.machine}")
    console.print(_costs(predicted))
    console.print(_bases(predicted))
    for line in (*_left_out(predicted), *(f"basis: {line}" for line in predicted.basis)):
        say(line)


def tell_gpus(
    config: Path, overrides: Sequence[str], images: int | None, machine: Machine, as_json: bool
) -> None:
    """Counts and prints.

    Raises:
        ConfigError: if there is nothing to count.
    """
    predicted = estimate_run(config, overrides, images, machine)
    if as_json:
        print_json(dataclasses.asdict(predicted))
    else:
        print_tables(predicted)


def _costs(predicted: Prediction) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=True)
    whole = predicted.seconds
    priced = predicted.price > 0
    table.add_column("stage", "all together")
    table.add_column("time", duration(whole.mid), justify="right", style="bold")
    table.add_column("range", _range(whole), justify="right", style="dim")
    table.add_column("memory", size(predicted.memory), justify="right")
    table.add_column("disk", size(predicted.disk), justify="right")
    if priced:
        table.add_column("cost", f"{predicted.cost.mid:,.2f}", justify="right")
    table.add_column("", "")
    for stage in predicted.stages:
        if stage.seconds:
            table.add_row(*_row(stage, priced))
    return table


def _row(stage: StagePrediction, priced: bool) -> list[Text]:
    assert stage.seconds is not None
    cells = [stage.label, duration(stage.seconds.mid), _range(stage.seconds)]
    cells += [size(number) if number is not None else NOTHING for number in (stage.memory, stage.disk)]
    if priced:
        cells.append(f"{stage.cost.mid:,.2f}" if stage.cost else NOTHING)
    return [Text(cell) for cell in (*cells, "in the store" if stage.committed else "")]


def _range(found: Estimate) -> str:
    return f"{duration(found.low)} – {duration(found.high)}"


def _bases(predicted: Prediction) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "seconds for N images", "found from"):
        table.add_column(name, overflow="fold")
    for stage in predicted.calibrated:
        table.add_row(*(Text(cell) for cell in (stage.label, stage.formula, stage.basis)))
    return table


def _left_out(predicted: Prediction) -> Iterator[str]:
    """Stages without a number, by the reason."""
    reasons = dict.fromkeys(stage.basis for stage in predicted.stages if not stage.seconds)
    for reason in reasons:
        labels = [stage.label for stage in predicted.stages if not stage.seconds and stage.basis == reason]
        more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        yield f"not calibrated: {', '.join(labels[:NAMED])}{more} ({reason})"
