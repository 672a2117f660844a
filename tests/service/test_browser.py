"""The page, in a headless Chromium."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling_pipeline.drawing import label_color
from labeling_pipeline.sample.scenes import draw_scene
from labeling_pipeline.service.app import create_app
from labeling_pipeline.service.config import ServiceConfig
from tests.service.conftest import image_bytes, listening

pytestmark = [pytest.mark.soak, pytest.mark.checkpoint]

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PATIENCE_MS = 120_000
sync_api.expect.set_options(timeout=PATIENCE_MS)
KEY = "a key for the browser"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: `apt-get install chromium`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """Addresses of one service that is open and of one that wants a key."""
    with (
        listening(create_app(ServiceConfig())) as plain,
        listening(create_app(ServiceConfig(api_key=KEY))) as guarded,
    ):
        yield {"open": plain, "guarded": guarded}


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A picture of a circle and a star, each in its half."""
    path = tmp_path / "a scene.png"
    drawn = draw_scene(np.random.default_rng([9, 6]), 320, 240, kinds=["circle", "star"])
    Image.fromarray(drawn.image).save(path)
    return path


class Page:
    """A page of the service at one size; what it complained of is kept."""

    def __init__(self, browser: "sync_api.Browser", url: str, size: str, scheme: str) -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, base_url=url
        )
        self.url = url
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._note)
        self.page.goto("/")

    def _note(self, request: "sync_api.Request") -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def expect(self, selector: str) -> "sync_api.LocatorAssertions":
        return sync_api.expect(self.page.locator(selector))

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_uploaded_image_comes_back_with_boxes(browser, urls, scene, size, scheme, tmp_path):
    with Page(browser, urls["open"], size, scheme) as opened:
        page = opened.page
        opened.expect("#status").to_have_class("ready")
        opened.expect("#go").to_be_disabled()
        page.set_input_files("#file", scene)
        page.fill("#categories", "circle, star, square")
        page.click("#go")
        opened.expect("#picture").to_be_visible()
        opened.expect("#labels tr:has-text('circle')").to_contain_text("found")
        opened.expect("#labels tr:has-text('square')").to_contain_text("absent")
        opened.expect("#summary").to_contain_text("2 found by tiny-rex-omni")
        opened.expect("#json").to_contain_text('"bbox": [')
        opened.expect("#curl").to_contain_text("-F 'file=@a scene.png'")
        assert pixels_of(page, label_color("circle")) > 200
        assert pixels_of(page, label_color("star")) > 200
        page.screenshot(path=tmp_path / f"{size}_{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert opened.complaints == opened.elsewhere == []


def pixels_of(page: "sync_api.Page", color: str) -> int:
    """How many pixels of the picture shown are about of a colour, ``#rrggbb``."""
    return page.evaluate(
        """color => {
          const image = document.getElementById("picture");
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          const pen = canvas.getContext("2d");
          pen.drawImage(image, 0, 0);
          const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
          const wanted = [1, 3, 5].map(at => parseInt(color.slice(at, at + 2), 16));
          let count = 0;
          for (let i = 0; i < data.length; i += 4)
            count += wanted.every((value, j) => Math.abs(data[i + j] - value) < 24);
          return count;
        }""",
        color,
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("at", ["open", "guarded"])
def test_the_command_on_the_page_gets_what_the_page_shows(browser, urls, scene, at, tmp_path):
    named = scene.rename(tmp_path / "a 'scene', \"once\"; more.png")
    with Page(browser, urls[at], "desktop", "light") as opened:
        page = opened.page
        opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
        if at == "guarded":
            page.fill("#key", KEY)
            page.click("#usekey")
        page.set_input_files("#file", named)
        page.fill("#categories", "@circle, star;type=x, circle")
        page.click("#go")
        opened.expect("#labels tr").to_have_count(3)
        page.click("[data-copy=curl]")
        opened.expect("[data-copy=curl]").to_have_text("Copied")
        command = page.evaluate("navigator.clipboard.readText()")
        shown = json.loads(page.inner_text("#json"))
    done = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path,
        env=os.environ | {"LABELING_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = json.loads(done.stdout)
    assert list(told["labels"]) == ["@circle", "star;type=x", "circle"]
    for label, one in shown["labels"].items():
        boxes = [[a["bbox"] for a in said["annotations"]] for said in (one, told["labels"][label])]
        assert boxes[0] == boxes[1]
    assert len(told["labels"]["circle"]["annotations"]) == 1


def test_an_image_that_is_dropped_is_taken_and_an_older_result_fades(browser, urls, scene):
    with Page(browser, urls["open"], "desktop", "light") as opened:
        page = opened.page
        page.set_input_files("#file", scene)
        page.fill("#categories", "circle")
        page.click("#go")
        opened.expect("#picture").to_be_visible()
        opened.expect("#picture").not_to_have_class("old")
        dropped = page.evaluate_handle(
            """data => {
              const transfer = new DataTransfer();
              const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
              transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
              return transfer;
            }""",
            base64.b64encode(image_bytes()).decode(),
        )
        page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
        opened.expect("#filename").to_contain_text("dropped.png")
        opened.expect("#picture").to_have_class("old")
        page.click("#go")
        opened.expect("#picture").to_have_attribute("alt", re.compile("^dropped.png with"))
        opened.expect("#picture").not_to_have_class("old")


def test_all_can_be_done_with_the_keyboard(browser, urls):
    with Page(browser, urls["open"], "desktop", "light") as opened:
        page = opened.page
        opened.expect("#status").to_have_class("ready")
        page.focus("#scene")
        page.keyboard.press("Enter")
        opened.expect("#preview").to_be_visible()
        page.focus("#categories")
        page.keyboard.press("Enter")
        opened.expect("#picture").to_be_visible()


def test_what_cannot_be_asked_is_told_on_the_page(browser, urls, scene):
    with Page(browser, urls["open"], "desktop", "light") as opened:
        opened.page.set_input_files("#file", scene)
        opened.page.fill("#categories", "zebra")
        opened.expect("#go").to_be_enabled()
        opened.page.click("#go")
        opened.expect("#problem").to_contain_text("'zebra' is outside the vocabulary")


def test_a_service_with_a_key_asks_for_it_and_goes_on(browser, urls, scene):
    with Page(browser, urls["guarded"], "desktop", "light") as opened:
        page = opened.page
        opened.expect("#keyfield").to_be_visible()
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        opened.expect("#status").to_have_class("ready")
        page.set_input_files("#file", scene)
        page.click("#go")
        opened.expect("#picture").to_be_visible()
        opened.expect("#curl").to_contain_text('-H "Authorization: Bearer $LABELING_API_KEY"')
        assert KEY not in page.inner_text("#curl")


def test_the_documentation_shows_every_endpoint_and_takes_files(browser, urls):
    with Page(browser, urls["open"], "desktop", "light") as opened:
        page = opened.page
        page.goto("/docs")
        for path in ("/detection", "/keypoint", "/ocr", "/visual_prompting", "/vision"):
            sync_api.expect(page.get_by_text(path, exact=True)).to_be_visible()
        page.get_by_text("/detection", exact=True).click()
        sync_api.expect(page.locator("input[type=file]").first).to_be_visible()
        assert opened.complaints == []
