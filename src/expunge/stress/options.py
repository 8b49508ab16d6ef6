"""Which attacks are made, as a recipe or a command says."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from expunge.system.options import Options

AttackName = Literal["relearning", "quantization", "sampling", "wording", "reasoning", "membership"]

ATTACKS: dict[AttackName, str] = {
    "relearning": "fine-tuning on a few of the forget rows, on rows to keep, or on general questions",
    "quantization": "rounding the weights to 8 and 4 bits, as GGUF files hold them (extra: expunge[gguf])",
    "sampling": "the best of many answers drawn at temperature 1",
    "wording": "the questions in other words, and with the answer begun",
    "reasoning": "asking through another fact, by a part of a name, late in a conversation, where facts are known",
    "membership": "telling the forget rows from rows that no model saw, where there are such",
}


def _names(value: Any) -> Any:
    """Names with commas as a list."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class StressOptions(Options):
    """Attacks on the unlearned model, on the model before unlearning and on the retrained one."""

    attacks: Annotated[list[AttackName], BeforeValidator(_names)] = Field(
        default_factory=lambda: list(ATTACKS),
        min_length=1,
        description="; ".join(f"{k}: {v}" for k, v in ATTACKS.items()),
    )
    quick: bool = Field(default=False, description="fewer rows, settings and samples: a rough answer in a minute")
