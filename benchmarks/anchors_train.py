"""Train the small networks that `benchmarks.anchors` prunes, with torch, and export them into the cache.

    TORCH_PYTHON -m benchmarks.anchors_train --data CIFAR10.npz [--networks vgg resnet] [--threads 1]

Layouts and penalty are those of Network Slimming (Liu et al., ICCV 2017, arXiv:1708.06519): a VGG with 16 convolutions
and a pre-activation bottleneck ResNet (164 layers there), BatchNorm scales that start at 0.5 and an L1 penalty on them.
Both are narrower or shallower than the paper's and see far fewer epochs, so the penalty is larger: SETUPS. bfloat16
where the CPU has it, channels last, crops and flips, one cycle of the learning rate. BatchNormalization stays a node
of its own in the file, since the criterion reads it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.cifar import pictures, scaled
from onnxcompress.files import cache_folder

BATCH, RATE, DECAY, SEED = 128, 0.1, 5e-4, 0
PADDING = 4
CLASSES = 10


@dataclass(frozen=True)
class Setup:
    """How one network is trained: epochs at each side of the crops (small ones first, they cost less), L1 on the scales."""

    sides: tuple[int, ...]
    penalty: float


SETUPS = {
    "vgg": Setup((32,) * 12, 1e-3),
    "resnet": Setup((24,) * 6, 5e-4),
}

VGG_WIDTH = 0.25
VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
"""Channels of Network Slimming's VGG, 0 where it pools."""

RESNET_BLOCKS, RESNET_WIDTHS = 2, (8, 16, 32)
"""Blocks a stage (18 in ResNet-164), and the inner width of each stage; the stream is four times as wide."""


def vgg() -> nn.Module:
    """16 convolutions of a quarter of the paper's width, mean over the last 2x2, one linear layer."""
    steps: list[nn.Module] = []
    width = 3
    for channels in VGG:
        if channels:
            out = int(channels * VGG_WIDTH)
            steps += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        else:
            steps.append(nn.MaxPool2d(2))
    return nn.Sequential(*steps, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(width, CLASSES))


class Bottleneck(nn.Module):
    """x + conv1x1(conv3x3(conv1x1(x))), BatchNorm and Relu before each convolution (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = 4 * inner

        def before(channels: int, conv: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv)

        self.steps = nn.Sequential(
            before(width, nn.Conv2d(width, inner, 1, bias=False)),
            before(inner, nn.Conv2d(inner, inner, 3, stride, 1, bias=False)),
            before(inner, nn.Conv2d(inner, outer, 1, bias=False)),
        )
        same = stride == 1 and width == outer
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, outer, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width, h, w] -> [n, 4 inner, h/stride, w/stride]."""
        return self.shortcut(x) + self.steps(x)


def resnet() -> nn.Module:
    """Pre-activation ResNet of 6 blocks (20 layers), of half the paper's widths."""
    width = RESNET_WIDTHS[0]
    steps: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    for stage, inner in enumerate(RESNET_WIDTHS):
        for block in range(RESNET_BLOCKS):
            steps.append(Bottleneck(width, inner, 2 if stage and not block else 1))
            width = 4 * inner
    ends = [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*steps, *ends)


BUILDERS = {"vgg": vgg, "resnet": resnet}


def place(name: str) -> Path:
    """Where a trained network lies in the cache."""
    folder = cache_folder() / "anchors"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.onnx"


def main() -> int:
    """Train, say the test accuracy, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as one .npz, see benchmarks/cifar.py")
    parser.add_argument("--networks", nargs="*", default=["vgg", "resnet"], choices=SETUPS)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    train, test = pictures(asked.data, "train"), pictures(asked.data, "test")
    for name in asked.networks:
        torch.manual_seed(SEED)
        network = BUILDERS[name]().to(memory_format=torch.channels_last)
        trained(network, SETUPS[name], *train)
        print(name, f"accuracy {accuracy(network, *test):.4f}", flush=True)
        export(network, place(name))
    return 0


def trained(network: nn.Module, setup: Setup, images: np.ndarray, labels: np.ndarray) -> None:
    """One cycle over all epochs, in place."""
    rng = np.random.default_rng(SEED)
    scales = [part.weight for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for scale in scales:
        nn.init.constant_(scale, 0.5)
    steps = len(labels) // BATCH
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps * len(setup.sides), pct_start=0.2)
    for epoch, side in enumerate(setup.sides):
        network.train()
        start, summed = time.perf_counter(), 0.0
        for x, y in batches(images, labels, side, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16()):
                loss = nn.functional.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            for scale in scales:  # the penalty's subgradient, as the paper's own code adds it
                scale.grad.add_(scale.detach().sign(), alpha=setup.penalty)  # type: ignore[union-attr]
            optimizer.step()
            cycle.step()
            summed += loss.item()
        small = float(np.mean([(scale.detach().abs() < 0.01).float().mean().item() for scale in scales]))
        print(f"  epoch {epoch}: loss {summed / steps:.3f}, {time.perf_counter() - start:.0f} s", end=", ")
        print(f"scales below 0.01: {small:.2f}", flush=True)


def bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; without that it is slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def batches(
    images: np.ndarray, labels: np.ndarray, side: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Full batches of one epoch: crops of that side out of the padded (or larger) pictures, half of them flipped."""
    edge = PADDING if side == images.shape[-1] else 0
    order = rng.permutation(len(labels))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        x = np.pad(images[chosen], ((0, 0), (0, 0), (edge, edge), (edge, edge)))
        top, left = rng.integers(0, x.shape[-1] - side + 1, (2, BATCH, 1))
        rows, columns = top + np.arange(side), left + np.arange(side)
        columns = np.where(rng.random((BATCH, 1)) < 0.5, columns, columns[:, ::-1])
        x = x[np.arange(BATCH)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [n, side, side, 3]
        yield torch.from_numpy(scaled(x.transpose(0, 3, 1, 2))), torch.from_numpy(labels[chosen])


@torch.no_grad()
def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the pictures that are put into their class, in float32."""
    network.eval()
    hits = 0
    for start in range(0, len(labels), 500):
        x = torch.from_numpy(scaled(images[start : start + 500])).to(memory_format=torch.channels_last)
        hits += int((network(x).argmax(1).numpy() == labels[start : start + 500]).sum())
    return hits / len(labels)


def export(network: nn.Module, target: Path) -> None:
    """Write the file, batch dynamic. The newer exporter would fold BatchNormalization into the convolutions, or (unoptimised)
    give every convolution a computed bias; the older one, told to preserve, does neither."""
    torch.onnx.export(
        network.eval().to(memory_format=torch.contiguous_format), (torch.zeros(2, 3, 32, 32),), target, dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
        input_names=["image"], output_names=["scores"], opset_version=17,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
