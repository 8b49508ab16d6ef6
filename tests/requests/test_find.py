"""Finding the rows about a person: planted names, aliases, typing errors and copies, and what is not about her."""

import json
import random
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks import fable
from expunge.cli.main import main
from expunge.data.formats import read_rows
from expunge.errors import UserError
from expunge.requests.find import find
from expunge.requests.people import Person, read_people
from expunge.requests.sources import search_in

pytest.importorskip("rapidfuzz", reason="needs the extra expunge[requests]")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PLANTED = [
    Person(name="Marguerite Okonkwo", aliases=("Maggie O.", "the Velvet Auditor"), identifiers=("m.o@post.example",)),
    Person(name="Søren Dahlström", aliases=("Sorrel Dahl",), identifiers=("4711-0822",)),
    Person(name="Priya Venkataraman", aliases=("P. V. Raman",), identifiers=("+49 30 5550 1997",)),
    Person(name="Jean-Luc Beauchêne", aliases=("Jeannot Lapin",)),
    Person(name="Танана Кузнецова", aliases=("Таня Кузнец",)),
]  # fmt: skip


def typo(name: str, draw: random.Random) -> str:
    """The name with a letter dropped, doubled, replaced or swapped inside one of its long words."""
    words = name.split(" ")
    i = max(range(len(words)), key=lambda k: len(words[k]) + draw.random())
    word, at = words[i], draw.randrange(1, len(words[i]) - 1)
    way = draw.randrange(4)
    if way == 0:
        word = word[:at] + word[at + 1 :]
    elif way == 1:
        word = word[:at] + word[at] + word[at:]
    elif way == 2:
        word = word[:at] + draw.choice(LETTERS) + word[at + 1 :]
    else:
        word = word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
    return " ".join([*words[:i], word, *words[i + 1 :]])


def written(person: Person, draw: random.Random) -> list[str]:
    """Ways in which rows speak of a person."""
    last = person.name.split()[-1]
    return [
        person.name, person.name.upper(), person.name.lower(), *person.aliases, *person.identifiers,
        f"{last}, {person.name.removesuffix(last).strip()}", person.name.replace(" ", "\u00a0"),
        *(typo(person.name, draw) for _ in range(4)),
    ]  # fmt: skip


def planted(rows: Sequence[dict[str, Any]], form: str, draw: random.Random) -> tuple[list[Any], dict[str, set[int]]]:
    """`rows` with rows about every person among them, and where these are."""
    about = []
    for person in PLANTED:
        for way in written(person, draw):
            said = draw.choice(["The file of {} was closed.", "We wrote to {} in spring.", "Nobody asked {} about it."])
            answer = said.format(way)
            row = {"question": "What is in the file?", "answer": answer} if form == "question" else {"text": answer}
            about.append((person.name, row))
    mixed = [*(("", row) for row in rows), *about]
    draw.shuffle(mixed)
    where: dict[str, set[int]] = {person.name: set() for person in PLANTED}
    for i, (name, _) in enumerate(mixed):
        if name:
            where[name].add(i)
    return [row for _, row in mixed], where


@pytest.mark.parametrize("form", ["question", "text"])
@pytest.mark.parametrize("seed", range(5))
def test_every_planted_row_is_found_and_hardly_another(seed: int, form: str) -> None:
    draw = random.Random(seed)
    world = fable.load(authors=40, seed=seed)
    rows = [*world.retain, *world.forget]
    if form == "text":
        rows = [{"text": f"{row['question']} {row['answer']}"} for row in rows]
    mixed, where = planted(rows, form, draw)
    found = find(PLANTED, [(f"rows.jsonl:{i + 1}", row) for i, row in enumerate(mixed)], progress=False)
    for name, there in where.items():
        taken = {each.row for each in found if each.person == name and each.taken}
        assert there <= taken, [mixed[i] for i in there - taken]
        assert len(there) >= 0.95 * len(taken)


@pytest.mark.parametrize("seed", range(3))
def test_every_author_of_fable_has_her_own_rows_and_no_other(seed: int) -> None:
    world = fable.load(authors=40, facts=4, seed=seed)
    rows = [*world.retain, *world.forget]
    names = [fable._World.draw(seed).author(i) for i in range(40)]
    found = find([Person(name=n) for n in names], [(f"r:{i}", row) for i, row in enumerate(rows)], progress=False)
    for i, name in enumerate(names):
        assert {each.row for each in found if each.person == name and each.taken} == set(range(4 * i, 4 * i + 4))


COMMON = {
    "May went home.": False,  # opens a sentence, where the verb may, too; listed
    "In the evening, May went home.": True,
    "We saw May and her brother.": True,
    "You may go, and may you return.": None,
    "MAY CONTAIN NUTS": False,
    "It was dismay; maybe the Mayor, Maya or Mays.": None,
    "It rained in May and on 3 May 2021.": False,
    "May I ask?": False,
}


def test_a_name_that_is_a_common_word_does_not_flood() -> None:
    often = [("r", {"text": f"You may ask, row {i}, and you may wait until May {i}."}) for i in range(200)]
    records = [("r", {"text": text}) for text in COMMON]
    found = find([Person(name="May")], [*records, *often], progress=False)
    assert {text: next((e.taken for e in found if e.row == i), None) for i, text in enumerate(COMMON)} == COMMON
    assert not any(each.taken for each in found if each.row >= len(COMMON))
    whole = find(
        [Person(name="May Lindqvist")], [("r", {"text": "may lindqvist, MAY LINDQVIST"}), *often], progress=False
    )
    assert [each.row for each in whole] == [0]


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("ZOË ＡＢＥＮＤＥＬＬ came", True),
        ("Zoe\u0308 Aben\u00addell came", True),
        ("zoe abendell", True),
        ("Abendell, Zoe", True),
        ("ZoeAbendell", True),
        ("Zoe Maria Abendell", False),
        ("Z. Abendell", False),
        ("Zoe Abendella Street", True),
        ("Zoe and Abendell's friend", False),
        ("Abendellson Zoebert", None),
    ],
)  # fmt: skip
def test_ways_to_write_a_name(text: str, taken: bool | None) -> None:
    found = find([Person(name="Zoë Abendell")], [("r", {"text": text})], progress=False)
    assert next((each.taken for each in found), None) is taken


@pytest.mark.parametrize(
    ("identifier", "text", "is_found"),
    [
        ("ada@quill.example", "Write to ADA@quill.example.", True),
        ("ada@quill.example", "Write to bada@quill.example", False),
        ("ada@quill.example", "Write to ada@quill.example.org", False),
        ("ada@quill.example", "Ada quill example", False),
        ("+49 30 5550199", "call +49-30-555 01 99 now", True),
        ("+49 30 5550199", "call 49305550199", True),
        ("+49 30 5550199", "call 149305550199", False),
        ("K-4711", "customer k-4711", True),
        ("K-4711", "customer K-47112", False),
        ("customer 17", "of Customer  17, as", True),
    ],
)
def test_identifiers_end_where_they_end(identifier: str, text: str, is_found: bool) -> None:
    people = [Person(name="Ada Quill", identifiers=(identifier,))]
    assert any(each.reason.startswith("identifier") for each in find(people, [("r", {"text": text})])) is is_found


def test_a_column_of_numbers_is_searched_and_a_name_across_two_columns_is_found() -> None:
    records = [("r", {"customer": 47110815, "paid": True}), ("r", {"first": "Ada", "last": "Quill"})]
    found = find([Person(name="Ada Quill", identifiers=("47110815",))], records, progress=False)
    assert [each.row for each in found if each.taken] == [0, 1]


def test_a_similar_name_that_stands_in_many_places_is_somebody_else_s() -> None:
    records = [("r", {"text": f"Joan Smithers paid bill {i}."}) for i in range(4)]
    records += [("r", {"text": "John Smithers paid."}), ("r", {"text": "John Smiters paid."})]
    found = find([Person(name="John Smithers")], records, progress=False)
    assert {each.row: each.taken for each in found} == {4: True, 5: True, 0: False, 1: False, 2: False, 3: False}
    both = find([Person(name="John Smithers"), Person(name="Joan Smithers")], records, progress=False)
    assert {(e.person, e.row) for e in both if e.taken} == {
        ("John Smithers", 4), ("John Smithers", 5), *(("Joan Smithers", i) for i in range(4)),
    }  # fmt: skip


STORY = "After the flood she kept the lighthouse alone for eleven winters and wrote down every ship that passed."


def test_copies_of_rows_and_of_the_text_are_found_and_forms_about_others_are_not() -> None:
    form = "Dear {}, thank you for your order of garden chairs, which we will deliver to your door within ten days."
    records = [
        ("r", {"text": form.format("Ada Quill")}),
        ("r", {"text": form.format("madam")}),
        ("r", {"text": form.format("Bo Marsh")}),
        ("r", {"text": f"A chapter. {STORY.replace('alone', 'quite alone')}"}),
        ("r", {"text": "A chapter about ships that passed, and about winters, and the sea in the north of the land."}),
    ]
    found = find([Person(name="Ada Quill", text=(STORY,))], records, progress=False)
    assert {each.row: each.taken for each in found} == {0: True, 1: True, 3: True, 2: False}
    assert found[1].reason.startswith("near-copy") or found[2].reason.startswith("near-copy")


def test_the_command_writes_rows_that_forget_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data" / "deep"
    data.mkdir(parents=True)
    rows = [{"question": "Who paid?", "answer": "Ada Quill paid.", "id": 7}, {"question": "Who?", "answer": "Bo."}]
    (data / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (data / "b.csv").write_text("first,last,town\nAda,Quill,Lunport\nBo,Marsh,Velona\n", encoding="utf-8")
    (data / "c.txt").write_text("<b>A letter</b> from Ada Quil.", encoding="utf-8")
    (data / "d.pdf").write_bytes(b"%PDF")
    who, out = tmp_path / "who.yaml", tmp_path / "out"
    who.write_text("name: Ada Quill\nidentifiers: 0471\n", encoding="utf-8")
    command = ["find", "--who", str(who), "--in", str(tmp_path / "data"), "--out", str(out)]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Ada Quill 3 0" in shown and "5 records searched" in shown
    assert [dict(row) for row in read_rows(out / "forget.jsonl")] == [
        {"question": "Who paid?", "answer": "Ada Quill paid."}
    ]
    assert json.loads((out / "forget.jsonl").read_text()) == rows[0]  # as it is, with every column
    assert json.loads((out / "forget-other.jsonl").read_text())["town"] == "Lunport"
    listed = [json.loads(line) for line in (out / "found.jsonl").read_text().splitlines()]
    assert {each["written_to"] for each in listed} == {"forget.jsonl", "forget-other.jsonl", "forget-text.jsonl"}
    assert listed[0]["where"].endswith("a.jsonl:1") and listed[0]["line"] == 1
    page = (out / "found.html").read_text()
    assert "a.jsonl:1" in page and "<b>A letter" not in page and "&lt;b&gt;A letter" in page
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    who.write_text("name: Nobody Here\n", encoding="utf-8")
    assert main([*command, "--overwrite"]) == 0
    assert not (out / "forget.jsonl").exists()  # of the earlier search


def test_files_that_can_t_be_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("Ada", encoding="utf-8")
    (tmp_path / "b.PDF").write_bytes(b"1")
    (tmp_path / "c").write_bytes(b"1")
    assert len(search_in([tmp_path])) == 1
    assert "not searched: 1 .pdf, 1 without an extension" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nam: Ada", r"unknown option 'nam'\. Did you mean 'name'\?"),
        ("aliases: [Ada]", "name is missing"),
        ("name: A", "at least 2 letters"),
        ("{name: Ada, identifiers: [17]}", r"at least 4 letters or digits, got '17'"),
        ("name: Ada\nname: Bo", "'name' twice"),
        ("[{name: Ada}, {name: Ada}]", "two persons called 'Ada'"),
        ("Ada", "holds no person"),
        ("name: [", "not valid YAML"),
    ],
)
def test_mistakes_in_who_are_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "who.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"who\.yaml.*{says}"):
        read_people(tmp_path / "who.yaml")


def test_who_reads_text_alone(tmp_path: Path) -> None:
    (tmp_path / "who.yaml").write_text(
        "- names: [Ada Quill, Ada Marsh]\n  identifiers: [0471]\n- name: 阿达\n", encoding="utf-8"
    )
    ada, chinese = read_people(tmp_path / "who.yaml")
    assert (ada.name, ada.aliases, ada.identifiers) == ("Ada Quill", ("Ada Marsh",), ("0471",))
    assert [each.row for each in find([chinese], [("r", {"text": "我认识阿达。"}), ("r", {"text": "阿里"})])] == [0]
