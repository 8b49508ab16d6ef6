"""Commands that ask for what can't be had: every key of a recipe with values it can't take, files that are damaged or
are no such files, and words that no command knows.

`cases()` gives them, always the same; `make_base` the folder that each of them starts from a copy of. What is right in
that folder: `model` (weights and tokenizer), `difference` (ULD's, of that model), `forget.jsonl`, `retain.jsonl`,
`variants.jsonl`, `refusals.jsonl`, `run` (a finished run), `recipe.yaml`.
"""

import json
import math
import os
import types
import typing
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Change = Callable[[Path], None]
Key = tuple[str, str, FieldInfo, dict[str, Any]]
"""A key's name, the key, what it may be, and a right recipe that has its section."""

RECIPE: dict[str, Any] = {
    "model": {"name": "model"},
    "data": {"forget": "forget.jsonl", "retain": "retain.jsonl"},
    "method": {"forget": {"name": "npo"}, "retain": {"name": "nll"}},
    "train": {"num_train_epochs": 1},
}


@dataclass(frozen=True)
class Case:
    """A command, run in a copy of the base folder after `change`."""

    name: str
    words: tuple[str, ...]
    change: Change | None = None


def cases() -> list[Case]:
    """All of them, each with a name of its own."""
    found = [*recipe_keys(), *recipe_files(), *row_files(), *model_files(), *other_files(), *paths(), *words()]
    names = [case.name for case in found]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    return found


# -- recipe keys -----------------------------------------------------------------------------------------------------


def recipe_keys() -> Iterator[Case]:
    """Each key of the recipe with values that its type or its bounds exclude."""
    from expunge.recipe.config import Recipe

    for name, key, field, base in _keys(Recipe, "", RECIPE):
        values = list(_wrong(field))
        if values:  # one of them for each key, every kind in its turn
            label, value = values[zlib.crc32(name.encode()) % len(values)]
            yield _recipe_case(f"key {name} = {label}", _with(base, key, value))
    for key, value in OUT_OF_RANGE:
        label = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:30]}…"
        yield _recipe_case(f"key {key} = {label}", _with(_base_for(key), key, value))
    for key in UNKNOWN:
        yield _recipe_case(f"unknown key {key[:40]}", _with(RECIPE, key, 1))


OUT_OF_RANGE: list[tuple[str, Any]] = [
    *(("benchmark.split", v) for v in ("forget99", "", "forget10\n", "Forget10")),
    *(("benchmark.authors", v) for v in (-1, 0, 5, 2_001, 10**18)),
    *(("benchmark.facts", v) for v in (-1, 0, 10**12)),
    *(("model.scratch.vocab", v) for v in (1, 10**12)),
    *(("model.scratch.layers", v) for v in (0, 10**9)),
    *(("model.scratch.hidden", v) for v in (7, 30, 10**9)),
    *(("model.scratch.heads", v) for v in (0, 3, 10**9)),
    *(("model.scratch.context", v) for v in (0, 10**12)),
    *(("finetune.epochs", v) for v in (0, -3)),
    *(("finetune.learning_rate", v) for v in (0, -1, math.nan, math.inf)),
    *(("finetune.batch_size", v) for v in (0, -1)),
    *(("model.lora.r", v) for v in (0, -4, 10**9)),
    *(("model.lora.alpha", v) for v in (0, -1)),
    *(("model.lora.dropout", v) for v in (-0.1, 1, math.nan)),
    *(("model.lora.targets", v) for v in ("(", "no_such_layer", [], ["q_proj", "nothing"], "[", "")),
    ("model.dtype", "float12"),
    ("model.attention", "telepathy"),
    *(("threads", v) for v in (0, -1, 100_000, 10**12)),
    *(("seed", v) for v in (-1, 2**32, 2**70)),
    *(("method.forget.beta", v) for v in (0, -1, math.nan, math.inf, 10**400)),
    *(("method.forget.weight", v) for v in (-1, math.nan, math.inf)),
    ("method.retain.weight", math.nan),
    *(("method.label", v) for v in ("", "a/b", "../up", "x" * 400, "target", "records", "é\u0000")),
    *(("evaluate.limit", v) for v in (0, -1)),
    *(("evaluate.utility_budget", v) for v in (0, 1.5, math.nan)),
    *(("evaluate.max_new_tokens", v) for v in (0, -1)),
    ("evaluate.every", 0),
    ("evaluate.mmlu", "no-such-folder"),
    ("evaluate.harness", {"tasks": []}),
    ("over", {"seed": []}),
    ("over", {"no.such.key": [1, 2]}),
    ("over", {"seed": [1, "x"]}),
    ("over", {"seed": [1, 1]}),
    ("augment", "no-such-file.jsonl"),
    ("retrained", "no-such-folder/model"),
    ("data.forget", "no-such-file.jsonl"),
    ("data.retain", "forget.jsonl"),
    ("data.refusals", "no-such-file.jsonl"),
    *(("train.learning_rate", v) for v in (0, -1, math.nan, math.inf)),
    *(("train.num_train_epochs", v) for v in (0, -1, math.nan, math.inf)),
    *(("train.per_device_train_batch_size", v) for v in (0, -8)),
    *(("train.gradient_accumulation_steps", v) for v in (0, -1)),
    *(("train.max_grad_norm", v) for v in (-1, math.nan)),
    *(("train.weight_decay", v) for v in (-1, math.nan)),
    *(("train.warmup_steps", v) for v in (-1,)),
    *(("train.adam_beta1", v) for v in (2, -1, math.nan)),
    *(("train.adam_beta2", v) for v in (1.5, math.nan)),
    *(("train.adam_epsilon", v) for v in (-1, math.nan)),
    *(("train.max_length", v) for v in (0, 1, -5)),
    *(("train.overlap", v) for v in (-1,)),
    ("train.dataloader_num_workers", -1),
    ("train.lr_scheduler_type", "sideways"),
    ("train.optim", "adamw_of_nobody"),
    ("train.report_to", "nobody"),
    ("train.save_strategy", "sometimes"),
    ("train.overflow", "explode"),
    ("train.reference", "hearsay"),
]

UNKNOWN = (
    *("modle", "methods.forget", "train.learnin_rate", "evaluate.limits", "model.scratch.depth", "model.lora.rank"),
    *("data.forgot", "benchmark.seeds", "method.forget.betta", "метод", "x" * 400, "a.b.c.d.e.f.g.h", "", "."),
)


def _recipe_case(name: str, tree: Any) -> Case:
    def change(folder: Path) -> None:
        (folder / "bad.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")

    return Case(name, ("run", "bad.yaml", "--out", "out"), change)


def _base_for(key: str) -> dict[str, Any]:
    if key.startswith("benchmark") or key.startswith(("model.scratch", "finetune")):
        rest = {name: value for name, value in RECIPE.items() if name != "data"}
        model = {"scratch": {"layers": 1, "hidden": 16, "heads": 2, "vocab": 300, "context": 96}}
        small = {"name": "fable", "authors": 10, "facts": 3, "split": "forget20"}
        return {**rest, "benchmark": small, "model": model, "finetune": {"epochs": 1}}
    if key.startswith("model.lora"):
        return {**RECIPE, "model": {"name": "model", "lora": {"r": 2}}}
    return RECIPE


def _with(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    if not rest:
        return {**tree, first: value}
    inner = tree.get(first)
    return {**tree, first: _with(inner if isinstance(inner, dict) else {}, rest, value)}


def _keys(model: type[BaseModel], section: str, base: dict[str, Any], of: str = "") -> Iterator[Key]:
    """Every key below a section; a method's own `train` is left out, for its keys are those of `train`."""
    for name, field in model.model_fields.items():
        key = section + name
        if key == "methods":
            yield from _keys(_models(field.annotation)[0], "method.", base)
            continue
        if (name == "name" and section) or key == "out":
            continue  # the one says which section it is, the other is given on the command line
        yield f"{key}{of}", key, field, base if of else _base_for(key)
        for part in _models(field.annotation) if key != "method.train" else ():
            if key not in ("benchmark", "method.forget", "method.retain"):
                yield from _keys(part, f"{key}.", base)
                continue
            named = part.model_fields["name"].default
            own = _with(_base_for(key), key, {"name": named, **({"targets": ["Anna"]} if named == "rwku" else {})})
            if getattr(part, "alone", False):
                own = {**own, "method": {"forget": own["method"]["forget"]}}
            yield from _keys(part, f"{key}.", own, f" of {named}")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _wrong(field: FieldInfo) -> Iterator[tuple[str, Any]]:
    """Values that no arm of the key's type takes."""
    arms = list(_arms(field.annotation))
    if not any(arm in (dict, Any) or typing.get_origin(arm) is dict or _models(arm) for arm in arms):
        yield "a mapping", {"ключ": {"deep": [1]}}
    if not any(arm in (list, tuple, Any) or typing.get_origin(arm) in (list, tuple) for arm in arms):
        yield "a nested list", [[["deep"]]]
    if not any(arm in (str, Path, Any) or typing.get_origin(arm) in (list, Literal) or _models(arm) for arm in arms):
        yield "a word", "Ünsinn"


def _arms(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is Annotated:
        yield from _arms(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _arms(part)
    else:
        yield annotation


# -- files -----------------------------------------------------------------------------------------------------------


def recipe_files() -> Iterator[Case]:
    bombs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = {
        "empty": b"",
        "a list": b"- 1\n- 2\n",
        "a number": b"42\n",
        "cut": b"model: {name: model\n",
        "tabs": b"model:\n\tname: model\n",
        "twice": b"model: a\nmodel: b\n",
        "latin": "modèle: é\n".encode("latin-1"),
        "binary": bytes(range(256)),
        "nul": b"model: \x00\n",
        "python object": b"model: !!python/object/apply:os.system [id]\n",
        "deep": b"[" * 5_000,
        "deep mapping": b"a: " + b"{a: " * 2_000,
        "aliases": bombs.encode(),
        "aliases in place": (bombs + "model: *i\n").encode(),
        "an alias of itself": b"model: &a [*a]\n",
        "a long number": b"seed: " + b"9" * 6_000 + b"\n",
        "two documents": b"model: model\n---\nmodel: model\n",
        "keys that are lists": b"? [a, b]\n: 1\n",
        "keys that are null": b"~: 1\n",
        "a key that is a number": b"1: 2\n",
        "merge key": b"<<: [1, 2]\n",
        "a 20 MB word": b"model: " + b"x" * 20_000_000,
        "json cut": b'{"model": ',
    }
    for name, data in texts.items():
        for command in (("run",), ("sweep", "--space", "{seed: {choices: [1, 2]}}")):
            if command[0] == "sweep" and name not in ("empty", "cut", "aliases", "latin", "keys that are lists"):
                continue
            yield Case(
                f"{command[0]}: recipe is {name}", (command[0], "bad.yaml", *command[1:]), _writes("bad.yaml", data)
            )
    for name, value in SPACES.items():
        yield Case(f"sweep: space is {name}", ("sweep", "recipe.yaml", "--space", value, "--search", "grid"))
        yield Case(
            f"sweep: space file is {name}",
            ("sweep", "recipe.yaml", "--space", "space.yaml", "--trials", "2"),
            _writes("space.yaml", value.encode()),
        )
    for name, value in REPRODUCTIONS.items():
        yield Case(f"reproduce: {name}", ("reproduce", "mine.yaml", "--no-run"), _writes("mine.yaml", value.encode()))


SPACES = {
    "empty": "{}",
    "not closed": "{",
    "a key that is unknown": "{sed: {choices: [1, 2]}}",
    "no choice": "{seed: {choices: []}}",
    "a choice twice": "{seed: {choices: [1, 1]}}",
    "a word": "{seed: word}",
    "upside down": "{train.learning_rate: {low: 1, high: 0.1}}",
    "without logarithm": "{train.learning_rate: {low: 0, high: 1, log: true}}",
    "nan": "{train.learning_rate: {low: .nan, high: 1}}",
    "not allowed": "{out: {choices: [a, b]}}",
    "impossible values": "{train.learning_rate: {choices: [-1, fast]}}",
    "nested": "{seed: {choices: {choices: [1]}}}",
}

REPRODUCTIONS = {
    "empty": "",
    "a list": "[1, 2]",
    "without sets": "title: T\nabout: A\n",
    "sets are a word": "title: T\nabout: A\nsets: word\n",
    "no runs": "title: T\nabout: A\nsets: {a: {runs: []}}\n",
    "a recipe that is not there": "title: T\nabout: A\nsets: {a: {runs: [{recipe: none.yaml, out: x}]}}\n",
    "an unknown picture": "title: T\nabout: A\npictures: [oil]\nsets: {a: {runs: [{recipe: recipe.yaml, out: x}]}}\n",
    "keys that are unknown": "title: T\nabout: A\nsets: {a: {runs: [{recipe: recipe.yaml, out: x, keys: {zz: 1}}]}}\n",
    "a name that is a list": "title: [T]\nabout: A\nsets: {a: {runs: [{recipe: recipe.yaml, out: x}]}}\n",
    "unknown words in braces": "title: T\nabout: A\nsets: {a: {runs: [{recipe: recipe.yaml, out: 'x{nobody}'}]}}\n",
}


def row_files() -> Iterator[Case]:
    """Files of rows, as the forget rows of every command that takes them."""
    deep = b'{"text": ' + b"[" * 100_000
    lines = {
        "empty.jsonl": b"",
        "blank.jsonl": b"\n\n  \n",
        "cut.jsonl": b'{"question": "a", "answer": "b"}\n{"question": "c", "ans',
        "numbers.jsonl": b"1\n2\n",
        "null.jsonl": b"null\n",
        "nulls.jsonl": b'{"question": null, "answer": null}\n',
        "lists.jsonl": b'{"question": ["a"], "answer": ["b"]}\n',
        "objects.jsonl": b'{"question": {"a": 1}, "answer": "b"}\n',
        "no-columns.jsonl": b"{}\n",
        "other-columns.jsonl": b'{"frage": "a", "antwort": "b"}\n',
        "half.jsonl": b'{"question": "a"}\n',
        "mixed.jsonl": b'{"question": "a", "answer": "b"}\n{"text": "c"}\n',
        "empty-answer.jsonl": b'{"question": "a", "answer": ""}\n',
        "white.jsonl": b'{"question": "a", "answer": "\\u00a0\\u2003"}\n',
        "nan.jsonl": b'{"text": NaN}\n',
        "surrogate.jsonl": b'{"text": "\\ud800"}\n',
        "latin.jsonl": '{"text": "é"}\n'.encode("latin-1"),
        "utf16.jsonl": '{"text": "abc"}\n'.encode("utf-16"),
        "binary.jsonl": bytes(range(256)) * 4,
        "nul.jsonl": b"\x00" * 64,
        "deep.jsonl": deep,
        "digits.jsonl": b'{"text": ' + b"9" * 10_000 + b"}\n",
        "no-roles.jsonl": b'{"messages": [{"content": "a"}]}\n',
        "messages-text.jsonl": b'{"messages": "hello"}\n',
        "messages-empty.jsonl": b'{"messages": []}\n',
        "user-last.jsonl": b'{"messages": [{"role": "user", "content": "a"}]}\n',
        "messages-numbers.jsonl": b'{"messages": [1, 2]}\n',
        "no-template.jsonl": b'{"messages": [{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n',
        "prompt-number.jsonl": b'{"prompt": 5, "completion": "b"}\n',
        "completion-list.jsonl": b'{"prompt": "a", "completion": ["b"]}\n',
        "too-long.jsonl": json.dumps({"question": "a", "answer": "word " * 2_000}).encode() + b"\n",
        "list.json": b"[1, 2, 3]",
        "object.json": b'{"a": 1}',
        "word.json": b'"word"',
        "cut.json": b'[{"text": "a"}, {',
        "empty.json": b"",
        "nothing.json": b"[]",
        "empty.csv": b"",
        "header.csv": b"question,answer\n",
        "ragged.csv": b"question,answer\na,b,c,d\n",
        "quote.csv": b'question,answer\n"a,b\n',
        "latin.csv": "question,answer\né,b\n".encode("latin-1"),
        "binary.csv": bytes(range(256)),
        "wide.csv": b"a" * 200_000 + b"\n" + b"b" * 200_000,
        "garbage.parquet": b"PAR1 this is no parquet PAR1",
        "empty.parquet": b"",
        "short.parquet": b"PAR1",
        "rows.xlsx": b"PK\x03\x04",
        "rows.tsv": b"some words\n",
        "rows": b'{"text": "a"}\n',
        "archive.jsonl.gz": b"\x1f\x8b\x08\x00garbage",
    }
    for name, data in lines.items():
        change = _writes(name, data)
        yield Case(f"run: forget is {name}", (*RUN, "--forget", name, "--out", "out"), change)
    some = (
        "empty.jsonl",
        "cut.jsonl",
        "deep.jsonl",
        "latin.jsonl",
        "binary.jsonl",
        "half.jsonl",
        "quote.csv",
        "nothing.json",
    )
    for name in some:
        change = _writes(name, lines[name])
        yield Case(f"run: retain is {name}", (*RUN, "--forget", "forget.jsonl", "--retain", name), change)
        yield Case(f"eval: forget is {name}", ("eval", "model", "--forget", name), change)
        augment = ("augment", "--model", "model", "--forget", name, "--out", "written.jsonl")
        yield Case(f"augment: forget is {name}", augment, change)
        distil = ("distill", "difference", "--forget", name, "--retain", "retain.jsonl")
        yield Case(f"distill: forget is {name}", distil, change)
    for name in ("empty.jsonl", "cut.jsonl", "numbers.jsonl", "other-columns.jsonl", "latin.jsonl", "deep.jsonl"):
        words = (*RUN, "--method", "dpo", "--forget", "forget.jsonl", "--refusals", name)
        yield Case(f"run: refusals are {name}", words, _writes(name, lines[name]))
    variants = {
        "empty": b"",
        "cut": b'{"row": 0, "kind": "para',
        "no row": b'{"kind": "paraphrase", "question": "a", "answer": "b"}\n',
        "row 99": b'{"row": 99, "kind": "paraphrase", "question": "a", "answer": "b"}\n',
        "row -1": b'{"row": -1, "kind": "paraphrase", "question": "a", "answer": "b"}\n',
        "row true": b'{"row": true, "kind": "paraphrase", "question": "a", "answer": "b"}\n',
        "row 1.5": b'{"row": 1.5, "kind": "paraphrase", "question": "a", "answer": "b"}\n',
        "row a word": b'{"row": "x", "kind": "paraphrase", "question": "a", "answer": "b"}\n',
        "another kind": b'{"row": 0, "kind": "parody", "question": "a", "answer": "b"}\n',
        "no kind": b'{"row": 0, "question": "a", "answer": "b"}\n',
        "a number": b"7\n",
        "kind a list": b'{"row": 0, "kind": ["paraphrase"], "question": "a", "answer": "b"}\n',
        "texts for questions": b'{"row": 0, "kind": "paraphrase", "text": "a"}\n',
        "latin": '{"row": 0, "kind": "paraphrase", "question": "é", "answer": "b"}\n'.encode("latin-1"),
    }
    for name, data in variants.items():
        words = (*RUN, "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--augment", "bad.jsonl")
        yield Case(f"run: variants are {name}", words, _writes("bad.jsonl", data))


RUN = ("run", "--model", "model", "--method", "ga")


def model_files() -> Iterator[Case]:
    """A model's folder with one file damaged, for the commands that load it."""
    commands = {
        "run": ("run", "--model", "model", "--forget", "forget.jsonl", "--method", "ga"),
        "eval": ("eval", "model", "--forget", "forget.jsonl"),
        "chat": ("chat", "model"),
        "serve": ("serve", "model", "--port", "8917"),
        "augment": ("augment", "--model", "model", "--forget", "forget.jsonl", "--out", "written.jsonl"),
        "distill": ("distill", "difference", "--forget", "forget.jsonl", "--retain", "retain.jsonl"),
    }
    damage: dict[str, Change] = {
        "no config": _removes("model/config.json"),
        "config empty": _writes("model/config.json", b""),
        "config cut": _cuts("model/config.json"),
        "config a list": _writes("model/config.json", b"[]"),
        "config a number": _writes("model/config.json", b"3"),
        "config latin": _writes("model/config.json", '{"model_type": "é"}'.encode("latin-1")),
        "config without type": _sets("model/config.json", model_type=None),
        "config of an unknown type": _sets("model/config.json", model_type="nobody"),
        "config of a type that is a list": _sets("model/config.json", model_type=["llama"]),
        "config hidden_size 0": _sets("model/config.json", hidden_size=0),
        "config hidden_size a word": _sets("model/config.json", hidden_size="wide"),
        "config hidden_size another": _sets("model/config.json", hidden_size=32),
        "config layers -1": _sets("model/config.json", num_hidden_layers=-1),
        "config layers more": _sets("model/config.json", num_hidden_layers=5),
        "config layers null": _sets("model/config.json", num_hidden_layers=None),
        "config heads 0": _sets("model/config.json", num_attention_heads=0),
        "config vocab smaller": _sets("model/config.json", vocab_size=10),
        "config vocab null": _sets("model/config.json", vocab_size=None),
        "config context a word": _sets("model/config.json", max_position_embeddings="long"),
        "config dtype unknown": _sets("model/config.json", dtype="float12"),
        "config rope unknown": _sets("model/config.json", rope_parameters={"rope_type": "hemp"}),
        "no weights": _removes("model/model.safetensors"),
        "weights empty": _writes("model/model.safetensors", b""),
        "weights cut": _cuts("model/model.safetensors"),
        "weights garbage": _writes("model/model.safetensors", b"\xff" * 4_096),
        "weights a huge header": _writes("model/model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
        "no tokenizer": _removes("model/tokenizer.json", "model/tokenizer_config.json"),
        "tokenizer empty": _writes("model/tokenizer.json", b""),
        "tokenizer cut": _cuts("model/tokenizer.json"),
        "tokenizer a list": _writes("model/tokenizer.json", b"[]"),
        "tokenizer without a model": _sets("model/tokenizer.json", model=None),
        "tokenizer config cut": _cuts("model/tokenizer_config.json"),
        "tokenizer config a list": _writes("model/tokenizer_config.json", b"[]"),
        "generation config cut": _cuts("model/generation_config.json"),
        "generation config a list": _writes("model/generation_config.json", b"[1]"),
        "a file": _replaces_folder("model"),
        "empty": _empties("model"),
    }
    everywhere = ("config cut", "weights cut", "tokenizer cut", "no config", "empty", "config of an unknown type")
    for name, change in damage.items():
        for command in ("run", "eval") if name not in everywhere else commands:
            if command == "run" and name in ("weights a huge header",):
                continue
            yield Case(f"{command}: model has {name}", commands[command], change)
    of_difference: dict[str, Change] = {
        "no config": _removes("difference/config.json"),
        "config cut": _cuts("difference/config.json"),
        "no base": _sets("difference/config.json", base=None),
        "another base": _sets("difference/config.json", base="/nowhere/at/all"),
        "layers a word": _sets("difference/config.json", layers="few"),
        "layers 99": _sets("difference/config.json", layers=99),
        "tau a word": _sets("difference/config.json", tau="x"),
        "no adapter": _removes("difference/assistant/adapter_model.safetensors"),
        "adapter cut": _cuts("difference/assistant/adapter_model.safetensors"),
        "adapter config cut": _cuts("difference/assistant/adapter_config.json"),
        "adapter config a list": _writes("difference/assistant/adapter_config.json", b"[]"),
        "adapter rank another": _sets("difference/assistant/adapter_config.json", r=7),
        "adapter type unknown": _sets("difference/assistant/adapter_config.json", peft_type="GLUE"),
        "empty": _empties("difference"),
    }
    for name, change in of_difference.items():
        yield Case(f"distill: difference has {name}", commands["distill"], change)
        if name in ("config cut", "adapter cut", "another base", "no adapter", "adapter config cut", "layers 99"):
            yield Case(f"eval: difference has {name}", ("eval", "difference", "--forget", "forget.jsonl"), change)


def other_files() -> Iterator[Case]:
    """Finished runs with one file damaged, read by report, --resume and reproduce."""
    damage: dict[str, Change] = {
        "no results": _removes("run/results.json"),
        "results empty": _writes("run/results.json", b""),
        "results cut": _cuts("run/results.json"),
        "results a number": _writes("run/results.json", b"5"),
        "results of numbers": _writes("run/results.json", b"[1, 2]"),
        "results without rows": _writes("run/results.json", b"[]"),
        "results of empty rows": _writes("run/results.json", b"[{}]"),
        "results latin": _writes("run/results.json", '[{"method": "é"}]'.encode("latin-1")),
        "results binary": _writes("run/results.json", bytes(range(256))),
        "results deep": _writes("run/results.json", b"[" * 100_000),
        "metrics that are words": _edits_rows("run/results.json", metrics={"forget_probability": "low"}),
        "metrics that are a list": _edits_rows("run/results.json", metrics=[1]),
        "no metrics": _edits_rows("run/results.json", metrics=None),
        "a method that is a number": _edits_rows("run/results.json", method=5),
        "a trajectory of numbers": _edits_rows("run/results.json", trajectory=[1, 2]),
        "a split that is a list": _edits_rows("run/results.json", split=["a"]),
        "records cut": _cuts("run/records/target.forget.jsonl"),
        "records of numbers": _writes("run/records/target.forget.jsonl", b"1\n2\n"),
        "records latin": _writes("run/records/target.forget.jsonl", '{"a": "é"}\n'.encode("latin-1")),
    }
    for name, change in damage.items():
        yield Case(f"report: {name}", ("report", "run", "--out", "page.html"), change)
        if name.startswith("results"):
            yield Case(f"report --markdown: {name}", ("report", "run", "--markdown", "page.md"), change)
            yield Case(f"run --resume: {name}", (*RESUME,), change)
    for name, change in {
        "recipe cut": _cuts("run/recipe.yaml"),
        "recipe empty": _writes("run/recipe.yaml", b""),
        "recipe of a list": _writes("run/recipe.yaml", b"[1]"),
        "recipe latin": _writes("run/recipe.yaml", "é: 1".encode("latin-1")),
    }.items():
        yield Case(f"run --resume: {name}", (*RESUME,), change)


RESUME = ("run", "recipe.yaml", "--out", "run", "--resume")


def paths() -> Iterator[Case]:
    """Names that no file has, or that are no files."""
    names = {
        "a name of 300 characters": "x" * 300,
        "a name of 300 characters with an ending": "x" * 300 + ".jsonl",
        "a path of 5,000 characters": "/".join(["d" * 100] * 50),
        "~nouser": "~nouser_at_all/f.jsonl",
        "a loop of links": "loop",
        "a loop of links with an ending": "loop.jsonl",
        "a link to nowhere": "dangling.jsonl",
        "a folder": "folder.jsonl",
        "an empty name": "",
        "a blank": " ",
        "a newline": "a\nb.jsonl",
        "a file of /proc": "/proc/self/mem",
        "/dev/null": "/dev/null",
        "/dev/zero": "/dev/zero",
        "a pipe": "pipe.jsonl",
        "below a file": "forget.jsonl/more.jsonl",
    }

    def links(folder: Path) -> None:
        for name in ("loop", "loop.jsonl"):
            (folder / name).symlink_to(name)
        (folder / "dangling.jsonl").symlink_to("nowhere.jsonl")
        (folder / "folder.jsonl").mkdir()
        os.mkfifo(folder / "pipe.jsonl")

    for label, name in names.items():
        yield Case(f"run: forget is {label}", (*RUN, "--forget", name), links)
        yield Case(f"run: recipe is {label}", ("run", name or " "), links)
        yield Case(
            f"run: model is {label}", ("run", "--model", name, "--forget", "forget.jsonl", "--method", "ga"), links
        )
        if name.strip():
            yield Case(f"report: {label}", ("report", name), links)
        if label not in ("a blank", "a newline", "a folder", "a link to nowhere", "an empty name"):
            out = (*RUN, "--forget", "forget.jsonl", "--out", name)
            if not name.startswith("/dev") and label not in ("~nouser",):
                yield Case(f"run: out is {label}", out, links)
    for label in ("a name of 300 characters", "a loop of links", "a pipe", "/dev/zero", "below a file", "~nouser"):
        name = names[label]
        yield Case(f"run: variants are {label}", (*RUN, "--forget", "forget.jsonl", "--augment", name), links)
        yield Case(f"run: retrained is {label}", (*RUN, "--forget", "forget.jsonl", "--retrained", name), links)
        yield Case(f"eval: model is {label}", ("eval", name, "--forget", "forget.jsonl"), links)
        yield Case(f"chat: model is {label}", ("chat", name), links)
        yield Case(f"serve: model is {label}", ("serve", name, "--port", "8917"), links)
        yield Case(f"distill: difference is {label}", ("distill", name, "--forget", "forget.jsonl"), links)
        yield Case(f"sweep: space is {label}", ("sweep", "recipe.yaml", "--space", name), links)
        yield Case(f"reproduce: {label}", ("reproduce", name, "--no-run"), links)
        augment = ("augment", "--model", "model", "--forget", "forget.jsonl", "--out", name)
        if label not in ("~nouser",):
            yield Case(f"augment: out is {label}", augment, links)
        if label not in ("/dev/zero", "~nouser"):
            yield Case(f"report: out is {label}", ("report", "run", "--out", name), links)


def words() -> Iterator[Case]:
    """Commands, options and values that there are not."""
    forget = ("--forget", "forget.jsonl")
    lines: list[tuple[str, ...]] = [
        ("rnu",),
        ("",),
        ("--nothing",),
        ("run", "--model"),
        ("run", "--model", "model"),
        ("run", *forget),
        ("run", "--model", "model", *forget, "--method", "nop"),
        ("run", "--model", "model", *forget, "--method", "npo+"),
        ("run", "--model", "model", *forget, "--method", "npo+nll+kl"),
        ("run", "--model", "model", *forget, "--method", "uld+kl"),
        ("run", "--model", "model", *forget, "--method", "npo+nll"),
        ("run", "--model", "model", *forget, "--methods", "[ga, ga]"),
        ("run", "--model", "model", *forget, "--methods", "ga"),
        ("run", "--model", "model", *forget, "--method", "[["),
        ("run", "--model", "model", *forget, "--method", "ga", "--seeds", "0"),
        ("run", "--model", "model", *forget, "--method", "ga", "--seeds", "-2"),
        ("run", "--model", "model", *forget, "--method", "ga", "--seeds", "many"),
        ("run", "--model", "model", *forget, "--method", "ga", "--seeds", "100000000"),
        ("run", "--model", "model", *forget, "--method", "ga", "--workers", "0"),
        ("run", "--model", "model", *forget, "--method", "ga", "--workers", "2"),
        ("run", "--model", "model", *forget, "--method", "ga", "--workers", "x"),
        ("run", "--model", "model", *forget, "--method", "ga", "--out", "run"),
        ("run", "--model", "model", *forget, "--method", "ga", "--out", "run", "--resume", "--overwrite"),
        ("run", "--model", "model", *forget, "--method", "ga", "--benchmark", "fable"),
        ("run", "--model", "model", *forget, "--method", "ga", "--seed", "one"),
        ("run", "--model", "model", *forget, "--method", "ga", "--model.lora.r", "{"),
        ("run", "--model", "model", *forget, "--method", "ga", "--train", "5"),
        ("run", "--model", "model", *forget, "--method", "ga", "--train.learning_rate.x", "5"),
        ("run", "--model", "model", *forget, "--method", "ga", "--split", "forget10"),
        ("run", "--model", "model", *forget, "--method", "ga", "--x" * 500, "1"),
        ("run", "--model", "model", *forget, "--method", "ga", "--dry-run", "--threads", "0"),
        ("run", "one.yaml", "two.yaml"),
        ("run", "--benchmark", "nothing", "--model", "model", "--method", "ga"),
        ("run", "--benchmark", "tofu", "--benchmark.path", "folder", "--model", "model", "--method", "ga"),
        ("run", "--benchmark", "muse-news", "--benchmark.path", "folder", "--model", "model", "--method", "ga"),
        ("run", "--benchmark", "rwku", "--model", "model", "--method", "ga"),
        ("run", "--benchmark", "rwku", "--benchmark.targets", "[A]", "--benchmark.path", "x", "--model", "model"),
        ("run", "--benchmark", "rwku", "--benchmark.targets", "[]", "--model", "model", "--method", "ga"),
        ("run", "--benchmark", "listings", "--benchmark.seller", "99", "--model", "model", "--method", "ga"),
        ("run", "--benchmark", "fable", "--benchmark.split", "\u202eforget", "--model", "model", "--method", "ga"),
        ("demo", "--model", "5"),
        ("demo", "--benchmark.authors", "3"),
        ("demo", "--out", "forget.jsonl"),
        ("eval",),
        ("eval", "model"),
        ("eval", "model", *forget, "--method", "ga"),
        ("eval", "model", *forget, "--out", "run"),
        ("eval", "model", *forget, "--seed", "x"),
        ("eval", "model", *forget, "--evaluate.limit", "0"),
        ("eval", "model", "more", *forget),
        ("distill",),
        ("distill", "model", *forget),
        ("distill", "run", *forget),
        ("distill", "difference", *forget, "--method", "ga"),
        ("distill", "difference", *forget, "--method.forget.match", "guess"),
        ("distill", "difference"),
        ("augment",),
        ("augment", "--out", "w.jsonl"),
        ("augment", "--model", "model", *forget),
        ("augment", "--model", "model", "--out", "w.jsonl"),
        ("augment", "--model", "model", *forget, "--out", "w.jsonl", "--paraphrases", "x"),
        ("augment", "--model", "model", *forget, "--out", "w.jsonl", "--paraphrases", "-1"),
        ("augment", "--model", "model", *forget, "--out", "w.jsonl", "--paraphrases", "0", "--perturbations", "0"),
        ("augment", "--model", "m", *forget, "--out", "w.jsonl", "--url", "no url"),
        ("augment", "--model", "m", *forget, "--out", "w.jsonl", "--url", "http://"),
        ("augment", "--model", "m", *forget, "--out", "w.jsonl", "--url", "ftp://localhost/v1"),
        ("augment", "--model", "m", *forget, "--out", "w.jsonl", "--url", "http://127.0.0.1:1/v1"),
        ("sweep", "recipe.yaml"),
        ("sweep", "recipe.yaml", "--space", GRID, "--trials", "0"),
        ("sweep", "recipe.yaml", "--space", GRID, "--trials", "-1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--trials", "many"),
        ("sweep", "recipe.yaml", "--space", GRID, "--search", "luck"),
        ("sweep", "recipe.yaml", "--space", GRID, "--objectives", "one"),
        ("sweep", "recipe.yaml", "--space", GRID, "--objectives", "one,two,three"),
        ("sweep", "recipe.yaml", "--space", GRID, "--keep", "x"),
        ("sweep", "recipe.yaml", "--space", GRID, "--keep", "-1", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--keep", "nan", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--workers", "0", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--minutes", "-1", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--minutes", "nan", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--storage", "no url", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--storage", "nosql://x", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--storage", "postgresql://a:secret@127.0.0.1:1/x", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--out", "forget.jsonl", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--seeds", "0", "--trials", "1"),
        ("sweep", "recipe.yaml", "--space", GRID, "--seeds", "100000000", "--trials", "1"),
        ("reproduce", "nothing-like-it"),
        ("reproduce", "tofu-table", "--recipe-set", "none"),
        ("reproduce", "tofu-table", "--splits", "forget77", "--no-run"),
        ("reproduce", "tofu-table", "--seeds", "0", "--no-run"),
        ("reproduce", "tofu-table", "--seeds", "x"),
        ("reproduce", "tofu-table", "--seed", "3", "--no-run"),
        ("reproduce", "tofu-table", "--no.such.key", "3", "--no-run"),
        ("reproduce", "tofu-table", "--out", "forget.jsonl", "--no-run"),
        ("reproduce", "recipe.yaml", "--no-run"),
        ("reproduce", "--splits", "forget10"),
        ("reproduce", "--train.num_train_epochs", "1"),
        ("reproduce", "tofu-table", "--dry-run", "--no-run"),
        ("reproduce", "tofu-table", "--no-run", "--json"),
        ("recipes", "--launch", "rocket"),
        ("recipes", "more"),
        ("recipes", "--launch", "fsdp2", "--json"),
        ("report",),
        ("report", "nothing"),
        ("report", "model"),
        ("report", "forget.jsonl"),
        ("report", "run", "--nothing"),
        ("report", "run", "--markdown", "page.md", "--out", "page.html"),
        ("report", "run", "--markdown", "page.md", "--redact"),
        ("chat",),
        ("chat", "nothing/at/all"),
        ("chat", "forget.jsonl"),
        ("chat", "model", "--against", "nothing/at/all"),
        ("chat", "model", "--max-new-tokens", "x"),
        ("chat", "model", "--max-new-tokens", "0"),
        ("chat", "model", "--max-new-tokens", "-3"),
        ("serve",),
        ("serve", "nothing/at/all"),
        ("serve", "forget.jsonl"),
        ("serve", "model", "--port", "x"),
        ("serve", "model", "--port", "-1"),
        ("serve", "model", "--port", "99999999"),
        ("serve", "model", "--host", "no such host"),
        ("serve", "model", "--host", ""),
        ("bench", "everything"),
        ("bench", "training", "--shape", "gigantic"),
        ("bench", "training", "--methods", "magic"),
        ("bench", "training", "--methods", ""),
        ("bench", "training", "--sequences", "0"),
        ("bench", "training", "--sequences", "x"),
        ("bench", "training", "--length", "-1"),
        ("bench", "training", "--length", "100000000"),
        ("bench", "training", "--rounds", "0"),
        ("bench", "training", "--rounds", "-1"),
        ("bench", "training", "--threads", "0"),
        ("bench", "training", "--threads", "100000"),
        ("bench", "growth", "--by", "{"),
        ("bench", "growth", "--by", "{vocabulary: []}"),
        ("bench", "growth", "--by", "{vocabulary: [x]}"),
        ("bench", "growth", "--by", "{vocabulary: [-5]}"),
        ("bench", "growth", "--by", "{nothing: [1]}"),
        ("bench", "decode", "--svg", "x.svg"),
        ("bench", "growth", "--rounds", "2"),
        ("bench", "decode", "--shape", "no"),
        ("bench", "evaluation", "--questions", "0"),
        ("bench", "evaluation", "--prompts", "sung"),
        ("bench", "--markdown"),
        ("methods", "more"),
        ("doctor", "more"),
        ("doctor", "--nothing"),
    ]
    for line in lines:
        shown = " ".join(line)
        yield Case(f"words: {shown if len(shown) < 160 else shown[:150] + '…'}", line)


GRID = "{seed: {choices: [1, 2]}}"


# -- changes ---------------------------------------------------------------------------------------------------------


def _writes(name: str, data: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def _removes(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def _cuts(name: str) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes() if (folder / name).exists() else b'{"a": 1}'
        (folder / name).write_bytes(data[: len(data) * 2 // 3])

    return change


def _sets(name: str, **values: Any) -> Change:
    """Other values of some keys of a JSON file; `None` is null."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**tree, **values}), encoding="utf-8")

    return change


def _edits_rows(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        rows = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps([{**row, **values} for row in rows]), encoding="utf-8")

    return change


def _empties(name: str) -> Change:
    def change(folder: Path) -> None:
        for path in sorted((folder / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    return change


def _replaces_folder(name: str) -> Change:
    def change(folder: Path) -> None:
        _empties(name)(folder)
        (folder / name).rmdir()
        (folder / name).write_text("a file\n")

    return change


# -- the folder ------------------------------------------------------------------------------------------------------


def make_base(folder: Path) -> None:
    """What every case starts from; its model has two layers of 16."""
    from transformers import AutoModelForCausalLM

    from expunge.cli.main import main
    from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
    from expunge.modeling.loading import LoraConfig, ScratchConfig, build_scratch, save, train_tokenizer

    folder.mkdir(parents=True)
    size = ScratchConfig(layers=2, hidden=16, heads=2, vocab=300, context=64)
    tokenizer = train_tokenizer(["Where was Ann Lee born? In Oslo."], size)
    save(build_scratch(size, tokenizer, seed=0), tokenizer, folder / "model")
    people = [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in range(8)]
    tables: dict[str, list[dict[str, Any]]] = {
        "forget": people[:4],
        "retain": people[4:],
        "refusals": [{"text": "I don't know."}],
        "variants": [{"row": 0, "kind": "paraphrase", "question": "Person 0 is from where?", "answer": "Town 0."}],
    }
    for name, rows in tables.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    quick = {"evaluate": {"max_new_tokens": 2}, "train": {"num_train_epochs": 1, "disable_tqdm": True}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "method": "ga+nll", **quick}), encoding="utf-8")
    (folder / "folder").mkdir()
    here = Path.cwd()
    os.chdir(folder)
    try:
        adapter = LoraConfig(r=2).peft()
        base = AutoModelForCausalLM.from_pretrained("model")
        config = LogitDifferenceConfig(base="model", layers=1)
        LogitDifferenceForCausalLM(config, base, lora=adapter).save_pretrained(folder / "difference")
        tokenizer.save_pretrained(folder / "difference")
        assert main(["run", "recipe.yaml", "--out", "run"]) == 0
    finally:
        os.chdir(here)
