"""Following a folder or a table file: what is new or changed is read in, what went stale is built, again and again.

    watch/KEY.json    in the workspace: the source's files with their sizes and times when they were last read, and what it named then

A source is looked at by sizes and times (no notices from the system: network disks send none). It is read when two looks, a pause
apart, saw the same: a file that somebody is still writing is left alone, though not for ever. What goes wrong with a source or with a
build is said, and tried again when something changes. Knows nothing of how rows are read or of what is built.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pinhole import tasks, wiring
from pinhole.console import Console
from pinhole.errors import DiskFull, IngestError, Locked, PinholeError, UsageError
from pinhole.stages import stages_of
from pinhole.workspace import Workspace, digest, read_json, write_json

PATIENCE = 30  # looks at a source that never rests, after which it is read all the same: what was half written is read again when it changes
REMOVABLE = ("items", "boards")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
Stamps = dict[str, list[int]]


def seconds(text: str) -> float:
    """``2s``, ``500ms``, ``1m``, ``0.5``. Raises :class:`UsageError`."""
    number = text.strip().rstrip("hms")
    try:
        found = float(number) * UNITS[text.strip()[len(number) :]]
    except (ValueError, KeyError):
        found = 0.0
    if not 0.01 <= found <= 86_400:
        raise UsageError(f"{text!r} is no pause", where="--every", fix="as in 2s, 500ms or 1m")
    return found


@dataclass
class Round:
    """What one round did; ``value`` is its JSON object."""

    changes: dict[str, int] = field(default_factory=dict)
    removed: int = 0
    stages: dict[str, Any] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        acted = any(stage["action"] in ("built", "extended", "reused") for stage in self.stages.values())
        read = any(self.changes.get(name) for name in ("added", "changed", "rejected"))
        return not (read or self.removed or self.trouble or acted)

    def value(self, kind: str, source: str) -> dict[str, Any]:
        return {"source": source, "kind": kind, **self.changes, "removed": self.removed, "stages": self.stages, "errors": self.trouble}


class Watch:
    """``look`` until it says that there is something to do, then ``act``."""

    def __init__(
        self, workspace: Workspace, kind: str, source: str, renames: Sequence[str] = (), remove: bool = False, console: Console | None = None
    ) -> None:
        """Raises :class:`UsageError`, ``UnknownName`` and, where the source is not there at the start, :class:`IngestError`."""
        from pinhole.catalogue.records import check_kind

        check_kind(kind)
        if remove and kind not in REMOVABLE:
            raise UsageError(f"{kind} that vanish are not removed", where="--remove", fix=f"--kind {' or '.join(REMOVABLE)}")
        if source.startswith("hf:") or "://" in source:
            raise UsageError("only a folder or a file can be watched", where=source, fix="download it, or run `pinhole ingest` now and then")
        self.source = Path(os.path.abspath(source))
        if not self.source.exists():
            raise IngestError("no such file or folder", where=source, fix="check the path")
        self.workspace, self.kind, self.renames, self.remove = workspace, kind, list(renames), remove
        self.console = console or Console()
        self._kept = workspace.root / "watch" / f"{digest(str(self.source), kind)}.json"
        self._last: Stamps | None = None
        self._restless = 0
        self._failed: Stamps | None = None  # as it was when it could not be read
        self._trouble = ""  # the last that was said
        self._build = True  # what an earlier run left stale

    # -- looking --------------------------------------------------------------------------------

    def look(self) -> bool:
        """Whether there is something to do now: the source rests and is another than when it was last read, or something is left to build."""
        seen = self._stamps()
        rests = seen is not None and seen == self._last
        if self._last is not None and seen is None:
            self.console.say(f"{self.source} is gone: waiting for it; nothing is removed")
        self._restless = 0 if rests or seen is None else self._restless + 1
        self._last = seen
        new = seen is not None and seen not in (self._noted()["stamps"], self._failed)
        if new:
            return rests or self._restless > PATIENCE
        return self._build and (rests or seen is None)

    def _stamps(self) -> Stamps | None:
        """Size and time of every file that counts; None where the source is not there."""
        from pinhole.catalogue.ingest import image_files

        try:
            files = image_files(self.source) if self.source.is_dir() else [Path(self.source.name)]
            base = self.source if self.source.is_dir() else self.source.parent
            return {path.as_posix(): [(found := os.stat(base / path)).st_size, found.st_mtime_ns] for path in files}
        except (OSError, IngestError):
            return None

    def _noted(self) -> dict[str, Any]:
        kept: dict[str, Any] = read_json(self._kept) if self._kept.exists() else {}
        asked = [self.kind, *self.renames]
        return kept if kept.get("asked") == asked else {"asked": asked, "stamps": None, "ids": kept.get("ids", [])}

    # -- acting ---------------------------------------------------------------------------------

    def act(self, strict: bool = False) -> Round:
        """Read what is new, then build. What fails is in ``trouble`` and is said, once; a full disk is raised, and all else where ``strict``."""
        done, seen = Round(), self._last
        try:
            if seen is not None and seen not in (self._noted()["stamps"], self._failed):
                self._read(done, seen)
            if self._build:
                self._bring_up_to_date(done)
            self._trouble = ""
        except PinholeError as error:
            if strict or isinstance(error, DiskFull):
                raise
            if str(error) != self._trouble:
                self._trouble = str(error)
                done.trouble.append(self._trouble)
                self.console.say(f"error: {error}")
        return done

    def _read(self, done: Round, seen: Stamps) -> None:
        from pinhole.catalogue.ingest import keys

        try:
            answer = tasks.ingest(self.workspace, self.kind, str(self.source), self.renames, self.console)
            ids = keys(self.kind, self.source, tasks.renamed(self.renames)) if self.remove else set()
        except Locked:
            raise
        except PinholeError:
            self._failed = seen  # not again before it changes
            raise
        done.changes = {name: count for name, count in answer.value.items() if isinstance(count, int)}
        if self.remove:
            done.removed = self._vanished(ids)
        if any(done.changes[name] for name in ("added", "changed")) or done.removed:
            self._build = True
            for line in answer.lines:
                self.console.say(line)
        self._kept.parent.mkdir(exist_ok=True)
        write_json(self._kept, {**self._noted(), "source": str(self.source), "stamps": seen, "ids": sorted(ids) or self._noted()["ids"]})

    def _vanished(self, ids: set[str]) -> int:
        """Remove what the source named when it was last read and names no more. An empty source removes nothing: it is more likely a mishap."""
        gone = [id for id in self._noted()["ids"] if id not in ids]
        if not gone or not ids:
            return 0
        catalogue = wiring.open_catalogue(self.workspace)
        with self.workspace.lock("pinhole watch --remove"):
            catalogue.delete(self.kind, gone)
        self.console.say(f"{self.kind}: {len(gone):,} removed: {self.source.name} names them no more")
        return len(gone)

    def _bring_up_to_date(self, done: Round) -> None:
        """The index and what it needs, and each later stage that was built before."""
        if not wiring.open_catalogue(self.workspace).count("items"):
            self._build = False
            return
        wanted = ["index", *(name for name in stages_of(self.workspace.config) if self.workspace.latest(name))]
        try:
            done.stages = tasks.build(self.workspace, list(dict.fromkeys(wanted)), self.console).value["stages"]
        except Locked:
            raise  # another writer: the next round
        except PinholeError:
            self._build = False  # not again before something changes
            raise
        self._build = False


def follow(watch: Watch, every: float, once: bool, told: Callable[[Round], None]) -> None:
    """Rounds until Ctrl-C; with ``once`` until there was one. ``told`` hears of each that did something."""
    while True:
        if watch.look():
            done = watch.act(strict=once)
            if once or not done.idle:
                told(done)
            if once:
                return
        time.sleep(every)
