/* The stand-in's streams, a part of cuda_standin.h: what is queued, captured, and done, and when. */
#ifndef TESTS_CUDA_STANDIN_STREAMS_H
#define TESTS_CUDA_STANDIN_STREAMS_H

/* -- the stream ------------------------------------------------------------------------------------------------------------- */

struct cuda_function_opaque { void (*entry)(const int64_t *); void (*emulate)(void (*)(const int64_t *), const unsigned[3], unsigned, unsigned, const int64_t *, int backwards); int shared_bytes; const ptx_kernel *ptx; int launches; };
struct cuda_module_opaque { void *handle; int fd; struct cuda_function_opaque function; ptx_module *ptx; };
struct cuda_event_opaque { bool recorded; int64_t ticket; cuda_stream stream; struct timespec time; };
struct cuda_product_desc_opaque { int compute, transpose_a, transpose_b, epilogue; char *bias, *aux; int64_t aux_leading; };
struct cuda_layout_opaque { int type; uint64_t rows, columns; int64_t leading, stride; int32_t batch; };

typedef enum { DO_COPY_IN, DO_COPY_OUT, DO_FILL, DO_LAUNCH, DO_PRODUCT, DO_GRAPH, DO_WAIT, DO_EVENT } op_kind;
typedef struct {
    op_kind kind;
    cuda_stream stream;
    int64_t ticket;
    char *to;
    const char *from;
    size_t bytes;
    cuda_function function;
    unsigned grid[3], threads, shared_bytes;
    int64_t *args;
    struct cuda_product_desc_opaque desc;
    struct cuda_layout_opaque a, b, c, d;
    const char *pa, *pb, *pc;
    double alpha, beta;
    int algorithm;
    cuda_graph_exec graph;
    struct cuda_event_opaque event;           /* as it was recorded last */
    cuda_event timed;                         /* that an op of its own records */
} stream_op;
typedef struct { int n, cap; stream_op *at; } op_list;
struct cuda_graph_opaque { op_list ops; };
struct cuda_graph_exec_opaque { op_list ops; };

enum { MOST_STREAMS = 4 };
struct cuda_stream_opaque { op_list waiting; };
static struct cuda_stream_opaque streams[MOST_STREAMS];      /* the first is the one that runs are on */
static int n_streams;
static op_list captured;
static bool capturing;
static int64_t next_ticket;

static bool is_stream(cuda_stream s) { return s >= streams && s < streams + n_streams; }
static bool is_idle(void)
{
    for (int i = 0; i < n_streams; i++)
        if (streams[i].waiting.n > 0)
            return false;
    return true;
}

static stream_op *queue_op(op_list *list, op_kind kind)
{
    if (list->n == list->cap)
        list->at = realloc(list->at, sizeof *list->at * (size_t)(list->cap = MAX(64, 2 * list->cap)));
    list->at[list->n] = (stream_op){ .kind = kind, .ticket = next_ticket };
    return &list->at[list->n++];
}

/* -- doing it ---------------------------------------------------------------------------------------------------------------- */

static void do_product(const stream_op *op);
static bool run_until(cuda_stream stream, int64_t ticket);

static const char *ptx_memory(const void *at, size_t bytes, size_t *block_bytes)
{
    const block *b = block_of(at, bytes, false);
    return b ? *block_bytes = b->bytes, b->at : NULL;
}

static void run_ptx(const stream_op *op)
{
    const ptx_options options = { .backwards = standin.backwards, .orders_blocks = true, .memory = ptx_memory, .counts = &standin.counted, .sampled = standin.sampled_blocks,
                                  .most_moved = SAMPLED_FROM };
    if (standin.sampled_blocks && op->function->launches++ >= 2)
        return;
    char *why = ptx_launch(op->function->ptx, op->grid, op->threads, op->shared_bytes, op->args, op->bytes, &options);
    STANDIN_CHECK(!why, "%s", why);
}

static void do_op(const stream_op *op)
{
    if (standin.dead && op->kind != DO_GRAPH)
        return;
    switch (op->kind) {
    case DO_COPY_IN:
        if (op->stream != streams)
            for (int i = 0; i < streams->waiting.n; i++)
                if (streams->waiting.at[i].kind == DO_GRAPH && streams->waiting.at[i].ticket < op->ticket) {
                    standin.copies_ahead++;
                    break;
                }
        memcpy(op->to, op->from, op->bytes);
        break;
    case DO_COPY_OUT:
        memcpy(op->to, op->from, op->bytes);
        break;
    case DO_FILL:
        if (op->bytes < LARGE)
            memset(op->to, 0, op->bytes);
        break;
    case DO_LAUNCH:
        standin.launches++;
        if (standin.launches == standin.fails_at)
            standin.dead = standin.fails_with;
        if (standin.dead)
            break;
        if (op->function->ptx)
            run_ptx(op);
        else
            op->function->emulate(op->function->entry, op->grid, op->threads, op->shared_bytes, op->args, standin.backwards);
        break;
    case DO_PRODUCT:
        standin.products++;
        if (standin.sampled_blocks)
            break;
        standin.tf32_products += op->desc.compute == CUDA_COMPUTE_TF32;
        standin.algorithm = op->algorithm;
        if (standin.fast_second && op->algorithm != 4712)
            usleep(2000);
        if (standin.slow_epilogue)
            usleep(op->desc.epilogue & standin.slow_epilogue ? 4000 : op->desc.epilogue & ~(CUDA_EPILOGUE_NONE | CUDA_EPILOGUE_BIAS) ? 0 : 2000);
        do_product(op);
        break;
    case DO_GRAPH:
        standin.backwards = !standin.backwards;
        for (int i = 0; i < op->graph->ops.n; i++)
            do_op(&op->graph->ops.at[i]);
        break;
    case DO_EVENT:
        op->timed->recorded = true;
        clock_gettime(CLOCK_MONOTONIC, &op->timed->time);
        break;
    case DO_WAIT:
        run_until(op->event.stream, op->event.ticket);
        break;
    }
}

/* All that was queued before the ticket. False where nothing was left to do. */
static bool run_until(cuda_stream stream, int64_t ticket)
{
    op_list *waiting = &stream->waiting;
    int done = 0;
    while (done < waiting->n && waiting->at[done].ticket < ticket) {
        do_op(&waiting->at[done]);
        if (waiting->at[done].kind == DO_LAUNCH)
            free(waiting->at[done].args);
        done++;
    }
    if (done > 0)                                /* before the first there is no list */
        memmove(waiting->at, waiting->at + done, sizeof *waiting->at * (size_t)(waiting->n - done));
    waiting->n -= done;
    for (block *b = standin.blocks; b && done > 0; b = b->next)
        check_block_guards(b);
    return done > 0;
}

static stream_op *queue(op_kind kind, cuda_stream stream)
{
    STANDIN_CHECK(is_stream(stream), "op %d on what is no stream", (int)kind);
    next_ticket++;
    if (capturing && stream == streams) {
        STANDIN_CHECK(kind == DO_LAUNCH || kind == DO_PRODUCT || kind == DO_EVENT, "op %d while a stream is captured", (int)kind);
        return queue_op(&captured, kind);
    }
    stream_op *op = queue_op(&stream->waiting, kind);
    op->stream = stream;
    return op;
}

/* Its description is whole. */
static int queued(cuda_stream stream)
{
    if (standin.eager_copies && stream != streams)
        run_until(stream, INT64_MAX);
    return standin.dead;
}

#endif
