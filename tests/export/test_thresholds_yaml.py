from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_pipeline.errors import ThresholdsError
from labeling_pipeline.export.thresholds_yaml import (
    CalibrationItem,
    ThresholdItem,
    Thresholds,
    read_thresholds,
)
from labeling_pipeline.tasks import Task

FULL = Thresholds(
    version=1,
    target_precision=0.95,
    ground_truth=("one.json", "two.yaml"),
    calibrations=(
        CalibrationItem(
            model_key="0123456789",
            model="rex",
            task=Task.DETECTION,
            boxes=120,
            wrong=12,
            error_before=0.3,
            error_after=0.01,
            knots=((0.1, 0.2), (0.35, 0.2), (0.4, 0.9)),
        ),
        CalibrationItem(model_key="b", task=Task.KEYPOINT, reason="too few boxes: 9"),
    ),
    thresholds=(
        ThresholdItem(
            entry="object",
            label="cat",
            model_key="1e5",
            threshold=0.4312,
            precision=0.954,
            interval=(0.9, 0.97),
            recall=0.9,
            kept=3,
            boxes=4,
        ),
        ThresholdItem(entry="object", label="猫: no", model_key="b", threshold=None, reason="why"),
    ),
)


@pytest.fixture
def written(tmp_path: Path):
    """Write a text as a thresholds file; returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "thresholds.yaml"
        path.write_text(text)
        return path

    return write


def test_what_was_written_is_read_back(written):
    assert read_thresholds(written(FULL.to_yaml())) == FULL


def test_a_person_reads_it_from_top_to_bottom():
    text = FULL.to_yaml()
    assert text.startswith("# What the asset `calibration` found.")
    assert list(yaml.safe_load(text)) == [
        *("version", "target_precision", "ground_truth", "calibrations", "thresholds")
    ]
    assert "  knots:\n  - [0.1, 0.2]\n  - [0.35, 0.2]\n" in text
    assert "  interval: [0.9, 0.97]\n" in text
    assert "  threshold: null\n  reason: why\n" in text
    assert "猫" in text


def test_a_file_by_hand_needs_only_what_has_an_effect(written):
    path = written(
        "version: 1\n"
        "calibrations:\n- {model_key: a, task: detection, knots: [[0.2, 0.1], [0.9, 1]]}\n"
        "thresholds:\n- {entry: object, label: cat, model_key: a, threshold: 0.5}\n"
    )
    found = read_thresholds(path)
    assert found.calibrations[0].score_map.knots == ((0.2, 0.1), (0.9, 1.0))
    assert found.thresholds[0].threshold == 0.5
    assert FULL.calibrations[1].score_map is None


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)
shares = st.floats(0, 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "thresholds.yaml"


@settings(deadline=None, max_examples=50)
@given(names=st.lists(st.tuples(texts, texts, texts), unique=True, max_size=4), threshold=shares)
def test_whatever_labels_are_called_they_are_read_back(file, names, threshold):
    given_ = Thresholds(
        version=1,
        thresholds=tuple(
            ThresholdItem(entry=e, label=la, model_key=k, threshold=threshold) for e, la, k in names
        ),
    )
    file.write_text(given_.to_yaml(), encoding="utf-8")
    assert read_thresholds(file) == given_


THRESHOLD = "thresholds:\n- {entry: object, label: cat, model_key: a, threshold: 0.5}\n"
MAP = "calibrations:\n- model_key: a\n  task: detection\n  knots: [[0.2, 0.1], [0.9, 1]]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", ":1: expected a mapping with `version`, got nothing", id="empty"),
        pytest.param("version: [", ":1: expected valid YAML", id="not YAML"),
        pytest.param("thresholds: []\n", "version: expected a value here", id="no version"),
        pytest.param("version: 2\n", ":1: version: expected 1, got 2", id="a later version"),
        pytest.param(
            f"version: 1\n{THRESHOLD.replace('label', 'class')}",
            ":3: thresholds[0].class: expected one of the keys entry, label, model_key",
            id="an unknown key",
        ),
        pytest.param(
            f"version: 1\n{THRESHOLD.replace('0.5', '50')}",
            ":3: thresholds[0].threshold: expected less than or equal to 1, got 50",
            id="a threshold in percent",
        ),
        pytest.param(
            f"version: 1\n{THRESHOLD}{THRESHOLD.removeprefix('thresholds:')}".replace(
                "}\n\n", "}\n"
            ),
            "expected each thing once, got object, cat, a more than once",
            id="a label twice",
        ),
        pytest.param(
            f"version: 1\n{MAP}{MAP.removeprefix('calibrations:')}".replace("]]\n\n", "]]\n"),
            "expected each thing once, got detection, a more than once",
            id="a model twice",
        ),
        pytest.param(
            f"version: 1\n{MAP.replace('0.9', '0.1')}",
            ":5: calibrations[0].knots: expected measured scores that rise",
            id="scores that fall",
        ),
        pytest.param(
            f"version: 1\n{MAP.replace('0.1]', '0.1, 3]')}",
            ":5: calibrations[0].knots",
            id="a knot of three",
        ),
        pytest.param(
            f"version: 1\n{MAP.replace('detection', 'detecting')}",
            ":4: calibrations[0].task: expected 'detection'",
            id="an unknown task",
        ),
    ],
)
def test_mistakes_are_told_by_line(written, text, expected):
    path = written(text)
    with pytest.raises(ThresholdsError) as error:
        read_thresholds(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ThresholdsError, match="expected the thresholds that the plan names, but"):
        read_thresholds(tmp_path / "none.yaml")
