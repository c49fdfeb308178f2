"""The claim: a turn with ten pictures costs the graft what as many words cost, and the same model with its eyes many times that (goal: 80).

One process, one model of the real Qwen3-VL-2B shapes with random weights in bfloat16, sides in turns: the whole model on
images of 512 × 512 pixels; the same with its tower's output kept (256 tokens an image); the graft, projector included, with
k = 1, 4 and 16 soft tokens an image; and the floor, as many ordinary tokens as the graft's prompt with k = 1. What is
timed is one forward pass to the logits of the last position, nothing cached, on the same threads, each side with the attention
and the layout of weights that is fastest for it. Looking at a picture
that was never seen is reported apart, and what all this costs on paper beside it.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinhole.console import columns
from pinhole.errors import PinholeError
from pinhole.evaluation import flops
from pinhole.evaluation.flops import SHAPES, Turn
from pinhole.workspace import Workspace

SIZES = {"quick": (1, 4), "default": (1, 4, 10), "long": (1, 4, 10, 30)}  # images in a turn
SHAPE = SHAPES["2B"]
EDGE = 512  # pixels
CONTENT = 1536  # width of a content embedding: 1280 of the default encoder, 256 learned
TOKENS = (1, 4, 16)  # soft tokens an image
ROUNDS, SHORT = 3, 5  # of all sides; and of the short ones in each, which take a hundredth of the time
Progress = Callable[[int, int], None]


def run(workspace: Workspace | None = None, progress: Progress | None = None, sizes: Sequence[int] = SIZES["default"]) -> dict[str, Any]:
    """``turn.n<N>.full_over_graft``, ``.cached_tower_over_graft`` and ``.graft_over_floor`` are ratios of medians of seconds (k = 1);
    ``.full_s``, ``.cached_tower_s``, ``.graft_s``, ``.graft_s.k4``, ``.graft_s.k16``, ``.floor_s`` those medians with their ``.n``;
    ``.flops.*`` the same on paper. ``turn.tower_image_s`` and ``turn.encoder_image_s`` are a never-seen image, looked at once."""
    import torch

    from pinhole.evaluation.machine import in_words, machine

    sides = _Sides()
    figures: dict[str, Any] = {"turn.machine": in_words(machine()), "turn.threads": torch.get_num_threads(), "turn.tower_attention": sides.attention}
    figures |= {"turn.tower_image_s": sides.tower_s} | _encoder(workspace)
    for place, images in enumerate(sizes):
        times: dict[str, list[float]] = {}
        layouts = sides.choose(images)
        for turn in range(ROUNDS):
            for name, seconds in sides.round(layouts, images, turn):
                times.setdefault(name, []).append(seconds)
            if progress:
                progress(place * ROUNDS + turn + 1, len(sizes) * ROUNDS)
        figures |= _figures(images, times) | {f"turn.n{images}.weights.{side}": name for side, name in zip(("vlm", "graft"), layouts, strict=True)}
    return figures | flops.on_paper()


def _figures(images: int, times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    key, turn = f"turn.n{images}", Turn(images, EDGE)
    spent = {name: statistics.median(seconds) for name, seconds in times.items()}
    looked, kept, grafted = flops.full(SHAPE, turn), flops.cached_tower(SHAPE, turn), flops.graft(SHAPE, turn)
    found: dict[str, float] = {
        f"{key}.full_over_graft": spent["full_s"] / spent["graft_s"],
        f"{key}.cached_tower_over_graft": spent["cached_tower_s"] / spent["graft_s"],
        f"{key}.graft_over_floor": spent["graft_s"] / spent["floor_s"],
        f"{key}.flops.full_over_graft": looked / grafted,
        f"{key}.flops.cached_tower_over_graft": kept / grafted,
        f"{key}.flops.full": looked / 1e12,
        f"{key}.flops.cached_tower": kept / 1e12,
        f"{key}.flops.graft": grafted / 1e12,
        f"{key}.full_tokens": turn.tokens(flops.BRACKETS + SHAPE.tower.tokens(EDGE)),
        f"{key}.graft_tokens": turn.tokens(1),
    }
    for name, seconds in spent.items():
        found |= {f"{key}.{name}": seconds, f"{key}.{name}.n": len(times[name])}
    return found


class _Sides:
    """The model and what each side asks of it; every method takes seconds of one forward pass.

    Every side runs as fast as this machine lets it: attention of the tower and the layout of the weights are tried, the faster is taken.
    """

    def __init__(self) -> None:
        import torch

        from pinhole.benchmarks._random_vlm import packed, pictures, random_vlm, without_eyes
        from pinhole.graft.projector import Projector

        vlm = random_vlm(SHAPE, torch.bfloat16)
        self.models = {"plain": (vlm, without_eyes(vlm))}
        if (laid := packed(*self.models["plain"])) is not None:
            self.models["packed"] = laid
        self.projector = Projector(CONTENT, SHAPE.language.hidden).eval()
        self.one = pictures(SHAPE.tower, 1, EDGE, torch.bfloat16)
        towers = {(attention, layout): pair[0].model.visual for layout, pair in self.models.items() for attention in ("sdpa", "eager")}
        with torch.inference_mode():
            self.tower_s, (self.attention, layout) = min((self._look(tower, name[0]), name) for name, tower in towers.items())
            tower = towers[self.attention, layout]
            tower.config._attn_implementation = self.attention
            for pair in self.models.values():
                pair[0].model.visual = tower
            self.seen = vlm.model.get_image_features(**self.one, return_dict=True)

    def _look(self, tower: Any, attention: str, times: int = 3) -> float:
        """Seconds of the tower on one image, the best of a few."""
        tower.config._attn_implementation = attention
        return min(_seconds(lambda: tower(self.one["pixel_values"], grid_thw=self.one["image_grid_thw"])) for _ in range(times))

    def choose(self, images: int) -> tuple[str, str]:
        """The faster layout of the language model's weights for the long prompts and for the short ones; and a warm-up of both."""
        import torch

        with torch.inference_mode():
            long = min(self.models, key=lambda name: self.cached_tower(name, images))
            short = min(self.models, key=lambda name: min(self.graft(name, images, 1) for _ in range(SHORT)))
        return long, short

    def round(self, layouts: tuple[str, str], images: int, number: int) -> Iterator[tuple[str, float]]:
        """Each side once, the short ones several times, beginning with another one each time."""
        import torch

        long, short = layouts
        with torch.inference_mode():
            yield "full_s", self.full(long, images)
            yield "cached_tower_s", self.cached_tower(long, images)
            sides: list[tuple[str, Callable[[], float]]] = [("floor_s", lambda: self.floor(short, images))]
            for k in TOKENS:
                sides.append(("graft_s" if k == 1 else f"graft_s.k{k}", lambda k=k: self.graft(short, images, k)))  # type: ignore[misc]
            self.floor(short, images)  # the long ones have left nothing in the processor's caches
            for turn in range(SHORT):
                start = (number + turn) % len(sides)
                for name, side in (*sides[start:], *sides[:start]):
                    yield name, side()

    def full(self, layout: str, images: int) -> float:
        """Every image is looked at."""
        from pinhole.benchmarks._random_vlm import pictures

        vlm = self.models[layout][0]
        looking, asked = pictures(SHAPE.tower, images, EDGE, vlm.dtype), self._prompt(images)
        return _seconds(lambda: vlm(**asked, **looking, use_cache=False, logits_to_keep=1))

    def cached_tower(self, layout: str, images: int) -> float:
        """The tower's output is there, for its DeepStack layers too."""
        seen = type(self.seen)(
            pooler_output=self.seen.pooler_output * images, deepstack_features=[layer * images for layer in self.seen.deepstack_features]
        )
        asked = self._prompt(images) | {"image_grid_thw": self.one["image_grid_thw"].repeat(images, 1)}
        return _seconds(lambda: self.models[layout][0](**asked, mm_encoder_outputs={"image": seen}, use_cache=False, logits_to_keep=1))

    def graft(self, layout: str, images: int, k: int) -> float:
        """``k`` soft tokens an image, from vectors that were computed once."""
        import torch

        lm, vectors, ids = self.models[layout][1], torch.randn(images * k, CONTENT), _words(Turn(images).tokens(k))
        where = torch.zeros(len(ids[0]), dtype=torch.bool)
        where[-images * k :] = True  # their place is all the same to a forward pass

        def ask() -> None:
            embedded = lm.get_input_embeddings()(ids)
            embedded[0, where] = self.projector(vectors).to(embedded.dtype)
            lm(inputs_embeds=embedded, use_cache=False, logits_to_keep=1)

        return _seconds(ask)

    def floor(self, layout: str, images: int) -> float:
        """As many ordinary tokens as the graft reads with k = 1."""
        ids = _words(Turn(images).tokens(1))
        return _seconds(lambda: self.models[layout][1](input_ids=ids, use_cache=False, logits_to_keep=1))

    def _prompt(self, images: int) -> dict[str, Any]:
        """Ids (1, tokens) with room for every image's tokens, and which of them are an image's."""
        import torch

        each, turn, image = SHAPE.tower.tokens(EDGE), Turn(images), self.models["plain"][0].config.image_token_id
        marked = torch.tensor([*range(turn.marks + flops.BRACKETS), *[image] * each]).repeat(images)
        ids = torch.cat([_words(turn.words)[0], marked])[None]
        return {"input_ids": ids, "mm_token_type_ids": (ids == image).int()}


def _words(tokens: int) -> Any:
    """Ids (1, tokens) of ordinary text."""
    import torch

    return torch.arange(tokens)[None] % (SHAPE.language.vocab - 2)


def _seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def _encoder(workspace: Workspace | None, times: int = 5) -> dict[str, float]:
    """Seconds of the open encoder on one picture file, decoded and resized, on its one thread; nothing where it cannot be had."""
    import numpy as np
    from PIL import Image

    from pinhole.config import VisionConfig
    from pinhole.vision.encoders import image_encoder

    try:
        encoder = image_encoder((workspace.config.vision if workspace else VisionConfig()).image_encoder)
    except PinholeError:
        return {}
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (EDGE, EDGE, 3), np.uint8)).save(file, "JPEG")
    encoder.encode_bytes([file.getvalue()])
    return {"turn.encoder_image_s": statistics.median(_seconds(lambda: encoder.encode_bytes([file.getvalue()])) for _ in range(times))}


# -- for people -----------------------------------------------------------------------------------


def table(figures: Mapping[str, Any], workspace: Workspace | None = None) -> list[str]:
    """Seconds to the first token by images in the turn, and what divides them."""
    sizes = [images for images in SIZES["long"] if f"turn.n{images}.full_s" in figures]
    rows: list[Sequence[Any]] = [("images", "whole VLM", "tower cached", "graft k=1", "k=4", "k=16", "text", "VLM/graft", "on paper", "graft/text")]
    for images in sizes:
        names = ("full_s", "cached_tower_s", "graft_s", "graft_s.k4", "graft_s.k16", "floor_s")
        spent = [f"{figures[f'turn.n{images}.{name}']:.3f} s" for name in names]
        ratios = [f"{figures[f'turn.n{images}.{name}']:.1f}×" for name in ("full_over_graft", "flops.full_over_graft")]
        rows.append((images, *spent, *ratios, f"{figures[f'turn.n{images}.graft_over_floor']:.3f}×"))
    once = [f"a picture never seen: {figures['turn.tower_image_s']:.3f} s by the VLM's own tower ({figures['turn.tower_attention']} attention)"]
    if "turn.encoder_image_s" in figures:
        once.append(f"{figures['turn.encoder_image_s']:.3f} s by the open encoder on one thread")
    paper: list[Sequence[Any]] = [("on paper", *(f"N = {images:,}" for images in (1, 10, 100, 1000)))]
    for name in SHAPES:
        paper.append((name, *(f"{figures[f'flops.{name}.n{images}.full_over_graft']:,.0f}×" for images in (1, 10, 100, 1000))))
    machine = f"{figures['turn.machine']}; {_threads(figures)}, bfloat16, random weights"
    return [*columns(rows), "", ", ".join(once), machine, "", *columns(paper), "", *_money(figures, sizes[-1], workspace)]


def _money(figures: Mapping[str, Any], images: int, workspace: Workspace | None) -> list[str]:
    """What a thousand such prompts cost up to the first token: seconds of this machine, or a frontier model's tokens."""
    from pinhole.catalogue.prices import load_prices
    from pinhole.evaluation.cost import machine_usd, tokens_usd

    prices, turn = load_prices(workspace.root if workspace else None), Turn(images)
    hour = f"{prices.own.usd_per_hour:g} USD an hour ({prices.use.machine}, {prices.own.date})"
    rows: list[Sequence[Any]] = [(f"USD for 1,000 prompts of {images} images", "", "")]
    for label, name in (("whole VLM", "full_s"), ("tower cached", "cached_tower_s"), ("graft k=1", "graft_s")):
        seconds = figures[f"turn.n{images}.{name}"]
        rows.append((label, 1000 * machine_usd(prices.own, 1 / seconds), f"{seconds:.3f} s each, one at a time, at {hour}"))
    for label, row in prices.frontier.items():
        usd = tokens_usd(row, turn.tokens(0), 0.0, images, 0.0)
        if usd is not None:
            read = f"({turn.tokens(0)} + {images} × {row.image_tokens}) tokens at {row.input:g} USD a million ({row.date})"
            rows.append((label, 1000 * usd, read))
    return columns(rows)


def _threads(figures: Mapping[str, Any]) -> str:
    return "1 thread" if figures["turn.threads"] == 1 else f"{figures['turn.threads']} threads"


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Measured seconds beside TFLOPs on paper, both against the images in a turn."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    sizes = [images for images in SIZES["long"] if f"turn.n{images}.full_s" in figures]
    many = [1, 2, 4, 10, 20, 40, 100, 200, 400, 1000]
    sides: dict[str, tuple[str, str, Callable[[Turn], float]]] = {
        "the VLM with its eyes": ("full_s", "#c0392b", lambda turn: flops.full(SHAPE, turn)),
        "its tower's output cached": ("cached_tower_s", "#e08e0b", lambda turn: flops.cached_tower(SHAPE, turn)),
        "the graft, 16 soft tokens a picture": ("graft_s.k16", "#7fb3d5", lambda turn: flops.graft(SHAPE, turn, 16)),
        "the graft, 1 soft token a picture": ("graft_s", "#1f618d", lambda turn: flops.graft(SHAPE, turn)),
    }
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    measured, paper = figure.subplots(1, 2)
    for label, (name, colour, cost) in sides.items():
        measured.plot(sizes, [figures[f"turn.n{n}.{name}"] for n in sizes], "o-", color=colour, label=label, linewidth=2)
        paper.plot(many, [cost(Turn(n)) / 1e12 for n in many], color=colour, linewidth=2)
    measured.plot(sizes, [figures[f"turn.n{n}.floor_s"] for n in sizes], "k:", label="as many tokens of plain text", linewidth=1.5)
    last = sizes[-1]
    ratio = figures[f"turn.n{last}.full_over_graft"]
    ends = (figures[f"turn.n{last}.graft_s"], figures[f"turn.n{last}.full_s"])
    measured.annotate("", (last, ends[1]), (last, ends[0]), arrowprops={"arrowstyle": "<->", "color": "#555", "shrinkA": 6, "shrinkB": 6})
    measured.annotate(f"{ratio:.0f}×", (last, (ends[0] * ends[1]) ** 0.5), (-8, 0), textcoords="offset points", ha="right", color="#555", fontsize=13)
    measured.set(title="seconds to the first token, measured", xlabel="pictures in the turn", ylabel="seconds")
    paper.set(title="arithmetic of the same turn, on paper", xlabel="pictures in the turn", ylabel="TFLOPs")
    for axes, ticks in ((measured, sizes), (paper, [1, 10, 100, 1000])):
        axes.set(xscale="log", yscale="log", xticks=ticks)
        axes.minorticks_off()
        axes.grid(color="#ddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    measured.legend(frameon=False, fontsize=9, loc="upper left")
    low, high = measured.get_ylim()
    measured.set_ylim(low, high * 8)  # room for the legend
    machine = f"{figures['turn.machine']}, {_threads(figures)}"
    figure.suptitle(f"Qwen3-VL-2B shapes, pictures of {EDGE} × {EDGE} pixels. {machine}", fontsize=9)
    figure.savefig(path, dpi=150)
