"""A comparison's numbers → one paragraph of plain words.

Knows which sentence follows from which numbers, and says what cannot be known from them. Knows nothing of files or pages.
The best method is the one that forgets best among those that keep at least 80 % of the target's retain metric.
"""

from collections.abc import Iterator, Sequence

from expunge.report.comparison import BROKEN, FORGET_AXES, KEEP, LEVEL, METRICS, RETAIN_AXES, Entry, Section, show


def verdict(section: Section) -> str:
    """Who forgets best while keeping the rest, who collapsed or talks nonsense, and what is not known."""
    if not section.methods:
        return "Only reference models were evaluated here; no method has been run, so there is nothing to compare."
    keep, aim = section.axis(RETAIN_AXES), section.axis(FORGET_AXES)
    if keep is None or aim is None:
        side = "retain" if keep is None else "forget"
        return f"The methods cannot be judged: these results hold no metric of the {side} set."
    sentences = [*_best(section, keep, aim), *_failed(section, keep, aim), *_unknown(section, aim)]
    return " ".join(s[0].upper() + s[1:] if s.startswith(("all", "only", "none", "of ")) else s for s in sentences)


def _best(section: Section, keep: str, aim: str) -> Iterator[str]:
    measured = [e for e in section.methods if e.values(keep) and e.values(aim)]
    base = next((e for e in (section.reference("target"), section.reference("retrained")) if e and e.value(keep)), None)
    if not measured:
        yield "no method has both a forget and a retain metric, so none can be judged."
        return
    if base is None:
        best = max(measured, key=section.score)
        yield f"{best.label} forgets best ({_numbers(best, aim, keep)}){_judged(section, best, aim)}."
        yield "How much was kept is not known, since the results have no row for the target."
        return
    owner = "the target's" if base.role == "target" else "the retrained model's"
    whose = f"80 % of {owner} {METRICS[keep].label} ({show(keep, base.value(keep))})"
    keepers = [e for e in section.keepers() if e in measured]
    if not keepers:
        near = max(measured, key=lambda e: section.kept(e) or 0.0)
        if len(measured) == 1:
            yield f"{near.label} does not keep {whose}: {_numbers(near, keep, aim)}."
        else:
            yield f"none of the {len(measured)} methods keeps {whose}; {near.label} comes nearest ({_numbers(near, keep, aim)})."
        return
    best = keepers[0]
    result = f"({_numbers(best, aim, keep)}){_judged(section, best, aim)}."
    if len(measured) == 1:
        yield f"{best.label} keeps at least {whose} {result}"
    elif len(keepers) == 1:
        yield f"of {len(measured)} methods, only {best.label} keeps at least {whose} {result}"
    else:
        many = f"all {len(measured)}" if len(keepers) == len(measured) else f"of {len(measured)} methods, {len(keepers)}"
        noun = " methods" if len(keepers) == len(measured) else ""
        yield f"{many}{noun} keep at least {whose}; among them {best.label} forgets best {result}"
    if best.inference:
        yield f"{best.label} acts at inference only: the weights still hold what it suppresses."
        other = next((e for e in keepers if not e.inference), None)
        if other:
            yield f"Of the methods that change the weights, {other.label} forgets best ({_numbers(other, aim, keep)})."


def _failed(section: Section, keep: str, aim: str) -> Iterator[str]:
    collapsed = [e for e in section.methods if section.collapsed(e)]
    if collapsed:
        left = _and([show(keep, e.value(keep)) for e in collapsed])
        says = f"{_and([e.label for e in collapsed])} collapsed: less than half of the {METRICS[keep].label} is left ({left})"
        fooled = [e for e in collapsed if aim == "forget_quality" and (e.value(aim) or 0.0) >= LEVEL]
        if fooled:
            good = _and([show(aim, e.value(aim)) for e in fooled])
            says += f", so a forget quality of {good} there says nothing about forgetting"
        yield says + "."
    usual = max((e.value("degeneration") or 0.0 for e in section.entries if e.role != "method"), default=0.0)
    broken = [e for e in section.methods if (e.value("degeneration") or 0.0) >= max(BROKEN, usual + 0.1)]
    if broken:
        many = _and([f"{e.label} ({round(100 * (e.value('degeneration') or 0.0))} %)" for e in broken])
        yield f"Forgetting shows as broken text in the forget answers of {many}."


def _unknown(section: Section, aim: str) -> Iterator[str]:
    if section.reference("retrained") is None:
        if aim == "forget_quality":
            yield "There is no row for the retrained model, so how far its other metrics are away is not known."
        else:
            yield (f"No retrained model was given, so forget quality is not known, and neither is how low the"
                   f" {METRICS[aim].label} ought to be: a model that never saw the answers gives them some, too.")
    elif aim != "forget_quality":
        yield f"Forget quality was not measured; {METRICS[aim].label} stands in for it, nearest to the retrained model's is best."
    count = len(section.seeds)
    yield "All of this is one seed's." if count == 1 else f"Numbers are medians over {count} seeds."


def _numbers(entry: Entry, *names: str) -> str:
    return ", ".join(f"{METRICS[n].label} {show(n, entry.value(n))}" for n in names)


def _judged(section: Section, entry: Entry, aim: str) -> str:
    retrained = section.reference("retrained")
    if aim != "forget_quality":
        goal = retrained.value(aim) if retrained else None
        return f"; the retrained model's {METRICS[aim].label} is {show(aim, goal)}" if goal is not None else ""
    if (entry.value(aim) or 0.0) >= LEVEL:
        return ": on the forget set, a KS test cannot tell it from the retrained model (p ≥ .05)"
    says = ": a KS test on the forget set still tells it from the retrained model (p < .05)"
    mine, goal = entry.value("forget_probability"), retrained.value("forget_probability") if retrained else None
    if mine is None or goal is None:
        return says
    far = "has not fallen to" if mine > goal else "has fallen past"
    return f"{says}; its forget probability ({show('', mine)}) {far} that model's ({show('', goal)})"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
