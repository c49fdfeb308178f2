"""The claim: a graft that learns from the model whose eyes it lost keeps most of what that model scored.

On the workspace's catalogue: a small vision-language model with eyes (every patch of a picture is a token) is trained on the
training pictures and examined on held-out ones. Then its eyes are taken out: its language model gets a fresh projector from the
content embedding, one token a picture. From there two grafts are trained for as many steps again, one by lessons alone, one by
lessons of which the model with eyes answered a share. All answer the same held-out questions. Needs ``[vision] grid = 7`` or as
many cells as the encoder has. Tables and artefacts are only read.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinhole.workspace import Workspace

if TYPE_CHECKING:
    from pinhole.config import GraftConfig
    from pinhole.graft.model import Graft
    from pinhole.graft.taught import Taught
    from pinhole.graft.world import World

NEEDS_WORKSPACE = True
Progress = Callable[[int, int], None]


def run(workspace: Workspace, progress: Progress | None = None, steps: int = 0, n: int = 500) -> dict[str, float]:
    """``distil.SIDE.EXAM`` (sides: eyes, gutted, lessons, taught), ``distil.kept.EXAM`` taught ÷ eyes, and ``distil.kept_alone.EXAM`` lessons ÷ eyes.

    ``steps`` of each training; 0 is ``[graft] seeing_steps``. Of an exam in which the model with eyes gets nothing right no share is kept.
    """
    from pinhole.benchmarks._worlds import ALL, open_worlds
    from pinhole.evaluation.eyes import Eyed
    from pinhole.evaluation.seeing_exams import EXAMS

    config = workspace.config.graft.model_copy(update={"talking_steps": 0, "tokens_per_item": 1})
    config = config.model_copy(update={"seeing_steps": steps or config.seeing_steps})
    plain, celled = open_worlds(workspace, 1, ALL)
    eyed, bench = Eyed.of(celled), _Bench(config, n, progress)
    eyes = bench.trained(_fresh(eyed, config), eyed)
    figures = bench.asked("eyes", eyes, eyed)
    gutted = _gutted(eyes, plain, config)
    figures |= bench.asked("gutted", gutted, plain)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        taught = _taught(eyes, eyed, gutted, plain, config, Path(folder))
        figures["distil.teacher_s"] = time.perf_counter() - began
    figures["distil.teacher_right"] = taught.figures(eyes.tokenizer)["graft.taught.right"]
    figures |= bench.asked("lessons", bench.trained(_copied(gutted), plain), plain)
    figures |= bench.asked("taught", bench.trained(gutted, plain, taught), plain)
    for exam in EXAMS:
        if figures.get(f"distil.eyes.{exam}"):
            for kept, side in (("kept", "taught"), ("kept_alone", "lessons")):
                figures[f"distil.{kept}.{exam}"] = figures[f"distil.{side}.{exam}"] / figures[f"distil.eyes.{exam}"]
    return figures | {"distil.steps": float(config.seeing_steps), "distil.n": float(n)}


def _fresh(world: World, config: GraftConfig) -> Graft:
    from pinhole.graft.train import new_graft
    from pinhole.graft.warm_start import warm_start

    graft = new_graft(world, config)
    warm_start(graft, world, config.seed)
    return graft


def _gutted(eyes: Graft, world: World, config: GraftConfig) -> Graft:
    """The language model of ``eyes`` with a projector that was never trained."""
    import torch

    from pinhole.graft.projector import Projector
    from pinhole.graft.warm_start import warm_start

    torch.manual_seed(config.seed)
    graft = _copied(eyes, Projector(world.vectors.shape[1], eyes.lm.config.hidden_size).to(eyes.device), world.space)
    warm_start(graft, world, config.seed)
    return graft


def _copied(graft: Graft, projector: Any = None, space: str = "") -> Graft:
    from pinhole.graft.model import Graft

    lm, projector = copy.deepcopy(graft.lm), projector or copy.deepcopy(graft.projector)
    return Graft(lm, graft.tokenizer, projector, space=space or graft.space, card=graft.card, card_words=graft.card_words).eval()


def _taught(eyes: Graft, eyed: World, student: Graft, plain: World, config: GraftConfig, folder: Path) -> Taught:
    from pinhole.graft.taught import teach
    from pinhole.graft.teacher import GraftTeacher

    return teach(GraftTeacher(eyes, eyed, "eyes"), plain, student.tokenizer, config, folder)


class _Bench:
    """Three trainings under one bar, and the exams."""

    def __init__(self, config: GraftConfig, n: int, progress: Progress | None) -> None:
        self.config, self.n, self.progress, self.done = config, n, progress, 0

    def trained(self, graft: Graft, world: World, taught: Taught | None = None) -> Graft:
        from pinhole.graft.train import train

        def advance(done: int, total: int) -> None:
            if self.progress:
                self.progress(self.done + done, 3 * total)

        with tempfile.TemporaryDirectory() as folder:
            train(graft, world, (), self.config, Path(folder), advance, taught)
        self.done += self.config.seeing_steps
        return graft

    def asked(self, side: str, graft: Graft, world: World) -> dict[str, Any]:
        """Every exam of seeing: the same draws of pictures, names and words for all sides."""
        from pinhole.evaluation.answers import choose
        from pinhole.evaluation.intervals import share
        from pinhole.evaluation.seeing_exams import EXAMS, questions

        figures: dict[str, float] = {}
        for key, (kind, _) in EXAMS.items():
            asked = questions(world, kind, self.n, 0)
            said = choose(graft, asked)
            figures |= share(f"distil.{side}.{key}", [lesson.answer == answer for lesson, answer in zip(asked, said, strict=True)])
        return figures
