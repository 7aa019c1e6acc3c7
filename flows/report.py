"""Stage ``report``: one self-contained page."""

from dataclasses import dataclass

from storage.stage import Job, Output, Stage

PAGE = "report.html"


@dataclass(frozen=True)
class ReportConfig:
    """What is shown."""

    examples: int = 12  # images


def write_report(job: Job[ReportConfig]) -> None:
    """Stage ``report``."""
    job.write(Output(files={PAGE: (b"<!doctype html><title>cocu</title>", 0)}))


REPORT = Stage("report", 1, write_report)
