/* What the device can do, measured by small programs that this backend compiles like any other: a square product by cuBLASLt in f32 and in
 * bf16, a sum over rows, and an update in place. Each is made larger until it takes long enough to be measured, and no cache holds it. Operands are
 * noise: what a card gives depends on what it is given. */
#include "backend_cuda/backend.h"

#include <stdio.h>
#include <string.h>

enum { TURNS = 5, LARGEST_PRODUCT = 16384 };
static const double product_ms = 1, memory_ms = 0.15;
static const size_t largest_bytes = (size_t)1 << 30;

typedef struct { cuda_device *device; cuda_event begin, end; } stopwatch;

/* A program, and memory for its parameters and its one result; in place: the result lies where parameter 0 does. */
enum { MOST_PARAMS = 2 };
typedef struct { ir_executable *program; int n_params; bool in_place; void *param[MOST_PARAMS], *result[1]; } peak_program;

bool cuda_fill_with_noise(cuda_device *device, ir_dtype dtype, void *memory, size_t bytes)
{
    enum { PART = 1 << 19 };
    char *part = base_alloc(PART);
    uint32_t state = 1;
    for (size_t i = 0; i < PART / (size_t)ir_dtype_bytes(dtype); i++) {
        state = state * 1664525u + 1013904223u;
        float x = (float)(state >> 8) / 8388608 - 1;
        if (dtype == IR_BF16)
            ((uint16_t *)(void *)part)[i] = ir_f32_to_bf16(x);
        else if (dtype == IR_F64)
            ((double *)(void *)part)[i] = x;
        else
            ((float *)(void *)part)[i] = x;
    }
    bool filled = true;
    for (size_t done = 0; filled && done < bytes; done += PART)
        filled = cuda_upload(device, (char *)memory + done, part, MIN(bytes - done, (size_t)PART));
    base_free(part);
    return filled;
}

static void peak_close(const stopwatch *w, peak_program *p)
{
    for (int i = 0; i < p->n_params; i++)
        cuda_memory_free(w->device, p->param[i]);
    if (!p->in_place)
        cuda_memory_free(w->device, p->result[0]);
    cuda_backend.free(p->program);
}

static bool peak_open(const stopwatch *w, peak_program *p, const char *text, bool in_place)
{
    ir_graph *graph = ir_parse("peak", text, strlen(text));
    ir_compile_report report = {0};
    CHECK(graph, "expected a program: %s: %s", text, base_error());
    *p = (peak_program){ .n_params = graph->n_params, .in_place = in_place };
    bool made = true;
    for (int i = 0; made && i < p->n_params; i++)
        made = (p->param[i] = cuda_memory_new(w->device, (size_t)ir_type_bytes(&graph->params[i]->type))) != NULL &&
               cuda_fill_with_noise(w->device, graph->params[i]->type.dtype, p->param[i], (size_t)ir_type_bytes(&graph->params[i]->type));
    p->result[0] = !made ? NULL : in_place ? p->param[0] : cuda_memory_new(w->device, (size_t)ir_type_bytes(&graph->results[0]->type));
    made = made && p->result[0] && (p->program = cuda_backend.compile(graph, &(ir_compile_options){ .name = "peak" }, &report)) != NULL;
    ir_graph_free(graph);
    base_text_free(&report.lines);
    return made;
}

/* The shortest of a few runs. */
static bool peak_time(const stopwatch *w, peak_program *p, double *best)
{
    const cuda_library *l = cuda_device_library(w->device);
    cuda_stream stream = cuda_device_stream(w->device);
    for (int i = 0; i <= TURNS; i++) {                    /* the first one captures */
        float ms = 0;
        if (!cuda_ok(w->device, l->event_record(w->begin, stream), "cuEventRecord") || !cuda_backend.run(p->program, p->param, p->result) ||
            !cuda_ok(w->device, l->event_record(w->end, stream), "cuEventRecord") || !cuda_ok(w->device, l->event_wait(w->end), "cuEventSynchronize") ||
            !cuda_ok(w->device, l->event_elapsed(&ms, w->begin, w->end), "cuEventElapsedTime"))
            return false;
        if (i == 1 || (i > 1 && (double)ms < *best))
            *best = (double)ms;
    }
    return true;
}

static bool time_text(const stopwatch *w, const char *text, bool in_place, double *ms)
{
    peak_program p;
    bool timed = peak_open(w, &p, text, in_place) && peak_time(w, &p, ms);
    peak_close(w, &p);
    return timed;
}

/* -- what is measured ---------------------------------------------------------------------------------------------------------- */

static bool product_peak(const stopwatch *w, const char *dtype, double *gflops)
{
    double ms = 0;
    for (int64_t n = 256; n <= LARGEST_PRODUCT && ms < product_ms; n *= 4) {
        size_t bytes = (size_t)(n * n) * (dtype[0] == 'b' ? 8 : 12);
        if (n > 256 && bytes > cuda_memory_available(w->device) / 2)
            break;
        char text[160];
        snprintf(text, sizeof text, "graph peak(%%0: %s[%lld,%lld], %%1: %s[%lld,%lld]) { %%2: f32[%lld,%lld] = matmul %%0, %%1 return %%2 }", dtype, (long long)n, (long long)n,
                 dtype, (long long)n, (long long)n, (long long)n, (long long)n);
        if (!time_text(w, text, false, &ms))
            return false;
        *gflops = 2.0 * (double)n * (double)n * (double)n / MAX(ms, 1e-6) * 1e-6;
    }
    return true;
}

/* Rows of 4096. traffic: bytes read and written a byte of memory. */
static bool memory_peak(const stopwatch *w, bool in_place, double traffic, double *gbs)
{
    double ms = 0;
    for (size_t bytes = 1 << 22; bytes <= largest_bytes && ms < memory_ms; bytes *= 4) {
        long long rows = (long long)(bytes / 4 / 4096);
        if (bytes > cuda_memory_available(w->device) / 2)
            break;
        char text[160];
        if (in_place)
            snprintf(text, sizeof text, "graph peak(%%0: f32[%lld,4096]) { %%1: f32[%lld,4096] = add %%0, %%0 return %%1 -> %%0 }", rows, rows);
        else
            snprintf(text, sizeof text, "graph peak(%%0: f32[%lld,4096]) { %%1: f32[%lld] = reduce_sum %%0 {axes=[1]} return %%1 }", rows, rows);
        if (!time_text(w, text, in_place, &ms))
            return false;
        *gbs = traffic * (double)bytes / MAX(ms, 1e-6) * 1e-6;
    }
    return true;
}

bool cuda_measure_peak(cuda_device *device, ir_peak *peak)
{
    const cuda_library *l = cuda_device_library(device);
    stopwatch w = { .device = device };
    *peak = (ir_peak){ .device = cuda_device_machine(device)->name, .threads = 1 };
    bool measured = cuda_ok(device, l->event_new(&w.begin, CUDA_EVENT_TIMING), "cuEventCreate") && cuda_ok(device, l->event_new(&w.end, CUDA_EVENT_TIMING), "cuEventCreate") &&
                    product_peak(&w, "f32", &peak->f32_gflops) && product_peak(&w, "bf16", &peak->bf16_gflops) && memory_peak(&w, false, 1, &peak->read_gbs) &&
                    memory_peak(&w, true, 2, &peak->update_gbs);
    if (w.begin)
        l->event_free(w.begin);
    if (w.end)
        l->event_free(w.end);
    return measured;
}
