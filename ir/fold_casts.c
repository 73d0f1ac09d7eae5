/* A cast to bf16 that products alone read, as their second operand, is done by them while they pack it:
 *
 *     loop: t = cast(w)                                    (w: f32, t: bf16)
 *     contraction a: load x  b: load t  c: ...             contraction a: load x  b: cast(load w)  c: ...
 *     contraction a: load y  b: load t[1,8]  c: ...        contraction a: load y  b: cast(load w[1,8])  c: ...
 *
 * So are the weights of a training step. A pass over them is saved, and memory for half of them. For backends that pack the operand anyway.
 *
 * Needs t to be a temporary that lies as w does, all its readers to follow in the loop's own list (a repeat would cast in every iteration),
 * w to be left alone until the last of them, and to live as long without it: else memory would be lost, w being twice as large as t. */
#include "ir/kernels.h"

enum { NONE = -1 };

typedef struct {
    kl_program *program;
    int *memory;               /* by buffer: kl_memories */
    kl_uses uses;
} folding;

/* t = cast(w), element by element in the same places but for an offset, and nothing else. */
static bool is_narrowing(const kl_kernel *kernel, const kl_view **w, const kl_view **t)
{
    const kl_loop *loop = &kernel->loop;
    if (kernel->kind != KL_LOOP || loop->n_exprs != 2 || loop->n_outputs != 1)
        return false;
    const kl_expr *load = &loop->exprs[0], *cast = &loop->exprs[1];
    const kl_output *output = &loop->outputs[0];
    if (load->kind != KL_LOAD || load->dtype != IR_F32 || load->view.n_dynamic || cast->kind != KL_OP || cast->op != OP_cast || cast->dtype != IR_BF16 ||
        output->expr != 1 || output->kind != KL_STORE || output->accumulate || output->view.n_dynamic)
        return false;
    *w = &load->view;
    *t = &output->view;
    for (int i = 0; i < loop->n_axes; i++)
        if (loop->extent[i] > 1 && (*w)->stride[i] != (*t)->stride[i])
            return false;
    return true;
}

/* The buffer that a product in bf16 has for its second operand, as it lies; NONE: the kernel is no such product. */
static int second_operand(const kl_kernel *kernel)
{
    const kl_contraction *c = &kernel->contraction;
    bool plain = kernel->kind == KL_CONTRACTION && c->dtype == IR_BF16 && c->b.n_exprs == 1 && c->b.exprs[0].kind == KL_LOAD && !c->b.exprs[0].view.n_dynamic;
    return plain ? c->b.exprs[0].view.buffer : NONE;
}

/* -- who reads and writes what, in one list ----------------------------------------------------------------------------- */

/* Found from the last kernel to the first; bodies count as the repeat that they are of. n and NONE: there is none. */
typedef struct {
    const folding *f;
    int *last_read;            /* by memory: the last kernel that reads it */
    int *write;                /* by memory: the first kernel that writes to it, of those looked at */
    int *source_write;         /* by kernel that is such a cast: the first kernel after it that writes to its source */
    int *product, *next;       /* by buffer: the first product whose second operand it is; by kernel: the next of that buffer */
    int now;
} list_index;

static void look(void *context, const kl_access *access)
{
    list_index *index = context;
    int memory = index->f->memory[access->view->buffer];
    if (access->write)
        index->write[memory] = index->now;
    else
        index->last_read[memory] = MAX(index->last_read[memory], index->now);
}

static list_index index_list(const folding *f, kl_kernel *const *list, int n)
{
    size_t by_buffer = sizeof(int) * (size_t)MAX(f->program->n_buffers, 1), by_kernel = sizeof(int) * (size_t)MAX(n, 1);
    list_index index = { f, base_alloc(by_buffer), base_alloc(by_buffer), base_alloc(by_kernel), base_alloc(by_buffer), base_alloc(by_kernel) };
    for (int i = 0; i < f->program->n_buffers; i++) {
        index.last_read[i] = index.product[i] = NONE;
        index.write[i] = n;
    }
    for (index.now = n - 1; index.now >= 0; index.now--) {
        const kl_view *w, *t;
        int operand = second_operand(list[index.now]);
        if (operand >= 0) {
            index.next[index.now] = index.product[operand];
            index.product[operand] = index.now;
        }
        if (is_narrowing(list[index.now], &w, &t))
            index.source_write[index.now] = index.write[f->memory[w->buffer]];
        kl_visit_all(list[index.now], look, &index);
    }
    return index;
}

static void free_index(list_index *index)
{
    base_free(index->last_read);
    base_free(index->write);
    base_free(index->source_write);
    base_free(index->product);
    base_free(index->next);
}

/* -- folding ------------------------------------------------------------------------------------------------------------ */

static void read_source(kl_program *program, kl_loop *operand, const kl_view *w, const kl_view *t)
{
    kl_loop cast = kl_copy_loop(program->arena, operand, 1);
    kl_expr *load = &cast.exprs[0];
    cast.exprs[cast.n_exprs++] = (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = IR_BF16, .n_args = 1, .args = { 0 }, .view.buffer = -1, .row = load->row };
    load->dtype = IR_F32;
    load->view.buffer = w->buffer;
    load->view.offset += w->offset - t->offset;
    cast.outputs[0].expr = 1;
    *operand = cast;
}

/* Whether all who read what the kernel at `at` has cast do so as a second operand from then on, and w is there for them. */
static bool fold(const folding *f, list_index *index, kl_kernel *const *list, int at)
{
    const kl_buffer *buffers = f->program->buffers;
    const kl_view *w, *t;
    if (!is_narrowing(list[at], &w, &t) || buffers[t->buffer].kind != KL_TEMP || f->uses.writes[t->buffer] != 1)
        return false;
    int last = at, n_products = 0, source = f->memory[w->buffer];
    for (int i = index->product[t->buffer]; i != NONE; i = index->next[i]) {
        n_products += i > at;
        last = i;
    }
    bool lives = buffers[source].kind != KL_TEMP || index->last_read[source] >= last;
    if (n_products == 0 || n_products != f->uses.reads[t->buffer] || index->source_write[at] <= last || !lives)
        return false;
    for (int i = index->product[t->buffer]; i != NONE; i = index->next[i])
        read_source(f->program, &list[i]->contraction.b, w, t);
    index->last_read[source] = MAX(index->last_read[source], last);
    return true;
}

static void fold_list(const folding *f, kl_kernel **list, int *n)
{
    int kept = 0;
    list_index index = index_list(f, list, *n);
    for (int i = 0; i < *n; i++) {
        if (list[i]->kind == KL_REPEAT)
            fold_list(f, list[i]->repeat.body, &list[i]->repeat.n_body);
        list[kept] = list[i];
        kept += !fold(f, &index, list, i);
    }
    *n = kept;
    free_index(&index);
}

void kl_fold_casts(kl_program *program)
{
    folding f = { program, kl_memories(program), kl_count_uses(program) };
    fold_list(&f, program->kernels, &program->n_kernels);
    base_free(f.memory);
}
