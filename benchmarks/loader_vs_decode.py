"""The training loader end to end against only decoding and cropping the same bytes with the same threads.

The loader reads tars and archives, joins them by id, draws nouns and fills batches; nobody takes a step. The
other side has the encoded images in memory, in a list. Both in turn, several rounds each.
Run: ``python -m benchmarks.loader_vs_decode``.
"""

import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import seconds
from curation.corpus import CORPUS, CorpusConfig
from curation.scenes import SceneConfig
from curation.sources import Scenes, Source
from storage.artifact import Artifact, Store
from storage.reader import IMAGE_EXTENSIONS, CorpusReader, image_bytes
from storage.runtime import Runtime
from storage.schemas import table_of
from storage.stage import Job, Output, Stage, materialize
from storage.threads import in_order
from training.distributed import own_cores
from training.loader import PIECE, Loader
from training.nouns import DrawConfig, NounSource
from training.views import RandomCrops

CANDIDATES = 10  # concepts of an archive
CROP = 224  # pixels


def measure(
    *, images: int = 768, side: int = 512, batch: int = 64, epochs: int = 2, rounds: int = 5
) -> dict[str, Any]:
    """Rates of both sides in images per second, and their ratio."""
    with tempfile.TemporaryDirectory() as scratch:
        loader = _loader(Path(scratch), images, side, batch, epochs)
        read = [
            (image_bytes(sample) or b"", sample_id, epoch)
            for epoch in range(epochs)
            for shard in loader.reader.shards
            for sample_id, sample in loader.reader.members(shard, IMAGE_EXTENSIONS)
        ]
        load, decode = partial(_load, loader), partial(_decode, loader, read)
        load(), decode()  # the first pass of each allocates
        times = [(seconds(load), seconds(decode)) for _ in range(rounds)]
    ours, limit = (epochs * images / statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(alone / whole for whole, alone in times)
    return {
        "case": "loader_vs_decode",
        "ours": ours,
        "peer": limit,
        "unit": "images/s",
        "ratio": ratio,
        "limit": limit,
        "limit_share": ratio,
        "note": f"{images} images of {side} px in 3 shards to crops of {CROP}, batches of "
        f"{batch}, {epochs} epochs, {loader.threads} threads; limit: decoding and cropping bytes in memory",
    }


def _loader(scratch: Path, images: int, side: int, batch: int, epochs: int) -> Loader:
    scenes = Scenes(count=images, shard_size=images // 3, scene=SceneConfig(size=side))
    config, store = CorpusConfig((Source("bench", "scenes", scenes=scenes),)), Store(str(scratch / "store"))
    corpus = materialize(CORPUS, config, {}, store, Runtime())
    archive = materialize(Stage("archive", 0, _archives), None, {"corpus": corpus}, store, Runtime())
    return Loader(
        reader=CorpusReader(corpus),
        drawn=NounSource("archive", corpus, corpus, archive),
        fixed=None,
        draws=DrawConfig(),
        shards=tuple(corpus.shards),
        batch_size=batch,
        open_shards=1,
        epochs=epochs,
        seed=0,
        view=RandomCrops(CROP, seed=0),
        threads=own_cores(),
    )


def _archives(job: Job[None]) -> None:
    corpus = job.artifact("corpus")
    job.map_shards(lambda: partial(_archive, corpus), corpus.shards)


def _archive(corpus: Artifact, shard: str) -> Output:
    """Ten concepts of any score for every sample."""
    ids = corpus.read("samples", shard)["sample_id"].to_pylist()
    rng = np.random.default_rng(0)
    empty = {
        "name": "",
        "global_score": 0.0,
        "local_score": 0.0,
        "anchor_similarity": 0.0,
        "probability": 0.1,
    }
    concepts = [
        [
            {**empty, "concept_id": int(c), "score": float(rng.random()), "cluster": n // 2, "donors": []}
            for n, c in enumerate(rng.choice(4000, CANDIDATES, replace=False))
        ]
        for _ in ids
    ]
    table = table_of("archives", {"sample_id": ids, "concepts": concepts})
    return Output(tables={"archives": table}, seen=len(ids), kept=len(ids))


def _load(loader: Loader) -> None:
    for _ in loader.batches(0):
        pass


def _decode(loader: Loader, read: list[tuple[bytes, str, int]]) -> None:
    view = loader.view
    assert view is not None
    pieces = (read[start : start + PIECE] for start in range(0, len(read), PIECE))
    for _ in in_order(lambda piece: [view(*item) for item in piece], pieces, loader.threads):
        pass


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
