/* Drops copies. Lowering gives every value a buffer of its own and copies results, carries and the like to where they belong:
 *
 *     loop: t = acc + grad                    loop: acc = acc + grad
 *     loop: acc = t
 *
 * A copy of a whole temporary is dropped and the temporary takes the target's name, where no one can tell:
 *
 *   - the temporary is whole, row-major on both sides, and lives in the copy's own list of kernels (not around it in an outer one);
 *   - from the temporary's first write to the copy no kernel reads or writes the target's memory, but for loops that
 *     read it by the very view by which they write the temporary, element by element;
 *   - after the copy the target is not written while the temporary is still read.
 *
 * The memory of a result that was donated is a parameter's: both count as one. A copy of a parameter to the result that
 * took over its memory is dropped where nothing reads the parameter after it. */
#include "ir/kernels.h"

#include <string.h>

/* Positions are kernel ids: a repeat comes before its body, and ends before the next kernel in its list. */
typedef struct {
    kl_program *program;
    int n_accesses, cap_accesses;
    struct access { int kernel, buffer; bool write; const kl_view *view; const kl_loop *loop; } *accesses;
    int now;
} survey;

static void record(void *context, const kl_access *access)
{
    survey *s = context;
    if (s->n_accesses == s->cap_accesses) {
        int cap = MAX(256, 2 * s->cap_accesses);
        s->accesses = base_realloc(s->accesses, sizeof(struct access) * (size_t)s->n_accesses, sizeof(struct access) * (size_t)cap);
        s->cap_accesses = cap;
    }
    s->accesses[s->n_accesses++] = (struct access){ s->now, access->view->buffer, access->write, access->view, access->loop };
}

static void survey_list(survey *s, kl_kernel **kernels, int n)
{
    for (int i = 0; i < n; i++) {
        s->now = kernels[i]->id;
        kl_visit(kernels[i], record, s);
        if (kernels[i]->kind == KL_REPEAT)
            survey_list(s, kernels[i]->repeat.body, kernels[i]->repeat.n_body);
    }
}

/* What memory a buffer is: buffers of one memory have one number. */
static int memory_of(const kl_program *program, int buffer)
{
    buffer = kl_root_buffer(program, buffer);
    const kl_buffer *b = &program->buffers[buffer];
    if (b->kind == KL_RESULT && b->donated >= 0)
        for (int i = 0; i < program->n_buffers; i++)
            if (program->buffers[i].kind == KL_PARAM && program->buffers[i].index == b->donated)
                return i;
    return buffer;
}

static bool is_row_major(const kl_loop *loop, const kl_view *view, int64_t count)
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

/* A loop that copies all of one buffer to all of another. */
static bool is_copy(const kl_program *program, const kl_kernel *kernel, int *from, int *to)
{
    if (kernel->kind != KL_LOOP || kernel->loop.n_exprs != 1 || kernel->loop.n_outputs != 1)
        return false;
    const kl_expr *expr = &kernel->loop.exprs[0];
    const kl_output *output = &kernel->loop.outputs[0];
    if (expr->kind != KL_LOAD || output->kind != KL_STORE || output->accumulate)
        return false;
    *from = expr->view.buffer;
    *to = output->view.buffer;
    const kl_buffer *source = &program->buffers[*from], *target = &program->buffers[*to];
    return source->dtype == target->dtype && source->count == target->count && is_row_major(&kernel->loop, &expr->view, source->count) &&
           is_row_major(&kernel->loop, &output->view, target->count);
}

/* Whether all that kernel `at` does with the memory is loads whose view is that of its one store to `from`. */
static bool in_place(const survey *s, int at, int from, int memory)
{
    const kl_view *store = NULL;
    for (int i = 0; i < s->n_accesses; i++) {
        const struct access *a = &s->accesses[i];
        if (a->kernel != at || a->buffer != from || !a->write)
            continue;
        if (store || !a->loop)
            return false;
        store = a->view;
    }
    if (!store)
        return false;
    for (int i = 0; i < s->n_accesses; i++) {
        const struct access *a = &s->accesses[i];
        if (a->kernel != at || memory_of(s->program, a->buffer) != memory)
            continue;
        if (a->write || !a->loop || !kl_same_view(a->view, store))
            return false;
    }
    return true;
}

static bool stores_elementwise(const kl_program *program, const kl_kernel *kernel, int buffer)
{
    (void)program;
    if (kernel->kind != KL_LOOP)
        return false;
    for (int i = 0; i < kernel->loop.n_outputs; i++)
        if (kernel->loop.outputs[i].view.buffer == buffer && kernel->loop.outputs[i].kind != KL_STORE)
            return false;
    return true;
}

/* list[at] copies temporary `from` to `to`. */
static bool may_rename(survey *s, kl_kernel **list, int n, int at, int from, int to)
{
    kl_program *program = s->program;
    const kl_buffer *source = &program->buffers[from];
    if (source->kind != KL_TEMP || program->buffers[to].kind == KL_PARAM || program->buffers[to].kind == KL_CONST)
        return false;
    int copy = list[at]->id, first_id = list[0]->id, end_id = kl_last_id(list[n - 1]), memory = memory_of(program, to);

    int first = INT32_MAX, last_read = -1;
    for (int i = 0; i < s->n_accesses; i++) {
        const struct access *a = &s->accesses[i];
        if (kl_root_buffer(program, a->buffer) != from)
            continue;
        if (a->kernel < first_id || a->kernel > end_id)
            return false;                                 /* lives around this list */
        first = MIN(first, a->kernel);
        last_read = MAX(last_read, a->kernel);
    }
    /* A moving view of the temporary would have to move over the target. */
    for (int i = 0; i < program->n_buffers; i++)
        if (program->buffers[i].kind == KL_MOVING && program->buffers[i].base == from && program->buffers[to].kind == KL_MOVING)
            return false;
    for (int i = 0; i < s->n_accesses; i++) {
        const struct access *a = &s->accesses[i];
        if (memory_of(program, a->buffer) != memory || a->kernel == copy)
            continue;
        if (a->kernel > first && a->kernel < copy)
            return false;
        if (a->kernel == first) {
            const kl_kernel *writer = NULL;
            for (int j = 0; j < n; j++)
                if (list[j]->id == first)
                    writer = list[j];
            if (!writer || !stores_elementwise(program, writer, from) || !in_place(s, first, from, memory))
                return false;
        }
        if (a->kernel > copy && a->kernel <= last_read && a->write)
            return false;
    }
    return true;
}

static void rename_buffer(void *context, const kl_access *access)
{
    const int *names = context;
    if (access->view->buffer == names[0])
        access->view->buffer = names[1];
}

static void rename_in(kl_kernel **kernels, int n, int *names)
{
    for (int i = 0; i < n; i++) {
        kl_visit(kernels[i], rename_buffer, names);
        if (kernels[i]->kind == KL_REPEAT)
            rename_in(kernels[i]->repeat.body, kernels[i]->repeat.n_body, names);
    }
}

/* A parameter copied to the result that has its memory: nothing to do, if no one needs the old value later. */
static bool is_no_copy(survey *s, const kl_kernel *copy, int from, int to)
{
    kl_program *program = s->program;
    if (program->buffers[from].kind != KL_PARAM || memory_of(program, to) != memory_of(program, from))
        return false;
    for (int i = 0; i < s->n_accesses; i++)
        if (s->accesses[i].buffer != to && memory_of(program, s->accesses[i].buffer) == memory_of(program, from) && s->accesses[i].kernel > copy->id)
            return false;
    return true;
}

static bool coalesce_list(survey *s, kl_kernel **list, int *n)
{
    kl_program *program = s->program;
    for (int i = 0; i < *n; i++) {
        if (list[i]->kind == KL_REPEAT && coalesce_list(s, list[i]->repeat.body, &list[i]->repeat.n_body))
            return true;
        int from, to;
        if (!is_copy(program, list[i], &from, &to) || from == to)
            continue;
        bool rename = may_rename(s, list, *n, i, from, to);
        if (!rename && !is_no_copy(s, list[i], from, to))
            continue;
        memmove(&list[i], &list[i + 1], sizeof(*list) * (size_t)(*n - i - 1));
        --*n;
        if (rename) {
            rename_in(program->kernels, program->n_kernels, (int[]){ from, to });
            for (int j = 0; j < program->n_buffers; j++)
                if (program->buffers[j].kind == KL_MOVING && program->buffers[j].base == from)
                    program->buffers[j].base = to;
        }
        return true;
    }
    return false;
}

/* -- tidying ------------------------------------------------------------------------------------------------------------ */

static void note_use(void *context, const kl_access *access) { ((int *)context)[access->view->buffer] = 1; }
static void use_new_number(void *context, const kl_access *access) { access->view->buffer = ((const int *)context)[access->view->buffer]; }

static void visit_list(kl_kernel **kernels, int n, void (*visit)(void *context, const kl_access *access), void *context)
{
    for (int i = 0; i < n; i++) {
        kl_visit(kernels[i], visit, context);
        if (kernels[i]->kind == KL_REPEAT)
            visit_list(kernels[i]->repeat.body, kernels[i]->repeat.n_body, visit, context);
    }
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
static void tidy(kl_program *program)
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
    base_free(number);
    base_free(repeat);
}

/* Quadratic in the copies that can be dropped, which are few hundreds: results and carries. */
void kl_coalesce(kl_program *program)
{
    bool changed = true;
    while (changed) {
        kl_renumber(program);
        survey s = { .program = program };
        survey_list(&s, program->kernels, program->n_kernels);
        changed = coalesce_list(&s, program->kernels, &program->n_kernels);
        base_free(s.accesses);
    }
    tidy(program);
}
