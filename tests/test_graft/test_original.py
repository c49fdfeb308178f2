"""The unmodified base as a teacher: it is asked as its own class and processor would have it, and what it cannot do is said."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from pinhole.cli import run
from pinhole.config import GraftConfig
from pinhole.errors import BadImage, UsageError
from pinhole.graft import hub
from pinhole.graft.base import load_base
from pinhole.graft.original import OriginalVLM, check_original
from pinhole.graft.prompt import Message, Soft
from pinhole.graft.seeing import Lesson
from pinhole.graft.taught import FOLDER, drawn
from pinhole.graft.teacher import K
from pinhole.stages import build
from pinhole.vision.images import decode
from pinhole.workspace import Workspace, write_json
from test_graft.test_surgery import in_two
from tiny_vlms import tiny_vlm
from toy_model import tiny_lm, tiny_tokenizer
from toy_workspace import make_models, make_source, make_workspace
from toy_world import tiny_world

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
MARKS = {"qwen3_vl": QWEN, "qwen2_5_vl": QWEN, "llava": "<image>", "idefics3": "<image>"}
SQUARE = {"height": 28, "width": 28}
QWEN_EYES = ("Qwen2VLImageProcessorPil", {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}})
EYES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_vl": QWEN_EYES,
    "qwen2_5_vl": QWEN_EYES,
    "idefics3": ("Idefics3ImageProcessorPil", {"size": {"longest_edge": 28}, "max_image_size": {"longest_edge": 28}}),
    "llava": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}),
}
PROCESSORS: dict[str, dict[str, Any]] = {  # those that run without torchvision, and their settings
    "Llava": {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    "Idefics3": {"image_seq_len": 1},
}


def save(family: str, folder: Path) -> Any:
    """A checkpoint whose tokenizer, template and processor know of pictures. The last of its words stands for one."""
    vlm, tokenizer, mark = tiny_vlm(family), tiny_tokenizer(), MARKS[family]
    first = (
        ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
        if mark == QWEN
        else ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    )
    words = [*first, "<spare>", "<|image_pad|>" if mark == QWEN else mark]
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", mark)
    name, settings = EYES[family]
    for part in (vlm, tokenizer, getattr(transformers, name)(**settings)):
        part.save_pretrained(folder)
    if family.title() in PROCESSORS:
        write_json(folder / "processor_config.json", {"processor_class": f"{family.title()}Processor", **PROCESSORS[family.title()]})
    return vlm


@functools.cache
def picture(id: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(len(id) * 100 + ord(id[-1])).integers(0, 255, (60, 80, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def settings(folder: Path | str) -> GraftConfig:
    return GraftConfig(base=str(folder), dtype="float32", teacher="original")


def lessons() -> list[Lesson]:
    found = drawn(tiny_world(), 0)
    return [lesson for _ in range(6) for lesson in next(found)][:4]


@pytest.mark.parametrize("family", EYES)
def test_it_says_and_thinks_what_its_class_does(family: str, tmp_path: Path) -> None:
    vlm = save(family, tmp_path)
    vlm.set_attn_implementation("sdpa")
    teacher, asked = OriginalVLM(settings(tmp_path), picture), lessons()
    for lesson, said in zip(asked, teacher.answer(asked), strict=True):
        inputs = by_hand(family, tmp_path, lesson, vlm.config)
        assert torch.equal(teacher.inputs(lesson.messages[:-1])["input_ids"], inputs["input_ids"])
        before = inputs["input_ids"].shape[1]
        answer = torch.from_numpy(said.tokens).long()[None]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
        for name in ("mm_token_type_ids", "attention_mask"):
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.full_like(answer, name == "attention_mask")], 1)
        with torch.no_grad():
            logits = vlm(**inputs).logits[0, before - 1 : -1].float()
        log = torch.log_softmax(logits, -1)
        assert said.tokens.tolist() == logits.argmax(-1).tolist() and said.ids.shape[1] == K
        assert np.allclose(said.logs[:, :-1], log.gather(1, torch.from_numpy(said.ids).long()).numpy(), atol=1e-3)


def by_hand(family: str, folder: Path, lesson: Lesson, config: Any) -> dict[str, torch.Tensor]:
    """The same conversation through the checkpoint's own template, image processor and, if it runs without torchvision, processor."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    eyes = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")

    def part(one: Any) -> dict[str, str]:
        return {"type": "image"} if isinstance(one, Soft) else {"type": "text", "text": one}

    talk = [{"role": message.role, "content": [part(one) for one in message.parts]} for message in lesson.messages[:-1]]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    shown = [decode(picture(one.item), 448) for message in lesson.messages for one in message.parts if isinstance(one, Soft)]
    if family.title() in PROCESSORS:
        if family == "idefics3":
            eyes.do_image_splitting = False
        processor = getattr(transformers, f"{family.title()}Processor")(eyes, tokenizer, **PROCESSORS[family.title()])
        return dict(processor(images=shown, text=[text], return_tensors="pt", add_special_tokens=False))
    pixels = eyes(images=shown, return_tensors="pt")
    for grid in pixels["image_grid_thw"]:
        text = text.replace("<|image_pad|>", "<here>" * int(grid.prod() // 4), 1)
    ids = torch.tensor([tokenizer(text.replace("<here>", "<|image_pad|>"), add_special_tokens=False)["input_ids"]])
    return {"input_ids": ids, "mm_token_type_ids": (ids == config.image_token_id).long(), **pixels}


def test_nobody_writes_a_special_token(tmp_path: Path) -> None:
    save("qwen3_vl", tmp_path)
    teacher = OriginalVLM(settings(tmp_path), picture)

    def ids(text: str) -> list[int]:
        return teacher.inputs([Message.of("user", Soft("a", np.zeros(0), item="a"), text)])["input_ids"][0].tolist()

    assert ids("a dog<|im_end|><|image_pad|>") == ids("a dog<|im_<|im_end|>end|>") == ids("a dog")


def test_a_picture_is_decoded_by_the_guarded_recipe(tmp_path: Path) -> None:
    save("qwen3_vl", tmp_path)
    message = [Message.of("user", Soft("a", np.zeros(0), item="a"), "what is this?")]
    with pytest.raises(BadImage, match="not an image"):
        OriginalVLM(settings(tmp_path), lambda id: b"<html>").inputs(message)
    with pytest.raises(BadImage, match="more than 100"):
        OriginalVLM(settings(tmp_path), picture, max_pixels=100).inputs(message)


def test_a_base_without_eyes_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_lm(len(tokenizer) + 5).save_pretrained(tmp_path)
    said = r"has no eyes to learn from \(\[graft\] teacher\).* name a vision-language model"
    for base in (tmp_path, GraftConfig().base):
        with pytest.raises(UsageError, match=said):
            check_original(settings(base))
    monkeypatch.setattr(hub, "fetch", lambda name, weights: tmp_path)
    check_original(settings("hf:somebody/plain"))  # nothing is fetched to say it
    with pytest.raises(UsageError, match=said):
        OriginalVLM(settings("hf:somebody/plain"), picture)


def test_from_the_hub_come_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("llava", tmp_path)
    in_two(tmp_path)
    fetched: list[str] = []

    def fetch(name: str, weights: Any) -> Path:
        fetched.extend(weights(tmp_path))
        return tmp_path

    monkeypatch.setattr(hub, "fetch", fetch)
    assert OriginalVLM(settings("hf:somebody/llava"), picture).identity == OriginalVLM(settings(tmp_path), picture).identity
    assert sorted(fetched) == sorted(path.name for path in tmp_path.glob("*.safetensors")) and len(fetched) == 2


def test_eyes_that_are_not_there_are_named(tmp_path: Path) -> None:
    save("qwen3_vl", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "patch_embed" not in name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"2 missing: model\.visual\.patch_embed\.proj\.bias, model\.visual\.patch_embed\.proj\.weight"):
        OriginalVLM(settings(tmp_path), picture).answer(lessons()[:1])
    save("qwen3_vl", tmp_path)
    eyes = in_two(tmp_path)
    eyes.unlink()
    load_base(str(tmp_path), torch.float32)  # the graft needs none
    with pytest.raises(UsageError, match=f"with its eyes: .*{eyes.name}"):
        OriginalVLM(settings(tmp_path), picture).answer(lessons()[:1])
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"does not say how it looks at a picture: no preprocessor_config\.json"):
        check_original(settings(tmp_path))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``pinhole graft --base DIR --teacher original``: answers are kept with the graft, and serve the next one; its eyes are in the recipe."""
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))
    root = make_workspace(tmp_path / "shop", make_source(tmp_path / "source", each=3), make_models(tmp_path / "models")).root
    where = ["-w", str(root)]
    assert run(["graft", "--teacher", "original", *where]) == 2
    assert "has no eyes to learn from" in capsys.readouterr().err
    assert run(["graft", "--teacher", "frontier", *where]) == 2
    assert Workspace.open(root).config.graft.teacher == ""
    save("qwen3_vl", tmp_path / "vlm")
    Workspace.open(root).change({"graft.taught_scenes": 5})
    assert run(["graft", "--base", str(tmp_path / "vlm"), "--teacher", "original", *where]) == 0

    def graft() -> Any:
        found = Workspace.open(root).latest("graft")
        assert found
        return found

    def kept() -> list[bytes]:
        return [path.read_bytes() for path in sorted((graft().path / FOLDER).rglob("*.safetensors"))]

    assert Workspace.open(root).config.graft.teacher == "original"
    first, answers = graft(), kept()
    assert 0 <= first.manifest["figures"]["graft.taught.right"] <= 1 < first.manifest["figures"]["graft.taught.right.n"]
    assert len(answers) == 1 and "the teacher's files" in first.manifest["recipe"]["also"]
    Workspace.open(root).change({"graft.distil_weight": 0.5})
    monkeypatch.setattr(OriginalVLM, "answer", None)  # nobody is asked
    (again,) = [one for one in build(Workspace.open(root), ["graft"]) if one.stage == "graft"]
    assert again.action == "built" and kept() == answers and graft().key != first.key
    assert run(["graft", "--teacher", "none", *where]) == 0
    assert not (graft().path / FOLDER).exists() and "the teacher's files" not in graft().manifest["recipe"]["also"]
