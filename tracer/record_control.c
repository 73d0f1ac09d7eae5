/* Scan, custom gradients, gradients: the ops that have bodies, and what looks through them. */
#include <string.h>

#include "tracer/tracer.h"

/* -- scopes ----------------------------------------------------------------------------------------------------------- */

/* From here on ops are recorded into a body of the graph being recorded, until the scope is closed. It is in the graph's arena: the
 * handles of a body remember their scope, and another one must never stand at the same address. */
static trace_scope *scope_open(const char *name)
{
    trace *t = trace_current;
    trace_scope *scope = ARENA_NEW(t->graph->arena, trace_scope, 1);
    scope->graph = ir_graph_new_body(t->scope->graph, name);
    scope->outer = t->scope;
    t->scope = scope;
    return scope;
}

static void scope_close(trace_scope *scope)
{
    trace *t = trace_current;
    CHECK(t->scope == scope, "scope_close: expected the innermost scope");
    t->scope = scope->outer;
}

static void forget_captured(trace_scope *scope)
{
    base_free(scope->captured);
    base_free(scope->inside);
    scope->captured = scope->inside = NULL;
    scope->n_captured = scope->cap = 0;
}

static void print_types(base_text *text, const ir_type *is, const ir_type *expected)
{
    ir_type_print(text, is);
    base_text_add(text, ", expected ");
    ir_type_print(text, expected);
}

/* -- scan ------------------------------------------------------------------------------------------------------------- */

typedef struct {
    rax_place place;
    int64_t count;
    int n_carry, n_xs, n_ys;
    ir_node **operands;                  /* carries, xs; NULL where one is wrong */
    ir_node **results;                   /* of the body: next carries, ys */
} scan;

static bool scan_operands(scan *s, const rax_tensor *carry, const rax_tensor *xs)
{
    bool whole = true;
    if (s->count < 0 || s->n_carry < 0 || s->n_xs < 0 || s->n_ys < 0 || s->n_carry + s->n_ys == 0)
        return trace_error(s->place, "scan",
                           "%lld iterations of %d carries, %d xs and %d ys: expected at least one carry or y",
                           (long long)s->count, s->n_carry, s->n_xs, s->n_ys);
    for (int i = 0; i < s->n_carry; i++)
        whole = (s->operands[i] = trace_operand(s->place, "scan", "a carry", carry[i])) && whole;
    for (int i = 0; i < s->n_xs; i++) {
        ir_node *x = s->operands[s->n_carry + i] = trace_operand(s->place, "scan", "an x", xs[i]);
        whole = x && whole;
        if (x && (x->type.rank < 1 || x->type.dim[0] != s->count)) {
            base_text type = {0};
            ir_type_print(&type, &x->type);
            trace_error(s->place, "scan", "x %d %s is to have %lld on axis 0, one slice an iteration", i, type.at,
                        (long long)s->count);
            base_text_free(&type);
            whole = false;
        }
    }
    return whole;
}

/* Calls the user's body inside the scope and checks what it has set. */
static bool scan_body(scan *s, rax_scan_body *body, void *context)
{
    ir_graph *graph = trace_current->scope->graph;
    int n_in = s->n_carry + s->n_xs, n_out = s->n_carry + s->n_ys;
    rax_tensor *in = base_alloc(sizeof *in * (size_t)n_in), *out = base_alloc(sizeof *out * (size_t)n_out);
    bool whole = true;
    for (int i = 0; i < n_in; i++) {
        ir_type type = s->operands[i]->type;
        if (i >= s->n_carry) {
            type.rank--;
            memmove(type.dim, type.dim + 1, sizeof *type.dim * (size_t)type.rank);
            memmove(type.dim_name, type.dim_name + 1, sizeof *type.dim_name * (size_t)type.rank);
            type.dim_name[type.rank] = NULL;
        }
        in[i] = trace_value(ir_parameter(graph, type, NULL));
    }
    body(context, in, in + s->n_carry, out, out + s->n_carry);
    for (int i = 0; i < n_out; i++) {
        bool is_carry = i < s->n_carry;
        base_text name = {0}, types = {0};
        base_text_add(&name, "%s[%d], set by the body,", is_carry ? "next" : "y", is_carry ? i : i - s->n_carry);
        s->results[i] = trace_operand(s->place, "scan", name.at, out[i]);
        if (s->results[i] && is_carry && !ir_type_equal(&s->results[i]->type, &s->operands[i]->type)) {
            print_types(&types, &s->results[i]->type, &s->operands[i]->type);
            trace_error(s->place, "scan", "%s is %s as carry %d has at first", name.at, types.at, i);
            s->results[i] = NULL;
        }
        whole = s->results[i] && whole;
        base_text_free(&name);
        base_text_free(&types);
    }
    base_free(in);
    base_free(out);
    return whole;
}

/* The node of a scan whose body was recorded in scope. */
static ir_node *scan_node(scan *s, const trace_scope *scope)
{
    int n_own = s->n_carry + s->n_xs, n = n_own + scope->n_captured;
    ir_node **operands = base_alloc(sizeof *operands * (size_t)n);
    ir_attr attr = { .body = scope->graph, .count = s->count, .n_carry = s->n_carry, .n_xs = s->n_xs };
    memcpy(operands, s->operands, sizeof *operands * (size_t)n_own);
    for (int i = 0; i < scope->n_captured; i++)
        operands[n_own + i] = scope->captured[i];
    ir_set_results(scope->graph, s->n_carry + s->n_ys, s->results, NULL);
    ir_node *node = trace_add(s->place, "scan", OP_scan, n, operands, &attr, NULL);
    base_free(operands);
    return node;
}

void rax_scan_at(rax_place place, rax_scan_body *body, void *context, int64_t count, int n_carry, rax_tensor *carry,
                 int n_xs, const rax_tensor *xs, int n_ys, rax_tensor *ys)
{
    scan s = { .place = place, .count = count, .n_carry = n_carry, .n_xs = n_xs, .n_ys = n_ys };
    ir_node *node = NULL;
    s.operands = base_alloc(sizeof *s.operands * (size_t)(MAX(n_carry, 0) + MAX(n_xs, 0)));
    s.results = base_alloc(sizeof *s.results * (size_t)(MAX(n_carry, 0) + MAX(n_ys, 0)));
    if (trace_current && scan_operands(&s, carry, xs)) {
        trace_scope *scope = scope_open("scan");
        bool whole = scan_body(&s, body, context);
        scope_close(scope);
        if (whole)
            node = scan_node(&s, scope);
        forget_captured(scope);
    } else if (!trace_current) {
        trace_error(place, "scan", "ops are recorded inside a step that rax_call runs, and this is outside of any");
    }
    for (int i = 0; i < n_carry; i++)
        carry[i] = trace_value(node ? ir_result(trace_graph(place), node, i) : NULL);
    for (int i = 0; i < n_ys; i++)
        ys[i] = trace_value(node ? ir_result(trace_graph(place), node, n_carry + i) : NULL);
    base_free(s.operands);
    base_free(s.results);
}

/* -- custom gradients -------------------------------------------------------------------------------------------------- */

/* The op has no constants: what the user's vjp took from outside becomes further xs, whose cotangents are zero. Its
 * body's parameters are xs, y, dy in this order, so the recorded body is copied into one with the captured values in
 * their place. */
static ir_graph *body_with_captured(const trace_scope *scope, int n, ir_node *const *results)
{
    ir_graph *recorded = scope->graph, *body = ir_graph_new_body(recorded, "vjp");
    int k = scope->n_captured;
    ir_node **args = base_alloc(sizeof *args * (size_t)(n + 2 + k)), **into = base_alloc(sizeof *into * (size_t)(n + k));
    ir_set_results(recorded, n, results, NULL);
    for (int i = 0; i < n; i++)
        args[i] = ir_parameter(body, recorded->params[i]->type, NULL);
    for (int i = 0; i < k; i++)
        args[n + 2 + i] = ir_parameter(body, scope->captured[i]->type, NULL);
    for (int i = n; i < n + 2; i++)
        args[i] = ir_parameter(body, recorded->params[i]->type, NULL);
    ir_inline(body, recorded, args, into);
    for (int i = 0; i < k; i++)
        into[n + i] = ir_constant(body, scope->captured[i]->type, 0);
    ir_set_results(body, n + k, into, NULL);
    base_free(args);
    base_free(into);
    return body;
}

/* Records the user's vjp; results[i] is the cotangent of xs[i], or false and an error. */
static bool record_vjp(rax_place place, int n, ir_node *const *operands, rax_vjp *vjp, void *context, ir_node **results)
{
    ir_graph *graph = trace_current->scope->graph;
    rax_tensor *in = base_alloc(sizeof *in * (size_t)n), *out = base_alloc(sizeof *out * (size_t)n);
    bool whole = true;
    for (int i = 0; i < n; i++)
        in[i] = trace_value(ir_parameter(graph, operands[1 + i]->type, NULL));
    rax_tensor y = trace_value(ir_parameter(graph, operands[0]->type, NULL));
    rax_tensor dy = trace_value(ir_parameter(graph, operands[0]->type, NULL));
    vjp(context, in, y, dy, out);
    for (int i = 0; i < n; i++) {
        base_text name = {0}, types = {0};
        base_text_add(&name, "dxs[%d], set by vjp,", i);
        results[i] = trace_operand(place, "custom_gradient", name.at, out[i]);
        if (results[i] && !ir_type_equal(&results[i]->type, &operands[1 + i]->type)) {
            print_types(&types, &results[i]->type, &operands[1 + i]->type);
            trace_error(place, "custom_gradient", "%s is %s as x %d", name.at, types.at, i);
            results[i] = NULL;
        }
        whole = results[i] && whole;
        base_text_free(&name);
        base_text_free(&types);
    }
    base_free(in);
    base_free(out);
    return whole;
}

rax_tensor rax_custom_gradient_at(rax_place place, rax_tensor y, int n, const rax_tensor *xs, rax_vjp *vjp, void *context)
{
    const char *name = "custom_gradient";
    n = MAX(n, 0);
    ir_node **operands = base_alloc(sizeof *operands * (size_t)(n + 1)),
            **results = base_alloc(sizeof *results * (size_t)n), *node = NULL;
    bool whole = (operands[0] = trace_operand(place, name, "y", y)) != NULL;
    for (int i = 0; i < n; i++)
        whole = (operands[1 + i] = trace_operand(place, name, "an x", xs[i])) && whole;
    if (whole) {
        trace_scope *scope = scope_open("vjp");
        whole = record_vjp(place, n, operands, vjp, context, results);
        scope_close(scope);
        if (whole) {
            int k = scope->n_captured;
            ir_attr attr = { .body = body_with_captured(scope, n, results) };
            operands = base_realloc(operands, sizeof *operands * (size_t)(n + 1), sizeof *operands * (size_t)(n + 1 + k));
            for (int i = 0; i < k; i++)
                operands[n + 1 + i] = scope->captured[i];
            node = trace_add(place, name, OP_custom_gradient, n + 1 + k, operands, &attr, NULL);
        }
        forget_captured(scope);
    }
    base_free(operands);
    base_free(results);
    return trace_value(node);
}

/* -- gradients -------------------------------------------------------------------------------------------------------- */

/* Inside a body, with respect to a tensor of the step around it. The body sees outer values as parameters, so a value
 * that was computed outside from that tensor (weights cast once, before the loop over micro-batches) would hide the
 * way to it. What lies between the two is computed again inside, and the body's parameter for it is redirected there. */
typedef struct {
    trace_scope *scope;
    bool *active;                        /* by id in the outer graph: depends on wrt */
    bool *is_wrt;
    ir_node **again;                     /* by id in the outer graph: its copy inside */
} inward;

static ir_node *compute_again(inward *in, ir_node *node)
{
    if (!in->active[node->id] || in->is_wrt[node->id])
        return trace_lift(in->scope, in->scope->outer, node);
    if (!in->again[node->id]) {
        ir_node **args = base_alloc(sizeof *args * (size_t)node->n_args);
        for (int i = 0; i < node->n_args; i++)
            args[i] = compute_again(in, node->args[i]);
        in->again[node->id] = ir_clone_node(in->scope->graph, node, args);
        base_free(args);
    }
    return in->again[node->id];
}

static ir_node *first_after_parameters(const ir_graph *graph)
{
    ir_node *node = graph->first;
    while (node && node->op == OP_parameter)
        node = node->next;
    return node;
}

/* Handles, and the body inside scope that is being recorded, know the node too. */
static void redirect_outside_graph(const trace_scope *scope, const ir_node *seen, ir_node *instead)
{
    for (rax_tensor_body *body = trace_current->values; body; body = body->next)
        if (body->scope == scope && body->node == seen)
            body->node = instead;
    for (trace_scope *inner = trace_current->scope; inner; inner = inner->outer)
        for (int i = 0; inner->outer == scope && i < inner->n_captured; i++)
            if (inner->captured[i] == seen)
                inner->captured[i] = instead;
}

/* wrt: nodes of scope->outer's graph. */
static void open_way(trace_scope *scope, int n, ir_node *const *wrt)
{
    ir_graph *outer = scope->outer->graph, *graph = scope->graph;
    size_t ids = (size_t)outer->next_id;
    int n_captured = scope->n_captured;
    inward in = { scope, base_alloc(ids), base_alloc(ids), base_alloc(sizeof *in.again * ids) };
    for (int i = 0; i < n; i++)
        in.active[wrt[i]->id] = in.is_wrt[wrt[i]->id] = true;
    for (ir_node *node = outer->first; node; node = node->next)
        for (int i = 0; i < node->n_args; i++)
            in.active[node->id] |= in.active[node->args[i]->id];
    ir_node *before = graph->before;
    graph->before = first_after_parameters(graph);
    for (int i = 0; i < n_captured; i++) {
        ir_node *node = scope->captured[i], *seen = scope->inside[i];
        if (!in.active[node->id] || in.is_wrt[node->id] || seen->op != OP_parameter)
            continue;
        scope->inside[i] = compute_again(&in, node);
        ir_redirect(graph, seen, scope->inside[i]);
        redirect_outside_graph(scope, seen, scope->inside[i]);
    }
    graph->before = before;
    base_free(in.active);
    base_free(in.is_wrt);
    base_free(in.again);
}

/* Opens the way for every scope from the outermost that has one of the tensors down to the one being recorded. */
static void open_ways(trace_scope *scope, int n, rax_tensor_body *const *xs)
{
    if (!scope->outer)
        return;
    open_ways(scope->outer, n, xs);
    ir_node **wrt = base_alloc(sizeof *wrt * (size_t)n);
    int n_wrt = 0;
    for (int i = 0; i < n; i++) {
        const trace_scope *at = scope->outer;
        while (at && at != xs[i]->scope)
            at = at->outer;
        if (at)
            wrt[n_wrt++] = trace_lift(scope->outer, xs[i]->scope, xs[i]->node);
    }
    if (n_wrt)
        open_way(scope, n_wrt, wrt);
    base_free(wrt);
}

/* loss and xs were seen to be sound. */
static void gradients(rax_place place, rax_tensor loss, int n, const rax_tensor *xs, rax_tensor *dxs)
{
    trace *t = trace_current;
    double start = base_now_ms();
    rax_tensor_body **bodies = base_alloc(sizeof *bodies * (size_t)n);
    ir_node **wrt = base_alloc(sizeof *wrt * (size_t)n), **into = base_alloc(sizeof *into * (size_t)n);
    for (int i = 0; i < n; i++)
        bodies[i] = xs[i].at;
    open_ways(t->scope, n, bodies);
    for (int i = 0; i < n; i++)
        wrt[i] = trace_operand(place, "grad", "x", xs[i]);
    ir_node *at = trace_operand(place, "grad", "loss", loss);
    ir_gradient(trace_graph(place), at, n, wrt, into);
    for (int i = 0; i < n; i++)
        dxs[i] = trace_value(into[i]);
    base_free(bodies);
    base_free(wrt);
    base_free(into);
    t->gradient_ms += base_now_ms() - start;
}

static bool is_scalar_float(rax_place place, const ir_node *loss)
{
    if (loss->type.rank == 0 && ir_dtype_is_float(loss->type.dtype))
        return true;
    base_text type = {0};
    ir_type_print(&type, &loss->type);
    trace_error(place, "grad", "loss %s is not a float scalar%s", type.at,
                loss->type.rank > 0 ? "\nrax_mean(loss, RAX_ALL_AXES) or rax_sum would fit" : "");
    base_text_free(&type);
    return false;
}

/* names: of the xs, or NULL. */
static void checked_gradients(rax_place place, rax_tensor loss, int n, const rax_tensor *xs, const char *const *names,
                              rax_tensor *dxs)
{
    ir_node *at = trace_operand(place, "grad", "loss", loss);
    bool whole = at && is_scalar_float(place, at);
    for (int i = 0; i < n && trace_current; i++) {
        ir_node *x = trace_operand(place, "grad", names ? names[i] : "x", xs[i]);
        if (x && !ir_dtype_is_float(x->type.dtype)) {
            base_text type = {0};
            ir_type_print(&type, &x->type);
            trace_error(place, "grad", "%s %s is not of floats, and has no gradient", names ? names[i] : "x", type.at);
            base_text_free(&type);
            x = NULL;
        }
        whole = x && whole;
    }
    if (whole)
        gradients(place, loss, n, xs, dxs);
    else
        for (int i = 0; i < n; i++)
            dxs[i] = trace_value(NULL);
}

void rax_grad_of_at(rax_place place, rax_tensor loss, int n, const rax_tensor *xs, rax_tensor *dxs)
{
    checked_gradients(place, loss, n, xs, NULL, dxs);
}

rax_tree rax_grad_at(rax_place place, rax_tensor loss, rax_tree tree)
{
    base_text why = {0};
    rax_tree_body *body = trace_tree(tree, &why);
    bool whole = body && body->is_value && trace_current;
    if (!whole)
        trace_error(place, "grad", "the tree %s",
                    body ? "is of arrays of the caller\nPass it as an argument: rax_arg_tree" : why.at);
    base_text_free(&why);
    if (!trace_current)
        return RAX_NO_TREE;
    int n = body ? body->n : 0;
    rax_tensor *xs = base_alloc(sizeof *xs * (size_t)n), *dxs = base_alloc(sizeof *dxs * (size_t)n);
    for (int i = 0; i < n; i++)
        xs[i] = dxs[i] = whole ? rax_leaf(tree, i) : trace_value(NULL);
    if (whole)
        checked_gradients(place, loss, n, xs, body->names, dxs);
    rax_tree_body *result = trace_tree_new(trace_current);
    for (int i = 0; i < n; i++)
        trace_tree_append(result, body->names[i], dxs[i].at);
    base_free(xs);
    base_free(dxs);
    return trace_tree_handle(result);
}
