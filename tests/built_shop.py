"""A whole workspace, made by the commands of docs/quickstart.md with tiny settings: once for all tests and all their processes."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import re
import shlex
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pinhole.workspace import Workspace, cache_dir

QUICKSTART = (Path(__file__).parents[1] / "docs" / "quickstart.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line.removeprefix("$ pinhole ")) for line in QUICKSTART.splitlines() if line.startswith("$ pinhole ")]
PER_FOLDER, FOLDERS = 16, 12
PENGUIN = "animals/birds/cartoon/tux"
TINY = {
    "vision.workers": 1,
    "align.steps": 12,
    "align.batch": 32,
    "graft.seeing_steps": 2,
    "graft.talking_steps": 2,
    "graft.row_tokens": 1024,
    "graft.batch_rows": 1,
    "graft.lora_rank": 2,
    "graft.dtype": "float32",
    "evaluate.n": 3,
    "evaluate.seeing_n": 3,
    "evaluate.conversations": 4,
    "assistant.max_tokens": 12,
    "assistant.max_steps": 1,
    "serve.port": 0,
}


def stamps() -> dict[str, tuple[Path | None, str]]:
    """Id → picture and caption: the tuxpaint sample where it was fetched before, else drawings of the same form."""
    root = cache_dir() / "samples/tuxpaint/usr/share/tuxpaint/stamps"
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*.png")):
        found[path.parent.relative_to(root).as_posix()].append(path)
    large = sorted(found, key=lambda folder: (-len(found[folder]), folder))[:FOLDERS]
    if PENGUIN.rpartition("/")[0] in found:
        from pinhole.catalogue.stamps import caption

        pictures = [root / f"{PENGUIN}.png", *(path for folder in large for path in found[folder][:PER_FOLDER])]
        return {path.relative_to(root).with_suffix("").as_posix(): (path, caption(path.with_suffix(".txt"))) for path in pictures}
    names = [f"{kind}/{colour}" for kind in ("animals", "food", "town") for colour in ("red", "green", "blue", "black")]
    return {PENGUIN: (None, "A penguin")} | {f"{name}/{k}": (None, f"A {name.replace('/', ' ')} {k}") for name in names for k in range(PER_FOLDER)}


def draw(id: str, path: Path) -> None:
    colour = next((word for word in ("red", "green", "blue") if word in id), "black")
    image = Image.new("RGB", (64, 64), "white")
    corner = len(id) * 7 % 24
    getattr(ImageDraw.Draw(image), "ellipse" if "animals" in id else "rectangle")((corner, 8, 60, 60), fill=colour)
    image.putpixel((sum(id.encode()) % 64, 0), (1, 2, 3))
    image.save(path)


def write_files(folder: Path) -> None:
    """``products.csv``, ``collections.jsonl``, ``searches.csv`` and ``photos/`` as the page describes them."""
    boards: dict[str, list[str]] = defaultdict(list)
    products: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []
    for id, (picture, title) in stamps().items():
        path = folder / "photos" / f"{id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if picture:
            shutil.copyfile(picture, path)
        else:
            draw(id, path)
        products.append({"sku": id, "name": title, "photo": f"photos/{id}.png", "department": id.split("/")[0]})
        boards[id.rpartition("/")[0]].append(id)
        searches += [{"term": word.strip(",.").lower(), "clicked": id} for word in title.split() if len(word) > 3]
    for name, rows in {"products.csv": products, "searches.csv": searches}.items():
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    lines = [json.dumps({"id": name, "title": name.rpartition("/")[2], "items": items}) for name, items in boards.items() if len(items) > 1]
    (folder / "collections.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tiny_base(folder: Path) -> str:
    """A random language model with room for a conversation in bytes."""
    from toy_model import tiny_lm, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_lm(len(tokenizer) + 5, context=8192).save_pretrained(folder)
    return str(folder)


def headers() -> list[str]:
    """The first line of each CSV that the page shows."""
    return re.findall(r"```csv\n(.*)", QUICKSTART)


def make(folder: Path) -> None:
    """The page's commands up to ``build``, in ``folder``. A machine that is busy takes a minute."""
    from pinhole.cli import run

    write_files(folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        for command in COMMANDS[: next(i for i, one in enumerate(COMMANDS) if one[0] == "serve")]:
            if command[0] == "build":
                Workspace.open("shop").change({**TINY, "graft.base": tiny_base(folder / "base")})
            assert run(command) == 0, command
    finally:
        os.chdir(before)


def built_shop(tmp_path_factory: Any) -> Path:
    """The folder that holds ``shop``; whichever test process comes first makes it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "built"
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            make(folder)
            (folder / "done").touch()
    return Path(folder)


@contextlib.contextmanager
def inside(folder: Path) -> Any:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
