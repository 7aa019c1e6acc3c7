"""Counter-based Gumbel noise: its hash, its distribution, and that nothing in it is shared."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from training.gumbel import gumbel, sample_keys, stage_keys


def keys(count: int, epoch: int = 0) -> Tensor:
    return sample_keys([f"corpus/00000/{n:05d}" for n in range(count)], seed=3, epoch=epoch)


def by_hand(key: tuple[int, int], place: int) -> float:
    """One value in Python's whole numbers, which have no sign and no width."""

    def mixed(word: int, added: int = 0) -> int:
        word = ((word ^ word >> 16) * 0x7FEB352D + added) % 2**32
        word = (word ^ word >> 15) * 0x846CA68B % 2**32
        return word ^ word >> 16

    bits = mixed(mixed(place) ^ key[0] % 2**32, key[1] % 2**32)
    return -math.log(-math.log(((bits >> 9) + 0.5) / 2**23))


def test_noise_equals_the_hash_in_plain_python() -> None:
    keys_N2 = keys(3)
    noise = gumbel(keys_N2, 4, 5)
    expected = [[by_hand((k[0], k[1]), p) for p in range(20)] for k in keys_N2.tolist()]
    torch.testing.assert_close(noise.flatten(1), torch.tensor(expected), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("shape", [(2000, 8, 16), (16, 64, 196)])
def test_noise_has_the_gumbel_distribution(shape: tuple[int, int, int]) -> None:
    noise = gumbel(keys(shape[0]), *shape[1:]).flatten().double().numpy()
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-3
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_noise_of_neighbouring_samples_groups_and_tokens_is_uncorrelated(axis: int) -> None:
    noise = gumbel(keys(64), 32, 64).movedim(axis, 0)
    pairs = torch.stack([noise[:-1].flatten(), noise[1:].flatten()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 4 / math.sqrt(pairs.shape[1])


def test_noise_of_stages_and_epochs_is_uncorrelated() -> None:
    first = gumbel(stage_keys(keys(64), 0), 32, 64).flatten()
    others = [stage_keys(keys(64), 1), stage_keys(keys(64, epoch=1), 0), keys(64)]
    for other in others:
        correlation = torch.corrcoef(torch.stack([first, gumbel(other, 32, 64).flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(len(first))


def test_noise_bits_are_fair() -> None:
    uniform = (-(-gumbel(keys(256), 64, 49).double()).exp()).exp()
    words = (uniform * 2**23 - 0.5).round().long().flatten()
    shares = torch.stack([((words >> bit) & 1).double().mean() for bit in range(10, 23)])
    assert (shares - 0.5).abs().max() < 4 * 0.5 / math.sqrt(len(words))


def test_noise_is_finite_at_both_ends() -> None:
    ends = torch.tensor([0.5, 2**23 - 0.5]) * 2.0**-23
    assert torch.isfinite(-(-ends.log()).log()).all()
    assert torch.isfinite(gumbel(keys(64), 64, 196)).all()


def test_keys_of_different_samples_are_different() -> None:
    assert len(torch.unique(keys(5000), dim=0)) == 5000
