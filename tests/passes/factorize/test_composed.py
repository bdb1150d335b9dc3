"""After factorizing, other passes take the chains as any weights, in one run: strides, dilations, groups, three axes, transposed layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.model.spec import violations
from onnxcompress.passes import Cluster, Factorize, Prune, Quantize, Sparsify
from onnxcompress.run import How, run

WIDTH = 32


def mixed(axes: int) -> onnx.ModelProto:
    """Plain, dilated, grouped, strided 5 taps wide, transposed, 1 tap: with biases and Relu, weights of falling spectra."""
    rng, ones = np.random.default_rng(axes), [1] * axes
    layers = [
        ("Conv", (WIDTH, WIDTH, *[3] * axes), {"pads": [1] * 2 * axes}),
        ("Conv", (WIDTH, WIDTH, *[3] * axes), {"pads": [2] * 2 * axes, "dilations": [2] * axes}),
        ("Conv", (WIDTH, WIDTH // 2, *[3] * axes), {"pads": [1] * 2 * axes, "group": 2}),
        ("Conv", (WIDTH, WIDTH, 5, *ones[1:]), {"pads": [2, *[0] * (axes - 1)] * 2, "strides": [2, *ones[1:]]}),
        ("ConvTranspose", (WIDTH, WIDTH, *[3] * axes), {"strides": [2, *ones[1:]], "pads": [1] * 2 * axes}),
        ("Conv", (WIDTH, WIDTH, *ones), {}),
    ]
    nodes, held, x = [], [], "x"
    for number, (op, size, attributes) in enumerate(layers):
        flat = rng.normal(size=(size[0], int(np.prod(size[1:]))))
        left, values, right = np.linalg.svd(flat, full_matrices=False)
        weight = (left * values * 0.5 ** np.arange(len(values))) @ right
        held += [numpy_helper.from_array((weight * 2).reshape(size).astype(np.float32), f"w{number}")]
        held += [numpy_helper.from_array(rng.normal(size=WIDTH).astype(np.float32), f"b{number}")]
        last = number == len(layers) - 1
        nodes.append(
            helper.make_node(
                op,
                [x, f"w{number}", f"b{number}"],
                ["y" if last else f"h{number}"],
                name=f"layer{number}",
                **attributes,
            )
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{number}"], [f"r{number}"]))
            x = f"r{number}"
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH, *[6] * axes]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH, *["s"] * axes]),
    ]
    graph = helper.make_graph(nodes, "mixed", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


THEN = {
    "prune": Prune(amount=0.1, criterion="l2"),
    "sparsify": Sparsify(amount=0.3),
    "cluster": Cluster(bits=5),
    "quantize": Quantize(measure=False, rounding="nearest"),
}


@pytest.mark.parametrize(
    ("name", "axes"),
    [("prune", 3), ("sparsify", 1), ("cluster", 2), ("quantize", 2)],
)
def test_the_next_pass_takes_the_chains(name: str, axes: int) -> None:
    x = np.random.default_rng(9).normal(size=(10, WIDTH, *[6] * axes)).astype(np.float32)
    first = Factorize(fit="weights", target_macs=0.5, pays=0, forms=("lowrank", "tucker", "spatial", "grouped"))
    result = run(mixed(axes), [first, THEN[name]], {"x": x}, how=How())
    assert not violations(result.model)
    made, then = result.plans[0], next(plan for plan in result.plans if plan.method == THEN[name].name)
    assert len(made.decisions) >= 3 and then.decisions
    assert result.after.macs <= 0.5 * result.before.macs
    if name in ("sparsify", "cluster"):
        told = {each["weight"] for each in then.decisions}
        assert {f"{each['weight']}.{each['form']}." for each in made.decisions} & {word[:-1] for word in told}
    assert result.comparison.sqnr_db > 3
