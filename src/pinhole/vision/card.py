"""What a learned space is, for people: ``align.png`` and a model card beside its weights.

Writes what the training says of itself; what the exams say stands in the report. Knows nothing of how anything was trained.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pinhole.config import AlignConfig
from pinhole.workspace import write_atomic

if TYPE_CHECKING:
    from pinhole.vision.heads import Fitted

WATCHED = {"query": "queries nobody trained on, items by picture", "board": "mates on boards nobody trained on"}


def write_card(folder: Path, fitted: Fitted, sizes: Mapping[str, int], config: AlignConfig) -> None:
    """``align.png`` and ``README.md`` into ``folder``."""
    write_atomic(folder / "align.png", drawing(fitted))
    write_atomic(folder / "README.md", model_card(fitted, sizes, config).encode())


def drawing(fitted: Fitted) -> bytes:
    """A PNG: the loss of each signal, and recall@10 of the learned vectors alone where it was watched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, recalls = figure.subplots(1, 2)
    for name in [key for key in fitted.curve[0] if key not in ("step", "loss")] if fitted.curve else ():
        losses.plot([point["step"] for point in fitted.curve], [point[name] for point in fitted.curve], label=name, linewidth=1)
    losses.set(title="Loss", xlabel="step")
    for name in [key for key in fitted.recalls[0] if key != "step"] if fitted.recalls else ():
        recalls.plot([point["step"] for point in fitted.recalls], [point[name] for point in fitted.recalls], "o-", label=WATCHED.get(name, name))
    recalls.set(title="recall@10 on what is held out, learned vectors alone", xlabel="step", ylim=(0, None))
    for axes in (losses, recalls):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def model_card(fitted: Fitted, sizes: Mapping[str, int], config: AlignConfig) -> str:
    """What the space is, what it was trained on, how it went, and what it is not for."""
    space = fitted.space
    weights = {name: getattr(config, f"weight_{name}") for name in ("title", "board", "walk", "query")}
    lines = [
        f"# Learned space {space.identity}",
        "",
        f"Linear heads over two frozen encoders, `{space.image_encoder.spec}` and `{space.text_encoder.spec}`, into {space.dim} numbers; the first "
        f"{', '.join(str(width) for width in space.nested)} work when cut. Vectors are compared by cosine, with others of this space only.",
        "",
        "## Trained on",
        "",
        f"{sizes['items']} items of the training part ({sizes['titles']} with a title), {sizes['boards']} boards, {sizes['queries']} queries, "
        f"{sizes['users']} users whose items others met too. Private boards and held-out items, boards and queries took no part.",
        "",
        f"{len(fitted.curve)} steps of {config.batch} pairs a signal, loss `{config.loss}`; weights of the signals: "
        + ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        + f"; popularity taken off {config.popularity:g}, mined negatives {config.hard}, seed {config.seed}.",
        "",
        "![training](align.png)",
        "",
    ]
    if fitted.recalls:
        first, last = fitted.recalls[0], fitted.recalls[-1]
        lines += [
            "## recall@10 of the learned vectors alone, on the held-out part",
            "",
            "| | before the first step | after the last |",
            "|---|---|---|",
        ]
        lines += [f"| {WATCHED.get(name, name)} | {first[name]:.3f} | {last[name]:.3f} |" for name in first if name != "step"]
        lines += ["", "Nothing was chosen by these. A search adds them to what the frozen encoders say; `pinhole report` shows what that finds.", ""]
    lines += [
        "## Not for",
        "",
        "Items of another catalogue: the heads know this one's words and boards. What people look like or who they are. Text inside pictures, "
        "which the image encoder does not read.",
        "",
    ]
    return "\n".join(lines)
