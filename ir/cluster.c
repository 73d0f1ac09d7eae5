/* Which nodes one loop computes together.
 *
 * Every node that a loop can compute begins as a cluster of its own and is merged with those of its operands, in order,
 * where that is legal:
 *
 *   - Shapes agree. A cluster is rows x inner: full values have an element everywhere, row values one a row. Values are read at
 *     the index where they are made: an edge may lead through reshapes, and from a row value through a broadcast along the
 *     row. A reduction over the inner part of a full value gives a row value; a sum over the rows ends in the kernel.
 *   - No value leaves the cluster and comes back by way of another kernel: the kernels must have an order. It is kept while clusters
 *     are merged; the graph's is not enough, since a cluster has early and late nodes, and an early kernel may wait for a late one.
 *
 * Layer norm, its gradients and the residual around it become one cluster so. Clusters that read the same large value are
 * merged too: it is read once.
 *
 * Needs simplified graphs without dead nodes; changes nothing in the graph. */
#include "ir/lower.h"

#include <string.h>

enum { MOST_NODES = 160, MOST_READS = 32 };

/* -- edges ------------------------------------------------------------------------------------------------------------ */

/* How a loop node reads another: at the same linear index (repeat 1), at the index of its row (repeat: elements a row), or
 * otherwise (repeat 0). */
typedef struct { ir_node *from; int64_t repeat; } edge;

static edge edge_of(const lower_state *state, const ir_node *node, int index)
{
    ir_node *arg = node->args[index];
    int64_t repeat = 1;
    if (node->op == OP_gather && index == 1 && node->attr.axis == 0 && ir_type_count(&arg->type) > 0)
        repeat = ir_type_count(&node->type) / ir_type_count(&arg->type);       /* an index a row */
    else if (node->op == OP_gather || node->op == OP_dynamic_slice || node->op == OP_random_bits)
        repeat = 0;
    for (; kl_role_of(arg) == ROLE_VIEW && !INFO(state, arg)->stored; arg = arg->args[0]) {
        if (arg->op == OP_reshape || arg->op == OP_stop_gradient || arg->op == OP_custom_gradient)
            continue;
        if (arg->op != OP_broadcast) {
            repeat = 0;
            continue;
        }
        /* Along the row only: the operand's axes come first, in place, and what is new comes last. */
        const ir_type *small = &arg->args[0]->type, *big = &arg->type;
        bool from_small[IR_MAX_RANK] = {0}, row_ended = false, along_row = true;
        for (int i = 0; i < small->rank; i++)
            if (small->dim[i] == big->dim[arg->attr.axes[i]])
                from_small[arg->attr.axes[i]] = true;
        for (int i = 0; i < big->rank; i++) {
            if (big->dim[i] == 1)
                continue;
            row_ended |= !from_small[i];
            along_row &= !(row_ended && from_small[i]);
        }
        int64_t few = ir_type_count(small);
        repeat = along_row && few > 0 ? repeat * (ir_type_count(big) / few) : 0;
    }
    return (edge){ arg, repeat };
}

/* -- clusters --------------------------------------------------------------------------------------------------------- */

typedef struct {
    lower_state *state;
    int *first_edge;           /* by node, and one more at the end: its first in `edges`, one an operand. They stay while clusters form: */
    edge *edges;               /* what is stored is not decided meanwhile */
    int *reader;               /* by node: the last cluster that read this stored value in full, or -1 */
    int *seen, search;         /* by unit: the search that was last here */
    int *found, n_found;       /* the units of that search, */
    unit_heap open;            /* and those whose operands it has yet to look at, the first in order on top: the way to what is looked
                                  for mostly leads along the earliest */
    int64_t *order;            /* by unit: what it reads has less */
    int *before, *after;       /* by unit: its neighbours in that order, a ring that the unit n_infos closes */
    node_cluster *spare;       /* the last that was merged into another: room for the next new one */
} clustering;

static void find_edges(clustering *c)
{
    const lower_state *state = c->state;
    int n = 0;
    for (int i = 0; i < state->n_infos; i++)
        n += state->infos[i].node->n_args;
    c->first_edge = ARENA_NEW(state->arena, int, state->n_infos + 1);
    c->edges = ARENA_NEW(state->arena, edge, n);
    n = 0;
    for (int i = 0; i < state->n_infos; i++) {
        const ir_node *node = state->infos[i].node;
        for (int j = 0; j < node->n_args; j++)
            c->edges[n++] = edge_of(state, node, j);
        c->first_edge[i + 1] = n;
    }
}

static const edge *edges_of(const clustering *c, const ir_node *node) { return &c->edges[c->first_edge[node->mark]]; }

/* Units are clusters and, one each, all other nodes: by the mark of a node, through unit_of. */
static int unit_of(const lower_state *state, const ir_node *node)
{
    const node_info *info = INFO(state, node);
    return info->cluster >= 0 ? info->cluster : (int)node->mark;
}

static bool add_cuts(int64_t *cuts, int *n_cuts, int rank, const int64_t *dim, int64_t factor)
{
    int64_t product = factor;
    for (int i = rank - 1; i >= 0; i--) {
        product *= dim[i];
        if (dim[i] == 1 || product == 0)
            continue;
        int at = 0;
        while (at < *n_cuts && cuts[at] < product)
            at++;
        if (at < *n_cuts && cuts[at] == product)
            continue;
        if (*n_cuts >= KL_MAX_AXES || (at > 0 && product % cuts[at - 1] != 0) || (at < *n_cuts && cuts[at] % product != 0))
            return false;
        memmove(&cuts[at + 1], &cuts[at], sizeof(*cuts) * (size_t)(*n_cuts - at));
        cuts[at] = product;
        ++*n_cuts;
    }
    return true;
}

static const ir_type *full_type(const ir_node *node) { return kl_is_reduce(node) ? &node->args[0]->type : &node->type; }

typedef enum { LEVEL_NONE, LEVEL_FULL, LEVEL_ROW, LEVEL_AFTER } level;

/* What node's value is in a cluster of these measures. */
static level level_in(const ir_node *node, int64_t total, int64_t inner)
{
    if (kl_is_outer_sum(node))
        return LEVEL_AFTER;
    int64_t count = ir_type_count(&node->type);
    if (count == total)
        return LEVEL_FULL;
    return inner > 0 && count * inner == total ? LEVEL_ROW : LEVEL_NONE;
}

/* Whether node may read `from`, both in one cluster of these measures, along such an edge. */
static bool edge_fits(const ir_node *node, edge e, int64_t total, int64_t inner)
{
    level mine = level_in(node, total, inner), its = level_in(e.from, total, inner);
    if (its == LEVEL_AFTER || its == LEVEL_NONE || mine == LEVEL_NONE || e.repeat == 0)
        return false;
    int64_t read = ir_type_count(&e.from->type) * e.repeat;           /* the size of what the node's operand looks like */
    if (kl_is_reduce(node)) {
        if (kl_kind_of_reduce(node) == REDUCE_MIDDLE)
            return false;
        if (mine == LEVEL_AFTER && kl_kind_of_reduce(node) == REDUCE_EVERYTHING && its == LEVEL_ROW && e.repeat == 1)
            return true;
        if (read != total)
            return false;
        return its == LEVEL_FULL ? e.repeat == 1 : e.repeat == inner;
    }
    if (e.repeat == 1)
        return mine == its;
    return mine == LEVEL_FULL && its == LEVEL_ROW && e.repeat == inner;
}

static node_cluster *new_cluster(clustering *c, ir_node *node)
{
    lower_state *state = c->state;
    node_cluster *cluster = c->spare;
    if (cluster) {
        *cluster = (node_cluster){ .nodes = cluster->nodes, .cap_nodes = cluster->cap_nodes };
        c->spare = NULL;
    } else {
        cluster = ARENA_NEW(state->arena, node_cluster, 1);
        cluster->cap_nodes = 4;
        cluster->nodes = ARENA_NEW(state->arena, ir_node *, cluster->cap_nodes);
    }
    cluster->id = cluster->first = cluster->last = (int)node->mark;
    cluster->nodes[cluster->n_nodes++] = node;
    cluster->total = ir_type_count(full_type(node));
    cluster->alone = INFO(state, node)->never_inline;
    if (kl_is_reduce(node)) {
        reduce_kind kind = kl_kind_of_reduce(node);
        int64_t kept = ir_type_count(&node->type);
        cluster->alone |= kind == REDUCE_MIDDLE;
        if (kind == REDUCE_TRAILING)
            cluster->inner = kept ? cluster->total / kept : 0;
        if (kind == REDUCE_LEADING)
            cluster->inner = kept;
    }
    add_cuts(cluster->cuts, &cluster->n_cuts, full_type(node)->rank, full_type(node)->dim, 1);
    state->clusters[cluster->id] = cluster;
    INFO(state, node)->cluster = cluster->id;
    return cluster;
}

/* The measures of a and b merged; false where their shapes do not go together. */
static bool merged_measures(const node_cluster *a, const node_cluster *b, node_cluster *merged)
{
    *merged = *a;
    if (a->total == 0 || b->total == 0)
        return false;
    if (a->total == b->total) {
        if (a->inner && b->inner && a->inner != b->inner)
            return false;
        merged->inner = a->inner ? a->inner : b->inner;
    } else {
        /* The smaller one's full values are rows of the larger. A single element is no row: it would leave nothing to share out. */
        const node_cluster *small = a->total < b->total ? a : b, *big = small == a ? b : a;
        if (small->total == 1 || small->inner || big->total % small->total != 0)
            return false;
        int64_t inner = big->total / small->total;
        if (big->inner && big->inner != inner)
            return false;
        merged->total = big->total;
        merged->inner = inner;
    }
    merged->n_cuts = 0;
    const node_cluster *both[] = { a, b };
    for (int k = 0; k < 2; k++) {
        int64_t factor = merged->total / both[k]->total;
        for (int i = 0; i < both[k]->n_cuts; i++)
            if (!add_cuts(merged->cuts, &merged->n_cuts, 1, &both[k]->cuts[i], factor))
                return false;
    }
    return merged->inner <= 1 || add_cuts(merged->cuts, &merged->n_cuts, 1, &merged->inner, 1);
}

/* Whether the edges of mine, one of the two, fit the merged cluster. Those inside of it did before, and do if its measures stay. */
static bool edges_fit(clustering *c, const node_cluster *mine, const node_cluster *other, const node_cluster *merged)
{
    bool changed = mine->total != merged->total || mine->inner != merged->inner;
    if (!changed && mine->last < other->first)
        return true;                                      /* nothing of the other is an operand */
    for (int i = 0; i < mine->n_nodes; i++) {
        ir_node *node = mine->nodes[i];
        if (changed && level_in(node, merged->total, merged->inner) == LEVEL_NONE)
            return false;
        for (int j = 0; j < node->n_args; j++) {
            edge e = edges_of(c, node)[j];
            int unit = unit_of(c->state, e.from);
            if ((unit == other->id || (changed && unit == mine->id)) && !edge_fits(node, e, merged->total, merged->inner))
                return false;
        }
    }
    return true;
}

/* Finds the units of node's operands from that place in the order on. True where one of them is the unit looked for. */
static bool find_operands(clustering *c, const ir_node *node, int64_t since, int wanted)
{
    const edge *edges = edges_of(c, node);
    for (int i = 0; i < node->n_args; i++) {
        int unit = unit_of(c->state, edges[i].from);
        if (unit == wanted)
            return true;
        if (c->seen[unit] != c->search && c->order[unit] >= since) {
            c->seen[unit] = c->search;
            c->found[c->n_found++] = unit;
            kl_heap_push(&c->open, unit);
        }
    }
    return false;
}

/* Whether one of late's operands, not made by early, depends on early. What late depends on is found up to early's place in the order. */
static bool returns_through_another(clustering *c, const node_cluster *early, const node_cluster *late)
{
    lower_state *state = c->state;
    int64_t since = c->order[early->id];
    c->search++;
    c->n_found = c->open.n = 0;
    c->seen[early->id] = c->seen[late->id] = c->search;
    for (int i = 0; i < late->n_nodes; i++)
        find_operands(c, late->nodes[i], since, -1);
    while (c->open.n > 0) {
        int unit = kl_heap_pop(&c->open);
        const node_cluster *cluster = state->clusters[unit];
        if (!cluster && find_operands(c, state->infos[unit].node, since, early->id))
            return true;
        for (int j = 0; cluster && j < cluster->n_nodes; j++)
            if (find_operands(c, cluster->nodes[j], since, early->id))
                return true;
    }
    return false;
}

/* -- the order of units ------------------------------------------------------------------------------------------------- */

enum { ORDER_GAP = 1 << 24 };

static void number_units(clustering *c)
{
    int end = c->state->n_infos;
    int64_t order = 0;
    c->order[end] = 0;
    for (int unit = c->after[end]; unit != end; unit = c->after[unit])
        c->order[unit] = order += ORDER_GAP;
}

static void link_units(clustering *c, int first, int second)
{
    c->after[first] = second;
    c->before[second] = first;
}

static void put_unit(clustering *c, int unit, int next)
{
    link_units(c, c->before[unit], c->after[unit]);
    link_units(c, c->before[next], unit);
    link_units(c, unit, next);
}

/* The merged cluster, unit `stays`, takes early's place. Before it comes what late was found to depend on, in the order that it has: none of it
 * depends on early, nor on anything else from early's place on. */
static void order_merged(clustering *c, int early, int late, int stays)
{
    int n = c->n_found, gone = stays == early ? late : early;
    int64_t to = c->order[early], from = c->order[c->before[early]], step = (to - from) / (n + 1);
    for (int i = 0; i < n; i++)
        kl_heap_push(&c->open, c->found[i]);
    for (int i = 0; i < n; i++)
        put_unit(c, c->found[i] = kl_heap_pop(&c->open), early);
    if (stays == late)
        put_unit(c, late, early);
    link_units(c, c->before[gone], c->after[gone]);
    if (step == 0) {
        number_units(c);
        return;
    }
    for (int i = 0; i < n; i++)
        c->order[c->found[i]] = from + (i + 1) * step;
    c->order[stays] = to;
}

/* Whether a loop of both would read more than it may from outside, constants aside: code of a length that follows that of the program, and of
 * another form for each, as a chain that adds up a number for each parameter does. Cut in pieces of one form it is compiled once. */
static bool reads_too_much(clustering *c, const node_cluster *a, const node_cluster *b)
{
    const node_cluster *both[] = { a, b };
    int n = 0;
    if (a->n_nodes + b->n_nodes < MOST_READS)
        return false;
    c->search++;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < both[k]->n_nodes; i++) {
            const ir_node *node = both[k]->nodes[i];
            for (int j = 0; j < node->n_args; j++) {
                const ir_node *from = edges_of(c, node)[j].from;
                int unit = unit_of(c->state, from);
                if (unit == a->id || unit == b->id || kl_is_free(from) || c->seen[from->mark] == c->search)
                    continue;
                c->seen[from->mark] = c->search;
                n++;
            }
        }
    return n > MOST_READS;
}

static bool merge(clustering *c, node_cluster *into, node_cluster *from)
{
    lower_state *state = c->state;
    node_cluster merged;
    if (into == from)
        return true;
    if (into->alone || from->alone || into->n_nodes + from->n_nodes > MOST_NODES || reads_too_much(c, into, from) || !merged_measures(into, from, &merged) ||
        !edges_fit(c, into, from, &merged) || !edges_fit(c, from, into, &merged))
        return false;
    bool in_order = c->order[into->id] < c->order[from->id];
    node_cluster *early = in_order ? into : from, *late = in_order ? from : into;
    if (returns_through_another(c, early, late))
        return false;
    order_merged(c, early->id, late->id, into->id);

    int n = into->n_nodes + from->n_nodes;
    if (n > into->cap_nodes) {
        merged.cap_nodes = 2 * n;
        merged.nodes = ARENA_NEW(state->arena, ir_node *, merged.cap_nodes);
        memcpy(merged.nodes, into->nodes, sizeof(ir_node *) * (size_t)into->n_nodes);
    } else {
        merged.cap_nodes = into->cap_nodes;
        merged.nodes = into->nodes;
    }
    merged.id = into->id;
    merged.first = MIN(into->first, from->first);
    merged.last = MAX(into->last, from->last);
    memcpy(merged.nodes + into->n_nodes, from->nodes, sizeof(ir_node *) * (size_t)from->n_nodes);
    merged.n_nodes = n;
    for (int i = 0; i < from->n_nodes; i++)
        INFO(state, from->nodes[i])->cluster = into->id;
    *into = merged;
    state->clusters[from->id] = NULL;
    c->spare = from;
    return true;
}

static clustering new_clustering(lower_state *state)
{
    clustering c = { .state = state };
    find_edges(&c);
    c.seen = ARENA_NEW(state->arena, int, state->n_infos);
    c.found = ARENA_NEW(state->arena, int, state->n_infos);
    c.order = ARENA_NEW(state->arena, int64_t, state->n_infos + 1);
    c.open = (unit_heap){ .key = c.order, .at = ARENA_NEW(state->arena, int, state->n_infos) };
    c.before = ARENA_NEW(state->arena, int, state->n_infos + 1);
    c.after = ARENA_NEW(state->arena, int, state->n_infos + 1);
    for (int i = 0; i <= state->n_infos; i++)
        link_units(&c, i, i < state->n_infos ? i + 1 : 0);
    number_units(&c);
    c.reader = ARENA_NEW(state->arena, int, state->n_infos);
    for (int i = 0; i < state->n_infos; i++)
        c.reader[i] = -1;
    return c;
}

void kl_cluster(lower_state *state)
{
    clustering c = new_clustering(state);
    for (ir_node *node = state->graph->first; node; node = node->next) {
        if (kl_role_of(node) != ROLE_LOOP)
            continue;
        new_cluster(&c, node);
        for (int i = 0; i < node->n_args; i++) {
            edge e = edges_of(&c, node)[i];
            const node_info *from = INFO(state, e.from);
            if (from->cluster >= 0)
                merge(&c, state->clusters[from->cluster], state->clusters[INFO(state, node)->cluster]);
        }
        /* With whoever last read the same large value at the same index. */
        for (int i = 0; i < node->n_args; i++) {
            edge e = edges_of(&c, node)[i];
            int64_t count = ir_type_count(&e.from->type);
            if (!kl_has_memory_of_its_own(e.from) || e.repeat != 1 || count == 1 || count != ir_type_count(full_type(node)))
                continue;
            int other = c.reader[e.from->mark], mine = INFO(state, node)->cluster;
            if (other >= 0)                       /* the reader may have been merged since: ask through one of its nodes */
                other = state->infos[other].cluster;
            if (other >= 0 && other != mine && state->clusters[other]->total == state->clusters[mine]->total)
                merge(&c, state->clusters[other], state->clusters[mine]);
            c.reader[e.from->mark] = (int)node->mark;
        }
    }
}
