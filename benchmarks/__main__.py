"""``make bench``: every performance claim, measured now, as ratios within one run."""

from rich.console import Console
from rich.table import Table

from benchmarks import (
    evaluation,
    florence_2,
    grouping,
    ingestion,
    inventory,
    labeling,
    loading,
    rederivation,
    service,
    store,
)

MODULES = (
    *(labeling, grouping, florence_2, rederivation),
    *(ingestion, inventory, store, evaluation, service, loading),
)

if __name__ == "__main__":
    console = Console()
    for module in MODULES:
        table = Table("what", "measured", "ratio", title=module.__doc__.splitlines()[0])
        for row in module.measure():
            table.add_row(*row)
        console.print(table)
