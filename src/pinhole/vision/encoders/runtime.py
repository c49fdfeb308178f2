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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pinhole.errors import Corrupt
from pinhole.fetch import file_sha256, locked
from pinhole.workspace import cache_dir, digest, disk_errors

Forward = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Named input arrays to the output array."""
Forwards = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, ...]]
"""Named input arrays to several output arrays."""
VECTORS = ("vectors",)
T = TypeVar("T")
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


def exported(
    module: Any, inputs: dict[str, Any], path: Path, free: dict[str, dict[int, str]], check: dict[str, Any], outputs: Sequence[str] = VECTORS
) -> bool:
    """Export where that is possible and exact: the file's answers to ``check`` must be the module's. False otherwise.

    Some networks choose their path by the data, which a trace cannot follow; those stay with torch.
    """
    try:
        export(module, inputs, path, free, outputs)
        arrays = {name: tensor.numpy() for name, tensor in check.items()}
        pairs = zip(torch_forwards(module)(arrays), onnx_forwards(path, outputs)(arrays), strict=True)
        exact = all(_alike(expected, got) for expected, got in pairs)
    except Exception:  # an exporter fails in as many ways as there are networks
        exact = False
    if not exact:
        path.unlink(missing_ok=True)
    return exact


def _alike(expected: np.ndarray, got: np.ndarray) -> bool:
    return expected.shape == got.shape and bool(np.abs(expected - got).max() <= 2e-3 * max(float(np.abs(expected).max()), 1e-6))


def weights_sha256(path: Path) -> str:
    """sha256 of a weight file, remembered in the cache by its place, size and time of change."""
    stat = path.stat()
    note = cache_dir() / "models" / "hashes" / digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if not note.exists():
        with making(note) as temporary:
            if temporary is not None:
                temporary.write_text(file_sha256(path))
    return note.read_text()


def export(module: Any, inputs: dict[str, Any], path: Path, free: dict[str, dict[int, str]], outputs: Sequence[str] = VECTORS) -> None:
    """Write a torch module as ONNX. ``free`` names the axes of inputs that may change; the first of every output may."""
    import torch

    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():  # it prints whole graphs when it fails
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**free, **{name: {0: "n"} for name in outputs}},
            opset_version=17,
            dynamo=False,
            verbose=False,
        )


def lazily(make: Callable[[], Callable[[dict[str, np.ndarray]], T]]) -> Callable[[dict[str, np.ndarray]], T]:
    """``make()`` at the first call: an identity and a width are wanted more often than a forward pass."""
    made: list[Callable[[dict[str, np.ndarray]], T]] = []
    guard = threading.Lock()

    def forward(arrays: dict[str, np.ndarray]) -> T:
        if not made:
            with guard:
                if not made:
                    made.append(make())
        return made[0](arrays)

    return forward


def onnx_forward(path: Path, threads: int = 1) -> Forward:
    """A function from named arrays to the ``vectors`` output. Raises :class:`Corrupt` where the file is damaged."""
    run = onnx_forwards(path, VECTORS, threads)
    return lambda arrays: run(arrays)[0]


def onnx_forwards(path: Path, outputs: Sequence[str], threads: int = 1) -> Forwards:
    """A function from named arrays to these outputs. Raises :class:`Corrupt` where the file is damaged."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen kinds of its own
        raise Corrupt(f"the converted encoder cannot be loaded: {error}", where=str(path), fix="delete the file: it is made again") from None

    def forward(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(out, dtype=np.float32) for out in session.run(list(outputs), arrays))

    return forward


def torch_forward(module: Any) -> Forward:
    """The same function, run by torch on :func:`device`."""
    run = torch_forwards(module)
    return lambda arrays: run(arrays)[0]


def torch_forwards(module: Any) -> Forwards:
    """All outputs of a module that gives one tensor or a tuple of them, run by torch on :func:`device`."""
    import torch

    module = module.eval().to(device())

    def forward(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            out = module(*(torch.from_numpy(np.ascontiguousarray(array)).to(device()) for array in arrays.values()))
        return tuple(np.asarray(one.float().cpu().numpy()) for one in (out if isinstance(out, tuple) else (out,)))

    return forward
