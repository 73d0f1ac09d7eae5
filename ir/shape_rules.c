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

/* -- reasons ---------------------------------------------------------------------------------------------------------- */

/* "x f32[2,3] has 3 on axis 1, y f32[4] has 4 on axis 0": a printf format in which %T takes a const ir_type *, %D a
 * const ir_type * and an axis (its dim with its name), %d, %s and %f as ever. Always false, for `return because(...)`. */
static bool because(base_text *why, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    for (const char *at = format; *at; at++) {
        if (*at != '%') {
            base_text_bytes(why, at, 1);
            continue;
        }
        switch (*++at) {
        case 'T':
            ir_type_print(why, va_arg(args, const ir_type *));
            break;
        case 'D': {
            const ir_type *type = va_arg(args, const ir_type *);
            int axis = va_arg(args, int);
            if (type->dim_name[axis])
                base_text_add(why, "%s=", type->dim_name[axis]);
            base_text_add(why, "%lld", (long long)type->dim[axis]);
            break;
        }
        case 'd': base_text_add(why, "%d", va_arg(args, int)); break;
        case 'l': base_text_add(why, "%lld", (long long)va_arg(args, int64_t)); break;
        case 'f': base_text_add(why, "%g", va_arg(args, double)); break;
        case 's': base_text_add(why, "%s", va_arg(args, const char *)); break;
        default: base_bug(__FILE__, __LINE__, "because: expected one of %%T %%D %%d %%l %%f %%s in \"%s\"", format);
        }
    }
    va_end(args);
    return false;
}

static const ir_type *type_of(const ir_node *node, int arg) { return &node->args[arg]->type; }

/* -- checks that rules share ------------------------------------------------------------------------------------------- */

static bool has_args(const ir_node *node, int low, int high, base_text *why)
{
    if (node->n_args >= low && node->n_args <= high)
        return true;
    if (low == high)
        return because(why, "expected %d operands, got %d", low, node->n_args);
    return because(why, "expected %d to %d operands, got %d", low, high, node->n_args);
}

static bool same_dtype(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why)
{
    return a->dtype == b->dtype ||
           because(why, "%s %T is %s, %s %T is %s", a_name, a, ir_dtype_name(a->dtype), b_name, b, ir_dtype_name(b->dtype));
}

static bool same_rank(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why)
{
    return a->rank == b->rank || because(why, "%s %T has rank %d, %s %T has rank %d", a_name, a, a->rank, b_name, b, b->rank);
}

static bool same_dim(const char *a_name, const ir_type *a, int a_axis, const char *b_name, const ir_type *b, int b_axis, base_text *why)
{
    return a->dim[a_axis] == b->dim[b_axis] || because(why, "%s %T has %D on axis %d, %s %T has %D on axis %d", a_name, a, a, a_axis,
                                                       a_axis, b_name, b, b, b_axis, b_axis);
}

static bool same_shape(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why)
{
    if (!same_rank(a_name, a, b_name, b, why))
        return false;
    for (int i = 0; i < a->rank; i++)
        if (!same_dim(a_name, a, i, b_name, b, i, why))
            return false;
    return true;
}

static bool same_type(const char *a_name, const ir_type *a, const char *b_name, const ir_type *b, base_text *why)
{
    return same_shape(a_name, a, b_name, b, why) && same_dtype(a_name, a, b_name, b, why);
}

static bool is_rank(const char *name, const ir_type *type, int rank, base_text *why)
{
    return type->rank == rank || because(why, "%s %T has rank %d, expected %d", name, type, type->rank, rank);
}

static bool is_dtype(const char *name, const ir_type *type, ir_dtype dtype, base_text *why)
{
    return type->dtype == dtype || because(why, "%s %T is %s, expected %s", name, type, ir_dtype_name(type->dtype), ir_dtype_name(dtype));
}

static bool is_float(const char *name, const ir_type *type, base_text *why)
{
    return ir_dtype_is_float(type->dtype) ||
           because(why, "%s %T is %s, expected f32, f64 or bf16", name, type, ir_dtype_name(type->dtype));
}

static bool is_number(const char *name, const ir_type *type, base_text *why)
{
    return type->dtype != IR_BOOL || because(why, "%s %T is bool, expected f32, f64, bf16 or i32", name, type);
}

static bool is_scalar_i32(const char *name, const ir_type *type, base_text *why)
{
    return (type->rank == 0 && type->dtype == IR_I32) || because(why, "%s %T is not i32[]", name, type);
}

static bool has_axis(const char *name, const ir_type *type, int axis, base_text *why)
{
    if (axis >= 0 && axis < type->rank)
        return true;
    if (type->rank == 0)
        return because(why, "%s %T has no axis %d: it is a scalar", name, type, axis);
    return because(why, "%s %T has axes 0 to %d, got axis %d", name, type, type->rank - 1, axis);
}

static bool axes_ascend(const char *name, const ir_type *type, const ir_attr *attr, base_text *why)
{
    for (int i = 0; i < attr->n_axes; i++) {
        if (!has_axis(name, type, attr->axes[i], why))
            return false;
        if (i > 0 && attr->axes[i] <= attr->axes[i - 1])
            return because(why, "axes are to ascend, got %d after %d", attr->axes[i], attr->axes[i - 1]);
    }
    return true;
}

/* -- names of dims ----------------------------------------------------------------------------------------------------- */

static void borrow_name(ir_type *to, int to_axis, const ir_type *from, int from_axis)
{
    if (!to->dim_name[to_axis])
        to->dim_name[to_axis] = from->dim_name[from_axis];
}

static void borrow_names(ir_type *to, const ir_type *from)
{
    for (int i = 0; i < to->rank; i++)
        borrow_name(to, i, from, i);
}

/* -- leaves ------------------------------------------------------------------------------------------------------------ */

static bool value_fits(ir_dtype dtype, double value, base_text *why)
{
    if (dtype == IR_I32 && !(value == floor(value) && value >= INT32_MIN && value <= INT32_MAX))
        return because(why, "value %f is no i32", value);
    if (dtype == IR_BOOL && value != 0 && value != 1)
        return because(why, "value %f is no bool", value);
    return true;
}

bool shape_as_stated(const ir_node *node, ir_type *type, base_text *why)
{
    if (node->op == OP_literal && !node->attr.data && ir_type_count(type) > 0)
        return because(why, "%T has %l elements, and no data is given", type, ir_type_count(type));
    return node->op != OP_constant || value_fits(type->dtype, node->attr.value, why);
}

bool shape_iota(const ir_node *node, ir_type *type, base_text *why)
{
    return is_number("result", type, why) && has_axis("result", type, node->attr.axis, why);
}

/* -- elementwise ------------------------------------------------------------------------------------------------------- */

static bool elementwise(const ir_node *node, ir_type *type, base_text *why)
{
    *type = *type_of(node, 0);
    for (int i = 1; i < node->n_args; i++) {
        if (!same_type("lhs", type_of(node, 0), "rhs", type_of(node, i), why))
            return false;
        borrow_names(type, type_of(node, i));
    }
    return true;
}

/* What the operand is called in a reason: the field's words. */
static const char *first_name(const ir_node *node) { return node->n_args == 1 ? "x" : "lhs"; }

bool shape_number(const ir_node *node, ir_type *type, base_text *why)
{
    return elementwise(node, type, why) && is_number(first_name(node), type, why);
}

bool shape_float(const ir_node *node, ir_type *type, base_text *why)
{
    return elementwise(node, type, why) && is_float(first_name(node), type, why);
}

bool shape_bool(const ir_node *node, ir_type *type, base_text *why)
{
    return elementwise(node, type, why) && is_dtype(first_name(node), type, IR_BOOL, why);
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
    if (!same_shape("x", type_of(node, 0), "result", type, why))
        return false;
    borrow_names(type, type_of(node, 0));
    return true;
}

bool shape_select(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *condition = type_of(node, 0), *yes = type_of(node, 1), *no = type_of(node, 2);
    if (!is_dtype("condition", condition, IR_BOOL, why) || !same_shape("condition", condition, "yes", yes, why) ||
        !same_type("yes", yes, "no", no, why))
        return false;
    *type = *yes;
    borrow_names(type, no);
    borrow_names(type, condition);
    return true;
}

/* -- reductions -------------------------------------------------------------------------------------------------------- */

static void drop_axes(ir_type *type, const ir_type *from, int n_axes, const int *axes)
{
    *type = ir_scalar(from->dtype);
    for (int i = 0, next = 0; i < from->rank; i++) {
        if (next < n_axes && axes[next] == i) {
            next++;
            continue;
        }
        type->dim[type->rank] = from->dim[i];
        type->dim_name[type->rank++] = from->dim_name[i];
    }
}

bool shape_reduce(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0);
    if (!is_number("x", x, why) || !axes_ascend("x", x, &node->attr, why))
        return false;
    drop_axes(type, x, node->attr.n_axes, node->attr.axes);
    return true;
}

bool shape_argmax(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0);
    int axis = node->attr.axis;
    if (!is_number("x", x, why) || !has_axis("x", x, axis, why))
        return false;
    if (x->dim[axis] == 0)
        return because(why, "x %T has %D on axis %d: nothing has no maximum", x, x, axis, axis);
    drop_axes(type, x, 1, &axis);
    type->dtype = IR_I32;
    return true;
}

/* -- contraction ------------------------------------------------------------------------------------------------------- */

bool shape_matmul(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *lhs = type_of(node, 0), *rhs = type_of(node, 1), stated = *type;
    if (lhs->rank < 2 || rhs->rank < 2) {
        bool left = lhs->rank < 2;
        return because(why, "%s %T has rank %d, expected at least 2", left ? "lhs" : "rhs", left ? lhs : rhs, left ? lhs->rank : rhs->rank);
    }
    int k_lhs = lhs->rank - 1, k_rhs = rhs->rank - 2;
    if (!same_dim("lhs", lhs, k_lhs, "rhs", rhs, k_rhs, why)) {
        const char *fits = NULL;
        if (rhs->dim[rhs->rank - 1] == lhs->dim[k_lhs])
            fits = "rhs";
        else if (lhs->dim[lhs->rank - 2] == rhs->dim[k_rhs])
            fits = "lhs";
        if (!fits)
            return false;
        const ir_type *turn = fits[0] == 'r' ? rhs : lhs;
        int axis = fits[0] == 'r' ? rhs->rank - 1 : lhs->rank - 2;
        because(why, "\n%s has %D on axis %d: transpose(%s", fits, turn, axis, axis, fits);
        for (int i = 0; i < turn->rank; i++)
            because(why, ", %d", i < turn->rank - 2 ? i : 2 * turn->rank - 3 - i);
        return because(why, ") would fit");
    }
    if (!same_rank("lhs", lhs, "rhs", rhs, why) || !same_dtype("lhs", lhs, "rhs", rhs, why) || !is_float("lhs", lhs, why))
        return false;
    *type = *lhs;
    type->dtype = stated.dtype;
    for (int i = 0; i < lhs->rank - 2; i++) {
        if (!same_dim("lhs", lhs, i, "rhs", rhs, i, why))
            return false;
        borrow_name(type, i, rhs, i);
    }
    type->dim[rhs->rank - 1] = rhs->dim[rhs->rank - 1];
    type->dim_name[rhs->rank - 1] = rhs->dim_name[rhs->rank - 1];
    if (!same_shape("result", &stated, "product", type, why))
        return false;
    return stated.dtype == lhs->dtype || (lhs->dtype == IR_BF16 && stated.dtype == IR_F32) ||
           because(why, "the product of %s operands is not %T", ir_dtype_name(lhs->dtype), type);
}

/* -- movement ---------------------------------------------------------------------------------------------------------- */

/* Names survive on the axes before the first and after the last that change: [B,T,C] as [B,T,H,D] keeps B and T. */
bool shape_reshape(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0);
    if (!same_dtype("x", x, "result", type, why))
        return false;
    if (ir_type_count(x) != ir_type_count(type))
        return because(why, "x %T has %l elements, result %T has %l", x, ir_type_count(x), type, ir_type_count(type));
    int shorter = MIN(x->rank, type->rank), head = 0;
    for (; head < shorter && x->dim[head] == type->dim[head]; head++)
        borrow_name(type, head, x, head);
    for (int i = 1; i <= shorter - head && x->dim[x->rank - i] == type->dim[type->rank - i]; i++)
        borrow_name(type, type->rank - i, x, x->rank - i);
    return true;
}

bool shape_transpose(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0);
    const ir_attr *attr = &node->attr;
    bool seen[IR_MAX_RANK] = { false };
    if (attr->n_axes != x->rank)
        return because(why, "x %T has rank %d, got %d axes", x, x->rank, attr->n_axes);
    *type = *x;
    for (int i = 0; i < x->rank; i++) {
        int from = attr->axes[i];
        if (!has_axis("x", x, from, why))
            return false;
        if (seen[from])
            return because(why, "axis %d comes twice", from);
        seen[from] = true;
        type->dim[i] = x->dim[from];
        type->dim_name[i] = x->dim_name[from];
    }
    return true;
}

bool shape_broadcast(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0);
    const ir_attr *attr = &node->attr;
    if (!same_dtype("x", x, "result", type, why))
        return false;
    if (attr->n_axes != x->rank)
        return because(why, "x %T has rank %d, got %d axes", x, x->rank, attr->n_axes);
    if (!axes_ascend("result", type, attr, why))
        return false;
    for (int i = 0; i < x->rank; i++) {
        int to = attr->axes[i];
        if (x->dim[i] == type->dim[to])
            borrow_name(type, to, x, i);
        else if (x->dim[i] != 1)
            return same_dim("x", x, i, "result", type, to, why);
    }
    return true;
}

/* Whether part lies in whole from start on. */
static bool lies_within(const char *part_name, const ir_type *part, const char *whole_name, const ir_type *whole, const int64_t *start,
                        base_text *why)
{
    for (int i = 0; i < whole->rank; i++)
        if (start[i] < 0 || start[i] > whole->dim[i] || part->dim[i] > whole->dim[i] - start[i])
            return because(why, "%s %T does not lie in %s %T: axis %d from %l", part_name, part, whole_name, whole, i, start[i]);
    return true;
}

static void borrow_whole_axes(ir_type *to, const ir_type *from)
{
    for (int i = 0; i < to->rank; i++)
        if (to->dim[i] == from->dim[i])
            borrow_name(to, i, from, i);
}

bool shape_slice(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0);
    if (!same_dtype("x", x, "result", type, why) || !same_rank("x", x, "result", type, why) ||
        !lies_within("result", type, "x", x, node->attr.start, why))
        return false;
    borrow_whole_axes(type, x);
    return true;
}

bool shape_pad(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0);
    if (!same_dtype("x", x, "result", type, why) || !same_rank("x", x, "result", type, why) ||
        !lies_within("x", x, "result", type, node->attr.start, why) || !value_fits(type->dtype, node->attr.value, why))
        return false;
    borrow_whole_axes(type, x);
    return true;
}

bool shape_concatenate(const ir_node *node, ir_type *type, base_text *why)
{
    int axis = node->attr.axis;
    if (node->n_args < 1)
        return because(why, "expected at least 1 operand, got none");
    *type = *type_of(node, 0);
    if (!has_axis("first", type, axis, why))
        return false;
    for (int i = 1; i < node->n_args; i++) {
        const ir_type *next = type_of(node, i);
        base_text name = {0};
        base_text_add(&name, "operand %d", i);
        bool fits = same_dtype("first", type_of(node, 0), name.at, next, why) && same_rank("first", type_of(node, 0), name.at, next, why);
        for (int a = 0; fits && a < type->rank; a++)
            fits = a == axis || same_dim("first", type_of(node, 0), a, name.at, next, a, why);
        base_text_free(&name);
        if (!fits)
            return false;
        type->dim[axis] += next->dim[axis];
        type->dim_name[axis] = NULL;
        for (int a = 0; a < type->rank; a++)
            if (a != axis)
                borrow_name(type, a, next, a);
        if (type->dim[axis] > IR_MAX_ELEMENTS)
            return because(why, "axis %d would have over 2^40 elements", axis);
    }
    return true;
}

static bool starts_fit(const ir_node *node, int first, int rank, base_text *why)
{
    if (!has_args(node, first + rank, first + rank, why))
        return false;
    for (int i = first; i < node->n_args; i++)
        if (!is_scalar_i32("start", type_of(node, i), why))
            return false;
    return true;
}

bool shape_dynamic_slice(const ir_node *node, ir_type *type, base_text *why)
{
    static const int64_t at_zero[IR_MAX_RANK];
    if (node->n_args < 1)
        return because(why, "expected x and a start an axis, got no operand");
    const ir_type *x = type_of(node, 0);
    if (!starts_fit(node, 1, x->rank, why) || !same_dtype("x", x, "result", type, why) || !same_rank("x", x, "result", type, why) ||
        !lies_within("result", type, "x", x, at_zero, why))
        return false;
    borrow_whole_axes(type, x);
    return true;
}

bool shape_update_slice(const ir_node *node, ir_type *type, base_text *why)
{
    static const int64_t at_zero[IR_MAX_RANK];
    if (node->n_args < 2)
        return because(why, "expected base, update and a start an axis, got %d operands", node->n_args);
    const ir_type *base = type_of(node, 0), *update = type_of(node, 1);
    if (!starts_fit(node, 2, base->rank, why) || !same_dtype("base", base, "update", update, why) ||
        !same_rank("base", base, "update", update, why) || !lies_within("update", update, "base", base, at_zero, why))
        return false;
    *type = *base;
    borrow_whole_axes(type, update);
    return true;
}

/* -- indexing ---------------------------------------------------------------------------------------------------------- */

/* The type of what is read from, or added to, the places of x that indices name. */
static bool gathered(const char *x_name, const ir_type *x, const ir_type *indices, int axis, ir_type *type, base_text *why)
{
    if (!is_dtype("indices", indices, IR_I32, why) || !has_axis(x_name, x, axis, why))
        return false;
    if (x->rank - 1 + indices->rank > IR_MAX_RANK)
        return because(why, "%s %T by indices %T would have rank %d, at most %d is supported", x_name, x, indices,
                       x->rank - 1 + indices->rank, IR_MAX_RANK);
    if (x->dim[axis] == 0 && ir_type_count(indices) > 0)
        return because(why, "%s %T has %D on axis %d: there is nothing to index", x_name, x, x, axis, axis);
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
    return gathered("x", type_of(node, 0), type_of(node, 1), node->attr.axis, type, why);
}

bool shape_scatter_add(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *base = type_of(node, 0);
    ir_type place;
    if (!is_number("base", base, why) || !gathered("base", base, type_of(node, 1), node->attr.axis, &place, why) ||
        !ir_type_is_sound(&place, why) || !same_type("updates", type_of(node, 2), "base by indices", &place, why))
        return false;
    *type = *base;
    return true;
}

bool shape_one_hot(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0);
    if (!is_dtype("x", x, IR_I32, why) || !is_rank("result", type, x->rank + 1, why))
        return false;
    for (int i = 0; i < x->rank; i++) {
        if (!same_dim("x", x, i, "result", type, i, why))
            return false;
        borrow_name(type, i, x, i);
    }
    return true;
}

/* -- random ------------------------------------------------------------------------------------------------------------ */

static bool is_seed_and_counter(const ir_type *seed, const ir_type *counter, base_text *why)
{
    if (seed->dtype != IR_I32 || seed->rank != 1 || seed->dim[0] != 2)
        return because(why, "seed %T is not i32[2]", seed);
    return is_scalar_i32("counter", counter, why);
}

static bool is_probability(const char *name, double p, base_text *why)
{
    return (p >= 0 && p <= 1) || because(why, "%s %f is no probability", name, p);
}

bool shape_random(const ir_node *node, ir_type *type, base_text *why)
{
    if (!is_seed_and_counter(type_of(node, 0), type_of(node, 1), why))
        return false;
    if (node->op == OP_random_bits)
        return is_dtype("result", type, IR_I32, why);
    if (node->op == OP_bernoulli)
        return is_dtype("result", type, IR_BOOL, why) && is_probability("value", node->attr.value, why);
    return is_float("result", type, why);
}

/* -- control ----------------------------------------------------------------------------------------------------------- */

bool shape_result(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_node *from = node->args[0];
    if (from->type.dtype != IR_TUPLE)
        return because(why, "operand %T is not an op with several results", &from->type);
    if (node->attr.index < 0 || node->attr.index >= from->n_tuple)
        return because(why, "%s has results 0 to %d, got index %d", OP_NAME(from->op), from->n_tuple - 1, node->attr.index);
    *type = from->tuple[node->attr.index];
    return true;
}

/* "parameter 3 of the body": what reasons call the inside of a body. */
static bool fits_body(const char *kind, int i, const ir_type *inside, const ir_type *outside, base_text *why)
{
    return ir_type_equal(inside, outside) || because(why, "%s %d of the body is %T, expected %T", kind, i, inside, outside);
}

bool shape_custom_gradient(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_graph *body = node->attr.body;
    int n = node->n_args - 1;
    if (n < 0)
        return because(why, "expected y and the xs, got no operand");
    if (!body)
        return because(why, "expected a body, got none");
    if (body->n_params != n + 2 || body->n_results != n)
        return because(why, "expected a body of %d parameters and %d results, got %d and %d", n + 2, n, body->n_params, body->n_results);
    *type = *type_of(node, 0);
    for (int i = 0; i < n; i++)
        if (!fits_body("parameter", i, &body->params[i]->type, type_of(node, i + 1), why) ||
            !fits_body("result", i, &body->results[i]->type, type_of(node, i + 1), why))
            return false;
    return fits_body("parameter", n, &body->params[n]->type, type, why) && fits_body("parameter", n + 1, &body->params[n + 1]->type, type, why);
}

static bool scan_operands_fit(const ir_node *node, base_text *why)
{
    const ir_attr *attr = &node->attr;
    for (int i = 0; i < node->n_args; i++) {
        ir_type want = *type_of(node, i);
        if (i >= attr->n_carry && i < attr->n_carry + attr->n_xs) {
            if (want.rank < 1 || want.dim[0] != attr->count)
                return because(why, "operand %d %T does not have count=%l on axis 0", i, &want, attr->count);
            int first = 0;
            drop_axes(&want, type_of(node, i), 1, &first);
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
        return because(why, "expected a body, got none");
    if (attr->count < 0 || attr->count > IR_MAX_ELEMENTS)
        return because(why, "expected a count of iterations, got %l", attr->count);
    if (attr->n_carry < 0 || attr->n_xs < 0 || attr->n_carry > node->n_args || attr->n_xs > node->n_args - attr->n_carry)
        return because(why, "%d carries and %d xs are not among %d operands", attr->n_carry, attr->n_xs, node->n_args);
    if (body->n_params != node->n_args)
        return because(why, "expected a body of %d parameters, got %d", node->n_args, body->n_params);
    if (body->n_results < attr->n_carry || body->n_results == 0)
        return because(why, "expected a body with %d carries among its results, got %d results", attr->n_carry, body->n_results);
    if (!scan_operands_fit(node, why))
        return false;

    ir_type *results = base_alloc(sizeof *results * (size_t)body->n_results);
    bool fits = true;
    for (int i = 0; fits && i < body->n_results; i++) {
        const ir_type *inside = &body->results[i]->type;
        if (i < attr->n_carry) {
            fits = fits_body("result", i, inside, type_of(node, i), why);
            results[i] = *type_of(node, i);
        } else if (inside->rank == IR_MAX_RANK) {
            fits = because(why, "result %d of the body is %T: stacked, its rank would be above %d", i, inside, IR_MAX_RANK);
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

/* -- composites -------------------------------------------------------------------------------------------------------- */

bool shape_float_axis(const ir_node *node, ir_type *type, base_text *why)
{
    *type = *type_of(node, 0);
    return is_float("x", type, why) && has_axis("x", type, node->attr.axis, why);
}

bool shape_norm(const ir_node *node, ir_type *type, base_text *why)
{
    static const char *const names[] = { "x", "weight", "bias" };
    if (!has_args(node, 2, node->op == OP_layer_norm ? 3 : 2, why))
        return false;
    const ir_type *x = type_of(node, 0);
    if (x->rank < 1)
        return because(why, "x %T is a scalar, expected at least one axis", x);
    *type = *x;
    for (int i = 1; i < node->n_args; i++) {
        const ir_type *vector = type_of(node, i);
        if (!is_rank(names[i], vector, 1, why) || !same_dim("x", x, x->rank - 1, names[i], vector, 0, why) ||
            !same_dtype("x", x, names[i], vector, why))
            return false;
        borrow_name(type, x->rank - 1, vector, 0);
    }
    if (!(node->attr.epsilon >= 0))
        return because(why, "epsilon is to be at least 0, got %f", node->attr.epsilon);
    return is_float("x", x, why);
}

/* targets has the shape of of without its last axis. */
static bool are_targets(const ir_type *targets, const char *of_name, const ir_type *of, base_text *why)
{
    if (!is_dtype("targets", targets, IR_I32, why))
        return false;
    if (targets->rank != of->rank - 1)
        return because(why, "%s %T has rank %d, targets %T has rank %d, expected %d", of_name, of, of->rank, targets, targets->rank, of->rank - 1);
    for (int i = 0; i < targets->rank; i++)
        if (!same_dim(of_name, of, i, "targets", targets, i, why))
            return false;
    return true;
}

bool shape_cross_entropy(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *logits = type_of(node, 0), *targets = type_of(node, 1);
    if (!is_float("logits", logits, why))
        return false;
    if (logits->rank < 1 || logits->dim[logits->rank - 1] < 1)
        return because(why, "logits %T have no classes on their last axis", logits);
    if (!are_targets(targets, "logits", logits, why))
        return false;
    *type = ir_type_with_dtype(*targets, logits->dtype);
    borrow_names(type, logits);
    return true;
}

/* Sums of bf16 products are f32. */
static ir_dtype sum_dtype(ir_dtype dtype) { return dtype == IR_BF16 ? IR_F32 : dtype; }

bool shape_linear_cross_entropy(const ir_node *node, ir_type *type, base_text *why)
{
    const ir_type *x = type_of(node, 0), *weight = type_of(node, 1), *targets = type_of(node, 2);
    if (!is_float("x", x, why) || !same_dtype("x", x, "weight", weight, why) || !is_rank("x", x, 2, why) ||
        !is_rank("weight", weight, 2, why) || !same_dim("x", x, 1, "weight", weight, 1, why) || !are_targets(targets, "x", x, why))
        return false;
    if (weight->dim[0] < 1)
        return because(why, "weight %T has no classes on axis 0", weight);
    *type = ir_type_with_dtype(*targets, sum_dtype(x->dtype));
    borrow_name(type, 0, x, 0);
    return true;
}

bool shape_linear_cross_entropy_vjp(const ir_node *node, ir_type *type, base_text *why)
{
    ir_type loss;
    if (!shape_linear_cross_entropy(node, &loss, why) || !same_type("dloss", type_of(node, 3), "loss", &loss, why))
        return false;
    ir_type results[] = { loss, ir_type_with_dtype(*type_of(node, 0), loss.dtype), ir_type_with_dtype(*type_of(node, 1), loss.dtype) };
    ir_tuple_set(node, type, COUNT_OF(results), results);
    return true;
}

/* q[B,H,T,D], k and v[B,H,S,D], the attributes, and with dropout the last two of n_args operands. */
static bool attention_fits(const ir_node *node, int n_tensors, base_text *why)
{
    static const char *const names[] = { "q", "k", "v" };
    const ir_attr *attr = &node->attr;
    if (!(attr->dropout >= 0 && attr->dropout < 1))
        return because(why, "dropout is to be at least 0 and below 1, got %f", attr->dropout);
    if (!isfinite(attr->scale))
        return because(why, "scale is to be finite, got %f", attr->scale);
    int n_args = n_tensors + (attr->dropout > 0 ? 2 : 0);
    if (!has_args(node, n_args, n_args, why))
        return false;
    const ir_type *q = type_of(node, 0), *k = type_of(node, 1);
    for (int i = 0; i < 3; i++) {
        const ir_type *x = type_of(node, i);
        if (!is_rank(names[i], x, 4, why) || !is_float(names[i], x, why) || !same_dtype("q", q, names[i], x, why))
            return false;
        for (int a = 0; a < 4; a++)
            if (a != 2 && !same_dim("q", q, a, names[i], x, a, why))
                return false;
    }
    if (!same_dim("k", k, 2, "v", type_of(node, 2), 2, why))
        return false;
    if (k->dim[2] == 0 && q->dim[2] > 0)
        return because(why, "k %T has no key on axis 2", k);
    if (attr->causal && k->dim[2] < q->dim[2])
        return because(why, "q %T has %D on axis 2, k %T has %D: the first rows would see no key", q, q, 2, k, k, 2);
    return attr->dropout == 0 || is_seed_and_counter(type_of(node, n_tensors), type_of(node, n_tensors + 1), why);
}

static ir_type lse_type(const ir_type *q)
{
    int last = 3;
    ir_type type;
    drop_axes(&type, q, 1, &last);
    return ir_type_with_dtype(type, sum_dtype(q->dtype));
}

bool shape_attention(const ir_node *node, ir_type *type, base_text *why)
{
    if (!attention_fits(node, 3, why))
        return false;
    ir_type results[] = { *type_of(node, 0), lse_type(type_of(node, 0)) };
    ir_tuple_set(node, type, COUNT_OF(results), results);
    return true;
}

bool shape_attention_vjp(const ir_node *node, ir_type *type, base_text *why)
{
    if (!attention_fits(node, 7, why))
        return false;
    const ir_type *q = type_of(node, 0), lse = lse_type(q);
    if (!same_type("out", type_of(node, 3), "q", q, why) || !same_type("lse", type_of(node, 4), "that of q", &lse, why) ||
        !same_type("dout", type_of(node, 5), "q", q, why) || !same_type("dlse", type_of(node, 6), "that of q", &lse, why))
        return false;
    ir_type results[] = { *q, *type_of(node, 1), *type_of(node, 2) };
    for (int i = 0; i < (int)COUNT_OF(results); i++)
        results[i].dtype = lse.dtype;
    ir_tuple_set(node, type, COUNT_OF(results), results);
    return true;
}

bool shape_adamw(const ir_node *node, ir_type *type, base_text *why)
{
    static const char *const names[] = { "w", "m", "v", "dw", "lr", "beta1", "beta2", "epsilon", "weight_decay", "1-beta1^t", "1-beta2^t" };
    if (!has_args(node, COUNT_OF(names), COUNT_OF(names), why))
        return false;
    const ir_type *w = type_of(node, 0);
    if (w->dtype != IR_F32 && w->dtype != IR_F64)
        return because(why, "w %T is %s, expected f32 or f64", w, ir_dtype_name(w->dtype));
    for (int i = 1; i < (int)COUNT_OF(names); i++) {
        const ir_type *x = type_of(node, i);
        if (i < 4 ? !same_type("w", w, names[i], x, why) : !is_rank(names[i], x, 0, why) || !same_dtype("w", w, names[i], x, why))
            return false;
    }
    ir_type results[] = { *w, *type_of(node, 1), *type_of(node, 2) };
    ir_tuple_set(node, type, COUNT_OF(results), results);
    return true;
}

/* -- inference --------------------------------------------------------------------------------------------------------- */

bool ir_type_is_sound(const ir_type *type, base_text *why)
{
    static const char word_bytes[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    int64_t count = 1;
    if (type->dtype >= IR_TUPLE)
        return because(why, "a tensor is not a tuple");
    if (type->rank < 0 || type->rank > IR_MAX_RANK)
        return because(why, "rank %d is not supported: at most %d is", type->rank, IR_MAX_RANK);
    for (int i = 0; i < type->rank; i++) {
        const char *name = type->dim_name[i];
        if (type->dim[i] < 0)
            return because(why, "%T has %D on axis %d", type, type, i, i);
        if (name && (strspn(name, word_bytes) != strlen(name) || *name == '\0' || (*name >= '0' && *name <= '9')))
            return because(why, "axis %d is named '%s', which is no word", i, name);
        int64_t factor = MAX(type->dim[i], 1);
        if (factor > IR_MAX_ELEMENTS / count)
            return because(why, "%T has over 2^40 elements", type);
        count *= factor;
    }
    return true;
}

/* Where ir_tuple_set finds the caller's arena, and leaves what it was given: the inferred node's note points here. */
typedef struct { base_arena *arena; int n; ir_type *types; } tuple_room;

void ir_tuple_set(const ir_node *node, ir_type *type, int n, const ir_type *types)
{
    tuple_room *room = node->note;
    room->n = n;
    room->types = ARENA_NEW(room->arena, ir_type, n);
    memcpy(room->types, types, sizeof *types * (size_t)n);
    *type = (ir_type){ .dtype = IR_TUPLE };
}

bool ir_infer_in(base_arena *arena, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated,
                 ir_type *type, int *n_tuple, ir_type **tuple, base_text *why)
{
    const ir_op_info *info = &ir_op_table[op];
    tuple_room room = { .arena = arena };
    ir_node node = { .op = op, .n_args = n_args, .args = (ir_node **)args, .note = &room };
    if (attr)
        node.attr = *attr;

    if (info->arity != VARIADIC && n_args != info->arity)
        return because(why, "expected %d operand%s, got %d", info->arity, info->arity == 1 ? "" : "s", n_args);
    for (int i = 0; i < n_args; i++)
        if (args[i]->type.dtype == IR_TUPLE && op != OP_result)
            return because(why, "operand %d has several results, and none is picked", i);
    if (node.attr.n_axes < 0 || node.attr.n_axes > IR_MAX_RANK)
        return because(why, "%d axes are not supported: at most %d are", node.attr.n_axes, IR_MAX_RANK);
    *type = ir_scalar(IR_F32);
    if (info->attributes & RESULT_TYPE) {
        if (!stated)
            return because(why, "expected a stated result type, got none");
        if (!ir_type_is_sound(stated, why))
            return false;
        *type = node.type = *stated;
    }
    if (!info->shape(&node, type, why))
        return false;
    *n_tuple = room.n;
    *tuple = room.types;
    if (type->dtype != IR_TUPLE)
        return ir_type_is_sound(type, why);
    for (int i = 0; i < room.n; i++)
        if (!ir_type_is_sound(&room.types[i], why))
            return false;
    return true;
}

double ir_round_to(ir_dtype dtype, double value)
{
    if (dtype == IR_I32 || dtype == IR_BOOL)
        return value;
    if (isnan(value))
        return NAN;
    if (dtype == IR_F64)
        return value;
    float narrow = (float)value;
    return dtype == IR_BF16 ? ir_bf16_to_f32(ir_f32_to_bf16(narrow)) : narrow;
}
