"""Several soft tokens a picture: nested, chosen when it is asked, and one token is what it was without them."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pinhole.config import GraftConfig, parse
from pinhole.engines.kv_cache import sequence
from pinhole.engines.local import LocalEngine
from pinhole.errors import ConfigError, MissingArtefact, UsageError
from pinhole.graft.fast import fast_rows
from pinhole.graft.helpers import Helpers
from pinhole.graft.model import Graft
from pinhole.graft.packing import Row
from pinhole.graft.projector import Projector
from pinhole.graft.prompt import Message, Soft
from pinhole.graft.scoring import answer_logits
from pinhole.graft.seeing import Seeing
from pinhole.graft.train import fill_rows, seeing_lessons, turns
from pinhole.graft.tuning import Trainer
from pinhole.graft.warm_start import slopes, warm_start
from pinhole.graft.world import Drop, World, patches
from pinhole.vision.grid import apart
from toy_model import DIM, tiny_graft
from toy_world import tiny_world

CELL = 16  # the first numbers of a picture's vector are those of its cells' mean
SETTINGS = GraftConfig(row_tokens=256, batch_rows=3, lora_rank=4, dtype="float32", tokens_per_item=16)


def celled_world() -> World:
    """The tiny world; a picture's cells scatter about the beginning of its vector."""
    world = tiny_world()
    noise = np.random.default_rng(1).standard_normal((len(world.pictures), 16, CELL)).astype(np.float32)
    world.cells = lambda rows: apart(noise[list(rows)], 4)
    world.whole = lambda rows: 3 * world.vectors[list(rows), :CELL] + 1
    return world


def nested_graft(**settings: Any) -> Graft:
    plain = tiny_graft(**settings)
    projector = Projector(DIM, 48, 32, CELL).eval()
    graft = Graft(plain.lm, plain.tokenizer, projector, space=plain.space, card=plain.card, card_words=8, nested=(1, 4, 16)).eval()
    torch.manual_seed(3)
    torch.nn.init.normal_(projector.cell.weight)
    return graft


def soft(seed: int = 0) -> Soft:
    rng = np.random.default_rng(seed)
    cells = apart(rng.standard_normal((1, 16, CELL)).astype(np.float32), 4)[0]
    return Soft(f"p{seed}", rng.standard_normal(DIM).astype(np.float32), cells=cells)


def asked(*parts: Soft | str) -> list[Message]:
    return [Message.of("user", *parts, "\nwhat is this?")]


def test_a_picture_is_as_many_tokens_as_are_asked_for() -> None:
    picture, prompter = soft(), nested_graft().prompter
    lengths = {count: len(prompter.render(asked(picture), tokens_per_item=count).tokens) for count in (1, 4, 16)}
    assert (lengths[4] - lengths[1], lengths[16] - lengths[1]) == (3, 15)
    assert len(prompter.render(asked(picture)).tokens) == lengths[16]
    four = picture.tokens(4)
    assert len({one.key for one in four} | {one.key for one in picture.tokens(16)} | {picture.key}) == 21
    quarters = picture.cells.reshape(2, 2, 2, 2, CELL).mean((1, 3)).reshape(4, CELL)  # type: ignore[union-attr]
    assert np.allclose(np.concatenate([one.cells for one in four]), quarters, atol=1e-6)  # type: ignore[list-item, misc]
    assert len(prompter.render(asked(Soft("x", picture.vector))).tokens) == lengths[1]  # nothing is known of its cells


def test_one_token_is_that_of_a_graft_without_cells() -> None:
    graft, picture = nested_graft(), soft()
    plain = Projector(DIM, 48, 32).eval()
    plain.load_state_dict({name: value for name, value in graft.projector.state_dict().items() if not name.startswith("cell")})
    with torch.no_grad():
        assert torch.equal(graft.soft_tokens(picture.tokens(1)), plain(torch.from_numpy(picture.vector)[None]))
        mixed = graft.soft_tokens([*picture.tokens(4), *soft(1).tokens(1)])
        assert torch.allclose(mixed[4:], graft.soft_tokens(soft(1).tokens(1)), atol=1e-6)
        assert torch.cdist(mixed[:4], mixed[:4]).fill_diagonal_(1).min() > 0.1


def test_each_cell_begins_where_a_picture_like_it_would() -> None:
    world, graft = celled_world(), nested_graft()
    warm_start(graft, world)
    i, projector = world.train[0], graft.projector
    cell = world.soft(i).tokens(4)[2]
    like = world.vectors[i].copy()
    like[:CELL] += cell.cells[0] / 3  # type: ignore[index]
    with torch.no_grad():
        wanted = projector(torch.from_numpy(like)[None])
        got = graft.soft_tokens([cell])
    assert torch.nn.functional.cosine_similarity(got, wanted).item() > 0.999
    world.whole = lambda rows: np.random.default_rng(0).standard_normal((len(rows), CELL)).astype(np.float32)
    warm_start(graft, world)
    assert not projector.cell.weight.any()  # features that say nothing of the content: a cell begins with nothing to add


def test_slopes() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    found, exact = slopes(x, x * torch.tensor([1.0, -2.0, 0.5]) + 7)
    assert exact and torch.allclose(found, torch.tensor([1.0, -2.0, 0.5]), atol=1e-5)
    assert not slopes(x, torch.flip(x, [0]))[1]


def test_what_is_dropped_of_a_picture_is_dropped_of_its_cells() -> None:
    world, drop = celled_world(), Drop(0.5, 7)
    whole, part = world.soft(0), world.soft(0, drop=drop)
    gone = np.isclose(part.vector[:CELL], world.mean[:CELL])
    assert gone.any() and not gone.all()
    assert not part.cells[:, gone].any() and whole.cells[:, gone].any()  # type: ignore[index]


@pytest.mark.parametrize("count", [1, 4, 16])
def test_packed_is_single(count: int) -> None:
    graft, world = nested_graft(), celled_world()
    rng = random.Random(0)
    lessons = [lesson for _ in range(6) for lesson in Seeing(world, rng).scene()][:8]
    prompts = [graft.prompter.render(lesson.messages, generate=False, tokens_per_item=count) for lesson in lessons]
    together = Row()
    places = [together.add(prompt) for prompt in prompts]
    with torch.no_grad():
        packed, _ = answer_logits(graft, [together])
        for prompt, at in zip(prompts, places, strict=True):
            alone = Row()
            alone.add(prompt)
            single, _ = answer_logits(graft, [alone])
            assert torch.allclose(packed[at], single, atol=1e-3)


def test_rows_take_turns() -> None:
    assert [turns((1, 4, 16), step, 2)[0] for step in range(6)] == [1, 16, 4, 1, 16, 4]
    assert turns((1,), 5, 2) == (1,)
    graft, world = nested_graft(), celled_world()
    rows = fill_rows(seeing_lessons(world, random.Random(0), 1.0), graft.prompter, SETTINGS, None, (1, 4, 16))
    kinds = [{part.key.rpartition("/")[2].partition(".")[0] if part.cells is not None else "1" for part in row.soft} for row in rows]
    assert kinds == [{"1"}, {"4"}, {"16"}]


def test_helpers_are_sent_the_cells(tmp_path: Path) -> None:
    def trained(count: int) -> tuple[torch.Tensor, list[float], Graft]:
        graft, world = nested_graft(), celled_world()
        with Helpers(graft, SETTINGS, tmp_path, count=count) as helpers, fast_rows(graft.lm):
            trainer = Trainer(graft, SETTINGS, 0, helpers)
            losses = []
            for step in range(2):
                lessons = seeing_lessons(world, random.Random(step), 1.0)
                losses.append(trainer.step(fill_rows(lessons, graft.prompter, SETTINGS, None, graft.nested), 0.5))
            return trainer.weights.clone(), losses, graft

    alone, losses, graft = trained(0)
    together, others, _ = trained(1)
    assert losses == pytest.approx(others, rel=1e-5)
    assert torch.allclose(alone, together, atol=1e-4)
    assert not torch.equal(graft.projector.cell.weight, nested_graft().projector.cell.weight)  # it learns


def test_saved_is_loaded(tmp_path: Path) -> None:
    graft = nested_graft()
    graft.save(tmp_path)
    loaded = Graft.load(tmp_path, torch.float32)
    assert loaded.nested == (1, 4, 16)
    prompt = graft.prompter.render(asked(soft()))
    with torch.no_grad():
        assert torch.equal(loaded.embed(prompt), graft.embed(prompt))


def test_the_engine_is_told_how_many() -> None:
    graft = nested_graft()
    with LocalEngine(graft) as engine:

        def said(count: int | None, *parts: Soft) -> tuple[str, int, int]:
            *events, done = engine.chat(asked(*parts), tokens_per_item=count, max_tokens=12)
            return "".join(event.text for event in events), done.usage.prompt_tokens, done.usage.cached_tokens  # type: ignore[union-attr]

        first = said(16, soft())
        again = said(None, soft())
        assert again[:2] == first[:2] and again[2] >= first[1] - 2  # 16 is what it reads unless told; its keys and values are kept
        four = said(4, soft())
        assert four[1] == first[1] - 12 and four[2] < four[1] - 4
        changed = Soft("p0", soft().vector, cells=soft(5).cells)
        assert said(16, changed)[2] < again[2]  # the same key with other cells is not believed
        with pytest.raises(UsageError, match="2 tokens a picture .* reads 1 or 4 or 16"):
            said(2, soft())


def test_sequences_differ_by_cells() -> None:
    graft = nested_graft()
    one, four = (sequence(graft.prompter.render(asked(soft()), tokens_per_item=count)) for count in (1, 4))
    assert len(set(four.tolist()) - set(one.tolist())) == 4


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="`graft.tokens_per_item` = 16 and `vision.grid` = 2 do not go together .*set .vision. grid = 4"):
        parse({"graft": {"tokens_per_item": 16}, "vision": {"grid": 2}}, where="pinhole.toml")
    assert parse({"graft": {"tokens_per_item": 4}, "vision": {"grid": 7}}, where="").graft.tokens_per_item == 4
    features = SimpleNamespace(grid=2, path=Path("embed"))
    assert patches(features, np.arange(3), 1) is None  # type: ignore[arg-type]
    with pytest.raises(MissingArtefact, match="16 tokens a picture, and 4 cells of each were kept"):
        patches(features, np.arange(3), 16)  # type: ignore[arg-type]


def test_a_gateway_sends_as_many_embeddings(tmp_path: Path) -> None:
    from pinhole.engines.wire import Wire
    from pinhole.graft.lens import Lens

    graft = nested_graft()
    graft.save(tmp_path)
    lens = Lens(tmp_path)
    wire, messages = Wire(lens), asked("#1", soft(), " and #2", soft(1))
    for count in (None, 4):
        prompt = lens.prompter.render(messages, tokens_per_item=count)
        letter = wire.letter(messages, prompt, count)
        sent = [torch.load(io.BytesIO(base64.b64decode(part["data"]))) for part in letter.messages[0]["content"] if part["type"] == "prompt_embeds"]
        assert [tensor.shape for tensor in sent] == [(count or 16, 48)] * 2
        with torch.no_grad():
            assert torch.allclose(sent[1], graft.soft_tokens(soft(1).tokens(count or 16)), atol=1e-6)
        assert letter.ids.count(wire.placeholder) == 2 * (count or 16) and len(letter.ids) == len(prompt.tokens)
