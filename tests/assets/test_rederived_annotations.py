"""``rederived_annotations`` in Dagster."""

from pathlib import Path

import dagster as dg
import pytest

from definitions import build_definitions
from labeling_pipeline.home import Environment
from labeling_pipeline.models.scripted import ScriptedModel
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.rederivation import NOTHING_LEFT


def test_the_asset_says_what_it_read_and_a_second_time_that_nothing_is_left(
    tmp_path: Path, image_root: Path, script, monkeypatch: pytest.MonkeyPatch
):
    boxes = {"cat": [[100, 100, 500, 600]]}
    plan = parse_plan(
        f"model: '{script(boxes=boxes)}'\nentries: [{{name: thing, task: detection}}]"
    )
    definitions = build_definitions(
        plan, Environment(tmp_path / "home", Path("unused"), image_root)
    )

    with dg.DagsterInstance.ephemeral() as instance:

        def materialize(*names: str, partition: str | None = None) -> dict[str, object]:
            result = dg.materialize(
                list(definitions.assets),
                selection=list(names),
                partition_key=partition,
                instance=instance,
                resources=definitions.resources,
            )
            (event, *_) = result.asset_materializations_for_node(names[-1])
            return {name: entry.value for name, entry in event.metadata.items()}

        materialize("raw_images", "clean_images")
        materialize("thing_annotations", partition="cat")
        early = materialize("rederived_annotations")
        assert (early["answers_read"], early["notes"]) == (0, NOTHING_LEFT)
        monkeypatch.setattr(ScriptedModel, "parser_version", 1000)
        read = materialize("rederived_annotations")
        assert (read["answers_read"], read["outcomes_changed"]) == (4, 0)
        assert "notes" not in read
        (row,) = read["by_entry_and_model"].records
        assert (row.data["entry"], row.data["annotations"]) == ("thing", 4)
        assert materialize("rederived_annotations")["answers_read"] == 0


def test_the_asset_stands_alone(tmp_path: Path, image_root: Path, script):
    plan = parse_plan(f"model: '{script()}'\nentries: [{{name: thing, task: detection}}]")
    definitions = build_definitions(plan, Environment(tmp_path, Path("unused"), image_root))
    node = definitions.resolve_asset_graph().get(dg.AssetKey("rederived_annotations"))
    assert (node.parent_keys, node.child_keys) == (set(), set())
    assert (node.is_partitioned, node.group_name, node.pools) == (False, "maintenance", set())
