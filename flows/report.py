"""Stage ``report``: one self-contained page about a run, for people who were not there.

Everything on it is read from the store: the run's shape from the manifests and what they name as inputs,
the rest from the tables. The page asks for nothing outside itself and runs no script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from evaluation.preview import Preview, read_preview
from flows.report_concepts import DEFAULT_TOP, concept_statistics
from flows.report_curves import training_curves
from flows.report_drawing import draw
from flows.report_environment import environment
from flows.report_examples import CLUSTER_COLOURS, Curated, benchmark_gallery, corpus_examples
from flows.report_lineage import trace
from flows.report_pictures import css_colours
from flows.report_scores import benchmarks_of, per_class, score_of
from storage.artifact import Artifact
from storage.reader import CorpusReader
from storage.stage import Job, Output, Stage

PAGE = "report.html"
UNFOLDED = 6  # images shown at once, of each kind; a click shows the others
Named = TypeVar("Named")


@dataclass(frozen=True)
class ReportConfig:
    """What is shown."""

    examples: int = 12  # images, spread over the corpus


def write_report(job: Job[ReportConfig]) -> None:
    """Stage ``report``: renders the page from the store.

    Inputs: corpus, archive, mentions and vocabulary; recall where concepts were measured; any number of
    ``model <name>`` (train), ``score <number>`` (evaluate) and ``preview …`` (preview) artifacts.
    """
    page = environment().get_template("report.html.j2").render(**_view(job))
    job.write(Output(files={PAGE: (page.encode(), 0)}))


def _view(job: Job[ReportConfig]) -> dict[str, Any]:
    """What the template is given, section by section."""
    inputs = {name: item for name, item in job.inputs.items() if isinstance(item, Artifact)}
    recall = job.optional("recall")
    scores = [score_of(artifact) for artifact in _named("score ", inputs).values()]
    models = _in_order([score.model for score in scores], _named("model ", inputs))
    lineage = trace(inputs, models)
    corpus, archive, mentions, vocabulary = map(job.artifact, ("corpus", "archive", "mentions", "vocabulary"))
    facts = recall.manifest.facts if recall else {}
    top = int(facts.get("m", DEFAULT_TOP))
    benchmarks = benchmarks_of(scores)
    previews = _previews(_named("preview ", inputs), list(models))
    reader = CorpusReader(corpus, job.runtime.locations)
    curated = Curated(reader, archive, mentions, vocabulary, recall)
    return {
        "corpus": corpus,
        "lineage": lineage,
        "drawing": draw(lineage.steps, job.folder.url.rstrip("/").rsplit("/", 1)[-1]),
        "facts": facts,
        "top": top,
        "benchmarks": benchmarks,
        "classes": [per_class(benchmark) for benchmark in benchmarks],
        "statistics": concept_statistics(archive, mentions, vocabulary, recall, top),
        "examples": corpus_examples(curated, previews.corpus, job.config.examples),
        "galleries": [benchmark_gallery(name, found) for name, found in previews.benchmarks.items()],
        "trainings": [training_curves(name, model) for name, model in models.items()],
        "colours": css_colours,
        "cluster_colours": css_colours([""] * CLUSTER_COLOURS),
        "unfolded": UNFOLDED,
    }


def _named(prefix: str, inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    wanted = [(name, item) for name, item in inputs.items() if name.startswith(prefix)]
    return {name.removeprefix(prefix): item for name, item in sorted(wanted)}


@dataclass(frozen=True)
class Previews:
    """What the segmenters see: of corpus images by model, of each benchmark's images by model."""

    corpus: dict[str, Preview] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Preview]] = field(default_factory=dict)


def _in_order(names: Sequence[str], items: Mapping[str, Named]) -> dict[str, Named]:
    """Those that are named first, as they are named; then the others."""
    return {name: items[name] for name in dict.fromkeys([*names, *items]) if name in items}


def _previews(artifacts: Mapping[str, Artifact], models: Sequence[str]) -> Previews:
    """Reads ``preview`` artifacts; models in the order in which they are scored."""
    found = Previews()
    for artifact in artifacts.values():
        segmenter, preview = artifact.manifest.config["segmenter"], read_preview(artifact)
        model, benchmark = segmenter["model"], segmenter["benchmark"]["name"]
        if preview.benchmark:
            found.benchmarks.setdefault(benchmark, {})[model] = preview
        if preview.corpus:
            found.corpus.setdefault(model, preview)
    return Previews(
        _in_order(models, found.corpus),
        {benchmark: _in_order(models, seen) for benchmark, seen in found.benchmarks.items()},
    )


REPORT = Stage("report", 3, write_report)
