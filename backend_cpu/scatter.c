/* Scatter-add: target[pre, index(p), post] += updates[pre, p, post], p in order.
 *
 *     for p                                  the gradient of an embedding: post are the columns of a row, as many as C
 *         row = clamp(index(p))
 *         target[row, columns] += updates[p, columns]
 *
 * Many positions may share a row, so positions are never split: a task is a range of columns of all of them, or of pre,
 * and adds in the order that the interpreter has. Lanes are columns. */
#include "backend_cpu/backend.h"
#include "backend_cpu/gemm_emit.h"

enum { TASKS = 8, LEAST_COLUMN_BYTES = 128 };

/* Where args has what. */
enum { TARGET, INDICES = 2, UPDATES = 4,                                                    /* views */
       TARGET_PRE = 6, TARGET_ROW, TARGET_POST, INDEX_STRIDE, UPDATE_PRE, UPDATE_POSITION, UPDATE_POST,    /* strides */
       PRE, POSITIONS, ROWS, POST, TASK_PRE, TASK_COLUMNS, N_ARGS };

typedef struct { ir_dtype dtype; bool unit_stride; } scatter_class;

typedef struct {
    emitter e;
    ir_dtype dtype;
    int bytes;
    value arg[N_ARGS];
} scatterer;

static value pointer_of(const scatterer *s, value args, value buffers, int index)
{
    const emitter *e = &s->e;
    value number = load_field(e, args, (size_t)index * 8, e->i64);
    value base = LLVMBuildLoad2(e->v.builder, e->pointer, advance(e, buffers, imul_constant(e, number, sizeof(char *))),
                                "");
    return advance(e, base, load_field(e, args, (size_t)(index + 1) * 8, e->i64));
}

static value sum_of(const scatterer *s, value a, value b)
{
    const cpu_vector_env *v = &s->e.v;
    if (s->dtype == IR_I32)
        return LLVMBuildAdd(v->builder, a, b, "");
    if (s->dtype == IR_BF16) {
        value x = cpu_vf32_from_bf16(v, a), y = cpu_vf32_from_bf16(v, b);
        return cpu_vbf16_from_f32(v, LLVMBuildFAdd(v->builder, x, y, ""));
    }
    return LLVMBuildFAdd(v->builder, a, b, "");
}

/* to[columns] += from[columns], from column on. */
static void add_vector(const scatterer *s, value to, value from, value column, value mask)
{
    const emitter *e = &s->e;
    LLVMTypeRef element = s->dtype == IR_I32 ? e->i32 : s->dtype == IR_BF16 ? e->i16 : e->sum;
    to = advance(e, to, imul_constant(e, imul(e, column, s->arg[TARGET_POST]), s->bytes));
    from = advance(e, from, imul_constant(e, imul(e, column, s->arg[UPDATE_POST]), s->bytes));
    value old = cpu_vload(&e->v, element, to, mask), update = cpu_vload(&e->v, element, from, mask);
    cpu_vstore(&e->v, sum_of(s, old, update), to, mask);
}

static value greater(const emitter *e, value a, value b)
{
    return LLVMBuildSelect(e->v.builder, is_less(e, a, b), b, a, "");
}

/* The row of target that position p adds to. */
static value row_of(const scatterer *s, value p)
{
    const emitter *e = &s->e;
    value at = advance(e, s->arg[INDICES], imul_constant(e, imul(e, p, s->arg[INDEX_STRIDE]), 4));
    value row = LLVMBuildSExt(e->v.builder, LLVMBuildLoad2(e->v.builder, e->i32, at, ""), e->i64, "");
    row = greater(e, lesser(e, row, iadd_constant(e, s->arg[ROWS], -1)), constant(e, 0));
    return imul_constant(e, imul(e, row, s->arg[TARGET_ROW]), s->bytes);
}

/* Where [i, j] of a buffer is; the buffer and its two strides by their numbers among the arguments. */
static value element_at(const scatterer *s, int buffer, value i, int i_stride, value j, int j_stride)
{
    const emitter *e = &s->e;
    value row = imul(e, i, s->arg[i_stride]), offset = iadd(e, row, imul(e, j, s->arg[j_stride]));
    return advance(e, s->arg[buffer], imul_constant(e, offset, s->bytes));
}

static void emit_scatter(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    const scatter_class *class = context;
    scatterer s = {.e = begin_function(module, machine->isa, class->dtype, name, "ppip"), .dtype = class->dtype,
                   .bytes = ir_dtype_bytes(class->dtype)};
    emitter *e = &s.e;
    if (!class->unit_stride)
        e->v.lanes = 1;
    value args = LLVMGetParam(e->function, 0), buffers = LLVMGetParam(e->function, 1), task = LLVMGetParam(e->function, 2);
    for (int i = TARGET; i <= UPDATES; i += 2)
        s.arg[i] = pointer_of(&s, args, buffers, i);
    for (int i = TARGET_PRE; i < N_ARGS; i++)
        s.arg[i] = load_field(e, args, (size_t)i * 8, e->i64);
    value one = constant(e, 1), zero = constant(e, 0);
    if (class->unit_stride)
        s.arg[TARGET_POST] = s.arg[UPDATE_POST] = one;

    /* task = block of pre * blocks of columns + block of columns */
    LLVMBuilderRef builder = e->v.builder;
    value blocks = LLVMBuildUDiv(builder, iadd_constant(e, iadd(e, s.arg[POST], s.arg[TASK_COLUMNS]), -1),
                                 s.arg[TASK_COLUMNS], "");
    value first_pre = imul(e, LLVMBuildUDiv(builder, task, blocks, ""), s.arg[TASK_PRE]);
    value first = imul(e, LLVMBuildURem(builder, task, blocks, ""), s.arg[TASK_COLUMNS]);
    value last_pre = lesser(e, iadd(e, first_pre, s.arg[TASK_PRE]), s.arg[PRE]);
    value columns = isub(e, lesser(e, iadd(e, first, s.arg[TASK_COLUMNS]), s.arg[POST]), first);
    value whole = LLVMBuildAnd(builder, columns, constant(e, -e->v.lanes), "");

    counted_loop pre = begin_loop(e, first_pre, last_pre, 1);
    value to = element_at(&s, TARGET, pre.i, TARGET_PRE, first, TARGET_POST);
    value from = element_at(&s, UPDATES, pre.i, UPDATE_PRE, first, UPDATE_POST);
    counted_loop positions = begin_loop(e, zero, s.arg[POSITIONS], 1);
    value row = advance(e, to, row_of(&s, positions.i));
    value update = advance(e, from, imul_constant(e, imul(e, positions.i, s.arg[UPDATE_POSITION]), s.bytes));
    counted_loop vectors = begin_loop(e, zero, whole, e->v.lanes);
    add_vector(&s, row, update, vectors.i, NULL);
    end_loop(e, &vectors);
    if (class->unit_stride) {
        counted_loop rest = begin_loop(e, whole, columns, e->v.lanes);
        add_vector(&s, row, update, rest.i, cpu_vmask(&e->v, isub(e, columns, rest.i)));
        end_loop(e, &rest);
    }
    end_loop(e, &positions);
    end_loop(e, &pre);
    end_function(e);
}

bool cpu_plan_scatter(cpu_compiler *compiler, const kl_kernel *kernel, cpu_plan *plan)
{
    const kl_scatter *s = &kernel->scatter;
    int bytes = ir_dtype_bytes(s->dtype);
    scatter_class *class = ARENA_NEW(compiler->arena, scatter_class, 1);
    *class = (scatter_class){s->dtype, (s->target.stride[2] == 1 && s->updates.stride[2] == 1) || s->post == 1};

    /* Ranges of columns are whole cache lines where rows begin with one. */
    int64_t least = LEAST_COLUMN_BYTES / bytes, columns = base_divide_up(s->post, base_divide_up(TASKS, MAX(s->pre, 1)));
    columns = MAX(base_divide_up(columns, least), 1) * least;
    int64_t blocks = base_divide_up(s->post, columns), task_pre = MAX(base_divide_up(s->pre, 2 * TASKS), 1);

    cpu_arg_view(compiler, plan, &s->target, s->dtype);
    cpu_arg_view(compiler, plan, &s->indices, IR_I32);
    cpu_arg_view(compiler, plan, &s->updates, s->dtype);
    const int64_t values[] = { s->target.stride[0], s->target.stride[1], s->target.stride[2], s->indices.stride[0],
                               s->updates.stride[0], s->updates.stride[1], s->updates.stride[2],
                               s->pre, s->positions, s->rows, s->post, task_pre, columns };
    for (size_t i = 0; i < COUNT_OF(values); i++)
        cpu_arg(compiler, plan, values[i]);
    CHECK(plan->n_args == N_ARGS, "expected %d arguments, got %d", N_ARGS, plan->n_args);

    const char *key = base_arena_text(compiler->arena, "scatter %s%s", ir_dtype_name(s->dtype),
                                      class->unit_stride ? "" : " strided");
    plan->n_phases = 1;
    plan->phases[0] = (cpu_phase){
        .function = cpu_request_code(compiler, key, 150, emit_scatter, class),
        .tasks = s->rows == 0 ? 0 : base_divide_up(s->pre, task_pre) * blocks,
        .work = (double)(s->pre * s->positions) * (10 + 0.3 * (double)s->post * bytes / 4) };
    return true;
}
