"""torch eager's side of benchmarks/training.py, for a Python that has torch; of the package nothing is imported.

    PYTHON_WITH_TORCH benchmarks/training_peer.py NET FOLDER THREADS

FOLDER holds weights.npz (ONNX's layouts) and data.npz (x, the teacher's logits, the order of the first epoch). Networks are those of
benchmarks/networks.py, in the calls that torch.nn's modules make, attention by torch's own fused function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from training_meter import Meter, peak

Weights = dict[str, torch.Tensor]

INVERTED = ((16, 1, 1), (24, 6, 2), (24, 6, 1), (32, 6, 2), (32, 6, 1), (64, 6, 2), (64, 6, 1))


def normed(w: Weights, x: torch.Tensor, name: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
    kernel = w[f"{name}.weight"].shape[-1]
    x = F.conv2d(x, w[f"{name}.weight"], stride=stride, padding=kernel // 2, groups=groups)
    mean, var, scale, shift = (w[f"{name}.norm.{part}"] for part in ("mean", "var", "scale", "shift"))
    return F.batch_norm(x, mean, var, scale, shift, training=True, momentum=0.1)


def dense(w: Weights, x: torch.Tensor, name: str) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def mlp(w: Weights, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(dense(w, x.flatten(1), "one"))
    return dense(w, F.relu(dense(w, x, "two")), "head")


def lenet(w: Weights, x: torch.Tensor) -> torch.Tensor:
    for name in ("one", "two"):
        x = F.max_pool2d(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"]), 2)
    return dense(w, F.relu(dense(w, x.flatten(1), "three")), "head")


def residual(widths: list[int]) -> Callable[[Weights, torch.Tensor], torch.Tensor]:
    def net(w: Weights, x: torch.Tensor) -> torch.Tensor:
        x, before = F.relu(normed(w, x, "stem")), widths[0]
        for number, outs in enumerate(widths):
            name, stride = f"block{number}", 1 + (outs != before)
            inner = normed(w, F.relu(normed(w, x, f"{name}.one", stride)), f"{name}.two")
            x = F.relu(inner + (x if outs == before else normed(w, x, f"{name}.short", stride)))
            before = outs
        return dense(w, F.adaptive_avg_pool2d(x, 1).flatten(1), "head")

    return net


def mobile(w: Weights, x: torch.Tensor) -> torch.Tensor:
    x, before = F.relu6(normed(w, x, "stem")), 16
    for number, (outs, expansion, stride) in enumerate(INVERTED):
        name = f"block{number}"
        inner = F.relu6(normed(w, x, f"{name}.wide")) if expansion > 1 else x
        inner = F.relu6(normed(w, inner, f"{name}.deep", stride, inner.shape[1]))
        inner = normed(w, inner, f"{name}.narrow")
        x = inner + x if outs == before and stride == 1 else inner
        before = outs
    x = F.relu6(normed(w, x, "last"))
    return dense(w, F.adaptive_avg_pool2d(x, 1).flatten(1), "head")


def transformer(w: Weights, x: torch.Tensor, heads: int = 4) -> torch.Tensor:
    x = x + w["places"]
    n, length, width = x.shape
    for number in range(2):
        name = f"layer{number}"
        parts = [dense(w, x, f"{name}.{part}") for part in ("query", "key", "value")]
        q, k, v = (part.view(n, length, heads, -1).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        x = x + dense(w, seen, f"{name}.out")
        x = F.layer_norm(x, (width,), w[f"{name}.first.scale"], w[f"{name}.first.shift"])
        x = x + dense(w, F.gelu(dense(w, x, f"{name}.up")), f"{name}.down")
        x = F.layer_norm(x, (width,), w[f"{name}.second.scale"], w[f"{name}.second.shift"])
    return dense(w, x.mean(1), "head")


NETS = {
    "MLP 784-300-100": mlp,
    "LeNet-5": lenet,
    "ResNet-8": residual([16, 32, 64]),
    "ResNet-20": residual([16] * 3 + [32] * 3 + [64] * 3),
    "MobileNetV2-like": mobile,
    "transformer": transformer,
}


def main() -> None:
    net, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    w: Weights = {}
    for name, array in np.load(folder / "weights.npz").items():
        held = torch.from_numpy(array.T.copy() if array.ndim == 2 and name.endswith(".weight") else array.copy())
        w[name] = held.requires_grad_(not name.endswith((".norm.mean", ".norm.var")))
    data = np.load(folder / "data.npz")
    x, logits, size = torch.from_numpy(data["x"]), torch.from_numpy(data["logits"]), int(data["batch"])
    optimizer = torch.optim.SGD([each for each in w.values() if each.requires_grad], lr=1e-3, momentum=0.9)
    imports = peak()

    def step(rows: torch.Tensor) -> float:
        optimizer.zero_grad()
        log_p, log_q = F.log_softmax(logits[rows], -1), F.log_softmax(NETS[net](w, x[rows]), -1)
        loss = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    losses = [step(rows) for rows in torch.from_numpy(data["order"]).split(size)]
    meter = Meter({"imports": imports, "loss": sum(losses) / len(losses)})
    meter()
    while True:
        for rows in torch.randperm(len(x)).split(size):
            step(rows)
            meter()


if __name__ == "__main__":
    main()
