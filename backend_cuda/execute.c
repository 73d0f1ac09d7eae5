/* Runs a program: all its launches, repeats unrolled, are captured once as a CUDA graph, and a run is one launch of the graph. The first run is none: its
 * launches are given to the stream one by one, so that what the driver and cuBLASLt load when it is first used is there before anything is captured.
 *
 * A graph holds addresses. Parameters and results that lie where they lay before find their graph again; a few are kept, for results
 * that go to one place and the other by turns. All runs are on one stream, in the order of the list, so that no kernel needs an event. */
#include "backend_cuda/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRAPHS = 4 };

typedef struct { cuda_graph_exec exec; void **addresses; int64_t used; } graph;

struct cuda_execution {
    cuda_device *device;
    const kl_program *program;
    const cuda_compiler *compiler;
    const cuda_plan *plans;
    const cuda_fetched *fetched;
    base_arena *arena;
    int host_params;
    cuda_ready **products;                 /* by kernel id, by step */
    size_t arena_bytes, workspace_bytes, blas_bytes, const_bytes, total_bytes;
    char *memory;                          /* arena, workspace, cuBLASLt's, constants, host parameters */
    char **fixed;                          /* of constants, by buffer */
    uint64_t *scalars;                     /* host parameters on their way */
    int64_t *iteration;
    void *const *params, *const *results;  /* of the run in progress */
    size_t n_addresses;
    void **addresses;                      /* both, but for what lies in host memory */
    graph graphs[GRAPHS];
    int64_t runs;
    int launches;
    cuda_profile *profile;                 /* NULL while nobody asks */
};

/* -- addresses ---------------------------------------------------------------------------------------------------------- */

static char *scalar_place(const cuda_execution *x, int index)
{
    return x->memory + x->arena_bytes + x->workspace_bytes + x->blas_bytes + x->const_bytes + 8 * (size_t)(index - (x->program->n_params - x->host_params));
}

static char *address(const cuda_execution *x, int buffer)
{
    const kl_program *p = x->program;
    if (buffer == p->n_buffers)
        return x->memory + x->arena_bytes;
    const kl_buffer *b = &p->buffers[buffer];
    switch (b->kind) {
    case KL_PARAM:  return b->index >= p->n_params - x->host_params ? scalar_place(x, b->index) : x->params[b->index];
    case KL_RESULT: return x->results[b->index];
    case KL_CONST:  return x->fixed[buffer];
    case KL_TEMP:   return x->memory + b->arena_offset;
    case KL_MOVING: return address(x, b->base) + (b->offset + x->iteration[b->repeat] * b->step) * ir_dtype_bytes(b->dtype);
    }
    CHECK(false, "b%d: expected a kind, got %d", buffer, (int)b->kind);
    return NULL;
}

static char *place(const cuda_execution *x, cuda_arg arg) { return address(x, arg.buffer) + arg.value; }

/* -- launches --------------------------------------------------------------------------------------------------------------- */

static bool launch(cuda_execution *x, const cuda_launch *l, const char *kernel)
{
    enum { MOST_ARGS = 4096 };
    int64_t args[MOST_ARGS];
    size_t size = sizeof *args * (size_t)l->n_args;
    void *extra[] = { CUDA_LAUNCH_POINTER, args, CUDA_LAUNCH_SIZE, &size, CUDA_LAUNCH_END };
    CHECK(l->n_args <= MOST_ARGS && l->grid <= INT32_MAX, "%s: expected at most %d parameters and 2^31 blocks", kernel, MOST_ARGS);
    for (int i = 0; i < l->n_args; i++)
        args[i] = l->args[i].buffer < 0 ? l->args[i].value : (int64_t)(intptr_t)place(x, l->args[i]);
    return cuda_ok(x->device, cuda_device_library(x->device)->launch(x->fetched->function[l->code], (unsigned)l->grid, 1, 1, (unsigned)l->threads, 1, 1, (unsigned)l->shared_bytes,
                                                                     cuda_device_stream(x->device), NULL, extra), kernel);
}

static bool multiply(cuda_execution *x, const cuda_product *p, const cuda_ready *ready)
{
    bool bias = p->epilogue & CUDA_EPILOGUE_ANY_BIAS, aux = p->epilogue & CUDA_EPILOGUE_AUX;
    cuda_places at = { .a = place(x, p->a), .b = place(x, p->b), .c = p->adds ? place(x, p->c) : NULL, .d = place(x, p->d), .bias = bias ? place(x, p->bias) : NULL, .aux = aux ? place(x, p->aux) : NULL,
                       .workspace = x->memory + x->arena_bytes + x->workspace_bytes };
    return cuda_multiply(x->device, p, ready, &at);
}

typedef bool visit_step(cuda_execution *x, const kl_kernel *kernel, int step);

/* Every step of a run in order, repeats unrolled where `unrolled`. */
static bool walk(cuda_execution *x, kl_kernel *const *kernels, int n, bool unrolled, visit_step *visit)
{
    for (int i = 0; i < n; i++) {
        const kl_kernel *kernel = kernels[i];
        int64_t count = kernel->kind != KL_REPEAT ? 0 : unrolled ? kernel->repeat.count : 1;
        for (int64_t j = 0; j < count; j++) {
            x->iteration[kernel->repeat.id] = kernel->repeat.reverse ? kernel->repeat.count - 1 - j : j;
            if (!walk(x, kernel->repeat.body, kernel->repeat.n_body, unrolled, visit))
                return false;
        }
        for (int s = 0; kernel->kind != KL_REPEAT && s < x->plans[kernel->id].n_steps; s++)
            if (!visit(x, kernel, s))
                return false;
    }
    return true;
}

static bool issue(cuda_execution *x, const kl_kernel *kernel, int step)
{
    const cuda_step *s = &x->plans[kernel->id].steps[step];
    bool issued = s->is_product ? multiply(x, &s->product, &x->products[kernel->id][step]) : launch(x, &s->launch, kernel->name ? kernel->name : "kernel");
    return issued && (!x->profile || cuda_profile_mark(x->profile, kernel->id, step == 0));
}

static bool issue_all(cuda_execution *x, bool captured)
{
    return (!x->profile || cuda_profile_begin(x->profile, captured)) && walk(x, x->program->kernels, x->program->n_kernels, true, issue);
}

static bool count(cuda_execution *x, const kl_kernel *kernel, int step)
{
    (void)kernel, (void)step;
    x->launches++;
    return true;
}

/* -- making and ending ----------------------------------------------------------------------------------------------------------- */

static bool prepare(cuda_execution *x, const kl_kernel *kernel, int step)
{
    const cuda_plan *plan = &x->plans[kernel->id];
    const cuda_step *s = &plan->steps[step];
    if (!x->products[kernel->id])
        x->products[kernel->id] = ARENA_NEW(x->arena, cuda_ready, plan->n_steps);
    x->workspace_bytes = MAX(x->workspace_bytes, cuda_rounded(plan->workspace_bytes));
    if (s->is_product) {
        cuda_ready *ready = &x->products[kernel->id][step];
        bool found = cuda_ready_product(x->device, x->program, &s->product, ready);
        x->blas_bytes = MAX(x->blas_bytes, cuda_rounded(ready->workspace_bytes));
        return found;
    }
    return s->launch.shared_bytes <= 48 << 10 ||
           cuda_ok(x->device, cuda_device_library(x->device)->function_set(x->fetched->function[s->launch.code], CUDA_FUNCTION_DYNAMIC_SHARED, (int)s->launch.shared_bytes),
                   "shared memory of a block");
}

cuda_execution *cuda_execution_new(cuda_device *device, const cuda_compiler *compiler, const cuda_plan *plans, const cuda_fetched *fetched, int host_params)
{
    const kl_program *program = compiler->program;
    cuda_execution *x = base_alloc(sizeof *x);
    *x = (cuda_execution){ .device = device, .program = program, .compiler = compiler, .plans = plans, .fetched = fetched, .host_params = host_params, .arena = base_arena_new() };
    x->products = ARENA_NEW(x->arena, cuda_ready *, MAX(program->n_ids, 1));
    x->iteration = ARENA_NEW(x->arena, int64_t, MAX(program->n_repeats, 1));
    x->fixed = ARENA_NEW(x->arena, char *, program->n_buffers + 1);
    x->scalars = ARENA_NEW(x->arena, uint64_t, host_params + 1);
    x->n_addresses = (size_t)(program->n_params - host_params + program->n_results);
    x->addresses = ARENA_NEW(x->arena, void *, x->n_addresses + 1);
    for (int i = 0; i < GRAPHS; i++)
        x->graphs[i].addresses = ARENA_NEW(x->arena, void *, x->n_addresses + 1);
    if (!walk(x, program->kernels, program->n_kernels, false, prepare)) {
        cuda_execution_free(x);
        return NULL;
    }
    walk(x, program->kernels, program->n_kernels, true, count);
    x->arena_bytes = cuda_rounded((size_t)program->memory.arena_bytes);
    for (int i = 0; i < program->n_buffers; i++)
        if (program->buffers[i].kind == KL_CONST)
            x->const_bytes += cuda_rounded((size_t)(program->buffers[i].count * ir_dtype_bytes(program->buffers[i].dtype)));
    x->total_bytes = x->arena_bytes + x->workspace_bytes + x->blas_bytes + x->const_bytes + cuda_rounded(8 * (size_t)host_params);
    return x;
}

bool cuda_execution_allocate(cuda_execution *x)
{
    x->memory = cuda_memory_new(x->device, x->total_bytes);
    char *at = x->memory + x->arena_bytes + x->workspace_bytes + x->blas_bytes;
    for (int i = 0; x->memory && i < x->program->n_buffers; i++) {
        const kl_buffer *b = &x->program->buffers[i];
        size_t bytes = b->kind == KL_CONST ? (size_t)(b->count * ir_dtype_bytes(b->dtype)) : 0;
        if (b->kind != KL_CONST)
            continue;
        x->fixed[i] = at;
        at += cuda_rounded(bytes);
        if (!cuda_upload(x->device, x->fixed[i], b->data, bytes))
            return false;
    }
    return x->memory != NULL;
}

static void drop_graphs(cuda_execution *x)
{
    for (int i = 0; i < GRAPHS; i++)
        if (x->graphs[i].exec) {
            cuda_device_library(x->device)->graph_exec_free(x->graphs[i].exec);
            x->graphs[i].exec = NULL;
        }
}

void cuda_execution_free(cuda_execution *x)
{
    if (!x)
        return;
    cuda_memory_free(x->device, x->memory);
    drop_graphs(x);
    cuda_profile_free(x->profile);
    for (int i = 0; i < x->program->n_ids; i++)
        for (int s = 0; x->products[i] && s < x->plans[i].n_steps; s++)
            cuda_ready_free(x->device, &x->products[i][s]);
    base_arena_free(x->arena);
    base_free(x);
}

void cuda_execution_profile(cuda_execution *x, int traced_runs)
{
    if (x->profile)
        return;
    cuda_wait(x->device);
    drop_graphs(x);
    x->profile = cuda_profile_new(x->device, x->program->n_ids, traced_runs);
}

void cuda_execution_read_profile(const cuda_execution *x, ir_profile *profile) { cuda_profile_read(x->profile, profile); }

size_t cuda_execution_bytes(const cuda_execution *x) { return x->total_bytes; }
size_t cuda_execution_workspace(const cuda_execution *x) { return x->workspace_bytes + x->blas_bytes; }
int cuda_execution_launches(const cuda_execution *x) { return x->launches; }

/* -- a run --------------------------------------------------------------------------------------------------------------------------- */

/* The graph for these addresses: one that is there, or captured now in the place of the one that was not used for longest. */
static graph *graph_for_run(cuda_execution *x)
{
    const cuda_library *l = cuda_device_library(x->device);
    cuda_stream stream = cuda_device_stream(x->device);
    int oldest = 0;
    for (int i = 0; i < GRAPHS; i++) {
        graph *g = &x->graphs[i];
        if (g->exec && !memcmp(g->addresses, x->addresses, sizeof(void *) * x->n_addresses))
            return g;
        oldest = g->used < x->graphs[oldest].used ? i : oldest;
    }
    graph *g = &x->graphs[oldest];
    cuda_graph captured = NULL;
    if (g->exec) {
        l->stream_wait(stream);
        l->graph_exec_free(g->exec);
        g->exec = NULL;
    }
    if (!cuda_ok(x->device, l->capture_begin(stream, CUDA_CAPTURE_RELAXED), "cuStreamBeginCapture"))
        return NULL;
    bool issued = issue_all(x, true);
    int ended = l->capture_end(stream, &captured);          /* where a launch has failed, that is the error */
    bool made = issued && cuda_ok(x->device, ended, "cuStreamEndCapture") && cuda_ok(x->device, l->graph_instantiate(&g->exec, captured, 0), "cuGraphInstantiate");
    if (captured)
        l->graph_free(captured);
    if (!made)
        return NULL;
    memcpy(g->addresses, x->addresses, sizeof(void *) * x->n_addresses);
    return g;
}

static bool start_graph(cuda_execution *x)
{
    graph *g = graph_for_run(x);
    if (!g)
        return false;
    g->used = x->runs;
    return cuda_ok(x->device, cuda_device_library(x->device)->graph_launch(g->exec, cuda_device_stream(x->device)), "cuGraphLaunch");
}

/* -- one by one, to name a kernel that fails ------------------------------------------------------------------------------------------ */

/* Where the source of a launch was written, or what to say without one. */
static char *keep_source(const cuda_execution *x, const cuda_step *s)
{
    const char *folder = getenv("TMPDIR");
    base_text path = {0};
    if (s->is_product) {
        base_text_add(&path, "it is cuBLASLt's, %lld x %lld x %lld", (long long)s->product.m, (long long)s->product.n, (long long)s->product.k);
        return base_text_take(&path);
    }
    const cuda_request *request = &x->compiler->requests[s->launch.code];
    char *source = cuda_request_source(request);
    base_text_add(&path, "%s/%s.cu", folder && *folder ? folder : "/tmp", request->name);
    FILE *file = fopen(path.at, "w");
    bool written = file && fputs(source, file) >= 0;
    if (file)
        fclose(file);
    base_free(source);
    char *said = base_strdup(path.at);
    base_text_free(&path);
    base_text_add(&path, written ? "its source is in %s" : "its source could not be written to %s", said);
    base_free(said);
    return base_text_take(&path);
}

static bool issue_and_wait(cuda_execution *x, const kl_kernel *kernel, int step)
{
    if (issue(x, kernel, step) && cuda_wait(x->device))
        return true;
    char *source = keep_source(x, &x->plans[kernel->id].steps[step]), *error = base_strdup(base_error());
    base_fail(BASE_FAILURE, "%s: k%d %s (%s:%d): %s; %s", x->program->name, kernel->id, kernel->name ? kernel->name : "", kernel->place.file ? kernel->place.file : "rax",
              kernel->place.line, error, source);
    base_free(source);
    base_free(error);
    return false;
}

/* Small results are on their way to the host when this returns; nothing is waited for. */
static bool copy_results_early(const cuda_execution *x)
{
    const kl_program *p = x->program;
    for (int i = 0; i < p->n_buffers; i++) {
        const kl_buffer *b = &p->buffers[i];
        size_t bytes = (size_t)(b->count * ir_dtype_bytes(b->dtype));
        if (b->kind == KL_RESULT && bytes > 0 && bytes <= CUDA_EARLY_BYTES && !cuda_copy_early(x->device, x->results[b->index], bytes))
            return false;
    }
    return true;
}

bool cuda_execute(cuda_execution *x, void *const *params, void *const *results)
{
    const kl_program *p = x->program;
    x->params = params;
    x->results = results;
    for (int i = 0; i < p->n_buffers; i++) {
        const kl_buffer *b = &p->buffers[i];
        int scalar = b->index - (p->n_params - x->host_params);
        if (b->kind == KL_PARAM && scalar >= 0)
            memcpy(&x->scalars[scalar], params[b->index], (size_t)ir_dtype_bytes(b->dtype));
    }
    if (x->host_params && !cuda_put(x->device, scalar_place(x, p->n_params - x->host_params), x->scalars, 8 * (size_t)x->host_params))
        return false;
    if (cuda_is_blocking())
        return walk(x, p->kernels, p->n_kernels, true, issue_and_wait);
    for (size_t i = 0, of_params = (size_t)(p->n_params - x->host_params); i < x->n_addresses; i++)
        x->addresses[i] = i < of_params ? params[i] : results[i - of_params];
    return (x->runs++ == 0 ? issue_all(x, false) : start_graph(x)) && copy_results_early(x) && cuda_run_end(x->device, (int)x->n_addresses, x->addresses) &&
           (!x->profile || cuda_profile_add_run(x->profile));
}
