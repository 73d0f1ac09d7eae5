/* Composites into the ops they are made of, but for those that the backend keeps because it has a kernel for them.
 *
 *     %1 = softmax %0 {axis=1}      ->      %2 = reduce_max %0 {axes=[1]} ...      users of %1 read the last of them
 *
 * A decomposition may have composites in it: the walk goes on at the first node that took the place of one, so they are met in turn, and
 * it ends because no decomposition leads back to its own op. Bodies are the runner's. */
#include "ir/ir.h"

/* Users of result i of node read results[i] from now on; the `result` nodes of a tuple go. */
static void put_in_place(ir_graph *graph, ir_node *node, ir_node **results)
{
    if (node->type.dtype == IR_TUPLE) {
        for (ir_node *n = node->next, *next; n; n = next) {
            next = n->next;
            if (n->op == OP_result && n->args[0] == node) {
                ir_redirect(graph, n, results[n->attr.index]);
                ir_remove(graph, n);
            }
        }
    } else {
        ir_redirect(graph, node, results[0]);
    }
    ir_remove(graph, node);
}

void ir_pass_decompose(ir_graph *graph, ir_pass_context *context)
{
    ir_node *outside = graph->before;
    int count = 0;
    for (ir_node *n = graph->first, *next; n; n = next) {
        next = n->next;
        if (ir_op_table[n->op].class != IR_COMPOSITE || (context->keep_composite && context->keep_composite(n)))
            continue;
        ir_node *prev = n->prev, **results = base_alloc(sizeof *results * (size_t)MAX(1, n->n_tuple));
        ir_place place = graph->place;
        graph->before = n;
        graph->place = n->place;
        ir_op_table[n->op].decompose(graph, n, results);
        graph->before = outside;
        graph->place = place;
        next = prev ? prev->next : graph->first;
        put_in_place(graph, n, results);
        base_free(results);
        if (next == n)
            next = prev ? prev->next : graph->first;
        count++;
    }
    if (count > 0)
        base_text_add(&context->note, "%d decomposed", count);
}
