"""What the half-precision graph gives on hardware that really stores half.

ONNX Runtime on a CPU computes half nodes in fp32 and so hides every overflow. Two evaluations do not: PyTorch with results rounded to half after
each operation, and the ONNX project's reference evaluator on a small export of the same weights.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .onnx_export import BatchSize, export_onnx

_PRODUCTS = frozenset({"convolution", "_convolution", "conv2d", "conv_transpose2d", "mm", "bmm", "matmul", "addmm", "baddbmm"})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HalfAnswer:
    """Scores and maps of a half-precision graph.

    Attributes:
        scores: (n,) float32.
        maps: (n, H, W) float32.
        overflow: Name of the first layer whose output left the range of half; None if all stayed inside.
    """

    scores: npt.NDArray[np.float32]
    maps: npt.NDArray[np.float32]
    overflow: str | None = None


def evaluate_in_half(graph: nn.Module, images: npt.NDArray[np.uint8]) -> HalfAnswer:
    """Run a graph in PyTorch, every half tensor stored as half, one image at a time.

    Convolutions and matrix products add up in fp32 and round once at the end, as tensor cores do; PyTorch's own half kernels on a CPU do the same a
    hundred times slower.

    Args:
        graph: (N, H, W, 3) uint8 RGB -> map, score.
        images: (n, H, W, 3) uint8 RGB.
    """
    overflown: list[str] = []
    hooks = [module.register_forward_hook(_overflow_hook(name, overflown)) for name, module in graph.named_modules() if not list(module.children())]
    scores, maps = [], []
    try:
        with torch.no_grad(), _StoredHalf():  # type: ignore[no-untyped-call]
            for image in images:
                anomaly_map, score = graph(torch.from_numpy(image[None].copy()))
                scores.append(score.float().numpy())
                maps.append(anomaly_map[:, 0].float().numpy())
    finally:
        for hook in hooks:
            hook.remove()
    return HalfAnswer(scores=np.concatenate(scores), maps=np.concatenate(maps), overflow=overflown[0] if overflown else None)


def evaluate_by_reference(graph: nn.Module, images: npt.NDArray[np.uint8]) -> HalfAnswer:
    """Export a graph and run the file with the ONNX project's reference evaluator, which follows each node's type.

    Seconds for 64x64 pixels, minutes for 512x512: hand over a graph of a small input size.
    """
    from onnx.reference import ReferenceEvaluator

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        height, width = images.shape[1:3]
        export_onnx(graph, path, size_hw=(height, width), batch=BatchSize(fixed=1), metadata="{}")
        evaluator = ReferenceEvaluator(str(path))
    with np.errstate(all="ignore"):  # overflow is what this looks for
        answers: list[Any] = [evaluator.run(None, {"image": image[None]}) for image in images]
    maps, scores = (np.concatenate([np.asarray(answer[i], np.float32) for answer in answers]) for i in range(2))
    return HalfAnswer(scores=scores, maps=maps[:, 0])


class _StoredHalf(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute products of half tensors in fp32 and round the result to half."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        named = dict(kwargs or {})
        if func.overloadpacket.__name__ not in _PRODUCTS or not any(_is_half(value) for value in args):
            return func(*args, **named)
        result = func(*(value.float() if _is_half(value) else value for value in args), **named)
        return result.half()


def _is_half(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float16


def _overflow_hook(name: str, overflown: list[str]) -> Any:
    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        if not overflown and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            overflown.append(name)

    return note
