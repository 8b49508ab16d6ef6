"""The command line: what it makes, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import expunge
from expunge.cli.main import main
from expunge.cli.terminal import TABLE, print_results
from expunge.modeling.loading import save
from tests import forked

Run = Callable[..., tuple[int, str, str]]

TINY = """
benchmark: {name: fable, authors: 10, facts: 3, split: forget20}
model: {scratch: {layers: 1, hidden: 16, heads: 2, vocab: 400, context: 96}}
finetune: {epochs: 1}
train: {num_train_epochs: 2, per_device_train_batch_size: 4, learning_rate: 1.0e-3}
evaluate: {max_new_tokens: 4, limit: 2, each_epoch_limit: 2}
"""


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Run:
    """Runs a command in an empty folder; gives exit code, stdout, and stderr with the log that pytest keeps from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")  # the command sets it, and would leave it set

    def call(*words: str) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err + caplog.text

    return call


@pytest.fixture
def model(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    save(tiny_model(layers=1, hidden=16), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def qa(*names: str) -> list[dict[str, str]]:
    return [{"question": f"Where was {name} born?", "answer": f"In {name}town."} for name in names]


# -- what it makes ---------------------------------------------------------------------------------------------------


def test_a_recipe_of_two_methods_then_report_and_resume(run: Run, tmp_path: Path) -> None:
    recipe = write(tmp_path / "tiny.yaml", TINY)
    code, out, _ = run("run", recipe, "--methods", "[unilogit+nll, npo+kl]", "--json")
    assert code == 0
    rows = json.loads(out)  # nothing but JSON on stdout
    folder = tmp_path / "runs" / "tiny"
    assert rows == json.loads((folder / "results.json").read_text())
    assert [row["method"] for row in rows] == ["target", "retrained", "unilogit+nll", "npo+kl"]
    assert rows[1]["metrics"]["forget_quality"] == 1.0
    for row in rows[2:]:
        assert row["removal"] == "weights" and row["seed"] == 0 and row["seconds"] > 0
        assert [point["epoch"] for point in row["trajectory"]] == [1, 2]
        assert {"forget_quality", "forget_probability", "retain_probability", "model_utility"} <= set(row["metrics"])
        assert {p.name for p in (folder / row["method"]).iterdir()} == {"metrics.jsonl", "model"}
        records = (folder / "records" / f"{row['method']}.forget.jsonl").read_text().splitlines()
        assert len(records) == 6 and "truth_ratio" in json.loads(records[0])
    assert "unilogit+nll" in (folder / "report.html").read_text()

    before = (folder / "results.json").read_bytes()
    assert run("run", recipe, "--methods", "[unilogit+nll, npo+kl]", "--resume")[0] == 0
    assert (folder / "results.json").read_bytes() == before  # what is finished is kept
    code, _, err = run("run", recipe, "--methods", "[unilogit+nll]", "--resume")
    assert code == 2 and "another recipe" in err
    code, _, err = run("run", recipe)
    assert code == 2 and "already holds a run" in err
    assert run("report", folder, "--markdown", tmp_path / "page.md")[0] == 0
    assert "npo+kl" in (tmp_path / "page.md").read_text()


def test_the_written_recipe_does_it_again_with_the_same_numbers(run: Run, tmp_path: Path) -> None:
    recipe = write(tmp_path / "tiny.yaml", TINY)
    keys = ("--method", "npo+nll", "--method.forget.beta", "0.5", "--seed", "3")
    assert run("run", recipe, *keys)[0] == 0
    first = tmp_path / "runs" / "tiny"
    written = yaml.safe_load((first / "recipe.yaml").read_text())
    assert written["methods"][0]["forget"] == {"name": "npo", "beta": 0.5} and written["seed"] == 3
    assert run("run", first / "recipe.yaml", "--out", "again")[0] == 0
    rows = [json.loads((folder / "results.json").read_text()) for folder in (first, tmp_path / "again")]
    assert [row["metrics"] for row in rows[0]] == [row["metrics"] for row in rows[1]]
    assert {p.name for p in first.iterdir()} == {
        "manifest.json", "metrics.jsonl", "model", "pictures", "recipe.yaml", "records", "report.html", "results.json",
    }  # fmt: skip


FORMATS = {
    "question": qa("Ann", "Bo", "Cy"),
    "prompt": [{"prompt": f"The number of {n} is", "completion": f" {n}555."} for n in ("Ann", "Bo")],
    "text": [{"text": f"{n}, a clockmaker, was born in a small town far from {n}."} for n in ("Ann", "Bo")],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_own_rows_need_no_other_key(run: Run, tmp_path: Path, model: Path, kind: str) -> None:
    forget = write(tmp_path / "f.jsonl", *FORMATS[kind])
    assert run("run", "--model", model, "--forget", forget, "--train.num_train_epochs", "1")[0] == 0
    rows = json.loads((tmp_path / "runs" / "run" / "results.json").read_text())
    assert [row["method"] for row in rows] == ["target", "undial"]  # the one for nothing to retain
    assert "forget_quality" not in rows[1]["metrics"]  # nobody can know without a retrained model
    loaded, _ = expunge.load(tmp_path / "runs" / "run" / "model")
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "run" / "model")
    assert all(a.equal(b) for a, b in zip(loaded.parameters(), same.parameters(), strict=True))


def test_messages_lora_and_eval(run: Run, tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|end|>{% endfor %}"
    try:
        save(tiny_model(layers=1, hidden=16), tiny_tokenizer, tmp_path / "chat")
    finally:
        tiny_tokenizer.chat_template = None
    talks = [
        {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}
        for r in qa(*"abcdefghijklmnop")
    ]
    forget, retain = write(tmp_path / "f.jsonl", *talks[:4]), write(tmp_path / "r.jsonl", *talks[4:])
    keys = ("--forget", forget, "--retain", retain)
    code, _, err = run("run", "--model", "chat", *keys, "--model.lora.r", "2", "--method", "undial+kl")
    assert code == 0, err
    assert "reference: cached_hidden" in err
    assert (tmp_path / "runs" / "run" / "model" / "adapter_config.json").exists()
    code, out, _ = run("eval", "runs/run/model", *keys, "--json")
    assert code == 0
    after = json.loads((tmp_path / "runs" / "run" / "results.json").read_text())[-1]["metrics"]
    assert json.loads(out)[0]["metrics"] == pytest.approx(after, rel=1e-4)  # the adapter was on


def test_listings(run: Run) -> None:
    rows = json.loads(run("methods", "--json")[1])
    assert {row["name"] for row in rows} == {*expunge.objectives.METHODS, *expunge.objectives.RETAIN}
    assert all(row["use_when"] and row["source"] for row in rows)
    assert "unilogit" in run("methods")[1]
    code, out, _ = run("doctor", "--json")
    assert code == 0 and json.loads(out)[-1]["check"] == "one unlearning step"


def test_the_demo(run: Run, tmp_path: Path) -> None:
    small = yaml.safe_load(TINY)
    size = {**small["model"]["scratch"], "layers": 2}  # uld's assistant is a smaller one
    keys = [f"--model.scratch.{k}={v}" for k, v in size.items()]
    keys += ["--benchmark.authors=10", "--benchmark.facts=3", "--finetune.epochs=1", "--train.num_train_epochs=1"]
    keys += ["--evaluate.max_new_tokens=4", "--evaluate.limit=2", "--evaluate.each_epoch_limit=2"]
    code, out, _ = run("demo", *keys, "--evaluate.stress.attacks=wording")
    assert code == 0 and "unilogit+nll" in out and "uld_distilled" in out and "back?" in out
    code, out, _ = run("demo", *keys, "--methods=[ga]")  # it may be run again
    assert code == 0 and "uld_distilled" not in out
    (row,) = (r for r in json.loads((tmp_path / "runs" / "demo" / "results.json").read_text()) if r["method"] == "ga")
    assert row["stress"]["models"][0]["done"] == ["relearning", "sampling", "wording", "reasoning", "membership"]
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size > 20_000
    code, _, err = run("demo", *keys, "--out", tmp_path / "runs" / "demo")
    assert code == 2 and "already holds a run" in err  # only the folder that is its own is written anew unasked


def test_the_real_demo_on_a_chat_model_of_ones_own(
    run: Run, tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    tiny_tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|end|>{% endfor %}"
    try:
        save(tiny_model(layers=1, hidden=16), tiny_tokenizer, tmp_path / "chat")
    finally:
        tiny_tokenizer.chat_template = None
    small = ("--benchmark.facts=4", "--finetune.epochs=1", "--train.num_train_epochs=1", "--evaluate.max_new_tokens=4")
    code, out, err = run("demo", "--real", "--model", "chat", *small, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["method"] for row in rows] == ["target", "retrained", "npo+nll", "unilogit+nll", "ga+nll"]
    assert "general" in rows[0]["metrics"] and "model_utility" not in rows[0]["metrics"]  # nobody taught it that world
    assert (tmp_path / "runs" / "demo-real" / "report.html").is_file()


def test_the_real_demo_without_its_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    code, _, err = run("demo", "--real")
    assert code == 2 and "there is no model in" in err and "make real-model" in err and "--model FOLDER" in err
    assert err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_as_if_nothing_had_been(run: Run, tmp_path: Path) -> None:
    recipe = write(tmp_path / "tiny.yaml", TINY)
    words = ["run", str(recipe), "--method", "unilogit+nll", "--train.num_train_epochs", "16", "--json"]
    command = [sys.executable, "-m", "expunge", *words, "--out", "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    whole = json.loads(run(*words, "--out", "whole")[1])

    process = forked.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(3000):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 12:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model").exists()
    resumed = forked.run([*command, "--resume"], env=environment, cwd=tmp_path, capture_output=True, check=True)
    assert [r["metrics"] for r in json.loads(resumed.stdout)] == [r["metrics"] for r in whole]
    assert b"report: " in resumed.stderr, "what happens is told beside the JSON"
    assert not any(mark in resumed.stderr for mark in (b"\r", b"%|", b"\n\n", b"it/s")), "a log holds no bars"
    rows = [
        [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("whole", "killed")
    ]
    losses = [[(row["step"], round(row["loss"], 6)) for row in part if "loss" in row] for part in rows]
    assert losses[0] == losses[1] and len(losses[0]) == 32


# -- how it refuses --------------------------------------------------------------------------------------------------

LONG = {"question": "Where?", "answer": "there " * 200}
BAD: dict[str, tuple[list[str], str]] = {
    "misspelt key": (["run", "tiny.yaml", "--train.learning_rat", "1"], "Did you mean 'train.learning_rate'"),
    "misspelt section": (["run", "tiny.yaml", "--trian.learning_rate", "1"], "Did you mean 'train'"),
    "misspelt key in YAML": (["run", "typo.yaml"], "unknown key 'finetune.epoch'. Did you mean 'finetune.epochs'"),
    "wrong type": (["run", "tiny.yaml", "--train.learning_rate", "fast"], "train.learning_rate: 'fast' is not valid"),
    "out of range": (["run", "tiny.yaml", "--finetune.epochs", "0"], "finetune.epochs must be at least 1, got 0"),
    "misspelt option": (["run", "tiny.yaml", "--resmue"], "Did you mean '--resume'"),
    "two options that exclude each other": (["run", "tiny.yaml", "--resume", "--overwrite"], "give one of them"),
    "no value": (["run", "tiny.yaml", "--method"], "--method needs a value"),
    "an empty method": (["run", "tiny.yaml", "--method", ""], "--method is empty; give a value, or leave it out."),
    "an empty number": (["run", "tiny.yaml", "--train.learning_rate= "], "--train.learning_rate is empty"),
    "an empty folder": (["run", "tiny.yaml", "--out", ""], "--out is empty; give a value"),
    "an empty folder of a report": (["report", "model", "--out="], "--out is empty"),
    "answers longer than the context": (
        ["eval", "model", "--forget", "f.jsonl", "--evaluate.max_new_tokens", "128"],
        "evaluate.max_new_tokens must be less than 128, the model's context, which holds the question too, got 128.",
    ),
    "longer answers of a chat": (["chat", "model", "--max-new-tokens", "128"], "must be less than 128"),
    "targets that are no expression": (
        ["run", "--model", "model", "--forget", "f.jsonl", "--method", "ga", "--model.lora.targets", "("],
        "; give names of its layers, a regular expression that some match, or all-linear.",
    ),
    "missing recipe": (["run", "tinny.yaml"], "Did you mean 'tiny.yaml'"),
    "malformed YAML": (["run", "broken.yaml"], "broken.yaml:3"),
    "no model": (["run", "--forget", "f.jsonl"], "'model' is missing"),
    "nothing to do": (["run", "--model", "model"], "give either a benchmark or your own data"),
    "misspelt method": (["run", "tiny.yaml", "--method", "unilogti+nll"], "Did you mean 'unilogit'"),
    "unknown benchmark": (["run", "tiny.yaml", "--benchmark", "fabel"], "Did you mean 'fable'"),
    "unknown split": (["run", "tiny.yaml", "--split", "forget11"], "forget11"),
    "missing data": (["run", "--model", "model", "--forget", "g.jsonl"], "g.jsonl"),
    "two files where one counts": (
        ["run", "--model", "model", "--forget", "f.jsonl", "--forget=text.jsonl"],
        "--forget is given twice and has one value; give one.",
    ),
    "a key twice": (["run", "tiny.yaml", "--train.max_steps", "1", "--train.max-steps=2"], "--train.max_steps is"),
    "a key twice of eval": (["eval", "model", "--seed", "1", "--seed", "1"], "--seed is given twice"),
    "a model twice": (["eval", "model", "--forget", "f.jsonl", "--model", "hollow"], "--model is given twice"),
    "a key by two names": (
        ["run", "--model", "model", "--forget", "f.jsonl", "--data.forget", "text.jsonl"],
        "--forget and --data.forget are the same key, which has one value; give one.",
    ),
    "a method and methods": (["run", "tiny.yaml", "--method", "ga", "--methods", "[npo]"], "are the same key"),
    "an option twice": (["run", "tiny.yaml", "--out", "a", "--out=b"], "--out is given twice"),
    "an option twice of serve": (["serve", "model", "--port", "1", "--port", "2"], "--port is given twice"),
    "an option twice of bench": (["bench", "decode", "--threads=1", "--threads=2"], "--threads is given twice"),
    "malformed line": (["run", "--model", "model", "--forget", "cut.jsonl"], "cut.jsonl:2"),
    "missing column": (["run", "--model", "model", "--forget", "column.jsonl"], "column.jsonl"),
    "empty forget set": (["run", "--model", "model", "--forget", "empty.jsonl"], "empty.jsonl"),
    "overlap": (["run", "--model", "model", "--forget", "f.jsonl", "--retain", "f.jsonl"], "2 of"),
    "too long": (["run", "--model", "model", "--forget", "long.jsonl"], "1 of 1 rows are longer than 128 tokens"),
    "no weights": (["run", "--model", "hollow", "--forget", "f.jsonl"], "holds no weights"),
    "no folder": (["run", "--model", "./nowhere", "--forget", "f.jsonl"], "does not exist"),
    "no end token": (["run", "--model", "endless", "--forget", "f.jsonl"], "no end-of-sequence token"),
    "dpo on text": (["run", "--model", "model", "--forget", "text.jsonl", "--method", "dpo"], "raw text asks nothing"),
    "refusals of another kind": (
        ["run", "--model", "model", "--forget", "f.jsonl", "--method", "dpo", "--refusals", "f.jsonl"],
        "refusals are rows with the column text",
    ),
    "nothing to retain": (["run", "--model", "model", "--forget", "f.jsonl", "--method", "npo+kl"], "no rows to keep"),
    "rmu layer": (
        ["run", "tiny.yaml", "--method", "rmu", "--method.forget.layer", "1"],
        "layer 1 of RMU is out of range; the model has layers 0 to 0",
    ),
    "impossible reference": (
        ["run", "tiny.yaml", "--method", "npo+kl", "--train.reference", "adapter_off"],
        "adapter_off needs a LoRA adapter",
    ),
    "bfloat16 weights": (
        ["run", "--model", "model", "--forget", "f.jsonl", "--model.dtype", "bfloat16"],
        "lose most updates",
    ),
    "file in the way": (["run", "tiny.yaml", "--out", "tiny.yaml"], "is a file"),
    "unknown command": (["rnu", "tiny.yaml"], "rnu"),
    "unknown option": (["methods", "--jsno"], "unrecognized arguments: --jsno; see expunge methods --help"),
    "option of another command": (["eval", "model", "--resume"], "--resume is no option of expunge eval"),
    "option of one that is named": (["reproduce", "--splits", "forget10"], "--splits is not used without the name"),
    "option of the other page": (["report", "hollow", "--markdown", "p.md", "--redact"], "--redact is not used with"),
    "path as JSON": (["recipes", "--launch", "fsdp2", "--json"], "--json is not used with the name of a launch config"),
    "no results": (["report", "hollow"], "results.json"),
}  # fmt: skip


@pytest.fixture
def bad_inputs(tmp_path: Path, model: Path, tiny_tokenizer: Any) -> None:
    write(tmp_path / "tiny.yaml", TINY)
    write(tmp_path / "typo.yaml", TINY.replace("epochs: 1}", "epoch: 1}"))
    write(tmp_path / "broken.yaml", "model: x\nbenchmark: [fable\n")
    write(tmp_path / "f.jsonl", *qa("Ann", "Bo"))
    write(tmp_path / "cut.jsonl", *qa("Ann"), '{"question": "Wh\n')
    write(tmp_path / "column.jsonl", {"query": "a", "reply": "b"})
    write(tmp_path / "empty.jsonl", "")
    write(tmp_path / "long.jsonl", LONG)
    write(tmp_path / "text.jsonl", {"text": "Ann was born in Oslo."})
    (tmp_path / "hollow").mkdir()
    endless = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    endless.save_pretrained(tmp_path / "endless")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "endless" / name).write_bytes((model / name).read_bytes())


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(
    run: Run, tmp_path: Path, bad_inputs: None, case: str
) -> None:
    words, says = BAD[case]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    code, out, err = run(*words)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("expunge: ")]
    assert len(lines) == 1 and says in lines[0], err
    assert "Traceback" not in err and out == ""
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_truncation_is_done_when_asked_for(run: Run, tmp_path: Path, bad_inputs: None) -> None:
    keys = ("--train.overflow", "truncate", "--train.max_length", "64", "--train.num_train_epochs", "1")
    write(tmp_path / "somewhat.jsonl", {"question": "Where?", "answer": "there " * 15})
    assert run("run", "--model", "model", "--forget", "somewhat.jsonl", *keys)[0] == 0


def test_a_diverging_loss_names_step_and_term(run: Run, tmp_path: Path, bad_inputs: None) -> None:
    keys = ("--method", "ga", "--train.learning_rate", "1e30", "--train.num_train_epochs", "3")
    code, _, err = run("run", "--model", "model", "--forget", "f.jsonl", *keys, "--out", "seen-in-evaluation")
    assert code == 2 and "after step 2 the model's log-probabilities are NaN" in err
    keys = (*keys, "--evaluate.each_epoch", "off")
    code, _, err = run("run", "--model", "model", "--forget", "f.jsonl", *keys)
    assert code == 2 and "the forget term became" in err and "at step" in err
    assert not (tmp_path / "runs" / "run" / "model").exists()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in ("demo", "run", "eval", "report", "methods", "doctor"))


@pytest.mark.parametrize("attacked", [False, True])
def test_the_table_fits_a_terminal_of_80(
    attacked: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = ("forget_probability", "forget_rouge_l_recall", "degeneration", "retain_probability", "model_utility")
    metrics = dict.fromkeys((*names, "aggregate"), 0.5) | {"forget_quality": 1e-20}
    metrics |= {"comes_back": 0.25} if attacked else {}
    assert metrics.keys() <= TABLE.keys()
    rows = [
        {"method": name, "benchmark": "b", "split": "s", "seed": 0, "metrics": metrics, "seconds": seconds}
        for name, seconds in (("target", None), ("uld_distilled", 99.94), ("offset-npo+nll", 12345.6))
    ]
    print_results(rows, "runs/x", as_json=False)
    out = capsys.readouterr().out
    assert "…" not in out and max(map(len, out.splitlines())) <= 80
    assert (".250" in out, "-gate" in out) == (attacked, not attacked), "what does not fit is left out whole"
    assert [line.split()[-1] for line in out.splitlines() if line.startswith((" uld", " offset"))] == ["99.9", "12346"]


def test_a_name_neither_styles_nor_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"forget_probability": 0.1, "retain_probability": 0.9, "degeneration": 0.0}
    rows = [
        {"method": name, "benchmark": "b", "split": "s", "seed": 0, "metrics": metrics, "seconds": 1.0}
        for name in ("target", "[red]npo[/red]\x1b[31m")
    ]
    print_results(rows, "runs/x", as_json=False)
    words, table = capsys.readouterr().out.split("results, records", 1)[0].split(" target ", 1)
    assert all("[red]npo[/red]\\x1b[31m" in part for part in (words, table))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_and_recipes(
    shell: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("argcomplete")
    with pytest.raises(SystemExit) as end:
        main(["--completion", shell])
    assert end.value.code == 0
    assert "expunge" in capfd.readouterr().out
    if shell != "bash":
        return
    for words, expected in {
        "expunge ru": {"run "},
        "expunge run --over": {"--overwrite "},
        "expunge run rwku-np": {"rwku-npo "},
    }.items():
        asked = {"_ARGCOMPLETE": "1", "COMP_LINE": words, "COMP_POINT": str(len(words)), "_ARGCOMPLETE_IFS": "\n"}
        answer = tmp_path / "answer"
        subprocess.run(
            [sys.executable, "-m", "expunge"],
            env={**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)},
            check=True,
        )
        assert set(answer.read_text().split("\n")) == expected


def test_completion_says_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["--completion", "bash"]) == 2
    assert "pip install 'expunge[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["methods", "run --help-keys", "recipes --json"])
def test_a_reader_who_has_seen_enough_is_no_fault(words: str) -> None:
    """`head` closes the pipe before the end."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "expunge", *words.split()]
    done = forked.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_options_that_a_dry_run_does_not_use(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--resume"], ["--overwrite"], ["--workers", "2", "--seeds", "2"]):
        assert main(["run", "--benchmark", "fable", "--model.scratch.layers", "2", "--dry-run", *words]) == 2
        assert f"run: {words[0]} is not used with --dry-run; leave it out." in capsys.readouterr().err
