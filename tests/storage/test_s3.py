"""The store on an S3 server: moto's, started here on the loopback, found by AWS' own variables."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from curation.corpus import CorpusConfig
from curation.sources import Source
from storage.artifact import Artifact, Store
from storage.errors import InputError, StoreError

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket."""
    variables = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "COCU_CACHE": str(tmp_path / "cache"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    name = tmp_path.name.replace("_", "-").lower()
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def remote_parts(artifact: Artifact) -> dict[str, bytes]:
    names = [name for name in artifact.folder.list() if name != "manifest.json"]
    return {name: artifact.folder.read(name) for name in names}


def corpus_of(folder: str) -> CorpusConfig:
    return CorpusConfig(sources=(Source("web", urls=(f"{folder}/*.tar",)),))


@pytest.mark.slow
def test_run_in_a_bucket_writes_what_a_local_run_writes(
    bucket: str, tmp_path: Path, curate: Any, scene_tars: Path, tiny_encoder: Path
) -> None:
    for tar in sorted(scene_tars.iterdir())[:2]:
        s3fs.S3FileSystem().put_file(str(tar), f"{bucket}/tars/{tar.name}")
    remote = curate(f"{bucket}/store", corpus_of(f"{bucket}/tars"), tiny_encoder)
    near = tmp_path / "tars"
    near.mkdir()
    for tar in sorted(scene_tars.iterdir())[:2]:
        (near / tar.name).symlink_to(tar)
    local = curate(tmp_path / "store", corpus_of(str(near)), tiny_encoder)
    for there, here in zip(remote.plan.until("export"), local.plan.until("export"), strict=True):
        assert there.artifact.fingerprint == here.artifact.fingerprint
        assert remote_parts(there.artifact) == remote_parts(here.artifact), here.label
        assert there.artifact.manifest.parts == here.artifact.manifest.parts


def test_artifact_in_a_bucket_is_committed_by_its_manifest_alone(bucket: str) -> None:
    store = Store(f"{bucket}/store")
    artifact = store.artifact("corpus", "0" * 16)
    artifact.folder.write("a.samples.parquet", b"part")
    assert not artifact.committed
    assert store.artifacts() == []
    assert store.unfinished() == [artifact]
    artifact.folder.write("manifest.json", b"{}")
    assert artifact.committed


def test_what_another_machine_wrote_to_a_bucket_is_seen_at_once(bucket: str) -> None:
    here = Store(f"{bucket}/store").folder
    assert here.list("stage/x") == []
    assert not here.exists("stage/x/manifest.json")
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    other.pipe_file(f"{bucket}/store/stage/x/a.json", b"{}")
    assert here.list("stage/x") == ["a.json"]
    other.pipe_file(f"{bucket}/store/stage/x/manifest.json", b"{}")
    assert here.exists("stage/x/manifest.json")


def test_store_in_a_bucket_that_is_not_there_cannot_be_written(bucket: str) -> None:
    store = Store(f"{bucket}-other/store")
    assert store.artifacts() == []
    with pytest.raises(
        StoreError, match=r"cannot write to the store 's3://.*-other/store': .*bucket does not exist"
    ):
        store.folder.write("part", b"x")


def test_store_on_a_server_that_does_not_answer_is_one_clear_fault(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = Store(f"{bucket}/store")
    for ask in (store.artifacts, lambda: store.folder.write("part", b"x")):
        with pytest.raises(
            StoreError, match=r"cannot use the store 's3://.*Could not connect to the endpoint"
        ):
            ask()


def test_corpus_on_a_server_that_does_not_answer_is_one_clear_fault(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curate: Any, tiny_encoder: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"cannot list 's3://.*/tars/\*\.tar' .*check the source's urls"):
        curate(tmp_path, corpus_of(f"{bucket}/tars"), tiny_encoder, until="corpus")
