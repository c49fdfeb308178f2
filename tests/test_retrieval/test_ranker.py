"""Features are the same in training and serving, teachers grade as they should, and a trained ranker orders what search finds."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pinhole import config
from pinhole.catalogue.split import Split
from pinhole.config import RankerConfig, RankerFeature
from pinhole.errors import ConfigError, EngineDown, EngineError, SpaceMismatch
from pinhole.evaluation.ranker_exams import agreement, ranker_exams
from pinhole.retrieval import ranker as ranker_module
from pinhole.retrieval.asked import AskedTeacher, read_grade
from pinhole.retrieval.declared import Declared
from pinhole.retrieval.index import Searcher
from pinhole.retrieval.item_values import ItemValues
from pinhole.retrieval.ndcg import graded, logged, ndcg
from pinhole.retrieval.ranker import Ranker, blend, build_ranker, opinion
from pinhole.retrieval.student import FEW, Student, distil
from pinhole.retrieval.teacher import CrossEncoder, Pair, calibrated, levels, scored
from pinhole.stages import STAGES, stages_of
from pinhole.vision.align import Space
from pinhole.vision.signals import read_signals
from toy_search import Toy, as_workspace, make_toy

DOC = (Path(__file__).parents[2] / "docs" / "ranker.md").read_text(encoding="utf-8")
FEATURES = (RankerFeature(name="cheap", expression="1 / (1 + price)"), RankerFeature(name="boat", expression="category = 'boat'"))
HASTY = RankerConfig(queries=20, hits=6, exam=6, epochs=2, hidden=4, features=FEATURES)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINHOLE_CACHE", str(tmp_path / "cache"))


def silent(done: int, total: int) -> None:
    pass


# -- declared features ----------------------------------------------------------------------------


def value(expression: str, row: dict[str, Any], default: float = -7.0) -> float:
    return float(Declared.of([RankerFeature(name="f", expression=expression, default=default)]).values([row])[0, 0])


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("price * 2 + 1", 7.0),
        ("1 / (price - 3)", -7.0),
        ("ln(0 - price)", -7.0),
        ("nan + 1", -7.0),
        ("missing", -7.0),
        ("coalesce(missing, 5)", 5.0),
        ("exp(1000)", -7.0),
        ("power(10, 60)", -7.0),
        ("text", -7.0),
        ("size", 41.0),
        ("tags = 'red'", 1.0),
        ("tags IN ('blue', 'green')", 0.0),
        ("CASE WHEN clicks > 3 THEN length(title) ELSE 0 END", 5.0),
        ("missing IS NULL AND NOT price IS NULL", 1.0),
        ("price IS NOT NULL", 1.0),
        ("price BETWEEN 2 AND 3 OR missing > 1", 1.0),
        ("NOT text", -7.0),
        ("NOT (text OR price > 2)", 0.0),
        ("title LIKE 'ch%'", 0.0),
        ("title ILIKE 'ch%'", 1.0),
        ("deep.width - 1", 8.0),
        ("greatest(price, clicks, 2)", 4.0),
    ],
)
def test_expressions(expression: str, expected: float) -> None:
    attributes = {"price": 3, "nan": float("nan"), "text": "word", "size": "41", "tags": ["red", "old"], "deep": {"width": 9}}
    assert value(expression, {"title": "Chair", "clicks": 4, "attributes": attributes}) == expected


@pytest.mark.parametrize("expression", ["price +", "now()", "(SELECT 1)", "price; price", "random()", "sum(price)", "x" * 2000])
def test_what_is_not_understood_names_feature_and_columns(expression: str) -> None:
    with pytest.raises(ConfigError, match="feature `mine`") as caught:
        Declared.of([RankerFeature(name="mine", expression=expression)])
    assert "clicks" in str(caught.value) and "created_at" in str(caught.value)


def test_a_name_that_no_item_has_and_a_name_given_twice() -> None:
    with pytest.raises(ConfigError, match="`cheap`: no item has `price`.*category"):
        Declared.of(FEATURES).check({"category"})
    with pytest.raises(ConfigError, match="two features"):
        Declared.of([FEATURES[0], FEATURES[0]])


def test_values_are_the_same_bit_for_bit_whoever_asks(tmp_path: Path) -> None:
    toy = make_toy(tmp_path, n=64, align={"steps": 2})
    prices = [None if k % 7 == 0 else k / 3 for k in range(64)]
    toy.catalogue.upsert("items", pa.table({"id": toy.features.ids, "title": ["x"] * 64, "price": prices, "category": ["boat"] * 64}))
    counts = {id: (k, 1, 0) for k, id in enumerate(toy.features.ids)}
    training = ItemValues(toy.catalogue, Declared.of(FEATURES), counts)(toy.features.ids)
    serving = ItemValues(toy.catalogue, Declared.of(FEATURES), counts)
    one_by_one = np.concatenate([serving([id]) for id in reversed(toy.features.ids)])[::-1]
    assert training.tobytes() == one_by_one.tobytes() and len(set(training[:, 3].tolist())) > 40
    toy.catalogue.upsert("items", pa.table({"id": [toy.features.ids[3]], "title": ["x"], "price": [99.0]}))
    assert serving([toy.features.ids[3]])[0, 3] == np.float32(1 / 100)


@pytest.mark.parametrize("features", [(), (RankerFeature(name="asked", expression="clicks"),)])
def test_clicks_of_the_asking_query_can_be_left_out(features: tuple[RankerFeature, ...], tmp_path: Path) -> None:
    toy = make_toy(tmp_path, n=16, align={"steps": 2})
    some, other = toy.features.ids[:2]
    values = ItemValues(toy.catalogue, Declared.of(features), {some: (5, 1, 0), other: (3, 0, 0)})
    read = values([some, other], {some: 2})
    assert np.expm1(read[:, 0]) == pytest.approx([3, 3]) and read[:, 3:].ravel().tolist() == [3, 3][: 2 * len(features)]
    assert np.expm1(values([some])[0, 0]) == pytest.approx(5), "as it is for everybody else"


# -- teachers -------------------------------------------------------------------------------------


class Counted:
    """Grades by shared words, and counts what it was asked."""

    sees, identity = False, "counted"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, pairs: Any, progress: Any) -> np.ndarray:
        self.asked += len(pairs)
        return np.array([float(len(set(pair.query.split()) & set(pair.text.split()))) for pair in pairs])

    def grades(self, scores: np.ndarray) -> np.ndarray:
        return np.minimum(scores * 2, 4)


def test_nobody_is_asked_twice_nor_about_nothing() -> None:
    teacher, pairs = Counted(), [Pair("red boat", 0, "a red boat"), Pair("red boat", 1, ""), Pair("red boat", 2, "a hat")]
    first = scored(teacher, pairs, silent)
    assert first[0] == 2 and np.isnan(first[1]) and first[2] == 0 and teacher.asked == 2
    np.testing.assert_array_equal(scored(teacher, pairs[::-1], silent), first[::-1])
    assert teacher.asked == 2


def test_a_cross_encoder_reads_pair_by_pair(tmp_path: Path) -> None:
    teacher = CrossEncoder(*tiny_cross_encoder(tmp_path), "tiny")
    pairs = [Pair("red boat", 0, "a boat " * 400), Pair("hat", 1, "red hat")]
    both = teacher.score(pairs, silent)
    np.testing.assert_array_equal(both, [teacher.score([pair], silent)[0] for pair in pairs])
    assert np.isfinite(both).all() and both[0] != both[1]
    assert (np.diff(teacher.grades(np.linspace(-12, 12, 9))) > 0).all()


def tiny_cross_encoder(folder: Path) -> tuple[Path, Path]:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification

    from pinhole.vision.encoders.runtime import export

    words = ["[PAD]", "[UNK]", "a", "red", "boat", "hat"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    settings = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1)
    network = BertForSequenceClassification(settings)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.network(ids, attention_mask=mask, token_type_ids=types).logits

    names = ("input_ids", "attention_mask", "token_type_ids")
    example = {name: torch.ones((1, 7), dtype=torch.int64) for name in names}
    export(Logits(), example, folder / "model.onnx", {name: {0: "n", 1: "tokens"} for name in names}, ("logits",))
    return folder / "model.onnx", folder / "tokenizer.json"


@pytest.fixture
def server() -> Iterator[Any]:
    """An OpenAI-compatible server that answers as ``server.say(body)`` does: (status, content)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, content = found.say(body)
            message = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
            data = json.dumps({**message, "choices": [choice]} if status == 200 else {"error": {"message": content}}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    found: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()


def test_a_server_is_asked_for_one_grade(server: Any) -> None:
    bodies: list[dict[str, Any]] = []

    def say(body: dict[str, Any]) -> tuple[int, str]:
        bodies.append(body)
        if len(bodies) == 1:
            return 500, "not now"  # is tried again
        asked = json.loads(body["messages"][1]["content"])
        return 200, '{"grade": 3}' if asked["item"] == "hat" else "I would rather not"

    server.say = say
    teacher = AskedTeacher(f"http://127.0.0.1:{server.server_port}/v1", "m", at_once=1)
    grades = teacher.score([Pair("q", 0, "hat"), Pair("q", 1, "cat")], silent)
    assert grades[0] == 3 and np.isnan(grades[1])
    assert len(bodies) == 4 and bodies[0]["response_format"]["json_schema"]["schema"]["properties"]["grade"]["enum"] == [0, 1, 2, 3, 4]


def test_a_server_that_refuses_or_is_gone(server: Any) -> None:
    address = f"http://127.0.0.1:{server.server_port}/v1"
    server.say = lambda body: (401, "who are you?")
    with pytest.raises(EngineError, match="401.*who are you.*PINHOLE_TEACHER_KEY"):
        AskedTeacher(address, "m").score([Pair("q", 0, "hat")], silent)
    server.say = lambda body: (200, "no")
    with pytest.raises(EngineError, match="none of 1 pairs"):
        AskedTeacher(address, "m").score([Pair("q", 0, "hat")], silent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pinhole.retrieval.asked.RETRIES", 0)
        with pytest.raises(EngineDown, match="127.0.0.1:9/"):
            AskedTeacher("http://127.0.0.1:9/v1", "m").score([Pair("q", 0, "hat")], silent)
    for url, model in (("somebody", "m"), (address, "")):
        with pytest.raises(ConfigError, match=r"\[ranker\] teacher"):
            AskedTeacher(url, model)


def test_what_counts_as_a_grade() -> None:
    assert [read_grade(text) for text in ('{"grade": 4}', 'so: {"grade": "2"}.', '{"grade": 5}', '{"grade": 2.5}', '{"grade": true}', "{", None)] == [
        4.0,
        2.0,
        None,
        None,
        None,
        None,
        None,
    ]


def test_people_bend_the_grades() -> None:
    scores, judged = np.arange(40.0), np.repeat([0.0, 1.0, 3.0, 4.0], 10)
    curve = calibrated(Counted(), np.append(scores, np.nan), np.append(judged, 4))
    assert levels(curve(np.array([-5.0, 2, 15, 25, 99]))).tolist() == [0, 0, 1, 3, 4] and np.isnan(curve(np.array([np.nan])))[0]
    assert not calibrated(Counted(), scores[:5], judged[:5]).scores


# -- numbers --------------------------------------------------------------------------------------


def test_ndcg_by_hand() -> None:
    assert ndcg(np.array([0.0, 1.0]), np.ones(1), 10) == pytest.approx(1 / np.log2(3))
    assert logged(np.array([5, 7]), np.array([7, 9]), 1) == 0
    assert graded(np.array([3, 1, 2]), {1: 4.0, 2: 0.0}, 10) == 1  # 3 was graded by nobody
    assert graded(np.array([1]), {}, 10) == 0


def test_agreement_by_hand() -> None:
    found = agreement("x", np.array([0.2, 1.4, 3.6]), np.array([0.0, 2.0, 4.0]))
    assert found["x.exact"] == pytest.approx(2 / 3) and found["x.within_one"] == 1 and found["x.rank"] == pytest.approx(1)


def test_blending_keeps_what_cannot_be_graded() -> None:
    scores, grades = np.array([3.0, 2, 1, 0]), np.array([0.0, 1, 2, 4])
    known = np.array([True, True, True, False])
    assert blend(scores, grades, 0.0, known) == pytest.approx(scores)
    mixed = blend(scores, grades, 1.0, known)
    assert mixed[3] == 0 and np.argsort(-mixed[:3]).tolist() == [2, 1, 0]


def test_an_opinion_is_the_teachers_and_the_logs() -> None:
    found = np.array([[4.0, 0.0], [1.0, 2.0]])
    assert opinion(found, 0.0).tolist() == [4, 1] and opinion(found, 1.0).tolist() == [0, 2] and opinion(found, 0.5).tolist() == [2, 1.5]


def test_a_mix_is_taken_that_harms_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker_module, "MIXES", ((0.0, 0.0), (0.5, 0.0), (0.5, 0.4), (1.0, 0.8)))

    class Graded:
        def pool(self, asked: Any) -> list[dict[int, float]]:
            return [{0: 1.0, 1: 4.0, 2: 0.0, 3: 2.0} for _ in asked]

    one: Any = SimpleNamespace(query=SimpleNamespace(key="red"))
    # what is right is row 3: the second order finds only what the teacher likes, the third gains in both, the last only what is right
    orders = [np.array(order) for order in ([2, 3, 0, 1], [1, 0, 3, 2], [3, 1, 0, 2], [3, 2, 0, 1])]
    assert ranker_module._choose([(one, np.array([3]), orders)], Graded()) == (0.5, 0.4)  # type: ignore[arg-type]
    assert ranker_module._choose([], Graded()) == (0.0, 0.0)  # type: ignore[arg-type]


def test_a_student_learns_saves_and_repeats_itself(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    read = draw.standard_normal((1500, 6)).astype(np.float32)
    grades = 4 / (1 + np.exp(-2 * read[:, 0] + read[:, 1]))
    settings = RankerConfig(epochs=20, hidden=8, learning_rate=0.02, decay=0.0)
    led = read[:, 2] > 0.5
    student = distil(read[:1000], grades[:1000], led[:1000], settings, "space", ("f",))
    guessed, likely = student(read[1000:]).T
    assert np.abs(guessed - grades[1000:]).mean() < 0.2
    assert ((likely > 2) == led[1000:]).mean() > 0.95
    again = distil(read[:1000], grades[:1000], led[:1000], settings, "space", ("f",))
    assert all(student.weights[name].tobytes() == again.weights[name].tobytes() for name in student.weights)
    student.save(tmp_path)
    np.testing.assert_array_equal(Student.load(tmp_path)(read), student(read))
    with pytest.raises(SpaceMismatch, match="other"):
        student.check("other", ("f",), "here")
    with pytest.raises(SpaceMismatch, match="features"):
        student.check("space", (), "here")


# -- the stage ------------------------------------------------------------------------------------


class Contrary:
    """Likes what search does not: a title whose second word comes late in the alphabet."""

    sees, identity = False, "contrary"

    def score(self, pairs: Any, progress: Any) -> np.ndarray:
        return np.array([4.0 if "train" in pair.text else 0.0 for pair in pairs])

    def grades(self, scores: np.ndarray) -> np.ndarray:
        return scores


def made(tmp_path: Path) -> tuple[Toy, Any, Searcher, Any]:
    toy = make_toy(tmp_path / "toy", n=96, align={"steps": 2})
    ids = toy.features.ids
    titles = dict(zip(*(toy.catalogue.items(["id", "title"])[name].to_pylist() for name in ("id", "title")), strict=True))
    columns = {
        "id": ids,
        "title": [titles[id] for id in ids],
        "price": [k / 2 for k in range(len(ids))],
        "category": [id.split("/")[0] for id in ids],
    }
    toy.catalogue.upsert("items", pa.table(columns))
    toy.config = toy.config.model_copy(update={"ranker": HASTY.model_copy(update={"enabled": True})})
    workspace = as_workspace(toy)
    space = Space.load(workspace.need("align").path)
    searcher = Searcher(toy.catalogue, toy.features, space, workspace.need("index").path, toy.text_encoder, lambda: pytest.fail("no picture"))
    return toy, workspace, searcher, read_signals(toy.catalogue, toy.features)


def test_built_measured_and_served(tmp_path: Path) -> None:
    toy, workspace, searcher, signals = made(tmp_path)
    held = [text for text in dict.fromkeys(toy.catalogue.queries()["text"].to_pylist()) if Split(toy.config.catalogue).query(text)]
    given = [(text, id, k % 5) for text in held[:3] for k, id in enumerate(toy.features.ids[:10])]
    columns = {name: [one[at] for one in given] for at, name in enumerate(("text", "item", "grade"))}
    toy.catalogue.upsert("judgements", pa.table(columns))
    out = workspace.start("ranker", "r")
    part = signals.part(toy.config.catalogue)[0]
    ranker, grader, figures = build_ranker(toy.catalogue, searcher, part, toy.asked, Counted(), toy.config, out, silent)
    assert figures["queries"] == min(20, len(part.queries)) and 0 < figures["graded"] < figures["pairs"]
    found = ranker_exams(searcher, ranker, grader, signals, toy.config)
    for key in ("ranker.ndcg@10", "ranker.graded.ndcg@20"):
        assert found[f"{key}.n"] > 0 and 0 <= found[key] <= 1 and 0 <= found[f"{key}.before"] <= 1
    assert found["ranker.agreement.teacher_human.exact.n"] > 0 and found["ranker.agreement.student_teacher.exact.n"] > 0
    workspace.finish("ranker", "r", {})
    loaded = Ranker.load(out.with_suffix(""), toy.catalogue, toy.config.ranker, searcher.space.identity)
    assert (loaded.weight, loaded.share) == (ranker.weight, ranker.share)
    question = searcher.question("red boat")
    np.testing.assert_array_equal(searcher.read(question, question.rows, loaded.values), searcher.read(question, question.rows, ranker.values))


def test_search_is_ranked_anew_for_words_alone(tmp_path: Path) -> None:
    toy, workspace, searcher, signals = made(tmp_path)
    out = workspace.start("ranker", "r")
    settings = toy.config.model_copy(update={"ranker": HASTY.model_copy(update={"epochs": 60, "learning_rate": 0.02, "hits": 30})})
    ranker, _, _ = build_ranker(toy.catalogue, searcher, signals.part(toy.config.catalogue)[0], toy.asked, Contrary(), settings, out, silent)
    plain = searcher.search("red", n=96)
    liked = searcher.search("red", like=["boat/0000"], n=20)
    searcher.ranker = Ranker(ranker.student, 1.0, 0.0, ranker.sees, ranker.values)
    ranked = searcher.search("red", n=96)
    place = {row: at for at, row in enumerate(hit.id for hit in ranked)}
    titled = [hit.id for hit in ranked if searcher.features.has_text[searcher.features.row(hit.id)]]
    assert sorted(place) == sorted(hit.id for hit in plain) and place != {hit.id: at for at, hit in enumerate(plain)}
    trains = [at for at, id in enumerate(titled) if id.startswith("train/")]
    assert np.mean(trains) < 0.3 * len(titled)
    assert all(hit.score == pytest.approx(sum(hit.parts.values()), abs=1e-3) for hit in ranked) and "ranker" in ranked[0].parts
    silent_items = {hit.id: hit.score for hit in plain if not searcher.features.has_full_text[searcher.features.row(hit.id)]}
    assert silent_items and all(hit.score == pytest.approx(silent_items[hit.id], abs=1e-3) for hit in ranked if hit.id in silent_items)
    assert searcher.search("red", like=["boat/0000"], n=20) == liked


def test_a_query_that_is_learned_from_is_read_as_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own clicks would say what it led to, in what is learned and in what the weight is chosen on."""
    toy, workspace, searcher, signals = made(tmp_path)
    part = signals.part(toy.config.catalogue)[0]
    queries = toy.catalogue.queries()
    many = pa.table({"text": queries["text"], "item": queries["item"], "count": [10 + k % 90 for k in range(len(queries))]})
    toy.catalogue.upsert("queries", many)
    asked = dict(zip(zip(many["text"].to_pylist(), many["item"].to_pylist(), strict=True), many["count"].to_pylist(), strict=True))
    known = [pair for pair in asked if not Split(toy.config.catalogue).query(pair[0])]
    read: list[tuple[Any, np.ndarray, np.ndarray]] = []
    through = ranker_module._Seen.read

    def heard(one: Any, rows: np.ndarray, values: Any) -> np.ndarray:
        found = through(one, rows, values)
        read.append((one, rows, np.expm1(found[:, FEW])))
        return found

    monkeypatch.setattr(ranker_module._Seen, "read", heard)
    build_ranker(toy.catalogue, searcher, part, toy.asked, Counted(), toy.config, workspace.start("ranker", "r"), silent)
    own = 0
    for one, rows, clicks in read:
        ids = [toy.features.ids[row] for row in rows]
        others = [sum(asked[pair] for pair in known if pair[1] == id and pair[0] != one.query.key) for id in ids]
        assert clicks == pytest.approx(others, rel=1e-3)
        own += sum((one.query.key, id) in asked for id in ids)
    assert own > 20 and len(read) > len(part.queries[:20])


def test_the_same_seed_gives_the_same_ranker(tmp_path: Path) -> None:
    toy, workspace, searcher, signals = made(tmp_path)
    part, files = signals.part(toy.config.catalogue)[0], []
    for name in ("r1", "r2"):
        out = workspace.start("ranker", name)
        build_ranker(toy.catalogue, searcher, part, toy.asked, Counted(), toy.config, out, silent)
        files.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert files[0] == files[1] and len(files[0]) == 4


def test_a_log_without_queries_leaves_search_as_it_is(tmp_path: Path) -> None:
    toy, workspace, searcher, signals = made(tmp_path)
    part = signals.part(toy.config.catalogue)[0]
    nothing = part.without({query.key for query in part.queries})
    ranker, _, figures = build_ranker(toy.catalogue, searcher, nothing, toy.asked, Counted(), toy.config, workspace.start("ranker", "r"), silent)
    assert figures["pairs"] == 0 and ranker.weight == 0
    plain = searcher.search("red boat")
    searcher.ranker = ranker
    assert [hit.id for hit in searcher.search("red boat")] == [hit.id for hit in plain]


def test_the_stage_is_there_when_it_is_asked_for() -> None:
    assert "ranker" not in STAGES and stages_of(config.Config()) == STAGES
    for teacher, before in (("cross-encoder", "tags"), ("graft", "graft")):
        found = stages_of(config.parse({"ranker": {"enabled": True, "teacher": teacher}}, where="test"))
        names = list(found)
        assert names.index("ranker") == names.index(before) + 1 and names[-1] == "evaluate" and "ranker" in found["evaluate"].needs
        for at, name in enumerate(names):
            assert set(found[name].needs) <= set(names[:at])


def test_the_page(tmp_path: Path) -> None:
    read = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", DOC, re.S)]
    settings = config.parse({"ranker": {**read[0]["ranker"], **read[1]["ranker"]}}, where="page").ranker
    assert settings.enabled and [one.name for one in settings.features] == ["cheap", "popular_and_long"]
    row = {"title": "chair", "clicks": 20, "attributes": {"price": 3}}
    assert Declared.of(settings.features).values([row]).tolist() == [[0.25, 5.0]]
    path = tmp_path / "pinhole.toml"
    changed = config.parse({"ranker": {"features": [one.model_dump() for one in settings.features]}}, where="page")
    path.write_text(config.commented(changed))
    assert config.load(path) == changed
    for name in ("judgements", "PINHOLE_TEACHER_KEY", "features = []"):
        assert name in DOC
    assert "20 judgements" in DOC
