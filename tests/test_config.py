"""Settings: written out whole, read back equal, refused with the key's name when wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pinhole import config
from pinhole.config import Config
from pinhole.errors import ConfigError


def test_commented_configuration_reads_back_equal(tmp_path: Path) -> None:
    changed = config.parse({"align": {"steps": 7, "nested": [8, 16]}, "graft": {"card": 'a "quoted" \\ card'}}, where="test")
    path = tmp_path / "pinhole.toml"
    for one in (Config(), changed):
        path.write_text(config.commented(one))
        assert config.load(path) == one


def test_every_setting_is_documented_and_written_out() -> None:
    written = tomllib.loads(config.commented())
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert set(written[name]) == set(section.model_fields), name  # type: ignore[union-attr]
        for key, setting in section.model_fields.items():  # type: ignore[union-attr]
            assert setting.description, f"[{name}] {key} has no description"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[align]\nsteps = 'many'\n", ["align.steps", "'many'", "pinhole.toml"]),
        ("[align]\nsteps = 0\n", ["align.steps", "greater than or equal to 1"]),
        ("[align]\nstep = 3\n", ["align.step", "known here", "steps"]),
        ("[aling]\nsteps = 3\n", ["unknown setting `aling`", "align"]),
        ("align = 3\n", ["align"]),
        ("[align\n", ["not valid TOML", "pinhole.toml"]),
        ("[graft]\ndtype = 'int4'\n", ["graft.dtype", "bfloat16"]),
    ],
)
def test_wrong_settings_name_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "pinhole.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "pinhole.toml").write_bytes(b"\xff\xfe[align]")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config.load(tmp_path / "pinhole.toml")


def test_a_changed_setting_keeps_comments_and_is_checked(tmp_path: Path) -> None:
    text = "# mine\n[graft]\n# why\nbase = 'old'  # here\n\n[align]\nsteps = 5\n"
    after = config.changed(text, {"graft.base": "hf:new", "evaluate.n": 20}, where="test")
    assert "# mine" in after and "# why" in after and "# here" in after
    path = tmp_path / "pinhole.toml"
    path.write_text(after)
    loaded = config.load(path)
    assert (loaded.graft.base, loaded.evaluate.n, loaded.align.steps) == ("hf:new", 20, 5)
    with pytest.raises(ConfigError, match=r"align\.steps"):
        config.changed(text, {"align.steps": -1}, where="test")
