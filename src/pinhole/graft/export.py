"""A graft as files for everybody else: a plain Hugging Face checkpoint, and what serves it beside it.

The checkpoint is the language model with the LoRA merged; nothing of Pinhole is needed to load it. The projector lies
beside it as a file that loaders of checkpoints pass over. The chat template puts content parts together with nothing
between them, as :class:`~pinhole.graft.prompt.Prompter` does, so that a server reads the same tokens. The folder
appears by one rename: a kill leaves the old export or the new one. Knows nothing of how a graft was trained or examined.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinhole.errors import UsageError
from pinhole.graft.base import hugging_face
from pinhole.workspace import disk_errors, read_json, write_atomic, write_json

MARK = "export.json"  # a folder that holds it is an export, and may be replaced by one
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# The template of the base is rendered around marks, and the marks are replaced by what was said, as it stands.
_BEFORE = """{%- set pinhole = namespace(messages=[], contents=[]) -%}
{%- for message in messages -%}
{%- set said = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set said.text = message['content'] -%}
{%- elif message['content'] -%}
{%- for part in message['content'] -%}
{%- set said.text = said.text ~ part['text'] -%}
{%- endfor -%}
{%- endif -%}
{%- set pinhole.contents = pinhole.contents + [said.text] -%}
{%- set mark = '\ue000' ~ loop.index0 ~ '\ue001' -%}
{%- set pinhole.messages = pinhole.messages + [dict(message, content=CONTENT)] -%}
{%- endfor -%}
{%- set messages = pinhole.messages -%}
{%- set rendered %}
"""
_AFTER = """{{ '' }}{% endset -%}
{%- for piece in rendered.split('\ue000') -%}
{%- if loop.first -%}{{ piece }}{%- else -%}
{%- set at, rest = piece.split('\ue001')[0] | int, piece.split('\ue001')[1] -%}
{{ pinhole.contents[at] }}
{%- if pinhole.messages[at]['role'] == 'assistant' and not rest.startswith(SPECIAL) -%}{{ END }}{%- endif -%}
{{ rest }}
{%- endif -%}
{%- endfor -%}"""


@dataclass(frozen=True)
class Card:
    """What the model card says; ``exams`` holds of each its name, its figure and what stands beside it."""

    name: str
    base: str
    space: str
    exams: Sequence[tuple[str, str, str]] = ()


def serving_name(key: str) -> str:
    """The model's name on a server: the graft's own, so that a gateway finds the graft it belongs to or says so."""
    return f"pinhole-{key}"


def walking(tokenizer: Any) -> str:
    """A chat template that takes content as a string or in parts and writes it out verbatim, around which it is the tokenizer's own.

    It ends every answer, as :class:`~pinhole.graft.prompt.Prompter` does, where the tokenizer's own writes nothing special there.
    """
    template = str(tokenizer.chat_template)
    if template.startswith(_BEFORE.partition("CONTENT")[0]):
        return template
    before = _BEFORE.replace("CONTENT", "mark" if _takes_strings(tokenizer) else "[{'type': 'text', 'text': mark}]")
    special = "(" + "".join(f"{json.dumps(token)}, " for token in tokenizer.all_special_tokens) + ")"
    after = _AFTER.replace("SPECIAL", special).replace("END", json.dumps(tokenizer.eos_token))
    return before + template.removesuffix("\n") + after


def _takes_strings(tokenizer: Any) -> bool:
    """Whether its template writes content that is a string; some only walk lists of parts."""
    from jinja2 import TemplateError

    try:
        return "\ue000" in tokenizer.apply_chat_template([{"role": "user", "content": "\ue000"}], tokenize=False)
    except (TemplateError, TypeError, ValueError):
        return False


def export(graft: Path, folder: Path, card: Card) -> Path:
    """Write the saved graft in ``graft`` to ``folder``. Raises :class:`UsageError` where something else is there."""
    check_place(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    with disk_errors(folder):
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _fill(graft, part, card)
            _swap(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def check_place(folder: Path) -> None:
    """An export goes to a new folder, an empty one, or over another export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError("not a folder", where=str(folder), fix="name a new folder")
    if any(folder.iterdir()) and not (folder / MARK).is_file():
        raise UsageError("the folder holds something else than an export", where=str(folder), fix="name a new or empty folder")


def _fill(graft: Path, part: Path, card: Card) -> None:
    keep = ("manifest.json", "curve.json", "checkpoint.safetensors", MARK)
    shutil.copytree(graft, part, ignore=lambda _, names: [name for name in names if name in keep or name.startswith(".") or name.endswith(".md")])
    _write_template(part)
    _write_index(part)
    meta = read_json(part / "graft.json")
    write_json(part / MARK, {"name": card.name, "base": card.base, "space": meta["space"]})
    write_atomic(part / "README.md", model_card(card, read_json(part / "config.json")))


def _write_template(part: Path) -> None:
    """Into ``chat_template.jinja``, wherever the tokenizer kept it."""
    template = walking(hugging_face().AutoTokenizer.from_pretrained(part))
    settings = read_json(part / "tokenizer_config.json")
    if settings.pop("chat_template", None) is not None:
        write_json(part / "tokenizer_config.json", settings)
    write_atomic(part / "chat_template.jinja", template)


def _write_index(part: Path) -> None:
    """Say which files are the checkpoint: vLLM reads every ``*.safetensors`` of a folder that does not, the projector too."""
    from safetensors import safe_open

    if (part / INDEX).exists() or not (part / WEIGHTS).exists():
        return
    with safe_open(part / WEIGHTS, "pt") as weights:
        names = list(weights.keys())
    size = (part / WEIGHTS).stat().st_size
    write_json(part / INDEX, {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(names, WEIGHTS)})


def _swap(part: Path, folder: Path) -> None:
    """``part`` under the name of ``folder``, in one step; what was there is under ``part`` then, and is the caller's to remove."""
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(part, folder)
        return
    if not _exchanged(part, folder):  # a system that cannot: there is nothing under the name between these two
        aside = part.with_name(f"{part.name}.old")
        os.replace(folder, aside)
        os.replace(part, folder)
        shutil.rmtree(aside, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Two folders under each other's names at once: ``renameat2`` of Linux, ``renamex_np`` of macOS."""
    libc, names = ctypes.CDLL(None), (os.fsencode(one), os.fsencode(other))
    if hasattr(libc, "renameat2"):
        here = -100  # paths are read from the current folder
        return bool(libc.renameat2(here, names[0], here, names[1], 2) == 0)
    return bool(hasattr(libc, "renamex_np") and libc.renamex_np(*names, 2) == 0)


# -- what people read ---------------------------------------------------------------------------


def model_card(card: Card, config: Mapping[str, Any]) -> str:
    """``README.md``: what the model is, what its exams said, how to load it and how to serve it."""
    facts = {"base": card.base, "embedding space": card.space}
    return _README.format(
        name=card.name,
        facts="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
        exams=_exams(card.exams),
        context=config.get("max_position_embeddings", 4096),
        flags=FLAGS,
    )


def _exams(rows: Sequence[tuple[str, str, str]]) -> str:
    if not rows:
        return "This graft has not been examined: `pinhole evaluate`, then export it again."
    lines = [f"| {_cell(name)} | {_cell(figure)} | {_cell(beside)} |" for name, figure, beside in rows]
    return "\n".join(["On held-out data, by `pinhole evaluate`:", "", "| exam | figure | beside it |", "|---|---|---|", *lines])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


FLAGS = "--enable-prompt-embeds --chat-template-content-format openai --enable-prompt-tokens-details --structured-outputs-config.backend guidance"

_README = """---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A language model that sees the pictures of one catalogue, each as soft tokens made of its embedding by a small
projector. Made by Pinhole: the LoRA is merged, so this is a plain causal language model.

| | |
|---|---|
{facts}

## What its exams said

{exams}

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```

`projector.safetensors` turns a content embedding of the space named above into soft tokens, `graft.json` says of which
widths and how an item is written in a prompt. Vectors of another embedding space mean nothing to it.

## Serve it on vLLM

```
python -m vllm.entrypoints.openai.api_server --model . --served-model-name {name} \\
  {flags} \\
  --max-model-len {context}
```

and, where the catalogue is:

```
pinhole serve --engine vllm --engine-url http://127.0.0.1:8000 --port 8080
```

`pinhole serve` computes the soft tokens and sends them as `prompt_embeds`; it checks at start-up that the server has
this model, this tokenizer and this chat template. Text that clients send to vLLM themselves may hold special tokens:
let only Pinhole reach it.
"""
