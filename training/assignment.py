"""GroupViT's grouping block: every token is assigned to one group, groups become the new tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.gumbel import gumbel
from training.transformer import Attention, Mlp


def hard_assignment(logits_NGT: Tensor, keys_N2: Tensor | None = None) -> Tensor:
    """Assigns every token to one group, with the gradient of the soft assignment.

    Args:
        logits_NGT: similarity of G groups to T tokens.
        keys_N2: of the samples' Gumbel noise, as in training (`training.gumbel`); without them the
            assignment is the arg max.

    Returns:
        (N, G, T) in the dtype of the logits, exactly one-hot over the groups.
    """
    scores_NGT = logits_NGT.float()
    if keys_N2 is not None:
        scores_NGT = scores_NGT + gumbel(keys_N2, *scores_NGT.shape[1:])
    soft_NGT = scores_NGT.softmax(dim=1)
    winners_N1T = soft_NGT.argmax(dim=1, keepdim=True)
    hard_NGT = torch.zeros_like(soft_NGT).scatter_(1, winners_N1T, 1.0)
    # The bracket is zero in value, so that the sum stays one-hot to the last bit.
    return (hard_NGT + (soft_NGT - soft_NGT.detach())).to(logits_NGT.dtype)


class Mixer(nn.Module):
    """An MLP over the token axis: turns one number of tokens into another."""

    def __init__(self, tokens: int, hidden: int, out: int) -> None:
        super().__init__()
        self.mlp = Mlp(tokens, hidden, out, nn.GELU())

    def forward(self, tokens_NTW: Tensor) -> Tensor:
        """Maps (N, T, W) to (N, out, W)."""
        mixed_NWT: Tensor = self.mlp(tokens_NTW.transpose(1, 2))
        return mixed_NWT.transpose(1, 2)


class Assignment(nn.Module):
    """Single-head attention that competes over groups: proj[(A / (ΣA + 1))·V] (GroupViT, eq. 5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, groups_NGW: Tensor, tokens_NTW: Tensor, keys_N2: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the groups' averages of their tokens, (N, G, W), and the soft map, (N, G, T)."""
        queries_NGW, keys_NTW = self.query(groups_NGW), self.key(tokens_NTW)
        logits_NGT = queries_NGW @ keys_NTW.transpose(1, 2) * groups_NGW.shape[-1] ** -0.5
        hard_NGT = hard_assignment(logits_NGT, keys_N2)
        # One more than the sum: a group that won no token gets nothing instead of dividing by zero.
        shares_NGT = hard_NGT / (hard_NGT.sum(dim=-1, keepdim=True) + 1)
        return self.out(shares_NGT @ self.value(tokens_NTW)), logits_NGT.softmax(dim=1)


class GroupContext(nn.Module):
    """Lets group tokens look at the image tokens before these are assigned."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width, nn.GELU())
        self.norm_out = nn.LayerNorm(width)

    def forward(self, groups_NGW: Tensor, tokens_NTW: Tensor) -> Tensor:
        """Returns the informed group tokens, (N, G, W)."""
        groups_NGW = groups_NGW + self.attention(groups_NGW, tokens_NTW)
        informed_NGW: Tensor = self.norm_out(groups_NGW + self.mlp(self.norm_mlp(groups_NGW)))
        return informed_NGW


class GroupingBlock(nn.Module):
    """Merges T image tokens into G groups led by G group tokens.

    Args:
        width: channels of the tokens.
        heads: heads of the attention before the assignment.
        groups: G, the number of group tokens and of groups.
    """

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm_groups = nn.LayerNorm(width)
        self.mixer = Mixer(groups, width // 2, groups)
        self.norm_mixed = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(width)
        self.context = GroupContext(width, heads)
        self.assignment = Assignment(width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width, nn.GELU())

    def forward(
        self, tokens_NTW: Tensor, groups_NGW: Tensor, keys_N2: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the groups as new tokens, (N, G, W), and the soft assignment, (N, G, T)."""
        tokens_NTW = self.norm_tokens(tokens_NTW)
        groups_NGW = self.norm_mixed(self.mixer(self.norm_groups(groups_NGW)))
        groups_NGW = self.context(groups_NGW, tokens_NTW)
        gathered_NGW, soft_NGT = self.assignment(groups_NGW, tokens_NTW, keys_N2)
        merged_NGW = groups_NGW + gathered_NGW
        return merged_NGW + self.mlp(self.norm_mlp(merged_NGW)), soft_NGT


def group_masks(assignments: tuple[Tensor, ...], height: int, width: int) -> Tensor:
    """Says how strongly each pixel belongs to each last group: the stages' soft maps, multiplied.

    Args:
        assignments: the soft maps of an image's grouping stages. The first keeps the grid of
            patches, (N, G1, h, w); each later one assigns groups to groups, (N, G2, G1).
        height: of the returned masks, in pixels.
        width: of the returned masks, in pixels.

    Returns:
        (N, G, height, width), non-negative and summing to 1 over G, by bilinear interpolation.
    """
    patches_NGhw, *later = assignments
    masks_NGhw = patches_NGhw
    for soft_NGF in later:
        masks_NGhw = torch.einsum("ngf,nfhw->nghw", soft_NGF, masks_NGhw)
    return functional.interpolate(masks_NGhw, size=(height, width), mode="bilinear", align_corners=False)
