"""The gallery page in a real browser: search, comparison, keyboard, phone, darkness, hostile text.

Every test also holds that the page logged nothing, broke no rule of its own policy and asked only for itself.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pytest

from fourm.data.layout import Place
from fourm.views.album import open_album
from fourm.views.gallery import PAGE, write_gallery
from tests.folders import CAPTION, FIRST, SECOND, noise, put, write_record
from tests.gallery_folder import Made, build_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
# Everything that axe-core can find in a page, by the names of its states.
STATES = {
    "overview": "",
    "nothing found": "byId('search').value = 'zzz'; byId('search').dispatchEvent(new Event('input'))",
    "keys": "openHelp()",
    "sample": "location.hash = hashOf(samples[3].key)",
    "wipe": "location.hash = hashOf(samples[0].key); route(); detail.viewer.setMode('wipe')",
    "beside": "location.hash = hashOf(samples[0].key); route(); detail.viewer.setMode('beside')",
}
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = (
    '</script><script>window.broken = "script"</script>',
    "<img src=x onerror=\"window.broken = 'image'\">",
    "\"'`&lt;b&gt; {{7*7}} ${window.broken=1} <!-- <![CDATA[ ]]>",
    "مكعب أحمر فوق دائرة زرقاء",
    "赤い円と青い四角 \U0001f7e5",
    "\u202eright to left\u202c\u2028next\u0000line",
)
PROMPTS = (
    "a large red circle above a small blue square",
    "a green triangle",
    "a small blue circle left of a large green square",
    "a yellow square",
    "",
    "Ein GROSSER roter Kreis",
    *HOSTILE,
)
NAMES = (*(f"{index:06d}" for index in range(6)), "x<script>",
         'x"><img src=x onerror=alert(1)>', "x y#c?d%20",
         "كلب", "~$(rm -rf ~)", "~it's; ls")  # fmt: skip
RGB, FINE, LABELS = "tok_rgb@64", "tok_rgb@128", "tok_semseg@64"
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium; its absence is a failure where FOURM_NEEDS_BROWSER is set, as it is in CI."""
    if not Path(CHROMIUM).exists() and not os.environ.get("FOURM_NEEDS_BROWSER"):
        pytest.skip("no Chromium here (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a dozen samples with three variations, super-resolution, films and a failure."""
    root = tmp_path_factory.mktemp("gallery") / "my results"
    made = Made(PROMPTS, variations=3, names=NAMES, sr=True, preview=True, failed={3})
    return _page_of(build_folder(root, made))


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two pictures, of which a model has told captions, boxes and depth."""
    root = tmp_path_factory.mktemp("said") / "out"
    given, told = Place("rgb", ".png", True, "rgb@64", "value", True), replace(CAPTION, is_condition=False)
    boxes, depth = Place("det", ".json", modality="det"), Place("depth", ".npy", modality="tok_depth@64")
    write_record(root, [given, replace(told, shared=False), boxes, depth])
    for number, key in enumerate((FIRST, SECOND)):
        put(root, given, key, noise(number, 64, 64, 3))
        put(root, told, key, ("a lighthouse by the sea", "two cups of tea")[number])
        name = ("tower", "cup")[number]
        put(
            root,
            boxes,
            key,
            json.dumps({"instances": [{"boxes": [0, 0, 1, 1], "class_name": name, "score": 1}]}),
        )
        put(root, depth, key, np.linspace(-1.5, 2, 4096, dtype=np.float32).reshape(64, 64))
    return _page_of(root)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 2,000 samples."""
    prompts = [f"{('red', 'green', 'blue')[i % 3]} thing number {i}" for i in range(2000)]
    return _page_of(build_folder(tmp_path_factory.mktemp("crowd"), Made(prompts, side=8, labels=False)))


def _page_of(root: Path) -> Path:
    path = root / "plots" / PAGE
    write_gallery(open_album(root), path)
    return path


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Open]:
    """Opens a page in a window of its own, without a network; see the head of this file."""
    contexts: list[Any] = []
    logged: list[str] = []
    asked: list[str] = []
    pages: set[str] = set()

    def open_page(path: Path, key: str = "", width: int = 1280, height: int = 800, **options: Any) -> "Page":
        context = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, **options
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: logged.append(message.text))
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('policy', e.violatedDirective))"
        )
        pages.add(path.as_uri())
        page.goto(path.as_uri() + (f"#{key}" if key else ""))
        until(page, "samples.length === ALBUM.total && document.readyState === 'complete'")
        if not key:
            page.wait_for_selector(".frame img")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert logged == []
    others = {url.partition("#")[0] for url in asked if not url.startswith("data:")}
    assert others <= pages


def until(page: "Page", condition: str, argument: object = None) -> None:
    """Wait for a condition; Playwright's own way is code from a string, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition, argument):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never came true: {condition}")


def shown(page: "Page") -> list[str]:
    return page.evaluate("grid.shown.map((sample) => sample.key)")


def focused(page: "Page") -> str:
    """What has the focus, as somebody who listens hears it."""
    return page.evaluate(
        "(document.activeElement.getAttribute('aria-label') || document.activeElement.textContent).trim()"
    )


def test_search_finds_words_in_any_order_and_names(gallery: Path, visit: Open) -> None:
    page = visit(gallery)
    page.fill("#search", "BLUE circle")
    assert shown(page) == ["00000/000000", "00000/000002"]
    assert page.inner_text("#status") == "2 of 12 samples"
    page.fill("#search", "grosser")
    assert shown(page) == ["00000/000005"]
    page.fill("#search", "000003")
    assert shown(page) == ["00000/000003"]
    page.fill("#search", "no such thing")
    assert page.is_visible("text=No sample fits.")
    page.click("#clear")
    assert len(shown(page)) == len(PROMPTS)
    assert page.evaluate("document.activeElement.id") == "search"


def test_search_finds_what_a_model_has_said_and_shows_it(said: Path, visit: Open) -> None:
    page = visit(said)
    assert page.locator(".card .words").all_inner_texts() == ["a lighthouse by the sea", "two cups of tea"]
    page.fill("#search", "tea CUPS")
    assert shown(page) == [SECOND.text]
    page.fill("#search", "tower")
    assert shown(page) == [FIRST.text]
    assert page.inner_text(".card .words") == "tower", "the text that was found"
    page.click(".card")
    assert page.inner_text("#prompt") == "a lighthouse by the sea"
    assert page.inner_text(".title .key") == f"{FIRST.text} · no prompt; the title was made"
    assert "a lighthouse by the sea" in page.inner_text(".panels"), "as any other result"


def test_depth_has_its_scale_below_it(said: Path, visit: Open) -> None:
    page = visit(said, FIRST.text)
    assert page.locator(".turbo").count() == 0
    page.get_by_role("button", name="Depth").click()
    assert page.locator(".turbo span").all_inner_texts() == ["-1.5", "2"]


@pytest.mark.parametrize(("key", "first"), [("ArrowRight", 0), ("ArrowDown", 0), ("Home", 0), ("End", 1999)])
def test_keys_work_as_soon_as_the_page_is_open(crowd: Path, visit: Open, key: str, first: int) -> None:
    page = visit(crowd)
    page.keyboard.press(key)
    assert page.evaluate("grid.current") == first
    assert f"number {first}" in focused(page)
    page.keyboard.press("ArrowLeft" if first else "ArrowRight")
    assert page.evaluate("grid.current") == abs(first - 1)
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail[open]")


def test_keys_begin_in_the_window_and_after_a_button_too(crowd: Path, visit: Open) -> None:
    page = visit(crowd)
    page.evaluate("scrollTo(0, 20 * grid.stepY)")
    page.click("#theme")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("grid.current / grid.columns") in (19, 20, 21)
    top = page.evaluate("scrollY / grid.stepY")
    assert 19 <= top <= 21


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1280),
        ("dark", 390),
        pytest.param("light", 390, marks=pytest.mark.more),
        pytest.param("dark", 1280, marks=pytest.mark.more),
    ],
)
def test_axe_finds_nothing(gallery: Path, visit: Open, scheme: str, width: int) -> None:
    if not os.environ.get("FOURM_NEEDS_BROWSER"):
        pytest.importorskip("axe_playwright_python")
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    options = {"color_scheme": scheme, "reduced_motion": "reduce", "bypass_csp": True}
    for state, script in STATES.items():
        page = visit(gallery, width=width, **options)
        page.evaluate(axe)
        page.evaluate(f"() => {{ {script} }}")
        page.wait_for_timeout(100)
        found = page.evaluate("async () => (await axe.run(document))")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == [], state
        assert len(found["passes"]) > 15


def test_a_modality_fills_the_cards_and_leaves_out_samples_without_it(
    tmp_path: Path, gallery: Path, visit: Open
) -> None:
    page = visit(gallery)
    best = page.get_attribute(".frame img", "src")
    page.get_by_role("radio", name="Semantic segmentation").check(force=True)
    page.wait_for_selector(".frame img.pixels")
    assert page.get_attribute(".frame img", "src") != best
    assert page.evaluate("document.querySelector('.frame img').naturalWidth") == 64

    root = build_folder(tmp_path / "out", Made(PROMPTS[:3]))
    (root / "semseg" / "00000" / "000001.png").unlink()
    page = visit(_page_of(root))
    page.get_by_role("radio", name="Semantic segmentation").check(force=True)
    assert shown(page) == ["00000/000000", "00000/000002"]


def test_cards_show_the_variation_that_is_asked_for(gallery: Path, visit: Open) -> None:
    page = visit(gallery)
    sources = set()
    for variation in ("0", "1", "2"):
        page.select_option("#variation", variation)
        page.wait_for_selector(".frame img")
        sources.add(page.get_attribute("li[aria-posinset='1'] .frame img", "src"))
    assert len(sources) == 3
    page.wait_for_selector("li[aria-posinset='4'] .frame.empty")
    assert page.inner_text("li[aria-posinset='4'] .frame") == "Failed for variation 2"


def test_failures_are_marked_counted_and_told(gallery: Path, visit: Open) -> None:
    page = visit(gallery)
    assert page.inner_text("#failed-pick") == "With problems (1)"
    page.check("#failed", force=True)
    assert shown(page) == ["00000/000003"]
    assert "problem" in page.inner_text(".card")
    page.click(".card")
    assert "variation 2" in page.inner_text(".notice")
    assert "failed: a tokenizer said <no>" in page.inner_text(".notice")
    assert page.locator(".tile.blank").count() >= 1


def test_a_sample_opens_on_its_finest_picture_with_all_that_is_known(gallery: Path, visit: Open) -> None:
    page = visit(gallery, "00000/000000")
    assert page.inner_text("#prompt") == PROMPTS[0]
    assert page.evaluate("detail.viewer.state.mode") == "single"
    assert page.get_attribute(".stage img", "alt") == "RGB, super-resolution, variation 0"
    facts = page.inner_text(".made")
    for fact in ("demo", "demo-sr", "7", "--target tok_rgb@64:steps=4", "caption, tok_rgb@64"):
        assert fact in facts
    assert page.locator(".tile").count() == 9
    page.get_by_role("button", name="Semantic segmentation, variation 1").click()
    legend = page.locator(".legend li").all_inner_texts()
    assert len(legend) == 2
    assert (
        len(page.evaluate("[...document.querySelectorAll('.legend .swatch')].map(s => s.style.background)"))
        == 2
    )


def test_zooming_keeps_the_point_and_pixels_sharp(gallery: Path, visit: Open) -> None:
    page = visit(gallery, "00000/000000")
    for _ in range(2):
        page.keyboard.press("+")
    assert "scale(2)" in page.get_attribute(".stage img", "style")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.stage img')).imageRendering") == "pixelated"
    )
    page.focus(".stage")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("detail.viewer.state.x") > 0
    assert page.evaluate("detail.sample.key") == "00000/000000"
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] - 900, box["y"] + 200, steps=3)
    page.mouse.up()
    assert page.evaluate("detail.viewer.state.x") == -0.5, "the picture's edge is where it ends"
    for _ in range(12):
        page.keyboard.press("+")
    assert page.inner_text(".scale") == "16×"
    page.keyboard.press("0")
    assert page.inner_text(".scale") == "1×"
    page.mouse.dblclick(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    assert page.inner_text(".scale") == "3×"
    assert page.evaluate("detail.viewer.state.x") == pytest.approx(-0.5, abs=0.02)


def test_the_wipe_compares_super_resolution_with_its_base(gallery: Path, visit: Open) -> None:
    page = visit(gallery, "00000/000000")
    page.keyboard.press("c")
    assert page.locator(".stage img").count() == 2
    alts = page.evaluate("[...document.querySelectorAll('.stage img')].map((img) => img.alt)")
    assert alts == ["RGB, super-resolution, variation 0", "RGB, variation 0"]
    wipe = page.locator("input.wipe")
    wipe.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert wipe.input_value() == "60"
    assert wipe.get_attribute("aria-valuetext") == "60% of RGB, super-resolution, variation 0"
    assert page.evaluate("document.querySelector('.layer.two').style.clipPath") == "inset(0px 0px 0px 60%)"
    assert page.evaluate("detail.sample.key") == "00000/000000", "arrows of a slider turn no page"
    edge, box = page.locator(".edge").bounding_box(), page.locator(".layer.one").bounding_box()
    page.mouse.move(edge["x"] + edge["width"] / 2, edge["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, edge["y"] + 40, steps=3)
    page.mouse.up()
    assert 23 <= int(wipe.input_value()) <= 27


def test_variations_are_compared_side_by_side(gallery: Path, visit: Open) -> None:
    page = visit(gallery, "00000/000000")
    page.get_by_role("button", name="RGB, variation 0").click()
    page.get_by_role("button", name="RGB, variation 2").click(modifiers=["Shift"])
    assert page.evaluate("detail.viewer.state.mode") == "wipe"
    page.get_by_role("radio", name="Side by side").check(force=True)
    one, two = (page.locator(f".layer.{name}").bounding_box() for name in ("one", "two"))
    assert two["x"] >= one["x"] + one["width"]
    assert two["y"] == one["y"]
    assert page.locator(".tag").all_inner_texts() == ["RGB · v0", "RGB · v2"]
    sources = page.evaluate("[...document.querySelectorAll('.stage img')].map((img) => img.src)")
    assert sources[0] != sources[1]


def test_the_film_shows_which_step_decided_which_token(gallery: Path, visit: Open) -> None:
    page = visit(gallery, "00000/000000")
    page.get_by_role("button", name="RGB, variation 1").click()
    assert page.locator(".film select option:checked").inner_text() == "RGB · v1"
    assert page.inner_text(".where") == "Step 8 of 5 to 8\n64 of 64 tokens decided"
    last = page.get_attribute(".screen img", "src")
    page.keyboard.press(",")
    page.keyboard.press(",")
    assert page.inner_text(".where") == "Step 6 of 5 to 8\n32 of 64 tokens decided"
    assert page.get_attribute(".screen img", "src") != last
    assert page.get_attribute(".strip [aria-current]", "aria-label") == "Step 6, 32 tokens"
    # Tokens of the first step are in its colour, those of the last two not painted.
    first, last_row = page.evaluate(
        """() => { const map = document.querySelector('.map canvas');
        const { data } = map.getContext('2d').getImageData(map.width / 16, 0, 1, map.height);
        return [1 / 16, 15 / 16].map((y) => [...data.slice(4 * Math.floor(map.height * y)).slice(0, 4)]); }"""
    )
    assert first == [68, 1, 84, 255]
    assert last_row == [0, 0, 0, 0]
    page.locator(".strip button").nth(0).click()
    assert page.inner_text(".where strong") == "Step 5 of 5 to 8"
    page.hover(".map canvas", position={"x": 4, "y": 4})
    assert page.inner_text(".token") == "Row 1, column 1: step 5"
    page.get_by_role("button", name="Play").click()
    until(page, "document.querySelector('.where strong').textContent === 'Step 8 of 5 to 8'")


def test_a_film_tells_which_tokens_were_given(tmp_path: Path, visit: Open) -> None:
    root = build_folder(tmp_path / "out", Made(PROMPTS[:1], preview=True))
    path = root / "preview" / "tok_rgb@64" / "00000" / "000000-order.npy"
    order = np.load(path)
    order[:32] = 0
    np.save(path, order)
    page = visit(_page_of(root), FIRST.text)
    assert page.inner_text(".where strong") == "Step 8 of 5 to 8"
    assert page.is_visible(".map .swatch")
    page.hover(".map canvas", position={"x": 4, "y": 4})
    assert page.inner_text(".token") == "Row 1, column 1: given"


def test_everything_can_be_done_by_keyboard(gallery: Path, visit: Open) -> None:
    page = visit(gallery)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("circle/")
    assert page.input_value("#search") == "circle/"
    page.keyboard.press("Escape")
    assert page.input_value("#search") == ""
    page.keyboard.press("ArrowDown")
    columns = page.evaluate("grid.columns")
    assert PROMPTS[0] in focused(page)
    page.keyboard.press("ArrowRight")
    assert PROMPTS[1] in focused(page)
    page.keyboard.press("ArrowDown")
    assert page.evaluate("grid.current") == 1 + columns
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail[open]")
    assert focused(page) == PROMPTS[0]
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#prompt") == PROMPTS[1]
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "mode":
            break
    page.keyboard.press("ArrowRight")
    assert page.evaluate("detail.viewer.state.mode") == "wipe", "arrows belong to the control with the focus"
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    assert PROMPTS[1] in focused(page), "the focus is on the sample that was looked at last"
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")
    page.keyboard.press("Escape")
    assert PROMPTS[1] in focused(page)


def test_tab_reaches_each_control_of_a_sample_and_all_have_names(gallery: Path, visit: Open) -> None:
    page = visit(gallery, "00000/000000")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            focused(page) or page.evaluate("document.activeElement.labels?.[0]?.textContent ?? ''")
        )
    for name in ("Next", "Zoom in", "Decoding step", "Play", "Copy: Command that repeats this sample"):
        assert name in reached
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, a, [role=img], [role=group]')]
        .filter((node) => node.checkVisibility() && !(node.getAttribute('aria-label')
            || node.textContent.trim() || node.labels?.[0]?.textContent.trim()))
        .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.evaluate("[...document.images].filter((img) => !img.hasAttribute('alt')).length") == 0


def test_a_link_leads_to_a_sample_and_the_way_back_to_the_grid(gallery: Path, visit: Open) -> None:
    page = visit(gallery, "00000/000002")
    assert page.inner_text("#prompt") == PROMPTS[2]
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    assert "#" not in page.url
    page.click("li[aria-posinset='2'] a")
    page.wait_for_selector("#detail[open]")
    assert page.url.endswith("#00000/000001")
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("#00000/000002")
    page.go_back()
    page.wait_for_selector("#detail", state="hidden")
    page.go_forward()
    page.wait_for_selector("#detail[open]")
    page.evaluate("location.hash = '#no/such/sample'")
    page.wait_for_selector("#detail", state="hidden")
    page.evaluate("location.hash = '#%E0%A4%A'")
    assert page.is_visible("#grid")


def test_every_name_can_be_linked_to(gallery: Path, visit: Open) -> None:
    page = visit(gallery)
    for name in NAMES:
        page.goto(f"{gallery.as_uri()}#00000/{quote(name)}")
        until(page, "(key) => detail?.sample.key === key", f"00000/{name}")
        assert page.inner_text(".title .key") == f"00000/{name}"


def test_no_text_becomes_markup(gallery: Path, visit: Open) -> None:
    page = visit(gallery)
    for key in shown(page):
        page.evaluate("(key) => { location.hash = hashOf(key); }", key)
        until(page, "(key) => detail?.sample.key === key", key)
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:image/\"])').length") == 0
    assert page.evaluate("[...document.scripts].filter((s) => s.type !== 'application/json').length") == 1
    prompts = page.evaluate("samples.map((sample) => sample.prompt)")
    assert set(HOSTILE) <= set(prompts)
    page.evaluate("location.hash = ''")
    page.fill("#search", "onerror")
    assert HOSTILE[1] in page.locator(".card .words").all_inner_texts()


def test_the_command_that_repeats_a_sample_is_copied_whole(gallery: Path, visit: Open) -> None:
    page = visit(gallery, "00000/000000")
    page.get_by_role("button", name="RGB, variation 1").click()
    page.get_by_role("button", name="Copy: Command that repeats this sample").click()
    page.wait_for_selector("text=Copied")
    page.keyboard.press("Escape")
    page.click("#search")
    page.keyboard.press("Control+V")
    root = gallery.parent.parent
    assert page.input_value("#search") == (
        f"fourm generate --replay '{root}/rgb/00000/000000-v1.png' --out again"
    )


@pytest.mark.parametrize("key", ["", "00000/000000", "00000/000003"])
def test_nothing_is_wider_than_a_phone(gallery: Path, visit: Open, key: str) -> None:
    page = visit(gallery, key, width=360, height=740, has_touch=True)
    scroller = "document.querySelector('#detail')" if key else "document.documentElement"
    for mode in ("single", "wipe", "beside") if key else ("",):
        if mode:
            page.evaluate(f"detail.viewer.setMode('{mode}')")
        assert page.evaluate(f"{scroller}.scrollWidth") == 360
    wide = page.evaluate(
        """[...document.querySelectorAll('body *')].filter((node) => node.checkVisibility()
        && !node.closest('.strip, .chips, .unseen') && node.getBoundingClientRect().right > 360.5)
        .map((node) => node.className || node.tagName)"""
    )
    assert wide == []
    if not key:
        assert page.evaluate("grid.columns") == 2


CONTRAST = """() => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
  const paint = canvas.getContext('2d', { willReadFrequently: true });
  const over = (...colours) => {
    for (const colour of colours) { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => getComputedStyle(node).backgroundColor;
  const apart = '.unseen, :disabled, script, legend';
  const found = {};
  for (const node of document.querySelectorAll('body *')) {
    const text = [...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
    if (!text || !node.checkVisibility({ opacityProperty: true }) || node.closest(apart)) continue;
    const grounds = [];
    for (let each = node; each; each = each.parentElement) grounds.unshift(ground(each));
    const paper = over('white', ...grounds);
    const ink = over(`rgb(${paper.join(' ')})`, getComputedStyle(node).color);
    const [low, high] = [light(paper), light(ink)].sort((a, b) => a - b);
    const name = `${node.tagName} ${node.className}`;
    found[name] = Math.min(found[name] ?? 99, (high + 0.05) / (low + 0.05));
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(gallery: Path, visit: Open, scheme: str) -> None:
    grounds = set()
    for key in ("", "00000/000003"):
        page = visit(gallery, key, color_scheme=scheme)
        ratios = page.evaluate(CONTRAST)
        assert len(ratios) > 8
        assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
        grounds.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds == {"rgb(250, 250, 248)" if scheme == "light" else "rgb(19, 20, 22)"}


def test_colours_can_be_chosen_against_the_system(gallery: Path, visit: Open) -> None:
    page = visit(gallery, color_scheme="light")
    page.keyboard.press("t")
    page.keyboard.press("t")
    assert page.inner_text("#theme") == "Theme: dark"
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(19, 20, 22)"
    page.reload()
    assert page.inner_text("#theme") == "Theme: dark"


def test_nothing_moves_where_motion_is_not_wanted(gallery: Path, visit: Open) -> None:
    still = visit(gallery, "00000/000000", reduced_motion="reduce")
    moving = visit(gallery, "00000/000000", reduced_motion="no-preference")
    names = "getComputedStyle(document.querySelector('#detail .page')).animationName"
    assert (still.evaluate(names), moving.evaluate(names)) == ("none", "appear")


def test_two_thousand_samples_keep_the_document_small(crowd: Path, visit: Open) -> None:
    page = visit(crowd)
    assert page.inner_text("#status") == "2,000 samples"
    count = "document.querySelectorAll('.card').length"
    most = page.evaluate("grid.columns * (2 * Math.ceil(innerHeight / grid.stepY) + 4) + 1")
    assert most < 100
    height = page.evaluate("document.documentElement.scrollHeight")
    for part in (0, 0.3, 0.31, 0.8, 1, 0.1):
        page.evaluate("(to) => scrollTo(0, to)", part * height)
        until(
            page,
            """() => [...document.querySelectorAll('.card')].filter((card) => {
            const box = card.getBoundingClientRect(); return box.bottom > 0 && box.top < innerHeight; })
            .every((card) => card.querySelector('img')?.naturalWidth === 8)""",
        )
        assert 0 < page.evaluate(count) <= most
        assert page.evaluate("document.images.length") <= most
        assert page.evaluate("parsed.size") <= 24
    page.fill("#search", "blue number 19")
    found = [i for i in range(2000) if i % 3 == 2 and "19" in str(i)]
    assert page.inner_text("#status") == f"{len(found)} of 2,000 samples"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    assert f"number {found[-1]}" in focused(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail[open]")
    assert page.inner_text(".count") == f"{len(found)} of {len(found)}"
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    assert f"number {found[-1]}" in focused(page)


def test_the_first_cards_do_not_wait_for_the_last(crowd: Path, browser: "Browser", tmp_path: Path) -> None:
    """A page that was cut off, as if the rest had not been read yet, shows what is there."""
    half = tmp_path / PAGE
    data = crowd.read_bytes()
    half.write_bytes(data[: len(data) // 2])
    page = browser.new_page()
    page.goto(half.as_uri())
    page.wait_for_selector(".frame img")
    assert 500 < page.evaluate("samples.length") < 1500
    page.close()
