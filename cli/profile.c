/* A profile for people, and as a trace that Perfetto and chrome://tracing open. */
#include "cli/profile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* -- equal kernels together ------------------------------------------------------------------------------------------- */

/* Kernels that differ in nothing but their buffers: one in each of twelve layers, say. What one run costs tells apart those of one
 * name that compute different things, gelu and its gradient behind a product. */
typedef struct { const rax_kernel_profile *kernel; int64_t runs; double busy_ms, idle_ms, gflop, mb; } group;

static bool alike(const rax_kernel_profile *a, const rax_kernel_profile *b)
{
    bool same_place = a->place.line == b->place.line && (a->place.file == b->place.file ||
                      (a->place.file && b->place.file && strcmp(a->place.file, b->place.file) == 0));
    bool same_cost = a->gflop * (double)b->runs == b->gflop * (double)a->runs && a->mb * (double)b->runs == b->mb * (double)a->runs;
    return same_place && same_cost && a->dtype == b->dtype && strcmp(a->name, b->name) == 0 && strcmp(a->shape, b->shape) == 0 && strcmp(a->how, b->how) == 0;
}

static void add_to(group *g, const rax_kernel_profile *k)
{
    g->runs += k->runs;
    g->busy_ms += k->busy_ms;
    g->idle_ms += k->idle_ms;
    g->gflop += k->gflop;
    g->mb += k->mb;
}

#define MAX(a, b) ((a) > (b) ? (a) : (b))

static int by_time(const void *a, const void *b)
{
    const group *x = a, *y = b;
    double s = x->busy_ms + x->idle_ms, t = y->busy_ms + y->idle_ms;
    return (s < t) - (s > t);
}

static group *grouped(const rax_profile *p, int *n)
{
    group *groups = rax_alloc(sizeof *groups * (size_t)(p->n_kernels + 1));
    *n = 0;
    for (int i = 0; i < p->n_kernels; i++) {
        const rax_kernel_profile *k = &p->kernels[i];
        int at = 0;
        if (k->runs == 0)
            continue;
        while (at < *n && !alike(groups[at].kernel, k))
            at++;
        if (at == *n)
            groups[(*n)++] = (group){ .kernel = k };
        add_to(&groups[at], k);
    }
    qsort(groups, (size_t)*n, sizeof *groups, by_time);
    return groups;
}

/* -- the table ---------------------------------------------------------------------------------------------------------- */

static const char *file_of(const char *path)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    return slash ? slash + 1 : path;
}

/* The share that a group has of what bounds it, arithmetic or memory: the greater one, and a letter. What a cache gives may be more than
 * memory has. */
static void print_bound(char text[16], const rax_peak *peak, const group *g, double ms)
{
    double gflops = g->kernel->dtype == RAX_BF16 ? peak->bf16_gflops : peak->f32_gflops;
    double arithmetic = g->gflop / ms * 1e3 / gflops, memory = g->mb / ms / MAX(peak->read_gbs, peak->update_gbs);
    snprintf(text, 16, "%.1f%c", 100 * MAX(arithmetic, memory), arithmetic >= memory ? 'a' : 'm');
}

/* What a row has in common: times are of one run of the program, as if all threads had shared them. */
static void print_row(FILE *out, const rax_profile *p, const rax_peak *peak, const group *g)
{
    double threads_ms = g->busy_ms + g->idle_ms, ms = threads_ms / p->threads, runs = (double)p->runs;
    const rax_kernel_profile *k = g->kernel;
    char place[64] = "", bound[16];
    if (k->place.file)
        snprintf(place, sizeof place, "%s:%d", file_of(k->place.file), k->place.line);
    print_bound(bound, peak, g, ms);
    fprintf(out, "%6.2f %9.3f %6.1f %7.4g %9.1f %7.1f %7s  %-22s %s%s%s%s%s%s\n", 100 * ms / p->wall_ms, ms / runs, 100 * g->idle_ms / threads_ms,
            (double)g->runs / runs, g->gflop / ms * 1e3, g->mb / ms, bound, place, k->name, *k->shape ? " " : "", k->shape,
            k->dtype == RAX_BF16 ? " bf16" : "", *k->how ? ", " : "", k->how);
}

void cli_print_profile(FILE *out, const rax_profile *p, const rax_peak *peak)
{
    int n;
    group *groups = grouped(p, &n);
    double busy = 0, idle = 0, all = p->wall_ms * p->threads;
    for (int i = 0; i < n; i++) {
        busy += groups[i].busy_ms;
        idle += groups[i].idle_ms;
    }
    double rest = all > busy + idle ? all - busy - idle : 0;         /* the last stage ends without a barrier, maybe on another thread */
    fprintf(out, "\n%s: %lld run%s, %.3f ms each on ", p->function, (long long)p->runs, p->runs == 1 ? "" : "s", p->wall_ms / (double)p->runs);
    if (p->device)
        fprintf(out, "%s, from the first launch to the last\n", p->device);
    else
        fprintf(out, "%d thread%s: %.1f%% computing, %.1f%% waiting for other threads, %.1f%% starting and ending\n", p->threads, p->threads == 1 ? "" : "s",
                100 * busy / all, 100 * idle / all, 100 * rest / all);
    fprintf(out, "%6s %9s %6s %7s %9s %7s %7s  %-22s %s\n", "share%", "ms", "wait%", "kernels", "GFLOP/s", "GB/s", "bound%", "place", "kernel");
    for (int i = 0; i < n; i++)
        print_row(out, p, peak, &groups[i]);
    rax_free(groups);
}

/* -- the trace ------------------------------------------------------------------------------------------------------------- */

/* The text is kept until the end: a run that fails leaves an older trace as it was. */
struct cli_trace { FILE *file; const char *path; char *text; size_t bytes; int handle, threads; bool first; };

cli_trace *cli_trace_new(const char *path)
{
    int handle = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);       /* O_NONBLOCK: a pipe's reader is not waited for */
    if (handle < 0) {
        rax_fail(RAX_FAILURE, "%s: cannot be written: %s", path, errno == ENXIO ? "nobody reads from it" : strerror(errno));
        return NULL;
    }
    fcntl(handle, F_SETFL, fcntl(handle, F_GETFL) & ~O_NONBLOCK);                     /* but that of one who reads slowly is */
    cli_trace *trace = rax_alloc(sizeof *trace);
    *trace = (cli_trace){ .path = path, .handle = handle, .first = true };
    trace->file = open_memstream(&trace->text, &trace->bytes);
    fprintf(trace->file, "[");
    return trace;
}

static void begin_event(cli_trace *t)
{
    fprintf(t->file, "%s\n", t->first ? "" : ",");
    t->first = false;
}

static void write_text(FILE *file, const char *text)
{
    fputc('"', file);
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            fprintf(file, "\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            fprintf(file, "\\u%04x", *text);
        else
            fputc(*text, file);
    fputc('"', file);
}

static void write_kernel(FILE *file, const rax_profile *p, const rax_kernel_profile *k)
{
    fprintf(file, ", \"cat\": ");
    write_text(file, p->function);
    fprintf(file, ", \"args\": {\"shape\": ");
    write_text(file, k->shape);
    fprintf(file, ", \"how\": ");
    write_text(file, k->how);
    if (k->place.file) {
        char line[24];
        snprintf(line, sizeof line, "%d", k->place.line);
        fprintf(file, ", \"line\": %s, \"file\": ", line);
        write_text(file, k->place.file);
    }
    fprintf(file, "}");
}

void cli_trace_add(cli_trace *t, const rax_profile *p)
{
    for (; t->threads < p->threads; t->threads++) {
        begin_event(t);
        fprintf(t->file, "{\"ph\": \"M\", \"pid\": 1, \"tid\": %d, \"name\": \"thread_name\", \"args\": {\"name\": \"%s %d\"}}",
                t->threads, p->device ? "device" : "thread", t->threads);
    }
    for (int i = 0; i < p->n_events; i++) {
        const rax_profile_event *e = &p->events[i];
        begin_event(t);
        fprintf(t->file, "{\"ph\": \"X\", \"pid\": 1, \"tid\": %d, \"ts\": %.3f, \"dur\": %.3f, \"name\": ", e->thread, e->begin_us, e->end_us - e->begin_us);
        write_text(t->file, e->kernel < 0 ? "waiting" : p->kernels[e->kernel].name);
        if (e->kernel >= 0)
            write_kernel(t->file, p, &p->kernels[e->kernel]);
        fprintf(t->file, "}");
    }
}

/* A device or pipe has no length to cut. */
static bool write_trace(const cli_trace *t)
{
    if (ftruncate(t->handle, 0) != 0 && errno != EINVAL)
        return false;
    for (size_t at = 0; at < t->bytes;) {
        ssize_t put = write(t->handle, t->text + at, t->bytes - at);
        if (put < 0 && errno != EINTR)
            return false;
        at += put > 0 ? (size_t)put : 0;
    }
    return true;
}

bool cli_trace_end(cli_trace *t, bool keep)
{
    struct stat found;
    fprintf(t->file, "\n]\n");
    fclose(t->file);
    bool written = !keep || write_trace(t) || rax_fail(RAX_FAILURE, "%s: cannot be written: %s", t->path, strerror(errno));
    if (!keep && fstat(t->handle, &found) == 0 && S_ISREG(found.st_mode) && found.st_size == 0)
        unlink(t->path);                             /* made for nothing */
    close(t->handle);
    free(t->text);
    rax_free(t);
    return written;
}
