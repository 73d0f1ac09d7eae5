/* How a loop is shared out to blocks and threads, by its shape alone: the same bits on every run and every card of an architecture.
 *
 * Sums over rows, and over everything, are made by each block for itself, in registers, and put down in workspace; a second launch, itself a
 * loop, adds them up in the order of blocks.
 *
 *     loop  rows 16384, columns 768:  sum_outer(x) -> b          64 blocks of 256 rows: partial[64][768]
 *     loop  columns 768:              reduce_sum(partial) -> b
 */
#include "backend_cuda/loops.h"

#include <string.h>

enum { THREADS = 256, WARP = 32, MOST_ROW_BLOCKS = 128, BLOCKS = 512, MOST_SEGMENTS = 1024, SUM_REGISTERS = 64, MOST_ALONE = 32 };

static int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t product(const int64_t *extent, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++)
        n *= extent[i];
    return n;
}

static kl_loop copy_of(base_arena *arena, const kl_loop *from)
{
    kl_loop loop = *from;
    loop.exprs = ARENA_NEW(arena, kl_expr, from->n_exprs);
    loop.outputs = ARENA_NEW(arena, kl_output, from->n_outputs);
    if (from->n_exprs)
        memcpy(loop.exprs, from->exprs, sizeof(kl_expr) * (size_t)from->n_exprs);
    if (from->n_outputs)
        memcpy(loop.outputs, from->outputs, sizeof(kl_output) * (size_t)from->n_outputs);
    return loop;
}

static bool has_reduction(const kl_loop *loop)
{
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_REDUCE)
            return true;
    return false;
}

static int count_outputs(const kl_loop *loop, kl_output_kind kind)
{
    int n = 0;
    for (int i = 0; i < loop->n_outputs; i++)
        n += loop->outputs[i].kind == kind;
    return n;
}

/* A row value whose place is the same all along the row. */
static bool is_once_a_row(const kl_loop *loop, const kl_output *o)
{
    bool once = o->kind == KL_STORE && loop->exprs[o->expr].row;
    for (int i = loop->n_outer; i < loop->n_axes; i++)
        once &= loop->extent[i] <= 1 || o->view.stride[i] == 0;
    return once && loop->n_outer < loop->n_axes && product(loop->extent, loop->n_outer, loop->n_axes) != 1;
}

/* -- levels ----------------------------------------------------------------------------------------------------------------- */

static void need(const kl_loop *loop, int i, bool *used)
{
    const kl_expr *e = &loop->exprs[i];
    if (used[i])
        return;
    used[i] = true;
    for (int a = 0; a < e->n_args; a++)
        need(loop, e->args[a], used);
    bool has_view = e->kind == KL_LOAD || e->kind == KL_INDEX || e->kind == KL_RANDOM;
    for (int d = 0; has_view && d < e->view.n_dynamic; d++)
        need(loop, e->view.dynamic[d].expr, used);
}

static void plan_levels(base_arena *arena, cuda_loop *l)
{
    const kl_loop *loop = &l->loop;
    bool *used = ARENA_NEW(arena, bool, loop->n_exprs);
    l->level = ARENA_NEW(arena, int, loop->n_exprs);
    for (int i = 0; i < loop->n_outputs; i++) {
        need(loop, loop->outputs[i].expr, used);
        for (int d = 0; d < loop->outputs[i].view.n_dynamic; d++)
            need(loop, loop->outputs[i].view.dynamic[d].expr, used);
    }
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        bool has_view = e->kind == KL_LOAD || e->kind == KL_INDEX || e->kind == KL_RANDOM;
        for (int a = 0; a < e->n_args; a++)
            l->level[i] = MAX(l->level[i], l->level[e->args[a]]);
        for (int d = 0; has_view && d < e->view.n_dynamic; d++)
            l->level[i] = MAX(l->level[i], l->level[e->view.dynamic[d].expr]);
        l->level[i] += e->kind == KL_REDUCE;
    }
    for (int i = 0; i < loop->n_exprs; i++) {
        if (!used[i])
            l->level[i] = -1;
        l->n_levels = MAX(l->n_levels, l->level[i] + 1);
    }
}

/* -- shape ------------------------------------------------------------------------------------------------------------------ */

/* Neighbours in memory lie along the last outer axis rather than the last inner one. */
static bool lies_across(const kl_loop *loop)
{
    int along = 0, across = 0, last = loop->n_axes - 1;
    for (int i = 0; i < loop->n_exprs && loop->n_outer > 0; i++) {
        const kl_expr *e = &loop->exprs[i];
        if (e->kind != KL_LOAD || e->view.stride[last] == 0)
            continue;
        along += e->view.stride[last] == 1;
        across += e->view.stride[last] != 1 && e->view.stride[loop->n_outer - 1] == 1;
    }
    return across > along;
}

/* The widest vector that divides the last axis: 16 bytes of the widest dtype that memory has. */
static int choose_vector(const kl_loop *loop)
{
    int64_t last = loop->extent[loop->n_axes - 1];
    int bytes = 1, V = 8;
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_LOAD)
            bytes = MAX(bytes, ir_dtype_bytes(loop->exprs[i].dtype));
    for (int i = 0; i < loop->n_outputs; i++)
        bytes = MAX(bytes, ir_dtype_bytes(loop->exprs[loop->outputs[i].expr].dtype));
    while (V > 1 && (V * bytes > 16 || last % V))
        V /= 2;
    return V;
}

static void choose_shape(cuda_loop *l)
{
    kl_loop *loop = &l->loop;
    bool sums = count_outputs(loop, KL_SUM_OUTER) > 0, all = count_outputs(loop, KL_SUM_ALL) > 0, whole = has_reduction(loop);
    for (int i = 0; i < loop->n_outputs; i++)
        whole |= l->by_row[i];
    if (!whole && !sums) {
        loop->n_outer = 0;
        kl_merge_axes(loop);
    }
    l->rows = product(loop->extent, 0, loop->n_outer);
    l->columns = product(loop->extent, loop->n_outer, loop->n_axes);
    l->V = choose_vector(loop);
    l->threads = THREADS;
    bool across = lies_across(loop);
    if (loop->n_outer == 0)
        l->group = THREADS;
    else if (l->columns <= (across ? 4 * MOST_ALONE : 4) || (across && l->columns <= 1024 && l->rows >= 4096))
        l->group = 1;
    else if (l->columns <= 1024 || !whole)
        l->group = WARP;
    else
        l->group = THREADS;
    int n_sums = count_outputs(loop, KL_SUM_OUTER);
    if (l->group == 1 && sums && l->columns * n_sums > SUM_REGISTERS)
        l->group = WARP;
    if (l->group == THREADS && loop->n_outer > 0)
        l->group = l->threads = l->columns <= 4096 ? THREADS : l->columns <= 16384 ? 2 * THREADS : 4 * THREADS;
    int64_t width = (int64_t)l->group * l->V;
    l->segment = l->columns;
    if (!whole && l->group == WARP)
        l->segment = width;
    if (!whole && l->group >= THREADS)
        l->segment = width * (all || sums ? MAX(1, divided_up(l->columns, width * MOST_SEGMENTS)) : 1);
    l->iterations = divided_up(l->segment, width);
    l->in_registers = l->iterations * l->V * n_sums <= SUM_REGISTERS;
    if (sums && !l->in_registers && l->group != l->threads) {      /* one group a block: no two add to one place */
        l->group = THREADS;
        l->iterations = divided_up(l->segment, (int64_t)l->group * l->V);
        l->in_registers = l->iterations * l->V * n_sums <= SUM_REGISTERS;
    }
    l->segments = l->columns == 0 ? 0 : divided_up(l->columns, l->segment);
    int64_t groups = l->threads / l->group;
    l->rows_per_block = groups;
    if (sums || all)
        l->rows_per_block = groups * MAX(1, divided_up(l->rows, groups * MIN(MOST_ROW_BLOCKS, MAX(1, BLOCKS / MAX(l->segments, 1)))));
    l->row_blocks = divided_up(l->rows, l->rows_per_block);
}

/* -- the launches ------------------------------------------------------------------------------------------------------------ */

static bool plan_loop(cuda_compiler *c, const kl_kernel *kernel, const kl_loop *from, cuda_plan *plan);

/* The second launch: what blocks have left, added up in order. One loop over what a sum over rows has left, one for those of everything. */
static bool plan_finish(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan, const kl_loop *loop, kl_output_kind kind, const int64_t *offset, int64_t parts)
{
    int inner = kind == KL_SUM_OUTER ? loop->n_axes - loop->n_outer : 0;
    kl_loop sum = { .n_axes = inner + 1, .n_outer = inner };
    sum.exprs = ARENA_NEW(c->arena, kl_expr, 3 * loop->n_outputs);
    sum.outputs = ARENA_NEW(c->arena, kl_output, loop->n_outputs);
    for (int i = 0; i < inner; i++)
        sum.extent[i] = loop->extent[loop->n_outer + i];
    sum.extent[inner] = MAX(parts, 1);                     /* where there was no row: the sum of one 0 */
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        if (o->kind != kind)
            continue;
        ir_dtype dtype = loop->exprs[o->expr].dtype, wide = dtype == IR_BF16 ? IR_F32 : dtype;
        kl_view from = { .buffer = c->program->n_buffers, .offset = offset[i] / ir_dtype_bytes(wide) }, to = { .buffer = o->view.buffer, .offset = o->view.offset };
        int64_t dense = 1;
        for (int a = inner - 1; a >= 0; a--) {
            from.stride[a] = dense;
            dense *= sum.extent[a];
            to.stride[a] = o->view.stride[loop->n_outer + a];
        }
        from.stride[inner] = dense;
        CHECK(o->view.n_dynamic == 0, "expected a sum not to go to a dynamic place");
        int at = sum.n_exprs;
        sum.exprs[at] = parts ? (kl_expr){ .kind = KL_LOAD, .dtype = wide, .view = from } : (kl_expr){ .kind = KL_VALUE, .dtype = wide, .view.buffer = -1, .row = true };
        sum.exprs[at + 1] = (kl_expr){ .kind = KL_REDUCE, .op = OP_reduce_sum, .dtype = wide, .n_args = 1, .args = { at }, .view.buffer = -1, .row = true };
        sum.n_exprs += 2;
        if (wide != dtype)
            sum.exprs[sum.n_exprs++] = (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = dtype, .n_args = 1, .args = { at + 1 }, .view.buffer = -1, .row = true };
        sum.outputs[sum.n_outputs++] = (kl_output){ KL_STORE, sum.n_exprs - 1, to, o->accumulate };
    }
    return sum.n_outputs == 0 || plan_loop(c, kernel, &sum, plan);
}

static bool plan_loop(cuda_compiler *c, const kl_kernel *kernel, const kl_loop *from, cuda_plan *plan)
{
    cuda_loop *l = ARENA_NEW(c->arena, cuda_loop, 1);
    l->loop = copy_of(c->arena, from);
    kl_loop *loop = &l->loop;
    kl_merge_axes(loop);
    if (loop->n_axes == loop->n_outer) {                     /* a row has something inside */
        CHECK(loop->n_axes < KL_MAX_AXES, "expected a loop of fewer axes than %d", loop->n_axes);
        loop->extent[loop->n_axes++] = 1;
    }
    l->once = ARENA_NEW(c->arena, bool, loop->n_outputs);
    l->by_row = ARENA_NEW(c->arena, bool, loop->n_outputs);
    for (int i = 0; i < loop->n_outputs; i++) {
        if (loop->outputs[i].kind == KL_SUM_OUTER && product(loop->extent, loop->n_outer, loop->n_axes) == 1)
            loop->outputs[i].kind = KL_SUM_ALL;
        l->once[i] = is_once_a_row(loop, &loop->outputs[i]);
        l->by_row[i] = l->once[i] || (loop->outputs[i].kind == KL_SUM_ALL && loop->exprs[loop->outputs[i].expr].row &&
                                      product(loop->extent, loop->n_outer, loop->n_axes) != 1);
    }
    plan_levels(c->arena, l);
    choose_shape(l);

    cuda_writer w = { .compiler = c };
    l->x = cuda_expressions_plan(&w, loop, loop->n_outer, l->V);
    l->partial = ARENA_NEW(c->arena, int, loop->n_outputs);
    int64_t *offset = ARENA_NEW(c->arena, int64_t, loop->n_outputs), blocks = l->row_blocks * l->segments;
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        if (o->kind == KL_STORE)
            continue;
        ir_dtype dtype = loop->exprs[o->expr].dtype;
        int64_t size = dtype == IR_F64 ? 8 : 4, n = o->kind == KL_SUM_OUTER ? l->row_blocks * l->columns : blocks;
        offset[i] = cuda_workspace(plan, size * n);
        l->partial[i] = cuda_param_bytes(&w, c->program->n_buffers, offset[i], cuda_register_type(dtype));
    }
    base_text body = {0};
    cuda_write_loop(l, &body);
    base_text_bytes(&w.body, body.at, body.len);
    base_text_free(&body);
    cuda_launch_add(&w, plan, kernel, NULL, blocks, l->threads, 0);
    return plan_finish(c, kernel, plan, loop, KL_SUM_OUTER, offset, l->row_blocks) && plan_finish(c, kernel, plan, loop, KL_SUM_ALL, offset, blocks);
}

bool cuda_plan_loop(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan) { return plan_loop(c, kernel, &kernel->loop, plan); }

/* Each for itself: launches of a graph cost about a microsecond. */
bool cuda_plan_list(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    bool planned = true;
    for (int i = 0; planned && i < kernel->list.n; i++)
        planned = plan_loop(c, kernel, &kernel->list.loops[i], plan);
    return planned;
}
