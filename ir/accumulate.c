/* Sums that are made only to be added to an accumulator are added to it at once:
 *
 *     loop: sum_outer t = e                   loop: sum_outer acc += e
 *     loop: acc = acc + t
 *
 * So are the gradients of biases and norms over micro-batches. (What a loop stores element by element is added in its own loop, and a
 * product by its epilogue: see cluster.c, fuse_epilogues.c.)
 *
 * Needs t to be a temporary that one kernel of the same list makes and no other reads, and acc to be left alone from there to
 * the addition. Keeps the rounding: in f32, f64 and i32 a sum is rounded before it is added either way; bf16 is left as it is. */
#include "ir/kernels.h"

/* acc[i] = acc[i] + t[i] for all i, and nothing else. */
static bool is_addition(const kl_program *program, const kl_kernel *kernel, int *acc, int *t)
{
    const kl_loop *loop = &kernel->loop;
    if (kernel->kind != KL_LOOP || loop->n_exprs != 3 || loop->n_outputs != 1)
        return false;
    const kl_expr *sum = &loop->exprs[2];
    const kl_output *output = &loop->outputs[0];
    if (sum->kind != KL_OP || sum->op != OP_add || sum->args[0] == sum->args[1] || output->expr != 2 || output->kind != KL_STORE ||
        output->accumulate || loop->exprs[0].kind != KL_LOAD || loop->exprs[1].kind != KL_LOAD || sum->dtype == IR_BF16)
        return false;
    for (int i = 0; i < 2; i++) {
        const kl_view *mine = &loop->exprs[i].view, *other = &loop->exprs[1 - i].view;
        if (mine->buffer != output->view.buffer || !kl_same_view(mine, &output->view) || program->buffers[other->buffer].kind != KL_TEMP ||
            program->buffers[other->buffer].count != program->buffers[mine->buffer].count)
            continue;
        *acc = mine->buffer;
        *t = other->buffer;
        return kl_is_row_major(loop, mine, program->buffers[*acc].count) && kl_is_row_major(loop, other, program->buffers[*t].count);
    }
    return false;
}

/* Whether a kernel writes t, and whether it touches acc. */
typedef struct { const kl_program *program; int t, acc; bool writes, touches_acc; } uses;

static void count_use(void *context, const kl_access *access)
{
    uses *u = context;
    int root = kl_root_buffer(u->program, access->view->buffer);
    u->writes |= root == u->t && access->write;
    u->touches_acc |= kl_share_memory(u->program, root, u->acc);
}

static kl_output *sum_into(kl_kernel *kernel, int t)
{
    for (int i = 0; kernel->kind == KL_LOOP && i < kernel->loop.n_outputs; i++) {
        kl_output *output = &kernel->loop.outputs[i];
        if (output->view.buffer == t)
            return output->kind != KL_STORE && !output->accumulate ? output : NULL;
    }
    return NULL;
}

/* list[at] adds t to acc: the kernel before it that makes t, if it may add to acc instead. */
static kl_output *maker(const kl_uses *all, kl_kernel *const *list, int at, int acc, int t)
{
    const kl_program *program = all->program;
    if (all->reads[t] != 1 || all->writes[t] != 1)
        return NULL;
    for (int i = at - 1; i >= 0; i--) {
        uses u = { .program = program, .t = t, .acc = kl_root_buffer(program, acc) };
        kl_visit_all(list[i], count_use, &u);
        if (u.touches_acc)
            return NULL;
        if (u.writes)
            return sum_into(list[i], t);
    }
    return NULL;
}

static void accumulate_in(const kl_uses *all, kl_kernel **kernels, int *n)
{
    int kept = 0;
    for (int i = 0; i < *n; i++) {
        int acc, t;
        kl_output *sum = is_addition(all->program, kernels[i], &acc, &t) ? maker(all, kernels, kept, acc, t) : NULL;
        if (kernels[i]->kind == KL_REPEAT)
            accumulate_in(all, kernels[i]->repeat.body, &kernels[i]->repeat.n_body);
        if (sum) {
            sum->view.buffer = acc;
            sum->accumulate = true;
        } else {
            kernels[kept++] = kernels[i];
        }
    }
    *n = kept;
}

void kl_accumulate(kl_program *program)
{
    kl_uses all = kl_count_uses(program);
    accumulate_in(&all, program->kernels, &program->n_kernels);
}
