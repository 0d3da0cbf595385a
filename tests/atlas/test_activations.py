"""from_activations: the recorded basis is that of the activations, gathered the naive way."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from spanwise.atlas import Atlas

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def projector(entry):
    basis = entry.subspace.basis
    return basis @ basis.mT


def leading_projector(rows, energy):
    """The naive reference: an SVD of all rows at once."""
    _, values, vh = torch.linalg.svd(rows, full_matrices=False)
    share = values.square().cumsum(0) / values.square().sum()
    rank = int((share < energy).sum()) + 1
    return vh[:rank].mT @ vh[:rank], values[:rank]


def inputs_of(model, module, call):
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        call(model.eval())
    handle.remove()
    return seen


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 4)).double()


def test_the_input_basis_is_the_range_of_the_inputs(mlp):
    x = torch.randn(40, 6).double()
    atlas = Atlas.from_activations(mlp, [x], energy=0.8)
    for name, rows in (("0.weight", x), ("2.weight", mlp[1](mlp[0](x)).detach())):
        reference, values = leading_projector(rows, 0.8)
        entry = atlas.get(name)["input"]
        torch.testing.assert_close(projector(entry), reference, **TIGHT)
        torch.testing.assert_close(entry.subspace.values, values / 40**0.5, **TIGHT)


def test_the_output_basis_is_the_range_of_the_outputs_bias_included(mlp):
    x = torch.randn(40, 6).double()
    atlas = Atlas.from_activations(mlp, [x], sides=("output",))
    reference, _ = leading_projector(mlp[0](x).detach(), 0.8)
    torch.testing.assert_close(projector(atlas.get("0.weight")["output"]), reference, **TIGHT)
    assert atlas.get("0.weight")["output"].bias == "0.bias"


def test_an_update_that_avoids_the_full_basis_leaves_the_responses(mlp):
    x = torch.randn(5, 2).double() @ torch.randn(2, 6).double()
    entry = Atlas.from_activations(mlp, [x], energy=1.0).get("0.weight")["input"]
    assert entry.subspace.rank == 2
    delta = torch.randn(9, 6).double()
    kept = delta - entry.subspace.project(delta.mT).mT
    torch.testing.assert_close(x @ kept.mT, torch.zeros(5, 9).double(), **TIGHT)


def test_rank_keeps_that_many_and_no_more_than_there_are(mlp):
    x = torch.randn(5, 2).double() @ torch.randn(2, 6).double()
    atlas = Atlas.from_activations(mlp, [x], rank=4)
    assert atlas.get("0.weight")["input"].subspace.rank == 2
    assert atlas.get("2.weight")["input"].subspace.rank == 4


def test_centering_removes_the_mean_and_keeps_it(mlp):
    x = torch.randn(50, 6).double() + 10
    plain = Atlas.from_activations(mlp, [x], energy=0.9).get("0.weight")["input"].subspace
    centered = Atlas.from_activations(mlp, [x], energy=0.9, center=True)
    subspace = centered.get("0.weight")["input"].subspace
    assert plain.rank == 1
    assert plain.mean is None
    reference, _ = leading_projector(x - x.mean(0), 0.9)
    torch.testing.assert_close(subspace.basis @ subspace.basis.mT, reference, **TIGHT)
    torch.testing.assert_close(subspace.mean, x.mean(0), **TIGHT)


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [12]])
def test_the_batch_size_does_not_matter(mlp, sizes):
    x = torch.randn(12, 6).double()
    whole = Atlas.from_activations(mlp, [x], sides=("input", "output"))
    parts = Atlas.from_activations(mlp, list(x.split(sizes)), sides=("input", "output"))
    for entry in whole:
        other = parts.get(entry.name)[entry.side]
        torch.testing.assert_close(projector(other), projector(entry), **TIGHT)
        torch.testing.assert_close(other.subspace.values, entry.subspace.values, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_models_give_float32_bases(mlp, dtype):
    x = torch.randn(64, 6).double()
    exact = Atlas.from_activations(mlp, [x], rank=3).get("0.weight")["input"]
    rounded = Atlas.from_activations(mlp.to(dtype), [x.to(dtype)], rank=3).get("0.weight")["input"]
    assert rounded.subspace.basis.dtype == torch.float32
    angle = exact.subspace.angles(rounded.subspace.to(dtype=torch.float64)).max()
    assert float(angle) < (1e-5 if dtype == torch.float32 else 5e-2)


def test_layers_that_read_one_tensor_share_one_subspace(llama, ids):
    atlas = Atlas.from_activations(llama, [{"input_ids": ids}])
    for layer in range(2):
        held = {
            name: atlas.get(f"model.layers.{layer}.{name}.weight")["input"].subspace
            for name in (
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            )
        }
        query, key, value, out, gate, up, down = held.values()
        assert query is key is value
        assert gate is up
        assert len({id(s) for s in (query, out, gate, down)}) == 4
    assert (len(atlas), len(atlas.subspaces)) == (14, 8)


def test_shared_sums_equal_separate_ones(llama, ids):
    atlas = Atlas.from_activations(llama, [{"input_ids": ids}, {"input_ids": ids[:2, :3]}])
    layer = llama.model.layers[1].self_attn.k_proj
    rows = torch.cat(
        [
            x.reshape(-1, 16)
            for batch in (ids, ids[:2, :3])
            for x in inputs_of(llama, layer, lambda m, b=batch: m(input_ids=b))
        ]
    )
    reference, _ = leading_projector(rows, 0.8)
    entry = atlas.get("model.layers.1.self_attn.k_proj.weight")["input"]
    torch.testing.assert_close(projector(entry), reference, **TIGHT)


class Fickle(nn.Module):
    """Reads x with a, and with b only when the batch is even."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        y = self.a(x)
        return y + self.b(x) if len(x) % 2 == 0 else y


def test_layers_that_share_only_sometimes_get_their_own_sums():
    model = Fickle().double()
    even, odd = torch.randn(6, 5).double(), torch.randn(7, 5).double()
    atlas = Atlas.from_activations(model, [even, odd], energy=0.6)
    both, _ = leading_projector(torch.cat([even, odd]), 0.6)
    one, _ = leading_projector(even, 0.6)
    torch.testing.assert_close(projector(atlas.get("a.weight")["input"]), both, **TIGHT)
    torch.testing.assert_close(projector(atlas.get("b.weight")["input"]), one, **TIGHT)


class Inplace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        x = x + 0
        y = self.a(x)
        return y + self.b(x.relu_())


def test_a_tensor_changed_in_place_is_another_activation():
    x = torch.randn(8, 5).double()
    atlas = Atlas.from_activations(Inplace().double(), [x], energy=0.6)
    for name, rows in (("a.weight", x), ("b.weight", x.relu())):
        reference, _ = leading_projector(rows, 0.6)
        torch.testing.assert_close(projector(atlas.get(name)["input"]), reference, **TIGHT)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x):
        return self.a(self.a(x))


def test_a_layer_called_twice_sees_both_activations():
    x, model = torch.randn(8, 5).double(), Twice().double()
    atlas = Atlas.from_activations(model, [x], energy=0.6)
    reference, _ = leading_projector(torch.cat([x, model.a(x).detach()]), 0.6)
    torch.testing.assert_close(projector(atlas.get("a.weight")["input"]), reference, **TIGHT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(llama, ids, side):
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    mask[2, 2:] = 0
    if side == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    padded = Atlas.from_activations(llama, [{"input_ids": ids, "attention_mask": mask}])
    other = torch.where(mask.bool(), ids, (ids + 7) % 31)
    again = Atlas.from_activations(llama, [{"input_ids": other, "attention_mask": mask}])
    for entry in padded:
        torch.testing.assert_close(
            projector(again.get(entry.name)["input"]), projector(entry), **TIGHT
        )
    assert padded.metadata["rows"] == str(int(mask.sum()))


def test_padded_and_cut_sequences_agree(llama, ids):
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    whole = Atlas.from_activations(llama, [{"input_ids": ids[:2], "attention_mask": mask[:2]}])
    cut = Atlas.from_activations(llama, [{"input_ids": ids[:1, :5]}, {"input_ids": ids[1:2]}])
    for entry in whole:
        torch.testing.assert_close(
            projector(cut.get(entry.name)["input"]), projector(entry), **TIGHT
        )


class Pooled(nn.Module):
    """Drops the token axis in a way that no mask can follow."""

    def __init__(self):
        super().__init__()
        self.embed, self.token, self.flat = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(12, 2)

    def forward(self, input_ids, attention_mask):
        return self.flat(self.token(self.embed(input_ids)).flatten(1)[None, :, :12])


def test_an_activation_whose_padding_cannot_be_told_is_skipped_with_a_reason():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {"input_ids": torch.randint(0, 9, (2, 3)), "attention_mask": mask}
    atlas = Atlas.from_activations(Pooled(), [batch])
    assert atlas.names == ("token.weight",)
    assert "feed batches without padding" in atlas.skipped["flat.weight::input"]
    unpadded = {**batch, "attention_mask": torch.ones_like(mask)}
    assert len(Atlas.from_activations(Pooled(), [unpadded])) == 2


def test_gpt2_conv1d_inputs_live_in_the_rows(tiny, ids):
    model = tiny("GPT2")
    atlas = Atlas.from_activations(model, [{"input_ids": ids}], sides=("input", "output"))
    entries = atlas.get("transformer.h.0.mlp.c_proj.weight")
    module = model.transformer.h[0].mlp.c_proj
    (rows,) = inputs_of(model, module, lambda m: m(input_ids=ids))
    reference, _ = leading_projector(rows.reshape(-1, 64), 0.8)
    torch.testing.assert_close(projector(entries["input"]), reference, **TIGHT)
    assert entries["output"].subspace.dim == 16
    assert entries["input"].shape == (64, 16)
    assert entries["input"].layout == "transposed"


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "dilation": (1, 2), "padding": (2, 0)},
    ],
)
def test_a_convolution_records_its_unfolded_patches(options):
    conv = nn.Conv2d(2, 5, **options).double()
    x = torch.randn(3, 2, 8, 7).double()
    columns = functional.unfold(
        x,
        conv.kernel_size,
        dilation=conv.dilation,
        padding=conv.padding,
        stride=conv.stride,
    )
    atlas = Atlas.from_activations(nn.Sequential(conv), [x], sides=("input", "output"))
    entries = atlas.get("0.weight")
    reference, _ = leading_projector(columns.transpose(1, 2).reshape(-1, columns.shape[1]), 0.8)
    torch.testing.assert_close(projector(entries["input"]), reference, **TIGHT)
    outputs = conv(x).detach().permute(0, 2, 3, 1).reshape(-1, 5)
    reference, _ = leading_projector(outputs, 0.8)
    torch.testing.assert_close(projector(entries["output"]), reference, **TIGHT)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(2, 3, 3, padding="same"), (4, 2, 9)),
        (nn.Conv1d(2, 3, 2, padding=1, padding_mode="circular"), (2, 9)),
        (nn.Conv3d(1, 2, 2, stride=2), (2, 1, 4, 4, 4)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 5)),
    ],
)
def test_patches_times_the_kernel_are_the_convolution(conv, shape):
    from spanwise.atlas._rows import channels_last, patches

    conv, x = conv.double(), torch.randn(shape).double()
    rows = torch.cat(list(patches(x, conv)))
    torch.testing.assert_close(
        rows @ conv.weight.flatten(1).mT + conv.bias, channels_last(conv(x), conv), **TIGHT
    )


def test_patches_come_in_pieces_when_they_are_many(monkeypatch):
    from spanwise.atlas import _rows

    conv, x = nn.Conv2d(2, 3, 3), torch.randn(6, 2, 8, 8)
    whole = torch.cat(list(_rows.patches(x, conv)))
    monkeypatch.setattr(_rows, "CHUNK", 3000)
    pieces = list(_rows.patches(x, conv))
    assert len(pieces) > 1
    assert torch.equal(torch.cat(pieces), whole)


def test_convolutions_with_other_windows_do_not_share():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3)
            self.c = nn.Conv2d(2, 4, 3)

        def forward(self, x):
            return self.a(x).sum() + self.b(x).sum() + self.c(x).sum()

    atlas = Atlas.from_activations(Fork(), [torch.randn(2, 2, 6, 6)])
    a, b, c = (atlas.get(f"{n}.weight")["input"].subspace for n in "abc")
    assert b is c
    assert a is not b


def test_one_tensor_read_along_two_axes_is_two_activations():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix = nn.Conv1d(2, 5, 1), nn.Linear(5, 3)

        def forward(self, x):
            return self.mix(self.conv(x))

    model, x = Mixer().double(), torch.randn(6, 2, 5).double()
    atlas = Atlas.from_activations(model, [x], sides=("input", "output"), energy=0.7)
    y = model.conv(x).detach()
    for name, side, rows in (
        ("conv.weight", "output", y.mT.reshape(-1, 5)),
        ("mix.weight", "input", y.reshape(-1, 5)),
    ):
        reference, _ = leading_projector(rows, 0.7)
        torch.testing.assert_close(projector(atlas.get(name)[side]), reference, **TIGHT)


def test_what_one_layer_writes_and_the_next_reads_is_one_activation():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    atlas = Atlas.from_activations(model, [torch.randn(9, 4)], sides=("input", "output"))
    assert atlas.get("0.weight")["output"].subspace is atlas.get("1.weight")["input"].subspace


def test_a_weight_that_two_layers_hold_reads_what_both_read():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    x = torch.randn(9, 4).double()
    atlas = Atlas.from_activations(model, [x], energy=0.7)
    both = torch.cat([x, model[:2](x).detach()])
    reference, _ = leading_projector(both, 0.7)
    torch.testing.assert_close(projector(atlas.get("2.weight")["input"]), reference, **TIGHT)
    assert atlas.names == ("0.weight",)


def test_embeddings_are_skipped_by_default_and_recorded_on_request(llama, ids):
    assert "model.embed_tokens.weight" not in Atlas.from_activations(llama, [{"input_ids": ids}])
    atlas = Atlas.from_activations(
        llama, [{"input_ids": ids}], sides=("output", "input"), embeddings=True, exclude=()
    )
    entry = atlas.get("model.embed_tokens.weight")["output"]
    rows = llama.model.embed_tokens(ids).detach().reshape(-1, 16)
    reference, _ = leading_projector(rows, 0.8)
    torch.testing.assert_close(projector(entry), reference, **TIGHT)
    assert atlas.get("lm_head.weight")["output"] is entry
    assert "vocabulary" in atlas.skipped["model.embed_tokens.weight::input"]


def test_the_model_is_left_as_it_was(llama, ids):
    llama.train()
    llama.model.layers[0].eval()
    before = {name: p.clone() for name, p in llama.named_parameters()}
    Atlas.from_activations(llama, [{"input_ids": ids}])
    assert llama.training
    assert not llama.model.layers[0].training
    assert llama.model.layers[1].training
    assert all(not m._forward_hooks for m in llama.modules())
    assert all(torch.equal(p, before[name]) for name, p in llama.named_parameters())
    assert all(p.grad is None for p in llama.parameters())


def test_hooks_are_removed_when_the_data_fails(mlp):
    def broken():
        yield torch.randn(3, 6).double()
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Atlas.from_activations(mlp, broken())
    assert all(not m._forward_hooks for m in mlp.modules())


def test_include_and_exclude_choose_by_name_parts(llama, ids):
    atlas = Atlas.from_activations(
        llama, [{"input_ids": ids}], include=["mlp", "q_proj"], exclude=["layers.1"]
    )
    assert {name.split(".")[-2] for name in atlas.names} == {
        "q_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert all("layers.0" in name for name in atlas.names)


def test_wrapped_models_record_under_canonical_names(mlp):
    x = torch.randn(8, 6).double()
    wrapped = nn.Module()
    wrapped.module = mlp
    wrapped.forward = mlp.forward
    assert Atlas.from_activations(wrapped, [x]).names == ("0.weight", "2.weight")


def test_progress_counts_batches(mlp):
    seen = []
    Atlas.from_activations(mlp, iter([torch.randn(2, 6).double()] * 3), progress=seen.append)
    assert seen == [1, 2, 3]


def test_a_module_that_never_runs_is_listed():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    atlas = Atlas.from_activations(Unused(), [torch.randn(4, 3)])
    assert atlas.skipped == {"idle.weight::input": "its module was never called"}


def test_dead_and_broken_activations_are_listed(mlp):
    model = nn.Sequential(nn.Linear(3, 3), nn.Threshold(1e9, 0.0), nn.Linear(3, 3))
    atlas = Atlas.from_activations(model, [torch.randn(4, 3)])
    assert atlas.skipped == {"2.weight::input": "its activations are all zero"}
    bad = torch.randn(4, 6).double()
    bad[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"nothing could be recorded.*not finite"):
        Atlas.from_activations(mlp, [bad])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"energy": 0.0}, r"energy must be a share in \(0, 1\]"),
        ({"rank": 0}, "rank must be a positive integer or None, got 0"),
        ({"rank": 7}, r"rank = 7 exceeds the 6 dimensions of 0.weight's input side"),
        ({"sides": ("left",)}, 'sides must be a sequence of "output" and "input"'),
        ({"sides": ()}, "sides must be"),
        ({"include": ["nothing"]}, "no linear map is left with include"),
    ],
)
def test_bad_options_are_named_before_anything_runs(mlp, options, match):
    def data():
        raise AssertionError("data was touched")
        yield

    with pytest.raises(ValueError, match=match):
        Atlas.from_activations(mlp, data(), **options)


@pytest.mark.bad_input
def test_bad_data_is_named(mlp):
    with pytest.raises(ValueError, match="data yielded no batch"):
        Atlas.from_activations(mlp, [])
    with pytest.raises(TypeError, match=r"one Tensor; write \[batch\]"):
        Atlas.from_activations(mlp, torch.randn(3, 6))
    with pytest.raises(TypeError, match=r"yield the inputs only"):
        Atlas.from_activations(mlp, [(torch.randn(3, 6), 0)])
    with pytest.raises(TypeError, match=r"exclude takes a sequence of name parts, got 'mlp'"):
        Atlas.from_activations(mlp, [torch.randn(3, 6)], exclude="mlp")


@pytest.mark.bad_input
def test_a_four_dimensional_mask_is_refused(llama, ids):
    batch = {"input_ids": ids, "attention_mask": torch.ones(4, 1, 7, 7)}
    with pytest.raises(ValueError, match=r"attention_mask must be \(batch, length\)"):
        Atlas.from_activations(llama, [batch])


def test_a_side_that_is_too_wide_is_refused_with_the_way_out():
    with torch.device("meta"):
        model = nn.Linear(20000, 4)
    with pytest.raises(ValueError, match=r"weight: its activations are 20000 wide.*exclude="):
        Atlas.from_activations(model, [])


def test_memory_and_size_are_predicted_without_running(llama):
    from spanwise.atlas import activation_bytes

    plan = activation_bytes(llama)
    # Per layer q, k, v, o, gate, up read 16 numbers and down reads 24, float64 sums.
    numbers = 2 * (6 * 16**2 + 24**2)
    assert (plan.activations, plan.sums, plan.file) == (14, 8 * numbers, 4 * numbers)
    ranked = activation_bytes(llama, rank=3, itemsize=2)
    assert ranked.file == 2 * 3 * 2 * (6 * 16 + 24)


def test_the_prediction_bounds_the_file(llama, ids):
    from spanwise.atlas import activation_bytes, file_bytes

    atlas = Atlas.from_activations(llama, [{"input_ids": ids}], rank=3)
    values = sum(s.values.nbytes for s in atlas.subspaces)
    assert file_bytes(atlas) - values <= activation_bytes(llama, rank=3, itemsize=8).file


@pytest.mark.parametrize("options", [{"energy": 0.7}, {"rank": 3}, {"energy": 0.999999}])
def test_wide_activations_are_sketched_to_the_same_energy(monkeypatch, options):
    from spanwise.atlas import _moments

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 2)).double()
    # Energies fall by half from one direction to the next.
    x = torch.randn(400, 96).double() @ torch.diag(0.7 ** torch.arange(96)).double()
    exact = Atlas.from_activations(model, [x], **options)
    monkeypatch.setattr(_moments, "WIDE_DIM", 64)
    sketched = Atlas.from_activations(model, [x], **options)
    a, b = (atlas.get("0.weight")["input"].subspace for atlas in (exact, sketched))
    assert abs(a.rank - b.rank) <= 1
    if "energy" in options:
        assert float(b.energy(x.mT)) >= options["energy"] - 1e-9
        assert float(sketched.metadata["energy_kept"]) >= options["energy"] - 1e-6
    torch.testing.assert_close(a.energy(x.mT), b.energy(x.mT), rtol=1e-3, atol=0)


def test_a_compiled_model_is_recorded_eagerly(mlp):
    x = torch.randn(9, 6).double()

    def refuse(graph, inputs):
        raise AssertionError("compiled")

    compiled = torch.compile(mlp, backend=refuse)
    atlas = Atlas.from_activations(compiled, [x])
    assert atlas.names == ("0.weight", "2.weight")
    plain = Atlas.from_activations(mlp, [x])
    assert torch.equal(atlas.subspaces[1].basis, plain.subspaces[1].basis)


def test_a_packed_weight_is_skipped_with_the_reason(mlp):
    class Packed(nn.Linear):
        """Stores two inputs in one number, as quantised layers do."""

        def __init__(self):
            super().__init__(6, 3)
            self.weight = nn.Parameter(torch.zeros(9, 1))

        def forward(self, x):
            return x[:, :3]

    model = nn.Sequential(Packed(), nn.Linear(3, 3))
    atlas = Atlas.from_activations(model, [torch.randn(4, 6)])
    assert atlas.names == ("1.weight",)
    assert "its input is 6 wide, its weight says 1" in atlas.skipped["0.weight::input"]


def test_a_peft_model_records_its_base_weights_under_their_own_names(llama, ids):
    peft = pytest.importorskip("peft")
    plain = Atlas.from_activations(llama, [{"input_ids": ids}])
    adapted = peft.get_peft_model(llama, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    atlas = Atlas.from_activations(adapted, [{"input_ids": ids}])
    assert set(atlas.names) == set(plain.names)
    for entry in plain:
        torch.testing.assert_close(projector(atlas.entries[entry.key]), projector(entry), **TIGHT)
    assert len(atlas.subspaces) == len(plain.subspaces)
    factor = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert atlas.get(f"base_model.model.{factor}")["input"].shape == (-1, 16)
