#!/usr/bin/env python3
"""Runs PyTorch, JAX and rax on the same work in turn, and prints the ratios.

usage: bench/compare.py [steps|products|starts ...] [--workloads nano,baby] [--dtypes fp32,bf16]
                        [--peers torch-eager,torch-compile,jax] [--rounds 3] [--steps 10] [--python PYTHON] [--rax build/rax] [--json FILE]

  steps      whole training steps: time, first step, share of the machine's peak as rax measures it in the same round, and the most
             memory that each program held (its own alone, as the system counted it when it ended)
  products   each product of the steps by rax's generated code and by torch.matmul (in bf16 oneDNN's)
  starts     wall time of a whole process with one step, compiled code's cache empty, then warm

PYTHON is an interpreter in whose environment torch and jax are installed; nothing else of rax needs them. In each round every
program runs once, one after another; the figure of a program is the median of its rounds' medians, and ratios are of these. The
machine's pin of OpenBLAS's kernel, if there is one, is removed for all of them.
"""
import argparse
import array
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

from workloads import WORKLOADS, flops

HERE = os.path.dirname(os.path.abspath(__file__))


# -- programs ------------------------------------------------------------------------------------------------------------

def run(command, what, cache=None):
    """Output of a program, its wall time in ms, and the most memory that it held in MB: of this child alone."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    if cache:
        environment |= {"TORCHINDUCTOR_CACHE_DIR": cache, "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        wall_ms = (time.perf_counter() - begin) * 1e3
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        if child.returncode != 0:
            sys.exit(f"{what}: status {child.returncode}: {(errors.read().strip().splitlines() or ['no message'])[-1]}")
        return out.read(), wall_ms, usage.ru_maxrss / 1024


def run_peer(options, peer, name, dtype, steps, cache=None):
    command = [options.python, os.path.join(HERE, "peer_step.py"), peer, name, dtype, str(steps)]
    out, wall_ms, peak_mb = run(command, f"{peer} {name} {dtype}", cache)
    return json.loads(out.strip().splitlines()[-1]) | {"wall_ms": wall_ms, "peak_mb": peak_mb}


def run_rax(options, name, dtype, steps, cache=None):
    w = WORKLOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(1)
        tokens = array.array("H", (int(draw.paretovariate(0.3)) % w.vocab for _ in range(200_000)))
        with open(os.path.join(folder, "tokens.bin"), "wb") as file:
            tokens.tofile(file)
        config = {"n_layer": w.layers, "n_head": w.heads, "n_embd": w.width, "block_size": w.context, "batch_size": w.batch,
                  "vocab_size": w.vocab, "bias": w.bias, "dtype": dtype, "dropout": 0.0, "max_iters": steps, "warmup_iters": 0,
                  "lr_decay_iters": steps, "learning_rate": 1e-3, "min_lr": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99,
                  "grad_clip": 1.0, "train_data": "tokens.bin", "out_dir": "out", "eval_interval": 0, "log_interval": 1,
                  "checkpoint_interval": 0}
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(config, file)
        command = [options.rax, "train", os.path.join(folder, "config.json"), f"--cache_dir={cache or folder + '/cache'}"]
        _, wall_ms, peak_mb = run(command, f"rax {name} {dtype}")
        with open(os.path.join(folder, "out", "metrics.jsonl")) as file:
            times = [row["time_ms"] for row in map(json.loads, file) if "time_ms" in row]
    return {"peer": "rax", "workload": name, "dtype": dtype, "first_ms": times[0], "step_ms": statistics.median(times[len(times) // 2:]),
            "wall_ms": wall_ms, "peak_mb": peak_mb}


def run_program(options, program, *work):
    return run_rax(options, *work) if program == "rax" else run_peer(options, program, *work)


def rax_bench(options, *arguments):
    return json.loads(run([options.rax, "bench", *arguments, "--json"], "rax bench")[0])


def programs(options):
    return [*filter(None, options.peers.split(",")), "rax"]


# -- steps ---------------------------------------------------------------------------------------------------------------

def middle(results, key):
    return statistics.median(r[key] for r in results)


def compare_steps(options, name, dtype):
    seen = {program: [] for program in programs(options)}
    peaks = []
    for _ in range(options.rounds):
        peaks.append(rax_bench(options, "peak")["peak"]["bf16_gflops" if dtype == "bf16" else "f32_gflops"])
        for program, results in seen.items():
            results.append(run_program(options, program, name, dtype, options.steps))
    rax_ms, peak = middle(seen["rax"], "step_ms"), statistics.median(peaks)
    for program, results in seen.items():
        ms = middle(results, "step_ms")
        rate = flops(WORKLOADS[name]) / ms * 1e-6
        ratio = f"{ms / rax_ms:7.2f}x" if program != "rax" else ""
        print(f"{name:9} {dtype:5} {program:14} {ms:10.2f} {middle(results, 'first_ms'):10.1f} {rate:8.1f} {100 * rate / peak:7.1f}% "
              f"{middle(results, 'peak_mb'):8.0f} {ratio:>8}", flush=True)
    peers = [p for p in seen if p != "rax"]
    if peers:
        best, least = min(peers, key=lambda p: middle(seen[p], "step_ms")), min(peers, key=lambda p: middle(seen[p], "peak_mb"))
        print(f"{name:9} {dtype:5} rax is {middle(seen[best], 'step_ms') / rax_ms:.2f}x as fast as the best peer, {best}, and holds "
              f"{middle(seen['rax'], 'peak_mb') / middle(seen[least], 'peak_mb'):.2f}x the memory of the leanest, {least}", flush=True)
    return [r | {"peak_gflops": peak} for results in seen.values() for r in results]


# -- products ------------------------------------------------------------------------------------------------------------

def compare_products(options, name, dtype):
    kind = "bf16" if dtype == "bf16" else "f32"
    ours, theirs = {}, {}
    for _ in range(options.rounds):
        for row in rax_bench(options, "matmul", f"--workloads={name}", f"--dtypes={kind}")["results"]:
            if row["name"].endswith(f" {kind} generated"):
                ours.setdefault(row["name"].split()[0], []).append((row["median_ms"], row["share"]))
        out, *_ = run([options.python, os.path.join(HERE, "peer_products.py"), name, kind], f"torch {name} {kind}")
        for product, ms in json.loads(out).items():
            theirs.setdefault(product, []).append(ms)
    rows = []
    for product, times in ours.items():
        ms, share, torch_ms = statistics.median(t[0] for t in times), statistics.median(t[1] for t in times), statistics.median(theirs[product])
        print(f"{product:30} {kind:5} {ms:10.3f} {100 * share:7.1f}% {torch_ms:10.3f} {torch_ms / ms:7.2f}x", flush=True)
        rows.append({"product": product, "dtype": kind, "rax_ms": ms, "share": share, "torch_ms": torch_ms})
    return rows


# -- starts --------------------------------------------------------------------------------------------------------------

def compare_starts(options, name, dtype):
    rows = []
    for program in programs(options):
        cold, warm = [], []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as cache:
                cold.append(run_program(options, program, name, dtype, 1, cache)["wall_ms"])
                warm.append(run_program(options, program, name, dtype, 1, cache)["wall_ms"])
        print(f"{name:9} {dtype:5} {program:14} {statistics.median(cold):10.1f} {statistics.median(warm):10.1f}", flush=True)
        rows.append({"peer": program, "workload": name, "dtype": dtype, "cold_ms": statistics.median(cold), "warm_ms": statistics.median(warm)})
    return rows


SUBJECTS = {
    "steps": (compare_steps, f"{'workload':9} {'dtype':5} {'program':14} {'step ms':>10} {'first ms':>10} {'GFLOP/s':>8} {'of peak':>8} {'peak MB':>8} {'rax is':>8}"),
    "products": (compare_products, f"{'product':30} {'dtype':5} {'rax ms':>10} {'of peak':>8} {'torch ms':>10} {'rax is':>8}"),
    "starts": (compare_starts, f"{'workload':9} {'dtype':5} {'program':14} {'cold ms':>10} {'warm ms':>10}"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--dtypes", default="fp32")
    parser.add_argument("--peers", default="torch-eager,torch-compile,jax")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rax", default=os.path.join(HERE, "..", "build", "rax"))
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = {}
    for subject in options.subjects or ["steps"]:
        if subject not in SUBJECTS:
            parser.error(f"{subject}: expected one of {', '.join(SUBJECTS)}")
        compare, head = SUBJECTS[subject]
        print(head, flush=True)
        for name in options.workloads.split(","):
            if name not in WORKLOADS:
                parser.error(f"--workloads: {name}: expected one of {', '.join(WORKLOADS)}")
            for dtype in options.dtypes.split(","):
                rows.setdefault(subject, []).extend(compare(options, name, dtype))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
