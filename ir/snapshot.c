/* A graph as it was before passes went over it, for the price of a list of pointers.
 *
 * A pass adds nodes, removes them, moves them, and changes what nodes read; what a node is, it was made as. Nothing leaves the arena. So it is enough to
 * remember the nodes in their order, their operands, and the results, of the graph and of the bodies within it. */
#include "ir/ir.h"

typedef struct { ir_graph *graph; int n_nodes, n_with_body; ir_node **nodes; ir_node **operands; ir_node **results; } remembered;

struct ir_snapshot {
    base_arena *arena;
    int n, cap;
    remembered *graphs;                  /* the graph, and each body once it is met */
};

static void remember(ir_snapshot *snapshot, ir_graph *graph)
{
    remembered r = { .graph = graph, .n_nodes = graph->n_nodes, .n_with_body = graph->n_with_body };
    int n_operands = 0;
    for (const ir_node *n = graph->first; n; n = n->next)
        n_operands += n->n_args;
    r.nodes = ARENA_NEW(snapshot->arena, ir_node *, r.n_nodes);
    r.operands = ARENA_NEW(snapshot->arena, ir_node *, n_operands);
    r.results = ARENA_NEW(snapshot->arena, ir_node *, graph->n_results);
    for (int i = 0; i < graph->n_results; i++)
        r.results[i] = graph->results[i];
    ir_node **node = r.nodes, **operand = r.operands;
    for (ir_node *n = graph->first; n; n = n->next) {
        *node++ = n;
        for (int i = 0; i < n->n_args; i++)
            *operand++ = n->args[i];
    }
    snapshot->graphs = base_arena_grown(snapshot->arena, snapshot->graphs, snapshot->n, &snapshot->cap, sizeof(remembered));
    snapshot->graphs[snapshot->n++] = r;
    for (ir_node *n = graph->n_with_body ? graph->first : NULL; n; n = n->next)
        if (n->attr.body)
            remember(snapshot, n->attr.body);
}

ir_snapshot *ir_snapshot_take(ir_graph *graph)
{
    base_arena *arena = base_arena_new();
    ir_snapshot *snapshot = ARENA_NEW(arena, ir_snapshot, 1);
    snapshot->arena = arena;
    remember(snapshot, graph);
    return snapshot;
}

void ir_snapshot_restore(const ir_snapshot *snapshot)
{
    for (int i = 0; i < snapshot->n; i++) {
        const remembered *r = &snapshot->graphs[i];
        ir_node *const *operand = r->operands, *last = NULL;
        r->graph->first = NULL;
        for (int j = 0; j < r->n_nodes; j++) {
            ir_node *node = r->nodes[j];
            node->prev = last;
            node->next = NULL;
            *(last ? &last->next : &r->graph->first) = node;
            last = node;
            for (int k = 0; k < node->n_args; k++)
                node->args[k] = *operand++;
        }
        r->graph->last = last;
        r->graph->n_nodes = r->n_nodes;
        r->graph->n_with_body = r->n_with_body;
        for (int j = 0; j < r->graph->n_results; j++)
            r->graph->results[j] = r->results[j];
    }
}

void ir_snapshot_free(ir_snapshot *snapshot)
{
    if (snapshot)
        base_arena_free(snapshot->arena);
}
