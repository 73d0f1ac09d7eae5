/* Expressions, planned: how often each is computed, what the arguments of its code are, and what of it is the code's key. What follows from that
 * is written down by expressions.c. */
#include "backend_cpu/expressions.h"

#include <math.h>
#include <string.h>

static int add_arg(cpu_compiler *c, cpu_plan *plan, const cpu_expressions *x, int64_t v) { return cpu_arg(c, plan, v) - x->arg_base; }

static int stride_set(cpu_compiler *c, cpu_plan *plan, cpu_expressions *x, const kl_view *view)
{
    cpu_stride_set set = {0};
    bool any = false;
    for (int i = 0; i < x->loop.n_axes; i++)
        if (i != x->vector_axis && x->loop.extent[i] != 1) {
            set.stride[i] = view->stride[i];
            any |= view->stride[i] != 0;
        }
    if (!any)
        return -1;
    for (int i = 0; i < x->n_sets; i++)
        if (!memcmp(x->sets[i].stride, set.stride, sizeof set.stride))
            return i;
    for (int i = 0; i < x->loop.n_axes; i++)
        set.arg[i] = set.stride[i] ? add_arg(c, plan, x, set.stride[i]) : -1;
    x->sets = base_arena_grown(c->arena, x->sets, x->n_sets, &x->cap_sets, sizeof *x->sets);
    x->sets[x->n_sets] = set;
    return x->n_sets++;
}

static cpu_view_plan plan_view(cpu_compiler *c, cpu_plan *plan, cpu_expressions *x, const kl_view *view, bool load, bool memory, ir_dtype dtype)
{
    cpu_view_plan v = { .used = true, .lane_arg = -1, .dynamic = -1, .set = stride_set(c, plan, x, view) };
    int64_t stride = view->stride[x->vector_axis];
    if (x->loop.extent[x->vector_axis] == 1)               /* lanes of a product are lanes even where there is but one column */
        stride = x->of_product && !load ? 1 : 0;
    v.lanes = stride == 0 ? CPU_LANES_ONE_PLACE : stride == 1 ? CPU_LANES_SIDE_BY_SIDE : CPU_LANES_APART;
    if (v.lanes == CPU_LANES_APART)
        v.lane_arg = add_arg(c, plan, x, stride);
    v.at = memory ? cpu_arg_view(c, plan, view, dtype) - x->arg_base : add_arg(c, plan, x, view->offset);
    for (int i = 0; i < view->n_dynamic; i++) {
        int at = add_arg(c, plan, x, view->dynamic[i].stride);
        add_arg(c, plan, x, view->dynamic[i].limit);
        if (i == 0)
            v.dynamic = at;
    }
    return v;
}

/* Constants that code may be the better for knowing: 0, 1, 2, -1 and the like. Others are arguments. */
static bool is_telling(ir_dtype dtype, double v) { return dtype == IR_BOOL || (fabs(v) <= 4 && v * 2 == floor(v * 2)); }

static cpu_depth depth_of_strides(const cpu_expressions *x, const kl_view *view)
{
    cpu_depth depth = CPU_DEPTH_TASK;
    for (int i = 0; i < x->loop.n_axes; i++)
        if (view->stride[i] && x->loop.extent[i] != 1)
            depth = MAX(depth, i < x->n_unit_axes ? CPU_DEPTH_UNIT : CPU_DEPTH_BODY);
    return depth;
}

double cpu_rounded(ir_dtype dtype, double v)
{
    return dtype == IR_BF16 ? (double)ir_bf16_to_f32(ir_f32_to_bf16((float)v)) : dtype == IR_F32 ? (double)(float)v
         : dtype == IR_I32 ? (double)ir_f64_to_i32(v) : dtype == IR_BOOL ? v != 0 : v;
}

static int64_t double_bits(double v)
{
    int64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

cpu_expressions *cpu_expressions_plan(cpu_compiler *c, cpu_plan *plan, const kl_loop *loop, int n_unit_axes, int vector_axis, int arg_base)
{
    cpu_expressions *x = ARENA_NEW(c->arena, cpu_expressions, 1);
    int n = loop->n_exprs, n_views = n + loop->n_outputs;
    x->loop = *loop;
    x->n_unit_axes = n_unit_axes;
    x->vector_axis = vector_axis;
    x->arg_base = arg_base;
    x->views = ARENA_NEW(c->arena, cpu_view_plan, n_views);
    x->value_arg = ARENA_NEW(c->arena, int, n);
    x->depth = ARENA_NEW(c->arena, cpu_depth, n);
    x->varies = ARENA_NEW(c->arena, bool, n);
    for (int i = 0; i < n; i++)
        x->of_product |= loop->exprs[i].kind == KL_PRODUCT;
    for (int i = 0; i < n; i++) {
        const kl_expr *e = &loop->exprs[i];
        cpu_depth depth = CPU_DEPTH_TASK;
        bool varies = false;
        x->value_arg[i] = -1;
        for (int j = 0; j < e->n_args; j++) {
            depth = MAX(depth, x->depth[e->args[j]]);
            varies |= x->varies[e->args[j]];
        }
        switch (e->kind) {
        case KL_LOAD:
        case KL_INDEX:
        case KL_RANDOM:
            x->views[i] = plan_view(c, plan, x, &e->view, true, e->kind == KL_LOAD, e->dtype);
            depth = MAX(depth, depth_of_strides(x, &e->view));
            varies |= x->views[i].lanes != CPU_LANES_ONE_PLACE;
            for (int j = 0; j < e->view.n_dynamic; j++) {
                depth = MAX(depth, x->depth[e->view.dynamic[j].expr]);
                varies |= x->varies[e->view.dynamic[j].expr];
            }
            if (e->kind == KL_RANDOM)
                x->value_arg[i] = add_arg(c, plan, x, e->site);
            break;
        case KL_VALUE:
            if (!is_telling(e->dtype, e->value))
                x->value_arg[i] = add_arg(c, plan, x, e->dtype == IR_I32 ? ir_f64_to_i32(e->value) : double_bits(cpu_rounded(e->dtype, e->value)));
            break;
        case KL_OP:
            break;
        case KL_REDUCE:                                    /* lanes that are rows keep their results apart */
            depth = CPU_DEPTH_UNIT;
            varies = varies && vector_axis < n_unit_axes;
            break;
        case KL_PRODUCT:
            depth = CPU_DEPTH_BODY;
            varies = true;
            break;
        }
        x->depth[i] = depth;
        x->varies[i] = varies;
    }
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        if (o->kind == KL_STORE && o->view.buffer >= 0)
            x->views[n + i] = plan_view(c, plan, x, &o->view, false, true, loop->exprs[o->expr].dtype);
    }
    return x;
}

static void view_key(base_text *key, const cpu_view_plan *v, const kl_view *view)
{
    base_text_add(key, "%c%d", "sc*"[v->lanes], v->set);
    for (int i = 0; i < view->n_dynamic; i++)
        base_text_add(key, "d%d", view->dynamic[i].expr);
}

void cpu_expressions_key(base_text *key, const cpu_expressions *x)
{
    const kl_loop *loop = &x->loop;
    base_text_add(key, "axes %d units %d vector %d sets", loop->n_axes, x->n_unit_axes, x->vector_axis);
    for (int i = 0; i < x->n_sets; i++) {
        base_text_add(key, " ");
        for (int j = 0; j < loop->n_axes; j++)
            base_text_add(key, "%d", x->sets[i].arg[j] >= 0);
    }
    base_text_add(key, " ones ");                          /* extents of 1 change depths, and so where code stands */
    for (int i = 0; i < loop->n_axes; i++)
        base_text_add(key, "%d", loop->extent[i] == 1);
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        base_text_add(key, "\n%d %s ", i, ir_dtype_name(e->dtype));
        switch (e->kind) {
        case KL_LOAD:    base_text_add(key, "load "); view_key(key, &x->views[i], &e->view); break;
        case KL_INDEX:   base_text_add(key, "index "); view_key(key, &x->views[i], &e->view); break;
        case KL_RANDOM:  base_text_add(key, "random "); view_key(key, &x->views[i], &e->view); break;
        case KL_OP:      base_text_add(key, "%s", OP_NAME(e->op)); break;
        case KL_REDUCE:  base_text_add(key, "row %s", OP_NAME(e->op)); break;
        case KL_PRODUCT: base_text_add(key, "product"); break;
        case KL_VALUE:
            if (x->value_arg[i] >= 0)
                base_text_add(key, "value");
            else
                base_text_add(key, "value %a", cpu_rounded(e->dtype, e->value));
            break;
        }
        for (int j = 0; j < e->n_args; j++)
            base_text_add(key, " %d", e->args[j]);
        base_text_add(key, " depth %d%s", x->depth[i], x->varies[i] ? "v" : "");
    }
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        base_text_add(key, "\nout %d %d%s ", o->kind, o->expr, o->accumulate ? "+" : "");
        if (x->views[loop->n_exprs + i].used)
            view_key(key, &x->views[loop->n_exprs + i], &o->view);
    }
}

double cpu_expression_cost(const cpu_expressions *x, int expr)
{
    const kl_expr *e = &x->loop.exprs[expr];
    bool apart = x->views[expr].used && x->views[expr].lanes == CPU_LANES_APART;
    switch (e->kind) {
    case KL_LOAD:
        for (int i = 0; i < e->view.n_dynamic; i++)
            apart |= x->varies[e->view.dynamic[i].expr];
        return apart ? 12 : 1;
    case KL_RANDOM:                                        return x->views[expr].lanes == CPU_LANES_SIDE_BY_SIDE ? 20 : 80;
    case KL_OP:                                            return kl_op_cost(e->op, e->dtype);
    case KL_REDUCE:                                        return e->op == OP_argmax ? 3 : 1;
    case KL_VALUE: case KL_INDEX: case KL_PRODUCT:         return 0.5;
    }
    return 0;
}
