/* The stand-in's NVRTC, a part of cuda_standin.h: its "cubin" is a shared library, the kernel's own text behind the first part of cuda_emulator.h, compiled by the C
 * compiler. Where the real NVRTC is to see a text, too, it compiles it here. */
#ifndef TESTS_CUDA_STANDIN_COMPILER_H
#define TESTS_CUDA_STANDIN_COMPILER_H

/* -- libraries -------------------------------------------------------------------------------------------------------------- */

/* A shared library made of the text by the C compiler, behind so many bytes of how large it is; or, and false, what the compiler says. The caller frees it. */
static bool compile_c(const char *define, const char *text, char **image, size_t *bytes)
{
    char folder[] = "/tmp/rax-standin-XXXXXX", source[96], library[96], log[96], command[1024];
    const char *compiler = getenv("CC"), *root = getenv("RAX_TEST_SOURCE");         /* the project's folder, where it is not the working folder */
    STANDIN_CHECK(mkdtemp(folder), "no folder for a kernel");
    snprintf(source, sizeof source, "%s/k.c", folder), snprintf(library, sizeof library, "%s/k.so", folder), snprintf(log, sizeof log, "%s/log", folder);
    FILE *file = fopen(source, "w");
    fprintf(file, "%s#include \"tests/cuda_emulator.h\"\n%s", define, text);
    fclose(file);
    snprintf(command, sizeof command, "%s -std=gnu11 -O1 -w -ffp-contract=off -U_FORTIFY_SOURCE -fno-math-errno -fPIC -shared -I%s %s -o %s -lm 2>%s", compiler ? compiler : "cc", root ? root : ".",
             source, library, log);
    bool compiled = system(command) == 0;
    file = fopen(compiled ? library : log, "r");
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    *image = calloc(1, *bytes + sizeof *bytes + 1);
    memcpy(*image, bytes, sizeof *bytes);
    STANDIN_CHECK(fread(*image + sizeof *bytes, 1, *bytes, file) == *bytes, "what was compiled cannot be read");
    fclose(file);
    *bytes += sizeof *bytes;
    unlink(source), unlink(library), unlink(log), rmdir(folder);
    return compiled;
}

static void *open_image(const void *image, int *fd, int how)
{
    size_t bytes;
    char path[64];
    memcpy(&bytes, image, sizeof bytes);
    *fd = memfd_create("kernel", MFD_CLOEXEC);
    STANDIN_CHECK(write(*fd, (const char *)image + sizeof bytes, bytes) == (ssize_t)bytes, "no room for a kernel");
    snprintf(path, sizeof path, "/proc/self/fd/%d", *fd);
    void *handle = dlopen(path, RTLD_NOW | how);
    STANDIN_CHECK(handle, "%s", dlerror());
    return handle;
}

/* What kernels call, compiled once. It stays until the process ends. */
static void *emulator(void)
{
    static void *handle;
    char *image;
    size_t bytes;
    int fd;
    if (handle)
        return handle;
    STANDIN_CHECK(compile_c("#define RAX_EMULATOR 1\n", "", &image, &bytes), "the emulator: %s", image + sizeof bytes);
    handle = open_image(image, &fd, RTLD_GLOBAL);
    free(image);
    return handle;
}

/* -- NVRTC ----------------------------------------------------------------------------------------------------------------------- */

struct cuda_source_opaque { char *text, *name, *log; char *image; size_t bytes; };
static int si_compiler_version(int *major, int *minor) { return *major = standin.nvrtc_version / 10, *minor = standin.nvrtc_version % 10, 0; }
static int si_source_new(cuda_source *source, const char *text, const char *name, int n, const char *const *headers, const char *const *names)
{
    (void)n, (void)headers, (void)names;
    *source = calloc(1, sizeof **source);
    (*source)->text = strdup(text);
    (*source)->name = strdup(name);
    return 0;
}
static int si_source_free(cuda_source *source)
{
    free((*source)->text), free((*source)->name), free((*source)->log), free((*source)->image), free(*source);
    return *source = NULL, 0;
}
/* NVRTC's program of the text, for "sm" or "compute", with an option of the caller's. Returns whether it compiles. */
static bool compile_by_nvrtc(const cuda_library *l, cuda_source s, const char *kind, int architecture, const char *option, cuda_source *program)
{
    char target[32];
    const char *options[] = { target, "-default-device", option };
    snprintf(target, sizeof target, "-arch=%s_%d", kind, architecture);
    STANDIN_CHECK(l->source_new(program, s->text, s->name, 0, NULL, NULL) == 0, "NVRTC takes no source");
    return l->source_compile(*program, (int)COUNT_OF(options), options) == 0;
}

/* By NVRTC, which says what registers it took. False: the compiler's message is on standard error. */
static bool compile_and_count(cuda_source s, int architecture)
{
    const cuda_library *l = standin.nvrtc;
    cuda_source program;
    size_t bytes = 0;
    bool compiled = compile_by_nvrtc(l, s, "sm", architecture, "-Xptxas=-v", &program), is_attention = strstr(s->text, "    rax_attention_") != NULL;
    l->source_log_size(program, &bytes);
    char *log = calloc(1, bytes + 1);
    l->source_log(program, log);
    const char *spills = strstr(log, " bytes spill stores");
    while (spills && spills > log && spills[-1] >= '0' && spills[-1] <= '9')
        spills--;
    __atomic_add_fetch(&standin.attention_kernels, compiled && is_attention && spills, __ATOMIC_RELAXED);
    __atomic_add_fetch(&standin.attention_spills, compiled && is_attention && spills && atoi(spills) > 0, __ATOMIC_RELAXED);
    const char *threads = strstr(s->text, "enum { THREADS = "), *used = strstr(log, "Used ");
    __atomic_add_fetch(&standin.keeping_kernels, compiled && threads && used, __ATOMIC_RELAXED);
    __atomic_add_fetch(&standin.keeping_alone, compiled && threads && used && 2 * atoi(threads + strlen("enum { THREADS = ")) * atoi(used + strlen("Used ")) > 65536, __ATOMIC_RELAXED);
    if (!compiled)
        fprintf(stderr, "stand-in: sm_%d: %s\n", architecture, log);
    free(log);
    l->source_free(&program);
    return compiled;
}

/* Whether a kernel was compiled for an architecture before: its name says all that its text does. */
static bool compiled_before(const char *name, int architecture)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct { char name[48]; int architecture; } done[2048];
    static int n;
    bool before = false;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n; i++)
        before |= done[i].architecture == architecture && !strcmp(done[i].name, name);
    if (!before && n < (int)COUNT_OF(done)) {
        snprintf(done[n].name, sizeof done[n].name, "%s", name);
        done[n++].architecture = architecture;
    }
    pthread_mutex_unlock(&lock);
    return before;
}

static bool compile_for_cards(cuda_source s)
{
    for (int architecture = 80; standin.nvrtc && architecture <= 90; architecture += 10) {
        base_bytes cubin = {0};
        if (standin.only_nvrtc && architecture != 10 * standin.arch_major + standin.arch_minor)
            continue;
        __atomic_add_fetch(&standin.compiled_by_nvrtc, 1, __ATOMIC_RELAXED);
        if (compiled_before(s->name, architecture))
            continue;
        if (standin.only_nvrtc) {
            if (!compile_and_count(s, architecture))
                return false;
            continue;
        }
        if (!cuda_compile_source(standin.nvrtc, s->text, s->name, architecture, false, &cubin)) {
            fprintf(stderr, "stand-in: sm_%d: %s\n", architecture, base_error());
            return false;
        }
        base_bytes_free(&cubin);
    }
    return true;
}

/* PTX by NVRTC itself, or what it says of the text, behind how large it is. */
static cuda_library ptx_compiler;
static void find_ptx_compiler(void)
{
    if (!cuda_library_load("nvrtc", &ptx_compiler)) {
        printf("1..0 # skipped: %s\n", base_error());
        exit(EXIT_NO_NVRTC);
    }
}

static bool compile_ptx(cuda_source s)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const cuda_library *l = &ptx_compiler;
    cuda_source program;
    size_t bytes = 0;
    pthread_once(&once, find_ptx_compiler);
    bool compiled = compile_by_nvrtc(l, s, "compute", 10 * standin.arch_major + standin.arch_minor, "-lineinfo", &program);
    (compiled ? l->source_ptx_size : l->source_log_size)(program, &bytes);
    s->bytes = sizeof s->bytes + bytes;
    s->image = calloc(1, s->bytes + 1);
    memcpy(s->image, &s->bytes, sizeof s->bytes);
    (compiled ? l->source_ptx : l->source_log)(program, s->image + sizeof s->bytes);
    l->source_free(&program);
    return compiled;
}

static int si_source_compile(cuda_source s, int n_options, const char *const *options)
{
    (void)n_options, (void)options;
    if (standin.only_nvrtc) {
        __atomic_add_fetch(&standin.compiled, 1, __ATOMIC_RELAXED);
        s->bytes = sizeof(size_t);
        s->image = calloc(1, sizeof(size_t) + 1);
        return !compile_for_cards(s);
    }
    bool compiled = standin.runs_ptx ? compile_ptx(s) : compile_c("", s->text, &s->image, &s->bytes);
    __atomic_add_fetch(&standin.compiled, 1, __ATOMIC_RELAXED);
    return !compiled || !compile_for_cards(s);
}
static int si_source_log_size(cuda_source s, size_t *bytes) { return *bytes = s->bytes - sizeof(size_t) + 1, 0; }
static int si_source_log(cuda_source s, char *log) { return memcpy(log, s->image + sizeof(size_t), s->bytes - sizeof(size_t) + 1), 0; }
static int si_compiler_n_targets(int *n) { return *n = standin.newest_target ? 1 : 5, 0; }
static int si_compiler_targets(int *architectures)
{
    static const int all[] = { 75, 80, 86, 90, 100 };
    if (standin.newest_target)
        return *architectures = standin.newest_target, 0;
    return memcpy(architectures, all, sizeof all), 0;
}
static int si_source_ptx_size(cuda_source s, size_t *bytes) { return *bytes = s->bytes, 0; }
static int si_source_ptx(cuda_source s, char *ptx) { return standin.ptx_taken++, memcpy(ptx, s->image, s->bytes), 0; }
static int si_source_cubin_size(cuda_source s, size_t *bytes) { return *bytes = s->bytes, 0; }
static int si_source_cubin(cuda_source s, char *cubin) { return memcpy(cubin, s->image, s->bytes), 0; }

#endif
