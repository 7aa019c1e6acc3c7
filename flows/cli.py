"""The ``cocu`` command.

Every command imports what it needs when it runs: ``cocu ls`` must not wait for torch.
"""
# ruff: noqa: PLC0415

import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.exceptions import TyperException

from flows.faults import one_line, told
from flows.terminal import print_json, print_results, print_table, say, size

INTERRUPTED = 130  # exit status of what Ctrl-C stopped
STOPPED = "stopped; what is finished is kept, the same command goes on from there"

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Every command takes --debug: a fault is then shown with its traceback.",
)

ConfigFile = Annotated[Path, typer.Argument(help="TOML file of the run.", metavar="CONFIG")]
StoreUrl = Annotated[str, typer.Option("--store", help="Folder or fsspec URL the artifacts lie in.")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="Where shards are worked on.")]
Workers = Annotated[int, typer.Option(min=1, help="Workers of the Ray engine.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes of a training, such as one for each GPU.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage and what it needs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Another value than the config's; repeatable."),
]
StageName = Annotated[str, typer.Argument(help="Name of a stage, such as archive.", metavar="STAGE")]
Fingerprint = Annotated[str | None, typer.Option(help="Which artifact, by how it begins; else the newest.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but faults.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print data for other programs.")]


def main() -> None:
    """Runs a command; a fault is one line on stderr and an exit status that is not 0."""
    arguments = [word for word in sys.argv[1:] if word != "--debug"] or ["--help"]
    try:
        status = app(arguments, prog_name="cocu", standalone_mode=False)
    except TyperException as error:  # a command line that is none
        fail(f"{one_line(error.format_message())} (cocu --help tells more)", 2)
    except (KeyboardInterrupt, typer.Abort):
        fail(STOPPED, INTERRUPTED)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        fail(told(error), 1)
    if status == INTERRUPTED:
        fail(STOPPED, INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def fail(message: str, status: int) -> None:
    """Ends the process with one line on stderr."""
    sys.stderr.write(f"cocu: {message}\n")
    sys.exit(status)


@app.command()
def demo(
    store: StoreUrl = "store",
    seed: Annotated[int, typer.Option(min=0, help="Another one than 0 makes another corpus and models.")] = 0,
    device: Device = "auto",
    set_: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Run the whole method on the built-in corpus, in minutes on two cores.

    Writes runs/demo/summary.json and runs/demo/report.html here. Nothing is downloaded.

    Example: `cocu demo`
    """
    from flows.demo import demo_config, run_demo
    from flows.run import make_runtime

    settings = demo_config(seed, set_ or ())
    folder = Path("runs") / settings.name
    results = run_demo(settings, store, make_runtime("local", 1, device, quiet), folder)
    if not quiet:
        print_results(results.summary)
        say(f"{folder / 'summary.json'}\n{folder / 'report.html'}")


@app.command()
def run(
    config: ConfigFile,
    store: StoreUrl = "store",
    engine: Engine = "local",
    workers: Workers = 1,
    device: Device = "auto",
    processes: Processes = 1,
    until: Until = None,
    set_: Overrides = None,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """Run what is missing of a config's stages, and show what was measured.

    With nothing changed no stage runs again. After an interruption the same command goes on.

    Example: `cocu run configs/demo.toml --store ./store --until archive --set expand.neighbours=8`
    """
    from flows.run import execute, make_runtime, plan_run

    if workers > 1 and engine == "local":
        sys.stderr.write("cocu: the local engine is one process; --workers counts with --engine ray\n")
    name, plan = plan_run(config, store, set_ or (), device)
    results = execute(name, plan, until, make_runtime(engine, workers, device, quiet, processes))
    if json_:
        print_json(results.summary)
    elif not quiet:
        print_results(results.summary)
        say(results.location)


@app.command()
def plan(
    config: ConfigFile,
    store: StoreUrl = "store",
    until: Until = None,
    set_: Overrides = None,
    json_: AsJson = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Tell time, memory, disk and cost of each stage.")
    ] = False,
    images: Annotated[
        int | None, typer.Option(help="Calibrate for so many; else for the corpus' own.")
    ] = None,
    price: Annotated[
        float, typer.Option(help="Of an hour of this machine (or GPU), to tell the cost.")
    ] = 0.0,
    gpus: Annotated[
        int | None, typer.Option(help="Count what GroupViT's training takes on so many GPUs.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="Their kind: a100-40, a100, h100, h200 or l40s.")] = "a100",
    budget: Annotated[float, typer.Option(help="Seconds that a calibration may take.")] = 60.0,
    device: Device = "auto",
) -> None:
    """Show what a run would reuse, resume or run, and the setting that differs from earlier artifacts.

    With --calibrate every stage is run on a sample of the corpus, for a minute in all, and its time, memory,
    disk and cost are told for the whole; after the run, summary and report set them beside what it took.

    Example: `cocu plan configs/demo.toml --set expand.neighbours=8`

    With --gpus nothing is run: operations are counted, and a stated share of the GPUs' peak is assumed.

    Example: `cocu plan my.toml --calibrate --images 12000000 --price 2.50`

    Example: `cocu plan configs/paper/cocu_cc3m.toml --gpus 8 --price 2.50`
    """
    if gpus is not None:
        from flows.forecast.command import tell_gpus
        from flows.forecast.gpus import Machine

        return tell_gpus(config, set_ or (), images, Machine(gpus, gpu, price), json_)
    if calibrate or price or images is not None:
        from flows.forecast.command import tell_costs

        return tell_costs(config, store, set_ or (), until, (images, price, budget), device, json_)
    from flows.decisions import as_rows, decide
    from flows.run import plan_run
    from flows.showing import print_decisions

    _, declared = plan_run(config, store, set_ or ())
    decisions = decide(declared.until(until))
    return print_json(as_rows(decisions)) if json_ else print_decisions(decisions)


@app.command()
def ls(
    stage: Annotated[str | None, typer.Argument(help="Only this stage.", metavar="[STAGE]")] = None,
    store: StoreUrl = "store",
    json_: AsJson = False,
) -> None:
    """List the artifacts of a store, oldest first.

    Example: `cocu ls archive --store ./store --json`
    """
    from flows.catalogue import open_store, row, stage_artifacts

    rows = [row(artifact) for artifact in stage_artifacts(open_store(store), stage)]
    if json_:
        print_json(rows)
    else:
        shown = [{**row, "created": row["created"][:19], "bytes": size(row["bytes"])} for row in rows]
        print_table(("stage", "fingerprint", "rows", "created", "bytes"), [list(r.values()) for r in shown])


@app.command()
def show(
    stage: StageName,
    fingerprint: Fingerprint = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of each table.")] = 5,
    store: StoreUrl = "store",
    json_: AsJson = False,
) -> None:
    """Show an artifact: its manifest, and the first rows of its tables.

    Example: `cocu show archive --rows 3`
    """
    from flows.catalogue import find_artifact, open_store, record

    found = record(find_artifact(open_store(store), stage, fingerprint), rows)
    if json_:
        print_json(found)
    else:
        from flows.showing import print_artifact

        print_artifact(found)


@app.command()
def path(stage: StageName, fingerprint: Fingerprint = None, store: StoreUrl = "store") -> None:
    """Print where an artifact lies.

    Example: `ls $(cocu path archive)`
    """
    from flows.catalogue import find_artifact, location, open_store

    say(location(find_artifact(open_store(store), stage, fingerprint)))


@app.command()
def export(
    folder: Annotated[str, typer.Argument(help="Folder or fsspec URL to write to.", metavar="FOLDER")],
    fingerprint: Fingerprint = None,
    store: StoreUrl = "store",
) -> None:
    """Write a trained GroupViT as a folder that `transformers.GroupViTModel.from_pretrained` loads.

    Such a folder is also what `train.groupvit.init` starts a training from.

    Example: `cocu export ./groupvit --fingerprint 1f3c`
    """
    from flows.catalogue import find_artifact, open_store
    from flows.handing_over import export_groupvit

    export_groupvit(find_artifact(open_store(store), "train", fingerprint), folder)
    say(folder)


@app.command()
def gc(
    store: StoreUrl = "store",
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; else they are only listed.")] = False,
    json_: AsJson = False,
) -> None:
    """List, and with --yes remove, what no run's summary leads to and what interrupted runs left.

    Example: `cocu gc --store ./store --yes`
    """
    from flows.catalogue import open_store
    from flows.garbage import as_rows, find_garbage, remove

    garbage = find_garbage(open_store(store))
    if yes:
        remove(garbage)
    rows = as_rows(garbage)
    if json_:
        print_json({"removed": yes, "bytes": sum(item.bytes for item in garbage), "artifacts": rows})
        return
    if rows:
        print_table(tuple(rows[0]), [[*list(row.values())[:-1], size(row["bytes"])] for row in rows])
    total = f"{len(rows)} folders, {size(sum(item.bytes for item in garbage))}"
    say(f"removed {total}" if yes else f"would remove {total}" + ("; add --yes to do so" if rows else ""))


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="Check what this config needs too.")] = None,
    store: StoreUrl = "store",
    set_: Overrides = None,
    json_: AsJson = False,
) -> None:
    """Check packages, device, Prefect, store, and the weights and data a config names.

    The exit status is 1 when something needed is missing.

    Example: `cocu doctor configs/flickr8k.toml`
    """
    from dataclasses import asdict

    from flows.doctor import check_machine
    from flows.showing import print_checks

    wanted = []
    if config:
        from flows.doctor_config import check_config

        wanted = check_config(config, store, set_ or ())
    checks = [*check_machine(store), *wanted]
    if json_:
        print_json([asdict(check) for check in checks])
    else:
        print_checks(checks)
    raise typer.Exit(1 if any(check.status == "missing" for check in checks) else 0)


@app.command()
def serve(
    config: ConfigFile,
    cron: Annotated[str, typer.Option(help="When to run: minute, hour, day, month, weekday.")],
    name: Annotated[str | None, typer.Option(help="Of the deployment; else the config's file name.")] = None,
    store: StoreUrl = "store",
    engine: Engine = "local",
    workers: Workers = 1,
    device: Device = "auto",
    until: Until = None,
    set_: Overrides = None,
) -> None:
    """Run a config on a schedule of the Prefect server that PREFECT_API_URL names; Ctrl-C ends it.

    Example: `cocu serve configs/flickr8k.toml --cron "0 3 * * *" --store s3://bucket/store`
    """
    from flows.deployments import run_parameters
    from flows.deployments import serve as serve_deployment

    parameters = run_parameters(config, store, engine, workers, device, until, set_ or ())
    deployment = name or config.stem
    serve_deployment(deployment, cron, parameters)


if __name__ == "__main__":
    main()
