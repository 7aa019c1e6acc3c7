"""A training as a process: killed at random moments it ends with the same bytes; its memory stays flat."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = """
import json, sys
from contextlib import contextmanager
from types import SimpleNamespace
import torch
from storage.artifact import Store
from storage.memory import resident_bytes
from storage.runtime import Runtime
from storage.stage import materialize
from training.groupvit import GroupViTConfig
from training.loop import LoopConfig
from training.train import TRAIN, GroupViTTraining

source, inputs, target, loop = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])

def tokens(texts, context_length):
    rows = [[1 + ord(letter) % 40 for letter in text[:7]] + [49] for text in texts]
    return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

def encoder(folder, device):
    return SimpleNamespace(mean=(0.5,) * 3, std=(0.3,) * 3, device=torch.device("cpu"), tokenizer=tokens)

@contextmanager
def progress(title, total):
    taken = []
    def advance(steps=1, note=""):
        taken.extend([None] * steps)
        if steps and len(taken) % 100 == 0:
            print(resident_bytes(), flush=True)
    yield SimpleNamespace(advance=advance)

model = GroupViTConfig(
    image_size=32, patch_size=8, width=16, heads=2, depths=(1, 1, 0), groups=(4, 2, 0), text_width=8,
    text_layers=1, text_heads=1, context_length=8, vocab_size=50, projection_dim=8, projection_hidden=8,
)
store = Store(source)
inputs = {name: store.artifact(stage, fingerprint) for name, (stage, fingerprint) in inputs.items()}
runtime = Runtime(device="cpu", load_encoder=encoder, progress=progress)
print("ready", flush=True)
materialize(TRAIN, GroupViTTraining(model=model, loop=LoopConfig(**loop)), inputs, Store(target), runtime)
"""


class Command:
    """A training into a store, run as often as it takes."""

    def __init__(self, curated: Any, store: Path, **loop: Any) -> None:
        names = {"corpus": "corpus", "encoder": "encoder", "vocabulary": "vocabulary", "archive": "archive"}
        inputs = {name: (curated[label].stage, curated[label].fingerprint) for name, label in names.items()}
        source = curated["corpus"].url.rstrip("/").rsplit("/", 2)[0]
        texts = (source, json.dumps(inputs), str(store), json.dumps(loop))
        self.arguments, self.store = [sys.executable, "-c", COMMAND, *texts], store

    def run(self, kill_after: float | None = None) -> tuple[bool, float, list[int]]:
        """Whether it came to its end, seconds without its imports, and what it printed."""
        with subprocess.Popen(self.arguments, cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()
            ready = time.monotonic()
            if kill_after is not None:
                time.sleep(kill_after)
                process.send_signal(signal.SIGKILL)
            printed, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        return process.returncode == 0, time.monotonic() - ready, [int(line) for line in printed.split()]

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
    whole = Command(curated, tmp_path / "whole", **loop)
    ended, seconds, _ = whole.run()
    assert ended
    moments, kills, rounds = np.random.default_rng(5), 0, 0
    while kills < 5:
        broken = Command(curated, tmp_path / f"broken{rounds}", **loop)
        while kills < 5 and not broken.run(kill_after=moments.uniform(0, 0.6 * seconds))[0]:
            kills += 1
        broken.run()
        assert broken.result() == whole.result()
        assert not list(broken.store.glob("train/*/_progress"))
        rounds += 1


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 2,500 steps
def test_memory_of_two_thousand_steps_stays_flat(curated: Any, tmp_path: Path) -> None:
    loop = {"epochs": 84, "batch_size": 3, "checkpoint_every": 100, "open_shards": 1, "ema": 0.9}
    _, _, resident = Command(curated, tmp_path, **loop).run()
    assert len(resident) == 25  # one each hundred of 84 · 30 steps
    warm, last = resident[4], resident[24]
    assert last - warm < 0.02 * warm, resident
