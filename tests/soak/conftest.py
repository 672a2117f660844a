from collections.abc import Iterator

import pytest

from tests.soak.live_server import LiveServer, live_server, new_dataset


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A live Dagster over a dataset that a headless run has labeled."""
    dataset = new_dataset(tmp_path_factory.mktemp("live"))
    ran = dataset.command("python", "run.py", str(dataset.images), "--plan", str(dataset.plan))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    with live_server(dataset) as running:
        yield running
