/* What must hold of a graph between passes:
 *
 *   - the list is linked both ways, parameters stand first, and are params[] by index;
 *   - ids are unique and below next_id; operands are nodes of this graph that stand before their users;
 *   - every node's type is what its shape rule says of its operands and attributes now;
 *   - results are nodes of this graph and tensors; a donation names a parameter of the result's type, no other result's;
 *   - all of it in bodies too.
 *
 * Whether composites remain is not asked: that depends on the backend. Uses the nodes' mark (place in the order, from 1) and
 * note (their graph). */
#include "ir/shape_rules.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

typedef struct {
    const ir_graph *graph;
    base_arena *arena;                    /* for tuples that are inferred again */
    base_text *why;
    int depth;
} verifier;

static bool fails(const verifier *v, const ir_node *node, const char *format, ...) PRINTF_LIKE(3, 4);
static bool fails(const verifier *v, const ir_node *node, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (v->depth > 0)
        base_text_add(v->why, "body %s: ", v->graph->name);
    if (node)
        base_text_add(v->why, "%%%d %s: ", node->id, OP_NAME(node->op));
    base_text_addv(v->why, format, args);
    va_end(args);
    return false;
}

static bool is_member(const verifier *v, const ir_node *node) { return node->note == v->graph && node->mark >= 1; }

static int compare_ids(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* -- parts ------------------------------------------------------------------------------------------------------------- */

static bool list_holds(verifier *v, int *n_nodes)
{
    const ir_node *prev = NULL;
    int64_t position = 0, n_with_body = 0;
    for (ir_node *n = v->graph->first; n; prev = n, n = n->next) {
        if (n->prev != prev)
            return fails(v, n, "expected the node before it to be linked to it");
        if ((unsigned)n->op >= IR_OPS)
            return fails(v, NULL, "%%%d: expected an op, got %d", n->id, (int)n->op);
        n->mark = ++position;
        n_with_body += n->attr.body != NULL;
        n->note = (void *)v->graph;
    }
    *n_nodes = (int)position;
    if (position != v->graph->n_nodes || n_with_body != v->graph->n_with_body)
        return fails(v, NULL, "expected %d nodes, %d of them with a body, got %lld and %lld", v->graph->n_nodes, v->graph->n_with_body,
                     (long long)position, (long long)n_with_body);
    return v->graph->last == prev || fails(v, v->graph->last, "expected the last node of the list to be graph->last");
}

static bool ids_hold(verifier *v, int n_nodes)
{
    int *ids = base_alloc(sizeof *ids * (size_t)n_nodes), n = 0;
    bool good = true;
    for (const ir_node *node = v->graph->first; good && node; node = node->next) {
        ids[n++] = node->id;
        good = (node->id >= 0 && node->id < v->graph->next_id) || fails(v, node, "expected an id below %d", v->graph->next_id);
    }
    if (good)
        qsort(ids, (size_t)n, sizeof *ids, compare_ids);
    for (int i = 1; good && i < n; i++)
        good = ids[i] != ids[i - 1] || fails(v, NULL, "expected unique ids, got %%%d twice", ids[i]);
    base_free(ids);
    return good;
}

static bool parameters_hold(verifier *v)
{
    const ir_node *n = v->graph->first;
    for (int i = 0; i < v->graph->n_params; i++, n = n->next) {
        if (!n || n != v->graph->params[i] || n->op != OP_parameter)
            return fails(v, n, "expected parameter %d to stand in place %d of the order", i, i);
        if (n->attr.index != i)
            return fails(v, n, "expected index %d, got %d", i, n->attr.index);
        base_text why = {0};
        bool sound = ir_type_is_sound(&n->type, &why) || fails(v, n, "%s", why.at);
        base_text_free(&why);
        if (!sound)
            return false;
    }
    for (; n; n = n->next)
        if (n->op == OP_parameter)
            return fails(v, n, "expected no more than %d parameters", v->graph->n_params);
    return true;
}

static bool graph_holds(verifier *v);

static bool body_holds(verifier *v, const ir_node *node)
{
    const ir_graph *body = node->attr.body;
    if (!(ir_op_table[node->op].attributes & ATTR_BODY))
        return !body || fails(v, node, "expected no body");
    if (!body)
        return fails(v, node, "expected a body, got none");
    if (body->arena != v->graph->arena)
        return fails(v, node, "expected the body to share the arena of its graph");
    if (v->depth == MAX_DEPTH)
        return fails(v, node, "bodies within bodies, more than %d deep", MAX_DEPTH);
    verifier inner = { body, v->arena, v->why, v->depth + 1 };
    return graph_holds(&inner);
}

static bool type_holds(verifier *v, const ir_node *node)
{
    base_text why = {0};
    ir_type type, *tuple = NULL;
    int n_tuple = 0;
    const ir_type *stated = ir_op_table[node->op].attributes & RESULT_TYPE ? &node->type : NULL;
    bool good = ir_infer_in(v->arena, node->op, node->n_args, node->args, &node->attr, stated, &type, &n_tuple, &tuple, &why) ||
                fails(v, node, "%s", why.at);
    bool same = good && ir_type_equal(&type, &node->type) && n_tuple == node->n_tuple;
    for (int i = 0; same && i < n_tuple; i++)
        same = ir_type_equal(&tuple[i], &node->tuple[i]);
    if (good && !same) {
        base_text now = {0};
        base_text_free(&why);
        ir_type_print(&why, &node->type);
        ir_type_print(&now, &type);
        fails(v, node, "expected type %s with %d results, got %s with %d", now.at, n_tuple, why.at, node->n_tuple);
        base_text_free(&now);
    }
    base_text_free(&why);
    return good && same;
}

static bool node_holds(verifier *v, const ir_node *node)
{
    for (int i = 0; i < node->n_args; i++) {
        const ir_node *arg = node->args[i];
        if (!arg)
            return fails(v, node, "operand %d is missing", i);
        if (!is_member(v, arg))
            return fails(v, node, "operand %d, %%%d, is not in the graph", i, arg->id);
        if (arg->mark >= node->mark)
            return fails(v, node, "operand %d, %%%d, stands after its user", i, arg->id);
    }
    return node->op == OP_parameter || (body_holds(v, node) && type_holds(v, node));
}

static bool results_hold(verifier *v)
{
    const ir_graph *g = v->graph;
    bool *taken = base_alloc(sizeof *taken * (size_t)g->n_params);
    bool good = true;
    for (int i = 0; good && i < g->n_results; i++) {
        const ir_node *node = g->results[i];
        int from = g->donated[i];
        if (!node || !is_member(v, node))
            good = fails(v, NULL, "result %d is not in the graph", i);
        else if (node->type.dtype == IR_TUPLE)
            good = fails(v, node, "as result %d it would be a tuple: pick one of its results", i);
        else if (from < -1 || from >= g->n_params)
            good = fails(v, NULL, "result %d takes over the memory of parameter %d, and there are %d parameters", i, from, g->n_params);
        else if (from >= 0 && !ir_type_equal(&node->type, &g->params[from]->type))
            good = fails(v, node, "as result %d it takes over the memory of parameter %d, of another type", i, from);
        else if (from >= 0 && taken[from])
            good = fails(v, NULL, "the memory of parameter %d is taken over twice", from);
        else if (from >= 0)
            taken[from] = true;
    }
    base_free(taken);
    return good;
}

/* -- the whole --------------------------------------------------------------------------------------------------------- */

static bool graph_holds(verifier *v)
{
    int n_nodes = 0;
    if (!list_holds(v, &n_nodes) || !ids_hold(v, n_nodes) || !parameters_hold(v))
        return false;
    for (const ir_node *n = v->graph->first; n; n = n->next)
        if (!node_holds(v, n))
            return false;
    return results_hold(v);
}

bool ir_verify(const ir_graph *graph, base_text *why)
{
    verifier v = { graph, base_arena_new(), why, 0 };
    bool good = graph_holds(&v);
    base_arena_free(v.arena);
    return good;
}
