/* What can be named: groups of cases, in the order in which they are run. */
#include "bench/bench.h"

const bench_group bench_groups[] = {
    { "matmul",        "products of the workloads' steps: generated code, OpenBLAS; f32, bf16", bench_products, false },
    { "attention",     "causal attention, forward and backward", bench_attention, false },
    { "layer_norm",    "layer norm, forward and backward", bench_layer_norm, false },
    { "softmax",       "softmax over rows as long as the context", bench_softmax, false },
    { "gelu",          "gelu, forward and backward", bench_gelu, false },
    { "cross_entropy", "cross-entropy of 256 rows of logits", bench_cross_entropy, false },
    { "embedding",     "rows taken from a table, and added to one", bench_embedding, false },
    { "adamw",         "the update of all weights", bench_adamw, false },
    { "random",        "Philox: uniform, normal, dropout", bench_random, false },
    { "dispatch",      "a cached call, to its first kernel, with GPT-2 124M's trees", bench_dispatch, false },
    { "compile",       "tracing and compiling a training step of 4 and of 48 layers, nothing cached", bench_compile, false },
    { "step",          "whole training steps (only where it is named)", bench_step, true },
    { "growth",        "attention at contexts to 8192, steps at batches to 64 (only where it is named)", bench_growth, true },
};
const int bench_group_count = sizeof bench_groups / sizeof bench_groups[0];
