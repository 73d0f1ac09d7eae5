/* Drops copies. Lowering gives every value a buffer of its own and copies results, carries and the like to where they belong:
 *
 *     loop: t = acc + grad                    loop: acc = acc + grad
 *     loop: acc = t
 *
 * A copy of a whole temporary is dropped and the temporary takes the target's name, where no one can tell:
 *
 *   - the temporary is row-major on both sides, and lives in the copy's own list of kernels, not around it in an outer one;
 *   - from the temporary's first write to the copy no kernel reads or writes the target's memory, but for a loop that
 *     reads it by the very view by which it writes the temporary, element by element;
 *   - after the copy, when both hold one value, neither is written: not the target while the temporary is still read, and not
 *     the temporary at all.
 *
 * What happens inside a repeat happens at all times of it: positions are those of the list's own kernels.
 *
 * The memory of a result that was donated is a parameter's: both count as one, and a copy of the parameter to that result is none. */
#include "ir/kernels.h"

#include <string.h>

enum { NONE = -1 };

/* Accesses chained by memory, in no order. whole: writes without a look at what was there. */
typedef struct { kl_kernel *kernel; kl_view *view; const kl_loop *loop; bool write, whole; int next; } access;
typedef struct {
    kl_program *program;
    int n, cap;
    access *list;
    int *first, *last;         /* by memory: of its chain */
    int *memory;               /* by buffer: kl_memories */
    int n_moving, *moving;     /* buffers that move */
    kl_kernel *kernel;         /* now */
} survey;

static void record(void *context, const kl_access *a)
{
    survey *s = context;
    s->list = base_grown(s->list, s->n, &s->cap, sizeof(access));
    int memory = s->memory[a->view->buffer];
    s->list[s->n] = (access){ s->kernel, a->view, a->loop, a->write, a->write && !a->accumulate, NONE };
    *(s->first[memory] == NONE ? &s->first[memory] : &s->list[s->last[memory]].next) = s->n;
    s->last[memory] = s->n++;
}

static void survey_list(survey *s, kl_kernel **kernels, int n)
{
    for (int i = 0; i < n; i++) {
        s->kernel = kernels[i];
        kl_visit(kernels[i], record, s);
        if (kernels[i]->kind == KL_REPEAT)
            survey_list(s, kernels[i]->repeat.body, kernels[i]->repeat.n_body);
    }
}

/* -- what may be dropped ------------------------------------------------------------------------------------------------ */

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
    return source->dtype == target->dtype && source->count == target->count && kl_is_row_major(&kernel->loop, &expr->view, source->count) &&
           kl_is_row_major(&kernel->loop, &output->view, target->count);
}

typedef struct { kl_kernel **at; int n; } kernel_list;

/* Which kernel of the list it is, or is in the body of; -1: none. Ids ascend. */
static int position_in(const kernel_list *list, const kl_kernel *kernel)
{
    int low = 0, high = list->n;
    if (kernel->id < list->at[0]->id || kernel->id > kl_last_id(list->at[list->n - 1]))
        return NONE;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        *(list->at[middle]->id <= kernel->id ? &low : &high) = middle;
    }
    return low;
}

/* Whether all that the loop does with the memory is loads whose view is that of its one store to `from`. */
static bool works_in_place(const survey *s, const kl_kernel *kernel, int from, int memory)
{
    const kl_view *store = NULL;
    if (kernel->kind != KL_LOOP)
        return false;
    for (int i = 0; i < kernel->loop.n_outputs; i++) {
        const kl_output *output = &kernel->loop.outputs[i];
        if (output->view.buffer == from) {
            if (store || output->kind != KL_STORE)
                return false;
            store = &output->view;
        }
    }
    for (int i = s->first[memory]; i != NONE && store; i = s->list[i].next) {
        const access *a = &s->list[i];
        if (a->kernel == kernel && (a->write || !kl_same_view(a->view, store)))
            return false;
    }
    return store;
}

/* Kernel `at` of the list copies all of `from` to `to`. */
static bool may_rename(const survey *s, const kernel_list *list, int at, int from, int to)
{
    const kl_program *program = s->program;
    const kl_buffer *source = &program->buffers[from], *target = &program->buffers[to];
    int memory = s->memory[to], first = list->n, first_id = INT32_MAX, last_read = at;
    bool made_here = true;
    if (source->kind != KL_TEMP || target->kind == KL_PARAM || target->kind == KL_CONST || memory == from)
        return false;
    for (int i = s->first[from]; i != NONE; i = s->list[i].next) {
        const access *a = &s->list[i];
        int where = position_in(list, a->kernel);
        if (where == NONE || (where > at && a->write))
            return false;                                 /* lives around this list; is written after the copy */
        if (a->kernel == list->at[at])
            continue;
        if (a->kernel->id <= first_id) {
            made_here = a->whole && (made_here || a->kernel->id < first_id);
            first_id = a->kernel->id;
            first = where;
        }
        last_read = MAX(last_read, where);
    }
    if (!made_here)
        return false;
    for (int i = 0; i < s->n_moving && target->kind == KL_MOVING; i++)
        if (program->buffers[s->moving[i]].base == from)
            return false;                                 /* a moving view of what moves */
    for (int i = s->first[memory]; i != NONE; i = s->list[i].next) {
        const access *a = &s->list[i];
        int where = position_in(list, a->kernel);
        if (where == NONE || a->kernel == list->at[at])
            continue;
        if (where == first ? !works_in_place(s, list->at[first], from, memory) : where > first && where < at)
            return false;
        if (where > at && where <= last_read && a->write)
            return false;
    }
    return first < at;
}

/* -- dropping ----------------------------------------------------------------------------------------------------------- */

/* Of a kernel that is gone. */
static void forget(survey *s, int memory, const kl_kernel *kernel)
{
    int previous = NONE;
    for (int i = s->first[memory]; i != NONE; i = s->list[i].next) {
        if (s->list[i].kernel != kernel) {
            previous = i;
            continue;
        }
        *(previous == NONE ? &s->first[memory] : &s->list[previous].next) = s->list[i].next;
        if (s->last[memory] == i)
            s->last[memory] = previous;
    }
}

static void rename_buffer(survey *s, int from, int to)
{
    kl_program *program = s->program;
    int memory = s->memory[to];
    for (int i = s->first[from]; i != NONE; i = s->list[i].next)
        if (s->list[i].view->buffer == from)
            s->list[i].view->buffer = to;
    for (int i = 0; i < s->n_moving; i++) {
        int view = s->moving[i];
        if (program->buffers[view].base == from)
            program->buffers[view].base = to;
        if (s->memory[view] == from)
            s->memory[view] = memory;
    }
    if (s->first[from] == NONE)
        return;
    *(s->first[memory] == NONE ? &s->first[memory] : &s->list[s->last[memory]].next) = s->first[from];
    s->last[memory] = s->last[from];
    s->first[from] = s->last[from] = NONE;
}

static bool coalesce_list(survey *s, kl_kernel **kernels, int *n)
{
    bool changed = false;
    for (int i = 0; i < *n; i++) {
        kl_kernel *kernel = kernels[i];
        kernel_list list = { kernels, *n };
        int from, to;
        if (kernel->kind == KL_REPEAT)
            changed |= coalesce_list(s, kernel->repeat.body, &kernel->repeat.n_body);
        if (!is_copy(s->program, kernel, &from, &to))
            continue;
        bool rename = may_rename(s, &list, i, from, to);
        if (!rename && (s->memory[from] != s->memory[to] || s->program->buffers[from].kind == KL_MOVING || s->program->buffers[to].kind == KL_MOVING))
            continue;
        forget(s, s->memory[from], kernel);
        forget(s, s->memory[to], kernel);
        if (rename)
            rename_buffer(s, from, to);
        memmove(&kernels[i], &kernels[i + 1], sizeof(*kernels) * (size_t)(*n - i - 1));
        --*n;
        --i;
        changed = true;
    }
    return changed;
}

void kl_coalesce(kl_program *program)
{
    survey s = { .program = program };
    size_t bytes = sizeof(int) * (size_t)program->n_buffers;
    kl_renumber(program);
    s.first = base_alloc(bytes);
    s.last = base_alloc(bytes);
    s.moving = base_alloc(bytes);
    s.memory = kl_memories(program);
    for (int i = 0; i < program->n_buffers; i++) {
        s.first[i] = s.last[i] = NONE;
        if (program->buffers[i].kind == KL_MOVING)
            s.moving[s.n_moving++] = i;
    }
    survey_list(&s, program->kernels, program->n_kernels);
    while (coalesce_list(&s, program->kernels, &program->n_kernels))
        ;
    base_free(s.list);
    base_free(s.first);
    base_free(s.last);
    base_free(s.memory);
    base_free(s.moving);
}
