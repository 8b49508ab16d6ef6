"""Tasks of lm-evaluation-harness against logits computed by hand, on tasks of local files in MMLU's form."""

import csv
import json
import logging
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from expunge.errors import UserError
from expunge.evals import harness
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.modeling.loading import ScratchConfig, build_scratch, train_tokenizer

pytest.importorskip("lm_eval")

pytestmark = pytest.mark.usefixtures("only_local_tasks")

Question = dict[str, Any]
Prepared = tuple[Path, str, list[Question], list[Question]]

LETTERS = "ABCD"
DESCRIPTION = "The following are multiple choice questions (with answers) about {}.\n\n"
CONTEXT = 4096

# The harness's own default template of MMLU, but for where the data is.
TASK = r"""
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/{name}.test.jsonl
    dev: {folder}/{name}.dev.jsonl
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
num_fewshot: 5
output_type: multiple_choice
description: {description}
doc_to_text: "{{{{question.strip()}}}}\nA. {{{{choices[0]}}}}\nB. {{{{choices[1]}}}}\nC. {{{{choices[2]}}}}\nD. {{{{choices[3]}}}}\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""  # noqa: E501

GENERATE = """
task: go_on
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/words.test.jsonl
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["lamp"], do_sample: false, max_gen_toks: 9}}
metric_list:
  - metric: exact_match
filter_list:
  - name: first-words
    filter:
      - function: take_first
"""


def write_task(folder: Path, name: str, dev: Sequence[Question], test: Sequence[Question]) -> None:
    for split, rows in (("dev", dev), ("test", test)):
        (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = json.dumps(DESCRIPTION.format(name))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, folder=folder, description=description))


def made_up(n: int, seed: int) -> list[Question]:
    draw = random.Random(seed)
    words = ["river", "stone", "lamp", "cloud", "paper", "bridge", "garden", "wheel"]
    return [
        {
            "question": f" Which word follows {' '.join(draw.choices(words, k=draw.randint(1, 12)))}?",
            "choices": draw.sample(words, 4),
            "answer": draw.randrange(4),
        }
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """(folder of the task `words`, its name, examples, questions)."""
    folder = tmp_path_factory.mktemp("tasks")
    dev, test = made_up(6, 1), made_up(6, 2)
    write_task(folder, "words", dev, test)
    (folder / "all.yaml").write_text("group: all\ntask: [words]\n")
    (folder / "broken.yaml").write_text(TASK.format(name="broken", folder=folder, description="!function none.text"))
    (folder / "go_on.yaml").write_text(GENERATE.format(folder=folder))
    return folder, "words", dev, test


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [shown(q) + f" {LETTERS[q['answer']]}" for q in made_up(50, 3)]
    tokenizer = train_tokenizer(texts, ScratchConfig(vocab=512, context=CONTEXT))
    tokenizer.model_max_length = 10**30  # as most on the hub: the model alone knows its context
    return tokenizer


@pytest.fixture(scope="module")
def build(tokenizer: Any) -> Callable[[str], Any]:
    """A random Llama, one under a random adapter, or one less a random assistant; far from uniform."""

    def make(kind: str) -> Any:
        size = ScratchConfig(layers=3, hidden=32, heads=2, vocab=512, context=CONTEXT)
        model = build_scratch(size, tokenizer, seed=0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(3 if weight.dim() > 1 else 1)
        if kind == "difference":
            torch.manual_seed(0)
            lora = LoraConfig(r=4, init_lora_weights=False)
            model = LogitDifferenceForCausalLM(LogitDifferenceConfig(layers=1), model, lora=lora)
        if kind == "lora":
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"))
        return model.eval()

    return make


def shown(question: Question) -> str:
    options = [f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question["choices"], strict=True)]
    return question["question"].strip() + "\n" + "".join(options) + "Answer:"


def by_hand(model: Any, tokenizer: Any, name: str, dev: list[Question], test: list[Question]) -> torch.Tensor:
    """Log-likelihood of every letter after MMLU's prompt, a forward for each, [questions, 4]."""
    head = DESCRIPTION.format(name)
    head += "".join(shown(q) + f" {LETTERS[q['answer']]}\n\n" for q in dev[:5])
    rows = []
    for question in test:
        prompt = tokenizer(head + shown(question))["input_ids"]
        found = []
        for letter in LETTERS:
            ids = tokenizer(head + shown(question) + f" {letter}")["input_ids"]
            assert ids[: len(prompt)] == prompt and len(prompt) < len(ids) <= CONTEXT
            with torch.inference_mode():
                logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            found.append(sum(logp[t - 1, ids[t]] for t in range(len(prompt), len(ids))))
        rows.append(torch.stack(found))
    return torch.stack(rows)


def likelihoods(raw: dict[str, Any], task: str) -> torch.Tensor:
    samples = sorted(raw["samples"][task], key=lambda s: s["doc_id"])
    return torch.tensor([[answer[0] for answer in s["filtered_resps"]] for s in samples])


def accuracy(logp_Q4: torch.Tensor, test: list[Question]) -> float:
    right = [int(row.argmax()) == q["answer"] for row, q in zip(logp_Q4, test, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("kind", ["llama", "lora", "difference"])
def test_as_by_hand(kind: str, build: Callable[[str], Any], tokenizer: Any, prepared: Prepared) -> None:
    folder, name, dev, test = prepared
    model = build(kind)
    expected = by_hand(model, tokenizer, name, dev, test)
    assert expected.std(-1).min() > 1e-2, "the four letters must differ"
    found = {}
    for size in (1, 8):
        metrics, raw = harness.run(model, tokenizer, [name], batch_size=size, include_path=folder)
        assert metrics == {"words_acc": pytest.approx(accuracy(expected, test))}
        assert raw["n-shot"] == {name: 5} and raw["max_length"] == CONTEXT
        found[size] = likelihoods(raw, name)
        assert torch.allclose(found[size], expected, atol=1e-4, rtol=0)
        assert json.loads(json.dumps(raw, allow_nan=False)) == raw
    assert torch.allclose(found[1], found[8], atol=1e-5, rtol=0)
    # And the weights, which the harness ties, are what they were.
    assert torch.equal(by_hand(model, tokenizer, name, dev, test[:1]), expected[:1])


def test_the_assistant_counts(build: Callable[[str], Any], tokenizer: Any, prepared: Prepared) -> None:
    folder, name, *_ = prepared
    of = {}
    for kind in ("llama", "difference"):
        of[kind] = likelihoods(harness.run(build(kind), tokenizer, [name], include_path=folder)[1], name)
    assert (of["llama"] - of["difference"]).abs().mean() > 1e-2


@pytest.mark.parametrize("kind", ["llama", "difference"])
def test_real_questions(
    kind: str, build: Callable[[str], Any], tokenizer: Any, shared_data: Path, tmp_path: Path
) -> None:
    """MMLU's own questions, of two subjects and asked as a group."""
    everything = json.loads((shared_data / "mmlu" / "mmlu_all_val.json").read_text())
    group = {"group": "both", "task": ["anatomy", "astronomy"]}
    group["aggregate_metric_list"] = [{"metric": "acc", "weight_by_size": True}]
    (tmp_path / "both.yaml").write_text(json.dumps(group))
    model, right, of_subject, total = build(kind), 0.0, {}, 0
    for subject in ("anatomy", "astronomy"):
        with (shared_data / "mmlu" / "dev" / f"{subject}_dev.csv").open(newline="") as file:
            dev = [
                {"question": r["question"], "choices": [r[f"choice{i}"] for i in range(4)], "answer": int(r["answer"])}
                for r in csv.DictReader(file)
            ]
        test = [{k: q[k] for k in ("question", "choices", "answer")} for q in everything if q["subject"] == subject]
        test = test[: 2 if subject == "anatomy" else 3]
        write_task(tmp_path, subject, dev, test)
        expected = by_hand(model, tokenizer, subject, dev, test)
        of_subject[subject] = expected, accuracy(expected, test)
        right, total = right + accuracy(expected, test) * len(test), total + len(test)
    metrics, raw = harness.run(model, tokenizer, ["both"], include_path=tmp_path)
    for subject, (expected, acc) in of_subject.items():
        assert torch.allclose(likelihoods(raw, subject), expected, atol=1e-4, rtol=0)
        assert metrics[f"{subject}_acc"] == pytest.approx(acc)
    assert metrics["both_acc"] == pytest.approx(right / total) and len(metrics) == 3


@pytest.mark.parametrize("kind", ["llama", "difference"])
def test_generates_greedily(kind: str, build: Callable[[str], Any], tokenizer: Any, prepared: Prepared) -> None:
    folder, _, _, test = prepared
    model = build(kind)
    metrics, raw = harness.run(model, tokenizer, ["go_on"], include_path=folder)
    assert metrics == {"go_on_exact_match_first-words": 0.0}
    samples = sorted(raw["samples"]["go_on"], key=lambda s: s["doc_id"])
    for sample, question in zip(samples, test, strict=True):
        ids = tokenizer(question["question"].rstrip())["input_ids"]
        for _ in range(9):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        own = tokenizer.decode(ids, skip_special_tokens=True)[len(question["question"].rstrip()) :].split("lamp")[0]
        assert sample["resps"][0][0] == own
    assert any(sample["resps"][0][0] for sample in samples)


def test_settings_pass_through(build: Callable[[str], Any], tokenizer: Any, prepared: Prepared) -> None:
    folder, name, _, test = prepared
    model = build("llama")
    metrics, raw = harness.run(
        model, tokenizer, [name], num_fewshot=0, limit=3, include_path=folder, bootstrap_iters=0, random_seed=5
    )
    assert raw["n-shot"] == {name: 0} and raw["config"]["random_seed"] == 5
    expected = by_hand(model, tokenizer, name, [], test[:3])
    assert torch.allclose(likelihoods(raw, name), expected, atol=1e-4, rtol=0)
    assert metrics[f"{name}_acc"] == pytest.approx(accuracy(expected, test[:3]))


def test_leaves_no_trace(
    build: Callable[[str], Any], tokenizer: Any, prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    """The mode, the random numbers, the level of the harness's log."""
    folder, name, *_ = prepared
    model = build("difference").train()
    level = logging.getLogger("lm_eval").level
    torch.manual_seed(11)
    random.seed(11)
    expected = torch.rand(3).tolist(), random.random()
    torch.manual_seed(11)
    random.seed(11)
    harness.run(model, tokenizer, [name], limit=1, include_path=folder)
    assert (torch.rand(3).tolist(), random.random()) == expected
    assert model.training and logging.getLogger("lm_eval").level == level
    assert not [r for r in caplog.records if r.name.startswith("lm_eval")]
    model.eval()
    harness.run(model, tokenizer, [name], limit=1, include_path=folder)
    assert not model.training


def test_metrics_are_finite_numbers() -> None:
    results = {
        "results": {
            "a": {"alias": "a", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": None},
            "b": {"exact_match,strict-match": 1, "exact_match_stderr,strict-match": "N/A", "bypass,none": "x"},
        },
        "groups": {"g": {"acc,none": 0.25}},
    }
    assert harness._metrics(results) == {"a_acc": 0.5, "b_exact_match_strict-match": 1.0, "g_acc": 0.25}
    assert harness._plain({1: (float("nan"), torch.float32, {2})}) == {"1": [None, "torch.float32", [2]]}


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["word"], "unknown task 'word'; did you mean 'words'?"),
        (["qqqqqqq"], "unknown task 'qqqqqqq'; `lm-eval ls tasks` lists them all."),
        ([], "no task is named"),
        (["all", "words"], r"all, words can't be loaded \(.+\); mend or omit it\.$"),
        (["broken"], r"broken can't be loaded \(.+\); mend or omit it\.$"),
    ],
)
def test_task_errors(
    tasks: list[str], said: str, build: Callable[[str], Any], tokenizer: Any, prepared: Prepared
) -> None:
    with pytest.raises(UserError, match=said) as error:
        harness.run(build("llama"), tokenizer, tasks, include_path=prepared[0])
    assert "\n" not in str(error.value)
    if "can't be loaded" in said:
        harness.check(tasks, prepared[0])  # looks at names alone
    else:
        with pytest.raises(UserError, match=said):
            harness.check(tasks, prepared[0])


def test_include_path_that_is_no_folder(build: Callable[[str], Any], tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        harness.run(build("llama"), tokenizer, ["words"], include_path=tmp_path / "absent")


def test_no_network(
    build: Callable[[str], Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_args: Any, path: str, **_kwargs: Any) -> None:
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub (LocalEntryNotFoundError)\nand more")

    write_task(tmp_path, "far", made_up(5, 0), made_up(1, 1))
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"the data of far can't be read \(Couldn't reach .* network") as error:
        harness.run(build("llama"), tokenizer, ["far"], include_path=tmp_path)
    assert "\n" not in str(error.value)


def test_data_that_is_not_there(build: Callable[[str], Any], tokenizer: Any, tmp_path: Path) -> None:
    write_task(tmp_path, "gone", made_up(5, 0), made_up(1, 1))
    (tmp_path / "gone.test.jsonl").unlink()
    with pytest.raises(UserError, match="the data of gone can't be read"):
        harness.run(build("llama"), tokenizer, ["gone"], include_path=tmp_path)


def test_without_the_extra(build: Callable[[str], Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"lm_eval is missing; pip install 'expunge\[harness\]'"):
        harness.run(build("llama"), tokenizer, ["mmlu"])


@pytest.mark.slow
def test_the_tasks_of_the_harness_are_known(
    build: Callable[[str], Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks

    limited: Any = tasks.TaskManager  # to tasks of a test, by `only_local_tasks`
    own = Path(tasks.__file__).parent

    def some_of_them() -> Any:
        """The task manager that is made without arguments, with an index of few folders in place of all."""
        return limited(include_path=[own / "mmlu" / "default", own / "arc"])

    monkeypatch.setattr(tasks, "TaskManager", some_of_them)
    harness._own_manager.cache_clear()
    assert {"mmlu", "arc_easy", "mmlu_anatomy"} <= set(harness._own_manager().all_tasks)
    with pytest.raises(UserError, match=r"unknown task 'arc_esy'; did you mean .*'arc_easy'"):
        harness.run(build("llama"), tokenizer, ["arc_esy"])
    harness._own_manager.cache_clear()
