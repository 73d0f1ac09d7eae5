/* The kernel list's own interpreter, the oracle for backends: what a kernel does, done plainly, with the reference functions of the op
 * table for everything elementwise. It follows the memory plan and donations, so that a wrong plan gives wrong numbers: the arena
 * begins full of NaN, and what is dead becomes NaN again.
 *
 * A loop is run row by row, a row an expression at a time, each into an array of its own. Without reductions a row is cut into pieces.
 * A product gathers both operands, multiplies by ref_matmul, and runs the epilogue as a loop over the product. */
#include "ir/run_kernels.h"

#include <string.h>

enum { PIECE = 1024, POISON = 0xff };      /* bytes of ones are a NaN in every float */

char *kl_address(const kl_machine *machine, int buffer)
{
    const kl_buffer *b = &machine->program->buffers[buffer];
    switch (b->kind) {
    case KL_PARAM:  return machine->params[b->index];
    case KL_RESULT: return machine->results[b->index];
    case KL_CONST:  return (char *)b->data;
    case KL_TEMP:   return machine->arena + b->arena_offset;
    case KL_MOVING: return kl_address(machine, b->base) + (b->offset + machine->iteration[b->repeat] * b->step) * ir_dtype_bytes(b->dtype);
    }
    CHECK(false, "buffer %d: expected a kind, got %d", buffer, (int)b->kind);
    return NULL;
}

/* -- arrays ------------------------------------------------------------------------------------------------------------- */

static ir_array row_of(ir_dtype dtype, int64_t n, void *data) { return (ir_array){ ir_type_of(dtype, 1, &n), data }; }

/* An op of the table over arrays of one length. */
static void apply(ir_op op, const ir_attr *attr, int n_args, const ir_array *args, ir_array *result)
{
    const ir_array *pointers[KL_MAX_ARGS];
    ir_node node = { .op = op, .type = result->type, .n_args = n_args };
    if (attr)
        node.attr = *attr;
    for (int i = 0; i < n_args; i++)
        pointers[i] = &args[i];
    ir_op_table[op].reference(&node, pointers, result);
}

#define MOVE(type, to_at, from_at)                                                          \
    for (int64_t i = 0; i < n; i++)                                                         \
        ((type *)to)[to_at] = ((const type *)from)[from_at];
#define MOVE_ELEMENTS(to_at, from_at)                                                       \
    switch (bytes) {                                                                        \
    case 1: MOVE(uint8_t, to_at, from_at) break;                                            \
    case 2: MOVE(uint16_t, to_at, from_at) break;                                           \
    case 4: MOVE(uint32_t, to_at, from_at) break;                                           \
    case 8: MOVE(uint64_t, to_at, from_at) break;                                           \
    }

static void gather(int bytes, void *to, const void *from, const int64_t *at, int64_t n) { MOVE_ELEMENTS(i, at[i]) }
static void scatter(int bytes, void *to, const int64_t *at, const void *from, int64_t n) { MOVE_ELEMENTS(at[i], i) }
static void repeat_first(int bytes, void *to, int64_t n) { const void *from = to; MOVE_ELEMENTS(i, 0) }

/* -- rows --------------------------------------------------------------------------------------------------------------- */

/* The elements [from, from + n) of the row at `row`, and what each expression is there. */
typedef struct {
    const kl_machine *machine;
    const kl_loop *loop;
    int64_t inner, rows;               /* elements a row, rows */
    int64_t row[KL_MAX_AXES];
    int64_t row_number, from, n;
    char **value;                      /* by expression; a row value stands n times */
    int64_t *at;                       /* elements of a buffer, for one view */
    const char *product;               /* rows x inner, for KL_PRODUCT */
    char *operand;                     /* rows x inner, where an output without a buffer goes */
    char **sum;                        /* by output: SUM_OUTER inner, SUM_ALL 1; double, or int64_t for i32 */
} runner;

/* r->at[i]: the element that view has at the i-th index of the piece; n is 1 for a row value. */
static void locate(runner *r, const kl_view *view, int64_t n)
{
    const kl_loop *loop = r->loop;
    int64_t base = view->offset, index[KL_MAX_AXES] = {0}, rest = r->from;
    for (int i = 0; i < loop->n_outer; i++)
        base += r->row[i] * view->stride[i];
    for (int i = loop->n_axes - 1; i >= loop->n_outer; i--) {
        int64_t extent = MAX(loop->extent[i], 1);
        index[i] = rest % extent;
        rest /= extent;
        base += index[i] * view->stride[i];
    }
    for (int64_t i = 0; i < n; i++) {
        r->at[i] = base;
        for (int axis = loop->n_axes - 1; axis >= loop->n_outer; axis--) {
            base += view->stride[axis];
            if (++index[axis] < loop->extent[axis])
                break;
            base -= view->stride[axis] * loop->extent[axis];
            index[axis] = 0;
        }
    }
    for (int d = 0; d < view->n_dynamic; d++) {
        const int32_t *value = (const int32_t *)(void *)r->value[view->dynamic[d].expr];
        for (int64_t i = 0; i < n; i++)
            r->at[i] += MAX(0, MIN((int64_t)value[i], view->dynamic[d].limit)) * view->dynamic[d].stride;
    }
}

static void random_bits(runner *r, const kl_expr *expr, int64_t n, int32_t *to)
{
    uint32_t key[2], counter[4] = { 0, 0, expr->site, 0 }, word[4];
    locate(r, &expr->view, n);
    for (int64_t i = 0; i < n; i++) {
        uint64_t element = (uint64_t)r->at[i];
        memcpy(&key[0], r->value[expr->args[0]] + 4 * i, 4);
        memcpy(&key[1], r->value[expr->args[1]] + 4 * i, 4);
        memcpy(&counter[3], r->value[expr->args[2]] + 4 * i, 4);
        counter[0] = (uint32_t)(element >> 2);
        counter[1] = (uint32_t)(element >> 34);
        ir_philox(counter, key, word);
        memcpy(&to[i], &word[element & 3], 4);
    }
}

static void evaluate(runner *r, int which)
{
    const kl_expr *expr = &r->loop->exprs[which];
    int64_t n = expr->row ? 1 : r->n;
    int bytes = ir_dtype_bytes(expr->dtype);
    char *to = r->value[which];
    ir_array args[KL_MAX_ARGS], result = row_of(expr->dtype, n, to);
    for (int i = 0; i < expr->n_args; i++)
        args[i] = row_of(r->loop->exprs[expr->args[i]].dtype, expr->kind == KL_REDUCE ? r->n : n, r->value[expr->args[i]]);
    switch (expr->kind) {
    case KL_LOAD:
        locate(r, &expr->view, n);
        gather(bytes, to, kl_address(r->machine, expr->view.buffer), r->at, n);
        break;
    case KL_VALUE:
        apply(OP_constant, &(ir_attr){ .value = expr->value }, 0, NULL, &result);
        break;
    case KL_INDEX:
        locate(r, &expr->view, n);
        for (int64_t i = 0; i < n; i++)
            ((int32_t *)(void *)to)[i] = (int32_t)r->at[i];
        break;
    case KL_OP:
        apply(expr->op, NULL, expr->n_args, args, &result);
        break;
    case KL_REDUCE:
        result.type.rank = 0;
        apply(expr->op, &(ir_attr){ .axis = 0, .n_axes = 1, .axes = { 0 } }, 1, args, &result);
        break;
    case KL_RANDOM:
        random_bits(r, expr, n, (int32_t *)(void *)to);
        break;
    case KL_PRODUCT:
        memcpy(to, r->product + (r->row_number * r->inner + r->from) * bytes, (size_t)(n * bytes));
        break;
    }
    if (expr->row)
        repeat_first(bytes, to, r->n);
}

/* -- outputs ------------------------------------------------------------------------------------------------------------ */

/* Stores n values, or adds them to what is there, at r->at. */
static void put(runner *r, const kl_output *output, ir_dtype dtype, char *value, int64_t n, char *scratch)
{
    int bytes = ir_dtype_bytes(dtype);
    char *buffer = kl_address(r->machine, output->view.buffer);
    if (output->accumulate) {
        gather(bytes, scratch, buffer, r->at, n);
        ir_array args[] = { row_of(dtype, n, scratch), row_of(dtype, n, value) }, sum = args[0];
        apply(OP_add, NULL, 2, args, &sum);
        value = scratch;
    }
    scatter(bytes, buffer, r->at, value, n);
}

static void add_to_sums(ir_dtype dtype, const char *value, int64_t n, char *sums, bool each)
{
    ir_dtype wide = dtype == IR_I32 ? IR_I32 : IR_F64;
    double piece[PIECE];
    for (int64_t done = 0; done < n; done += PIECE) {
        int64_t count = MIN(n - done, (int64_t)PIECE);
        ir_array from = row_of(dtype, count, (char *)value + done * ir_dtype_bytes(dtype)), to = row_of(wide, count, piece);
        apply(OP_cast, NULL, 1, &from, &to);
        for (int64_t i = 0; i < count; i++) {
            int64_t at = each ? done + i : 0;
            if (wide == IR_I32)
                ((int64_t *)(void *)sums)[at] += ((const int32_t *)(void *)piece)[i];
            else
                ((double *)(void *)sums)[at] += piece[i];
        }
    }
}

static void store_outputs(runner *r, char *scratch)
{
    for (int i = 0; i < r->loop->n_outputs; i++) {
        const kl_output *output = &r->loop->outputs[i];
        const kl_expr *expr = &r->loop->exprs[output->expr];
        char *value = r->value[output->expr];
        int64_t n = r->n;
        switch (output->kind) {
        case KL_STORE:
            if (r->operand && output->view.buffer < 0) {
                int bytes = ir_dtype_bytes(expr->dtype);
                memcpy(r->operand + (r->row_number * r->inner + r->from) * bytes, value, (size_t)(n * bytes));
                break;
            }
            if (kl_is_once_a_row(r->loop, output)) {       /* with the last piece: it may have the place of one that the pieces read */
                if (r->from + r->n < r->inner)
                    break;
                n = 1;
            }
            locate(r, &output->view, n);
            put(r, output, expr->dtype, value, n, scratch);
            break;
        case KL_SUM_OUTER:
            add_to_sums(expr->dtype, value, n, r->sum[i] + 8 * r->from, true);
            break;
        case KL_SUM_ALL:
            if (!expr->row || r->from == 0)
                add_to_sums(expr->dtype, value, expr->row ? 1 : n, r->sum[i], false);
            break;
        }
    }
}

/* What the sums of all rows came to goes to memory. */
static void store_sums(runner *r, char *scratch)
{
    memset(r->row, 0, sizeof r->row);
    for (int i = 0; i < r->loop->n_outputs; i++) {
        const kl_output *output = &r->loop->outputs[i];
        ir_dtype dtype = r->loop->exprs[output->expr].dtype;
        if (output->kind == KL_STORE)
            continue;
        int64_t total = output->kind == KL_SUM_OUTER ? r->inner : 1;
        for (r->from = 0; r->from < total; r->from += PIECE) {
            int64_t n = MIN(total - r->from, (int64_t)PIECE);
            double value[PIECE];
            uint32_t whole[PIECE];
            char narrow[8 * PIECE];
            memcpy(value, r->sum[i] + 8 * r->from, 8 * (size_t)n);
            for (int64_t j = 0; j < n; j++)
                whole[j] = (uint32_t)((int64_t *)(void *)r->sum[i])[r->from + j];         /* wraps */
            ir_array from = dtype == IR_I32 ? row_of(IR_I32, n, whole) : row_of(IR_F64, n, value), to = row_of(dtype, n, narrow);
            apply(OP_cast, NULL, 1, &from, &to);
            locate(r, &output->view, n);
            put(r, output, dtype, narrow, n, scratch);
        }
    }
}

/* -- loops -------------------------------------------------------------------------------------------------------------- */

static void run_loop(const kl_machine *machine, const kl_loop *loop, const char *product, char *operand)
{
    runner r = { .machine = machine, .loop = loop, .product = product, .operand = operand };
    r.rows = kl_rows(loop);
    r.inner = kl_inner(loop);
    int64_t piece = kl_has_expr(loop, KL_REDUCE) ? r.inner : MIN(r.inner, (int64_t)PIECE), room = MAX(piece, (int64_t)PIECE);
    int n_arrays = loop->n_exprs + 2;
    base_arena *arena = base_arena_new();
    r.value = ARENA_NEW(arena, char *, n_arrays);
    for (int i = 0; i < n_arrays; i++)
        r.value[i] = base_arena_alloc(arena, 8 * (size_t)room);
    r.at = (int64_t *)(void *)r.value[loop->n_exprs];
    char *scratch = r.value[loop->n_exprs + 1];
    r.sum = ARENA_NEW(arena, char *, loop->n_outputs);
    for (int i = 0; i < loop->n_outputs; i++)
        if (loop->outputs[i].kind != KL_STORE)
            r.sum[i] = base_arena_alloc(arena, 8 * (size_t)(loop->outputs[i].kind == KL_SUM_OUTER ? r.inner : 1));

    for (; r.row_number < r.rows; r.row_number++) {
        int64_t rest = r.row_number;
        for (int i = loop->n_outer - 1; i >= 0; i--) {
            r.row[i] = rest % loop->extent[i];
            rest /= loop->extent[i];
        }
        for (r.from = 0; r.from < r.inner; r.from += piece) {
            r.n = MIN(piece, r.inner - r.from);
            for (int i = 0; i < loop->n_exprs; i++)
                evaluate(&r, i);
            store_outputs(&r, scratch);
        }
    }
    store_sums(&r, scratch);
    base_arena_free(arena);
}

/* -- products ----------------------------------------------------------------------------------------------------------- */

static void run_contraction(const kl_machine *machine, const kl_contraction *c)
{
    int64_t batch = kl_matrices(c);
    ir_dtype sum = c->dtype == IR_F64 ? IR_F64 : IR_F32;
    ir_type type[] = { ir_type_of(c->dtype, 3, (int64_t[]){ batch, c->m, c->k }), ir_type_of(c->dtype, 3, (int64_t[]){ batch, c->k, c->n }),
                       ir_type_of(sum, 3, (int64_t[]){ batch, c->m, c->n }) };
    ir_array array[3];
    for (int i = 0; i < 3; i++)
        array[i] = (ir_array){ type[i], base_alloc((size_t)ir_type_bytes(&type[i])) };
    run_loop(machine, &c->a, NULL, array[0].data);
    run_loop(machine, &c->b, NULL, array[1].data);
    apply(OP_matmul, NULL, 2, array, &array[2]);
    run_loop(machine, &c->c, array[2].data, NULL);
    for (int i = 0; i < 3; i++)
        base_free(array[i].data);
}

/* -- scatter ------------------------------------------------------------------------------------------------------------ */

static void run_scatter(const kl_machine *machine, const kl_scatter *s)
{
    int bytes = ir_dtype_bytes(s->dtype);
    char *target = kl_address(machine, s->target.buffer), *updates = kl_address(machine, s->updates.buffer);
    const int32_t *indices = (const int32_t *)(void *)kl_address(machine, s->indices.buffer);
    for (int64_t pre = 0; pre < s->pre; pre++)
        for (int64_t p = 0; p < s->positions; p++) {
            int64_t row = MAX(0, MIN((int64_t)indices[s->indices.offset + p * s->indices.stride[0]], s->rows - 1));
            for (int64_t post = 0; post < s->post; post++) {
                int64_t to = s->target.offset + pre * s->target.stride[0] + row * s->target.stride[1] + post * s->target.stride[2];
                int64_t from = s->updates.offset + pre * s->updates.stride[0] + p * s->updates.stride[1] + post * s->updates.stride[2];
                ir_array args[] = { row_of(s->dtype, 1, target + to * bytes), row_of(s->dtype, 1, updates + from * bytes) }, sum = args[0];
                apply(OP_add, NULL, 2, args, &sum);
            }
        }
}

/* -- programs ----------------------------------------------------------------------------------------------------------- */

static bool is_in_arena(const kl_machine *machine, int buffer)
{
    return machine->program->buffers[buffer].kind == KL_TEMP && machine->lives[buffer].last >= 0;
}

/* Fills what ends to live with this kernel, but for what another buffer has taken over. */
static void poison_dead(const kl_machine *machine, int id)
{
    const kl_program *program = machine->program;
    for (int i = 0; i < program->n_buffers; i++) {
        const kl_buffer *dead = &program->buffers[i];
        bool taken = false;
        if (!is_in_arena(machine, i) || machine->lives[i].done != id)
            continue;
        for (int j = 0; j < program->n_buffers && !taken; j++) {
            const kl_buffer *other = &program->buffers[j];
            taken = j != i && is_in_arena(machine, j) && machine->lives[j].first <= id && machine->lives[j].last > id &&
                    other->arena_offset < dead->arena_offset + kl_bytes(dead) && dead->arena_offset < other->arena_offset + kl_bytes(other);
        }
        if (!taken)
            memset(machine->arena + dead->arena_offset, POISON, (size_t)kl_bytes(dead));
    }
}

static void run_list(kl_machine *machine, kl_kernel *const *kernels, int n)
{
    for (int i = 0; i < n; i++) {
        const kl_kernel *kernel = kernels[i];
        switch (kernel->kind) {
        case KL_LOOP:
            run_loop(machine, &kernel->loop, NULL, NULL);
            break;
        case KL_LIST:
            for (int j = 0; j < kernel->list.n; j++)
                run_loop(machine, &kernel->list.loops[j], NULL, NULL);
            break;
        case KL_CONTRACTION:
            run_contraction(machine, &kernel->contraction);
            break;
        case KL_ATTENTION:
            kl_run_attention(machine, kernel->attention);
            break;
        case KL_SCATTER:
            run_scatter(machine, &kernel->scatter);
            break;
        case KL_REPEAT:
            for (int64_t j = 0; j < kernel->repeat.count; j++) {
                machine->iteration[kernel->repeat.id] = kernel->repeat.reverse ? kernel->repeat.count - 1 - j : j;
                run_list(machine, kernel->repeat.body, kernel->repeat.n_body);
            }
            break;
        }
        poison_dead(machine, kernel->id);
    }
}

static bool is_planned(const kl_machine *machine)
{
    const kl_program *program = machine->program;
    for (int i = 0; i < program->n_buffers; i++)
        if (is_in_arena(machine, i) && program->buffers[i].arena_offset + kl_bytes(&program->buffers[i]) > program->memory.arena_bytes)
            return base_fail(BASE_MISTAKE, "kernel list %s: b%d lies outside of the arena: there is no memory plan", program->name, i);
    return true;
}

bool kl_run(const kl_program *program, void *const *params, void *const *results)
{
    size_t bytes = (size_t)program->memory.arena_bytes;
    kl_machine machine = { .program = program, .params = params, .results = results, .arena = base_try_alloc(bytes) };
    if (!machine.arena)
        return base_fail(BASE_FAILURE, "kernel list %s: %zu bytes for intermediates were refused", program->name, bytes);
    memset(machine.arena, POISON, bytes);
    machine.iteration = base_alloc(sizeof *machine.iteration * (size_t)program->n_repeats);
    machine.lives = base_alloc(sizeof *machine.lives * (size_t)program->n_buffers);
    kl_lives(program, machine.lives);
    bool planned = is_planned(&machine);
    if (planned)
        run_list(&machine, program->kernels, program->n_kernels);
    base_free(machine.lives);
    base_free(machine.iteration);
    base_free(machine.arena);
    return planned;
}
