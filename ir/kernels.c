/* What all that handle a kernel list have in common: buffers, walking over kernels and their views, lists in the making. */
#include "ir/kernels.h"

#include <string.h>

/* -- buffers ------------------------------------------------------------------------------------------------------------ */

int kl_add_buffer(kl_program *program, kl_buffer buffer)
{
    program->buffers = base_arena_grown(program->arena, program->buffers, program->n_buffers, &program->cap_buffers, sizeof(kl_buffer));
    program->buffers[program->n_buffers] = buffer;
    return program->n_buffers++;
}

int64_t kl_bytes(const kl_buffer *buffer) { return buffer->count * ir_dtype_bytes(buffer->dtype); }

int kl_root_buffer(const kl_program *program, int buffer)
{
    while (buffer >= 0 && program->buffers[buffer].kind == KL_MOVING)
        buffer = program->buffers[buffer].base;
    return buffer;
}

bool kl_moves_with(const kl_program *program, int buffer, int repeat)
{
    for (; program->buffers[buffer].kind == KL_MOVING; buffer = program->buffers[buffer].base)
        if (program->buffers[buffer].repeat == repeat)
            return true;
    return false;
}

int kl_memory_of(const kl_program *program, int buffer)
{
    const kl_buffer *b = &program->buffers[buffer = kl_root_buffer(program, buffer)];
    for (int i = 0; b->kind == KL_RESULT && b->donated >= 0 && i < program->n_buffers; i++)
        if (program->buffers[i].kind == KL_PARAM && program->buffers[i].index == b->donated)
            return i;
    return buffer;
}

int *kl_memories(const kl_program *program)
{
    int n = MAX(program->n_buffers, 1), *memory = base_alloc(sizeof *memory * (size_t)n), *param = base_alloc(sizeof *param * (size_t)n);
    for (int i = 0; i < program->n_buffers; i++)
        if (program->buffers[i].kind == KL_PARAM)
            param[program->buffers[i].index] = i;
    for (int i = 0; i < program->n_buffers; i++) {
        int root = kl_root_buffer(program, i);
        const kl_buffer *b = &program->buffers[root];
        memory[i] = b->kind == KL_RESULT && b->donated >= 0 ? param[b->donated] : root;
    }
    base_free(param);
    return memory;
}

bool kl_share_memory(const kl_program *program, int a, int b)
{
    const kl_buffer *x = &program->buffers[a], *y = &program->buffers[b];
    return a == b || (x->kind == KL_RESULT && y->kind == KL_PARAM && x->donated == y->index) ||
           (x->kind == KL_PARAM && y->kind == KL_RESULT && y->donated == x->index);
}

void kl_program_free(kl_program *program)
{
    if (program)
        base_arena_free(program->arena);
}

/* -- kernels ------------------------------------------------------------------------------------------------------------ */

static int renumber(kl_kernel **kernels, int n, int next)
{
    for (int i = 0; i < n; i++) {
        kernels[i]->id = next++;
        if (kernels[i]->kind == KL_REPEAT)
            next = renumber(kernels[i]->repeat.body, kernels[i]->repeat.n_body, next);
    }
    return next;
}

void kl_renumber(kl_program *program) { program->n_ids = renumber(program->kernels, program->n_kernels, 0); }

int kl_last_id(const kl_kernel *kernel)
{
    while (kernel->kind == KL_REPEAT && kernel->repeat.n_body > 0)
        kernel = kernel->repeat.body[kernel->repeat.n_body - 1];
    return kernel->id;
}

void kl_append(kl_sequence *into, kl_kernel *kernel)
{
    if (!kernel)
        return;
    into->at = base_arena_grown(into->arena, into->at, into->n, &into->cap, sizeof *into->at);
    into->at[into->n++] = kernel;
}

int64_t kl_matrices(const kl_contraction *c)
{
    int64_t n = 1;
    for (int i = 0; i < c->n_batch; i++)
        n *= c->batch[i];
    return n;
}

/* -- views -------------------------------------------------------------------------------------------------------------- */

bool kl_same_view(const kl_view *a, const kl_view *b)
{
    return a->offset == b->offset && !memcmp(a->stride, b->stride, sizeof a->stride) && !a->n_dynamic && !b->n_dynamic;
}

bool kl_is_row_major(const kl_loop *loop, const kl_view *view, int64_t count)
{
    int64_t stride = 1;
    if (view->offset || view->n_dynamic)
        return false;
    for (int i = loop->n_axes - 1; i >= 0; i--) {
        if (loop->extent[i] != 1 && view->stride[i] != stride)
            return false;
        stride *= loop->extent[i];
    }
    return stride == count;
}

static void visit_loop(kl_loop *loop, void (*visit)(void *context, const kl_access *access), void *context)
{
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_LOAD)
            visit(context, &(kl_access){ &loop->exprs[i].view, false, false, loop->exprs[i].dtype, loop });
    for (int i = 0; i < loop->n_outputs; i++) {
        kl_output *output = &loop->outputs[i];
        if (output->view.buffer >= 0)
            visit(context, &(kl_access){ &output->view, true, output->accumulate, loop->exprs[output->expr].dtype, loop });
    }
}

void kl_visit(kl_kernel *kernel, void (*visit)(void *context, const kl_access *access), void *context)
{
    switch (kernel->kind) {
    case KL_LOOP:
        visit_loop(&kernel->loop, visit, context);
        return;
    case KL_LIST:
        for (int i = 0; i < kernel->list.n; i++)
            visit_loop(&kernel->list.loops[i], visit, context);
        return;
    case KL_CONTRACTION:
        visit_loop(&kernel->contraction.a, visit, context);
        visit_loop(&kernel->contraction.b, visit, context);
        visit_loop(&kernel->contraction.c, visit, context);
        return;
    case KL_ATTENTION: {
        kl_attention *a = kernel->attention;
        ir_dtype wide = a->dtype == IR_F64 ? IR_F64 : IR_F32;
        struct { kl_view *view; bool write; ir_dtype dtype; } all[] = {
            { &a->q, false, a->dtype }, { &a->k, false, a->dtype }, { &a->v, false, a->dtype },
            { &a->dout, false, a->dtype }, { &a->dlse, false, wide }, { &a->seed, false, IR_I32 }, { &a->counter, false, IR_I32 },
            { &a->out, !a->backward, a->dtype }, { &a->lse, !a->backward, wide },
            { &a->dq, true, a->grad_dtype }, { &a->dk, true, a->grad_dtype }, { &a->dv, true, a->grad_dtype } };
        for (size_t i = 0; i < COUNT_OF(all); i++)
            if (all[i].view->buffer >= 0)
                visit(context, &(kl_access){ all[i].view, all[i].write, false, all[i].dtype, NULL });
        return;
    }
    case KL_SCATTER:
        visit(context, &(kl_access){ &kernel->scatter.indices, false, false, IR_I32, NULL });
        visit(context, &(kl_access){ &kernel->scatter.updates, false, false, kernel->scatter.dtype, NULL });
        visit(context, &(kl_access){ &kernel->scatter.target, true, true, kernel->scatter.dtype, NULL });
        return;
    case KL_REPEAT:
        return;
    }
}

void kl_visit_all(kl_kernel *kernel, void (*visit)(void *context, const kl_access *access), void *context)
{
    kl_visit(kernel, visit, context);
    if (kernel->kind == KL_REPEAT)
        for (int i = 0; i < kernel->repeat.n_body; i++)
            kl_visit_all(kernel->repeat.body[i], visit, context);
}

static void count_use(void *context, const kl_access *access)
{
    kl_uses *u = context;
    ++(access->write ? u->writes : u->reads)[kl_root_buffer(u->program, access->view->buffer)];
}

kl_uses kl_count_uses(kl_program *program)
{
    kl_uses u = { program, ARENA_NEW(program->arena, int, program->n_buffers), ARENA_NEW(program->arena, int, program->n_buffers) };
    for (int i = 0; i < program->n_kernels; i++)
        kl_visit_all(program->kernels[i], count_use, &u);
    return u;
}

/* -- tidying ------------------------------------------------------------------------------------------------------------ */

static void note_use(void *context, const kl_access *access) { ((int *)context)[access->view->buffer] = 1; }
static void use_new_number(void *context, const kl_access *access) { access->view->buffer = ((const int *)context)[access->view->buffer]; }

static void visit_list(kl_kernel **kernels, int n, void (*visit)(void *context, const kl_access *access), void *context)
{
    for (int i = 0; i < n; i++)
        kl_visit_all(kernels[i], visit, context);
}

static void number_repeats(kl_kernel **kernels, int n, int *number, int *next)
{
    for (int i = 0; i < n; i++)
        if (kernels[i]->kind == KL_REPEAT) {
            number[kernels[i]->repeat.id] = *next;
            kernels[i]->repeat.id = (*next)++;
            number_repeats(kernels[i]->repeat.body, kernels[i]->repeat.n_body, number, next);
        }
}

/* Buffers that no kernel touches go, but for parameters and results; buffers and repeats are numbered anew. */
void kl_tidy(kl_program *program)
{
    int *number = base_alloc(sizeof *number * (size_t)program->n_buffers), *repeat = base_alloc(sizeof *repeat * (size_t)program->n_repeats);
    int n = 0;
    visit_list(program->kernels, program->n_kernels, note_use, number);
    for (int i = program->n_buffers - 1; i >= 0; i--) {
        const kl_buffer *b = &program->buffers[i];
        number[i] |= b->kind == KL_PARAM || b->kind == KL_RESULT;
        for (int at = i; number[i] && program->buffers[at].kind == KL_MOVING; at = program->buffers[at].base)
            number[program->buffers[at].base] = 1;
    }
    for (int i = 0; i < program->n_buffers; i++)
        if (number[i]) {
            program->buffers[n] = program->buffers[i];
            number[i] = n++;
        }
    program->n_buffers = n;
    program->n_repeats = 0;
    number_repeats(program->kernels, program->n_kernels, repeat, &program->n_repeats);
    for (int i = 0; i < n; i++)
        if (program->buffers[i].kind == KL_MOVING) {
            program->buffers[i].base = number[program->buffers[i].base];
            program->buffers[i].repeat = repeat[program->buffers[i].repeat];
        }
    visit_list(program->kernels, program->n_kernels, use_new_number, number);
    kl_renumber(program);
    base_free(number);
    base_free(repeat);
}
