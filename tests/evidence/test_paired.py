"""The paired walk: what its stops show is what the models compute, in memory or from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generate import feeds
from zoo import ZOO

from onnxcompress.data import Data, open_data
from onnxcompress.errors import DataError
from onnxcompress.evidence.expose import exposed
from onnxcompress.evidence.paired import Paired, Room, Shelf
from onnxcompress.model import Model, load
from onnxcompress.operators.layer import layers
from onnxcompress.passes import Prune, Refit
from onnxcompress.runtime.session import open_session


def opened(name: str, samples: int = 12) -> tuple[Model, Model, Data]:
    proto = ZOO[name]()
    model = load(proto)
    prune = Prune(amount=0.4, round_to=1)
    batches = [feeds(proto, seed) for seed in range(samples)]
    return (
        model,
        prune.apply(model, prune.plan(model, {})),
        open_data(batches, open_session(proto.SerializeToString()).inputs),
    )


@pytest.mark.parametrize("name", ["residual_downsample", "unet", "inception", "attention_static", "lstm"])
def test_stops_show_what_the_models_compute(name: str) -> None:
    model, cut, data = opened(name)
    todo = {layer.name: layer for layer in layers(cut)}
    walk = Paired(model, cut, data, batch=2)
    batches = list(data.batches(2))
    stops = []
    for pair in walk.walk(list(todo)):
        stops.append(pair.node)
        layer = todo[pair.node]
        for track, value, found in (
            (cut, layer.reads, pair.read(layer.reads)),
            (model, layer.writes, pair.target(layer.writes)),
        ):
            if value in {given.name for given in track.ir.graph.inputs}:
                continue
            seen = exposed(track, [value])
            session = open_session(seen.model)
            for feed, array in zip(batches, found, strict=True):
                np.testing.assert_allclose(array, session.run(feed)[seen.outputs[0]], rtol=1e-4, atol=1e-5)
    assert set(stops) == set(todo)


@pytest.mark.parametrize("name", ["residual_downsample", "unet", "lstm"])
def test_files_give_the_same_plan_as_memory(name: str) -> None:
    model, cut, data = opened(name)
    plans = [Refit().plan(cut, {Paired.NEED: Paired(model, cut, data, memory_limit=limit)}) for limit in (0, 1 << 30)]
    assert plans[0].decisions == plans[1].decisions and plans[0].decisions
    for key, values in plans[0].arrays.items():
        np.testing.assert_array_equal(values, plans[1].arrays[key])


@pytest.mark.parametrize(("samples", "sizes"), [(36, [6] * 6), (12, [2] * 6), (3, [1] * 3), (72, [8] * 9)])
def test_batches_are_as_even_as_can_be(samples: int, sizes: list[int]) -> None:
    model = load(ZOO["mlp_gemm"]())
    session = open_session(ZOO["mlp_gemm"]().SerializeToString())
    rows = {port.name: np.ones((samples, *port.shape[1:]), np.float32) for port in session.inputs}  # type: ignore[arg-type]
    name = layers(model)[0].name
    for pair in Paired(model, model, open_data(rows, session.inputs)).walk([name]):
        assert [len(array) for array in pair.read(layers(model)[0].reads)] == sizes


def test_a_shelf_takes_files_where_memory_ends_and_gives_both_back(tmp_path: Path) -> None:
    room = Room(100, tmp_path)
    shelf = Shelf(room)
    arrays = [np.arange(20, dtype=np.float32) + number for number in range(3)]
    for array in arrays:
        shelf.append(array)
    assert room.free == 20 and len(list(tmp_path.iterdir())) == 2 and len(shelf) == 3
    for array, kept in zip(arrays, shelf, strict=True):
        np.testing.assert_array_equal(array, kept)
    shelf.clear()
    assert room.free == 100 and not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_more_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="TMPDIR"):
        Shelf(Room(0, tmp_path / "gone")).append(np.zeros(4))


def test_a_replaced_weight_goes_when_its_last_reader_has_run() -> None:
    model, cut, data = opened("residual_downsample")
    todo = {layer.name: layer for layer in layers(cut)}
    held, replaced = {}, []
    for pair in Paired(model, cut, data, batch=2).walk(list(todo)):
        held[pair.node] = set(pair.current.constants.replaced)
        name = todo[pair.node].weight
        assert np.array_equal(pair.constant(name), cut.array(name))
        pair.replace(name, cut.array(name) * 0)
        assert not pair.constant(name).any()
        replaced.append(name)
    assert all(len(names) <= 1 for names in held.values())  # of the layer before, where both are read between two stops
    assert len(set(replaced)) == len(todo) > 3
