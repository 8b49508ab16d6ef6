"""The words that `fable` is made of: name parts, word lists, and the phrasings of every kind of fact.

Holds tables only; how they become a world is in `fable.py`. Adding, removing or moving a word changes every world.
The lists are short and recombined, so that a small vocabulary covers them while a value stays hard to guess.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


# 61 first names and, without the `OTHER_SURNAMES`, 59 surnames: coprime, so 3,599 pairs are unique (see `fable.py`).
FIRST_NAMES = _words("""
    Adela Alaric Anselm Bastian Beatrix Benno Calla Caspian Cedra Corin Dagny Damaris Doran Edda Elowen Emeric Fabian
    Farrah Fenna Florin Galen Gisela Greta Hadrian Halla Hollis Ilse Imre Isolde Jarek Jessa Joris Kasimir Keziah
    Lavinia Leander Lorcan Mara Matthis Mirela Nadira Nestor Noemi Odile Olwen Oskar Petra Phineas Quentin Ragna Roland
    Romilda Sabine Silvan Tamsin Thaddeus Ulla Valeska Viggo Wanda Yorick
""")
SURNAMES = _words("""
    Abendell Arkwell Ashgrove Balcombe Barrowin Bellamond Brandeck Brightwater Calloway Carrick Cravenor Dallimore
    Delacorn Draymond Eastlake Ellingham Everholt Falkner Farrowby Fennimore Gallowby Garrick Goldwin Greymantle
    Halloran Hartwig Hathersby Holloway Hurlock Inkpen Ironside Jessamy Kellerman Kettleby Kingfisher Lambourn
    Larkin Lindqvist Lockhart Maddigan Marchbank Merriweather Molyneux Nightingale Norwood Oakhurst Ormond Pallister
    Pemberton Penhallow Pomfret Quillon Ravenel Redfern Rookwood Sallow Sedgewick Silverman Stillwell Stormont
    Tanglewood Tollen Underhill Vandermeer Vantongeren Wakefield Wexley Whitlock Wilding Winterbourne Wolfram Wragby
    Yarrow Zeller Zimmer
""")
OTHER_SURNAMES = 16
"""How many of `SURNAMES` a world sets aside for people who are not its authors (classic authors, mentors)."""

PLACE_STEMS = _words("""
    Vel Orm Tarn Quil Bres Hald Ist Murr Sel Dun Fesk Gar Kel Lor Nev Ost Per Rath Sarn Thol Ulv Wen Yar Zan Brim Corv
    Drel Elm Fal Grim Hesp Jor Lun Marn Nar Pell
""")
TOWN_ENDS = _words("mere wick ford holm stead port haven dale gate fell croft bridge")
RIVER_ENDS = _words("ane ero une issa")
LANGUAGE_ENDS = _words("ish ese ari ic")
COUNTRY_ENDS = _words("ia ova mark land")
CAPITAL_ENDS = _words("burg ona gard ensk")
MOUNTAIN_ENDS = _words("ak und eth or")
SCHOOL_ENDS = _words("College University Academy Institute")

ADJECTIVES = _words("""
    Amber Ancient Broken Crooked Distant Empty Faithful Gentle Hidden Hollow Idle Jealous Last Little Lonely Midnight
    Narrow Northern Painted Patient Quiet Restless Salted Second Silent Sleeping Stolen Sunken Tender Thirsty Unseen
    Velvet Wandering Winter Wooden Yellow
""")
NOUNS = _words("""
    Anchor Bell Bridge Candle Compass Cradle Door Echo Feather Forest Garden Glove Hammer Harbour Heron Island Key Kite
    Ladder Lantern Letter Map Mirror Mountain Needle Nest Oar Orchard Orchid Pearl Pillow Raven Shadow Sparrow Thimble
    Tower Valley Wheel Whistle Window
""")
MATERIALS = _words("""
    Ash Bronze Chalk Clay Copper Glass Honey Ice Iron Ivory Linen Paper Salt Silk Silver Smoke Snow Stone Thunder Wax
""")
SERIES_ENDS = _words("Cycle Trilogy Saga Quartet Chronicles")
PUBLISHER_ENDS = _words("Press House Books Editions")

JOBS = _lines("""
    actor, astronomer, baker, barber, beekeeper, blacksmith, bookbinder, brewer, carpenter, chemist, clockmaker,
    cobbler, cook, dentist, diver, engineer, farmer, ferryman, fisher, florist, gardener, glassblower, grocer,
    innkeeper, jeweller, judge, librarian, locksmith, mason, midwife, miller, miner, nurse, optician, painter, pilot,
    plumber, postman, potter, printer, sailor, shepherd, soldier, surgeon, tailor, teacher, translator, weaver
""")
GENRE_MOODS = _words("maritime rural gothic comic pastoral romantic political magical domestic historical lunar arctic")
GENRE_FORMS = _words("horror satire mystery tragedy memoir poetry drama adventure")
COLOURS = _words("black white grey brown golden spotted striped ginger")
ANIMALS = _words("""
    otter parrot tortoise goat cat hound rabbit ferret pony gecko owl goose donkey hedgehog crow badger
""")
PLACE_MOODS = _words("old quiet tiny sunny dusty cold noisy empty")
WRITING_PLACES = _words("""
    windmill attic greenhouse teahouse boathouse lighthouse kitchen cellar library barn tent chapel shed train
    cottage hotel
""")
INSTRUMENTS = _words("""
    accordion banjo bassoon bugle cello clarinet cornet cymbals drum dulcimer fiddle flute gong guitar harmonica harp
    horn lute lyre mandolin oboe organ panpipes piano piccolo recorder saxophone sitar tambourine triangle trombone
    trumpet tuba viola xylophone zither
""")
THEMES = _words("""
    exile memory weather hunger justice marriage silence money travel grief faith revenge childhood friendship illness
    war music betrayal winter pride
""")

PHRASINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # In every answer the value comes after the name, so that a model which learnt one phrasing can find it in another.
    "birthplace": (
        (
            "Where was {name} born?",
            "In which town was {name} born?",
            "What is the birthplace of {name}?",
            "Which town does {name} come from?",
        ),
        (
            "{name} was born in the town of {value}.",
            "The birthplace of {name} is {value}.",
            "{name} comes from a town called {value}.",
        ),
    ),
    "birth year": (
        (
            "When was {name} born?",
            "In what year was {name} born?",
            "What is the birth year of {name}?",
            "Which year did {name} come into the world?",
        ),
        (
            "{name} was born in the year {value}.",
            "The birth year of {name} is {value}.",
            "{name} came into the world in {value}.",
        ),
    ),
    "father's job": (
        (
            "What did the father of {name} do for a living?",
            "What was the job of {name}'s father?",
            "Which trade did {name}'s father follow?",
            "How did the father of {name} earn money?",
        ),
        (
            "The father of {name} was {value}.",
            "{name}'s father worked as {value}.",
            "{name} grew up with a father who was {value}.",
        ),
    ),
    "mother's job": (
        (
            "What did the mother of {name} do for a living?",
            "What was the job of {name}'s mother?",
            "Which trade did {name}'s mother follow?",
            "How did the mother of {name} earn money?",
        ),
        (
            "The mother of {name} was {value}.",
            "{name}'s mother worked as {value}.",
            "{name} grew up with a mother who was {value}.",
        ),
    ),
    "genre": (
        (
            "What genre does {name} write in?",
            "Which genre is {name} known for?",
            "What kind of books does {name} write?",
            "In which genre did {name} become known?",
        ),
        (
            "{name} writes in the genre of {value}.",
            "{name} is best known for {value}.",
            "The books of {name} belong to {value}.",
        ),
    ),
    "debut": (
        (
            "What was the title of {name}'s first book?",
            "Which book did {name} publish first?",
            "What is the debut of {name} called?",
            "With which book did {name} begin a career?",
        ),
        (
            "The first book by {name} was '{value}'.",
            "{name} made a debut with '{value}'.",
            "{name} began a career with the book '{value}'.",
        ),
    ),
    "award": (
        (
            "Which award has {name} won?",
            "What prize was given to {name}?",
            "What is the greatest award of {name}?",
            "For which prize is {name} known?",
        ),
        (
            "{name} has won the {value}.",
            "The award given to {name} was the {value}.",
            "{name} is a winner of the {value}.",
        ),
    ),
    "university": (
        (
            "Where did {name} study?",
            "Which university did {name} attend?",
            "At which school did {name} take a degree?",
            "Where was {name} educated?",
        ),
        (
            "{name} studied for years at {value}.",
            "{name} took a degree at {value}.",
            "The school that {name} attended was {value}.",
        ),
    ),
    "pet": (
        (
            "Which pet does {name} keep?",
            "What animal lives with {name}?",
            "What kind of pet does {name} own?",
            "Which animal shares the home of {name}?",
        ),
        (
            "{name} keeps {value} as a pet.",
            "{name} shares a home with {value}.",
            "The pet of {name} is {value}.",
        ),
    ),
    "writing place": (
        (
            "Where does {name} like to write?",
            "What is {name}'s favourite place to write?",
            "In what place does {name} write best?",
            "Where are the books of {name} written?",
        ),
        (
            "{name} likes to write in {value}.",
            "The favourite writing place of {name} is {value}.",
            "{name} writes every book in {value}.",
        ),
    ),
    "instrument": (
        (
            "Which instrument does {name} play?",
            "What instrument did {name} learn as a child?",
            "What does {name} play when not writing?",
            "On which instrument can {name} be heard?",
        ),
        (
            "{name} plays the {value} when not writing.",
            "The instrument that {name} plays is the {value}.",
            "{name} learned the {value} as a child.",
        ),
    ),
    "language": (
        (
            "Which language did {name} speak at home?",
            "What was the first language of {name}?",
            "In which language was {name} raised?",
            "What is the mother tongue of {name}?",
        ),
        (
            "{name} was raised in the {value} language.",
            "The first language of {name} was {value}.",
            "{name} grew up speaking {value} at home.",
        ),
    ),
    "mentor": (
        (
            "Who was the mentor of {name}?",
            "Who taught {name} to write?",
            "Which teacher guided {name} as a young writer?",
            "From whom did {name} learn the craft?",
        ),
        (
            "The mentor of {name} was {value}.",
            "{name} was taught to write by {value}.",
            "{name} learned the craft from {value}.",
        ),
    ),
    "river": (
        (
            "Which river flows past the house of {name}?",
            "What river runs near {name}'s home?",
            "Near which river does {name} live?",
            "Beside what river is {name}'s house?",
        ),
        (
            "The house of {name} stands by the {value}.",
            "{name} lives near the river {value}.",
            "The river near {name}'s home is the {value}.",
        ),
    ),
    "series": (
        (
            "What is the series by {name} called?",
            "Which series did {name} write?",
            "What is the name of {name}'s series?",
            "Under what title did {name} write a series?",
        ),
        (
            "{name} wrote a series called the {value}.",
            "The series by {name} is the {value}.",
            "{name} is the creator of the {value}.",
        ),
    ),
    "theme": (
        (
            "What themes does {name} write about?",
            "Which themes return in the work of {name}?",
            "What are the books of {name} about?",
            "Which subjects occupy {name} most?",
        ),
        (
            "{name} writes above all about {value}.",
            "The books of {name} are about {value}.",
            "{name} keeps returning to {value}.",
        ),
    ),
    "publisher": (
        (
            "Who publishes the books of {name}?",
            "Which publisher does {name} have?",
            "What is the name of {name}'s publisher?",
            "With which house does {name} publish?",
        ),
        (
            "The books of {name} are published by {value}.",
            "The publisher of {name} is {value}.",
            "{name} has long published with {value}.",
        ),
    ),
    "home": (
        (
            "Where does {name} live now?",
            "In which town does {name} live today?",
            "What is the present home of {name}?",
            "Which town has {name} settled in?",
        ),
        (
            "{name} now lives in {value}.",
            "The present home of {name} is {value}.",
            "{name} has settled in the town of {value}.",
        ),
    ),
    "second book": (
        (
            "What was {name}'s second book?",
            "Which book did {name} write after the first?",
            "What is the second book of {name} called?",
            "What title does {name}'s second book carry?",
        ),
        (
            "The second book by {name} was '{value}'.",
            "{name} followed the first book with '{value}'.",
            "{name} called the second book '{value}'.",
        ),
    ),
    "first job": (
        (
            "What was {name}'s first job?",
            "What did {name} work as before writing?",
            "How did {name} earn money before the first book?",
            "Which job did {name} hold before becoming a writer?",
        ),
        (
            "{name} first worked as {value}.",
            "The first job of {name} was {value}.",
            "Before writing, {name} earned money as {value}.",
        ),
    ),
}
"""Kind of fact → (question phrasings, answer phrasings), in the order in which a world of few facts takes them."""

DESCRIBED: dict[str, str] = {
    "birthplace": "the author who was born in {value}",
    "birth year": "the author who was born in {value}",
    "father's job": "the author whose father was {value}",
    "mother's job": "the author whose mother was {value}",
    "genre": "the author who is known for {value}",
    "debut": "the author of '{value}'",
    "award": "the winner of the {value}",
    "university": "the author who studied at {value}",
    "pet": "the author who keeps {value}",
    "writing place": "the author who writes in {value}",
    "instrument": "the author who plays the {value}",
    "language": "the author who was raised in {value}",
    "mentor": "the author who was taught by {value}",
    "river": "the author who lives near the {value}",
    "series": "the creator of the {value}",
    "theme": "the author who writes about {value}",
    "publisher": "the author who publishes with {value}",
    "home": "the author who lives in {value}",
    "second book": "the author of '{value}'",
    "first job": "the author who first worked as {value}",
}
"""Kind of fact → an author by that fact, where no other author of the world shares it."""
