import json
import os
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows import doctor
from flows.doctor import Check, attempt, check_packages, check_store

DATA = Path(os.environ.get("COCU_DATA", Path(__file__).parents[3] / "shared/data"))


VOC = """
[[evaluate.benchmarks]]
[evaluate.benchmarks.benchmark]
name = "voc"
kind = "voc"
path = "{}"
"""


def write(folder: Path, encoder: str, urls: str, benchmark: str = "") -> Path:
    config = folder / "mine.toml"
    config.write_text(
        f'[encoder]\n{encoder}\n[[corpus.sources]]\nname = "web"\nurls = ["{urls}"]\n{benchmark}'
    )
    return config


def checks(outcome) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(outcome.out)}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w"):
        pass
    return path


def test_doctor_finds_this_machine_fit(cocu, tmp_path):
    outcome = cocu("doctor", "--store", tmp_path / "store", "--json")
    found = checks(outcome)
    assert outcome.status == 0, outcome.out
    assert {"packages", "device", "faiss", "ray", "prefect", "prefect home", "store", "disk"} <= set(found)
    assert all(set(check) == {"name", "status", "found", "remedy"} for check in found.values())
    assert "torch" in found["packages"]["found"]
    assert not list((tmp_path / "store").iterdir())  # it leaves nothing behind


def test_doctor_shows_a_line_for_each_check(cocu, tmp_path):
    outcome = cocu("doctor", "--store", tmp_path)
    names = [line.split()[1] for line in outcome.out.splitlines() if line[0] != " "]
    assert names[:2] == ["packages", "device"]
    assert names[-2:] == ["store", "disk"]


def test_doctor_of_a_missing_package_says_how_to_get_it(monkeypatch):
    wanted = [Requirement("no-such-package>=2"), Requirement("numpy>=1000"), Requirement("pyarrow")]
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    missing, old = check_packages()
    assert (missing.status, missing.remedy) == ("missing", "pip install 'no-such-package>=2'")
    assert (old.name, old.status) == ("package numpy", "missing")
    assert ">=1000 is needed" in old.found


def test_doctor_of_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "store").write_text("a file")
    (check,) = check_store(str(tmp_path / "store"))
    assert check.status == "missing"
    assert "--store" in check.remedy


def test_doctor_of_a_nearly_full_disk_notes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "FREE_BYTES", 10**18)
    assert [check.status for check in check_store(str(tmp_path))] == ["ok", "note"]


def test_doctor_survives_a_package_that_cannot_be_imported():
    def broken() -> list[Check]:
        raise ImportError("libfaiss.so is missing")

    (check,) = attempt("faiss", broken)
    assert (check.status, check.found) == ("missing", "ImportError: libfaiss.so is missing")


def test_doctor_of_a_server_that_does_not_answer_fails_with_the_remedy(cocu, tmp_path):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        outcome = cocu("doctor", "--store", tmp_path, "--json")
    assert outcome.status == 1
    assert "unset PREFECT_API_URL" in checks(outcome)["prefect"]["remedy"]


def test_doctor_of_a_config_counts_what_is_there(cocu, tmp_path, tar):
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}")
    voc = VOC.format(DATA / "VOCdevkit" / "VOC2012")
    config = write(tmp_path, f'model = "local-dir:{DATA}/encoders/lite0-minilm"', f"{tmp_path}/*.tar", voc)
    outcome = cocu("doctor", config, "--store", tmp_path, "--json")
    found = checks(outcome)
    assert outcome.status == 0, outcome.out
    assert found["encoder"]["status"] == "ok"
    assert "1 tars" in found["source web"]["found"]
    assert "images in" in found["benchmark voc"]["found"]


def test_doctor_of_a_config_names_everything_that_is_missing(cocu, tmp_path):
    voc = VOC.format("/nowhere")
    config = write(tmp_path, 'model = "local-dir:/nowhere"', "/nowhere/*.tar", voc)
    outcome = cocu("doctor", config, "--store", tmp_path, "--json")
    found = checks(outcome)
    assert outcome.status == 1
    assert {found[name]["status"] for name in ("encoder", "source web", "benchmark voc")} == {"missing"}
    assert "/nowhere" in found["encoder"]["found"]


@pytest.mark.parametrize(
    ("encoder", "status", "told"),
    [
        ('model = "ViT-B-16"\npretrained = "openai"', "note", "downloads"),
        ('model = "hf-hub:someone/something"', "note", "downloads"),
        ('model = "ViT-B-16"\npretrained = "nonsense"', "missing", "openai"),
        ('model = "ViT-Q-99"\npretrained = "openai"', "missing", "list_pretrained"),
    ],
)
def test_doctor_tells_weights_to_come_from_weights_that_never_will(
    cocu, tmp_path, tar, monkeypatch, encoder, status, told
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = checks(cocu("doctor", write(tmp_path, encoder, str(tar)), "--store", tmp_path, "--json"))
    assert found["encoder"]["status"] == status
    assert told in found["encoder"]["remedy"]


def test_doctor_of_a_broken_config_gives_one_line(cocu, tmp_path):
    (tmp_path / "broken.toml").write_text("name = [")
    outcome = cocu("doctor", tmp_path / "broken.toml", "--store", tmp_path)
    assert outcome.status == 1
    assert "is not TOML" in outcome.err
    assert len(outcome.err.splitlines()) == 1
