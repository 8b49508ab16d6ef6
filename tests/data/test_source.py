"""A data set's files come from the folder that a person names, or else from the hub."""

from pathlib import Path

import pytest

from expunge.data.source import Source
from expunge.errors import UserError


def source(path: Path | None) -> Source:
    return Source.at(path, title="WORLD", hub_id="some/world", remedy="download it")


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.json").write_text('[{"text": "One."}]', encoding="utf-8")
    found = source(tmp_path).within("part")
    assert (found.has("a.json"), found.has("b.json")) == (True, False)
    assert found.locate("a.json", "config") == tmp_path / "part" / "a.json"
    assert [cells for _, cells in found.read("a.json", "config", split="test")] == [{"text": "One."}]
    with pytest.raises(
        UserError, match=r"WORLD needs the file b\.json in .*part, which does not have it; download it\."
    ):
        found.read("b.json")
    with pytest.raises(UserError, match=r"needs the file a\.json in .*nowhere, which does not exist; download it\."):
        found.within("nowhere").locate("a.json")


def test_the_hub_is_asked_for_a_configuration() -> None:
    found = source(None)
    assert found.within("part") == found and found.has("anything.json")
    assert found.locate("a.json", "config") == "some/world:config"
    assert found.locate("a.json") == found.place == "some/world"


def test_what_can_be_no_path_is_named_by_its_key() -> None:
    with pytest.raises(UserError, match=r"evaluate\.mmlu: .* can't be a path"):
        Source.at("a\0b", title="WORLD", hub_id="some/world", remedy="download it", key="evaluate.mmlu")
