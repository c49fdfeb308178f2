"""What is left of a vision-language model without its eyes is what was there before, number for number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pinhole.errors import UnknownName, UsageError
from pinhole.graft import surgery
from pinhole.graft.base import files_read, load_base
from pinhole.graft.model import Graft
from pinhole.graft.projector import Projector
from pinhole.graft.prompt import Message, Soft
from pinhole.graft.shards import Shards
from pinhole.graft.surgery import FAMILIES, plain_name
from tiny_vlms import SHAPES, save_vlm, tiny_vlm

CLASSES = {
    "qwen3_vl": "Qwen3ForCausalLM",
    "qwen3_vl_moe": "Qwen3MoeForCausalLM",
    "qwen2_5_vl": "Qwen2ForCausalLM",
    "smolvlm": "LlamaForCausalLM",
    "idefics3": "LlamaForCausalLM",
    "llava": "MistralForCausalLM",
    "llava_onevision": "Qwen2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "internvl": "Qwen2ForCausalLM",
}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A checkpoint of a family, and the model in it."""

    @cache
    def make(family: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp(family)
        return folder, save_vlm(family, folder)

    return make


Saved = Callable[[str], tuple[Path, Any]]


def test_every_family_has_a_tiny_one() -> None:
    assert set(FAMILIES) == set(SHAPES) == set(CLASSES)


def ids(n: int = 40) -> torch.Tensor:
    return torch.randint(3, 300, (2, n), generator=torch.Generator().manual_seed(0))


@families
@pytest.mark.parametrize("tied", [False, True])
def test_over_text_nothing_changed(family: str, tied: bool, tmp_path: Path) -> None:
    vlm = save_vlm(family, tmp_path, tied=tied)
    lm, _ = load_base(str(tmp_path), torch.float32)
    assert type(lm).__name__ == CLASSES[family]
    assert (lm.lm_head.weight is lm.get_input_embeddings().weight) == tied
    with torch.no_grad():
        before, after = vlm(input_ids=ids()).logits, lm(input_ids=ids()).logits
    assert torch.isfinite(before).all() and before.std() > 0.1
    assert torch.equal(before, after)


def through_its_own_slots(vlm: Any, tokens: list[int], pictures: torch.Tensor) -> torch.Tensor:
    """Logits of the whole model, with ``pictures`` (n, k, hidden) where ``tokens`` are negative, as if its tower had made them."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    config = vlm.config
    mark = getattr(config, "image_token_id", None) or config.image_token_index
    seen = torch.tensor([[token if token >= 0 else mark for token in tokens]])
    family, n, side = config.model_type, len(pictures), round(pictures.shape[1] ** 0.5)
    more: dict[str, Any] = {}
    made: Any = list(pictures)
    if family.startswith("qwen"):
        merge = config.vision_config.spatial_merge_size
        more = {"mm_token_type_ids": (seen == mark).int(), "image_grid_thw": torch.tensor([[1, side * merge, side * merge]] * n)}
    elif not family.startswith("llava"):
        more = {"token_type_ids": (seen == mark).int()} if family == "gemma3" else {}
        made = pictures
    output = BaseModelOutputWithPooling(pooler_output=made)
    if family.startswith("qwen3"):
        output["deepstack_features"] = output.deepstack_features = []
    with torch.no_grad():
        return vlm(input_ids=seen, mm_encoder_outputs={"image": output}, **more).logits  # type: ignore[no-any-return]


@families
def test_a_soft_token_is_read_as_a_picture_was(family: str, saved: Saved) -> None:
    """k = 1: the graft's prompt, and the whole model with the same vectors in its image slots and no tower.

    Between two pictures stands a word, as it does in every card: M-RoPE counts on from the largest position of the picture
    before, and two of Qwen's image slots in a row would be one picture.
    """
    folder, vlm = saved(family)
    lm, tokenizer = load_base(str(folder), torch.float32)
    torch.manual_seed(1)
    graft = Graft(lm, tokenizer, Projector(8, 48, 16), space="s", card="#{k}{soft} {title}", card_words=8).eval()
    graft.projector.length.data.fill_(graft.token_length())
    soft = [Soft(str(i), np.random.default_rng(i).standard_normal(8).astype(np.float32)) for i in range(3)]
    prompt = graft.prompter.render([Message.of("user", "#1", soft[0], " a lemon\n#2", soft[1], " a dog\n#3", soft[2], " which is blue")])
    with torch.no_grad():
        after = lm(inputs_embeds=graft.embed(prompt)).logits
        pictures = graft.soft_tokens(prompt.soft)[:, None]
        before = through_its_own_slots(vlm, list(prompt.tokens), pictures)
        without = through_its_own_slots(vlm, list(prompt.tokens), 0 * pictures)
    assert torch.equal(before, after)
    assert not torch.allclose(before, without), "the pictures are read at all"


OTHERWISE = {"qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "gemma3"}  # M-RoPE's two more axes; attention both ways within a picture


@families
def test_where_four_tokens_a_picture_differ(family: str, saved: Saved) -> None:
    """As docs/families.md says: some families read a picture of several tokens otherwise than words in their place."""
    folder, vlm = saved(family)
    lm, _ = load_base(str(folder), torch.float32)
    tokens = [5, 6, -1, -2, -3, -4, 7, 8]
    embedded = lm.get_input_embeddings()(torch.tensor([tokens]).clamp_min(0))
    pictures = embedded.std() * torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        after = lm(inputs_embeds=torch.cat([embedded[:, :2], pictures, embedded[:, 6:]], 1)).logits
        before = through_its_own_slots(vlm, tokens, pictures)
    assert torch.equal(before[:, :2], after[:, :2])
    assert torch.equal(before, after) == (family not in OTHERWISE)
    assert family not in OTHERWISE or (before - after).abs().max() > 0.1 * after.std(), "and not by rounding"
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{family}`")]
    assert row.split("|")[-2].strip() == ("differs" if family in OTHERWISE else "exact")


@families
def test_saved_and_loaded_is_the_same(family: str, saved: Saved, tmp_path: Path) -> None:
    """As a graft, and by anybody who has only transformers."""
    lm, tokenizer = load_base(str(saved(family)[0]), torch.float32)
    graft = Graft(lm, tokenizer, Projector(8, 48, 16), space="s", card="#{k}{soft}", card_words=8)
    graft.save(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        logits = [one(input_ids=ids()).logits for one in (lm, Graft.load(tmp_path, torch.float32).lm)]
        assert torch.equal(*logits)
        torch.testing.assert_close(plain(input_ids=ids()).logits, logits[0], rtol=1e-3, atol=1e-3)  # its attention is SDPA
    assert not [name for name in load_file(tmp_path / "model.safetensors") if plain_name(name) is None]


# -- what is read -----------------------------------------------------------------------------------


def in_two(folder: Path) -> Path:
    """The checkpoint with its eyes in a file of their own, which is returned."""
    state = load_file(folder / "model.safetensors")
    eyes = {name: tensor for name, tensor in state.items() if plain_name(name) is None}
    parts = {"model-1.safetensors": {name: tensor for name, tensor in state.items() if name not in eyes}, "model-2.safetensors": eyes}
    assert all(parts.values())
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder / "model-2.safetensors"


@families
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_the_eyes_are_never_read(family: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = save_vlm(family, tmp_path)
    eyes = in_two(tmp_path)
    if how == "gone":
        eyes.unlink()
    else:
        eyes.write_bytes(eyes.read_bytes()[:20])
    read: list[str] = []
    honest = Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, name: read.append(name) or honest(self, name))  # type: ignore[func-returns-value]
    lm, _ = load_base(str(tmp_path), torch.float32)
    assert sorted(read) == sorted(name for name in Shards(tmp_path).names if plain_name(name)), "each language tensor, once"
    with torch.no_grad():
        assert torch.equal(lm(input_ids=ids()).logits, vlm(input_ids=ids()).logits)


def test_a_base_is_known_by_what_is_read_of_it(tmp_path: Path) -> None:
    from pinhole.stages import _stamps

    save_vlm("llava", tmp_path)
    eyes = in_two(tmp_path)
    assert eyes not in files_read(tmp_path) and tmp_path / "model-1.safetensors" in files_read(tmp_path)
    before = _stamps(str(tmp_path), files_read)
    eyes.unlink()
    assert _stamps(str(tmp_path), files_read) == before
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    assert _stamps(str(tmp_path), files_read) != before


def test_experts_lie_either_way(tmp_path: Path) -> None:
    """In checkpoints there are both orders of their axes."""
    vlm = save_vlm("qwen3_vl_moe", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert any("experts" in key for key in state)
    for key in state:
        if "experts" in key:
            state[key] = state[key].transpose(1, 2).contiguous()
    with torch.no_grad():
        logits = [load_base(str(tmp_path), torch.float32)[0](input_ids=ids()).logits]
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        logits += [load_base(str(tmp_path), torch.float32)[0](input_ids=ids()).logits, vlm(input_ids=ids()).logits]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[1], logits[2])


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.text_model.norm.weight", "model.norm.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.model.layers.3.self_attn.rotary_emb.inv_freq", None),
        ("visual.merger.mlp.0.weight", None),
        ("model.visual.blocks.0.norm1.weight", None),
        ("model.connector.modality_projection.proj.weight", None),
        ("image_newline", None),
        ("something.else", "something.else"),
    ],
)
def test_names_of_all_layouts(written: str, plain: str | None) -> None:
    assert plain_name(written) == plain


# -- bad input --------------------------------------------------------------------------------------


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def llava(tmp_path: Path) -> Iterator[Path]:
    save_vlm("llava", tmp_path)
    yield tmp_path


UP = "language_model.model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop(UP), r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (
            lambda state: [state.pop(name) for name in list(state) if "layers.2." in name],
            r"9 missing: (model\.layers\.2[^,]*, ){3}model\.layers\.2\S* …",
        ),
        (lambda state: state.update({"language_model.model.layers.9.x": torch.ones(1)}), r"1 not of this model: model\.layers\.9\.x"),
        (lambda state: state.update({"audio.x": torch.ones(1)}), r"1 not of this model: audio\.x"),
        (lambda state: state.update({UP: torch.ones(3, 48)}), r"1 of another shape: model\.layers\.1\.mlp\.up_proj\.weight \(3, 48\) for \(96, 48\)"),
        (lambda state: state.pop("language_model.lm_head.weight"), r"1 missing: lm_head\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Callable[[dict[str, torch.Tensor]], Any], said: str, llava: Path) -> None:
    changed(llava, change)
    with pytest.raises(UsageError, match=said) as caught:
        load_base(str(llava), torch.float32)
    assert str(llava) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (lambda state: state.update({"model.layers.9.x": torch.ones(1)}), r"1 not of this model: model\.layers\.9\.x"),
        (lambda state: state.update({"model.norm.weight": torch.ones(3)}), r"1 of another shape: model\.norm\.weight \(3,\) for \(48,\)"),
    ],
)
def test_those_of_a_plain_model_too(change: Callable[[dict[str, torch.Tensor]], Any], said: str, tmp_path: Path) -> None:
    from toy_model import tiny_lm, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_lm(len(tokenizer) + 5).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=said):
        load_base(str(changed(tmp_path, change)), torch.float32)


def test_an_output_of_its_own_is_kept_though_the_words_are_tied(tmp_path: Path) -> None:
    """As transformers reads such a checkpoint; where both are equal they are one."""
    save_vlm("gemma3", tmp_path, tied=True)
    words = load_file(tmp_path / "model.safetensors")["language_model.model.embed_tokens.weight"]
    changed(tmp_path, lambda state: state.update({"language_model.lm_head.weight": words.clone()}))
    lm, _ = load_base(str(tmp_path), torch.float32)
    assert lm.lm_head.weight is lm.get_input_embeddings().weight
    changed(tmp_path, lambda state: state.update({"language_model.lm_head.weight": -words}))
    lm, _ = load_base(str(tmp_path), torch.float32)
    assert torch.equal(lm.lm_head.weight, -lm.get_input_embeddings().weight)


@pytest.mark.parametrize("model_type", ["mllama", "paligemma", "clip", "never_heard_of"])
def test_other_families_are_refused_with_those_that_are_known(model_type: str, tmp_path: Path) -> None:
    settings = transformers.CONFIG_MAPPING[model_type]().to_dict() if model_type in transformers.CONFIG_MAPPING else {"model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UnknownName, match=f"`{model_type}`.*qwen3_vl, .*internvl, and any plain causal LM; docs/families.md"):
        load_base(str(tmp_path), torch.float32)


def test_pickles_are_not_read(llava: Path) -> None:
    torch.save(load_file(llava / "model.safetensors"), llava / "pytorch_model.bin")
    (llava / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"pickled \(pytorch_model\.bin\).*save_pretrained"):
        load_base(str(llava), torch.float32)


def test_weights_that_are_gone_cut_or_elsewhere(llava: Path) -> None:
    in_two(llava)
    index = llava / "model.safetensors.index.json"
    language = llava / "model-1.safetensors"
    language.write_bytes(language.read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"cannot read the weights.*model-1\.safetensors.*download"):
        load_base(str(llava), torch.float32)
    language.unlink()
    with pytest.raises(UsageError, match=r"no model-1\.safetensors"):
        load_base(str(llava), torch.float32)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../../secret.safetensors"}}))
    with pytest.raises(UsageError, match=r"names `\.\./\.\./secret\.safetensors`"):
        load_base(str(llava), torch.float32)
    index.write_text("{}")
    with pytest.raises(UsageError, match="no weight_map"):
        load_base(str(llava), torch.float32)
    index.unlink()
    with pytest.raises(UsageError, match=r"no model\.safetensors "):
        load_base(str(llava), torch.float32)


def test_quantised_weights_are_refused(llava: Path) -> None:
    config = json.loads((llava / "config.json").read_text())
    (llava / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq", "bits": 4}}))
    with pytest.raises(UsageError, match="quantised.*name the checkpoint that they were made from"):
        load_base(str(llava), torch.float32)


# -- how they are asked -----------------------------------------------------------------------------


def test_a_processors_template_of_old(llava: Path) -> None:
    """In a file of its own, with content as a list of parts only."""
    (llava / "chat_template.jinja").unlink()
    template = "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}{{ part['text'] }}{% endfor %};{% endfor %}"
    (llava / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    lm, tokenizer = load_base(str(llava), torch.float32)
    graft = Graft(lm, tokenizer, Projector(8, 48, 16), space="s", card="#{k}{soft}", card_words=8)
    prompt = graft.prompter.render([Message.of("user", "hello"), Message.of("assistant", "yes")], generate=False)
    assert tokenizer.decode(prompt.tokens) == "user: hello;assistant: yes<|im_end|>;"
    end = [token for token, learn in zip(prompt.tokens, prompt.learn, strict=True) if learn][-1]
    assert end == graft.prompter.end, "what stops the model is learned"


def test_m_rope_becomes_rope() -> None:
    text = surgery.qwen3(tiny_vlm("qwen3_vl").config)
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
