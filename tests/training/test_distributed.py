"""Several processes that train together: they equal one, and one that fails is told of."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from storage.errors import InputError
from storage.files import Folder
from storage.runtime import Bar, Runtime
from storage.stage import Job
from tests.training import tiny, workers
from training.distributed import ALONE, PeerLost
from training.launch import together


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
