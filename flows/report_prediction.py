"""Prediction beside fact, put into the copy of the report that belongs to a run.

The report itself is an artifact: it says what its inputs say and is the same on every machine. How long
things were thought to take is not of that kind.
"""

from collections.abc import Sequence
from typing import Any

from flows.forecast.prediction import Beside, Prediction
from flows.report_environment import environment

PLACE = b"<!-- prediction beside fact -->"


def with_prediction(page: bytes, predicted: Prediction, rows: Sequence[Beside]) -> bytes:
    """The page with a section about what was predicted for the run."""
    section = environment().get_template("prediction.html.j2").render(**view(predicted, rows))
    return page.replace(PLACE, section.encode(), 1)


def view(predicted: Prediction, rows: Sequence[Beside]) -> dict[str, Any]:
    """What the template is given: stages that were calibrated, and the sums of those that ran."""
    shown = [row for row in rows if row.predicted.seconds]
    ran = [row for row in shown if row.seconds is not None and row.predicted.seconds]
    return {
        "predicted": predicted,
        "rows": shown,
        "together": {
            "predicted": sum(row.predicted.seconds.mid for row in ran if row.predicted.seconds),
            "fact": sum(row.seconds or 0.0 for row in ran),
        },
    }
