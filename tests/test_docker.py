"""Facts about docker/ that its linters cannot know: no engine runs here, so each is read off the files."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from flows.cli import app

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
WORKDIR = "/opt/cocu"  # of the images, where the repository's files are copied
IMAGES = {"cocu:cpu": "docker/cpu.Dockerfile", "cocu:gpu": "docker/gpu.Dockerfile"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE_TEXT = (DOCKER / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)["services"]
RAY_SERVICES = sorted(
    name for name, service in SERVICES.items() if service["command"][:2] == ["ray", "start"]
)
PIPELINES = sorted(name for name, service in SERVICES.items() if service["command"][0] == "cocu")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile as (word, arguments), comments and line ends taken out."""
    lines = (ROOT / dockerfile).read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.split("\n")) if word
    ]


def copied(dockerfile: str) -> list[str]:
    """Paths of the build context that a Dockerfile copies."""
    copies = [shlex.split(rest) for word, rest in instructions(dockerfile) if word == "COPY"]
    return [path for words in copies for path in words[:-1] if not path.startswith("--")]


def environment(dockerfile: str) -> dict[str, str]:
    """Variables that a Dockerfile sets, with its own arguments put in."""
    arguments = dict(rest.split("=", 1) for word, rest in instructions(dockerfile) if word == "ARG")
    pairs = [pair for word, rest in instructions(dockerfile) if word == "ENV" for pair in shlex.split(rest)]
    return {
        key: re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], value)
        for key, value in (p.split("=", 1) for p in pairs)
    }


def with_defaults(words: list[str]) -> list[str]:
    """Arguments of a command as compose gives them where no variable is set."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in words]


def cocu_commands() -> Iterator[list[str]]:
    """Arguments of every cocu command, in services and in the comments that tell how to use them."""
    for name in PIPELINES:
        yield with_defaults(SERVICES[name]["command"])[1:]
    comments = " ".join(
        line.lstrip("# ").rstrip("\\ ") for line in COMPOSE_TEXT.splitlines() if line.startswith("#")
    )
    found = re.findall(r"cocu (run \S+(?: --\S+ \w\S*| --\S+ /\S+)*)", comments)
    assert found, "the comments no longer show a single run"
    yield from (shlex.split(command) for command in found)


@pytest.mark.parametrize("dockerfile", IMAGES.values())
def test_dockerfile_copies_exist_and_pass_the_dockerignore(dockerfile: str) -> None:
    allowed = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for path in copied(dockerfile):
        assert (ROOT / path).exists(), f"{dockerfile} copies {path}"
        assert path.rstrip("/") in allowed, f".dockerignore holds back {path}"


@pytest.mark.parametrize("dockerfile", IMAGES.values())
def test_dockerfile_copies_everything_the_package_is_built_from(dockerfile: str) -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {
        *packages,
        PROJECT["project"]["readme"],
        "LICENSE",
        "pyproject.toml",
        "requirements.lock",
        "configs",
    }
    assert needed <= {path.rstrip("/") for path in copied(dockerfile)}


@pytest.mark.parametrize("dockerfile", IMAGES.values())
def test_dockerfile_build_finds_the_targets_of_links(dockerfile: str) -> None:
    steps = instructions(dockerfile)
    assert ("WORKDIR", WORKDIR) in steps
    build = steps.index(("RUN", "uv pip install --no-deps ."))
    present = {
        path.rstrip("/") for word, rest in steps[:build] if word == "COPY" for path in rest.split()[:-1]
    }
    links = [path for folder in present for path in (ROOT / folder).rglob("*") if path.is_symlink()]
    assert all(link.resolve().relative_to(ROOT).parts[0] in present for link in links)


@pytest.mark.parametrize("dockerfile", IMAGES.values())
def test_dockerfile_user_is_not_root(dockerfile: str) -> None:
    users = [rest for word, rest in instructions(dockerfile) if word == "USER"]
    assert users
    assert int(users[-1]) > 0
    assert f"--uid {users[-1]} " in dict(instructions(dockerfile))["RUN"]


def test_images_differ_in_torch_build_and_driver_variables_only() -> None:
    cpu, gpu = (environment(file) for file in IMAGES.values())
    assert cpu.pop("UV_TORCH_BACKEND") == "cpu"
    assert gpu.pop("UV_TORCH_BACKEND").startswith("cu")
    assert {key: gpu[key] for key in cpu} == cpu
    assert all(key.startswith("NVIDIA_") for key in gpu.keys() - cpu.keys())
    cpu_steps, gpu_steps = (
        [step for step in instructions(file) if step[0] not in ("ENV", "ARG")] for file in IMAGES.values()
    )
    assert cpu_steps == gpu_steps  # above all the base: nodes of a Ray cluster need one Python


def test_images_python_is_one_the_project_allows() -> None:
    base = dict(instructions("docker/cpu.Dockerfile"))["FROM"]
    image, version = re.fullmatch(r"(\w+):(\d+\.\d+)-slim", base).groups()  # type: ignore[union-attr]
    assert image == "python"
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))


def test_lock_holds_a_version_for_every_dependency_of_the_images() -> None:
    locked = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    )
    names = {
        re.match(r"[\w.-]+", spec)[0].lower().replace("_", "-") for spec in PROJECT["project"]["dependencies"]
    }  # type: ignore[index]
    assert names <= locked.keys()
    assert tuple(map(int, locked["torch"].split(".")[:2])) >= (2, 11)


def test_docker_folder_holds_no_python() -> None:
    assert not list(DOCKER.rglob("*.py"))


@pytest.mark.parametrize("arguments", list(cocu_commands()), ids=" ".join)
def test_compose_cocu_command_is_accepted_by_the_cli(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    name, *rest = (argument.removeprefix(f"{WORKDIR}/") for argument in arguments)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert name in commands, f"'cocu {name}' is no command; there are {sorted(commands)}"
    commands[name].make_context(name, [*rest])  # raises for an option or argument it does not have
    assert (ROOT / rest[0]).is_file()


@pytest.mark.parametrize("name", RAY_SERVICES)
def test_compose_ray_command_has_options_ray_knows(name: str) -> None:
    from ray.scripts.scripts import cli

    known = {option for parameter in cli.commands["start"].params for option in parameter.opts}
    used = {word.split("=")[0] for word in SERVICES[name]["command"] if word.startswith("--")}
    assert used <= known


@pytest.mark.parametrize("name", SERVICES)
def test_compose_image_is_built_from_its_own_dockerfile(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert build["dockerfile"] == IMAGES[SERVICES[name]["image"]]


def test_compose_prefect_port_is_the_same_everywhere() -> None:
    server = SERVICES["prefect"]
    port = server["command"][server["command"].index("--port") + 1]
    assert server["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"localhost:{port}/api/health" in server["healthcheck"]["test"][-1]
    assert urlsplit(server["environment"]["PREFECT_SERVER_UI_API_URL"]).port == int(port)
    for name in PIPELINES:
        url = urlsplit(SERVICES[name]["environment"]["PREFECT_API_URL"])
        assert (url.hostname, url.port, url.path) == ("prefect", int(port), "/api")


def test_compose_ray_address_is_the_same_everywhere() -> None:
    port = next(word for word in SERVICES["ray-head"]["command"] if word.startswith("--port=")).removeprefix(
        "--port="
    )
    address = f"ray-head:{port}"
    workers = [name for name in RAY_SERVICES if name != "ray-head"]
    assert all(f"--address={address}" in SERVICES[name]["command"] for name in workers)
    assert all(SERVICES[name]["environment"]["RAY_ADDRESS"] == address for name in PIPELINES)
    assert all(address in SERVICES[name]["healthcheck"]["test"] for name in (*RAY_SERVICES, *PIPELINES))


@pytest.mark.parametrize("name", PIPELINES)
def test_compose_pipeline_joins_the_cluster_and_shares_its_store_with_the_workers(name: str) -> None:
    service = SERVICES[name]
    assert service["entrypoint"] == ["join-cluster"]
    assert "docker/join-cluster.sh" in copied(IMAGES[service["image"]])
    store = service["command"][service["command"].index("--store") + 1]
    mounted = [volume for volume in service["volumes"] if volume.split(":")[1] == store]
    assert mounted
    same_profile = [other for other in RAY_SERVICES if SERVICES[other].get("profiles") == service["profiles"]]
    assert same_profile
    assert all(mounted[0] in SERVICES[other]["volumes"] for other in same_profile)


@pytest.mark.parametrize("name", SERVICES)
def test_compose_named_volumes_lie_over_folders_the_user_owns(name: str) -> None:
    owned = re.findall(r"(/\w+)(?= )", dict(instructions(IMAGES[SERVICES[name]["image"]]))["RUN"] + " ")
    targets = [volume.split(":")[1] for volume in SERVICES[name]["volumes"] if volume[0].isalpha()]
    assert set(targets) <= set(owned)


@pytest.mark.parametrize("name", SERVICES)
def test_compose_gpu_services_and_no_others_have_the_device(name: str) -> None:
    service = SERVICES[name]
    is_gpu = service.get("profiles") == ["gpu"]
    assert (service["image"] == "cocu:gpu") == is_gpu
    assert ("deploy" in service) == is_gpu
    assert ("cuda" in service["command"]) == (is_gpu and name in PIPELINES)


@pytest.mark.parametrize("name", SERVICES)
def test_compose_service_waits_for_what_its_profile_starts_and_checks(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        profiles = SERVICES[other].get("profiles")
        assert profiles is None or profiles == SERVICES[name].get("profiles")
        assert wait["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
