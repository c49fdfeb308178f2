"""The command line: what is asked, handed to the room that does it; its errors turned into one line.

Every command is a few lines here and imports its room inside, so that ``--help`` answers at once.
Exit 0 done, 1 a failure that the message explains, 2 wrong usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pinhole.console import Console
from pinhole.errors import PinholeError

if TYPE_CHECKING:
    from pinhole.tasks import Answer
    from pinhole.workspace import Workspace

app = typer.Typer(
    help="Let an open language model see your catalogue with no vision encoder.",
    epilog="Begin with `pinhole demo`, or with `pinhole init shop`. A workspace is named with -w or PINHOLE_WORKSPACE; default: this folder.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Where = Annotated[Path | None, typer.Option("-w", "--workspace", metavar="DIR", help="The workspace (default: PINHOLE_WORKSPACE, else this folder).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Engine = Annotated[str | None, typer.Option("--engine", metavar="local|vllm", help="Where the model runs (default: [engine] kind in pinhole.toml).")]
EngineUrl = Annotated[str | None, typer.Option("--engine-url", metavar="URL[,URL]...", help="vLLM servers of this graft's export.")]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]


# -- the whole way ------------------------------------------------------------------------------


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes: everything runs, no quality promised.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Up to an hour on two cores: trained longer, examined more.")] = False,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Stop after the report.")] = False,
    port: Port = None,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """The whole way on a real catalogue, then serve it.

    Makes the workspace ./demo (or the one named with -w), fetches the openclipart sample, builds every
    stage, writes report.html, and serves. Run again, it goes on where it stopped.
    """
    from pinhole import demo as steps
    from pinhole.errors import UsageError

    if quick and full:
        raise UsageError("--quick and --full exclude each other", fix="take one, or neither for the default")
    if not no_serve:  # a port in use is said now, not at the end of half an hour
        from pinhole import wiring
        from pinhole.config import ServeConfig

        wiring.check_place(ServeConfig(), port=port)
    console = Console(as_json)
    opened, answer = steps.run(workspace, "quick" if quick else "full" if full else "default", console)
    console.result(answer.value, answer.lines)
    if not no_serve:
        wiring.serve(opened, console, port=port)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can do, and what to install."""
    from pinhole import doctor as medicine

    findings = medicine.examine()
    Console(as_json).result(medicine.summary(findings), medicine.lines(findings))
    if any(one.state == "missing" for one in findings):
        raise typer.Exit(1)


# -- the catalogue ------------------------------------------------------------------------------


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")], as_json: Json = False) -> None:
    """Make a workspace: a folder with pinhole.toml."""
    from pinhole.workspace import Workspace

    made = Workspace.create(folder)
    Console(as_json).result({"workspace": str(made.root)}, [f"made {made.root}. Next: pinhole ingest items SOURCE -w {made.root}"])


@app.command()
def ingest(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="items, boards, queries, events or judgements.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A JSONL, CSV or Parquet file, a folder of images, or hf:NAME.")],
    rename: Annotated[list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="Rename a column, as in title=product_title.")] = None,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Read rows into the catalogue.

    A row whose key is known is replaced. A row that cannot be kept is listed in the rejected table with a reason.
    """
    from pinhole import tasks

    console = Console(as_json)
    _finish(console, tasks.ingest(_open(workspace), kind, source, rename or [], console))


@app.command()
def sample(
    name: Annotated[str, typer.Argument(metavar="NAME", help="openclipart, tuxpaint or openmoji.")], workspace: Where = None, as_json: Json = False
) -> None:
    """Fetch a real sample catalogue and read it in."""
    from pinhole import tasks

    console = Console(as_json)
    _finish(console, tasks.sample(_open(workspace), name, console))


@app.command()
def watch(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder of images, or a JSONL, CSV or Parquet file.")],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="items, boards, queries, events or judgements.")] = "items",
    every: Annotated[str, typer.Option("--every", metavar="TIME", help="Pause between two looks, as in 2s, 500ms or 1m.")] = "2s",
    once: Annotated[bool, typer.Option("--once", help="One round, then stop.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Items (boards) that an earlier round read and that vanished are removed.")] = False,
    rename: Annotated[list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="Rename a column, as in title=product_title.")] = None,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Follow a folder or a table file, and keep the workspace fresh.

    Reads what is new or changed once it rests, then builds what went stale, until Ctrl-C. With --json each round that did something
    is one line; with --once there is just one.
    """
    from pinhole import watch as watching

    console, pause = Console(as_json), watching.seconds(every)
    watched = watching.Watch(_open(workspace), kind, source, rename or [], remove, console)
    if not once:
        console.say(f"watching {watched.source} (Ctrl-C stops)")
    watching.follow(watched, pause, once, lambda done: console.result(done.value(kind, source)))


# -- building -----------------------------------------------------------------------------------


@app.command()
def build(
    stages: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE]...", help="embed, align, index, tags, graft, evaluate; tune, ranker (default: all).")
    ] = None,
    on: Annotated[str, typer.Option("--on", metavar="ray[:ADDRESS]", help="Embed on a Ray cluster (docs/scale-out.md).")] = "",
    force: Annotated[bool, typer.Option("--force", help="Make the named stages anew where little changed too.")] = False,
    unfreeze: Annotated[
        str | None, typer.Option("--unfreeze", metavar="lora|full|no", help="Tune the image encoder first; written into pinhole.toml.")
    ] = None,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Run the stages that are out of date.

    A stage named here brings what it needs. Each says why it runs, and goes on where an interrupted run stopped. Where little
    changed, space, graft and exams are kept and the index is extended.
    """
    from pinhole import tasks

    console = Console(as_json)
    opened = _open(workspace)
    opened = opened.change({"tune.unfreeze": unfreeze}) if unfreeze else opened
    _finish(console, tasks.build(opened, stages or [], console, on, force))


@app.command()
def graft(
    base: Annotated[str | None, typer.Option("--base", metavar="NAME|DIR", help="pypi:NAME, hf:NAME or a folder; written into pinhole.toml.")] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="original: learn from the base's own eyes; or none. Written into pinhole.toml.")
    ] = None,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Build the graft, on another base if named, taught by that base's own eyes if wanted."""
    from pinhole import tasks

    console = Console(as_json)
    opened = _open(workspace)
    opened = tasks.set_base(opened, base) if base else opened
    opened = tasks.set_teacher(opened, teacher) if teacher else opened
    _finish(console, tasks.build(opened, ["graft"], console))


@app.command()
def evaluate(
    lessons: Annotated[Path | None, typer.Option("--lessons", metavar="FILE", help="Examine on your own JSONL: messages, tools, expect.")] = None,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Examine on held-out data.

    Builds what is out of date first. Every figure comes with its n, what chance and a blind model would get, and a 95% interval.
    """
    from pinhole import tasks

    console = Console(as_json)
    opened = _open(workspace)
    _finish(console, tasks.evaluate_lessons(opened, lessons, console) if lessons else tasks.evaluate(opened, console))


@app.command()
def lessons(
    show: Annotated[int, typer.Option("--show", min=1, max=10_000, help="How many.")] = 20, workspace: Where = None, as_json: Json = False
) -> None:
    """Show what the language model is taught."""
    from pinhole import tasks

    _finish(Console(as_json), tasks.lessons(_open(workspace), show))


@app.command()
def report(workspace: Where = None, as_json: Json = False) -> None:
    """Write report.html: figures, curves, conversations."""
    from pinhole import tasks

    console = Console(as_json)
    _finish(console, tasks.report(_open(workspace), console))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder, or an earlier export.")],
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Write the graft as a plain Hugging Face checkpoint.

    With its projector, a model card that holds the exams' figures, and how to serve it on vLLM.
    """
    from pinhole import tasks

    _finish(Console(as_json), tasks.export(_open(workspace), folder))


# -- using it -----------------------------------------------------------------------------------


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="[TEXT]", help="Words.")] = "",
    like: Annotated[list[str] | None, typer.Option("--like", metavar="ID|IMAGE", help="More like this item or picture; may be repeated.")] = None,
    unlike: Annotated[list[str] | None, typer.Option("--unlike", metavar="ID|IMAGE", help="Less like this one; may be repeated.")] = None,
    where: Annotated[str, typer.Option("--where", metavar="SQL", help="""As in "category = 'chair' AND price < 30".""")] = "",
    n: Annotated[int, typer.Option("-n", min=1, max=10_000, help="How many.")] = 10,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Find items by words, pictures and conditions."""
    from pinhole import tasks

    _finish(Console(as_json), tasks.search(_open(workspace), text, like or [], unlike or [], where, n))


@app.command()
def related(
    id: Annotated[str, typer.Argument(metavar="ID")],
    by: Annotated[str, typer.Option("--by", metavar="WAY", help="graph: what people put together; embedding: what looks alike; both.")] = "both",
    n: Annotated[int, typer.Option("-n", min=1, max=10_000, help="How many.")] = 10,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Items that go with this one."""
    from pinhole import tasks

    _finish(Console(as_json), tasks.related(_open(workspace), id, n, by))


@app.command()
def chat(engine: Engine = None, engine_url: EngineUrl = None, workspace: Where = None) -> None:
    """Talk to the assistant in the terminal."""
    from pinhole import wiring

    wiring.chat(wiring.on_engine(_open(workspace), engine, engine_url), Console())


@app.command()
def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on (default: [serve] host in pinhole.toml).")] = None,
    port: Port = None,
    engine: Engine = None,
    engine_url: EngineUrl = None,
    workspace: Where = None,
) -> None:
    """Serve the page and an OpenAI-compatible API."""
    from pinhole import wiring

    wiring.serve(wiring.on_engine(_open(workspace), engine, engine_url), Console(), host=host, port=port)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="One benchmark (default: all).")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The small sizes only, where a benchmark has several.")] = False,
    long: Annotated[bool, typer.Option("--long", help="The largest size too.")] = False,
    n: Annotated[int | None, typer.Option("--n", min=1, help="How many, where a benchmark counts something.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the figures, where a benchmark has a plot.")] = None,
    workspace: Where = None,
    as_json: Json = False,
) -> None:
    """Measure a claim beside what it is compared with."""
    from pinhole import tasks
    from pinhole.errors import UsageError

    if quick and long:
        raise UsageError("--quick and --long exclude each other", fix="take one, or neither for the default")
    console = Console(as_json)
    _finish(console, tasks.bench(name, workspace, console, "quick" if quick else "long" if long else "", plot, n or 0))


def _open(folder: Path | None) -> Workspace:
    from pinhole.wiring import find_workspace

    return find_workspace(folder)


def _finish(console: Console, answer: Answer) -> None:
    console.result(answer.value, answer.lines)


def _version(value: bool) -> None:
    if value:
        from pinhole import __version__

        Console(as_json=True).result({"pinhole": __version__})
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


# -- the edge -----------------------------------------------------------------------------------

RESUMABLE = ("demo", "ingest", "sample", "watch", "build", "graft", "evaluate", "report")


def run(arguments: list[str]) -> int:
    """One command; returns its exit code. Errors become one line on stderr."""
    say = Console().say
    try:
        code = app(args=arguments, prog_name="pinhole", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except PinholeError as error:
        say(f"error: {error}")
        return error.exit_code
    except Exception as error:
        return _unexpected(error, say)
    code = code if isinstance(code, int) else 0
    if code == 130:
        again = f" What was done is kept: run `pinhole {' '.join(arguments)}` again to go on." if arguments and arguments[0] in RESUMABLE else ""
        say(f"stopped.{again}")
    return code


def _unexpected(error: Exception, say: Any) -> int:
    """Wrong usage that the parser found, a system's refusal, or a fault of ours."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        message = error.format_message().rstrip()
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "pinhole")
        if type(error).__name__ == "NoArgsIsHelpError":
            say(message)
        else:
            say(f"error: {message[:1].lower()}{message[1:].rstrip('.')}{'' if message.endswith('?') else '.'} See `{path} --help`")
        return int(error.exit_code)
    if os.environ.get("PINHOLE_DEBUG"):
        import traceback

        say("".join(traceback.format_exception(error)).rstrip())
        return 1
    if isinstance(error, OSError) and error.strerror:
        say(f"error: {error.strerror.lower()}" + (f" ({error.filename})" if error.filename else ""))
        return 1
    first = (str(error).strip().splitlines() or [""])[0]
    say(f"error: {type(error).__name__}: {first}. This is a fault of Pinhole; PINHOLE_DEBUG=1 shows where")
    return 1


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
