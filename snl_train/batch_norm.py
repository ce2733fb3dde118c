"""Batch normalization over the batches of all processes; PyTorch's own ``SyncBatchNorm`` works on GPUs only."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable


def synchronize_batch_norm(module: nn.Module) -> None:
    """Let every trained batch normalization inside a module, in place, take its statistics over the batches of all processes.

    Parameters and buffers stay the same tensors under the same names. On a GPU it becomes PyTorch's ``SyncBatchNorm``.

    Args:
        module: On its device. Frozen batch normalizations, as the teacher's, are left alone.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and child.weight.requires_grad:
            setattr(module, name, _synchronized(child))
        else:
            synchronize_batch_norm(child)


def _synchronized(norm: nn.BatchNorm2d) -> nn.Module:
    kind = nn.SyncBatchNorm if norm.weight.is_cuda else SynchronizedBatchNorm
    made = kind(norm.num_features, eps=norm.eps, momentum=norm.momentum).train(norm.training)
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var, made.num_batches_tracked = norm.running_mean, norm.running_var, norm.num_batches_tracked
    return made


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """``BatchNorm2d`` whose batch is that of all processes, which hold equally many samples each: on any device, over the default process group."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name
        """Return the same shape and type as the input, (B, D, H, W); updates the running statistics in training mode."""
        if not self.training or self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return super().forward(input)
        normalized, mean, variance = _Normalize.apply(input, self.weight, self.bias, self.eps)
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # None: cumulative mean
        count = dist.get_world_size() * input.numel() / input.shape[1]
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)
        result: Tensor = normalized
        return result


class _Normalize(torch.autograd.Function):
    """y = w (x - m) / sqrt(v + eps) + b with mean m and variance v over all processes.

    Of equally large parts, m is the mean of their means m_r and v the mean of v_r + (m_r - m)^2. With x^ = (x - m) / sqrt(v + eps) and the mean <.>
    over all processes, dx = w / sqrt(v + eps) (dy - <dy> - x^ <dy x^>). The gradients of w and b are this process's part alone: they are averaged
    with those of all other parameters.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(weight.dtype)
        own = torch.stack(torch.var_mean(wide, (0, 2, 3), correction=0))  # (2, D): variance, mean
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        variances, means = torch.stack(parts).unbind(1)  # (W, D) each
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        deviation_inverse = (variance + eps).rsqrt()
        scale = weight * deviation_inverse
        ctx.save_for_backward(x, weight, mean, deviation_inverse)
        ctx.mark_non_differentiable(mean, variance)
        return _along_channels(wide, scale, bias - mean * scale).to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, deviation_inverse = ctx.saved_tensors
        gradient, wide = gradient.to(weight.dtype), x.to(weight.dtype)
        standard = _along_channels(wide, deviation_inverse, -mean * deviation_inverse)  # x^
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * standard).sum((0, 2, 3))])  # (2, D)
        means = sums.clone()
        dist.all_reduce(means)
        means /= dist.get_world_size() * x.numel() / x.shape[1]
        inner = gradient - means[0, :, None, None] - standard * means[1, :, None, None]
        return (inner * (weight * deviation_inverse)[:, None, None]).to(x.dtype), sums[1], sums[0], None


def _along_channels(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return x * scale + offset for x (B, D, H, W) and (D,)."""
    return torch.addcmul(offset[:, None, None], x, scale[:, None, None])
