/* Algebra: nodes that a simpler one can stand in for.
 *
 *     %2: f32[8,4] = broadcast %1 {axes=[]}            (%1: constant 2)
 *     %3: f32[8,4] = mul %0, %2
 *     %4: f32[8,4] = mul %3, %2                        users of %4 now read mul %0, %5 with %5: constant 4
 *
 * Runs after gradients: it removes stop_gradient and custom_gradient, which are the identity by then. One sweep, operands
 * before users, in which the nodes that rules add are visited like all others. Dead nodes are left to dce.
 *
 * What it keeps: every value, bit for bit, but for these, which the rules name where they apply: the sign of a zero
 * (x + 0 is x, and 0 - x is -x); one rounding instead of two for x*c1*c2; the order of the terms of a sum over axes that a
 * transpose has permuted; a sum of n equal terms, which is the term times n; and what is added to a scatter_add, which is added
 * before its updates.
 *
 * Why it ends: a rule either gives a node that exists, or a constant, or one op for two, or moves an op to fewer elements or
 * a movement nearer to the leaves (transposes and slices into broadcasts and matmuls, out of reductions), and no two
 * rules turn the same pair about. The count of rewrites is checked against that claim. */
#include "ir/simplify.h"

static ir_rewrite_rule *const rules[] = {
    ir_fold_constants,          /* first: the other rules then look at no operation on constants alone */
    ir_simplify_arithmetic,
    ir_simplify_movement,
};

/* Who has been replaced points at what stands in for it. */
static ir_node *latest(ir_node *node)
{
    while (node->note)
        node = node->note;
    return node;
}

static ir_node *rewritten(ir_graph *graph, ir_node *node)
{
    for (size_t i = 0; i < COUNT_OF(rules); i++) {
        ir_node *better = rules[i](graph, node);
        if (better && better != node)
            return better;
    }
    return NULL;
}

static void count_users(ir_graph *graph)
{
    for (ir_node *n = graph->first; n; n = n->next) {
        n->note = NULL;
        n->mark = 0;
        for (int i = 0; i < n->n_args; i++)
            n->args[i]->mark++;
    }
    for (int i = 0; i < graph->n_results; i++)
        graph->results[i]->mark++;
}

void ir_pass_simplify(ir_graph *graph, ir_pass_context *context)
{
    int64_t rewrites = 0, bound = 1000 + 100 * (int64_t)graph->n_nodes;
    ir_place place = graph->place;
    ir_node *before = graph->before;

    count_users(graph);
    for (ir_node *n = graph->first, *next; n; n = next) {
        ir_node *prev = n->prev;
        next = n->next;
        if (n->note)
            continue;                                                   /* replaced, and what its rule added visited since */
        for (int i = 0; i < n->n_args; i++)
            n->args[i] = latest(n->args[i]);
        graph->before = n;
        graph->place = n->place;
        ir_node *better = rewritten(graph, n);
        if (!better)
            continue;
        CHECK(ir_type_equal(&better->type, &n->type), "%%%d %s: expected its replacement %%%d %s to have its type", n->id, OP_NAME(n->op),
              better->id, OP_NAME(better->op));
        CHECK(++rewrites <= bound, "simplify: expected at most %lld rewrites; the last was %%%d %s", (long long)bound, n->id, OP_NAME(n->op));
        n->note = better;
        next = prev ? prev->next : graph->first;                        /* what the rule has added comes first */
    }
    for (int i = 0; i < graph->n_results; i++)
        graph->results[i] = latest(graph->results[i]);
    graph->before = before;
    graph->place = place;
    if (rewrites)
        base_text_add(&context->note, "%lld rewritten", (long long)rewrites);
}
