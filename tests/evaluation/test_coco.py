import json
import math

import pandas as pd
import pytest

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.evaluation.coco import read_coco
from labeling_pipeline.tasks import PERSON


def coco(**changes):
    document = {
        "images": [
            {"id": 1, "file_name": "Sitting/a.jpg"},
            {"id": 7, "file_name": "./Sitting/b.jpg"},
        ],
        "categories": [{"id": 3, "name": "person"}, {"id": 4, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40]}],
    }
    return document | changes


def read(document):
    text = document if isinstance(document, str) else json.dumps(document)
    return read_coco("truth.json", text.encode())


def test_boxes_become_corners_and_images_without_boxes_are_covered():
    truth = read(coco())

    known = truth.boxes.dropna(axis="columns").to_dict("records")
    assert known == [
        {
            "file_name": "Sitting/a.jpg",
            "label": "person",
            "x0_px": 10.0,
            "y0_px": 20.0,
            "x1_px": 40.0,
            "y1_px": 60.0,
            "iscrowd": False,
        }
    ]
    assert truth.file_names == {"Sitting/a.jpg", "Sitting/b.jpg"}
    assert truth.labels == {"person", "dog"}


def test_only_listed_images_and_categories_are_covered():
    truth = read(coco())
    asked = pd.DataFrame(
        [("Sitting/a.jpg", "dog"), ("Sitting/a.jpg", "cat"), ("elsewhere.jpg", "dog")],
        columns=["file_name", "label"],
    )
    assert truth.covers(asked["file_name"], asked["label"]).tolist() == [True, False, False]


@pytest.mark.parametrize("spelled", [None, [name.replace(" ", "_") for name in PERSON.keypoints]])
def test_keypoints_get_our_names_and_unlabelled_ones_no_place(spelled):
    category = {"id": 3, "name": "person"} | ({"keypoints": spelled} if spelled else {})
    values = [5, 6, 2, 0, 0, 0, 7, 8, 1, *[0] * 42]
    annotation = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "keypoints": values}
    truth = read(coco(categories=[category], annotations=[annotation])).keypoints

    assert truth["name"].tolist() == list(PERSON.keypoints)
    assert truth["visibility"].tolist()[:3] == [2, 0, 1]
    assert truth[["x_px", "y_px"]].iloc[2].tolist() == [7, 8]
    assert math.isnan(truth["x_px"].iloc[1])


BOX = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param("{not json", "a COCO file in JSON", id="no JSON"),
        pytest.param("[]", "an object with images", id="a list"),
        pytest.param({"images": []}, "a list", id="no categories"),
        pytest.param(coco(images=[{"id": 1}]), "file_name", id="an image without a name"),
        pytest.param(
            coco(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]),
            "an id of its own",
            id="an id twice",
        ),
        pytest.param(
            coco(annotations=[BOX | {"image_id": 99}]), "listed under images", id="unknown image"
        ),
        pytest.param(
            coco(annotations=[BOX | {"category_id": [3]}]),
            "listed under categories",
            id="an id that is a list",
        ),
        pytest.param(
            coco(annotations=[BOX | {"bbox": [0, 0, -1, 1]}]), "not negative", id="negative width"
        ),
        pytest.param(
            coco(annotations=[BOX | {"bbox": [0, 0, "1", 1]}]), "bbox", id="a number as text"
        ),
        pytest.param(
            coco(annotations=[BOX | {"keypoints": [1, 2, 2]}]), "17 keypoints", id="too few points"
        ),
        pytest.param(
            coco(annotations=[BOX | {"keypoints": [1, 2, 5] * 17}]),
            "visibility 0, 1 or 2",
            id="unknown visibility",
        ),
    ],
)
def test_what_is_not_coco_is_refused_naming_file_and_expectation(document, expected):
    with pytest.raises(ConfigurationError) as caught:
        read(document)
    assert expected in str(caught.value)
    assert "truth.json" in str(caught.value)


def test_area_text_and_outline_are_kept_and_missing_where_they_are_not_given():
    outline = [[0.0, 0, 9, 0, 9, 9]]
    given = BOX | {"area": 44.5, "text": "Gate 7", "segmentation": outline}
    boxes = read(coco(annotations=[given, BOX | {"text": None, "segmentation": []}])).boxes
    assert boxes.loc[0, ["area", "text", "segmentation"]].tolist() == [44.5, "Gate 7", outline]
    assert boxes.loc[1, ["area", "text", "segmentation"]].isna().all()
    assert read(coco(annotations=[given])).has_text
    assert not read(coco()).has_text


def test_a_person_whose_keypoints_nobody_labelled_is_known_to_be_there():
    """A prediction of them is no mistake, so they must not be forgotten."""
    person = {"id": 3, "name": "person", "keypoints": ["nose", "left_eye"]}
    points = read(coco(categories=[person], annotations=[BOX])).keypoints
    assert points[["instance", "visibility"]].to_numpy().tolist() == [[0, 0]]
    assert read(coco(annotations=[BOX])).keypoints.empty


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"area": -1}, "square pixels"),
        ({"text": 7}, "a text"),
        ({"segmentation": [[0, 0, 9, 9]]}, "at least three corners"),
        ({"segmentation": [[0, 0, 9, 0, 9, 9, 4]]}, "at least three corners"),
        ({"segmentation": {"size": [9, 9]}}, "run-length encoding"),
    ],
)
def test_what_an_annotation_adds_is_read_strictly(change, expected):
    with pytest.raises(ConfigurationError, match=expected):
        read(coco(annotations=[BOX | change]))
