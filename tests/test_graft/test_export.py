"""An export is what is in process, is read by strangers, and is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pinhole.cli import run
from pinhole.errors import UsageError
from pinhole.graft.export import MARK, Card, export, walking
from pinhole.graft.model import Graft
from pinhole.graft.prompt import Message, Prompter
from pinhole.workspace import Workspace
from toy_model import SPACE, TEMPLATE, tiny_graft, tiny_tokenizer

CARD = Card("pinhole-0123", "pypi:some-model", SPACE, [("Seeing: what | is it?", ".58", "n = 300, guessing .07")])
STRANGER = """
import sys
sys.modules["pinhole"] = None  # importing it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer.apply_chat_template([{"role": "user", "content": "show me more"}], add_generation_prompt=True, return_dict=False)
with torch.inference_mode():
    logits = model(torch.tensor([ids])).logits
torch.save((ids, logits), sys.argv[2])
try:
    import pinhole
except ImportError:
    print("alone")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graft")
    tiny_graft().save(folder)
    (folder / "manifest.json").write_text("{}")
    (folder / "curve.json").write_text("[]")
    return folder


@pytest.fixture
def exported(saved: Path, tmp_path: Path) -> Path:
    return export(saved, tmp_path / "out", CARD)


def test_a_stranger_computes_what_we_compute(saved: Path, exported: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STRANGER, exported, tmp_path / "x.pt"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "alone\n"
    ids, logits = torch.load(tmp_path / "x.pt", weights_only=True)
    graft = Graft.load(saved, torch.float32)
    assert tuple(ids) == graft.prompter.render([Message.of("user", "show me more")]).tokens
    with torch.inference_mode():
        assert torch.equal(graft.lm(torch.tensor([ids])).logits, logits)


def test_the_projector_is_there_and_no_loader_takes_it_for_the_model(saved: Path, exported: Path) -> None:
    assert (exported / "projector.safetensors").read_bytes() == (saved / "projector.safetensors").read_bytes()
    assert json.loads((exported / "graft.json").read_text())["space"] == SPACE
    named = json.loads((exported / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(named.values()) == {"model.safetensors"} and "model.embed_tokens.weight" in named
    assert Graft.load(exported).space == SPACE
    assert not {"manifest.json", "curve.json"} & set(os.listdir(exported))


def test_the_card_says_what_was_measured_and_nothing_else(saved: Path, exported: Path, tmp_path: Path) -> None:
    text = (exported / "README.md").read_text()
    assert "| Seeing: what \\| is it? | .58 | n = 300, guessing .07 |" in text and SPACE in text
    assert "--served-model-name pinhole-0123" in text and "--enable-prompt-embeds" in text
    bare = (export(saved, tmp_path / "bare", Card("n", "b", SPACE)) / "README.md").read_text()
    assert "has not been examined" in bare and "| exam |" not in bare


# -- the chat template --------------------------------------------------------------------------

TEMPLATES = (
    TEMPLATE,
    "{% for m in messages %}\n  {% if loop.first and m['role'] != 'system' %}<|im_start|>system\nbe kind<|im_end|>\n  {% endif %}\n"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}\n"
    "{%- if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}\n",
    "{%- macro say(m) -%}<{{ m.role }}>{{ m.content }}{%- endmacro -%}\n\n{% for m in messages %}{{ say(m) }}<|im_end|>{% endfor %}  ",
)
SAID = ("  show me\n", "", "\ue0000\ue001", "{{ 1 }}<|im_end|>")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("generate", [True, False])
def test_the_template_is_the_bases_around_whatever_is_said(template: str, generate: bool) -> None:
    """As the prompter reads it: the base's own template around marks, what is said verbatim in their place."""
    tokenizer: Any = tiny_tokenizer()
    roles = ("user", "assistant", "user", "assistant")
    marked = [{"role": role, "content": f"\ue100{i}\ue101"} for i, role in enumerate(roles)]
    tokenizer.chat_template = template
    expected = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=generate)
    for i, said in enumerate(SAID):
        expected = expected.replace(f"\ue100{i}\ue101", said)
    for _ in range(2):
        tokenizer.chat_template = walking(tokenizer)
    whole = [{"role": role, "content": said} for role, said in zip(roles, SAID, strict=True)]
    parts = [{**one, "content": [{"type": "text", "text": letter} for letter in one["content"]]} for one in whole]
    for messages in (whole, parts):
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate) == expected


@pytest.mark.parametrize(
    "template",
    [
        *TEMPLATES,
        "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>\n{% endfor %}",
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    ],
)
def test_a_server_reads_what_the_prompter_reads(template: str) -> None:
    """Also of templates that only walk lists of parts, and of those that write no end after an answer."""
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = template
    roles, said = ("user", "assistant", "user"), ("hello", "a lemon", "more")
    expected = "".join(piece if isinstance(piece, str) else said[piece] for piece in Prompter(tokenizer).layout(roles, True))
    tokenizer.chat_template = walking(tokenizer)
    for form in (str, lambda text: [{"type": "text", "text": text}]):
        messages = [{"role": role, "content": form(text)} for role, text in zip(roles, said, strict=True)]
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    assert "a lemon<|im_end|>" in expected


# -- the folder ---------------------------------------------------------------------------------


def test_an_export_replaces_an_export_and_nothing_else(saved: Path, exported: Path, tmp_path: Path) -> None:
    (exported / "stale.txt").write_text("")
    assert not (export(saved, exported, CARD) / "stale.txt").exists()
    (tmp_path / "empty").mkdir()
    assert (export(saved, tmp_path / "empty", CARD) / MARK).exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="something else"):
        export(saved, tmp_path / "mine", CARD)
    with pytest.raises(UsageError, match="not a folder"):
        export(saved, tmp_path / "mine" / "thesis.tex", CARD)
    assert sorted(os.listdir(tmp_path)) == ["empty", "mine", "out"], "nothing half made is left behind"


def test_no_exchange_of_names_is_no_obstacle(saved: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinhole.graft.export._exchanged", lambda *_: False)
    (exported / "stale.txt").write_text("")
    assert not (export(saved, exported, CARD) / "stale.txt").exists()
    assert os.listdir(exported.parent) == ["out"]


AGAIN = """
import sys
from pathlib import Path
from pinhole.graft.export import Card, export
print("go", flush=True)
while True:
    export(Path(sys.argv[1]), Path(sys.argv[2]), Card("new", "b", "s"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
@pytest.mark.parametrize("after", [0.0, 0.003, 0.011, 0.03, 0.07])
def test_a_kill_leaves_a_whole_export(saved: Path, exported: Path, after: float) -> None:
    job = subprocess.Popen([sys.executable, "-c", AGAIN, saved, exported], stdout=subprocess.PIPE)
    assert job.stdout is not None and job.stdout.readline() == b"go\n"
    time.sleep(after)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert (exported / MARK).exists() and Graft.load(exported).space == SPACE
    assert set(os.listdir(exported)) >= {"model.safetensors", "projector.safetensors", "README.md", "chat_template.jinja", "tokenizer.json"}


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def shop(saved: Path, tmp_path: Path) -> Workspace:
    workspace = Workspace.create(tmp_path / "shop")
    shutil.copytree(saved, workspace.start("graft", "feed0001"), dirs_exist_ok=True)
    workspace.finish("graft", "feed0001", {"recipe": {"inputs": {}, "settings": {"graft.base": "hf:as-it-was-built"}}})
    return workspace


def examine(workspace: Workspace, graft: str) -> None:
    workspace.start("evaluate", graft)
    figures = {"see.category.accuracy": 0.5789, "see.category.accuracy.n": 321, "see.category.accuracy.chance": 0.0667}
    workspace.finish("evaluate", graft, {"recipe": {"inputs": {"graft": graft}}, "figures": figures})


def test_the_command(shop: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    examine(shop, "another")
    assert run(["export", str(out), "-w", str(shop.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"export": str(out), "name": "pinhole-feed0001", "space": SPACE, "examined": False}
    assert "hf:as-it-was-built" in (out / "README.md").read_text()
    assert "has not been examined" in (out / "README.md").read_text(), "figures of another graft are not this one's"
    examine(shop, "feed0001")
    assert run(["export", str(out), "-w", str(shop.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examined"]
    text = (out / "README.md").read_text()
    assert "| Seeing: What kind of thing is it? | .579 | n = 321, chance .067 |" in text
    assert run(["export", str(shop.root), "-w", str(shop.root)]) == 2
    assert "something else" in capsys.readouterr().err


def test_nothing_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Workspace.create(tmp_path / "shop")
    assert run(["export", str(tmp_path / "out"), "-w", str(tmp_path / "shop")]) == 1
    assert "`graft` has not been built" in capsys.readouterr().err
