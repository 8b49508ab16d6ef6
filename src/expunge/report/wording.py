"""The answers of a verdict → words for who knows no statistics: one or two short sentences each."""

from collections.abc import Iterator, Sequence

from expunge.evals.glossary import metric_named, show
from expunge.report.comparison import GENERATED, KEEP, ReportSection
from expunge.report.harm import GENERAL, Damage, Kept
from expunge.report.judgement import Certainty, Forgotten, Judgement, Measure
from expunge.report.stress import ATTACKED
from expunge.stress.options import AttackName

QUESTIONS = {
    "forgotten": "Is it forgotten?",
    "damage": "What else was damaged?",
    "removal": "Is it gone from the weights?",
    "returns": "Would it come back?",
    "certainty": "How sure is this?",
    "next": "What next?",
}
SETS = {
    "retain": "the answers that should stay",
    "held_out": "answers of the same kind that training never saw",
    "real_authors": "answers about real authors",
    "world_facts": "answers about the world",
    "neighbors": "answers about neighbours",
    "neighbor_all": "answers about neighbours",
    "knowmem_r": "the answers that should stay",
    "model_utility": "what it can do beside (model utility)",
    GENERAL: "general questions",
}
"""The name of a set of questions that should stay, in a sentence."""
BEFORE: dict[AttackName, str] = {"membership": "in the mean of six scores"}
"""The mildest form of an attack, where that is not to ask as usual."""
WHOSE = {"retrained": "a model that never saw them", "goal": "answers that it cannot know"}


def forgotten_words(found: Forgotten) -> tuple[str, str]:
    """(answer, why)."""
    match found.why:
        case "suppressed":
            return "No", f"It is only hidden in use: the weights still hold it. {_numbers(found)}"
        case "not measured":
            return "Cannot be told", "Nothing about the forget rows was measured."
        case "never known":
            return (
                "Cannot be told",
                f"The model hardly knew these answers before: there was little to forget. {_numbers(found)}",
            )
        case "broken text":
            return "Cannot be told", "Its answers are broken text. Who cannot speak may still know."
        case "how low is not known":
            low = "It is not known how low is low enough: no model that never saw the rows is there to compare with."
            return "Cannot be told", f"{_numbers(found)} {low}"
        case _:
            return found.state.capitalize(), " ".join((_numbers(found), *_beside(found)))


def damage_words(found: Damage) -> tuple[str, str]:
    """(answer, what is left of each set that lost something, and broken text)."""
    heads = {"none": "Hardly anything", "little": "A little", "much": "Much", "most": "Very much"}
    if not found.kept and found.state == "not known":
        return "Not known", "What should stay was not measured both before and after."
    lost = [k for k in found.kept if k.extent not in ("none", "not known")]
    shown = lost or [k for k in found.kept if k.of != GENERAL and k.before > 0][:1]
    shown += [k for k in found.kept if k.of == GENERAL and k not in shown]
    words = [_kept(k) for k in shown]
    words += [f"Of {SETS.get(k.of, k.metric)} it had none right before." for k in found.kept if k.before <= 0]
    return heads.get(found.state, "Not known"), " ".join([*words, *_broken(found)])


def removal_words(judgement: Judgement) -> tuple[str, str]:
    if not judgement.unlearned:
        return "Not known", "This model was measured as it is; nothing was removed here."
    match judgement.removal:
        case "weights":
            how = "by attacks as well" if judgement.returns.attacks else "by asking, not by an attack"
            return "The weights were changed", f"What is left in them was looked for {how}."
        case "inference":
            return "No, only suppressed", "The weights still hold it, and who has the files can bring it out."
        case _:
            return "Not known", "These results do not say how the method works."


def returns_words(judgement: Judgement) -> tuple[str, str]:
    found, worst = judgement.returns, judgement.returns.worst
    if worst is None and judgement.unlearned and judgement.removal == "inference":
        return "Yes", "Whoever has the files takes the assistant off, and has the model from before."
    if worst is None:
        tries = "this was not tried (expunge stress tries it)."
        return "Not tested", f"Further training or compressing the model can bring answers back; {tries}"
    heads = {"yes": "Yes", "partly": "Partly", "no": "Hardly", "cannot be told": "Cannot be told"}
    never = (
        "a model that never knew them" if worst.control else "nothing at all, since no model that never knew was there"
    )
    words = (
        f"{ATTACKED[worst.attack]}, it shows {round(100 * worst.after)} % of what it knew before unlearning "
        f"({round(100 * worst.before)} % {BEFORE.get(worst.attack, 'without')}), counted from {never}."
    )
    tried = list(dict.fromkeys(each.attack for each in found.attacks))
    return heads[found.state], f"{words} Tried: {', '.join(tried)}."


def returns_cell(judgement: Judgement) -> str:
    """The answer, and how much of what it knew before comes back where that was tried."""
    answer, worst = returns_words(judgement)[0], judgement.returns.worst
    if worst is None:
        return f"{answer}, all" if answer == "Yes" else answer
    return f"{answer}, {round(100 * worst.after)} %"


def certainty_words(found: Certainty) -> tuple[str, str]:
    heads = {"well": "Fairly sure", "roughly": "Roughly", "poorly": "Not very", "not known": "Not known"}
    runs = "one run" if found.seeds == 1 else f"{found.seeds} runs with different seeds"
    if found.questions is None:
        return heads[found.state], f"It is from {runs}; how many questions were asked is not known here."
    asked = f"{found.questions} question{'' if found.questions == 1 else 's'} about the forget rows and {runs}"
    if found.name is None or found.low is None:
        return heads[found.state], f"It rests on {asked}, too few to tell chance from fact."
    low, high = (percent(found.name, x) for x in (found.low, found.high))
    span = f"{low.removesuffix(' %')} to {high}" if low.endswith(" %") else f"{low} to {high}"
    about = f"With other questions of this kind, {_unit(found.name)} could lie anywhere from {span}."
    return heads[found.state], f"It rests on {asked}. {about}"


def ranking_words(section: ReportSection) -> str:
    """The one ranking by which a method is best, in a line."""
    best = "Best: the one that forgets most of those that change the weights"
    if section.keep is None:
        return f"{best}."
    label, stay = metric_named(section.keep).label, "the answers that should stay"
    known = {GENERATED: f"what the target says of {stay}", "retain_probability": f"how likely the target finds {stay}"}
    of = f"{known[section.keep]} ({label})" if section.keep in known else f"the target's {label}"
    return f"{best}, keep {round(100 * KEEP)} % of {of} and write whole text."


def spaced(text: str) -> str:
    """The text with its numbers and their per cent on one line."""
    return text.replace(" %", "\u00a0%")


def _numbers(found: Forgotten) -> str:
    """A sentence on the words that the model says and finds likely, now and before."""
    return " ".join(_measured(m, found, first=k == 0) for k, m in enumerate(found.measures))


def _measured(measure: Measure, found: Forgotten, *, first: bool) -> str:
    name = measure.name
    beside = [] if measure.before is None else [f"{percent(name, measure.before)} before"]
    if measure.goal is not None:
        beside.append(f"{WHOSE[found.against]}: {percent(name, measure.goal)}{' at most' * (found.against == 'goal')}")
    more = f" ({'; '.join(beside)})" if beside else ""
    value = percent(name, measure.value)
    match name:
        case "forget_rouge_l_recall":
            return f"Asked, it says {value} of the words of the forget answers{more}."
        case "forget_probability":
            return f"It finds the forget answers {value} likely{more}."
        case _:
            return f"Its {metric_named(name).label} is {value}{more}."


def _beside(found: Forgotten) -> Iterator[str]:
    if all(m.before is None for m in found.measures):
        yield "What it knew before is not known here."
    if found.against == "retrained" and any(m.past for m in found.measures):
        yield "That is so far below a model that never saw them that the removal itself shows."


def _kept(kept: Kept) -> str:
    called = SETS.get(kept.of, f"{kept.of.replace('_', ' ')} answers")
    if kept.of == GENERAL and kept.asked:
        was, now = (round(x * kept.asked) for x in (kept.before, kept.after))
        return f"Of {kept.asked} general questions {was} were right before, {now} {'is' if now == 1 else 'are'} after."
    was, now = (percent(kept.metric, x) for x in (kept.before, kept.after))
    if kept.metric.endswith("_probability"):
        return f"{called[0].upper()}{called[1:]} are {now} likely to it ({was} before)."
    if not kept.metric.endswith("_rouge_l_recall"):
        return f"{called[0].upper()}{called[1:]}: {now} ({was} before)."
    worse = f"; {len(kept.rows)} of {kept.asked} got clearly worse" if kept.asked and kept.rows else ""
    return f"Of {called} it says {now} of the words ({was} before{worse})."


def _broken(found: Damage) -> Iterator[str]:
    if not found.broken or found.broken <= (found.usual or 0.0):
        return
    usual = "" if found.usual is None else f" ({percent('degeneration', found.usual)} before)"
    yield f"{percent('degeneration', found.broken)} of its answers to forget questions are broken text{usual}."


def _unit(name: str) -> str:
    """A forget metric inside a sentence."""
    usual = {"forget_rouge_l_recall": "the share of the words", "forget_probability": "how likely the answers are"}
    return usual.get(name, metric_named(name).label)


def percent(name: str, value: float | None) -> str:
    """A share as people say it; what is no share as the tables have it."""
    if value is None or abs(value) > 1:
        return show(name, value)
    whole = round(100 * value)
    if whole == 0 and value > 0:
        return "under 1 %"
    return "over 99 %" if whole == 100 and value < 1 else f"{whole} %"


def and_(words: Sequence[str]) -> str:
    """The words as a list in a sentence."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
