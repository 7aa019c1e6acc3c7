"""Pictures as grids of patches or cells: their positions on another grid, and what fits."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Part = TypeVar("Part")


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


def require_whole_patches(image_NCHW: Tensor, down: int, across: int) -> None:
    """Refuses images that patches of so many pixels do not tile.

    Raises:
        ValueError: naming both sizes.
    """
    height, width = image_NCHW.shape[2:]
    if height % down or width % across:
        raise ValueError(
            f"an image of {height} x {width} px does not split into patches of {down} x {across} px; "
            "resize it to multiples of them"
        )


def last_of(parts: Sequence[Part], count: int, kind: str) -> Sequence[Part]:
    """The last blocks or stages of a tower.

    Raises:
        ValueError: for more than there are.
    """
    if count > len(parts):
        raise ValueError(f"this tower has {len(parts)} {kind}, not {count}; choose fewer, or all")
    return parts[-count:]
