"""The exception tree, on one page.

An error says *what* happened, *where*, and *the fix*. It is raised deep, in the room that knows,
and turned into words once: at the command line (one line on stderr, an exit code) or at the HTTP
edge (one JSON object, a status). Nothing in between catches it to print it.
"""

from __future__ import annotations


class PinholeError(Exception):
    """A failure that its message explains. ``exit_code`` is for the shell, ``status`` for HTTP."""

    exit_code = 1
    status = 500

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        fix = f". {self.fix}" if self.fix else ""
        return f"{self.what}{where}{fix}"

    def __reduce__(self):  # type: ignore[no-untyped-def]
        # Worker processes hand errors back to their parent: rebuild from the three fields.
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[PinholeError], what: str, where: str, fix: str) -> PinholeError:
    return kind(what, where=where, fix=fix)


class UsageError(PinholeError):
    """The command or the request was put wrongly."""

    exit_code = 2
    status = 400


class ConfigError(UsageError):
    """``pinhole.toml`` has an unknown key, a wrong type, or settings that do not go together."""


class UnknownName(UsageError):
    """An encoder, base, sample, tool or kind that nobody registered; the fix lists those that are."""


class WorkspaceError(PinholeError):
    """The workspace is missing, not a workspace, or of a newer version."""


class Locked(WorkspaceError):
    """Somebody else is writing to this workspace; the message says who."""

    status = 409


class MissingArtefact(WorkspaceError):
    """A stage has not been built yet; the fix names the command."""

    status = 503


class Corrupt(WorkspaceError):
    """A file of ours does not hold what it must."""


class DiskFull(PinholeError):
    """No space left while writing."""


class IngestError(UsageError):
    """A source cannot be read at all (single bad rows go to the ``rejected`` table instead)."""


class BadImage(UsageError):
    """Bytes that are no image, or an image too large to be decoded safely."""


class UnknownItem(UsageError):
    """An item id that the catalogue does not hold."""

    status = 404


class SpaceMismatch(PinholeError):
    """Vectors of one embedding space met a model of another; both are named."""

    status = 409


class PromptTooLong(UsageError):
    """A prompt would overflow the model's context; both numbers are named."""


class DownloadError(PinholeError):
    """Something could not be fetched, or was not what its checksum says."""


class MissingDependency(PinholeError):
    """An optional package or a system program is not installed; the fix says which."""


class Busy(PinholeError):
    """The queue is full; try again later."""

    status = 503


class EngineError(PinholeError):
    """A server that runs the model did something wrong; where it stands is for the log, not for clients."""

    status = 503


class EngineDown(EngineError):
    """… it cannot be reached, or failed in the middle of an answer: others are asked meanwhile."""
