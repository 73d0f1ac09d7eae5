/* The device: its context, memory, and copies.
 *
 * Runs are on one stream. What the host writes goes through a ring of pinned slots, so that the caller's memory is free at once, and on a
 * stream of its own, so that the next batch arrives while a run goes on. Two waits keep the order, both on the device: a copy waits for the
 * last run that was given the memory it writes, and whatever is started after it waits for the copy.
 *
 *     runs     [ step 1: x0 ......... ][ step 2: x1 ......... ][ step 3: x0 ...
 *     copies   [ x1 ]                   [ x0 ] waited for step 1
 *
 * So the end of the stream of runs is behind everything. What a run leaves in a few bytes (a loss) is copied to pinned memory right behind it:
 * it is read later without waiting for runs that were started since. */
#include "backend_cuda/backend.h"

#include <stdio.h>
#include <string.h>

enum { SLOTS = 16, SLOT_BYTES = 1 << 20, EARLY = 64, RUNS = 8 };

typedef struct { char *memory; cuda_event event; bool used; } slot;
typedef struct { const void *from; size_t bytes; int64_t run; } early;
typedef struct { int64_t number; cuda_event event; int n, cap; void **addresses; } run;

struct cuda_device {
    const cuda_library *library;
    cuda_machine machine;
    int ordinal;
    cuda_context context;
    cuda_stream stream, copies;
    cuda_event filled;                    /* new memory, for the stream of runs to wait for */
    cuda_blas blas;
    cuda_choices *choices;
    slot slots[SLOTS];
    int next_slot;
    char *early_memory;
    early early[EARLY];
    int next_early;
    run runs[RUNS];                       /* the last ones: number n in n % RUNS */
    int64_t n_runs, known_done;           /* started; the last that the host has waited for */
};

const cuda_machine *cuda_device_machine(const cuda_device *d) { return &d->machine; }
const cuda_library *cuda_device_library(const cuda_device *d) { return d->library; }
cuda_stream cuda_device_stream(const cuda_device *d) { return d->stream; }
void cuda_device_enter(cuda_device *d) { d->library->context_set(d->context); }
cuda_blas cuda_device_blas(const cuda_device *d) { return d->blas; }
void cuda_device_use_choices(cuda_device *d, cuda_choices *choices) { d->choices = choices; }
cuda_choices *cuda_device_choices(const cuda_device *d) { return d->choices; }

/* After these the device gives nothing back any more: what lies there is gone with the process. */
static bool is_fault(int error) { return error == 700 || error == 702 || error == 710 || (error >= 714 && error <= 719) || error == 721; }       /* of a kernel */
static bool is_loss(int error) { return error == 4 || error == 46 || error == 214 || error == 220 || error == 226 || error == 709 || error == 999; }

static bool driver_ok(const cuda_library *library, int error, const char *what)
{
    const char *text = NULL;
    if (error == 0)
        return true;
    library->error_text(error, &text);
    text = text ? text : "an error of no name";
    if (is_fault(error))
        return base_fail(BASE_FAILURE, "device cuda: a kernel has failed: %s (error %d of %s)%s", text, error, what, cuda_is_blocking() ? "" : "; with RAX_CUDA_BLOCKING=1 it is named");
    return base_fail(BASE_FAILURE, "device cuda: %s%s (error %d of %s)", is_loss(error) ? "the device is lost: " : "", text, error, what);
}

bool cuda_is_blocking(void) { return base_is_set("RAX_CUDA_BLOCKING"); }

bool cuda_ok(const cuda_device *d, int error, const char *what) { return driver_ok(d->library, error, what); }

/* Its errors are numbers of its own. */
bool cuda_blas_ok(int status, const char *what)
{
    static const struct { int status; const char *text; } texts[] = { { 1, "not initialized" }, { 3, "no resources are left" }, { 7, "a value is not taken" }, { 8, "not for this card" },
                                                                     { 11, "memory cannot be reached" }, { 13, "execution failed" }, { 14, "an internal error" }, { 15, "not supported" } };
    const char *text = "an error of no name";
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        if (texts[i].status == status)
            text = texts[i].text;
    return status == 0 || base_fail(BASE_FAILURE, "device cuda: cuBLASLt: %s (status %d of %s)", text, status, what);
}

/* -- opening -------------------------------------------------------------------------------------------------------------- */

/* What NVRTC compiles for: the card itself; where NVRTC is older, an earlier card of its generation, whose code it runs; else PTX, which the driver compiles.
 * major, minor: NVRTC's version. */
static bool choose_target(cuda_machine *m, const cuda_library *l, int major, int minor)
{
    int n = 0, architecture = 10 * m->major + m->minor, best = 0;
    if (l->compiler_n_targets(&n) != 0 || n <= 0)
        return base_fail(BASE_FAILURE, "device cuda: NVRTC does not say what it compiles for");
    int *targets = base_alloc(sizeof *targets * (size_t)n);
    n = l->compiler_targets(targets) == 0 ? n : 0;
    for (int i = 0; i < n; i++)
        if (targets[i] <= architecture)
            best = MAX(best, targets[i]);
    base_free(targets);
    m->target = best;
    m->target_is_ptx = best / 10 != m->major;
    return best > 0 || base_fail(BASE_FAILURE, "device cuda: NVRTC of CUDA %d.%d no longer compiles for %s, of compute capability %d.%d", major, minor, m->name, m->major, m->minor);
}

static bool open_device(cuda_device *d)
{
    const cuda_library *l = d->library;
    cuda_machine *m = &d->machine;
    int error = l->init(0);
    if (error == CUDA_NO_DEVICE || (error == 0 && l->device_get(&d->ordinal, 0) != 0))
        return base_fail(BASE_FAILURE, "device cuda: the driver finds no GPU");
    if (!driver_ok(l, error, "cuInit") || !driver_ok(l, l->driver_version(&m->driver_version), "cuDriverGetVersion"))
        return false;
    l->device_name(m->name, sizeof m->name, d->ordinal);
    int shared = 0;
    l->device_attribute(&m->major, CUDA_ATTRIBUTE_MAJOR, d->ordinal);
    l->device_attribute(&m->minor, CUDA_ATTRIBUTE_MINOR, d->ordinal);
    l->device_attribute(&m->multiprocessors, CUDA_ATTRIBUTE_MULTIPROCESSORS, d->ordinal);
    l->device_attribute(&shared, CUDA_ATTRIBUTE_SHARED_OPTIN, d->ordinal);
    m->shared_bytes = (size_t)shared;
    int major = 0, minor = 0;                                /* of NVRTC */
    l->compiler_version(&major, &minor);
    m->params_bytes = 10 * major + minor >= 121 && m->driver_version >= 12010 ? 32764 : 4096;
    if (m->driver_version / 1000 < major)
        return base_fail(BASE_FAILURE, "device cuda: the driver is of CUDA %d.%d and too old for NVRTC of CUDA %d.%d", m->driver_version / 1000, m->driver_version % 1000 / 10, major, minor);
    return choose_target(m, l, major, minor) && driver_ok(l, l->context_retain(&d->context, d->ordinal), "cuDevicePrimaryCtxRetain") && driver_ok(l, l->context_set(d->context), "cuCtxSetCurrent") &&
           driver_ok(l, l->stream_new(&d->stream, CUDA_STREAM_NON_BLOCKING), "cuStreamCreate") &&
           driver_ok(l, l->stream_new(&d->copies, CUDA_STREAM_NON_BLOCKING), "cuStreamCreate") &&
           driver_ok(l, l->event_new(&d->filled, CUDA_EVENT_NO_TIMING), "cuEventCreate") && cuda_blas_ok(l->blas_new(&d->blas), "cublasLtCreate") &&
           driver_ok(l, l->host_alloc((void **)&d->early_memory, EARLY * CUDA_EARLY_BYTES), "pinned memory");
}

cuda_device *cuda_device_open(void)
{
    const cuda_library *library = cuda_library_open();
    if (!library)
        return NULL;
    cuda_device *d = base_alloc(sizeof *d);
    d->library = library;
    if (open_device(d))
        return d;
    cuda_device_close(d);
    return NULL;
}

void cuda_device_close(cuda_device *d)
{
    if (!d)
        return;
    const cuda_library *l = d->library;
    if (d->stream)
        l->stream_wait(d->stream);
    for (int i = 0; i < SLOTS; i++)
        if (d->slots[i].memory) {
            l->host_free(d->slots[i].memory);
            l->event_free(d->slots[i].event);
        }
    for (int i = 0; i < RUNS; i++) {
        if (d->runs[i].event)
            l->event_free(d->runs[i].event);
        base_free(d->runs[i].addresses);
    }
    if (d->filled)
        l->event_free(d->filled);
    cuda_choices_close(d->choices);
    if (d->early_memory)
        l->host_free(d->early_memory);
    if (d->blas)
        l->blas_free(d->blas);
    if (d->copies)
        l->stream_free(d->copies);
    if (d->stream)
        l->stream_free(d->stream);
    if (d->context)
        l->context_release(d->ordinal);
    base_free(d);
}

/* -- memory ------------------------------------------------------------------------------------------------------------------ */

size_t cuda_memory_available(const cuda_device *d)
{
    size_t available = 0, total = 0;
    d->library->memory_info(&available, &total);
    return available;
}

void *cuda_memory_new(cuda_device *d, size_t bytes)
{
    cuda_pointer memory = 0;
    size_t room = MAX(bytes, (size_t)256);
    int error = d->library->memory_alloc(&memory, room);
    if (error == CUDA_OUT_OF_MEMORY) {
        base_fail(BASE_NO_MEMORY, "device cuda: out of memory: %.1f MB were asked for, %.1f MB are free", (double)bytes / 1e6, (double)cuda_memory_available(d) / 1e6);
        return NULL;
    }
    if (!cuda_ok(d, error, "cuMemAlloc") || !cuda_ok(d, d->library->fill(memory, 0, room, d->copies), "cuMemsetD8Async") ||
        !cuda_ok(d, d->library->event_record(d->filled, d->copies), "cuEventRecord") ||
        !cuda_ok(d, d->library->stream_wait_event(d->stream, d->filled, 0), "cuStreamWaitEvent"))
        return NULL;
    return (void *)(uintptr_t)memory;
}

static void forget_early(cuda_device *d, const char *memory, size_t bytes)
{
    for (int i = 0; i < EARLY; i++) {
        const char *from = d->early[i].from;
        if (from && from < memory + bytes && memory < from + d->early[i].bytes)
            d->early[i].from = NULL;
    }
}

void cuda_memory_free(cuda_device *d, void *memory)
{
    if (!memory)
        return;
    d->library->stream_wait(d->stream);
    for (int i = 0; i < EARLY; i++)
        if (d->early[i].from == memory)
            d->early[i].from = NULL;
    d->library->memory_free((cuda_pointer)(uintptr_t)memory);
}

/* -- copies -------------------------------------------------------------------------------------------------------------------- */

static slot *next_slot(cuda_device *d)
{
    slot *s = &d->slots[d->next_slot++ % SLOTS];
    const cuda_library *l = d->library;
    if (!s->memory && (!cuda_ok(d, l->host_alloc((void **)&s->memory, SLOT_BYTES), "pinned memory") ||
                       !cuda_ok(d, l->event_new(&s->event, CUDA_EVENT_NO_TIMING), "cuEventCreate")))
        return NULL;
    return !s->used || cuda_ok(d, l->event_wait(s->event), "cuEventSynchronize") ? s : NULL;
}

/* By slots, the last of which is given back. NULL and base_error. */
static const slot *copy_in(cuda_device *d, cuda_stream stream, void *to, const void *from, size_t bytes)
{
    const cuda_library *l = d->library;
    slot *s = NULL;
    for (size_t done = 0; done < bytes; done += SLOT_BYTES) {
        size_t n = MIN(bytes - done, (size_t)SLOT_BYTES);
        s = next_slot(d);
        if (!s)
            return NULL;
        memcpy(s->memory, (const char *)from + done, n);
        s->used = true;
        if (!cuda_ok(d, l->copy_to_device((cuda_pointer)(uintptr_t)((char *)to + done), s->memory, n, stream), "cuMemcpyHtoDAsync") ||
            !cuda_ok(d, l->event_record(s->event, stream), "cuEventRecord"))
            return NULL;
    }
    return s;
}

/* The last run that was given this memory; one that was given it before those that are remembered is over when the first of them is. */
static const run *last_run_with(const cuda_device *d, const void *memory)
{
    int64_t oldest = MAX(d->n_runs - RUNS + 1, 1);
    for (int64_t number = d->n_runs; number >= oldest; number--) {
        const run *r = &d->runs[number % RUNS];
        for (int i = 0; i < r->n; i++)
            if (r->addresses[i] == memory)
                return r;
    }
    return d->n_runs >= RUNS ? &d->runs[oldest % RUNS] : NULL;
}

bool cuda_upload(cuda_device *d, void *to, const void *from, size_t bytes)
{
    const cuda_library *l = d->library;
    const run *before = last_run_with(d, to);
    forget_early(d, to, bytes);
    if (bytes == 0)
        return true;
    if (before && before->number > d->known_done && !cuda_ok(d, l->stream_wait_event(d->copies, before->event, 0), "cuStreamWaitEvent"))
        return false;
    const slot *last = copy_in(d, d->copies, to, from, bytes);
    return last && cuda_ok(d, l->stream_wait_event(d->stream, last->event, 0), "cuStreamWaitEvent");
}

bool cuda_put(cuda_device *d, void *to, const void *from, size_t bytes) { return bytes == 0 || copy_in(d, d->stream, to, from, bytes); }

bool cuda_download(cuda_device *d, void *to, const void *from, size_t bytes)
{
    const cuda_library *l = d->library;
    for (int i = 0; i < EARLY; i++)
        if (d->early[i].from == from && d->early[i].bytes == bytes && d->early[i].run <= d->n_runs) {
            const run *behind = &d->runs[d->early[i].run % RUNS];        /* it, or one after it */
            if (d->early[i].run > d->known_done) {
                if (!cuda_ok(d, l->event_wait(behind->event), "cuEventSynchronize"))
                    return false;
                d->known_done = behind->number;
            }
            memcpy(to, d->early_memory + i * CUDA_EARLY_BYTES, bytes);
            return true;
        }
    return cuda_ok(d, l->copy_to_host(to, (cuda_pointer)(uintptr_t)from, bytes, d->stream), "cuMemcpyDtoHAsync") &&
           cuda_ok(d, l->stream_wait(d->stream), "cuStreamSynchronize");
}

bool cuda_wait(cuda_device *d) { return cuda_ok(d, d->library->stream_wait(d->stream), "cuStreamSynchronize"); }

/* -- runs ------------------------------------------------------------------------------------------------------------------------ */

bool cuda_copy_early(cuda_device *d, const void *from, size_t bytes)
{
    int at = -1;
    for (int i = 0; i < EARLY && at < 0; i++)
        if (d->early[i].from == from)
            at = i;
    if (at < 0)
        at = d->next_early++ % EARLY;
    d->early[at] = (early){ from, bytes, d->n_runs + 1 };
    return cuda_ok(d, d->library->copy_to_host(d->early_memory + at * CUDA_EARLY_BYTES, (cuda_pointer)(uintptr_t)from, bytes, d->stream), "cuMemcpyDtoHAsync");
}

bool cuda_run_end(cuda_device *d, int n, void *const *addresses)
{
    run *r = &d->runs[(d->n_runs + 1) % RUNS];
    if (!r->event && !cuda_ok(d, d->library->event_new(&r->event, CUDA_EVENT_NO_TIMING), "cuEventCreate"))
        return false;
    if (r->cap < n) {
        r->addresses = base_realloc(r->addresses, sizeof *r->addresses * (size_t)r->cap, sizeof *r->addresses * (size_t)n);
        r->cap = n;
    }
    if (n > 0)
        memcpy(r->addresses, addresses, sizeof *addresses * (size_t)n);
    r->n = n;
    r->number = ++d->n_runs;
    return cuda_ok(d, d->library->event_record(r->event, d->stream), "cuEventRecord");
}
