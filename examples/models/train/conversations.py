"""Turn documents into short conversations: a section's heading is the question, its first paragraphs the answer."""

import random
from collections import Counter

from corpus import Document
from tokenizer import ASSISTANT, BOS, END, USER

QUESTIONS = ("Tell me about {}.", "What is {}?", "Explain {}.", "Describe {}.", "What do you know about {}?", "{}")
MOST_TURNS = 4


def count_headings(documents: list[Document]) -> Counter[str]:
    return Counter(heading for document in documents for heading, _ in document.sections)


def write_conversations(document: Document, headings: Counter[str], rng: random.Random) -> list[str]:
    """Conversations of one to `MOST_TURNS` turns; headings in more than three places name no topic."""
    turns = [
        f"{USER}{rng.choice(QUESTIONS).format(heading)}{ASSISTANT}{answer}{END}"
        for heading, paragraphs in document.sections
        if heading and headings[heading] <= 3 and (answer := _answer(paragraphs))
    ]
    conversations = []
    while turns:
        count = rng.randint(1, MOST_TURNS)
        conversations.append(BOS + "".join(turns[:count]))
        turns = turns[count:]
    return conversations


def _answer(paragraphs: list[str]) -> str:
    answer = paragraphs[0]
    if len(answer) < 160 and len(paragraphs) > 1:
        answer = f"{answer} {paragraphs[1]}"
    return answer if len(answer) <= 700 and answer[-1] in ".!?" else ""
