"""What the starting model says is kept on disk once, whole or not at all, and is the same as in memory."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import UserError, objectives
from expunge.data.encode import Encoded
from expunge.data.pairs import Role, Sets
from expunge.modeling.agreement import ways_of
from expunge.modeling.loading import LoraConfig
from expunge.objectives import Needs
from expunge.training import refcache
from expunge.training.reference import CachedReference, build_reference

forked = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
NUMBERS = torch.arange(40.0).reshape(10, 4)
SHAPES: dict[str, refcache.TableShape] = {"numbers": ((10, 4), torch.float32)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


def fill(write: refcache.Write) -> None:
    for first in (5, 0):
        write("numbers", first, NUMBERS[first : first + 5])


def sets(seed: int = 0) -> Sets:
    generator = torch.Generator().manual_seed(seed)
    rows = [Encoded(tuple(torch.randint(5, 200, (9 + i,), generator=generator).tolist()), 4) for i in range(8)]
    return Sets(forget=rows[:4], retain=rows[4:])


def reference(model: Any, of: Sets | None = None) -> CachedReference:
    """Log-probabilities of forget rows, hidden states of all."""
    both = objectives.NPO().needs | objectives.UnDIAL().needs
    needs = {Role.FORGET: both, Role.REFUSAL: Needs(), Role.RETAIN: objectives.KL().needs}
    found = build_reference(model, needs, of or sets(), pad_token_id=0, kind="cached_hidden", batch_size=3)
    assert isinstance(found, CachedReference)
    return found


def in_memory(_key: str, shapes: Mapping[str, refcache.TableShape], fill: Callable[[refcache.Write], None]) -> Any:
    tables = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}

    def write(name: str, first: int, rows: torch.Tensor) -> None:
        tables[name][first : first + len(rows)] = rows

    fill(write)
    return tables


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_is_as_in_memory(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = tiny_model().to(dtype)
    written, found = reference(model).rows, reference(model).rows
    monkeypatch.setattr(refcache, "cached_tables", in_memory)
    plain = reference(model).rows
    assert len(plain) == 8 and [name for name, _ in plain[Role.FORGET, 0].parts()] == ["logp_N", "hidden_ND"]
    for row, signals in plain.items():
        for kept in (written, found):
            assert len(kept[row].parts()) == len(signals.parts())
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(kept[row].parts(), signals.parts(), strict=True))


def test_another_model_or_other_rows_are_never_taken_for_these(tiny_model: Callable[..., Any], cache: Path) -> None:
    def folders() -> int:
        return sum(path.is_dir() for path in cache.iterdir())

    reference(tiny_model())
    reference(tiny_model())
    assert folders() == 1
    model = tiny_model()
    with torch.no_grad():  # the least change, of a token that no row has
        model.get_input_embeddings().weight[-1, 0] *= 1 + torch.finfo(torch.float32).eps
    reference(model)
    assert folders() == 2
    model = tiny_model()
    model.model.layers[1].self_attn.scaling *= 2  # no weight
    reference(model)
    assert folders() == 3
    reference(tiny_model(), sets(seed=1))
    assert folders() == 4


def test_what_is_kept_is_not_asked_again(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    ways_of(model)  # measured once for a model, whatever is kept
    asked: list[int] = []
    model.register_forward_pre_hook(lambda _m, _a, given: asked.append(len(given["input_ids"])), with_kwargs=True)
    reference(model)
    assert sum(asked) == 8
    reference(model)
    assert sum(asked) == 8 + 6  # three rows of each role, which tell the model


def test_an_adapters_strength_tells_models_apart(tiny_model: Callable[..., Any], cache: Path) -> None:
    from peft import get_peft_model

    for alpha in (2, 4):
        torch.manual_seed(0)
        model: Any = get_peft_model(tiny_model(), LoraConfig(r=2, alpha=alpha).peft())
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p)
        reference(model)
    assert sum(path.is_dir() for path in cache.iterdir()) == 2


@forked
def test_two_processes_at_once_write_once_and_both_have_it(tmp_path: Path) -> None:
    def slowly(write: refcache.Write) -> None:
        with (tmp_path / "wrote").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        fill(write)

    def other() -> None:
        os._exit(0 if torch.equal(refcache.cached_tables("both", SHAPES, slowly)["numbers"], NUMBERS) else 1)

    process = get_context("fork").Process(target=other)
    process.start()
    assert torch.equal(refcache.cached_tables("both", SHAPES, slowly)["numbers"], NUMBERS)
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "wrote").read_text() == "x"


@forked
def test_what_a_killed_writer_leaves_is_not_taken_for_whole(cache: Path) -> None:
    def killed(write: refcache.Write) -> None:
        write("numbers", 5, torch.full((5, 4), 7.0))  # all that there will be of it has its full length already
        os.kill(os.getpid(), signal.SIGKILL)

    process = get_context("fork").Process(target=refcache.cached_tables, args=("killed", SHAPES, killed))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (cache / "killed.partial" / "numbers").stat().st_size == 160
    assert torch.equal(refcache.cached_tables("killed", SHAPES, fill)["numbers"], NUMBERS)
    assert sorted(path.name for path in cache.iterdir()) == ["killed", "killed.lock"]


def _flip(table: Path) -> None:
    data = bytearray(table.read_bytes())
    data[64:128] = bytes(b ^ 0xFF for b in data[64:128])
    table.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "64 bytes flipped": _flip,
    "cut": lambda table: os.truncate(table, 100),
    "longer": lambda table: os.truncate(table, 200),
    "missing": Path.unlink,
    "a file added": lambda table: table.with_name("other").touch(),
    "no manifest": lambda table: table.with_name("manifest.json").unlink(),
    "a damaged manifest": lambda table: table.with_name("manifest.json").write_text("{"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_table_is_computed_again(cache: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    asked: list[int] = []

    def counted(write: refcache.Write) -> None:
        asked.append(1)
        fill(write)

    refcache.cached_tables("key", SHAPES, counted)
    refcache.cached_tables("key", SHAPES, counted)
    assert len(asked) == 1
    DAMAGES[kind](cache / "key" / "numbers")
    caplog.set_level("WARNING", logger="expunge")
    assert torch.equal(refcache.cached_tables("key", SHAPES, counted)["numbers"], NUMBERS)
    assert len(asked) == 2 and str(cache / "key") in caplog.text and "it is computed again" in caplog.text
    refcache.cached_tables("key", SHAPES, counted)
    assert len(asked) == 2


def test_writing_to_what_is_mapped_changes_no_file() -> None:
    refcache.cached_tables("safe", SHAPES, fill)["numbers"].zero_()
    assert torch.equal(refcache.cached_tables("safe", SHAPES, fill)["numbers"], NUMBERS)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_it_is_not_read_whole() -> None:
    shape = (4096, 4096)  # 64 MiB

    def large(write: refcache.Write) -> None:
        for first in range(0, 4096, 256):
            write("large", first, torch.full((256, 4096), float(first)))

    def held() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    refcache.cached_tables("large", {"large": (shape, torch.float32)}, large)
    before = held()
    table = refcache.cached_tables("large", {"large": (shape, torch.float32)}, large)["large"]
    assert table[300].unique().item() == 256
    assert held() - before < 16


def test_the_longest_unused_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refcache, "KEEP_BYTES", 350)  # two tables of 160 bytes
    old = refcache.cached_tables("old", SHAPES, fill)["numbers"]
    refcache.cached_tables("older", SHAPES, fill)
    for name, age in (("old", 10), ("older", 20)):
        then = time.time() - age
        os.utime(cache / name, (then, then))
    refcache.cached_tables("old", SHAPES, fill)  # used again
    then = time.time() - 5
    os.utime(cache / "old", (then, then))
    refcache.cached_tables("new", SHAPES, fill)
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == ["new", "old"]
    refcache.cached_tables("newer", SHAPES, fill)
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == ["new", "newer"]
    assert torch.equal(old, NUMBERS)  # who has it keeps it


def test_no_room_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="EXPUNGE_CACHE"):
        refcache.cached_tables("nowhere", SHAPES, fill)
