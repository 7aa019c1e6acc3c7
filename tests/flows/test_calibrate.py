"""A calibration of the tiny run, and its prediction beside what the run then took."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curation.corpus import CorpusConfig
from curation.sources import Scenes, Source, scene_tar
from flows.forecast.calibrate import Request, calibrate_run
from flows.forecast.command import print_prediction
from flows.forecast.measure import Budgeted, OutOfTime, Steps
from flows.forecast.prediction import beside_fact, load, save
from flows.forecast.sample import draw, extent
from flows.forecast.search import spread
from flows.report_prediction import PLACE, with_prediction
from flows.run import make_runtime, plan_run, write_results
from storage.artifact import Store
from storage.errors import StoreError
from storage.manifest import Counts, ShardRecord
from storage.reader import open_tar
from storage.tars import read_tar
from tests.flows.conftest import TINY


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """A store with a prediction, made in a few seconds."""
    folder = tmp_path_factory.mktemp("calibrated")
    config, store = folder / "tiny.toml", folder / "store"
    config.write_text(TINY)
    runtime = make_runtime("local", 1, "cpu", quiet=True)
    # under load the stages need longer than they may: the time of each of them is not what is tested here
    return (
        config,
        store,
        calibrate_run(config, str(store), (), "export", Request(price=3.6, seconds=600.0), runtime),
    )


def test_calibration_tells_every_stage_of_curation(predicted):
    _, _, found = predicted
    stages = {stage.label: stage for stage in found.stages}
    told = ("corpus", "pretrain", "embed", "index", "expand", "vocabulary", "mentions", "archive", "export")
    assert set(told) <= set(stages)
    for label in told:
        stage = stages[label]
        assert stage.seconds is not None, stage.basis
        assert 0 < stage.seconds.low <= stage.seconds.mid <= stage.seconds.high
        assert stage.memory is not None
        assert stage.memory > 1e7
        assert stage.formula
        assert stage.basis
        assert stage.cost is not None
        assert stage.cost.mid == pytest.approx(stage.seconds.mid * 3.6 / 3600)
    assert found.images == 24
    assert found.seconds.mid == pytest.approx(sum(s.seconds.mid for s in found.stages if s.seconds))


def test_calibration_predicts_the_disk_that_the_run_needs(predicted, tiny_store):
    _, _, found = predicted
    disk = {stage.label: stage.disk for stage in found.stages}
    for label in ("corpus", "embed", "export"):
        artifacts = Store(str(tiny_store)).artifacts(label)
        fact = artifacts[-1].manifest.bytes if label != "corpus" else artifacts_of(artifacts, "curate")
        assert disk[label] == pytest.approx(fact, rel=0.5)


def artifacts_of(artifacts, source: str) -> int:
    return next(a.manifest.bytes for a in artifacts if a.manifest.config["sources"][0]["name"] == source)


def test_calibration_writes_nothing_but_the_prediction(predicted):
    _, store, found = predicted
    files = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]
    assert {str(path) for path in files} - {".digests.json"} == {"runs/tiny/prediction.json"}
    assert load("tiny", Store(str(store))) == found


def test_calibration_for_more_images_costs_more(predicted, tmp_path):
    config, _, few = predicted
    runtime = make_runtime("local", 1, "cpu", quiet=True)
    request = Request(images=24_000, seconds=600.0)
    many = calibrate_run(config, str(tmp_path), (), "embed", request, runtime)
    of = {s.label: s for s in many.stages}
    assert many.images == 24_000
    assert of["embed"].disk == pytest.approx(
        1000 * next(s.disk for s in few.stages if s.label == "embed"), rel=0.5
    )


def test_calibration_past_its_time_says_what_it_left_out(tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    runtime, began = make_runtime("local", 1, "cpu", quiet=True), time.perf_counter()
    found = calibrate_run(config, str(tmp_path / "store"), (), "export", Request(seconds=1e-3), runtime)
    assert time.perf_counter() - began < 60
    assert not found.calibrated
    assert {stage.basis for stage in found.stages} >= {"the time was over"}


def test_prediction_on_the_terminal_names_each_stage_with_its_basis(predicted, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, _, found = predicted
    print_prediction(found)
    shown = capsys.readouterr().out
    for stage in found.calibrated:
        assert stage.label in shown
        assert stage.formula in shown
        assert f"{stage.cost.mid:,.2f}" in shown
    assert "24 images" in shown
    assert all(line in shown for line in found.basis)


def test_stages_without_a_number_are_told_by_their_reason(predicted, capsys):
    _, _, found = predicted
    late = replace(found.stages[0], seconds=None, basis="the time was over")
    print_prediction(replace(found, stages=(late, *found.stages[1:])))
    assert f"not calibrated: {late.label} (the time was over)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--images", "0"), "--images 0"),
        (("--images", "-5"), "--images -5"),
        (("--price", "-1"), "--price -1"),
        (("--price", "inf"), "--price inf"),
        (("--budget", "0"), "more than 0"),
    ],
)
def test_impossible_arguments_are_refused_with_the_allowed_ones(cocu, tiny_config, tmp_path, words, told):
    outcome = cocu("plan", tiny_config, "--store", tmp_path / "s", "--calibrate", *words)
    assert outcome.status == 1
    assert told in outcome.err
    assert "give" in outcome.err


# Prediction beside fact


@pytest.fixture
def finished(predicted, tiny_store):
    """The plan of the finished tiny run, and a prediction that was made before it."""
    _, _, found = predicted
    _, plan = plan_run(tiny_store.parent / "tiny.toml", str(tiny_store))
    return plan, replace(found, created="2000-01-01T00:00:00.000+00:00")


def test_stages_that_ran_stand_beside_their_prediction(finished):
    plan, prediction = finished
    rows = {row.predicted.label: row for row in beside_fact(prediction, plan.nodes)}
    manifest = next(node.artifact.manifest for node in plan.nodes if node.label == "embed")
    assert rows["embed"].seconds == manifest.seconds
    assert rows["embed"].memory == manifest.peak_bytes > 1e7
    assert rows["embed"].disk == manifest.bytes
    assert rows["embed"].ratio == pytest.approx(manifest.seconds / rows["embed"].predicted.seconds.mid)


def test_stages_that_were_reused_have_no_fact(finished):
    plan, prediction = finished
    later = replace(prediction, created="2999-01-01T00:00:00.000+00:00")
    assert {(row.seconds, row.memory, row.disk) for row in beside_fact(later, plan.nodes)} == {
        (None, None, None)
    }


def test_stages_of_another_config_have_no_fact(finished, tiny_store):
    _, prediction = finished
    _, other = plan_run(tiny_store.parent / "tiny.toml", str(tiny_store), ["expand.neighbours=3"])
    rows = {row.predicted.label: row for row in beside_fact(prediction, other.nodes)}
    assert rows["expand"].seconds is None
    assert rows["embed"].seconds is not None


def test_summary_and_report_show_both(finished, tmp_path):
    import shutil

    plan, prediction = finished
    copy = Path(shutil.copytree(plan.store.url, tmp_path / "store"))
    save(prediction, Store(str(copy)))
    name, moved = plan_run(Path(plan.store.url).parent / "tiny.toml", str(copy))
    results = write_results(name, moved)
    embed = results.summary["prediction"]["stages"]["embed"]
    assert embed["seconds"]["fact"] == results.summary["seconds"]["embed"]
    assert json.loads(results.folder.read("summary.json")) == results.summary
    page = results.folder.read("report.html").decode()
    assert "Prediction beside fact" in page
    assert f"{embed['seconds']['ratio']:.2f}" in page
    artifact = next(node.artifact for node in moved.nodes if node.stage.name == "report")
    assert b"Prediction beside fact" not in artifact.file("report.html").read_bytes()  # it is not the run's


def test_run_without_a_prediction_says_so_with_null(tiny_store):
    summary = json.loads((tiny_store / "runs" / "tiny" / "summary.json").read_bytes())
    assert summary["prediction"] is None


def test_page_without_a_place_stays_as_it_is(finished):
    _, prediction = finished
    assert with_prediction(b"<p>old</p>", prediction, []) == b"<p>old</p>"
    assert b"<section" in with_prediction(PLACE, prediction, [])


def test_broken_prediction_is_refused_by_name(tmp_path):
    store = Store(str(tmp_path))
    store.folder.write("runs/r/prediction.json", b'{"stages": [1]}')
    with pytest.raises(StoreError, match=r"prediction\.json"):
        load("r", store)


# The sample


def tars(folder: Path, counts: list[int]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, count in enumerate(counts):
        (folder / f"{number:05d}.tar").write_bytes(scene_tar(Scenes(), range(start, start + count)))
        start += count
    return f"{folder}/*.tar"


def test_sample_is_of_real_pairs_in_the_sizes_asked_for(tmp_path):
    source = Source("mine", "webdataset", (tars(tmp_path / "in", [20, 20, 20]),))
    found = draw(CorpusConfig((source,)), [4, 8, 100], tmp_path / "out", seconds=60)
    assert list(found.sizes.values())[:2] == [4, 8]
    assert found.drawn <= 60
    assert found.shards == 3
    assert found.images == pytest.approx(60, rel=0.1)
    with open_tar(str(tmp_path / "out/mine/00000.tar"), "mine") as stream:
        assert len(list(read_tar(stream))) == 4


def test_sample_of_two_sources_keeps_their_proportion(tmp_path):
    sources = (
        Source("large", "webdataset", (tars(tmp_path / "large", [80]),)),
        Source("small", "scenes", scenes=Scenes(count=20)),
    )
    found = draw(CorpusConfig(sources), [10, 30], tmp_path / "out", seconds=60)
    assert found.sizes == {"large/00000": 10, "large/00001": 30, "small/00000": 10}
    assert found.pack_seconds > 0
    assert found.pack_bytes > 0


def test_size_of_tars_is_told_within_a_tenth(tmp_path):
    source = Source("mine", "webdataset", (tars(tmp_path / "in", [30, 50]),))
    assert extent(source).images == pytest.approx(80, rel=0.1)


def test_corpus_that_cannot_be_read_is_stood_in_for_when_its_size_is_given(tmp_path, cocu):
    config = tmp_path / "far.toml"
    config.write_text(
        TINY.replace('kind = "scenes"\nscenes = { split = "curate"', 'urls = ["/nowhere/*.tar"]\n#')
    )
    missing = cocu("plan", config, "--store", tmp_path / "s", "--calibrate")
    assert missing.status == 1
    assert "/nowhere" in missing.err
    outcome = cocu(
        "plan",
        config,
        "--store",
        tmp_path / "s",
        "--calibrate",
        "--images",
        500,
        "--until",
        "embed",
        "--json",
    )
    assert outcome.status == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["images"] == 500
    assert any("rendered scenes" in line for line in told["basis"])
    assert not (tmp_path / "s" / "runs").exists()


# Time


def record(shard: str, seconds: float) -> ShardRecord:
    return ShardRecord(shard, (), Counts(), {}, seconds)


def done(sizes: dict[str, int], usable: set[str], seconds: float, a_shard: float) -> list[str]:
    engine = Budgeted(seconds, sizes, usable)
    return [found.shard for found in engine(lambda: lambda shard: record(shard, a_shard), list(sizes))]


def test_engine_warms_up_on_a_small_shard_then_takes_the_largest_that_fit():
    sizes = {"a": 10, "b": 1, "c": 100, "d": 1}
    assert done(sizes, set(sizes), seconds=50.0, a_shard=1.0) == ["b", "a", "c", "d"]


def test_engine_does_two_shards_even_if_none_fits():
    assert done({"a": 10, "b": 1, "c": 100}, {"a", "b", "c"}, seconds=0.0, a_shard=1.0) == ["b", "a"]


def test_engine_does_only_what_its_inputs_have():
    assert done({"a": 1, "b": 1, "c": 1}, {"a", "c"}, seconds=50.0, a_shard=0.0) == ["a", "c"]


def test_training_is_broken_off_after_its_time():
    steps = Steps(limit=0.0)
    with steps("train", 10) as bar:
        bar.advance()
        with pytest.raises(OutOfTime):
            bar.advance()
    assert len(steps.seconds) == 2


def test_spread_vectors_are_units_around_the_given_ones():
    rng = np.random.default_rng(0)
    given = rng.standard_normal((50, 16)).astype(np.float32)
    given[:, 8:] = 0  # of a half of the dimensions
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    blocks = list(spread(given.astype(np.float16), [30, 12]))
    assert [len(block) for block in blocks] == [30, 12]
    every = np.concatenate(blocks)
    assert np.allclose(np.linalg.norm(every, axis=1), 1, atol=1e-6)
    assert np.abs(every[:, 8:]).max() == 0
    assert (every @ given.T).max(axis=1).mean() > 0.8
