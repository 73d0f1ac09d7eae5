#!/usr/bin/env python3
"""Runs PyTorch, JAX and rax on the same training step in turn, and prints the ratios.

usage: bench/compare.py [--workloads nano,baby] [--dtypes fp32,bf16] [--peers torch-eager,torch-compile,jax] [--rounds 3]
                        [--steps 10] [--python PYTHON] [--rax build/rax] [--json FILE]

PYTHON is an interpreter in whose environment torch and jax are installed; nothing else of rax needs them. In each round every
program runs once, one after another; the figure of a program is the median of its rounds' medians, and ratios are of these. The
machine's pin of OpenBLAS's kernel, if there is one, is removed for all of them.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile

import numpy as np

from workloads import WORKLOADS, flops

HERE = os.path.dirname(os.path.abspath(__file__))


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}


def run_peer(python, peer, name, dtype, steps):
    done = subprocess.run([python, os.path.join(HERE, "peer_step.py"), peer, name, dtype, str(steps)],
                          capture_output=True, text=True, env=environment())
    if done.returncode != 0:
        sys.exit(f"{peer} {name} {dtype}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_rax(rax, name, dtype, steps):
    w = WORKLOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(1).zipf(1.3, 200_000) % w.vocab
        tokens.astype("<u2").tofile(os.path.join(folder, "tokens.bin"))
        config = {"n_layer": w.layers, "n_head": w.heads, "n_embd": w.width, "block_size": w.context, "batch_size": w.batch,
                  "vocab_size": w.vocab, "bias": w.bias, "dtype": dtype, "dropout": 0.0, "max_iters": steps, "warmup_iters": 0,
                  "lr_decay_iters": steps, "learning_rate": 1e-3, "min_lr": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99,
                  "grad_clip": 1.0, "train_data": "tokens.bin", "out_dir": "out", "eval_interval": 0, "log_interval": 1,
                  "checkpoint_interval": 0}
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(config, file)
        done = subprocess.run(["/usr/bin/env", rax, "train", os.path.join(folder, "config.json"), f"--cache_dir={folder}/cache"],
                              capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            sys.exit(f"rax {name} {dtype}: {done.stderr.strip().splitlines()[-1]}")
        with open(os.path.join(folder, "out", "metrics.jsonl")) as file:
            times = [row["time_ms"] for row in map(json.loads, file) if "time_ms" in row]
    return {"peer": "rax", "workload": name, "dtype": dtype, "first_ms": times[0], "step_ms": statistics.median(times[len(times) // 2:]),
            "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--dtypes", default="fp32")
    parser.add_argument("--peers", default="torch-eager,torch-compile,jax")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rax", default=os.path.join(HERE, "..", "build", "rax"))
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    print(f"{'workload':9} {'dtype':5} {'program':14} {'step ms':>9} {'first ms':>9} {'GFLOP/s':>8} {'rax is':>8}", flush=True)
    for name in options.workloads.split(","):
        for dtype in options.dtypes.split(","):
            seen = {program: [] for program in [*filter(None, options.peers.split(",")), "rax"]}
            for _ in range(options.rounds):
                for program, results in seen.items():
                    results.append(run_rax(options.rax, name, dtype, options.steps) if program == "rax"
                                   else run_peer(options.python, program, name, dtype, options.steps))
            middle = {p: statistics.median(r["step_ms"] for r in results) for p, results in seen.items()}
            for program, results in seen.items():
                first = statistics.median(r["first_ms"] for r in results)
                rate = flops(WORKLOADS[name]) / middle[program] * 1e-6
                ratio = f"{middle[program] / middle['rax']:7.2f}x" if program != "rax" else ""
                print(f"{name:9} {dtype:5} {program:14} {middle[program]:9.2f} {first:9.1f} {rate:8.1f} {ratio:>8}", flush=True)
                rows += results
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
