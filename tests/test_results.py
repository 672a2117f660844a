import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.cleaning import clean
from labeling_pipeline.drawing import write_jpeg
from labeling_pipeline.errors import ImageError
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.results import CONTACT_SHEET, _class_sheet, draw_class, plan_colors
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.store.annotation_store import AnnotationStore

ENTRIES = "entries: [{name: object, task: detection, ask: {kitten: cat}}]"


class Drawn:
    """Class cat, labeled and drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "images"
        self.store = AnnotationStore(folder / "annotations.duckdb")

    @property
    def sheet(self) -> Path:
        return self.folder / "results" / "cat" / CONTACT_SHEET

    def add(self, *numbers: int, folder: str = "cat") -> None:
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            scene = draw_scene(np.random.default_rng(number), 130, 90).image
            Image.fromarray(scene).save(self.root / folder / f"{number}.png")

    def draw(self, boxes=((100, 100, 300, 400),)):
        script = self.folder / f"script_{len(boxes)}.json"
        script.write_text(json.dumps({"boxes": {"cat": [list(box) for box in boxes]}}))
        self.plan = parse_plan(f"model: scripted:{script}\n{ENTRIES}\n")
        source = open_source(self.root)
        update_inventory(self.store, source)
        clean(self.store, source, CleaningRules(only_flag=("near_duplicate",)))
        (entry,) = self.plan.entries
        label_class(self.store, self.plan, entry, "cat", source, "run")
        return draw_class(self.store, self.plan, "cat", source, self.folder / "results")


@pytest.fixture
def drawn(tmp_path) -> Drawn:
    return Drawn(tmp_path)


def test_a_class_has_a_contact_sheet_that_changes_only_with_its_pictures(drawn):
    drawn.add(1, 2, 3, 4, 5)
    assert (drawn.draw().pictures, len(list(drawn.sheet.parent.glob("vis_*.jpg")))) == (5, 5)
    first = drawn.sheet.stat().st_mtime_ns
    columns, rows = (side // 480 for side in Image.open(drawn.sheet).size)
    assert (columns, rows) == (4, 2)

    assert drawn.draw().drawn == 0
    assert drawn.sheet.stat().st_mtime_ns == first

    drawn.draw(boxes=((100, 100, 300, 400), (500, 500, 900, 900)))
    changed = drawn.sheet.stat().st_mtime_ns
    assert changed > first

    drawn.sheet.unlink()
    assert drawn.draw(boxes=((100, 100, 300, 400), (500, 500, 900, 900))).drawn == 0
    assert drawn.sheet.is_file()


def test_a_sheet_of_many_pictures_shows_some_from_all_over_the_class(tmp_path):
    names = [f"vis_{number}.jpg" for number in range(121)]
    for number, name in enumerate(names):
        write_jpeg(tmp_path / name, np.full((20, 20, 3), 2 * number, np.uint8))
    sheet = _class_sheet(tmp_path, names)
    rows, columns, _ = (side // 480 for side in sheet.shape)
    assert (columns, rows) == (4, 10)
    cell_px = (sheet.shape[0] - 12) // rows
    shown = [
        int(sheet[12 + 240 + row * cell_px, 12 + 240 + column * 492, 0])
        for row in range(rows)
        for column in range(columns)
    ]
    np.testing.assert_allclose(shown, np.linspace(0, 240, 40), atol=2)


def test_what_is_gone_leaves_neither_picture_nor_sheet(drawn):
    drawn.add(1, 2)
    drawn.draw()
    for path in (drawn.root / "cat").iterdir():
        path.unlink()
    drawn.add(3, folder="dog")
    source = open_source(drawn.root)
    update_inventory(drawn.store, source)
    summary = draw_class(drawn.store, drawn.plan, "cat", source, drawn.folder / "results")
    assert (summary.pictures, summary.sheet) == (0, None)
    assert [path.name for path in drawn.sheet.parent.iterdir()] == [".drawn.json"]


def test_a_new_class_changes_no_colour(drawn):
    plan = parse_plan(f"model: tiny-rex-omni\n{ENTRIES}\n")
    drawn.add(1)
    update_inventory(drawn.store, open_source(drawn.root))
    colors = plan_colors(drawn.store, plan)
    drawn.add(2, folder="apple")
    drawn.add(3, folder="kitten")
    update_inventory(drawn.store, open_source(drawn.root))
    more = plan_colors(drawn.store, plan)
    assert set(more) == {"cat", "apple"}
    assert more["cat"] == colors["cat"] != more["apple"]


def test_boxes_are_not_drawn_over_another_image_than_was_labeled(tmp_path: Path):
    plan = parse_plan(f"model: tiny-rex-omni\n{ENTRIES}\n")
    path = tmp_path / "pets/cats/0.png"
    path.parent.mkdir(parents=True)
    store, source = AnnotationStore(tmp_path / "a.duckdb"), open_source(tmp_path / "pets")
    for seed in (0, 1):
        scene = draw_scene(np.random.default_rng(seed), 120, 90)
        Image.fromarray(scene.image).save(path)
        if seed == 0:
            update_inventory(store, source)
            clean(store, source, CleaningRules())
    with pytest.raises(ImageError, match="another image") as caught:
        draw_class(store, plan, "cats", source, tmp_path)
    assert caught.value.reason == "changed"
    update_inventory(store, source)
    clean(store, source, CleaningRules())
    assert draw_class(store, plan, "cats", source, tmp_path).drawn == 1
