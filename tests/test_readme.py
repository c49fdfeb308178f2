"""What README.md says is run or checked: its Python, its figures, its tree, its links."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import graft_figures
import readme_costs
import readme_figures
from built_shop import built_shop, inside
from pinhole import wiring
from pinhole.server.app import create_app, running
from pinhole.workspace import Workspace

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON, OPENAI = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TREE = re.search(r"```\nsrc/pinhole/\n(.*?)```", README, re.DOTALL)[1].splitlines()  # type: ignore[index]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_shop(tmp_path_factory)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    shop = Workspace.open(folder / "shop")
    with running(create_app(wiring.open_assistant(shop), wiring.open_catalogue(shop), config=shop.config)) as address:
        yield address


@pytest.mark.slow
def test_ten_lines_of_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(folder):
        exec(compile(PYTHON.replace('open("demo")', 'open("shop")'), "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert len(re.findall(r"^\S+/\S+ -?\d+\.\d+$", out, re.MULTILINE)) == 5 and "Finished(" in out


@pytest.mark.slow
def test_ten_lines_of_openai(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(OPENAI.replace("http://127.0.0.1:8000", address), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_they_are_ten_lines() -> None:
    assert [len(code.strip().splitlines()) for code in (PYTHON, OPENAI)] == [10, 10]


def test_the_tree_is_the_tree() -> None:
    """Every room and every module at the top is there once, in the order of the layers; nothing else is."""
    named = [line.split()[0] for line in TREE if line.startswith("  ")]
    package = ROOT / "src" / "pinhole"
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert sorted(named) == sorted(rooms | modules)
    assert all((ROOT / line.split()[0]).exists() for line in TREE if not line.startswith("  "))
    layers = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)[1]  # type: ignore[index]
    level = {name: -number for number, line in enumerate(layers.strip().splitlines()) for name in re.findall(r"\w+", line)}
    order = [level[name.removesuffix("/").removesuffix(".py")] for name in named]
    assert order == sorted(order)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found = (ROOT / page).parent / path
            assert found.exists(), target
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings], target


def test_commands_exist() -> None:
    from pinhole.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"(?:`|^)pinhole (\w+)", README, re.MULTILINE)) <= commands


# -- figures --------------------------------------------------------------------------------------


def test_the_figures_are_what_was_printed() -> None:
    """The README holds docs/figures.json in words; without that file it holds no figure at all."""
    inner = readme_figures.block(json.loads(readme_figures.FILE.read_text(encoding="utf-8"))) if readme_figures.FILE.exists() else ""
    assert readme_figures.fill(README, inner) == README, "run: python tests/readme_figures.py"


def test_figures_are_written_from_the_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"see.pick.accuracy": 0.5, "see.pick.accuracy.n": 1300, "see.pick.accuracy.low": 0.45, "see.pick.accuracy.high": 0.55}
    figures |= {"see.pick.accuracy.blind": 0.26, "speed.first_token_s": 0.0437, "tools.unseen.n": 0, "strange.key": 2.0}
    stages = {"embed": {"action": "built", "reason": "", "key": "x", "seconds": 61.0, "peak_memory_gb": 1.25}}
    printed = (
        "noise\n" + json.dumps({"demo": "default", "workspace": "demo", "wall_s": 1234.5, "peak_memory_gb": 3.21, "stages": stages, **figures}) + "\n"
    )
    size, measured = readme_figures.read(printed)
    assert size == "default" and measured["figures"] == figures and measured["machine"]["cores"]
    block = readme_figures.block({"default": measured})
    assert "| `see.pick.accuracy` | Which of the four is it? | **.500** .450 – .550, n 1,300 | blind .260 |" in block
    assert "| `speed.first_token_s` | First word of an answer | **44 ms** |  |" in block and "tools.unseen" not in block
    assert "| `embed` | 1 min 01 s | 1.2 GB |" in block and "| the whole way | 20 min 34 s | 3.2 GB |" in block
    both = readme_figures.block({"default": measured, "full": {**measured, "figures": {"see.pick.accuracy": 0.6}, "stages": {}}})
    assert "| `see.pick.accuracy` | Which of the four is it? | **.500** .450 – .550, n 1,300 | blind .260 | **.600** |  |" in both
    assert "| First word of an answer | **44 ms** |  |  |  |" in both and "| `embed` | 1 min 01 s | 1.2 GB |  |  |" in both
    later = readme_figures.again('{"see.pick.accuracy": 0.7, "name": "x"}', measured)
    assert later["figures"] == {"see.pick.accuracy": 0.7} and later["stages"] == stages, "asked again: the build cost what it cost"
    filled = readme_figures.fill(README, block)
    assert block in filled and readme_figures.fill(filled, block) == filled and filled.startswith("# Pinhole")
    assert filled.partition(readme_figures.END)[2] == README.partition(readme_figures.END)[2]


def test_the_costs_are_what_was_printed() -> None:
    """The README holds docs/costs.json in words."""
    inner = readme_costs.block(json.loads(readme_costs.FILE.read_text(encoding="utf-8"))) if readme_costs.FILE.exists() else ""
    assert readme_costs.fill(README, inner) == README, "run: python tests/readme_costs.py"


def test_costs_are_written_from_the_last_line() -> None:
    turn = {"full_s": 20.0, "cached_tower_s": 7.5, "graft_s": 0.25, "floor_s": 0.24, "full_over_graft": 80.0, "flops.full_over_graft": 84.4}
    printed = {f"turn.n10.{key}": value for key, value in turn.items()} | {"turn.n10.graft_over_floor": 1.04, "turn.threads": 2}
    name, run = readme_costs.read("noise\n" + json.dumps({**printed, "turn.tower_image_s": 0.9, "turn.encoder_image_s": 0.013}) + "\n")
    assert name == "turn" and run["machine"]["cores"]
    board = {"first_token_s": 0.84, "first_token_s.n": 9.0, "next_question_s": 0.09, "over_text": 1.02}
    board = {f"board.n1000.{key}": value for key, value in board.items()}
    gateway = {"gateway.added_s": 0.006, "gateway.upstream_first_token_s": 0.252}
    text = readme_costs.block({"turn": run} | dict(readme_costs.read(json.dumps(one)) for one in (board, gateway)))
    assert "| 10 | 20.00 s | 7.50 s | 0.25 s | 0.24 s | **80.0×** | 84.4× | 1.04 |" in text and "0.90 s by that tower, 13 ms by" in text
    assert "**0.84 s** to the first token, 1.02 times as many words; **0.090 s**" in text and "**6.0 ms** to 252 ms" in text and "2 threads" in text
    filled = readme_costs.fill(README, text)
    assert text in filled and readme_costs.fill(filled, text) == filled


def test_the_trainings_are_what_was_printed() -> None:
    """docs/graft.md holds docs/trainings.json in words."""
    runs = json.loads(graft_figures.FILE.read_text(encoding="utf-8")) if graft_figures.FILE.exists() else {}
    text = graft_figures.PAGE.read_text(encoding="utf-8")
    assert graft_figures.page(text, runs) == text, "run: python tests/graft_figures.py"


def test_trainings_are_written_from_the_last_line() -> None:
    scores = {f"{name}.{side}.{exam}": 0.625 for name, sides in graft_figures.SIDES.items() for side in sides for exam in graft_figures.EXAMS}
    tokens = {f"tokens.{side}.{key}": value for side in graft_figures.SIDES["tokens"] for key, value in (("per_item", 4.0), ("first_token_s", 0.08))}
    tokens |= {"tokens.steps": 425.0, "tokens.n": 500.0} | {key: value for key, value in scores.items() if key.startswith("tokens.")}
    distil = {"distil.steps": 425.0, "distil.n": 500.0, "distil.teacher_right": 0.5, "distil.teacher_s": 120.0, "distil.kept.see.pick.accuracy": 0.9}
    distil |= {key: value for key, value in scores.items() if key.startswith("distil.")}
    start = {f"start.{name}.{key}": 2.0 for name in ("random", "ridge", "words") for key in ("first", "last", "steps")} | {"start.of_steps": 120.0}
    runs = dict(readme_costs.read(json.dumps(printed), graft_figures.BENCHMARKS) for printed in (tokens, distil, start))
    page = graft_figures.page(graft_figures.PAGE.read_text(encoding="utf-8"), runs)
    assert page.count("| which of the four is it | .625 |") == 2 and "|  | 90% |" in page and "| first token, four new pictures | 80 ms |" in page
    assert "steps to the random start's last loss | 2 | 2 | 2 |" in page and graft_figures.page(page, runs) == page
