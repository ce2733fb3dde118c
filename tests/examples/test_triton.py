"""The example judges what a server answers that speaks Triton's protocol and reads the repository of snl-export; it is no Triton server.

The server below is written by hand around ONNX Runtime; every message on the wire is of Triton's own schema.
"""

import concurrent.futures
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from snl_export.triton import write_triton_model
from snl_runtime import InferenceError, SnlDetector

pytestmark = pytest.mark.station
grpc = pytest.importorskip("grpc")
service = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")
messages = pytest.importorskip("tritonclient.grpc.service_pb2")
text_format = pytest.importorskip("google.protobuf.text_format")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"snl_tests_triton_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runtime, example = load(ROOT / "tests" / "runtime" / "detector_fixtures.py"), load(ROOT / "examples" / "triton" / "verdicts.py")


class Repository(service.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers for the models of a folder by their configuration: names, dimensions, reshaped outputs."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.offset = 0.0
        self.most = 8
        """Images of a batch that are answered, the first ones."""

    def ModelConfig(self, request: Any, context: Any) -> Any:
        answer = messages.ModelConfigResponse()
        text_format.Parse((self.models / request.name / "config.pbtxt").read_text(), answer.config)
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        config = self.ModelConfig(messages.ModelConfigRequest(name=request.model_name), context).config
        path = self.models / request.model_name / request.model_version / "model.onnx"
        if not path.exists():
            context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        (tensor,) = request.inputs
        assert (tensor.name, tensor.datatype, list(tensor.shape[1:])) == (config.input[0].name, "UINT8", list(config.input[0].dims))
        image = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(tensor.shape)
        names = [output.name for output in config.output]
        answer = messages.ModelInferResponse(model_name=request.model_name, model_version=request.model_version)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for stated, values in zip(config.output, session.run(names, {tensor.name: image}), strict=True):
            shaped = (values + np.float32(self.offset)).reshape(len(image), *stated.dims)[: self.most]
            answer.outputs.add(name=stated.name, datatype="FP32", shape=shaped.shape)
            answer.raw_output_contents.append(shaped.tobytes())
        return answer


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model: Path = runtime.ModelFolder(tmp_path).write()
    return model


@pytest.fixture
def server(bundle: Path, tmp_path: Path) -> Iterator[tuple[Repository, str, Any]]:
    write_triton_model(bundle, tmp_path / "models")
    repository = Repository(tmp_path / "models")
    running = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    service.add_GRPCInferenceServiceServicer_to_server(repository, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield repository, f"127.0.0.1:{port}", running
    running.stop(None).wait(10)


def test_verdicts_are_those_of_the_model_opened_here(bundle: Path, server: tuple[Repository, str, Any]) -> None:
    frames = [runtime.good_frame(1), runtime.good_frame(2), runtime.bad_frame(0)]
    with SnlDetector(bundle, backend=example.TritonBackend(server[1], str(bundle))) as remote, SnlDetector(bundle, threads=1) as here:
        for frame in frames:
            there, expected = (detector.detect(frame, color="bgr", product="bottle") for detector in (remote, here))
            assert (there.verdict, there.score, there.reason) == (expected.verdict, expected.score, expected.reason)
            assert np.array_equal(there.anomaly_map, expected.anomaly_map)
    assert {expected.verdict.value} <= {"REJECT", "REVIEW"}


def test_answer_for_one_frame_of_a_batch_is_no_answer_for_the_others(bundle: Path, server: tuple[Repository, str, Any]) -> None:
    frames = [runtime.good_frame(1), runtime.bad_frame(0), runtime.good_frame(2)]
    with SnlDetector(bundle, backend=example.TritonBackend(server[1], str(bundle))) as remote:
        alone = [remote.detect(frame, product="bottle") for frame in frames]
        server[0].most = 1
        together = remote.detect_batch(frames, products="bottle")
    assert [result.score for result in together] == [result.score for result in alone]
    assert [result.verdict.value == "PASS" for result in together] == [True, False, True]


def test_server_that_is_gone_gives_errors_and_no_verdicts(bundle: Path, server: tuple[Repository, str, Any]) -> None:
    with SnlDetector(bundle, backend=example.TritonBackend(server[1], str(bundle))) as remote:
        server[2].stop(None).wait(10)
        result = remote.detect(runtime.good_frame(1), color="bgr", product="bottle")
    assert (result.verdict.value, result.reason_code) == ("ERROR", "backend_error")


def test_server_that_computes_something_else_passes_nothing(bundle: Path, server: tuple[Repository, str, Any]) -> None:
    server[0].offset = -0.2
    with pytest.raises(Exception, match="this machine does not compute what was evaluated"):
        SnlDetector(bundle, backend=example.TritonBackend(server[1], str(bundle)))


def test_file_that_the_server_does_not_have_is_refused(bundle: Path, server: tuple[Repository, str, Any]) -> None:
    runtime.ModelFolder(bundle.parent).write(offset=0.3)
    with pytest.raises(InferenceError, match="the server has no version of sha256"):
        example.TritonBackend(server[1], str(bundle))


def test_command_of_the_example_prints_a_verdict_per_part(
    bundle: Path, server: tuple[Repository, str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "good.png", tmp_path / "bad.png"]
    for path, frame in zip(paths, (runtime.good_frame(1), runtime.bad_frame(0)), strict=True):
        cv2.imwrite(str(path), frame)
    assert example.main(server[1], str(bundle), "bottle", [str(path) for path in paths]) == 1
    assert [line.split()[1] == "PASS" for line in capsys.readouterr().out.splitlines()] == [True, False]
