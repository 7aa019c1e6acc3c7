"""Several processes that train together: they equal one, and one that fails is told of."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from curation.encoder import load_encoder
from storage.artifact import Artifact, Store
from storage.errors import InputError
from storage.files import Folder
from storage.runtime import Bar, Runtime
from storage.stage import Job, materialize
from tests.training import tiny, workers
from training.distributed import ALONE, PeerLost
from training.launch import together
from training.loop import LoopConfig
from training.optim import OptimConfig
from training.train import MODEL, TRAIN, GroupViTTraining


def job(folder: Path, processes: int, config: Any = None, **runtime: Any) -> Job[Any]:
    return Job(
        config, {}, Runtime(device="cpu", processes=processes, **runtime), Folder(str(folder)), "train"
    )


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_with_pieces_after_several_steps_equal_one_with_the_double_batch(
    shard: bool, tmp_path: Path
) -> None:
    tiny.fit(job(tmp_path / "alone", 1, {"micro_batch": 0, "shard": False}), ALONE)
    together(tiny.fit, job(tmp_path / "pair", 2, {"micro_batch": 3, "shard": shard}))
    for name in tiny.MAKE:
        expected = load_file(tmp_path / f"alone/{name}.0.safetensors")
        ranks = [load_file(tmp_path / f"pair/{name}.{rank}.safetensors") for rank in (0, 1)]
        for key, tensor in expected.items():
            assert torch.equal(ranks[0][key], ranks[1][key])
            error = float((ranks[0][key].double() - tensor.double()).abs().max())
            assert error <= 1e-5 * max(1.0, float(tensor.abs().max())), f"{name}: {key}"


@dataclass
class Watched:
    lines: list[Any]

    @contextmanager
    def __call__(self, title: str, total: int) -> Iterator[Bar]:
        self.lines.append((title, total))
        yield self
        self.lines.append("end")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.lines.append((steps, note))


@pytest.mark.slow
def test_three_processes_gather_rows_average_gradients_and_show_the_progress_of_one(tmp_path: Path) -> None:
    watched = Watched([])
    together(workers.meet, job(tmp_path, 3, progress=watched))
    assert watched.lines == [("of 0", 3), (1, "a"), (2, "b"), "end"]
    rows = [[0, 0], [10, 0], [10, 1], [20, 0], [20, 1], [20, 2]]  # rank r has r + 1 of them
    means = [2.0, 1.0, None]  # what is missing counts as zero, what nobody uses is left alone
    for rank, begin in enumerate((0, 1, 3)):
        assert told_by(tmp_path, rank) == f"{rows} {begin} {means}"


def told_by(folder: Path, rank: int) -> str:
    return (folder / f"{rank}.txt").read_text()


@pytest.mark.slow
def test_fault_of_one_process_is_raised_as_it_was_and_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="process 1 cannot read"):
        together(workers.fail, job(tmp_path, 2))
    assert_ended(tmp_path)


@pytest.mark.slow
def test_process_that_is_killed_is_one_clear_fault_and_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(PeerLost, match="ended without a word .*SIGKILL.*|lost another one"):
        together(workers.die, job(tmp_path, 2))
    assert_ended(tmp_path)


def assert_ended(folder: Path) -> None:
    for rank in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int(told_by(folder, rank)), signal.SIG_DFL)


@pytest.mark.slow
def test_process_that_hangs_is_told_of_by_those_that_wait(tmp_path: Path) -> None:
    with pytest.raises(PeerLost, match="process 0 of 2 lost another one"):
        together(workers.hang, job(tmp_path, 2))


def test_one_process_is_this_one(tmp_path: Path) -> None:
    seen: list[Any] = []
    together(lambda given, peers: seen.append((given, peers)), cast("Any", job(tmp_path, 1)))
    assert seen[0][1] == ALONE


def trained(run: Any, store: Path, processes: int) -> Artifact:
    """A tiny GroupViT from the archives of 90 scenes: two epochs of three steps."""
    model = replace(tiny.GROUPVIT, vocab_size=49408)
    loop = LoopConfig(
        epochs=2, batch_size=30, micro_batch=8, checkpoint_every=2, optim=OptimConfig(rate=1e-4)
    )
    config = GroupViTTraining(model=model, loop=loop)
    inputs = {n: run[n] for n in ("encoder", "corpus", "vocabulary", "archive")}
    runtime = Runtime(device="cpu", load_encoder=load_encoder, processes=processes)
    return materialize(TRAIN, config, inputs, Store(str(store)), runtime)


@pytest.mark.slow
def test_stage_train_on_two_processes_makes_the_artifact_of_one(curated: Any, tmp_path: Path) -> None:
    alone, pair = (trained(curated, tmp_path / str(count), count) for count in (1, 2))
    assert pair.fingerprint == alone.fingerprint
    assert [part.name for part in pair.manifest.parts] == [part.name for part in alone.manifest.parts]
    expected, found = (a.read("losses").to_pydict() for a in (alone, pair))
    assert found["step"] == expected["step"] == list(range(6))
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    weights, other = (load_file(a.file(MODEL)) for a in (alone, pair))
    assert torch.equal(weights["image_projector.norm.num_batches_tracked"], torch.tensor(6))
    for name in weights:
        torch.testing.assert_close(other[name], weights[name], atol=2e-3, rtol=0)  # AdamW: six times the rate
