"""Where a projector begins if the base has eyes: each picture where those would have put it.

The base's own vision tower looks once at a sample of the training pictures; ridge regression leads from a picture's
content embedding to the mean of the tokens that the tower makes of it. Only the tower is loaded, with what joins it to the
words: the language model around it is a stub of one layer that is never run. Knows nothing of lessons.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from pinhole.config import GraftConfig
from pinhole.errors import BadImage, UsageError
from pinhole.graft.base import base_folder, hugging_face
from pinhole.graft.model import Graft
from pinhole.graft.shards import Shards
from pinhole.graft.surgery import FAMILIES, check_tensors, eyes_at_hand, eyes_of
from pinhole.graft.warm_start import left_out, ridge, start_cells
from pinhole.graft.world import World
from pinhole.vision.images import MAX_PIXELS, decode

_FEWEST, _MOST = 8, 2000  # pictures that the tower looks at: below the one nothing is fitted, beyond the other they are a sample
_EDGE = 224  # pixels of the square that it is shown; its own processor goes on from there
_STUB = {
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "vocab_size": 8,
    "pad_token_id": None,
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
}

Progress = Callable[[int, int], None]


def tower_at_hand(config: GraftConfig) -> Path | None:
    """The folder of the base whose tower is to be used, by ``[graft] warm_start``; None where words are to do.

    Raises :class:`UsageError` where the tower is asked for by name and cannot be had.
    """
    if config.warm_start == "words":
        return None
    folder = base_folder(config.base, eyes=config.warm_start == "tower")
    if eyes_at_hand(folder):
        return folder
    if config.warm_start == "auto":
        return None
    what = f"base `{config.base}` has no vision tower with its weights and its preprocessor_config.json"
    raise UsageError(what, where="[graft] warm_start", fix='set it to "words", or name a vision-language model as [graft] base')


class Tower:
    """The eyes of the checkpoint in ``folder``, one of ``FAMILIES``."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoImageProcessor

        hugging_face()
        whole, shards = AutoConfig.from_pretrained(folder), Shards(folder)
        state = {name: shards.read(name) for name in eyes_of(shards, FAMILIES[whole.model_type])}
        kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(whole)]
        stub = _stub(whole)
        self.model, found = kind.from_pretrained(None, config=stub, state_dict=state, dtype=dtype, output_loading_info=True)
        name = FAMILIES[whole.model_type].name
        check_tensors([key for key in sorted(found["missing_keys"]) if name(key) is None], sorted(found["unexpected_keys"]), [], folder)
        self.model.eval().to(device)
        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        if hasattr(self.processor, "do_image_splitting"):
            self.processor.do_image_splitting = False  # a picture, not its tiles
        self.takes = inspect.signature(self.model.get_image_features).parameters

    @torch.no_grad()
    def tokens(self, pixels: np.ndarray) -> Tensor:
        """uint8 RGB (height, width, 3) → what the language model would be given for it (tokens, hidden), float32."""
        ready = self.processor(images=[pixels], return_tensors="pt")
        made = self.model.get_image_features(**{key: value.to(self.model.device) for key, value in ready.items() if key in self.takes})
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in made.pooler_output]).float()


def _stub(whole: Any) -> Any:
    """The configuration with next to nothing where the language model was; its width stays, the tower writes for it."""
    whole = copy.deepcopy(whole)
    for key, value in _STUB.items():
        if hasattr(whole.text_config, key):
            setattr(whole.text_config, key, value)
    if getattr(whole.text_config, "layer_types", None):
        whole.text_config.layer_types = whole.text_config.layer_types[:1]
    whole.pad_token_id = None
    return whole


def tower_start(
    graft: Graft,
    world: World,
    folder: Path,
    image: Callable[[str], bytes],
    seed: int = 0,
    progress: Progress | None = None,
    most_pixels: int = MAX_PIXELS,
) -> dict[str, float]:
    """Start the projector's skip path and fill ``world.strange``; ``image`` gives the bytes of an item's picture.

    Returns ``graft.warm_start.tower``: the share of the variance of the tower's means that is foretold for pictures left out of the fit.
    Nothing, where too few pictures can be read.
    """
    tower = Tower(folder, graft.lm.dtype, graft.device)
    pictures, means, length = _looked_at(tower, world, image, seed, progress, most_pixels)
    if len(pictures) < _FEWEST:
        return {}
    projector = graft.projector
    projector.normalise(torch.from_numpy(world.vectors[pictures]).to(graft.device))
    x = (torch.from_numpy(world.vectors[pictures]) - projector.mean.cpu()) * projector.scale.cpu()
    middle = means.mean(0)
    fit = partial(_fit, x, means - middle)
    weight, bias = fit(list(range(len(x))))
    projector.start(weight, middle + bias, length)
    start_cells(graft, world, pictures)
    moved = left_out(x, weight, bias, fit, seed)
    vectors = ((x + moved) / projector.scale.cpu() + projector.mean.cpu()).numpy()
    world.strange = dict(zip(pictures, vectors, strict=True))
    missed = means - middle - linear(x + moved, weight, bias)
    foretold = 1 - float(missed.pow(2).sum() / (means - middle).pow(2).sum().clamp_min(1e-12))
    return {"graft.warm_start.tower": foretold, "graft.warm_start.tower.n": len(x)}


def _fit(x: Tensor, apart: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Ridge regression of some rows: weights (hidden, content), and the mean of what they lead to (hidden,)."""
    mean, at = apart[rows].mean(0), x[rows].mean(0)
    weight = ridge(x[rows] - at, apart[rows] - mean)
    return weight, mean - weight @ at


def _looked_at(
    tower: Tower, world: World, image: Callable[[str], bytes], seed: int, progress: Progress | None, most_pixels: int
) -> tuple[list[int], Tensor, float]:
    """Pictures, the mean of each one's tokens (n, hidden), and the root mean square of all tokens."""
    pictures, means, squares = [], [], []
    sample = sorted(random.Random(seed).sample(world.train, min(_MOST, len(world.train))))
    for done, i in enumerate(sample):
        try:
            tokens = tower.tokens(decode(image(world.pictures[i].id), _EDGE, most_pixels)).cpu()
        except BadImage:  # noted where it was embedded
            continue
        pictures.append(i)
        means.append(tokens.mean(0))
        squares.append(float(tokens.pow(2).mean()))
        if progress:
            progress(done + 1, len(sample))
    return pictures, torch.stack(means) if means else torch.zeros(0), float(np.sqrt(np.mean(squares))) if squares else 0.0
