"""Merging eight fine-tunes of a 135M model: processor time, wall time and peak memory, whole runs.

    python benchmarks/merging.py [--folder DIR] [--mergekit PYTHON] [--iso CHECKOUT]
    python benchmarks/merging.py --growth

writes results/benchmarks/merging.json. Each case is a process of its own, start-up included, on one
thread: `spanwise merge` as one types it, mergekit's (`--mergekit` names a Python that has it), and
the authors' Iso-C code (`--iso`, a checkout of danielm1405/iso-merging). `copy` reads and writes
the bytes that any merge must. The models are random, in bfloat16, of SmolLM2-135M's shapes, 2.5 GB
of disk; `--size 500m` takes larger ones (9 GB) and writes results/benchmarks/merging-500m.json.

`--slow` adds the two methods that take minutes. `--only ties copy` runs the cases whose name holds
one of these, and writes no file. `--growth` measures ours for two, four and eight models of 135M
and of 500M (9 GB of disk), writes results/benchmarks/merging-growth.json, and computes from it what
eight models of 70B would need.
"""

import argparse
import compileall
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import torch
from _timing import environment, write_results

import spanwise
from spanwise.io import ShardedWriter
from spanwise.io._reader import MappingReader
from spanwise.merging._merge import prepare

SIZES = ("layers", "width", "hidden", "kv", "vocabulary", "heads")
SHAPES = {
    "135m": dict(zip(SIZES, (30, 576, 1536, 192, 49152, 9), strict=True)),
    "500m": dict(zip(SIZES, (24, 896, 4864, 128, 151936, 14), strict=True)),
    "70b": dict(zip(SIZES, (80, 8192, 28672, 1024, 128256, 64), strict=True)),
    "tiny": dict(zip(SIZES, (2, 64, 128, 32, 512, 2), strict=True)),
}
UNTIED = ("70b",)
GROWTH = {"task_arithmetic": {}, "ties": {"density": 0.2}, "iso_c": {}}

OURS = """
import sys
root, method, count, out = given = sys.argv[1:5]
base = "none" if method == "linear" else f"{root}/base"  # as in mergekit's configuration
models = [f"{root}/model{i}" for i in range(int(count))]
sys.argv = ["spanwise", "merge", base, *models, "--method", method, "--out", out, "--quiet"]
sys.argv += FLAGS
from spanwise.cli import main
assert main() == 0
sys.argv[1:5] = given
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


START = ("import torch", "", sys.executable, "import torch")


def tensors(shape: dict, *, tied: bool = True) -> dict[str, tuple[int, ...]]:
    width, hidden, kv = shape["width"], shape["hidden"], shape["kv"]
    found = {
        "model.embed_tokens.weight": (shape["vocabulary"], width),
        "model.norm.weight": (width,),
    }
    if not tied:
        found["lm_head.weight"] = (shape["vocabulary"], width)
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
    root.mkdir(parents=True, exist_ok=True)
    needed = (count + 3) * 2 * sum(math.prod(dims) for dims in tensors(shape).values())
    free = shutil.disk_usage(root).free
    if free < needed:
        sys.exit(f"{root} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free.")
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


def measured(case: tuple[str, str, str, str], root: Path, count: int, rounds: int) -> dict:
    """The cheapest of several runs, and the largest peak."""
    label, method, python, code = case
    runs = [measure(python, code, root, method, count) for _ in range(rounds)]
    best = min(runs, key=lambda run: run["cpu_seconds"])
    row = {"case": label, **best, "peak_mb": max(run["peak_mb"] for run in runs)}
    print(row, flush=True)
    return row


def our_case(name: str, options: dict) -> tuple[str, str, str, str]:
    flags = [
        word
        for key, value in options.items()
        for word in (
            ("--density", str(value)) if key == "density" else ("--option", f"{key}={value}")
        )
    ]
    code = OURS.replace("FLAGS", repr(flags))
    return f"spanwise {name}", name.partition(" ")[0], sys.executable, code


def flops(shape: dict, *, tied: bool) -> float:
    """Of Iso-C: a Gram matrix, its eigenvectors, and a product, for each matrix."""
    sides = [sorted(dims) for dims in tensors(shape, tied=tied).values() if len(dims) == 2]
    return float(sum(4 * m * n**2 + 9 * n**3 for n, m in sides))


def working_memory(method: str, options: dict, size: str, count: int) -> int:
    """Bytes of the largest tensor in work, as a merge of `count` models plans them."""
    shapes = tensors(SHAPES[size], tied=size not in UNTIED)
    model = MappingReader(
        {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in shapes.items()}
    )
    job = prepare(model, [model] * count, method, **options)
    return max(map(job.bytes_of, shapes))


def parameters(size: str) -> int:
    shapes = tensors(SHAPES[size], tied=size not in UNTIED)
    return sum(math.prod(dims) for dims in shapes.values())


def growth(folder: Path, sizes: list[str], rounds: int) -> dict:
    """Ours by number of models and by size, and what follows for eight models of 70B."""
    rows = []
    for size in sizes:
        root = folder / size
        make_models(root, SHAPES[size], 8)
        cases = [("copy", "", sys.executable, COPY), START, *(our_case(*c) for c in GROWTH.items())]
        for count in (2, 4, 8):
            for case in cases:
                row = measured(case, root, count, rounds)
                rows.append({"size": size, "models": count, **row})
    found = {name: projection(rows, sizes[-1], name) for name in GROWTH}
    return {"rows": rows, "eight_70b": found}


def projection(rows: list[dict], size: str, method: str) -> dict:
    """What eight models of 70B need: CPU-hours and peak memory, from the parts of smaller runs.

    Beyond the start, going through the models costs so much for each parameter, and so much for
    each parameter of each model; what Iso-C takes more than task arithmetic is floating-point work.
    """
    held = {(row["size"], row["models"], row["case"]): row["cpu_seconds"] for row in rows}

    def seconds(count: int, name: str) -> float:
        return held[size, count, f"spanwise {name}"] - held[size, count, START[0]]

    passing = method if method != "iso_c" else "task_arithmetic"
    n, large = parameters(size), parameters("70b")
    by_model = (seconds(8, passing) - seconds(2, passing)) / 6 / n
    by_parameter = seconds(8, passing) / n - 8 * by_model
    found = seconds(8, passing) / n * large
    facts = {"ns_per_parameter_and_model": 1e9 * by_model, "ns_per_parameter": 1e9 * by_parameter}
    if method == "iso_c":
        more = seconds(8, method) - seconds(8, passing)
        facts["gflops"] = flops(SHAPES[size], tied=True) / more / 1e9
        found += flops(SHAPES["70b"], tied=False) / 1e9 / facts["gflops"]
    return {
        **facts,
        "cpu_hours": found / 3600,
        "read_gb": 9 * 2 * large / 1e9 * (3 if method == "ties" else 1),
        "written_gb": 2 * large / 1e9,
        "working_memory_gb": working_memory(method, GROWTH[method], "70b", 8) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/merging-benchmark"))
    parser.add_argument("--mergekit", help="a Python that has mergekit 0.1.5")
    parser.add_argument("--iso", help="a checkout of danielm1405/iso-merging")
    parser.add_argument("--size", choices=("135m", "500m", "tiny"), default="135m")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="cases whose name holds one of these")
    parser.add_argument("--growth", nargs="*", choices=("135m", "500m"), metavar="SIZE",
                        help="ours by number of models, at these sizes (135m 500m)")  # fmt: skip
    parser.add_argument("--slow", action="store_true", help="also tsv and iso_cts")
    options = parser.parse_args()
    # As an installed package is: otherwise each of our runs could begin with compiling it.
    compileall.compile_dir(Path(spanwise.__file__).parent, quiet=1)
    if options.growth is not None:
        found = growth(options.folder, options.growth or ["135m", "500m"], options.rounds)
        write_results(
            "merging-growth",
            {"environment": environment(), "rounds": options.rounds, **found},
        )
        return
    root = options.folder / options.size
    size = make_models(root, SHAPES[options.size], options.models)
    ours = {
        "linear": {}, "task_arithmetic": {}, "ties": {"density": 0.2},
        "ties (per tensor)": {"density": 0.2, "trim_scope": "tensor"},
        "dare_linear": {"density": 0.2}, "iso_c": {},
    }  # fmt: skip
    if options.slow:
        ours |= {"tsv": {}, "iso_cts": {}}
    cases = [
        ("copy", "", sys.executable, COPY),
        START,
    ]
    cases += [our_case(*case) for case in ours.items()]
    if options.mergekit:
        cases += [
            (f"mergekit {name}", name, options.mergekit, MERGEKIT)
            for name in ("linear", "task_arithmetic", "ties", "dare_linear")
        ]
    if options.iso:
        code = ISO.replace("CHECKOUT", repr(options.iso))
        cases.append(("official iso_c", "iso_c", options.mergekit or sys.executable, code))
    # What is compared runs in the same minutes: a shared machine is now faster, now slower.
    order = [case[1] for case in cases]
    cases.sort(key=lambda case: order.index(case[1]))
    only = options.only or [""]
    cases = [case for case in cases if any(text in case[0] for text in only)]
    rows = [measured(case, root, options.models, options.rounds) for case in cases]
    shutil.rmtree(root / "out", ignore_errors=True)
    if options.only:
        return
    write_results(
        "merging" if options.size == "135m" else f"merging-{options.size}",
        {
            "environment": environment(), "models": options.models, "size": options.size,
            "bytes_of_one_model": size, "rounds": options.rounds, "rows": rows,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
