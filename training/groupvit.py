"""GroupViT (Xu et al., CVPR 2022): a segmenter that emerges from image–text contrast."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.assignment import GroupingBlock, Mixer, group_masks
from training.gumbel import stage_keys
from training.text import TextTower
from training.transformer import Block

__all__ = ["GroupViT", "GroupViTConfig", "GroupedImage", "group_masks"]

LARGEST_SCALE = 100.0  # of the logits, as in CLIP: the learnt temperature stays above 0.01


@dataclass(frozen=True)
class GroupViTConfig:
    """Sizes of both towers; the defaults are the paper's.

    With them a 224 px image is 196 tokens, which become 64 and then 8 groups.
    """

    image_size: int = 224  # pixels; other sizes interpolate the positions
    patch_size: int = 16  # pixels
    width: int = 384  # channels of image tokens
    heads: int = 6
    depths: tuple[int, ...] = (6, 3, 3)  # blocks of each stage
    groups: tuple[int, ...] = (64, 8, 0)  # group tokens of each stage; the last stage has none
    text_width: int = 256
    text_layers: int = 12
    text_heads: int = 4
    context_length: int = 77  # tokens
    vocab_size: int = 49408
    projection_dim: int = 256  # of the space that images and texts share
    projection_hidden: int = 4096
    logit_scale_init: float = 2.6592  # natural logarithm of 1 / 0.07

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            )
        grouping, last = self.groups[:-1], self.groups[-1:]
        if len(self.groups) != len(self.depths) or last != (0,) or min(grouping, default=0) < 1:
            raise ValueError(
                f"groups={self.groups} with depths={self.depths}: give one number a stage, "
                "positive in every stage but the last, which takes 0"
            )


@dataclass(frozen=True)
class GroupedImage:
    """What the image tower says of N images.

    Attributes:
        pooled_ND: the mean of the last groups in the space of the texts, not normalised.
        groups_NGD: the last groups in the space of the texts, not normalised.
        assignments: soft maps of the grouping stages, each summing to 1 over its groups: first
            (N, G1, h, w) on the grid of patches, then (N, G2, G1).
    """

    pooled_ND: Tensor
    groups_NGD: Tensor
    assignments: tuple[Tensor, ...]


class Stage(nn.Module):
    """Transformer blocks over image and group tokens, then a grouping block (none if `groups=0`).

    The group tokens of the stage before, mixed down to this stage's number, are added to its own.
    """

    def __init__(self, width: int, heads: int, depth: int, groups: int, previous_groups: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, nn.GELU()) for _ in range(depth))
        self.group_tokens: nn.Parameter | None = None
        self.grouping: GroupingBlock | None = None
        self.inherit: nn.Module | None = None
        if groups:
            self.group_tokens = nn.Parameter(torch.zeros(1, groups, width))
            self.grouping = GroupingBlock(width, heads, groups)
        if groups and previous_groups:
            mixer = Mixer(previous_groups, width // 2, groups)
            self.inherit = nn.Sequential(nn.LayerNorm(width), mixer)

    def forward(
        self, tokens_NTW: Tensor, previous_NPW: Tensor | None, keys_N2: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns the new tokens, this stage's group tokens and its soft assignment (N, G, T)."""
        if self.group_tokens is None or self.grouping is None:
            return self._attend(tokens_NTW), None, None
        own_NGW = self.group_tokens.expand(len(tokens_NTW), -1, -1)
        if self.inherit is not None:
            own_NGW = own_NGW + self.inherit(previous_NPW)
        joint_NTW = self._attend(torch.cat([tokens_NTW, own_NGW], dim=1))
        length = tokens_NTW.shape[1]
        tokens_NTW, own_NGW = joint_NTW[:, :length], joint_NTW[:, length:]
        merged_NGW, soft_NGT = self.grouping(tokens_NTW, own_NGW, keys_N2)
        return merged_NGW, own_NGW, soft_NGT

    def _attend(self, tokens_NTW: Tensor) -> Tensor:
        for block in self.blocks:
            tokens_NTW = block(tokens_NTW)
        return tokens_NTW


class ImageTower(nn.Module):
    """Turns images into the tokens of their last groups, by patches and stages."""

    def __init__(self, config: GroupViTConfig) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        self.grid = config.image_size // patch  # patches a side, for which positions are learnt
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.norm_patches = nn.LayerNorm(width)
        self.positions = nn.Parameter(torch.zeros(1, self.grid**2, width))
        self.stages = nn.ModuleList(
            Stage(width, config.heads, depth, groups, previous)
            for depth, groups, previous in zip(
                config.depths, config.groups, (0, *config.groups[:-1]), strict=True
            )
        )
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def forward(self, image_NCHW: Tensor, keys_N2: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the last group tokens, (N, G, W), and the stages' soft assignments.

        With keys, tokens are assigned by Gumbel noise made from them (see `training.gumbel`).

        Raises:
            ValueError: if height or width is no multiple of the patch size.
        """
        self._require_whole_patches(*image_NCHW.shape[2:])
        patches_NWhw = self.patches(image_NCHW)
        grid = (patches_NWhw.shape[2], patches_NWhw.shape[3])
        tokens_NTW = self.norm_patches(patches_NWhw.flatten(2).transpose(1, 2))
        tokens_NTW = tokens_NTW + self._positions_for(*grid)
        groups_NGW, assignments = None, []
        for number, stage in enumerate(self.stages):
            own_N2 = None if keys_N2 is None else stage_keys(keys_N2, number)
            tokens_NTW, groups_NGW, soft_NGT = stage(tokens_NTW, groups_NGW, own_N2)
            if soft_NGT is not None:
                assignments.append(soft_NGT)
        first_NGhw = assignments[0].reshape(*assignments[0].shape[:2], *grid)
        return self.norm(tokens_NTW), (first_NGhw, *assignments[1:])

    def _require_whole_patches(self, height: int, width: int) -> None:
        patch = self.patches.kernel_size[0]
        if height % patch or width % patch:
            raise ValueError(
                f"an image of {height}x{width} pixels came to a tower with patches of {patch}; "
                f"resize or pad both sides to multiples of {patch}"
            )

    def _positions_for(self, height: int, width: int) -> Tensor:
        """Positions of a grid of patches, interpolated bicubically where it is not the learnt one."""
        if (height, width) == (self.grid, self.grid):
            return self.positions
        learnt_1Wgg = self.positions.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        resized_1Whw = functional.interpolate(
            learnt_1Wgg, size=(height, width), mode="bicubic", align_corners=False
        )
        return resized_1Whw.flatten(2).transpose(1, 2)

    def _initialise(self) -> None:
        """Small weights, no biases; tokens and positions differ from the start, to break ties."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every layer here has one
        nn.init.trunc_normal_(self.positions, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("group_tokens"):
                nn.init.trunc_normal_(weight, std=0.02)


class Projector(nn.Module):
    """Two linear layers with batch normalisation between, into the space of images and texts."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.narrow = nn.Linear(hidden, out)

    def forward(self, vectors_NW: Tensor) -> Tensor:
        """Maps (N, W) to (N, D), in training by the statistics of the batch."""
        projected_ND: Tensor = self.narrow(self.norm(self.widen(vectors_NW)).relu())
        return projected_ND

    def by_running_statistics(self, tokens_NGW: Tensor) -> Tensor:
        """Maps (N, G, W) to (N, G, D) and leaves the statistics alone, in training too."""
        hidden_MH = functional.batch_norm(
            self.widen(tokens_NGW.flatten(0, 1)),
            self.norm.running_mean,
            self.norm.running_var,
            self.norm.weight,
            self.norm.bias,
            eps=self.norm.eps,
        )
        projected_MD: Tensor = self.narrow(hidden_MH.relu())
        return projected_MD.reshape(*tokens_NGW.shape[:2], -1)


class GroupViT(nn.Module):
    """Image tower, text tower and their projectors.

    Assignments are drawn with Gumbel noise where keys for it are given, as in training, in whichever
    mode; without keys they are the arg max.
    """

    def __init__(self, config: GroupViTConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config)
        self.text = TextTower(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            width=config.text_width,
            layers=config.text_layers,
            heads=config.text_heads,
        )
        hidden, shared = config.projection_hidden, config.projection_dim
        self.image_projector = Projector(config.width, hidden, shared)
        self.text_projector = Projector(config.text_width, hidden, shared)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init))

    def forward(
        self, image_NCHW: Tensor, tokens_MT: Tensor, keys_N2: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what the losses take: float32 unit vectors (N, D), (M, D) and the logits' scale."""
        tokens_NGW, _ = self.image(image_NCHW, keys_N2)
        image_ND = self.image_projector(tokens_NGW.mean(dim=1)).float()
        text_MD = self.encode_text(tokens_MT).float()
        unit_image_ND = functional.normalize(image_ND, dim=-1)
        return unit_image_ND, functional.normalize(text_MD, dim=-1), self.scale()

    def encode_image(self, image_NCHW: Tensor) -> GroupedImage:
        """Groups and projects images, (N, 3, H, W) floating point, normalised as in training.

        Raises:
            ValueError: if H or W is no multiple of the patch size.
        """
        tokens_NGW, assignments = self.image(image_NCHW)
        return GroupedImage(
            pooled_ND=self.image_projector(tokens_NGW.mean(dim=1)),
            groups_NGD=self.image_projector.by_running_statistics(tokens_NGW),
            assignments=assignments,
        )

    def encode_text(self, tokens_NT: Tensor) -> Tensor:
        """Projects texts, int64 token ids (N, T), to (N, D), not normalised.

        Raises:
            ValueError: if T exceeds the context length.
        """
        projected_ND: Tensor = self.text_projector(self.text(tokens_NT))
        return projected_ND

    def scale(self) -> Tensor:
        """The factor of cosines in logits, 1 / temperature: a scalar of at most 100."""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)
