/* Code that kernels ask for, by key: planning collects the keys, and here they become functions in memory.
 *
 * A function is looked for in the process (another program may have had it), then on disk, and generated only then. Functions
 * that are missing are put into a few modules of about equal cost, compiled side by side; a module's object is what the disk keeps, under the
 * names of its functions. Code stays until the backend shuts down. */
#include "backend_cpu/requests.h"

#include <llvm-c/Core.h>
#include <stdlib.h>
#include <string.h>

/* -- asking ------------------------------------------------------------------------------------------------------------ */

int cpu_request_code(cpu_compiler *c, const char *key, double cost, cpu_emit *emit, const void *context)
{
    size_t length = strlen(key);
    for (int i = 0; i < c->n_requests; i++)
        if (c->requests[i].length == length && !memcmp(c->requests[i].key, key, length))
            return i;
    c->requests = base_arena_grown(c->arena, c->requests, c->n_requests, &c->cap_requests, sizeof *c->requests);
    base_key name = cpu_cache_key(c->machine, key, length);
    cpu_request *r = &c->requests[c->n_requests];
    *r = (cpu_request){ .key = base_arena_text(c->arena, "%s", key), .length = length, .cost = cost, .emit = emit, .context = context };
    snprintf(r->name, sizeof r->name, "f%016llx%016llx", (unsigned long long)name.high, (unsigned long long)name.low);
    return c->n_requests++;
}

int cpu_arg(cpu_compiler *c, cpu_plan *plan, int64_t value)
{
    plan->args = base_arena_grown(c->args, plan->args, plan->n_args, &plan->cap_args, sizeof *plan->args);
    plan->args[plan->n_args] = value;
    return plan->n_args++;
}

int cpu_arg_workspace(cpu_compiler *c, cpu_plan *plan, size_t offset)
{
    int at = cpu_arg(c, plan, c->program->n_buffers), place = cpu_arg(c, plan, (int64_t)offset);
    CHECK(plan->n_workspace_args < CPU_MAX_WORKSPACE_ARGS, "expected at most %d places in workspace", CPU_MAX_WORKSPACE_ARGS);
    plan->workspace_args[plan->n_workspace_args++] = place;
    return at;
}

int cpu_arg_view(cpu_compiler *c, cpu_plan *plan, const kl_view *view, ir_dtype dtype)
{
    if (view->buffer == c->program->n_buffers)
        return cpu_arg_workspace(c, plan, (size_t)(view->offset * ir_dtype_bytes(dtype)));
    int at = cpu_arg(c, plan, view->buffer);
    cpu_arg(c, plan, view->offset * ir_dtype_bytes(dtype));
    return at;
}

LLVMTypeRef cpu_task_type(LLVMModuleRef module)
{
    LLVMContextRef llvm = LLVMGetModuleContext(module);
    LLVMTypeRef pointer = LLVMPointerTypeInContext(llvm, 0), i64 = LLVMInt64TypeInContext(llvm);
    return LLVMFunctionType(LLVMVoidTypeInContext(llvm), (LLVMTypeRef[]){ pointer, pointer, i64, pointer }, 4, 0);
}

/* -- the functions of the process ---------------------------------------------------------------------------------------- */

typedef struct { char name[40]; void *address; const cpu_code *code; } function;
struct cpu_store {
    cpu_machine machine;
    base_cache *cache;
    cpu_jit *jit;                             /* made when first needed */
    int n_functions, cap_functions, n_codes, cap_codes;
    function *functions;
    cpu_code **codes;
};

cpu_store *cpu_store_new(const cpu_machine *machine, const char *cache_dir)
{
    cpu_store *s = base_alloc(sizeof *s);
    s->machine = *machine;
    if (!cache_dir || *cache_dir)
        s->cache = base_cache_open(cache_dir, 0);
    return s;
}

void cpu_store_free(cpu_store *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n_codes; i++)
        cpu_code_free(s->codes[i]);
    cpu_jit_free(s->jit);
    base_cache_close(s->cache);
    base_free(s->functions);
    base_free(s->codes);
    base_free(s);
}

const char *cpu_store_folder(const cpu_store *s) { return base_cache_folder(s->cache); }

static const function *find(const cpu_store *s, const char *name)
{
    for (int i = 0; i < s->n_functions; i++)
        if (!strcmp(s->functions[i].name, name))
            return &s->functions[i];
    return NULL;
}

/* -- modules ---------------------------------------------------------------------------------------------------------------- */

/* Functions of one module: indices of requests. */
typedef struct { int n; int *request; double cost; base_key key; char name[24]; base_bytes object; bool cached; } module_plan;

/* A module costs something by itself, and the last one to be done is waited for: a few for each thread. */
enum { MAX_MODULES = 8, LEAST_COST = 600 };

typedef struct { const cpu_compiler *c; const cpu_store *s; module_plan *modules; int *missing; } building;

static bool build(void *context, int i, LLVMModuleRef module)
{
    const building *b = context;
    const module_plan *m = &b->modules[b->missing[i]];
    LLVMSetModuleIdentifier(module, m->name, strlen(m->name));
    for (int j = 0; j < m->n; j++) {
        const cpu_request *r = &b->c->requests[m->request[j]];
        r->emit(r->context, &b->s->machine, module, r->name);
    }
    return true;
}

typedef struct { int request; double cost; } costed;

static int dearest_first(const void *a, const void *b)
{
    const costed *x = a, *y = b;
    return x->cost != y->cost ? (x->cost < y->cost) - (x->cost > y->cost) : x->request - y->request;
}

/* Puts the wanted requests into modules, the dearest first, each into the module that is cheapest so far. */
static int divide_modules(cpu_compiler *c, const costed *wanted, int n, module_plan *modules)
{
    double total = 0;
    for (int i = 0; i < n; i++)
        total += wanted[i].cost;
    int count = (int)MIN(MIN(MAX(total / LEAST_COST, 1), MAX_MODULES), n);
    for (int i = 0; i < count; i++)
        modules[i] = (module_plan){ .request = ARENA_NEW(c->arena, int, n) };
    for (int i = 0; i < n; i++) {
        module_plan *least = &modules[0];
        for (int j = 1; j < count; j++)
            if (modules[j].cost < least->cost)
                least = &modules[j];
        least->request[least->n++] = wanted[i].request;
        least->cost += wanted[i].cost;
    }
    for (int i = 0; i < count; i++) {
        base_text names = {0};
        for (int j = 0; j < modules[i].n; j++)
            base_text_add(&names, "%s\n", c->requests[modules[i].request[j]].name);
        modules[i].key = cpu_cache_key(&c->store->machine, names.at, names.len);
        snprintf(modules[i].name, sizeof modules[i].name, "%s-%02d", c->program->name, i);
        base_text_free(&names);
    }
    return count;
}

static bool compile_missing(cpu_compiler *c, cpu_store *s, module_plan *modules, int n, const char *dump_dir, bool verify)
{
    int *missing = ARENA_NEW(c->arena, int, n), count = 0;
    for (int i = 0; i < n; i++)
        if (!modules[i].cached)
            missing[count++] = i;
    if (!count)
        return true;
    if (!s->jit && !(s->jit = cpu_jit_new(&s->machine)))
        return false;
    cpu_jit_set_verify(s->jit, verify);
    cpu_jit_set_dump(s->jit, dump_dir);
    base_bytes *objects = ARENA_NEW(c->arena, base_bytes, count);
    building b = { c, s, modules, missing };
    if (!cpu_jit_compile_many(s->jit, count, build, &b, 0, objects))
        return false;
    for (int i = 0; i < count; i++) {
        module_plan *m = &modules[missing[i]];
        m->object = objects[i];
        base_cache_put(s->cache, m->key, m->object.at, m->object.size);
    }
    return true;
}

static void remember(cpu_store *s, cpu_code *code)
{
    s->codes = base_grown(s->codes, s->n_codes, &s->cap_codes, sizeof *s->codes);
    s->codes[s->n_codes++] = code;
}

static void add_function(cpu_store *s, const char *name, void *address, const cpu_code *code)
{
    s->functions = base_grown(s->functions, s->n_functions, &s->cap_functions, sizeof(function));
    function *f = &s->functions[s->n_functions++];
    snprintf(f->name, sizeof f->name, "%s", name);
    f->address = address;
    f->code = code;
}

static bool load(cpu_compiler *c, cpu_store *s, module_plan *modules, int n)
{
    base_bytes *objects = ARENA_NEW(c->arena, base_bytes, n);
    for (int i = 0; i < n; i++)
        objects[i] = modules[i].object;
    cpu_code *code = cpu_code_load(objects, n, NULL, 0);
    if (!code)
        return false;
    remember(s, code);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < modules[i].n; j++) {
            const char *name = c->requests[modules[i].request[j]].name;
            void *address = cpu_code_find(code, name);
            CHECK(address, "expected the code of %s to have been generated", name);
            add_function(s, name, address, code);
        }
    return true;
}

bool cpu_store_fetch(cpu_store *s, cpu_compiler *c, const char *dump_dir, bool verify, cpu_fetched *fetched)
{
    costed *wanted = ARENA_NEW(c->arena, costed, c->n_requests);
    module_plan *modules = ARENA_NEW(c->arena, module_plan, MAX_MODULES);
    int n = 0;
    bool ok = true;
    c->store = s;
    for (int i = 0; i < c->n_requests; i++)
        if (dump_dir || !find(s, c->requests[i].name))
            wanted[n++] = (costed){ i, c->requests[i].cost };
    fetched->functions = c->n_requests;
    fetched->new_functions = n;
    if (n) {
        qsort(wanted, (size_t)n, sizeof *wanted, dearest_first);
        int n_modules = divide_modules(c, wanted, n, modules);
        for (int i = 0; i < n_modules && !dump_dir; i++)
            modules[i].cached = base_cache_get(s->cache, modules[i].key, &modules[i].object);
        for (int i = 0; i < n_modules; i++)
            fetched->compiled_functions += modules[i].cached ? 0 : modules[i].n;
        ok = compile_missing(c, s, modules, n_modules, dump_dir, verify);
        for (int i = 0; i < n_modules; i++)
            fetched->bytes += modules[i].object.size;
        fetched->modules = n_modules;
        ok = ok && load(c, s, modules, n_modules);
        for (int i = 0; i < n_modules; i++)
            base_bytes_free(&modules[i].object);
    }
    if (!ok)
        return false;
    fetched->address = ARENA_NEW(c->arena, void *, c->n_requests);
    fetched->code = ARENA_NEW(c->arena, const cpu_code *, c->n_requests);
    for (int i = 0; i < c->n_requests; i++) {
        const function *f = find(s, c->requests[i].name);
        fetched->address[i] = f->address;
        fetched->code[i] = f->code;
    }
    return true;
}

void cpu_link_plan(cpu_compiler *c, cpu_plan *plan, const cpu_fetched *fetched)
{
    cpu_linked linked = { c, fetched->address, fetched->code };
    for (int i = 0; i < plan->n_parts; i++)
        cpu_link_plan(c, &plan->parts[i], fetched);
    for (int i = 0; i < plan->n_phases && plan->n_parts == 0; i++)
        if (plan->phases[i].function >= 0)
            plan->phases[i].code = (cpu_task *)fetched->address[plan->phases[i].function];
    if (plan->link)
        plan->link(plan, &linked);
}
