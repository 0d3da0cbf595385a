"""Every way of merging written out as its formula, and the exact outputs kept of it.

`python -m tests.merging.golden` writes `golden.json` anew from the formulas below, which share no
line with the library. Numbers there change only if a formula does, which is then a change of what
a method means.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

FILE = Path(__file__).with_name("golden.json")
SHAPES = {"layers.0.w.weight": (5, 4), "layers.1.v.weight": (3, 6), "layers.1.v.bias": (3,)}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]


def drawn_inputs():
    """A base, three fine-tunes and their statistics, rounded to eight binary digits."""
    rng = np.random.default_rng(2026)

    def draw(*shape):
        return np.round(256 * rng.standard_normal(shape)) / 256

    base = {name: draw(*shape) for name, shape in SHAPES.items()}
    tuned = [{name: base[name] + draw(*SHAPES[name]) / 8 for name in SHAPES} for _ in range(3)]
    stats = []
    for _ in tuned:
        held = {name: {"diag_fisher": draw(*SHAPES[name]) ** 2} for name in SHAPES}
        for name in MATRICES:
            m, n = SHAPES[name]
            for kind, size in (("gram", n), ("gradient_gram", m)):
                x = draw(2 * size, size)
                held[name][kind] = x.T @ x / len(x)
        stats.append(held)
    return {"base": base, "tuned": tuned, "stats": stats}


# -- element by element ---------------------------------------------------------------------------


def linear(case, weight):
    return {
        n: sum(w * t[n] for w, t in zip(weight, case["tuned"], strict=True)) / sum(weight)
        for n in SHAPES
    }


def task_arithmetic(case, weight):
    return added(case, lambda n, d: sum(w * x for w, x in zip(weight, d, strict=True)))


def ties(case, density):
    """One threshold for the whole model."""
    flat = [
        np.concatenate([d.ravel() for d in parts]) for parts in zip(*by_name(case), strict=True)
    ]
    kept = []
    for x in flat:
        k = len(x) - int(len(x) * density)
        kept.append(np.where(np.abs(x) >= np.sort(np.abs(x))[k - 1], x, 0))
    return unflattened(case, elected(kept, "majority"))


def ties_by_tensor(case, density):
    def one(name, d):
        kept = []
        for x in d:
            order = np.argsort(-np.abs(x).ravel(), kind="stable")
            mask = np.zeros(x.size)
            mask[order[: int(x.size * density)]] = 1
            kept.append(x * mask.reshape(x.shape))
        return elected(kept, "plus")

    return added(case, one)


def dare(case, density, *, elect=False):
    def one(name, d):
        kept = [
            np.where(integers(t, name, x.shape) < edge(density), x, 0) / density
            for t, x in enumerate(d, start=1)
        ]
        return elected(kept, "plus") if elect else sum(kept)

    return added(case, one)


def della(case, density, epsilon, *, elect=False):
    def one(name, d):
        kept = []
        for t, x in enumerate(d, start=1):
            rows = x.reshape(-1, x.shape[-1])
            numbers = integers(t, name, x.shape).reshape(rows.shape)
            out = np.zeros_like(rows)
            for i, row in enumerate(rows):
                for rank, j in enumerate(np.argsort(np.abs(row), kind="stable")):
                    chance = density - epsilon + 2 * epsilon * rank / (len(row) - 1)
                    if numbers[i, rank] < edge(chance):
                        out[i, j] = row[j] / chance
            kept.append(out.reshape(x.shape))
        return elected(kept, "plus") if elect else sum(kept)

    return added(case, one)


def breadcrumbs(case, density, gamma, *, elect=False, average=False):
    def one(name, d):
        kept = []
        for x in d:
            out = np.zeros_like(x).reshape(-1, x.shape[-1])
            for i, row in enumerate(x.reshape(-1, x.shape[-1])):
                n = len(row)
                order = np.argsort(-np.abs(row), kind="stable")
                some = order[int(n * gamma) : int(n * gamma) + int(n * density)]
                out[i, some] = row[some]
            kept.append(out.reshape(x.shape))
        return elected(kept, "plus", average=average) if elect else sum(kept)

    return added(case, one)


def fisher(case):
    floored = [{n: np.maximum(s[n]["diag_fisher"], 1e-8) for n in SHAPES} for s in case["stats"]]
    return {
        n: sum(f[n] * t[n] for f, t in zip(floored, case["tuned"], strict=True))
        / sum(f[n] for f in floored)
        for n in SHAPES
    }


# -- angles ---------------------------------------------------------------------------------------


def slerp(case, t):
    return {n: arc(case["tuned"][0][n], case["tuned"][1][n], t) for n in SHAPES}


def nuslerp(case, weight):
    return added(case, lambda n, d: arc(d[0], d[1], weight[1] / sum(weight)))


def model_stock(case):
    def one(name, d):
        count = len(d)
        pairs = [cosine(d[i], d[j]) for i in range(count) for j in range(i)]
        c = max(0.0, float(np.mean(pairs)))
        return count * c / (1 + (count - 1) * c) * sum(d) / count

    return added(case, one)


# -- singular vectors -----------------------------------------------------------------------------


def iso_c(case):
    def one(name, d):
        if name not in MATRICES:
            return sum(d) / len(d)
        u, s, vt = np.linalg.svd(sum(d), full_matrices=False)
        return s.mean() * u @ vt

    return added(case, one)


def iso_cts(case, common_fraction):
    def one(name, d):
        if name not in MATRICES:
            return sum(d) / len(d)
        r = min(SHAPES[name])
        q = min(round((r - int(r * common_fraction)) / len(d)), r // len(d))
        k = r - q * len(d)
        u, s, vt = np.linalg.svd(sum(d), full_matrices=False)
        left, right, values = [], [], [s[:k]]
        for x in d:
            own = np.linalg.svd(x - u[:, :k] @ u[:, :k].T @ x, full_matrices=False)
            left.append(own[0][:, :q])
            values.append(own[1][:q])
            right.append(own[2][:q].T)
        x, y = np.hstack([*left, u[:, :k]]), np.hstack([*right, vt[:k].T])
        return np.concatenate(values).mean() * orthogonal(x) @ orthogonal(y).T

    return added(case, one)


def tsv(case):
    def one(name, d):
        if name not in MATRICES:
            return sum(d) / len(d)
        q = min(SHAPES[name]) // len(d)
        parts = [np.linalg.svd(x, full_matrices=False) for x in d]
        x = orthogonal(np.hstack([u[:, :q] for u, _, _ in parts]))
        y = orthogonal(np.hstack([vt[:q].T for _, _, vt in parts]))
        return x * np.concatenate([s[:q] for _, s, _ in parts]) @ y.T

    return added(case, one)


def knots(case, density):
    """TIES on the coordinates of all matrices together; vectors are averaged."""
    bases, coordinates = {}, [[] for _ in case["tuned"]]
    for name in MATRICES:
        d = [t[name] - case["base"][name] for t in case["tuned"]]
        bases[name], s, vt = np.linalg.svd(np.hstack(d), full_matrices=False)
        for own, q in zip(coordinates, np.hsplit(s[:, None] * vt, len(d)), strict=True):
            own.append(q)
    kept = []
    for own in coordinates:
        x = np.concatenate([q.ravel() for q in own])
        k = len(x) - int(len(x) * density)
        kept.append(np.where(np.abs(x) >= np.sort(np.abs(x))[k - 1], x, 0))
    merged = elected(kept, "majority")
    found = added(case, lambda n, d: sum(d) / len(d))
    for name, q in zip(MATRICES, coordinates[0], strict=True):
        part, merged = merged[: q.size], merged[q.size :]
        found[name] = case["base"][name] + bases[name] @ part.reshape(q.shape)
    return found


# -- statistics -----------------------------------------------------------------------------------


def regmean(case, lam):
    def one(name):
        grams = [shrunk(s[name]["gram"], lam) for s in case["stats"]]
        right = sum(c @ t[name].T for c, t in zip(grams, case["tuned"], strict=True))
        return np.linalg.solve(sum(grams), right).T

    return {n: one(n) if n in MATRICES else average(case, n) for n in SHAPES}


def mats(case, objective, iterations):
    """Conjugate gradient on dense matrices, from the average."""

    def one(name):
        a = b = 0
        for held, theta in zip(case["stats"], case["tuned"], strict=True):
            c, g = held[name]["gram"], held[name]["gradient_gram"]
            term = np.kron(c, np.eye(len(g)) if objective == "regmean" else g)
            a, b = a + term, b + term @ theta[name].T.ravel()
        x = average(case, name).T.ravel()
        r = b - a @ x
        p = r
        for _ in range(iterations):
            step = r @ r / (p @ a @ p)
            x, old, r = x + step * p, r, r - step * (a @ p)
            p = r + r @ r / (old @ old) * p
        return x.reshape(SHAPES[name][::-1]).T

    return {n: one(n) if n in MATRICES else average(case, n) for n in SHAPES}


# -- what they share ------------------------------------------------------------------------------


def by_name(case):
    return [[t[n] - case["base"][n] for t in case["tuned"]] for n in SHAPES]


def added(case, merge):
    return {n: case["base"][n] + merge(n, d) for n, d in zip(SHAPES, by_name(case), strict=True)}


def average(case, name):
    return sum(t[name] for t in case["tuned"]) / len(case["tuned"])


def unflattened(case, flat):
    found = {}
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        found[name], flat = case["base"][name] + flat[:size].reshape(shape), flat[size:]
    return found


def elected(kept, undecided, *, average=True):
    kept = np.stack(kept)
    total = kept.sum(0)
    sign = np.sign(total)
    sign[sign == 0] = 1 if undecided == "plus" or np.sign(total).sum() > 0 else -1
    agree = np.where(sign > 0, kept > 0, kept < 0)
    found = (kept * agree).sum(0)
    return found / np.maximum(agree.sum(0), 1) if average else found


def integers(model, name, shape):
    """The draws of a model's tensor: seeded by its name, 32 bits for each element."""
    seed = hashlib.sha256(f"0 model {model} {name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little") % 2**63)
    first = int(torch.randint(2**62, (1,), generator=generator))
    size = int(np.prod(shape))
    wide = torch.empty((size + 1) // 2, dtype=torch.int64)
    wide.random_(-(2**63), None, generator=generator.manual_seed(first))
    return wide.numpy().view(np.int32)[:size].reshape(shape).astype(np.int64)


def edge(chance):
    return round(chance * 2**32) - 2**31


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def arc(a, b, t):
    angle = np.arccos(cosine(a, b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def orthogonal(x):
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u @ vt


def shrunk(matrix, lam):
    return lam * matrix + (1 - lam) * np.diag(np.diag(matrix))


CASES = [
    ("linear", {"weight": [1.0, 2.0, 0.5]}, linear),
    ("task_arithmetic", {"weight": [1.0, 2.0, 0.5]}, task_arithmetic),
    ("ties", {"density": 0.4}, ties),
    (
        "ties",
        {"density": 0.4, "trim_scope": "tensor", "keep": "count", "undecided": "plus"},
        lambda case, density, **_: ties_by_tensor(case, density),
    ),
    ("dare", {"density": 0.5}, dare),
    ("dare_linear", {"density": 0.5}, dare),
    ("dare_ties", {"density": 0.5}, lambda case, density: dare(case, density, elect=True)),
    ("della", {"density": 0.5, "epsilon": 0.25}, lambda case, **o: della(case, **o, elect=True)),
    ("della_linear", {"density": 0.5, "epsilon": 0.25}, della),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.25}, breadcrumbs),
    (
        "breadcrumbs_ties",
        {"density": 0.5, "gamma": 0.25},
        lambda case, **o: breadcrumbs(case, **o, elect=True),
    ),
    ("slerp", {"t": 0.3}, slerp),
    ("nuslerp", {"weight": [1.0, 2.0]}, nuslerp),
    ("model_stock", {}, model_stock),
    ("iso_c", {}, iso_c),
    ("iso_cts", {"common_fraction": 0.2}, iso_cts),
    ("tsv", {}, tsv),
    ("knots", {"density": 0.5}, knots),
    ("fisher", {}, fisher),
    ("regmean", {"lam": 0.9}, regmean),
    ("mats", {"objective": "kfac", "iterations": 4}, mats),
    ("mats", {"objective": "regmean", "iterations": 4}, mats),
]
"""(Name in the registry, options of `merge`, the formula)."""


def name_of(method, options):
    return f"{method} {json.dumps(options, sort_keys=True)}"


def count_of(method):
    """How many models are merged."""
    return 2 if "slerp" in method else 3


def case_of(inputs, method):
    count = count_of(method)
    return {**inputs, "tuned": inputs["tuned"][:count], "stats": inputs["stats"][:count]}


def arrays(held):
    """Nested lists of a JSON document as arrays."""
    if isinstance(held, dict):
        return {key: arrays(value) for key, value in held.items()}
    if isinstance(held, list) and held and isinstance(held[0], dict):
        return [arrays(value) for value in held]
    return np.asarray(held)


def main():
    inputs = drawn_inputs()
    outputs = {
        name_of(method, options): formula(case_of(inputs, method), **options)
        for method, options, formula in CASES
    }
    text = json.dumps(
        {"inputs": inputs, "outputs": outputs}, default=lambda x: x.tolist(), indent=0
    )
    FILE.write_text(text.replace("[\n", "[").replace(",\n", ", ").replace("\n]", "]") + "\n")


if __name__ == "__main__":
    main()
