"""Probes against plain definitions on a tiny model: continuations, choices, membership; and beside questions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from expunge.data.benchmark import Benchmark, Choices, Continuations, Membership, Question
from expunge.data.encode import encode
from expunge.errors import UserError
from expunge.evals import degeneration, membership, metrics, requests
from expunge.evals.evaluation import evaluate
from expunge.evals.probes import ATTACKS, evaluate_probes, of_retrained

ROWS = [{"prompt": f"Person {i} was born in", "completion": f" town {i}."} for i in range(4)]
TOLD = Continuations("verbmem", ROWS, "rouge_l_f1", 6, kinds=["a b", "c-d", "a b", "c-d"])
ASKED = Choices(
    "mmlu",
    [[{"prompt": f"Question {i}\nAnswer:", "completion": f" {letter}"} for letter in "ABCD"] for i in range(3)],
    [0, 3, 1],
)
SEEN = Membership(
    "membership", [f"This text number {i} was seen." for i in range(3)], ["Another one.", "And one more."]
)


def logps(model: Any, ids: tuple[int, ...], start: int) -> np.ndarray:
    """log p of every token from `start` on, by the model's own logits in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return np.array([logits[t - 1, ids[t]].item() for t in range(start, len(ids))])


def test_continuations(llama: Any, tokenizer: Any) -> None:
    found, records = evaluate_probes(llama, tokenizer, [TOLD], progress=False)
    prompts = [(e := encode(row, tokenizer)).input_ids[: e.start] for row in ROWS]
    told = requests.generate(llama, tokenizer, prompts, max_new_tokens=6, progress=False)
    scores = [metrics.rouge_l_f1(t.text, row["completion"]) for t, row in zip(told, ROWS, strict=True)]
    assert [r["generated"] for r in records["verbmem"]] == [t.text for t in told]
    assert found["verbmem"] == pytest.approx(np.mean(scores))
    assert found["verbmem_a_b"] == pytest.approx(np.mean(scores[::2]))
    assert found["verbmem_c_d"] == pytest.approx(np.mean(scores[1::2]))
    assert len(found) == 3


def test_other_comparisons_stand_beside(llama: Any, tokenizer: Any) -> None:
    both = replace(TOLD, kinds=None, pool="all", beside={"stemmed": "rouge_l_f1_stemmed"})
    found, records = evaluate_probes(llama, tokenizer, [both], progress=False)
    stemmed = [metrics.rouge_l_f1(r["generated"], r["answer"], stem=True) for r in records["verbmem"]]
    assert [r["rouge_l_f1_stemmed"] for r in records["verbmem"]] == stemmed
    assert found["verbmem_stemmed"] == found["all_stemmed"] == pytest.approx(np.mean(stemmed))
    assert found["verbmem"] == found["all"] == pytest.approx(np.mean([r["rouge_l_f1"] for r in records["verbmem"]]))


def test_a_passage_is_compared_with_as_many_tokens_as_are_told(llama: Any, tokenizer: Any) -> None:
    """MUSE's code cuts the right text to the tokens that may be generated."""
    long = replace(TOLD, rows=[{**ROWS[0], "completion": " one two three four five six seven"}], kinds=None, tokens=6)
    whole, cut = (replace(long, passages=passages) for passages in (False, True))
    text = evaluate_probes(llama, tokenizer, [whole], progress=False)[1]["verbmem"][0]["generated"]
    short = tokenizer.decode(tokenizer(" one two three four five six seven").input_ids[:6])
    (found,) = evaluate_probes(llama, tokenizer, [cut], progress=False)[1]["verbmem"]
    assert found["rouge_l_f1"] == metrics.rouge_l_f1(text, short) and len(short) < 20


def test_a_pool_is_the_mean_over_all_rows(llama: Any, tokenizer: Any) -> None:
    pooled = [replace(TOLD, pool="all"), replace(TOLD, name="again", rows=ROWS[:1], kinds=None, pool="all")]
    found, records = evaluate_probes(llama, tokenizer, pooled, progress=False)
    rows = [*records["verbmem"], *records["again"]]
    assert found["all"] == pytest.approx(np.mean([r["rouge_l_f1"] for r in rows]))
    assert len(rows) == 5
    assert "all" not in evaluate_probes(llama, tokenizer, pooled, generate=False, progress=False)[0]


def test_broken_answers_to_what_is_forgotten_are_counted(llama: Any, tokenizer: Any) -> None:
    forgotten = replace(TOLD, forgotten=True)
    found, records = evaluate_probes(llama, tokenizer, [forgotten, replace(TOLD, name="kept")], progress=False)
    prompts = [(e := encode(row, tokenizer)).input_ids[: e.start] for row in ROWS]
    told = requests.generate(llama, tokenizer, prompts, max_new_tokens=6, progress=False)
    broken = [degeneration.looks_broken(t.text) for t in told]
    assert [r["degenerate"] for r in records["verbmem"]] == broken
    assert found["degeneration"] == np.mean(broken)
    assert "degenerate" not in records["kept"][0]


def test_without_generation_probability_stands_in(llama: Any, tokenizer: Any) -> None:
    found, records = evaluate_probes(llama, tokenizer, [TOLD], generate=False, progress=False)
    encoded = [encode(row, tokenizer) for row in ROWS]
    expected = [np.exp(logps(llama, e.input_ids, e.start).mean()) for e in encoded]
    assert found == {"verbmem_probability": pytest.approx(np.mean(expected), rel=1e-4)}
    assert records["verbmem"][0]["generated"] is None


def test_the_best_of_several_answers_counts_and_stops_end_a_text(llama: Any, tokenizer: Any) -> None:
    whole = evaluate_probes(llama, tokenizer, [TOLD], progress=False)[1]["verbmem"][0]["generated"]
    one = replace(TOLD, rows=ROWS[:1], kinds=None, answers=[["something else", whole]], comparison="token_f1")
    assert evaluate_probes(llama, tokenizer, [one], progress=False)[0]["verbmem"] == 1.0
    stop = whole[-1]
    cut = replace(one, stops=(stop,))
    text = evaluate_probes(llama, tokenizer, [cut], progress=False)[1]["verbmem"][0]["generated"]
    assert text == whole.split(stop)[0].strip()


def test_choices_are_scored_by_their_own_tokens_alone(llama: Any, tokenizer: Any) -> None:
    """Summed log-probability of the choice, without the end token."""
    found, records = evaluate_probes(llama, tokenizer, [ASKED], progress=False)
    right = []
    for record, rows, answer in zip(records["mmlu"], ASKED.choices, ASKED.right, strict=True):
        encoded = [encode(row, tokenizer) for row in rows]
        totals = [logps(llama, e.input_ids[:-1], e.start).sum() for e in encoded]
        assert record["logps"] == pytest.approx(totals, abs=1e-4)
        right.append(int(np.argmax(totals)) == answer)
    assert found == {"mmlu": np.mean(right)}


def test_membership(llama: Any, tokenizer: Any) -> None:
    found, records = evaluate_probes(llama, tokenizer, [SEEN], progress=False)
    texts = [encode({"text": t}, tokenizer) for t in (*SEEN.members, *SEEN.others)]
    loss = [logps(llama, e.input_ids[:-1], e.start).mean() for e in texts]
    assert [r["loss"] for r in records["membership"]] == pytest.approx(loss, rel=1e-4)
    assert found["membership_loss"] == membership.auc(loss[:3], loss[3:])
    assert set(found) == {f"membership_{a}" for a in ATTACKS}
    for e, record in zip(texts, records["membership"], strict=True):
        ids = e.input_ids[:-1]
        with torch.no_grad():
            logp_TV = llama(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)[e.start - 1 : -1]
        mean_T = (logp_TV.exp() * logp_TV).sum(-1)
        deviation_T = ((logp_TV.exp() * logp_TV.square()).sum(-1) - mean_T.square()).sqrt()
        own = membership.min_k_plus_plus_score(logps(llama, ids, e.start), mean_T.numpy(), deviation_T.numpy())
        assert record["min_k_plus_plus"] == pytest.approx(own, rel=1e-3, abs=1e-3)


def test_named_sides_have_means_of_their_own(llama: Any, tokenizer: Any) -> None:
    named = [replace(SEEN, sides=("fm", "rm"))]
    known = evaluate_probes(llama, tokenizer, named, progress=False)[1]
    found, records = evaluate_probes(llama, tokenizer, named, retrained_records=known, progress=False)
    for attack in ATTACKS:
        for side, member in (("fm", True), ("rm", False)):
            own = [r[attack] for r in records["membership"] if r["member"] is member]
            assert found[f"membership_{attack}_{side}"] == pytest.approx(np.mean(own))
    assert len(found) == 3 * len(ATTACKS), "PrivLeak is of texts never seen, and these are to stay"


def test_privleak(llama: Any, tokenizer: Any) -> None:
    """0 against itself as the retrained model; from a known number otherwise."""
    _, records = evaluate_probes(llama, tokenizer, [SEEN], progress=False)
    against, _ = evaluate_probes(llama, tokenizer, [SEEN], retrained_records=records, progress=False)
    own = 1 - membership.auc(*([r["min_k"] for r in records["membership"] if r["member"] is m] for m in (True, False)))
    if own:
        assert against["privleak"] == 0
        assert of_retrained([SEEN, TOLD], records) == {"privleak": 0}
    assert of_retrained([replace(SEEN, sides=("fm", "rm"))], records) == {}
    known, _ = evaluate_probes(llama, tokenizer, [replace(SEEN, retrained_auc=0.5)], progress=False)
    assert known["privleak"] == pytest.approx(100 * (own - 0.5) / 0.5)


def test_a_retrained_model_that_has_seen_everything_leaves_privleak_undefined(
    llama: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen = [{"member": member, "min_k": -1.0 if member else -2.0} for member in (True, False)]
    found, _ = evaluate_probes(llama, tokenizer, [SEEN], retrained_records={"membership": seen}, progress=False)
    assert "privleak" not in found and "privleak is undefined" in caplog.text


def test_rows_may_be_members(llama: Any, tokenizer: Any) -> None:
    """Of a question and its answer, only the answer tells."""
    probe = Membership("membership", ROWS[:2], ROWS[2:])
    _, records = evaluate_probes(llama, tokenizer, [probe], progress=False)
    e = encode(ROWS[0], tokenizer)
    assert records["membership"][0]["loss"] == pytest.approx(logps(llama, e.input_ids[:-1], e.start).mean(), rel=1e-4)
    assert records["membership"][0]["question"] == ROWS[0]["prompt"]


def test_limit(llama: Any, tokenizer: Any) -> None:
    _, records = evaluate_probes(llama, tokenizer, [TOLD, ASKED, SEEN], limit=2, progress=False)
    assert {name: len(rows) for name, rows in records.items()} == {"verbmem": 2, "mmlu": 2, "membership": 4}
    whole = [replace(TOLD, whole=True), ASKED, replace(SEEN, whole=True)]
    _, records = evaluate_probes(llama, tokenizer, whole, limit=2, progress=False)
    assert {name: len(rows) for name, rows in records.items()} == {"verbmem": 4, "mmlu": 2, "membership": 5}


def test_a_prompt_that_fills_the_context_is_named(llama: Any, tokenizer: Any) -> None:
    long = replace(TOLD, rows=[{"prompt": "word " * 500, "completion": " end"}], kinds=None)
    with pytest.raises(UserError, match=r"verbmem: question 0 takes \d+ tokens .* fills the model's context of \d+;"):
        evaluate_probes(llama, tokenizer, [long], progress=False)
    with pytest.raises(UserError, match=r"fewer examples \(benchmark\.shots\)"):
        evaluate_probes(
            llama, tokenizer, [replace(long, shorter="with fewer examples (benchmark.shots)")], progress=False
        )


def test_questions_and_probes_are_one_evaluation(llama: Any, tokenizer: Any) -> None:
    questions = {"retain": [Question("Where was Ann Lee born?", "In Oslo.", ("In Rome.",))]}
    benchmark = Benchmark("own", "all", forget=[], retain=[], questions=questions)
    alone = evaluate(llama, tokenizer, benchmark, max_new_tokens=3, progress=False)
    both = evaluate(llama, tokenizer, replace(benchmark, probes=[ASKED]), max_new_tokens=3, progress=False)
    assert both.metrics == {**alone.metrics, "mmlu": both.metrics["mmlu"]}
    assert set(both.records) == {*alone.records, "mmlu"}
    probes = evaluate(llama, tokenizer, replace(benchmark, questions={}, probes=[ASKED]), progress=False)
    assert set(probes.metrics) == {"mmlu"}


def test_a_passage_of_one_token_is_named(llama: Any, tokenizer: Any) -> None:
    short = Membership("membership", ["a"], SEEN.others)
    assert len(encode({"text": "a"}, tokenizer)) <= 2
    with pytest.raises(UserError, match=r"membership: a model can't predict anything of text "):
        evaluate_probes(llama, tokenizer, [short], progress=False)
