/* One copy of each name, type and list of types, so that a call compares pointers and not what they point to.
 *
 * Three sets over one table: open addressing, doubled when half full. What is in them stays until rax_shutdown; there
 * are as many as a program has kinds of tensors. Tensors may be made on any thread, hence the lock. */
#include <pthread.h>
#include <string.h>

#include "tracer/tracer.h"

typedef enum { A_NAME, A_TYPE, A_TREE } sort;
typedef struct { uint64_t hash; sort sort; const void *item; } slot;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static base_arena *arena;
static slot *slots;
static size_t n_slots, n_items;

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;            /* FNV-1a */
    return hash;
}

enum { HASH_SEED = 0x1505 };

/* The slot that holds what same() accepts, or a free one where it would go. */
static slot *find(sort what, uint64_t hash, bool (*same)(const void *item, const void *like), const void *like)
{
    for (size_t i = hash & (n_slots - 1);; i = (i + 1) & (n_slots - 1))
        if (!slots[i].item || (slots[i].hash == hash && slots[i].sort == what && same(slots[i].item, like)))
            return &slots[i];
}

static bool same_nothing(const void *item, const void *like) { return item == like; }

static void make_room(void)
{
    if (!arena)
        arena = base_arena_new();
    if (2 * (n_items + 1) <= n_slots)
        return;
    slot *old = slots;
    size_t n_old = n_slots;
    n_slots = n_old ? 2 * n_old : 256;
    slots = base_alloc(sizeof(slot) * n_slots);
    for (size_t i = 0; i < n_old; i++)
        if (old[i].item)
            *find(old[i].sort, old[i].hash, same_nothing, old[i].item) = old[i];
    base_free(old);
}

static const void *put(slot *into, sort what, uint64_t hash, const void *item)
{
    *into = (slot){ hash, what, item };
    n_items++;
    return item;
}

/* -- names ------------------------------------------------------------------------------------------------------------ */

static bool same_name(const void *item, const void *like) { return strcmp(item, like) == 0; }

const char *trace_intern(const char *text)
{
    uint64_t hash = hash_bytes(HASH_SEED, text, strlen(text));
    pthread_mutex_lock(&lock);
    make_room();
    slot *at = find(A_NAME, hash, same_name, text);
    const char *name = at->item ? at->item : put(at, A_NAME, hash, base_arena_text(arena, "%s", text));
    pthread_mutex_unlock(&lock);
    return name;
}

const char *trace_intern_find(const char *text)
{
    uint64_t hash = hash_bytes(HASH_SEED, text, strlen(text));
    pthread_mutex_lock(&lock);
    const char *name = n_slots ? find(A_NAME, hash, same_name, text)->item : NULL;
    pthread_mutex_unlock(&lock);
    return name;
}

/* -- types ------------------------------------------------------------------------------------------------------------ */

static bool same_type(const void *item, const void *like) { return ir_type_equal(item, like); }

const ir_type *trace_intern_type(const ir_type *type)
{
    ir_type plain = ir_type_of(type->dtype, type->rank, type->dim);
    uint64_t hash = hash_bytes(HASH_SEED + 1, &plain.dtype, sizeof plain.dtype);
    hash = hash_bytes(hash, plain.dim, sizeof *plain.dim * (size_t)plain.rank);
    pthread_mutex_lock(&lock);
    make_room();
    slot *at = find(A_TYPE, hash, same_type, &plain);
    const ir_type *kept = at->item;
    if (!kept) {
        ir_type *copy = ARENA_NEW(arena, ir_type, 1);
        *copy = plain;
        kept = put(at, A_TYPE, hash, copy);
    }
    pthread_mutex_unlock(&lock);
    return kept;
}

/* -- types of trees ---------------------------------------------------------------------------------------------------- */

static bool same_tree(const void *item, const void *like)
{
    const trace_tree_type *a = item, *b = like;
    return a->n == b->n && memcmp(a->names, b->names, sizeof *a->names * (size_t)a->n) == 0 &&
           memcmp(a->types, b->types, sizeof *a->types * (size_t)a->n) == 0;
}

const trace_tree_type *trace_intern_tree(int n, const char *const *names, const ir_type *const *types)
{
    const char *no_name = NULL;
    const ir_type *no_type = NULL;
    trace_tree_type like = { n, n ? names : &no_name, n ? types : &no_type };
    size_t bytes = sizeof(void *) * (size_t)n;
    uint64_t hash = hash_bytes(hash_bytes(HASH_SEED + 2, like.names, bytes), like.types, bytes);
    pthread_mutex_lock(&lock);
    make_room();
    slot *at = find(A_TREE, hash, same_tree, &like);
    const trace_tree_type *kept = at->item;
    if (!kept) {
        trace_tree_type *copy = ARENA_NEW(arena, trace_tree_type, 1);
        copy->n = n;
        copy->names = memcpy(base_arena_alloc(arena, bytes), like.names, bytes);
        copy->types = memcpy(base_arena_alloc(arena, bytes), like.types, bytes);
        kept = put(at, A_TREE, hash, copy);
    }
    pthread_mutex_unlock(&lock);
    return kept;
}

void trace_intern_free(void)
{
    base_arena_free(arena);
    base_free(slots);
    arena = NULL;
    slots = NULL;
    n_slots = n_items = 0;
}
