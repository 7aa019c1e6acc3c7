"""A training as a process: killed at random moments it ends with the same bytes; its memory stays flat."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from storage.artifact import Store
from storage.memory import resident_bytes
from storage.runtime import Runtime
from storage.stage import materialize
from tests.killable import Killable
from tests.training import tiny
from training.loop import LoopConfig
from training.train import TRAIN, GroupViTTraining

EVERY = 100  # steps after which memory is noted


def train(
    source: str, inputs: dict[str, tuple[str, str]], target: Path, loop: LoopConfig, memory: Path
) -> None:
    """A tiny GroupViT into the store ``target``."""
    model = replace(tiny.GROUPVIT, width=16, heads=2, depths=(1, 1, 0), groups=(4, 2, 0), text_layers=1)
    found = {name: Store(source).artifact(stage, digest) for name, (stage, digest) in inputs.items()}
    runtime = Runtime(device="cpu", load_encoder=_encoder, progress=partial(_progress, memory))
    materialize(TRAIN, GroupViTTraining(model=model, loop=loop), found, Store(str(target)), runtime)


def _encoder(_folder: str, _device: str) -> Any:
    return tiny.Encoder(nn.Identity())


@contextmanager
def _progress(memory: Path, _title: str, _total: int) -> Iterator[Any]:
    taken = 0

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal taken
        taken += steps
        if steps and taken % EVERY == 0:
            with memory.open("a") as file:
                file.write(f"{resident_bytes()}\n")

    yield SimpleNamespace(advance=advance)


class Training:
    """A training into a store, run as often as it takes."""

    def __init__(self, curated: Any, store: Path, **loop: Any) -> None:
        names = ("corpus", "encoder", "vocabulary", "archive")
        inputs = {name: (curated[name].stage, curated[name].fingerprint) for name in names}
        source = curated["corpus"].url.rstrip("/").rsplit("/", 2)[0]
        self.store, self.memory = store, store.with_suffix(".memory")
        self.work = Killable(train, source, inputs, store, LoopConfig(precision="fp32", **loop), self.memory)

    def result(self) -> dict[str, bytes]:
        """Weights and curve."""
        (model,) = self.store.glob("train/*/model.safetensors")
        return {path.name: path.read_bytes() for path in (model, model.parent / "all.losses.parquet")}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
def test_three_epochs_killed_five_times_at_random_end_with_the_bytes_of_an_unkilled_run(
    curated: Any, tmp_path: Path
) -> None:
    loop = {"epochs": 3, "batch_size": 2, "checkpoint_every": 7, "open_shards": 1, "ema": 0.9}
    whole = Training(curated, tmp_path / "whole", **loop)
    ended, seconds = whole.work.run()
    assert ended
    moments, kills, rounds = np.random.default_rng(5), 0, 0
    while kills < 5:
        broken = Training(curated, tmp_path / f"broken{rounds}", **loop)
        while kills < 5 and not broken.work.run_for(moments.uniform(0, 0.6 * seconds)):
            kills += 1
        assert broken.work.run()[0]
        assert broken.result() == whole.result()
        assert not list(broken.store.glob("train/*/_progress"))
        rounds += 1


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 2,500 steps
def test_memory_of_two_thousand_steps_stays_flat(curated: Any, tmp_path: Path) -> None:
    loop = {"epochs": 84, "batch_size": 3, "checkpoint_every": 100, "open_shards": 1, "ema": 0.9}
    training = Training(curated, tmp_path / "store", **loop)
    assert training.work.run()[0]
    resident = [int(line) for line in training.memory.read_text().split()]
    assert len(resident) == 25  # one each hundred of 84 · 30 steps
    warm, last = resident[4], resident[24]
    assert last - warm < 0.02 * warm, resident
