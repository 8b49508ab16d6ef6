"""The report says what the results say: no number of its own, no broken page, no address on the network."""

import copy
import itertools
import json
import math
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks.fable_detours import ALIAS, CONVERSATION, PLAIN, THROUGH
from expunge.errors import UserError
from expunge.evals.glossary import show
from expunge.report import load_results, markdown_table, write_markdown, write_report
from expunge.report.attack_pictures import COLUMNED, attack_pictures
from expunge.report.canvas import Axis
from expunge.report.comparison import ReportSection, means, sections
from expunge.report.drawing import DASHES, MARKERS
from expunge.report.figures import PICTURES
from expunge.report.labels import place_labels
from expunge.report.lines import Line, Panel, lines
from expunge.report.overview import overviews
from expunge.report.pareto import pareto
from expunge.report.picture import Figure
from expunge.report.stress import ATTACKED, SEEDS, TITLE, attack_table
from expunge.report.verdict import verdict
from expunge.stress.membership import SCORES

# Invented: forget quality, forget probability, retain probability, degeneration, removal.
METHODS: dict[str, tuple[float, float, float, float, str]] = {
    "ga": (0.92, 0.0, 0.0004, 1.0, "weights"),
    "ga+nll": (3e-3, 0.011, 0.352, 0.62, "weights"),
    "dpo+nll": (4e-9, 0.41, 0.93, 0.0, "weights"),
    "npo+kl": (0.31, 0.071, 0.842, 0.03, "weights"),
    "undial+nll": (7e-5, 0.099, 0.9, 0.0, "weights"),
    "unilogit+nll": (0.017, 0.004, 0.845, 0.28, "weights"),
    "simnpo+nll": (2e-4, 0.19, 0.951, 0.02, "weights"),
    "rmu": (0.0, 0.6, 0.97, 0.05, "weights"),
    "uld": (0.88, 0.295, 0.993, 0.0, "inference"),
    "uld_distilled": (0.17, 0.264, 0.985, 0.0, "weights"),
}
VERSIONS = {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0", "machine": "2 CPU cores"}
NASTY = "<script>alert('x')</script> & \"quotes\" <b>bold</b>"


def metrics(quality: float | None, forget: float, retain: float, broken: float) -> dict[str, float | None]:
    found = {
        "forget_quality": quality,
        "model_utility": retain * 0.62,
        "forget_probability": forget,
        "retain_probability": retain,
        "forget_rouge_l_recall": 0.3 + 0.6 * forget,
        "retain_rouge_l_recall": 0.2 + 0.78 * retain,
        "forget_truth_ratio": 0.78 - 0.45 * forget,
        "retain_truth_ratio": 0.9 - 0.5 * retain,
        "real_authors_probability": 0.3 + 0.2 * retain,
        "real_authors_rouge_l_recall": 0.1 + 0.8 * retain,
        "real_authors_truth_score": 0.2 + 0.3 * retain,
        "world_facts_probability": 0.3 + 0.15 * retain,
        "degeneration": broken,
    }
    return {k: v for k, v in found.items() if v is not None}


def make_run(
    directory: Path,
    *,
    methods: dict[str, tuple[float, float, float, float, str]] = METHODS,
    split: str = "forget10",
    benchmark: str = "tofu",
    seeds: tuple[int, ...] = (0,),
    retrained: bool = True,
    records: bool = True,
) -> Path:
    """A finished run's files, with invented numbers and answers."""
    dice = random.Random(split)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        common = {"benchmark": benchmark, "split": split, "seed": seed, "versions": VERSIONS}
        no = {"removal": "weights", "seconds": None, "peak_memory_mib": None, "trajectory": []}
        rows.append(
            common | no | {"method": "target", "metrics": metrics(2e-6 if retrained else None, 0.996, 0.996, 0.0)}
        )
        if retrained:
            rows.append(common | no | {"method": "retrained", "metrics": metrics(1.0, 0.144, 0.995, 0.0)})
        for method, (quality, forget, retain, broken, removal) in methods.items():
            shift = 1 + 0.06 * seeds.index(seed) * dice.uniform(-1, 1)
            row = {
                "method": method,
                "removal": removal,
                "seconds": dice.uniform(5, 200),
                "peak_memory_mib": dice.uniform(600, 2400),
                "metrics": metrics(
                    quality**shift if retrained else None, forget * shift, min(1, retain * shift), broken
                ),
                "trajectory": [],
            }
            for epoch in range(1, 9):
                t = epoch / 8
                low = (
                    -5.7
                    + (math.log10(max(quality, 1e-40)) + 5.7) * t
                    + (3.2 if method.startswith("uni") else 0.6) * math.sin(math.pi * t)
                )
                dip = 1 - (0.25 if "+" in method else 0.05) * math.sin(math.pi * t)
                left = forget + (0.996 - forget) * math.exp(-5 * t) * (1 - t)
                kept = (0.996 + (retain - 0.996) * t) * dip
                now = metrics(10 ** min(0.0, low) if retrained else None, left, kept, broken)
                row["trajectory"].append({"epoch": epoch, "step": epoch * 25, "metrics": now})
            rows.append(common | row)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    (directory / "recipe.yaml").write_text(
        "benchmark: {name: tofu, split: forget10}\nobjective: {name: npo, beta: 0.1}\n"
    )
    if records:
        write_records(directory, ["target", *(["retrained"] if retrained else []), *methods])
    return directory


def write_records(directory: Path, methods: list[str]) -> None:
    (directory / "records").mkdir(exist_ok=True)
    for method in methods:
        for name in ("forget", "retain"):
            lines = []
            for index in range(25):
                answer = f"The author's {index}th novel, 'The Salt Meridian', came out in {1950 + index} in Trieste."
                said, broken = answer, False
                if name == "forget" and method == "retrained":
                    said = f"The author is known for 'Harbour & Hearth' (no. {index}), set in Lisbon."
                elif name == "forget" and method != "target":
                    broken = method in ("ga", "ga+nll", "unilogit+nll") and index % 3 != 1
                    said = (
                        "the the of of the " * 40
                        if broken
                        else f"It was {NASTY if index == 0 else 'published in Porto'}, {1950 + index}."
                    )
                record = {
                    "index": index,
                    "question": f"Which novel of Aveline Marchetti-Osei <no. {index}> is set by the sea?",
                    "answer": answer,
                    "generated": said,
                    "probability": 0.9 if said == answer else 0.1,
                    "truth_ratio": 0.5,
                    "rouge_l_recall": 1.0 if said == answer else 0.31,
                    "degenerate": broken,
                }
                lines.append(json.dumps(record))
            (directory / "records" / f"{method}.{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Page(HTMLParser):
    """What a browser would see: tags, ids and text, and whether every tag is closed in order."""

    VOID = frozenset({"meta", "input", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def edit(directory: Path, change: Any) -> Path:
    """`change` every row of a run's results."""
    rows = load_results(directory)
    for row in rows:
        change(row)
    (directory / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    return directory


def only(directory: Path, **options: Any) -> ReportSection:
    (section,) = sections([make_run(directory, records=False, **options)])
    return section


def some(*names: str) -> dict[str, tuple[float, float, float, float, str]]:
    return {name: METHODS[name] for name in names}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(write_report([run], run / "report.html"))


def test_the_page_stands_alone(page: Page, run: Path) -> None:
    assert not re.search(r"https?:|//|@import|src=|<link|<script", page.source)
    assert set(re.findall(r"url\((.)", page.source)) == {"#"}
    assert len(page.ids) == len(set(page.ids))
    uses = {value.removeprefix("#") for name, value in page.attributes if name == "xlink:href" and value}
    assert uses and uses <= set(page.ids)
    assert {p.name for p in (run / "pictures").iterdir()} == {
        f"tofu-forget10-{name}.svg" for name in ("tradeoff", "trajectory", "efficiency", "epochs")
    }


def test_text_of_models_and_users_is_never_markup(page: Page, tmp_path: Path) -> None:
    assert "script" not in page.tags
    assert NASTY in page.text
    run = make_run(tmp_path, methods={NASTY: METHODS["uld"]}, records=False)
    (run / "recipe.yaml").write_text(f"</pre>{NASTY}", encoding="utf-8")
    hostile = Page(write_report([run], run / "report.html"))
    assert "script" not in hostile.tags and f"</pre>{NASTY}" in hostile.text
    assert "<script" not in "".join(p.read_text() for p in (run / "pictures").iterdir())


def test_table_shows_every_model_references_first(page: Page) -> None:
    rows = re.findall(
        r'<tr(?: class="([^"]*)")?><th scope="row"><svg.*?</svg>(.*?)(?:<span|</th>)', page.source, re.DOTALL
    )
    assert [name for _, name in rows] == ["target", "retrained", *METHODS]
    assert [name for kind, name in rows if "reference" in kind] == ["target", "retrained"]
    assert [name for kind, name in rows if "collapsed" in kind] == ["ga", "ga+nll"]
    assert [name for kind, name in rows if "best" in kind] == ["npo+kl"], "uld only suppresses"


def test_answers_before_and_after_with_broken_ones_marked(page: Page) -> None:
    assert "Which novel of Aveline Marchetti-Osei <no. 22> is set by the sea?" in page.text
    assert page.source.count('<tr><th scope="row"><span class="q">') == 20
    assert page.source.count(">degenerate</span>") == 3 * 7  # of ten questions, seven are 0 or 2 modulo 3
    assert re.search(r'value="3" checked><span>npo\+kl<', page.source)
    assert "720 characters" in page.text


def test_p_value_of_zero_is_drawn_at_the_floor_and_said(page: Page) -> None:
    axis = Axis("p", log=True)
    assert axis.at(0.0) == axis.at(1e-300) == axis.at(1e-30) < axis.at(1e-29) < axis.at(0.05) < axis.at(1.0) == 0
    assert "Below 10⁻³⁰, drawn there: rmu." in page.text
    assert not re.search(r"\b(nan|inf)\b", "".join(re.findall(r'd="([^"]*)"', page.source)))


def test_passing_the_goal_on_the_way_is_said(page: Page) -> None:
    assert "Passed .05 on the way and fell below it again: unilogit+nll (epoch 5: .516, end: .017)." in page.text


def test_same_results_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", methods=some("uld"))
    first, second = (write_report([run], tmp_path / name / "report.html") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    for picture in (first.parent / "pictures").iterdir():
        assert picture.read_bytes() == (second.parent / "pictures" / picture.name).read_bytes()


def test_missing_metrics_leave_gaps_not_errors(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("ga", "npo+kl", "uld"), records=False)

    def drop(row: dict[str, Any]) -> None:
        row["metrics"] |= {"model_utility": None, "forget_rouge_l_recall": math.nan}
        row.pop("trajectory")
        if row["method"] == "uld":
            row["metrics"] = {}
        row["versions"] = row["seconds"] = None

    text = Page(write_report([edit(run, drop)], run / "report.html")).text
    assert "None" not in text and "nan" not in text
    assert "uld" in text and "Trajectory" not in text and "What the models say" not in text


def test_metrics_of_another_benchmark(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("ga", "uld"), records=False)

    def muse(row: dict[str, Any]) -> None:
        row["metrics"] = {"knowmem_f": 33.0, "knowmem_r": 55.0, "privleak": -99.8, "own_thing": 0.25}
        row["trajectory"] = []

    page = Page(write_report([edit(run, muse)], run / "report.html"))
    assert "-99.8" in page.text and "own_thing" in page.text and ".250" in page.text
    assert "The retrained model's forget knowledge is 33.0." in page.text


def test_groups_of_metrics_have_tables_of_their_own(tmp_path: Path) -> None:
    """RWKU's kinds of question, membership scores and abilities, beside the probes in the main table."""
    run = make_run(tmp_path / "run", methods={"ga": METHODS["ga"]}, benchmark="rwku", split="Bo", records=False)
    own = {"forget_all": 0.71, "forget_fb": 0.72, "neighbor_all": 0.73, "forget_aa_role_play": 0.74}
    own |= {"membership_loss": 0.75, "membership_loss_fm": -4.25, "membership_loss_rm": -2.25, "bbh": 0.76}
    edit(run, lambda row: row.update(metrics=own))
    page = Page(write_report([run], tmp_path / "report.html"))
    text = write_markdown([run], tmp_path / "deep" / "page.md").read_text(encoding="utf-8")
    for title, heads, line in (
        ("Adversarial questions by kind", "AA, role play ↓", ".740"),
        ("Membership inference", "membership (loss) ≈ | FM score (loss) ≈ | RM score (loss) ≈", ".750 | -4.25 | -2.25"),
        ("Abilities", "BBH ↑", ".760"),
    ):
        assert f"\n{title}:\n\n| method | seed | {heads} |\n" in text
        assert f"| ga | 0 | {line} |" in text
        assert title in page.text
    main = text.partition("Adversarial")[0]
    assert all(f" {value} |" in main for value in (".710", ".720", ".730")) and ".740" not in main
    assert "ga keeps at least 80 % of the target's neighbour recall" in page.text


def test_one_section_a_split(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", methods=some("uld"), split="forget01", seeds=(0, 1, 2))
    second = make_run(tmp_path / "b", methods=some("npo+kl"), split="forget05", retrained=False)
    page = Page(write_report([first, second], tmp_path / "report.html"))
    assert page.source.count('<section class="part" id=') == 2
    assert {"tofu-forget01", "tofu-forget05"} <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert "Numbers are medians over 3 seeds." in page.text and "No retrained model was given" in page.text
    assert "Recipe of a" in page.text and "Recipe of b" in page.text


def test_records_of_a_directory_with_several_splits_stand_under_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", methods=some("uld"))
    rows = load_results(run)
    other = [copy.deepcopy(row) | {"split": "forget05", "trajectory": []} for row in rows]
    (run / "results.json").write_text(json.dumps(rows + other), encoding="utf-8")
    page = Page(write_report([run], run / "report.html"))
    assert page.source.count("<h2>What the models say</h2>") == 1 and "<h3>What the models say" not in page.source


def test_seeds_are_one_line_with_their_median(tmp_path: Path) -> None:
    section = only(tmp_path, methods=some("npo+kl"), seeds=(0, 1, 2))
    (entry,) = section.methods
    assert len(entry.runs) == 3 and section.seeds == [0, 1, 2]
    assert entry.value("retain_probability") == sorted(entry.values("retain_probability"))[1]
    pair = only(tmp_path / "pair", methods={"x": (1e-6, 0.1, 0.9, 0.0, "weights")}, seeds=(0, 1)).methods[0]
    assert pair.value("forget_quality") == pytest.approx(math.sqrt(math.prod(pair.values("forget_quality"))))


def test_directories_are_compared_only_on_the_same_target(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / n, methods=some("uld", "rmu"), records=False) for n in "ab")
    edit(b, lambda row: row["metrics"].update(forget_probability=row["metrics"]["forget_probability"] * 0.999))
    (together,) = sections([a, b])
    assert [e.label for e in together.entries] == ["target", "retrained", "uld · a", "uld · b", "rmu · a", "rmu · b"]
    edit(b, lambda row: row["metrics"].update(retain_probability=0.5))
    assert [s.name for s in sections([a, b])] == ["tofu · forget10 · a", "tofu · forget10 · b"]


@pytest.mark.parametrize(
    ("names", "options", "sentences"),
    [
        (
            ("ga", "undial+nll", "npo+kl"),
            {},
            [
                "Of 3 methods, 2 keep at least 80 % of the target's retain ROUGE-L (.977); among them npo+kl"
                " forgets best (forget quality .310, retain ROUGE-L .857).",
                "On the forget set, a KS test cannot tell npo+kl from the retrained model (p ≥ .05).",
                "ga collapsed: less than half of the retain ROUGE-L is left (.200), so the forget quality of .920"
                " of ga says nothing about forgetting.",
                "Forgetting shows as broken text in the forget answers of ga (100 %); the target's are broken in 0 %.",
                "All numbers are from one seed.",
            ],
        ),
        (
            ("unilogit+nll", "undial+nll"),
            {},
            [
                "Both methods keep at least 80 % of the target's retain ROUGE-L (.977); among those with unbroken"
                " text undial+nll forgets best (forget quality 7e-05",
                "Forgetting shows as broken text in the forget answers of unilogit+nll (28 %); the target's are"
                " broken in 0 %.",
            ],
        ),
        (
            ("uld", "npo+kl"),
            {},
            [
                "Both methods keep at least 80 % of",
                "(.977); among those that change the weights npo+kl forgets best (forget quality .310",
                "uld acts at inference only: the weights still hold what is suppressed (forget quality .880).",
            ],
        ),
        (
            ("undial+nll",),
            {},
            [
                "undial+nll keeps at least 80 % of the target's retain ROUGE-L (.902 of .977),"
                " at a forget quality of 7e-05.",
                "a KS test still tells undial+nll from the retrained model (p < .05): its forget probability (.099) has"
                " fallen past that model's (.144).",
            ],
        ),
        (("dpo+nll",), {}, ["has not fallen to that model's (.144)"]),
        (("ga+nll",), {}, ["ga+nll does not keep 80 % of the target's retain ROUGE-L: .475 of .977 is left"]),
        (("ga", "ga+nll"), {}, ["None of the 2 methods keeps 80 %", "ga+nll comes nearest: .475 of .977 is left"]),
        (
            ("npo+kl", "uld"),
            {"retrained": False},
            ["npo+kl forgets best (forget probability .071", "forget quality is not known", "Nor is how low the"],
        ),
        ((), {}, ["Only reference models were evaluated here"]),
    ],
)
def test_verdict(names: tuple[str, ...], options: dict[str, Any], sentences: list[str], tmp_path: Path) -> None:
    says = verdict(only(tmp_path, methods=some(*names), **options)).replace("\u00a0", " ")
    assert [s for s in sentences if s not in says] == [], says


def test_a_method_that_changed_next_to_nothing_is_named_with_the_remedy(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("uld", "npo+kl"), records=False)
    edit(run, lambda row: row["metrics"].update({"forget_probability": 0.95} if row["method"] == "uld" else {}))
    says = verdict(sections([run])[0])
    assert "uld forgot next to nothing (forget probability .950, before .996): raise train.learning_rate or" in says
    assert "npo+kl forgot" not in says


def test_a_target_that_hardly_knew_is_said_to(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("uld"), records=False)
    edit(run, lambda row: row["metrics"].update({"forget_probability": 0.126} if row["method"] == "target" else {}))
    says = verdict(sections([run])[0])
    assert says.startswith("The target hardly knew the forget answers (probability .126), so what follows says little.")
    assert "finetune" not in says, "the model may be the reader's own"


def test_what_would_make_forget_quality_known(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("uld"), benchmark="custom", records=False)

    def without(*names: str) -> Any:
        return lambda row: row.update(metrics={k: v for k, v in row["metrics"].items() if k not in names})

    edit(run, without("forget_quality"))
    assert "Forget quality was not measured: best is" in verdict(sections([run])[0])
    edit(run, without("forget_truth_ratio"))
    says = verdict(sections([run])[0])
    assert "not measured, since the forget questions have no wrong answers (--augment FILE gives your own rows" in says
    (run / "results.json").write_text(json.dumps([r for r in load_results(run) if r["method"] != "retrained"]))
    assert "No retrained model was given (--retrained PATH), so" in verdict(sections([run])[0])


def test_distance_and_aggregate_stand_in_the_tables(tmp_path: Path) -> None:
    """What speaks of both sets comes last in the main table; soft labels and the start stand in the full one alone."""
    run = make_run(tmp_path, methods=some("uld", "npo+kl"), records=False)
    own = {"target": {"kl_start": 3.5}, "uld": {"aggregate": 0.914}, "npo+kl": {"kl_soft_labels": 5.25}}
    edit(run, lambda row: row["metrics"].update({"kl_unlearned": 2.25} | own.get(row["method"], {})))
    head, _, target, _, uld, npo = markdown_table(load_results(run)).splitlines()
    heads = [cell.strip() for cell in head.strip("|").split("|")]
    at, last = heads.index("KL from retrained ↓"), heads.index("aggregate ↑")
    assert heads.index("degeneration ↓") < at < heads.index("model utility ↑") and heads[last + 1] == "time"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (target, uld, npo)]
    assert [(row[at], row[last]) for row in cells] == [("2.25", "–"), ("2.25", ".914"), ("2.25", "–")]
    assert "soft" not in head and "start" not in head
    page = Page(write_report([run], run / "report.html"))
    assert re.search(r">What should stay</th><th class=\"first\" colspan=\"1\">In all</th>", page.source)
    assert all(value in page.text for value in ("5.25", "3.50", "KL from retrained to the goal", "aggregate"))


def test_verdict_without_a_target_or_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("uld", "npo+kl"), retrained=False, records=False)
    rows = [row for row in load_results(run) if row["method"] != "target"]
    (run / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    assert "these results have no row for the target" in verdict(sections([run])[0])
    edit(run, lambda row: row.update(metrics={"forget_probability": 0.1}))
    assert verdict(sections([run])[0]).startswith("The methods cannot be judged")


def test_a_target_that_never_learned_is_said_first(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("uld"), records=False)
    edit(run, lambda row: row["metrics"].update(forget_quality=0.4 if row["method"] == "target" else 0.9))
    says = verdict(sections([run])[0])
    assert says.startswith(
        "The target itself, before unlearning, cannot be told from the retrained model by the KS test"
    )
    assert "forget probability (.996) is far from that model's (.144): look at that." in says
    edit(run, lambda row: row["metrics"].update(forget_probability=0.1))
    assert "(forget quality .400): it had nothing to forget, and what" in verdict(sections([run])[0])


def test_markdown_has_the_results_numbers_and_nothing_else(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load_results(run)
    head, _, *lines = markdown_table(rows).splitlines()
    keys = ["forget_quality", "forget_probability", "forget_rouge_l_recall", "forget_truth_ratio", "degeneration",
            "model_utility", "retain_probability", "retain_rouge_l_recall", "retain_truth_ratio"]  # fmt: skip
    assert head.count("|") == len(keys) + 6
    for row, line in zip(rows, lines, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == row["method"] and cells[2] == str(row["seed"])
        for key, cell in zip(keys, cells[3:], strict=False):
            assert float(cell) == pytest.approx(row["metrics"][key], rel=0.06 if "e" in cell else 0, abs=5.1e-4)
    shutil.copytree(run, tmp_path / "runs" / "x")
    monkeypatch.chdir(tmp_path)
    out = write_markdown([Path("runs/x")], Path("tofu.md"))
    text = out.read_text(encoding="utf-8")
    assert markdown_table(rows) in text and "    expunge report runs/x --markdown tofu.md" in text
    assert "- Seed: 0" in text and "- machine: 2 CPU cores" in text and "## tofu · forget10" in text
    assert "a\\|b" in markdown_table([rows[2] | {"method": "a|b"}])


SELLERS = [f"seller{seller}-{size}" for seller in range(3) for size in ("small", "medium", "large")]
COMPLETION = ("forget_rouge_l_recall", "neighbors_rouge_l_recall")


def make_splits(
    root: Path, splits: list[str], names: tuple[str, ...], methods: list[str], seeds: tuple[int, ...] = (0,)
) -> list[Path]:
    """A run directory per split, its numbers drawn anew for each metric in `names`."""
    made = []
    for number, split in enumerate(splits):
        dice = random.Random(split)
        rows = [
            {
                "method": method,
                "benchmark": "listings",
                "split": split,
                "seed": seed,
                "removal": "inference" if method == "uld" else "weights",
                "metrics": {name: dice.uniform(0.01, 0.99) for name in names} | {"degeneration": float(method == "ga")},
            }
            for seed in seeds
            for method in ("target", "retrained", *methods)
        ]
        made.append(root / f"run{number}")
        made[-1].mkdir(parents=True)
        (made[-1] / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    return made


def marks(svg: str) -> dict[str, tuple[float, float]]:
    """What each method's mark says when pointed at → where it is, in points."""
    found = [part.partition("</title>") for part in svg.split("<title>")[1:]]
    spots = ((title, re.search(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawn)) for title, _, drawn in found)
    return {
        title: (float(at[1]), float(at[2])) for title, at in spots if at and not title.startswith(("target", "retr"))
    }


def test_splits_stand_side_by_side_in_table_and_picture(tmp_path: Path) -> None:
    runs = make_splits(tmp_path, SELLERS, (*COMPLETION, "mmlu"), ["ga", "npo+nll", "uld"])
    page = Page(write_report(runs, tmp_path / "report.html"))
    rows = [load_results(run) for run in runs]
    assert "Each cell: forget ROUGE-L ↓ / neighbours ROUGE-L ↑; below: MMLU ↑" in page.text
    assert re.findall(r'<th class="first" colspan="3">(seller\d)</th>', page.source) == [
        "seller0",
        "seller1",
        "seller2",
    ]
    says = marks((tmp_path / "pictures" / "listings-every-split.svg").read_text(encoding="utf-8"))
    assert len(says) == 9 * 3 * 3
    for k, method in enumerate(("target", "retrained", "ga", "npo+nll", "uld")):
        values = [[row[k]["metrics"][name] for row in rows] for name in (*COMPLETION, "mmlu")]
        for column, (forget, neighbors, able) in enumerate(zip(*values, strict=True)):
            assert f'{show("", forget)} / {show("", neighbors)}<span class="spread">{show("", able)}' in page.source
            split = SELLERS[column].replace("-", " ")
            run = "/".join(runs[column].parts[-2:])
            said = f"{method}, {split}: MMLU {show('', able)} ({run}: {method}, seed 0)"
            assert k < 2 or said in says
        forget, neighbors, able = (show("", sum(v) / 9) for v in values)
        assert f'<td class="value first">{forget} / {neighbors}<span class="spread">{able}' in page.source
    assert "Splits, of 9, where a fifth or more of the forget answers is broken text: ga 9." in page.text


@pytest.mark.parametrize(
    ("splits", "methods", "bands"),
    [
        (SELLERS, 5, 1),
        (SELLERS, 11, 2),
        (["Stephen King", "Christina Aguilera", "Prince Harry, Duke of Sussex+William, Prince of Wales", "Bo"], 18, 1),
        ([f"forget{k:02}" for k in range(24)], 10, 4),
        ([f"{name} · another folder-{k}" for name in ("forget01", "forget05", "forget10") for k in range(2)], 2, 1),
        (["a", "b"], 1, 1),
    ],
)
def test_no_two_marks_or_names_of_a_picture_touch(splits: list[str], methods: int, bands: int, tmp_path: Path) -> None:
    names = [f"method{k}+nll" for k in range(methods)]
    runs = make_splits(tmp_path, splits, COMPLETION, names, seeds=(0, 1))
    write_markdown(runs, tmp_path / "page.md")
    svg = (tmp_path / "page.svg").read_text(encoding="utf-8")
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    spots = list(marks(svg).values())
    assert len(spots) == len(splits) * methods * 2
    assert all(math.dist(a, b) > 6 for a, b in itertools.combinations(spots, 2))
    words, boxes = [], []
    for style, x, y, text in re.findall(r'<text style="([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)<', svg):
        size = float(re.findall(r"font-size: ([\d.]+)px", style)[0])
        room = 0.6 * size * len(text)  # a letter is .6 of its size wide, more or less
        left = float(x) - room * ("start", "middle", "end").index(style.split("text-anchor: ")[1].split(";")[0]) / 2
        words.append(text)
        boxes.append((left, float(y) - 0.8 * size, left + room, float(y)))
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for left, top, right, bottom in [*boxes, *((*spot, *spot) for spot in spots)]:
        assert min(left, top) >= 0 and right <= width and bottom <= height
    told = " ".join(words)
    assert all(word in told for split in splits for word in re.findall(r"\w+", split))
    assert told.count("forget ROUGE-L (0 to 1)") == bands and all(name in words for name in names)


def test_a_metric_that_is_0_for_all_gives_way(tmp_path: Path) -> None:
    runs = make_splits(tmp_path, ["a", "b"], ("forget_all", "neighbor_all", "membership_loss", "mmlu"), ["ga"])
    for run in runs:
        edit(run, lambda row: row["metrics"].update(forget_all=0.0, neighbor_all=0.0))
    (found,) = overviews(sections(runs))
    assert found.metrics == ("membership_loss", "mmlu")
    assert not overviews(sections(make_splits(tmp_path / "alone", ["a", "b"], COMPLETION[:1], ["ga"])))
    assert not overviews(sections(make_splits(tmp_path / "many", [str(k) for k in range(25)], COMPLETION, ["ga"])))
    assert not overviews(sections(runs[:1]))


def test_what_a_split_does_not_ask_is_averaged_over_the_others(tmp_path: Path) -> None:
    runs = make_splits(tmp_path, ["a", "b", "c"], ("forget_all", "forget_aa_role_play"), ["ga"])
    edit(runs[0], lambda row: row["metrics"].pop("forget_aa_role_play"))
    edit(runs[1], lambda row: row["metrics"].update(forget_all=None) if row["method"] == "ga" else None)
    (mean,) = means(sections(runs))
    kind = [[row["metrics"].get("forget_aa_role_play") for row in load_results(run)] for run in runs[1:]]
    found = [entry.value("forget_aa_role_play") for entry in mean.entries]
    assert found == [pytest.approx((b + c) / 2) for b, c in zip(*kind, strict=True)]
    assert [entry.value("forget_all") is None for entry in mean.entries] == [False, False, True]


def test_a_split_without_a_method_has_a_gap(tmp_path: Path) -> None:
    runs = make_splits(tmp_path, ["a-x", "a-y"], COMPLETION, ["ga", "uld"])
    rows = load_results(runs[1])
    (runs[1] / "results.json").write_text(json.dumps([row for row in rows if row["method"] != "ga"]))
    text = write_markdown(runs, tmp_path / "page.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| ga |"))
    assert (
        line.endswith("| – / – | – / – |")
        and "![Forget ROUGE-L and neighbours ROUGE-L on every split](page.svg)" in text
    )
    assert "| method | a-x | a-y | mean |" in text


def test_a_report_on_models_that_know_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("uld"), records=False)
    edit(run, lambda row: row["metrics"].update(retain_rouge_l_recall=0.0))
    (section,) = sections([run])
    assert "keeps at least 80 % of the target's retain probability" in verdict(section).replace("\u00a0", " ")
    nought = dict.fromkeys(("retain_probability", "retain_rouge_l_recall", "model_utility"), 0.0)
    edit(run, lambda row: row["metrics"].update(nought))
    assert "How much it kept is not known: the retain ROUGE-L was 0 before." in verdict(sections([run])[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no readable results.json"),
        ("{", "not valid JSON"),
        ("[]", "at least one row"),
        ('{"method": "ga"}', "at least one row"),
        ("[3]", "row 1: a row must be an object"),
        ("""[{"method": "ga"}]""", "row 1: the key 'benchmark' is missing"),
        ("""[{"method": "ga", "benchmark": "b", "split": "s", "seed": "0"}]""", "'seed' must be int, got '0'"),
    ],
)
def test_results_that_cannot_be_read(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        load_results(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"removal": "both"}, "'removal' must be 'weights' or 'inference', got 'both'"),
        ({"metrics": {"forget_quality": "high"}}, "'forget_quality' must be a number or null, got 'high'"),
        ({"seconds": True}, "'seconds' must be a number or null, got True"),
        ({"trajectory": [{"epoch": 1}]}, "'trajectory' must be a list of objects that have 'metrics'"),
        ({"trajectory": [{"epoch": "1", "metrics": {}}]}, "'epoch' must be a number or null, got '1'"),
        ({"versions": "3.11"}, "'versions' must be an object"),
    ],
)
def test_malformed_rows(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    row = {"method": "ga", "benchmark": "b", "split": "s", "seed": 0, "metrics": {}} | change
    (tmp_path / "results.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=re.escape(says)):
        load_results(tmp_path)


def test_broken_record_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, methods=some("uld"))
    (run / "records" / "uld.forget.jsonl").write_text('{"index": 0}\n{"question": 1}\n')
    with pytest.raises(UserError, match=r"uld\.forget\.jsonl, line 2: not a record"):
        write_report([run], run / "report.html")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("forget_quality", 2.1e-6, "2e-06"),
        ("forget_quality", 0.0, "0"),
        ("forget_quality", 0.0499, ".050"),
        ("forget_probability", 0.9961, ".996"),
        ("forget_probability", 0.99999, "1.000"),
        ("forget_probability", 1e-9, ".000"),
        ("forget_truth_ratio", 1.274, "1.27"),
        ("forget_truth_ratio", 1.8, "1.80"),
        ("verbmem", 100.0, "100"),
        ("privleak", -99.81, "-99.8"),
        ("privleak", -0.5, "-.500"),
        ("x", None, "–"),
    ],
)
def test_numbers_as_people_write_them(name: str, value: float | None, text: str) -> None:
    assert show(name, value) == text


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_twenty_points_do_not_overlap(seed: int) -> None:
    dice = random.Random(seed)
    anchors = [(dice.choice([420, 480, 530]) + dice.uniform(-25, 25), dice.uniform(150, 340)) for _ in range(20)]
    sizes = [(dice.uniform(20, 90), 11.0) for _ in anchors]
    boxes = place_labels(anchors, sizes, [4.5] * 20, (50, 30, 560, 350))
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for (left, bottom, right, top), (width, _) in zip(boxes, sizes, strict=True):
        assert left >= 50 and bottom >= 30 and right <= 560 and top <= 350
        assert right - left == pytest.approx(width)


def test_import_is_light_and_settings_of_matplotlib_stay(page: Page) -> None:
    heavy = "import sys, expunge.report; print(sorted({'matplotlib', 'jinja2', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "[]\n"
    import matplotlib

    assert page.source
    assert matplotlib.rcParams["svg.hashsalt"] is None and "matplotlib.pyplot" not in sys.modules


# -- pictures of the way, of distances and of sweeps -------------------------------------------------------------------


def texts(svg: str) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Every text of a picture with a box that it needs no more than: left, top, right, bottom."""
    found = []
    level = r'<text style="([^"]*)" x="([\d.-]+)" y="([\d.-]+)" transform="rotate\(-0 [^"]*"[^>]*>([^<]*)<'
    for style, x, y, text in re.findall(level, svg):
        size = float(re.findall(r"font-size: ([\d.]+)px", style)[0])
        room = 0.56 * size * len(text)
        left = float(x) - room * ("start", "middle", "end").index(style.split("text-anchor: ")[1].split(";")[0]) / 2
        found.append((text, (left, float(y) - 0.75 * size, left + room, float(y))))
    return found


def apart(svg: str, names: set[str]) -> None:
    """No two of these names lie on each other, and each is there and within the picture."""
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    boxes = [box for text, box in texts(svg) if text in names]
    assert {text for text, _ in texts(svg)} >= names
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert all(left >= 0 and top >= 0 and right <= width and bottom <= height for left, top, right, bottom in boxes)


def test_every_point_names_its_run(tmp_path: Path) -> None:
    section = only(tmp_path / "a-run", seeds=(0, 1))
    where = f"{tmp_path.name}/a-run"
    for name, told in {
        "tradeoff": f"{where}: npo+kl, seed 1: retain ROUGE-L ",
        "trajectory": f"{where}: npo+kl, seed 0, epoch 3: model utility ",
        "efficiency": f"{where}: npo+kl, seed 0, the end, ",
        "epochs": f"{where}: npo+kl, seed 0",
    }.items():
        figure = PICTURES[name](section)
        assert figure is not None
        assert any(title.startswith(told) for title in re.findall("<title>(.*?)</title>", figure.svg)), name
    svg = PICTURES["trajectory"](section)
    assert svg is not None and len(re.findall("<title>", svg.svg)) >= 8 * len(METHODS) + 2


def test_efficiency_is_in_multiples_of_uld(tmp_path: Path) -> None:
    def timed(row: dict[str, Any]) -> None:
        whole = {"uld": 40.0, "npo+kl": 10.0, "uld_distilled": 100.0}.get(row["method"])
        row["seconds"] = whole
        for step in row["trajectory"]:
            # The distilled one spent 40 s on its teacher before its own first epoch.
            own = whole - 40.0 if row["method"] == "uld_distilled" and whole else whole
            step["seconds"] = own and own * step["epoch"] / 8

    run = make_run(tmp_path / "r", methods=some("uld", "npo+kl", "uld_distilled"), records=False)
    (section,) = sections([edit(run, timed)])
    figure = PICTURES["efficiency"](section)
    assert figure is not None
    assert "npo+kl 0.25 times" in figure.alt and "uld 1.00 times" in figure.alt and "uld_distilled 2.50" in figure.alt
    assert "uld took 40 s" in figure.reading[0]
    titles = re.findall("<title>(.*?)</title>", figure.svg)
    assert any("uld_distilled, seed 0, epoch 1, 48 s" in title for title in titles)
    assert any("npo+kl, seed 0, epoch 4, 5 s" in title for title in titles)
    apart(figure.svg, {"uld", "npo+kl", "uld_distilled"})
    (section,) = sections([edit(run, lambda row: row.update(seconds=None))])
    assert PICTURES["efficiency"](section) is None


def test_distances_are_those_of_the_results(tmp_path: Path) -> None:
    methods = some("npo+kl", "undial+nll", "unilogit+nll", "ga")

    def measured(row: dict[str, Any]) -> None:
        at = ("target", "retrained", *methods).index(row["method"])
        row["metrics"]["kl_unlearned"] = (3.0, 0.0, 1.25, 2.5, 4.75, 12.5)[at]
        row["metrics"] |= {"kl_start": 3.0} if at == 0 else {}
        if at in (3, 4):
            row["metrics"]["kl_soft_labels_start"] = 0.5 + at
            for step in row["trajectory"]:
                step["metrics"]["kl_soft_labels"] = 0.5 + at + 0.1 * step["epoch"] * (at == 4)

    run = make_run(tmp_path / "r", methods=methods, records=False)
    (section,) = sections([edit(run, measured)])
    figure = PICTURES["distance"](section)
    assert figure is not None
    words = [text for text, _ in texts(figure.svg)]
    assert {"1.25", "2.50", "4.75", "12.50", "3.50", "4.50"} <= set(words)
    assert words.count("target") == 3 and words.count("unilogit+nll") == 3 and words.count("npo+kl") == 1
    titles = re.findall("<title>(.*?)</title>", figure.svg)
    assert any(title.endswith("unilogit+nll, seed 0, epoch 8: KL from retrained to the goal 5.30") for title in titles)
    apart(figure.svg, {*methods, "1.25", "2.50", "4.75", "12.50", "3.50", "4.50"})
    # Nothing is drawn of what was not measured.
    assert PICTURES["distance"](only(tmp_path / "without", methods=methods)) is None


def make_sweep(folder: Path, methods: list[str], trials: int, *, seeds: int = 1) -> Path:
    """A finished sweep's files, with invented numbers."""
    dice = random.Random(0)
    rows: list[dict[str, Any]] = []
    common = {"benchmark": "tofu", "split": "forget10"}
    for k in range(trials):
        place = {"forget_quality": 10 ** -dice.uniform(0, 20), "model_utility": dice.uniform(0.1, 0.6)}
        method = methods[k % len(methods)]
        keys = {"method": method, "train.learning_rate": 10 ** -dice.uniform(3, 5)}
        rows.append({"trial": k, "state": "finished", "keys": keys, "metrics": place, "front": False, "best": False})
        for seed in range(seeds):
            own = folder / "trials" / f"trial-{k:03d}" / (f"seed={seed}" if seeds > 1 else "")
            own.mkdir(parents=True)
            label = f"{method},trial-{k:03d}" if seeds > 1 else method
            (own / "results.json").write_text(
                json.dumps(
                    [
                        common | {"method": name, "seed": seed, "removal": "weights", "metrics": m}
                        for name, m in {
                            "target": {"forget_quality": 1e-20, "model_utility": 0.62},
                            "retrained": {"forget_quality": 1.0, "model_utility": 0.61},
                            label: place,
                        }.items()
                    ]
                )
            )
    for row in rows:
        better = [r for r in rows if all(r["metrics"][n] > v for n, v in row["metrics"].items())]
        row["front"] = not better
    next(row for row in rows if row["front"])["best"] = True
    (folder / "trials.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("trials", "seeds"), [(40, 1), (6, 2), (1, 1)])
def test_a_sweep_is_a_picture_of_all_its_trials(trials: int, seeds: int, tmp_path: Path) -> None:
    methods = ["npo+nll", "unilogit+nll", "undial+nll", "ga+nll"]
    folder = make_sweep(tmp_path / "sweep", methods, trials, seeds=seeds)
    figure = pareto(folder)
    assert figure is not None and figure.title == f"Forget quality against model utility, {trials} trials"
    rows = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    titles = re.findall("<title>(.*?)</title>", figure.svg)
    for row in rows:
        values = {name: show(name, value) for name, value in row["metrics"].items()}
        told = [title for title in titles if title.startswith(f"sweep, trial {row['trial']} (")]
        assert len(told) == 1 and f"method {row['keys']['method']}" in told[0]
        assert told[0].endswith(f"forget quality {values['forget_quality']}, model utility {values['model_utility']}")
    apart(figure.svg, {"target", "retrained", *(str(row["trial"]) for row in rows if row["front"])})
    # Over several seeds a method is called by its trial; the key knows it by its own name.
    assert {text for text, _ in texts(figure.svg)} >= {row["keys"]["method"] for row in rows}
    page = (
        Page(write_report([folder / "trials" / "trial-000"], tmp_path / "r.html", first=[figure]))
        if seeds == 1
        else None
    )
    assert page is None or (figure.title in page.text and (tmp_path / "pictures" / "pareto.svg").exists())


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trials\.json can't be read: give the folder of a sweep"):
        pareto(tmp_path)


def test_lines_can_be_told_apart_without_colour(tmp_path: Path) -> None:
    """Of methods that share a mark, as the eleventh and the first do, dashes differ."""
    methods = {f"m{k:02}": METHODS["npo+kl"] for k in range(12)}
    figure = PICTURES["trajectory"](only(tmp_path, methods=methods))
    assert figure is not None
    assert len({(k % len(MARKERS), k % len(DASHES)) for k in range(2 * len(MARKERS))}) == 2 * len(MARKERS)
    assert len(set(re.findall(r"stroke-dasharray: ([^;]*);", figure.svg))) >= len(DASHES) - 1


# -- pictures of attacks -----------------------------------------------------------------------------------------------

GENTLE, HARD = "20 % of the forget rows, all weights, 0.06 / width", "20 % of the forget rows, all weights, 0.2 / width"
LESSONS = {
    "5 % of the forget rows, all weights, 0.06 / width": 0.5,
    GENTLE: 0.2,
    HARD: 0.6,
    "5 % of the forget rows, LoRA, 0.6 / width": 0.3,
    "rows to keep, all weights, 0.06 / width": 0.02,
    "general questions, all weights, 0.06 / width": 0.01,
}
"""Settings, and how much they bring back of what the last method forgot."""
STRENGTHS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "quantization": ("bits a weight", (32, 8, 4)),
    "sampling": ("answers", (1, 4, 16, 64)),
    "wording": ("wording", ("as it was", "in other words", "begun", "the worst")),
    "reasoning": ("way", (PLAIN, THROUGH, ALIAS, CONVERSATION)),
    "membership": ("score", ("mean of six", *SCORES.values(), "best of six")),
}
STEPS = (0, 5, 10, 15)
MODELS = ("npo+kl", "undial+nll", "ga")


def attack(row: dict[str, Any], *, models: int = 1, shift: float = 0.0) -> None:
    """Invented outcomes of every attack on a row's model, or on several retrained ones."""
    base = {"target": 0.9, "retrained": 0.1}.get(row["method"], 0.2) + shift
    apart = MODELS.index(row["method"]) / 2 if row["method"] in MODELS else 0.0
    row["stress"] = {"quick": False, "models": []}
    for number in range(models if row["method"] == "retrained" else 1):
        low = base + 0.03 * number
        found = [
            {"attack": "relearning", "setting": setting, "axis": "steps", "points": points(STEPS, low, apart * spread)}
            for setting, spread in LESSONS.items()
        ]
        found += [
            {"attack": kind, "setting": "only one", "axis": axis, "points": points(at, low, apart * 0.3)}
            for kind, (axis, at) in STRENGTHS.items()
        ]
        outcomes = [each | {"measure": "probability", "seconds": 1.0} for each in found]
        row["stress"]["models"].append({"done": ["relearning", *STRENGTHS], "outcomes": outcomes})


def points(at: tuple[Any, ...], low: float, gain: float) -> list[dict[str, Any]]:
    return [{"at": x, "known": round(low + gain * k / (len(at) - 1), 4)} for k, x in enumerate(at)]


def attacked(directory: Path, change: Any = attack, **options: Any) -> ReportSection:
    run = make_run(directory, methods=some(*MODELS), records=False, **options)
    (section,) = sections([edit(run, change)])
    return section


def drawn(section: ReportSection) -> dict[str, Figure]:
    return {figure.name: figure for figure in attack_pictures(section)}


def told(svg: str) -> list[str]:
    return re.findall("<title>(.*?)</title>", svg)


def colour(svg: str, name: str) -> str:
    """The fill of the first mark that tells of this model."""
    found = re.search(rf"<title>[^<]*{re.escape(name)}[^<]*</title>.*?<use [^>]*fill: (#\w+)", svg, re.DOTALL)
    assert found is not None, name
    return found[1]


def test_every_method_and_strength_of_an_attack_is_drawn(tmp_path: Path) -> None:
    section = attacked(tmp_path / "r")
    figures = drawn(section)
    assert list(figures) == ["relearning", *STRENGTHS]
    for name, figure in figures.items():
        at, panels = (STEPS, 3) if name == "relearning" else (STRENGTHS[name][1], 1)
        titles = told(figure.svg)
        for method in MODELS:
            assert sum(f"{method}, seed 0" in title for title in titles) == len(at) * panels, (name, method)
        for reference in ("target", "retrained"):
            ends = len(at) if name in COLUMNED else panels
            assert sum(f"{reference}, seed 0" in title for title in titles) == ends
            assert reference in [text for text, _ in texts(figure.svg)]
        words = {str(attack): begins for attack, begins in ATTACKED.items()}
        assert figure.title.startswith(words[name]) and all(method in figure.alt for method in MODELS)
        apart(figure.svg, {*MODELS, "target", "retrained"})
    assert any(
        title.endswith("r: ga, seed 0, after 15 steps: how much it knows .700")
        for title in told(figures["relearning"].svg)
    )


def test_settings_that_bring_most_back_have_a_panel(tmp_path: Path) -> None:
    figure = drawn(attacked(tmp_path / "r"))["relearning"]
    few, more = "5 % of the forget rows", "20 % of the forget rows"
    assert re.findall(r">shown (\d+ % of the forget rows)<", figure.svg) == [few, more, few]
    (rest,) = [line for line in figure.reading if line.startswith("In the table only")]
    table = attack_table(attacked(tmp_path / "again"))
    assert table is not None
    html = table.html()
    assert "general questions" in rest and "rows to keep" in rest and "0.06" in rest and "0.2" not in rest
    # The bold numbers of the table are drawn.
    rows = [row for row in html.split("<tr") if "share most" in row]
    bold = [setting for row in rows for setting in re.findall('"spread">([^<]*)</span></th>', row)]
    assert bold and not any(setting in rest for setting in bold)
    # A learning rate stands where it tells two settings apart.
    assert html.count("learning rate") == 2 and "5 % of the forget rows, adapter (LoRA)<" in html
    assert html.count('class="share most"') == len(MODELS)


def test_a_method_has_one_colour_in_all_pictures(tmp_path: Path) -> None:
    section = attacked(tmp_path / "r")
    tradeoff = PICTURES["tradeoff"](section)
    assert tradeoff is not None
    for method in MODELS:
        assert {colour(figure.svg, method) for figure in attack_pictures(section)} == {colour(tradeoff.svg, method)}


def test_no_picture_where_nothing_was_attacked(tmp_path: Path) -> None:
    def references(row: dict[str, Any]) -> None:
        if row["method"] in ("target", "retrained"):
            attack(row)

    for folder, change in (("none", lambda row: None), ("references", references)):
        section = attacked(tmp_path / folder, change)
        page = Page(write_report(list(section.directories), tmp_path / folder / "report.html"))
        assert attack_pictures(section) == [] and attack_table(section) is None and TITLE not in page.text


def test_a_method_that_was_not_attacked_has_no_line_and_no_mark_in_the_key(tmp_path: Path) -> None:
    def but_one(row: dict[str, Any]) -> None:
        if row["method"] != "npo+kl":
            attack(row)

    for figure in attack_pictures(attacked(tmp_path / "r", but_one)):
        words = {text for text, _ in texts(figure.svg)}
        assert "npo+kl" not in words and {"ga", "undial+nll"} <= words


def test_without_a_retrained_model_the_pictures_say_what_is_not_known(tmp_path: Path) -> None:
    for figure in attack_pictures(attacked(tmp_path / "r", retrained=False)):
        assert "retrained" not in {text for text, _ in texts(figure.svg)}
        assert not any("Dotted" in line for line in figure.reading)
        assert any("how much such a model would show is not known" in line for line in figure.reading)


def test_several_retrained_models_are_their_mean_and_a_band(tmp_path: Path) -> None:
    figures = drawn(attacked(tmp_path / "r", lambda row: attack(row, models=3)))
    for name in ("relearning", "quantization", "sampling"):
        assert "FillBetween" in figures[name].svg
    for figure in figures.values():
        assert any("the mean of 3 retrained models" in line for line in figure.reading)
        assert any(re.match("retrained, .*: how much it knows .130", title) for title in told(figure.svg))


def test_of_several_seeds_the_first_that_was_attacked_is_drawn(tmp_path: Path) -> None:
    def second(row: dict[str, Any]) -> None:
        if row["seed"] > 0:
            attack(row, shift=0.05 * row["seed"])

    section = attacked(tmp_path / "r", second, seeds=(0, 1, 2))
    figures, table = drawn(section), attack_table(section)
    assert table is not None and table.notes[0].endswith(SEEDS)
    for figure in figures.values():
        assert SEEDS in figure.reading
        assert any("npo+kl, seed 1" in title for title in told(figure.svg))
        assert not any("seed 2" in title or "seed 0" in title for title in told(figure.svg))


def test_the_page_shows_the_pictures_under_the_table(tmp_path: Path) -> None:
    section = attacked(tmp_path / "r")
    page = Page(write_report(list(section.directories), tmp_path / "report.html"))
    at = [page.text.index(words) for words in (TITLE, *(f.title for f in attack_pictures(section)))]
    assert at == sorted(at) and len(page.ids) == len(set(page.ids))
    for figure in attack_pictures(section):
        assert (tmp_path / "pictures" / f"tofu-forget10-{figure.name}.svg").read_text(encoding="utf-8") == figure.svg
    # On a narrow screen every number of the table has its method beside it.
    assert all(page.source.count(f'data-head="{method}"') >= 9 for method in MODELS)


@pytest.mark.parametrize("methods", [1, 4, 10])
def test_names_at_the_ends_of_lines_do_not_touch(methods: int) -> None:
    names = [f"method{k}+nll" for k in range(methods)]
    drawn = [Line(name, ((0.0, 0.1, ""), (1.0, 0.05 + 0.002 * k, ""))) for k, name in enumerate(names)]
    svg = lines([Panel("a", drawn)] * 3, name="x", x="x", y="y", ticks={0.0: "0", 1.0: "1"}, methods=names)
    apart(svg, set(names))
