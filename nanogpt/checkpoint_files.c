/* The files of a run. The order of a checkpoint's writing is what makes it whole or absent:
 *
 *     .ckpt-000250.tmp/model.safetensors, optimizer.safetensors      each flushed; digests on the way
 *     .ckpt-000250.tmp/state.json                                    with the digests
 *     .ckpt-000250.tmp  ->  ckpt-000250                              the folder flushed, then renamed
 *     .latest.tmp       ->  latest                                   a link, renamed over the old one
 *     older checkpoints and other .ckpt-*.tmp                        removed last
 */
#include "nanogpt/checkpoint_files.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nanogpt/files.h"
#include "rax.h"

enum { STATE_VERSION = 1 };
static const char state_format[] = "rax-checkpoint";

bool gpt_out_dir_prepare(const char *out_dir)
{
    if (!gpt_folder_make(out_dir))
        return false;
    char *probe = gpt_path_join(out_dir, ".probe.tmp");
    int file = open(probe, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool written = file >= 0 && write(file, "\n", 1) == 1;
    int reason = errno;
    if (file >= 0)
        close(file);
    unlink(probe);
    rax_free(probe);
    return written || rax_fail(RAX_FAILURE, "%s: out_dir cannot be written to: %s", out_dir, strerror(reason));
}

/* -- writing a checkpoint ------------------------------------------------------------------------------------------- */

/* The iteration in "ckpt-000250"; -1: not such a name. */
static int64_t iteration_of(const char *name)
{
    int64_t iteration = 0;
    if (strncmp(name, "ckpt-", 5) != 0 || strlen(name) < 11 || strlen(name) > 23)
        return -1;
    for (const char *at = name + 5; *at; at++) {
        if (*at < '0' || *at > '9')
            return -1;
        iteration = iteration * 10 + (*at - '0');
    }
    return iteration;
}

static bool is_leftover(const char *name)
{
    size_t len = strlen(name);
    return strncmp(name, ".ckpt-", 6) == 0 && len > 4 && strcmp(name + len - 4, ".tmp") == 0;
}

/* Takes a checkpoint's name away before its files, so that a half-removed one is a leftover and not a checkpoint. */
static bool discard(const char *out_dir, const char *name)
{
    char *hidden = gpt_format(".%s.old.tmp", name);
    char *from = gpt_path_join(out_dir, name), *to = gpt_path_join(out_dir, hidden);
    bool gone = gpt_folder_remove(to) &&
                (rename(from, to) == 0 || rax_fail(RAX_FAILURE, "%s: cannot be removed: %s", from, strerror(errno))) &&
                gpt_folder_remove(to);
    rax_free(hidden);
    rax_free(from);
    rax_free(to);
    return gone;
}

/* Removes leftovers of killed writes, and of the checkpoints all but `iteration` and the newest before it. */
static bool clean(const char *out_dir, int64_t iteration)
{
    DIR *list = opendir(out_dir);
    if (!list)
        return rax_fail(RAX_FAILURE, "%s: cannot be listed: %s", out_dir, strerror(errno));

    int64_t before = -1;
    for (struct dirent *entry; (entry = readdir(list));) {
        int64_t found = iteration_of(entry->d_name);
        if (found > before && found < iteration)
            before = found;
    }
    bool removed = true;
    rewinddir(list);
    for (struct dirent *entry; removed && (entry = readdir(list));) {
        int64_t found = iteration_of(entry->d_name);
        if (is_leftover(entry->d_name)) {
            char *path = gpt_path_join(out_dir, entry->d_name);
            removed = gpt_folder_remove(path);
            rax_free(path);
        } else if (found >= 0 && found != iteration && found != before) {
            removed = discard(out_dir, entry->d_name);
        }
    }
    closedir(list);
    return removed;
}

/* The finished folder takes its name. A checkpoint of the same iteration gives way in the same step where the file system
 * can exchange two names, and is gone a moment before where it cannot. */
static bool publish(const char *out_dir, const char *hidden, const char *name)
{
    char *from = gpt_path_join(out_dir, hidden), *to = gpt_path_join(out_dir, name);
    bool there = rename(from, to) == 0;
    if (!there && (errno == ENOTEMPTY || errno == EEXIST))
        there = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0 || (discard(out_dir, name) && rename(from, to) == 0);
    if (!there)
        rax_fail(RAX_FAILURE, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
    rax_free(from);
    rax_free(to);
    return there && gpt_folder_flush(out_dir);
}

static bool point_latest(const char *out_dir, const char *name)
{
    char *link = gpt_path_join(out_dir, "latest"), *temporary = gpt_path_join(out_dir, ".latest.tmp");
    unlink(temporary);
    bool pointed = (symlink(name, temporary) == 0 && rename(temporary, link) == 0) ||
                   rax_fail(RAX_FAILURE, "%s: cannot be replaced: %s", link, strerror(errno));
    rax_free(link);
    rax_free(temporary);
    return pointed && gpt_folder_flush(out_dir);
}

static bool write_arrays(const char *folder, const char *name, const gpt_array *arrays, int count, cJSON *digests)
{
    uint64_t digest;
    char *path = gpt_path_join(folder, name);
    bool written = gpt_safetensors_write(path, arrays, count, &digest);
    rax_free(path);
    if (written) {
        char *text = gpt_format("xxh3:%016" PRIx64, digest);
        cJSON_AddStringToObject(digests, name, text);
        rax_free(text);
    }
    return written;
}

static bool write_state(const char *folder, const gpt_checkpoint_state *state, cJSON *digests)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "format", state_format);
    gpt_json_add_number(json, "version", STATE_VERSION);
    gpt_json_add_number(json, "iteration", (double)state->iteration);
    gpt_json_add_number(json, "seed", (double)state->seed);
    cJSON_AddStringToObject(json, "tuned", state->tuned);
    cJSON_AddItemReferenceToObject(json, "digests", digests);
    cJSON_AddItemToObject(json, "config", gpt_config_to_json(state->config));
    char *path = gpt_path_join(folder, "state.json");
    bool written = gpt_json_write(path, json);
    rax_free(path);
    cJSON_Delete(json);
    return written;
}

/* The model as Hugging Face's GPT-2 describes it, so that other programs load the folder as it stands. Models without biases have no
 * description there: such programs would make up biases, which are to be zero. */
static bool write_description(const char *folder, const gpt_config *config)
{
    cJSON *json = cJSON_CreateObject();
    const char *architecture = "GPT2LMHeadModel";
    cJSON_AddStringToObject(json, "model_type", "gpt2");
    cJSON_AddItemToObject(json, "architectures", cJSON_CreateStringArray(&architecture, 1));
    const struct { const char *key; double value; } numbers[] = {
        { "vocab_size", config->vocab_size }, { "n_positions", config->block_size }, { "n_ctx", config->block_size },
        { "n_embd", config->n_embd }, { "n_layer", config->n_layer }, { "n_head", config->n_head },
        { "layer_norm_epsilon", 1e-5 }, { "resid_pdrop", config->dropout }, { "embd_pdrop", config->dropout },
        { "attn_pdrop", config->dropout },
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        gpt_json_add_number(json, numbers[i].key, numbers[i].value);
    cJSON_AddStringToObject(json, "activation_function", "gelu_new");
    cJSON_AddBoolToObject(json, "tie_word_embeddings", true);
    char *path = gpt_path_join(folder, "config.json");
    bool written = gpt_json_write(path, json);
    rax_free(path);
    cJSON_Delete(json);
    return written;
}

/* What a failed write has left goes, for it may be what fills the disk. The error stays that of the write. */
static void drop_unfinished(const char *temporary)
{
    char *why = gpt_format("%s", rax_error());
    rax_error_kind kind = rax_error_kind_of();
    gpt_folder_remove(temporary);
    rax_fail(kind, "%s", why);
    rax_free(why);
}

bool gpt_checkpoint_write(const char *out_dir, const gpt_checkpoint_state *state, const gpt_array *model, int model_count,
                          const gpt_array *optimizer, int optimizer_count)
{
    char *name = gpt_format("ckpt-%06" PRId64, state->iteration);
    char *hidden = gpt_format(".%s.tmp", name);
    char *temporary = gpt_path_join(out_dir, hidden);
    cJSON *digests = cJSON_CreateObject();

    bool written = gpt_folder_make(out_dir) && gpt_folder_remove(temporary) && gpt_folder_make(temporary) &&
                   write_arrays(temporary, "model.safetensors", model, model_count, digests) &&
                   write_arrays(temporary, "optimizer.safetensors", optimizer, optimizer_count, digests) &&
                   write_description(temporary, state->config) && write_state(temporary, state, digests) &&
                   publish(out_dir, hidden, name) && point_latest(out_dir, name) && clean(out_dir, state->iteration);
    if (!written)
        drop_unfinished(temporary);
    cJSON_Delete(digests);
    rax_free(name);
    rax_free(hidden);
    rax_free(temporary);
    return written;
}

/* -- opening a checkpoint ------------------------------------------------------------------------------------------- */

static char *find_folder(const char *path)
{
    struct stat found;
    char name[64];
    ssize_t length;
    char *state = gpt_path_join(path, "state.json");
    char *latest = gpt_path_join(path, "latest");
    char *folder = NULL;

    if (stat(path, &found) != 0)
        rax_fail(RAX_MISTAKE, "%s: there is no such folder", path);
    else if (stat(state, &found) == 0)
        folder = gpt_format("%s", path);
    else if (stat(latest, &found) == 0)
        folder = (length = readlink(latest, name, sizeof name - 1)) > 0     /* the name itself: the link may be replaced meanwhile */
                     ? (name[length] = '\0', gpt_path_join(path, name)) : gpt_format("%s", latest);
    else if (lstat(latest, &found) == 0)
        rax_fail(RAX_MISTAKE, "%s: names a checkpoint that is not there", latest);
    else
        rax_fail(RAX_MISTAKE, "%s: holds no checkpoint: %s is missing", path, latest);
    rax_free(state);
    rax_free(latest);
    return folder;
}

static bool read_state(gpt_checkpoint *checkpoint, const cJSON *json, const char *path)
{
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(json, "format");
    const cJSON *tuned = cJSON_GetObjectItemCaseSensitive(json, "tuned");
    const cJSON *config = cJSON_GetObjectItemCaseSensitive(json, "config");
    int64_t version;

    if (!cJSON_IsString(format) || strcmp(format->valuestring, state_format) != 0)
        return rax_fail(RAX_MISTAKE, "%s: format: expected \"%s\"", path, state_format);
    if (!gpt_json_integer(cJSON_GetObjectItemCaseSensitive(json, "version"), 0, INT32_MAX, &version) || version != STATE_VERSION)
        return rax_fail(RAX_MISTAKE, "%s: version: this rax reads version %d alone", path, STATE_VERSION);
    if (!gpt_json_integer(cJSON_GetObjectItemCaseSensitive(json, "iteration"), 0, INT64_MAX, &checkpoint->iteration))
        return rax_fail(RAX_MISTAKE, "%s: iteration: expected an integer of 0 or more", path);
    if (!gpt_json_integer(cJSON_GetObjectItemCaseSensitive(json, "seed"), 0, INT64_MAX, &checkpoint->seed))
        return rax_fail(RAX_MISTAKE, "%s: seed: expected an integer of 0 or more", path);
    if (!cJSON_IsString(tuned))
        return rax_fail(RAX_MISTAKE, "%s: tuned: expected a text", path);
    if (!config)
        return rax_fail(RAX_MISTAKE, "%s: config: is missing", path);
    checkpoint->tuned = gpt_format("%s", tuned->valuestring);
    return gpt_config_from_json(&checkpoint->config, config, path, checkpoint->folder) && gpt_config_check(&checkpoint->config, path);
}

static gpt_safetensors *open_arrays(const gpt_checkpoint *checkpoint, const char *name, const cJSON *json)
{
    const cJSON *digest = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(json, "digests"), name);
    char *path = gpt_path_join(checkpoint->folder, name);
    gpt_safetensors *file = gpt_safetensors_open(path);
    char *found = file ? gpt_format("xxh3:%016" PRIx64, gpt_safetensors_digest(file)) : NULL;

    if (file && (!cJSON_IsString(digest) || strcmp(digest->valuestring, found) != 0)) {
        rax_fail(RAX_MISTAKE, "%s: is damaged: its digest is %s, and state.json says %.40s", path, found,
                 cJSON_IsString(digest) ? digest->valuestring : "nothing");
        gpt_safetensors_close(file);
        file = NULL;
    }
    rax_free(found);
    rax_free(path);
    return file;
}

gpt_checkpoint *gpt_checkpoint_open(const char *path, bool with_optimizer)
{
    gpt_checkpoint *checkpoint = rax_alloc(sizeof *checkpoint);
    gpt_config_init(&checkpoint->config);
    checkpoint->folder = find_folder(path);
    char *state = checkpoint->folder ? gpt_path_join(checkpoint->folder, "state.json") : NULL;
    cJSON *json = state ? gpt_json_read(state) : NULL;

    bool opened = json && read_state(checkpoint, json, state) &&
                  (checkpoint->model = open_arrays(checkpoint, "model.safetensors", json)) &&
                  (!with_optimizer || (checkpoint->optimizer = open_arrays(checkpoint, "optimizer.safetensors", json)));
    cJSON_Delete(json);
    rax_free(state);
    if (opened)
        return checkpoint;
    gpt_checkpoint_close(checkpoint);
    return NULL;
}

void gpt_checkpoint_close(gpt_checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    gpt_safetensors_close(checkpoint->model);
    gpt_safetensors_close(checkpoint->optimizer);
    gpt_config_free(&checkpoint->config);
    rax_free(checkpoint->folder);
    rax_free(checkpoint->tuned);
    rax_free(checkpoint);
}

/* -- metrics -------------------------------------------------------------------------------------------------------- */

struct gpt_metrics {
    char *path;
    int file, folder;                                /* the folder is locked while it is open: the kernel unlocks it whatever the run's end */
};

/* Copies the rows of the old file with iter < first into the new one. A torn or foreign line is dropped. */
static bool keep_rows(const char *path, gpt_new_file *to, int64_t first)
{
    size_t bytes;
    if (access(path, F_OK) != 0)
        return true;
    char *text = gpt_file_read(path, &bytes);
    if (!text)
        return false;
    for (char *line = text, *end; (end = memchr(line, '\n', (size_t)(text + bytes - line))); line = end + 1) {
        int64_t iteration;
        cJSON *row = cJSON_ParseWithLength(line, (size_t)(end - line));
        if (gpt_json_integer(cJSON_GetObjectItemCaseSensitive(row, "iter"), 0, INT64_MAX, &iteration) && iteration < first)
            gpt_new_file_write(to, line, (size_t)(end - line) + 1);
        cJSON_Delete(row);
    }
    rax_free(text);
    return true;
}

gpt_metrics *gpt_metrics_open(const char *out_dir, int64_t first_iteration)
{
    gpt_metrics *metrics = rax_alloc(sizeof *metrics);
    metrics->path = gpt_path_join(out_dir, "metrics.jsonl");
    metrics->file = -1;
    metrics->folder = open(out_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* a file system without locks lets everyone in */
    if (metrics->folder >= 0 && flock(metrics->folder, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        rax_fail(RAX_MISTAKE, "%s: out_dir: another run is writing there", out_dir);
        gpt_metrics_close(metrics);
        return NULL;
    }

    gpt_new_file *fresh = gpt_new_file_open(metrics->path);
    if (first_iteration > 0 && !keep_rows(metrics->path, fresh, first_iteration)) {
        gpt_new_file_abandon(fresh);
    } else if (gpt_new_file_commit(fresh, NULL)) {
        metrics->file = open(metrics->path, O_WRONLY | O_APPEND | O_CLOEXEC);
        if (metrics->file >= 0)
            return metrics;
        rax_fail(RAX_FAILURE, "%s: cannot be written: %s", metrics->path, strerror(errno));
    }
    gpt_metrics_close(metrics);
    return NULL;
}

/* Cuts off the begun row that a full disk has left. */
static void take_back(int file, off_t bytes)
{
    struct stat found;
    if (bytes > 0 && fstat(file, &found) == 0 && found.st_size >= bytes && ftruncate(file, found.st_size - bytes) != 0)
        return;                                      /* the row stays torn: a run that resumes drops it */
}

bool gpt_metrics_row(gpt_metrics *metrics, int64_t iteration, const gpt_metric *values, int count)
{
    char *row = gpt_format("{\"iter\": %" PRId64, iteration);
    for (int i = 0; i < count; i++) {
        char number[32];
        gpt_json_number(number, values[i].value);
        char *more = gpt_format("%s, \"%s\": %s", row, values[i].name, number);
        rax_free(row);
        row = more;
    }
    char *line = gpt_format("%s}\n", row);
    rax_free(row);

    bool written = true;
    const char *at = line;
    while (written && *at) {
        ssize_t put = write(metrics->file, at, strlen(at));
        if (put < 0 && errno != EINTR)
            written = rax_fail(RAX_FAILURE, "%s: cannot be written: %s", metrics->path, strerror(errno));
        at += put > 0 ? put : 0;
    }
    if (!written)
        take_back(metrics->file, at - line);
    rax_free(line);
    return written;
}

bool gpt_metrics_flush(gpt_metrics *metrics)
{
    return fsync(metrics->file) == 0 || rax_fail(RAX_FAILURE, "%s: cannot be flushed: %s", metrics->path, strerror(errno));
}

void gpt_metrics_close(gpt_metrics *metrics)
{
    if (!metrics)
        return;
    if (metrics->file >= 0)
        close(metrics->file);
    if (metrics->folder >= 0)
        close(metrics->folder);
    rax_free(metrics->path);
    rax_free(metrics);
}
