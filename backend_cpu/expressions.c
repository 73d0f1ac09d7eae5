/* Expressions to vector code, as expressions_plan.c has planned; see expressions.h for where it goes and why. */
#include "backend_cpu/expressions.h"

#include <math.h>
#include <string.h>

typedef LLVMValueRef value;
typedef const cpu_vector_env env;

/* -- values -------------------------------------------------------------------------------------------------------------- */

LLVMTypeRef cpu_memory_type(LLVMContextRef llvm, ir_dtype dtype)
{
    switch (dtype) {
    case IR_F32:   return LLVMFloatTypeInContext(llvm);
    case IR_F64:   return LLVMDoubleTypeInContext(llvm);
    case IR_BF16:  return LLVMInt16TypeInContext(llvm);
    case IR_I32:   return LLVMInt32TypeInContext(llvm);
    case IR_BOOL:  return LLVMInt8TypeInContext(llvm);
    case IR_TUPLE: break;
    }
    CHECK(false, "expected a dtype that has elements");
    return NULL;
}

LLVMTypeRef cpu_register_type(LLVMContextRef llvm, ir_dtype dtype)
{
    return dtype == IR_BF16 ? LLVMFloatTypeInContext(llvm) : dtype == IR_BOOL ? LLVMInt1TypeInContext(llvm) : cpu_memory_type(llvm, dtype);
}

static bool is_vector(value x) { return LLVMGetTypeKind(LLVMTypeOf(x)) == LLVMVectorTypeKind; }

value cpu_from_memory(env *v, ir_dtype dtype, value x)
{
    if (dtype == IR_BF16)
        return cpu_vf32_from_bf16(v, x);
    return dtype == IR_BOOL ? LLVMBuildICmp(v->builder, LLVMIntNE, x, cpu_vconst(v, x, 0), "") : x;
}

value cpu_to_memory(env *v, ir_dtype dtype, value x)
{
    if (dtype == IR_BF16)
        return cpu_vbf16_from_f32(v, x);
    return dtype == IR_BOOL ? LLVMBuildZExt(v->builder, x, cpu_vlike(x, LLVMInt8TypeInContext(v->context)), "") : x;
}

value cpu_round_bf16(env *v, value x) { return cpu_vf32_from_bf16(v, cpu_vbf16_from_f32(v, x)); }

value cpu_lane_numbers(env *v, LLVMTypeRef integer)
{
    value index[64];
    for (int i = 0; i < v->lanes; i++)
        index[i] = LLVMConstInt(integer, (unsigned)i, 0);
    return v->lanes == 1 ? index[0] : LLVMConstVector(index, (unsigned)v->lanes);
}

/* -- ops ----------------------------------------------------------------------------------------------------------------- */

static bool is_real(value x)
{
    LLVMTypeRef type = LLVMTypeOf(x);
    LLVMTypeKind kind = LLVMGetTypeKind(is_vector(x) ? LLVMGetElementType(type) : type);
    return kind == LLVMFloatTypeKind || kind == LLVMDoubleTypeKind;
}

static value compared(env *v, LLVMRealPredicate real, LLVMIntPredicate integer, value x, value y)
{
    return is_real(x) ? LLVMBuildFCmp(v->builder, real, x, y, "") : LLVMBuildICmp(v->builder, integer, x, y, "");
}

static value chosen(env *v, value which, value yes, value no) { return LLVMBuildSelect(v->builder, which, yes, no, ""); }

/* The greater, or the smaller: a NaN on the left is unordered with itself, one on the right is taken because no comparison with it is true. */
static value extreme(env *v, bool greatest, value x, value y)
{
    value first = compared(v, greatest ? LLVMRealOGT : LLVMRealOLT, greatest ? LLVMIntSGT : LLVMIntSLT, x, y);
    if (is_real(x))
        first = LLVMBuildOr(v->builder, first, LLVMBuildFCmp(v->builder, LLVMRealUNO, x, x, ""), "");
    return chosen(v, first, x, y);
}

value cpu_emit_max(env *v, value x, value y) { return extreme(v, true, x, y); }

static value sign(env *v, value x)
{
    value zero = cpu_vconst(v, x, 0);
    value below = chosen(v, compared(v, LLVMRealOLT, LLVMIntSLT, x, zero), cpu_vconst(v, x, -1), is_real(x) ? x : zero);
    return chosen(v, compared(v, LLVMRealOGT, LLVMIntSGT, x, zero), cpu_vconst(v, x, 1), below);
}

static value magnitude(env *v, value x)
{
    value negative = LLVMBuildICmp(v->builder, LLVMIntSLT, x, cpu_vconst(v, x, 0), "");
    return chosen(v, negative, LLVMBuildNeg(v->builder, x, ""), x);
}

/* By way of f64, which holds every quotient of two i32 exactly enough to be truncated. x/0 is 0; least/-1 wraps. */
static value divided(env *v, value x, value y)
{
    LLVMTypeRef f64 = cpu_vlike(x, LLVMDoubleTypeInContext(v->context));
    value zero = cpu_vconst(v, x, 0), odd = LLVMBuildICmp(v->builder, LLVMIntEQ, y, zero, "");
    value negated = LLVMBuildICmp(v->builder, LLVMIntEQ, y, cpu_vconst(v, x, -1), "");
    value safe = chosen(v, LLVMBuildOr(v->builder, odd, negated, ""), cpu_vconst(v, x, 1), y);
    value dividend = LLVMBuildSIToFP(v->builder, x, f64, ""), divisor = LLVMBuildSIToFP(v->builder, safe, f64, "");
    value q = LLVMBuildFDiv(v->builder, dividend, divisor, "");
    q = LLVMBuildFPToSI(v->builder, q, LLVMTypeOf(x), "");
    return chosen(v, odd, zero, chosen(v, negated, LLVMBuildNeg(v->builder, x, ""), q));
}

static value remainder_of(env *v, value x, value y)
{
    if (is_real(x))
        return LLVMBuildFRem(v->builder, x, y, "");
    value rest = LLVMBuildSub(v->builder, x, LLVMBuildMul(v->builder, divided(v, x, y), y, ""), "");
    return chosen(v, LLVMBuildICmp(v->builder, LLVMIntEQ, y, cpu_vconst(v, y, 0), ""), cpu_vconst(v, x, 0), rest);
}

/* Truncates; beyond the range the nearest i32; NaN is 0. */
static value to_i32(env *v, value x)
{
    LLVMTypeRef i32 = cpu_vlike(x, LLVMInt32TypeInContext(v->context));
    value limit = cpu_vconst(v, x, 2147483648.0), least = cpu_vconst(v, x, -2147483648.0);
    value within = LLVMBuildFCmp(v->builder, LLVMRealOLT, cpu_vabs(v, x), limit, "");
    value y = LLVMBuildFPToSI(v->builder, chosen(v, within, x, cpu_vconst(v, x, 0)), i32, "");
    y = chosen(v, LLVMBuildFCmp(v->builder, LLVMRealOGE, x, limit, ""), cpu_vconst(v, y, INT32_MAX), y);
    return chosen(v, LLVMBuildFCmp(v->builder, LLVMRealOLE, x, least, ""), cpu_vconst(v, y, INT32_MIN), y);
}

static value cast_to(env *v, ir_dtype from, ir_dtype to, value x)
{
    LLVMTypeRef type = cpu_vlike(x, cpu_register_type(v->context, to));
    if (from == to)
        return x;
    switch (to) {
    case IR_F32:
    case IR_F64:
    case IR_BF16:
        if (from == IR_I32)
            x = LLVMBuildSIToFP(v->builder, x, type, "");
        else if (from == IR_BOOL)
            x = LLVMBuildUIToFP(v->builder, x, type, "");
        else if (from == IR_F64)
            x = LLVMBuildFPTrunc(v->builder, x, type, "");
        else if (to == IR_F64)
            x = LLVMBuildFPExt(v->builder, x, type, "");
        return to == IR_BF16 && from != IR_BOOL ? cpu_round_bf16(v, x) : x;
    case IR_I32:
        return from == IR_BOOL ? LLVMBuildZExt(v->builder, x, type, "") : to_i32(v, x);
    case IR_BOOL:
        return compared(v, LLVMRealUNE, LLVMIntNE, x, cpu_vconst(v, x, 0));
    case IR_TUPLE:
        break;
    }
    CHECK(false, "expected a dtype that has elements");
    return NULL;
}

/* Some results of bf16 operands are bf16 as they are; the others are rounded. */
static value emit_op(env *v, ir_op op, ir_dtype from, ir_dtype to, value *a)
{
    LLVMBuilderRef b = v->builder;
    value x = a[0], y = a[1], r = NULL;
    bool real = is_real(x);
    switch (op) {
    case OP_neg:     return real ? LLVMBuildFNeg(b, x, "") : LLVMBuildNeg(b, x, "");
    case OP_abs:     return real ? cpu_vabs(v, x) : magnitude(v, x);
    case OP_sign:    return sign(v, x);
    case OP_floor:   return cpu_vfloor(v, x);
    case OP_not:     return LLVMBuildNot(b, x, "");
    case OP_cast:    return cast_to(v, from, to, x);
    case OP_max:     return extreme(v, true, x, y);
    case OP_min:     return extreme(v, false, x, y);
    case OP_and:     return LLVMBuildAnd(b, x, y, "");
    case OP_or:      return LLVMBuildOr(b, x, y, "");
    case OP_eq:      return compared(v, LLVMRealOEQ, LLVMIntEQ, x, y);
    case OP_ne:      return compared(v, LLVMRealUNE, LLVMIntNE, x, y);
    case OP_lt:      return compared(v, LLVMRealOLT, from == IR_BOOL ? LLVMIntULT : LLVMIntSLT, x, y);
    case OP_le:      return compared(v, LLVMRealOLE, from == IR_BOOL ? LLVMIntULE : LLVMIntSLE, x, y);
    case OP_select:  return chosen(v, x, y, a[2]);
    case OP_exp:     r = cpu_vexp(v, x); break;
    case OP_log:     r = cpu_vlog(v, x); break;
    case OP_sqrt:    r = cpu_vsqrt(v, x); break;
    case OP_rsqrt:   r = cpu_vrsqrt(v, x); break;
    case OP_tanh:    r = cpu_vtanh(v, x); break;
    case OP_sigmoid: r = cpu_vsigmoid(v, x); break;
    case OP_sin:     r = cpu_vsin(v, x); break;
    case OP_cos:     r = cpu_vcos(v, x); break;
    case OP_erf:     r = cpu_verf(v, x); break;
    case OP_erf_inv: r = cpu_verf_inv(v, x); break;
    case OP_pow:     r = cpu_vpow(v, x, y); break;
    case OP_add:     r = real ? LLVMBuildFAdd(b, x, y, "") : LLVMBuildAdd(b, x, y, ""); break;
    case OP_sub:     r = real ? LLVMBuildFSub(b, x, y, "") : LLVMBuildSub(b, x, y, ""); break;
    case OP_mul:     r = real ? LLVMBuildFMul(b, x, y, "") : LLVMBuildMul(b, x, y, ""); break;
    case OP_div:     r = real ? LLVMBuildFDiv(b, x, y, "") : divided(v, x, y); break;
    case OP_rem:     r = remainder_of(v, x, y); break;
#include "ir/not_elementwise.def"
        break;
    }
    CHECK(r, "expected an elementwise op, got %s", OP_NAME(op));
    return to == IR_BF16 ? cpu_round_bf16(v, r) : r;
}

/* -- places -------------------------------------------------------------------------------------------------------------- */

void cpu_emitter_init(cpu_emitter *e, const cpu_expressions *plan, int arg_count, base_arena *scratch)
{
    int n_views = plan->loop.n_exprs + plan->loop.n_outputs;
    e->plan = plan;
    e->arg = ARENA_NEW(scratch, value, arg_count);
    e->values = ARENA_NEW(scratch, cpu_value, plan->loop.n_exprs);
    e->unit_at = ARENA_NEW(scratch, value, n_views);
    e->unit_offset = ARENA_NEW(scratch, value, plan->n_sets);
    e->body_offset = ARENA_NEW(scratch, value, plan->n_sets);
}

void cpu_emitter_next_place(cpu_emitter *e)
{
    for (int i = 0; i < e->plan->loop.n_exprs; i++)
        if (e->plan->depth[i] == CPU_DEPTH_BODY)
            e->values[i] = (cpu_value){0};
    for (int i = 0; i < e->plan->n_sets; i++)
        e->body_offset[i] = NULL;
}

static LLVMTypeRef i64_of(const cpu_emitter *e) { return LLVMInt64TypeInContext(e->entry.context); }
static LLVMTypeRef pointer_of(const cpu_emitter *e) { return LLVMPointerTypeInContext(e->entry.context, 0); }
static value i64_const(const cpu_emitter *e, int64_t v) { return LLVMConstInt(i64_of(e), (uint64_t)v, 1); }

value cpu_emit_arg(cpu_emitter *e, int arg)
{
    if (!e->arg[arg]) {
        LLVMBuilderRef b = e->entry.builder;
        value index = i64_const(e, arg), at = LLVMBuildGEP2(b, i64_of(e), e->args, &index, 1, "");
        e->arg[arg] = LLVMBuildLoad2(b, i64_of(e), at, "");
    }
    return e->arg[arg];
}

value cpu_emit_base(cpu_emitter *e, int at)
{
    LLVMBuilderRef b = e->entry.builder;
    value buffer = cpu_emit_arg(e, at), offset = cpu_emit_arg(e, at + 1);
    value slot = LLVMBuildGEP2(b, pointer_of(e), e->buffers, &buffer, 1, "");
    value base = LLVMBuildLoad2(b, pointer_of(e), slot, "");
    return LLVMBuildGEP2(b, LLVMInt8TypeInContext(e->entry.context), base, &offset, 1, "");
}

static value plus(LLVMBuilderRef b, value x, value y) { return !x ? y : !y ? x : LLVMBuildAdd(b, x, y, ""); }

/* Index times stride over the axes [from, to) but the vector's; NULL for nothing. */
static value offset_over(cpu_emitter *e, env *v, int set, int from, int to)
{
    value sum = NULL;
    for (int i = from; i < to; i++)
        if (e->plan->sets[set].arg[i] >= 0)
            sum = plus(v->builder, sum, LLVMBuildMul(v->builder, e->index[i], cpu_emit_arg(e, e->plan->sets[set].arg[i]), ""));
    return sum;
}

/* Index times stride along the vector axis. */
static value offset_along(cpu_emitter *e, env *v, const cpu_view_plan *view)
{
    value index = e->index[e->plan->vector_axis];
    if (view->lanes == CPU_LANES_ONE_PLACE)
        return NULL;
    return view->lanes == CPU_LANES_SIDE_BY_SIDE ? index : LLVMBuildMul(v->builder, index, cpu_emit_arg(e, view->lane_arg), "");
}

/* clamp(value, 0, limit) * stride of a dynamic term, as i64. */
static value dynamic_offset(cpu_emitter *e, env *v, const kl_view *view, const cpu_view_plan *plan, int term)
{
    LLVMBuilderRef b = v->builder;
    value x = cpu_eval(e, view->dynamic[term].expr).value, zero = cpu_vconst(v, x, 0);
    x = chosen(v, LLVMBuildICmp(b, LLVMIntSLT, x, zero, ""), zero, x);
    x = LLVMBuildSExt(b, x, cpu_vlike(x, i64_of(e)), "");
    value limit = cpu_emit_arg(e, plan->dynamic + 2 * term + 1), stride = cpu_emit_arg(e, plan->dynamic + 2 * term);
    if (is_vector(x)) {
        limit = cpu_vsplat(v, limit);
        stride = cpu_vsplat(v, stride);
    }
    x = chosen(v, LLVMBuildICmp(b, LLVMIntSGT, x, limit, ""), limit, x);
    return LLVMBuildMul(b, x, stride, "");
}

/* Of a view: what is added to its beginning. At the unit's place, as far as that tells; the rest in the body, in part one for each lane. */
typedef struct { value scalar, lanes; } offset;

static offset body_offset(cpu_emitter *e, env *v, int view_index, const kl_view *view, bool in_body)
{
    const cpu_expressions *x = e->plan;
    const cpu_view_plan *plan = &x->views[view_index];
    offset o = {0};
    if (in_body && plan->set >= 0) {
        if (!e->body_offset[plan->set])
            e->body_offset[plan->set] = offset_over(e, &e->body, plan->set, x->n_unit_axes, x->loop.n_axes);
        o.scalar = e->body_offset[plan->set];
    }
    if (in_body && x->vector_axis >= x->n_unit_axes)
        o.scalar = plus(v->builder, o.scalar, offset_along(e, v, plan));
    if (plan->lanes == CPU_LANES_APART) {
        value lane = cpu_lane_numbers(v, i64_of(e));
        if (e->last_lane) {                                /* lanes that do not exist read what the last one reads */
            value last = cpu_vsplat(v, e->last_lane);
            lane = chosen(v, LLVMBuildICmp(v->builder, LLVMIntULT, lane, last, ""), lane, last);
        }
        o.lanes = LLVMBuildMul(v->builder, lane, cpu_vsplat(v, cpu_emit_arg(e, plan->lane_arg)), "");
    }
    for (int i = 0; i < view->n_dynamic; i++) {
        int expr = view->dynamic[i].expr;
        if (x->varies[expr])
            o.lanes = plus(v->builder, o.lanes, dynamic_offset(e, v, view, plan, i));
        else if (x->depth[expr] == CPU_DEPTH_BODY)
            o.scalar = plus(v->builder, o.scalar, dynamic_offset(e, v, view, plan, i));
    }
    bool dynamic_lanes = o.lanes && plan->lanes == CPU_LANES_SIDE_BY_SIDE;
    if (dynamic_lanes)
        o.lanes = LLVMBuildAdd(v->builder, o.lanes, cpu_lane_numbers(v, i64_of(e)), "");
    return o;
}

static value unit_offset(cpu_emitter *e, int view_index, const kl_view *view)
{
    const cpu_expressions *x = e->plan;
    const cpu_view_plan *plan = &x->views[view_index];
    env *v = &e->unit;
    value sum = NULL;
    if (plan->set >= 0) {
        if (!e->unit_offset[plan->set])
            e->unit_offset[plan->set] = offset_over(e, v, plan->set, 0, x->n_unit_axes);
        sum = e->unit_offset[plan->set];
    }
    if (x->vector_axis < x->n_unit_axes)
        sum = plus(v->builder, sum, offset_along(e, v, plan));
    for (int i = 0; i < view->n_dynamic; i++)
        if (!x->varies[view->dynamic[i].expr] && x->depth[view->dynamic[i].expr] < CPU_DEPTH_BODY)
            sum = plus(v->builder, sum, dynamic_offset(e, v, view, plan, i));
    return sum;
}

/* A view's pointer at the unit's place. Where nothing of it changes from unit to unit it is the task's. */
static value unit_pointer(cpu_emitter *e, int view_index, const kl_view *view, LLVMTypeRef element, bool of_task)
{
    if (!e->unit_at[view_index]) {
        value base = cpu_emit_base(e, e->plan->views[view_index].at);
        value more = NULL;
        if (!of_task) {
            more = unit_offset(e, view_index, view);
        } else {                                           /* dynamic terms alone, known at the task's beginning */
            for (int i = 0; i < view->n_dynamic; i++)
                more = plus(e->entry.builder, more, dynamic_offset(e, &e->entry, view, &e->plan->views[view_index], i));
        }
        LLVMBuilderRef b = of_task ? e->entry.builder : e->unit.builder;
        e->unit_at[view_index] = more ? LLVMBuildGEP2(b, element, base, &more, 1, "") : base;
    }
    return e->unit_at[view_index];
}

/* Where the places of the lanes are: one pointer, or a vector of them. */
static value place_of(cpu_emitter *e, env *v, int view_index, const kl_view *view, LLVMTypeRef element, cpu_depth depth, bool *apart)
{
    value at = unit_pointer(e, view_index, view, element, depth == CPU_DEPTH_TASK);
    offset o = {0};
    if (depth != CPU_DEPTH_TASK)
        o = body_offset(e, v, view_index, view, depth == CPU_DEPTH_BODY);
    if (o.scalar)
        at = LLVMBuildGEP2(v->builder, element, at, &o.scalar, 1, "");
    *apart = o.lanes != NULL;
    return o.lanes ? LLVMBuildGEP2(v->builder, element, at, &o.lanes, 1, "") : at;
}

/* -- leaves -------------------------------------------------------------------------------------------------------------- */

static unsigned bytes_of(ir_dtype dtype) { return (unsigned)ir_dtype_bytes(dtype); }

static value load(cpu_emitter *e, env *v, int expr)
{
    const kl_expr *x = &e->plan->loop.exprs[expr];
    LLVMTypeRef element = cpu_memory_type(v->context, x->dtype);
    bool apart;
    value at = place_of(e, v, expr, &x->view, element, e->plan->depth[expr], &apart), y;
    if (apart) {                                           /* lanes that do not exist were given places that do */
        y = cpu_vgather(v, element, at, NULL);
    } else if (e->plan->views[expr].lanes == CPU_LANES_SIDE_BY_SIDE) {
        y = cpu_vload(v, element, at, e->mask);
    } else {
        y = LLVMBuildLoad2(v->builder, element, at, "");
        LLVMSetAlignment(y, bytes_of(x->dtype));
    }
    return y;
}

value cpu_emit_unit_element(cpu_emitter *e, int expr)
{
    if (!e->unit_at[expr]) {
        value sum = cpu_emit_arg(e, e->plan->views[expr].at), more = unit_offset(e, expr, &e->plan->loop.exprs[expr].view);
        e->unit_at[expr] = more ? LLVMBuildAdd(e->unit.builder, sum, more, "") : sum;
    }
    return e->unit_at[expr];
}

/* offset + sum of index * stride as an i64, all of it at once. */
static value linear(cpu_emitter *e, env *v, int expr, cpu_depth depth)
{
    const cpu_expressions *x = e->plan;
    const cpu_view_plan *plan = &x->views[expr];
    if (depth == CPU_DEPTH_TASK)
        return cpu_emit_arg(e, plan->at);
    value sum = cpu_emit_unit_element(e, expr);
    offset o = body_offset(e, v, expr, &x->loop.exprs[expr].view, depth == CPU_DEPTH_BODY);
    if (o.scalar)
        sum = LLVMBuildAdd(v->builder, sum, o.scalar, "");
    if (plan->lanes == CPU_LANES_SIDE_BY_SIDE)
        o.lanes = cpu_lane_numbers(v, i64_of(e));
    return o.lanes ? LLVMBuildAdd(v->builder, cpu_vsplat(v, sum), o.lanes, "") : sum;
}

static value random_word(cpu_emitter *e, env *v, int expr)
{
    const kl_expr *x = &e->plan->loop.exprs[expr];
    value element = linear(e, v, expr, e->plan->depth[expr]), a[3];
    for (int i = 0; i < 3; i++)
        a[i] = is_vector(element) || e->plan->varies[x->args[i]] ? cpu_eval_vector(e, x->args[i]) : cpu_eval(e, x->args[i]).value;
    if (is_vector(a[0]) && !is_vector(element))
        element = cpu_vsplat(v, element);
    value site = LLVMBuildTrunc(e->entry.builder, cpu_emit_arg(e, e->plan->value_arg[expr]), LLVMInt32TypeInContext(v->context), "");
    return cpu_emit_random_at(v, element, a, site, a[2]);
}

static value constant(cpu_emitter *e, env *v, int expr)
{
    const kl_expr *x = &e->plan->loop.exprs[expr];
    LLVMTypeRef type = cpu_register_type(v->context, x->dtype);
    int arg = e->plan->value_arg[expr];
    double known = cpu_rounded(x->dtype, x->value);
    bool real = ir_dtype_is_float(x->dtype);
    if (arg < 0)
        return real ? LLVMConstReal(type, known) : LLVMConstInt(type, (uint64_t)(int64_t)known, 1);
    value bits = cpu_emit_arg(e, arg);
    if (!real)
        return LLVMBuildTrunc(v->builder, bits, type, "");
    bits = LLVMBuildBitCast(v->builder, bits, LLVMDoubleTypeInContext(v->context), "");
    return x->dtype == IR_F64 ? bits : LLVMBuildFPTrunc(v->builder, bits, type, "");
}

/* -- evaluation ---------------------------------------------------------------------------------------------------------- */

static env *env_of(cpu_emitter *e, int expr)
{
    switch (e->plan->depth[expr]) {
    case CPU_DEPTH_TASK: return &e->entry;
    case CPU_DEPTH_UNIT: return &e->unit;
    case CPU_DEPTH_BODY: return &e->body;
    }
    return NULL;
}

/* A vector that does not vary, as a scalar expression's code may have met it, and the other way round, never mix: an op's operands are all
 * vectors, or all scalars. */
static cpu_value eval_op(cpu_emitter *e, env *v, int expr)
{
    const kl_expr *x = &e->plan->loop.exprs[expr];
    value a[KL_MAX_ARGS] = {0};
    bool vector = e->plan->varies[expr];
    for (int i = 0; i < x->n_args; i++)
        a[i] = vector ? cpu_eval_vector(e, x->args[i]) : cpu_eval(e, x->args[i]).value;
    ir_dtype from = e->plan->loop.exprs[x->args[0]].dtype;
    if (x->op == OP_cast && x->dtype == IR_BF16 && from == IR_F32) {
        cpu_value y = { .bits = cpu_vbf16_from_f32(v, a[0]) };
        y.value = cpu_vf32_from_bf16(v, y.bits);
        return y;
    }
    return (cpu_value){ .value = emit_op(v, x->op, from, x->dtype, a) };
}

cpu_value cpu_eval(cpu_emitter *e, int expr)
{
    const kl_expr *x = &e->plan->loop.exprs[expr];
    env *v = env_of(e, expr);
    cpu_value y = e->values[expr];
    if (y.value)
        return y;
    switch (x->kind) {
    case KL_LOAD:
        y.value = load(e, v, expr);
        if (x->dtype == IR_BF16)
            y.bits = y.value;
        y.value = cpu_from_memory(v, x->dtype, y.value);
        break;
    case KL_VALUE:
        y.value = constant(e, v, expr);
        break;
    case KL_INDEX:
        y.value = linear(e, v, expr, e->plan->depth[expr]);
        y.value = LLVMBuildTrunc(v->builder, y.value, cpu_vlike(y.value, LLVMInt32TypeInContext(v->context)), "");
        break;
    case KL_RANDOM:
        y.value = random_word(e, v, expr);
        break;
    case KL_OP:
        y = eval_op(e, v, expr);
        break;
    case KL_REDUCE:
    case KL_PRODUCT:
        CHECK(false, "expected expression %d to have been set before it is read", expr);
    }
    e->values[expr] = y;
    return y;
}

value cpu_eval_vector(cpu_emitter *e, int expr)
{
    cpu_value y = cpu_eval(e, expr);
    if (is_vector(y.value))
        return y.value;
    if (!y.splat)
        y.splat = e->values[expr].splat = cpu_vsplat(env_of(e, expr), y.value);
    return y.splat;
}

/* -- stores -------------------------------------------------------------------------------------------------------------- */

void cpu_emit_store(cpu_emitter *e, int output, bool unit)
{
    const kl_output *o = &e->plan->loop.outputs[output];
    int view = e->plan->loop.n_exprs + output;
    const cpu_view_plan *plan = &e->plan->views[view];
    env *v = unit ? &e->unit : &e->body;
    ir_dtype dtype = e->plan->loop.exprs[o->expr].dtype;
    LLVMTypeRef element = cpu_memory_type(v->context, dtype);
    bool apart;
    value at = place_of(e, v, view, &o->view, element, unit ? CPU_DEPTH_UNIT : CPU_DEPTH_BODY, &apart);
    bool lanes = plan->lanes != CPU_LANES_ONE_PLACE || apart;
    cpu_value x = cpu_eval(e, o->expr);
    value y = lanes ? cpu_eval_vector(e, o->expr) : x.value;
    CHECK(lanes || !is_vector(y), "expected output %d not to put %d lanes in one place", output, v->lanes);
    value bits = dtype == IR_BF16 && !o->accumulate && x.bits && is_vector(x.bits) == lanes ? x.bits : NULL;
    if (o->accumulate) {
        value old;
        if (apart) {
            old = cpu_vgather(v, element, at, e->mask);
        } else if (lanes) {
            old = cpu_vload(v, element, at, e->mask);
        } else {
            old = LLVMBuildLoad2(v->builder, element, at, "");
            LLVMSetAlignment(old, bytes_of(dtype));
        }
        old = cpu_from_memory(v, dtype, old);
        y = is_real(y) ? LLVMBuildFAdd(v->builder, old, y, "") : LLVMBuildAdd(v->builder, old, y, "");
    }
    if (!bits)
        bits = cpu_to_memory(v, dtype, y);
    if (apart) {
        cpu_vscatter(v, bits, at, e->mask);
    } else {
        cpu_vstore(v, bits, at, lanes ? e->mask : NULL);
    }
}
