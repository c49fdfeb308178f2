"""``hf:`` encoders: a hub name or a local folder, loaded with transformers.

Any checkpoint whose model has ``get_image_features`` (CLIP, SigLIP, SigLIP 2 …) or gives pooled or hidden
states (DINOv2, DINOv3, ViT, ConvNeXt …) can see; ``get_text_features`` or mean/CLS pooling of any text
model can read. The processor's *settings* are taken from its JSON, and pixels are made by our own recipe,
so torchvision is not needed. Weights must be safetensors; no remote code is run. Only square inputs.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from pinhole.errors import ConfigError, Corrupt, DownloadError
from pinhole.fetch import file_sha256
from pinhole.vision.encoders import runtime
from pinhole.vision.encoders.base import CELLS, Cells, ImageEncoder, TextEncoder, Tunable
from pinhole.vision.images import Recipe
from pinhole.workspace import digest, read_json, write_json

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_MOST_TOKENS = 512


def image(name: str) -> ImageEncoder:
    """The image side of a checkpoint. Raises ``DownloadError``, ``ConfigError``, ``Corrupt``."""
    folder = folder_of(name)
    recipe = recipe_of(folder)
    identity = digest("hf image", _content(folder), asdict(recipe), runtime.CONVERSION)
    build = functools.partial(_image_module, folder, recipe)
    shapes, run = _converted(identity, build, functools.partial(_pixels, recipe), {"pixels": {0: "n"}})
    cells = functools.cache(functools.partial(_cells, folder, recipe, identity))
    tunable = functools.partial(_tunable, folder, recipe)
    return ImageEncoder(f"hf:{name}", identity, recipe, shapes[0][1], lambda batch: run({"pixels": batch})[0], cells=cells, tunable=tunable)


def _cells(folder: Path, recipe: Recipe, identity: str) -> Cells:
    """Its last hidden states, without class and register tokens, as a square grid. Raises :class:`ConfigError` where they are none."""
    build = functools.partial(_image_module, folder, recipe, cells=True)
    shapes, run = _converted(identity, build, functools.partial(_pixels, recipe), {"pixels": {0: "n"}}, CELLS)

    def forward(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors, cells = run({"pixels": pixels})
        return vectors, cells

    return Cells(shapes[1][1], shapes[1][3], forward)


def text(name: str) -> TextEncoder:
    """The text side of a checkpoint, or a plain text model pooled as its settings say."""
    folder = folder_of(name)
    pooling, most = _pooling(folder), _most_tokens(folder)
    whole = str(_config(folder).get("model_type", "")).startswith("siglip")  # trained on texts padded to their full length
    identity = digest("hf text", _content(folder), pooling, most, whole, runtime.CONVERSION)

    def build() -> Any:
        network, _ = load(folder)
        return text_module(network, pooling)

    def example(n: int) -> dict[str, Any]:
        import torch

        tokens = most if whole else min(5 + n, most)
        vocabulary = _text_config(folder).get("vocab_size", 100)
        ids = torch.arange(n * tokens, dtype=torch.int64).reshape(n, tokens) % max(1, min(100, vocabulary))
        return {"ids": ids, "mask": torch.ones_like(ids)}

    free = {name: {0: "n"} if whole else {0: "n", 1: "tokens"} for name in ("ids", "mask")}
    shapes, run = _converted(identity, build, example, free)
    tokenize = functools.cache(functools.partial(_tokenizer, folder, whole, most))

    def forward(texts: list[str]) -> np.ndarray:
        return run(tokenize()(texts))[0]

    return TextEncoder(f"hf:{name}", identity, shapes[0][1], forward)


# -- files --------------------------------------------------------------------------------------


@functools.cache
def folder_of(name: str) -> Path:
    """A local folder as it is, or the hub's snapshot of a name, downloaded once. Raises :class:`DownloadError`."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder)
    if name.startswith((".", "/", "~")):
        raise DownloadError(f"no folder `{name}`", fix="name a folder that holds config.json, or a hub name")
    from huggingface_hub import snapshot_download

    try:
        return _checked(Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True)))
    except Exception:  # not (wholly) in the hub's cache yet
        pass
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub client raises a dozen kinds, most of them for "cannot be reached"
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise DownloadError(
            f"could not download `{name}`: {reason}", where="model hub", fix="check the name and the network, or name a local folder"
        ) from None
    return _checked(folder)


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        raise DownloadError("no config.json", where=str(folder), fix="name a folder saved with save_pretrained")
    if not _weights(folder):
        raise DownloadError("no safetensors weights (pickled ones are not read)", where=str(folder), fix="save the model again with save_pretrained")
    return folder


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _config(folder: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", read_json(folder / "config.json"))


def _content(folder: Path) -> list[str]:
    """Hashes of what a vector depends on; those of weights are remembered."""
    small = [file_sha256(path) for path in sorted(folder.glob("*.json")) if path.name != "README.json"]
    return small + [runtime.weights_sha256(path) for path in _weights(folder)]


# -- the input ----------------------------------------------------------------------------------


def recipe_of(folder: Path) -> Recipe:
    """Our recipe with the checkpoint's own numbers. Raises :class:`ConfigError` where it cannot be followed."""
    where = folder / "preprocessor_config.json"
    settings = read_json(folder / "processor_config.json").get("image_processor") if (folder / "processor_config.json").exists() else None
    if settings is None and where.exists():
        settings = read_json(where)
    if settings is None:
        raise ConfigError(
            "the checkpoint does not say how its pictures are prepared", where=str(where), fix="save its image processor into the folder"
        )
    size, fit, edge = _geometry(settings, where)
    factor = 255.0 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    normalise = settings.get("do_normalize", True)
    mean = [value / factor for value in _three(settings.get("image_mean")) or (0.5,) * 3] if normalise else [0.0] * 3
    std = [value / factor for value in _three(settings.get("image_std")) or (0.5,) * 3] if normalise else [1 / factor] * 3
    resample = settings.get("resample")
    return Recipe(size, fit, edge, 3 if resample is None else int(resample), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _three(values: Any) -> tuple[float, ...] | None:
    if isinstance(values, (int, float)):
        return (float(values),) * 3
    return tuple(float(value) for value in values) if values else None


def _geometry(settings: dict[str, Any], where: Path) -> tuple[int, Any, int]:
    """(size, fit, edge) from the ways in which processors have written them over the years."""
    size, crop = settings.get("size"), settings.get("crop_size") if settings.get("do_center_crop") else None
    if size is None and "max_num_patches" in settings:  # SigLIP 2 of free shape: the largest square it allows
        return math.isqrt(settings["max_num_patches"]) * settings["patch_size"], "stretch", 0
    if isinstance(size, int):
        size = {"shortest_edge": size} if crop is not None else {"height": size, "width": size}
    size = size or (crop if isinstance(crop, dict) else None)
    if not isinstance(size, dict):
        raise ConfigError("the image processor names no size", where=str(where), fix="add `size`")
    crop_edge = crop if isinstance(crop, int) else _square(crop, where) if crop else 0
    if "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        pct = settings.get("crop_pct")
        return (crop_edge, "crop", edge) if crop_edge else (edge, "crop", int(edge / pct) if pct else edge)
    if "longest_edge" in size:
        return int(size["longest_edge"]), "pad", 0
    return (crop_edge, "crop", _square(size, where)) if crop_edge and crop_edge != _square(size, where) else (_square(size, where), "stretch", 0)


def _square(size: dict[str, Any], where: Path) -> int:
    height, width = size.get("height"), size.get("width")
    if not height or height != width:
        raise ConfigError(f"input of {height} × {width} pixels: only square inputs can be used", where=str(where), fix="choose another encoder")
    return int(height)


def _pixels(recipe: Recipe, n: int) -> dict[str, Any]:
    import torch

    return {"pixels": torch.randint(0, 256, (n, recipe.size, recipe.size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))}


# -- networks -----------------------------------------------------------------------------------


def load(folder: Path) -> tuple[Any, bool]:
    """The model in float32, and whether its pooler's weights were in the file. Raises :class:`Corrupt`."""
    import transformers
    from transformers import AutoModel

    transformers.utils.logging.disable_progress_bar()
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        network, info = AutoModel.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype="float32", attn_implementation="eager", output_loading_info=True
        )
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise Corrupt(
            f"the checkpoint cannot be loaded: {reason}", where=str(folder), fix="check that transformers knows this model; save or download it again"
        ) from None
    finally:
        logger.setLevel(level)
    missing = [key for key in info["missing_keys"] if "pooler" not in key and "position_ids" not in key]
    if missing:
        raise Corrupt(f"the checkpoint lacks weights, such as `{missing[0]}`", where=str(folder), fix="save or download it again")
    return network.eval(), not any("pooler" in key for key in info["missing_keys"])


def _converted(
    identity: str,
    build: Callable[[], Any],
    example: Callable[[int], dict[str, Any]],
    free: dict[str, dict[int, str]],
    outputs: tuple[str, ...] = runtime.VECTORS,
) -> tuple[list[list[int]], runtime.Forwards]:
    """Shapes of a network's outputs for two inputs, and its forward function, exported once where that gives the same numbers for others."""
    note = runtime.folder_of(identity) / f"{outputs[-1]}.json"
    onnx = note.with_suffix(".onnx")
    with runtime.making(note) as temporary:
        if temporary is not None:
            module = build()
            made = runtime.torch_forwards(module)({name: tensor.numpy() for name, tensor in example(2).items()})
            done = runtime.exported(module, example(2), onnx, free, example(3), outputs)
            write_json(temporary, {"shapes": [list(one.shape) for one in made], "runtime": "onnx" if done else "torch"})
    facts = read_json(note)
    if facts["runtime"] == "onnx" and runtime.device() == "cpu":
        return facts["shapes"], runtime.lazily(lambda: runtime.onnx_forwards(onnx, outputs))
    return facts["shapes"], runtime.lazily(lambda: runtime.torch_forwards(build()))


def _image_module(folder: Path, recipe: Recipe, cells: bool = False) -> Any:
    """From uint8 pixels (n, size, size, 3) to pooled features (n, dim); with ``cells`` also to patches (n, edge, edge, width)."""
    import torch
    from torch import Tensor, nn

    network, has_pooler = load(folder)
    vision = getattr(network.config, "vision_config", network.config)
    patch = vision.patch_size if network.config.model_type.startswith("siglip2") else 0
    edge = recipe.size // size if isinstance(size := getattr(vision, "patch_size", None), int) else 0
    if patch:
        _fix_positions(network.vision_model.embeddings, recipe.size // patch)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.has_pooler = network, has_pooler
            self.mean = nn.Buffer(torch.tensor(recipe.mean).view(1, 3, 1, 1))
            self.std = nn.Buffer(torch.tensor(recipe.std).view(1, 3, 1, 1))

        def forward(self, pixels: Tensor) -> Any:
            scaled = (pixels.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std  # (n, 3, size, size)
            inputs = _patches(scaled, patch) if patch else {"pixel_values": scaled}
            out = getattr(network, "get_image_features", network)(**inputs)
            return (_pool(out, has_pooler), _grid(out, edge, folder)) if cells else _pool(out, has_pooler)

    return Pooled().eval()


ATTENTION = re.compile(r"attention|attn")


def _tunable(folder: Path, recipe: Recipe) -> Tunable:
    """The image side of a checkpoint from pixels on. LoRA goes on the linear maps of its attention (Hu et al. 2021)."""
    from torch import nn

    pooled = _image_module(folder, recipe)
    network, has_pooler = pooled.network, pooled.has_pooler
    sides = ("vision_model.", "visual_projection.") if hasattr(network, "vision_model") else ("",)
    names = [name for name, _ in network.named_parameters() if name.startswith(sides) and (has_pooler or not name.startswith("pooler."))]
    stacks = [(name, len(module)) for name, module in network.named_modules() if isinstance(module, nn.ModuleList) and name.startswith(sides)]
    stack, count = max(stacks, key=lambda one: one[1], default=("", 0))

    def tail(last: int) -> list[str]:
        return names[names.index(next(name for name in names if name.startswith(f"{stack}.{count - last}."))) :] if last else names

    projections = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{stack}.") and ATTENTION.search(name.removeprefix(f"{stack}."))
    ]
    return Tunable(network, count, tail, projections, None, lambda last: pooled, functools.partial(_write, network, has_pooler, folder))


def _write(network: Any, has_pooler: bool, folder: Path, out: Path) -> None:
    """The checkpoint again with its weights of today, less what the file never had: a random pooler, positions that were fixed for export."""
    made = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items() if not key.endswith("embeddings.fixed")}
    network.save_pretrained(out, state_dict={key: tensor for key, tensor in made.items() if has_pooler or not key.startswith("pooler.")})
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)


def _patches(pixels: Any, patch: int) -> dict[str, Any]:
    """SigLIP 2 of free shape takes patches (n, cells, patch·patch·3), a mask and the shape of the grid."""
    import torch

    n, cells = pixels.shape[0], pixels.shape[-1] // patch
    grid = pixels.reshape(n, 3, cells, patch, cells, patch).permute(0, 2, 4, 3, 5, 1)
    mask = torch.ones_like(grid[:, :, :, 0, 0, 0], dtype=torch.int64).reshape(n, cells * cells)
    shapes = torch.full((1, 2), cells, dtype=torch.int64).expand(n, 2)
    return {"pixel_values": grid.reshape(n, cells * cells, patch * patch * 3), "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _fix_positions(embeddings: Any, cells: int) -> None:
    """Every picture has the same grid here: resize SigLIP 2's positions to it once (the exporter cannot)."""
    import torch

    edge = embeddings.position_embedding_size
    with torch.no_grad():
        table = embeddings.position_embedding.weight.reshape(edge, edge, -1)
        fixed = embeddings.resize_positional_embeddings(table, torch.tensor([[cells, cells]]), max_length=cells * cells)
    embeddings.fixed = torch.nn.Buffer(fixed)
    embeddings.resize_positional_embeddings = lambda table, shapes, max_length: embeddings.fixed.expand(shapes.shape[0], -1, -1)


def _pool(out: Any, has_pooler: bool) -> Any:
    """(n, dim) from whatever a model returns: its pooled output, else the mean over the picture."""
    import torch

    pooled = out if isinstance(out, torch.Tensor) else getattr(out, "pooler_output", None) if has_pooler else None
    if pooled is None:
        pooled = out.last_hidden_state
    if pooled.ndim == 4:  # (n, dim, height, width) of a convolutional network
        return pooled.mean((2, 3))
    return pooled.mean(1) if pooled.ndim == 3 else pooled  # (n, tokens, dim)


def _grid(out: Any, edge: int, folder: Path) -> Any:
    """(n, edge, edge, width) from the last hidden states; whatever else a transformer reads stands before the patches."""
    states = getattr(out, "last_hidden_state", None)
    if states is not None and states.ndim == 4:  # (n, width, height, width) of a convolutional network
        return states.permute(0, 2, 3, 1)
    if states is None or states.ndim != 3 or not edge or states.shape[1] < edge * edge:
        raise ConfigError("this model gives no square grid of patches", where=str(folder), fix="set [vision] grid = 0, or choose another encoder")
    return states[:, states.shape[1] - edge * edge :].unflatten(1, (edge, edge))


def text_module(network: Any, pooling: str) -> Any:
    """From token ids and mask (n, tokens) to pooled vectors (n, dim)."""
    from torch import Tensor, nn

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            if hasattr(network, "get_text_features"):
                return cast("Tensor", _pool(network.get_text_features(input_ids=ids, attention_mask=mask), True))
            hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, tokens, dim)
            if pooling == "cls":
                return cast("Tensor", hidden[:, 0])
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            return cast("Tensor", (hidden * weight).sum(1) / weight.sum(1).clamp(min=1))

    return Pooled().eval()


# -- texts --------------------------------------------------------------------------------------


def _text_config(folder: Path) -> dict[str, Any]:
    config = _config(folder)
    return cast("dict[str, Any]", config.get("text_config") or config)


def _pooling(folder: Path) -> str:
    path = folder / "1_Pooling" / "config.json"
    return "cls" if path.exists() and read_json(path).get("pooling_mode_cls_token") else "mean"


def _most_tokens(folder: Path) -> int:
    said = [_text_config(folder).get("max_position_embeddings"), _MOST_TOKENS]
    for file, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / file).exists():
            said.append(read_json(folder / file).get(key))
    if _config(folder).get("model_type") == "siglip2":
        said.append(64)
    return int(min(number for number in said if number))


def _tokenizer(folder: Path, whole: bool, most: int) -> Callable[[list[str]], dict[str, np.ndarray]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise Corrupt(
            f"the tokenizer cannot be loaded: {reason}", where=str(folder), fix="save it into the folder; some need `pip install sentencepiece`"
        ) from None

    def tokenize(texts: list[str]) -> dict[str, np.ndarray]:
        out = tokenizer(texts, padding="max_length" if whole else True, truncation=True, max_length=most, return_tensors="np")
        ids = out["input_ids"].astype(np.int64)
        masked = "attention_mask" in tokenizer.model_input_names
        return {"ids": ids, "mask": out["attention_mask"].astype(np.int64) if masked else np.ones_like(ids)}

    return tokenize
