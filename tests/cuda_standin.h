/* A GPU that is none: a stand-in for libcuda, NVRTC and cuBLASLt, so that the CUDA backend runs from end to end on a machine without one.
 *
 * Device memory is host memory with guards round every block. NVRTC's "cubin" is a shared library: the kernel's own text behind
 * the first part of cuda_emulator.h, compiled by the C compiler. cuBLASLt's product is three plain loops. A stream does nothing until somebody waits for it,
 * so that a wait that is missing shows: what it should have waited for is not there yet. With eager_copies the streams after the first do
 * everything at once, as far as their waits let them: then a wait that they lack shows. What is captured becomes a graph, and only a launch
 * of it runs.
 *
 * Checked at every call: addresses lie inside blocks of memory, pinned memory is pinned, nothing is freed that is still to be used, nothing but
 * launches and products happens while a stream is captured. */
#ifndef TESTS_CUDA_STANDIN_H
#define TESTS_CUDA_STANDIN_H

#include "tests/graphs.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "backend_cuda/backend.h"

enum { BLOCK_GUARD = 512, SHARED_OPTIN = 232448 };

#define STANDIN_CHECK(condition, ...)                                       \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "stand-in: " __VA_ARGS__);                      \
            fprintf(stderr, "\n");                                          \
            abort();                                                        \
        }                                                                   \
    } while (0)

/* -- memory -------------------------------------------------------------------------------------------------------------- */

enum { LARGE = 16 << 20 };                    /* a block that is zero until it is written: memory that nobody touches costs nothing */
typedef struct block { struct block *next; char *at; size_t bytes; bool pinned; } block;
static struct {
    block *blocks;
    size_t device_bytes, most_bytes;          /* most: what the device has */
    int arch_major, arch_minor, nvrtc_version;
    bool backwards;                           /* the emulator goes from the last thread to the first: each graph the other way than the last */
    int newest_target;                        /* where not 0, the one architecture that its NVRTC knows */
    int ptx_taken;                            /* compiled code that was taken as PTX */
    int refused_epilogue;                     /* bits of one that there is no algorithm for */
    int launches, products, tf32_products, epilogues, questions, asked_epilogues, graph_launches, captures, early_waits, compiled, compiled_by_nvrtc;
    int blocking_waits, stream_waits;         /* of the host: for an event that was not there yet; for a whole stream */
    int copies_ahead;                         /* into memory, while the first stream had a graph before it */
    bool eager_copies;
    int fails_at, fails_with;                 /* the launch of this number, counted from 1, ends the device, which gives this error from then on */
    int dead;                                 /* that error, once it has happened */
    int driver;                               /* its version, where not 0 */
    bool fast_second;                         /* of the algorithms of a product the second is faster than the others */
    int algorithm;                            /* that the last product took */
    const cuda_library *nvrtc;                /* not NULL: what is compiled for the stand-in is compiled for sm_80 and sm_90, too */
    bool only_nvrtc;                          /* and only by it, for the stand-in's own architecture: kernels cannot be launched */
    int attention_kernels, attention_spills;  /* of what it compiled alone: kernels of attention, and those of them that have not registers enough */
} standin = { .most_bytes = (size_t)8 << 30, .arch_major = 9, .nvrtc_version = 130 };

static block *block_of(const void *at, size_t bytes, bool pinned)
{
    for (block *b = standin.blocks; b; b = b->next)
        if (b->pinned == pinned && (const char *)at >= b->at && (const char *)at + bytes <= b->at + b->bytes)
            return b;
    return NULL;
}

static void check_block_guards(const block *b)
{
    for (int i = 1; i <= BLOCK_GUARD; i++)
        STANDIN_CHECK((unsigned char)b->at[-i] == 0xa5 && (unsigned char)b->at[b->bytes + (size_t)i - 1] == 0xa5, "a block of %zu bytes was written outside of it", b->bytes);
}

static void *new_block(size_t bytes, bool pinned)
{
    block *b = malloc(sizeof *b);
    size_t room = (bytes + 2 * BLOCK_GUARD + 511) & ~(size_t)511;
    char *memory = bytes >= LARGE ? mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : aligned_alloc(512, room);
    STANDIN_CHECK(memory && memory != MAP_FAILED, "no memory for %zu bytes", bytes);
    *b = (block){ standin.blocks, memory + BLOCK_GUARD, bytes, pinned };
    memset(memory, 0xa5, BLOCK_GUARD);
    if (bytes < LARGE)
        memset(b->at, 0xff, bytes);
    memset(b->at + bytes, 0xa5, BLOCK_GUARD);
    standin.blocks = b;
    standin.device_bytes += pinned ? 0 : bytes;
    return b->at;
}

static void free_block(void *at, bool pinned)
{
    for (block **b = &standin.blocks; *b; b = &(*b)->next)
        if ((*b)->at == at && (*b)->pinned == pinned) {
            block *dead = *b;
            check_block_guards(dead);
            *b = dead->next;
            standin.device_bytes -= pinned ? 0 : dead->bytes;
            if (dead->bytes >= LARGE)
                munmap(dead->at - BLOCK_GUARD, (dead->bytes + 2 * BLOCK_GUARD + 511) & ~(size_t)511);
            else
                free(dead->at - BLOCK_GUARD);
            free(dead);
            return;
        }
    STANDIN_CHECK(false, "freed what is no block");
}

/* -- the stream ------------------------------------------------------------------------------------------------------------- */

struct cuda_function_opaque { void (*entry)(const int64_t *); void (*emulate)(void (*)(const int64_t *), const unsigned[3], unsigned, unsigned, const int64_t *, int backwards); int shared_bytes; };
struct cuda_module_opaque { void *handle; int fd; struct cuda_function_opaque function; };
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

static double number_at(const char *at, int type, int64_t i)
{
    return type == CUDA_R_F64 ? ((const double *)(const void *)at)[i] : type == CUDA_R_BF16 ? ir_bf16_to_f32(((const uint16_t *)(const void *)at)[i]) : ((const float *)(const void *)at)[i];
}

static void put_number(char *at, int type, int64_t i, double x)
{
    if (type == CUDA_R_F64)
        ((double *)(void *)at)[i] = x;
    else if (type == CUDA_R_BF16)
        ((uint16_t *)(void *)at)[i] = ir_f32_to_bf16((float)x);
    else
        ((float *)(void *)at)[i] = (float)x;
}

static size_t type_bytes(int type) { return type == CUDA_R_F64 ? 8 : type == CUDA_R_BF16 ? 2 : 4; }

static size_t matrix_bytes(const struct cuda_layout_opaque *l)
{
    return (size_t)((int64_t)(l->batch - 1) * l->stride + (int64_t)(l->columns - 1) * l->leading + (int64_t)l->rows) * type_bytes(l->type);
}
static bool lie_apart(const char *a, const struct cuda_layout_opaque *la, const char *b, const struct cuda_layout_opaque *lb)
{
    return a + matrix_bytes(la) <= b || b + matrix_bytes(lb) <= a;
}

static void check_matrix(const char *at, const struct cuda_layout_opaque *l, const char *what)
{
    STANDIN_CHECK(l->leading >= (int64_t)l->rows && l->batch >= 1, "%s of a product: %llu rows, %lld from column to column", what, (unsigned long long)l->rows, (long long)l->leading);
    STANDIN_CHECK(block_of(at, matrix_bytes(l), false), "%s of a product lies outside of memory", what);
}

static double tanh_gelu(double x) { return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x))); }
static double tanh_gelu_slope(double x)
{
    double t = tanh(0.79788456080286536 * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.79788456080286536 * (1 + 0.134145 * x * x);
}

/* An element of an operand: to ten bits where the product is in TF32. */
static double operand_at(const stream_op *op, const char *at, int type, int64_t i)
{
    float x = (float)number_at(at, type, i);
    uint32_t bits;
    if (op->desc.compute != CUDA_COMPUTE_TF32)
        return number_at(at, type, i);
    memcpy(&bits, &x, 4);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    memcpy(&x, &bits, 4);
    return x;
}

/* Column by column, as cuBLASLt has it. */
static void do_product(const stream_op *op)
{
    int64_t m = (int64_t)op->d.rows, n = (int64_t)op->d.columns, k = (int64_t)(op->desc.transpose_a ? op->a.rows : op->a.columns);
    STANDIN_CHECK((int64_t)(op->desc.transpose_a ? op->a.columns : op->a.rows) == m && (int64_t)(op->desc.transpose_b ? op->b.rows : op->b.columns) == n &&
                  (int64_t)(op->desc.transpose_b ? op->b.columns : op->b.rows) == k, "the operands of a product do not fit");
    double *a = malloc(sizeof(double) * (size_t)(m * k)), *sum = malloc(sizeof(double) * (size_t)m), *bias_sum = calloc((size_t)MAX(m, n), sizeof(double));
    int type = op->d.type, epilogue = op->desc.epilogue & ~CUDA_EPILOGUE_NONE;
    for (int64_t batch = 0; batch < op->d.batch; batch++) {
        for (int64_t j = 0; j < k; j++)
            for (int64_t i = 0; i < m; i++)
                a[j * m + i] = operand_at(op, op->pa, op->a.type, batch * op->a.stride + (op->desc.transpose_a ? i * op->a.leading + j : j * op->a.leading + i));
        for (int64_t j = 0; j < n; j++) {
            memset(sum, 0, sizeof(double) * (size_t)m);
            for (int64_t p = 0; p < k; p++) {
                double b = operand_at(op, op->pb, op->b.type, batch * op->b.stride + (op->desc.transpose_b ? p * op->b.leading + j : j * op->b.leading + p));
                for (int64_t i = 0; i < m; i++)
                    sum[i] += a[p * m + i] * b;
                if (epilogue & CUDA_EPILOGUE_SUM_B)
                    bias_sum[j] += b;
            }
            for (int64_t i = 0; i < m; i++) {
                int64_t at = batch * op->d.stride + j * op->d.leading + i, aux_at = j * op->desc.aux_leading + i;
                double x = op->alpha * sum[i];
                if (epilogue & CUDA_EPILOGUE_BIAS)
                    x += number_at(op->desc.bias, type, i);
                if ((epilogue & CUDA_EPILOGUE_AUX) && (epilogue & CUDA_EPILOGUE_GELU))
                    put_number(op->desc.aux, type, aux_at, x);
                if (epilogue & CUDA_EPILOGUE_GELU)
                    x = tanh_gelu(x);
                if (epilogue & CUDA_EPILOGUE_GELU_GRADIENT)
                    x *= tanh_gelu_slope(number_at(op->desc.aux, type, aux_at));
                if (epilogue & CUDA_EPILOGUE_BIAS_GRADIENT)
                    bias_sum[i] += x;
                if (op->beta != 0)
                    x += op->beta * number_at(op->pc, type, batch * op->c.stride + j * op->c.leading + i);
                put_number(op->to, type, at, x);
            }
        }
    }
    for (int64_t p = 0; p < k && (epilogue & CUDA_EPILOGUE_SUM_A); p++)
        for (int64_t i = 0; i < m; i++)
            bias_sum[i] += a[p * m + i];
    int64_t n_sums = epilogue & (CUDA_EPILOGUE_BIAS_GRADIENT | CUDA_EPILOGUE_SUM_A) ? m : epilogue & CUDA_EPILOGUE_SUM_B ? n : 0;
    for (int64_t i = 0; i < n_sums; i++)
        put_number(op->desc.bias, type, i, bias_sum[i]);
    free(a);
    free(sum);
    free(bias_sum);
}

static bool run_until(cuda_stream stream, int64_t ticket);

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
        op->function->emulate(op->function->entry, op->grid, op->threads, op->shared_bytes, op->args, standin.backwards);
        break;
    case DO_PRODUCT:
        standin.products++;
        standin.tf32_products += op->desc.compute == CUDA_COMPUTE_TF32;
        standin.algorithm = op->algorithm;
        if (standin.fast_second && op->algorithm != 4712)
            usleep(2000);
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

#include "tests/cuda_standin_compiler.h"

/* -- the driver ---------------------------------------------------------------------------------------------------------------- */

static int si_init(unsigned flags) { return flags ? 1 : 0; }
static int si_driver_version(int *version) { return *version = standin.driver ? standin.driver : 13000, 0; }
static int si_error_text(int error, const char **text) { return *text = error == CUDA_OUT_OF_MEMORY ? "out of memory" : error == 700 ? "an illegal memory access was encountered" : "an error of the stand-in", 0; }
static int si_device_get(int *device, int ordinal) { return *device = ordinal, 0; }
static int si_device_name(char *name, int size, int device) { return (void)device, snprintf(name, (size_t)size, "stand-in"), 0; }
static int si_device_attribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute == CUDA_ATTRIBUTE_MAJOR ? standin.arch_major : attribute == CUDA_ATTRIBUTE_MINOR ? standin.arch_minor : attribute == CUDA_ATTRIBUTE_SHARED_OPTIN ? SHARED_OPTIN : 132;
    return 0;
}
static int si_context_retain(cuda_context *context, int device) { return (void)device, *context = (cuda_context)&standin, 0; }
static int si_context_release(int device) { return (void)device, 0; }
static int si_context_set(cuda_context context) { return context ? 0 : 1; }
static int si_memory_info(size_t *available, size_t *total) { return *total = standin.most_bytes, *available = standin.most_bytes - standin.device_bytes, 0; }
static int si_memory_alloc(cuda_pointer *memory, size_t bytes)
{
    if (standin.dead)
        return standin.dead;
    if (bytes > standin.most_bytes - standin.device_bytes)
        return CUDA_OUT_OF_MEMORY;
    *memory = (cuda_pointer)(uintptr_t)new_block(bytes, false);
    return 0;
}
static int si_memory_free(cuda_pointer memory)
{
    STANDIN_CHECK(standin.dead || is_idle(), "memory is freed while a stream has work");
    free_block((void *)(uintptr_t)memory, false);
    return standin.dead;
}
static int si_host_alloc(void **memory, size_t bytes) { return *memory = new_block(bytes, true), 0; }
static int si_host_free(void *memory) { return free_block(memory, true), 0; }
static int si_copy_to_device(cuda_pointer to, const void *from, size_t bytes, cuda_stream stream)
{
    STANDIN_CHECK(block_of((void *)(uintptr_t)to, bytes, false), "a copy to what is no device memory");
    STANDIN_CHECK(block_of(from, bytes, true), "a copy from memory that is not pinned");
    stream_op *op = queue(DO_COPY_IN, stream);
    op->to = (char *)(uintptr_t)to, op->from = from, op->bytes = bytes;
    return queued(stream);
}
static int si_copy_to_host(void *to, cuda_pointer from, size_t bytes, cuda_stream stream)
{
    STANDIN_CHECK(block_of((void *)(uintptr_t)from, bytes, false), "a copy from what is no device memory");
    stream_op *op = queue(DO_COPY_OUT, stream);
    op->to = to, op->from = (char *)(uintptr_t)from, op->bytes = bytes;
    return queued(stream);
}
static int si_fill(cuda_pointer memory, unsigned char value, size_t bytes, cuda_stream stream)
{
    STANDIN_CHECK(value == 0 && block_of((void *)(uintptr_t)memory, bytes, false), "a fill of what is no device memory");
    stream_op *op = queue(DO_FILL, stream);
    op->to = (char *)(uintptr_t)memory, op->bytes = bytes;
    return queued(stream);
}
static int si_stream_new(cuda_stream *stream, unsigned flags)
{
    STANDIN_CHECK(n_streams < MOST_STREAMS && flags == CUDA_STREAM_NON_BLOCKING, "more than %d streams, or one that waits for others", MOST_STREAMS);
    return *stream = &streams[n_streams++], 0;
}
static int si_stream_free(cuda_stream stream)
{
    STANDIN_CHECK(is_stream(stream) && (standin.dead || stream->waiting.n == 0), "a stream is freed that is none, or has work");
    free(stream->waiting.at);
    return stream->waiting = (op_list){0}, 0;
}
static int si_stream_wait(cuda_stream stream)
{
    STANDIN_CHECK(is_stream(stream) && !capturing, "a wait while a stream is captured");
    standin.stream_waits++;
    return run_until(stream, INT64_MAX), standin.dead;
}
static int si_stream_wait_event(cuda_stream stream, cuda_event event, unsigned flags)
{
    STANDIN_CHECK(event->recorded && flags == 0 && !capturing, "a stream waits for an event that was not recorded");
    if (event->stream == stream)
        return 0;
    return queue(DO_WAIT, stream)->event = *event, queued(stream);
}
static int si_event_new(cuda_event *event, unsigned flags) { return (void)flags, *event = calloc(1, sizeof **event), 0; }
static int si_event_free(cuda_event event) { return free(event), 0; }
static int si_event_record(cuda_event event, cuda_stream stream)
{
    STANDIN_CHECK(is_stream(stream) && !capturing, "an event while a stream is captured");
    event->recorded = true;
    event->stream = stream;
    queue(DO_EVENT, stream)->timed = event;
    queued(stream);
    event->ticket = ++next_ticket;
    return standin.dead;
}
static int si_event_record_in_graph(cuda_event event, cuda_stream stream, unsigned flags)
{
    STANDIN_CHECK(stream == streams && capturing && flags == CUDA_EVENT_EXTERNAL, "an event of a graph outside of one");
    event->stream = stream;
    event->ticket = INT64_MAX;               /* with the graph that it is in */
    return queue(DO_EVENT, stream)->timed = event, event->recorded = true, 0;
}
static int si_event_elapsed(float *ms, cuda_event begin, cuda_event end)
{
    STANDIN_CHECK(begin->recorded && end->recorded, "the time between events that were not recorded");
    *ms = (float)((double)(end->time.tv_sec - begin->time.tv_sec) * 1e3 + (double)(end->time.tv_nsec - begin->time.tv_nsec) * 1e-6);
    return 0;
}
static int si_event_wait(cuda_event event)
{
    STANDIN_CHECK(event->recorded, "a wait for an event that was not recorded");
    const op_list *waiting = &event->stream->waiting;
    standin.early_waits += waiting->n > 0 && waiting->at[waiting->n - 1].ticket > event->ticket;
    standin.blocking_waits += run_until(event->stream, event->ticket);
    return standin.dead;
}
static int si_capture_begin(cuda_stream stream, int mode) { return (void)mode, capturing = true, captured = (op_list){0}, standin.captures++, stream == streams ? 0 : 1; }
static int si_capture_end(cuda_stream stream, cuda_graph *graph)
{
    capturing = false;
    *graph = calloc(1, sizeof **graph);
    (*graph)->ops = captured;
    return stream == streams ? 0 : 1;
}
static int si_graph_instantiate(cuda_graph_exec *exec, cuda_graph graph, unsigned long long flags)
{
    *exec = calloc(1, sizeof **exec);
    (*exec)->ops = graph->ops;
    graph->ops = (op_list){0};
    return flags ? 1 : 0;
}
static int si_graph_launch(cuda_graph_exec exec, cuda_stream stream) { return queue(DO_GRAPH, stream)->graph = exec, standin.graph_launches++, stream == streams ? standin.dead : 1; }
static int si_graph_free(cuda_graph graph) { return free(graph), 0; }
static int si_graph_exec_free(cuda_graph_exec exec)
{
    STANDIN_CHECK(standin.dead || is_idle(), "a graph is freed while a stream has work");
    for (int i = 0; i < exec->ops.n; i++)
        free(exec->ops.at[i].args);
    free(exec->ops.at);
    free(exec);
    return 0;
}

static int si_module_load(cuda_module *module, const void *image)
{
    size_t bytes;
    memcpy(&bytes, image, sizeof bytes);
    cuda_module m = *module = calloc(1, sizeof *m);
    if (bytes == 0)
        return 0;
    emulator();
    m->handle = open_image(image, &m->fd, RTLD_LOCAL);
    return 0;
}
static int si_module_free(cuda_module module)
{
    if (module->handle)
        dlclose(module->handle), close(module->fd);
    return free(module), 0;
}
static int si_module_function(cuda_function *function, cuda_module module, const char *name)
{
    char entry[80];
    if (!module->handle)
        return *function = &module->function, 0;
    snprintf(entry, sizeof entry, "%s_entry", name);
    void *at = dlsym(module->handle, entry), *emulate = dlsym(emulator(), "rax_emulate");
    memcpy(&module->function.entry, &at, sizeof at);
    memcpy(&module->function.emulate, &emulate, sizeof emulate);
    return *function = &module->function, at && emulate ? 0 : 500;
}
static int si_function_set(cuda_function function, int attribute, int value)
{
    STANDIN_CHECK(attribute == CUDA_FUNCTION_DYNAMIC_SHARED && value <= SHARED_OPTIN, "a block with %d bytes of shared memory", value);
    return function->shared_bytes = value, 0;
}
static int si_launch(cuda_function function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, cuda_stream stream, void **params, void **extra)
{
    STANDIN_CHECK(stream == streams && !params && extra[0] == CUDA_LAUNCH_POINTER && extra[2] == CUDA_LAUNCH_SIZE && extra[4] == CUDA_LAUNCH_END, "a launch without its parameters");
    STANDIN_CHECK(gx && gy && gz && bx && bx <= 1024 && by == 1 && bz == 1 && gy <= 65535 && gz <= 65535, "a launch of %u x %u x %u blocks of %u", gx, gy, gz, bx);
    STANDIN_CHECK(shared <= 48 << 10 || (int)shared <= function->shared_bytes, "%u bytes of shared memory that were not asked for", shared);
    size_t size = *(const size_t *)extra[3];
    STANDIN_CHECK(size <= (standin.nvrtc_version >= 121 ? 32764 : 4096), "a launch with %zu bytes of parameters", size);
    stream_op *op = queue(DO_LAUNCH, stream);
    op->function = function, op->threads = bx, op->shared_bytes = shared;
    op->grid[0] = gx, op->grid[1] = gy, op->grid[2] = gz;
    op->args = malloc(size + 8);
    memcpy(op->args, extra[1], size);
    for (size_t i = 0; i < size / 8; i++)          /* what looks like an address of this process is one of device memory */
        STANDIN_CHECK(op->args[i] < (int64_t)1 << 40 || block_of((void *)(intptr_t)op->args[i], 0, false), "parameter %zu of a launch points outside of memory", i);
    return 0;
}

/* -- cuBLASLt ------------------------------------------------------------------------------------------------------------------------ */

static int si_blas_version(void) { return 130000; }
static int si_blas_new(cuda_blas *blas) { return *blas = (cuda_blas)&standin, 0; }
static int si_blas_free(cuda_blas blas) { return blas ? 0 : 1; }
static int si_product_new(cuda_product_desc *desc, int compute, int scale)
{
    STANDIN_CHECK(((compute == CUDA_COMPUTE_F32 || compute == CUDA_COMPUTE_TF32) && scale == CUDA_R_F32) || (compute == CUDA_COMPUTE_F64 && scale == CUDA_R_F64), "a product in type %d, scaled in %d", compute, scale);
    *desc = calloc(1, sizeof **desc);
    (*desc)->compute = compute, (*desc)->epilogue = CUDA_EPILOGUE_NONE;
    return 0;
}
static int si_product_free(cuda_product_desc desc) { return free(desc), 0; }
static int si_product_set(cuda_product_desc desc, int attribute, const void *value, size_t bytes)
{
    const struct { int attribute; void *to; size_t bytes; } known[] = {
        { CUDA_PRODUCT_TRANSPOSE_A, &desc->transpose_a, 4 }, { CUDA_PRODUCT_TRANSPOSE_B, &desc->transpose_b, 4 }, { CUDA_PRODUCT_EPILOGUE, &desc->epilogue, 4 },
        { CUDA_PRODUCT_BIAS, &desc->bias, 8 }, { CUDA_PRODUCT_AUX, &desc->aux, 8 }, { CUDA_PRODUCT_AUX_LEADING, &desc->aux_leading, 8 } };
    void *to = NULL;
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (known[i].attribute == attribute && known[i].bytes == bytes)
            to = known[i].to;
    STANDIN_CHECK(to, "attribute %d of a product in %zu bytes", attribute, bytes);
    return memcpy(to, value, bytes), 0;
}
static int si_layout_new(cuda_layout *layout, int type, uint64_t rows, uint64_t columns, int64_t leading)
{
    *layout = calloc(1, sizeof **layout);
    **layout = (struct cuda_layout_opaque){ .type = type, .rows = rows, .columns = columns, .leading = leading, .batch = 1 };
    return 0;
}
static int si_layout_free(cuda_layout layout) { return free(layout), 0; }
static int si_layout_set(cuda_layout layout, int attribute, const void *value, size_t bytes)
{
    STANDIN_CHECK((attribute == CUDA_LAYOUT_BATCH && bytes == 4) || (attribute == CUDA_LAYOUT_BATCH_STRIDE && bytes == 8), "attribute %d of a layout", attribute);
    return memcpy(attribute == CUDA_LAYOUT_BATCH ? (void *)&layout->batch : (void *)&layout->stride, value, bytes), 0;
}
static int si_preference_new(cuda_preference *preference) { return *preference = (cuda_preference)&standin, 0; }
static int si_preference_free(cuda_preference preference) { return preference ? 0 : 1; }
static int si_preference_set(cuda_preference preference, int attribute, const void *value, size_t bytes)
{
    STANDIN_CHECK(preference && value && bytes == (attribute == CUDA_PREFERENCE_WORKSPACE ? 8u : 4u), "preference %d", attribute);
    return 0;
}
static int si_product_algorithms(cuda_blas blas, cuda_product_desc desc, cuda_layout a, cuda_layout b, cuda_layout c, cuda_layout d, cuda_preference preference, int wanted,
                                 cuda_algorithm *found, int *n_found)
{
    STANDIN_CHECK(blas && desc && a && b && c && d && preference && wanted >= 1, "a question for algorithms without all that it needs");
    int epilogue = desc->epilogue, gradient = CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_GELU_GRADIENT;
    STANDIN_CHECK(epilogue == CUDA_EPILOGUE_NONE || epilogue == CUDA_EPILOGUE_SUM_A || epilogue == CUDA_EPILOGUE_SUM_B || epilogue == gradient || epilogue == (gradient | CUDA_EPILOGUE_BIAS_GRADIENT) ||
                  (epilogue & ~(CUDA_EPILOGUE_BIAS | CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_AUX)) == 0, "epilogue %d", epilogue);
    STANDIN_CHECK(!(epilogue & CUDA_EPILOGUE_ANY_BIAS) || desc->bias, "an epilogue whose vector is aligned somehow");
    STANDIN_CHECK(!(epilogue & CUDA_EPILOGUE_AUX) || (desc->aux && desc->aux_leading % 8 == 0 && desc->aux_leading >= (int64_t)d->rows && d->batch == 1), "an auxiliary matrix of %lld",
                  (long long)desc->aux_leading);
    standin.questions++;
    standin.asked_epilogues |= epilogue;
    if (epilogue & standin.refused_epilogue)
        return *n_found = 0, 15;
    *n_found = MIN(wanted, 3);
    for (int i = 0; i < *n_found; i++)
        found[i] = (cuda_algorithm){ .algorithm.data = { 4711 + (uint64_t)i }, .workspace_bytes = 1000 };
    return 0;
}
static int si_product(cuda_blas blas, cuda_product_desc desc, const void *alpha, const void *a, cuda_layout a_layout, const void *b, cuda_layout b_layout, const void *beta,
                      const void *c, cuda_layout c_layout, void *d, cuda_layout d_layout, const cuda_algorithm_bytes *algorithm, void *workspace, size_t workspace_bytes, cuda_stream stream)
{
    STANDIN_CHECK(blas && stream == streams && algorithm->data[0] - 4711 < 3, "a product that is none");
    STANDIN_CHECK(block_of(workspace, workspace_bytes, false), "the workspace of a product lies outside of memory");
    check_matrix(a, a_layout, "the first operand");
    check_matrix(b, b_layout, "the second operand");
    check_matrix(c, c_layout, "what is added to a product");
    check_matrix(d, d_layout, "the result");
    STANDIN_CHECK(c_layout->type == d_layout->type && c_layout->rows == d_layout->rows && c_layout->columns == d_layout->columns && c_layout->batch == d_layout->batch,
                  "what is added to a product is another matrix than its result");
    STANDIN_CHECK(c == d ? c_layout == d_layout : block_of(c, 0, false) != block_of(d, 0, false) || lie_apart(c, c_layout, d, d_layout),
                  "what is added to a product lies partly in its result");
    int epilogue = desc->epilogue;
    STANDIN_CHECK(!(epilogue & CUDA_EPILOGUE_ANY_BIAS) || block_of(desc->bias, (epilogue & CUDA_EPILOGUE_SUM_B ? d_layout->columns : d_layout->rows) * type_bytes(d_layout->type), false),
                  "the vector of a product lies outside of memory");
    STANDIN_CHECK(!(epilogue & (CUDA_EPILOGUE_SUM_A | CUDA_EPILOGUE_SUM_B)) || (d_layout->type == CUDA_R_F32 && d_layout->batch == 1), "sums of the operands of several products, or in bf16");
    STANDIN_CHECK(!(epilogue & CUDA_EPILOGUE_AUX) || ((uintptr_t)desc->aux % 16 == 0 &&
                  block_of(desc->aux, ((d_layout->columns - 1) * (uint64_t)desc->aux_leading + d_layout->rows) * type_bytes(d_layout->type), false)), "the auxiliary matrix of a product");
    standin.epilogues |= epilogue;
    stream_op *op = queue(DO_PRODUCT, stream);
    op->algorithm = (int)algorithm->data[0];
    bool f64 = desc->compute == CUDA_COMPUTE_F64;
    op->desc = *desc, op->a = *a_layout, op->b = *b_layout, op->c = *c_layout, op->d = *d_layout, op->pa = a, op->pb = b, op->pc = c, op->to = d;
    op->alpha = f64 ? *(const double *)alpha : *(const float *)alpha;
    op->beta = f64 ? *(const double *)beta : *(const float *)beta;
    return 0;
}

static const cuda_library standin_library = {
#define LIBRARY(name, files, source)
#define FUNCTION(name, symbol, parameters) .name = si_##name,
#include "backend_cuda/driver.def"
#undef LIBRARY
#undef FUNCTION
};

/* RAX_TEST_CUDA=device: the tests run on the machine's own GPU and libraries. What only the stand-in can count or provoke is left out. */
static bool standin_is_device(void)
{
    const char *wanted = getenv("RAX_TEST_CUDA");
    return wanted && !strcmp(wanted, "device");
}

static void standin_use(void)
{
    if (!standin_is_device())
        cuda_library_use(&standin_library);
}

MAYBE_UNUSED static void standin_begin_with(const ir_backend_settings *settings)
{
    standin_use();
    if (!cuda_backend.configure(settings))
        fail_msg("%s", base_error());
}

MAYBE_UNUSED static void standin_begin(const char *cache_dir) { standin_begin_with(&(ir_backend_settings){ .cache_dir = cache_dir }); }

/* Everything was given back. */
MAYBE_UNUSED static void standin_end(void)
{
    cuda_backend.shutdown();
    cuda_library_use(NULL);
    if (standin.blocks)
        fail_msg("stand-in: %zu bytes were not freed", standin.blocks->bytes);
    n_streams = 0;
}

#endif
