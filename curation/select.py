"""Stage ``select``: the part of a corpus that declared filters keep, with a reason for the rest."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.captions import words
from curation.duplicates import DuplicatesConfig
from curation.encoder import Encoder, load_encoder
from curation.exact import as_float32
from storage.artifact import Artifact
from storage.errors import ConfigError
from storage.stage import Job, Output, ShardFunction, Stage

Row = dict[str, Any]


@dataclass(frozen=True)
class SelectConfig:
    """Filters; each is off until it is set."""

    min_side: int = 0  # pixels of the shorter side
    max_aspect: float = 0.0  # longer side over shorter side
    min_words: int = 0  # of the caption
    max_words: int = 0
    min_letters: float = 0.0  # share of letters among a caption's visible characters, in any script
    max_repetition: float = 0.0  # share of the most frequent word in a caption of more than 3
    min_similarity: float = 0.0  # cosine of image and caption
    duplicates: DuplicatesConfig | None = None

    def __post_init__(self) -> None:
        shares = (self.min_letters, self.max_repetition, self.min_similarity)
        if not all(0 <= share <= 1 for share in shares) or (self.max_aspect and self.max_aspect < 1):
            raise ConfigError(
                f"select: min_letters={self.min_letters}, max_repetition={self.max_repetition} and "
                f"min_similarity={self.min_similarity} lie in 0 (off) to 1, max_aspect={self.max_aspect} "
                "is 0 (off) or at least 1"
            )


Encode = Callable[[list[str]], NDArray[np.float32]]  # captions -> unit vectors [N, D]


@dataclass(frozen=True)
class Inputs:
    """What every shard is judged by."""

    corpus: Artifact
    embeddings: Artifact
    copies: dict[str, tuple[str, str]]  # sample_id -> reason and detail
    encode: Encode | None


def select(job: Job[SelectConfig]) -> None:
    """Stage ``select``: samples, truth and embeddings of what is kept; a reason for each that is not."""
    encoder = job.optional("encoder")  # of captions, where their likeness counts
    make = partial(
        _make_shard_function,
        job.config,
        job.artifact("corpus"),
        job.artifact("embeddings"),
        job.optional("duplicates"),
        partial(load_encoder, encoder.local_folder(), job.runtime.device) if encoder else None,
    )
    job.map_shards(make, job.artifact("corpus").shards)


def _make_shard_function(
    config: SelectConfig,
    corpus: Artifact,
    embeddings: Artifact,
    duplicates: Artifact | None,
    load: Callable[[], Encoder] | None,
) -> ShardFunction:
    encode = partial(load().encode_texts, templates=("{}",)) if load else None
    inputs = Inputs(corpus, embeddings, _copies(duplicates) if duplicates else {}, encode)
    return partial(_select_shard, config, inputs)


def _copies(duplicates: Artifact) -> dict[str, tuple[str, str]]:
    rows = duplicates.read("duplicates").to_pylist()
    return {row["sample_id"]: (row["reason"], f"repeats {row['of']}") for row in rows}


def _select_shard(config: SelectConfig, inputs: Inputs, shard: str) -> Output:
    samples, embedded = inputs.corpus.read("samples", shard), inputs.embeddings.read("embeddings", shard)
    rows = samples.to_pylist()
    cosines = _cosines(embedded, rows, inputs.encode) if inputs.encode else {}
    quarantine = []
    for row in rows:
        name = row["sample_id"]
        found = fault(row, config) or inputs.copies.get(name) or _unlike(cosines.get(name), config)
        if found:
            named = {"sample_id": name, "key": row["key"]}
            quarantine.append({**named, "reason": found[0], "detail": found[1]})
    turned_away = [row["sample_id"] for row in quarantine]
    tables = {"samples": samples, "embeddings": embedded}
    for beside in ("captions", "truth"):
        if inputs.corpus.parts(beside, shard):
            tables[beside] = inputs.corpus.read(beside, shard)
    kept = {name: _without(table, turned_away) for name, table in tables.items()}
    return Output(tables=kept, quarantine=quarantine, seen=len(rows), kept=len(rows) - len(quarantine))


def _without(table: pa.Table, turned_away: list[str]) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["sample_id"], pa.array(turned_away, pa.string()))))


def fault(row: Row, config: SelectConfig) -> tuple[str, str] | None:
    """Why a sample is not wanted, by its size and its caption alone: reason and detail, or None."""
    short, long = sorted((row["width"], row["height"]))
    size = f"{row['width']}x{row['height']} pixels"
    if short < config.min_side:
        return "image_small", f"{size}; the shorter side takes {config.min_side}"
    if config.max_aspect and long > config.max_aspect * short:
        return "image_elongated", f"{size}; {config.max_aspect} to 1 is the most"
    return _caption_fault(row["caption"], config)


def _caption_fault(caption: str, config: SelectConfig) -> tuple[str, str] | None:
    found = words(caption)
    if len(found) < config.min_words:
        return "caption_short", f"{len(found)} words; {config.min_words} are the least"
    if config.max_words and len(found) > config.max_words:
        return "caption_long", f"{len(found)} words; {config.max_words} are the most"
    share = letters(caption)
    if share < config.min_letters:
        return "caption_symbols", f"{share:.2f} of it are letters; {config.min_letters} is the least"
    repetition = max(Counter(found).values(), default=0) / max(len(found), 1)
    if config.max_repetition and len(found) > 3 and repetition > config.max_repetition:
        return "caption_repeats", f"{repetition:.2f} of it is one word; {config.max_repetition} is the most"
    return None


def letters(caption: str) -> float:
    """The share of letters and their marks among the characters that are not blank; 0 of nothing."""
    visible = [unicodedata.category(character)[0] for character in caption if not character.isspace()]
    return sum(kind in "LM" for kind in visible) / max(len(visible), 1)


def _unlike(cosine: float | None, config: SelectConfig) -> tuple[str, str] | None:
    if cosine is None or cosine >= config.min_similarity:  # what has no vector is in embed's quarantine
        return None
    return "caption_unlike_image", f"cosine {cosine:.3f}; {config.min_similarity} is the least"


def _cosines(embedded: pa.Table, rows: list[Row], encode: Encode) -> dict[str, float]:
    """Cosine of each embedded image with its own caption."""
    caption_of = {row["sample_id"]: row["caption"] for row in rows}
    ids = embedded["sample_id"].to_pylist()
    if not ids:
        return {}
    column = embedded["vector"].combine_chunks()
    images_ND = column.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)
    cosines_N = np.vecdot(as_float32(images_ND), encode([caption_of[name] for name in ids]))
    return dict(zip(ids, cosines_N.tolist(), strict=True))


SELECT = Stage("select", 2, select, by_shard=("corpus", "embeddings"))
