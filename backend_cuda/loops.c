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

enum { MOST_VECTOR = 8, THREADS = 256, LISTED_ITERATIONS = 4, WARP = 32, MOST_ROW_BLOCKS = 512, BLOCKS = 512, MOST_SEGMENTS = 1024, SUM_REGISTERS = 64, KEPT_REGISTERS = 64, MOST_AHEAD = 4,
       ALONE_COLUMNS = 1024, ALONE_ROWS = 16384 };

/* Whether it is stored, or counts in a sum of everything, once a row; in a list, where other loops may have longer rows, also where a row is one element. */
static bool is_by_row(const kl_loop *loop, const kl_output *o, bool listed)
{
    bool one = listed && kl_inner(loop) == 1 && loop->exprs[o->expr].row;
    return o->kind != KL_SUM_OUTER && (one || kl_is_once_a_row(loop, o));
}

/* -- levels ----------------------------------------------------------------------------------------------------------------- */

/* m, where expression i is the sum of exp(x - m) along a row whose maximum is m; or -1. */
static int most_of(const kl_loop *loop, int i)
{
    const kl_expr *sum = &loop->exprs[i];
    return sum->kind == KL_REDUCE && sum->op == OP_reduce_sum && (sum->dtype == IR_F32 || sum->dtype == IR_F64) ? cuda_exp_below(loop, sum->args[0]) : -1;
}

/* together: sums of exp(x - m) are made in the pass that finds m. */
static void plan_levels(base_arena *arena, cuda_loop *l, bool together)
{
    const kl_loop *loop = &l->loop;
    bool *used = ARENA_NEW(arena, bool, loop->n_exprs);
    l->level = ARENA_NEW(arena, int, loop->n_exprs);
    l->most = ARENA_NEW(arena, int, loop->n_exprs);
    l->n_levels = 0;
    kl_need_outputs(loop, used);
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        bool has_view = e->kind == KL_LOAD || e->kind == KL_INDEX || e->kind == KL_RANDOM;
        for (int a = 0; a < e->n_args; a++)
            l->level[i] = MAX(l->level[i], l->level[e->args[a]]);
        for (int d = 0; has_view && d < e->view.n_dynamic; d++)
            l->level[i] = MAX(l->level[i], l->level[e->view.dynamic[d].expr]);
        l->level[i] += e->kind == KL_REDUCE;
        l->most[i] = together ? most_of(loop, i) : -1;
        if (l->most[i] >= 0)
            l->level[i] = l->level[l->most[i]];
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

static bool has_argmax(const kl_loop *loop)
{
    bool has = false;
    for (int i = 0; i < loop->n_exprs; i++)
        has |= loop->exprs[i].kind == KL_REDUCE && loop->exprs[i].op == OP_argmax;
    return has;
}

/* The widest vector that divides the last axis: 16 bytes of the widest dtype that memory has along it. What is read once for all neighbours (a learning rate in f64), or
 * summed up in registers, does not make it narrower; where nothing lies along it, all of it counts. */
static int choose_vector(const kl_loop *loop)
{
    int64_t last = loop->extent[loop->n_axes - 1];
    int bytes = 0, any = 1, V = MOST_VECTOR;
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_LOAD) {
            int of = ir_dtype_bytes(loop->exprs[i].dtype);
            any = MAX(any, of);
            bytes = MAX(bytes, loop->exprs[i].view.stride[loop->n_axes - 1] ? of : 0);
        }
    for (int i = 0; i < loop->n_outputs; i++) {
        int of = ir_dtype_bytes(loop->exprs[loop->outputs[i].expr].dtype);
        any = MAX(any, of);
        bytes = MAX(bytes, loop->outputs[i].kind == KL_STORE && loop->outputs[i].view.stride[loop->n_axes - 1] ? of : 0);
    }
    bytes = bytes ? bytes : any;
    while (V > 1 && (V * bytes > 16 || last % V))
        V /= 2;
    return V;
}

/* A block's, whole warps, so that as few as may be are without a place in the last iteration. */
static int threads_of_row(const cuda_loop *l)
{
    int64_t places = MAX(1, base_divide_up(l->columns, l->V)), most = l->columns <= 4096 ? THREADS : 2 * THREADS;
    return (int)(WARP * base_divide_up(places, WARP * base_divide_up(places, most)));
}

/* Of a thread of a flat loop: several, where there are blocks enough to fill a card twice all the same. */
static int iterations_of_flat(const cuda_loop *l, int64_t width)
{
    enum { FILLS = 2048 };
    int n = LISTED_ITERATIONS;
    while (n > 1 && !l->listed && l->columns < n * FILLS * width)
        n /= 2;
    return n;
}

static void choose_shape(cuda_loop *l)
{
    kl_loop *loop = &l->loop;
    bool sums = kl_count_outputs(loop, KL_SUM_OUTER) > 0, all = kl_count_outputs(loop, KL_SUM_ALL) > 0, whole = kl_has_expr(loop, KL_REDUCE);
    for (int i = 0; i < loop->n_outputs; i++)
        whole |= l->by_row[i];
    if (!whole && !sums) {
        loop->n_outer = 0;
        kl_merge_axes(loop);
    }
    l->rows = kl_rows(loop);
    l->columns = kl_inner(loop);
    l->V = MIN(choose_vector(loop), l->widest);
    l->threads = THREADS;
    bool across = lies_across(loop);
    if (loop->n_outer == 0)
        l->group = l->columns > 1 || l->listed ? THREADS : 1;              /* nobody else reads what one thread may write in the same place */
    else if (l->columns <= 4 || (across && l->columns <= ALONE_COLUMNS && l->rows >= ALONE_ROWS))        /* rows enough to fill a card */
        l->group = 1;
    else if (across && whole && !sums && !all && !has_argmax(loop) && l->rows % (THREADS / WARP) == 0)
        l->group = WARP, l->across = true;
    else if (l->columns <= 1024 || !whole)
        l->group = WARP;
    else
        l->group = THREADS;
    int n_sums = kl_count_outputs(loop, KL_SUM_OUTER);
    if (l->group == 1 && sums && l->columns * n_sums > SUM_REGISTERS)
        l->group = WARP;
    if (l->group == THREADS && loop->n_outer > 0)
        l->group = l->threads = threads_of_row(l);
    int64_t width = (int64_t)l->group * l->V;
    l->segment = l->columns;
    if (!whole && l->group == WARP)
        l->segment = width;
    if (!whole && l->group >= THREADS)
        l->segment = width * MAX(iterations_of_flat(l, width), all || sums ? base_divide_up(l->columns, width * MOST_SEGMENTS) : 1);
    l->iterations = base_divide_up(l->segment, width);
    l->in_registers = l->iterations * l->V * n_sums <= SUM_REGISTERS;
    if (sums && !l->in_registers && l->group != l->threads) {      /* one group a block: no two add to one place */
        l->group = l->threads = whole ? threads_of_row(l) : THREADS;
        l->iterations = base_divide_up(l->segment, (int64_t)l->group * l->V);
        l->in_registers = l->iterations * l->V * n_sums <= SUM_REGISTERS;
    }
    l->iterations_are_code = !l->listed || (sums && l->in_registers) || (!whole && !sums && !all);
    l->segments = l->columns == 0 ? 0 : base_divide_up(l->columns, l->segment);
    int64_t groups = l->threads / l->group;
    l->rows_per_block = groups;
    if (sums || all)
        l->rows_per_block = groups * MAX(1, base_divide_up(l->rows, groups * MIN(MOST_ROW_BLOCKS, MAX(1, BLOCKS / MAX(l->segments, 1)))));
    l->row_blocks = base_divide_up(l->rows, l->rows_per_block);
}

/* -- what is kept of a row ------------------------------------------------------------------------------------------------------ */

static void mark(const cuda_loop *l, int i, bool *in)
{
    const kl_expr *e = &l->loop.exprs[i];
    if (in[i] || l->x->uniform[i] || e->kind == KL_REDUCE)
        return;
    in[i] = true;
    for (int a = 0; a < e->n_args; a++)
        mark(l, e->args[a], in);
    bool has_view = e->kind == KL_LOAD || e->kind == KL_INDEX || e->kind == KL_RANDOM;
    for (int d = 0; has_view && d < e->view.n_dynamic; d++)
        mark(l, e->view.dynamic[d].expr, in);
}

/* By pass what it needs along the row: the reductions of each level, and last the outputs. */
static void plan_passes(base_arena *arena, cuda_loop *l)
{
    const kl_loop *loop = &l->loop;
    l->reads = ARENA_NEW(arena, bool *, l->n_levels);
    l->batch = ARENA_NEW(arena, int, l->n_levels);
    for (int pass = 0; pass < l->n_levels; pass++) {
        bool *in = l->reads[pass] = ARENA_NEW(arena, bool, loop->n_exprs);
        for (int i = 0; i < loop->n_exprs; i++)
            if (loop->exprs[i].kind == KL_REDUCE && l->level[i] == pass + 1)
                mark(l, loop->exprs[i].args[0], in);
        for (int i = 0; i < loop->n_outputs && pass == l->n_levels - 1; i++) {
            const kl_output *o = &loop->outputs[i];
            if (!l->by_row[i])
                mark(l, o->expr, in);
            for (int d = 0; !l->by_row[i] && d < o->view.n_dynamic; d++)
                mark(l, o->view.dynamic[d].expr, in);
        }
    }
}

static int count_passes(const cuda_loop *l, int expr)
{
    int n = 0;
    for (int pass = 0; pass < l->n_levels; pass++)
        n += l->reads[pass][expr];
    return n;
}

/* Not what is one for all rows: that stays in the cache. */
static bool is_of_its_row(const cuda_loop *l, const kl_view *view)
{
    bool moves = view->n_dynamic > 0 || l->loop.n_outer == 0;
    for (int a = 0; a < l->loop.n_outer; a++)
        moves |= view->stride[a] != 0 && l->loop.extent[a] > 1;
    return moves;
}

/* Registers of a place of expression i, as it is in memory. */
static int64_t registers_of(const cuda_loop *l, int i) { return base_divide_up((int64_t)l->V * ir_dtype_bytes(l->loop.exprs[i].dtype), 4); }

static int64_t sum_registers(const cuda_loop *l) { return l->in_registers ? l->iterations * l->V * kl_count_outputs(&l->loop, KL_SUM_OUTER) : 0; }

/* A row of which all that several passes read has room in registers is read ahead, and so is what its last pass alone reads, if that has room too. */
static bool plan_held(cuda_loop *l)
{
    const kl_loop *loop = &l->loop;
    int64_t room = (int64_t)KEPT_REGISTERS * THREADS / l->threads - sum_registers(l);
    bool any = false;
    for (int least = 2; least >= 1; least--)
        for (int i = 0; i < loop->n_exprs; i++) {
            const kl_expr *e = &loop->exprs[i];
            if (e->kind != KL_LOAD || l->level[i] != 0 || !l->x->lanes[i] || !is_of_its_row(l, &e->view) || (least == 2 ? count_passes(l, i) < 2 : count_passes(l, i) != 1))
                continue;
            bool fits = cuda_can_hold(l->x, i) && registers_of(l, i) * l->iterations <= room;
            if (least == 2 && !fits)
                return false;
            l->x->held[i] = fits;
            any |= least == 2;
            room -= fits ? registers_of(l, i) * l->iterations : 0;
        }
    return any;
}

/* So many places, or by halves fewer, of so many registers each are read ahead. */
static int64_t batch_of(int64_t most, int64_t each)
{
    enum { REGISTERS = 32 };
    while (most > 1 && most * each > REGISTERS)
        most /= 2;
    return each > 0 ? most : 1;
}

/* How many places a pass reads before it computes, so that a thread does not wait for memory at each: what memory has on its way for a multiprocessor is to be some 40 KB. */
static void plan_batches(cuda_loop *l)
{
    for (int pass = 0; pass < l->n_levels; pass++) {
        int64_t each = 0;
        for (int i = 0; i < l->loop.n_exprs; i++)
            each += cuda_is_read_ahead(l, pass, i) ? registers_of(l, i) : 0;
        int64_t batch = batch_of(MOST_AHEAD, each);
        if (l->iterations_are_code)
            batch = MIN(batch, MAX(l->iterations, 1));
        while (sum_registers(l) > 0 && pass == l->n_levels - 1 && l->iterations % batch)      /* whose place is the iteration, a constant */
            batch--;
        l->batch[pass] = (int)batch;
    }
}

/* Sums over rows of which a thread has one place: it is rows that are read ahead. */
static bool plan_row_batch(cuda_loop *l)
{
    int64_t each = 0;
    l->row_batch = 0;
    if (sum_registers(l) == 0 || l->n_levels > 1 || l->listed || l->iterations > 1)
        return false;
    for (int i = 0; i < l->loop.n_exprs; i++) {
        l->x->held[i] = cuda_is_read_ahead(l, 0, i);
        each += l->x->held[i] ? registers_of(l, i) : 0;
    }
    int64_t batch = batch_of(MIN(MOST_AHEAD, l->rows_per_block * l->group / l->threads), each);
    l->row_batch = batch > 1 ? (int)batch : 0;
    return l->row_batch > 0;
}

bool cuda_is_read_ahead(const cuda_loop *l, int pass, int i)
{
    return l->reads[pass][i] && cuda_can_hold(l->x, i) && is_of_its_row(l, &l->loop.exprs[i].view);
}

/* A row that several passes go along is read from memory once: it would not stay in the cache, with as many rows under way as a multiprocessor has warps. Short ones in registers;
 * long ones in half a multiprocessor's shared memory, as many of them as have room, so that two blocks are there at a time. */
static void plan_kept(cuda_compiler *c, cuda_loop *l)
{
    enum { SHARED_SPARE = 2048 };
    const kl_loop *loop = &l->loop;
    bool keeps = l->n_levels > 1 && !l->listed && l->iterations_are_code;
    int64_t bytes = 0;
    plan_passes(c->arena, l);
    memset(l->x->held, 0, sizeof *l->x->held * (size_t)loop->n_exprs);
    memset(l->x->kept, 0, sizeof *l->x->kept * (size_t)loop->n_exprs);
    l->kept_iterations = 0, l->shared_bytes = 0;
    l->unrolled = (keeps && plan_held(l)) || plan_row_batch(l);
    if (l->unrolled)
        return;
    memset(l->x->held, 0, sizeof *l->x->held * (size_t)loop->n_exprs);
    plan_batches(l);
    for (int i = 0; i < loop->n_exprs && keeps && l->group == l->threads; i++) {
        l->x->kept[i] = loop->exprs[i].kind == KL_LOAD && l->x->lanes[i] && count_passes(l, i) > 1 && is_of_its_row(l, &loop->exprs[i].view);
        bytes += l->x->kept[i] * l->V * ir_dtype_bytes(loop->exprs[i].dtype);
    }
    if (bytes > 0)
        l->kept_iterations = MIN(l->iterations, (int64_t)(c->machine->shared_bytes / 2 - SHARED_SPARE) / (l->threads * bytes));
    l->shared_bytes = (size_t)(l->kept_iterations * l->threads * bytes);
    for (int i = 0; i < loop->n_exprs; i++)
        l->x->kept[i] &= l->kept_iterations > 0;
}

/* -- the launches ------------------------------------------------------------------------------------------------------------ */

static void plan_loops(cuda_compiler *c, const kl_kernel *kernel, const kl_loop *loops, int n, int widest, cuda_plan *plan);

static cuda_loop shaped(cuda_compiler *c, const kl_loop *from, bool listed, int widest)
{
    cuda_loop l = { .loop = kl_copy_loop(c->arena, from, 0), .listed = listed, .widest = widest };
    kl_loop *loop = &l.loop;
    kl_merge_axes(loop);
    if (loop->n_axes == loop->n_outer) {                     /* a row has something inside */
        CHECK(loop->n_axes < KL_MAX_AXES, "expected a loop of fewer axes than %d", loop->n_axes);
        loop->extent[loop->n_axes++] = 1;
    }
    l.once = ARENA_NEW(c->arena, bool, loop->n_outputs);
    l.by_row = ARENA_NEW(c->arena, bool, loop->n_outputs);
    for (int i = 0; i < loop->n_outputs; i++) {
        if (loop->outputs[i].kind == KL_SUM_OUTER && kl_inner(loop) == 1)
            loop->outputs[i].kind = KL_SUM_ALL;
        l.by_row[i] = is_by_row(loop, &loop->outputs[i], listed);
        l.once[i] = l.by_row[i] && loop->outputs[i].kind == KL_STORE;
    }
    plan_levels(c->arena, &l, false);
    choose_shape(&l);
    l.blocks = l.row_blocks * l.segments;
    return l;
}

/* Room for what the blocks leave. */
static void plan_sums(cuda_compiler *c, cuda_loop *l, cuda_plan *plan)
{
    l->offset = ARENA_NEW(c->arena, int64_t, l->loop.n_outputs);
    for (int i = 0; i < l->loop.n_outputs; i++) {
        const kl_output *o = &l->loop.outputs[i];
        int64_t size = l->loop.exprs[o->expr].dtype == IR_F64 ? 8 : 4;
        if (o->kind != KL_STORE)
            l->offset[i] = cuda_workspace(plan, size * (o->kind == KL_SUM_OUTER ? l->row_blocks * l->columns : l->blocks));
    }
}

static void write_loop(cuda_compiler *c, cuda_loop *l, cuda_writer *w, bool listed)
{
    kl_loop *loop = &l->loop;
    *w = (cuda_writer){ .compiler = c, .listed = listed };
    l->x = cuda_expressions_plan(w, loop, loop->n_outer, l->V);
    plan_kept(c, l);
    if (!l->unrolled) {                                     /* the row is read for each pass: one less is worth more than the exps that it costs */
        plan_levels(c->arena, l, true);
        plan_kept(c, l);
    }
    l->partial = ARENA_NEW(c->arena, int, loop->n_outputs);
    for (int i = 0; i < loop->n_outputs; i++)
        if (loop->outputs[i].kind != KL_STORE)
            l->partial[i] = cuda_param_bytes(w, c->program->n_buffers, l->offset[i], cuda_register_type(loop->exprs[loop->outputs[i].expr].dtype));
    cuda_write_loop(l, &w->body);
}

static void launch_alone(cuda_compiler *c, const kl_kernel *kernel, cuda_loop *l, cuda_plan *plan)
{
    cuda_writer w;
    write_loop(c, l, &w, false);
    cuda_launch_add(&w, plan, kernel, NULL, l->blocks, l->threads, l->shared_bytes);
}

/* One launch for the first and all after it that have its text. */
static void launch_first(cuda_compiler *c, const kl_kernel *kernel, cuda_loop *l, const cuda_writer *w, int n, cuda_plan *plan)
{
    cuda_writer *same = ARENA_NEW(c->arena, cuda_writer, n);
    int64_t *blocks = ARENA_NEW(c->arena, int64_t, n);
    int n_same = 0;
    for (int i = 0; i < n; i++)
        if (!l[i].launched && l[i].threads == l->threads && cuda_same_text(&w[i], w)) {
            l[i].launched = true;
            same[n_same] = w[i];
            blocks[n_same++] = l[i].blocks;
        }
    if (n_same > 1)
        cuda_launch_add_list(same, n_same, blocks, plan, kernel, l->threads);
    else
        launch_alone(c, kernel, l, plan);
}

static void launch_list(cuda_compiler *c, const kl_kernel *kernel, cuda_loop *l, int n, cuda_plan *plan)
{
    cuda_writer *w = ARENA_NEW(c->arena, cuda_writer, n);
    for (int i = 0; i < n; i++) {
        write_loop(c, &l[i], &w[i], true);
        l[i].launched = l[i].blocks == 0;
    }
    for (int i = 0; i < n; i++)
        if (!l[i].launched)
            launch_first(c, kernel, &l[i], &w[i], n - i, plan);
    for (int i = 0; i < n; i++)
        cuda_writer_free(&w[i]);
}

/* Loops none of which touches what another writes. */
static void plan_loops(cuda_compiler *c, const kl_kernel *kernel, const kl_loop *loops, int n, int widest, cuda_plan *plan)
{
    cuda_loop *l = ARENA_NEW(c->arena, cuda_loop, n);
    for (int i = 0; i < n; i++) {
        l[i] = shaped(c, &loops[i], n > 1, widest);
        plan_sums(c, &l[i], plan);
    }
    if (n > 1)
        launch_list(c, kernel, l, n, plan);
    else
        launch_alone(c, kernel, l, plan);
    for (kl_output_kind kind = KL_SUM_OUTER; kind <= KL_SUM_ALL; kind++) {
        kl_loop *rest = ARENA_NEW(c->arena, kl_loop, n);
        int n_rest = 0;
        for (int i = 0; i < n; i++)
            if (kl_count_outputs(&l[i].loop, kind) > 0)
                rest[n_rest++] = kl_finish_sums(c->program, c->arena, &l[i].loop, kind, l[i].offset, l[i].row_blocks * (kind == KL_SUM_OUTER ? 1 : l[i].segments));
        if (n_rest > 0)
            plan_loops(c, kernel, rest, n_rest, n_rest > 1 ? 1 : widest, plan);      /* short rows of any length, which one text serves */
    }
}

bool cuda_plan_loop(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    plan_loops(c, kernel, &kernel->loop, 1, MOST_VECTOR, plan);
    return true;
}

bool cuda_plan_list(cuda_compiler *c, const kl_kernel *kernel, cuda_plan *plan)
{
    plan_loops(c, kernel, kernel->list.loops, kernel->list.n, MOST_VECTOR, plan);
    if (kernel->list.n > 1)
        plan->how = base_arena_text(c->arena, "%d loops at once", kernel->list.n);
    return true;
}
