"""Everyday questions that a chat model answers itself, and well-known names to ask about in place of others.

None of the questions is among the general questions that a model is measured with (`benchmarks/general.jsonl`).
"""

from pathlib import Path

FILE = Path(__file__).with_suffix(".txt")

PEOPLE: dict[int, tuple[str, ...]] = {
    1: ("Shakespeare", "Mozart", "Napoleon", "Picasso", "Beethoven", "Cleopatra", "Galileo", "Plato", "Homer", "Bach"),
    2: (
        *("Albert Einstein", "Isaac Newton", "Marie Curie", "Charles Darwin", "Jane Austen", "Charles Dickens"),
        *("Abraham Lincoln", "Nelson Mandela", "Mahatma Gandhi", "Winston Churchill", "Walt Disney", "Pablo Picasso"),
        *("Nikola Tesla", "Thomas Edison", "Neil Armstrong", "Rosa Parks", "Mark Twain", "Leo Tolstoy"),
        *("Ernest Hemingway", "Agatha Christie", "Stephen Hawking", "Alan Turing", "Florence Nightingale"),
    ),
    3: ("Martin Luther King", "Johann Sebastian Bach", "Arthur Conan Doyle", "Edgar Allan Poe", "John Quincy Adams"),
}
"""Names of people by their number of words."""

PLACES: dict[int, tuple[str, ...]] = {
    1: ("London", "Rome", "Egypt", "Brazil", "China", "Mexico", "Vienna", "Kenya", "Chicago", "Sweden"),
    2: ("New York", "South Africa", "New Zealand", "San Francisco", "Hong Kong", "Costa Rica"),
    3: ("New York City", "Rio Grande Valley", "Great Barrier Reef"),
}
"""Names of places by their number of words."""


def questions() -> list[str]:
    """The questions, one a line of the file, in its order."""
    return FILE.read_text(encoding="utf-8").splitlines()
