"""The transformer blocks of a tower, whoever wrote it: what is laid in parts, and what is compiled."""

from collections.abc import Iterator, Mapping

from torch import nn

from storage.errors import ConfigError

ATTENTION = ("attn", "attention")  # what blocks of open_clip, timm and our own call it


def blocks_of(towers: Mapping[str, nn.Module], setting: str) -> Iterator[nn.Module]:
    """The blocks of some towers: of lists or, as timm has it, sequences of what attends.

    Args:
        towers: by names for people.
        setting: what they are wanted for, such as ``loop.shard``.

    Raises:
        ConfigError: if there are none.
    """
    found = [block for tower in towers.values() for part in tower.modules() for block in _listed(part)]
    if not found:
        raise ConfigError(
            f"{setting}: no list of transformer blocks in {', '.join(towers)}; such a tower trains without it"
        )
    yield from found


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.ModuleList | nn.Sequential) and all(map(_attends, module.children())):
        yield from module.children()


def _attends(block: nn.Module) -> bool:
    return any(name.rsplit(".", 1)[-1] in ATTENTION for name, _ in block.named_modules())


def compile_blocks(towers: Mapping[str, nn.Module]) -> None:
    """Compiles every block by itself, in place: equal ones share their code, and no name changes.

    Numbers of tokens that change, as with the regions of a batch, become symbols at their second value.

    Raises:
        ConfigError: for towers without a list of blocks.
    """
    for block in blocks_of(towers, "loop.compile"):
        if not any(isinstance(part, nn.ModuleList) for part in block.children()):  # those inside it are
            block.compile()
