"""Position embeddings of a grid, on any other grid."""

import torch
from torch import Tensor
from torch.nn import functional


def positions_on(learnt_TD: Tensor, learnt: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Embeddings [T', D] of a grid of patches, bicubic on any but the one they were learnt on.

    Args:
        learnt_TD: of the patches, row by row; those of other tokens, if any, come first and stay.
        learnt: rows and columns of their grid.
        grid: rows and columns that are wanted.
    """
    if grid == tuple(learnt):
        return learnt_TD
    others = len(learnt_TD) - learnt[0] * learnt[1]
    maps_Dhw = learnt_TD[others:].T.reshape(-1, *learnt).float()
    resized_Dhw = functional.interpolate(maps_Dhw[None], grid, mode="bicubic", antialias=True)[0]
    return torch.cat([learnt_TD[:others], resized_Dhw.flatten(1).T.to(learnt_TD.dtype)])
