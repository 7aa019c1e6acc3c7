"""Checkpoints: whole or not there, the last few and the best kept, no damage taken up."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from storage.errors import StoreError
from storage.files import Folder
from training.checkpoint import CHECKPOINTS, MARKER, Checkpoints


def saved(url: str, losses: dict[int, float], keep_last: int = 2) -> Folder:
    """Checkpoints of these steps with these smoothed losses, each holding its step."""
    folder = Folder(url)
    with closing(Checkpoints(folder, keep_last)) as checkpoints:
        for step, loss in losses.items():
            files = {"model": {"w": torch.full((3,), float(step))}, "curve": {"loss": torch.zeros(0)}}
            checkpoints.save(files, step, loss, {"epoch": 0, "step": step})
        checkpoints.wait()
    return folder


def newest(folder: Folder) -> int | None:
    """The step of the checkpoint that a run goes on from."""
    with closing(Checkpoints(folder, 2)) as checkpoints:
        found = checkpoints.newest()
    if found is None:
        return None
    facts, files = found
    assert files["model"]["w"].tolist() == [float(facts.step)] * 3
    return facts.step


@pytest.mark.parametrize(
    ("losses", "keep_last", "kept"),
    [
        ({1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0}, 2, [3, 4]),
        ({1: 1.0, 2: 4.0, 3: 3.0, 4: 2.0}, 2, [1, 3, 4]),
        ({1: 2.0, 2: 1.0, 3: 3.0, 4: 1.0}, 1, [2, 4]),
        ({1: float("inf")}, 3, [1]),
    ],
)
def test_last_few_and_the_best_are_kept(
    losses: dict[int, float], keep_last: int, kept: list[int], tmp_path: Path
) -> None:
    folder = saved(str(tmp_path), losses, keep_last)
    assert [int(name) for name in folder.list(CHECKPOINTS)] == kept
    assert newest(folder) == max(losses)


def test_checkpoints_of_a_remote_store_are_kept_and_read_alike() -> None:
    folder = saved("memory://checkpoints", {1: 5.0, 2: 1.0, 3: 3.0, 4: 2.0}, keep_last=1)
    assert [int(name) for name in folder.list(CHECKPOINTS)] == [2, 4]
    assert newest(folder) == 4


def test_run_without_checkpoints_starts_afresh(tmp_path: Path) -> None:
    assert newest(Folder(str(tmp_path))) is None


def test_tensors_are_those_of_the_moment_of_saving(tmp_path: Path) -> None:
    weights = torch.zeros(3)
    with closing(Checkpoints(Folder(str(tmp_path)), 1)) as checkpoints:
        checkpoints.save({"model": {"w": weights}}, 0, 0.0, {})
        weights += 1
    assert newest(Folder(str(tmp_path))) == 0


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut": lambda place: (place / "model.safetensors").write_bytes(b"\x08"),
    "weights changed": lambda place: flip(place / "model.safetensors"),
    "weights gone": lambda place: (place / "model.safetensors").unlink(),
    "marker no JSON": lambda place: (place / MARKER).write_bytes(b"{"),
    "marker of something else": lambda place: (place / MARKER).write_text(json.dumps({"step": 4})),
    "marker a list": lambda place: (place / MARKER).write_text("[1]"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_checkpoint_falls_back_to_the_one_before_with_a_warning(
    damage: str, tmp_path: Path
) -> None:
    folder = saved(str(tmp_path), {2: 2.0, 4: 1.0})
    DAMAGES[damage](tmp_path / CHECKPOINTS / f"{4:09d}")
    with pytest.warns(
        UserWarning, match=r"checkpoint '.*000000004' is damaged; going on from the one before"
    ):
        assert newest(folder) == 2


def test_checkpoint_that_was_never_finished_is_passed_over_in_silence(tmp_path: Path) -> None:
    folder = saved(str(tmp_path), {2: 2.0, 4: 1.0})
    (tmp_path / CHECKPOINTS / f"{4:09d}" / MARKER).unlink()
    assert newest(folder) == 2
    saved(str(tmp_path), {4: 1.5})
    assert newest(folder) == 4


def test_only_damaged_checkpoints_are_a_fault_that_names_the_remedy(tmp_path: Path) -> None:
    folder = saved(str(tmp_path), {2: 2.0})
    flip(tmp_path / CHECKPOINTS / f"{2:09d}" / "model.safetensors")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(StoreError, match=r"every checkpoint is damaged; remove '.*' to start again"),
    ):
        newest(folder)


def test_fault_while_writing_is_raised_when_training_next_asks(tmp_path: Path) -> None:
    (tmp_path / "_progress").write_text("a file where a folder should be")
    with closing(Checkpoints(Folder(str(tmp_path)), 2)) as checkpoints:
        checkpoints.save({"model": {"w": torch.zeros(1)}}, 1, 0.0, {})
        with pytest.raises(StoreError, match="cannot write to the store"):
            checkpoints.wait()
