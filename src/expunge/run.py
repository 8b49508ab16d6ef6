"""The main path: recipe → data → target and retrained model → unlearn → evaluate → report.

Read from `run` downwards. Knows the order of things and the run directory; knows nothing of losses or metrics.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from expunge import measure, models
from expunge.config import FableConfig, Method, Recipe, TofuConfig, load_recipe, parse_recipe
from expunge.data import custom, fable, tofu
from expunge.data.benchmark import Benchmark
from expunge.data.checks import check_disjoint, check_not_empty, near_duplicates, summarise
from expunge.data.formats import read_rows
from expunge.data.refusals import REFUSALS
from expunge.errors import UserError
from expunge.evals.metrics import forget_quality
from expunge.evals.tofu import Evaluation, evaluate
from expunge.history import last_checkpoint
from expunge.objectives import Needs
from expunge.prepare import check_terms, encode_sets
from expunge.reference import check_kind
from expunge.report import write_report
from expunge.targets import row_texts, train_from_scratch
from expunge.trainer import UnlearnConfig, UnlearnTrainer

log = logging.getLogger(__name__)

Result = dict[str, Any]

FIRST = {"target": 0, "retrained": 1}
"""Where the rows that every method is compared with stand in results.json."""

WRITTEN = ("recipe.yaml", "results.json", "metrics.jsonl", "report.html", "records", "pictures", "model")
"""What a run leaves in its directory, besides one folder a method where there are several."""


def run(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> list[Result]:
    """Carry out a recipe and return the rows of its `results.json`.

    Nothing is written before data, model and objectives have been looked at, and nothing of an older run is deleted
    before there is a first result. With `resume`, finished methods are kept and the one that was interrupted goes on
    from its last checkpoint.
    Raises `UserError` for anything that a person can mend.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    benchmark = load_benchmark(recipe)
    recipe = with_default_method(recipe, benchmark)
    check_data(benchmark)
    out = check_run_directory(recipe, resume=resume, overwrite=overwrite)
    check_methods(recipe, benchmark)
    target, retrained = starting_models(recipe, benchmark)

    results = _Results(out, recipe, benchmark, resume=resume)
    gold: Mapping[str, Any] | None = None
    if retrained is not None:
        gold = results.evaluate_model("retrained", retrained)
    results.evaluate_model("target", target, gold=gold)
    for method in recipe.methods:
        if not results.has(method.name):
            results.add(*unlearn(recipe, method, benchmark, target, gold, out))
    write_report([out], out / "report.html")
    log.info("report: %s", out / "report.html")
    return results.rows


def evaluate_only(recipe: Recipe, *, overwrite: bool = False) -> list[Result]:
    """Measure the recipe's model as it is, against the retrained one where it is named; rows as `run` writes them."""
    if recipe.methods:
        raise UserError("eval measures a model as it is; leave the method out, or use expunge run.")
    benchmark = load_benchmark(recipe)
    check_data(benchmark)
    out = check_run_directory(recipe, resume=False, overwrite=overwrite)
    check_methods(recipe, benchmark)
    target, retrained = starting_models(recipe, benchmark)
    results = _Results(out, recipe, benchmark, resume=False)
    gold = results.evaluate_model("retrained", retrained) if retrained is not None else None
    results.evaluate_model("target", target, gold=gold)
    write_report([out], out / "report.html")
    return results.rows


def load_benchmark(recipe: Recipe) -> Benchmark:
    """The data that the recipe names."""
    match recipe.benchmark:
        case FableConfig() as c:
            return fable.load(split=c.split, authors=c.authors, facts=c.facts, seed=c.seed)
        case TofuConfig() as c:
            return tofu.load(split=c.split, path=c.path)
    assert recipe.data is not None
    return custom.load(forget=recipe.data.forget, retain=recipe.data.retain, seed=recipe.seed)


def with_default_method(recipe: Recipe, benchmark: Benchmark) -> Recipe:
    """Unilogit, with NLL on the retain rows where there are any, when the recipe names no method."""
    if recipe.methods:
        return recipe
    method = "unilogit+nll" if benchmark.retain else "unilogit"
    log.info("no method named; taking %s", method)
    return parse_recipe({**recipe.model_dump(exclude_unset=True), "method": method}, where="recipe")


def check_data(benchmark: Benchmark) -> None:
    """Look at the rows before anything else happens: none missing, none on both sides, none nearly so unseen."""
    check_not_empty(benchmark.forget, "forget")
    check_disjoint(benchmark.forget, benchmark.retain)
    if close := near_duplicates(benchmark.forget, benchmark.retain):
        worst = max(close, key=lambda d: d.similarity)
        log.warning(
            "%d forget rows are nearly the same as a retain row (closest: forget row %d, similarity %.2f); "
            "what one asks to forget the other asks to keep",
            len(close), worst.forget, worst.similarity,
        )  # fmt: skip


def check_methods(recipe: Recipe, benchmark: Benchmark) -> None:
    """Everything that would stop a method later, found out now: no weights are loaded and nothing is written."""
    scratch = recipe.model.scratch
    if scratch is not None:
        everything = [*benchmark.retain, *benchmark.forget, *benchmark.utility]
        tokenizer = models.train_tokenizer(row_texts(everything), scratch)
        config = models.scratch_config(scratch, tokenizer)
    else:
        assert recipe.model.name is not None
        models.check_dtype(recipe.model.dtype, lora=recipe.model.lora is not None, pure_bf16=recipe.model.pure_bf16)
        tokenizer, config = models.load_tokenizer_and_config(recipe.model.name)
    if recipe.retrained is not None:
        models.load_tokenizer_and_config(recipe.retrained)
    if recipe.model.lora is not None:
        _check_lora(recipe.model.lora, config)
    encoded: set[Any] = set()
    for method in recipe.methods:
        data: dict[str, Any] = {
            "forget_rows": benchmark.forget,
            "retain_rows": benchmark.retain,
            "refusals": _refusals(recipe),
            "config": config,
        }
        check_terms(method.forget, method.retain, **data)
        args = _arguments(recipe, method, Path("unused"))
        needs = method.forget.needs | (method.retain.needs if method.retain is not None else Needs())
        check_kind(args.reference, needs, has_adapter=recipe.model.lora is not None)
        lengths = {"max_length": args.max_length, "overflow": args.overflow}
        if (key := (method.retain is None, needs.refusal, *lengths.values())) not in encoded:
            encode_sets(method.forget, method.retain, **data, **lengths, tokenizer=tokenizer, seed=recipe.seed)
            encoded.add(key)


def starting_models(recipe: Recipe, benchmark: Benchmark) -> tuple[Path | str, Path | str | None]:
    """Where the model to unlearn and the retrained one are: as named, or trained from scratch on the benchmark."""
    scratch = recipe.model.scratch
    if scratch is None:
        assert recipe.model.name is not None
        return recipe.model.name, recipe.retrained
    everything = [*benchmark.retain, *benchmark.forget, *benchmark.utility]
    common: dict[str, Any] = {"scratch": scratch, "finetune": recipe.finetune, "seed": recipe.seed}
    target = train_from_scratch(everything, everything, title="target", **common)
    if recipe.retrained is not None:
        return target, recipe.retrained
    kept = [*benchmark.retain, *benchmark.utility]
    return target, train_from_scratch(kept, everything, title="retrained", **common)


def unlearn(
    recipe: Recipe,
    method: Method,
    benchmark: Benchmark,
    target: Path | str,
    gold: Mapping[str, Any] | None,
    out: Path,
) -> tuple[Result, Evaluation]:
    """One method on the target model: train, evaluate, save `model/`; the result row and the evaluation behind it."""
    directory = method_directory(recipe, method, out)
    lora = recipe.model.lora
    model, tokenizer = models.load_for_training(
        target, dtype=recipe.model.dtype, lora=lora is not None, pure_bf16=recipe.model.pure_bf16
    )
    options = recipe.evaluate
    args = _arguments(recipe, method, directory)

    def trajectory(model: Any) -> dict[str, float]:
        full = options.each_epoch == "full"
        return evaluate(
            model,
            tokenizer,
            benchmark,
            retrained_records=gold,
            generate=full,
            limit=options.limit if full else options.each_epoch_limit,
            max_new_tokens=options.max_new_tokens,
        ).metrics

    trainer = UnlearnTrainer(
        model,
        args,
        objective=method.forget,
        retain=method.retain,
        forget_dataset=benchmark.forget,
        retain_dataset=benchmark.retain if method.retain is not None else (),
        refusals=_refusals(recipe),
        processing_class=tokenizer,
        peft_config=lora.peft() if lora is not None else None,
        evaluate=None if options.each_epoch == "off" else trajectory,
    )
    log.info("%s: %s", method.name, models.describe(trainer.model))  # pyright: ignore[reportArgumentType]
    for name in ("forget", "retain"):
        if encoded := getattr(trainer.sets, name):
            log.info("%s", summarise(name, encoded))
    if trainer.reference is not None:
        log.info("reference: %s", trainer.reference.kind)
    checkpoint = last_checkpoint(directory)
    with measure.peak_memory() as peak:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    unlearned = trainer.accelerator.unwrap_model(trainer.model)
    evaluation = _evaluate(recipe, benchmark, unlearned, tokenizer, gold)
    models.save(unlearned, tokenizer, directory / "model")
    for stale in directory.glob("checkpoint-*"):
        shutil.rmtree(stale)
    history = trainer.state.log_history
    return {
        "method": method.name,
        "removal": "weights",
        "metrics": evaluation.metrics,
        "seconds": history[-1].get("seconds", 0.0),
        "peak_memory_mib": peak.mib,
        "trajectory": [
            {
                "epoch": row["epoch"],
                "step": row["step"],
                "seconds": row.get("seconds"),
                "metrics": {k.removeprefix("eval_"): v for k, v in row.items() if k.startswith("eval_")},
            }
            for row in history
            if any(k.startswith("eval_") for k in row)
        ],
    }, evaluation


def method_directory(recipe: Recipe, method: Method, out: Path) -> Path:
    """The run directory itself for a single method, a folder of its own for each of several."""
    return out if len(recipe.methods) == 1 else out / method.name


def check_run_directory(recipe: Recipe, *, resume: bool, overwrite: bool) -> Path:
    """Where the run will be written; nothing is written yet.

    Raises `UserError` for a path that can't be a folder and for one that holds another run.
    """
    out = recipe.out or Path("runs") / "run"
    written = out / "recipe.yaml"
    nearest = next(p for p in (out, *out.parents) if p.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file, so a run can't be written to {out}; give another --out.")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{nearest} is not writable, so a run can't be written to {out}; give another --out.")
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite starts it over; give one of them.")
    if overwrite:
        for model in (recipe.model.name, recipe.retrained):
            if model is not None and Path(model).resolve().is_relative_to(out.resolve()):
                raise UserError(f"--overwrite would delete {model}, which this run reads; give another --out.")
    elif written.exists() and not resume:
        raise UserError(f"{out} already holds a run; go on with --resume, start over with --overwrite, or give --out.")
    elif written.exists() and (key := _first_difference(load_recipe(written), recipe)):
        raise UserError(
            f"{written} is another recipe than the one to resume: {key} differs; give the same keys, or another --out."
        )
    return out


def open_run_directory(recipe: Recipe, out: Path) -> None:
    """Clear away an older run, leaving everything that no run has written, and write `recipe.yaml`."""
    written = out / "recipe.yaml"
    if written.exists():
        folders: list[str] = []
        with suppress(UserError):  # of a version with other keys, or damaged: its folders stay
            folders = [method.name for method in load_recipe(written).methods]
        for path in [*out.glob("checkpoint-*"), *(out / name for name in (*folders, *WRITTEN))]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    tree = recipe.model_dump(mode="json", exclude_unset=True, exclude={"out"})
    written.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _first_difference(old: Recipe, new: Recipe) -> str | None:
    a, b = (dict(_leaves(recipe.model_dump(mode="json", exclude={"out"}))) for recipe in (old, new))
    return next((key for key in {**a, **b} if a.get(key) != b.get(key)), None)


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict | list):
        yield path, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{path}.{key}".lstrip("."))


def _arguments(recipe: Recipe, method: Method, directory: Path) -> UnlearnConfig:
    """The recipe's training keys, then the method's own."""
    settings = {**recipe.train.model_dump(exclude_unset=True), **method.train.model_dump(exclude_unset=True)}
    try:
        args = UnlearnConfig(
            **settings,
            output_dir=str(directory),
            seed=recipe.seed,
            eval_strategy="no" if recipe.evaluate.each_epoch == "off" else "epoch",
            eval_every=recipe.evaluate.every,
        )
        get_reporting_integration_callbacks(args.report_to)  # knows the names, and is asked for them too late otherwise
        return args
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"train: {str(error).strip().splitlines()[0]}") from error


def _check_lora(lora: models.LoraConfig, config: Any) -> None:
    """Put the adapter on a model without weights: `UserError` where the model has no such layers."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    try:
        get_peft_model(outline, lora.peft())
    except ValueError as error:
        raise UserError(f"model.lora.targets: {str(error).splitlines()[0]}") from error


def _evaluate(
    recipe: Recipe, benchmark: Benchmark, model: Any, tokenizer: Any, gold: Mapping[str, Any] | None
) -> Evaluation:
    return evaluate(
        model,
        tokenizer,
        benchmark,
        retrained_records=gold,
        limit=recipe.evaluate.limit,
        max_new_tokens=recipe.evaluate.max_new_tokens,
    )


def _refusals(recipe: Recipe) -> list[str]:
    if recipe.data is None or recipe.data.refusals is None:
        return list(REFUSALS)
    rows = read_rows(recipe.data.refusals)
    if "text" not in rows[0]:
        raise UserError(
            f"{recipe.data.refusals}: refusals are rows with the column text; this file has {', '.join(rows[0])}."
        )
    return [row["text"] for row in rows]


class _Results:
    """`results.json` and `records/`, written again after every method so that nothing finished is lost.

    The first result opens the run directory.
    """

    def __init__(self, out: Path, recipe: Recipe, benchmark: Benchmark, *, resume: bool) -> None:
        self.out, self.recipe, self.benchmark = out, recipe, benchmark
        self.path = out / "results.json"
        self.rows: list[Result] = json.loads(self.path.read_text()) if resume and self.path.exists() else []

    def has(self, method: str) -> bool:
        return any(row["method"] == method for row in self.rows)

    def evaluate_model(
        self, name: str, path: Path | str, gold: Mapping[str, Any] | None = None
    ) -> Mapping[str, list[dict[str, Any]]]:
        """Records of the target or the retrained model, read back if they are there already."""
        if self.has(name):
            return {
                file.name.split(".")[-2]: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                for file in (self.out / "records").glob(f"{name}.*.jsonl")
            }
        log.info("evaluating the %s model", name)
        model, tokenizer = models.load(path)
        if torch.accelerator.is_available() and not self.recipe.train.use_cpu:
            model.to(torch.accelerator.current_accelerator())
        evaluation = _evaluate(self.recipe, self.benchmark, model, tokenizer, gold)
        if name == "retrained" and "forget_truth_ratio" in evaluation.metrics:
            ratios = [r["truth_ratio"] for r in evaluation.records["forget"]]
            evaluation.metrics["forget_quality"] = forget_quality(ratios, ratios)
        self.add({"method": name, "removal": "weights", "metrics": evaluation.metrics}, evaluation)
        return evaluation.records

    def add(self, row: Result, evaluation: Evaluation) -> None:
        if not self.rows:
            open_run_directory(self.recipe, self.out)
        records = self.out / "records"
        records.mkdir(exist_ok=True)
        for name, rows in evaluation.records.items():
            text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
            (records / f"{row['method']}.{name}.jsonl").write_text(text, encoding="utf-8")
        self.rows.append(
            {
                "method": row["method"],
                "benchmark": self.benchmark.name,
                "split": self.benchmark.split,
                "seed": self.recipe.seed,
                "seconds": None,
                "peak_memory_mib": None,
                "trajectory": [],
                **row,
                "versions": measure.versions(),
            }
        )
        self.rows.sort(key=lambda r: FIRST.get(r["method"], 2))
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.rows, indent=1, ensure_ascii=False), encoding="utf-8")
        temporary.replace(self.path)  # never half-written
