/* Attention: the launches of device/attention.cu. Forward is one; the gradient is three: a number a row, then dq by rows, then dk and dv by keys. No
 * two blocks write to one place, so that nothing depends on their order. Sizes and strides are in the text. */
#include "backend_cuda/backend.h"

#include <math.h>

enum { MOST_HEAD_DIM = 128 };

bool cuda_attention_takes(ir_dtype dtype, int64_t head_dim) { return (dtype == IR_F32 || dtype == IR_BF16) && head_dim >= 1 && head_dim <= MOST_HEAD_DIM; }

typedef struct { int warps, columns, padded, element_bytes; size_t forward_bytes, rows_bytes, keys_bytes; } shape;

/* 16 rows a warp; as many keys at a time as keep shared memory below 64 KB, which every card has. */
static shape shape_of(const kl_attention *a)
{
    bool bf16 = a->dtype == IR_BF16;
    int padded = (int)(a->head_dim + 15) / 16 * 16;
    shape s = { .warps = bf16 ? 4 : 2, .columns = !bf16 ? 16 : padded <= 64 ? 64 : 32, .padded = padded, .element_bytes = bf16 ? 2 : 4 };
    size_t leading = (size_t)padded + (bf16 ? 8 : 4), weights = 16 * (size_t)s.warps * ((size_t)s.columns + (bf16 ? 8 : 4)), rows = 16 * (size_t)s.warps, columns = (size_t)s.columns;
    s.forward_bytes = (size_t)s.element_bytes * ((rows + 2 * columns) * leading + weights);
    s.rows_bytes = (size_t)s.element_bytes * ((2 * rows + 2 * columns) * leading + weights);
    s.keys_bytes = s.rows_bytes + 8 * columns;
    return s;
}

static void define_view(base_text *text, const char *name, const kl_view *view)
{
    base_text_add(text, "#define A_%s_ROW %lld\n#define A_%s_COLUMN %lld\n", name, (long long)view->stride[2], name, (long long)view->stride[3]);
}

static void define(cuda_writer *w, const kl_attention *a, const shape *s)
{
    static const kl_view none;
    base_text *text = &w->defines;
    base_text_add(text, "#define A_BF16 %d\n#define A_GRAD_BF16 %d\n#define A_D %lld\n#define A_DP %d\n#define A_WARPS %d\n#define A_BN %d\n", a->dtype == IR_BF16,
                  a->backward && a->grad_dtype == IR_BF16, (long long)a->head_dim, s->padded, s->warps, s->columns);
    base_text_add(text, "#define A_ROWS %lld\n#define A_KEYS %lld\n#define A_HEADS %lld\n#define A_CAUSAL %d\n#define A_SCALE %.9ef\n", (long long)a->rows, (long long)a->keys,
                  (long long)a->heads, a->causal, a->scale);
    base_text_add(text, "#define A_DROPS %d\n#define A_THRESHOLD %.0fu\n#define A_KEEP %.9ef\n", a->dropout > 0, floor(a->dropout * 0x1p32), 1 / (1 - a->dropout));
    define_view(text, "Q", &a->q), define_view(text, "K", &a->k), define_view(text, "V", &a->v);
    define_view(text, "OUT", &a->out), define_view(text, "LSE", &a->lse);
    define_view(text, "DOUT", a->backward ? &a->dout : &none), define_view(text, "DLSE", a->backward && a->dlse.buffer >= 0 ? &a->dlse : &none);
    define_view(text, "DQ", a->backward ? &a->dq : &none), define_view(text, "DK", a->backward ? &a->dk : &none), define_view(text, "DV", a->backward ? &a->dv : &none);
}

/* A parameter at the beginning of this block's head: "p0 + b * 64 + h * 8". */
static char *head_of(cuda_writer *w, const kl_view *view, ir_dtype dtype, bool written)
{
    int param = cuda_param_view(w, view, dtype, written);
    return base_arena_text(w->compiler->arena, "p%d + b * %lldll + h * %lldll", param, (long long)view->stride[0], (long long)view->stride[1]);
}

static void write_dropout(cuda_writer *w, const kl_attention *a)
{
    if (a->dropout > 0) {
        int seed = cuda_param_view(w, &a->seed, IR_I32, false), counter = cuda_param_view(w, &a->counter, IR_I32, false), site = cuda_param_value(w, a->site);
        base_text_add(&w->body, "    const rax_dropout drop = rax_dropout_of(p%d, %lld, p%d, p%d, head);\n", seed, (long long)a->seed.stride[0], counter, site);
    } else {
        base_text_add(&w->body, "    const rax_dropout drop = rax_dropout_of(0, 0, 0, 0, head);\n");
    }
}

static void begin(cuda_writer *w, const kl_attention *a, const shape *s, int64_t tiles)
{
    define(w, a, s);
    base_text_add(&w->body, "    RAX_DYNAMIC_SHARED(memory);\n    const int head = blockIdx.x / %lldu, tile = blockIdx.x %% %lldu, b = head / A_HEADS, h = head %% A_HEADS;\n", (long long)tiles, (long long)tiles);
}

static int64_t tiles_of(int64_t n, int64_t by) { return (n + by - 1) / by; }

static void plan_forward(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, const shape *s)
{
    const kl_attention *a = &kernel->attention;
    int64_t tiles = tiles_of(a->rows, 16 * s->warps);
    cuda_writer w = { .compiler = c };
    begin(&w, a, s, tiles);
    write_dropout(&w, a);
    const char *q = head_of(&w, &a->q, a->dtype, false), *k = head_of(&w, &a->k, a->dtype, false), *v = head_of(&w, &a->v, a->dtype, false);
    const char *out = head_of(&w, &a->out, a->dtype, true), *lse = head_of(&w, &a->lse, IR_F32, true);
    base_text_add(&w.body, "    rax_attention_forward(%s, %s, %s, %s, %s, drop, tile, memory);\n", q, k, v, out, lse);
    cuda_launch_add(&w, plan, kernel, "attention", a->batch * a->heads * tiles, 32 * s->warps, s->forward_bytes);
}

static void plan_delta(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, const shape *s, int64_t delta)
{
    const kl_attention *a = &kernel->attention;
    int64_t tiles = tiles_of(a->rows, s->warps);
    cuda_writer w = { .compiler = c };
    define(&w, a, s);
    base_text_add(&w.body, "    const int head = blockIdx.x / %lldu, tile = blockIdx.x %% %lldu, b = head / A_HEADS, h = head %% A_HEADS;\n", (long long)tiles, (long long)tiles);
    const char *out = head_of(&w, &a->out, a->dtype, false), *dout = head_of(&w, &a->dout, a->dtype, false);
    const char *dlse = a->dlse.buffer >= 0 ? head_of(&w, &a->dlse, IR_F32, false) : "0";
    int to = cuda_param_bytes(&w, c->program->n_buffers, delta, "float");
    base_text_add(&w.body, "    rax_attention_delta(%s, %s, %s, p%d + head * (rax_i64)A_ROWS, tile * A_WARPS + (threadIdx.x >> 5));\n", out, dout, dlse, to);
    cuda_launch_add(&w, plan, kernel, "attention", a->batch * a->heads * tiles, 32 * s->warps, 0);
}

static void plan_gradient(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, const shape *s, int64_t delta, bool by_keys)
{
    const kl_attention *a = &kernel->attention;
    int64_t tiles = tiles_of(by_keys ? a->keys : a->rows, 16 * s->warps);
    cuda_writer w = { .compiler = c };
    begin(&w, a, s, tiles);
    write_dropout(&w, a);
    const char *q = head_of(&w, &a->q, a->dtype, false), *k = head_of(&w, &a->k, a->dtype, false), *v = head_of(&w, &a->v, a->dtype, false);
    const char *dout = head_of(&w, &a->dout, a->dtype, false), *lse = head_of(&w, &a->lse, IR_F32, false);
    int from = cuda_param_bytes(&w, c->program->n_buffers, delta, "const float");
    base_text_add(&w.body, "    rax_attention_%s(%s, %s, %s, %s, %s, p%d + head * (rax_i64)A_ROWS", by_keys ? "keys" : "rows", q, k, v, dout, lse, from);
    if (by_keys) {
        const char *dk = head_of(&w, &a->dk, a->grad_dtype, true), *dv = head_of(&w, &a->dv, a->grad_dtype, true);
        base_text_add(&w.body, ", %s, %s, drop, tile, memory);\n", dk, dv);
    } else {
        base_text_add(&w.body, ", %s, drop, tile, memory);\n", head_of(&w, &a->dq, a->grad_dtype, true));
    }
    cuda_launch_add(&w, plan, kernel, "attention", a->batch * a->heads * tiles, 32 * s->warps, by_keys ? s->keys_bytes : s->rows_bytes);
}

bool cuda_plan_attention(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    const kl_attention *a = &kernel->attention;
    shape s = shape_of(a);
    if (!cuda_attention_takes(a->dtype, a->head_dim))
        return base_fail(BASE_FAILURE, "device cuda: k%d: there is no kernel for attention in %s of head size %lld", kernel->id, ir_dtype_name(a->dtype), (long long)a->head_dim);
    plan->how = a->dtype == IR_BF16 ? "fused, mma" : "fused";
    if (a->batch * a->heads * a->rows * a->keys == 0)
        return true;
    if (!a->backward) {
        plan_forward(c, kernel, plan, &s);
        return true;
    }
    int64_t delta = cuda_workspace(plan, 4 * a->batch * a->heads * a->rows);
    plan_delta(c, kernel, plan, &s, delta);
    plan_gradient(c, kernel, plan, &s, delta, false);
    plan_gradient(c, kernel, plan, &s, delta, true);
    return true;
}
