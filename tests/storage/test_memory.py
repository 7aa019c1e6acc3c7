import json
import mmap
import sys

import pytest

from storage.artifact import Store
from storage.manifest import manifest_from_json
from storage.memory import forget_peak, peak_bytes, resident_bytes
from storage.runtime import Runtime
from storage.stage import Job, Output, Stage, materialize

BLOCK = 64 << 20  # bytes
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")


def use_a_block() -> None:
    with mmap.mmap(
        -1, BLOCK
    ) as block:  # pages of its own: an allocator may hold freed ones that are resident
        block[::4096] = b"x" * (BLOCK // 4096)


def write(job: Job[None]) -> None:
    use_a_block()
    job.write(Output(files={"data": (b"x", 1)}, seen=1, kept=1))


def test_peak_is_at_least_what_is_resident():
    assert peak_bytes() >= resident_bytes() > 1 << 20


@linux
def test_peak_counts_what_was_freed_until_it_is_forgotten():
    forget_peak()
    before = peak_bytes()
    use_a_block()
    assert peak_bytes() >= before + BLOCK // 2
    forget_peak()
    assert peak_bytes() < before + BLOCK // 2


def test_manifest_tells_the_peak_of_the_stage(tmp_path):
    artifact = materialize(Stage("block", 1, write), None, {}, Store(str(tmp_path)), Runtime())
    assert artifact.manifest.peak_bytes >= BLOCK


def test_manifest_of_before_the_peak_was_recorded_is_read_with_none(tmp_path):
    artifact = materialize(Stage("block", 1, write), None, {}, Store(str(tmp_path)), Runtime())
    fields = json.loads(artifact.folder.read("manifest.json"))
    del fields["peak_bytes"]
    assert manifest_from_json(json.dumps(fields).encode(), "here").peak_bytes == 0
