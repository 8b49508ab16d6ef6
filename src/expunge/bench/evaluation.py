"""Cost of a whole evaluation of TOFU's shape beside the usual way to write it.

    naive   one set, one kind of answer and one metric after another, in file order, 32 at a time, padded, every answer
            with its prompt and its labels, so that the model's own loss is computed, too; dense float32 logits of all
            positions; greedy answers likewise, with the cache. So OpenUnlearning evaluates.
    ours    `evals.tofu.evaluate`

Model, questions and answers are random and of TOFU's lengths. Both ways must find the same numbers, or the measurement
fails.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from expunge.bench.shapes import SHAPES, Shape, word_tokenizer
from expunge.bench.training import race
from expunge.bench.turns import page, title
from expunge.data.benchmark import Benchmark, Question
from expunge.data.encode import Encoded, decoded, encode, with_answer
from expunge.evals import metrics as m
from expunge.evals import requests, tofu
from expunge.evals.memorization import exact_memorization, extraction_strength
from expunge.modeling.causal import CausalLM
from expunge.report.table import Table, left, right
from expunge.system.machine import versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Records = dict[str, list[dict[str, Any]]]

BATCH = 32
"""Sequences of a naive batch, as in OpenUnlearning's configuration for TOFU."""
SETS = {"forget": 1.0, "retain": 1.0, "real_authors": 0.25, "world_facts": 0.29}
"""Questions of a set for one to forget: TOFU's 400, 400, 100 and 117."""
PROMPTS = {"plain": (0, 0), "chat": (35, 5), "examples": (300, 0)}
"""Tokens before and after every question, the same for all: none, those of Llama 3's chat template with a system prompt
(as OpenUnlearning asks Llama 3.2), and few-shot examples."""
KNOWN = "whole, retain known"
"""An evaluation of a model that answers the retain questions rightly, as an unlearned one should."""
END = 37
"""One token in this many ends an answer. Lengths of random answers are then spread about as those of TOFU are."""


def measure(
    shape: str, *, questions: int = 40, prompts: tuple[str, ...] = tuple(PROMPTS), rounds: int = 3,
    threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`{shape, questions, device, …, rows}`; a row `{prompts, what, naive_s, ours_s, ratio}`, in seconds, medians of
    turns.

    `questions` to forget, and other sets in proportion, asked with the `prompts` of `PROMPTS`. `what` is all of an
    evaluation, by a model that knows nothing or by one that knows the retain answers, or its scores alone. Raises
    `AssertionError` where the two ways differ by more than 1e-5 (of what is over 1) in a log-probability a token, or in
    more than one answer in a hundred: rounding decides between two tokens that tie.
    """
    from tqdm.auto import tqdm

    if threads is not None:
        torch.set_num_threads(threads)
    size = SHAPES[shape]
    model, tokenizer = _model(size), word_tokenizer(size.vocab)
    rows = []
    for kind in tqdm(prompts, desc="bench", leave=False):
        for what, generate in (("scores", False), ("whole", True), (KNOWN, True)):
            way = {
                "naive": lambda asked, generate=generate: naive(model, tokenizer, asked, generate=generate),
                "ours": lambda asked, generate=generate: (
                    tofu.evaluate_questions(model, tokenizer, asked, generate=generate, progress=False).records
                ),
            }
            records: dict[str, Records] = {}
            asked = _benchmark(questions, size.vocab, kind)
            if what == KNOWN:
                _let_know(model, tokenizer, asked)
            for name in way:
                way[name](_benchmark(min(4, questions), size.vocab, kind))  # warms up
            times = race({name: partial(_keep, records, name, way[name], asked) for name in way}, rounds, warm=True)
            _check(records["naive"], records["ours"])
            naive_s, ours_s = (times[name] / 1000 for name in way)
            rows.append(
                {"prompts": kind, "what": what, "naive_s": naive_s, "ours_s": ours_s, "ratio": naive_s / ours_s}
            )
    return {"shape": shape, "questions": questions, **versions(), "rows": rows}


def table(result: dict[str, Any]) -> Table:
    """The rows of `measure`."""
    rows = [
        [row["prompts"], row["what"], f"{row['naive_s']:.1f}", f"{row['ours_s']:.1f}", f"{row['ratio']:.2f}"]
        for row in result["rows"]
    ]
    return Table([*left("prompts", "what"), *right("naive s", "ours s", "naive /\nours")], rows, title(result))


def markdown(result: dict[str, Any], *, command: str) -> str:
    """The same as a page, with the command that repeats it and what it ran on."""
    return page(
        f"""# What an evaluation costs

TOFU's protocol on a random model: {result["questions"]} questions to forget, as many to retain and half as many of
utility, with a paraphrase and five wrong answers (or three wrong choices), and one greedy answer to each; medians of
turns in one process:""",
        command,
        table(result),
        f"Naive: one set, kind of answer and metric after another in file order, {BATCH} at a time, padded, dense "
        "float32 logits\nand the model's own loss. Chat: questions stand in Llama 3's chat template with a system "
        f"prompt, {sum(PROMPTS['chat'])} tokens.\nExamples: {PROMPTS['examples'][0]} tokens, the same for all, stand "
        "before each question.\n"
        "Scores: without greedy answers. Retain known: the model answers the retain questions rightly, as it should "
        "after\nunlearning; elsewhere it knows nothing. Both ways gave the same numbers to 1e-5.",
        result,
    )


@torch.inference_mode()
def naive(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", benchmark: Benchmark, *, generate: bool) -> Records:
    """The records of `tofu.evaluate` for the same questions, as far as `_check` compares them."""
    records: Records = {}
    for name, questions in benchmark.questions.items():
        rows = [q.row or {} for q in questions]
        paraphrases = [q.answer if q.paraphrased_answer is None else q.paraphrased_answer for q in questions]
        wrong = zip(*(q.perturbed_answers for q in questions), strict=True)
        given, paraphrased, *others = (
            _scores(model, [encode(with_answer(row, a), tokenizer) for row, a in zip(rows, answers, strict=True)])
            for answers in ([q.answer for q in questions], paraphrases, *wrong)
        )
        records[name] = [
            {
                "logp_mean": given[i][0].mean().item(),
                "truth_ratio": m.truth_ratio(paraphrased[i][0].mean().item(), [o[i][0].mean().item() for o in others]),
            }
            for i in range(len(questions))
        ]
        if generate:
            answers = tofu.encode_answers(questions, tokenizer, requests.context_length(model))
            cap = tofu.answer_cap(benchmark.questions.values(), tokenizer, requests.context_length(model))
            answered = _generated(model, tokenizer, answers, cap)
            for record, question, text in zip(records[name], questions, answered, strict=True):
                recall = m.rouge_l_recall(text, question.answer)
                record.update({"generated": text, "rouge_l_recall": recall})
            if name == tofu.FORGET:
                for metric in (extraction_strength, exact_memorization):
                    for record, (_, hits) in zip(records[name], _scores(model, answers), strict=True):
                        record[metric.__name__] = metric(hits.numpy())
    return records


def _scores(model: CausalLM, sequences: Sequence[Encoded]) -> list[tuple[Tensor, Tensor]]:
    """(log p, whether it is the likeliest) of the supervised tokens of each sequence."""
    scores = []
    for i in range(0, len(sequences), BATCH):
        batch = sequences[i : i + BATCH]
        width = max(map(len, batch))
        ids_BT = torch.tensor([[*s.input_ids, *[0] * (width - len(s))] for s in batch])
        mask_BT = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in batch])
        labels_BT = torch.tensor(
            [[*[-100] * s.start, *s.input_ids[s.start :], *[-100] * (width - len(s))] for s in batch]
        )
        ids_BT, mask_BT, labels_BT = (x.to(model.device) for x in (ids_BT, mask_BT, labels_BT))
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, use_cache=False).logits
        logp_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
        logp_BT = logp_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0].cpu()
        hit_BT = (logp_BTV.argmax(-1) == ids_BT[:, 1:]).cpu()
        for b, s in enumerate(batch):
            answer = slice(s.start - 1, len(s) - 1)
            scores.append((logp_BT[b, answer].double(), hit_BT[b, answer]))
    return scores


def _generated(model: Any, tokenizer: "PreTrainedTokenizerBase", answers: Sequence[Encoded], cap: int) -> Iterator[str]:
    ends = requests.end_tokens(model, tokenizer)
    config = GenerationConfig(do_sample=False, max_new_tokens=cap, pad_token_id=ends[0], eos_token_id=ends)
    for i in range(0, len(answers), BATCH):
        prompts = [a.input_ids[: a.start] for a in answers[i : i + BATCH]]
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[*[0] * (width - len(p)), *p] for p in prompts])
        mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out_BT = model.generate(
            input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=config
        )
        for new in out_BT[:, width:].tolist():
            length = next((i for i, token in enumerate(new) if token in ends), len(new))
            yield decoded(new[:length], tokenizer).strip()


def _keep(records: dict[str, Records], name: str, way: Callable[[Benchmark], Records], benchmark: Benchmark) -> None:
    records[name] = way(benchmark)


def _check(naive: Records, ours: Records) -> None:
    asked = same = 0
    for name, records in naive.items():
        for a, b in zip(records, ours[name], strict=True):
            assert abs(a["logp_mean"] - b["logp_mean"]) < 1e-5 * max(1, abs(a["logp_mean"])), (name, a, b)
            assert abs(a["truth_ratio"] / b["truth_ratio"] - 1) < 1e-4, (name, a, b)
            for metric in ("extraction_strength", "exact_memorization"):
                assert a.get(metric) == b.get(metric), (name, a, b)
            asked, same = asked + 1, same + (a.get("generated") == b["generated"])
    assert same >= 0.99 * asked, f"{asked - same} of {asked} answers differ"


def _model(size: Shape) -> Any:
    """A random model whose layers weigh more than at its beginning, so that its answers don't run in circles."""
    # float32 on CUDA too: in bfloat16 rounding would decide answers, and the two ways are held against each other.
    model = size.build(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32)
    with torch.no_grad():
        for weight in model.get_decoder().layers.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    model.generation_config.eos_token_id = list(range(0, size.vocab, END))
    return model


def _let_know(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", benchmark: Benchmark) -> None:
    """Make what the model says to the retain questions their right answers."""
    questions = benchmark.questions["retain"]
    prompts = [
        a.input_ids[: a.start] for a in tofu.encode_answers(questions, tokenizer, requests.context_length(model))
    ]
    cap = tofu.answer_cap(benchmark.questions.values(), tokenizer, requests.context_length(model))
    generated = requests.generate(model, tokenizer, prompts, max_new_tokens=cap, progress=False)
    benchmark.questions["retain"] = [
        replace(q, answer=answer.text, row={**(q.row or {}), "completion": " " + answer.text}) if answer.tokens else q
        for q, answer in zip(questions, generated, strict=True)
    ]


def _benchmark(questions: int, vocabulary: int, prompts: str) -> Benchmark:
    """Random questions of TOFU's lengths (GPT-2's tokens); a fifth of an answer's tokens it shares with another."""
    rng = random.Random(0)

    def words(count: float) -> list[str]:
        return [f"w{rng.randrange(2, vocabulary)}" for _ in range(max(1, round(count)))]

    before, after = (words(count) if count else [] for count in PROMPTS[prompts])

    def question(utility: bool) -> Question:
        prompt = [*before, *words(rng.uniform(12, 30)), *after]
        length = rng.uniform(2, 6) if utility else min(83, rng.gammavariate(5, 5.7) + 8)
        answer, paraphrase = " ".join(words(length)), words(length)
        row = {"prompt": " ".join(prompt), "completion": " " + answer}
        if utility:
            return Question(row["prompt"], answer, tuple(" ".join(words(length)) for _ in range(3)), row=row)
        alike = len(paraphrase) // 4
        wrong = tuple(" ".join([*paraphrase[:alike], *words(length - alike)]) for _ in range(5))
        return Question(row["prompt"], answer, wrong, None, " ".join(paraphrase), row=row)

    sets = {
        name: [question(name in ("real_authors", "world_facts")) for _ in range(max(1, round(share * questions)))]
        for name, share in SETS.items()
    }
    return Benchmark("random", "all", forget=[], retain=[], questions=sets)
