/* Handles. A handle is a body and the generation that it is good for: what frees a tensor, or takes over its memory,
 * counts the generation up, and every copy of the old handle is out of date from then on.
 *
 * The elements of arrays are memory of their own, given back at once; bodies are kept (pool.c).
 *
 * With a backend that has memory of its own, elements lie there. Who looks at them is lent a copy in host memory, until the next call, which
 * takes back what may have been written. */
#include <string.h>

#include "ir/shape_rules.h"
#include "tracer/tracer.h"

_Static_assert((int)RAX_F32 == (int)IR_F32 && (int)RAX_F64 == (int)IR_F64 && (int)RAX_BF16 == (int)IR_BF16 &&
               (int)RAX_I32 == (int)IR_I32 && (int)RAX_BOOL == (int)IR_BOOL && (int)RAX_MAX_RANK == (int)IR_MAX_RANK,
               "rax.h and ir.h have the same dtypes");

/* -- bodies ----------------------------------------------------------------------------------------------------------- */

static trace_pool bodies = { .lock = PTHREAD_MUTEX_INITIALIZER, .bytes = sizeof(rax_tensor_body) };
static rax_tensor_body *lent;             /* arrays with a copy in host memory */
static int64_t array_count;

int64_t trace_array_count(void) { return array_count; }

rax_tensor_body *trace_body_new(trace_tensor_kind kind)
{
    rax_tensor_body *body = trace_pool_take(&bodies);
    uint32_t generation = body->generation;
    *body = (rax_tensor_body){ .kind = kind, .generation = generation };
    return body;
}

void trace_body_lose(rax_tensor_body *body, trace_loss why, rax_place place)
{
    body->generation++;
    body->lost = why;
    body->lost_at = place;
}

static void end_loan(rax_tensor_body *body)
{
    for (rax_tensor_body **at = &lent; *at; at = &(*at)->next_lent)
        if (*at == body) {
            *at = body->next_lent;
            break;
        }
    base_free(body->host);
    body->host = NULL;
}

static void free_elements(rax_tensor_body *body)
{
    const ir_backend *memory = trace_memory();
    array_count--;
    if (body->host)
        end_loan(body);
    if (memory)
        memory->memory_free(body->data);
    else
        base_free(body->data);
}

void trace_body_free(rax_tensor_body *body)
{
    if (body->kind == TENSOR_ARRAY)
        free_elements(body);
    body->generation = trace_tensor_generation(body);      /* what its tree has added stays */
    body->tree = NULL;
    body->kind = TENSOR_NONE;
    body->data = NULL;
    body->node = NULL;
    trace_pool_give(&bodies, body);
}

void trace_bodies_free(void) { trace_pool_free(&bodies); }

rax_tensor_body *trace_body(rax_tensor tensor, base_text *why)
{
    rax_tensor_body *body = tensor.at;
    if (!body) {
        base_text_add(why, "is no tensor (RAX_NO_TENSOR)");
        return NULL;
    }
    if (tensor.generation == trace_tensor_generation(body) && body->kind != TENSOR_NONE)
        return body;
    bool by_tree = body->tree && body->tree->donations;
    trace_add_loss(why, by_tree ? LOST_DONATED : body->lost, by_tree ? body->tree->lost_at : body->lost_at, "was a value of");
    return NULL;
}

/* -- types ------------------------------------------------------------------------------------------------------------ */

bool trace_type_from(rax_dtype dtype, rax_shape shape, ir_type *type, base_text *why)
{
    *type = (ir_type){ .dtype = (ir_dtype)dtype, .rank = shape.rank };
    if ((unsigned)dtype > RAX_BOOL) {
        base_text_add(why, "there is no dtype %d", (int)dtype);
        return false;
    }
    if (shape.rank >= 0 && shape.rank <= IR_MAX_RANK)
        memcpy(type->dim, shape.dim, sizeof *shape.dim * (size_t)shape.rank);
    return ir_type_is_sound(type, why);
}

void trace_type_print(base_text *text, const ir_type *type)
{
    ir_type plain = ir_type_of(type->dtype, type->rank, type->dim);
    ir_type_print(text, &plain);
}

const char *rax_dtype_name(rax_dtype dtype) { return ir_dtype_name((ir_dtype)dtype); }
size_t rax_dtype_bytes(rax_dtype dtype) { return (unsigned)dtype <= RAX_BOOL ? (size_t)ir_dtype_bytes((ir_dtype)dtype) : 0; }

/* -- arrays ----------------------------------------------------------------------------------------------------------- */

/* Fails for the thread with what why has gathered, and frees it. */
static void fail_because(const char *function, base_text *why)
{
    rax_fail(RAX_MISTAKE, "%s: %s", function, why->at);
    base_text_free(why);
}

static void fail_of_tensor(const char *function, base_text *why)
{
    rax_fail(RAX_MISTAKE, "%s: the tensor %s", function, why->at);
    base_text_free(why);
}

/* The largest arrays that there are, by type: for who has to make something smaller. */
static void add_largest(base_text *text)
{
    enum { TOLD = 3 };
    int64_t below = INT64_MAX;
    for (int n = 0; n < TOLD; n++) {
        const ir_type *largest = NULL;
        int64_t most = 0;
        int count = 0;
        const rax_tensor_body *body;
        for (int i = 0; (body = trace_pool_at(&bodies, i)) != NULL; i++) {
            int64_t bytes = body->kind == TENSOR_ARRAY ? ir_type_bytes(body->type) : 0;
            if (bytes >= below || bytes < most || bytes == 0)
                continue;
            if (bytes > most)
                most = bytes, largest = body->type, count = 0;
            count += body->type == largest;
        }
        if (!largest)
            return;
        base_text_add(text, "%s%d of ", n ? "; " : "; the largest tensors are ", count);
        trace_type_print(text, largest);
        base_text_add(text, ", %.1f MB%s", (double)most / 1e6, count > 1 ? " each" : "");
        below = most;
    }
}

static void fail_for_memory(const ir_type *type, bool of_device)
{
    base_text text = {0};
    base_memory now = base_memory_now();
    if (of_device) {
        base_text_add(&text, "%s", rax_error());
    } else {
        base_text_add(&text, "out of memory: ");
        trace_type_print(&text, type);
        base_text_add(&text, " needs %.1f MB; %.1f MB of %.1f MB are available", (double)ir_type_bytes(type) / 1e6,
                      (double)now.available_bytes / 1e6, (double)now.total_bytes / 1e6);
    }
    if (!of_device || base_error_kind_of() == BASE_NO_MEMORY)          /* a device has other errors, too */
        add_largest(&text);
    rax_fail(RAX_FAILURE, "%s", text.at);
    base_text_free(&text);
}

rax_tensor_body *trace_array_new(const ir_type *type)
{
    const ir_backend *memory = trace_memory();
    void *data = memory ? memory->memory_new((size_t)ir_type_bytes(type)) : base_try_alloc((size_t)ir_type_bytes(type));
    if (!data) {
        fail_for_memory(type, memory != NULL);
        return NULL;
    }
    rax_tensor_body *body = trace_body_new(TENSOR_ARRAY);
    body->type = type;
    body->data = data;
    array_count++;
    return body;
}

/* -- elements in host memory ---------------------------------------------------------------------------------------------- */

typedef enum { READS, WRITES, OVERWRITES } elements_use;

/* The elements where the host can look at them: NULL and an error where they cannot be had. */
static void *host_elements(rax_tensor_body *body, elements_use use)
{
    const ir_backend *memory = trace_memory();
    size_t bytes = (size_t)ir_type_bytes(body->type);
    if (!memory)
        return body->data;
    if (!body->host) {
        body->host = base_try_alloc(bytes);
        if (!body->host) {
            rax_fail(RAX_FAILURE, "out of memory: the copy of a tensor needs %zu bytes", bytes);
            return NULL;
        }
        body->host_written = false;
        body->next_lent = lent;
        lent = body;
        if (use != OVERWRITES && !memory->download(body->host, body->data, bytes)) {
            end_loan(body);
            return NULL;
        }
    }
    body->host_written |= use != READS;
    return body->host;
}

bool trace_return_lent(void)
{
    while (lent) {
        rax_tensor_body *body = lent;
        if (body->host_written && !trace_memory()->upload(body->data, body->host, (size_t)ir_type_bytes(body->type)))
            return false;
        end_loan(body);
    }
    return true;
}

rax_tensor rax_tensor_new(rax_dtype dtype, rax_shape shape)
{
    ir_type type;
    base_text why = {0};
    if (!trace_type_from(dtype, shape, &type, &why)) {
        fail_because("rax_tensor_new", &why);
        return RAX_NO_TENSOR;
    }
    rax_tensor_body *body = trace_array_new(trace_intern_type(&type));
    return body ? trace_handle(body) : RAX_NO_TENSOR;
}

/* A tensor of a device that fails has none: that shows at the next call. */
static void put_elements(rax_tensor_body *body, const void *elements)
{
    size_t bytes = (size_t)ir_type_bytes(body->type);
    if (trace_memory())
        trace_memory()->upload(body->data, elements, bytes);
    else
        memcpy(body->data, elements, bytes);
}

rax_tensor rax_tensor_from(rax_dtype dtype, rax_shape shape, const void *elements)
{
    rax_tensor tensor = rax_tensor_new(dtype, shape);
    if (rax_is_tensor(tensor) && elements)
        put_elements(tensor.at, elements);
    return tensor;
}

void rax_tensor_free(rax_tensor tensor)
{
    base_text why = {0};
    if (!rax_is_tensor(tensor))
        return;
    rax_tensor_body *body = trace_body(tensor, &why);
    if (!body) {
        fail_of_tensor("rax_tensor_free", &why);
    } else if (body->tree) {
        rax_fail(RAX_MISTAKE, "rax_tensor_free: the tensor belongs to a tree, which frees it");
    } else if (body->kind == TENSOR_ARRAY) {
        trace_body_lose(body, LOST_FREED, (rax_place){0});
        trace_body_free(body);
    }
}

/* The body of an array; NULL and an error where the handle is none. */
static rax_tensor_body *array_of(const char *function, rax_tensor tensor)
{
    base_text why = {0};
    rax_tensor_body *body = trace_body(tensor, &why);
    if (body && body->kind == TENSOR_VALUE) {
        base_text_add(&why, "is a value of the step being traced, which has no elements yet");
        body = NULL;
    }
    if (!body)
        fail_of_tensor(function, &why);
    return body;
}

void *rax_data(rax_tensor tensor)
{
    rax_tensor_body *body = array_of("rax_data", tensor);
    return body ? host_elements(body, WRITES) : NULL;
}

const void *rax_read(rax_tensor tensor)
{
    rax_tensor_body *body = array_of("rax_read", tensor);
    return body ? host_elements(body, READS) : NULL;
}

void *rax_overwrite(rax_tensor tensor)
{
    rax_tensor_body *body = array_of("rax_overwrite", tensor);
    return body ? host_elements(body, OVERWRITES) : NULL;
}

double rax_item(rax_tensor tensor, int64_t index)
{
    rax_tensor_body *body = array_of("rax_item", tensor);
    if (!body)
        return 0;
    if (index < 0 || index >= ir_type_count(body->type)) {
        rax_fail(RAX_MISTAKE, "rax_item: index %lld is not among %lld elements", (long long)index,
                 (long long)ir_type_count(body->type));
        return 0;
    }
    const void *data = host_elements(body, READS);
    if (!data)
        return 0;
    return ir_element(body->type->dtype, data, index);
}

/* -- what is known of any tensor ---------------------------------------------------------------------------------------- */

/* The type of an array or a value. A poisoned value, whose error is kept already, is a scalar in silence. */
static const ir_type *type_of(const char *function, rax_tensor tensor)
{
    static const ir_type nothing = { .dtype = IR_F32 };
    base_text why = {0};
    rax_tensor_body *body = trace_body(tensor, &why);
    if (!body && trace_current)
        trace_error((rax_place){0}, function, "the tensor %s", why.at);
    else if (!body)
        rax_fail(RAX_MISTAKE, "%s: the tensor %s", function, why.at);
    base_text_free(&why);
    return body && body->type ? body->type : &nothing;
}

rax_dtype rax_dtype_of(rax_tensor tensor) { return (rax_dtype)type_of("rax_dtype_of", tensor)->dtype; }
int rax_rank(rax_tensor tensor) { return type_of("rax_rank", tensor)->rank; }
int64_t rax_count(rax_tensor tensor) { return ir_type_count(type_of("rax_count", tensor)); }

rax_shape rax_shape_of(rax_tensor tensor)
{
    const ir_type *type = type_of("rax_shape_of", tensor);
    rax_shape shape = { .rank = type->rank };
    memcpy(shape.dim, type->dim, sizeof *type->dim * (size_t)type->rank);
    return shape;
}

int64_t rax_dim(rax_tensor tensor, int axis)
{
    const ir_type *type = type_of("rax_dim", tensor);
    int wanted = axis < 0 ? axis + type->rank : axis;
    if (wanted >= 0 && wanted < type->rank)
        return type->dim[wanted];
    bool poisoned = tensor.at && tensor.at->kind == TENSOR_VALUE && !tensor.at->type;
    if (!poisoned && trace_current)
        trace_error((rax_place){0}, "rax_dim", "there is no axis %d in rank %d", axis, type->rank);
    else if (!poisoned)
        rax_fail(RAX_MISTAKE, "rax_dim: there is no axis %d in rank %d", axis, type->rank);
    return 1;                                  /* not 0: a step may divide by it on its way to the error */
}
