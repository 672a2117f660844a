import json
import os
from pathlib import Path

import pandas as pd
import pytest

from labeling_pipeline.annotations import Keypoint
from labeling_pipeline.export.class_json import (
    build_box_document,
    build_posture_document,
    export_path,
    write_class_json,
)
from labeling_pipeline.images.sources import FolderSource
from labeling_pipeline.tasks import PERSON, Task

SOURCE = FolderSource(Path("/data/images"))
IMAGES = pd.DataFrame(
    [("bb", 12, "Sitting/b.jpg"), ("aa", 3, "Sitting/a.jpg"), ("cc", 20, "Sitting/c.jpg")],
    columns=["image_id", "image_number", "path"],
)
COLUMNS = ["image_id", "label", "x0_px", "y0_px", "x1_px", "y1_px", "score", "keypoints"]
POINTS = [
    Keypoint("nose", 10.004, 20.006, 0.9),
    Keypoint("left eye", None, None, None),
    Keypoint("no such point", 1.0, 1.0, None),
]


def annotations(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def test_boxes_have_the_known_shape_with_every_image_listed():
    document = build_box_document(
        Task.DETECTION,
        "Sitting",
        IMAGES,
        annotations(("bb", "person", 1.0, 2.0, 11.123, 22.456, 0.912345, ())),
        SOURCE,
    )
    assert document == {
        "task": "detection",
        "class": "Sitting",
        "images": [
            {"id": 3, "file_name": "/data/images/Sitting/a.jpg"},
            {"id": 12, "file_name": "/data/images/Sitting/b.jpg"},
            {"id": 20, "file_name": "/data/images/Sitting/c.jpg"},
        ],
        "annotations": [
            {
                "image_id": 12,
                "bbox": [1.0, 2.0, 11.12, 22.46],
                "confidence": 0.9123,
                "area": 207.08,
            }
        ],
    }


@pytest.mark.parametrize(
    ("author", "told"),
    [("Ann", {"corrected_by": "Ann"}), (None, {}), (float("nan"), {})],
    ids=["a person", "a model", "a model beside people"],
)
def test_what_a_person_gave_says_so(author: object, told: dict[str, str]):
    rows = annotations(("bb", "person", 1.0, 2.0, 11.0, 22.0, None, ())).assign(corrected_by=author)
    (boxed,) = build_box_document(Task.DETECTION, "Sitting", IMAGES, rows, SOURCE)["annotations"]
    assert (boxed["confidence"], boxed.get("corrected_by")) == (None, told.get("corrected_by"))
    (posed,) = build_posture_document("Sitting", IMAGES, rows, SOURCE)["annotations"]
    assert {key: posed[key] for key in posed if key == "corrected_by"} == told


def test_a_calibrated_score_says_so_and_what_was_measured():
    rows = annotations(
        ("aa", "person", 0.0, 0.0, 10.0, 20.0, 0.97, ()),
        ("bb", "person", 0.0, 0.0, 10.0, 20.0, 0.5, ()),
    ).assign(measured_score=[0.61, 0.5], is_calibrated=[True, False])
    boxed = build_box_document(Task.DETECTION, "Sitting", IMAGES, rows, SOURCE)["annotations"]
    assert [list(one.items())[2:-1] for one in boxed] == [
        [("confidence", 0.97), ("calibrated", True), ("measured", 0.61)],
        [("confidence", 0.5)],
    ]
    posed = build_posture_document("Sitting", IMAGES, rows, SOURCE)["annotations"]
    assert [list(one.items())[4:-1] for one in posed] == [
        [("score", 0.97), ("calibrated", True), ("measured", 0.61)],
        [("score", 0.5)],
    ]


def test_what_calibration_makes_equal_stays_in_the_order_in_which_it_was_measured():
    rows = annotations(
        ("aa", "person", 0.0, 0.0, 1.0, 1.0, 0.97, ()),
        ("aa", "person", 5.0, 0.0, 6.0, 1.0, 0.97, ()),
    ).assign(measured_score=[0.6, 0.7], is_calibrated=True)
    posed = build_posture_document("Sitting", IMAGES, rows, SOURCE)["annotations"]
    assert [(one["measured"], one["persons"][0]["instance_id"]) for one in posed] == [
        *((0.7, 0), (0.6, 1))
    ]


def test_postures_have_one_annotation_a_person_with_every_keypoint_name():
    document = build_posture_document(
        "Sitting",
        IMAGES,
        annotations(("aa", "person", 0.0, 0.0, 10.0, 20.0, 0.5, POINTS)),
        SOURCE,
    )
    assert list(document) == ["action", "images", "annotations"]
    assert document["action"] == "Sitting"
    (annotation,) = document["annotations"]
    keypoints = annotation["persons"][0].pop("keypoints")
    assert annotation == {
        "image_id": 3,
        "bbox": [0.0, 0.0, 10.0, 20.0],
        "persons": [{"instance_id": 0}],
        "label": "person",
        "score": 0.5,
        "area": 200.0,
    }
    assert list(keypoints) == list(PERSON.keypoints)
    assert keypoints["nose"] == [10.0, 20.01]
    assert [name for name, point in keypoints.items() if point] == ["nose"]


def test_keypoints_as_the_store_returns_them_give_the_same_document():
    rows = [{"name": k.name, "x_px": k.x_px, "y_px": k.y_px, "score": k.score} for k in POINTS]
    documents = [
        build_posture_document(
            "Sitting", IMAGES, annotations(("aa", "person", 0, 0, 10, 20, 0.5, points)), SOURCE
        )
        for points in (POINTS, rows)
    ]
    assert documents[0] == documents[1]


def test_people_are_counted_within_their_image_the_best_scored_first():
    document = build_posture_document(
        "Sitting",
        IMAGES,
        annotations(
            ("bb", "person", 5, 5, 6, 6, None, ()),
            ("bb", "person", 0, 0, 1, 1, 0.2, ()),
            ("aa", "person", 0, 0, 1, 1, 0.1, ()),
            ("bb", "person", 7, 7, 8, 8, 0.9, ()),
        ),
        SOURCE,
    )
    rows = [
        (a["image_id"], a["persons"][0]["instance_id"], a["score"]) for a in document["annotations"]
    ]
    assert rows == [(3, 0, 0.1), (12, 0, 0.9), (12, 1, 0.2), (12, 2, None)]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_changes_nothing(seed):
    found = annotations(
        ("bb", "person", 3, 0, 4, 1, 0.5, ()),
        ("bb", "person", 1, 0, 2, 1, 0.5, ()),
        ("aa", "person", 1, 0, 2, 1, None, ()),
    )

    def build(images, rows):
        return build_box_document("detection", "Sitting", images, rows, SOURCE)

    shuffled = found.sample(frac=1, random_state=seed)
    assert build(IMAGES, found) == build(IMAGES.sample(frac=1, random_state=seed), shuffled)


def test_an_image_that_is_held_out_for_testing_says_so():
    images = IMAGES.assign(is_test=IMAGES["image_id"] == "bb")
    document = build_box_document("detection", "Sitting", images, annotations(), SOURCE)
    assert {image["id"]: image.get("split") for image in document["images"]} == {
        number: "test" if image_id == "bb" else None
        for image_id, number in zip(IMAGES["image_id"], IMAGES["image_number"], strict=True)
    }


def test_annotations_of_other_images_are_left_out():
    document = build_box_document(
        "detection", "Sitting", IMAGES, annotations(("zz", "x", 0, 0, 1, 1, 0.5, ())), SOURCE
    )
    assert document["annotations"] == []


def test_a_class_without_images_is_an_empty_document():
    document = build_posture_document("Empty", IMAGES.iloc[:0], annotations(), SOURCE)
    assert document == {"action": "Empty", "images": [], "annotations": []}


@pytest.mark.parametrize(
    ("first", "expected"), [(True, "sitting.json"), (False, "sitting_posture.json")]
)
def test_the_first_entry_of_the_plan_gets_the_plain_name(first, expected):
    path = export_path(Path("/results"), "sitting", "posture", first)
    assert path == Path("/results/sitting") / expected


def test_a_file_is_written_once_and_again_only_when_it_changes(tmp_path):
    path = tmp_path / "sitting" / "sitting.json"
    assert write_class_json(path, {"class": "Сидит"}) is True
    os.utime(path, (1, 1))
    assert write_class_json(path, {"class": "Сидит"}) is False
    assert path.stat().st_mtime == 1
    assert write_class_json(path, {"class": "Sitting"}) is True
    assert json.loads(path.read_text()) == {"class": "Sitting"}


def test_a_document_that_cannot_be_written_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.json"
    write_class_json(path, {"class": "old"})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_class_json(path, {"score": float("nan")})

    def no_space(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(OSError, match="no space"):
        write_class_json(path, {"class": "new"})
    assert json.loads(path.read_text()) == {"class": "old"}
    assert list(tmp_path.iterdir()) == [path]
