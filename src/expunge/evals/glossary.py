"""Names of the metrics, how each is read, and how its values are written.

Metrics that one benchmark alone has stand in its file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

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
GOAL, SAME = "the retrained model's", "the target's"
"""Good values of many metrics."""
_OURS: dict[str, Metric] = {
    "forget_quality": Metric(
        "forget quality", "↑", "0 to 1", "above .05",
        "p-value of a KS test between the truth ratios of this model and of the retrained one", "forget"),
    "forget_probability": Metric(
        "forget probability", "↓", "0 to 1", f"{GOAL}, not 0",
        "length-normalised probability of the answers that are to be forgotten", "forget"),
    "forget_rouge_l_recall": Metric(
        "forget ROUGE-L", "↓", "0 to 1", f"{GOAL}, not 0",
        "share of the answer's words that are generated, in order", "forget"),
    "forget_truth_ratio": Metric(
        "forget truth ratio", "≈", "0 and up", GOAL,
        "probability of wrong answers over that of the right one in other words; median", "forget"),
    "degeneration": Metric(
        "degeneration", "↓", "0 to 1", f"{SAME}, next to 0",
        "share of generated forget answers that are broken text: empty, repetitive, or less likely to the target than "
        "its own sound answers are in the wrong place", "forget"),
    "privleak": Metric(
        "privacy leak", "≈", "−100 and up", "0",
        "strength of membership inference against that on the retrained model; −100: nothing is forgotten", "forget"),
    "unlearning_depth": Metric(
        "unlearning depth", "↑", "0 to 1", "near 1; the target has 0",
        "share erased of what the target's layers hold of the forget facts, by patching hidden states", "forget"),
    "logit_lens": Metric(
        "logit lens", "↑", "0 to 1", "near 1; the target has 0",
        "the same, read from each layer by the target's own head"),
    "comes_back": Metric(
        "comes back?", "↓", "0 to 1", "near 0",
        "largest share of what the target knew, beyond a model that never knew, that an attack finds (`stress`); "
        "1 where it is only suppressed",
        "forget"),
    **{
        f"comes_back_{attack}": Metric(
            f"comes back? ({attack})", "↓", "0 to 1", "near 0",
            f"the same by {attack} alone, in the setting that finds most (`stress`)")
        for attack in ("relearning", "quantization", "sampling", "wording", "reasoning", "membership")
    },
    "kl_unlearned": Metric(
        "KL from retrained", "↓", "0 and up, nats", "near 0, below the target's",
        "mean KL(retrained model ‖ this model) of the next token over the forget answers", "forget"),
    "model_utility": Metric(
        "model utility", "↑", "0 to 1", SAME,
        "harmonic mean of probability, ROUGE-L and truth score on retain, real authors and world facts", "retain"),
    "retain_probability": Metric(
        "retain probability", "↑", "0 to 1", SAME,
        "length-normalised probability of the answers that are to stay", "retain"),
    "retain_rouge_l_recall": Metric(
        "retain ROUGE-L", "↑", "0 to 1", SAME, "share of the answer's words generated, in order", "retain"),
    "retain_truth_ratio": Metric(
        "retain truth ratio", "↓", "0 and up", SAME,
        "under 1 where right answers are likelier than wrong ones; median", "retain"),
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
        "retain truth score", "↑", "0 to 1", SAME, "max(0, 1 − truth ratio), a term of model utility"),
    **{
        f"{name}_{key}": Metric(f"{words} {label}", hint, span, SAME, what)
        for name, words in {"real_authors": "real authors", "world_facts": "world facts"}.items()
        for key, label, hint, span, what in (
            ("probability", "probability", "↑", "0 to 1", "the right choice's share of all choices' probability"),
            ("rouge_l_recall", "ROUGE-L", "↑", "0 to 1", "share of the answer's words generated, in order"),
            ("truth_ratio", "truth ratio", "↓", "0 and up", "wrong answers' probability over the right one's; median"),
            ("truth_score", "truth score", "↑", "0 to 1", "max(0, 1 − truth ratio), a term of model utility"),
        )
    },
    "forget_extraction_strength": Metric(
        "extraction strength", "↓", "0 to 1", GOAL, "share of an answer that follows from its beginning alone"),
    "forget_exact_memorization": Metric(
        "exact memorisation", "↓", "0 to 1", GOAL, "share of the answer's tokens that are the model's first guess"),
    "general": Metric(
        "general questions", "↑", "0 to 1", SAME, "share of 60 questions of general knowledge answered rightly",
        "retain"),
    "mmlu": Metric("MMLU", "↑", "0 to 1", SAME, "share of multiple-choice questions answered rightly", "retain"),
    **{
        f"membership_{attack}{side}": Metric(f"{label}{words}{end}", hint, span, good, f"{what} {words}", "membership")
        for attack, words in (("loss", "loss"), ("zlib", "loss by size"), ("zlib_sum", "summed loss by size"),
                              ("min_k", "min-k %"), ("min_k_plus_plus", "min-k++"),
                              ("min_k_plus_plus_20", "min-k++, k = .2"))
        for side, label, end, hint, span, good, what in (
            ("", "membership (", ")", "≈", "0 to 1", f"{GOAL}; .5 where that is not known",
             "AUC of telling forget texts from others by"),
            ("_fm", "FM score (", ")", "≈", "up to 0; min-k++: any", GOAL,
             "mean over the forget texts (forget members) of the score by"),
            ("_rm", "RM score (", ")", "≈", "up to 0; min-k++: any", SAME,
             "mean over texts about others (retain members) of the score by"))
    },
}  # fmt: skip

SIDE_TABLES = {"attacks": "Adversarial questions by kind", "membership": "Membership inference", "ability": "Abilities"}
"""Groups of metrics that have a table of their own below the main one."""


@dataclass(frozen=True)
class Axes:
    """The metrics that stand for a benchmark where there is room for one: the first that a run has is drawn.

    `forget` and `retain` are the axes of the trade-off and what a utility budget keeps; `near`, in an overview of
    several splits, is what is like the forget rows and stays. A benchmark without such metrics shows the usual ones.
    """

    forget: Sequence[str] = ()
    retain: Sequence[str] = ()
    near: Sequence[str] = ()


METRICS: dict[str, Metric] = dict(_OURS)
"""Every metric that is known, in the order of tables; benchmarks and metrics elsewhere join by `declare`."""
RETAIN_AXES = ["retain_probability", "model_utility", "retain_rouge_l_recall"]
FORGET_AXES = ["forget_quality", "forget_probability", "forget_rouge_l_recall"]
OVERVIEW_AXES = (
    ["forget_rouge_l_recall", "forget_probability", "membership_loss"],
    ["retain_rouge_l_recall", "retain_probability"],
    ["mmlu"],
)
"""Groups of metrics: forgotten, near it and kept, general ability. An overview of splits shows the first of each."""


def declare(metrics: Mapping[str, Metric], axes: Axes | None = None) -> None:
    """Add metrics of a benchmark or of a user's own; a name that is known keeps its meaning.

    In tables, those of the group "forget" stand behind degeneration and all others before MMLU.
    """
    new = {name: metric for name, metric in metrics.items() if name not in METRICS}
    _insert({name: metric for name, metric in new.items() if metric.group == "forget"}, "privleak")
    _insert({name: metric for name, metric in new.items() if metric.group != "forget"}, "mmlu")
    if axes is not None:
        FORGET_AXES.extend(name for name in axes.forget if name not in FORGET_AXES)
        RETAIN_AXES.extend(name for name in axes.retain if name not in RETAIN_AXES)
        gone, near, _ = OVERVIEW_AXES
        gone[:0] = [name for name in axes.forget if name not in gone]
        near[:0] = [name for name in (*axes.near, *axes.retain) if name not in near]


def as_json(metrics: Mapping[str, Metric], axes: Axes) -> dict[str, Any]:
    """Declarations as a row of results holds them, for who reads it without the package that declares them."""
    return {"metrics": {name: metric._asdict() for name, metric in metrics.items()}, "axes": asdict(axes)}


def of_json(tree: Any) -> tuple[dict[str, Metric], Axes]:
    """(metrics, axes) that `as_json` wrote. Raises `ValueError` for anything else."""
    match tree:
        case {"metrics": dict(metrics), "axes": {"forget": list(forget), "retain": list(retain), "near": list(near)}}:
            texts = [*forget, *retain, *near, *(v for m in metrics.values() if isinstance(m, dict) for v in m.values())]
            if all(isinstance(text, str) for text in texts):
                try:
                    return {name: Metric(**metric) for name, metric in metrics.items()}, Axes(forget, retain, near)
                except TypeError:
                    pass
    raise ValueError("declarations must hold metrics and axes")


def _insert(new: Mapping[str, Metric], before: str) -> None:
    """Put metrics before another one, and leave the dictionary the same object."""
    names = list(METRICS)
    later = {name: METRICS.pop(name) for name in names[names.index(before) :]}
    METRICS.update({**new, **later})


def metric_named(name: str) -> Metric:
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


def main_metrics(names: Iterable[str], *groups: str) -> list[str]:
    """Those of the metrics `names` that belong to the main table, group by group; with several, those of both last."""
    names, groups = set(names), (*groups, "both") if len(groups) > 1 else groups
    return [n for g in groups for n, m in METRICS.items() if n in names and m.group == g]
