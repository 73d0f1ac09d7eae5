/* The passes from the trace to the graph that is cut into kernels, and their runner.
 *
 * The runner calls a pass on the graph and then on each body within it, times it, counts nodes, keeps the pass's note, writes
 * NN-pass.rax, or prints it, where that is wanted, and has the verifier look, after the dump, so that what is wrong can be read. */
#include "ir/ir.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const struct { const char *name; ir_pass_function *pass; } passes[] = {
    { "dce",        ir_pass_dce        },  /* first: gradients that nobody asked for would count as users in simplify       */
    { "simplify",   ir_pass_simplify   },  /* gradient rules emit x*1, broadcast constants and transposes without care      */
    { "cse",        ir_pass_cse        },  /* after simplify: equal values look equal                                       */
    { "merge_loss", ir_pass_merge_loss },  /* after cse: its two losses have the same operands; before they are decomposed  */
    { "decompose",  ir_pass_decompose  },  /* after what knows composites by name                                           */
    { "simplify",   ir_pass_simplify   },  /* decompositions are written plainly, as gradient rules are                     */
    { "narrow",     ir_pass_narrow     },  /* after simplify: no cast is left that does nothing; before cse: it moves equals  */
    { "cse",        ir_pass_cse        },
    { "dce",        ir_pass_dce        },  /* last: fusion takes every user for a true one                                  */
};

/* False, with the thread's error, where the file cannot be written: the program goes on without it. */
static bool write_stage(const char *text, const char *dir, const char *stage)
{
    base_text path = {0};
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return base_fail(BASE_FAILURE, "%s: %s", dir, strerror(errno));
    base_text_add(&path, "%s/%s.rax", dir, stage);
    FILE *file = fopen(path.at, "w");
    bool good = file && fputs(text, file) >= 0;
    good = (!file || fclose(file) == 0) && good;
    if (!good)
        base_fail(BASE_FAILURE, "%s: %s", path.at, strerror(errno));
    base_text_free(&path);
    return good;
}

/* The graph as it is after `name`, wherever it is wanted. After a file that could not be written no other is tried. */
static void show_stage(const ir_graph *graph, const ir_pass_options *options, int number, const char *name, bool *dumps)
{
    char stage[64];
    if (!*dumps && !options->out)
        return;
    snprintf(stage, sizeof stage, "%02d-%s", number, name);
    char *text = ir_to_text(graph);
    if (options->out)
        fprintf(options->out, "; -- %s\n%s\n", stage, text);
    *dumps = *dumps && write_stage(text, options->dump_dir, stage);
    base_free(text);
}

static void run(ir_graph *graph, const char *name, ir_pass_function *pass, bool (*keep_composite)(const ir_node *), base_text *notes)
{
    ir_pass_context context = { .keep_composite = keep_composite };
    const char *before = graph->pass;
    graph->pass = name;
    pass(graph, &context);
    graph->pass = before;
    if (context.note.len)
        base_text_add(notes, "%s%s", notes->len ? "; " : "", context.note.at);
    base_text_free(&context.note);
    for (ir_node *n = graph->n_with_body ? graph->first : NULL; n; n = n->next)
        if (n->attr.body)
            run(n->attr.body, name, pass, keep_composite, notes);
}

static void verify(const ir_graph *graph, const char *after)
{
    base_text why = {0};
    CHECK(ir_verify(graph, &why), "graph %s after %s: %s", graph->name, after, why.at);
    base_text_free(&why);
}

void ir_run_passes(ir_graph *graph, ir_pass_options *options)
{
    options->n_reports = (int)COUNT_OF(passes);
    options->reports = base_alloc(sizeof *options->reports * COUNT_OF(passes));
    bool dumps = options->dump_dir != NULL;
    show_stage(graph, options, 0, "trace", &dumps);
    if (options->verify)
        verify(graph, "the trace");
    int n_nodes = ir_count_nodes(graph);
    for (int i = 0; i < options->n_reports; i++) {
        ir_pass_report *report = &options->reports[i];
        base_text notes = {0};
        report->name = passes[i].name;
        report->nodes_before = n_nodes;
        double start = base_now_ms();
        run(graph, passes[i].name, passes[i].pass, options->keep_composite, &notes);
        report->ms = base_now_ms() - start;
        report->nodes_after = n_nodes = ir_count_nodes(graph);
        report->note = base_text_take(&notes);
        show_stage(graph, options, i + 1, passes[i].name, &dumps);
        if (options->verify)
            verify(graph, passes[i].name);
    }
}

void ir_pass_reports_free(ir_pass_options *options)
{
    for (int i = 0; i < options->n_reports; i++)
        base_free(options->reports[i].note);
    base_free(options->reports);
    options->reports = NULL;
    options->n_reports = 0;
}
