"""What is known of a corpus' images without a single mask: their stored regions, and what captions name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluation.concepts import class_lookup
from storage.artifact import Artifact
from storage.errors import ConfigError
from storage.fingerprint import stable_seed
from training.views import read_regions


@dataclass(frozen=True)
class TrainingImages:
    """The images of some sources of a corpus, shard by shard.

    Attributes:
        regions: the artifact of their regions' vectors before the projection.
        mentions: that of the concepts their captions name.
        vocabulary: that of the concepts' names.
        sources: all of the corpus' when empty.
        most: images, about: shards are drawn until they hold as many; 0 for all.
    """

    regions: Artifact
    mentions: Artifact
    vocabulary: Artifact
    sources: tuple[str, ...] = ()
    most: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        """The tokens of an image's regions, float16 [K, C], and the nouns of its caption."""
        for shard in self.shards:
            said = self._mentioned(shard)
            for sample_id, tokens_KC in read_regions(self.regions, shard).items():
                yield tokens_KC, [self._names[concept] for concept in said.get(sample_id, [])]

    @property
    def shards(self) -> list[str]:
        """Those of the sources, or as many of them, by a hash of their names, as hold ``most`` images.

        Raises:
            ConfigError: if there are none.
        """
        wanted = [s for s in self.regions.shards if not self.sources or s.split("/")[0] in self.sources]
        if not wanted:
            known = ", ".join(sorted({shard.split("/")[0] for shard in self.regions.shards}))
            raise ConfigError(
                f"naming learns from captions of {', '.join(self.sources)}, and the corpus has {known}: set "
                "sources of calibration and discriminants to some of these, or leave them out for all"
            )
        rows = {part.shard: part.rows for part in self.mentions.parts("mentions")}
        if not self.most or sum(rows[shard] for shard in wanted) <= self.most:
            return wanted
        drawn = sorted(wanted, key=lambda shard: stable_seed("training images", shard))
        held = accumulate(rows[shard] for shard in drawn)
        return drawn[: 1 + next(place for place, images in enumerate(held) if images >= self.most)]

    @cached_property
    def _names(self) -> list[str]:
        names: list[str] = self.vocabulary.read("concepts", columns=["name"])["name"].to_pylist()
        return names

    def _mentioned(self, shard: str) -> Mapping[str, list[int]]:
        table = self.mentions.read("mentions", shard)
        return dict(zip(table["sample_id"].to_pylist(), table["concept_ids"].to_pylist(), strict=True))


def named(nouns: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Whether the caption of an image names a class, by any of its names or their plurals: [N, C].

    Args:
        nouns: of N captions.
        names: of C classes, each with its synonyms.
    """
    lookup = class_lookup([own[0] for own in names], {own[0]: own[1:] for own in names})
    place = {own[0]: number for number, own in enumerate(names)}
    found_NC = np.zeros((len(nouns), len(names)), bool)
    for row, own_nouns in enumerate(nouns):
        found_NC[row, [place[lookup[noun]] for noun in own_nouns if noun in lookup]] = True
    return found_NC
