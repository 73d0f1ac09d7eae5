/* Shape rules: the type of a node from its operands and attributes, or the reason why it has none. One function for each
 * name in the shape column of ops.def.
 *
 * A rule is called with the operands' types sound, the arity of the table (unless VARIADIC), no tuple among the operands
 * (but for `result`), and *type holding the stated type where the op has RESULT_TYPE. It trusts no attribute: text comes here
 * unchecked. The reason names operands, types, axes and dim names, and never the op, which the caller knows:
 *
 *     lhs f32[B=8,T=64,C=384] has C=384 on axis 2, rhs f32[768,384] has 768 on axis 0
 *     rhs has 384 on axis 1: transpose(rhs, 1, 0) would fit
 *
 * Names of dims go from operands to results: an axis of the result takes the name that any operand has for it. */
#include "ir/shape_rules.h"

#include <math.h>
#include <string.h>

/* -- leaves ------------------------------------------------------------------------------------------------------------ */

static bool value_fits(ir_dtype dtype, double value, base_text *why)
{
    if (dtype == IR_I32 && !(value == floor(value) && value >= INT32_MIN && value <= INT32_MAX))
        return ir_because(why, "value %f is no i32", value);
    if (dtype == IR_BOOL && value != 0 && value != 1)
        return ir_because(why, "value %f is no bool", value);
    return true;
}

bool shape_as_stated(const ir_node *node, ir_type *type, base_text *why)
{
    if (node->op == OP_literal && !node->attr.data && ir_type_count(type) > 0)
        return ir_because(why, "%T has %l elements, and no data is given", type, ir_type_count(type));
    return node->op != OP_constant || value_fits(type->dtype, node->attr.value, why);
}

bool shape_iota(const ir_node *node, ir_type *type, base_text *why)
{
    return ir_is_number("result", type, why) && ir_has_axis("result", type, node->attr.axis, why);
}

/* -- elementwise ------------------------------------------------------------------------------------------------------- */

static bool elementwise(const ir_node *node, ir_type *type, base_text *why)
{
    *type = *ir_arg_type(node, 0);
    for (int i = 1; i < node->n_args; i++) {
        if (!ir_same_type("lhs", ir_arg_type(node, 0), "rhs", ir_arg_type(node, i), why))
            return false;
        ir_borrow_names(type, ir_arg_type(node, i));
    }
    return true;
}

/* What the operand is called in a reason: the field's words. */
static const char *first_name(const ir_node *node) { return node->n_args == 1 ? "x" : "lhs"; }

bool shape_number(const ir_node *node, ir_type *type, base_text *why)
{
    return elementwise(node, type, why) && ir_is_number(first_name(node), type, why);
}

bool shape_float(const ir_node *node, ir_type *type, base_text *why)
{
    return elementwise(node, type, why) && ir_is_float(first_name(node), type, why);
}

bool shape_bool(const ir_node *node, ir_type *type, base_text *why)
{
    return elementwise(node, type, why) && ir_is_dtype(first_name(node), type, IR_BOOL, why);
}

bool shape_same(const ir_node *node, ir_type *type, base_text *why) { return elementwise(node, type, why); }

bool shape_compare(const ir_node *node, ir_type *type, base_text *why)
{
    if (!elementwise(node, type, why))
        return false;
    type->dtype = IR_BOOL;
    return true;
}

bool shape_cast(const ir_node *node, ir_type *type, base_text *why)
{
    if (!ir_same_shape("x", ir_arg_type(node, 0), "result", type, why))
        return false;
    ir_borrow_names(type, ir_arg_type(node, 0));
    return true;
}

bool shape_select(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *condition = ir_arg_type(node, 0), *yes = ir_arg_type(node, 1), *no = ir_arg_type(node, 2);
    if (!ir_is_dtype("condition", condition, IR_BOOL, why) || !ir_same_shape("condition", condition, "yes", yes, why) ||
        !ir_same_type("yes", yes, "no", no, why))
        return false;
    *type = *yes;
    ir_borrow_names(type, no);
    ir_borrow_names(type, condition);
    return true;
}

/* -- reductions -------------------------------------------------------------------------------------------------------- */

bool shape_reduce(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0);
    if (!ir_is_number("x", x, why) || !ir_axes_ascend("x", x, &node->attr, why))
        return false;
    ir_drop_axes(type, x, node->attr.n_axes, node->attr.axes);
    return true;
}

bool shape_argmax(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0);
    int axis = node->attr.axis;
    if (!ir_is_number("x", x, why) || !ir_has_axis("x", x, axis, why))
        return false;
    if (x->dim[axis] == 0)
        return ir_because(why, "x %T has %D on axis %d: nothing has no maximum", x, x, axis, axis);
    ir_drop_axes(type, x, 1, &axis);
    type->dtype = IR_I32;
    return true;
}

/* -- contraction ------------------------------------------------------------------------------------------------------- */

bool shape_matmul(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *lhs = ir_arg_type(node, 0), *rhs = ir_arg_type(node, 1), stated = *type;
    if (lhs->rank < 2 || rhs->rank < 2) {
        bool left = lhs->rank < 2;
        return ir_because(why, "%s %T has rank %d, expected at least 2", left ? "lhs" : "rhs", left ? lhs : rhs,
                          left ? lhs->rank : rhs->rank);
    }
    int k_lhs = lhs->rank - 1, k_rhs = rhs->rank - 2;
    if (!ir_same_dim("lhs", lhs, k_lhs, "rhs", rhs, k_rhs, why)) {
        const char *fits = NULL;
        if (rhs->dim[rhs->rank - 1] == lhs->dim[k_lhs])
            fits = "rhs";
        else if (lhs->dim[lhs->rank - 2] == rhs->dim[k_rhs])
            fits = "lhs";
        if (!fits)
            return false;
        const ir_type *turn = fits[0] == 'r' ? rhs : lhs;
        int axis = fits[0] == 'r' ? rhs->rank - 1 : lhs->rank - 2;
        ir_because(why, "\n%s has %D on axis %d: transpose(%s", fits, turn, axis, axis, fits);
        for (int i = 0; i < turn->rank; i++)
            ir_because(why, ", %d", i < turn->rank - 2 ? i : 2 * turn->rank - 3 - i);
        return ir_because(why, ") would fit");
    }
    if (!ir_same_rank("lhs", lhs, "rhs", rhs, why) || !ir_same_dtype("lhs", lhs, "rhs", rhs, why) ||
        !ir_is_float("lhs", lhs, why))
        return false;
    *type = *lhs;
    type->dtype = stated.dtype;
    for (int i = 0; i < lhs->rank - 2; i++) {
        if (!ir_same_dim("lhs", lhs, i, "rhs", rhs, i, why))
            return false;
        ir_borrow_name(type, i, rhs, i);
    }
    type->dim[rhs->rank - 1] = rhs->dim[rhs->rank - 1];
    type->dim_name[rhs->rank - 1] = rhs->dim_name[rhs->rank - 1];
    if (!ir_same_shape("result", &stated, "product", type, why))
        return false;
    return stated.dtype == lhs->dtype || (lhs->dtype == IR_BF16 && stated.dtype == IR_F32) ||
           ir_because(why, "the product of %s operands is not %T", ir_dtype_name(lhs->dtype), type);
}

/* -- movement ---------------------------------------------------------------------------------------------------------- */

/* Names survive on the axes before the first and after the last that change: [B,T,C] as [B,T,H,D] keeps B and T. */
bool shape_reshape(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0);
    if (!ir_same_dtype("x", x, "result", type, why))
        return false;
    if (ir_type_count(x) != ir_type_count(type))
        return ir_because(why, "x %T has %l elements, result %T has %l", x, ir_type_count(x), type, ir_type_count(type));
    int shorter = MIN(x->rank, type->rank), head = 0;
    for (; head < shorter && x->dim[head] == type->dim[head]; head++)
        ir_borrow_name(type, head, x, head);
    for (int i = 1; i <= shorter - head && x->dim[x->rank - i] == type->dim[type->rank - i]; i++)
        ir_borrow_name(type, type->rank - i, x, x->rank - i);
    return true;
}

bool shape_transpose(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0);
    const ir_attr *attr = &node->attr;
    bool seen[IR_MAX_RANK] = { false };
    if (attr->n_axes != x->rank)
        return ir_because(why, "x %T has rank %d, got %d axes", x, x->rank, attr->n_axes);
    *type = *x;
    for (int i = 0; i < x->rank; i++) {
        int from = attr->axes[i];
        if (!ir_has_axis("x", x, from, why))
            return false;
        if (seen[from])
            return ir_because(why, "axis %d comes twice", from);
        seen[from] = true;
        type->dim[i] = x->dim[from];
        type->dim_name[i] = x->dim_name[from];
    }
    return true;
}

bool shape_broadcast(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0);
    const ir_attr *attr = &node->attr;
    if (!ir_same_dtype("x", x, "result", type, why))
        return false;
    if (attr->n_axes != x->rank)
        return ir_because(why, "x %T has rank %d, got %d axes", x, x->rank, attr->n_axes);
    if (!ir_axes_ascend("result", type, attr, why))
        return false;
    for (int i = 0; i < x->rank; i++) {
        int to = attr->axes[i];
        if (x->dim[i] == type->dim[to])
            ir_borrow_name(type, to, x, i);
        else if (x->dim[i] != 1)
            return ir_same_dim("x", x, i, "result", type, to, why);
    }
    return true;
}

/* Whether part lies in whole from start on. */
static bool lies_within(const char *part_name, const ir_type *part, const char *whole_name, const ir_type *whole,
                        const int64_t *start, base_text *why)
{
    for (int i = 0; i < whole->rank; i++)
        if (start[i] < 0 || start[i] > whole->dim[i] || part->dim[i] > whole->dim[i] - start[i])
            return ir_because(why, "%s %T does not lie in %s %T: axis %d from %l", part_name, part, whole_name, whole,
                              i, start[i]);
    return true;
}

static void borrow_whole_axes(ir_type *to, const ir_type *from)
{
    for (int i = 0; i < to->rank; i++)
        if (to->dim[i] == from->dim[i])
            ir_borrow_name(to, i, from, i);
}

bool shape_slice(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0);
    if (!ir_same_dtype("x", x, "result", type, why) || !ir_same_rank("x", x, "result", type, why) ||
        !lies_within("result", type, "x", x, node->attr.start, why))
        return false;
    borrow_whole_axes(type, x);
    return true;
}

bool shape_pad(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0);
    if (!ir_same_dtype("x", x, "result", type, why) || !ir_same_rank("x", x, "result", type, why) ||
        !lies_within("x", x, "result", type, node->attr.start, why) || !value_fits(type->dtype, node->attr.value, why))
        return false;
    borrow_whole_axes(type, x);
    return true;
}

bool shape_concatenate(const ir_node *node, ir_type *type, base_text *why)
{
    int axis = node->attr.axis;
    if (node->n_args < 1)
        return ir_because(why, "expected at least 1 operand, got none");
    *type = *ir_arg_type(node, 0);
    if (!ir_has_axis("first", type, axis, why))
        return false;
    for (int i = 1; i < node->n_args; i++) {
        const ir_type *next = ir_arg_type(node, i);
        base_text name = {0};
        base_text_add(&name, "operand %d", i);
        bool fits = ir_same_dtype("first", ir_arg_type(node, 0), name.at, next, why) &&
                    ir_same_rank("first", ir_arg_type(node, 0), name.at, next, why);
        for (int a = 0; fits && a < type->rank; a++)
            fits = a == axis || ir_same_dim("first", ir_arg_type(node, 0), a, name.at, next, a, why);
        base_text_free(&name);
        if (!fits)
            return false;
        type->dim[axis] += next->dim[axis];
        type->dim_name[axis] = NULL;
        for (int a = 0; a < type->rank; a++)
            if (a != axis)
                ir_borrow_name(type, a, next, a);
        if (type->dim[axis] > IR_MAX_ELEMENTS)
            return ir_because(why, "axis %d would have over 2^40 elements", axis);
    }
    return true;
}

static bool starts_fit(const ir_node *node, int first, int rank, base_text *why)
{
    if (!ir_has_args(node, first + rank, first + rank, why))
        return false;
    for (int i = first; i < node->n_args; i++)
        if (!ir_is_scalar_i32("start", ir_arg_type(node, i), why))
            return false;
    return true;
}

bool shape_dynamic_slice(const ir_node *node, ir_type *type, base_text *why)
{
    static const int64_t at_zero[IR_MAX_RANK];
    if (node->n_args < 1)
        return ir_because(why, "expected x and a start an axis, got no operand");
    const ir_type *x = ir_arg_type(node, 0);
    if (!starts_fit(node, 1, x->rank, why) || !ir_same_dtype("x", x, "result", type, why) ||
        !ir_same_rank("x", x, "result", type, why) || !lies_within("result", type, "x", x, at_zero, why))
        return false;
    borrow_whole_axes(type, x);
    return true;
}

bool shape_update_slice(const ir_node *node, ir_type *type, base_text *why)
{
    static const int64_t at_zero[IR_MAX_RANK];
    if (node->n_args < 2)
        return ir_because(why, "expected base, update and a start an axis, got %d operands", node->n_args);
    const ir_type *base = ir_arg_type(node, 0), *update = ir_arg_type(node, 1);
    if (!starts_fit(node, 2, base->rank, why) || !ir_same_dtype("base", base, "update", update, why) ||
        !ir_same_rank("base", base, "update", update, why) || !lies_within("update", update, "base", base, at_zero, why))
        return false;
    *type = *base;
    borrow_whole_axes(type, update);
    return true;
}

/* -- indexing ---------------------------------------------------------------------------------------------------------- */

/* The type of what is read from, or added to, the places of x that indices name. */
static bool gathered(const char *x_name, const ir_type *x, const ir_type *indices, int axis, ir_type *type, base_text *why)
{
    if (!ir_is_dtype("indices", indices, IR_I32, why) || !ir_has_axis(x_name, x, axis, why))
        return false;
    if (x->rank - 1 + indices->rank > IR_MAX_RANK)
        return ir_because(why, "%s %T by indices %T would have rank %d, at most %d is supported", x_name, x, indices,
                       x->rank - 1 + indices->rank, IR_MAX_RANK);
    if (x->dim[axis] == 0 && ir_type_count(indices) > 0)
        return ir_because(why, "%s %T has %D on axis %d: there is nothing to index", x_name, x, x, axis, axis);
    *type = ir_scalar(x->dtype);
    for (int i = 0; i < x->rank; i++) {
        const ir_type *from = i == axis ? indices : x;
        for (int j = i == axis ? 0 : i; j < (i == axis ? indices->rank : i + 1); j++) {
            type->dim[type->rank] = from->dim[j];
            type->dim_name[type->rank++] = from->dim_name[j];
        }
    }
    return true;
}

bool shape_gather(const ir_node *node, ir_type *type, base_text *why)
{
    return gathered("x", ir_arg_type(node, 0), ir_arg_type(node, 1), node->attr.axis, type, why);
}

bool shape_scatter_add(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *base = ir_arg_type(node, 0);
    ir_type place;
    if (!ir_is_number("base", base, why) || !gathered("base", base, ir_arg_type(node, 1), node->attr.axis, &place, why) ||
        !ir_type_is_sound(&place, why) || !ir_same_type("updates", ir_arg_type(node, 2), "base by indices", &place, why))
        return false;
    *type = *base;
    return true;
}

bool shape_one_hot(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = ir_arg_type(node, 0);
    if (!ir_is_dtype("x", x, IR_I32, why) || !ir_is_rank("result", type, x->rank + 1, why))
        return false;
    for (int i = 0; i < x->rank; i++) {
        if (!ir_same_dim("x", x, i, "result", type, i, why))
            return false;
        ir_borrow_name(type, i, x, i);
    }
    return true;
}

/* -- random ------------------------------------------------------------------------------------------------------------ */

static bool is_probability(const char *name, double p, base_text *why)
{
    return (p >= 0 && p <= 1) || ir_because(why, "%s %f is no probability", name, p);
}

bool shape_random(const ir_node *node, ir_type *type, base_text *why)
{
    if (!ir_is_seed_and_counter(ir_arg_type(node, 0), ir_arg_type(node, 1), why))
        return false;
    if (node->op == OP_random_bits)
        return ir_is_dtype("result", type, IR_I32, why);
    if (node->op == OP_bernoulli)
        return ir_is_dtype("result", type, IR_BOOL, why) && is_probability("value", node->attr.value, why);
    return ir_is_float("result", type, why);
}

/* -- control ----------------------------------------------------------------------------------------------------------- */

bool shape_result(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_node *from = node->args[0];
    if (from->type.dtype != IR_TUPLE)
        return ir_because(why, "operand %T is not an op with several results", &from->type);
    if (node->attr.index < 0 || node->attr.index >= from->n_tuple)
        return ir_because(why, "%s has results 0 to %d, got index %d", OP_NAME(from->op), from->n_tuple - 1, node->attr.index);
    *type = from->tuple[node->attr.index];
    return true;
}

/* "parameter 3 of the body": what reasons call the inside of a body. */
static bool fits_body(const char *kind, int i, const ir_type *inside, const ir_type *outside, base_text *why)
{
    return ir_type_equal(inside, outside) || ir_because(why, "%s %d of the body is %T, expected %T", kind, i, inside, outside);
}

bool shape_custom_gradient(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_graph *body = node->attr.body;
    int n = node->n_args - 1;
    if (n < 0)
        return ir_because(why, "expected y and the xs, got no operand");
    if (!body)
        return ir_because(why, "expected a body, got none");
    if (body->n_params != n + 2 || body->n_results != n)
        return ir_because(why, "expected a body of %d parameters and %d results, got %d and %d", n + 2, n,
                          body->n_params, body->n_results);
    *type = *ir_arg_type(node, 0);
    for (int i = 0; i < n; i++)
        if (!fits_body("parameter", i, &body->params[i]->type, ir_arg_type(node, i + 1), why) ||
            !fits_body("result", i, &body->results[i]->type, ir_arg_type(node, i + 1), why))
            return false;
    return fits_body("parameter", n, &body->params[n]->type, type, why) &&
           fits_body("parameter", n + 1, &body->params[n + 1]->type, type, why);
}

static bool scan_operands_fit(const ir_node *node, base_text *why)
{
    const ir_attr *attr = &node->attr;
    for (int i = 0; i < node->n_args; i++) {
        ir_type want = *ir_arg_type(node, i);
        if (i >= attr->n_carry && i < attr->n_carry + attr->n_xs) {
            if (want.rank < 1 || want.dim[0] != attr->count)
                return ir_because(why, "operand %d %T does not have count=%l on axis 0", i, &want, attr->count);
            int first = 0;
            ir_drop_axes(&want, ir_arg_type(node, i), 1, &first);
        }
        if (!fits_body("parameter", i, &attr->body->params[i]->type, &want, why))
            return false;
    }
    return true;
}

bool shape_scan(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_attr *attr = &node->attr;
    const ir_graph *body = attr->body;
    if (!body)
        return ir_because(why, "expected a body, got none");
    if (attr->count < 0 || attr->count > IR_MAX_ELEMENTS)
        return ir_because(why, "expected a count of iterations, got %l", attr->count);
    if (attr->n_carry < 0 || attr->n_xs < 0 || attr->n_carry > node->n_args || attr->n_xs > node->n_args - attr->n_carry)
        return ir_because(why, "%d carries and %d xs are not among %d operands", attr->n_carry, attr->n_xs, node->n_args);
    if (body->n_params != node->n_args)
        return ir_because(why, "expected a body of %d parameters, got %d", node->n_args, body->n_params);
    if (body->n_results < attr->n_carry || body->n_results == 0)
        return ir_because(why, "expected a body with %d carries among its results, got %d results", attr->n_carry,
                          body->n_results);
    if (!scan_operands_fit(node, why))
        return false;

    ir_type *results = base_alloc(sizeof *results * (size_t)body->n_results);
    bool fits = true;
    for (int i = 0; fits && i < body->n_results; i++) {
        const ir_type *inside = &body->results[i]->type;
        if (i < attr->n_carry) {
            fits = fits_body("result", i, inside, ir_arg_type(node, i), why);
            results[i] = *ir_arg_type(node, i);
        } else if (inside->rank == IR_MAX_RANK) {
            fits = ir_because(why, "result %d of the body is %T: stacked, its rank would be above %d", i, inside, IR_MAX_RANK);
        } else {
            results[i] = (ir_type){ .dtype = inside->dtype, .rank = inside->rank + 1, .dim = { attr->count } };
            memcpy(results[i].dim + 1, inside->dim, sizeof *inside->dim * (size_t)inside->rank);
            memcpy(results[i].dim_name + 1, inside->dim_name, sizeof *inside->dim_name * (size_t)inside->rank);
        }
    }
    if (fits)
        ir_tuple_set(node, type, body->n_results, results);
    base_free(results);
    return fits;
}
