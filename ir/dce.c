/* Dead code: removes what no result needs, from the last node to the first. No op has an effect beyond its result; random
 * numbers depend on their site alone, so that a draw that nobody reads changes no other. Parameters stay: they are the
 * graph's signature. */
#include "ir/ir.h"

void ir_pass_dce(ir_graph *graph, ir_pass_context *context)
{
    int removed = 0;
    for (ir_node *n = graph->first; n; n = n->next)
        n->mark = n->op == OP_parameter;
    for (int i = 0; i < graph->n_results; i++)
        graph->results[i]->mark = 1;
    for (ir_node *n = graph->last, *prev; n; n = prev) {
        prev = n->prev;
        if (n->mark) {
            for (int i = 0; i < n->n_args; i++)
                n->args[i]->mark = 1;
        } else {
            ir_remove(graph, n);
            removed++;
        }
    }
    if (removed)
        base_text_add(&context->note, "%d removed", removed);
}
