/* A graph as text, through every stage: the graph after each pass, the kernel list, the memory plan. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ir/kernels.h"
#include "tracer/tracer.h"

enum { MAX_TEXT_BYTES = 256 << 20 };

/* The file's bytes; NULL and an error. */
static char *read_whole(const char *path, size_t *len)
{
    int handle = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);      /* O_NONBLOCK: a pipe is refused below, not waited for */
    struct stat found;
    base_text text = {0};
    char part[1 << 16];
    ssize_t n = 0;
    bool good = false;

    if (handle < 0 || fstat(handle, &found) != 0)
        rax_fail(errno == ENOENT || errno == EACCES ? RAX_MISTAKE : RAX_FAILURE, "%s: cannot be read: %s", path, strerror(errno));
    else if (!S_ISREG(found.st_mode))
        rax_fail(RAX_MISTAKE, "%s: is not a file", path);
    else if (found.st_size > MAX_TEXT_BYTES)
        rax_fail(RAX_MISTAKE, "%s: over %d MB are no graph", path, MAX_TEXT_BYTES >> 20);
    else {
        while ((n = read(handle, part, sizeof part)) > 0)
            base_text_bytes(&text, part, (size_t)n);
        good = n == 0 || rax_fail(RAX_FAILURE, "%s: cannot be read: %s", path, strerror(errno));
    }
    if (handle >= 0)
        close(handle);
    *len = text.len;
    if (good)
        return base_text_take(&text);
    base_text_free(&text);
    return NULL;
}

/* Prints the graph after each pass, and leaves it there in a folder too, unless that is NULL. */
static void run_passes(ir_graph *graph, const ir_backend *backend, const char *folder, FILE *out)
{
    ir_pass_options passes = { .verify = true, .dump_dir = folder, .out = out, .keep_composite = backend->keep_composite };
    ir_run_passes(graph, &passes);
    for (int i = 0; i < passes.n_reports; i++)
        fprintf(out, "; %-12s %4d → %4d ops  %s\n", passes.reports[i].name, passes.reports[i].nodes_before,
                passes.reports[i].nodes_after, passes.reports[i].note);
    ir_pass_reports_free(&passes);
}

/* The list before the backend legalises it, and where it lies in memory. */
static void print_kernels(const ir_graph *graph, FILE *out)
{
    base_text text = {0};
    kl_program *kernels = kl_lower(graph);
    kl_plan_memory(kernels, true);
    base_text_add(&text, "; -- kernels\n");
    kl_print(&text, kernels);
    base_text_add(&text, "\n; -- memory\n");
    kl_print_memory(&text, kernels);
    fputs(text.at, out);
    base_text_free(&text);
    kl_program_free(kernels);
}

/* The code, too, beside the graphs: all in one folder, as of a step that was traced. Changes the graph. */
static bool dump_code(ir_graph *graph, const ir_backend *backend, const char *folder)
{
    ir_compile_report report = {0};
    ir_executable *compiled = backend->compile(graph, &(ir_compile_options){ .name = graph->name, .dump_dir = folder, .verify = true }, &report);
    if (compiled)
        backend->free(compiled);
    base_text_free(&report.lines);
    return compiled != NULL;
}

bool rax_compile_text(const char *path, FILE *out)
{
    const ir_backend *backend = trace_backend();
    size_t len;
    char *text = backend ? read_whole(path, &len) : NULL;
    if (!text)
        return false;
    ir_graph *graph = ir_parse(path, text, len);
    base_free(text);
    if (!graph)
        return false;
    char *folder = trace_dump_folder(graph->name, 1);
    run_passes(graph, backend, folder, out);
    print_kernels(graph, out);
    bool good = !folder || dump_code(graph, backend, folder);
    base_free(folder);
    ir_graph_free(graph);
    return good;
}
