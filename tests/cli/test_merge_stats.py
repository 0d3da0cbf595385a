"""`spanwise merge stats` as a person meets it, up to a merge that uses what it wrote."""

import json
import warnings

import pytest
import torch
from tests.merging.llamas import WORDS, llama, loaded, tokenizer, transformers

from spanwise.cli import main
from spanwise.io import open_tensors
from spanwise.merging import Stats, collect_stats, merge


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A base, two fine-tunes, and a text for each, one example a line."""
    root = tmp_path_factory.mktemp("zoo")
    base = llama(root / "base", 0)
    for seed, name in enumerate("ab", start=1):
        llama(root / name, seed, base=base)
        lines = [
            json.dumps({"text": " ".join(WORDS[(seed * 7 + i * j) % 61] for j in range(3 + i % 4))})
            for i in range(12)
        ]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
    return root


def run(*argv):
    return main(["merge", *map(str, argv)])


def collected(zoo, name, tmp_path, *more):
    out = tmp_path / f"{name}.safetensors"
    argv = [zoo / name, "--data", zoo / f"{name}.jsonl", "--out", out, *more]
    assert run("stats", *argv) == 0
    return out


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("gram", "regmean", {}),
        ("fisher", "fisher", {}),
        ("kfac", "mats", {"iterations": 5}),
    ],
)
def test_statistics_of_two_models_merge_them_from_the_command_line(
    zoo, tmp_path, capsys, kind, method, options
):
    files = [collected(zoo, name, tmp_path, "--kind", kind) for name in "ab"]
    told = capsys.readouterr().out
    for part in ("reads 12 examples", "will take", "beside the model", "wrote", "next: spanwise"):
        assert part in told
    more = [x for k, v in options.items() for x in ("--option", f"{k}={v}")]
    models = [zoo / n for n in ("base", "a", "b")]
    argv = [*models, "--method", method, *more, "--stats", *files, "--out", tmp_path / "out"]
    assert run("run", *argv, "--quiet") == 0
    held = [dict(open_tensors(path)) for path in models]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # embeddings and norms have no Gram
        expected = merge(held[0], held[1:], method, stats=files, **options)
    found = open_tensors(tmp_path / "out")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    average = merge(held[0], held[1:], "linear")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(found[name], average[name], atol=1e-5)
    assert loaded(tmp_path / "out")[1] == set()


@pytest.mark.parametrize("more", [(), ("--memory", "2e4"), ("--batch", "5")])
def test_a_file_holds_what_a_loop_over_single_texts_gives(zoo, tmp_path, more):
    out = collected(zoo, "a", tmp_path, "--kind", "gram", "kfac", "fisher", *more)
    net = transformers.AutoModelForCausalLM.from_pretrained(zoo / "a")
    reader = tokenizer()
    batches = []
    for line in (zoo / "a.jsonl").read_text().splitlines():
        ids = reader.encode(json.loads(line)["text"], add_special_tokens=False)
        batches.append({"input_ids": torch.tensor([[*ids, reader.eos_token_id]])})
        batches[-1]["labels"] = batches[-1]["input_ids"].clone()
    plain, found = collect_stats(net, batches), Stats.load(out)
    assert set(plain) == set(found)
    for name in plain:
        assert plain[name].entry == found[name].entry
        for kind in plain[name]:
            a, b = plain[name][kind].double(), found[name][kind].double()
            assert torch.allclose(a, b, atol=1e-6 * float(a.abs().max()), rtol=1e-4), (name, kind)


def test_files_add_up_to_those_of_all_data(zoo, tmp_path, capsys):
    lines = (zoo / "a.jsonl").read_text().splitlines()
    parts = []
    for index, some in enumerate((lines[:5], lines[5:])):
        (tmp_path / "part.jsonl").write_text("\n".join(some))
        out = tmp_path / f"part{index}.safetensors"
        argv = ["stats", zoo / "a", "--data", tmp_path / "part.jsonl", "--out", out]
        assert run(*argv, "--kind", "kfac", "--quiet") == 0
        parts.append(out)
    whole = Stats.load(collected(zoo, "a", tmp_path, "--kind", "kfac", "--quiet"))
    capsys.readouterr()
    assert run("stats", "--merge", *parts, "--out", tmp_path / "sum.safetensors", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["statistics"]["gram"]["over"] == "tokens"
    found = Stats.load(tmp_path / "sum.safetensors")
    for name in whole:
        assert found[name].entry == whole[name].entry
        for kind in whole[name]:
            scale = float(whole[name][kind].abs().max())
            assert torch.allclose(found[name][kind], whole[name][kind], atol=1e-5 * scale)
    assert run("stats", "--merge", parts[0], collected(zoo, "b", tmp_path, "--kind", "kfac"),
               "--out", tmp_path / "no.safetensors") == 1  # fmt: skip
    assert "collected on different models" in capsys.readouterr().err
    assert not (tmp_path / "no.safetensors").exists()


def test_a_plan_reads_no_weights_and_writes_nothing(zoo, tmp_path, capsys, monkeypatch):
    from spanwise.zoo import encoders

    monkeypatch.setattr(encoders, "load_model", None)
    out = tmp_path / "s.safetensors"
    argv = ["stats", zoo / "a", "--kind", "gram", "fisher", "--out", out, "--plan", "--json"]
    assert run(*argv) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    n = 16 * 17 // 2
    assert told["plan"]["file"]["gram"] == 4 * (2 * (6 * n + 24 * 25 // 2) + n)
    assert "gram" in captured.err
    assert "fisher" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_the_passes_that_are_whole(zoo, tmp_path, capsys, monkeypatch):
    argv = ["--memory", "1", "--include", "layers.0.mlp"]
    out = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:

        def stop(self, index, count, done):
            if index == 2:
                raise KeyboardInterrupt

        patch.setattr("spanwise.cli._merge_stats._Passes.__call__", stop)
        assert run("stats", zoo / "a", "--data", zoo / "a.jsonl", "--out", out, *argv) == 130
    assert "the same command repeats only what is missing" in capsys.readouterr().err
    assert not out.exists()
    collected(zoo, "a", tmp_path, *argv)
    told = capsys.readouterr().out
    assert "going on: 1 passes" in told
    assert "pass 1/3" not in told
    assert "pass 2/3" in told
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_lora_folder_is_read_on_its_base(zoo, tmp_path):
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(zoo / "base")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "lora")
    adapted.merge_and_unload().save_pretrained(tmp_path / "whole")
    tokenizer().save_pretrained(tmp_path / "whole")
    argv = ["--data", zoo / "a.jsonl", "--kind", "gram", "--quiet"]
    assert run("stats", tmp_path / "lora", "--out", tmp_path / "low.safetensors", *argv) == 0
    assert run("stats", tmp_path / "whole", "--out", tmp_path / "full.safetensors", *argv) == 0
    low, full = (Stats.load(tmp_path / f"{n}.safetensors") for n in ("low", "full"))
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.allclose(low[name]["gram"], full[name]["gram"], atol=1e-5)
    argv = [zoo / "base", tmp_path / "lora", zoo / "a", "--method", "regmean", "--quiet"]
    files = [tmp_path / "low.safetensors", collected(zoo, "a", tmp_path)]
    assert run(*argv, "--stats", *files, "--out", tmp_path / "out") == 0


def bert(folder, name="BertForSequenceClassification"):
    words = {w: i for i, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    (folder).mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, label2id={"bad": 0, "good": 1},
        id2label={0: "bad", 1: "good"},
    )  # fmt: skip
    getattr(transformers, name)(config).save_pretrained(folder)
    return folder


def test_an_encoder_s_statistics_take_its_classes_from_a_column(tmp_path, capsys):
    folder = bert(tmp_path / "bert")
    (tmp_path / "d.csv").write_text("line,mood\nw1 w2 w3,good\nw4,bad\nw5 w6,1\n")
    out = tmp_path / "s.safetensors"
    argv = ["stats", folder, "--data", tmp_path / "d.csv", "--text", "line", "--out", out]
    assert run(*argv, "--kind", "fisher") == 1
    assert "needs classes: name their column, --label" in capsys.readouterr().err
    assert run(*argv, "--label", "mood", "--kind", "fisher", "kfac") == 0
    stats = Stats.load(out)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert stats[name].entry.counts == {"gram": 12, "gradient_gram": 12, "diag_fisher": 3}
    assert stats["classifier.weight"].entry.counts["gram"] == 3
    assert set(stats) <= set(open_tensors(folder))
    assert run(*argv, "--kind", "kfac", "--labels", "model", "--overwrite") == 0


def test_an_encoder_without_a_head_has_inputs_and_no_gradients(tmp_path, capsys):
    folder = bert(tmp_path / "bert", "BertModel")
    (tmp_path / "d.txt").write_text("w1 w2")
    out = tmp_path / "s.safetensors"
    argv = ["stats", folder, "--data", tmp_path / "d.txt", "--out", out]
    assert run(*argv, "--kind", "kfac") == 1
    assert "BertModel predicts nothing that text alone answers" in capsys.readouterr().err
    assert run(*argv) == 0
    assert Stats.load(out)["encoder.layer.0.output.dense.weight"].entry.counts == {"gram": 4}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name the model whose statistics are collected"),
        (["{a}"], "data is missing"),
        (["llama-1m", "--data", "{text}"], "is a size with fresh weights"),
        (["{a}", "--data", "{text}", "--examples", "0"], "examples must be positive"),
        (["{a}", "--data", "{text}", "--sequence", "1"], "sequence must be at least 2"),
        (["{a}", "--data", "{text}", "--base", "{a}"], "base is for LoRA folders"),
        (["{a}", "--data", "{text}", "--include", "none"], "no linear map is left"),
        (["{a}", "--data", "{text}", "--device", "abacus"], "device = abacus cannot be used"),
        (["{a}", "--merge", "x", "y"], "leave MODEL and --data out"),
        (["--merge", "x"], "adds two files or more"),
        (["--merge", "x", "y"], "No safetensors file or folder"),
        (["{a}", "--data", "{text}", "--out", "{a}"], "is a folder; name a file"),
        (["{a}", "--data", "{text}", "--out", "{text}"], "exists. Name another file"),
    ],
)
def test_a_wrong_option_is_one_line(zoo, tmp_path, capsys, argv, message):
    argv = [part.format(a=zoo / "a", text=zoo / "a.jsonl") for part in argv]
    more = [] if "--out" in argv else ["--out", tmp_path / "s.safetensors"]
    assert run("stats", *argv, *more) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_called_like_a_verb_is_no_model(zoo, tmp_path, monkeypatch, capsys):
    (tmp_path / "stats").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("stats") == 1
    assert "name the model whose statistics" in capsys.readouterr().err
