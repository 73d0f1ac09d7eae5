/* What the tests of the CPU backend's kernel kinds share: tensors with any strides and guarded memory, and a kernel of one's own
 * making that is planned, compiled and run, task by task, as the backend does. */
#ifndef TESTS_CPU_KERNELS_H
#define TESTS_CPU_KERNELS_H

#include <llvm-c/Core.h>

#include "backend_cpu/backend.h"
#include "tests/graphs.h"

/* -- tensors ------------------------------------------------------------------------------------------------------------ */

enum { MAX_TENSOR_RANK = 4, GUARD_BYTES = 256 };

/* Element 0 is offset elements behind the guard. */
typedef struct {
    ir_dtype dtype;
    int rank;
    int64_t extent[MAX_TENSOR_RANK], stride[MAX_TENSOR_RANK], offset;
    size_t bytes;               /* with both guards */
    uint8_t *data, *before;     /* before: as it was made */
} tensor;

MAYBE_UNUSED static int64_t tensor_count(const tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->extent[i];
    return n;
}

/* Row-major index to element. */
MAYBE_UNUSED static int64_t tensor_offset(const tensor *t, int64_t i)
{
    int64_t offset = t->offset;
    for (int axis = t->rank - 1; axis >= 0; axis--) {
        offset += i % t->extent[axis] * t->stride[axis];
        i /= t->extent[axis];
    }
    return offset;
}

MAYBE_UNUSED static tensor new_tensor(ir_dtype dtype, int rank, const int64_t *extent, const int64_t *stride, int64_t offset)
{
    tensor t = { .dtype = dtype, .rank = rank, .offset = offset };
    int64_t last = offset;
    for (int i = 0; i < rank; i++) {
        t.extent[i] = extent[i], t.stride[i] = stride[i];
        last += MAX(extent[i] - 1, 0) * stride[i];
    }
    t.bytes = 2 * GUARD_BYTES + (size_t)(last + 1) * (size_t)ir_dtype_bytes(dtype);
    t.data = room(t.bytes), t.before = room(t.bytes);
    dice d = { 99 };
    for (size_t i = 0; i < t.bytes; i++)
        t.data[i] = t.before[i] = (uint8_t)(256 * roll(&d));
    return t;
}

MAYBE_UNUSED static double get_element(const tensor *t, int64_t i)
{
    ir_array x = { .type.dtype = t->dtype, .data = t->data + GUARD_BYTES };
    return get(&x, tensor_offset(t, i));
}

MAYBE_UNUSED static void set_element(tensor *t, int64_t i, double value)
{
    ir_array x = { .type.dtype = t->dtype, .data = t->data + GUARD_BYTES };
    put(&x, tensor_offset(t, i), value);
}

MAYBE_UNUSED static void fill_tensor(tensor *t, dice *d, double lo, double hi)
{
    for (int64_t i = 0, n = tensor_count(t); i < n; i++)
        set_element(t, i, lo + (hi - lo) * roll(d));
}

/* What is no element of the tensor is as it was. */
MAYBE_UNUSED PRINTF_LIKE(2, 3) static void check_guards(const tensor *t, const char *format, ...)
{
    uint8_t *is_element = base_alloc(t->bytes);
    size_t size = (size_t)ir_dtype_bytes(t->dtype);
    for (int64_t i = 0, n = tensor_count(t); i < n; i++)
        memset(is_element + GUARD_BYTES + (size_t)tensor_offset(t, i) * size, 1, size);
    for (size_t i = 0; i < t->bytes; i++)
        if (!is_element[i] && t->data[i] != t->before[i]) {
            base_text what = {0};
            va_list args;
            va_start(args, format);
            base_text_addv(&what, format, args);
            va_end(args);
            fail_msg("%s: byte %zd from the first element is of no element, and was changed", what.at,
                     (ssize_t)i - GUARD_BYTES - (ssize_t)((size_t)t->offset * size));
        }
    base_free(is_element);
}

/* -- machine and code --------------------------------------------------------------------------------------------------- */

typedef struct { char *key; cpu_isa isa; char name[40]; cpu_code *code; } compiled_code;
static struct {
    cpu_machine machine;
    cpu_jit *jit;
    cpu_isa jit_isa;
    int n_codes;
    compiled_code codes[64];
    size_t jit_blocks;
} kernels;

MAYBE_UNUSED static cpu_machine *test_machine(void) { return &kernels.machine; }

static void forget_code(void)
{
    for (int i = 0; i < kernels.n_codes; i++) {
        cpu_code_free(kernels.codes[i].code);
        base_free(kernels.codes[i].key);
    }
    kernels.n_codes = 0;
    cpu_jit_free(kernels.jit);
    kernels.jit = NULL;
}

MAYBE_UNUSED static int kernels_begin(void **state)
{
    if (graphs_begin(state) != 0)
        return 1;
    if (!cpu_machine_detect(&kernels.machine, NULL)) {
        print_message("# %s\n", base_error());
        return 1;
    }
    return 0;
}

MAYBE_UNUSED static int kernels_done(void **state)
{
    forget_code();
    return graphs_done(state);
}

#define KERNEL_TEST(function) cmocka_unit_test_setup_teardown(function, kernels_begin, kernels_done)

typedef struct { const cpu_request *request; } build_context;

static bool build_request(void *context, int i, LLVMModuleRef module)
{
    const cpu_request *request = ((const build_context *)context)[i].request;
    request->emit(request->context, &kernels.machine, module, request->name);
    return true;
}

static const compiled_code *code_of(const cpu_request *request)
{
    for (int i = 0; i < kernels.n_codes; i++)
        if (kernels.codes[i].isa == kernels.machine.isa && strcmp(kernels.codes[i].key, request->key) == 0)
            return &kernels.codes[i];
    if (kernels.jit && kernels.jit_isa != kernels.machine.isa)
        forget_code();
    if (!kernels.jit) {
        kernels.jit = cpu_jit_new(&kernels.machine);
        kernels.jit_isa = kernels.machine.isa;
        assert_non_null(kernels.jit);
        cpu_jit_set_verify(kernels.jit, true);
        cpu_jit_set_dump(kernels.jit, getenv("RAX_TEST_DUMP"));
    }
    assert_true(kernels.n_codes < (int)COUNT_OF(kernels.codes));
    compiled_code *c = &kernels.codes[kernels.n_codes++];
    *c = (compiled_code){ .key = base_strdup(request->key), .isa = kernels.machine.isa };
    snprintf(c->name, sizeof c->name, "%s", request->name);
    base_bytes object = {0};
    if (!cpu_jit_compile_many(kernels.jit, 1, build_request, &(build_context){ request }, 1, &object))
        fail_msg("%s: %s", request->key, base_error());
    c->code = cpu_code_load(&object, 1, NULL, 0);
    if (!c->code)
        fail_msg("%s: %s", request->key, base_error());
    base_bytes_free(&object);
    return c;
}

/* -- one kernel --------------------------------------------------------------------------------------------------------- */

typedef struct {
    kl_program *program;
    kl_kernel *kernel;
    char *buffers[32];
} one_kernel;

MAYBE_UNUSED static one_kernel begin_kernel(kl_kind kind)
{
    one_kernel k = {0};
    base_arena *arena = base_arena_new();
    k.program = ARENA_NEW(arena, kl_program, 1);
    k.program->arena = arena;
    k.program->name = "test";
    k.program->buffers = ARENA_NEW(arena, kl_buffer, COUNT_OF(k.buffers));
    k.program->cap_buffers = COUNT_OF(k.buffers);
    k.kernel = ARENA_NEW(arena, kl_kernel, 1);
    *k.kernel = (kl_kernel){ .kind = kind, .name = "test" };
    return k;
}

MAYBE_UNUSED static kl_view view_of(one_kernel *k, tensor *t)
{
    int buffer = k->program->n_buffers++;
    assert_true(buffer < k->program->cap_buffers);
    k->program->buffers[buffer] = (kl_buffer){ .kind = KL_PARAM, .dtype = t->dtype, .index = buffer, .donated = -1,
                                               .count = (int64_t)(t->bytes - 2 * GUARD_BYTES) / ir_dtype_bytes(t->dtype) };
    k->buffers[buffer] = (char *)t->data + GUARD_BYTES;
    kl_view view = { .buffer = buffer, .offset = t->offset };
    memcpy(view.stride, t->stride, sizeof t->stride);
    return view;
}

typedef struct {
    const cpu_plan *plan;
    const int64_t *args;
    char *const *buffers;
    cpu_task *code[CPU_MAX_PHASES];
    char *scratch;
    size_t scratch_stride;
    cpu_pool *pool;
    cpu_tasks tasks[CPU_MAX_PHASES];
} kernel_run;

static void run_on_thread(void *context, int thread, int n_threads)
{
    kernel_run *run = context;
    (void)n_threads;
    for (int phase = 0; phase < run->plan->n_phases; phase++) {
        for (int64_t task; (task = cpu_next_task(&run->tasks[phase], 1)) < run->plan->phases[phase].tasks;)
            run->code[phase](run->args + run->plan->phases[phase].arg_base, run->buffers, task,
                             run->scratch + (size_t)thread * run->scratch_stride);
        cpu_barrier(run->pool);
    }
}

/* What a test that measures needs: everything of a kernel but the run. */
typedef struct { kernel_run run; cpu_plan *plan; base_arena *arena; void *memory; size_t memory_bytes; } ready_kernel;

MAYBE_UNUSED static ready_kernel make_ready(one_kernel *k, cpu_planner *planner, int threads)
{
    base_arena *arena = k->program->arena;
    ready_kernel ready = { .plan = ARENA_NEW(arena, cpu_plan, 1), .arena = arena };
    cpu_compiler compiler = { .machine = &kernels.machine, .program = k->program, .arena = arena, .args = arena };
    cpu_plan *plan = ready.plan;
    if (!planner(&compiler, k->kernel, plan))
        fail_msg("%s", base_error());

    void **address = ARENA_NEW(arena, void *, compiler.n_requests + 1);
    const cpu_code **code = ARENA_NEW(arena, const cpu_code *, compiler.n_requests + 1);
    for (int i = 0; i < compiler.n_requests; i++) {
    const compiled_code *c = code_of(&compiler.requests[i]);
        address[i] = cpu_code_find(c->code, c->name);
        code[i] = c->code;
    }
    if (plan->link)
        plan->link(plan, &(cpu_linked){ &compiler, address, code });

    kernel_run *run = &ready.run;
    for (int i = 0; i < plan->n_phases; i++) {
        run->code[i] = plan->phases[i].code;
        if (!run->code[i])
            memcpy(&run->code[i], &address[plan->phases[i].function], sizeof(void *));
        assert_non_null(run->code[i]);
    }
    run->scratch_stride = ((plan->scratch_bytes + 63) & ~(size_t)63) + 64;
    ready.memory_bytes = plan->workspace_bytes + 64 + run->scratch_stride * (size_t)threads;
    ready.memory = base_alloc(ready.memory_bytes);
    memset(ready.memory, 0xff, ready.memory_bytes);          /* NaN */
    char **buffers = ARENA_NEW(arena, char *, k->program->n_buffers + 1);
    memcpy(buffers, k->buffers, sizeof(char *) * (size_t)k->program->n_buffers);
    buffers[k->program->n_buffers] = ready.memory;
    run->plan = plan, run->args = plan->args, run->buffers = buffers;
    run->scratch = (char *)ready.memory + ((plan->workspace_bytes + 63) & ~(size_t)63);
    run->pool = cpu_pool_new(threads);
    assert_non_null(run->pool);
    return ready;
}

MAYBE_UNUSED static void run_ready(ready_kernel *ready)
{
    for (int i = 0; i < CPU_MAX_PHASES; i++)
        cpu_tasks_reset(&ready->run.tasks[i]);
    cpu_pool_run(ready->run.pool, run_on_thread, &ready->run);
}

/* Frees the kernel and its program. */
MAYBE_UNUSED static void end_ready(ready_kernel *ready)
{
    cpu_pool_free(ready->run.pool);
    base_free(ready->memory);
    base_arena_free(ready->arena);
}

MAYBE_UNUSED static void run_one_kernel(one_kernel *k, cpu_planner *planner, int threads)
{
    ready_kernel ready = make_ready(k, planner, threads);
    run_ready(&ready);
    end_ready(&ready);
}

#endif
