"""What GroupViT computes: floating-point operations of its products, two for each multiply-add."""

from itertools import pairwise

from training.groupvit import GroupViTConfig


def image_flops(config: GroupViTConfig, side: int | None = None) -> float:
    """Of one image forward, projector included.

    Worked example: with the paper's sizes and 224 px 7.9e9, three quarters of them in the six blocks of the
    first stage, where 196 patches and 64 group tokens meet.

    Args:
        config: sizes of the model.
        side: of the image in pixels; the config's own if none.
    """
    width = config.width
    tokens = ((side or config.image_size) // config.patch_size) ** 2
    total = tokens * 3 * config.patch_size**2 * width
    for depth, groups in zip(config.depths, config.groups, strict=True):
        total += depth * _block(tokens + groups, width)
        if groups:
            total += _grouping(tokens, groups, width)
            tokens = groups
    total += sum(_mixer(before, after, width) for before, after in pairwise(config.groups[:-1]))
    return 2.0 * (total + _projector(width, config))


def text_flops(config: GroupViTConfig, length: int) -> float:
    """Of one text of so many tokens forward, projector included; causal attention counts in full.

    Worked example: with the paper's sizes 77 tokens take 1.5e9, 12 tokens 0.23e9.
    """
    total = config.text_layers * _block(length, config.text_width)
    return 2.0 * (total + _projector(config.text_width, config))


def _block(tokens: int, width: int) -> int:
    """Multiply-adds: queries, keys, values and out (4 W²), MLP (8 W²), and attention."""
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def _grouping(tokens: int, groups: int, width: int) -> int:
    """Multiply-adds of a grouping block: mixer, context, assignment and MLP."""
    of_groups = (2 + 8 + 2 + 8) * groups * width**2  # context: query, out, MLP; assignment: query, out; MLP
    of_tokens = 4 * tokens * width**2  # keys and values, twice
    return _mixer(groups, groups, width) + of_groups + of_tokens + 4 * tokens * groups * width


def _mixer(tokens: int, out: int, width: int) -> int:
    return width * (tokens + out) * (width // 2)


def _projector(width: int, config: GroupViTConfig) -> int:
    return config.projection_hidden * (width + config.projection_dim)
