"""``timm:`` and ``open_clip:`` encoders, for those who have these packages (both need torchvision).

timm's NAME is a model name; open_clip's is ``MODEL/PRETRAINED``, such as ``ViT-B-32/laion2b_s34b_b79k``.
The packages give the network, its weights and the numbers of its input; pixels are made by our own recipe.
They run with torch: no export. Knows nothing of other families.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from pinhole.errors import DownloadError, MissingDependency, PinholeError
from pinhole.vision.encoders import runtime
from pinhole.vision.encoders.base import ImageEncoder, TextEncoder
from pinhole.vision.images import Recipe
from pinhole.workspace import digest

_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def timm_image(name: str) -> ImageEncoder:
    """Pooled features of a timm model, before its classifier."""
    timm = _package("timm", "timm")
    network = _made(f"timm:{name}", lambda: timm.create_model(name, pretrained=True, num_classes=0).eval())
    data = timm.data.resolve_model_data_config(network)
    size = int(data["input_size"][-1])
    edge = round(size / data.get("crop_pct", 1.0))
    fit: Any = "stretch" if data.get("crop_mode") == "squash" else "pad" if data.get("crop_mode") == "border" else "crop"
    recipe = Recipe(size, fit, edge, _FILTERS.get(data["interpolation"], 3), tuple(data["mean"]), tuple(data["std"]))
    return _image(f"timm:{name}", recipe, network, network)


def open_clip_image(name: str) -> ImageEncoder:
    """The image side of an open_clip model."""
    network = _open_clip(name)
    settings = network.visual.preprocess_cfg if hasattr(network.visual, "preprocess_cfg") else {}
    size = settings.get("size") or network.visual.image_size
    size = int(size[0] if isinstance(size, (tuple, list)) else size)
    fits: dict[str, Any] = {"shortest": "crop", "longest": "pad", "squash": "stretch"}
    clip = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # open_clip's own default
    mean, std = tuple(settings.get("mean") or clip[0]), tuple(settings.get("std") or clip[1])
    recipe = Recipe(
        size, fits.get(settings.get("resize_mode", "shortest"), "crop"), 0, _FILTERS.get(settings.get("interpolation", "bicubic"), 3), mean, std
    )
    return _image(f"open_clip:{name}", recipe, network, network.encode_image)


def open_clip_text(name: str) -> TextEncoder:
    """The text side of an open_clip model."""
    import torch

    network = _open_clip(name)
    tokenize = _package("open_clip", "open_clip_torch").get_tokenizer(name.partition("/")[0])
    identity = digest("open_clip text", _weights(network), runtime.CONVERSION)

    def forward(texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(network.encode_text(tokenize(texts).to(runtime.device())).float().cpu().numpy())

    return TextEncoder(f"open_clip:{name}", identity, forward([""]).shape[1], forward)


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependency(f"`{module}:` encoders need {package}, which is not installed", fix=f"pip install {package}") from None


@functools.cache
def _open_clip(name: str) -> Any:
    open_clip = _package("open_clip", "open_clip_torch")
    model, _, pretrained = name.partition("/")
    return _made(f"open_clip:{name}", lambda: open_clip.create_model(model, pretrained=pretrained or None, device=runtime.device()).eval())


def _made(spec: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except PinholeError:
        raise
    except Exception as error:  # an unknown name, a hub that cannot be reached: the package says which
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise DownloadError(f"`{spec}` cannot be had: {reason}", fix="check the name and the network") from None


def _weights(network: Any) -> str:
    """sha256 of all tensors: these packages keep no single file to hash."""
    total = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        total.update(key.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _image(spec: str, recipe: Recipe, network: Any, see: Callable[[Any], Any]) -> ImageEncoder:
    import torch

    network.to(runtime.device())
    mean = torch.tensor(recipe.mean, device=runtime.device()).view(1, 3, 1, 1)
    std = torch.tensor(recipe.std, device=runtime.device()).view(1, 3, 1, 1)

    def forward(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(runtime.device()).permute(0, 3, 1, 2).float()
            return np.asarray(see((batch / 255.0 - mean) / std).float().cpu().numpy())

    dim = forward(np.zeros((1, recipe.size, recipe.size, 3), np.uint8)).shape[1]
    return ImageEncoder(spec, digest(spec.partition(":")[0], _weights(network), asdict(recipe), runtime.CONVERSION), recipe, dim, forward)
