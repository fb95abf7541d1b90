"""The marker of the fixtures that build a network of 100 million parameters."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: builds a ViT-B sized network or reads a large volume (seconds each)")
