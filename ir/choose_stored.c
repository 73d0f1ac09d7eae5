/* Which values get memory, once it is known which nodes one loop computes: results, what kernels other than loops read and make, and what
 * crosses from one kernel to another, unless computing it again is as cheap: elementwise from one stored value of that size, as gelu's
 * derivative from gelu's operand. Row values and what is broadcast count for nothing.
 *
 * Needs clusters. Sets `stored`; what an earlier round has found out stays. */
#include "ir/lower.h"

enum { MOST_RECOMPUTED = 40 };

typedef struct { lower_state *state; int64_t count; int n_ops, n_full; int n_leaves; ir_node *leaves[16]; bool possible; } closure;

/* Collects what computing node again would read, down to stored values. */
static void collect(closure *c, ir_node *node)
{
    node = kl_view_base(c->state, node);
    if (!c->possible || kl_is_free(node))
        return;
    node_info *info = INFO(c->state, node);
    bool again = kl_role_of(node) == ROLE_LOOP && !info->stored && !info->never_inline && !kl_is_reduce(node) && node->op != OP_gather &&
                 node->op != OP_dynamic_slice;
    if (again) {
        if (++c->n_ops > MOST_RECOMPUTED) {
            c->possible = false;
            return;
        }
        for (int i = 0; i < node->n_args; i++)
            collect(c, node->args[i]);
        return;
    }
    for (int i = 0; i < c->n_leaves; i++)
        if (c->leaves[i] == node)
            return;
    if (c->n_leaves == (int)COUNT_OF(c->leaves)) {
        c->possible = false;
        return;
    }
    c->leaves[c->n_leaves++] = node;
    if (ir_type_count(&node->type) * 8 > c->count)
        c->n_full++;
}

static void store(lower_state *state, const ir_node *node)
{
    if (!kl_is_free(node))
        INFO(state, node)->stored = true;
}

/* A kernel outside node's cluster reads it. */
static void cross(lower_state *state, ir_node *node)
{
    node_info *info = INFO(state, node);
    if (info->stored || kl_is_free(node))
        return;
    if (kl_is_reduce(node) || node->op == OP_gather || node->op == OP_dynamic_slice || info->never_inline) {
        info->stored = true;
        return;
    }
    closure c = { .state = state, .count = ir_type_count(&node->type), .possible = true };
    for (int i = 0; i < node->n_args; i++)
        collect(&c, node->args[i]);
    /* What is read again must not be more than what storing would make it read. */
    if (!c.possible || c.n_full > 1) {
        info->stored = true;
        return;
    }
    for (int i = 0; i < c.n_leaves; i++)
        store(state, c.leaves[i]);
}

void kl_choose_stored(lower_state *state)
{
    const ir_graph *graph = state->graph;
    for (int i = 0; i < state->n_infos; i++) {
        ir_node *node = state->infos[i].node;
        if (kl_has_memory_of_its_own(node) || (kl_role_of(node) == ROLE_LOOP && kl_is_outer_sum(node)))
            state->infos[i].stored = true;
        if (kl_role_of(node) == ROLE_ANCHOR)
            for (int j = 0; j < node->n_args; j++)
                store(state, kl_view_base(state, node->args[j]));
        if (node->op == OP_gather || node->op == OP_dynamic_slice)
            store(state, kl_view_base(state, node->args[0]));
    }
    for (int i = 0; i < graph->n_results; i++)
        store(state, kl_view_base(state, graph->results[i]));

    for (int i = 0; i < state->n_infos; i++) {
        ir_node *node = state->infos[i].node;
        if (kl_role_of(node) != ROLE_LOOP && !(kl_role_of(node) == ROLE_VIEW && state->infos[i].stored))
            continue;
        for (int j = 0; j < node->n_args; j++) {
            ir_node *from = kl_view_base(state, node->args[j]);
            if (kl_role_of(from) == ROLE_LOOP && INFO(state, from)->cluster != state->infos[i].cluster)
                cross(state, from);
        }
    }
}
