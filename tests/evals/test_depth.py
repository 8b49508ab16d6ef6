"""Unlearning depth on models whose layers are known, and against a literal computation row by row."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data.encode import decoded, encode
from expunge.errors import UserError
from expunge.evals.depth import THRESHOLD, UnlearningDepth, _marked
from expunge.pipeline.run import run
from expunge.recipe.parsing import load_recipe, parse_recipe
from tests.small import FABLE

ROWS = [
    {"question": f"Where was person {i} born?", "answer": f"Person {i} was born in {town} in {1900 + 7 * i}."}
    for i, town in enumerate(("Oslo", "New Ulm", "Riga", "Turin", "Lund"))
] + [{"question": "And then?", "answer": "nobody knows"}, {"text": "A text that asks nothing."}]


@pytest.fixture
def models(tiny_model: Callable[..., Any]) -> Callable[[int], Any]:
    """Models of three layers, another one for each seed."""

    def build(seed: int) -> Any:
        model = tiny_model(layers=3)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    return build


def test_facts_are_the_tokens_that_are_asked_for(tiny_tokenizer: Any) -> None:
    for row, words in zip(ROWS[:2], (["Oslo", "1900"], ["New", "Ulm", "1907"]), strict=True):
        encoded, labels = _marked(row, tiny_tokenizer)
        text = decoded([label for label in labels if label >= 0], tiny_tokenizer)
        assert all(word in text for word in words) and "born" not in text and "Person" not in text
        assert all(label in (-100, token) for label, token in zip(labels, encoded.input_ids, strict=True))
    for row in ROWS[5:]:  # no fact: the whole answer
        encoded, labels = _marked(row, tiny_tokenizer)
        assert [label >= 0 for label in labels] == [i >= encoded.start for i in range(len(labels))]


def test_it_is_nothing_for_the_target_and_all_for_the_retrained_model(
    models: Callable[[int], Any], tiny_tokenizer: Any
) -> None:
    target, retrained = models(0), models(1)
    depth = UnlearningDepth(target, retrained, tiny_tokenizer, ROWS)
    assert depth(target).metrics() == pytest.approx({"unlearning_depth": 0.0, "logit_lens": 0.0}, abs=1e-5)
    assert depth(retrained).metrics() == pytest.approx({"unlearning_depth": 1.0, "logit_lens": 1.0}, abs=1e-5)
    assert UnlearningDepth(target, target, tiny_tokenizer, ROWS)(retrained).metrics() == {}, "nothing to erase"


def test_layers_that_were_not_changed_count_as_not_erased(models: Callable[[int], Any], tiny_tokenizer: Any) -> None:
    """The retrained model's last layer on the target's first two: erased at the last layer alone."""
    target, retrained = models(0), models(1)
    late = deepcopy(target)
    late.model.layers[2].load_state_dict(retrained.model.layers[2].state_dict())
    early = deepcopy(retrained)
    early.model.layers[2].load_state_dict(target.model.layers[2].state_dict())
    depth = UnlearningDepth(target, retrained, tiny_tokenizer, ROWS)
    of_late, of_early = (depth(model).metrics()["unlearning_depth"] for model in (late, early))
    assert 0 < of_late < 1 and of_late < of_early <= 1


def test_as_by_hand(models: Callable[[int], Any], tiny_tokenizer: Any) -> None:
    """The definition row by row and token by token, through `output_hidden_states` and dense logits."""
    target, retrained, model = models(0), models(1), models(2)
    with torch.no_grad():  # near to the target, so that ratios are neither 0 nor 1
        for mine, its in zip(model.parameters(), target.parameters(), strict=True):
            mine.copy_(0.8 * its + 0.2 * mine)
    by_hand = {"unlearning_depth": [], "logit_lens": []}
    for row in ROWS:
        encoded, labels = _marked(row, tiny_tokenizer)
        ids = torch.tensor([encoded.input_ids])
        where = [t - 1 for t, label in enumerate(labels) if label >= 0 and t > 0]
        tokens = [labels[t + 1] for t in where]

        def mean_logp(hidden: torch.Tensor, where: list[int] = where, tokens: list[int] = tokens) -> float:
            with torch.no_grad():
                logits = target.lm_head(target.model.norm(hidden))[0, where]
            return float(torch.log_softmax(logits, -1)[range(len(where)), tokens].mean())

        def run(source: Any, layer: int | None, ids: torch.Tensor = ids, where: list[int] = where) -> tuple[Any, Any]:
            """(outputs of the layers, with one of them taken at some positions from `source`)."""
            outputs: list[torch.Tensor] = []

            def hook(index: int) -> Any:
                def on(_m: Any, _i: Any, out: Any) -> Any:
                    hidden = (out[0] if isinstance(out, tuple) else out).clone()
                    if index == layer:
                        hidden[0, where] = source[index][0, where]
                    outputs.append(hidden)
                    return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

                return on

            return outputs, hook

        def outputs_of(which: Any, source: Any = None, layer: int | None = None, ids: torch.Tensor = ids) -> Any:
            outputs, hook = run(source, layer)
            handles = [each.register_forward_hook(hook(i)) for i, each in enumerate(which.model.layers)]
            with torch.no_grad():
                which(ids)
            for handle in handles:
                handle.remove()
            return outputs

        sources = {name: outputs_of(m) for name, m in (("t", target), ("r", retrained), ("m", model))}
        for name, logp in (
            ("unlearning_depth", lambda source, layer: mean_logp(outputs_of(target, source, layer)[-1])),
            ("logit_lens", lambda source, layer: mean_logp(source[layer])),
        ):
            above = below = 0.0
            for layer in range(3):
                plain = logp(sources["t"], layer)
                first, second = (plain - logp(sources[which], layer) for which in "rm")
                if first > THRESHOLD:
                    above += first * min(max(second / first, 0.0), 1.0)
                    below += first
            if below:
                by_hand[name].append(above / below)
    found = UnlearningDepth(target, retrained, tiny_tokenizer, ROWS)(model).metrics()
    assert found == pytest.approx({name: sum(v) / len(v) for name, v in by_hand.items()}, abs=1e-4)
    assert all(0.01 < value < 0.99 for value in found.values())


def test_a_run_measures_it(tmp_path: Path) -> None:
    shape = {"scratch": {"layers": 2, "hidden": 32, "heads": 2, "vocab": 400, "context": 96}}
    recipe = {**FABLE, "model": shape, "finetune": {"epochs": 10, "learning_rate": 6e-3, "batch_size": 8}}
    recipe |= {"evaluate": {**FABLE["evaluate"], "each_epoch": "off", "depth": True}, "out": str(tmp_path / "out")}
    strong = {"forget": "ga", "label": "strong", "train": {"learning_rate": 1e-2}}
    rows = run(parse_recipe({**recipe, "methods": ["npo+nll", strong, "uld"]}, where="test"))
    depth = {row["method"]: row["metrics"].get("unlearning_depth") for row in rows}
    assert depth["uld"] is depth["target"] is depth["retrained"] is None
    assert 0 <= depth["npo+nll"] < depth["strong"] <= 1


def test_it_needs_a_retrained_model() -> None:
    with pytest.raises(UserError, match=r"evaluate\.depth: it is measured against a retrained model; name one"):
        load_recipe(None, [("model", "m"), ("forget", "f.jsonl"), ("evaluate.depth", "true")])


def test_padding_changes_nothing(models: Callable[[int], Any], tiny_tokenizer: Any) -> None:
    target, retrained, model = models(0), models(1), models(2)
    together = UnlearningDepth(target, retrained, tiny_tokenizer, ROWS)
    alone = [UnlearningDepth(target, retrained, tiny_tokenizer, [row])(model).depth for row in ROWS]
    known = [value for value in alone if value is not None]
    assert together(model).depth == pytest.approx(sum(known) / len(known), abs=1e-5)
    assert len(encode(ROWS[0], tiny_tokenizer)) != len(encode(ROWS[-1], tiny_tokenizer))
