/* What the tests of kernel lists share: a graph is lowered, and its list, with and without fused epilogues, verified, printed, parsed,
 * planned, run, and held against the interpreter. A failure prints the graph and the kernels. */
#ifndef TESTS_KERNEL_LISTS_H
#define TESTS_KERNEL_LISTS_H

#include "tests/graphs.h"

#include "ir/kernels.h"

/* -- one graph ---------------------------------------------------------------------------------------------------------- */

static bool keep_attention(const ir_node *node) { return node->op == OP_attention || node->op == OP_attention_vjp; }

/* What is checked now, for a failure's sake. */
static const ir_graph *current;
static const char *current_name = "";
MAYBE_UNUSED static const char *current_text(void)
{
    base_text text = {0};
    base_text_add(&text, "%s\n", current_name);
    if (current)
        ir_print(&text, current);
    return base_text_take(&text);
}

/* What the case before made is freed: one graph at a time. */
MAYBE_UNUSED static void forget(void)
{
    while (made.n > 0)
        base_free(made.block[--made.n]);
    while (made.n_graphs > 0)
        ir_graph_free(made.graph[--made.n_graphs]);
    current = NULL;
}

typedef struct { bool keep_attention; bool whole; double tolerance; double lo, hi; uint64_t seed; } settings;

static char *kernels_text(const kl_program *program)
{
    base_text text = {0};
    kl_print(&text, program);
    char *copy = text_of("%s", text.at);
    base_text_free(&text);
    return copy;
}

static kl_program *lowered(const ir_graph *graph, bool attention)
{
    ir_graph *copy = ir_graph_clone(graph);
    ir_pass_options options = { .verify = true, .keep_composite = attention ? keep_attention : NULL };
    ir_run_passes(copy, &options);
    ir_pass_reports_free(&options);
    kl_program *program = kl_lower(copy);
    ir_graph_free(copy);
    return program;
}

static double tolerance_of(ir_dtype dtype, double tolerance)
{
    switch (dtype) {
    case IR_F64:   return 1e-9;
    case IR_F32:   return tolerance;
    case IR_BF16:  return 0.03;
    case IR_I32:
    case IR_BOOL:
    case IR_TUPLE: break;
    }
    return 0;
}

static void fail_with(const ir_graph *graph, const kl_program *program, const char *format, ...) PRINTF_LIKE(3, 4);
static void fail_with(const ir_graph *graph, const kl_program *program, const char *format, ...)
{
    base_text text = {0};
    va_list args;
    va_start(args, format);
    base_text_addv(&text, format, args);
    va_end(args);
    base_text_add(&text, " %s\n", current_name);
    ir_print(&text, graph);
    if (program)
        kl_print(&text, program);
    fprintf(stderr, "%s", text.at);                       /* more than cmocka's messages hold */
    base_text_free(&text);
    fail_msg("the kernel list of %s is wrong", graph->name);
}

static void compare(const ir_graph *graph, const kl_program *program, int result, const ir_array *got, const ir_array *expected, double tolerance)
{
    double most = 1;
    for (int64_t i = 0, n = ir_type_count(&expected->type); i < n; i++)
        if (isfinite(get(expected, i)))
            most = fmax(most, fabs(get(expected, i)));
    for (int64_t i = 0, n = ir_type_count(&expected->type); i < n; i++) {
        double a = get(got, i), b = get(expected, i);
        if (!is_near(a, b, tolerance * most))
            fail_with(graph, program, "result %d, element %lld: expected %.9g, got %.9g, tolerance %.3g", result, (long long)i, b, a, tolerance);
    }
    if (!guards_hold(got->data, (size_t)ir_type_bytes(&got->type)))
        fail_with(graph, program, "result %d: written outside of its memory", result);
}

static void run_and_compare(const ir_graph *graph, const kl_program *program, const ir_array *params, const ir_array *expected, double tolerance)
{
    void **param = room(sizeof *param * (size_t)graph->n_params), **result = room(sizeof *result * (size_t)graph->n_results);
    ir_array *copies = room(sizeof *copies * (size_t)graph->n_params), *results = room(sizeof *results * (size_t)graph->n_results);
    bool *donated = room(sizeof *donated * (size_t)graph->n_params);
    for (int i = 0; i < graph->n_params; i++) {
        copies[i] = guarded_copy(&params[i]);
        param[i] = copies[i].data;
    }
    for (int i = 0; i < graph->n_results; i++) {
        if (graph->donated[i] >= 0) {
            donated[graph->donated[i]] = true;
            results[i] = copies[graph->donated[i]];
        } else {
            results[i] = guarded_copy(&expected[i]);
            memset(results[i].data, 0xff, (size_t)ir_type_bytes(&expected[i].type));
        }
        result[i] = results[i].data;
    }
    if (!kl_run(program, param, result))
        fail_with(graph, program, "%s", base_error());
    for (int i = 0; i < graph->n_results; i++)
        compare(graph, program, i, &results[i], &expected[i], tolerance_of(expected[i].type.dtype, tolerance));
    for (int i = 0; i < graph->n_params; i++) {
        size_t bytes = (size_t)ir_type_bytes(&params[i].type);
        if (!guards_hold(copies[i].data, bytes) || (!donated[i] && memcmp(copies[i].data, params[i].data, bytes)))
            fail_with(graph, program, "parameter %d: was written", i);
    }
}

static void check_text(const ir_graph *graph, const kl_program *program)
{
    char *text = kernels_text(program);
    kl_program *again = kl_parse("printed", text, strlen(text));
    if (!again)
        fail_with(graph, program, "%s", base_error());
    char *second = kernels_text(again);
    kl_program_free(again);
    if (strcmp(text, second))
        fail_with(graph, program, "the kernel list is another one after printing and parsing:\n%s\n", second);
}

static ir_array *values_for(const ir_graph *graph, const settings *s)
{
    dice d = { s->seed + 1 };
    ir_array *params = arrays_for_params(graph);
    for (int i = 0; i < graph->n_params; i++) {
        bool number = ir_dtype_is_float(params[i].type.dtype);
        double lo = s->lo, hi = s->lo == s->hi ? 1 : s->hi;
        if (!number)
            lo = params[i].type.dtype == IR_BOOL ? 0 : -1, hi = params[i].type.dtype == IR_BOOL ? 2 : 6;
        else if (s->lo == s->hi)
            lo = -1;
        for (int64_t j = 0, n = ir_type_count(&params[i].type); j < n; j++) {
            double value = lo + (hi - lo) * roll(&d);
            put(&params[i], j, number && !s->whole ? value : floor(value));
        }
    }
    return params;
}

/* As a backend does that takes any epilogue. */
static void fuse(kl_program *program)
{
    kl_fuse_epilogues(program);
    kl_store_derived(program);
    kl_fold_casts(program);
}

MAYBE_UNUSED static void check_kernels(ir_graph *graph, settings s)
{
    if (s.tolerance == 0)
        s.tolerance = 2e-5;
    current = graph;
    ir_array *params = values_for(graph, &s), *expected = run_graph(graph, params);
    base_text why = {0};
    for (int variant = 0; variant < 8; variant++) {      /* memory reused or not; loops of one form together; epilogues fused */
        bool reuse = variant & 1, listed = variant & 2, fused = variant & 4;
        kl_program *program = lowered(graph, s.keep_attention);
        if (fused)
            fuse(program);
        if (listed)
            kl_list_loops(program, 0);
        if (!kl_verify(program, &why))
            fail_with(graph, program, "%s", why.at);
        kl_plan_memory(program, reuse);
        if (!kl_verify(program, &why))
            fail_with(graph, program, "%s", why.at);
        check_text(graph, program);
        run_and_compare(graph, program, params, expected, s.tolerance);
        kl_program_free(program);
    }
}

#endif
