"""Large towers: their weights, gradients and moments lie in parts on all processes (FSDP2).

A layer's weights are brought together for its forward and its backward pass only. What is small or used apart
from a layer (norms, embeddings, projections) stays whole on every process.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils.parametrize import is_parametrized

from storage.errors import ConfigError
from training.blocks import blocks_of

Tensors = dict[str, Tensor]
ENTRIES = ("to_itself", "to_earlier")  # by which GroupViT's attention is called, besides `forward`


def shard(towers: Mapping[str, nn.Module]) -> None:
    """Lays the layers of the towers' blocks in parts on the processes of the training, which have met.

    Raises:
        ConfigError: for towers without a list of blocks, or with low-rank adapters.
    """
    if any(is_parametrized(part) for tower in towers.values() for part in tower.modules()):
        raise ConfigError(
            "loop.shard: low-rank adapters have few gradients and moments; train them unsharded"
        )
    layers = [layer for block in blocks_of(towers, "loop.shard") for layer in _layers(block)]
    assert layers, "blocks without a layer that holds matrices"
    mesh = init_device_mesh(next(layers[0].parameters()).device.type, (dist.get_world_size(),))
    # A warning of changing a layer's output in place, which no tower does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
        for entry in ENTRIES:
            if hasattr(layer, entry):
                register_fsdp_forward_method(layer, entry)


def _layers(block: nn.Module) -> Iterator[nn.Module]:
    """What a block calls as a whole, such as its attention and its MLP, where it holds matrices."""
    for layer in block.children():
        if any(weight.ndim > 1 for weight in layer.parameters()) and not isinstance(layer, nn.ModuleList):
            yield layer


def whole(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors with none in parts. Every process must ask."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def spread(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Whole tensors in parts, where those of the same name and shape are in parts."""
    return {name: _spread(tensor, like.get(name)) for name, tensor in tensors.items()}


def _spread(tensor: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    here = tensor.to(like.device)  # every process has all of it, so none need send
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scales gradients down to a norm of ``largest`` over all of them, in parts or whole.

    Returns:
        Scalar: the norm before.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g for g in gradients if isinstance(g, DTensor)]
    rest = [g for g in gradients if not isinstance(g, DTensor)]
    norm = nn.utils.get_total_norm(rest)
    if parts:
        squares = torch.stack([g.to_local().float().square().sum() for g in parts]).sum()
        dist.all_reduce(squares)
        norm = (norm.square() + squares).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ does
    for gradient in [*rest, *(g.to_local() for g in parts)]:
        gradient.mul_(factor)
    return norm
