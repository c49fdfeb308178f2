"""A real cluster on this machine, and its workers' imports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinhole import cluster


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """A cluster of one node with one core; a test adds its own. Its workers import what the tests do."""
    pytest.importorskip("ray", reason='pip install "pinhole-vlm[ray]"')
    from ray.cluster_utils import Cluster

    here = Path(__file__).resolve().parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(cluster.__file__).parents[1]), str(here), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False})
        yield made
        made.shutdown()
