"""A teacher without any photograph: ResNet-18 trained to tell generated fractals and textures apart.

    python benchmarks/formula_teacher.py --out runs/teacher/formula.safetensors --images 100000
    python -m benchmarks.accuracy --protocol reduced --data realmix --only rd_128_realmix_multi_s0 \\
        --weights runs/teacher/formula.safetensors --out runs/teacher/formula

Air-gapped factories cannot fetch ImageNet weights. Each class is one iterated function system (Kataoka et al., Pre-training without natural images,
2020) on a texture of its own; every image is a new sample of it in other colors, cropped, turned and lit at random. Writes the teacher's part of the
network with torchvision's names, which ``--teacher-weights`` takes. ``--only`` matches a part of the name, so the second command trains SNL(RD)
after RD; stop it there. Resumes from ``x.resume.pt`` beside the output.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

from snl_runtime.files import atomic_path, atomic_write_bytes
from snl_runtime.progress import Progress

System: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Matrices (n, 2, 2), shifts (n, 2) and probabilities (n,) of the maps of one fractal."""

SIDE = 72
"""Pixels of a rendered fractal; training crops are smaller."""
CROP = 64
PARALLEL = 2048
"""Points that walk through a fractal at the same time."""
WALK = 24
"""Steps of each point, after the first few that are not drawn."""


def draw_system(rng: np.random.Generator) -> System:
    """Return the maps of one class: (n, 2, 2) matrices, (n, 2) shifts and (n,) probabilities, all contracting, none degenerate."""
    count = int(rng.integers(2, 8))
    turns = rng.uniform(0, 2 * math.pi, (count, 2))
    stretch = rng.uniform(0.2, 0.9, (count, 2)) * rng.choice([-1, 1], (count, 2))
    matrices = _turned(turns[:, 0]) @ (stretch[:, :, None] * _turned(turns[:, 1]))  # (n, 2, 2)
    areas = np.abs(np.linalg.det(matrices)) + 0.02
    return matrices, rng.uniform(-1, 1, (count, 2)), areas / areas.sum()


def render(system: System, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return (SIDE, SIDE) in [0, 1]: the points of a fractal whose matrices are moved a little, by density."""
    matrices, shifts, shares = system
    matrices = matrices * rng.uniform(0.9, 1.05, (len(matrices), 1, 1))
    points = rng.uniform(-1, 1, (PARALLEL, 2))
    seen = []
    for step in range(WALK + 8):
        chosen = rng.choice(len(shares), PARALLEL, p=shares)
        points = np.einsum("pij,pj->pi", matrices[chosen], points) + shifts[chosen]
        if step >= 8:
            seen.append(points)
    drawn = np.concatenate(seen)
    low, high = np.percentile(drawn, 1, axis=0), np.percentile(drawn, 99, axis=0)
    cells = ((drawn - low) / np.maximum(high - low, 1e-6) * (SIDE - 1)).round().astype(np.int64)
    cells = cells[((cells >= 0) & (cells < SIDE)).all(1)]
    density = np.bincount(cells[:, 0] * SIDE + cells[:, 1], minlength=SIDE * SIDE).reshape(SIDE, SIDE).astype(np.float32)
    return np.asarray(np.clip(density / max(float(np.percentile(density, 98)), 1.0), 0, 1), np.float32)


def texture(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return (SIDE, SIDE) in [0, 1]: noise with the spectrum of one class, f^-a, stretched along one direction."""
    fy, fx = np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij")
    angle, stretch, slope = rng.uniform(0, math.pi), rng.uniform(1, 6), rng.uniform(0.5, 2.5)
    along, across = fx * math.cos(angle) + fy * math.sin(angle), fy * math.cos(angle) - fx * math.sin(angle)
    envelope = (along**2 + (stretch * across) ** 2 + 1e-4) ** (-slope / 2)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIDE, SIDE))) * envelope).real
    return np.asarray((noise - noise.min()) / max(float(np.ptp(noise)), 1e-9), np.float32)


def make_pool(classes: int, per_class: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return fractals and textures, (classes * per_class, SIDE, SIDE) uint8 each, and the class of each, (n,) int64."""
    rng = np.random.default_rng(seed)
    shapes, grounds = [], []
    with Progress(classes, unit="classes", label="render") as progress:
        for _ in range(classes):
            system, state = draw_system(rng), int(rng.integers(2**31))
            for number in range(per_class):
                shapes.append(render(system, rng))
                grounds.append(texture(np.random.default_rng(state + number % 3)))  # three samples of the class's ground
            progress.advance()
    both = [torch.from_numpy((np.stack(x) * 255).round().astype(np.uint8)) for x in (shapes, grounds)]
    return both[0], both[1], torch.arange(classes).repeat_interleave(per_class)


def draw_batch(shapes: Tensor, grounds: Tensor, numbers: Tensor) -> Tensor:
    """Return (B, 3, CROP, CROP) normalized images: two random colors each for figure and ground; draws from torch's global generator."""
    count = len(numbers)
    figure, ground = shapes[numbers][:, None].float() / 255, grounds[numbers][:, None].float() / 255  # (B, 1, SIDE, SIDE)
    colors = torch.rand(4, count, 3, 1, 1)
    below = colors[0] + (colors[1] - colors[0]) * ground  # (B, 3, SIDE, SIDE)
    above = colors[2] + (colors[3] - colors[2]) * figure
    images = below + (above - below) * figure.sqrt()
    angle = torch.rand(count) * 2 * math.pi
    zoom = torch.empty(count).uniform_(0.5, 0.95)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1) * zoom[:, None, None]
    shift = torch.empty(count, 2, 1).uniform_(-0.3, 0.3)
    grid = F.affine_grid(torch.cat([turn, shift], 2), [count, 3, CROP, CROP], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    images = images + torch.randn_like(images) * torch.rand(count, 1, 1, 1) * 0.08
    return (images.clamp(0, 1) - 0.45) / 0.225


def save_teacher(network: nn.Module, out: Path) -> None:
    """Write the stem to layer3 as torchvision names them."""
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items() if not name.startswith(("layer4.", "fc."))}
    atomic_write_bytes(out, save(state))


def main() -> int:
    """Train, resuming where a stopped run left off, and write the teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="the teacher's weights")
    parser.add_argument("--images", type=int, default=100_000, help="images to train on (default: 100000)")
    parser.add_argument("--classes", type=int, default=128, help="fractals (default: 128)")
    parser.add_argument("--per-class", type=int, default=32, help="rendered samples of each (default: 32)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    shapes, grounds, labels = make_pool(options.classes, options.per_class, options.seed)
    network = resnet18(num_classes=options.classes).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=0.05)
    total = options.images // options.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=total)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    resume, step, right = options.out.with_suffix(".resume.pt"), 0, 0.0
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    if resume.exists():
        stored = torch.load(resume, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(stored[name])
        torch.set_rng_state(stored["random"])
        step, right = stored["step"], stored["right"]
    with Progress(total, unit="steps", label="train", done=step) as progress:
        while step < total:
            numbers = torch.randint(len(labels), (options.batch_size,))
            with torch.autocast("cpu", torch.bfloat16):
                answer = network(draw_batch(shapes, grounds, numbers)).float()
            loss = F.cross_entropy(answer, labels[numbers], label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            right += 0.02 * (float((answer.argmax(1) == labels[numbers]).float().mean()) - right)
            step += 1
            progress.advance(loss=loss.item(), right=round(right, 3))
            if step % 200 == 0 or step == total:
                state = {name: part.state_dict() for name, part in parts.items()}
                with atomic_path(resume) as temporary:
                    torch.save({**state, "random": torch.get_rng_state(), "step": step, "right": right}, temporary)
    save_teacher(network, options.out)
    print(f"{options.out}: {total} steps of {options.batch_size}, {right:.1%} of the last batches right (of {options.classes} classes)")
    return 0


def _turned(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([np.stack([np.cos(angles), -np.sin(angles)], -1), np.stack([np.sin(angles), np.cos(angles)], -1)], -2)


if __name__ == "__main__":
    sys.exit(main())
