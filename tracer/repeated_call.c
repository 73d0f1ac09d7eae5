/* A call that is like the one before, as in a training loop all are but the first few: the same trees and tensors go in and come out.
 *
 * Between two of them a step has driven everything out of the caches, so that a call costs by the lines of memory that it looks at, one
 * after another. So all that the call before was found to be lies in one block, and what else has to be looked at is asked for
 * before any of it is needed:
 *
 *     the block     a row for each argument and each result, then copies of records
 *     a tree        its line: the handle is of its generation, and its layout is the one of the row
 *     a tensor      its line: as a tree's, and in no tree
 *     a record      its fields, compared with the copy, and its texts with their leaves'
 *     a number      against the row; another one is put where the program reads it, unless programs are chosen by it
 *
 * Whatever is not as it was, wrong or only another, goes the long way of call.c, which looks at everything anew. */
#include <string.h>

#include "tracer/tracer.h"

typedef struct {
    trace_arg_kind kind;                 /* of a result: ARG_TREE or ARG_TENSOR */
    bool donor;                          /* of a result: it takes over an argument's memory */
    union {
        struct { rax_tree_body *body; uint64_t layout; } tree;
        struct { rax_tensor_body *body; const ir_type *type; const void *data; } tensor;
        struct { double given; trace_leaf *leaf; uint64_t *place; bool guarded; } number;      /* place: NULL where no program reads it */
        struct { const rax_record_type *type; size_t copy; const trace_leaf *text; } record;   /* copy: bytes from the block's beginning; text: its leaves, if any is one */
    };
} row;

struct trace_repeat {
    const trace_entry *entry;            /* NULL: nothing is kept */
    const trace_program *program;        /* the entry's */
    int n_args, n_results;
    size_t bytes;                        /* of the block */
    row rows[];
};

enum { LINE = 64 };

static void fetch(const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += LINE)
        __builtin_prefetch((const char *)from + i, 0, 3);
}

/* -- keeping ---------------------------------------------------------------------------------------------------------- */

void trace_repeat_forget(rax_fn *fn)
{
    if (fn->repeat)
        fn->repeat->entry = NULL;
}

void trace_repeat_free(rax_fn *fn)
{
    base_free(fn->repeat);
    fn->repeat = NULL;
}

static bool has_text(const rax_record_type *type)
{
    for (int i = 0; i < type->n_fields; i++)
        if (type->fields[i].type == RAX_FIELD_TEXT)
            return true;
    return false;
}

/* Whether a comparison of handles will do: a tensor in a tree may share memory with another argument. */
static bool can_keep(const trace_call *c)
{
    for (int i = 0; i < c->n_args; i++)
        if (c->args[i].kind == RAX_PASS_TENSOR && c->args[i].tensor.at->tree)
            return false;
    for (int i = 0; i < c->n_results; i++)
        if (c->results[i].tensor && c->results[i].tensor->at->tree)
            return false;
    return true;
}

static trace_repeat *block_for(const trace_call *c)
{
    size_t bytes = sizeof(trace_repeat) + sizeof(row) * (size_t)(c->n_args + c->n_results);
    for (int i = 0; i < c->n_args; i++)
        if (c->args[i].kind == RAX_PASS_RECORD)
            bytes += c->args[i].record_type->bytes;
    if (!c->fn->repeat || c->fn->repeat->bytes != bytes) {
        trace_repeat_free(c->fn);
        c->fn->repeat = base_alloc(bytes);
    }
    c->fn->repeat->bytes = bytes;
    return c->fn->repeat;
}

static void keep_tree(row *r, rax_tree_body *body)
{
    r->kind = ARG_TREE;
    r->tree.body = body;
    r->tree.layout = body->layout;
}

static void keep_tensor(row *r, rax_tensor_body *body)
{
    r->kind = ARG_TENSOR;
    r->tensor.body = body;
    r->tensor.type = body->type;
    r->tensor.data = body->data;
}

static void keep_number(row *r, const rax_fn *fn, const trace_entry *entry, int leaf, double given)
{
    r->kind = ARG_SCALAR;
    r->number.given = given;
    r->number.leaf = &fn->statics.leaves[leaf];
    r->number.place = NULL;
    r->number.guarded = false;
    for (int i = 0; i < entry->program->n_dynamic; i++)
        if (entry->program->dynamic[i] == leaf)
            r->number.place = &entry->program->scalars[i];
    for (int i = 0; i < entry->n_guards; i++)
        r->number.guarded |= entry->guards[i] == leaf;
}

void trace_repeat_keep(const trace_call *c, const trace_entry *entry)
{
    if (!can_keep(c))
        return;
    trace_repeat *repeat = block_for(c);
    size_t copy = sizeof *repeat + sizeof(row) * (size_t)(c->n_args + c->n_results);
    for (int i = 0; i < c->n_args; i++) {
        const rax_value *value = &c->args[i];
        row *r = &repeat->rows[i];
        switch (c->fn->signature->args[i].kind) {
        case ARG_TREE: keep_tree(r, value->tree.at); break;
        case ARG_TENSOR: keep_tensor(r, value->tensor.at); break;
        case ARG_SCALAR: keep_number(r, c->fn, entry, c->fn->statics.first[i], value->number); break;
        case ARG_RECORD:
            r->kind = ARG_RECORD;
            r->record.type = value->record_type;
            r->record.copy = copy;
            r->record.text = has_text(value->record_type) ? &c->fn->statics.leaves[c->fn->statics.first[i]] : NULL;
            memcpy((char *)repeat + copy, value->record, value->record_type->bytes);
            copy += value->record_type->bytes;
            break;
        }
    }
    for (int i = 0; i < c->n_results; i++) {
        row *r = &repeat->rows[c->n_args + i];
        if (c->results[i].tree)
            keep_tree(r, c->results[i].tree->at);
        else
            keep_tensor(r, c->results[i].tensor->at);
        r->donor = entry->key[c->n_args + i].donor >= 0;
    }
    repeat->entry = entry;
    repeat->program = entry->program;
    repeat->n_args = c->n_args;
    repeat->n_results = c->n_results;
}

/* -- comparing -------------------------------------------------------------------------------------------------------- */

static void fetch_all(const trace_call *c, const trace_repeat *repeat)
{
    fetch(repeat, sizeof *repeat + sizeof(row) * (size_t)(c->n_args + c->n_results));
    for (int i = 0; i < c->n_args; i++)
        switch (c->args[i].kind) {
        case RAX_PASS_TREE: fetch(c->args[i].tree.at, LINE); break;
        case RAX_PASS_TENSOR: fetch(c->args[i].tensor.at, LINE); break;
        case RAX_PASS_NUMBER: break;
        case RAX_PASS_RECORD: fetch(c->args[i].record, LINE); break;
        }
    for (int i = 0; i < c->n_results; i++)
        fetch(c->results[i].tree ? (const void *)c->results[i].tree : c->results[i].tensor, 1);
}

/* What the rows point to, which are here by now. */
static void fetch_more(const trace_repeat *repeat)
{
    fetch(repeat->program, sizeof *repeat->program);
    for (int i = 0; i < repeat->n_args + repeat->n_results; i++) {
        const row *r = &repeat->rows[i];
        if (r->kind == ARG_SCALAR)
            fetch(r->number.leaf, sizeof *r->number.leaf);
        else if (i >= repeat->n_args && !r->donor)
            fetch(r->kind == ARG_TREE ? (const void *)r->tree.body : r->tensor.body, LINE);
    }
}

static bool same_tree(const row *r, rax_tree tree)
{
    return tree.at == r->tree.body && tree.at->used && tree.generation == tree.at->generation && tree.at->layout == r->tree.layout;
}

static bool same_tensor(const row *r, rax_tensor tensor)
{
    const rax_tensor_body *body = r->tensor.body;
    return tensor.at == body && body->kind == TENSOR_ARRAY && !body->tree && tensor.generation == body->generation &&
           body->type == r->tensor.type && body->data == r->tensor.data;
}

static const size_t field_bytes[] = { [RAX_FIELD_INT] = sizeof(int), [RAX_FIELD_INT64] = sizeof(int64_t), [RAX_FIELD_FLOAT] = sizeof(float),
                                      [RAX_FIELD_DOUBLE] = sizeof(double), [RAX_FIELD_BOOL] = sizeof(bool), [RAX_FIELD_TEXT] = sizeof(char *) };

/* What lies between the fields of a record made anew at each call is anything. The letters of a text may have changed where it lies. */
static bool same_record(const trace_repeat *repeat, const row *r, const rax_value *value)
{
    const rax_record_type *type = r->record.type;
    const char *given = value->record, *copy = (const char *)repeat + r->record.copy;
    if (!given || value->record_type != type)
        return false;
    for (int i = 0; i < type->n_fields; i++)
        if (memcmp(given + type->fields[i].offset, copy + type->fields[i].offset, field_bytes[type->fields[i].type]) != 0)
            return false;
    for (int i = 0; r->record.text && i < type->n_fields; i++)
        if (type->fields[i].type == RAX_FIELD_TEXT) {
            trace_number now = { .text = *(const char *const *)((const char *)value->record + type->fields[i].offset) };
            if (!trace_number_equal(&r->record.text[i], r->record.text[i].value, now))
                return false;
        }
    return true;
}

static bool same_argument(const trace_repeat *repeat, const row *r, const rax_value *value)
{
    switch (r->kind) {
    case ARG_TREE: return value->kind == RAX_PASS_TREE && same_tree(r, value->tree);
    case ARG_TENSOR: return value->kind == RAX_PASS_TENSOR && same_tensor(r, value->tensor);
    case ARG_SCALAR: return value->kind == RAX_PASS_NUMBER && (!r->number.guarded || memcmp(&value->number, &r->number.given, sizeof value->number) == 0);
    case ARG_RECORD: return value->kind == RAX_PASS_RECORD && same_record(repeat, r, value);
    }
    return false;
}

static bool same_result(const row *r, const rax_into *into)
{
    return r->kind == ARG_TREE ? into->tree && !into->tensor && same_tree(r, *into->tree) : into->tensor && !into->tree && same_tensor(r, *into->tensor);
}

/* A number that is none of its leaf's is told of by the long way. */
static bool take_numbers(const trace_call *c, trace_repeat *repeat)
{
    for (int i = 0; i < c->n_args; i++) {
        row *r = &repeat->rows[i];
        double given = c->args[i].number;
        if (r->kind != ARG_SCALAR || memcmp(&given, &r->number.given, sizeof given) == 0)
            continue;
        if (!trace_statics_observe_number(c->fn, r->number.leaf, given))
            return false;
        r->number.given = given;
        if (r->number.place)
            trace_number_store(r->number.leaf, r->number.leaf->value, r->number.place);
    }
    c->fn->leaves_changed = false;
    return true;
}

const trace_program *trace_repeat_fits(const trace_call *c)
{
    trace_repeat *repeat = c->fn->repeat;
    if (!repeat)
        return NULL;
    fetch_all(c, repeat);
    if (!repeat->entry || repeat->entry != c->fn->last || c->fn->leaves_changed || repeat->n_args != c->n_args || repeat->n_results != c->n_results)
        return NULL;
    fetch_more(repeat);
    for (int i = 0; i < c->n_args; i++)
        if (!same_argument(repeat, &repeat->rows[i], &c->args[i]))
            return NULL;
    for (int i = 0; i < c->n_results; i++)
        if (!same_result(&repeat->rows[c->n_args + i], &c->results[i]))
            return NULL;
    return take_numbers(c, repeat) ? repeat->program : NULL;
}

void trace_repeat_renew(const trace_call *c)
{
    const trace_repeat *repeat = c->fn->repeat;
    for (int i = 0; i < c->n_results; i++)
        if (repeat->rows[c->n_args + i].donor)
            trace_call_donated(c, &c->results[i]);
}
