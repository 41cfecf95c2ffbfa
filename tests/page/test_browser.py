"""The page in a headless Chromium: it draws, sorts, fits a phone, prints, and can be read without JavaScript.

`make test-page`; skipped where there is no browser.
"""

import shutil
import sys
from pathlib import Path

import pytest

import page
from tests.page import folders

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
pytest.importorskip("plotly")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PHONE = {"width": 390, "height": 844}
SETTLED = "boxes => boxes.length && boxes.every(box => box.dataset.drawn)"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = folders.smollm2(tmp_path_factory.mktemp("browser") / "smollm2-135m")
    return page.write(folder).as_uri()


@pytest.fixture
def opened(browser, address):
    """A function that opens the page; what the browser complains of, or asks the network for, fails the test."""
    contexts, complaints = [], []

    def open_page(**settings):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda asked: asked.url.startswith(("http", "ws")) and complaints.append(asked.url))
        tab.goto(address)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def drawn(tab):
    """All views, after each has been looked at."""
    for figure in tab.locator("figure:has(.view)").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".view[data-drawn]").last.wait_for(timeout=60_000)
    return tab.locator(".view")


def test_every_view_draws_its_data(opened):
    tab = opened()
    views = drawn(tab)
    assert views.count() > 10
    assert views.evaluate_all(SETTLED)
    for view in views.all():
        kind, points = view.evaluate("box => [box.data[0].type, (box.data[0].z.flat()).filter(z => z !== null).length]")
        assert points > 8
        view.scroll_into_view_if_needed()
        assert view.bounding_box()["height"] > 200
        if kind == "heatmap":
            image = view.locator(".hm image").evaluate("image => image.href.baseVal")
            assert image.startswith(("data:image/png", "blob:"))
        else:
            canvas = view.locator("canvas").first
            assert canvas.evaluate("canvas => canvas.width * canvas.height") > 10_000
            picture = view.screenshot()
            assert len(picture) > 8_000  # an empty scene compresses to less
    assert tab.locator("figure:has(.view) > img").evaluate_all("images => images.every(image => image.hidden)")


def test_hover_says_the_stored_number(opened):
    tab = opened()
    figure = tab.locator("figure:has(.view)").first
    figure.scroll_into_view_if_needed()
    view = figure.locator(".view[data-drawn]").first
    view.wait_for()
    said = view.evaluate("box => box.data[0].text.flat()[0]")
    box = view.locator(".hm").bounding_box()
    tab.mouse.move(box["x"] + 3, box["y"] + 3)
    hover = view.locator(".hoverlayer .hovertext")
    hover.wait_for()
    assert hover.text_content().replace("\n", "") in said.replace("<br>", "")


def test_links_lead_somewhere(opened):
    tab = opened()
    for link in tab.locator("table a").all():
        target = link.get_attribute("href")
        link.click()
        tab.wait_for_function("target => location.hash === target", arg=target)
        assert tab.locator(target).count() == 1
    tab.goto(tab.url.partition("#")[0])
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"


def test_tables_sort_by_click_and_by_key(opened):
    tab = opened()
    table = tab.locator("section:has-text('Largest activations of every layer') table").first
    column = 1
    head = table.locator("th").nth(column)
    texts = "rows => rows.map(row => row.cells[1].textContent)"

    def numbers():
        cells = table.locator("tbody tr").evaluate_all(texts)
        return [float(cell.split(" ")[0].replace(",", "")) for cell in cells]

    before = numbers()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(before) != before
    head.locator("button").focus()
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(before, reverse=True)
    table.locator("th").nth(0).locator("button").click()
    assert head.get_attribute("aria-sort") is None
    first = table.locator("tbody tr").evaluate_all("rows => rows.map(row => Number(row.cells[0].textContent))")
    assert first == sorted(first)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [{"width": 1200, "height": 900}, PHONE], ids=["desk", "phone"])
def test_no_serious_fault_by_axe(scheme, viewport, opened):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: make test-page")
    tab = opened(color_scheme=scheme, viewport=viewport)
    drawn(tab)
    tab.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    serious = [of for of in found if of["impact"] in ("serious", "critical")]
    bad = [(of["id"], of["nodes"][0]["html"][:200]) for of in serious]
    assert bad == []


def test_a_phone_scrolls_one_way(opened):
    tab = opened(viewport=PHONE, is_mobile=True, has_touch=True)
    drawn(tab)
    tab.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for box in tab.locator(".box").all():
        assert box.evaluate("box => box.getBoundingClientRect().right <= innerWidth")


def test_without_javascript_all_can_be_read(opened):
    tab = opened(java_script_enabled=False)
    assert tab.locator(".answer").count() > 10
    for answer in tab.locator(".answer").all():
        assert answer.is_visible()
    for summary in tab.locator("summary").all():
        summary.click()
    for table in tab.locator("table").all():
        assert table.is_visible()
    assert tab.locator("img:visible").count() == tab.locator("img").count() > 20
    assert tab.locator(".view:visible, .hint:visible, th button").count() == 0


def test_a_print_has_all_of_it(opened, tmp_path):
    """Of a page that was never scrolled, too."""
    tab = opened()
    tab.emulate_media(media="print")
    images = tab.locator("img")
    assert tab.locator("img:visible").count() == images.count()
    assert images.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 100)")
    assert tab.locator(".view:visible").count() == 0
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details:not([open])").count() == 0
    tab.set_viewport_size({"width": 1032, "height": 700})  # what the margins leave of a sheet: all would shrink to fit
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1032
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details[open]").count() == 0
    tab.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 100_000


def test_no_webgl_leaves_the_pictures(opened):
    tab = opened()
    tab.add_init_script("HTMLCanvasElement.prototype.getContext = () => null;")
    tab.reload()
    figure = tab.locator("figure:has(.view)", has_text="in 3D").first
    figure.scroll_into_view_if_needed()
    tab.wait_for_timeout(500)
    assert figure.locator("img").is_visible()
    assert figure.locator(".view:visible").count() == 0


def test_the_picture_can_be_had(opened):
    tab = opened()
    figure = tab.locator("figure:has(.view)").first
    figure.scroll_into_view_if_needed()
    figure.locator(".view[data-drawn]").first.wait_for()
    button = figure.locator(".hint button")
    for pictured in (True, False):
        button.click()
        assert button.get_attribute("aria-pressed") == str(pictured).lower()
        assert figure.locator("img").is_visible() == pictured
        assert figure.locator(".view").first.is_visible() != pictured


def test_tokens_are_no_markup_in_a_view(browser, tmp_path):
    folder = folders.smollm2(tmp_path / "x", "sentence")
    [path] = folder.rglob("*_3d.json")
    folders.change(path, lambda payload: payload["results"]["tokens"].__setitem__(0, "<b>x</b>"))
    tab = browser.new_page()
    tab.goto(page.write(folder).as_uri())
    [view] = drawn(tab).all()
    assert view.evaluate("box => box.data[0].text[0]").startswith('token 0 "&lt;b&gt;x&lt;/b&gt;"<br>dim ')
    assert view.evaluate("box => box.layout.scene.yaxis.ticktext[0]") == "<\u200bb>x<\u200b/b>"
    tab.close()
