/* What all that handle a kernel list have in common: buffers, walking over kernels and their views, what a kernel costs. */
#include "ir/lower.h"

#include <string.h>

/* -- buffers ------------------------------------------------------------------------------------------------------------ */

void *kl_grown(base_arena *arena, void *old, int n, int *cap, size_t size)
{
    if (n < *cap)
        return old;
    *cap = MAX(8, 2 * *cap);
    char *more = base_arena_alloc(arena, size * (size_t)*cap);
    if (n)
        memcpy(more, old, size * (size_t)n);
    return more;
}

int kl_add_buffer(kl_program *program, kl_buffer buffer)
{
    program->buffers = kl_grown(program->arena, program->buffers, program->n_buffers, &program->cap_buffers, sizeof(kl_buffer));
    program->buffers[program->n_buffers] = buffer;
    return program->n_buffers++;
}

int kl_root_buffer(const kl_program *program, int buffer)
{
    while (buffer >= 0 && program->buffers[buffer].kind == KL_MOVING)
        buffer = program->buffers[buffer].base;
    return buffer;
}

void kl_program_free(kl_program *program)
{
    if (program)
        base_arena_free(program->arena);
}

/* -- ids ---------------------------------------------------------------------------------------------------------------- */

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

/* -- views -------------------------------------------------------------------------------------------------------------- */

bool kl_same_view(const kl_view *a, const kl_view *b)
{
    return a->offset == b->offset && !memcmp(a->stride, b->stride, sizeof a->stride) && !a->n_dynamic && !b->n_dynamic;
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
    case KL_CONTRACTION:
        visit_loop(&kernel->contraction.a, visit, context);
        visit_loop(&kernel->contraction.b, visit, context);
        visit_loop(&kernel->contraction.c, visit, context);
        return;
    case KL_ATTENTION: {
        kl_attention *a = &kernel->attention;
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
