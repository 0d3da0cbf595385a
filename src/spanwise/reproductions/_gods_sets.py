"""Which sets choose the defaults of GODS, and which ones judge: fixed by a rule before any run.

Sets of one source stay together. Sources in the order of their names' SHA-256 (a set alone by its
name in ADBench, several by what `source_of` calls them) choose, as long as they make no more than
17 sets; handwriting is left to judge, since the digits have to. The other 20
judge, with scikit-learn's digits one against the rest. Of those that choose, one takes no part: a
fit to the 1555 features of InternetAds costs more time than all the others together.
"""

import hashlib

from spanwise.datasets import source_of
from spanwise.datasets.anomalies import ADBENCH, SAME_SOURCE

MOST = 17
TOO_WIDE = ("internetads",)
DIGITS = tuple(f"digit-{digit}" for digit in range(10))


def _choose() -> tuple[str, ...]:
    sources: dict[str, list[str]] = {}
    for name, (file, _) in ADBENCH.items():
        source = source_of(name)
        alone = source not in SAME_SOURCE
        sources.setdefault(file.partition("_")[2] if alone else source, []).append(name)
    found: list[str] = []
    for source in sorted(sources, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if source != "handwriting" and len(found) + len(sources[source]) <= MOST:
            found += sources[source]
    return tuple(found)


CHOOSING = tuple(name for name in _choose() if name not in TOO_WIDE)
REPORTED = tuple(name for name in ADBENCH if name not in _choose())
