"""The report: one HTML page that says what was labeled, how well, and by what.

The page is self-contained: styles and pictures are inside, nothing is loaded, so it can be mailed,
archived and printed. What there is nothing to say about is left out, with a sentence saying why.
"""

from pathlib import Path

from labeling_pipeline.evaluation.report.data import ReportData, number, percent

_TEMPLATE = "page.html.j2"


def render_report(data: ReportData) -> str:
    """Render the page as HTML. All text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    shown = [section for section in data.sections if section.content is not None]
    absent = [section.absent for section in data.sections if section.content is None]
    return environment.get_template(_TEMPLATE).render(data=data, shown=shown, absent=absent)
