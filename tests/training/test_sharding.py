"""What is refused; that sharded towers train alike is shown with two processes, in test_distributed.py."""

import pytest
import torch
from torch import Tensor, nn

from storage.errors import ConfigError
from tests.training import tiny
from training.sharding import clip, shard, spread, whole


def test_sharding_a_tower_without_blocks_raises() -> None:
    with pytest.raises(ConfigError, match="no list of transformer blocks in visual"):
        shard({"visual": nn.Sequential(nn.Linear(2, 2))})


def test_sharding_low_rank_adapters_raises() -> None:
    with pytest.raises(ConfigError, match="low-rank adapters"):
        shard(tiny.recognition("lora:2").towers)


def test_clipping_does_what_torch_does() -> None:
    def weights() -> list[nn.Parameter]:
        made = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
        made[0].grad, made[1].grad = torch.tensor([3.0, -4.0, 0.5]), torch.full((2, 2), 2.0)
        return made

    for largest in (0.7, 100.0):
        ours, theirs = weights(), weights()
        assert torch.equal(clip(ours, largest), nn.utils.clip_grad_norm_(theirs, largest))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:2], theirs[:2], strict=True))


def test_whole_tensors_are_themselves() -> None:
    tensors: dict[str, Tensor] = {"a": torch.ones(2)}
    assert whole(tensors)["a"] is spread(tensors, tensors)["a"] is tensors["a"]
