"""What `embed`, `align` and `index` take of memory at 100,000 items, and at a tenth of that: how much grows with the catalogue.

The catalogue is made up: distinct small pictures and titles, a board for every fifty items, a query for every twenty. Vectors are as wide as
the default encoders' (1280 and 384) and come from networks of one random layer, because how long an encoder thinks does not change what its
vectors take. Each stage is `pinhole build STAGE` in a process of its own, and its peak is the one that its manifest notes: resident memory of
that process, mapped files included, and of its workers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pinhole import config
from pinhole.errors import PinholeError
from pinhole.workspace import Workspace, write_json

COUNTS = True
ITEMS = 100_000
STAGES = ("embed", "align", "index")
PART = 20_000
IMAGE_DIM, TEXT_DIM = 1280, 384
WORDS = ("red", "blue", "green", "old", "new", "oak", "chair", "table", "lamp", "sofa", "rug", "winter", "summer", "small", "large", "round")
Progress = Callable[[int, int], None]


def run(workspace: Workspace | None, progress: Progress | None = None, n: int = ITEMS) -> dict[str, float]:
    """``memory.STAGE.gb`` at ``n`` items, ``memory.STAGE.tenth_gb`` at a tenth of them, and ``memory.STAGE.ratio``, the first over the second."""
    sizes, peaks = (max(1, n // 10), n), list[dict[str, float]]()
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="pinhole-bench-") as name:
            made = _made(Path(name), size)
            for stage in STAGES:
                _build(made, stage)
                if progress:
                    progress(len(peaks) * len(STAGES) + STAGES.index(stage) + 1, len(sizes) * len(STAGES))
            peaks.append({stage: float(made.need(stage).manifest["peak_memory_gb"]) for stage in STAGES})
    small, large = peaks
    figures: dict[str, float] = {"memory.items": n}
    for stage in STAGES:
        figures |= {f"memory.{stage}.gb": large[stage], f"memory.{stage}.tenth_gb": small[stage]}
        figures[f"memory.{stage}.ratio"] = round(large[stage] / small[stage], 2)
    return figures


def _build(made: Workspace, stage: str) -> None:
    """``pinhole build STAGE`` in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "pinhole.cli", "build", stage, "--json", "-w", str(made.root)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"left with code {done.returncode}"])[-1]
        raise PinholeError(f"`pinhole build {stage}` failed", where=last, fix="see what it says")


# -- the catalogue ------------------------------------------------------------------------------


def _made(folder: Path, n: int) -> Workspace:
    """A workspace of ``n`` items with networks of its own."""
    import pyarrow as pa

    from pinhole.catalogue.store import Catalogue

    see, read = _networks(folder)
    workspace = Workspace.create(folder / "shop", config.parse({"vision": {"image_encoder": see, "text_encoder": read}}, where="bench memory"))
    catalogue, pictures = Catalogue(workspace.tables), workspace.root / "pictures"
    for start in range(0, n, PART):
        rows = [{"id": f"p{k:07d}", "image": str(path), "title": _title(k)} for k, path in _pictures(pictures, range(start, min(start + PART, n)))]
        catalogue.upsert("items", pa.Table.from_pylist(rows), base=workspace.root)
    boards = [{"id": f"b{k:06d}", "title": _title(k), "items": [f"p{(k * 50 + i * 7) % n:07d}" for i in range(20)]} for k in range(n // 50)]
    queries = [{"text": f"{WORDS[k % 16]} {k}", "item": f"p{(k * 20 + i) % n:07d}", "count": 1} for k in range(n // 20) for i in range(3)]
    for kind, listed in (("boards", boards), ("queries", queries)):
        if listed:
            catalogue.upsert(kind, pa.Table.from_pylist(listed))
    return workspace


def _title(k: int) -> str:
    return f"{WORDS[k % 16]} {WORDS[k // 16 % 16]} {WORDS[k // 256 % 16]} {k}"


def _pictures(folder: Path, numbers: range) -> Iterator[tuple[int, Path]]:
    """Files of sixteen random fields of colour each, a thousand in a folder."""
    import numpy as np
    from PIL import Image

    for k in numbers:
        path = folder / f"{k // 1000}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(k).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST).save(path)
        yield k, path


# -- the networks -------------------------------------------------------------------------------


def _networks(folder: Path) -> tuple[str, str]:
    """Checkpoints of one random layer, as wide as the default encoders; their specifications."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

    from pinhole.vision.encoders import image_encoder, text_encoder

    torch.manual_seed(0)
    shape = {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    see, read = folder / "see", folder / "read"
    ViTModel(ViTConfig(hidden_size=IMAGE_DIM, image_size=32, patch_size=32, **shape), add_pooling_layer=False).eval().save_pretrained(see)
    square = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True, "do_normalize": True}
    write_json(see / "preprocessor_config.json", {**square, "resample": 2})
    listed = ["[PAD]", "[UNK]", *WORDS, *map(str, range(10))]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(listed)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16).save_pretrained(read)
    BertModel(BertConfig(hidden_size=TEXT_DIM, vocab_size=len(listed), max_position_embeddings=16, **shape)).eval().save_pretrained(read)
    image_encoder(f"hf:{see}"), text_encoder(f"hf:{read}")  # converted here, once: that is not what is measured
    return f"hf:{see}", f"hf:{read}"
