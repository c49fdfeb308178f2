"""What each command does, between the words typed and the rooms: returns an :class:`Answer` for programs and for people.

Knows nothing of options or exit codes, and nothing of how a room works.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinhole import cluster, wiring
from pinhole.builder import Outcome, closure
from pinhole.catalogue.prices import load_prices
from pinhole.console import Console, columns
from pinhole.errors import IngestError, UnknownName, UsageError, WorkspaceError
from pinhole.stages import build as run_stages
from pinhole.stages import stages_of
from pinhole.workspace import Artefact, Workspace, disk_errors, read_json, write_json

if TYPE_CHECKING:
    from pinhole.retrieval.guesses import Guesses

SAMPLES = "samples.json"


@dataclass(frozen=True)
class Answer:
    """``value`` is the JSON object, ``lines`` the same for a person."""

    value: dict[str, Any]
    lines: list[str] = field(default_factory=list)


# -- the catalogue ------------------------------------------------------------------------------


def ingest(workspace: Workspace, kind: str, source: str, renames: Sequence[str], console: Console) -> Answer:
    """Read a source under the writer's lock. Raises :class:`IngestError`, ``UnknownName``, ``Locked``."""
    from pinhole.catalogue.ingest import ingest as read
    from pinhole.catalogue.records import check_kind

    check_kind(kind)
    mapping = renamed(renames)
    catalogue = wiring.open_catalogue(workspace)
    with workspace.lock(f"pinhole ingest {kind}"), console.bar(f"ingest {kind}") as progress:
        counts = asdict(read(catalogue, kind, source, mapping, progress=progress))
    lines = [f"{kind}: " + ", ".join(f"{number:,} {name}" for name, number in counts.items())]
    if counts["rejected"]:
        rows = catalogue.rejected().to_pylist()
        reasons = sorted({str(row["reason"]) for row in rows if row.get("kind") == kind})
        lines += [f"  rejected: {reason}" for reason in reasons[:5]] + ([f"  … and {len(reasons) - 5} other reasons"] if len(reasons) > 5 else [])
    return Answer({"kind": kind, **counts}, lines)


def renamed(renames: Sequence[str]) -> dict[str, str]:
    """Ours to theirs, of ``--map OURS=THEIRS``. Raises :class:`UsageError`."""
    return dict(_rename(one) for one in renames)


def _rename(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (ours.strip() and equals and theirs.strip()):
        raise UsageError(f"--map {text!r} is not OURS=THEIRS", fix="for example --map title=product_title")
    return ours.strip(), theirs.strip()


def sample(workspace: Workspace, name: str, console: Console) -> Answer:
    """Fetch a sample with the machine's package client, and read it in. Notes in the workspace that it is there whole."""
    from pinhole.catalogue.samples import load_sample

    catalogue = wiring.open_catalogue(workspace)
    with workspace.lock(f"pinhole sample {name}"), console.bar(f"sample {name}") as progress:
        counts = load_sample(catalogue, name, progress=progress)
        write_json(workspace.root / SAMPLES, sorted({*samples(workspace), name}))
    held = {kind: catalogue.count(kind) for kind in counts}
    value = {"sample": name, "rows": held, "changes": {kind: asdict(one) for kind, one in counts.items()}}
    return Answer(value, [f"{name}: " + ", ".join(f"{rows:,} {kind}" for kind, rows in held.items())])


def samples(workspace: Workspace) -> list[str]:
    """Names of the samples that were read in whole."""
    path = workspace.root / SAMPLES
    return list(read_json(path)) if path.exists() else []


# -- building -----------------------------------------------------------------------------------


def build(workspace: Workspace, names: Sequence[str], console: Console, on: str = "", force: bool = False) -> Answer:
    """Bring stages up to date, on a cluster where one is named; with ``force`` the named ones whole, however little changed. The answer ends with
    the exams' figures when ``evaluate`` was among them."""
    closure(names, stages_of(workspace.config))  # a wrong name is said before an empty catalogue
    load_prices(workspace.root)  # and a wrong price before an hour's work
    if on:
        cluster.address(on)
    wiring.need_items(workspace)
    outcomes = run_stages(workspace, names, force=force, track=console.bar, log=console.say, on=on)
    value: dict[str, Any] = {"workspace": str(workspace.root), "stages": {one.stage: stage_cost(workspace, one) for one in outcomes}}
    lines = columns([(one.stage, one.action, _took(one), one.key) for one in outcomes])
    if any(one.stage == "evaluate" for one in outcomes):
        value |= figures(workspace)
    return Answer(value, lines)


def stage_cost(workspace: Workspace, outcome: Outcome) -> dict[str, Any]:
    """What became of a stage now, and what its artefact cost whenever it was made."""
    manifest = workspace.need(outcome.stage).manifest
    cost = {name: manifest[name] for name in ("seconds", "peak_memory_gb")}
    return {"action": outcome.action, "reason": outcome.reason, "key": outcome.key, **cost}


def _took(outcome: Outcome) -> str:
    return f"{outcome.seconds:.1f} s, {outcome.peak_memory_gb:.1f} GB" if outcome.action in ("built", "extended") else ""


def set_base(workspace: Workspace, base: str) -> Workspace:
    """Write another base into ``pinhole.toml``; a folder is written whole, so that it is found from anywhere."""
    from pinhole.graft.base import check_base

    check_base(base)
    return workspace.change({"graft.base": str(Path(base).resolve()) if Path(base).is_dir() else base})


def set_teacher(workspace: Workspace, teacher: str) -> Workspace:
    """Write another teacher into ``pinhole.toml``: ``original``, or ``none``. Raises :class:`UnknownName`, or where the base cannot be one."""
    from pinhole.graft.original import check_original

    if teacher not in ("original", "none"):
        raise UnknownName(f"no teacher `{teacher}`", where="--teacher", fix="original (the base with its eyes), or none")
    if teacher == "original":
        check_original(workspace.config.graft)
    return workspace.change({"graft.teacher": "" if teacher == "none" else teacher})


# -- measuring ----------------------------------------------------------------------------------


def figures(workspace: Workspace) -> dict[str, Any]:
    """The flat figures of the latest exams, and what their turns cost by today's table of prices."""
    from pinhole.evaluation.cost import bills, flat

    measured = dict(workspace.need("evaluate").manifest["figures"])
    return measured | flat(bills(measured, load_prices(workspace.root)))


def evaluate(workspace: Workspace, console: Console) -> Answer:
    """The exams on held-out data, after whatever they need is up to date."""
    build(workspace, ["evaluate"], console)
    found = figures(workspace)
    return Answer(found, columns(list(found.items())))


def evaluate_lessons(workspace: Workspace, file: Path, console: Console) -> Answer:
    """Anybody's lessons: a JSONL file of ``messages``, ``tools``, ``expect``."""
    from pinhole.evaluation.tool_exams import lessons_file

    if not file.is_file():
        raise IngestError("no such file", where=str(file), fix="name a JSONL file of lessons: messages, tools, expect")
    assistant = wiring.open_assistant(workspace)

    def show(k: int, id: str) -> Any:
        thing = assistant.shop.things([id])[0]
        return assistant.engine.card(k, thing.soft, thing.title)

    with console.bar("lessons") as progress:
        found = lessons_file(file, assistant.engine, show, progress)
    return Answer(found, columns(list(found.items())))


def lessons(workspace: Workspace, n: int) -> Answer:
    """``n`` lessons as the language model reads them, in words and as ``lessons.html`` with their pictures."""
    from pinhole.assistant.tools import Toolbox
    from pinhole.evaluation.report import draw_lessons, messages_of, show_lessons

    drawn = draw_lessons(wiring.open_world(workspace), Toolbox().schemas, workspace.config.graft, n)
    path = show_lessons(drawn, workspace.root / "lessons.html", wiring.thumbnails(workspace))
    shown = [{"kind": one.kind, "messages": [*messages_of(one), {"role": "assistant", "parts": [one.answer]}]} for one in drawn]
    return Answer({"page": str(path), "lessons": shown}, [line for one in shown for line in (*_lesson_lines(one), "")] + [f"wrote {path}"])


def _lesson_lines(lesson: dict[str, Any]) -> list[str]:
    said = [(message["role"], "".join(part if isinstance(part, str) else "▫" for part in message["parts"])) for message in lesson["messages"]]
    return [f"[{lesson['kind']}]", *(f"{role:>9}: " + text.replace("\n", "\n" + " " * 11) for role, text in said)]


def report(workspace: Workspace, console: Console) -> Answer:
    """Write ``report.html`` from the latest exams, which are brought up to date first."""
    from pinhole.evaluation.cost import bills
    from pinhole.evaluation.report import write_report

    build(workspace, ["evaluate"], console)
    exams = workspace.need("evaluate")
    made = {stage: wiring.made_from(workspace, exams, stage) for stage in exams.manifest["recipe"]["inputs"]} | {"evaluate": exams}
    path = write_report(
        workspace.root / "report.html",
        name=workspace.root.resolve().name,
        about=_about(workspace, exams),
        figures=exams.manifest["figures"],
        conversations=read_json(exams.path / "conversations.json"),
        curves={"Embedding space": made["align"].path / "curve.json", "Language model": made["graft"].path / "curve.json"},
        stages=[artefact.manifest for artefact in made.values()],
        thumbnail=wiring.thumbnails(workspace),
        bills=bills(exams.manifest["figures"], load_prices(workspace.root)),
        against_eyes=_kept_bench(workspace, "tokens", made["align"].key),
    )
    return Answer({"report": str(path)}, [f"wrote {path}"])


def _about(workspace: Workspace, exams: Artefact) -> dict[str, str]:
    """What the report's figures are of, in words."""
    from pinhole.evaluation.machine import in_words

    catalogue, settings = wiring.open_catalogue(workspace), workspace.config
    machine = exams.path / "machine.json"
    return {
        "catalogue": ", ".join(f"{catalogue.count(kind):,} {kind}" for kind in ("items", "boards", "queries")),
        "language model": settings.graft.base,
        "image encoder": settings.vision.image_encoder,
        "text encoder": settings.vision.text_encoder,
        "embedding space": read_json(wiring.made_from(workspace, exams, "align").path / "space.json")["identity"],
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime((exams.path / "manifest.json").stat().st_mtime)),
        "machine": in_words(read_json(machine)) if machine.exists() else "",
    }


def export(workspace: Workspace, folder: Path) -> Answer:
    """Write the latest graft as a plain checkpoint, with what its own exams said. Raises :class:`UsageError` where something else is there."""
    from pinhole.graft.export import Card, check_place, serving_name
    from pinhole.graft.export import export as write

    check_place(folder)
    graft, exams = workspace.need("graft"), workspace.latest("evaluate")
    if exams is not None and exams.manifest["recipe"]["inputs"]["graft"] != graft.key:
        exams = None  # of another graft
    base, space = graft.manifest["recipe"]["settings"]["graft.base"], read_json(graft.path / "graft.json")["space"]
    card = Card(serving_name(graft.key), base, space, _examined(exams.manifest["figures"]) if exams else ())
    write(graft.path, folder, card)
    value = {"export": str(folder), "name": card.name, "space": space, "examined": exams is not None}
    return Answer(value, [f"wrote {folder}. {folder / 'README.md'} says how to serve it"])


def _examined(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of a model card: name, figure, and its n, interval and marks."""
    from pinhole.evaluation.figures import grouped, written

    rows = []
    for group in grouped(figures):
        for row in group.rows:
            beside = [f"{mark} {written(value, row.named.unit)}" for mark, value in row.marks.items()]
            if row.low is not None and row.high is not None:
                beside.insert(0, f"95% {written(row.low, row.named.unit)} to {written(row.high, row.named.unit)}")
            if row.n is not None:
                beside.insert(0, f"n = {row.n:,}")
            rows.append((f"{group.title}: {row.named.label}", written(row.value, row.named.unit), ", ".join(beside)))
    return rows


# -- finding ------------------------------------------------------------------------------------


def search(workspace: Workspace, text: str, like: Sequence[str], unlike: Sequence[str], where: str, n: int) -> Answer:
    """Raises :class:`UnknownItem`, ``BadImage``, ``UsageError`` for a bad condition or an empty query."""
    if not (text.strip() or like or unlike or where.strip()):
        raise UsageError("nothing to search for", fix='give words, --like, --unlike or --where, as in `pinhole search "red boat"`')
    searcher = wiring.open_searcher(workspace)
    hits = searcher.search(text, like=[_picture(one) for one in like], unlike=[_picture(one) for one in unlike], where=where, n=n)
    return _hits(workspace, hits, searcher.guesses)


def related(workspace: Workspace, id: str, n: int, by: str) -> Answer:
    """Raises :class:`UnknownItem`, :class:`UsageError`."""
    related = wiring.open_related(workspace)
    return _hits(workspace, related(id, n, by), related.searcher.guesses)


def _picture(text: str) -> str | bytes:
    """A file's bytes where there is such a file, else an id."""
    path = Path(text)
    try:
        return path.read_bytes() if path.is_file() else text
    except OSError as error:
        raise UsageError(f"the picture cannot be read: {error.strerror}", where=text) from None


def _hits(workspace: Workspace, hits: Sequence[Any], guesses: Guesses | None) -> Answer:
    rows = wiring.open_catalogue(workspace).items(["id", "title"], ids=[hit.id for hit in hits]).to_pylist()
    titles = {row["id"]: row["title"] or "" for row in rows}
    guessed = {hit.id: guesses.of(hit.id) if guesses else [] for hit in hits}
    shown = [{"id": hit.id, "title": titles.get(hit.id, ""), "score": float(hit.score), "parts": hit.parts} for hit in hits]
    value = {"hits": [{**one, "guesses": [guess.public() for guess in guessed[one["id"]]]} for one in shown]}
    names = {id: titles.get(id) or ", ".join(f"{guess.value}?" for guess in found[:3]) for id, found in guessed.items()}
    lines = columns([(number, float(hit.score), names[hit.id], hit.id) for number, hit in enumerate(hits, 1)])
    return Answer(value, lines or ["nothing found"])


# -- benchmarks ---------------------------------------------------------------------------------


def bench(name: str, folder: Path | None, console: Console, size: str = "", picture: Path | None = None, count: int = 0) -> Answer:
    """Run one benchmark, or all that can run here; ``benchmarks/__init__.py`` says what a benchmark is.

    ``size`` is "quick" or "long" where the benchmark has sizes, ``count`` its own where it counts something, ``picture`` a file for its
    plot where it draws one.
    """
    import importlib
    import pkgutil

    from pinhole import benchmarks

    known = sorted(one.name for one in pkgutil.iter_modules(benchmarks.__path__) if not one.name.startswith("_"))
    if name and name not in known:
        raise UnknownName(f"no benchmark `{name}`", fix="benchmarks: " + ", ".join(known))
    modules = {one: importlib.import_module(f"pinhole.benchmarks.{one}") for one in ([name] if name else known)}
    _can_be_asked(name, modules, size, picture, count)
    more = (count,) if count else ()
    found: dict[str, Any] = {}
    lines: list[str] = []
    for one, module in modules.items():
        needs = getattr(module, "NEEDS_WORKSPACE", False)
        try:
            workspace = wiring.find_workspace(folder)
        except WorkspaceError as error:
            if folder is not None or (name and needs):
                raise
            if needs:
                console.say(f"{one}: left out: {error}")
                continue
            workspace = None
        console.say(f"{one}: {(module.__doc__ or '').splitlines()[0]}")
        with console.bar(one) as progress:
            figures = module.run(workspace, progress, *((module.SIZES[size],) if size else more))
        found |= figures
        if needs and workspace is not None:
            _keep_bench(workspace, one, figures)
        lines += module.table(figures, workspace) if hasattr(module, "table") else columns(list(figures.items()))
        if picture is not None:
            with disk_errors(picture):
                module.plot(figures, picture)
            lines.append(f"wrote {picture}")
    return Answer(found, lines)


def _keep_bench(workspace: Workspace, name: str, figures: Mapping[str, float]) -> None:
    """``benchmarks/NAME.json`` in the workspace: what was measured, on which embedding space, by which machine."""
    from pinhole.evaluation.machine import machine

    align, path = workspace.latest("align"), workspace.root / "benchmarks" / f"{name}.json"
    with disk_errors(workspace.root):
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"figures": figures, "align": align.key if align else None, "machine": machine()})


def _kept_bench(workspace: Workspace, name: str, align: str) -> dict[str, float] | None:
    """The figures of a benchmark run on this very embedding space, else None."""
    path = workspace.root / "benchmarks" / f"{name}.json"
    kept = read_json(path) if path.exists() else {}
    return kept.get("figures") if isinstance(kept, dict) and kept.get("align") == align else None


def _can_be_asked(name: str, modules: Mapping[str, Any], size: str, picture: Path | None, count: int) -> None:
    """Raises :class:`UsageError` for what the benchmark does not have, before it runs for minutes."""
    if not name and (size or picture or count):
        raise UsageError("--quick, --long, --n and --plot are for one benchmark", fix="name it, as in `pinhole bench turn --quick`")
    if count and not getattr(modules[name], "COUNTS", False):
        raise UsageError(f"`{name}` counts nothing", fix="run it without --n")
    if size and size not in getattr(modules[name], "SIZES", {}):
        raise UsageError(f"`{name}` has one size only", fix=f"run it without --{size}")
    if picture is not None and not hasattr(modules[name], "plot"):
        raise UsageError(f"`{name}` draws no plot", fix="run it without --plot")
    if picture is not None and (picture.suffix != ".png" or not picture.resolve().parent.is_dir()):
        raise UsageError("not a file to draw", where=str(picture), fix="name a .png in a folder that exists")
