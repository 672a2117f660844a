"""A labeled dataset and a ``dg dev`` over it: what a person has in front of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from labeling_pipeline.home import Home
from tests.soak.datasets import Size, asked_of, write_classes, write_script

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

CLASSES = ("ants", "bees", "cats", "dogs")
BOXES = {"thing": [[100, 100, 500, 500]], "person": [[200, 50, 800, 950]]}
PLAN = """
model: scripted:SCRIPT
runtime: {batch_size: 2}
entries:
  - {name: object, task: detection, ask: {"*": thing}}
  - {name: posture, task: keypoint, ask: {"*": person}}
actions: {folds: 2}
automation: {watch_every_s: 5}
"""

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Dataset:
    """Images, a plan on the scripted model, and a home for them, all under one folder."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    @property
    def plan(self) -> Path:
        return self.folder / "plan.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "asked.jsonl"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every process that works on this dataset."""
        own = {name: v for name, v in os.environ.items() if not name.startswith("LABELING_")}
        return own | {
            "LABELING_HOME": str(self.home.path),
            "LABELING_IMAGES": str(self.images),
            "LABELING_PLAN": str(self.plan),
            "DAGSTER_HOME": str(self.home.dagster),
            "VIRTUAL_ENV": sys.prefix,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def script(self, **more: Any) -> None:
        """Say what the model answers; ``more`` must not change an answer."""
        write_script(self.folder / "script.json", boxes=BOXES, log=str(self.log), **more)

    def asked_sizes(self, label: str) -> list[Size]:
        """Sizes in px of the images that the model was asked for a label, in order."""
        return [size for labels, size in asked_of(self.log) if labels == (label,)]

    def command(self, *arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess:
        """Run a command of the environment in the repository root."""
        return subprocess.run(
            [str(BIN / arguments[0]), *arguments[1:]],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


def new_dataset(folder: Path) -> Dataset:
    """Four classes of three images, and a home that knows nothing yet."""
    dataset = Dataset(folder)
    dataset.home.path.mkdir(parents=True)
    write_classes(
        dataset.images,
        {name: [(100 + 10 * i + j, 80) for j in range(3)] for i, name in enumerate(CLASSES)},
    )
    dataset.script()
    dataset.plan.write_text(PLAN.replace("SCRIPT", str(folder / "script.json")))
    dataset.home.prepare_dagster(REPOSITORY / "dagster.yaml")
    return dataset


class LiveServer:
    """``dg dev`` at an address."""

    def __init__(self, dataset: Dataset, url: str) -> None:
        self.dataset = dataset
        self.url = url
        self._sensor_ids: dict[str, str] = {}

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """One GraphQL request; its data."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def launch(self, assets: Sequence[str], tags: dict[str, str] | None = None) -> str:
        """Materialize assets in one run and wait for it; its final status."""
        answer = self.ask(
            """mutation($params: ExecutionParams!) {
              launchPipelineExecution(executionParams: $params) {
                __typename
                ... on LaunchRunSuccess { run { runId } }
                ... on PythonError { message }
              } }""",
            params={
                "selector": {
                    "pipelineName": "__ASSET_JOB",
                    "repositoryName": "__repository__",
                    "repositoryLocationName": "labeling-pipeline",
                    "assetSelection": [{"path": [asset]} for asset in assets],
                },
                "mode": "default",
                "executionMetadata": {
                    "tags": [{"key": k, "value": v} for k, v in (tags or {}).items()]
                },
            },
        )["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id = answer["run"]["runId"]

        def final_status() -> str | None:
            run = self.ask(
                "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id
            )["runOrError"]
            return run["status"] if run["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None

        return wait_for(final_status)

    def backfill(self, asset: str, partitions: Sequence[str]) -> str:
        """Backfill partitions of one asset and wait for it; its final status."""
        return self.final_backfill_status(self.start_backfill(asset, partitions))

    def start_backfill(self, asset: str, partitions: Sequence[str]) -> str:
        """Backfill partitions of one asset; the backfill's id."""
        answer = self.ask(
            """mutation($params: LaunchBackfillParams!) {
              launchPartitionBackfill(backfillParams: $params) {
                __typename
                ... on LaunchBackfillSuccess { backfillId }
                ... on PythonError { message }
              } }""",
            params={"assetSelection": [{"path": [asset]}], "partitionNames": list(partitions)},
        )["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return answer["backfillId"]

    def rerun_what_failed(self, backfill_id: str) -> str:
        """What *Backfill only failed and missing* does; its final status."""
        answer = self.ask(
            """mutation($params: ReexecutionParams!) {
              reexecutePartitionBackfill(reexecutionParams: $params) {
                __typename
                ... on LaunchBackfillSuccess { backfillId }
                ... on PythonError { message }
              } }""",
            params={"parentRunId": backfill_id, "strategy": "FROM_FAILURE"},
        )["reexecutePartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return self.final_backfill_status(answer["backfillId"])

    def switch_sensor(self, name: str, *, on: bool) -> None:
        """As the switch in the UI does."""
        if on:
            selector = {
                "sensorName": name,
                "repositoryName": "__repository__",
                "repositoryLocationName": "labeling-pipeline",
            }
            answer = self.ask(
                """mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) {
                  __typename ... on Sensor { id } } }""",
                selector=selector,
            )["startSensor"]
            self._sensor_ids[name] = answer["id"]
        else:
            answer = self.ask(
                """mutation($id: String!) { stopSensor(id: $id) { __typename } }""",
                id=self._sensor_ids[name],
            )["stopSensor"]
        assert answer["__typename"] in ("Sensor", "StopSensorMutationResult"), answer

    def final_backfill_status(self, backfill_id: str) -> str:
        """Wait until a backfill is over."""

        def final_status() -> str | None:
            backfill = self.ask(
                """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
                  ... on PartitionBackfill { status } } }""",
                id=backfill_id,
            )["partitionBackfillOrError"]
            over = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED", "CANCELED")
            return backfill["status"] if backfill["status"] in over else None

        return wait_for(final_status)

    def partitions(self, asset: str) -> dict[str, set[str]]:
        """State (materialized, failed, missing) -> partitions of an asset, as the UI shows them."""
        statuses = self.ask(
            """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
              ... on AssetNode { assetPartitionStatuses { ... on DefaultPartitionStatuses {
                materializedPartitions failedPartitions unmaterializedPartitions } } } } }""",
            key={"path": [asset]},
        )["assetNodeOrError"]["assetPartitionStatuses"]
        return {
            "materialized": set(statuses["materializedPartitions"]),
            "failed": set(statuses["failedPartitions"]),
            "missing": set(statuses["unmaterializedPartitions"]),
        }


@contextmanager
def live_server(dataset: Dataset) -> Iterator[LiveServer]:
    """Start ``dg dev`` on a free port; it and all its children end with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (dataset.folder / "dg_dev.log").open("w+") as log:
        process = subprocess.Popen(
            [str(BIN / "dg"), "dev", "--host", "127.0.0.1", "--port", str(port)],
            cwd=REPOSITORY,
            env=dataset.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        server = LiveServer(dataset, f"http://127.0.0.1:{port}")

        def is_up() -> bool:
            assert process.poll() is None, log.seek(0) or log.read()
            try:
                locations = server.ask(
                    "{ workspaceOrError { ... on Workspace { locationEntries {"
                    " loadStatus locationOrLoadError { __typename } } } } }"
                )
            except (urllib.error.URLError, ConnectionError):
                return False
            entries = locations["workspaceOrError"]["locationEntries"]
            return [entry["locationOrLoadError"] for entry in entries] == [
                {"__typename": "RepositoryLocation"}
            ]

        try:
            wait_for(is_up)
            yield server
        finally:
            _end_session(process)


def wait_for(look: Callable[[], _Value | None], timeout_s: float = 240) -> _Value:
    """Look until there is something to see."""
    deadline = time.monotonic() + timeout_s
    while not (value := look()):
        assert time.monotonic() < deadline, f"nothing after {timeout_s:.0f} s"
        time.sleep(0.5)
    return value


def _end_session(process: subprocess.Popen) -> None:
    """Ask first, for a clean end of runs and files; then kill whatever is left."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
