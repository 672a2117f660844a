"""``make bench``: every performance claim, measured now, as ratios within one run."""

from rich.console import Console
from rich.table import Table

from benchmarks import grouping, labeling, loading

if __name__ == "__main__":
    console = Console()
    for module in (labeling, grouping, loading):
        table = Table("what", "measured", "ratio", title=module.__doc__.splitlines()[0])
        for row in module.measure():
            table.add_row(*row)
        console.print(table)
