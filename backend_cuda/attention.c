/* Attention: the launches of device/attention.cu. Forward is one; the gradient is two: dq and a number a row, by rows, then dk and dv by keys. No
 * two blocks write to one place, so that nothing depends on their order. Sizes and strides are in the text. */
#include "backend_cuda/expressions.h"

#include <math.h>

enum { MOST_HEAD_DIM = 128 };

bool cuda_attention_takes(ir_dtype dtype, int64_t head_dim) { return (dtype == IR_F32 || dtype == IR_BF16) && head_dim >= 1 && head_dim <= MOST_HEAD_DIM; }

/* How a kernel is shared out: 16 rows a tile, so many tiles a warp; so many keys (or queries) at a time, in one place or two in shared memory. */
typedef enum { FORWARD, BY_ROWS, BY_KEYS } part;
typedef struct { part part; bool mma, async, held; int warps, tiles, columns, stages, padded; size_t bytes; } shape;

static int rows_of(const shape *s) { return 16 * s->tiles * s->warps; }

static size_t bytes_of(const kl_attention *a, const shape *s)
{
    bool bf16 = a->dtype == IR_BF16;
    size_t rows = (size_t)rows_of(s), columns = (size_t)s->columns, stages = (size_t)s->stages, pad = bf16 ? 8 : 4, leading = (size_t)s->padded + pad;
    size_t elements = ((s->part == FORWARD ? 1 : 2) * rows + 2 * stages * columns) * leading + (s->mma ? 0 : rows * (columns + pad));
    return elements * (bf16 ? 2 : 4) + (s->part == BY_KEYS ? 8 * columns * stages : 0);
}

/* With tensor cores 128 rows, which load a tile once, where there are that many and two blocks have room in a multiprocessor: four warps of two tiles,
 * which multiply what they load of the other operand twice, where ptxas finds registers enough for both; else eight of one. Their own rows' fragments
 * stay in registers where these suffice for that as well: in a forward pass with dropout a third block is worth more. */
static shape shape_of(const cuda_machine *m, const kl_attention *a, part part)
{
    static const int most_padded[] = { [FORWARD] = 128, [BY_ROWS] = 128, [BY_KEYS] = 64 };
    bool bf16 = a->dtype == IR_BF16, drops = a->dropout > 0;
    int padded = (int)(a->head_dim + 15) / 16 * 16;
    shape s = { .part = part, .mma = bf16 && m->major >= 8, .async = m->major >= 8, .warps = bf16 ? 4 : 2, .tiles = 1, .padded = padded };
    s.columns = !bf16 ? 16 : padded <= 64 ? 64 : 32;
    s.stages = s.async ? 2 : 1;
    s.bytes = bytes_of(a, &s);
    if (s.bytes > m->shared_bytes) {
        s.stages = 1;
        s.bytes = bytes_of(a, &s);
    }
    shape wide = s;
    if (padded <= most_padded[part] && !(part == BY_ROWS && padded > 96 && drops))
        wide.tiles = 2, wide.columns = part == FORWARD && !drops ? s.columns : 32;
    else
        wide.warps = 8;
    wide.bytes = bytes_of(a, &wide);
    if (s.mma && (part == BY_KEYS ? a->keys : a->rows) >= 128 && 2 * wide.bytes <= m->shared_bytes)
        s = wide;
    s.held = s.mma && (part == BY_KEYS ? s.tiles == 1 && padded <= 96 : s.tiles * padded <= 128) && !(part == FORWARD && drops);
    return s;
}

/* Rows of every head begin at a multiple of 16 bytes, and are one. */
static bool is_wide(const kl_program *p, const kl_attention *a, const kl_view *view, ir_dtype dtype)
{
    int of = 16 / (int)ir_dtype_bytes(dtype);
    return (view->stride[3] == 1 || a->head_dim == 1) && a->head_dim % of == 0 && cuda_is_aligned(p, view->buffer, view->offset, of) && view->stride[2] % of == 0 &&
           (a->heads == 1 || view->stride[1] % of == 0) && (a->batch == 1 || view->stride[0] % of == 0);
}

static void define_view(base_text *text, const char *name, const kl_view *view, bool wide)
{
    base_text_add(text, "#define A_%s_ROW %lld\n#define A_%s_COLUMN %lld\n#define A_%s_WIDE %d\n", name, (long long)view->stride[2], name, (long long)view->stride[3], name, wide);
}

/* So many lanes have a row of 16-byte pieces. */
static int delta_lanes(const kl_program *p, const kl_attention *a)
{
    int64_t pieces = a->head_dim * ir_dtype_bytes(a->dtype) / 16;
    int lanes = 1;
    while (lanes < pieces && lanes < 32)
        lanes *= 2;
    return is_wide(p, a, &a->out, a->dtype) && is_wide(p, a, &a->dout, a->dtype) ? lanes : 32;
}

static void define(cuda_writer *w, const kl_attention *a, const shape *s)
{
    static const kl_view none;
    const kl_program *p = w->compiler->program;
    base_text *text = &w->defines;
    const struct { const char *name; const kl_view *view; bool there; ir_dtype dtype; } views[] = {
        { "Q", &a->q, true, a->dtype }, { "K", &a->k, true, a->dtype }, { "V", &a->v, true, a->dtype }, { "OUT", &a->out, true, a->dtype }, { "LSE", &a->lse, true, IR_F32 },
        { "DOUT", &a->dout, a->backward, a->dtype }, { "DLSE", &a->dlse, a->backward && a->dlse.buffer >= 0, IR_F32 },
        { "DQ", &a->dq, a->backward, a->grad_dtype }, { "DK", &a->dk, a->backward, a->grad_dtype }, { "DV", &a->dv, a->backward, a->grad_dtype } };
    base_text_add(text, "#define A_BF16 %d\n#define A_GRAD_BF16 %d\n#define A_MMA %d\n#define A_ASYNC %d\n", a->dtype == IR_BF16,
                  a->backward && a->grad_dtype == IR_BF16, s->mma, s->async);
    base_text_add(text, "#define A_D %lld\n#define A_DP %d\n#define A_WARPS %d\n#define A_MT %d\n#define A_BN %d\n", (long long)a->head_dim, s->padded,
                  s->warps, s->tiles, s->columns);
    base_text_add(text, "#define A_STAGES %d\n#define A_HELD %d\n#define A_ROWS %lld\n#define A_KEYS %lld\n#define A_HEADS %lld\n#define A_CAUSAL %d\n", s->stages,
                  s->held, (long long)a->rows, (long long)a->keys, (long long)a->heads, a->causal);
    base_text_add(text, "#define A_SCALE %.9ef\n#define A_SCALE_LOG2 %.9ef\n", a->scale, a->scale * M_LOG2E);
    base_text_add(text, "#define A_DROPS %d\n#define A_THRESHOLD %.0fu\n#define A_KEEP %.9ef\n#define A_DELTA_LANES %d\n", a->dropout > 0,
                  floor(a->dropout * 0x1p32), 1 / (1 - a->dropout), a->backward ? delta_lanes(p, a) : 32);
    for (size_t i = 0; i < COUNT_OF(views); i++)
        define_view(text, views[i].name, views[i].there ? views[i].view : &none, views[i].there && is_wide(p, a, views[i].view, views[i].dtype));
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

/* Which head and which of its tiles a block has. Where rows see only the keys before them tiles differ in how long they take: the long ones are begun
 * first, so that at the end none is waited for long. But heads come in groups, whose keys and values (or queries and their outputs' gradients), which
 * all of a head's blocks go through, lie in the L2 together. */
static void begin(cuda_writer *w, const kl_attention *a, const shape *s, int64_t tiles)
{
    enum { GROUP_BYTES = 16 << 20 };
    int64_t heads = a->batch * a->heads, head_bytes = 2 * (s->part == BY_KEYS ? a->rows : a->keys) * a->head_dim * ir_dtype_bytes(a->dtype);
    int64_t most = MAX(GROUP_BYTES / MAX(head_bytes, 1), 1), group = base_divide_up(heads, base_divide_up(heads, most));
    define(w, a, s);
    base_text_add(&w->body, "    RAX_DYNAMIC_SHARED(memory);\n    enum { HEADS = %lld, GROUP = %lld, TILES = %lld };\n", (long long)heads, (long long)group, (long long)tiles);
    base_text_add(&w->body, "    const int before = blockIdx.x / (GROUP * TILES) * GROUP, block = blockIdx.x %% (GROUP * TILES);\n");
    base_text_add(&w->body, "    const int here = HEADS %% GROUP && before + GROUP > HEADS ? HEADS - before : GROUP, head = before + block %% here;\n");
    base_text_add(&w->body, "    const int tile = %sblock / here, b = head / A_HEADS, h = head %% A_HEADS;\n", s->part == BY_KEYS ? "" : "TILES - 1 - ");
}

static void plan_forward(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    const kl_attention *a = kernel->attention;
    shape s = shape_of(c->machine, a, FORWARD);
    int64_t tiles = base_divide_up(a->rows, rows_of(&s));
    cuda_writer w = { .compiler = c };
    begin(&w, a, &s, tiles);
    write_dropout(&w, a);
    const char *q = head_of(&w, &a->q, a->dtype, false), *k = head_of(&w, &a->k, a->dtype, false), *v = head_of(&w, &a->v, a->dtype, false);
    const char *out = head_of(&w, &a->out, a->dtype, true), *lse = head_of(&w, &a->lse, IR_F32, true);
    base_text_add(&w.body, "    rax_attention_forward(%s, %s, %s, %s, %s, drop, tile, memory);\n", q, k, v, out, lse);
    cuda_launch_add(&w, plan, kernel, "attention", a->batch * a->heads * tiles, 32 * s.warps, s.bytes);
}

static void plan_gradient(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, int64_t delta, part part)
{
    const kl_attention *a = kernel->attention;
    shape s = shape_of(c->machine, a, part);
    bool by_keys = part == BY_KEYS;
    int64_t tiles = base_divide_up(by_keys ? a->keys : a->rows, rows_of(&s));
    cuda_writer w = { .compiler = c };
    begin(&w, a, &s, tiles);
    write_dropout(&w, a);
    const char *q = head_of(&w, &a->q, a->dtype, false), *k = head_of(&w, &a->k, a->dtype, false), *v = head_of(&w, &a->v, a->dtype, false);
    const char *dout = head_of(&w, &a->dout, a->dtype, false), *lse = head_of(&w, &a->lse, IR_F32, false);
    int numbers = cuda_param_bytes(&w, c->program->n_buffers, delta, by_keys ? "const float" : "float");
    if (by_keys) {
        const char *dk = head_of(&w, &a->dk, a->grad_dtype, true), *dv = head_of(&w, &a->dv, a->grad_dtype, true);
        base_text_add(&w.body, "    rax_attention_keys(%s, %s, %s, %s, %s, p%d + head * (rax_i64)A_ROWS, %s, %s, drop, tile, memory);\n", q, k, v, dout, lse, numbers, dk, dv);
    } else {
        const char *out = head_of(&w, &a->out, a->dtype, false), *dlse = a->dlse.buffer >= 0 ? head_of(&w, &a->dlse, IR_F32, false) : "0";
        base_text_add(&w.body, "    rax_attention_rows(%s, %s, %s, %s, %s, %s, %s, p%d + head * (rax_i64)A_ROWS, %s, drop, tile, memory);\n", q, k, v, out, dout, lse,
                      dlse, numbers, head_of(&w, &a->dq, a->grad_dtype, true));
    }
    cuda_launch_add(&w, plan, kernel, "attention", a->batch * a->heads * tiles, 32 * s.warps, s.bytes);
}

bool cuda_plan_attention(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    const kl_attention *a = kernel->attention;
    if (!cuda_attention_takes(a->dtype, a->head_dim))
        return base_fail(BASE_FAILURE, "device cuda: k%d: there is no kernel for attention in %s of head size %lld", kernel->id, ir_dtype_name(a->dtype), (long long)a->head_dim);
    plan->how = shape_of(c->machine, a, FORWARD).mma ? "fused, mma" : "fused";
    if (a->batch * a->heads * a->rows * a->keys == 0)
        return true;
    if (!a->backward) {
        plan_forward(c, kernel, plan);
        return true;
    }
    int64_t delta = cuda_workspace(plan, 4 * a->batch * a->heads * a->rows);
    plan_gradient(c, kernel, plan, delta, BY_ROWS);
    plan_gradient(c, kernel, plan, delta, BY_KEYS);
    return true;
}
