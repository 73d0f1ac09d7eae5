/* A call. Its way, of which a hit goes the first three steps and the last two, and looks at no leaf of a tree; a call that is like the one
 * before (repeated_call.c) goes the last two alone:
 *
 *     handles    each argument's handle is of its generation, of the kind that the signature says; its interned type is the key
 *     leaves     scalars and fields of records are compared with the call before (statics.c)
 *     entry      the one of the call before, or one found by key and guards; else a miss: compile.c
 *     places     where results go: memory taken over, overwritten, or new
 *     run        the program, with arrays of data pointers
 *     handles    what was taken over gets a new generation
 *
 * Until the program runs nothing has changed, so that a call that fails leaves everything as it was. */
#include <stdlib.h>
#include <string.h>

#include "tracer/tracer.h"

/* -- functions -------------------------------------------------------------------------------------------------------- */

rax_fn *rax_function(rax_step *step, const char *name, const char *signature)
{
    base_arena *arena = base_arena_new();
    trace_signature *parsed = trace_signature_parse(arena, name, signature);
    if (!parsed) {
        base_arena_free(arena);
        return NULL;
    }
    rax_fn *fn = base_alloc(sizeof *fn);
    *fn = (rax_fn){ .arena = arena, .name = base_arena_text(arena, "%s", name), .step = step, .signature = parsed,
                    .n_results = -1 };
    return fn;
}

void rax_function_free(rax_fn *fn)
{
    if (!fn)
        return;
    trace_report_function(fn);
    trace_cache_free(fn);
    trace_repeat_free(fn);
    trace_statics_free(&fn->statics);
    base_arena_free(fn->profile_arena);
    base_arena_free(fn->arena);
    base_free(fn->key);
    base_free(fn->last_miss);
    base_free(fn);
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

rax_fn_stats rax_stats(const rax_fn *fn)
{
    rax_fn_stats stats = fn->stats;
    float sorted[RECENT_CALLS];
    size_t n = (size_t)MIN(stats.hits, RECENT_CALLS);
    memcpy(sorted, fn->check_us, sizeof sorted);
    qsort(sorted, n, sizeof *sorted, by_size);
    stats.check_us = n ? sorted[n / 2] : 0;
    stats.last_miss = fn->last_miss ? fn->last_miss : "";
    if (fn->entries)
        stats.arena_bytes = fn->entries->program->backend->arena_bytes(fn->entries->program->compiled);
    return stats;
}

/* -- handles ---------------------------------------------------------------------------------------------------------- */

static bool refuse(const trace_call *c, int arg, const char *what)
{
    return rax_fail(RAX_MISTAKE, "%s:%d: %s: arg %d %s %s", c->place.file, c->place.line, c->fn->name, arg,
                    c->fn->signature->args[arg].name, what);
}

/* Why an argument is none: not on a hit's way. */
static bool refuse_argument(const trace_call *c, int i)
{
    static const char *const passed[] = { [RAX_PASS_TREE] = "a tree",
                                          [RAX_PASS_TENSOR] = "a tensor",
                                          [RAX_PASS_NUMBER] = "a number",
                                          [RAX_PASS_RECORD] = "a record" };
    static const char *const wanted[] = {
        [ARG_TREE] = "a tree", [ARG_TENSOR] = "a tensor", [ARG_SCALAR] = "a number", [ARG_RECORD] = "a record"
    };
    const rax_value *value = &c->args[i];
    trace_arg_kind kind = c->fn->signature->args[i].kind;
    base_text why = {0};
    if ((int)value->kind < 0 || value->kind > RAX_PASS_RECORD || strcmp(passed[value->kind], wanted[kind]) != 0)
        base_text_add(&why, "is to be %s, got %s", wanted[kind],
                      (int)value->kind >= 0 && value->kind <= RAX_PASS_RECORD ? passed[value->kind] : "nothing");
    else if (kind == ARG_RECORD)
        base_text_add(&why, "is no record (NULL)");
    else if (kind == ARG_TREE ? trace_tree(value->tree, &why) != NULL : trace_body(value->tensor, &why) != NULL)
        base_text_add(&why, "is a value of a step, not an array");
    refuse(c, i, why.at);
    base_text_free(&why);
    return false;
}

static bool argument_key(const trace_call *c, int i, trace_key *key)
{
    const rax_value *value = &c->args[i];
    bool fits = false;
    key->type = NULL;
    switch (c->fn->signature->args[i].kind) {
    case ARG_TREE:
        fits = value->kind == RAX_PASS_TREE && value->tree.at && value->tree.at->used && !value->tree.at->is_value &&
               value->tree.generation == value->tree.at->generation;
        if (fits)
            key->type = trace_tree_type_of(value->tree.at);
        break;
    case ARG_TENSOR:
        fits = value->kind == RAX_PASS_TENSOR && value->tensor.at && value->tensor.at->kind == TENSOR_ARRAY &&
               value->tensor.generation == trace_tensor_generation(value->tensor.at);
        if (fits)
            key->type = value->tensor.at->type;
        break;
    case ARG_SCALAR:
        fits = value->kind == RAX_PASS_NUMBER;
        break;
    case ARG_RECORD:
        fits = value->kind == RAX_PASS_RECORD && value->record && value->record_type;
        break;
    }
    return fits || refuse_argument(c, i);
}

/* -- destinations ------------------------------------------------------------------------------------------------------ */

static bool refuse_result(const trace_call *c, int result, const char *what)
{
    return rax_fail(RAX_MISTAKE, "%s:%d: %s: result %d %s", c->place.file, c->place.line, c->fn->name, result, what);
}

/* The argument whose handle it is, or -1. */
static int donor_of(const trace_call *c, const rax_into *into)
{
    for (int i = 0; i < c->fn->signature->n; i++)
        if (into->tree ? c->args[i].kind == RAX_PASS_TREE && c->args[i].tree.at == into->tree->at
                       : c->args[i].kind == RAX_PASS_TENSOR && c->args[i].tensor.at == into->tensor->at)
            return i;
    return -1;
}

/* Whether writing to the destination would write to the tensors of the argument, too. */
static bool touches(const rax_into *into, const rax_value *arg)
{
    const rax_tree_body *tree = into->tree ? into->tree->at : into->tensor->at->tree;
    if (arg->kind == RAX_PASS_TREE)
        return arg->tree.at == tree;
    if (arg->kind == RAX_PASS_TENSOR)
        return into->tree ? arg->tensor.at->tree == tree : arg->tensor.at == into->tensor->at;
    return false;
}

static bool same_destination(const rax_into *a, const rax_into *b)
{
    if (a->tree && b->tree)
        return a->tree == b->tree || (a->tree->at && a->tree->at == b->tree->at);
    if (a->tensor && b->tensor)
        return a->tensor == b->tensor || (a->tensor->at && a->tensor->at == b->tensor->at);
    const rax_tree *tree = a->tree ? a->tree : b->tree;
    const rax_tensor *tensor = a->tensor ? a->tensor : b->tensor;
    return tree->at && tensor->at && tensor->at->tree == tree->at;
}

static bool destination_key(const trace_call *c, int i, trace_key *key)
{
    const rax_into *into = &c->results[i];
    base_text why = {0};
    key->type = NULL;
    key->donor = -1;
    if (!into->tree == !into->tensor)
        return refuse_result(c, i, "is to be given either a tree or a tensor to go to");
    for (int j = 0; j < i; j++)
        if (same_destination(into, &c->results[j]))
            return refuse_result(c, i, "has the destination of an earlier one");
    if (into->tree ? !into->tree->at : !into->tensor->at)
        return true;
    bool current = into->tree ? trace_tree(*into->tree, &why) != NULL : trace_body(*into->tensor, &why) != NULL;
    if (!current) {
        base_text message = {0};
        base_text_add(&message, "is to go to a handle that %s", why.at);
        refuse_result(c, i, message.at);
        base_text_free(&message);
        base_text_free(&why);
        return false;
    }
    key->donor = donor_of(c, into);
    for (int j = 0; j < c->fn->signature->n; j++)
        if (j != key->donor && touches(into, &c->args[j]))
            return refuse(c, j, "shares memory with where a result goes, and is not the argument whose memory is "
                                "taken over");
    return true;
}

/* -- memory of results --------------------------------------------------------------------------------------------------- */

/* New arrays for results without a destination, and a check that the others fit. fresh[i] is what was made. */
typedef union { rax_tree_body *tree; rax_tensor_body *tensor; } made;

static void unmake(const trace_call *c, int n, const made *fresh)
{
    for (int i = 0; i < n; i++)
        if (c->results[i].tree && fresh[i].tree)
            trace_tree_body_free(fresh[i].tree);
        else if (c->results[i].tensor && fresh[i].tensor)
            trace_body_free(fresh[i].tensor);
}

static bool destination(const trace_call *c, int i, const trace_program *program, made *fresh)
{
    const rax_into *into = &c->results[i];
    fresh->tree = NULL;
    if (into->tree ? !program->result_trees[i] : !program->result_types[i])
        return refuse_result(c, i, into->tree ? "is a tensor, and is to go to a tree"
                                              : "is a tree, and is to go to a tensor");
    if (into->tree && !into->tree->at)
        return (fresh->tree = trace_tree_of_arrays(program->result_trees[i])) != NULL;
    if (into->tensor && !into->tensor->at)
        return (fresh->tensor = trace_array_new(program->result_types[i])) != NULL;
    if (into->tree ? trace_tree_type_of(into->tree->at) == program->result_trees[i]
                   : into->tensor->at->type == program->result_types[i])
        return true;
    base_text text = {0};
    if (into->tensor) {
        base_text_add(&text, "is ");
        trace_type_print(&text, program->result_types[i]);
        base_text_add(&text, ", and is to go to ");
        trace_type_print(&text, into->tensor->at->type);
    }
    refuse_result(c, i, into->tensor ? text.at : "does not have the names and types of the tree that it is to go to");
    base_text_free(&text);
    return false;
}

/* Where the next goes. */
static void **put_leaves(void **at, const rax_tree_body *tree)
{
    if (tree->n)
        memcpy(at, tree->data, sizeof *at * (size_t)tree->n);
    return at + tree->n;
}

static void point_to(const trace_call *c, const trace_entry *entry, const made *fresh)
{
    trace_program *program = entry->program;
    const trace_signature *signature = c->fn->signature;
    void **at = program->params;
    for (int i = 0; i < signature->n; i++)
        if (signature->args[i].kind == ARG_TREE)
            at = put_leaves(at, c->args[i].tree.at);
        else if (signature->args[i].kind == ARG_TENSOR)
            *at++ = c->args[i].tensor.at->data;
    for (int i = 0; i < program->n_dynamic; i++) {
        const trace_leaf *leaf = &c->fn->statics.leaves[program->dynamic[i]];
        trace_number_store(leaf, leaf->value, &program->scalars[i]);
        *at++ = &program->scalars[i];
    }
    at = program->results;
    for (int i = 0; i < c->fn->n_results; i++)
        if (c->results[i].tree)
            at = put_leaves(at, fresh[i].tree ? fresh[i].tree : c->results[i].tree->at);
        else
            *at++ = fresh[i].tensor ? fresh[i].tensor->data : c->results[i].tensor->at->data;
}

void trace_call_donated(const trace_call *c, const rax_into *into)
{
    if (into->tree) {
        rax_tree_body *tree = into->tree->at;
        tree->generation++;
        tree->donations++;
        tree->lost = LOST_DONATED;
        tree->lost_at = c->place;
        *into->tree = trace_tree_handle(tree);
    } else {
        trace_body_lose(into->tensor->at, LOST_DONATED, c->place);
        *into->tensor = trace_handle(into->tensor->at);
    }
}

/* New handles for what was made, and for what was taken over, of which all others are out of date. */
static void renew(const trace_call *c, const trace_entry *entry, const made *fresh)
{
    const trace_key *donors = entry->key + c->fn->signature->n;
    for (int i = 0; i < c->fn->n_results; i++) {
        const rax_into *into = &c->results[i];
        if (into->tree && fresh[i].tree)
            *into->tree = trace_tree_handle(fresh[i].tree);
        else if (into->tensor && fresh[i].tensor)
            *into->tensor = trace_handle(fresh[i].tensor);
        else if (donors[i].donor >= 0)
            trace_call_donated(c, into);
    }
}

/* -- the call --------------------------------------------------------------------------------------------------------- */

/* fn->last is NULL after a miss that failed. */
static trace_entry *find_entry(const trace_call *c, bool *hit)
{
    rax_fn *fn = c->fn;
    size_t bytes = sizeof *fn->key * (size_t)(fn->signature->n + fn->n_results);
    *hit = true;
    if (fn->last && memcmp(fn->last->key, fn->key, bytes) == 0 && (!fn->leaves_changed || trace_cache_holds(fn, fn->last))) {
        fn->leaves_changed = false;
        return fn->last;
    }
    if ((fn->last = trace_cache_find(fn, fn->key))) {
        trace_say(fn->last->returned_to ? 2 : 1, "%s: back to a program that is compiled", fn->name);     /* calls may alternate */
        fn->last->returned_to = true;
    } else {
        *hit = false;
        fn->stats.misses++;
        fn->last = trace_compile(c->place, fn, fn->key, c->args);
    }
    fn->leaves_changed = !fn->last;
    return fn->last;
}

/* Keys of arguments and results; the leaves' values. */
static bool check(const trace_call *c)
{
    rax_fn *fn = c->fn;
    if (c->n_args != fn->signature->n)
        return rax_fail(RAX_MISTAKE, "%s:%d: %s: expected %d arguments, got %d", c->place.file, c->place.line,
                        fn->name, fn->signature->n, c->n_args);
    if (fn->n_results < 0) {
        fn->n_results = c->n_results;
        fn->key = base_alloc(sizeof *fn->key * (size_t)(c->n_args + c->n_results));
    }
    if (c->n_results != fn->n_results)
        return rax_fail(RAX_MISTAKE, "%s:%d: %s: expected %d results as at the first call, got %d", c->place.file,
                        c->place.line, fn->name, fn->n_results, c->n_results);
    for (int i = 0; i < c->n_args; i++)
        if (!argument_key(c, i, &fn->key[i]))
            return false;
    for (int i = 0; i < c->n_results; i++)
        if (!destination_key(c, i, &fn->key[c->n_args + i]))
            return false;
    return trace_statics_observe(fn, c->args);
}

/* again: params and results are those of the run before. */
static bool run_program(const trace_call *c, double start, const trace_program *program, bool hit, bool again)
{
    rax_fn *fn = c->fn;
    const ir_backend *backend = program->backend;
    double called = backend->began_ms ? 0 : base_now_ms();
    if (!(again && backend->run_again ? backend->run_again(program->compiled) : backend->run(program->compiled, program->params, program->results)))
        return false;
    if (hit) {
        double began = backend->began_ms ? backend->began_ms(program->compiled) : called;
        fn->check_us[fn->stats.hits++ % RECENT_CALLS] = (float)((began - start) * 1e3);
        fn->checked_ms += began - start;
        fn->called_ms += base_now_ms() - start;
    }
    return true;
}

static bool lent_is_back(const trace_program *program) { return !program->backend->upload || trace_return_lent(); }

static bool run(const trace_call *c, double start, trace_entry *entry, bool hit)
{
    enum { FEW_RESULTS = 16 };
    rax_fn *fn = c->fn;
    made room[FEW_RESULTS], *fresh = fn->n_results <= FEW_RESULTS ? room : base_alloc(sizeof *fresh * (size_t)fn->n_results);
    int n = 0;
    bool done = true, made_any = false;
    while (done && n < fn->n_results) {
        done = destination(c, n, entry->program, &fresh[n]);
        made_any |= fresh[n].tree != NULL;
        n++;
    }
    done = done && lent_is_back(entry->program);
    if (done) {
        point_to(c, entry, fresh);
        done = run_program(c, start, entry->program, hit, false);
    }
    if (done)
        renew(c, entry, fresh);
    else
        unmake(c, n, fresh);
    if (done && !made_any)
        trace_repeat_keep(c, entry);
    if (fresh != room)
        base_free(fresh);
    return done;
}

static bool run_again(const trace_call *c, double start, const trace_program *program)
{
    if (!lent_is_back(program) || !run_program(c, start, program, true, true))
        return false;
    trace_repeat_renew(c);
    return true;
}

bool rax_call_at(rax_place place, rax_fn *fn, int n_args, const rax_value *args, int n_results, const rax_into *results)
{
    double start = base_now_ms();
    trace_call c = { place, fn, n_args, n_results, args, results };
    bool hit;
    if (!fn)
        return !*rax_error() && rax_fail(RAX_MISTAKE, "%s:%d: rax_call: there is no function (NULL)", place.file, place.line);
    if (trace_current)
        return trace_error(place, "rax_call",
                           "a step cannot call '%s', which runs at once\nCall its C function instead", fn->name);
    fn->stats.calls++;
    const trace_program *program = trace_repeat_fits(&c);
    if (program)
        return run_again(&c, start, program);
    trace_repeat_forget(fn);
    if (!check(&c))
        return false;
    trace_entry *entry = find_entry(&c, &hit);
    return entry && run(&c, start, entry, hit);
}
