"""Whether this machine can run cocu, and what to do where it cannot."""

import os
import shutil
import tomllib
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from flows.prefect_server import quiet_prefect, server_fault
from storage.artifact import Store
from storage.errors import CocuError

Status = Literal["ok", "note", "missing"]
FREE_BYTES = 2_000_000_000  # the demo writes 0.2 GB; torch and a published encoder want more


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status  # note: works, but somebody may want to know
    found: str
    remedy: str = ""


def check_machine(store: str) -> list[Check]:
    """Packages, device, index, Ray, Prefect and the store."""
    checks = [
        *attempt("packages", check_packages),
        *attempt("torch", check_torch),
        *attempt("faiss", check_faiss),
        *attempt("ray", check_ray),
        *attempt("prefect", check_prefect),
    ]
    return [*checks, *attempt("store", lambda: check_store(store))]


def attempt(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks of one subject; whatever it raises is a finding too."""
    try:
        return list(look())
    except CocuError as error:
        return [Check(name, "missing", str(error))]
    except Exception as error:  # an import of a broken package may raise anything
        return [Check(name, "missing", f"{type(error).__name__}: {error}", "install it again")]


def check_packages() -> Iterable[Check]:
    """Every requirement of the distribution, with the version that is installed."""
    wanted = [requirement for requirement in requirements() if _applies(requirement)]
    wrong = [check for check in map(_package, wanted) if check]
    yield from wrong
    if not wrong:
        versions = {r.name: metadata.version(r.name) for r in wanted}
        shown = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield Check("packages", "ok", f"all {len(versions)}: {shown}")


def requirements() -> list[Requirement]:
    """What the distribution says it needs; from ``pyproject.toml`` where it runs without being installed."""
    try:
        listed = metadata.requires("cocu") or []
    except metadata.PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        listed = tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"]
    return [Requirement(line) for line in listed]


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _package(requirement: Requirement) -> Check | None:
    name, remedy = f"package {requirement.name}", f"pip install '{requirement}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(name, "missing", "not installed", remedy)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return Check(name, "missing", f"{version}, where {requirement.specifier} is needed", remedy)


def check_torch() -> Iterable[Check]:
    """The device that ``auto`` stands for."""
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        gpus = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
        yield Check("device", "ok", f"torch {torch.__version__}, {gpus}")
    else:
        found = f"torch {torch.__version__} without GPU, {torch.get_num_threads()} threads"
        yield Check("device", "note", found, "fine for small corpora; large ones want a GPU build and a GPU")


def check_faiss() -> Iterable[Check]:
    """A search that must find what was put in."""
    import faiss  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    vectors_ND = np.eye(4, dtype=np.float32)
    _, rows_QL = faiss.knn(vectors_ND, vectors_ND, 1, faiss.METRIC_INNER_PRODUCT)
    works = rows_QL[:, 0].tolist() == [0, 1, 2, 3]
    version = metadata.version("faiss-cpu")
    yield Check("faiss", "ok" if works else "missing", f"{version}, a search finds {rows_QL[:, 0].tolist()}")


def check_ray() -> Iterable[Check]:
    """Only looked for: starting it takes seconds."""
    address = os.environ.get("RAY_ADDRESS")
    where = f"the cluster at RAY_ADDRESS={address}" if address else "a local one per run"
    yield Check("ray", "ok", f"{metadata.version('ray')}, --engine ray uses {where}")


def check_prefect() -> Iterable[Check]:
    """The server runs report to."""
    quiet_prefect()
    from prefect.settings import get_current_settings  # noqa: PLC0415

    settings, version = get_current_settings(), metadata.version("prefect")
    yield _writable("prefect home", settings.home, "set PREFECT_HOME to a folder you may write to")
    url = settings.api.url
    if url is None:
        yield Check("prefect", "ok", f"{version}, starts a server of its own for each run")
        return
    fault = server_fault(url)
    remedy = f"start it ('prefect server start') or unset PREFECT_API_URL: {fault}" if fault else ""
    yield Check("prefect", "missing" if fault else "ok", f"{version}, server {url}", remedy)


def check_store(url: str) -> Iterable[Check]:
    """Whether files can be written, and room for them."""
    folder = Store(url).folder
    name = f".doctor-{uuid.uuid4().hex}"
    try:
        folder.write(name, b"ok")
        folder.remove(name)
    except CocuError as error:
        yield Check("store", "missing", str(error), "give another --store, or mend its permissions")
        return
    yield Check("store", "ok", f"{folder.path() if folder.is_local else url} can be written")
    if folder.is_local:
        free = shutil.disk_usage(folder.path()).free
        enough = free >= FREE_BYTES
        remedy = "" if enough else f"free space, or give a --store with {FREE_BYTES / 1e9:.0f} GB"
        yield Check("disk", "ok" if enough else "note", f"{free / 1e9:.1f} GB free", remedy)


def _writable(name: str, folder: Path, remedy: str) -> Check:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if place.is_dir() and os.access(place, os.W_OK):
        return Check(name, "ok", f"{folder} can be written")
    return Check(name, "missing", f"{folder} cannot be written", remedy)
