"""The page in a real browser: Chromium, headless."""

import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

pytestmark = pytest.mark.slow
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
CLIPPED = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect()
  return [...svg.querySelectorAll('text')].filter(text => {
    const at = text.getBoundingClientRect()
    const beside = at.left < box.left - 1 || at.right > box.right + 1
    return at.width && (beside || at.top < box.top - 1 || at.bottom > box.bottom + 1)
  }).map(text => text.textContent)
})"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", str(own)))), None)
        if not found:
            pytest.skip("no Chromium here: the package chromium of the system, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, pages, tmp_path):
    """Opens a sample's page; at the end: it said nothing on the console and asked for nothing."""
    noise, contexts = [], []

    def show(name: str, viewport: dict, scheme: str = "light") -> Page:
        file = tmp_path / f"{name}.html"
        file.write_text(pages[name])
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda request: noise.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert noise == []


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


@pytest.mark.parametrize(
    ("name", "viewport", "scheme"),
    [("full", LAPTOP, "light"), ("full", PHONE, "dark"), ("minimal", PHONE, "light")],
    ids=["full, laptop, light", "full, phone, dark", "minimal, phone, light"],
)
def test_readable_everywhere(open_page, name, viewport, scheme):
    page = open_page(name, viewport, scheme)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate(CLIPPED) == []
    found = Axe().run(page, context={"exclude": [["svg"]]})  # drawings are one image each, with an alternative text
    assert found.violations_count == 0, found.generate_report()


def test_the_keyboard_reaches_everything(open_page):
    """Links, what scrolls, what folds; and Enter unfolds it."""
    page = open_page("full", PHONE)
    wanted = page.evaluate("document.querySelectorAll('a, summary, [tabindex]').length")
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(all => all.indexOf(document.activeElement))([...document.querySelectorAll('*')])"))
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.parentElement.open")
    assert len(reached) >= wanted
    hidden = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth && box.tabIndex < 0)"
    assert page.evaluate(f"{hidden}.length") == 0


def test_printable(open_page):
    page = open_page("full", {"width": 1032, "height": 700})  # A4 landscape within its margins
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF-")
    page.emulate_media(media="print")
    unfold(page)
    wide = "[...document.querySelectorAll('table, svg')].filter(each => each.getBoundingClientRect().right > 1032)"
    assert page.evaluate(f"{wide}.map(each => each.textContent.slice(0, 60))") == []
