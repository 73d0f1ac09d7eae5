/* The configuration of a run. To add a key: a field in config.h and a row here, and the reader, the overrides, --help,
 * state.json and the suggestions know it. */
#include "nanogpt/config.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nanogpt/files.h"
#include "rax.h"

typedef enum { INTEGER, LONG, REAL, BELOW_ONE, TRUTH, CHOICE, TEXT, PATH } key_type;

enum { SIZE = 1 << 20, MOST = INT32_MAX };
#define SEED_MOST 9007199254740991.0                 /* 2^53 - 1: what any JSON reader keeps exactly */

/* A key's value is text in two places, here and on the command line, and goes through the same reader. Bounds are inclusive,
 * but for BELOW_ONE, a real number x with 0 <= x < 1. A PATH may be one of the words in `choices` instead. */
typedef struct {
    const char *name;
    key_type type;
    size_t offset;
    const char *preset;             /* NULL: no value */
    double low, high;
    const char *const *choices;     /* ends in NULL */
    bool shapes_model;              /* weights made with another value do not fit */
    const char *help;
} key_row;

#define WORDS(...) (const char *const[]){ __VA_ARGS__, NULL }
#define AT(field) #field, .offset = offsetof(gpt_config, field)

static const key_row keys[] = {
    { AT(n_layer),        .type = INTEGER,   .preset = "12",    .low = 1, .high = 65536, .shapes_model = true, .help = "transformer blocks" },
    { AT(n_head),         .type = INTEGER,   .preset = "12",    .low = 1, .high = 65536, .shapes_model = true, .help = "attention heads of a block; divides n_embd" },
    { AT(n_embd),         .type = INTEGER,   .preset = "768",   .low = 1, .high = SIZE,  .shapes_model = true, .help = "width of the residual stream" },
    { AT(block_size),     .type = INTEGER,   .preset = "1024",  .low = 1, .high = SIZE,  .shapes_model = true, .help = "tokens of context" },
    { AT(vocab_size),     .type = INTEGER,   .preset = "50304", .low = 1, .high = 65536, .shapes_model = true, .help = "rows of the token embedding" },
    { AT(bias),           .type = TRUTH,     .preset = "false", .shapes_model = true, .help = "biases in the linear layers and LayerNorms" },
    { AT(dropout),        .type = BELOW_ONE, .preset = "0.0",   .help = "share of activations dropped in training" },
    { AT(dtype),          .type = CHOICE,    .preset = "fp32",  .choices = WORDS("fp32", "bf16"), .help = "operands of matmuls and attention" },
    { AT(batch_size),     .type = INTEGER,   .preset = "12",    .low = 1, .high = SIZE,  .help = "rows of a micro-batch" },
    { AT(gradient_accumulation_steps), .type = INTEGER, .preset = "1", .low = 1, .high = SIZE, .help = "micro-batches of an iteration" },
    { AT(max_iters),      .type = INTEGER,   .preset = "600000", .low = 1, .high = MOST, .help = "iterations: updates of the weights" },
    { AT(learning_rate),  .type = REAL,      .preset = "6e-4",  .low = 0, .high = HUGE_VAL, .help = "the highest learning rate" },
    { AT(min_lr),         .type = REAL,      .preset = "6e-5",  .low = 0, .high = HUGE_VAL, .help = "the learning rate from lr_decay_iters on" },
    { AT(warmup_iters),   .type = INTEGER,   .preset = "2000",  .low = 0, .high = MOST,  .help = "iterations of linear warmup" },
    { AT(lr_decay_iters), .type = INTEGER,   .preset = "600000", .low = 0, .high = MOST, .help = "where the cosine reaches min_lr" },
    { AT(weight_decay),   .type = REAL,      .preset = "0.1",   .low = 0, .high = HUGE_VAL, .help = "AdamW's decay, of tensors of two or more axes" },
    { AT(beta1),          .type = BELOW_ONE, .preset = "0.9",   .help = "AdamW's decay of the first moment" },
    { AT(beta2),          .type = BELOW_ONE, .preset = "0.95",  .help = "AdamW's decay of the second moment" },
    { AT(grad_clip),      .type = REAL,      .preset = "1.0",   .low = 0, .high = HUGE_VAL, .help = "largest norm of the gradient; 0: no clipping" },
    { AT(seed),           .type = LONG,      .preset = "1337",  .low = 0, .high = SEED_MOST, .help = "weights, batches, dropout and sampling follow from it" },
    { AT(dataset),        .type = TEXT,      .help = "a corpus by name: shakespeare, shakespeare_char" },
    { AT(train_data),     .type = PATH,      .help = "token file (uint16), in place of dataset" },
    { AT(val_data),       .type = PATH,      .help = "token file to evaluate on, beside train_data" },
    { AT(sampling),       .type = CHOICE,    .preset = "random", .choices = WORDS("random", "sequential"), .help = "order of the training batches" },
    { AT(init_from),      .type = PATH,      .preset = "scratch", .choices = WORDS("scratch", "resume"), .help = "or a folder of weights in the Hugging Face GPT-2 layout" },
    { AT(out_dir),        .type = PATH,      .preset = "out",   .help = "folder of checkpoints and metrics.jsonl" },
    { AT(eval_interval),  .type = INTEGER,   .preset = "2000",  .low = 0, .high = MOST,  .help = "iterations from one evaluation to the next; 0: never" },
    { AT(eval_iters),     .type = INTEGER,   .preset = "200",   .low = 0, .high = MOST,  .help = "batches of an evaluation; 0: the whole split" },
    { AT(log_interval),   .type = INTEGER,   .preset = "1",     .low = 0, .high = MOST,  .help = "iterations from one printed line to the next; 0: never" },
    { AT(checkpoint_interval), .type = INTEGER, .preset = "1000", .low = 0, .high = MOST, .help = "iterations from one checkpoint to the next; 0: only at the end" },
    { AT(threads),        .type = INTEGER,   .preset = "0",     .low = 0, .high = 4096,  .help = "threads; 0: all the process may use" },
    { AT(device),         .type = CHOICE,    .preset = "cpu",   .choices = WORDS("cpu", "cuda"), .help = "where the program runs" },
};

enum { KEYS = sizeof keys / sizeof keys[0] };
_Static_assert(KEYS <= 64, "gpt_config.given has a bit a key");

/* -- names ---------------------------------------------------------------------------------------------------------- */

static char plain(char letter) { return letter == '-' ? '_' : letter >= 'A' && letter <= 'Z' ? (char)(letter - 'A' + 'a') : letter; }

static bool same_name(const char *a, const char *b)
{
    while (*a && plain(*a) == plain(*b))
        a++, b++;
    return plain(*a) == plain(*b);
}

/* Insertions, deletions and swaps of neighbours between two words (Damerau's, where a substitution is two steps: "lr" is
 * then nearer to min_lr than to bias). Three rows of the table are enough. */
static int distance(const char *a, const char *b)
{
    int rows[3][64], la = (int)strlen(a), lb = (int)strlen(b);
    if (lb > 63)
        return INT32_MAX;
    for (int j = 0; j <= lb; j++)
        rows[0][j] = j;
    for (int i = 1; i <= la; i++) {
        int *now = rows[i % 3], *before = rows[(i + 2) % 3], *two_before = rows[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= lb; j++) {
            int step = 1 + (before[j] < now[j - 1] ? before[j] : now[j - 1]);
            bool equal = plain(a[i - 1]) == plain(b[j - 1]);
            bool swapped = i > 1 && j > 1 && plain(a[i - 1]) == plain(b[j - 2]) && plain(a[i - 2]) == plain(b[j - 1]);
            if (equal && before[j - 1] < step)
                step = before[j - 1];
            if (swapped && two_before[j - 2] + 1 < step)
                step = two_before[j - 2] + 1;
            now[j] = step;
        }
    }
    return rows[la % 3][lb];
}

const char *gpt_nearest(const char *typed, const char *const *words, int count)
{
    const char *nearest = NULL;
    int least = INT32_MAX;
    for (int i = 0; i < count; i++) {
        int steps = distance(typed, words[i]);
        if (!nearest || steps < least)
            nearest = words[i], least = steps;
    }
    return nearest;
}

int gpt_config_key_count(void) { return KEYS; }
const char *gpt_config_key(int key) { return keys[key].name; }

int gpt_config_find(const char *name)
{
    for (int i = 0; i < KEYS; i++)
        if (same_name(keys[i].name, name))
            return i;
    return -1;
}

/* The key, or -1 and an error with the nearest. In a file a name is spelled as in the table: json says so. */
static int find_or_fail(const char *name, const char *origin, bool json)
{
    const char *words[KEYS];
    int key = gpt_config_find(name);
    if (key >= 0 && (!json || strcmp(keys[key].name, name) == 0))
        return key;
    for (int i = 0; i < KEYS; i++)
        words[i] = keys[i].name;
    rax_fail(RAX_MISTAKE, "%s: %.80s: there is no such key; the nearest is %s", origin, name, gpt_nearest(name, words, KEYS));
    return -1;
}

static bool was_given(const gpt_config *config, const char *name) { return config->given >> gpt_config_find(name) & 1; }
bool gpt_config_is_given(const gpt_config *config, const char *name) { return was_given(config, name); }

/* -- values --------------------------------------------------------------------------------------------------------- */

static void *field_of(const gpt_config *config, const key_row *row) { return (char *)config + row->offset; }

/* Which of the row's words this is; -1: none. */
static int choice_of(const key_row *row, const char *word)
{
    for (int i = 0; row->choices && row->choices[i]; i++)
        if (strcmp(row->choices[i], word) == 0)
            return i;
    return -1;
}

/* What a key's value may be, in words. */
static char *accepted(const key_row *row)
{
    switch (row->type) {
    case LONG: return gpt_format("an integer from %.0f to 2^53 - 1", row->low);
    case INTEGER: return row->high < MOST ? gpt_format("an integer from %.0f to %.0f", row->low, row->high)
                                          : gpt_format("an integer of %.0f or more", row->low);
    case REAL: return gpt_format("a number of %g or more", row->low);
    case BELOW_ONE: return gpt_format("a number from 0 to below 1");
    case TRUTH: return gpt_format("true or false");
    case TEXT: return gpt_format("a name");
    case PATH: return gpt_format("a path");
    case CHOICE: break;
    }
    char *text = gpt_format("\"%s\"", row->choices[0]);
    for (int i = 1; row->choices[i]; i++) {
        char *more = gpt_format("%s or \"%s\"", text, row->choices[i]);
        rax_free(text);
        text = more;
    }
    return text;
}

static bool refuse(const char *origin, const key_row *row, const char *got)
{
    char *wanted = accepted(row);
    rax_fail(RAX_MISTAKE, "%s: %s: expected %s, got %.200s", origin, row->name, wanted, got);
    rax_free(wanted);
    return false;
}

/* Each of the three returns false, without an error, where the row does not take the value. */
static bool set_number(gpt_config *config, const key_row *row, double number)
{
    void *field = field_of(config, row);
    bool whole = number == floor(number), within = number >= row->low && number <= row->high;

    switch (row->type) {
    case INTEGER: return whole && within && (*(int *)field = (int)number, true);
    case LONG: return whole && within && (*(int64_t *)field = (int64_t)number, true);
    case REAL: return isfinite(number) && within && (*(double *)field = number, true);
    case BELOW_ONE: return number >= 0 && number < 1 && (*(double *)field = number, true);
    case TRUTH: case CHOICE: case TEXT: case PATH: return false;
    }
    return false;
}

static bool set_truth(gpt_config *config, const key_row *row, bool truth)
{
    return row->type == TRUTH && (*(bool *)field_of(config, row) = truth, true);
}

static bool set_text(gpt_config *config, const key_row *row, const char *text, const char *folder)
{
    int choice = choice_of(row, text);
    if (row->type == CHOICE)
        return choice >= 0 && (*(int *)field_of(config, row) = choice, true);
    if ((row->type != TEXT && row->type != PATH) || text[0] == '\0')
        return false;
    char **field = field_of(config, row);
    rax_free(*field);
    *field = row->type == PATH && choice < 0 ? gpt_path_join(folder, text) : gpt_format("%s", text);
    return true;
}
/* set_text stores a choice through an int */
_Static_assert(sizeof(gpt_dtype) == sizeof(int) && sizeof(gpt_sampling) == sizeof(int) && sizeof(gpt_device) == sizeof(int), "enums are ints");

/* A value as typed by hand: a default, or an override. */
static bool set_typed(gpt_config *config, const key_row *row, const char *text)
{
    char *end;
    switch (row->type) {
    case INTEGER: case LONG: case REAL: case BELOW_ONE: {
        if (*text == '\0' || strspn(text, "+-.0123456789eE") != strlen(text))    /* strtod reads spaces, hexadecimal and nan too */
            return false;
        double number = strtod(text, &end);
        return *end == '\0' && set_number(config, row, number);
    }
    case TRUTH:
        return (strcmp(text, "true") == 0 || strcmp(text, "false") == 0) && set_truth(config, row, text[0] == 't');
    case CHOICE: case TEXT: case PATH:
        return set_text(config, row, text, ".");
    }
    return false;
}

static bool set_json(gpt_config *config, const key_row *row, const cJSON *value, const char *folder)
{
    if (cJSON_IsNumber(value))
        return set_number(config, row, value->valuedouble);
    if (cJSON_IsBool(value))
        return set_truth(config, row, cJSON_IsTrue(value));
    return cJSON_IsString(value) && set_text(config, row, value->valuestring, folder);
}

/* -- layers --------------------------------------------------------------------------------------------------------- */

static const char command_line[] = "command line";

void gpt_config_init(gpt_config *config)
{
    *config = (gpt_config){0};
    for (int i = 0; i < KEYS; i++)
        if (keys[i].preset)
            set_typed(config, &keys[i], keys[i].preset);
}

void gpt_config_free(gpt_config *config)
{
    for (int i = 0; i < KEYS; i++)
        if (keys[i].type == TEXT || keys[i].type == PATH)
            rax_free(*(char **)field_of(config, &keys[i]));
    *config = (gpt_config){0};
}

static void forget(gpt_config *config, char **field, const char *name)
{
    rax_free(*field);
    *field = NULL;
    config->given &= ~(1ull << gpt_config_find(name));
    config->overridden &= ~(1ull << gpt_config_find(name));
}

/* The end of a layer that set `fresh`. Within one layer dataset and token files contradict each other; over layers the later
 * one has its way, so that `--train_data=mine.bin` works on a configuration that names a dataset. */
static bool end_layer(gpt_config *config, uint64_t fresh, const char *origin)
{
    uint64_t dataset = 1ull << gpt_config_find("dataset");
    uint64_t train = 1ull << gpt_config_find("train_data"), val = 1ull << gpt_config_find("val_data");

    if ((fresh & dataset) && (fresh & (train | val)))
        return rax_fail(RAX_MISTAKE, "%s: dataset and %s: give one or the other", origin, fresh & train ? "train_data" : "val_data");
    if (fresh & dataset) {
        forget(config, &config->train_data, "train_data");
        forget(config, &config->val_data, "val_data");
    }
    if (fresh & train)
        forget(config, &config->dataset, "dataset");
    config->given |= fresh;
    return true;
}

bool gpt_config_from_json(gpt_config *config, const cJSON *object, const char *origin, const char *folder)
{
    uint64_t fresh = 0;
    const cJSON *value;

    if (!cJSON_IsObject(object))
        return rax_fail(RAX_MISTAKE, "%s: expected a JSON object of keys and values", origin);
    cJSON_ArrayForEach(value, object) {
        int key = find_or_fail(value->string, origin, true);
        if (key < 0)
            return false;
        if (fresh >> key & 1)
            return rax_fail(RAX_MISTAKE, "%s: %s: is given twice", origin, keys[key].name);
        if (!set_json(config, &keys[key], value, folder)) {
            char *got = cJSON_PrintUnformatted(value);           /* null for a number beyond all doubles */
            refuse(origin, &keys[key], cJSON_IsNumber(value) && !isfinite(value->valuedouble) ? "a number too large to hold" : got);
            cJSON_free(got);
            return false;
        }
        fresh |= 1ull << key;
    }
    config->overridden &= ~fresh;
    return end_layer(config, fresh, origin);
}

static bool read_config(gpt_config *config, const char *path)
{
    cJSON *object = gpt_json_read(path);
    char *folder = gpt_path_folder(path);
    bool read = object && gpt_config_from_json(config, object, path, folder);
    rax_free(folder);
    cJSON_Delete(object);
    return read;
}

bool gpt_config_override(gpt_config *config, const gpt_setting *settings, int count)
{
    uint64_t fresh = 0;
    for (int i = 0; i < count; i++) {                /* a key that comes twice: the last value holds, as with any option */
        int key = find_or_fail(settings[i].key, command_line, false);
        if (key < 0)
            return false;
        if (!set_typed(config, &keys[key], settings[i].value)) {
            char *got = gpt_format("'%s'", settings[i].value);
            refuse(command_line, &keys[key], got);
            rax_free(got);
            return false;
        }
        fresh |= 1ull << key;
    }
    config->overridden |= fresh;
    return end_layer(config, fresh, command_line);
}

static const char *origin_of(const gpt_config *config, const char *name, const char *file)
{
    uint64_t bit = 1ull << gpt_config_find(name);
    return config->overridden & bit ? command_line : config->given & bit ? file : "default";
}

bool gpt_config_check(const gpt_config *config, const char *file)
{
    if (config->n_embd % config->n_head != 0) {
        const char *heads = origin_of(config, "n_head", file), *width = origin_of(config, "n_embd", file);
        bool same = strcmp(heads, width) == 0;
        return rax_fail(RAX_MISTAKE, "%s: n_head: %d heads do not divide n_embd, a width of %d%s%s%s", heads, config->n_head, config->n_embd,
                        same ? "" : " (", same ? "" : width, same ? "" : ")");
    }
    if (!config->dataset && !config->train_data)
        return rax_fail(RAX_MISTAKE, "%s: dataset: is missing; name a corpus (\"shakespeare\", \"shakespeare_char\"), or a token file as train_data", file);
    if (config->dataset && config->val_data)
        return rax_fail(RAX_MISTAKE, "%s: val_data: dataset \"%s\" has a validation split of its own",
                        origin_of(config, "val_data", file), config->dataset);
    return true;
}

bool gpt_config_load(gpt_config *config, const char *path, const gpt_setting *settings, int count)
{
    gpt_config_init(config);
    return read_config(config, path) && gpt_config_override(config, settings, count) && gpt_config_check(config, path);
}

/* -- out again ------------------------------------------------------------------------------------------------------ */

cJSON *gpt_config_to_json(const gpt_config *config)
{
    cJSON *object = cJSON_CreateObject();
    for (int i = 0; i < KEYS; i++) {
        const key_row *row = &keys[i];
        void *field = field_of(config, row);
        const char *text = row->type == TEXT || row->type == PATH ? *(char **)field : NULL;

        switch (row->type) {
        case INTEGER: gpt_json_add_number(object, row->name, *(int *)field); break;
        case LONG: gpt_json_add_number(object, row->name, (double)*(int64_t *)field); break;
        case REAL: case BELOW_ONE: gpt_json_add_number(object, row->name, *(double *)field); break;
        case TRUTH: cJSON_AddBoolToObject(object, row->name, *(bool *)field); break;
        case CHOICE: cJSON_AddStringToObject(object, row->name, row->choices[*(int *)field]); break;
        case TEXT:
            if (text)
                cJSON_AddStringToObject(object, row->name, text);
            break;
        case PATH:
            if (text) {                              /* the folder that it began in is not written, so whole */
                char *path = choice_of(row, text) >= 0 ? gpt_format("%s", text) : gpt_path_absolute(text);
                cJSON_AddStringToObject(object, row->name, path);
                rax_free(path);
            }
            break;
        }
    }
    return object;
}

char *gpt_config_text(const gpt_config *config)
{
    cJSON *object = gpt_config_to_json(config);
    char *text = gpt_json_text(object);
    cJSON_Delete(object);
    return text;
}

bool gpt_config_same_model(const gpt_config *now, const gpt_config *then, const char *origin)
{
    for (int i = 0; i < KEYS; i++) {
        const key_row *row = &keys[i];
        if (!row->shapes_model)
            continue;
        const void *a = field_of(now, row), *b = field_of(then, row);
        if (row->type == TRUTH && *(const bool *)a != *(const bool *)b)
            return rax_fail(RAX_MISTAKE, "%s: %s: the weights were made with %s, the configuration says %s", origin, row->name,
                            *(const bool *)b ? "true" : "false", *(const bool *)a ? "true" : "false");
        if (row->type == INTEGER && *(const int *)a != *(const int *)b)
            return rax_fail(RAX_MISTAKE, "%s: %s: the weights were made with %d, the configuration says %d", origin, row->name,
                            *(const int *)b, *(const int *)a);
    }
    return true;
}

/* -- help ----------------------------------------------------------------------------------------------------------- */

const char *gpt_config_key_values(int key)
{
    switch (keys[key].type) {
    case INTEGER: case LONG: return "INTEGER";
    case REAL: case BELOW_ONE: return "NUMBER";
    case TRUTH: return "true|false";
    case CHOICE: return "WORD";
    case TEXT: return "NAME";
    case PATH: return "PATH";
    }
    return "";
}

char *gpt_config_key_help(int key)
{
    const key_row *row = &keys[key];
    char *words = row->choices ? gpt_format("%s", row->choices[0]) : gpt_format("%s", "");
    for (int i = 1; row->choices && row->choices[i]; i++) {
        char *more = gpt_format("%s, %s", words, row->choices[i]);
        rax_free(words);
        words = more;
    }
    char *help = gpt_format("%s%s%s%s%s%s", words, *words ? (row->type == PATH ? ", " : ": ") : "", row->help,
                            row->preset ? " (" : "", row->preset ? row->preset : "", row->preset ? ")" : "");
    rax_free(words);
    return help;
}
