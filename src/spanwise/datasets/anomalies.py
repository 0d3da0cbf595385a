"""Tables with known anomalies, for detectors: real sets by name."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from spanwise._lazy import require
from spanwise.datasets.resolve import Asset, locate, nearest

_ORIGIN = (
    "https://raw.githubusercontent.com/Minqi824/ADBench/3dac8221081e/adbench/datasets/Classical/"
)
ADBENCH = {
    "annthyroid": (
        "2_annthyroid",
        "e738f7c58a8740d2c4aac4c71ff49ce5e1d1aa16f44178135fc9c09df05fad1b",
    ),
    "breastw": ("4_breastw", "4f37ce07dbc25ddad8178fdc6d664ab46d2d0000ee28c2787c3c7ff3c03ef9f6"),
    "campaign": ("5_campaign", "74dd4d0072d6c6f1aabab63bc102f9633454f32bb936fa9bcfbd38f9f2386bcd"),
    "cardio": ("6_cardio", "bc5009bde6930b4d298b594f31b34485a9a17210cff0e8fb00a8c3068b885a2d"),
    "cardiotocography": (
        "7_Cardiotocography",
        "5ae84910430f05923e11b6f537243263977c9136949dabd891e3570aeec51e29",
    ),
    "fault": ("12_fault", "ec27301f9a4cf7c5d8b22c360cf37ddb043b7fb062465723dfd8b34e2771e5dd"),
    "glass": ("14_glass", "aa7a8db1d475ba01a10488af454bc15220a3d5951b010b03b7020567d8152cdc"),
    "hepatitis": (
        "15_Hepatitis",
        "4a87a2f7d8013e5bfde63294fae61ec7a612322de72f338a7f9491749025ad98",
    ),
    "internetads": (
        "17_InternetAds",
        "bdd8ad5cf5bf2cb96cba53dde30d522d0f6a279083a8e2bc7efbac5981b04385",
    ),
    "ionosphere": (
        "18_Ionosphere",
        "bca46cb0cfd1bf9ddef6cde5ad2215d54fb0189508d0d4c4eb98e788cad69001",
    ),
    "landsat": ("19_landsat", "ba17e2158c07469597b89db49d3982c874c6b713ff6670721ddc88969da77987"),
    "letter": ("20_letter", "f986d3da80cf1fa2aea83a5ebe73b7d4800e0d4c01fdd1ae074b58d20f10d039"),
    "lymphography": (
        "21_Lymphography",
        "dad977b04f4ea65b78ccd0e9f76b45175bad605165b37e63f3cc177845e67037",
    ),
    "mammography": (
        "23_mammography",
        "a0308ac9712d78321073b1c2dc98dc37665c0f35c1cc33019416fe8f8d7de7ea",
    ),
    "mnist": ("24_mnist", "be7706272325fdd3592c1be555ae1a82f916a2f8545f4f8cbaa548ab102cc44c"),
    "musk": ("25_musk", "2ed3f4392197b76a1e59116ff880c7720a4b026cf4842073a53b56fdea265017"),
    "optdigits": (
        "26_optdigits",
        "60de17a375a278ba220a7849727d998aa02b5e2f9fd17732a004bba28de4656e",
    ),
    "pageblocks": (
        "27_PageBlocks",
        "10a9b4d5bb5d3b9083caab4c4062f665610eada703c3d927bf7c34b1f2d0d223",
    ),
    "pendigits": (
        "28_pendigits",
        "c4936b89dcdad59d303020e492f763a0f54170080d787c77497609acbb9c2d79",
    ),
    "pima": ("29_Pima", "215454bb263a2f040945c9ea7bd7f06f1e89a61a3143bdb6f196e3887e801a7d"),
    "satellite": (
        "30_satellite",
        "1f048f5686f1b8c16a227fdfa3c81a62cd9a92715714a6b24c69b1c5ad96b46e",
    ),
    "satimage-2": (
        "31_satimage-2",
        "1b056e357f801b8b20c3f380a30224a3c4088d7ed764ec5a24828dc9b1918d6f",
    ),
    "shuttle": ("32_shuttle", "26900b0f6be45d9ddb7a402c9b2f956ceda42d23a8ca4cf4406b8bc1352823d1"),
    "skin": ("33_skin", "d02aa01ffc1b6bf2b8b1ac250c90e8a8eacd0cefc962940ed5cc4bf5deac9c95"),
    "smtp": ("34_smtp", "d2569fc9bc12115419e3f5b37d19921e10e6c26e5ad1e61064cfb0fbc402dfdd"),
    "spambase": ("35_SpamBase", "d0c46c7928e43f6496bcd06e09de0b70f6bc8143792dfa0a43f450263d254e9b"),
    "stamps": ("37_Stamps", "99fe739447284f613fa54bf2dccdb51c5120175ce6260adec6dad77576c42509"),
    "thyroid": ("38_thyroid", "8de161b3f235b7647bb0b39a836d983ff61d67bf234edac461da2d71e889cb87"),
    "vertebral": (
        "39_vertebral",
        "0816286f92b96fe6867664a41a031ac7228dcfbf1a5feefe50ca3883b2e9073d",
    ),
    "vowels": ("40_vowels", "4bfc4244d1c882773bbbc50d4a5db5e52276e53506e46b2d45e02d074cfcb1b6"),
    "waveform": ("41_Waveform", "6c9d867337ad1a2f8372c1d27f4c032f0401237e2041b7c45f00de8d319ff30f"),
    "wbc": ("42_WBC", "650f9dcb129248f67a291be0974f533ef259fcbde50fce5c8ad2a1cb2652d03b"),
    "wdbc": ("43_WDBC", "78d4606a1ab516f5b60b00c196497f3bbd6bd5e4548fd04cf5f2475209b34b85"),
    "wilt": ("44_Wilt", "c70b72aa611ec87b20efb400943ef3ce4f8bf7aa58fcef825fbd28cc5cee3cc9"),
    "wine": ("45_wine", "d5ad8965d92cc57122fe1e6572bb301adbaf795b3e166d187ae00a704d8f6e20"),
    "wpbc": ("46_WPBC", "68a6d67242643855713bcdad07d89ecc472bd00000dccc17ba87916eb2693d19"),
    "yeast": ("47_yeast", "bbb15c873d78a4f6a589f46d0f75814595e2282d2ae7ce7779c750f276c3770d"),
}
"""Name -> (file, its sha256); the sets of ADBench below 0.8 MB."""

SAME_SOURCE = {
    "handwriting": ("mnist", "optdigits", "pendigits", *(f"digit-{digit}" for digit in range(10))),
    "wisconsin": ("breastw", "wbc", "wdbc", "wpbc", "breast-cancer"),
    "landsat": ("landsat", "satellite", "satimage-2"),
    "thyroid": ("annthyroid", "thyroid"),
    "cardiotocography": ("cardio", "cardiotocography"),
}


@dataclass(frozen=True, kw_only=True)
class AnomalySet:
    """Samples in rows, and which of them are anomalies."""

    name: str
    X: np.ndarray
    """Samples, `(n, d)`, float64."""
    y: np.ndarray
    """True for an anomaly, `(n,)`."""

    @cached_property
    def digest(self) -> str:
        """sha256 over shape, samples and labels."""
        sha = hashlib.sha256(repr(self.X.shape).encode())
        for part in (self.X, self.y):
            sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()

    def __len__(self) -> int:
        return len(self.y)


def adbench(name: str) -> AnomalySet:
    """One of the 37 sets of ADBench that are below 0.8 MB, by its name in lower case.

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If the file is nowhere.

    Sources:
        Han et al., "ADBench: Anomaly detection benchmark", 2022; licence BSD-2-Clause, the tables
        from UCI, ODDS and other public sources.
    """
    if name not in ADBENCH:
        raise ValueError(f"unknown set {name!r}. {nearest(name, list(ADBENCH))}")
    file, sha256 = ADBENCH[name]
    asset = Asset(
        path=f"adbench/{file}.npz",
        url=f"{_ORIGIN}{file}.npz",
        sha256=sha256,
        licence="BSD-2-Clause",
    )
    with np.load(locate(name, asset)) as held:
        return AnomalySet(name=name, X=held["X"].astype(np.float64), y=held["y"].ravel() != 0)


def digit_against_rest(digit: int) -> AnomalySet:
    """Handwritten digits of 8 x 8 pixels, 1797 of them, that scikit-learn carries: one is normal.

    Raises:
        ValueError: If `digit` is not in 0 to 9.
        ModuleNotFoundError: If scikit-learn is missing.
    """
    if not 0 <= digit <= 9:
        raise ValueError(f"digit must be from 0 to 9, got {digit}.")
    X, y = require("sklearn.datasets", "the digits").load_digits(return_X_y=True)
    return AnomalySet(name=f"digit-{digit}", X=X.astype(np.float64), y=y != digit)


def breast_cancer() -> AnomalySet:
    """569 tumours by 30 features, that scikit-learn carries; malignant ones are the anomalies."""
    X, y = require("sklearn.datasets", "the tumours").load_breast_cancer(return_X_y=True)
    return AnomalySet(name="breast-cancer", X=X.astype(np.float64), y=y == 0)


ANOMALIES: dict[str, Callable[[], AnomalySet]] = {
    **{name: partial(adbench, name) for name in ADBENCH},
    **{f"digit-{digit}": partial(digit_against_rest, digit) for digit in range(10)},
    "breast-cancer": breast_cancer,
}
"""Name -> reader."""


def load_anomalies(name: str) -> AnomalySet:
    """A table with known anomalies by name.

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If the data is nowhere.
        ModuleNotFoundError: If scikit-learn carries it and is missing.

    Example:
        >>> load_anomalies("digit-0").X.shape
        (1797, 64)
    """
    if name not in ANOMALIES:
        raise ValueError(f"unknown set {name!r}. {nearest(name, list(ANOMALIES))}")
    return ANOMALIES[name]()


def source_of(name: str) -> str:
    """What a set was cut from: sets of one source tell of each other and belong together."""
    return next((source for source, names in SAME_SOURCE.items() if name in names), name)
