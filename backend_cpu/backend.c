/* The CPU backend: from a graph to a program that all threads run, and what the process keeps for it.
 *
 *     graph → kernel list → legalise → memory plan → a plan a kernel → code by key → launches in stages
 */
#include "backend_cpu/backend.h"
#include "backend_cpu/contraction.h"
#include "backend_cpu/peak.h"
#include "backend_cpu/requests.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* -- what the process keeps -------------------------------------------------------------------------------------------- */

static struct {
    bool ready;
    cpu_machine machine;
    cpu_store *store;
    cpu_pool *pool;                           /* started by the first compile */
    cpu_arena arena;                          /* of all programs that the pool runs */
    int threads;
    cpu_grain grain;
} process;

/* A barrier costs a few hundred nanoseconds, a task some fifty. */
static const cpu_grain usual_grain = { .task_ns = 4000, .shared_ns = 3000 };

void cpu_set_grain(cpu_grain grain) { process.grain = grain; }

static void shut_down(void)
{
    cpu_pool_free(process.pool);
    cpu_store_free(process.store);
    memset(&process, 0, sizeof process);
}

static bool configure(const ir_backend_settings *settings)
{
    shut_down();
    if (!cpu_machine_detect(&process.machine, settings->isa))
        return false;
    process.threads = settings->threads;
    process.grain = usual_grain;
    process.store = cpu_store_new(&process.machine, settings->cache_dir);
    process.ready = true;
    return true;
}

static bool start(void)
{
    if (!process.ready && !configure(&(ir_backend_settings){0}))
        return false;
    if (!process.pool)
        process.pool = cpu_pool_new(process.threads);
    return process.pool != NULL;
}

static void print_info(FILE *out)
{
    if (!process.ready && !configure(&(ir_backend_settings){0}))
        return;
    const cpu_machine *m = &process.machine;
    base_memory memory = base_memory_now();
    const cpu_blas *blas = cpu_blas_open();
    const char *pinned = getenv("OPENBLAS_CORETYPE");
    fprintf(out, "cpu         %s, %s%s%s, %d lanes of f32\n", m->name, cpu_isa_name(m->isa), m->isa < m->own_isa ? " of " : "",
            m->isa < m->own_isa ? cpu_isa_name(m->own_isa) : "", m->f32_lanes);
    fprintf(out, "caches      %zu KB, %zu KB a core, %zu KB shared\n", m->l1d_bytes >> 10, m->l2_bytes >> 10, m->l3_bytes >> 10);
    fprintf(out, "threads     %d of %d CPUs\n", process.threads ? process.threads : m->cpus, m->cpus);
    fprintf(out, "memory      %zu MB, %zu MB available\n", memory.total_bytes >> 20, memory.available_bytes >> 20);
    fprintf(out, "LLVM        %s\n", cpu_jit_version());
    if (blas)
        fprintf(out, "BLAS        OpenBLAS, kernels for %s%s%s\n", blas->core, pinned ? ", as OPENBLAS_CORETYPE says: " : "", pinned ? pinned : "");
    else
        fprintf(out, "BLAS        none: %s\n", base_error());
    fprintf(out, "code        %s\n", *cpu_store_folder(process.store) ? cpu_store_folder(process.store) : "not kept");
}

/* -- programs ------------------------------------------------------------------------------------------------------------ */

struct ir_executable {
    kl_program *list;
    base_arena *arena, *args;                 /* see cpu_compiler */
    cpu_plan *plans;                          /* by kernel id */
    cpu_execution *execution;
    ir_profile *profile;                      /* NULL while nobody asks */
};

static void free_program(ir_executable *p)
{
    if (!p)
        return;
    cpu_execution_free(p->execution);
    base_arena_free(p->arena);
    base_arena_free(p->args);
    kl_program_free(p->list);
    base_free(p);
}

static void end_phase(ir_compile_report *report, const char *name, double *since)
{
    double now = base_now_ms();
    ir_report_phase(report, name, now - *since);
    *since = now;
}

static void for_each_kernel(kl_kernel **kernels, int n, void (*visit)(kl_kernel *kernel, void *context), void *context)
{
    for (int i = 0; i < n; i++) {
        visit(kernels[i], context);
        if (kernels[i]->kind == KL_REPEAT)
            for_each_kernel(kernels[i]->repeat.body, kernels[i]->repeat.n_body, visit, context);
    }
}

/* -- planning -------------------------------------------------------------------------------------------------------------- */

typedef struct { cpu_compiler *compiler; cpu_plan *plans; bool ok; } planning;

static void plan_kernel(kl_kernel *kernel, void *context)
{
    planning *p = context;
    static cpu_planner *const planners[] = {
        [KL_LOOP] = cpu_plan_loop, [KL_LIST] = cpu_plan_list, [KL_CONTRACTION] = cpu_plan_contraction, [KL_ATTENTION] = cpu_plan_attention,
        [KL_SCATTER] = cpu_plan_scatter, [KL_REPEAT] = NULL };
    if (p->ok && planners[kernel->kind])
        p->ok = planners[kernel->kind](p->compiler, kernel, &p->plans[kernel->id]);
}

/* -- the compile trace ------------------------------------------------------------------------------------------------------ */

typedef struct { const kl_program *list; const cpu_plan *plans; ir_compile_report *report; int n[KL_REPEAT + 1], n_openblas; double flops, bytes; } survey;

static int64_t tasks_of_phase(const cpu_plan *plan, int phase)
{
    int64_t tasks = plan->n_parts ? 0 : plan->phases[phase].tasks;
    for (int i = 0; i < plan->n_parts; i++)
        if (phase < plan->parts[i].n_phases)
            tasks += plan->parts[i].phases[phase].tasks;
    return tasks;
}

static void report_kernel(kl_kernel *kernel, void *context)
{
    survey *s = context;
    const cpu_plan *plan = &s->plans[kernel->id];
    double flops = 0, bytes = 0;
    int64_t tasks = 0;
    s->n[kernel->kind]++;
    s->n_openblas += kernel->kind == KL_CONTRACTION && kernel->contraction.algorithm == CPU_PRODUCT_OPENBLAS;
    if (kernel->kind == KL_REPEAT) {
        ir_report_line(s->report, 2, "k%-4d repeat %lld times, %d kernels", kernel->id, (long long)kernel->repeat.count, kernel->repeat.n_body);
        return;
    }
    kl_cost(s->list, kernel, &flops, &bytes);
    s->flops += flops;
    s->bytes += bytes;
    for (int i = 0; i < plan->n_phases; i++)
        tasks = MAX(tasks, tasks_of_phase(plan, i));
    ir_report_line(s->report, 2, "k%-4d %-32s %10.3f MFLOP %10.3f MB %5lld tasks%s%s", kernel->id, kernel->name ? kernel->name : "", flops * 1e-6,
                   bytes * 1e-6, (long long)tasks, plan->how ? ", " : "", plan->how ? plan->how : "");
    for (int i = 0; i < plan->n_phases && plan->n_parts == 0; i++)
        if (plan->phases[i].function >= 0)
            ir_report_line(s->report, 3, "      phase %d: function %d, %lld tasks", i, plan->phases[i].function, (long long)plan->phases[i].tasks);
}

static void report_lines(ir_compile_report *report, const char *text, int level)
{
    for (const char *line = text; line && *line;) {
        int len = (int)strcspn(line, "\n");
        ir_report_line(report, level, "%.*s", len, line);
        line += len + (line[len] == '\n');
    }
}

static void report_program(const ir_executable *p, const cpu_plan *plans, const cpu_fetched *fetched, ir_compile_report *report)
{
    survey s = { .list = p->list, .plans = plans, .report = report };
    const char *pinned = getenv("OPENBLAS_CORETYPE");
    for_each_kernel(p->list->kernels, p->list->n_kernels, report_kernel, &s);
    ir_report_line(report, 1, "kernels: %d loops, %d lists of loops, %d products, %d attentions, %d scatters, %d repeats; %.3f GFLOP, %.1f MB read and written (repeats once)",
                   s.n[KL_LOOP], s.n[KL_LIST], s.n[KL_CONTRACTION], s.n[KL_ATTENTION], s.n[KL_SCATTER], s.n[KL_REPEAT], s.flops * 1e-9, s.bytes * 1e-6);
    if (s.n[KL_CONTRACTION] > s.n_openblas)
        ir_report_line(report, 1, "products: %d by generated code", s.n[KL_CONTRACTION] - s.n_openblas);
    if (s.n_openblas)
        ir_report_line(report, 1, "products: %d by OpenBLAS, kernels for %s%s", s.n_openblas, cpu_blas_open()->core, pinned ? " because of OPENBLAS_CORETYPE" : "");
    ir_report_line(report, 1, "code: %d functions, %d not in the process, %d of these not on disk; %d modules, %.1f KB", fetched->functions,
                   fetched->new_functions, fetched->compiled_functions, fetched->modules, (double)fetched->bytes / 1024);
    ir_report_line(report, 1, "stages: %d on %d threads", cpu_execution_stages(p->execution), cpu_pool_threads(process.pool));
}

/* -- dumps ------------------------------------------------------------------------------------------------------------------- */

static bool dump_text(const char *folder, const char *name, const char *what, const base_text *text)
{
    base_text path = {0};
    base_text_add(&path, "%s/%s.%s", folder, name, what);
    FILE *file = fopen(path.at, "w");
    bool written = file && fwrite(text->at, 1, text->len, file) == text->len;
    if (file && fclose(file) != 0)
        written = false;
    if (!written)
        base_fail(BASE_FAILURE, "%s: %s", path.at, strerror(errno));
    base_text_free(&path);
    return written;
}

/* The kernel list as text that parses back, and the key of each function: what its code depends on. */
static bool dump_kernels(const ir_executable *p, const cpu_compiler *c, const char *folder)
{
    base_text kernels = {0}, keys = {0};
    kl_print(&kernels, p->list);
    for (int i = 0; i < c->n_requests; i++)
        base_text_add(&keys, "function %d %s\n%s\n\n", i, c->requests[i].name, c->requests[i].key);
    base_text_add(&keys, "%s", "");
    bool written = dump_text(folder, p->list->name, "kernels", &kernels) && dump_text(folder, p->list->name, "functions", &keys);
    base_text_free(&kernels);
    base_text_free(&keys);
    return written;
}

/* -- compiling --------------------------------------------------------------------------------------------------------------- */

/* A program that will not fit is refused before it takes anything: the table says what it would take. */
static bool fits(const ir_executable *p, bool told, ir_compile_report *report)
{
    base_memory memory = base_memory_now();
    size_t wanted = cpu_execution_bytes(p->execution);
    if (told) {
        base_text table = {0};
        kl_print_memory(&table, p->list);
        report_lines(report, table.at, 1);
        base_text_free(&table);
    }
    ir_report_line(report, 1, "memory: %.1f MB for intermediates, %.1f MB of them workspace and scratch; the machine has %.1f MB, %.1f MB available",
                   (double)wanted / 1e6, (double)cpu_execution_workspace(p->execution) / 1e6, (double)memory.total_bytes / 1e6, (double)memory.available_bytes / 1e6);
    if (wanted <= memory.available_bytes + process.arena.bytes)
        return true;
    return base_fail(BASE_FAILURE, "%s: does not fit: %.1f MB for intermediates beside %.1f MB of arguments and %.1f MB of results; %.1f MB of %.1f MB are available",
                     p->list->name, (double)wanted / 1e6, (double)p->list->memory.params_bytes / 1e6, (double)p->list->memory.results_bytes / 1e6,
                     (double)memory.available_bytes / 1e6, (double)memory.total_bytes / 1e6);
}

static bool verified(const kl_program *list)
{
    base_text why = {0};
    CHECK(kl_verify(list, &why), "%s: expected a legal kernel list: %s", list->name, why.at ? why.at : "");
    base_text_free(&why);
    return true;
}

static bool finish(ir_executable *p, cpu_compiler *c, const ir_compile_options *options, ir_compile_report *report, double *since)
{
    cpu_plan *plans = p->plans = ARENA_NEW(p->arena, cpu_plan, p->list->n_ids);
    planning planning = { c, plans, true };
    cpu_fetched fetched = {0};
    for_each_kernel(p->list->kernels, p->list->n_kernels, plan_kernel, &planning);
    if (!planning.ok)
        return false;
    p->execution = cpu_execution_new(p->list, plans, cpu_pool_threads(process.pool), c->grain);
    p->list->memory.workspace_bytes = (int64_t)cpu_execution_workspace(p->execution);
    p->list->memory.arena_bytes = (int64_t)cpu_execution_bytes(p->execution);
    end_phase(report, "plan", since);
    if (!fits(p, options->verbose > 0, report) || (options->dump_dir && !dump_kernels(p, c, options->dump_dir)) ||
        !cpu_store_fetch(process.store, c, options->dump_dir, options->verify, &fetched))
        return false;
    end_phase(report, fetched.compiled_functions ? "generate" : "load", since);
    for (int i = 0; i < p->list->n_ids; i++)
        cpu_link_plan(c, &plans[i], &fetched);
    if (!cpu_execution_allocate(p->execution, &process.arena))
        return false;
    if (options->verbose > 0)                              /* it looks at every kernel */
        report_program(p, plans, &fetched, report);
    end_phase(report, "link", since);
    return true;
}

ir_executable *cpu_compile_list(kl_program *list, const ir_compile_options *options, ir_compile_report *report)
{
    double since = base_now_ms();
    if (!start()) {
        kl_program_free(list);
        return NULL;
    }
    ir_executable *p = base_alloc(sizeof *p);
    p->arena = base_arena_new();
    p->args = base_arena_new();
    p->list = list;
    cpu_legalise(p->list, &process.machine);
    end_phase(report, "legalise", &since);
    kl_plan_memory(p->list, true);
    if (options->verify)
        verified(p->list);
    end_phase(report, "memory", &since);
    cpu_compiler c = { .machine = &process.machine, .program = p->list, .arena = p->arena, .args = p->args, .report = report, .verbose = options->verbose,
                       .grain = process.grain };
    if (finish(p, &c, options, report, &since))
        return p;
    free_program(p);
    return NULL;
}

static ir_executable *compile(ir_graph *graph, const ir_compile_options *options, ir_compile_report *report)
{
    double since = base_now_ms();
    kl_program *list = kl_lower(graph);
    end_phase(report, "lower", &since);
    return cpu_compile_list(list, options, report);
}

static bool run(ir_executable *p, void *const *params, void *const *results)
{
    cpu_execute(p->execution, process.pool, params, results);
    return true;
}

static bool run_again(ir_executable *p)
{
    cpu_execute_again(p->execution, process.pool);
    return true;
}

static double began_ms(const ir_executable *p) { return cpu_execution_began_ms(p->execution); }

/* -- where time goes ---------------------------------------------------------------------------------------------------------- */

static void profile(ir_executable *p, int traced_runs)
{
    if (p->profile)
        return;
    p->profile = kl_profile_new(p->list, p->arena);
    for (int i = 0; i < p->profile->n_kernels; i++)
        p->profile->kernels[i].how = p->plans[i].how;
    cpu_execution_profile(p->execution, traced_runs);
}

static const ir_profile *profile_of(ir_executable *p)
{
    if (p->profile)
        cpu_execution_read_profile(p->execution, p->profile);
    return p->profile;
}

static bool measure_peak(ir_peak *peak) { return start() && cpu_measure_peak(&process.machine, process.pool, peak); }

static size_t arena_bytes(const ir_executable *p) { return cpu_execution_bytes(p->execution); }

static bool keep_composite(const ir_node *node) { return node->op == OP_attention || node->op == OP_attention_vjp; }

const ir_backend cpu_backend = {
    .name = "cpu",
    .keep_composite = keep_composite,
    .configure = configure,
    .shutdown = shut_down,
    .print_info = print_info,
    .compile = compile,
    .run = run,
    .run_again = run_again,
    .began_ms = began_ms,
    .free = free_program,
    .arena_bytes = arena_bytes,
    .profile = profile,
    .profile_of = profile_of,
    .measure_peak = measure_peak,
};
