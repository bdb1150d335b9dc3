"""Options come from the fields of settings, values go back into them."""

from __future__ import annotations

import importlib
import inspect

import pytest

import onnxcompress
from onnxcompress.budgets import BUDGETS
from onnxcompress.cli.options import budget_options, instance, options_of
from onnxcompress.data import ImageSettings
from onnxcompress.errors import SettingError
from onnxcompress.passes.prune.prune import Prune
from onnxcompress.settings import made, names_of


def test_every_setting_is_an_option() -> None:
    options = options_of(Prune)
    assert [option.field for option in options] == names_of(Prune)
    assert all(option.help for option in options)
    assert "at least 0 and less than 1" in next(option.help for option in options if option.name == "amount")


def test_defaults_give_the_default_settings() -> None:
    for settings in (Prune, ImageSettings):
        options = options_of(settings)
        assert instance(settings, options, {option.name: option.default for option in options}) == settings()


def test_numbers_with_commas() -> None:
    options = options_of(ImageSettings, prefix="image_")
    given = {option.name: option.default for option in options}
    given |= {"image_size": "224", "image_mean": "0.485,0.456,0.406", "image_order": "BGR"}
    settings = instance(ImageSettings, options, given)
    assert settings.size == (224, 224) and settings.mean == (0.485, 0.456, 0.406) and settings.order == "BGR"


def test_every_budget_is_an_option() -> None:
    assert [option.name for option in budget_options()] == list(BUDGETS)


def test_unknown_setting_has_the_nearest_name() -> None:
    with pytest.raises(SettingError, match="'amount'"):
        made(Prune, {"amout": 0.5})


def test_public_names() -> None:
    assert sorted(onnxcompress.__all__) == sorted([*onnxcompress.HOME_OF, "__version__"])
    for name in onnxcompress.__all__:
        assert getattr(onnxcompress, name) is not None
    importlib.import_module("onnxcompress.compare")
    assert inspect.isfunction(onnxcompress.compare)
