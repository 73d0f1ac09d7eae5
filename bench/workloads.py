"""The five training steps that RAX is measured on, for the scripts beside this file: what workloads.def lists."""
import os
import re
from collections import namedtuple

Workload = namedtuple("Workload", "layers heads width context batch vocab bias")


def read(path):
    with open(path) as file:
        rows = re.findall(r"^WORKLOAD\((\w+),([^)]*)\)", file.read(), re.MULTILINE)
    workloads = {}
    for name, numbers in rows:
        *sizes, bias = map(int, numbers.split(","))
        workloads[name] = Workload(*sizes, bool(bias))
    return workloads


WORKLOADS = read(os.path.join(os.path.dirname(os.path.abspath(__file__)), "workloads.def"))


def parameters(w):
    """How many weights the model has, the tied output layer once."""
    layer = 12 * w.width * w.width + 2 * w.width + (11 * w.width if w.bias else 0)
    return (w.vocab + w.context) * w.width + w.layers * layer + w.width * (2 if w.bias else 1)


def flops(w):
    """Of one step: 6 a weight in a product and token, and 6 L B T^2 C for causal attention. Recomputation does not count."""
    products = w.layers * 12 * w.width * w.width + w.vocab * w.width
    tokens = w.batch * w.context
    return 6 * products * tokens + 6 * w.layers * w.batch * w.context ** 2 * w.width
