"""Attention, MLP and pre-norm block: what GroupViT's image and text towers have in common."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention of queries over a context; with `context = queries` it is self-attention.

    Args:
        width: channels of queries, context and output.
        heads: number of heads; must divide `width`.

    Raises:
        ValueError: if `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}; choose a multiple of {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries_NQW: Tensor, context_NKW: Tensor, *, causal: bool = False) -> Tensor:
        """Returns what each query gathered, (N, Q, W); with `causal`, from no later position."""
        gathered_NHQE = functional.scaled_dot_product_attention(
            self._split(self.query(queries_NQW)),
            self._split(self.key(context_NKW)),
            self._split(self.value(context_NKW)),
            is_causal=causal,
        )
        merged_NQW: Tensor = self.out(gathered_NHQE.transpose(1, 2).flatten(2))
        return merged_NQW

    def _split(self, tokens_NTW: Tensor) -> Tensor:
        """Splits the channels over the heads: (N, H, T, W / H)."""
        batch, length, width = tokens_NTW.shape
        split_NTHE = tokens_NTW.reshape(batch, length, self.heads, width // self.heads)
        return split_NTHE.transpose(1, 2)


class QuickGELU(nn.Module):
    """x·σ(1.702x), the approximation of GELU that CLIP's text tower was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activation, element by element."""
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two linear layers around an activation, over the last axis."""

    def __init__(self, width: int, hidden: int, out: int, activation: nn.Module) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden)
        self.activation = activation
        self.narrow = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, width) to (…, out)."""
        mapped: Tensor = self.narrow(self.activation(self.widen(x)))
        return mapped


class Block(nn.Module):
    """Pre-norm transformer block with an MLP four times as wide as its tokens."""

    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width, activation)

    def forward(self, tokens_NTW: Tensor, *, causal: bool = False) -> Tensor:
        """Returns the tokens after attention and MLP, (N, T, W)."""
        normed_NTW = self.norm_attention(tokens_NTW)
        tokens_NTW = tokens_NTW + self.attention(normed_NTW, normed_NTW, causal=causal)
        updated_NTW: Tensor = tokens_NTW + self.mlp(self.norm_mlp(tokens_NTW))
        return updated_NTW
