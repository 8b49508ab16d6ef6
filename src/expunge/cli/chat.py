"""`expunge chat`: ask a checkpoint in the terminal, or compare the answers of two."""

from typing import TYPE_CHECKING, Any

from expunge.data.encode import encode, question_row
from expunge.errors import UserError
from expunge.evals.requests import context_length, generate
from expunge.modeling.causal import CausalLM
from expunge.modeling.loading import load
from expunge.system.escaping import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAVE = {"/exit", "/quit"}

USUAL = 256
"""Most tokens of an answer, or as many as the context leaves."""


def chat(names: list[str], *, max_new_tokens: int | None, console: Any) -> None:
    """Read questions until end of input or `/exit`; a question that is longer than the context is refused."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    models = [load(name) for name in names]
    for name, (model, _) in zip(names, models, strict=True):
        if max_new_tokens is not None and max_new_tokens >= context_length(model):
            raise UserError(
                f"chat: --max-new-tokens must be less than {context_length(model)}, the context of {name}, which holds "
                f"the question too, got {max_new_tokens}."
            )
    console.print("Ask; an empty line, /exit or end of input leaves. Each question is asked by itself.", style="dim")
    while True:
        try:
            question = console.input("[bold]> [/bold]").strip()
        except EOFError:
            break
        if not question or question in LEAVE:
            break
        grid = Table.grid(expand=True)
        for _ in names:
            grid.add_column(ratio=1)
        answers = [answer(*model, question, max_new_tokens=max_new_tokens or USUAL) for model in models]
        # `Text` and `visible`: an answer must neither style nor steer the terminal.
        shown = [
            Panel(Text(visible(text)), title=Text(visible(name)), title_align="left")
            for name, text in zip(names, answers, strict=True)
        ]
        grid.add_row(*shown)
        console.print(grid)


def answer(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", question: str, *, max_new_tokens: int) -> str:
    """The greedy answer of one model to one question, asked as evaluation asks."""
    encoded = encode(question_row(question, "!"), tokenizer)
    prompt = encoded.input_ids[: encoded.start]
    if len(prompt) >= context_length(model):
        return f"(the question has {len(prompt)} tokens; the model's context has {context_length(model)})"
    (generation,) = generate(model, tokenizer, [prompt], max_new_tokens=max_new_tokens, progress=False)
    return generation.text or "(nothing)"
