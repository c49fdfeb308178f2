"""A vision-language model without its eyes: the plain causal language model inside it, with the very same weights.

A family is known by the model type of its configuration. Of a checkpoint only the language model's tensors are read;
the vision tower and what joins it to the words never enter memory. Names and shapes are compared with the class of
the plain model before anything is read. Knows nothing of tokenizers, of grafts or of where checkpoints come from.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinhole.errors import UnknownName, UsageError
from pinhole.graft.shards import INDEX, SINGLE, Shards

if TYPE_CHECKING:
    import torch

_WORDS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_EYES = ("visual.", "vision_tower.", "vision_model.", "multi_modal_projector.", "connector.", "image_newline")
_LANGUAGE = ("language_model.model.", "language_model.", "text_model.")
_COMPUTED = "rotary_emb.inv_freq"  # in checkpoints of old
_SHOWN = 4  # names of tensors in a message


def plain_name(name: str) -> str | None:
    """A tensor's name in the plain language model; None for what belongs to the eyes, or is computed and not read.

    Covers the layouts that transformers has written over the years; what fits none of them keeps its name.
    """
    bare = name.removeprefix("model.")
    if bare.startswith(_EYES) or name.endswith(_COMPUTED):
        return None
    if bare in (_HEAD, f"language_model.{_HEAD}"):
        return _HEAD
    prefix = next((prefix for prefix in _LANGUAGE if bare.startswith(prefix)), None)
    return f"model.{bare.removeprefix(prefix)}" if prefix else name


def as_configured(whole: Any) -> Any:
    """The configuration of its language model is that of a plain one already (LLaVA: Llama, Mistral, Qwen2 …)."""
    return copy.deepcopy(whole.text_config)


def qwen2(whole: Any) -> Any:
    return like(whole.text_config, "qwen2")


def qwen3(whole: Any) -> Any:
    return like(whole.text_config, "qwen3")


def qwen3_moe(whole: Any) -> Any:
    return like(whole.text_config, "qwen3_moe", norm_topk_prob=True)  # Qwen3-VL's router always divides by the sum


def like(text: Any, model_type: str, **settings: Any) -> Any:
    """A configuration of ``model_type`` with all settings that both have. M-RoPE becomes RoPE: over text the two are one."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    known = kind().to_dict().keys() - {"model_type", "architectures", "transformers_version", "rope_parameters"}
    rope = {key: value for key, value in (text.rope_parameters or {}).items() if not key.startswith("mrope") and key != "type"}
    if rope.get("rope_type") == "mrope":
        rope["rope_type"] = "default"
    return kind(**{key: value for key, value in text.to_dict().items() if key in known}, rope_parameters=rope, **settings)


@dataclass(frozen=True)
class Family:
    """``text`` makes the plain model's configuration of the whole's, ``name`` gives a tensor's name in it (None: not read).

    Tensors whose names end as one of ``turned`` may lie in checkpoints with their last two axes exchanged.
    """

    text: Callable[[Any], Any]
    name: Callable[[str], str | None] = plain_name
    turned: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "qwen3_vl": Family(qwen3),
    "qwen3_vl_moe": Family(qwen3_moe, turned=("experts.gate_up_proj", "experts.down_proj")),
    "qwen2_5_vl": Family(qwen2),
    "smolvlm": Family(as_configured),
    "idefics3": Family(as_configured),
    "llava": Family(as_configured),
    "llava_onevision": Family(as_configured),
    "gemma3": Family(as_configured),
    "internvl": Family(as_configured),
}


def family_of(folder: Path) -> Family | None:
    """By ``config.json`` alone; None for a plain language model, and for what is no known family."""
    try:
        return FAMILIES.get(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weight_files(folder: Path, *, eyes: bool = False) -> list[str]:
    """The weight files that a base in ``folder`` is made from: of a vision-language model, those with language tensors, or with ``eyes`` all."""
    if not (folder / INDEX).exists():
        return [SINGLE]
    shards, family = Shards(folder), family_of(folder)
    return shards.files(name for name in shards.names if eyes or family is None or family.name(name))


def eyes_of(shards: Shards, family: Family) -> list[str]:
    """The tensors of the vision tower and of what joins it to the words."""
    return [name for name in shards.names if family.name(name) is None and not name.endswith(_COMPUTED)]


def eyes_at_hand(folder: Path) -> bool:
    """Whether the base in ``folder`` has a vision tower whose weight files and image processor are there too."""
    family = family_of(folder)
    prepared = any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
    if family is None or not prepared or not any((folder / name).exists() for name in (INDEX, SINGLE)):
        return False
    shards = Shards(folder)
    eyes = eyes_of(shards, family)
    return bool(eyes) and all((folder / file).exists() for file in shards.files(eyes))


def unknown_family(model_type: str) -> UnknownName:
    known = ", ".join(FAMILIES)
    return UnknownName(
        f"no plain causal language model, and no family that Pinhole can take the eyes out of: `{model_type}`",
        where="[graft] base",
        fix=f"known: {known}, and any plain causal LM; docs/families.md shows how to add one",
    )


def is_plain(config: Any) -> bool:
    """A causal language model with nothing beside it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    beside = {"text_config", "vision_config", "audio_config"} & set(getattr(config, "sub_configs", None) or ())
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not beside


def gut(folder: Path, whole: Any, dtype: torch.dtype) -> Any:
    """The plain causal LM of a checkpoint whose configuration is ``whole``, of one of ``FAMILIES``.

    Raises :class:`UsageError` where tensors are missing, too many or of another shape, naming them, and where weights
    are quantised, pickled or unreadable.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    if getattr(whole, "quantization_config", None):
        raise UsageError("the weights are quantised", where=str(folder), fix="name the checkpoint that they were made from")
    family, shards = FAMILIES[whole.model_type], Shards(folder)
    names = {plain: name for name in shards.names if (plain := family.name(name))}
    text = family.text(whole)
    text.tie_word_embeddings = _tied(whole, text, names, shards)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in kind(text).state_dict().items()}
    if text.tie_word_embeddings:
        wanted.pop(_HEAD, None)
        names.pop(_HEAD, None)
    turned = _compare({plain: shards.shape(name) for plain, name in names.items()}, wanted, family, folder)
    state = {}
    for plain, name in names.items():
        tensor = shards.read(name)
        state[plain] = (tensor.transpose(-1, -2) if plain in turned else tensor).to(dtype).contiguous()
    lm = kind.from_pretrained(None, config=text, state_dict=state, dtype=dtype, attn_implementation="eager").eval()
    if (folder / "generation_config.json").exists():  # says which tokens end a turn
        lm.generation_config = GenerationConfig.from_pretrained(folder)
    return lm


def _tied(whole: Any, text: Any, names: dict[str, str], shards: Shards) -> bool:
    """As transformers ties them: not where the checkpoint holds an output of its own."""
    if _HEAD not in names:
        return bool(whole.tie_word_embeddings or text.tie_word_embeddings)
    if not whole.tie_word_embeddings or _WORDS not in names:
        return False
    return bool((shards.read(names[_HEAD]) == shards.read(names[_WORDS])).all())


def _compare(found: dict[str, tuple[int, ...] | None], wanted: dict[str, tuple[int, ...]], family: Family, folder: Path) -> set[str]:
    """Which tensors are to be turned. Raises :class:`UsageError` with every difference."""
    turned = {name for name, shape in found.items() if shape != wanted.get(name) and name.endswith(family.turned) and shape}
    shapes = {name: (*shape[:-2], shape[-1], shape[-2]) if name in turned and shape else shape for name, shape in found.items()}
    missing = [name for name in wanted if shapes.get(name) is None]
    extra = [name for name in found if name not in wanted]
    other = [f"{name} {shapes[name]} for {shape}" for name, shape in wanted.items() if shapes.get(name) not in (None, shape)]
    check_tensors(missing, extra, other, folder)
    return turned


def check_tensors(missing: list[str], extra: list[str], other: list[str], folder: Path | str) -> None:
    """Raises :class:`UsageError` that names the first of each: tensors that are missing, too many, or of another shape."""
    kinds = (("missing", missing), ("not of this model", extra), ("of another shape", other))
    said = [f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}" for what, names in kinds if names]
    if said:
        fix = "download it again, or name the checkpoint that its config.json belongs to"
        raise UsageError(f"the checkpoint's tensors are not those of its configuration ({'; '.join(said)})", where=str(folder), fix=fix)
