"""Writes variants of the forget rows with a model that the user names: one loaded here, or one behind an endpoint.

What it writes is the file that `expunge.data.augment` reads.
"""

import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from expunge.data import augment
from expunge.data.augment import Kind
from expunge.data.benchmark import Row, Variant
from expunge.data.files import file_to_write
from expunge.data.words import caseless
from expunge.errors import UserError
from expunge.secrets import masked_text, remember
from expunge.system.disk import alone, private

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Forget rows that a model is asked about together."""
TRIES = 3
"""How often a row is asked about before what is missing stays missing."""
GIVE_UP = 24
"""A model that has given nothing for this many rows from the first on will give nothing for the others."""
TEMPERATURE = 0.8
REPLY_SECONDS = 600
"""How long an endpoint may be silent."""

PARAPHRASE = """Below are a question and its answer. Write {n} paraphrases of the two together: each asks for the same \
fact and gives the same answer in other words and another sentence structure. Keep every name, number and date, and \
add nothing.

Question: {question}
Answer: {answer}

Reply with {n} lines and nothing else. Each line is one JSON object of this form:
{{"question": "...", "answer": "..."}}"""

REWRITE = """Below is a text. Write it again {n} times, each time in other words and other sentence structures. Keep \
every fact, name, number and date, leave nothing out and add nothing.

Text: {answer}

Reply with {n} lines and nothing else. Each line is one JSON object of this form:
{{"answer": "..."}}"""

WRONG = """Below are a question and its true answer. Write {n} wrong answers to the question. Each has the form and \
length of the true answer and states another, equally plausible fact, as if it were true; none mentions the true \
answer or hints at being wrong.

Question: {question}
True answer: {answer}

Reply with {n} lines and nothing else. Each line is one JSON object of this form:
{{"answer": "..."}}"""

AskModel = Callable[[Sequence[str], int, int], list[str]]
"""(prompts, seed, most new tokens of a reply) → a reply for each prompt."""


def compose(
    forget: Sequence[Row],
    *,
    model: str,
    url: str | None = None,
    out: Path,
    paraphrases: int,
    perturbations: int,
    seed: int,
) -> list[Variant]:
    """Have `model` write variants of every forget row into the file `out`, as far as that lacks them, and read it.

    `model` is a folder or a hub name; with `url` (such as `http://localhost:8000/v1`) the name of a model behind that
    OpenAI-compatible endpoint, whose key is taken from the environment variable `OPENAI_API_KEY`. What is finished is
    appended at once, so the same call goes on with what is missing after an interruption. A row that asks nothing (raw
    text) is rewritten and gets no wrong answers. The same seed asks for the same samples.

    Raises `UserError` for a model that can't be loaded, an endpoint that can't be reached or refuses, a file that
    can't be written or is no file of variants of these rows, and a model that gives nothing usable for any row. Rows
    for which it gives nothing are counted in one warning.
    """
    if paraphrases < 0 or perturbations < 0 or not paraphrases + perturbations:
        raise UserError(f"augment: {paraphrases} paraphrases and {perturbations} perturbations; ask for at least one.")
    out = file_to_write(out, "augment")
    tasks = _tasks(forget, {"paraphrase": paraphrases, "perturbation": perturbations})
    with alone(out.parent, f".{out.name}.lock", at=out):
        try:
            for variant in augment.read(out, forget) if _holds_lines(out) else ():
                tasks[variant.row, variant.kind].held.append(variant.text)
            ask = _endpoint(url, model) if url is not None else _local(model)
            _compose(tasks, len(forget), ask, seed, out)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"augment: {out} can't be written ({reason}); give another --out.") from None
    _report(tasks, model)
    return augment.read(out, forget)


@dataclass(eq=False)
class _Task:
    """The variants of one kind that one row is to have; `held` are those it has, from an earlier call too."""

    number: int
    row: Row
    kind: Kind
    target: int
    held: list[Row] = field(default_factory=list)

    @property
    def wanting(self) -> int:
        return max(0, self.target - len(self.held))

    def prompt(self) -> str:
        question, answer = augment.parts(self.row)
        form = WRONG if self.kind == "perturbation" else PARAPHRASE if question.strip() else REWRITE
        return form.format(n=self.wanting, question=question, answer=answer)

    def tokens(self) -> int:
        """Room for the reply: a token for every two characters, which is ample in most scripts."""
        return self.wanting * (40 + sum(map(len, augment.parts(self.row))) // 2)

    def take(self, reply: str) -> Iterator[Variant]:
        """Hold what is new and usable in `reply`, as far as it is wanted."""
        asked = augment.parts(self.row)[0]
        for question, answer in _pairs(reply, asked if self.kind == "perturbation" or not asked.strip() else None):
            said = {_plain(*augment.parts(row)) for row in (self.row, *self.held)}
            if self.wanting and _plain(question, answer) not in said:
                self.held.append(augment.reworded(self.row, question, answer))
                yield Variant(self.number, self.kind, self.held[-1])


Tasks = dict[tuple[int, Kind], _Task]


def _tasks(forget: Sequence[Row], wanted: dict[Kind, int]) -> Tasks:
    asks = [bool(augment.parts(row)[0].strip()) for row in forget]
    if wanted["perturbation"] and not any(asks):
        log.warning("perturbations is not used: the forget rows ask nothing that could be answered wrongly")
    return {
        (i, kind): _Task(i, row, kind, n if kind == "paraphrase" or asks[i] else 0)
        for i, row in enumerate(forget)
        for kind, n in wanted.items()
    }


def _compose(tasks: Tasks, rows: int, ask: AskModel, seed: int, out: Path) -> None:
    with tqdm(total=rows, desc="augment", leave=False) as bar:
        for first in range(0, rows, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, rows))
            for kind in augment.KINDS:
                for attempt in range(TRIES):
                    batch = [tasks[i, kind] for i in numbers if tasks[i, kind].wanting]
                    if not batch:
                        break
                    # Attempt and row are in the seed: asked again for what is missing, a model would repeat itself.
                    number = zlib.crc32(f"{seed} {attempt} {kind} {first}".encode()) >> 1
                    replies = ask([task.prompt() for task in batch], number, max(task.tokens() for task in batch))
                    taken = [v for task, reply in zip(batch, replies, strict=True) for v in task.take(reply)]
                    if taken:
                        with private(), out.open("a", encoding="utf-8") as stream:
                            stream.write("".join(map(augment.line, taken)))
            bar.update(len(numbers))
            if numbers.stop >= GIVE_UP and not any(task.held for task in tasks.values()):
                return


def _report(tasks: Tasks, model: str) -> None:
    """One warning for the rows that got nothing; an error when that is all of them."""
    if not any(task.held for task in tasks.values()):
        raise UserError(
            f"augment: {model} gave nothing usable for any row, so it can't follow the instruction; take an "
            "instruction-tuned model, or write the file by hand (a line is an object with row, kind, question, answer)."
        )
    for kind in augment.KINDS:
        empty = [task.number for task in tasks.values() if task.kind == kind and task.target and not task.held]
        if empty:
            log.warning("no %s of %d forget rows (first: row %d); add lines by hand", kind, len(empty), empty[0])


def _holds_lines(out: Path) -> bool:
    """Whether an earlier call left something; a last line that it left unfinished is taken off."""
    if not out.exists():
        return False
    whole, newline, _cut = out.read_bytes().rpartition(b"\n")
    with out.open("r+b") as stream:
        stream.truncate(len(whole + newline))
    return bool(whole.strip())


# ---- the reply -----------------------------------------------------------------------------------------------------


def _pairs(reply: str, asked: str | None) -> Iterator[tuple[str, str]]:
    """(question, answer) of every JSON object in a reply; `asked` stands in for questions that are not asked for."""
    for cells in _objects(reply.rpartition("</think>")[2]):
        question, answer = cells.get("question") if asked is None else asked, cells.get("answer")
        if (
            isinstance(question, str)
            and isinstance(answer, str)
            and _says(answer)
            and (asked is not None or _says(question))
        ):
            yield question, answer.strip()


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object with an `answer` in `text`, whatever stands around it: numbers, code fences, a list."""
    decoder = json.JSONDecoder(strict=False)  # models break lines inside of strings
    start = text.find("{")
    while start >= 0:
        end = start + 1
        try:
            cells, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            pass
        else:
            if "answer" in cells:
                yield cells
                end = stop
        start = text.find("{", end)


def _says(text: str) -> bool:
    """Words at all (the form asked for holds "...", which weak models repeat), and none that can't be written."""
    return bool(re.search(r"\w", text)) and not re.search("[\ud800-\udfff]", text)


def _plain(*texts: str) -> tuple[str, ...]:
    """A sentence without case, spaces and the stop: the same for sentences that differ in these alone."""
    return tuple(" ".join(caseless(text).split()).rstrip(" .!?。！？।؟") for text in texts)


# ---- the model -----------------------------------------------------------------------------------------------------


def _local(name: str) -> AskModel:
    """Sample from a model in this process, all prompts in one batch."""
    import torch
    from transformers import pipeline

    from expunge.modeling import loading

    model, tokenizer = loading.load(name)
    if not tokenizer.chat_template:
        log.warning("%s has no chat template, as if it were not instruction-tuned; it is given the bare prompt", name)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    tokenizer.padding_side = "left"
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer, device=device)

    def ask(prompts: Sequence[str], seed: int, most: int) -> list[str]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        torch.manual_seed(seed)
        replies = generator(
            chats if tokenizer.chat_template else list(prompts),
            batch_size=len(prompts),
            return_full_text=False,
            do_sample=True,
            temperature=TEMPERATURE,
            max_new_tokens=most,
        )
        return [str(reply[0]["generated_text"]) for reply in replies]

    return ask


def _endpoint(url: str, name: str) -> AskModel:
    """Ask a model behind an OpenAI-compatible endpoint, all prompts in parallel."""
    import httpx2

    if not re.match(r"https?://\w", url):
        raise UserError(f"augment: url is {url!r}; give the base of the endpoint, like http://localhost:8000/v1.")
    key = os.environ.get("OPENAI_API_KEY")
    remember(url)
    # A plain client: the hub's would send the hub's token where no key is given, and nothing while the hub is offline.
    client = httpx2.Client(
        base_url=url.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {key}"} if key else None,
        timeout=httpx2.Timeout(REPLY_SECONDS, connect=10),
    )

    def one(prompt: str, seed: int, most: int) -> str:
        options = {"model": name, "max_tokens": most, "temperature": TEMPERATURE, "seed": seed}
        asked = {"messages": [{"role": "user", "content": prompt}], **options}
        reply = client.post("chat/completions", json=asked)
        reply.raise_for_status()
        return reply.json()["choices"][0]["message"]["content"] or ""

    def ask(prompts: Sequence[str], seed: int, most: int) -> list[str]:
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                # Each its own seed: the same one would give rows that are alike the same noise.
                return list(pool.map(one, prompts, range(seed, seed + len(prompts)), [most] * len(prompts)))
        except httpx2.HTTPStatusError as error:
            said = _without(prompts, error.response.text)
            raise UserError(
                f"augment: {url} refuses ({error.response.status_code}: {said}); check the url (it often ends in "
                f"/v1), the model's name {name!r} and OPENAI_API_KEY, and call again to go on."
            ) from None
        except Exception as error:  # the client's transport has many: no connection, time out, no JSON, other fields
            reason = _without(prompts, str(error)) or type(error).__name__
            raise UserError(
                f"augment: {url} gives no chat completion ({reason}); start the endpoint or mend the url, and call "
                "again to go on."
            ) from None

    return ask


def _without(prompts: Sequence[str], said: str) -> str:
    """The first line of what an endpoint says, short; nothing of it where it repeats a text that it was asked about."""
    lines = [line.partition(": ")[2] or line for prompt in prompts for line in prompt.splitlines()]
    if any(len(line) >= 8 and (line in said or json.dumps(line)[1:-1] in said) for line in lines):
        return "its reason repeats the text"
    return masked_text(said.strip()).partition("\n")[0][:200]
