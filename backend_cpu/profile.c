/* Where a run's time goes, noted by the threads that walk it (execute.c).
 *
 * Each thread adds up on its own what the tasks of each item took: nothing is shared while a program runs. Thread 0 also notes how
 * long each stage was, from its beginning to the end of the barrier after it. What of that, times the threads, no task accounts
 * for is waiting, and is laid on the items of the stage in proportion to what they computed:
 *
 *     thread 0   [a a a a][b b b|wait]        stage {a, b}: 2 * 10 ns of time, 17 ns of tasks,
 *     thread 1   [a a a a][b b b b b b|       3 ns of waiting: 3 * 8/17 for a, 3 * 9/17 for b
 *
 * So the kernels' shares add up to the stages, and the rest of a run is what waking the threads takes.
 *
 * The first run touches its memory for the first time: it counts only while there has been no other. */
#include "backend_cpu/backend.h"

typedef struct { int64_t tasks, nanoseconds; } item_time;
typedef struct { _Alignas(64) item_time *items; int n_events, cap_events, open; ir_event *events; } thread_profile;

struct cpu_profile {
    int threads, n_items, n_stages;
    const cpu_profile_item *items;
    thread_profile *of;                      /* by thread */
    int64_t *stage_ns;                       /* by stage, of all runs */
    int64_t runs, wall_ns, begun_ns;
    int traced_runs;
    bool traced;                             /* the run in progress keeps its events */
    ir_event *events;                        /* of all threads, for whoever reads them */
};

/* -- the life of one ------------------------------------------------------------------------------------------------------- */

cpu_profile *cpu_profile_new(int threads, int n_items, const cpu_profile_item *items, int n_stages, int traced_runs)
{
    cpu_profile *p = base_alloc(sizeof *p);
    *p = (cpu_profile){ .threads = threads, .n_items = n_items, .n_stages = n_stages, .items = items, .traced_runs = traced_runs };
    p->of = base_alloc(sizeof *p->of * (size_t)threads);
    p->stage_ns = base_alloc(sizeof *p->stage_ns * (size_t)MAX(n_stages, 1));
    for (int i = 0; i < threads; i++)
        p->of[i].items = base_alloc(sizeof(item_time) * (size_t)MAX(n_items, 1));
    return p;
}

void cpu_profile_free(cpu_profile *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->threads; i++) {
        base_free(p->of[i].items);
        base_free(p->of[i].events);
    }
    base_free(p->of);
    base_free(p->stage_ns);
    base_free(p->events);
    base_free(p);
}

/* -- noting ------------------------------------------------------------------------------------------------------------------ */

static void forget(cpu_profile *p)
{
    for (int i = 0; i < p->threads; i++) {
        for (int j = 0; j < p->n_items; j++)
            p->of[i].items[j] = (item_time){0};
        p->of[i].n_events = 0;
    }
    for (int i = 0; i < p->n_stages; i++)
        p->stage_ns[i] = 0;
    p->wall_ns = 0;
}

void cpu_profile_begin(cpu_profile *p)
{
    if (p->runs == 1)
        forget(p);
    for (int i = 0; i < p->threads; i++)
        p->of[i].open = -1;
    p->traced = p->runs <= p->traced_runs && p->traced_runs > 0;
    p->begun_ns = base_now_ns();
}

void cpu_profile_end(cpu_profile *p)
{
    p->wall_ns += base_now_ns() - p->begun_ns;
    p->runs++;
}

/* Tasks of one item that a thread runs one after another are one event. */
static void add_event(thread_profile *of, int thread, int item, int kernel, int64_t begin, int64_t end)
{
    if (item >= 0 && item == of->open) {
        of->events[of->n_events - 1].end_ns = end;
        return;
    }
    of->events = base_grown(of->events, of->n_events, &of->cap_events, sizeof(ir_event));
    of->events[of->n_events++] = (ir_event){ kernel, thread, begin, end };
    of->open = item;
}

void cpu_profile_task(cpu_profile *p, int thread, int item, int64_t begin)
{
    thread_profile *of = &p->of[thread];
    int64_t end = base_now_ns();
    of->items[item].nanoseconds += end - begin;
    of->items[item].tasks++;
    if (p->traced)
        add_event(of, thread, item, p->items[item].kernel, begin, end);
}

void cpu_profile_stage(cpu_profile *p, int thread, int stage, int64_t begin, int64_t waits)
{
    int64_t end = base_now_ns();
    if (thread == 0)
        p->stage_ns[stage] += end - begin;
    if (p->traced && waits)
        add_event(&p->of[thread], thread, -1, -1, waits, end);
}

/* -- reading ----------------------------------------------------------------------------------------------------------------- */

static item_time of_all_threads(const cpu_profile *p, int item)
{
    item_time sum = {0};
    for (int i = 0; i < p->threads; i++) {
        sum.nanoseconds += p->of[i].items[item].nanoseconds;
        sum.tasks += p->of[i].items[item].tasks;
    }
    return sum;
}

void cpu_profile_read(const cpu_profile *p, ir_kernel_profile *kernels)
{
    double *busy = base_alloc(sizeof *busy * (size_t)MAX(p->n_stages, 1));
    for (int i = 0; i < p->n_items; i++)
        busy[p->items[i].stage] += (double)of_all_threads(p, i).nanoseconds;
    for (int i = 0; i < p->n_items; i++) {
        const cpu_profile_item *item = &p->items[i];
        item_time own = of_all_threads(p, i);
        double idle = MAX(0, (double)p->threads * (double)p->stage_ns[item->stage] - busy[item->stage]);
        ir_kernel_profile *k = &kernels[item->kernel];
        k->busy_ns += (double)own.nanoseconds;
        k->idle_ns += busy[item->stage] > 0 ? idle * (double)own.nanoseconds / busy[item->stage] : 0;
        if (item->first_phase && item->tasks > 0)
            k->runs += own.tasks / item->tasks;
    }
    base_free(busy);
}

void cpu_profile_totals(cpu_profile *p, ir_profile *into)
{
    int n = 0;
    into->threads = p->threads;
    into->runs = p->runs > 1 ? p->runs - 1 : p->runs;
    into->wall_ns = (double)p->wall_ns;
    into->n_events = 0;
    for (int i = 0; i < p->threads; i++)
        n += p->of[i].n_events;
    base_free(p->events);
    p->events = base_alloc(sizeof(ir_event) * (size_t)MAX(n, 1));
    for (int i = 0; i < p->threads; i++)
        for (int j = 0; j < p->of[i].n_events; j++)
            p->events[into->n_events++] = p->of[i].events[j];
    into->events = p->events;
}
