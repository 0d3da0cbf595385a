"""What the README shows works, on the kinds of model that readers bring."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spanwise import Atlas, catalog, cli
from spanwise._lazy import EXTRAS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def mlp():
    model = nn.Sequential(
        nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 5)
    )
    old = [torch.randn(32, 4) @ torch.randn(4, 24) for _ in range(4)]
    new = [torch.randn(32, 24) for _ in range(6)]
    return model, old, new, lambda m, x: F.cross_entropy(m(x), x[:, :5].argmax(1))


def conv_net():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    old = [torch.randn(4, 3, 1, 1).expand(4, 3, 10, 10) for _ in range(4)]
    new = [torch.randn(4, 3, 10, 10) for _ in range(6)]
    return model, old, new, lambda m, x: F.cross_entropy(m(x), x.mean((2, 3)).argmax(1))


def _language_model(model):
    def batches(low, high):
        found = []
        for _ in range(4):
            ids = torch.randint(low, high, (3, 16))
            found.append({"input_ids": ids, "labels": ids})
        return found

    return model, batches(0, 12), batches(40, 90), lambda m, batch: m(**batch).loss


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=48, n_layer=2, n_head=2)
    return _language_model(transformers.GPT2LMHeadModel(config))


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return _language_model(model)


def _python_block():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


@pytest.mark.filterwarnings("ignore:.*rank")  # the tiny models leave less room than rank 8
@pytest.mark.parametrize("make", [mlp, conv_net, gpt2, llama])
def test_the_readmes_code_trains_and_keeps_out(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, old_data, new_data, loss = make()
    names = {"model": model, "old_data": old_data, "new_data": new_data, "loss": loss}
    before = loss(model, new_data[0]).item()
    for _ in range(5):
        exec(compile(_python_block(), "<README>", "exec"), names)
    assert loss(model, new_data[0]).item() < before

    report = names["optimizer"].report()
    assert report.projected > 0
    assert report.guarded > 0
    share = names["know"].update_share(names["before"], model)
    assert share.inside < 1e-10  # a share of squared norms: 1e-5 of the norm, in float32
    assert str(report) in capsys.readouterr().out

    written = Atlas.load(tmp_path / "know.atlas.safetensors", base=names["before"])
    assert written.names == names["know"].names


def test_the_block_is_about_ten_lines():
    lines = [line for line in _python_block().splitlines() if line and not line.startswith("#")]
    imports = [line for line in lines if line.startswith(("from", "import"))]
    assert len(lines) - len(imports) <= 10


def test_the_numbers_beside_the_picture_are_the_committed_results():
    rows = json.loads((ROOT / "results" / "demo.json").read_text())["rows"]
    forgot = {row["arm"]: [] for row in rows}
    for row in rows:
        forgot[row["arm"]].append(row["forgot_at_level"])
    means = {arm: statistics.fmean(values) for arm, values in forgot.items()}
    ours = means.pop("galore_avoid")
    assert f"**{ours:.3f}** nats" in README
    assert f"**{min(means.values()):.3f}** for the best control" in README


def test_the_table_of_methods_is_the_catalogs():
    assert catalog.write_table(README) == README, "run: spanwise list --write README.md"


def test_every_file_the_readme_links_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def test_every_verb_and_make_target_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for verb in re.findall(r"(?:^|`)spanwise (\w+)", README, flags=re.MULTILINE):
        assert verb in cli.VERBS


@pytest.mark.slow
def test_the_readmes_code_needs_the_base_install_only(tmp_path):
    extras = sorted({*EXTRAS, "scipy", "sklearn", "pandas"})
    script = f"""
import sys
for name in {extras}:
    sys.modules[name] = None  # importing it fails as if it were not installed
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 48))
old_data = [torch.randn(32, 4) @ torch.randn(4, 24) for _ in range(4)]
new_data = [torch.randn(32, 24) for _ in range(2)]
loss = lambda model, x: model(x).square().mean()
{_python_block()}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "know.atlas.safetensors").is_file()
