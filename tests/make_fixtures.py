#!/usr/bin/env python3
"""Writes tests/fixtures/golden/*: short training runs by PyTorch in float64, in the form of the golden runs (config.json,
init/, tokens.bin, expected.jsonl, final.safetensors), at shapes that those do not have. Needs torch and numpy; the
tests need neither.

usage: make_fixtures.py            writes all
       make_fixtures.py RUN...     computes runs that exist (folders) and says how far they are from what is stored
"""
import json, math, struct, sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

BASE = dict(dropout=0.0, dtype="fp32", learning_rate=1e-2, min_lr=1e-3, warmup_iters=3, lr_decay_iters=9, weight_decay=0.1, beta1=0.9, beta2=0.99,
            grad_clip=1.0, gradient_accumulation_steps=1, bias=True, max_iters=12, train_data="tokens.bin", val_data="tokens.bin",
            sampling="sequential", init_from="init", out_dir="out", eval_interval=0, log_interval=1)
RUNS = {
    "odd-widths":   dict(n_layer=2, n_head=3, n_embd=21, block_size=11, batch_size=3, vocab_size=37),
    "one-head":     dict(n_layer=1, n_head=1, n_embd=10, block_size=5, batch_size=2, vocab_size=13, gradient_accumulation_steps=3, bias=False),
    "one-token":    dict(n_layer=2, n_head=2, n_embd=12, block_size=1, batch_size=4, vocab_size=17),
    "batch-of-one": dict(n_layer=1, n_head=2, n_embd=6, block_size=9, batch_size=1, vocab_size=11, grad_clip=0.0, weight_decay=0.0, warmup_iters=0),
    "many-tokens":  dict(n_layer=1, n_head=1, n_embd=8, block_size=67, batch_size=5, vocab_size=1031, warmup_iters=5, lr_decay_iters=5),
}


# -- files ---------------------------------------------------------------------------------------------------------------
def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    return {name: np.frombuffer(data[8 + size + row["data_offsets"][0]:8 + size + row["data_offsets"][1]], "<f4").reshape(row["shape"])
            for name, row in header.items() if name != "__metadata__"}


def write_safetensors(path, arrays):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, a in sorted(arrays.items()):
        header[name] = dict(dtype="F32", shape=list(a.shape), data_offsets=[at, at + a.size * 4])
        at += a.size * 4
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(np.ascontiguousarray(a, "<f4").tobytes() for _, a in sorted(arrays.items())))


# -- the model and a run -------------------------------------------------------------------------------------------------
def shapes(c):
    C, layers = c["n_embd"], {}
    for i in range(c["n_layer"]):
        layers |= {f"h.{i}.ln_1": (C,), f"h.{i}.attn.c_attn": (C, 3 * C), f"h.{i}.attn.c_proj": (C, C), f"h.{i}.ln_2": (C,),
                   f"h.{i}.mlp.c_fc": (C, 4 * C), f"h.{i}.mlp.c_proj": (4 * C, C)}
    layers["ln_f"] = (C,)
    out = {"wte.weight": (c["vocab_size"], C), "wpe.weight": (c["block_size"], C)}
    for name, shape in layers.items():
        out[name + ".weight"] = shape
        if c["bias"]:
            out[name + ".bias"] = shape[-1:]
    return out


def losses(p, c, x, y):
    (B, T), C, H = x.shape, c["n_embd"], c["n_head"]
    get = lambda name: p.get("transformer." + name)
    norm = lambda x, name: F.layer_norm(x, (C,), get(name + ".weight"), get(name + ".bias"), 1e-5)
    def linear(x, name):
        z = x @ get(name + ".weight")
        return z + get(name + ".bias") if c["bias"] else z
    z = get("wte.weight")[x] + get("wpe.weight")[:T]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for i in range(c["n_layer"]):
        q, k, v = (t.reshape(B, T, H, C // H).transpose(1, 2) for t in linear(norm(z, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(C, 2))
        a = (q @ k.transpose(2, 3) / math.sqrt(C // H)).masked_fill(future, -math.inf).softmax(-1)
        z = z + linear((a @ v).transpose(1, 2).reshape(B, T, C), f"h.{i}.attn.c_proj")
        z = z + linear(F.gelu(linear(norm(z, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh"), f"h.{i}.mlp.c_proj")
    return F.cross_entropy((norm(z, "ln_f") @ get("wte.weight").T).reshape(B * T, -1), y.reshape(-1))


def learning_rate(c, it):
    if it < c["warmup_iters"]:
        return c["learning_rate"] * it / c["warmup_iters"]
    if it >= c["lr_decay_iters"]:
        return c["min_lr"]
    share = (it - c["warmup_iters"]) / (c["lr_decay_iters"] - c["warmup_iters"])
    return c["min_lr"] + 0.5 * (1 + math.cos(math.pi * share)) * (c["learning_rate"] - c["min_lr"])


def train(c, init, tokens):
    p = {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in init.items()}
    m, v = ({name: torch.zeros_like(w) for name, w in p.items()} for _ in range(2))
    A, B, T, rows = c["gradient_accumulation_steps"], c["batch_size"], c["block_size"], []
    batches = (len(tokens) - 1) // (B * T)
    for it in range(c["max_iters"]):
        loss = 0
        for j in range(A):
            at = (it * A + j) % batches * B * T
            x, y = (torch.tensor(tokens[at + d:at + d + B * T].astype(np.int64)).reshape(B, T) for d in (0, 1))
            loss = loss + losses(p, c, x, y) / A
        grads = dict(zip(p, torch.autograd.grad(loss, list(p.values()))))
        norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
        clip = min(1, c["grad_clip"] / (norm + 1e-6)) if c["grad_clip"] else 1
        lr, t = learning_rate(c, it), it + 1
        rows.append(dict(iter=it, loss=float(loss.detach()), grad_norm=norm, lr=lr))
        with torch.no_grad():
            for name, w in p.items():
                g = grads[name] * clip
                m[name] += (g - m[name]) * (1 - c["beta1"])
                v[name] += (g * g - v[name]) * (1 - c["beta2"])
                if w.dim() >= 2:
                    w *= 1 - lr * c["weight_decay"]
                w -= lr * (m[name] / (1 - c["beta1"] ** t)) / ((v[name] / (1 - c["beta2"] ** t)).sqrt() + 1e-8)
    return rows, {name: w.detach().numpy().astype(np.float32) for name, w in p.items()}


# -- both ways -----------------------------------------------------------------------------------------------------------
def write(folder, c, seed):
    rng = np.random.default_rng(seed)
    (folder / "init").mkdir(parents=True, exist_ok=True)
    init = {"transformer." + name: (rng.normal(1 if ".ln_" in "." + name and name.endswith("weight") else 0, 0.1, shape)).astype(np.float32)
            for name, shape in shapes(c).items()}
    batch = c["gradient_accumulation_steps"] * c["batch_size"] * c["block_size"]
    tokens = (rng.zipf(1.5, batch * 7 + 5) % c["vocab_size"]).astype("<u2")           # runs out before the iterations do
    rows, final = train(c, init, tokens)
    (folder / "config.json").write_text(json.dumps(c, indent=1) + "\n")
    sizes = dict(vocab_size=c["vocab_size"], n_positions=c["block_size"], n_embd=c["n_embd"], n_layer=c["n_layer"], n_head=c["n_head"],
                 model_type="gpt2", activation_function="gelu_new", layer_norm_epsilon=1e-5)
    (folder / "init/config.json").write_text(json.dumps(sizes, indent=1) + "\n")
    write_safetensors(folder / "init/model.safetensors", init)
    tokens.tofile(folder / "tokens.bin")
    (folder / "expected.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_safetensors(folder / "final.safetensors", final)


def compare(folder):
    c = json.loads((folder / "config.json").read_text())
    rows, final = train(c, read_safetensors(folder / "init/model.safetensors"), np.fromfile(folder / "tokens.bin", "<u2"))
    stored = [json.loads(line) for line in (folder / "expected.jsonl").read_text().splitlines()]
    worst = {key: max(abs(a[key] - b[key]) for a, b in zip(rows, stored, strict=True)) for key in ("loss", "grad_norm", "lr")}
    weights = read_safetensors(folder / "final.safetensors")
    print(folder, worst, "weights", max(float(np.abs(final[n] - weights[n]).max()) for n in final.keys() | weights.keys()))


if len(sys.argv) > 1:
    for run in sys.argv[1:]:
        compare(Path(run))
else:
    for seed, (run, keys) in enumerate(RUNS.items()):
        write(Path(__file__).parent / "fixtures/golden" / run, BASE | keys, seed)
