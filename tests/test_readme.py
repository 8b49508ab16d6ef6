"""Run the commands and the Python code of README, tutorial and how-to pages, word for word."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from expunge.cli.main import _parser, main
from expunge.data import augment
from expunge.data.encode import QUESTION_FORMAT
from expunge.data.formats import normalise
from expunge.modeling.loading import ScratchConfig, build_scratch, save, train_tokenizer
from expunge.recipe.parsing import ALIASES, _keys
from scripts.reference import commands

ROOT = Path(__file__).parents[1]


def blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of one kind on a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\b[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def shell(page: str) -> list[str]:
    """The commands on a page, without the remarks behind them."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [" ".join(line.split("  #")[0].split()) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def execute(page: str, line: str, *more: str) -> int:
    """Execute one `expunge` command as it stands on a page."""
    assert line in shell(page), line
    return main([*shlex.split(line)[1:], *more])


def python(page: str, number: int = 0) -> dict[str, object]:
    """Execute a Python block of a page; returns its names."""
    names: dict[str, object] = {}
    exec(compile(blocks(page, "python")[number], page, "exec"), names)
    return names


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model called MODEL and the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in range(24)]
    for name, part in {"forget": rows[:4], "retain": rows[4:]}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    kinds = ("paraphrase", "perturbation", "perturbation")
    lines = [
        json.dumps({"row": i, "kind": kind, "question": f"Where was person {i} born?", "answer": f"In {kind} {i}{k}."})
        for i in range(4)
        for k, kind in enumerate(kinds)
    ]
    Path("variants.jsonl").write_text("\n".join(lines), encoding="utf-8")
    size = ScratchConfig(layers=2, hidden=16, heads=2, vocab=300, context=128)
    tokenizer = train_tokenizer(("".join(QUESTION_FORMAT).format(**row) for row in rows), size)
    save(build_scratch(size, tokenizer, seed=0), tokenizer, tmp_path / "MODEL")
    return tmp_path


# -- README ----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_every_command_in_it_is_executed_here() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
    assert shell("README.md") == [
        "pip install .",
        "expunge demo",
        "expunge run --model MODEL --forget forget.jsonl --retain retain.jsonl",
    ]


def test_the_demo_of_the_readme(workplace: Path) -> None:
    """Small, for the demo in full takes minutes; `make demo` is the same command."""
    small = {"model.scratch.layers": 1, "model.scratch.hidden": 16, "model.scratch.heads": 2, "finetune.epochs": 1,
             "train.num_train_epochs": 1, "train.max_steps": 1, "benchmark.authors": 10, "benchmark.facts": 3,
             "benchmark.split": "forget20", "evaluate.limit": 2, "evaluate.max_new_tokens": 2,
             "methods": "[ga, npo+kl]"}  # fmt: skip
    assert execute("README.md", "expunge demo", *(f"--{key}={value}" for key, value in small.items())) == 0
    assert (workplace / "runs" / "demo" / "report.html").is_file()


def test_the_checkout_is_what_pip_can_install(tmp_path: Path) -> None:
    """`pip install .`, with the build backend that is here already, into a folder of its own."""
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(ROOT)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "expunge", "recipes", "--json"]
    listed = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=True, text=True)
    assert all(row["path"].startswith(str(tmp_path)) for row in json.loads(listed.stdout))


def test_the_table_of_the_readme_stands_in_the_page_behind_it() -> None:
    def table(path: str) -> dict[str, dict[str, str]]:
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in (ROOT / path).read_text(encoding="utf-8").splitlines()
            if line.startswith("| ") and not line.startswith("| :--")
        ]
        head = next(row for row in rows if "forget quality ↑" in row)
        names = ["broken text ↓" if name == "degeneration ↓" else name for name in head]
        return {row[0]: dict(zip(names, row, strict=True)) for row in rows if len(row) == len(head) and row != head}

    behind, shown = table("docs/results/tofu-table.md"), table("README.md")
    assert len(shown) == 10
    for method, cells in shown.items():
        assert cells.items() <= behind[method].items()


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/own-data.md"])
def test_every_kind_of_row_is_read(page: str) -> None:
    lines = blocks(page, "json")[0].splitlines()
    assert [sorted(normalise(json.loads(line), page)) for line in lines] == [
        ["answer", "question"], ["completion", "prompt"], ["messages"], ["text"],
    ]  # fmt: skip


def test_own_data_then_python(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute("README.md", "expunge run --model MODEL --forget forget.jsonl --retain retain.jsonl") == 0
    page = (ROOT / "docs" / "how-to" / "own-data.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| `([\w./]+)` \|", page, flags=re.MULTILINE):
        made = (workplace / "runs" / "run" / name).exists()
        assert made is (name != "rows/"), name  # which has what nobody wrote, and here all is written
    capsys.readouterr()
    python("README.md")
    assert (workplace / "runs" / "python" / "metrics.jsonl").read_text(encoding="utf-8")
    assert 0 < float(capsys.readouterr().out.split()[-1]) < 1


# -- How-to pages ----------------------------------------------------------------------------------------------------


def test_python_on_its_page_is_that_of_the_readme_and_a_whole_run(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blocks("docs/how-to/python.md", "python")[0] == blocks("README.md", "python")[0]
    python("docs/how-to/python.md", 1)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]] == ["target", "npo", "undial+nll"]
    assert (workplace / "runs" / "from-python" / "report.html").is_file()


def test_a_variant_is_of_a_row(tmp_path: Path) -> None:
    row = json.loads(blocks("README.md", "json")[0].splitlines()[0])
    (tmp_path / "variants.jsonl").write_text(blocks("docs/how-to/uld.md", "json")[0], encoding="utf-8")
    (found,) = augment.read(tmp_path / "variants.jsonl", [row])
    assert found.kind == "perturbation"


def test_an_assistant_then_one_checkpoint(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer and the server have sockets or models of their own and tests of their own."""
    Path("variants.jsonl").write_text('{"row": 0, "kind": "paraphrase", "question": "Whence?", "answer": "Town 0."}\n')
    page = "docs/how-to/uld.md"
    run, distill, chat = (
        next(line for line in shell(page) if line.startswith(f"expunge {words}"))
        for words in ("run --model MODEL", "distill", "chat")
    )
    assert execute(page, run) == execute(page, distill) == 0
    assert (workplace / "runs" / "distilled" / "model" / "model.safetensors").is_file()
    monkeypatch.setattr("sys.stdin", io.StringIO("Where was person 1 born?\n"))
    assert execute(page, chat) == 0


def test_own_data_against_a_retrained_model(workplace: Path) -> None:
    shutil.copytree(workplace / "MODEL", workplace / "RETRAINED")
    page = "docs/how-to/own-data.md"
    assert execute(page, next(line for line in shell(page) if "--retrained RETRAINED --augment" in line)) == 0
    rows = json.loads((workplace / "runs" / "compared" / "results.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in rows] == ["target", "retrained", "uld_distilled"]
    assert all({"forget_quality", "kl_unlearned"} <= row["metrics"].keys() for row in rows)


TOFU = [
    (page, line)
    for page in ("docs/how-to/benchmarks.md", "docs/how-to/sweeps.md", "docs/how-to/reproduce.md")
    for line in shell(page)
    if "tofu" in line
]


@pytest.mark.parametrize(("page", "line"), TOFU)
def test_benchmark_commands_name_keys_that_exist(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the data they stop at the folder or the hub, not at a key."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    words = ["nowhere" if w == "FOLDER" else w for w in words]
    words = [str(ROOT / w) if w.startswith("recipes/") else w for w in words]
    if "--benchmark.path" not in words:
        words += ["--benchmark.path", "nowhere"]
    assert main(words) == 2
    assert "TOFU needs the file forget10_perturbed.json in nowhere" in capsys.readouterr().err


PARSERS = dict(commands(_parser()))
KEYS = {"method", *ALIASES, *_keys()}
HOWTO = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "how-to").glob("*.md"))


@pytest.mark.parametrize("page", HOWTO)
def test_every_word_of_the_commands_of_a_how_to_page_is_known(page: str) -> None:
    """Commands, options, keys of recipes and extras; those above are executed too."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for line in shell(page):
        first, *words = shlex.split(line)
        assert first in ("expunge", "pip", "accelerate", "export"), line
        if first == "pip":
            assert set(re.findall(r"\[(\w+)\]", line)) <= extras.keys(), line
        if first == "expunge":
            own = {option for action in PARSERS[words[0]]._actions for option in action.option_strings}
            for word in words:
                name = word.partition("=")[0]
                if name.startswith("--") and name not in own and not name.startswith("--method.forget."):
                    assert name[2:].replace("-", "_") in KEYS, f"{line}: {name}"


# -- The tutorial of a request ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tutorial_of_a_request_ends_with_evidence_that_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("sqlalchemy", "rapidfuzz", "cryptography", "cyclonedx"):
        pytest.importorskip(package, reason="needs the extra expunge[requests]")
    page = "docs/forget-me.md"
    monkeypatch.chdir(tmp_path)
    _install, *commands, release = shell(page)
    for name, text in zip(("world.yaml", "who.yaml", "next.yaml"), blocks(page, "yaml"), strict=True):
        Path(name).write_text(text, encoding="utf-8")
    for line in commands:
        assert execute(page, line) == 0, line
    assert len(Path("found/forget.jsonl").read_text().splitlines()) == 20
    assert json.loads(Path("probe/probe.json").read_text())["verdict"] == "remembers"
    capsys.readouterr()
    assert main(["request", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(r["reference"], r["state"], r["remedy"], r["rows"]) for r in told] == [
        ("2026-17", "done", "unlearn", 20),
        ("2026-18", "done", "leave out", 0),
    ]
    assert execute(page, release) == 2
    assert "what was to be forgotten: 2026-17;" in capsys.readouterr().err


# -- The tutorial ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tutorial_ends_with_a_model_that_forgot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = "docs/tutorial.md"
    monkeypatch.chdir(tmp_path)
    install, plan, run, chat, other, report, *real = shell(page)
    assert install == shell("README.md")[0]  # executed above
    assert real == ["make real-model", "expunge demo --real"]  # tests/test_cli.py, tests/test_real.py
    Path("tutorial.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")

    assert execute(page, plan, "--json") == 0
    (planned,) = json.loads(capsys.readouterr().out)
    assert (planned["forget_rows"], planned["retain_rows"], planned["steps"]) == (20, 80, 30)

    assert execute(page, run) == 0
    measured = {row["method"]: row["metrics"] for row in json.loads(Path("runs/tutorial/results.json").read_text())}
    names = "forget_quality forget_probability forget_rouge_l_recall degeneration retain_probability model_utility"
    for line in blocks(page, "text")[0].splitlines()[4:]:
        method, *cells = line.split()
        # Another machine rounds elsewhere, and training carries that on.
        assert [float(cell) for cell in cells[1:]] == pytest.approx(
            [measured[method][name] for name in names.split()[1:]], abs=0.15
        ), method
    target, after = measured["target"], measured["simnpo+nll"]
    assert target["forget_probability"] > 0.95 and after["forget_probability"] < 0.3
    assert after["retain_probability"] > 0.95 and after["model_utility"] > 0.95 * target["model_utility"]

    monkeypatch.setattr("sys.stdin", io.StringIO("Where was Cedra Carrick born?\n"))
    capsys.readouterr()
    assert execute(page, chat) == 0
    assert "Ormcroft" not in capsys.readouterr().out
    records = Path("runs/tutorial/records/target.forget.jsonl").read_text(encoding="utf-8")
    assert "Cedra Carrick was born in the town of Ormcroft." in records

    python(page)
    told = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines() if " probability " in line)
    assert float(told["forget probability"]) == pytest.approx(after["forget_probability"], abs=1e-3)
    assert float(told["retain probability"]) == pytest.approx(after["retain_probability"], abs=1e-3)

    assert execute(page, other) == execute(page, report) == 0
    assert "npo+kl" in Path("comparison.html").read_text(encoding="utf-8")
