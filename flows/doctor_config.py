"""Whether what a config names is there: model weights, corpora, benchmarks. Nothing is downloaded."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from curation.corpus import CorpusConfig, shard_locations
from curation.encoder import EncoderConfig, weights_identity
from curation.sources import Source, coco_files, expand_urls
from curation.tables import PairTable
from evaluation.benchmarks import coco_object
from evaluation.evaluate import BenchmarkConfig, open_benchmark
from flows.config import Config, load_config
from flows.doctor import Check, attempt
from storage.artifact import Store
from training.grouping import TIMM

DOWNLOAD = "the first run downloads it; on a machine without network give local-dir:<folder> or a file"
UNKNOWN = "see open_clip.list_pretrained() for the names there are"


def check_config(path: Path, store: str, overrides: Sequence[str] = ()) -> list[Check]:
    """Everything a config reads from outside the store.

    Raises:
        ConfigError: when it is not a config.
    """
    config = load_config(path, overrides)
    checks = attempt("encoder", lambda: _encoder(config, store))
    for corpus in _corpora(config):
        for source in corpus.sources:
            checks += attempt(f"source {source.name}", partial(_source, source))
    for run in config.evaluate.benchmarks:
        checks += attempt(f"benchmark {run.benchmark.name}", partial(_benchmark, run.benchmark))
    checks += attempt("recall", lambda: _recall(config))
    return checks + attempt("backbone", lambda: _backbone(config))


def _corpora(config: Config) -> list[CorpusConfig]:
    labelled = [run.corpus for run in config.evaluate.benchmarks if run.corpus]
    return [*([config.pretrain.corpus] if config.pretrain else []), config.corpus, *labelled]


def _encoder(config: Config, store: str) -> Iterable[Check]:
    if config.encoder is None:
        assert config.pretrain is not None, "a config names an encoder or makes one"
        yield Check("encoder", "ok", f"'{config.pretrain.fit.model}' is made by the run itself")
        return
    given = config.encoder
    if given.model.startswith("local-dir:") or Path(given.pretrained).is_file():
        weights_identity(given, Store(store).folder)  # reads every byte
        yield Check("encoder", "ok", f"{given.model} {given.pretrained}".strip())
    elif given.model.startswith("hf-hub:"):
        yield _hub("encoder", given.model, given.model.removeprefix("hf-hub:"), "open_clip_config.json")
    else:
        yield _published(given)


def _published(given: EncoderConfig) -> Check:
    from curation.openclip import open_clip  # noqa: PLC0415  (seconds to import)

    if given.model not in open_clip.list_models():
        return Check("encoder", "missing", f"open_clip knows no model '{given.model}'", UNKNOWN)
    tags = open_clip.list_pretrained_tags_by_model(given.model)
    if given.pretrained.lower().replace("-", "_") not in (tag.replace("-", "_") for tag in tags):
        found = f"'{given.pretrained}' is neither a file nor a tag of {given.model}"
        return Check("encoder", "missing", found, f"set encoder.pretrained to one of {', '.join(tags)}")
    repository, _, file = open_clip.get_pretrained_cfg(given.model, given.pretrained)["hf_hub"].rpartition(
        "/"
    )
    name = f"{given.model} {given.pretrained}"
    return _hub("encoder", name, repository, file or "open_clip_model.safetensors")


def _hub(name: str, shown: str, repository: str, file: str) -> Check:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    if isinstance(try_to_load_from_cache(repository, file), str):
        return Check(name, "ok", f"{shown}, in the local cache")
    return Check(name, "note", f"{shown} is not here yet", DOWNLOAD)


def _source(source: Source) -> Iterable[Check]:
    name = f"source {source.name}"
    if source.kind == "scenes":
        yield Check(name, "ok", "scenes are rendered by the run")
    elif source.kind == "coco":
        yield Check(name, "ok", f"{len(coco_files(source.urls[0])[1])} images in {source.urls[0]}")
    elif source.kind == "table":
        tables = [PairTable(url) for url in expand_urls(source.urls)]
        yield Check(name, "ok", f"{sum(table.rows for table in tables)} pairs in {len(tables)} tables")
    else:
        tars = shard_locations(CorpusConfig(sources=(source,)))
        yield Check(name, "ok", f"{len(tars)} tars, the first at {next(iter(tars.values()))}")


def _benchmark(config: BenchmarkConfig) -> Iterable[Check]:
    name = f"benchmark {config.name}"
    if config.kind == "shards":
        yield Check(name, "ok", "its images are a corpus, see its sources")
    else:
        yield Check(name, "ok", f"{len(open_benchmark(config).images)} images in {config.path}")


def _recall(config: Config) -> Iterable[Check]:
    if config.recall and config.recall.truth == "coco":
        masks = coco_object(Path(config.recall.path)).images
        yield Check("recall", "ok", f"{len(masks)} images with masks in {config.recall.path}")


def _backbone(config: Config) -> Iterable[Check]:
    name = config.groups.grouping.backbone
    if config.train.grouping is None or not name.startswith(TIMM):
        return
    import timm  # noqa: PLC0415

    found = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    if found is None or not found.hf_hub_id:
        yield Check(
            "backbone",
            "missing",
            f"timm has no weights for '{name}'",
            "see timm.list_models(pretrained=True)",
        )
    else:
        yield _hub("backbone", name, found.hf_hub_id, "model.safetensors")
