"""Sources and sinks of third parties are found through entry points, and whatever they raise names them."""

import json
import sys
import textwrap

import pytest

from snl_runtime.cli.run import main
from snl_runtime.errors import ConfigError, SnlError
from snl_runtime.line.plugins import find_source, open_sink

MODULE = """
import os, pathlib, signal
from snl_runtime.line.sources import ImageFolderSource

def source(address, *, product):
    return ImageFolderSource(address.partition("://")[2], product=product)

class PlcSink:
    def __init__(self, argument):
        self.path = pathlib.Path(argument)
    def __enter__(self):
        self.lines = self.path.open("w")
        return self
    def __exit__(self, *details):
        self.lines.close()
    def emit(self, frame, result):
        self.lines.write(f"{frame.index} {result.verdict.value}\\n")

class Impatient(PlcSink):
    def __init__(self, argument):
        super().__init__(argument)
        signal.raise_signal(signal.SIGTERM)

def broken(*args, **kwargs):
    raise RuntimeError("no license")
"""
ENTRY_POINTS = """
[snl_edge.sources]
shelf = line_plugin_for_tests:source
broken = line_plugin_for_tests:broken
absent = line_plugin_for_tests:missing_name
[snl_edge.sinks]
plc = line_plugin_for_tests:PlcSink
impatient = line_plugin_for_tests:Impatient
broken = line_plugin_for_tests:broken
"""


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """An installed distribution, as pip would leave it."""
    folder = tmp_path / "site"
    (folder / "line_plugin-1.0.dist-info").mkdir(parents=True)
    (folder / "line_plugin_for_tests.py").write_text(MODULE)
    (folder / "line_plugin-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: line-plugin\nVersion: 1.0\n")
    (folder / "line_plugin-1.0.dist-info" / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("line_plugin_for_tests", None)


def test_source_and_sink_of_a_plug_in_run_a_line(plug_in, engine, parts, tmp_path, capsys):
    told = tmp_path / "told.txt"
    assert main(["--engine", str(engine), "--camera", f"shelf://{parts}", "--product", "bottle", "--sink", f"plc:{told}"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == 9
    assert told.read_text().splitlines() == [f"{record['frame_index']} {record['verdict']}" for record in records]


def test_stop_before_the_model_is_open_ends_the_run_before_its_first_frame(plug_in, engine, parts, tmp_path, capsys):
    assert main(["--engine", str(engine), "--images", str(parts), "--sink", f"impatient:{tmp_path / 'told.txt'}"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "snl-run: stopped by SIGTERM after 0 frames; all records are written"


def test_address_without_a_plug_in_is_left_to_the_camera(plug_in):
    assert find_source("rtsp://host/stream", product=None) is None
    assert find_source("0", product=None) is None


@pytest.mark.parametrize("address", ["broken://user:secret@host", "absent://user:secret@host"])
def test_source_plug_in_that_fails_is_named_without_credentials(plug_in, address):
    with pytest.raises(SnlError, match=address.partition(":")[0]) as failed:
        find_source(address, product=None)
    assert "secret" not in str(failed.value)


def test_sink_plug_in_that_fails_is_named(plug_in):
    with pytest.raises(ConfigError, match="sink 'broken' failed: RuntimeError: no license"):
        open_sink("broken:x")


def test_unknown_sink_lists_what_is_installed(plug_in):
    with pytest.raises(ConfigError, match=r"no plug-in provides the sink 'mqtt'; installed: broken, impatient, plc"):
        open_sink("mqtt:host")
