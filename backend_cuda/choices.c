/* Which algorithm of cuBLASLt a product takes, as `rax bench --tune` has found by timing several: a table in the folder of compiled code, one for a
 * card and a version of cuBLASLt, so that the same product takes the same one every time. A line a product, what it is before a tab:
 *
 *     64 768 3072 1 ...      <algorithm, 128 hex digits> <workspace bytes> <digest of what is before>
 *     64 768 3072 1 ...      <algorithm, 128 hex digits> <workspace bytes> apart <digest of what is before>
 *
 * "apart": the product without its epilogue, and a loop that makes it, take less time. The loop is not there yet when that is asked; as many bytes as it reads and writes are
 * filled instead, which takes a card about as long.
 *
 * A product that is not in the table takes the algorithm that the heuristic names first, which card and version decide. With tuning on, every product
 * that is asked for is timed once in the process, on operands of noise.
 *
 * A line that is damaged is as good as none. The file is written beside the old one and renamed. */
#include "backend_cuda/backend.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* fresh: timed in this process. The heuristic's word, or that there is none, is kept in the process alone. */
typedef struct { char *key; cuda_choice is; bool fresh; } choice;
struct cuda_choices {
    char *path;                              /* NULL: there is no folder */
    int n, cap;
    choice *at;
    bool tunes;
    char digest[32];
};

static choice *find(cuda_choices *c, const char *key)
{
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->at[i].key, key))
            return &c->at[i];
    return NULL;
}

static bool is_timed(const choice *c) { return c->is.standing == CUDA_TIMED || c->is.standing == CUDA_APART; }

static void set(cuda_choices *c, const char *key, const cuda_choice *is, bool fresh)
{
    choice *at = find(c, key);
    if (!at) {
        c->at = base_grown(c->at, c->n, &c->cap, sizeof(choice));
        at = &c->at[c->n++];
        at->key = base_strdup(key);
    }
    at->is = *is;
    at->fresh = fresh;
}

/* -- the file ------------------------------------------------------------------------------------------------------------------ */

static const char apart[] = " apart";

static void print_choice(base_text *text, const choice *c)
{
    base_text line = {0};
    base_text_add(&line, "%s\t", c->key);
    for (int i = 0; i < 8; i++)
        base_text_add(&line, "%016" PRIx64, c->is.algorithm.algorithm.data[i]);
    base_text_add(&line, " %zu%s", c->is.algorithm.workspace_bytes, c->is.standing == CUDA_APART ? apart : "");
    base_text_add(text, "%s %016llx\n", line.at, (unsigned long long)XXH3_64bits(line.at, line.len));
    base_text_free(&line);
}

/* line ends in a zero byte. */
static void read_choice(cuda_choices *c, char *line)
{
    cuda_choice is = { .standing = CUDA_TIMED };
    int used = 0;
    char *digest = strrchr(line, ' '), *tab = strchr(line, '\t'), *rest;
    unsigned long long stated;
    if (!digest || !tab || digest < tab || sscanf(digest, " %16llx", &stated) != 1 || XXH3_64bits(line, (size_t)(digest - line)) != stated)
        return;
    *digest = '\0';
    rest = tab + 1;
    for (int i = 0; i < 8; i++, rest += 16)
        if (sscanf(rest, "%16" SCNx64, &is.algorithm.algorithm.data[i]) != 1)
            return;
    if (sscanf(rest, " %zu%n", &is.algorithm.workspace_bytes, &used) != 1 || (rest[used] && strcmp(rest + used, apart) != 0))
        return;
    is.standing = rest[used] ? CUDA_APART : CUDA_TIMED;
    *tab = '\0';
    set(c, line, &is, false);
}

static base_text table_of(const cuda_choices *c)
{
    base_text text = {0};
    for (int i = 0; i < c->n; i++)
        if (is_timed(&c->at[i]))
            print_choice(&text, &c->at[i]);
    return text;
}

static void take_digest(cuda_choices *c)
{
    base_text text = table_of(c);
    if (text.len)
        snprintf(c->digest, sizeof c->digest, "xxh3:%016llx", (unsigned long long)XXH3_64bits(text.at, text.len));
    base_text_free(&text);
}

cuda_choices *cuda_choices_open(const char *folder, const cuda_machine *machine, int blas_version, bool tunes)
{
    cuda_choices *c = base_alloc(sizeof *c);
    c->tunes = tunes;
    base_text path = {0};
    size_t most = (size_t)1 << 24;
    if (!*folder)
        return c;
    base_text_add(&path, "%s/products-%d-sm_%d%d-%016llx.table", folder, blas_version, machine->major, machine->minor,
                  (unsigned long long)XXH3_64bits(machine->name, strlen(machine->name)));
    c->path = base_text_take(&path);
    FILE *file = fopen(c->path, "r");
    if (!file)
        return c;
    char *text = base_alloc(most);
    text[fread(text, 1, most - 1, file)] = '\0';
    fclose(file);
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        *end = '\0';
        read_choice(c, line);
    }
    base_free(text);
    take_digest(c);
    return c;
}

void cuda_choices_close(cuda_choices *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n; i++)
        base_free(c->at[i].key);
    base_free(c->at);
    base_free(c->path);
    base_free(c);
}

static bool write_table(const cuda_choices *c)
{
    base_text text = table_of(c), temporary = {0};
    base_text_add(&temporary, "%s.%d", c->path, (int)getpid());
    FILE *file = fopen(temporary.at, "w");
    bool written = file && fwrite(text.at, 1, text.len, file) == text.len;
    if (file)
        written = fclose(file) == 0 && written;
    written = written && rename(temporary.at, c->path) == 0;
    if (!written)
        base_fail(BASE_FAILURE, "%s: cannot be written", c->path);
    base_text_free(&text);
    base_text_free(&temporary);
    return written;
}

/* -- timing ------------------------------------------------------------------------------------------------------------------------- */

enum { CANDIDATES = 16, SAMPLES = 3, CALLS = 5 };

/* Operands of noise, and room for all that a product touches, or the loop beside what is left of it, in one block. */
typedef struct { cuda_device *device; const cuda_question *q; char *memory; cuda_places at; cuda_event begin, end; } trial;
typedef bool trial_call(const trial *t, const cuda_ready *ready);

static bool trial_open(trial *t)
{
    const cuda_question *q = t->q;
    const cuda_library *l = cuda_device_library(t->device);
    size_t bytes = cuda_rounded(q->a_bytes) + cuda_rounded(q->b_bytes) + cuda_rounded(q->c_bytes) + cuda_rounded(q->d_bytes) + cuda_rounded(q->bias_bytes) + cuda_rounded(q->aux_bytes) + q->workspace_bytes;
    t->memory = cuda_memory_new(t->device, MAX(bytes, q->loop_bytes));
    if (!t->memory)
        return false;
    char *a = t->memory, *b = a + cuda_rounded(q->a_bytes), *c = b + cuda_rounded(q->b_bytes), *d = c + cuda_rounded(q->c_bytes), *bias = d + cuda_rounded(q->d_bytes), *aux = bias + cuda_rounded(q->bias_bytes);
    t->at = (cuda_places){ .a = a, .b = b, .c = c, .d = d, .bias = bias, .aux = aux, .workspace = aux + cuda_rounded(q->aux_bytes) };
    return cuda_fill_with_noise(t->device, q->product->operands, a, q->a_bytes) && cuda_fill_with_noise(t->device, q->product->operands, b, q->b_bytes) &&
           cuda_ok(t->device, l->event_new(&t->begin, CUDA_EVENT_TIMING), "cuEventCreate") && cuda_ok(t->device, l->event_new(&t->end, CUDA_EVENT_TIMING), "cuEventCreate");
}

static void trial_close(trial *t)
{
    const cuda_library *l = cuda_device_library(t->device);
    if (t->begin)
        l->event_free(t->begin);
    if (t->end)
        l->event_free(t->end);
    cuda_memory_free(t->device, t->memory);
}

static bool call_product(const trial *t, const cuda_ready *ready) { return cuda_multiply(t->device, t->q->product, ready, &t->at); }
static bool call_fill(const trial *t, const cuda_ready *ready)
{
    (void)ready;
    return cuda_device_library(t->device)->fill((cuda_pointer)(uintptr_t)t->memory, 0, t->q->loop_bytes, cuda_device_stream(t->device)) == 0;
}

/* The shortest of a few samples of several calls; what was left on the device by the one before is warm by then. False where the library does not
 * take the algorithm after all. */
static bool trial_time(const trial *t, trial_call *call, const cuda_algorithm *algorithm, float *best)
{
    cuda_ready ready = *t->q->ready;
    ready.algorithm = algorithm->algorithm;
    ready.workspace_bytes = algorithm->workspace_bytes;
    const cuda_library *l = cuda_device_library(t->device);
    cuda_stream stream = cuda_device_stream(t->device);
    for (int i = 0; i <= SAMPLES; i++) {
        float ms = 0;
        bool timed = l->event_record(t->begin, stream) == 0;
        for (int j = 0; timed && j < CALLS; j++)
            timed = call(t, &ready);
        if (!timed || l->event_record(t->end, stream) != 0 || l->event_wait(t->end) != 0 || l->event_elapsed(&ms, t->begin, t->end) != 0)
            return false;
        *best = i <= 1 ? ms : MIN(*best, ms);
    }
    return true;
}

/* The fastest, and of two that a hundredth parts the one that the heuristic prefers; apart where it is slower by more than that than what is left of the product and a loop. */
static bool fastest(cuda_device *device, const cuda_question *q, const cuda_algorithm *found, int n, cuda_choice *answer)
{
    trial t = { .device = device, .q = q };
    float best = 0, ms = 0, loop_ms = 0;
    int at = -1;
    bool opened = trial_open(&t);
    for (int i = 0; opened && i < n; i++)
        if (found[i].status == 0 && trial_time(&t, call_product, &found[i], &ms) && (at < 0 || ms < 0.99f * best))
            at = i, best = ms;
    bool compared = at >= 0 && q->left_ms > 0 && trial_time(&t, call_fill, &found[at], &loop_ms);
    trial_close(&t);
    if (at >= 0) {
        *answer = (cuda_choice){ found[at], compared && best > 1.01f * (q->left_ms + loop_ms) ? CUDA_APART : CUDA_TIMED, best };
        base_error_clear();                          /* of those that were not taken */
    }
    return opened && (at >= 0 || base_fail(BASE_FAILURE, "device cuda: no algorithm of cuBLASLt works for %s", q->key));
}

/* -- choosing ------------------------------------------------------------------------------------------------------------------------- */

bool cuda_choices_tune(const cuda_choices *c) { return c && c->tunes; }

bool cuda_choices_are_timed(const cuda_choices *c)
{
    bool timed = cuda_choices_tune(c);
    for (int i = 0; c && i < c->n && !timed; i++)
        timed = is_timed(&c->at[i]);
    return timed;
}

bool cuda_choose_algorithm(cuda_device *device, const cuda_question *q, cuda_choice *answer)
{
    cuda_choices *c = cuda_device_choices(device);
    const choice *kept = c ? find(c, q->key) : NULL;
    bool tunes = cuda_choices_tune(c) && !(kept && kept->fresh);
    cuda_algorithm found[CANDIDATES] = {0};
    int n = 0;
    if (kept && !tunes) {
        *answer = kept->is;
        return true;
    }
    int error = cuda_device_library(device)->product_algorithms(cuda_device_blas(device), q->ready->desc, q->ready->a, q->ready->b, q->ready->c ? q->ready->c : q->ready->d, q->ready->d, q->preference, tunes ? CANDIDATES : 1, found, &n);
    *answer = (cuda_choice){ found[0], error == 0 && n > 0 && found[0].status == 0 ? CUDA_BY_HEURISTIC : CUDA_NO_PRODUCT, 0 };
    if (!tunes && c)
        set(c, q->key, answer, false);
    if (!tunes || answer->standing == CUDA_NO_PRODUCT)
        return true;
    if (!c->path)
        return base_fail(BASE_MISTAKE, "tune: there is no folder to keep the table of choices in");
    if (!fastest(device, q, found, n, answer))
        return false;
    set(c, q->key, answer, true);
    take_digest(c);
    return write_table(c);
}

const char *cuda_choices_digest(const cuda_choices *c) { return c ? c->digest : ""; }
