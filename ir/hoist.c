/* Work that is the same in every iteration of a repeat is done once, before it:
 *
 *     repeat 4 {                              w16 = cast w
 *       w16 = cast w                          repeat 4 {
 *       y = x[i] w16                            y = x[i] w16
 *     }                                       }
 *
 * So are the weights of a model in bf16, over micro-batches and over the chunks of its loss. A kernel may go if what it reads does not
 * move with the repeat and is written by no kernel that stays, and if what it writes are temporaries that no other kernel of the
 * body writes and none before it reads. */
#include "ir/kernels.h"

typedef struct {
    kl_program *program;
    int repeat;
    int *writes, *earlier;       /* by buffer: kernels of the body that write it; that touch it, of those before this one that stay */
    bool moves;
} survey;

static void count_write(void *context, const kl_access *access)
{
    survey *s = context;
    if (access->write)
        s->writes[kl_memory_of(s->program, access->view->buffer)]++;
}

static void note_earlier(void *context, const kl_access *access)
{
    survey *s = context;
    s->earlier[kl_memory_of(s->program, access->view->buffer)] = 1;
}

static void may_move(void *context, const kl_access *access)
{
    survey *s = context;
    int buffer = access->view->buffer, memory = kl_memory_of(s->program, buffer);
    if (access->write)
        s->moves &= s->program->buffers[buffer].kind == KL_TEMP && !access->accumulate && s->writes[memory] == 1 && !s->earlier[memory];
    else
        s->moves &= !kl_moves_with(s->program, buffer, s->repeat) && s->writes[memory] == 0;
}

static void forget_write(void *context, const kl_access *access)
{
    survey *s = context;
    if (access->write)
        s->writes[kl_memory_of(s->program, access->view->buffer)]--;
}

static void hoist_from(kl_program *program, kl_repeat *repeat, kl_sequence *before)
{
    survey s = { .program = program, .repeat = repeat->id };
    int stay = 0;
    s.writes = base_alloc(sizeof *s.writes * (size_t)program->n_buffers);
    s.earlier = base_alloc(sizeof *s.earlier * (size_t)program->n_buffers);
    for (int i = 0; i < repeat->n_body; i++)
        kl_visit_all(repeat->body[i], count_write, &s);
    for (int i = 0; i < repeat->n_body; i++) {
        kl_kernel *kernel = repeat->body[i];
        s.moves = kernel->kind != KL_REPEAT;
        kl_visit(kernel, may_move, &s);
        if (s.moves) {
            kl_visit(kernel, forget_write, &s);
            kl_append(before, kernel);
        } else {
            kl_visit_all(kernel, note_earlier, &s);
            repeat->body[stay++] = kernel;
        }
    }
    repeat->n_body = stay;
    base_free(s.writes);
    base_free(s.earlier);
}

/* Inner repeats first: what leaves them may leave the outer one too. */
static void hoist_in(kl_program *program, kl_kernel ***kernels, int *n)
{
    kl_sequence list = { .arena = program->arena };
    for (int i = 0; i < *n; i++) {
        kl_kernel *kernel = (*kernels)[i];
        if (kernel->kind == KL_REPEAT) {
            hoist_in(program, &kernel->repeat.body, &kernel->repeat.n_body);
            hoist_from(program, &kernel->repeat, &list);
            if (kernel->repeat.n_body == 0)
                continue;
        }
        kl_append(&list, kernel);
    }
    *kernels = list.at;
    *n = list.n;
}

void kl_hoist(kl_program *program) { hoist_in(program, &program->kernels, &program->n_kernels); }
