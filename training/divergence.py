"""What happens when a loss or a gradient is no number: a few steps are left out, then training stops."""

import json
from dataclasses import dataclass, field
from typing import Any

from storage.errors import CocuError
from storage.files import Folder
from training.data import Batch
from training.distributed import ALONE, Peers

REPORT = "_progress/diverged.json"


class Diverged(CocuError):
    """Losses or gradients are no numbers any more."""


@dataclass
class Skips:
    """The steps left out since the last good one, as far as this process took them."""

    folder: Folder
    most: int  # in a row
    peers: Peers = ALONE
    rows: list[dict[str, Any]] = field(default_factory=list)

    def good(self) -> None:
        """The weights took a step."""
        self.rows.clear()

    def bad(self, batch: Batch, in_a_row: int, facts: dict[str, float]) -> None:
        """A step was left out.

        Args:
            batch: of the step, this process' part of it.
            in_a_row: steps left out, this one among them; some may have been before a restart.
            facts: step, loss, gradient norm and rate.

        Raises:
            Diverged: when they are more than ``most``; the batches' ids are written first.
        """
        self.rows.append({**facts, "sample_ids": self.peers.gather_names(batch.sample_ids)})
        if in_a_row <= self.most:
            return
        if self.peers.is_first:
            self.folder.write(REPORT, (json.dumps(self.rows, indent=1) + "\n").encode())
        raise Diverged(
            f"{in_a_row} steps in a row gave a loss or gradient that is no number, the last at step "
            f"{facts['step']} (loss {facts['loss']}, gradient norm {facts['gradient_norm']}); their samples "
            f"are listed in '{self.folder.path(REPORT)}'. If the samples are sound, lower optim.rate "
            f"(now {facts['rate']:.2e}) or raise optim.warmup"
        )
