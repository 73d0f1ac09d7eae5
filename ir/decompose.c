/* Composites into the ops they are made of, but for those that the backend keeps because it has a kernel for them.
 *
 *     %1 = softmax %0 {axis=1}      ->      %2 = reduce_max %0 {axes=[1]} ...      users of %1 read the last of them
 *
 * A decomposition may have composites in it: the walk goes on at the first node that took the place of one, so they are met in turn, and
 * it ends because no decomposition leads back to its own op. Bodies are the runner's. */
#include "ir/ir.h"

/* What took the place of a node, as far as that has been replaced in its turn. A replaced node stays in the list, with a mark and its
 * replacement as its note, until the walk is over: users look it up as the walk comes to them, and the pass is linear. The note of a
 * tuple is the array of its results, which its `result` nodes look up. */
static ir_node *current(ir_node *node)
{
    while (node->mark)
        node = node->note;
    return node;
}

static void replace(ir_node *node, void *by)
{
    node->mark = 1;
    node->note = by;
}

static bool is_of_replaced(const ir_node *node) { return node->op == OP_result && node->args[0]->mark; }

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
    ir_node *outside = graph->before, *recent[IR_RECENT] = {0};
    int count = 0;
    for (ir_node *n = graph->first; n; n = n->next)
        n->mark = 0;
    ir_share_scalars(graph, recent);
    for (ir_node *n = graph->first, *next; n; n = next) {
        next = n->next;
        if (n->mark)
            continue;
        if (is_of_replaced(n)) {
            replace(n, ((ir_node **)n->args[0]->note)[n->attr.index]);
            continue;
        }
        for (int i = 0; i < n->n_args; i++)
            n->args[i] = current(n->args[i]);
        if (ir_op_table[n->op].class != IR_COMPOSITE || (context->keep_composite && context->keep_composite(n)))
            continue;
        ir_node *prev = n->prev, **results = ARENA_NEW(graph->arena, ir_node *, MAX(1, n->n_tuple));
        ir_place place = graph->place;
        graph->before = n;
        graph->place = n->place;
        ir_op_table[n->op].decompose(graph, n, results);
        graph->before = outside;
        graph->place = place;
        next = prev ? prev->next : graph->first;      /* the first of the new nodes, or n itself, which is replaced */
        replace(n, n->type.dtype == IR_TUPLE ? (void *)results : results[0]);
        count++;
    }
    ir_share_scalars(graph, NULL);
    remove_replaced(graph);
    if (count > 0)
        base_text_add(&context->note, "%d decomposed", count);
}
