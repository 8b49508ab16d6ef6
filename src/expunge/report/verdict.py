"""A comparison's numbers → one paragraph of plain words.

The best method is the one that forgets best among those that keep at least 80 % of the target's retain metric and do
not answer in broken text.
"""

from collections.abc import Iterator, Sequence

from expunge.evals.glossary import FORGET_AXES, METRICS, RETAIN_AXES, show
from expunge.report.comparison import LEVEL, ROLES, Entry, ReportSection

CLEAR = 0.3
"""Forget probability from which on a model plainly knows the answers."""
UNMOVED = 0.9
"""Share of it that, left after unlearning, is next to all."""


def verdict(section: ReportSection) -> str:
    """Who forgets best while keeping the rest, who collapsed or talks nonsense, and what is not known."""
    if not section.methods:
        return "Only reference models were evaluated here; no method has been run, so there is nothing to compare."
    keep, aim = section.axis(RETAIN_AXES), section.axis(FORGET_AXES)
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
        yield f"(forget quality {show(aim, quality)}): it had nothing to forget, and what follows says little."
        return
    known = target.value("forget_probability") if target else None
    if known is not None and known < CLEAR:
        yield f"The target hardly knew the forget answers (probability {show('forget_probability', known)}), so what"
        yield "follows says little; one that was trained here wants more finetune.epochs."


def _unmoved(section: ReportSection) -> Iterator[str]:
    """Methods after which the forget answers are nearly as probable as before: usually too few or too small steps."""
    target, name = section.reference("target"), "forget_probability"
    before = target.value(name) if target else None
    if before is None or before < CLEAR:
        return
    still = [e for e in section.methods if (e.value(name) or 0.0) >= UNMOVED * before]
    if still:
        values = _and([show(name, e.value(name)) for e in still])
        yield f"{_and([e.label for e in still])} forgot next to nothing (forget probability {values}, before"
        yield f"{show(name, before)}): raise train.learning_rate or train.num_train_epochs."


def _best(section: ReportSection, keep: str, aim: str) -> Iterator[str]:
    measured = [e for e in section.methods if e.values(keep) and e.values(aim)]
    if not measured:
        yield "No method has both a forget and a retain metric, so none can be judged."
        return
    base = next((e for r in ROLES[:2] if (e := section.reference(r)) and e.value(keep)), None)
    many, keepers = len(measured), [e for e in section.keepers() if e in measured]
    if base is None:
        best = max(measured, key=section.score)
        yield f"{best.label} forgets best ({_numbers(best, aim, keep)})."
        yield "How much it kept is not known: these results have no row for the target."
    else:
        owner = "the target's" if base.role == "target" else "the retrained model's"
        whole = f"80 % of {owner} {METRICS[keep].label}"
        if not keepers:
            best = max(measured, key=lambda e: section.kept(e) or 0.0)
            nearest = f"{show(keep, best.value(keep))} of {show(keep, base.value(keep))} is left"
            if many == 1:
                yield f"{best.label} does not keep {whole}: {nearest}, at a {_numbers(best, aim, verb=' of')}."
            else:
                yield f"None of the {many} methods keeps {whole}."
                yield f"{best.label} comes nearest: {nearest}, at a {_numbers(best, aim, verb=' of')}."
        elif len(keepers) == 1:
            best = keepers[0]
            who = best.label if many == 1 else f"Of {many} methods, only {best.label}"
            share = f"({show(keep, best.value(keep))} of {show(keep, base.value(keep))})"
            yield f"{who} keeps at least {whole} {share}, at a {_numbers(best, aim, verb=' of')}."
        else:
            best = keepers[0]
            everyone = "Both methods" if many == 2 else f"All {many} methods"
            who = everyone if len(keepers) == many else f"Of {many} methods, {len(keepers)}"
            forgets = f"{best.label} forgets best ({_numbers(best, aim, keep)})"
            whose = "them" if section.score(best) == max(map(section.score, keepers)) else "those with unbroken text"
            yield f"{who} keep at least {whole} ({show(keep, base.value(keep))}); among {whose} {forgets}."
    yield from _against_retrained(section, best, aim)
    if best.inference:
        yield f"{best.label} acts at inference only: the weights still hold what it suppresses."
        other = next((e for e in keepers if not e.inference), None)
        if other:
            better = any(section.score(e) > section.score(other) for e in keepers if not e.inference)
            whose = " and whose text is not broken" if better else ""
            yield f"Of the methods that change the weights{whose}, {other.label} forgets best"
            yield f"({_numbers(other, aim, keep)})."


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
        who, left = _and([e.label for e in collapsed]), _and([show(keep, e.value(keep)) for e in collapsed])
        says = f"{who} collapsed: less than half of the {METRICS[keep].label} is left ({left})"
        fooled = [e for e in collapsed if aim == "forget_quality" and (e.value(aim) or 0.0) >= LEVEL]
        if fooled:
            good = _and([f"{show(aim, e.value(aim))} of {e.label}" for e in fooled])
            says += f", so the forget quality of {good} says nothing about forgetting"
        yield says + "."
    broken = [e for e in section.methods if section.broken(e)]
    if broken:
        many = _and([f"{e.label} ({round(100 * (e.value('degeneration') or 0.0))} %)" for e in broken])
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


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
