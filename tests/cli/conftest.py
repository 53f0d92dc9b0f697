"""A directory of its own for every test of `deeprep analyze`."""

from __future__ import annotations

import sys

import pytest
from analyze_command import MODELS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Everything happens in a directory of its own, in which `models.py` holds own models."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(MODELS)
    yield tmp_path
    sys.modules.pop("own_models", None)
