#!/usr/bin/env python3
"""Times the training step of a workload in PyTorch or JAX, and prints one line of JSON.

usage: peer_step.py torch-eager|torch-compile|jax WORKLOAD fp32|bf16 [STEPS]

A step is forward, backward, clipping at 1 and AdamW, written as a user of each library would write it: scaled_dot_product_attention,
autocast and the fused optimizer in PyTorch, one jitted function with donated arguments in JAX.
"""
import json
import math
import sys
import time

import numpy as np

from workloads import WORKLOADS

LEARNING_RATE, BETA1, BETA2, EPSILON, DECAY, CLIP = 1e-3, 0.9, 0.99, 1e-8, 0.1, 1.0


def make_torch(w, bf16, compiled):
    import torch
    from torch import nn
    from torch.nn import functional as F

    def norm():
        return nn.LayerNorm(w.width, bias=w.bias)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = norm(), norm()
            self.attention = nn.Linear(w.width, 3 * w.width, bias=w.bias)
            self.projection = nn.Linear(w.width, w.width, bias=w.bias)
            self.up = nn.Linear(w.width, 4 * w.width, bias=w.bias)
            self.down = nn.Linear(4 * w.width, w.width, bias=w.bias)

        def forward(self, x):
            shape = (w.batch, w.context, w.heads, w.width // w.heads)
            q, k, v = (part.view(shape).transpose(1, 2) for part in self.attention(self.norm1(x)).split(w.width, dim=2))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.projection(seen.transpose(1, 2).reshape(w.batch, w.context, w.width))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(w.vocab, w.width), nn.Embedding(w.context, w.width)
            self.layers, self.norm = nn.Sequential(*(Layer() for _ in range(w.layers))), norm()
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, ids, targets):
            x = self.norm(self.layers(self.tokens(ids) + self.positions.weight))
            return F.cross_entropy((x @ self.tokens.weight.T).flatten(0, 1), targets.flatten())

    torch.manual_seed(0)
    model = Model()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(BETA1, BETA2), weight_decay=DECAY, fused=True)

    def step(ids, targets):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = forward(torch.from_numpy(ids), torch.from_numpy(targets))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def make_jax(w, bf16):
    import jax
    import jax.numpy as jnp

    kind = jnp.bfloat16 if bf16 else jnp.float32
    random = np.random.default_rng(0)

    def matrix(*shape):
        return jnp.asarray(random.normal(0, 0.02, shape), jnp.float32)

    def linear(inputs, outputs):
        return {"w": matrix(inputs, outputs)} | ({"b": jnp.zeros(outputs)} if w.bias else {})

    def norm():
        return {"w": jnp.ones(w.width)} | ({"b": jnp.zeros(w.width)} if w.bias else {})

    def layer():
        return {"norm1": norm(), "attention": linear(w.width, 3 * w.width), "projection": linear(w.width, w.width),
                "norm2": norm(), "up": linear(w.width, 4 * w.width), "down": linear(4 * w.width, w.width)}

    params = {"tokens": matrix(w.vocab, w.width), "positions": matrix(w.context, w.width),
              "layers": [layer() for _ in range(w.layers)], "norm": norm()}

    def apply_norm(p, x):
        centred = x - x.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5) * p["w"]
        return y + p["b"] if w.bias else y

    def apply_linear(p, x):
        y = (x.astype(kind) @ p["w"].astype(kind)).astype(jnp.float32)
        return y + p["b"] if w.bias else y

    seen = jnp.tril(jnp.ones((w.context, w.context), bool))

    def attend(p, x):
        shape = (w.batch, w.context, w.heads, w.width // w.heads)
        q, k, v = (part.reshape(shape).swapaxes(1, 2).astype(kind) for part in jnp.split(apply_linear(p, x), 3, -1))
        scores = (q @ k.swapaxes(2, 3)).astype(jnp.float32) / math.sqrt(shape[3])
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)).astype(kind)
        return (weights @ v).swapaxes(1, 2).reshape(w.batch, w.context, w.width)

    def loss_of(p, ids, targets):
        x = p["tokens"][ids] + p["positions"]
        for one in p["layers"]:
            x = x + apply_linear(one["projection"], attend(one["attention"], apply_norm(one["norm1"], x)))
            x = x + apply_linear(one["down"], jax.nn.gelu(apply_linear(one["up"], apply_norm(one["norm2"], x)), approximate=True))
        logits = (apply_norm(p["norm"], x).astype(kind) @ p["tokens"].T.astype(kind)).astype(jnp.float32)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()

    each = jax.tree_util.tree_map

    def update(p, m, v, t, ids, targets):
        loss, g = jax.value_and_grad(loss_of)(p, ids, targets)
        size = jnp.sqrt(sum((leaf ** 2).sum() for leaf in jax.tree_util.tree_leaves(g)))
        g = each(lambda leaf: leaf * jnp.minimum(1, CLIP / (size + 1e-6)), g)
        m = each(lambda old, leaf: BETA1 * old + (1 - BETA1) * leaf, m, g)
        v = each(lambda old, leaf: BETA2 * old + (1 - BETA2) * leaf ** 2, v, g)
        p = each(lambda old, a, b: old * (1 - LEARNING_RATE * DECAY) - LEARNING_RATE * (a / (1 - BETA1 ** t)) /
                 (jnp.sqrt(b / (1 - BETA2 ** t)) + EPSILON), p, m, v)
        return p, m, v, loss

    update = jax.jit(update, donate_argnums=(0, 1, 2))
    state = [params, each(jnp.zeros_like, params), each(jnp.zeros_like, params), 0]

    def step(ids, targets):
        state[3] += 1
        *state[:3], loss = update(*state[:3], float(state[3]), ids.astype(np.int32), targets.astype(np.int32))
        return float(loss)

    return step


def main():
    peer, name, dtype = sys.argv[1:4]
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else 20
    w = WORKLOADS[name]
    step = make_jax(w, dtype == "bf16") if peer == "jax" else make_torch(w, dtype == "bf16", peer == "torch-compile")
    random = np.random.default_rng(1)
    tokens = random.zipf(1.3, 200_000) % w.vocab
    times = []
    for _ in range(steps):
        starts = random.integers(0, len(tokens) - w.context - 1, w.batch)
        ids = np.stack([tokens[s:s + w.context] for s in starts])
        targets = np.stack([tokens[s + 1:s + w.context + 1] for s in starts])
        begin = time.perf_counter()
        step(ids, targets)
        times.append((time.perf_counter() - begin) * 1e3)
    settled = sorted(times[steps // 2:])
    print(json.dumps({"peer": peer, "workload": name, "dtype": dtype, "first_ms": round(times[0], 1),
                      "step_ms": round(settled[len(settled) // 2], 3)}))


if __name__ == "__main__":
    main()
