import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from flows.config import load_config
from flows.demo import demo_config, reseeded
from flows.run import declared, make_runtime
from storage.errors import InputError
from storage.stage import materialize
from training.groupvit_folder import load_pretrained

ROOT = Path(__file__).parents[2]
COMMANDS = ("demo", "run", "plan", "ls", "show", "path", "export", "gc", "doctor", "serve")
Cocu = Callable[..., "object"]


def only_line(outcome, status: int = 1) -> str:
    """The one line a fault gives."""
    assert outcome.status == status
    assert "Traceback" not in outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("cocu: ")]
    assert outcome.err.rstrip().endswith(line)
    return line


@pytest.fixture
def own_store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the finished store that a test may change."""
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(cocu, command):
    outcome = cocu(command, "--help")
    assert outcome.status == 0
    assert f"cocu {command}" in " ".join(outcome.out.split("Example:")[1].split())


def test_cocu_without_a_command_lists_all_of_them(cocu):
    outcome = cocu()
    assert outcome.status == 0
    assert all(command in outcome.out for command in COMMANDS)


def test_unknown_command_names_the_nearest(cocu):
    assert "'run'" in only_line(cocu("rum"), status=2)


def test_unknown_engine_lists_those_there_are(cocu, tiny_config):
    line = only_line(cocu("run", tiny_config, "--engine", "spark"), status=2)
    assert "local" in line
    assert "ray" in line


# ls, path, show


def test_ls_json_lists_every_artifact_with_its_size(cocu, tiny_store):
    rows = json.loads(cocu("ls", "--store", tiny_store, "--json").out)
    corpora = [row for row in rows if row["stage"] == "corpus"]
    assert {"pretrain", "embed", "archive", "report"} <= {row["stage"] for row in rows}
    assert all(set(row) == {"stage", "fingerprint", "rows", "created", "bytes"} for row in rows)
    assert sorted(row["rows"] for row in corpora) == [48, 120]  # samples and truth
    files = (tiny_store / "embed").rglob("*.parquet")
    embedded = next(row for row in rows if row["stage"] == "embed")
    assert embedded["bytes"] == sum(path.stat().st_size for path in files)


def test_ls_of_a_stage_shows_a_table_of_it_alone(cocu, tiny_store):
    outcome = cocu("ls", "embed", "--store", tiny_store)
    assert "embed" in outcome.out
    assert "archive" not in outcome.out


def test_ls_of_an_unknown_stage_lists_what_there_is(cocu, tiny_store):
    assert "embed" in only_line(cocu("ls", "embeds", "--store", tiny_store))


def test_ls_without_a_store_says_so(cocu, tmp_path):
    assert "no store" in only_line(cocu("ls", "--store", tmp_path / "none"))


def test_ls_imports_no_torch(tiny_store):
    code = (
        "import sys; from flows.cli import main\n"
        f"sys.argv = ['cocu', 'ls', '--store', {str(tiny_store)!r}]\n"
        "try: main()\n"
        "except SystemExit: print({'torch', 'prefect', 'ray', 'faiss', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("set()\n")


def test_path_prints_the_newest_and_takes_the_beginning_of_a_fingerprint(cocu, tiny_store):
    (folder,) = (tiny_store / "archive").iterdir()
    assert cocu("path", "archive", "--store", tiny_store).out == f"{folder}\n"
    assert (
        cocu("path", "archive", "--store", tiny_store, "--fingerprint", folder.name[:6]).out == f"{folder}\n"
    )
    newest = max((tiny_store / "corpus").iterdir(), key=lambda f: (f / "manifest.json").stat().st_mtime_ns)
    assert cocu("path", "corpus", "--store", tiny_store).out == f"{newest}\n"


def test_path_of_an_unknown_fingerprint_lists_those_there_are(cocu, tiny_store):
    (folder,) = (tiny_store / "archive").iterdir()
    assert folder.name in only_line(cocu("path", "archive", "--store", tiny_store, "--fingerprint", "xyz"))


def test_show_json_holds_the_manifest_and_first_rows(cocu, tiny_store):
    record = json.loads(cocu("show", "embed", "--store", tiny_store, "--json", "--rows", 14).out)
    rows = record["tables"]["embeddings"]
    assert record["config"] == {"batch_size": 64, "precision": "fp32", "decode": "exact"}
    assert record["counts"] == {"seen": 24, "kept": 24, "rejected": {}}
    assert [row["sample_id"] for row in rows][::13] == ["curate/00000/000000", "curate/00001/000013"]
    assert sum(value**2 for value in rows[0]["vector"]) == pytest.approx(1, abs=1e-2)


def test_show_abbreviates_vectors_and_names_the_concepts(cocu, tiny_store):
    assert "64 in all" in " ".join(cocu("show", "embed", "--store", tiny_store).out.split())
    archive = cocu("show", "archive", "--store", tiny_store, "--rows", 1).out
    assert "curate/00000/000000" in archive
    assert "temperature" in archive


# run


def test_run_of_a_finished_config_runs_nothing_and_ends_with_the_table(cocu, tiny_config, tiny_store):
    before = {path: path.stat().st_mtime_ns for path in tiny_store.rglob("*.parquet")}
    outcome = cocu("run", tiny_config, "--store", tiny_store)
    assert outcome.status == 0
    assert outcome.err == ""  # no bar: no stage ran
    assert "recall of both together" in outcome.out
    assert outcome.out.splitlines()[-1] == str(tiny_store / "runs" / "tiny" / "summary.json")
    assert before == {path: path.stat().st_mtime_ns for path in tiny_store.rglob("*.parquet")}


def test_run_shows_bars_on_stderr_and_quiet_shows_nothing(cocu, tiny_config, own_store):
    new = ("run", tiny_config, "--store", own_store, "--until", "expand")
    shown = cocu(*new, "--set", "expand.neighbours=5")
    assert "expand" in shown.err
    assert "2/2" in shown.err
    assert "embed" not in shown.err  # reused
    quiet = cocu(*new, "--set", "expand.neighbours=6", "--quiet")
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")


def test_run_json_prints_the_summary(cocu, tiny_config, tiny_store):
    outcome = cocu("run", tiny_config, "--store", tiny_store, "--json")
    summary = json.loads(outcome.out)
    assert summary == json.loads((tiny_store / "runs" / "tiny" / "summary.json").read_text())
    assert summary["concepts"]["m"] == 5
    assert set(summary["artifacts"]) >= {"embed", "archive", "report"}


def test_run_until_a_stage_keeps_what_the_summary_knew(cocu, tiny_config, own_store):
    cocu("run", tiny_config, "--store", own_store, "--until", "embed")
    summary = json.loads((own_store / "runs" / "tiny" / "summary.json").read_text())
    assert "archive" in summary["artifacts"]


def test_run_leaves_no_claim_behind(tiny_store):
    assert not list(tiny_store.glob("runs/*/running-*"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--until", "embeds"], "--until 'embeds'"),
        (["--set", "embed.bach_size=3"], "did you mean 'batch_size'"),
        (["--set", "embed.batch_size=many"], "embed.batch_size"),
        (["--set", "groups.grouping.regions=500"], "ask for 1 to 255"),
        (["--set", "nonsense"], "stage.key=value"),
        (["--device", "gpu"], "auto, cpu, cuda"),
        (["--store", "gibberish://x"], "Protocol not known"),
    ],
)
def test_run_with_a_wrong_word_gives_one_line(cocu, tiny_config, tmp_path, words, told):
    assert told in only_line(cocu("run", tiny_config, "--store", tmp_path / "store", *words))


def test_run_of_a_missing_config_gives_one_line(cocu, tmp_path):
    assert "none.toml" in only_line(cocu("run", tmp_path / "none.toml"))


def test_run_of_broken_toml_gives_one_line(cocu, tmp_path):
    (tmp_path / "broken.toml").write_text("name = [")
    assert "is not TOML" in only_line(cocu("run", tmp_path / "broken.toml"))


def encoder_config(tmp_path: Path, encoder: str) -> Path:
    config = tmp_path / "encoder.toml"
    corpus = '[[corpus.sources]]\nname = "curate"\nkind = "scenes"\nscenes = { count = 2 }\n'
    config.write_text(f"[encoder]\n{encoder}\n{corpus}")
    return config


@pytest.mark.usefixtures("prefect_server")
def test_run_with_an_unknown_encoder_gives_one_line(cocu, tmp_path):
    config = encoder_config(tmp_path, 'model = "ViT-Q-99"\npretrained = "none"')
    line = only_line(cocu("run", config, "--store", tmp_path / "store", "--until", "encoder"))
    assert "ViT-Q-99" in line
    assert "local-dir:" in line


@pytest.mark.usefixtures("prefect_server")
def test_run_with_weights_that_are_none_gives_one_line(cocu, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"these are no weights")
    config = encoder_config(tmp_path, f'model = "cocu-tiny-conv"\npretrained = "{tmp_path}/weights.pt"')
    line = only_line(cocu("run", config, "--store", tmp_path / "store", "--until", "encoder"))
    assert "weights.pt" in line


def test_run_with_a_missing_encoder_folder_gives_one_line(cocu, tmp_path):
    config = encoder_config(tmp_path, 'model = "local-dir:/nowhere"')
    assert "/nowhere" in only_line(cocu("run", config, "--store", tmp_path / "store"))


def test_run_into_a_place_that_is_a_file_gives_one_line(cocu, tiny_config, tmp_path):
    (tmp_path / "store").write_text("a file")
    assert "Not a directory" in only_line(cocu("run", tiny_config, "--store", tmp_path / "store"))


@pytest.mark.usefixtures("prefect_server")
def test_run_on_a_full_disk_gives_one_line_and_does_not_retry(cocu, tiny_config, own_store, monkeypatch):
    written: list[int] = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 1:  # the claim still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    started = time.monotonic()
    line = only_line(
        cocu("run", tiny_config, "--store", own_store, "--set", "expand.neighbours=5", "--quiet")
    )
    assert "No space left on device" in line
    assert "--store" in line
    assert len(written) == 2, f"tried again after {time.monotonic() - started:.0f} s"


def test_unexpected_fault_gives_a_hint_and_debug_the_traceback(cocu, tmp_path, monkeypatch):
    def broken(url: str) -> None:
        raise ZeroDivisionError("a bug\nof two lines")

    monkeypatch.setattr("flows.catalogue.open_store", broken)
    assert only_line(cocu("ls")).endswith(
        "unexpected ZeroDivisionError: a bug of two lines; give --debug too for the traceback"
    )
    assert "Traceback" in cocu("ls", "--debug").err


def test_ctrl_c_ends_a_run_with_one_line_and_its_claim(tiny_config, tmp_path):
    words = [sys.executable, "-m", "flows.cli", "run", str(tiny_config), "--store", str(tmp_path / "store")]
    endless = [*words, "--until", "pretrain", "--set", "pretrain.fit.epochs=100000"]
    process = subprocess.Popen(endless, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: any((tmp_path / "store").glob("corpus/*/manifest.json")), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("cocu: stopped")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("store/runs/*/running-*"))


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)


# demo

SMALL = [
    "pretrain.corpus.sources.0.scenes.count=40",
    "pretrain.fit.epochs=1",
    "pretrain.fit.batch_size=20",
    "corpus.sources.0.scenes.count=24",
    "train.groupvit.loop.epochs=1",
    "train.groupvit.loop.batch_size=12",
    "train.grouping.loop.epochs=1",
    "train.grouping.loop.batch_size=12",
    "evaluate.benchmarks.0.corpus.sources.0.scenes.count=4",
]


@pytest.mark.usefixtures("prefect_server")
def test_demo_writes_summary_and_report_here_and_ends_with_the_table(cocu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = cocu("demo", *(word for value in SMALL for word in ("--set", value)))
    assert outcome.status == 0, outcome.err
    summary = json.loads((tmp_path / "runs" / "demo" / "summary.json").read_text())
    assert set(summary["concepts"]) >= {"caption_recall", "archive_recall", "union_recall", "m"}
    for model in ("groupvit_caption", "groupvit_archive", "grouping_caption", "grouping_archive"):
        assert 0 <= summary["miou"][model] <= 1
        assert model in outcome.out
    assert (tmp_path / "runs" / "demo" / "report.html").read_text().lower().startswith("<!doctype html>")
    assert (tmp_path / "store" / "runs" / "demo" / "summary.json").exists()
    assert_exported_model_starts_a_training(cocu, tmp_path)


def assert_exported_model_starts_a_training(cocu, folder):
    """At a learning rate of 0 it ends with the weights that it began with."""
    still = ["train.groupvit.init=exported", "train.groupvit.loop.optim={rate = 0.0, min_rate = 0.0}"]
    _, plan = declared(demo_config(0, SMALL), "store")
    first = next(node.artifact for node in plan.nodes if node.label == "train groupvit_caption")
    outcome = cocu("export", "exported", "--fingerprint", first.fingerprint)
    assert (outcome.status, outcome.out.strip()) == (0, "exported"), outcome.err
    _, again = declared(demo_config(0, [*SMALL, *still]), "store")
    node = next(node for node in again.nodes if node.label == "train groupvit_caption")
    runtime = replace(make_runtime("local", 1, "cpu", quiet=True), locations=again.locations)
    second = materialize(node.stage, node.config, node.inputs, again.store, runtime)
    trained, begun = (load(artifact.folder.read("model.safetensors")) for artifact in (second, first))
    learnt = [name for name in begun if "running" not in name and "tracked" not in name]
    assert all(torch.equal(trained[name], begun[name]) for name in learnt)
    assert second.fingerprint != first.fingerprint
    (folder / "exported" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no GroupViT that can be used here: missing weights"):
        load_pretrained("exported")


def test_demo_config_is_the_visible_one():
    assert demo_config() == load_config(ROOT / "configs" / "demo.toml")


def test_demo_seed_changes_every_seed_and_the_name_and_nothing_else():
    zero, seven = demo_config(), demo_config(7)
    assert seven.name == "demo-seed7"
    assert seven.corpus.sources[0].scenes.seed == 7
    assert seven.pretrain.fit.seed == seven.train.groupvit.loop.seed == 7
    assert reseeded(seven, 0) == reseeded(zero, 0).__class__(
        **{**vars(reseeded(zero, 0)), "name": seven.name}
    )
