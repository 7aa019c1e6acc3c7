"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): W + B·A in the place of W, and only A and B learn.

They are parametrisations of torch's: every module goes on using its `weight`, so that adapters fit into fused
attention as into a convolution. B starts at zero: before the first step the tower is what it was.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from storage.fingerprint import stable_seed

FUSED = {"in_proj_weight": 3, "qkv": 3, "kv": 2}  # matrices of attention that lie one below the other
Place = tuple[nn.Module, str]  # a module, and which of its parameters is a matrix


class LowRank(nn.Module):
    """Adds B·A to a matrix, or to each of some equally large matrices that lie one below the other."""

    def __init__(self, weight: Tensor, rank: int, blocks: int, seed: int) -> None:
        """Makes adapters of a weight [blocks · out, in, ...] whose further dimensions are 1.

        The product is not scaled (α = rank). A is drawn as torch draws the weight of a linear layer.
        """
        super().__init__()
        rows, columns = weight.shape[0] // blocks, weight.shape[1]
        bound = columns**-0.5
        drawn_BRI = torch.rand(blocks, rank, columns, generator=torch.Generator().manual_seed(seed))
        self.down_BRI = nn.Parameter((2 * drawn_BRI - 1).mul(bound).to(weight))
        self.up_BOR = nn.Parameter(weight.new_zeros(blocks, rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + (self.up_BOR @ self.down_BRI).reshape(weight.shape)


def adapt(module: nn.Module, rank: int) -> list[nn.Parameter]:
    """Puts adapters on the matrices of a network; all else is left as it is, frozen or not.

    Matrices are the projections of attention (query, key and value each have their own), linear layers,
    convolutions of one pixel, and the projection of open_clip's transformers.

    Returns:
        The adapters' parameters.

    Raises:
        ValueError: for a rank below 1, or a network without such a matrix.
    """
    names = {id(part): name for name, part in module.named_modules()}
    places = [place for part in module.modules() for place in _matrices(part)]
    if rank < 1 or not places:
        raise ValueError(
            f"cannot put adapters of rank {rank} on {len(places)} matrices; both must be at least 1"
        )
    adapters = []
    for part, name in places:
        blocks = FUSED.get(name) or FUSED.get(names[id(part)].rsplit(".", 1)[-1], 1)
        seed = stable_seed("low_rank", names[id(part)], name)
        adapters.append(LowRank(getattr(part, name).detach(), rank, blocks, seed))
        parametrize.register_parametrization(part, name, adapters[-1])
    return [parameter for adapter in adapters for parameter in adapter.parameters()]


def _matrices(part: nn.Module) -> Iterator[Place]:
    if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
        yield part, "in_proj_weight"
    elif isinstance(part, nn.MultiheadAttention):  # of keys that are wider than queries
        yield from ((part, name) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"))
    elif isinstance(part, nn.Linear) or is_pointwise(part):
        yield part, "weight"
    elif isinstance(getattr(part, "proj", None), nn.Parameter):
        yield part, "proj"


def is_pointwise(part: nn.Module) -> bool:
    """Whether it is a convolution of one pixel over all channels: a linear layer of every cell."""
    return isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1


def merge(module: nn.Module) -> None:
    """Adds the adapters to the weights for good: the network is a plain one again."""
    for part in list(module.modules()):
        for name in list(getattr(part, "parametrizations", {})):
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A state dict with the adapters merged, for networks without adapters; this one stays as it is.

    Tensors are contiguous, as files hold them.
    """
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        owner, found, rest = key.partition("parametrizations.")
        if not found:
            state[key] = value.contiguous()
        elif rest.endswith(".original"):
            name = rest.removesuffix(".original")
            state[owner + name] = getattr(module.get_submodule(owner.rstrip(".")), name).detach().contiguous()
    return state
