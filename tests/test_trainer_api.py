"""What users of `transformers` and TRL write in Python works as they expect, or says in one sentence what to write."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, TrainingArguments

from expunge import UnlearnConfig, UnlearnTrainer, UserError, objectives
from expunge.modeling.loading import LoraConfig, save
from expunge.training.prepare import objectives_of

Rows = tuple[list[dict[str, str]], list[dict[str, str]]]


@pytest.fixture
def build(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows) -> Callable[..., Any]:
    """A trainer of what is given, and otherwise of what is right."""

    def do(**given: Any) -> UnlearnTrainer:
        usual: dict[str, Any] = {
            "model": tiny_model(),
            "args": UnlearnConfig(output_dir=str(tmp_path / "run"), max_steps=1, save_strategy="no"),
            "objective": objectives.NPO(),
            "retain": objectives.NLL(),
            "forget_dataset": tiny_rows[0],
            "retain_dataset": tiny_rows[1],
            "processing_class": tiny_tokenizer,
        }
        return UnlearnTrainer(**{**usual, **given})

    return do


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    save(tiny_model(), tiny_tokenizer, tmp_path / "named")
    return tmp_path / "named"


def test_a_model_may_be_a_name(build: Callable[..., Any], saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    for model in (str(saved), saved):
        trainer = build(model=model, args=None, processing_class=None)
        assert trainer.args.output_dir == "named-unlearned"
        assert trainer.processing_class.eos_token == "<|end|>"
        assert trainer.model.dtype == torch.float32
    adapted = build(model=saved, processing_class=None, peft_config=LoraConfig(r=2).peft())
    adapted.train()
    assert adapted.state.global_step == 1


def test_a_tokenizer_is_found_beside_its_model(build: Callable[..., Any], saved: Path) -> None:
    trainer = build(model=saved)
    assert build(model=trainer.model, processing_class=None).processing_class.eos_token == "<|end|>"


@pytest.mark.parametrize(
    ("given", "forget", "retain"),
    [
        ({"objective": "npo"}, "NPO", "NLL"),
        ({"objective": "npo+kl", "retain": None}, "NPO", "KL"),
        ({"objective": "unilogit", "retain": "nll"}, "Unilogit", "NLL"),
        ({"objective": None, "retain": None, "forget_dataset": ()}, "NoneType", "NLL"),
    ],
)
def test_objectives_may_be_names(build: Callable[..., Any], given: dict[str, Any], forget: str, retain: str) -> None:
    trainer = build(**given)
    assert (type(trainer.objective).__name__, type(trainer.retain).__name__) == (forget, retain)


def test_rmu_by_its_name_brings_its_anchor() -> None:
    assert objectives_of("rmu", None) == (objectives.RMU(), objectives.Anchor(layer=objectives.RMU().layer))


def test_a_dataset_is_rows(build: Callable[..., Any], tiny_rows: Rows) -> None:
    trainer = build(forget_dataset=datasets.Dataset.from_list(tiny_rows[0]), retain_dataset=tiny_rows[1])
    assert len(trainer.sets.forget) == 6


def test_a_file_is_rows(build: Callable[..., Any], tiny_rows: Rows, tmp_path: Path) -> None:
    file = tmp_path / "forget.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows[0]), encoding="utf-8")
    assert build(forget_dataset=str(file)).sets.forget == build(forget_dataset=tiny_rows[0]).sets.forget


def test_the_chosen_answer_is_what_dpo_prefers_to_the_rejected_one(
    build: Callable[..., Any], tiny_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": tiny_rows[1][0]["question"], "chosen": " no idea", "rejected": " yes"}
    trainer = build(objective="dpo", forget_dataset=[row])
    (forgotten,), (preferred,) = trainer.sets.forget, trainer.sets.refusal
    say = trainer.processing_class.decode
    assert (say(forgotten.targets[:-1]), say(preferred.targets[:-1])) == (" yes", " no idea")
    assert not caplog.messages
    build(objective="npo", forget_dataset=[row])
    assert "npo does not read the chosen answers of the forget rows; dpo prefers them" in caplog.text


def test_token_ids_train_as_they_are(build: Callable[..., Any]) -> None:
    trainer = build(forget_dataset=[{"input_ids": [1, 5, 6, 7], "labels": [-100, -100, 6, 7]}])
    (encoded,) = trainer.sets.forget
    assert (encoded.input_ids, encoded.spans) == ((1, 5, 6, 7), [(2, 4)])


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "splits": (
        {"forget_dataset": datasets.DatasetDict({"train": datasets.Dataset.from_list([{"text": "a"}])})},
        "forget_dataset is a mapping with the splits train; give one of them",
    ),
    "a file that is not there": ({"retain_dataset": "rows.jsonl"}, "rows.jsonl does not exist; check the path."),
    "two answers to keep": (
        {"retain_dataset": [{"prompt": "a", "chosen": "b", "rejected": "c"}]},
        "retain: row 0 has chosen and rejected, of which the rejected answer is what must go",
    ),
    "a stream": ({"forget_dataset": iter([{"text": "a"}])}, "without a length; give a list of rows"),
    "texts": ({"forget_dataset": ["a", "b"]}, "forget_dataset: a row is 'a'; rows are mappings"),
    "arguments of transformers": (
        {"args": TrainingArguments(output_dir="out", use_cpu=True)},
        "args is a TrainingArguments; give an UnlearnConfig",
    ),
    "a misspelt method": ({"objective": "npoo"}, "'npoo' is not a forget objective. Did you mean 'npo'?"),
    "a misspelt objective to retain": ({"retain": "nl"}, "'nl' is not a retain objective. Did you mean 'nll'?"),
    "two to retain": ({"objective": "npo+kl"}, "names a retain objective, and retain is given too"),
    "an assistant's method": ({"objective": "uld", "retain": None}, "expunge run --method uld"),
    "a class": ({"objective": objectives.NPO}, "objective must be an objective, such as objectives.NPO(), or a name"),
    "one to retain in the place of one to forget": (
        {"objective": objectives.NLL(), "retain": None, "retain_dataset": []},
        "objective can't be NLL, which is for the other rows; give it as retain",
    ),
    "one to forget in the place of one to retain": (
        {"retain": objectives.NPO()},
        "retain can't be NPO, which is for the other rows; give it as objective",
    ),
    "rows that nothing keeps": ({"retain": None}, "retain_dataset does nothing without retain; give retain too"),
    "rows that nothing forgets": ({"objective": None}, "forget_dataset does nothing without objective"),
    "a tokenizer by its old name": (
        {"tokenizer": 1},
        "UnlearnTrainer takes no tokenizer: it is called processing_class",
    ),
    "another trainer's data": ({"train_dataset": []}, "takes no train_dataset: give forget_dataset and retain_dataset"),
    "another trainer's metrics": ({"compute_metrics": 1}, "takes no compute_metrics: give evaluate"),
    "no model": ({"model": None}, "model must be a causal LM, its folder or its hub name, got NoneType (None)."),
    "a part of a model": ({"model": torch.nn.Linear(1, 1)}, "model must be a causal LM, its folder or its hub name"),
    "a tokenizer's name": ({"processing_class": "name"}, "processing_class must be a tokenizer, as AutoTokenizer"),
    "a processor": (
        {"processing_class": SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE())))},
        "processing_class has a TokenizersBackend in it; give its .tokenizer.",
    ),
    "an adapter as a mapping": ({"peft_config": {}}, "peft_config must be a peft.LoraConfig, got dict ({})."),
    "an adapter as a recipe has it": ({"peft_config": LoraConfig()}, "peft_config must be a peft.LoraConfig, got Lora"),
    "a refusal alone": ({"refusals": "no"}, "refusals must be a list of texts, got str ('no')."),
    "a list of None as refusals": ({"refusals": [None]}, "refusals must be a list of texts"),
    "a teacher's name": ({"teacher": "name"}, "teacher must be a causal LM, got str ('name')."),
    "an evaluation's numbers": ({"evaluate": {"x": 1.0}}, "evaluate must be a function of the model, got dict"),
    "a callback alone": ({"callbacks": 3}, "callbacks must be a list, got int (3)."),
    "a layer that is none": ({"objective": objectives.RMU(), "retain": None, "retain_dataset": []}, "0 to 2, so give"),
    "a misspelt argument": ({"forget_datset": []}, "takes no forget_datset. Did you mean 'forget_dataset'?"),
    "nothing to evaluate with": (
        {"args": UnlearnConfig(output_dir="out", eval_strategy="epoch")},
        "eval_strategy is 'epoch', and there is nothing to evaluate with; give UnlearnTrainer(evaluate=…)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(build: Callable[..., Any], tmp_path: Path, name: str) -> None:
    given, says = MISTAKES[name]
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        build(**given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_name_needs_its_tokenizer(build: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="processing_class is missing"):
        build(processing_class=None)


def test_what_there_is_no_data_for_is_said(build: Callable[..., Any]) -> None:
    trainer = build()
    with pytest.raises(UserError, match=r"give UnlearnTrainer\(evaluate=…\) a function"):
        trainer.evaluate()
    with pytest.raises(UserError, match="evaluate: there is no loss of a data set"):
        build(evaluate=lambda model: {"x": 1.0}).evaluate(eval_dataset=[])
    with pytest.raises(UserError, match="predict: an unlearned model is an ordinary causal LM"):
        trainer.predict([])
    assert build(evaluate=lambda model: {"x": 1.0}).evaluate() == {"eval_x": 1.0}
