/* Which backends there are, and the settings of the process. The only file of the tracer that knows a backend by name.
 *
 * What the environment says (RAX_NO_JIT, RAX_NUM_THREADS, RAX_TF32; the CPU backend reads RAX_ISA and RAX_CACHE_DIR) holds where
 * the program does not say otherwise. */
#include <stdlib.h>
#include <string.h>

#include "tracer/tracer.h"

/* What compiles where nobody has asked for the interpreter. */
extern const ir_backend cpu_backend, cuda_backend;
static const ir_backend *const backends[] = { &cpu_backend, &cuda_backend };
static const ir_backend *compiler = &cpu_backend;

static rax_settings settings;
static bool configured;
static char *isa, *cache_dir, *dump_dir, *device;

const rax_settings *trace_settings(void) { return &settings; }

static void keep(char **kept, const char *text)
{
    char *copy = text ? base_strdup(text) : NULL;
    base_free(*kept);
    *kept = copy;
}

/* RAX_NUM_THREADS, or 0 where it is not set. */
static bool threads_of_environment(int *threads)
{
    const char *value = getenv("RAX_NUM_THREADS");
    char *end;
    *threads = 0;
    if (!value || !*value)
        return true;
    long number = strtol(value, &end, 10);
    if (*end || number < 0 || number > 4096)
        return rax_fail(RAX_MISTAKE, "RAX_NUM_THREADS: expected a number of threads from 0 to 4096, got \"%s\"", value);
    *threads = (int)number;
    return true;
}

static const ir_backend *backend_of(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(backends); i++)
        if (!name || strcmp(name, backends[i]->name) == 0)
            return backends[i];
    rax_fail(RAX_MISTAKE, "device: expected cpu or cuda, got \"%s\"", name);
    return NULL;
}

/* Arrays stay where they were made: with another memory there must be none. */
static bool choose_backend(const rax_settings *wanted)
{
    const ir_backend *chosen = backend_of(wanted->device);
    if (!chosen)
        return false;
    bool moves = !wanted->no_jit && chosen->memory_new, moved = trace_memory() != NULL;
    if ((moves || moved) && trace_array_count() > 0 && (chosen != compiler || moves != moved))
        return rax_fail(RAX_MISTAKE, "device: %lld tensors exist already: it is to be chosen before the first", (long long)trace_array_count());
    if (chosen != compiler && configured && compiler->shutdown)
        compiler->shutdown();
    compiler = chosen;
    return true;
}

static bool configure_backend(void)
{
    ir_backend_settings wanted = { .threads = settings.threads, .isa = settings.isa, .tf32 = settings.tf32, .cache_dir = settings.cache_dir, .tune = settings.tune };
    return settings.no_jit || !compiler->configure || compiler->configure(&wanted);
}

bool rax_configure(const rax_settings *given)
{
    int threads;
    if (!threads_of_environment(&threads))
        return false;
    rax_settings fresh = given ? *given : (rax_settings){0};
    if (fresh.threads < 0)
        return rax_fail(RAX_MISTAKE, "threads: expected 0 or more, got %d", fresh.threads);
    fresh.no_jit |= base_is_set("RAX_NO_JIT");
    fresh.tf32 |= base_is_set("RAX_TF32");
    if (!choose_backend(&fresh))
        return false;
    if (fresh.tune && (fresh.no_jit || !compiler->tuned))
        return rax_fail(RAX_MISTAKE, "tune: %s has nothing to choose from", fresh.no_jit ? "the interpreter" : compiler->name);
    keep(&isa, fresh.isa);
    keep(&cache_dir, fresh.cache_dir);
    keep(&dump_dir, fresh.dump_dir);
    keep(&device, fresh.device);
    settings = fresh;
    settings.isa = isa;
    settings.cache_dir = cache_dir;
    settings.dump_dir = dump_dir;
    settings.device = device;
    if (!settings.threads)
        settings.threads = threads;
    configured = configure_backend();
    return configured;
}

const ir_backend *trace_backend(void)
{
    if (!configured && !rax_configure(NULL))
        return NULL;
    return settings.no_jit ? &trace_interpreter : compiler;
}

const ir_backend *trace_memory(void) { return configured && !settings.no_jit && compiler->memory_new ? compiler : NULL; }

const char *rax_tuned(void) { return configured && !settings.no_jit && compiler->tuned ? compiler->tuned() : ""; }

bool rax_wait(void) { return !trace_memory() || !compiler->wait || compiler->wait(); }

void rax_print_info(FILE *out)
{
    fprintf(out, "rax         %s\n", RAX_VERSION);
    if (compiler->print_info)
        compiler->print_info(out);
}

bool rax_measure_peak(rax_peak *peak)
{
    ir_peak found;
    if (!configured && !rax_configure(NULL))
        return false;
    if (settings.no_jit || !compiler->measure_peak)
        return rax_fail(RAX_MISTAKE, "rax_measure_peak: the interpreter uses no part of the machine that could be measured");
    if (!compiler->measure_peak(&found))
        return false;
    *peak = (rax_peak){ .device = found.device, .threads = found.threads, .f32_gflops = found.f32_gflops, .bf16_gflops = found.bf16_gflops,
                        .read_gbs = found.read_gbs, .update_gbs = found.update_gbs };
    return true;
}

void rax_shutdown(void)
{
    if (configured && compiler->shutdown)
        compiler->shutdown();
    keep(&isa, NULL);
    keep(&cache_dir, NULL);
    keep(&dump_dir, NULL);
    keep(&device, NULL);
    compiler = backends[0];
    settings = (rax_settings){0};
    configured = false;
    trace_bodies_free();
    trace_trees_free();
    trace_intern_free();
}
