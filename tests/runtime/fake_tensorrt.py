"""Full TensorRT's Python bindings as far as this SDK uses them; any step can be told to refuse, as the library does: a log line and None or False.

Integers of the flags are not TensorRT's, so code that knows them by heart instead of by name fails here.
"""

from types import SimpleNamespace


class _Logger:
    def __init__(self):
        pass


class FakeTensorRt:
    """The module ``tensorrt``.

    Args:
        version: As the library states it.
        size_hw: Network size of every engine.

    Attributes:
        refusing: Names of steps that fail.
        calls: (step, arguments) in order.
        steps: How many progress steps a build has.
    """

    ILogger = _Logger
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=5)
    BuilderFlag = SimpleNamespace(TF32="tf32")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="static")
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    IProgressMonitor = _Logger

    def __init__(self, version="10.3.0", size_hw=(8, 8)):
        self.__version__ = version
        self.size_hw = size_hw
        self.refusing, self.calls, self.steps = set(), [], 3
        self._logger = None

    def step(self, name, *arguments):
        """Note a call and return whether the library goes along; where it does not, it says why in its log."""
        self.calls.append((name, *arguments))
        if name in self.refusing:
            self._logger.log("Severity.ERROR", f"Error Code 4: {name} refused\n")
            return False
        return True

    def Builder(self, logger):
        self._logger = logger
        return _Builder(self) if self.step("builder") else None

    def OnnxParser(self, network, logger):
        return _Parser(self, network) if self.step("parser") else None

    def Runtime(self, logger):
        self._logger = logger
        return _Runtime(self) if self.step("runtime") else None


class _Builder:
    def __init__(self, trt):
        self.trt = trt

    def create_network(self, flags):
        return _Network(self.trt) if self.trt.step("network", flags) else None

    def create_builder_config(self):
        return _Config(self.trt) if self.trt.step("config") else None

    def create_optimization_profile(self):
        return SimpleNamespace(set_shape=lambda *shapes: self.trt.step("set_shape", *shapes)) if self.trt.step("profile") else None

    def build_serialized_network(self, network, config):
        if not self.trt.step("build", config.max_aux_streams):
            return None
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("tactics", None, self.trt.steps)
            for done in range(self.trt.steps):
                if not monitor.step_complete("tactics", done):
                    return None
            monitor.phase_finish("tactics")
        return memoryview(b"plan of " + network.onnx)


class _Network:
    def __init__(self, trt):
        self.trt, self.onnx, self.num_inputs, self.num_outputs = trt, b"", 1, 2
        height, width = trt.size_hw
        self.tensors = {
            "image": ((-1, height, width, 3), "DataType.UINT8"),
            "anomaly_map": ((-1, 1, height, width), "DataType.FLOAT"),
            "anomaly_score": ((-1,), "DataType.FLOAT"),
        }

    def get_input(self, index):
        return self._tensor(index)

    def get_output(self, index):
        return self._tensor(index + 1)

    def _tensor(self, index):
        name = list(self.tensors)[index]
        shape, dtype = self.tensors[name]
        return SimpleNamespace(name=name, shape=shape, dtype=dtype)


class _Parser:
    num_errors = 1

    def __init__(self, trt, network):
        self.trt, self.network = trt, network

    def parse(self, onnx):
        self.network.onnx = onnx
        return self.trt.step("parse")

    def get_error(self, index):
        return "In node 7: unsupported"


class _Config:
    def __init__(self, trt):
        self.trt, self.max_aux_streams, self.progress_monitor, self.cache = trt, None, None, b""

    def clear_flag(self, flag):
        self.trt.step("clear_flag", flag)

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content) if self.trt.step("create_timing_cache", content) else None

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache.content
        return self.trt.step("set_timing_cache", ignore_mismatch)

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: memoryview(self.cache + b"+timings"))

    def add_optimization_profile(self, profile):
        return 0 if self.trt.step("add_optimization_profile") else -1


class _Runtime:
    def __init__(self, trt):
        self.trt = trt

    def deserialize_cuda_engine(self, plan):
        return _Engine(self.trt) if self.trt.step("deserialize", plan) else None


class _Engine:
    num_io_tensors = 3

    def __init__(self, trt):
        self.trt, self.network = trt, _Network(trt)

    def get_tensor_name(self, index):
        return list(self.network.tensors)[index]

    def get_tensor_dtype(self, name):
        return self.network.tensors[name][1]

    def get_tensor_mode(self, name):
        return "input" if name == "image" else "output"

    def get_tensor_shape(self, name):
        return self.network.tensors[name][0]

    def get_tensor_profile_shape(self, name, profile):
        height, width = self.trt.size_hw
        return [(count, height, width, 3) for count in (1, 2, 4)]

    def create_execution_context(self, how):
        return _Context(self.trt) if self.trt.step("context", how) else None


class _Context:
    active_optimization_profile = -1

    def __init__(self, trt):
        self.trt, self.count = trt, 0

    def set_optimization_profile_async(self, profile, stream):
        return self.trt.step("select_profile", profile, stream)

    def set_input_shape(self, name, shape):
        self.count = shape[0]
        return self.trt.step("set_input_shape", name, shape)

    def infer_shapes(self):
        return [] if self.trt.step("infer_shapes") else ["anomaly_map"]

    def get_tensor_shape(self, name):
        count = self.count if self.trt.step("output_shape") else self.count + 1
        return (count,) if name == "anomaly_score" else (count, 1, *self.trt.size_hw)

    def set_tensor_address(self, name, address):
        return self.trt.step("set_tensor_address", name, address)

    def execute_async_v3(self, stream):
        if "raise" in self.trt.refusing:
            raise RuntimeError("a binding of TensorRT raised")
        return self.trt.step("execute", stream)
