"""The page in Debian's Chromium with the bundled model, from start to end."""

import re
import shutil
import time

import httpx
import pytest
from conftest import RunningStudio

from magicvideo.studio.config import StudioConfig
from magicvideo.studio.engine import Engine
from magicvideo.studio.page import EXAMPLES, mount_page
from magicvideo.studio.security import Access

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright, which drives the browser, is not installed"
)
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NOTE_PREVIEWS = """() => {
  window.previews = [];
  new MutationObserver(() => {
    const image = document.querySelector('#stage .mv-preview');
    if (image && window.previews.at(-1) !== image.src) window.previews.push(image.src);
  }).observe(document.querySelector('#stage'), {subtree: true, childList: true, attributes: true});
}"""
PATIENCE = 900_000  # milliseconds: a browser and a model share what may be one busy core
pytestmark = [
    pytest.mark.slow,
    # Gradio leaves event loops of its own for the garbage collector to close
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("_close_event_loops"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture
def config(tmp_path):
    return StudioConfig(home=tmp_path / "page", threads=1)


@pytest.fixture(scope="module")
def shipped():
    return Engine(threads=1), Engine(device="cpu", threads=1)


@pytest.fixture(scope="module")
def idle(shipped, run_folder, prepared, tmp_path_factory):
    """A studio of its own without a worker: its page is looked at, and makes nothing."""
    home = tmp_path_factory.mktemp("idle")
    config = StudioConfig(home=home, threads=1, runs=run_folder, data=prepared)
    studio = RunningStudio(config, shipped, wrap=mount_page, worker=False)
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def screen(browser):
    """A function that opens a window on an address; foreign addresses are refused and noted."""
    opened = []

    def show(url, width=1280, height=900, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        opened.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.foreign = []

        def pass_on(route):
            if route.request.url.startswith((url, "data:", "blob:")):
                route.continue_()
            else:
                page.foreign.append(route.request.url)
                route.abort()

        context.route("**/*", pass_on)
        page.goto(url)
        page.get_by_role("button", name="Generate").wait_for()
        return page

    yield show
    for context in opened:
        context.close()


def serious(page):
    """The serious and critical problems that axe finds."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    found = axe.Axe().run(page).response["violations"]
    return [
        (fault["id"], [node["html"][:150] for node in fault["nodes"]][:4])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


def fits(page):
    """Return whether no element exceeds the width of the page."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


def set_slider(page, label, value):
    box = page.get_by_label(f"number input for {label}")
    box.fill(str(value))
    box.press("Enter")


def test_a_person_makes_cancels_finds_and_reads_back(config, shipped, screen, tmp_path):
    studio = RunningStudio(config, shipped, wrap=mount_page)
    try:
        page = screen(studio.url)
        assert page.get_by_role("heading", name="magicvideo studio").is_visible()
        page.get_by_label("Prompt", exact=True).fill(EXAMPLES[-1])
        page.get_by_role("button", name="Settings").click()
        set_slider(page, "Steps", 3)
        set_slider(page, "Seconds", 0.6)
        page.evaluate(NOTE_PREVIEWS)
        page.get_by_role("button", name="Generate").click()
        page.locator("#stage video").wait_for()
        previews = page.evaluate("window.previews")
        assert len(previews) >= 2
        assert all(image.startswith("data:image/webp") for image in previews)
        assert "Done in" in page.locator("#stage [role=status]").inner_text()
        page.wait_for_function("document.querySelector('#stage video').currentTime > 0.1")
        seed = page.get_by_label("Seed", exact=True).input_value()
        assert re.fullmatch(r"\d+", seed)
        (done,) = studio.studio.store.find()[0]
        assert (done.prompt, str(done.parameters["seed"])) == (EXAMPLES[-1], seed)

        page.get_by_label("Prompt", exact=True).fill("fox, blue background")
        set_slider(page, "Steps", 50)
        page.get_by_role("button", name="Generate").click()
        page.locator("#stage progress").wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled.").wait_for()
        assert serious(page) == []
        assert page.foreign == []
    finally:
        studio.close()

    again = RunningStudio(config, shipped, wrap=mount_page)
    try:
        page = screen(again.url)
        page.get_by_role("tab", name="Gallery").click()
        cards = page.locator("#gallery .mv-card")
        cards.nth(1).wait_for()
        assert cards.count() == 2
        assert serious(page) == []
        page.get_by_label("Search prompts").fill("panda")
        page.wait_for_function("document.querySelectorAll('#gallery .mv-card').length === 1")
        page.get_by_role("button", name="Variations").click()
        page.wait_for_function("document.querySelectorAll('#compare figure').length === 5")
        for job in again.studio.store.find(states=("queued", "running"))[0]:
            again.studio.store.cancel(job.id)

        file = tmp_path / "panda.mp4"
        file.write_bytes(again.http.get(f"/v1/videos/{done.id}/content").content)
        page = screen(again.url)
        page.get_by_role("button", name="Settings").click()
        page.locator("#recipe input[type=file]").set_input_files(file)
        page.wait_for_function(
            f"document.querySelector('#prompt textarea').value === {EXAMPLES[-1]!r}"
        )
        assert page.get_by_label("Seed", exact=True).input_value() == seed
        assert page.get_by_label("Keep this seed").is_checked()
    finally:
        again.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_both_widths_and_has_no_serious_fault(idle, screen, scheme):
    shown = {
        "Create": "#stage .mv-stage",
        "Gallery": "#gallery .mv-gallery, #gallery .mv-none",
        "Train": "figure.mv-sheet img, .mv-facts dd",
        "Data": "ul[aria-label=Clips] img",
    }
    page = screen(idle.url, scheme=scheme)
    for tab, content in shown.items():
        page.set_viewport_size({"width": 1280, "height": 900})
        page.get_by_role("tab", name=tab).click()
        page.locator(content).first.wait_for()
        assert fits(page), tab
        page.set_viewport_size({"width": 390, "height": 844})
        assert fits(page), tab
        assert serious(page) == [], tab


def test_the_keyboard_alone_is_enough(idle, screen):
    page = screen(idle.url)
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("fox, red background")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Generate":
            break
    page.keyboard.press("Enter")
    page.locator("#stage [role=status]").wait_for()
    (job,) = [job for job in idle.studio.store.find()[0] if "fox, red" in job.prompt]
    idle.studio.store.cancel(job.id)


def test_hostile_calls_of_the_page_are_refused(config, engines):
    """Gradio's own routes open no address and no path, and show no foreign client's video."""
    access = Access(tokens={"a-long-token-of-ada": "ada"})
    studio = RunningStudio(config, engines, wrap=mount_page, worker=False, access=access)
    try:
        assert httpx.get(studio.url, trust_env=False).status_code == 401
        headers = {"Authorization": "Bearer a-long-token-of-ada"}
        assert studio.http.get("/", headers=headers).status_code == 200
        for path in ("file=/etc/passwd", "file=../../etc/passwd", "file=http://127.0.0.1:1/x"):
            answer = studio.http.get(f"/gradio_api/{path}", headers=headers)
            assert answer.status_code in (400, 403, 404), (path, answer.status_code)
        for address in ("http://127.0.0.1:9/a.png", "FILE:///etc/passwd", "//host/share"):
            body = {
                "data": [{"path": address, "meta": {"_type": "gradio.FileData"}}],
                "fn_index": 0,
            }
            for call in ("queue/join", "run/predict", "call/x"):
                answer = studio.http.post(f"/gradio_api/{call}", json=body, headers=headers)
                assert answer.status_code == 403
                assert answer.json()["error"]["code"] == "foreign_file"
        began = time.monotonic()
        proxy = studio.http.get("/gradio_api/proxy=http://127.0.0.1:9/", headers=headers)
        assert proxy.status_code >= 400
        assert time.monotonic() - began < 10
    finally:
        studio.close()
