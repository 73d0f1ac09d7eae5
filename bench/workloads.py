"""The five training steps that RAX is measured on, for the scripts beside this file."""
from collections import namedtuple

Workload = namedtuple("Workload", "layers heads width context batch vocab bias")

WORKLOADS = {
    "nano":  Workload(4, 4, 128, 64, 12, 65, False),        # nanoGPT's configuration for a CPU
    "baby":  Workload(6, 6, 384, 256, 64, 65, False),       # nanoGPT's character model of Shakespeare
    "mini":  Workload(6, 6, 384, 256, 16, 50304, True),     # GPT-2's vocabulary on one machine
    "gpt2":  Workload(12, 12, 768, 64, 4, 50304, True),     # GPT-2 124M, the batch of llm.c's CPU program
    "gpt2l": Workload(12, 12, 768, 1024, 1, 50304, True),   # GPT-2 124M at its whole context
}


def parameters(w):
    """How many weights the model has, the tied output layer once."""
    layer = 12 * w.width * w.width + 2 * w.width + (11 * w.width if w.bias else 0)
    return (w.vocab + w.context) * w.width + w.layers * layer + w.width * (2 if w.bias else 1)


def flops(w):
    """Of one step: 6 a weight in a product and token, and 6 L B T^2 C for causal attention. Recomputation does not count."""
    products = w.layers * 12 * w.width * w.width + w.vocab * w.width
    tokens = w.batch * w.context
    return 6 * products * tokens + 6 * w.layers * w.batch * w.context ** 2 * w.width
