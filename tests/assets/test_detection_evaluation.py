"""What the asset shows and leaves behind, in a home with a ground truth and with corrections."""

import json
from pathlib import Path

import dagster as dg
import pytest

from definitions import build_definitions
from labeling_pipeline.corrections import import_corrections
from labeling_pipeline.home import Environment
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.store.annotation_store import AnnotationStore

BOXES = {"cat": [[100, 100, 500, 500]], "dog": [[200, 200, 800, 900]]}
CAT_PX = [
    round(bin_ / 999 * side, 3) for bin_, side in zip(BOXES["cat"][0], (120, 100) * 2, strict=True)
]


@pytest.fixture
def evaluated(tmp_path, image_root, script):
    """Evaluate with this truth and these corrections; returns metadata and the home."""
    home = tmp_path / "home"
    model = script(boxes=BOXES)

    def evaluate(truth: dict | None = None, corrections: list | None = None):
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        named = "ground_truth: ../truth.json\n" if truth else ""
        entries = "entries: [{name: object, task: detection}]\n"
        plan = parse_plan(f"model: {json.dumps(model)}\n{named}{entries}")
        definitions = build_definitions(plan, Environment(home, Path("unused"), image_root))
        with dg.DagsterInstance.ephemeral() as instance:

            def run(*selection: str, tags: dict | None = None):
                result = dg.materialize(
                    list(definitions.assets),
                    selection=list(selection),
                    instance=instance,
                    resources=definitions.resources,
                    tags=tags,
                )
                assert result.success
                return result

            run("raw_images", "clean_images")
            first, *_, last = instance.get_dynamic_partitions("class")
            classes = {
                "dagster/asset_partition_range_start": first,
                "dagster/asset_partition_range_end": last,
            }
            run("object_annotations", tags=classes)
            if corrections:
                file = tmp_path / "corrections.json"
                file.write_text(json.dumps({"corrections": corrections}))
                store = AnnotationStore(home / "annotations.duckdb")
                import_corrections(store, plan, file, open_source(image_root))
            result = run("detection_evaluation", "annotation_report")
            (event,) = result.asset_materializations_for_node("detection_evaluation")
            return event.metadata, home

    return evaluate


def truth_of(*boxes: tuple[str, str, list[float]]) -> dict:
    return {
        "images": [{"id": f"cat/{i}.png", "file_name": f"cat/{i}.png"} for i in range(4)],
        "categories": [{"id": label, "name": label} for label in ("cat", "dog")],
        "annotations": [
            {"image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for image, label, (x0, y0, x1, y1) in boxes
        ],
    }


def test_what_was_measured_reaches_dagster_and_the_folder(evaluated):
    truth = truth_of(*((f"cat/{i}.png", "cat", CAT_PX) for i in range(3)))
    metadata, home = evaluated(truth)
    # Three cats of four boxes, and a dog on each of four images that show none.
    assert metadata["object_f1"].value == pytest.approx(6 / 11, abs=1e-4)
    assert metadata["object_images"].value == 4
    assert metadata["object_absent_with_boxes"].value == 1
    intervals = {row.data["measure"]: row.data for row in metadata["object_intervals"].records}
    assert intervals["f1"]["low"] < 6 / 11 < intervals["f1"]["high"]
    kinds = {row.data["kind"]: row.data["boxes"] for row in metadata["object_error_kinds"].records}
    assert kinds == {"false_on_absent": 5}
    assert [row.data["label"] for row in metadata["object_per_label"].records] == ["cat", "dog"]
    assert "nothing is known of Über Kühe" in metadata["object_notes"].value
    figures = {f"object_{name}" for name in ("labels", "sizes", "box_scores", "precision_recall")}
    for figure in figures:
        assert metadata[figure].value.startswith("![](data:image/png;base64,")
    folder = Path(metadata["tables"].value)
    assert {path.name for path in folder.iterdir()} == {
        *(f"{figure}.png" for figure in figures),
        *("object.json", "object_errors.csv", "object_labels.csv", "object_sizes.csv"),
    }
    assert "F1 of object" in (home / "reports" / "report.html").read_text()


def test_corrections_are_a_truth_of_their_own_and_shown_as_such(evaluated):
    delete = {"kind": "delete", "image": "cat/0.png", "entry": "object", "label": "dog"}
    boxes = [bin_ / 999 * side for bin_, side in zip(BOXES["dog"][0], (120, 100) * 2, strict=True)]
    metadata, home = evaluated(corrections=[delete | {"bbox": boxes, "author": "Ann"}])
    assert metadata["object-corrected_images"].value == 1
    assert metadata["object-corrected_precision"].value == 0
    assert "object_f1" not in metadata
    report = (home / "reports" / "report.html").read_text()
    assert "object where corrected" in report
    assert "People chose these images" in report


def test_without_anything_to_compare_with_it_says_so(evaluated):
    metadata, _ = evaluated()
    assert list(metadata) == ["note"]
    assert "the plan names no ground_truth" in metadata["note"].value
