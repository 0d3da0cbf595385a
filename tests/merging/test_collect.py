"""Statistics of data: against loops over single examples and autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from spanwise.merging import collect_stats, merge

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a, b, atol=1e-12):
    return torch.allclose(a, b, atol=atol, rtol=0)


class Tagger(nn.Module):
    """Tokens in, one class for each (or each text) out."""

    def __init__(self, *, pooled=False, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(dropout)
        self.down = nn.Linear(8, 6, bias=False)
        self.head = nn.Linear(6, 5)
        self.pooled = pooled

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.embed(input_ids)
        x = x + self.down(self.drop(torch.tanh(self.norm(self.up(x)))))
        if self.pooled:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            weights = mask.to(x.dtype).unsqueeze(-1)
            x = (x * weights).sum(1) / weights.sum(1)
        return self.head(x)


def model(**options):
    torch.manual_seed(0)
    return Tagger(**options).to(F64).eval()


def tokens(batch, length, *, seed=0, pooled=False):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (batch, length), generator=g)
    shape = (batch,) if pooled else (batch, length)
    return {"input_ids": ids, "labels": torch.randint(0, 5, shape, generator=g)}


def padded(batch, more):
    """The same texts with padding behind them."""
    ids, labels = batch["input_ids"], batch["labels"]
    mask = functional.pad(torch.ones_like(ids), (0, more))
    tail = labels if labels.ndim == 1 else functional.pad(labels, (0, more), value=-100)
    return {
        "input_ids": functional.pad(ids, (0, more), value=3),
        "attention_mask": mask,
        "labels": tail,
    }


def singles(net, batch, reduction="mean"):
    """x, g and squared gradients, an example and a token at a time, from plain autograd."""
    seen = {"gram": {}, "gradient_gram": {}, "diag_fisher": {}}
    count = examples = 0
    for k in range(len(batch["input_ids"])):
        one = {key: value[k : k + 1] for key, value in batch.items()}
        held = {}

        def keep(name, held=held):
            def hook(module, args, output):
                output.retain_grad()
                held[name] = (args[0], output)

            return hook

        handles = [
            m.register_forward_hook(keep(f"{n}.weight"))
            for n, m in net.named_modules()
            if isinstance(m, nn.Linear)
        ]
        logits = net(**one)
        labels = one["labels"].reshape(-1)
        loss = functional.cross_entropy(logits.reshape(-1, 5), labels, reduction=reduction)
        net.zero_grad()
        loss.backward()
        for handle in handles:
            handle.remove()
        for name, (x, y) in held.items():
            for into, rows in (("gram", x), ("gradient_gram", y.grad)):
                rows = rows.detach().reshape(-1, rows.shape[-1])
                seen[into][name] = seen[into].get(name, 0) + rows.mT @ rows
        for name, parameter in net.named_parameters():
            square = seen["diag_fisher"].get(name, 0)
            seen["diag_fisher"][name] = square + parameter.grad**2
        count += labels.numel()
        examples += 1
    net.zero_grad()
    return seen, count, examples


@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sums_are_those_of_a_loop_over_single_examples(others, reduction):
    net, batch = model(), tokens(5, 4)
    stats = collect_stats(net, [batch], others=others, loss_reduction=reduction)
    expected, count, examples = singles(net, batch, reduction)
    for name in ("up.weight", "down.weight", "head.weight"):
        held = stats[name]
        assert held.entry.counts == {"gram": 20, "gradient_gram": 20, "diag_fisher": 5}
        for kind, number in (
            ("gram", count),
            ("gradient_gram", count),
            ("diag_fisher", examples),
        ):
            assert close(held[kind], expected[kind][name] / number)
    names = set(stats)
    if others:
        assert names == {name for name, _ in net.named_parameters()}
    else:
        assert names == {"up.weight", "up.bias", "down.weight", "head.weight", "head.bias"}
    for name in names:
        assert close(stats[name]["diag_fisher"], expected["diag_fisher"][name] / examples)


def test_the_block_fisher_of_a_vector_is_that_of_its_whole_gradient():
    net, batch = model(), tokens(5, 4)
    stats = collect_stats(net, [batch], ("block_fisher",))
    assert set(stats) == {"up.bias", "norm.weight", "norm.bias", "head.bias"}
    expected = 0
    for k in range(5):
        logits = net(batch["input_ids"][k : k + 1])
        loss = functional.cross_entropy(logits.reshape(-1, 5), batch["labels"][k])
        g = torch.autograd.grad(loss, net.norm.weight)[0]
        expected = expected + torch.outer(g, g)
    held = stats["norm.weight"]
    assert held.entry.counts == {"block_fisher": 5}
    assert close(held["block_fisher"], expected / 5)
    both = collect_stats(net, [batch], ("block_fisher", "diag_fisher"))
    for name in stats:
        diagonal = both[name]["block_fisher"].diagonal()
        assert close(diagonal, both[name]["diag_fisher"].flatten())
    with pytest.raises(ValueError, match="one example at a time: leave others on"):
        collect_stats(net, [batch], ("block_fisher", "diag_fisher"), others=False)


def test_the_fisher_of_a_sequence_squares_whole_gradients_not_tokens():
    net, batch = model(), tokens(5, 4)
    held = collect_stats(net, [batch], ("diag_fisher",), others=False)["up.weight"]["diag_fisher"]
    flat = {
        "input_ids": batch["input_ids"].reshape(-1, 1),
        "labels": batch["labels"].reshape(-1, 1),
    }
    by_token = collect_stats(net, [flat], ("diag_fisher",), others=False)["up.weight"]
    assert not close(held, by_token["diag_fisher"] * 4 / 16, 1e-4)


def test_one_token_an_example_has_the_formula_of_squares():
    net, batch = model(), tokens(7, 1)
    stats = collect_stats(net, [batch], others=False)
    x = net.embed(batch["input_ids"][:, 0]).detach()
    y = net.up(x).detach().requires_grad_()
    h = x + net.down(torch.tanh(net.norm(y)))
    functional.cross_entropy(net.head(h), batch["labels"][:, 0], reduction="sum").backward()
    assert close(stats["up.weight"]["diag_fisher"], (y.grad**2).mT @ x**2 / 7)


def test_how_data_is_cut_into_batches_does_not_matter():
    net, batch = model(), tokens(6, 4)
    whole = collect_stats(net, [batch], others=False)
    cut = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2, 4)]
    parts = collect_stats(net, cut, others=False)
    added = collect_stats(net, cut[:1], others=False) + collect_stats(net, cut[1:], others=False)
    for name in whole:
        for kind in whole[name]:
            assert close(whole[name][kind], parts[name][kind])
            assert close(whole[name][kind], added[name][kind])


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("others", [True, False])
def test_padding_changes_nothing(pooled, others):
    net, batch = model(pooled=pooled), tokens(5, 4, pooled=pooled)
    plain = collect_stats(net, [batch], others=others)
    more = collect_stats(net, [padded(batch, 3)], others=others)
    for name in plain:
        assert plain[name].entry.counts == more[name].entry.counts
        for kind in plain[name]:
            assert close(plain[name][kind], more[name][kind])


def test_kfac_is_the_fisher_of_a_linear_layer_with_independent_sides():
    torch.manual_seed(0)
    net = nn.Linear(3, 4, bias=False).to(F64)
    nn.init.zeros_(net.weight)  # gradients then depend on labels alone
    points, labels = torch.eye(3, dtype=F64) + 1, torch.arange(4)
    x, y = points.repeat_interleave(4, 0), labels.repeat(3)
    held = collect_stats(net, [(x, y)], ("kfac",))["weight"]
    g = torch.full((4, 4), 0.25, dtype=F64) - torch.eye(4, dtype=F64)
    grads = torch.stack([torch.outer(a, b).flatten() for a, b in zip(x, g[y], strict=True)])
    fisher = grads.mT @ grads / 12
    assert close(torch.kron(held["gram"], held["gradient_gram"]), fisher)


def test_dropout_is_off_and_the_model_is_left_as_it_was():
    net, batch = model(dropout=0.5), tokens(5, 4)
    quiet = collect_stats(net, [batch])
    net.train()
    net.norm.eval()
    net.up.weight.requires_grad_(False)
    before = {n: p.clone() for n, p in net.named_parameters()}
    loud = collect_stats(net, [batch])
    assert close(quiet["down.weight"]["gram"], loud["down.weight"]["gram"])
    assert "gradient_gram" in loud["up.weight"]
    assert net.training
    assert not net.norm.training
    assert not net.up.weight.requires_grad
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert not any(m._forward_hooks for m in net.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(torch.tanh(self.shared(x)))


@pytest.mark.parametrize("others", [True, False])
def test_a_module_called_twice_accumulates(others):
    torch.manual_seed(0)
    net, x, y = Twice().to(F64), draw(5, 4), torch.arange(5) % 4
    held = collect_stats(net, [(x, y)], others=others)["shared.weight"]
    inner = torch.tanh(net.shared(x)).detach()
    assert close(held["gram"], (x.mT @ x + inner.mT @ inner) / 10)
    assert held.entry.counts["gradient_gram"] == 10
    squares = 0
    for k in range(5):
        loss = functional.cross_entropy(net(x[k : k + 1]), y[k : k + 1])
        squares = squares + torch.autograd.grad(loss, net.shared.weight)[0] ** 2
    assert close(held["diag_fisher"], squares / 5)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


def test_work_in_place_behind_a_map_does_not_reach_its_gradient():
    torch.manual_seed(0)
    net, x, y = InPlace().to(F64), draw(5, 4), torch.arange(5) % 3
    held = collect_stats(net, [(x, y)], ("kfac",))["up.weight"]["gradient_gram"]
    z = net.up(x).detach().requires_grad_()
    functional.cross_entropy(net.down(z.relu()), y, reduction="sum").backward()
    assert close(held, z.grad.mT @ z.grad / 5)


def test_convolutions_have_a_fisher_and_no_gram():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).to(F64)
    stats = collect_stats(net, [(draw(4, 1, 4, 4), torch.arange(4) % 3)])
    assert set(stats["0.weight"]) == {"diag_fisher"}
    assert stats["0.weight"]["diag_fisher"].shape == (2, 1, 3, 3)
    assert "conv layer" in stats.skipped["0.weight"]
    assert set(stats["2.weight"]) == {"gram", "gradient_gram", "diag_fisher"}


def test_only_what_is_asked_for_is_collected_and_grams_need_no_labels():
    net, batch = model(), tokens(5, 4)
    unlabelled = {"input_ids": batch["input_ids"]}
    stats = collect_stats(net, [unlabelled], ("gram",), modules=["up", "down"], exclude=["down"])
    assert list(stats) == ["up.weight"]
    assert set(stats["up.weight"]) == {"gram"}
    stats = collect_stats(net, [batch], ("kfac",), modules=["down"])
    assert set(stats["down.weight"]) == {"gram", "gradient_gram"}


def test_max_examples_cuts_the_last_batch():
    net = model()
    batches = [tokens(4, 3, seed=s) for s in range(5)]
    seen = []
    stats = collect_stats(net, batches, max_examples=6, progress=seen.append)
    assert stats["up.weight"].entry.counts == {"gram": 18, "gradient_gram": 18, "diag_fisher": 6}
    assert seen == [4, 6]


def test_labels_of_minus_100_count_as_no_label():
    net, batch = model(), tokens(4, 3)
    batch["labels"][1] = -100
    batch["labels"][2, 1:] = -100
    held = collect_stats(net, [batch])["head.weight"]
    assert held.entry.counts == {"gram": 12, "gradient_gram": 12, "diag_fisher": 3}


def test_the_true_fisher_draws_labels_by_its_seed():
    net, batch = model(), tokens(6, 4)
    one, two, other = (
        collect_stats(net, [batch], ("kfac",), fisher="true", seed=s)["head.weight"]
        for s in (0, 0, 1)
    )
    assert torch.equal(one["gradient_gram"], two["gradient_gram"])
    assert not torch.equal(one["gradient_gram"], other["gradient_gram"])
    many = {"input_ids": batch["input_ids"][:1, :1].expand(6000, 1)}
    held = collect_stats(net, [many], ("kfac",), fisher="true", max_examples=None)["head.weight"]
    p = net(batch["input_ids"][:1, :1]).detach().reshape(-1).softmax(0)
    exact = torch.diag(p) - p.outer(p)  # mean of (p - e_y)(p - e_y)^T under the model
    assert close(held["gradient_gram"], exact, 0.03)


def test_a_loss_of_one_s_own_is_taken_for_each_example():
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 1).to(F64), draw(5, 3), draw(5, 1, seed=1)

    def loss(output, batch):
        return (output - batch[1]).square().sum(1)

    held = collect_stats(net, [(x, y)], loss=loss)["weight"]
    g = 2 * (net(x) - y).detach()
    assert close(held["gradient_gram"], g.mT @ g / 5)
    assert close(held["diag_fisher"], ((g * x) ** 2).mean(0, keepdim=True))
    with pytest.raises(ValueError, match="one number for each of the 5 examples"):
        collect_stats(net, [(x, y)], loss=lambda output, batch: output.mean(), others=False)
    with pytest.raises(ValueError, match="labels must be classes of shape"):
        collect_stats(net, [(x, y)])


def test_half_precision_sums_in_float32():
    net = model().to(torch.bfloat16)
    stats = collect_stats(net, [tokens(6, 4)], others=False)
    assert stats["up.weight"]["gram"].dtype == torch.float64
    assert stats["up.weight"]["diag_fisher"].dtype == torch.float32


def test_statistics_in_the_wrong_order_are_refused():
    a, b = model(), model()
    with torch.no_grad():
        b.up.weight.add_(0.1)
    stats = [collect_stats(net, [tokens(6, 4)]) for net in (a, b)]
    merge(None, [a, b], "fisher", stats=stats)
    with pytest.raises(ValueError, match="statistics of model 1 were collected on model 2"):
        merge(None, [a, b], "fisher", stats=stats[::-1])
    with pytest.raises(ValueError, match="collected on different models"):
        stats[0] + stats[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("hessian",)}, "kinds must be some of gram, kfac, diag_fisher"),
        ({"kinds": "gram"}, "kinds must be some of"),
        ({"fisher": "exact"}, "fisher must be 'empirical' or 'true'"),
        ({"loss_reduction": "max"}, "loss_reduction must be 'mean' or 'sum'"),
        ({"max_examples": 0}, "max_examples must be at least 1"),
        ({"modules": ["nothing"]}, "no linear map is left with modules"),
    ],
)
@pytest.mark.bad_input
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        collect_stats(model(), [tokens(2, 3)], **options)


def test_data_that_says_nothing_is_refused():
    net, batch = model(), tokens(4, 3)
    with pytest.raises(ValueError, match="yielded no batch"):
        collect_stats(net, [])
    with pytest.raises(ValueError, match="empirical Fisher needs labels"):
        collect_stats(net, [{"input_ids": batch["input_ids"]}])
    with pytest.raises(ValueError, match="every gradient is zero"):
        collect_stats(net, [{**batch, "labels": torch.full((4, 3), -100)}])
    with pytest.raises(TypeError, match="data must be an iterable of batches"):
        collect_stats(net, batch)
    with torch.no_grad():
        net.up.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="loss is not finite"):
        collect_stats(net, [batch])


def test_quantised_weights_are_refused():
    net = model()
    net.up.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'up\.weight' is quantised"):
        collect_stats(net, [tokens(2, 3)])
