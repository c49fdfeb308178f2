"""``pinhole.toml``: one small frozen model per component; each setting is documented once, under its field.

Knows nothing about what the settings do. Unknown keys and wrong types are refused with the key's
full name; every default is written out, commented, by :func:`commented`.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pinhole.errors import ConfigError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CatalogueConfig(Section):
    category: str = Field("category", description="attribute that names the kind of thing an item is (exams use it)")
    held_out_items: float = Field(0.18, ge=0, lt=1, description="share of items that no stage trains on")
    held_out_boards: float = Field(0.20, ge=0, lt=1, description="share of boards that no stage trains on")
    held_out_queries: float = Field(0.25, ge=0, lt=1, description="share of query texts that no stage trains on")
    split: int = Field(0, ge=0, description="which split (a salt of the hash that draws it)")


class VisionConfig(Section):
    image_encoder: str = Field("pypi:efficientnet-lite0", description="pypi:NAME, hf:NAME, timm:NAME or open_clip:NAME")
    text_encoder: str = Field("pypi:all-minilm-l6-v2", description="pypi:NAME or hf:NAME")
    grid: int = Field(0, ge=0, le=64, description="cells kept along each side of a picture, for [graft] tokens_per_item above 1; 0 keeps none")
    workers: int = Field(0, ge=0, description="encoding processes; 0 = one per core")
    max_pixels: int = Field(100_000_000, gt=0, description="larger images are rejected before they are decoded")


class GraphConfig(Section):
    boards: float = Field(1.0, ge=0, description="weight of boards in random walks; 0 leaves them out")
    queries: float = Field(1.0, ge=0, description="weight of queries and the items they led to")
    users: float = Field(1.0, ge=0, description="weight of users and the items they met")
    ignored_actions: tuple[str, ...] = Field(("hide",), description="actions of users that say nothing good of an item")
    least_users: int = Field(3, ge=1, description="an item that fewer users met is not reached through users, who could be told from it")
    common: float = Field(0.1, gt=0, le=1, description="boards, queries and users that hold a larger share of all items are left out")
    common_least: int = Field(100, ge=2, description="... but none that holds at most so many")
    steps: int = Field(20_000, ge=1, description="steps of the walks that find related items")
    restart: float = Field(0.5, ge=0, lt=1, description="chance that a step begins at the start again")
    enough_items: int = Field(500, ge=1, description="walks stop early when so many items ...")
    enough_visits: int = Field(8, ge=1, description="... were visited so often each")

    def weight(self, kind: str) -> float:
        """Of ``board``, ``query`` or ``user``."""
        return {"board": self.boards, "query": self.queries, "user": self.users}[kind]


class TuneConfig(Section):
    unfreeze: Literal["no", "lora", "full"] = Field(
        "no", description="what of the image encoder learns before it embeds: nothing, LoRA, whole weights"
    )
    blocks: int = Field(4, ge=0, description="blocks at its end that learn; 0 = all")
    steps: int = Field(300, ge=1, description="training steps")
    batch: int = Field(64, ge=4, description="pairs of each signal in a step; [align] weighs the signals")
    chunk: int = Field(64, ge=1, description="pictures in one pass; a larger batch goes in several, with the same gradient")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW on the encoder, cosine to zero")
    heads_learning_rate: float = Field(1e-3, gt=0, description="AdamW on the heads that it learns with, which are thrown away")
    lora_rank: int = Field(16, ge=1, description="rank of the LoRA")
    averaging: float = Field(0.98, ge=0, lt=1, description="running mean of the weights: how much of it a step keeps")
    share: float = Field(1.0, gt=0, le=1, description="how far from the open encoder's weights to the tuned ones, in the end (WiSE-FT)")
    seed: int = Field(0, description="seed of everything random in this stage")


class AlignConfig(Section):
    dim: int = Field(256, ge=8, description="width of the learned block")
    nested: tuple[int, ...] = Field((64, 128, 256), description="widths that work when cut (Matryoshka)")
    steps: int = Field(300, ge=1, description="training steps")
    batch: int = Field(256, ge=8, description="pairs of each signal in a step")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, cosine to zero")
    weight_title: float = Field(1.0, ge=0, description="weight of image with its own title")
    weight_board: float = Field(1.0, ge=0, description="weight of item with a board-mate")
    weight_query: float = Field(1.0, ge=0, description="weight of query with an item it led to")
    weight_walk: float = Field(1.0, ge=0, description="weight of item with one that random walks from it visit (boards, queries, users)")
    loss: Literal["infonce", "sigmoid"] = Field("infonce", description="infonce = right among the batch; sigmoid = each pair by itself (SigLIP)")
    popularity: float = Field(0.0, ge=0, le=1, description="how much of the advantage of what is drawn often is taken off (logQ)")
    hard: int = Field(0, ge=0, description="negatives of a batch that are mined near its left sides, drawn anew in each step; 0 mines none")
    title_share: float = Field(0.5, ge=0, le=1, description="how often an item in training has its title beside its picture")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of each frozen vector's numbers that are dropped in training")
    drift: float = Field(0.0, ge=0, description="penalty on the distance from the start (L2-SP), for small catalogues")
    averaging: float = Field(0.98, ge=0, lt=1, description="running mean of the weights: how much of it a step keeps")
    seed: int = Field(0, description="seed of everything random in this stage")
    retrain_at: float = Field(0.1, ge=0, description="share of items or of links that changed since, from which it is trained again")


class IndexConfig(Section):
    rebuild_at: float = Field(0.1, ge=0, description="share of items or links that changed since, from which the index is built anew, not extended")
    least_recall: float = Field(0.95, ge=0, le=1, description="... or recall@10 of the extended index, against a scan, below which it is")
    flat_below: int = Field(50_000, ge=0, description="fewer items are scanned exactly, more are laid in lists of which a search reads some")
    storage: Literal["float32", "float16", "int8", "bit"] = Field(
        "float32", description='how the index keeps a number of a vector; "bit" finds by one bit and scores the best again in int8'
    )
    width: int = Field(0, ge=0, description="numbers of a learned vector that the index keeps (see [align] nested); 0 = all")
    recall: float = Field(0.97, gt=0, le=1, description="recall@10, on the query log, that decides how many lists a search reads")


class DiversifyConfig(Section):
    twin: float = Field(0.97, ge=0, le=1, description="cosine from which two pictures nearly repeat each other ...")
    apart: int = Field(10, ge=0, description="... and are shown at least so many results apart; 0 lets them be")
    strength: float = Field(0.0, ge=0, lt=1, description="how much a result's difference from those before it counts beside its score")
    attribute: str = Field("", description="attribute whose values shall differ among the results, as pictures do (a number: its bands)")
    attribute_share: float = Field(0.5, ge=0, le=1, description="how much of a difference is the attribute's, where one is named")
    represent: str = Field("", description="attribute of which every value that is found is among the first results (a number: its bands)")
    bands: int = Field(4, ge=2, description="ranges that a number is cut into, each with as many of what was found")


class RankerFeature(Section):
    name: str = Field(min_length=1, description="what it is called")
    expression: str = Field(min_length=1, description="SQL over an item's columns, attributes, and clicks, boards and users")
    default: float = Field(0.0, allow_inf_nan=False, description="its value where the expression gives no number")


class RankerConfig(Section):
    enabled: bool = Field(False, description="whether `pinhole build` trains a ranker, and search puts its first 200 hits in the ranker's order")
    teacher: str = Field("cross-encoder", description='who grades: "cross-encoder", "graft", or the address of an OpenAI-compatible server')
    teacher_model: str = Field("", description="the model that is asked of a server; its key is read from PINHOLE_TEACHER_KEY")
    at_once: int = Field(8, ge=1, description="questions that a server is sent at a time")
    reads: tuple[str, ...] = Field(("title", "description"), description="columns and attributes of an item that the teacher reads")
    queries: int = Field(1500, ge=1, description="queries of the log that the teacher grades items for, at most")
    logged: int = Field(6, ge=0, description="items that a query led to, for each, at most")
    hits: int = Field(18, ge=1, description="hits of the search as it is, for each: the best, some near them, some of the rest of 200")
    exam: int = Field(200, ge=1, description="held-out queries that the exams ask, at most")
    hidden: int = Field(32, ge=1, description="width of the student's hidden layer")
    epochs: int = Field(15, ge=1, description="times that the student sees each graded pair")
    batch: int = Field(256, ge=1, description="graded pairs in a step")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, cosine to zero")
    decay: float = Field(0.1, ge=0, description="weight decay of AdamW")
    seed: int = Field(0, description="seed of everything random in this stage")
    retrain_at: float = Field(0.1, ge=0, description="share of items or of links that changed since, from which it is trained again")
    features: tuple[RankerFeature, ...] = Field((), description="numbers of an item that the student reads, here or as [[ranker.features]]")


class TagsConfig(Section):
    attributes: tuple[str, ...] = Field(("category", "keywords", "tags"), description="attributes whose values are guessed where the owner gave none")
    precision: float = Field(0.8, gt=0, lt=1, description="share of guesses that the owner would have made too, on items that were never seen")
    least: int = Field(15, ge=2, description="training items that bear a value, fewer and it is not learned")
    most: int = Field(1000, ge=1, description="values of an attribute, the commonest")
    captions: bool = Field(False, description="whether the graft describes every picture too; `tags` then comes after it")
    weight: float = Field(0.5, ge=0, description="what a guessed word counts in a search, beside one that the owner wrote")


class GraftConfig(Section):
    base: str = Field("pypi:smollm2-135m-instruct", description="pypi:NAME, hf:NAME or a folder: a causal LM, or a VLM (docs/families.md)")
    card: str = Field("#{k}{soft} {title}", description="how an item is written in a prompt, in lessons and in serving")
    card_words: int = Field(8, ge=0, description="words of the title on a card; 0 writes none")
    seeing_steps: int = Field(425, ge=0, description="steps of the first stage: projector and LoRA learn to see")
    talking_steps: int = Field(220, ge=0, description="steps of the second stage: conversation and tools")
    replay: float = Field(1.0, ge=0, le=1, description="lessons of seeing in the second stage, for each of its own")
    warm_start: Literal["auto", "words", "tower"] = Field("auto", description="auto = by the base's vision tower if it is there, else by words")
    lora_rank: int = Field(16, ge=1, description="rank of the LoRA on all linear layers")
    lora_learning_rate: float = Field(1.5e-3, gt=0, description="AdamW; warm-up, plateau, linear decay over both stages")
    projector_learning_rate: float = Field(2e-5, gt=0, description="AdamW; warm-up, plateau, linear decay over both stages")
    tokens_per_item: Literal[1, 4, 16] = Field(1, description="soft tokens of a picture, at most: 4 and 16 need [vision] grid = 2 and 4, or more")
    teacher: Literal["", "original"] = Field("", description='"original": the unmodified base answers lessons with its own eyes, and is learned from')
    taught_scenes: int = Field(1000, ge=1, description="scenes that a teacher answers, of about three lessons each")
    taught_share: float = Field(0.5, gt=0, le=1, description="share of the scenes of seeing that a teacher answered")
    distil_weight: float = Field(1.0, ge=0, description="what a teacher's expectations weigh beside its words")
    row_tokens: int = Field(512, ge=64, description="tokens of a packed row of lessons")
    batch_rows: int = Field(2, ge=1, description="packed rows in a step; each core reads its own")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto = bfloat16 where the CPU or GPU has it")
    checkpoint_steps: int = Field(100, ge=1, description="steps between checkpoints")
    seed: int = Field(0, description="seed of lessons, order and weights")
    retrain_at: float = Field(0.1, ge=0, description="share of items or of boards' links that changed since, from which it is trained again")


class EvaluateConfig(Section):
    n: int = Field(300, ge=1, description="turns in an exam of tools (fewer where the data has fewer, then all)")
    seeing_n: int = Field(1000, ge=1, description="questions in an exam of seeing: each is a choice, many are read at once")
    splits: int = Field(1, ge=1, description="splits pooled in the search and board exams (more than one trains align again)")
    conversations: int = Field(10, ge=0, description="held-out conversations shown in the report")
    seed: int = Field(0, description="seed of the exams' draws")
    repeat_at: float = Field(0.1, ge=0, description="share of items or of links that changed since, from which the exams are held again")


class AssistantConfig(Section):
    results: int = Field(6, ge=1, le=40, description="items a search shows")
    max_steps: int = Field(4, ge=1, description="tool calls in one turn, at most")
    max_tokens: int = Field(160, ge=1, description="tokens of one answer, at most")
    max_turn_seconds: float = Field(60.0, gt=0, description="a turn that takes longer ends with what it has")


class ServeConfig(Section):
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    max_body_bytes: int = Field(8_000_000, gt=0, description="larger requests get 413")
    queue: int = Field(64, ge=1, description="conversations that may wait; one more gets 503")


class EngineConfig(Section):
    kind: Literal["local", "vllm"] = Field("local", description="local = the model runs in this process; vllm = on servers of its own")
    url: str = Field("", description="addresses of the vLLM servers, separated by commas")
    busy: int = Field(16, ge=1, description="answers at work on a server from which conversations go to another")
    connect_seconds: float = Field(3.0, gt=0, description="longest wait for a connection to a server")
    first_token_seconds: float = Field(60.0, gt=0, description="longest wait for the first token")
    token_seconds: float = Field(20.0, gt=0, description="longest wait for each token after it")
    pause_seconds: float = Field(1.0, gt=0, description="first pause before a server that failed is looked at again; it doubles up to a minute")


class Config(Section):
    catalogue: CatalogueConfig = CatalogueConfig()
    vision: VisionConfig = VisionConfig()
    graph: GraphConfig = GraphConfig()
    tune: TuneConfig = TuneConfig()
    align: AlignConfig = AlignConfig()
    index: IndexConfig = IndexConfig()
    diversify: DiversifyConfig = DiversifyConfig()
    ranker: RankerConfig = RankerConfig()
    tags: TagsConfig = TagsConfig()
    graft: GraftConfig = GraftConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    assistant: AssistantConfig = AssistantConfig()
    serve: ServeConfig = ServeConfig()
    engine: EngineConfig = EngineConfig()


def load(path: Path) -> Config:
    """Read a ``pinhole.toml``. Raises :class:`ConfigError` naming the file, the key and what it takes."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no configuration", where=str(path), fix="run `pinhole init DIR` to write one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path), fix="correct the line named") from None
    return parse(data, where=str(path))


def parse(data: dict[str, Any], *, where: str) -> Config:
    """Check a mapping against the models above, and its settings against each other."""
    try:
        return _together(Config.model_validate(data), where)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            section = getattr(Config(), str(first["loc"][0]), Config())
            known = ", ".join(sorted(type(section).model_fields))
            raise ConfigError(f"unknown setting `{key}`", where=where, fix=f"known here: {known}") from None
        raise ConfigError(f"`{key}` = {first['input']!r}: {first['msg'].lower()}", where=where) from None


def _together(config: Config, where: str) -> Config:
    if config.tune.unfreeze != "no" and config.evaluate.splits > 1:
        what = f'`evaluate.splits` = {config.evaluate.splits} and `tune.unfreeze` = "{config.tune.unfreeze}" do not go together'
        why = "the tuned encoder has seen what other splits hold out"
        raise ConfigError(f"{what}: {why}", where=where, fix="set [evaluate] splits = 1; for another split set [catalogue] split and build again")
    edge = math.isqrt(config.graft.tokens_per_item)
    if config.vision.grid < edge > 1:
        what = f"`graft.tokens_per_item` = {config.graft.tokens_per_item} and `vision.grid` = {config.vision.grid} do not go together"
        raise ConfigError(
            what, where=where, fix=f"set [vision] grid = {edge}, or more: the cells that make the tokens are kept when pictures are embedded"
        )
    return config


def changed(text: str, settings: dict[str, Any], *, where: str) -> str:
    """A ``pinhole.toml`` with ``{"graft.base": "hf:NAME"}`` set and its comments kept. Raises :class:`ConfigError` as :func:`load` does."""
    import tomlkit

    document = tomlkit.parse(text)
    for name, value in settings.items():
        section, key = name.split(".", 1)
        document.setdefault(section, tomlkit.table())[key] = value
    parse(document.unwrap(), where=where)
    return tomlkit.dumps(document)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, Section):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return repr(value)


def commented(config: Config | None = None) -> str:
    """The whole configuration as TOML, each setting under a comment that says what it does."""
    config = config or Config()
    lines = ["# Pinhole workspace. Every setting is written out with its value; delete a line to take the default."]
    for name in Config.model_fields:
        section = getattr(config, name)
        lines += ["", f"[{name}]"]
        for key, field in type(section).model_fields.items():
            lines += [f"# {field.description}", f"{key} = {_toml(getattr(section, key))}"]
    return "\n".join(lines) + "\n"
