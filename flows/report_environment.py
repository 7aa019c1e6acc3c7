"""How the report's templates are rendered."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from flows.report_text import FILTERS, visible


def environment() -> Environment:
    """Templates in which every text is made visible, then escaped: captions are untrusted."""
    environment = Environment(
        loader=PackageLoader("flows"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment
