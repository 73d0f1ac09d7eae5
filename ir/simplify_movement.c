/* Rules for what moves elements, and for reductions and products whose operands or results are moved.
 *
 * The forms that they work towards, in which equal values look equal to cse and a kernel's operands are views of few steps:
 *
 *   - no movement that does nothing, and one where two in a row would do;
 *   - a transpose that moves only axes of dim 1, and a broadcast or reduction that only adds or drops such, is a reshape;
 *   - the operand of a broadcast has no axes of dim 1;
 *   - slices and transposes come before a broadcast, where there are fewer elements, and transposes after a reduction;
 *   - a transposed product is the product of the transposed operands the other way round: operands are views, results are not;
 *   - parts that are padded with zeros and added up (the gradient of a split) are concatenated. */
#include "ir/shape_rules.h"
#include "ir/simplify.h"

#include <string.h>

/* -- helpers ----------------------------------------------------------------------------------------------------------- */

/* The type without its axes of dim 1. */
static ir_type squeezed(const ir_type *type)
{
    ir_type out = { .dtype = type->dtype };
    for (int i = 0; i < type->rank; i++)
        if (type->dim[i] != 1) {
            out.dim[out.rank] = type->dim[i];
            out.dim_name[out.rank++] = type->dim_name[i];
        }
    return out;
}

static ir_node *pad(ir_graph *graph, ir_node *x, const int64_t *start, double value, const ir_type *type)
{
    ir_attr attr = { .value = value };
    memcpy(attr.start, start, sizeof *start * (size_t)type->rank);
    return ir_add(graph, OP_pad, 1, &x, &attr, type);
}

static ir_node *concatenate(ir_graph *graph, int n, ir_node *const *parts, int axis)
{
    return n == 1 ? parts[0] : ir_add(graph, OP_concatenate, n, parts, &(ir_attr){ .axis = axis }, NULL);
}

/* -- reshape, transpose, broadcast --------------------------------------------------------------------------------------- */

static ir_node *reshape_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    if (ir_type_equal(&x->type, &node->type))
        return x;
    if (x->op == OP_reshape)
        return ir_reshape(graph, x->args[0], node->type);
    if (x->op == OP_broadcast && x->args[0]->type.rank == 0)                /* the same scalar all over another shape */
        return ir_broadcast_scalar(graph, x->args[0], node->type);
    return NULL;
}

/* Whether the axes of another dim than 1 keep their order. */
static bool only_moves_ones(const ir_node *transpose)
{
    int last = -1;
    for (int i = 0; i < transpose->type.rank; i++) {
        if (transpose->type.dim[i] == 1)
            continue;
        if (transpose->attr.axes[i] < last)
            return false;
        last = transpose->attr.axes[i];
    }
    return true;
}

static bool swaps_last_two(const ir_node *transpose)
{
    int rank = transpose->type.rank;
    for (int i = 0; i < rank - 2; i++)
        if (transpose->attr.axes[i] != i)
            return false;
    return rank >= 2 && transpose->attr.axes[rank - 1] == rank - 2;
}

/* transpose(broadcast x): broadcast(x), with the axes of x in the order in which they now come. */
static ir_node *transpose_of_broadcast(ir_graph *graph, ir_node *node)
{
    ir_node *b = node->args[0], *x = b->args[0];
    int perm[IR_MAX_RANK], axes[IR_MAX_RANK], n = 0;
    if (ir_type_count(&x->type) >= ir_type_count(&b->type))
        return NULL;
    for (int i = 0; i < node->type.rank; i++)
        for (int j = 0; j < x->type.rank; j++)
            if (b->attr.axes[j] == node->attr.axes[i]) {
                perm[n] = j;
                axes[n++] = i;
            }
    return ir_broadcast(graph, ir_transpose(graph, x, perm), node->type, axes);
}

static ir_node *transpose_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    if (only_moves_ones(node))
        return ir_reshape(graph, x, node->type);
    if (x->op == OP_transpose) {
        int perm[IR_MAX_RANK];
        for (int i = 0; i < node->type.rank; i++)
            perm[i] = x->attr.axes[node->attr.axes[i]];                     /* axis i here is axis axes[i] of x, and that of x's operand */
        return ir_transpose(graph, x->args[0], perm);
    }
    if (x->op == OP_broadcast)
        return transpose_of_broadcast(graph, node);
    if (x->op == OP_matmul && x->mark <= 1 && swaps_last_two(node)) {       /* (A B)' = B' A', each element the same sum */
        ir_node *lhs = ir_swap_last(graph, x->args[1]), *rhs = ir_swap_last(graph, x->args[0]);
        return ir_matmul(graph, lhs, rhs, node->type.dtype);
    }
    return NULL;
}

/* Drops the operand's axes of dim 1: along them the operand repeats, or there is nothing to repeat. */
static ir_node *broadcast_squeezed(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    ir_type narrow = squeezed(&x->type);
    int axes[IR_MAX_RANK], n = 0;
    if (narrow.rank == x->type.rank)
        return NULL;
    for (int i = 0; i < x->type.rank; i++)
        if (x->type.dim[i] != 1)
            axes[n++] = node->attr.axes[i];
    return ir_broadcast(graph, ir_reshape(graph, x, narrow), node->type, axes);
}

static ir_node *broadcast_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    if (ir_type_count(&x->type) == ir_type_count(&node->type) && ir_type_count(&x->type) > 0)
        return ir_reshape(graph, x, node->type);
    if (x->op == OP_broadcast) {
        int axes[IR_MAX_RANK];
        for (int i = 0; i < x->attr.n_axes; i++)
            axes[i] = node->attr.axes[x->attr.axes[i]];
        return ir_broadcast(graph, x->args[0], node->type, axes);
    }
    return broadcast_squeezed(graph, node);
}

/* -- slice, pad, concatenate ---------------------------------------------------------------------------------------------- */

static ir_node *slice_of_slice(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    int64_t start[IR_MAX_RANK];
    for (int i = 0; i < node->type.rank; i++)
        start[i] = x->attr.start[i] + node->attr.start[i];
    return ir_slice(graph, x->args[0], start, node->type);
}

/* A part of what was padded is a part of the operand, or nothing but padding, or (NULL) some of both. */
static ir_node *slice_of_pad(ir_graph *graph, ir_node *node)
{
    ir_node *p = node->args[0], *x = p->args[0];
    int64_t start[IR_MAX_RANK];
    bool inside = true;
    for (int i = 0; i < node->type.rank; i++) {
        int64_t end = node->attr.start[i] + node->type.dim[i], x_end = p->attr.start[i] + x->type.dim[i];
        if (end <= p->attr.start[i] || node->attr.start[i] >= x_end)
            return ir_constant(graph, node->type, p->attr.value);
        start[i] = node->attr.start[i] - p->attr.start[i];
        inside = inside && start[i] >= 0 && end <= x_end;
    }
    return inside ? ir_slice(graph, x, start, node->type) : NULL;
}

static ir_node *slice_of_concatenate(ir_graph *graph, ir_node *node)
{
    ir_node *c = node->args[0];
    int axis = c->attr.axis;
    int64_t begin = 0, start[IR_MAX_RANK];
    memcpy(start, node->attr.start, sizeof start);
    for (int i = 0; i < c->n_args; i++) {
        int64_t end = begin + c->args[i]->type.dim[axis];
        if (start[axis] >= begin && start[axis] + node->type.dim[axis] <= end) {
            start[axis] -= begin;
            return ir_slice(graph, c->args[i], start, node->type);
        }
        begin = end;
    }
    return NULL;
}

/* What is repeated is cut shorter; what is not, is cut before it is repeated. */
static ir_node *slice_of_broadcast(ir_graph *graph, ir_node *node)
{
    ir_node *b = node->args[0], *x = b->args[0];
    ir_type part = x->type;
    int64_t start[IR_MAX_RANK] = { 0 };
    for (int i = 0; i < x->type.rank; i++) {
        int axis = b->attr.axes[i];
        if (x->type.dim[i] != b->type.dim[axis])                            /* 1, repeated: the one stays */
            continue;
        start[i] = node->attr.start[axis];
        part.dim[i] = node->type.dim[axis];
        part.dim_name[i] = node->type.dim_name[axis];
    }
    return ir_broadcast(graph, ir_slice(graph, x, start, part), node->type, b->attr.axes);
}

static ir_node *slice_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    if (ir_shape_equal(&x->type, &node->type))
        return x;
    if (x->op == OP_slice)
        return slice_of_slice(graph, node);
    if (x->op == OP_pad)
        return slice_of_pad(graph, node);
    if (x->op == OP_concatenate)
        return slice_of_concatenate(graph, node);
    return x->op == OP_broadcast ? slice_of_broadcast(graph, node) : NULL;
}

static ir_node *pad_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    int64_t start[IR_MAX_RANK];
    if (ir_shape_equal(&x->type, &node->type))
        return x;
    if (x->op != OP_pad || memcmp(&x->attr.value, &node->attr.value, sizeof(double)) != 0)
        return NULL;
    for (int i = 0; i < node->type.rank; i++)
        start[i] = node->attr.start[i] + x->attr.start[i];
    return pad(graph, x->args[0], start, node->attr.value, &node->type);
}

/* Whether b is the part of a's own operand that follows a on the axis. */
static bool follows(const ir_node *a, const ir_node *b, int axis)
{
    if (a->op != OP_slice || b->op != OP_slice || a->args[0] != b->args[0])
        return false;
    for (int i = 0; i < a->type.rank; i++)
        if (b->attr.start[i] != a->attr.start[i] + (i == axis ? a->type.dim[i] : 0))
            return false;
    return true;
}

/* One operand: itself. Operands that are concatenations on the same axis give theirs, empty ones go, and neighbouring slices
 * of one tensor become one. */
static ir_node *concatenate_rule(ir_graph *graph, ir_node *node)
{
    int axis = node->attr.axis, room = 0, n = 0;
    for (int i = 0; i < node->n_args; i++)
        room += MAX(1, node->args[i]->n_args);
    ir_node **parts = base_alloc(sizeof *parts * (size_t)room);
    bool changed = node->n_args == 1;
    for (int i = 0; i < node->n_args; i++) {
        ir_node *x = node->args[i];
        bool flat = x->op == OP_concatenate && x->attr.axis == axis;
        for (int j = 0; j < (flat ? x->n_args : 1); j++) {
            ir_node *part = flat ? x->args[j] : x;
            if (part->type.dim[axis] == 0 && node->type.dim[axis] > 0) {
                changed = true;
            } else if (n > 0 && follows(parts[n - 1], part, axis)) {
                ir_type both = parts[n - 1]->type;
                both.dim[axis] += part->type.dim[axis];
                both.dim_name[axis] = NULL;
                parts[n - 1] = ir_slice(graph, part->args[0], parts[n - 1]->attr.start, both);
                changed = true;
            } else {
                parts[n++] = part;
            }
        }
        changed = changed || flat;
    }
    ir_node *better = changed ? concatenate(graph, n, parts, axis) : NULL;
    base_free(parts);
    return better;
}

/* -- a sum of parts ------------------------------------------------------------------------------------------------------- */

enum { MAX_PARTS = 64 };

static bool is_zero_pad(const ir_node *node) { return node->op == OP_pad && node->attr.value == 0; }

/* The leaves of a tree of adds, if all are pads with zeros; the last first: sums of gradients grow to the left, and what makes most of
 * them no sum of pads is near. */
static bool padded_parts(ir_node *node, int *n, ir_node **parts)
{
    if (is_zero_pad(node)) {
        if (*n == MAX_PARTS)
            return false;
        parts[(*n)++] = node;
        return true;
    }
    return node->op == OP_add && padded_parts(node->args[1], n, parts) && padded_parts(node->args[0], n, parts);
}

/* The one axis on which two pads stand in different places, or -1. */
static int axis_between(const ir_node *a, const ir_node *b)
{
    int axis = -1;
    for (int i = 0; i < a->type.rank; i++)
        if (a->attr.start[i] != b->attr.start[i]) {
            if (axis >= 0)
                return -1;
            axis = i;
        }
    return axis;
}

static bool fit_beside(const ir_node *a, const ir_node *b, int axis)
{
    for (int i = 0; i < a->type.rank; i++)
        if (i != axis && (a->attr.start[i] != b->attr.start[i] || a->args[0]->type.dim[i] != b->args[0]->type.dim[i]))
            return false;
    return true;
}

/*     add(add(pad dq {start=[0,0]}, pad dv {start=[0,2C]}), pad dk {start=[0,C]}): concatenate dq, dk, dv {axis=1}
 *
 * padded again where the parts do not fill the axis. Where they leave gaps, a later add may close them. x + 0 is x here, but
 * for the sign of a zero. */
static ir_node *sum_of_pads(ir_graph *graph, ir_node *node)
{
    ir_node *parts[MAX_PARTS];
    int n = 0;
    if (!padded_parts(node, &n, parts))
        return NULL;
    int axis = axis_between(parts[0], parts[1]);
    if (axis < 0)
        return NULL;
    for (int i = 1; i < n; i++)                                             /* by insertion: few, and mostly in order */
        for (int j = i; j > 0 && parts[j]->attr.start[axis] < parts[j - 1]->attr.start[axis]; j--) {
            ir_node *later = parts[j - 1];
            parts[j - 1] = parts[j];
            parts[j] = later;
        }
    for (int i = 1; i < n; i++)
        if (!fit_beside(parts[0], parts[i], axis) ||
            parts[i]->attr.start[axis] != parts[i - 1]->attr.start[axis] + parts[i - 1]->args[0]->type.dim[axis])
            return NULL;
    const int64_t *start = parts[0]->attr.start;
    for (int i = 0; i < n; i++)
        parts[i] = parts[i]->args[0];
    return pad(graph, concatenate(graph, n, parts, axis), start, 0, &node->type);
}

/* -- dynamic starts ------------------------------------------------------------------------------------------------------- */

/* The starts where all are constants, moved into range. */
static bool constant_starts(const ir_node *node, int first, const ir_type *whole, const ir_type *part, int64_t *start)
{
    for (int i = 0; i < whole->rank; i++) {
        const ir_node *at = node->args[first + i];
        int64_t last = whole->dim[i] - part->dim[i];
        if (last == 0) {                                                    /* whatever the start says */
            start[i] = 0;
        } else if (at->op == OP_constant) {
            start[i] = MAX(0, MIN(last, (int64_t)at->attr.value));
        } else {
            return false;
        }
    }
    return true;
}

static ir_node *dynamic_slice_rule(ir_graph *graph, ir_node *node)
{
    int64_t start[IR_MAX_RANK];
    ir_node *x = node->args[0];
    return constant_starts(node, 1, &x->type, &node->type, start) ? ir_slice(graph, x, start, node->type) : NULL;
}

static ir_node *update_slice_rule(ir_graph *graph, ir_node *node)
{
    (void)graph;
    return ir_shape_equal(&node->args[1]->type, &node->type) ? node->args[1] : NULL;
}

/* -- reductions ----------------------------------------------------------------------------------------------------------- */

static bool reduces(const ir_node *node, int axis)
{
    for (int i = 0; i < node->attr.n_axes; i++)
        if (node->attr.axes[i] == axis)
            return true;
    return false;
}

/* reduce(transpose x): transpose(reduce x), which moves fewer elements, or none. */
static ir_node *reduce_of_transpose(ir_graph *graph, ir_node *node)
{
    ir_node *t = node->args[0];
    int axes[IR_MAX_RANK], perm[IR_MAX_RANK], place[IR_MAX_RANK], n = 0, n_kept = 0, rank = t->type.rank;
    bool gone[IR_MAX_RANK] = { false };
    for (int i = 0; i < rank; i++)
        gone[t->attr.axes[i]] = reduces(node, i);
    for (int i = 0; i < rank; i++) {
        place[i] = i - n;                                                   /* where axis i of x is once those before it are gone */
        if (gone[i])
            axes[n++] = i;
    }
    for (int i = 0; i < rank; i++)
        if (!gone[t->attr.axes[i]])
            perm[n_kept++] = place[t->attr.axes[i]];
    return ir_transpose(graph, ir_reduce(graph, node->op, t->args[0], n, axes), perm);
}

/* Over axes along which a broadcast repeats, and no others: n times the operand, or the operand itself if it is a maximum. */
static ir_node *reduce_of_broadcast(ir_graph *graph, ir_node *node)
{
    ir_node *b = node->args[0], *x = b->args[0];
    int axes[IR_MAX_RANK];
    int64_t times = 1;
    for (int i = 0; i < x->type.rank; i++) {
        axes[i] = b->attr.axes[i];
        if (reduces(node, b->attr.axes[i]))
            return NULL;
        for (int j = 0; j < node->attr.n_axes; j++)
            axes[i] -= node->attr.axes[j] < b->attr.axes[i];
    }
    for (int i = 0; i < node->attr.n_axes; i++)
        times *= b->type.dim[node->attr.axes[i]];
    if (times == 0)
        return NULL;
    if (node->op == OP_reduce_sum && node->type.dtype == IR_I32)
        times = (int32_t)(uint32_t)times;                                   /* wraps as the sum does */
    if (node->op == OP_reduce_sum && ir_round_to(node->type.dtype, (double)times) != (double)times)
        return NULL;                                                        /* 257 is no bf16 */
    if (node->op == OP_reduce_sum)
        x = ir_binary(graph, OP_mul, x, ir_constant_like(graph, x, (double)times));
    return ir_broadcast(graph, x, node->type, axes);
}

static ir_node *reduce_rule(ir_graph *graph, ir_node *node)
{
    ir_node *x = node->args[0];
    bool drops_ones = true;
    for (int i = 0; i < node->attr.n_axes; i++)
        drops_ones = drops_ones && x->type.dim[node->attr.axes[i]] == 1;
    if (drops_ones)
        return ir_reshape(graph, x, node->type);
    if (x->op == OP_transpose)
        return reduce_of_transpose(graph, node);
    return x->op == OP_broadcast ? reduce_of_broadcast(graph, node) : NULL;
}

/* -- the table ------------------------------------------------------------------------------------------------------------ */

static ir_rewrite_rule *const movement_rules[IR_OPS] = {
    [OP_reshape] = reshape_rule,              [OP_transpose] = transpose_rule,       [OP_broadcast] = broadcast_rule,
    [OP_slice] = slice_rule,                  [OP_pad] = pad_rule,                   [OP_concatenate] = concatenate_rule,
    [OP_dynamic_slice] = dynamic_slice_rule,  [OP_update_slice] = update_slice_rule, [OP_reduce_sum] = reduce_rule,
    [OP_reduce_max] = reduce_rule,            [OP_add] = sum_of_pads,
};

ir_node *ir_simplify_movement(ir_graph *graph, ir_node *node)
{
    return movement_rules[node->op] ? movement_rules[node->op](graph, node) : NULL;
}
