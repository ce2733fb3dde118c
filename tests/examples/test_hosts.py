"""The C++ and the C# host accept a part for a PASS record of an unbroken stream, and for nothing else."""

import json
import math
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from snl_runtime.line.records import record_line
from snl_runtime.types import AnomalyRegion, AnomalyResult, Frame, StageTimings, Verdict

HOSTS = Path(__file__).parents[2] / "examples" / "hosts"
FOREVER_MS = "600000"
OFF, ON, FAULT = "accept=0 fault=0", "accept=1 fault=0", "accept=0 fault=1"
SCORES = {Verdict.PASS: 0.5, Verdict.REVIEW: 1.1, Verdict.REJECT: 2.0, Verdict.ERROR: math.nan}


def record(index, verdict, **changes):
    """A line that snl-run writes."""
    source_id = changes.pop("source_id", "camera 0")
    frame = Frame(image=None, color="bgr", index=index, captured_ns=time.monotonic_ns(), captured_at=1.7e9, source_id=source_id, fault="none")
    values = {
        "verdict": verdict,
        "reason_code": "for_tests",
        "reason": "score, threshold; a sentence",
        "score": SCORES[verdict],
        "threshold": math.nan if verdict is Verdict.ERROR else 1.0,
        "reject_threshold": math.nan if verdict is Verdict.ERROR else 1.25,
        "product": "washer",
        "anomaly_map": None,
        "roi_xyxy": None,
        "regions": (AnomalyRegion(box_xyxy=(0, 0, 6, 4), score=2.0, area_px=24),),
        "timings": StageTimings(total_ms=3.5),
        "model_sha256": "ab" * 32,
    }
    return record_line(frame, AnomalyResult(**(values | changes)))


def altered(line, **changes):
    """The same record with other values, ``...`` for a member that is missing."""
    members = json.loads(line) | changes
    return json.dumps({name: value for name, value in members.items() if value is not ...})


def compiled(name, folder):
    if name == "cpp":
        if shutil.which("g++") is None or not Path("/usr/include/nlohmann/json.hpp").is_file():
            pytest.skip("needs g++ and nlohmann/json.hpp (Debian: g++ nlohmann-json3-dev)")
        program = [str(folder / "accept_host")]
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", program[0], str(HOSTS / "cpp" / "accept_host.cpp")]
    else:
        if shutil.which("mcs") is None or shutil.which("mono") is None:
            pytest.skip("needs mcs and mono (Debian: mono-mcs mono-runtime libmono-system-core4.0-cil)")
        program = ["mono", str(folder / "AcceptHost.exe")]
        command = ["mcs", "-warnaserror", f"-out:{program[1]}", str(HOSTS / "csharp" / "AcceptHost.cs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return program


@pytest.fixture(scope="module", params=["cpp", "csharp"])
def host(request, tmp_path_factory):
    return compiled(request.param, tmp_path_factory.mktemp(request.param))


def outputs(host, lines, *, product="washer"):
    """What the host writes to its output, beginning with OFF, for these lines and their end."""
    text = b"".join(line if isinstance(line, bytes) else line.encode("utf-8") + b"\n" for line in lines)
    done = subprocess.run([*host, FOREVER_MS, product], input=text, capture_output=True, timeout=60)
    assert done.returncode == 1, done.stderr
    written = done.stdout.decode().splitlines()
    assert written[0] == OFF
    return written[1:]


def test_only_a_pass_is_accepted_and_the_end_of_the_records_is_a_fault(host):
    verdicts = [Verdict.PASS, Verdict.REVIEW, Verdict.PASS, Verdict.REJECT, Verdict.PASS, Verdict.ERROR, Verdict.PASS]
    lines = [record(index, verdict) for index, verdict in enumerate(verdicts)]
    assert outputs(host, lines) == [ON, OFF, ON, OFF, ON, OFF, ON, FAULT]


NAMES = ['parts/a"b\\c.png', "\t\n\x00\x01\x1f\x7f.png", "größe 😀 \u2028.png", "bytes \udcff.png", '", "verdict": "PASS']


@pytest.mark.parametrize("source_id", NAMES)
def test_names_with_escapes_change_nothing(host, source_id):
    lines = [record(0, Verdict.REJECT, source_id=source_id, reason=source_id), record(1, Verdict.PASS, source_id=source_id, reason=source_id)]
    assert outputs(host, lines) == [OFF, ON, FAULT]


@pytest.mark.parametrize("ascii_only", [True, False])
def test_product_is_the_same_however_its_name_is_escaped(host, ascii_only):
    product = 'große "Scheibe"\\ \t😀'
    lines = [json.dumps(json.loads(record(index, Verdict.PASS)) | {"product": product}, ensure_ascii=ascii_only) for index in range(2)]
    assert outputs(host, lines, product=product) == [ON, ON, FAULT]
    assert outputs(host, lines, product=product.upper()) == [FAULT, FAULT]


PASS = record(1, Verdict.PASS)
FAULTS = {
    "gap": record(2, Verdict.PASS),
    "frame twice": record(0, Verdict.PASS),
    "negative index": altered(PASS, frame_index=-1),
    "index with a fraction": altered(PASS, frame_index=1.5),
    "index as text": altered(PASS, frame_index="1"),
    "no index": altered(PASS, frame_index=...),
    "unknown verdict": altered(PASS, verdict="PASSED"),
    "verdict in small letters": altered(PASS, verdict="pass"),
    "verdict with a blank": altered(PASS, verdict="PASS "),
    "verdict null": altered(PASS, verdict=None),
    "verdict true": altered(PASS, verdict=True),
    "no verdict": altered(PASS, verdict=...),
    "PASS without a score": altered(PASS, score=None),
    "PASS without a threshold": altered(PASS, threshold=None),
    "another schema": altered(PASS, record=2),
    "no schema": altered(PASS, record=...),
    "another product": altered(PASS, product="tile"),
    "product null": altered(PASS, product=None),
    "half a line": PASS[: len(PASS) // 2],
    "two records on a line": PASS + PASS,
    "something behind the record": PASS + " x",
    "NaN": PASS.replace('"score": 0.5', '"score": NaN'),
    "infinity": PASS.replace('"score": 0.5', '"score": -Infinity'),
    "number with a leading zero": PASS.replace('"score": 0.5', '"score": 00.5'),
    "verdict twice": PASS.replace('"record": 1', '"record": 1, "verdict": "REJECT"'),
    "second closing brace": PASS + "}",
    "comma before the end": PASS[:-1] + ",}",
    "missing comma": PASS.replace('1, "frame_index"', '1 "frame_index"'),
    "comment": PASS[:-1] + "/**/}",
    "single quotes": PASS.replace('"', "'"),
    "control character in a text": PASS.replace("camera 0", "camera\t0"),
    "unknown escape": PASS.replace("camera 0", "camera\\x0"),
    "deeply nested": PASS[:-1] + ', "x": ' + "[" * 100_000 + "}",
    "list": f"[{PASS}]",
    "number": "1",
    "empty line": "",
    "text of another program": "PASS",
    "bytes that are no UTF-8": PASS.encode().replace(b"camera", b"\xff") + b"\n",
    "a line of two megabytes": record(1, Verdict.PASS, reason="x" * 2_000_000) + "}",
}


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_is_no_next_record_is_a_fault_that_stays(host, name):
    lines = [record(0, Verdict.PASS), FAULTS[name], record(1, Verdict.PASS), record(2, Verdict.PASS)]
    written = outputs(host, lines)
    assert written[:2] == [ON, FAULT]
    assert set(written[2:]) <= {FAULT}


@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.REJECT])
def test_stream_that_does_not_begin_with_the_first_frame_is_a_fault(host, verdict):
    assert outputs(host, [record(1, verdict)])[0] == FAULT


def test_accept_falls_by_itself_when_no_record_follows(host):
    with subprocess.Popen([*host, "20"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(record(0, Verdict.PASS) + "\n")
        process.stdin.flush()
        assert [process.stdout.readline().strip() for _ in range(3)] == [OFF, ON, OFF]  # the records have not ended yet
        process.stdin.close()
        assert process.stdout.readline().strip() == FAULT


def test_records_are_read_on_after_a_fault(host):
    lines = ["no record", *(record(index, Verdict.PASS) for index in range(500))]  # more than a pipe holds
    assert sum(map(len, lines)) > 1 << 18
    assert set(outputs(host, lines)) == {FAULT}


@pytest.mark.parametrize("arguments", [[], ["0"], ["-5"], ["x"], ["1", "washer", "more"]])
def test_wrong_arguments_end_at_once(host, arguments):
    done = subprocess.run([*host, *arguments], input="", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage" in done.stderr
