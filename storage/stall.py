"""What a stage waited for, and what to turn about it.

Timings are told beside the data and are no part of it: of no table, no fact and no fingerprint.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from storage.manifest import ShardRecord


def verdict(timings: Mapping[str, float]) -> str:
    """The phase that takes longest: ``read-bound`` or ``decode-bound``, say.

    Args:
        timings: seconds that each phase takes alone, by phase. Phases overlap: the longest sets the pace.
    """
    return f"{max(timings, key=lambda phase: timings[phase])}-bound"


def stall_report(records: Sequence[ShardRecord], knobs: Mapping[str, str]) -> dict[str, Any]:
    """Seconds of each phase over all shards, the verdict, the knob to turn, and how many shards had which.

    Empty for a stage that tells no timings. Shards that were taken over count with what they took then.
    """
    timed = [record.timings for record in records if record.timings]
    if not timed:
        return {}
    total: Counter[str] = Counter()
    for timings in timed:
        total.update(timings)
    found = verdict(total)
    return {
        "seconds": {phase: round(seconds, 3) for phase, seconds in total.items()},
        "verdict": found,
        "knob": knobs.get(found.removesuffix("-bound"), ""),
        "shards": dict(Counter(verdict(timings) for timings in timed)),
    }
