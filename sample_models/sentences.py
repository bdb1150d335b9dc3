"""Sentences of known intent, and the WordPiece tokenizer that uncased BERT models share.

Intents lie close together (a card lost, late, declined), so that an embedding has something to tell apart.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import numpy as np

from sample_models.fetch import fetch

LENGTH = 32  # tokens, padded
OPENINGS = (
    "",
    "Hello, ",
    "Hi there. ",
    "Quick question: ",
    "Please help. ",
    "Sorry to bother you, but ",
    "Good morning! ",
)
INTENTS: dict[str, tuple[str, ...]] = {
    "card lost": (
        "I lost my bank card somewhere in town.", "My wallet is gone and the card was inside.",
        "I cannot find my debit card anywhere.", "What should I do when my card is missing?",
        "I think I left my card in a taxi.", "My card fell out of my pocket yesterday.",
    ),
    "card late": (
        "My new card has still not arrived.", "When will the card that I ordered get here?",
        "I have been waiting two weeks for my card.", "How long does delivery of a card take?",
        "Can I track the card you sent me?", "The post did not bring my replacement card.",
    ),
    "card declined": (
        "The shop refused my card today.", "Why was my payment declined at the store?",
        "My card does not work at the cash machine.", "The terminal said that the transaction was not approved.",
        "I tried to pay and my card was rejected.", "Online checkout keeps refusing my card.",
    ),
    "change pin": (
        "How do I change the PIN of my card?", "I want a different secret number for my card.",
        "Where can I set a new pin code?", "I forgot my pin and need another one.",
        "Is it possible to choose my own PIN?", "Please reset the four digits that I type at the machine.",
    ),
    "password": (
        "I forgot the password of my account.", "How can I reset my login?",
        "The website does not accept my password any more.", "I am locked out and cannot sign in.",
        "Send me a link to choose a new password.", "My user name works but the password is wrong.",
    ),
    "refund late": (
        "The refund has not reached my account.", "I returned the shoes, where is my money?",
        "When do I get my money back for the order?", "The store promised a refund ten days ago.",
        "My reimbursement is still missing.", "How long until a refund shows up in my balance?",
    ),
    "charged twice": (
        "I was charged two times for one purchase.", "The same payment appears twice on my statement.",
        "Why did you take the money twice?", "There is a duplicate transaction in my list.",
        "My dinner was billed double.", "One order, but two debits on my account.",
    ),
    "transfer pending": (
        "My transfer is still pending.", "The money that I sent has not arrived at my friend.",
        "Why does a bank transfer take so long?", "How many days until the receiver gets the transfer?",
        "I sent money on Monday and it is not there yet.", "The status of my transfer does not change.",
    ),
    "exchange rate": (
        "Which exchange rate do you use for euros?", "How many dollars do I get for one pound today?",
        "The rate for foreign currency looks wrong.", "Is there a better rate on weekdays?",
        "What do you charge for converting currency?", "I want to swap yen into francs.",
    ),
    "close account": (
        "I want to close my account.", "How do I delete my profile for good?",
        "Please cancel my membership.", "I am leaving your bank, what do I have to do?",
        "Terminate my contract at the end of the month.", "I no longer need this account.",
    ),
    "change address": (
        "I moved and have a new address.", "Please update the street where I live.",
        "How can I change my home address?", "My letters still go to my old flat.",
        "I am moving to another city next week.", "Correct the house number in my details.",
    ),
    "weather": (
        "Will it rain tomorrow afternoon?", "How warm is it going to be on Sunday?",
        "Do I need an umbrella today?", "Is snow expected in the mountains this weekend?",
        "Tell me the forecast for the coast.", "It looks cloudy, is a storm coming?",
    ),
    "restaurant": (
        "Book a table for four at eight.", "Find me an Italian restaurant nearby.",
        "Where can we eat good noodles tonight?", "I would like to reserve dinner on Friday.",
        "Is there a vegetarian place around here?", "Which cafe is open late in the old town?",
    ),
    "train": (
        "When does the next train to the airport leave?", "Is the train from the capital delayed?",
        "I need a ticket to the coast for two adults.", "From which platform does the express go?",
        "How long is the ride to the border?", "Do I have to change trains on the way?",
    ),
}  # fmt: skip


@functools.cache
def vocabulary() -> dict[str, int]:
    """Word piece -> number. The file is Python source, but read as such it would lose the pieces with a backslash."""
    pieces = fetch("wordpieces").read_text(encoding="utf-8").split('"""')[1].split("\n")
    return {piece: number for number, piece in enumerate(pieces)}


def pieces(word: str) -> list[str]:
    """The longest pieces that make up a lower-case word, from its start on; [UNK] where there are none."""
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else f"##{word[start:end]}"
            if piece in vocabulary():
                found.append(piece)
                start = end
                break
        else:
            return ["[UNK]"]
    return found


def encode(sentence: str, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, attention_mask), int64 [length] each: lower case, accents off, [CLS] ... [SEP], padded with 0."""
    plain = "".join(c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn")
    words = re.findall(r"[^\W_]+|[^\w\s]|_", plain)
    tokens = [piece for word in words for piece in pieces(word)][: length - 2]
    row = [vocabulary()[token] for token in ["[CLS]", *tokens, "[SEP]"]]
    ids, mask = np.zeros(length, np.int64), np.zeros(length, np.int64)
    ids[: len(row)], mask[: len(row)] = row, 1
    return ids, mask


def sentence(seed: int, index: int) -> tuple[str, tuple[int, int]]:
    """Sentence `index` of the shuffled list, and (its intent, its wording); past its end, with other openings."""
    wordings = [(kind, at, text) for kind, texts in enumerate(INTENTS.values()) for at, text in enumerate(texts)]
    turn, place = divmod(index, len(wordings))
    kind, at, text = wordings[np.random.default_rng([seed, turn]).permutation(len(wordings))[place]]
    return OPENINGS[turn % len(OPENINGS)] + text, (kind, at)
