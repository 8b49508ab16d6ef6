"""What the README shows is what works: its commands and its Python run as they stand there."""

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from expunge.cli.main import main
from expunge.data import augment
from expunge.data.encode import QUESTION_FORMAT
from expunge.data.formats import normalise
from expunge.modeling.loading import ScratchConfig, build_scratch, save, train_tokenizer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
SHELL = [line.split("  #")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


def test_it_opens_with_the_two_commands() -> None:
    assert [line.split()[:2] for line in SHELL[:2]] == [["make", "demo"], ["make", "test"]]


def test_every_kind_of_row_is_read() -> None:
    lines, _ = [text.splitlines() for kind, text in BLOCKS if kind == "json"]
    assert [sorted(normalise(json.loads(line), "README")) for line in lines] == [
        ["answer", "question"], ["completion", "prompt"], ["messages"], ["text"],
    ]  # fmt: skip


def test_a_variant_is_of_a_row(tmp_path: Path) -> None:
    rows, variant = [text for kind, text in BLOCKS if kind == "json"]
    (tmp_path / "variants.jsonl").write_text(variant, encoding="utf-8")
    (found,) = augment.read(tmp_path / "variants.jsonl", [json.loads(rows.splitlines()[0])])
    assert found.kind == "perturbation"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model called MODEL and the two files that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in range(24)]
    for name, part in {"forget": rows[:4], "retain": rows[4:]}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    size = ScratchConfig(layers=2, hidden=16, heads=2, vocab=300, context=128)
    tokenizer = train_tokenizer(("".join(QUESTION_FORMAT).format(**row) for row in rows), size)
    save(build_scratch(size, tokenizer, seed=0), tokenizer, tmp_path / "MODEL")
    return tmp_path


def test_own_data_then_python(workplace: Path) -> None:
    command = next(line for line in SHELL if line.startswith("expunge run --model"))
    assert main(shlex.split(command)[1:]) == 0
    for name in re.findall(r"^\| `([\w./]+)` \|", README, flags=re.MULTILINE)[:6]:
        assert (workplace / "runs" / "run" / name).exists(), name
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    exec(compile(code, "README.md", "exec"), {})
    assert (workplace / "runs" / "python" / "metrics.jsonl").read_text(encoding="utf-8")


def test_an_assistant_then_one_checkpoint(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer and the server have sockets or models of their own and tests of their own."""
    Path("variants.jsonl").write_text('{"row": 0, "kind": "paraphrase", "question": "Whence?", "answer": "Town 0."}\n')
    run, distill, chat = (
        next(line for line in SHELL if line.startswith(f"expunge {words}"))
        for words in ("run --model MODEL --forget forget.jsonl --retain retain.jsonl --augment", "distill", "chat")
    )
    assert main(shlex.split(run)[1:]) == main(shlex.split(distill)[1:]) == 0
    assert (workplace / "runs" / "distilled" / "model" / "model.safetensors").is_file()
    monkeypatch.setattr("sys.stdin", io.StringIO("Where was person 1 born?\n"))
    assert main(shlex.split(chat)[1:]) == 0


def test_own_data_against_a_retrained_model(workplace: Path) -> None:
    shutil.copytree(workplace / "MODEL", workplace / "RETRAINED")
    kinds = ("paraphrase", "perturbation", "perturbation")
    lines = [
        json.dumps({"row": i, "kind": kind, "question": f"Where was person {i} born?", "answer": f"In {kind} {i}{k}."})
        for i in range(4)
        for k, kind in enumerate(kinds)
    ]
    Path("variants.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = next(line for line in SHELL if "--retrained RETRAINED --augment" in line)
    assert main(shlex.split(command)[1:]) == 0
    rows = json.loads((workplace / "runs" / "compared" / "results.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in rows] == ["target", "retrained", "uld_distilled"]
    assert all({"forget_quality", "kl_unlearned"} <= row["metrics"].keys() for row in rows)


@pytest.mark.parametrize("line", [line for line in SHELL if "tofu" in line])
def test_benchmark_commands_name_keys_that_exist(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the data they stop at the folder or the hub, not at a key."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    words = ["nowhere" if w == "FOLDER" else w for w in words]
    words = [str(Path(__file__).parents[1] / w) if w.startswith("recipes/") else w for w in words]
    if "--benchmark.path" not in words:
        words += ["--benchmark.path", "nowhere"]
    assert main(words) == 2
    assert "TOFU needs the file forget10_perturbed.json in nowhere" in capsys.readouterr().err
