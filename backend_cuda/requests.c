/* Code that kernels ask for. A kernel is a text: equal texts are one function, found in the process, on disk, or made by NVRTC; each is a module of
 * its own, and those that are missing are compiled side by side. The name of a function is a digest of its text. */
#include "backend_cuda/backend.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* -- device/ --------------------------------------------------------------------------------------------------------------- */

/* The files as they are, each ended by a zero byte. */
#define DEVICE_TEXT(name)                                                                                          \
    __asm__(".pushsection .rodata\n.global cuda_device_" #name "\ncuda_device_" #name ":\n.incbin \"backend_cuda/device/" #name ".cu\"\n.byte 0\n.popsection\n"); \
    extern const char cuda_device_##name[];
DEVICE_TEXT(common)
DEVICE_TEXT(attention)
DEVICE_TEXT(scatter)

const char *cuda_device_text(const char *name)
{
    static const struct { const char *name, *text; } files[] = { { "common", cuda_device_common }, { "attention", cuda_device_attention }, { "scatter", cuda_device_scatter } };
    for (size_t i = 0; i < COUNT_OF(files); i++)
        if (!strcmp(files[i].name, name))
            return files[i].text;
    CHECK(false, "expected device/%s.cu", name);
    return NULL;
}

/* -- requests ------------------------------------------------------------------------------------------------------------------ */

int cuda_request_add(cuda_compiler *c, const char *defines, const char *text, const char *device, const char *kernel)
{
    base_text whole = {0};
    base_text_add(&whole, "%s\n%s\n%s", defines, device ? device : "", text);
    base_key key = base_cache_key("cuda kernel", whole.at, whole.len);
    base_text_free(&whole);
    char name[48];
    snprintf(name, sizeof name, "k%016llx%016llx", (unsigned long long)key.high, (unsigned long long)key.low);
    for (int i = 0; i < c->n_requests; i++)
        if (!strcmp(c->requests[i].name, name))
            return i;
    c->requests = base_arena_grown(c->arena, c->requests, c->n_requests, &c->cap_requests, sizeof *c->requests);
    base_text named = {0};
    if (device)
        base_text_add(&named, "%s%s\n", defines, cuda_device_text(device));
    for (const char *at = text, *next; *at; at = next + (*next == '@')) {
        next = at + strcspn(at, "@");
        base_text_add(&named, "%.*s%s", (int)(next - at), at, *next ? name : "");
    }
    c->requests[c->n_requests] = (cuda_request){ .name = base_arena_text(c->arena, "%s", name), .kernel = kernel, .text = base_arena_text(c->arena, "%s", named.at) };
    base_text_free(&named);
    return c->n_requests++;
}

char *cuda_request_source(const cuda_request *r)
{
    base_text text = {0};
    base_text_add(&text, "%s\n/* %s */\n%s", cuda_device_text("common"), r->kernel, r->text);
    return base_text_take(&text);
}

/* -- compiling ------------------------------------------------------------------------------------------------------------------- */

/* The compiler's message in one line, and where the source is. */
static bool refuse_source(const char *name, const char *source, const char *log)
{
    const char *folder = getenv("TMPDIR");
    base_text path = {0};
    base_text_add(&path, "%s/%s.cu", folder && *folder ? folder : "/tmp", name);
    FILE *file = fopen(path.at, "w");
    if (file) {
        fputs(source, file);
        fclose(file);
    }
    const char *error = strstr(log, "error");
    base_fail(BASE_FAILURE, "NVRTC refuses %s: %.*s; its source is in %s", name, error ? (int)strcspn(error, "\n") : (int)strcspn(log, "\n"), error ? error : log, path.at);
    base_text_free(&path);
    return false;
}

bool cuda_compile_source(const cuda_library *library, const char *source, const char *name, int architecture, bool ptx, base_bytes *code)
{
    char architecture_option[32];
    snprintf(architecture_option, sizeof architecture_option, "-arch=%s_%d", ptx ? "compute" : "sm", architecture);
    const char *options[] = { architecture_option, "-default-device", "-lineinfo" };
    cuda_source program;
    size_t size = 0;
    *code = (base_bytes){0};
    if (library->source_new(&program, source, name, 0, NULL, NULL) != 0)
        return base_fail(BASE_FAILURE, "NVRTC takes no source");
    bool compiled = library->source_compile(program, (int)COUNT_OF(options), options) == 0;
    if (!compiled) {
        library->source_log_size(program, &size);
        char *log = base_alloc(size + 1);
        library->source_log(program, log);
        refuse_source(name, source, log);
        base_free(log);
    } else {
        (ptx ? library->source_ptx_size : library->source_cubin_size)(program, &code->size);
        code->at = base_alloc(code->size + 1);
        (ptx ? library->source_ptx : library->source_cubin)(program, code->at);
    }
    library->source_free(&program);
    return compiled;
}

/* -- the functions of the process -------------------------------------------------------------------------------------------------- */

typedef struct { char name[40]; cuda_module module; cuda_function function; } known;
struct cuda_store {
    cuda_device *device;
    base_cache *cache;
    char compiler[128];
    int n, cap;
    known *known;
};

cuda_store *cuda_store_new(cuda_device *device, const char *cache_dir)
{
    cuda_store *s = base_alloc(sizeof *s);
    const cuda_machine *m = cuda_device_machine(device);
    int major = 0, minor = 0;
    cuda_device_library(device)->compiler_version(&major, &minor);
    s->device = device;
    snprintf(s->compiler, sizeof s->compiler, "nvrtc %d.%d %s_%d", major, minor, m->target_is_ptx ? "compute" : "sm", m->target);
    if (!cache_dir || *cache_dir)
        s->cache = base_cache_open(cache_dir, 0);
    return s;
}

void cuda_store_free(cuda_store *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n; i++)
        cuda_device_library(s->device)->module_free(s->known[i].module);
    base_cache_close(s->cache);
    base_free(s->known);
    base_free(s);
}

const char *cuda_store_folder(const cuda_store *s) { return base_cache_folder(s->cache); }

static const known *find(const cuda_store *s, const char *name)
{
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->known[i].name, name))
            return &s->known[i];
    return NULL;
}

static bool add_known(cuda_store *s, const cuda_request *r, const base_bytes *cubin)
{
    const cuda_library *library = cuda_device_library(s->device);
    known fresh = {0};
    snprintf(fresh.name, sizeof fresh.name, "%s", r->name);
    if (!cuda_ok(s->device, library->module_load(&fresh.module, cubin->at), r->kernel) ||
        !cuda_ok(s->device, library->module_function(&fresh.function, fresh.module, r->name), r->kernel))
        return false;
    s->known = base_grown(s->known, s->n, &s->cap, sizeof(known));
    s->known[s->n++] = fresh;
    return true;
}

/* What several threads compile: each takes the next. Errors are the thread's own, so that the first is kept here. */
typedef struct { const cuda_request *request; base_bytes cubin; char *source; bool compiled; char *error; } work_item;
typedef struct { cuda_store *store; int n, next; work_item *items; pthread_mutex_t lock; } work;

static void *compile_some(void *context)
{
    work *w = context;
    const cuda_machine *m = cuda_device_machine(w->store->device);
    for (;;) {
        pthread_mutex_lock(&w->lock);
        int i = w->next++;
        pthread_mutex_unlock(&w->lock);
        if (i >= w->n)
            return NULL;
        work_item *item = &w->items[i];
        item->compiled = cuda_compile_source(cuda_device_library(w->store->device), item->source, item->request->name, m->target, m->target_is_ptx, &item->cubin);
        if (!item->compiled)
            item->error = base_strdup(base_error());
    }
}

static void compile_all(work *w)
{
    enum { MOST_THREADS = 8 };
    pthread_t threads[MOST_THREADS];
    int n = 0, wanted = (int)MIN(base_usable_cpus(), MIN(w->n, MOST_THREADS));
    while (n + 1 < wanted && pthread_create(&threads[n], NULL, compile_some, w) == 0)
        n++;
    compile_some(w);
    while (n > 0)
        pthread_join(threads[--n], NULL);
}

static bool dump(const char *folder, const cuda_request *r, const char *source)
{
    base_text path = {0};
    base_text_add(&path, "%s/%s.cu", folder, r->name);
    FILE *file = fopen(path.at, "w");
    bool written = file && fputs(source, file) >= 0;
    if ((file && fclose(file) != 0) || !written)
        written = base_fail(BASE_FAILURE, "%s: %s", path.at, strerror(errno));
    base_text_free(&path);
    return written;
}

bool cuda_store_fetch(cuda_store *s, cuda_compiler *c, const char *dump_dir, cuda_fetched *fetched)
{
    work w = { .store = s, .items = base_alloc(sizeof(work_item) * (size_t)MAX(c->n_requests, 1)) };
    pthread_mutex_init(&w.lock, NULL);
    bool done = true;
    for (int i = 0; done && i < c->n_requests; i++) {
        char *source = cuda_request_source(&c->requests[i]);
        base_bytes cubin;
        if (dump_dir)
            done = dump(dump_dir, &c->requests[i], source);
        if (done && !find(s, c->requests[i].name)) {
            if (base_cache_get(s->cache, base_cache_key(s->compiler, source, strlen(source)), &cubin)) {
                done = add_known(s, &c->requests[i], &cubin);
                base_bytes_free(&cubin);
            } else {
                w.items[w.n++] = (work_item){ .request = &c->requests[i], .source = source };
                source = NULL;
            }
        }
        base_free(source);
    }
    if (done)
        compile_all(&w);
    for (int i = 0; i < w.n; i++) {
        work_item *item = &w.items[i];
        if (done && !item->compiled)
            done = base_fail(BASE_FAILURE, "%s", item->error);
        if (item->compiled)
            base_cache_put(s->cache, base_cache_key(s->compiler, item->source, strlen(item->source)), item->cubin.at, item->cubin.size);
        done = done && add_known(s, item->request, &item->cubin);
        fetched->bytes += item->cubin.size;
        base_bytes_free(&item->cubin);
        base_free(item->source);
        base_free(item->error);
    }
    fetched->functions = c->n_requests;
    fetched->compiled = w.n;
    fetched->function = ARENA_NEW(c->arena, cuda_function, c->n_requests + 1);
    for (int i = 0; done && i < c->n_requests; i++)
        fetched->function[i] = find(s, c->requests[i].name)->function;
    pthread_mutex_destroy(&w.lock);
    base_free(w.items);
    return done;
}
