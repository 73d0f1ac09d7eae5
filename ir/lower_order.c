/* The order of kernels: whatever a unit reads has been written, and where there is a choice the earliest in the graph comes first. */
#include "ir/lower.h"

/* -- what a unit reads and writes --------------------------------------------------------------------------------------- */

typedef struct { const kl_program *program; base_arena *arena; int *at[2], n[2], cap[2]; } touched;

static void touch(void *context, const kl_access *access)
{
    touched *t = context;
    int which = access->write, buffer = kl_root_buffer(t->program, access->view->buffer);
    for (int i = 0; i < t->n[which]; i++)
        if (t->at[which][i] == buffer)
            return;
    t->at[which] = base_arena_grown(t->arena, t->at[which], t->n[which], &t->cap[which], sizeof(int));
    t->at[which][t->n[which]++] = buffer;
}

/* -- queue -------------------------------------------------------------------------------------------------------------- */

typedef struct { int *at, n, cap; } int_list;

static void append(base_arena *arena, int_list *list, int value)
{
    list->at = base_arena_grown(arena, list->at, list->n, &list->cap, sizeof *list->at);
    list->at[list->n++] = value;
}

void kl_heap_push(unit_heap *heap, int unit)
{
    int i = heap->n++;
    for (; i > 0 && heap->key[heap->at[(i - 1) / 2]] > heap->key[unit]; i = (i - 1) / 2)
        heap->at[i] = heap->at[(i - 1) / 2];
    heap->at[i] = unit;
}

int kl_heap_pop(unit_heap *heap)
{
    int top = heap->at[0], moved = heap->at[--heap->n], i = 0;
    for (int child; (child = 2 * i + 1) < heap->n; i = child) {
        child += child + 1 < heap->n && heap->key[heap->at[child + 1]] < heap->key[heap->at[child]];
        if (heap->key[heap->at[child]] >= heap->key[moved])
            break;
        heap->at[i] = heap->at[child];
    }
    heap->at[i] = moved;
    return top;
}

static void emit(const lower_unit *u, kl_sequence *out)
{
    for (int i = 0; i < u->kernels.n; i++)
        kl_append(out, u->kernels.at[i]);
}

/* -- order -------------------------------------------------------------------------------------------------------------- */

/* users[u]: the units that read what u writes; waits_for[u]: how many units u has yet to wait for. */
static void find_users(lowering *l, int_list *users, int *waits_for)
{
    int n = l->n_units;
    base_arena *arena = l->scratch;
    int_list *writers = ARENA_NEW(arena, int_list, l->program->n_buffers);
    touched *touches = ARENA_NEW(arena, touched, n);
    for (int i = 0; i < n; i++) {
        touches[i] = (touched){ .program = l->program, .arena = arena };
        for (int j = 0; j < l->units[i].kernels.n; j++)
            kl_visit_all(l->units[i].kernels.at[j], touch, &touches[i]);
        for (int j = 0; j < touches[i].n[1] && l->units[i].key != UNIT_LAST; j++)
            append(arena, &writers[touches[i].at[1][j]], i);
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < touches[i].n[0]; j++) {
            const int_list *from = &writers[touches[i].at[0][j]];
            bool writes_too = false;      /* then it reads its own part of a concatenation: nobody but its maker reads a part */
            for (int k = 0; k < from->n; k++)
                writes_too |= from->at[k] == i;
            for (int k = 0; k < from->n && !writes_too; k++) {
                append(arena, &users[from->at[k]], i);
                waits_for[i]++;
            }
        }
}

void kl_order_units(lowering *l, kl_sequence *out)
{
    int n = l->n_units, done = 0;
    int_list *users = ARENA_NEW(l->scratch, int_list, n);
    int *waits_for = ARENA_NEW(l->scratch, int, n);
    int64_t *key = ARENA_NEW(l->scratch, int64_t, n);
    unit_heap ready = { .key = key, .at = ARENA_NEW(l->scratch, int, n) };      /* what waits for nothing any more */
    for (int i = 0; i < n; i++)
        key[i] = l->units[i].key;
    find_users(l, users, waits_for);
    for (int i = 0; i < n; i++)
        if (waits_for[i] == 0 && l->units[i].key != UNIT_LAST)
            kl_heap_push(&ready, i);
    for (; ready.n > 0; done++) {
        int next = kl_heap_pop(&ready);
        emit(&l->units[next], out);
        for (int i = 0; i < users[next].n; i++)
            if (--waits_for[users[next].at[i]] == 0 && l->units[users[next].at[i]].key != UNIT_LAST)
                kl_heap_push(&ready, users[next].at[i]);
    }
    for (int i = 0; i < n; i++)
        if (l->units[i].key == UNIT_LAST) {
            emit(&l->units[i], out);
            done++;
        }
    CHECK(done == n, "graph %s: expected the kernels to have an order", l->state->graph->name);
}
