/* Plans loops (loops.h says in what form): which axis the lanes run along, what is computed at which level of reductions, how the
 * work is cut into tasks, and the key of the code.
 *
 * All decisions follow from the kernel and the machine's lanes. Sums over outer axes are made in two phases: each task leaves partial
 * sums in workspace, and a second loop, made here as a kl_loop like any other, adds them up in order. */
#include "backend_cpu/loops.h"

#include <string.h>

/* Tasks beyond this many only cost; blocks of rows that a sum is made by cost workspace, too. */
enum { MAX_TASKS = 256, MAX_BLOCKS = 64 };
/* Segments of columns are multiples of this, so that tasks do not share cache lines; and no longer where random words are kept. */
enum { SEGMENT_UNIT = 1024, RANDOM_SEGMENT = 8192 };
/* What costs more than this is kept for later levels, in cpu_expression_cost's measure. */
#define KEEP_COST 6.0
#define NS_PER_COST 0.3

static int64_t divided_up(int64_t a, int64_t b) { return b ? (a + b - 1) / b : 0; }
static int64_t aligned(int64_t n, int64_t to) { return divided_up(n, to) * to; }

/* -- form -------------------------------------------------------------------------------------------------------------- */

static kl_view *view_of(kl_loop *loop, int i) { return i < loop->n_exprs ? &loop->exprs[i].view : &loop->outputs[i - loop->n_exprs].view; }

/* Axis `from` goes to `to`; those between make room. */
static void move_axis(kl_loop *loop, int from, int to)
{
    int step = from < to ? 1 : -1;
    for (int v = -1; v < loop->n_exprs + loop->n_outputs; v++) {
        int64_t *at = v < 0 ? loop->extent : view_of(loop, v)->stride, moved = at[from];
        for (int i = from; i != to; i += step)
            at[i] = at[i + step];
        at[to] = moved;
    }
}

/* What lanes along this axis cost for one element. Views that step by something else than 0 or 1 are gathered. */
static double lane_cost(const kl_loop *loop, int axis, int lanes)
{
    int64_t extent = loop->extent[axis];
    double vector = 2;
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        bool apart = e->view.stride[axis] != 0 && e->view.stride[axis] != 1;
        vector += e->kind == KL_OP ? kl_op_cost(e->op, e->dtype) : 1;
        vector += e->kind == KL_LOAD && apart ? 12 : e->kind == KL_RANDOM && e->view.stride[axis] != 1 ? 60 : 0;
    }
    for (int i = 0; i < loop->n_outputs; i++)
        vector += loop->outputs[i].view.stride[axis] != 0 && loop->outputs[i].view.stride[axis] != 1 ? 24 : 1;
    return vector * (double)divided_up(extent, lanes) / (double)MAX(extent, 1);
}

static int cheapest_axis(const kl_loop *loop, int from, int to, int lanes, double *cost)
{
    int best = to - 1;
    *cost = lane_cost(loop, best, lanes);
    for (int i = to - 2; i >= from; i--) {
        double here = lane_cost(loop, i, lanes);
        if (here < *cost) {
            *cost = here;
            best = i;
        }
    }
    return best;
}

/* Brings the loop into the order of axes that lanes like best. True where lanes are rows. */
static bool choose_lanes(kl_loop *loop, bool rows_matter, int lanes)
{
    double inner_cost, outer_cost;
    if (!rows_matter) {                                   /* no row, only elements: any order will do */
        move_axis(loop, cheapest_axis(loop, 0, loop->n_axes, lanes, &inner_cost), loop->n_axes - 1);
        loop->n_outer = loop->n_axes - 1;
        return false;
    }
    bool ordered = false;                                 /* argmax counts its places in the order of the axes */
    for (int i = 0; i < loop->n_exprs; i++)
        ordered |= loop->exprs[i].kind == KL_REDUCE && loop->exprs[i].op == OP_argmax;
    int inner = cheapest_axis(loop, ordered ? loop->n_axes - 1 : loop->n_outer, loop->n_axes, lanes, &inner_cost);
    if (loop->n_outer > 0 && !kl_count_outputs(loop, KL_SUM_OUTER)) {
        int outer = cheapest_axis(loop, 0, loop->n_outer, lanes, &outer_cost);
        if (outer_cost < inner_cost) {
            move_axis(loop, outer, loop->n_outer - 1);
            return true;
        }
    }
    move_axis(loop, inner, loop->n_axes - 1);
    return false;
}

/* -- levels ------------------------------------------------------------------------------------------------------------ */

/* Every expression that e needs directly. */
static int operands(const kl_expr *e, int *into)
{
    int n = 0;
    for (int i = 0; i < e->n_args; i++)
        into[n++] = e->args[i];
    for (int i = 0; i < e->view.n_dynamic; i++)
        into[n++] = e->view.dynamic[i].expr;
    return n;
}

enum { MAX_OPERANDS = KL_MAX_ARGS + 8 };

/* What computing it anew costs in the body, what is kept or in memory being there. */
static double cost_again(const cpu_loop_code *code, int expr)
{
    const cpu_expressions *x = code->x;
    int args[MAX_OPERANDS], n = operands(&x->loop.exprs[expr], args);
    if (x->depth[expr] != CPU_DEPTH_BODY)
        return 0;
    if (code->kept[expr] || code->run_arg[expr] >= 0)
        return 1;
    double sum = cpu_expression_cost(x, expr);
    for (int i = 0; i < n; i++)
        sum += cost_again(code, args[i]);
    return sum;
}

/* Expression expr is needed in the body at this level. */
static void need(cpu_loop_code *code, int expr, int level)
{
    const cpu_expressions *x = code->x;
    const kl_expr *e = &x->loop.exprs[expr];
    int args[MAX_OPERANDS], n = operands(e, args);
    if (x->depth[expr] != CPU_DEPTH_BODY || code->first[expr] == level)
        return;
    if (code->kept[expr])
        return;
    if (code->first[expr] >= 0 && (e->kind == KL_OP || e->kind == KL_RANDOM) && cost_again(code, expr) > KEEP_COST) {
        code->kept[expr] = true;
        return;
    }
    if (code->first[expr] < 0)
        code->first[expr] = level;
    for (int i = 0; i < n; i++)
        need(code, args[i], level);
}

/* Whether the elements of a unit are numbered one after another, so that their words are made in runs. */
static bool comes_in_runs(const cpu_loop_code *code, int expr)
{
    const cpu_expressions *x = code->x;
    const kl_loop *loop = &x->loop;
    const kl_expr *e = &loop->exprs[expr];
    int64_t next = 1;
    if (e->kind != KL_RANDOM || code->across_rows || x->views[expr].lanes != CPU_LANES_SIDE_BY_SIDE || e->view.n_dynamic)
        return false;
    for (int i = 0; i < e->n_args; i++)
        if (x->depth[e->args[i]] == CPU_DEPTH_BODY || code->level[e->args[i]] > 0)
            return false;
    if (code->level[expr] < 0)
        return false;
    for (int i = loop->n_axes - 1; i >= loop->n_outer; i--) {
        if (loop->extent[i] != 1 && e->view.stride[i] != next)
            return false;
        next *= loop->extent[i];
    }
    return true;
}

static int add_arg(cpu_compiler *c, cpu_plan *plan, const cpu_loop_code *code, int64_t v) { return cpu_arg(c, plan, v) - code->x->arg_base; }

static void plan_levels(cpu_compiler *c, cpu_plan *plan, cpu_loop_code *code)
{
    const kl_loop *loop = &code->x->loop;
    bool *used = ARENA_NEW(c->arena, bool, loop->n_exprs);
    code->level = ARENA_NEW(c->arena, int, loop->n_exprs);
    code->first = ARENA_NEW(c->arena, int, loop->n_exprs);
    code->kept = ARENA_NEW(c->arena, bool, loop->n_exprs);
    code->run_arg = ARENA_NEW(c->arena, int, loop->n_exprs);
    for (int i = 0; i < loop->n_outputs; i++)
        kl_need_expr(loop, loop->outputs[i].expr, used);
    for (int i = 0; i < loop->n_exprs; i++) {
        int args[MAX_OPERANDS], n = operands(&loop->exprs[i], args);
        code->first[i] = -1;
        for (int j = 0; j < n; j++)
            code->level[i] = MAX(code->level[i], code->level[args[j]]);
        code->level[i] += loop->exprs[i].kind == KL_REDUCE;
        if (!used[i])
            code->level[i] = -1;
        code->n_levels = MAX(code->n_levels, code->level[i] + 1);
    }
    for (int i = 0; i < loop->n_exprs; i++)
        code->run_arg[i] = comes_in_runs(code, i) ? add_arg(c, plan, code, 0) : -1;
    for (int level = 0; level < code->n_levels; level++) {
        for (int i = 0; i < loop->n_exprs; i++)
            if (loop->exprs[i].kind == KL_REDUCE && code->level[i] == level + 1)
                need(code, loop->exprs[i].args[0], level);
        for (int i = 0; i < loop->n_outputs && level == code->n_levels - 1; i++)
            if (!code->row_output[i]) {
                need(code, loop->outputs[i].expr, level);
                for (int j = 0; j < loop->outputs[i].view.n_dynamic; j++)
                    need(code, loop->outputs[i].view.dynamic[j].expr, level);
            }
    }
}

/* What one vector costs at a level. Each level computes anew what is not kept. */
static double level_cost(const cpu_loop_code *code, int level)
{
    const kl_loop *loop = &code->x->loop;
    double sum = 1;
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_REDUCE && code->level[i] == level + 1)
            sum += 1 + cost_again(code, loop->exprs[i].args[0]);
    for (int i = 0; i < loop->n_exprs; i++)
        if (code->first[i] == level && (code->kept[i] || code->run_arg[i] >= 0))
            sum += cpu_expression_cost(code->x, i);
    for (int i = 0; i < loop->n_outputs && level == code->n_levels - 1; i++)
        if (!code->row_output[i])
            sum += 1.5 + cost_again(code, loop->outputs[i].expr);
    return sum;
}

/* -- scratch ----------------------------------------------------------------------------------------------------------- */

/* Offsets in scratch. Whole vectors are written, and runs begin and end at whole blocks: hence the room behind. */
static void plan_scratch(cpu_compiler *c, cpu_plan *plan, cpu_loop_code *code, int64_t inner, int64_t segment)
{
    const kl_loop *loop = &code->x->loop;
    int64_t at = 0;
    code->keep_arg = ARENA_NEW(c->arena, int, loop->n_exprs);
    for (int i = 0; i < loop->n_exprs; i++) {
        code->keep_arg[i] = -1;
        if (code->run_arg[i] >= 0) {
            plan->args[code->x->arg_base + code->run_arg[i]] = at;
            at += aligned(4 * (segment + 8 + 4 * code->lanes), 64);
        }
        if (code->kept[i]) {
            code->keep_arg[i] = add_arg(c, plan, code, at);
            at += aligned((loop->exprs[i].dtype == IR_F64 ? 8 : 4) * (inner + code->lanes), 64);
        }
    }
    plan->scratch_bytes = MAX(plan->scratch_bytes, (size_t)at);
}

/* -- key ----------------------------------------------------------------------------------------------------------------- */

static base_text key_of(const cpu_loop_code *code)
{
    const kl_loop *loop = &code->x->loop;
    base_text key = {0};
    base_text_add(&key, "loop 1 outer %d %s lanes %d\n", loop->n_outer, code->across_rows ? "across rows" : "along a row", code->lanes);
    cpu_expressions_key(&key, code->x);
    base_text_add(&key, "\nlevels");
    for (int i = 0; i < code->n_levels; i++)
        base_text_add(&key, " %d", code->unroll[i]);
    for (int i = 0; i < loop->n_exprs; i++)
        base_text_add(&key, "%s%d%s%s", i ? " " : "\n", code->level[i], code->kept[i] ? "k" : "", code->run_arg[i] >= 0 ? "r" : "");
    base_text_add(&key, "\n");
    for (int i = 0; i < loop->n_outputs; i++)
        base_text_add(&key, "%s", code->row_output[i] ? "r" : "e");
    return key;
}

/* -- functions ----------------------------------------------------------------------------------------------------------- */

static bool plan_function(cpu_compiler *c, cpu_plan *plan, const kl_loop *from);

/* The second phase: the partial sums of tasks. */
static bool plan_finish(cpu_compiler *c, cpu_plan *plan, const kl_loop *loop, kl_output_kind kind, const int64_t *partial_offset, int64_t parts)
{
    kl_loop sum = kl_finish_sums(c->program, c->arena, loop, kind, partial_offset, parts);
    return sum.n_outputs == 0 || plan_function(c, plan, &sum);
}

/* Whether an f64 may differ from lane to lane: such vectors have half as many. One number for the whole loop is a scalar, whatever it is. */
static bool has_f64_lanes(const cpu_compiler *c, const kl_loop *loop)
{
    bool *moves = ARENA_NEW(c->arena, bool, loop->n_exprs), wide = false;
    for (int i = 0; i < loop->n_exprs; i++) {
        int args[MAX_OPERANDS], n = operands(&loop->exprs[i], args);
        for (int j = 0; j < n; j++)
            moves[i] |= moves[args[j]];
        for (int j = 0; j < loop->n_axes; j++)
            moves[i] |= loop->exprs[i].view.stride[j] != 0 && loop->extent[j] != 1;
        wide |= moves[i] && loop->exprs[i].dtype == IR_F64;
    }
    return wide;
}

/* Which outputs are of a row, and along which axis lanes lie. */
static void choose_form(const cpu_compiler *c, cpu_loop_code *code, kl_loop *loop)
{
    int64_t inner = kl_inner(loop);
    bool rows_matter = kl_has_expr(loop, KL_REDUCE);
    code->row_output = ARENA_NEW(c->arena, bool, loop->n_outputs);
    for (int i = 0; i < loop->n_outputs; i++) {
        if (loop->outputs[i].kind == KL_SUM_OUTER && inner == 1)
            loop->outputs[i].kind = KL_SUM_ALL;
        code->row_output[i] = kl_is_once_a_row(loop, &loop->outputs[i]);
        rows_matter |= code->row_output[i] || loop->outputs[i].kind == KL_SUM_OUTER;
    }
    code->lanes = c->machine->f32_lanes / (has_f64_lanes(c, loop) ? 2 : 1);
    code->across_rows = choose_lanes(loop, rows_matter, code->lanes);
}

static int unroll_for(double cost) { return cost <= 5 ? 4 : cost <= 10 ? 2 : 1; }

/* What a vector costs to run through all levels; *text_cost is what their code costs to make. */
static double plan_unrolls(const cpu_compiler *c, cpu_loop_code *code, double *text_cost)
{
    double vector = 0;
    *text_cost = 0;
    code->unroll = ARENA_NEW(c->arena, int, code->n_levels);
    for (int i = 0; i < code->n_levels; i++) {
        double cost = level_cost(code, i);
        code->unroll[i] = code->across_rows ? 1 : unroll_for(cost);
        vector += cost;
        *text_cost += cost * (code->unroll[i] + 1);
    }
    return vector;
}

/* A loop as blocks of units times segments of columns, a task each. By shape alone: sums are made in this order. */
typedef struct { int64_t inner, columns, units, per_task, blocks, segments, segment, tasks; double work; } division;

static division divide(const cpu_compiler *c, const cpu_loop_code *code, double vector)
{
    const kl_loop *loop = &code->x->loop;
    int64_t lanes = code->lanes, strip = loop->n_outer > 0 ? loop->extent[loop->n_outer - 1] : 1;
    division d = { .inner = kl_inner(loop), .columns = loop->extent[loop->n_axes - 1], .units = kl_rows(loop), .segments = 1 };
    bool across = code->across_rows, sums_rows = kl_count_outputs(loop, KL_SUM_OUTER) > 0, runs = false, any_row = false;
    for (int i = 0; i < loop->n_exprs; i++)
        runs |= code->run_arg[i] >= 0;
    for (int i = 0; i < loop->n_outputs; i++)
        any_row |= code->row_output[i];
    if (across)
        d.units = d.units / strip * divided_up(strip, lanes);
    double vectors = across ? (double)d.inner : (double)(d.inner / MAX(d.columns, 1)) * (double)divided_up(d.columns, lanes);
    d.work = (double)d.units * (vectors * vector + 20 * code->n_levels) * NS_PER_COST;

    int64_t wanted = (int64_t)MIN(MAX(d.work / c->grain.task_ns, 1), sums_rows ? MAX_BLOCKS : MAX_TASKS);
    bool whole = kl_has_expr(loop, KL_REDUCE) || any_row || (runs && d.inner != d.columns);      /* a unit must not be cut */
    d.segment = d.columns;
    if (!across && !whole && d.columns >= 2 * SEGMENT_UNIT) {
        d.segments = MIN(d.columns / SEGMENT_UNIT, sums_rows ? wanted : divided_up(wanted, MAX(d.units, 1)));
        d.segment = aligned(divided_up(d.columns, d.segments), SEGMENT_UNIT / 4);
        if (runs)
            d.segment = MIN(d.segment, RANDOM_SEGMENT);
        d.segments = divided_up(d.columns, d.segment);
    }
    d.blocks = MIN(MAX(wanted / d.segments, 1), MAX(d.units, 1));
    d.per_task = MAX(divided_up(d.units, d.blocks), 1);
    d.blocks = divided_up(d.units, d.per_task);
    d.tasks = d.blocks * d.segments;
    return d;
}

static void plan_extents(cpu_compiler *c, cpu_plan *plan, cpu_loop_code *code, const division *d)
{
    const kl_loop *loop = &code->x->loop;
    int strips = loop->n_outer - 1;
    code->units_arg = add_arg(c, plan, code, d->units);
    code->units_per_task_arg = add_arg(c, plan, code, d->per_task);
    code->segments_arg = add_arg(c, plan, code, d->segments);
    code->segment_arg = add_arg(c, plan, code, d->segment);
    code->inner_arg = add_arg(c, plan, code, d->inner);
    code->strip_rows_arg = code->across_rows ? add_arg(c, plan, code, loop->extent[strips]) : -1;
    for (int i = 0; i < loop->n_axes; i++)
        code->extent_arg[i] = add_arg(c, plan, code, code->across_rows && i == strips ? divided_up(loop->extent[i], code->lanes) : loop->extent[i]);
}

/* Workspace for the sums of each block or task; by output, where it begins. */
static int64_t *plan_partials(cpu_compiler *c, cpu_plan *plan, cpu_loop_code *code, const division *d, int base)
{
    const kl_loop *loop = &code->x->loop;
    int64_t *offset = ARENA_NEW(c->arena, int64_t, loop->n_outputs);
    code->partial_arg = ARENA_NEW(c->arena, int, loop->n_outputs);
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        code->partial_arg[i] = -1;
        if (o->kind == KL_STORE)
            continue;
        int64_t size = loop->exprs[o->expr].dtype == IR_F64 ? 8 : 4;
        offset[i] = (int64_t)plan->workspace_bytes;
        plan->workspace_bytes += (size_t)aligned(size * (o->kind == KL_SUM_OUTER ? d->blocks * d->inner : d->tasks), 64);
        kl_view view = { .buffer = c->program->n_buffers, .offset = offset[i] / size };
        code->partial_arg[i] = cpu_arg_view(c, plan, &view, size == 8 ? IR_F64 : IR_F32) - base;
    }
    return offset;
}

static bool plan_phases(cpu_compiler *c, cpu_plan *plan, const kl_loop *from)
{
    cpu_loop_code *code = ARENA_NEW(c->arena, cpu_loop_code, 1);
    kl_loop loop = kl_copy_loop(c->arena, from, 0);
    kl_merge_axes(&loop);
    if (kl_rows(&loop) * kl_inner(&loop) == 0)
        return plan_finish(c, plan, &loop, KL_SUM_OUTER, NULL, 0) && plan_finish(c, plan, &loop, KL_SUM_ALL, NULL, 0);
    if (loop.n_outer == loop.n_axes) {                     /* a row has something inside */
        CHECK(loop.n_axes < KL_MAX_AXES, "expected a loop of fewer axes than %d", loop.n_axes);
        loop.extent[loop.n_axes++] = 1;
    }
    choose_form(c, code, &loop);

    int base = plan->n_args;
    double text_cost;
    code->x = cpu_expressions_plan(c, plan, &loop, loop.n_outer, code->across_rows ? loop.n_outer - 1 : loop.n_axes - 1, base);
    plan_levels(c, plan, code);
    division d = divide(c, code, plan_unrolls(c, code, &text_cost));
    plan_extents(c, plan, code, &d);
    plan_scratch(c, plan, code, code->across_rows ? d.inner * code->lanes : d.inner, d.inner / MAX(d.columns, 1) * d.segment);
    int64_t *partial_offset = plan_partials(c, plan, code, &d, base);
    code->n_args = plan->n_args - base;

    base_text key = key_of(code);
    CHECK(plan->n_phases < CPU_MAX_PHASES, "expected a loop of fewer phases than %d", plan->n_phases);
    plan->phases[plan->n_phases++] = (cpu_phase){ .function = cpu_request_code(c, key.at, 40 + 12 * text_cost, cpu_emit_loop, code), .arg_base = base,
                                                  .tasks = d.tasks, .work = d.work };
    base_text_free(&key);
    bool sums = kl_count_outputs(&loop, KL_SUM_OUTER) || kl_count_outputs(&loop, KL_SUM_ALL);
    return !sums || (plan_finish(c, plan, &loop, KL_SUM_OUTER, partial_offset, d.blocks) &&
                     plan_finish(c, plan, &loop, KL_SUM_ALL, partial_offset, d.tasks));
}

/* Most loops ask for code that an earlier one has asked for: of what was planned then, only the arguments are kept. */
static bool plan_function(cpu_compiler *c, cpu_plan *plan, const kl_loop *from)
{
    base_arena_mark before = base_arena_now(c->arena);
    int n_requests = c->n_requests;
    bool planned = plan_phases(c, plan, from);
    if (planned && c->n_requests == n_requests && c->args != c->arena)
        base_arena_rewind(c->arena, before);
    return planned;
}

bool cpu_plan_loop(cpu_compiler *c, const kl_kernel *kernel, cpu_plan *plan) { return plan_function(c, plan, &kernel->loop); }

/* The loops of a list have tasks of their own, of the same functions, and their phases fall together. */
bool cpu_plan_list(cpu_compiler *c, const kl_kernel *kernel, cpu_plan *plan)
{
    const kl_list *list = &kernel->list;
    plan->n_parts = list->n;
    plan->parts = ARENA_NEW(c->arena, cpu_plan, list->n);
    for (int i = 0; i < list->n; i++) {
        cpu_plan *part = &plan->parts[i];
        if (!plan_function(c, part, &list->loops[i]))
            return false;
        for (int j = 0; j < part->n_workspace_args; j++)
            part->args[part->workspace_args[j]] += (int64_t)plan->workspace_bytes;
        plan->workspace_bytes += part->workspace_bytes;
        plan->scratch_bytes = MAX(plan->scratch_bytes, part->scratch_bytes);
        plan->n_phases = MAX(plan->n_phases, part->n_phases);
    }
    return true;
}
