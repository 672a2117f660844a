"""The pages that a person opens, in a headless Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.datasets import write_classes
from tests.soak.live_server import CLASSES, LiveServer

pytestmark = pytest.mark.soak

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def page(server: LiveServer) -> Iterator["sync_api.Page"]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: `apt-get install chromium`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(base_url=server.url, viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        yield page
        browser.close()


@pytest.fixture
def shown(page: "sync_api.Page", tmp_path: Path):
    """Assert that texts are visible on the open page; keep a picture of it."""

    def assert_shown(*texts: str) -> None:
        try:
            for text in texts:
                sync_api.expect(page.get_by_text(text, exact=True).first).to_be_visible(
                    timeout=PATIENCE_MS
                )
        finally:
            page.screenshot(path=tmp_path / "page.png")

    return assert_shown


def test_the_asset_graph_shows_every_asset_of_an_opened_group(page: "sync_api.Page", shown):
    page.goto("/asset-groups")
    shown("ingestion", "annotations", "outputs", "evaluation")
    page.goto("/locations/labeling-pipeline/asset-groups/annotations")
    shown("object_annotations", "posture_annotations")


def test_the_partition_page_of_an_entry_lists_the_classes_and_what_came_of_one(
    page: "sync_api.Page", shown
):
    page.goto("/assets/posture_annotations?view=partitions&partition=bees")
    shown("posture_annotations", *CLASSES, "outcomes", "found", "annotations")


def test_a_class_that_failed_stands_as_failed_with_its_reason_until_it_is_mended(
    server: LiveServer, page: "sync_api.Page", shown
):
    dataset = server.dataset
    poison_px = (250, 90)
    write_classes(dataset.images, {"yaks": [poison_px]})
    assert server.launch(["raw_images", "clean_images"]) == "SUCCESS"
    dataset.script(fail_size_px=poison_px)
    label = (["object_annotations"], {"dagster/partition": "yaks"})
    assert server.launch(*label) == "FAILURE"
    partitions = "/assets/object_annotations?view=partitions&partition=yaks&status="
    page.goto(partitions + "FAILED")
    shown("Failed (1)", f"Materialized ({len(CLASSES)})", "yaks")
    page.get_by_text("View logs").first.click()
    reason = "yaks: ModelError: all 1 images failed; the first, yaks/250x90.jpg: RuntimeError"
    page.get_by_text(reason).first.wait_for(state="visible")
    page.get_by_text("only what is missing is done").first.wait_for(state="visible")

    dataset.script()
    assert server.launch(*label) == "SUCCESS"
    page.goto(partitions + "MATERIALIZED")
    shown("Failed (0)", f"Materialized ({len(CLASSES) + 1})", "outcomes", "found")


def test_the_evaluation_page_shows_scores_and_opens_a_figure(page: "sync_api.Page", shown):
    page.goto("/assets/har_evaluation")
    shown("keypoints_accuracy", "keypoints_macro_f1", "keypoints_confusion_matrix")
    page.get_by_text("[Show Markdown]").first.click()
    figure = page.locator("img[src^='data:image/png']").first
    figure.wait_for(state="visible")
    assert figure.evaluate("image => image.naturalWidth") > 200
    shown("keypoints_accuracy")
