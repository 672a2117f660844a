"""Each kind of source, from a plan to labels, through the Dagster assets."""

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import yaml
from PIL import Image

from definitions import build_definitions
from labeling_pipeline.home import Environment
from labeling_pipeline.plan import class_slug, parse_plan
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

COWS = "Über Kühe"
NAMES = ("cat", "dog", COWS)
BOXES = {"cat": [[100, 100, 500, 500]], "dog": [[200, 200, 800, 900]]}


class Pipeline:
    """One home, one plan, one Dagster instance."""

    def __init__(
        self,
        home: Path,
        model: str,
        instance: dg.DagsterInstance,
        source: dict[str, Any],
        **entry: Any,
    ) -> None:
        self.home, self.instance = home, instance
        plan = {
            "model": model,
            "source": source,
            "entries": [{"name": "object", "task": "detection"} | entry],
        }
        environment = Environment(home, Path("unused"), None)
        self.definitions = build_definitions(parse_plan(yaml.safe_dump(plan)), environment)

    def run(self, *names: str) -> None:
        """Materialize assets, of all classes that there are."""
        classes = self.instance.get_dynamic_partitions("class")
        tags = {}
        if names != INGESTION:
            tags["dagster/asset_partition_range_start"] = classes[0]
            tags["dagster/asset_partition_range_end"] = classes[-1]
        assert dg.materialize(
            list(self.definitions.assets),
            selection=list(names),
            instance=self.instance,
            resources=self.definitions.resources,
            tags=tags,
        ).success

    def label(self) -> dict[str, int]:
        """Run from the source to the exports; returns class -> annotations."""
        self.run(*INGESTION)
        self.run("object_annotations", "visualizations", "class_exports")
        return {
            name: len(self.document(name)["annotations"])
            for name in NAMES
            if class_slug(name) in self.instance.get_dynamic_partitions("class")
        }

    def document(self, name: str) -> dict[str, Any]:
        """What was exported for a class."""
        slug = class_slug(name)
        path = self.home / "auto_labeling_results" / slug / f"{slug}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def metadata(self, asset: str) -> dict[str, Any]:
        """Of the latest materialization."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        return {k: v.value for k, v in event.asset_materialization.metadata.items()}

    def query(self, sql: str) -> list[dict[str, Any]]:
        return AnnotationStore(self.home / "annotations.duckdb").query(sql).to_pylist()


INGESTION = ("raw_images", "clean_images")


@pytest.fixture
def pipeline(tmp_path: Path, script: Any) -> Iterator[Callable[..., Pipeline]]:
    """Make the pipeline of a plan with a source."""
    log = tmp_path / "asked.jsonl"
    model = script(boxes=BOXES, log=str(log))
    with dg.DagsterInstance.ephemeral() as instance:

        def make(source: dict[str, Any], **entry: Any) -> Pipeline:
            return Pipeline(tmp_path / "home", model, instance, source, **entry)

        yield make


def asked(tmp_path: Path) -> int:
    return len((tmp_path / "asked.jsonl").read_text().splitlines())


def upload(image_root: Path, bucket: Any) -> str:
    """Put the images under a prefix of a bucket; returns its URL."""
    for path in image_root.rglob("*.png"):
        key = path.relative_to(image_root).as_posix()
        bucket.files.put_file(str(path), f"{bucket.name}/photos/{key}")
    return f"{bucket.url}/photos"


def test_a_bucket_goes_from_the_plan_to_labels_and_what_moves_is_not_asked_again(
    pipeline: Callable[..., Pipeline], bucket: Any, image_root: Path, tmp_path: Path
):
    url = upload(image_root, bucket)
    one = pipeline({"url": url, "options": bucket.options})
    assert one.label() == {"cat": 4, "dog": 4, COWS: 0}
    assert one.document("cat")["images"][0]["file_name"] == f"{url}/cat/0.png"
    assert one.metadata("raw_images")["images"] == url
    assert asked(tmp_path) == 12

    bucket.files.mv(f"{bucket.name}/photos/cat/0.png", f"{bucket.name}/photos/cat/moved.png")
    bucket.files.rm_file(f"{bucket.name}/photos/dog/3.png")
    assert one.label() == {"cat": 4, "dog": 3, COWS: 0}
    metadata = one.metadata("raw_images")
    assert (metadata["added"], metadata["changed"], metadata["removed"]) == (1, 0, 2)
    assert metadata["classes_affected"] == "cat"
    assert asked(tmp_path) == 12
    assert f"{url}/cat/moved.png" in {i["file_name"] for i in one.document("cat")["images"]}


def test_an_archive_in_a_bucket_goes_from_the_plan_to_labels(
    pipeline: Callable[..., Pipeline], bucket: Any, image_root: Path, tmp_path: Path
):
    archive = packed(image_root, tmp_path)
    bucket.files.put_file(str(archive), f"{bucket.name}/photos.zip")
    url = f"zip::{bucket.url}/photos.zip"
    one = pipeline({"url": url, "options": {"s3": bucket.options}})
    assert one.label() == {"cat": 4, "dog": 4, COWS: 0}


def packed(image_root: Path, folder: Path) -> Path:
    archive = folder / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(image_root.rglob("*.png")):
            file.write(path, path.relative_to(image_root))
        file.writestr("__MACOSX/cat/._0.png", b"x")
    return archive


def test_an_archive_goes_from_the_plan_to_labels(
    pipeline: Callable[..., Pipeline], image_root: Path, tmp_path: Path
):
    archive = packed(image_root, tmp_path)
    one = pipeline({"url": f"zip://{archive}"})
    assert one.label() == {"cat": 4, "dog": 4, COWS: 0}
    assert one.document("cat")["images"][0]["file_name"] == f"zip://cat/0.png::file://{archive}"
    assert one.query("SELECT reason FROM files WHERE status = 'skipped'") == [
        {"reason": "system_file"}
    ]
    assert one.label() == {"cat": 4, "dog": 4, COWS: 0}
    assert one.metadata("raw_images")["added"] == 0
    assert asked(tmp_path) == 12


def as_csv(rows: list[tuple[str, str]]) -> tuple[str, str]:
    lines = ["class,path,note", *(f'"{name}",{path},"a, b"' for path, name in rows)]
    return "classes.csv", "\n".join(lines)


def as_jsonl(rows: list[tuple[str, str]]) -> tuple[str, str]:
    lines = [json.dumps({"path": path, "class": name, "split": 1}) for path, name in rows]
    return "classes.jsonl", "\n".join(lines)


@pytest.mark.parametrize("written", [as_csv, as_jsonl])
def test_a_manifest_says_which_image_belongs_to_which_class(
    pipeline: Callable[..., Pipeline],
    image_root: Path,
    tmp_path: Path,
    written: Callable[[list[tuple[str, str]]], tuple[str, str]],
):
    # Against the folders: the manifest alone counts.
    rows = [("cat/0.png", "dog"), ("cat/1.png", "dog"), (f"{COWS}/0.png", "cat")]
    name, text = written([*rows, ("cat/gone.png", "cat")])
    (tmp_path / name).write_text(text, encoding="utf-8")
    source = {"url": str(image_root), "manifest": f"../{name}"}
    one = pipeline(source)
    assert one.label() == {"cat": 1, "dog": 2}
    metadata = one.metadata("raw_images")
    assert metadata["missing"] == 1
    assert one.query(
        "SELECT reason, count(*) AS n FROM files WHERE status = 'skipped' GROUP BY ALL"
    ) == [{"reason": "not_in_manifest", "n": 9}]
    assert asked(tmp_path) == 3

    # What is in another class now is not read again, and what was asked of it counts.
    before = one.query("SELECT path, image_id FROM dataset_files ORDER BY path")
    name, text = written([("cat/0.png", "cat"), *rows[1:]])
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert pipeline(source).label() == {"cat": 2, "dog": 1}
    assert one.query("SELECT path, image_id FROM dataset_files ORDER BY path") == before
    assert asked(tmp_path) == 3


def test_every_class_of_the_plan_applies_to_a_flat_folder(
    pipeline: Callable[..., Pipeline], image_root: Path, tmp_path: Path
):
    flat = tmp_path / "flat" / "2024"
    flat.mkdir(parents=True)
    for path in image_root.rglob("*.png"):
        path.rename(flat / f"{class_slug(path.parent.name)}_{path.name}")
    one = pipeline({"url": str(tmp_path / "flat"), "layout": "flat"}, classes=["cat", "dog"])
    assert one.label() == {"cat": 12, "dog": 12}
    assert one.metadata("raw_images")["classes_affected"] == "cat, dog"
    assert one.query("SELECT DISTINCT class FROM dataset_files") == [{"class": None}]
    assert asked(tmp_path) == 12


ODD_NAMES = ("cats", "Cats", "CATS", "a b", "a/b", "ab", "a...b", "cups, mugs", "猫", "Zèbre !")


def test_classes_of_odd_names_stay_apart_from_manifest_to_export(tmp_path: Path, script: Any):
    root = tmp_path / "photos"
    root.mkdir()
    rows = [{"path": f"{n}.png", "class": name} for n, name in enumerate(ODD_NAMES)]
    for number, row in enumerate(rows):
        scene = draw_scene(np.random.default_rng(number), 160, 120).image
        Image.fromarray(scene).save(root / row["path"])
    (root / "classes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    # As many boxes as the position of the name says.
    boxes = {
        name: [[100 * n, 0, 100 * n + 80, 80] for n in range(number)]
        for number, name in enumerate(ODD_NAMES)
    }
    source = {"url": str(root), "manifest": "classes.jsonl"}
    with dg.DagsterInstance.ephemeral() as instance:
        pipeline = Pipeline(tmp_path / "home", script(boxes=boxes), instance, source)
        pipeline.run(*INGESTION)
        keys = instance.get_dynamic_partitions("class")
        assert all(re.fullmatch("[a-z0-9_-]+", key) for key in keys)
        assert len({*keys}) == len(ODD_NAMES)
        pipeline.run("object_annotations", "class_exports")
        assert instance.get_materialized_partitions(dg.AssetKey("object_annotations")) == {*keys}
    shown = {name: pipeline.document(name) for name in ODD_NAMES}
    assert {name: document["class"] for name, document in shown.items()} == dict(
        zip(ODD_NAMES, ODD_NAMES, strict=True)
    )
    # A comma would split the name in the prompt: that class is told how to be asked.
    found = {name: len(document["annotations"]) for name, document in shown.items()}
    assert found == {name: len(boxes[name]) for name in ODD_NAMES} | {"cups, mugs": 0}
    (unsupported,) = pipeline.query("SELECT class, error FROM outcomes WHERE state = 'unsupported'")
    assert unsupported["class"] == class_slug("cups, mugs")
    assert "comma" in unsupported["error"]
    assert "`ask`" in unsupported["error"]
