"""The audit through Dagster: materialize, fill in, materialize again."""

import json
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from definitions import build_definitions
from labeling_pipeline.export.audit_sheet import read_sheet, sheet_bytes
from labeling_pipeline.home import Environment
from labeling_pipeline.plan import parse_plan


@pytest.fixture
def materialize(tmp_path, image_root, script):
    """Materialize assets over all classes; returns whether it went well, and the last metadata."""
    plan = parse_plan(
        json.dumps(
            {
                "model": script(boxes={"cat": [[100, 100, 500, 500]]}),
                "audit": {"per_label": 4, "seed": 3},
                "entries": [{"name": "object", "task": "detection", "classes": ["cat", "dog"]}],
            }
        )
    )
    definitions = build_definitions(
        plan, Environment(tmp_path / "home", Path("unused"), image_root)
    )
    with dg.DagsterInstance.ephemeral() as instance:

        def run(*names, partition=None):
            result = dg.materialize(
                list(definitions.assets),
                selection=list(names),
                partition_key=partition,
                instance=instance,
                resources=definitions.resources,
                raise_on_error=False,
            )
            event = instance.get_latest_materialization_event(dg.AssetKey(names[-1]))
            return result, event and event.asset_materialization.metadata

        run("raw_images", "clean_images")
        for partition in ("cat", "dog"):
            run("object_annotations", partition=partition)
        yield run


def test_an_audit_goes_from_the_sample_through_verdicts_to_the_report(materialize, tmp_path):
    reports = tmp_path / "home" / "reports"
    result, metadata = materialize("audit_sample")
    assert result.success
    assert (metadata["rows"].value, metadata["to_check"].value) == (8, 8)
    assert metadata["estimates"].value == "none"
    assert Path(metadata["folder"].value) == (reports / "audit").resolve()

    sheet = reports / "audit" / "object.csv"
    rows = [replace(row, wrong="none") for row in read_sheet(sheet).rows]
    sheet.write_bytes(sheet_bytes(rows))
    _, metadata = materialize("audit_sample")
    assert metadata["to_check"].value == 0
    estimates = [record.data for record in metadata["estimates"].records]
    assert [row["label"] for row in estimates] == ["all", "cat", "dog"]
    assert estimates[0]["precision"] == 1
    assert metadata["audited_object"].value.startswith("![](data:image/png;base64,")
    assert materialize("annotation_report")[0].success
    page = (reports / "report.html").read_text()
    assert "Audited precision of object" in page
    assert "8 of 8 rows checked by hand" in page


def test_a_verdict_that_cannot_be_fails_the_asset_and_says_where(materialize, tmp_path):
    materialize("audit_sample")
    sheet = tmp_path / "home" / "reports" / "audit" / "object.csv"
    first, *others = read_sheet(sheet).rows
    sheet.write_bytes(sheet_bytes([replace(first, wrong="what?"), *others]))
    result, _ = materialize("audit_sample")
    assert not result.success
    (event,) = [e for e in result.all_events if e.is_step_failure]
    error = event.step_failure_data.error.cause.message
    assert "object.csv:2: wrong: expected none" in error
    assert materialize("annotation_report")[0].success
    assert (
        "object.csv:2: wrong: expected none"
        in (tmp_path / "home" / "reports" / "report.html").read_text()
    )
