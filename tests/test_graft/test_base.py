"""Bases: every family trains and answers, whatever its chat template; from the hub comes only what is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pinhole.cli import run
from pinhole.config import GraftConfig
from pinhole.engines.base import Done
from pinhole.engines.local import LocalEngine
from pinhole.errors import DownloadError, UnknownName, UsageError
from pinhole.graft import hub
from pinhole.graft.base import base_folder, load_base
from pinhole.graft.model import Graft
from pinhole.graft.prompt import Message, Prompter, Soft
from pinhole.graft.surgery import FAMILIES
from pinhole.graft.train import new_graft, train
from pinhole.graft.warm_start import warm_start
from pinhole.stages import build
from pinhole.workspace import Workspace
from test_graft.test_surgery import in_two
from tiny_vlms import PROCESSORS, save_vlm
from toy_model import DIM, OWN, tiny_tokenizer
from toy_workspace import make_models, make_source, make_workspace
from toy_world import tiny_world

SETTINGS = GraftConfig(seeing_steps=1, talking_steps=1, row_tokens=384, batch_rows=1, lora_rank=2, dtype="float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_answers(family: str, tmp_path: Path) -> None:
    save_vlm(family, tmp_path / "base")
    world = tiny_world()
    graft = new_graft(world, SETTINGS.model_copy(update={"base": str(tmp_path / "base")}))
    warm_start(graft, world)
    before = graft.lm.model.layers[0].self_attn.q_proj.weight.clone()
    (tmp_path / "out").mkdir()
    assert train(graft, world, OWN, SETTINGS, tmp_path / "out")["graft.lessons"] > 10
    assert not torch.equal(graft.lm.model.layers[0].self_attn.q_proj.weight, before)
    graft.save(tmp_path / "out")
    messages = [Message.of("user", "what is #1", Soft("x", np.ones(DIM, np.float32)))]
    with LocalEngine(Graft.load(tmp_path / "out", torch.float32)) as engine:
        *_, done = engine.chat(messages, (), max_tokens=8)
    assert isinstance(done, Done) and done.usage.completion_tokens > 0


def test_soft_tokens_are_as_long_as_words_are_read(tmp_path: Path) -> None:
    """Gemma multiplies the embedding of a word by √hidden and takes a picture as it is."""
    save_vlm("gemma3", tmp_path)
    world = tiny_world()
    graft = new_graft(world, SETTINGS.model_copy(update={"base": str(tmp_path)}))
    warm_start(graft, world)
    words = graft.lm.get_input_embeddings()
    read = words(torch.arange(words.weight.shape[0])).pow(2).mean().sqrt()
    torch.testing.assert_close(read / words.weight.pow(2).mean().sqrt(), torch.tensor(48**0.5))
    soft = graft.soft_tokens([world.soft(0)])
    torch.testing.assert_close(soft.pow(2).mean().sqrt(), read, rtol=1e-3, atol=0)
    torch.testing.assert_close(graft.word("dog").pow(2).mean().sqrt(), read, rtol=1e-3, atol=0)


def test_the_command_takes_a_vision_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pinhole graft --base DIR`` on a catalogue. It starts at its own eyes; where words start it, losing the eyes builds nothing again."""
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    root = make_workspace(tmp_path / "shop", make_source(tmp_path / "source", each=2), make_models(tmp_path / "models")).root
    save_vlm("qwen3_vl", tmp_path / "vlm")
    name, settings = PROCESSORS["qwen3_vl"]
    getattr(transformers, name)(**settings).save_pretrained(tmp_path / "vlm")
    eyes = in_two(tmp_path / "vlm")

    def graft() -> Any:
        (outcome,) = [one for one in build(Workspace.open(root), ["graft"]) if one.stage == "graft"]
        return outcome

    assert run(["graft", "--base", str(tmp_path / "vlm"), "-w", str(root)]) == 0
    assert graft().action == "fresh"
    built = Workspace.open(root).latest("graft")
    assert built and type(Graft.load(built.path).lm).__name__ == "Qwen3ForCausalLM"
    assert built.manifest["figures"]["graft.warm_start.tower.n"] > 8 and "graft.warm_start" not in built.manifest["figures"]
    Workspace.open(root).change({"graft.warm_start": "words"})
    assert "[graft] warm_start changed" in graft().reason
    built = Workspace.open(root).latest("graft")
    assert built and "graft.warm_start" in built.manifest["figures"]
    eyes.unlink()
    assert graft().action == "fresh"


# -- chat templates ---------------------------------------------------------------------------------

LIST_ONLY = (
    "{% for m in messages %}{{ m['role'] | capitalize }}:{% for line in m['content'] %}{% if line['type'] == 'text' %} {{ line['text'] }}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)  # as SmolVLM's
STRICT = (
    "{% for m in messages %}{% for line in m['content'] | selectattr('type', 'equalto', 'text') %}{{ m['role'] }}: {{ line['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)  # as LLaVA's: an answer has no end
FOLDS = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] if messages[0]['content'] is string else "
    "messages[0]['content'][0]['text'] %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{% if loop.first %}{{ first }} {% endif %}{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)  # as Gemma's
TALK = [Message.of("system", "be brief"), Message.of("user", "hello"), Message.of("assistant", "yes"), Message.of("user", "<image> more")]


def prompter(template: str) -> Prompter:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Prompter(tokenizer)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LIST_ONLY, "System: be brief<|im_end|>\nUser: hello<|im_end|>\nAssistant: yes<|im_end|>\nUser: <image> more<|im_end|>\nAssistant:"),
        (STRICT, "system: be brief user: hello assistant: yes<|im_end|> user: <image> more assistant:"),
        (
            FOLDS,
            "<|im_start|>user\nbe brief hello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
            "<|im_start|>user\n<image> more<|im_end|>\n<|im_start|>model\n",
        ),
    ],
    ids=["list", "no end", "folds"],
)
def test_templates_of_all_kinds(template: str, text: str) -> None:
    asked = prompter(template)
    assert asked.tokenizer.decode(asked.render(TALK).tokens) == text
    learned = asked.render(TALK[:3], generate=False)
    end = [token for token, learn in zip(learned.tokens, learned.learn, strict=True) if learn][-1]
    assert end == asked.end


def test_a_template_that_drops_messages_is_refused() -> None:
    with pytest.raises(UsageError, match=r"each once and in order: system, user, assistant, user.*chat_template\.jinja"):
        prompter("{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}").render(TALK)
    with pytest.raises(UsageError, match="roles must alternate"):
        prompter(FOLDS).render([TALK[1], TALK[1]])


# -- the hub ----------------------------------------------------------------------------------------


class Hub:
    """Stands in for ``snapshot_download``: a repository is a folder; what is fetched is copied and counted."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache, self.fetched, self.down = repository, cache, [], False

    def __call__(self, name: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool = False, **_: Any) -> str:
        from huggingface_hub.utils import filter_repo_objects

        snapshot = self.cache / (revision or "abc")
        if local_files_only:
            if not snapshot.exists():
                raise FileNotFoundError(name)
            return str(snapshot)
        if self.down:
            raise ConnectionError("no route to the hub")
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects([path.name for path in self.repository.iterdir()], allow_patterns=allow_patterns):
            if not (snapshot / file).exists():
                shutil.copy(self.repository / file, snapshot / file)
                self.fetched.append(file)
        return str(snapshot)


@pytest.fixture
def distant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    save_vlm("llava", tmp_path / "repository")
    in_two(tmp_path / "repository")
    (tmp_path / "repository" / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "repository" / "modeling_own.py").write_text("raise SystemExit")
    it = Hub(tmp_path / "repository", tmp_path / "snapshots")
    monkeypatch.setattr("huggingface_hub.snapshot_download", it)
    return it


def test_only_what_is_read_is_fetched_and_once(distant: Hub) -> None:
    lm, _ = load_base("hf:somebody/llava", torch.float32)
    assert type(lm).__name__ == "MistralForCausalLM"
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model-1.safetensors"} <= set(distant.fetched)
    assert not {"model-2.safetensors", "pytorch_model.bin", "modeling_own.py"} & set(distant.fetched)
    assert len(distant.fetched) == len(set(distant.fetched))
    distant.down = True
    again, _ = load_base("hf:somebody/llava", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(lm.parameters(), again.parameters(), strict=True))


def test_a_fetch_that_stopped_goes_on(distant: Hub) -> None:
    def stopped(folder: Path) -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.fetch("somebody/llava", stopped)
    (distant.cache / "abc" / "tokenizer.json").unlink()
    load_base("hf:somebody/llava", torch.float32)
    assert distant.fetched.count("tokenizer.json") == 2 and distant.fetched.count("config.json") == 1


def test_a_hub_that_is_down_is_said(distant: Hub) -> None:
    distant.down = True
    with pytest.raises(DownloadError, match=r"could not download `somebody/llava`: no route.*local folder"):
        load_base("hf:somebody/llava", torch.float32)


def test_of_an_unknown_family_no_weights_are_fetched(distant: Hub) -> None:
    settings = json.loads((distant.repository / "config.json").read_text())
    (distant.repository / "config.json").write_text(json.dumps({**settings, "model_type": "never_heard_of"}))
    with pytest.raises(UnknownName, match=r"`never_heard_of`.*docs/families\.md"):
        load_base("hf:somebody/llava", torch.float32)
    assert "config.json" in distant.fetched and not [file for file in distant.fetched if file.endswith(".safetensors")]


def test_with_its_eyes_all_is_fetched(distant: Hub) -> None:
    base_folder("hf:somebody/llava")
    assert (base_folder("hf:somebody/llava", eyes=True) / "model-2.safetensors").exists()
    assert distant.fetched.count("model-2.safetensors") == distant.fetched.count("model-1.safetensors") == 1


def test_a_repository_of_pickles_is_refused(distant: Hub) -> None:
    for path in distant.repository.glob("model*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        load_base("hf:somebody/llava", torch.float32)
