"""The stage ``train`` in several processes, on a small corpus, from curation's own artifacts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curation.encoder import load_encoder
from flows.run import plan_run
from storage.artifact import Artifact, Store
from storage.runtime import Bar, Runtime, silent_progress
from storage.stage import materialize
from tests.training import tiny
from training.loop import LoopConfig
from training.optim import OptimConfig
from training.train import MODEL, TRAIN, GroupViTTraining

STEPS = 6
LOOP = LoopConfig(
    precision="fp32",
    epochs=2,
    batch_size=30,
    micro_batch=8,
    checkpoint_every=2,
    ema=0.5,
    optim=OptimConfig(rate=1e-4),
)
pytestmark = pytest.mark.slow


def trained(run: Any, store: Path, processes: int, progress: Any = silent_progress, **loop: Any) -> Artifact:
    """A tiny GroupViT from the archives of 90 scenes."""
    model = replace(tiny.GROUPVIT, vocab_size=49408)
    config = GroupViTTraining(model=model, loop=replace(LOOP, **loop))
    inputs = {name: run[name] for name in ("encoder", "corpus", "vocabulary", "archive")}
    runtime = Runtime(device="cpu", load_encoder=load_encoder, progress=progress, processes=processes)
    return materialize(TRAIN, config, inputs, Store(str(store)), runtime)


@dataclass
class Bars:
    """Notes how far the bar is, and stops the run when it is there."""

    stop: int
    at: list[int] = field(default_factory=list)

    @contextmanager
    def __call__(self, title: str, total: int) -> Iterator[Bar]:
        assert title == "train groupvit archive"
        assert total == STEPS
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:  # noqa: ARG002
        self.at.append(steps)
        if sum(self.at) == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def alone(curated: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return trained(curated, tmp_path_factory.mktemp("alone"), 1)


def assert_same(found: Artifact, expected: Artifact) -> None:
    """As far as rounding goes, which AdamW makes steps of where a gradient is zero."""
    assert found.fingerprint == expected.fingerprint
    assert [part.name for part in found.manifest.parts] == [part.name for part in expected.manifest.parts]
    curve, other = (a.read("losses").to_pydict() for a in (expected, found))
    assert other["step"] == curve["step"] == list(range(STEPS))
    assert other["loss"] == pytest.approx(curve["loss"], rel=1e-4)
    assert other["gradient_norm"] == pytest.approx(curve["gradient_norm"], rel=1e-2)
    weights, others = (load_file(a.file(MODEL)) for a in (expected, found))
    assert torch.equal(weights["image_projector.norm.num_batches_tracked"], torch.tensor(STEPS))
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], atol=2 * STEPS * 1e-4, rtol=0)


@pytest.mark.parametrize(("shard", "processes"), [(False, 2), (True, 2), (True, 1)])
def test_two_processes_stopped_and_resumed_by_any_number_make_the_artifact_of_one(
    shard: bool, processes: int, curated: Any, alone: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(curated, tmp_path, 2, Bars(5), shard=shard)
    resumed = Bars(-1)
    assert_same(trained(curated, tmp_path, processes, resumed, shard=shard), alone)
    assert resumed.at[0] in (2, 4)
    assert sum(resumed.at) == STEPS


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "flows.train", *map(str, arguments)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.fixture
def config(tiny_encoder: Path, tmp_path: Path) -> Path:
    """Two trainings of a tiny GroupViT, of three steps each."""
    written = tmp_path / "tiny.toml"
    sizes = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(tiny.GROUPVIT).items()}
    model = ", ".join(f"{name} = {value}" for name, value in (sizes | {"vocab_size": 49408}).items())
    written.write_text(f"""
        encoder.model = "local-dir:{tiny_encoder}"
        vocabulary.gallery = "scenes"
        train.groupvit.model = {{ {model} }}
        train.groupvit.loop = {{ epochs = 1, batch_size = 8 }}
        [[corpus.sources]]
        name = "curate"
        kind = "scenes"
        scenes = {{ split = "curate", count = 24, shard_size = 12 }}
    """)
    return written


def test_torchrun_trains_what_a_config_declares_and_says_what_is_missing(
    config: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    early = torchrun(config, "--store", store, "--device", "cpu")
    assert early.returncode != 0
    assert "cocu: training reads 'encoder', which is not in the store yet" in early.stderr
    _, plan = plan_run(config, str(store))
    runtime = Runtime(device="cpu", load_encoder=load_encoder, locations=plan.locations)
    for node in plan.until("archive"):
        materialize(node.stage, node.config, node.inputs, plan.store, runtime)
    done = torchrun(config, "--store", store, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    segmenters = [node.artifact for node in plan.nodes if node.stage is TRAIN]
    assert [len(artifact.read("losses")) for artifact in segmenters] == [3, 3]
    assert list((store / "runs/tiny").iterdir()) == []
