from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toy_server import toy_catalogue


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root: Path = tmp_path_factory.mktemp("toy")
    return toy_catalogue(root)
