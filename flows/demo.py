"""The whole method on the built-in corpus: nothing is downloaded, nothing needs to be there."""

import dataclasses
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from flows.config import Config, load_config
from flows.report import PAGE
from flows.run import SUMMARY, Results, declared, execute
from storage.errors import StoreError
from storage.runtime import Runtime


def demo_config(seed: int = 0, overrides: Sequence[str] = ()) -> Config:
    """The demo's config (``configs/demo.toml``, which is packaged with this module).

    Another seed than 0 replaces every seed of it, of the scenes too, and names the run after itself.
    """
    with as_file(files("flows").joinpath("demo.toml")) as path:
        settings = load_config(path, overrides)
    if seed:
        settings = dataclasses.replace(reseeded(settings, seed), name=f"{settings.name}-seed{seed}")
    return settings


def reseeded(value: Any, seed: int) -> Any:
    """A config with every field called ``seed`` replaced."""
    if isinstance(value, tuple):
        return tuple(reseeded(item, seed) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {f.name: reseeded(getattr(value, f.name), seed) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **({**fields, "seed": seed} if "seed" in fields else fields))


def run_demo(settings: Config, store: str, runtime: Runtime, folder: Path) -> Results:
    """Runs the demo and copies summary and report into ``folder``.

    Raises:
        CocuError: the first fault a person can mend.
    """
    name, plan = declared(settings, store, runtime.device)
    results = execute(name, plan, None, runtime)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in (SUMMARY, PAGE):
            (folder / file).write_bytes(results.folder.read(file))
    except OSError as error:
        raise StoreError(
            f"cannot write '{folder}': {error.strerror}; run in a folder you may write to"
        ) from error
    return results
