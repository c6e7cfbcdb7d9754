"""Finding experiment plugins."""

from __future__ import annotations

import importlib

import pytest

from pilot import plugins
from pilot import settings as tables
from pilot.plugins.base import ExperimentPlugin
from protocol.errors import PilotageError


def test_the_plugins_of_the_folder_are_found_by_their_file_names() -> None:
    assert plugins.names() == ("generic", "spd")
    for name in plugins.names():
        assert issubclass(importlib.import_module(f"pilot.plugins.{name}").Plugin, ExperimentPlugin)


def test_an_unknown_plugin_is_refused_with_those_there_are() -> None:
    with pytest.raises(PilotageError, match="generic, spd") as caught:
        plugins.load("nope", tables.load())
    assert caught.value.name == "BAD_SETTINGS"
