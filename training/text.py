"""The text tower: a causal transformer read out at the end-of-text token (CLIP, 2021)."""

import torch
from torch import Tensor, nn

from training.transformer import Block, QuickGELU


class TextTower(nn.Module):
    """Encodes token ids into one vector a text.

    The end-of-text token must have the highest id of the vocabulary, as in CLIP's; what follows it
    is padding, which a causal transformer never shows to it.

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
        x_NTW = self.tokens(tokens_NT) + self.positions.weight[:length]
        for block in self.blocks:
            x_NTW = block(x_NTW, causal=True)
        rows_N = torch.arange(len(tokens_NT), device=tokens_NT.device)
        ends_NW: Tensor = self.norm(x_NTW[rows_N, tokens_NT.argmax(dim=1)])
        return ends_NW

    def _initialise(self) -> None:
        """CLIP's scales: deviations shrink with width, and with depth where residuals add up."""
        width, residuals = self.tokens.embedding_dim, 2 * len(self.blocks)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)
        for name, weight in self.blocks.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif name.endswith(("query.weight", "key.weight", "value.weight")):
                nn.init.normal_(weight, std=width**-0.5)
            elif name.endswith("widen.weight"):
                nn.init.normal_(weight, std=(2 * width) ** -0.5)
            elif name.endswith(("out.weight", "narrow.weight")):
                nn.init.normal_(weight, std=(width * residuals) ** -0.5)
