/* Attention, causal, in the shapes of the workloads' steps. Its gradient needs what the forward pass leaves behind (the rows'
 * log of the sum of exponentials), so that one follows the other in the same program. */
#include "bench/bench.h"

#include <stdio.h>

static rax_tensor attend(rax_args *in, rax_tensor *qkv)
{
    for (int i = 0; i < 3; i++)
        qkv[i] = rax_arg_tensor(in, i);
    return rax_attention(qkv[0], qkv[1], qkv[2], ((rax_attention_options){ .causal = true }));
}

static void forward(rax_args *in, rax_results *out)
{
    rax_tensor qkv[3];
    rax_return_tensor(out, 0, attend(in, qkv));
}

static void both(rax_args *in, rax_results *out)
{
    rax_tensor qkv[3], d[3], y = rax_cast(attend(in, qkv), RAX_F32), dy = rax_cast(rax_arg_tensor(in, 3), RAX_F32);
    rax_grad_of(rax_sum(rax_mul(y, dy), RAX_ALL_AXES), 3, qkv, d);
    for (int i = 0; i < 3; i++)
        rax_return_tensor(out, i, d[i]);
}

static bench_program *program(const bench_workload *w, rax_dtype dtype, bool gradient)
{
    const char *f32 = "q: f32[...], k: f32[...], v: f32[...], dy: f32[...]", *bf16 = "q: bf16[...], k: bf16[...], v: bf16[...], dy: bf16[...]";
    bench_program *p = bench_program_new(gradient ? both : forward, dtype == RAX_BF16 ? bf16 : f32, gradient ? 3 : 1);
    bool passed = true;
    for (int i = 0; passed && i < 4; i++)
        passed = bench_pass_noise(p, dtype, RAX_SHAPE(w->batch, w->heads, w->context, w->width / w->heads));
    if (passed)
        return p;
    bench_program_free(p);
    return NULL;
}

bench_case bench_attention_case(const bench_workload *w, bool bf16, bool gradient, const char *name)
{
    double T = w->context, product = 2.0 * w->batch * w->width * T * (T + 1) / 2;       /* two forward, five backward */
    return bench_case_of(program(w, bf16 ? RAX_BF16 : RAX_F32, gradient), bf16 ? BENCH_BF16 : BENCH_F32, (gradient ? 7 : 2) * product, 0, "%s/%s %s", name,
                         gradient ? "forward+backward" : "forward", bf16 ? "bf16" : "f32");
}

bool bench_attention(bench *b)
{
    for (int i = 0; i < BENCH_WORKLOADS; i++) {
        const bench_workload *w = &bench_workloads[i];
        bench_case cases[4];
        char name[64];
        int n = 0;
        snprintf(name, sizeof name, "attention/%s", w->name);
        for (int bf16 = 0; bf16 < 2 && b->workload[i] && !b->stop(); bf16++) {
            if (bf16 ? !b->bf16 : !b->f32)
                continue;
            cases[n++] = bench_attention_case(w, bf16, false, name);
            cases[n++] = bench_attention_case(w, bf16, true, name);
        }
        if (!bench_measure(b, n, cases))
            return false;
    }
    return true;
}
