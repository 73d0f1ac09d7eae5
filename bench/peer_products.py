"""PyTorch's products over the shapes of one workload (in bf16 oneDNN's), for compare.py: prints one line of JSON, milliseconds by name.

usage: peer_products.py WORKLOAD f32|bf16 [REPEATS]

The names, shapes, directions and the way of timing are those of `rax bench matmul` (products.c, measure.c).
"""
import json
import sys
import time

import torch

from workloads import WORKLOADS

LOSS_ROWS, SAMPLE_S = 256, 0.005


def shapes(w):
    rows = w.batch * w.context
    loss_rows = LOSS_ROWS if w.vocab > 4096 and rows > LOSS_ROWS else rows
    return {"qkv": (rows, w.width, 3 * w.width), "proj": (rows, w.width, w.width), "up": (rows, w.width, 4 * w.width),
            "down": (rows, 4 * w.width, w.width), "head": (loss_rows, w.width, w.vocab)}


def median_ms(call, repeats):
    call()
    begin = time.perf_counter()
    call()
    calls = max(1, int(SAMPLE_S / max(time.perf_counter() - begin, 1e-9)))
    samples = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - begin) / calls * 1e3)
    return sorted(samples)[repeats // 2]


def main():
    name, dtype = sys.argv[1:3]
    repeats = int(sys.argv[3]) if len(sys.argv) > 3 else 9
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    times = {}
    with torch.no_grad():
        for layer, (rows, inputs, outputs) in shapes(WORKLOADS[name]).items():
            x, w, dy = (torch.randn(*shape).to(kind) for shape in ((rows, inputs), (inputs, outputs), (rows, outputs)))
            for direction, a, b in (("forward", x, w), ("dx", dy, w.T), ("dw", x.T, dy)):
                times[f"matmul/{name}/{layer}/{direction}"] = median_ms(lambda: torch.matmul(a, b), repeats)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
