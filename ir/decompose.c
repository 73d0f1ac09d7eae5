/* Composites into the ops they are made of, but for those that the backend keeps because it has a kernel for them.
 *
 *     %1 = softmax %0 {axis=1}      ->      %2 = reduce_max %0 {axes=[1]} ...      users of %1 read the last of them
 *
 * A decomposition may have composites in it: the walk goes on at the first node that took the place of one, so they are met in turn, and
 * it ends because no decomposition leads back to its own op. Bodies are the runner's. */
#include "ir/ir.h"

/* What took the place of a node, as far as that has been replaced in its turn. A replaced node stays in the list, with a mark and its
 * replacement as its note, until the walk is over: users look it up as the walk comes to them, and the pass is linear. */
static ir_node *current(ir_node *node)
{
    while (node->mark)
        node = node->note;
    return node;
}

static void replace(ir_node *node, ir_node *by)
{
    node->mark = 1;
    node->note = by;
}

/* Users of a composite read what it is made of from now on; of a tuple, the `result` nodes do. Removes nothing. */
static void put_in_place(ir_node *node, ir_node **results)
{
    if (node->type.dtype != IR_TUPLE) {
        replace(node, results[0]);
        return;
    }
    for (ir_node *n = node->next; n; n = n->next)
        if (n->op == OP_result && n->args[0] == node)
            replace(n, results[n->attr.index]);
    replace(node, NULL);
}

static void remove_replaced(ir_graph *graph)
{
    for (int i = 0; i < graph->n_results; i++)
        graph->results[i] = current(graph->results[i]);
    for (ir_node *n = graph->first, *next; n; n = next) {
        next = n->next;
        if (n->mark)
            ir_remove(graph, n);
    }
}

void ir_pass_decompose(ir_graph *graph, ir_pass_context *context)
{
    ir_node *outside = graph->before;
    int count = 0;
    for (ir_node *n = graph->first; n; n = n->next)
        n->mark = 0;
    for (ir_node *n = graph->first, *next; n; n = next) {
        next = n->next;
        if (n->mark)
            continue;
        for (int i = 0; i < n->n_args; i++)
            n->args[i] = current(n->args[i]);
        if (ir_op_table[n->op].class != IR_COMPOSITE || (context->keep_composite && context->keep_composite(n)))
            continue;
        ir_node *prev = n->prev, **results = base_alloc(sizeof *results * (size_t)MAX(1, n->n_tuple));
        ir_place place = graph->place;
        graph->before = n;
        graph->place = n->place;
        ir_op_table[n->op].decompose(graph, n, results);
        graph->before = outside;
        graph->place = place;
        next = prev ? prev->next : graph->first;      /* the first of the new nodes, or n itself, which is replaced */
        put_in_place(n, results);
        base_free(results);
        count++;
    }
    remove_replaced(graph);
    if (count > 0)
        base_text_add(&context->note, "%d decomposed", count);
}
