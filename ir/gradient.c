/* Reverse-mode differentiation as a graph transformation: gradients are nodes like any others, so that every pass sees them and they
 * can be differentiated again.
 *
 * A first walk, forwards, marks what depends on wrt: the active nodes. A second, backwards from the outputs, visits each active node
 * once, when its cotangent is complete, and asks the op's rule (vjp_rules.c) for the cotangents of its operands; what arrives at one value from
 * several users is added. Zero is NULL until someone outside needs it, so nothing is computed for results that nobody used.
 *
 *     %2: f32[8] = tanh %0                          wrt %0
 *     %3: f32[] = reduce_sum %2 {axes=[0]}          loss
 *     %4: f32[] = constant {value=1}                dy of %3
 *     %5: f32[8] = broadcast %4 {axes=[]}           dy of %2
 *     ...                                           %5 * (1 - %2 * %2) is dx
 *
 * Mixed precision. The cotangent of a bf16 value has to be bf16, or the graph would not type; but a weight's gradient is not to lose
 * its f32 digits because the weight was cast on its way into a matmul. So rules may answer in f32 (vjp_matmul does), a cotangent is
 * then `cast` of that answer to bf16, and whoever receives such a cast may look through it: sums of cotangents, ops that only
 * move or add values, and cast itself, whose own rule gives the f32 on. The rounding casts that nobody reads any more are dead. */
#include "ir/gradient.h"

/* -- cotangents --------------------------------------------------------------------------------------------------------- */

typedef struct {
    ir_graph *graph;
    int n_ids;                     /* nodes made later are the gradient's own */
    bool *active;                  /* by id */
    int *slot;                     /* by id: the first of its cotangents, one a result */
    ir_node **cotangent;           /* by slot; NULL: zero */
} backward;

ir_node *ir_zeros(ir_graph *graph, ir_type type) { return ir_constant(graph, type, 0); }

ir_node *ir_wide_cotangent(ir_graph *graph, ir_node *dy)
{
    if (dy->type.dtype != IR_BF16)
        return dy;
    if (dy->op == OP_cast && dy->args[0]->type.dtype == IR_F32)
        return dy->args[0];
    return ir_cast(graph, dy, IR_F32);
}

static const ir_type *type_of_result(const ir_node *node, int result)
{
    return node->type.dtype == IR_TUPLE ? &node->tuple[result] : &node->type;
}

static void add_cotangent(backward *b, const ir_node *node, int result, ir_node *dy)
{
    const ir_type *type = type_of_result(node, result);
    ir_node **sum = &b->cotangent[b->slot[node->id] + result];
    CHECK(ir_shape_equal(&dy->type, type), "%%%d %s: expected a cotangent of its shape", node->id, OP_NAME(node->op));
    if (*sum) {
        ir_node *wide = ir_wide_cotangent(b->graph, dy);
        dy = ir_binary(b->graph, OP_add, ir_wide_cotangent(b->graph, *sum), wide);
    }
    *sum = ir_cast(b->graph, dy, type->dtype);
}

/* -- the forward walk --------------------------------------------------------------------------------------------------- */

static bool has_cotangent(const ir_node *node)
{
    return node->type.dtype == IR_TUPLE || ir_dtype_is_float(node->type.dtype);
}

/* Of custom_gradient the first operand is y, through which nothing flows. */
static bool flows_through(const ir_node *node, int arg) { return node->op != OP_custom_gradient || arg > 0; }

static void mark_active(backward *b, int first_id, const ir_node *last, int n, ir_node *const *wrt)
{
    for (int i = 0; i < n; i++)
        b->active[wrt[i]->id] = has_cotangent(wrt[i]);
    for (const ir_node *node = last ? b->graph->first : NULL; node; node = node == last ? NULL : node->next) {
        if (node->id < first_id || !ir_op_table[node->op].vjp || !has_cotangent(node))
            continue;
        for (int i = 0; i < node->n_args; i++)
            if (flows_through(node, i) && b->active[node->args[i]->id])
                b->active[node->id] = true;
    }
}

static int number_cotangents(backward *b, const ir_node *last)
{
    int n = 0;
    for (const ir_node *node = last ? b->graph->first : NULL; node; node = node == last ? NULL : node->next) {
        b->slot[node->id] = n;
        n += MAX(1, node->n_tuple);
    }
    return n;
}

/* -- the backward walk -------------------------------------------------------------------------------------------------- */

/* Ops that are linear and whose rules only move and add up what arrives: they work on f32 where the values are bf16. */
static bool only_moves(const ir_node *node)
{
    ir_class class = ir_op_table[node->op].class;
    return class == IR_MOVEMENT || class == IR_INDEXING || node->op == OP_reduce_sum || node->op == OP_add || node->op == OP_sub ||
           node->op == OP_neg;
}

static void visit(backward *b, ir_node *node)
{
    ir_node **dys = &b->cotangent[b->slot[node->id]];
    bool is_tuple = node->type.dtype == IR_TUPLE, arrived = false;
    for (int i = 0; i < MAX(1, node->n_tuple); i++)
        arrived |= dys[i] != NULL;
    if (!arrived)
        return;
    bool *wanted = base_alloc(sizeof *wanted * (size_t)node->n_args);
    ir_node **dx = base_alloc(sizeof *dx * (size_t)node->n_args);
    for (int i = 0; i < node->n_args; i++)
        wanted[i] = flows_through(node, i) && b->active[node->args[i]->id];

    ir_vjp context = { .graph = b->graph, .node = node, .dy = is_tuple ? NULL : dys[0], .dys = is_tuple ? dys : NULL,
                       .dx = dx, .wanted = wanted };
    if (only_moves(node))
        context.dy = ir_wide_cotangent(b->graph, context.dy);
    b->graph->place = node->place;
    ir_op_table[node->op].vjp(&context);
    for (int i = 0; i < node->n_args; i++)
        if (dx[i] && wanted[i])
            add_cotangent(b, node->args[i], node->op == OP_result ? node->attr.index : 0, dx[i]);
    base_free(wanted);
    base_free(dx);
}

void ir_vjp_since(ir_graph *graph, int first_id, int n_outputs, ir_node *const *outputs, ir_node *const *cotangents,
                  int n, ir_node *const *wrt, ir_node **into)
{
    backward b = { .graph = graph, .n_ids = graph->next_id };
    ir_node *last = graph->before ? graph->before->prev : graph->last;
    ir_place place = graph->place;
    const char *pass = graph->pass;
    graph->pass = "gradient";

    b.active = base_alloc(sizeof *b.active * (size_t)b.n_ids);
    b.slot = base_alloc(sizeof *b.slot * (size_t)b.n_ids);
    mark_active(&b, first_id, last, n, wrt);
    b.cotangent = base_alloc(sizeof *b.cotangent * (size_t)number_cotangents(&b, last));
    for (int i = 0; i < n_outputs; i++)
        if (cotangents[i] && b.active[outputs[i]->id])
            add_cotangent(&b, outputs[i], 0, cotangents[i]);
    for (ir_node *node = last; node; node = node->prev)
        if (node->id >= first_id && b.active[node->id] && ir_op_table[node->op].vjp)
            visit(&b, node);
    for (int i = 0; i < n; i++)
        into[i] = b.active[wrt[i]->id] ? b.cotangent[b.slot[wrt[i]->id]] : NULL;

    base_free(b.active);
    base_free(b.slot);
    base_free(b.cotangent);
    graph->place = place;
    graph->pass = pass;
}

void ir_gradient(ir_graph *graph, ir_node *loss, int n, ir_node *const *wrt, ir_node **into)
{
    CHECK(loss->type.rank == 0 && ir_dtype_is_float(loss->type.dtype), "ir_gradient: expected a float scalar as loss, got %s of rank %d",
          ir_dtype_name(loss->type.dtype), loss->type.rank);
    ir_node *one = ir_constant_like(graph, loss, 1);
    ir_vjp_since(graph, 0, 1, &loss, &one, n, wrt, into);
    for (int i = 0; i < n; i++)
        if (!into[i])
            into[i] = ir_zeros(graph, wrt[i]->type);
}
