import pandas as pd
import pytest

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.reporting.settled import (
    MARK_COLUMNS,
    read_marks,
    write_marks,
    write_sheet,
)

QUEUE = 'rank,path,reviewed,image_id,answers\r\n1,Kühe/a.png,yes,ida,v1\r\n2,"b, c.png",,idb,v2\r\n'


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(QUEUE.encode("utf-8-sig"), id="as it was written"),
        pytest.param(QUEUE.encode(), id="without a byte order mark"),
        pytest.param(QUEUE.replace(",", ";").encode("cp1252"), id="a German spreadsheet"),
        pytest.param(
            QUEUE.replace('"b, c.png"', "b.png").replace(",", "\t").encode(), id="with tabs"
        ),
        pytest.param(QUEUE.replace("\r\n", "\n").encode(), id="with plain line ends"),
        pytest.param(QUEUE.replace("yes", "  yes ").encode(), id="with blanks"),
    ],
)
def test_marks_are_read_however_a_spreadsheet_saved_them(tmp_path, data):
    (tmp_path / "queue.csv").write_bytes(data)
    (mark,) = read_marks(tmp_path).to_dict("records")
    assert (mark["image_id"], mark["answers"], mark["reviewed"]) == ("ida", "v1", "yes")


def test_marks_of_before_are_kept_and_what_was_said_first_stays(tmp_path):
    first = pd.DataFrame([("ida", "v1", "Ann", "a.png")], columns=MARK_COLUMNS)
    write_marks(tmp_path, first)
    (tmp_path / "queue.csv").write_text(
        "path,reviewed,image_id,answers\na.png,Bob,ida,v1\na.png,Bob,ida,v2\n"
    )
    marks = read_marks(tmp_path)
    assert marks[["answers", "reviewed"]].to_numpy().tolist() == [["v1", "Ann"], ["v2", "Bob"]]
    write_marks(tmp_path, marks)
    (tmp_path / "queue.csv").unlink()
    assert read_marks(tmp_path).equals(marks)


def test_no_file_has_no_marks(tmp_path):
    assert read_marks(tmp_path / "nowhere").empty
    write_marks(tmp_path, read_marks(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", ["", "path,image_id\na.png,ida\n", "just a line\n"])
def test_a_file_without_the_columns_is_told_by_its_name(tmp_path, data):
    (tmp_path / "queue.csv").write_text(data)
    with pytest.raises(ConfigurationError, match=r"queue\.csv: expected the columns .*reviewed"):
        read_marks(tmp_path)


def test_no_text_is_taken_for_a_formula(tmp_path):
    table = pd.DataFrame({"path": ["=1+1", "-a/b.png", "a=b.png"], "rank": [1, 2, 3]})
    write_sheet(tmp_path / "sheet.csv", table)
    read = pd.read_csv(tmp_path / "sheet.csv")
    assert read["path"].tolist() == ["'=1+1", "'-a/b.png", "a=b.png"]
    assert read["rank"].tolist() == [1, 2, 3]
