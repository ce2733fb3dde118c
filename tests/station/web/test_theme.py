"""Every text of the screen stands out from what it stands on, in light and in dark, after WCAG 2."""

import re
from pathlib import Path

import pytest

from snl_runtime.station.web.app import STATIC

LARGE, TEXT, ENHANCED = 3.0, 4.5, 7.0
"""Lowest contrast of large text and of marks, of text, and of text that is read from afar."""


def variables(css):
    return dict(re.findall(r"--([a-z-]+):\s*(#[0-9a-f]{6});", css))


def themes():
    light, dark = (STATIC / "theme.css").read_text().split("@media (prefers-color-scheme: dark)")
    return {"light": variables(light), "dark": variables(light) | variables(dark)}


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_computed_as_wcag_says():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the well-known gray that just fails


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("shown", ["pass", "review", "reject", "error", "fault", "busy", "idle", "stale"])
def test_the_verdict_can_be_read_from_afar(theme, shown):
    colors = themes()[theme]
    assert contrast(colors[shown], colors[f"{shown}-ink"]) >= ENHANCED


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_stale_verdict_can_be_read_on_its_stripes(theme):
    colors = themes()[theme]
    assert contrast(colors["stale-stripe"], colors["stale-ink"]) >= ENHANCED


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "ground", "lowest"),
    [
        ("ink", "page", ENHANCED),
        ("ink", "card", ENHANCED),
        ("muted", "card", TEXT),
        ("muted", "page", TEXT),
        ("muted", "track", TEXT),
        ("accent-ink", "accent", TEXT),
        ("alert-ink", "alert", ENHANCED),
        ("mark-reject", "card", TEXT),
        ("mark-review", "card", TEXT),
        ("mark-pass", "card", LARGE),
        ("mark-error", "card", LARGE),
        ("accent", "card", LARGE),
        ("focus", "card", LARGE),
        ("focus", "page", LARGE),
    ],
)
def test_text_marks_and_focus_stand_out(theme, ink, ground, lowest):
    colors = themes()[theme]
    assert contrast(colors[ink], colors[ground]) >= lowest


def test_each_verdict_has_a_symbol_and_a_word_of_its_own_beside_its_color():
    script = (STATIC / "dom.js").read_text()
    shapes = dict(re.findall(r"^  (\w+): \[(\[.*\])\],$", script, flags=re.MULTILINE))
    words = dict(re.findall(r"(\w+): \"([A-Z ]+)\"", (STATIC / "tiles.js").read_text()))
    assert len(set(shapes.values())) == len(shapes) == 10
    assert shapes.keys() == words.keys()
    assert len(set(words.values())) == len(words)


def test_nothing_comes_from_elsewhere_and_nothing_is_inline():
    for path in STATIC.iterdir():
        text = path.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|//cdn|@import|url\(", text), path.name
        assert not re.search(r"\son\w+=|\sstyle=|innerHTML|insertAdjacentHTML|eval\(", text), path.name
        assert len(text.splitlines()) < 400
    for page in ("index.html", "login.html"):
        scripts = re.findall(r"<script([^>]*)>(.*?)</script>", (STATIC / page).read_text(), flags=re.DOTALL)
        assert scripts
        assert all("src=" in attributes and not body for attributes, body in scripts)


def test_every_file_that_is_referred_to_is_there():
    for path in STATIC.iterdir():
        for name in re.findall(r"/static/([\w.]+)|from \"\./([\w.]+)\"", path.read_text()):
            assert (Path(STATIC) / (name[0] or name[1])).is_file(), (path.name, name)
