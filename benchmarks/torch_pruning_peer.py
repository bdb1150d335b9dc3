"""Torch-Pruning as a peer, for an environment of its own (torch, torch-pruning, onnx2torch; nothing of this project).

    python torch_pruning_peer.py MODEL.onnx FEEDS.npz AMOUNT OUT.onnx

ONNX to torch by onnx2torch, one shot of L2 magnitude pruning over dependency groups, back to ONNX by torch's exporter.
The layer that writes the model's output stays whole, as in Torch-Pruning's examples. FEEDS has one sample.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types

import numpy as np
import onnx


def _without_torchvision() -> None:
    """onnx2torch imports torchvision for NMS and RoiAlign only; no model here has them, and some builds do not load."""
    for name in ("torchvision", "torchvision.ops"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.nms = module.roi_align = module.RoIAlign = module.batched_nms = None  # type: ignore[attr-defined]
        sys.modules[name] = module
    sys.modules["torchvision"].ops = sys.modules["torchvision.ops"]  # type: ignore[attr-defined]


def with_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constant nodes that hold a tensor become initializers, in place: onnx2torch finds no weights elsewhere."""
    for node in [node for node in model.graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        model.graph.node.remove(node)
    return model


def main(model: str, feeds: str, amount: str, out: str) -> int:
    """Prune and export; the exception's text goes to stderr as it is."""
    _without_torchvision()
    import onnx2torch
    import torch
    import torch_pruning

    proto = with_initializers(onnx.load(model))
    network = onnx2torch.convert(proto).eval()
    arrays = np.load(feeds)
    names = [value.name for value in proto.graph.input if value.name in arrays]
    sample = tuple(torch.from_numpy(arrays[name]) for name in names)
    classes = network(*sample).shape[-1]
    last = [m for m in network.modules() if getattr(m, "out_features", getattr(m, "out_channels", None)) == classes]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.MagnitudePruner(
        network, sample, importance=importance, pruning_ratio=float(amount), ignored_layers=last[-1:]
    )
    pruner.step()
    with torch.no_grad():
        torch.onnx.export(
            network,
            sample,
            out,
            input_names=names,
            output_names=[proto.graph.output[0].name],
            dynamo=False,
            dynamic_axes={name: {0: "n"} for name in [*names, proto.graph.output[0].name]},
            opset_version=17,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
