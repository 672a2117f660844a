import math

import pytest

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS
from labeling_pipeline.evaluation.yolo import LabelFile, label_files, read_names, read_yolo
from labeling_pipeline.tasks import PERSON

NAMES = b"names: [cat, big dog]"
POSE = b"names: {0: person}\nkpt_shape: [2, 3]\nkpt_names: {0: [left_eye, nose]}"


def read(text, names=NAMES, size=(200, 100)):
    file = LabelFile("labels/1.txt", text.encode(), size)
    return read_yolo(read_names("data.yaml", names), {"cat/1.jpg": file})


def test_shares_become_pixels_and_an_empty_file_an_image_that_shows_nothing():
    names = read_names("data.yaml", NAMES)
    size = (200, 100)
    truth = read_yolo(
        names,
        {
            "cat/1.jpg": LabelFile("1.txt", b"1 0.5 0.5 0.25 0.5\n\n0 0.1 0.1 0.2 0.2\n", size),
            "cat/2.jpg": LabelFile("2.txt", b"", size),
        },
    )
    assert truth.boxes["label"].tolist() == ["big dog", "cat"]
    assert truth.boxes[BOX_COLUMNS].to_numpy().tolist() == [[75, 25, 125, 75], [0, 0, 40, 20]]
    assert truth.file_names == {"cat/1.jpg", "cat/2.jpg"}
    assert truth.labels == {"cat", "big dog"}
    assert truth.keypoints.empty
    assert not truth.has_text


def test_a_repeated_line_counts_once_and_corners_stay_inside_the_image():
    truth = read("0 0.05 0.5 0.2 0.5\n0 0.05 0.5 0.2 0.5\n0 0.05 0.5 0.2 0.6\n")
    assert truth.boxes[BOX_COLUMNS].round(6).to_numpy().tolist() == [
        [0, 25, 30, 75],
        [0, 20, 30, 80],
    ]


def test_an_outline_has_the_box_around_it():
    truth = read("0 0.1 0.2 0.5 0.2 0.3 0.8\n").boxes.iloc[0]
    assert truth[BOX_COLUMNS].tolist() == pytest.approx([20, 20, 100, 80])
    assert truth["segmentation"] == [pytest.approx([20, 20, 100, 20, 60, 80])]


def test_keypoints_get_their_names_and_those_that_are_not_labelled_no_place():
    points = read("0 0.5 0.5 1 1 0.25 0.5 2 0 0 0\n", POSE).keypoints
    assert points["name"].tolist() == ["left eye", "nose"]
    assert points["visibility"].tolist() == [2, 0]
    assert points[["x_px", "y_px"]].iloc[0].tolist() == [50, 50]
    assert math.isnan(points["x_px"].iloc[1])
    assert points[BOX_COLUMNS].iloc[0].tolist() == [0, 0, 200, 100]


def test_seventeen_keypoints_are_those_of_a_person_and_two_numbers_are_enough():
    names = b"names: [person]\nkpt_shape: [17, 2]"
    points = read("0 0.5 0.5 1 1 0 0" + " 0.5 0.5" * 16, names).keypoints
    assert points["name"].tolist() == list(PERSON.keypoints)
    assert points["visibility"].tolist() == [0, *[2] * 16]


@pytest.mark.parametrize(
    ("image", "root", "names_file", "expected"),
    [
        pytest.param(
            *("cat/1.jpg", "/data/set/images", "../data.yaml"),
            ["../labels/cat/1.txt", "cat/1.txt", "../labels/cat/1.txt"],
            id="the root is called images",
        ),
        pytest.param(
            *("images/train/1.v2.png", "/data/set", "data.yaml"),
            ["labels/train/1.v2.txt", "images/train/1.v2.txt", "labels/images/train/1.v2.txt"],
            id="below the root",
        ),
        pytest.param(
            *("images/images/1.jpg", "bucket/set", "data.yaml"),
            ["images/labels/1.txt", "images/images/1.txt", "labels/images/images/1.txt"],
            id="the last folder of that name",
        ),
        pytest.param(
            *("cat/1.jpg", "/data/photos", "/truth/data.yaml"),
            ["cat/1.txt", "/truth/labels/cat/1.txt"],
            id="nothing is called images",
        ),
        pytest.param(
            *("images/1.jpg", "", "data.yaml"),
            ["labels/1.txt", "images/1.txt", "labels/images/1.txt"],
            id="in an archive",
        ),
        pytest.param(
            *("cat/1.jpg", "bucket/images", "s3://other/data.yaml"),
            ["../labels/cat/1.txt", "cat/1.txt", "s3://other/labels/cat/1.txt"],
            id="the names lie elsewhere",
        ),
    ],
)
def test_label_files_lie_where_ultralytics_looks_or_beside_image_or_names(
    image, root, names_file, expected
):
    assert list(label_files(image, root, names_file)) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(b"[cat]", "a mapping with `names`", id="a list"),
        pytest.param(b"names: cat", "a list of names", id="one name"),
        pytest.param(b"names: {cat: 0}", "number: name", id="the wrong way round"),
        pytest.param(b"names: [", "YAML", id="no YAML"),
        pytest.param(b"names: [cat]\nkpt_shape: 17", "[number of keypoints, 2 or 3]", id="a shape"),
        pytest.param(
            b"names: [cat]\nkpt_shape: [5, 3]", "the names of the 5 keypoints", id="nameless"
        ),
        pytest.param(
            b"names: [cat]\nkpt_shape: [2, 3]\nkpt_names: {0: [nose]}",
            "2 names",
            id="too few names",
        ),
    ],
)
def test_names_that_are_not_ultralytics_are_refused(names, expected):
    with pytest.raises(ConfigurationError) as caught:
        read_names("sets/data.yaml", names)
    assert expected in str(caught.value)
    assert "sets/data.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "names", "expected"),
    [
        pytest.param("cat 0.5 0.5 0.2 0.2", NAMES, "numbers", id="a name for a number"),
        pytest.param(
            "2 0.5 0.5 0.2 0.2", NAMES, "the number of a class of data.yaml", id="unknown"
        ),
        pytest.param("0.5 0.5 0.5 0.2 0.2", NAMES, "the number of a class", id="no whole number"),
        pytest.param("0 50 50 20 20", NAMES, "in 0..1, got 50.0", id="pixels"),
        pytest.param("0 0.5 0.5 nan 0.2", NAMES, "in 0..1", id="not a number"),
        pytest.param(
            "0 0.5 0.5 0.2", NAMES, "the corners of an outline, got '4 numbers'", id="short"
        ),
        pytest.param("0 0.5 0.5 1 1 0 0 2", POSE, "11 numbers", id="a keypoint is missing"),
        pytest.param("0 0.5 0.5 1 1 0 0 3 0 0 0", POSE, "visibility 0, 1 or 2", id="visibility"),
    ],
)
def test_a_mistake_names_file_and_line(line, names, expected):
    good = "0 0.5 0.5 1 1" + (" 0 0 0" * 2 if names is POSE else "")
    with pytest.raises(ConfigurationError) as caught:
        read(f"{good}\n{line}\n", names)
    assert "labels/1.txt is not valid at line 2" in str(caught.value)
    assert expected in str(caught.value)
