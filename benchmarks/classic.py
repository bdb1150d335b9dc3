"""The nine classic image networks whose graphs the onnx package ships, with random weights that keep signals alive.

The graphs (backend/test/data/light) compute constant weights. Here each becomes a random one (He et al., ICCV 2015,
arXiv:1502.01852), and one walk over photos, node by node, sets what keeps activations from vanishing or exploding:
statistics of every BatchNormalization, and weights and bias of every Conv and Gemm that has a bias, to mean 0 and
deviation 1 a channel (Mishkin, Matas, ICLR 2016, arXiv:1511.06422). The last layer's outputs together get deviation
LOGITS, so that its Softmax is about as peaked as a trained one's. Built once, kept in the cache.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcompress.files import cache_folder, write_atomic
from onnxcompress.runtime.session import open_session
from sample_models import photos

Arrays = dict[str, np.ndarray]
Values = dict[str, list[np.ndarray]]  # one array an image

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = (
    "squeezenet", "shufflenet", "inception_v1", "inception_v2", "densenet121", "resnet50",
    "bvlc_alexnet", "zfnet512", "vgg19",
)  # fmt: skip
SIDE = 224
IMAGES = 12  # of the walk
LOGITS = 4.0
MEAN = np.array([104, 117, 123], np.float32)  # of ImageNet's pixels, BGR, as Caffe's networks take them
SCALE = 64  # their deviation
EPSILON = 1e-5


def classic(name: str) -> Path:
    """Path of network `name` in the cache, built if need be."""
    edition = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    target = cache_folder() / "benchmarks" / f"{name}-{edition}.onnx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, built(name).SerializeToString())
    return target


def images(count: int, seed: int) -> np.ndarray:
    """[count, 3, SIDE, SIDE] float32: random squares of photos, mean 0 and deviation about 1."""
    pictures = [photos.photo(np.random.default_rng([seed, i]), SIDE) for i in range(count)]
    return np.stack([((p[:, :, ::-1].astype(np.float32) - MEAN) / SCALE).transpose(2, 0, 1) for p in pictures])


def inputs(name: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of network `name` by name, samples on the first axis."""
    return {image_input(onnx.load(FOLDER / f"light_{name}.onnx").graph): images(count, seed)}


def image_input(graph: onnx.GraphProto) -> str:
    """The one input that is no initializer."""
    stored = {tensor.name for tensor in graph.initializer}
    (name,) = (value.name for value in graph.input if value.name not in stored)
    return name


def built(name: str) -> onnx.ModelProto:
    """The network with weights."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    graph, fed = model.graph, image_input(model.graph)
    arrays = random_weights(graph, np.random.default_rng(0))
    _walk(graph, arrays, {fed: [image[None] for image in images(IMAGES, seed=1)]}, model.opset_import)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in arrays.items())
    kept = [value for value in graph.input if value.name == fed]
    del graph.input[:]
    graph.input.extend(kept)
    model.ir_version = 8  # weights need not be inputs any more
    onnx.checker.check_model(model)
    return model


def random_weights(graph: onnx.GraphProto, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays by name in place of the constants, those of shapes as they were; the nodes that made them are gone."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in makers:
        arrays[node.output[0]] = np.zeros(arrays[node.input[0]].tolist(), np.float32)
        graph.node.remove(node)
    for node in graph.node:
        for place, key in enumerate(node.input):
            if key in arrays and arrays[key].dtype == np.float32:
                arrays[key] = _drawn(rng, node.op_type, place, arrays[key].shape)
    used = {key for node in graph.node for key in node.input}
    return {key: array for key, array in arrays.items() if key in used}


def _drawn(rng: np.random.Generator, operator: str, place: int, shape: tuple[int, ...]) -> np.ndarray:
    """A weight, or a vector by its place: biases 0, what multiplies positive about 1 (so is Caffe's Mul and Add)."""
    if len(shape) > 1:
        fan = shape[-1] if operator != "Conv" else int(np.prod(shape[1:]))
        return (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)
    if operator in ("BatchNormalization", "Unsqueeze") and place != 2:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return np.zeros(shape, np.float32)


def _walk(graph: onnx.GraphProto, arrays: Arrays, values: Values, opsets: Sequence[onnx.OperatorSetIdProto]) -> None:
    """Run node by node on all images and set statistics on the way; `arrays` are changed."""
    made = {key: node for node in graph.node for key in node.output}
    waiting = Counter(key for node in graph.node for key in node.input)
    last = [node for node in graph.node if node.op_type in ("Conv", "Gemm")][-1]
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            mean, deviation = _statistics(values[node.input[0]])
            arrays[node.input[3]], arrays[node.input[4]] = mean, deviation**2
        values[node.output[0]] = _run(node, arrays, values, opsets)
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            _normalise(node, arrays, made, values[node.output[0]], LOGITS if node is last else None)
        for key in node.input:
            waiting[key] -= 1
            if not waiting[key]:
                values.pop(key, None)


def _run(
    node: onnx.NodeProto, arrays: Arrays, values: Values, opsets: Sequence[onnx.OperatorSetIdProto]
) -> list[np.ndarray]:
    """The first output of one node, for each image (once, where it reads constants alone)."""
    feeds = {key: values[key] if key in values else [arrays[key]] for key in node.input}
    first = onnx.NodeProto()
    first.CopyFrom(node)
    del first.output[1:]
    ports = [
        onnx.helper.make_tensor_value_info(key, onnx.helper.np_dtype_to_tensor_dtype(each[0].dtype), each[0].shape)
        for key, each in feeds.items()
    ]
    answer = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([first], "node", ports, [answer])
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = open_session(model.SerializeToString(), name=node.op_type)
    count = max(len(each) for each in feeds.values())
    turns = [{key: each[i if len(each) > 1 else 0] for key, each in feeds.items()} for i in range(count)]
    return [session.run(turn)[node.output[0]] for turn in turns]


def _normalise(
    node: onnx.NodeProto,
    arrays: Arrays,
    made: dict[str, onnx.NodeProto],
    outputs: list[np.ndarray],
    spread: float | None,
) -> None:
    """Weight and bias such that each output channel has mean 0 and deviation 1; the outputs are changed likewise.

    With a spread all channels together get that deviation, by one factor: what a random network says of different
    images differs little, and a mean of their own taken off each class would leave little more than noise.
    """
    mean, deviation = _statistics(outputs)
    if spread:
        mean, deviation = np.zeros_like(mean), np.full_like(deviation, np.concatenate(outputs).std() / spread)
    weight = node.input[1]
    home = weight if weight in arrays else made[weight].input[0]  # Caffe's inner products reshape theirs
    channels = len(mean)
    factor = 1 / deviation
    array = arrays[home]
    transposed = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
    rows = array.reshape(-1, channels).T if transposed else array.reshape(channels, -1)
    scaled = rows * factor[:, None]
    arrays[home] = (scaled.T if transposed else scaled).reshape(array.shape).astype(np.float32)
    arrays[node.input[2]] = ((arrays[node.input[2]] - mean) * factor).astype(np.float32)
    shape = (1, channels) + (1,) * (outputs[0].ndim - 2)
    outputs[:] = [((each - mean.reshape(shape)) * factor.reshape(shape)).astype(np.float32) for each in outputs]


def _statistics(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel, float32 [channels] each."""
    whole = np.concatenate(values)
    axes = tuple(axis for axis in range(whole.ndim) if axis != 1)
    return whole.mean(axes, dtype=np.float64).astype(np.float32), np.sqrt(whole.var(axes) + EPSILON).astype(np.float32)
