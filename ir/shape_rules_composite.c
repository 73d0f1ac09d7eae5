/* Shape rules of the composites; see shape_rules.c. */
#include "ir/shape_rules.h"

#include <math.h>

/* -- composites -------------------------------------------------------------------------------------------------------- */

bool shape_float_axis(const ir_node *node, ir_type *type, base_text *why)
{
    *type = *ir_arg_type(node, 0);
    return ir_is_float("x", type, why) && ir_has_axis("x", type, node->attr.axis, why);
}

bool shape_norm(const ir_node *node, ir_type *type, base_text *why)
{
    static const char *const names[] = { "x", "weight", "bias" };
    if (!ir_has_args(node, 2, node->op == OP_layer_norm ? 3 : 2, why))
        return false;
    const ir_type *x = ir_arg_type(node, 0);
    if (x->rank < 1)
        return ir_because(why, "x %T is a scalar, expected at least one axis", x);
    *type = *x;
    for (int i = 1; i < node->n_args; i++) {
        const ir_type *vector = ir_arg_type(node, i);
        if (!ir_is_rank(names[i], vector, 1, why) || !ir_same_dim("x", x, x->rank - 1, names[i], vector, 0, why) ||
            !ir_same_dtype("x", x, names[i], vector, why))
            return false;
        ir_borrow_name(type, x->rank - 1, vector, 0);
    }
    if (!(node->attr.epsilon >= 0))
        return ir_because(why, "epsilon is to be at least 0, got %f", node->attr.epsilon);
    return ir_is_float("x", x, why);
}

/* targets has the shape of of without its last axis. */
static bool are_targets(const ir_type *targets, const char *of_name, const ir_type *of, base_text *why)
{
    if (!ir_is_dtype("targets", targets, IR_I32, why))
        return false;
    if (targets->rank != of->rank - 1)
        return ir_because(why, "%s %T has rank %d, targets %T has rank %d, expected %d", of_name, of, of->rank, targets,
                          targets->rank, of->rank - 1);
    for (int i = 0; i < targets->rank; i++)
        if (!ir_same_dim(of_name, of, i, "targets", targets, i, why))
            return false;
    return true;
}

bool shape_cross_entropy(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *logits = ir_arg_type(node, 0), *targets = ir_arg_type(node, 1);
    if (!ir_is_float("logits", logits, why))
        return false;
    if (logits->rank < 1 || logits->dim[logits->rank - 1] < 1)
        return ir_because(why, "logits %T have no classes on their last axis", logits);
    if (!are_targets(targets, "logits", logits, why))
        return false;
    *type = ir_type_with_dtype(*targets, logits->dtype);
    ir_borrow_names(type, logits);
    return true;
}

/* Sums of bf16 products are f32. */
static ir_dtype sum_dtype(ir_dtype dtype) { return dtype == IR_BF16 ? IR_F32 : dtype; }

bool shape_linear_cross_entropy(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0), *weight = ir_arg_type(node, 1), *targets = ir_arg_type(node, 2);
    if (!ir_is_float("x", x, why) || !ir_same_dtype("x", x, "weight", weight, why) || !ir_is_rank("x", x, 2, why) ||
        !ir_is_rank("weight", weight, 2, why) || !ir_same_dim("x", x, 1, "weight", weight, 1, why) ||
            !are_targets(targets, "x", x, why))
        return false;
    if (weight->dim[0] < 1)
        return ir_because(why, "weight %T has no classes on axis 0", weight);
    *type = ir_type_with_dtype(*targets, sum_dtype(x->dtype));
    ir_borrow_name(type, 0, x, 0);
    return true;
}

bool shape_linear_cross_entropy_vjp(const ir_node *node, ir_type *type, base_text *why)
{
    ir_type loss;
    if (!shape_linear_cross_entropy(node, &loss, why) || !ir_same_type("dloss", ir_arg_type(node, 3), "loss", &loss, why))
        return false;
    ir_type results[] = { loss, ir_type_with_dtype(*ir_arg_type(node, 0), loss.dtype),
                         ir_type_with_dtype(*ir_arg_type(node, 1), loss.dtype) };
    ir_tuple_set(node, type, COUNT_OF(results), results);
    return true;
}

/* q[B,H,T,D], k and v[B,H,S,D], the attributes, and with dropout the last two of n_args operands. */
static bool attention_fits(const ir_node *node, int n_tensors, base_text *why)
{
    static const char *const names[] = { "q", "k", "v" };
    const ir_attr *attr = &node->attr;
    if (!(attr->dropout >= 0 && attr->dropout < 1))
        return ir_because(why, "dropout is to be at least 0 and below 1, got %f", attr->dropout);
    if (!isfinite(attr->scale))
        return ir_because(why, "scale is to be finite, got %f", attr->scale);
    int n_args = n_tensors + (attr->dropout > 0 ? 2 : 0);
    if (!ir_has_args(node, n_args, n_args, why))
        return false;
    const ir_type *q = ir_arg_type(node, 0), *k = ir_arg_type(node, 1);
    for (int i = 0; i < 3; i++) {
        const ir_type *x = ir_arg_type(node, i);
        if (!ir_is_rank(names[i], x, 4, why) || !ir_is_float(names[i], x, why) || !ir_same_dtype("q", q, names[i], x, why))
            return false;
        for (int a = 0; a < 4; a++)
            if (a != 2 && !ir_same_dim("q", q, a, names[i], x, a, why))
                return false;
    }
    if (!ir_same_dim("k", k, 2, "v", ir_arg_type(node, 2), 2, why))
        return false;
    if (k->dim[2] == 0 && q->dim[2] > 0)
        return ir_because(why, "k %T has no key on axis 2", k);
    if (attr->causal && k->dim[2] < q->dim[2])
        return ir_because(why, "q %T has %D on axis 2, k %T has %D: the first rows would see no key", q, q, 2, k, k, 2);
    return attr->dropout == 0 || ir_is_seed_and_counter(ir_arg_type(node, n_tensors), ir_arg_type(node, n_tensors + 1), why);
}

static ir_type lse_type(const ir_type *q)
{
    int last = 3;
    ir_type type;
    ir_drop_axes(&type, q, 1, &last);
    return ir_type_with_dtype(type, sum_dtype(q->dtype));
}

bool shape_attention(const ir_node *node, ir_type *type, base_text *why)
{
    if (!attention_fits(node, 3, why))
        return false;
    ir_type results[] = { *ir_arg_type(node, 0), lse_type(ir_arg_type(node, 0)) };
    ir_tuple_set(node, type, COUNT_OF(results), results);
    return true;
}

bool shape_attention_vjp(const ir_node *node, ir_type *type, base_text *why)
{
    if (!attention_fits(node, 7, why))
        return false;
    const ir_type *q = ir_arg_type(node, 0), lse = lse_type(q);
    if (!ir_same_type("out", ir_arg_type(node, 3), "q", q, why) ||
        !ir_same_type("lse", ir_arg_type(node, 4), "that of q", &lse, why) ||
        !ir_same_type("dout", ir_arg_type(node, 5), "q", q, why) ||
        !ir_same_type("dlse", ir_arg_type(node, 6), "that of q", &lse, why))
        return false;
    ir_type results[] = { *q, *ir_arg_type(node, 1), *ir_arg_type(node, 2) };
    for (int i = 0; i < (int)COUNT_OF(results); i++)
        results[i].dtype = lse.dtype;
    ir_tuple_set(node, type, COUNT_OF(results), results);
    return true;
}

bool shape_adamw(const ir_node *node, ir_type *type, base_text *why)
{
    static const char *const names[] = { "w", "m", "v", "dw", "lr", "beta1", "beta2", "epsilon", "weight_decay",
                                        "1-beta1^t", "1-beta2^t" };
    if (!ir_has_args(node, COUNT_OF(names), COUNT_OF(names), why))
        return false;
    const ir_type *w = ir_arg_type(node, 0);
    if (w->dtype != IR_F32 && w->dtype != IR_F64)
        return ir_because(why, "w %T is %s, expected f32 or f64", w, ir_dtype_name(w->dtype));
    for (int i = 1; i < (int)COUNT_OF(names); i++) {
        const ir_type *x = ir_arg_type(node, i);
        bool fits = i < 4 ? ir_same_type("w", w, names[i], x, why)
                          : ir_is_rank(names[i], x, 0, why) && ir_same_dtype("w", w, names[i], x, why);
        if (!fits)
            return false;
    }
    ir_type results[] = { *w, *ir_arg_type(node, 1), *ir_arg_type(node, 2) };
    ir_tuple_set(node, type, COUNT_OF(results), results);
    return true;
}
