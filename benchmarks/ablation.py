"""Each of CoCu's three designs on and off: recall of true classes, from the artifacts of a finished run.

Run: ``python -m benchmarks.ablation STORE [RECALL …]`` with the fingerprints of recall artifacts (the newest
without); the images of several are taken together.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curation.ragged import offsets_of
from evaluation import classes
from evaluation.concepts import class_lookup
from storage.artifact import Artifact, Store
from storage.errors import InputError
from training.draws import draw

COUNTS = (3, 5)  # concepts an image is given
EPOCHS = 50  # draws that an expectation is the mean of
FEW = 10  # draws whose variety is told
TEMPERATURES = (1.0, 0.05)  # 1 is the paper's
Pick = Callable[
    [int, int], NDArray[np.int64]
]  # (count, epoch) -> positions [N, count] of candidates, -1: none


@dataclass(frozen=True, eq=False)
class Archives:
    """N images of known classes (K of them), and their A candidates."""

    ids: list[str]
    offsets: NDArray[np.int64]
    class_A: NDArray[np.int64]  # that a candidate names, -1: none
    donors_A: NDArray[np.int64]  # neighbours that name it
    formula_A: NDArray[np.float64]  # local + global: the paper's score
    score_A: NDArray[np.float64]  # as the run was configured
    cluster_A: NDArray[np.int64]
    true_NK: NDArray[np.bool_]
    caption_NK: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Measured:
    """Expectations over draws, by image: recalls, and the counts that precision is made of."""

    alone_N: NDArray[np.float64]
    union_N: NDArray[np.float64]  # with what the caption names
    true_N: NDArray[np.float64]  # true classes among those named
    named_N: NDArray[np.float64]  # classes named
    ever_N: NDArray[np.float64]  # recall of what the first FEW draws name together


def read(store: Store, fingerprint: str) -> Archives:
    """The archives of the images that a recall artifact has the truth of."""
    recall = store.artifact("recall", fingerprint)
    config, inputs = recall.manifest.config, recall.manifest.inputs
    truth = _column(recall, "truth", "classes")
    names = classes.COCO_OBJECT if config["truth"] == "coco" else sorted(set().union(*truth.values()))
    synonyms = classes.COCO_SYNONYMS if config["synonyms"] else None
    lookup = class_lookup(names, synonyms) if config["truth"] == "coco" else {name: name for name in names}
    number = {name: place for place, name in enumerate(names)}
    concepts = store.artifact("vocabulary", inputs["vocabulary"]).read("concepts")["name"].to_pylist()
    mentions = _column(store.artifact("mentions", inputs["mentions"]), "mentions", "concept_ids")
    archive = _column(store.artifact("archive", inputs["archive"]), "archives", "concepts")
    ids = [name for name in truth if truth[name]]
    records = [record for name in ids for record in archive[name]]

    def named(name: str) -> int:
        return number[lookup[name]] if name in lookup else -1

    return Archives(
        ids=ids,
        offsets=offsets_of(np.array([len(archive[name]) for name in ids])),
        class_A=np.array([named(record["name"]) for record in records], np.int64),
        donors_A=np.array([len(record["donors"]) for record in records], np.int64),
        formula_A=np.array([record["local_score"] + record["global_score"] for record in records]),
        score_A=np.array([record["score"] for record in records]),
        cluster_A=np.array([record["cluster"] for record in records], np.int64),
        true_NK=_marked([[number[c] for c in truth[name]] for name in ids], len(names)),
        caption_NK=_marked([[named(concepts[c]) for c in mentions[name]] for name in ids], len(names)),
    )


def _column(artifact: Artifact, table: str, name: str) -> dict[str, Any]:
    rows = artifact.read(table, columns=["sample_id", name])
    return dict(zip(rows["sample_id"].to_pylist(), rows[name].to_pylist(), strict=True))


def _marked(classes_N: Iterable[ArrayLike], count: int) -> NDArray[np.bool_]:
    """Which of K classes each row names [N, K]; -1 is none."""
    rows = [np.asarray(row, np.int64) for row in classes_N]
    marks = np.zeros((len(rows), count + 1), bool)  # the last column, which is also -1, is that of no class
    marks[np.repeat(np.arange(len(rows)), [len(row) for row in rows]), np.concatenate(rows)] = True
    return marks[:, :-1]


def designs(a: Archives) -> Iterator[tuple[str, Pick, str]]:
    """What an image is given: a name, how it is picked, and the name of what it is compared with."""
    alone, unranked, zeros_A = "caption alone", "expansion, in random order", np.zeros(len(a.class_A))
    nothing = np.full((len(a.ids), 1), -1)
    yield alone, lambda _count, _epoch: nothing, ""
    yield unranked, ordered(a, zeros_A, by_chance=True), alone
    yield "expansion, most donors first", ordered(a, a.donors_A, by_chance=True), unranked
    scores = {"paper's score": a.formula_A}
    if not np.allclose(a.score_A, a.formula_A, atol=1e-4):
        scores["configured score"] = a.score_A
    single_A = np.arange(len(a.class_A)) - a.offsets[image_of(a)]  # a cluster for each candidate
    for name, key_A in scores.items():
        ranked = f"{name}, best first"
        yield ranked, ordered(a, key_A), unranked
        for heat in TEMPERATURES:
            yield f"{name}, drawn at τ = {heat:g}", drawn(a, key_A, single_A, heat), ranked
            yield f"{name}, drawn by clusters at τ = {heat:g}", drawn(a, key_A, a.cluster_A, heat), ranked


def image_of(a: Archives) -> NDArray[np.int64]:
    """The image of each candidate."""
    return np.repeat(np.arange(len(a.ids)), np.diff(a.offsets))


def ordered(a: Archives, key_A: NDArray[Any], by_chance: bool = False) -> Pick:
    """The candidates with the greatest keys; equals by chance, or in the archive's order."""

    def pick(count: int, epoch: int) -> NDArray[np.int64]:
        chance_A = np.random.default_rng(epoch).random(len(key_A)) * by_chance
        order = np.lexsort((chance_A, -key_A, image_of(a)))
        places = a.offsets[:-1, None] + np.arange(count)
        return np.where(places < a.offsets[1:, None], order[np.minimum(places, len(order) - 1)], -1)

    return pick


def drawn(a: Archives, key_A: NDArray[np.float64], cluster_A: NDArray[np.int64], temperature: float) -> Pick:
    """Training's own draws."""

    def pick(count: int, epoch: int) -> NDArray[np.int64]:
        options: dict[str, Any] = {"seed": 0, "epoch": epoch, "count": count, "temperature": temperature}
        return draw(a.ids, a.offsets, key_A, cluster_A, **options)

    return pick


def measure(a: Archives, pick: Pick, count: int) -> Measured:
    """Means over EPOCHS draws; what is picked without chance is the same in each."""
    total, ever_NK, there_N = np.zeros((4, len(a.ids))), np.zeros_like(a.true_NK), a.true_NK.sum(axis=1)
    for epoch in range(EPOCHS):
        given = pick(count, epoch)
        named_NK = _marked(np.where(given < 0, -1, a.class_A[given]), a.true_NK.shape[1])
        true_N = (named_NK & a.true_NK).sum(axis=1)
        union_N = ((named_NK | a.caption_NK) & a.true_NK).sum(axis=1)
        total += np.stack([true_N / there_N, union_N / there_N, true_N, named_NK.sum(axis=1)])
        ever_NK |= named_NK & (epoch < FEW)
    return Measured(*[*(total / EPOCHS), (ever_NK & a.true_NK).sum(axis=1) / there_N])


def together(parts: Sequence[Measured]) -> Measured:
    """The images of several runs as one."""
    rows = zip(*((p.alone_N, p.union_N, p.true_N, p.named_N, p.ever_N) for p in parts), strict=True)
    return Measured(*(np.concatenate(row) for row in rows))


def table(archives: Sequence[Archives], count: int) -> Iterator[list[str]]:
    """One row of text for each design, with what it gains over the design it is compared with."""
    found: dict[str, Measured] = {}
    for same in zip(*map(designs, archives), strict=True):
        name, _, other = same[0]
        ours = together([measure(a, pick, count) for a, (_, pick, _) in zip(archives, same, strict=True)])
        found[name], theirs = ours, found.get(other)
        alone = _cell(ours.alone_N) if ours.named_N.any() else ""
        gained = _cell(ours.alone_N - theirs.alone_N, "+") if theirs and theirs.named_N.any() else ""
        together_gained = _cell(ours.union_N - theirs.union_N, "+") if theirs else ""
        precision = f"{ours.true_N.sum() / ours.named_N.sum():.3f}" if alone else ""
        ever = f"{ours.ever_N.mean():.3f}" if alone else ""
        yield [name, alone, gained, _cell(ours.union_N), together_gained, precision, ever]


def _cell(values_N: NDArray[np.float64], sign: str = "") -> str:
    """The mean over images and its standard error."""
    return f"{values_N.mean():{sign}.3f} ± {values_N.std(ddof=1) / np.sqrt(len(values_N)):.3f}"


def main(url: str, *fingerprints: str) -> None:
    """Prints one table for each number of concepts, in the form that ``docs/results.md`` has them."""
    store = Store(url)
    found = fingerprints or tuple(artifact.fingerprint for artifact in store.artifacts("recall")[-1:])
    if not found:
        raise InputError(f"'{url}' holds no recall artifact; finish a run with a [recall] table first")
    archives = [read(store, fingerprint) for fingerprint in found]
    print(f"recall/{', recall/'.join(found)}: {sum(len(a.ids) for a in archives)} images")
    for count in COUNTS:
        print(f"\n| m = {count} | alone | gain | ∪ caption | gain | precision | in {FEW} draws |")
        print("|---|---|---|---|---|---|---|")
        for cells in table(archives, count):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
