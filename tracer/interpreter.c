/* The interpreter as a backend. Results are computed beside the parameters and copied at the end, so that a parameter
 * whose memory a result takes over is read as it was, and a run that fails has changed nothing. */
#include <string.h>

#include "tracer/tracer.h"

struct ir_executable {
    ir_program *program;
    int n_params, n_results;
    ir_array *params, *results;
    char *name;
};

/* Names of dims go with the graph. */
static ir_type without_names(const ir_type *type) { return ir_type_of(type->dtype, type->rank, type->dim); }

static ir_executable *interpreter_compile(ir_graph *graph, const ir_compile_options *options, ir_compile_report *report)
{
    ir_executable *it = base_alloc(sizeof *it);
    it->program = ir_prepare(graph);
    it->name = base_strdup(options->name);
    it->n_params = graph->n_params;
    it->n_results = graph->n_results;
    it->params = base_alloc(sizeof *it->params * (size_t)it->n_params);
    it->results = base_alloc(sizeof *it->results * (size_t)it->n_results);
    for (int i = 0; i < it->n_params; i++)
        it->params[i].type = without_names(&graph->params[i]->type);
    for (int i = 0; i < it->n_results; i++)
        it->results[i].type = without_names(&graph->results[i]->type);
    ir_report_line(report, 1, "  the interpreter runs %d ops one by one", ir_count_nodes(graph));
    return it;
}

static bool interpreter_run(ir_executable *it, void *const *params, void *const *results)
{
    bool whole = true;
    int64_t bytes = 0;
    for (int i = 0; i < it->n_params; i++)
        it->params[i].data = params[i];
    for (int i = 0; i < it->n_results; i++) {
        int64_t own = ir_type_bytes(&it->results[i].type);
        it->results[i].data = base_try_alloc((size_t)own);
        whole = it->results[i].data && whole;
        bytes += own;
    }
    if (!whole)
        rax_fail(RAX_FAILURE, "%s: out of memory: the results need %lld bytes", it->name, (long long)bytes);
    whole = whole && ir_run(it->program, it->params, it->results);
    for (int i = 0; i < it->n_results; i++) {
        if (whole)
            memcpy(results[i], it->results[i].data, (size_t)ir_type_bytes(&it->results[i].type));
        base_free(it->results[i].data);
    }
    return whole;
}

static void interpreter_free(ir_executable *it)
{
    ir_program_free(it->program);
    base_free(it->params);
    base_free(it->results);
    base_free(it->name);
    base_free(it);
}

/* It takes memory and gives it back as it goes. */
static size_t interpreter_arena_bytes(const ir_executable *it)
{
    (void)it;
    return 0;
}

const ir_backend trace_interpreter = { .name = "the interpreter", .compile = interpreter_compile, .run = interpreter_run,
                                       .free = interpreter_free, .arena_bytes = interpreter_arena_bytes };
