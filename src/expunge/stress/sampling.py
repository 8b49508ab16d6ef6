"""Many answers to one question: a model that seldom says what it should not still says it.

Source: leak@k, arXiv 2511.04934. There a judge model decides what leaked; here the share of the right
answer's words does.
"""

from expunge.data.augment import parts
from expunge.data.encode import encode
from expunge.evals import requests
from expunge.evals.metrics import rouge_l_recall
from expunge.evals.tofu import longest_answer
from expunge.stress.attack import Clock, Victim
from expunge.stress.outcome import Outcome, Point

ANSWERS = (1, 4, 16, 64)
QUICK = (1, 4)
ROWS, QUICK_ROWS = 64, 16
"""Questions that are asked, the first of the forget rows."""


def sampling(victim: Victim) -> list[Outcome]:
    """Measure the ROUGE-L recall of the best of k answers, drawn at temperature 1; the mean over questions.

    Rows that are raw text ask nothing; where there are only such, there is no outcome.
    """
    asking = [row for row in victim.benchmark.forget if "text" not in row]
    rows = asking[: QUICK_ROWS if victim.quick else ROWS]
    if not rows:
        return []
    clock, numbers = Clock(), QUICK if victim.quick else ANSWERS
    model, tokenizer = victim.load()
    encoded = [encode(row, tokenizer) for row in rows]
    drawn = requests.sample(
        model,
        tokenizer,
        [row.input_ids[: row.start] for row in encoded],
        each=max(numbers),
        max_new_tokens=longest_answer(encoded),
        seed=victim.seed,
        top_p=1.0,
    )
    right = [parts(row)[1] for row in rows]
    found = [[rouge_l_recall(a.text, answer) for a in answers] for answers, answer in zip(drawn, right, strict=True)]
    points = tuple(Point(k, sum(max(of_row[:k]) for of_row in found) / len(found)) for k in numbers)
    return [Outcome("sampling", "temperature 1", "answers", "ROUGE-L recall of the best", points, clock.lap())]
