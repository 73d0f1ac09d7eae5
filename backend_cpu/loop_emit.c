/* The code of a loop, from loops.c's plan of it:
 *
 *   entry    arguments, and what holds for the whole task
 *   for each unit of the task
 *       runs of random words, to scratch
 *       for each level
 *           what holds for the unit, as far as this level's code asks for it
 *           for each place inside, lanes side by side: reductions, or outputs
 *           the reductions' lanes put together
 *       outputs of the row
 *   partial sums to workspace
 *
 * Counters and accumulators are kept in memory; the first pass of the pipeline makes registers of them. The vectors of a row are
 * taken several at a time, and the last ones one at a time with a mask, which costs nothing where all lanes are on and gives the
 * same bits. */
#include "backend_cpu/loops.h"

#include <math.h>

typedef LLVMValueRef value;

/* Several accumulators, so that an addition need not wait for the one before it. They are put together in order. */
enum { MAX_UNROLL = 4 };
typedef struct { value value[MAX_UNROLL], place[MAX_UNROLL]; LLVMTypeRef type; } accumulator;       /* place: of argmax */

typedef struct {
    const cpu_loop_code *code;
    const kl_loop *loop;
    cpu_emitter e;
    value function, scratch;
    LLVMBuilderRef b;                        /* the body's */
    value segment_from, segment_to;          /* along the last axis */
    value block, task;
    value unit_index[KL_MAX_AXES];           /* counters of the outer axes */
    accumulator *reductions;                 /* by expression */
    accumulator *sums;                       /* by output */
    value *partials;                         /* by output: pointer, where a task's partial sums are */
    value *run_shift;                        /* by expression: what is added to a place's number to find its random word */
    value row_base;                          /* the number of the place where the innermost axis begins */
} emission;

/* -- small things ---------------------------------------------------------------------------------------------------------- */

static LLVMContextRef llvm_of(const emission *m) { return m->e.entry.context; }
static LLVMTypeRef i64_type(const emission *m) { return LLVMInt64TypeInContext(llvm_of(m)); }
static value number(const emission *m, int64_t n) { return LLVMConstInt(i64_type(m), (uint64_t)n, 1); }
static value arg(emission *m, int i) { return cpu_emit_arg(&m->e, i); }

static value variable(emission *m, LLVMTypeRef type) { return LLVMBuildAlloca(m->e.entry.builder, type, ""); }
static value get(emission *m, LLVMTypeRef type, value variable) { return LLVMBuildLoad2(m->b, type, variable, ""); }
static value get64(emission *m, value variable) { return get(m, i64_type(m), variable); }
static void set(emission *m, value variable, value x) { LLVMBuildStore(m->b, x, variable); }

static LLVMBasicBlockRef new_block(emission *m) { return LLVMAppendBasicBlockInContext(llvm_of(m), m->function, ""); }

/* Unit code that is asked for from here on goes to the end of the present block; the body goes on in a new one. */
static void begin_unit_place(emission *m)
{
    LLVMBasicBlockRef next = new_block(m);
    LLVMPositionBuilderBefore(m->e.unit.builder, LLVMBuildBr(m->b, next));
    LLVMPositionBuilderAtEnd(m->b, next);
}

typedef struct { LLVMBasicBlockRef head, exit; value counter; int64_t step; } open_loop;

/* while (counter + (step - 1) < to): body; counter += step. */
static open_loop begin_loop(emission *m, value counter, value to, int64_t step)
{
    open_loop l = { new_block(m), NULL, counter, step };
    LLVMBasicBlockRef body = new_block(m);
    l.exit = new_block(m);
    LLVMBuildBr(m->b, l.head);
    LLVMPositionBuilderAtEnd(m->b, l.head);
    value last = get64(m, counter);
    if (step > 1)
        last = LLVMBuildAdd(m->b, last, number(m, step - 1), "");
    LLVMBuildCondBr(m->b, LLVMBuildICmp(m->b, LLVMIntSLT, last, to, ""), body, l.exit);
    LLVMPositionBuilderAtEnd(m->b, body);
    return l;
}

static void end_loop(emission *m, open_loop l)
{
    set(m, l.counter, LLVMBuildAdd(m->b, get64(m, l.counter), number(m, l.step), ""));
    LLVMBuildBr(m->b, l.head);
    LLVMPositionBuilderAtEnd(m->b, l.exit);
}

static LLVMTypeRef lanes_of(const emission *m, LLVMTypeRef element, bool vector) { return vector ? cpu_vtype(&m->e.body, element) : element; }

static value spread(emission *m, value x) { return LLVMGetTypeKind(LLVMTypeOf(x)) == LLVMVectorTypeKind ? x : cpu_vsplat(&m->e.body, x); }

static value constant_like(emission *m, LLVMTypeRef type, double x)
{
    return cpu_vconst(&m->e.body, LLVMConstNull(type), x);
}

static bool is_float(LLVMTypeRef type)
{
    LLVMTypeKind kind = LLVMGetTypeKind(LLVMGetTypeKind(type) == LLVMVectorTypeKind ? LLVMGetElementType(type) : type);
    return kind == LLVMFloatTypeKind || kind == LLVMDoubleTypeKind;
}

static value added(emission *m, value x, value y)
{
    return is_float(LLVMTypeOf(x)) ? LLVMBuildFAdd(m->b, x, y, "") : LLVMBuildAdd(m->b, x, y, "");
}

/* -- accumulators ---------------------------------------------------------------------------------------------------------- */

static value identity(emission *m, ir_op op, LLVMTypeRef type)
{
    if (op == OP_reduce_sum)
        return LLVMConstNull(type);
    return constant_like(m, type, is_float(type) ? -INFINITY : (double)INT32_MIN);
}

static void start(emission *m, accumulator *a, ir_op op, int n)
{
    for (int i = 0; i < n; i++) {
        set(m, a->value[i], identity(m, op, a->type));
        if (op == OP_argmax)
            set(m, a->place[i], LLVMConstNull(LLVMGetAllocatedType(a->place[i])));
    }
}

static accumulator new_accumulator(emission *m, ir_op op, ir_dtype dtype, bool vector, int n)
{
    accumulator a = { .type = lanes_of(m, cpu_register_type(llvm_of(m), dtype), vector) };
    for (int i = 0; i < n; i++) {
        a.value[i] = variable(m, a.type);
        if (op == OP_argmax)
            a.place[i] = variable(m, lanes_of(m, LLVMInt32TypeInContext(llvm_of(m)), vector));
    }
    return a;
}

static value both(emission *m, value x, value y) { return LLVMBuildAnd(m->b, x, y, ""); }
static value either(emission *m, value x, value y) { return LLVMBuildOr(m->b, x, y, ""); }
static value chosen(emission *m, value which, value yes, value no) { return LLVMBuildSelect(m->b, which, yes, no, ""); }

/* Whether y goes before x as a maximum: greater, or the first NaN. */
static value is_greater(emission *m, value y, value x)
{
    if (!is_float(LLVMTypeOf(x)))
        return LLVMBuildICmp(m->b, LLVMIntSGT, y, x, "");
    value number = LLVMBuildFCmp(m->b, LLVMRealORD, x, x, "");
    return both(m, number, LLVMBuildFCmp(m->b, LLVMRealUGT, y, x, ""));
}

typedef struct { value value, place; } extremum;

static extremum merged(emission *m, ir_op op, extremum x, extremum y)
{
    if (op == OP_reduce_sum)
        return (extremum){ added(m, x.value, y.value), NULL };
    if (op == OP_reduce_max)
        return (extremum){ cpu_emit_max(&m->e.body, x.value, y.value), NULL };
    value first = is_greater(m, y.value, x.value), back = is_greater(m, x.value, y.value);
    value tie = LLVMBuildNot(m->b, either(m, first, back), "");
    first = either(m, first, both(m, tie, LLVMBuildICmp(m->b, LLVMIntSLT, y.place, x.place, "")));
    return (extremum){ chosen(m, first, y.value, x.value), chosen(m, first, y.place, x.place) };
}

static value half_of(emission *m, value x, int first, int n)
{
    value index[64];
    LLVMTypeRef i32 = LLVMInt32TypeInContext(llvm_of(m));
    for (int i = 0; i < n; i++)
        index[i] = LLVMConstInt(i32, (unsigned)(first + i), 0);
    return LLVMBuildShuffleVector(m->b, x, LLVMGetPoison(LLVMTypeOf(x)), LLVMConstVector(index, (unsigned)n), "");
}

static value only_lane(emission *m, value x)
{
    return LLVMBuildExtractElement(m->b, x, LLVMConstInt(LLVMInt32TypeInContext(llvm_of(m)), 0, 0), "");
}

/* All accumulators as one, and along a row all lanes as one. */
static extremum finished(emission *m, const accumulator *a, ir_op op, int n, bool fold_lanes)
{
    LLVMTypeRef place_type = a->place[0] ? LLVMGetAllocatedType(a->place[0]) : NULL;
    extremum x[MAX_UNROLL];
    for (int i = 0; i < n; i++)
        x[i] = (extremum){ get(m, a->type, a->value[i]), place_type ? get(m, place_type, a->place[i]) : NULL };
    for (int step = 1; step < n; step *= 2)
        for (int i = 0; i + step < n; i += 2 * step)
            x[i] = merged(m, op, x[i], x[i + step]);
    if (!fold_lanes || LLVMGetTypeKind(a->type) != LLVMVectorTypeKind)
        return x[0];
    for (int lanes = (int)LLVMGetVectorSize(a->type); lanes > 1; lanes /= 2) {
        int half = lanes / 2;
        extremum low = { half_of(m, x[0].value, 0, half), place_type ? half_of(m, x[0].place, 0, half) : NULL };
        extremum high = { half_of(m, x[0].value, half, half), place_type ? half_of(m, x[0].place, half, half) : NULL };
        x[0] = merged(m, op, low, high);
    }
    return (extremum){ only_lane(m, x[0].value), place_type ? only_lane(m, x[0].place) : NULL };
}

/* -- one place of the body ------------------------------------------------------------------------------------------------- */

/* The number of the place in the row, row-major over the inner axes; along a row of lane 0. */
static value place_number(emission *m)
{
    return m->code->across_rows ? m->row_base : LLVMBuildAdd(m->b, m->row_base, m->e.index[m->loop->n_axes - 1], "");
}

static value scratch_at(emission *m, value offset, LLVMTypeRef element, value index)
{
    value at = LLVMBuildGEP2(m->b, LLVMInt8TypeInContext(llvm_of(m)), m->scratch, &offset, 1, "");
    return LLVMBuildGEP2(m->b, element, at, &index, 1, "");
}

/* What is kept lies in scratch in registers' form, but for bools. */
static LLVMTypeRef kept_type(const emission *m, ir_dtype dtype)
{
    return dtype == IR_BOOL ? LLVMInt8TypeInContext(llvm_of(m)) : cpu_register_type(llvm_of(m), dtype);
}

static value kept_at(emission *m, int expr)
{
    value index = place_number(m);
    if (m->code->across_rows)
        index = LLVMBuildMul(m->b, index, number(m, m->code->lanes), "");
    return scratch_at(m, arg(m, m->code->keep_arg[expr]), kept_type(m, m->loop->exprs[expr].dtype), index);
}

static void keep(emission *m, int expr)
{
    ir_dtype dtype = m->loop->exprs[expr].dtype;
    value x = cpu_eval_vector(&m->e, expr);
    if (dtype == IR_BOOL)
        x = cpu_to_memory(&m->e.body, dtype, x);
    cpu_vstore(&m->e.body, x, kept_at(m, expr), NULL);
}

/* What an earlier level has left for this one, and random words. */
static void recall(emission *m, int level)
{
    for (int i = 0; i < m->loop->n_exprs; i++) {
        ir_dtype dtype = m->loop->exprs[i].dtype;
        if (m->code->kept[i] && m->code->first[i] < level) {
            value x = cpu_vload(&m->e.body, kept_type(m, dtype), kept_at(m, i), NULL);
            m->e.values[i].value = dtype == IR_BOOL ? cpu_from_memory(&m->e.body, dtype, x) : x;
        } else if (m->code->run_arg[i] >= 0 && m->code->first[i] >= 0) {
            LLVMTypeRef i32 = LLVMInt32TypeInContext(llvm_of(m));
            value index = LLVMBuildAdd(m->b, place_number(m), m->run_shift[i], "");
            m->e.values[i].value = cpu_vload(&m->e.body, i32, scratch_at(m, arg(m, m->code->run_arg[i]), i32, index), NULL);
        }
    }
}

static value masked(emission *m, value x, ir_op op)
{
    if (!m->e.mask)
        return x;
    x = spread(m, x);
    return chosen(m, m->e.mask, x, identity(m, op, LLVMTypeOf(x)));
}

static void reduce(emission *m, int expr, int copy)
{
    const kl_expr *e = &m->loop->exprs[expr];
    accumulator *a = &m->reductions[expr];
    bool vector = LLVMGetTypeKind(a->type) == LLVMVectorTypeKind, along = !m->code->across_rows;
    value x = vector ? cpu_eval_vector(&m->e, e->args[0]) : cpu_eval(&m->e, e->args[0]).value;
    value old = get(m, a->type, a->value[copy]);
    if (e->op != OP_argmax) {
        if (along)
            x = masked(m, x, e->op);
        set(m, a->value[copy], merged(m, e->op, (extremum){ old, NULL }, (extremum){ x, NULL }).value);
        return;
    }
    LLVMTypeRef i32 = LLVMInt32TypeInContext(llvm_of(m)), place_type = LLVMGetAllocatedType(a->place[copy]);
    value place = LLVMBuildTrunc(m->b, place_number(m), i32, "");
    if (vector)
        place = cpu_vsplat(&m->e.body, place);
    if (along)
        place = LLVMBuildAdd(m->b, place, cpu_lane_numbers(&m->e.body, i32), "");
    value first = is_greater(m, x, old);
    if (along && m->e.mask)
        first = both(m, first, m->e.mask);
    set(m, a->value[copy], chosen(m, first, x, old));
    set(m, a->place[copy], chosen(m, first, place, get(m, place_type, a->place[copy])));
}

static void add_to_sum(emission *m, int output, int copy)
{
    const kl_output *o = &m->loop->outputs[output];
    bool of_row = m->code->row_output[output] && !m->code->across_rows;
    if (o->kind == KL_SUM_ALL) {
        accumulator *a = &m->sums[output];
        value x = of_row ? cpu_eval(&m->e, o->expr).value : masked(m, cpu_eval_vector(&m->e, o->expr), OP_reduce_sum);
        set(m, a->value[copy], added(m, get(m, a->type, a->value[copy]), x));
        return;
    }
    value x = cpu_eval_vector(&m->e, o->expr), index = place_number(m);
    LLVMTypeRef element = LLVMGetElementType(LLVMTypeOf(x));
    value at = LLVMBuildGEP2(m->b, element, m->partials[output], &index, 1, "");
    cpu_vstore(&m->e.body, added(m, cpu_vload(&m->e.body, element, at, m->e.mask), x), at, m->e.mask);
}

static void emit_place(emission *m, int level, int copy)
{
    const kl_loop *loop = m->loop;
    const cpu_loop_code *code = m->code;
    cpu_emitter_next_place(&m->e);
    recall(m, level);
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_REDUCE && code->level[i] == level + 1)
            reduce(m, i, copy);
    bool last = level == code->n_levels - 1;
    for (int i = 0; i < loop->n_outputs && last; i++)      /* an output may take the place of what another one reads */
        if (!code->row_output[i])
            cpu_eval(&m->e, loop->outputs[i].expr);
    for (int i = 0; i < loop->n_exprs; i++)
        if (code->kept[i] && code->first[i] == level)
            keep(m, i);
    for (int i = 0; i < loop->n_outputs && last; i++) {
        if (code->row_output[i])
            continue;
        if (loop->outputs[i].kind == KL_STORE)
            cpu_emit_store(&m->e, i, false);
        else
            add_to_sum(m, i, copy);
    }
}

/* -- the inside of a unit ---------------------------------------------------------------------------------------------------- */

typedef struct { open_loop loops[KL_MAX_AXES]; int n; } nest;

/* Loops over inner axes but those that lanes run along; sets their indices and row_base. */
static nest begin_nest(emission *m)
{
    const kl_loop *loop = m->loop;
    nest inside = { .n = 0 };
    int to = m->code->across_rows ? loop->n_axes : loop->n_axes - 1;
    m->row_base = number(m, 0);
    for (int i = loop->n_outer; i < to; i++) {
        value counter = variable(m, i64_type(m));
        set(m, counter, number(m, 0));
        inside.loops[inside.n++] = begin_loop(m, counter, arg(m, m->code->extent_arg[i]), 1);
        m->e.index[i] = get64(m, counter);
        if (i > loop->n_outer)
            m->row_base = LLVMBuildMul(m->b, m->row_base, arg(m, m->code->extent_arg[i]), "");
        m->row_base = i > loop->n_outer ? LLVMBuildAdd(m->b, m->row_base, m->e.index[i], "") : m->e.index[i];
    }
    if (!m->code->across_rows && to > loop->n_outer)
        m->row_base = LLVMBuildMul(m->b, m->row_base, arg(m, m->code->extent_arg[to]), "");
    return inside;
}

static void end_nest(emission *m, nest inside)
{
    for (int i = inside.n - 1; i >= 0; i--)
        end_loop(m, inside.loops[i]);
}

/* The vectors of the segment, unroll at a time and then one at a time under a mask. */
static void over_vectors(emission *m, int unroll, void (*place)(emission *m, int level, int copy), int level)
{
    int axis = m->loop->n_axes - 1, lanes = m->code->lanes;
    value counter = variable(m, i64_type(m));
    set(m, counter, m->segment_from);
    open_loop many = begin_loop(m, counter, m->segment_to, (int64_t)unroll * lanes);
    value first = get64(m, counter);
    m->e.mask = m->e.last_lane = NULL;
    for (int i = 0; i < unroll; i++) {
        m->e.index[axis] = i ? LLVMBuildAdd(m->b, first, number(m, (int64_t)i * lanes), "") : first;
        place(m, level, i);
    }
    end_loop(m, many);
    open_loop rest = begin_loop(m, counter, m->segment_to, 1);
    rest.step = lanes;
    m->e.index[axis] = get64(m, counter);
    value left = LLVMBuildSub(m->b, m->segment_to, m->e.index[axis], "");
    m->e.mask = cpu_vmask(&m->e.body, left);
    value full = number(m, lanes - 1), last = LLVMBuildSub(m->b, left, number(m, 1), "");
    m->e.last_lane = chosen(m, LLVMBuildICmp(m->b, LLVMIntSLT, last, full, ""), last, full);
    place(m, level, 0);
    m->e.mask = m->e.last_lane = NULL;
    end_loop(m, rest);
}

static void clear_partials(emission *m, int level, int copy)
{
    (void)level, (void)copy;
    for (int i = 0; i < m->loop->n_outputs; i++) {
        if (m->loop->outputs[i].kind != KL_SUM_OUTER)
            continue;
        LLVMTypeRef element = cpu_register_type(llvm_of(m), m->loop->exprs[m->loop->outputs[i].expr].dtype);
        value index = place_number(m), at = LLVMBuildGEP2(m->b, element, m->partials[i], &index, 1, "");
        cpu_vstore(&m->e.body, LLVMConstNull(cpu_vtype(&m->e.body, element)), at, m->e.mask);
    }
}

static bool has_work(const emission *m, int level)
{
    for (int i = 0; i < m->loop->n_exprs; i++)
        if (m->loop->exprs[i].kind == KL_REDUCE && m->code->level[i] == level + 1)
            return true;
    for (int i = 0; i < m->loop->n_outputs && level == m->code->n_levels - 1; i++)
        if (!m->code->row_output[i])
            return true;
    return false;
}

static void emit_level(emission *m, int level)
{
    const kl_loop *loop = m->loop;
    const cpu_loop_code *code = m->code;
    int unroll = code->unroll[level];
    if (!has_work(m, level))
        return;
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_REDUCE && code->level[i] == level + 1) {
            const kl_expr *e = &loop->exprs[i];
            bool vector = !code->across_rows || code->x->varies[i];
            m->reductions[i] = new_accumulator(m, e->op, loop->exprs[e->args[0]].dtype, vector, unroll);
            start(m, &m->reductions[i], e->op, unroll);
        }
    begin_unit_place(m);
    nest inside = begin_nest(m);
    if (code->across_rows)
        emit_place(m, level, 0);
    else
        over_vectors(m, unroll, emit_place, level);
    end_nest(m, inside);
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_REDUCE && code->level[i] == level + 1) {
            const kl_expr *e = &loop->exprs[i];
            extremum x = finished(m, &m->reductions[i], e->op, unroll, !code->across_rows);
            value y = e->op == OP_argmax ? x.place : x.value;
            if (e->dtype == IR_BF16 && e->op == OP_reduce_sum)
                y = cpu_round_bf16(&m->e.body, y);
            m->e.values[i] = (cpu_value){ .value = y };
        }
}

/* Words of the unit's elements, in blocks of four from the first's on. */
static void emit_random_run(emission *m, int expr)
{
    const kl_expr *e = &m->loop->exprs[expr];
    LLVMTypeRef i32 = LLVMInt32TypeInContext(llvm_of(m));
    const cpu_vector_env *v = &m->e.body;
    int lanes = m->code->lanes;
    begin_unit_place(m);
    value first = LLVMBuildAdd(m->b, cpu_emit_unit_element(&m->e, expr), m->segment_from, "");
    value block = LLVMBuildLShr(m->b, first, number(m, 2), "");
    value skipped = LLVMBuildAnd(m->b, first, number(m, 3), "");
    value count = m->loop->n_axes - m->loop->n_outer > 1 ? arg(m, m->code->inner_arg) : LLVMBuildSub(m->b, m->segment_to, m->segment_from, "");
    value key[2] = { cpu_eval(&m->e, e->args[0]).value, cpu_eval(&m->e, e->args[1]).value }, step = cpu_eval(&m->e, e->args[2]).value, words[4];
    value site = LLVMBuildTrunc(m->b, arg(m, m->code->x->value_arg[expr]), i32, "");
    value counter = variable(m, i64_type(m));
    set(m, counter, number(m, 0));
    open_loop l = begin_loop(m, counter, LLVMBuildAdd(m->b, count, skipped, ""), 1);
    l.step = 4 * lanes;
    value at = get64(m, counter);
    value from = LLVMBuildAdd(m->b, block, LLVMBuildLShr(m->b, at, number(m, 2), ""), "");
    cpu_emit_random_run(v, from, key, site, step, words);
    for (int i = 0; i < 4; i++) {
        value index = LLVMBuildAdd(m->b, at, number(m, (int64_t)i * lanes), "");
        cpu_vstore(v, words[i], scratch_at(m, arg(m, m->code->run_arg[expr]), i32, index), NULL);
    }
    end_loop(m, l);
    m->run_shift[expr] = LLVMBuildSub(m->b, skipped, m->segment_from, "");
}

/* -- units ------------------------------------------------------------------------------------------------------------------- */

/* Counters of the outer axes at the task's first unit. */
static void begin_units(emission *m, value first)
{
    value rest = first;
    for (int i = m->loop->n_outer - 1; i >= 0; i--) {
        m->unit_index[i] = variable(m, i64_type(m));
        value extent = arg(m, m->code->extent_arg[i]);
        set(m, m->unit_index[i], i > 0 ? LLVMBuildURem(m->b, rest, extent, "") : rest);
        if (i > 0)
            rest = LLVMBuildUDiv(m->b, rest, extent, "");
    }
}

static void next_unit(emission *m)
{
    value carry = number(m, 1);
    for (int i = m->loop->n_outer - 1; i >= 0; i--) {
        value next = LLVMBuildAdd(m->b, get64(m, m->unit_index[i]), carry, "");
        if (i > 0) {
            value wraps = LLVMBuildICmp(m->b, LLVMIntEQ, next, arg(m, m->code->extent_arg[i]), "");
            next = chosen(m, wraps, number(m, 0), next);
            set(m, m->unit_index[i], next);
            carry = LLVMBuildZExt(m->b, wraps, i64_type(m), "");
        } else {
            set(m, m->unit_index[i], next);
        }
    }
}

static void set_unit_place(emission *m)
{
    int strips = m->loop->n_outer - 1;
    for (int i = 0; i < m->loop->n_outer; i++)
        m->e.index[i] = get64(m, m->unit_index[i]);
    if (!m->code->across_rows)
        return;
    m->e.index[strips] = LLVMBuildMul(m->b, m->e.index[strips], number(m, m->code->lanes), "");
    value left = LLVMBuildSub(m->b, arg(m, m->code->strip_rows_arg), m->e.index[strips], "");
    value full = number(m, m->code->lanes - 1), last = LLVMBuildSub(m->b, left, number(m, 1), "");
    m->e.mask = cpu_vmask(&m->e.body, left);
    m->e.last_lane = chosen(m, LLVMBuildICmp(m->b, LLVMIntSLT, last, full, ""), last, full);
}

static void emit_row_outputs(emission *m)
{
    bool any = false;
    for (int i = 0; i < m->loop->n_outputs; i++)
        any |= m->code->row_output[i];
    if (!any)
        return;
    cpu_emitter_next_place(&m->e);
    begin_unit_place(m);
    for (int i = 0; i < m->loop->n_outputs; i++)
        if (m->code->row_output[i])
            cpu_eval(&m->e, m->loop->outputs[i].expr);
    for (int i = 0; i < m->loop->n_outputs; i++)
        if (m->code->row_output[i] && m->loop->outputs[i].kind == KL_STORE)
            cpu_emit_store(&m->e, i, true);
        else if (m->code->row_output[i])
            add_to_sum(m, i, 0);
}

static int sum_copies(const cpu_loop_code *code, int output) { return code->row_output[output] ? 1 : code->unroll[code->n_levels - 1]; }

/* Where each task leaves its sums: columns of its block, or one number. */
static void begin_sums(emission *m)
{
    bool columns = false;
    for (int i = 0; i < m->loop->n_outputs; i++) {
        const kl_output *o = &m->loop->outputs[i];
        ir_dtype dtype = m->loop->exprs[o->expr].dtype;
        if (o->kind == KL_STORE)
            continue;
        LLVMTypeRef element = cpu_register_type(llvm_of(m), dtype);
        value base = cpu_emit_base(&m->e, m->code->partial_arg[i]), index = m->task;
        if (o->kind == KL_SUM_OUTER)
            index = LLVMBuildMul(m->b, m->block, arg(m, m->code->inner_arg), "");
        m->partials[i] = LLVMBuildGEP2(m->b, element, base, &index, 1, "");
        columns |= o->kind == KL_SUM_OUTER;
        if (o->kind == KL_SUM_ALL) {
            bool vector = m->code->across_rows || !m->code->row_output[i];
            m->sums[i] = new_accumulator(m, OP_reduce_sum, dtype, vector, sum_copies(m->code, i));
            start(m, &m->sums[i], OP_reduce_sum, sum_copies(m->code, i));
        }
    }
    if (columns) {
        nest inside = begin_nest(m);
        over_vectors(m, 1, clear_partials, 0);
        end_nest(m, inside);
    }
}

static void end_sums(emission *m)
{
    for (int i = 0; i < m->loop->n_outputs; i++)
        if (m->loop->outputs[i].kind == KL_SUM_ALL)
            LLVMBuildStore(m->b, finished(m, &m->sums[i], OP_reduce_sum, sum_copies(m->code, i), true).value, m->partials[i]);
}

/* -- the function -------------------------------------------------------------------------------------------------------------- */

static value least(emission *m, value x, value y) { return chosen(m, LLVMBuildICmp(m->b, LLVMIntSLT, x, y, ""), x, y); }

static void emit_task(emission *m)
{
    const cpu_loop_code *code = m->code;
    value segments = arg(m, code->segments_arg), per_task = arg(m, code->units_per_task_arg), segment = arg(m, code->segment_arg);
    m->block = LLVMBuildUDiv(m->b, m->task, segments, "");
    value part = LLVMBuildSub(m->b, m->task, LLVMBuildMul(m->b, m->block, segments, ""), "");
    m->segment_from = LLVMBuildMul(m->b, part, segment, "");
    m->segment_to = LLVMBuildAdd(m->b, m->segment_from, segment, "");
    if (!code->across_rows)
        m->segment_to = least(m, m->segment_to, arg(m, code->extent_arg[m->loop->n_axes - 1]));
    value first = LLVMBuildMul(m->b, m->block, per_task, "");
    value all = arg(m, code->units_arg), end = least(m, LLVMBuildAdd(m->b, first, per_task, ""), all);

    begin_sums(m);
    begin_units(m, first);
    value unit = variable(m, i64_type(m));
    set(m, unit, first);
    open_loop units = begin_loop(m, unit, end, 1);
    set_unit_place(m);
    for (int i = 0; i < m->loop->n_exprs; i++)
        if (code->run_arg[i] >= 0 && code->first[i] >= 0)
            emit_random_run(m, i);
    for (int level = 0; level < code->n_levels; level++)
        emit_level(m, level);
    emit_row_outputs(m);
    next_unit(m);
    end_loop(m, units);
    end_sums(m);
    LLVMBuildRetVoid(m->b);
}

void cpu_emit_loop(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    const cpu_loop_code *code = context;
    LLVMContextRef llvm = LLVMGetModuleContext(module);
    base_arena *scratch = base_arena_new();
    emission m = { .code = code, .loop = &code->x->loop };
    m.function = LLVMAddFunction(module, name, cpu_task_type(module));
    LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(llvm, m.function, "entry");
    LLVMBasicBlockRef first = LLVMAppendBasicBlockInContext(llvm, m.function, "");
    cpu_vector_env env = { .context = llvm, .module = module, .isa = machine->isa, .lanes = code->lanes };
    m.e.entry = m.e.unit = m.e.body = env;
    m.e.entry.builder = LLVMCreateBuilderInContext(llvm);
    m.e.unit.builder = LLVMCreateBuilderInContext(llvm);
    m.b = m.e.body.builder = LLVMCreateBuilderInContext(llvm);
    LLVMPositionBuilderAtEnd(m.b, entry);
    LLVMPositionBuilderBefore(m.e.entry.builder, LLVMBuildBr(m.b, first));
    LLVMPositionBuilderAtEnd(m.b, first);
    m.e.args = LLVMGetParam(m.function, 0);
    m.e.buffers = LLVMGetParam(m.function, 1);
    m.task = LLVMGetParam(m.function, 2);
    m.scratch = LLVMGetParam(m.function, 3);
    cpu_emitter_init(&m.e, code->x, code->n_args, scratch);
    m.reductions = ARENA_NEW(scratch, accumulator, m.loop->n_exprs);
    m.sums = ARENA_NEW(scratch, accumulator, m.loop->n_outputs);
    m.partials = ARENA_NEW(scratch, value, m.loop->n_outputs);
    m.run_shift = ARENA_NEW(scratch, value, m.loop->n_exprs);
    emit_task(&m);
    LLVMDisposeBuilder(m.e.entry.builder);
    LLVMDisposeBuilder(m.e.unit.builder);
    LLVMDisposeBuilder(m.e.body.builder);
    base_arena_free(scratch);
}
