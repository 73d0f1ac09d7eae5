/* Rules for elementwise ops, and for the control ops that are the identity once gradients have been taken.
 *
 * Floats keep their meaning: x*0 is not 0 (x may be NaN or infinite), x-x and x/x neither, and no sum or product of three
 * tensors is regrouped. Regrouping stops at constants, x*c1*c2, and at what scatter_add adds to its base. */
#include "ir/simplify.h"

#include <math.h>
#include <string.h>

static bool is_int(const ir_node *node) { return node->type.dtype == IR_I32; }

static ir_node *first_operand(ir_graph *graph, ir_node *node)
{
    (void)graph;
    return node->args[0];
}

/* Commutative ops have their constant on the right. */
static ir_node *constant_right(ir_graph *graph, ir_node *node)
{
    if (node->args[0]->op != OP_constant || node->args[1]->op == OP_constant)
        return NULL;
    return ir_binary(graph, node->op, node->args[1], node->args[0]);
}

/* (x op c1) op c2 in i32, where + and * wrap and so regroup freely. */
static ir_node *regroup_int(ir_graph *graph, ir_node *node)
{
    ir_node *inner = node->args[0], *c2 = node->args[1];
    if (!is_int(node) || inner->op != node->op || c2->op != OP_constant || inner->args[1]->op != OP_constant)
        return NULL;
    return ir_binary(graph, node->op, inner->args[0], ir_binary(graph, node->op, inner->args[1], c2));
}

/* -- sums -------------------------------------------------------------------------------------------------------------- */

static ir_node *neg_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    if (x->op == OP_neg)
        return x->args[0];
    if (x->op == OP_mul && x->args[1]->op == OP_constant)                   /* -(x * c): x * -c */
        return ir_binary(graph, OP_mul, x->args[0], ir_unary(graph, OP_neg, x->args[1]));
    return NULL;
}

/* x + scatter_add(base, i, u): scatter_add(x + base, i, u), so that what x is made in needs no second pass over all of it: the gradient of an
 * embedding whose matrix is used elsewhere too. Only where the scatter_add has no other reader; in bf16 every addition rounds. */
static ir_node *into_scatter(ir_graph *graph, ir_node *node, int which)
{
    ir_node *scatter = node->args[which], *x = node->args[1 - which];
    if (scatter->op != OP_scatter_add || scatter->mark > 1 || node->type.dtype == IR_BF16)
        return NULL;
    ir_node *args[] = { ir_binary(graph, OP_add, x, scatter->args[0]), scatter->args[1], scatter->args[2] };
    ir_node *better = ir_add(graph, OP_scatter_add, 3, args, &scatter->attr, NULL);
    better->mark = node->mark;                                              /* it has the users of the sum */
    return better;
}

static ir_node *add_rule(ir_graph *graph, ir_node *node)
{
    ir_node *lhs = node->args[0], *rhs = node->args[1];
    if (ir_is_value(rhs, 0))                                                /* the sign of zero: -0 + 0 is 0, and -0 here */
        return lhs;
    if (rhs->op == OP_neg)
        return ir_binary(graph, OP_sub, lhs, rhs->args[0]);
    if (lhs->op == OP_neg)
        return ir_binary(graph, OP_sub, rhs, lhs->args[0]);
    for (int i = 1; i >= 0; i--) {
        ir_node *scattered = into_scatter(graph, node, i);
        if (scattered)
            return scattered;
    }
    ir_node *swapped = constant_right(graph, node);
    return swapped ? swapped : regroup_int(graph, node);
}

static ir_node *sub_rule(ir_graph *graph, ir_node *node)
{
    ir_node *lhs = node->args[0], *rhs = node->args[1];
    if (ir_is_value(rhs, 0))
        return lhs;
    if (ir_is_value(lhs, 0))                                                /* the sign of zero: 0 - 0 is 0, and -0 here */
        return ir_unary(graph, OP_neg, rhs);
    if (rhs->op == OP_neg)
        return ir_binary(graph, OP_add, lhs, rhs->args[0]);
    if (is_int(node) && lhs == rhs)
        return ir_constant_like(graph, node, 0);
    if (is_int(node) && rhs->op == OP_constant)                             /* one form for the sums with a constant */
        return ir_binary(graph, OP_add, lhs, ir_unary(graph, OP_neg, rhs));
    return NULL;
}

/* -- products ---------------------------------------------------------------------------------------------------------- */

/* Whether one product by c1*c2 stands for two: not where c1*c2 leaves the normal range, which x*c1 may not have left; and not
 * in bf16, whose products are coarse enough for one rounding less to be seen. */
static bool can_multiply(ir_dtype dtype, double c1, double c2)
{
    double product = fabs(c1 * c2);
    return dtype == IR_F64 ? isnormal(product) : dtype == IR_F32 && product >= 0x1p-126 && product <= 0x1p127;
}

static ir_node *mul_constants(ir_graph *graph, ir_node *node)
{
    ir_node *inner = node->args[0], *c2 = node->args[1];
    if (inner->op != OP_mul || c2->op != OP_constant || inner->args[1]->op != OP_constant)
        return NULL;
    double c1 = inner->args[1]->attr.value;
    if (!can_multiply(node->type.dtype, c1, c2->attr.value))
        return NULL;
    return ir_binary(graph, OP_mul, inner->args[0], ir_constant_like(graph, node, c1 * c2->attr.value));
}

static ir_node *mul_rule(ir_graph *graph, ir_node *node)
{
    ir_node *lhs = node->args[0], *rhs = node->args[1];
    if (ir_is_value(rhs, 1))
        return lhs;
    if (ir_is_value(rhs, -1))
        return ir_unary(graph, OP_neg, lhs);
    if (is_int(node) && ir_is_value(rhs, 0))                                /* a float may be NaN or infinite */
        return rhs;
    if (lhs->op == OP_neg && rhs->op == OP_constant)
        return ir_binary(graph, OP_mul, lhs->args[0], ir_unary(graph, OP_neg, rhs));
    if (lhs->op == OP_neg && rhs->op == OP_neg)
        return ir_binary(graph, OP_mul, lhs->args[0], rhs->args[0]);
    ir_node *better = constant_right(graph, node);
    better = better ? better : regroup_int(graph, node);
    return better ? better : mul_constants(graph, node);
}

/* x / c for c a power of two with a normal inverse: the product by 1/c is the same number. */
static ir_node *div_rule(ir_graph *graph, ir_node *node)
{
    ir_node *lhs = node->args[0], *rhs = node->args[1];
    int exponent;
    if (ir_is_value(rhs, 1))
        return lhs;
    if (is_int(node) || rhs->op != OP_constant || fabs(frexp(rhs->attr.value, &exponent)) != 0.5 || exponent < -120 || exponent > 120)
        return NULL;
    return ir_binary(graph, OP_mul, lhs, ir_constant_like(graph, node, 1 / rhs->attr.value));
}

static ir_node *pow_rule(ir_graph *graph, ir_node *node)
{
    ir_node *lhs = node->args[0], *rhs = node->args[1];
    if (ir_is_value(rhs, 0))                                                /* of NaN too (C11 F.10.4.4) */
        return ir_constant_like(graph, node, 1);
    if (ir_is_value(rhs, 1))
        return lhs;
    if (ir_is_value(rhs, 2))
        return ir_binary(graph, OP_mul, lhs, lhs);
    if (ir_is_value(rhs, -1))
        return ir_binary(graph, OP_div, ir_constant_like(graph, node, 1), lhs);
    return NULL;
}

/* -- the rest of the real line ----------------------------------------------------------------------------------------- */

static ir_node *abs_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    if (x->op == OP_abs)
        return x;
    return x->op == OP_neg ? ir_unary(graph, OP_abs, x->args[0]) : NULL;
}

static ir_node *extremum_rule(ir_graph *graph, ir_node *node)
{
    return node->args[0] == node->args[1] ? node->args[0] : constant_right(graph, node);
}

/* -- logic ------------------------------------------------------------------------------------------------------------- */

static ir_node *not_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    if (x->op == OP_not)
        return x->args[0];
    if (x->op == OP_eq || x->op == OP_ne)                                   /* not so for lt and le: both are false of a NaN */
        return ir_binary(graph, x->op == OP_eq ? OP_ne : OP_eq, x->args[0], x->args[1]);
    return NULL;
}

/* `and` keeps x by true and is false by false; `or` the other way round. */
static ir_node *and_or_rule(ir_graph *graph, ir_node *node)
{
    ir_node *lhs = node->args[0], *rhs = node->args[1];
    if (lhs == rhs)
        return lhs;
    if (rhs->op == OP_constant)
        return ir_is_value(rhs, node->op == OP_and) ? lhs : rhs;
    return constant_right(graph, node);
}

static ir_node *select_rule(ir_graph *graph, ir_node *node)
{
    ir_node *condition = node->args[0], *yes = node->args[1], *no = node->args[2];
    if (condition->op == OP_constant)
        return condition->attr.value != 0 ? yes : no;
    if (yes == no)
        return yes;
    return condition->op == OP_not ? ir_select(graph, condition->args[0], no, yes) : NULL;
}

/* -- casts ------------------------------------------------------------------------------------------------------------- */

/* Whether every value of one dtype is a value of the other. */
static bool is_exact(ir_dtype from, ir_dtype to)
{
    switch (from) {
    case IR_BOOL: return true;
    case IR_BF16: return to == IR_F32 || to == IR_F64;
    case IR_F32:
    case IR_I32: return to == IR_F64;
    case IR_F64:
    case IR_TUPLE: break;
    }
    return false;
}

static ir_node *cast_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    if (x->type.dtype == node->type.dtype)
        return x;
    if (x->op == OP_cast && is_exact(x->args[0]->type.dtype, x->type.dtype))
        return ir_cast(graph, x->args[0], node->type.dtype);
    return NULL;
}

/* -- elementwise ops of broadcasts ---------------------------------------------------------------------------------------- */

static bool same_broadcast(const ir_node *a, const ir_node *b)
{
    return a->attr.n_axes == b->attr.n_axes && memcmp(a->attr.axes, b->attr.axes, sizeof *a->attr.axes * (size_t)a->attr.n_axes) == 0 &&
           ir_shape_equal(&a->args[0]->type, &b->args[0]->type);
}

/* f(broadcast x, constant, broadcast y): broadcast f(x, constant, y), computed once for each element of x. */
static ir_node *before_broadcast(ir_graph *graph, ir_node *node)
{
    ir_node *model = NULL, *args[3];
    CHECK(node->n_args <= 3, "%s: expected at most 3 operands, got %d", OP_NAME(node->op), node->n_args);
    for (int i = 0; i < node->n_args; i++) {
        ir_node *arg = node->args[i];
        if (arg->op == OP_constant)
            continue;
        if (arg->op != OP_broadcast || (model && !same_broadcast(model, arg)))
            return NULL;
        model = arg;
    }
    if (!model || ir_type_count(&model->args[0]->type) >= ir_type_count(&node->type))
        return NULL;
    ir_type small = model->args[0]->type;
    for (int i = 0; i < node->n_args; i++) {
        ir_node *arg = node->args[i];
        args[i] = arg->op == OP_broadcast ? arg->args[0] : ir_constant(graph, ir_type_with_dtype(small, arg->type.dtype), arg->attr.value);
    }
    small.dtype = node->type.dtype;
    ir_node *once = ir_add(graph, node->op, node->n_args, args, &node->attr, node->op == OP_cast ? &small : NULL);
    return ir_broadcast(graph, once, node->type, model->attr.axes);
}

/* -- the table --------------------------------------------------------------------------------------------------------- */

static ir_rewrite_rule *const arithmetic_rules[IR_OPS] = {
    [OP_neg] = neg_rule,       [OP_add] = add_rule,       [OP_sub] = sub_rule,          [OP_mul] = mul_rule,
    [OP_div] = div_rule,       [OP_pow] = pow_rule,       [OP_abs] = abs_rule,          [OP_max] = extremum_rule,
    [OP_min] = extremum_rule,  [OP_eq] = constant_right,  [OP_ne] = constant_right,     [OP_not] = not_rule,
    [OP_and] = and_or_rule,    [OP_or] = and_or_rule,     [OP_select] = select_rule,    [OP_cast] = cast_rule,
    [OP_stop_gradient] = first_operand,                   [OP_custom_gradient] = first_operand,
};

ir_node *ir_simplify_arithmetic(ir_graph *graph, ir_node *node)
{
    ir_node *better = arithmetic_rules[node->op] ? arithmetic_rules[node->op](graph, node) : NULL;
    if (!better && ir_op_table[node->op].class == IR_ELEMENTWISE)
        better = before_broadcast(graph, node);
    return better;
}
