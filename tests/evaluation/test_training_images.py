from types import SimpleNamespace
from typing import Any

from evaluation.training_images import TrainingImages

SIZES = {f"web/{number:02d}": 10 + number for number in range(12)} | {"other/0": 500}


def images(**chosen: Any) -> TrainingImages:
    parts = [SimpleNamespace(shard=shard, rows=rows) for shard, rows in SIZES.items()]
    regions = SimpleNamespace(shards=list(SIZES))
    mentions = SimpleNamespace(parts=lambda table: parts if table == "mentions" else [])
    return TrainingImages(regions, mentions, None, **chosen)  # type: ignore[arg-type]


def test_shards_are_all_of_the_sources_in_their_order_where_few_enough() -> None:
    assert images().shards == images(most=10_000).shards == list(SIZES)
    web = [shard for shard in SIZES if shard.startswith("web")]
    assert images(sources=("web",)).shards == images(sources=("web",), most=186).shards == web


def test_shards_of_more_images_than_asked_are_drawn_until_they_hold_as_many() -> None:
    drawn = images(sources=("web",), most=50).shards
    assert drawn == images(sources=("web",), most=50).shards
    assert drawn != list(SIZES)[: len(drawn)]
    held = [SIZES[shard] for shard in drawn]
    assert sum(held[:-1]) < 50 <= sum(held)
    assert images(sources=("web",), most=90).shards[: len(drawn)] == drawn
