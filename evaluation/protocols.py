"""How a benchmark is run. Numbers of two protocols are never compared."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """Sizes, background and prompts of an evaluation.

    Worked example: a 640x480 picture at ``short_side=448`` becomes 597x448; windows of 448 every
    224 start at columns 0 and 149 (the last one is shifted back inside), so there are two.

    Raises:
        ValueError: for sizes that leave pixels unseen.
    """

    name: str
    short_side: int  # pixels the shorter side is resized to
    window: int  # side of a square window, pixels
    stride: int  # pixels between windows
    background_threshold: float  # class probability below which a pixel is background
    templates: tuple[str, ...]  # prompts, {} is the name
    renames: tuple[tuple[str, str], ...] = ()  # class name -> the name this protocol prompts with
    long_side: int = 2048  # pixels the longer side may have; very long pictures get a smaller short one

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.window:
            raise ValueError(
                f"stride {self.stride} with window {self.window}: a stride is at least 1 and at most "
                "the window, or pixels between windows go unseen"
            )
        if not 0 < self.short_side <= self.long_side:
            raise ValueError(
                f"short_side {self.short_side} with long_side {self.long_side}: the short side is at "
                "least 1 and at most the long side"
            )
        without = [template for template in self.templates if "{}" not in template]
        if without or not self.templates:
            raise ValueError(f"templates {without or 'are empty'}: a prompt needs {{}} for the name")


GROUPVIT = Protocol(
    name="groupvit",
    short_side=448,
    window=448,
    stride=224,
    background_threshold=0.95,
    templates=("a photo of a {}.",),
    renames=(("diningtable", "table"), ("pottedplant", "plant"), ("tvmonitor", "monitor")),
)
"""GroupViT, CVPR 2022, as its authors evaluate VOC and COCO."""

TCL = Protocol(
    name="tcl",
    short_side=448,
    window=448,
    stride=224,
    background_threshold=0.5,  # without mask refinement
    templates=(
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        "a photo of many {}.",
        "a photo of {}s.",
    ),
)
"""The unified protocol of TCL, CVPR 2023."""


def prompts(names: Sequence[Sequence[str]], protocol: Protocol) -> tuple[tuple[str, ...], ...]:
    """Texts per class: every template with every name of the class.

    Args:
        names: of each class: ``Benchmark.synonyms``, or ``[[name] for name in background_names]``
            where background is named by the best of several prompts.
        protocol: whose templates and renames to use.
    """
    renames = dict(protocol.renames)
    return tuple(
        tuple(template.format(renames.get(name, name)) for name in called for template in protocol.templates)
        for called in names
    )
