/* The device: its context, one stream, memory, and copies.
 *
 * What the host writes goes through a ring of pinned slots, so that a copy never waits for what the GPU is doing and the caller's memory is
 * free at once. What a run leaves in a few bytes (a loss) is copied to pinned memory right behind it, with an event: it is read later
 * without waiting for runs that were started since. */
#include "backend_cuda/backend.h"

#include <stdio.h>
#include <string.h>

enum { SLOTS = 16, SLOT_BYTES = 1 << 20, EARLY = 64 };

typedef struct { char *memory; cuda_event event; bool used; } slot;
typedef struct { const void *from; size_t bytes; cuda_event event; } early;

struct cuda_device {
    const cuda_library *library;
    cuda_machine machine;
    int ordinal;
    cuda_context context;
    cuda_stream stream;
    cuda_blas blas;
    slot slots[SLOTS];
    int next_slot;
    char *early_memory;
    early early[EARLY];
    int next_early;
};

const cuda_machine *cuda_device_machine(const cuda_device *d) { return &d->machine; }
const cuda_library *cuda_device_library(const cuda_device *d) { return d->library; }
cuda_stream cuda_device_stream(const cuda_device *d) { return d->stream; }
void cuda_device_enter(cuda_device *d) { d->library->context_set(d->context); }
cuda_blas cuda_device_blas(const cuda_device *d) { return d->blas; }

static bool driver_ok(const cuda_library *library, int error, const char *what)
{
    const char *text = NULL;
    if (error == 0)
        return true;
    library->error_text(error, &text);
    return base_fail(BASE_FAILURE, "device cuda: %s: error %d, %s", what, error, text ? text : "of no name");
}

bool cuda_ok(const cuda_device *d, int error, const char *what) { return driver_ok(d->library, error, what); }

/* -- opening -------------------------------------------------------------------------------------------------------------- */

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
    int compiler = 0, minor = 0;
    l->compiler_version(&compiler, &minor);
    if (m->driver_version / 1000 < compiler)
        return base_fail(BASE_FAILURE, "device cuda: the driver is of CUDA %d.%d and too old for NVRTC of CUDA %d.%d", m->driver_version / 1000, m->driver_version % 1000 / 10, compiler, minor);
    return driver_ok(l, l->context_retain(&d->context, d->ordinal), "cuDevicePrimaryCtxRetain") && driver_ok(l, l->context_set(d->context), "cuCtxSetCurrent") &&
           driver_ok(l, l->stream_new(&d->stream, CUDA_STREAM_NON_BLOCKING), "cuStreamCreate") && driver_ok(l, l->blas_new(&d->blas), "cublasLtCreate") &&
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
    for (int i = 0; i < EARLY; i++)
        if (d->early[i].event)
            l->event_free(d->early[i].event);
    if (d->early_memory)
        l->host_free(d->early_memory);
    if (d->blas)
        l->blas_free(d->blas);
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
        base_fail(BASE_FAILURE, "device cuda: out of memory: %.1f MB were asked for, %.1f MB are free", (double)bytes / 1e6, (double)cuda_memory_available(d) / 1e6);
        return NULL;
    }
    if (!cuda_ok(d, error, "cuMemAlloc") || !cuda_ok(d, d->library->fill(memory, 0, room, d->stream), "cuMemsetD8Async"))
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

bool cuda_upload(cuda_device *d, void *to, const void *from, size_t bytes)
{
    const cuda_library *l = d->library;
    forget_early(d, to, bytes);
    for (size_t done = 0; done < bytes; done += SLOT_BYTES) {
        size_t n = MIN(bytes - done, (size_t)SLOT_BYTES);
        slot *s = next_slot(d);
        if (!s)
            return false;
        memcpy(s->memory, (const char *)from + done, n);
        s->used = true;
        if (!cuda_ok(d, l->copy_to_device((cuda_pointer)(uintptr_t)((char *)to + done), s->memory, n, d->stream), "cuMemcpyHtoDAsync") ||
            !cuda_ok(d, l->event_record(s->event, d->stream), "cuEventRecord"))
            return false;
    }
    return true;
}

bool cuda_download(cuda_device *d, void *to, const void *from, size_t bytes)
{
    const cuda_library *l = d->library;
    for (int i = 0; i < EARLY; i++)
        if (d->early[i].from == from && d->early[i].bytes == bytes) {
            if (!cuda_ok(d, l->event_wait(d->early[i].event), "cuEventSynchronize"))
                return false;
            memcpy(to, d->early_memory + i * CUDA_EARLY_BYTES, bytes);
            return true;
        }
    return cuda_ok(d, l->copy_to_host(to, (cuda_pointer)(uintptr_t)from, bytes, d->stream), "cuMemcpyDtoHAsync") &&
           cuda_ok(d, l->stream_wait(d->stream), "cuStreamSynchronize");
}

bool cuda_copy_early(cuda_device *d, const void *from, size_t bytes)
{
    const cuda_library *l = d->library;
    int at = -1;
    for (int i = 0; i < EARLY && at < 0; i++)
        if (d->early[i].from == from)
            at = i;
    if (at < 0)
        at = d->next_early++ % EARLY;
    early *e = &d->early[at];
    if (!e->event && !cuda_ok(d, l->event_new(&e->event, CUDA_EVENT_NO_TIMING), "cuEventCreate"))
        return false;
    e->from = from;
    e->bytes = bytes;
    return cuda_ok(d, l->copy_to_host(d->early_memory + at * CUDA_EARLY_BYTES, (cuda_pointer)(uintptr_t)from, bytes, d->stream), "cuMemcpyDtoHAsync") &&
           cuda_ok(d, l->event_record(e->event, d->stream), "cuEventRecord");
}
