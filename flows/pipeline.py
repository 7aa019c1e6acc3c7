"""The method, from captioned images to a measured segmenter.

corpus ─► embed ─► index ─► expand ─► archive ─► (presence) ─► train ─► evaluate ─► report
   │   (select) │                       │                        │
   ├────► vocabulary ─► mentions ───────┤                        │
   └────► groups ─► regions ────────────│────────────────────────┘
                                        └─► export, recall
"""

from dataclasses import replace

from curation.archive import ARCHIVE
from curation.corpus import CORPUS, CorpusConfig, shard_locations, tar_locations
from curation.duplicates import DUPLICATES
from curation.embed import EMBED
from curation.encoder import ENCODER
from curation.export import EXPORT
from curation.index import EXPAND, INDEX
from curation.nouns import NOUNS
from curation.presence import PRESENCE
from curation.pretrain import PRETRAIN
from curation.select import SELECT, SelectConfig
from curation.vocabulary import MENTIONS, VOCABULARY, VocabularyConfig
from evaluation.evaluate import EVALUATE, EvaluateConfig, class_names
from evaluation.preview import PREVIEW, PreviewConfig
from evaluation.recall import RECALL
from flows.config import BenchmarkRun, Config
from flows.plan import Plan
from flows.report import REPORT
from storage.artifact import Artifact
from training.groups import GROUPS, REGIONS
from training.train import TRAIN

Artifacts = dict[str, Artifact]


def declare(do: Plan, c: Config) -> None:
    """Declares every stage of a run, in order. Of data, only digests are read."""
    encoder = an_encoder(do, c)
    corpus = a_corpus(do, c.corpus)

    # Vision-driven expansion: an image may show what the captions of its neighbours name
    embeddings = do(EMBED, c.embed, corpus=corpus, encoder=encoder)
    if c.select:
        corpus = embeddings = selected(do, c, c.select, corpus, embeddings, encoder)
    index = do(INDEX, c.index, embeddings=embeddings)
    neighbours = do(EXPAND, c.expand, embeddings=embeddings, index=index)
    vocabulary, mentions = concepts(do, c, corpus, embeddings, encoder)

    # Text-to-vision-guided ranking, and the clusters that guide sampling
    named = {"mentions": mentions, "vocabulary": vocabulary}
    archive = do(ARCHIVE, c.archive, neighbours=neighbours, index=index, **named)
    do(EXPORT, c.export, corpus=corpus, archive=archive)

    # Segmenters that learn from captions, and from archives (or their likely concepts)
    curated = {"corpus": corpus, "archive": archive, **named}
    likely = do(PRESENCE, c.presence, archive=archive, **named) if c.presence else archive
    taught = {**curated, "archive": likely}
    models = {**groupvits(do, c, encoder, taught), **groupings(do, c, encoder, taught)}

    # What the archives name, and what the segmenters see
    recall = do(RECALL, c.recall, **curated) if c.recall else None
    trained = {f"model {name}": model for name, model in models.items()}
    measured: Artifacts = {}
    for run in c.evaluate.benchmarks:
        measured |= evaluations(do, c, run, encoder, models, curated)
        measured |= previews(do, c, run, encoder, models, curated)
    do(REPORT, c.report, recall=recall, **curated, **trained, **measured)


def an_encoder(do: Plan, c: Config) -> Artifact:
    """The configured model, or a tiny one made for the built-in corpus."""
    if c.encoder:
        return do(ENCODER, c.encoder)
    assert c.pretrain is not None, "a config names an encoder or makes one"
    pairs = a_corpus(do, c.pretrain.corpus, "corpus to pre-train on")
    return do(PRETRAIN, c.pretrain.fit, corpus=pairs)


def a_corpus(do: Plan, config: CorpusConfig, label: str = "corpus") -> Artifact:
    """Validated pairs, and where their tars lie."""
    corpus = do(CORPUS, config, label)
    do.locations[corpus.fingerprint] = shard_locations(config)
    return corpus


def selected(
    do: Plan, c: Config, config: SelectConfig, corpus: Artifact, embeddings: Artifact, encoder: Artifact
) -> Artifact:
    """The samples and embeddings that the filters keep, without near copies."""
    given = {"corpus": corpus, "embeddings": embeddings}
    copies = do(DUPLICATES, config.duplicates, **given) if config.duplicates else None
    texts = encoder if config.min_similarity else None
    kept = do(SELECT, config, **given, duplicates=copies, encoder=texts)
    do.locations[kept.fingerprint] = tar_locations(c.corpus, corpus.url)
    return kept


def concepts(
    do: Plan, c: Config, corpus: Artifact, embeddings: Artifact, encoder: Artifact
) -> tuple[Artifact, Artifact]:
    """The vocabulary, and which of it each caption names."""
    from_captions, by_noun = c.vocabulary.source == "captions", c.mentions.extractor == "nouns"
    nouns = do(NOUNS, c.nouns, corpus=corpus) if from_captions or by_noun else None
    beside = {
        "nouns": nouns if from_captions else None,
        "embeddings": embeddings if c.vocabulary.visualness else None,
    }
    vocabulary = do(VOCABULARY, with_classes(c), corpus=corpus, encoder=encoder, **beside)
    mentioned = nouns if by_noun else None
    return vocabulary, do(MENTIONS, c.mentions, corpus=corpus, vocabulary=vocabulary, nouns=mentioned)


def with_classes(c: Config) -> VocabularyConfig:
    """The vocabulary's config, with the class names of the run's benchmarks where it asks for them."""
    if not c.vocabulary.classes:
        return c.vocabulary
    names = [name for run in c.evaluate.benchmarks for name in class_names(run.benchmark)]
    return replace(c.vocabulary, always=(*c.vocabulary.always, *names))


def groupvits(do: Plan, c: Config, encoder: Artifact, curated: Artifacts) -> Artifacts:
    """GroupViT with the multi-label contrast, once per kind of noun."""
    models: Artifacts = {}
    for nouns in c.train.nouns if c.train.groupvit else ():
        assert c.train.groupvit is not None
        training, name = replace(c.train.groupvit, nouns=nouns), f"groupvit_{nouns}"
        models[name] = do(TRAIN, training, f"train {name}", encoder=encoder, **training.inputs(curated))
    return models


def groupings(do: Plan, c: Config, encoder: Artifact, curated: Artifacts) -> Artifacts:
    """Grouping plus recognition, once per kind of noun, on the same regions."""
    if not c.train.grouping:
        return {}
    if c.train.grouping.recognition.trains == "head":  # what lies before the head is frozen: computed once
        seen = {"regions": regions_of(do, c, encoder, curated["corpus"])}
    else:
        seen = {"groups": groups_of(do, c, encoder, curated["corpus"])}
    models: Artifacts = {}
    for nouns in c.train.nouns:
        training, name = replace(c.train.grouping, nouns=nouns), f"grouping_{nouns}"
        models[name] = do(
            TRAIN, training, f"train {name}", encoder=encoder, **seen, **training.inputs(curated)
        )
    return models


def groups_of(do: Plan, c: Config, encoder: Artifact, corpus: Artifact) -> Artifact:
    """The regions of every image of the corpus."""
    by_encoder = encoder if c.groups.grouping.backbone == "clip" else None
    return do(GROUPS, c.groups, corpus=corpus, encoder=by_encoder)


def regions_of(do: Plan, c: Config, encoder: Artifact, corpus: Artifact) -> Artifact:
    """Their vectors before the projection."""
    groups = groups_of(do, c, encoder, corpus)
    return do(REGIONS, c.regions, corpus=corpus, encoder=encoder, groups=groups)


def seen_at(c: Config) -> tuple[int, bool]:
    """At which size a segmenter names regions, and whether in their context: as it was trained."""
    training = c.train.grouping
    if training and training.recognition.trains != "head":  # it reads images, and no stored regions
        return training.recognition.size, training.recognition.context
    return c.regions.size, c.regions.context


def captioned_regions(
    do: Plan, c: Config, config: EvaluateConfig, encoder: Artifact, curated: Artifacts
) -> Artifacts:
    """What naming learns from captions, where a benchmark asks for it."""
    if not config.learns_from_captions:
        return {}
    named = {name: curated[name] for name in ("mentions", "vocabulary")}
    return {"regions": regions_of(do, c, encoder, curated["corpus"]), **named}


def evaluations(
    do: Plan, c: Config, run: BenchmarkRun, encoder: Artifact, models: Artifacts, curated: Artifacts
) -> Artifacts:
    """Every model on one benchmark; beside them the untrained encoder and the oracle of its regions."""
    labelled = labelled_images(do, run)
    ceilings = ("grouping_untrained", "grouping_oracle") if c.evaluate.ceilings and c.train.grouping else ()
    scores: Artifacts = {}
    for model in (*models, *ceilings):
        config = EvaluateConfig.of(model, run.benchmark, c.groups.grouping, *seen_at(c))
        learnt = captioned_regions(do, c, config, encoder, curated)
        label, weights = f"evaluate {model} on {run.benchmark.name}", models.get(model)
        scores[f"score {model} on {run.benchmark.name}"] = do(
            EVALUATE, config, label, model=weights, encoder=encoder, labelled=labelled, **learnt
        )
    return scores


def previews(
    do: Plan, c: Config, run: BenchmarkRun, encoder: Artifact, models: Artifacts, curated: Artifacts
) -> Artifacts:
    """What each model sees in some images of the benchmark and (once) of the corpus, for the report."""
    labelled = labelled_images(do, run)
    first = curated["corpus"] if run is c.evaluate.benchmarks[0] else None
    shown: Artifacts = {}
    for model, weights in models.items():
        config = EvaluateConfig.of(model, run.benchmark, c.groups.grouping, *seen_at(c))
        learnt = captioned_regions(do, c, config, encoder, curated)
        label, seen = f"preview {model} on {run.benchmark.name}", PreviewConfig(config, c.report.examples)
        shown[label] = do(
            PREVIEW, seen, label, model=weights, encoder=encoder, labelled=labelled, corpus=first, **learnt
        )
    return shown


def labelled_images(do: Plan, run: BenchmarkRun) -> Artifact | None:
    """The benchmark's images as a corpus, where they are rendered."""
    return a_corpus(do, run.corpus, f"corpus of {run.benchmark.name}") if run.corpus else None
