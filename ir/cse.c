/* Common subexpressions: one node where several compute the same.
 *
 *     %3 = exp %1
 *     %4 = exp %1              users of %4 now read %3
 *
 * Same op, same operands (after merging), same attributes, same type: then the same bits. A random op's site is an attribute,
 * so that two sites never merge; scans and the like merge where their bodies have the same text. Needs operands before users.
 * Leaves what nobody reads to dce. A parameter is its own value, and the earlier of two nodes stays. */
#include "ir/ir.h"

#include <string.h>

typedef struct { ir_node **slots; size_t mask; } table;

/* Enough of the attributes to tell most nodes apart; ir_attr_equal decides. */
static uint64_t hash_of(const ir_node *node)
{
    unsigned has = ir_op_table[node->op].attributes;
    uint64_t hash = ir_mixed((uint64_t)node->op, (uint64_t)node->type.dtype), value;
    for (int i = 0; i < node->type.rank; i++)
        hash = ir_mixed(hash, (uint64_t)node->type.dim[i]);
    for (int i = 0; i < node->n_args; i++)
        hash = ir_mixed(hash, (uint64_t)(uintptr_t)node->args[i]);
    memcpy(&value, &node->attr.value, sizeof value);
    if (has & ATTR_VALUE)
        hash = ir_mixed(hash, value);
    if (has & (ATTR_INDEX | ATTR_AXIS | ATTR_SITE))
        hash = ir_mixed(hash, (uint64_t)node->attr.index << 40 ^ (uint64_t)node->attr.axis << 32 ^ node->attr.site);
    for (int i = 0; i < node->attr.n_axes; i++)
        hash = ir_mixed(hash, (uint64_t)node->attr.axes[i]);
    for (int i = 0; has & ATTR_START && i < node->type.rank; i++)
        hash = ir_mixed(hash, (uint64_t)node->attr.start[i]);
    return hash ^ hash >> 32;
}

static bool same(const ir_node *a, const ir_node *b)
{
    if (a->op != b->op || a->n_args != b->n_args || a->n_tuple != b->n_tuple || !ir_type_equal(&a->type, &b->type))
        return false;
    for (int i = 0; i < a->n_args; i++)
        if (a->args[i] != b->args[i])
            return false;
    return ir_attr_equal(a->op, &a->attr, &b->attr, &a->type);
}

/* The node of the table that computes the same, or the node itself, now in the table. */
static ir_node *find_or_insert(table *t, ir_node *node)
{
    size_t i = hash_of(node) & t->mask;
    for (; t->slots[i]; i = (i + 1) & t->mask)
        if (same(t->slots[i], node))
            return t->slots[i];
    return t->slots[i] = node;
}

void ir_pass_cse(ir_graph *graph, ir_pass_context *context)
{
    size_t n_slots = 16;
    int merged = 0;
    while (n_slots < 2 * (size_t)graph->n_nodes)
        n_slots *= 2;
    table t = { base_alloc(sizeof *t.slots * n_slots), n_slots - 1 };

    for (ir_node *n = graph->first; n; n = n->next) {
        for (int i = 0; i < n->n_args; i++)
            n->args[i] = n->args[i]->note;
        n->note = n->op == OP_parameter ? n : find_or_insert(&t, n);
        merged += n->note != n;
    }
    for (int i = 0; i < graph->n_results; i++)
        graph->results[i] = graph->results[i]->note;
    base_free(t.slots);
    if (merged)
        base_text_add(&context->note, "%d merged", merged);
}
