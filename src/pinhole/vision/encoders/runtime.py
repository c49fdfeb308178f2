"""Running a network: ONNX Runtime on a CPU, torch on a GPU.

On a CPU a network is exported once into the cache and run by one thread a process, which measured 2.7
times as fast as torch; throughput comes from processes. Knows nothing of what a network computes.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.errors import Corrupt
from pinhole.fetch import file_sha256, locked
from pinhole.workspace import cache_dir, digest, disk_errors

Forward = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Named input arrays to the output array."""
CONVERSION = 1
"""Part of every identity: raised when the same weights would give other vectors."""


@functools.cache
def device() -> str:
    """``cuda`` where there is one, else ``cpu``. Without the driver's device file torch is not even imported."""
    if not os.path.exists("/dev/nvidiactl"):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def folder_of(identity: str) -> Path:
    """Where converted files of one encoder are kept."""
    return cache_dir() / "models" / identity


@contextmanager
def making(path: Path) -> Iterator[Path | None]:
    """Yield a temporary path to write, or None where ``path`` is there already; it appears by one rename.

    Of two processes that ask at once, one writes and the other waits.
    """
    if path.exists():
        yield None
        return
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / ".lock"):
            if path.exists():
                yield None
                return
            temporary = path.with_name(f".{os.getpid()}-{path.name}")
            try:
                yield temporary
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def exported(module: Any, inputs: dict[str, Any], path: Path, free: dict[str, dict[int, str]], check: dict[str, Any]) -> bool:
    """Export where that is possible and exact: the file's answer to ``check`` must be the module's. False otherwise.

    Some networks choose their path by the data, which a trace cannot follow; those stay with torch.
    """
    try:
        export(module, inputs, path, free)
        arrays = {name: tensor.numpy() for name, tensor in check.items()}
        expected, got = torch_forward(module)(arrays), onnx_forward(path)(arrays)
    except Exception:  # an exporter fails in as many ways as there are networks
        path.unlink(missing_ok=True)
        return False
    if expected.shape == got.shape and np.abs(expected - got).max() <= 2e-3 * max(float(np.abs(expected).max()), 1e-6):
        return True
    path.unlink(missing_ok=True)
    return False


def weights_sha256(path: Path) -> str:
    """sha256 of a weight file, remembered in the cache by its place, size and time of change."""
    stat = path.stat()
    note = cache_dir() / "models" / "hashes" / digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if not note.exists():
        with making(note) as temporary:
            if temporary is not None:
                temporary.write_text(file_sha256(path))
    return note.read_text()


def export(module: Any, inputs: dict[str, Any], path: Path, free: dict[str, dict[int, str]]) -> None:
    """Write a torch module as ONNX. ``free`` names the axes of inputs and of ``vectors`` that may change."""
    import torch

    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():  # it prints whole graphs when it fails
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["vectors"],
            dynamic_axes={**free, "vectors": {0: "n"}},
            opset_version=17,
            dynamo=False,
            verbose=False,
        )


def lazily(make: Callable[[], Forward]) -> Forward:
    """``make()`` at the first call: an identity and a width are wanted more often than a forward pass."""
    made: list[Forward] = []
    guard = threading.Lock()

    def forward(arrays: dict[str, np.ndarray]) -> np.ndarray:
        if not made:
            with guard:
                if not made:
                    made.append(make())
        return made[0](arrays)

    return forward


def onnx_forward(path: Path, threads: int = 1) -> Forward:
    """A function from named arrays to the ``vectors`` output. Raises :class:`Corrupt` where the file is damaged."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen kinds of its own
        raise Corrupt(f"the converted encoder cannot be loaded: {error}", where=str(path), fix="delete the file: it is made again") from None

    def forward(arrays: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(["vectors"], arrays)[0], dtype=np.float32)

    return forward


def torch_forward(module: Any) -> Forward:
    """The same function, run by torch on :func:`device`."""
    import torch

    module = module.eval().to(device())

    def forward(arrays: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            out = module(*(torch.from_numpy(np.ascontiguousarray(array)).to(device()) for array in arrays.values()))
        return np.asarray(out.float().cpu().numpy())

    return forward
