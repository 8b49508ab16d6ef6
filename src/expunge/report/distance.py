"""The picture of how far from the retrained model the methods aim and end, after Unilogit's figure 5.

Source: Vasilev et al. 2025, arXiv 2505.06027.
"""

from expunge.evals.glossary import number, show
from expunge.report import panels
from expunge.report.comparison import ReportSection
from expunge.report.course import steps, unit
from expunge.report.picture import Figure, says


def distance(section: ReportSection) -> Figure | None:
    """KL from the retrained model: to the soft labels at the start, to them epoch by epoch, and to the end's model."""
    ends = {
        e.label: (v, says(e.names[0], kl_unlearned=v))
        for e in section.methods
        if (v := e.value("kl_unlearned")) is not None
    }
    if not ends:
        return None
    goals, lines = {}, {}
    for entry in section.methods:
        if (first := entry.value("kl_soft_labels_start")) is None:
            continue
        goals[entry.label] = (first, says(entry.names[0], kl_soft_labels_start=first))
        line = [(0.0, first, says(f"{entry.names[0]}, before", kl_soft_labels=first))]
        for step in steps(entry):
            if (value := number(step.metrics.get("kl_soft_labels"))) is not None:
                words = says(f"{entry.names[0]}, {unit(section)} {step.at:g}", kl_soft_labels=value)
                line.append((step.at, value, words))
        if len(line) > 1:
            lines[entry.label] = line
    parts: list[panels.Stems | panels.Curves] = []
    if goals:
        parts.append(panels.Stems("Soft labels, before", goals))
    if lines:
        parts.append(panels.Curves(f"Soft labels, {unit(section)} by {unit(section)}", unit(section), lines))
    parts.append(panels.Stems("Unlearned model", ends))
    target = section.reference("target")
    start = (target.value("kl_start") or target.value("kl_unlearned")) if target else None
    svg = panels.distances(
        parts,
        base=None if start is None else (start, "target"),
        axis="KL, nats per token",
        methods={e.label: e.inference for e in section.methods},
    )
    reading = [
        "KL(retrained model ‖ …), mean over the tokens of the forget answers: lower is nearer to a model that never "
        "saw them.",
        "Dashed: the target, before unlearning; what lies beyond it is further from the retrained model than doing "
        "nothing."
        if start is not None
        else "",
        "Soft labels are what a self-distilling method pulls towards; other methods have none." if goals else "",
        "Medians over seeds; lines are the first seed." if len(section.seeds) > 1 else "",
    ]
    title = "Distance to the retrained model"
    alt = "; ".join(f"{name} {show('', value)}" for name, (value, _) in ends.items())
    alt += "" if start is None else f"; target {show('', start)}"
    return Figure("distance", title, svg, f"{title}, KL of the unlearned model: {alt}.", [r for r in reading if r])
