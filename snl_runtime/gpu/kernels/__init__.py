"""CUDA kernels of the runtime: sources, and what turns them into code for one GPU. Importing this needs neither a GPU nor a CUDA package."""

from snl_runtime.gpu.kernels.compiler import KERNEL_NAMES, KernelImage, compile_kernels, kernel_source
from snl_runtime.gpu.kernels.loader import cached_image, load_kernels

__all__ = ["KERNEL_NAMES", "KernelImage", "cached_image", "compile_kernels", "kernel_source", "load_kernels"]
