"""Probes of a benchmark beside TOFU's questions: texts to continue, choices to make, texts to recognise."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

from expunge.data.augment import parts
from expunge.data.benchmark import Choices, Comparison, Continuations, Membership, Probe, Row
from expunge.data.encode import Encoded, decoded, encode_rows, shortened
from expunge.errors import UserError
from expunge.evals import membership, requests
from expunge.evals import metrics as m
from expunge.evals.degeneration import Generated, Prompts, Usual, before, judge
from expunge.evals.requests import Generation, Score
from expunge.modeling.causal import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Record = dict[str, Any]

COMPARE: dict[Comparison, Callable[[str, list[str]], float]] = {
    "rouge_l_recall": lambda text, answers: max(m.rouge_l_recall(text, a) for a in answers),
    "rouge_l_f1": lambda text, answers: max(m.rouge_l_f1(text, a) for a in answers),
    "rouge_l_f1_stemmed": lambda text, answers: max(m.rouge_l_f1(text, a, stem=True) for a in answers),
    "rwku_rouge_l_recall": lambda text, answers: max(m.rwku_rouge_l_recall(text, a) for a in answers),
    "token_f1": lambda text, answers: max(m.token_f1(text, a) for a in answers),
    "exact_match": lambda text, answers: max(m.exact_match(text, a) for a in answers),
    "rwku_exact_match": lambda text, answers: max(m.rwku_exact_match(text, a) for a in answers),
    "states": lambda text, answers: max(m.states(text, a) for a in answers),
    "entropy": lambda text, _answers: m.ngram_entropy(text),
}

ATTACKS: dict[str, Callable[[Score, str], float]] = {
    "loss": lambda s, _text: membership.loss_score(s.logps),
    "zlib": lambda s, text: membership.zlib_score(s.logps, text),
    "zlib_sum": lambda s, text: membership.zlib_sum_score(s.logps, text),
    "min_k": lambda s, _text: membership.min_k_score(s.logps),
    "min_k_plus_plus": lambda s, _text: _min_k_plus_plus(s, 0.4),
    "min_k_plus_plus_20": lambda s, _text: _min_k_plus_plus(s, 0.2),
}
"""Membership inference that one forward is enough for."""


def evaluate_probes(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    probes: Sequence[Probe],
    *,
    retrained_records: Mapping[str, Sequence[Record]] | None = None,
    generate: bool = True,
    limit: int | None = None,
    usual: Usual | None = None,
    progress: bool = True,
) -> tuple[dict[str, float], dict[str, list[Record]]]:
    """(metrics, records by the probe's name), everything scored and generated once.

    - `Continuations`: the mean comparison goes by the probe's name, that of a kind by both (`forget_aa_cloze`), that of
      a pool by the pool's, those beside it by the same and their own ending (`forget_all_stemmed`); `degeneration` is
      the share of broken text among the answers to all that is forgotten, given `usual` also to the target model.
      Without `generate`, `<name>_probability`, the length-normalised probability of the answer, stands in; probes
      whose answers are to be stated in a sentence are left out.
    - `Choices`: accuracy, in [0, 1].
    - `Membership`: `<name>_<attack>`, the AUC of each attack, in [0, 1]. Where the sides have names, the mean score of
      each (`<name>_<attack>_<side>`); else `privleak`, where the retrained model's AUC is known, from
      `retrained_records` or the probe.

    `limit` is the number of rows taken of each probe that need not be asked whole. Raises `UserError` for a prompt
    that does not fit the context, and for a passage to recognise of a single token.
    """
    if not generate:  # the probability of a bare word says nothing about an answer in a sentence
        probes = [p for p in probes if not isinstance(p, Continuations) or p.comparison != "states"]
    probes = [_first(probe, limit) for probe in probes]
    encoded = [_sequences(probe, tokenizer, requests.context_length(model)) for probe in probes]
    scores = iter(requests.score(model, [s for group in encoded for s in group], details=True, progress=progress))
    groups = [list(islice(scores, len(group))) for group in encoded]
    generations = _generate(model, tokenizer, probes, encoded, progress) if generate else {}
    metrics: dict[str, float] = {}
    records: dict[str, list[Record]] = {}
    for probe, group in zip(probes, groups, strict=True):
        match probe:
            case Continuations():
                rows = records[probe.name] = _continued(probe, group, generations.get(probe.name), tokenizer)
                metrics.update(_means(probe, rows, generate))
            case Choices():
                rows = records[probe.name] = _chosen(probe, group)
                metrics[probe.name] = fmean(record["hit"] for record in rows)
            case Membership():
                records[probe.name] = _attacked(probe, group)
                known = (retrained_records or {}).get(probe.name)
                metrics.update(_aucs(probe, records[probe.name], known))
    if generate:
        metrics.update(_pools(probes, records))
        metrics.update(_degeneration(probes, records, usual))
    return metrics, records


def prompts(probes: Sequence[Probe]) -> dict[str, Prompts]:
    """The questions about the forgotten part, by the probe's name."""
    asked = (p for p in probes if isinstance(p, Continuations) and p.forgotten and p.rows)
    return {p.name: Prompts(p.rows, p.tokens, p.stops) for p in asked}


def of_retrained(probes: Sequence[Probe], records: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """The metrics that compare with the retrained model, of that model itself; `records` are its `evaluate_probes`."""
    asked = [probe for probe in probes if isinstance(probe, Membership) and probe.sides is None]
    return {name: x for p in asked for name, x in _aucs(p, records[p.name], records[p.name]) if name == "privleak"}


def _first(probe: Probe, limit: int | None) -> Probe:
    if not isinstance(probe, Choices) and probe.whole:
        return probe
    match probe:
        case Continuations():
            answers = None if probe.answers is None else probe.answers[:limit]
            kinds = None if probe.kinds is None else probe.kinds[:limit]
            return replace(probe, rows=probe.rows[:limit], answers=answers, kinds=kinds)
        case Choices():
            return replace(probe, choices=probe.choices[:limit], right=probe.right[:limit])
        case Membership():
            return replace(probe, members=probe.members[:limit], others=probe.others[:limit])


def _sequences(probe: Probe, tokenizer: "PreTrainedTokenizerBase", context: int) -> list[Encoded]:
    encoded = _encoded(probe, tokenizer, context)
    shorter = f", or {probe.shorter}" if isinstance(probe, Continuations) and probe.shorter else ""
    for i, e in enumerate(encoded):
        if e.start >= context:
            raise UserError(
                f"{probe.name}: question {i} takes {e.start} tokens before its answer and fills the model's context of "
                f"{context}; ask a model with a longer one{shorter}."
            )
    return encoded


def _encoded(probe: Probe, tokenizer: "PreTrainedTokenizerBase", context: int) -> list[Encoded]:
    match probe:
        case Continuations():
            encoded = encode_rows(probe.rows, tokenizer, name=probe.name)
            return [_end_of(e, probe.tokens, context, tokenizer) for e in encoded] if probe.passages else encoded
        case Choices():
            encoded = encode_rows([row for rows in probe.choices for row in rows], tokenizer, name=probe.name)
        case Membership():
            encoded = encode_rows(_rows(probe), tokenizer, name=probe.name)
            for number, e in enumerate(encoded):
                if max(e.start, 1) >= len(e) - 1:
                    raise UserError(f"{probe.name}: a model can't predict anything of text {number}; lengthen it.")
    # The end token is what training adds; a choice or a passage is the text alone.
    return [Encoded(e.input_ids[:-1], e.start) for e in encoded]


def _end_of(encoded: Encoded, tokens: int, context: int, tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    """The passage without as much of its beginning as its continuation, true or generated, needs of the context."""
    return shortened(encoded, context - max(tokens, encoded.supervised), tokenizer)


def _generate(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    probes: Sequence[Probe],
    encoded: Sequence[Sequence[Encoded]],
    progress: bool,
) -> dict[str, list[Generation]]:
    """Greedy continuations of every `Continuations`, those of one length together."""
    generations: dict[str, list[Generation]] = {}
    asked = [(p, group) for p, group in zip(probes, encoded, strict=True) if isinstance(p, Continuations)]
    for tokens in sorted({p.tokens for p, _ in asked}):
        same = [(p.name, [e.input_ids[: e.start] for e in group]) for p, group in asked if p.tokens == tokens]
        flat = [prompt for _, prompts in same for prompt in prompts]
        generated = iter(requests.generate(model, tokenizer, flat, max_new_tokens=tokens, progress=progress))
        generations.update({name: list(islice(generated, len(prompts))) for name, prompts in same})
    return generations


def _continued(
    probe: Continuations,
    scores: Sequence[Score],
    generations: Sequence[Generation] | None,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Record]:
    records: list[Record] = []
    for i, (row, score) in enumerate(zip(probe.rows, scores, strict=True)):
        prompt, answer = parts(row)
        answers = _answers(probe, i, tokenizer)
        text = before(generations[i].text, probe.stops) if generations is not None else None
        compared = (probe.comparison, *probe.beside.values())
        records.append(
            {
                "index": i,
                "question": prompt,
                "answer": answer,
                "probability": m.probability(score.total, score.tokens),
                "generated": text,
                **{name: None if text is None else COMPARE[name](text, answers) for name in compared},
                **({"kind": probe.kinds[i]} if probe.kinds is not None else {}),
            }
        )
    return records


def _answers(probe: Continuations, i: int, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The text that an answer is compared with; of a passage, as MUSE has it, as many tokens as the text may have."""
    answers = probe.answers[i] if probe.answers is not None else [parts(probe.rows[i])[1]]
    if not probe.passages:
        return answers
    cut = [tokenizer(answer).input_ids[: probe.tokens] for answer in answers]
    return [decoded(ids, tokenizer) for ids in cut]


def _pools(probes: Sequence[Probe], records: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """The mean over all rows of the probes of a pool, of each comparison."""
    pools: dict[str, list[float]] = {}
    for probe in probes:
        if isinstance(probe, Continuations) and probe.pool is not None:
            for name, comparison in _named(probe.pool, probe):
                pools.setdefault(name, []).extend(r[comparison] for r in records[probe.name])
    return {name: fmean(values) for name, values in pools.items()}


def _degeneration(
    probes: Sequence[Probe], records: Mapping[str, Sequence[Record]], usual: Usual | None
) -> dict[str, float]:
    """The share of broken text among the answers to all that is forgotten; each record gets whether it is."""
    judged = [
        (record, Generated(p.name, row, record["generated"], [record["answer"]] if p.answers is None else p.answers[i]))
        for p in probes
        if isinstance(p, Continuations) and p.forgotten
        for i, (row, record) in enumerate(zip(p.rows, records[p.name], strict=True))
    ]
    for (record, _), fields in zip(judged, judge([t for _, t in judged], usual), strict=True):
        record.update(fields)
    return {"degeneration": fmean(record["degenerate"] for record, _ in judged)} if judged else {}


def _named(name: str, probe: Continuations) -> list[tuple[str, Comparison]]:
    """Each comparison of a probe, under what its mean is called."""
    return [(name, probe.comparison), *((f"{name}_{end}", other) for end, other in probe.beside.items())]


def _means(probe: Continuations, records: Sequence[Record], generated: bool) -> Iterator[tuple[str, float]]:
    if not generated:
        yield f"{probe.name}_probability", fmean(r["probability"] for r in records)
        return
    for name, comparison in _named(probe.name, probe):
        yield name, fmean(r[comparison] for r in records)
    for kind in sorted(set(probe.kinds or ())):
        key = f"{probe.name}_{kind.replace(' ', '_').replace('-', '_')}"
        yield key, fmean(r[probe.comparison] for r in records if r["kind"] == kind)


def _min_k_plus_plus(score: Score, k: float) -> float:
    assert score.means is not None and score.deviations is not None
    return membership.min_k_plus_plus_score(score.logps, score.means, score.deviations, k)


def _chosen(probe: Choices, scores: Sequence[Score]) -> list[Record]:
    totals = iter(scores)
    records: list[Record] = []
    for i, (rows, right) in enumerate(zip(probe.choices, probe.right, strict=True)):
        logps = [score.total for score in islice(totals, len(rows))]
        best = max(range(len(rows)), key=logps.__getitem__)  # of equal ones the first, as numpy's argmax
        prompt, _ = parts(rows[0])
        answers = [parts(row)[1] for row in rows]
        records.append(
            {"index": i, "question": prompt, "choices": answers, "right": right, "logps": logps, "hit": best == right}
        )
    return records


def _rows(probe: Membership) -> list[Row]:
    return [{"text": x} if isinstance(x, str) else x for x in (*probe.members, *probe.others)]


def _attacked(probe: Membership, scores: Sequence[Score]) -> list[Record]:
    records: list[Record] = []
    for i, (row, score) in enumerate(zip(_rows(probe), scores, strict=True)):
        asked, text = parts(row)
        attacks = {name: attack(score, text) for name, attack in ATTACKS.items()}
        records.append({"index": i, "question": asked or text, "member": i < len(probe.members), **attacks})
    return records


def _aucs(
    probe: Membership, records: Sequence[Record], retrained: Sequence[Record] | None
) -> Iterator[tuple[str, float]]:
    for attack in ATTACKS:
        scores = _sides(records, attack)
        yield f"{probe.name}_{attack}", membership.auc(*scores)
        if probe.sides is not None:
            for side, of_side in zip(probe.sides, scores, strict=True):
                yield f"{probe.name}_{attack}_{side}", fmean(of_side)
    if probe.sides is None and (retrained is not None or probe.retrained_auc is not None):
        known = probe.retrained_auc if retrained is None else _muse_auc(retrained)
        if known:
            yield "privleak", membership.privleak(_muse_auc(records), known)
        else:
            log.warning("privleak is undefined: the retrained model recognises every forget text, so it has seen them")


def _muse_auc(records: Sequence[Record]) -> float:
    return membership.muse_auc(*_sides(records, "min_k"))


def _sides(records: Sequence[Record], attack: str) -> tuple[list[float], list[float]]:
    return [r[attack] for r in records if r["member"]], [r[attack] for r in records if not r["member"]]
