"""What the README shows works, on the kinds of model that readers bring."""

import json
import math
import re
import statistics
import subprocess
import sys

import pytest
import torch

import examples
from examples import ROOT
from spanwise import Atlas, catalog, cli
from spanwise._lazy import EXTRAS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _python_block():
    return examples.blocks(README, "python")[0]


@pytest.mark.filterwarnings("ignore:.*rank")  # the tiny models leave less room than rank 8
@pytest.mark.parametrize("make", [examples.mlp, examples.conv_net, examples.gpt2, examples.llama])
def test_the_readmes_code_trains_and_keeps_out(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, old_data, new_data, loss = make()
    names = {"model": model, "old_data": old_data, "new_data": new_data, "loss": loss}
    before = loss(model, new_data[0]).item()
    for _ in range(5):
        examples.run(_python_block(), names, "README")
    assert loss(model, new_data[0]).item() < before

    report = names["optimizer"].report()
    assert report.projected > 0
    assert report.guarded > 0
    share = names["know"].update_share(names["before"], model)
    assert share.inside < 1e-10  # a share of squared norms: 1e-5 of the norm, in float32
    assert str(report) in capsys.readouterr().out

    written = Atlas.load(tmp_path / "mine.atlas.safetensors", base=names["before"])
    assert written.names == names["know"].names


def test_the_merges_of_the_readme_give_folders_that_load(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    model = examples.save_family(tmp_path, "llama", "llama-code", "llama-math")
    (tmp_path / "recipe.yml").write_text(examples.blocks(README, "yaml")[0])
    lines = [words for words in examples.commands(README) if words[0] == "merge"]
    assert any("recipe.yml" in words for words in lines)
    for words in lines:
        assert cli.main([*words, "--quiet"]) == 0, words
    data = [{"input_ids": torch.randint(0, 64, (2, 16))}]
    know = Atlas.from_activations(model, data, energy=0.8)
    examples.run(examples.blocks(README, "python")[1], {"know": know}, "README")
    merged = {path.name for path in tmp_path.glob("merged*")}
    assert merged == {"merged", "merged-ties", "merged-around"}
    for name in merged:
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
    assert know.update_share(tmp_path / "llama", tmp_path / "merged-around").inside < 1e-10
    assert know.update_share(tmp_path / "llama", tmp_path / "merged").inside > 0.01


def test_the_estimators_of_the_readme_find_what_the_data_was_made_of():
    pytest.importorskip("sklearn")
    names = {}
    examples.run(examples.blocks(README, "python")[2], names, "README")
    mixing = names["mixing"] / (names["mixing"] ** 2).sum(axis=0) ** 0.5
    assert (abs(names["columns"].T @ mixing).max(axis=1) > 0.99).all()
    assert names["why"].shape == (20, 6)
    later = names["time"][-1] + 0.1
    assert names["future"][0] == pytest.approx([math.sin(later), math.cos(later)], abs=1e-9)


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
    for target in re.findall(r"(?:^|`)make (\w+)", README, flags=re.MULTILINE):
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
    assert (tmp_path / "mine.atlas.safetensors").is_file()
