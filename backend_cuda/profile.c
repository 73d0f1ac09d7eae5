/* Where a run's time goes: events that are part of the graph, one behind each launch.
 *
 *     e0 [launch 0] e1 [launch 1] e2 ...       launch i took e(i+1) - e(i), the gap before it included
 *
 * A run records them anew, so that it is waited for and added up before the next: a profile costs that, and a microsecond or two an event. The first
 * run counts only while there has been no other. */
#include "backend_cuda/backend.h"

#include <time.h>

typedef struct { cuda_event event; int kernel; bool first; } mark;        /* first: of the kernel's launches */

struct cuda_profile {
    cuda_device *device;
    bool captured;                           /* the events of the run in progress are part of a graph */
    int n, cap, n_kernels;
    mark *marks;
    double *busy_ns;                         /* by kernel id */
    int64_t *kernel_runs;
    int64_t runs;
    double wall_ns;
    int traced_runs, n_events, cap_events;
    ir_event *events;
};

cuda_profile *cuda_profile_new(cuda_device *device, int n_kernels, int traced_runs)
{
    cuda_profile *p = base_alloc(sizeof *p);
    *p = (cuda_profile){ .device = device, .n_kernels = n_kernels, .traced_runs = traced_runs };
    p->busy_ns = base_alloc(sizeof *p->busy_ns * (size_t)MAX(n_kernels, 1));
    p->kernel_runs = base_alloc(sizeof *p->kernel_runs * (size_t)MAX(n_kernels, 1));
    return p;
}

void cuda_profile_free(cuda_profile *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->cap; i++)
        if (p->marks[i].event)
            cuda_device_library(p->device)->event_free(p->marks[i].event);
    base_free(p->marks);
    base_free(p->busy_ns);
    base_free(p->kernel_runs);
    base_free(p->events);
    base_free(p);
}

/* -- noting ------------------------------------------------------------------------------------------------------------------ */

bool cuda_profile_mark(cuda_profile *p, int kernel, bool first)
{
    const cuda_library *l = cuda_device_library(p->device);
    if (p->n == p->cap) {
        int cap = MAX(256, 2 * p->cap);
        p->marks = base_realloc(p->marks, sizeof(mark) * (size_t)p->cap, sizeof(mark) * (size_t)cap);
        p->cap = cap;
    }
    mark *m = &p->marks[p->n++];
    m->kernel = kernel;
    m->first = first;
    return (m->event || cuda_ok(p->device, l->event_new(&m->event, CUDA_EVENT_TIMING), "cuEventCreate")) &&
           (p->captured ? cuda_ok(p->device, l->event_record_in_graph(m->event, cuda_device_stream(p->device), CUDA_EVENT_EXTERNAL), "cuEventRecordWithFlags")
                        : cuda_ok(p->device, l->event_record(m->event, cuda_device_stream(p->device)), "cuEventRecord"));
}

bool cuda_profile_begin(cuda_profile *p, bool captured)
{
    p->n = 0;
    p->captured = captured;
    return cuda_profile_mark(p, -1, false);
}

static void forget(cuda_profile *p)
{
    for (int i = 0; i < p->n_kernels; i++)
        p->busy_ns[i] = 0, p->kernel_runs[i] = 0;
    p->wall_ns = 0;
    p->n_events = 0;
}

static void add_event(cuda_profile *p, ir_event event)
{
    if (p->n_events == p->cap_events) {
        int cap = MAX(1024, 2 * p->cap_events);
        p->events = base_realloc(p->events, sizeof(ir_event) * (size_t)p->cap_events, sizeof(ir_event) * (size_t)cap);
        p->cap_events = cap;
    }
    p->events[p->n_events++] = event;
}

bool cuda_profile_add_run(cuda_profile *p)
{
    const cuda_library *l = cuda_device_library(p->device);
    struct timespec t;
    float ms = 0, all = 0;
    if (!cuda_wait(p->device) ||
        !cuda_ok(p->device, l->event_elapsed(&all, p->marks[0].event, p->marks[p->n - 1].event), "cuEventElapsedTime"))
        return false;
    clock_gettime(CLOCK_MONOTONIC, &t);
    if (p->runs == 1)
        forget(p);
    double at = (double)t.tv_sec * 1e9 + (double)t.tv_nsec - (double)all * 1e6;
    bool traced = p->traced_runs > 0 && p->runs <= p->traced_runs;
    for (int i = 1; i < p->n; i++) {
        const mark *m = &p->marks[i];
        if (!cuda_ok(p->device, l->event_elapsed(&ms, p->marks[i - 1].event, m->event), "cuEventElapsedTime"))
            return false;
        p->busy_ns[m->kernel] += (double)ms * 1e6;
        p->kernel_runs[m->kernel] += m->first;
        if (traced)
            add_event(p, (ir_event){ m->kernel, 0, (int64_t)at, (int64_t)(at + (double)ms * 1e6) });
        at += (double)ms * 1e6;
    }
    p->wall_ns += (double)all * 1e6;
    p->runs++;
    return true;
}

/* -- reading ----------------------------------------------------------------------------------------------------------------- */

void cuda_profile_read(const cuda_profile *p, ir_profile *profile)
{
    for (int i = 0; i < p->n_kernels; i++) {
        profile->kernels[i].busy_ns = p->busy_ns[i];
        profile->kernels[i].runs = p->kernel_runs[i];
    }
    profile->device = cuda_device_machine(p->device)->name;
    profile->threads = 1;
    profile->runs = p->runs > 1 ? p->runs - 1 : p->runs;
    profile->wall_ns = p->wall_ns;
    profile->n_events = p->n_events;
    profile->events = p->events;
}
