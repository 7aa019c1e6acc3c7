"""Attention, MLP and pre-norm block: what GroupViT's image and text towers have in common."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Packing:
    """Sequences of different lengths, one after another and without padding.

    What works token by token takes them as they are; only attention has to tell them apart.

    Attributes:
        places_P: int64, where each of the P tokens lies among the N·T of the padded batch.
        shape: N and T of the padded batch.
    """

    places_P: Tensor
    shape: tuple[int, int]

    def pad(self, packed_PW: Tensor) -> Tensor:
        """Lays (P, W) out as (N, T, W), with zeros behind the end of each sequence."""
        count, length = self.shape
        empty_MW = packed_PW.new_zeros(count * length, packed_PW.shape[1])
        return empty_MW.index_copy(0, self.places_P, packed_PW).reshape(count, length, -1)

    def pack(self, padded_NTW: Tensor) -> Tensor:
        """Takes the tokens that are no padding from (N, T, W): (P, W)."""
        return padded_NTW.flatten(0, 1).index_select(0, self.places_P)


class Attention(nn.Module):
    """Multi-head attention.

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
        self.inward = nn.Linear(width, 3 * width)  # queries, keys and values: one product where it can be
        self.out = nn.Linear(width, width)

    def forward(self, queries_NQW: Tensor, context_NKW: Tensor) -> Tensor:
        """Returns what each query gathered from the context, (N, Q, W)."""
        own = self.out.in_features
        weight, bias = self.inward.weight, self.inward.bias
        asked_NQW = functional.linear(queries_NQW, weight[:own], bias[:own])
        held_NKV = functional.linear(context_NKW, weight[own:], bias[own:])
        merged_NQW: Tensor = self.out(self._gather(asked_NQW, *held_NKV.chunk(2, dim=-1)))
        return merged_NQW

    def to_itself(self, tokens_NTW: Tensor) -> Tensor:
        """Returns what each token gathered from all of its sequence, (N, T, W)."""
        merged_NTW: Tensor = self.out(self._gather(*self.inward(tokens_NTW).chunk(3, dim=-1)))
        return merged_NTW

    def to_earlier(self, tokens_PW: Tensor, packing: Packing) -> Tensor:
        """Returns what each packed token gathered from itself and those before it, (P, W)."""
        padded_NTV = packing.pad(self.inward(tokens_PW))
        gathered_NTW = self._gather(*padded_NTV.chunk(3, dim=-1), causal=True)
        merged_PW: Tensor = self.out(packing.pack(gathered_NTW))
        return merged_PW

    def _gather(
        self, queries_NQW: Tensor, keys_NKW: Tensor, values_NKW: Tensor, *, causal: bool = False
    ) -> Tensor:
        gathered_NHQE = functional.scaled_dot_product_attention(
            self._split(queries_NQW), self._split(keys_NKW), self._split(values_NKW), is_causal=causal
        )
        return gathered_NHQE.transpose(1, 2).flatten(2)

    def _split(self, tokens_NTW: Tensor) -> Tensor:
        """Splits the channels over the heads: (N, H, T, W / H)."""
        return tokens_NTW.reshape(*tokens_NTW.shape[:2], self.heads, -1).transpose(1, 2)


class QuickGELU(nn.Module):
    """x·σ(1.702x), the approximation of GELU that CLIP's text tower was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activation, element by element."""
        return functional.silu(1.702 * x) / 1.702  # keeps one tensor for the gradient instead of two


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

    def forward(self, tokens_NTW: Tensor) -> Tensor:
        """Returns the tokens after attention and MLP, (N, T, W)."""
        return self._mapped(tokens_NTW + self.attention.to_itself(self.norm_attention(tokens_NTW)))

    def causal(self, tokens_PW: Tensor, packing: Packing) -> Tensor:
        """The same for packed sequences, (P, W), whose tokens see none that come later."""
        return self._mapped(tokens_PW + self.attention.to_earlier(self.norm_attention(tokens_PW), packing))

    def _mapped(self, tokens: Tensor) -> Tensor:
        mapped: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return mapped
