"""The stages: what each reads, and the rooms that do it.

Beside ``wiring`` the only place that knows several rooms at once. Knows nothing of how any of them
works, nor of when a stage runs (``builder``). A room is imported when its stage runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinhole import builder, freshness
from pinhole.builder import Build, Outcome, Progress, Stage, Standing, Track, Verdict, quiet
from pinhole.config import Config, GraftConfig
from pinhole.errors import UsageError
from pinhole.workspace import Workspace, digest, read_json

if TYPE_CHECKING:
    from pinhole.catalogue.store import Catalogue
    from pinhole.graft.model import Graft
    from pinhole.graft.prompt import Soft, ToolSchema
    from pinhole.vision.align import Asked, Space
    from pinhole.vision.features import Features


def build(
    workspace: Workspace,
    names: Sequence[str] = (),
    *,
    force: bool = False,
    track: Track = quiet,
    log: Callable[[str], None] = lambda message: None,
    on: str = "",
) -> list[Outcome]:
    """:func:`pinhole.builder.build` of Pinhole's own stages."""
    return builder.build(workspace, stages_of(workspace.config), fingerprint, names, force=force, track=track, log=log, on=on)


def fingerprint(workspace: Workspace, table: str) -> str:
    from pinhole.catalogue.store import Catalogue

    return Catalogue(workspace.tables).fingerprint(table)


JUDGED = (*freshness.TEACHING, "judgements")  # what a ranker learns from


# -- what they read -----------------------------------------------------------------------------


def _catalogue(job: Build) -> Catalogue:
    from pinhole.catalogue.store import Catalogue

    return Catalogue(job.workspace.tables)


def _features(job: Build) -> Features:
    from pinhole.vision.features import Features

    return Features.load(job.inputs["embed"].path)


def _space(job: Build) -> Space:
    from pinhole.vision.align import Space

    return Space.load(job.inputs["align"].path)


def _asked(job: Build) -> Asked:
    """All query texts' vectors: those that ``align`` left, and those of texts that came since it was trained."""
    from pinhole.vision.align import Asked

    features = _features(job)
    texts = _catalogue(job).queries()["text"].to_pylist()
    return Asked.load(job.inputs["align"].path).completed(texts, features.text_encoder.spec)


def _everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _stamps(spec: str, read: Callable[[Path], list[Path]] = _everything) -> str:
    """A hash of what is read of a local folder (names, sizes, times); "" for a name that is fetched and never changes."""
    folder = Path(spec.partition(":")[2] or spec)
    files = read(folder) if folder.is_dir() else []
    return digest([(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]) if files else ""


def _encoders(workspace: Workspace) -> dict[str, str]:
    vision = workspace.config.vision
    return {"the image encoder's files": _stamps(vision.image_encoder), "the text encoder's files": _stamps(vision.text_encoder)}


def _untuned(workspace: Workspace) -> dict[str, str]:
    """What tuning begins from, and the settings of other stages that it reads. Raises where the encoder cannot be tuned."""
    from pinhole.vision.encoders import image_encoder
    from pinhole.vision.encoders.tuned import check

    vision, align = workspace.config.vision, workspace.config.align
    check(image_encoder(vision.image_encoder))
    read = {"[vision]": digest(vision.image_encoder, vision.text_encoder, vision.max_pixels)}
    weights = (align.weight_title, align.weight_board, align.weight_query, align.dim, align.nested)
    return read | _encoders(workspace) | {"the signals' weights or widths in [align]": digest(weights)}


def _base_and_tools(workspace: Workspace) -> dict[str, str]:
    from pinhole.assistant.tools import Toolbox
    from pinhole.graft.base import check_base, files_read

    base, start = workspace.config.graft.base, workspace.config.graft.warm_start
    check_base(base)
    read = {"the base's files": _stamps(base, lambda folder: files_read(folder, start)), "the tools": digest(Toolbox().schemas)}
    return read | _teacher(workspace.config.graft) if workspace.config.graft.teacher else read


def _teacher(config: GraftConfig) -> dict[str, str]:
    """The unmodified base, with the eyes that the graft itself does not read."""
    from pinhole.graft.original import check_original

    check_original(config)
    return {"the teacher's files": _stamps(config.base)}


def _ranker_reads(workspace: Workspace) -> dict[str, str]:
    """Raises where the teacher or a feature is not one."""
    from pinhole.retrieval.asked import check_server
    from pinhole.retrieval.declared import Declared

    settings = workspace.config.ranker
    Declared.of(settings.features)
    if settings.teacher not in ("cross-encoder", "graft"):
        check_server(settings.teacher, settings.teacher_model)
    return {"the split or the graph in the configuration": digest(workspace.config.catalogue.model_dump(), workspace.config.graph.model_dump())}


# -- what they do -------------------------------------------------------------------------------


def _tune(job: Build) -> dict[str, Any]:
    from pinhole.vision.tune import build_tune

    embedded = job.workspace.latest("embed")
    return build_tune(_catalogue(job), job.workspace.config, job.out, job.progress, embedded.path if embedded else None)


def _embed(job: Build) -> dict[str, Any]:
    from pinhole.vision.cluster import ClusterPool
    from pinhole.vision.precompute import precompute

    vision = job.workspace.config.vision
    before = job.previous.path if job.previous else None
    image = f"tuned:{job.inputs['tune'].path.absolute()}/encoder" if "tune" in job.inputs else vision.image_encoder
    encoders, limits = (image, vision.text_encoder), (vision.max_pixels, vision.grid)
    pool = partial(ClusterPool, job.on) if job.on else None
    stats = precompute(_catalogue(job), *encoders, job.out, before, vision.workers, job.progress, *limits, pool)
    return stats.figures()


def _align(job: Build) -> dict[str, Any]:
    from pinhole.retrieval.trials import watch
    from pinhole.vision.align import build_align

    freshness.note(job)
    features = _features(job)
    watched = lambda inside, outside, asked: watch(features, inside, outside, asked.of)  # noqa: E731
    return build_align(_catalogue(job), features, job.workspace.config, job.out, job.progress, watched)


def _graft(job: Build) -> dict[str, Any]:
    from pinhole.assistant.tools import Toolbox
    from pinhole.graft.train import build_graft

    freshness.note(job, _told(job.workspace))
    before = job.previous.path if job.previous else None
    return build_graft(_catalogue(job), _features(job), _space(job), Toolbox().schemas, job.workspace.config, job.out, job.progress, before)


def _index(job: Build) -> dict[str, Any]:
    from pinhole.retrieval.index import build_index, extend_index

    parts = (_catalogue(job), _features(job), _space(job), job.workspace.config)
    if job.onto is not None:
        return extend_index(*parts, job.onto.path, job.out)
    freshness.note(job)
    return build_index(*parts, job.out, job.progress, _asked(job))


def _tags(job: Build) -> dict[str, Any]:
    from pinhole.evaluation.tag_exams import tag_exams
    from pinhole.retrieval.guesses import build_tags
    from pinhole.vision.signals import read_signals

    config, catalogue, features = job.workspace.config, _catalogue(job), _features(job)
    signals, (first, second) = read_signals(catalogue, features, config.graph), _parts(job.progress, 2)
    said = _captions(job, catalogue, features, first) if config.tags.captions else {}
    examined, figures = build_tags(catalogue, features, _space(job), signals, config, job.out, second, said)
    return figures | {"captions": float(len(said))} | tag_exams(examined, config.catalogue.category, config.evaluate.seed)


def _captions(job: Build, catalogue: Catalogue, features: Features, progress: Progress) -> dict[int, tuple[str, float]]:
    from pinhole.engines.captions import AT_ONCE, Pictured, captions
    from pinhole.engines.local import in_bulk
    from pinhole.graft.grader import GraftGrader

    graft, grafted, soft = _seeing(job, catalogue, features, _space(job))
    looks = features.rows["image"].to_pylist()
    shown = [(row, soft(row)) for row in range(len(features))]
    pictures = [Pictured(row, looks[row], found[0]) for row, found in shown if found is not None]
    with in_bulk(graft, AT_ONCE) as engines:
        return captions(engines, GraftGrader(graft, soft, grafted), pictures, grafted, progress)


def _ranker(job: Build) -> dict[str, Any]:
    from pinhole.evaluation.ranker_exams import ranker_exams
    from pinhole.retrieval.guesses import Guesses
    from pinhole.retrieval.index import Searcher
    from pinhole.retrieval.ranker import build_ranker
    from pinhole.vision.encoders import image_encoder, text_encoder
    from pinhole.vision.signals import read_signals

    freshness.note(job, tables=JUDGED)
    config, catalogue, features, space = job.workspace.config, _catalogue(job), _features(job), _space(job)
    encoders = (lambda: text_encoder(features.text_encoder.spec), lambda: image_encoder(features.image_spec))
    guesses = Guesses.load(job.inputs["tags"].path, space.identity)
    index, limit = job.inputs["index"].path, config.vision.max_pixels
    searcher = Searcher(catalogue, features, space, index, *encoders, limit, guesses=guesses, guessed=config.tags.weight)
    signals, parts = read_signals(catalogue, features, config.graph), _parts(job.progress, 2)
    teacher = _ranker_teacher(job, catalogue, features, space)
    made = build_ranker(catalogue, searcher, signals.part(config.catalogue)[0], _asked(job), teacher, config, job.out, parts[0])
    ranker, grader, figures = made
    return figures | ranker_exams(searcher, ranker, grader, signals, config)


def _ranker_teacher(job: Build, catalogue: Catalogue, features: Features, space: Space) -> Any:
    from pinhole.retrieval.asked import AskedTeacher
    from pinhole.retrieval.cluster_teacher import ClusterTeacher
    from pinhole.retrieval.teacher import packaged_cross_encoder

    settings = job.workspace.config.ranker
    on = partial(ClusterTeacher, on=job.on, folder=job.out) if job.on else lambda teacher, setup: teacher
    if settings.teacher == "cross-encoder":
        return on(packaged_cross_encoder(), setup={})
    if settings.teacher != "graft":
        asks = {"url": settings.teacher, "name": settings.teacher_model, "at_once": settings.at_once}
        return on(AskedTeacher(settings.teacher, settings.teacher_model, settings.at_once), setup=asks)
    if job.on:
        job.log("ranker: the graft grades on this machine: a cluster's nodes do not have it")
    from pinhole.graft.grader import GraftGrader

    graft, key, soft = _seeing(job, catalogue, features, space)
    return GraftGrader(graft, soft, key)


def _seeing(job: Build, catalogue: Catalogue, features: Features, space: Space) -> tuple[Graft, str, Callable[[int], tuple[Soft, str] | None]]:
    """The graft, its artefact's key, and what it sees of a row of the features, with its title; None where there is no picture."""
    from pinhole.catalogue.split import Split
    from pinhole.graft.model import Graft
    from pinhole.graft.world import build_world

    grafted, config = job.inputs["graft"], job.workspace.config
    graft = Graft.load(grafted.path)
    graft.check_space(space.identity)
    world = build_world(catalogue, features, space, Split(config.catalogue), config.catalogue.category, tokens_per_item=graft.nested[-1])
    place = {picture.id: number for number, picture in enumerate(world.pictures)}
    at = {row: place[id] for row, id in enumerate(features.ids) if id in place}
    return graft, grafted.key, lambda row: (world.soft(at[row]), world.pictures[at[row]].title) if row in at else None


def _evaluate(job: Build) -> dict[str, Any]:
    from pinhole.assistant.tools import Toolbox
    from pinhole.catalogue.split import Split
    from pinhole.engines.local import in_bulk
    from pinhole.evaluation.exams import build_evaluation
    from pinhole.evaluation.tool_exams import AT_ONCE
    from pinhole.graft.model import Graft
    from pinhole.graft.world import build_world

    freshness.note(job, _told(job.workspace))
    config, tools, grafted = job.workspace.config, Toolbox().schemas, job.inputs["graft"]
    catalogue, features, space = _catalogue(job), _features(job), _space(job)
    graft = Graft.load(grafted.path)
    graft.check_space(space.identity)
    settings = config.catalogue
    world = build_world(catalogue, features, space, Split(settings), settings.category, tokens_per_item=graft.nested[-1])
    parts = _parts(job.progress, 4)
    others = (
        lambda: _search_figures(job, catalogue, features, space, parts[1]),
        lambda: _engine_figures(graft, tools, config, parts[2]),
        lambda: _embed_figures(job, parts[3]),
        lambda: {key: value for key, value in grafted.manifest["figures"].items() if key.startswith(("speed.", "graft.warm_start", "graft.taught"))},
        lambda: _measured(job, "ranker"),
        lambda: _measured(job, "tags"),
    )
    curves = [grafted.path / "curve.png"]
    return build_evaluation(graft, in_bulk(graft, AT_ONCE), world, tools, config, job.out, others=others, curves=curves, progress=parts[0])


def _search_figures(job: Build, catalogue: Catalogue, features: Features, space: Space, progress: Progress) -> dict[str, float]:
    from pinhole.evaluation.search_exams import search_exams
    from pinhole.retrieval.weights import Weights

    weights = Weights.from_json(read_json(job.inputs["index"].path / "weights.json"))
    return search_exams(catalogue, features, space, weights, _asked(job), job.workspace.config, progress)


def _measured(job: Build, stage: str) -> dict[str, float]:
    """What a stage measured itself: a ranker's teacher was at hand there, what was learned for guesses is not kept."""
    made = job.inputs.get(stage)
    return {key: value for key, value in made.manifest["figures"].items() if key.startswith(f"{stage}.")} if made else {}


def _engine_figures(graft: Graft, tools: Sequence[ToolSchema], config: Config, progress: Progress) -> dict[str, float]:
    from pinhole.engines.local import LocalEngine
    from pinhole.engines.speed import measure

    with LocalEngine(graft) as engine:  # as it serves
        return measure(engine, tools, rounds=min(20, config.evaluate.n), progress=progress)


def _embed_figures(job: Build, progress: Progress) -> dict[str, float]:
    from pinhole.vision.speed import measure

    try:
        return measure(job.workspace, 8 * job.workspace.config.evaluate.n)
    except UsageError as error:  # every picture lies in the tables: there are no files to measure with
        job.log(f"evaluate: the speed of embedding is left out: {error.what}")
        return {}


def _parts(progress: Progress, n: int) -> list[Progress]:
    """One bar for ``n`` pieces of work of about the same length."""

    def part(number: int) -> Progress:
        return lambda done, total: progress(number * 1000 + min(1000, 1000 * done // max(total, 1)), n * 1000)

    return [part(number) for number in range(n)]


# -- when they do it again ----------------------------------------------------------------------


def _told(workspace: Workspace) -> tuple[str, ...]:
    """Attributes that lessons and exams are made of."""
    from pinhole.catalogue.store import TEXT_ATTRIBUTES

    return (workspace.config.catalogue.category, *TEXT_ATTRIBUTES)


def _judge_align(standing: Standing) -> Verdict:
    return freshness.judge_trained(standing, standing.workspace.config.align.retrain_at, ("items", "boards", "queries"))


def _judge_ranker(standing: Standing) -> Verdict:
    return freshness.judge_trained(standing, standing.workspace.config.ranker.retrain_at, JUDGED)


def _judge_tune(standing: Standing) -> Verdict:
    """Another encoder means that every picture is looked at again: that is asked for, not found."""
    return Verdict("kept", "the encoder stays as it was tuned, `pinhole build tune --force` tunes it anew")


def _judge_graft(standing: Standing) -> Verdict:
    return freshness.judge_trained(standing, standing.workspace.config.graft.retrain_at, ("items", "boards"), _told(standing.workspace))


def _judge_evaluate(standing: Standing) -> Verdict:
    limit, tables = standing.workspace.config.evaluate.repeat_at, ("items", "boards", "queries")
    return freshness.judge_trained(standing, limit, tables, _told(standing.workspace), again="repeated")


def _named(*stages: Stage) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


STAGES: dict[str, Stage] = _named(
    Stage("embed", (), ("vision",), ("items",), 1, _embed, _encoders),
    Stage("align", ("embed",), ("align", "graph", "catalogue"), ("items", "boards", "queries", "events"), 5, _align, judge=_judge_align),
    Stage(
        "index",
        ("embed", "align"),
        ("index", "graph", "align", "catalogue"),
        ("items", "boards", "queries", "events"),
        6,
        _index,
        judge=freshness.judge_index,
    ),
    Stage("tags", ("embed", "align"), ("tags", "catalogue", "graph"), ("items",), 1, _tags),
    Stage("graft", ("embed", "align"), ("graft", "catalogue"), ("items", "boards"), 13, _graft, _base_and_tools, _judge_graft),
    Stage(
        "evaluate",
        ("embed", "align", "index", "tags", "graft"),
        ("evaluate", "catalogue"),
        ("items", "boards", "queries"),
        12,
        _evaluate,
        judge=_judge_evaluate,
    ),
)
TUNE = Stage("tune", (), ("tune", "catalogue"), ("items", "boards", "queries"), 1, _tune, _untuned, _judge_tune)


RANKER = Stage(
    "ranker",
    ("embed", "align", "index", "tags"),
    ("ranker",),
    ("items", "boards", "queries", "events", "judgements"),
    2,
    _ranker,
    _ranker_reads,
    _judge_ranker,
)


def stages_of(config: Config) -> dict[str, Stage]:
    """:data:`STAGES`; before them ``tune`` where ``[tune] unfreeze`` says so, and ``ranker`` behind what it needs where ``[ranker] enabled`` does.

    With ``[tags] captions`` guesses come after the graft that writes them.
    """
    stages = dict(STAGES)
    if config.tags.captions:
        stages = {name: stages[name] for name in stages if name not in ("tags", "evaluate")}
        stages |= {"tags": replace(STAGES["tags"], needs=(*STAGES["tags"].needs, "graft")), "evaluate": STAGES["evaluate"]}
    if config.tune.unfreeze != "no":
        stages = {"tune": TUNE, **stages, "embed": replace(STAGES["embed"], needs=("tune",))}
    if config.ranker.enabled:
        ranker = replace(RANKER, needs=(*RANKER.needs, "graft")) if config.ranker.teacher == "graft" else RANKER
        evaluate = stages.pop("evaluate")
        before = {stage.name for stage in builder.closure(ranker.needs, stages)}
        behind = [name for name in stages if name not in before]
        later = {name: stages.pop(name) for name in behind}
        stages |= {"ranker": ranker, **later, "evaluate": replace(evaluate, needs=(*evaluate.needs, "ranker"))}
    return stages
