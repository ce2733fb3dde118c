"""Places on the station's screen, and what it shows in tests."""

from snl_runtime.station.outbox import OutboxCounts
from snl_runtime.station.web.panels import DriftLevel, DriftLine, WebPanels

BOX = (100, 80, 200, 160)
PANELS = WebPanels(
    title="Line 3",
    drift=lambda: [DriftLine(product="washer", figure="brightness", level=DriftLevel.DRIFT, text="141, 118 at commissioning")],
    outboxes=[
        lambda: OutboxCounts(consumer="mqtt", connected=False, delivered=90, backlog=30, failures=4, last_error="connection refused", fault="")
    ],
    notes=lambda: ["a note"],
)
LONG_WORDS = WebPanels(title="A line with a very long name", notes=lambda: ["x" * 300])


def tile(page, camera="top"):
    return page.locator(f'.tile[data-camera="{camera}"]')


def word(page, camera="top"):
    return tile(page, camera).locator(".tile-word")


def sign_in(page, token):
    page.get_by_label("Token of the station").fill(token)
    page.keyboard.press("Enter")
    page.wait_for_url("**/")
