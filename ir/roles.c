/* What a node is to the lowering: a view, an expression of a loop, or a kernel of its own; and over which axes of its operand a reduction
 * goes, which decides whether its value may be used again in the loop that makes it. */
#include "ir/lower.h"

node_role kl_role_of(const ir_node *node)
{
    switch (ir_op_table[node->op].class) {
    case IR_LEAF:
        return ROLE_LEAF;
    case IR_ELEMENTWISE:
    case IR_REDUCTION:
    case IR_RANDOM:
        return ROLE_LOOP;
    case IR_CONTRACTION:
    case IR_COMPOSITE:
        return ROLE_ANCHOR;
    case IR_MOVEMENT:
        if (node->op == OP_reshape || node->op == OP_transpose || node->op == OP_broadcast || node->op == OP_slice)
            return ROLE_VIEW;
        return node->op == OP_dynamic_slice ? ROLE_LOOP : ROLE_ANCHOR;
    case IR_INDEXING:
        return node->op == OP_gather ? ROLE_LOOP : ROLE_ANCHOR;
    case IR_CONTROL:
        return node->op == OP_stop_gradient || node->op == OP_custom_gradient ? ROLE_VIEW : ROLE_ANCHOR;
    }
    CHECK(false, "%s: expected a class, got %d", OP_NAME(node->op), ir_op_table[node->op].class);
    return ROLE_ANCHOR;
}

bool kl_has_memory_of_its_own(const ir_node *node)
{
    return node->op == OP_parameter || node->op == OP_literal || kl_role_of(node) == ROLE_ANCHOR;
}

bool kl_is_free(const ir_node *node) { return node->op == OP_constant || node->op == OP_iota; }

ir_node *kl_view_base(const lower_state *state, const ir_node *node)
{
    while (kl_role_of(node) == ROLE_VIEW && !INFO(state, node)->stored)
        node = node->args[0];
    return (ir_node *)node;
}

bool kl_is_reduce(const ir_node *node) { return ir_op_table[node->op].class == IR_REDUCTION; }

reduce_kind kl_kind_of_reduce(const ir_node *node)
{
    const ir_type *type = &node->args[0]->type;
    bool gone[IR_MAX_RANK] = {0};
    if (node->op == OP_argmax)
        gone[node->attr.axis] = true;
    else
        for (int i = 0; i < node->attr.n_axes; i++)
            gone[node->attr.axes[i]] = true;
    /* Axes of one element stand anywhere. Count the changes between kept and gone along the others. */
    int changes = 0, previous = -1, first = -1;
    for (int i = 0; i < type->rank; i++) {
        if (type->dim[i] == 1)
            continue;
        if (previous >= 0 && gone[i] != previous)
            changes++;
        if (first < 0)
            first = gone[i];
        previous = gone[i];
    }
    if (changes == 0 && first != 0)                      /* nothing is kept, or there is one element only */
        return node->op == OP_reduce_sum ? REDUCE_EVERYTHING : REDUCE_TRAILING;
    if (changes == 0 || (changes == 1 && first == 0))
        return REDUCE_TRAILING;
    if (changes == 1 && node->op == OP_reduce_sum)
        return REDUCE_LEADING;
    return REDUCE_MIDDLE;
}

bool kl_is_outer_sum(const ir_node *node)
{
    if (!kl_is_reduce(node))
        return false;
    reduce_kind kind = kl_kind_of_reduce(node);
    return kind == REDUCE_LEADING || kind == REDUCE_EVERYTHING;
}
