"""The page of an audit, as text and in a headless Chromium."""

import re
import shutil

import numpy as np
import pytest

from labeling_pipeline.drawing import write_jpeg
from labeling_pipeline.export.audit_page import audit_page
from labeling_pipeline.export.audit_sheet import SheetRow, Verdict, read_sheet, sheet_bytes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ROWS = (
    SheetRow("r1", "pictures/r1.jpg", "cat/1.jpg", "<b>cat</b>", 3),
    SheetRow("r2", "pictures/r2.jpg", "cat/ü 2.jpg", "cat", 0),
    SheetRow("r3", "pictures/r3.jpg", "'=1.jpg", "cat", 2, wrong="2", missed="1", note='"so"'),
    SheetRow("r4", "pictures/r4.jpg", "cat/4.jpg", "cat", 1, more={"who": "Ann"}),
)


def page(rows=ROWS, *, can_miss=True, separator=","):
    return audit_page("object", rows, ["What to do."], can_miss=can_miss, separator=separator)


def test_the_page_loads_nothing_but_its_pictures_and_escapes_all_text():
    html = page()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert set(loaded) == {row.picture for row in ROWS}
    assert not re.search("https?:|url\\(|@import", html)
    assert "<b>cat</b>" not in html
    assert "&lt;b&gt;cat&lt;/b&gt;" in html
    assert html.count('class="missed"') == 4
    assert 'class="missed"' not in page(can_miss=False)


class Browsed:
    """A page that is open in a browser, in a folder with its pictures."""

    def __init__(self, tab, folder):
        self.tab, self.folder = tab, folder

    def open(self, rows=ROWS, **options):
        (self.folder / "object.html").write_text(page(rows, **options), encoding="utf-8")
        self.tab.goto((self.folder / "object.html").as_uri())

    def press(self, item, name):
        self.tab.locator(f'[data-item="{item}"]').get_by_role("button", name=name).click()

    def enter(self, item, kind, text):
        field = self.tab.locator(f'[data-item="{item}"] .{kind}')
        field.fill(text)
        field.blur()

    def pressed(self, item):
        return self.tab.locator(f'[data-item="{item}"] [aria-pressed=true]').all_inner_texts()

    def progress(self):
        return self.tab.locator("#progress").inner_text()

    def save(self):
        with self.tab.expect_download() as download:
            self.tab.click("#save")
        assert download.value.suggested_filename == "object.csv"
        download.value.save_as(self.folder / "object.csv")
        return read_sheet(self.folder / "object.csv")


@pytest.fixture(params=SIZES)
def browsed(request, tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: `apt-get install chromium`")
    for row in ROWS:
        write_jpeg(tmp_path / row.picture, np.full((480, 640, 3), 90, np.uint8))
    width, height = SIZES[request.param]
    complaints = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": height})
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda message: complaints.append(message.text))
        yield Browsed(tab, tmp_path)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert complaints == []


@pytest.mark.soak
def test_what_is_pressed_on_the_page_is_what_the_saved_sheet_says(browsed):
    browsed.open(separator=";")
    assert browsed.progress() == "1 of 4 checked"
    assert browsed.pressed("r3") == ["2"]
    browsed.press("r1", "3")
    browsed.press("r1", "1")
    browsed.press("r2", "right, there is none")
    browsed.press("r4", "none")
    browsed.enter("r2", "note", 'a "dark" one; look, again')
    browsed.enter("r4", "missed", "2")
    assert browsed.progress() == "4 of 4 checked"
    sheet = browsed.save()
    assert sheet.separator == ";"
    verdicts = {row.item: row.verdict() for row in sheet.rows}
    assert verdicts == {
        "r1": Verdict((1, 3), 0),
        "r2": Verdict((), 0),
        "r3": Verdict((2,), 1),
        "r4": Verdict((), 2),
    }
    notes = [row.note for row in sheet.rows]
    assert notes == ["", 'a "dark" one; look, again', '"so"', ""]
    # Byte by byte what the library would have written.
    assert (browsed.folder / "object.csv").read_bytes() == sheet_bytes(sheet.rows, ";")


@pytest.mark.soak
def test_what_is_pressed_again_is_taken_back(browsed):
    browsed.open()
    browsed.press("r1", "2")
    browsed.press("r1", "2")
    assert browsed.pressed("r1") == ["none"]
    browsed.press("r1", "none")
    assert browsed.pressed("r1") == []
    browsed.save()
    assert (browsed.folder / "object.csv").read_bytes() == sheet_bytes(ROWS)


@pytest.mark.soak
def test_what_is_not_saved_is_remembered_until_the_sheet_says_otherwise(browsed):
    browsed.open()
    browsed.press("r1", "2")
    browsed.enter("r3", "missed", "5")
    # A browser takes its time until another process of its own can read what one has stored.
    browsed.tab.wait_for_timeout(1000)
    browsed.open()
    assert (browsed.pressed("r1"), browsed.progress()) == (["2"], "2 of 4 checked")
    saved = browsed.save().rows
    assert (saved[0].wrong, saved[2].missed) == ("2", "5")
    # The sheet has been changed elsewhere since: what it says counts.
    browsed.open([SheetRow(**(vars(ROWS[0]) | {"wrong": "1"})), *ROWS[1:]])
    assert browsed.pressed("r1") == ["1"]
