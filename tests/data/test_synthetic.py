"""Made-up inputs: shapes by role, values by name, sizes that run."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onnxcompress.data import open_data, probe, synthetic_feeds
from onnxcompress.data.synthetic import SIZES, feed_shapes
from onnxcompress.errors import DataError
from onnxcompress.runtime.session import Port, Session, open_session

F, I = np.dtype("float32"), np.dtype("int64")  # noqa: E741


def session(text: str) -> Session:
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    return open_session(parsed.SerializeToString())


def test_shapes_by_role() -> None:
    ports = [
        Port("image", F, (None, 3, None, None)),
        Port("pixels", F, ("N", "h", "w", 3)),
        Port("ids", I, ("batch_size", "sequence_length")),
        Port("state", F, (2, None, 128)),
        Port("past_key", F, ("batch_size", 4, "past_sequence_length", 16)),
        Port("sr", I, ()),
        Port("fixed", F, (4, 5)),
    ]
    assert list(feed_shapes(ports, SIZES[0]).values()) == [
        (1, 3, 224, 224), (1, 224, 224, 3), (1, 16), (2, 1, 128), (1, 4, 0, 16), (), (4, 5),
    ]  # fmt: skip


def test_a_symbol_is_one_number() -> None:
    ports = [Port("tokens", I, ("B", "k")), Port("image", F, ("B", 3, "k", "k"))]
    assert feed_shapes(ports, SIZES[0]) == {"tokens": (1, 16), "image": (1, 3, 16, 16)}


def test_values_by_name_and_type() -> None:
    ports = [
        Port("attention_mask", I, (1, 9)),
        Port("token_type_ids", I, (1, 9)),
        Port("position_ids", I, (1, 9)),
        Port("input_ids", I, (1, 900)),
        Port("sr", I, ()),
        Port("flag", np.dtype(bool), (3,)),
        Port("text", np.dtype(object), (3,)),
        Port("x", F, (1, 1000)),
        Port("picture", np.dtype("uint8"), (1, 32, 32, 3)),
        Port("padding_mask", F, (1, 9)),
        Port("half", np.dtype("float16"), (2,)),
    ]
    (feed,) = synthetic_feeds(ports, 1, 0)
    assert feed["attention_mask"].min() == 1 and feed["padding_mask"].min() == 1 and feed["flag"].all()
    assert feed["token_type_ids"].max() == 0 and feed["position_ids"][0].tolist() == list(range(9))
    assert feed["input_ids"].min() >= 0 and 50 < feed["input_ids"].max() < 100
    assert feed["sr"] == 16000 and feed["sr"].shape == () and isinstance(feed["text"][0], str)
    assert abs(feed["x"].std() - 1) < 0.1
    assert feed["picture"].min() >= 0 and feed["picture"].max() <= 255 and feed["picture"].std() > 30
    assert all(feed[port.name].dtype == port.dtype for port in ports)


def test_pictures_are_smooth_and_coloured_alike() -> None:
    (feed,) = synthetic_feeds([Port("x", F, (1, 3, 64, 96))], 1, 0)
    x = feed["x"][0]
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.1
    assert np.corrcoef(x[0, :, 1:].ravel(), x[0, :, :-1].ravel())[0, 1] > 0.6  # white noise has 0
    assert 0.7 < np.corrcoef(x[0].ravel(), x[1].ravel())[0, 1] < 1


def test_the_seed_decides() -> None:
    ports = [Port("x", F, ("N", 5)), Port("y", F, ("N", 5))]
    one, again, other = (synthetic_feeds(ports, 2, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(one, again, strict=True) for k in a)
    assert not np.array_equal(one[0]["x"], other[0]["x"]) and not np.array_equal(one[0]["x"], one[1]["x"])
    assert not np.array_equal(one[0]["x"], one[0]["y"])


def test_open_data_without_a_source() -> None:
    data = open_data(None, [Port("x", F, ("N", 5)), Port("anchors", F, ("K", 4))], samples=8)
    assert data.synthetic and data.describe() == "8 synthetic samples (6 for calibration, 2 held out)"
    assert [feed["x"].shape for feed in data.batches(3)] == [(3, 5), (3, 5), (2, 5)]
    assert any("give --data" in note for note in data.notes)
    frames = open_data(None, [Port("frames", F, ("time", 5))], samples=8)
    assert frames.samples == 8 and [feed["frames"].shape for feed in frames.batches(3)] == [(16, 5)] * 8


def test_probe_finds_sizes_that_run() -> None:
    lines = session("""g (float[N,3,H,W] x) => (float[N,L] y) <int64[2] to = {1, 46080}> { y = Reshape(x, to) }""")
    sizes = probe(lines.inputs, lines)
    assert (sizes.height, sizes.width) == (48, 320)
    data = open_data(None, lines.inputs, session=lines, samples=2)
    assert [feed["x"].shape for feed in data.batches()] == [(1, 3, 48, 320)] * 2


def test_probe_picks_the_first_row_where_a_table_has_no_other() -> None:
    graph = session("""g (float[1,4] nodes, int64[2,9] edges) => (float[2,9,4] y) { y = Gather(nodes, edges) }""")
    assert probe(graph.inputs, graph).tokens == 1
    (feed,) = open_data(None, graph.inputs, session=graph, samples=1).batches()
    assert not feed["edges"].any() and feed["nodes"].any()


def test_probe_gives_up_in_one_line() -> None:
    odd = session("""g (float[N,L] x) => (float[M] y) <int64[1] to = {12345}> { y = Reshape(x, to) }""")
    with pytest.raises(DataError, match=r"no synthetic input runs, give real data with --data \(.*Reshape") as caught:
        probe(odd.inputs, odd)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_made_up() -> None:
    with pytest.raises(DataError, match="cannot be made up"):
        synthetic_feeds([Port("s", None, (), "seq(tensor(float))")], 1, 0)


def test_probe_prefers_integers_that_give_finite_answers() -> None:
    table = "float[9,2] table = {1,1, -1,-1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1, 1,1}"
    graph = session(f"g (int64[1,12] ids) => (float[1,12,2] y) <{table}> {{ z = Gather(table, ids) y = Log(z) }}")
    assert probe(graph.inputs, graph).tokens == 8  # a hundred leave the table
