"""The report: one HTML page that says what was labeled, how well, and by what.

The page is self-contained: styles and pictures are inside, nothing is loaded, so it can be mailed,
archived and printed. What there is nothing to say about is left out, with a sentence saying why.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from labeling_pipeline.evaluation.report.data import ReportData, number, percent
from labeling_pipeline.evaluation.report.history import Changes, changes_section

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_TEMPLATE = "page.html.j2"


def render_report(data: ReportData, changes: Changes | None = None) -> str:
    """Render the page as HTML. All text is escaped.

    changes: since the report before; they stand first, and beside the numbers.
    """
    sections = [changes_section(changes), *data.sections]
    return (
        environment()
        .get_template(_TEMPLATE)
        .render(
            data=data,
            changes=changes,
            shown=[section for section in sections if section.content is not None],
            absent=[section.absent for section in sections if section.content is None],
        )
    )


def environment() -> "Environment":
    """Where the templates lie, and how they write numbers."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "percent": percent, "with_code": _with_code}
    return found


def _with_code(text: str) -> "Markup":
    """Names between backticks as code, as Dagster shows the same sentences."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
