"""The one loop that runs the stages that are out of date, and no others.

A stage is a name, what it reads (other stages' artefacts, tables, sections of the configuration)
and a function that writes one artefact folder. Its *recipe* is the content of all that; the hash of
the recipe is the artefact's key. Equal recipe, equal key, nothing to do; a different one, and the
two recipes side by side say why.

Where data changed and nothing else, a stage may have a policy: the artefact that is there is *kept* (what reads
it does not run either), *extended* (a new artefact made cheaply from it and from what changed, whose recipe says what
it stands *onto*), or made anew.

Knows nothing of what stages do, and does not protect against edits of finished artefacts by hand.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pinhole.errors import DiskFull, UnknownName
from pinhole.memory import give_back
from pinhole.meter import Meter
from pinhole.workspace import Artefact, Workspace, digest, disk_errors, sweep

Progress = Callable[[int, int], None]
Track = Callable[[str], AbstractContextManager[Progress]]
Recipe = dict[str, Any]

KEEP = 2  # finished artefacts of a stage that stay: the one in use and the one before

# Settings that change how fast an artefact is made, and nothing in it.
WITHOUT_EFFECT = frozenset({"vision.workers", "graft.checkpoint_steps"})
# When an artefact is made anew, not what is in it: the policies' own.
WITHOUT_EFFECT |= {"align.retrain_at", "index.rebuild_at", "index.least_recall", "graft.retrain_at", "evaluate.repeat_at"}
WITHOUT_EFFECT |= {"ranker.retrain_at", "ranker.at_once", "tags.weight"}


@dataclass(frozen=True)
class Build:
    """What a stage is handed: its inputs, the folder to write (what an interrupted run left is in it), the artefact before."""

    workspace: Workspace
    inputs: Mapping[str, Artefact]
    out: Path
    previous: Artefact | None
    progress: Progress
    log: Callable[[str], None]
    on: str = ""
    """Where heavy work is done: this machine, or a cluster as ``--on`` names it. It changes nothing in the artefact."""
    onto: Artefact | None = None
    """The artefact to be extended: the policy said so. None: make it from its inputs alone."""


@dataclass(frozen=True)
class Standing:
    """What a policy is asked about: the artefact in use, of which data changed and nothing else, and the inputs of now."""

    workspace: Workspace
    latest: Artefact
    inputs: Mapping[str, Artefact]


@dataclass(frozen=True)
class Verdict:
    """What becomes of it, and why, in words."""

    action: Literal["kept", "extended", "anew"]
    words: str


@dataclass(frozen=True)
class Stage:
    """``run`` returns the figures for the manifest. Raise ``version`` when its code would write something else.

    ``also`` says what else it reads: names of things outside the workspace, and a hash of each. It may raise
    where one of them is not there. ``judge`` is its policy; without one, whatever it reads makes it anew.
    """

    name: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    tables: tuple[str, ...]
    version: int
    run: Callable[[Build], dict[str, Any]]
    also: Callable[[Workspace], dict[str, str]] = lambda workspace: {}
    judge: Callable[[Standing], Verdict] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one stage: ``built`` (and why), ``extended`` or ``kept`` (its policy said so), ``reused`` (an earlier artefact fits
    again) or ``fresh``."""

    stage: str
    key: str
    action: str
    reason: str = ""
    seconds: float = 0.0
    peak_memory_gb: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# -- the loop -----------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet(label: str) -> Iterator[Progress]:
    """The :data:`Track` that shows nothing."""
    yield lambda done, total: None


def build(
    workspace: Workspace,
    stages: Mapping[str, Stage],
    fingerprint: Callable[[Workspace, str], str],
    names: Sequence[str] = (),
    *,
    force: bool = False,
    track: Track = quiet,
    log: Callable[[str], None] = lambda message: None,
    on: str = "",
) -> list[Outcome]:
    """Bring the named stages (default: all) and what they need up to date, in order, under the writer's lock.

    With ``force`` no policy keeps or extends the named stages (none named: all): what changed at all makes them anew.
    ``fingerprint(workspace, table)`` hashes a table's content. ``track(stage)`` is entered around each stage that
    runs and gives its progress callback. Raises :class:`UnknownName`, :class:`Locked`, :class:`DiskFull`, and
    whatever a stage raises; what an interrupted stage had done stays in its ``.part`` folder, and the next run
    goes on from there.
    """
    wanted = closure(names, stages)
    loop = _Loop(workspace, stages, track, log, on, frozenset(names or stages) if force else frozenset())
    with workspace.lock("pinhole build " + " ".join(names) if names else "pinhole build"):
        for name in stages:  # of a build that was killed as it renamed a pointer
            sweep(workspace.folder(name).glob(".*"))
        prints = {table: fingerprint(workspace, table) for table in dict.fromkeys(table for stage in wanted for table in stage.tables)}
        outside = {stage.name: stage.also(workspace) for stage in wanted}  # all of them first: what is wrong is said before hours of work
        return [loop.bring_up_to_date(stage, _recipe(workspace, stage, loop.current, prints, outside[stage.name])) for stage in wanted]


def closure(names: Sequence[str], stages: Mapping[str, Stage]) -> list[Stage]:
    """The named stages (none: all) with everything they need, in the order of ``stages``."""
    wanted: set[str] = set()
    waiting = list(names or stages)
    while waiting:
        name = waiting.pop()
        if name not in stages:
            raise UnknownName(f"no stage `{name}`", fix="stages: " + ", ".join(stages))
        if name not in wanted:
            wanted.add(name)
            waiting += stages[name].needs
    return [stage for name, stage in stages.items() if name in wanted]


@dataclass
class _Loop:
    workspace: Workspace
    stages: Mapping[str, Stage]
    track: Track
    log: Callable[[str], None]
    on: str = ""
    forced: frozenset[str] = frozenset()
    current: dict[str, Artefact] = field(default_factory=dict)  # what the stages so far ended with

    def bring_up_to_date(self, stage: Stage, recipe: Recipe) -> Outcome:
        """Nothing, one pointer, a little, or a whole run."""
        latest, made = self.workspace.latest(stage.name), self._fitting(stage, recipe)
        if made is None:
            verdict = self._judged(stage, recipe, latest)
            if latest is not None and verdict.action == "kept":
                outcome, made = Outcome(stage.name, latest.key, "kept", verdict.words), latest
                self.log(f"{stage.name}: kept: {verdict.words}")
            else:
                outcome, made = self._run(stage, recipe, latest, verdict)
        elif latest == made:
            outcome = Outcome(stage.name, made.key, "fresh")
        else:
            self.workspace.use(stage.name, made.key)
            outcome = Outcome(stage.name, made.key, "reused", "an earlier artefact fits again")
            self.log(f"{stage.name}: {outcome.reason}")
        self.current[stage.name] = made
        return outcome

    def _fitting(self, stage: Stage, recipe: Recipe) -> Artefact | None:
        """An artefact of just these inputs: made from them alone, or by extending one."""
        whole = self.workspace.find(stage.name, digest(stage.name, recipe))
        if whole is not None or stage.judge is None or stage.name in self.forced:
            return whole
        latest, folder = self.workspace.latest(stage.name), self.workspace.folder(stage.name)
        names = [latest.key] if latest else []
        names += sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.suffix) if folder.is_dir() else []
        found = (self.workspace.find(stage.name, name) for name in names)
        return next((one for one in found if one and _plain(one.manifest.get("recipe", {})) == recipe), None)

    def _judged(self, stage: Stage, recipe: Recipe, latest: Artefact | None) -> Verdict:
        if stage.judge is None or latest is None or stage.name in self.forced or not self._only_data(latest.manifest.get("recipe"), recipe):
            return Verdict("anew", "")
        return stage.judge(Standing(self.workspace, latest, {name: self.current[name] for name in stage.needs}))

    def _only_data(self, old: Recipe | None, new: Recipe) -> bool:
        """Two recipes differ in what tables hold, here or in what their inputs were made from, and in nothing else."""
        if not old or any(old.get(part) != new[part] for part in ("version", "settings", "also")) or old["inputs"].keys() != new["inputs"].keys():
            return False
        for name, key in new["inputs"].items():
            pair = [self.workspace.find(name, one) for one in (old["inputs"][name], key)]
            if old["inputs"][name] != key and not (pair[0] and pair[1] and self._only_data(pair[0].manifest["recipe"], pair[1].manifest["recipe"])):
                return False
        return True

    def _run(self, stage: Stage, recipe: Recipe, latest: Artefact | None, verdict: Verdict) -> tuple[Outcome, Artefact]:
        old = latest.manifest["recipe"] if latest else None
        reason = why(old, recipe) + (f": {verdict.words}" if verdict.words else "")
        onto = latest if verdict.action == "extended" else None
        if onto is not None:
            recipe = {**recipe, "onto": root(onto)}
        key = digest(stage.name, recipe)
        part = self.workspace.folder(stage.name) / f"{key}.part"
        if part.is_dir() and any(part.iterdir()):
            reason = "resuming an interrupted run"
        self.log(f"{stage.name}: {reason}")
        sweep(part.rglob(".*"))  # an interrupted artefact ends equal to an undisturbed one
        with disk_errors(self.workspace.root), _foreign_disk_errors(self.workspace.root):
            given = {name: self.current[name] for name in stage.needs}
            out = self.workspace.start(stage.name, key)
            give_back()
            with Meter() as meter, self.track(stage.name) as progress:
                figures = stage.run(Build(self.workspace, given, out, latest, progress, self.log, self.on, onto))
            sweep(part.rglob(".*"))
            seconds, peak = round(meter.seconds, 2), round(meter.peak_bytes / 1e9, 3)
            manifest = {"recipe": recipe, "reason": reason, "figures": figures, "seconds": seconds, "peak_memory_gb": peak}
            made = self.workspace.finish(stage.name, key, manifest)
        _prune(self.workspace, stage.name, key, self.stages)
        self.log(f"{stage.name}: done in {seconds:.1f} s, peak memory {peak:.1f} GB")
        return Outcome(stage.name, key, "extended" if onto else "built", reason, seconds, peak), made


# -- recipes ------------------------------------------------------------------------------------


def root(artefact: Artefact) -> str:
    """The key of the artefact that this one extends; its own where it was made from its inputs alone."""
    return str(artefact.manifest.get("recipe", {}).get("onto", artefact.key))


def _plain(recipe: Recipe) -> Recipe:
    return {part: value for part, value in recipe.items() if part != "onto"}


def _recipe(workspace: Workspace, stage: Stage, inputs: Mapping[str, Artefact], prints: Mapping[str, str], outside: dict[str, str]) -> Recipe:
    settings = {
        f"{section}.{key}": value
        for section in stage.sections
        for key, value in getattr(workspace.config, section).model_dump(mode="json").items()
        if f"{section}.{key}" not in WITHOUT_EFFECT
    }
    return {
        "version": stage.version,
        "inputs": {name: inputs[name].key for name in stage.needs},
        "settings": settings,
        "tables": {table: prints[table] for table in stage.tables},
        "also": outside,
    }


def why(old: Recipe | None, new: Recipe) -> str:
    """The difference of two recipes in words: "items changed, [align] steps changed (600 → 300), embed was rebuilt"."""
    if old is None:
        return "first time"

    def before(part: str) -> dict[str, Any]:
        return old.get(part, {})

    reasons = [f"{table} changed" for table, value in new["tables"].items() if before("tables").get(table) != value]
    for name, value in new["settings"].items():
        section, key = name.split(".", 1)
        if name not in before("settings"):
            reasons.append(f"[{section}] {key} is new")
        elif before("settings")[name] != value:
            reasons.append(f"[{section}] {key} changed ({before('settings')[name]} → {value})")
    reasons += [f"{name} changed" for name, value in new["also"].items() if before("also").get(name) != value]
    reasons += [f"{name} was rebuilt" for name, value in new["inputs"].items() if before("inputs").get(name) != value]
    if old.get("version") != new["version"]:
        reasons.append("the code of this stage changed")
    return ", ".join(reasons) or "its settings changed"


# -- folders ------------------------------------------------------------------------------------


def _prune(workspace: Workspace, stage: str, key: str, stages: Mapping[str, Stage]) -> None:
    """Keep the artefact in use, the one before, and what other artefacts in use were made from; remove the rest and old leftovers."""
    folder = workspace.folder(stage)
    finished = [path for path in folder.iterdir() if path.name != key and not path.suffix and (path / "manifest.json").exists()]
    finished.sort(key=lambda path: (path / "manifest.json").stat().st_mtime_ns, reverse=True)
    in_use = [latest.manifest["recipe"]["inputs"].get(stage) for name in stages if (latest := workspace.latest(name)) is not None]
    keep = {key, *in_use, *(path.name for path in finished[: KEEP - 1])}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in keep:
            # Out of the way by one rename first: a half-removed folder must never be taken for an artefact or be resumed.
            trash = path.with_name(f"{path.stem}.trash")
            if path != trash:
                shutil.rmtree(trash, ignore_errors=True)
                path.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)


@contextlib.contextmanager
def _foreign_disk_errors(where: Path) -> Iterator[None]:
    """Libraries that write by themselves report a full disk in words of their own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if re.search(r"no space left|os error 28|disk is full", str(error), re.IGNORECASE):
            raise DiskFull("no space left on the disk", where=str(where), fix="free some and run the same command again: it resumes") from error
        raise
