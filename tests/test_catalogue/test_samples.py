"""The three samples on tiny packages of the same shape, fetched through stand-ins for the package clients."""

import json
import os
import stat
import tarfile

import pytest
from PIL import Image

from pinhole.catalogue import clipart, records, stamps
from pinhole.catalogue.samples import SAMPLES, fetch_sample, load_sample
from pinhole.catalogue.store import Catalogue
from pinhole.errors import DownloadError, MissingDependency, UnknownName

SVG = """<?xml version="1.0"?>
<!DOCTYPE svg [<!ENTITY ns "http://example.com/"> <!ENTITY lol "lollollol">]>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="r" xmlns:cc="c" xmlns:dc="d" width="20pt" height="20pt"><metadata><rdf:RDF><cc:Work rdf:about="">
<dc:title>{title}</dc:title><dc:description>{description}</dc:description><dc:date>{date}</dc:date>
<dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
<dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
<dc:creator><cc:Agent><dc:title>{creator}</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/></cc:Work></rdf:RDF></metadata>
<rect width="9" height="9" fill="red"/></svg>"""


def svg(title="", keywords=(), creator="", description="", date=""):
    listed = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return SVG.format(title=title, description=description, date=date, creator=creator, keywords=listed)


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


@pytest.fixture
def openclipart(tmp_path):
    """Drawings: a duplicate under ``unsorted``, a series, a maker in two spellings."""
    root = tmp_path / "oc"

    def add(id, colour, **words):
        picture(root / f"usr/share/openclipart/png/{id}.png", colour)
        file = root / f"usr/share/openclipart/svg/{id}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(svg(**words), encoding="utf-8")

    add(
        "animals/bull_01",
        (1, 0, 0),
        title="Bull",
        keywords=["mammal", "", "hash", "clip_art", "Ann Bee", "Black_and_White", "11"],
        creator="Ann Bee",
        date="2005/05/30",
    )
    add("animals/cow_01", (2, 0, 0), title="untitled", keywords=["mammal"], creator="ann bee")
    add("animals/dog_01", (3, 0, 0), title="Dog &amp;amp; cat", keywords=["mammal", "&lol;"], creator="Ann Bee (ann@example.com)", description="Dog")
    add("unsorted/bull_copy", (1, 0, 0), title="copy", keywords=["horned"], creator="Somebody")
    add("unsorted/only", (4, 0, 0), title="Only here")
    for k in range(110):
        add(f"shapes/star_{k}pt", (5, k, 0), title="star", keywords=["shape"], creator="Maker")
    return root


def test_openclipart_tables(openclipart):
    tables = clipart.read(openclipart)
    items = {row["id"]: row for row in tables["items"].to_pylist()}
    assert len(items) == 4 + clipart.SERIES_KEPT and "unsorted/bull_copy" not in items
    about = json.loads(items["animals/bull_01"]["attributes"])
    assert about == {
        "category": "animals",
        "folder": "animals",
        "keywords": ["mammal", "black and white", "horned"],
        "creator": "Ann Bee",
        "licence": "public domain",
        "attribution": "Ann Bee, Open Clip Art Library, public domain",
        "source": "openclipart",
    }
    assert items["animals/bull_01"]["created_at"].isoformat() == "2005-05-30T00:00:00+00:00"
    assert [items[f"animals/{name}_01"]["title"] for name in ("bull", "cow", "dog")] == ["Bull", "", "Dog & cat"]
    assert "category" not in json.loads(items["unsorted/only"]["attributes"])
    boards = {row["id"]: row for row in tables["boards"].to_pylist()}
    assert set(boards) == {"folder/animals", "folder/shapes", "creator/ann-bee", "creator/maker"}
    assert (
        boards["creator/ann-bee"]["items"] == ["animals/bull_01", "animals/cow_01", "animals/dog_01"]
        and boards["creator/ann-bee"]["owner"] == "Ann Bee"
    )
    queries = {(row["text"], row["item"]) for row in tables["queries"].to_pylist()}
    assert ("horned", "animals/bull_01") in queries and not any("lol" in text for text, _ in queries)
    assert {row["user"] for row in tables["events"].to_pylist()} == {"Ann Bee", "Maker"}


def test_hostile_xml_gives_no_words_and_no_harm(tmp_path):
    bomb = "".join(f'<!ENTITY l{k + 1} "{f"&l{k};" * 10}">' for k in range(12))
    (tmp_path / "a.svg").write_text(
        f'<!DOCTYPE s [<!ENTITY l0 "lol">{bomb}<!ENTITY x SYSTEM "file:///etc/passwd">]><svg><metadata><cc:Work><dc:title>a&l12;b&x;</dc:title></cc:Work></metadata></svg>'
    )
    (tmp_path / "b.svg").write_text("<svg><metadata><cc:Work><dc:title>half")
    (tmp_path / "c.svg").write_bytes(b"\xff\xfe\x00 no XML")
    assert clipart.metadata(tmp_path / "a.svg").get("title") in ("ab", None)
    assert clipart.metadata(tmp_path / "b.svg") == {"title": "half"}
    assert clipart.metadata(tmp_path / "c.svg") == {} == clipart.metadata(tmp_path / "none.svg")


def test_captions_and_what_they_are_about(tmp_path):
    (tmp_path / "a.txt").write_text("A rake for sweeping leaves.\nde.utf8=Ein Rechen.\n", encoding="utf-8")
    assert stamps.caption(tmp_path / "a.txt") == "A rake for sweeping leaves" and stamps.caption(tmp_path / "none.txt") == ""
    assert stamps.heads("A rake for sweeping leaves") == ["rake"]
    assert stamps.heads("A colorful toy tow truck") == ["colorful toy tow truck", "truck"]
    assert stamps.heads("") == [] == stamps.heads("100")


# -- fetching ---------------------------------------------------------------------------------------


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """A PATH with stand-ins for apt-get, dpkg-deb and npm that hand out the files under ``packages``."""
    programs, packages = tmp_path / "bin", tmp_path / "packages"
    programs.mkdir()
    packages.mkdir()
    scripts = {
        "apt-get": """shift 2; echo "$@" >> "$PACKAGES/log"
            for p in "$@"; do cp "$PACKAGES/$p.deb" . || { echo "E: Unable to locate package $p" >&2; exit 100; }; done""",
        "dpkg-deb": 'tar -xf "$2" -C "$3"',
        "npm": 'cp "$PACKAGES"/*.tgz . || { echo "npm error 404" >&2; exit 1; }',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod((programs / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("PACKAGES", str(packages))
    return packages


def pack(folder, package):
    with tarfile.open(package, "w") as archive:
        archive.add(folder, arcname=".")


def test_a_sample_is_fetched_once_and_loaded_again_without_change(openclipart, clients, tmp_path):
    pack(openclipart, clients / "openclipart-png.deb")
    pack(openclipart, clients / "openclipart-svg.deb")
    catalogue = Catalogue(tmp_path / "shop" / "tables")
    first = load_sample(catalogue, "openclipart", tmp_path / "cache")
    assert first["items"] == records.Counts(added=44) and first["events"].rejected == 0
    again = load_sample(catalogue, "openclipart", tmp_path / "cache")
    assert again["items"] == records.Counts(unchanged=44) and (clients / "log").read_text().count("\n") == 1
    assert not (tmp_path / "cache/samples/openclipart.part").exists()
    assert catalogue.text_search("bull", 1)[0][0] == "animals/bull_01" and catalogue.image("animals/bull_01").startswith(b"\x89PNG")


def test_an_interrupted_fetch_goes_on(openclipart, clients, tmp_path):
    part = tmp_path / "cache/samples/openclipart.part"
    (part / "files" / "half").mkdir(parents=True)
    pack(openclipart, clients / "openclipart-png.deb")
    with pytest.raises(DownloadError, match="Unable to locate package openclipart-svg.*apt-get update"):
        fetch_sample("openclipart", tmp_path / "cache")
    assert not (tmp_path / "cache/samples/openclipart").exists()
    (clients / "openclipart-svg.deb").write_bytes(b"half a package")
    with pytest.raises(DownloadError, match="`dpkg-deb -x` failed"):
        fetch_sample("openclipart", tmp_path / "cache")
    pack(openclipart, clients / "openclipart-svg.deb")
    folder = fetch_sample("openclipart", tmp_path / "cache")
    assert sorted(os.listdir(folder)) == ["usr"]


def test_tuxpaint(clients, tmp_path):
    pytest.importorskip("resvg_py")
    root = tmp_path / "tux/usr/share/tuxpaint/stamps"
    for k, name in enumerate(("animals/birds/hen", "animals/birds/duck", "animals/birds/swan", "food/bread")):
        picture(root / f"{name}.png", (k, 9, 9))
        (root / f"{name}.txt").write_text(f"A brown {name.rsplit('/', 1)[-1]}.\nde.utf8=x\n")
    (root / "food/bread.svg").write_text(svg())
    (root / "food/cheese.svg").write_text(svg())
    (root / "food/cheese.ogg").write_text("a sound")
    pack(tmp_path / "tux", clients / "tuxpaint-stamps-default.deb")
    catalogue = Catalogue(tmp_path / "shop" / "tables")
    counts = load_sample(catalogue, "tuxpaint", tmp_path / "cache")
    assert counts["items"].added == 5 and counts["boards"].added == 1
    assert catalogue.item("food/bread")["image"].endswith("stamps/food/bread.png") and catalogue.item("food/cheese")["title"] == ""
    assert catalogue.image("food/cheese").startswith(b"\x89PNG")
    hen = catalogue.item("animals/birds/hen")
    assert hen["title"] == "A brown hen" and hen["attributes"]["keywords"] == ["animals", "birds", "brown hen", "hen"]
    assert hen["attributes"]["category"] == "animals" and "GPL-2" in hen["attributes"]["attribution"]
    assert not list((tmp_path / "cache").rglob("*.ogg"))
    assert load_sample(catalogue, "tuxpaint", tmp_path / "cache")["items"].unchanged == 5


def test_openmoji(clients, tmp_path):
    pytest.importorskip("resvg_py")
    package = tmp_path / "moji/package"
    (package / "color/svg").mkdir(parents=True)
    (package / "data").mkdir()
    entries = []
    for k, code in enumerate(["1F600", "1F601", "1F602", "1F602-1", "0031", "MISSING"]):
        entry = {
            "hexcode": code,
            "annotation": f"face {k}",
            "tags": "grin, happy",
            "openmoji_tags": "Smile",
            "group": "smileys",
            "subgroups": "face-smiling",
        }
        entries.append({**entry, "openmoji_author": "Ann Bee", "openmoji_date": "2018-04-18", "emoji": "x"})
        if code != "MISSING":
            (package / f"color/svg/{code}.svg").write_text(svg(title=str(min(k, 2)) if k < 4 else "broken"))
    (package / "color/svg/0031.svg").write_text("<svg")
    (package / "data/openmoji.json").write_text(json.dumps(entries))
    with tarfile.open(clients / "openmoji-17.0.0.tgz", "w:gz") as archive:
        archive.add(package, arcname="package")
    catalogue = Catalogue(tmp_path / "shop" / "tables")
    counts = load_sample(catalogue, "openmoji", tmp_path / "cache")
    assert {kind: count.added for kind, count in counts.items()} == {"items": 3, "boards": 1, "queries": 9, "events": 3}
    about = catalogue.item("1F600")
    assert about["title"] == "face 0" and about["attributes"]["attribution"] == "Ann Bee, OpenMoji, CC BY-SA 4.0"
    assert catalogue.events().to_pylist()[0]["time"].year == 2018
    assert catalogue.boards().to_pylist()[0]["title"] == "face smiling"


def test_a_package_cannot_write_outside_its_folder(clients, tmp_path):
    (tmp_path / "evil").write_text("x")
    with tarfile.open(clients / "openmoji-17.0.0.tgz", "w:gz") as archive:
        archive.add(tmp_path / "evil", arcname="../../outside")
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        fetch_sample("openmoji", tmp_path / "cache")
    assert not list(tmp_path.rglob("outside"))


def test_without_the_client_the_message_names_another_way(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, program in {"openclipart": "apt-get", "tuxpaint": "apt-get", "openmoji": "npm"}.items():
        with pytest.raises(MissingDependency, match=f"`{program}`.*hf:NAME"):
            fetch_sample(name, tmp_path / "cache")
    with pytest.raises(UnknownName, match=f"samples: {', '.join(SAMPLES)}"):
        fetch_sample("openclipar", tmp_path / "cache")
