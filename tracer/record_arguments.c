/* What a step asks of its arguments, and what it returns. Trees and tensors are parameters from the start; a scalar or
 * a field becomes one when the step asks for it as a tensor. How each leaf was used is noted for statics.c. */
#include <string.h>

#include "tracer/tracer.h"

/* -- parameters ------------------------------------------------------------------------------------------------------- */

/* A value of the step itself, whatever body is being recorded. */
static rax_tensor_body *root_value(trace *t, ir_node *node)
{
    trace_scope *scope = t->scope;
    t->scope = &t->root;
    rax_tensor value = trace_value(node);
    t->scope = scope;
    return value.at;
}

static rax_tensor_body *parameter(trace *t, const trace_arg *arg, const char *leaf, const ir_type *type)
{
    char *name = base_arena_text(t->graph->arena, "%s%s%s", arg->name, leaf ? "." : "", leaf ? leaf : "");
    return root_value(t, ir_parameter(t->graph, trace_signature_name(arg, leaf, type), name));
}

void trace_arguments_begin(trace *t)
{
    const rax_fn *fn = t->fn;
    base_arena *arena = t->graph->arena;
    int n = fn->signature->n, n_leaves = fn->statics.n;
    t->arg_trees = ARENA_NEW(arena, rax_tree_body *, n);
    t->arg_tensors = ARENA_NEW(arena, rax_tensor_body *, n);
    t->record_copies = ARENA_NEW(arena, void *, n);
    t->numbers = ARENA_NEW(arena, trace_number, n_leaves);
    t->uses = ARENA_NEW(arena, trace_use, n_leaves);
    t->read_at = ARENA_NEW(arena, rax_place, n_leaves);
    t->leaf_tensors = ARENA_NEW(arena, rax_tensor_body *, n_leaves);
    t->dynamic = ARENA_NEW(arena, int, n_leaves);
    t->results = ARENA_NEW(arena, struct trace_result, t->n_results);
    for (int i = 0; i < n_leaves; i++)
        t->numbers[i] = fn->statics.leaves[i].value;
    for (int i = 0; i < n; i++) {
        const trace_arg *arg = &fn->signature->args[i];
        if (arg->kind == ARG_TENSOR)
            t->arg_tensors[i] = parameter(t, arg, NULL, t->args[i].tensor.at->type);
        if (arg->kind != ARG_TREE)
            continue;
        const rax_tree_body *from = t->args[i].tree.at;
        t->arg_trees[i] = trace_tree_new(t);
        for (int j = 0; j < from->n; j++)
            trace_tree_append(t->arg_trees[i], from->names[j], parameter(t, arg, from->names[j], from->leaves[j]->type));
    }
}

/* -- arguments -------------------------------------------------------------------------------------------------------- */

/* The argument, or NULL and an error where it is of another kind. */
static const trace_arg *argument(rax_place place, const char *function, trace *t, int index, unsigned kinds)
{
    static const char *const names[] = {
        [ARG_TREE] = "a tree", [ARG_TENSOR] = "a tensor", [ARG_SCALAR] = "a scalar", [ARG_RECORD] = "a record"
    };
    const trace_signature *signature = t->fn->signature;
    if (index < 0 || index >= signature->n) {
        trace_error(place, function, "there is no arg %d: %s has %d", index, t->fn->name, signature->n);
        return NULL;
    }
    const trace_arg *arg = &signature->args[index];
    if (kinds & 1u << arg->kind)
        return arg;
    trace_error(place, function, "arg %d %s is %s", index, arg->name, names[arg->kind]);
    return NULL;
}

rax_tree rax_arg_tree_at(rax_place place, rax_args *in, int index)
{
    trace *t = in->t;
    return argument(place, "rax_arg_tree", t, index, 1u << ARG_TREE) ? trace_tree_handle(t->arg_trees[index])
                                                                     : rax_tree_new();
}

/* The leaf as a tensor: its parameter where it is dynamic, else a constant. */
static rax_tensor leaf_tensor(rax_place place, const char *function, trace *t, int index)
{
    const trace_leaf *leaf = &t->fn->statics.leaves[index];
    t->uses[index] |= USE_TAKEN;
    if (!t->read_at[index].file)
        t->read_at[index] = place;
    if (t->leaf_tensors[index])
        return trace_handle(t->leaf_tensors[index]);
    if (leaf->dtype == IR_TUPLE) {
        trace_error(place, function, "%s is text, and no tensor can be made of it", leaf->name);
        return trace_value(NULL);
    }
    double value = trace_number_value(leaf, t->numbers[index]);
    if (leaf->dtype == IR_I32 && (value < INT32_MIN || value > INT32_MAX)) {
        trace_error(place, function, "%s is %.17g, which is no i32", leaf->name, value);
        return trace_value(NULL);
    }
    t->graph->place = (ir_place){ place.file, place.line };
    ir_node *node;
    if (leaf->field < 0 || leaf->varies) {
        node = ir_parameter(t->graph, ir_scalar(leaf->dtype), leaf->name);
        t->dynamic[t->n_dynamic++] = index;
    } else {
        node = trace_scalar(t->graph, leaf->dtype, value);
    }
    t->leaf_tensors[index] = root_value(t, node);
    return trace_handle(t->leaf_tensors[index]);
}

rax_tensor rax_arg_tensor_at(rax_place place, rax_args *in, int index)
{
    trace *t = in->t;
    const trace_arg *arg = argument(place, "rax_arg_tensor", t, index, 1u << ARG_TENSOR | 1u << ARG_SCALAR);
    if (!arg)
        return trace_value(NULL);
    return arg->kind == ARG_TENSOR ? trace_handle(t->arg_tensors[index])
                                   : leaf_tensor(place, "rax_arg_tensor", t, t->fn->statics.first[index]);
}

double rax_arg_number_at(rax_place place, rax_args *in, int index)
{
    trace *t = in->t;
    if (!argument(place, "rax_arg_number", t, index, 1u << ARG_SCALAR))
        return 0;
    int leaf = t->fn->statics.first[index];
    t->uses[leaf] |= USE_READ;
    t->read_at[leaf] = place;
    return trace_number_value(&t->fn->statics.leaves[leaf], t->numbers[leaf]);
}

/* A copy, in which experiments may have put other values (compile.c). Where the argument is none, zeros: a step that
 * reads them goes on to its end and to the error. */
const void *rax_arg_record_at(rax_place place, rax_args *in, int index)
{
    enum { ENOUGH_BYTES = 4096 };
    trace *t = in->t;
    const trace_statics *statics = &t->fn->statics;
    if (!argument(place, "rax_arg_record", t, index, 1u << ARG_RECORD))
        return base_arena_alloc(t->graph->arena, ENOUGH_BYTES);
    const rax_record_type *type = t->args[index].record_type;
    for (int i = statics->first[index]; i < statics->first[index + 1]; i++) {
        t->uses[i] |= USE_READ;
        t->read_at[i] = place;
    }
    if (!t->record_copies[index]) {
        char *copy = t->record_copies[index] = base_arena_alloc(t->graph->arena, type->bytes);
        memcpy(copy, t->args[index].record, type->bytes);
        for (int i = 0; i < type->n_fields; i++) {
            int leaf = statics->first[index] + i;
            if (type->fields[i].type != RAX_FIELD_TEXT)
                trace_number_to_field(&statics->leaves[leaf], t->numbers[leaf], copy + type->fields[i].offset);
        }
    }
    return t->record_copies[index];
}

rax_tensor rax_arg_field_at(rax_place place, rax_args *in, int index, const char *field)
{
    trace *t = in->t;
    if (!argument(place, "rax_arg_field", t, index, 1u << ARG_RECORD))
        return trace_value(NULL);
    const rax_record_type *type = t->args[index].record_type;
    for (int i = 0; i < type->n_fields; i++)
        if (strcmp(type->fields[i].name, field) == 0)
            return leaf_tensor(place, "rax_arg_field", t, t->fn->statics.first[index] + i);
    trace_error(place, "rax_arg_field", "%s has no field %s", type->name, field);
    return trace_value(NULL);
}

/* -- results ---------------------------------------------------------------------------------------------------------- */

static struct trace_result *result(rax_place place, const char *function, trace *t, int index)
{
    if (index < 0 || index >= t->n_results)
        trace_error(place, function, "there is no result %d: the call takes %d", index, t->n_results);
    else if (t->results[index].given)
        trace_error(place, function, "result %d was returned already", index);
    else if (t->scope != &t->root)
        trace_error(place, function, "a body returns nothing from the step: give the value out as a carry or y");
    else
        return &t->results[index];
    return NULL;
}

void rax_return_tree_at(rax_place place, rax_results *out, int index, rax_tree tree)
{
    struct trace_result *into = result(place, "rax_return_tree", out->t, index);
    base_text why = {0};
    rax_tree_body *body = trace_tree(tree, &why);
    if (!body)
        trace_error(place, "rax_return_tree", "the tree %s", why.at);
    else if (!body->is_value)
        trace_error(place, "rax_return_tree", "the tree is of arrays of the caller");
    else if (into) {
        for (int i = 0; i < body->n; i++)
            if (!body->leaves[i])
                trace_error(place, "rax_return_tree", "leaf %s is not set", body->names[i]);
            else
                trace_operand(place, "rax_return_tree", body->names[i], trace_handle(body->leaves[i]));
        *into = (struct trace_result){ .given = true, .is_tree = true, .tree = body };
    }
    base_text_free(&why);
}

void rax_return_tensor_at(rax_place place, rax_results *out, int index, rax_tensor tensor)
{
    struct trace_result *into = result(place, "rax_return_tensor", out->t, index);
    if (trace_operand(place, "rax_return_tensor", "the tensor", tensor) && into)
        *into = (struct trace_result){ .given = true, .tensor = tensor.at };
}

bool trace_results_end(trace *t)
{
    int n = 0;
    for (int i = 0; i < t->n_results; i++) {
        const struct trace_result *r = &t->results[i];
        if (!r->given && !t->error)
            trace_error((rax_place){0}, "return", "result %d was not returned", i);
        n += r->is_tree ? r->tree->n : 1;
    }
    if (t->error)
        return false;
    ir_node **nodes = base_alloc(sizeof *nodes * (size_t)n);
    const char **names = base_alloc(sizeof *names * (size_t)n);
    n = 0;
    for (int i = 0; i < t->n_results; i++) {
        const struct trace_result *r = &t->results[i];
        if (!r->is_tree)
            nodes[n++] = r->tensor->node;
        for (int j = 0; r->is_tree && j < r->tree->n; j++) {
            names[n] = r->tree->names[j];
            nodes[n++] = r->tree->leaves[j]->node;
        }
    }
    ir_set_results(t->graph, n, nodes, names);
    base_free(nodes);
    base_free(names);
    return true;
}
