"""Stacked experts: one basis each, from the tokens that were routed to it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from spanwise.atlas import Atlas

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"


@pytest.fixture
def mixtral(tiny):
    return tiny("Mixtral", num_hidden_layers=1, num_local_experts=3, num_experts_per_tok=2)


def routed(model, ids, mask=None):
    """Every expert's tokens and hidden activations, by its definition."""
    model.set_experts_implementation("eager")  # Grouped kernels know no float64.
    block = model.model.layers[0].mlp
    seen = []
    handle = block.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model.eval()(input_ids=ids, attention_mask=mask)
    handle.remove()
    hidden = seen[0].reshape(-1, seen[0].shape[-1])
    valid = torch.ones(len(hidden), dtype=torch.bool) if mask is None else mask.reshape(-1).bool()
    with torch.no_grad():
        choice = block.gate(hidden)[2]
    experts = block.experts
    for e in range(experts.num_experts):
        x = hidden[(choice == e).any(1) & valid]
        gate, up = functional.linear(x, experts.gate_up_proj[e]).chunk(2, dim=-1)
        yield x, (experts.act_fn(gate) * up).detach()


def check(atlas, model, ids, mask=None):
    for e, (x, hidden) in enumerate(routed(model, ids, mask)):
        for name, rows in ((UP, x), (DOWN, hidden)):
            basis = atlas.get(name)["input"].subspace.basis[e]
            _, values, vh = torch.linalg.svd(rows, full_matrices=False)
            rank = min(basis.shape[1], int((values > 1e-12).sum()))
            reference = vh[:rank]
            torch.testing.assert_close(
                basis[:, :rank] @ basis[:, :rank].mT, reference.mT @ reference, **TIGHT
            )


def test_each_expert_has_the_basis_of_its_own_tokens(mixtral, ids):
    atlas = Atlas.from_activations(mixtral, [{"input_ids": ids}])
    assert atlas.get(UP)["input"].subspace.batch == (3,)
    assert atlas.get(UP)["input"].layout == "experts"
    check(atlas, mixtral, ids)


def test_every_expert_keeps_its_energy(mixtral, ids):
    atlas = Atlas.from_activations(mixtral, [{"input_ids": ids}], energy=0.7)
    subspace = atlas.get(UP)["input"].subspace
    for e, (x, _) in enumerate(routed(mixtral, ids)):
        kept = (x @ subspace.basis[e]).square().sum() / x.square().sum()
        assert float(kept) >= 0.7 - 1e-10


@pytest.mark.parametrize("include", [None, ["down_proj"]])
def test_padded_tokens_are_left_out_of_every_expert(mixtral, ids, include):
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    mask[3, 1:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    atlas = Atlas.from_activations(mixtral, [batch], include=include)
    assert not [key for key in atlas.skipped if "no token" not in atlas.skipped[key]]
    if include is None:
        check(atlas, mixtral, ids, mask)
    else:
        assert atlas.names == (DOWN,)


def test_outputs_of_experts_are_recorded_too(mixtral, ids):
    atlas = Atlas.from_activations(mixtral, [{"input_ids": ids}], sides=("output",), rank=4)
    experts = mixtral.model.layers[0].mlp.experts
    for e, (_, hidden) in enumerate(routed(mixtral, ids)):
        _, _, vh = torch.linalg.svd(hidden @ experts.down_proj[e].detach().mT)
        basis = atlas.get(DOWN)["output"].subspace.basis[e]
        torch.testing.assert_close(basis @ basis.mT, vh[:4].mT @ vh[:4], **TIGHT)


def test_the_implementation_of_the_experts_is_restored(mixtral, ids):
    config = mixtral.model.layers[0].mlp.experts.config
    before = config._experts_implementation
    Atlas.from_activations(mixtral, [{"input_ids": ids}])
    assert config._experts_implementation == before
    assert "forward" not in vars(mixtral.model.layers[0].mlp.experts)


class BmmExperts(nn.Module):
    """All experts in one product, tokens sorted by expert: (E, tokens, n) @ (E, n, m)."""

    is_transposed = True

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x):
        return torch.bmm(x, self.up)


def test_experts_in_one_batched_product_are_seen():
    x = torch.randn(2, 9, 4).double()
    atlas = Atlas.from_activations(BmmExperts().double(), [x], rank=2)
    entry = atlas.get("up")["input"]
    assert (entry.layout, tuple(entry.subspace.basis.shape)) == ("experts_transposed", (2, 4, 2))
    for e in range(2):
        _, _, vh = torch.linalg.svd(x[e], full_matrices=False)
        basis = entry.subspace.basis[e]
        torch.testing.assert_close(basis @ basis.mT, vh[:2].mT @ vh[:2], **TIGHT)


def test_transposed_experts_with_matmul_are_seen():
    transformers = pytest.importorskip("transformers")
    config = transformers.GptOssConfig(
        hidden_size=8, intermediate_size=6, num_local_experts=3, num_attention_heads=2, head_dim=4
    )
    config._experts_implementation = "eager"
    experts = transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts(config).double()
    with torch.no_grad():
        for p in experts.parameters():
            p.normal_()
    x, choice = torch.randn(20, 8).double(), torch.arange(20)[:, None] % 3
    batch = {
        "hidden_states": x,
        "router_indices": choice,
        "routing_weights": torch.ones(20, 1).double(),
    }
    atlas = Atlas.from_activations(experts, [batch], rank=3)
    basis = atlas.get("gate_up_proj")["input"].subspace.basis
    for e in range(3):
        _, _, vh = torch.linalg.svd(x[e::3], full_matrices=False)
        torch.testing.assert_close(basis[e] @ basis[e].mT, vh[:3].mT @ vh[:3], **TIGHT)


def test_an_expert_without_tokens_is_listed():
    x = torch.randn(2, 9, 4)
    x[1] = 0
    atlas = Atlas.from_activations(BmmExperts(), [x], rank=2)
    assert "experts [1]" in atlas.skipped["up[1 experts]::input"]
    basis = atlas.get("up")["input"].subspace.basis[1]
    torch.testing.assert_close(basis.mT @ basis, torch.eye(2), rtol=0, atol=1e-6)


class HiddenExperts(BmmExperts):
    def forward(self, x):
        return torch.einsum("etn,enm->etm", x, self.up)


def test_experts_whose_products_cannot_be_seen_are_an_error_with_the_reason():
    with pytest.raises(ValueError, match=r"nothing could be recorded. up::input: no product"):
        Atlas.from_activations(HiddenExperts(), [torch.randn(2, 9, 4)])
