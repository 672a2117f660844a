"""The page on which a reviewer looks at the pictures of an audit and fills in its sheet.

It loads nothing but the pictures beside it, and nothing is sent anywhere: it reads the sheet as it
was when the page was written, and saves a new one.
"""

from collections.abc import Sequence
from pathlib import Path

from labeling_pipeline.export.audit_sheet import SheetRow, sheet_cells

_TEMPLATE = "audit.html.j2"


def audit_page(
    entry: str,
    rows: Sequence[SheetRow],
    instructions: Sequence[str],
    *,
    can_miss: bool,
    separator: str = ",",
) -> str:
    """Render the page as HTML. All text is escaped.

    instructions: paragraphs. can_miss: whether things may have no box.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    columns, *cells = sheet_cells(rows)
    return environment.get_template(_TEMPLATE).render(
        entry=entry,
        rows=rows,
        instructions=instructions,
        can_miss=can_miss,
        table={
            "columns": columns,
            "rows": cells,
            "separator": separator,
            "file": f"{entry}.csv",
        },
    )
