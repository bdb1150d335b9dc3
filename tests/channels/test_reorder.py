"""Units in other places: the function stays, and origins say which channel of the original stands where."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from generate import feeds
from laws import distance
from zoo import ZOO

from onnxcompress.channels import analyse
from onnxcompress.channels.edit import movable, reordered
from onnxcompress.evidence.expose import exposed
from onnxcompress.model import load
from onnxcompress.model.edit import coded_of
from onnxcompress.model.save import finished, to_bytes
from onnxcompress.model.spec import violations
from onnxcompress.runtime.session import open_session


def check(proto: onnx.ModelProto, tolerance: float = 1e-4) -> int:
    """All groups that can, at random."""
    model, rng = load(proto), np.random.default_rng(3)
    channels = analyse(model)
    groups = [
        group
        for group in channels.groups
        if movable(channels, group) and not any(coded_of(model.initializers[each.tensor]) for each in group.members)
    ]
    new, moved = reordered(model, channels, [(group, rng.permutation(group.size)) for group in groups])
    assert not violations(new)
    given = feeds(proto, 0)
    wanted = open_session(model.serialized).run(given)
    assert distance(open_session(to_bytes(finished(new))).run(given), wanted, wanted) <= tolerance
    return len(moved)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_gives_the_same(name: str) -> None:
    check(ZOO[name](), tolerance=3e-2 if name in {"float16", "cast_fp16"} else 1e-4)


def test_values_stand_where_their_origin_says() -> None:
    """Activations too: repair compares them with the original's, channel by channel."""
    proto = ZOO["inverted_residual"]()
    model, rng = load(proto), np.random.default_rng(1)
    channels = analyse(model)
    orders = [(group, np.roll(rng.permutation(group.size), 1)) for group in channels.groups if movable(channels, group)]
    new, moved = reordered(model, channels, orders)
    names = [name for name in new.origin if name not in model.initializers]
    assert any((places != np.arange(len(places))).any() for places in moved.values()) and names
    wanted, found = (
        open_session(exposed(each, names).model, outputs=names).run(feeds(proto, 0)) for each in (model, new)
    )
    for name in names:
        for axis, places in new.origin[name].kept.items():
            wanted[name] = np.take(wanted[name], places, axis=axis)
    assert distance(found, wanted, wanted) <= 1e-4
