"""A run on a sample: each stage is measured while its time lasts, and told for the corpus by its law."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from curation.vocabulary import gallery_names
from flows.config import Config
from flows.forecast import predict
from flows.forecast.laws import share
from flows.forecast.measure import Bench, Measured, common_shards
from flows.forecast.predict import Captions, Predicted, Scale, Search
from flows.forecast.sample import Drawn
from flows.forecast.search import measure_search, seconds_of_a_product
from flows.plan import Node, Plan
from storage.artifact import Artifact
from storage.errors import ConfigError

WEIGHTS = {
    "corpus": 4.0,
    "pretrain": 2.0,
    "embed": 12.0,
    "expand": 4.0,
    "archive": 3.0,
    "export": 2.0,
    "groups": 8.0,
    "regions": 8.0,
    "train": 2.0,
}
STEPS = 12  # of a training
TEXTS = 64  # whose vectors are timed
SEARCH = 20.0  # seconds at most
MEASURED = frozenset(
    (
        *("corpus", "encoder", "pretrain", "embed", "duplicates", "select", "index", "expand"),
        *("vocabulary", "mentions", "archive", "presence", "export", "groups", "regions", "train"),
    )
)
PRETRAINED_ON = "corpus to pre-train on"


@dataclass
class Calibration:
    """A run on a sample, as far as it has come."""

    settings: Config
    sample: Drawn
    fitted: Drawn | None
    plan: Plan
    bench: Bench
    scale: Scale
    deadline: float  # time.perf_counter
    done: dict[str, Measured] = field(default_factory=dict)  # by label
    search: Search | None = None
    carried: float = 0.0  # bytes that larger batches leave to the process, beyond what they left to this one

    @property
    def basis(self) -> list[str]:
        """What everything rests on."""
        return [*self.sample.basis, *(self.fitted.basis if self.fitted else [])]

    def predict(self, label: str) -> Predicted:
        """Runs a stage on the sample and tells what it takes on the corpus."""
        node = next((node for node in self.plan.nodes if node.label == label), None)
        if node is None or node.stage.name not in MEASURED:
            return predict.not_calibrated("only curation and training are")
        missing = [a.stage for a in node.upstream if not a.committed]  # a stage that came too late
        if missing:
            return predict.not_calibrated(f"there was no time for {', '.join(dict.fromkeys(missing))}")
        if time.perf_counter() > self.deadline:
            return predict.not_calibrated("the time was over")
        carried, found = self.carried, self._of(node)
        if label in self.done:
            done = self.done[label]
            self.carried = max(carried, (done.left - done.loaded) * (done.shrunk - 1))
        return replace(found, memory=found.memory + carried) if found.memory else found

    def _left(self, node: Node) -> float:
        """Seconds that a stage may take of those that are left."""
        later = self.plan.nodes[self.plan.nodes.index(node) :]
        weights = [WEIGHTS.get(n.stage.name, 1.0) for n in later if n.stage.name in MEASURED]
        return share(weights, self.deadline - time.perf_counter())

    def _measure(self, node: Node) -> Measured:
        bench = self.bench
        if node.label == PRETRAINED_ON and self.fitted:
            bench = replace(bench, sizes=self.fitted.sizes)
        seconds = self._left(node)
        found = bench.measure(node.stage, node.config, node.inputs, seconds)
        self.done[node.label] = replace(found, shrunk=self._shrunk(node))
        return self.done[node.label]

    def _shrunk(self, node: Node) -> float:
        """How much larger the batches of the run are than those here."""
        c = self.settings
        sizes = {"embed": c.embed.batch_size, "groups": c.groups.batch_size, "regions": c.regions.batch_size}
        name = node.stage.name
        return float(sizes[name] / node.config.batch_size) if name in sizes else 1.0

    def _of(self, node: Node) -> Predicted:
        name = node.stage.name
        special = {
            "train": self._train,
            "pretrain": self._pretrain,
            "vocabulary": self._vocabulary,
            "index": self._index,
            "expand": self._expand,
            "duplicates": self._duplicates,
            "corpus": self._corpus,
        }
        if name in special:
            return special[name](node)
        found = self._measure(node)
        return (
            predict.once(found)
            if name == "encoder"
            else predict.by_shard(found, self.scale, self._held(name))
        )

    def _held(self, name: str) -> float:
        """Bytes of the corpus, or of a shard of it, that a stage has in memory."""
        shard, images, width = self.scale.shard, self.scale.images, self._width()
        side = self.settings.groups.grouping.size
        concepts = self._facts("archive").get("concepts", 0.0) / max(1, self._seen("archive"))
        return {
            "embed": shard * width * 8,
            "archive": images * (2 * width + 2 * predict.ID) + shard * concepts * predict.CANDIDATE,
            "export": shard * concepts * predict.CANDIDATE,
            "groups": shard * self._bytes_of("groups"),
            "regions": float(shard * side * side),
        }.get(name, 0.0)

    def _width(self) -> int:
        made = next(
            (
                f.artifact
                for f in self.done.values()
                if f.artifact and f.artifact.stage in ("encoder", "pretrain")
            ),
            None,
        )
        return int(made.manifest.facts["dimension"]) if made else 0

    def _facts(self, label: str) -> dict[str, float]:
        artifact = self.done[label].artifact if label in self.done else None
        return artifact.manifest.facts if artifact else {}

    def _seen(self, label: str) -> int:
        return self.done[label].images if label in self.done else 0

    def _bytes_of(self, label: str) -> float:
        return self.done[label].bytes / max(1, self.done[label].images) if label in self.done else 0.0

    def _corpus(self, node: Node) -> Predicted:
        found = self._measure(node)
        drawn, scale = self.sample, self.scale
        if node.label == PRETRAINED_ON and self.fitted:
            drawn, scale = self.fitted, Scale(self.fitted.images, self.fitted.shards)
        grown = scale.images / drawn.images
        plain = predict.by_shard(found, scale)
        return predict.packed(
            plain, drawn.pack_seconds * grown, drawn.pack_bytes * grown, drawn.pack_bytes / drawn.shards
        )

    def _pretrain(self, node: Node) -> Predicted:
        found = self._measure(node)
        assert self.settings.pretrain is not None
        assert self.fitted is not None
        fit = self.settings.pretrain.fit
        steps = fit.epochs * (self.fitted.images // fit.batch_size)
        return predict.by_step(found, steps, fit.batch_size / node.config.batch_size)

    def _vocabulary(self, node: Node) -> Predicted:
        found = self._measure(node)
        assert found.artifact is not None
        counted = found.artifact.read("concepts", columns=["frequency"])["frequency"].to_pylist()
        config = self.settings.vocabulary
        most = float(len(gallery_names(config))) if config.source == "gallery" else float("inf")
        named = Captions(counted, self._seen("corpus"), most)
        return predict.vocabulary(found, self.scale, named, self._seconds_of_a_text(node))

    def _seconds_of_a_text(self, node: Node) -> float:
        """Of one concept's vector; the second of two turns, as the first warms up."""
        encoder = node.inputs["encoder"]
        assert isinstance(encoder, Artifact)
        loaded = self.bench.runtime.load_encoder(encoder.local_folder(), self.bench.runtime.device)
        names = [f"a thing of kind {number}" for number in range(TEXTS)]
        for _ in range(2):
            started = time.perf_counter()
            loaded.encode_texts(names, node.config.templates)
            spent = time.perf_counter() - started
        return spent / TEXTS

    def _embeddings(self, node: Node) -> Artifact:
        return next(
            item for name, item in node.inputs.items() if name == "embeddings" and isinstance(item, Artifact)
        )

    def _index(self, node: Node) -> Predicted:
        found = self._measure(node)  # of the sample itself: what follows needs it
        try:
            self.search = measure_search(
                self.bench,
                self._embeddings(node),
                self.settings.index,
                self.settings.expand,
                self.scale,
                min(self._left(node) * WEIGHTS["expand"], 20.0),
            )
        except ConfigError as error:
            return replace(predict.once(found), seconds=None, formula="not calibrated", basis=str(error))
        return self.search.index(self.scale)

    def _expand(self, node: Node) -> Predicted:
        self._measure(node)
        if self.search is None:
            return predict.not_calibrated("its index was not")
        return self.search.expand(self.scale)

    def _duplicates(self, node: Node) -> Predicted:
        found = self._measure(node)
        config = node.config
        pair = seconds_of_a_product(self._width())
        return predict.duplicates(
            found, self.sample.drawn, self.scale, config.cell_size, bool(config.cosine), pair
        )

    def _train(self, node: Node) -> Predicted:
        """Some real steps on those shards that everything it reads was made for."""
        config, inputs = node.config, dict(node.inputs)
        shards = sorted(self._ready(node))
        wanted = [s for s in shards if not config.sources or s.partition("/")[0] in config.sources]
        images = sum(self.bench.sizes[shard] for shard in wanted)
        if not images:
            return predict.not_calibrated("there was no time for what it learns from")
        whole = inputs["corpus"]
        assert isinstance(whole, Artifact)
        inputs["corpus"] = part = self.bench.excerpt(whole, shards)
        self.plan.locations.setdefault(part.fingerprint, self.plan.locations.get(whole.fingerprint, {}))
        images = sum(p.rows for p in part.parts("samples") if p.shard in wanted)
        batch = min(config.loop.batch_size, max(1, images))
        epochs = max(1, -(-STEPS // max(1, images // batch)))
        short = replace(config, loop=replace(config.loop, epochs=epochs, batch_size=batch))
        found = self.bench.measure(node.stage, short, inputs, 0.0, steps_limit=self._left(node))
        stretch = config.loop.batch_size / batch
        rows = (
            self.scale.images
            * self._share(config.sources)
            * part.manifest.counts.kept
            / max(1, part.manifest.counts.seen)
        )
        steps = config.loop.epochs * int(rows // config.loop.batch_size)
        return predict.by_step(replace(found, shrunk=stretch), steps, stretch)

    def _ready(self, node: Node) -> set[str]:
        return common_shards(node.inputs, self.bench.sizes)

    def _share(self, sources: Sequence[str]) -> float:
        """Of the corpus, by the sample, which mirrors it."""
        chosen = sum(
            n for shard, n in self.sample.sizes.items() if not sources or shard.partition("/")[0] in sources
        )
        return chosen / self.sample.drawn
