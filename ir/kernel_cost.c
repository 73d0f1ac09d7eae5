/* What a kernel costs, as the compile trace and profiles tell it: arithmetic, and the elements that it reads and writes, each once however often it
 * is read. A function counts as one operation, like an addition; what it takes a machine is another matter, which kl_op_cost tells backends. */
#include "ir/kernels.h"

static double points(const kl_loop *loop, int from, int to)
{
    double n = 1;
    for (int i = from; i < to; i++)
        n *= (double)loop->extent[i];
    return n;
}

static double loop_flops(const kl_loop *loop)
{
    double all = points(loop, 0, loop->n_axes), rows = points(loop, 0, loop->n_outer), flops = 0;
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *expr = &loop->exprs[i];
        switch (expr->kind) {
        case KL_OP:
            flops += expr->row ? rows : all;
            break;
        case KL_REDUCE:
            flops += all;
            break;
        case KL_LOAD:
        case KL_VALUE:
        case KL_INDEX:
        case KL_RANDOM:
        case KL_PRODUCT:
            break;
        }
    }
    for (int i = 0; i < loop->n_outputs; i++)
        if (loop->outputs[i].kind != KL_STORE || loop->outputs[i].accumulate)
            flops += loop->exprs[loop->outputs[i].expr].row ? rows : all;
    return flops;
}

double kl_op_cost(ir_op op, ir_dtype dtype)
{
    double each = dtype == IR_F64 ? 30 : 1;                /* f64 is a routine, lane by lane */
    switch (op) {
    case OP_exp:                                           return 10 * each;
    case OP_log: case OP_tanh: case OP_sigmoid: case OP_erf: return 14 * each;
    case OP_sin: case OP_cos: case OP_erf_inv:             return 40 * each;
    case OP_pow:                                           return 50 * each;
    case OP_rem:                                           return 40;
    case OP_div: case OP_sqrt:                             return 4;
    case OP_rsqrt:                                         return 8;
    case OP_neg: case OP_abs: case OP_sign: case OP_floor: case OP_not: case OP_cast: case OP_add: case OP_sub: case OP_mul:
    case OP_max: case OP_min: case OP_and: case OP_or: case OP_eq: case OP_ne: case OP_lt: case OP_le: case OP_select:
        return dtype == IR_BF16 ? 2 : 0.5;
#include "ir/not_elementwise.def"
        break;
    }
    CHECK(false, "expected an elementwise op, got %s", OP_NAME(op));
    return 0;
}

typedef struct { const kl_program *program; const kl_kernel *kernel; double bytes; } traffic;

static void add_traffic(void *context, const kl_access *access)
{
    traffic *t = context;
    const kl_buffer *buffer = &t->program->buffers[access->view->buffer];
    double count = 1;
    if (access->loop)
        for (int i = 0; i < access->loop->n_axes; i++)
            count *= access->view->stride[i] ? (double)access->loop->extent[i] : 1;
    else if (t->kernel->kind == KL_SCATTER)
        count = access->view == &t->kernel->scatter.indices ? (double)t->kernel->scatter.positions
                                                            : (double)(t->kernel->scatter.pre * t->kernel->scatter.positions * t->kernel->scatter.post);
    else if (t->kernel->kind == KL_ATTENTION) {
        const kl_attention *a = t->kernel->attention;
        bool of_keys = access->view == &a->k || access->view == &a->v || access->view == &a->dk || access->view == &a->dv;
        bool of_rows = access->view == &a->lse || access->view == &a->dlse;
        count = (double)(a->batch * a->heads) * (double)(of_keys ? a->keys : a->rows) * (double)(of_rows ? 1 : a->head_dim);
        if (access->view == &a->seed || access->view == &a->counter)
            count = 1;
    }
    t->bytes += count * ir_dtype_bytes(buffer->dtype) * (access->accumulate ? 2 : 1);
}

void kl_cost(const kl_program *program, const kl_kernel *kernel, double *flops, double *bytes)
{
    traffic t = { .program = program, .kernel = kernel };
    kl_visit((kl_kernel *)kernel, add_traffic, &t);
    *flops = 0;
    *bytes = t.bytes;
    switch (kernel->kind) {
    case KL_LOOP:
        *flops = loop_flops(&kernel->loop);
        break;
    case KL_LIST:
        for (int i = 0; i < kernel->list.n; i++)
            *flops += loop_flops(&kernel->list.loops[i]);
        break;
    case KL_CONTRACTION: {
        const kl_contraction *c = &kernel->contraction;
        *flops = 2.0 * (double)c->m * (double)c->n * (double)c->k * points(&c->c, 0, c->n_batch) + loop_flops(&c->a) + loop_flops(&c->b) +
                 loop_flops(&c->c);
        break;
    }
    case KL_ATTENTION: {                  /* two products of rows x keys x head_dim; backward five; half of them where causal */
        const kl_attention *a = kernel->attention;
        double seen = (double)a->rows * (a->causal ? (double)a->keys - (double)(a->rows - 1) / 2 : (double)a->keys);
        *flops = 2.0 * (a->backward ? 5 : 2) * (double)(a->batch * a->heads * a->head_dim) * seen;
        break;
    }
    case KL_SCATTER:
        *flops = (double)(kernel->scatter.pre * kernel->scatter.positions * kernel->scatter.post);
        break;
    case KL_REPEAT:
        for (int i = 0; i < kernel->repeat.n_body; i++) {
            double inner_flops, inner_bytes;
            kl_cost(program, kernel->repeat.body[i], &inner_flops, &inner_bytes);
            *flops += inner_flops * (double)kernel->repeat.count;
            *bytes += inner_bytes * (double)kernel->repeat.count;
        }
        break;
    }
}

/* -- for profiles --------------------------------------------------------------------------------------------------------- */

static const char *shape_of(base_arena *arena, const kl_kernel *kernel)
{
    base_text text = {0};
    switch (kernel->kind) {
    case KL_LOOP:
        for (int i = 0; i < kernel->loop.n_axes; i++)
            base_text_add(&text, "%s%lld", i ? "x" : "", (long long)kernel->loop.extent[i]);
        break;
    case KL_LIST:
        base_text_add(&text, "%d loops", kernel->list.n);
        break;
    case KL_CONTRACTION: {
        const kl_contraction *c = &kernel->contraction;
        for (int i = 0; i < c->n_batch; i++)
            base_text_add(&text, "%lld,", (long long)c->batch[i]);
        base_text_add(&text, "%lldx%lldx%lld", (long long)c->m, (long long)c->n, (long long)c->k);
        break;
    }
    case KL_ATTENTION: {
        const kl_attention *a = kernel->attention;
        base_text_add(&text, "%lld,%lld,%lldx%lldx%lld", (long long)a->batch, (long long)a->heads, (long long)a->rows, (long long)a->keys,
                      (long long)a->head_dim);
        break;
    }
    case KL_SCATTER: {
        const kl_scatter *sc = &kernel->scatter;
        base_text_add(&text, "%lldx%lldx%lld into %lld", (long long)sc->pre, (long long)sc->positions, (long long)sc->post, (long long)sc->rows);
        break;
    }
    case KL_REPEAT:
        break;
    }
    const char *kept = base_arena_text(arena, "%s", text.at ? text.at : "");
    base_text_free(&text);
    return kept;
}

static ir_kernel_profile profile_of(const kl_program *program, const kl_kernel *kernel, base_arena *arena)
{
    ir_kernel_profile k = { .name = kernel->name ? kernel->name : "", .place = kernel->place, .shape = shape_of(arena, kernel) };
    k.dtype = kernel->kind == KL_CONTRACTION ? kernel->contraction.dtype : kernel->kind == KL_ATTENTION ? kernel->attention->dtype : IR_F32;
    kl_cost(program, kernel, &k.flops, &k.bytes);
    return k;
}

static void describe(const kl_program *program, kl_kernel *const *kernels, int n, base_arena *arena, ir_kernel_profile *to)
{
    for (int i = 0; i < n; i++) {
        to[kernels[i]->id] = profile_of(program, kernels[i], arena);
        if (kernels[i]->kind == KL_REPEAT)
            describe(program, kernels[i]->repeat.body, kernels[i]->repeat.n_body, arena, to);
    }
}

ir_profile *kl_profile_new(const kl_program *program, base_arena *arena)
{
    ir_profile *p = ARENA_NEW(arena, ir_profile, 1);
    p->n_kernels = program->n_ids;
    p->kernels = ARENA_NEW(arena, ir_kernel_profile, program->n_ids);
    describe(program, program->kernels, program->n_kernels, arena, p->kernels);
    return p;
}
