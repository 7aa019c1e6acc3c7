from dataclasses import replace
from typing import Any

import pytest

from evaluation.evaluate import BenchmarkConfig, protocol_of
from evaluation.protocols import GROUPVIT, TCL, prompts

NAMES = (("pottedplant",), ("dog", "puppy"))


def test_prompts_groupvit_renames_classes_as_its_authors_do() -> None:
    assert prompts(NAMES, GROUPVIT) == (
        ("a photo of a plant.",),
        ("a photo of a dog.", "a photo of a puppy."),
    )


def test_prompts_tcl_keeps_names_and_fills_nine_templates_each() -> None:
    plant, dog = prompts(NAMES, TCL)
    assert len(plant) == 9
    assert len(dog) == 18
    assert "a photo of pottedplants." in plant
    assert "a photo of many puppy." in dog


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 449}, "stride 449 with window 448.*at most the window"),
        ({"stride": 0}, "stride 0"),
        ({"short_side": 0}, "short_side 0"),
        ({"short_side": 4096}, "at most the long side"),
        ({"templates": ("a photo.", "a {}")}, r"'a photo\.'.*needs {}"),
        ({"templates": ()}, "are empty"),
    ],
)
def test_protocol_that_cannot_be_run_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GROUPVIT, **change)


def test_protocol_of_a_benchmark_has_its_exceptions_and_nothing_else() -> None:
    config = BenchmarkConfig("mine", "voc", window=500, templates=("{}",))
    assert protocol_of(config) == replace(GROUPVIT, window=500, templates=("{}",))
