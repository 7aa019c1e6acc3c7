"""The text tower: a causal transformer read out at the end-of-text token (CLIP, 2021)."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from training.transformer import Block, Packing, QuickGELU


class TextTower(nn.Module):
    """Encodes token ids into one vector a text.

    The end-of-text token must have the highest id of the vocabulary, as in CLIP's; what follows it
    is padding, which a causal transformer never shows to it. So padding is left out of all work.

    Args:
        vocab_size: number of token ids.
        context_length: the longest text, in tokens.
        width: channels of the tokens and of the returned vectors.
        layers: number of transformer blocks.
        heads: attention heads a block.
    """

    def __init__(self, *, vocab_size: int, context_length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context_length, width)
        self.blocks = nn.ModuleList(Block(width, heads, QuickGELU()) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Returns the vectors at the end-of-text tokens, (N, W).

        Args:
            tokens_NT: int64 token ids; T may be shorter than the context length.

        Raises:
            ValueError: if T exceeds the context length.
        """
        length = tokens_NT.shape[1]
        if length > self.positions.num_embeddings:
            raise ValueError(
                f"texts of {length} tokens came to a tower with context_length="
                f"{self.positions.num_embeddings}; truncate them or raise context_length"
            )
        ends_N = tokens_NT.argmax(dim=1)
        packing, ids_P, positions_P = packed(tokens_NT, ends_N)
        x_PW = self.tokens(ids_P) + self.positions(positions_P)
        for block in cast("Iterable[Block]", self.blocks):
            x_PW = block.causal(x_PW, packing)
        read_NW: Tensor = self.norm(x_PW[(ends_N + 1).cumsum(0) - 1])
        return read_NW

    def _initialise(self) -> None:
        """CLIP's scales: deviations shrink with width, and with depth where residuals add up."""
        width, residuals = self.tokens.embedding_dim, 2 * len(self.blocks)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)
        for name, weight in self.blocks.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif name.endswith("inward.weight"):
                nn.init.normal_(weight, std=width**-0.5)
            elif name.endswith("widen.weight"):
                nn.init.normal_(weight, std=(2 * width) ** -0.5)
            elif name.endswith(("out.weight", "narrow.weight")):
                nn.init.normal_(weight, std=(width * residuals) ** -0.5)


def packed(tokens_NT: Tensor, ends_N: Tensor) -> tuple[Packing, Tensor, Tensor]:
    """Leaves out what follows the end of each text.

    Args:
        tokens_NT: int64 token ids.
        ends_N: int64, where each text ends.

    Returns:
        The packing, and id and position of each of its tokens, (P,).
    """
    longest = int(ends_N.max()) + 1
    steps_T = torch.arange(longest, device=tokens_NT.device)
    places_P = (steps_T <= ends_N[:, None]).flatten().nonzero()[:, 0]
    packing = Packing(places_P, (len(tokens_NT), longest))
    return packing, tokens_NT[:, :longest].flatten()[places_P], places_P % longest
