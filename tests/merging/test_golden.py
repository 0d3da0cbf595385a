"""Exact outputs that were written once, by formulas that share no line with the library."""

import json

import numpy as np
import pytest
import torch
from tests.merging.golden import CASES, FILE, SHAPES, arrays, case_of, name_of

from spanwise.merging import METHODS, Stats, merge

HELD = arrays(json.loads(FILE.read_text()))
cases = pytest.mark.parametrize(
    ("method", "options", "formula"), CASES, ids=[name_of(m, o) for m, o, _ in CASES]
)


def test_every_method_has_its_numbers():
    assert {method for method, _, _ in CASES} == set(METHODS)
    assert {name_of(m, o) for m, o, _ in CASES} == set(HELD["outputs"])


@cases
def test_the_formula_still_gives_its_numbers(method, options, formula):
    found = formula(case_of(HELD["inputs"], method), **options)
    for name in SHAPES:
        expected = HELD["outputs"][name_of(method, options)][name]
        assert np.abs(found[name] - expected).max() < 1e-12


@cases
@pytest.mark.filterwarnings("ignore:.*lack statistics")
def test_the_method_gives_the_numbers_of_its_formula(method, options, formula):
    case = case_of(HELD["inputs"], method)
    base, *tuned = (
        {name: torch.tensor(held[name]) for name in SHAPES}
        for held in (case["base"], *case["tuned"])
    )
    stats = {}
    if method in ("fisher", "regmean", "mats"):
        held = [
            {n: {k: torch.tensor(x) for k, x in own.items()} for n, own in s.items()}
            for s in case["stats"]
        ]
        stats = {"stats": [Stats.from_means(means) for means in held]}
    merged = merge(base, tuned, method, work_dtype=torch.float64, **stats, **options)
    for name in SHAPES:
        expected = torch.tensor(HELD["outputs"][name_of(method, options)][name])
        # Float64 on numbers of about 1; conjugate gradient amplifies rounding a little.
        assert float((merged[name] - expected).abs().max()) < 1e-10
