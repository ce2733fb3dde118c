"""The screen in a real Chromium: the verdict can be read and is never an old one, by eye, keyboard and screen reader, on a wall and on a phone."""

import threading

import pytest

from snl_runtime.station.triggered import TriggerMode
from snl_runtime.station.web.panels import WebPanels
from snl_runtime.types import Verdict
from station_page import BOX, PANELS, sign_in, tile, word

pytest.importorskip("uvicorn", reason="needs the extra web")
expect = pytest.importorskip("playwright.sync_api", reason="needs the package playwright").expect
expect.set_options(timeout=20_000)

pytestmark = pytest.mark.station


# The verdict.


def test_the_verdict_follows_the_parts(stage, open_page):
    stage.start()
    page = open_page()
    expect(word(page)).to_have_text("WAITING")
    symbols = set()
    for verdict in (Verdict.PASS, Verdict.REVIEW, Verdict.REJECT, Verdict.ERROR, Verdict.PASS):
        stage.show(verdict)
        expect(word(page)).to_have_text(verdict.value)
        expect(tile(page)).to_have_attribute("data-shown", verdict.value.lower())
        symbols.add(tile(page).locator(".tile-symbol").inner_html())
    assert len(symbols) == 4, "each verdict has a symbol of its own"


def test_a_fault_takes_the_place_of_the_verdict_and_a_pass_does_not_come_back(stage, open_page):
    stage.start()
    stage.show(Verdict.PASS)
    page = open_page()
    expect(word(page)).to_have_text("PASS")
    report = stage.station.on_fault("broker")
    report("broker down")
    report(None)  # gone again: the fault stays until somebody resets it
    expect(word(page)).to_have_text("FAULT")
    expect(tile(page)).to_contain_text("broker down")
    stage.station.commands["top"].reset()
    expect(word(page)).to_have_text("WAITING")


def test_a_part_under_way_on_command_hides_the_answer_to_the_one_before(stage, open_page):
    stage.start(mode=TriggerMode.COMMAND)
    commands = stage.station.commands["top"]
    commands.trigger()
    stage.show(Verdict.PASS)
    page = open_page()
    expect(word(page)).to_have_text("PASS")
    commands.trigger()
    expect(word(page)).to_have_text("BUSY")
    stage.show(Verdict.REJECT)
    expect(word(page)).to_have_text("REJECT")


def test_a_verdict_without_a_newer_part_is_no_longer_shown(stage, open_page):
    stage.start(stale_after_s=1.0)
    stage.show(Verdict.PASS, box_xyxy=BOX)
    page = open_page()
    expect(word(page)).to_have_text("NO DATA")
    expect(tile(page)).to_have_attribute("data-shown", "stale")
    expect(tile(page)).to_contain_text("No data since")
    expect(tile(page)).to_contain_text("The last part was PASS")
    expect(page.locator("#link-text")).to_have_text("live")
    stage.show(Verdict.REJECT)
    expect(word(page)).to_have_text("REJECT")


def test_a_screen_that_hears_nothing_says_so_and_dims_everything(stage, open_page):
    stage.start(stale_after_s=3600.0)
    stage.show(Verdict.PASS, box_xyxy=BOX)
    page = open_page()
    expect(word(page)).to_have_text("PASS")
    expect(page.locator("#picture")).to_be_visible()
    stage.screen.__exit__(None, None, None)
    expect(word(page)).to_have_text("NO DATA")
    expect(page.get_by_role("alert")).to_contain_text("No data since")
    expect(page.locator("#link-text")).to_have_text("no connection")
    expect(page.locator("#picture")).to_have_attribute("data-stale", "true")
    assert float(page.locator(".card.ports").evaluate("card => getComputedStyle(card).opacity")) <= 0.5


def test_a_screen_that_lost_its_station_shows_it_again_when_it_is_back(stage, open_page):
    stage.start(stale_after_s=3600.0)
    stage.show(Verdict.PASS)
    page = open_page()
    expect(word(page)).to_have_text("PASS")
    port = int(stage.url.rpartition(":")[2])
    stage.screen.__exit__(None, None, None)
    expect(word(page)).to_have_text("NO DATA")
    stage.serve(port=port)
    stage.show(Verdict.REVIEW)
    expect(word(page)).to_have_text("REVIEW")
    expect(page.locator("#link-text")).to_have_text("live")


def test_a_station_that_hangs_without_closing_the_connection_is_noticed(stage, open_page, monkeypatch):
    stage.start(stale_after_s=3600.0)
    stage.show(Verdict.PASS)
    page = open_page()
    expect(word(page)).to_have_text("PASS")
    hung, snapshot = threading.Event(), stage.station.snapshot

    def hangs():
        hung.wait(60)
        return snapshot()

    monkeypatch.setattr(stage.station, "snapshot", hangs)
    try:
        expect(word(page)).to_have_text("NO DATA")
    finally:
        hung.set()
    expect(word(page)).to_have_text("PASS")


def test_without_javascript_no_verdict_is_shown(stage, open_page):
    stage.start()
    stage.show(Verdict.PASS)
    page = open_page(java_script_enabled=False)
    expect(page.locator("#verdicts")).to_have_text("No data. If this stays, the station does not answer or JavaScript is off.")
    assert "PASS" not in page.locator("main").inner_text()


def test_the_verdict_is_large_and_whole_on_every_screen(stage, open_page):
    names = ("top", "left side", "right side", "bottom")
    stage.start(names)
    for name, verdict in zip(names, (Verdict.PASS, Verdict.REVIEW, Verdict.REJECT, Verdict.ERROR)):
        stage.show(verdict, name, reason="a long reason " * 12)
    for width, height in ((1920, 1080), (1024, 768), (390, 844)):
        page = open_page(width=width, height=height)
        for name in names:
            expect(word(page, name)).not_to_have_text("")
            letters, around = word(page, name).bounding_box(), tile(page, name).bounding_box()
            assert letters["x"] >= around["x"]
            assert letters["x"] + letters["width"] <= around["x"] + around["width"]
            assert letters["width"] >= 0.45 * around["width"]


def test_one_camera_fills_half_a_wall(stage, open_page):
    stage.start()
    stage.show(Verdict.REJECT)
    page = open_page(width=1920, height=1080)
    expect(word(page)).to_have_text("REJECT")
    assert word(page).bounding_box()["height"] >= 120
    assert tile(page).bounding_box()["width"] >= 900


# The panels.


def test_every_panel_says_what_the_station_says(stage, open_page):
    stage.start(panels=PANELS)
    for verdict in (Verdict.PASS, Verdict.PASS, Verdict.PASS, Verdict.REJECT):
        stage.show(verdict, box_xyxy=BOX)
    page = open_page()
    expect(page.locator("h1")).to_have_text("Line 3")
    expect(page).to_have_title("Line 3")
    expect(page.locator("#yield")).to_have_text("75.0 %")
    expect(page.locator("#verdict-counts")).to_contain_text("REJECT1")
    expect(page.locator("#frame-counts")).to_contain_text("Captured4")
    expect(page.locator("#latency dd").first).not_to_have_text("–")
    expect(page.locator("#signals li", has_text="Ready")).to_contain_text("on")
    expect(page.locator("#signals li", has_text="Accept")).to_contain_text("off")
    expect(page.locator("#consumers")).to_contain_text("mqtt: not connected")
    expect(page.locator("#consumers")).to_contain_text("connection refused")
    expect(page.locator("#drift")).to_contain_text("washer, brightness: drift")
    expect(page.locator("#notes")).to_contain_text("a note")
    expect(page.locator("#commands")).to_be_hidden()


def test_panels_without_anything_say_so(stage, open_page):
    stage.start()
    page = open_page()
    expect(page.locator("#drift")).to_have_text("not configured")
    expect(page.locator("#consumers")).to_have_text("none configured")
    expect(page.locator("#no-rejects")).to_be_visible()
    expect(page.locator("#no-picture")).to_have_text("No picture yet")


def test_the_live_picture_is_that_of_the_newest_part_with_and_without_heat_map(stage, open_page):
    stage.start()
    stage.show(Verdict.REJECT, box_xyxy=BOX)
    page = open_page()
    expect(page.locator("#picture-text")).to_have_text("top, trigger 1: REJECT")
    expect(page.locator("#picture")).to_have_attribute("alt", "Camera top, trigger 1: REJECT")
    with page.expect_response("**/api/frame/top.jpg?overlay=0"):
        page.get_by_label("Heat map").first.uncheck()
    stage.show(Verdict.PASS, box_xyxy=BOX)
    expect(page.locator("#picture-text")).to_have_text("top, trigger 2: PASS")
    stage.show(Verdict.ERROR, fault="unplugged")
    expect(page.locator("#no-picture")).to_have_text("no image: unplugged")
    expect(page.locator("#picture")).to_be_hidden()


def test_the_chart_shows_each_score_and_both_thresholds(stage, open_page):
    stage.start()
    for verdict, score in ((Verdict.PASS, 0.5), (Verdict.REVIEW, 1.1), (Verdict.REJECT, 2.5)):
        stage.show(verdict, score=score)
    stage.show(Verdict.ERROR)
    page = open_page()
    chart = page.locator("#chart svg")
    expect(chart.locator(".mark")).to_have_count(4)
    expect(chart.locator(".limit")).to_have_count(2)
    expect(chart.locator("text", has_text="pass 1")).to_be_visible()
    expect(chart.locator("text", has_text="reject 1.25")).to_be_visible()
    # In one look: the chart may be drawn anew between finding an element and measuring it.
    middles = """names => names.map(name => [...document.querySelectorAll(`#chart svg ${name}`)].map(element => {
        const box = element.getBoundingClientRect(); return box.y + box.height / 2; }))"""
    heights, reject, passing = page.evaluate(middles, [".mark", ".limit-reject", ".limit:not(.limit-reject)"])
    assert heights[2] < reject[0] < heights[1] < passing[0] < heights[0], "the higher the score, the higher the mark"
    expect(chart).to_have_attribute("aria-label", "Chart of the last 4 scores: 2 above the pass threshold. The newest is –, "
                                    "the pass threshold 1, the reject threshold 1.25.")  # fmt: skip
    stage.show(Verdict.PASS)
    expect(chart.locator(".mark")).to_have_count(5)


def test_a_part_that_did_not_pass_opens_in_large_with_its_regions(stage, open_page):
    stage.start()
    stage.show(Verdict.REJECT, box_xyxy=BOX, reason="a scratch")
    stage.show(Verdict.ERROR, fault="unplugged")
    page = open_page()
    expect(page.locator("#rejects li")).to_have_count(2)
    page.locator("#rejects button").nth(1).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("REJECT Trigger 1, washer")
    expect(dialog).to_contain_text("a scratch")
    expect(dialog.locator("tbody tr")).to_have_text(["1100, 80100 × 802"])
    page.wait_for_function("document.getElementById('part-picture').naturalWidth === 480")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#rejects button").nth(1)).to_be_focused()
    page.locator("#rejects button").nth(0).click()
    expect(dialog).to_contain_text("The frame has no image")


def test_text_from_outside_is_never_markup(stage, open_page):
    evil = "<img src=x onerror=alert(1)>"
    stage.start(panels=WebPanels(title=evil, notes=lambda: [evil]))
    stage.show(Verdict.ERROR, product=evil, reason=evil)
    page = open_page()
    expect(page.locator("#notes")).to_have_text(evil)
    expect(page.locator("#rejects")).to_contain_text(evil)
    assert page.locator("img[src='x']").count() == 0


def test_of_several_cameras_one_is_shown_in_detail(stage, open_page):
    stage.start(("top", "side"))
    stage.show(Verdict.PASS, "top")
    stage.show(Verdict.REJECT, "side")
    page = open_page()
    expect(word(page, "top")).to_have_text("PASS")
    expect(word(page, "side")).to_have_text("REJECT")
    expect(page.locator("#picture-text")).to_have_text("top, trigger 1: PASS")
    tile(page, "side").click()
    expect(tile(page, "side")).to_have_attribute("aria-pressed", "true")
    expect(tile(page, "top")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#picture-text")).to_have_text("side, trigger 1: REJECT")


# Commands.


def test_whoever_signs_in_can_trigger_and_reset(stage, open_page, token):
    stage.start(mode=TriggerMode.COMMAND, token_file=stage.token_file())
    page = open_page()
    assert page.url.endswith("/login")
    page.get_by_label("Token of the station").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the token of this station.")
    sign_in(page, token)
    page.get_by_role("button", name="Trigger one inspection").click()
    expect(page.locator("#command-answer")).to_have_text("Trigger 1 begun")
    expect(word(page)).to_have_text("BUSY")
    expect(page.get_by_role("button", name="Trigger one inspection")).to_be_disabled()
    stage.show(Verdict.PASS)
    expect(word(page)).to_have_text("PASS")
    report = stage.station.on_fault("broker")
    report("broker down")
    report(None)  # gone again: the fault stays until somebody resets it
    page.get_by_role("button", name="Reset fault").click()
    expect(page.locator("#command-answer")).to_have_text("The fault is reset")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
