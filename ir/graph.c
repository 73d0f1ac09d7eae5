/* The graph: nodes in a doubly linked list, operands before users, parameters first. All of it lives in one arena, so that
 * nothing is freed alone: a node that is removed only leaves the list.
 *
 * New nodes go before graph->before, or to the end; they are born at graph->place, by graph->pass. */
#include "ir/shape_rules.h"

#include <limits.h>
#include <string.h>

/* -- graphs ------------------------------------------------------------------------------------------------------------ */

static ir_graph *new_graph(base_arena *arena, bool owns_arena, const char *name)
{
    ir_graph *graph = ARENA_NEW(arena, ir_graph, 1);
    graph->arena = arena;
    graph->owns_arena = owns_arena;
    graph->name = base_arena_text(arena, "%s", name ? name : "");
    return graph;
}

ir_graph *ir_graph_new(const char *name) { return new_graph(base_arena_new(), true, name); }

ir_graph *ir_graph_new_body(ir_graph *parent, const char *name)
{
    ir_graph *body = new_graph(parent->arena, false, name);
    body->place = parent->place;
    body->pass = parent->pass;
    return body;
}

void ir_graph_free(ir_graph *graph)
{
    if (graph && graph->owns_arena)
        base_arena_free(graph->arena);
}

/* -- nodes ------------------------------------------------------------------------------------------------------------- */

/* Puts node into the list before `before`, or at the end where it is NULL. */
static void link_before(ir_graph *graph, ir_node *node, ir_node *before)
{
    node->next = before;
    node->prev = before ? before->prev : graph->last;
    *(node->prev ? &node->prev->next : &graph->first) = node;
    *(before ? &before->prev : &graph->last) = node;
    graph->n_nodes++;
    graph->n_with_body += node->attr.body != NULL;
}

static ir_node *new_node(ir_graph *graph, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr)
{
    ir_node *node = ARENA_NEW(graph->arena, ir_node, 1);
    CHECK(graph->next_id < INT_MAX, "graph %s: expected ids to suffice", graph->name);
    node->op = op;
    node->id = graph->next_id++;
    node->n_args = n_args;
    node->args = ARENA_NEW(graph->arena, ir_node *, n_args);
    for (int i = 0; i < n_args; i++)
        node->args[i] = args[i];
    if (attr)
        node->attr = *attr;
    node->place = graph->place;
    node->born = graph->pass;
    return node;
}

/* Equal nodes are to look equal: a value is what its dtype can hold, with one NaN; a site counts where numbers are drawn. */
static void settle_attributes(ir_node *node)
{
    if (node->op == OP_constant || node->op == OP_pad)
        node->attr.value = ir_round_to(node->type.dtype, node->attr.value);
    if (ir_op_table[node->op].attributes & ATTR_ATTENTION && node->attr.dropout == 0)
        node->attr.site = 0;
}

bool ir_infer(ir_graph *graph, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated,
              ir_type *type, int *n_tuple, ir_type **tuple, base_text *why)
{
    return ir_infer_in(graph->arena, op, n_args, args, attr, stated, type, n_tuple, tuple, why);
}

void ir_share_scalars(ir_graph *graph, ir_node **recent) { graph->recent = recent; }

static uint64_t value_bits(ir_dtype dtype, double value)
{
    uint64_t bits;
    value = ir_round_to(dtype, value);
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static bool is_recent(const ir_node *node, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated)
{
    bool same = node && node->op == op && node->n_args == n_args && (!stated || ir_type_equal(&node->type, stated));
    for (int i = 0; same && i < n_args; i++)
        same = node->args[i] == args[i];
    return same && (op != OP_constant || value_bits(stated->dtype, node->attr.value) == value_bits(stated->dtype, attr->value));
}

/* Where the table of recent nodes has such a node, or would have it, in the place of an older one if need be. NULL: it is none that is shared. */
static ir_node **recent_place(const ir_graph *graph, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated)
{
    enum { TRIES = 4 };
    const ir_op_info *info = &ir_op_table[op];
    uint64_t hash = (uint64_t)op;
    if (!graph->recent || !(op == OP_constant || op == OP_broadcast || (info->class == IR_ELEMENTWISE && !(info->attributes & ~(unsigned)RESULT_TYPE))))
        return NULL;
    for (int i = 0; i < n_args; i++) {
        if (args[i]->type.rank > 0 || args[i]->type.dtype == IR_TUPLE)
            return NULL;
        hash = ir_mixed(hash, (uint64_t)args[i]->id);         /* not its address: every run makes the same graph */
    }
    if (op == OP_constant)
        hash = ir_mixed(hash, value_bits(stated->dtype, attr->value));
    for (int i = 0; stated && i < stated->rank; i++)
        hash = ir_mixed(hash, (uint64_t)stated->dim[i]);
    hash ^= hash >> 17 ^ hash >> 43;
    for (uint64_t i = 0; i < TRIES; i++) {
        ir_node **place = &graph->recent[(hash + i) % IR_RECENT];
        if (!*place || is_recent(*place, op, n_args, args, attr, stated))
            return place;
    }
    return &graph->recent[hash % IR_RECENT];
}

ir_node *ir_try_add(ir_graph *graph, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated, base_text *why)
{
    ir_node **recent = recent_place(graph, op, n_args, args, attr, stated);
    if (recent && is_recent(*recent, op, n_args, args, attr, stated))
        return *recent;
    ir_node *node = new_node(graph, op, n_args, args, attr);
    if (!ir_infer(graph, op, n_args, args, attr, stated, &node->type, &node->n_tuple, &node->tuple, why))
        return NULL;
    settle_attributes(node);
    if (recent)
        *recent = node;
    link_before(graph, node, graph->before);
    return node;
}

ir_node *ir_add(ir_graph *graph, ir_op op, int n_args, ir_node *const *args, const ir_attr *attr, const ir_type *stated)
{
    base_text why = {0};
    CHECK(op != OP_parameter, "ir_add: expected ir_parameter for a parameter");
    ir_node *node = ir_try_add(graph, op, n_args, args, attr, stated, &why);
    CHECK(node, "%s: %s (pass %s, %s:%d)", OP_NAME(op), why.at, graph->pass ? graph->pass : "trace", graph->place.file ? graph->place.file : "nowhere",
          graph->place.line);
    base_text_free(&why);
    return node;
}

/* Arrays in an arena grow by doubling: full when their count is a power of two (or 0). */
static void push_parameter(ir_graph *graph, ir_node *node)
{
    int n = graph->n_params;
    if ((n & (n - 1)) == 0) {
        ir_node **more = ARENA_NEW(graph->arena, ir_node *, MAX(1, 2 * n));
        for (int i = 0; i < n; i++)
            more[i] = graph->params[i];
        graph->params = more;
    }
    graph->params[graph->n_params++] = node;
}

ir_node *ir_parameter(ir_graph *graph, ir_type type, const char *name)
{
    ir_attr attr = { .index = graph->n_params, .name = name ? base_arena_text(graph->arena, "%s", name) : NULL };
    base_text why = {0};
    CHECK(ir_type_is_sound(&type, &why), "ir_parameter: %s", why.at);
    ir_node *node = new_node(graph, OP_parameter, 0, NULL, &attr);
    node->type = type;
    link_before(graph, node, graph->n_params ? graph->params[graph->n_params - 1]->next : graph->first);
    push_parameter(graph, node);
    return node;
}

void ir_set_results(ir_graph *graph, int n, ir_node *const *results, const char *const *names)
{
    graph->n_results = n;
    graph->results = ARENA_NEW(graph->arena, ir_node *, n);
    graph->result_names = ARENA_NEW(graph->arena, const char *, n);
    graph->donated = ARENA_NEW(graph->arena, int, n);
    for (int i = 0; i < n; i++) {
        graph->results[i] = results[i];
        graph->result_names[i] = names && names[i] ? base_arena_text(graph->arena, "%s", names[i]) : NULL;
        graph->donated[i] = -1;
    }
}

/* -- shorthands -------------------------------------------------------------------------------------------------------- */

ir_node *ir_unary(ir_graph *graph, ir_op op, ir_node *x) { return ir_add(graph, op, 1, &x, NULL, NULL); }

ir_node *ir_binary(ir_graph *graph, ir_op op, ir_node *lhs, ir_node *rhs)
{
    return ir_add(graph, op, 2, (ir_node *[]){ lhs, rhs }, NULL, NULL);
}

ir_node *ir_select(ir_graph *graph, ir_node *condition, ir_node *yes, ir_node *no)
{
    return ir_add(graph, OP_select, 3, (ir_node *[]){ condition, yes, no }, NULL, NULL);
}

ir_node *ir_constant(ir_graph *graph, ir_type type, double value)
{
    return ir_add(graph, OP_constant, 0, NULL, &(ir_attr){ .value = value }, &type);
}

ir_node *ir_constant_like(ir_graph *graph, const ir_node *x, double value) { return ir_constant(graph, x->type, value); }

ir_node *ir_cast(ir_graph *graph, ir_node *x, ir_dtype dtype)
{
    if (x->type.dtype == dtype)
        return x;
    ir_type type = ir_type_with_dtype(x->type, dtype);
    return ir_add(graph, OP_cast, 1, &x, NULL, &type);
}

ir_node *ir_reshape(ir_graph *graph, ir_node *x, ir_type type)
{
    if (ir_type_equal(&x->type, &type))
        return x;
    return ir_add(graph, OP_reshape, 1, &x, NULL, &type);
}

static void set_axes(ir_attr *attr, int n_axes, const int *axes)
{
    CHECK(n_axes >= 0 && n_axes <= IR_MAX_RANK, "expected 0 to %d axes, got %d", IR_MAX_RANK, n_axes);
    attr->n_axes = n_axes;
    for (int i = 0; i < n_axes; i++)
        attr->axes[i] = axes[i];
}

ir_node *ir_transpose(ir_graph *graph, ir_node *x, const int *perm)
{
    ir_attr attr = {0};
    set_axes(&attr, x->type.rank, perm);
    return ir_add(graph, OP_transpose, 1, &x, &attr, NULL);
}

ir_node *ir_swap_last(ir_graph *graph, ir_node *x)
{
    int perm[IR_MAX_RANK], rank = x->type.rank;
    CHECK(rank >= 2, "ir_swap_last: expected two axes, got rank %d", rank);
    for (int i = 0; i < rank; i++)
        perm[i] = i < rank - 2 ? i : 2 * rank - 3 - i;
    return ir_transpose(graph, x, perm);
}

ir_node *ir_broadcast(ir_graph *graph, ir_node *x, ir_type type, const int *axes)
{
    ir_attr attr = {0};
    set_axes(&attr, x->type.rank, axes);
    return ir_add(graph, OP_broadcast, 1, &x, &attr, &type);
}

ir_node *ir_broadcast_scalar(ir_graph *graph, ir_node *scalar, ir_type shape)
{
    return ir_broadcast(graph, scalar, ir_type_with_dtype(shape, scalar->type.dtype), NULL);
}

ir_node *ir_broadcast_back(ir_graph *graph, ir_node *reduced, ir_type shape, int n_axes, const int *axes)
{
    int stays[IR_MAX_RANK], n = 0;
    for (int i = 0, next = 0; i < shape.rank; i++) {
        if (next < n_axes && axes[next] == i)
            next++;
        else
            stays[n++] = i;
    }
    return ir_broadcast(graph, reduced, ir_type_with_dtype(shape, reduced->type.dtype), stays);
}

ir_node *ir_reduce(ir_graph *graph, ir_op op, ir_node *x, int n_axes, const int *axes)
{
    ir_attr attr = {0};
    set_axes(&attr, n_axes, axes);
    return ir_add(graph, op, 1, &x, &attr, NULL);
}

ir_node *ir_reduce_last(ir_graph *graph, ir_op op, ir_node *x)
{
    int last = x->type.rank - 1;
    return ir_reduce(graph, op, x, 1, &last);
}

ir_node *ir_matmul(ir_graph *graph, ir_node *lhs, ir_node *rhs, ir_dtype result)
{
    ir_type type = ir_type_with_dtype(lhs->type, result);
    CHECK(lhs->type.rank >= 2 && rhs->type.rank == lhs->type.rank, "ir_matmul: expected equal ranks of at least 2, got %d and %d",
          lhs->type.rank, rhs->type.rank);
    type.dim[type.rank - 1] = rhs->type.dim[type.rank - 1];
    type.dim_name[type.rank - 1] = rhs->type.dim_name[type.rank - 1];
    return ir_add(graph, OP_matmul, 2, (ir_node *[]){ lhs, rhs }, NULL, &type);
}

ir_node *ir_slice(ir_graph *graph, ir_node *x, const int64_t *start, ir_type type)
{
    ir_attr attr = {0};
    for (int i = 0; i < x->type.rank; i++)
        attr.start[i] = start[i];
    return ir_add(graph, OP_slice, 1, &x, &attr, &type);
}

ir_node *ir_iota(ir_graph *graph, ir_type type, int axis) { return ir_add(graph, OP_iota, 0, NULL, &(ir_attr){ .axis = axis }, &type); }

ir_node *ir_result(ir_graph *graph, ir_node *tuple, int index)
{
    return ir_add(graph, OP_result, 1, &tuple, &(ir_attr){ .index = index }, NULL);
}

/* -- changing what is there --------------------------------------------------------------------------------------------- */

/* What stands before new_node may be what it is computed from, and goes on reading old; so does new_node itself. */
void ir_redirect(ir_graph *graph, ir_node *old, ir_node *new_node)
{
    ir_node *first = old->next;
    if (old == new_node)
        return;
    for (ir_node *n = old->next; n; n = n->next)
        if (n == new_node)
            first = n->next;
    for (ir_node *n = first; n; n = n->next)
        for (int i = 0; i < n->n_args; i++)
            if (n->args[i] == old)
                n->args[i] = new_node;
    for (int i = 0; i < graph->n_results; i++)
        if (graph->results[i] == old)
            graph->results[i] = new_node;
}

void ir_remove(ir_graph *graph, ir_node *node)
{
    *(node->prev ? &node->prev->next : &graph->first) = node->next;
    *(node->next ? &node->next->prev : &graph->last) = node->prev;
    if (graph->before == node)
        graph->before = node->next;
    graph->n_nodes--;
    graph->n_with_body -= node->attr.body != NULL;
    node->prev = node->next = NULL;
    node->mark = -1;                       /* so that the verifier knows it from a node of the list */
    node->note = NULL;
}

ir_node *ir_clone_node(ir_graph *graph, const ir_node *node, ir_node *const *args)
{
    ir_place place = graph->place;
    graph->place = node->place;
    ir_node *copy = ir_add(graph, node->op, node->n_args, args, &node->attr,
                           ir_op_table[node->op].attributes & RESULT_TYPE ? &node->type : NULL);
    graph->place = place;
    return copy;
}

void ir_inline(ir_graph *graph, const ir_graph *body, ir_node *const *args, ir_node **results)
{
    ir_node **operands = NULL;
    int room = 0;
    for (ir_node *n = body->first; n; n = n->next) {
        if (n->op == OP_parameter) {
            n->note = args[n->attr.index];
            continue;
        }
        if (n->n_args > room) {
            base_free(operands);
            operands = base_alloc(sizeof *operands * (size_t)n->n_args);
            room = n->n_args;
        }
        for (int i = 0; i < n->n_args; i++)
            operands[i] = n->args[i]->note;
        n->note = ir_clone_node(graph, n, operands);
    }
    for (int i = 0; i < body->n_results; i++)
        results[i] = body->results[i]->note;
    base_free(operands);
}

/* -- cloning ----------------------------------------------------------------------------------------------------------- */

/* Texts of the copy. Most nodes have the same few: a file, a pass, names of dims. Those seen last are found by their address. */
enum { RECENT_TEXTS = 64 };
typedef struct { base_arena *arena; struct { const char *of, *copy; } recent[RECENT_TEXTS]; } cloner;

static const char *copy_text(cloner *c, const char *text)
{
    if (!text)
        return NULL;
    size_t at = ((uintptr_t)text >> 2 ^ (uintptr_t)text >> 9) % RECENT_TEXTS;
    if (c->recent[at].of != text) {
        c->recent[at].of = text;
        c->recent[at].copy = base_arena_text(c->arena, "%s", text);
    }
    return c->recent[at].copy;
}

static void copy_names(cloner *c, ir_type *type)
{
    for (int i = 0; i < type->rank; i++)
        type->dim_name[i] = copy_text(c, type->dim_name[i]);
}

static ir_graph *clone_into(cloner *c, bool owns_arena, const ir_graph *graph);

static ir_node *clone_whole_node(cloner *c, ir_graph *copy, const ir_node *node)
{
    base_arena *arena = copy->arena;
    ir_node *twin = ARENA_NEW(arena, ir_node, 1);
    *twin = *node;
    twin->args = ARENA_NEW(arena, ir_node *, node->n_args);
    for (int i = 0; i < node->n_args; i++)
        twin->args[i] = node->args[i]->note;
    copy_names(c, &twin->type);
    twin->tuple = ARENA_NEW(arena, ir_type, node->n_tuple);
    for (int i = 0; i < node->n_tuple; i++) {
        twin->tuple[i] = node->tuple[i];
        copy_names(c, &twin->tuple[i]);
    }
    twin->attr.name = copy_text(c, node->attr.name);
    twin->place.file = copy_text(c, node->place.file);
    twin->born = copy_text(c, node->born);
    if (node->attr.data) {
        size_t bytes = (size_t)ir_type_bytes(&node->type);
        void *data = base_arena_alloc(arena, bytes);
        memcpy(data, node->attr.data, bytes);
        twin->attr.data = data;
    }
    if (node->attr.body)
        twin->attr.body = clone_into(c, false, node->attr.body);
    link_before(copy, twin, NULL);
    return twin;
}

static ir_graph *clone_into(cloner *c, bool owns_arena, const ir_graph *graph)
{
    ir_graph *copy = new_graph(c->arena, owns_arena, graph->name);
    copy->next_id = graph->next_id;
    copy->next_site = graph->next_site;
    copy->place = (ir_place){ copy_text(c, graph->place.file), graph->place.line };
    copy->pass = copy_text(c, graph->pass);
    for (ir_node *n = graph->first; n; n = n->next) {
        ir_node *twin = clone_whole_node(c, copy, n);
        n->note = twin;
        if (n->op == OP_parameter)
            push_parameter(copy, twin);
    }
    ir_node **results = base_alloc(sizeof *results * (size_t)graph->n_results);
    for (int i = 0; i < graph->n_results; i++)
        results[i] = graph->results[i]->note;
    ir_set_results(copy, graph->n_results, results, graph->result_names);
    for (int i = 0; i < graph->n_results; i++)
        copy->donated[i] = graph->donated[i];
    base_free(results);
    return copy;
}

ir_graph *ir_graph_clone(const ir_graph *graph)
{
    cloner c = { .arena = base_arena_new() };
    return clone_into(&c, true, graph);
}

/* -- answers ----------------------------------------------------------------------------------------------------------- */

void ir_renumber(ir_graph *graph)
{
    int id = 0;
    for (ir_node *n = graph->first; n; n = n->next) {
        n->id = id++;
        if (n->attr.body)
            ir_renumber(n->attr.body);
    }
    graph->next_id = id;
}

int ir_count_nodes(const ir_graph *graph)
{
    int count = graph->n_nodes;
    for (const ir_node *n = graph->n_with_body ? graph->first : NULL; n; n = n->next)
        count += n->attr.body ? ir_count_nodes(n->attr.body) : 0;
    return count;
}
