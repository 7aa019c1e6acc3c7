"""Gumbel noise as a function of (sample, stage, position) and of nothing else: a hash, no generator.

So a sample has the same noise in a batch, in a part of it, on another process and when it is encoded
again, and no random state has to be saved.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from storage.fingerprint import stable_seed

_STAGE = 0x3C6EF372  # apart from each other by more than any number of positions


def sample_keys(sample_ids: Sequence[str], *, seed: int, epoch: int) -> Tensor:
    """What the noise of each sample is made from: int32 [N, 2], on the CPU."""
    seeds = [stable_seed("gumbel", seed, sample_id, epoch) for sample_id in sample_ids]
    return torch.from_numpy(np.array(seeds, np.int64).view(np.int32).reshape(-1, 2).copy())


def stage_keys(keys_N2: Tensor, stage: int) -> Tensor:
    """Keys of one grouping stage of the samples."""
    return _mixed(keys_N2 + torch.tensor([_STAGE], dtype=torch.int32, device=keys_N2.device) * (stage + 1))


def gumbel(keys_N2: Tensor, groups: int, tokens: int) -> Tensor:
    """Standard Gumbel noise −log(−log u), float32 [N, G, T], u one of 2^23 values evenly inside (0, 1).

    Position (g, t) of sample n is hashed with the sample's two words: a sample's noise is a row of a table
    that nobody stores. A value costs some twenty operations on 32-bit whole numbers, which are the same on
    every device.
    """
    places_GT = torch.arange(groups * tokens, dtype=torch.int32, device=keys_N2.device)
    first_N11, second_N11 = keys_N2[:, 0, None, None], keys_N2[:, 1, None, None]
    bits_NGT = _mixed(_mixed(places_GT).reshape(groups, tokens) ^ first_N11, second_N11)
    uniform_NGT = _shifted(bits_NGT, 9).float().add_(0.5).mul_(2.0**-23)
    return uniform_NGT.log_().neg_().log_().neg_()


def _mixed(words: Tensor, key: Tensor | int = 0) -> Tensor:
    """A bijection of 32-bit words in which every bit depends on all (Mueller and Wellons, lowbias32)."""
    words = (words ^ _shifted(words, 16)) * 0x7FEB352D + key
    words = words.bitwise_xor_(_shifted(words, 15)).mul_(-0x7B935975)  # 0x846CA68B as a signed word
    return words.bitwise_xor_(_shifted(words, 16))


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Words shifted right as if they had no sign."""
    return (words >> bits).bitwise_and_((1 << (32 - bits)) - 1)
