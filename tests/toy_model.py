"""A tiny real language model with a real tokenizer and chat template, and a graft on it, made in a second."""

from __future__ import annotations

from typing import Any

import numpy as np

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    '{"tool":"search","text":"winter","like":"#2","unlike":"#5","category":"animals"} {"tool":"related","item":"#1"} {"tool":"board","title":"sea"} '
    "You help people explore a catalogue of pictures. Answer in a sentence or two and point at pictures by #number. "
    "I found 6 pictures: #1 shows a lemon, #2 shows a dog. results: none find show me more like that but blue please café 中文 "
)
DIM = 24
SPACE = "0123456789abcdef"


def tiny_tokenizer() -> Any:
    """Byte-level BPE, trained here on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def tiny_lm(vocabulary: int, *, context: int = 1024, seed: int = 0, **settings: Any) -> Any:
    """A random Llama with grouped-query attention, loud enough that its choices are far apart."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**{**shape, "vocab_size": vocabulary, "max_position_embeddings": context, "tie_word_embeddings": True, **settings})
    config._attn_implementation = "eager"
    lm = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return lm


def tiny_graft(*, context: int = 1024, seed: int = 0) -> Any:
    from pinhole.graft.model import Graft
    from pinhole.graft.projector import Projector

    tokenizer = tiny_tokenizer()
    lm = tiny_lm(len(tokenizer) + 5, context=context, seed=seed)
    return Graft(lm, tokenizer, Projector(DIM, 48, 32).eval(), space=SPACE, card="#{k}{soft} {title}", card_words=8)


def vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def function(name: str, about: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"name": name, "description": about, "parameters": {"type": "object", "properties": properties, "required": list(required)}}


TEXT = {"type": "string"}
REFERENCE = {"type": "string", "pattern": "^#[0-9]{1,3}$"}
TOOLS = (
    function("search", "find pictures", text=TEXT, like=REFERENCE, unlike=REFERENCE, category=TEXT),
    function("related", "pictures that go with one", ("item",), item=REFERENCE),
    function("board", "open a board", ("title",), title=TEXT),
)
OWN = (*TOOLS[:2], function("item", "details of one picture", ("item",), item=REFERENCE), TOOLS[2])
