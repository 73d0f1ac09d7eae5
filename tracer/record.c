/* A trace: what a step does, as a graph. Each public op checks its operands, adds nodes to the graph being recorded,
 * and returns a handle of the last one. The ops themselves are in record_*.c.
 *
 * Scopes. The body of a scan is recorded into a graph of its own while the step goes on calling ops. A value of an
 * outer graph that is used inside becomes a parameter of the body (trace_lift), once, level by level; the op that has
 * the body takes the outer node as an operand. Constants are copied in instead: inside they can be folded.
 *
 * Errors. The first one is kept, with the user's place; its op returns a poisoned handle (no node), and whatever is
 * computed from that is poisoned in silence. */
#include <string.h>

#include "tracer/tracer.h"

_Thread_local trace *trace_current;

/* -- errors ----------------------------------------------------------------------------------------------------------- */

/* Lines after the first begin below the text, not below the place. */
static void indent_lines(base_text *text, size_t from, size_t width)
{
    base_text whole = {0};
    for (size_t i = 0; i < text->len; i++) {
        base_text_bytes(&whole, text->at + i, 1);
        if (i >= from && text->at[i] == '\n')
            base_text_add(&whole, "%*s", (int)width, "");
    }
    base_text_free(text);
    *text = whole;
}

bool trace_error(rax_place place, const char *op, const char *format, ...)
{
    trace *t = trace_current;
    base_text text = {0};
    va_list args;
    if (t && t->error)
        return false;
    if (place.file)
        base_text_add(&text, "%s:%d: ", place.file, place.line);
    else if (t)
        base_text_add(&text, "%s: ", t->fn->name);
    size_t width = text.len;
    base_text_add(&text, "%s: ", op);
    va_start(args, format);
    base_text_addv(&text, format, args);
    va_end(args);
    indent_lines(&text, width, width);
    if (t) {
        t->error = base_text_take(&text);
        t->error_kind = RAX_MISTAKE;
    } else {
        base_fail_lines(BASE_MISTAKE, "%s", text.at);
        base_text_free(&text);
    }
    return false;
}

/* -- beginning and end -------------------------------------------------------------------------------------------------- */

void trace_begin(trace *t, rax_fn *fn, const rax_value *args)
{
    CHECK(!trace_current, "trace_begin: expected no trace in progress");
    *t = (trace){ .fn = fn, .args = args, .graph = ir_graph_new(fn->name) };
    t->root.graph = t->graph;
    t->scope = &t->root;
    trace_current = t;
}

void trace_end(trace *t)
{
    for (rax_tensor_body *body = t->values, *next; body; body = next) {
        next = body->next;
        trace_body_lose(body, LOST_TRACE_OVER, (rax_place){0});
        trace_body_free(body);
    }
    for (rax_tree_body *tree = t->trees, *next; tree; tree = next) {
        next = tree->next;
        trace_tree_body_free(tree);
    }
    t->values = NULL;
    t->trees = NULL;
    base_free(t->root.captured);
    base_free(t->root.inside);
    trace_current = NULL;
}

/* -- handles and nodes -------------------------------------------------------------------------------------------------- */

rax_tensor trace_value(ir_node *node)
{
    trace *t = trace_current;
    if (!t)
        return RAX_NO_TENSOR;
    rax_tensor_body *body = trace_body_new(TENSOR_VALUE);
    body->owner = t;
    body->scope = t->scope;
    body->node = node;
    body->type = node ? &node->type : NULL;
    body->next = t->values;
    t->values = body;
    return trace_handle(body);
}

ir_graph *trace_graph(rax_place place)
{
    ir_graph *graph = trace_current->scope->graph;
    graph->place = (ir_place){ place.file, place.line };
    return graph;
}

ir_node *trace_lift(trace_scope *scope, trace_scope *from, ir_node *node)
{
    if (scope == from)
        return node;
    ir_node *outer = trace_lift(scope->outer, from, node);
    if (outer->op == OP_constant)
        return ir_clone_node(scope->graph, outer, NULL);
    for (int i = 0; i < scope->n_captured; i++)
        if (scope->captured[i] == outer)
            return scope->inside[i];
    if (scope->n_captured == scope->cap) {
        size_t n = (size_t)scope->cap, more = n ? 2 * n : 16;
        scope->captured = base_realloc(scope->captured, sizeof *scope->captured * n, sizeof *scope->captured * more);
        scope->inside = base_realloc(scope->inside, sizeof *scope->inside * n, sizeof *scope->inside * more);
        scope->cap = (int)more;
    }
    ir_node *inside = ir_parameter(scope->graph, outer->type, outer->op == OP_parameter ? outer->attr.name : NULL);
    inside->place = outer->place;
    scope->captured[scope->n_captured] = outer;
    scope->inside[scope->n_captured++] = inside;
    return inside;
}

static bool is_around(const trace_scope *outer, const trace_scope *inner)
{
    while (inner && inner != outer)
        inner = inner->outer;
    return inner != NULL;
}

ir_node *trace_operand(rax_place place, const char *op, const char *name, rax_tensor tensor)
{
    trace *t = trace_current;
    base_text why = {0};
    rax_tensor_body *body = NULL;
    if (!t) {
        trace_error(place, op, "ops are recorded inside a step that rax_call runs, and this is outside of any");
        return NULL;
    }
    if (!(body = trace_body(tensor, &why)))
        trace_error(place, op, "%s %s", name, why.at);
    else if (body->kind == TENSOR_ARRAY)
        trace_error(place, op, "%s is an array of the caller's\nPass it as an argument, or copy it in by rax_literal", name);
    else if (body->node && !is_around(body->scope, t->scope))
        trace_error(place, op, "%s is a value of a body that is over\nA scan gives its values out as carries and ys", name);
    else if (body->node) {
        trace_graph(place);
        return trace_lift(t->scope, body->scope, body->node);
    }
    base_text_free(&why);
    return NULL;
}

ir_node *trace_add(rax_place place, const char *op, ir_op what, int n, ir_node *const *args, const ir_attr *attr,
                   const ir_type *stated)
{
    for (int i = 0; i < n; i++)
        if (!args[i])
            return NULL;
    base_text why = {0};
    ir_node *node = ir_try_add(trace_graph(place), what, n, args, attr, stated, &why);
    if (!node)
        trace_error(place, op, "%s", why.at);
    base_text_free(&why);
    return node;
}

ir_node *trace_scalar(ir_graph *graph, ir_dtype dtype, double value) { return ir_constant(graph, ir_scalar(dtype), value); }

/* -- dtypes, axes, broadcasting ------------------------------------------------------------------------------------------------ */

bool trace_same_dtype(rax_place place, const char *op, const ir_node *lhs, const ir_node *rhs, const char *lhs_name,
                      const char *rhs_name)
{
    if (lhs->type.dtype == rhs->type.dtype)
        return true;
    base_text left = {0}, right = {0};
    ir_type_print(&left, &lhs->type);
    ir_type_print(&right, &rhs->type);
    ir_dtype to = ir_dtype_is_float(lhs->type.dtype) ? lhs->type.dtype : rhs->type.dtype;
    const char *turned = to == lhs->type.dtype ? rhs_name : lhs_name;
    static const char *const constants[] = { "RAX_F32", "RAX_F64", "RAX_BF16", "RAX_I32", "RAX_BOOL" };
    trace_error(place, op, "%s %s is %s, %s %s is %s\nrax_cast(%s, %s) would fit", lhs_name, left.at,
                ir_dtype_name(lhs->type.dtype), rhs_name, right.at, ir_dtype_name(rhs->type.dtype), turned,
                constants[to]);
    base_text_free(&left);
    base_text_free(&right);
    return false;
}

bool trace_axis(rax_place place, const char *op, const ir_node *x, int *axis)
{
    int rank = x->type.rank, given = *axis;
    if (given < 0)
        *axis += rank;
    if (*axis >= 0 && *axis < rank)
        return true;
    base_text type = {0};
    ir_type_print(&type, &x->type);
    trace_error(place, op, "x %s has rank %d, there is no axis %d", type.at, rank, given);
    base_text_free(&type);
    return false;
}

ir_node *trace_broadcast(ir_node *x, const ir_type *type)
{
    ir_graph *graph = trace_current->scope->graph;
    ir_type to = ir_type_with_dtype(*type, x->type.dtype);
    int axes[IR_MAX_RANK];
    if (ir_shape_equal(&x->type, &to))
        return x;
    if (x->op == OP_constant)
        return ir_constant(graph, to, x->attr.value);
    for (int i = 0; i < x->type.rank; i++)
        axes[i] = to.rank - x->type.rank + i;
    return ir_broadcast(graph, x, to, axes);
}

void trace_dim_print(base_text *text, const ir_type *type, int axis)
{
    if (type->dim_name[axis])
        base_text_add(text, "%s=", type->dim_name[axis]);
    base_text_add(text, "%lld on axis %d", (long long)type->dim[axis], axis);
}

/* "lhs f32[B=8,64] has B=8 on axis 0, rhs f32[7,64] has 7 on axis 0" */
static void refuse_dims(rax_place place, const char *op, const char *lhs_name, const ir_type *lhs, int lhs_axis,
                        const char *rhs_name, const ir_type *rhs, int rhs_axis)
{
    base_text text = {0};
    base_text_add(&text, "%s ", lhs_name);
    ir_type_print(&text, lhs);
    base_text_add(&text, " has ");
    trace_dim_print(&text, lhs, lhs_axis);
    base_text_add(&text, ", %s ", rhs_name);
    ir_type_print(&text, rhs);
    base_text_add(&text, " has ");
    trace_dim_print(&text, rhs, rhs_axis);
    trace_error(place, op, "%s", text.at);
    base_text_free(&text);
}

bool trace_common_shape(rax_place place, const char *op, int n, ir_node *const *nodes, const char *const *names, int apart,
                        ir_type *type)
{
    int by[IR_MAX_RANK] = {0};                             /* which node an axis has its dim from */
    *type = (ir_type){ .dtype = nodes[0]->type.dtype };
    for (int i = 0; i < n; i++)
        type->rank = MAX(type->rank, nodes[i]->type.rank - apart);
    for (int axis = 0; axis < type->rank; axis++)
        type->dim[axis] = 1;
    for (int i = 0; i < n; i++) {
        const ir_type *next = &nodes[i]->type;
        int before = type->rank - (next->rank - apart);    /* axes that it lacks */
        for (int own = next->rank - apart - 1; own >= 0; own--) {
            int axis = before + own;
            const ir_type *first = &nodes[by[axis]]->type;
            if (next->dim[own] == 1 || (type->dim[axis] == next->dim[own] && type->dim_name[axis]))
                continue;
            if (type->dim[axis] != 1 && type->dim[axis] != next->dim[own]) {
                refuse_dims(place, op, names[by[axis]], first, axis - (type->rank - (first->rank - apart)), names[i], next, own);
                return false;
            }
            type->dim[axis] = next->dim[own];
            type->dim_name[axis] = next->dim_name[own];
            by[axis] = i;
        }
    }
    return true;
}
