"""Train the committed sample model in numpy and export it: digits.onnx, digits.npz and digits_labels.npz.

    python -m sample_models.train_digits [--out FOLDER] [--seed 0] [--epochs 80]

Data: the 1,797 handwritten digits of 8x8 pixels (0..16) that scikit-learn ships (BSD-3). They are the test part of
"Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, doi
10.24432/C50P49, CC BY 4.0. The model never sees the rows in digits.npz: first CALIBRATION rows, then the test rows;
`image` is what the model takes (pixels / 16), `labels` lie apart because a data file for onnxcompress holds arrays by
input name.

The network is small, but has what pruning has to understand: a residual sum, a depthwise convolution, a squeeze-excite
gate, a dense concat, a flatten into Gemm layers, and BatchNorm nodes that are left un-folded (digits_network.py).
Values are [batch, height, width, channel] while training and NCHW in the exported graph. The same seed on the same
machine gives the same bytes; another BLAS may round differently. Measured: 45 s on two cores, 98.5 % of the test rows
right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sample_models import extra
from sample_models.digits_network import NETWORK, OPS, Array, Op, Parameters, backward, forward, pad

FOLDER = Path(__file__).parent
CALIBRATION, TEST = 300, 400
BATCH, PEAK_RATE, MOMENTUM, DECAY = 64, 0.1, 0.9, 5e-4


def cross_entropy_gradient(logits: Array, labels: Array) -> Array:
    """Gradient of the mean cross entropy by the logits: (softmax - one hot) / n."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return p / len(labels)


def shifted(rng: np.random.Generator, image: Array) -> Array:
    """Each image moved by -1, 0 or 1 pixel both ways, with a little noise: the only augmentation."""
    padded = pad(image, 3)
    moves = rng.integers(0, 3, (len(image), 2))
    moved = np.stack([one[r : r + 8, c : c + 8] for one, (r, c) in zip(padded, moves, strict=True)])
    return moved + rng.normal(0, 0.05, moved.shape).astype(np.float32)


def train(image: Array, labels: Array, seed: int, epochs: int) -> dict[str, Parameters]:
    """Parameters after `epochs` of momentum SGD with a cosine rate; image [n,8,8,1], labels [n]."""
    rng = np.random.default_rng(seed)
    parameters = {row.name: OPS[row.op].start(rng, row.settings) for row in NETWORK}
    speed = {name: {key: np.zeros_like(a) for key, a in p.items()} for name, p in parameters.items()}
    steps = len(image) // BATCH
    for step in range(epochs * steps):
        if step % steps == 0:
            order = rng.permutation(len(image))
        chosen = order[step % steps * BATCH :][:BATCH]
        rate = np.float32(PEAK_RATE * (1 + np.cos(np.pi * step / (epochs * steps))) / 2)
        logits, saved = forward(parameters, shifted(rng, image[chosen]), training=True)
        for name, grads in backward(parameters, saved, cross_entropy_gradient(logits, labels[chosen])).items():
            for key, gradient in grads.items():
                decayed = gradient + np.float32(DECAY if key == "weight" else 0) * parameters[name][key]
                speed[name][key] = np.float32(MOMENTUM) * speed[name][key] + decayed
                parameters[name][key] -= rate * speed[name][key]
    return parameters


def onnx_weight(op: Op, key: str, array: Array) -> Array:
    """A parameter with its axes in ONNX's order; a depthwise kernel gets its axis of one input channel."""
    if key != "weight" or op.weight_axes is None:
        return array
    turned = array.transpose(op.weight_axes)
    return turned[:, None] if turned.ndim == 3 else turned


def export(parameters: dict[str, Parameters]) -> onnx.ModelProto:
    """The ONNX model: opset 17, `image` [N,1,8,8] -> `logits` [N,10], BatchNorm as nodes of its own."""
    nodes, initializers = [], []
    for row in NETWORK:
        op, own = OPS[row.op], parameters[row.name]
        names = [f"{row.name}.{key}" for key in own]
        for name, (key, array) in zip(names, own.items(), strict=True):
            array = np.ascontiguousarray(onnx_weight(op, key, array), np.float32)
            initializers.append(numpy_helper.from_array(array, name))
        attributes = op.attributes(row.settings)
        nodes.append(helper.make_node(op.onnx, [*row.inputs, *names], [row.name], name=f"/{row.name}", **attributes))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        initializers,
        doc_string="Handwritten digits, pixels / 16; trained by sample_models/train_digits.py",
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="sample_models.train_digits"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def split(seed: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(image [n,8,8,1] in 0..1, labels [n]) to train on, and the same for the calibration and test rows."""
    pixels, labels = extra("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    image = (pixels[order].astype(np.uint8) / np.float32(16)).reshape(-1, 8, 8, 1).astype(np.float32)
    labels = labels[order].astype(np.int64)
    unseen = CALIBRATION + TEST
    return (image[unseen:], labels[unseen:]), (image[:unseen], labels[:unseen])


def main(arguments: list[str] | None = None) -> float:
    """Train, export, write the three files, print and return the share of test rows that are right."""
    parser = argparse.ArgumentParser(description="train sample_models/digits.onnx")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=80)
    chosen = parser.parse_args(arguments)
    known, (image, labels) = split(chosen.seed)
    parameters = train(*known, chosen.seed, chosen.epochs)
    right = forward(parameters, image, training=False)[0].argmax(1) == labels
    onnx.save(export(parameters), chosen.out / "digits.onnx")
    np.savez_compressed(chosen.out / "digits.npz", image=np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    np.savez_compressed(chosen.out / "digits_labels.npz", labels=labels)
    calibration, test = right[:CALIBRATION].mean(), right[CALIBRATION:].mean()
    print(f"right: calibration {calibration:.4f} of {CALIBRATION}, test {test:.4f} of {TEST}")
    return float(test)


if __name__ == "__main__":
    main()
