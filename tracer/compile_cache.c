/* The compile cache of a function: which calls run which program.
 *
 * An entry is a guard row: a key (types of the arguments, who takes over whose memory), values of the guarded leaves,
 * and the program for them. Several entries may share a program, where values differ that the trace did not need.
 * Entries stand in the order of their last use; beyond MAX_ENTRIES the last one goes, and its program with the last
 * entry that had it. A program has at most MAX_ROWS of them, so that a leaf with a new value at each call does not
 * push out other shapes.
 *
 * Why a call found nothing is told by comparing it with the entry it differs least from. */
#include <string.h>

#include "tracer/tracer.h"

/* -- looking up ------------------------------------------------------------------------------------------------------- */

static size_t key_bytes(const rax_fn *fn) { return sizeof(trace_key) * (size_t)(fn->signature->n + fn->n_results); }

bool trace_cache_holds(const rax_fn *fn, const trace_entry *entry)
{
    for (int i = 0; i < entry->n_guards; i++) {
        const trace_leaf *leaf = &fn->statics.leaves[entry->guards[i]];
        if (!trace_number_equal(leaf, leaf->value, entry->values[i]))
            return false;
    }
    return true;
}

trace_entry *trace_cache_find(rax_fn *fn, const trace_key *key)
{
    for (trace_entry **at = &fn->entries; *at; at = &(*at)->next) {
        trace_entry *entry = *at;
        if (memcmp(entry->key, key, key_bytes(fn)) != 0 || !trace_cache_holds(fn, entry))
            continue;
        *at = entry->next;
        entry->next = fn->entries;
        return fn->entries = entry;
    }
    return NULL;
}

trace_program *trace_cache_program(rax_fn *fn, const trace_key *key, uint64_t hash)
{
    for (trace_entry *entry = fn->entries; entry; entry = entry->next)
        if (entry->program->hash == hash && memcmp(entry->key, key, key_bytes(fn)) == 0)
            return entry->program;
    return NULL;
}

/* -- adding and dropping ------------------------------------------------------------------------------------------------ */

void trace_program_release(trace_program *program)
{
    if (--program->references > 0)
        return;
    if (program->compiled)
        program->backend->free(program->compiled);
    base_free(program->params);
    base_free(program->results);
    base_free(program->dynamic);
    base_free(program->scalars);
    base_free(program->result_trees);
    base_free(program->result_types);
    base_free(program);
}

static void free_entry(rax_fn *fn, trace_entry *entry)
{
    for (int i = 0; i < entry->n_guards; i++)
        base_free((void *)entry->values[i].text);
    trace_program_release(entry->program);
    base_free(entry->values);
    base_free(entry->guards);
    base_free(entry->key);
    base_free(entry);
    fn->n_entries--;
}

/* Of this program, or of any where it is NULL. */
static void drop_least_recent(rax_fn *fn, const trace_program *program)
{
    trace_entry **last = NULL;
    for (trace_entry **at = &fn->entries; *at; at = &(*at)->next)
        if (!program || (*at)->program == program)
            last = at;
    trace_entry *dropped = *last;
    *last = dropped->next;
    free_entry(fn, dropped);
}

trace_entry *trace_cache_add(rax_fn *fn, const trace_key *key, int n_guards, const int *guards, trace_program *program)
{
    trace_entry *entry = base_alloc(sizeof *entry);
    entry->key = memcpy(base_alloc(key_bytes(fn)), key, key_bytes(fn));
    entry->n_guards = n_guards;
    entry->guards = base_alloc(sizeof *guards * (size_t)n_guards);
    entry->values = base_alloc(sizeof *entry->values * (size_t)n_guards);
    for (int i = 0; i < n_guards; i++) {
        entry->guards[i] = guards[i];
        entry->values[i] = fn->statics.leaves[guards[i]].value;
        if (entry->values[i].text)
            entry->values[i].text = base_strdup(entry->values[i].text);
    }
    entry->program = program;
    program->references++;
    entry->next = fn->entries;
    fn->entries = entry;
    if (program->references > MAX_ROWS)
        drop_least_recent(fn, program);
    if (++fn->n_entries > MAX_ENTRIES)
        drop_least_recent(fn, NULL);
    return entry;
}

void trace_cache_free(rax_fn *fn)
{
    while (fn->entries) {
        trace_entry *next = fn->entries->next;
        free_entry(fn, fn->entries);
        fn->entries = next;
    }
}

/* -- why a call missed ------------------------------------------------------------------------------------------------- */

/* What is compared: a call, and an entry that was not for it. */
typedef struct { const rax_fn *fn; const trace_key *key; const trace_entry *entry; } miss;

static bool arg_differs(const miss *m, int i) { return m->key[i].type != m->entry->key[i].type; }

static void print_change(base_text *text, const ir_type *before, const ir_type *after)
{
    trace_type_print(text, before);
    base_text_add(text, " → ");
    trace_type_print(text, after);
}

static bool tensor_differs(const miss *m, int i)
{
    return m->fn->signature->args[i].kind == ARG_TENSOR && arg_differs(m, i);
}

static void print_tensor(const miss *m, int i, base_text *text)
{
    base_text_add(text, "arg %d %s: ", i, m->fn->signature->args[i].name);
    print_change(text, m->entry->key[i].type, m->key[i].type);
}

static bool tree_differs(const miss *m, int i) { return m->fn->signature->args[i].kind == ARG_TREE && arg_differs(m, i); }

static void print_tree(const miss *m, int i, base_text *text)
{
    const trace_tree_type *before = m->entry->key[i].type, *after = m->key[i].type;
    base_text_add(text, "arg %d %s", i, m->fn->signature->args[i].name);
    if (before->n != after->n) {
        base_text_add(text, ": %d → %d leaves", before->n, after->n);
        return;
    }
    int more = 0;
    for (int j = 0; j < before->n; j++) {
        bool renamed = before->names[j] != after->names[j], retyped = before->types[j] != after->types[j];
        if ((renamed || retyped) && more++ > 0)
            continue;
        if (renamed)
            base_text_add(text, ": leaf %d %s → %s", j, before->names[j], after->names[j]);
        else if (retyped) {
            base_text_add(text, ".%s: ", before->names[j]);
            print_change(text, before->types[j], after->types[j]);
        }
    }
    if (more > 1)
        base_text_add(text, " and %d more leaves", more - 1);
}

static bool destination_differs(const miss *m, int i)
{
    int at = m->fn->signature->n + i;
    return m->key[at].donor != m->entry->key[at].donor;
}

static void print_destination(const miss *m, int i, base_text *text)
{
    const trace_key *both[] = { &m->entry->key[m->fn->signature->n + i], &m->key[m->fn->signature->n + i] };
    base_text_add(text, "result %d: ", i);
    for (int j = 0; j < 2; j++) {
        intptr_t donor = both[j]->donor;
        if (donor < 0)
            base_text_add(text, "in memory of its own");
        else
            base_text_add(text, "in place of arg %d %s", (int)donor, m->fn->signature->args[donor].name);
        base_text_add(text, "%s", j == 0 ? " → " : "");
    }
}

static bool value_differs(const miss *m, int i)
{
    const trace_leaf *leaf = &m->fn->statics.leaves[m->entry->guards[i]];
    return !trace_number_equal(leaf, leaf->value, m->entry->values[i]);
}

static void print_value(const miss *m, int i, base_text *text)
{
    const trace_leaf *leaf = &m->fn->statics.leaves[m->entry->guards[i]];
    base_text_add(text, "arg %d %s: ", leaf->arg, leaf->name);
    trace_number_print(text, leaf, m->entry->values[i]);
    base_text_add(text, " → ");
    trace_number_print(text, leaf, leaf->value);
}

static int n_args(const miss *m) { return m->fn->signature->n; }
static int n_results(const miss *m) { return m->fn->n_results; }
static int n_guards(const miss *m) { return m->entry->n_guards; }

/* All that an entry depends on, and so all reasons for a miss. */
static const struct {
    const char *what;
    int (*count)(const miss *m);
    bool (*differs)(const miss *m, int i);
    void (*print)(const miss *m, int i, base_text *text);
} reasons[] = {
    { "a tensor's type",            n_args,    tensor_differs,      print_tensor      },
    { "a tree's names or types",    n_args,    tree_differs,        print_tree        },
    { "where a result goes",        n_results, destination_differs, print_destination },
    { "the value of a static leaf", n_guards,  value_differs,       print_value       },
};

static int differences(const miss *m)
{
    int n = 0;
    for (size_t r = 0; r < COUNT_OF(reasons); r++)
        for (int i = 0; i < reasons[r].count(m); i++)
            n += reasons[r].differs(m, i);
    return n;
}

const trace_entry *trace_cache_explain(rax_fn *fn, const trace_key *key, base_text *text)
{
    enum { MAX_TOLD = 4 };
    miss m = { fn, key, NULL };
    const trace_entry *nearest = NULL;
    int fewest = 0, told = 0;
    for (const trace_entry *entry = fn->entries; entry; entry = entry->next) {
        m.entry = entry;
        int n = differences(&m);
        if (!nearest || n < fewest) {
            nearest = entry;
            fewest = n;
        }
    }
    m.entry = nearest;
    for (size_t r = 0; nearest && r < COUNT_OF(reasons); r++)
        for (int i = 0; i < reasons[r].count(&m); i++)
            if (reasons[r].differs(&m, i) && told++ < MAX_TOLD) {
                base_text_add(text, "%s", told > 1 ? "; " : "");
                reasons[r].print(&m, i, text);
            }
    if (told > MAX_TOLD)
        base_text_add(text, "; and %d more", told - MAX_TOLD);
    return nearest;
}
