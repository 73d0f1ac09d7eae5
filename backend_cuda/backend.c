/* The CUDA backend: from a graph to a program that the device runs, and what the process keeps for it.
 *
 *     graph → kernel list → legalise → memory plan → launches a kernel → code by text → one CUDA graph
 */
#include "backend_cuda/backend.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* -- what the process keeps ------------------------------------------------------------------------------------------------ */

static struct { cuda_device *device; cuda_store *store; bool tf32; char tuned[64]; } process;

cuda_device *cuda_backend_device(void) { return process.device; }
bool cuda_wants_tf32(void) { return process.tf32; }

static void shut_down(void)
{
    if (process.device)
        cuda_device_enter(process.device);
    cuda_store_free(process.store);
    cuda_device_close(process.device);
    memset(&process, 0, sizeof process);
}

static bool configure(const ir_backend_settings *settings)
{
    shut_down();
    process.device = cuda_device_open();
    if (!process.device)
        return false;
    process.store = cuda_store_new(process.device, settings->cache_dir);
    process.tf32 = settings->tf32;
    int blas_version = cuda_device_library(process.device)->blas_version();
    cuda_device_use_choices(process.device, cuda_choices_open(cuda_store_folder(process.store), cuda_device_machine(process.device), blas_version, settings->tune));
    return true;
}

static bool start(void)
{
    if (!process.device && !configure(&(ir_backend_settings){0}))
        return false;
    cuda_device_enter(process.device);
    return true;
}

static void print_info(FILE *out)
{
    if (!start()) {
        fprintf(out, "cuda        %s\n", base_error());
        return;
    }
    const cuda_machine *m = cuda_device_machine(process.device);
    fprintf(out, "cuda        %s, compute capability %d.%d, %d multiprocessors, %zu KB shared\n", m->name, m->major, m->minor, m->multiprocessors, m->shared_bytes >> 10);
    fprintf(out, "driver      CUDA %d.%d\n", m->driver_version / 1000, m->driver_version % 1000 / 10);
    int major = 0, minor = 0;
    cuda_device_library(process.device)->compiler_version(&major, &minor);
    fprintf(out, "compiler    NVRTC of CUDA %d.%d for %s_%d%s\n", major, minor, m->target_is_ptx ? "compute" : "sm", m->target, m->target_is_ptx ? ", which the driver compiles to the end" : "");
    fprintf(out, "products    cuBLASLt %d%s\n", cuda_device_library(process.device)->blas_version(), process.tf32 ? ", f32 by TF32" : "");
    fprintf(out, "memory      %zu MB available on the device\n", cuda_memory_available(process.device) >> 20);
    fprintf(out, "code        %s\n", *cuda_store_folder(process.store) ? cuda_store_folder(process.store) : "not kept");
}

/* -- memory of tensors -------------------------------------------------------------------------------------------------------- */

static void *memory_new(size_t bytes) { return start() ? cuda_memory_new(process.device, bytes) : NULL; }
static void memory_free(void *memory)
{
    if (process.device) {
        cuda_device_enter(process.device);
        cuda_memory_free(process.device, memory);
    }
}
static bool upload(void *to, const void *from, size_t bytes) { return start() && cuda_upload(process.device, to, from, bytes); }
static bool download(void *to, const void *from, size_t bytes) { return start() && cuda_download(process.device, to, from, bytes); }

static bool wait_for_all(void) { return !process.device || (start() && cuda_wait(process.device)); }

/* -- programs -------------------------------------------------------------------------------------------------------------------- */

struct ir_executable {
    kl_program *list;
    base_arena *arena;
    cuda_compiler compiler;
    cuda_plan *plans;                         /* by kernel id */
    cuda_fetched fetched;
    cuda_execution *execution;
    ir_profile *profile;                      /* NULL while nobody asks */
};

static void free_program(ir_executable *p)
{
    if (!p)
        return;
    cuda_device_enter(process.device);
    cuda_execution_free(p->execution);
    base_arena_free(p->arena);
    kl_program_free(p->list);
    base_free(p);
}

const cuda_compiler *cuda_last_compiler(const ir_executable *p) { return &p->compiler; }

static void end_phase(ir_compile_report *report, const char *name, double *since)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double now = (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
    if (name)
        ir_report_phase(report, name, now - *since);
    *since = now;
}

static bool plan_list(ir_executable *p, kl_kernel **kernels, int n)
{
    static cuda_planner *const planners[] = {
        [KL_LOOP] = cuda_plan_loop, [KL_LIST] = cuda_plan_list, [KL_CONTRACTION] = cuda_plan_contraction, [KL_ATTENTION] = cuda_plan_attention,
        [KL_SCATTER] = cuda_plan_scatter, [KL_REPEAT] = NULL };
    for (int i = 0; i < n; i++) {
        bool planned = kernels[i]->kind == KL_REPEAT ? plan_list(p, kernels[i]->repeat.body, kernels[i]->repeat.n_body)
                                                     : planners[kernels[i]->kind](&p->compiler, kernels[i], &p->plans[kernels[i]->id]);
        if (!planned)
            return false;
    }
    return true;
}

/* -- the compile trace -------------------------------------------------------------------------------------------------------------- */

typedef struct { int n[KL_REPEAT + 1], products; double flops, bytes; } survey;

static void report_list(const ir_executable *p, kl_kernel *const *kernels, int n, survey *s, ir_compile_report *report)
{
    for (int i = 0; i < n; i++) {
        const kl_kernel *kernel = kernels[i];
        double flops = 0, bytes = 0;
        s->n[kernel->kind]++;
        if (kernel->kind == KL_REPEAT) {
            ir_report_line(report, 2, "k%-4d repeat %lld times, %d kernels", kernel->id, (long long)kernel->repeat.count, kernel->repeat.n_body);
            report_list(p, kernel->repeat.body, kernel->repeat.n_body, s, report);
            continue;
        }
        const cuda_plan *plan = &p->plans[kernel->id];
        kl_cost(p->list, kernel, &flops, &bytes);
        s->flops += flops;
        s->bytes += bytes;
        ir_report_line(report, 2, "k%-4d %-32s %10.3f MFLOP %10.3f MB %3d launches%s%s", kernel->id, kernel->name ? kernel->name : "", flops * 1e-6, bytes * 1e-6,
                       plan->n_steps, plan->how ? ", " : "", plan->how ? plan->how : "");
        for (int j = 0; j < plan->n_steps; j++)
            if (!plan->steps[j].is_product)
                ir_report_line(report, 3, "      %s, %lld blocks of %d threads, %zu bytes shared", p->compiler.requests[plan->steps[j].launch.code].name,
                               (long long)plan->steps[j].launch.grid, plan->steps[j].launch.threads, plan->steps[j].launch.shared_bytes);
    }
}

static void report_program(const ir_executable *p, ir_compile_report *report)
{
    survey s = {0};
    report_list(p, p->list->kernels, p->list->n_kernels, &s, report);
    ir_report_line(report, 1, "kernels: %d loops, %d products, %d attentions, %d scatters, %d repeats; %.3f GFLOP, %.1f MB read and written (repeats once)",
                   s.n[KL_LOOP] + s.n[KL_LIST], s.n[KL_CONTRACTION], s.n[KL_ATTENTION], s.n[KL_SCATTER], s.n[KL_REPEAT], s.flops * 1e-9, s.bytes * 1e-6);
    ir_report_line(report, 1, "code: %d functions, %d of them compiled now for sm_%d%d; %d launches a run, in one graph", p->fetched.functions, p->fetched.compiled,
                   cuda_device_machine(process.device)->major, cuda_device_machine(process.device)->minor, cuda_execution_launches(p->execution));
}

/* -- compiling ------------------------------------------------------------------------------------------------------------------------ */

static void report_text(ir_compile_report *report, const char *text)
{
    for (const char *line = text; line && *line;) {
        int len = (int)strcspn(line, "\n");
        ir_report_line(report, 1, "%.*s", len, line);
        line += len + (line[len] == '\n');
    }
}

/* The largest buffers of the arena, by the user's line: for who has to make something smaller. */
static void add_largest(const kl_program *p, base_text *text)
{
    int64_t below = INT64_MAX;
    for (int n = 0; n < 3; n++) {
        int largest = -1;
        int64_t most = 0;
        for (int i = 0; i < p->n_buffers; i++) {
            int64_t bytes = p->buffers[i].count * ir_dtype_bytes(p->buffers[i].dtype);
            if (p->buffers[i].kind == KL_TEMP && bytes < below && bytes > most)
                most = bytes, largest = i;
        }
        if (largest < 0)
            return;
        const ir_place *place = &p->buffers[largest].place;
        base_text_add(text, "%s%s:%d %.1f MB", n ? ", " : "; the largest are of ", place->file ? place->file : "rax", place->line, (double)most / 1e6);
        below = most;
    }
}

/* A program that will not fit is refused before it takes anything: the table says what it would take. */
static bool fits(const ir_executable *p, ir_compile_report *report)
{
    size_t wanted = cuda_execution_bytes(p->execution), available = cuda_memory_available(process.device);
    base_text table = {0}, largest = {0};
    kl_print_memory(&table, p->list);
    report_text(report, table.at);
    base_text_free(&table);
    ir_report_line(report, 1, "memory: %.1f MB for intermediates, %.1f MB of them workspace; the device has %.1f MB available", (double)wanted / 1e6,
                   (double)cuda_execution_workspace(p->execution) / 1e6, (double)available / 1e6);
    if (wanted <= available)
        return true;
    add_largest(p->list, &largest);
    base_fail(BASE_FAILURE, "%s: does not fit on the device: %.1f MB for intermediates beside %.1f MB of arguments and %.1f MB of results; %.1f MB are free%s", p->list->name,
              (double)wanted / 1e6, (double)p->list->memory.params_bytes / 1e6, (double)p->list->memory.results_bytes / 1e6, (double)available / 1e6, largest.at ? largest.at : "");
    base_text_free(&largest);
    return false;
}

static bool dump_list(const ir_executable *p, const char *folder)
{
    base_text path = {0}, text = {0};
    base_text_add(&path, "%s/%s.kernels", folder, p->list->name);
    kl_print(&text, p->list);
    FILE *file = fopen(path.at, "w");
    bool written = file && fwrite(text.at, 1, text.len, file) == text.len;
    if ((file && fclose(file) != 0) || !written)
        written = base_fail(BASE_FAILURE, "%s: %s", path.at, strerror(errno));
    base_text_free(&text);
    base_text_free(&path);
    return written;
}

static bool finish(ir_executable *p, const ir_compile_options *options, ir_compile_report *report, double *since)
{
    if (!plan_list(p, p->list->kernels, p->list->n_kernels))
        return false;
    end_phase(report, "plan", since);
    if ((options->dump_dir && !dump_list(p, options->dump_dir)) || !cuda_store_fetch(process.store, &p->compiler, options->dump_dir, &p->fetched))
        return false;
    end_phase(report, p->fetched.compiled ? "compile" : "load", since);
    p->execution = cuda_execution_new(process.device, &p->compiler, p->plans, &p->fetched, options->host_scalars);
    if (!p->execution)
        return false;
    report_program(p, report);
    if (!fits(p, report) || !cuda_execution_allocate(p->execution))
        return false;
    end_phase(report, "link", since);
    return true;
}

ir_executable *cuda_compile_list(kl_program *list, const ir_compile_options *options, ir_compile_report *report)
{
    double since;
    base_text why = {0};
    if (!start()) {
        kl_program_free(list);
        return NULL;
    }
    end_phase(report, NULL, &since);
    ir_executable *p = base_alloc(sizeof *p);
    p->arena = base_arena_new();
    p->list = list;
    cuda_legalise(list, process.device);
    end_phase(report, "legalise", &since);
    list->memory.alignment = (int)cuda_rounded(1);
    kl_plan_memory(list, true);
    if (options->verify)
        CHECK(kl_verify(list, &why), "%s: expected a legal kernel list: %s", list->name, why.at ? why.at : "");
    base_text_free(&why);
    end_phase(report, "memory", &since);
    p->plans = ARENA_NEW(p->arena, cuda_plan, MAX(list->n_ids, 1));
    p->compiler = (cuda_compiler){ .machine = cuda_device_machine(process.device), .program = list, .arena = p->arena };
    if (finish(p, options, report, &since))
        return p;
    free_program(p);
    return NULL;
}

static ir_executable *compile(ir_graph *graph, const ir_compile_options *options, ir_compile_report *report)
{
    double since;
    end_phase(report, NULL, &since);
    kl_program *list = kl_lower(graph);
    end_phase(report, "lower", &since);
    return cuda_compile_list(list, options, report);
}

static bool run(ir_executable *p, void *const *params, void *const *results)
{
    cuda_device_enter(process.device);
    return cuda_execute(p->execution, params, results);
}

/* -- where time goes ---------------------------------------------------------------------------------------------------------------- */

static void profile(ir_executable *p, int traced_runs)
{
    if (p->profile || cuda_is_blocking())
        return;
    cuda_device_enter(process.device);
    p->profile = kl_profile_new(p->list, p->arena);
    for (int i = 0; i < p->profile->n_kernels; i++)
        p->profile->kernels[i].how = p->plans[i].how;
    cuda_execution_profile(p->execution, traced_runs);
}

static const ir_profile *profile_of(ir_executable *p)
{
    if (p->profile)
        cuda_execution_read_profile(p->execution, p->profile);
    return p->profile;
}

static bool measure_peak(ir_peak *peak) { return start() && cuda_measure_peak(process.device, peak); }

/* TF32 is a choice of how products are computed, too. */
static const char *tuned(void)
{
    const char *digest = process.device ? cuda_choices_digest(cuda_device_choices(process.device)) : "";
    snprintf(process.tuned, sizeof process.tuned, "%s%s%s", process.tf32 ? "tf32" : "", process.tf32 && *digest ? " " : "", digest);
    return process.tuned;
}

static size_t arena_bytes(const ir_executable *p) { return cuda_execution_bytes(p->execution); }

static bool keep_composite(const ir_node *node)
{
    return (node->op == OP_attention || node->op == OP_attention_vjp) &&
           cuda_attention_takes(node->args[0]->type.dtype, node->args[0]->type.dim[node->args[0]->type.rank - 1]);
}

const ir_backend cuda_backend = {
    .name = "cuda",
    .keep_composite = keep_composite,
    .configure = configure,
    .shutdown = shut_down,
    .print_info = print_info,
    .memory_new = memory_new,
    .memory_free = memory_free,
    .upload = upload,
    .download = download,
    .wait = wait_for_all,
    .compile = compile,
    .run = run,
    .free = free_program,
    .arena_bytes = arena_bytes,
    .profile = profile,
    .profile_of = profile_of,
    .measure_peak = measure_peak,
    .tuned = tuned,
};
