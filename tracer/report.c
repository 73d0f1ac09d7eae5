/* The compile trace: what rax says of a compilation, on standard error, each line beginning with "[RAX] ".
 *
 *   level 0   the line a compiled function, and warnings
 *   level 1   arguments and how each leaf was classed; phases, passes, what the backend tells of kernels and memory; misses
 *   level 2   every kernel; 3: why each was chosen (the backend's lines) */
#include <stdio.h>
#include <string.h>

#include "tracer/tracer.h"

int trace_verbose(void)
{
    const rax_settings *settings = trace_settings();
    return settings->quiet ? -1 : settings->verbose;
}

void trace_say(int level, const char *format, ...)
{
    base_text text = {0};
    va_list args;
    if (level > trace_verbose())
        return;
    base_text_add(&text, "[RAX] ");
    va_start(args, format);
    base_text_addv(&text, format, args);
    va_end(args);
    base_text_add(&text, "\n");
    fputs(text.at, stderr);                     /* in one piece, between lines of others */
    base_text_free(&text);
}

void trace_say_lines(const base_text *lines)
{
    for (const char *at = lines->at; at && *at;) {
        const char *end = strchr(at, '\n');
        int length = end ? (int)(end - at) - 1 : (int)strlen(at + 1);
        trace_say(*at - '0', "%.*s", length, at + 1);
        at = end ? end + 1 : NULL;
    }
}

/* -- a compilation ----------------------------------------------------------------------------------------------------- */

/* Arguments that have a static leaf and no tensor. */
static void print_static_argnums(base_text *text, const rax_fn *fn, const trace *t, const bool *guarded)
{
    bool first = true;
    base_text_add(text, "[");
    for (int i = 0; i < fn->signature->n; i++) {
        bool is_static = false, has_tensor = false;
        for (int j = fn->statics.first[i]; j < fn->statics.first[i + 1]; j++) {
            is_static |= guarded[j];
            for (int k = 0; k < t->n_dynamic; k++)
                has_tensor |= t->dynamic[k] == j;
        }
        if (is_static && !has_tensor) {
            base_text_add(text, "%s%d", first ? "" : ", ", i);
            first = false;
        }
    }
    base_text_add(text, "]");
}

void trace_announce(rax_fn *fn, const trace *t, const bool *guarded, bool known)
{
    int level = trace_settings()->no_jit;                  /* the interpreter compiles nothing worth a line at level 0 */
    base_text argnums = {0};
    if (fn->announced) {
        trace_say(known ? 1 : level, "compiling '%s' again: %s", fn->name, fn->last_miss);
        return;
    }
    print_static_argnums(&argnums, fn, t, guarded);
    trace_say(level, "JIT-compiling '%s' with static_argnums=%s", fn->name, argnums.at);
    base_text_free(&argnums);
    fn->announced = true;
}

/* -- arguments --------------------------------------------------------------------------------------------------------- */

static void print_count(base_text *text, int64_t count)
{
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%lld", (long long)count);
    for (int i = 0; i < n; i++)
        base_text_add(text, "%s%c", i && (n - i) % 3 == 0 ? "," : "", digits[i]);
}

typedef enum { CLASS_STATIC, CLASS_CONSTANT, CLASS_DYNAMIC, CLASS_DYNAMIC_GUARDED, CLASS_UNUSED, CLASSES } leaf_class;
static const char *const class_text[CLASSES] = {
    [CLASS_STATIC] = "static: read as a C value",
    [CLASS_CONSTANT] = "static so far: taken as a tensor, constant while it stays the same",
    [CLASS_DYNAMIC] = "dynamic: taken as a tensor",
    [CLASS_DYNAMIC_GUARDED] = "dynamic, and static: taken as a tensor, and read as a C value",
    [CLASS_UNUSED] = "unused",
};

static leaf_class class_of(const trace *t, const bool *guarded, int leaf)
{
    for (int i = 0; i < t->n_dynamic; i++)
        if (t->dynamic[i] == leaf)
            return guarded[leaf] ? CLASS_DYNAMIC_GUARDED : CLASS_DYNAMIC;
    if (t->uses[leaf] & USE_TAKEN)
        return CLASS_CONSTANT;
    return guarded[leaf] ? CLASS_STATIC : CLASS_UNUSED;
}

static void print_class(base_text *text, leaf_class class, const trace_leaf *leaf)
{
    base_text_add(text, "%s", class_text[class]);
    if (class != CLASS_UNUSED && leaf->read_at.file)
        base_text_add(text, " at %s:%d", leaf->read_at.file, leaf->read_at.line);
}

/* "    n_layer, n_head: static: read as a C value at model.c:20": one line a class, in the order of the classes. */
static void report_fields(const rax_fn *fn, const trace *t, const bool *guarded, int arg)
{
    const trace_statics *statics = &fn->statics;
    for (int class = 0; class < CLASSES; class++) {
        base_text names = {0};
        const trace_leaf *shown = NULL;
        for (int i = statics->first[arg]; i < statics->first[arg + 1]; i++) {
            if (class_of(t, guarded, i) != (leaf_class)class)
                continue;
            base_text_add(&names, "%s%s", shown ? ", " : "", strchr(statics->leaves[i].name, '.') + 1);
            shown = &statics->leaves[i];
        }
        if (shown) {
            base_text_add(&names, ": ");
            print_class(&names, (leaf_class)class, shown);
            trace_say(1, "    %s", names.at);
        }
        base_text_free(&names);
    }
}

void trace_report_arguments(rax_fn *fn, const trace *t, const bool *guarded)
{
    int param = 0;
    if (trace_verbose() < 1)
        return;
    for (int i = 0; i < fn->signature->n; i++) {
        const trace_arg *arg = &fn->signature->args[i];
        base_text text = {0};
        if (arg->kind == ARG_TREE) {
            int n = t->args[i].tree.at->n;
            int64_t count = 0;
            for (int j = 0; j < n; j++)
                count += ir_type_count(&t->graph->params[param + j]->type);
            base_text_add(&text, "tree of %d leaves, ", n);
            print_count(&text, count);
            base_text_add(&text, " elements: dynamic");
            param += n;
        } else if (arg->kind == ARG_TENSOR) {
            ir_type_print(&text, &t->graph->params[param++]->type);
            base_text_add(&text, ": dynamic");
        } else if (arg->kind == ARG_SCALAR) {
            int leaf = fn->statics.first[i];
            base_text_add(&text, "%s, ", ir_dtype_name(arg->pattern.dtype));
            print_class(&text, class_of(t, guarded, leaf), &fn->statics.leaves[leaf]);
        } else {
            base_text_add(&text, "record %s", t->args[i].record_type->name);
        }
        trace_say(1, "  arg %d %s: %s", i, arg->name, text.at);
        base_text_free(&text);
        if (arg->kind == ARG_RECORD)
            report_fields(fn, t, guarded, i);
    }
}

void trace_report_passes(const ir_pass_options *passes)
{
    for (int i = 0; i < passes->n_reports; i++) {
        const ir_pass_report *report = &passes->reports[i];
        trace_say(1, "  %-12s %9.2f ms, %d → %d ops%s%s", report->name, report->ms, report->nodes_before,
                  report->nodes_after, report->note && *report->note ? ": " : "", report->note ? report->note : "");
    }
}

/* -- the end ----------------------------------------------------------------------------------------------------------- */

void trace_report_function(rax_fn *fn)
{
    if (trace_verbose() < 1 || !fn->stats.calls)
        return;
    rax_fn_stats stats = rax_stats(fn);
    trace_say(1, "%s: %lld calls, %lld hits, %lld compilations, %lld traces (%.1f ms tracing, %.1f ms compiling)",
              fn->name, (long long)stats.calls, (long long)stats.hits, (long long)stats.compilations,
              (long long)stats.traces, stats.trace_ms, stats.compile_ms);
    if (stats.hits)
        trace_say(1, "%s: checking took %.1f us a call, %.3f%% of the time of cached calls", fn->name, stats.check_us,
                  100 * fn->checked_ms / MAX(fn->called_ms, 1e-9));
    for (int i = 0; i < fn->statics.n; i++)
        if (fn->statics.leaves[i].changes)
            trace_say(1, "%s: arg %d %s changed %lld times", fn->name, fn->statics.leaves[i].arg, fn->statics.leaves[i].name,
                      (long long)fn->statics.leaves[i].changes);
}
