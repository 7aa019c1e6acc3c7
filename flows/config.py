"""A run's configuration: one TOML table per stage, read into the stages' own config classes."""

import dataclasses
import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from curation.archive import ArchiveConfig
from curation.corpus import CorpusConfig
from curation.embed import EmbedConfig
from curation.encoder import EncoderConfig
from curation.export import ExportConfig
from curation.index import ExpandConfig, IndexConfig
from curation.nouns import NounsConfig
from curation.presence import PresenceConfig
from curation.pretrain import PretrainConfig
from curation.select import SelectConfig
from curation.vocabulary import MentionsConfig, VocabularyConfig
from evaluation.evaluate import BenchmarkConfig
from evaluation.recall import RecallConfig
from flows.report import ReportConfig
from storage.errors import ConfigError
from training.groups import GroupsConfig, RegionsConfig
from training.nouns import Kind
from training.train import GroupingTraining, GroupViTTraining


@dataclass(frozen=True)
class PretrainRun:
    """An encoder made for the built-in corpus, and the split it is made from."""

    corpus: CorpusConfig
    fit: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass(frozen=True)
class TrainRun:
    """Which segmenters are trained. Each one present is trained once per kind of noun."""

    nouns: tuple[Kind, ...] = ("caption", "archive")
    groupvit: GroupViTTraining | None = None
    grouping: GroupingTraining | None = None


@dataclass(frozen=True)
class BenchmarkRun:
    """A benchmark; ``corpus`` makes its images where they are rendered."""

    benchmark: BenchmarkConfig
    corpus: CorpusConfig | None = None


@dataclass(frozen=True)
class EvaluateRun:
    """What is measured."""

    benchmarks: tuple[BenchmarkRun, ...] = ()
    ceilings: bool = True  # also the oracle's naming and the untrained encoder's, of the same regions


@dataclass(frozen=True)
class Config:
    """A whole run. Every field is a stage, or a group of stages, and a table of the TOML file."""

    name: str
    corpus: CorpusConfig
    encoder: EncoderConfig | None = None
    pretrain: PretrainRun | None = None
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    select: SelectConfig | None = None
    nouns: NounsConfig = field(default_factory=NounsConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    mentions: MentionsConfig = field(default_factory=MentionsConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    expand: ExpandConfig = field(default_factory=ExpandConfig)
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    presence: PresenceConfig | None = None
    export: ExportConfig = field(default_factory=ExportConfig)
    recall: RecallConfig | None = None
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    train: TrainRun = field(default_factory=TrainRun)
    evaluate: EvaluateRun = field(default_factory=EvaluateRun)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        if (self.encoder is None) == (self.pretrain is None):
            raise ConfigError(
                'give either [encoder] with a model, such as model = "ViT-B-16" and a pretrained tag, '
                "or [pretrain] to make one; not both"
            )
        if self.vocabulary.classes and not self.evaluate.benchmarks:
            raise ConfigError(
                "vocabulary.classes adds the class names of [[evaluate.benchmarks]], and there are none; "
                "give names as vocabulary.always"
            )
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ConfigError(f"name '{self.name}' may hold letters, digits, '_', '-' and '.' only")


def load_config(path: Path, overrides: Sequence[str] = (), *, unset: bool = False) -> Config:
    """Reads a TOML file, with ``${VARIABLES}`` of the environment and ``stage.key=value`` overrides.

    Args:
        path: of the file.
        overrides: in their order.
        unset: leave variables that are not set as they are written, for who will not open what they name.

    Raises:
        ConfigError: for a missing file, broken TOML, an unknown key (naming the nearest one), a value of
            the wrong type, or an undefined variable.
    """
    try:
        text = path.read_text("utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read the config '{path}': {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not TOML: {error}") from error
    tree.setdefault("name", path.stem)
    for override in overrides:
        _override(tree, override)
    return parse_config(_expanded(tree, unset))


def parse_config(tree: Mapping[str, Any]) -> Config:
    """A config from nested tables.

    Raises:
        ConfigError: for unknown keys, missing ones and wrong values.
    """
    _refuse_unknown(tree, Config, "")
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"] if not _is_type_name(step))
        came = f", not {first['input']!r}" if first["type"] != "missing" else ""
        raise ConfigError(f"config key '{where}': {first['msg']}{came}"[:500]) from error


def _is_type_name(step: object) -> bool:
    return isinstance(step, str) and step[:1].isupper()


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set takes stage.key=value, such as expand.neighbours=16, not '{override}'")
    *tables, key = path.strip().split(".")
    node: Any = tree
    for table in tables:
        node = node[int(table)] if isinstance(node, list) else node.setdefault(table, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: '{table}' is a value, not a table")
    try:
        node[key] = _toml_value(text.strip())
    except TypeError as error:
        raise ConfigError(f"--set {override}: name an element of the list by its number") from error


def _toml_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none (so quotes may be left out)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _expanded(value: Any, unset: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item, unset) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, unset) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+)\}", partial(_variable, unset), value)


def _variable(unset: bool, match: re.Match[str]) -> str:
    name = match.group(1)
    if name not in os.environ:
        if unset:
            return match.group(0)
        raise ConfigError(f"the config uses ${{{name}}}, which is not set; set it: export {name}=…")
    return os.environ[name]


def _refuse_unknown(value: Any, kind: Any, where: str) -> None:
    """Walks tables beside their classes; the first key without a field is an error."""
    for candidate in _classes(kind):
        if isinstance(value, Mapping):
            hints = typing.get_type_hints(candidate)
            for key, item in value.items():
                if key not in hints:
                    raise ConfigError(_unknown(f"{where}{key}", key, list(hints)))
                _refuse_unknown(item, hints[key], f"{where}{key}.")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                _refuse_unknown(item, candidate, f"{where}{number}.")


def _classes(kind: Any) -> list[type]:
    """The dataclasses in an annotation: X, X | None, tuple[X, ...]."""
    if dataclasses.is_dataclass(kind):
        return [typing.cast("type", kind)]
    if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        return [found for part in typing.get_args(kind) for found in _classes(part)]
    return []


def _unknown(path: str, key: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(key, valid, 1, cutoff=0.0)
    return f"unknown config key '{path}'; did you mean '{near[0]}'? Valid here: {', '.join(sorted(valid))}"
