"""The report in headless Chromium, opened as a file: on a phone and on a desk, by day and by night, and on paper."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_browser import chromium  # noqa: F401 - a fixture
from tiny_reports import NAMES, tiny_run

from edgetl.outputs import Task
from export import report

pytestmark = pytest.mark.browser

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
HOSTILE = (
    "<script>document.title = 'caught'</script>",
    '"><img src=x onerror="document.title = \'caught\'">',
    "a_name_without_any_place_to_break_that_is_longer_than_the_screen_of_a_phone_is_wide_by_far",
)
CONTRAST = """() => {
    // WCAG 2: contrast of every piece of text to what is painted behind it.
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const over = (colours) => {
        canvas.globalCompositeOperation = 'source-over';
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const words = walker.currentNode.data.trim();
        if (!words || !element.getClientRects().length || element.tagName === 'title') continue;
        const behind = [];
        for (let each = element; each; each = each.parentElement) {
            behind.unshift(getComputedStyle(each).backgroundColor);
        }
        const ground = over(behind);
        const style = getComputedStyle(element);
        const ink = over([...behind, element.namespaceURI.endsWith('svg') ? style.fill : style.color]);
        const [a, b] = [light(ground), light(ink)].sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), words.slice(0, 40)]);
    }
    return found;
}"""


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each task, one of many classes, and one whose names mean harm."""
    root = tmp_path_factory.mktemp("pages")
    runs = {task: tiny_run(root / task, task) for task in NAMES}
    runs["many"] = tiny_run(root / "many", names=[f"class {i:02d}" for i in range(30)], photos=240)
    files = [f"{name.replace('/', ' ')}.jpg" for name in HOSTILE]
    runs["hostile"] = tiny_run(root / "hostile", names=HOSTILE, photos=60, file_names=files, sites=HOSTILE)
    for tiny in runs.values():
        report.main(report.Config(tiny.run.path, maps=4))
    return {name: tiny.run.path / "report.html" for name, tiny in runs.items()}


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:  # noqa: F811
    """Opens a file; fails the test on any other request, and on any message of the page."""
    contexts, asked, said, files = [], [], [], set()

    def opened(path: Path, width: int, scheme: str) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        for event in ("console", "pageerror", "dialog"):
            page.on(event, lambda message: said.append(str(message)))
        files.add(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    fetched = {url for url in asked if not url.startswith("data:image/jpeg;base64,")}
    assert fetched == files and not said


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*NAMES, "many", "hostile"])
def test_nothing_overflows_and_all_can_be_read(
    open_page: Any, pages: dict[str, Path], name: Task, width: int, scheme: str
) -> None:
    page = open_page(pages[name], width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    overflowing = page.evaluate(
        """width => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg, details')
            && e.getBoundingClientRect().right > width + 0.5).map(e => e.tagName + e.className)""",
        width,
    )
    assert not overflowing
    assert page.title().endswith("report") and "caught" not in page.title()
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    contrasts = page.evaluate(CONTRAST)
    assert len(contrasts) > 100
    assert not [each for each in contrasts if each[0] < 4.5], "WCAG 2, AA"


def test_a_phone_shows_charts_at_their_own_size_and_wide_tables_in_a_box(
    open_page: Any, pages: dict[str, Path]
) -> None:
    page = open_page(pages["many"], 390, "light")
    sizes = (
        "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    boxes = page.evaluate(sizes)
    assert min(map(max, boxes)) > 12, "pixels, of a line of text: a single digit is narrow, an upright title short"
    boxes = page.evaluate("[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])")
    assert any(inner > outer for inner, outer in boxes), "or nothing was put to the test"


def test_a_folded_table_opens_without_a_script(open_page: Any, pages: dict[str, Path]) -> None:
    page = open_page(pages["many"], 1280, "light")
    table = page.locator("table[aria-label='Class by class']")
    assert not table.is_visible()
    page.locator("summary", has_text="All 30 lines").click()
    assert table.is_visible()


def test_it_prints_in_ink_on_white(open_page: Any, pages: dict[str, Path]) -> None:
    page = open_page(pages["classification"], 1280, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    content = page.pdf(prefer_css_page_size=True)
    assert content.startswith(b"%PDF") and 2 <= content.count(b"/Type /Page\n") <= 12
