/* One loss where there were two. The gradient of linear_cross_entropy comes with the loss itself, because both need the logits, which are
 * not stored. A linear_cross_entropy of the same operands is then not needed:
 *
 *     %3 = linear_cross_entropy %0, %1, %2              users of %3 now read %6
 *     ...
 *     %5 = linear_cross_entropy_vjp %0, %1, %2, %4      moved, with what %4 needs, to the place of %3
 *     %6 = result %5 {index=0}
 *
 * Only where %4, the cotangent, does not depend on %3: it does not for a mean of the losses. Needs cse before it, so that equal operands
 * are one node. Leaves the linear_cross_entropy to dce. */
#include "ir/ir.h"

/* mark: 1 for what depends on loss. */
static void mark_dependents(ir_graph *graph, ir_node *loss)
{
    for (ir_node *n = graph->first; n; n = n->next) {
        n->mark = n == loss;
        for (int i = 0; i < n->n_args; i++)
            n->mark |= n->args[i]->mark;
    }
}

static bool same_operands(const ir_node *loss, const ir_node *vjp)
{
    return loss->args[0] == vjp->args[0] && loss->args[1] == vjp->args[1] && loss->args[2] == vjp->args[2];
}

static void move_before(ir_graph *graph, ir_node *node, ir_node *before)
{
    *(node->prev ? &node->prev->next : &graph->first) = node->next;
    *(node->next ? &node->next->prev : &graph->last) = node->prev;
    node->prev = before->prev;
    node->next = before;
    *(before->prev ? &before->prev->next : &graph->first) = node;
    before->prev = node;
}

/* Moves node, and before it whatever it needs of the nodes between, in their order, to the place before `before`. */
static void move_with_operands(ir_graph *graph, ir_node *node, ir_node *before)
{
    for (ir_node *n = before; n; n = n->next)
        n->mark = 0;
    node->mark = 1;
    for (ir_node *n = node; n != before; n = n->prev)
        for (int i = 0; n->mark && i < n->n_args; i++)
            n->args[i]->mark = 1;
    for (ir_node *n = before->next, *next; n; n = next) {
        next = n == node ? NULL : n->next;
        if (n->mark)
            move_before(graph, n, before);
    }
}

static bool merge(ir_graph *graph, ir_node *loss)
{
    mark_dependents(graph, loss);
    for (ir_node *n = loss->next; n; n = n->next) {
        if (n->op != OP_linear_cross_entropy_vjp || n->mark || !same_operands(loss, n))
            continue;
        ir_node *outside = graph->before;
        ir_place place = graph->place;
        move_with_operands(graph, n, loss);
        graph->before = loss;
        graph->place = loss->place;
        ir_node *again = ir_result(graph, n, 0);
        graph->before = outside;
        graph->place = place;
        ir_redirect(graph, loss, again);
        return true;
    }
    return false;
}

void ir_pass_merge_loss(ir_graph *graph, ir_pass_context *context)
{
    int merged = 0;
    for (ir_node *n = graph->first; n; n = n->next)
        if (n->op == OP_linear_cross_entropy)
            merged += merge(graph, n);
    if (merged > 0)
        base_text_add(&context->note, "%d merged", merged);
}
