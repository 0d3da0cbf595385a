"""The structured backward: the rows that Grass needs, the same numbers, nothing else made."""

import copy
import io
import pickle
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from spanwise import Atlas, Subspace
from spanwise.atlas import Entry
from spanwise.linalg.bases import random_basis
from spanwise.optim import GaLore, Grass, clip_grad_norm_, grass_linear_, param_groups


class Net(nn.Module):
    """A wide map (rows are chosen), a tall one (columns) and a square one, biases and a norm."""

    def __init__(self, dtype=torch.float64, recompute=None):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.mid, self.down = nn.Linear(12, 20), nn.Linear(20, 20), nn.Linear(20, 10)
        self.norm, self.recompute = nn.LayerNorm(20), recompute
        self.to(dtype)

    def body(self, x):
        return self.down(self.norm(self.mid(self.up(x).tanh()).tanh()))

    def forward(self, x):
        if self.recompute is None:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.recompute == "reentrant")


def inputs(count=1, shape=(4, 5, 12), dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)]


def pair(dtype=torch.float64, recompute=None, **options):
    """A model with dense gradients and one that is converted, each with its optimizer."""
    made = []
    for _ in range(2):
        model = Net(dtype, recompute)
        settings = {"lr": 1e-2, "refresh_every": 3, **options}
        made += [model, Grass(param_groups(model, rank=4), **settings)]
    dense, dense_optimizer, model, optimizer = made
    return dense, dense_optimizer, model, optimizer, grass_linear_(model, optimizer)


def loss_of(model, x):
    return model(x).square().mean()


def assert_rows_agree(model, dense, atol):
    """Structured gradients are the rows of the dense ones; all the others are those bitwise."""
    converted = 0
    for (name, p), q in zip(model.named_parameters(), dense.parameters(), strict=True):
        held = getattr(p, "spanwise_grad", None)
        if held is None:
            assert torch.equal(p.grad, q.grad), name
            continue
        converted += 1
        assert p.grad is None
        expected = held.projector.gather(q.grad).to(held.values.dtype)
        assert held.values.shape == expected.shape
        assert (held.values - expected).abs().max() <= atol * expected.abs().max(), name
    assert converted == 3


PATHS = {
    "plain": {},
    "2-D": {"shape": (7, 12)},
    "1-D": {"shape": (12,)},
    "4-D": {"shape": (2, 3, 2, 12)},
    "checkpoint": {"recompute": "new"},
    "reentrant checkpoint": {"recompute": "reentrant"},
    "accumulate": {"micro": 4},
    "compile": {"compile": True},
    "autocast": {"autocast": True},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_rows_are_those_of_the_full_backward_and_other_gradients_are_bitwise(path, dtype, atol):
    how = PATHS[path]
    if how.get("autocast"):
        dtype, atol = torch.float32, 2e-2
    dense, dense_optimizer, model, optimizer, _ = pair(dtype, how.get("recompute"))
    runner = torch.compile(model, backend="eager") if how.get("compile") else model
    shape = how.get("shape", (4, 5, 12))
    for step in range(5):
        xs = inputs(how.get("micro", 1), shape, dtype, seed=step)
        seen = []
        for net, call in ((dense, dense), (model, runner)):
            net.load_state_dict(dense.state_dict())
            for x in xs:
                x = x.clone().requires_grad_()
                with torch.autocast("cpu", torch.bfloat16, enabled=how.get("autocast", False)):
                    loss = loss_of(call, x)
                loss.backward()
                seen.append(x.grad)
        half = len(seen) // 2
        assert all(map(torch.equal, seen[:half], seen[half:]))
        assert_rows_agree(model, dense, atol)
        for o in (dense_optimizer, optimizer):
            o.step()
            o.zero_grad()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"select": "multinomial_norm", "seed": 3},
        {"select": "uniform_nr", "stagger": True},
        {"moments": "keep_common", "weight_decay": 0.1},
        {"weight_decay": 0.1, "decay": "selected", "side": "long"},
        {"refresh_warmup": 2, "refresh_every": 4},
    ],
)
def test_training_is_that_of_the_optimizer_alone(options):
    dense, dense_optimizer, model, optimizer, _ = pair(**options)
    for x in inputs(9):
        for net, o in ((dense, dense_optimizer), (model, optimizer)):
            o.zero_grad()
            loss_of(net, x).backward()
            o.step()
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12, rtol=0)


def test_dense_refresh_chooses_from_all_micro_batches_and_first_from_one():
    found = {}
    for refresh in ("none", "dense", "first"):
        model = Net()
        optimizer = Grass(param_groups(model, rank=4), lr=1e-2, refresh_every=3)
        handle = None if refresh == "none" else grass_linear_(model, optimizer, refresh=refresh)
        for step in range(7):
            optimizer.zero_grad()
            for x in inputs(4, seed=step):
                loss_of(model, x).backward()
            if refresh == "dense":
                assert (model.up.weight.grad is None) is (step % 3 != 0)
            optimizer.step()
        assert handle is None or len(handle.names) == 3
        found[refresh] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(found["dense"], found["none"], atol=1e-12, rtol=0)
    assert not torch.allclose(found["first"], found["none"], atol=1e-6)


def test_first_micro_batch_fixes_the_rows_of_the_step():
    _, _, model, optimizer, _ = pair()
    chosen = []
    for x in inputs(3):
        loss_of(model, x).backward()
        chosen.append(model.up.weight.spanwise_grad.projector.rows)
    assert all(torch.equal(chosen[0], rows) for rows in chosen)
    optimizer.step()
    assert torch.equal(optimizer.state[model.up.weight]["rows_right"], chosen[0])


class Shapes(TorchDispatchMode):
    """Notes every new tensor of one of the given shapes, and how many lived at once."""

    def __init__(self, *shapes):
        super().__init__()
        self.shapes, self.made, self.most, self.alive = set(shapes), 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and tuple(out.shape) in self.shapes:
            storage = out.untyped_storage()
            if storage.data_ptr() not in self.ignored:
                self.made += 1
                self.alive[id(out)] = weakref.ref(out)
                self.most = max(self.most, sum(r() is not None for r in self.alive.values()))
        return out

    ignored = frozenset()


def test_no_tensor_of_the_weights_size_is_made_on_an_ordinary_step():
    _, _, model, optimizer, handle = pair(refresh_every=2)
    shapes = {tuple(m.weight.shape) for m in (model.up, model.mid, model.down)}
    own = frozenset(p.untyped_storage().data_ptr() for p in model.parameters())
    counts = []
    for x in inputs(2, shape=(33, 12)):
        loss = loss_of(model, x)
        with Shapes(*shapes, *((n, m) for m, n in shapes)) as seen:
            seen.ignored = own
            loss.backward()
        counts.append((seen.made, seen.most))
        if len(counts) == 2:
            assert handle.gradient_bytes == 8 * 4 * (20 + 20 + 20)
        optimizer.step()
    assert counts[0][0] >= 3
    assert counts[0][1] <= 2  # the product and its transposed view, of one layer at a time
    assert counts[1] == (0, 0)


def test_gradients_are_used_up_by_the_step_and_dropped_by_zero_grad():
    _, _, model, optimizer, _ = pair()
    loss_of(model, inputs()[0]).backward()
    optimizer.zero_grad()
    assert model.up.weight.spanwise_grad is None
    loss_of(model, inputs()[0]).backward()
    optimizer.step()
    assert model.up.weight.spanwise_grad is None
    before = model.up.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.up.weight, before)


def test_evaluation_and_gradients_of_inputs_alone_leave_the_weights_untouched():
    _, _, model, _, _ = pair()
    x = inputs()[0].requires_grad_()
    with torch.no_grad():
        model(x)
        model(x)
    torch.autograd.grad(loss_of(model, x), x)
    assert getattr(model.up.weight, "spanwise_grad", None) is None
    model(x)
    model(x)  # the first graph is gone: nothing waits for a backward


def test_clipping_counts_the_rows():
    dense, dense_optimizer, model, optimizer, _ = pair(refresh_every=None)
    x = inputs()[0]
    for net, o in ((dense, dense_optimizer), (model, optimizer)):
        loss_of(net, x).backward()
        o.step()
        o.zero_grad()
        loss_of(net, x).backward()
    held = {n: p.spanwise_grad for n, p in model.named_parameters() if hasattr(p, "spanwise_grad")}
    parts = [h.projector.gather(dense.get_parameter(n).grad) for n, h in held.items()]
    parts += [p.grad for n, p in dense.named_parameters() if n not in held]
    expected = torch.stack([t.norm() for t in parts]).norm()
    norm = clip_grad_norm_(model.parameters(), 0.1 * float(expected))
    assert torch.allclose(norm, expected, atol=1e-12)
    assert clip_grad_norm_(model.parameters(), 1e9) == pytest.approx(0.1 * float(expected), 1e-4)
    loose = clip_grad_norm_(model.up.weight, 1e9)
    assert loose == pytest.approx(0.1 * float(held["up.weight"].values.norm() * 10), rel=1e-4)


def test_a_loss_scaler_which_sees_no_rows_is_refused_before_anything_moves():
    _, _, model, optimizer, handle = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(model.state_dict())
    for unscaled_by_hand in (False, True):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, inputs()[0])).backward()
        if unscaled_by_hand:
            scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="does not see gradients that grass_linear_ leaves"):
            scaler.step(optimizer)
        assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    off = torch.amp.GradScaler("cpu", enabled=False)
    off.scale(loss_of(model, inputs()[0])).backward()
    off.step(optimizer)
    handle.remove()
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model, inputs()[0])).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model.up.weight, before["up.weight"])


def test_names_and_state_dict_stay_and_removing_gives_ordinary_modules_back():
    _, _, model, optimizer, handle = pair()
    names = list(Net().state_dict())
    assert list(model.state_dict()) == names
    assert handle.names == ["up.weight", "mid.weight", "down.weight"]
    assert isinstance(model.up, nn.Linear)
    loss_of(model, inputs()[0]).backward()
    handle.remove()
    assert type(model.up) is nn.Linear
    assert model.up.weight.spanwise_grad is None
    assert "_slot" not in vars(model.up)
    loss_of(model, inputs()[0]).backward()
    assert model.up.weight.grad is not None
    optimizer.step()
    grass_linear_(model, optimizer)


def test_exclude_leaves_modules_alone():
    model = Net()
    optimizer = Grass(param_groups(model, rank=4))
    handle = grass_linear_(model, optimizer, exclude=("mid",))
    assert handle.names == ["up.weight", "down.weight"]
    handle.remove()
    assert grass_linear_(model, optimizer, exclude="mid").names == ["up.weight", "down.weight"]


def test_a_copied_or_unpickled_model_is_an_ordinary_one():
    _, _, model, _, _ = pair()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        loss_of(twin, inputs()[0]).backward()
        assert twin.up.weight.grad is not None


def test_rows_that_wait_for_a_step_are_not_pickled_with_the_model(alone):
    model = Net()
    grass_linear_(model, Grass(param_groups(model, rank=4)), process_group=alone)
    loss_of(model, inputs()[0]).backward()
    twin = pickle.loads(pickle.dumps(model))
    assert model.up.weight.spanwise_grad is not None
    assert twin.up.weight.spanwise_grad is None


def test_a_copied_optimizer_goes_on_with_dense_gradients():
    _, _, model, optimizer, _ = pair()
    loss_of(model, inputs()[0]).backward()
    optimizer.step()
    twin, copied = copy.deepcopy((model, optimizer))
    for x in inputs(4, seed=2):
        for net, o in ((model, optimizer), (twin, copied)):
            o.zero_grad()
            loss_of(net, x).backward()
            o.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12, rtol=0)


def test_resume_from_a_checkpoint_is_bitwise():
    def go(model, optimizer, xs):
        for x in xs:
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()

    _, _, model, optimizer, _ = pair(torch.float32, refresh_warmup=2)
    go(model, optimizer, inputs(5, dtype=torch.float32))
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    _, _, other, second, _ = pair(torch.float32, refresh_warmup=2)
    other.load_state_dict(weights)
    second.load_state_dict(state)
    for net, o in ((model, optimizer), (other, second)):
        go(net, o, inputs(5, dtype=torch.float32, seed=2))
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_gradient_that_is_not_finite_chooses_nothing():
    _, _, model, optimizer, _ = pair()
    x = inputs()[0]
    loss_of(model, x).backward()
    optimizer.step()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 2}
    rows = optimizer.state[model.up.weight]["rows_right"].clone()
    for p in before:
        optimizer.state[model.get_parameter(p)]["refreshed"].fill_(-1)
    bad = x.clone()
    bad[0, 0, 0] = float("nan")
    loss_of(model, bad).backward()
    with pytest.warns(UserWarning, match="at a basis refresh is not finite"):
        optimizer.step()
    assert all(torch.equal(model.get_parameter(n), w) for n, w in before.items())
    assert torch.equal(optimizer.state[model.up.weight]["rows_right"], rows)


def test_a_gradient_that_is_not_finite_raises_when_asked_before_anything_moves():
    _, _, model, optimizer, _ = pair(on_nonfinite="raise")
    before = [p.detach().clone() for p in model.parameters()]
    bad = inputs()[0]
    bad[0, 0, 0] = float("inf")
    loss_of(model, bad).backward()
    with pytest.raises(FloatingPointError, match="not finite"):
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), before))


def test_a_zero_gradient_chooses_nothing_until_there_is_one():
    dense, dense_optimizer, model, optimizer, _ = pair(refresh_every=10)
    for scale in (0.0, 0.0, 1.0, 1.0):
        for net, o in ((dense, dense_optimizer), (model, optimizer)):
            for share in (0.0, scale):  # two micro-batches: the second may be the first to choose
                (share * loss_of(net, inputs()[0])).backward()
            o.step()
            o.zero_grad()
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12, rtol=0)
    assert int(optimizer.state[model.up.weight]["refreshed"]) == 2


@pytest.mark.parametrize("sides", [("output",), ("input",), ("output", "input")], ids="+".join)
def test_avoided_directions_stay_untouched(sides):
    shapes = {"up.weight": (20, 12), "mid.weight": (20, 20), "down.weight": (10, 20)}
    entries = [
        Entry(name=name, side=side, layout="linear", shape=shape, subspace=Subspace(
            random_basis(shape[side == "input"], 2, dtype=torch.float64,
                         generator=torch.Generator().manual_seed(7))
        ))
        for name, shape in shapes.items() for side in sides
    ]  # fmt: skip
    dense, dense_optimizer, model, optimizer, _ = pair(avoid=Atlas(entries))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for x in inputs(7):
        for net, o in ((dense, dense_optimizer), (model, optimizer)):
            o.zero_grad()
            loss_of(net, x).backward()
            o.step()
    for entry in entries:
        d = model.get_parameter(entry.name).detach() - start[entry.name]
        basis = entry.subspace.basis
        leak = basis.mT @ d if entry.side == "output" else d @ basis
        assert d.norm() > 0
        assert leak.norm() < 1e-12 * d.norm()
        assert torch.allclose(
            model.get_parameter(entry.name), dense.get_parameter(entry.name), atol=1e-12, rtol=0
        )


def test_new_constraints_drop_gradients_chosen_under_the_old():
    _, _, model, optimizer, _ = pair()
    loss_of(model, inputs()[0]).backward()
    optimizer.set_constraints()
    assert model.up.weight.spanwise_grad is None


def test_a_frozen_weight_and_an_unused_module_are_left_alone():
    _, _, model, optimizer, _ = pair()
    model.mid.weight.requires_grad_(False)
    frozen = model.mid.weight.detach().clone()
    model.down(model.up(inputs()[0])).sum().backward()
    optimizer.step()
    assert torch.equal(model.mid.weight, frozen)
    assert getattr(model.mid.weight, "spanwise_grad", None) is None


def test_a_module_used_twice_before_its_backward_is_refused_or_chooses_densely():
    _, _, model, optimizer, handle = pair()
    twice = nn.Sequential(model.mid, nn.Tanh(), model.mid)
    with pytest.raises(RuntimeError, match=r"mid\.weight is used twice.*refresh=\"dense\""):
        twice(inputs(shape=(3, 20))[0])
    handle.remove()
    plain, plain_optimizer = Net(), None
    plain_optimizer = Grass(param_groups(plain, rank=4), lr=1e-2, refresh_every=3)
    model.load_state_dict(plain.state_dict())
    optimizer = Grass(param_groups(model, rank=4), lr=1e-2, refresh_every=3)
    grass_linear_(model, optimizer, refresh="dense")
    for x in inputs(5, shape=(3, 20)):
        for net, o in ((model, optimizer), (plain, plain_optimizer)):
            o.zero_grad()
            net.mid(net.mid(x).tanh()).square().mean().backward()
            o.step()
    assert torch.allclose(model.mid.weight, plain.mid.weight, atol=1e-12, rtol=0)


def test_a_weight_used_outside_its_module_is_refused_at_the_step():
    _, _, model, optimizer, _ = pair()
    (loss_of(model, inputs()[0]) + model.up.weight.square().sum()).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"up\.weight has a gradient outside its converted"):
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), before))


def test_a_gradient_of_the_weight_itself_is_refused_with_a_way_out():
    _, _, model, _, _ = pair()
    with pytest.raises(RuntimeError, match=r"up\.weight: torch\.autograd\.grad cannot.*remove"):
        torch.autograd.grad(loss_of(model, inputs()[0]), model.up.weight)
    assert getattr(model.up.weight, "spanwise_grad", None) is None


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_a_second_derivative_is_refused():
    _, _, model, _, _ = pair()
    with pytest.raises(RuntimeError, match="have no second derivative"):
        loss_of(model, inputs()[0]).backward(create_graph=True)


class TestBadInput:
    def test_tied_weights(self):
        model = Net()
        model.other = nn.Linear(20, 20).double()
        model.other.weight = model.mid.weight
        optimizer = Grass(param_groups(model, rank=4))
        with pytest.raises(ValueError, match=r"mid\.weight is tied to other\.weight.*exclude="):
            grass_linear_(model, optimizer)
        assert type(model.up) is nn.Linear
        assert len(grass_linear_(model, optimizer, exclude=("mid",)).names) == 2

    def test_an_embedding_tied_to_a_converted_layer(self):
        model = nn.Sequential(nn.Embedding(20, 12), nn.Linear(12, 20, bias=False))
        model[1].weight = model[0].weight
        with pytest.raises(ValueError, match="is tied to"):
            grass_linear_(model, Grass([{"params": [("head", model[1].weight)], "rank": 4}]))

    @pytest.mark.bad_input
    def test_another_optimizer(self):
        model = Net()
        with pytest.raises(TypeError, match=r"must be a spanwise\.optim\.Grass, got GaLore"):
            grass_linear_(model, GaLore(param_groups(model, rank=4)))

    def test_nothing_to_convert(self):
        model = Net()
        optimizer = Grass(param_groups(model, rank=4))
        with pytest.raises(ValueError, match=r"no nn\.Linear of the model is projected"):
            grass_linear_(Net(), optimizer)

    def test_converting_twice(self):
        _, _, model, optimizer, _ = pair()
        with pytest.raises(ValueError, match=r"up\.weight is converted already.*remove"):
            grass_linear_(model, optimizer)

    @pytest.mark.bad_input
    def test_an_unknown_refresh(self):
        model = Net()
        with pytest.raises(ValueError, match="refresh must be one of first, dense"):
            grass_linear_(model, Grass(param_groups(model, rank=4)), refresh="lazy")

    def test_dense_refresh_on_several_processes(self):
        model = Net()
        with pytest.raises(ValueError, match='refresh="dense" is for one process'):
            grass_linear_(model, Grass(param_groups(model, rank=4)), refresh="dense",
                          process_group=object())  # fmt: skip


@pytest.fixture
def alone():
    """A process group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_rows_that_a_closure_leaves_are_averaged_as_well(alone, monkeypatch):
    sent, reduce = [], dist.all_reduce

    def counted(t, *args, **kwargs):
        sent.append(t.numel())
        return reduce(t, *args, **kwargs)

    monkeypatch.setattr(dist, "all_reduce", counted)
    model = Net()
    optimizer = Grass(param_groups(model, rank=4), lr=1e-2)
    grass_linear_(model, optimizer, process_group=alone)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, inputs()[0])
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    sent.clear()
    optimizer.step(closure)
    assert sent == [4 * 20] * 3


def test_removing_lets_ddp_see_the_weights_again(alone):
    model = Net()
    optimizer = Grass(param_groups(model, rank=4), lr=1e-2)
    model._ddp_params_and_buffers_to_ignore = ["mid.weight"]
    for _ in range(2):
        handle = grass_linear_(model, optimizer, process_group=alone)
        assert len(model._ddp_params_and_buffers_to_ignore) == 3
        handle.remove()
        assert model._ddp_params_and_buffers_to_ignore == ["mid.weight"]
    del model._ddp_params_and_buffers_to_ignore
    grass_linear_(model, optimizer, process_group=alone).remove()
    assert not hasattr(model, "_ddp_params_and_buffers_to_ignore")


def seven_steps(rank=0, world=1):
    """Two micro-batches a step on `world` processes, which share each batch."""
    torch.manual_seed(rank)  # other weights on the second process, until they are made equal
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8)).double()
    optimizer = Grass(
        param_groups(model, rank=4), lr=1e-2, refresh_every=3, select="multinomial_norm"
    )
    grass_linear_(model, optimizer, process_group=dist.group.WORLD if world > 1 else None)
    net = DistributedDataParallel(model) if world > 1 else model
    generator, norms = torch.Generator().manual_seed(5), []
    for _ in range(7):
        optimizer.zero_grad()
        for _ in range(2):
            x = torch.randn(6, 12, generator=generator, dtype=torch.float64)
            net(x.chunk(world)[rank]).square().mean().backward()
        norms.append(float(clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
    return {"weights": [p.detach() for p in model.parameters()], "norms": norms}


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sent, reduce = [], dist.all_reduce

    def counted(t, *args, **kwargs):
        sent.append(t.numel())
        return reduce(t, *args, **kwargs)

    dist.all_reduce = counted
    found = seven_steps(rank, 2)
    torch.save({**found, "sent": sent}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    one, (two, three) = seven_steps(), [torch.load(tmp_path / f"{r}.pt") for r in range(2)]
    assert two["norms"] == pytest.approx(one["norms"], abs=1e-10)
    for a, b, c in zip(one["weights"], two["weights"], three["weights"], strict=True):
        assert torch.equal(b, c)
        assert torch.allclose(a, b, atol=1e-10, rtol=0)
    # Whole gradients where rows are chosen (3 of 7 steps), 4 rows or columns of each otherwise.
    assert sum(two["sent"]) == 3 * (20 * 12 + 8 * 20) + 7 * 4 * (20 + 20)
