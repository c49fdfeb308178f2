from pinhole.catalogue import titles


def cleaned(title, id="folder/some_file_01", maker="Ann Bee"):
    return titles.informative({id: title}, {id: maker})[id]


def test_the_stated_rules_for_titles():
    assert cleaned("Bull") == "Bull"
    assert cleaned("Dog 06 Drawn With Straight Lines") == "Dog 06 Drawn With Straight Lines"
    assert cleaned("Clipart by Ann Bee - nosmoke", "signs/nosmoke") == "nosmoke"  # rule 1
    assert cleaned("Clipart by Ann Bee - baloon1_04", "party/baloon2_05") == "baloon"
    assert cleaned("Clipart by Ann Bee - piggybank", "tools/lightsabers") == ""
    assert cleaned("old_red_chair 12") == "old red chair"  # rule 2
    assert cleaned("me (ann@example.com)") == "me"
    assert [cleaned(title) for title in ("", "17", "x1", "Untitled", "ICON", "ann bee", "Bee", "HASH(0x89c79d4)")] == [""] * 8  # rule 3
    many = {f"f/{k}": "Lemon SVG theme" for k in range(13)} | {f"g/{k}": "lightning" for k in range(12)}
    found = titles.informative(many, {})
    assert [id for id, title in found.items() if title] == [f"g/{k}" for k in range(12)]  # rule 4


def test_file_names_as_titles():
    names = {"black cat_01": "black cat", "red-chair": "red chair", "IMG_2041": "", "DSC00012": "", "9f8e7d6c5b4a": "", "12": "", "Screenshot": ""}
    assert {name: titles.of_file(name) for name in names} == names


def test_people_and_descriptions():
    assert titles.person("Jean-Victor Balin (balin_j@epita.fr)") == "Jean-Victor Balin"
    assert titles.person("Jakob [chaos@example.com]") == "Jakob" and titles.person("fudriot@omic.ch") == "fudriot"
    assert titles.person("Gerald G.") == "Gerald G." and titles.person("HASH(0x89)") == ""
    assert titles.description("Bull.", "bull") == "" and titles.description("jean@gmail.com", "") == ""
    assert titles.description("A simple shield", "Shield") == "A simple shield"


def test_folder_boards():
    boards = titles.folder_boards({"a/music": ["1"], "b/music": ["2", "3"], "b": ["4"], "00_x-y": ["5"]})
    assert [(board["id"], board["title"]) for board in boards] == [
        ("folder/00_x-y", "x y"),
        ("folder/a/music", "a music"),
        ("folder/b", "b"),
        ("folder/b/music", "b music"),
    ]
    assert [board["id"] for board in titles.folder_boards({"a": ["1"], "b": ["1", "2"]}, 2)] == ["folder/b"]
