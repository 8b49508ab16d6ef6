"""A comparison's numbers → one paragraph in the words of the field, below the answers of `box`.

The best method is the first of `ReportSection.ranked`.
"""

from collections.abc import Iterator

from expunge.evals.glossary import FORGET_AXES, METRICS, show
from expunge.report.comparison import LEVEL, Entry, ReportSection
from expunge.report.wording import and_

CLEAR = 0.3
"""Forget probability from which on a model plainly knows the answers."""
UNMOVED = 0.9
"""Share of it that, left after unlearning, is next to all."""


def verdict(section: ReportSection) -> str:
    """Who forgets best while keeping the rest, who collapsed or talks nonsense, and what is not known."""
    if not section.methods:
        return "Only reference models were evaluated here; no method has been run, so there is nothing to compare."
    keep, aim = section.keep, section.axis(FORGET_AXES)
    if keep is None or aim is None:
        side = "retain" if keep is None else "forget"
        return f"The methods cannot be judged: these results hold no metric of the {side} set."
    sentences = [
        *_pointless(section, aim),
        *_unmoved(section),
        *_best(section, keep, aim),
        *_failed(section, keep, aim),
        *_unknown(section, aim),
    ]
    return " ".join(sentences).replace(" %", "\u00a0%")


def _pointless(section: ReportSection, aim: str) -> Iterator[str]:
    """Nothing can be learned from forgetting what was never known."""
    target = section.reference("target")
    quality = target.value(aim) if target and aim == "forget_quality" else None
    if quality is not None and quality >= LEVEL:
        yield "The target itself, before unlearning, cannot be told from the retrained model"
        seen = section.reference("retrained")
        known, without = (e.value("forget_probability") if e else None for e in (target, seen))
        if known is not None and without is not None and known >= max(CLEAR, 2 * without):
            yield f"by the KS test of so few questions (forget quality {show(aim, quality)}), though its forget"
            yield f"probability ({show('', known)}) is far from that model's ({show('', without)}): look at that."
        else:
            yield f"(forget quality {show(aim, quality)}): it had nothing to forget, and what follows says little."
        return
    known = target.value("forget_probability") if target else None
    if known is not None and known < CLEAR:
        yield f"The target hardly knew the forget answers (probability {show('forget_probability', known)}), so what"
        yield "follows says little."


def _unmoved(section: ReportSection) -> Iterator[str]:
    """Methods after which the forget answers are nearly as probable as before: usually too few or too small steps."""
    target, name = section.reference("target"), "forget_probability"
    before = target.value(name) if target else None
    if before is None or before < CLEAR:
        return
    still = [e for e in section.methods if (e.value(name) or 0.0) >= UNMOVED * before]
    if still:
        values = and_([show(name, e.value(name)) for e in still])
        yield f"{and_([e.label for e in still])} forgot next to nothing (forget probability {values}, before"
        yield f"{show(name, before)}): raise train.learning_rate or train.num_train_epochs."


def _best(section: ReportSection, keep: str, aim: str) -> Iterator[str]:
    measured = [e for e in section.methods if e.values(keep) and e.values(aim)]
    if not measured:
        yield "No method has both a forget and a retain metric, so none can be judged."
        return
    base = section.base
    many, keepers = len(measured), [e for e in section.keepers() if e in measured]
    best = next(e for e in section.ranked() if e in measured)
    if base is None or not base.value(keep):
        lacking = "these results have no row for the target"
        if base is not None:
            lacking = f"the {METRICS[keep].label} was 0 before"
        yield f"{best.label} forgets best ({_numbers(best, aim, keep)})."
        yield f"How much it kept is not known: {lacking}."
    else:
        owner = "the target's" if base.role == "target" else "the retrained model's"
        whole = f"80 % of {owner} {METRICS[keep].label}"
        if not keepers:
            nearest = f"{_of(keep, best, base)} is left"
            if many == 1:
                yield f"{best.label} does not keep {whole}: {nearest}, at a {_numbers(best, aim, verb=' of')}."
            else:
                yield f"None of the {many} methods keeps {whole}."
                yield f"{best.label} comes nearest: {nearest}, at a {_numbers(best, aim, verb=' of')}."
        elif len(keepers) == 1:
            who = best.label if many == 1 else f"Of {many} methods, only {best.label}"
            yield f"{who} keeps at least {whole} ({_of(keep, best, base)}), at a {_numbers(best, aim, verb=' of')}."
        else:
            everyone = "Both methods" if many == 2 else f"All {many} methods"
            who = everyone if len(keepers) == many else f"Of {many} methods, {len(keepers)}"
            forgets = f"{_among(section, best)} {best.label} forgets best ({_numbers(best, aim, keep)})"
            yield f"{who} keep at least {whole} ({show(keep, base.value(keep))}); among {forgets}."
    yield from _against_retrained(section, best, aim)
    hidden = [e for e in measured if e.inference]
    if hidden:
        act = "acts" if len(hidden) == 1 else "act"
        yield f"{and_([e.label for e in hidden])} {act} at inference only: the weights still hold what is suppressed"
        yield f"({and_([_numbers(e, aim) for e in hidden])})."


def _of(keep: str, entry: Entry, base: Entry) -> str:
    """The rest of a metric, in words where a rounded number would say nothing."""
    value, before = show(keep, entry.value(keep)), show(keep, base.value(keep))
    return f"{'next to nothing' if value == show(keep, 0.0) else value} of {before}"


def _among(section: ReportSection, best: Entry) -> str:
    """Those among whom `best` is the best, which others that keep enough may beat in the forget metric alone."""
    better = [e for e in section.keepers() if section.score(e) > section.score(best)]
    whose = ["that change the weights"] if any(e.inference for e in better) and not best.inference else []
    whose += ["with unbroken text"] if any(e.inference <= best.inference for e in better) else []
    return f"those {' and '.join(whose)}" if whose else "them"


def _against_retrained(section: ReportSection, entry: Entry, aim: str) -> Iterator[str]:
    retrained = section.reference("retrained")
    if aim != "forget_quality":
        if retrained and retrained.values(aim):
            yield f"The retrained model's {_numbers(retrained, aim, verb=' is')}."
    elif (entry.value(aim) or 0.0) >= LEVEL:
        yield f"On the forget set, a KS test cannot tell {entry.label} from the retrained model (p ≥ .05)."
    else:
        says = f"On the forget set, a KS test still tells {entry.label} from the retrained model (p < .05)"
        mine, goal = (e.value("forget_probability") if e else None for e in (entry, retrained))
        if mine is not None and goal is not None:
            far = "has not fallen to" if mine > goal else "has fallen past"
            says += f": its forget probability ({show('', mine)}) {far} that model's ({show('', goal)})"
        yield says + "."


def _failed(section: ReportSection, keep: str, aim: str) -> Iterator[str]:
    collapsed = [e for e in section.methods if section.collapsed(e)]
    if collapsed:
        who, left = and_([e.label for e in collapsed]), and_([show(keep, e.value(keep)) for e in collapsed])
        says = f"{who} collapsed: less than half of the {METRICS[keep].label} is left ({left})"
        fooled = [e for e in collapsed if aim == "forget_quality" and (e.value(aim) or 0.0) >= LEVEL]
        if fooled:
            good = and_([f"{show(aim, e.value(aim))} of {e.label}" for e in fooled])
            says += f", so the forget quality of {good} says nothing about forgetting"
        yield says + "."
    broken = [e for e in section.methods if section.broken(e)]
    if broken:
        many = and_([f"{e.label} ({round(100 * (e.value('degeneration') or 0.0))} %)" for e in broken])
        target = section.reference("target")
        usual = target.value("degeneration") if target else None
        beside = "" if usual is None else f"; the target's are broken in {round(100 * usual)} %"
        yield f"Forgetting shows as broken text in the forget answers of {many}{beside}."


def _unknown(section: ReportSection, aim: str) -> Iterator[str]:
    if section.reference("retrained") is None and aim != "forget_quality":
        yield "No retrained model was given (--retrained PATH), so forget quality is not known."
        yield f"Nor is how low the {METRICS[aim].label} ought to be: who never saw the answers gets some right, too."
    elif aim != "forget_quality":
        why = ""
        if aim == "forget_probability" and not any(e.values("forget_truth_ratio") for e in section.methods):
            why = ", since the forget questions have no wrong answers (--augment FILE gives your own rows some)"
        best = f"best is the {METRICS[aim].label} nearest to the retrained model's"
        yield f"Forget quality was not measured{why}: {best}."
    count = len(section.seeds)
    yield "All numbers are from one seed." if count == 1 else f"Numbers are medians over {count} seeds."


def _numbers(entry: Entry, *names: str, verb: str = "") -> str:
    return ", ".join(f"{METRICS[n].label}{verb} {show(n, entry.value(n))}" for n in names)
