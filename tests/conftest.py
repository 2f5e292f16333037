"""Small models, read once per session and judged by many tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from subjects import MODELS, Subject, put


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """The subject of that name out of `MODELS`, made when first asked for."""
    made: dict[str, Subject] = {}

    def of(name: str) -> Subject:
        if name not in made:
            made[name] = put(MODELS[name](), tmp_path_factory.mktemp(name))
        return made[name]

    return of
