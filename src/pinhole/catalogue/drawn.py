"""Vector drawings as PNG files, made once and kept beside what they were made from.

Knows nothing of catalogues. Does not load fonts or fetch what a drawing links to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pinhole.errors import MissingDependency
from pinhole.workspace import write_atomic


def draw(files: Sequence[Path], root: Path, into: Path, width: int, progress: Callable[[int, int], None] | None = None) -> dict[Path, Path]:
    """For each SVG under ``root`` its PNG, ``width`` pixels wide, under ``into``; those that are there are not drawn again.

    A drawing that the renderer refuses is left out. Raises :class:`MissingDependency` without ``resvg-py``.
    """
    targets = {path: (into / path.relative_to(root)).with_suffix(".png") for path in files}
    todo = [path for path, target in targets.items() if not target.exists()]
    if todo:
        try:
            import resvg_py
        except ImportError:
            raise MissingDependency("drawings of this sample are SVG, and no renderer is installed", fix="pip install resvg-py") from None
    for number, path in enumerate(todo, 1):
        try:
            data = resvg_py.svg_to_bytes(svg_path=str(path), width=width, dpi=96, skip_system_fonts=True)
        except ValueError:
            continue
        targets[path].parent.mkdir(parents=True, exist_ok=True)
        write_atomic(targets[path], bytes(data))
        if progress is not None:
            progress(number, len(todo))
    return {path: target for path, target in targets.items() if target.exists()}
