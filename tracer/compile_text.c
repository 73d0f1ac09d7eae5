/* A graph as text, through every stage: the graph after each pass, the kernel list, the memory plan. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
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

/* The runner of the passes writes the graph after each into a folder (ir/passes.c); this prints that folder in order. */
static bool print_stages(const char *folder, FILE *out)
{
    struct dirent **entries;
    int n = scandir(folder, &entries, NULL, alphasort);
    bool good = true;
    for (int i = 0; i < n; i++) {
        base_text path = {0};
        base_text_add(&path, "%s/%s", folder, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.') {
            size_t len;
            char *text = good ? read_whole(path.at, &len) : NULL;
            char *end = strstr(entries[i]->d_name, ".rax");
            good = text != NULL;
            if (good)
                fprintf(out, "; -- %.*s\n%s\n", end ? (int)(end - entries[i]->d_name) : 64, entries[i]->d_name, text);
            base_free(text);
            unlink(path.at);
        }
        base_text_free(&path);
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
    return good && n > 0;
}

static bool run_passes(ir_graph *graph, const ir_backend *backend, FILE *out)
{
    const char *temporary = getenv("TMPDIR");
    base_text folder = {0};
    base_text_add(&folder, "%s/rax-XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(folder.at)) {
        rax_fail(RAX_FAILURE, "%s: %s", folder.at, strerror(errno));
        base_text_free(&folder);
        return false;
    }
    ir_pass_options passes = { .verify = true, .dump_dir = folder.at, .keep_composite = backend->keep_composite };
    ir_run_passes(graph, &passes);
    bool good = print_stages(folder.at, out);
    for (int i = 0; i < passes.n_reports; i++)
        fprintf(out, "; %-12s %4d → %4d ops  %s\n", passes.reports[i].name, passes.reports[i].nodes_before,
                passes.reports[i].nodes_after, passes.reports[i].note);
    ir_pass_reports_free(&passes);
    rmdir(folder.at);
    base_text_free(&folder);
    return good;
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

/* The code, too, where --dump_ir wants it: all in one folder, as of a step that was traced. */
static bool dump(const ir_graph *graph, const ir_backend *backend)
{
    char *folder = trace_dump_folder(graph->name, 1);
    if (!folder)
        return true;
    ir_graph *copy = ir_graph_clone(graph);
    ir_pass_options passes = { .verify = true, .dump_dir = folder, .keep_composite = backend->keep_composite };
    ir_run_passes(copy, &passes);
    ir_pass_reports_free(&passes);
    ir_compile_report report = {0};
    ir_executable *compiled = backend->compile(copy, &(ir_compile_options){ .name = graph->name, .dump_dir = folder, .verify = true }, &report);
    if (compiled)
        backend->free(compiled);
    base_text_free(&report.lines);
    ir_graph_free(copy);
    base_free(folder);
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
    bool good = dump(graph, backend) && run_passes(graph, backend, out);
    if (good)
        print_kernels(graph, out);
    ir_graph_free(graph);
    return good;
}
