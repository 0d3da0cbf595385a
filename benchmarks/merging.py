"""Merging eight fine-tunes of a 135M model: processor time, wall time and peak memory, whole runs.

    python benchmarks/merging.py [--folder DIR] [--mergekit PYTHON] [--iso CHECKOUT] [--size 500m]

writes results/benchmarks/merging.json. Each case is a process of its own, start-up included, on one
thread: ours, mergekit's (`--mergekit` names a Python that has it), and the authors' Iso-C code
(`--iso`, a checkout of danielm1405/iso-merging). `copy` reads and writes the bytes that any merge
must. The models are random, in bfloat16, of SmolLM2-135M's shapes; about 2.5 GB of disk.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import torch
from _timing import environment, write_results

from spanwise.io import ShardedWriter

SIZES = ("layers", "width", "hidden", "kv", "vocabulary", "heads")
SHAPES = {
    "135m": dict(zip(SIZES, (30, 576, 1536, 192, 49152, 9), strict=True)),
    "500m": dict(zip(SIZES, (24, 896, 4864, 128, 151936, 14), strict=True)),
    "tiny": dict(zip(SIZES, (2, 64, 128, 32, 512, 2), strict=True)),
}

OURS = """
import sys
from spanwise.merging._folder import merge_to_folder
from spanwise.merging._merge import prepare
root, method, count, out = sys.argv[1:5]
job = prepare(f"{root}/base", [f"{root}/model{i}" for i in range(int(count))], method, **OPTIONS)
merge_to_folder(job, out, overwrite=True)
"""

COPY = """
import sys
root, _, count, out = sys.argv[1:5]
held = bytearray(2**24)
for name in ["base", *(f"model{i}" for i in range(int(count)))]:
    with open(f"{root}/{name}/model.safetensors", "rb", buffering=0) as file:
        while file.readinto(held):
            pass
with open(f"{root}/base/model.safetensors", "rb") as file, open(f"{out}.copy", "wb") as target:
    while part := file.read(2**24):
        target.write(part)
"""

MERGEKIT = """
import sys, yaml, torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
torch.set_num_threads(1)
root, method, count, out = sys.argv[1:5]
models = [{"model": f"{root}/model{i}", "parameters": {"weight": 1.0, "density": 0.2}}
          for i in range(int(count))]
config = {"merge_method": method, "models": models, "dtype": "bfloat16"}
if method != "linear":
    config["base_model"] = f"{root}/base"
run_merge(MergeConfiguration.model_validate(config), out,
          options=MergeOptions(copy_tokenizer=False, lazy_unpickle=True, trust_remote_code=False))
"""

ISO = """
import importlib.util, sys
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
root, method, count, out = sys.argv[1:5]
spec = importlib.util.spec_from_file_location("iso", CHECKOUT + "/src/utils/iso.py")
iso = importlib.util.module_from_spec(spec)
spec.loader.exec_module(iso)
class Vector:
    def __init__(self, held):
        self.vector = held
class Config:
    device = "cpu"
base = {k: v.float() for k, v in load_file(f"{root}/base/model.safetensors").items()}
vectors = []
for i in range(int(count)):
    tuned = load_file(f"{root}/model{i}/model.safetensors")
    vectors.append(Vector({k: tuned[k].float() - base[k] for k in base}))
delta = iso.iso_c(vectors, Config())
save_file({k: (base[k] + delta[k]).bfloat16() for k in base}, f"{out}.safetensors")
"""


PEAK = """
import sys
# Of this program alone: what a process inherits from the one that began it counts elsewhere.
with open("/proc/self/status") as status, open(sys.argv[4] + ".peak", "w") as file:
    file.write(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


def tensors(shape: dict, dtype: torch.dtype = torch.bfloat16) -> dict[str, tuple[int, ...]]:
    width, hidden, kv = shape["width"], shape["hidden"], shape["kv"]
    found = {
        "model.embed_tokens.weight": (shape["vocabulary"], width),
        "model.norm.weight": (width,),
    }
    for i in range(shape["layers"]):
        layer = f"model.layers.{i}"
        found |= {
            f"{layer}.self_attn.q_proj.weight": (width, width),
            f"{layer}.self_attn.k_proj.weight": (kv, width),
            f"{layer}.self_attn.v_proj.weight": (kv, width),
            f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.mlp.gate_proj.weight": (hidden, width),
            f"{layer}.mlp.up_proj.weight": (hidden, width),
            f"{layer}.mlp.down_proj.weight": (width, hidden),
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
        }
    return found


def make_models(root: Path, shape: dict, count: int) -> int:
    """A base and its fine-tunes, written once; the bytes of one."""
    names = ["base", *(f"model{i}" for i in range(count))]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "torch_dtype": "bfloat16", "hidden_size": shape["width"],
        "intermediate_size": shape["hidden"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "tie_word_embeddings": True,
        "num_key_value_heads": shape["heads"] * shape["kv"] // shape["width"],
        "vocab_size": shape["vocabulary"],
    }  # fmt: skip
    size = 0
    for number, name in enumerate(names):
        folder = root / name
        if folder.exists():
            size = (folder / "model.safetensors").stat().st_size
            continue
        with ShardedWriter(folder, 1e12) as out:
            for index, (key, dims) in enumerate(tensors(shape).items()):
                draw = torch.Generator().manual_seed(index)
                tensor = 0.02 * torch.randn(dims, generator=draw)
                if number:
                    own = torch.Generator().manual_seed(1000 * number + index)
                    tensor += 1e-3 * torch.randn(dims, generator=own)
                out.add(key, tensor.bfloat16())
            (out.staging / "config.json").write_text(json.dumps(config))
        size = (folder / "model.safetensors").stat().st_size
    return size


def measure(python: str, code: str, root: Path, method: str, count: int) -> dict[str, float]:
    """One process: seconds on the processor and on the clock, and its largest resident size."""
    out = root / "out"
    for leftover in (out, root / ".out.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    start = time.perf_counter()
    child = subprocess.Popen(
        [python, "-c", textwrap.dedent(code) + PEAK, str(root), method, str(count), str(out)],
        env={**os.environ, **single}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if child.returncode:
        raise RuntimeError(f"{method} failed with {child.returncode}")
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "wall_seconds": round(wall, 2),
        "peak_mb": round(int(Path(f"{out}.peak").read_text()) / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/merging-benchmark"))
    parser.add_argument("--mergekit", help="a Python that has mergekit 0.1.5")
    parser.add_argument("--iso", help="a checkout of danielm1405/iso-merging")
    parser.add_argument("--size", choices=SHAPES, default="135m")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    root = options.folder / options.size
    root.mkdir(parents=True, exist_ok=True)
    size = make_models(root, SHAPES[options.size], options.models)
    ours = {
        "linear": {}, "task_arithmetic": {}, "ties": {"density": 0.2},
        "ties (per tensor)": {"density": 0.2, "trim_scope": "tensor"},
        "dare_linear": {"density": 0.2}, "tsv": {}, "iso_c": {}, "iso_cts": {},
    }  # fmt: skip
    cases = [("copy", "", sys.executable, COPY)]
    cases += [
        (f"spanwise {name}", name.partition(" ")[0], sys.executable,
         OURS.replace("OPTIONS", repr(held)))
        for name, held in ours.items()
    ]  # fmt: skip
    if options.mergekit:
        cases += [
            (f"mergekit {name}", name, options.mergekit, MERGEKIT)
            for name in ("linear", "task_arithmetic", "ties", "dare_linear")
        ]
    if options.iso:
        code = ISO.replace("CHECKOUT", repr(options.iso))
        cases.append(("official iso_c", "iso_c", options.mergekit or sys.executable, code))
    rows = []
    for label, method, python, code in cases:
        runs = [measure(python, code, root, method, options.models) for _ in range(options.rounds)]
        best = min(runs, key=lambda run: run["cpu_seconds"])
        rows.append({"case": label, **best, "peak_mb": max(r["peak_mb"] for r in runs)})
        print(rows[-1], flush=True)
    shutil.rmtree(root / "out", ignore_errors=True)
    write_results(
        "merging" if options.size == "135m" else f"merging-{options.size}",
        {
            "environment": environment(), "models": options.models, "size": options.size,
            "bytes_of_one_model": size, "rounds": options.rounds, "rows": rows,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
