/* The gradient of scan is a scan in the other direction. The forward scan is made to stack its carries as they are at the start of each
 * iteration; the backward scan walks these, the xs and the cotangents of the ys from the far end, recomputes the body from them, and
 * differentiates the recomputed body. What a constant receives in each iteration adds up in a carry.
 *
 *     forward    (c, x, w) -> (c', y)                                       and c, stacked
 *     backward   (dc', dw; c, x, dy; w) -> (dc, dw + ...; dx)               carries; xs; constants -> carries; ys
 *
 * The result is a scan again, so second derivatives need nothing more. Cotangents of bf16 are carried in f32. */
#include "ir/gradient.h"

/* Parameters of the backward body, in this order; each list may be empty. */
typedef struct {
    int n_carry, n_xs, n_constants, n_ys;          /* of the forward scan */
    int n_dc, *dc;                                 /* which carries have a cotangent */
    int n_dw, *dw;                                 /* which constants want one */
    int n_dx, *dx;                                 /* which xs want one */
    int n_dy, *dy;                                 /* which ys have one */
} backward_shape;

static ir_type wide_type(ir_type type) { return type.dtype == IR_BF16 ? ir_type_with_dtype(type, IR_F32) : type; }

static backward_shape shape_of(const ir_vjp *c)
{
    const ir_node *node = c->node;
    const ir_attr *attr = &node->attr;
    backward_shape s = { .n_carry = attr->n_carry, .n_xs = attr->n_xs, .n_constants = node->n_args - attr->n_carry - attr->n_xs,
                         .n_ys = node->n_tuple - attr->n_carry };
    s.dc = base_alloc(sizeof(int) * (size_t)s.n_carry);
    s.dw = base_alloc(sizeof(int) * (size_t)s.n_constants);
    s.dx = base_alloc(sizeof(int) * (size_t)s.n_xs);
    s.dy = base_alloc(sizeof(int) * (size_t)s.n_ys);
    for (int i = 0; i < s.n_carry; i++)
        if (ir_dtype_is_float(node->args[i]->type.dtype))
            s.dc[s.n_dc++] = i;
    for (int i = 0; i < s.n_constants; i++)
        if (c->wanted[s.n_carry + s.n_xs + i])
            s.dw[s.n_dw++] = i;
    for (int i = 0; i < s.n_xs; i++)
        if (c->wanted[s.n_carry + i])
            s.dx[s.n_dx++] = i;
    for (int i = 0; i < s.n_ys; i++)
        if (c->dys[s.n_carry + i])
            s.dy[s.n_dy++] = i;
    return s;
}

/* -- the backward body -------------------------------------------------------------------------------------------------- */

/* Its results: a cotangent for each of dc, the sums for dw, a cotangent for each of dx. Parameters: dc, dw; carries, xs, dy; constants. */
static ir_graph *backward_body(const ir_vjp *c, const backward_shape *s)
{
    const ir_graph *forward = c->node->attr.body;
    ir_graph *body = ir_graph_new_body(c->graph, base_arena_text(c->graph->arena, "%s_vjp", forward->name));
    int n_operands = c->node->n_args, n_results = s->n_dc + s->n_dw + s->n_dx;
    ir_node **dc = base_alloc(sizeof *dc * (size_t)s->n_dc), **dw = base_alloc(sizeof *dw * (size_t)s->n_dw),
            **dy = base_alloc(sizeof *dy * (size_t)s->n_dy), **operand = base_alloc(sizeof *operand * (size_t)n_operands),
            **outputs = base_alloc(sizeof *outputs * (size_t)forward->n_results),
            **cotangents = base_alloc(sizeof *cotangents * (size_t)forward->n_results),
            **wrt = base_alloc(sizeof *wrt * (size_t)n_results), **into = base_alloc(sizeof *into * (size_t)n_results);

    for (int i = 0; i < s->n_dc; i++)
        dc[i] = ir_parameter(body, wide_type(forward->params[s->dc[i]]->type), NULL);
    for (int i = 0; i < s->n_dw; i++)
        dw[i] = ir_parameter(body, wide_type(forward->params[s->n_carry + s->n_xs + s->dw[i]]->type), NULL);
    for (int i = 0; i < s->n_carry + s->n_xs; i++)
        operand[i] = ir_parameter(body, forward->params[i]->type, forward->params[i]->attr.name);
    for (int i = 0; i < s->n_dy; i++)
        dy[i] = ir_parameter(body, wide_type(forward->results[s->n_carry + s->dy[i]]->type), NULL);
    for (int i = s->n_carry + s->n_xs; i < n_operands; i++)
        operand[i] = ir_parameter(body, forward->params[i]->type, forward->params[i]->attr.name);

    ir_inline(body, forward, operand, outputs);
    for (int i = 0; i < s->n_dc; i++)
        cotangents[s->dc[i]] = ir_cast(body, dc[i], outputs[s->dc[i]]->type.dtype);
    for (int i = 0; i < s->n_dy; i++)
        cotangents[s->n_carry + s->dy[i]] = ir_cast(body, dy[i], outputs[s->n_carry + s->dy[i]]->type.dtype);
    int n = 0;
    for (int i = 0; i < s->n_dc; i++)
        wrt[n++] = operand[s->dc[i]];
    for (int i = 0; i < s->n_dw; i++)
        wrt[n++] = operand[s->n_carry + s->n_xs + s->dw[i]];
    for (int i = 0; i < s->n_dx; i++)
        wrt[n++] = operand[s->n_carry + s->dx[i]];
    ir_vjp_since(body, 0, forward->n_results, outputs, cotangents, n, wrt, into);
    for (int i = 0; i < n; i++) {
        bool is_dw = i >= s->n_dc && i < s->n_dc + s->n_dw;
        ir_node *arrived = into[i] ? ir_wide_cotangent(body, into[i]) : ir_zeros(body, wide_type(wrt[i]->type));
        into[i] = is_dw ? ir_binary(body, OP_add, dw[i - s->n_dc], arrived) : arrived;
    }
    ir_set_results(body, n, into, NULL);
    base_free(dc), base_free(dw), base_free(dy), base_free(operand);
    base_free(outputs), base_free(cotangents), base_free(wrt), base_free(into);
    return body;
}

/* Which parameters a result depends on. */
static bool *live_parameters(const ir_graph *body)
{
    bool *live = base_alloc(sizeof *live * (size_t)body->next_id), *is_read = base_alloc(sizeof *is_read * (size_t)body->n_params);
    for (int i = 0; i < body->n_results; i++)
        live[body->results[i]->id] = true;
    for (const ir_node *n = body->last; n; n = n->prev)
        for (int i = 0; live[n->id] && i < n->n_args; i++)
            live[n->args[i]->id] = true;
    for (int i = 0; i < body->n_params; i++)
        is_read[i] = live[body->params[i]->id];
    base_free(live);
    return is_read;
}

/* The body without the parameters that are not kept, which no result depends on. */
static ir_graph *without_parameters(ir_graph *graph, const ir_graph *body, const bool *keep)
{
    ir_graph *rest = ir_graph_new_body(graph, body->name);
    ir_node **args = base_alloc(sizeof *args * (size_t)body->n_params), **results = base_alloc(sizeof *results * (size_t)body->n_results);
    for (int i = 0; i < body->n_params; i++)
        if (keep[i])
            args[i] = ir_parameter(rest, body->params[i]->type, body->params[i]->attr.name);
    for (int i = 0; i < body->n_params; i++)
        if (!keep[i])
            args[i] = ir_zeros(rest, body->params[i]->type);          /* for nodes that are dead */
    ir_inline(rest, body, args, results);
    ir_set_results(rest, body->n_results, results, NULL);
    base_free(args);
    base_free(results);
    return rest;
}

/* -- the forward scan's stacks ------------------------------------------------------------------------------------------ */

/* The result of the scan that is carry i at the start of each iteration, or -1. */
static int stack_of_carry(const ir_node *scan, int i)
{
    const ir_graph *body = scan->attr.body;
    for (int j = scan->attr.n_carry; j < body->n_results; j++)
        if (body->results[j] == body->params[i])
            return j;
    return -1;
}

/* Makes the scan stack the carries that are needed. It stays the same node, for others hold on to it and to its results: they keep their
 * numbers, and the stacks come after them. The body is a new one: the old may be shared. */
static void stack_carries(ir_graph *graph, ir_node *scan, const bool *needed)
{
    const ir_graph *old = scan->attr.body;
    int n_carry = scan->attr.n_carry, n = old->n_results;
    ir_graph *body = ir_graph_new_body(graph, old->name);
    ir_node **params = base_alloc(sizeof *params * (size_t)old->n_params),
            **results = base_alloc(sizeof *results * (size_t)(old->n_results + n_carry));
    for (int i = 0; i < old->n_params; i++)
        params[i] = ir_parameter(body, old->params[i]->type, old->params[i]->attr.name);
    ir_inline(body, old, params, results);
    for (int i = 0; i < n_carry; i++)
        if (needed[i] && stack_of_carry(scan, i) < 0)
            results[n++] = params[i];
    ir_set_results(body, n, results, NULL);
    for (int i = 0; i < old->n_results; i++)
        body->result_names[i] = old->result_names[i];
    scan->attr.body = body;
    base_text why = {0};
    CHECK(ir_infer(graph, OP_scan, scan->n_args, scan->args, &scan->attr, NULL, &scan->type, &scan->n_tuple, &scan->tuple, &why),
          "%%%d scan: expected its carries to stack: %s", scan->id, why.at);
    base_text_free(&why);
    base_free(params);
    base_free(results);
}

/* -- the rule ----------------------------------------------------------------------------------------------------------- */

/* A cotangent for the backward scan, wide, of this type; zeros where none has arrived. */
static ir_node *arrived(ir_vjp *c, int result)
{
    return c->dys[result] ? ir_wide_cotangent(c->graph, c->dys[result]) : ir_zeros(c->graph, wide_type(c->node->tuple[result]));
}

void vjp_scan(ir_vjp *c)
{
    ir_graph *graph = c->graph;
    ir_node *node = c->node;
    backward_shape s = shape_of(c);
    ir_graph *body = backward_body(c, &s);
    int n_sums = s.n_dc + s.n_dw, n_slices = s.n_carry + s.n_xs + s.n_dy;
    bool *keep = live_parameters(body);
    for (int i = 0; i < n_sums; i++)
        keep[i] = true;
    stack_carries(graph, node, keep + n_sums);

    ir_node **operands = base_alloc(sizeof *operands * (size_t)body->n_params);
    int n = 0, n_xs = 0;
    for (int i = 0; i < body->n_params; i++) {
        if (!keep[i])
            continue;
        int slice = i - n_sums, constant = slice - n_slices;
        n_xs += slice >= 0 && constant < 0;
        if (i < s.n_dc)
            operands[n++] = arrived(c, s.dc[i]);
        else if (slice < 0)
            operands[n++] = ir_zeros(graph, wide_type(node->args[s.n_carry + s.n_xs + s.dw[i - s.n_dc]]->type));
        else if (slice < s.n_carry)
            operands[n++] = ir_result(graph, node, stack_of_carry(node, slice));
        else if (slice < s.n_carry + s.n_xs)
            operands[n++] = node->args[slice];
        else if (constant < 0)
            operands[n++] = arrived(c, s.n_carry + s.dy[slice - s.n_carry - s.n_xs]);
        else
            operands[n++] = node->args[s.n_carry + s.n_xs + constant];
    }
    ir_attr attr = { .body = without_parameters(graph, body, keep), .count = node->attr.count, .n_carry = n_sums, .n_xs = n_xs,
                     .reverse = !node->attr.reverse };
    if (attr.body->n_results > 0) {
        ir_node *scan = ir_add(graph, OP_scan, n, operands, &attr, NULL);
        for (int i = 0; i < s.n_dc; i++)
            c->dx[s.dc[i]] = ir_result(graph, scan, i);
        for (int i = 0; i < s.n_dw; i++)
            c->dx[s.n_carry + s.n_xs + s.dw[i]] = ir_result(graph, scan, s.n_dc + i);
        for (int i = 0; i < s.n_dx; i++)
            c->dx[s.n_carry + s.dx[i]] = ir_result(graph, scan, n_sums + i);
    }
    base_free(operands);
    base_free(keep);
    base_free(s.dc), base_free(s.dw), base_free(s.dx), base_free(s.dy);
}
