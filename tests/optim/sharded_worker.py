"""What `test_sharded.py` runs on two processes: every case once, its figures saved for the tests.

Started as `python sharded_worker.py RANK FOLDER`; one start for all cases, because starting costs
more than they do.
"""

import copy
import itertools
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from spanwise import Atlas, Subspace
from spanwise.atlas import Entry
from spanwise.layouts import matrix_view
from spanwise.linalg.bases import random_basis
from spanwise.optim import (
    SNSM,
    AdamSN,
    GaLore,
    Grass,
    GrassJump,
    GrassWalk,
    OnlineSubspaceDescent,
    grass_linear_,
    guard,
    param_groups,
)

WORLD = 2
STEPS = 3  # with a new basis at the first and at the third

# Of 27 rows each process holds 14 or 13; of 13, 7 or 6; of the last, one or none.
TENSORS = {
    "tall": ((27, 20), "linear"),
    "wide": ((13, 27), "linear"),
    "single": ((1, 13), "linear"),
    "conv": ((15, 3, 2, 2), "conv"),
    "transposed": ((11, 12), "transposed"),
    "tall_bias": ((27,), None),
    "single_bias": ((1,), None),
}
MATRICES = [name for name, (_, layout) in TENSORS.items() if layout]
GUARDED = ("tall", "wide", "conv", "transposed")

LEFT_RIGHT = ("left", "right")
CASES = {
    **{f"side-{s}": {"side": s} for s in ("short", "long", "full", "local")},
    **{f"float32-{s}": {"side": s, "dtype": torch.float32} for s in LEFT_RIGHT},
    **{f"exact-rotate-scaled-{s}": {"side": s, "svd": "exact", "moments": "rotate",
                                    "residual": "scaled"} for s in LEFT_RIGHT},
    **{f"gram-project_aware-fira-{s}": {"side": s, "svd": "gram", "moments": "project_aware",
                                        "residual": "fira"} for s in LEFT_RIGHT},
    **{f"warm-reset-decay-{s}": {"side": s, "svd": "warm", "moments": "reset",
                                 "weight_decay": 0.1} for s in LEFT_RIGHT},
    "stagger": {"stagger": True},
    "compat": {"compat": "galore_torch", "weight_decay": 0.1},
    **{f"walk-{s}": {"method": GrassWalk, "side": s} for s in LEFT_RIGHT},
    "track": {"method": GrassWalk, "basis": "track"},
    "jump": {"method": GrassJump, "init": "jump"},
    **{f"osd-{s}": {"method": OnlineSubspaceDescent, "side": s, "ortho_penalty": 0.1}
       for s in LEFT_RIGHT},
    "osd-lion": {"method": OnlineSubspaceDescent, "base": "lion", "proj_optimizer": "lion"},
    "osd-retract": {"method": OnlineSubspaceDescent, "side": "local", "retract": "qr",
                    "retract_every": 2, "proj_optimizer": "adafactor"},
    **{f"snsm-{s}": {"method": SNSM, "side": s} for s in LEFT_RIGHT},
    "snsm-mean": {"method": SNSM, "normalize": "mean", "moments": "rotate", "weight_decay": 0.1},
    "snsm-srht": {"method": SNSM, "basis": "srht", "debias_after_reset": True},
    "snsm-rows": {"method": SNSM, "basis": "rows", "side": "right"},
    "snsm-sgd": {"method": SNSM, "second_moment": "none"},
    "adamsn": {"method": AdamSN},
    "grass": {"method": Grass, "side": "right"},
    "grass-sampled": {"method": Grass, "side": "local", "select": "multinomial_norm",
                      "moments": "keep_common", "weight_decay": 0.1, "decay": "selected"},
}  # fmt: skip
"""One run each, on two processes and on one: options of the optimizer."""

GUARDS = {
    **{f"galore-{s}": {"side": s} for s in LEFT_RIGHT},
    "galore-full-decay": {"side": "full", "svd": "exact", "weight_decay": 0.1},
    "walk": {"method": GrassWalk},
    "jump-left": {"method": GrassJump, "side": "left"},
    "osd-left": {"method": OnlineSubspaceDescent, "side": "left"},
    "snsm": {"method": SNSM},
    "plain": {"projected": ("single",), "weight_decay": 0.1},
    "adamw": {"method": torch.optim.AdamW, "weight_decay": 0.1},
}
"""Optimizers under a constraint."""

CHECKPOINTS = {
    "short": {"side": "short"},
    "reset": {"moments": "reset", "side": "left"},
    "osd": {"method": OnlineSubspaceDescent, "side": "left"},
    "snsm": {"method": SNSM},
    "grass": {"method": Grass, "side": "right", "select": "uniform"},
}
"""Optimizers whose state is saved in the middle and loaded."""


class Holder(nn.Module):
    """The tensors of `TENSORS` as parameters; whole without a mesh, by rows on one."""

    def __init__(self, dtype=torch.float64, mesh=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, (shape, _) in TENSORS.items():
            w = 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            w = w if mesh is None else rows_of(w, mesh)
            self.register_parameter(name, nn.Parameter(w))

    def take_gradients(self, step, scale=1.0):
        generator = torch.Generator().manual_seed(1000 + step)
        for p in self.parameters():
            g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) * scale
            p.grad = g if not isinstance(p, DTensor) else rows_of(g, p.device_mesh)


def rows_of(value, mesh):
    """A whole tensor as a DTensor spread by rows, without communication."""
    chunk = -(-value.shape[0] // WORLD)
    start = mesh.get_local_rank() * chunk
    local = value[start : start + chunk].clone()
    return DTensor.from_local(local, mesh, [Shard(0)], shape=value.shape, stride=value.stride())


def make(model, *, method=GaLore, projected=MATRICES, **options):
    options = {"lr": 1e-2, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ranks clipped to what a constraint leaves
        if method is torch.optim.AdamW:
            rules = {k: options.pop(k) for k in ("avoid", "within") if k in options}
            return guard(method(model.named_parameters(), **options), **rules)
        named = dict(model.named_parameters())
        treated = {
            "params": [(name, named[name]) for name in projected],
            "layouts": [TENSORS[name][1] for name in projected],
        }
        if method is AdamSN:
            return method([treated, rest_of(named, projected)], **options)
        every = None if method is OnlineSubspaceDescent else 2
        return method(
            [{**treated, "rank": 2}, rest_of(named, projected)],
            refresh_every=every, clamp_rank=True, **options,
        )  # fmt: skip


def rest_of(named, projected):
    return {"params": [(name, p) for name, p in named.items() if name not in projected]}


def train(model, optimizer, steps=STEPS, first=0):
    for step in range(first, first + steps):
        model.take_gradients(step)
        optimizer.step()
    return model


def full(model):
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def largest(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def apart(sharded, alone):
    """The largest difference between what this process holds and what it should, rows for rows."""
    wanted = dict(alone.named_parameters())
    pairs = [
        (p.to_local(), rows_of(wanted[name], p.device_mesh).to_local())
        for name, p in sharded.named_parameters()
    ]
    return max(float((a - b).detach().abs().max()) for a, b in pairs if a.numel())


def put(model, values):
    """Write whole tensors into the parameters."""
    for name, p in model.named_parameters():
        p.data.copy_(
            rows_of(values[name], p.device_mesh) if isinstance(p, DTensor) else values[name]
        )
    return model


def make_atlas(sides, rank=4):
    generator = torch.Generator().manual_seed(7)
    entries = []
    for name, side in itertools.product(GUARDED, sides):
        shape, layout = TENSORS[name]
        m, n = matrix_view(torch.empty(shape), layout).shape
        basis = random_basis(
            m if side == "output" else n, rank, generator=generator, dtype=torch.float64
        )
        entries.append(
            Entry(name=name, side=side, subspace=Subspace(basis), layout=layout, shape=shape,
                  bias=f"{name}_bias")
        )  # fmt: skip
    return Atlas(entries)


class Worker:
    def __init__(self, rank, folder):
        self.rank, self.folder = rank, folder
        self.mesh = init_device_mesh("cpu", (WORLD,))

    def pair(self, dtype=torch.float64, **options):
        model = Holder(dtype, self.mesh)
        return model, make(model, **options)

    def run_case(self, dtype=torch.float64, **options):
        model, optimizer = self.pair(dtype, **options)
        train(model, optimizer)
        alone = Holder(dtype)
        train(alone, make(alone, **options))
        return {"difference": apart(model, alone), "way": apart(model, Holder(dtype))}

    def run_guarded(self, word, sides, options):
        atlas = make_atlas(sides)
        model, optimizer = self.pair(**options, **{word: atlas})
        start, end = full(Holder()), full(train(model, optimizer))
        alone = Holder()
        train(alone, make(alone, **options, **{word: atlas}))
        leak = 0.0
        for entry in atlas:
            d, u = (
                matrix_view(end[entry.name] - start[entry.name], entry.layout),
                entry.subspace.basis,
            )
            inside = u @ (u.mT @ d) if entry.side == "output" else d @ u @ u.mT
            wrong = inside if word == "avoid" else d - inside
            leak = max(leak, float(wrong.norm() / d.norm()))
        if sides == ("output",):
            d, u = end["tall_bias"] - start["tall_bias"], atlas.get("tall")["output"].subspace.basis
            wrong = u.mT @ d if word == "avoid" else d - u @ (u.mT @ d)
            leak = max(leak, float(wrong.norm() / d.norm()))
        return {"leak": leak, "difference": apart(model, alone)}

    def run_fsdp(self, side):
        """A model under `fully_shard` on half a batch each, against one on the whole batch."""
        widths = (20, 27, 13, 1)
        models = []
        for sharded in (True, False):
            torch.manual_seed(0)
            first, second, third = (nn.Linear(a, b) for a, b in itertools.pairwise(widths))
            model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), third).double()
            if sharded:
                for layer in (first, second, third, model):
                    fully_shard(layer, mesh=self.mesh)
            named = list(model.named_parameters())
            matrices = {"params": [(n, p) for n, p in named if p.ndim == 2], "rank": 2}
            vectors = {"params": [(n, p) for n, p in named if p.ndim == 1]}
            optimizer = GaLore(
                [matrices, vectors], lr=1e-2, side=side, refresh_every=2, clamp_rank=True
            )
            half = slice(self.rank * 16, (self.rank + 1) * 16) if sharded else slice(None)
            for step in range(STEPS):
                generator = torch.Generator().manual_seed(step)
                x, y = (torch.randn(32, d, generator=generator).double() for d in (20, 1))
                optimizer.zero_grad()
                (model(x[half]) - y[half]).square().mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            models.append(full(model))
        return largest(*models)

    def state_of_shards(self):
        """Shapes of state on this process, what the state dict says of them, and its numbers."""
        model, optimizer = self.pair(side="short")
        train(model, optimizer, steps=1)
        names = [n for group in optimizer.param_groups for n in group["param_names"]]
        held = {
            (name, key): tuple(value.shape)
            for name, p in model.named_parameters()
            for key, value in optimizer.state[p].items()
            if value.ndim
        }
        saved = {
            (names[i], key): (tuple(value.shape), isinstance(value, DTensor))
            for i, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
            if value.ndim
        }
        train(model, optimizer, steps=STEPS - 1, first=1)
        values = {
            (name, key): value
            for name, p in model.named_parameters()
            for key, value in optimizer.state[p].items()
        }
        alone = Holder()
        reference = make(alone, side="short")
        train(alone, reference)
        pairs = zip(Atlas.from_optimizer(optimizer), Atlas.from_optimizer(reference), strict=True)
        atlas = [float((a.subspace.basis - b.subspace.basis).abs().max()) for a, b in pairs]
        return {"held": held, "saved": saved, "values": values, "atlas": max(atlas)}

    def checkpoint(self, name, options):
        """A step and a save; then on from there, here and in a fresh start."""
        model, optimizer = self.pair(**options)
        train(model, optimizer, steps=1)  # between two bases
        middle, folder = full(model), self.folder / f"saved-{name}"
        dcp.save({"state": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder)
        train(model, optimizer, steps=2, first=1)
        again, fresh = self.pair(**options)
        state = {"state": get_optimizer_state_dict(again, fresh)}
        refreshed = fresh.state[again.wide]["refreshed"].clone()
        start = apart(again, Holder())
        dcp.load(state, checkpoint_id=folder)
        set_optimizer_state_dict(again, fresh, state["state"])
        put(again, middle)
        train(again, fresh, steps=2, first=1)
        return {
            "middle": middle, "end": full(model), "again": apart(again, put(Holder(), full(model))),
            "refreshed": int(refreshed), "start": start,
        }  # fmt: skip

    def load_unsharded(self):
        """The state dict of one process, and a run that goes on from it here."""
        alone = Holder()
        reference = make(alone)
        train(alone, reference, steps=1)
        model, optimizer = self.pair()
        put(model, full(alone))
        optimizer.load_state_dict(reference.state_dict())
        train(model, optimizer, steps=2, first=1)
        train(alone, reference, steps=2, first=1)
        return apart(model, alone)

    def constraint_comes_late(self):
        """A constraint that arrives between steps, and a checkpoint from before it."""
        found = []
        for model in (Holder(mesh=self.mesh), Holder()):
            optimizer = make(model, side="left")
            train(model, optimizer, steps=1)
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer.set_constraints(avoid=make_atlas(("output", "input")))
            model.take_gradients(7, scale=0.0)
            optimizer.step()  # nothing to draw a basis from: the guarded ones must wait
            train(model, optimizer, steps=2, first=1)
            optimizer.load_state_dict(saved)
            train(model, optimizer, steps=1, first=3)
            found.append(model)
        return apart(*found)

    def nonfinite(self, how):
        """Only one process sees the NaN, at a refresh; both must skip, or raise."""
        model, optimizer = self.pair(on_nonfinite=how)
        train(model, optimizer, steps=2)
        before = full(model)
        model.take_gradients(2)
        if self.rank == 1:
            model.tall.grad.to_local()[0, 0] = torch.nan
        told = ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                optimizer.step()
            except FloatingPointError as error:
                told = str(error)
        after = full(model)
        return {
            "told": told or " ".join(str(w.message) for w in caught),
            "kept": [name for name in before if torch.equal(before[name], after[name])],
            "finite": all(bool(v.isfinite().all()) for v in after.values()),
        }

    def refused(self):
        """The message for each thing that is not supported."""
        weight = torch.arange(24.0).view(6, 4)
        tensors = {
            "columns": distribute_tensor(weight, self.mesh, [Shard(1)]),
            "rows": distribute_tensor(weight, self.mesh, [Shard(0)]),
            "experts": distribute_tensor(weight.view(2, 3, 4), self.mesh, [Shard(0)]),
        }
        found = {}
        for name, (method, tensor, options) in REFUSALS.items():
            group = {"params": [("w", nn.Parameter(tensors[tensor]))], "rank": 2, **options}
            try:
                method([group])
            except NotImplementedError as error:
                found[name] = str(error)
        model = fully_shard(nn.Sequential(nn.Linear(4, 6)), mesh=self.mesh)
        optimizer = Grass(param_groups(model, rank=2), side="local")
        try:
            grass_linear_(model, optimizer)
        except NotImplementedError as error:
            found["grass_linear_"] = str(error)
        return found

    def other_placements(self):
        """Whole on each process, and a plain group spread by columns: both are as on one."""
        found = []
        both = init_device_mesh("cpu", (1, WORLD), mesh_dim_names=("copies", "shards"))
        for mesh, placements, rank in (
            (self.mesh, [Replicate()], 2),
            (self.mesh, [Shard(1)], None),
            (both, [Replicate(), Shard(0)], 2),
        ):
            generator = torch.Generator().manual_seed(0)
            w, g, other = (torch.randn(6, 4, generator=generator) for _ in range(3))
            moved = []
            for spread in (True, False):
                p, grad = w.clone(), g.clone()
                if spread:
                    p, grad = (distribute_tensor(t, mesh, placements) for t in (p, grad))
                p, companion = nn.Parameter(p), nn.Parameter(other.clone())
                groups = [{"params": [p], "rank": rank}, {"params": [companion], "rank": 2}]
                optimizer = GaLore(groups, lr=0.1)
                p.grad = grad
                optimizer.step()
                moved.append((p.full_tensor() if spread else p).detach())
            found.append((float((moved[0] - moved[1]).abs().max()),
                          float((moved[1] - w).abs().max())))  # fmt: skip
        return found


REFUSALS = {
    "columns": (GaLore, "columns", {}),
    "experts": (GaLore, "experts", {"layouts": ["experts"]}),
    "grass-left": (Grass, "rows", {"side": "left"}),
    "snsm-chunks": (SNSM, "rows", {"subset_size": 3}),
    "snsm-ema": (SNSM, "rows", {"second_moment": "ema"}),
    "osd-retract": (
        OnlineSubspaceDescent,
        "rows",
        {"side": "left", "retract": "qr", "retract_every": 2},
    ),
    "osd-adafactor": (OnlineSubspaceDescent, "rows", {"side": "right", "base": "adafactor"}),
}
"""What must say why it does not work: class, tensor, options of the group."""


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    worker = Worker(rank, folder)
    found = {
        "cases": {name: worker.run_case(**options) for name, options in CASES.items()},
        "guards": {
            (name, word, sides): worker.run_guarded(word, sides, options)
            for name, options in GUARDS.items()
            for word in ("avoid", "within")
            # An input entry freezes the bias, which an output entry alone holds to its span.
            for sides in (("output", "input"), *([("output",)] if name == "plain" else ()))
        },
        "fsdp": {side: worker.run_fsdp(side) for side in ("short", "long")},
        "state": worker.state_of_shards(),
        "checkpoints": {n: worker.checkpoint(n, options) for n, options in CHECKPOINTS.items()},
        "unsharded": worker.load_unsharded(),
        "late": worker.constraint_comes_late(),
        "nonfinite": {how: worker.nonfinite(how) for how in ("keep", "raise")},
        "refused": worker.refused(),
        "placements": worker.other_placements(),
    }
    torch.save(found, folder / f"found-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
