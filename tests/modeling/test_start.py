"""What training starts from is what was measured, and what it saves loads again: every kind of method, from a plain
checkpoint and from an adapter, trained in full or under LoRA.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config, GPT2Config, GPT2LMHeadModel

from expunge import UnlearnConfig, UnlearnTrainer, objectives
from expunge.cli.main import main
from expunge.errors import UserError
from expunge.modeling import loading
from expunge.modeling.forward import decoder_layers
from expunge.pipeline.run import run
from expunge.pipeline.start import Start
from expunge.recipe.parsing import load_recipe

ONE_STEP = {"train__max_steps": "1", "train__learning_rate": "1e-9"}
SHORT = {"evaluate__each_epoch": "off", "evaluate__max_new_tokens": "4"}
METHODS = {
    "direct": "npo+kl",
    "distilled": "{forget: {name: uld_distilled, epochs: 1, r: 2, layers: 1, learning_rate: 1.0e-9}}",
    "uld": "{forget: {name: uld, r: 2, layers: 1}}",
    "offset": "{forget: {name: offset-npo, r: 2, layers: 1}}",
}


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> Path:
    """A folder with a model, a LoRA adapter on it that says something, and rows."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    model = tiny_model(layers=2, hidden=16)
    loading.save(model, tiny_tokenizer, tmp_path / "plain")
    put_adapter(tmp_path, "plain", tiny_tokenizer)
    people = [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in range(12)]
    for name, rows in (("forget", people[:4]), ("retain", people[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def put_adapter(folder: Path, base: str, tokenizer: Any, **settings: Any) -> None:
    model, _ = loading.load(folder / base)
    config = LoraConfig(**{"r": 3, "lora_alpha": 9, "target_modules": ["q_proj", "up_proj"], **settings})
    config.task_type = "CAUSAL_LM"
    adapted = get_peft_model(model, config)
    torch.manual_seed(0)
    for name, p in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(p, std=0.3)
    loading.save(adapted, tokenizer, folder / "adapter")


def recipe(method: str, **keys: str) -> Any:
    base = {"forget": "forget.jsonl", "retain": "retain.jsonl", "out": "out", "method": method, **ONE_STEP, **SHORT}
    return load_recipe(None, [(k.replace("__", "."), v) for k, v in {**base, **keys}.items()])


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    """Without the share of broken text, which each run judges by the model that it calls its target."""
    return {name: value for name, value in metrics.items() if "degeneration" not in name}


def measured_again() -> dict[str, float]:
    """What the command finds of the model that the run saved."""
    words = ["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--evaluate.max_new_tokens", "4"]
    assert main(["eval", "out/model", *words, "--out", "again"]) == 0
    return comparable(json.loads(Path("again/results.json").read_text())[0]["metrics"])


@torch.no_grad()
def says(model: Any) -> Tensor:
    return model(input_ids=torch.arange(3, 30)[None], use_cache=False).logits.float().log_softmax(-1)


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lora", ["full", "lora"])
@pytest.mark.parametrize("start", ["plain", "adapter"])
@pytest.mark.parametrize("method", METHODS)
def test_it_starts_from_what_was_measured_and_saves_what_loads(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, method: str, start: str, lora: str
) -> None:
    """The run itself compares its start with the target; one step of no length must then leave the target."""
    if lora == "lora" and method in ("uld", "offset"):
        pytest.skip("they have an adapter of their own")
    run(recipe(METHODS[method], model__name=f"./{start}", **({"model__lora": "{r: 2}"} if lora == "lora" else {})))
    target = says(loading.load(start)[0])
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    saved, _ = loading.load(workplace / "out" / "model")
    if method == "uld":  # whose adapter has learnt at a pace of its own
        saved = saved.base
        saved.disable_adapters()
    assert torch.allclose(says(saved), target, atol=1e-4)
    config = workplace / "out" / "model" / "adapter_config.json"
    assert config.is_file() == (lora == "lora")
    if lora == "lora":  # as everybody loads it
        assert json.loads(config.read_text())["base_model_name_or_path"] == str(workplace / "plain")
        plainly = AutoPeftModelForCausalLM.from_pretrained(config.parent)
        assert torch.allclose(says(plainly.eval()), target, atol=1e-4)


def test_a_new_adapter_is_joined_to_the_old_one(workplace: Path) -> None:
    """After real steps the saved adapter is the trained model, on the old adapter's base."""
    _, row = run(recipe("npo+nll", model="adapter", model__lora="{r: 2}", train__learning_rate="1e-2"))
    assert measured_again() == pytest.approx(comparable(row["metrics"]), rel=1e-4)
    assert not torch.allclose(says(loading.load("out/model")[0]), says(loading.load("adapter")[0]), atol=1e-2)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_cannot_be_joined_is_refused_or_merged(
    workplace: Path, tiny_tokenizer: Any, settings: dict[str, Any]
) -> None:
    put_adapter(workplace, "plain", tiny_tokenizer, **settings)
    with pytest.raises(UserError, match=r"model\.lora: 'adapter' is an adapter that is more than LoRA's products"):
        run(recipe("npo+nll", model="adapter", model__lora="{r: 2}"))
    assert not Path("out").exists()
    run(recipe("npo+nll", model="adapter"))
    assert torch.allclose(says(loading.load("out/model")[0]), says(loading.load("adapter")[0]), atol=1e-4)


@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:Model with `tie_word_embeddings=True`"
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_on_a_tied_head_is_measured_but_no_start(
    workplace: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    model = tiny_model(layers=2, hidden=16)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    loading.save(model, tiny_tokenizer, workplace / "tied")
    put_adapter(workplace, "tied", tiny_tokenizer, target_modules=["q_proj", "lm_head"])
    loading.load("adapter")
    with pytest.raises(UserError, match="head and its embedding are the same weights"):
        run(recipe("npo+nll", model="adapter"))
    assert not Path("out").exists()


def test_another_start_than_the_target_is_refused(workplace: Path, tiny_tokenizer: Any) -> None:
    known = Start.of(loading.load("adapter")[0], tiny_tokenizer, rows("forget"))
    known.check(loading.load("adapter", merged=True)[0], "npo")
    with pytest.raises(
        UserError, match=r"npo: training would start from another model than the target that was measured"
    ):
        known.check(loading.load("plain")[0], "npo")


@pytest.mark.parametrize("method", ["npo+nll", METHODS["uld"]])
def test_a_difference_is_no_start(workplace: Path, method: str) -> None:
    run(recipe(METHODS["uld"], model="plain"))
    with pytest.raises(UserError, match="distil it into a plain checkpoint first"):
        run(recipe(method, model="out/model", out="two"))
    assert not Path("two").exists()


# -- from Python -----------------------------------------------------------------------------------------------------


def trainer(model: Any, tokenizer: Any, **kwargs: Any) -> UnlearnTrainer:
    reference = kwargs.pop("reference", "auto")
    args = UnlearnConfig(
        "out", reference=reference, max_steps=1, learning_rate=1e-9, save_strategy="no", disable_tqdm=True
    )
    sets = {"forget_dataset": rows("forget"), **({"retain_dataset": rows("retain")} if kwargs.get("retain") else {})}
    return UnlearnTrainer(
        model, args, **{"objective": objectives.NPO(), **sets, "processing_class": tokenizer, **kwargs}
    )


@pytest.mark.parametrize("reference", ["auto", "cached_logps", "cached_hidden", "frozen_copy"])
def test_a_trained_adapter_is_compared_with_itself(workplace: Path, tiny_tokenizer: Any, reference: str) -> None:
    """NPO of a model that is its own reference is 2/β log 2, and KL nothing."""
    model = PeftModel.from_pretrained(loading.load("plain")[0], "adapter", is_trainable=True)
    kl = None if reference == "cached_logps" else objectives.KL()
    training = trainer(model, tiny_tokenizer, reference=reference, retain=kl)
    training.train()
    logged = training.state.log_history[0]
    assert logged["forget_loss"] == pytest.approx(13.8629, abs=1e-3)
    assert logged.get("retain_loss", 0) == pytest.approx(0, abs=1e-4)


def test_the_base_of_a_trained_adapter_is_not_its_start(workplace: Path, tiny_tokenizer: Any) -> None:
    model = PeftModel.from_pretrained(loading.load("plain")[0], "adapter", is_trainable=True)
    with pytest.raises(UserError, match="adapter_off would compare with the base"):
        trainer(model, tiny_tokenizer, reference="adapter_off")
    fresh = get_peft_model(loading.load("plain")[0], LoraConfig(r=2, task_type="CAUSAL_LM"))
    assert trainer(fresh, tiny_tokenizer, reference="adapter_off").reference is not None


def test_an_adapter_is_not_put_on_another(workplace: Path, tiny_tokenizer: Any) -> None:
    new = LoraConfig(r=2, task_type="CAUSAL_LM")
    for model in (loading.load("adapter")[0], AutoModelForCausalLM.from_pretrained("adapter")):
        with pytest.raises(UserError, match="it has an adapter already, on which another would be put"):
            trainer(model, tiny_tokenizer, peft_config=new)
    with pytest.raises(UserError, match="none of its weights trains"):
        trainer(loading.load("adapter")[0], tiny_tokenizer)


# -- what an adapter can't be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ("{targets: '('}", r"model\.lora\.targets: "),
        ("{targets: nothing}", r"model\.lora\.targets: "),
        ("{r: 33}", r"model\.lora\.r must be at most 16, .* got 33\."),
        ("{r: 100000000000}", r"model\.lora\.r must be at most"),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_anything_is_written(workplace: Path, lora: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(recipe("npo+nll", model="plain", model__lora=lora))
    with pytest.raises(UserError, match=r"method\.forget\.r must be at most 16"):
        run(recipe("{forget: {name: uld, r: 40}}", model="plain"))
    assert not Path("out").exists()


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
def test_no_adapter_on_weights_that_are_tied(
    workplace: Path, tiny_model: Any, tiny_tokenizer: Any, targets: list[str]
) -> None:
    model = tiny_model(layers=2, hidden=16)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    loading.save(model, tiny_tokenizer, workplace / "tied")
    with pytest.raises(UserError, match="head and its embedding are the same weights"):
        run(recipe("npo+nll", model="tied", model__lora=f"{{r: 2, targets: {targets}}}"))
    assert not Path("out").exists()
    with pytest.raises(UserError, match="head and its embedding are the same weights"):
        config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
        trainer(loading.load("tied")[0], tiny_tokenizer, peft_config=config)


# -- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({}, torch.bfloat16),
        ({"model__save_dtype": "float32"}, torch.float32),
        ({"model__dtype": "float32"}, torch.bfloat16),
        ({"model": "adapter"}, torch.bfloat16),
    ],
)
def test_the_starts_dtype_is_kept_and_measured(
    workplace: Path, tiny_tokenizer: Any, keys: dict[str, str], dtype: torch.dtype
) -> None:
    loading.save(loading.load("plain")[0].to(torch.bfloat16), tiny_tokenizer, workplace / "plain")
    for name in ("base.json", "manifest.json"):  # the adapter's base is meant to be another now
        (workplace / "adapter" / name).unlink()
    _, row = run(recipe("npo+nll", train__learning_rate="1e-3", **{"model": "plain", **keys}))
    saved, _ = loading.load("out/model")
    assert {p.dtype for p in saved.parameters()} == {dtype}
    assert measured_again() == pytest.approx(comparable(row["metrics"]), rel=1e-4)


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
def test_an_assistant_keeps_its_dtype_beside_a_base_of_another(
    workplace: Path, tiny_model: Any, tiny_tokenizer: Any, other: torch.dtype
) -> None:
    loading.save(loading.load("plain")[0].to(torch.bfloat16), tiny_tokenizer, workplace / "plain")
    loading.save(tiny_model(layers=1, hidden=16, seed=1).to(other), tiny_tokenizer, workplace / "small")
    _, row = run(recipe("{forget: {name: offset-npo, assistant: small}}", model="plain", train__learning_rate="1e-2"))
    saved, _ = loading.load("out/model")
    assert {p.dtype for p in saved.assistant.parameters()} == {other}
    assert measured_again() == pytest.approx(comparable(row["metrics"]), rel=1e-3)


def test_the_cache_stays_on_after_gradient_checkpointing(workplace: Path) -> None:
    run(recipe("npo+nll", model="plain", train__activation_checkpointing="true"))
    before, after = (json.loads((Path(name) / "config.json").read_text()) for name in ("plain", "out/model"))
    assert before["use_cache"] is after["use_cache"] is True


# -- other architectures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["uld", "offset", "lora"])
def test_adapters_on_layers_that_are_written_the_other_way_round(
    workplace: Path, tiny_tokenizer: Any, method: str
) -> None:
    """GPT-2's `Conv1D` keeps its weight as [in, out]."""
    size: dict[str, Any] = {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    loading.save(GPT2LMHeadModel(GPT2Config(vocab_size=300, **size)), tiny_tokenizer, workplace / "gpt2")
    lora = {"model__lora": "{r: 2}"} if method == "lora" else {}
    _, row = run(recipe(METHODS.get(method, "npo+nll"), model="gpt2", train__learning_rate="1e-2", **lora))
    assert measured_again() == pytest.approx(comparable(row["metrics"]), rel=1e-4)


def test_of_a_model_that_sees_the_text_part_is_trained(workplace: Path, tiny_tokenizer: Any) -> None:
    """Its vision tower has as many layers as the decoder; only the decoder's are taken for layers."""
    text = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    more = {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    sees = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    parts: dict[str, Any] = {
        "text_config": {**text, **more},
        "vision_config": {**sees, "image_size": 28, "patch_size": 14},
    }
    config = Gemma3Config(**parts, mm_tokens_per_image=4)
    model = AutoModelForCausalLM.from_config(config)
    assert decoder_layers(model) is model.model.language_model.layers
    loading.save(model, tiny_tokenizer, workplace / "sees")
    for method in ("npo+nll", "{forget: {name: rmu, layer: 1}}"):
        run(recipe(method, model="sees", out=f"out-{method[:3]}"))
    assert torch.allclose(says(loading.load("out-npo/model")[0]), says(loading.load("sees")[0]), atol=1e-4)
    with pytest.raises(UserError, match="an assistant is cut from a model of text alone, and gemma3 has other parts"):
        run(recipe("uld", model="sees"))
