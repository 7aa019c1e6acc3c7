"""Progress bars on the terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from storage.runtime import Bar


class _RichBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Moves the bar on."""
        if note:
            self.progress.update(self.task, note=note)
        self.progress.advance(self.task, steps)


@contextmanager
def rich_progress(title: str, total: int) -> Iterator[Bar]:
    """A bar with counts, elapsed and remaining time; it stays on the screen when it is full."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),  # names of shards are not ours
    )
    with Progress(*columns, console=console) as progress:
        yield _RichBar(progress, progress.add_task(title, total=total, note=""))


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Says on stderr what takes a while, where somebody is watching."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield
