"""pylon's emulator under a running station: a damaged buffer is an ERROR, five are a fault, and the next whole one is judged."""

import pytest

from station_process import REPOSITORY, model_fixtures

pytestmark = pytest.mark.station


def test_camera_with_damaged_buffers(line, tmp_path):
    pytest.importorskip("pypylon", reason="needs pip install 'snl-edge[genicam]'")
    cv2 = pytest.importorskip("cv2")
    fixtures = model_fixtures()
    (tmp_path / "shown").mkdir()
    for seed in range(8):
        cv2.imwrite(str(tmp_path / "shown" / f"{seed}.png"), fixtures.good_frame(seed))
    hook, mode = tmp_path / "hook", tmp_path / "buffers.txt"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text((REPOSITORY / "tests/station/faults/damaged_buffers.py").read_text())
    mode.write_text("whole")
    features = {
        "Width": fixtures.SIZE,
        "Height": fixtures.SIZE,
        "TestImageSelector": "Off",
        "ImageFilename": str(tmp_path / "shown"),
        "ImageFileMode": "On",
    }
    source = {"genicam": {"serial": "0815-0000", "trigger": "software", "pixel_format": "BGR8Packed", "features": features}}
    environment = {"PYLON_CAMEMU": "1", "PYTHONPATH": f"{hook}:{REPOSITORY}", "SNL_BUFFER_MODE": str(mode)}
    station, plc = line(source, environment=environment)
    assert plc.inspect().accept
    mode.write_text("damaged")
    answers = []
    while not plc.look().fault:
        assert len(answers) < 8
        if plc.trigger():
            answers.append(plc.answer())
    assert len(answers) == 5, "five frames in a row that did not come whole are a fault"
    assert {(answer.verdict, answer.reason) for answer in answers} == {("ERROR", "frame_fault")}
    mode.write_text("whole")
    plc.inspect_until_pass()
    recorded = {one["trigger_id"]: one["verdict"] for one in station.rows()}
    assert [recorded[answer.trigger_id] for answer in answers] == ["ERROR"] * 5
