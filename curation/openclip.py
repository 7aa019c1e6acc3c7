"""The one door to open_clip, for this process and for every worker.

Beside a CPU-only torch, the torchvision wheel from the package index fails to import because two operators
it registers shapes for were never built. Declaring them is enough: nothing here calls them. On matching
builds the first import succeeds and nothing is declared.
"""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import nn

_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a Library undeclares its operators when it is collected


def _import_torchvision() -> None:
    try:
        import torchvision  # noqa: PLC0415
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _declared:
            raise
        _declare_missing_operators()
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401, PLC0415


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _MISSING:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _import_open_clip() -> ModuleType:
    _import_torchvision()
    import open_clip  # noqa: PLC0415

    import curation.towers  # noqa: F401, PLC0415  (adds the tiny towers to timm)

    for config in sorted((Path(__file__).parent / "models").glob("*.json")):
        open_clip.add_model_config(config)
    return open_clip  # type: ignore[no-any-return]


open_clip = _import_open_clip()


def new_model(name: str) -> nn.Module:
    """A model with random weights. That open_clip warns of them is no news to who asks for them."""
    logging.disable(logging.WARNING)
    try:
        model = open_clip.create_model(name)
    finally:
        logging.disable(logging.NOTSET)
    return cast("nn.Module", model)
