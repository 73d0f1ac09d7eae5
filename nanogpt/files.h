/* Text, paths, JSON files, and files that are whole or absent whenever the process is killed.
 *
 *   files.c    text and paths, folders, reading, writing with a rename
 *   json.c     JSON with errors that name the file and the line
 *
 * All text returned is the caller's, for rax_free. */
#ifndef GPT_FILES_H
#define GPT_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;

/* -- files.c -------------------------------------------------------------------------------------------------------- */

char *gpt_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
char *gpt_path_join(const char *folder, const char *path);   /* an absolute path stays as it is; so does any, in "" and "." */
char *gpt_path_folder(const char *path);                     /* "a/b.json": "a"; "b.json": "." */
char *gpt_path_absolute(const char *path);                   /* from the working folder; links are not followed */

bool gpt_folder_make(const char *path);                      /* with those above it; it may be there already */
bool gpt_folder_remove(const char *path);                    /* with all in it; it may be absent */
bool gpt_folder_flush(const char *path);                     /* the names in it are on the disk */

/* All bytes of a regular file and a '\0' after them. */
char *gpt_file_read(const char *path, size_t *bytes);

/* A file that takes the place of path once it is whole. The first error is kept, and what follows it does nothing; commit
 * returns it. Commit and abandon free the file. */
typedef struct gpt_new_file gpt_new_file;
gpt_new_file *gpt_new_file_open(const char *path);           /* never NULL */
void gpt_new_file_write(gpt_new_file *file, const void *bytes, size_t count);
bool gpt_new_file_commit(gpt_new_file *file, uint64_t *digest);          /* digest: XXH3 of what was written; may be NULL */
void gpt_new_file_abandon(gpt_new_file *file);

/* -- json.c --------------------------------------------------------------------------------------------------------- */

/* The value, for cJSON_Delete. `path` begins the error: "a.json:7: ..." */
struct cJSON *gpt_json_parse(const char *path, const char *text, size_t bytes);
struct cJSON *gpt_json_read(const char *path);
bool gpt_json_write(const char *path, const struct cJSON *value);        /* indented; whole or not at all */
char *gpt_json_text(const struct cJSON *value);

/* The fewest digits that read back as the same double, "null" where it is not finite. (cJSON's own printer may lose the last
 * bit.) Added to an object, it is there as text, to be printed. */
void gpt_json_number(char text[32], double value);
void gpt_json_add_number(struct cJSON *object, const char *name, double value);
bool gpt_json_integer(const struct cJSON *value, int64_t low, int64_t high, int64_t *out);   /* false, without an error: it is not one */

#endif
