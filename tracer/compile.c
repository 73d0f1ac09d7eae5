/* A miss: the step is traced, what it depends on is found out, and unless that graph is compiled already it goes
 * through the passes and to the backend.
 *
 *     signature → trace → guards (by use, by experiment) → same graph as an entry's? its program
 *                                                        → passes → backend → a program
 * / */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tracer/tracer.h"

/* -- recording ---------------------------------------------------------------------------------------------------------- */

/* Runs the user's step; leaf >= 0 is seen with another value. t holds the result until trace_end. */
static bool record(trace *t, rax_fn *fn, const rax_value *args, int leaf, trace_number value)
{
    double start = base_now_ms();
    rax_args in = { t };
    rax_results out = { t };
    trace_begin(t, fn, args);
    t->n_results = fn->n_results;
    trace_arguments_begin(t);
    if (leaf >= 0)
        t->numbers[leaf] = value;
    fn->step(&in, &out);
    bool whole = trace_results_end(t);
    t->graph->next_site = t->next_site;
    fn->stats.traces++;
    fn->stats.trace_ms += base_now_ms() - start;
    return whole;
}

/* The hash of what the step records with the leaf at that value; false where the step fails with it. */
static bool experiment(rax_fn *fn, const rax_value *args, int leaf, trace_number value, uint64_t *hash)
{
    trace t;
    bool whole = record(&t, fn, args, leaf, value);
    if (whole)
        *hash = ir_graph_hash(t.graph);
    base_free(t.error);
    trace_end(&t);
    ir_graph_free(t.graph);
    return whole;
}

/* -- guards ------------------------------------------------------------------------------------------------------------- */

static bool is_dynamic(const trace *t, int leaf)
{
    for (int i = 0; i < t->n_dynamic; i++)
        if (t->dynamic[i] == leaf)
            return true;
    return false;
}

/* Whether C code of the step looks at a field that is also a parameter: see statics.c. */
static bool is_looked_at(rax_fn *fn, const rax_value *args, int leaf, uint64_t hash)
{
    trace_number probes[MAX_PROBES];
    int n = trace_probes(&fn->statics.leaves[leaf], probes);
    for (int i = 0; i < n; i++) {
        uint64_t other;
        if (!experiment(fn, args, leaf, probes[i], &other) || other != hash)
            return true;
    }
    return false;
}

/* uses, read_at and dynamic of the trace, which is over, live in its graph's arena. */
static void find_guards(rax_fn *fn, const rax_value *args, const trace *t, uint64_t hash, bool *guarded)
{
    for (int i = 0; i < fn->statics.n; i++) {
        trace_leaf *leaf = &fn->statics.leaves[i];
        bool read = t->uses[i] & USE_READ, taken = t->uses[i] & USE_TAKEN, dynamic = is_dynamic(t, i);
        leaf->was_taken |= taken;
        if (t->read_at[i].file)
            leaf->read_at = t->read_at[i];
        if (leaf->field < 0)
            guarded[i] = read;
        else
            guarded[i] = dynamic ? read && is_looked_at(fn, args, i, hash) : read || taken;
    }
}

/* -- the program -------------------------------------------------------------------------------------------------------- */

static bool keep_types(rax_place place, rax_fn *fn, const trace *t, const trace_key *key, trace_program *program)
{
    program->result_trees = base_alloc(sizeof *program->result_trees * (size_t)t->n_results);
    program->result_types = base_alloc(sizeof *program->result_types * (size_t)t->n_results);
    for (int i = 0; i < t->n_results; i++) {
        const struct trace_result *r = &t->results[i];
        intptr_t donor = key[fn->signature->n + i].donor;
        const void *type;
        if (r->is_tree) {
            const ir_type **types = base_alloc(sizeof *types * (size_t)r->tree->n);
            for (int j = 0; j < r->tree->n; j++)
                types[j] = trace_intern_type(r->tree->leaves[j]->type);
            type = program->result_trees[i] = trace_intern_tree(r->tree->n, r->tree->names, types);
            base_free(types);
        } else {
            type = program->result_types[i] = trace_intern_type(r->tensor->type);
        }
        if (donor >= 0 && key[donor].type != type)
            return rax_fail(RAX_MISTAKE,
                            "%s:%d: %s: result %d is to take the place of arg %d %s, and is of another %s",
                            place.file, place.line, fn->name, i, (int)donor, fn->signature->args[donor].name,
                            r->is_tree == (fn->signature->args[donor].kind == ARG_TREE) ? "type" : "kind");
    }
    return true;
}

/* Result leaves take over the parameters of the argument that was named as their destination. */
static void donate(const rax_fn *fn, const trace *t, const trace_key *key)
{
    int result = 0;
    for (int i = 0; i < t->n_results; i++) {
        int n = t->results[i].is_tree ? t->results[i].tree->n : 1, param = 0;
        intptr_t donor = key[fn->signature->n + i].donor;
        for (int a = 0; a < donor; a++) {
            if (fn->signature->args[a].kind == ARG_TREE)
                param += ((const trace_tree_type *)key[a].type)->n;
            param += fn->signature->args[a].kind == ARG_TENSOR;
        }
        for (int j = 0; j < n; j++, result++)
            t->graph->donated[result] = donor >= 0 ? param + j : -1;
    }
}

static trace_program *program_new(const trace *t)
{
    trace_program *program = base_alloc(sizeof *program);
    program->n_params = t->graph->n_params;
    program->n_results = t->graph->n_results;
    program->params = base_alloc(sizeof *program->params * (size_t)program->n_params);
    program->results = base_alloc(sizeof *program->results * (size_t)program->n_results);
    program->n_dynamic = t->n_dynamic;
    program->dynamic = memcpy(base_alloc(sizeof(int) * (size_t)t->n_dynamic), t->dynamic,
                              sizeof(int) * (size_t)t->n_dynamic);
    program->scalars = base_alloc(sizeof *program->scalars * (size_t)t->n_dynamic);
    return program;
}

char *trace_dump_folder(const char *name, int64_t number)
{
    const char *dir = trace_settings()->dump_dir;
    base_text path = {0};
    if (!dir)
        return NULL;
    base_text_add(&path, "%s/%s-%lld", dir, name, (long long)number);
    for (char *at = path.at + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = '\0';
        mkdir(path.at, 0777);                            /* what cannot be made is told of below */
        *at = '/';
    }
    if (mkdir(path.at, 0777) != 0 && errno != EEXIST) {
        trace_say(0, "warning: %s: %s; nothing is written there", path.at, strerror(errno));
        base_text_free(&path);
        return NULL;
    }
    return base_text_take(&path);
}

/* The graph while it is compiled, and as it was recorded: a bug of ours saves that, so that it can be run again. */
static struct { const ir_graph *graph; const ir_snapshot *before; } recorded;

static const char *save_recorded(void)
{
    static char told[512];
    const char *temporary = getenv("TMPDIR");
    ir_snapshot_restore(recorded.before);
    char *text = ir_to_text(recorded.graph);
    int len = snprintf(told, sizeof told, "graph in %s/bug-%s-%d.rax", temporary && *temporary ? temporary : "/tmp",
                       recorded.graph->name, (int)getpid());
    FILE *file = len < (int)sizeof told ? fopen(told + strlen("graph in "), "w") : NULL;
    bool saved = file && fputs(text, file) >= 0;
    saved = file && fclose(file) == 0 && saved;
    base_free(text);
    return saved ? told : NULL;
}

/* Whether graphs, kernel lists and LLVM modules are verified on the way, which takes as long as the passes themselves: in builds
 * without optimisation, in tests (tests/run sets RAX_VERIFY), and where what is made is also written out. */
static bool verifies(const char *folder)
{
#ifdef __OPTIMIZE__
    return folder || base_is_set("RAX_VERIFY");
#else
    (void)folder;
    return true;
#endif
}

/* Passes and backend. False and an error where the backend refuses. */
static bool compile(rax_fn *fn, ir_graph *graph, trace_program *program, const ir_backend *backend)
{
    double start = base_now_ms();
    char *folder = trace_dump_folder(fn->name, fn->stats.compilations + 1);
    bool verify = verifies(folder);
    ir_snapshot *before = ir_snapshot_take(graph);
    recorded.graph = graph;
    recorded.before = before;
    base_bug_hook = save_recorded;
    ir_pass_options passes = { .verify = verify, .dump_dir = folder, .keep_composite = backend->keep_composite };
    ir_run_passes(graph, &passes);
    trace_report_passes(&passes);
    ir_pass_reports_free(&passes);

    ir_compile_options options = { .name = fn->name, .verbose = trace_verbose(), .dump_dir = folder, .verify = verify, .host_scalars = program->n_dynamic };
    ir_compile_report report = {0};
    program->backend = backend;
    program->compiled = backend->compile(graph, &options, &report);
    base_bug_hook = NULL;
    ir_snapshot_free(before);
    double ms = base_now_ms() - start;
    fn->stats.compile_ms += ms;
    fn->stats.compilations += program->compiled != NULL;
    for (int i = 0; i < report.n_phases; i++)           /* of one that was refused, too: what it would have taken */
        trace_say(1, "  %-12s %9.2f ms", report.phases[i].name, report.phases[i].ms);
    trace_say_lines(&report.lines);
    if (program->compiled) {
        trace_say(1, "%s: compiled by %s in %.1f ms", fn->name, backend->name, ms);
        if (trace_settings()->profile && backend->profile)
            backend->profile(program->compiled, trace_settings()->trace_runs);
    }
    base_text_free(&report.lines);
    base_free(folder);
    return program->compiled != NULL;
}

/* -- misses ------------------------------------------------------------------------------------------------------------- */

/* Whether the arguments fit the signature. */
static bool check_signature(rax_place place, rax_fn *fn, const trace_key *key)
{
    int n = fn->signature->n;
    const ir_type **types = base_alloc(sizeof *types * (size_t)n);
    const trace_tree_type **trees = base_alloc(sizeof *trees * (size_t)n);
    base_text why = {0};
    for (int i = 0; i < n; i++) {
        types[i] = fn->signature->args[i].kind == ARG_TENSOR ? key[i].type : NULL;
        trees[i] = fn->signature->args[i].kind == ARG_TREE ? key[i].type : NULL;
    }
    bool fits = trace_signature_check(fn->signature, fn->name, types, trees, &why);
    if (!fits)
        rax_fail(RAX_MISTAKE, "%s:%d: %s", place.file, place.line, why.at);
    base_text_free(&why);
    base_free(types);
    base_free(trees);
    return fits;
}

/* Fields that are taken as tensors and have changed are dynamic from now on. */
static void notice_varying(rax_fn *fn)
{
    for (int i = 0; i < fn->statics.n; i++) {
        trace_leaf *leaf = &fn->statics.leaves[i];
        if (leaf->field >= 0 && leaf->was_taken && leaf->changes > 0 && !leaf->varies) {
            leaf->varies = true;
            trace_say(1, "%s: arg %d %s varies and is taken as a tensor: it is dynamic from now on", fn->name,
                      leaf->arg, leaf->name);
        }
    }
}

static bool same_key(const rax_fn *fn, const trace_key *a, const trace_key *b)
{
    return memcmp(a, b, sizeof *a * (size_t)(fn->signature->n + fn->n_results)) == 0;
}

/* The i-th guard of the nearest entry, if it is why the call missed and is one still; else NULL. */
static trace_leaf *culprit(rax_fn *fn, const trace_entry *nearest, int i, const bool *guarded)
{
    trace_leaf *leaf = &fn->statics.leaves[nearest->guards[i]];
    return guarded[nearest->guards[i]] && !trace_number_equal(leaf, leaf->value, nearest->values[i]) ? leaf : NULL;
}

/* Whether the user was warned of all that this miss is due to, and needs no line for it any more. */
static bool is_known(rax_fn *fn, const trace_entry *nearest, const trace_key *key, const bool *guarded)
{
    bool known = nearest && same_key(fn, nearest->key, key);
    for (int i = 0; known && i < nearest->n_guards; i++) {
        const trace_leaf *leaf = culprit(fn, nearest, i, guarded);
        known = !leaf || leaf->warned;
    }
    return known;
}

/* Counts which guarded leaves caused this miss, and warns once of one that has caused three. */
static void blame(rax_fn *fn, const trace_entry *nearest, const trace_key *key, const bool *guarded, bool compiled)
{
    enum { PATIENCE = 3 };
    if (!nearest || !same_key(fn, nearest->key, key))
        return;
    for (int i = 0; i < nearest->n_guards; i++) {
        trace_leaf *leaf = culprit(fn, nearest, i, guarded);
        int *count = !leaf ? NULL : compiled ? &leaf->needed : &leaf->retraced;
        if (!leaf || ++*count < PATIENCE || leaf->warned)
            continue;
        leaf->warned = true;
        trace_say(0, "warning: '%s' was %s %d more times because %s varies: it is read as a C value at %s:%d%s", fn->name,
                  compiled ? "compiled" : "traced", *count, leaf->name, leaf->read_at.file, leaf->read_at.line,
                  compiled ? "" : ", and the program came out the same");
    }
}

static trace_entry *compile_traced(rax_place place, rax_fn *fn, const trace_key *key, const rax_value *args, trace *t,
                                   double trace_ms, const trace_entry *nearest, const ir_backend *backend)
{
    uint64_t hash = ir_graph_hash(t->graph);
    bool *guarded = base_alloc((size_t)fn->statics.n);
    int *guards = base_alloc(sizeof *guards * (size_t)fn->statics.n), n_guards = 0;
    trace_program *fresh = program_new(t), *program = NULL;
    bool fits = keep_types(place, fn, t, key, fresh);
    if (fits)
        donate(fn, t, key);
    trace_end(t);
    if (fits) {
        find_guards(fn, args, t, hash, guarded);
        for (int i = 0; i < fn->statics.n; i++)
            if (guarded[i])
                guards[n_guards++] = i;
        program = trace_cache_program(fn, key, hash);
    }
    trace_entry *entry = NULL;
    bool compiled = false;
    if (fits && !program) {
        fresh->hash = hash;
        trace_announce(fn, t, guarded, is_known(fn, nearest, key, guarded));
        trace_report_arguments(fn, t, guarded);
        trace_say(1, "  %-12s %9.2f ms, %d ops", "trace", trace_ms - t->gradient_ms, ir_count_nodes(t->graph));
        trace_say(1, "  %-12s %9.2f ms", "gradient", t->gradient_ms);
        compiled = compile(fn, t->graph, fresh, backend);
        if (compiled)
            program = fresh;
    } else if (program) {
        trace_say(1, "%s: %s: traced again in %.1f ms; it is the same program, and nothing is compiled", fn->name,
                  fn->last_miss, trace_ms);
    }
    if (program) {
        blame(fn, nearest, key, guarded, compiled);
        entry = trace_cache_add(fn, key, n_guards, guards, program);
    }
    if (program != fresh)
        trace_program_release(fresh);
    base_free(guards);
    base_free(guarded);
    return entry;
}

trace_entry *trace_compile(rax_place place, rax_fn *fn, const trace_key *key, const rax_value *args)
{
    const ir_backend *backend = trace_backend();
    base_text why = {0};
    trace t;
    if (!backend || !check_signature(place, fn, key))
        return NULL;
    const trace_entry *nearest = trace_cache_explain(fn, key, &why);
    if (nearest) {
        base_free(fn->last_miss);
        fn->last_miss = base_text_take(&why);
    }
    base_text_free(&why);
    notice_varying(fn);

    trace_entry *entry = NULL;
    double start = base_now_ms();
    if (record(&t, fn, args, -1, (trace_number){0})) {
        entry = compile_traced(place, fn, key, args, &t, base_now_ms() - start, nearest, backend);
    } else {
        base_fail_lines((base_error_kind)t.error_kind, "%s", t.error);
        trace_end(&t);
    }
    base_free(t.error);
    ir_graph_free(t.graph);
    return entry;
}
