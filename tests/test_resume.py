"""kill -9 in the middle of a stage, then the same command: the same bytes as if nothing had happened."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.killable import Killable, run_stages

CONFIG = """
name = "resume"

[encoder]
model = "local-dir:{encoder}"

[[corpus.sources]]
name = "scenes"
kind = "scenes"
scenes = {{ count = 120, shard_size = 5 }}

[vocabulary]
gallery = "scenes"

[groups.grouping]
backbone = "lab"
size = 16
starts = 1
iterations = 4

[regions]
size = 64

[train]
nouns = ["archive"]

[train.groupvit.model]
image_size = 64
patch_size = 16
width = 48
heads = 2
depths = [1, 1, 1]
groups = [8, 4, 0]
text_width = 32
text_layers = 1
text_heads = 2
context_length = 24
projection_dim = 32
projection_hidden = 64

[train.groupvit.loop]
epochs = 4
batch_size = 30
checkpoint_every = 3

[train.grouping]
recognition = {{ trains = "head", size = 64 }}

[train.grouping.loop]
epochs = 12
batch_size = 30
checkpoint_every = 2
"""


class Stages:
    """Some stages into a store, run as often as it takes."""

    def __init__(self, config: Path, store: Path, *stages: str) -> None:
        self.work, self.store = Killable(run_stages, config, store, *stages), store

    def finish(self) -> float:
        """Seconds it worked."""
        ended, seconds = self.work.run()
        assert ended
        return seconds

    def kill_when(self, pattern: str, beside: Path | None = None) -> list[Path]:
        """Starts it, kills it as soon as the store holds such a file; returns those there are then.

        Files of the artifact ``beside`` do not count.
        """
        ended, _ = self.work.run(lambda _: any(beside not in p.parents for p in self.store.glob(pattern)))
        assert not ended
        return sorted(self.store.glob(pattern))


def parts(store: Path) -> dict[str, bytes]:
    """Every file of the store that is named in a manifest, but for those that tell how fast it was made."""
    found = {}
    for manifest in sorted(store.glob("*/*/manifest.json")):
        for part in json.loads(manifest.read_bytes())["parts"]:
            path = manifest.parent / part["name"]
            if part["table"] != "speeds":
                found[str(path.relative_to(store))] = path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
def test_run_killed_in_embed_and_in_both_trainings_ends_with_the_bytes_of_an_uninterrupted_one(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "resume.toml"
    config.write_text(CONFIG.format(encoder=tiny_encoder))
    stages = ("train groupvit_archive", "train grouping_archive")
    whole, broken = (Stages(config, tmp_path / name, *stages) for name in ("whole", "broken"))

    embedded = broken.kill_when("embed/*/_progress/*.json")
    assert 0 < len(embedded) < 24
    assert not list(broken.store.glob("embed/*/manifest.json"))
    first_part = next(broken.store.glob("embed/*/scenes.00000.embeddings.parquet"))
    written = first_part.stat().st_mtime_ns

    groupvit = broken.kill_when("train/*/_progress/checkpoints/*/checkpoint.json")[0].parents[3]
    assert not list(broken.store.glob("train/*/manifest.json"))
    assert first_part.stat().st_mtime_ns == written  # not made again

    broken.kill_when("train/*/_progress/checkpoints/*/checkpoint.json", beside=groupvit)
    assert list(broken.store.glob("train/*/manifest.json")) == [groupvit / "manifest.json"]

    broken.finish()
    whole.finish()
    assert {name.split("/")[0] for name in parts(whole.store)} >= {"embed", "regions", "archive", "train"}
    ours, theirs = parts(broken.store), parts(whole.store)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert not list(broken.store.glob("*/*/_progress"))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two dozen processes
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
def test_curation_killed_at_twenty_random_moments_ends_with_the_bytes_of_an_uninterrupted_one(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "resume.toml"
    config.write_text(CONFIG.format(encoder=tiny_encoder))
    whole = Stages(config, tmp_path / "whole", "export")
    seconds = whole.finish()
    expected = parts(whole.store)
    moments, kills, rounds = np.random.default_rng(20), 0, 0
    while kills < 20:
        broken = Stages(config, tmp_path / f"broken{rounds}", "export")
        while kills < 20 and not broken.work.run_for(moments.uniform(0, seconds)):
            kills += 1
        broken.finish()
        assert parts(broken.store) == expected
        assert not list(broken.store.glob("*/*/_progress"))
        rounds += 1
