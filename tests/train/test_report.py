"""The report is one HTML file that loads nothing, says what was measured, and shows images on one absolute scale per class."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from snl_train import plots_svg, report, report_html
from snl_train.data.layouts import read_dataset
from snl_train.evaluation import evaluate
from snl_train.measures import Bootstrap

SCALE = report_html.HeatScale(floor=0.0, reference=1.0)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags and text and checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open_tags, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


class BrightnessScorer:
    size_hw = (20, 24)

    def score_inputs(self, images):
        maps = images[..., 0].astype(np.float32) / 255
        return maps.max(axis=(1, 2)), maps


@pytest.fixture
def evaluation(mvtec_root):
    return evaluate(BrightnessScorer(), read_dataset(mvtec_root).test, bootstrap=Bootstrap(resamples=20))


def test_report_is_well_formed_and_loads_nothing(evaluation):
    text = report.evaluation_report(evaluation, {"model": "x.pt", "date": "2026-01-01"})
    page = Page(text)
    for attributes in (attributes for _, attributes in page.tags):
        for name, value in attributes.items():
            if name == "src":
                assert value.startswith("data:image/png;base64,")
            if name == "href":
                assert value.startswith("#")
    assert not page.attributes("script")
    assert not page.attributes("link")
    assert "url(" not in text
    assert "http" not in text


def test_report_shows_every_class_and_each_image_once(evaluation):
    page = Page(report.evaluation_report(evaluation, {}))
    assert {attributes.get("id") for attributes in page.attributes("section")} >= {"summary", "class-0", "class-1", "provenance"}
    # Eight images, all of them among the misjudged, closest or clearest; input and heat map each.
    assert len(page.attributes("figure")) == 8
    assert len(page.attributes("img")) == 16


def test_report_says_where_the_numbers_come_from(evaluation):
    provenance = {"model": "line.pt", "sha256": "ab" * 32, "command": "snl-eval --ckpt line.pt", "config": {"seed": 7}}
    words = " ".join(Page(report.evaluation_report(evaluation, provenance)).texts)
    for expected in ("Evaluation of line.pt", "ab" * 32, "snl-eval --ckpt line.pt", '"seed": 7', "20 bootstrap resamples"):
        assert expected in words


def test_report_escapes_names_from_the_file_system(evaluation):
    text = report.evaluation_report(evaluation, {"model": "<script>alert(1)</script>", "data": 'a"b<c'})
    assert "<script>" not in text
    assert "a&quot;b&lt;c" in text


def test_report_of_good_images_alone_has_no_curve_and_no_verdicts(mvtec_root):
    samples = [sample for sample in read_dataset(mvtec_root).test if not sample.is_anomalous]
    text = report.evaluation_report(evaluate(BrightnessScorer(), samples), {})
    page = Page(text)
    assert "ROC curve" not in text
    assert "Only one kind of image" in text
    assert not [attributes for attributes in page.attributes("b") if "badge" in (attributes.get("class") or "")]


def test_misjudged_images_are_named_missed_or_false_alarm(evaluation):
    text = report.evaluation_report(evaluation, {})
    expected = {"missed": 0, "false alarm": 0, "right": 0}
    for group in evaluation.classes:
        for image in evaluation.images:
            if image.sample.class_name == group.name:
                called = image.score >= group.reference_score
                expected["right" if called == image.sample.is_anomalous else "false alarm" if called else "missed"] += 1
    for badge, count in expected.items():
        assert len(re.findall(rf'class="badge \w+">{badge}<', text)) == count


def test_heat_pictures_share_one_scale_and_leave_zero_alone():
    image = np.full((30, 40, 3), 100, np.uint8)
    zero = np.zeros((15, 20), np.float32)
    half = zero.copy()
    half[5:10, 5:10] = 0.5
    shown, untouched = report_html.heat_images(image, zero, SCALE)
    np.testing.assert_array_equal(shown, image)
    np.testing.assert_array_equal(untouched, image)
    weak = report_html.heat_images(image, half, SCALE)[1]
    strong = report_html.heat_images(image, 4 * half, SCALE)[1]
    # Twice the reference is 60 % red over the image: 100 + 0.6 * (255 - 100) = 193, 100 - 60 = 40.
    assert strong[15, 15].tolist() == [193, 40, 40]
    assert weak[15, 15].tolist() != strong[15, 15].tolist()


def test_a_floor_moves_the_scale_and_keeps_the_reference():
    image = np.full((30, 40, 3), 100, np.uint8)
    scale = report_html.HeatScale(floor=2.0, reference=3.0)
    assert scale.ceiling == 4.0
    for value, unit in ((1.0, 0.0), (2.0, 0.0), (3.0, 1.0), (4.0, 2.0), (9.0, 2.0)):
        got = report_html.heat_images(image, np.full((15, 20), value, np.float32), scale)[1]
        np.testing.assert_array_equal(got, report_html.heat_images(image, np.full((15, 20), unit, np.float32), SCALE)[1])


def test_large_pictures_shrink_to_report_size_and_the_mask_is_outlined():
    image = np.full((880, 440, 3), 100, np.uint8)
    mask = np.zeros((880, 440), bool)
    mask[400:480, 200:280] = True
    shown, heat = report_html.heat_images(image, np.zeros((8, 4), np.float32), SCALE, mask)
    assert shown.shape == heat.shape == (220, 110, 3)
    changed = (shown != 100).any(axis=2)
    assert changed[100:120, 50].all()
    assert not changed[110, 60]
    assert not (heat != 100).any()


def test_data_uri_holds_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    raw = base64.b64decode(report_html.png_data_uri(picture).removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1], picture)


def test_histogram_bars_add_up_to_the_images():
    generator = np.random.default_rng(0)
    root = ElementTree.fromstring(plots_svg.histogram_plot(generator.normal(size=50), generator.normal(3, 1, size=30), reference=1.5))
    titles = [title.text.replace(",", "").split() for title in root.iter("title")]
    assert sum(int(words[0]) for words in titles if words[1] == "good") == 50
    assert sum(int(words[0]) for words in titles if words[1] == "anomalous") == 30


@pytest.mark.parametrize("scores", [[], [0.0], [5.0, 5.0], [-1e-9, 1e9]])
def test_histogram_takes_any_scores(scores):
    text = plots_svg.histogram_plot(scores, [])
    assert "nan" not in text
    assert not scores or ElementTree.fromstring(text) is not None


def test_roc_plot_ends_in_the_corners_and_drops_points_nobody_can_see():
    steps = np.linspace(0, 1, 200_001)
    root = ElementTree.fromstring(plots_svg.roc_plot([plots_svg.RocSeries("a < b", "pixel", steps, np.sqrt(steps))]))
    (line,) = root.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert 100 < len(points) < 3000
    assert points[0][0] < points[-1][0]
    assert points[0][1] > points[-1][1]
    (chance,) = [element for element in root.iter("line") if element.get("class") == "chance"]
    assert points[0] == pytest.approx((float(chance.get("x1")), float(chance.get("y1"))), abs=0.5)
    assert points[-1] == pytest.approx((float(chance.get("x2")), float(chance.get("y2"))), abs=0.5)


def test_interval_plot_has_a_row_for_every_class_also_without_a_value():
    rows = [
        plots_svg.IntervalRow("nut", 0.9, (0.8, 0.95)),
        plots_svg.IntervalRow("a very long class name indeed", None),
        plots_svg.IntervalRow("cap", 1.0),
    ]
    root = ElementTree.fromstring(plots_svg.interval_plot(rows, title="AUPRO"))
    kinds = [element.get("class") for element in root.iter()]
    assert kinds.count("dot") == 2
    assert kinds.count("whisker") == 1
    assert "–" in [element.text for element in root.iter("text")]


def test_table_sets_totals_off_and_escapes_cells():
    text = report_html.table(["class", "AUROC"], [["<nut>", report_html.Cell("0.9", "0.8 – 1.0")], ["mean", "0.9"]], total_rows=1)
    assert "&lt;nut&gt;" in text
    assert text.count("class=total") == 1
    assert "<small>0.8 – 1.0</small>" in text
