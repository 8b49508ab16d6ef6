"""Run directories → one offline HTML page with its pictures, and the Markdown tables of docs/results.

`glossary` knows what a metric is called, `comparison` which rows may be compared and which method is best, `records`
reads the examples behind numbers. `judgement` and `harm` answer what a reader asks, `wording` says it, `advice` what to
do next, `box` puts the answers where they stand; `verdict` says the numbers in the words of the field. `overview` knows
the splits of one benchmark; `figures`, `course`, `distance` and `pareto` choose what is drawn, `drawing`, `panels`
and `strips` draw it, `labels` finds room for names; `answers` chooses what the models say, `origin` tells where it is
from, `table` lays out cells; `page` and `markdown` put it together. None of them knows how a number came about, and
none shows one that is not in `results.json`, in records, or the median of such numbers over seeds. Needs no torch.
"""

from expunge.report.comparison import load_results
from expunge.report.markdown import markdown_table, write_markdown
from expunge.report.page import write_report

__all__ = ["load_results", "markdown_table", "write_markdown", "write_report"]
