"""The screen in a real Chromium, for everybody: by keyboard, with a screen reader, on every width, light and dark."""

import pytest

from snl_runtime.types import Verdict
from station_page import BOX, LONG_WORDS, PANELS, sign_in, tile, word

pytest.importorskip("uvicorn", reason="needs the extra web")
expect = pytest.importorskip("playwright.sync_api", reason="needs the package playwright").expect
expect.set_options(timeout=20_000)

pytestmark = pytest.mark.station


def test_the_focus_follows_the_page_and_can_be_seen(stage, open_page, token):
    stage.start(("top", "side"), token_file=stage.token_file())
    stage.show(Verdict.REJECT, "top", box_xyxy=BOX)
    page = open_page()
    expect(page.get_by_label("Token of the station")).to_be_focused()
    sign_in(page, token)
    expect(page.locator("#rejects button")).to_have_count(1)
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e); const box = e.getBoundingClientRect();"
            " return [e.id || e.dataset.camera || e.textContent.trim(), s.outlineStyle, parseFloat(s.outlineWidth), box.top + scrollY]; }"
        )
        order.append(focused)
    assert [name for name, *_ in order[:4]] == ["Sign out", "top", "side", "overlay"]
    assert order[4][0].startswith("REJECT")
    assert all(style == "solid" and width >= 3 for _, style, width, _ in order[:5])
    tops = [top for *_, top in order[:5]]
    assert tops == sorted(tops), "from the top of the page to its end"


def test_a_dialog_and_a_camera_open_by_keyboard(stage, open_page):
    stage.start(("top", "side"))
    stage.show(Verdict.REJECT, "top", box_xyxy=BOX)
    page = open_page()
    expect(page.locator("#rejects button")).to_have_count(1)
    tile(page, "side").focus()
    page.keyboard.press("Space")
    expect(tile(page, "side")).to_have_attribute("aria-pressed", "true")
    page.locator("#rejects button").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    for _ in range(6):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || document.getElementById('part').contains(document.activeElement)")


def test_a_screen_reader_hears_each_new_verdict(stage, open_page):
    stage.start()
    page = open_page()
    announcer = page.locator("#announcer")
    assert (announcer.get_attribute("aria-live"), announcer.get_attribute("role")) == ("polite", "status")
    expect(announcer).to_contain_text("WAITING")
    stage.show(Verdict.PASS)
    expect(announcer).to_contain_text("PASS. washer, trigger 1")
    stage.show(Verdict.REJECT)
    expect(announcer).to_contain_text("REJECT. washer, trigger 2")


def test_everything_has_a_name_for_a_screen_reader(stage, open_page):
    stage.start(("top", "side"), panels=PANELS)
    stage.show(Verdict.REJECT, box_xyxy=BOX)
    page = open_page()
    expect(page.locator("#rejects button")).to_have_count(1)
    expect(page.locator("#picture")).to_be_visible()
    snapshot = page.locator("body").aria_snapshot()
    for said in ('heading "Line 3" [level=1]', 'region "Verdicts"', 'heading "Live picture" [level=2]', 'checkbox "Heat map"', 'img "Chart of'):
        assert said in snapshot, snapshot
    assert page.evaluate("document.documentElement.lang") == "en"
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('button, input')].filter(e => !e.textContent.trim() && !(e.labels && e.labels.length)).length"
    )
    assert unnamed == 0
    assert page.locator("img:not([alt])").count() == 0


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_nothing_needs_scrolling_sideways(stage, open_page, width):
    stage.start(("top", "a camera with a long name"), panels=LONG_WORDS)
    stage.show(Verdict.ERROR, reason="a_reason_without_any_space_" * 8, product="product" * 12)
    stage.show(Verdict.REJECT, box_xyxy=BOX)
    page = open_page(width=width, height=844)
    expect(page.locator("#rejects li")).to_have_count(2)
    expect(page.locator("#picture")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#rejects button").last.click()
    assert page.get_by_role("dialog").bounding_box()["width"] <= width


def test_it_is_light_or_dark_as_the_user_has_it(stage, open_page, tmp_path):
    stage.start(panels=PANELS)
    stage.show(Verdict.PASS)
    stage.show(Verdict.REJECT, box_xyxy=BOX)
    brightness = {}
    for dark in (False, True):
        page = open_page(dark=dark)
        expect(word(page)).to_have_text("REJECT")
        expect(page.locator("#picture")).to_be_visible()
        name = "dark" if dark else "light"
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        red, green, blue = (
            int(value) for value in page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").rstrip(")").split(",")
        )
        brightness[name] = (red + green + blue) / 3
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert brightness["light"] > 200 > 50 > brightness["dark"]
