from pathlib import Path

import pytest

from flows.config import load_config, parse_config
from flows.demo import demo_config
from flows.pipeline import seen_at, with_classes
from flows.run import declared
from storage.errors import ConfigError

LEAST = """
[encoder]
model = "local-dir:/somewhere"
[[corpus.sources]]
name = "web"
urls = ["/data/{00..03}.tar"]
"""


def write(folder: Path, text: str = LEAST) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def fault(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(write(folder, text), overrides)
    return str(raised.value)


def test_config_of_a_corpus_and_an_encoder_is_enough_and_named_after_its_file(tmp_path):
    config = load_config(write(tmp_path))
    assert config.name == "mine"
    assert config.embed.batch_size > 0


def test_unknown_table_names_the_nearest_one(tmp_path):
    assert "did you mean 'expand'" in fault(tmp_path, LEAST + "[expandd]\nneighbours = 3")


def test_unknown_key_is_told_with_its_path_the_nearest_and_all_valid_ones(tmp_path):
    told = fault(tmp_path, LEAST + "[expand]\nneighbors = 3")
    assert "'expand.neighbors'" in told
    assert "did you mean 'neighbours'" in told


def test_unknown_key_inside_a_list_of_tables_is_told_with_its_number(tmp_path):
    assert "'corpus.sources.0.url'" in fault(tmp_path, LEAST.replace("urls", "url"))


@pytest.mark.parametrize(
    ("override", "reached", "value"),
    [
        ("expand.neighbours=16", "expand.neighbours", 16),
        ("embed.precision=bf16", "embed.precision", "bf16"),  # quotes may be left out
        ('embed.precision="fp16"', "embed.precision", "fp16"),
        ("corpus.sources.0.name=books", "corpus.sources.0.name", "books"),
        ("archive.temperature = 0.5", "archive.temperature", 0.5),
        ("vocabulary.names=['a', 'b']", "vocabulary.names", ("a", "b")),
        ("name=other", "name", "other"),
    ],
)
def test_override_replaces_one_value(tmp_path, override, reached, value):
    found = load_config(write(tmp_path), [override])
    for step in reached.split("."):
        found = found[int(step)] if step.isdigit() else getattr(found, step)
    assert found == value


@pytest.mark.parametrize("override", ["expand.neighbours", "=3", "name.first=x", "corpus.sources.name=x"])
def test_override_that_is_none_says_how_one_looks(tmp_path, override):
    assert "--set" in fault(tmp_path, LEAST, override)


def test_vocabulary_gains_the_class_names_of_the_benchmarks_that_it_always_keeps(tmp_path):
    benchmark = (
        '[[evaluate.benchmarks]]\nbenchmark = { name = "ours", kind = "shards", class_names = ["yak"] }'
    )
    voc = '[[evaluate.benchmarks]]\nbenchmark = { name = "voc", kind = "voc", synonyms = true }'
    wanted = '[vocabulary]\nclasses = true\nalways = ["emu"]'
    always = with_classes(load_config(write(tmp_path, "\n".join([LEAST, wanted, benchmark, voc])))).always
    assert always[:2] == ("emu", "yak")
    assert {"aeroplane", "airplane", "potted plant", "person", "woman"} <= set(always[2:])
    without = load_config(write(tmp_path, "\n".join([LEAST, benchmark])))
    assert with_classes(without) == without.vocabulary


@pytest.mark.parametrize(
    ("trains", "size", "context"), [("head", "regions.size=96", "regions.context=false"),
    ("last", "train.grouping.recognition.size=96", "train.grouping.recognition.context=false")],
)  # fmt: skip
def test_segmenter_names_regions_as_it_was_trained_to(trains, size, context):
    settings = load_config(
        Path("configs/demo_vit.toml"), [f'train.grouping.recognition.trains="{trains}"', size, context]
    )
    assert seen_at(settings) == (96, False)


def test_vocabulary_with_classes_of_no_benchmark_is_refused(tmp_path):
    assert "vocabulary.always" in fault(tmp_path, LEAST + "[vocabulary]\nclasses = true")


def test_variable_of_the_environment_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/mnt")
    config = load_config(write(tmp_path, LEAST.replace("/data", "${SOMEWHERE}/data")))
    assert config.corpus.sources[0].urls == ("/mnt/data/{00..03}.tar",)


def test_variable_that_is_not_set_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("SOMEWHERE", raising=False)
    assert "export SOMEWHERE=" in fault(tmp_path, LEAST.replace("/data", "${SOMEWHERE}"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("expand.neighbours=many", "expand.neighbours"),
        ("embed.precision=fp8", "'fp32', 'bf16', 'fp16' or 'auto'"),
        ("groups.grouping.regions=500", "ask for 1 to 255"),  # a ValueError of the class itself
        ("corpus.sources.0.name=a/b", "source name 'a/b'"),  # a ConfigError of the class itself
        ("corpus=3", "corpus"),
        ("name=../up", "name '../up'"),
    ],
)
def test_wrong_value_is_a_config_error_that_names_it(tmp_path, override, told):
    assert told in fault(tmp_path, LEAST, override)


def test_config_with_two_encoders_or_none_is_refused(tmp_path):
    corpus = LEAST[LEAST.index("[[corpus") :]
    assert "[pretrain]" in fault(tmp_path, corpus)
    both = LEAST + '[[pretrain.corpus.sources]]\nname = "p"\nkind = "scenes"'
    assert "not both" in fault(tmp_path, both)


def test_missing_corpus_is_named(tmp_path):
    assert "'corpus'" in fault(tmp_path, '[encoder]\nmodel = "ViT-B-16"')


def test_missing_file_and_broken_toml_and_other_bytes_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_config(tmp_path / "none.toml")
    assert "is not TOML" in fault(tmp_path, "name = [")
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").rglob("*.toml")), ids=lambda p: p.stem
)
def test_config_that_comes_with_the_project_is_valid(path, monkeypatch):
    for name in ("COCU_DATA", "CC3M", "CC12M", "YFCC14M", "VOC"):
        monkeypatch.setenv(name, "/data")
    assert load_config(path).name


def test_variable_that_is_not_set_is_left_where_nothing_is_opened(monkeypatch):
    monkeypatch.delenv("CC3M", raising=False)
    path = Path(__file__).parents[2] / "configs" / "paper" / "cocu_cc3m.toml"
    assert load_config(path, unset=True).corpus.sources[0].urls == ("${CC3M}",)
    with pytest.raises(ConfigError, match=r"export CC3M="):
        load_config(path)


def test_tables_from_elsewhere_are_parsed_alike():
    config = parse_config({"name": "x", "encoder": {"model": "ViT-B-16"}, "corpus": {"sources": []}})
    assert config.corpus.sources == ()


def test_precisions_left_to_the_machine_are_decided_where_a_run_is_declared(tmp_path):
    _, plan = declared(demo_config(0, ["embed.precision=auto"]), str(tmp_path))
    told = [repr(node.config) for node in plan.nodes if node.stage.name in ("embed", "train")]
    assert len(told) == 5
    assert not any("precision='auto'" in config for config in told)
