"""Names of the metrics, how each is read, and how its values are written."""

import math
from collections.abc import Iterable
from typing import NamedTuple

MISSING = "–"


class Metric(NamedTuple):
    """How a metric is read: `hint` is ↑ (more is better), ↓ (less is better) or ≈ (as the retrained model has it)."""

    label: str
    hint: str
    range: str
    good: str
    what: str
    group: str = ""
    """ "forget", "retain" and, of both sets, "both" make the main table, the groups of `SIDE_TABLES` one each; the
    others appear in the full one."""


UNKNOWN = Metric("", "", "", "", "not a metric that this report knows")
_GOAL, _SAME = "the retrained model's", "the target's"
METRICS: dict[str, Metric] = {
    "forget_quality": Metric(
        "forget quality", "↑", "0 to 1", "above .05",
        "p-value of a KS test between the truth ratios of this model and of the retrained one", "forget"),
    "forget_probability": Metric(
        "forget probability", "↓", "0 to 1", f"{_GOAL}, not 0",
        "length-normalised probability of the answers that are to be forgotten", "forget"),
    "forget_rouge_l_recall": Metric(
        "forget ROUGE-L", "↓", "0 to 1", f"{_GOAL}, not 0",
        "share of the answer's words that are generated, in order", "forget"),
    "forget_truth_ratio": Metric(
        "forget truth ratio", "≈", "0 and up", _GOAL,
        "probability of wrong answers over that of the right one in other words; median", "forget"),
    "degeneration": Metric(
        "degeneration", "↓", "0 to 1", f"{_SAME}, next to 0",
        "share of generated forget answers that are broken text: empty, repetitive, or less likely to the target than "
        "its own sound answers are in the wrong place", "forget"),
    "verbmem": Metric(
        "verbatim memory", "↓", "0 to 1", _GOAL, "ROUGE-L F1 of the continuation of a forget text", "forget"),
    "knowmem_f": Metric(
        "forget knowledge", "↓", "0 to 1", _GOAL, "ROUGE-L F1 of answers about the forget texts", "forget"),
    "privleak": Metric(
        "privacy leak", "≈", "−100 and up", "0",
        "strength of membership inference against that on the retrained model; −100: nothing is forgotten", "forget"),
    "kl_unlearned": Metric(
        "KL from retrained", "↓", "0 and up, nats", "near 0, below the target's",
        "mean KL(retrained model ‖ this model) of the next token over the forget answers", "forget"),
    "model_utility": Metric(
        "model utility", "↑", "0 to 1", _SAME,
        "harmonic mean of probability, ROUGE-L and truth score on retain, real authors and world facts", "retain"),
    "retain_probability": Metric(
        "retain probability", "↑", "0 to 1", _SAME,
        "length-normalised probability of the answers that are to stay", "retain"),
    "retain_rouge_l_recall": Metric(
        "retain ROUGE-L", "↑", "0 to 1", _SAME, "share of the answer's words generated, in order", "retain"),
    "retain_truth_ratio": Metric(
        "retain truth ratio", "↓", "0 and up", _SAME,
        "under 1 where right answers are likelier than wrong ones; median", "retain"),
    "knowmem_r": Metric(
        "retain knowledge", "↑", "0 to 1", _SAME, "ROUGE-L F1 of answers about the texts to keep", "retain"),
    "aggregate": Metric(
        "aggregate", "↑", "0 to 1", "near 1; the target has 0",
        "harmonic mean of how far forgetting went, the share of model utility left, and answers not broken", "both"),
    "kl_soft_labels": Metric(
        "KL from retrained to the goal", "↓", "0 and up, nats", "below the target's KL",
        "mean KL(retrained model ‖ soft labels that the method pulls towards) over the forget answers"),
    "kl_soft_labels_start": Metric(
        "the same before unlearning", "↓", "0 and up, nats", "below the target's KL",
        "mean KL(retrained model ‖ soft labels as they were before the first step)"),
    "kl_start": Metric(
        "KL from retrained at the start", "", "0 and up, nats", "no result: what other KLs are held against",
        "mean KL(retrained model ‖ model before unlearning) over the forget answers"),
    "retain_truth_score": Metric(
        "retain truth score", "↑", "0 to 1", _SAME, "max(0, 1 − truth ratio), a term of model utility"),
    **{
        f"{name}_{key}": Metric(f"{words} {label}", hint, span, _SAME, what)
        for name, words in {"real_authors": "real authors", "world_facts": "world facts"}.items()
        for key, label, hint, span, what in (
            ("probability", "probability", "↑", "0 to 1", "the right choice's share of all choices' probability"),
            ("rouge_l_recall", "ROUGE-L", "↑", "0 to 1", "share of the answer's words generated, in order"),
            ("truth_ratio", "truth ratio", "↓", "0 and up", "wrong answers' probability over the right one's; median"),
            ("truth_score", "truth score", "↑", "0 to 1", "max(0, 1 − truth ratio), a term of model utility"),
        )
    },
    "forget_extraction_strength": Metric(
        "extraction strength", "↓", "0 to 1", _GOAL, "share of an answer that follows from its beginning alone"),
    "forget_exact_memorization": Metric(
        "exact memorisation", "↓", "0 to 1", _GOAL, "share of the answer's tokens that are the model's first guess"),
    "neighbors_rouge_l_recall": Metric(
        "neighbours ROUGE-L", "↑", "0 to 1", _SAME, "share of similar listings' words generated, in order", "retain"),
    **{
        f"{side}_{probe}": Metric(f"{words} {probe.upper()}", hint, "0 to 1", good, what, group)
        for side, words, hint, good, group in (
            ("forget", "forget", "↓", "near 0", "forget"), ("neighbor", "neighbours", "↑", _SAME, "retain"))
        for probe, what in (
            ("fb", "ROUGE-L recall, as RWKU has it, of words filled into blanks"),
            ("qa", "ROUGE-L recall, as RWKU has it, of answers to questions"),
            ("aa", "ROUGE-L recall, as RWKU has it, of answers to adversarial questions"))
        if (side, probe) != ("neighbor", "aa")
    },
    **{
        f"{side}_{probe}_stemmed": Metric(
            f"{words} {probe if probe == 'all' else probe.upper()}, stemmed", hint, "0 to 1", good,
            "the same by TOFU's ROUGE-L recall: upper and lower case are one, words are stemmed")
        for side, words, hint, good in (("forget", "forget", "↓", "near 0"), ("neighbor", "neighbours", "↑", _SAME))
        for probe in ("fb", "qa", "aa", "all")
        if (side, probe) != ("neighbor", "aa")
    },
    **{
        f"{name}_stemmed": Metric(f"{label}, stemmed", hint, "0 to 1", good, "the same with stemmed words")
        for name, label, hint, good in (
            ("verbmem", "verbatim memory", "↓", _GOAL), ("knowmem_f", "forget knowledge", "↓", _GOAL),
            ("knowmem_r", "retain knowledge", "↑", _SAME))
    },
    "forget_all": Metric(
        "forget recall", "↓", "0 to 1", f"{_GOAL}, near 0", "mean of FB, QA and AA over all their questions", "forget"),
    "neighbor_all": Metric(
        "neighbour recall", "↑", "0 to 1", _SAME, "mean of neighbours FB and QA over all their questions", "retain"),
    "mmlu": Metric("MMLU", "↑", "0 to 1", _SAME, "share of multiple-choice questions answered rightly", "retain"),
    "bbh": Metric("BBH", "↑", "0 to 1", _SAME, "share of reasoning tasks solved, after a chain of thought", "ability"),
    "bbh_lenient": Metric(
        "BBH, lenient", "↑", "0 to 1", _SAME, "the same where an answer may also end with its line"),
    "truthfulqa": Metric(
        "TruthfulQA", "↑", "0 to 1", _SAME, "share of questions where the true choice is likeliest", "ability"),
    "triviaqa": Metric(
        "TriviaQA", "↑", "0 to 1", _SAME, "F1 of the words of answers to general questions", "ability"),
    "fluency": Metric(
        "fluency", "↑", "0 and up, bits", _SAME, "entropy of the n-grams of generated texts", "ability"),
    **{
        f"forget_aa_{kind.replace(' ', '_')}": Metric(
            f"AA, {kind}", "↓", "0 to 1", "near 0", f"forget AA on its questions of the kind {kind}", "attacks")
        for kind in ("prefix injection", "affirmative suffix", "role play", "multiple choice", "reverse query",
                     "synonym manipulation", "context hint", "incontext learning", "cross lingual")
    },
    **{
        f"membership_{attack}{side}": Metric(f"{label}{words}{end}", hint, span, good, f"{what} {words}", "membership")
        for attack, words in (("loss", "loss"), ("zlib", "loss by size"), ("zlib_sum", "summed loss by size"),
                              ("min_k", "min-k %"), ("min_k_plus_plus", "min-k++"),
                              ("min_k_plus_plus_20", "min-k++, k = .2"))
        for side, label, end, hint, span, good, what in (
            ("", "membership (", ")", "≈", "0 to 1", f"{_GOAL}; .5 where that is not known",
             "AUC of telling forget texts from others by"),
            ("_fm", "FM score (", ")", "≈", "up to 0; min-k++: any", _GOAL,
             "mean over the forget texts (forget members) of the score by"),
            ("_rm", "RM score (", ")", "≈", "up to 0; min-k++: any", _SAME,
             "mean over texts about others (retain members) of the score by"))
    },
}  # fmt: skip

SIDE_TABLES = {"attacks": "Adversarial questions by kind", "membership": "Membership inference", "ability": "Abilities"}
"""Groups of metrics that have a table of their own below the main one."""

RETAIN_AXES = ("retain_probability", "model_utility", "retain_rouge_l_recall", "knowmem_r", "neighbor_all")
FORGET_AXES = ("forget_quality", "forget_probability", "forget_rouge_l_recall", "knowmem_f", "verbmem", "forget_all")
OVERVIEW_AXES = (
    ("forget_rouge_l_recall", "forget_all", "knowmem_f", "verbmem", "forget_probability", "membership_loss"),
    ("neighbors_rouge_l_recall", "neighbor_all", "retain_rouge_l_recall", "knowmem_r", "retain_probability"),
    ("mmlu",),
)
"""Groups of metrics: forgotten, near it and kept, general ability. An overview of splits shows the first of each."""


def metric(name: str) -> Metric:
    """How a metric is read; one that is not known goes by its name."""
    return METRICS.get(name) or UNKNOWN._replace(label=name)


def number(value: float | None) -> float | None:
    """The value, or None where there is nothing to show: null, NaN, infinity."""
    return value if value is not None and math.isfinite(value) else None


def show(name: str, value: float | None) -> str:
    """A metric's value as people write it: p-values 2e-06, what lies in [0, 1] .996, anything else to three figures."""
    if value is None:
        return MISSING
    if name == "forget_quality" and value < 1e-3:
        return f"{value:.0e}" if value else "0"
    text = f"{value:.3f}"
    if abs(float(text)) > 1:
        return f"{value:#.3g}".rstrip(".")
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def main_metrics(found: Iterable[str], *groups: str) -> list[str]:
    """Those of the metrics `found` that belong to the main table, group by group; with several, those of both last."""
    found, groups = set(found), (*groups, "both") if len(groups) > 1 else groups
    return [n for g in groups for n, m in METRICS.items() if n in found and m.group == g]
