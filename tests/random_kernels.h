/* What the tests of the CPU backend on random kernels share: expressions, views and outputs drawn by lot over an index space, and memory
 * with guards, held to the bit.
 *
 * Operands are small whole numbers and the ops those that are exact on them, so that no order of additions and no width of a vector
 * makes a difference. */
#ifndef TESTS_RANDOM_KERNELS_H
#define TESTS_RANDOM_KERNELS_H

#include <unistd.h>

#include "backend_cpu/backend.h"
#include "tests/graphs.h"

enum { MOST_EXPRS = 64 };

/* -- programs ----------------------------------------------------------------------------------------------------------- */

static kl_program *new_program(int kernels)
{
    base_arena *arena = base_arena_new();
    kl_program *p = ARENA_NEW(arena, kl_program, 1);
    p->arena = arena;
    p->name = "random";
    p->kernels = ARENA_NEW(arena, kl_kernel *, kernels);
    return p;
}

static kl_kernel *new_kernel(kl_program *p, kl_kind kind)
{
    kl_kernel *kernel = p->kernels[p->n_kernels++] = ARENA_NEW(p->arena, kl_kernel, 1);
    kernel->kind = kind;
    kernel->name = "random";
    return kernel;
}

/* -- expressions -------------------------------------------------------------------------------------------------------- */

/* plain: no reductions, which a product's operands and its epilogue have not. */
typedef struct { dice dice; kl_program *program; kl_loop *loop; bool plain; } writer;

static int draw(writer *w, int below) { return (int)(roll(&w->dice) * below); }

/* A view that no two indices share, but along the axes left out. */
static kl_view draw_view(writer *w, unsigned axes, int64_t *count)
{
    int order[KL_MAX_AXES], n = w->loop->n_axes;
    kl_view view = { .offset = draw(w, 3) ? 0 : draw(w, 9) };
    for (int i = 0; i < n; i++)
        order[i] = i;
    if (draw(w, 3) == 0)
        for (int i = n - 1; i > 0; i--) {
            int j = draw(w, i + 1), other = order[i];
            order[i] = order[j];
            order[j] = other;
        }
    int64_t stride = draw(w, 6) ? 1 : 1 + draw(w, 3), last = view.offset;
    for (int i = n - 1; i >= 0; i--) {
        int axis = order[i];
        if (!(axes >> axis & 1))
            continue;
        view.stride[axis] = stride;
        last += (w->loop->extent[axis] - 1) * stride;
        stride *= w->loop->extent[axis] + (draw(w, 5) ? 0 : draw(w, 4));
    }
    *count = MAX(last, 0) + 1;
    return view;
}

static int add_buffer(writer *w, kl_buffer_kind kind, ir_dtype dtype, int64_t count)
{
    kl_program *p = w->program;
    int index = kind == KL_PARAM ? p->n_params++ : p->n_results++;
    return kl_add_buffer(p, (kl_buffer){ .kind = kind, .dtype = dtype, .count = count, .index = index, .donated = -1 });
}

static unsigned some_axes(writer *w)
{
    unsigned all = (1u << w->loop->n_axes) - 1;
    return draw(w, 2) ? all : all & (unsigned)draw(w, 1 << w->loop->n_axes);
}

/* Row flags as the lowering sets them. */
static int add_expr(writer *w, kl_expr e)
{
    kl_loop *loop = w->loop;
    e.row = true;
    for (int i = 0; i < e.n_args; i++)
        e.row &= loop->exprs[e.args[i]].row || e.kind == KL_REDUCE;
    for (int i = loop->n_outer; i < loop->n_axes; i++)
        e.row &= e.view.stride[i] == 0;
    for (int i = 0; i < e.view.n_dynamic; i++)
        e.row &= loop->exprs[e.view.dynamic[i].expr].row;
    assert_true(loop->n_exprs < MOST_EXPRS);
    loop->exprs[loop->n_exprs] = e;
    return loop->n_exprs++;
}

static int add_load(writer *w, ir_dtype dtype)
{
    int64_t count;
    kl_expr e = { .kind = KL_LOAD, .dtype = dtype, .view = draw_view(w, some_axes(w), &count) };
    if (draw(w, 6) == 0) {                                  /* gathered: with room for where the index may lead */
        int index = -1;
        for (int i = 0; i < w->loop->n_exprs; i++)
            if (w->loop->exprs[i].dtype == IR_I32 && draw(w, 2))
                index = i;
        if (index >= 0) {
            e.view.n_dynamic = 1;
            e.view.dynamic = ARENA_NEW(w->program->arena, kl_dynamic, 1);
            e.view.dynamic[0] = (kl_dynamic){ index, 1 + draw(w, 5), draw(w, 7) };
            count += e.view.dynamic[0].stride * e.view.dynamic[0].limit;
        }
    }
    e.view.buffer = add_buffer(w, KL_PARAM, dtype, count);
    return add_expr(w, e);
}

static int add_op(writer *w, ir_op op, ir_dtype dtype, int n, int a, int b, int c)
{
    return add_expr(w, (kl_expr){ .kind = KL_OP, .op = op, .dtype = dtype, .n_args = n, .args = { a, b, c }, .view.buffer = -1 });
}

static int any_of(writer *w, ir_dtype dtype)
{
    int found[MOST_EXPRS], n = 0;
    for (int i = 0; i < w->loop->n_exprs; i++)
        if (w->loop->exprs[i].dtype == dtype)
            found[n++] = i;
    return n && draw(w, 6) ? found[n - 1 - draw(w, MIN(n, 4))] : add_load(w, dtype);
}

/* Kept small, so that sums and products of it stay exact: bf16 has eight bits. */
static int small(writer *w, int expr)
{
    ir_dtype dtype = w->loop->exprs[expr].dtype;
    kl_expr bound = { .kind = KL_VALUE, .dtype = dtype, .value = 3, .view.buffer = -1 };
    int high = add_expr(w, bound);
    bound.value = -3;
    int low = add_expr(w, bound);
    return add_op(w, OP_max, dtype, 2, add_op(w, OP_min, dtype, 2, expr, high, 0), low, 0);
}

static ir_dtype draw_number(writer *w)
{
    static const ir_dtype dtypes[] = { IR_F32, IR_F32, IR_F32, IR_F64, IR_BF16, IR_I32 };
    return dtypes[draw(w, (int)COUNT_OF(dtypes))];
}

MAYBE_UNUSED static void add_something(writer *w)
{
    static const ir_op binary[] = { OP_add, OP_sub, OP_mul, OP_max, OP_min }, unary[] = { OP_neg, OP_abs, OP_sign };
    static const ir_op compare[] = { OP_lt, OP_le, OP_eq, OP_ne };
    ir_dtype dtype = draw_number(w), other = draw_number(w);
    int x = any_of(w, dtype);
    int way = draw(w, 9);
    switch (way == 5 && w->plain ? 8 : way) {
    case 0:
        small(w, add_op(w, unary[draw(w, 3)], dtype, 1, x, 0, 0));
        break;
    case 1:
        if (other != dtype)
            add_op(w, OP_cast, other, 1, x, 0, 0);
        break;
    case 2: {
        int condition = add_op(w, compare[draw(w, 4)], IR_BOOL, 2, x, any_of(w, dtype), 0);
        if (draw(w, 3) == 0)
            condition = add_op(w, OP_not, IR_BOOL, 1, condition, 0, 0);
        if (draw(w, 3) == 0)
            condition = add_op(w, draw(w, 2) ? OP_and : OP_or, IR_BOOL, 2, condition, any_of(w, IR_BOOL), 0);
        add_op(w, OP_select, other, 3, condition, any_of(w, other), any_of(w, other));
        break;
    }
    case 3:
        add_expr(w, (kl_expr){ .kind = KL_VALUE, .dtype = dtype, .value = draw(w, 5) - 2 + (dtype != IR_I32 && draw(w, 3) == 0 ? 0.375 : 0), .view.buffer = -1 });
        break;
    case 4: {
        int64_t count;
        kl_expr e = { .kind = KL_INDEX, .dtype = IR_I32, .view = draw_view(w, some_axes(w), &count) };
        e.view.buffer = -1;
        small(w, add_expr(w, e));
        break;
    }
    case 5: {
        static const ir_op reductions[] = { OP_reduce_sum, OP_reduce_sum, OP_reduce_max, OP_argmax };
        ir_op op = reductions[draw(w, 4)];
        kl_expr e = { .kind = KL_REDUCE, .op = op, .dtype = op == OP_argmax ? IR_I32 : dtype, .n_args = 1, .args = { small(w, x) }, .view.buffer = -1 };
        int sum = add_expr(w, e);
        if (dtype != IR_BF16 || op != OP_reduce_sum)        /* a sum in bf16 is rounded */
            small(w, sum);
        break;
    }
    case 6: {
        int64_t count;
        kl_expr e = { .kind = KL_RANDOM, .op = OP_random_bits, .dtype = IR_I32, .n_args = 3, .site = (uint32_t)draw(w, 1000), .view = draw_view(w, some_axes(w), &count) };
        e.view.buffer = -1;
        if (draw(w, 4) == 0)
            e.view.offset += (int64_t)1 << 34;
        for (int i = 0; i < 3; i++)
            e.args[i] = add_expr(w, (kl_expr){ .kind = KL_VALUE, .dtype = IR_I32, .value = draw(w, 100) - 3, .view.buffer = -1 });
        small(w, add_expr(w, e));
        break;
    }
    default:
        small(w, add_op(w, binary[draw(w, 5)], dtype, 2, small(w, x), small(w, any_of(w, dtype)), 0));
        break;
    }
}

MAYBE_UNUSED static void add_output(writer *w, int expr)
{
    kl_loop *loop = w->loop;
    ir_dtype dtype = loop->exprs[expr].dtype;
    int least = dtype == IR_BOOL ? expr : small(w, expr);
    unsigned all = (1u << loop->n_axes) - 1, inner = all & ~((1u << loop->n_outer) - 1), axes = all;
    kl_output o = { .kind = KL_STORE, .expr = expr };
    bool sums = dtype == IR_F32 || dtype == IR_F64 || dtype == IR_I32;
    int64_t count;
    if (sums && draw(w, 3) == 0) {
        o.kind = draw(w, 2) ? KL_SUM_OUTER : KL_SUM_ALL;
        axes = o.kind == KL_SUM_OUTER ? inner : 0;
        o.expr = least;
    } else if (loop->exprs[expr].row && draw(w, 4)) {
        axes = all & ~inner;
    }
    o.accumulate = sums && draw(w, 4) == 0;
    const kl_view *in = &loop->exprs[expr].view;
    bool in_place = o.kind == KL_STORE && draw(w, 2);
    for (int i = 0; i < loop->n_exprs && in_place; i++) {   /* over an operand that is read so, and only so */
        const kl_expr *e = &loop->exprs[i];
        in = &e->view;
        bool fits = e->kind == KL_LOAD && e->dtype == dtype && !e->view.n_dynamic;
        for (int j = 0; j < loop->n_axes; j++)
            fits &= (e->view.stride[j] != 0) == (axes >> j & 1) && (loop->extent[j] > 1 || e->view.stride[j]);
        for (int j = 0; j < w->program->n_buffers && fits; j++)
            fits = w->program->buffers[j].kind != KL_RESULT || w->program->buffers[j].donated != w->program->buffers[e->view.buffer].index;
        if (fits) {
            o.view = *in;
            o.view.buffer = add_buffer(w, KL_RESULT, dtype, w->program->buffers[e->view.buffer].count);
            w->program->buffers[o.view.buffer].donated = w->program->buffers[e->view.buffer].index;
            loop->outputs[loop->n_outputs++] = o;
            return;
        }
    }
    o.view = draw_view(w, axes, &count);
    o.view.buffer = add_buffer(w, KL_RESULT, dtype, count);
    loop->outputs[loop->n_outputs++] = o;
}

/* -- machine ---------------------------------------------------------------------------------------------------------- */

static char cache_dir[] = "/tmp/rax-random-XXXXXX";

static void configure(const char *isa, int threads)
{
    if (!cpu_backend.configure(&(ir_backend_settings){ .threads = threads, .isa = isa, .cache_dir = cache_dir }))
        fail_msg("%s", base_error());
    cpu_set_grain((cpu_grain){ .task_ns = 20, .shared_ns = 0 });
}

/* -- running ------------------------------------------------------------------------------------------------------------- */

typedef struct { char **params, **results; } memory;

/* Parameters as the seed has them, results as bytes that nothing writes. */
static memory new_memory(const kl_program *p, uint64_t seed)
{
    memory m = { room(sizeof(char *) * (size_t)(p->n_params + 1)), room(sizeof(char *) * (size_t)(p->n_results + 1)) };
    dice d = { seed };
    for (int i = 0; i < p->n_buffers; i++) {
        const kl_buffer *b = &p->buffers[i];
        size_t bytes = (size_t)(b->count * ir_dtype_bytes(b->dtype));
        if (b->kind == KL_RESULT && b->donated >= 0)
            continue;
        ir_array x = { .type.dtype = b->dtype, .data = guarded_room(bytes) };
        for (int64_t j = 0; j < b->count; j++)
            put(&x, j, b->kind == KL_RESULT ? 1 : b->dtype == IR_BOOL ? roll(&d) < 0.5 : floor(7 * roll(&d)) - 3);
        *(b->kind == KL_PARAM ? &m.params[b->index] : &m.results[b->index]) = x.data;
    }
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].kind == KL_RESULT && p->buffers[i].donated >= 0)
            m.results[p->buffers[i].index] = m.params[p->buffers[i].donated];
    return m;
}

static void fail_at(const kl_program *p, const char *format, ...) PRINTF_LIKE(2, 3);
static void fail_at(const kl_program *p, const char *format, ...)
{
    base_text text = {0};
    va_list args;
    va_start(args, format);
    base_text_addv(&text, format, args);
    va_end(args);
    base_text_add(&text, "\n");
    kl_print(&text, p);
    fprintf(stderr, "%s", text.at);
    base_text_free(&text);
    fail_msg("a kernel is wrong");
}

static void compare(const kl_program *p, const memory *got, const memory *expected, uint64_t seed, const char *isa, int threads)
{
    for (int i = 0; i < p->n_buffers; i++) {
        const kl_buffer *b = &p->buffers[i];
        size_t bytes = (size_t)(b->count * ir_dtype_bytes(b->dtype));
        const char *x = b->kind == KL_PARAM ? got->params[b->index] : got->results[b->index];
        const char *y = b->kind == KL_PARAM ? expected->params[b->index] : expected->results[b->index];
        if (!memcmp(x - GUARD, y - GUARD, bytes + 2 * GUARD))
            continue;
        ir_array a = { .type.dtype = b->dtype, .data = (void *)(uintptr_t)x }, c = { .type.dtype = b->dtype, .data = (void *)(uintptr_t)y };
        for (int64_t j = 0; j < b->count; j++)
            if (!(get(&a, j) == get(&c, j) || (isnan(get(&a, j)) && isnan(get(&c, j)))))
                fail_at(p, "SEED=%llu %s, %d threads: buffer %d, element %lld: expected %g, got %g", (unsigned long long)seed, isa, threads, i,
                        (long long)j, get(&c, j), get(&a, j));
        if (!guards_hold(x, bytes))
            fail_at(p, "SEED=%llu %s, %d threads: buffer %d: written outside of its memory", (unsigned long long)seed, isa, threads, i);
    }
}

static void forget(int blocks)
{
    while (made.n > blocks)
        base_free(made.block[--made.n]);
}

typedef kl_program *program_maker(uint64_t seed);

/* Compiled and interpreted, from equal memory. */
static void check_program(program_maker *make, uint64_t seed, const char *isa, int threads)
{
    int blocks = made.n;
    kl_program *p = make(seed), *oracle = make(seed);
    base_text why = {0};
    ir_compile_report report = {0};
    if (!kl_verify(oracle, &why))
        fail_at(oracle, "SEED=%llu: not a legal program: %s", (unsigned long long)seed, why.at);
    base_text_free(&why);
    memory got = new_memory(p, seed), expected = new_memory(p, seed);
    kl_plan_memory(oracle, false);
    assert_true(kl_run(oracle, (void *const *)expected.params, (void *const *)expected.results));
    ir_executable *e = cpu_compile_list(p, &(ir_compile_options){ .name = "random", .verify = true }, &report);
    if (!e)
        fail_at(oracle, "SEED=%llu %s: %s", (unsigned long long)seed, isa, base_error());
    assert_true(cpu_backend.run(e, (void *const *)got.params, (void *const *)got.results));
    compare(oracle, &got, &expected, seed, isa, threads);
    cpu_backend.free(e);
    kl_program_free(oracle);
    base_text_free(&report.lines);
    forget(blocks);
}

/* Each instruction set has programs of its own. SEED=n: that program alone; PROGRAMS=n: so many. */
MAYBE_UNUSED static void check_all(program_maker *make, int programs, cpu_isa isa, int threads)
{
    const char *seed = getenv("SEED"), *count = getenv("PROGRAMS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 1 + 1000 * (uint64_t)isa, n = seed ? 1 : count ? strtoull(count, NULL, 10) : (uint64_t)programs;
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, ""));
    if (isa > machine.best_isa)
        skip();
    configure(cpu_isa_name(isa), threads);
    for (uint64_t i = first; i < first + n; i++)
        check_program(make, i, cpu_isa_name(isa), threads);
    cpu_backend.shutdown();
}

/* A group of tests with a cache of their own. */
#define run_random_group(name, tests) (mkdtemp(cache_dir) ? cmocka_run_group_tests_name(name, tests, NULL, remove_cache) : 1)
static int remove_cache(void **state)
{
    char command[64];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", cache_dir);
    return system(command) != 0;
}

#endif
