"""Folders are whole or say which file is not; several files are written at once or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.system import disk, manifest

Damage = Callable[[Path], None]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    for i in range(middle, min(middle + 64, len(data))):
        data[i] ^= 0xFF
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


DAMAGES: dict[str, Damage] = {"flipped": flip, "cut": cut, "longer": lengthen, "missing": Path.unlink}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder with files inside a folder inside."""
    top = tmp_path / "top"
    manifest.begin(top)
    assert manifest.is_begun(top) and not manifest.is_sealed(top)
    for name in ("a.bin", "deep/er/b.bin", "deep/empty"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(name.encode() * (0 if name.endswith("empty") else 99))
    manifest.seal(top)
    return top


def test_a_sealed_folder_is_whole(folder: Path) -> None:
    assert manifest.damage(folder) is None and manifest.is_sealed(folder) and not manifest.is_begun(folder)
    assert set(manifest.read(folder) or {}) == {"a.bin", "deep/er/b.bin", "deep/empty"}


@pytest.mark.parametrize("again", [False, True])
def test_a_stop_inside_begin_or_discard_leaves_a_folder_that_was_begun(
    folder: Path, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each change of a file in turn: the folder is whole, begun or gone, never something else."""
    if not again:
        shutil.rmtree(folder)

    def change(stop: int) -> None:
        left = iter(range(stop))

        def stopping(call: Callable[..., None]) -> Callable[..., None]:
            def wrapped(*args: object, **kwargs: object) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return call(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch:
            for name in ("mkdir", "unlink", "rmdir", "open"):
                patch.setattr(os, name, stopping(getattr(os, name)))
            manifest.begin(folder)
            manifest.discard(folder)

    stop = 0
    for stop in range(200):
        try:
            change(stop)
        except KeyboardInterrupt:
            assert not folder.exists() or manifest.is_begun(folder) or manifest.damage(folder) is None, stop
        else:
            break
    assert stop > 3 and not folder.exists()


@pytest.mark.parametrize("name", ["a.bin", "deep/er/b.bin"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_is_found_and_named(folder: Path, name: str, kind: str) -> None:
    DAMAGES[kind](folder / name)
    said = manifest.damage(folder)
    assert said and str(folder / name) in said and "\n" not in said


def test_what_was_added_is_named_unless_it_may_be_there(folder: Path) -> None:
    (folder / "deep" / "new").touch()
    assert "deep/new was not there" in (manifest.damage(folder) or "")
    assert manifest.damage(folder, extra=False) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"a": {}}}', '{"files": {"a": 1}}', "[" * 9999]
)
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / manifest.NAME).write_text(text)
    assert manifest.damage(folder) == f"{folder / manifest.NAME} is damaged"
    (folder / manifest.NAME).unlink()
    assert "has no manifest.json" in (manifest.damage(folder) or "")


@settings(max_examples=60, deadline=None)
@given(data=st.binary(min_size=1, max_size=200), where=st.integers(0, 199), bit=st.integers(0, 7))
def test_one_bit_is_enough(tmp_path_factory: pytest.TempPathFactory, data: bytes, where: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("bits")
    (folder / "x").write_bytes(data)
    manifest.seal(folder)
    assert manifest.damage(folder) is None
    other = bytearray(data)
    other[where % len(data)] ^= 1 << bit
    (folder / "x").write_bytes(other)
    assert manifest.damage(folder)


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("operation", range(20))
def test_a_commit_that_is_killed_anywhere_is_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: int
) -> None:
    """Killed before its n-th file operation; the last numbers are past the end, where nothing is killed."""
    (tmp_path / "log").write_text("log")
    manifest.commit(tmp_path, {"records/a": "old", "results": "old"}, also=["log"])
    count = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count > operation:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("write_text", "replace"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(manifest, "flush", counted(disk.flush))
        with suppress(Killed):
            manifest.commit(tmp_path, {"records/a": "new", "results": "new", "records/b": "new"}, also=["log"])
    manifest.recover(tmp_path)
    listed = manifest.read(tmp_path) or {}
    assert manifest.damage_of(tmp_path, listed) is None
    texts = {name: (tmp_path / name).read_text() for name in listed if name != "log"}
    assert texts in (
        {"records/a": "old", "results": "old"},
        {"records/a": "new", "results": "new", "records/b": "new"},
    )
    assert not list(tmp_path.rglob("*.partial"))
    if operation == 19:
        assert "records/b" in texts


def test_what_another_umask_would_show_stays_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = os.umask(0)
    try:
        manifest.begin(tmp_path / "a" / "b")
        manifest.commit(tmp_path / "a" / "b", {"c/d": "text"})
        made = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
        assert {(p.is_dir(), p.stat().st_mode & 0o777) for p in made} == {(True, 0o700), (False, 0o600)}
        (tmp_path / "after").touch()
        assert (tmp_path / "after").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(usual)
    assert json.loads((tmp_path / "a" / "b" / manifest.NAME).read_text())["files"].keys() == {"c/d"}


def test_a_damaged_archive_is_not_called_a_full_disk(tmp_path: Path) -> None:
    for said in ("[enforce fail at inline_container.cc:237] . file is not in a subdirectory", "size mismatch"):
        with pytest.raises(RuntimeError, match=r"subdirectory|mismatch"), disk.writing(tmp_path):
            raise RuntimeError(said)
    full = pytest.raises(disk.DiskError, match="No space left on device; make room, then go on")
    for said in ("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598", "I/O error (os error 28)"):
        with full, disk.writing(tmp_path, "go on"):
            raise RuntimeError(said)
