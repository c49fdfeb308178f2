from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toy_server import toy_catalogue


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root: Path = tmp_path_factory.mktemp("toy")
    return toy_catalogue(root)


@pytest.fixture(scope="session")
def toy(catalogue: Any) -> Any:
    """A real assistant: a tiny trained model, the local engine, the real loop."""
    from toy_engine import toy_assistant

    assistant = toy_assistant(catalogue)
    yield assistant
    assistant.engine.close()
