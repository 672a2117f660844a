import csv

import pytest

from labeling_pipeline.errors import AuditError
from labeling_pipeline.export.audit_sheet import (
    COLUMNS,
    SheetRow,
    Verdict,
    read_sheet,
    sheet_bytes,
)

ROWS = (
    SheetRow(
        "r1", "pictures/r1.jpg", "Über Kühe/1.jpg", "cow", 3, wrong="1 3", note='"so", she said'
    ),
    SheetRow(
        "r2", "pictures/r2.jpg", "猫/2.jpg", "猫", 0, missed="2", note="two\nlines; and, more"
    ),
    SheetRow("r3", "pictures/r3.jpg", "a,b;c.jpg", "cow", 1),
)


def row(**values):
    return SheetRow(**({"item": "r1", "picture": "p", "path": "a.jpg", "label": "cow"} | values))


@pytest.fixture
def written(tmp_path):
    """Write a sheet from bytes, or from rows."""

    def write(content):
        path = tmp_path / "object.csv"
        path.write_bytes(content if isinstance(content, bytes) else sheet_bytes(content))
        return path

    return write


def test_a_sheet_reads_as_it_was_written(written):
    sheet = read_sheet(written(ROWS))
    assert sheet.rows == ROWS
    assert sheet.separator == ","
    # The note of the second row takes two lines.
    assert dict(sheet.lines) == {"r1": 2, "r2": 4, "r3": 5}


def test_a_sheet_that_does_not_exist_has_no_rows(tmp_path):
    assert read_sheet(tmp_path / "none.csv").rows == ()


def test_excel_takes_the_file_for_utf_8_and_every_cell_for_text(written):
    content = written(ROWS).read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    assert content.count(b"\r\n") == 4
    assert b'"r3","pictures/r3.jpg","a,b;c.jpg","cow","1","","",""' in content


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\r\n", "\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_what_spreadsheet_programs_make_of_it_is_understood(
    separator, encoding, ending, quoting, tmp_path
):
    path = tmp_path / "object.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=ending)
        writer.writerow(COLUMNS)
        writer.writerows(
            [r.item, r.picture, r.path, r.label, r.shown, r.wrong, r.missed, r.note] for r in ROWS
        )
    sheet = read_sheet(path)
    assert sheet.rows == ROWS
    assert sheet.separator == separator
    assert sheet_bytes(sheet.rows, sheet.separator) == sheet_bytes(ROWS, separator)


def test_columns_in_another_order_empty_ones_and_more_of_them_are_kept(written):
    text = "note;missed;wrong;shown;label;path;picture;item;who;\r\n"
    text += ";;2;3;cow;a.jpg;p;r1;Ann;\r\n;;;;;;;;;\r\n"
    sheet = read_sheet(written(text.encode()))
    assert sheet.rows == (row(shown=3, wrong="2", more={"who": "Ann"}),)
    assert read_sheet(written(sheet.rows)).rows == sheet.rows


@pytest.mark.parametrize("begin", ["=", "+", "-", "@"])
def test_no_cell_that_comes_from_a_file_name_is_a_formula(begin, written):
    content = written([row(path=f"{begin}HYPERLINK(1).jpg", label=f"{begin}1", shown=0)])
    (cells,) = list(csv.reader(content.read_text("utf-8-sig").splitlines()))[1:]
    assert cells[2:4] == [f"'{begin}HYPERLINK(1).jpg", f"'{begin}1"]


@pytest.mark.parametrize(
    ("shown", "wrong", "missed", "expected"),
    [
        (3, "none", "", Verdict((), 0)),
        (3, "None", "0", Verdict((), 0)),
        (3, "0", "none", Verdict((), 0)),
        (3, "", "2", Verdict((), 2)),
        (3, "2", "", Verdict((2,), 0)),
        (3, "3 1 3", "1", Verdict((1, 3), 1)),
        (3, "1,2", "", Verdict((1, 2), 0)),
        (3, "1; 2;", "", Verdict((1, 2), 0)),
        (3, "ALL", "", Verdict((1, 2, 3), 0)),
        (0, "all", "", Verdict((), 0)),
        (0, "none", "4", Verdict((), 4)),
        (12, "２ 11", "", Verdict((2, 11), 0)),
    ],
)
def test_verdicts_are_understood(shown, wrong, missed, expected):
    filled = row(shown=shown, wrong=wrong, missed=missed)
    assert filled.is_checked
    assert filled.verdict() == expected


def test_a_note_alone_is_no_verdict_but_is_kept():
    noted = row(shown=1, note="ask Ben")
    assert (noted.is_checked, noted.is_filled) == (False, True)
    assert not row(shown=1).is_filled


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"wrong": "4"}, ":2: wrong: expected none, all, or numbers from 1 to 3 with spaces"),
        ({"wrong": "2-May"}, ":2: wrong: expected none, all, or numbers from 1 to 3"),
        ({"wrong": "1.3"}, ":2: wrong: expected none, all, or numbers"),
        ({"wrong": "-1"}, ":2: wrong: expected none, all, or numbers"),
        ({"wrong": "right"}, "got 'right'"),
        ({"shown": "1", "wrong": "2"}, ":2: wrong: expected none or 1, got '2'"),
        ({"shown": "0", "wrong": "1"}, ":2: wrong: expected none, for nothing is shown, got '1'"),
        ({"missed": "some"}, ":2: missed: expected how many, as 0 or 2, got 'some'"),
        ({"missed": "1.5"}, ":2: missed: expected how many"),
        ({"missed": "-1"}, ":2: missed: expected how many"),
        ({"shown": "three"}, ":2: shown: expected the number as it was written, got 'three'"),
        ({"item": "", "wrong": "1"}, ":2: item: expected the name of the row, got nothing"),
    ],
)
def test_what_cannot_be_is_told_with_file_line_and_what_was_expected(values, problem, written):
    cells = dict.fromkeys(COLUMNS, "") | {"item": "r1", "shown": "3"} | values
    lines = [",".join(COLUMNS), ",".join(cells.values())]
    path = written("\r\n".join(lines).encode())
    with pytest.raises(AuditError) as error:
        read_sheet(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert problem in str(error.value)


def test_all_mistakes_are_told_at_once_and_not_too_many(written):
    rows = [row(item=f"r{number}", shown=1, wrong="7") for number in range(30)]
    with pytest.raises(AuditError) as error:
        read_sheet(written(rows))
    lines = str(error.value).splitlines()
    assert (len(lines), lines[-1]) == (21, "... and 10 problems more")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected the columns item, picture"),
        (b"item,wrong\r\nr1,2\r\n", "got none called picture, path, label, shown, missed, note"),
        ("item,note\r\nr1,schön\r\n".encode("cp1252"), "save it as CSV UTF-8"),
        (
            b"item,picture,path,label,shown,wrong,missed,note\r\nr1,p,a,b.jpg,cow,1,2,,\r\n",
            "shown: expected the number",
        ),
        (
            b"item,picture,path,label,shown,wrong,missed,note\r\nr1,p,a,cow,1,,,so, she said\r\n",
            "expected 8 columns, got 9: quote what holds the separator",
        ),
    ],
)
def test_a_file_that_is_no_sheet_says_what_a_sheet_is(content, problem, written):
    path = written(content)
    with pytest.raises(AuditError) as error:
        read_sheet(path)
    assert str(path) in str(error.value)
    assert problem in str(error.value)


def test_a_row_that_stands_there_twice_must_say_the_same(written):
    once = row(shown=2, wrong="1")
    assert read_sheet(written([once, once])).rows == (once,)
    with pytest.raises(
        AuditError, match=r":3: item: expected every row once, got r1 again.*line 2"
    ):
        read_sheet(written([once, row(shown=2, wrong="2")]))
