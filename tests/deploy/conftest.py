"""Fixtures of the deployment's tests: every variant, rendered once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.deploy.render import VARIANTS, Object, Variant


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory):
    """``render(variant)``: its objects. Shared: copy before changing them."""

    @cache
    def objects(variant: Variant) -> list[Object]:
        return variant.objects(tmp_path_factory.mktemp("variant"))

    return objects


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest, render) -> list[Object]:
    return render(request.param)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path
