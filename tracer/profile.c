/* Where the time of a function's programs goes, from the backend's words into those of rax.h. */
#include "tracer/tracer.h"

static rax_kernel_profile kernel_of(const ir_kernel_profile *k)
{
    return (rax_kernel_profile){ .name = k->name, .how = k->how ? k->how : "", .shape = k->shape ? k->shape : "",
                                 .place = { k->place.file, k->place.line }, .dtype = (rax_dtype)k->dtype, .runs = k->runs,
                                 .busy_ms = k->busy_ns * 1e-6, .idle_ms = k->idle_ns * 1e-6,
                                 .gflop = k->flops * (double)k->runs * 1e-9, .mb = k->bytes * (double)k->runs * 1e-6 };
}

/* The index-th entry whose program no earlier entry has. */
static const trace_program *program_at(const rax_fn *fn, int index)
{
    for (const trace_entry *entry = fn->entries; entry; entry = entry->next) {
        bool seen = false;
        for (const trace_entry *before = fn->entries; before != entry; before = before->next)
            seen |= before->program == entry->program;
        if (!seen && index-- == 0)
            return entry->program;
    }
    return NULL;
}

const rax_profile *rax_profile_of(rax_fn *fn, int index)
{
    const trace_program *program = fn && index >= 0 ? program_at(fn, index) : NULL;
    const ir_profile *seen = program && program->backend->profile_of ? program->backend->profile_of(program->compiled) : NULL;
    if (!seen)
        return NULL;
    base_arena_free(fn->profile_arena);
    fn->profile_arena = base_arena_new();
    rax_profile *profile = ARENA_NEW(fn->profile_arena, rax_profile, 1);
    rax_kernel_profile *kernels = ARENA_NEW(fn->profile_arena, rax_kernel_profile, seen->n_kernels);
    rax_profile_event *events = ARENA_NEW(fn->profile_arena, rax_profile_event, seen->n_events);
    for (int i = 0; i < seen->n_kernels; i++)
        kernels[i] = kernel_of(&seen->kernels[i]);
    for (int i = 0; i < seen->n_events; i++) {
        const ir_event *e = &seen->events[i];
        events[i] = (rax_profile_event){ e->kernel, e->thread, (double)e->begin_ns * 1e-3, (double)e->end_ns * 1e-3 };
    }
    *profile = (rax_profile){ .function = fn->name, .device = seen->device, .threads = seen->threads, .runs = seen->runs, .wall_ms = seen->wall_ns * 1e-6,
                              .n_kernels = seen->n_kernels, .kernels = kernels, .n_events = seen->n_events, .events = events };
    return profile;
}
