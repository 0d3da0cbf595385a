"""param_groups, report, plans and the Trainer."""

import pytest
import torch
from torch import nn

from spanwise.layouts import linear_maps
from spanwise.optim import (
    METHODS,
    OURS,
    GaLore,
    build_optimizer,
    param_groups,
    plan_state_bytes,
    state_bytes,
)
from spanwise.optim._zoo import muon_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.conv = nn.Conv2d(4, 12, 3)
        self.proj = nn.Linear(16, 24)
        self.norm = nn.LayerNorm(24)
        self.tiny = nn.Linear(24, 2)
        self.lm_head = nn.Linear(24, 20)


def names(group):
    return [name for name, _ in group["params"]]


def test_linear_maps_are_projected_and_the_rest_is_plain():
    projected, plain = param_groups(Net(), rank=4)
    assert names(projected) == ["conv.weight", "proj.weight"]
    assert projected["layouts"] == ["conv", "linear"]
    assert "embed.weight" in names(plain)
    assert "tiny.weight" in names(plain)
    assert "lm_head.weight" in names(plain)
    assert len(names(projected)) + len(names(plain)) == len(list(Net().parameters()))


def test_target_takes_a_pattern_or_fragments():
    assert names(param_groups(Net(), rank=4, target=r"^proj")[0]) == ["proj.weight"]
    assert names(param_groups(Net(), rank=4, target=["conv"])[0]) == ["conv.weight"]


def test_one_string_to_exclude_is_one_fragment_and_not_its_letters():
    model = nn.ModuleDict({"head": nn.Linear(12, 16), "mix": nn.Linear(16, 12)})
    projected, rest = param_groups(model, rank=4, exclude="head")
    assert [name for name, _ in projected["params"]] == ["mix.weight"]
    assert "head.weight" in [name for name, _ in rest["params"]]


def test_frozen_parameters_are_left_out():
    net = Net()
    net.proj.weight.requires_grad_(False)
    groups = param_groups(net, rank=4)
    assert "proj.weight" not in names(groups[0]) + names(groups[1])


def test_tied_head_is_never_projected_and_counted_once():
    net = Net()
    net.lm_head = nn.Linear(16, 20, bias=False)
    net.lm_head.weight = net.embed.weight
    groups = param_groups(net, rank=4, exclude=())
    everything = names(groups[0]) + names(groups[1])
    assert everything.count("embed.weight") == 1
    assert "lm_head.weight" not in everything


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 64}, "2 matched but have a shorter side below 65|matched but have a shorter"),
        ({"target": "nowhere"}, "matches no trainable one"),
        ({"rank": 0}, "rank must be at least 1"),
    ],
)
def test_nothing_to_project_is_an_error_that_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        param_groups(Net(), **{"rank": 4, **options})


def test_groups_print_what_they_hold():
    assert str(param_groups(Net(), rank=4)).startswith("2 projected tensors (0.0M numbers), ")


def test_report_line_counts_every_tensor():
    optimizer = GaLore(param_groups(Net(), rank=4), lr=1e-2)
    report = optimizer.report()
    assert (report.projected, report.plain, report.guarded) == (2, 9, 0)
    assert str(report).startswith("galore: 2 tensors projected, 9 AdamW, 0 guarded; state ")
    assert "proj.weight" in report.table()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_planned_state_is_what_a_step_allocates(method):
    net = Net()
    optimizer = build_optimizer(method, net, lr=1e-3, rank=4)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    if method in OURS:
        chosen = OURS[method].groups_of(net, 4)
    else:
        chosen = muon_groups(net) if method == "muon" else param_groups(net, rank=4)
    shapes = {n: tuple(p.shape) for n, p in net.named_parameters()}
    expected = plan_state_bytes(shapes, method, rank=4, projected=names(chosen[0]))
    assert state_bytes(optimizer) == expected


class Kernels(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(6, 16, 5)
        self.plane = nn.Conv2d(3, 12, 3)
        self.experts = Experts()


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 14))


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_planned_state_of_convolutions_and_experts_is_what_a_step_allocates(method, told):
    net = Kernels()
    optimizer = build_optimizer(method, net, lr=1e-3, rank=4)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    maps = {m.name: m for m in linear_maps(net)}
    shapes = {n: tuple(p.shape) for n, p in net.named_parameters()}
    layouts = {"layouts": {n: m.layout for n, m in maps.items()}} if told else {}
    expected = plan_state_bytes(shapes, method, rank=4, projected=list(maps), **layouts)
    assert state_bytes(optimizer) == expected


def test_a_planned_layout_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"'linear' does not fit a tensor of shape \(4, 3, 5\)"):
        plan_state_bytes({"w": (4, 3, 5)}, "galore", rank=2, projected=["w"],
                         layouts={"w": "linear"})  # fmt: skip


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'galore'"):
        build_optimizer("galor", Net(), lr=1e-3)
    with pytest.raises(ValueError, match="method must be one of galore, grass"):
        plan_state_bytes({}, "adagrad")


@pytest.mark.parametrize("how", ["cls", "optimizers"])
def test_galore_runs_in_the_trainer(tmp_path, how):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    data = [{"input_ids": torch.arange(16), "labels": torch.arange(16)} for _ in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    groups = param_groups(model, rank=8)
    if how == "cls":
        extra = {"optimizer_cls_and_kwargs": (GaLore, {"params": groups, "lr": 1e-2})}
    else:
        optimizer = GaLore(groups, lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        extra = {"optimizers": (optimizer, schedule)}
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, **extra)
    trainer.train()
    name = "model.layers.0.mlp.up_proj.weight"
    moved = dict(model.named_parameters())[name].detach() - start[name]
    assert 0 < torch.linalg.matrix_rank(moved.double(), rtol=1e-5) <= 8
